//! What a check looks at, how much time it may take, and what it hands back.

use std::time::Duration;

use super::finding::{Checked, Finding};
use crate::{session::Snapshot, sys::process::Process};

/// One running nginx.
#[derive(Debug, Clone)]
pub struct Subject<'a> {
    /// The master, or the only process under `master_process off`.
    pub master: Process,
    /// The processes that make upstream connections; those that are shutting down among them.
    pub workers: Vec<Process>,
    /// The configuration that it runs with.
    pub snapshot: &'a Snapshot,
}

/// Bounds and wishes.
#[derive(Debug, Clone)]
pub struct Options {
    /// For one connect, or one answer.
    pub timeout: Duration,
    /// For all connections to the upstream servers of one nginx; its name servers get a third of that on top.
    pub total: Duration,
    /// Most connections that are open at once.
    pub parallel: usize,
    /// Names of findings that nobody wants to see.
    pub ignore: Vec<String>,
    /// Told now and then what long work is at, such as `412 of 1000 upstream servers`.
    pub progress: fn(&str),
}

impl Default for Options {
    fn default() -> Self {
        Self {
            timeout: Duration::from_secs(3),
            total: Duration::from_secs(30),
            parallel: 64,
            ignore: Vec::new(),
            progress: |_| {},
        }
    }
}

/// What one family of checks has to say.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Report {
    /// What was looked at, in the order in which it is told.
    pub checked: Vec<Checked>,
    /// What is wrong.
    pub findings: Vec<Finding>,
}
