//! Which routing entry or rule refuses a destination.
//!
//! The kernel answers a refused look-up with an errno and nothing else, even under `RTM_F_FIB_MATCH`. The
//! errno says of which type the entry is, so that one filtered dump for each table that the rules name finds it.

use std::fmt;
use std::net::IpAddr;

use super::error::Result;
use super::link;
use super::netlink::{self, Body, Socket};
use super::route::{
    Query, RTA_DST, RTA_GATEWAY, RTA_OIF, RTA_TABLE, RTA_VIA, RTM_GETROUTE, RTMSG, RouteKind,
};

const RTM_GETRULE: u16 = 34;
const FIB_RULE_HDR: usize = 12;
const FIB_RULE_INVERT: u32 = 2;
const FRA_DST: u16 = 1;
const FRA_SRC: u16 = 2;
const FRA_IIFNAME: u16 = 3;
const FRA_GOTO: u16 = 4;
const FRA_PRIORITY: u16 = 6;
const FRA_FWMARK: u16 = 10;
const FRA_SUPPRESS_IFGROUP: u16 = 13;
const FRA_SUPPRESS_PREFIXLEN: u16 = 14;
const FRA_TABLE: u16 = 15;
const FRA_FWMASK: u16 = 16;
const FRA_PAD: u16 = 18;
const FRA_UID_RANGE: u16 = 20;
const FRA_PROTOCOL: u16 = 21;
const FRA_IP_PROTO: u16 = 22;

/// A routing entry, or a rule that decides by itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FibEntry {
    /// Its type.
    pub kind: RouteKind,
    /// Prefix; `None` for a rule.
    pub prefix: Option<(IpAddr, u8)>,
    /// Next hop.
    pub gateway: Option<IpAddr>,
    /// Index of the interface.
    pub oif: Option<u32>,
    /// Name of the interface.
    pub dev: Option<String>,
    /// Number of the table; 254 is main, 255 local.
    pub table: u32,
    /// Priority of the rule, when the rule decides.
    pub rule: Option<u32>,
}

impl fmt::Display for FibEntry {
    /// As `ip route show` writes it: `prohibit 10.9.0.0/16`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(priority) = self.rule {
            return write!(f, "{} by rule {priority}", self.kind.name());
        }
        if self.kind != RouteKind::Unicast {
            write!(f, "{} ", self.kind.name())?;
        }
        match self.prefix {
            Some((ip, length)) if length > 0 => write!(f, "{ip}/{length}")?,
            _ => f.write_str("default")?,
        }
        if let Some(gateway) = self.gateway {
            write!(f, " via {gateway}")?;
        }
        if let Some(dev) = &self.dev {
            write!(f, " dev {dev}")?;
        }
        match self.table {
            // The kernel says main or local for local routes, depending on whether it has merged the two.
            0 | 254 | 255 => Ok(()),
            other => write!(f, " table {other}"),
        }
    }
}

/// Parses an RTM_NEWROUTE.
pub(super) fn parse_entry(payload: &[u8]) -> Option<FibEntry> {
    let family = netlink::u8_at(payload, 0)?;
    let length = netlink::u8_at(payload, 1)?;
    let kind = RouteKind::from_number(netlink::u8_at(payload, 7)?)?;
    let mut ip = netlink::ip_at(&[0; 16], 0, family)?;
    let table = netlink::u8_at(payload, 4)?.into();
    let mut entry = FibEntry { kind, prefix: None, gateway: None, oif: None, dev: None, table, rule: None };
    for (attribute, value) in netlink::attrs(payload, RTMSG) {
        match attribute {
            RTA_DST => ip = netlink::ip(value)?,
            RTA_OIF => entry.oif = netlink::u32_at(value, 0),
            RTA_GATEWAY => entry.gateway = netlink::ip(value),
            RTA_VIA => entry.gateway = value.get(2..).and_then(netlink::ip),
            RTA_TABLE => entry.table = netlink::u32_at(value, 0)?,
            _ => {}
        }
    }
    entry.prefix = Some((ip, length));
    Some(entry)
}

/// Fills in the interface's name.
pub(super) fn name_interface(socket: &mut Socket, entry: &mut FibEntry) {
    let link = entry.oif.and_then(|index| link::link_on(socket, index).ok().flatten());
    entry.dev = link.map(|link| link.name);
}

/// The entry or rule that makes the kernel answer `errno`; `None` when no single one explains it.
pub(super) fn refusing(socket: &mut Socket, query: &Query, errno: i32) -> Result<Option<FibEntry>> {
    let dest = query.dest.to_canonical();
    let mut tables = Vec::new();
    let mut floor = 0;
    for rule in rules(socket, netlink::family(dest))? {
        if rule.priority < floor {
            continue;
        }
        match rule.applies(query) {
            Some(true) => {}
            Some(false) => continue,
            // A selector that is not understood: naming any later entry would be a guess.
            None => return Ok(None),
        }
        match rule.action {
            Action::Table(table) => {
                if !tables.contains(&table) {
                    tables.push(table);
                    if let Some(entry) = covering(socket, dest, table, errno)? {
                        return Ok(Some(entry));
                    }
                }
            }
            Action::Goto(priority) => floor = priority,
            Action::Nothing => {}
            Action::Refuse(kind, answer) => {
                let entry = FibEntry {
                    kind,
                    prefix: None,
                    gateway: None,
                    oif: None,
                    dev: None,
                    table: 0,
                    rule: Some(rule.priority),
                };
                return Ok((answer == errno).then_some(entry));
            }
        }
    }
    Ok(None)
}

/// The longest prefix of a refusing type around `dest` in one table.
fn covering(socket: &mut Socket, dest: IpAddr, table: u32, errno: i32) -> Result<Option<FibEntry>> {
    let kinds = [RouteKind::Blackhole, RouteKind::Unreachable, RouteKind::Prohibit];
    let Some(kind) = kinds.into_iter().find(|kind| kind.errno() == Some(errno)) else { return Ok(None) };
    let mut header = [0; RTMSG];
    // Since 4.20 the kernel filters by table and type itself.
    link::put(&mut header, 0, &[netlink::family(dest)]);
    link::put(&mut header, 7, &[kind as u8]);
    let body = Body::new(&header).attr(RTA_TABLE, &table.to_ne_bytes());
    let found = socket.dump(
        "list routes",
        RTM_GETROUTE,
        &body,
        || None::<FibEntry>,
        |best, payload| {
            let Some(entry) = parse_entry(payload).filter(|one| one.kind == kind && one.table == table)
            else {
                return;
            };
            let length = |one: &FibEntry| one.prefix.map_or(0, |(_, length)| length);
            let fits = entry.prefix.is_some_and(|prefix| covers(prefix, dest));
            if fits && best.as_ref().is_none_or(|known| length(known) < length(&entry)) {
                // The kernel reports lo for entries that refuse IPv6; it is not part of them.
                *best = Some(FibEntry { oif: None, ..entry });
            }
        },
    );
    match found {
        // No such table.
        Err(error) if error.errno() == Some(libc::ENOENT) => Ok(None),
        other => other,
    }
}

/// Whether an address lies in a prefix.
pub fn covers((prefix, length): (IpAddr, u8), ip: IpAddr) -> bool {
    match (prefix, ip) {
        (IpAddr::V4(prefix), IpAddr::V4(ip)) => {
            let mask = u32::MAX.checked_shl(32_u32.saturating_sub(length.into())).unwrap_or(0);
            prefix.to_bits() & mask == ip.to_bits() & mask
        }
        (IpAddr::V6(prefix), IpAddr::V6(ip)) => {
            let mask = u128::MAX.checked_shl(128_u32.saturating_sub(length.into())).unwrap_or(0);
            prefix.to_bits() & mask == ip.to_bits() & mask
        }
        _ => false,
    }
}

enum Action {
    Table(u32),
    Goto(u32),
    Nothing,
    Refuse(RouteKind, i32),
}

struct Rule {
    priority: u32,
    action: Action,
    invert: bool,
    dest: Option<(IpAddr, u8)>,
    source: Option<(IpAddr, u8)>,
    mark: Option<(u32, u32)>,
    uids: Option<(u32, u32)>,
    /// Only for packets that came in by an interface other than lo.
    forwarded: bool,
    /// IP protocol.
    protocol: Option<u8>,
    /// It has a selector or a suppressor that is not modelled here.
    opaque: bool,
}

impl Rule {
    /// Whether it holds for a packet of this host; `None` when that cannot be told.
    fn applies(&self, query: &Query) -> Option<bool> {
        let dest = query.dest.to_canonical();
        let mark = query.mark.unwrap_or(0);
        let known = self.dest.is_none_or(|prefix| covers(prefix, dest))
            && self.mark.is_none_or(|(value, mask)| mark & mask == value & mask)
            && self.protocol.is_none_or(|protocol| i32::from(protocol) == libc::IPPROTO_TCP)
            && !self.forwarded;
        let mut unknown = self.opaque;
        let mut rest = true;
        match (self.source, query.source) {
            (Some(prefix), Some(source)) => rest &= covers(prefix, source.to_canonical()),
            // The kernel compares 0.0.0.0 while no source is chosen.
            (Some((_, length)), None) => rest &= length == 0,
            (None, _) => {}
        }
        match (self.uids, query.uid) {
            (Some((first, last)), Some(uid)) => rest &= (first..=last).contains(&uid),
            // Without RTA_UID the kernel took this process's own user.
            // SAFETY: geteuid(2) cannot fail and takes nothing.
            (Some((first, last)), None) => rest &= (first..=last).contains(&unsafe { libc::geteuid() }),
            (None, _) => {}
        }
        if !(known && rest) {
            unknown &= self.invert;
            return if unknown { None } else { Some(self.invert) };
        }
        if unknown { None } else { Some(!self.invert) }
    }
}

fn rules(socket: &mut Socket, family: u8) -> Result<Vec<Rule>> {
    let mut header = [0; FIB_RULE_HDR];
    header[0] = family;
    let body = Body::new(&header);
    socket.dump("list routing rules", RTM_GETRULE, &body, Vec::new, |list, payload| {
        list.extend(parse_rule(payload));
    })
}

fn parse_rule(payload: &[u8]) -> Option<Rule> {
    let mut table = u32::from(netlink::u8_at(payload, 4)?);
    let action = netlink::u8_at(payload, 7)?;
    let mut rule = Rule {
        priority: 0,
        action: Action::Nothing,
        invert: netlink::u32_at(payload, 8)? & FIB_RULE_INVERT != 0,
        dest: None,
        source: None,
        mark: None,
        uids: None,
        forwarded: false,
        protocol: None,
        // tos
        opaque: netlink::u8_at(payload, 3)? != 0,
    };
    let (mut mark, mut mask, mut target) = (None, u32::MAX, 0);
    let (dest_length, source_length) = (netlink::u8_at(payload, 1)?, netlink::u8_at(payload, 2)?);
    for (kind, value) in netlink::attrs(payload, FIB_RULE_HDR) {
        match kind {
            FRA_DST => rule.dest = netlink::ip(value).map(|ip| (ip, dest_length)),
            FRA_SRC => rule.source = netlink::ip(value).map(|ip| (ip, source_length)),
            FRA_IIFNAME => rule.forwarded = value != b"lo\0",
            FRA_GOTO => target = netlink::u32_at(value, 0)?,
            FRA_PRIORITY => rule.priority = netlink::u32_at(value, 0)?,
            FRA_FWMARK => mark = netlink::u32_at(value, 0),
            FRA_FWMASK => mask = netlink::u32_at(value, 0)?,
            FRA_TABLE => table = netlink::u32_at(value, 0)?,
            FRA_UID_RANGE => rule.uids = netlink::u32_at(value, 0).zip(netlink::u32_at(value, 4)),
            FRA_IP_PROTO => rule.protocol = netlink::u8_at(value, 0),
            // All bits set means that nothing is suppressed. A suppressor only ever skips usable routes.
            FRA_SUPPRESS_IFGROUP | FRA_SUPPRESS_PREFIXLEN | FRA_PAD | FRA_PROTOCOL => {}
            _ => rule.opaque = true,
        }
    }
    rule.mark = mark.map(|mark| (mark, mask));
    rule.action = match action {
        1 => Action::Table(table),
        2 => Action::Goto(target),
        6 => Action::Refuse(RouteKind::Blackhole, libc::EINVAL),
        // fib_rules answer ENETUNREACH where a route of this type answers EHOSTUNREACH.
        7 => Action::Refuse(RouteKind::Unreachable, libc::ENETUNREACH),
        8 => Action::Refuse(RouteKind::Prohibit, libc::EACCES),
        _ => Action::Nothing,
    };
    Some(rule)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn prefixes() {
        let ip = |text: &str| text.parse::<IpAddr>().unwrap();
        assert!(covers((ip("10.0.0.0"), 8), ip("10.255.0.1")));
        assert!(!covers((ip("10.0.0.0"), 9), ip("10.255.0.1")));
        assert!(covers((ip("0.0.0.0"), 0), ip("1.2.3.4")));
        assert!(covers((ip("1.2.3.4"), 32), ip("1.2.3.4")));
        assert!(covers((ip("::"), 0), ip("fd00::1")) && !covers((ip("::"), 0), ip("1.2.3.4")));
        assert!(!covers((ip("fd00::1"), 128), ip("fd00::2")));
        assert!(covers((ip("10.0.0.1"), 255), ip("10.0.0.1")));
    }

    #[test]
    fn opaque_rules_are_not_guessed() {
        let mut payload = vec![2, 0, 0, 0, 254, 0, 0, 1, 0, 0, 0, 0];
        let query = Query::to("10.0.0.1".parse().unwrap());
        assert_eq!(parse_rule(&payload).unwrap().applies(&query), Some(true));
        // FRA_OIFNAME
        payload.extend_from_slice(&[7, 0, 17, 0, b'x', b'0', 0, 0]);
        assert_eq!(parse_rule(&payload).unwrap().applies(&query), None);
        for end in 0..FIB_RULE_HDR {
            assert!(parse_rule(&payload[..end]).is_none());
        }
    }
}
