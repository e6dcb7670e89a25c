//! `why502 check`'s connections from the worker's place: a real nginx in a network namespace of its own, whose upstream
//! servers fail in every way that needs no other host, beside those that only look as if they did.
//!
//! Needs root, ip and nginx; says so when it skips.

#![expect(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking, in its helpers as well")]

use std::{
    fs,
    io::{self, Read as _, Write as _},
    net::{TcpListener, TcpStream},
    os::unix::{fs::PermissionsExt as _, net::UnixListener},
    path::Path,
    process::{Child, Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use tempfile::TempDir;
use tracer::{
    check::{Finding, Options, Report, Severity, Subject, limits, probe, security, upstreams},
    diagnose::Confidence,
    nginx::binary,
    session::Snapshot,
    sys::{netns::NetNs, process::Finder},
};

const NGINX: &str = "/usr/sbin/nginx";
const WHY502: &str = env!("CARGO_BIN_EXE_why502");

/// An nginx whose workers are not root, in a namespace that lives as long as it does.
struct Site {
    dir: TempDir,
    child: Child,
    ns: NetNs,
}

fn poll(what: &str, mut probe: impl FnMut() -> bool) {
    let end = Instant::now() + Duration::from_secs(20);
    while !probe() {
        assert!(Instant::now() < end, "{what}: not within 20 s");
        thread::park_timeout(Duration::from_millis(5));
    }
}

impl Site {
    /// `setup` is run in the new namespace first; `DIR` in both texts stands for the site's folder.
    fn start(setup: &str, http: &str) -> Option<Self> {
        // SAFETY: geteuid takes no arguments.
        if unsafe { libc::geteuid() } != 0 {
            why502_skip::skipped("needs root");
            return None;
        }
        if !Path::new(NGINX).exists() {
            why502_skip::skipped("nginx is not installed");
            return None;
        }
        let dir = tempfile::Builder::new().prefix("why502-probe-").tempdir().unwrap();
        fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o755)).unwrap();
        let here = dir.path().to_str().unwrap().to_owned();
        let temporary: String = ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"]
            .iter()
            .map(|name| format!("{name}_temp_path {here}/tmp_{name};\n"))
            .collect();
        let http = http.replace("DIR", &here);
        // Debian's name and Red Hat's.
        let groups = fs::read_to_string("/etc/group").unwrap();
        let group = if groups.contains("\nnogroup:") { "nogroup" } else { "nobody" };
        let conf = format!(
            "daemon off;\nworker_processes 1;\nuser nobody {group};\npid nginx.pid;\nerror_log error.log;\n\
             events {{ worker_connections 128; }}\nhttp {{\naccess_log off;\n{temporary}{http}\n}}\n"
        );
        fs::write(dir.path().join("nginx.conf"), conf).unwrap();
        let setup = setup.replace("DIR", &here);
        let script = format!("ip link set lo up\n{setup}\nexec {NGINX} -p \"$1\" -c nginx.conf -e error.log");
        let child = Command::new("setpriv")
            .args(["--pdeathsig", "TERM", "unshare", "--net", "sh", "-ec", &script, "sh"])
            .arg(dir.path())
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(fs::File::create(dir.path().join("stderr")).unwrap())
            .spawn()
            .unwrap();
        let mut site = Self { ns: NetNs::current().unwrap(), child, dir };
        let log = |site: &Self| fs::read_to_string(site.dir.path().join("stderr")).unwrap_or_default();
        poll("a worker", || {
            let ended = site.child.try_wait().unwrap();
            assert!(ended.is_none(), "nginx ended: {ended:?}\n{}", log(&site));
            site.subject(|subject| !subject.workers.is_empty()).unwrap_or(false)
        });
        site.ns = NetNs::of_pid(site.child.id()).unwrap();
        Some(site)
    }

    fn path(&self, name: &str) -> String {
        self.dir.path().join(name).to_str().unwrap().to_owned()
    }

    fn listen(&self, address: &str) -> TcpListener {
        self.ns.run(|| TcpListener::bind(address).unwrap()).unwrap()
    }

    fn subject<T>(&self, look: impl FnOnce(&Subject<'_>) -> T) -> Option<T> {
        let scan = Finder::new(binary::is_nginx_binary).find_nginx().unwrap();
        let instance = scan.instances.into_iter().find(|one| one.master.pid == self.child.id())?;
        let workers = instance.children.into_iter().filter(|child| child.role.serves()).collect();
        let snapshot = Snapshot::of(&instance.master);
        Some(look(&Subject { master: instance.master, workers, snapshot: &snapshot }))
    }

    fn check(&self, options: &Options) -> Report {
        self.subject(|subject| {
            let mut whole = Report::default();
            for part in [
                upstreams::inspect_with(Path::new(WHY502), subject, options),
                security::inspect(subject, options),
                limits::inspect(subject, options),
            ] {
                whole.checked.extend(part.checked);
                whole.findings.extend(part.findings);
            }
            whole
        })
        .unwrap()
    }
}

impl Drop for Site {
    fn drop(&mut self) {
        let pid = i32::try_from(self.child.id()).unwrap_or(i32::MAX);
        // SAFETY: a plain system call; the master is our child and not waited for.
        unsafe { libc::kill(pid, libc::SIGTERM) };
        let _ = self.child.wait();
    }
}

fn quick() -> Options {
    Options { timeout: Duration::from_millis(1200), ..Options::default() }
}

/// `NAME@UPSTREAM confidence`, sorted.
fn shown(report: &Report) -> Vec<String> {
    let mut all: Vec<String> = report
        .findings
        .iter()
        .map(|f| format!("{} {} {}", f.upstream.as_deref().unwrap_or("-"), f.name, f.confidence.name()))
        .collect();
    all.sort();
    all
}

fn one<'a>(report: &'a Report, upstream: &str) -> &'a Finding {
    let fits = |f: &&Finding| f.upstream.as_deref() == Some(upstream);
    report.findings.iter().find(fits).unwrap_or_else(|| panic!("nothing of {upstream}: {report:#?}"))
}

fn has(tool: &str) -> bool {
    Command::new("sh").args(["-c", &format!("command -v {tool}")]).output().is_ok_and(|o| o.status.success())
}

#[test]
fn a_healthy_site_has_no_finding() {
    let http =
        "upstream app { server 127.0.0.1:3001; server localhost:3002; server unix:DIR/app.sock backup; }
        server { listen unix:DIR/front.sock; location / { proxy_pass http://app; }
        location /php { fastcgi_pass unix:DIR/app.sock; } location /v { proxy_pass http://$arg_to; } }";
    let Some(site) = Site::start("", http) else { return };
    let _servers = [site.listen("127.0.0.1:3001"), site.listen("127.0.0.1:3002")];
    let _app = UnixListener::bind(site.path("app.sock")).unwrap();
    fs::set_permissions(site.path("app.sock"), fs::Permissions::from_mode(0o666)).unwrap();
    let report = site.check(&quick());
    assert_eq!(shown(&report), Vec::<String>::new(), "{report:#?}");
    assert!(report.checked.iter().all(|c| c.incomplete.is_none()), "{report:#?}");
    let servers = report.checked.iter().find(|c| c.what == "upstream servers").unwrap();
    assert!(servers.seen.contains(" answer, slowest "), "{}", servers.seen);
}

#[test]
fn refusals_and_silence_are_told_apart() {
    if !has("nft") {
        why502_skip::skipped("nft is not installed");
        return;
    }
    let setup = "nft -f - <<'END'
table inet t {
    chain out { type filter hook output priority 0; policy accept;
        ct state established,related accept
        tcp dport 3003 drop
        tcp dport 3004 reject with tcp reset
        tcp dport 3005 reject with icmpx type admin-prohibited
        meta skuid 0 tcp dport 3006 reject with tcp reset
        tcp dport 3007 limit rate 1/second drop
    }
    chain in { type filter hook input priority 0; policy accept;
        ct state established,related accept
        iif lo tcp dport 3008 drop
        tcp dport 3099 drop
    }
}
END
ip link add v0 type veth peer name v1
ip addr add 10.9.9.1/24 dev v0
ip link set v0 up; ip link set v1 up
echo 1 >/proc/sys/net/ipv4/neigh/v0/mcast_solicit
echo 100 >/proc/sys/net/ipv4/neigh/v0/retrans_time_ms
ip route add prohibit 10.8.0.0/16
";
    let passes: String = [
        "127.0.0.1:3001",
        "127.0.0.1:3002",
        "127.0.0.1:3003",
        "127.0.0.1:3004",
        "127.0.0.1:3005",
        "127.0.0.1:3006",
        "127.0.0.1:3008",
        "10.9.9.2:80",
        "192.0.2.1:80",
        "10.8.1.1:80",
        "127.0.0.1:3010",
    ]
    .iter()
    .enumerate()
    .map(|(n, to)| format!("location /{n}/ {{ proxy_pass http://{to}; }}\n"))
    .collect();
    let http = format!(
        "server {{ listen unix:DIR/front.sock; {passes} location /b {{ proxy_bind 192.0.2.7; proxy_pass http://127.0.0.1:3001; }} }}"
    );
    let Some(site) = Site::start(setup, &http) else { return };
    let _servers: Vec<TcpListener> = ["3001", "3003", "3004", "3005", "3008"]
        .iter()
        .map(|port| site.listen(&format!("127.0.0.1:{port}")))
        .collect();
    // A queue that is full: nobody accepts, and its limit is the smallest.
    let full = site.listen("127.0.0.1:3010");
    // SAFETY: listen takes no pointers; a second call changes the limit alone.
    unsafe { libc::listen(std::os::fd::AsRawFd::as_raw_fd(&full), 0) };
    let _waiting = site.ns.run(|| TcpStream::connect("127.0.0.1:3010").unwrap()).unwrap();
    let report = site.check(&quick());
    // Whether a security module could have said the same is told by securityfs alone.
    let modules = fs::read_to_string("/sys/kernel/security/lsm").unwrap_or_else(|_| "unknown".to_owned());
    let quiet = ["selinux", "smack", "tomoyo", "bpf", "unknown"].iter().all(|name| !modules.contains(name));
    let prohibit = format!("10.8.1.1:80 network-unreachable {}", if quiet { "proven" } else { "likely" });
    assert_eq!(
        shown(&report),
        [
            prohibit.as_str(),
            "10.9.9.2:80 host-unreachable likely",
            "127.0.0.1:3001 bind-failed proven",
            "127.0.0.1:3002 connect-refused-no-listener proven",
            "127.0.0.1:3003 connect-timeout-firewall-drop proven",
            "127.0.0.1:3004 connect-refused-by-firewall proven",
            "127.0.0.1:3005 connect-refused-by-firewall proven",
            // The rule is for another user: nothing listens.
            "127.0.0.1:3006 connect-refused-no-listener proven",
            "127.0.0.1:3008 connect-timeout-firewall-drop proven",
            "127.0.0.1:3010 connect-timeout-backlog-full likely",
            "192.0.2.1:80 network-unreachable proven",
        ],
        "{report:#?}"
    );
    let rule = one(&report, "127.0.0.1:3003");
    assert!(
        rule.evidence.iter().any(|e| e.kind == "rule" && e.text.contains("tcp dport 3003 drop")),
        "{rule:#?}"
    );
    assert_eq!(rule.severity, Severity::Problem);
    assert!(rule.breaks.contains("504"), "{}", rule.breaks);
    for finding in &report.findings {
        assert!(!finding.at.is_empty() || finding.name.starts_with("accept"), "{finding:#?}");
        assert!(!finding.fix.is_empty() && !finding.breaks.is_empty(), "{finding:#?}");
        assert_eq!(finding.rival.is_none(), finding.confidence == Confidence::Proven, "{finding:#?}");
        let texts = finding.evidence.iter().map(|e| e.text.as_str()).chain(finding.rival.as_deref());
        for text in texts {
            assert!(!text.contains("tier") && !text.contains("nginx gave up"), "{finding:#?}");
        }
    }
}

#[test]
fn unix_sockets_are_tried_as_the_worker() {
    let http = "server { listen unix:DIR/front.sock;
        location /ok { fastcgi_pass unix:DIR/ok.sock; }
        location /gone { fastcgi_pass unix:DIR/gone.sock; }
        location /mode { fastcgi_pass unix:DIR/mode.sock; }
        location /left { fastcgi_pass unix:DIR/left.sock; }
        location /file { fastcgi_pass unix:DIR/file; } }";
    let Some(site) = Site::start("", http) else { return };
    let open = |name: &str, mode: u32| {
        let listener = UnixListener::bind(site.path(name)).unwrap();
        fs::set_permissions(site.path(name), fs::Permissions::from_mode(mode)).unwrap();
        listener
    };
    let _servers = [open("ok.sock", 0o666), open("mode.sock", 0o600)];
    drop(open("left.sock", 0o666));
    fs::write(site.path("file"), "").unwrap();
    fs::set_permissions(site.path("file"), fs::Permissions::from_mode(0o666)).unwrap();
    let report = site.check(&quick());
    let at = |name: &str| format!("unix:{}", site.path(name));
    assert_eq!(
        shown(&report),
        [
            format!("{} unix-not-a-socket proven", at("file")),
            format!("{} unix-missing proven", at("gone.sock")),
            format!("{} unix-no-listener proven", at("left.sock")),
            format!("{} unix-permission proven", at("mode.sock")),
        ],
        "{report:#?}"
    );
}

#[test]
fn one_of_several_servers_is_a_warning() {
    let http = "upstream app { server 127.0.0.1:3001; server 127.0.0.1:3002; }
        upstream lone { server 127.0.0.1:3002; }
        server { listen unix:DIR/front.sock; location / { proxy_pass http://app; } }
        server { listen unix:DIR/other.sock; location / { proxy_pass http://127.0.0.1:3003; } }";
    let Some(site) = Site::start("", http) else { return };
    let _server = site.listen("127.0.0.1:3001");
    let report = site.check(&quick());
    // The upstream that nobody uses is no matter.
    assert_eq!(report.findings.len(), 2, "{report:#?}");
    assert_eq!(one(&report, "127.0.0.1:3002").severity, Severity::Warning);
    assert_eq!(one(&report, "127.0.0.1:3003").severity, Severity::Problem);
}

#[test]
fn a_server_that_cannot_be_reached_is_told_once() {
    let http = "upstream app { server 127.0.0.1:3002; }
        server { listen unix:DIR/front.sock;
            location /a/ { proxy_pass http://app; }
            location /b/ { proxy_pass https://app; }
            location /c/ { proxy_pass https://127.0.0.1:3002; proxy_ssl_server_name on; proxy_ssl_name c.test; } }";
    let Some(site) = Site::start("", http) else { return };
    let report = site.check(&quick());
    assert_eq!(report.findings.len(), 1, "{report:#?}");
    let found = one(&report, "127.0.0.1:3002");
    assert_eq!(found.at.iter().filter(|place| place.role == "pass").count(), 3, "{found:#?}");
    assert!(found.breaks.contains("and 2 other lines gets 502"), "{}", found.breaks);
}

#[test]
fn a_name_without_an_address_is_told() {
    let http = "server { listen unix:DIR/front.sock; location / { proxy_pass http://127.0.0.1:3001; } }";
    let Some(site) = Site::start("", http) else { return };
    let _server = site.listen("127.0.0.1:3001");
    // nginx itself could not start with it: the name is one that a reload would bring.
    let path = site.dir.path().join("nginx.conf");
    let text = fs::read_to_string(&path).unwrap();
    fs::write(&path, text.replace("127.0.0.1:3001", "no-such-name.invalid:80")).unwrap();
    let report = site.check(&quick());
    let names: Vec<_> = report.findings.iter().map(|f| f.name).collect();
    assert_eq!(names, ["name-does-not-resolve"], "{report:#?}");
}

#[test]
fn a_name_that_each_request_looks_up_is_asked_of_nobody() {
    let http = "map $host $to { default no-such-name.invalid:80; }
        server { listen unix:DIR/front.sock; location / { proxy_pass http://$to; } }";
    let Some(site) = Site::start("", http) else {
        return;
    };
    let report = site.check(&quick());
    assert_eq!(report.findings, [], "{report:#?}");
}

/// Everything that the helper is asked, straight.
fn plan(site: &Site, asks: Vec<probe::Ask>) -> probe::Plan {
    probe::Plan {
        worker: site.child.id(),
        uid: 65534,
        gid: 65534,
        timeout: Duration::from_secs(1),
        total: Duration::from_secs(4),
        parallel: 64,
        asks,
        ..probe::Plan::default()
    }
}

fn tcp(to: &str) -> probe::Ask {
    probe::Ask { to: probe::Where::Tcp(to.parse().unwrap()), from: None, tls: None, question: None }
}

#[test]
fn a_thousand_servers_are_tried_sixty_four_at_a_time() {
    let http = "server { listen unix:DIR/front.sock; }";
    let Some(site) = Site::start("", http) else {
        return;
    };
    // All of 127.0.0.0/8 is this host.
    let listener = site.listen("0.0.0.0:7000");
    // One queue has to hold what a thousand servers would share.
    // SAFETY: listen takes no pointers; a second call changes the limit alone.
    unsafe { libc::listen(std::os::fd::AsRawFd::as_raw_fd(&listener), 4096) };
    let count = thread::spawn(move || {
        let mut said = 0_usize;
        for stream in listener.incoming().take(1000) {
            let mut text = Vec::new();
            // Made and closed: a server sees nothing else.
            said += stream.and_then(|mut stream| stream.read_to_end(&mut text)).unwrap();
        }
        said
    });
    let asks: Vec<_> = (0..1000).map(|n| tcp(&format!("127.0.{}.{}:7000", n / 250, n % 250 + 1))).collect();
    let run = probe::run(Path::new(WHY502), &plan(&site, asks), |_| {}).unwrap();
    assert_eq!(run.stuck, None);
    let stood = run.answers.iter().filter(|a| a.outcome == probe::Outcome::Connected).count();
    assert_eq!(stood, 1000);
    assert!(run.most_open.is_some_and(|most| most <= 64), "{:?}", run.most_open);
    assert_eq!(count.join().unwrap(), 0);
}

#[test]
fn those_that_do_not_answer_are_bounded() {
    if !has("nft") {
        why502_skip::skipped("nft is not installed");
        return;
    }
    let setup = "nft 'table ip t { chain o { type filter hook output priority 0; tcp dport 7000 drop; }; }'";
    let http = "server { listen unix:DIR/front.sock; }";
    let Some(site) = Site::start(setup, http) else { return };
    let asks: Vec<_> = (0..1000).map(|n| tcp(&format!("127.0.{}.{}:7000", n / 250, n % 250 + 1))).collect();
    let began = Instant::now();
    let mut plan = plan(&site, asks);
    plan.total = Duration::from_millis(2500);
    let run = probe::run(Path::new(WHY502), &plan, |_| {}).unwrap();
    assert!(began.elapsed() < Duration::from_secs(6), "{:?}", began.elapsed());
    let late = run.answers.iter().filter(|a| a.outcome == probe::Outcome::TimedOut).count();
    // Three rounds at most within the time for all; the rest was not begun.
    assert!((64..=192).contains(&late), "{late}");
    assert!(
        run.answers.iter().all(|a| matches!(a.outcome, probe::Outcome::TimedOut | probe::Outcome::NotTried))
    );
    assert_eq!(run.most_open, Some(64));
}

#[test]
fn the_helper_tells_why_it_cannot_take_a_place() {
    let run = |input: &[u8]| -> io::Result<String> {
        let mut child =
            Command::new(WHY502).arg(probe::WORD).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn()?;
        child.stdin.take().unwrap().write_all(input)?;
        let out = child.wait_with_output()?;
        Ok(format!("{} {}", out.status.code().unwrap_or(-1), String::from_utf8_lossy(&out.stdout)))
    };
    assert_eq!(run(b"nonsense").unwrap(), "1 ");
    let nobody = probe::Plan { worker: u32::MAX, parallel: 1, ..probe::Plan::default() };
    let said = run(nobody.write().as_bytes()).unwrap();
    assert!(said.starts_with("0 stuck 2 "), "{said}");
}

/// TLS servers of the site's own nginx: the certificate is for `shop.test` and signs itself.
const TLS: &str = "ssl_certificate DIR/tls.pem; ssl_certificate_key DIR/tls.key;
    server { listen 127.0.0.1:8443 ssl; return 204; }
    server { listen 127.0.0.1:8444 ssl http2; return 204; }
    server { listen 127.0.0.1:8080; return 204; }
    server { listen 127.0.0.1:443 ssl; return 204; }
    server { listen 127.0.0.1:9443; return 204; }
";
const KEY: &str =
    "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 30 -subj /CN=shop.test \
    -addext subjectAltName=DNS:shop.test -keyout DIR/tls.key -out DIR/tls.pem 2>/dev/null
openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 30 -subj /CN=other.test \
    -keyout DIR/other.key -out DIR/other.pem 2>/dev/null";

#[test]
fn tls_is_spoken_where_nginx_would_speak_it() {
    if !has("openssl") {
        why502_skip::skipped("openssl is not installed");
        return;
    }
    let http = format!(
        "{TLS} upstream shop {{ server 127.0.0.1:8443; }}
        server {{ listen unix:DIR/front.sock;
            location /fine {{ proxy_pass https://127.0.0.1:8443; }}
            location /checked {{ proxy_pass https://127.0.0.1:8443; proxy_ssl_verify on; proxy_ssl_name shop.test;
                proxy_ssl_server_name on; proxy_ssl_trusted_certificate DIR/tls.pem; }}
            location /client {{ proxy_pass https://127.0.0.1:8443; proxy_ssl_certificate DIR/tls.pem;
                proxy_ssl_certificate_key DIR/tls.key; }}
            location /grpc {{ grpc_pass grpcs://127.0.0.1:8444; }}
            location /plain {{ proxy_pass http://127.0.0.1:8080; }}
            location /9443 {{ proxy_pass http://127.0.0.1:9443; }} }}"
    );
    let Some(site) = Site::start(KEY, &http) else { return };
    let report = site.check(&quick());
    assert_eq!(shown(&report), Vec::<String>::new(), "{report:#?}");
    let servers = report.checked.iter().find(|c| c.what == "upstream servers").unwrap();
    assert!(servers.seen.contains(", 1 of the passes without the TLS handshake"), "{}", servers.seen);
}

#[test]
fn wrong_protocols_and_certificates_are_found() {
    if !has("openssl") {
        why502_skip::skipped("openssl is not installed");
        return;
    }
    let verify = "proxy_ssl_verify on; proxy_ssl_server_name on; proxy_ssl_trusted_certificate";
    let http = format!(
        "{TLS} upstream shop {{ server 127.0.0.1:8443; }}
        server {{ listen unix:DIR/front.sock;
            location /tls-to-plain {{ proxy_pass https://127.0.0.1:8080; }}
            location /plain-to-tls {{ proxy_pass http://127.0.0.1:443; }}
            location /name {{ proxy_pass https://shop; {verify} DIR/tls.pem; }}
            location /root {{ proxy_pass https://127.0.0.2:8443; proxy_ssl_name shop.test; {verify} DIR/other.pem; }}
            location /no-h2 {{ grpc_pass grpcs://127.0.0.1:8445; }} }}
        server {{ listen 127.0.0.1:8445 ssl; return 204; }} server {{ listen 127.0.0.2:8443 ssl; return 204; }}"
    );
    let Some(site) = Site::start(KEY, &http) else { return };
    let report = site.check(&quick());
    assert_eq!(
        shown(&report),
        [
            "127.0.0.1:443 plain-to-tls-port likely",
            "127.0.0.1:8080 tls-to-plain-port proven",
            "127.0.0.1:8443 tls-certificate-rejected proven",
            "127.0.0.1:8445 invalid-response likely",
            "127.0.0.2:8443 tls-certificate-rejected likely",
        ],
        "{report:#?}"
    );
    assert!(one(&report, "127.0.0.1:8443").summary.contains("another name"));
}
