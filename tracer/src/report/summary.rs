//! The end of a run in numbers.

use std::{collections::BTreeMap, time::Duration};

use serde::{Deserialize, Serialize};

use super::innocence::{Account, Checked};
use crate::{diagnose::Cause, moment::Moment, probes::Tier};

/// Entries in the kernel's maps, for the proof that none leak.
#[derive(Debug, Clone, Copy, Default, Serialize, Deserialize)]
pub struct Occupancy {
    /// Open connections of nginx that are recorded.
    pub conns: usize,
    /// Watched processes.
    pub procs: usize,
    /// Flows with packet-level evidence (an LRU map: bounded, not emptied).
    pub flows: usize,
}

/// Run time of one program of the kernel side, if the kernel counts it (`--stats`).
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct ProgramCost {
    /// Program's name.
    pub name: String,
    /// Runs.
    pub runs: u64,
    /// Run time, ns, all runs; it includes the kernel's own two clock readings a run.
    pub run_time_ns: u64,
}

/// What the kernel side counted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Totals {
    /// Connections begun by watched processes.
    pub connects: u64,
    /// Connections established.
    pub established: u64,
    /// Attempts that failed.
    pub failed: u64,
    /// Failed attempts sent to user space.
    pub sent: u64,
    /// Failed attempts that were counted with equal ones in place of being sent.
    pub counted: u64,
    /// Failed attempts, and what else is sent, lost because a buffer or a map was full.
    pub lost: u64,
    /// Connections whose beginning the kernel kept from us, found when connect() returned.
    pub found_late: u64,
}

/// The end of a run.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Summary {
    /// When it ended.
    pub time: Moment,
    /// The same, CLOCK_MONOTONIC ns.
    pub mono_ns: u64,
    /// How long it watched.
    pub duration: Duration,
    /// Incidents by cause.
    pub incidents: BTreeMap<Cause, u64>,
    /// The kernel's counters.
    pub counters: Totals,
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
    /// Not everything could be recorded.
    #[serde(skip)]
    pub unrecorded: bool,
    /// What the blockers' accounts are made of.
    pub account: Account,
    /// Accounts of the blockers that were asked for (`--cause`).
    pub checked: Vec<Checked>,
}

impl Summary {
    /// Makes the accounts of those of the causes that are blockers.
    pub fn ask(&mut self, causes: &[Cause]) {
        let account = |cause: &Cause| self.account.of(*cause, self.counters.connects, self.lost());
        self.checked = causes.iter().filter_map(account).collect();
    }

    /// Events that did not reach the report.
    #[must_use]
    pub fn lost(&self) -> u64 {
        self.counters.lost.saturating_add(self.unread)
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
