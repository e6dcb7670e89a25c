//! Which `server` handles a request: by the address it came in on, then by its host (`ngx_http_find_virtual_server`
//! and the hash of names in src/core/ngx_hash.c).

use std::{
    collections::{HashMap, HashSet},
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
};

use super::{
    model::{Layer, Listen, Model, Server},
    pcre::Pattern,
    uri,
};

/// How a `listen` fits an address.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Fit {
    No,
    /// It names a host, whose addresses are not known.
    Maybe,
    /// Any address of the port.
    Wildcard,
    /// This very address.
    Specific,
}

/// What servers share.
enum At<'a> {
    /// The address of a connection.
    Address(SocketAddr),
    /// An address as written in `listen`.
    Listen(&'a str),
}

impl Model {
    /// The servers that can handle a connection to an address, in the order of the files; all of the layer where the
    /// address is not known.
    pub(super) fn servers_at(&self, layer: Layer, address: Option<SocketAddr>) -> Vec<usize> {
        let of_layer = || self.servers.iter().enumerate().filter(move |(_, server)| server.layer == layer);
        let Some(address) = address else { return of_layer().map(|(index, _)| index).collect() };
        let fits: Vec<(usize, Fit)> =
            of_layer().map(|(index, server)| (index, server_fit(server, address))).collect();
        let best = fits.iter().map(|(_, fit)| *fit).max().unwrap_or(Fit::No);
        if best == Fit::No {
            return Vec::new();
        }
        let chosen = |fit: &Fit| *fit == best || *fit == Fit::Maybe;
        fits.iter().filter(|(_, fit)| chosen(fit)).map(|(index, _)| *index).collect()
    }

    /// The servers that can handle a request, by index in [`Model::servers`]: one if that is certain. A host of
    /// `None` is not known, an empty one was not sent.
    pub(super) fn servers_for(&self, address: Option<SocketAddr>, host: Option<&str>) -> Vec<usize> {
        let all = self.servers_at(Layer::Http, address);
        let name = match host {
            Some("") => Some(std::borrow::Cow::Borrowed("")),
            Some(host) => uri::host_name(host),
            None => None,
        };
        let Some(name) = name else { return all };
        let Some(address) = address else { return self.without_address(&all, &name) };
        let uncertain = all.iter().any(|index| {
            self.servers.get(*index).is_some_and(|server| server_fit(server, address) == Fit::Maybe)
        });
        if uncertain {
            self.without_address(&all, &name)
        } else {
            self.by_name(&all, &name, &At::Address(address))
        }
    }

    /// Where the address is not known, each group of servers that share one decides on its own: what any of them
    /// would choose is possible.
    fn without_address(&self, all: &[usize], name: &str) -> Vec<usize> {
        let mut groups: Vec<(&str, Vec<usize>)> = Vec::new();
        let mut by_listen: HashMap<&str, usize> = HashMap::new();
        for index in all {
            let Some(server) = self.servers.get(*index) else { continue };
            let addresses: Vec<&str> = server.listens.iter().map(|listen| listen.address.as_str()).collect();
            for address in if addresses.is_empty() { vec!["80"] } else { addresses } {
                let group = *by_listen.entry(address).or_insert_with(|| {
                    groups.push((address, Vec::new()));
                    groups.len() - 1
                });
                if let Some((_, group)) = groups.get_mut(group)
                    && group.last() != Some(index)
                {
                    group.push(*index);
                }
            }
        }
        let mut found: Vec<usize> = groups
            .iter()
            .flat_map(|(address, group)| self.by_name(group, name, &At::Listen(address)))
            .collect();
        found.sort_unstable();
        found.dedup();
        found
    }

    /// The servers of one address that a host name can mean.
    fn by_name(&self, group: &[usize], name: &str, at: &At<'_>) -> Vec<usize> {
        if let Some(server) = self.written_name(group, name) {
            return vec![server];
        }
        let names = Names::of(self, group);
        if let Some(server) = names.exact.get(name) {
            return vec![*server];
        }
        let mut possible = names.hostname.clone();
        if let Some(server) = names.head(name).or_else(|| names.tail(name)) {
            possible.push(server);
            return possible;
        }
        for (server, pattern) in names.regexes.iter().filter(|_| !name.is_empty()) {
            let caseless = pattern.bytes().any(|byte| byte.is_ascii_uppercase());
            match Pattern::new(pattern.as_bytes(), caseless).and_then(|regex| regex.is_match(name.as_bytes()))
            {
                Some(true) => {
                    possible.push(*server);
                    return possible;
                }
                Some(false) => {}
                None => possible.push(*server),
            }
        }
        possible.extend(self.default_of_group(group, at));
        possible.sort_unstable();
        possible.dedup();
        possible
    }

    /// The first server that has the very name, unless a `.example.com` in front of it takes it away.
    fn written_name(&self, group: &[usize], name: &str) -> Option<usize> {
        if name.is_empty() || name.starts_with(['~', '*', '.', '$']) || name.ends_with('*') {
            return None;
        }
        let of = |index: &usize| Some((*index, self.servers.get(*index)?));
        for (index, server) in group.iter().filter_map(of) {
            for own in &server.names {
                if own.eq_ignore_ascii_case(name) {
                    return Some(index);
                }
                if own.strip_prefix('.').is_some_and(|base| base.eq_ignore_ascii_case(name)) {
                    return None;
                }
            }
        }
        None
    }

    /// The servers that can be the default one of an address, which reads requests before their host is known.
    pub(super) fn default_servers(&self, address: Option<SocketAddr>) -> Vec<usize> {
        let group = self.servers_at(Layer::Http, address);
        let Some(known) = address else { return group };
        let maybe = |index: &usize| {
            self.servers.get(*index).is_some_and(|server| server_fit(server, known) == Fit::Maybe)
        };
        if group.iter().any(maybe) {
            return group;
        }
        self.default_of_group(&group, &At::Address(known)).into_iter().collect()
    }

    fn default_of_group(&self, group: &[usize], at: &At<'_>) -> Option<usize> {
        let servers = || group.iter().filter_map(|index| Some((*index, self.servers.get(*index)?)));
        // A server may listen on several addresses and be the default of one of them only.
        let best = match at {
            At::Address(address) => servers().map(|(_, server)| server_fit(server, *address)).max(),
            At::Listen(_) => None,
        };
        let is_default = |listen: &Listen| {
            let marked = listen.parameters.iter().any(|word| word == "default_server" || word == "default");
            marked
                && match at {
                    At::Address(address) => !listen.udp && Some(listen_fit(listen, *address)) == best,
                    At::Listen(address) => listen.address == *address,
                }
        };
        let mut marked = servers().filter(|(_, server)| server.listens.iter().any(is_default));
        marked.next().map(|(index, _)| index).or_else(|| group.first().copied())
    }
}

fn server_fit(server: &Server, address: SocketAddr) -> Fit {
    if server.listens.is_empty() {
        let port = server.layer == Layer::Http && matches!(address.port(), 80 | 8000);
        return if port && address.ip().to_canonical().is_ipv4() { Fit::Wildcard } else { Fit::No };
    }
    let tcp = server.listens.iter().filter(|listen| !listen.udp);
    tcp.map(|listen| listen_fit(listen, address)).max().unwrap_or(Fit::No)
}

fn listen_fit(listen: &Listen, address: SocketAddr) -> Fit {
    let Some((first, last)) = listen.ports else { return Fit::No };
    if !(first..=last).contains(&address.port()) {
        return Fit::No;
    }
    let ip = address.ip().to_canonical();
    let host = match listen.address.strip_prefix('[') {
        Some(bare) => bare.split(']').next().unwrap_or_default(),
        None => listen.address.rsplit_once(':').map_or(listen.address.as_str(), |(host, _)| host),
    };
    let is_port = |text: &str| text.bytes().all(|byte| byte.is_ascii_digit() || byte == b'-');
    if host == "*" || is_port(host) {
        return if ip.is_ipv4() { Fit::Wildcard } else { Fit::No };
    }
    match host.parse::<IpAddr>() {
        Ok(IpAddr::V4(Ipv4Addr::UNSPECIFIED)) => {
            if ip.is_ipv4() {
                Fit::Wildcard
            } else {
                Fit::No
            }
        }
        Ok(IpAddr::V6(Ipv6Addr::UNSPECIFIED)) => {
            // Since 1.3.4 such a socket takes IPv4 only where it is told so.
            let both = listen.parameters.iter().any(|word| word == "ipv6only=off");
            if ip.is_ipv6() || both { Fit::Wildcard } else { Fit::No }
        }
        Ok(own) => {
            if own.to_canonical() == ip {
                Fit::Specific
            } else {
                Fit::No
            }
        }
        Err(_) => Fit::Maybe,
    }
}

/// The names of one address's servers, as nginx files them: the first one wins where two conflict.
#[derive(Debug, Default)]
struct Names<'a> {
    exact: HashMap<String, usize>,
    /// What stands behind `*.`, with whether it alone fits as well (`.example.com`).
    heads: HashMap<String, (usize, bool)>,
    /// What stands before `.*`.
    tails: HashMap<String, usize>,
    /// Without the `~`.
    regexes: Vec<(usize, &'a str)>,
    /// Servers that go by the machine's own name, which is not known.
    hostname: Vec<usize>,
}

impl<'a> Names<'a> {
    fn of(model: &'a Model, group: &[usize]) -> Self {
        let mut names = Self::default();
        // Names that a `.example.com` has taken from the exact ones.
        let mut taken = HashSet::new();
        for index in group {
            let Some(server) = model.servers.get(*index) else { continue };
            if server.names.is_empty() {
                names.exact.entry(String::new()).or_insert(*index);
            }
            for name in &server.names {
                names.add(*index, name, &mut taken);
            }
        }
        names
    }

    fn add(&mut self, server: usize, name: &'a str, taken: &mut HashSet<String>) {
        if let Some(pattern) = name.strip_prefix('~') {
            self.regexes.push((server, pattern));
            return;
        }
        let name = name.to_ascii_lowercase();
        if name == "$hostname" {
            self.hostname.push(server);
        } else if let Some(base) = name.strip_prefix("*.") {
            self.heads.entry(base.to_owned()).or_insert((server, false));
        } else if let Some(base) = name.strip_prefix('.') {
            if !self.exact.contains_key(base) && taken.insert(base.to_owned()) {
                self.heads.entry(base.to_owned()).or_insert((server, true));
            }
        } else if let Some(base) = name.strip_suffix(".*") {
            self.tails.entry(base.to_owned()).or_insert(server);
        } else if !taken.contains(&name) {
            self.exact.entry(name).or_insert(server);
        }
    }

    /// The longest `*.example.com` that fits.
    fn head(&self, name: &str) -> Option<usize> {
        if let Some((server, true)) = self.heads.get(name) {
            return Some(*server);
        }
        let behind_dots = name.match_indices('.').filter_map(|(at, _)| name.get(at + 1..));
        behind_dots.filter_map(|base| self.heads.get(base)).map(|(server, _)| *server).next()
    }

    /// The longest `www.example.*` that fits.
    fn tail(&self, name: &str) -> Option<usize> {
        let before_dots = name.rmatch_indices('.').filter_map(|(at, _)| name.get(..at));
        before_dots.filter_map(|base| self.tails.get(base)).copied().next()
    }
}
