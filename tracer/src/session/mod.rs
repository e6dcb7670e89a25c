//! A run of `why502 trace`: follow nginx's processes, read records, gather facts, explain, report.
//!
//! One thread, one loop: the ring buffer is emptied ten times a second (records do not wake us; process
//! events do), and explaining has a time budget per round, so that the buffer never waits for /proc.

mod alone;
mod backends;
mod choice;
mod clock;
mod config;
mod denials;
mod doubts;
mod dump;
mod evidence;
mod explain;
mod facts;
mod far_unix;
mod filters;
mod header;
mod maps;
mod narrow;
mod notes;
mod older;
mod refused;
mod requests;
mod rest;
mod rules;
mod running;
mod said;
mod selinux;
mod storm;
mod suspects;
mod trace;
mod tried;
mod unix;
mod watch;

use std::{
    collections::{BTreeMap, VecDeque},
    io::{self, Write},
    os::fd::{AsFd as _, OwnedFd},
    path::PathBuf,
    time::{Duration, Instant, SystemTime},
};

use anyhow::{Context as _, Result};
use aya::Ebpf;
use bytes::Bytes;
use tracer_ebpf::Counters;

pub use config::Snapshot;
pub use tried::{Explainer, Foreseen, Tried, attempt as made_attempt, unix_name};

use crate::{
    correlate::Reach,
    diagnose::Cause,
    event::{self, Attempt, Event, Stage},
    moment::Moment,
    probes::{
        Tier, ask,
        denials::SECCOMP,
        load::{Loaded, give_memory_back},
        uprobes::Mode,
    },
    record::{self, Recorder},
    report::{ProgramCost, Report, Summary, Totals, innocence::Account, select::Select},
};
use alone::Alone;
use clock::monotonic_ns;
use denials::Denials;
use dump::Dump;
use evidence::reach;
use explain::{may_be_a_last_word, needs_company};
use facts::Gatherer;
use filters::Filters;
use maps::Maps;
use refused::Refused;
use requests::Requests;
use rest::Rest;
use said::Uprobes;
use storm::Storm;
use trace::Traces;
use watch::Watch;

/// How often the ring buffer is emptied. At 10,000 failures a second 100 ms are a third of its size.
pub const POLL: Duration = Duration::from_millis(100);
/// Time for explaining per round; what is left waits for the next one.
const BUDGET: Duration = Duration::from_millis(60);
/// Attempts that may wait to be explained (6 MB); beyond it records stay in the ring buffer, and the kernel
/// counts what does not fit there.
const MOST_WAITING: usize = 8192;
/// Explained attempts between two looks into the ring buffer.
const BATCH: usize = 64;

/// What to trace.
#[derive(Debug, Clone, Default)]
pub struct Filter {
    /// Only these masters or processes, if not empty.
    pub pids: Vec<u32>,
    /// Which incidents are told.
    pub select: Select,
    /// Where they are recorded.
    pub record: Option<record::Target>,
    /// End after so many incidents.
    pub count: Option<u64>,
    /// The kernel counts run times for this run.
    pub stats: bool,
    /// The kernel is asked to name the rules that drop.
    pub trace_rules: bool,
    /// Where every record goes as it came, for the tests of the decoder.
    pub dump_records: Option<PathBuf>,
    /// Which functions of nginx are probed (default: none).
    pub uprobes: Option<Mode>,
}

struct Held {
    attempt: Attempt,
    client_gone: Option<(std::net::SocketAddr, bool)>,
    round: u64,
}

/// A running trace.
pub struct Session<'a> {
    ebpf: Ebpf,
    maps: Maps,
    watch: Watch,
    gatherer: Gatherer,
    traces: Traces,
    reach: Reach,
    tier: Tier,
    filter: Filter,
    report: Box<dyn Report + 'a>,
    out: Box<dyn Write + 'a>,
    recorder: Option<Recorder>,
    waiting: VecDeque<Held>,
    denials: Denials,
    refused: Refused,
    filters: Filters,
    requests: Requests,
    alone: Alone,
    uprobes: Uprobes,
    storm: Storm,
    round: u64,
    rest: Rest,
    unread: u64,
    /// Dropped packets that neither program saw, so far.
    unseen_drops: u64,
    /// When that was looked at last, CLOCK_MONOTONIC ns.
    looked_ns: u64,
    /// Between which looks there were any.
    blind: VecDeque<(u64, u64)>,
    incidents: BTreeMap<Cause, u64>,
    /// Connections that stood before they were watched.
    older: usize,
    shown: u64,
    started: Instant,
    logger: Option<aya_log::EbpfLogger<&'static dyn log::Log>>,
    dump: Option<Dump>,
}

/// What a round of the loop found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Round {
    /// Nothing is left to do until the next tick.
    Idle,
    /// Nothing has happened for a while: sleep until the kernel wakes us.
    Asleep,
    /// Attempts wait to be explained: come back at once.
    Busy,
    /// The wanted number of incidents is reached.
    Done,
}

impl<'a> Session<'a> {
    /// Takes over a loaded object and looks for nginx; complaints go to stderr.
    ///
    /// # Errors
    /// If maps are missing or /proc cannot be read.
    pub fn new(
        loaded: Loaded,
        filter: Filter,
        report: Box<dyn Report + 'a>,
        out: Box<dyn Write + 'a>,
        debug: bool,
    ) -> Result<Self> {
        let reach = reach(&loaded);
        let requests = Requests::new();
        let uprobes = Uprobes::new(filter.uprobes.unwrap_or(Mode::Off));
        let alone = Alone::new(loaded.has("dns4") && loaded.has("dns6"));
        let filters = Filters::new(loaded.ready(SECCOMP));
        let (hooks, payload) = (header::hooks(&loaded), loaded.payload);
        let Loaded { mut ebpf, tier, drop_reasons, lsm_functions, .. } = loaded;
        let logger = if debug {
            Some(
                aya_log::EbpfLogger::init(&mut ebpf)
                    .context("cannot read the BPF programs' debug messages")?,
            )
        } else {
            None
        };
        let dump = filter.dump_records.as_deref().map(Dump::create).transpose()?;
        let mut maps = Maps::take(&mut ebpf)?;
        let mut watch = Watch::new(filter.pids.clone());
        complain(&watch.scan(&mut maps)?);
        let begin = |target: &record::Target| {
            let header = header::of(tier, hooks, payload, &watch);
            Recorder::begin(target, header).with_context(|| {
                format!("cannot record to {} (another file: -w FILE)", target.path.display())
            })
        };
        let recorder = filter.record.as_ref().map(begin).transpose()?;
        let (traces, said) = Traces::new(filter.trace_rules);
        complain(&said);
        let mut session = Self {
            ebpf,
            maps,
            watch,
            gatherer: Gatherer::new(drop_reasons, lsm_functions),
            traces,
            reach,
            tier,
            filter,
            report,
            out,
            recorder,
            waiting: VecDeque::new(),
            denials: Denials::default(),
            refused: Refused::default(),
            filters,
            requests,
            alone,
            uprobes,
            storm: Storm::default(),
            round: 0,
            rest: Rest::default(),
            unread: 0,
            unseen_drops: 0,
            looked_ns: monotonic_ns(),
            blind: VecDeque::new(),
            incidents: BTreeMap::new(),
            older: 0,
            shown: 0,
            started: Instant::now(),
            logger,
            dump,
        };
        session.note_namespaces();
        session.follow_executables();
        session.enter_older();
        give_memory_back();
        Ok(session)
    }

    /// A descriptor that becomes readable when a process event comes in.
    ///
    /// # Errors
    /// If this process has no descriptor left.
    pub fn wake_fd(&self) -> io::Result<OwnedFd> {
        self.maps.ring.as_fd().try_clone_to_owned()
    }

    /// Watched workers and masters.
    #[must_use]
    pub fn population(&self) -> (usize, usize) {
        (self.watch.workers(), self.watch.masters())
    }

    /// Upstream connections that stood already and are followed from now on.
    #[must_use]
    pub fn older_connections(&self) -> usize {
        self.older
    }

    /// One round: read all records, then explain within the time budget.
    ///
    /// # Errors
    /// Those of the output.
    pub fn round(&mut self) -> Result<Round> {
        self.round += 1;
        self.drain()?;
        self.traces.poll(&mut self.gatherer);
        if let Some(logger) = &mut self.logger {
            logger.flush();
        }
        if !self.waiting.is_empty() {
            self.note_blindness();
        }
        // Whose answer has just been read comes before what failed later.
        if self.show_settled()? {
            return Ok(Round::Done);
        }
        let end = Instant::now() + BUDGET;
        let mut explained = 0_usize;
        let mut more = false;
        while let Some(held) = self.waiting.front() {
            let undecided = || self.gatherer.backends.is_undecided(&held.attempt);
            let watched = || {
                held.client_gone.is_none()
                    && monotonic_ns() < held.attempt.end_ns + tracer_ebpf::CLIENT_WAIT_NS
            };
            let waits = needs_company(&held.attempt) || may_be_a_last_word(&held.attempt);
            if waits && (held.round == self.round || watched() || undecided()) {
                break;
            }
            if Instant::now() >= end {
                more = true;
                break;
            }
            if let Some(held) = self.waiting.pop_front() {
                self.explain(held)?;
            }
            if self.enough() {
                return Ok(Round::Done);
            }
            explained += 1;
            if explained.is_multiple_of(BATCH) {
                self.drain()?;
            }
        }
        more |= self.explain_alone(end)?;
        if self.storm.is_due(Instant::now()) && self.tell_counted()? {
            return Ok(Round::Done);
        }
        self.report.tick(&mut *self.out, monotonic_ns()).context("cannot write to stdout")?;
        if let Some(recorder) = self.recorder.as_mut().filter(|recorder| recorder.waits()) {
            complain(&recorder.tick(Moment::local(SystemTime::now()), monotonic_ns()));
        }
        if self.show_settled()? {
            return Ok(Round::Done);
        }
        if self.round.is_multiple_of(20) {
            if self.waiting.is_empty() {
                self.requests.sweep(Instant::now());
            }
            self.gatherer.sweep();
            self.alone.sweep(monotonic_ns());
            self.refused.loose(self.denials.loose(monotonic_ns()));
            self.watch.sweep();
            self.follow_executables();
        }
        if more {
            return Ok(Round::Busy);
        }
        if !self.waiting.is_empty()
            || self.requests.any_waits()
            || self.alone.any_waits()
            || self.storm.any_waits()
            || self.traces.any()
            || self.report.waits()
            || self.recorder.as_ref().is_some_and(Recorder::waits)
            || self.logger.is_some()
        {
            return Ok(Round::Idle);
        }
        match self.rest.next(explained == 0) {
            rest::Step::Wait => Ok(Round::Idle),
            rest::Step::Ask => {
                self.gatherer.sweep();
                self.maps.ask_for_wakeup()?;
                Ok(Round::Idle)
            }
            rest::Step::Sleep => Ok(Round::Asleep),
        }
    }

    /// Explains what is left and writes the summary.
    ///
    /// # Errors
    /// Those of the output.
    pub fn finish(mut self) -> Result<Summary> {
        self.drain()?;
        self.note_blindness();
        while let Some(held) = self.waiting.pop_front() {
            if self.enough() {
                break;
            }
            self.explain(held)?;
        }
        while self.explain_alone(Instant::now() + BUDGET)? {}
        for incident in self.requests.all() {
            if self.enough() {
                break;
            }
            self.show(incident)?;
        }
        if !self.enough() {
            self.tell_counted()?;
        }
        self.refused.loose(self.denials.loose(u64::MAX));
        let mut counters = totals(&self.maps.counters());
        if !self.enough() {
            // Their exemplar was lost, or never explained.
            counters.lost += counters.counted.saturating_sub(self.storm.told());
        }
        let mut summary = Summary {
            time: Moment::local(SystemTime::now()),
            mono_ns: monotonic_ns(),
            duration: self.started.elapsed(),
            incidents: std::mem::take(&mut self.incidents),
            counters,
            unread: self.unread,
            workers: self.watch.workers(),
            masters: self.watch.masters(),
            tier: self.tier,
            maps: self.maps.occupancy(),
            skipped_runs: self.ebpf.programs().filter_map(|(_, program)| ask::skipped_runs(program)).sum(),
            programs: if self.filter.stats { costs(&self.ebpf) } else { Vec::new() },
            unrecorded: false,
            account: self.account(),
            checked: Vec::new(),
        };
        summary.ask(&self.filter.select.causes);
        if let Some(recorder) = &mut self.recorder {
            complain(&recorder.end(&summary));
            summary.unrecorded = recorder.failed();
        }
        self.report.summary(&mut *self.out, &summary).context("cannot write to stdout")?;
        Ok(summary)
    }

    /// What the accounts of blockers are made of.
    fn account(&self) -> Account {
        let watching = refused::programs(self.tier);
        let programs = self.ebpf.programs().filter(|(name, _)| watching.contains(name));
        Account {
            reach: self.reach,
            skipped: programs.filter_map(|(_, program)| ask::skipped_runs(program)).sum(),
            denied: self.refused.counts(),
        }
    }

    /// Somebody asks for what was recorded (SIGUSR1).
    pub fn write_out(&mut self) {
        let now = Moment::local(SystemTime::now());
        complain(&match &mut self.recorder {
            Some(recorder) => recorder.write_out(now, monotonic_ns()),
            None => vec!["SIGUSR1 writes a recording out, and there is none: -w FILE".to_owned()],
        });
    }

    fn drain(&mut self) -> Result<()> {
        while self.waiting.len() < MOST_WAITING && self.alone.has_room() {
            let Some(record) = self.maps.ring.next() else {
                break;
            };
            let bytes = Bytes::copy_from_slice(&record);
            drop(record);
            self.rest.read();
            if let Some(dump) = &mut self.dump {
                dump.add(&bytes)?;
            }
            match event::decode(&bytes) {
                Ok(event) => self.take(event)?,
                Err(error) => {
                    self.unread += 1;
                    complain(&[error.to_string()]);
                }
            }
        }
        Ok(())
    }

    fn take(&mut self, event: Event) -> Result<()> {
        match event {
            Event::Attempt(mut attempt) => {
                self.denials.join(&mut attempt);
                if needs_company(&attempt) && attempt.stage == Stage::Established {
                    self.gatherer.look_early(&attempt);
                }
                self.waiting.push_back(Held { attempt: *attempt, client_gone: None, round: self.round });
            }
            Event::ClientGone { socket, end_ns, client, reset } => {
                let fits = |h: &&mut Held| {
                    h.attempt.socket == socket && end_ns.abs_diff(h.attempt.end_ns) < 20_000_000
                };
                if let Some(held) = self.waiting.iter_mut().rev().find(fits) {
                    held.client_gone = Some((client, reset));
                }
            }
            Event::Answered(answered) => self.requests.answered(answered, Instant::now()),
            Event::Denial(denial) => {
                complain(self.gatherer.selinux.warning(&denial).as_slice());
                self.denials.note(*denial);
            }
            Event::Death(death) => self.gatherer.backends.died(*death),
            Event::Said(mut statement) => {
                said::complete(&mut statement);
                self.alone.said(&statement);
                self.requests.said(*statement, Instant::now());
            }
            Event::Dns(dns) => self.alone.heard(*dns),
            Event::Hint { socket, worker, remote } => {
                if !self.reach.accept_queue {
                    self.gatherer.note_queue(socket, worker, remote);
                }
            }
            Event::Fork { pid, parent } => {
                complain(&self.watch.forked(&mut self.maps, pid, parent)?);
                self.note_namespaces();
            }
            Event::Exec { pid } => {
                let news = self.watch.executed(&mut self.maps, pid)?;
                self.note_namespaces();
                self.enter_older();
                // Who waits for the news may send requests at once.
                self.follow_executables();
                complain(&news);
            }
            Event::Exit { pid } => {
                // Its entry may have been written again after the kernel removed it.
                self.maps.unwatch(pid);
                self.watch.exited(pid);
            }
        }
        Ok(())
    }

    /// Connections of processes that were there before they were watched.
    fn enter_older(&mut self) {
        let (entered, problems) = older::enter(&self.ebpf, &mut self.watch);
        self.older += entered;
        complain(&problems);
    }

    fn follow_executables(&mut self) {
        complain(&self.uprobes.follow(&mut self.ebpf, &mut self.maps, self.watch.families()));
    }

    fn follow_filters(&mut self) {
        let attached = self.filters.follow(&mut self.ebpf, self.tier, self.watch.pids());
        self.reach.blockers.seccomp = self.filters.seen();
        complain(&attached);
    }

    fn note_namespaces(&mut self) {
        self.follow_filters();
        for (inum, pid) in self.watch.namespaces() {
            self.gatherer.note_namespace(inum, pid);
        }
    }
}

fn totals(counters: &Counters) -> Totals {
    Totals {
        connects: counters.connects,
        established: counters.established,
        failed: counters.failed,
        sent: counters.sent,
        counted: counters.counted,
        lost: counters.lost + counters.proc_lost + counters.conns_full + counters.hints_lost,
        found_late: counters.found_late,
    }
}

fn costs(ebpf: &Ebpf) -> Vec<ProgramCost> {
    ebpf.programs()
        .filter_map(|(name, program)| {
            let info = program.info().ok()?;
            (info.run_count() > 0).then(|| ProgramCost {
                name: name.to_owned(),
                runs: info.run_count(),
                run_time_ns: u64::try_from(info.run_time().as_nanos()).unwrap_or(u64::MAX),
            })
        })
        .collect()
}

/// Says on stderr what is wrong but does not end the run.
pub fn complain(problems: &[String]) {
    let mut err = io::stderr().lock();
    for problem in problems {
        // There is nowhere left to report that stderr is gone.
        let _ = writeln!(err, "why502: {problem}");
    }
}
