//! `fd-limit`: `socket()` returned EMFILE (the process's limit) or ENFILE (the host's).
//!
//! Look-alike: "worker_connections are not enough", which happens after `socket()` and leaves no failed call.

use crate::{
    correlate::Case,
    diagnose::{Cause, Verdict},
    event::Stage,
};

pub(super) fn check(case: &Case) -> Option<Verdict> {
    if case.attempt.stage != Stage::Socket {
        return None;
    }
    let fds = case.facts.fds;
    let errno = case.attempt.ret.saturating_neg();
    // Counted a moment after the failure: a worker that has so many left was not out of them.
    let had_some = match errno {
        libc::EMFILE => fds.is_some_and(|f| few(f.open, f.soft)),
        _ => fds.is_some_and(|f| f.host_open.zip(f.host_max).is_some_and(|(open, max)| few(open, max))),
    };
    // Whoever refuses a call chooses the errno, so that a guard can look like a limit.
    let proof = !had_some || refusals_seen(case);
    let rival = "a guard whose hook cannot be watched on this tier answered with that errno: the limit was not reached a \
                 moment later";
    let verdict = |summary: String| Verdict::graded(Cause::FdLimit, proof, summary, rival);
    match errno {
        libc::EMFILE => Some(
            verdict(match fds {
                Some(fds) => format!("the worker has no file descriptor left (limit {})", fds.soft),
                None => "the worker has no file descriptor left".to_owned(),
            })
            .because("syscall", "socket() returned 24 EMFILE: the process's own limit (RLIMIT_NOFILE)")
            .because_if("fds", fds.map(|f| format!("{} open now, soft limit {}, hard limit {}", f.open, f.soft, f.hard)))
            .fix("raise worker_rlimit_nofile in nginx.conf (main context) to at least twice worker_connections, then reload")
            .fix("keepalive in the upstream block keeps fewer sockets busy per request"),
        ),
        libc::ENFILE => Some(
            verdict("the whole host has no file descriptor left (fs.file-max)".to_owned())
                .because("syscall", "socket() returned 23 ENFILE: the limit of the host, not of nginx")
                .because_if(
                    "fds",
                    fds.and_then(|f| Some(format!("{} open on this host, limit {}", f.host_open?, f.host_max?))),
                )
                .fix_with("find what holds the descriptors before raising the limit", "sysctl fs.file-nr fs.file-max"),
        ),
        _ => None,
    }
}

/// Less than half of what is allowed.
fn few(open: u64, limit: u64) -> bool {
    open < limit / 2
}

/// Whether the refusal of any guard of socket() would have been seen.
fn refusals_seen(case: &Case) -> bool {
    let watched = case.reach.blockers;
    watched.create && watched.cgroup_create && (watched.seccomp || !has_filter(case))
}

/// Whether the worker may have a system call filter.
fn has_filter(case: &Case) -> bool {
    case.facts.suspects.as_ref().and_then(|suspects| suspects.seccomp) != Some(0)
}
