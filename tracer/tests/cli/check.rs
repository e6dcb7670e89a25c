//! `why502 check`: files, real nginxes, and nginx itself as the oracle of what it refuses.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use serde_json::Value;

use crate::{
    nginx::{Nginx, keeps_its_texts},
    program::{Ended, can_attach, has, poll, run, through, why502},
};

fn file(text: &str) -> (tempfile::TempDir, PathBuf) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("nginx.conf");
    fs::write(&path, text).unwrap();
    (folder, path)
}

fn check(path: &Path, args: &[&str]) -> Ended {
    let path = path.to_str().unwrap();
    run(why502(&["check", "--file", path, "--nginx-version", "1.22.1"]).args(args))
}

fn objects(ended: &Ended) -> Vec<Value> {
    let all: Vec<Value> = ended.stdout.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert!(all.iter().all(|one| one["schema"] == "why502/1"), "{ended}");
    assert_eq!(all.last().unwrap()["type"], "summary", "{ended}");
    all
}

fn names(ended: &Ended) -> Vec<String> {
    let all = objects(ended).into_iter().filter(|one| one["type"] == "finding");
    all.map(|one| one["name"].as_str().unwrap().to_owned()).collect()
}

const PLAIN: &str =
    "events {}\nhttp { server { listen 80; location / { proxy_pass http://127.0.0.1:3000; } } }\n";
const WRONG: &str = "events {}
http {
    upstream b { server api.example.com; }
    server {
        location / { proxy_pass https://b; proxy_ssl_server_name on; proxy_set_header Host $host; }
    }
}
";

#[test]
fn exit_codes_and_the_last_line() {
    let (_folder, well) = file(PLAIN);
    let ended = check(&well, &["--exit-code"]);
    ended.code(0);
    assert_eq!(ended.stdout.lines().last(), Some("nothing wrong"), "{ended}");
    let (_folder, wrong) = file(WRONG);
    check(&wrong, &[]).code(0);
    let ended = check(&wrong, &["--exit-code"]);
    ended.code(1);
    assert_eq!(ended.stdout.lines().last(), Some("1 problem"), "{ended}");
    assert!(ended.stdout.contains("^^^^^^^^^^^^^^^"), "{ended}");
    check(&wrong, &["--exit-code", "--ignore", "tls-to-port-80"]).code(0);
    // What cannot be read is no innocence.
    let (_folder, part) = file("events {}\nhttp { include there-is-none.conf; }\n");
    let ended = check(&part, &["--exit-code", "-o", "json"]);
    ended.code(4);
    assert_eq!(names(&ended), ["config-unreadable"]);
    run(&mut why502(&["check", "--file", "/there/is/none"])).code(3).says(&["/there/is/none"]);
    run(&mut why502(&["check", "-p", "4194304"])).code(3).says(&["4194304"]);
}

#[test]
fn the_command_line_is_checked() {
    run(&mut why502(&["check", "--ignore", "tls-to-port-8"]))
        .code(2)
        .no_data()
        .says(&["did you mean", "tls-to-port-80"]);
    run(&mut why502(&["check", "--ignore", "x"])).code(2).no_data().says(&["--list"]);
    run(&mut why502(&["check", "--parallel", "0"])).code(2).no_data();
    run(&mut why502(&["check", "--timeout", "x"])).code(2).no_data().says(&["is no time"]);
    let list = run(&mut why502(&["check", "--list"])).code(0).stdout.clone();
    assert!(list.lines().count() > 30 && list.contains("\nnot-reloaded"), "{list}");
}

#[test]
fn findings_as_json() {
    let (_folder, wrong) = file(WRONG);
    let all = objects(check(&wrong, &["-o", "json"]).code(0));
    let finding = all.iter().find(|one| one["type"] == "finding").unwrap();
    assert_eq!(
        (&finding["name"], &finding["severity"]),
        (&Value::from("tls-to-port-80"), &Value::from("problem"))
    );
    assert_eq!(
        (&finding["cause"], &finding["confidence"]),
        (&Value::from("tls-to-plain-port"), &Value::from("likely"))
    );
    assert_eq!(finding["config"][0]["line"], 3);
    let object = finding.as_object().unwrap();
    for key in ["nginx", "summary", "breaks", "rival", "upstream", "evidence", "fix"] {
        assert!(object.contains_key(key), "{key} is absent");
    }
    assert_eq!(all.last().unwrap()["problems"], 1);
    assert!(all.iter().any(|one| one["type"] == "checked" && one["findings"][0] == "tls-to-port-80"));
}

/// What `nginx-refuses` says, nginx says; and where it is silent, nginx is content.
#[test]
fn nginx_refuses_what_is_said_to_be_refused() {
    if has("nginx") {
        refuses(Path::new("nginx"));
    }
}

/// The current nginx that `cargo xtask setup` unpacks beside the installed one.
#[test]
fn a_current_nginx_refuses_the_same() {
    let set = |name| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    let cache = set("WHY502_LAB_CACHE")
        .or_else(|| Some(set("XDG_CACHE_HOME")?.join("why502/lab")))
        .or_else(|| Some(set("HOME")?.join(".cache/why502/lab")));
    match cache.map(|cache| cache.join("current-nginx/nginx")).filter(|path| path.exists()) {
        Some(nginx) => refuses(&nginx),
        None => why502_skip::skipped("`cargo xtask setup` fetches one"),
    }
}

fn refuses(nginx: &Path) {
    let version = Command::new(nginx).arg("-v").output().unwrap().stderr;
    let version = String::from_utf8_lossy(&version).trim().rsplit_once('/').unwrap().1.to_owned();
    let app = "upstream app { server 127.0.0.1:1; }";
    let at = |lines: &str| format!("{app} server {{ listen 127.0.0.1:1; location / {{ {lines} }} }}");
    for (refused, http) in [
        (true, at("proxy_buffer_size 128k; proxy_pass http://app;")),
        (true, at("proxy_buffers 1 4k; proxy_pass http://app;")),
        (true, at("proxy_busy_buffers_size 2k; proxy_pass http://app;")),
        (true, at("proxy_max_temp_file_size 2k; proxy_pass http://app;")),
        (true, at("fastcgi_buffer_size 64k; fastcgi_pass app;")),
        (true, at("proxy_pass http://app:80;")),
        (true, at("if ($uri) { proxy_pass http://app/; }")),
        (true, at("proxy_ssl_verify on; proxy_pass https://app;")),
        (true, "server { listen 127.0.0.1:1; location ~ x { proxy_pass http://127.0.0.1:1/y; } }".to_owned()),
        (true, "server { listen 127.0.0.1:1; location @x { proxy_pass http://unix:/run/a:/y; } }".to_owned()),
        (true, "upstream b { }".to_owned()),
        (true, "upstream b { server 127.0.0.1:1 backup; } server { listen 127.0.0.1:1; location / { proxy_pass http://b; } }".to_owned()),
        (true, "upstream b { server 127.0.0.1:1; } upstream B { server 127.0.0.1:1; }".to_owned()),
        (true, "upstream b { server 127.0.0.1:1 ssl; }".to_owned()),
        (true, "upstream b { ip_hash; server 127.0.0.1:1 backup; server 127.0.0.1:2; }".to_owned()),
        (false, at("proxy_buffer_size 128k; proxy_buffers 4 256k; proxy_busy_buffers_size 256k; proxy_pass http://app;")),
        (false, at("proxy_buffer_size 8k; proxy_pass http://app;")),
        (false, at("fastcgi_buffer_size 32k; fastcgi_buffers 8 16k; fastcgi_pass app;")),
        (false, at("proxy_max_temp_file_size 0; proxy_pass http://app;")),
        (false, at("proxy_pass http://app/;")),
        (false, at("proxy_ssl_verify on; proxy_pass http://app;")),
        (false, "server { listen 127.0.0.1:1; location ~ x { proxy_pass http://127.0.0.1:1$uri; } location @y { proxy_pass http://unix:/run/a; } }".to_owned()),
        (false, at("proxy_pass http:/$uri;")),
        (false, at("proxy_pass http$uri;")),
        (true, at("proxy_pass http:/app;")),
        (false, "upstream b { server 127.0.0.1:1 backup; server 127.0.0.1:2; ip_hash; }".to_owned()),
        (false, "upstream b { least_conn; server 127.0.0.1:1 backup; server 127.0.0.1:2; }".to_owned()),
    ] {
        let temporary = "client_body_temp_path a; proxy_temp_path b; fastcgi_temp_path c; uwsgi_temp_path d; scgi_temp_path e;";
        let text = format!("pid pid; error_log log; events {{}}\nhttp {{ access_log off; {temporary} {http} }}\n");
        let (folder, path) = file(&text);
        let tested = Command::new(nginx)
            .args(["-t", "-e", "stderr", "-p"])
            .arg(folder.path())
            .arg("-c")
            .arg(&path)
            .output()
            .unwrap();
        let said = String::from_utf8_lossy(&tested.stderr);
        assert_eq!(tested.status.success(), !refused, "{said}{text}");
        let checked = ["check", "--nginx-version", &version, "-o", "json", "--file", path.to_str().unwrap()];
        let found = names(&run(&mut why502(&checked)));
        let refusals = ["nginx-refuses", "config-refused"];
        assert_eq!(found.iter().any(|name| refusals.contains(&name.as_str())), refused, "{found:?} {said}{text}");
    }
}

fn running(nginx: &Nginx, args: &[&str]) -> Ended {
    run(why502(&["check", "-p", &nginx.pid_arg()]).args(args))
}

const WELL: &str = "http { access_log off; client_body_temp_path a; proxy_temp_path b; fastcgi_temp_path c; uwsgi_temp_path d;
    scgi_temp_path e; server { listen 127.0.0.1:8080; location = /ok { return 204; } } }\n";

fn main_of(http: &str) -> String {
    format!(
        "daemon off; worker_processes 1; user root; pid nginx.pid; error_log error.log; events {{}}\n{http}"
    )
}

#[test]
fn a_running_nginx_and_its_past() {
    let Some(nginx) = Nginx::start() else { return };
    let quiet = |ended: &Ended| {
        !names(ended).iter().any(|name| {
            [
                "upstream-errors-logged",
                "not-reloaded",
                "reload-refused",
                "config-unreadable",
                "not-listening",
                "no-workers",
            ]
            .contains(&name.as_str())
        })
    };
    let before = running(&nginx, &["-o", "json"]);
    assert!(quiet(&before), "{before}");
    // A failure is in the log.
    assert_eq!(nginx.get("/refused"), 502);
    let logged = running(&nginx, &["-o", "json"]);
    let all = objects(&logged);
    let past =
        all.iter().find(|one| one["name"] == "upstream-errors-logged").unwrap_or_else(|| panic!("{logged}"));
    assert_eq!(
        (&past["cause"], &past["confidence"]),
        (&Value::from("connect-refused-no-listener"), &Value::from("likely"))
    );
    assert_eq!(past["upstream"], "127.0.0.1:3999");
    // Changed and not reloaded.
    nginx.edit(&main_of(WELL));
    let edited = running(&nginx, &["-o", "json"]);
    assert!(names(&edited).contains(&"not-reloaded".to_owned()), "{edited}");
    nginx.reload();
    let reloaded = running(&nginx, &["-o", "json", "--ignore", "upstream-errors-logged"]);
    assert!(quiet(&reloaded), "{reloaded}");
    // What nginx refused to load. Its log counts in seconds: a refusal is told from what a worker was born after by that.
    let reloaded_at = std::time::SystemTime::now();
    assert!(poll(|| reloaded_at.elapsed().is_ok_and(|since| since.as_millis() > 1100)));
    nginx.edit(&main_of(&WELL.replace("return 204", "retrun 204")));
    nginx.reload();
    let refused = running(&nginx, &["-o", "json"]);
    let found = names(&refused);
    assert!(
        found.contains(&"reload-refused".to_owned()) && found.contains(&"not-reloaded".to_owned()),
        "{refused}"
    );
    let all = objects(&refused);
    let one = all.iter().find(|one| one["name"] == "reload-refused").unwrap();
    assert!(one["evidence"][0]["text"].as_str().unwrap().contains("retrun"), "{one}");
    assert_eq!(one["config"][0]["line"], 3, "{one}");
    if keeps_its_texts() {
        let stale = all.iter().find(|one| one["name"] == "not-reloaded").unwrap();
        assert_eq!(stale["confidence"], "proven");
    }
    let broken = main_of(WELL).replace("http {", "http { }");
    nginx.edit(&broken);
    let unreadable = running(&nginx, &["-o", "json"]);
    assert!(names(&unreadable).contains(&"config-unreadable".to_owned()), "{unreadable}");
}

#[test]
fn without_privileges_it_says_what_is_missing() {
    if !can_attach() || !has("setpriv") {
        return;
    }
    let Some(nginx) = Nginx::start() else { return };
    let copy = tempfile::tempdir().unwrap();
    let program = copy.path().join("why502");
    fs::copy(crate::program::WHY502, &program).unwrap();
    fs::set_permissions(copy.path(), std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    let nobody =
        ["--reuid=65534", "--regid=65534", "--clear-groups", "--bounding-set=-all", "--inh-caps=-all"];
    let mut command = through("setpriv", &nobody);
    command.arg(&program).args(["check", "-p", &nginx.pid_arg()]);
    run(&mut command).code(3).no_data().says(&["sudo why502 check", "CAP_SYS_PTRACE"]);
}
