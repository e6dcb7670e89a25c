//! Attempts that got no answer: dropped, not heard, unanswered, or given up for the client's sake.

use super::*;
use Cause::{
    BlockedCgroupBpf, ClientAborted, ConnectTimeoutBacklogFull as Backlog,
    ConnectTimeoutConntrackFull as Conntrack, ConnectTimeoutFirewallDrop as Rule,
    ConnectTimeoutNoAnswer as NoAnswer, Unexplained,
};
use Confidence::{Likely, Proven, Unexplained as No};

#[test]
fn dropped_by_a_rule() {
    let all = |class| timed_out(FAR).dropped(class, 1);
    let elsewhere =
        |build: Build| build.edit(|c| c.attempt.drop = drops(&[DropClass::Netfilter], 1, OTHER, 0, 0));
    check(vec![
        ("every SYN", all(DropClass::Netfilter), Rule, Proven),
        ("every SYN of three", timed_out(FAR).syns(3).dropped(DropClass::Netfilter, 3), Rule, Proven),
        ("one SYN of three", timed_out(FAR).syns(3).dropped(DropClass::Netfilter, 1), Rule, Likely),
        (
            "the kernel gave up",
            all(DropClass::Netfilter).edit(|c| {
                (c.attempt.app_closed, c.attempt.sk_err) = (false, libc::ETIMEDOUT);
            }),
            Rule,
            Proven,
        ),
        (
            "the answer",
            timed_out(FAR).edit(|c| {
                c.attempt.drop = drops(&[DropClass::Netfilter], 1, OWN, drop_flag::REPLY, 0);
            }),
            Rule,
            Proven,
        ),
        ("in another namespace, its table unknown", elsewhere(timed_out(FAR)), Rule, Likely),
        ("in another namespace, its table has room", elsewhere(timed_out(FAR)).conntrack(3, 0), Rule, Proven),
        ("reverse path filter", all(DropClass::RpFilter), Rule, Proven),
        ("tc", all(DropClass::Tc), Rule, Proven),
        ("IPsec", all(DropClass::Xfrm), Rule, Proven),
        ("cgroup", all(DropClass::Bpf), BlockedCgroupBpf, Proven),
        (
            "while the listener's queue was full",
            timed_out(NEAR).dropped(DropClass::Netfilter, 1).overflow(OWN),
            Rule,
            Proven,
        ),
        (
            "then no neighbour: the rule did not drop them all",
            timed_out(FAR).syns(2).edit(|c| {
                c.attempt.drop = drops(&[DropClass::Netfilter, DropClass::Neighbour], 2, OWN, 0, 0);
            }),
            Rule,
            Likely,
        ),
        ("a reason without a class", all(DropClass::Other), Unexplained, No),
        ("the final ACK met a full queue", all(DropClass::ListenOverflow), Unexplained, No),
    ]);
}

#[test]
fn full_tables() {
    let blind = Reach { drops: false, ..FULL };
    let dropped = || timed_out(FAR).dropped(DropClass::Netfilter, 1);
    let tracked = || {
        timed_out(FAR)
            .edit(|c| c.attempt.drop = drops(&[DropClass::Netfilter], 1, OWN, drop_flag::CONNTRACK, 0))
    };
    check(vec![
        ("full and counted", dropped().conntrack(100, 9), Conntrack, Proven),
        (
            "full, but nftables dropped it",
            dropped().conntrack(100, 9).edit(|c| c.facts.drop_engine = Some("nftables".into())),
            Conntrack,
            Likely,
        ),
        ("full, one SYN of two dropped", dropped().syns(2).conntrack(100, 9), Conntrack, Likely),
        ("full, its packet has an entry", tracked().conntrack(100, 9), Rule, Proven),
        ("full, but it never dropped", dropped().conntrack(100, 0), Rule, Likely),
        ("it has room, but was full once", dropped().conntrack(50, 9), Rule, Likely),
        ("it has room", dropped().conntrack(50, 0), Rule, Proven),
        ("full, and drops are not seen", timed_out(FAR).on(blind).conntrack(100, 9), Conntrack, Likely),
        ("full once, and drops are not seen", timed_out(FAR).on(blind).conntrack(50, 9), NoAnswer, Likely),
        ("full, and nothing of it was dropped", timed_out(FAR).conntrack(100, 9), NoAnswer, Proven),
    ]);
}

#[test]
fn full_accept_queues() {
    let full = || listening(NEAR, 5, 4);
    let then = |build: Build| build.edit(|c| c.facts.queue_at_retransmit = Some(listening(NEAR, 5, 4)));
    check(vec![
        ("the kernel saw it", timed_out(NEAR).overflow(OWN), Backlog, Proven),
        ("the kernel saw it in a container", timed_out(FAR).overflow(OTHER), Backlog, Proven),
        ("full at the retransmission", then(timed_out(NEAR)).on(TRACEPOINT), Backlog, Likely),
        ("full now", timed_out(NEAR).listeners(&[full()]).on(TRACEPOINT), Backlog, Likely),
        (
            "full to the brim is not full",
            timed_out(NEAR).listeners(&[listening(NEAR, 4, 4)]).on(TRACEPOINT),
            Unexplained,
            No,
        ),
        (
            "a rule drops as well",
            timed_out(NEAR).dropped(DropClass::Netfilter, 1).listeners(&[full()]),
            Rule,
            Proven,
        ),
        (
            "the queue was full, then it refused",
            refused(NEAR).no_socket(OWN).overflow(OWN),
            Cause::ConnectRefusedNoListener,
            Proven,
        ),
    ]);
}

#[test]
fn no_answer() {
    let kernel =
        |build: Build| build.edit(|c| (c.attempt.app_closed, c.attempt.sk_err) = (false, libc::ETIMEDOUT));
    let blind = Reach { drops: false, ..FULL };
    let container = |build: Build| build.edit(|c| c.facts.peer_namespace = Some("container x".to_owned()));
    check(vec![
        ("full tier", timed_out(FAR), NoAnswer, Proven),
        ("tracepoint tier, another host", timed_out(FAR).on(TRACEPOINT), NoAnswer, Proven),
        ("the kernel gave up", kernel(timed_out(FAR)), NoAnswer, Proven),
        ("drops are not seen", timed_out(FAR).on(blind), NoAnswer, Likely),
        (
            "an XDP program on the way out",
            timed_out(FAR).route(None, "unicast").edit(|c| {
                c.facts.route.as_mut().unwrap().device_xdp = true;
            }),
            NoAnswer,
            Likely,
        ),
        (
            "evidence may have been evicted",
            timed_out(FAR).on(Reach { drops: false, accept_queue: false, ..FULL }).edit(|c| {
                c.attempt.evidence_gap = true;
            }),
            NoAnswer,
            Likely,
        ),
        ("a container of this machine", container(timed_out(FAR)), NoAnswer, Likely),
        ("a container, its queue not seen", container(timed_out(FAR)).on(TRACEPOINT), NoAnswer, Likely),
        ("an own address", timed_out(NEAR), NoAnswer, Likely),
        ("an own address, its queue not seen", timed_out(NEAR).on(TRACEPOINT), Unexplained, No),
        (
            "whose address is not known",
            timed_out(FAR).edit(|c| c.facts.is_local = None).on(TRACEPOINT),
            NoAnswer,
            Likely,
        ),
        ("no timer is known", timed_out(FAR).edit(|c| c.config.clear()), NoAnswer, Likely),
        ("the beginning is not known", timed_out(FAR).edit(|c| c.attempt.start_ns = None), NoAnswer, Likely),
        (
            "the client left at the timer's time",
            timed_out(FAR).lasts_ms(995).client_gone(false),
            NoAnswer,
            Likely,
        ),
        ("the client left long after", timed_out(FAR).client_gone(false), NoAnswer, Proven),
    ]);
}

fn answered(case: Build, status: u16, number: Option<u32>) -> Build {
    case.edit(|c| {
        c.client_saw = Some(status);
        c.attempt.number = number;
    })
}

#[test]
fn clients_that_left() {
    let early = || timed_out(FAR).lasts_ms(300);
    check(vec![
        ("FIN", early().client_gone(false), ClientAborted, Proven),
        ("RST", early().client_gone(true), ClientAborted, Proven),
        (
            "dropped meanwhile",
            early().client_gone(true).dropped(DropClass::Netfilter, 1),
            ClientAborted,
            Proven,
        ),
        ("queue full meanwhile", early().client_gone(true).overflow(OWN), ClientAborted, Proven),
        ("nginx closed early, no client seen", early(), ClientAborted, Likely),
        ("no timer is known", early().client_gone(false).edit(|c| c.config.clear()), ClientAborted, Likely),
        (
            "the beginning is not known",
            early().client_gone(false).edit(|c| c.attempt.start_ns = None),
            ClientAborted,
            Likely,
        ),
        ("nginx closed early, and answered its client", answered(early(), 504, Some(1)), NoAnswer, Proven),
        ("which attempt that was is open", answered(early(), 504, None), NoAnswer, Likely),
        ("another status", answered(early(), 502, Some(1)), NoAnswer, Likely),
        (
            "a client that closed its half and was answered",
            answered(timed_out(FAR).lasts_ms(995).client_gone(false), 504, Some(2)),
            NoAnswer,
            Proven,
        ),
        (
            "no timer is known, and 504",
            answered(early().edit(|c| c.config.clear()), 504, Some(1)),
            NoAnswer,
            Proven,
        ),
        ("refused, and the client left", refused(FAR).client_gone(true), Cause::ConnectRefusedByPeer, Likely),
        (
            "the kernel gave up, and the client left",
            early().client_gone(true).edit(|c| {
                (c.attempt.app_closed, c.attempt.sk_err) = (false, libc::ETIMEDOUT);
            }),
            NoAnswer,
            Proven,
        ),
    ]);
}

#[test]
fn the_timer_may_start_a_little_early_but_not_much() {
    // nginx reads its clock once per round of the event loop.
    for (timer, lasted, fits) in [
        (1000, 985, true),
        (1000, 480, false),
        (60_000, 59_500, true),
        (60_000, 59_000, false),
        (80, 50, true),
        (80, 20, false),
    ] {
        let case = timed_out(FAR).timeout_ms(timer).lasts_ms(lasted).0;
        let verdict = diagnose(&case);
        assert_eq!(verdict.cause == NoAnswer, fits, "{lasted} of {timer} ms: {verdict:#?}");
    }
}

#[test]
fn of_several_timers_the_longest_that_fits_counts() {
    let mut case = timed_out(FAR).timeout_ms(60_000).0;
    let short = timed_out(FAR).timeout_ms(1000).0.config;
    case.config.extend(short);
    let verdict = diagnose(&case);
    assert_eq!((verdict.cause, verdict.confidence), (NoAnswer, Proven));
    let end = verdict.evidence.iter().find(|e| e.kind == "end").unwrap();
    assert!(end.text.contains("proxy_connect_timeout 1000ms"), "{}", end.text);
}
