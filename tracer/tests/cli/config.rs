//! `why502 config`: real nginxes, files, broken files, and readers that go away.

use std::{
    fs::{self, File},
    path::Path,
    process::{Command, Stdio},
};

use serde_json::Value;

use crate::{
    nginx::{Nginx, keeps_its_texts},
    program::{Ended, Live, WHY502, can_attach, has, run, through, why502},
};

const SHOP: &str = "events {}
http {
    proxy_read_timeout 30s;
    include conf.d/*.conf;
}
";
const CONF: &str = "upstream shop {
    server 127.0.0.1:3000 max_fails=3;
    keepalive 16;
}
server {
    listen 443 ssl;
    server_name shop.example.com;
    location /api/ { proxy_pass http://shop; proxy_connect_timeout 5s; }
}
";

fn folder(conf: &str) -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    fs::create_dir(folder.path().join("conf.d")).unwrap();
    fs::write(folder.path().join("nginx.conf"), SHOP).unwrap();
    fs::write(folder.path().join("conf.d/shop.conf"), conf).unwrap();
    folder
}

fn of_file(folder: &Path, args: &[&str]) -> Ended {
    let main = folder.join("nginx.conf");
    run(why502(&["config", "--file", main.to_str().unwrap(), "--nginx-version", "1.22.1"]).args(args))
}

fn json(ended: &Ended) -> Value {
    assert_eq!(ended.stdout.matches('\n').count(), 1, "one object, one line\n{ended}");
    let value: Value = serde_json::from_str(&ended.stdout).unwrap();
    assert_eq!((value["schema"].as_str(), value["type"].as_str()), (Some("why502/1"), Some("config")));
    value
}

fn directive<'a>(of: &'a Value, name: &str) -> &'a Value {
    let all = of["directives"].as_array().unwrap();
    all.iter().find(|one| one["name"] == name).unwrap_or_else(|| panic!("no {name} in {of}"))
}

#[test]
fn a_file_needs_no_nginx_and_no_privileges() {
    let folder = folder(CONF);
    let ended = of_file(folder.path(), &["-o", "json"]);
    ended.code(0);
    assert!(ended.stderr.is_empty(), "{ended}");
    let value = json(&ended);
    let nginx = &value["nginx"][0];
    assert_eq!((nginx["pid"].as_u64(), nginx["core_version"].as_str()), (None, Some("1.22.1")));
    assert_eq!(nginx["files"].as_array().unwrap().len(), 2);
    let upstream = &nginx["upstreams"][0];
    assert_eq!((upstream["name"].as_str(), upstream["used_by"][0].as_u64()), (Some("shop"), Some(0)));
    assert_eq!(
        (upstream["servers"][0]["max_fails"].as_u64(), upstream["servers"][0]["weight"].as_u64()),
        (Some(3), Some(1))
    );
    assert_eq!(directive(upstream, "keepalive")["lines"][0]["line"], 3);
    let pass = &nginx["passes"][0];
    assert_eq!(pass["location"], "/api/");
    let read = directive(pass, "proxy_read_timeout");
    assert_eq!((read["value"].as_str(), read["source"].as_str()), (Some("30s"), Some("config")));
    assert!(read["lines"][0]["file"].as_str().unwrap().ends_with("/nginx.conf"));
    let send = directive(pass, "proxy_send_timeout");
    assert_eq!(send["origin"], "default of nginx 1.22.1");

    let ended = of_file(folder.path(), &[]);
    ended.code(0);
    for part in
        ["upstream shop", "conf.d/shop.conf:1", "max_fails=3; default weight=1", "default of nginx 1.22.1"]
    {
        assert!(ended.stdout.contains(part), "{part} is missing\n{ended}");
    }
    assert!(!ended.stdout.contains("proxy_bind"), "{ended}");
    let ended = of_file(folder.path(), &["--all"]);
    assert!(ended.stdout.contains("proxy_bind off"), "{ended}");
    assert!(!ended.stdout.contains('\u{1b}'), "no terminal, no colours\n{ended}");
}

#[test]
fn a_dump_is_read_as_well() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("dump");
    let dump = "# configuration file /etc/nginx/nginx.conf:\nevents {}\nhttp { include conf.d/*.conf; }\n\n\
                # configuration file /etc/nginx/conf.d/a.conf:\nserver { location / { proxy_pass http://127.0.0.1:1; } }\n";
    fs::write(&path, dump).unwrap();
    let ended = run(&mut why502(&["config", "--file", path.to_str().unwrap()]));
    ended.code(0);
    assert!(ended.stdout.contains("conf.d/a.conf:1"), "{ended}");
}

#[test]
fn a_broken_file_is_named_and_the_rest_is_shown() {
    let folder = folder(&format!("{CONF}server {{\n    location / {{\n    proxy_pass;;\n"));
    for output in ["text", "json"] {
        let ended = of_file(folder.path(), &["-o", output]);
        ended.code(4);
        assert!(ended.stdout.contains("conf.d/shop.conf:12: unexpected"), "{ended}");
        assert!(
            ended.stdout.contains("server 127.0.0.1:3000") || ended.stdout.contains("127.0.0.1:3000"),
            "{ended}"
        );
    }
    let problem = &json(&of_file(folder.path(), &["-o", "json"]))["nginx"][0]["problems"][0];
    assert_eq!(problem["line"], 12);
    fs::write(folder.path().join("nginx.conf"), "http {\n    include none.conf;\n}\n").unwrap();
    let ended = of_file(folder.path(), &[]);
    ended.code(4);
    assert!(ended.stdout.contains("nginx.conf:2: include"), "{ended}");
}

#[test]
fn a_missing_file_is_named() {
    let ended = run(&mut why502(&["config", "--file", "/nonexistent/nginx.conf"]));
    ended.code(3).no_data().one_line().says(&["/nonexistent/nginx.conf", "No such file"]);
    for args in [
        &["config", "--file", "x", "--nginx-version", "new"][..],
        &["config", "--file", "x", "-p", "1"],
        &["config", "--nginx-version", "1.22.1"],
        &["config", "-o", "xml"],
        &["config", "--wait"],
    ] {
        run(&mut why502(args)).code(2).no_data();
    }
}

#[test]
fn a_reader_that_goes_away_is_no_error() {
    let lines: String =
        (0..20_000).map(|n| format!("upstream u{n} {{ server 127.0.0.1:{}; }}\n", n % 999 + 1)).collect();
    let folder = folder(&lines);
    let main = folder.path().join("nginx.conf");
    for output in ["json", "text"] {
        let mut command = why502(&["config", "-o", output, "--file", main.to_str().unwrap()]);
        let mut live = Live::start_with(&mut command, Stdio::piped());
        live.close_stdout();
        let ended = live.end();
        ended.code(0);
        assert!(ended.stderr.is_empty(), "{ended}");
        let full = File::options().write(true).open("/dev/full").unwrap();
        Live::start_with(&mut command, full.into())
            .end()
            .code(4)
            .one_line()
            .says(&["No space left on device"]);
    }
}

#[test]
fn a_running_nginx() {
    let Some(nginx) = Nginx::start() else { return };
    let ended = run(&mut why502(&["config", "-o", "json", "-p", &nginx.pid_arg()]));
    ended.code(0);
    let value = json(&ended);
    let found = &value["nginx"][0];
    assert_eq!(found["pid"].as_u64(), Some(nginx.pid().into()));
    assert_eq!(found["flavor"], "nginx");
    assert!(found["executable"].as_str().unwrap().ends_with("nginx"));
    assert_eq!(found["main"].as_str(), nginx.conf().to_str());
    assert_eq!(found["passes"].as_array().unwrap().len(), 4);
    let origin = directive(&found["passes"][0], "proxy_connect_timeout")["origin"].as_str().unwrap();
    assert_eq!(origin, format!("default of nginx {}", found["version"].as_str().unwrap()));
    // A worker names its master.
    let worker = nginx.workers()[0].to_string();
    let by_worker = run(&mut why502(&["config", "-o", "json", "-p", &worker]));
    assert_eq!(json(&by_worker)["nginx"][0]["pid"], found["pid"]);
    let text = run(&mut why502(&["config", "-p", &worker]));
    text.code(0);
    assert!(text.stdout.contains("proxy_pass http://127.0.0.1:3999;"), "{text}");
}

#[test]
fn a_file_that_changed_after_the_worker_started() {
    let Some(nginx) = Nginx::start() else { return };
    let pid = nginx.pid_arg();
    let incident = || {
        let live = Live::start(&mut why502(&["-o", "json", "-c", "1", "-p", &pid])).watching();
        assert_eq!(nginx.get("/refused"), 502);
        let ended = live.end();
        ended.code(0);
        let first: Value = serde_json::from_str(ended.stdout.lines().next().unwrap()).unwrap();
        let evidence = first["evidence"].as_array().unwrap();
        let found = evidence.iter().find(|one| one["kind"] == "config-changed").cloned();
        let lines = first["config"].as_array().unwrap().iter().filter(|line| line["role"] == "pass");
        (lines.map(|line| line["line"].as_u64().unwrap()).collect::<Vec<_>>(), found)
    };
    assert_eq!(incident().1, None);
    let conf = fs::read_to_string(nginx.conf()).unwrap();
    nginx.edit(&format!("# new\n{conf}"));
    let (lines, found) = incident();
    let found = found.expect("a note about the change");
    assert!(found["text"].as_str().unwrap().contains("nginx.conf changed on disk"), "{found}");
    let line = |of: &str| {
        let at = conf.lines().position(|line| line.contains(of)).unwrap() + 1;
        u64::try_from(at).unwrap()
    };
    let shown = run(&mut why502(&["config", "-o", "json", "-p", &nginx.pid_arg()]));
    let shown_line = json(&shown)["nginx"][0]["passes"]
        .as_array()
        .unwrap()
        .iter()
        .find(|pass| pass.to_string().contains("127.0.0.1:3999"))
        .and_then(|pass| pass["line"]["line"].as_u64());
    if keeps_its_texts() {
        // Not a line further, as the file has it now.
        assert_eq!(lines, [line("location = /refused {")], "the lines are those that run");
        assert!(found["text"].as_str().unwrap().contains("as they were before"), "{found}");
        assert_eq!(shown_line, Some(line("location = /refused {")), "{shown}");
        assert!(shown.stderr.contains("is not what nginx runs with"), "{shown}");
    } else {
        assert_eq!(lines, [line("location = /refused {") + 1]);
        assert!(found["text"].as_str().unwrap().contains("may differ"), "{found}");
    }
}

#[test]
fn no_nginx() {
    let this = std::process::id().to_string();
    run(&mut why502(&["config", "-p", &this]))
        .code(3)
        .no_data()
        .one_line()
        .says(&["no nginx has PID", &this]);
    if !can_attach() || !has("unshare") {
        return;
    }
    let script = "set -e; mkdir \"$1/real\"; mount -t proc proc \"$1/real\"; mount -t tmpfs none /proc
        for name in self thread-self sys mounts filesystems; do ln -s \"$1/real/$name\" /proc/$name; done
        shift; exec \"$@\"";
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().to_str().unwrap();
    let ended = run(&mut through("unshare", &["--mount", "sh", "-c", script, "sh", path, WHY502, "config"]));
    ended.code(3).no_data().one_line().says(&["no nginx is running", "/proc", "--file"]);
}

#[test]
fn no_privileges() {
    use std::os::unix::fs::PermissionsExt as _;

    let Some(nginx) = Nginx::start() else { return };
    if !has("setpriv") {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let copy = dir.path().join("why502");
    fs::copy(WHY502, &copy).unwrap();
    fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o755)).unwrap();
    let nobody =
        ["--reuid=65534", "--regid=65534", "--clear-groups", "--bounding-set=-all", "--inh-caps=-all"];
    let mut command: Command = through("setpriv", &nobody);
    command.arg(&copy).args(["config", "-p", &nginx.pid_arg()]);
    run(&mut command).code(3).no_data().one_line().says(&[
        "cannot examine process",
        "CAP_SYS_PTRACE",
        "sudo why502 config",
    ]);
}

/// nginx writes its title over its arguments and environment: without one there is no room for it.
#[test]
fn a_title_that_is_cut_off_is_told() {
    if !can_attach() || !has("nginx") {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let main = folder.path().join("nginx.conf");
    let text =
        "daemon off; master_process on; worker_processes 1; pid nginx.pid; error_log error.log;\nevents {}\n";
    fs::write(&main, text).unwrap();
    let mut child = Command::new("/usr/bin/env")
        .args(["-i", "/usr/sbin/nginx", "-p"])
        .arg(folder.path())
        .args(["-c", "nginx.conf", "-e", "error.log"])
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let pid = child.id().to_string();
    let is_master = || {
        let title = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        title.starts_with(b"nginx: master process")
    };
    assert!(crate::program::poll(is_master), "nginx does not start");
    let ended = run(&mut why502(&["config", "-p", &pid]));
    // SAFETY: a plain system call on a child that has not been waited for.
    unsafe { libc::kill(i32::try_from(child.id()).unwrap(), libc::SIGTERM) };
    child.wait().unwrap();
    ended.code(4);
    assert!(ended.stdout.contains("is cut off"), "{ended}");
}
