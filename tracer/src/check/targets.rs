//! Which connections nginx would make: every server of the upstreams that are used, and what passes name themselves.
//! Pure.

use std::{
    collections::{BTreeMap, HashMap},
    net::{IpAddr, SocketAddr},
};

use super::{
    handshake,
    probe::{Ask, TlsAsk, Where},
};
use crate::{
    nginx::{
        Setting,
        kept::Kept,
        model::{Layer, Model, Module, Pass, UpstreamServer},
        value::Address,
    },
    sys::resolve,
};

/// One way in which the configuration leads to a target.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Use {
    /// By index in the model, with the server's; None for a pass that names the address itself.
    pub server: Option<(usize, usize)>,
    /// The passes, by index in the model.
    pub passes: Vec<usize>,
    /// The name that was resolved.
    pub name: Option<String>,
    /// nginx has the address from the name, which leads to these by now.
    pub moved: Option<Vec<IpAddr>>,
    /// nginx does not have this address: it would after its next reload.
    pub next: bool,
    /// Nothing leads there but a request's own choice of names: whether anybody comes there is not known.
    pub perhaps: bool,
}

/// One connection to try.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Target {
    pub ask: Ask,
    pub uses: Vec<Use>,
    /// nginx speaks plain text there; the handshake only finds out whether the port does.
    pub is_plain: bool,
}

impl Target {
    /// nginx does not connect to it as it runs.
    pub(super) fn is_next(&self) -> bool {
        self.uses.iter().all(|one| one.next)
    }
}

/// A name that has no address.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Unresolved {
    pub name: String,
    pub answer: Option<resolve::Answer>,
    pub uses: Vec<Use>,
}

/// Everything that the configuration leads to.
#[derive(Debug, Default)]
pub(super) struct Targets {
    pub targets: Vec<Target>,
    pub unresolved: Vec<Unresolved>,
    /// Servers that are marked `down`.
    pub down: usize,
    /// Passes whose address only a request tells.
    pub open: usize,
}

/// The host names that must be looked up.
pub(super) fn names(model: &Model) -> Vec<String> {
    let found = of(model, &HashMap::new(), &Kept::default());
    found.unresolved.into_iter().map(|one| one.name).collect()
}

/// What there is to try, with the addresses that nginx holds for names, and else those that they have now.
pub(super) fn of(model: &Model, resolved: &HashMap<String, resolve::Answer>, kept: &Kept) -> Targets {
    let mut collector = Collector { model, resolved, kept, found: BTreeMap::new(), names: BTreeMap::new() };
    let mut targets = Targets::default();
    let users = model.users_by_upstream();
    for (index, upstream) in model.upstreams.iter().enumerate() {
        let passes = users.get(index).map(Vec::as_slice).unwrap_or_default();
        // What a program chooses, or nobody uses, is not looked at.
        if upstream.balancer.is_some() || passes.is_empty() {
            continue;
        }
        for (at, server) in upstream.servers.iter().enumerate() {
            if server.down {
                targets.down += 1;
                continue;
            }
            collector.server(server, (index, at), passes);
        }
    }
    for (index, pass) in model.passes.iter().enumerate() {
        if pass.upstream.is_some() {
            continue;
        }
        if let Address::Variable { .. } = pass.target {
            // Names are looked up for each request, by the servers of `resolver` and without /etc/hosts: what they lead to
            // from here may be something else.
            let (fixed, named): (Vec<_>, Vec<_>) = pass
                .values
                .iter()
                .filter(|value| value.upstream.is_none())
                .partition(|value| matches!(value.target, Address::Ip { .. } | Address::Unix { .. }));
            for value in fixed {
                collector.add(&value.target, None, vec![index], !pass.complete);
            }
            targets.open += usize::from(!pass.complete || !named.is_empty());
        } else {
            collector.add(&pass.target, None, vec![index], false);
        }
    }
    let found: Vec<Target> =
        collector.found.into_iter().map(|(ask, uses)| Target { ask, uses, is_plain: false }).collect();
    let doubtful: Vec<Target> = found.iter().filter_map(|target| doubtful(model, target)).collect();
    targets.targets = found.into_iter().chain(doubtful).collect();
    targets.unresolved = collector
        .names
        .into_iter()
        .map(|(name, uses)| Unresolved { answer: resolved.get(&name).cloned(), name, uses })
        .collect();
    targets
}

struct Collector<'a> {
    model: &'a Model,
    resolved: &'a HashMap<String, resolve::Answer>,
    kept: &'a Kept,
    found: BTreeMap<Ask, Vec<Use>>,
    names: BTreeMap<String, Vec<Use>>,
}

impl Collector<'_> {
    fn server(&mut self, server: &UpstreamServer, place: (usize, usize), passes: &[usize]) {
        // Host and port come from SRV records: nothing is known of either.
        if server.service.is_some() {
            return;
        }
        let surely = passes.iter().any(|pass| {
            self.model.passes.get(*pass).is_some_and(|pass| {
                let named = pass.values.iter().any(|v| v.upstream == Some(place.0)) && pass.complete;
                pass.upstream == Some(place.0) || named
            })
        });
        self.add(&server.address, Some(place), passes.to_vec(), !surely);
    }

    fn add(&mut self, address: &Address, server: Option<(usize, usize)>, passes: Vec<usize>, perhaps: bool) {
        let passes: Vec<usize> = passes
            .into_iter()
            .filter(|pass| self.model.passes.get(*pass).is_some_and(|pass| !is_udp(self.model, pass)))
            .collect();
        if passes.is_empty() {
            return;
        }
        let held = self.held(address, server, &passes);
        let mut one = Use { server, passes, name: None, moved: None, next: false, perhaps };
        match address {
            Address::Ip { ip, port: Some(port) } => {
                self.target(&Where::Tcp(SocketAddr::new(*ip, *port)), &one);
            }
            Address::Unix { path } => {
                self.target(&Where::Unix(path.clone().into_bytes()), &one);
            }
            Address::Name { host, port: Some(port), .. } => {
                one.name = Some(host.clone());
                match (self.resolved.get(host), held) {
                    (now, Some(held)) => self.held_targets(&held, *port, now, &one),
                    (Some(resolve::Answer::Addresses(all)), None) => {
                        for ip in all {
                            self.target(&Where::Tcp(SocketAddr::new(*ip, *port)), &one);
                        }
                    }
                    (_, None) => self.names.entry(host.clone()).or_default().push(one),
                }
            }
            Address::Ip { port: None, .. }
            | Address::Name { port: None, .. }
            | Address::Variable { .. }
            | Address::Invalid => {}
        }
    }

    /// The addresses that nginx holds for a name.
    fn held(
        &self,
        address: &Address,
        server: Option<(usize, usize)>,
        passes: &[usize],
    ) -> Option<Vec<SocketAddr>> {
        let Address::Name { host, port, .. } = address else { return None };
        match server {
            Some((group, at)) => {
                let upstream = self.model.upstreams.get(group)?;
                self.kept.server(upstream.layer, &upstream.name, upstream.servers.get(at)?)
            }
            None => {
                let pass = self.model.passes.get(*passes.first()?)?;
                let is_static = matches!(pass.target, Address::Name { .. });
                self.kept.host(pass.module.layer(), host, (*port)?).filter(|_| is_static)
            }
        }
    }

    /// What nginx holds is tried; beside it what a reload would bring, where a name has moved.
    fn held_targets(&mut self, held: &[SocketAddr], port: u16, now: Option<&resolve::Answer>, one: &Use) {
        let now: &[IpAddr] = match now {
            Some(resolve::Answer::Addresses(all)) => all,
            Some(resolve::Answer::None(_) | resolve::Answer::Failed(_)) => {
                if let Some(name) = &one.name {
                    self.names.entry(name.clone()).or_default().push(one.clone());
                }
                &[]
            }
            None => &[],
        };
        let same = |a: IpAddr, b: IpAddr| a.to_canonical() == b.to_canonical();
        let is_now = |held: &SocketAddr| now.iter().any(|ip| same(*ip, held.ip()));
        for address in held {
            let moved = (!now.is_empty() && !is_now(address)).then(|| now.to_vec());
            self.target(&Where::Tcp(*address), &Use { moved, ..one.clone() });
        }
        if now.is_empty() || held.iter().all(is_now) {
            return;
        }
        for ip in now.iter().filter(|ip| !held.iter().any(|held| same(**ip, held.ip()))) {
            self.target(&Where::Tcp(SocketAddr::new(*ip, port)), &Use { next: true, ..one.clone() });
        }
    }

    /// Passes with other settings make other connections to the same address.
    fn target(&mut self, to: &Where, one: &Use) {
        let mut by_ask: BTreeMap<Ask, Vec<usize>> = BTreeMap::new();
        for index in &one.passes {
            let Some(pass) = self.model.passes.get(*index) else { continue };
            let from = bind(self.model, pass).filter(|from| match to {
                Where::Tcp(to) => to.is_ipv4() == from.is_ipv4(),
                Where::Unix(_) => false,
            });
            let ask = Ask { to: to.clone(), from, tls: handshake::ask(self.model, pass), question: None };
            by_ask.entry(ask).or_default().push(*index);
        }
        for (ask, passes) in by_ask {
            self.found.entry(ask).or_default().push(Use { passes, ..one.clone() });
        }
    }
}

/// Ports that speak TLS as a rule.
const TLS_PORTS: [u16; 3] = [443, 8443, 9443];

/// A second connection to a port of TLS to which nginx speaks HTTP without it: a ClientHello is harmless, and tells.
fn doubtful(model: &Model, target: &Target) -> Option<Target> {
    let Where::Tcp(to) = target.ask.to else { return None };
    if target.ask.tls.is_some() || !TLS_PORTS.contains(&to.port()) {
        return None;
    }
    let speaks_http = |pass: &usize| {
        let pass = model.passes.get(*pass);
        pass.is_some_and(|pass| {
            matches!(pass.module, Module::Proxy | Module::Grpc) && pass.tls == Some(false)
        })
    };
    let spoken = target.uses.iter().filter(|one| !one.next && one.passes.iter().all(speaks_http));
    let uses: Vec<Use> = spoken.cloned().collect();
    let tls = Some(TlsAsk { name: uses.first()?.name.clone(), ..TlsAsk::default() });
    Some(Target { ask: Ask { tls, ..target.ask.clone() }, uses, is_plain: true })
}

/// The literal address of `proxy_bind`. One that is transparent, or that a request chooses, is not taken.
fn bind(model: &Model, pass: &Pass) -> Option<IpAddr> {
    let value = model.effective(pass, Setting::Bind).value?;
    let mut words = value.split_ascii_whitespace();
    let ip = words.next()?.parse().ok()?;
    words.next().is_none().then_some(ip)
}

/// True for a pass that sends datagrams: that of a stream server that listens for them.
fn is_udp(model: &Model, pass: &Pass) -> bool {
    pass.module.layer() == Layer::Stream
        && model.server_of(pass).is_some_and(|server| server.listens.iter().any(|listen| listen.udp))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::check::model_of::model;

    fn shown(text: &str) -> Vec<String> {
        let answer =
            |ips: &[&str]| resolve::Answer::Addresses(ips.iter().map(|ip| ip.parse().unwrap()).collect());
        let resolved = HashMap::from([
            ("two.test".to_owned(), answer(&["10.0.0.1", "10.0.0.2"])),
            ("one.test".to_owned(), answer(&["10.0.0.1"])),
        ]);
        let found = of(&model(text), &resolved, &Kept::default());
        let mut shown: Vec<String> = found
            .targets
            .iter()
            .map(|target| {
                let to = match &target.ask.to {
                    Where::Tcp(to) => to.to_string(),
                    Where::Unix(path) => String::from_utf8_lossy(path).into_owned(),
                };
                let from = target.ask.from.map(|from| format!(" from {from}")).unwrap_or_default();
                let tls = match (&target.ask.tls, target.is_plain) {
                    (None, _) => "",
                    (Some(_), false) => " tls",
                    (Some(_), true) => " perhaps tls",
                };
                format!("{to}{from}{tls} x{}", target.uses.len())
            })
            .collect();
        shown.extend(found.unresolved.iter().map(|one| format!("?{}", one.name)));
        if found.down + found.open > 0 {
            shown.push(format!("down {} open {}", found.down, found.open));
        }
        shown
    }

    #[test]
    fn every_server_that_is_used_is_tried_once() {
        let text = "http { upstream a { server 127.0.0.1:1; server 127.0.0.1:2 down; server two.test:3; \
                    server unix:/run/a.sock backup; } upstream unused { server 127.0.0.1:9; } \
                    server { location / { proxy_pass http://a; } location /b { proxy_pass http://127.0.0.1:1; } \
                    location /c { fastcgi_pass unix:/run/a.sock; } location /d { proxy_pass http://gone.test; } } }";
        assert_eq!(
            shown(text),
            [
                "10.0.0.1:3 x1",
                "10.0.0.2:3 x1",
                "127.0.0.1:1 x2",
                "/run/a.sock x2",
                "?gone.test",
                "down 1 open 0"
            ]
        );
    }

    #[test]
    fn what_only_a_request_tells_is_left_out() {
        let text = "http { map $host $to { default 127.0.0.1:5; x 127.0.0.1:6; } server { \
                    location / { proxy_pass http://$to; } location /v { proxy_pass http://$http_x; } } }";
        assert_eq!(shown(text), ["127.0.0.1:5 x1", "127.0.0.1:6 x1", "down 0 open 1"]);
    }

    #[test]
    fn plain_text_to_a_port_of_tls_is_looked_into() {
        let text = "http { server { location / { proxy_pass http://127.0.0.1:443; } \
                    location /s { proxy_pass https://127.0.0.1:8443; } \
                    location /f { fastcgi_pass 127.0.0.1:9443; } } }";
        assert_eq!(
            shown(text),
            [
                "127.0.0.1:443 x1",
                "127.0.0.1:8443 tls x1",
                "127.0.0.1:9443 x1",
                "127.0.0.1:443 perhaps tls x1"
            ]
        );
    }

    #[test]
    fn datagrams_are_not_tried() {
        let text = "stream { server { listen 53 udp; proxy_pass 127.0.0.1:53; } \
                    server { listen 54; proxy_pass 127.0.0.1:54; } }";
        assert_eq!(shown(text), ["127.0.0.1:54 x1"]);
    }

    #[test]
    fn the_local_address_is_part_of_it() {
        let text = "http { server { proxy_bind 127.0.0.2; location / { proxy_pass http://127.0.0.1:1; } \
                    location /a { proxy_bind off; proxy_pass http://127.0.0.1:1; } \
                    location /b { proxy_bind $remote_addr transparent; proxy_pass http://127.0.0.1:1; } \
                    location /6 { proxy_pass http://[::1]:1; } } }";
        assert_eq!(shown(text), ["127.0.0.1:1 x2", "127.0.0.1:1 from 127.0.0.2 x1", "[::1]:1 x1"]);
    }
}
