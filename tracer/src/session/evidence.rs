//! What can have been seen, what was missed, and what came late.

use tracer_ebpf::{Evidence, flag, loopback::is_own};

use super::{Session, clock::monotonic_ns};
use crate::{
    correlate::{Reach, blocked::Watched},
    event::{self, Attempt, Stage},
    probes::{ask, load::Loaded},
};

/// Intervals of blindness that are remembered; they are very rare.
const MOST_BLIND: usize = 16;

/// What the attached probes can see.
pub(super) fn reach(loaded: &Loaded) -> Reach {
    Reach {
        drops: loaded.has("drop"),
        drop_reasons: !loaded.drop_reasons.is_empty(),
        resets: loaded.has("reset"),
        icmp: loaded.has("icmp4") && loaded.has("icmp6"),
        accept_queue: loaded.has("accept-queue"),
        security: loaded.has("security-connect"),
        blockers: blockers(loaded),
        talk: loaded.has("upstream-read") && loaded.has("upstream-write"),
        unix_talk: loaded.has("unix-read") && loaded.has("unix-close"),
        // The hook on every socket's state sees them; without the others it is not told who sent a signal.
        deaths: loaded.has("tcp-state"),
    }
}

fn blockers(loaded: &Loaded) -> Watched {
    let all = |probes: &[&str]| probes.iter().all(|probe| loaded.covers(probe));
    Watched {
        create: loaded.has("security-create"),
        bind: loaded.has("security-bind"),
        unix: all(&["security-unix", "security-path"]),
        selinux: all(&["selinux-connect", "selinux-create", "selinux-bind", "selinux-unix"]),
        avc: all(&["selinux-avc", "selinux-avc-entry"]),
        audit: loaded.covers("selinux-audited"),
        apparmor: all(&["apparmor-connect", "apparmor-create", "apparmor-bind", "apparmor-unix"]),
        tomoyo: all(&["tomoyo-connect", "tomoyo-bind"]),
        smack: all(&["smack-connect", "smack-unix"]),
        landlock: all(&["landlock-connect", "landlock-bind", "landlock-unix", "landlock-path"]),
        bpf: all(&["bpf-connect", "bpf-create", "bpf-bind", "bpf-unix"]),
        cgroup_connect: loaded.covers("cgroup-connect"),
        cgroup_create: loaded.covers("cgroup-create"),
        seccomp: false,
    }
}

impl Session<'_> {
    /// Notes when dropped packets may have been missed: the kernel skipped both programs that watch them.
    pub(super) fn note_blindness(&mut self) {
        let now = monotonic_ns();
        let skipped = self.ebpf.program("kfree_skb").and_then(ask::skipped_runs).unwrap_or(0);
        let unseen =
            if skipped == 0 { 0 } else { skipped.saturating_sub(self.maps.counters().drops_rescued) };
        if unseen > self.unseen_drops {
            self.unseen_drops = unseen;
            if self.blind.len() == MOST_BLIND {
                self.blind.pop_front();
            }
            self.blind.push_back((self.looked_ns, now));
        }
        self.looked_ns = now;
    }

    /// True if a packet of the attempt may have been dropped unseen.
    pub(super) fn was_blind(&self, attempt: &Attempt) -> bool {
        let start = attempt.start_ns.unwrap_or(0);
        self.blind.iter().any(|(from, to)| *from <= attempt.end_ns && *to >= start)
    }

    /// A packet freed on another CPU may have been noted just after the record was sent: the last SYN, as a rule,
    /// which goes out when nginx's timer and the kernel's meet.
    pub(super) fn add_late_evidence(&mut self, attempt: &mut Attempt) {
        let complete = attempt.icmp.is_some()
            || attempt.overflow.is_some()
            || attempt.drop.as_ref().is_some_and(|d| d.count > u32::from(attempt.retransmits));
        if complete || attempt.stage != Stage::SynSent || attempt.local.port() == 0 {
            return;
        }
        let Some(found) = self.maps.take_late_evidence(attempt.local, attempt.remote) else {
            return;
        };
        add(attempt, &found);
    }
}

/// Adds what of a flow's evidence lies within the attempt.
fn add(attempt: &mut Attempt, found: &Evidence) {
    let start = attempt.start_ns.unwrap_or(0);
    // The ports may have been used again since: only what lies within this attempt counts.
    let within = |ns: u64| ns != 0 && ns >= start && ns <= attempt.end_ns + 50_000_000;
    let (to, own) = (event::addr(attempt.remote.ip()), attempt.netns);
    let taken = |bit: u32, netns: u32| if is_own(&to, netns, own) { bit } else { flag::EVIDENCE_GAP };
    let mut flags = 0;
    if within(found.drop_last_ns) {
        flags |= taken(flag::DROP, found.drop_netns);
    }
    if within(found.icmp_ns) {
        flags |= flag::ICMP;
    }
    if within(found.overflow_ns) {
        flags |= taken(flag::LISTEN_OVERFLOW, found.backlog_netns);
    }
    attempt.evidence_gap |= flags & flag::EVIDENCE_GAP != 0;
    if let Ok((mut drop, icmp, overflow)) = event::evidence(found, flags) {
        if let Some(drop) = &mut drop {
            drop.forget_before(start);
        }
        attempt.drop = match (attempt.drop.take(), drop) {
            (Some(seen), Some(late)) => Some(seen.and_later(late)),
            (seen, late) => seen.or(late),
        };
        attempt.icmp = icmp;
        attempt.overflow = overflow;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tracer_ebpf::{drop_class, loopback::is_loopback};

    const OWN: u32 = 7;
    const OTHER: u32 = 8;

    fn attempt(remote: &str) -> Attempt {
        Attempt {
            netns: OWN,
            start_ns: Some(1_000),
            end_ns: 9_000,
            remote: remote.parse().unwrap(),
            ..Attempt::blank(Stage::SynSent, 3)
        }
    }

    /// A dropped packet and a full queue, seen in that namespace.
    fn seen(netns: u32) -> Evidence {
        let mut e = event::read_evidence(&[0; size_of::<Evidence>()]).unwrap();
        (e.drop_first_ns, e.drop_last_ns, e.drop_count) = (5_000, 5_000, 1);
        (e.drop_class, e.drop_netns) = (drop_class::NETFILTER, netns);
        (e.overflow_ns, e.backlog, e.backlog_max, e.backlog_netns) = (5_000, 2, 1, netns);
        e
    }

    #[test]
    fn loopback_addresses() {
        for (text, expected) in [
            ("127.0.0.1", true),
            ("127.255.0.9", true),
            ("::1", true),
            ("126.0.0.1", false),
            ("128.0.0.1", false),
            ("10.0.0.127", false),
            ("::", false),
            ("::2", false),
            ("1::1", false),
            // NAT64 of 10.0.0.1, and bytes that stand where IPv4's do.
            ("64:ff9b::a00:1", false),
            ("2001:db8::ffff:7f00:1", false),
        ] {
            let ip: std::net::IpAddr = text.parse().unwrap();
            assert_eq!(is_loopback(&event::addr(ip)), expected, "{text}");
            assert_eq!(ip.is_loopback(), expected, "{text}");
        }
    }

    #[test]
    fn what_another_namespace_may_have_seen_on_loopback_is_a_gap_and_no_proof() {
        for (remote, netns, taken) in [
            ("127.0.0.1:3000", OWN, true),
            ("[::1]:3000", OWN, true),
            ("127.0.0.1:3000", OTHER, false),
            ("127.0.0.1:3000", 0, false),
            ("[::1]:3000", 0, false),
            // A container's address names one connection, wherever its packets are dropped.
            ("10.0.0.2:3000", OTHER, true),
            ("10.0.0.2:3000", 0, true),
        ] {
            let mut a = attempt(remote);
            add(&mut a, &seen(netns));
            assert_eq!((a.drop.is_some(), a.overflow.is_some()), (taken, taken), "{remote} {netns}");
            assert_eq!(a.evidence_gap, !taken, "{remote} {netns}");
        }
        // Nor does a worker whose own namespace is not known have any.
        let mut a = Attempt { netns: 0, ..attempt("127.0.0.1:3000") };
        add(&mut a, &seen(0));
        assert!(a.drop.is_none() && a.evidence_gap);
    }

    #[test]
    fn what_lies_outside_the_attempt_is_neither() {
        for at_ns in [0, 999, 9_000 + 50_000_001] {
            let mut a = attempt("127.0.0.1:3000");
            add(&mut a, &Evidence { drop_last_ns: at_ns, overflow_ns: at_ns, ..seen(OTHER) });
            assert!(a.drop.is_none() && a.overflow.is_none() && !a.evidence_gap, "{at_ns}");
        }
        let mut a = attempt("10.0.0.2:3000");
        add(&mut a, &Evidence { drop_last_ns: 9_000 + 50_000_000, overflow_ns: 0, ..seen(OWN) });
        assert!(a.drop.is_some() && a.overflow.is_none());
    }
}
