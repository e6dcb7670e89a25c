//! The far end of a connection that stood: whose it is or was, what is left in its queue, what its process does, and whether
//! that ended.

use std::{
    collections::{HashMap, VecDeque},
    net::{IpAddr, SocketAddr},
    time::{Duration, Instant},
};

use tracer_ebpf::loopback::is_own;

use super::{
    clock::{boottime_ns, monotonic_ns},
    explain::may_be_a_last_word,
    facts::{Gatherer, owner, translated},
};
use crate::{
    correlate::{
        Case, Facts,
        backend::{Backend, Far, Holder, Socket, Threads, told_to_end},
        ending,
    },
    event::{self, Attempt, Death, UnixName},
    sys::{
        netns::NetNs,
        owners::{self, Budget},
        proc,
        sockdiag::{self, TcpState},
        threads,
    },
};

/// Closes at far ends that are kept, by what they are known by.
const MOST_DEATHS: usize = 4096;
/// How long: an attempt's record comes in the same breath, but may wait to be explained.
const KEEP_NS: u64 = 120 * 1_000_000_000;
/// Between the beginning of a server's last word and its close.
const LAST_WORD_NS: u64 = 20_000_000;
/// Servers whose idle ends are kept, and how many of each.
const MOST_SERVERS: usize = 1024;
const MOST_IDLE: usize = 16;
/// Far ends that were looked at before their attempt is explained.
const MOST_LOOKS: usize = 256;
/// Processes that are remembered as holders of a server's connections.
const MOST_HOLDERS: usize = 16;
/// Between two searches through all of /proc for a holder.
const SCAN_AGAIN: Duration = Duration::from_millis(200);
/// What such a search may cost.
const SCAN: Budget = Budget { time: Duration::from_millis(40), descriptors: 60_000 };

/// What a close is known by: the socket of nginx, or both addresses.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
enum Key {
    Socket(u64),
    Ends(SocketAddr, SocketAddr),
}

/// A server's address.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) enum Server {
    At(SocketAddr),
    Unix(UnixName),
}

/// A process that closed a far end.
#[derive(Debug, Clone)]
struct Closer {
    death: Death,
    /// It made the close itself, nobody had told it to end, and it was seen alive for so long after that its end, if one came, was
    /// another matter.
    lived: bool,
}

impl Closer {
    fn of(death: Death) -> Self {
        // Interpreters close what they hold as they end, and take some milliseconds for the rest.
        const LONG_NS: u64 = 20_000_000;
        let long = || monotonic_ns().saturating_sub(death.time_ns) >= LONG_NS;
        let lived = !death.ending && !told_to_end(&death) && long() && !is_gone(&death);
        Self { death, lived }
    }
}

/// What is remembered of backends.
#[derive(Debug, Default)]
pub(super) struct Backends {
    deaths: HashMap<Key, Closer>,
    order: VecDeque<(Key, u64)>,
    idle: HashMap<SocketAddr, VecDeque<u64>>,
    /// Looks at far ends, by nginx's socket and the end of its connection.
    looks: HashMap<(u64, u64), Backend>,
    holders: HashMap<Server, VecDeque<u32>>,
    scanned: Option<Instant>,
}

impl Backends {
    /// Takes what the kernel tells of a process that closed a far end.
    pub(super) fn died(&mut self, death: Death) {
        let key = match death.socket {
            0 => Key::Ends(death.local, death.remote),
            socket => Key::Socket(socket),
        };
        if self.order.len() >= MOST_DEATHS {
            self.forget_oldest();
        }
        self.order.push_back((key.clone(), death.time_ns));
        self.deaths.insert(key, Closer::of(death));
    }

    fn forget_oldest(&mut self) {
        if let Some((key, time_ns)) = self.order.pop_front()
            && self.deaths.get(&key).is_some_and(|closer| closer.death.time_ns == time_ns)
        {
            self.deaths.remove(&key);
        }
    }

    /// Forgets what is too old to matter.
    pub(super) fn sweep(&mut self, now_ns: u64) {
        while self.order.front().is_some_and(|(_, time_ns)| now_ns.saturating_sub(*time_ns) > KEEP_NS) {
            self.forget_oldest();
        }
        self.looks.retain(|(_, end_ns), _| now_ns.saturating_sub(*end_ns) < KEEP_NS);
    }

    /// The process that closed the far end of that attempt's connection.
    fn death_of(&self, attempt: &Attempt) -> Option<&Death> {
        self.closer_of(attempt).map(|closer| &closer.death)
    }

    fn closer_of(&self, attempt: &Attempt) -> Option<&Closer> {
        let ends = Key::Ends(attempt.local, attempt.remote);
        let closer = self.deaths.get(&Key::Socket(attempt.socket)).or_else(|| self.deaths.get(&ends))?;
        let found = &closer.death;
        let other =
            found.socket == 0 && !is_own(&event::addr(attempt.remote.ip()), found.netns, attempt.netns);
        // The record of a server's own 5xx is made as that begins.
        let behind = if may_be_a_last_word(attempt) { LAST_WORD_NS } else { 0 };
        let in_time = attempt.start_ns.is_none_or(|start| found.time_ns >= start)
            && found.time_ns <= attempt.end_ns.saturating_add(behind);
        (in_time && !other).then_some(closer)
    }

    /// True while the process that closed that attempt's far end, and had been told to end, is still about to.
    pub(super) fn is_undecided(&self, attempt: &Attempt) -> bool {
        const LONGEST_NS: u64 = 1_500_000_000;
        self.death_of(attempt).is_some_and(|death| {
            let young = monotonic_ns().saturating_sub(death.time_ns) < LONGEST_NS;
            !death.ending && young && told_to_end(death) && !is_gone(death)
        })
    }

    /// Notes how long a server kept a connection that nobody used, and tells what is known of that.
    pub(super) fn note_idle(&mut self, case: &mut Case) {
        let Some(idle_us) = ending::idle_end_us(case) else { return };
        let server = case.attempt.remote;
        if self.idle.len() >= MOST_SERVERS && !self.idle.contains_key(&server) {
            return;
        }
        let known = self.idle.entry(server).or_default();
        if known.len() >= MOST_IDLE {
            known.pop_front();
        }
        known.push_back(idle_us);
        case.facts.backend.idle_ends_us = known.iter().copied().collect();
    }

    /// The process that holds a socket: one of those that held others of that server, else by a search, now and then.
    pub(super) fn holder_of(&mut self, remote: Server, inode: u32) -> Option<Holder> {
        let known = self.holders.entry(remote).or_default();
        let mut found = known.iter().copied().find(|pid| owners::holds(*pid, inode));
        if found.is_none() && self.scanned.is_none_or(|at| at.elapsed() >= SCAN_AGAIN) {
            self.scanned = Some(Instant::now());
            found = owners::find(&[inode], SCAN).get(inode).map(|owner| owner.pid);
            if let Some(pid) = found {
                if known.len() >= MOST_HOLDERS {
                    known.pop_back();
                }
                known.push_front(pid);
            }
        }
        if self.holders.len() > MOST_SERVERS {
            self.holders.clear();
        }
        let pid = found?;
        Some(Holder { name: owner(&owners::describe(pid)), threads: states(&threads::of(pid)) })
    }
}

fn states(found: &threads::Threads) -> Threads {
    let mut sum = Threads { waits_in: found.waits_in.clone(), ..Threads::default() };
    for state in &found.states {
        let count = match state {
            b'R' => &mut sum.running,
            b'S' => &mut sum.sleeping,
            b'D' => &mut sum.blocked,
            b'T' | b't' => &mut sum.stopped,
            _ => &mut sum.other,
        };
        *count += 1;
    }
    sum
}

/// True if that process is gone, or only its exit status is left.
fn is_gone(death: &Death) -> bool {
    let stat = proc::read_up_to(format!("/proc/{}/stat", death.pid), 1024).ok();
    let Some(stat) = stat.as_deref().and_then(proc::parse_stat) else {
        return true;
    };
    // Another one may have its number by now. /proc counts hundredths of a second from boot, suspension included.
    let asleep_ns = boottime_ns().saturating_sub(monotonic_ns());
    let began_ns = stat.start_ticks.saturating_mul(10_000_000);
    let same = began_ns.abs_diff(death.start_ns.saturating_add(asleep_ns)) < 100_000_000;
    matches!(stat.state, b'Z' | b'X') || !same
}

impl Gatherer {
    /// The connection stood: who is at its far end.
    pub(super) fn standing(&mut self, attempt: &Attempt, facts: &mut Facts) {
        let looked = self.backends.looks.remove(&(attempt.socket, attempt.end_ns));
        let own = if attempt.no_remote { None } else { self.own(attempt) };
        if let Some(own) = &own {
            facts.translated = translated(own, attempt);
            let target = facts.translated.unwrap_or(attempt.remote);
            let destination = self.destination(own, target);
            facts.is_local = destination.is_local;
            facts.listeners = destination.listeners;
            if facts.is_local == Some(false) {
                facts.peer_namespace = self.elsewhere(own, target).map(|peer| peer.place);
            }
        }
        let mut backend = match looked {
            Some(looked) => looked,
            None if attempt.unix.is_some() => self.look_at_unix(attempt),
            None => self.look(attempt, own.as_ref(), facts.translated),
        };
        backend.here = match (facts.is_local, &facts.peer_namespace) {
            _ if attempt.unix.is_some() => Some(true),
            (Some(true), _) | (_, Some(_)) => Some(true),
            (Some(false), None) => Some(false),
            (None, None) => None,
        };
        backend.death = self.backends.death_of(attempt).cloned();
        if let Some(death) = &backend.death {
            // Of one that lived on for a while and is gone now it is only known that it did not end by that.
            let lived = self.backends.closer_of(attempt).is_some_and(|closer| closer.lived);
            backend.gone = Some(is_gone(death)).filter(|gone| !(*gone && lived));
            if backend.socket.is_none() || !death.ending {
                backend.looked_us = monotonic_ns().saturating_sub(attempt.end_ns) / 1000;
            }
        }
        Self::pool_of(attempt, &mut backend);
        *facts.backend = backend;
    }

    /// Looks at the far end at once, for an attempt that is to wait before it is explained: what is in a queue does not.
    pub(super) fn look_early(&mut self, attempt: &Attempt) {
        if self.backends.looks.len() >= MOST_LOOKS || (attempt.no_remote && attempt.unix.is_none()) {
            return;
        }
        let own = self.own(attempt);
        let backend = match &attempt.unix {
            Some(_) => self.look_at_unix(attempt),
            None => self.look(attempt, own.as_ref(), None),
        };
        self.backends.looks.insert((attempt.socket, attempt.end_ns), backend);
    }

    /// The far end's socket and its holder, in the namespace that has its address.
    fn look(&mut self, attempt: &Attempt, own: Option<&NetNs>, to: Option<SocketAddr>) -> Backend {
        let mut found = Backend::default();
        let Some(own) = own else { return found };
        let target = to.unwrap_or(attempt.remote);
        let there = match self.destination(own, target).is_local {
            Some(true) => Some(own.clone()),
            Some(false) => self.elsewhere(own, target).and_then(|peer| peer.open()),
            None => None,
        };
        let Some(there) = there else { return found };
        let Ok(socket) = sockdiag::connection(&there, target, attempt.local) else { return found };
        found.looked_us = monotonic_ns().saturating_sub(attempt.end_ns) / 1000;
        let Some(socket) = socket else {
            found.socket = Some(Far::None);
            return found;
        };
        // nginx's FIN counts as a byte that is not read.
        let fin = matches!(socket.state, TcpState::CloseWait | TcpState::LastAck | TcpState::Closing);
        let closed = !matches!(socket.state, TcpState::Established | TcpState::CloseWait | TcpState::SynRecv);
        found.socket = Some(Far::Some(Socket {
            // A socket that waits for accept() has no inode; nor has one whose process closed it.
            accepted: socket.inode != 0 || closed,
            closed,
            unread: socket.recv_q.saturating_sub(u32::from(fin)),
            unsent: socket.send_q,
        }));
        if socket.inode != 0 {
            found.holder = self.backends.holder_of(Server::At(target), socket.inode);
        } else if !closed {
            // It waits in the accept queue: who should have taken it.
            let serves = |ip: IpAddr| ip == target.ip() || ip.is_unspecified();
            let listening = sockdiag::listeners(&there).unwrap_or_default();
            let one = listening.iter().find(|l| l.local.port() == target.port() && serves(l.local.ip()));
            found.holder = one.and_then(|l| self.backends.holder_of(Server::At(target), l.inode));
        }
        found
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::event::Stage;

    fn death(socket: u64, local: &str, remote: &str, time_ns: u64, netns: u32) -> Death {
        Death {
            pid: 7,
            time_ns,
            socket,
            netns,
            unread: 0,
            local: local.parse().unwrap(),
            remote: remote.parse().unwrap(),
            ending: true,
            status: Some(1),
            signal: None,
            core: false,
            parent: 1,
            sent: None,
            start_ns: 1,
            child_ended_ns: None,
            oom: false,
            comm: "node".to_owned(),
        }
    }

    fn attempt(local: &str, remote: &str) -> Attempt {
        Attempt {
            socket: 0x10,
            netns: 5,
            start_ns: Some(1_000),
            end_ns: 9_000,
            local: local.parse().unwrap(),
            remote: remote.parse().unwrap(),
            ..Attempt::blank(Stage::Established, 3)
        }
    }

    #[test]
    fn a_death_belongs_to_the_connection_that_it_ended() {
        let (near, far) = (("127.0.0.1:40000", "127.0.0.1:3000"), ("10.0.0.1:40000", "10.0.0.2:3000"));
        let other = "127.0.0.1:40001";
        for (name, death, attempt, fits) in [
            ("the same ends", death(0, near.0, near.1, 5_000, 5), attempt(near.0, near.1), true),
            ("another port", death(0, other, near.1, 5_000, 5), attempt(near.0, near.1), false),
            ("another's loopback", death(0, near.0, near.1, 5_000, 6), attempt(near.0, near.1), false),
            (
                "of nobody knows which loopback",
                death(0, near.0, near.1, 5_000, 0),
                attempt(near.0, near.1),
                false,
            ),
            ("a container's address", death(0, far.0, far.1, 5_000, 6), attempt(far.0, far.1), true),
            ("before the connection began", death(0, near.0, near.1, 500, 5), attempt(near.0, near.1), false),
            ("after it had ended", death(0, near.0, near.1, 9_500, 5), attempt(near.0, near.1), false),
            ("by the socket", death(0x10, other, far.1, 5_000, 0), attempt(near.0, near.1), true),
        ] {
            let mut backends = Backends::default();
            backends.died(death);
            assert_eq!(backends.death_of(&attempt).is_some(), fits, "{name}");
        }
    }

    #[test]
    fn who_lives_on_did_not_close_because_it_ended() {
        let stat = std::fs::read("/proc/self/stat").unwrap();
        let began = proc::parse_stat(&stat).unwrap().start_ticks * 10_000_000;
        let own = |change: fn(&mut Death)| {
            let mut death = death(1, "127.0.0.1:1", "127.0.0.1:2", 0, 5);
            death.pid = std::process::id();
            death.start_ns = began.saturating_sub(boottime_ns().saturating_sub(monotonic_ns()));
            (death.ending, death.status) = (false, None);
            change(&mut death);
            Closer::of(death).lived
        };
        assert!(own(|_| {}));
        assert!(!own(|death| death.ending = true), "the kernel closed it");
        assert!(!own(|death| death.time_ns = monotonic_ns()), "it may still be about to end");
        assert!(!own(|death| death.start_ns = 0), "another process has its number");
    }

    #[test]
    fn what_is_kept_is_bounded_and_goes_with_time() {
        let mut backends = Backends::default();
        for n in 0..u64::try_from(MOST_DEATHS).unwrap() + 10 {
            backends.died(death(n + 1, "127.0.0.1:1", "127.0.0.1:2", n, 5));
        }
        assert_eq!((backends.deaths.len(), backends.order.len()), (MOST_DEATHS, MOST_DEATHS));
        backends.sweep(KEEP_NS + u64::try_from(MOST_DEATHS).unwrap() + 100);
        assert!(backends.deaths.is_empty());
    }
}
