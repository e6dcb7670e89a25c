//! The chaos run: many requests side by side to backends that fail at random in all known ways, and every failure that
//! nginx logs has exactly one incident, and the reverse. See `audit.rs`.

use crate::audit::{self, ACCESS, Floors};
use crate::backend::{self, Backend, Backends, Dice};
use crate::case::Nginx as Settings;
use crate::net::{self, NetNs, World};
use crate::nginx::Nginx;
use crate::report;
use crate::stress::{self, Options, Scratch};
use crate::sys;
use crate::tls;
use crate::watch::{Start, Watch};
use anyhow::{Context, Result, bail};
use std::collections::{BTreeMap, BTreeSet};
use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

mod scripts;

const NGINX: &str = "127.0.0.1:8080";

/// How the run is to be.
#[derive(Debug, Clone, clap::Args)]
pub(crate) struct Load {
    #[arg(long, default_value_t = 5000)]
    requests: u64,
    /// Client connections
    #[arg(long, default_value_t = 24)]
    clients: u64,
    /// nginx's workers
    #[arg(long, default_value_t = 2)]
    workers: u32,
    /// What chance begins with
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// nginx logs at `error`, as by default: then `--uprobes=auto` asks it
    #[arg(long)]
    quiet_log: bool,
    /// Leave nginx's logs, all incidents and the audit in this folder
    #[arg(long, value_name = "DIR")]
    keep: Option<std::path::PathBuf>,
}

/// Plays and compares; true if nothing is amiss.
pub(crate) fn run(options: &Options, load: &Load) -> Result<bool> {
    let bound = Duration::from_secs_f64(15.0 * options.slow);
    let watch = match options.program.as_ref().map(|program| Watch::start(program, bound)).transpose()? {
        Some(Start::Refused(why)) => {
            report::say(&format!("skip {}\n0 passed, 0 failed, 1 skipped", why.lines().last().unwrap_or("")));
            return Ok(true);
        }
        Some(Start::Running(watch)) => Some(watch),
        None => None,
    };
    let scratch = Scratch(std::env::temp_dir().join(format!("w502-{}", net::tag())));
    let dir = scratch.0.as_path();
    std::fs::create_dir_all(dir.join("tmp"))?;
    let world = World::create(&BTreeMap::new())?;
    let web = &world.web;
    // A signal that ends a backend before its time is no part of this.
    let mut backends = Backends::default();
    for (index, (port, fork, script)) in scripts::BACKENDS.iter().enumerate() {
        let backend = Backend {
            address: format!("127.0.0.1:{port}"),
            tls: false,
            script: (*script).to_owned(),
            fork: *fork,
            backlog: 1024,
            seed: load.seed.wrapping_add(index as u64),
        };
        backends.0.extend(backend::start(web, &backend, dir, bound)?);
    }
    prepare(web, dir, &mut backends, bound)?;
    let nginx = Nginx::start(web, &settings(load), dir, bound)?;
    if let Some(watch) = &watch {
        sys::poll_until(Duration::from_secs(10), || watch.names_process(nginx.pid));
    }
    let pids: BTreeSet<u32> = web.pids().into_iter().collect();
    let start = Instant::now();
    clients(web, load, Duration::from_secs_f64(5.0 * options.slow))?;
    let seconds = start.elapsed().as_secs_f64();
    report::say(&format!("{} requests in {seconds:.1} s, {} workers", load.requests, load.workers));
    let incidents = watch.as_ref().map(|watch| {
        stress::stand_still(watch);
        watch.incidents(&pids)
    });
    Nginx::stop_all(web, bound);
    drop(backends);
    let errors = nginx.read(audit::ERRORS);
    let folder = load.keep.as_deref().unwrap_or(dir);
    if load.keep.is_some() {
        std::fs::create_dir_all(folder)?;
        std::fs::write(folder.join(audit::ERRORS), &errors)?;
        std::fs::write(folder.join(audit::ACCESSES), nginx.read(audit::ACCESSES))?;
    }
    let (Some(watch), Some(incidents), Some(program)) = (watch, incidents, &options.program) else {
        audit::tell(&errors);
        return Ok(stress::verdict(&[], ""));
    };
    let asked = watch.asks();
    if !asked {
        let (without, with): (Vec<&str>, Vec<&str>) = errors.lines().partition(|line| has_no_socket(line));
        report::say(&format!(
            "{} lines are about no socket: only nginx's word tells of those",
            without.len()
        ));
        std::fs::write(folder.join(audit::ERRORS), with.join("\n") + "\n")?;
    }
    let end = watch.finish(bound);
    let number = |name: &str| end.summary.as_ref().and_then(|s| s.pointer(name)?.as_u64()).unwrap_or(0);
    report::say(&format!(
        "why502: {} events lost, {} runs of programs skipped by the kernel, {} ends found late",
        number("/events_lost"),
        number("/skipped_runs"),
        number("/found_late")
    ));
    let all: Vec<String> = incidents.iter().chain(&end.summary).map(ToString::to_string).collect();
    std::fs::write(folder.join(audit::INCIDENTS), all.join("\n"))?;
    let floors = match (options.slow > 1.0, asked) {
        (true, _) => SLOW_FLOORS,
        (false, true) => ASKED_FLOORS,
        (false, false) => FLOORS,
    };
    let mut problems = end.problems;
    problems.extend(audit::judge(program, folder, level(load), floors)?);
    Ok(stress::verdict(&problems, &end.stderr))
}

/// nginx has tried nobody.
fn has_no_socket(line: &str) -> bool {
    ["no live upstreams", "could not be resolved", "no resolver defined"]
        .iter()
        .any(|text| line.contains(text))
}

/// What is neither nginx nor a script: ports, a rule that drops, a certificate and TLS in front of the plain backend.
fn prepare(web: &NetNs, dir: &Path, backends: &mut Backends, bound: Duration) -> Result<()> {
    web.run(|| {
        std::fs::write("/proc/sys/net/ipv4/ip_local_port_range", "16384 65000")?;
        Ok(())
    })?;
    net::command_ok(
        web.command("nft")
            .args(["add table ip t; add chain ip t o { type filter hook output priority 0; }; \
                    add rule ip t o tcp dport 20009 drop"]),
    )?;
    backends.0.push(tls::start(web, dir, 3011, 3000, bound)?);
    Ok(())
}

/// The level of nginx's log; the lab's own is `info`.
fn level(load: &Load) -> &'static str {
    if load.quiet_log { "error" } else { "info" }
}

fn settings(load: &Load) -> Settings {
    let quiet = format!("sed -i 's/error.log info/error.log {}/' \"$DIR/nginx.conf\"\n", level(load));
    Settings {
        conf: format!("log_format chaos '{ACCESS}';\naccess_log chaos.log chaos;\n{}", scripts::CONF),
        stream: String::new(),
        main: "worker_rlimit_nofile 8192;\n".to_owned(),
        workers: load.workers,
        master: true,
        daemon: false,
        user: "root".to_owned(),
        etc_hosts: None,
        listen: NGINX.to_owned(),
        current: false,
        // So that its log's times need no zone.
        launch: Some(format!("{quiet}exec env TZ=UTC0 \"$@\"")),
        seen_at: None,
    }
}

/// The least precision and recall, percent, that are not a failure, just below what ARCHITECTURE.md claims: 99.2 and 98.7 by kernel
/// evidence alone, where all that is missed lies in TLS. Of 1,400 lines, chance moves that share by a third of a percent.
const FLOORS: Floors = Floors { precision: 98.5, recall: 97.8 };
/// In an emulated guest timers are late, and more connections end before nginx has written. Played thoroughly alone.
const SLOW_FLOORS: Floors = Floors { precision: 95.0, recall: 92.0 };
/// Where nginx itself is asked as well nothing is missed: 100 and 100. One of a thousand is left to the moment of the end.
const ASKED_FLOORS: Floors = Floors { precision: 99.9, recall: 99.9 };

fn clients(web: &NetNs, load: &Load, bound: Duration) -> Result<()> {
    let next = AtomicU64::new(1);
    let next = &next;
    let one = |index: u64| -> Result<()> {
        sys::enter(web.fd())?;
        let mut client = Client {
            dice: Dice(
                load.seed.wrapping_mul(0x9e37_79b9_7f4a_7c15)
                    ^ (index + 1).wrapping_mul(0x517c_c1b7_2722_0a95),
            ),
            keeps: index.is_multiple_of(2),
            bound,
            open: None,
        };
        loop {
            let id = next.fetch_add(1, Ordering::Relaxed);
            if id > load.requests || sys::interrupted() {
                return Ok(());
            }
            client.play(id)?;
        }
    };
    std::thread::scope(|scope| {
        let threads: Vec<_> = (0..load.clients.max(1)).map(|index| scope.spawn(move || one(index))).collect();
        for thread in threads {
            match thread.join() {
                Ok(result) => result?,
                Err(_) => bail!("a client thread panicked"),
            }
        }
        Ok(())
    })
}

struct Client {
    dice: Dice,
    /// One connection for several requests.
    keeps: bool,
    bound: Duration,
    open: Option<BufReader<TcpStream>>,
}

impl Client {
    /// One request; whatever answer comes is nginx's affair.
    fn play(&mut self, id: u64) -> Result<()> {
        let place = scripts::place(self.dice.roll());
        let target = format!("/{place}/{id}");
        let kept = self.open.take();
        let mut reader = match kept {
            Some(reader) => reader,
            None => {
                let stream = TcpStream::connect(NGINX).context("cannot connect to nginx")?;
                stream.set_nodelay(true)?;
                stream.set_read_timeout(Some(self.bound))?;
                stream.set_write_timeout(Some(self.bound))?;
                BufReader::new(stream)
            }
        };
        let connection = if self.keeps { "keep-alive" } else { "close" };
        let head = |method: &str, more: &str| {
            format!(
                "{method} {target} HTTP/1.1\r\nHost: shop.example.com\r\nConnection: {connection}\r\n{more}\r\n"
            )
        };
        let mut request = match self.dice.roll() % 10 {
            // "big" is for bodies that do not fit any buffer.
            _ if place == "big" => head("POST", "Content-Length: 6000000\r\n").into_bytes(),
            0..3 => (head("POST", "Content-Length: 3\r\n") + "a=b").into_bytes(),
            _ => head("GET", "").into_bytes(),
        };
        if place == "big" {
            request.resize(request.len() + 6_000_000, b'x');
        }
        if reader.get_mut().write_all(&request).is_err() {
            return Ok(());
        }
        if place == "leave" {
            // A person who does not wait: while the backend works, as a rule.
            std::thread::sleep(Duration::from_millis(self.dice.roll() % 60));
            return Ok(());
        }
        if self.answer(&mut reader).unwrap_or(false) && self.keeps {
            self.open = Some(reader);
        }
        Ok(())
    }

    /// Reads one answer; true if the connection can be used again.
    fn answer(&self, reader: &mut BufReader<TcpStream>) -> std::io::Result<bool> {
        let (mut length, mut again) = (None, true);
        let mut line = String::new();
        loop {
            line.clear();
            if reader.read_line(&mut line)? == 0 {
                return Ok(false);
            }
            let lower = line.trim_end().to_ascii_lowercase();
            if let Some(value) = lower.strip_prefix("content-length: ") {
                length = value.parse::<u64>().ok();
            }
            again &= lower != "connection: close";
            if lower.is_empty() {
                break;
            }
        }
        let wanted = length.filter(|_| again);
        let got = std::io::copy(&mut reader.take(wanted.unwrap_or(u64::MAX)), &mut std::io::sink())?;
        Ok(wanted == Some(got))
    }
}
