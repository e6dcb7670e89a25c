//! The far end of a connection that stood: whose it is or was, what is left in its queue, what its process does, and whether
//! that ended.

use std::collections::VecDeque;

use super::facts::Gatherer;
use crate::{
    correlate::Facts,
    event::{Attempt, Death},
};

/// Deaths that are kept.
const MOST_DEATHS: usize = 1024;

/// What is remembered of backends.
#[derive(Debug, Default)]
pub(super) struct Backends {
    deaths: VecDeque<Death>,
}

impl Backends {
    /// Takes what the kernel tells of a process that ended.
    pub(super) fn died(&mut self, death: Death) {
        if self.deaths.len() >= MOST_DEATHS {
            self.deaths.pop_front();
        }
        self.deaths.push_back(death);
    }

    /// The process whose end closed the far end of that attempt's connection.
    fn death_of(&self, attempt: &Attempt) -> Option<&Death> {
        let fits = |death: &&Death| {
            let same = if death.socket == 0 {
                death.local == attempt.local && death.remote == attempt.remote
            } else {
                death.socket == attempt.socket
            };
            same && attempt.start_ns.is_none_or(|start| death.time_ns >= start)
        };
        self.deaths.iter().rev().find(fits)
    }
}

impl Gatherer {
    /// The connection stood: who is at its far end.
    pub(super) fn standing(&mut self, attempt: &Attempt, facts: &mut Facts) {
        facts.backend.death = self.backends.death_of(attempt).cloned();
    }
}
