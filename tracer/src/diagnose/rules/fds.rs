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
    match case.attempt.ret.saturating_neg() {
        libc::EMFILE => Some(
            Verdict::proven(
                Cause::FdLimit,
                match fds {
                    Some(fds) => format!("the worker has no file descriptor left (limit {})", fds.soft),
                    None => "the worker has no file descriptor left".to_owned(),
                },
            )
            .because("syscall", "socket() returned 24 EMFILE: the process's own limit (RLIMIT_NOFILE)")
            .because_if("fds", fds.map(|f| format!("{} open now, soft limit {}, hard limit {}", f.open, f.soft, f.hard)))
            .fix("raise worker_rlimit_nofile in nginx.conf (main context) to at least twice worker_connections, then reload")
            .fix("keepalive in the upstream block keeps fewer sockets busy per request"),
        ),
        libc::ENFILE => Some(
            Verdict::proven(Cause::FdLimit, "the whole host has no file descriptor left (fs.file-max)")
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
