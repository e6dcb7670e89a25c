//! What can have been seen, what was missed, and what came late.

use tracer_ebpf::flag;

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
        talk: loaded.has("upstream-read") && loaded.has("answer"),
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
        let start = attempt.start_ns.unwrap_or(0);
        // The ports may have been used again since: only what lies within this attempt counts.
        let within = |ns: u64| ns != 0 && ns >= start && ns <= attempt.end_ns + 50_000_000;
        let local = attempt.remote.ip().is_loopback();
        let mut flags = 0;
        if within(found.drop_last_ns) && (!local || found.drop_netns == attempt.netns) {
            flags |= flag::DROP;
        }
        if within(found.icmp_ns) {
            flags |= flag::ICMP;
        }
        if within(found.overflow_ns) && (!local || found.backlog_netns == attempt.netns) {
            flags |= flag::LISTEN_OVERFLOW;
        }
        if let Ok((mut drop, icmp, overflow)) = event::evidence(&found, flags) {
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
}
