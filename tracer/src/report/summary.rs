//! The end of a run in numbers.

use std::{
    collections::BTreeMap,
    time::{Duration, SystemTime},
};

use serde::Serialize;
use tracer_ebpf::Counters;

use super::innocence::Checked;
use crate::{diagnose::Cause, probes::Tier};

/// Entries in the kernel's maps, for the proof that none leak.
#[derive(Debug, Clone, Copy, Serialize)]
pub struct Occupancy {
    /// Open connections of nginx that are recorded.
    pub conns: usize,
    /// Watched processes.
    pub procs: usize,
    /// Flows with packet-level evidence (an LRU map: bounded, not emptied).
    pub flows: usize,
}

/// Run time of one program of the kernel side, if the kernel counts it (`--stats`).
#[derive(Debug, Clone, Serialize)]
pub struct ProgramCost {
    /// Program's name.
    pub name: String,
    /// Runs.
    pub runs: u64,
    /// Run time, ns, all runs; it includes the kernel's own two clock readings a run.
    pub run_time_ns: u64,
}

/// The end of a run.
#[derive(Debug)]
pub struct Summary {
    /// When it ended.
    pub time: SystemTime,
    /// How long it watched.
    pub duration: Duration,
    /// Incidents by cause.
    pub incidents: BTreeMap<Cause, u64>,
    /// The kernel's counters.
    pub counters: Counters,
    /// Records that could not be read, or whose process was unknown.
    pub unread: u64,
    /// Workers at the end.
    pub workers: usize,
    /// Masters at the end.
    pub masters: usize,
    /// Tier in use.
    pub tier: Tier,
    /// Entries in the kernel's maps.
    pub maps: Occupancy,
    /// Runs that the kernel skipped because the same program was running on that CPU already (5.12+). An end
    /// that was skipped is caught when the socket is destroyed, so these are not lost by themselves.
    pub skipped_runs: u64,
    /// Cost by program; empty unless the kernel counted.
    pub programs: Vec<ProgramCost>,
    /// Accounts of the blockers that were asked for (`--cause`).
    pub checked: Vec<Checked>,
}

impl Summary {
    /// Events that did not reach the report.
    #[must_use]
    pub fn lost(&self) -> u64 {
        self.counters.lost
            + self.counters.proc_lost
            + self.counters.conns_full
            + self.counters.hints_lost
            + self.unread
    }

    /// Run time of all programs per connection of nginx, ns; None unless the kernel counted.
    #[must_use]
    pub fn overhead_ns(&self) -> Option<u64> {
        let total: u64 = self.programs.iter().map(|p| p.run_time_ns).sum();
        (total > 0).then(|| total.checked_div(self.counters.connects)).flatten()
    }
}

/// `1 worker`, `4 workers`.
#[must_use]
pub fn plural(count: usize, noun: &str) -> String {
    if count == 1 { format!("1 {noun}") } else { format!("{count} {noun}s") }
}
