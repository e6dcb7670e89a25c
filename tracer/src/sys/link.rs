//! Interfaces, own addresses and neighbours of a namespace, by rtnetlink.

use std::fmt;
use std::net::IpAddr;

use super::error::Result;
use super::netlink::{self, AF_INET, AF_INET6, Body, Socket};
use super::netns::NetNs;

const RTM_GETLINK: u16 = 18;
const RTM_GETADDR: u16 = 22;
const RTM_GETNEIGH: u16 = 30;
const IFINFOMSG: usize = 16;
const IFADDRMSG: usize = 8;
const NDMSG: usize = 12;
const IFLA_IFNAME: u16 = 3;
const IFLA_MTU: u16 = 4;
const IFLA_OPERSTATE: u16 = 16;
const IFLA_CARRIER: u16 = 33;
const IFLA_XDP: u16 = 43;
const IFLA_XDP_ATTACHED: u16 = 2;
const IFA_ADDRESS: u16 = 1;
const IFA_LOCAL: u16 = 2;
const NDA_DST: u16 = 1;
const NDA_LLADDR: u16 = 2;
const NDA_IFINDEX: u16 = 8;

/// An interface.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Link {
    /// Its index in the namespace.
    pub index: u32,
    /// Its name.
    pub name: String,
    /// IFF_UP: an administrator switched it on.
    pub up: bool,
    /// Whether the other side is there; `None` when the driver does not say.
    pub carrier: Option<bool>,
    /// RFC 2863 state: 6 is up, 2 down, 0 unknown (as for lo).
    pub operstate: Option<u8>,
    /// MTU in bytes.
    pub mtu: Option<u32>,
    /// An XDP program is attached: it can drop packets before the network stack sees them.
    pub xdp: bool,
}

/// An address of this namespace.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Address {
    /// Index of its interface.
    pub index: u32,
    /// The address.
    pub ip: IpAddr,
    /// Length of its subnet's prefix.
    pub prefix: u8,
    /// IPv6 that cannot be used yet, or ever: duplicate address detection runs or has failed.
    pub tentative: bool,
}

/// State of a neighbour entry (NUD_*).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum NeighbourState {
    /// Asked, no answer yet.
    Incomplete,
    /// Answered lately.
    Reachable,
    /// Answered once; will be checked when used.
    Stale,
    /// Used, check about to begin.
    Delay,
    /// Being checked.
    Probe,
    /// Did not answer: packets to it give EHOSTUNREACH.
    Failed,
    /// Needs no resolution (lo, tunnels).
    NoArp,
    /// Set by an administrator.
    Permanent,
    /// No state.
    None,
}

impl NeighbourState {
    fn from_bits(bits: u16) -> Self {
        match bits {
            0x01 => Self::Incomplete,
            0x02 => Self::Reachable,
            0x04 => Self::Stale,
            0x08 => Self::Delay,
            0x10 => Self::Probe,
            0x20 => Self::Failed,
            0x40 => Self::NoArp,
            0x80 => Self::Permanent,
            _ => Self::None,
        }
    }

    /// The word `ip neigh` prints.
    pub fn name(self) -> &'static str {
        match self {
            Self::Incomplete => "INCOMPLETE",
            Self::Reachable => "REACHABLE",
            Self::Stale => "STALE",
            Self::Delay => "DELAY",
            Self::Probe => "PROBE",
            Self::Failed => "FAILED",
            Self::NoArp => "NOARP",
            Self::Permanent => "PERMANENT",
            Self::None => "NONE",
        }
    }
}

/// An entry of the neighbour table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Neighbour {
    /// The neighbour's address.
    pub ip: IpAddr,
    /// State.
    pub state: NeighbourState,
    /// Its link-layer address, if it is known.
    pub lladdr: Option<Vec<u8>>,
    /// Index of the interface.
    pub index: u32,
    /// Name of the interface.
    pub dev: String,
}

impl fmt::Display for Neighbour {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} dev {}", self.ip, self.dev)?;
        if let Some(lladdr) = &self.lladdr {
            let hex: Vec<String> = lladdr.iter().map(|byte| format!("{byte:02x}")).collect();
            write!(f, " lladdr {}", hex.join(":"))?;
        }
        write!(f, " {}", self.state.name())
    }
}

/// The interface with this index.
pub fn link(ns: &NetNs, index: u32) -> Result<Option<Link>> {
    link_on(&mut open(ns)?, index)
}

pub(super) fn link_on(socket: &mut Socket, index: u32) -> Result<Option<Link>> {
    let mut header = [0; IFINFOMSG];
    put(&mut header, 4, &index.to_ne_bytes());
    match socket.get("look up an interface", RTM_GETLINK, &Body::new(&header), parse_link) {
        Err(error) if error.errno() == Some(libc::ENODEV) => Ok(None),
        other => other,
    }
}

/// All interfaces.
pub fn links(ns: &NetNs) -> Result<Vec<Link>> {
    let body = Body::new(&[0; IFINFOMSG]);
    open(ns)?.dump("list interfaces", RTM_GETLINK, &body, Vec::new, |list, payload| {
        list.extend(parse_link(payload));
    })
}

/// The namespace's own addresses.
pub fn addresses(ns: &NetNs) -> Result<Vec<Address>> {
    let body = Body::new(&[0; IFADDRMSG]);
    open(ns)?.dump("list addresses", RTM_GETADDR, &body, Vec::new, |list, payload| {
        list.extend(parse_address(payload));
    })
}

/// The neighbour entries for an address: none, or one for each interface that has tried it.
/// With `index` the kernel looks at that interface alone.
pub fn neighbours(ns: &NetNs, ip: IpAddr, index: Option<u32>) -> Result<Vec<Neighbour>> {
    let ip = ip.to_canonical();
    let mut socket = open(ns)?.strict();
    let mut header = [0; NDMSG];
    header[0] = if ip.is_ipv4() { AF_INET } else { AF_INET6 };
    let mut body = Body::new(&header);
    if let Some(index) = index {
        body = body.attr(NDA_IFINDEX, &index.to_ne_bytes());
    }
    let mut found =
        socket.dump("list neighbours", RTM_GETNEIGH, &body, Vec::new, |list: &mut Vec<_>, payload| {
            list.extend(
                parse_neighbour(payload).filter(|one| one.ip == ip && index.is_none_or(|i| i == one.index)),
            );
        })?;
    for one in &mut found {
        one.dev = link_on(&mut socket, one.index)?.map(|link| link.name).unwrap_or_default();
    }
    Ok(found)
}

pub(super) fn open(ns: &NetNs) -> Result<Socket> {
    Socket::open(ns, libc::NETLINK_ROUTE)
}

/// Writes into a fixed header; out of bounds is left out.
pub(super) fn put(header: &mut [u8], offset: usize, value: &[u8]) {
    for (to, from) in header.iter_mut().skip(offset).zip(value) {
        *to = *from;
    }
}

fn parse_link(payload: &[u8]) -> Option<Link> {
    let flags = netlink::u32_at(payload, 8)?;
    let mut found = Link {
        index: netlink::u32_at(payload, 4)?,
        name: String::new(),
        up: flags & 1 != 0,
        carrier: None,
        operstate: None,
        mtu: None,
        xdp: false,
    };
    for (kind, value) in netlink::attrs(payload, IFINFOMSG) {
        match kind {
            IFLA_IFNAME => found.name = netlink::name(value),
            IFLA_MTU => found.mtu = netlink::u32_at(value, 0),
            IFLA_OPERSTATE => found.operstate = netlink::u8_at(value, 0),
            IFLA_XDP => {
                found.xdp = netlink::attrs(value, 0)
                    .any(|(kind, value)| kind == IFLA_XDP_ATTACHED && netlink::u8_at(value, 0) != Some(0));
            }
            IFLA_CARRIER => found.carrier = netlink::u8_at(value, 0).map(|byte| byte != 0),
            _ => {}
        }
    }
    Some(found)
}

fn parse_address(payload: &[u8]) -> Option<Address> {
    let mut ip = None;
    for (kind, value) in netlink::attrs(payload, IFADDRMSG) {
        // On point-to-point interfaces IFA_ADDRESS is the other side and IFA_LOCAL the own one.
        if kind == IFA_LOCAL || (kind == IFA_ADDRESS && ip.is_none()) {
            ip = netlink::ip(value);
        }
    }
    // IFA_F_TENTATIVE 0x40, IFA_F_DADFAILED 0x08.
    let tentative = netlink::u8_at(payload, 2)? & 0x48 != 0;
    Some(Address {
        index: netlink::u32_at(payload, 4)?,
        ip: ip?,
        prefix: netlink::u8_at(payload, 1)?,
        tentative,
    })
}

fn parse_neighbour(payload: &[u8]) -> Option<Neighbour> {
    let mut ip = None;
    let mut lladdr = None;
    for (kind, value) in netlink::attrs(payload, NDMSG) {
        match kind {
            NDA_DST => ip = netlink::ip(value),
            NDA_LLADDR => lladdr = Some(value.to_vec()),
            _ => {}
        }
    }
    let state = NeighbourState::from_bits(netlink::u16_at(payload, 8)?);
    Some(Neighbour { ip: ip?, state, lladdr, index: netlink::u32_at(payload, 4)?, dev: String::new() })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sys::testing;

    #[test]
    fn links_and_addresses() {
        let Some(ns) = testing::namespace() else { return };
        testing::run(
            &ns,
            "ip link add v0 type veth peer name v1; ip addr add 10.9.9.1/24 dev v0; ip link set v0 up",
        );
        let all = links(&ns).unwrap();
        let v0 = all.iter().find(|link| link.name == "v0").unwrap();
        assert_eq!((v0.up, v0.carrier), (true, Some(false)));
        assert_eq!(link(&ns, v0.index).unwrap().unwrap(), *v0);
        assert_eq!(link(&ns, 999).unwrap(), None);
        let own = addresses(&ns).unwrap();
        assert!(
            own.iter().any(|one| one.ip == IpAddr::from([10, 9, 9, 1])
                && one.prefix == 24
                && one.index == v0.index)
        );
        assert!(own.iter().any(|one| one.ip == IpAddr::from([127, 0, 0, 1])));
    }

    #[test]
    fn an_unanswered_neighbour_fails() {
        let Some(ns) = testing::namespace() else { return };
        testing::run(
            &ns,
            "ip link add v0 type veth peer name v1; ip addr add 10.9.9.1/24 dev v0; \
             ip link set v0 up; ip link set v1 up; cd /proc/sys/net/ipv4/neigh/v0; \
             echo 1 >mcast_solicit; echo 20 >retrans_time_ms; echo 0 >/proc/sys/net/ipv6/conf/all/accept_dad; \
             ip neigh add 10.9.9.3 lladdr 02:00:00:00:00:07 dev v0",
        );
        let ip = IpAddr::from([10, 9, 9, 2]);
        assert!(neighbours(&ns, ip, None).unwrap().is_empty());
        let failed = testing::poll("a failed neighbour", || {
            let _ = ns.run(|| {
                let socket = std::net::UdpSocket::bind("0.0.0.0:0")?;
                socket.send_to(b"x", (ip, 9))
            });
            neighbours(&ns, ip, None).unwrap().into_iter().find(|one| one.state == NeighbourState::Failed)
        });
        assert_eq!(failed.to_string(), "10.9.9.2 dev v0 FAILED");
        assert_eq!(neighbours(&ns, ip, Some(failed.index)).unwrap().len(), 1);
        assert!(neighbours(&ns, ip, Some(1)).unwrap().is_empty());
        let set = neighbours(&ns, IpAddr::from([10, 9, 9, 3]), None).unwrap();
        assert_eq!(set[0].to_string(), "10.9.9.3 dev v0 lladdr 02:00:00:00:00:07 PERMANENT");
    }

    #[test]
    fn cut_messages_are_refused() {
        for length in 0..NDMSG {
            assert!(parse_neighbour(&vec![0; length]).is_none());
            assert!(parse_address(&vec![0; length.min(7)]).is_none());
            assert!(parse_link(&vec![0; length.min(11)]).is_none());
        }
    }
}
