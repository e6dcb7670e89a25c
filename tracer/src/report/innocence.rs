//! What a run says of a blocker that was asked for (`--cause blocked-…`): how much was checked, how much of it was denied,
//! and whether every denial would have been seen.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::{correlate::Reach, diagnose::Cause};

/// One blocker's account.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Checked {
    /// The cause.
    pub cause: Cause,
    /// Connects of workers that came by the hooks.
    pub connects: u64,
    /// Of these, and of the calls for their sockets, refused by this blocker.
    pub denied: u64,
    /// Every denial would have been seen, those too that no log has.
    pub complete: bool,
    /// Why not.
    pub gaps: Vec<String>,
    /// All of it in one line.
    pub text: String,
}

/// What a run noted for the account of any blocker.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Account {
    /// Which hooks were attached from beginning to end.
    pub reach: Reach,
    /// Runs of the hooks on refusals that the kernel skipped.
    pub skipped: u64,
    /// Refusals that were seen, by blocker.
    pub denied: BTreeMap<Cause, u64>,
}

impl Account {
    /// The account of one blocker; None for causes that are none. `lost`: records that were lost.
    #[must_use]
    pub fn of(&self, cause: Cause, connects: u64, lost: u64) -> Option<Checked> {
        let denied = self.denied.get(&cause).copied().unwrap_or(0);
        check(cause, connects, denied, &Run { reach: self.reach, lost, skipped: self.skipped })
    }
}

/// What may have kept a denial from being seen.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Run {
    reach: Reach,
    lost: u64,
    skipped: u64,
}

/// Who it is in words; None for causes that are no blockers.
#[must_use]
pub fn blocker(cause: Cause) -> Option<&'static str> {
    Some(match cause {
        Cause::BlockedSelinux => "SELinux",
        Cause::BlockedApparmor => "AppArmor",
        Cause::BlockedBpfLsm => "BPF LSM programs",
        Cause::BlockedCgroupBpf => "cgroup programs",
        Cause::BlockedSeccomp => "system call filters",
        Cause::BlockedLandlock => "Landlock",
        _ => return None,
    })
}

/// The hooks that must have been there, in words, with whether they were.
fn hooks(cause: Cause, reach: &Reach) -> Vec<(&'static str, bool)> {
    let b = &reach.blockers;
    let sums = [
        ("the sum of all modules on connect()", reach.security),
        ("on socket()", b.create),
        ("on bind()", b.bind),
        ("on unix connections", b.unix),
    ];
    match cause {
        Cause::BlockedSelinux => {
            [sums.as_slice(), &[("SELinux's own answers", b.selinux), ("its policy's denials", b.avc)]]
                .concat()
        }
        Cause::BlockedApparmor => [sums.as_slice(), &[("AppArmor's own answers", b.apparmor)]].concat(),
        Cause::BlockedLandlock => [sums.as_slice(), &[("Landlock's own answers", b.landlock)]].concat(),
        Cause::BlockedBpfLsm => [sums.as_slice(), &[("the answers of BPF LSM programs", b.bpf)]].concat(),
        Cause::BlockedCgroupBpf => vec![
            ("connect programs", b.cgroup_connect),
            ("socket programs", b.cgroup_create),
            ("the reason of dropped packets", reach.drops && reach.drop_reasons),
        ],
        Cause::BlockedSeccomp => vec![("calls that filters answer", b.seccomp)],
        _ => Vec::new(),
    }
}

/// `denied`: refusals of its own that were seen.
fn check(cause: Cause, connects: u64, denied: u64, run: &Run) -> Option<Checked> {
    let who = blocker(cause)?;
    let missing: Vec<&str> =
        hooks(cause, &run.reach).into_iter().filter(|(_, there)| !there).map(|(name, _)| name).collect();
    let mut gaps = Vec::new();
    if !missing.is_empty() {
        gaps.push(format!("not watched on this tier: {}", missing.join(", ")));
    }
    if run.lost > 0 {
        gaps.push(format!("{} records were lost", run.lost));
    }
    if run.skipped > 0 {
        gaps.push(format!("the kernel skipped {} runs of these hooks", run.skipped));
    }
    let complete = gaps.is_empty();
    let silent = match cause {
        Cause::BlockedSelinux | Cause::BlockedApparmor => ", including silenced denials",
        _ => "",
    };
    let text = if complete {
        format!("{connects} connects checked, {denied} denied by {who}{silent}")
    } else {
        format!(
            "{connects} connects, {denied} seen denied by {who}; this proves no innocence: {}",
            gaps.join("; ")
        )
    };
    Some(Checked { cause, connects, denied, complete, gaps, text })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::correlate::blocked::Watched;

    fn run(lost: u64, skipped: u64) -> Run {
        let reach = Reach {
            security: true,
            drops: true,
            drop_reasons: true,
            blockers: Watched::ALL,
            ..Reach::default()
        };
        Run { reach, lost, skipped }
    }

    #[test]
    fn innocence_needs_every_hook() {
        let text = |cause, run: &Run| check(cause, 7, 0, run).unwrap().text;
        assert_eq!(
            text(Cause::BlockedSelinux, &run(0, 0)),
            "7 connects checked, 0 denied by SELinux, including silenced denials"
        );
        assert_eq!(
            text(Cause::BlockedSeccomp, &run(0, 0)),
            "7 connects checked, 0 denied by system call filters"
        );
        let mut blind = run(0, 0);
        blind.reach.blockers.avc = false;
        let checked = check(Cause::BlockedSelinux, 7, 0, &blind).unwrap();
        assert!(!checked.complete && checked.text.contains("proves no innocence"), "{checked:?}");
        assert!(checked.text.contains("its policy's denials"), "{checked:?}");
        assert!(check(Cause::BlockedApparmor, 7, 0, &blind).unwrap().complete);
    }

    #[test]
    fn losses_are_gaps() {
        for (cause, run) in [(Cause::BlockedSelinux, run(1, 0)), (Cause::BlockedCgroupBpf, run(0, 2))] {
            let checked = check(cause, 7, 3, &run).unwrap();
            assert!(!checked.complete && checked.gaps.len() == 1 && checked.denied == 3, "{checked:?}");
        }
        assert_eq!(check(Cause::FdLimit, 7, 0, &run(0, 0)), None);
    }

    #[test]
    fn every_blocker_watches_something() {
        let none = Run { reach: Reach::default(), lost: 0, skipped: 0 };
        for cause in Cause::ALL.iter().filter(|cause| blocker(**cause).is_some()) {
            assert!(!hooks(*cause, &none.reach).is_empty(), "{cause}");
            assert!(!check(*cause, 1, 0, &none).unwrap().complete, "{cause}");
        }
    }
}
