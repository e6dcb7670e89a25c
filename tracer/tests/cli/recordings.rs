//! Recording and replay: what was told live is told again, whatever became of the file.

use std::{fs, path::Path};

use crate::{
    nginx::Nginx,
    program::{Ended, Live, can_attach, poll, run, why502},
};

fn record(nginx: &Nginx, file: &Path, more: &[&str]) -> Live {
    let file = format!("--write={}", file.display());
    let pid = nginx.pid_arg();
    Live::start(why502(&["trace", "-p", &pid, &file]).args(more)).watching()
}

fn replay(file: &Path, more: &[&str]) -> Ended {
    run(why502(&["replay", file.to_str().unwrap()]).args(more))
}

/// The same but for the lines about the processes that are watched.
fn summary_lines(stderr: &str) -> Vec<&str> {
    stderr.lines().skip_while(|line| !line.contains("watched ")).collect()
}

#[test]
fn what_was_told_is_told_again() {
    let Some(nginx) = Nginx::start() else { return };
    let folder = tempfile::tempdir().unwrap();
    let (text_file, json_file) = (folder.path().join("text.w502"), folder.path().join("json.w502"));
    let text = record(&nginx, &text_file, &[]);
    let json = record(&nginx, &json_file, &["-o", "json"]);
    for _ in 0..3 {
        assert_eq!((nginx.get("/refused"), nginx.get("/no-route")), (502, 502));
    }
    assert!(json.stdout.wait(|text| text.lines().count() >= 6), "no incidents\n{}", json.interrupt());
    // A flush is not waited for: that is what SIGUSR1 is for.
    let before = fs::metadata(&json_file).unwrap().len();
    json.signal(libc::SIGUSR1);
    assert!(poll(|| fs::metadata(&json_file).unwrap().len() > before), "SIGUSR1 writes nothing");
    let (text, json) = (text.interrupt(), json.interrupt());
    text.code(0);
    json.code(0);
    let again = replay(&json_file, &["-o", "json"]);
    again.code(0);
    assert_eq!(again.stdout, json.stdout);
    let again = replay(&text_file, &[]);
    again.code(0);
    assert_eq!(again.stdout, text.stdout);
    assert!(!text.stdout.is_empty());
    assert_eq!(summary_lines(&again.stderr), summary_lines(&text.stderr));
    let differ = replay(&text_file, &["--diff", "--exit-code"]);
    differ.code(0).no_data().says(&["0 of 6 incidents would be told otherwise today"]);
    let mode = std::os::unix::fs::PermissionsExt::mode(&fs::metadata(&text_file).unwrap().permissions());
    assert_eq!(mode & 0o777, 0o600, "it holds what clients asked for");
}

#[test]
fn filters_choose_live_and_in_replay() {
    let Some(nginx) = Nginx::start() else { return };
    let folder = tempfile::tempdir().unwrap();
    let (all, some) = (folder.path().join("all.w502"), folder.path().join("some.w502"));
    let everything = record(&nginx, &all, &["-o", "json"]);
    let live = record(&nginx, &some, &["-o", "json", "--uri", "/refused", "--status", "5xx"]);
    assert_eq!((nginx.get("/refused"), nginx.get("/no-route")), (502, 502));
    assert!(everything.stdout.wait(|text| text.lines().count() >= 2), "{}", everything.interrupt());
    let (everything, live) = (everything.interrupt(), live.interrupt());
    everything.code(0);
    live.code(0);
    let incident = |ended: &Ended| ended.stdout.lines().next().unwrap_or_default().to_owned();
    let value: serde_json::Value = serde_json::from_str(&incident(&live)).unwrap();
    assert_eq!(value["request"]["target"], "/refused", "{live}");
    assert_eq!(replay(&some, &["-o", "json"]).stdout, live.stdout);
    for (filter, count) in [
        (&["--uri", "/refused"][..], 1),
        (&["--uri", "/", "--status", "502"], 2),
        (&["--status", "504"], 0),
        (&["--cause", "network-unreachable"], 1),
        (&["--client", "127.0.0.0/8"], 2),
        (&["--client", "10.0.0.0/8"], 0),
        (&["--upstream", "127.0.0.1:3999"], 1),
        (&["--host", "nobody.example"], 0),
        (&["-c", "1"], 1),
        (&["-p", &nginx.pid_arg()], 2),
        (&["-p", "1"], 0),
    ] {
        let ended = replay(&all, &[&["-o", "json"], filter].concat());
        ended.code(0);
        let (incidents, summaries): (Vec<&str>, Vec<&str>) =
            ended.stdout.lines().partition(|line| line.contains("\"type\":\"incident\""));
        assert_eq!((incidents.len(), summaries.len()), (count, 1), "{filter:?}\n{ended}");
        let summary: serde_json::Value = serde_json::from_str(summaries[0]).unwrap();
        assert_eq!(summary["incidents_total"], count, "{filter:?}");
    }
    let asked = replay(&all, &["-o", "json", "--cause", "blocked-selinux"]);
    assert!(asked.stdout.contains("denied by SELinux"), "the account of innocence\n{asked}");
}

#[test]
fn a_killed_run_is_told_up_to_there() {
    let Some(nginx) = Nginx::start() else { return };
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("run.w502");
    let live = record(&nginx, &file, &["-o", "json"]);
    let begun = fs::metadata(&file).unwrap().len();
    assert_eq!(nginx.get("/refused"), 502);
    assert!(poll(|| fs::metadata(&file).unwrap().len() > begun), "nothing is written within a second");
    live.signal(libc::SIGKILL);
    drop(live);
    let ended = replay(&file, &["-o", "json"]);
    ended.code(4).says(&["has no end: its run was killed"]);
    assert_eq!(ended.stdout.lines().count(), 1, "{ended}");
    let whole = fs::read(&file).unwrap();
    fs::write(&file, &whole[..whole.len() - 3]).unwrap();
    let ended = replay(&file, &[]);
    ended.code(4).says(&["run.w502: it is cut off at byte", "its disk was full; 0 incidents could be read"]);
    let mut damaged = whole.clone();
    let last = damaged.len() - 20;
    damaged[last] ^= 0x40;
    fs::write(&file, &damaged).unwrap();
    replay(&file, &[]).code(4).says(&["it is damaged behind byte"]);
}

#[test]
fn a_flight_recorder_writes_what_led_there() {
    let Some(nginx) = Nginx::start() else { return };
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("flight");
    let live = record(&nginx, &file, &["--keep", "15m", "--cause", "network-unreachable", "-o", "json"]);
    let written = || fs::read_dir(folder.path()).unwrap().flatten().map(|e| e.path()).collect::<Vec<_>>();
    assert_eq!(nginx.get("/refused"), 502);
    assert_eq!(nginx.get("/no-route"), 502);
    assert!(poll(|| written().len() == 1), "no file\n{}", live.interrupt());
    let told = live.stdout.text();
    assert_eq!(told.lines().count(), 1, "only what is asked for is told: {told}");
    let first = written().remove(0);
    let name = first.file_name().unwrap().to_str().unwrap().to_owned();
    assert!(name.starts_with("flight-20") && name.ends_with('Z'), "{name}");
    assert!(poll(|| replay(&first, &["-o", "json"]).stdout.lines().count() == 2), "what led there is in it");
    let ended = live.interrupt();
    ended.code(0).says(&["the last minutes are in"]);
    assert_eq!(written().len(), 2, "the end is written as well");
}

#[test]
fn what_is_no_recording_is_an_error_that_says_so() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("notes.txt");
    fs::write(&file, "precious\n").unwrap();
    replay(&file, &[]).code(3).no_data().says(&["notes.txt", "no recording of why502"]);
    replay(&folder.path().join("none"), &[]).code(3).no_data().says(&["cannot open", "No such file"]);
    replay(folder.path(), &[]).code(3).no_data();
    run(&mut why502(&["replay"])).code(2).no_data().says(&["<FILE>"]);
    if can_attach() {
        let write = format!("--write={}", file.display());
        let refused = run(&mut why502(&["trace", "--wait", "-d", "1", &write]));
        refused.code(3).no_data().says(&["notes.txt exists and is no recording", "another file"]);
        assert_eq!(fs::read_to_string(&file).unwrap(), "precious\n");
    }
}

/// Never renewed: what the first version wrote must be readable by every later one.
#[test]
fn old_recordings_stay_readable() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/recordings");
    for (name, cause) in [
        ("v1-truncated", "response-truncated"),
        ("v1-selinux", "blocked-selinux"),
        ("v1-unix", "unix-permission"),
        ("v1-no-live", "no-live-upstreams"),
        ("v1-rule", "connect-timeout-firewall-drop"),
    ] {
        let file = folder.join(format!("{name}.w502"));
        let ended = replay(&file, &["-o", "json"]);
        // They are single cases, cut out of their runs: they have no summary.
        ended.code(4).says(&["has no end"]);
        let first = ended.stdout.lines().next().unwrap_or_default();
        assert!(first.contains(&format!("\"cause\":\"{cause}\"")), "{name}\n{ended}");
        replay(&file, &["--diff"]).code(4).says(&["would be told otherwise today"]);
    }
}
