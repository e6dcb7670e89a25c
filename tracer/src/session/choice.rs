//! What nginx had to choose from for a request that it answered by itself: the servers of a group, or a name to look up.

use std::net::SocketAddr;

use super::{
    Session,
    alone::{Pending, word_of},
    said,
    watch::Watched,
};
use crate::{
    correlate::{
        no_attempt::{Choice, Group, LookUp, NoAttempt, Peer, Place, Source},
        request::Head,
    },
    event::said::Said,
    nginx::{
        Candidate, ConfigLine, InForces, Layer, Located, Model, REDIRECT, Role, choice::Destination,
        tree::NodeId, uri, value,
    },
};

/// The parameters of a group that nginx makes of a name (ngx_http_upstream_init_round_robin).
const DEFAULT_MAX_FAILS: u64 = 1;
const DEFAULT_FAIL_TIMEOUT_S: u64 = 10;

impl Session<'_> {
    /// What nginx had to choose from for a request, by its head, or for a session of the stream module; None if that is not told by the configuration.
    pub(super) fn choice(
        &self,
        pending: &Pending,
        head: Option<&Head>,
        worker: &Watched,
    ) -> Option<(NoAttempt, Candidate)> {
        let Pending { said, local, began_ns, .. } = pending;
        let snapshot = &worker.config;
        let model = &snapshot.model;
        let host = head.and_then(|head| head.host.as_deref()).unwrap_or_default();
        let target = head.map_or("", |head| path_of(&head.target));
        // nginx's own word for the place counts more than what follows from the request.
        let located = match (said::place(said, worker), head) {
            (Some(place), _) => place,
            (None, Some(_)) => model.locate(Some(*local), Some(host), target),
            // A session of the stream module leads nowhere by itself.
            (None, None) => return None,
        };
        let variable = |name: &str| variable(name, host, target);
        let word = said.said();
        let of = |pass| model.destination(pass, &variable);
        let layer = if said.session { Layer::Stream } else { Layer::Http };
        let destination = told(model, layer, &word)?;
        let passes = leading(&located, &destination, of);
        let pass = *passes.first()?;
        let line = model.line(Role::Pass, model.passes.get(pass)?.node);
        // By a backend's answer it can only have been led elsewhere from this pass, which has asked no backend: it was to
        // look a name up.
        let only_redirect = located.passes == [pass]
            && !located.because.is_empty()
            && located.because.iter().all(|reason| *reason == REDIRECT)
            && !matches!(destination, Destination::Group(_))
            && model.passes.get(pass).is_some_and(|pass| !model.is_cached(pass));
        let (choice, mut lines, name) = match destination {
            Destination::Group(index) => self.group(pending, worker, index)?,
            Destination::Host { host, port } => self.host(pending, worker, &line, &host, port),
            Destination::Resolve { name, sure } => self.look_up(pending, worker, pass, name, sure)?,
        };
        lines.extend(
            passes.iter().filter_map(|pass| Some(model.line(Role::Pass, model.passes.get(*pass)?.node))),
        );
        let no_attempt = NoAttempt {
            source: Source::Said(word_of(&word)?),
            // The one that it looks for counts as one.
            tried: said.tries.saturating_sub(1),
            waited_us: said.time_ns.saturating_sub(*began_ns) / 1000,
            certain: (located.exact || only_redirect) && !snapshot.is_guess && worker.runs_as_shown(),
            others: Vec::new(),
            pass: line,
            choice,
        };
        let candidate = Candidate {
            upstream: name,
            server: String::new(),
            module: model.passes.get(pass)?.module,
            lines,
            connect_timeouts: Vec::new(),
            barred: crate::nginx::Barred::default(),
            settings: InForces::default(),
            exact: no_attempt.certain,
            upstream_server: None,
            passes,
        };
        Some((no_attempt, candidate))
    }

    fn group(
        &self,
        pending: &Pending,
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
                        self.alone.failures_of(&upstream.name, place, pending.said.worker, memory)
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
        pending: &Pending,
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
                failures: self.alone.failures_of(&name, Place::Inet(address), pending.said.worker, None),
            }
        });
        let group = Group { name: name.clone(), shared: false, known: true, peers: peers.collect() };
        (Choice::Group(group), Vec::new(), Some(name))
    }

    fn look_up(
        &self,
        pending: &Pending,
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
            replies: self.alone.replies_to(pending, name.as_deref()),
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

/// Where that leads: the group, or the name.
fn told(model: &Model, layer: Layer, said: &Said) -> Option<Destination> {
    match said {
        Said::NoLiveUpstreams { upstream } => {
            match model.upstreams.iter().position(|known| known.layer == layer && known.name == *upstream) {
                Some(index) => Some(Destination::Group(index)),
                // nginx names the group that it made of a pass by its host and port.
                None => {
                    let (host, port) = upstream.rsplit_once(':').unwrap_or((upstream, "80"));
                    Some(Destination::Host { host: host.to_owned(), port: port.parse().ok()? })
                }
            }
        }
        Said::NoResolver { name } | Said::NotResolved { name, .. } => {
            Some(Destination::Resolve { name: Some(name.clone()), sure: true })
        }
        _ => None,
    }
}

/// The passes of a place that can lead there: those that are known to, or whose destination the request decides.
fn leading(located: &Located, to: &Destination, of: impl Fn(usize) -> Option<Destination>) -> Vec<usize> {
    let leads = |known: &Destination| match (known, to) {
        (Destination::Resolve { name: None, .. }, Destination::Resolve { .. }) => true,
        (Destination::Resolve { name: known, .. }, Destination::Resolve { name, .. }) => known == name,
        _ => known == to,
    };
    located.passes.iter().copied().filter(|pass| of(*pass).is_none_or(|known| leads(&known))).collect()
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
