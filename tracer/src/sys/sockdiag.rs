//! TCP sockets of a namespace, asked of the kernel with NETLINK_SOCK_DIAG (no /proc/net/tcp: that walk takes
//! seconds on busy hosts and does not show how full an accept queue is).

use std::net::{IpAddr, SocketAddr};

use super::error::Result;
use super::netlink::{self, AF_INET, AF_INET6, Body, Socket};
use super::netns::NetNs;
pub use super::tcp_state::TcpState;

const SOCK_DIAG_BY_FAMILY: u16 = 20;
/// linux/inet_diag.h: sizeof(struct inet_diag_msg).
pub(super) const MESSAGE: usize = 72;
/// `1 << (INET_DIAG_INFO - 1)`: with `struct tcp_info`.
const EXT_INFO: u8 = 1 << 1;
const REQ_BYTECODE: u16 = 1;
const DIAG_SKV6ONLY: u16 = 11;
const BC_D_COND: u8 = 8;
/// Every state, with TCP_BOUND_INACTIVE (13: bound, neither connected nor listening) that 6.8 added.
const ALL_STATES: u32 = 0x3ffe;

/// A listening TCP socket.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Listener {
    /// Its own address; `[::]` serves IPv4 as well unless `v6only`.
    pub local: SocketAddr,
    /// Inode of the socket, as in /proc/PID/fd.
    pub inode: u32,
    /// Connections that wait for accept(2).
    pub recv_q: u32,
    /// The accept queue's limit: min(backlog, somaxconn).
    pub send_q: u32,
    /// Owner's user id, as this user namespace sees it.
    pub uid: u32,
    /// IPV6_V6ONLY.
    pub v6only: bool,
    /// Another listener has the same address, which takes SO_REUSEPORT.
    pub reuseport: bool,
    /// SO_BINDTODEVICE: index of the only interface it serves.
    pub bound_if: Option<u32>,
}

impl Listener {
    /// One at an address, with an empty queue.
    #[cfg(test)]
    pub(crate) fn at(local: SocketAddr) -> Self {
        Self {
            local,
            inode: 1,
            recv_q: 0,
            send_q: 1,
            uid: 0,
            v6only: false,
            reuseport: false,
            bound_if: None,
        }
    }

    /// Whether the kernel drops the next SYN (`sk_acceptq_is_full`: the queue may hold one more than the limit).
    pub fn queue_full(&self) -> bool {
        self.recv_q > self.send_q
    }

    /// Whether a connection from this host to `ip` reaches this socket, ports aside.
    pub fn serves(&self, ip: IpAddr) -> bool {
        // Local traffic arrives on lo, whose index is 1 in every namespace.
        if self.bound_if.is_some_and(|index| index != 1) {
            return false;
        }
        let ip = effective(ip);
        match (self.local.ip(), ip) {
            (IpAddr::V6(local), IpAddr::V4(_)) if local.is_unspecified() => !self.v6only,
            (local, ip) => {
                local.to_canonical() == ip || (local.is_unspecified() && local.is_ipv4() == ip.is_ipv4())
            }
        }
    }
}

/// The address a connect to `ip` really goes to: IPv4-mapped is IPv4, the unspecified address is loopback.
pub fn effective(ip: IpAddr) -> IpAddr {
    match ip.to_canonical() {
        IpAddr::V4(v4) if v4.is_unspecified() => IpAddr::V4(std::net::Ipv4Addr::LOCALHOST),
        IpAddr::V6(v6) if v6.is_unspecified() => IpAddr::V6(std::net::Ipv6Addr::LOCALHOST),
        other => other,
    }
}

/// A connected TCP socket.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Connection {
    /// State.
    pub state: TcpState,
    /// Its own address.
    pub local: SocketAddr,
    /// The peer's.
    pub remote: SocketAddr,
    /// Bytes received that the process has not read.
    pub recv_q: u32,
    /// Bytes written that the peer has not acknowledged.
    pub send_q: u32,
    /// Retransmissions of what is now in flight.
    pub retransmits: u8,
    /// Owner's user id.
    pub uid: u32,
    /// Inode; 0 when no process owns the socket (not accepted yet, or closed).
    pub inode: u32,
}

/// How the sockets to one destination are spread.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct DestinationUse {
    /// Sockets by state.
    pub states: StateCounts,
    /// Local ports taken towards the destination, by local address, most first. A port can be taken only once
    /// for the same local address and destination.
    pub by_source: Vec<(IpAddr, u32)>,
}

/// A count for each TCP state.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct StateCounts([u32; 14]);

impl StateCounts {
    /// Sockets in a state.
    pub fn get(&self, state: TcpState) -> u32 {
        self.0.get(usize::from(state as u8)).copied().unwrap_or(0)
    }

    /// Sockets in any state.
    pub fn total(&self) -> u32 {
        self.0.iter().fold(0, |sum, count| sum.saturating_add(*count))
    }

    /// The states that occur, most frequent first.
    pub fn present(&self) -> Vec<(TcpState, u32)> {
        let mut found: Vec<_> = TcpState::ALL.iter().map(|&state| (state, self.get(state))).collect();
        found.retain(|&(_, count)| count > 0);
        found.sort_by_key(|&(_, count)| std::cmp::Reverse(count));
        found
    }

    fn add(&mut self, state: u8) {
        if let Some(count) = self.0.get_mut(usize::from(state)) {
            *count = count.saturating_add(1);
        }
    }
}

/// All listening TCP sockets of a namespace, IPv4 first.
pub fn listeners(ns: &NetNs) -> Result<Vec<Listener>> {
    let mut socket = open(ns)?;
    let mut found = Vec::new();
    for family in [AF_INET, AF_INET6] {
        let ask = Ask::new("list listening sockets", family, TcpState::Listen.bit());
        found
            .extend(dump(&mut socket, &ask, Vec::new, |list, payload| list.extend(parse_listener(payload)))?);
    }
    mark_reuseport(&mut found);
    Ok(found)
}

/// Counts the sockets of a namespace to `dest`, TIME_WAIT among them. The kernel filters, but walks its whole
/// table: some 10 to 20 ms. Sockets that come and go meanwhile may be missed or seen twice.
pub fn count_to(ns: &NetNs, dest: SocketAddr) -> Result<DestinationUse> {
    let dest = SocketAddr::new(dest.ip().to_canonical(), dest.port());
    let filter = destination_filter(dest);
    let mut socket = open(ns)?;
    let mut states = StateCounts::default();
    let mut ports: Vec<(IpAddr, PortSet)> = Vec::new();
    // A dual-stack socket connected to an IPv4-mapped address takes an IPv4 port too.
    let families: &[u8] = if dest.is_ipv4() { &[AF_INET, AF_INET6] } else { &[AF_INET6] };
    for &family in families {
        let states_wanted = ALL_STATES & !TcpState::Listen.bit();
        let ask = Ask { filter: Some(&filter), ..Ask::new("count sockets", family, states_wanted) };
        let found = dump(
            &mut socket,
            &ask,
            || (StateCounts::default(), Vec::new()),
            |sum, payload| {
                let Some(raw) = parse(payload).filter(|raw| raw.remote == dest) else { return };
                sum.0.add(raw.state);
                add_port(&mut sum.1, raw.local);
            },
        )?;
        for (total, count) in states.0.iter_mut().zip(found.0.0) {
            *total = total.saturating_add(count);
        }
        for (ip, set) in found.1 {
            match ports.iter_mut().find(|(known, _)| *known == ip) {
                Some((_, known)) => known.merge(&set),
                None => ports.push((ip, set)),
            }
        }
    }
    let mut by_source: Vec<_> = ports.into_iter().map(|(ip, set)| (ip, set.count(0, u16::MAX))).collect();
    by_source.sort_by_key(|&(_, count)| std::cmp::Reverse(count));
    Ok(DestinationUse { states, by_source })
}

/// Local TCP ports within `first..=last` that some socket of the namespace has, whatever its state or address.
/// Kernels before 6.8 do not list sockets that are bound only.
pub fn local_ports_in_use(ns: &NetNs, first: u16, last: u16) -> Result<u32> {
    let mut socket = open(ns)?;
    let mut all = PortSet::default();
    for family in [AF_INET, AF_INET6] {
        let ask = Ask::new("count local ports", family, ALL_STATES);
        let found = dump(&mut socket, &ask, PortSet::default, |set, payload| {
            if let Some(raw) = parse(payload) {
                set.insert(raw.local.port());
            }
        })?;
        all.merge(&found);
    }
    Ok(all.count(first, last))
}

/// Looks up one connection by its two ends, as seen from the socket that owns `local`. The other end of a
/// connection on this host is found by swapping them (in the backend's namespace).
pub fn connection(ns: &NetNs, local: SocketAddr, remote: SocketAddr) -> Result<Option<Connection>> {
    let (local, remote) = (canonical(local), canonical(remote));
    let mut socket = open(ns)?;
    let mut header = header(netlink::family(local.ip()), ALL_STATES);
    header.extend(id(local, remote));
    let answer = socket.get("look up a socket", SOCK_DIAG_BY_FAMILY, &Body::new(&header), parse);
    let raw = match answer {
        // ENOENT is "no such socket" as well as "no tcp_diag"; a dump fails for the second alone.
        Err(error) if error.errno() == Some(libc::ENOENT) => {
            let ask = Ask::new("look up a socket", AF_INET, TcpState::Listen.bit());
            return dump(&mut socket, &ask, || (), |(), _| ()).map(|()| None);
        }
        other => other?,
    };
    // Without a connection the kernel falls back to the listener.
    Ok(raw.filter(|raw| raw.local == local && raw.remote == remote).and_then(|raw| {
        Some(Connection {
            state: TcpState::from_number(raw.state)?,
            local: raw.local,
            remote: raw.remote,
            recv_q: raw.recv_q,
            send_q: raw.send_q,
            retransmits: raw.retransmits,
            uid: raw.uid,
            inode: raw.inode,
        })
    }))
}

fn canonical(address: SocketAddr) -> SocketAddr {
    SocketAddr::new(address.ip().to_canonical(), address.port())
}

fn open(ns: &NetNs) -> Result<Socket> {
    Socket::open(ns, libc::NETLINK_SOCK_DIAG)
}

/// What a dump asks for.
pub(super) struct Ask<'a> {
    action: &'static str,
    family: u8,
    states: u32,
    filter: Option<&'a [u8]>,
    /// With `struct tcp_info` of each.
    info: bool,
}

impl Ask<'_> {
    pub(super) fn new(action: &'static str, family: u8, states: u32) -> Self {
        Self { action, family, states, filter: None, info: false }
    }

    pub(super) fn with_info(self) -> Self {
        Self { info: true, ..self }
    }
}

pub(super) fn dump<T>(
    socket: &mut Socket,
    ask: &Ask<'_>,
    start: impl Fn() -> T,
    each: impl FnMut(&mut T, &[u8]),
) -> Result<T> {
    let body = request(ask);
    match socket.dump(ask.action, SOCK_DIAG_BY_FAMILY, &body, &start, each) {
        // A kernel without IPv6 has no IPv6 sockets; an IPv4 dump tells whether tcp_diag is there.
        Err(error) if error.errno() == Some(libc::ENOENT) => {
            if ask.family == AF_INET6 && tcp_diag_loaded(socket) {
                return Ok(start());
            }
            Err(error.hint("the kernel lacks tcp_diag: modprobe tcp_diag"))
        }
        other => other,
    }
}

fn tcp_diag_loaded(socket: &mut Socket) -> bool {
    let body = request(&Ask::new("look for tcp_diag", AF_INET, TcpState::Listen.bit()));
    socket.dump("look for tcp_diag", SOCK_DIAG_BY_FAMILY, &body, || (), |(), _| ()).is_ok()
}

/// struct inet_diag_req_v2 up to its sockid.
fn header(family: u8, states: u32) -> Vec<u8> {
    let mut bytes = vec![family, libc::IPPROTO_TCP as u8, 0, 0];
    bytes.extend_from_slice(&states.to_ne_bytes());
    bytes
}

/// struct inet_diag_sockid.
fn id(local: SocketAddr, remote: SocketAddr) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(48);
    bytes.extend_from_slice(&local.port().to_be_bytes());
    bytes.extend_from_slice(&remote.port().to_be_bytes());
    for ip in [local.ip(), remote.ip()] {
        let end = bytes.len() + 16;
        bytes.extend(netlink::octets(ip));
        bytes.resize(end, 0);
    }
    bytes.extend_from_slice(&0_u32.to_ne_bytes());
    // INET_DIAG_NOCOOKIE
    bytes.extend_from_slice(&[0xff; 8]);
    bytes
}

fn request(ask: &Ask<'_>) -> Body {
    let mut bytes = header(ask.family, ask.states);
    if let Some(extensions) = bytes.get_mut(2).filter(|_| ask.info) {
        *extensions = EXT_INFO;
    }
    bytes.resize(56, 0);
    let body = Body::new(&bytes);
    ask.filter.map_or_else(|| Body::new(&bytes), |code| body.attr(REQ_BYTECODE, code))
}

/// One inet_diag_bc_op with its inet_diag_hostcond: "the peer is `dest`".
fn destination_filter(dest: SocketAddr) -> Vec<u8> {
    let address = netlink::octets(dest.ip());
    let length = u8::try_from(12 + address.len()).unwrap_or(0);
    let mut code = vec![BC_D_COND, length];
    // A jump of 4 past the end is the kernel's "no match".
    code.extend_from_slice(&(u16::from(length) + 4).to_ne_bytes());
    code.extend_from_slice(&[netlink::family(dest.ip()), u8::try_from(address.len() * 8).unwrap_or(0), 0, 0]);
    code.extend_from_slice(&i32::from(dest.port()).to_ne_bytes());
    code.extend(address);
    code
}

/// struct inet_diag_msg, with IPv4-mapped addresses made IPv4 for connections.
pub(super) struct Raw {
    state: u8,
    retransmits: u8,
    pub(super) local: SocketAddr,
    pub(super) remote: SocketAddr,
    interface: u32,
    recv_q: u32,
    send_q: u32,
    uid: u32,
    pub(super) inode: u32,
}

pub(super) fn parse(payload: &[u8]) -> Option<Raw> {
    let family = netlink::u8_at(payload, 0)?;
    let end = |port, address| {
        let ip = netlink::ip_at(payload, address, family)?;
        Some(SocketAddr::new(ip.to_canonical(), netlink::be16_at(payload, port)?))
    };
    Some(Raw {
        state: netlink::u8_at(payload, 1)?,
        retransmits: netlink::u8_at(payload, 3)?,
        local: end(4, 8)?,
        remote: end(6, 24)?,
        interface: netlink::u32_at(payload, 40)?,
        recv_q: netlink::u32_at(payload, 56)?,
        send_q: netlink::u32_at(payload, 60)?,
        uid: netlink::u32_at(payload, 64)?,
        inode: netlink::u32_at(payload, 68)?,
    })
}

fn parse_listener(payload: &[u8]) -> Option<Listener> {
    let raw = parse(payload).filter(|raw| raw.state == TcpState::Listen as u8)?;
    let v6only = netlink::attrs(payload, MESSAGE)
        .any(|(kind, value)| kind == DIAG_SKV6ONLY && value.first() == Some(&1));
    Some(Listener {
        local: raw.local,
        inode: raw.inode,
        recv_q: raw.recv_q,
        send_q: raw.send_q,
        uid: raw.uid,
        v6only,
        reuseport: false,
        bound_if: (raw.interface != 0).then_some(raw.interface),
    })
}

fn mark_reuseport(listeners: &mut [Listener]) {
    let mut keys: Vec<_> = listeners.iter().map(|one| (one.local, one.bound_if)).collect();
    keys.sort_unstable();
    for listener in listeners {
        let key = (listener.local, listener.bound_if);
        let first = keys.partition_point(|other| *other < key);
        listener.reuseport = keys.get(first + 1) == Some(&key);
    }
}

fn add_port(sets: &mut Vec<(IpAddr, PortSet)>, local: SocketAddr) {
    // A host with more addresses than this towards one destination is not short of ports.
    const MOST: usize = 64;
    if let Some((_, set)) = sets.iter_mut().find(|(ip, _)| *ip == local.ip()) {
        set.insert(local.port());
    } else if sets.len() < MOST {
        let mut set = PortSet::default();
        set.insert(local.port());
        sets.push((local.ip(), set));
    }
}

/// 65,536 bits.
struct PortSet(Box<[u64]>);

impl Default for PortSet {
    fn default() -> Self {
        Self(vec![0; 1024].into_boxed_slice())
    }
}

impl PortSet {
    fn insert(&mut self, port: u16) {
        if let Some(word) = self.0.get_mut(usize::from(port / 64)) {
            *word |= 1 << (port % 64);
        }
    }

    fn merge(&mut self, other: &Self) {
        for (word, more) in self.0.iter_mut().zip(&other.0) {
            *word |= more;
        }
    }

    fn count(&self, first: u16, last: u16) -> u32 {
        let has =
            |port: u16| self.0.get(usize::from(port / 64)).is_some_and(|word| word >> (port % 64) & 1 == 1);
        u32::try_from((first..=last).filter(|&port| has(port)).count()).unwrap_or(u32::MAX)
    }
}

#[cfg(test)]
#[path = "sockdiag_tests.rs"]
mod tests;
