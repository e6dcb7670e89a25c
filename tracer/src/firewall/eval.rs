//! The walk through the chains of a hook.

use std::collections::HashMap;

use super::{Base, Chain, Family, Hook, Packet, Reject, Ruleset, Truth, Verdict, expr};

/// What a candidate does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Action {
    /// Drops.
    Drop,
    /// Rejects; None: with an answer that is not known.
    Reject(Option<Reject>),
    /// Hands it to a program in user space.
    Queue,
    /// Something that this program does not know.
    Unknown,
}

/// A rule or a policy that can have dropped the packet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Candidate {
    /// Which of the ruleset's chains.
    pub chain: usize,
    /// Which of its rules; None: the chain's policy.
    pub rule: Option<usize>,
    /// What it does.
    pub action: Action,
    /// Every condition of its own is known to hold.
    pub certain: bool,
}

/// Where a chain lets a packet go.
#[derive(Debug, Clone, Copy, Default)]
struct Ends {
    /// To the end, or back to the caller.
    returns: bool,
    /// Out of the base chain.
    accepts: bool,
}

/// Deeper than the kernel allows (NFT_JUMP_STACK_SIZE 16; xtables by the number of chains).
const DEEPEST: usize = 64;

/// What becomes of a packet at a hook.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fate {
    /// Who can drop it, in the order in which the packet meets them.
    pub candidates: Vec<Candidate>,
    /// There is a way through. If not, one of the candidates certainly drops it.
    pub passes: bool,
}

/// What the rules at a hook of the IP layer do with a packet that has not come yet.
#[must_use]
pub fn fate(ruleset: &Ruleset, packet: &Packet, hook: Hook) -> Fate {
    let mut candidates = Vec::new();
    let passes = at_hook(ruleset, packet, &bases(ruleset, packet, Some(hook)), &mut candidates);
    Fate { candidates, passes }
}

/// Who can have dropped the packet at that hook, in the order in which the packet meets them. `hook` None: at any.
#[must_use]
pub fn candidates(ruleset: &Ruleset, packet: &Packet, hook: Option<Hook>) -> Vec<Candidate> {
    let mut found = Vec::new();
    let bases = |at: Option<Hook>| bases(ruleset, packet, at);
    match hook {
        Some(hook) => {
            at_hook(ruleset, packet, &bases(Some(hook)), &mut found);
            // Where devices and bridges drop, no caller tells, and over loopback the sender's own callers stand there.
            at_hook(ruleset, packet, &bases(None), &mut found);
        }
        // At each of them: what one accepts says nothing about where it was dropped.
        None => {
            for hook in [None].into_iter().chain(Hook::ALL.into_iter().map(Some)) {
                at_hook(ruleset, packet, &bases(hook), &mut found);
            }
        }
    }
    found
}

/// The base chains that the packet meets there, in their order.
fn bases<'a>(ruleset: &'a Ruleset, packet: &Packet, at: Option<Hook>) -> Vec<(usize, &'a Base)> {
    let mut bases: Vec<(usize, &Base)> = ruleset
        .chains
        .iter()
        .enumerate()
        .filter(|(_, chain)| sees(chain, packet))
        .filter_map(|(index, chain)| Some((index, chain.base.as_ref().filter(|base| base.hook == at)?)))
        .collect();
    bases.sort_by_key(|(_, base)| base.priority);
    bases
}

fn sees(chain: &Chain, packet: &Packet) -> bool {
    match chain.family {
        Family::Inet | Family::Netdev | Family::Bridge => true,
        Family::Ip => !packet.v6,
        Family::Ip6 => packet.v6,
    }
}

/// NF_IP_PRI_NAT_DST and NF_IP_PRI_NAT_SRC: where the kernel translates, whatever a chain's own priority says.
const NAT_DST: i32 = -100;

/// True if there is a way through.
fn at_hook(ruleset: &Ruleset, packet: &Packet, bases: &[(usize, &Base)], found: &mut Vec<Candidate>) -> bool {
    for group in bases.chunk_by(|a, b| a.1.priority == b.1.priority) {
        let mut passes = true;
        for (index, base) in group {
            let translates = matches!(base.hook, Some(Hook::Prerouting | Hook::Output));
            // The packet that was dropped had been translated: these had let it pass before.
            if packet.translated && translates && base.priority < NAT_DST {
                continue;
            }
            // Only the first packet of a connection goes there.
            if base.nat && packet.reply {
                continue;
            }
            let mut walk = Walk { ruleset, packet, base, known: HashMap::new(), found };
            let ends = walk.chain(*index, 0);
            let mut may_pass = ends.accepts || base.nat;
            if ends.returns {
                if base.policy_drop {
                    add(found, Candidate { chain: *index, rule: None, action: Action::Drop, certain: true });
                } else {
                    may_pass = true;
                }
            }
            // Chains of the same priority come in an order that the ruleset does not show.
            passes &= may_pass;
        }
        if !passes {
            return false;
        }
    }
    true
}

fn add(found: &mut Vec<Candidate>, new: Candidate) {
    match found.iter_mut().find(|c| (c.chain, c.rule, c.action) == (new.chain, new.rule, new.action)) {
        Some(known) => known.certain |= new.certain,
        None => found.push(new),
    }
}

struct Walk<'a> {
    ruleset: &'a Ruleset,
    packet: &'a Packet,
    base: &'a Base,
    /// Chains that were walked from this base chain: a second way into them finds nothing new.
    known: HashMap<usize, Ends>,
    found: &'a mut Vec<Candidate>,
}

impl Walk<'_> {
    fn chain(&mut self, index: usize, depth: usize) -> Ends {
        let anything = Ends { returns: true, accepts: true };
        if let Some(ends) = self.known.get(&index) {
            return *ends;
        }
        let Some(chain) = self.ruleset.chains.get(index).filter(|_| depth < DEEPEST) else {
            return anything;
        };
        let mut ends = Ends::default();
        let mut goes_on = true;
        for (number, rule) in chain.rules.iter().enumerate() {
            let outcome = expr::outcome(self.ruleset, chain, rule, self.packet, self.base);
            goes_on = outcome.fits != Truth::Yes;
            if outcome.fits == Truth::No {
                continue;
            }
            let certain = outcome.fits == Truth::Yes && outcome.acts.len() == 1;
            for act in &outcome.acts {
                let blame = |found: &mut Vec<Candidate>, action| {
                    add(found, Candidate { chain: index, rule: Some(number), action, certain });
                };
                match act {
                    expr::Act::Reject(reject) => blame(self.found, Action::Reject(*reject)),
                    expr::Act::Anything => {
                        blame(self.found, Action::Unknown);
                        ends = anything;
                        goes_on = true;
                    }
                    expr::Act::Verdict(verdict) => match verdict {
                        Verdict::Drop => blame(self.found, Action::Drop),
                        Verdict::Queue => {
                            blame(self.found, Action::Queue);
                            ends.accepts = true;
                        }
                        Verdict::Accept | Verdict::Stolen => ends.accepts = true,
                        Verdict::Continue => goes_on = true,
                        Verdict::Return => ends.returns = true,
                        Verdict::Jump(to) | Verdict::Goto(to) => {
                            let inner = self.find(chain, to).map_or(anything, |to| self.chain(to, depth + 1));
                            ends.accepts |= inner.accepts;
                            if matches!(verdict, Verdict::Goto(_)) {
                                ends.returns |= inner.returns;
                            } else {
                                goes_on |= inner.returns;
                            }
                        }
                    },
                }
            }
            if !goes_on {
                break;
            }
        }
        ends.returns |= goes_on;
        self.known.insert(index, ends);
        ends
    }

    fn find(&self, from: &Chain, name: &str) -> Option<usize> {
        self.ruleset.chains.iter().position(|chain| {
            chain.name == name
                && (chain.engine, chain.family, &chain.table) == (from.engine, from.family, &from.table)
        })
    }
}
