//! The site under test: an nginx with one worker, its backend, and the load.

use std::fs;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use super::system;
use crate::{process, signals};

/// The front nginx.
pub(crate) const FRONT: u16 = 8080;
/// The front's request counter.
const STATUS: u16 = 8081;
/// First and number of the backend's ports: several, so that one connection per request does not exhaust
/// the ports of the pair of addresses.
const BACK: (u16, u16) = (9001, 16);
/// Nothing listens here.
const DEAD: u16 = 9;

/// Connections of wrk.
const CONNECTIONS: u32 = 32;

/// A front and a back nginx; dropping it ends both.
#[derive(Debug)]
pub(crate) struct Site {
    dir: PathBuf,
    front: Child,
    back: Child,
    wrk: PathBuf,
}

/// What wrk says at the end.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Load {
    /// Requests per second.
    pub rate: f64,
}

impl Site {
    /// Starts both and waits until they answer.
    pub(crate) fn start(error_log: &str) -> Result<Self> {
        let nginx = process::find_program("nginx").context("no nginx: `cargo xtask setup` installs it")?;
        let wrk = process::find_program("wrk").context(
            "no wrk, which makes the load: `cargo xtask setup` (Debian: apt-get install wrk) installs it",
        )?;
        let dir = std::env::temp_dir().join(format!("why502-bench-{}", std::process::id()));
        fs::create_dir_all(&dir).with_context(|| format!("cannot make {}", dir.display()))?;
        let mut back = nginx_at(&nginx, &dir, "back", "crit", &back_config())?;
        let front = match nginx_at(&nginx, &dir, "front", error_log, &front_config()) {
            Ok(front) => front,
            Err(error) => {
                end_nginx(&mut back);
                return Err(error);
            }
        };
        let mut site = Self { dir, front, back, wrk };
        site.answers()?;
        Ok(site)
    }

    /// PID of the front's master.
    pub(crate) fn master(&self) -> u32 {
        self.front.id()
    }

    /// CPU time of both nginx' processes.
    pub(crate) fn cpu_time(&self) -> Duration {
        [self.front.id(), self.back.id()]
            .into_iter()
            .flat_map(|master| system::children(master).into_iter().chain([master]))
            .filter_map(|pid| system::cpu_time(pid).ok())
            .sum()
    }

    /// Requests that the front has handled so far, not counting those of this function.
    pub(crate) fn requests(&self, asked_before: u64) -> Result<u64> {
        let text = get(STATUS, "/")?;
        let total = handled(&text).with_context(|| format!("nginx's stub_status says {text:?}"))?;
        Ok(total.saturating_sub(asked_before + 1))
    }

    /// Runs wrk against a path of the front.
    pub(crate) fn wrk(&self, path: &str, seconds: u32) -> Result<Load> {
        signals::go_on()?;
        let mut command = Command::new(&self.wrk);
        command.args(["-t1", &format!("-c{CONNECTIONS}"), &format!("-d{seconds}s")]);
        command.arg(format!("http://127.0.0.1:{FRONT}{path}"));
        let output = process::output(system::dies_with_us(&mut command, libc::SIGKILL))?;
        // ^C reaches wrk as well, which then ends early and says nothing of it.
        signals::go_on()?;
        let text = String::from_utf8_lossy(&output.stdout);
        let rate = rate_of(&text).with_context(|| format!("wrk says {text:?}"))?;
        Ok(Load { rate })
    }

    /// Every location answers as it should.
    fn answers(&mut self) -> Result<()> {
        let end = Instant::now() + Duration::from_secs(5);
        for (path, status) in
            [("/connect", "200"), ("/keepalive", "200"), ("/refused", "502"), ("/unreachable", "502")]
        {
            loop {
                let answer = get(FRONT, path).unwrap_or_default();
                if answer.split(' ').nth(1) == Some(status) {
                    break;
                }
                if Instant::now() > end {
                    let log = fs::read_to_string(self.dir.join("front.log")).unwrap_or_default();
                    bail!(
                        "the bench's nginx answers {path} with {answer:?}; its log:\n{}",
                        process::tail(&log, 1000)
                    );
                }
                thread::sleep(Duration::from_millis(10));
            }
        }
        Ok(())
    }
}

impl Drop for Site {
    fn drop(&mut self) {
        end_nginx(&mut self.front);
        end_nginx(&mut self.back);
        let _ = fs::remove_dir_all(&self.dir);
    }
}

/// Ends a master and its workers.
fn end_nginx(master: &mut Child) {
    let workers = system::children(master.id());
    if signals::stop(master, libc::SIGTERM, Duration::from_secs(3)).is_none() {
        for worker in workers {
            system::send(worker, libc::SIGKILL);
        }
    }
}

fn nginx_at(nginx: &Path, dir: &Path, name: &str, error_log: &str, http: &str) -> Result<Child> {
    let mut paths = String::new();
    for kind in ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"] {
        paths.push_str(&format!("{kind}_temp_path {}/{name}-{kind};\n", dir.display()));
    }
    let config = format!(
        "daemon off;\nuser root;\nworker_processes 1;\npid {dir}/{name}.pid;\nerror_log {dir}/{name}.log {error_log};\n\
         worker_rlimit_nofile 8192;\nevents {{ worker_connections 4096; }}\nhttp {{\naccess_log off;\n\
         keepalive_requests 1000000000;\nkeepalive_timeout 1h;\n{paths}{http}}}\n",
        dir = dir.display(),
    );
    let file = dir.join(format!("{name}.conf"));
    fs::write(&file, config).with_context(|| format!("cannot write {}", file.display()))?;
    let mut command = Command::new(nginx);
    command.arg("-p").arg(dir).arg("-c").arg(&file).arg("-e").arg(dir.join(format!("{name}.log")));
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    // A master that gets SIGTERM takes its workers along.
    system::dies_with_us(&mut command, libc::SIGTERM)
        .spawn()
        .with_context(|| format!("cannot start {}", nginx.display()))
}

fn back_config() -> String {
    let (first, count) = BACK;
    let listen: String = (first..first + count).map(|port| format!("listen 127.0.0.1:{port};\n")).collect();
    format!("server {{\n{listen}location / {{ return 200 \"healthy\\n\"; }}\n}}\n")
}

fn front_config() -> String {
    let (first, count) = BACK;
    let servers: String = (first..first + count).map(|port| format!("server 127.0.0.1:{port};\n")).collect();
    format!(
        "upstream fresh {{\n{servers}}}\n\
         upstream warm {{\nserver 127.0.0.1:{first};\nkeepalive 64;\nkeepalive_requests 1000000000;\n\
         keepalive_timeout 1h;\n}}\n\
         server {{\nlisten 127.0.0.1:{STATUS};\nlocation / {{ stub_status; }}\n}}\n\
         server {{\nlisten 127.0.0.1:{FRONT};\nproxy_next_upstream off;\n\
         location /connect {{ proxy_pass http://fresh; }}\n\
         location /keepalive {{ proxy_pass http://warm; proxy_http_version 1.1; proxy_set_header Connection \"\"; }}\n\
         location /refused {{ proxy_pass http://127.0.0.1:{DEAD}; }}\n\
         location /unreachable {{ proxy_pass http://192.0.2.1:80; }}\n}}\n"
    )
}

/// One request on its own connection; the whole answer.
fn get(port: u16, path: &str) -> Result<String> {
    let address = SocketAddr::from(([127, 0, 0, 1], port));
    let mut stream = TcpStream::connect_timeout(&address, Duration::from_secs(2))?;
    stream.set_read_timeout(Some(Duration::from_secs(5)))?;
    stream.write_all(format!("GET {path} HTTP/1.0\r\n\r\n").as_bytes())?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    Ok(answer)
}

/// The third number of stub_status.
fn handled(text: &str) -> Option<u64> {
    let (_, rest) = text.split_once("server accepts handled requests")?;
    rest.split_whitespace().nth(2)?.parse().ok()
}

fn rate_of(text: &str) -> Option<f64> {
    text.lines().find_map(|line| line.strip_prefix("Requests/sec:")?.trim().parse().ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_what_wrk_and_nginx_say() {
        let wrk = "Running 2s test\n  45400 requests in 2.00s, 8MB read\nRequests/sec:  22651.32\nTransfer/sec: 4MB\n";
        assert_eq!(rate_of(wrk), Some(22651.32));
        let status = "HTTP/1.1 200 OK\r\n\r\nActive connections: 1 \nserver accepts handled requests\n 5 5 71 \nReading: 0\n";
        assert_eq!(handled(status), Some(71));
        assert_eq!(handled("nothing"), None);
    }
}
