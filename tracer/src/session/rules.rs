//! Which rule dropped a packet: reads the rules of the namespace where it happened, and asks which of them can have.

use std::{
    collections::{HashMap, HashSet},
    fs,
    net::SocketAddr,
    time::{Duration, Instant},
};

use super::facts::FRESH;
use crate::{
    correlate::Facts,
    event::{Attempt, Drop, DropClass},
    firewall::{
        self, Answer, Candidate, Engine, Family, Hook, Interface, Named, Naming, Packet, Ruleset, Traced,
    },
    sys::{
        iptables, link,
        netns::{self, NetNs},
        nftables, proc, ruletext,
    },
};

/// Rules whose text is asked for; more than that are counted.
const MOST_TEXTS: usize = 8;
/// Namespaces whose rules are kept.
const MOST: usize = 64;
/// How long what the kernel named holds for the next failures.
const TRACE_HOLDS: Duration = Duration::from_secs(60);

/// How long rules are kept that nobody asks for: the namespace stays open as long, so that no other one can get its number.
const IDLE: Duration = Duration::from_secs(2);

/// Texts by chain and rule: as nft prints it, as iptables does.
type Texts = HashMap<(usize, usize), (Option<String>, Option<String>)>;

/// The rules of one namespace.
struct Known {
    /// Open as long as this is kept.
    ns: NetNs,
    ruleset: Ruleset,
    read: Instant,
    used: Instant,
    texts: Texts,
    /// Before its commands, if it is not the initial namespace.
    enter: Option<String>,
}

/// What the kernel itself said (`--trace-rules`).
#[derive(Debug, Clone)]
pub(super) struct Word {
    pub(super) chain: (Family, String, String),
    /// None: the chain's policy.
    pub(super) handle: Option<u64>,
    pub(super) at: Instant,
}

/// What a SYN would meet at a hook.
pub(super) struct Met {
    /// Where.
    pub(super) hook: Hook,
    /// The rules that fit it and explain what came of it.
    pub(super) rules: Naming,
    /// One of them stops every such SYN.
    pub(super) certain: bool,
}

/// What a SYN would meet on its way through the rules of its own namespace.
pub(super) struct Foreseen {
    /// In the order of the hooks; none if no rule can have stopped it.
    pub(super) met: Vec<Met>,
    /// Addresses are translated there.
    pub(super) translates: bool,
    /// There are rules at the hooks of interfaces (netdev), which are not run here.
    pub(super) beside: bool,
}

/// Remembers rules, texts and generations.
#[derive(Default)]
pub(super) struct Rules {
    known: HashMap<u32, Known>,
    /// nf_tables' generation at the last look, by the namespace's identity.
    generations: HashMap<u64, u32>,
    /// Namespaces and processes that were looked at when they came.
    noted: HashSet<(u32, u32)>,
    /// By namespace (open as long), server and direction.
    words: Vec<(NetNs, SocketAddr, bool, Word)>,
}

impl Rules {
    /// Takes the generation of a namespace that is watched from now on.
    pub(super) fn note_namespace(&mut self, inum: u32, pid: u32) {
        if self.noted.len() >= 16 * MOST {
            self.noted.clear();
        }
        if !asking_is_harmless() || !self.noted.insert((inum, pid)) {
            return;
        }
        let Some(ns) = NetNs::of_pid(pid).ok().filter(|ns| ns.inum() == inum) else {
            return;
        };
        if let (Some(identity), Ok(generation)) = (ns.identity(), nftables::generation(&ns)) {
            if self.generations.len() >= MOST {
                self.generations.clear();
            }
            self.generations.entry(identity).or_insert(generation);
        }
    }

    /// Runs what changes the rules of a namespace in a way that does not count, such as a table of our own.
    pub(super) fn unnoticed<T>(&mut self, ns: &NetNs, change: impl FnOnce() -> T) -> T {
        let identity = ns.identity();
        let known = identity.and_then(|identity| self.generations.get(&identity).copied());
        let untouched = known.is_some() && nftables::generation(ns).ok() == known;
        let done = change();
        if untouched && let (Some(identity), Ok(generation)) = (identity, nftables::generation(ns)) {
            self.generations.insert(identity, generation);
        }
        done
    }

    /// What the kernel named.
    pub(super) fn heard(&mut self, ns: &NetNs, server: SocketAddr, reply: bool, word: Word) {
        self.words.retain(|(of, s, r, _)| (of.inum(), *s, *r) != (ns.inum(), server, reply));
        if self.words.len() < MOST {
            self.words.push((ns.clone(), server, reply, word));
        }
    }

    /// True if the kernel has named the rule for such packets not long ago.
    pub(super) fn has_word(&self, inum: u32, server: SocketAddr, reply: bool) -> bool {
        self.words.iter().any(|(of, s, r, _)| (of.inum(), *s, *r) == (inum, server, reply))
    }

    pub(super) fn sweep(&mut self) {
        self.known.retain(|_, known| known.used.elapsed() < IDLE);
        self.words.retain(|(.., word)| word.at.elapsed() < TRACE_HOLDS);
    }

    /// The rules that can have dropped the attempt's packet in `ns`. `nft`: nf_tables is there.
    pub(super) fn name(&mut self, ns: &NetNs, nft: bool, attempt: &Attempt, facts: &Facts) -> Option<Naming> {
        let drop = attempt.drop.as_ref().filter(|drop| drop.class == DropClass::Netfilter)?;
        self.sweep();
        let identity = ns.identity();
        let before = identity.and_then(|identity| self.generations.get(&identity).copied());
        self.refresh(ns, nft)?;
        let known = self.known.get_mut(&ns.inum())?;
        known.used = Instant::now();
        let changed = before.is_some() && before != known.ruleset.generation;
        if let Some((identity, generation)) = identity.zip(known.ruleset.generation) {
            self.generations.insert(identity, generation);
        }
        let packet = packet(ns, &known.ruleset, attempt, drop, facts);
        let hook = facts.drop_hook.as_deref().and_then(Hook::named);
        let mut found = firewall::candidates(&known.ruleset, &packet, hook);
        // Newer kernels free the packet inside the engine, so its caller tells which one it was.
        let engine = match facts.drop_engine.as_deref() {
            Some("nftables") => Some(Engine::Nftables),
            Some("iptables-legacy") => Some(Engine::Legacy),
            _ => None,
        };
        found.retain(|c| {
            let of = known.ruleset.chains.get(c.chain).map(|chain| chain.engine);
            engine.is_none() || of == engine
        });
        let found = firewall::narrow(&found, answer(attempt, drop), packet.v6);
        let server = drop.wire_dst;
        let traced = self
            .words
            .iter()
            .find(|(of, s, r, _)| (of.inum(), *s, *r) == (ns.inum(), attempt.remote, drop.reply))
            .and_then(|(.., word)| known.traced(word, server, drop.reply))
            .filter(|_| !changed);
        let candidates = found
            .iter()
            .enumerate()
            .filter_map(|(number, c)| known.named(c, server, drop.reply, number < MOST_TEXTS))
            .collect();
        let only_legacy = !found.is_empty()
            && found.iter().all(|c| {
                known.ruleset.chains.get(c.chain).is_some_and(|chain| chain.engine == Engine::Legacy)
            });
        let list = match (only_legacy, packet.v6) {
            (false, _) => "nft -a list ruleset",
            (true, false) => "iptables-legacy-save -c",
            (true, true) => "ip6tables-legacy-save -c",
        };
        let list = format!("{}{list}", known.enter.as_deref().unwrap_or_default());
        Some(Naming { candidates, changed, list, traced })
    }

    /// What the rules of `ns` do with the SYN of a connection that why502 itself tried from there; None if they cannot be
    /// read. `nft`: nf_tables is there.
    pub(super) fn foresee(
        &mut self,
        ns: &NetNs,
        nft: bool,
        attempt: &Attempt,
        facts: &Facts,
    ) -> Option<Foreseen> {
        self.sweep();
        self.refresh(ns, nft)?;
        let known = self.known.get_mut(&ns.inum())?;
        known.used = Instant::now();
        let translates = known
            .ruleset
            .chains
            .iter()
            .any(|chain| chain.base.as_ref().is_some_and(|base| base.nat) && !chain.rules.is_empty());
        let local = facts.is_local == Some(true);
        let out = if local {
            device(ns, true)
        } else {
            let route = facts.route.as_ref().and_then(|route| route.device.as_deref());
            let links = link::links(ns).unwrap_or_default();
            let found = links.into_iter().find(|link| Some(link.name.as_str()) == route);
            found.map_or(Interface::Unknown, |link| Interface::Known { index: link.index, name: link.name })
        };
        let remote = attempt.remote;
        let syn = Packet {
            v6: remote.is_ipv6(),
            reply: false,
            source: Some(attempt.local).filter(|local| local.port() != 0),
            destination: Some(remote),
            tracked: false,
            translated: false,
            input: Interface::None,
            output: out.clone(),
            owner: owner(attempt.worker),
            fresh: true,
        };
        // What DNAT makes of the address afterwards is not followed.
        let hooks: &[Hook] = match (local, translates) {
            (true, false) => &[Hook::Output, Hook::Prerouting, Hook::Input],
            _ => &[Hook::Output],
        };
        let answer = match attempt.icmp {
            _ if attempt.reset => Answer::Reset,
            Some(icmp) => Answer::Icmp(icmp.kind, icmp.code),
            None => Answer::None,
        };
        let mut met = Vec::new();
        for hook in hooks.iter().copied() {
            let packet = match hook {
                Hook::Output => syn.clone(),
                _ => Packet { input: out.clone(), output: Interface::None, owner: None, ..syn.clone() },
            };
            let fate = firewall::fate(&known.ruleset, &packet, hook);
            let found = firewall::narrow(&fate.candidates, answer, packet.v6);
            // What does not reject explains no answer, what rejects no silence.
            let found: Vec<Candidate> = found
                .into_iter()
                .filter(|c| answer != Answer::None || !matches!(c.action, firewall::Action::Reject(Some(_))))
                .collect();
            if !found.is_empty() {
                let named = found
                    .iter()
                    .enumerate()
                    .filter_map(|(number, c)| known.named(c, remote, false, number < MOST_TEXTS))
                    .collect();
                let only_legacy = found.iter().all(|c| {
                    known.ruleset.chains.get(c.chain).is_some_and(|chain| chain.engine == Engine::Legacy)
                });
                let list = if only_legacy { "iptables-legacy-save -c" } else { "nft -a list ruleset" };
                let list = format!("{}{list}", known.enter.as_deref().unwrap_or_default());
                let rules = Naming { candidates: named, changed: false, list, traced: None };
                // Without a way through, one of them has stopped it, and the answer that came is that one's.
                met.push(Met { hook, rules, certain: !fate.passes });
            }
            if !fate.passes {
                break;
            }
        }
        let beside = known
            .ruleset
            .chains
            .iter()
            .any(|chain| chain.family == Family::Netdev && !chain.rules.is_empty());
        Some(Foreseen { met, translates, beside })
    }

    /// Reads the rules again where they are not known to be the same.
    fn refresh(&mut self, ns: &NetNs, nft: bool) -> Option<()> {
        let generation = if nft { Some(nftables::generation(ns).ok()?) } else { None };
        if let Some(known) = self.known.get(&ns.inum()) {
            let legacy = known.ruleset.chains.iter().any(|c| c.engine == Engine::Legacy);
            let lasting = generation.is_some() && !legacy;
            if known.ruleset.generation == generation && (lasting || known.read.elapsed() < FRESH) {
                return Some(());
            }
        }
        if self.known.len() >= MOST && !self.known.contains_key(&ns.inum()) {
            return None;
        }
        let mut ruleset = Ruleset::default();
        if nft {
            nftables::read(ns, &mut ruleset).ok()?;
        }
        iptables::read(ns, &mut ruleset).ok()?;
        let enter = enter(ns);
        let known = Known {
            ns: ns.clone(),
            ruleset,
            read: Instant::now(),
            used: Instant::now(),
            texts: Texts::new(),
            enter,
        };
        self.known.insert(ns.inum(), known);
        Some(())
    }
}

impl Known {
    fn named(
        &mut self,
        candidate: &Candidate,
        server: SocketAddr,
        reply: bool,
        texts: bool,
    ) -> Option<Named> {
        let chain = self.ruleset.chains.get(candidate.chain)?;
        let enter = self.enter.as_deref();
        let fix = firewall::fixes(chain, candidate.rule, server, reply, enter);
        let Some(number) = candidate.rule else {
            return Some(Named {
                chain: chain.path(),
                handle: None,
                number: None,
                text: "policy drop".to_owned(),
                iptables: chain.is_iptables().then(|| format!("-P {} DROP", chain.name)),
                fix,
            });
        };
        let rule = chain.rules.get(number)?;
        let v6 = chain.family == Family::Ip6;
        let legacy = chain.engine == Engine::Legacy;
        let (text, iptables) = match self.texts.get(&(candidate.chain, number)) {
            _ if legacy => (None, Some(format!("-A {} {}", chain.name, firewall::xt_text(rule, v6)))),
            Some(texts) => texts.clone(),
            None if !texts => (None, None),
            None => {
                let texts = (
                    ruletext::nft(&self.ns, chain, rule.handle),
                    chain
                        .is_iptables()
                        .then(|| ruletext::iptables(&self.ns, chain, number, chain.rules.len()))
                        .flatten(),
                );
                self.texts.insert((candidate.chain, number), texts.clone());
                texts
            }
        };
        Some(Named {
            chain: chain.path(),
            handle: (!legacy).then_some(rule.handle),
            number: Some(number + 1),
            text: text.unwrap_or_else(|| firewall::rule_text(rule)),
            iptables,
            fix,
        })
    }

    /// The rule that the kernel named, if it is still there.
    fn traced(&mut self, word: &Word, server: SocketAddr, reply: bool) -> Option<Traced> {
        let (family, table, name) = &word.chain;
        let index = self.ruleset.chains.iter().position(|chain| {
            chain.engine == Engine::Nftables
                && (chain.family, &chain.table, &chain.name) == (*family, table, name)
        })?;
        let rule = match word.handle {
            Some(handle) => {
                let rules = &self.ruleset.chains.get(index)?.rules;
                Some(rules.iter().position(|rule| rule.handle == handle)?)
            }
            None => None,
        };
        let candidate = Candidate { chain: index, rule, action: firewall::Action::Drop, certain: true };
        let rule = self.named(&candidate, server, reply, true)?;
        Some(Traced { rule, ago_ms: u64::try_from(word.at.elapsed().as_millis()).unwrap_or(u64::MAX) })
    }
}

/// True if nf_tables is there, or nothing can be loaded: to ask for it loads its module otherwise.
fn asking_is_harmless() -> bool {
    let there = |path| fs::exists(path).unwrap_or(false);
    there("/sys/module/nf_tables") || !there("/proc/modules")
}

/// What must stand before a command that is for that namespace.
fn enter(ns: &NetNs) -> Option<String> {
    if netns::inum_of_pid(1).is_ok_and(|initial| initial == ns.inum()) {
        return None;
    }
    let resident = netns::find(ns.inum()).ok().flatten()?;
    Some(match (resident.pid, resident.name) {
        (Some(pid), _) => format!("nsenter -t {pid} -n "),
        (None, Some(name)) => format!("ip netns exec {name} "),
        (None, None) => return None,
    })
}

/// What came back for the dropped packet.
fn answer(attempt: &Attempt, drop: &Drop) -> Answer {
    if drop.reply {
        return Answer::None;
    }
    match attempt.icmp {
        _ if attempt.reset => Answer::Reset,
        Some(icmp) => Answer::Icmp(icmp.kind, icmp.code),
        None if attempt.sk_err != 0 && attempt.sk_err != libc::ETIMEDOUT => Answer::Errno(attempt.sk_err),
        None => Answer::None,
    }
}

/// The packet as it was when it was dropped.
fn packet(ns: &NetNs, ruleset: &Ruleset, attempt: &Attempt, drop: &Drop, facts: &Facts) -> Packet {
    let own = ns.inum() == attempt.netns;
    let hook = facts.drop_hook.as_deref().and_then(Hook::named);
    let reply = drop.reply;
    // The evidence was found by the connection's own addresses: of a packet that conntrack has not seen these are its
    // own, else those that it had before translation here.
    let translates = ruleset.chains.iter().filter_map(|chain| chain.base.as_ref()).any(|base| base.nat);
    let early = !reply && matches!(hook, Some(Hook::Output | Hook::Forward));
    let known = !drop.conntrack || early || !translates;
    let client =
        (known && attempt.local.port() != 0 && !attempt.local.ip().is_unspecified()).then_some(attempt.local);
    let server = Some(drop.wire_dst);
    let (source, destination) = if reply { (server, client) } else { (client, server) };
    let device = match facts.is_local.filter(|_| own) {
        Some(local) => device(ns, local),
        None => Interface::Unknown,
    };
    let (input, output) = match hook {
        Some(Hook::Output) => (Interface::None, device),
        Some(Hook::Prerouting | Hook::Input) => (device, Interface::None),
        Some(Hook::Postrouting) => (Interface::Unknown, device),
        Some(Hook::Forward) | None => (Interface::Unknown, Interface::Unknown),
    };
    Packet {
        v6: drop.wire_dst.is_ipv6(),
        reply,
        source,
        destination,
        tracked: drop.conntrack,
        translated: !reply && drop.wire_dst != attempt.remote,
        input,
        output,
        owner: if own && !reply { owner(attempt.worker) } else { None },
        fresh: false,
    }
}

/// The device that the namespace's packets take: the loopback to itself; else the only other one, if it has one alone.
fn device(ns: &NetNs, local: bool) -> Interface {
    let Ok(links) = link::links(ns) else { return Interface::Unknown };
    let mut fitting = links.into_iter().filter(|link| (link.name == "lo") == local);
    match (fitting.next(), fitting.next()) {
        (Some(only), None) => Interface::Known { index: only.index, name: only.name },
        _ => Interface::Unknown,
    }
}

/// fsuid and fsgid of a process, if they are the initial user namespace's: rules of other namespaces count otherwise.
fn owner(pid: u32) -> Option<(u32, u32)> {
    let map = proc::read_trimmed(format!("/proc/{pid}/uid_map")).ok()?;
    if proc::numbers(&map) != [0, 0, u32::MAX] {
        return None;
    }
    let status = proc::read_up_to(format!("/proc/{pid}/status"), 4096).ok()?;
    let fourth = |key| proc::field(&status, key).and_then(|line| proc::numbers(line).get(3).copied());
    Some((fourth("Uid")?, fourth("Gid")?))
}
