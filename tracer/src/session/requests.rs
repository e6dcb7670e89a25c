//! Explained incidents that wait for the answer to their client's request, and the answers themselves.
//!
//! The record of an attempt comes when it fails, the one of its request when nginx answers the client: at once as a
//! rule, late if another server is asked meanwhile. An incident is explained first and waits then, so that its facts
//! are fresh; those without a request wait for nobody.

use std::{
    collections::{HashMap, VecDeque, hash_map::Entry},
    time::{Duration, Instant},
};

use crate::{
    correlate::request::{Attribution, OFF, UNANSWERED, UNLINKED},
    event::Answered,
    report::Incident,
};

/// How long an incident waits for its request's answer.
const WAIT: Duration = Duration::from_secs(2);
/// How long an answer is kept for attempts that are still to be explained.
const KEEP: Duration = Duration::from_secs(10);
/// Answers that are kept at most: those of all attempts that can wait to be explained, and as many again.
const MOST_ANSWERS: usize = 16_384;
/// Incidents that wait at most; beyond it the oldest go without their request.
const MOST_WAITING: usize = 8192;

/// A worker, and one of its requests.
type Key = (u32, u64);

/// Answers and those who wait for them.
#[derive(Debug, Default)]
pub(super) struct Requests {
    watched: bool,
    answers: HashMap<Key, Attribution>,
    /// When each of them came, the oldest first.
    ages: VecDeque<(Instant, Key)>,
    waiting: VecDeque<(Instant, Key, Incident)>,
    /// Number of the next request.
    next: u64,
}

impl Requests {
    /// `watched`: the hooks that tell of requests are there.
    pub(super) fn new(watched: bool) -> Self {
        Self { watched, next: 1, ..Self::default() }
    }

    /// Notes a request that was answered.
    pub(super) fn answered(&mut self, answered: &Answered, now: Instant) {
        let attribution = Attribution::of(answered, self.next);
        self.next += u64::from(attribution.request.is_some());
        let key = (answered.worker, answered.request);
        // What has been said in doubt stays in doubt.
        if let Entry::Vacant(place) = self.answers.entry(key) {
            place.insert(attribution);
            self.ages.push_back((now, key));
        }
        if self.ages.len() > MOST_ANSWERS
            && let Some((_, oldest)) = self.ages.pop_front()
        {
            self.answers.remove(&oldest);
        }
    }

    /// The number of a request that is told of at once.
    pub(super) fn number(&mut self) -> u64 {
        self.next += 1;
        self.next - 1
    }

    /// Gives an incident its request; None if it waits for it now.
    pub(super) fn attribute(&mut self, mut incident: Incident, now: Instant) -> Option<Incident> {
        let attempt = &incident.case.attempt;
        let note = match attempt.request {
            _ if !self.watched => OFF,
            None => UNLINKED,
            Some(id) => {
                let key = (attempt.worker, id);
                if let Some(attribution) = self.answers.get(&key) {
                    incident.attribution = attribution.clone();
                    return Some(incident);
                }
                if !attempt.exiting {
                    self.waiting.push_back((now, key, incident));
                    return None;
                }
                // Its worker ends and answers nobody.
                UNANSWERED
            }
        };
        incident.attribution = Attribution::unknown(note);
        Some(incident)
    }

    /// Incidents whose request is known now, and those that have waited long enough.
    pub(super) fn settled(&mut self, now: Instant) -> Vec<Incident> {
        let mut done = Vec::new();
        let mut excess = self.waiting.len().saturating_sub(MOST_WAITING);
        for (since, key, mut incident) in std::mem::take(&mut self.waiting) {
            let late = excess > 0 || now.duration_since(since) >= WAIT;
            excess = excess.saturating_sub(1);
            if let Some(attribution) = self.answers.get(&key) {
                incident.attribution = attribution.clone();
                done.push(incident);
            } else if late {
                incident.attribution = Attribution::unknown(UNANSWERED);
                done.push(incident);
            } else {
                self.waiting.push_back((since, key, incident));
            }
        }
        done
    }

    /// Everyone who waits: the run ends.
    pub(super) fn all(&mut self) -> Vec<Incident> {
        let mut done = self.settled(Instant::now());
        for (_, _, mut incident) in self.waiting.drain(..) {
            incident.attribution = Attribution::unknown(UNANSWERED);
            done.push(incident);
        }
        done
    }

    /// True if an incident waits.
    pub(super) fn any_waits(&self) -> bool {
        !self.waiting.is_empty()
    }

    /// Forgets old answers; to be called when no attempt waits to be explained, which may take long in a storm.
    pub(super) fn sweep(&mut self, now: Instant) {
        while let Some((_, key)) = self.ages.pop_front_if(|(since, _)| now.duration_since(*since) >= KEEP) {
            self.answers.remove(&key);
        }
    }
}
