//! `connect-refused-no-listener`: the worker's own host answered the SYN with a RST, as no socket wanted it.
//!
//! Proven by the kernel itself (drop reason NO_SOCKET for this SYN in the worker's namespace). Look-alikes: a
//! local rule that rejects with tcp-reset (the SYN is dropped by netfilter then), the same address elsewhere.

use crate::{
    correlate::Case,
    diagnose::{Cause, Verdict, words},
    event::{DropClass, Stage},
};

pub(super) fn check(case: &Case) -> Option<Verdict> {
    let a = &case.attempt;
    if a.stage != Stage::SynSent || a.icmp.is_some() {
        return None;
    }
    let reset = a.reset || (a.sk_err == libc::ECONNREFUSED && !case.reach.resets);
    if !reset {
        return None;
    }
    // Without the worker's own namespace nobody can tell whose stack it was.
    let witnessed = a.drop.as_ref().filter(|d| d.no_socket_netns != 0 && a.netns != 0);
    let own_stack = witnessed.is_some_and(|d| d.no_socket_netns == a.netns);
    let listeners = case.facts.listeners.as_ref();
    let absent = listeners.is_some_and(|l| l.exact.is_empty());
    let local = case.facts.is_local == Some(true);
    // Seen in another namespace of this machine: the other host's business (see `peer`).
    if witnessed.is_some() && !own_stack {
        return None;
    }
    let firewall = a.drop.as_ref().is_some_and(|d| d.saw(DropClass::Netfilter));
    if !own_stack && (!local || !absent || firewall) {
        return None;
    }
    let target = case.facts.translated.unwrap_or(a.remote);
    let mut verdict = Verdict::graded(
        Cause::ConnectRefusedNoListener,
        own_stack,
        format!("nothing listens on {target}"),
        "a local firewall rule that rejects with tcp-reset",
    )
    .because(
        "rst",
        if own_stack {
            format!("SYN sent, RST from this host's own stack {}: no socket wanted it", words::after(case))
        } else {
            format!("SYN sent to an own address, refused {}", words::after(case))
        },
    )
    .because_if("dnat", words::translation(case));
    let Some(listeners) = listeners else {
        return Some(verdict.fix(format!("start the service on {target}")));
    };
    if let Some(now) = listeners.exact.first() {
        // The kernel's word stands: at the time there was none.
        verdict = verdict
            .because("listener", format!("{} now: it was started after the refusal", words::listening(now)));
        return Some(
            verdict.fix("the service was starting or restarting: let it listen before nginx sends traffic"),
        );
    }
    verdict = verdict.because(
        "listener",
        format!("no socket on port {} for that address in nginx's network namespace", target.port()),
    );
    for other in listeners.other_address.iter().take(2) {
        verdict = verdict.because("listener-other-address", words::listening(other));
    }
    for near in listeners.near_port.iter().take(2) {
        verdict = verdict.because("listener-near-port", words::listening(near));
    }
    let place = words::server_line(case).unwrap_or_else(|| "nginx".to_owned());
    verdict = match (listeners.other_address.first(), listeners.near_port.first()) {
        (Some(other), _) => {
            verdict.fix(format!("point {place} at {}, or let the service listen on {target}", other.address))
        }
        (None, Some(near)) => verdict.fix(format!(
            "start the service on {}, or point {place} at {}",
            target.port(),
            near.address
        )),
        (None, None) => {
            verdict.fix(format!("start the service on {target}, or correct the address in {place}"))
        }
    };
    Some(verdict)
}
