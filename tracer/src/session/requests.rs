//! Explained incidents that wait for the answer to their client's request, and the answers themselves.
//!
//! The record of an attempt comes when it fails, the one of its request when nginx answers the client: at once as a
//! rule, late if another server is asked meanwhile. An incident is explained first and waits then, so that its facts
//! are fresh; those without a request wait for nobody.

use std::{
    collections::{HashMap, VecDeque, hash_map::Entry},
    time::{Duration, Instant},
};

use super::said::Sayings;
use crate::{
    correlate::{
        request::{Attribution, OFF, UNANSWERED, UNLINKED},
        said,
    },
    event::{Answered, said::Statement},
    report::Incident,
};

/// How long an incident waits for its request's answer.
const WAIT: Duration = Duration::from_secs(2);
/// How long one that nothing ties to a request waits for what nginx says of it.
const WAIT_FOR_WORD: Duration = Duration::from_millis(500);
/// How long an answer is kept for attempts that are still to be explained.
const KEEP: Duration = Duration::from_secs(10);
/// Answers that are kept at most: those of all attempts that can wait to be explained, and as many again.
const MOST_ANSWERS: usize = 16_384;
/// Incidents that wait at most; beyond it the oldest go without their request.
const MOST_WAITING: usize = 8192;

/// A worker, and one of its requests.
type Key = (u32, u64);

/// An incident that waits.
#[derive(Debug)]
struct Waiting {
    since: Instant,
    /// nginx is expected to say something of it.
    heard: bool,
    incident: Incident,
}

/// Answers and those who wait for them.
#[derive(Default)]
pub(super) struct Requests {
    watched: bool,
    answers: HashMap<Key, Attribution>,
    /// When each of them came, the oldest first.
    ages: VecDeque<(Instant, Key)>,
    waiting: VecDeque<Waiting>,
    sayings: Sayings,
    /// Number of the next request.
    next: u64,
}

impl Requests {
    /// `watched`: the hooks that tell of requests are there.
    pub(super) fn new(watched: bool) -> Self {
        Self { watched, next: 1, ..Self::default() }
    }

    /// Notes what nginx says.
    pub(super) fn said(&mut self, statement: Statement, now: Instant) {
        self.sayings.note(statement, now);
    }

    /// What nginx said of the attempt of an incident.
    pub(super) fn word(&self, incident: &Incident) -> Option<&Statement> {
        self.sayings.of(&incident.case.attempt)
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

    /// The number of a request that is told of at once: that of its attempts, where nginx itself names it.
    pub(super) fn number(&mut self, said: Option<&Statement>, now: Instant) -> u64 {
        if let Some(said) = said {
            return self.sayings.id(said.request, &mut self.next, now);
        }
        self.next += 1;
        self.next - 1
    }

    /// Gives an incident its request; None if it waits for it now. `heard`: nginx is expected to say something of it.
    pub(super) fn attribute(
        &mut self,
        mut incident: Incident,
        heard: bool,
        now: Instant,
    ) -> Option<Incident> {
        match self.resolve(&mut incident, heard, now, now) {
            Some(attribution) => {
                incident.attribution = attribution;
                Some(incident)
            }
            None => {
                self.waiting.push_back(Waiting { since: now, heard, incident });
                None
            }
        }
    }

    /// The request of an incident that has waited since then; None if it shall go on waiting.
    fn resolve(
        &mut self,
        incident: &mut Incident,
        heard: bool,
        since: Instant,
        now: Instant,
    ) -> Option<Attribution> {
        let attempt = &mut incident.case.attempt;
        if !self.watched {
            return Some(Attribution::unknown(OFF));
        }
        let waited = now.duration_since(since);
        let answer = |id: u64| self.answers.get(&(attempt.worker, id));
        let kernel = attempt.request.and_then(answer);
        let Some(said) = self.sayings.of(attempt) else {
            // What nginx says comes before the answer.
            if let Some(kernel) = kernel {
                return Some(kernel.clone());
            }
            let (limit, note) = match attempt.request {
                // Its worker ends and answers nobody.
                Some(_) if attempt.exiting => return Some(Attribution::unknown(UNANSWERED)),
                Some(_) => (WAIT, UNANSWERED),
                None if heard && !attempt.exiting => (WAIT_FOR_WORD, UNLINKED),
                None => return Some(Attribution::unknown(UNLINKED)),
            };
            return (waited >= limit).then(|| Attribution::unknown(note));
        };
        let answered = said.answer.and_then(answer);
        if said.answer.is_some() && answered.is_none() && waited < WAIT && !attempt.exiting {
            return None;
        }
        let Some(own) = said::request(said) else {
            // Its client is not a TCP connection.
            return Some(kernel.cloned().unwrap_or_else(|| Attribution::unknown(UNLINKED)));
        };
        if kernel.is_none_or(|kernel| kernel.request.is_none()) {
            // It counts the attempts of the request that the kernel side had in mind.
            attempt.number = None;
        }
        let mut joined = said::join(own, kernel, answered);
        let identity = said.request;
        if let Some(request) = &mut joined.request {
            request.id = self.sayings.id(identity, &mut self.next, now);
        }
        Some(joined)
    }

    /// Incidents whose request is known now, and those that have waited long enough.
    pub(super) fn settled(&mut self, now: Instant) -> Vec<Incident> {
        let mut done = Vec::new();
        let mut excess = self.waiting.len().saturating_sub(MOST_WAITING);
        for Waiting { since, heard, mut incident } in std::mem::take(&mut self.waiting) {
            let since_for = if excess > 0 { now.checked_sub(WAIT).unwrap_or(since) } else { since };
            excess = excess.saturating_sub(1);
            if let Some(attribution) = self.resolve(&mut incident, heard, since_for, now) {
                incident.attribution = attribution;
                done.push(incident);
            } else {
                self.waiting.push_back(Waiting { since, heard, incident });
            }
        }
        done
    }

    /// Everyone who waits: the run ends.
    pub(super) fn all(&mut self) -> Vec<Incident> {
        let end = Instant::now() + WAIT;
        self.settled(end)
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
        self.sayings.sweep(now);
    }
}
