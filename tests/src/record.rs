//! The recording of a run, and which of its incidents belong to which case.

use crate::report::Outcome;
use crate::scene::Seen;
use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

/// What was played, beside a recording (`FILE.cases`).
#[derive(Debug, Default, Serialize, Deserialize)]
pub(crate) struct Played {
    /// Tier of the run.
    pub(crate) tier: String,
    /// Where the lab was started: nginx's too.
    #[serde(default)]
    pub(crate) cwd: String,
    pub(crate) cases: Vec<PlayedCase>,
}

/// How to find a case's incidents: by processes, and by time, as their numbers are used again.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct PlayedCase {
    pub(crate) name: String,
    pub(crate) passed: bool,
    pub(crate) pids: BTreeSet<u32>,
    /// CLOCK_MONOTONIC ns.
    pub(crate) from_ns: u64,
    pub(crate) to_ns: u64,
    /// nginx's prefix.
    pub(crate) dir: String,
    /// So many incidents were judged.
    pub(crate) incidents: usize,
}

/// Where the list lies.
pub(crate) fn list_of(recording: &Path) -> PathBuf {
    let mut name = recording.as_os_str().to_owned();
    name.push(".cases");
    name.into()
}

/// Writes the list of what was played.
pub(crate) fn note(recording: &Path, tier: &str, done: &[(Outcome, Vec<Seen>)]) -> Result<()> {
    // Of a case that was played several times the last one counts.
    let last = |(outcome, plays): &(Outcome, Vec<Seen>)| {
        let seen = plays.last().filter(|_| outcome.skipped.is_none())?;
        Some(PlayedCase {
            name: outcome.name.clone(),
            passed: outcome.passed(),
            pids: seen.pids.clone(),
            from_ns: seen.from_ns,
            to_ns: seen.to_ns,
            dir: seen.dir.to_string_lossy().into_owned(),
            incidents: outcome.incidents.len(),
        })
    };
    let cwd = std::env::current_dir().map(|dir| dir.to_string_lossy().into_owned()).unwrap_or_default();
    let played = Played { tier: tier.to_owned(), cwd, cases: done.iter().filter_map(last).collect() };
    let path = list_of(recording);
    let text = serde_json::to_vec(&played)?;
    std::fs::write(&path, text).with_context(|| format!("cannot write {}", path.display()))
}
