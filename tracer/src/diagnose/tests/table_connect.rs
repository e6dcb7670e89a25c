//! System calls that failed at once, and networks that cannot be reached.

use super::*;
use crate::correlate::FdFact;
use Cause::{BindFailed, FdLimit, HostUnreachable, LocalPortExhausted, NetworkUnreachable, Unexplained};
use Confidence::{Likely, Proven, Unexplained as No};

/// So many descriptors of 1024 are open a moment after the failure.
fn emfile(open: u64) -> Build {
    let fact = FdFact { open, soft: 1024, hard: 4096, host_open: None, host_max: None };
    call(Stage::Socket, "0.0.0.0:0", libc::EMFILE).edit(|c| c.facts.fds = Some(fact))
}

#[test]
fn file_descriptors() {
    check(vec![
        ("EMFILE", call(Stage::Socket, "0.0.0.0:0", libc::EMFILE), FdLimit, Proven),
        ("ENFILE", call(Stage::Socket, "0.0.0.0:0", libc::ENFILE), FdLimit, Proven),
        ("EMFILE at the limit", emfile(1023).on(TRACEPOINT), FdLimit, Proven),
        ("EMFILE far below it, guards unseen", emfile(9).on(TRACEPOINT), FdLimit, Likely),
        ("EMFILE far below it, no guard there", emfile(9).on(FULL), FdLimit, Proven),
        ("out of memory", call(Stage::Socket, "0.0.0.0:0", libc::ENOBUFS), Unexplained, No),
        ("IPv6 is not compiled in", call(Stage::Socket, "[::]:0", libc::EAFNOSUPPORT), Unexplained, No),
        ("EMFILE of another call", call(Stage::Connect, FAR, libc::EMFILE), Unexplained, No),
    ]);
}

#[test]
fn binds() {
    let bind = |to, errno| call(Stage::Bind, to, errno);
    let own = |own, build: Build| build.edit(|c| c.facts.is_local = own);
    check(vec![
        ("no own address", own(Some(false), bind("10.7.7.7:0", libc::EADDRNOTAVAIL)), BindFailed, Proven),
        (
            "an own address by now",
            own(Some(true), bind("10.7.7.7:0", libc::EADDRNOTAVAIL)),
            BindFailed,
            Likely,
        ),
        ("port in use", bind("10.0.0.1:4000", libc::EADDRINUSE), BindFailed, Proven),
        ("no port free", bind("10.0.0.1:0", libc::EADDRINUSE), LocalPortExhausted, Proven),
        ("privileged port", bind("10.0.0.1:80", libc::EACCES), BindFailed, Likely),
        (
            "EACCES on an ordinary port is a security module",
            bind("10.0.0.1:8080", libc::EACCES),
            Unexplained,
            No,
        ),
        ("EPERM", bind("10.0.0.1:0", libc::EPERM), Unexplained, No),
    ]);
}

#[test]
fn ports() {
    let connect = |to, syn| {
        call(Stage::Connect, to, libc::EADDRNOTAVAIL).edit(|c| {
            c.attempt.syn_state = syn;
            c.attempt.local.set_port(0);
        })
    };
    let bound = connect(FAR, true).edit(|c| c.attempt.local.set_port(4444));
    let unseen = connect(FAR, true).edit(|c| c.attempt.ret = 0);
    let switch = |off, build: Build| build.edit(|c| c.facts.ipv6_disabled = Some(off));
    check(vec![
        ("no port free", connect(FAR, true), LocalPortExhausted, Proven),
        ("no port free, IPv6", connect(FAR6, true), LocalPortExhausted, Proven),
        ("a fixed port that is taken", bound, LocalPortExhausted, Likely),
        ("the errno was not seen", unseen, LocalPortExhausted, Likely),
        (
            "the same errno before SYN_SENT: IPv6 is off",
            switch(true, connect(FAR6, false)),
            NetworkUnreachable,
            Proven,
        ),
        ("no IPv6 source address", switch(false, connect(FAR6, false)), NetworkUnreachable, Likely),
        ("IPv4 before SYN_SENT", connect(FAR, false), Unexplained, No),
    ]);
}

#[test]
fn routes() {
    let fails = |errno, route: &str, agrees: bool| {
        call(Stage::Connect, FAR, errno).route(agrees.then_some(errno), route)
    };
    let denied = |ret| fails(libc::EACCES, "prohibit", true).edit(|c| c.attempt.security = Some(ret));
    check(vec![
        ("no route", fails(libc::ENETUNREACH, "unicast", true), NetworkUnreachable, Proven),
        ("no route then, one now", fails(libc::ENETUNREACH, "unicast", false), NetworkUnreachable, Likely),
        ("no route, not asked", call(Stage::Connect, FAR, libc::ENETUNREACH), NetworkUnreachable, Likely),
        ("unreachable", fails(libc::EHOSTUNREACH, "unreachable", true), NetworkUnreachable, Proven),
        ("blackhole", fails(libc::EINVAL, "blackhole", true), NetworkUnreachable, Proven),
        (
            "a link-local address that is written in the configuration",
            call(Stage::Connect, "[fe80::1]:3000", libc::EINVAL).route(None, "unicast").timeout_ms(1000),
            NetworkUnreachable,
            Proven,
        ),
        (
            "a link-local address that a name stands for",
            call(Stage::Connect, "[fe80::1]:3000", libc::EINVAL)
                .route(None, "unicast")
                .timeout_ms(1000)
                .edit(|c| c.config[0].server = "app.test:3000".to_owned()),
            NetworkUnreachable,
            Likely,
        ),
        (
            "another address of IPv6",
            call(Stage::Connect, FAR6, libc::EINVAL).route(None, "unicast").timeout_ms(1000),
            Unexplained,
            No,
        ),
        ("EINVAL with a good route", fails(libc::EINVAL, "unicast", false), Unexplained, No),
        ("prohibit", fails(libc::EACCES, "prohibit", true), NetworkUnreachable, Proven),
        (
            "prohibit, blind to security modules",
            fails(libc::EACCES, "prohibit", true).on(TRACEPOINT),
            NetworkUnreachable,
            Likely,
        ),
        (
            "EACCES with a good route is no route",
            fails(libc::EACCES, "unicast", false).on(TRACEPOINT),
            Unexplained,
            No,
        ),
        ("a security module, and a prohibit route", denied(-libc::EACCES), Unexplained, No),
        (
            "seccomp, cgroup BPF",
            call(Stage::Connect, FAR, libc::EPERM).route(None, "unicast"),
            Unexplained,
            No,
        ),
        (
            "a packet-level LSM: ECONNREFUSED, no RST",
            call(Stage::Connect, FAR, libc::ECONNREFUSED),
            Unexplained,
            No,
        ),
        ("a router without a route", icmp(FAR, libc::ENETUNREACH, 3, 0, ROUTER), NetworkUnreachable, Likely),
        (
            "a router without a route, IPv6",
            icmp(FAR6, libc::ENETUNREACH, 1, 0, ROUTER6),
            NetworkUnreachable,
            Likely,
        ),
    ]);
}

#[test]
fn a_route_of_another_errno_proves_nothing() {
    for errno in [libc::ENETUNREACH, libc::EHOSTUNREACH, libc::EINVAL, libc::EACCES] {
        for other in [libc::ENETUNREACH, libc::EHOSTUNREACH, libc::EINVAL, libc::EACCES] {
            let verdict = diagnose(&call(Stage::Connect, FAR, errno).route(Some(other), "unicast").0);
            assert_eq!(verdict.confidence == Proven, errno == other, "{errno} {other}: {verdict:#?}");
        }
    }
}

#[test]
fn hosts() {
    let own = |build: Build| build.edit(|c| c.facts.icmp_sender_is_own = Some(true));
    let arp = || icmp(FAR, libc::EHOSTUNREACH, 3, 1, SELF);
    let nd = || attempt(Stage::SynSent, FAR6).edit(|c| c.attempt.sk_err = libc::EHOSTUNREACH).on(TRACEPOINT);
    check(vec![
        ("ARP failed", arp().neighbour("FAILED"), HostUnreachable, Proven),
        ("ARP failed, by the drop", arp().dropped(DropClass::Neighbour, 1), HostUnreachable, Proven),
        (
            "ND failed",
            own(icmp(FAR6, libc::EHOSTUNREACH, 1, 3, SELF6)).neighbour("FAILED"),
            HostUnreachable,
            Proven,
        ),
        ("an own address, the neighbour fine", arp().neighbour("REACHABLE"), HostUnreachable, Likely),
        ("an own address, nothing known", arp(), HostUnreachable, Likely),
        ("a router says so", icmp(FAR, libc::EHOSTUNREACH, 3, 1, ROUTER), HostUnreachable, Likely),
        ("a router says so, IPv6", icmp(FAR6, libc::EHOSTUNREACH, 1, 3, ROUTER6), HostUnreachable, Likely),
        ("errno only", nd(), HostUnreachable, Likely),
        ("errno and the neighbour", nd().neighbour("FAILED"), HostUnreachable, Likely),
        (
            "errno, neighbour and drop",
            nd().neighbour("FAILED").dropped(DropClass::Neighbour, 1),
            HostUnreachable,
            Proven,
        ),
        ("nginx's timer was first", timed_out(FAR).neighbour("INCOMPLETE"), HostUnreachable, Likely),
        (
            "blind to drops: a stale entry may hide a rule",
            arp().neighbour("FAILED").on(Reach { drops: false, ..FULL }),
            HostUnreachable,
            Likely,
        ),
        (
            "time exceeded is a loop, not a host",
            icmp(FAR, libc::EHOSTUNREACH, 11, 0, ROUTER),
            Unexplained,
            No,
        ),
    ]);
}

#[test]
fn ends_of_workers_and_connections_are_no_cause() {
    let ended = |build: Build| build.edit(|c| (c.attempt.app_closed, c.attempt.exiting) = (true, true));
    check(vec![
        ("the worker ended", ended(attempt(Stage::SynSent, FAR)).timeout_ms(60_000), Unexplained, No),
        ("the worker ended after the timer's time", ended(timed_out(FAR)), Unexplained, No),
        ("the worker ended, a queue was full", ended(timed_out(NEAR)).overflow(OWN), Unexplained, No),
        (
            "an established connection",
            refused(FAR).edit(|c| c.attempt.stage = Stage::Established),
            Unexplained,
            No,
        ),
    ]);
}
