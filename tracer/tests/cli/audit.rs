//! `why502 audit`: files of both sides, and a live run against nginx's own log.

use std::{
    fs::{self, File},
    path::Path,
    process::Stdio,
};

use serde_json::Value;

use crate::{
    nginx::Nginx,
    program::{Ended, Live, run, why502},
};

const INCIDENT: &str = concat!(
    r#"{"schema":"why502/1","type":"incident","time":"2026-11-23T12:46:31.200000Z","cause":"CAUSE","confidence":"proven","#,
    r#""summary":"it was so","worker":{"pid":22,"container":null},"upstream":{"name":null,"address":"127.0.0.1:3000","#,
    r#""server":null,"module":"proxy"},"request":{"id":1,"method":"GET","target":"/a","target_truncated":false,"#,
    r#""host":"shop","client":"198.51.100.7:4711","note":null}}"#
);
const SUMMARY: &str = r#"{"schema":"why502/1","type":"summary","time":"2026-11-23T12:50:00Z","duration_s":600.0,"events_lost":0}"#;
/// An hour ahead of UTC.
const LINE: &str = "2026/11/23 13:46:31 [error] 22#22: *5 recv() failed (104: Connection reset by peer) while reading \
    response header from upstream, client: 198.51.100.7, server: , request: \"GET /a HTTP/1.1\", upstream: \
    \"http://127.0.0.1:3000/a\", host: \"shop\"";

fn incident(cause: &str) -> String {
    INCIDENT.replace("CAUSE", cause)
}

/// Audits what is in a folder of its own, named there as a person would name it.
fn audit(incidents: &[&str], log: &[&str], args: &[&str]) -> Ended {
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("run.json"), incidents.join("\n")).unwrap();
    fs::write(folder.path().join("error.log"), log.join("\n")).unwrap();
    run(why502(&["audit", "run.json", "error.log"]).args(args).current_dir(folder.path()))
}

fn objects(ended: &Ended) -> Vec<Value> {
    ended.stdout.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

#[test]
fn what_agrees() {
    let ended = audit(&[&incident("upstream-reset"), SUMMARY], &[LINE], &["--exit-code"]);
    ended.code(0);
    for part in ["UTC+01:00", "with it one incident", "precision 100.000 %, recall 100.000 %", "1 equal"] {
        assert!(ended.stdout.contains(part), "{part}\n{ended}");
    }
    let ended = audit(&[&incident("upstream-reset"), SUMMARY], &[LINE], &["-o", "json"]);
    let objects = objects(&ended);
    let [all] = objects.as_slice() else { panic!("{ended}") };
    assert_eq!((all["schema"].as_str(), all["type"].as_str()), (Some("why502/1"), Some("audit")));
    assert_eq!((all["agrees"].as_bool(), all["right"].as_u64()), (Some(true), Some(1)));
    assert_eq!(
        (all["utc_offset_s"].as_i64(), all["utc_offset_by"].as_str()),
        (Some(3600), Some("incidents"))
    );
    assert_eq!(all["requests"]["equal"], 1);
    assert_eq!(all["table"][0]["says"], "failed-104-in-header");
    assert_eq!(all["run"]["from"], "2026-11-23T12:40:00.000000Z");
}

#[test]
fn what_does_not() {
    let missing = LINE.replace("/a", "/b");
    let odd = LINE.replace("recv() failed (104: Connection reset by peer)", "upstream danced");
    let evil = LINE.replace("shop", "shop\u{1b}[31m");
    let incidents = [incident("read-timeout"), incident("upstream-reset"), SUMMARY.to_owned()];
    let incidents: Vec<&str> = incidents.iter().map(String::as_str).collect();
    let lines = [LINE, &missing, &odd, &evil, &evil];
    let ended = audit(&incidents, &lines, &["--exit-code", "--list", "1"]);
    ended.code(1);
    for part in ["error.log:2", "run.json:", "missing", "error.log:3", "and 1 more", "\\u{1b}[31m"] {
        assert!(ended.stdout.contains(part), "{part}\n{ended}");
    }
    assert!(!ended.stdout.contains('\u{1b}'), "{ended}");
    // Without the wish it is no failure, and all are listed.
    let ended = audit(&incidents, &lines, &["-o", "json"]);
    ended.code(0);
    let objects = objects(&ended);
    let of = |kind: &str| objects.iter().filter(|object| object["type"] == kind).collect::<Vec<_>>();
    assert_eq!((of("missing").len(), of("unknown-line").len(), of("audit").len()), (2, 1, 1), "{ended}");
    assert_eq!((of("missing")[0]["line"]["file"].as_str()), Some("error.log"));
    let [contradicted] = of("contradicted")[..] else { panic!("{ended}") };
    assert_eq!(contradicted["incident"]["cause"], "read-timeout");
    assert_eq!(contradicted["line"]["says"], "failed-104-in-header");
    assert_eq!(of("audit")[0]["false_proven"], 1);
    assert!(!ended.stdout.contains('\u{1b}'), "{ended}");
}

#[test]
fn sides_that_are_not_whole() {
    let reset = incident("upstream-reset");
    for (incidents, says) in [
        (vec![reset.as_str()], "no summary"),
        (vec![&reset, "{\"type\":\"inci"], "no JSON"),
        (vec![&reset, &SUMMARY.replace("\"events_lost\":0", "\"events_lost\":3")], "lost 3 events"),
        (vec![], "no summary"),
    ] {
        let ended = audit(&incidents, &[LINE], &["--exit-code"]);
        ended.code(4);
        assert!(ended.stdout.contains("incomplete") && ended.stdout.contains(says), "{ended}");
        let ended = audit(&incidents, &[LINE], &["-o", "json"]);
        ended.code(4);
        assert!(objects(&ended).last().unwrap()["incomplete"][0].as_str().unwrap().contains(says), "{ended}");
    }
}

#[test]
fn what_cannot_be_read() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name).to_str().unwrap().to_owned();
    fs::write(at("run.json"), SUMMARY).unwrap();
    fs::write(at("old.gz"), [0x1f, 0x8b, 8]).unwrap();
    run(&mut why502(&["audit", &at("none"), &at("run.json")])).code(3).no_data().one_line().says(&["none"]);
    run(&mut why502(&["audit", &at("run.json"), &at("none")])).code(3).no_data().one_line().says(&["none"]);
    run(&mut why502(&["audit", &at("run.json"), &at("old.gz")]))
        .code(3)
        .no_data()
        .says(&["compressed", "zcat"]);
    for args in [
        &["audit"][..],
        &["audit", "run.json"],
        &["audit", "-", "-"],
        &["audit", "a", "b", "--utc-offset", "CET"],
        &["audit", "a", "b", "--level", "loud"],
    ] {
        run(&mut why502(args)).code(2).no_data();
    }
    // Incidents come from a pipe as well.
    fs::write(at("error.log"), "").unwrap();
    let stdin = Stdio::from(File::open(at("run.json")).unwrap());
    let ended = run(why502(&["audit", "-", &at("error.log")]).stdin(stdin));
    ended.code(0);
    assert!(ended.stdout.contains("nothing to compare"), "{ended}");
}

#[test]
fn a_live_run_agrees_with_nginx() {
    let Some(nginx) = Nginx::start() else { return };
    let live = Live::start(&mut why502(&["-o", "json", "-p", &nginx.pid_arg()])).watching();
    for _ in 0..5 {
        assert_eq!(nginx.get("/refused"), 502);
    }
    assert_eq!(nginx.get("/ok"), 204);
    let told = live.interrupt();
    told.code(0);
    let folder = tempfile::tempdir().unwrap();
    let run_json = folder.path().join("run.json");
    fs::write(&run_json, &told.stdout).unwrap();
    let log = nginx.conf().with_file_name("error.log");
    let args = |log: &Path| -> Vec<String> {
        ["audit", "--exit-code", "-o", "json"]
            .map(str::to_owned)
            .into_iter()
            .chain([&run_json, log].map(|path| path.to_str().unwrap().to_owned()))
            .collect()
    };
    let whole = run(why502(&[]).args(args(&log)));
    whole.code(0);
    let all = objects(&whole).remove(0);
    assert_eq!((all["right"].as_u64(), all["lines"]["missing"].as_u64()), (Some(5), Some(0)), "{whole}");
    // Without one of its lines an incident is too many.
    let text = fs::read_to_string(&log).unwrap();
    let at = text.find("connect() failed").unwrap();
    let end = at + text[at..].find('\n').unwrap();
    let begin = text[..at].rfind('\n').map_or(0, |at| at + 1);
    let less = folder.path().join("less.log");
    fs::write(&less, format!("{}{}", &text[..begin], &text[end + 1..])).unwrap();
    let short = run(why502(&[]).args(args(&less)));
    short.code(1);
    assert_eq!(objects(&short).last().unwrap()["incidents"]["surplus"], 1, "{short}");
}

#[test]
fn the_help_has_the_format_of_the_access_log() {
    let help = run(&mut why502(&["audit", "--help"]));
    help.code(0);
    assert!(help.stdout.contains(tracer::audit::ACCESS), "{help}");
}
