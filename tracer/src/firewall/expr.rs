//! One rule on one packet, as nf_tables runs it (net/netfilter/nf_tables_core.c: nft_do_chain), with bits of which some
//! are unknown.

use super::{
    Base, Bits, Chain, Data, Expr, Hook, Interface, Packet, Reject, Rule, Ruleset, Set, Truth, Verdict,
    packet::TCP, xt,
};

/// What a rule does if it fits.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Act {
    /// A verdict.
    Verdict(Verdict),
    /// An answer, and the packet is dropped; None: which answer is not known.
    Reject(Option<Reject>),
    /// Nobody knows.
    Anything,
}

/// Whether a rule fits, and everything that it may do then.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Outcome {
    pub(super) fits: Truth,
    pub(super) acts: Vec<Act>,
}

/// Bytes of the registers (NFT_REG_1 to NFT_REG_4, which NFT_REG32_00 to NFT_REG32_15 share).
const REGISTERS: usize = 64;
/// NF_IP_PRI_CONNTRACK.
const CONNTRACK: i32 = -200;

pub(super) fn outcome(
    ruleset: &Ruleset,
    chain: &Chain,
    rule: &Rule,
    packet: &Packet,
    base: &Base,
) -> Outcome {
    let mut registers = Bits::unknown(REGISTERS);
    let mut fits = Truth::Yes;
    let mut acts = vec![Act::Verdict(Verdict::Continue)];
    for expr in &rule.exprs {
        let holds = match expr {
            Expr::Immediate { dst, data } => {
                registers.put(*dst, &Bits::known(data));
                Truth::Yes
            }
            Expr::Verdict(Verdict::Continue) | Expr::Statement(_) => Truth::Yes,
            Expr::Verdict(verdict) => return Outcome { fits, acts: vec![Act::Verdict(verdict.clone())] },
            Expr::Reject(reject) => return Outcome { fits, acts: vec![Act::Reject(Some(*reject))] },
            Expr::Compare { src, op, data } => compare(&registers.slice(*src, data.len()), *op, data),
            Expr::Bitwise { src, dst, mask, xor } => {
                let value = registers.slice(*src, mask.len()).bitwise(mask, xor);
                registers.put(*dst, &value);
                Truth::Yes
            }
            Expr::Byteorder { src, dst, len, size } => {
                let value = registers.slice(*src, *len);
                let value = if cfg!(target_endian = "little") { value.swapped(*size) } else { value };
                registers.put(*dst, &value);
                Truth::Yes
            }
            Expr::Payload { base: layer, offset, len, dst } => {
                // A value shorter than its last register is padded with zeros.
                registers.put(*dst, &Bits::known(&vec![0; len.div_ceil(4) * 4]));
                let header = match layer {
                    1 => packet.network(),
                    2 => packet.transport(),
                    _ => Bits::default(),
                };
                registers.put(*dst, &header.slice(*offset, *len));
                Truth::Yes
            }
            Expr::Meta { key, dst } => {
                registers.put(*dst, &meta(*key, packet, base));
                Truth::Yes
            }
            Expr::Ct { key, dst } => {
                registers.put(*dst, &ct(*key, packet, base));
                Truth::Yes
            }
            Expr::Unknown { dst, .. } => {
                registers.put(*dst, &Bits::unknown(REGISTERS - (*dst).min(REGISTERS)));
                Truth::Maybe
            }
            Expr::Lookup { set, src, dst, invert } => {
                let set = ruleset.sets.get(&(chain.family, chain.table.clone(), set.clone()));
                let fleeting = set.is_some_and(|set| set.fleeting);
                let found = lookup(set, &registers.slice(*src, REGISTERS - (*src).min(REGISTERS)));
                let verdicts: Vec<Act> = found
                    .data
                    .iter()
                    .filter_map(|data| match data {
                        Data::Verdict(verdict) => Some(Act::Verdict(verdict.clone())),
                        Data::Value(_) => None,
                    })
                    .collect();
                if let Some(dst) = dst {
                    let value = match found.data.as_slice() {
                        [Data::Value(value)] if found.holds == Truth::Yes => Bits::known(value),
                        _ => Bits::unknown(REGISTERS - (*dst).min(REGISTERS)),
                    };
                    registers.put(*dst, &value);
                }
                if !verdicts.is_empty() {
                    // A verdict map is where a rule ends.
                    let mut acts = verdicts;
                    if fleeting {
                        acts.push(Act::Anything);
                    }
                    return Outcome { fits: fits.and(found.holds), acts };
                }
                found.holds.inverted(*invert)
            }
            Expr::Range { src, from, to, invert } => {
                registers.slice(*src, from.len()).within(from, to).inverted(*invert)
            }
            Expr::MayBreak(_) => Truth::Maybe,
            Expr::Opaque(_) => return Outcome { fits: Truth::Maybe, acts: vec![Act::Anything] },
            Expr::Header(header) => header.fits(packet),
            Expr::Match(ext) => xt::fits(ext, packet, base, after_conntrack(base)),
            Expr::Target(ext) => match xt::act(ext, packet.v6) {
                Act::Verdict(Verdict::Continue) => Truth::Yes,
                act => return Outcome { fits, acts: vec![act] },
            },
        };
        fits = fits.and(holds);
        if fits == Truth::No {
            return Outcome { fits, acts: Vec::new() };
        }
    }
    if fits == Truth::Maybe {
        // Whether or not it fits, the next rule comes.
        acts = vec![Act::Verdict(Verdict::Continue)];
    }
    Outcome { fits, acts }
}

fn compare(value: &Bits, op: u32, data: &[u8]) -> Truth {
    match op {
        0 => value.equals(data),
        1 => value.equals(data).negate(),
        2 => value.below(data, false),
        3 => value.below(data, true),
        4 => value.below(data, true).negate(),
        5 => value.below(data, false).negate(),
        _ => Truth::Maybe,
    }
}

/// True if packets come there after conntrack has seen them.
fn after_conntrack(base: &Base) -> bool {
    match base.hook {
        Some(Hook::Prerouting | Hook::Output) => base.priority > CONNTRACK,
        Some(Hook::Input | Hook::Forward | Hook::Postrouting) => true,
        None => false,
    }
}

/// enum nft_meta_keys.
pub(super) mod meta_key {
    pub(crate) const PROTOCOL: u32 = 1;
    pub(crate) const MARK: u32 = 3;
    pub(crate) const IIF: u32 = 4;
    pub(crate) const OIF: u32 = 5;
    pub(crate) const IIFNAME: u32 = 6;
    pub(crate) const OIFNAME: u32 = 7;
    pub(crate) const SKUID: u32 = 10;
    pub(crate) const SKGID: u32 = 11;
    pub(crate) const NFPROTO: u32 = 15;
    pub(crate) const L4PROTO: u32 = 16;
}

/// IFNAMSIZ.
const NAME: usize = 16;

fn meta(key: u32, packet: &Packet, base: &Base) -> Bits {
    let owner = packet.owner.filter(|_| matches!(base.hook, Some(Hook::Output | Hook::Postrouting)));
    let small = |value: u8| Bits::known(&[value, 0, 0, 0]);
    match key {
        // skb->protocol is set late in the output path (invalid in OUTPUT, says nf_tables.h).
        meta_key::PROTOCOL if !matches!(base.hook, Some(Hook::Output)) => {
            let [a, b] = if packet.v6 { [0x86, 0xdd] } else { [0x08, 0x00] };
            Bits::known(&[a, b, 0, 0])
        }
        meta_key::NFPROTO if base.hook.is_some() => small(if packet.v6 { 10 } else { 2 }),
        meta_key::L4PROTO => small(TCP),
        meta_key::IIF => index(&packet.input),
        meta_key::OIF => index(&packet.output),
        meta_key::IIFNAME => device_name(&packet.input),
        meta_key::OIFNAME => device_name(&packet.output),
        meta_key::SKUID => owner.map_or(Bits::unknown(4), |(uid, _)| Bits::known(&uid.to_ne_bytes())),
        meta_key::SKGID => owner.map_or(Bits::unknown(4), |(_, gid)| Bits::known(&gid.to_ne_bytes())),
        _ => Bits::unknown(NAME),
    }
}

fn index(device: &Interface) -> Bits {
    match device {
        Interface::Known { index, .. } => Bits::known(&index.to_ne_bytes()),
        // Versions differ on what a device that is not there looks like.
        Interface::None | Interface::Unknown => Bits::unknown(4),
    }
}

fn device_name(device: &Interface) -> Bits {
    match device {
        Interface::Known { name, .. } => {
            let mut bytes = name.clone().into_bytes();
            bytes.resize(NAME, 0);
            Bits::known(&bytes)
        }
        Interface::None | Interface::Unknown => Bits::unknown(NAME),
    }
}

fn ct(key: u32, packet: &Packet, base: &Base) -> Bits {
    const STATE: u32 = 0;
    const DIRECTION: u32 = 1;
    match (key, packet.states(after_conntrack(base))) {
        (STATE, Some(states)) => Bits::partly(&0_u32.to_ne_bytes(), &(!states).to_ne_bytes()),
        (DIRECTION, Some(_)) => Bits::known(&[u8::from(packet.reply), 0, 0, 0]),
        _ => Bits::unknown(NAME),
    }
}

struct Found {
    holds: Truth,
    /// Of every element that may have fitted.
    data: Vec<Data>,
}

fn lookup(set: Option<&Set>, key: &Bits) -> Found {
    let Some(set) = set else {
        return Found { holds: Truth::Maybe, data: Vec::new() };
    };
    let mut holds = Truth::No;
    let mut data = Vec::new();
    let mut catch_all = None;
    for (number, element) in set.elements.iter().enumerate() {
        if element.catch_all {
            catch_all = Some(element);
            continue;
        }
        if element.interval_end {
            continue;
        }
        let fits = match &element.key_end {
            Some(end) => within_fields(key, &element.key, end, &set.fields),
            None if set.interval => interval(set, number, key),
            None => key.equals(&element.key),
        };
        let fits = if element.conditional { fits.and(Truth::Maybe) } else { fits };
        if fits == Truth::No {
            continue;
        }
        holds = holds.or(fits);
        data.extend(element.data.clone());
        if fits == Truth::Yes {
            break;
        }
    }
    if let Some(element) = catch_all.filter(|_| holds != Truth::Yes) {
        holds = if element.conditional { Truth::Maybe } else { Truth::Yes };
        data.extend(element.data.clone());
    }
    if set.fleeting {
        // What is there now may not have been, and the other way round; nobody knows with which data.
        holds = Truth::Maybe;
    }
    Found { holds, data }
}

/// Each part of a concatenation by itself (net/netfilter/nft_set_pipapo.c); parts begin at whole registers.
fn within_fields(key: &Bits, from: &[u8], to: &[u8], fields: &[usize]) -> Truth {
    if fields.is_empty() {
        return key.slice(0, from.len()).within(from, to);
    }
    let mut offset = 0;
    let mut fits = Truth::Yes;
    for len in fields {
        let (Some(low), Some(high)) = (from.get(offset..offset + len), to.get(offset..offset + len)) else {
            return Truth::Maybe;
        };
        fits = fits.and(key.slice(offset, *len).within(low, high));
        offset += len.div_ceil(4) * 4;
    }
    fits
}

/// An interval goes from its element to the next greater one (net/netfilter/nft_set_rbtree.c).
fn interval(set: &Set, number: usize, key: &Bits) -> Truth {
    let Some(start) = set.elements.get(number).map(|e| &e.key) else {
        return Truth::Maybe;
    };
    let next = set.elements.iter().filter(|e| !e.catch_all).map(|e| &e.key).filter(|k| *k > start).min();
    let key = key.slice(0, start.len());
    let begun = key.below(start, false).negate();
    match next {
        Some(next) => begun.and(key.below(next, false)),
        None => begun,
    }
}
