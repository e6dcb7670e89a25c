//! The addresses that an nginx process holds for its upstream servers, from its memory.
//!
//! nginx resolves the names of its configuration once, when it reads it, and keeps what it got (`ngx_inet_resolve_host`). The
//! exported `ngx_cycle` leads there: the modules of the cycle (since 1.9.11) say where the upstream modules of `http` and
//! `stream` have their configuration, which lists every group (`ngx_http_upstream_srv_conf_t`) with its peers
//! (`ngx_http_upstream_rr_peers_t`), in the order in which they are tried. Where a field's place depends on version or options,
//! it is found by what it must hold; each peer's address must be what its name says. Nothing is believed that does not fit.

use std::{
    collections::HashMap,
    net::{IpAddr, SocketAddr},
};

use super::{
    model::{Layer, Model, UpstreamServer},
    running::{Place, Read, word},
    value::Address,
};

/// Bytes of `ngx_cycle_t` that are looked through.
const CYCLE: usize = 1024;
/// Most modules of a build (`NGX_MAX_DYNAMIC_MODULES` is 128).
const MOST_MODULES: u64 = 1024;
/// Most groups that are read.
const MOST_GROUPS: u64 = 20_000;
/// Most peers of one group.
const MOST_PEERS: u64 = 10_000;
/// Most peers of all groups together.
const MOST: usize = 100_000;
/// Longest text.
const LONGEST: u64 = 4096;
/// What is read of a group: up to its port.
const GROUP: usize = 82;
/// Words of `ngx_http_upstream_rr_peers_t`; it has 9 to 13.
const PEERS: usize = 16;
/// Words of `ngx_http_upstream_rr_peer_t` among which `next` is.
const PEER: usize = 40;

/// A group of servers: an `upstream`, or what nginx made of a host and a port.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Group {
    /// `http` or `stream`.
    pub layer: Layer,
    /// Name of the `upstream`, or the host.
    pub name: String,
    /// None for an `upstream`.
    pub port: Option<u16>,
    /// In nginx's order; those on unix sockets are left out.
    pub peers: Vec<Peer>,
}

/// One address.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Peer {
    /// The address of the `server` line as written; empty where nginx made the group.
    pub server: String,
    /// The address.
    pub address: SocketAddr,
}

/// The addresses by what the configuration calls them.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Kept {
    groups: HashMap<(Layer, String, Option<u16>), Vec<Peer>>,
}

impl Kept {
    /// Of groups as they were read.
    #[must_use]
    pub fn of(groups: Vec<Group>) -> Self {
        let mut kept = Self::default();
        for Group { layer, name, port, peers } in groups {
            kept.groups.entry((layer, name.to_ascii_lowercase(), port)).or_default().extend(peers);
        }
        kept
    }

    /// Those of a `server` of an `upstream`, in nginx's order. None where that is not known, or nginx goes on looking it up.
    #[must_use]
    pub fn server(&self, layer: Layer, upstream: &str, server: &UpstreamServer) -> Option<Vec<SocketAddr>> {
        if server.resolve || server.service.is_some() {
            return None;
        }
        let peers = self.groups.get(&(layer, upstream.to_ascii_lowercase(), None))?;
        let own = peers.iter().filter(|peer| peer.server == server.text);
        Some(own.map(|peer| peer.address).collect::<Vec<_>>()).filter(|all| !all.is_empty())
    }

    /// Those of a host that a pass names.
    #[must_use]
    pub fn host(&self, layer: Layer, host: &str, port: u16) -> Option<Vec<SocketAddr>> {
        let peers = self.groups.get(&(layer, host.to_ascii_lowercase(), Some(port)))?;
        Some(peers.iter().map(|peer| peer.address).collect::<Vec<_>>()).filter(|all| !all.is_empty())
    }

    /// The addresses of every name of a configuration that nginx resolved when it read it.
    #[must_use]
    pub fn names(&self, model: &Model) -> HashMap<String, Vec<IpAddr>> {
        let mut names: HashMap<String, Vec<IpAddr>> = HashMap::new();
        let mut add = |name: &str, found: Option<Vec<SocketAddr>>| {
            for ip in found.into_iter().flatten().map(|address| address.ip()) {
                let all = names.entry(name.to_owned()).or_default();
                if !all.contains(&ip) {
                    all.push(ip);
                }
            }
        };
        for upstream in &model.upstreams {
            for server in &upstream.servers {
                if let Address::Name { host, .. } = &server.address {
                    add(host, self.server(upstream.layer, &upstream.name, server));
                }
            }
        }
        for pass in model.passes.iter().filter(|pass| pass.upstream.is_none()) {
            if let Address::Name { host, port: Some(port), .. } = &pass.target {
                add(host, self.host(pass.module.layer(), host, *port));
            }
        }
        names
    }
}

/// Every group of a process; those that do not fit are left out. `None` if nothing can be told. `phdr`: `AT_PHDR` of its
/// auxiliary vector.
pub fn groups(place: &Place, phdr: u64, read: Read<'_>) -> Option<Vec<Group>> {
    let cycle = read(place.cycle(phdr, read)?, CYCLE)?;
    let modules = modules(&cycle, place.loaded(phdr, place.core?), read)?;
    let configurations = word(&cycle, 0)?;
    let mut found = Vec::new();
    let mut left = MOST;
    for (layer, outer, inner) in [
        (Layer::Http, "ngx_http_module", "ngx_http_upstream_module"),
        (Layer::Stream, "ngx_stream_module", "ngx_stream_upstream_module"),
    ] {
        let of = |name: &str| modules.iter().find(|module| module.name == name);
        let (Some(outer), Some(inner)) = (of(outer), of(inner)) else { continue };
        // A block that is not there has no configuration.
        let Some(groups) = list(configurations, outer.index, inner.in_layer, read) else { continue };
        for at in groups {
            let Some(group) = group(at, layer, &mut left, read) else { continue };
            found.push(group);
        }
    }
    Some(found)
}

struct Module {
    name: String,
    /// `index`: among all modules.
    index: u64,
    /// `ctx_index`: among those of its layer.
    in_layer: u64,
}

/// The modules of the cycle: an array of addresses that begins with that of `ngx_core_module`, and ends with 0.
fn modules(cycle: &[u8], core: u64, read: Read<'_>) -> Option<Vec<Module>> {
    let array = (0..CYCLE / 8).find_map(|index| {
        let at = word(cycle, index * 8).filter(|at| *at != 0)?;
        (word(&read(at, 8)?, 0)? == core).then_some(at)
    })?;
    let mut found = Vec::new();
    for number in 0..MOST_MODULES {
        let at = word(&read(array.checked_add(number * 8)?, 8)?, 0)?;
        if at == 0 {
            return Some(found);
        }
        let bytes = read(at, 24)?;
        let name = read(word(&bytes, 16)?, 32)?;
        let name = name.split(|byte| *byte == 0).next().unwrap_or_default();
        found.push(Module {
            name: String::from_utf8_lossy(name).into_owned(),
            index: word(&bytes, 8)?,
            in_layer: word(&bytes, 0)?,
        });
    }
    None
}

/// The addresses of the groups of a layer.
fn list(configurations: u64, outer: u64, inner: u64, read: Read<'_>) -> Option<Vec<u64>> {
    let at = |base: u64, index: u64| -> Option<u64> {
        let at = base.checked_add(index.checked_mul(8)?)?;
        word(&read(at, 8)?, 0).filter(|value| *value != 0)
    };
    // ngx_http_conf_ctx_t begins with the main configurations of its modules.
    let main = at(at(configurations, outer)?, 0)?;
    // The array of groups is the first field of stream's, and the second of http's, behind a hash of two words.
    let words = read(at(main, inner)?, 48)?;
    let (elements, number) = [0, 16].into_iter().find_map(|at| {
        let (elements, number) = (word(&words, at)?, word(&words, at + 8)?);
        let (size, room) = (word(&words, at + 16)?, word(&words, at + 24)?);
        (elements != 0 && size == 8 && number <= room && room <= MOST_GROUPS).then_some((elements, number))
    })?;
    if number == 0 {
        return Some(Vec::new());
    }
    let bytes = read(elements, usize::try_from(number).ok()?.checked_mul(8)?)?;
    (0..usize::try_from(number).ok()?).map(|index| word(&bytes, index * 8)).collect()
}

/// A group: `peer.data` at 16, `host` at 48, `port` at 80; these have not moved since 1.9.
fn group(at: u64, layer: Layer, left: &mut usize, read: Read<'_>) -> Option<Group> {
    let bytes = read(at, GROUP)?;
    let host = text(&bytes, 48, read).filter(|host| !host.is_empty())?;
    let port = u16::from_ne_bytes(bytes.get(80..82)?.try_into().ok()?);
    let mut peers = Vec::new();
    let mut set = word(&bytes, 16)?;
    // Those of `backup` servers are a second set.
    for _ in 0..2 {
        let words = read(set, PEERS * 8)?;
        let number = word(&words, 0).filter(|number| *number <= MOST_PEERS)?;
        let named = (1..PEERS - 2).find(|index| {
            let string = word(&words, index * 8).filter(|at| *at != 0).and_then(|at| read(at, 16));
            string.and_then(|string| text(&string, 0, read)).is_some_and(|name| name == host)
        })?;
        *left = left.checked_sub(usize::try_from(number).ok()?)?;
        peers.extend(chain(word(&words, (named + 2) * 8)?, number, read)?);
        set = word(&words, (named + 1) * 8)?;
        if set == 0 {
            break;
        }
    }
    Some(Group { layer, name: host, port: (port != 0).then_some(port), peers })
}

/// So many peers, of which each leads to the next.
fn chain(mut at: u64, number: u64, read: Read<'_>) -> Option<Vec<Peer>> {
    let mut found = Vec::new();
    let mut next: Option<usize> = None;
    for left in (0..number).rev() {
        found.extend(peer(at, read)?);
        if left == 0 {
            break;
        }
        let bytes = read(at, PEER * 8)?;
        // The first word behind the names that leads to a peer; the same in all.
        let offset = match next {
            Some(offset) => offset,
            None => (6..PEER)
                .map(|index| index * 8)
                .find(|offset| word(&bytes, *offset).is_some_and(|to| to != 0 && peer(to, read).is_some()))?,
        };
        next = Some(offset);
        at = word(&bytes, offset)?;
    }
    Some(found)
}

/// A peer begins with `sockaddr`, `socklen`, `name` and `server`. `Some(None)`: one on a unix socket.
fn peer(at: u64, read: Read<'_>) -> Option<Option<Peer>> {
    let bytes = read(at, 48)?;
    let length = u32::from_ne_bytes(bytes.get(8..12)?.try_into().ok()?);
    let (name, server) = (text(&bytes, 16, read)?, text(&bytes, 32, read)?);
    if name.starts_with("unix:") {
        return Some(None);
    }
    let socket = read(word(&bytes, 0)?, usize::try_from(length.min(128)).ok()?)?;
    let address = socket_address(&socket)?;
    // nginx writes IPv6 addresses in its own way.
    (name.parse::<SocketAddr>().ok()? == address).then_some(Some(Peer { server, address }))
}

fn socket_address(bytes: &[u8]) -> Option<SocketAddr> {
    let family = u16::from_ne_bytes(bytes.get(..2)?.try_into().ok()?);
    let port = u16::from_be_bytes(bytes.get(2..4)?.try_into().ok()?);
    let ip = match i32::from(family) {
        libc::AF_INET => IpAddr::from(<[u8; 4]>::try_from(bytes.get(4..8)?).ok()?),
        libc::AF_INET6 => IpAddr::from(<[u8; 16]>::try_from(bytes.get(8..24)?).ok()?),
        _ => return None,
    };
    Some(SocketAddr::new(ip, port))
}

/// An `ngx_str_t` at that place: length, address.
fn text(bytes: &[u8], at: usize, read: Read<'_>) -> Option<String> {
    let length = word(bytes, at).filter(|length| *length <= LONGEST)?;
    if length == 0 {
        return Some(String::new());
    }
    String::from_utf8(read(word(bytes, at + 8)?, usize::try_from(length).ok()?)?).ok()
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    const LOADED: u64 = 0x5555_0000_0000;
    const PLACE: Place = Place { cycle: 0x3000, core: Some(0x4000), headers: 0x40 };

    /// Memory of a process: pieces by address.
    #[derive(Default, Clone)]
    struct Pieces {
        all: BTreeMap<u64, Vec<u8>>,
        free: u64,
    }

    impl Pieces {
        fn read(&self, at: u64, length: usize) -> Option<Vec<u8>> {
            let (start, bytes) = self.all.range(..=at).next_back()?;
            let from = usize::try_from(at - start).ok()?;
            Some(bytes.get(from..from.checked_add(length)?)?.to_vec())
        }

        fn put(&mut self, bytes: &[u8]) -> u64 {
            self.free += 0x1000;
            // As in a heap, something lies behind it.
            self.all.insert(self.free, [bytes, &[0; 64]].concat());
            self.free
        }

        fn words(&mut self, words: &[u64]) -> u64 {
            let bytes: Vec<u8> = words.iter().flat_map(|word| word.to_ne_bytes()).collect();
            self.put(&bytes)
        }

        fn text(&mut self, text: &str) -> [u64; 2] {
            [text.len() as u64, self.put(text.as_bytes())]
        }

        fn set(&mut self, at: u64, word: usize, value: u64) {
            let piece = self.all.get_mut(&at).unwrap();
            piece[word * 8..word * 8 + 8].copy_from_slice(&value.to_ne_bytes());
        }

        /// A chain of peers whose `next` is that word.
        fn peers(&mut self, all: &[(&str, &str)], next: usize) -> u64 {
            let mut first = 0;
            for (server, name) in all.iter().rev() {
                let socket = match name.parse() {
                    Ok(SocketAddr::V4(v4)) => {
                        let family = u16::try_from(libc::AF_INET).unwrap().to_ne_bytes();
                        let port = v4.port().to_be_bytes();
                        [&family[..], &port, &v4.ip().octets(), &[0; 8]].concat()
                    }
                    Ok(SocketAddr::V6(v6)) => {
                        let family = u16::try_from(libc::AF_INET6).unwrap().to_ne_bytes();
                        let port = v6.port().to_be_bytes();
                        [&family[..], &port, &[0; 4], &v6.ip().octets(), &[0; 4]].concat()
                    }
                    Err(_) => vec![1, 0],
                };
                let length = socket.len() as u64;
                let socket = self.put(&socket);
                let (name, server) = (self.text(name), self.text(server));
                let mut words = vec![socket, length, name[0], name[1], server[0], server[1]];
                words.resize(PEER, 1);
                words[next] = first;
                first = self.words(&words);
            }
            first
        }
    }

    type Servers<'a> = &'a [(&'a str, &'a str)];

    /// An `upstream` with backups, and a group that nginx made; `shift`: so many more fields than the oldest nginx has.
    fn process(shift: usize, own: Servers<'_>, backup: Servers<'_>, made: Servers<'_>) -> Pieces {
        let mut memory = Pieces { free: 0x10_0000, ..Pieces::default() };
        let set = |memory: &mut Pieces, host: [u64; 2], peers: u64, number: usize, next: u64| {
            let host = memory.words(&host);
            let mut words = vec![number as u64];
            words.resize(5 + shift, 0x77);
            words.extend([host, next, peers]);
            words.resize(PEERS, 0);
            memory.words(&words)
        };
        let group = |memory: &mut Pieces, host: [u64; 2], peers: u64, port: u64| {
            memory.words(&[1, 2, peers, 3, 4, 5, host[0], host[1], 8, 9, port, 0])
        };
        let host = memory.text("App");
        let (first, second) = (memory.peers(own, 20 + shift), memory.peers(backup, 20 + shift));
        let second = if backup.is_empty() { 0 } else { set(&mut memory, host, second, backup.len(), 0) };
        let first = set(&mut memory, host, first, own.len(), second);
        let block = group(&mut memory, host, first, 0);
        let host = memory.text("app.test");
        let peers = memory.peers(made, 20 + shift);
        let peers = set(&mut memory, host, peers, made.len(), 0);
        let pass = group(&mut memory, host, peers, 3000);
        let broken = group(&mut memory, host, 0x99, 3001);
        let elements = memory.words(&[block, pass, broken]);
        let array = memory.words(&[elements, 0x2f, elements, 3, 8, 4]);
        let main = memory.words(&[0, array]);
        let context = memory.words(&[main]);
        let configurations = memory.words(&[0, context]);
        let names = ["ngx_core_module", "ngx_http_module", "ngx_http_upstream_module"]
            .map(|name| memory.put(&[name.as_bytes(), &[0]].concat()));
        let core: Vec<u8> = [0, 0, names[0]].iter().flat_map(|word: &u64| word.to_ne_bytes()).collect();
        memory.all.insert(LOADED + 0x4000, core);
        let (http, upstream) = (memory.words(&[0, 1, names[1]]), memory.words(&[1, 2, names[2]]));
        let modules = memory.words(&[LOADED + 0x4000, http, upstream, 0]);
        let mut cycle = vec![0x33; CYCLE / 8];
        (cycle[0], cycle[14 + shift]) = (configurations, modules);
        let cycle = memory.words(&cycle);
        memory.all.insert(LOADED + 0x3000, cycle.to_ne_bytes().to_vec());
        memory
    }

    const OWN: Servers<'static> = &[
        ("app.test:80", "10.0.0.1:80"),
        ("app.test:80", "[fe80::1]:80"),
        ("unix:/run/a", "unix:/run/a"),
        ("b.test", "10.0.0.2:80"),
    ];

    fn read_of(memory: &Pieces) -> Option<Vec<Group>> {
        groups(&PLACE, LOADED + 0x40, &|at, length| memory.read(at, length))
    }

    fn shown(memory: &Pieces) -> Vec<(String, Option<u16>, Vec<String>)> {
        let peers = |group: &Group| -> Vec<String> {
            group.peers.iter().map(|peer| format!("{}={}", peer.server, peer.address)).collect()
        };
        let found = read_of(memory).unwrap_or_default();
        found.iter().map(|group| (group.name.clone(), group.port, peers(group))).collect()
    }

    #[test]
    fn finds_every_group_in_nginx_s_order() {
        for shift in [0, 1, 3, 6] {
            let memory = process(shift, OWN, &[("c.test:1", "10.0.0.3:1")], &[("", "10.0.0.4:3000")]);
            let own = [
                "app.test:80=10.0.0.1:80",
                "app.test:80=[fe80::1]:80",
                "b.test=10.0.0.2:80",
                "c.test:1=10.0.0.3:1",
            ];
            assert_eq!(
                shown(&memory),
                [
                    ("App".to_owned(), None, own.map(str::to_owned).to_vec()),
                    ("app.test".to_owned(), Some(3000), vec!["=10.0.0.4:3000".to_owned()]),
                ],
                "{shift}; the third has no peers that fit"
            );
        }
    }

    #[test]
    fn believes_nothing_that_does_not_fit() {
        let memory = process(0, &[("a", "10.0.0.1:80")], &[], &[("", "10.0.0.4:3000")]);
        assert_eq!(read_of(&Pieces::default()), None);
        let without = Place { core: None, ..PLACE };
        assert_eq!(groups(&without, LOADED + 0x40, &|at, length| memory.read(at, length)), None);
        // An address that is not what its name says.
        let mut other = memory.clone();
        let name =
            other.all.iter().find(|(_, bytes)| bytes.starts_with(b"10.0.0.1:80")).map(|(at, _)| *at).unwrap();
        other.all.get_mut(&name).unwrap()[7] = b'9';
        assert_eq!(shown(&other).len(), 1, "{:?}", shown(&other));
        // More peers than there are, or without end.
        for (at, bytes) in &memory.all {
            for word in 0..bytes.len() / 8 {
                for value in [0, 1, 3, u64::MAX, 1 << 63, *at] {
                    let mut changed = memory.clone();
                    changed.set(*at, word, value);
                    // Nothing is asked but an answer, soon.
                    let _ = read_of(&changed);
                }
            }
        }
    }

    #[test]
    fn names_have_the_addresses_of_their_places() {
        let memory = process(0, OWN, &[], &[("", "10.0.0.4:3000")]);
        let kept = Kept::of(read_of(&memory).unwrap());
        let text = "http { upstream app { server app.test:80; server b.test; server c.test; server d.test resolve; } \
                    server { location / { proxy_pass http://app; } location /d { proxy_pass http://APP.test:3000; } \
                    location /o { proxy_pass http://other.test:3000; } } }";
        let model = Model::new(super::super::tests::read(text).unwrap());
        let mut names: Vec<(String, Vec<String>)> = kept
            .names(&model)
            .into_iter()
            .map(|(name, ips)| (name, ips.iter().map(ToString::to_string).collect()))
            .collect();
        names.sort();
        let own =
            |name: &str, ips: &[&str]| (name.to_owned(), ips.iter().map(|ip| (*ip).to_owned()).collect());
        assert_eq!(
            names,
            [
                own("APP.test", &["10.0.0.4"]),
                own("app.test", &["10.0.0.1", "fe80::1"]),
                own("b.test", &["10.0.0.2"])
            ]
        );
    }
}
