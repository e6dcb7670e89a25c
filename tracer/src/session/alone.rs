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
        no_attempt::{
            self, Choice, Failure, Group, LookUp, NoAttempt, Peer, Place, Reply, Said, Source, Word,
        },
        request::{Attribution, Head, Request},
        said,
    },
    diagnose::{self, Cause},
    event::{self, Answered, Attempt, Dns, Stage, said::Statement},
    nginx::{
        Candidate, ConfigLine, InForces, Located, Model, REDIRECT, Role, choice::Destination, tree::NodeId,
        uri, value,
    },
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

/// The parameters of a group that nginx makes of a name (ngx_http_upstream_init_round_robin).
const DEFAULT_MAX_FAILS: u64 = 1;
const DEFAULT_FAIL_TIMEOUT_S: u64 = 10;

/// How long nginx's own word waits for the kernel side's record of the same answer, which HTTP/1 in clear text has.
const WORD_WAIT: Duration = Duration::from_millis(300);
/// How long after its word nginx answers, at most.
const WORD_NS: u64 = 2_000_000_000;

/// Something that nginx answered by itself.
#[derive(Debug)]
struct Pending {
    answered: Answered,
    /// What nginx told its log of it.
    said: Option<Box<Statement>>,
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
    watched: bool,
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
                cause: cause.name(),
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
    fn failures_of(
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

    fn replies_to(&self, answered: &Answered, name: Option<&str>) -> Vec<Reply> {
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
        let number = self.requests.number();
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
        let case = Case {
            attempt,
            client_gone: None,
            client_saw,
            reach: self.reach,
            facts,
            config: vec![candidate],
        };
        let mut verdict = diagnose::diagnose(&case);
        if verdict.cause == Cause::Unexplained {
            // Whoever made that answer, no rule of choosing a server did.
            return Ok(None);
        }
        notes::add(&mut verdict, &case, &worker);
        Ok(Some(Incident {
            time: wall_clock(answered.time_ns),
            mono_ns: answered.time_ns,
            case,
            verdict,
            container: worker.container.clone(),
            bind_lines: Vec::new(),
            attribution,
        }))
    }

    /// What nginx had to choose from for a request; None if that is not told by the configuration.
    fn choice(&self, pending: &Pending, head: &Head, worker: &Watched) -> Option<(NoAttempt, Candidate)> {
        let Pending { answered, said } = pending;
        let snapshot = &worker.config;
        let model = &snapshot.model;
        let host = head.host.as_deref().unwrap_or_default();
        let target = path_of(&head.target);
        // nginx's own word for the place counts more than what follows from the request.
        let place = said.as_deref().and_then(|said| super::said::place(said, worker));
        let located = place.unwrap_or_else(|| model.locate(Some(answered.local), Some(host), target));
        let variable = |name: &str| variable(name, host, target);
        let word = said.as_deref().map(Statement::said);
        let (pass, destination) = match &word {
            Some(word) => (*located.passes.first()?, told(model, word)?),
            None => one_destination(&located, |pass| model.destination(pass, &variable))?,
        };
        let has = |bit: u32| answered.flags & bit != 0;
        let others = model.other_bad_gateways(&located);
        let place = |line: &ConfigLine| format!("{}:{} ({})", line.file.display(), line.line, line.text);
        let line = model.line(Role::Pass, model.passes.get(pass)?.node);
        // By a backend's answer it can only have been led elsewhere from this pass, which has asked no backend: it was to
        // look a name up.
        let only_redirect = located.passes == [pass]
            && !located.because.is_empty()
            && located.because.iter().all(|reason| *reason == REDIRECT)
            && !matches!(destination, Destination::Group(_))
            && model.passes.get(pass).is_some_and(|pass| !model.is_cached(pass));
        let (choice, mut lines, name) = match destination {
            Destination::Group(index) => self.group(answered, worker, index)?,
            Destination::Host { host, port } => self.host(answered, worker, &line, &host, port),
            Destination::Resolve { name, sure } => self.look_up(answered, worker, pass, name, sure)?,
        };
        lines.push(line.clone());
        let no_attempt = NoAttempt {
            source: match word.as_ref().and_then(word_of) {
                Some(word) => Source::Said(word),
                None => {
                    Source::Answer { at_once: !has(client_flag::LATE), crowded: has(client_flag::CROWDED) }
                }
            },
            // The one that it looks for counts as one.
            tried: said.as_deref().map_or(0, |said| said.tries.saturating_sub(1)),
            waited_us: answered.time_ns.saturating_sub(answered.request) / 1000,
            certain: (located.exact || only_redirect) && !snapshot.is_guess && worker.runs_as_shown(),
            others: if word.is_some() { Vec::new() } else { others.iter().map(place).collect() },
            pass: line,
            choice,
        };
        let candidate = Candidate {
            upstream: name,
            server: String::new(),
            module: model.passes.get(pass)?.module,
            lines,
            connect_timeouts: Vec::new(),
            settings: InForces::default(),
            exact: no_attempt.certain,
            upstream_server: None,
            passes: vec![pass],
        };
        Some((no_attempt, candidate))
    }

    fn group(
        &self,
        answered: &Answered,
        worker: &Watched,
        index: usize,
    ) -> Option<(Choice, Vec<ConfigLine>, Option<String>)> {
        let model = &worker.config.model;
        let upstream = model.upstreams.get(index)?;
        let config = model.config();
        let zone = config.find_name(b"zone");
        let shared =
            zone.is_some() && config.children(upstream.node).any(|id: NodeId| config.name_id(id) == zone);
        let memory = shared.then_some(&worker.config);
        let mut peers = Vec::new();
        let mut lines = Vec::new();
        for server in &upstream.servers {
            let line = model.line(Role::Server, server.node);
            let (addresses, unix, mut sure) = match &server.address {
                value::Address::Ip { ip, port } => {
                    (vec![SocketAddr::new(*ip, port.unwrap_or(80))], None, true)
                }
                value::Address::Name { host, port, .. } => {
                    let (ips, sure) = worker.config.addresses(host);
                    (ips.into_iter().map(|ip| SocketAddr::new(ip, port.unwrap_or(80))).collect(), None, sure)
                }
                value::Address::Unix { path } => (Vec::new(), Some(path.clone()), true),
                value::Address::Variable { .. } | value::Address::Invalid => (Vec::new(), None, false),
            };
            sure &= !server.resolve && server.service.is_none() && !server.drain;
            let none = addresses.is_empty();
            let each = addresses.into_iter().map(Some).chain(none.then_some(None));
            for address in each {
                let place = address
                    .map(Place::Inet)
                    .or_else(|| unix.as_ref().map(|path| Place::Unix(path.clone().into_bytes())));
                peers.push(Peer {
                    server: server.text.clone(),
                    address,
                    sure,
                    line: line.clone(),
                    down: server.down,
                    backup: server.backup,
                    unix: unix.clone(),
                    max_fails: server.max_fails,
                    fail_timeout_s: server.fail_timeout_s,
                    max_conns: server.max_conns,
                    failures: place.map_or_else(Vec::new, |place| {
                        self.alone.failures_of(&upstream.name, place, answered.worker, memory)
                    }),
                });
            }
            lines.push(line);
        }
        let method = upstream.method.map(|node| config.name(node).into_owned());
        let own: [&[u8]; 5] = [b"least_conn", b"ip_hash", b"hash", b"random", b"least_time"];
        let known = upstream.balancer.is_none() && method.is_none_or(|name| own.contains(&name.as_slice()));
        let name = upstream.name.clone();
        Some((Choice::Group(Group { name: name.clone(), shared, known, peers }), lines, Some(name)))
    }

    /// The group that nginx made of a name's addresses when it read its configuration.
    fn host(
        &self,
        answered: &Answered,
        worker: &Watched,
        pass: &ConfigLine,
        host: &str,
        port: u16,
    ) -> (Choice, Vec<ConfigLine>, Option<String>) {
        let (addresses, sure) = worker.config.addresses(host);
        let name = format!("{host}:{port}");
        let peers = addresses.into_iter().map(|ip| {
            let address = SocketAddr::new(ip, port);
            Peer {
                server: name.clone(),
                address: Some(address),
                sure,
                line: pass.clone(),
                down: false,
                backup: false,
                unix: None,
                max_fails: DEFAULT_MAX_FAILS,
                fail_timeout_s: DEFAULT_FAIL_TIMEOUT_S,
                max_conns: 0,
                failures: self.alone.failures_of(&name, Place::Inet(address), answered.worker, None),
            }
        });
        let group = Group { name: name.clone(), shared: false, known: true, peers: peers.collect() };
        (Choice::Group(group), Vec::new(), Some(name))
    }

    fn look_up(
        &self,
        answered: &Answered,
        worker: &Watched,
        pass: usize,
        name: Option<String>,
        sure: bool,
    ) -> Option<(Choice, Vec<ConfigLine>, Option<String>)> {
        let model = &worker.config.model;
        let pass = model.passes.get(pass)?;
        let line_of = |name| {
            let node = model.effective_of(pass, name)?.node()?;
            Some(model.line(Role::Directive, node))
        };
        let resolver = line_of("resolver");
        let timeout_line = line_of("resolver_timeout").filter(|_| resolver.is_some());
        let timeout = model.effective_of(pass, "resolver_timeout")?;
        let text = timeout.value.unwrap_or_default();
        let look_up = LookUp {
            replies: self.alone.replies_to(answered, name.as_deref()),
            name: name.clone(),
            sure,
            resolver: resolver.clone(),
            timeout_ms: value::milliseconds(&text),
            timeout_text: match &timeout_line {
                Some(line) => format!("{} ({}:{})", line.text, line.file.display(), line.line),
                None => format!("resolver_timeout {text} (default)"),
            },
            // A reply that found no room in the buffer is one that nobody saw.
            watched: self.alone.watched && self.maps.counters().hints_lost == 0,
        };
        Some((Choice::Name(look_up), resolver.into_iter().chain(timeout_line).collect(), name))
    }
}

/// What nginx says of trying nobody; None if it says something else.
fn word_of(said: &event::said::Said) -> Option<Word> {
    match said {
        event::said::Said::NoLiveUpstreams { .. } => Some(Word::NoLive),
        event::said::Said::NoResolver { .. } => Some(Word::NoResolver),
        event::said::Said::NotResolved { state, .. } => Some(Word::NotResolved(*state)),
        _ => None,
    }
}

/// Where that leads: the group, or the name.
fn told(model: &Model, said: &event::said::Said) -> Option<Destination> {
    match said {
        event::said::Said::NoLiveUpstreams { upstream } => {
            match model.upstreams.iter().position(|known| known.name == *upstream) {
                Some(index) => Some(Destination::Group(index)),
                // nginx names the group that it made of a pass by its host and port.
                None => {
                    let (host, port) = upstream.rsplit_once(':').unwrap_or((upstream, "80"));
                    Some(Destination::Host { host: host.to_owned(), port: port.parse().ok()? })
                }
            }
        }
        event::said::Said::NoResolver { name } | event::said::Said::NotResolved { name, .. } => {
            Some(Destination::Resolve { name: Some(name.clone()), sure: true })
        }
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

/// Where all passes of a request lead, with the first of them; None if that differs.
fn one_destination(
    located: &Located,
    of: impl Fn(usize) -> Option<Destination>,
) -> Option<(usize, Destination)> {
    let (first, rest) = located.passes.split_first()?;
    let destination = of(*first)?;
    rest.iter().all(|pass| of(*pass).as_ref() == Some(&destination)).then_some((*first, destination))
}

/// The path and query of a target, without scheme and host.
fn path_of(target: &str) -> &str {
    let after = target.split_once("://").filter(|(scheme, _)| !scheme.contains('/')).map(|(_, rest)| rest);
    match after {
        Some(rest) => rest.find('/').and_then(|at| rest.get(at..)).unwrap_or("/"),
        None => target,
    }
}

/// The value of a variable that the request alone decides.
fn variable(name: &str, host: &str, target: &str) -> Option<String> {
    match name {
        "host" => uri::host_name(host).map(|name| name.to_ascii_lowercase()),
        "http_host" => Some(host.to_owned()),
        "scheme" => Some("http".to_owned()),
        _ => {
            let wanted = name.strip_prefix("arg_")?;
            let (_, query) = target.split_once('?')?;
            let pair = |part: &str| {
                let (key, value) = part.split_once('=')?;
                key.eq_ignore_ascii_case(wanted).then(|| value.to_owned())
            };
            query.split('&').find_map(pair)
        }
    }
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn targets_and_variables() {
        assert_eq!(path_of("/a?b=http://c/d"), "/a?b=http://c/d");
        assert_eq!(path_of("http://shop.example.com/a"), "/a");
        assert_eq!(path_of("http://shop.example.com"), "/");
        assert_eq!(variable("arg_to", "h", "/x?a=1&to=app").as_deref(), Some("app"));
        assert_eq!(variable("host", "Shop.example.com:8080", "/").as_deref(), Some("shop.example.com"));
        assert_eq!(variable("cookie_x", "h", "/"), None);
    }
}
