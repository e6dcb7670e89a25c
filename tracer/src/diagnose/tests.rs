//! The rules, from plain fields to a verdict: a builder of cases, one `check` for a table of them, and the
//! invariants that hold for every case whatever.

mod generate;
mod invariants;
mod invariants_standing;
mod standing;
mod table_blocked;
mod table_bytes;
mod table_connect;
mod table_refused;
mod table_said;
mod table_selinux;
mod table_standing;
mod table_standing_unix;
mod table_timeout;
mod table_unix;
mod table_untried;

use std::net::{IpAddr, SocketAddr};

use tracer_ebpf::{self as wire, drop_flag};

use super::{Cause, Confidence, Verdict, diagnose, settle};
use crate::{
    correlate::{
        Case, ConntrackFact, Facts, Listeners, Listening, NeighbourFact, Reach, RouteFact, blocked::Watched,
    },
    event::{self, Attempt, DropClass, Icmp, Overflow, Stage},
    nginx::{Candidate, ConfigLine, InForces, Module, Role, Timeout},
};

/// The worker's network namespace.
const OWN: u32 = 4_026_531_840;
/// Another one of this machine.
const OTHER: u32 = 4_026_532_999;
/// An upstream on another host.
const FAR: &str = "10.0.0.2:3000";
const FAR6: &str = "[fd00::2]:3000";
/// An upstream on this host.
const NEAR: &str = "127.0.0.1:3000";
const ROUTER: &str = "10.9.9.9";
const ROUTER6: &str = "fd00:9::9";
/// An address of this host.
const SELF: &str = "10.0.0.1";
const SELF6: &str = "fd00::1";

/// What the full tier sees.
const FULL: Reach = Reach {
    drops: true,
    drop_reasons: true,
    resets: true,
    icmp: true,
    accept_queue: true,
    security: true,
    blockers: Watched::ALL,
    talk: true,
    unix_talk: true,
    deaths: true,
};
/// What tracepoints see on a kernel since 6.1.
const TRACEPOINT: Reach =
    Reach { icmp: false, accept_queue: false, security: false, blockers: Watched::NONE, ..FULL };

/// A case under construction.
#[derive(Clone)]
struct Build(Case);

/// An attempt on the full tier that ended at `stage` after 40 µs, without any evidence.
fn attempt(stage: Stage, remote: &str) -> Build {
    let remote: SocketAddr = remote.parse().unwrap();
    let local = SocketAddr::new(if remote.is_ipv4() { SELF } else { SELF6 }.parse().unwrap(), 45_678);
    let attempt = Attempt {
        socket: 0xffff_8881_0000_0000,
        netns: OWN,
        start_ns: Some(5_000_000_000),
        end_ns: 5_000_040_000,
        local,
        remote,
        ..Attempt::blank(stage, 133)
    };
    let facts = Facts { is_local: Some(remote.ip().is_loopback()), ..Facts::default() };
    Build(Case::new(attempt, FULL, facts, Vec::new()))
}

/// A failed system call.
fn call(stage: Stage, remote: &str, errno: i32) -> Build {
    attempt(stage, remote).edit(|c| c.attempt.ret = -errno)
}

/// SYN out, then a RST.
fn refused(remote: &str) -> Build {
    attempt(Stage::SynSent, remote).edit(|c| {
        c.attempt.sk_err = libc::ECONNREFUSED;
        c.attempt.reset = true;
        c.attempt.reset_ns = c.attempt.end_ns;
    })
}

/// SYN out, then nginx's timer of one second, whose line is known.
fn timed_out(remote: &str) -> Build {
    attempt(Stage::SynSent, remote).lasts_ms(1001).timeout_ms(1000).edit(|c| c.attempt.app_closed = true)
}

/// SYN out, then an ICMP error.
fn icmp(remote: &str, errno: i32, kind: u8, code: u8, sender: &str) -> Build {
    let sender: IpAddr = sender.parse().unwrap();
    attempt(Stage::SynSent, remote).edit(|c| {
        c.attempt.sk_err = errno;
        c.attempt.icmp = Some(Icmp { kind, code, sender });
        c.facts.icmp_sender_is_own = Some([SELF, SELF6].iter().any(|own| own.parse() == Ok(sender)));
    })
}

/// Dropped packets, as the decoder makes them: `classes` in the order of their drops.
fn drops(
    classes: &[DropClass],
    count: u32,
    netns: u32,
    flags: u32,
    no_socket_netns: u32,
) -> Option<event::Drop> {
    let mut e = event::read_evidence(&[0; size_of::<wire::Evidence>()]).unwrap();
    e.drop_class = classes.last().map_or(0, |c| *c as u8);
    e.classes = classes.iter().map(|c| *c as u8).filter(|c| *c < 8).fold(0, |bits, c| bits | 1 << c);
    e.drop_count = count;
    e.drop_netns = netns;
    e.drop_first_ns = 5_000_001_000;
    e.drop_last_ns = 5_000_002_000;
    e.flags = flags;
    e.no_socket_netns = no_socket_netns;
    event::evidence(&e, wire::flag::DROP).unwrap().0
}

fn listening(address: &str, queued: u32, limit: u32) -> Listening {
    Listening { address: address.parse().unwrap(), owner: Some("node (pid 4121)".to_owned()), queued, limit }
}

impl Build {
    fn edit(mut self, f: impl FnOnce(&mut Case)) -> Self {
        f(&mut self.0);
        self
    }

    fn on(self, reach: Reach) -> Self {
        self.edit(|c| c.reach = reach)
    }

    fn lasts_ms(self, ms: u64) -> Self {
        self.edit(|c| c.attempt.end_ns = 5_000_000_000 + ms * 1_000_000)
    }

    fn syns(self, count: u16) -> Self {
        self.edit(|c| c.attempt.retransmits = count - 1)
    }

    /// The configuration leads to the destination with this connect timeout.
    fn timeout_ms(self, ms: u64) -> Self {
        self.edit(|c| {
            let line = |role, line, text: &str| ConfigLine {
                role,
                file: "/etc/nginx/conf.d/shop.conf".into(),
                line,
                text: text.to_owned(),
            };
            let text = format!("proxy_connect_timeout {ms}ms;");
            c.config = vec![Candidate {
                upstream: Some("backend".to_owned()),
                server: c.attempt.remote.to_string(),
                module: Module::Proxy,
                lines: vec![
                    line(Role::Server, 4, "server …;"),
                    line(Role::Pass, 18, "proxy_pass http://backend;"),
                ],
                connect_timeouts: vec![Timeout {
                    milliseconds: Some(ms),
                    line: Some(line(Role::Directive, 19, &text)),
                    text,
                }],
                barred: crate::nginx::Barred::default(),
                settings: InForces::default(),
                exact: true,
                upstream_server: Some((0, 0)),
                passes: vec![0],
            }];
        })
    }

    /// Every SYN so far was dropped by this class, in the worker's namespace.
    fn dropped(self, class: DropClass, count: u32) -> Self {
        self.edit(|c| c.attempt.drop = drops(&[class], count, OWN, 0, 0))
    }

    /// The stack of a namespace had no socket for the SYN.
    fn no_socket(self, netns: u32) -> Self {
        self.edit(|c| c.attempt.drop = drops(&[DropClass::NoSocket], 1, netns, 0, netns))
    }

    fn overflow(self, netns: u32) -> Self {
        self.edit(|c| c.attempt.overflow = Some(Overflow { queued: 5, limit: 4, netns }))
    }

    fn listeners(self, exact: &[Listening]) -> Self {
        self.edit(|c| c.facts.listeners = Some(Listeners { exact: exact.to_vec(), ..Listeners::default() }))
    }

    /// The route look-up fails with this errno, or finds a way through `eth0`.
    fn route(self, errno: Option<i32>, kind: &str) -> Self {
        self.edit(|c| {
            let good = errno.is_none();
            c.facts.route = Some(RouteFact {
                errno,
                kind: Some(kind.to_owned()),
                entry: Some(format!("{kind} 10.0.0.0/24")),
                next_hop: good.then(|| c.attempt.remote.ip()),
                device: good.then(|| "eth0".to_owned()),
                device_up: good.then_some(true),
                device_xdp: false,
            });
        })
    }

    fn neighbour(self, state: &str) -> Self {
        self.edit(|c| {
            c.facts.neighbour = Some(NeighbourFact {
                ip: c.attempt.remote.ip(),
                state: state.to_owned(),
                failed: matches!(state, "FAILED" | "INCOMPLETE"),
                device: "eth0".to_owned(),
            });
        })
    }

    fn conntrack(self, count: u32, drops: u64) -> Self {
        self.edit(|c| c.facts.conntrack = Some(ConntrackFact { count, max: 100, drops }))
    }

    fn client_gone(self, reset: bool) -> Self {
        self.edit(|c| c.client_gone = Some(("203.0.113.9:51514".parse().unwrap(), reset)))
    }
}

/// A row of a table: what a case must be called, and how sure that may be.
type Row = (&'static str, Build, Cause, Confidence);

/// Checks a table, and reports all rows that fail at once.
fn check(rows: Vec<Row>) {
    let mut wrong = String::new();
    for (name, build, cause, confidence) in rows {
        let verdict = diagnose(&build.0);
        if (verdict.cause, verdict.confidence) != (cause, confidence) {
            wrong += &format!(
                "{name}: expected {cause} ({}), got {} ({})\n  {verdict:#?}\n",
                confidence.name(),
                verdict.cause,
                verdict.confidence.name()
            );
        }
        for broken in invariants::broken(&build.0, &verdict) {
            wrong += &format!("{name}: {broken}\n");
        }
    }
    assert!(wrong.is_empty(), "{wrong}");
}

#[test]
fn two_proofs_prove_nothing() {
    let case = refused(NEAR).0;
    let proof = |cause| Verdict::proven(cause, format!("it is {cause}")).because("x", cause.name());
    let (a, b) = (Cause::ConnectRefusedByFirewall, Cause::ConnectRefusedNoListener);
    let verdict = settle(&case, vec![proof(a), proof(b)]);
    assert_eq!((verdict.cause, verdict.confidence), (a, Confidence::Likely));
    let rival = verdict.rival.unwrap();
    assert!(rival.contains(b.name()), "{rival}");
    assert_eq!(verdict.evidence.len(), 2, "the rival's evidence is shown as well");

    let third = Verdict::likely(Cause::ConnectRefusedByPeer, "it is the peer", "nobody");
    let verdict = settle(&case, vec![third.clone(), proof(b)]);
    assert_eq!((verdict.cause, verdict.confidence, verdict.rival), (b, Confidence::Proven, None));
    let verdict = settle(&case, vec![third, proof(b), proof(a)]);
    assert_eq!(
        (verdict.cause, verdict.confidence),
        (b, Confidence::Likely),
        "a likely verdict is no tie-breaker"
    );
}

#[test]
fn a_likely_verdict_names_its_own_rival_and_the_next_best_verdict() {
    let case = refused(NEAR).0;
    let first = Verdict::likely(Cause::ConnectRefusedByPeer, "a", "a middlebox");
    let second = Verdict::likely(Cause::HostUnreachable, "b", "c");
    let verdict = settle(&case, vec![first, second]);
    assert_eq!(verdict.cause, Cause::ConnectRefusedByPeer, "the order of RULES decides among equals");
    assert_eq!(verdict.rival.as_deref(), Some("a middlebox; or b (host-unreachable)"));
}

#[test]
fn contradicting_evidence_of_a_real_case_weakens_both() {
    // A reverse path filter that dropped every SYN, and an accept queue that was full: both cannot be all.
    let verdict = diagnose(&timed_out(NEAR).dropped(DropClass::RpFilter, 1).overflow(OWN).0);
    assert_eq!((verdict.cause, verdict.confidence), (Cause::ConnectTimeoutFirewallDrop, Confidence::Likely));
    assert!(verdict.rival.unwrap().contains(Cause::ConnectTimeoutBacklogFull.name()));
}

#[test]
fn without_any_rule_the_evidence_is_all_there() {
    let verdict = settle(&refused(FAR).no_socket(OWN).overflow(OWN).0, Vec::new());
    assert_eq!((verdict.cause, verdict.confidence), (Cause::Unexplained, Confidence::Unexplained));
    let kinds: Vec<_> = verdict.evidence.iter().map(|e| e.kind).collect();
    for kind in ["errno", "rst", "drop", "accept-queue", "syn"] {
        assert!(kinds.contains(&kind), "{kind} is missing in {kinds:?}");
    }
    assert!(verdict.fix.is_empty(), "no advice without a cause");
}
