//! Joins what hooks said with the attempt that failed for it.

use std::collections::VecDeque;

use crate::event::{Attempt, Denial};

/// Refusals that no attempt has claimed; more than that and the oldest are let go.
const MOST: usize = 4096;
/// No system call that does not wait takes as long, ns.
const CALL_NS: u64 = 50_000_000;

/// What hooks have said and no attempt has claimed so far.
#[derive(Debug, Default)]
pub(super) struct Denials {
    said: VecDeque<Denial>,
}

impl Denials {
    pub(super) fn note(&mut self, denial: Denial) {
        if self.said.len() >= MOST {
            self.said.pop_front();
        }
        self.said.push_back(denial);
    }

    /// Moves what was said in the system call that ended this attempt into it. A worker's records come in order, and the
    /// attempt's own comes last.
    pub(super) fn join(&mut self, attempt: &mut Attempt) {
        let fits = |d: &Denial| {
            let near = d.time_ns <= attempt.end_ns && attempt.end_ns - d.time_ns < CALL_NS;
            let same = d.socket == 0 || attempt.socket == 0 || d.socket == attempt.socket;
            d.worker == attempt.worker && near && same
        };
        let (joined, rest) = std::mem::take(&mut self.said).into_iter().partition(fits);
        self.said = rest;
        attempt.denials = Vec::from(joined as VecDeque<Denial>);
    }
}
