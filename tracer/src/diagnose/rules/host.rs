//! `host-unreachable`: the last hop did not find the host. Own neighbour discovery failed, or a router said so.
//!
//! Look-alikes: a firewall that rejects with host-unreachable; an `unreachable` route (no SYN at all).

use crate::{
    correlate::{Case, GaveUp},
    diagnose::{Cause, Verdict, words},
    event::{DropClass, Stage},
};

pub(super) fn check(case: &Case) -> Option<Verdict> {
    let a = &case.attempt;
    if a.stage != Stage::SynSent || a.reset {
        return None;
    }
    // A local firewall that rejects drops the SYN first.
    if a.drop.as_ref().is_some_and(|d| d.saw(DropClass::Netfilter)) {
        return None;
    }
    let neighbour = case.facts.neighbour.as_ref();
    let neighbour_failed = neighbour.is_some_and(|n| n.failed);
    let neighbour_text =
        neighbour.map(|n| format!("neighbour entry of {} on {}: {}", n.ip, n.device, n.state));
    // An answer that finds no way back is no word on the host.
    let dropped_by_neighbour = a.drop.as_ref().is_some_and(|d| d.saw(DropClass::Neighbour) && !d.reply);
    let target = neighbour.map_or(a.remote.ip(), |n| n.ip);
    let own = || {
        format!(
            "{target} does not answer {} on the local network",
            if target.is_ipv6() { "neighbour solicitations" } else { "ARP" }
        )
    };
    if let Some(icmp) = a.icmp {
        let v6 = icmp.sender.is_ipv6();
        if !matches!((v6, icmp.kind, icmp.code), (false, 3, 1 | 7 | 12) | (true, 1, 3)) {
            return None;
        }
        if case.facts.icmp_sender_is_own == Some(true) {
            return Some(
                fixes(
                    Verdict::graded(
                        Cause::HostUnreachable,
                        // Where drops are not seen the entry may be old and a rule may have answered.
                        dropped_by_neighbour || (neighbour_failed && case.reach.drops),
                        own(),
                        "a local firewall rule that rejects with host-unreachable",
                    ),
                    case,
                )
                .because_if("icmp", words::icmp(case))
                .because_if("neighbour", neighbour_text)
                .because_if("drop", words::drop_text(case)),
            );
        }
        if icmp.sender == a.remote.ip() {
            // A host that calls itself unreachable: a firewall on it (see there).
            return None;
        }
        return Some(
            Verdict::likely(
                Cause::HostUnreachable,
                format!("{} reports that {} cannot be reached", icmp.sender, a.remote.ip()),
                "a firewall that rejects with host-unreachable",
            )
            .because_if("icmp", words::icmp(case))
            .fix(format!("check from {} whether the upstream host is up", icmp.sender)),
        );
    }
    // Without the ICMP message (IPv6 where its hook is missing) the errno and the neighbour entry remain.
    let on_link = neighbour_failed || dropped_by_neighbour;
    if a.sk_err == libc::EHOSTUNREACH {
        let summary = if on_link {
            own()
        } else {
            format!("the network reports that {} cannot be reached", a.remote.ip())
        };
        let verdict = Verdict::graded(
            Cause::HostUnreachable,
            // A SYN that has left can have been answered.
            neighbour_failed && dropped_by_neighbour && case.all_syns_dropped(),
            summary,
            "a router or firewall that reports the host as unreachable",
        );
        return Some(
            fixes(verdict, case)
                .because(
                    "errno",
                    format!("the connection ended with {} {}", words::errno(a.sk_err), words::after(case)),
                )
                .because_if("neighbour", neighbour_text)
                .because_if("drop", words::drop_text(case)),
        );
    }
    // nginx's timer can end before neighbour discovery does (three seconds, net.ipv4.neigh.*.mcast_solicit).
    let how = case.gave_up().filter(|how| matches!(how, GaveUp::Timer | GaveUp::Kernel))?;
    if !on_link || case.facts.is_local != Some(false) || a.overflow.is_some() {
        return None;
    }
    let verdict = Verdict::likely(
        Cause::HostUnreachable,
        own(),
        "a host that has only just gone and would not have answered the SYN either",
    );
    Some(
        fixes(verdict, case)
            .because_if("neighbour", neighbour_text)
            .because_if("drop", words::drop_text(case))
            .because("end", words::gave_up(case, how)),
    )
}

fn fixes(verdict: Verdict, case: &Case) -> Verdict {
    let device_down = case.facts.route.as_ref().is_some_and(|r| r.device_up == Some(false));
    let verdict = if device_down {
        verdict.fix("the outgoing interface has no carrier: check the link")
    } else {
        verdict
    };
    verdict
        .fix("check that the upstream host is up and the address in the configuration is right")
        .fix_with("see the neighbour entry", format!("ip neigh show {}", case.attempt.remote.ip()))
}
