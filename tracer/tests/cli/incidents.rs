//! Live runs: what is found, when a run ends and with which code.

use std::fs;

use serde_json::Value;

use crate::{
    nginx::{Nginx, keeps_its_texts},
    program::{Ended, Live, can_attach, run, why502},
};

/// Every field of design.md, as JSON pointers.
const INCIDENT: &[&str] = &[
    "/schema",
    "/type",
    "/time",
    "/mono_ns",
    "/cause",
    "/confidence",
    "/summary",
    "/worker/pid",
    "/worker/container",
    "/upstream/name",
    "/upstream/address",
    "/upstream/server",
    "/upstream/module",
    "/config/0/role",
    "/config/0/file",
    "/config/0/line",
    "/config/0/text",
    "/attempt/phase",
    "/attempt/errno",
    "/attempt/errno_name",
    "/attempt/duration_us",
    "/attempt/number",
    "/attempt/client_saw",
    "/request/id",
    "/request/method",
    "/request/target",
    "/request/host",
    "/request/client",
    "/evidence/0/kind",
    "/evidence/0/text",
    "/fix/0/text",
    "/fix/0/command",
];
const SUMMARY: &[&str] = &[
    "/type",
    "/incidents",
    "/events_lost",
    "/workers",
    "/tier",
    "/overhead_ns_per_connection",
    "/connects",
    "/checked",
];

/// The objects of a stream: every line is one, incidents first, then one summary.
fn objects(ended: &Ended) -> (Vec<Value>, Value) {
    let parse =
        |line: &str| serde_json::from_str::<Value>(line).unwrap_or_else(|e| panic!("{e}: {line}\n{ended}"));
    let mut all: Vec<Value> = ended.stdout.lines().map(parse).collect();
    assert!(ended.stdout.ends_with('\n'), "{ended}");
    let summary = all.pop().unwrap_or_else(|| panic!("no summary\n{ended}"));
    assert_eq!(summary["type"], "summary", "{ended}");
    assert!(all.iter().all(|o| o["type"] == "incident"), "{ended}");
    (all, summary)
}

fn lines(text: &str) -> usize {
    text.lines().count()
}

fn json(nginx: &str, more: &[&str]) -> Live {
    let mut command = why502(&["trace", "-o", "json", "-p", nginx]);
    Live::start(command.args(more)).watching()
}

#[test]
fn each_failure_is_one_documented_object() {
    let Some(nginx) = Nginx::start() else { return };
    let live = json(&nginx.pid_arg(), &[]);
    assert_eq!((nginx.get("/refused"), nginx.get("/no-route"), nginx.get("/works")), (502, 502, 204));
    assert!(live.stdout.wait(|text| lines(text) >= 2), "no incidents\n{}", live.interrupt());
    let ended = live.interrupt();
    ended.code(0).one_line().says(&["watching 1 worker of 1 nginx master (tier "]);
    let (incidents, summary) = objects(&ended);
    assert_eq!(incidents.len(), 2, "{ended}");
    for incident in &incidents {
        for path in INCIDENT {
            assert!(incident.pointer(path).is_some(), "{path} is absent\n{ended}");
        }
        assert_eq!(
            (&incident["schema"], &incident["attempt"]["phase"]),
            (&"why502/1".into(), &"connect".into()),
            "{ended}"
        );
        let worker = incident["worker"]["pid"].as_u64().unwrap();
        assert!(nginx.workers().contains(&u32::try_from(worker).unwrap()), "{worker} is no worker\n{ended}");
        assert_eq!(incident["config"][0]["file"], nginx.conf().to_str().unwrap(), "{ended}");
    }
    let of = |address: &str| incidents.iter().find(|i| i["upstream"]["address"] == address).unwrap();
    let (refused, no_route) = (of("127.0.0.1:3999"), of("192.0.2.1:80"));
    assert_eq!(
        (&refused["cause"], &refused["attempt"]["errno_name"]),
        (&"connect-refused-no-listener".into(), &"ECONNREFUSED".into()),
        "{ended}"
    );
    assert_eq!(
        (&no_route["cause"], &no_route["attempt"]["errno"]),
        (&"network-unreachable".into(), &libc::ENETUNREACH.into()),
        "{ended}"
    );
    let text = fs::read_to_string(nginx.conf()).unwrap();
    let line = 1 + text.lines().position(|l| l.contains(":3999")).unwrap();
    assert_eq!(refused["config"][0]["line"], line, "{ended}");
    for path in SUMMARY {
        assert!(summary.pointer(path).is_some(), "{path} is absent\n{ended}");
    }
    assert_eq!((&summary["incidents_total"], &summary["events_lost"]), (&2.into(), &0.into()), "{ended}");
    assert_eq!(summary["incidents"]["connect-refused-no-listener"], 1, "{ended}");
    assert_eq!((&summary["workers"], &summary["masters"]), (&1.into(), &1.into()), "{ended}");
    // Healthy connections are counted, and none is a record.
    assert_eq!((&summary["established"], &summary["failed"]), (&1.into(), &2.into()), "{ended}");
}

#[test]
fn count_ends_the_run() {
    let Some(nginx) = Nginx::start() else { return };
    let live = json(&nginx.pid_arg(), &["--count", "1"]);
    for path in ["/refused", "/refused-too", "/no-route"] {
        assert_eq!(nginx.get(path), 502);
    }
    let ended = live.end();
    ended.code(0);
    let (incidents, summary) = objects(&ended);
    assert_eq!((incidents.len(), &summary["incidents_total"]), (1, &1.into()), "{ended}");
}

#[test]
fn the_exit_code_tells_incidents_on_request() {
    let Some(nginx) = Nginx::start() else { return };
    for (args, code) in [(&["--exit-code", "-c", "1"][..], 1), (&["-c", "1"], 0)] {
        let live = json(&nginx.pid_arg(), args);
        assert_eq!(nginx.get("/refused"), 502);
        live.end().code(code);
    }
    // No incident, no code.
    let quiet = json(&nginx.pid_arg(), &["--exit-code", "--duration", "0.3"]);
    assert_eq!(nginx.get("/works"), 204);
    quiet.end().code(0);
}

#[test]
fn duration_ends_the_run() {
    let Some(nginx) = Nginx::start() else { return };
    let ended = json(&nginx.pid_arg(), &["--duration", "1"]).end();
    ended.code(0).one_line();
    let (incidents, summary) = objects(&ended);
    assert!(incidents.is_empty() && summary["incidents_total"] == 0, "{ended}");
    let seconds = summary["duration_s"].as_f64().unwrap();
    assert!((0.9..5.0).contains(&seconds) && ended.took.as_secs_f64() >= 1.0, "{ended}");
}

#[test]
fn only_the_wanted_causes() {
    let Some(nginx) = Nginx::start() else { return };
    let live = json(
        &nginx.pid_arg(),
        &["--cause", "network-unreachable", "--cause", "fd-limit", "--cause", "blocked-selinux"],
    );
    assert_eq!((nginx.get("/refused"), nginx.get("/no-route")), (502, 502));
    assert!(live.stdout.wait(|text| lines(text) >= 1), "no incident\n{}", live.interrupt());
    let ended = live.interrupt();
    let (incidents, summary) = objects(&ended);
    assert_eq!(incidents.len(), 1, "{ended}");
    assert_eq!(incidents[0]["cause"], "network-unreachable", "{ended}");
    assert_eq!((&summary["incidents_total"], &summary["failed"]), (&1.into(), &2.into()), "{ended}");
    // Of the blocker that was asked for there is an account; without its hooks it proves nothing, and says so.
    let checked = &summary["checked"];
    assert_eq!(checked.as_array().map(Vec::len), Some(1), "{ended}");
    assert_eq!(
        (&checked[0]["cause"], &checked[0]["denied"]),
        (&"blocked-selinux".into(), &0.into()),
        "{ended}"
    );
    assert_eq!(checked[0]["connects"], summary["connects"], "{ended}");
    if summary["tier"] == "tracepoint" {
        assert_eq!(checked[0]["complete"], false, "{ended}");
        assert!(checked[0]["text"].as_str().is_some_and(|text| text.contains("no innocence")), "{ended}");
    }
}

#[test]
fn wait_goes_on_until_a_signal() {
    if !can_attach() {
        return;
    }
    let this = std::process::id().to_string();
    for signal in [libc::SIGINT, libc::SIGTERM] {
        let live = Live::start(&mut why502(&["trace", "--wait", "-p", &this])).watching();
        live.signal(signal);
        let ended = live.end();
        ended.code(0).no_data().says(&[
            "watching 0 workers of 0 nginx masters",
            "no nginx yet",
            "0 incidents",
        ]);
        let live = Live::start(&mut why502(&["--wait", "-o", "json", "-p", &this])).watching();
        live.signal(signal);
        let ended = live.end();
        ended.code(0).one_line();
        let (incidents, summary) = objects(&ended);
        assert!(incidents.is_empty() && summary["workers"] == 0, "{ended}");
    }
}

#[test]
fn an_nginx_that_starts_later_is_followed() {
    if !can_attach() {
        return;
    }
    // Every nginx of the host, so those of other tests as well.
    let live = Live::start(&mut why502(&["--wait", "-o", "json"])).watching();
    let Some(nginx) = Nginx::start() else { return };
    assert!(
        live.stderr.wait(|text| text.contains(&format!("nginx master {}\n", nginx.pid()))),
        "{}",
        live.interrupt()
    );
    assert_eq!(nginx.get("/refused"), 502);
    let worker = format!("\"worker\":{{\"pid\":{},", nginx.workers()[0]);
    assert!(live.stdout.wait(|text| text.contains(&worker)), "{}", live.interrupt());
    let ended = live.interrupt();
    ended.code(0);
    let (incidents, _) = objects(&ended);
    let found = incidents.iter().find(|i| i["worker"]["pid"] == nginx.workers()[0]).unwrap();
    assert_eq!(found["config"][0]["file"], nginx.conf().to_str().unwrap(), "{ended}");
}

#[test]
fn a_broken_configuration_is_named_and_no_obstacle() {
    let Some(nginx) = Nginx::start() else { return };
    let place = |line: u32| format!("{}:{line}", nginx.conf().display());
    for (text, line) in
        [("# one\n# two\nhttp { server ] }\n", 3), ("http {\n  server {\n    listen \"80;\n", 4)]
    {
        nginx.edit(text);
        let live = json(&nginx.pid_arg(), &["-c", "1"]);
        assert_eq!(nginx.get("/refused"), 502);
        let ended = live.end();
        ended.code(0).says(&[&place(line), &format!("nginx (pid {})", nginx.pid())]);
        let (incidents, _) = objects(&ended);
        assert_eq!(incidents[0]["cause"], "connect-refused-no-listener", "{ended}");
        // A file that is broken since hides what runs only from who reads files.
        let (lines, name) = (&incidents[0]["config"], &incidents[0]["upstream"]["name"]);
        if keeps_its_texts() {
            assert_eq!(lines[0]["text"], "proxy_pass http://127.0.0.1:3999;", "{ended}");
            assert_eq!(name, "127.0.0.1:3999", "{ended}");
        } else {
            assert_eq!((lines, name), (&Value::Array(Vec::new()), &Value::Null), "{ended}");
        }
    }
    fs::write(nginx.conf(), "events {}\n\ninclude gone.conf;\n").unwrap();
    let ended = json(&nginx.pid_arg(), &["-d", "0.2"]).end();
    ended.code(0).says(&[&place(3), "gone.conf"]);
    fs::remove_file(nginx.conf()).unwrap();
    let ended = json(&nginx.pid_arg(), &["-d", "0.2"]).end();
    ended.code(0).says(&["nginx.conf", "No such file"]);
}

#[test]
fn any_process_of_the_family_names_it() {
    let Some(nginx) = Nginx::start() else { return };
    let worker = nginx.workers()[0].to_string();
    let this = std::process::id().to_string();
    let ended = json(&worker, &["-p", &this, "-d", "0.2"]).end();
    ended.code(0).says(&["watching 1 worker of 1 nginx master"]);
}

#[test]
fn doctor_lists_every_hook() {
    if !can_attach() {
        return;
    }
    let ended = run(&mut why502(&["doctor"]));
    ended.code(0);
    assert!(ended.stderr.is_empty(), "{ended}");
    for probe in tracer::probes::PROBES {
        let line = ended.stdout.lines().position(|l| l.split_whitespace().nth(1) == Some(probe.name));
        let line = line.unwrap_or_else(|| panic!("{} is not listed\n{ended}", probe.name));
        let state = ended.stdout.lines().nth(line).unwrap().split_whitespace().next().unwrap();
        let unneeded = ended.stdout.lines().nth(line).unwrap().contains("not needed here: ");
        let next = ended.stdout.lines().nth(line + 1).unwrap().trim_start();
        match state {
            // Nothing is lost without it.
            "-" if unneeded => {}
            "ok" => assert_eq!(next, format!("tells {}", probe.tells), "{ended}"),
            "MISSING" | "-" => assert_eq!(next, format!("lost  {}", probe.lost), "{ended}"),
            other => panic!("state {other}\n{ended}"),
        }
        assert!(!probe.required || state == "ok", "{ended}");
    }
    for head in ["kernel ", "security ", "privileges ", "tier "] {
        assert!(ended.stdout.lines().any(|l| l.starts_with(head)), "{head} is not there\n{ended}");
    }
    // Behind the table it speaks of each running nginx.
    let table = ended.stdout.lines().take_while(|line| !line.ends_with(" hooks attached"));
    let attached = table.filter(|line| line.starts_with("  ok ")).count();
    let last = format!("{attached} of {} hooks attached", tracer::probes::PROBES.len());
    assert!(ended.stdout.lines().any(|line| line == last), "{ended}");
}
