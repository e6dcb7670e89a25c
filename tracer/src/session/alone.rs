//! Requests that nginx answered with 502 without trying a server: what it had to choose from, and what this run has
//! seen of that before.
//!
//! Failures are kept with their worker and group for as long as they can take a server out, in bounded numbers; name
//! servers' replies for as long as a request can have waited for them.

use std::{
    collections::{HashMap, VecDeque},
    net::SocketAddr,
    rc::{Rc, Weak},
    time::{Duration, Instant},
};

use anyhow::Result;
use tracer_ebpf::request::{BAD_GATEWAY, client_flag};

use super::{Session, clock::wall_clock, complain, config::Snapshot, notes, watch::Watched};
use crate::{
    correlate::{
        Case, Facts, GaveUp, ending,
        no_attempt::{self, Failure, Place, Reply, Said, Word},
        request::{Attribution, Request},
        said,
    },
    diagnose::{self, Cause},
    event::{self, Answered, Attempt, Dns, Stage, said::Statement},
    moment::Moment,
    report::Incident,
};

/// Answers that wait for the attempts before them to be explained; beyond it the kernel's buffer holds the rest.
const MOST_PENDING: usize = 8192;
/// Servers whose failures are kept.
const MOST_SERVERS: usize = 4096;
/// Failures that are kept of each: what `max_fails` can ask for, of many workers.
const MOST_FAILURES: usize = 256;
/// Replies of name servers that are kept.
const MOST_REPLIES: usize = 4096;
/// Longest `fail_timeout` that is followed.
const KEEP_NS: u64 = 3600 * 1_000_000_000;

/// How long nginx's own word waits for the kernel side's record of the same answer, which HTTP/1 in clear text has.
const WORD_WAIT: Duration = Duration::from_millis(300);
/// How long after its word nginx answers, at most.
const WORD_NS: u64 = 2_000_000_000;

/// Something that nginx answered by itself.
#[derive(Debug)]
pub(super) struct Pending {
    pub(super) answered: Answered,
    /// What nginx told its log of it.
    pub(super) said: Option<Box<Statement>>,
}

/// Failures of one server, each with the configuration that its worker ran with.
type Past = VecDeque<(Failure, Weak<Snapshot>)>;

/// What is known so far of servers and names.
#[derive(Debug, Default)]
pub(super) struct Alone {
    pending: VecDeque<Pending>,
    /// nginx's words that no record of an answer has come for yet.
    words: VecDeque<(Instant, Box<Statement>)>,
    /// By group and address.
    failures: HashMap<(String, Place), Past>,
    replies: VecDeque<Dns>,
    /// The hooks that tell of name servers are there.
    pub(super) watched: bool,
}

impl Alone {
    pub(super) fn new(watched: bool) -> Self {
        Self { watched, ..Self::default() }
    }

    /// True if the record tells of a request that nginx answered by itself.
    pub(super) fn is_one(answered: &Answered) -> bool {
        answered.flags & client_flag::ALONE != 0
    }

    /// False if no further record should be read now.
    pub(super) fn has_room(&self) -> bool {
        self.pending.len() < MOST_PENDING
    }

    /// Takes such a record.
    pub(super) fn note(&mut self, answered: Answered) {
        let its = |(_, said): &(Instant, Box<Statement>)| {
            said.worker == answered.worker
                && said.client.is_some_and(|(client, _)| client == answered.client)
                && (said.time_ns..=said.time_ns + WORD_NS).contains(&answered.time_ns)
        };
        let said = self.words.iter().position(its).and_then(|at| self.words.remove(at)).map(|(_, said)| said);
        self.pending.push_back(Pending { answered, said });
    }

    /// Takes nginx's own word, if it is that it tried nobody.
    pub(super) fn said(&mut self, statement: &Statement, now: Instant) {
        if word_of(&statement.said()).is_some() && !statement.connected && self.words.len() < MOST_PENDING {
            self.words.push_back((now, Box::new(statement.clone())));
        }
    }

    /// Words for which no record has come: their clients speak TLS or HTTP/2.
    pub(super) fn settle_words(&mut self, now: Instant) {
        while let Some((_, said)) =
            self.words.pop_front_if(|(since, _)| now.duration_since(*since) >= WORD_WAIT)
        {
            if let Some(answered) = answered_by(&said) {
                self.pending.push_back(Pending { answered, said: Some(said) });
            }
        }
    }

    /// Takes what a name server told.
    pub(super) fn heard(&mut self, dns: Dns) {
        if self.replies.len() >= MOST_REPLIES {
            self.replies.pop_front();
        }
        self.replies.push_back(dns);
    }

    /// True if answers wait.
    pub(super) fn any_waits(&self) -> bool {
        !self.pending.is_empty() || !self.words.is_empty()
    }

    /// Notes a failure that nginx counts against the server.
    pub(super) fn failed(&mut self, case: &Case, cause: Cause, worker: &Watched) {
        let attempt = &case.attempt;
        let counts = match attempt.stage {
            Stage::Connect => true,
            Stage::SynSent => {
                !matches!(case.gave_up(), Some(GaveUp::ClientGone | GaveUp::WorkerEnded | GaveUp::Early))
            }
            Stage::Established => ending::counts_as_failure(case),
            // socket() and bind() end the request.
            Stage::Socket | Stage::Bind | Stage::Untried => false,
        };
        if !counts || cause == Cause::ClientAborted {
            return;
        }
        let Some(place) = Place::of(attempt) else { return };
        let only = case.config.len() == 1;
        for candidate in &case.config {
            let Some(upstream) = &candidate.upstream else { continue };
            let key = (upstream.clone(), place.clone());
            if self.failures.len() >= MOST_SERVERS && !self.failures.contains_key(&key) {
                return;
            }
            let known = self.failures.entry(key).or_default();
            if known.len() >= MOST_FAILURES {
                known.pop_front();
            }
            let failure = Failure {
                worker: attempt.worker,
                at_ns: attempt.end_ns,
                cause: cause.name().into(),
                sure: only && candidate.exact,
            };
            known.push_back((failure, Rc::downgrade(&worker.config)));
        }
    }

    /// Forgets what is too old to matter.
    pub(super) fn sweep(&mut self, now_ns: u64) {
        let recent = |at_ns: u64| now_ns.saturating_sub(at_ns) < KEEP_NS;
        self.failures.retain(|_, known| {
            known.retain(|(failure, _)| recent(failure.at_ns));
            !known.is_empty()
        });
        while self.replies.front().is_some_and(|dns| !recent(dns.time_ns)) {
            self.replies.pop_front();
        }
    }

    /// The failures of a server, in the memory that a worker goes by.
    pub(super) fn failures_of(
        &self,
        group: &str,
        place: Place,
        worker: u32,
        shared: Option<&Rc<Snapshot>>,
    ) -> Vec<Failure> {
        let Some(known) = self.failures.get(&(group.to_owned(), place)) else {
            return Vec::new();
        };
        let mut own: Vec<Failure> = known
            .iter()
            .filter(|(failure, config)| match shared {
                // A reload begins with new memory.
                Some(snapshot) => std::ptr::eq(config.as_ptr(), Rc::as_ptr(snapshot)),
                None => failure.worker == worker,
            })
            .map(|(failure, _)| failure.clone())
            .collect();
        own.sort_by_key(|failure| failure.at_ns);
        own
    }

    pub(super) fn replies_to(&self, answered: &Answered, name: Option<&str>) -> Vec<Reply> {
        let during = |dns: &&Dns| {
            dns.worker == answered.worker && (answered.request..=answered.time_ns).contains(&dns.time_ns)
        };
        let told = |dns: &Dns| {
            let (what, asked) = match dns.errno {
                0 => no_attempt::reply(&dns.bytes)?,
                errno => (Said::Error(errno), None),
            };
            let before_us = answered.time_ns.saturating_sub(dns.time_ns) / 1000;
            let fits = asked.is_none() || name.is_none() || asked.as_deref() == name;
            fits.then_some(Reply { server: dns.server, before_us, what, name: asked })
        };
        self.replies.iter().filter(during).filter_map(told).collect()
    }
}

impl Session<'_> {
    /// Explains what nginx answered by itself, as far as all attempts before it are explained. True if more is left.
    pub(super) fn explain_alone(&mut self, end: Instant) -> Result<bool> {
        self.alone.settle_words(Instant::now());
        while let Some(next) = self.alone.pending.front() {
            let before =
                self.waiting.front().is_some_and(|held| held.attempt.end_ns <= next.answered.time_ns);
            if before || self.enough() {
                return Ok(false);
            }
            if Instant::now() >= end {
                return Ok(true);
            }
            let Some(pending) = self.alone.pending.pop_front() else { break };
            if let Some(incident) = self.incident_of(&pending)? {
                self.show(incident)?;
            }
        }
        Ok(false)
    }

    fn incident_of(&mut self, pending: &Pending) -> Result<Option<Incident>> {
        let Pending { answered, said } = pending;
        if self.watch.get(answered.worker).is_none() {
            complain(&self.watch.scan(&mut self.maps)?);
        }
        let Some(worker) = self.watch.get(answered.worker).cloned() else {
            self.unread += 1;
            return Ok(None);
        };
        let number = self.requests.number(said.as_deref(), Instant::now());
        let kernel = Attribution::of(answered, number);
        let attribution = match said.as_deref().and_then(said::request) {
            Some(own) if kernel.request.as_ref().is_none_or(|request| request.head.is_none()) => {
                Attribution {
                    request: Some(Request { id: number, status: answered.status, ..own }),
                    note: None,
                }
            }
            Some(_) | None => kernel,
        };
        let head = attribution.request.as_ref().and_then(|request| request.head.as_ref());
        let Some(head) = head.filter(|head| !head.truncated) else {
            return Ok(None);
        };
        let Some((no_attempt, candidate)) = self.choice(pending, head, &worker) else {
            return Ok(None);
        };
        let facts = Facts { no_attempt: Some(Box::new(no_attempt)), ..Facts::default() };
        let attempt = untried(answered, worker.netns.unwrap_or(0));
        let client_saw = answered.status;
        let mut case = Case { client_saw, ..Case::new(attempt, self.reach, facts, vec![candidate]) };
        case.story = Some(Box::new(notes::story(&case, &worker)));
        let verdict = diagnose::verdict(&case);
        if verdict.cause == Cause::Unexplained {
            // Whoever made that answer, no rule of choosing a server did.
            return Ok(None);
        }
        Ok(Some(Incident {
            time: Moment::local(wall_clock(answered.time_ns)),
            mono_ns: answered.time_ns,
            shown_ns: 0,
            case,
            verdict,
            container: worker.container.clone(),
            bind_lines: Vec::new(),
            attribution,
        }))
    }
}

/// What nginx says of trying nobody; None if it says something else.
pub(super) fn word_of(said: &event::said::Said) -> Option<Word> {
    match said {
        event::said::Said::NoLiveUpstreams { .. } => Some(Word::NoLive),
        event::said::Said::NoResolver { .. } => Some(Word::NoResolver),
        event::said::Said::NotResolved { state, .. } => Some(Word::NotResolved(*state)),
        _ => None,
    }
}

/// The answer that a word stands for, where no record tells of it: its client is none of HTTP/1 in clear text.
fn answered_by(said: &Statement) -> Option<Answered> {
    let (client, local) = said.client?;
    // nginx dates its requests by the wall clock.
    let waited = wall_clock(said.time_ns).duration_since(said.began()).unwrap_or_default();
    let waited_ns = u64::try_from(waited.as_nanos()).unwrap_or(0);
    Some(Answered {
        worker: said.worker,
        request: said.time_ns.saturating_sub(waited_ns),
        time_ns: said.time_ns,
        client,
        local,
        status: Some(BAD_GATEWAY),
        flags: client_flag::ALONE,
        clean: 0,
        bytes: Vec::new(),
    })
}

/// The attempt that was none.
fn untried(answered: &Answered, netns: u32) -> Attempt {
    let nobody =
        if answered.local.is_ipv6() { SocketAddr::from(([0; 16], 0)) } else { SocketAddr::from(([0; 4], 0)) };
    Attempt {
        netns,
        start_ns: Some(answered.request),
        end_ns: answered.time_ns,
        local: nobody,
        remote: nobody,
        request: Some(answered.request),
        ..Attempt::blank(Stage::Untried, answered.worker)
    }
}
