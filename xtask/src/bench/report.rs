//! The results: one table for people, one JSON object for programs.

use std::fmt;
use std::fs;
use std::path::Path;

use anyhow::{Context, Result};
use serde::Serialize;

use super::accounting::{PACED_RATE, PacedResult, ProgramCost, STOPPED, ShapeResult, Starts};
use super::system;
use super::throughput::Row;

/// Everything that was measured.
#[derive(Debug, Serialize)]
pub(crate) struct Report {
    schema: &'static str,
    kernel: String,
    cpus: usize,
    program_bytes: u64,
    /// Load average before and after: about 0 means that nothing else ran before.
    load_average: [f64; 2],
    pub(crate) starts: Option<Starts>,
    pub(crate) shapes: Vec<ShapeResult>,
    pub(crate) paced: Vec<PacedResult>,
    pub(crate) throughput: Vec<Row>,
    pub(crate) checks: Vec<Check>,
}

/// One target.
#[derive(Debug, Serialize)]
pub(crate) struct Check {
    metric: String,
    target: String,
    measured: String,
    met: bool,
}

impl Report {
    /// An empty report of this machine.
    pub(crate) fn new(program: &Path) -> Result<Self> {
        let kernel = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default().trim().to_owned();
        let bytes =
            fs::metadata(program).with_context(|| format!("cannot read {}", program.display()))?.len();
        Ok(Self {
            schema: "why502-bench/1",
            kernel,
            cpus: std::thread::available_parallelism().map_or(0, usize::from),
            program_bytes: bytes,
            load_average: [system::load_average(); 2],
            starts: None,
            shapes: Vec::new(),
            paced: Vec::new(),
            throughput: Vec::new(),
            checks: Vec::new(),
        })
    }

    /// To be called after the last measurement.
    pub(crate) fn finish(&mut self) {
        self.load_average[1] = system::load_average();
    }

    /// Targets that are missed.
    pub(crate) fn missed(&self) -> usize {
        self.checks.iter().filter(|c| !c.met).count()
    }
}

/// The targets of shared/facts/performance.md.
pub(crate) struct Targets;

impl Targets {
    /// Holds the results against the targets.
    pub(crate) fn of(report: &Report) -> Vec<Check> {
        let mut checks = Vec::new();
        for shape in &report.shapes {
            match shape.shape {
                "connect" => {
                    healthy(&mut checks, shape, "kernel time per healthy connection above empty", 600.0);
                }
                "keepalive" => {
                    // wrk's own 32 connections to the front come and go with each window.
                    let runs: f64 = shape.programs.iter().map(|p| p.runs).sum();
                    checks.push(check(
                        shape,
                        "program runs per request",
                        "0.00 (< 0.05)",
                        format!("{runs:.2}"),
                        runs < 0.05,
                    ));
                    healthy(&mut checks, shape, "kernel time per request above empty", 30.0);
                }
                _ => failing(&mut checks, shape),
            }
        }
        checks.extend(report.paced.iter().map(paced));
        if let Some(lost) = report.paced.iter().find(|p| p.shape == "paced").map(|p| p.events_lost) {
            checks.push(Check {
                metric: format!("paced: events lost at {PACED_RATE}/s"),
                target: "0".to_owned(),
                measured: lost.to_string(),
                met: lost == 0,
            });
        }
        if let Some(starts) = &report.starts {
            memory_and_start(&mut checks, starts);
        }
        checks
    }
}

fn check(shape: &ShapeResult, metric: &str, target: &str, measured: String, met: bool) -> Check {
    Check { metric: format!("{}: {metric}", shape.shape), target: target.to_owned(), measured, met }
}

fn cost(checks: &mut Vec<Check>, shape: &ShapeResult, metric: &str, limit: f64) {
    let [middle, least, most] = shape.above_ns;
    let measured = format!("{middle:.0} ns [{least:.0}–{most:.0}]");
    checks.push(check(shape, metric, &format!("≤ {limit:.0} ns"), measured, middle <= limit));
}

fn healthy(checks: &mut Vec<Check>, shape: &ShapeResult, metric: &str, limit: f64) {
    cost(checks, shape, metric, limit);
    checks.push(check(shape, "ring records", "0", shape.ring_records.to_string(), shape.ring_records == 0));
    // The poll is no clock: one more or less a second is not an event.
    let wakeups = shape.wakeups_per_second;
    checks.push(check(
        shape,
        "wake-ups beyond the poll, per s",
        "0 (< 1)",
        format!("{wakeups:.1}"),
        wakeups < 1.0,
    ));
    let cpu = shape.own_cpu_ms_60s;
    checks.push(check(shape, "own CPU in 60 s", "≤ 10 ms", format!("{cpu:.1} ms"), cpu <= 10.0));
    checks.push(check(shape, "events lost", "0", shape.events_lost.to_string(), shape.events_lost == 0));
}

fn failing(checks: &mut Vec<Check>, shape: &ShapeResult) {
    cost(checks, shape, "kernel time per failed connect above empty", 500.0);
    let all = shape.ring_records + shape.events_lost;
    let measured = format!("{} + {} = {all}; failed {}", shape.ring_records, shape.events_lost, shape.failed);
    checks.push(check(shape, "sent + lost", "= failed", measured, all == shape.failed));
    let kept = format!("{} of {}", shape.events_lost, shape.failed);
    checks.push(check(shape, "events lost at full speed", "0", kept, shape.events_lost == 0));
}

fn paced(result: &PacedResult) -> Check {
    let PacedResult { ring_records, events_lost, attempts, failed, .. } = result;
    Check {
        metric: format!("{}: sent + lost", result.shape),
        target: "= attempts".to_owned(),
        measured: format!("{} of {attempts}; counted {failed}", ring_records + events_lost),
        met: result.exact(),
    }
}

fn memory_and_start(checks: &mut Vec<Check>, starts: &Starts) {
    let mut push = |metric: &str, target: &str, measured: String, met| {
        checks.push(Check { metric: metric.to_owned(), target: target.to_owned(), measured, met });
    };
    let (least, most) =
        (starts.start_ms.first().copied().unwrap_or(0.0), starts.start_ms.last().copied().unwrap_or(0.0));
    let middle = super::median(&mut starts.start_ms.clone());
    push(
        "start to `why502: watching`",
        "≤ 60 ms",
        format!("{middle:.0} ms [{least:.0}–{most:.0}]"),
        middle <= 60.0,
    );
    let megabytes = |kb: u64| kb as f64 / 1024.0;
    push(
        "resident, steady",
        "≤ 8 MiB",
        format!("{:.1} MiB", megabytes(starts.rss_kb)),
        starts.rss_kb <= 8 * 1024,
    );
    push(
        "resident, peak",
        "≤ 16 MiB",
        format!("{:.1} MiB", megabytes(starts.peak_kb)),
        starts.peak_kb <= 16 * 1024,
    );
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [before, after] = self.load_average;
        writeln!(
            f,
            "kernel {}, {} CPUs, load average {before:.2} before, {after:.2} after\n",
            self.kernel, self.cpus
        )?;
        self.programs(f)?;
        self.verified(f)?;
        for p in &self.paced {
            writeln!(
                f,
                "{}: {} attempts, {} failed, {} sent, {} lost, {} explained",
                p.shape, p.attempts, p.failed, p.ring_records, p.events_lost, p.incidents
            )?;
            if p.shape == "stopped" {
                writeln!(
                    f,
                    "         reader stopped {} s at {PACED_RATE}/s: records kept for {}{:.2} s",
                    STOPPED.as_secs(),
                    if p.events_lost == 0 { "≥ " } else { "" },
                    p.tolerance_s
                )?;
            }
        }
        if let Some([off, on]) = self.starts.as_ref().map(|s| s.system_call_ns) {
            writeln!(
                f,
                "a system call that why502 does not look at: {off:.0} ns without, {on:.0} ns with it"
            )?;
        }
        if !self.checks.is_empty() {
            writeln!(
                f,
                "\n{:<62} {:<13} {:<40} verdict",
                "target of the accounting layer", "target", "measured"
            )?;
            for c in &self.checks {
                let verdict = if c.met { "met" } else { "MISSED" };
                writeln!(f, "{:<62} {:<13} {:<40} {verdict}", c.metric, c.target, c.measured)?;
            }
        }
        self.ratios(f)
    }
}

impl Report {
    /// What the verifier walks through at every start, the largest programs first.
    fn verified(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Some(shape) = self.shapes.first() else { return Ok(()) };
        let mut programs: Vec<&ProgramCost> = shape.programs.iter().collect();
        programs.sort_by_key(|program| std::cmp::Reverse(program.verified));
        let all: u64 = programs.iter().map(|program| u64::from(program.verified)).sum();
        let largest: Vec<String> =
            programs.iter().take(5).map(|program| format!("{} {}", program.name, program.verified)).collect();
        writeln!(
            f,
            "the verifier walks through {all} instructions of {} programs: {}, …",
            programs.len(),
            largest.join(", ")
        )
    }

    fn programs(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "{:<11} {:<16} {:<26} {:>6} {:>9} {:>8} {:>8} {:>8} {:>9}",
            "shape", "program", "hook", "code B", "runs/conn", "ns/run", "empty", "above", "ns/conn"
        )?;
        for shape in &self.shapes {
            let ran = |p: &&ProgramCost| p.runs >= 0.0005;
            for p in shape.programs.iter().filter(ran) {
                writeln!(
                    f,
                    "{:<11} {:<16} {:<26} {:>6} {:>9.3} {:>8} {:>8} {:>8} {:>9.1}",
                    shape.shape,
                    p.name,
                    p.hook.as_deref().unwrap_or("?"),
                    p.jited_bytes,
                    p.runs,
                    number(p.ns_per_run),
                    number(p.empty_ns_per_run),
                    number(p.above_ns),
                    p.ns_per_connection
                )?;
            }
            writeln!(
                f,
                "{:<11} {} requests, {:.0}/s; {:.0} ns/conn above empty, {:.0} in all; own CPU {:.1} ms/60 s (idle \
                 {:.1}); wakes {:.1}/s by itself, {:.1}/s by events; RSS {} kB, peak {} kB; others used {:.2} CPUs",
                shape.shape,
                shape.requests,
                shape.requests_per_second,
                shape.above_ns[0],
                shape.total_ns,
                shape.own_cpu_ms_60s,
                shape.idle.cpu_ms_60s,
                shape.idle.switches,
                shape.wakeups_per_second,
                shape.rss_kb[0],
                shape.rss_kb[1],
                shape.foreign_cpus
            )?;
            writeln!(
                f,
                "{:<11} connects {}, failed {}, sent {}, lost {}, explained {}\n",
                shape.shape,
                shape.connects,
                shape.failed,
                shape.ring_records,
                shape.events_lost,
                shape.incidents
            )?;
        }
        Ok(())
    }

    fn ratios(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.throughput.is_empty() {
            return Ok(());
        }
        writeln!(
            f,
            "\n{:<11} {:<16} {:>12} {:<22} {:>6} {:>9}   (reported, never gated)",
            "throughput", "with", "off, req/s", "with ÷ off", "pairs", "rejected"
        )?;
        for row in &self.throughput {
            let ratio = match (row.ratio, row.rejected_ratio) {
                (Some([middle, least, most]), _) => format!("{middle:.2} [{least:.2}–{most:.2}]"),
                (None, Some(middle)) => format!("({middle:.2}, all noisy)"),
                (None, None) => "–".to_owned(),
            };
            writeln!(
                f,
                "{:<11} {:<16} {:>12.0} {ratio:<22} {:>6} {:>9}",
                row.shape, row.mode, row.off, row.accepted, row.rejected
            )?;
        }
        Ok(())
    }
}

fn number(value: Option<f64>) -> String {
    value.map_or_else(|| "–".to_owned(), |v| format!("{v:.0}"))
}
