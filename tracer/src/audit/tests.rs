use super::*;
use crate::errlog::Address;

/// 2026-11-23 12:46:31 UTC, µs.
const T: i64 = 1_795_437_991 * SECOND;
const RUN: Run = Run { from: T - 100 * SECOND, to: T + 100 * SECOND, lost: 0 };

const RESET: &str =
    "recv() failed (104: Connection reset by peer) while reading response header from upstream";
const CLOSED: &str = "upstream prematurely closed connection while reading response header from upstream";
const REMARK: &str = "upstream sent no valid HTTP/1.0 header while reading response header from upstream";

/// A line of worker 22 in that second.
fn line(second: u32, message: &str, target: &str) -> String {
    format!(
        "2026/11/23 12:46:{second:02} [error] 22#22: *5 {message}, client: 198.51.100.7, server: , request: \"GET {target} HTTP/1.1\", \
         upstream: \"http://127.0.0.1:3000{target}\", host: \"shop\""
    )
}

fn told(millis: i64, cause: Cause, target: Option<&str>) -> Told {
    Told {
        line: 1,
        time: T + millis * 1000,
        since: T + millis * 1000,
        count: 1,
        pid: 22,
        cause,
        confidence: Confidence::Proven,
        summary: "it was so".to_owned(),
        address: Address::of("127.0.0.1:3000"),
        fastcgi: false,
        method: target.map(|_| "GET".to_owned()),
        target: target.map(str::to_owned),
        truncated: false,
        host: target.map(|_| "shop".to_owned()),
        client: target.map(|_| "198.51.100.7".to_owned()),
    }
}

fn stream(told: &[Told]) -> Stream {
    Stream { told: told.to_vec(), runs: vec![RUN], ..Stream::default() }
}

fn logs(lines: &[String]) -> Logs {
    let mut logs = Logs::default();
    logs.add_errors(lines.join("\n").as_bytes(), Some((RUN.from, RUN.to))).unwrap();
    logs
}

const UTC: Options = Options { offset: Some(0), machine: 0, level: None };

/// Right, missing, surplus, contradicted, of another request.
fn counts(lines: &[String], incidents: &[Told]) -> [usize; 5] {
    let (stream, logs) = (stream(incidents), logs(lines));
    let audit = audit(&stream, &logs, &UTC);
    assert_eq!(
        audit.lines,
        audit.right + audit.missing.len() + audit.other_request.len() + audit.contradicted.len()
    );
    [
        audit.right,
        audit.missing.len(),
        audit.surplus.len(),
        audit.contradicted.len(),
        audit.other_request.len(),
    ]
}

#[test]
fn pairs_are_one_to_one() {
    let lines = [line(31, RESET, "/p/7"), line(31, RESET, "/p/8")];
    // The one that knows its request leaves the other line to the one that does not, whatever their order.
    let incidents = [told(200, Cause::UpstreamReset, None), told(300, Cause::UpstreamReset, Some("/p/7"))];
    assert_eq!(counts(&lines, &incidents), [2, 0, 0, 0, 0]);
    assert_eq!(counts(&lines[..1], &incidents), [1, 0, 1, 0, 0]);
    assert_eq!(counts(&lines, &incidents[..1]), [1, 1, 0, 0, 0]);
    let (stream, logs) = (stream(&incidents[..1]), logs(&lines));
    let audit = audit(&stream, &logs, &UTC);
    assert!((audit.recall() - 50.0).abs() < 0.01 && (audit.precision() - 100.0).abs() < 0.01);
    assert!(!audit.agrees());
    assert_eq!(audit.requests, BTreeMap::from([(Same::Unknown, 1)]));
}

/// As many failures in one second as there can be: none is looked for among all.
#[test]
fn a_storm_is_paired_in_its_order() {
    const MANY: usize = 30_000;
    let target = |at: usize| format!("/p/{at}");
    let lines: Vec<String> = (0..MANY).map(|at| line(31, RESET, &target(at))).collect();
    let incidents: Vec<Told> = (0..MANY)
        .map(|at| {
            // Those that do not know their request are as good.
            let target = target(at);
            let target = (at % 3 > 0).then_some(target.as_str());
            told(i64::try_from(at / 31).unwrap(), Cause::UpstreamReset, target)
        })
        .collect();
    assert_eq!(counts(&lines, &incidents), [MANY, 0, 0, 0, 0]);
}

/// What the kernel counted is so many incidents, each of which ended at some time in between.
#[test]
fn what_was_counted_is_paired_one_by_one() {
    let lines: Vec<String> = (0..40).map(|at| line(31 + at / 20, RESET, &format!("/p/{at}"))).collect();
    let json = |count: u64| {
        let told = r#"{"type":"incident","time":"2026-11-23T12:46:32.9Z","cause":"upstream-reset","confidence":"proven","worker":{"pid":22}"#;
        let text = format!(r#"{told},"repeats":{{"count":{count},"since":"2026-11-23T12:46:31.1Z"}}}}"#);
        Stream::read(text.as_bytes()).unwrap().told
    };
    assert_eq!(json(40).len(), 40);
    assert_eq!(counts(&lines, &json(40)), [40, 0, 0, 0, 0]);
    assert_eq!(counts(&lines, &json(38)), [38, 2, 0, 0, 0]);
    assert_eq!(counts(&lines, &json(41)), [40, 0, 1, 0, 0]);
    // No more than can be kept are made of a number that nobody can have counted.
    assert!(json(u64::MAX).len() <= 500_000);
}

#[test]
fn what_is_not_the_same_attempt() {
    let lines = [line(31, RESET, "/p/7")];
    let base = told(200, Cause::UpstreamReset, None);
    for other in [
        Told { time: T + 3 * SECOND, since: T + 3 * SECOND, ..base.clone() },
        Told { time: T - 3 * SECOND / 2, since: T - 3 * SECOND / 2, ..base.clone() },
        Told { address: Address::of("127.0.0.1:3001"), ..base.clone() },
        Told { pid: 23, ..base.clone() },
    ] {
        assert_eq!(counts(&lines, std::slice::from_ref(&other)), [0, 1, 1, 0, 0], "{other:?}");
    }
    for same in [
        Told { time: T - SECOND / 2, since: T - SECOND / 2, ..base.clone() },
        Told { time: T + 3 * SECOND / 2, since: T + 3 * SECOND / 2, ..base.clone() },
        Told { address: None, ..base.clone() },
    ] {
        assert_eq!(counts(&lines, std::slice::from_ref(&same)), [1, 0, 0, 0, 0], "{same:?}");
    }
}

#[test]
fn a_cause_that_the_text_does_not_allow() {
    let lines = [line(31, RESET, "/p/7")];
    let wrong = told(200, Cause::ReadTimeout, None);
    let (one, all) = (stream(std::slice::from_ref(&wrong)), logs(&lines));
    let found = audit(&one, &all, &UTC);
    assert_eq!((found.right, found.contradicted.len(), found.false_proven), (0, 1, 1));
    assert!(!found.agrees() && found.missing.is_empty() && found.surplus.is_empty());
    // One that names no cause contradicts nothing, and is not right either.
    let honest =
        stream(&[Told { confidence: Confidence::Unexplained, cause: Cause::Unexplained, ..wrong.clone() }]);
    let found = audit(&honest, &all, &UTC);
    assert_eq!((found.right, found.unexplained.len(), found.false_proven), (0, 1, 0));
    assert!(found.agrees() && found.precision() < 1.0);
    // The line of a wrong incident is left to one that is right.
    let right = told(900, Cause::UpstreamReset, None);
    assert_eq!(counts(&lines, &[wrong, right]), [1, 0, 1, 0, 0]);
}

#[test]
fn another_request_is_not_its_own() {
    let lines = [line(31, RESET, "/p/7")];
    let other = told(200, Cause::UpstreamReset, Some("/p/8"));
    assert_eq!(counts(&lines, std::slice::from_ref(&other)), [0, 0, 0, 0, 1]);
    for (changed, same) in [
        (
            Told { method: Some("POST".to_owned()), ..told(0, Cause::UpstreamReset, Some("/p/7")) },
            Same::Method,
        ),
        (Told { host: Some("evil".to_owned()), ..told(0, Cause::UpstreamReset, Some("/p/7")) }, Same::Host),
        (
            Told { client: Some("203.0.113.1".to_owned()), ..told(0, Cause::UpstreamReset, Some("/p/7")) },
            Same::Behind,
        ),
        (Told { target: Some("/p".to_owned()), truncated: true, ..other.clone() }, Same::Equal),
        (told(0, Cause::UpstreamReset, Some("/p/7")), Same::Equal),
    ] {
        let (one, all) = (stream(&[changed]), logs(&lines));
        let found = audit(&one, &all, &UTC);
        assert_eq!(found.requests, BTreeMap::from([(same, 1)]));
        assert_eq!((found.other_request.len(), found.right), if same.is_other() { (1, 0) } else { (0, 1) });
    }
    // A client that the logs know is not behind a proxy.
    let elsewhere = line(40, RESET, "/q").replace("198.51.100.7", "203.0.113.1");
    let changed =
        Told { client: Some("203.0.113.1".to_owned()), ..told(0, Cause::UpstreamReset, Some("/p/7")) };
    let (one, all) = (stream(&[changed]), logs(&[lines[0].clone(), elsewhere]));
    assert_eq!(audit(&one, &all, &UTC).requests, BTreeMap::from([(Same::Client, 1)]));
}

#[test]
fn remarks_need_nobody() {
    let lines = [line(31, REMARK, "/p/7")];
    assert_eq!(counts(&lines, &[]), [0; 5]);
    assert_eq!(counts(&lines, &[told(0, Cause::InvalidResponse, None)]), [0; 5]);
    assert_eq!(counts(&lines, &[told(0, Cause::UpstreamReset, None)]), [0, 0, 1, 0, 0]);
}

#[test]
fn incidents_of_which_nginx_writes_nothing() {
    let silent = [
        told(0, Cause::ClientAborted, None),
        told(0, Cause::UpstreamReturned5xx, None),
        Told { fastcgi: true, ..told(0, Cause::ResponseTruncated, None) },
    ];
    let incidents = stream(&silent);
    let excuses = |lines: &[String], options: &Options| {
        let logs = logs(lines);
        let found = audit(&incidents, &logs, options);
        assert_eq!(found.surplus.len() + found.excused.values().sum::<usize>(), 3);
        found.excused
    };
    let all = BTreeMap::from([(Excuse::Level, 1), (Excuse::Returned5xx, 1), (Excuse::FastCgiEnd, 1)]);
    let error = [line(40, CLOSED, "/p/9")];
    assert_eq!(excuses(&error, &UTC), all);
    assert_eq!(excuses(&[], &UTC), all);
    // With a log at info a client that leaves has its line.
    let info =
        ["2026/11/23 12:46:40 [info] 22#22: *5 client 198.51.100.7 closed keepalive connection".to_owned()];
    let less = BTreeMap::from([(Excuse::Returned5xx, 1), (Excuse::FastCgiEnd, 1)]);
    assert_eq!(excuses(&info, &UTC), less);
    assert_eq!(excuses(&error, &Options { level: Some(Level::Info), ..UTC }), less);
    // With one at crit nothing has.
    assert_eq!(excuses(&error, &Options { level: Some(Level::Crit), ..UTC })[&Excuse::Level], 3);
    // With an access log a server's own 5xx has its line.
    let mut both = logs(&error);
    let access = format!("{}.250|22|/p/1|127.0.0.1:3000|502|0.001|0.300", T / SECOND);
    both.add_access(access.as_bytes(), incidents.span()).unwrap();
    let found = audit(&incidents, &both, &UTC);
    assert!(!found.excused.contains_key(&Excuse::Returned5xx));
    assert_eq!((found.right, found.missing.len(), found.surplus.len()), (1, 1, 0));
}

#[test]
fn lines_of_another_time_do_not_count() {
    let mut lines = vec![line(31, RESET, "/p/7")];
    lines.push(lines[0].replace("12:46:31", "12:30:00"));
    // The run began and ended within these seconds.
    lines.push(lines[0].replace("12:46:31", "12:44:50"));
    lines.push(lines[0].replace("12:46:31", "12:48:11"));
    let (nobody, all) = (stream(&[]), logs(&lines));
    let found = audit(&nobody, &all, &UTC);
    assert_eq!((found.lines, found.outside, found.at_edge), (1, 1, 2));
    assert_eq!(found.missing[0].at, Source { log: 0, line: 1 });
    // What was seen of such a second counts.
    let seen = Told { time: RUN.from, since: RUN.from, ..told(0, Cause::UpstreamReset, None) };
    let seen = stream(&[seen]);
    let found = audit(&seen, &all, &UTC);
    assert_eq!((found.right, found.at_edge, found.lines), (1, 1, 2));
}

#[test]
fn reasons_that_are_no_excuses() {
    let lines = [line(40, RESET, "/p/7")];
    let note = |told: Told| {
        let (one, all) = (stream(&[told]), logs(&lines));
        let found = audit(&one, &all, &UTC);
        assert!(!found.agrees());
        found.surplus[0].note
    };
    assert!(
        note(Told { pid: 99, ..told(9000, Cause::UpstreamReset, None) }).unwrap().contains("another nginx")
    );
    assert!(note(told(-9000, Cause::UpstreamReset, None)).unwrap().contains("rotated"));
    assert_eq!(note(told(30_000, Cause::UpstreamReset, None)), None);
}

/// The lines are those of a machine that is `offset` seconds ahead of UTC.
fn zone_of(offset: i64, incidents: &[Told], options: &Options) -> Zone {
    let mut all = logs(&[line(31, RESET, "/p/7"), line(31, RESET, "/p/8"), line(40, RESET, "/p/7")]);
    for line in &mut all.lines {
        if let Clock::Local(second) = &mut line.clock {
            *second += offset;
        }
    }
    let incidents = stream(incidents);
    let found = audit(&incidents, &all, options);
    if found.zone.basis != Basis::Machine {
        assert_eq!(found.zone.offset, offset);
        assert_eq!(found.right, incidents.told.len());
    }
    found.zone
}

#[test]
fn the_zone_of_the_logs() {
    let known =
        [told(300, Cause::UpstreamReset, Some("/p/7")), told(400, Cause::UpstreamReset, Some("/p/8"))];
    let unknown = [told(300, Cause::UpstreamReset, None)];
    let elsewhere = Options { offset: None, machine: 7200, level: None };
    for offset in [0, 3600, -12_600, 20_700, 50_400] {
        assert_eq!(zone_of(offset, &known, &elsewhere).basis, Basis::Incidents(2), "{offset}");
        assert_eq!(zone_of(offset, &unknown, &elsewhere).basis, Basis::Incidents(1), "{offset}");
    }
    let said = Options { offset: Some(3600), ..elsewhere };
    assert_eq!(zone_of(3600, &known, &said).basis, Basis::User);
    // Nothing tells it.
    let strange = [Told { address: Address::of("9.9.9.9:9"), ..known[0].clone() }];
    assert_eq!(zone_of(0, &strange, &elsewhere), Zone { offset: 7200, basis: Basis::Machine });
}

#[test]
fn workers_of_a_container() {
    let lines = [line(31, RESET, "/p/7"), line(32, RESET, "/p/8"), line(33, RESET, "/p/9")];
    let inside =
        |millis: i64, target: Option<&str>| Told { pid: 4022, ..told(millis, Cause::UpstreamReset, target) };
    let incidents = stream(&[inside(100, Some("/p/7")), inside(1100, Some("/p/8")), inside(2100, None)]);
    let all = logs(&lines);
    let found = audit(&incidents, &all, &UTC);
    assert_eq!(found.aliases, BTreeMap::from([(4022, 22)]));
    assert_eq!((found.right, found.surplus.len()), (3, 0));
    // A number that another worker of the host has is nobody's alias.
    let mut both = incidents.told.clone();
    both.push(told(100, Cause::UpstreamReset, Some("/p/7")));
    let both = stream(&both);
    assert!(audit(&both, &all, &UTC).aliases.is_empty());
}

#[test]
fn lines_that_are_not_understood_are_told() {
    let lines = [line(31, "upstream danced while reading upstream", "/p/7")];
    let (nobody, all) = (stream(&[]), logs(&lines));
    let found = audit(&nobody, &all, &UTC);
    assert_eq!((found.unknown.len(), found.lines), (1, 0));
}

#[test]
fn lines_are_cut_at_a_bound() {
    let mut seen = Vec::new();
    each_line(&b"a\n\nlonger than five\nb\r\nlast"[..], 5, |number, line, whole| {
        seen.push((number, String::from_utf8_lossy(line).into_owned(), whole));
    })
    .unwrap();
    let expected = [(1, "a", true), (2, "", true), (3, "longe", false), (4, "b\r", true), (5, "last", true)];
    assert_eq!(seen, expected.map(|(number, line, whole)| (number, line.to_owned(), whole)));
}
