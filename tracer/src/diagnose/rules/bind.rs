//! `bind-failed`: the local address that nginx wants to use (`proxy_bind` and the like) cannot be used. A bind
//! to port 0 that finds none free is `local-port-exhausted`.

use crate::{
    correlate::Case,
    diagnose::{Cause, Verdict, words},
    event::Stage,
};

pub(super) fn check(case: &Case) -> Option<Verdict> {
    let a = &case.attempt;
    if a.stage != Stage::Bind {
        return None;
    }
    // For a failed bind the record's destination is the address that was to be bound.
    let wanted = a.remote;
    let errno = a.ret.saturating_neg();
    let call = format!("bind({wanted}) returned {}", words::errno(errno));
    match errno {
        libc::EADDRNOTAVAIL => {
            let own = case.facts.is_local;
            Some(
                Verdict::graded(
                    Cause::BindFailed,
                    own != Some(true),
                    format!("{} is no address of this host", wanted.ip()),
                    "the address was removed and added again since",
                )
                .because("syscall", call)
                .because_if(
                    "address",
                    own.map(|own| {
                        format!(
                            "{} {} in nginx's network namespace now",
                            wanted.ip(),
                            if own { "is an own address" } else { "is no own address" }
                        )
                    }),
                )
                .fix("bind to an address that this host has (ip address show), or remove the proxy_bind line"),
            )
        }
        libc::EADDRINUSE if wanted.port() == 0 => Some(
            Verdict::proven(Cause::LocalPortExhausted, format!("no local port is free on {}", wanted.ip()))
                .because("syscall", call)
                .fix("keepalive in the upstream block, or more addresses for proxy_bind"),
        ),
        libc::EADDRINUSE => Some(
            Verdict::proven(Cause::BindFailed, format!("{wanted} is in use already"))
                .because("syscall", call)
                .fix("leave the port out of proxy_bind: with a fixed port only one connection at a time can exist"),
        ),
        libc::EACCES if wanted.port() != 0 && wanted.port() < 1024 => Some(
            Verdict::likely(
                Cause::BindFailed,
                format!("the worker may not bind the privileged port {}", wanted.port()),
                "a security module refused the bind()",
            )
            .because("syscall", call)
            .fix("leave the port out of proxy_bind"),
        ),
        _ => None,
    }
}
