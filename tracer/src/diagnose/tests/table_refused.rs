//! Refusals: nobody listens, the peer says no, a firewall says no.

use super::*;
use Cause::{
    ConnectRefusedByFirewall as Firewall, ConnectRefusedByPeer as Peer,
    ConnectRefusedNoListener as NoListener, HostUnreachable, Unexplained,
};
use Confidence::{Likely, Proven, Unexplained as No};

const BLIND: Reach = Reach { drops: false, drop_reasons: false, ..FULL };

#[test]
fn no_listener() {
    let busy = &[listening(NEAR, 0, 128)];
    check(vec![
        ("the kernel's word", refused(NEAR).no_socket(OWN), NoListener, Proven),
        ("on the tracepoint tier", refused(NEAR).no_socket(OWN).on(TRACEPOINT), NoListener, Proven),
        (
            "by errno where RSTs are not seen",
            refused(NEAR)
                .no_socket(OWN)
                .edit(|c| c.attempt.reset = false)
                .on(Reach { resets: false, ..FULL }),
            NoListener,
            Proven,
        ),
        ("it listens by now", refused(NEAR).no_socket(OWN).listeners(busy), NoListener, Proven),
        ("drops are not seen", refused(NEAR).listeners(&[]).on(BLIND), NoListener, Likely),
        ("drops are not seen, a listener is there", refused(NEAR).listeners(busy).on(BLIND), Unexplained, No),
        ("own address, nothing else known", refused(NEAR).on(BLIND), Unexplained, No),
        (
            "the first SYN dropped by a rule, the second refused",
            refused(NEAR).syns(2).edit(|c| {
                c.attempt.drop = drops(&[DropClass::Netfilter, DropClass::NoSocket], 2, OWN, 0, OWN);
            }),
            NoListener,
            Proven,
        ),
        (
            "DNAT to an own port",
            refused(FAR).no_socket(OWN).edit(|c| c.facts.translated = NEAR.parse().ok()),
            NoListener,
            Proven,
        ),
    ]);
}

#[test]
fn peer() {
    check(vec![
        ("a RST from outside", refused(FAR), Peer, Likely),
        ("a RST from outside, blind", refused(FAR).on(BLIND), Peer, Likely),
        ("a container without the service", refused(FAR).no_socket(OTHER), Peer, Proven),
        (
            "the worker's namespace is not known",
            refused(FAR).no_socket(OTHER).edit(|c| c.attempt.netns = 0),
            Peer,
            Likely,
        ),
        (
            "the same on an own address",
            refused(NEAR).no_socket(OWN).edit(|c| c.attempt.netns = 0).listeners(&[]),
            NoListener,
            Likely,
        ),
        ("IPv6", refused(FAR6), Peer, Likely),
        (
            "the peer's answer was dropped once, then a RST",
            refused(FAR).edit(|c| {
                c.attempt.drop = drops(&[DropClass::Netfilter], 1, OWN, drop_flag::REPLY, 0);
            }),
            Unexplained,
            No,
        ),
    ]);
}

#[test]
fn local_firewall() {
    let reject = |build: Build| build.dropped(DropClass::Netfilter, 1);
    let port = || icmp(NEAR, libc::ECONNREFUSED, 3, 3, "127.0.0.1");
    check(vec![
        ("tcp-reset", reject(refused(NEAR)), Firewall, Proven),
        ("tcp-reset towards another host", reject(refused(FAR)), Firewall, Proven),
        ("tcp-reset, and nobody listens either", reject(refused(NEAR)).listeners(&[]), Firewall, Proven),
        ("ICMP", reject(port()), Firewall, Proven),
        (
            "ICMP host-unreachable is no ARP failure",
            reject(icmp(FAR, libc::EHOSTUNREACH, 3, 1, SELF)).neighbour("FAILED"),
            Firewall,
            Proven,
        ),
        (
            "ICMP in the error queue: soft error only",
            reject(attempt(Stage::SynSent, NEAR)).edit(|c| {
                c.attempt.app_closed = true;
                c.attempt.sk_err_soft = libc::ECONNREFUSED;
                c.attempt.icmp = Some(Icmp { kind: 3, code: 3, sender: "127.0.0.1".parse().unwrap() });
            }),
            Firewall,
            Proven,
        ),
        (
            "IPv6, errno only",
            reject(attempt(Stage::SynSent, FAR6)).edit(|c| c.attempt.sk_err = libc::EACCES).on(TRACEPOINT),
            Firewall,
            Proven,
        ),
        ("one SYN got through", reject(refused(FAR)).syns(2), Firewall, Likely),
        (
            "only the next hop's failure beside it",
            icmp(FAR, libc::EHOSTUNREACH, 3, 1, SELF).syns(2).neighbour("FAILED").edit(|c| {
                c.attempt.drop = drops(&[DropClass::Netfilter, DropClass::Neighbour], 2, OWN, 0, 0);
            }),
            Firewall,
            Likely,
        ),
    ]);
}

#[test]
fn firewall_on_the_way() {
    let v4 = |code, sender| icmp(FAR, libc::EHOSTUNREACH, 3, code, sender);
    let v6 = |code, sender| icmp(FAR6, libc::EACCES, 1, code, sender);
    let by_errno = |errno| attempt(Stage::SynSent, FAR6).edit(|c| c.attempt.sk_err = errno).on(TRACEPOINT);
    let mut rows: Vec<Row> = vec![
        ("port unreachable, from a router", v4(3, ROUTER), Firewall, Proven),
        ("port unreachable, from the peer", v4(3, "10.0.0.2"), Firewall, Likely),
        ("protocol unreachable", v4(2, ROUTER), Firewall, Likely),
        ("the peer calls itself unreachable", v4(1, "10.0.0.2"), Firewall, Likely),
        ("a router calls it unreachable", v4(1, ROUTER), HostUnreachable, Likely),
        ("the peer has no route to itself", v4(0, "10.0.0.2"), Firewall, Likely),
        ("the peer has no route to itself, IPv6", v6(0, "fd00::2"), Firewall, Likely),
        ("IPv6 port unreachable, from a router", v6(4, ROUTER6), Firewall, Proven),
        ("IPv6 port unreachable, from the peer", v6(4, "fd00::2"), Firewall, Likely),
        ("IPv6 reject route", v6(6, ROUTER6), Firewall, Proven),
        ("IPv6 refused without a RST", by_errno(libc::ECONNREFUSED), Firewall, Likely),
        ("IPv6 prohibited, by errno", by_errno(libc::EACCES), Firewall, Likely),
        ("fragmentation needed refuses nothing", v4(4, ROUTER), Unexplained, No),
    ];
    // Administrative prohibition says so whoever sends it.
    for code in [9, 10, 13] {
        rows.push(("prohibited, by a router", v4(code, ROUTER), Firewall, Proven));
        rows.push(("prohibited, by the peer", v4(code, "10.0.0.2"), Firewall, Proven));
    }
    for code in [1, 5] {
        rows.push(("IPv6 prohibited, by a router", v6(code, ROUTER6), Firewall, Proven));
        rows.push(("IPv6 prohibited, by the peer", v6(code, "fd00::2"), Firewall, Proven));
    }
    check(rows);
}

/// A 502 that another server could have answered names the line that kept nginx from it.
#[test]
fn what_kept_nginx_from_the_next_server() {
    let line = |text: &str| ConfigLine {
        role: Role::Directive,
        file: "/etc/nginx/conf.d/shop.conf".into(),
        line: 20,
        text: text.to_owned(),
    };
    let told = |saw: Option<u16>, error: &[&str], timeout: &[&str], edit: fn(&mut Case)| {
        let build = refused(NEAR).no_socket(OWN).timeout_ms(1000).edit(|c| {
            c.client_saw = saw;
            c.config[0].barred = crate::nginx::Barred {
                others: true,
                error: error.iter().map(|text| line(text)).collect(),
                timeout: timeout.iter().map(|text| line(text)).collect(),
            };
            edit(c);
        });
        let verdict = super::super::verdict(&build.0);
        let said = verdict.evidence.iter().any(|evidence| evidence.kind == "no-retry");
        let fix = verdict.fix.last().map(|fix| fix.text.clone()).unwrap_or_default();
        said.then_some(fix)
    };
    let off = ["proxy_next_upstream off;"];
    let nothing = |_: &mut Case| {};
    for (lines, wanted) in [
        (off, "take away `proxy_next_upstream off;` (/etc/nginx/conf.d/shop.conf:20)"),
        (["proxy_next_upstream_tries 1;"], "take away `proxy_next_upstream_tries 1;`"),
        (["proxy_next_upstream http_503;"], "add `error` to `proxy_next_upstream http_503;`"),
    ] {
        let fix = told(Some(502), &lines, &[], nothing).unwrap();
        assert!(fix.contains(wanted), "{fix}");
    }
    assert!(told(None, &off, &off, nothing).is_some());
    // The request went on, or would have; its failure is another's; nobody knows which line holds.
    assert_eq!(told(Some(200), &off, &off, nothing), None);
    assert_eq!(told(Some(502), &[], &off, nothing), None);
    assert_eq!(told(None, &[], &["proxy_next_upstream error;"], nothing), None);
    assert_eq!(told(Some(502), &off, &off, |c| c.config[0].exact = false), None);
    assert_eq!(told(Some(502), &off, &off, |c| c.attempt.stage = Stage::Bind), None);
}

/// Where a name has moved, the service that was there need not come back.
#[test]
fn a_name_that_has_moved_needs_a_reload_first() {
    use crate::correlate::story::{StaleName, Story};
    let first = |did, kept, now: &[&str]| {
        let now = now.iter().map(|ip| ip.parse().unwrap()).collect();
        let names = vec![StaleName { name: "app.test".to_owned(), did, kept, now }];
        let build = refused(NEAR).no_socket(OWN).listeners(&[]).edit(|c| {
            c.story = Some(Box::new(Story { master: 7, names, ..Story::default() }));
        });
        super::super::verdict(&build.0).fix[0].text.starts_with("reload nginx")
    };
    assert!(first(true, true, &["10.0.0.9"]) && first(true, false, &["10.0.0.9"]));
    // It may have been another name's; or there is nothing that a reload would get.
    assert!(!first(false, false, &["10.0.0.9"]) && !first(true, true, &[]));
}
