//! From the address of a connection back to the lines of the configuration that can have opened it.

use std::{
    cell::RefCell,
    collections::HashMap,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    path::Path,
};

use super::{
    in_force::InForces,
    model::{ConfigLine, Model, Module, Pass, Role, Upstream},
    retry::Barred,
    settings::{Setting, Timeout},
    value::{self, Address},
};

/// One way in which nginx can have come to connect to an address.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Candidate {
    /// Name of the `upstream`; for a pass that names none, its host and port (nginx makes an upstream of
    /// them), or the socket as `unix:PATH`. `None` where a variable decides.
    pub upstream: Option<String>,
    /// The server's address as written; empty where nothing tells which of an upstream's it was.
    pub server: String,
    /// The module that connects.
    pub module: Module,
    /// The `server` line if there is one, then every pass that can use it.
    pub lines: Vec<ConfigLine>,
    /// The connect time-outs of the passes, each once.
    pub connect_timeouts: Vec<Timeout>,
    /// What keeps nginx from another server of the same group.
    #[serde(default, skip_serializing_if = "Barred::is_empty")]
    pub barred: Barred,
    /// What else holds for the passes; filled only for connections that stood ([`Model::add_settings`]).
    pub settings: InForces,
    /// False where a variable, an SRV record, `down` or a foreign directive decides whether this line is
    /// used at all.
    pub exact: bool,
    /// The server, by index in [`Model::upstreams`] and then in its servers.
    pub upstream_server: Option<(usize, usize)>,
    /// The passes, by index in [`Model::passes`].
    pub passes: Vec<usize>,
}

impl Candidate {
    /// The connect time-out, if the passes agree on its length.
    pub fn connect_timeout(&self) -> Option<&Timeout> {
        let (first, rest) = self.connect_timeouts.split_first()?;
        rest.iter().all(|other| other.milliseconds == first.milliseconds).then_some(first)
    }
}

/// What a socket is connected to.
enum Peer<'a> {
    Inet(SocketAddr, &'a dyn Fn(&str) -> Vec<IpAddr>),
    Unix(&'a Path),
}

/// The passes that use an upstream, by index in [`Model::passes`].
#[derive(Debug, Default)]
struct Users {
    /// Nothing else can be meant.
    surely: Vec<usize>,
    /// A variable has this value among others that are not known.
    perhaps: Vec<usize>,
}

#[derive(PartialEq, Eq)]
enum Fit {
    No,
    Maybe,
    Exact,
}

impl Model {
    /// Every upstream server and every direct pass that can lead to an address, exact ones first. `resolved`
    /// gives the addresses of a host name (one of [`Model::names`]); it is asked once for each.
    pub fn candidates(&self, addr: SocketAddr, resolved: &dyn Fn(&str) -> Vec<IpAddr>) -> Vec<Candidate> {
        let known: RefCell<HashMap<String, Vec<IpAddr>>> = RefCell::default();
        let cached = |name: &str| {
            if let Some(found) = known.borrow().get(name) {
                return found.clone();
            }
            let found = resolved(name);
            known.borrow_mut().insert(name.to_owned(), found.clone());
            found
        };
        self.find(&Peer::Inet(addr, &cached))
    }

    /// The same for a unix socket, by the path that nginx uses.
    pub fn candidates_unix(&self, path: &Path) -> Vec<Candidate> {
        self.find(&Peer::Unix(path))
    }

    /// What a pass leads to where no address is known: the upstream or, if the pass names none, its only server.
    pub fn of_pass(&self, index: usize) -> Option<Candidate> {
        let pass = self.passes.get(index)?;
        let mut candidate = self.candidate(pass.module, vec![index], true);
        match pass.upstream.and_then(|upstream| self.upstreams.get(upstream)) {
            Some(upstream) => candidate.upstream = Some(upstream.name.clone()),
            None => {
                candidate.upstream = implicit_name(&pass.target);
                if candidate.upstream.is_some() {
                    candidate.server.clone_from(&pass.authority);
                }
            }
        }
        Some(candidate)
    }

    fn find(&self, peer: &Peer<'_>) -> Vec<Candidate> {
        let mut found = Vec::new();
        let users = self.users();
        let nobody = Users::default();
        for (index, upstream) in self.upstreams.iter().enumerate() {
            let named = users.get(&index).unwrap_or(&nobody);
            for (at, server) in upstream.servers.iter().enumerate() {
                let fit = if server.service.is_some() && matches!(peer, Peer::Inet(..)) {
                    Fit::Maybe
                } else {
                    fits(&server.address, peer)
                };
                if fit != Fit::No {
                    let exact = fit == Fit::Exact && !server.down;
                    let has_others = upstream.balancer.is_none() && live_servers(upstream, peer) > 1;
                    for mut candidate in self.through(upstream, index, named, exact) {
                        candidate.server.clone_from(&server.text);
                        candidate.upstream_server = Some((index, at));
                        if has_others {
                            candidate.barred = self.all_barred(&candidate.passes);
                        }
                        candidate.lines.insert(0, self.line(Role::Server, server.node));
                        found.push(candidate);
                    }
                }
            }
            if let Some(balancer) = upstream.balancer {
                for mut candidate in self.through(upstream, index, named, false) {
                    let line = self.line(Role::Directive, balancer);
                    candidate.server.clone_from(&line.text);
                    candidate.lines.insert(0, line);
                    found.push(candidate);
                }
            }
        }
        for (index, pass) in self.passes.iter().enumerate().filter(|(_, pass)| pass.upstream.is_none()) {
            let mut matched = false;
            for value in pass.values.iter().filter(|value| value.upstream.is_none()) {
                let fit = fits(&value.target, peer);
                if fit != Fit::No {
                    let mut candidate =
                        self.candidate(pass.module, vec![index], fit == Fit::Exact && pass.complete);
                    candidate.upstream = implicit_name(&value.target);
                    candidate.server.clone_from(&value.authority);
                    found.push(candidate);
                    matched = true;
                }
            }
            if matched || pass.complete {
                continue;
            }
            let fit = fits(&pass.target, peer);
            if fit != Fit::No {
                let mut candidate = self.candidate(pass.module, vec![index], fit == Fit::Exact);
                if addresses(&pass.target, peer) > 1 {
                    candidate.barred = self.all_barred(&candidate.passes);
                }
                candidate.upstream = implicit_name(&pass.target);
                candidate.server.clone_from(&pass.authority);
                found.push(candidate);
            }
        }
        // Some module may use an upstream that nothing passes to; where a pass surely leads there, that is far-fetched.
        if found.iter().any(|candidate| candidate.exact && !candidate.passes.is_empty()) {
            found.retain(|candidate| !candidate.passes.is_empty());
        }
        // Stable: within each half the order of the files stays.
        found.sort_by_key(|candidate| !candidate.exact);
        found
    }

    /// The ways into an upstream: one for each module that names it, one for each whose variables may, and
    /// where there is none of either, one without a pass.
    fn through(&self, upstream: &Upstream, index: usize, users: &Users, exact: bool) -> Vec<Candidate> {
        let mut perhaps = users.perhaps.clone();
        perhaps.extend(self.variable_users(index));
        perhaps.sort_unstable();
        perhaps.dedup();
        let mut found = Vec::new();
        for (module, passes) in self.by_module(&users.surely) {
            found.push(self.candidate(module, passes, exact));
        }
        for (module, passes) in self.by_module(&perhaps) {
            found.push(self.candidate(module, passes, false));
        }
        if found.is_empty() {
            found.push(self.candidate(upstream.layer.module(), Vec::new(), false));
        }
        for candidate in &mut found {
            candidate.upstream = Some(upstream.name.clone());
        }
        found
    }

    /// The passes that name each upstream, by themselves or by a value of their variables.
    fn users(&self) -> HashMap<usize, Users> {
        let mut users: HashMap<usize, Users> = HashMap::new();
        for (index, pass) in self.passes.iter().enumerate() {
            if let Some(upstream) = pass.upstream {
                users.entry(upstream).or_default().surely.push(index);
            }
            for upstream in pass.values.iter().filter_map(|value| value.upstream) {
                let users = users.entry(upstream).or_default();
                let list = if pass.complete { &mut users.surely } else { &mut users.perhaps };
                if !list.contains(&index) {
                    list.push(index);
                }
            }
        }
        users
    }

    /// The passes whose variables can make the name of an upstream; nginx looks there first.
    fn variable_users(&self, upstream: usize) -> Vec<usize> {
        let Some(upstream) = self.upstreams.get(upstream) else { return Vec::new() };
        let passes = self.passes.iter().enumerate();
        passes.filter(|(_, pass)| can_name(pass, upstream)).map(|(index, _)| index).collect()
    }

    /// Whether a pass leads, or may lead, to any of [`Model::upstreams`].
    pub(super) fn may_use_an_upstream(&self, pass: usize) -> bool {
        let Some(pass) = self.passes.get(pass) else { return false };
        pass.upstream.is_some()
            || pass.values.iter().any(|value| value.upstream.is_some())
            || self.upstreams.iter().any(|upstream| can_name(pass, upstream))
    }

    /// The passes that lead, or may lead, to each of [`Model::upstreams`], by index in [`Model::passes`].
    pub fn users_by_upstream(&self) -> Vec<Vec<usize>> {
        let mut users = self.users();
        let all = (0..self.upstreams.len()).map(|index| {
            let Users { mut surely, perhaps } = users.remove(&index).unwrap_or_default();
            surely.extend(perhaps);
            surely.extend(self.variable_users(index));
            surely.sort_unstable();
            surely.dedup();
            surely
        });
        all.collect()
    }

    fn by_module(&self, passes: &[usize]) -> Vec<(Module, Vec<usize>)> {
        let mut groups: Vec<(Module, Vec<usize>)> = Vec::new();
        for index in passes {
            let Some(module) = self.passes.get(*index).map(|pass| pass.module) else { continue };
            match groups.iter_mut().find(|(known, _)| *known == module) {
                Some((_, group)) => group.push(*index),
                None => groups.push((module, vec![*index])),
            }
        }
        groups
    }

    pub(super) fn candidate(&self, module: Module, passes: Vec<usize>, exact: bool) -> Candidate {
        let mut lines = Vec::new();
        let mut connect_timeouts = Vec::new();
        for pass in passes.iter().filter_map(|index| self.passes.get(*index)) {
            lines.push(self.line(Role::Pass, pass.node));
            let timeout = self.timeout(pass, Setting::ConnectTimeout);
            if !connect_timeouts.contains(&timeout) {
                connect_timeouts.push(timeout);
            }
        }
        Candidate {
            upstream: None,
            server: String::new(),
            module,
            lines,
            connect_timeouts,
            barred: Barred::default(),
            settings: InForces::default(),
            exact,
            upstream_server: None,
            passes,
        }
    }
}

/// How many addresses nginx has for what is written, as far as names were looked up.
fn addresses(address: &Address, peer: &Peer<'_>) -> usize {
    match (address, peer) {
        (Address::Name { host, .. }, Peer::Inet(_, resolved)) => resolved(host).len().max(1),
        (Address::Name { .. } | Address::Ip { .. } | Address::Unix { .. }, _) => 1,
        (Address::Variable { .. } | Address::Invalid, _) => 0,
    }
}

/// The servers of an upstream that nginx may choose.
fn live_servers(upstream: &Upstream, peer: &Peer<'_>) -> usize {
    upstream.servers.iter().filter(|server| !server.down).map(|server| addresses(&server.address, peer)).sum()
}

fn implicit_name(target: &Address) -> Option<String> {
    match target {
        Address::Ip { ip, port: Some(port) } => Some(SocketAddr::new(*ip, *port).to_string()),
        Address::Ip { ip, port: None } => Some(ip.to_string()),
        Address::Name { host, port: Some(port), .. } => Some(format!("{host}:{port}")),
        Address::Name { host, port: None, .. } => Some(host.clone()),
        Address::Unix { path } => Some(format!("unix:{path}")),
        Address::Variable { .. } | Address::Invalid => None,
    }
}

fn fits(address: &Address, peer: &Peer<'_>) -> Fit {
    let fit = match (address, peer) {
        (Address::Ip { ip, port }, Peer::Inet(addr, _)) => {
            *port == Some(addr.port()) && same_ip(*ip, addr.ip())
        }
        (Address::Name { host, port, .. }, Peer::Inet(addr, resolved)) => {
            *port == Some(addr.port()) && resolved(host).into_iter().any(|ip| same_ip(ip, addr.ip()))
        }
        (Address::Unix { path }, Peer::Unix(peer)) => Path::new(path) == *peer,
        (Address::Variable { pattern, default_port }, Peer::Inet(addr, resolved)) => {
            return if variable_fits(pattern, *default_port, *addr, resolved) { Fit::Maybe } else { Fit::No };
        }
        (Address::Variable { pattern, .. }, Peer::Unix(path)) => {
            let name = format!("unix:{}", path.display());
            return if value::pattern_fits(pattern, &name) { Fit::Maybe } else { Fit::No };
        }
        (Address::Ip { .. } | Address::Name { .. }, Peer::Unix(_))
        | (Address::Unix { .. }, Peer::Inet(..))
        | (Address::Invalid, _) => false,
    };
    if fit { Fit::Exact } else { Fit::No }
}

/// The kernel connects the unspecified address to the loopback one, and shows IPv4 in IPv6 as mapped.
fn same_ip(configured: IpAddr, seen: IpAddr) -> bool {
    let configured = match configured.to_canonical() {
        IpAddr::V4(Ipv4Addr::UNSPECIFIED) => IpAddr::V4(Ipv4Addr::LOCALHOST),
        IpAddr::V6(Ipv6Addr::UNSPECIFIED) => IpAddr::V6(Ipv6Addr::LOCALHOST),
        other => other,
    };
    configured == seen.to_canonical()
}

fn split_port(pattern: &str) -> (&str, Option<&str>) {
    let colon = pattern.rfind(':').filter(|at| pattern.rfind(']').is_none_or(|bracket| bracket < *at));
    match colon {
        Some(at) => (pattern.get(..at).unwrap_or_default(), pattern.get(at + 1..)),
        None => (pattern, None),
    }
}

/// The host name in front of a port that variables give: `db.test` of `db.test:$port`.
pub(super) fn host_of_pattern(pattern: &str) -> Option<String> {
    let (host, _) = split_port(pattern);
    match value::address(host, None, false) {
        Address::Name { host, .. } if !host.contains('$') => Some(host),
        Address::Name { .. }
        | Address::Ip { .. }
        | Address::Unix { .. }
        | Address::Variable { .. }
        | Address::Invalid => None,
    }
}

fn variable_fits(
    pattern: &str,
    default_port: Option<u16>,
    addr: SocketAddr,
    resolved: &dyn Fn(&str) -> Vec<IpAddr>,
) -> bool {
    if pattern.get(..5).is_some_and(|prefix| prefix.eq_ignore_ascii_case("unix:")) {
        return false;
    }
    let (host, port) = split_port(pattern);
    let port_fits = match (port, default_port) {
        (Some(port), _) => value::pattern_fits(port, &addr.port().to_string()),
        // A variable at the end may hold the port as well; without one the scheme's port holds.
        (None, Some(default)) => default == addr.port() || value::ends_in_variable(host),
        (None, None) => true,
    };
    let host_fits = || {
        let ip = addr.ip().to_canonical();
        if !host.contains('$') {
            let literal = value::address(host, None, false);
            return match literal {
                Address::Ip { ip, .. } => same_ip(ip, addr.ip()),
                Address::Name { host, .. } => resolved(&host).into_iter().any(|ip| same_ip(ip, addr.ip())),
                Address::Unix { .. } | Address::Variable { .. } | Address::Invalid => false,
            };
        }
        // Anything else can be a host name, which may resolve to whatever.
        !value::is_numeric_pattern(host)
            || value::pattern_fits(host, &ip.to_string())
            || value::pattern_fits(host, &format!("[{ip}]"))
    };
    port_fits && host_fits()
}

/// Whether the variables of a pass can make the name of an upstream in a way that the configuration does not tell.
fn can_name(pass: &Pass, upstream: &Upstream) -> bool {
    match &pass.target {
        Address::Variable { pattern, .. } => {
            !pass.complete
                && pass.module.layer() == upstream.layer
                && value::pattern_fits(pattern, &upstream.name)
        }
        Address::Ip { .. } | Address::Name { .. } | Address::Unix { .. } | Address::Invalid => false,
    }
}
