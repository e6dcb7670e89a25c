//! An nginx of the test's own, in a network namespace that lives as long as it does.

use std::{
    fs::{self, File},
    io::{Read as _, Write as _},
    net::{SocketAddr, TcpStream},
    os::fd::AsRawFd as _,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    thread,
    time::Duration,
};

use tempfile::TempDir;

use crate::program::{BOUND, can_attach, poll};

const NGINX: &str = "/usr/sbin/nginx";

/// Routes of every test's server: upstreams that fail in two ways, and one that works.
const SERVER: &str = "
    server {
        listen 127.0.0.1:8080;
        location = /ok { return 204; }
        location = /refused { proxy_pass http://127.0.0.1:3999; }
        location = /refused-too { proxy_pass http://127.0.0.1:3998; }
        location = /no-route { proxy_pass http://192.0.2.1:80; }
        location = /works { proxy_pass http://127.0.0.1:8080/ok; }
    }";

/// A running nginx; ended with the value.
pub(crate) struct Nginx {
    dir: TempDir,
    child: Child,
}

impl Nginx {
    /// Starts one, unless live tests cannot run here.
    pub(crate) fn start() -> Option<Self> {
        if !can_attach() {
            return None;
        }
        if !Path::new(NGINX).exists() {
            why502_skip::skipped("nginx is not installed");
            return None;
        }
        let dir = tempfile::Builder::new().prefix("why502-cli-").tempdir().unwrap();
        fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o755)).unwrap();
        fs::write(dir.path().join("nginx.conf"), conf()).unwrap();
        let mut nginx = Self { child: spawn(dir.path()), dir };
        let ready = poll(|| {
            let ended = nginx.child.try_wait().unwrap();
            assert!(ended.is_none(), "nginx ended: {ended:?}\n{}", nginx.log());
            nginx.try_get("/ok") == Some(204)
        });
        assert!(ready, "nginx does not answer\n{}", nginx.log());
        Some(nginx)
    }

    /// PID of the master: `setpriv`, `unshare` and `sh` became it.
    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// The same as an argument.
    pub(crate) fn pid_arg(&self) -> String {
        self.pid().to_string()
    }

    /// Its configuration.
    pub(crate) fn conf(&self) -> PathBuf {
        self.dir.path().join("nginx.conf")
    }

    /// Writes its configuration anew, clearly later than it started: start times are known to a hundredth of a second.
    pub(crate) fn edit(&self, text: &str) {
        let started = fs::metadata(format!("/proc/{}", self.pid())).unwrap().modified().unwrap();
        let is_later = || {
            fs::write(self.conf(), text).unwrap();
            let changed = fs::metadata(self.conf()).unwrap().modified().unwrap();
            changed.duration_since(started).is_ok_and(|since| since > Duration::from_millis(300))
        };
        assert!(poll(is_later), "the file does not get newer");
    }

    /// Reloads it and waits until it has either new workers or a new line in its log.
    pub(crate) fn reload(&self) {
        let (workers, log) = (self.workers(), self.log());
        // SAFETY: a plain system call; the master is our child and not waited for.
        unsafe { libc::kill(i32::try_from(self.pid()).unwrap(), libc::SIGHUP) };
        let is_done = || {
            let now = self.workers();
            self.log().len() > log.len() || (!now.is_empty() && !now.iter().any(|pid| workers.contains(pid)))
        };
        assert!(poll(is_done), "the reload does nothing\n{}", self.log());
    }

    /// Sends a request and returns the status; the upstream's failure is nginx's 502.
    pub(crate) fn get(&self, path: &str) -> u16 {
        self.try_get(path).unwrap_or_else(|| panic!("no answer to {path}\n{}", self.log()))
    }

    fn try_get(&self, path: &str) -> Option<u16> {
        let namespace = File::open(format!("/proc/{}/ns/net", self.pid())).ok()?;
        let request = format!("GET {path} HTTP/1.0\r\nHost: shop.example.com\r\n\r\n");
        let client = move || -> Option<u16> {
            // SAFETY: a plain system call on a descriptor that is open; it changes this thread alone.
            let entered = unsafe { libc::setns(namespace.as_raw_fd(), libc::CLONE_NEWNET) };
            if entered != 0 {
                return None;
            }
            let server: SocketAddr = "127.0.0.1:8080".parse().ok()?;
            let mut stream = TcpStream::connect_timeout(&server, Duration::from_secs(5)).ok()?;
            stream.set_read_timeout(Some(BOUND)).ok()?;
            stream.write_all(request.as_bytes()).ok()?;
            let mut answer = String::new();
            stream.read_to_string(&mut answer).ok()?;
            answer.split(' ').nth(1)?.parse().ok()
        };
        thread::spawn(client).join().ok().flatten()
    }

    fn log(&self) -> String {
        fs::read_to_string(self.dir.path().join("error.log")).unwrap_or_else(|e| format!("no error.log: {e}"))
    }

    /// PIDs of the workers.
    pub(crate) fn workers(&self) -> Vec<u32> {
        let parent = |pid: u32| -> Option<u32> {
            let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
            stat.rsplit_once(')')?.1.split_ascii_whitespace().nth(1)?.parse().ok()
        };
        let pids =
            fs::read_dir("/proc").unwrap().flatten().filter_map(|e| e.file_name().to_str()?.parse().ok());
        pids.filter(|pid| parent(*pid) == Some(self.pid())).collect()
    }
}

/// Whether the installed nginx was built so that its memory holds the texts of its configuration.
pub(crate) fn keeps_its_texts() -> bool {
    let version = Command::new(NGINX).arg("-V").output().unwrap();
    String::from_utf8_lossy(&version.stderr).contains("--with-debug")
}

impl Drop for Nginx {
    fn drop(&mut self) {
        let workers = self.workers();
        let kill = |pid: u32, signal| {
            // SAFETY: a plain system call; the master is our child and not waited for, the workers are its.
            unsafe { libc::kill(i32::try_from(pid).unwrap_or(i32::MAX), signal) };
        };
        kill(self.pid(), libc::SIGTERM);
        if !poll(|| !matches!(self.child.try_wait(), Ok(None))) {
            workers.into_iter().for_each(|pid| kill(pid, libc::SIGKILL));
            let _ = self.child.kill();
            let _ = self.child.wait();
        }
    }
}

fn conf() -> String {
    let temporary: String = ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"]
        .iter()
        .map(|name| format!("    {name}_temp_path tmp_{name};\n"))
        .collect();
    format!(
        "daemon off;\nworker_processes 1;\nuser root;\npid nginx.pid;\nerror_log error.log;\n\
         events {{ worker_connections 128; }}\nhttp {{\n    access_log off;\n{temporary}{SERVER}\n}}\n"
    )
}

fn spawn(dir: &Path) -> Child {
    let script = format!("ip link set lo up && exec {NGINX} -p \"$1\" -c nginx.conf -e error.log");
    // If the tests are killed it ends with them.
    Command::new("setpriv")
        .args(["--pdeathsig", "TERM", "unshare", "--net", "sh", "-c", &script, "sh"])
        .arg(dir)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap()
}
