//! xtables' matches and targets, in legacy tables and in those of iptables-nft, by the data that the kernel has of
//! them (include/uapi/linux/netfilter/xt_*.h). What is not known here fits `Maybe`.

use std::net::IpAddr;

use super::{Base, Hook, Interface, Packet, Reject, Truth, Verdict, Xt, expr::Act, packet::octets};

/// Addresses, protocol and interfaces of a legacy rule (struct ipt_ip, struct ip6t_ip6).
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Header {
    /// Address, mask, inverted.
    pub source: (Vec<u8>, Vec<u8>, bool),
    /// Address, mask, inverted.
    pub destination: (Vec<u8>, Vec<u8>, bool),
    /// Protocol (0: any), inverted.
    pub protocol: (u16, bool),
    /// Name, mask, inverted.
    pub input: (Vec<u8>, Vec<u8>, bool),
    /// Name, mask, inverted.
    pub output: (Vec<u8>, Vec<u8>, bool),
    /// It asks for something else: fragments, the type of service.
    pub more: bool,
}

impl Header {
    pub(super) fn fits(&self, packet: &Packet) -> Truth {
        let address = |at: Option<IpAddr>, (wanted, mask, invert): &(Vec<u8>, Vec<u8>, bool)| {
            if mask.iter().all(|m| *m == 0) {
                return Truth::from(!invert);
            }
            let Some(at) = at else { return Truth::Maybe };
            let same = octets(at).iter().zip(mask).zip(wanted).all(|((a, m), w)| a & m == w & m);
            Truth::from(same).inverted(*invert)
        };
        let device = |at: &Interface, (wanted, mask, invert): &(Vec<u8>, Vec<u8>, bool)| {
            if mask.iter().all(|m| *m == 0) {
                return Truth::from(!invert);
            }
            let name = match at {
                Interface::Known { name, .. } => name.as_bytes(),
                // xtables compares with an empty name.
                Interface::None => b"",
                Interface::Unknown => return Truth::Maybe,
            };
            let at = |bytes: &[u8], i: usize| bytes.get(i).copied().unwrap_or(0);
            let same = (0..16).all(|i| (at(name, i) ^ at(wanted, i)) & at(mask, i) == 0);
            Truth::from(same).inverted(*invert)
        };
        let (protocol, invert) = self.protocol;
        let protocol = Truth::from(protocol == 0 || (protocol == 6) != invert);
        address(packet.source.map(|a| a.ip()), &self.source)
            .and(address(packet.destination.map(|a| a.ip()), &self.destination))
            .and(protocol)
            .and(device(&packet.input, &self.input))
            .and(device(&packet.output, &self.output))
            .and(if self.more { Truth::Maybe } else { Truth::Yes })
    }
}

fn u8_at(bytes: &[u8], at: usize) -> Option<u8> {
    bytes.get(at).copied()
}

fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    bytes.get(at..at + 2)?.try_into().ok().map(u16::from_ne_bytes)
}

fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    bytes.get(at..at + 4)?.try_into().ok().map(u32::from_ne_bytes)
}

/// Whether a match fits. `after_conntrack`: conntrack has seen the packet by then.
pub(super) fn fits(ext: &Xt, packet: &Packet, base: &Base, after_conntrack: bool) -> Truth {
    let found = match (ext.name.as_str(), ext.revision) {
        ("comment", _) => Some(Truth::Yes),
        ("tcp", 0) => tcp(&ext.info, packet),
        // Their rules are for other protocols.
        ("udp" | "icmp" | "icmp6" | "sctp" | "dccp", _) => Some(Truth::No),
        ("multiport", 1) => multiport(&ext.info, packet),
        ("state", 0) => u32_at(&ext.info, 0).map(|mask| states(mask, packet, after_conntrack)),
        ("conntrack", 3) => conntrack(&ext.info, packet, after_conntrack),
        ("owner", 1) => owner(&ext.info, packet, base),
        ("iprange", 1) => iprange(&ext.info, packet),
        _ => None,
    };
    found.unwrap_or(Truth::Maybe)
}

fn port(at: Option<u16>, from: u16, to: u16) -> Truth {
    match at {
        _ if from == 0 && to == u16::MAX => Truth::Yes,
        Some(port) => Truth::from((from..=to).contains(&port)),
        None => Truth::Maybe,
    }
}

fn ports(packet: &Packet) -> (Option<u16>, Option<u16>) {
    (packet.source.map(|a| a.port()), packet.destination.map(|a| a.port()))
}

/// struct xt_tcp.
fn tcp(info: &[u8], packet: &Packet) -> Option<Truth> {
    let invert = u8_at(info, 11)?;
    let (source, destination) = ports(packet);
    let flags = packet.flags().bitwise(&[u8_at(info, 9)?], &[0]).equals(&[u8_at(info, 10)?]);
    let option = if u8_at(info, 8)? == 0 { Truth::Yes } else { Truth::Maybe };
    Some(
        port(source, u16_at(info, 0)?, u16_at(info, 2)?)
            .inverted(invert & 1 != 0)
            .and(port(destination, u16_at(info, 4)?, u16_at(info, 6)?).inverted(invert & 2 != 0))
            .and(flags.inverted(invert & 4 != 0))
            .and(option),
    )
}

/// struct xt_multiport_v1.
fn multiport(info: &[u8], packet: &Packet) -> Option<Truth> {
    let (which, count) = (u8_at(info, 0)?, usize::from(u8_at(info, 1)?));
    let (source, destination) = ports(packet);
    let mut fits = Truth::No;
    let mut at = 0;
    while at < count.min(15) {
        let from = u16_at(info, 2 + at * 2)?;
        let mut to = from;
        if u8_at(info, 32 + at)? != 0 && at + 1 < count {
            at += 1;
            to = u16_at(info, 2 + at * 2)?;
        }
        at += 1;
        let one = match which {
            0 => port(source, from, to),
            1 => port(destination, from, to),
            _ => port(source, from, to).or(port(destination, from, to)),
        };
        fits = fits.or(one);
    }
    Some(fits.inverted(u8_at(info, 47)? != 0))
}

fn states(mask: u32, packet: &Packet, after_conntrack: bool) -> Truth {
    match packet.states(after_conntrack) {
        Some(states) if states & mask == 0 => Truth::No,
        Some(states) if states & !mask == 0 => Truth::Yes,
        _ => Truth::Maybe,
    }
}

/// struct xt_conntrack_mtinfo3, if it asks for states alone.
fn conntrack(info: &[u8], packet: &Packet, after_conntrack: bool) -> Option<Truth> {
    const STATE: u16 = 1;
    /// Without those of translation, which are no states.
    const PLAIN: u32 = 0x3f;
    let mask = u32::from(u16_at(info, 150)?);
    if u16_at(info, 146)? != STATE || mask & !PLAIN != 0 {
        return None;
    }
    Some(states(mask, packet, after_conntrack).inverted(u16_at(info, 148)? & STATE != 0))
}

/// struct xt_owner_match_info.
fn owner(info: &[u8], packet: &Packet, base: &Base) -> Option<Truth> {
    if !matches!(base.hook, Some(Hook::Output | Hook::Postrouting)) {
        return None;
    }
    let (uid, gid) = packet.owner?;
    let (asks, invert) = (u8_at(info, 16)?, u8_at(info, 17)?);
    if asks & !3 != 0 {
        return None;
    }
    let mut fits = Truth::Yes;
    for (bit, id, at) in [(1, uid, 0), (2, gid, 8)] {
        if asks & bit != 0 {
            let inside = (u32_at(info, at)?..=u32_at(info, at + 4)?).contains(&id);
            fits = fits.and(Truth::from(inside).inverted(invert & bit != 0));
        }
    }
    Some(fits)
}

/// struct xt_iprange_mtinfo.
fn iprange(info: &[u8], packet: &Packet) -> Option<Truth> {
    let flags = u8_at(info, 64)?;
    let len = if packet.v6 { 16 } else { 4 };
    let mut fits = Truth::Yes;
    for (asks, inverts, address, at) in [(1, 16, packet.source, 0), (2, 32, packet.destination, 32)] {
        if flags & asks != 0 {
            let address = octets(address?.ip());
            let (from, to) = (info.get(at..at + len)?, info.get(at + 16..at + 16 + len)?);
            let inside = from <= address.as_slice() && address.as_slice() <= to;
            fits = fits.and(Truth::from(inside).inverted(flags & inverts != 0));
        }
    }
    Some(fits)
}

/// How a REJECT target answers (enum ipt_reject_with, enum ip6t_reject_with).
#[must_use]
pub(super) fn reject(info: &[u8], v6: bool) -> Option<Reject> {
    let with = u32_at(info, 0)?;
    Some(match (v6, with) {
        (false, 7) | (true, 6) => Reject::Reset,
        (false, 0..=3) | (true, 0..=4) => Reject::Icmp(u8::try_from(with).ok()?),
        (false, 5) => Reject::Icmp(9),
        (false, 6) => Reject::Icmp(10),
        (false, 8) => Reject::Icmp(13),
        (true, 7) => Reject::Icmp(5),
        (true, 8) => Reject::Icmp(6),
        _ => return None,
    })
}

/// What a target does.
pub(super) fn act(ext: &Xt, v6: bool) -> Act {
    Act::Verdict(match ext.name.as_str() {
        "REJECT" => return Act::Reject(reject(&ext.info, v6)),
        "LOG" | "NFLOG" | "MARK" | "CONNMARK" | "TRACE" | "CT" | "NOTRACK" | "TCPMSS" | "TOS" | "DSCP"
        | "TTL" | "HL" | "CLASSIFY" | "AUDIT" | "SET" | "SECMARK" | "CONNSECMARK" | "CHECKSUM" | "ECN"
        | "LED" | "RATEEST" | "TEE" | "TCPOPTSTRIP" | "IDLETIMER" | "HMARK" => Verdict::Continue,
        "DNAT" | "SNAT" | "MASQUERADE" | "REDIRECT" | "NETMAP" => Verdict::Accept,
        "NFQUEUE" => Verdict::Queue,
        _ => return Act::Anything,
    })
}
