//! Layer 1, accounting: what the kernel itself counts, per program and connection.

use std::thread;
use std::time::{Duration, Instant};

use anyhow::Result;
use serde::Serialize;

use super::bpf::{Cost, Empty, Hook};
use super::paced;
use super::site::Site;
use super::system;
use super::watcher::{Program, Subject, Summary, Watcher};
use super::{Shape, median};

/// Rate of the paced shapes, requests per second.
pub(crate) const PACED_RATE: u32 = 10_000;
/// How long the reader is stopped.
pub(crate) const STOPPED: Duration = Duration::from_secs(2);

/// One of why502's programs in one shape: medians over the windows.
#[derive(Debug, Serialize)]
pub(crate) struct ProgramCost {
    pub(crate) name: String,
    pub(crate) hook: Option<String>,
    pub(crate) jited_bytes: u32,
    /// Instructions that the verifier walked through; 0 before 5.16.
    pub(crate) verified: u32,
    /// Runs per connection, or per request with keepalive.
    pub(crate) runs: f64,
    /// Mean run, ns, clock included.
    pub(crate) ns_per_run: Option<f64>,
    /// Mean run of an empty program at the same hook in the same window.
    pub(crate) empty_ns_per_run: Option<f64>,
    /// Their difference.
    pub(crate) above_ns: Option<f64>,
    /// Runs per connection times `above_ns`.
    pub(crate) ns_per_connection: f64,
}

/// A shape under steady load.
#[derive(Debug, Serialize)]
pub(crate) struct ShapeResult {
    pub(crate) shape: &'static str,
    /// Requests of all windows, as nginx counts them.
    pub(crate) requests: u64,
    /// Requests a second while counting (the counting itself slows every program down).
    pub(crate) requests_per_second: f64,
    pub(crate) programs: Vec<ProgramCost>,
    /// Sum over the programs, ns per connection above empty programs: median, least, most of the windows.
    pub(crate) above_ns: [f64; 3],
    /// Sum over the programs, ns per connection, hooks and clock included.
    pub(crate) total_ns: f64,
    /// why502 while there was no load.
    pub(crate) idle: Idle,
    /// Voluntary context switches of why502 beyond those without load, per second: its wake-ups by events.
    pub(crate) wakeups_per_second: f64,
    /// CPU time of why502 itself, ms, scaled to 60 s.
    pub(crate) own_cpu_ms_60s: f64,
    /// VmRSS and VmHWM at the end, kB.
    pub(crate) rss_kb: [u64; 2],
    /// CPU time of others on the machine, in CPUs.
    pub(crate) foreign_cpus: f64,
    pub(crate) connects: u64,
    pub(crate) failed: u64,
    pub(crate) ring_records: u64,
    pub(crate) events_lost: u64,
    pub(crate) incidents: u64,
}

/// why502 with nothing to do.
#[derive(Debug, Clone, Copy, Serialize)]
pub(crate) struct Idle {
    /// Voluntary context switches per second: its own poll.
    pub(crate) switches: f64,
    /// CPU time, ms, scaled to 60 s.
    pub(crate) cpu_ms_60s: f64,
}

/// A shape at a fixed rate, where every attempt is counted on both sides.
#[derive(Debug, Serialize)]
pub(crate) struct PacedResult {
    pub(crate) shape: &'static str,
    /// 502s that the load saw.
    pub(crate) attempts: u64,
    /// Failures that the kernel side counted.
    pub(crate) failed: u64,
    pub(crate) ring_records: u64,
    pub(crate) events_lost: u64,
    pub(crate) incidents: u64,
    /// How long the reader may be stopped before records are lost, s: at least this long.
    pub(crate) tolerance_s: f64,
}

impl PacedResult {
    /// Nothing is missing and nothing is counted twice.
    pub(crate) fn exact(&self) -> bool {
        self.ring_records + self.events_lost == self.attempts && self.failed == self.attempts
    }
}

/// Counters at one moment.
struct Reading {
    when: Instant,
    requests: u64,
    programs: Vec<Cost>,
    empty: Vec<Option<Cost>>,
    own_cpu: Duration,
    switches: u64,
}

/// What one window adds.
struct Window {
    requests: f64,
    programs: Vec<(Cost, Option<Cost>)>,
    seconds: f64,
    own_cpu: f64,
    switches: f64,
}

/// One program in one window.
struct Share {
    /// Per request.
    runs: f64,
    mean: Option<f64>,
    floor: Option<f64>,
    above: Option<f64>,
}

impl Share {
    /// ns per request; without an empty program to compare with, all of it.
    fn ns(&self) -> f64 {
        self.runs * self.above.or(self.mean).unwrap_or(0.0)
    }
}

impl Window {
    fn program(&self, index: usize) -> Option<Share> {
        let (cost, empty) = self.programs.get(index)?;
        let (mean, floor) = (cost.mean(), empty.and_then(Cost::mean));
        let above = mean.zip(floor).map(|(mean, floor)| mean - floor);
        Some(Share { runs: cost.runs as f64 / self.requests, mean, floor, above })
    }

    fn above(&self) -> f64 {
        (0..self.programs.len()).filter_map(|index| self.program(index)).map(|share| share.ns()).sum()
    }

    fn total(&self) -> f64 {
        self.programs.iter().map(|(cost, _)| cost.ns as f64).sum::<f64>() / self.requests
    }
}

/// Attaches an empty program behind each of why502's, where the hook is known.
fn empties(programs: &[Program]) -> Result<Vec<Option<Empty>>> {
    programs.iter().map(|p| p.hook.as_ref().map(Empty::attach).transpose()).collect()
}

/// Measures one shape under full load.
pub(crate) fn steady(
    program: &Subject,
    site: &Site,
    shape: Shape,
    hooks: &[Hook],
    (windows, seconds): (u32, u32),
) -> Result<ShapeResult> {
    // Programs of a hook run in the order of their attachment, and the first pays for cold caches on behalf
    // of all: an empty one goes before why502's, and the one that it is compared with goes behind.
    let _first: Vec<Empty> = hooks.iter().map(Empty::attach).collect::<Result<_>>()?;
    let watcher = Watcher::start(program, site.master(), true)?;
    let programs = watcher.programs()?;
    let empties = empties(&programs)?;
    let idle = idle(&watcher)?;
    // Caches, nginx's keepalive connections.
    site.wrk(shape.path(), 1)?;
    thread::sleep(Duration::from_millis(300));
    let machine = system::machine()?;
    let ours = || {
        system::own_and_ended_children()
            + site.cpu_time()
            + system::cpu_time(watcher.pid()).unwrap_or_default()
    };
    let ours_before = ours();
    let begin = Instant::now();
    let mut asked = 0;
    let mut found = Vec::new();
    let mut rates = Vec::new();
    for _ in 0..windows {
        let before = read(site, &watcher, &programs, &empties, &mut asked)?;
        rates.push(site.wrk(shape.path(), seconds)?.rate);
        // The last connections end.
        thread::sleep(Duration::from_millis(100));
        let after = read(site, &watcher, &programs, &empties, &mut asked)?;
        found.push(between(&before, &after));
    }
    let machine_after = system::machine()?;
    let spent = (ours() - ours_before).as_secs_f64();
    let foreign = (machine_after.busy - machine.busy - spent).max(0.0) + machine_after.steal - machine.steal;
    let foreign_cpus = foreign / begin.elapsed().as_secs_f64();
    let rss_kb = [system::status(watcher.pid(), "VmRSS")?, system::status(watcher.pid(), "VmHWM")?];
    drop(empties);
    let costs = programs.iter().enumerate().map(|(index, p)| program_cost(p, index, &found)).collect();
    drop(programs);
    let summary = watcher.finish()?;
    let mut above: Vec<f64> = found.iter().map(Window::above).collect();
    above.sort_by(f64::total_cmp);
    let of = |f: fn(&Window) -> f64| median(&mut found.iter().map(f).collect::<Vec<_>>());
    Ok(ShapeResult {
        shape: shape.name(),
        requests: found.iter().map(|w| w.requests as u64).sum(),
        requests_per_second: median(&mut rates),
        programs: costs,
        above_ns: [
            median(&mut above.clone()),
            above.first().copied().unwrap_or(0.0),
            above.last().copied().unwrap_or(0.0),
        ],
        total_ns: of(Window::total),
        wakeups_per_second: (of(|w| w.switches / w.seconds) - idle.switches).max(0.0),
        idle,
        own_cpu_ms_60s: of(|w| w.own_cpu * 1000.0 * 60.0 / w.seconds),
        rss_kb,
        foreign_cpus,
        connects: summary.connects,
        failed: summary.failed,
        ring_records: summary.ring_records,
        events_lost: summary.events_lost,
        incidents: summary.incidents_total,
    })
}

/// Watches why502 for two seconds without load.
fn idle(watcher: &Watcher) -> Result<Idle> {
    let read = || -> Result<(u64, Duration, Instant)> {
        let switches = system::status(watcher.pid(), "voluntary_ctxt_switches")?;
        Ok((switches, system::cpu_time(watcher.pid())?, Instant::now()))
    };
    // The first rounds after the start are not typical.
    thread::sleep(Duration::from_millis(300));
    let before = read()?;
    thread::sleep(Duration::from_secs(2));
    let after = read()?;
    let seconds = (after.2 - before.2).as_secs_f64();
    Ok(Idle {
        switches: after.0.saturating_sub(before.0) as f64 / seconds,
        cpu_ms_60s: after.1.saturating_sub(before.1).as_secs_f64() * 60_000.0 / seconds,
    })
}

fn program_cost(program: &Program, index: usize, windows: &[Window]) -> ProgramCost {
    let all: Vec<_> = windows.iter().filter_map(|w| w.program(index)).collect();
    let some = |mut values: Vec<f64>| (!values.is_empty()).then(|| median(&mut values));
    ProgramCost {
        name: program.name.clone(),
        hook: program.hook.as_ref().map(Hook::label),
        jited_bytes: program.jited_bytes,
        verified: program.verified,
        runs: median(&mut all.iter().map(|share| share.runs).collect::<Vec<_>>()),
        ns_per_run: some(all.iter().filter_map(|share| share.mean).collect()),
        empty_ns_per_run: some(all.iter().filter_map(|share| share.floor).collect()),
        above_ns: some(all.iter().filter_map(|share| share.above).collect()),
        ns_per_connection: median(&mut all.iter().map(Share::ns).collect::<Vec<_>>()),
    }
}

fn read(
    site: &Site,
    watcher: &Watcher,
    programs: &[Program],
    empties: &[Option<Empty>],
    asked: &mut u64,
) -> Result<Reading> {
    let requests = site.requests(*asked)?;
    *asked += 1;
    Ok(Reading {
        when: Instant::now(),
        requests,
        programs: programs.iter().map(Program::cost).collect::<Result<_>>()?,
        empty: empties.iter().map(|e| e.as_ref().map(Empty::cost).transpose()).collect::<Result<_>>()?,
        own_cpu: system::cpu_time(watcher.pid())?,
        switches: system::status(watcher.pid(), "voluntary_ctxt_switches")?,
    })
}

fn between(before: &Reading, after: &Reading) -> Window {
    let programs = after.programs.iter().zip(&before.programs).map(|(now, then)| now.since(*then));
    let empty = after.empty.iter().zip(&before.empty).map(|(now, then)| Some((*now)?.since((*then)?)));
    Window {
        // Never zero: it divides.
        requests: after.requests.saturating_sub(before.requests).max(1) as f64,
        programs: programs.zip(empty).collect(),
        seconds: (after.when - before.when).as_secs_f64(),
        own_cpu: after.own_cpu.saturating_sub(before.own_cpu).as_secs_f64(),
        switches: after.switches.saturating_sub(before.switches) as f64,
    }
}

/// Failing connects at a fixed rate; with `stopped` the reader is halted in the middle.
pub(crate) fn paced(program: &Subject, site: &Site, shape: Shape, stopped: bool) -> Result<PacedResult> {
    let watcher = Watcher::start(program, site.master(), true)?;
    let edge = Duration::from_secs(1);
    let attempts = paced::failing(shape.path(), PACED_RATE, edge + STOPPED + edge, || {
        if stopped {
            thread::sleep(edge);
            watcher.halt(true);
            thread::sleep(STOPPED);
            watcher.halt(false);
        }
    })?;
    // What still waits in the ring buffer is read before the end in any case.
    thread::sleep(Duration::from_millis(300));
    let Summary { incidents_total, events_lost, failed, ring_records, .. } = watcher.finish()?;
    let lost_s = events_lost as f64 / f64::from(PACED_RATE);
    Ok(PacedResult {
        shape: shape.name(),
        attempts,
        failed,
        ring_records,
        events_lost,
        incidents: incidents_total,
        tolerance_s: (STOPPED.as_secs_f64() - lost_s).max(0.0),
    })
}

/// Starts of why502, and what its presence adds to a system call that it does not look at.
#[derive(Debug, Serialize)]
pub(crate) struct Starts {
    /// From fork() to `why502: watching`, ms, sorted.
    pub(crate) start_ms: Vec<f64>,
    /// VmRSS a second after the last start, kB.
    pub(crate) rss_kb: u64,
    /// VmHWM then, kB.
    pub(crate) peak_kb: u64,
    /// A getppid() without and with why502, ns, medians.
    pub(crate) system_call_ns: [f64; 2],
}

/// Starts why502 `count` times.
pub(crate) fn starts(program: &Subject, site: &Site, count: usize) -> Result<Starts> {
    let mut start_ms = Vec::new();
    let mut calls = [Vec::new(), Vec::new()];
    let mut rss = (0, 0);
    for index in 0..count {
        calls[0].push(system_call_ns());
        let watcher = Watcher::start(program, site.master(), false)?;
        start_ms.push(watcher.start_time.as_secs_f64() * 1000.0);
        calls[1].push(system_call_ns());
        if index + 1 == count {
            thread::sleep(Duration::from_secs(1));
            rss = (system::status(watcher.pid(), "VmRSS")?, system::status(watcher.pid(), "VmHWM")?);
        }
        watcher.finish()?;
    }
    start_ms.sort_by(f64::total_cmp);
    let [mut off, mut on] = calls;
    Ok(Starts {
        start_ms,
        rss_kb: rss.0,
        peak_kb: rss.1,
        system_call_ns: [median(&mut off), median(&mut on)],
    })
}

/// The best of a few rounds of the cheapest system call.
fn system_call_ns() -> f64 {
    const CALLS: u32 = 50_000;
    let mut best = f64::MAX;
    for _ in 0..5 {
        let begin = Instant::now();
        for _ in 0..CALLS {
            // SAFETY: no arguments.
            unsafe { libc::syscall(libc::SYS_getppid) };
        }
        best = best.min(begin.elapsed().as_nanos() as f64 / f64::from(CALLS));
    }
    best
}
