//! What an incident shows, and how repeats and hostile bytes are shown.

use std::time::{Duration, UNIX_EPOCH};

use super::{json::Json, text::Text, *};
use crate::{
    correlate::{Facts, Reach},
    diagnose::Confidence,
    event::{Attempt, Stage},
    moment::Moment,
    nginx::{InForces, Module, Timeout},
};

fn line(role: Role, line: u32, text: &str) -> ConfigLine {
    ConfigLine { role, file: "/etc/nginx/conf.d/shop.conf".into(), line, text: text.to_owned() }
}

fn candidate(upstream: &str) -> Candidate {
    Candidate {
        upstream: Some(upstream.to_owned()),
        server: "127.0.0.1:3000".to_owned(),
        module: Module::Proxy,
        lines: vec![
            line(Role::Server, 4, "server 127.0.0.1:3000;"),
            line(Role::Pass, 18, "proxy_pass http://backend;"),
        ],
        connect_timeouts: vec![Timeout {
            milliseconds: Some(60_000),
            text: "proxy_connect_timeout 60s (default)".to_owned(),
            line: None,
        }],
        barred: crate::nginx::Barred::default(),
        settings: InForces::default(),
        exact: true,
        upstream_server: Some((0, 0)),
        passes: vec![0],
    }
}

pub(crate) fn incident(cause: Cause, config: Vec<Candidate>) -> Incident {
    let attempt = Attempt {
        socket: 1,
        netns: 2,
        start_ns: Some(1_000),
        end_ns: 39_000,
        local: "127.0.0.1:45678".parse().unwrap(),
        remote: "127.0.0.1:3000".parse().unwrap(),
        sk_err: 111,
        reset: true,
        reset_ns: 38_000,
        ..Attempt::blank(Stage::SynSent, 133)
    };
    Incident {
        time: Moment::utc(UNIX_EPOCH + Duration::from_secs(1_795_356_131)),
        mono_ns: 39_000,
        shown_ns: 40_000,
        case: Case::new(attempt, Reach::default(), Facts::default(), config),
        verdict: Verdict::proven(cause, "nothing listens").because("rst", "a RST").fix("start it"),
        container: None,
        bind_lines: Vec::new(),
        attribution: Attribution::default(),
        repeats: None,
    }
}

fn shown(report: &mut dyn Report, incident: &Incident) -> String {
    let mut out = Vec::new();
    report.incident(&mut out, incident).unwrap();
    String::from_utf8(out).unwrap()
}

fn plain(report: &mut dyn Report, incident: &Incident) -> String {
    anstream::adapter::strip_str(&shown(report, incident)).to_string()
}

#[test]
fn timeouts_are_shown_for_timeouts_only() {
    let roles = |cause| {
        let incident = incident(cause, vec![candidate("backend")]);
        incident.lines().iter().map(Line::role).collect::<Vec<_>>()
    };
    assert_eq!(roles(Cause::ConnectRefusedNoListener), ["server", "pass"]);
    assert_eq!(roles(Cause::ConnectTimeoutNoAnswer), ["server", "pass", "directive"]);
}

#[test]
fn each_line_is_shown_once_and_names_only_where_all_agree() {
    let twice = incident(Cause::ConnectTimeoutNoAnswer, vec![candidate("backend"), candidate("other")]);
    assert_eq!(twice.lines().len(), 3);
    assert_eq!(
        (twice.upstream(), twice.server(), twice.module()),
        (None, Some("127.0.0.1:3000"), Some("proxy"))
    );
    assert!(twice.only_candidate().is_none());
    let text = plain(&mut Text::new(None), &twice);
    assert!(text.contains("several places of the configuration lead to this address"), "{text}");
    assert!(!text.contains("one of"), "the two have the same lines: {text}");
    let mut other = candidate("other");
    other.lines.push(line(Role::Pass, 30, "proxy_pass http://other;"));
    let open = incident(Cause::ConnectTimeoutNoAnswer, vec![candidate("backend"), other]);
    let text = plain(&mut Text::new(None), &open);
    let says = "one of conf.d/shop.conf:18, conf.d/shop.conf:30: the address alone does not tell which";
    assert!(text.contains(says), "{text}");
    let same = incident(Cause::ConnectTimeoutNoAnswer, vec![candidate("backend"), candidate("backend")]);
    assert_eq!(same.upstream(), Some("backend"));
    let none = incident(Cause::ConnectTimeoutNoAnswer, Vec::new());
    assert_eq!((none.upstream(), none.server(), none.module(), none.lines().len()), (None, None, None, 0));
}

#[test]
fn the_destination_of_a_bind_or_socket_is_no_upstream() {
    let mut incident = incident(Cause::BindFailed, Vec::new());
    assert!(incident.address().is_some());
    incident.case.attempt.stage = Stage::Bind;
    assert_eq!(incident.address(), None);
    (incident.case.attempt.stage, incident.case.attempt.no_remote) = (Stage::Socket, true);
    assert_eq!(incident.address(), None);
}

#[test]
fn repeats_are_one_line() {
    let mut text = Text::new(Some(100));
    let one = incident(Cause::ConnectRefusedNoListener, vec![candidate("backend")]);
    assert!(shown(&mut text, &one).lines().count() > 5);
    let mut later = one.clone();
    later.shown_ns += 20_000_000;
    assert_eq!(plain(&mut text, &later), "");
    assert!(text.waits());
    let mut out = Vec::new();
    text.tick(&mut out, later.shown_ns + 1_000_000_000).unwrap();
    let again = anstream::adapter::strip_bytes(&out).into_vec();
    let again = String::from_utf8(again).unwrap();
    assert_eq!(again.lines().count(), 1, "{again}");
    assert!(
        again.contains("again 1 time in 20.0 ms, 2 in all: ") && again.contains("backend → 127.0.0.1:3000"),
        "{again}"
    );
    assert!(!text.waits());
    // Another cause, address or namespace is something else.
    let mut other = incident(Cause::ConnectRefusedNoListener, vec![candidate("backend")]);
    other.case.attempt.netns = 77;
    assert!(shown(&mut text, &other).lines().count() > 5);
    let mut other = incident(Cause::ConnectRefusedNoListener, vec![candidate("backend")]);
    other.case.attempt.remote.set_port(3001);
    assert!(shown(&mut text, &other).lines().count() > 5);
    assert!(shown(&mut text, &incident(Cause::ConnectRefusedByFirewall, Vec::new())).lines().count() > 5);
}

#[test]
fn json_repeats_nothing_away() {
    let one = incident(Cause::ConnectRefusedNoListener, vec![candidate("backend")]);
    assert_eq!(shown(&mut Json, &one), shown(&mut Json, &one));
}

#[test]
fn hostile_bytes_reach_no_terminal() {
    let bad = "a\u{1b}]0;owned\u{7}\r\n\u{202e}b\u{9b}31m\0";
    let mut incident = incident(Cause::ConnectTimeoutNoAnswer, vec![candidate(bad)]);
    incident.container = Some(bad.to_owned());
    incident.verdict =
        Verdict::likely(Cause::ConnectTimeoutNoAnswer, bad, bad).because("x", bad).fix_with(bad, bad);
    for line in &mut incident.case.config[0].lines {
        line.text = bad.to_owned();
        line.file = bad.into();
    }
    for width in [None, Some(20), Some(80), Some(300)] {
        let raw = shown(&mut Text::new(width), &incident);
        let text = anstream::adapter::strip_str(&raw).to_string();
        let steers = |c: char| (c.is_control() && c != '\n') || c == '\u{202e}';
        assert!(!text.contains(steers), "{text:?}");
        // The only escapes are our own colours.
        let colours_only = raw.split('\u{1b}').skip(1).all(|rest| {
            rest.strip_prefix('[')
                .and_then(|r| r.split_once('m'))
                .is_some_and(|(n, _)| n.chars().all(|c| c.is_ascii_digit() || c == ';'))
        });
        assert!(colours_only, "{raw:?}");
        assert!(!text.lines().any(|l| l.starts_with('b')), "a line break got through: {text:?}");
    }
    let json = shown(&mut Json, &incident);
    assert_eq!(json.lines().count(), 1);
    let value: serde_json::Value = serde_json::from_str(&json).unwrap();
    assert_eq!(value["summary"], bad, "JSON keeps the bytes, escaped");
    assert!(!json.trim_end().contains(|c: char| c.is_ascii_control()), "{json:?}");
}

#[test]
fn json_on_a_terminal_steers_nothing() {
    let mut incident = incident(Cause::ConnectTimeoutNoAnswer, vec![candidate("backend")]);
    incident.verdict.summary = "\u{9b}31m\u{7f}\u{202e}".to_owned();
    let json = shown(&mut Json, &incident);
    assert!(!json.trim_end().contains(|c: char| c.is_control() || c == '\u{202e}'), "{json:?}");
    assert_eq!(
        serde_json::from_str::<serde_json::Value>(&json).unwrap()["summary"],
        incident.verdict.summary
    );
}

#[test]
fn the_style_is_no_part_of_the_text() {
    for confidence in [Confidence::Proven, Confidence::Likely, Confidence::Unexplained] {
        let mut incident = incident(Cause::ConnectRefusedNoListener, vec![candidate("backend")]);
        incident.verdict.confidence = confidence;
        let raw = shown(&mut Text::new(Some(80)), &incident);
        assert!(raw.contains('\u{1b}'), "coloured for whoever wants it");
        let text = anstream::adapter::strip_str(&raw).to_string();
        assert!(text.contains(confidence.name()), "the confidence is in words as well: {text}");
    }
}

fn asked(target: &str, host: &str, status: u16) -> Attribution {
    let head = Head {
        method: "GET".to_owned(),
        target: target.to_owned(),
        truncated: false,
        host: Some(host.to_owned()),
    };
    let client = "203.0.113.9:51514".parse().unwrap();
    let local = "192.0.2.7:80".parse().unwrap();
    let request = crate::correlate::request::Request {
        id: 7,
        client,
        local,
        head: Some(head),
        status: Some(status),
        ids: Default::default(),
    };
    Attribution { request: Some(request), note: None }
}

#[test]
fn a_known_request_is_the_headline() {
    let mut incident = incident(Cause::ConnectRefusedNoListener, vec![candidate("backend")]);
    incident.case.attempt.number = Some(2);
    let value: serde_json::Value = serde_json::from_str(&shown(&mut Json, &incident)).unwrap();
    assert_eq!(value["attempt"]["number"], serde_json::Value::Null, "no number without its request");
    incident.attribution = asked("/api/orders", "shop.example.com", 502);
    let text = plain(&mut Text::new(None), &incident);
    let first = text.lines().next().unwrap();
    assert!(
        first.ends_with("  502  GET /api/orders  shop.example.com  client 203.0.113.9  worker 133"),
        "{first}"
    );
    assert!(text.contains("attempt 2: connect failed  111 ECONNREFUSED"), "{text}");
    let value: serde_json::Value = serde_json::from_str(&shown(&mut Json, &incident)).unwrap();
    assert_eq!(
        value["request"],
        serde_json::json!({"id": 7, "method": "GET", "target": "/api/orders", "target_truncated": false,
            "host": "shop.example.com", "client": "203.0.113.9:51514", "request_id": null, "traceparent": null,
            "note": null})
    );
    assert_eq!((&value["attempt"]["number"], &value["attempt"]["client_saw"]), (&2.into(), &502.into()));
    incident.attribution = asked("/", "x", 200);
    assert!(plain(&mut Text::new(None), &incident).contains("the client never noticed"));
}

#[test]
fn a_hostile_request_reaches_no_terminal() {
    let bad = "/a\u{1b}]0;owned\u{7}\r\n\u{202e}b\u{9b}31m";
    let mut incident = incident(Cause::ConnectRefusedNoListener, Vec::new());
    incident.attribution = asked(bad, bad, 502);
    let text = plain(&mut Text::new(None), &incident);
    assert!(!text.contains(|c: char| (c.is_control() && c != '\n') || c == '\u{202e}'), "{text:?}");
    incident.attribution = asked(&"x".repeat(5000), "h", 502);
    let text = plain(&mut Text::new(None), &incident);
    assert!(text.lines().next().unwrap().chars().count() < 400, "{text}");
    assert!(text.contains("client 203.0.113.9"));
}
