//! Connection tracking of a namespace: whether a destination was translated, and whether the table is full.
//!
//! Nothing is asked while the nf_conntrack module is absent: the question alone would load it.

use std::net::{IpAddr, SocketAddr};
use std::path::Path;

use super::error::Result;
use super::netlink::{self, Attrs, Body, Socket};
use super::netns::NetNs;
use super::proc;

/// NFNL_SUBSYS_CTNETLINK << 8 | IPCTNL_MSG_CT_GET.
const CT_GET: u16 = 0x0101;
/// NFNL_SUBSYS_CTNETLINK << 8 | IPCTNL_MSG_CT_GET_STATS_CPU.
const CT_GET_STATS_CPU: u16 = 0x0104;
const NFGENMSG: usize = 4;
const CTA_TUPLE_ORIG: u16 = 1;
const CTA_TUPLE_REPLY: u16 = 2;
const CTA_STATUS: u16 = 3;
const CTA_PROTOINFO: u16 = 4;
const CTA_TUPLE_IP: u16 = 1;
const CTA_TUPLE_PROTO: u16 = 2;
const CTA_PROTO_NUM: u16 = 1;
const CTA_PROTO_SRC_PORT: u16 = 2;
const CTA_PROTO_DST_PORT: u16 = 3;
const CTA_PROTOINFO_TCP: u16 = 1;
const CTA_PROTOINFO_TCP_STATE: u16 = 1;
const CTA_STATS_INSERT_FAILED: u16 = 9;
const CTA_STATS_DROP: u16 = 10;
const CTA_STATS_EARLY_DROP: u16 = 11;
const MAX: &str = "/proc/sys/net/netfilter/nf_conntrack_max";
const COUNT: &str = "/proc/sys/net/netfilter/nf_conntrack_count";

/// A tracked TCP connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Entry {
    /// Where answers come from: differs from the original destination after DNAT.
    pub reply_src: SocketAddr,
    /// Where answers go: differs from the original source after SNAT.
    pub reply_dst: SocketAddr,
    /// Its TCP state; `None` when the kernel left it out.
    pub tcp: Option<CtState>,
    /// IPS_* bits.
    pub status: u32,
}

impl Entry {
    /// The kernel has seen packets both ways (IPS_SEEN_REPLY).
    pub fn seen_reply(&self) -> bool {
        self.status & 2 != 0
    }

    /// The real destination, when it is another than the one connected to.
    pub fn translated(&self, dest: SocketAddr) -> Option<SocketAddr> {
        let dest = SocketAddr::new(dest.ip().to_canonical(), dest.port());
        (self.reply_src != dest).then_some(self.reply_src)
    }
}

/// TCP states of conntrack, which are not those of sockets.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum CtState {
    /// No packet judged.
    None,
    /// SYN seen.
    SynSent,
    /// SYN-ACK seen.
    SynRecv,
    /// Both sides agree.
    Established,
    /// A FIN seen.
    FinWait,
    /// The FIN acknowledged.
    CloseWait,
    /// Both FINs seen.
    LastAck,
    /// Closed in order.
    TimeWait,
    /// Reset.
    Close,
    /// Simultaneous open.
    SynSent2,
}

impl CtState {
    fn from_number(number: u8) -> Option<Self> {
        Some(match number {
            0 => Self::None,
            1 => Self::SynSent,
            2 => Self::SynRecv,
            3 => Self::Established,
            4 => Self::FinWait,
            5 => Self::CloseWait,
            6 => Self::LastAck,
            7 => Self::TimeWait,
            8 => Self::Close,
            9 => Self::SynSent2,
            _ => return None,
        })
    }
}

/// How full the table is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Entries of this namespace.
    pub count: u32,
    /// How many there may be; 0 is no limit.
    pub max: u32,
}

impl Limits {
    /// Whether a new connection is refused now ("nf_conntrack: table full, dropping packet"), unless an
    /// unanswered entry can be evicted.
    pub fn full(&self) -> bool {
        self.max != 0 && self.count >= self.max
    }
}

/// Counters since the namespace began. Compare two readings: an old number proves nothing.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Drops {
    /// Packets dropped because no entry could be made: the table was full, or out of memory.
    pub drop: u64,
    /// Entries evicted to make room.
    pub early_drop: u64,
    /// Entries that clashed with another (races, or NAT out of ports).
    pub insert_failed: u64,
}

/// Looks up a TCP connection by its original direction. `None`: not tracked, or no conntrack here.
/// Entries in a conntrack zone other than 0 are not found.
pub fn lookup(ns: &NetNs, source: SocketAddr, dest: SocketAddr) -> Result<Option<Entry>> {
    let (source, dest) = (canonical(source), canonical(dest));
    if source.is_ipv4() != dest.is_ipv4() || !present(ns)? {
        return Ok(None);
    }
    let Some(mut socket) = open(ns)? else { return Ok(None) };
    let body = Body::new(&header(netlink::family(dest.ip())));
    let body = body.nest(CTA_TUPLE_ORIG, |tuple| put_tuple(tuple, source, dest));
    match socket.get("look up a tracked connection", CT_GET, &body, parse_entry) {
        Err(error) if absent(error.errno()) => Ok(None),
        other => other,
    }
}

/// Entries and limit of a namespace; `None` without conntrack.
pub fn limits(ns: &NetNs) -> Result<Option<Limits>> {
    // The sysctls answer for the namespace of the thread that reads them.
    ns.run(|| Some(Limits { count: number(COUNT)?, max: number(MAX)? }))
}

/// Drop counters of a namespace; `None` without conntrack.
pub fn stat_drops(ns: &NetNs) -> Result<Option<Drops>> {
    if !present(ns)? {
        return Ok(None);
    }
    if let Some(mut socket) = open(ns)? {
        let body = Body::new(&header(0));
        let sum = socket.dump("read conntrack counters", CT_GET_STATS_CPU, &body, Drops::default, add_cpu);
        match sum {
            Ok(sum) => return Ok(Some(sum)),
            Err(error) if absent(error.errno()) => {}
            Err(error) => return Err(error),
        }
    }
    // Without nf_conntrack_netlink: the old file, which many kernels leave out.
    ns.run(|| {
        let bytes = proc::read_up_to("/proc/thread-self/net/stat/nf_conntrack", 256 * 1024).ok()?;
        parse_stat(std::str::from_utf8(&bytes).ok()?)
    })
}

fn present(ns: &NetNs) -> Result<bool> {
    ns.run(|| Path::new(MAX).exists())
}

/// `None` when the kernel has no nfnetlink.
fn open(ns: &NetNs) -> Result<Option<Socket>> {
    match Socket::open(ns, libc::NETLINK_NETFILTER) {
        Err(error) if error.errno() == Some(libc::EPROTONOSUPPORT) => Ok(None),
        other => other.map(Some),
    }
}

/// ENOENT: no such entry. The others: nf_conntrack_netlink is not there.
fn absent(errno: Option<i32>) -> bool {
    matches!(errno, Some(libc::ENOENT | libc::EOPNOTSUPP | libc::EINVAL))
}

fn number(path: &str) -> Option<u32> {
    proc::read_trimmed(path).ok()?.parse().ok()
}

fn canonical(address: SocketAddr) -> SocketAddr {
    SocketAddr::new(address.ip().to_canonical(), address.port())
}

/// struct nfgenmsg.
fn header(family: u8) -> [u8; NFGENMSG] {
    [family, 0, 0, 0]
}

fn put_tuple(body: Body, source: SocketAddr, dest: SocketAddr) -> Body {
    // CTA_IP_V4_SRC and V4_DST are 1 and 2, the IPv6 ones 3 and 4.
    let first = if dest.is_ipv4() { 1 } else { 3 };
    let addresses = |inner: Body| {
        inner.attr(first, &netlink::octets(source.ip())).attr(first + 1, &netlink::octets(dest.ip()))
    };
    body.nest(CTA_TUPLE_IP, addresses).nest(CTA_TUPLE_PROTO, |inner| {
        inner
            .attr(CTA_PROTO_NUM, &[libc::IPPROTO_TCP as u8])
            .attr(CTA_PROTO_SRC_PORT, &source.port().to_be_bytes())
            .attr(CTA_PROTO_DST_PORT, &dest.port().to_be_bytes())
    })
}

fn parse_tuple(bytes: &[u8]) -> Option<(SocketAddr, SocketAddr)> {
    let ip = netlink::attr(bytes, CTA_TUPLE_IP)?;
    let protocol = netlink::attr(bytes, CTA_TUPLE_PROTO)?;
    let address = |v4, v6| netlink::attr(ip, v4).or_else(|| netlink::attr(ip, v6)).and_then(netlink::ip);
    let port = |kind| netlink::attr(protocol, kind).and_then(|value| netlink::be16_at(value, 0));
    let end = |ip: Option<IpAddr>, port: Option<u16>| Some(SocketAddr::new(ip?, port?));
    Some((end(address(1, 3), port(CTA_PROTO_SRC_PORT))?, end(address(2, 4), port(CTA_PROTO_DST_PORT))?))
}

fn parse_entry(payload: &[u8]) -> Option<Entry> {
    let bytes = payload.get(NFGENMSG..)?;
    let (reply_src, reply_dst) = parse_tuple(netlink::attr(bytes, CTA_TUPLE_REPLY)?)?;
    let status = netlink::attr(bytes, CTA_STATUS).and_then(|value| netlink::be32_at(value, 0)).unwrap_or(0);
    let tcp = netlink::attr(bytes, CTA_PROTOINFO)
        .and_then(|value| netlink::attr(value, CTA_PROTOINFO_TCP))
        .and_then(|value| netlink::attr(value, CTA_PROTOINFO_TCP_STATE))
        .and_then(|value| CtState::from_number(*value.first()?));
    Some(Entry { reply_src, reply_dst, tcp, status })
}

fn add_cpu(sum: &mut Drops, payload: &[u8]) {
    for (kind, value) in Attrs(payload.get(NFGENMSG..).unwrap_or_default()) {
        let count = netlink::be32_at(value, 0).map_or(0, u64::from);
        match kind {
            CTA_STATS_INSERT_FAILED => sum.insert_failed += count,
            CTA_STATS_DROP => sum.drop += count,
            CTA_STATS_EARLY_DROP => sum.early_drop += count,
            _ => {}
        }
    }
}

/// Sums /proc/net/stat/nf_conntrack: a header, then one line of hexadecimal numbers for each CPU.
fn parse_stat(text: &str) -> Option<Drops> {
    let mut lines = text.lines();
    let names: Vec<&str> = lines.next()?.split_ascii_whitespace().collect();
    let mut sum = Drops::default();
    let mut seen = false;
    for line in lines {
        for (name, value) in names.iter().zip(line.split_ascii_whitespace()) {
            let Ok(value) = u64::from_str_radix(value, 16) else { continue };
            let total = match *name {
                "drop" => &mut sum.drop,
                "early_drop" => &mut sum.early_drop,
                "insert_failed" => &mut sum.insert_failed,
                _ => continue,
            };
            *total = total.saturating_add(value);
            seen = true;
        }
    }
    seen.then_some(sum)
}

#[cfg(test)]
mod tests {
    use std::net::{TcpListener, TcpStream};

    use super::*;
    use crate::sys::testing;

    #[test]
    fn stat_columns_by_name() {
        let text = "entries  clashres insert_failed drop early_drop\n1 2 0000000a 1 2\n1 2 1 00000001 f\n";
        assert_eq!(parse_stat(text), Some(Drops { drop: 2, early_drop: 17, insert_failed: 11 }));
        assert_eq!(parse_stat("entries new\n1 2\n"), None);
        assert_eq!(parse_stat(""), None);
    }

    #[test]
    fn dnat_is_seen() {
        let Some(ns) = testing::namespace().filter(|_| testing::has("nft")) else { return };
        let server = ns.run(|| TcpListener::bind("127.0.0.1:0").unwrap()).unwrap();
        let real = server.local_addr().unwrap();
        let port = real.port();
        testing::run(&ns, "nft add table ip t");
        testing::run(&ns, "nft 'add chain ip t o { type nat hook output priority -100; }'");
        testing::run(
            &ns,
            &format!("nft add rule ip t o ip daddr 127.9.9.9 tcp dport 80 dnat to 127.0.0.1:{port}"),
        );
        assert!(limits(&ns).unwrap().unwrap().max > 0);
        let dest: SocketAddr = "127.9.9.9:80".parse().unwrap();
        let client = ns.run(|| TcpStream::connect(dest).unwrap()).unwrap();
        let source = client.local_addr().unwrap();
        let entry = lookup(&ns, source, dest).unwrap().unwrap();
        assert_eq!(entry.translated(dest), Some(real));
        assert_eq!(
            (entry.reply_dst, entry.tcp, entry.seen_reply()),
            (source, Some(CtState::Established), true)
        );
        let straight = ns.run(|| TcpStream::connect(real).unwrap()).unwrap();
        let plain = lookup(&ns, straight.local_addr().unwrap(), real).unwrap().unwrap();
        assert_eq!(plain.translated(real), None);
        assert_eq!(lookup(&ns, "127.0.0.1:1".parse().unwrap(), dest).unwrap(), None);
        assert_eq!(limits(&ns).unwrap().unwrap().count, 2);
        assert!(!limits(&ns).unwrap().unwrap().full());
        assert!(stat_drops(&ns).unwrap().is_some());
    }

    #[test]
    fn hostile_bytes_give_nothing() {
        for length in 0..64 {
            for fill in [0, 4, 0x41, 0xff] {
                assert!(parse_entry(&vec![fill; length]).is_none());
            }
        }
    }
}
