//! What holds for every case, sensible or not: a verdict that breaks one of these is wrong whatever happened.

use super::*;
use Confidence::{Likely, Proven};

/// Classes by which somebody's rule drops.
const RULES: [DropClass; 5] =
    [DropClass::Netfilter, DropClass::RpFilter, DropClass::Bpf, DropClass::Tc, DropClass::Xfrm];

/// Who says it, whatever the sender.
fn decisive(icmp: Icmp, remote: IpAddr) -> bool {
    match (icmp.sender.is_ipv6(), icmp.kind, icmp.code) {
        (false, 3, 9 | 10 | 13) | (true, 1, 1 | 5) => true,
        // Not what a host says of its own closed TCP port; from another one it is a rule.
        (false, 3, 3) | (true, 1, 4 | 6) => icmp.sender != remote,
        _ => false,
    }
}

/// The invariants that a verdict breaks, in words.
pub(super) fn broken(case: &Case, v: &Verdict) -> Vec<String> {
    let mut found = Vec::new();
    let mut must = |holds: bool, what: &str| {
        if !holds {
            found.push(format!("{} ({}) although {what}", v.cause, v.confidence.name()));
        }
    };
    form(v, &mut must);
    refusals(case, v, &mut must);
    timeouts(case, v, &mut must);
    calls(case, v, &mut must);
    invariants_standing::hold(case, v, &mut must);
    found
}

pub(super) type Must<'a> = dyn FnMut(bool, &str) + 'a;

fn form(v: &Verdict, must: &mut Must<'_>) {
    let proven = v.confidence == Proven;
    let unexplained = v.cause == Cause::Unexplained;
    must(
        unexplained == (v.confidence == Confidence::Unexplained),
        "cause and confidence disagree on being unexplained",
    );
    must(
        v.confidence != Likely || v.rival.as_ref().is_some_and(|r| !r.is_empty()),
        "a likely verdict names no rival",
    );
    must(!proven || v.rival.is_none(), "a proof has a rival");
    must(unexplained || !v.evidence.is_empty(), "there is no evidence");
    must(unexplained || !v.fix.is_empty(), "there is no advice");
    let texts = || {
        let of_fix = v.fix.iter().flat_map(|f| std::iter::once(&f.text).chain(&f.command));
        std::iter::once(&v.summary).chain(&v.rival).chain(v.evidence.iter().map(|e| &e.text)).chain(of_fix)
    };
    must(texts().all(|t| !t.trim().is_empty() && !t.contains('\n')), "a text is empty or has several lines");
    must(texts().all(|t| !t.ends_with('.') && !t.contains("  ")), "a text ends in a full stop or has a gap");
}

fn refusals(case: &Case, v: &Verdict, must: &mut Must<'_>) {
    let a = &case.attempt;
    let proven = v.confidence == Proven;
    let refused = matches!(
        v.cause,
        Cause::ConnectRefusedNoListener | Cause::ConnectRefusedByPeer | Cause::ConnectRefusedByFirewall
    );
    must(!refused || a.stage == Stage::SynSent, "no SYN was sent");
    let no_socket = a.drop.as_ref().map_or(0, |d| d.no_socket_netns);
    let answered = a.reset || a.icmp.is_some() || !matches!(a.sk_err, 0 | libc::ETIMEDOUT);
    must(!refused || answered, "nothing answered");
    let by_rst = a.reset || (a.sk_err == libc::ECONNREFUSED && !case.reach.resets);
    match v.cause {
        Cause::ConnectRefusedNoListener => {
            must(by_rst && a.icmp.is_none(), "no RST came, or an ICMP error did");
            must(
                !proven || (no_socket != 0 && no_socket == a.netns),
                "the worker's own namespace did not miss a socket",
            );
        }
        Cause::ConnectRefusedByPeer => {
            must(by_rst && a.icmp.is_none(), "no RST came, or an ICMP error did");
            must(
                !proven || (no_socket != 0 && a.netns != 0 && no_socket != a.netns),
                "no other namespace missed a socket",
            );
            must(no_socket == 0 || no_socket != a.netns, "the worker's own namespace missed a socket");
        }
        Cause::ConnectRefusedByFirewall if proven => {
            let all_here = a.drop.as_ref().is_some_and(|d| {
                // These answer for themselves.
                let others = [DropClass::NoSocket, DropClass::Neighbour, DropClass::NoRoute];
                let only = !others.into_iter().any(|c| d.saw(c));
                !d.reply && d.count >= case.syns() && d.saw(DropClass::Netfilter) && only
            });
            let said = a.icmp.is_some_and(|i| decisive(i, a.remote.ip())) && !a.reset;
            must(all_here || said, "not every SYN was dropped by a rule, and no ICMP code says so");
        }
        Cause::HostUnreachable => {
            must(!a.reset && a.stage == Stage::SynSent, "a RST came, or no SYN was sent");
            let dropped = a.drop.as_ref().is_some_and(|d| d.saw(DropClass::Neighbour));
            let failed = case.facts.neighbour.as_ref().is_some_and(|n| n.failed);
            must(
                !proven || dropped || (failed && case.reach.drops),
                "a rule may have dropped and the neighbour entry be old",
            );
        }
        _ => {}
    }
}

fn timeouts(case: &Case, v: &Verdict, must: &mut Must<'_>) {
    let a = &case.attempt;
    let proven = v.confidence == Proven;
    let timeout = v.cause.name().starts_with("connect-timeout-")
        || (v.cause == Cause::BlockedCgroupBpf && a.stage == Stage::SynSent);
    if timeout {
        must(!a.reset && a.icmp.is_none(), "a RST or ICMP error came");
        must(a.stage == Stage::SynSent, "no SYN was sent");
        let by_kernel = a.sk_err == libc::ETIMEDOUT;
        must(
            by_kernel || (a.app_closed && a.sk_err == 0 && !a.exiting),
            "neither nginx nor the kernel gave up",
        );
        let shorter = || {
            case.attempt
                .duration_us()
                .is_some_and(|us| case.connect_timeouts().all(|ms| us + 550_000 < ms * 1000))
        };
        // What kept the handshake from succeeding here is named even then, but not as proven.
        let obstacle = a.drop.is_some() || a.overflow.is_some() || case.facts.listeners.is_some();
        must(
            by_kernel
                || case.connect_timeouts().next().is_none()
                || !shorter()
                || (obstacle && !proven)
                || (case.client_saw.is_some() && !proven)
                || (case.client_saw == Some(504) && a.number.is_some()),
            "it ended long before every timer",
        );
    }
    let saw = |class| a.drop.as_ref().is_some_and(|d| d.saw(class));
    let count = a.drop.as_ref().map_or(0, |d| d.count);
    match v.cause {
        Cause::BlockedCgroupBpf if a.stage != Stage::SynSent => {
            must(!proven || a.denials.iter().any(|d| d.ret == a.ret), "nobody refused the call");
        }
        Cause::ConnectTimeoutFirewallDrop | Cause::BlockedCgroupBpf => {
            must(RULES.into_iter().any(saw), "no rule dropped anything");
            must(!proven || count >= case.syns(), "a SYN got through");
            must(
                !proven || !saw(DropClass::Neighbour) && !saw(DropClass::NoRoute),
                "other drops were no rule's",
            );
        }
        Cause::ConnectTimeoutConntrackFull => {
            let unseen = a.drop.is_none() && !case.reach.drops && !proven;
            must(
                unseen || saw(DropClass::Netfilter) && a.drop.as_ref().is_some_and(|d| !d.conntrack),
                "the packet had an entry, or none was dropped",
            );
            must(case.facts.conntrack.is_some_and(|t| t.full() && t.drops > 0), "the table is not full");
        }
        Cause::ConnectTimeoutBacklogFull => {
            must(!proven || a.overflow.is_some(), "the kernel did not see the queue full");
            must(!saw(DropClass::Netfilter), "a rule dropped packets");
        }
        Cause::ConnectTimeoutNoAnswer => {
            must(a.drop.is_none() && a.overflow.is_none(), "packets were dropped here");
            must(!proven || (case.reach.drops && !a.evidence_gap), "drops cannot be seen");
            let xdp = case.facts.route.as_ref().is_some_and(|r| r.device_xdp);
            must(!proven || !xdp, "an XDP program may drop unseen");
            must(
                !proven || (case.facts.is_local != Some(true) && case.facts.peer_namespace.is_none()),
                "it is on this machine",
            );
            must(
                !proven || case.facts.is_local == Some(false) || case.reach.accept_queue,
                "it may be on this machine",
            );
        }
        Cause::ClientAborted if a.stage != Stage::Established => {
            must(
                a.app_closed && a.stage == Stage::SynSent && !a.reset && a.icmp.is_none(),
                "nginx did not give up",
            );
            let least = case.connect_timeouts().min();
            let reached = a.duration_us().zip(least).is_some_and(|(us, ms)| us >= ms * 1000);
            must(!reached, "the connect timer had run out");
            must(case.client_saw.is_none(), "nginx answered the client");
            must(!proven || case.client_gone.is_some(), "no client was seen leaving");
            must(!proven || (a.duration_us().is_some() && least.is_some()), "the timer may have run out");
        }
        _ => {}
    }
}

fn calls(case: &Case, v: &Verdict, must: &mut Must<'_>) {
    let a = &case.attempt;
    let proven = v.confidence == Proven;
    match v.cause {
        Cause::FdLimit => {
            must(
                a.stage == Stage::Socket && matches!(-a.ret, libc::EMFILE | libc::ENFILE),
                "socket() had another errno",
            );
        }
        Cause::BindFailed => must(a.stage == Stage::Bind && a.ret != 0, "bind() did not fail"),
        Cause::LocalPortExhausted => {
            let bind = a.stage == Stage::Bind && -a.ret == libc::EADDRINUSE && a.remote.port() == 0;
            let connect = a.stage == Stage::Connect && a.syn_state && -a.ret == libc::EADDRNOTAVAIL;
            // The return of connect() was missed: no port was chosen, and it is at most likely.
            let missed = a.stage == Stage::Connect && a.syn_state && a.ret == 0 && a.local.port() == 0;
            must(bind || connect || (missed && !proven), "no port was sought");
        }
        Cause::NetworkUnreachable => {
            let at_once = a.stage == Stage::Connect && !a.syn_state && a.security.is_none();
            must(
                at_once || (a.stage == Stage::SynSent && a.icmp.is_some()),
                "a SYN was sent, or a module refused",
            );
            let route = case.facts.route.as_ref().and_then(|r| r.errno) == Some(-a.ret);
            let off = case.facts.ipv6_disabled == Some(true) && -a.ret == libc::EADDRNOTAVAIL;
            let link_local = -a.ret == libc::EINVAL
                && matches!(a.remote.ip(), IpAddr::V6(ip) if ip.is_unicast_link_local())
                && case.config.iter().all(|c| c.server == a.remote.to_string());
            must(!proven || (at_once && (route || off || link_local)), "the route does not say so");
            must(
                !proven || -a.ret != libc::EACCES || case.reach.security,
                "a security module may have refused",
            );
            must(at_once || a.icmp.is_none_or(|i| i.sender != a.remote.ip()), "the upstream itself answered");
        }
        _ => {}
    }
}
