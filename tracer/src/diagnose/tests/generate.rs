//! Every combination of the evidence that decides, each with pseudo-random facts around it: no case may panic
//! or break an invariant, and what a lower tier does not see may weaken a verdict, not turn it.

use super::*;
use crate::diagnose::RULES;

/// xorshift64*: the same cases in every run.
pub(super) struct Dice(u64);

impl Dice {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    pub(super) fn one_in(&mut self, n: u64) -> bool {
        (self.next() >> 33).is_multiple_of(n)
    }

    pub(super) fn pick<T: Clone>(&mut self, from: &[T]) -> T {
        let index = (self.next() >> 33) as usize % from.len();
        from[index].clone()
    }
}

const STAGES: [Stage; 5] = [Stage::Socket, Stage::Bind, Stage::Connect, Stage::SynSent, Stage::Established];
const ERRNOS: [i32; 15] = [
    0,
    0,
    libc::ETIMEDOUT,
    libc::ECONNREFUSED,
    libc::EHOSTUNREACH,
    libc::ENETUNREACH,
    libc::EACCES,
    libc::EPERM,
    libc::EINVAL,
    libc::EADDRNOTAVAIL,
    libc::EADDRINUSE,
    libc::EMFILE,
    libc::ENFILE,
    libc::ECONNRESET,
    4095,
];
const V4: [(u8, u8); 13] = [
    (3, 0),
    (3, 1),
    (3, 2),
    (3, 3),
    (3, 4),
    (3, 6),
    (3, 7),
    (3, 9),
    (3, 10),
    (3, 12),
    (3, 13),
    (11, 0),
    (255, 255),
];
const V6: [(u8, u8); 10] =
    [(1, 0), (1, 1), (1, 2), (1, 3), (1, 4), (1, 5), (1, 6), (3, 0), (2, 0), (255, 255)];

/// None, and every class alone and in pairs.
fn class_sets() -> Vec<Vec<DropClass>> {
    let single: Vec<DropClass> = (0..=9).map(|n| DropClass::try_from(n).unwrap()).collect();
    let mut sets = vec![Vec::new()];
    for a in &single {
        sets.push(vec![*a]);
        sets.extend(single.iter().filter(|b| *b != a).map(|b| vec![*a, *b]));
    }
    sets
}

fn icmp_kinds() -> Vec<Option<(bool, u8, u8)>> {
    let v4 = V4.iter().map(|(kind, code)| Some((false, *kind, *code)));
    let v6 = V6.iter().map(|(kind, code)| Some((true, *kind, *code)));
    std::iter::once(None).chain(v4).chain(v6).collect()
}

/// What decides.
#[derive(Clone, Copy)]
struct Key<'a> {
    stage: Stage,
    reset: bool,
    icmp: Option<(bool, u8, u8)>,
    classes: &'a [DropClass],
    app_closed: bool,
    overflow: bool,
}

/// Every key, several times: the rest is thrown anew each time.
fn all(mut f: impl FnMut(Key<'_>)) {
    let sets = class_sets();
    for stage in STAGES.into_iter().chain([Stage::SynSent; 4]) {
        for reset in [false, true] {
            for icmp in icmp_kinds() {
                for classes in &sets {
                    for app_closed in [false, true] {
                        for overflow in [false, true] {
                            f(Key { stage, reset, icmp, classes, app_closed, overflow });
                        }
                    }
                }
            }
        }
    }
}

/// The kernel's errno of an ICMP error (net/ipv4/icmp.c, net/ipv6/icmp.c).
fn errno_of((v6, kind, code): (bool, u8, u8)) -> i32 {
    match (v6, kind, code) {
        (false, 3, 0 | 6 | 9) | (true, 1, 0) => libc::ENETUNREACH,
        (false, 3, 3) | (true, 1, 4) => libc::ECONNREFUSED,
        (false, 3, 2) => libc::ENOPROTOOPT,
        (true, 1, 1 | 5 | 6) => libc::EACCES,
        _ => libc::EHOSTUNREACH,
    }
}

/// The case of a key, with everything else thrown. Evidence that is there could be seen.
fn case(key: Key<'_>, dice: &mut Dice) -> Case {
    let v6 = key.icmp.map_or_else(|| dice.one_in(2), |(v6, ..)| v6);
    let remote = match (v6, dice.one_in(3)) {
        (false, false) => FAR,
        (false, true) => NEAR,
        (true, false) => FAR6,
        (true, true) => "[::1]:3000",
    };
    let mut build = attempt(key.stage, remote).syns(dice.pick(&[1, 1, 2, 3, 7]));
    if !dice.one_in(4) {
        build = build.timeout_ms(dice.pick(&[0, 100, 1000, 60_000]));
    }
    build = build.lasts_ms(dice.pick(&[0, 90, 130, 700, 995, 1001, 59_000, 61_000, 130_000]));
    let mut case = build.0;
    record(&mut case, key, dice);
    facts(&mut case, dice);
    if key.stage == Stage::Established {
        standing::throw(&mut case, dice);
    }
    case
}

fn record(case: &mut Case, key: Key<'_>, dice: &mut Dice) {
    let a = &mut case.attempt;
    // As a rule the errno is that of the answer.
    a.sk_err = match (key.reset, key.icmp, dice.one_in(8)) {
        (_, _, true) => dice.pick(&ERRNOS),
        (true, ..) => libc::ECONNREFUSED,
        (false, Some(icmp), _) => errno_of(icmp),
        (false, None, _) if key.app_closed => 0,
        (false, None, _) => {
            dice.pick(&[libc::ETIMEDOUT, libc::ECONNREFUSED, libc::EHOSTUNREACH, libc::EACCES])
        }
    };
    a.ret = if matches!(key.stage, Stage::SynSent | Stage::Established) { 0 } else { -dice.pick(&ERRNOS) };
    a.sk_err_soft = if dice.one_in(5) { dice.pick(&ERRNOS) } else { 0 };
    a.syn_state = key.stage == Stage::SynSent || dice.one_in(2);
    a.netns = if dice.one_in(12) { 0 } else { OWN };
    a.start_ns = if dice.one_in(6) { None } else { a.start_ns };
    a.reset = key.reset;
    a.reset_ttl = (key.reset && dice.one_in(2)).then_some(63);
    a.app_closed = key.app_closed;
    a.exiting = dice.one_in(8);
    a.security = dice.one_in(6).then(|| -dice.pick(&[libc::EACCES, libc::EPERM]));
    let (own, router) = if a.remote.is_ipv4() { (SELF, ROUTER) } else { (SELF6, ROUTER6) };
    a.icmp = key.icmp.map(|(_, kind, code)| {
        let sender = dice.pick(&[own.parse().unwrap(), router.parse().unwrap(), a.remote.ip()]);
        Icmp { kind, code, sender }
    });
    let no_socket = key.classes.contains(&DropClass::NoSocket) || dice.one_in(20);
    let flags = dice.pick(&[
        0,
        0,
        0,
        drop_flag::CONNTRACK,
        drop_flag::REPLY,
        drop_flag::REPLY | drop_flag::CONNTRACK,
    ]);
    let (count, netns) = (dice.pick(&[1, 2, 3, 7, u32::MAX]), dice.pick(&[OWN, OWN, OTHER, 0]));
    let no_socket_netns = if no_socket { dice.pick(&[OWN, OWN, OTHER]) } else { 0 };
    if !key.classes.is_empty() {
        a.drop = drops(key.classes, count, netns, flags, no_socket_netns);
    }
    let queue = Overflow { queued: 5, limit: 4, netns: dice.pick(&[OWN, OTHER, 0]) };
    a.overflow = key.overflow.then_some(queue);
    case.reach = Reach {
        drops: !key.classes.is_empty() || !dice.one_in(4),
        drop_reasons: dice.one_in(2),
        resets: key.reset || !dice.one_in(4),
        icmp: (key.icmp.is_some() && case.attempt.remote.is_ipv6()) || dice.one_in(2),
        accept_queue: key.overflow || dice.one_in(2),
        security: case.attempt.security.is_some() || dice.one_in(2),
        blockers: dice.pick(&[Watched::ALL, Watched::NONE]),
        talk: dice.one_in(2),
        unix_talk: dice.one_in(2),
        deaths: dice.one_in(2),
    };
    if dice.one_in(3) {
        case.client_gone = Some(("203.0.113.9:51514".parse().unwrap(), dice.one_in(2)));
    }
}

fn facts(case: &mut Case, dice: &mut Dice) {
    let mut build = Build(case.clone());
    if dice.one_in(2) {
        build = build.route(
            dice.pick(&[None, Some(libc::ENETUNREACH), Some(libc::EACCES), Some(libc::EINVAL)]),
            "unicast",
        );
    }
    if let Some(route) = build.0.facts.route.as_mut() {
        route.device_xdp = dice.one_in(5);
    }
    if dice.one_in(2) {
        build = build.neighbour(dice.pick(&["FAILED", "REACHABLE", "INCOMPLETE", "STALE"]));
    }
    if dice.one_in(2) {
        build = build.conntrack(dice.pick(&[0, 99, 100, 101]), dice.pick(&[0, 1, 9]));
    }
    if dice.one_in(2) {
        let queue = listening(NEAR, dice.pick(&[0, 4, 5]), 4);
        build = build.listeners(&if dice.one_in(2) { vec![queue] } else { Vec::new() });
    }
    let f = &mut build.0.facts;
    f.is_local = dice.pick(&[f.is_local, f.is_local, f.is_local, None]);
    f.icmp_sender_is_own =
        case.attempt.icmp.map(|i| [SELF, SELF6].iter().any(|own| own.parse() == Ok(i.sender)));
    f.ipv6_disabled = dice.pick(&[None, Some(false), Some(true)]);
    f.queue_at_retransmit = dice.one_in(4).then(|| listening(NEAR, dice.pick(&[0, 4, 5]), 4));
    f.translated = dice.one_in(5).then(|| FAR.parse().unwrap());
    f.drop_engine = dice.pick(&[None, Some("nftables"), Some("iptables-legacy")]).map(Into::into);
    f.drop_hook = dice.pick(&[None, Some("output"), Some("input")]).map(Into::into);
    f.drop_reason = dice.one_in(2).then(|| "NETFILTER_DROP".to_owned());
    f.other_namespace = dice.one_in(2).then(|| "container docker 0123456789ab".to_owned());
    // Whoever overflowed elsewhere on this machine has that address there.
    let elsewhere = case.attempt.overflow.is_some() && f.is_local != Some(true);
    f.peer_namespace = (elsewhere || dice.one_in(4)).then(|| "container x".to_owned());
    *case = build.0;
}

/// The same attempt as seen from tracepoints alone, or without one of the hooks.
fn degraded(full: &Case, dice: &mut Dice) -> Case {
    let mut case = full.clone();
    let (a, reach) = (&mut case.attempt, &mut case.reach);
    let everything = dice.one_in(4);
    if everything || dice.one_in(3) {
        (a.overflow, reach.accept_queue) = (None, false);
    }
    if everything || dice.one_in(3) {
        (a.security, reach.security) = (None, false);
    }
    // What is taken away leaves its errno, as in the kernel.
    let answered = !matches!(a.sk_err, 0 | libc::ETIMEDOUT);
    if (everything || dice.one_in(3)) && a.remote.is_ipv6() && (answered || a.icmp.is_none()) {
        (a.icmp, reach.icmp, case.facts.icmp_sender_is_own) = (None, false, None);
    }
    if !everything && dice.one_in(4) && a.overflow.is_none() {
        (a.drop, reach.drops, reach.drop_reasons) = (None, false, false);
    }
    if !everything && dice.one_in(4) && (a.sk_err == libc::ECONNREFUSED || !a.reset) {
        (a.reset, a.reset_ttl, reach.resets) = (false, None, false);
    }
    case
}

/// Counts failures and shows the first few: one mistake breaks thousands of cases.
#[derive(Default)]
struct Failures {
    count: usize,
    shown: String,
    kinds: std::collections::BTreeMap<String, usize>,
}

impl Failures {
    fn add(&mut self, what: &str, detail: impl FnOnce() -> String) {
        let seen = self.kinds.entry(what.to_owned()).or_default();
        *seen += 1;
        self.count += 1;
        if *seen == 1 && self.kinds.len() <= 5 {
            self.shown += &format!("--- {what}\n{}\n", detail());
        }
    }

    fn finish(self) {
        assert_eq!(self.count, 0, "by kind: {:#?}\n{}", self.kinds, self.shown);
    }
}

#[test]
fn no_combination_breaks_an_invariant() {
    let (mut dice, mut failures, mut cases) = (Dice(0x5eed), Failures::default(), 0_u32);
    let mut named = std::collections::BTreeMap::new();
    all(|key| {
        let case = case(key, &mut dice);
        let verdict = diagnose(&case);
        cases += 1;
        *named.entry((verdict.cause, verdict.confidence)).or_insert(0_u32) += 1;
        for what in invariants::broken(&case, &verdict) {
            failures.add(&what, || format!("{case:#?}\n{verdict:#?}"));
        }
        for (saw, number) in [(504, Some(1)), (504, None), (200, Some(1))] {
            let mut answered = case.clone();
            (answered.client_saw, answered.attempt.number) = (Some(saw), number);
            let verdict = diagnose(&answered);
            for what in invariants::broken(&answered, &verdict) {
                failures.add(&what, || format!("{answered:#?}\n{verdict:#?}"));
            }
        }
    });
    failures.finish();
    println!("{cases} cases: {named:?}");
    // Those of requests without any attempt have a table of their own; so have those that rest on what hooks said, on unix
    // sockets, and on a number of bytes.
    let elsewhere = |cause: &Cause| {
        let untried = [Cause::NoLiveUpstreams, Cause::NoResolver, Cause::ResolverFailed, Cause::HeaderTooBig];
        let said = cause.name().starts_with("blocked-") && *cause != Cause::BlockedCgroupBpf;
        said || cause.name().starts_with("unix-") || untried.contains(cause)
    };
    for cause in RULES.iter().flat_map(|rule| rule.causes).filter(|cause| !elsewhere(cause)) {
        let reached =
            [Confidence::Likely, Confidence::Proven].into_iter().any(|c| named.contains_key(&(*cause, c)));
        assert!(reached, "no case was called {cause}");
    }
}

#[test]
fn a_rule_names_its_own_causes_only() {
    let (mut dice, mut failures) = (Dice(0xcafe), Failures::default());
    all(|key| {
        let case = case(key, &mut dice);
        for rule in RULES {
            let Some(verdict) = (rule.check)(&case) else { continue };
            if !rule.causes.contains(&verdict.cause) || verdict.confidence == Confidence::Unexplained {
                failures.add(&format!("{} by the rule of {:?}", verdict.cause, rule.causes), || {
                    format!("{case:#?}")
                });
            }
        }
    });
    failures.finish();
}

#[test]
fn a_lower_tier_never_proves_something_else() {
    let (mut dice, mut failures) = (Dice(0xd09e), Failures::default());
    all(|key| {
        let full = case(key, &mut dice);
        let no_socket = full.attempt.drop.as_ref().is_some_and(|d| d.no_socket_netns != 0);
        if key.icmp.is_some() && (key.reset || no_socket) {
            // Two answers: which one is hidden decides, but only one can have ended the attempt.
            return;
        }
        let less = degraded(&full, &mut dice);
        let (best, weak) = (diagnose(&full), diagnose(&less));
        let turned = best.confidence == Confidence::Proven && weak.confidence == Confidence::Proven;
        if turned && best.cause != weak.cause {
            failures.add(&format!("proven {} became proven {}", best.cause, weak.cause), || {
                format!("{full:#?}\n{less:#?}")
            });
        }
        for what in invariants::broken(&less, &weak) {
            failures.add(&what, || format!("{less:#?}\n{weak:#?}"));
        }
    });
    failures.finish();
}
