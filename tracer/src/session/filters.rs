//! System call filters: the hook that sees their answers costs every filtered process of the host some nanoseconds a
//! system call, so it is attached only when a watched process has a filter.

use std::collections::HashSet;

use aya::Ebpf;

use crate::{
    probes::{Tier, denials::SECCOMP, load},
    sys::proc,
};

/// What is known of the watched processes' filters.
#[derive(Debug)]
pub(super) struct Filters {
    /// The kernel would take the hook, and it is not attached yet.
    ready: bool,
    attached: bool,
    /// A process had a filter when the hook could not be attached.
    unseen: bool,
    /// Processes that have been looked at. A child has its parent's filter from the beginning.
    known: HashSet<u32>,
}

impl Filters {
    pub(super) fn new(ready: bool) -> Self {
        Self { ready, attached: false, unseen: false, known: HashSet::new() }
    }

    /// Attaches the hook if one of these processes has a filter; complaints.
    pub(super) fn follow(
        &mut self,
        ebpf: &mut Ebpf,
        tier: Tier,
        pids: impl Iterator<Item = u32>,
    ) -> Vec<String> {
        let pids: HashSet<u32> = pids.collect();
        let filtered = pids.difference(&self.known).any(|pid| has_filter(*pid));
        self.known = pids;
        if !filtered || self.attached {
            return Vec::new();
        }
        if !self.ready {
            self.unseen = true;
            return Vec::new();
        }
        self.ready = false;
        match load::attach_ready(ebpf, tier, SECCOMP) {
            Ok(()) => self.attached = true,
            Err(error) => {
                self.unseen = true;
                return vec![format!(
                    "a worker has a system call filter, whose refusals will not be seen: {error}"
                )];
            }
        }
        Vec::new()
    }

    /// True if every refusal of a filter is seen: none of the watched processes has one, or the hook is attached.
    pub(super) fn seen(&self) -> bool {
        !self.unseen
    }
}

/// True if system calls of the process go through a filter (`Seccomp: 2` in proc(5)).
fn has_filter(pid: u32) -> bool {
    proc::read_up_to(format!("/proc/{pid}/status"), 8192)
        .is_ok_and(|status| seccomp_mode(&String::from_utf8_lossy(&status)) == Some(2))
}

/// The value of `Seccomp:` in /proc/PID/status.
fn seccomp_mode(status: &str) -> Option<u32> {
    status.lines().find_map(|line| line.strip_prefix("Seccomp:"))?.trim().parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_mode_is_read() {
        assert_eq!(seccomp_mode("Name:\tnginx\nNoNewPrivs:\t1\nSeccomp:\t2\nSeccomp_filters:\t3\n"), Some(2));
        assert_eq!(seccomp_mode("Seccomp_filters:\t3\n"), None);
    }
}
