//! Requests to a real nginx: the server and the location that it chooses must be those that the model names.

use std::{
    env,
    fmt::Write as _,
    io::{Read, Write},
    net::{SocketAddr, TcpListener, TcpStream},
    os::unix::net::UnixStream,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use super::{Random, read, seed};
use crate::nginx::{Model, Version, binary, tree::NodeId};

/// Path of the installed nginx; else the test is skipped.
pub(super) fn installed() -> Option<PathBuf> {
    let paths = ["/usr/sbin/nginx", "/usr/local/sbin/nginx", "/usr/local/nginx/sbin/nginx"];
    let found = paths.into_iter().map(PathBuf::from).find(|path| path.exists());
    if found.is_none() {
        why502_skip::skipped("nginx is not installed, so that there is nothing to compare with");
    }
    found
}

/// Path of the current nginx that `cargo xtask setup` unpacks beside the installed one; else says why the test is
/// skipped. The lab's cache is found as xtask finds it (xtask/src/lab/cache.rs).
pub(super) fn current() -> Option<PathBuf> {
    let set = |name| env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    let cache = set("WHY502_LAB_CACHE")
        .or_else(|| Some(set("XDG_CACHE_HOME")?.join("why502/lab")))
        .or_else(|| Some(set("HOME")?.join(".cache/why502/lab")));
    let found = cache.map(|cache| cache.join("current-nginx/nginx")).filter(|path| path.exists());
    if found.is_none() {
        why502_skip::skipped("there is no current nginx to compare with; `cargo xtask setup` fetches one");
    }
    found
}

/// The version of one of them.
pub(super) fn version(nginx: &Path) -> Version {
    let build = binary::build(&std::fs::read(nginx).unwrap());
    build.and_then(|build| build.core()).expect("nginx tells its version")
}

/// Makes two tests of each function: one asks the installed nginx, one the current one.
macro_rules! asks_each_nginx {
    ($($test:ident),+) => { $(
        mod $test {
            use crate::nginx::tests::live;

            #[test]
            fn installed() {
                if let Some(nginx) = live::installed() {
                    super::$test(&nginx);
                }
            }

            #[test]
            fn current() {
                if let Some(nginx) = live::current() {
                    super::$test(&nginx);
                }
            }
        }
    )+ };
}
pub(super) use asks_each_nginx;

/// A running nginx of one process; ended with the value.
pub(super) struct Nginx {
    child: Child,
    pub(super) folder: tempfile::TempDir,
}

impl Drop for Nginx {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Nginx {
    /// Starts one with these servers; `None` if it does not come up.
    pub(super) fn start(nginx: &Path, servers: &str) -> Option<Self> {
        let folder = tempfile::tempdir().unwrap();
        let temporary: String = ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"]
            .iter()
            .map(|name| format!("{name}_temp_path tmp_{name}; "))
            .collect();
        let socket = folder.path().join("socket");
        let text = format!(
            "daemon off; master_process off; pid pid; error_log error.log; events {{ worker_connections 1024; }}\n\
             http {{ access_log off; {temporary} server_names_hash_bucket_size 256; keepalive_requests 100000000;\n{}\n}}\n",
            servers.replace("SOCKET", &format!("unix:{}", socket.display()))
        );
        std::fs::write(folder.path().join("nginx.conf"), text).unwrap();
        let child = Command::new(nginx)
            .arg("-p")
            .arg(folder.path())
            .args(["-c", "nginx.conf", "-e", "error.log"])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let mut nginx = Self { child, folder };
        let end = Instant::now() + Duration::from_secs(20);
        while Instant::now() < end && nginx.child.try_wait().unwrap().is_none() {
            // Written when all of them listen (main, src/core/nginx.c).
            if nginx.folder.path().join("pid").exists() && UnixStream::connect(&socket).is_ok() {
                return Some(nginx);
            }
            thread::sleep(Duration::from_millis(5));
        }
        println!("{}", std::fs::read_to_string(nginx.folder.path().join("error.log")).unwrap_or_default());
        None
    }

    pub(super) fn connect(&self, group: usize) -> UnixStream {
        let stream = UnixStream::connect(self.folder.path().join(format!("socket.{group}"))).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
        stream
    }
}

/// What nginx answered: the status, and the id in `X-Id`.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Answer {
    pub(super) status: u16,
    pub(super) id: Option<String>,
    pub(super) body: Vec<u8>,
    pub(super) open: bool,
}

pub(super) fn ask(stream: &mut (impl Read + Write), host: Option<&str>, target: &str) -> Answer {
    let host = host.map(|host| format!("Host: {host}\r\n")).unwrap_or_default();
    let version = if host.is_empty() { "1.0" } else { "1.1" };
    if stream.write_all(format!("GET {target} HTTP/{version}\r\n{host}\r\n").as_bytes()).is_err() {
        return Answer { status: 0, id: None, body: Vec::new(), open: false };
    }
    let mut bytes = Vec::new();
    let mut buffer = [0; 4096];
    let (mut length, mut head) = (usize::MAX, 0);
    while head == 0 || bytes.len() < head + length {
        let read = stream.read(&mut buffer).unwrap_or(0);
        if read == 0 {
            break;
        }
        bytes.extend_from_slice(&buffer[..read]);
        if let Some(at) = bytes.windows(4).position(|part| part == b"\r\n\r\n").filter(|_| head == 0) {
            head = at + 4;
            let text = String::from_utf8_lossy(&bytes[..head]).into_owned();
            length = header(&text, "Content-Length").map_or(0, |value| value.parse().unwrap());
        }
    }
    let text = String::from_utf8_lossy(&bytes[..head]).into_owned();
    Answer {
        status: text.split(' ').nth(1).and_then(|status| status.parse().ok()).unwrap_or(0),
        id: header(&text, "X-Id"),
        body: bytes.split_off(head),
        open: text.contains("Connection: keep-alive"),
    }
}

fn header(text: &str, name: &str) -> Option<String> {
    let start = format!("{name}: ");
    text.lines().find_map(|line| line.strip_prefix(&start)).map(|value| value.trim().to_owned())
}

/// The id that a block adds to its answers.
pub(super) fn id(model: &Model, block: NodeId) -> Option<String> {
    let config = model.config();
    let line = config.children(block).find(|id| &*config.name(*id) == b"add_header")?;
    config.arg(line, 1)
}

const NAMES: [&str; 16] = [
    "example.com",
    "*.example.com",
    ".example.com",
    "www.example.com",
    "www.example.*",
    "example.*",
    "*.www.example.com",
    "~^(.*)\\.example\\.com$",
    "~WWW",
    "\"\"",
    "_",
    "~^[^.]+$",
    "*.com",
    "a.b.example.com",
    "~(?=a)a",
    ".b.example.com",
];

const HOSTS: [&str; 15] = [
    "example.com",
    "EXAMPLE.com:8080",
    "www.example.com.",
    "www.example.org",
    "a.b.example.com",
    "b.example.com",
    "example.org",
    "example.co.uk",
    "localhost",
    "x.www.example.com",
    "[::1]:80",
    "_",
    "a",
    "com",
    "www",
];

fn names(random: &mut Random) -> String {
    let names: Vec<_> = (0..random.below(4)).map(|_| NAMES[random.below(NAMES.len())]).collect();
    if names.is_empty() { String::new() } else { format!("server_name {};", names.join(" ")) }
}

fn server_of(model: &Model, answer: &Answer) -> Option<usize> {
    model.servers.iter().position(|server| id(model, server.node) == answer.id)
}

asks_each_nginx!(servers_are_those_of_nginx, addresses_are_those_of_nginx);

fn servers_are_those_of_nginx(nginx: &Path) {
    const GROUPS: usize = 100;
    let mut random = Random(seed(0x05e7_77e7));
    let (mut all, mut groups) = (String::new(), Vec::new());
    for group in 0..GROUPS {
        let mut text = String::new();
        let count = 1 + random.below(5);
        let default = random.below(2 * count);
        for server in 0..count {
            let mark = if server == default { " default_server" } else { "" };
            let names = names(&mut random);
            writeln!(text, "server {{ listen SOCKET.{group}{mark}; {names} add_header X-Id {server} always; return 200; }}")
                .unwrap();
        }
        all.push_str(&text);
        groups.push(text);
    }
    all.push_str("server { listen SOCKET; return 200; }");
    let nginx = Nginx::start(nginx, &all).expect("nginx takes the generated names");
    let (mut asked, mut certain) = (0, 0);
    for (group, text) in groups.iter().enumerate() {
        let model = Model::new(read(format!("http {{ {text} }}")).unwrap());
        for host in HOSTS.iter().map(|host| Some(*host)).chain([None]) {
            let mut stream = nginx.connect(group);
            let answer = ask(&mut stream, host, "/");
            let theirs =
                server_of(&model, &answer).unwrap_or_else(|| panic!("{answer:?} for {host:?} in\n{text}"));
            let located = model.locate(None, Some(host.unwrap_or("")), "/");
            assert!(located.servers.contains(&theirs), "{host:?}: {theirs} is not in {located:?}\n{text}");
            asked += 1;
            certain += usize::from(located.server.is_some());
        }
    }
    println!("{asked} requests, {certain} servers for certain");
    assert!(certain * 10 > asked * 8, "{certain} of {asked} can be said");
}

fn addresses_are_those_of_nginx(nginx: &Path) {
    const GROUPS: usize = 30;
    // A port may be taken by others between our choice and nginx's start.
    for attempt in 0..3 {
        let mut random = Random(seed(0xadd7 + attempt));
        let reserved: Vec<_> = (0..GROUPS).map(|_| TcpListener::bind("127.0.0.1:0").unwrap()).collect();
        let ports: Vec<u16> = reserved.iter().map(|listener| listener.local_addr().unwrap().port()).collect();
        drop(reserved);
        let (mut all, mut groups) = (String::new(), Vec::new());
        for port in ports {
            let mut text = String::new();
            let mut marked: Vec<String> = Vec::new();
            for server in 0..1 + random.below(5) {
                let mut listens = String::new();
                for host in ["", "*:", "127.0.0.1:", "127.0.0.2:", "0.0.0.0:"] {
                    let same = ["", "*:", "0.0.0.0:"].contains(&host) && listens.contains('A');
                    if random.below(3) != 0 || same {
                        continue;
                    }
                    let key = if host.starts_with("127") { host } else { "*" };
                    let mark = random.below(5) == 0 && !marked.iter().any(|other| other == key);
                    marked.extend(mark.then(|| key.to_owned()));
                    let wild = if host.starts_with("127") { "" } else { "# A\n" };
                    write!(
                        listens,
                        "listen {host}{port}{};{wild} ",
                        if mark { " default_server" } else { "" }
                    )
                    .unwrap();
                }
                if listens.is_empty() {
                    write!(listens, "listen 127.0.0.1:{port};").unwrap();
                }
                let names = if random.below(2) == 0 { "server_name a.test;" } else { "" };
                writeln!(text, "server {{ {listens} {names} add_header X-Id {server} always; return 200; }}")
                    .unwrap();
            }
            all.push_str(&text);
            groups.push((port, text));
        }
        all.push_str("server { listen SOCKET; return 200; }");
        let Some(_nginx) = Nginx::start(nginx, &all) else { continue };
        let mut asked = 0;
        for (port, text) in &groups {
            let model = Model::new(read(format!("http {{ {text} }}")).unwrap());
            for ip in ["127.0.0.1", "127.0.0.2", "127.0.0.3"] {
                let address: SocketAddr = format!("{ip}:{port}").parse().unwrap();
                for host in ["a.test", "b.test"] {
                    let located = model.locate(Some(address), Some(host), "/");
                    let Ok(mut stream) = TcpStream::connect(address) else {
                        assert!(
                            located.servers.is_empty(),
                            "{address}: nobody listens, we say {located:?}\n{text}"
                        );
                        continue;
                    };
                    let answer = ask(&mut stream, Some(host), "/");
                    let theirs = server_of(&model, &answer);
                    assert_eq!(located.server, theirs, "{address} {host}: {located:?}\n{text}");
                    asked += 1;
                }
            }
        }
        println!("{asked} requests");
        return;
    }
    panic!("nginx did not start three times");
}
