//! `network-unreachable`: routing refused the connection. Each route type has its errno (net/ipv4/fib_semantics.c,
//! fib_props): no route ENETUNREACH, unreachable EHOSTUNREACH, prohibit EACCES, blackhole EINVAL; a link-local address
//! without an interface EINVAL as well.
//!
//! Look-alikes: EACCES of a security module or of IPv6 administrative prohibition; EHOSTUNREACH of a neighbour;
//! EADDRNOTAVAIL of exhausted ports. So the errno alone proves nothing: the route must say the same.

use std::net::{IpAddr, SocketAddr};

use crate::{
    correlate::Case,
    diagnose::{Cause, Verdict, words},
    event::Stage,
};

pub(super) fn check(case: &Case) -> Option<Verdict> {
    match case.attempt.stage {
        // No route leads to a unix socket.
        Stage::Connect if !case.attempt.syn_state && case.attempt.unix.is_none() => at_once(case),
        Stage::SynSent => by_icmp(case),
        Stage::Socket | Stage::Bind | Stage::Connect | Stage::Established | Stage::Untried => None,
    }
}

fn at_once(case: &Case) -> Option<Verdict> {
    let a = &case.attempt;
    if a.security.is_some() {
        return None;
    }
    let errno = a.ret.saturating_neg();
    let to = a.remote.ip();
    let route = case.facts.route.as_ref();
    let call = format!("connect() returned {} before a SYN was sent", words::errno(errno));
    let kind = route.and_then(|r| r.kind.as_deref());
    let agrees = route.is_some_and(|r| r.errno == Some(errno));
    if errno == libc::EINVAL
        && let Some(verdict) = no_interface(case, &call, agrees)
    {
        return Some(verdict);
    }
    // What else yields this errno at this point, and whether it could have been seen.
    let (what, rival, excluded) = match errno {
        libc::ENETUNREACH => ("no route leads", "a route that was missing only for a moment", true),
        libc::EHOSTUNREACH => ("an `unreachable` route leads", "a route that changed since", true),
        libc::EINVAL => ("a `blackhole` route leads", "an invalid address or option", true),
        libc::EACCES => (
            "a `prohibit` route leads",
            "a security module (SELinux, AppArmor) that denied it",
            case.reach.security,
        ),
        libc::EADDRNOTAVAIL => return no_source(case, &call),
        _ => return None,
    };
    // EACCES and EINVAL have other sources: without the route's agreement there is no case.
    if !agrees && matches!(errno, libc::EACCES | libc::EINVAL) {
        return None;
    }
    let entry = route.and_then(|r| r.entry.as_deref());
    Some(
        Verdict::graded(Cause::NetworkUnreachable, agrees && excluded, format!("{what} to {to}"), rival)
            .because("syscall", call)
            .because_if(
                "route",
                route.map(|r| match (entry, r.errno) {
                    (Some(entry), _) => format!("the matching route in nginx's network namespace: {entry}"),
                    (None, Some(errno)) => {
                        format!("route look-up in nginx's network namespace: {}", words::errno(errno))
                    }
                    (None, None) => "there is a route now: it changed since".to_owned(),
                }),
            )
            .because_if(
                "security",
                case.reach.security.then_some("the security hook on connect refused nothing"),
            )
            .fix_with(
                match kind {
                    Some(kind @ ("prohibit" | "blackhole" | "unreachable" | "throw")) => {
                        format!("remove or narrow the {kind} route, if it is not meant for this upstream")
                    }
                    _ => "add a route to the upstream's network, or correct the address".to_owned(),
                },
                format!("ip route get {to}"),
            ),
    )
}

/// A link-local address means nothing without its interface, and connect() refuses it before it looks for a route (net/ipv6/tcp_ipv6.c,
/// tcp_v6_connect). nginx's configuration cannot name one: an address that is written there has none; what a name stands for may.
fn no_interface(case: &Case, call: &str, agrees: bool) -> Option<Verdict> {
    let to = case.attempt.remote;
    let IpAddr::V6(ip) = to.ip() else { return None };
    let written = |server: &str| server.parse().is_ok_and(|known: SocketAddr| known.ip() == to.ip());
    let literal = !case.config.is_empty() && case.config.iter().all(|c| written(&c.server));
    // A `blackhole` route says the same where the address has an interface.
    if !ip.is_unicast_link_local() || (agrees && !literal) {
        return None;
    }
    Some(
        Verdict::graded(
            Cause::NetworkUnreachable,
            literal,
            format!("{ip} is link-local, and nothing says on which interface"),
            "an address with an interface that is not the one of proxy_bind",
        )
        .because("syscall", call)
        .because("address", format!("{ip} is of fe80::/10: the kernel takes it with an interface alone, and nginx's configuration cannot name one"))
        .fix("name an address of the server that is not link-local: a global one, or one of fd00::/8")
        .fix_with("see which the server has (there)", "ip -6 address show scope global"),
    )
}

/// EADDRNOTAVAIL before SYN_SENT: no source address for the destination.
fn no_source(case: &Case, call: &str) -> Option<Verdict> {
    let to = case.attempt.remote.ip();
    let disabled = case.facts.ipv6_disabled == Some(true);
    let IpAddr::V6(_) = to else {
        return None;
    };
    Some(
        Verdict::graded(
            Cause::NetworkUnreachable,
            disabled,
            if disabled {
                format!("IPv6 is switched off here, so {to} cannot be reached")
            } else {
                format!("this host has no IPv6 source address for {to}")
            },
            "an IPv6 address that was still tentative",
        )
        .because(
            "syscall",
            format!("{call}: there is no source address (not a lack of ports: no port was sought)"),
        )
        .because_if(
            "sysctl",
            disabled.then_some(
                "net.ipv6.conf.all.disable_ipv6 or …lo.disable_ipv6 is 1 in nginx's network namespace",
            ),
        )
        .fix("name the IPv4 address in the upstream: `localhost` in nginx means both 127.0.0.1 and ::1")
        .fix_with("or switch IPv6 on", "sysctl net.ipv6.conf.lo.disable_ipv6=0"),
    )
}

/// A router said that it has no route. (A firewall can say so too: then it is at most likely.)
fn by_icmp(case: &Case) -> Option<Verdict> {
    let icmp = case.attempt.icmp?;
    let v6 = icmp.sender.is_ipv6();
    // The upstream itself has no need of a route to itself: a firewall on it (see there).
    if icmp.sender == case.attempt.remote.ip() {
        return None;
    }
    // A host that has no route to itself: a firewall on it (see there).
    if icmp.sender == case.attempt.remote.ip() {
        return None;
    }
    if case.all_syns_dropped() || !matches!((v6, icmp.kind, icmp.code), (false, 3, 0 | 6) | (true, 1, 0 | 2))
    {
        return None;
    }
    Some(
        Verdict::likely(
            Cause::NetworkUnreachable,
            format!("{} has no route to {}", icmp.sender, case.attempt.remote.ip()),
            "a firewall that rejects with `net-unreachable`",
        )
        .because_if("icmp", words::icmp(case))
        .fix(format!("look at the routes of {}", icmp.sender)),
    )
}
