//! Requests that nginx answered with 502, and sessions of the stream module that it closed, without trying a server: what it had to choose from, and what this run has
//! seen of that before.
//!
//! Failures are kept with their worker and group for as long as they can take a server out, in bounded numbers; name
//! servers' replies for as long as a request can have waited for them.

use std::{
    collections::{HashMap, VecDeque},
    net::SocketAddr,
    rc::{Rc, Weak},
    time::Instant,
};

use super::{Session, clock::wall_clock, complain, config::Snapshot, notes, watch::Watched};
use crate::{
    correlate::{
        Case, Facts, GaveUp, ending,
        no_attempt::{self, Failure, Place, Reply, Said, Word},
        said,
    },
    diagnose::{self, Cause},
    event::{self, Attempt, Dns, Stage, said::Statement},
    moment::Moment,
    report::Incident,
};
use anyhow::Result;

/// What nginx answers if it finds no server or no name (NGX_HTTP_BAD_GATEWAY).
const BAD_GATEWAY: u16 = 502;
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

/// Something that nginx answered by itself, by its own word.
#[derive(Debug)]
pub(super) struct Pending {
    pub(super) said: Box<Statement>,
    /// The address that it connected to.
    pub(super) local: SocketAddr,
    /// When the request began, CLOCK_MONOTONIC ns.
    pub(super) began_ns: u64,
}

impl Pending {
    /// None if its client's connection is not TCP, or nginx says something else.
    fn of(said: &Statement) -> Option<Self> {
        word_of(&said.said()).filter(|_| !said.connected)?;
        let (_, local) = said.client?;
        // nginx dates its requests by the wall clock.
        let waited = wall_clock(said.time_ns).duration_since(said.began()).unwrap_or_default();
        let waited_ns = u64::try_from(waited.as_nanos()).unwrap_or(0);
        let began_ns = said.time_ns.saturating_sub(waited_ns);
        Some(Self { said: Box::new(said.clone()), local, began_ns })
    }
}

/// Failures of one server, each with the configuration that its worker ran with.
type Past = VecDeque<(Failure, Weak<Snapshot>)>;

/// What is known so far of servers and names.
#[derive(Debug, Default)]
pub(super) struct Alone {
    pending: VecDeque<Pending>,
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

    /// False if no further record should be read now.
    pub(super) fn has_room(&self) -> bool {
        self.pending.len() < MOST_PENDING
    }

    /// Takes nginx's own word, if it is that it tried nobody.
    pub(super) fn said(&mut self, statement: &Statement) {
        self.pending.extend(Pending::of(statement));
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
        !self.pending.is_empty()
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
                // Nor is it known of a 5xx whether nginx had a server left to ask.
                sure: only && candidate.exact && !attempt.talk.as_deref().is_some_and(|talk| talk.said_5xx),
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

    pub(super) fn replies_to(&self, pending: &Pending, name: Option<&str>) -> Vec<Reply> {
        let Pending { said, began_ns, .. } = pending;
        let during =
            |dns: &&Dns| dns.worker == said.worker && (*began_ns..=said.time_ns).contains(&dns.time_ns);
        let told = |dns: &Dns| {
            let (what, asked) = match dns.errno {
                0 => no_attempt::reply(&dns.bytes)?,
                errno => (Said::Error(errno), None),
            };
            let before_us = said.time_ns.saturating_sub(dns.time_ns) / 1000;
            let fits = asked.is_none() || name.is_none() || asked.as_deref() == name;
            fits.then_some(Reply { server: dns.server, before_us, what, name: asked })
        };
        self.replies.iter().filter(during).filter_map(told).collect()
    }
}

impl Session<'_> {
    /// Explains what nginx answered by itself, as far as all attempts before it are explained. True if more is left.
    pub(super) fn explain_alone(&mut self, end: Instant) -> Result<bool> {
        while let Some(next) = self.alone.pending.front() {
            let before = self.waiting.front().is_some_and(|held| held.attempt.end_ns <= next.said.time_ns);
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
        let Pending { said, .. } = pending;
        if self.watch.get(said.worker).is_none() {
            complain(&self.watch.scan(&mut self.maps)?);
        }
        let Some(worker) = self.watch.get(said.worker).cloned() else {
            self.unread += 1;
            return Ok(None);
        };
        let number = self.requests.number(said, Instant::now());
        let Some(own) = said::request(said) else { return Ok(None) };
        let head = own.head.clone().filter(|head| !head.truncated);
        if head.is_none() && !said.session {
            return Ok(None);
        }
        let Some((no_attempt, candidate)) = self.choice(pending, head.as_ref(), &worker) else {
            return Ok(None);
        };
        let facts = Facts { no_attempt: Some(Box::new(no_attempt)), ..Facts::default() };
        let attempt = untried(pending, worker.netns.unwrap_or(0));
        // The client of a session is told nothing.
        let client_saw = (!said.session).then_some(BAD_GATEWAY);
        let mut case = Case { client_saw, ..Case::new(attempt, self.reach, facts, vec![candidate]) };
        case.story = Some(Box::new(notes::story(&case, &worker)));
        let verdict = diagnose::verdict(&case);
        if verdict.cause == Cause::Unexplained {
            // Whoever made that answer, no rule of choosing a server did.
            return Ok(None);
        }
        Ok(Some(Incident {
            time: Moment::local(wall_clock(said.time_ns)),
            mono_ns: said.time_ns,
            shown_ns: 0,
            case,
            verdict,
            container: worker.container.clone(),
            bind_lines: Vec::new(),
            attribution: match said.session {
                true => said::session(own, number),
                false => said::attribution(own, number, client_saw),
            },
            repeats: None,
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

/// The attempt that was none.
fn untried(pending: &Pending, netns: u32) -> Attempt {
    let Pending { said, local, began_ns, .. } = pending;
    let nobody = if local.is_ipv6() { SocketAddr::from(([0; 16], 0)) } else { SocketAddr::from(([0; 4], 0)) };
    Attempt {
        netns,
        start_ns: Some(*began_ns),
        end_ns: said.time_ns,
        local: nobody,
        remote: nobody,
        asked: true,
        ..Attempt::blank(Stage::Untried, said.worker)
    }
}
