//! The rules of a network namespace, and which of them can have dropped a given packet. Pure: `sys::nftables` and
//! `sys::iptables` read the rules, this evaluates them.
//!
//! A rule is what the kernel runs (nf_tables' expressions, or xtables' matches), not a text, so nothing depends on how
//! a tool prints it. Every bit of the packet that is not known stays unknown, and a condition on it is `Maybe`: a rule
//! is left out only if it cannot have decided. So the candidates are a superset, and if there is one alone, it was it.

mod bits;
mod eval;
mod expr;
mod fix;
mod naming;
mod packet;
mod text;
mod xt;

use std::collections::BTreeMap;

pub use bits::{Bits, Truth};
pub use eval::{Action, Candidate, Fate, candidates, fate};
pub use fix::fixes;
pub use naming::{Answer, Named, Naming, Traced, narrow};
pub use packet::{Interface, Packet};
pub use text::{rule_text, xt_text};

/// What packets a table sees.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Family {
    /// IPv4 and IPv6.
    Inet,
    /// IPv4.
    Ip,
    /// IPv6.
    Ip6,
    /// One network device.
    Netdev,
    /// What a bridge forwards.
    Bridge,
}

impl Family {
    /// By the kernel's number (NFPROTO_*); None for the one that sees no packet of ours (arp).
    #[must_use]
    pub fn from_number(number: u8) -> Option<Self> {
        Some(match number {
            1 => Family::Inet,
            2 => Family::Ip,
            5 => Family::Netdev,
            7 => Family::Bridge,
            10 => Family::Ip6,
            _ => return None,
        })
    }

    /// The kernel's number.
    #[must_use]
    pub fn number(self) -> u8 {
        match self {
            Family::Inet => 1,
            Family::Ip => 2,
            Family::Netdev => 5,
            Family::Bridge => 7,
            Family::Ip6 => 10,
        }
    }

    /// As nft writes it.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Family::Inet => "inet",
            Family::Ip => "ip",
            Family::Ip6 => "ip6",
            Family::Netdev => "netdev",
            Family::Bridge => "bridge",
        }
    }
}

/// Who runs the rules.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Engine {
    /// nf_tables.
    Nftables,
    /// xtables (`iptables-legacy`).
    Legacy,
}

/// Where packets meet rules, with the kernel's numbers (enum nf_inet_hooks).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Hook {
    /// Every arriving packet.
    Prerouting,
    /// Arriving packets for this host.
    Input,
    /// Packets on their way through.
    Forward,
    /// Packets of this host.
    Output,
    /// Every leaving packet.
    Postrouting,
}

impl Hook {
    /// All, by their numbers.
    pub const ALL: [Hook; 5] =
        [Hook::Prerouting, Hook::Input, Hook::Forward, Hook::Output, Hook::Postrouting];

    /// By the kernel's number.
    #[must_use]
    pub fn from_number(number: u32) -> Option<Self> {
        Self::ALL.get(usize::try_from(number).ok()?).copied()
    }

    /// By the name that nft uses.
    #[must_use]
    pub fn named(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|hook| hook.name() == name)
    }

    /// As nft writes it.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Hook::Prerouting => "prerouting",
            Hook::Input => "input",
            Hook::Forward => "forward",
            Hook::Output => "output",
            Hook::Postrouting => "postrouting",
        }
    }
}

/// What becomes of a packet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    /// Dropped.
    Drop,
    /// Leaves this base chain.
    Accept,
    /// Taken by somebody else, who does not drop it.
    Stolen,
    /// A program in user space decides.
    Queue,
    /// The next rule.
    Continue,
    /// Into a chain, and back.
    Jump(String),
    /// Into a chain, and not back.
    Goto(String),
    /// Back to the calling chain, or to the policy.
    Return,
}

/// How a packet is rejected.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Reject {
    /// A RST.
    Reset,
    /// An ICMP error of the packet's own family.
    Icmp(u8),
    /// An ICMP error, by nft's number for both families.
    Icmpx(u8),
}

impl Reject {
    /// Type and code of the ICMP error; None for a RST.
    #[must_use]
    pub fn icmp(self, v6: bool) -> Option<(u8, u8)> {
        let kind = if v6 { 1 } else { 3 };
        match self {
            Reject::Reset => None,
            Reject::Icmp(code) => Some((kind, code)),
            // include/uapi/linux/netfilter/nf_tables.h: enum nft_reject_inet_code.
            Reject::Icmpx(code) => Some((
                kind,
                match (code, v6) {
                    (0, _) => 0,
                    (1, false) | (2, true) => 3,
                    (1, true) => 4,
                    (2, false) | (_, true) => 1,
                    (_, false) => 13,
                },
            )),
        }
    }
}

/// One step of a rule. `src` and `dst` are byte offsets into the registers (64 bytes).
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Expr {
    /// A constant.
    Immediate {
        /// To.
        dst: usize,
        /// What.
        data: Vec<u8>,
    },
    /// Ends the rule.
    Verdict(Verdict),
    /// Goes on if the comparison holds.
    Compare {
        /// Left side.
        src: usize,
        /// enum nft_cmp_ops: eq, neq, lt, lte, gt, gte.
        op: u32,
        /// Right side.
        data: Vec<u8>,
    },
    /// `(x & mask) ^ xor`.
    Bitwise {
        /// From.
        src: usize,
        /// To.
        dst: usize,
        /// And.
        mask: Vec<u8>,
        /// Exclusive or.
        xor: Vec<u8>,
    },
    /// Swaps the bytes of each `size` bytes.
    Byteorder {
        /// From.
        src: usize,
        /// To.
        dst: usize,
        /// Bytes.
        len: usize,
        /// Of which each so many are one number.
        size: usize,
    },
    /// Bytes of the packet.
    Payload {
        /// enum nft_payload_bases: link, network, transport layer.
        base: u32,
        /// From there.
        offset: usize,
        /// Bytes.
        len: usize,
        /// To.
        dst: usize,
    },
    /// About the packet (enum nft_meta_keys).
    Meta {
        /// What.
        key: u32,
        /// To.
        dst: usize,
    },
    /// About its connection (enum nft_ct_keys).
    Ct {
        /// What.
        key: u32,
        /// To.
        dst: usize,
    },
    /// A set, or a map if there is a `dst` or its data are verdicts.
    Lookup {
        /// Name in the rule's table.
        set: String,
        /// Key.
        src: usize,
        /// Data.
        dst: Option<usize>,
        /// Goes on if it is not in the set.
        invert: bool,
    },
    /// Goes on if it lies between (`invert`: outside).
    Range {
        /// What.
        src: usize,
        /// From.
        from: Vec<u8>,
        /// To, itself included.
        to: Vec<u8>,
        /// Outside.
        invert: bool,
    },
    /// Rejects.
    Reject(Reject),
    /// Does something that does not matter here: counter, log, mark.
    Statement(String),
    /// Loads what nobody knows afterwards: fib, rt, numgen.
    Unknown {
        /// Its name in the kernel.
        name: String,
        /// To.
        dst: usize,
    },
    /// Goes on or not, nobody knows afterwards: limit, quota, connlimit.
    MayBreak(String),
    /// Not known to this program: may do anything.
    Opaque(String),
    /// An xtables match.
    Match(Xt),
    /// An xtables target.
    Target(Xt),
    /// What a legacy rule says of addresses, protocol and interfaces.
    Header(Header),
}

pub use xt::Header;

/// An xtables extension.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Xt {
    /// Its name, such as `multiport`.
    pub name: String,
    /// Revision of its data.
    pub revision: u32,
    /// Its data, as the kernel has them.
    pub info: Vec<u8>,
}

/// One rule.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Rule {
    /// Its handle; 0 in legacy tables, which have none.
    pub handle: u64,
    /// In its order.
    pub exprs: Vec<Expr>,
    /// Its comment.
    pub comment: Option<String>,
}

/// A base chain's place.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Base {
    /// Where; None at a network device (ingress, egress) and in a bridge.
    pub hook: Option<Hook>,
    /// When: lower comes first.
    pub priority: i32,
    /// What becomes of packets that no rule decides about.
    pub policy_drop: bool,
    /// Sees only the first packet of a connection.
    pub nat: bool,
}

/// One chain.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Chain {
    /// Who runs it.
    pub engine: Engine,
    /// Of its table.
    pub family: Family,
    /// Its table.
    pub table: String,
    /// Its name.
    pub name: String,
    /// None: it is only jumped to.
    pub base: Option<Base>,
    /// In their order.
    pub rules: Vec<Rule>,
}

impl Chain {
    /// `inet filter input`.
    #[must_use]
    pub fn path(&self) -> String {
        match self.engine {
            Engine::Nftables => format!("{} {} {}", self.family.name(), self.table, self.name),
            Engine::Legacy => format!("{} chain {} (legacy)", self.table, self.name),
        }
    }

    /// True if `iptables` manages it: legacy, or by the names that only iptables-nft gives.
    #[must_use]
    pub fn is_iptables(&self) -> bool {
        self.engine == Engine::Legacy
            || matches!(self.family, Family::Ip | Family::Ip6)
                && matches!(self.table.as_str(), "filter" | "raw" | "mangle" | "nat" | "security")
                && self
                    .base
                    .as_ref()
                    .is_none_or(|base| base.hook.is_some_and(|hook| self.name == hook.name().to_uppercase()))
    }
}

/// A set's element.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Element {
    /// As the registers have it.
    pub key: Vec<u8>,
    /// The end of its range, itself included.
    pub key_end: Option<Vec<u8>>,
    /// Marks where an interval ends: it is not in the set.
    pub interval_end: bool,
    /// Fits what no other fits.
    pub catch_all: bool,
    /// Of a map.
    pub data: Option<Data>,
    /// It has a limit or the like.
    pub conditional: bool,
}

/// What a map holds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Data {
    /// For a register.
    Value(Vec<u8>),
    /// Ends the rule.
    Verdict(Verdict),
}

/// A set or a map.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Set {
    /// Elements stand for where intervals begin and end.
    pub interval: bool,
    /// Elements come and go by themselves.
    pub fleeting: bool,
    /// Lengths of a concatenation's parts, bytes.
    pub fields: Vec<usize>,
    /// In the kernel's order.
    pub elements: Vec<Element>,
}

/// Everything that is there.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Ruleset {
    /// All chains.
    pub chains: Vec<Chain>,
    /// Sets by family, table and name.
    pub sets: BTreeMap<(Family, String, String), Set>,
    /// Number of nf_tables' generation at that time; None if there is no nf_tables.
    pub generation: Option<u32>,
}

#[cfg(test)]
mod tests;
