//! `local-port-exhausted`: connect() found no free local port (EADDRNOTAVAIL from inet_hash_connect, after
//! the socket had entered SYN_SENT).
//!
//! Look-alike: the same errno before SYN_SENT means that no source address exists (IPv6 switched off).

use crate::{
    correlate::Case,
    diagnose::{Cause, Verdict, words},
    event::Stage,
};

/// As the system call returns it; 0 where its return was not seen.
const EADDRNOTAVAIL: i32 = -libc::EADDRNOTAVAIL;

pub(super) fn check(case: &Case) -> Option<Verdict> {
    let a = &case.attempt;
    if a.stage != Stage::Connect || !a.syn_state || !matches!(a.ret, 0 | EADDRNOTAVAIL) {
        return None;
    }
    if a.ret == 0 && a.local.port() != 0 {
        return None;
    }
    let ports = case.facts.ports.as_ref();
    Some(
        Verdict::graded(
            Cause::LocalPortExhausted,
            // With a port of its own (proxy_bind ADDRESS:PORT) it is that port's pair that is taken.
            a.local.port() == 0 && a.ret == EADDRNOTAVAIL,
            match ports {
                Some(p) => format!(
                    "no local port is free for {}: {} sockets use the range {}-{}",
                    a.remote, p.to_destination, p.range.0, p.range.1
                ),
                None => format!("no local port is free for {}", a.remote),
            },
            if a.ret == 0 {
                "a refusal of the SYN inside this host: the errno of connect() was not seen"
            } else {
                "the fixed local port of proxy_bind, which is in use towards this upstream already"
            },
        )
        .because(
            "syscall",
            if a.ret == 0 {
                "connect() failed while choosing a port: the socket was in SYN_SENT, no SYN was sent".to_owned()
            } else {
                let errno = words::errno(libc::EADDRNOTAVAIL);
                format!("connect() returned {errno} while choosing a port: the socket was in SYN_SENT, no SYN was sent")
            },
        )
        .because_if(
            "ports",
            ports.map(|p| {
                let size = u32::from(p.range.1).saturating_sub(u32::from(p.range.0)) + 1;
                format!(
                    "{} of {size} ports are taken towards {}, {} of them in TIME_WAIT",
                    p.to_destination, a.remote, p.time_wait
                )
            }),
        )
        .fix("reuse connections: keepalive in the upstream block, with proxy_http_version 1.1 and an empty Connection header")
        .fix_with("then widen the range", "sysctl net.ipv4.ip_local_port_range")
        .fix("or spread over more source addresses (proxy_bind) or more upstream ports"),
    )
}
