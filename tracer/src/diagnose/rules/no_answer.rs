//! `connect-timeout-no-answer`: SYNs went out, nothing was dropped here, nothing came back.
//!
//! Look-alikes: every drop on this machine, a full accept queue here, a client that left.

use crate::{
    correlate::{Case, GaveUp},
    diagnose::{Cause, Verdict, words},
};

pub(super) fn check(case: &Case) -> Option<Verdict> {
    let a = &case.attempt;
    let how = case.gave_up()?;
    // A client that was answered had not left.
    let ended_otherwise = match how {
        GaveUp::ClientGone | GaveUp::WorkerEnded => true,
        GaveUp::Early => case.client_saw.is_none(),
        GaveUp::Timer | GaveUp::Kernel => false,
    };
    if ended_otherwise || a.drop.is_some() || a.overflow.is_some() {
        return None;
    }
    // Not even the next hop answers: see `host`.
    if case.facts.neighbour.as_ref().is_some_and(|n| n.failed) {
        return None;
    }
    let here = case.facts.is_local == Some(true) || case.facts.peer_namespace.is_some();
    // A packet for this very machine that nobody dropped and nobody answered: something is missing.
    if case.facts.is_local == Some(true) && !case.reach.accept_queue {
        return None;
    }
    let outside = case.facts.is_local == Some(false) && case.facts.peer_namespace.is_none();
    let queue_excluded = case.reach.accept_queue || outside;
    let timer_sure = how == GaveUp::Kernel || case.timer_is_certain();
    let xdp = case.facts.route.as_ref().is_some_and(|r| r.device_xdp);
    let proof = case.reach.drops && queue_excluded && timer_sure && !here && !xdp;
    let rival = if case.attempt.evidence_gap {
        "a firewall rule of this host: evidence of this attempt is incomplete"
    } else if !case.reach.drops {
        "a firewall rule of this host: dropped packets cannot be seen on this tier"
    } else if xdp {
        "the XDP program on the outgoing interface: the packets that it drops cannot be seen"
    } else if !queue_excluded {
        "a full accept queue: the upstream is on this machine and this tier does not see its queue"
    } else if here {
        "a backend of this machine that is stopped or lost the packet"
    } else if case.client_saw.is_some() {
        "nginx ended the attempt for another reason than its timer (a script, another part of the request)"
    } else {
        "a client that left: no connect timeout is known for this upstream"
    };
    Some(
        Verdict::graded(Cause::ConnectTimeoutNoAnswer, proof, format!("{} does not answer: {} sent, nothing came back", a.remote, words::syns(case.syns())), rival)
            .because("syn", format!("{} left this host", words::syns(case.syns())))
            .because_if("drop", case.reach.drops.then_some("this machine dropped no packet of the handshake, in neither direction"))
            .because("end", words::gave_up(case, how))
            .because_if("route", case.facts.route.as_ref().and_then(|r| Some(format!("sent by {} to {}", r.device.as_deref()?, r.next_hop?))))
            .because_if("dnat", words::translation(case))
            .fix(format!("check that {} is up, that its address is right, and the firewalls on the way (they drop, or the host is gone)", a.remote.ip()))
            .fix("a longer connect timeout does not help"),
    )
}
