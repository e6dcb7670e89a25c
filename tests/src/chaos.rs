//! The chaos run: many requests side by side to backends that fail at random in all known ways, and every failure that
//! nginx logs has exactly one incident, and the reverse. See `compare.rs`.

use crate::backend::{self, Backend, Backends, Dice};
use crate::case::Nginx as Settings;
use crate::compare::{self, ACCESS, Line, Truth};
use crate::judge;
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
    /// Leave nginx's logs and all incidents in this folder
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
        let mut incidents = watch.incidents(&pids);
        // nginx logs clients that leave at `info`.
        incidents.retain(|incident| !load.quiet_log || judge::text(incident, "/cause") != "client-aborted");
        incidents
    });
    Nginx::stop_all(web, bound);
    drop(backends);
    let (errors, accesses) = (nginx.read("error.log"), nginx.read("chaos.log"));
    if let Some(folder) = &load.keep {
        std::fs::create_dir_all(folder)?;
        std::fs::write(folder.join("error.log"), &errors)?;
        std::fs::write(folder.join("chaos.log"), &accesses)?;
        let all: Vec<String> = incidents.iter().flatten().map(ToString::to_string).collect();
        std::fs::write(folder.join("incidents.jsonl"), all.join("\n"))?;
    }
    let (lines, mut problems) = lines(&errors, &accesses);
    let mut stderr = String::new();
    let asked = watch.as_ref().is_some_and(|watch| watch.asks(load.quiet_log));
    if let Some(watch) = watch {
        let end = watch.finish(bound);
        problems.extend(end.problems);
        stderr = end.stderr;
        let number = |name: &str| end.summary.as_ref().and_then(|s| s.pointer(name)?.as_u64()).unwrap_or(0);
        report::say(&format!(
            "why502: {} events lost, {} runs of programs skipped by the kernel, {} ends found late",
            number("/events_lost"),
            number("/skipped_runs"),
            number("/found_late")
        ));
    }
    match incidents {
        Some(incidents) => {
            let truth = compare::compare(&lines, &incidents);
            if let Some(folder) = &load.keep {
                let all = [("missed", &truth.missed), ("surplus", &truth.surplus), ("wrong", &truth.wrong)];
                for (name, list) in all {
                    std::fs::write(folder.join(name), list.join("\n"))?;
                }
            }
            let floors = match (options.slow > 1.0, asked) {
                (true, _) => SLOW_FLOORS,
                (false, true) => ASKED_FLOORS,
                (false, false) => FLOORS,
            };
            problems.extend(rate(&truth, floors));
        }
        None => tell(&lines),
    }
    Ok(stress::verdict(&problems, &stderr))
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

fn settings(load: &Load) -> Settings {
    let level =
        if load.quiet_log { "sed -i 's/error.log info/error.log error/' \"$DIR/nginx.conf\"\n" } else { "" };
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
        launch: Some(format!("{level}exec env TZ=UTC0 \"$@\"")),
        seen_at: None,
    }
}

/// What nginx has logged, and the lines about upstreams that this program does not know.
fn lines(errors: &str, accesses: &str) -> (Vec<Line>, Vec<String>) {
    let mut problems = Vec::new();
    let mut found = Vec::new();
    for text in errors.lines().filter(|text| compare::names_upstream(text)) {
        match compare::error_line(text) {
            Some(line) => found.push(line),
            None => problems.push(format!("a line of nginx that is not known: {text}")),
        }
    }
    found.extend(accesses.lines().flat_map(compare::access_line));
    problems.truncate(20);
    (found, problems)
}

/// Without why502: what went wrong, by class.
fn tell(lines: &[Line]) {
    let mut counts = BTreeMap::new();
    for line in lines {
        *counts.entry(line.class).or_insert(0_u32) += 1;
    }
    for (class, count) in counts {
        report::say(&format!("  {count:>6} {class:?}"));
    }
}

/// The least precision and recall, percent, that are not a failure, just below what ARCHITECTURE.md claims: 99.2 and 98.7 by kernel
/// evidence alone, where all that is missed lies in TLS. Of 1,400 lines, chance moves that share by a third of a percent.
const FLOORS: (f64, f64) = (98.5, 97.8);
/// Where nginx itself is asked as well nothing is missed: 100 and 100. One of a thousand is left to the moment of the end.
const ASKED_FLOORS: (f64, f64) = (99.9, 99.9);
/// In an emulated guest timers are late, and more connections end before nginx has written. Played thoroughly alone.
const SLOW_FLOORS: (f64, f64) = (95.0, 92.0);

/// Tells every miss. What fails the run is a false proof, and less than the floors.
fn rate(truth: &Truth, floors: (f64, f64)) -> Vec<String> {
    for ((class, cause), count) in &truth.table {
        let mark = if class.fits(cause) { ' ' } else { '!' };
        report::say(&format!("{mark} {count:>6} {class:?}: {cause}"));
    }
    report::say(&format!(
        "chaos: {} lines of nginx, {} incidents: precision {:.3} %, recall {:.3} %; {} missed, {} surplus, \
         {} of another cause, {} of those proven",
        truth.lines,
        truth.incidents,
        truth.precision(),
        truth.recall(),
        truth.missed.len(),
        truth.surplus.len(),
        truth.wrong.len(),
        truth.false_proven
    ));
    for (what, list) in [("missed", &truth.missed), ("surplus", &truth.surplus)] {
        let mut kinds: BTreeMap<&str, u32> = BTreeMap::new();
        for text in list {
            *kinds.entry(kind(text)).or_default() += 1;
        }
        kinds.iter().for_each(|(kind, count)| report::say(&format!("! {count:>6} {what}: {kind}")));
    }
    for (what, list) in
        [("missed", &truth.missed), ("surplus", &truth.surplus), ("another cause", &truth.wrong)]
    {
        list.iter().take(12).for_each(|text| report::say(&format!("! {what}: {text}")));
        if list.len() > 12 {
            report::say(&format!("! {what}: {} more", list.len() - 12));
        }
    }
    let (precision, recall) = floors;
    let mut problems = Vec::new();
    if truth.false_proven > 0 {
        problems.push(format!("{} incidents are proven to be what they are not", truth.false_proven));
    }
    if truth.precision() < precision || truth.recall() < recall {
        problems.push(format!(
            "precision {:.3} % and recall {:.3} %, at least {precision} and {recall} are expected",
            truth.precision(),
            truth.recall()
        ));
    }
    problems
}

/// The class of a line, or the cause of an incident.
fn kind(text: &str) -> &str {
    match text.split_once("\"cause\":\"") {
        Some((_, rest)) => rest.split('"').next().unwrap_or_default(),
        None => text.split(':').next().unwrap_or_default(),
    }
}

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
