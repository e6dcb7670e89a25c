//! A rule in words, where no tool of the machine says it: as nft would write it, as far as this program knows its
//! parts, and as iptables would.

use std::{
    collections::BTreeMap,
    fmt::Write as _,
    net::{Ipv4Addr, Ipv6Addr},
};

use super::{Expr, Header, Reject, Rule, Verdict, Xt, expr::meta_key, packet::TCP, xt};

/// What a register holds.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    Address,
    Port,
    Name,
    Index,
    Number,
    Protocol,
    Family,
    State,
    Other,
}

/// The rule as nft would write it, roughly: parts that this program cannot spell stand in brackets by their name.
#[must_use]
pub fn rule_text(rule: &Rule) -> String {
    let mut registers: BTreeMap<usize, (String, Kind)> = BTreeMap::new();
    let mut words: Vec<String> = Vec::new();
    let other = || ("[value]".to_owned(), Kind::Other);
    for expr in &rule.exprs {
        match expr {
            Expr::Payload { base, offset, len, dst } => {
                registers.insert(*dst, payload(*base, *offset, *len));
            }
            Expr::Meta { key, dst } => {
                registers.insert(*dst, meta(*key));
            }
            Expr::Ct { key: 0, dst } => {
                registers.insert(*dst, ("ct state".to_owned(), Kind::State));
            }
            Expr::Ct { key, dst } => {
                registers.insert(*dst, (format!("ct [{key}]"), Kind::Other));
            }
            Expr::Unknown { name, dst } => {
                registers.insert(*dst, (format!("[{name}]"), Kind::Other));
            }
            Expr::Immediate { dst, .. } => {
                registers.insert(*dst, other());
            }
            Expr::Bitwise { src, dst, mask, .. } => {
                let (label, kind) = registers.get(src).cloned().unwrap_or_else(other);
                let label = match (kind, state_names(mask)) {
                    (Kind::State, Some(names)) => format!("{label} {names}"),
                    (Kind::Address, _) => format!("{label} & {}", value(mask, kind)),
                    _ => format!("{label} & 0x{}", hex(mask)),
                };
                registers.insert(*dst, (label, kind));
            }
            Expr::Byteorder { src, dst, .. } => {
                let held = registers.get(src).cloned().unwrap_or_else(other);
                registers.insert(*dst, held);
            }
            Expr::Compare { src, op, data } => {
                let (label, kind) = registers.get(src).cloned().unwrap_or_else(other);
                // nft shows neither: what follows needs them.
                let implied = *op == 0 && matches!(kind, Kind::Family | Kind::Protocol);
                if implied && (kind == Kind::Family || data.first() == Some(&TCP)) {
                    continue;
                }
                let masked = label.contains("ct state ") && *op == 1 && data.iter().all(|b| *b == 0);
                if masked {
                    words.push(label);
                    continue;
                }
                let sign = ["", "!= ", "< ", "<= ", "> ", ">= "];
                let sign = usize::try_from(*op).ok().and_then(|op| sign.get(op)).unwrap_or(&"? ");
                words.push(format!("{label} {sign}{}", value(data, kind)));
            }
            Expr::Range { src, from, to, invert } => {
                let (label, kind) = registers.get(src).cloned().unwrap_or_else(other);
                let sign = if *invert { "!= " } else { "" };
                words.push(format!("{label} {sign}{}-{}", value(from, kind), value(to, kind)));
            }
            Expr::Lookup { set, src, dst, invert } => {
                let (label, _) = registers.get(src).cloned().unwrap_or_else(other);
                let sign = if *invert { "!= " } else { "" };
                match dst {
                    Some(dst) => {
                        registers.insert(*dst, (format!("{label} map @{set}"), Kind::Other));
                    }
                    None => words.push(format!("{label} {sign}@{set}")),
                }
            }
            Expr::Verdict(verdict) => words.push(verdict_text(verdict)),
            Expr::Reject(reject) => words.push(reject_text(*reject)),
            Expr::Statement(name) | Expr::MayBreak(name) | Expr::Opaque(name) => words.push(name.clone()),
            Expr::Match(ext) => words.push(match_text(ext, false)),
            Expr::Target(ext) => words.push(format!("-j {}", target_text(ext, false))),
            Expr::Header(_) => {}
        }
    }
    words.retain(|word| !word.is_empty());
    words.join(" ")
}

fn payload(base: u32, offset: usize, len: usize) -> (String, Kind) {
    let (label, kind) = match (base, offset, len) {
        (1, 12, 4) => ("ip saddr", Kind::Address),
        (1, 16, 4) => ("ip daddr", Kind::Address),
        (1, 8, 16) => ("ip6 saddr", Kind::Address),
        (1, 24, 16) => ("ip6 daddr", Kind::Address),
        (1, 9, 1) => ("ip protocol", Kind::Protocol),
        (1, 6, 1) => ("ip6 nexthdr", Kind::Protocol),
        (2, 0, 2) => ("tcp sport", Kind::Port),
        (2, 2, 2) => ("tcp dport", Kind::Port),
        (2, 13, 1) => ("tcp flags", Kind::Other),
        _ => {
            return (
                format!(
                    "@{},{},{}",
                    ["ll", "nh", "th"].get(base as usize).unwrap_or(&"?"),
                    offset * 8,
                    len * 8
                ),
                Kind::Other,
            );
        }
    };
    (label.to_owned(), kind)
}

fn meta(key: u32) -> (String, Kind) {
    let (label, kind) = match key {
        meta_key::MARK => ("meta mark", Kind::Number),
        meta_key::IIF => ("iif", Kind::Index),
        meta_key::OIF => ("oif", Kind::Index),
        meta_key::IIFNAME => ("iifname", Kind::Name),
        meta_key::OIFNAME => ("oifname", Kind::Name),
        meta_key::SKUID => ("meta skuid", Kind::Number),
        meta_key::SKGID => ("meta skgid", Kind::Number),
        meta_key::NFPROTO => ("meta nfproto", Kind::Family),
        meta_key::L4PROTO => ("meta l4proto", Kind::Protocol),
        _ => return (format!("meta [{key}]"), Kind::Other),
    };
    (label.to_owned(), kind)
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |mut text, byte| {
        // Writing to a String cannot fail.
        let _ = write!(text, "{byte:02x}");
        text
    })
}

fn value(data: &[u8], kind: Kind) -> String {
    let number = || data.get(..4)?.try_into().ok().map(u32::from_ne_bytes);
    let found = match kind {
        Kind::Address => address(data),
        Kind::Port => {
            data.get(..2).and_then(|b| b.try_into().ok()).map(|b| u16::from_be_bytes(b).to_string())
        }
        Kind::Name => {
            let end = data.iter().position(|b| *b == 0);
            let name = String::from_utf8_lossy(data.get(..end.unwrap_or(data.len())).unwrap_or_default());
            Some(format!(
                "\"{}{}\"",
                name.escape_default(),
                if end.is_none() && data.len() < 16 { "*" } else { "" }
            ))
        }
        Kind::Index | Kind::Number => number().map(|n| n.to_string()),
        Kind::Protocol => data.first().map(|p| if *p == TCP { "tcp".to_owned() } else { p.to_string() }),
        Kind::State => state_names(data),
        Kind::Family | Kind::Other => None,
    };
    found.unwrap_or_else(|| format!("0x{}", hex(data)))
}

fn address(bytes: &[u8]) -> Option<String> {
    if let Ok(four) = <[u8; 4]>::try_from(bytes) {
        return Some(Ipv4Addr::from(four).to_string());
    }
    <[u8; 16]>::try_from(bytes).ok().map(|bytes| Ipv6Addr::from(bytes).to_string())
}

fn state_names(mask: &[u8]) -> Option<String> {
    let bits = u32::from_ne_bytes(mask.try_into().ok()?);
    let names = ["invalid", "established", "related", "new"];
    let found: Vec<&str> =
        (0..).zip(names).filter(|(bit, _)| bits >> bit & 1 == 1).map(|(_, name)| name).collect();
    (!found.is_empty()).then(|| found.join(","))
}

fn verdict_text(verdict: &Verdict) -> String {
    match verdict {
        Verdict::Drop => "drop".to_owned(),
        Verdict::Accept => "accept".to_owned(),
        Verdict::Stolen => "[stolen]".to_owned(),
        Verdict::Queue => "queue".to_owned(),
        Verdict::Continue => String::new(),
        Verdict::Jump(to) => format!("jump {to}"),
        Verdict::Goto(to) => format!("goto {to}"),
        Verdict::Return => "return".to_owned(),
    }
}

fn reject_text(reject: Reject) -> String {
    match reject {
        Reject::Reset => "reject with tcp reset".to_owned(),
        Reject::Icmp(code) => format!("reject with icmp code {code}"),
        Reject::Icmpx(code) => {
            let names = ["no-route", "port-unreachable", "host-unreachable", "admin-prohibited"];
            format!("reject with icmpx {}", names.get(usize::from(code)).unwrap_or(&"[type]"))
        }
    }
}

/// A legacy rule as `iptables -S` would write it, behind `-A CHAIN`.
#[must_use]
pub fn xt_text(rule: &Rule, v6: bool) -> String {
    let mut words = Vec::new();
    for expr in &rule.exprs {
        match expr {
            Expr::Header(header) => words.extend(header_text(header)),
            Expr::Match(ext) => words.push(match_text(ext, v6)),
            Expr::Target(ext) => words.push(format!("-j {}", target_text(ext, v6))),
            Expr::Verdict(Verdict::Goto(to)) => words.push(format!("-g {to}")),
            Expr::Verdict(Verdict::Jump(to)) => words.push(format!("-j {to}")),
            Expr::Verdict(verdict) => words.push(match verdict {
                Verdict::Continue => String::new(),
                verdict => format!("-j {}", verdict_text(verdict).to_uppercase()),
            }),
            _ => {}
        }
    }
    words.retain(|word| !word.is_empty());
    words.join(" ")
}

fn header_text(header: &Header) -> Vec<String> {
    let mut words = Vec::new();
    for (flag, (at, mask, invert)) in [("-s", &header.source), ("-d", &header.destination)] {
        if mask.iter().any(|m| *m != 0) {
            let ones: u32 = mask.iter().map(|m| m.count_ones()).sum();
            let not = if *invert { "! " } else { "" };
            words.push(format!("{not}{flag} {}/{ones}", address(at).unwrap_or_default()));
        }
    }
    for (flag, (name, mask, invert)) in [("-i", &header.input), ("-o", &header.output)] {
        let len = mask.iter().filter(|m| **m != 0).count();
        if len > 0 {
            let shown = name.split(|b| *b == 0).next().unwrap_or_default();
            // The mask covers the NUL of a whole name.
            let more = if len > shown.len() { "" } else { "+" };
            let not = if *invert { "! " } else { "" };
            words.push(format!("{not}{flag} {}{more}", String::from_utf8_lossy(shown).escape_default()));
        }
    }
    match header.protocol {
        (0, _) => {}
        (6, invert) => words.push(format!("{}-p tcp", if invert { "! " } else { "" })),
        (other, invert) => words.push(format!("{}-p {other}", if invert { "! " } else { "" })),
    }
    words
}

fn u16_at(info: &[u8], at: usize) -> u16 {
    info.get(at..at + 2).and_then(|b| b.try_into().ok()).map_or(0, u16::from_ne_bytes)
}

fn match_text(ext: &Xt, _v6: bool) -> String {
    let span = |from: u16, to: u16| if from == to { from.to_string() } else { format!("{from}:{to}") };
    let info = &ext.info;
    match (ext.name.as_str(), ext.revision) {
        ("tcp", 0) => {
            let invert = info.get(11).copied().unwrap_or(0);
            let mut text = "-m tcp".to_owned();
            for (flag, at, bit) in [("--sport", 0, 1), ("--dport", 4, 2)] {
                let (from, to) = (u16_at(info, at), u16_at(info, at + 2));
                if (from, to) != (0, u16::MAX) {
                    let not = if invert & bit == 0 { "" } else { " !" };
                    text.push_str(&format!("{not} {flag} {}", span(from, to)));
                }
            }
            text
        }
        ("comment", _) => {
            let end = info.iter().position(|b| *b == 0).unwrap_or(info.len());
            let text = String::from_utf8_lossy(info.get(..end).unwrap_or_default());
            format!("-m comment --comment \"{}\"", text.escape_default())
        }
        (name, _) => format!("-m {name} […]"),
    }
}

fn target_text(ext: &Xt, v6: bool) -> String {
    if ext.name != "REJECT" {
        return ext.name.clone();
    }
    let with = match xt::reject(&ext.info, v6) {
        Some(Reject::Reset) => "tcp-reset",
        Some(Reject::Icmp(code)) => match (v6, code) {
            (false, 0) => "icmp-net-unreachable",
            (false, 1) => "icmp-host-unreachable",
            (false, 2) => "icmp-proto-unreachable",
            (false, 3) => "icmp-port-unreachable",
            (false, 9) => "icmp-net-prohibited",
            (false, 10) => "icmp-host-prohibited",
            (false, 13) => "icmp-admin-prohibited",
            (true, 0) => "icmp6-no-route",
            (true, 1) => "icmp6-adm-prohibited",
            (true, 3) => "icmp6-addr-unreachable",
            (true, 4) => "icmp6-port-unreachable",
            _ => return "REJECT".to_owned(),
        },
        Some(Reject::Icmpx(_)) | None => return "REJECT".to_owned(),
    };
    format!("REJECT --reject-with {with}")
}
