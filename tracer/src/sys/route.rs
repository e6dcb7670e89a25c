//! What the kernel would do with a packet to an address: `ip route get`, with the entry that decides.

use std::fmt;
use std::io;
use std::net::IpAddr;

use super::error::Result;
use super::fib::{self, FibEntry};
use super::link::{self, Link};
use super::netlink::{self, Body, Socket};
use super::netns::NetNs;
use super::sockdiag;

pub(super) const RTM_GETROUTE: u16 = 26;
pub(super) const RTMSG: usize = 12;
pub(super) const RTA_DST: u16 = 1;
const RTA_SRC: u16 = 2;
pub(super) const RTA_OIF: u16 = 4;
pub(super) const RTA_GATEWAY: u16 = 5;
const RTA_PREFSRC: u16 = 7;
pub(super) const RTA_TABLE: u16 = 15;
const RTA_MARK: u16 = 16;
pub(super) const RTA_VIA: u16 = 18;
const RTA_UID: u16 = 25;
const RTM_F_FIB_MATCH: u32 = 0x2000;

/// A question about a route.
#[derive(Clone, Copy, Debug)]
pub struct Query {
    /// Destination.
    pub dest: IpAddr,
    /// Source address the socket is bound to (`proxy_bind`).
    pub source: Option<IpAddr>,
    /// User id of the socket's owner, for `uidrange` rules.
    pub uid: Option<u32>,
    /// SO_MARK, for `fwmark` rules.
    pub mark: Option<u32>,
}

impl Query {
    /// A plain question.
    pub fn to(dest: IpAddr) -> Self {
        Self { dest, source: None, uid: None, mark: None }
    }
}

/// Route types with the kernel's numbers (RTN_*).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum RouteKind {
    /// Gateway or direct.
    Unicast = 1,
    /// An address of this namespace.
    Local = 2,
    /// Broadcast.
    Broadcast = 3,
    /// Anycast.
    Anycast = 4,
    /// Multicast.
    Multicast = 5,
    /// Silently refused: connect gives EINVAL.
    Blackhole = 6,
    /// Refused: EHOSTUNREACH.
    Unreachable = 7,
    /// Refused: EACCES.
    Prohibit = 8,
    /// "Not in this table": the next rule decides.
    Throw = 9,
}

impl RouteKind {
    const ALL: [Self; 9] = [
        Self::Unicast,
        Self::Local,
        Self::Broadcast,
        Self::Anycast,
        Self::Multicast,
        Self::Blackhole,
        Self::Unreachable,
        Self::Prohibit,
        Self::Throw,
    ];

    /// The type with this number.
    pub fn from_number(number: u8) -> Option<Self> {
        Self::ALL.get(usize::from(number).checked_sub(1)?).copied()
    }

    /// The word `ip route` uses.
    pub fn name(self) -> &'static str {
        match self {
            Self::Unicast => "unicast",
            Self::Local => "local",
            Self::Broadcast => "broadcast",
            Self::Anycast => "anycast",
            Self::Multicast => "multicast",
            Self::Blackhole => "blackhole",
            Self::Unreachable => "unreachable",
            Self::Prohibit => "prohibit",
            Self::Throw => "throw",
        }
    }

    /// The errno connect(2) gives for a route of this type.
    pub fn errno(self) -> Option<i32> {
        match self {
            Self::Blackhole => Some(libc::EINVAL),
            Self::Unreachable => Some(libc::EHOSTUNREACH),
            Self::Prohibit => Some(libc::EACCES),
            Self::Unicast | Self::Local | Self::Broadcast | Self::Anycast | Self::Multicast | Self::Throw => {
                None
            }
        }
    }
}

/// A usable route.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Route {
    /// Its type: unicast, local, broadcast or multicast.
    pub kind: RouteKind,
    /// The interface packets leave by.
    pub oif: Option<Link>,
    /// The next hop; `None` when the destination is on the link.
    pub gateway: Option<IpAddr>,
    /// The source address the kernel picks.
    pub prefsrc: Option<IpAddr>,
}

/// The kernel's answer.
#[derive(Clone, Debug)]
pub struct Lookup {
    /// The route, or the errno that connect(2) gets.
    pub result: std::result::Result<Route, i32>,
    /// The table entry or rule that decided; `None` when it cannot be told.
    pub matched: Option<FibEntry>,
}

impl fmt::Display for Lookup {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (&self.result, &self.matched) {
            (_, Some(entry)) => write!(f, "{entry}"),
            (Ok(route), None) => f.write_str(route.kind.name()),
            (Err(errno), None) => write!(f, "no route: {}", io::Error::from_raw_os_error(*errno)),
        }
    }
}

/// Asks the kernel for the route to a destination. `Err` means that the question failed, not the route.
pub fn lookup(ns: &NetNs, query: &Query) -> Result<Lookup> {
    let mut socket = link::open(ns)?.strict();
    let action = "look up a route";
    let answer = match socket.get(action, RTM_GETROUTE, &request(query, 0), parse) {
        Ok(Some(answer)) => answer,
        Ok(None) => return Err(super::Error::malformed(action, "the kernel's answer holds no route")),
        Err(error) => match error.errno().filter(|errno| ROUTE_ERRNOS.contains(errno)) {
            Some(errno) => return Ok(refused(&mut socket, query, errno)),
            None => return Err(error),
        },
    };
    // IPv6 answers with the refusing route itself.
    if let Some(errno) = answer.kind.errno() {
        return Ok(refused(&mut socket, query, errno));
    }
    let matched = socket.get(action, RTM_GETROUTE, &request(query, RTM_F_FIB_MATCH), fib::parse_entry);
    let mut matched = matched.ok().flatten();
    if let Some(entry) = &mut matched {
        fib::name_interface(&mut socket, entry);
    }
    let oif = match answer.oif {
        Some(index) => link::link_on(&mut socket, index)?,
        None => None,
    };
    let route = Route { kind: answer.kind, oif, gateway: answer.gateway, prefsrc: answer.prefsrc };
    Ok(Lookup { result: Ok(route), matched })
}

/// Whether an address belongs to the namespace: packets to it never leave. Asks the routing tables, so that
/// all of 127.0.0.0/8 and AnyIP prefixes count.
pub fn is_local(ns: &NetNs, ip: IpAddr) -> Result<bool> {
    let query = Query::to(sockdiag::effective(ip));
    let mut socket = link::open(ns)?;
    match socket.get("look up a route", RTM_GETROUTE, &request(&query, 0), parse) {
        Ok(answer) => Ok(answer.is_some_and(|answer| answer.kind == RouteKind::Local)),
        Err(error) if error.errno().is_some_and(|errno| ROUTE_ERRNOS.contains(&errno)) => Ok(false),
        Err(error) => Err(error),
    }
}

/// What a failed look-up can answer; other errnos are about the question.
const ROUTE_ERRNOS: [i32; 6] =
    [libc::ENETUNREACH, libc::EHOSTUNREACH, libc::EACCES, libc::EINVAL, libc::EAGAIN, libc::EOPNOTSUPP];

fn refused(socket: &mut Socket, query: &Query, errno: i32) -> Lookup {
    let errno = match errno {
        // A `throw` that no later rule caught; connect(2) gets ENETUNREACH.
        libc::EAGAIN => libc::ENETUNREACH,
        // rtnetlink without that family (ipv6.disable=1); socket(2) gets EAFNOSUPPORT.
        libc::EOPNOTSUPP => libc::EAFNOSUPPORT,
        other => other,
    };
    // Only the text of the evidence hangs on this: failing to name the entry is no failure.
    let matched = fib::refusing(socket, query, errno).ok().flatten();
    Lookup { result: Err(errno), matched }
}

fn request(query: &Query, flags: u32) -> Body {
    let bits = |ip: IpAddr| if ip.is_ipv4() { 32 } else { 128 };
    let dest = query.dest.to_canonical();
    let source = query.source.map(|ip| ip.to_canonical()).filter(|ip| ip.is_ipv4() == dest.is_ipv4());
    let mut header = [0; RTMSG];
    link::put(&mut header, 0, &[netlink::family(dest), bits(dest), source.map_or(0, bits)]);
    link::put(&mut header, 8, &flags.to_ne_bytes());
    let mut body = Body::new(&header).attr(RTA_DST, &netlink::octets(dest));
    if let Some(source) = source {
        body = body.attr(RTA_SRC, &netlink::octets(source));
    }
    if let Some(uid) = query.uid {
        body = body.attr(RTA_UID, &uid.to_ne_bytes());
    }
    if let Some(mark) = query.mark {
        body = body.attr(RTA_MARK, &mark.to_ne_bytes());
    }
    body
}

struct Answer {
    kind: RouteKind,
    oif: Option<u32>,
    gateway: Option<IpAddr>,
    prefsrc: Option<IpAddr>,
}

fn parse(payload: &[u8]) -> Option<Answer> {
    let kind = RouteKind::from_number(netlink::u8_at(payload, 7)?)?;
    let mut answer = Answer { kind, oif: None, gateway: None, prefsrc: None };
    for (attribute, value) in netlink::attrs(payload, RTMSG) {
        match attribute {
            RTA_OIF => answer.oif = netlink::u32_at(value, 0),
            RTA_GATEWAY => answer.gateway = netlink::ip(value),
            RTA_VIA => answer.gateway = value.get(2..).and_then(netlink::ip),
            RTA_PREFSRC => answer.prefsrc = netlink::ip(value),
            _ => {}
        }
    }
    Some(answer)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sys::testing;

    fn ask(ns: &NetNs, dest: &str) -> Lookup {
        lookup(ns, &Query::to(dest.parse().unwrap())).unwrap()
    }

    #[test]
    fn every_route_type() {
        let Some(ns) = testing::namespace() else { return };
        testing::run(
            &ns,
            "echo 0 >/proc/sys/net/ipv6/conf/all/accept_dad; ip link add v0 type veth peer name v1; \
             ip link set v0 up; ip link set v1 up; ip addr add 10.9.0.1/24 dev v0; \
             ip addr add fd00:9::1/64 dev v0 nodad; ip route add 10.20.0.0/16 via 10.9.0.2; \
             ip route add prohibit 10.21.0.0/16; ip route add blackhole 10.22.0.0/16; \
             ip route add unreachable 10.23.0.0/16; ip route add prohibit 10.0.0.0/8 metric 9; \
             ip route add table 7 prohibit 10.24.0.0/16; ip rule add to 10.24.0.0/16 lookup 7; \
             ip rule add to 10.25.0.0/16 prohibit; ip rule add uidrange 33-33 lookup 8; \
             ip route add table 8 unreachable default; ip rule add fwmark 5 blackhole; \
             ip -6 route add prohibit fd00:21::/32; ip -6 route add blackhole fd00:22::/32; \
             ip -6 route add unreachable fd00:23::/32",
        );
        let via = ask(&ns, "10.20.3.4");
        let route = via.result.as_ref().unwrap();
        assert_eq!((route.kind, route.gateway), (RouteKind::Unicast, Some(IpAddr::from([10, 9, 0, 2]))));
        assert_eq!(route.prefsrc, Some(IpAddr::from([10, 9, 0, 1])));
        let oif = route.oif.as_ref().unwrap();
        assert!(oif.name == "v0" && oif.up);
        assert_eq!(via.to_string(), "10.20.0.0/16 via 10.9.0.2 dev v0");
        for (dest, errno, text) in [
            ("10.21.1.1", libc::EACCES, "prohibit 10.21.0.0/16"),
            ("10.22.1.1", libc::EINVAL, "blackhole 10.22.0.0/16"),
            ("10.23.1.1", libc::EHOSTUNREACH, "unreachable 10.23.0.0/16"),
            ("10.24.1.1", libc::EACCES, "prohibit 10.24.0.0/16 table 7"),
            ("10.99.1.1", libc::EACCES, "prohibit 10.0.0.0/8"),
            ("192.0.2.1", libc::ENETUNREACH, "no route: Network is unreachable (os error 101)"),
            ("fd00:21::1", libc::EACCES, "prohibit fd00:21::/32"),
            ("fd00:22::1", libc::EINVAL, "blackhole fd00:22::/32"),
            ("fd00:23::1", libc::EHOSTUNREACH, "unreachable fd00:23::/32"),
            ("fd01::1", libc::ENETUNREACH, "no route: Network is unreachable (os error 101)"),
        ] {
            let found = ask(&ns, dest);
            assert_eq!((found.result.clone(), found.to_string().as_str()), (Err(errno), text), "{dest}");
        }
        let rule = ask(&ns, "10.25.1.1");
        assert_eq!(rule.result, Err(libc::EACCES));
        assert!(rule.to_string().starts_with("prohibit by rule "), "{rule}");
        let mut query = Query::to("10.20.3.4".parse().unwrap());
        query.uid = Some(33);
        let found = lookup(&ns, &query).unwrap();
        assert_eq!(
            (found.result.clone(), found.to_string()),
            (Err(libc::EHOSTUNREACH), "unreachable default table 8".into())
        );
        query.uid = None;
        query.mark = Some(5);
        let found = lookup(&ns, &query).unwrap();
        assert_eq!(found.result, Err(libc::EINVAL));
        assert!(found.to_string().starts_with("blackhole by rule "), "{found}");
    }

    #[test]
    fn local_addresses() {
        let Some(ns) = testing::namespace() else { return };
        testing::run(
            &ns,
            "ip link add d0 type veth peer name d1; ip addr add 10.9.0.1/24 dev d0; ip link set d0 up",
        );
        for (ip, expected) in [
            ("127.0.0.1", true),
            ("127.9.9.9", true),
            ("0.0.0.0", true),
            ("::1", true),
            ("::", true),
            ("10.9.0.1", true),
            ("::ffff:10.9.0.1", true),
            ("10.9.0.2", false),
            ("192.0.2.1", false),
        ] {
            assert_eq!(is_local(&ns, ip.parse().unwrap()).unwrap(), expected, "{ip}");
        }
        let found = ask(&ns, "127.0.0.1");
        assert_eq!(found.result.unwrap().kind, RouteKind::Local);
        assert_eq!(found.matched.unwrap().to_string(), "local 127.0.0.1/32 dev lo");
    }
}
