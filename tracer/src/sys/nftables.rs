//! nf_tables' rules of a network namespace, as the kernel has them (nfnetlink).
//!
//! Nothing is asked where nf_tables is not there: the question alone would load the module. The caller knows.

use std::collections::BTreeSet;

use super::error::{Error, Result};
use super::netlink::{self, Attrs, Body, Socket, attr, be32_at};
use super::netns::NetNs;
use crate::firewall::{
    Base, Chain, Data, Element, Engine, Expr, Family, Hook, Reject, Rule, Ruleset, Set, Verdict, Xt,
};

/// NFNL_SUBSYS_NFTABLES << 8.
pub(super) const SUBSYSTEM: u16 = 0x0a00;
const GET_TABLE: u16 = SUBSYSTEM | 1;
const GET_CHAIN: u16 = SUBSYSTEM | 4;
const GET_RULE: u16 = SUBSYSTEM | 7;
const GET_SET: u16 = SUBSYSTEM | 10;
const GET_ELEMENTS: u16 = SUBSYSTEM | 13;
const GET_GENERATION: u16 = SUBSYSTEM | 16;
/// struct nfgenmsg.
pub(super) const NFGENMSG: usize = 4;
/// NFTA_LIST_ELEM.
const LIST_ELEM: u16 = 1;
/// Tries to read everything within one generation.
const ATTEMPTS: u32 = 3;
/// NFT_TABLE_F_DORMANT.
const DORMANT: u32 = 1;

/// The number of the ruleset's generation: another one means that something was changed.
///
/// # Errors
/// If the kernel does not answer.
pub fn generation(ns: &NetNs) -> Result<u32> {
    let mut socket = Socket::open(ns, libc::NETLINK_NETFILTER)?;
    read_generation(&mut socket)
}

fn read_generation(socket: &mut Socket) -> Result<u32> {
    const GEN_ID: u16 = 1;
    let found =
        socket.get("ask for nf_tables' generation", GET_GENERATION, &Body::new(&[0; NFGENMSG]), |p| {
            be32_at(attr(p.get(NFGENMSG..)?, GEN_ID)?, 0)
        })?;
    found.ok_or_else(|| Error::malformed("ask for nf_tables' generation", "no number in the answer"))
}

/// Adds every chain and set to `ruleset`.
///
/// # Errors
/// If the kernel does not answer, or the rules keep changing meanwhile.
pub fn read(ns: &NetNs, ruleset: &mut Ruleset) -> Result<()> {
    let mut socket = Socket::open(ns, libc::NETLINK_NETFILTER)?;
    for _ in 0..ATTEMPTS {
        let before = read_generation(&mut socket)?;
        let mut found = Ruleset::default();
        read_once(&mut socket, &mut found)?;
        if read_generation(&mut socket)? == before {
            ruleset.chains.append(&mut found.chains);
            ruleset.sets.append(&mut found.sets);
            ruleset.generation = Some(before);
            return Ok(());
        }
    }
    Err(Error::Interrupted { action: "read nf_tables' rules".to_owned() })
}

fn read_once(socket: &mut Socket, ruleset: &mut Ruleset) -> Result<()> {
    let all = || Body::new(&[0; NFGENMSG]);
    let dormant = socket.dump("list nf_tables' tables", GET_TABLE, &all(), BTreeSet::new, |found, p| {
        found.extend(dormant_table(p));
    })?;
    let asleep = |family: Family, table: &str| dormant.contains(&(family, table.to_owned()));
    let chains = socket.dump("list nf_tables' chains", GET_CHAIN, &all(), Vec::new, |found, p| {
        found.extend(chain(p));
    })?;
    ruleset.chains = chains.into_iter().filter(|c: &Chain| !asleep(c.family, &c.table)).collect();
    let rules = socket.dump("list nf_tables' rules", GET_RULE, &all(), Vec::new, |found, p| {
        found.extend(rule(p));
    })?;
    for (family, table, name, rule) in rules {
        let is_it = |c: &&mut Chain| c.family == family && c.table == table && c.name == name;
        if let Some(chain) = ruleset.chains.iter_mut().find(is_it) {
            chain.rules.push(rule);
        }
    }
    let sets = socket.dump("list nf_tables' sets", GET_SET, &all(), Vec::new, |found, p| {
        found.extend(set(p));
    })?;
    for (key, mut set) in sets {
        let body =
            Body::new(&[key.0.number(), 0, 0, 0]).attr(1, &c_string(&key.1)).attr(2, &c_string(&key.2));
        set.elements =
            socket.dump("list a set of nf_tables", GET_ELEMENTS, &body, Vec::new, |found, payload| {
                found.extend(elements(payload));
            })?;
        ruleset.sets.insert(key, set);
    }
    Ok(())
}

pub(super) fn c_string(text: &str) -> Vec<u8> {
    [text.as_bytes(), &[0]].concat()
}

fn family(payload: &[u8]) -> Option<Family> {
    Family::from_number(*payload.first()?)
}

fn body(payload: &[u8]) -> &[u8] {
    payload.get(NFGENMSG..).unwrap_or_default()
}

fn number(bytes: &[u8], kind: u16) -> Option<u32> {
    be32_at(attr(bytes, kind)?, 0)
}

fn long(bytes: &[u8], kind: u16) -> Option<u64> {
    attr(bytes, kind)?.get(..8)?.try_into().ok().map(u64::from_be_bytes)
}

fn text(bytes: &[u8], kind: u16) -> Option<String> {
    Some(netlink::name(attr(bytes, kind)?))
}

fn dormant_table(payload: &[u8]) -> Option<(Family, String)> {
    let bytes = body(payload);
    (number(bytes, 2)? & DORMANT != 0).then_some((family(payload)?, text(bytes, 1)?))
}

/// NFTA_CHAIN_*.
fn chain(payload: &[u8]) -> Option<Chain> {
    const HOOK: u16 = 4;
    let bytes = body(payload);
    let family = family(payload)?;
    let base = match attr(bytes, HOOK) {
        None => None,
        Some(hook) => Some(Base {
            hook: (!matches!(family, Family::Netdev | Family::Bridge))
                .then(|| number(hook, 1).and_then(Hook::from_number))
                .flatten(),
            priority: number(hook, 2)?.cast_signed(),
            policy_drop: number(bytes, 5) == Some(0),
            nat: text(bytes, 7).as_deref() == Some("nat"),
        }),
    };
    Some(Chain {
        engine: Engine::Nftables,
        family,
        table: text(bytes, 1)?,
        name: text(bytes, 3)?,
        base,
        rules: Vec::new(),
    })
}

/// NFTA_RULE_*.
fn rule(payload: &[u8]) -> Option<(Family, String, String, Rule)> {
    const USERDATA: u16 = 7;
    let bytes = body(payload);
    let exprs = attr(bytes, 4).map_or_else(Vec::new, |list| {
        Attrs(list).filter(|(kind, _)| *kind == LIST_ELEM).flat_map(|(_, e)| expressions(e)).collect()
    });
    let comment = attr(bytes, USERDATA).and_then(comment);
    let rule = Rule { handle: long(bytes, 3)?, exprs, comment };
    Some((family(payload)?, text(bytes, 1)?, text(bytes, 2)?, rule))
}

/// libnftnl's type, length, value; type 0 is the comment.
fn comment(mut data: &[u8]) -> Option<String> {
    while let [kind, len, rest @ ..] = data {
        let value = rest.get(..usize::from(*len))?;
        if *kind == 0 {
            return Some(netlink::name(value));
        }
        data = rest.get(usize::from(*len)..)?;
    }
    None
}

/// Registers share 64 bytes: NFT_REG_1 to 4 have 16 each, NFT_REG32_00 to 15 have 4 each. None: the verdict's.
fn register(bytes: &[u8], kind: u16) -> Option<usize> {
    match usize::try_from(number(bytes, kind)?).ok()? {
        n @ 1..=4 => Some((n - 1) * 16),
        n @ 8..=23 => Some((n - 8) * 4),
        _ => None,
    }
}

fn value(bytes: &[u8], kind: u16) -> Option<Vec<u8>> {
    attr(attr(bytes, kind)?, 1).map(<[u8]>::to_vec)
}

/// NFTA_DATA_VERDICT.
fn verdict(data: &[u8]) -> Option<Verdict> {
    let bytes = attr(data, 2)?;
    let to = || text(bytes, 2);
    Some(match number(bytes, 1)?.cast_signed() {
        0 => Verdict::Drop,
        1 => Verdict::Accept,
        2 => Verdict::Stolen,
        // NF_QUEUE carries the queue's number above.
        code if code > 0 && code & 0xff == 3 => Verdict::Queue,
        -1 => Verdict::Continue,
        -3 => Verdict::Jump(to()?),
        -4 => Verdict::Goto(to()?),
        -5 => Verdict::Return,
        // NF_DROP with an errno above.
        code if code & 0xff == 0 => Verdict::Drop,
        _ => return None,
    })
}

fn size(bytes: &[u8], kind: u16) -> Option<usize> {
    usize::try_from(number(bytes, kind)?).ok()
}

/// NFTA_EXPR_NAME, NFTA_EXPR_DATA. What cannot be read is opaque: it may do anything.
fn expressions(bytes: &[u8]) -> Option<Expr> {
    let name = text(bytes, 1)?;
    let data = attr(bytes, 2).unwrap_or_default();
    Some(expression(&name, data).unwrap_or(Expr::Opaque(name)))
}

fn expression(name: &str, data: &[u8]) -> Option<Expr> {
    let unknown = || Expr::Unknown { name: name.to_owned(), dst: 0 };
    Some(match name {
        "immediate" => match register(data, 1) {
            Some(dst) => Expr::Immediate { dst, data: value(data, 2)? },
            None => Expr::Verdict(verdict(attr(data, 2)?)?),
        },
        "cmp" => Expr::Compare { src: register(data, 1)?, op: number(data, 2)?, data: value(data, 3)? },
        "bitwise" => match number(data, 6).unwrap_or(0) {
            0 => Expr::Bitwise {
                src: register(data, 1)?,
                dst: register(data, 2)?,
                mask: value(data, 4)?,
                xor: value(data, 5)?,
            },
            _ => unknown(),
        },
        "byteorder" => Expr::Byteorder {
            src: register(data, 1)?,
            dst: register(data, 2)?,
            len: size(data, 4)?,
            size: size(data, 5)?,
        },
        "payload" => match register(data, 1) {
            Some(dst) => Expr::Payload {
                base: number(data, 2)?,
                offset: size(data, 3)?,
                len: size(data, 4)?.min(64),
                dst,
            },
            None => Expr::Statement("payload set".to_owned()),
        },
        "meta" => match register(data, 1) {
            Some(dst) => Expr::Meta { key: number(data, 2)?, dst },
            None => Expr::Statement("meta set".to_owned()),
        },
        "ct" => match register(data, 1) {
            Some(dst) => Expr::Ct { key: number(data, 2)?, dst },
            None => Expr::Statement("ct set".to_owned()),
        },
        "lookup" => Expr::Lookup {
            set: text(data, 1)?,
            src: register(data, 2)?,
            dst: register(data, 3),
            invert: number(data, 5).unwrap_or(0) & 1 != 0,
        },
        "range" => Expr::Range {
            src: register(data, 1)?,
            from: value(data, 3)?,
            to: value(data, 4)?,
            invert: number(data, 2)? == 1,
        },
        "reject" => match (number(data, 1)?, attr(data, 2).and_then(|c| c.first().copied())) {
            (0, Some(code)) => Expr::Reject(Reject::Icmp(code)),
            (1, _) => Expr::Reject(Reject::Reset),
            (2, Some(code)) => Expr::Reject(Reject::Icmpx(code)),
            _ => return None,
        },
        "match" => Expr::Match(xt(data)?),
        "target" => Expr::Target(xt(data)?),
        "counter" | "log" | "notrack" | "last" | "dup" => Expr::Statement(name.to_owned()),
        // A named counter (1), helper (3), timeout (7), secmark (8) or expectation (9) lets every packet go on.
        "objref" => match number(data, 1) {
            Some(1 | 3 | 7 | 8 | 9) => Expr::Statement("named object".to_owned()),
            _ => Expr::MayBreak("named object".to_owned()),
        },
        "limit" | "quota" | "connlimit" | "dynset" | "flow_offload" | "tproxy" => {
            Expr::MayBreak(name.to_owned())
        }
        "nat" | "masq" | "redir" => Expr::Verdict(Verdict::Accept),
        "fwd" => Expr::Verdict(Verdict::Stolen),
        "queue" => Expr::Verdict(Verdict::Queue),
        "fib" | "rt" | "hash" | "numgen" | "socket" | "osf" | "xfrm" | "tunnel" | "exthdr" | "inner" => {
            unknown()
        }
        _ => return None,
    })
}

fn xt(data: &[u8]) -> Option<Xt> {
    Some(Xt { name: text(data, 1)?, revision: number(data, 2)?, info: attr(data, 3)?.to_vec() })
}

/// NFTA_SET_*.
fn set(payload: &[u8]) -> Option<((Family, String, String), Set)> {
    const INTERVAL: u32 = 0x4;
    const FLEETING: u32 = 0x10 | 0x20;
    const DESC: u16 = 9;
    let bytes = body(payload);
    let flags = number(bytes, 3).unwrap_or(0);
    let fields = attr(bytes, DESC)
        .and_then(|desc| attr(desc, 2))
        .map_or_else(Vec::new, |list| Attrs(list).filter_map(|(_, field)| size(field, 1)).collect());
    // Expressions of the set itself run for each of its elements.
    let conditional = attr(bytes, 17).is_some() || attr(bytes, 18).is_some();
    let set = Set {
        interval: flags & INTERVAL != 0,
        fleeting: flags & FLEETING != 0 || conditional,
        fields,
        elements: Vec::new(),
    };
    Some(((family(payload)?, text(bytes, 1)?, text(bytes, 2)?), set))
}

/// NFTA_SET_ELEM_LIST_ELEMENTS.
fn elements(payload: &[u8]) -> Vec<Element> {
    let list = attr(body(payload), 3).unwrap_or_default();
    Attrs(list).filter_map(|(_, bytes)| element(bytes)).collect()
}

/// NFTA_SET_ELEM_*.
fn element(bytes: &[u8]) -> Option<Element> {
    const KEY_END: u16 = 10;
    let flags = number(bytes, 3).unwrap_or(0);
    let catch_all = flags & 2 != 0;
    let data = attr(bytes, 2).and_then(|data| {
        verdict(data).map(Data::Verdict).or_else(|| attr(data, 1).map(|v| Data::Value(v.to_vec())))
    });
    Some(Element {
        key: if catch_all { Vec::new() } else { value(bytes, 1)? },
        key_end: value(bytes, KEY_END),
        interval_end: flags & 1 != 0,
        catch_all,
        data,
        // A counter would do no harm, but a limit decides.
        conditional: attr(bytes, 7).is_some() || attr(bytes, 11).is_some(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hostile_bytes_are_no_trouble() {
        for len in 0..64_usize {
            for byte in [0, 1, 5, 0x80, 0xff] {
                let bytes = vec![byte; len];
                let _ = (chain(&bytes), rule(&bytes), set(&bytes), elements(&bytes), expressions(&bytes));
                let _ = (dormant_table(&bytes), comment(&bytes), verdict(&bytes));
            }
        }
    }

    #[test]
    fn registers_share_their_bytes() {
        let bytes = |n: u32| {
            let mut bytes = vec![8, 0, 1, 0];
            bytes.extend(n.to_be_bytes());
            bytes
        };
        let found: Vec<_> = [0, 1, 4, 8, 9, 23, 24].map(|n| register(&bytes(n), 1)).into();
        assert_eq!(found, [None, Some(0), Some(48), Some(0), Some(4), Some(60), None]);
    }
}
