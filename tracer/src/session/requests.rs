//! Explained incidents that wait for the answer to their client's request, and the answers themselves.
//!
//! The record of an attempt comes when it fails, what nginx's memory says of its request as nginx closes it, and the answer as nginx
//! gives it: at once as a rule, late if another server is asked meanwhile. An incident is explained first and waits then, so that
//! its facts are fresh; those without a request wait for nobody.

use std::{
    collections::{HashMap, VecDeque},
    time::{Duration, Instant},
};

use super::said::Sayings;
use crate::{
    correlate::{
        ending,
        request::{Attribution, UNANSWERED, UNLINKED},
        said,
    },
    event::{Answered, RequestPlace as Place, said::Statement},
    nginx::Module,
    report::Incident,
};

/// How long an incident waits for its request's answer.
const WAIT: Duration = Duration::from_secs(2);
/// How long one waits for what nginx says of it, where its memory could not be asked.
const WAIT_FOR_WORD: Duration = Duration::from_millis(500);
/// How long an answer is kept for attempts that are still to be explained.
const KEEP: Duration = Duration::from_secs(10);
/// Answers that are kept at most: those of all attempts that can wait to be explained, and as many again.
const MOST_ANSWERS: usize = 16_384;
/// Incidents that wait at most; beyond it the oldest go without their request.
const MOST_WAITING: usize = 8192;

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
    /// The last one of each request, and whether nginx made it.
    answers: HashMap<Place, (u16, bool)>,
    /// When each of them came, the oldest first.
    ages: VecDeque<(Instant, Place)>,
    waiting: VecDeque<Waiting>,
    sayings: Sayings,
    /// Number of the next request.
    next: u64,
}

impl Requests {
    pub(super) fn new() -> Self {
        Self { next: 1, ..Self::default() }
    }

    /// Notes what nginx says.
    pub(super) fn said(&mut self, statement: Statement, now: Instant) {
        self.sayings.note(statement, now);
    }

    /// What nginx said of the attempt of an incident.
    pub(super) fn word(&self, incident: &Incident) -> Option<&Statement> {
        self.sayings.of(&incident.case.attempt)
    }

    /// Notes that a request is answered.
    pub(super) fn answered(&mut self, answered: Answered, now: Instant) {
        if self.answers.insert(answered.request, (answered.status, answered.own)).is_none() {
            self.ages.push_back((now, answered.request));
        }
        if self.ages.len() > MOST_ANSWERS
            && let Some((_, oldest)) = self.ages.pop_front()
        {
            self.answers.remove(&oldest);
        }
    }

    /// True if nginx itself answered the request that it speaks of.
    pub(super) fn answered_itself(&self, said: &Statement) -> bool {
        self.answers.get(&said.request.place).is_some_and(|(_, own)| *own)
    }

    /// The number of a request that nginx names.
    pub(super) fn number(&mut self, said: &Statement, now: Instant) -> u64 {
        self.sayings.id(said.request, &mut self.next, now)
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
        let attempt = &incident.case.attempt;
        let waited = now.duration_since(since);
        let Some(said) = self.sayings.of(attempt) else {
            // It says something as it closes the connection, or as it writes its log.
            // A session of the stream module serves no request: its memory is not asked, but its word may name its client.
            let stream = ending::module(&incident.case) == Some(Module::Stream);
            let (limit, note) = match attempt.asked && !stream {
                true if attempt.exiting => return Some(Attribution::unknown(UNANSWERED)),
                true => (WAIT, UNANSWERED),
                false if heard && !attempt.exiting => (WAIT_FOR_WORD, UNLINKED),
                false => return Some(Attribution::unknown(UNLINKED)),
            };
            return (waited >= limit).then(|| Attribution::unknown(note));
        };
        let status = self.answers.get(&said.request.place).map(|(status, _)| *status);
        let limit = match (said.session, heard) {
            (true, _) => Duration::ZERO,
            (false, true) => WAIT,
            (false, false) => WAIT_FOR_WORD,
        };
        if status.is_none() && waited < limit && !attempt.exiting {
            return None;
        }
        let Some(own) = said::request(said) else {
            // Its client is not a TCP connection.
            return Some(Attribution::unknown(UNLINKED));
        };
        let (number, identity, session) = (said.attempt_number, said.request, said.session);
        let id = self.sayings.id(identity, &mut self.next, now);
        incident.case.attempt.number = number;
        if session {
            return Some(said::session(own, id));
        }
        Some(said::attribution(own, id, status))
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
