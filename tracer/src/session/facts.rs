//! Evidence from user space, asked only where a record points to it and remembered for a moment, so that a
//! storm of equal failures asks once.

use std::{
    borrow::Cow,
    collections::HashMap,
    net::{IpAddr, SocketAddr},
    time::{Duration, Instant},
};

use super::rules::Rules;
use super::selinux::Selinux;
use super::suspects::Asker;
use crate::{
    correlate::{
        ConntrackFact, Facts, FdFact, Listeners, Listening, NeighbourFact, PortsFact, Reach, RouteFact,
    },
    event::{Attempt, DropClass, Stage},
    sys::{
        conntrack, kallsyms, link,
        listen::{self, Found},
        netns::{self, NetNs},
        owners::Owner,
        process, route, sockdiag, sysctl,
    },
};

/// How long an answer about a destination is used again.
pub(super) const FRESH: Duration = Duration::from_millis(500);
/// How long an unused namespace is kept open (an open one cannot be removed by the kernel).
const NAMESPACE_IDLE: Duration = Duration::from_secs(2);
/// Most remembered answers.
const MOST: usize = 1024;

/// Asks the operating system.
pub(super) struct Gatherer {
    suspects: Asker,
    namespaces: HashMap<u32, (NetNs, Instant)>,
    /// Answers by namespace and destination.
    destinations: HashMap<(u32, SocketAddr), (Destination, Instant)>,
    elsewhere: HashMap<(u32, SocketAddr), (Option<Peer>, Instant)>,
    /// Accept queues seen at the first retransmission, by socket.
    queues: HashMap<u64, (Listening, Instant)>,
    symbols: HashMap<u64, Option<String>>,
    /// Address ranges of the functions in [`HOOKS`] and [`ENGINES`].
    places: HashMap<String, (u64, u64)>,
    places_read: Option<Instant>,
    drop_reasons: HashMap<u32, String>,
    /// Drops of full conntrack tables when a namespace was first watched.
    baselines: HashMap<u32, u64>,
    routes: HashMap<(u32, IpAddr), (Option<RouteFact>, Instant)>,
    unix: super::unix::Known,
    pub(super) rules: Rules,
    pub(super) selinux: Selinux,
    pub(super) backends: super::backends::Backends,
}

/// A destination that is an address of another namespace of this machine.
#[derive(Clone)]
pub(super) struct Peer {
    pub(super) place: String,
    queue: Option<Listening>,
    resident: netns::Resident,
}

impl Peer {
    /// The namespace, if it is still there.
    pub(super) fn open(&self) -> Option<NetNs> {
        self.resident.open().ok()
    }
}

#[derive(Clone, Default)]
pub(super) struct Destination {
    pub(super) is_local: Option<bool>,
    pub(super) listeners: Option<Listeners>,
}

impl Gatherer {
    /// `drop_reasons`: names of `enum skb_drop_reason` on this kernel; `lsm_functions`: BPF LSM's functions by number.
    #[must_use]
    pub(super) fn new(drop_reasons: HashMap<u32, String>, lsm_functions: HashMap<u32, &'static str>) -> Self {
        Self {
            suspects: Asker::new(lsm_functions),
            namespaces: HashMap::new(),
            destinations: HashMap::new(),
            elsewhere: HashMap::new(),
            queues: HashMap::new(),
            symbols: HashMap::new(),
            places: HashMap::new(),
            places_read: None,
            drop_reasons,
            baselines: HashMap::new(),
            routes: HashMap::new(),
            unix: super::unix::Known::default(),
            rules: Rules::default(),
            selinux: Selinux::default(),
            backends: super::backends::Backends::default(),
        }
    }

    /// Takes the counters of a namespace that is watched from now on.
    pub(super) fn note_namespace(&mut self, inum: u32, pid: u32) {
        self.rules.note_namespace(inum, pid);
        if !self.baselines.contains_key(&inum)
            && self.baselines.len() < MOST
            && let Some(ns) = NetNs::of_pid(pid).ok().filter(|ns| ns.inum() == inum)
        {
            let drops = conntrack::stat_drops(&ns).ok().flatten().map_or(0, |d| d.drop);
            self.baselines.insert(inum, drops);
        }
    }

    /// Everything that helps to explain one attempt. Nothing here fails: what cannot be had stays empty.
    pub(super) fn gather(&mut self, attempt: &Attempt, reach: Reach) -> Facts {
        let mut facts = Facts {
            selinux: self.selinux.gather(attempt, reach.blockers.audit),
            suspects: self.suspects.ask(attempt),
            ..Facts::default()
        };
        self.describe_drop(attempt, &mut facts);
        match attempt.stage {
            Stage::Socket => facts.fds = fds(attempt.worker),
            Stage::Bind => {
                if let Some(ns) = self.own(attempt) {
                    facts.is_local = route::is_local(&ns, attempt.remote.ip()).ok();
                }
            }
            Stage::Untried => {}
            Stage::Connect => match &attempt.unix {
                Some(name) => facts.unix = self.unix.gather(attempt, name),
                None => self.at_once(attempt, &mut facts),
            },
            Stage::SynSent => self.in_flight(attempt, reach, &mut facts),
            Stage::Established => self.standing(attempt, &mut facts),
        }
        facts
    }

    /// Looks at the accept queue while a SYN is unanswered.
    pub(super) fn note_queue(&mut self, socket: u64, worker: u32, remote: SocketAddr) {
        let Some(ns) = NetNs::of_pid(worker).ok() else {
            return;
        };
        let own = listen::report(&ns, remote).ok();
        let queue = match own.as_ref().and_then(|report| report.exact.first()) {
            Some(found) => Some(listening(found)),
            // A container's address, perhaps: its queue can be read as well.
            None if own.as_ref().is_some_and(|report| !report.is_local_address) => {
                self.elsewhere(&ns, remote).and_then(|e| e.queue)
            }
            None => None,
        };
        if let Some(queue) = queue {
            self.queues.insert(socket, (queue, Instant::now()));
        }
    }

    /// Forgets what is old.
    pub(super) fn sweep(&mut self) {
        self.namespaces.retain(|_, (_, used)| used.elapsed() < NAMESPACE_IDLE);
        self.destinations.retain(|_, (_, at)| at.elapsed() < FRESH);
        self.elsewhere.retain(|_, (_, at)| at.elapsed() < FRESH);
        self.unix.sweep();
        self.routes.retain(|_, (_, at)| at.elapsed() < FRESH);
        self.rules.sweep();
        self.backends.sweep(super::clock::monotonic_ns());
        self.suspects.sweep();
        // A connect timeout of nginx is a minute by default; ten cover what people set.
        self.selinux.sweep();
        self.queues.retain(|_, (_, at)| at.elapsed() < Duration::from_secs(600));
    }

    /// The worker's network namespace: by the worker, else by anybody who lives in it.
    /// `tcp_syn_retries` where the attempt was made.
    pub(super) fn syn_retries(&mut self, attempt: &Attempt) -> Option<u32> {
        sysctl::settings(&self.own(attempt)?).ok()?.syn_retries
    }

    pub(super) fn own(&mut self, attempt: &Attempt) -> Option<NetNs> {
        self.open(attempt.netns, Some(attempt.worker))
    }

    pub(super) fn open(&mut self, inum: u32, pid: Option<u32>) -> Option<NetNs> {
        if let Some((ns, used)) = self.namespaces.get_mut(&inum).filter(|_| inum != 0) {
            *used = Instant::now();
            return Some(ns.clone());
        }
        let by_pid = pid.and_then(|pid| NetNs::of_pid(pid).ok()).filter(|ns| inum == 0 || ns.inum() == inum);
        let ns = by_pid.or_else(|| netns::find(inum).ok().flatten()?.open().ok())?;
        if self.namespaces.len() < MOST {
            self.namespaces.insert(ns.inum(), (ns.clone(), Instant::now()));
        }
        Some(ns)
    }

    fn describe_drop(&mut self, attempt: &Attempt, facts: &mut Facts) {
        let overflow_ns = attempt.overflow.map_or(0, |o| o.netns);
        let mut others = vec![overflow_ns];
        if let Some(drop) = &attempt.drop {
            others.extend([drop.netns, drop.no_socket_netns]);
            facts.drop_reason =
                (drop.reason != 0).then(|| self.drop_reasons.get(&drop.reason).cloned()).flatten();
            if drop.class != DropClass::NoSocket {
                self.locate(&drop.stack, facts);
                if drop.class == DropClass::Netfilter && facts.drop_hook.is_none() && self.read_places() {
                    self.locate(&drop.stack, facts);
                }
                if drop.class == DropClass::Other {
                    facts.drop_function = self.name_symbol(drop.location);
                }
            }
        }
        let other = others.into_iter().find(|inum| *inum != 0 && *inum != attempt.netns);
        facts.other_namespace = other.and_then(|inum| netns::find(inum).ok().flatten()).map(|r| resident(&r));
    }

    /// Names hook and engine by the callers' places.
    fn locate(&self, stack: &[u64], facts: &mut Facts) {
        let of = |table: &'static [(&'static str, &'static [&'static str])]| {
            stack.iter().find_map(|address| {
                table.iter().find_map(|(meaning, functions)| {
                    functions
                        .iter()
                        .filter_map(|f| self.places.get(*f))
                        .any(|(start, end)| (*start..*end).contains(address))
                        .then_some(*meaning)
                })
            })
        };
        facts.drop_hook = of(HOOKS).map(Cow::Borrowed);
        facts.drop_engine = of(ENGINES).map(Cow::Borrowed);
    }

    /// Reads the places of the functions that name hooks and engines: once, and again when modules may have been
    /// loaded since. True if it was read.
    fn read_places(&mut self) -> bool {
        if self.places_read.is_some_and(|at| at.elapsed() < PLACES_AGAIN) {
            return false;
        }
        self.places_read = Some(Instant::now());
        let names: Vec<&str> =
            HOOKS.iter().chain(ENGINES).flat_map(|(_, functions)| *functions).copied().collect();
        self.places = kallsyms::open().and_then(|table| kallsyms::ranges(table, &names)).unwrap_or_default();
        true
    }

    fn name_symbol(&mut self, address: u64) -> Option<String> {
        if let Some(known) = self.symbols.get(&address) {
            return known.clone();
        }
        let found = kallsyms::open().and_then(|table| kallsyms::names(table, &[address])).unwrap_or_default();
        let name = found.into_values().next();
        if self.symbols.len() < MOST {
            self.symbols.insert(address, name.clone());
        }
        name
    }

    /// connect() failed before a SYN.
    fn at_once(&mut self, attempt: &Attempt, facts: &mut Facts) {
        let Some(ns) = self.own(attempt) else {
            return;
        };
        if attempt.syn_state {
            facts.ports = ports(&ns, attempt.remote);
            return;
        }
        facts.route = self.route(&ns, attempt.remote.ip());
        if attempt.remote.is_ipv6() {
            facts.ipv6_disabled = sysctl::settings(&ns)
                .ok()
                .and_then(|s| Some(s.disable_ipv6_all? || s.disable_ipv6_lo.unwrap_or(false)));
        }
    }

    fn route(&mut self, ns: &NetNs, to: IpAddr) -> Option<RouteFact> {
        let key = (ns.inum(), to);
        if let Some((known, _)) = self.routes.get(&key).filter(|(_, at)| at.elapsed() < FRESH) {
            return known.clone();
        }
        let found = route_fact(ns, to);
        if self.routes.len() < MOST {
            self.routes.insert(key, (found.clone(), Instant::now()));
        }
        found
    }

    fn in_flight(&mut self, attempt: &Attempt, reach: Reach, facts: &mut Facts) {
        facts.queue_at_retransmit = self.queues.remove(&attempt.socket).map(|(queue, _)| queue);
        let Some(ns) = self.own(attempt) else {
            return;
        };
        facts.translated = translated(&ns, attempt);
        let target = facts.translated.unwrap_or(attempt.remote);
        let destination = self.destination(&ns, target);
        facts.is_local = destination.is_local;
        facts.listeners = destination.listeners;
        if let Some(icmp) = attempt.icmp {
            facts.icmp_sender_is_own = route::is_local(&ns, icmp.sender).ok();
        }
        let refused = attempt.reset || attempt.drop.as_ref().is_some_and(|d| d.class == DropClass::NoSocket);
        if !refused {
            facts.route = self.route(&ns, target.ip());
            let hop = facts.route.as_ref().and_then(|r| r.next_hop).unwrap_or(target.ip());
            facts.neighbour = neighbour(&ns, hop);
        }
        if let Some(drop) = attempt.drop.as_ref().filter(|d| d.saw(DropClass::Netfilter)) {
            let inum = if drop.netns == 0 { attempt.netns } else { drop.netns };
            facts.conntrack = self.open(inum, None).as_ref().and_then(table);
            if let Some((table, before)) = facts.conntrack.as_mut().zip(self.baselines.get(&inum)) {
                table.drops = table.drops.saturating_sub(*before);
            }
            self.name_rules(inum, attempt, facts);
        }
        let silent = attempt.drop.is_none() && attempt.icmp.is_none() && !attempt.reset;
        if silent && facts.is_local == Some(false) && (!reach.accept_queue || attempt.overflow.is_none()) {
            facts.peer_namespace = self.elsewhere(&ns, target).map(|peer| peer.place);
        }
    }

    /// What the rules of its own namespace do with an attempt that why502 made itself; None if they cannot be read.
    pub(super) fn foresee(&mut self, attempt: &Attempt, facts: &Facts) -> Option<super::rules::Foreseen> {
        let ns = self.own(attempt)?;
        if self.places.is_empty() {
            self.read_places();
        }
        let nft = self.places.contains_key("nft_do_chain");
        self.rules.foresee(&ns, nft, attempt, facts)
    }

    /// Which rule of that namespace it was.
    fn name_rules(&mut self, inum: u32, attempt: &Attempt, facts: &mut Facts) {
        if self.places.is_empty() {
            self.read_places();
        }
        let Some(ns) = self.open(inum, None) else {
            return;
        };
        // Without its function there is no nf_tables; asking would load it.
        let nft = self.places.contains_key("nft_do_chain");
        facts.rules = self.rules.name(&ns, nft, attempt, facts);
    }

    pub(super) fn destination(&mut self, ns: &NetNs, target: SocketAddr) -> Destination {
        let key = (ns.inum(), target);
        if let Some((known, _)) = self.destinations.get(&key).filter(|(_, at)| at.elapsed() < FRESH) {
            return known.clone();
        }
        let found = match listen::report(ns, target) {
            Ok(report) => Destination {
                is_local: Some(report.is_local_address),
                listeners: Some(Listeners {
                    exact: report.exact.iter().map(listening).collect(),
                    other_address: report.other_address.iter().map(listening).collect(),
                    near_port: report.near_port.iter().map(listening).collect(),
                }),
            },
            Err(_) => Destination::default(),
        };
        if self.destinations.len() < MOST {
            self.destinations.insert(key, (found.clone(), Instant::now()));
        }
        found
    }

    /// The namespace of this machine that has the destination's address.
    pub(super) fn elsewhere(&mut self, ns: &NetNs, target: SocketAddr) -> Option<Peer> {
        let key = (ns.inum(), target);
        if let Some((known, _)) = self.elsewhere.get(&key).filter(|(_, at)| at.elapsed() < FRESH) {
            return known.clone();
        }
        let found = listen::elsewhere(ns, target)
            .ok()
            .and_then(|(found, _)| found.into_iter().find(|e| e.has_address))
            .map(|e| Peer {
                place: resident(&e.resident),
                queue: e.listeners.first().map(listening),
                resident: e.resident,
            });
        if self.elsewhere.len() < MOST {
            self.elsewhere.insert(key, (found.clone(), Instant::now()));
        }
        found
    }
}

/// Where DNAT sent a connection: by the packet that was dropped, or by the conntrack entry.
pub(super) fn translated(ns: &NetNs, attempt: &Attempt) -> Option<SocketAddr> {
    let remote = attempt.remote;
    // A SYN that was seen on its way shows its destination: no need to ask.
    if let Some(drop) = attempt.drop.as_ref().filter(|d| !d.reply) {
        return (drop.wire_dst != remote).then_some(drop.wire_dst);
    }
    if attempt.local.port() == 0 {
        return None;
    }
    conntrack::limits(ns).ok().flatten()?;
    conntrack::lookup(ns, attempt.local, remote).ok().flatten()?.translated(remote)
}

/// The netfilter hook, by the IP-layer function that ran it (net/ipv4/ip_{input,output,forward}.c and IPv6).
const HOOKS: &[(&str, &[&str])] = &[
    ("output", &["__ip_local_out", "ip_local_out", "__ip6_local_out", "ip6_local_out", "ip6_xmit"]),
    ("input", &["ip_local_deliver", "ip6_input"]),
    ("forward", &["ip_forward", "ip6_forward"]),
    (
        "prerouting",
        &["ip_rcv", "ipv6_rcv", "ip_list_rcv", "ipv6_list_rcv", "ip_sublist_rcv", "ip6_sublist_rcv"],
    ),
    ("postrouting", &["ip_output", "ip6_output", "ip_mc_output"]),
];

/// Which rule engine, by its own function among the callers.
const ENGINES: &[(&str, &[&str])] = &[
    (
        "nftables",
        &[
            "nft_do_chain",
            "nft_do_chain_ipv4",
            "nft_do_chain_ipv6",
            "nft_do_chain_inet",
            "nft_do_chain_netdev",
        ],
    ),
    ("iptables-legacy", &["ipt_do_table", "ip6t_do_table"]),
];

/// After this time modules may have been loaded.
const PLACES_AGAIN: Duration = Duration::from_secs(10);

/// A namespace in words: its container, its name, or a process in it.
fn resident(r: &netns::Resident) -> String {
    match (&r.container, &r.name, r.pid) {
        (Some(container), ..) => format!("container {container}"),
        (None, Some(name), _) => format!("network namespace {name}"),
        (None, None, Some(pid)) => {
            format!("the network namespace of {} (pid {pid})", crate::sys::proc::comm(pid))
        }
        (None, None, None) => format!("network namespace {}", r.inum),
    }
}

fn listening(found: &Found) -> Listening {
    Listening {
        address: found.listener.local,
        owner: found.owner.as_ref().map(owner),
        queued: found.listener.recv_q,
        limit: found.listener.send_q,
    }
}

pub(super) fn owner(owner: &Owner) -> String {
    let name = owner.exe.as_deref().unwrap_or(&owner.comm);
    match &owner.container {
        Some(container) => format!("{name} (pid {}, {container})", owner.pid),
        None => format!("{name} (pid {})", owner.pid),
    }
}

fn fds(worker: u32) -> Option<FdFact> {
    let usage = process::fd_usage(worker).ok()?;
    Some(FdFact {
        open: usage.open,
        soft: usage.soft,
        hard: usage.hard,
        host_open: usage.host_open,
        host_max: usage.host_max,
    })
}

fn ports(ns: &NetNs, remote: SocketAddr) -> Option<PortsFact> {
    let range = sysctl::settings(ns).ok()?.local_ports?;
    let used = sockdiag::count_to(ns, remote).ok()?;
    Some(PortsFact {
        range,
        to_destination: used.states.total(),
        time_wait: used.states.get(sockdiag::TcpState::TimeWait),
    })
}

fn route_fact(ns: &NetNs, to: IpAddr) -> Option<RouteFact> {
    let found = route::lookup(ns, &route::Query::to(to)).ok()?;
    let entry = found.matched.as_ref().map(ToString::to_string);
    let matched_kind = found.matched.as_ref().map(|m| m.kind.name().to_owned());
    Some(match found.result {
        Ok(r) => RouteFact {
            errno: None,
            kind: Some(r.kind.name().to_owned()),
            entry,
            next_hop: Some(r.gateway.unwrap_or(to)),
            device: r.oif.as_ref().map(|l| l.name.clone()),
            device_up: r.oif.as_ref().map(|l| l.up && l.carrier.unwrap_or(true)),
            device_xdp: r.oif.as_ref().is_some_and(|l| l.xdp),
        },
        Err(errno) => RouteFact {
            errno: Some(errno),
            kind: matched_kind,
            entry,
            next_hop: None,
            device: None,
            device_up: None,
            device_xdp: false,
        },
    })
}

fn neighbour(ns: &NetNs, hop: IpAddr) -> Option<NeighbourFact> {
    let found = link::neighbours(ns, hop, None).ok()?.into_iter().next()?;
    let state = found.state.name().to_owned();
    let failed = matches!(state.as_str(), "FAILED" | "INCOMPLETE");
    Some(NeighbourFact { ip: found.ip, state, failed, device: found.dev })
}

/// The connection tracking table of a namespace, with its drops since it began.
pub(super) fn table(ns: &NetNs) -> Option<ConntrackFact> {
    let limits = conntrack::limits(ns).ok().flatten()?;
    let drops = conntrack::stat_drops(ns).ok().flatten().map_or(0, |d| d.drop);
    Some(ConntrackFact { count: limits.count, max: limits.max, drops })
}
