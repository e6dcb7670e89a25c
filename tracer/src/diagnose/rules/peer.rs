//! `connect-refused-by-peer`: another host answered the SYN with a RST.
//!
//! From outside, a closed port and a firewall that rejects with tcp-reset look the same, so this is `likely`.
//! It is proven only where the other host's stack runs on this machine (a container, another network
//! namespace) and was seen to find no socket.

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
    if !(a.reset || (a.sk_err == libc::ECONNREFUSED && !case.reach.resets)) {
        return None;
    }
    // Without the worker's own namespace nobody can tell whose stack it was.
    let witnessed = a.drop.as_ref().filter(|d| d.no_socket_netns != 0 && a.netns != 0);
    if let Some(drop) = witnessed {
        if drop.no_socket_netns == a.netns {
            return None;
        }
        let place =
            case.facts.other_namespace.as_deref().unwrap_or("another network namespace of this machine");
        return Some(
            Verdict::proven(Cause::ConnectRefusedByPeer, format!("nothing listens on {} in {place}", case.facts.translated.unwrap_or(a.remote)))
                .because("rst", format!("RST {} from the network stack of {place}: no socket wanted the SYN", words::after(case)))
                .because_if("dnat", words::translation(case))
                .fix(format!("start the service on port {} there, on an address that is reachable from outside it (not 127.0.0.1)", case.facts.translated.unwrap_or(a.remote).port())),
        );
    }
    // A local firewall reject is not the peer's doing.
    if a.drop.as_ref().is_some_and(|d| d.saw(DropClass::Netfilter)) || case.facts.is_local == Some(true) {
        return None;
    }
    let target = case.facts.translated.unwrap_or(a.remote);
    let rival = if case.reach.drops {
        "a firewall on the way that rejects with a RST: from here both look the same"
    } else {
        "a firewall, here or on the way, that rejects with a RST"
    };
    Some(
        Verdict::likely(
            Cause::ConnectRefusedByPeer,
            format!(
                "{} refused the connection: nothing listens on port {} there",
                target.ip(),
                target.port()
            ),
            rival,
        )
        .because(
            "rst",
            match a.reset_ttl {
                Some(ttl) => format!("RST {} with TTL {ttl}", words::after(case)),
                None => format!("RST {}", words::after(case)),
            },
        )
        .because_if(
            "drop",
            case.reach.drops.then_some("no packet of this handshake was dropped or rejected by this machine"),
        )
        .because_if("dnat", words::translation(case))
        .fix_with(
            format!(
                "check on {} that the service listens on port {} and not only on 127.0.0.1",
                target.ip(),
                target.port()
            ),
            format!("ss -ltn 'sport = :{}'", target.port()),
        ),
    )
}
