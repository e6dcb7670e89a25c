//! nftrace for one destination: a table of our own marks its SYNs, and the kernel tells of each rule that decides
//! about them (NFNLGRP_NFTRACE).
//!
//! The one thing in this program that changes anything on the system, and only with `--trace-rules`. The table belongs
//! to our socket (NFT_TABLE_F_OWNER, 5.12): the kernel removes it with the socket, whatever ends this process. Older
//! kernels keep it if the process is killed: `remove_leftovers` finds it by its name.

use std::net::SocketAddr;

use super::error::Result;
use super::netlink::{self, Attrs, Body, Socket, attr, be16_at, be32_at, octets};
use super::netns::{self, NetNs};
use super::nftables::{NFGENMSG, SUBSYSTEM, c_string};
use super::proc;
use crate::firewall::Family;

const NEW_TABLE: u16 = SUBSYSTEM;
const GET_TABLE: u16 = SUBSYSTEM | 1;
const DEL_TABLE: u16 = SUBSYSTEM | 2;
const NEW_CHAIN: u16 = SUBSYSTEM | 3;
const NEW_RULE: u16 = SUBSYSTEM | 6;
const TRACE: u16 = SUBSYSTEM | 17;
/// NFNLGRP_NFTRACE.
const GROUP: u32 = 9;
const CREATE: u16 = 0x400;
const EXCLUSIVE: u16 = 0x200;
const APPEND: u16 = 0x800;
/// NFT_TABLE_F_OWNER.
const OWNER: u32 = 2;
/// Before every table of the usual tools (raw is -300), after defragmentation (-400).
const PRIORITY: i32 = -350;
/// Messages read at a time.
const MOST: usize = 256;
/// What our tables are called, with the PID behind it.
const NAME: &str = "why502_";

/// The rule or policy that dropped a packet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Dropper {
    /// Family, table and chain.
    pub chain: (Family, String, String),
    /// None: the chain's policy.
    pub handle: Option<u64>,
}

/// A table that traces; it is removed when this is dropped.
pub struct Armed {
    events: Socket,
    owner: Socket,
    family: Family,
    owned: bool,
    server: SocketAddr,
    reply: bool,
    /// Packets of the flow, by the kernel's number.
    packets: Vec<u32>,
}

impl Armed {
    /// Makes the table in that namespace. `reply`: packets from the server, else to it.
    ///
    /// # Errors
    /// If the kernel refuses; nothing is left then.
    pub fn new(ns: &NetNs, server: SocketAddr, reply: bool) -> Result<Self> {
        let family = if server.is_ipv4() { Family::Ip } else { Family::Ip6 };
        let mut events = Socket::open(ns, libc::NETLINK_NETFILTER)?;
        events.subscribe(GROUP)?;
        let mut owner = Socket::open(ns, libc::NETLINK_NETFILTER)?;
        let mut owned = true;
        if let Err(error) = owner.batch(ACTION, SUBSYSTEM, &table(family, server, reply, OWNER)) {
            // Before 5.12 nobody owns tables.
            if !matches!(error.errno(), Some(libc::EINVAL | libc::EOPNOTSUPP)) {
                return Err(error);
            }
            owned = false;
            owner.batch(ACTION, SUBSYSTEM, &table(family, server, reply, 0))?;
        }
        Ok(Self { events, owner, family, owned, server, reply, packets: Vec::new() })
    }

    /// The table, as nft names it.
    #[must_use]
    pub fn table(&self) -> String {
        format!("{} {}", self.family.name(), table_name())
    }

    /// Who dropped a packet of the flow since the last call.
    pub fn droppers(&mut self) -> Vec<Dropper> {
        let mut found = Vec::new();
        let (server, reply, packets) = (self.server, self.reply, &mut self.packets);
        self.events.events(TRACE, MOST, |payload| {
            let Some(event) = event(payload) else { return };
            if event.flow.is_some_and(|flow| flow.is(server, reply)) && packets.len() < MOST {
                packets.push(event.id);
            }
            if let Some(dropper) = event.dropper.filter(|_| packets.contains(&event.id)) {
                found.push(dropper);
            }
        });
        found
    }
}

impl Drop for Armed {
    fn drop(&mut self) {
        if !self.owned {
            // What is left then is found at the next start.
            let _ = remove(&mut self.owner, self.family, &table_name());
        }
    }
}

const ACTION: &str = "make the table of --trace-rules";

fn table_name() -> String {
    format!("{NAME}{}", std::process::id())
}

fn remove(socket: &mut Socket, family: Family, name: &str) -> Result<()> {
    let body = Body::new(&[family.number(), 0, 0, 0]).attr(1, &c_string(name));
    socket.batch("remove a table of --trace-rules", SUBSYSTEM, &[(DEL_TABLE, 0, body)])
}

/// Removes tables that killed runs have left in any network namespace; tells of each.
pub fn remove_leftovers() -> Vec<String> {
    let mut said = Vec::new();
    for resident in netns::all(4096).unwrap_or_default() {
        let Ok(ns) = resident.open() else { continue };
        let Ok(mut socket) = Socket::open(&ns, libc::NETLINK_NETFILTER) else { continue };
        let all = Body::new(&[0; NFGENMSG]);
        let tables = socket.dump("list nf_tables' tables", GET_TABLE, &all, Vec::new, |found, payload| {
            found.extend(leftover(payload));
        });
        for (family, name) in tables.unwrap_or_default() {
            let place = format!("table {} {name} of an earlier --trace-rules", family.name());
            said.push(match remove(&mut socket, family, &name) {
                Ok(()) => format!("removed {place}"),
                Err(error) => format!("{place} is still there: {error}"),
            });
        }
    }
    said
}

/// One of our tables whose process is no why502 any more.
fn leftover(payload: &[u8]) -> Option<(Family, String)> {
    let family = Family::from_number(*payload.first()?)?;
    let name = netlink::name(attr(payload.get(NFGENMSG..)?, 1)?);
    let pid: u32 = name.strip_prefix(NAME)?.parse().ok()?;
    // One that was killed and that nobody has waited for has still a name, but no executable.
    let is_why502 = proc::exe_name(pid).is_some_and(|exe| exe.starts_with("why502"));
    let alive = pid != std::process::id() && is_why502;
    (!alive).then_some((family, name))
}

fn number(value: u32) -> [u8; 4] {
    value.to_be_bytes()
}

fn table(family: Family, server: SocketAddr, reply: bool, flags: u32) -> Vec<(u16, u16, Body)> {
    let header = [family.number(), 0, 0, 0];
    let name = c_string(&table_name());
    let mut messages =
        vec![(NEW_TABLE, CREATE | EXCLUSIVE, Body::new(&header).attr(1, &name).attr(2, &number(flags)))];
    for (chain, hook) in [("prerouting", 0), ("output", 3)] {
        let chain = c_string(chain);
        let body = Body::new(&header)
            .attr(1, &name)
            .attr(3, &chain)
            .nest(4, |b| b.attr(1, &number(hook)).attr(2, &number(PRIORITY.cast_unsigned())))
            .attr(5, &number(1))
            .attr(7, &c_string("filter"));
        messages.push((NEW_CHAIN, CREATE, body));
        let body =
            Body::new(&header).attr(1, &name).attr(2, &chain).nest(4, |list| rule(list, server, reply));
        messages.push((NEW_RULE, CREATE | APPEND, body));
    }
    messages
}

/// `ip daddr SERVER tcp dport PORT tcp flags & syn != 0 meta nftrace set 1`, or `saddr` and `sport`.
fn rule(list: Body, server: SocketAddr, reply: bool) -> Body {
    const NETWORK: u32 = 1;
    const TRANSPORT: u32 = 2;
    let address = octets(server.ip());
    let width = u32::try_from(address.len()).unwrap_or(0);
    let (protocol_at, source_at) = if server.is_ipv4() { (9, 12) } else { (6, 8) };
    let address_at = if reply { source_at } else { source_at + width };
    let list = load(list, NETWORK, protocol_at, 1);
    let list = compare(list, 0, &[6]);
    let list = load(list, NETWORK, address_at, width);
    let list = compare(list, 0, &address);
    let list = load(list, TRANSPORT, if reply { 0 } else { 2 }, 2);
    let list = compare(list, 0, &server.port().to_be_bytes());
    let list = load(list, TRANSPORT, 13, 1);
    let list = expr(list, "bitwise", |b| {
        b.attr(1, &number(1))
            .attr(2, &number(1))
            .attr(3, &number(1))
            .nest(4, |d| d.attr(1, &[2]))
            .nest(5, |d| d.attr(1, &[0]))
    });
    let list = compare(list, 1, &[0]);
    let list = expr(list, "immediate", |b| b.attr(1, &number(1)).nest(2, |d| d.attr(1, &[1])));
    // NFT_META_NFTRACE.
    expr(list, "meta", |b| b.attr(2, &number(12)).attr(3, &number(1)))
}

fn expr(list: Body, name: &str, fill: impl FnOnce(Body) -> Body) -> Body {
    list.nest(1, |e| e.attr(1, &c_string(name)).nest(2, fill))
}

fn load(list: Body, base: u32, offset: u32, len: u32) -> Body {
    expr(list, "payload", |b| {
        b.attr(1, &number(1)).attr(2, &number(base)).attr(3, &number(offset)).attr(4, &number(len))
    })
}

fn compare(list: Body, op: u32, data: &[u8]) -> Body {
    expr(list, "cmp", |b| b.attr(1, &number(1)).attr(2, &number(op)).nest(3, |d| d.attr(1, data)))
}

/// Addresses of a traced packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Flow {
    source: SocketAddr,
    destination: SocketAddr,
}

impl Flow {
    fn is(&self, server: SocketAddr, reply: bool) -> bool {
        (if reply { self.source } else { self.destination }) == server
    }
}

struct Event {
    id: u32,
    flow: Option<Flow>,
    dropper: Option<Dropper>,
}

/// NFTA_TRACE_*.
fn event(payload: &[u8]) -> Option<Event> {
    const POLICY: u32 = 1;
    const RULE: u32 = 3;
    const DROP: u32 = 0;
    let family = Family::from_number(*payload.first()?);
    let bytes = payload.get(NFGENMSG..)?;
    let number = |kind| attr(bytes, kind).and_then(|value| be32_at(value, 0));
    let text = |kind| attr(bytes, kind).map(netlink::name);
    let verdict = attr(bytes, 5).and_then(|verdict| {
        let (_, code) = Attrs(verdict).find(|(kind, _)| *kind == 1)?;
        be32_at(code, 0)
    });
    let handle = || attr(bytes, 3)?.get(..8)?.try_into().ok().map(u64::from_be_bytes);
    let dropped = |code: Option<u32>| code.is_some_and(|code| code & 0xff == DROP);
    let place = || Some((family?, text(1)?, text(2)?));
    let dropper = match number(4)? {
        RULE if dropped(verdict) => {
            place().zip(handle()).map(|(chain, handle)| Dropper { chain, handle: Some(handle) })
        }
        POLICY if number(16) == Some(DROP) => place().map(|chain| Dropper { chain, handle: None }),
        _ => None,
    };
    Some(Event { id: number(6)?, flow: flow(bytes), dropper })
}

fn flow(bytes: &[u8]) -> Option<Flow> {
    let (network, transport) = (attr(bytes, 8)?, attr(bytes, 9)?);
    let v6 = network.first()? >> 4 == 6;
    let (at, len) = if v6 { (8, 16) } else { (12, 4) };
    let ip = |at: usize| netlink::ip(network.get(at..at + len)?);
    Some(Flow {
        source: SocketAddr::new(ip(at)?, be16_at(transport, 0)?),
        destination: SocketAddr::new(ip(at + len)?, be16_at(transport, 2)?),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sys::testing;

    /// A SYN to nobody, in that namespace.
    fn knock(ns: &NetNs, to: &str) {
        let to: SocketAddr = to.parse().unwrap();
        ns.run(|| drop(std::net::TcpStream::connect_timeout(&to, std::time::Duration::from_millis(100))))
            .unwrap();
    }

    fn tables(ns: &NetNs) -> String {
        let list = || std::process::Command::new("nft").args(["list", "tables"]).output().unwrap();
        String::from_utf8(ns.run(list).unwrap().stdout).unwrap()
    }

    #[test]
    fn the_kernel_names_rule_and_policy_and_nothing_stays() {
        if !testing::has("nft") {
            return;
        }
        let Some(ns) = testing::namespace() else { return };
        testing::run(
            &ns,
            "nft 'table inet t { chain o { type filter hook output priority 0; policy drop; tcp dport 9 accept; \
             tcp dport 7 counter drop; }; }'",
        );
        let before = tables(&ns);
        for (port, handle) in [(7, Some(3)), (8, None)] {
            let server = SocketAddr::from(([127, 0, 0, 1], port));
            let mut armed = Armed::new(&ns, server, false).unwrap();
            assert!(tables(&ns).contains(&table_name()));
            knock(&ns, "127.0.0.1:6");
            knock(&ns, &server.to_string());
            let found = testing::poll("a dropper", || armed.droppers().into_iter().next());
            let chain = (Family::Inet, "t".to_owned(), "o".to_owned());
            assert_eq!(found, Dropper { chain, handle });
            drop(armed);
            testing::poll("the table's end", || (tables(&ns) == before).then_some(()));
        }
        // What a killed run has left goes at the next start, which says so; other tables stay.
        let _resident = testing::Resident::new(&ns);
        testing::run(
            &ns,
            "nft 'table ip why502_4194305 { chain output { type filter hook output priority -350; }; }'",
        );
        testing::run(&ns, "nft add table ip why502_mine");
        let said = remove_leftovers();
        assert!(
            said.iter().any(|s| s.starts_with("removed table ip why502_4194305 of an earlier")),
            "{said:?}"
        );
        assert_eq!(tables(&ns), format!("{before}table ip why502_mine\n"));
    }

    #[test]
    fn leftovers_are_those_of_dead_processes() {
        let payload = |name: &str| {
            let mut bytes = vec![2, 0, 0, 0];
            let value = c_string(name);
            bytes.extend(u16::try_from(value.len() + 4).unwrap().to_ne_bytes());
            bytes.extend(1_u16.to_ne_bytes());
            bytes.extend(value);
            bytes
        };
        assert_eq!(leftover(&payload("why502_4294967295")).unwrap().1, "why502_4294967295");
        assert_eq!(leftover(&payload("why502_")), None);
        assert_eq!(leftover(&payload("why502_x")), None);
        assert_eq!(leftover(&payload("filter")), None);
    }

    #[test]
    fn hostile_events_are_no_trouble() {
        for len in 0..80_usize {
            for byte in [0, 1, 4, 8, 0x45, 0xff] {
                assert!(event(&vec![byte; len]).is_none_or(|e| e.dropper.is_none()));
            }
        }
    }
}
