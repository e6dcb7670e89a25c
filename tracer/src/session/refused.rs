//! Counts what each blocker refused, for the account at the end (`report::innocence`).

use std::collections::{BTreeMap, BTreeSet};

use crate::{
    diagnose::Cause,
    event::{Denial, Speaker},
    probes::{PROBES, Tier, denials},
};

/// Refusals of one call come closer together than two calls, ns.
const APART_NS: u64 = 100_000;

/// Refused calls by blocker.
#[derive(Debug, Default)]
pub(super) struct Refused {
    counts: BTreeMap<Cause, u64>,
    /// By thread: the last loose refusal, to count those of one call once.
    last: BTreeMap<(Cause, u32), u64>,
}

impl Refused {
    /// What was said in the system call that ended one attempt.
    pub(super) fn attempt(&mut self, denials: &[Denial]) {
        let causes: BTreeSet<Cause> = denials.iter().filter_map(refusal).collect();
        for cause in causes {
            *self.counts.entry(cause).or_default() += 1;
        }
    }

    /// What no attempt has claimed, in the order in which it was said.
    pub(super) fn loose(&mut self, denials: impl Iterator<Item = Denial>) {
        for denial in denials {
            let Some(cause) = refusal(&denial) else { continue };
            let before = self.last.insert((cause, denial.thread), denial.time_ns);
            if before.is_none_or(|before| denial.time_ns.saturating_sub(before) > APART_NS) {
                *self.counts.entry(cause).or_default() += 1;
            }
        }
    }

    pub(super) fn counts(&self) -> BTreeMap<Cause, u64> {
        self.counts.clone()
    }
}

/// The blocker that refused, if one did by its own word.
fn refusal(denial: &Denial) -> Option<Cause> {
    if denial.ret >= 0 {
        return None;
    }
    Some(match denial.speaker {
        Speaker::Selinux | Speaker::AvcDenied | Speaker::AvcAudit => Cause::BlockedSelinux,
        Speaker::Apparmor => Cause::BlockedApparmor,
        Speaker::BpfLsm => Cause::BlockedBpfLsm,
        Speaker::CgroupConnect | Speaker::CgroupCreate => Cause::BlockedCgroupBpf,
        Speaker::Seccomp => Cause::BlockedSeccomp,
        Speaker::Landlock => Cause::BlockedLandlock,
        Speaker::SumConnect
        | Speaker::SumUnix
        | Speaker::SumCreate
        | Speaker::SumBind
        | Speaker::SumSend
        | Speaker::SumRecv
        | Speaker::SumInode
        | Speaker::SumPath
        | Speaker::Tomoyo
        | Speaker::Smack => return None,
    })
}

/// Names of the programs that tell of refusals on a tier.
pub(super) fn programs(tier: Tier) -> BTreeSet<&'static str> {
    let told = |name: &str| denials::ROWS.iter().any(|row| row.name == name);
    PROBES.iter().filter(|p| told(p.name)).flat_map(|p| p.ways(tier)).map(|way| way.program).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn denial(speaker: Speaker, ret: i32, time_ns: u64) -> Denial {
        Denial {
            speaker,
            worker: 1,
            thread: 1,
            time_ns,
            socket: 0,
            ret,
            family: 2,
            remote: None,
            avc: None,
            syscall: None,
            arg: 0,
        }
    }

    #[test]
    fn a_call_counts_once() {
        let mut refused = Refused::default();
        let call = |at| [denial(Speaker::AvcDenied, -13, at), denial(Speaker::Selinux, -13, at + 5)];
        refused.attempt(&call(1));
        refused.loose(call(2).into_iter().chain(call(10_000_000)));
        assert_eq!(refused.counts().get(&Cause::BlockedSelinux), Some(&3));
        assert_eq!(refused.counts().get(&Cause::BlockedApparmor), None);
    }

    #[test]
    fn what_was_let_through_is_no_refusal() {
        let mut refused = Refused::default();
        refused.attempt(&[denial(Speaker::AvcDenied, 0, 1), denial(Speaker::SumConnect, -13, 1)]);
        assert_eq!(refused.counts().get(&Cause::BlockedSelinux), None);
    }

    #[test]
    fn programs_are_those_of_refusals() {
        let programs = programs(Tier::Full);
        assert!(programs.contains("selinux_connect_fexit"), "{programs:?}");
        assert!(!programs.contains("connect_fexit"));
    }
}
