//! One failed attempt with everything that is known about it: the kernel's record, facts from user space,
//! and the lines of the configuration. Pure data; diagnosis reads it and nothing else.

pub mod backend;
pub mod blocked;
pub mod ending;
pub mod no_attempt;
pub mod request;
pub mod said;
pub mod selinux;
pub mod story;
pub mod talk;
pub mod unix;

use std::{
    borrow::Cow,
    net::{IpAddr, SocketAddr},
};

use crate::{
    event::{Attempt, said::Said},
    firewall::Naming,
    nginx,
};

/// Which kinds of evidence could have been seen. Where a hook is missing, its silence proves nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, serde::Serialize, serde::Deserialize)]
#[expect(clippy::struct_excessive_bools, reason = "one independent fact each")]
pub struct Reach {
    /// Dropped packets.
    pub drops: bool,
    /// The kernel gives a reason with each drop (5.17).
    pub drop_reasons: bool,
    /// Arriving RSTs.
    pub resets: bool,
    /// Every ICMP error; without it IPv4 errors are still found in the error queue, IPv6 ones are not.
    pub icmp: bool,
    /// Full accept queues at the moment of the SYN.
    pub accept_queue: bool,
    /// Refusals by security modules.
    pub security: bool,
    /// Who refused, and refusals of other calls than connect().
    pub blockers: blocked::Watched,
    /// What is read from and written to connections that stand.
    pub talk: bool,
    /// The same of unix sockets.
    pub unix_talk: bool,
    /// Processes that end while they hold the far end, and who killed them.
    pub deaths: bool,
}

/// A socket that listens, in words fit for evidence.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Listening {
    /// Local address.
    pub address: SocketAddr,
    /// `node (pid 4121)`, if the owner could be found.
    pub owner: Option<String>,
    /// Connections waiting in the accept queue.
    pub queued: u32,
    /// The queue's limit.
    pub limit: u32,
}

impl Listening {
    /// True if the next SYN would be dropped: the kernel compares with `>` (sk_acceptq_is_full).
    #[must_use]
    pub fn full(&self) -> bool {
        self.queued > self.limit
    }
}

/// Listeners around the destination, in the worker's network namespace.
#[derive(Debug, Clone, PartialEq, Eq, Default, serde::Serialize, serde::Deserialize)]
pub struct Listeners {
    /// Sockets that accept connections to the destination.
    pub exact: Vec<Listening>,
    /// Same port, other address.
    pub other_address: Vec<Listening>,
    /// Ports that look like the wanted one.
    pub near_port: Vec<Listening>,
}

/// The kernel's answer to "how would you route this".
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct RouteFact {
    /// errno of the look-up (positive); None if there is a route.
    pub errno: Option<i32>,
    /// Type: `unicast`, `local`, `prohibit`, `blackhole`, `unreachable`, `throw`.
    pub kind: Option<String>,
    /// The matching entry as `ip route` would show it.
    pub entry: Option<String>,
    /// Next hop: the gateway, or the destination itself on the link.
    pub next_hop: Option<IpAddr>,
    /// Outgoing interface.
    pub device: Option<String>,
    /// The interface is up and has a carrier.
    pub device_up: Option<bool>,
    /// An XDP program is attached to it: what that drops, nobody sees.
    pub device_xdp: bool,
}

/// State of a neighbour (ARP or ND) entry.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct NeighbourFact {
    /// The next hop.
    pub ip: IpAddr,
    /// Kernel's name of the state, such as `FAILED`.
    pub state: String,
    /// True for FAILED and INCOMPLETE.
    pub failed: bool,
    /// Interface.
    pub device: String,
}

/// The connection tracking table of one network namespace.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct ConntrackFact {
    /// Entries.
    pub count: u32,
    /// Limit.
    pub max: u32,
    /// Packets dropped because the table was full, since why502 watches the namespace (of a namespace without
    /// watched processes: ever).
    pub drops: u64,
}

impl ConntrackFact {
    /// True if no entry can be added.
    #[must_use]
    pub fn full(&self) -> bool {
        self.max > 0 && self.count >= self.max
    }
}

/// Local ports.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct PortsFact {
    /// `net.ipv4.ip_local_port_range`.
    pub range: (u16, u16),
    /// Sockets to that destination (all states with a port, TIME_WAIT included).
    pub to_destination: u32,
    /// Of these in TIME_WAIT.
    pub time_wait: u32,
}

/// File descriptors of the worker.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct FdFact {
    /// Open now.
    pub open: u64,
    /// Soft limit (RLIMIT_NOFILE).
    pub soft: u64,
    /// Hard limit.
    pub hard: u64,
    /// Open on the whole host.
    pub host_open: Option<u64>,
    /// Limit of the whole host (fs.file-max).
    pub host_max: Option<u64>,
}

/// What user space found out, each only where the kernel's record pointed to it; None: not asked, or no
/// answer.
#[derive(Debug, Clone, Default, serde::Serialize, serde::Deserialize)]
pub struct Facts {
    /// The destination is an address of the worker's own network namespace.
    pub is_local: Option<bool>,
    /// Listeners now.
    pub listeners: Option<Listeners>,
    /// The accept queue of the exact listener when the first SYN went unanswered.
    pub queue_at_retransmit: Option<Listening>,
    /// Another network namespace of this machine owns the destination address; its description.
    pub peer_namespace: Option<String>,
    /// The namespace that dropped a packet, answered for, or overflowed, if it is not the worker's own.
    pub other_namespace: Option<String>,
    /// The ICMP sender is an address of the worker's own network namespace.
    pub icmp_sender_is_own: Option<bool>,
    /// Route to the destination.
    pub route: Option<RouteFact>,
    /// Neighbour entry of the next hop.
    pub neighbour: Option<NeighbourFact>,
    /// Conntrack of the namespace in which the drop happened.
    pub conntrack: Option<ConntrackFact>,
    /// Where DNAT sent the connection.
    pub translated: Option<SocketAddr>,
    /// Local ports.
    pub ports: Option<PortsFact>,
    /// File descriptors.
    pub fds: Option<FdFact>,
    /// IPv6 is switched off in the worker's network namespace (all or lo).
    pub ipv6_disabled: Option<bool>,
    /// Netfilter hook that dropped, by the callers' names: `output`, `input`, `forward`, `prerouting`,
    /// `postrouting`.
    pub drop_hook: Option<Cow<'static, str>>,
    /// `nft` or `iptables-legacy`, by the callers' names.
    pub drop_engine: Option<Cow<'static, str>>,
    /// Which rules can have dropped it; None: not asked, or they could not be read.
    pub rules: Option<Naming>,
    /// Kernel's name of the drop reason, without prefix.
    pub drop_reason: Option<String>,
    /// Kernel function that freed the packet.
    pub drop_function: Option<String>,
    /// The unix socket that could not be connected to.
    pub unix: Option<Box<unix::UnixFact>>,
    /// Who may have refused.
    pub suspects: Option<Box<blocked::Suspects>>,
    /// Nothing was attempted: what nginx had to choose from.
    pub no_attempt: Option<Box<no_attempt::NoAttempt>>,
    /// What SELinux decided in the same system call.
    pub selinux: Option<Box<selinux::SelinuxFact>>,
    /// The far end of a connection that stood.
    pub backend: Box<backend::Backend>,
    /// What nginx itself says of the attempt, where it is asked.
    pub said: Option<Said>,
}

/// One failed attempt.
#[derive(Debug, Clone, serde::Serialize, serde::Deserialize)]
pub struct Case {
    /// The kernel's record.
    pub attempt: Attempt,
    /// The client that left, if nginx closed its connection in the same breath; true if it reset it.
    pub client_gone: Option<(SocketAddr, bool)>,
    /// The status with which nginx answered the client after this attempt; None if that was not seen.
    pub client_saw: Option<u16>,
    /// What could have been seen.
    pub reach: Reach,
    /// What user space found.
    pub facts: Facts,
    /// Configuration lines that lead to the destination; several if it is ambiguous.
    pub config: Vec<nginx::Candidate>,
    /// What the configuration's own story has to say.
    pub story: Option<Box<story::Story>>,
    /// What nginx told its log of it, for people; [`Facts::said`] is what it means.
    pub word: Option<Box<story::Word>>,
}

/// How an attempt in SYN_SENT ended without an error from the network.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum GaveUp {
    /// nginx's connect timer: the time fits a directive in force, or no directive is known.
    Timer,
    /// The kernel's SYN retransmissions ran out (ETIMEDOUT).
    Kernel,
    /// nginx closed it because the client had left.
    ClientGone,
    /// The worker ended.
    WorkerEnded,
    /// nginx closed it before any known timer could have run out, for a reason not seen.
    Early,
}

/// How much earlier than its length nginx's timer can end an attempt, milliseconds: it is set from a clock
/// that is read once per round of the event loop (src/core/ngx_times.c), so it starts as long before connect()
/// as the round took until then. Rounds of half a second mean a worker in trouble.
fn timer_slack_ms(timeout_ms: u64) -> u64 {
    (timeout_ms / 2).min(500) + 15
}

impl Case {
    /// Of an attempt and what was found out about it; its client and its nginx are not known yet.
    #[must_use]
    pub fn new(attempt: Attempt, reach: Reach, facts: Facts, config: Vec<nginx::Candidate>) -> Self {
        Self { attempt, client_gone: None, client_saw: None, reach, facts, config, story: None, word: None }
    }

    /// Whose request it was is known now: another client, which left in the same moment, was nothing to this attempt. True if
    /// it was thought to be.
    pub fn forget_other_client(&mut self, client: SocketAddr) -> bool {
        let same = |gone: SocketAddr| {
            gone.port() == client.port() && gone.ip().to_canonical() == client.ip().to_canonical()
        };
        self.client_gone.take_if(|(gone, _)| !same(*gone)).is_some()
    }

    /// SYNs that this host tried to send.
    #[must_use]
    pub fn syns(&self) -> u32 {
        u32::from(self.attempt.retransmits) + 1
    }

    /// The connect timeouts in force for any candidate, milliseconds.
    pub fn connect_timeouts(&self) -> impl Iterator<Item = u64> + '_ {
        self.config.iter().flat_map(|c| &c.connect_timeouts).filter_map(|t| t.milliseconds)
    }

    /// The connect timeout that the attempt's duration fits.
    #[must_use]
    pub fn timer(&self) -> Option<&nginx::Timeout> {
        let lasted_ms = self.attempt.duration_us()? / 1000;
        self.config
            .iter()
            .flat_map(|c| &c.connect_timeouts)
            .filter(|t| t.milliseconds.is_some_and(|ms| ms <= lasted_ms + timer_slack_ms(ms)))
            .max_by_key(|t| t.milliseconds)
    }

    /// Tells apart the ways to end in SYN_SENT without RST or ICMP error; None if it ended otherwise.
    #[must_use]
    pub fn gave_up(&self) -> Option<GaveUp> {
        let a = &self.attempt;
        if a.stage != crate::event::Stage::SynSent || a.reset || a.icmp.is_some() {
            return None;
        }
        if a.sk_err == libc::ETIMEDOUT {
            return Some(GaveUp::Kernel);
        }
        if a.sk_err != 0 || !a.app_closed {
            return None;
        }
        if a.exiting {
            return Some(GaveUp::WorkerEnded);
        }
        // Before the client: with proxy_ignore_client_abort a client may have left long before the timer.
        if self.timer().is_some() {
            return Some(GaveUp::Timer);
        }
        if self.answered_by_timer() {
            return Some(GaveUp::Timer);
        }
        // nginx answers no client that it takes for gone (ngx_http_finalize_request).
        if self.client_gone.is_some() && self.client_saw.is_none() && a.noted.is_none() {
            return Some(GaveUp::ClientGone);
        }
        let unknown = a.start_ns.is_none() || self.connect_timeouts().next().is_none();
        Some(if unknown { GaveUp::Timer } else { GaveUp::Early })
    }

    /// 502 or 504 that nginx made of this attempt: it has noted that, or its client got it, and nothing but failed attempts came between.
    #[must_use]
    pub fn own_status(&self) -> Option<u16> {
        let seen =
            self.client_saw.filter(|status| matches!(status, 502 | 504) && self.attempt.number.is_some());
        self.attempt.noted.or(seen)
    }

    /// True if nginx has noted the status that stands for its timer, or the client got it, and nothing but failed attempts came between its
    /// request and this one: the client had not left, and of its reasons to end an attempt without an error nginx had
    /// no other. If a later attempt's backend sent that status, nginx had gone on to it.
    fn answered_by_timer(&self) -> bool {
        self.own_status() == Some(504)
    }

    /// True if nginx's connect timer is what ended the attempt: its duration fits a configured one and nothing else can
    /// have, or the client got the status that stands for it, and no other attempt can have led to that.
    #[must_use]
    pub fn timer_is_certain(&self) -> bool {
        if self.answered_by_timer() {
            return true;
        }
        let whole = |t: &nginx::Timeout| {
            self.attempt.duration_us().zip(t.milliseconds).is_some_and(|(us, ms)| us / 1000 >= ms)
        };
        self.timer().is_some_and(|t| whole(t) || self.client_gone.is_none())
    }

    /// Every SYN that was sent is known to have been dropped by this machine, so no answer can be the
    /// peer's.
    #[must_use]
    pub fn all_syns_dropped(&self) -> bool {
        self.attempt.drop.as_ref().is_some_and(|d| !d.reply && d.count >= self.syns())
    }
}
