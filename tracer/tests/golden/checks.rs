//! What `why502 check` prints: a configuration with mistakes, one without, and items of every kind.

use std::{
    io,
    path::{Path, PathBuf},
};

use tracer::{
    check::{self, Checked, Finding, Report},
    diagnose::Cause,
    nginx::{self, Files, Model, Platform, Problem, Source, Version, binary::Build},
    report::check::{Shown, json, text},
};

const MAIN: &str = "/etc/nginx/nginx.conf";

const MISTAKES: &str = r#"events {}
http {
    upstream my_api {
        server api.example.com;
        keepalive 16;
    }
    server {
        listen 443 ssl;
        location / {
	    proxy_pass	https://my_api;  # a tab in front
        }
        location /ws/ {
            proxy_set_header Upgrade
                $http_upgrade;
            proxy_pass http://10.0.0.1:3000;
            proxy_read_timeout 0;
        }
        location /a/ { proxy_buffer_size 64k; proxy_pass http://10.0.0.1:3000; }
        location /b/ { set $to app.internal; proxy_pass http://$to/; }
    }
}
"#;

/// The last brace is missing.
const BROKEN: &str = "events {}
http {
    server { listen 80; location / { proxy_pass http://10.0.0.1:443; } }
";

const HEALTHY: &str = "events {}
http {
    server { listen 80; location / { proxy_pass http://127.0.0.1:3000; proxy_set_header Host $host; } }
}
";

struct One<'a>(&'a str);

impl Files for One<'_> {
    fn read(&self, path: &Path) -> io::Result<Vec<u8>> {
        if path == Path::new(MAIN) { Ok(self.0.into()) } else { Err(io::ErrorKind::NotFound.into()) }
    }

    fn glob(&self, _: &Path) -> io::Result<Vec<PathBuf>> {
        Ok(Vec::new())
    }
}

fn looked_at(text: &str) -> (Model, Report) {
    let (config, errors) = nginx::parse_partial(&One(text), Source { main: Path::new(MAIN), globals: None });
    let model = Model::for_platform(config, Platform { version: Some(Version(1, 22, 1)), page: 4096 });
    let problems: Vec<Problem> = errors.iter().chain(&model.warnings).map(Problem::from).collect();
    let mut report = check::config::of_model(&model, &problems);
    report.findings.extend(check::running::unreadable(&problems, &model, "nginx -t"));
    (model, report)
}

/// Items and findings that no configuration has by itself.
fn others(report: &mut Report) {
    report.checked.insert(
        0,
        Checked {
            what: "nginx",
            seen: "running since 2026-11-22 14:00:01, 4 workers".to_owned(),
            incomplete: None,
            findings: Vec::new(),
        },
    );
    report.checked.push(Checked {
        what: "denials",
        seen: "no denied connection of nginx in the last day".to_owned(),
        incomplete: Some("cannot read /dev/kmsg: Operation not permitted (CAP_SYSLOG is needed)".to_owned()),
        findings: Vec::new(),
    });
    report.findings.push(
        Finding::warning(
            "upstream-errors-logged",
            "12 times in the last day: connect() failed (111: Connection refused)",
        )
        .cause(Cause::ConnectRefusedNoListener)
        .likely("a firewall rule that rejects with a reset")
        .breaks("These requests failed.")
        .upstream("127.0.0.1:3000")
        .because("time", "first at 2026-11-22 13:00:00, last at 2026-11-22 14:00:00")
        .because("log", "request: \"GET /\u{1b}[2J\u{202e} HTTP/1.1\"")
        .fix_with("watch the next one", "sudo why502 --cause connect-refused-no-listener"),
    );
}

/// Names of files and what is in them.
pub(crate) fn all() -> Vec<(String, String)> {
    let (faulty, mut faults) = looked_at(MISTAKES);
    others(&mut faults);
    let (healthy, well) = looked_at(HEALTHY);
    let (part, broken) = looked_at(BROKEN);
    let build = Build { flavor: "nginx".into(), version: "1.22.1".into(), core: None };
    let mut files = Vec::new();
    for (name, pid, model, report) in [
        ("check-mistakes", Some(133), &faulty, &faults),
        ("check-healthy", None, &healthy, &well),
        ("check-broken", None, &part, &broken),
    ] {
        let shown = [Shown {
            pid,
            container: pid.map(|_| "docker 0123456789ab".to_owned()),
            executable: pid.map(|_| Path::new("/usr/sbin/nginx")),
            build: Some(&build),
            main: Some(Path::new(MAIN)),
            model,
            report,
        }];
        let mut lines = Vec::new();
        json(&mut lines, &shown).unwrap();
        files.push((format!("{name}.json"), String::from_utf8(lines).unwrap()));
        let mut blocks = String::new();
        for width in [Some(60), Some(100), None] {
            let mut out = Vec::new();
            text(&mut out, &shown, width).unwrap();
            let out = String::from_utf8(out).unwrap();
            let columns = width.map_or_else(|| "no terminal".to_owned(), |width| format!("{width} columns"));
            blocks += &format!("==== {columns}\n{}", anstream::adapter::strip_str(&out));
        }
        files.push((format!("{name}.txt"), blocks));
    }
    files
}
