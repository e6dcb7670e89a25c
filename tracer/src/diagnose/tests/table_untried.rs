//! Requests that nginx answered without trying a server.

use super::*;
use crate::correlate::no_attempt::{
    Choice, Failure, Group, LookUp, NoAttempt, Peer, Reply, Said, Source, Word,
};
use Cause::{NoLiveUpstreams, NoResolver, ResolverFailed, Unexplained};
use Confidence::{Likely, Proven, Unexplained as No};

fn line(line: u32) -> ConfigLine {
    ConfigLine { role: Role::Server, file: "/etc/nginx/conf.d/shop.conf".into(), line, text: "x;".to_owned() }
}

fn untried(choice: Choice, waited_us: u64) -> Build {
    attempt(Stage::Untried, "0.0.0.0:0").edit(|c| {
        c.attempt.no_remote = true;
        c.attempt.end_ns = 20_000_000_000;
        c.attempt.start_ns = Some(c.attempt.end_ns - waited_us * 1000);
        c.facts.no_attempt = Some(Box::new(NoAttempt {
            source: Source::Answer { at_once: true, crowded: false },
            tried: 0,
            waited_us,
            certain: true,
            others: Vec::new(),
            pass: line(18),
            choice,
        }));
    })
}

/// A server that failed so many milliseconds before the answer.
fn peer(number: u32, failed_ms: &[u64]) -> Peer {
    let failure = |ms| Failure {
        worker: 133,
        at_ns: 20_000_000_000 - ms * 1_000_000,
        cause: "connect-refused-no-listener".into(),
        sure: true,
    };
    Peer {
        server: format!("10.0.0.{number}:80"),
        address: format!("10.0.0.{number}:80").parse().ok(),
        sure: true,
        line: line(number),
        down: false,
        backup: false,
        unix: None,
        max_fails: 1,
        fail_timeout_s: 10,
        max_conns: 0,
        failures: failed_ms.iter().copied().map(failure).collect(),
    }
}

fn group(peers: Vec<Peer>) -> Build {
    let name = "backend".to_owned();
    untried(Choice::Group(Group { name, shared: false, known: true, peers }), 180)
}

fn edit(build: Build, f: impl FnOnce(&mut NoAttempt)) -> Build {
    build.edit(|c| f(c.facts.no_attempt.as_mut().unwrap()))
}

fn busy(n: &mut NoAttempt) {
    n.source = Source::Answer { at_once: false, crowded: true };
}

fn late(n: &mut NoAttempt) {
    n.source = Source::Answer { at_once: false, crowded: false };
}

fn module(n: &mut NoAttempt) {
    n.others = vec!["/etc/nginx/nginx.conf:3 (proxy_cache kept;)".to_owned()];
}

fn elsewhere(n: &mut NoAttempt) {
    n.certain = false;
}

#[test]
fn groups() {
    let both = || group(vec![peer(1, &[4000]), peer(2, &[3000])]);
    let half = || group(vec![peer(1, &[4000]), peer(2, &[])]);
    let with = |f: fn(&mut Peer)| {
        let mut second = peer(2, &[]);
        f(&mut second);
        group(vec![peer(1, &[4000]), second])
    };
    check(vec![
        ("both are out", both(), NoLiveUpstreams, Proven),
        ("both are out, a moment later", edit(both(), late), NoLiveUpstreams, Proven),
        ("what took one out was not seen", half(), NoLiveUpstreams, Likely),
        ("and the worker did other things", edit(half(), late), Unexplained, No),
        ("and something else answers so", edit(half(), module), Unexplained, No),
        ("and the place is in doubt", edit(half(), elsewhere), Unexplained, No),
        ("something else answers so", edit(both(), module), NoLiveUpstreams, Likely),
        ("the place is in doubt", edit(both(), elsewhere), NoLiveUpstreams, Likely),
        ("other connections", edit(both(), busy), Unexplained, No),
        ("one is down", with(|p| p.down = true), NoLiveUpstreams, Proven),
        ("one is always tried", with(|p| p.max_fails = 0), Unexplained, No),
        ("unless it is full", with(|p| (p.max_fails, p.max_conns) = (0, 1)), NoLiveUpstreams, Likely),
        (
            "a unix socket",
            with(|p| (p.address, p.unix) = (None, Some("/run/a.sock".to_owned()))),
            Unexplained,
            No,
        ),
        ("a lone one", group(vec![peer(1, &[4000])]), Unexplained, No),
        ("nobody", group(Vec::new()), Unexplained, No),
        ("its time is over", group(vec![peer(1, &[11_500]), peer(2, &[3000])]), NoLiveUpstreams, Likely),
        (
            "another module chooses",
            edit(both(), |n| {
                if let Choice::Group(group) = &mut n.choice {
                    group.known = false;
                }
            }),
            NoLiveUpstreams,
            Likely,
        ),
        (
            "whose failure it was is in doubt",
            with(|p| {
                p.failures = peer(2, &[3000]).failures;
                p.failures[0].sure = false;
            }),
            NoLiveUpstreams,
            Likely,
        ),
    ]);
}

fn look_up(resolver: bool, waited_us: u64, replies: Vec<Reply>) -> Build {
    let look_up = LookUp {
        name: Some("app.example.com".to_owned()),
        sure: true,
        resolver: resolver.then(|| line(3)),
        timeout_ms: Some(5000),
        timeout_text: "resolver_timeout 5s;".to_owned(),
        watched: true,
        replies,
    };
    untried(Choice::Name(look_up), waited_us)
}

fn reply(what: Said, before_us: u64) -> Reply {
    let name = (!matches!(what, Said::Error(_))).then(|| "app.example.com".to_owned());
    Reply { server: "10.0.0.53:53".parse().unwrap(), before_us, what, name }
}

#[test]
fn names() {
    let edit_name = |build: Build, f: fn(&mut LookUp)| {
        edit(build, |n| {
            if let Choice::Name(look_up) = &mut n.choice {
                f(look_up);
            }
        })
    };
    let none = || look_up(false, 95, Vec::new());
    let nxdomain = || look_up(true, 900, vec![reply(Said::Code(3), 120)]);
    let silent = || look_up(true, 5_001_000, Vec::new());
    let refused = reply(Said::Error(libc::ECONNREFUSED), 4_990_000);
    check(vec![
        ("no resolver", none(), NoResolver, Proven),
        ("it may be a group", edit_name(none(), |l| l.sure = false), NoResolver, Likely),
        ("something else answers so", edit(none(), module), NoResolver, Likely),
        ("other connections", edit(none(), busy), Unexplained, No),
        ("NXDOMAIN", nxdomain(), ResolverFailed, Proven),
        ("NXDOMAIN, on a busy worker", edit(nxdomain(), busy), ResolverFailed, Likely),
        ("no data", look_up(true, 900, vec![reply(Said::Empty, 120)]), ResolverFailed, Proven),
        ("a name that is not known", edit_name(nxdomain(), |l| l.name = None), ResolverFailed, Proven),
        (
            "a worker that was busy when the reply came",
            look_up(true, 151_000, vec![reply(Said::Code(3), 122_000)]),
            ResolverFailed,
            Proven,
        ),
        (
            "a reply long before",
            look_up(true, 900_000, vec![reply(Said::Code(3), 800_000)]),
            ResolverFailed,
            Likely,
        ),
        ("silence for as long as nginx waits", silent(), ResolverFailed, Proven),
        ("silence that was not watched", edit_name(silent(), |l| l.watched = false), ResolverFailed, Likely),
        ("a closed port", look_up(true, 5_001_000, vec![refused]), ResolverFailed, Proven),
        ("too early", look_up(true, 1_000_000, Vec::new()), ResolverFailed, Likely),
        ("too early, and something else", edit(look_up(true, 1_000, Vec::new()), module), Unexplained, No),
        ("silence on a busy worker", edit(silent(), busy), Unexplained, No),
    ]);
}

#[test]
fn a_session_is_not_answered() {
    let of = |module| {
        let case = edit(look_up(false, 95, Vec::new()), |n| n.source = Source::Said(Word::NoResolver));
        let case = case.timeout_ms(1000).edit(|c| c.config[0].module = module);
        let verdict = diagnose(&case.0);
        assert_eq!((verdict.cause, verdict.confidence), (NoResolver, Proven));
        let texts = verdict.evidence.iter().map(|e| e.text.clone());
        texts.chain(verdict.fix.iter().map(|fix| fix.text.clone())).collect::<Vec<_>>().join("\n")
    };
    let (request, session) = (of(Module::Proxy), of(Module::Stream));
    assert!(request.contains("after the request and") && request.contains("or to `http`"), "{request}");
    assert!(session.contains("nginx closed the session") && session.contains("to `stream`"), "{session}");
}

#[test]
fn nginx_says_it_itself() {
    let word = |build: Build, word: Word| edit(build, |n| n.source = Source::Said(word));
    let half = || group(vec![peer(1, &[4000]), peer(2, &[])]);
    let named = || look_up(true, 900, Vec::new());
    check(vec![
        ("what took one out was not seen", word(half(), Word::NoLive), NoLiveUpstreams, Proven),
        ("the place is in doubt", edit(word(half(), Word::NoLive), elsewhere), NoLiveUpstreams, Proven),
        (
            "one was tried, and the other one is out",
            edit(word(half(), Word::NoLive), |n| n.tried = 1),
            NoLiveUpstreams,
            Proven,
        ),
        ("nobody is known", word(group(Vec::new()), Word::NoLive), NoLiveUpstreams, Proven),
        ("a group, and another word", word(half(), Word::NoResolver), Unexplained, No),
        ("no resolver", word(look_up(false, 95, Vec::new()), Word::NoResolver), NoResolver, Proven),
        ("a code", word(named(), Word::NotResolved(3)), ResolverFailed, Proven),
        ("silence", word(named(), Word::NotResolved(110)), ResolverFailed, Proven),
        ("a name, and another word", word(named(), Word::NoLive), Unexplained, No),
    ]);
}

/// One that is alone beside others that are `down` is to be tried whatever it did before.
#[test]
fn a_live_server_beside_others_that_are_down() {
    let fixes = |edit: fn(&mut [Peer])| -> String {
        let mut peers = vec![peer(1, &[4000]), peer(2, &[]), peer(3, &[])];
        edit(&mut peers);
        let all = diagnose(&group(peers).0).fix;
        all.iter().map(|fix| format!("{}\n", fix.text)).collect()
    };
    let lone = fixes(|peers| peers[1..].iter_mut().for_each(|peer| peer.down = true));
    assert!(lone.contains("add max_fails=0 to") && lone.contains("until there is a second server"), "{lone}");
    assert!(!lone.contains("take `down` away"), "{lone}");
    let two = fixes(|peers| {
        peers[1] = peer(2, &[3000]);
        peers[2].down = true;
    });
    assert!(two.contains("take `down` away") && !two.contains("max_fails=0"), "{two}");
    let full = fixes(|peers| {
        peers[1..].iter_mut().for_each(|peer| peer.down = true);
        (peers[0].max_fails, peers[0].max_conns) = (0, 1);
    });
    assert!(!full.contains("max_fails=0"), "max_conns has filled it: {full}");
}
