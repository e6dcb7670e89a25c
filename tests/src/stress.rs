//! Two long runs: a million failed connections that must leave nothing behind, and a hundred thousand healthy
//! requests that must say nothing at all.

use crate::case::{Listen, ListenMode, Nginx as Settings};
use crate::client;
use crate::listen;
use crate::net::{self, NetNs, World};
use crate::nginx::Nginx;
use crate::report;
use crate::sys;
use crate::watch::{End, Program, Start, Watch};
use anyhow::{Context, Result, bail};
use serde_json::Value;
use std::collections::BTreeMap;
use std::io::BufReader;
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

const NGINX: &str = "127.0.0.1:8080";
const BACKEND: &str = "127.0.0.1:3000";
/// Refused servers that nginx tries for each request of the leak run.
const FAN_OUT: u64 = 100;

#[derive(Debug)]
pub(crate) struct Options {
    pub(crate) program: Option<Program>,
    pub(crate) clients: usize,
    pub(crate) slow: f64,
}

/// Opens and fails at least `connects` upstream connections; then `summary.maps.conns` must be `baseline` at most.
pub(crate) fn leak(options: &Options, connects: u64, baseline: u64) -> Result<bool> {
    let servers: String =
        (0..FAN_OUT).map(|n| format!("server 127.0.0.1:{} max_fails=0; ", 10_000 + n)).collect();
    let conf = format!(
        "upstream dead {{ {servers} }}\n\
         server {{ listen {NGINX}; keepalive_requests 1000000000; access_log off;\n\
         location / {{ proxy_pass http://dead; }} }}"
    );
    let requests = connects.div_ceil(FAN_OUT);
    let run = drive(options, &conf, requests, 502, false)?;
    let Some(end) = run.end else { return Ok(true) };
    let mut problems = end.problems;
    let number = |pointer| end.summary.as_ref().and_then(|s| s.pointer(pointer)).and_then(Value::as_u64);
    let incidents: u64 = end.counts.values().sum();
    // A flood outruns the reader: equal failures are counted then, and none is lost.
    let (counted, lost, left) = (number("/counted"), number("/events_lost"), number("/maps/conns"));
    report::say(&format!(
        "leak: {} connects, {incidents} incidents {:?}, {counted:?} of them counted, {lost:?} lost, {left:?} connections left in the map",
        run.done * FAN_OUT,
        end.counts
    ));
    match left {
        Some(left) if left <= baseline => {}
        Some(left) => problems.push(format!("{left} entries left in the connection map, at most {baseline}")),
        None => problems.push("the summary has no maps.conns".to_owned()),
    }
    if incidents != run.done * FAN_OUT {
        problems.push(format!("{incidents} incidents are not the {} attempts", run.done * FAN_OUT));
    }
    if lost != Some(0) {
        problems.push(format!("{lost:?} events were lost"));
    }
    if counted.is_none_or(|counted| counted == 0) {
        problems.push("a flood in which no equal failures were counted".to_owned());
    }
    Ok(verdict(&problems, &end.stderr))
}

/// Sends `requests` through nginx with a new upstream connection each: no incident, no ring-buffer record.
pub(crate) fn healthy(options: &Options, requests: u64) -> Result<bool> {
    let conf = format!(
        "server {{ listen {NGINX}; keepalive_requests 1000000000; access_log off;\n\
         location / {{ proxy_pass http://{BACKEND}; }} }}"
    );
    let run = drive(options, &conf, requests, 200, true)?;
    let Some(end) = run.end else { return Ok(true) };
    let mut problems = end.problems;
    let incidents: u64 = end.counts.values().sum();
    if incidents != 0 {
        problems.push(format!("{incidents} incidents of a healthy run: {:?}", end.counts));
    }
    match end.summary.as_ref().and_then(|s| s.get("ring_records")).and_then(Value::as_u64) {
        Some(0) => {}
        records => problems.push(format!("summary.ring_records must be 0, is {records:?}")),
    }
    report::say(&format!("healthy: {} requests, {incidents} incidents", run.done));
    Ok(verdict(&problems, &end.stderr))
}

pub(crate) fn verdict(problems: &[String], stderr: &str) -> bool {
    for problem in problems {
        report::say(&format!("failed: {problem}"));
    }
    if !problems.is_empty() {
        report::note(&format!("why502's stderr:\n{stderr}"));
    }
    report::say(&format!(
        "{} passed, {} failed, 0 skipped",
        usize::from(problems.is_empty()),
        usize::from(!problems.is_empty())
    ));
    problems.is_empty()
}

struct Run {
    done: u64,
    /// None: without why502, or the tier is not to be had (said already).
    end: Option<End>,
}

pub(crate) struct Scratch(pub(crate) PathBuf);

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

fn drive(options: &Options, conf: &str, requests: u64, status: u16, backend: bool) -> Result<Run> {
    let bound = Duration::from_secs_f64(15.0 * options.slow);
    let watch = match options.program.as_ref().map(|p| Watch::start(p, bound)).transpose()? {
        Some(Start::Refused(why)) => {
            report::say(&format!("skip {}\n0 passed, 0 failed, 1 skipped", why.lines().last().unwrap_or("")));
            return Ok(Run { done: 0, end: None });
        }
        Some(Start::Running(watch)) => Some(watch),
        None => None,
    };
    let scratch = Scratch(std::env::temp_dir().join(format!("w502-{}", net::tag())));
    let done = scene(options, conf, requests, status, backend, watch.as_ref(), &scratch.0)?;
    let end = watch.map(|w| w.finish(bound));
    Ok(Run { done, end })
}

fn scene(
    options: &Options,
    conf: &str,
    requests: u64,
    status: u16,
    backend: bool,
    watch: Option<&Watch>,
    dir: &Path,
) -> Result<u64> {
    let bound = Duration::from_secs_f64(15.0 * options.slow);
    let world = World::create(&BTreeMap::new())?;
    let web = &world.web;
    web.run(|| {
        std::fs::write("/proc/sys/net/ipv4/ip_local_port_range", "16384 65000")?;
        Ok(())
    })?;
    let listen = Listen {
        address: BACKEND.to_owned(),
        mode: ListenMode::Http,
        backlog: 1024,
        delay_ms: 0,
        status: 200,
        names: BTreeMap::new(),
    };
    let held = if backend { Some(listen::listen(web, &listen, Path::new("."), 4, bound)?) } else { None };
    let settings = Settings {
        main: "error_log /dev/null crit;\n".to_owned(),
        ..Settings::plain(conf.to_owned(), NGINX)
    };
    std::fs::create_dir_all(dir.join("tmp")).with_context(|| format!("cannot create {}", dir.display()))?;
    let nginx = Nginx::start(web, &settings, dir, bound)?;
    if let Some(watch) = watch {
        sys::poll_until(Duration::from_secs(10), || watch.names_process(nginx.pid));
    }
    let start = Instant::now();
    let done = clients(web, options.clients, requests, status, bound)?;
    let seconds = start.elapsed().as_secs_f64();
    report::say(&format!("{done} requests in {seconds:.1} s"));
    if let Some(held) = &held {
        report::say(&format!("the backend answered {}", held.served.load(Ordering::Relaxed)));
    }
    if let Some(watch) = watch {
        stand_still(watch);
    }
    Nginx::stop_all(web, bound);
    Ok(done)
}

/// The stream is behind: waits until it stands still.
pub(crate) fn stand_still(watch: &Watch) {
    let mut last = watch.count();
    loop {
        let before = last;
        sys::poll_until(Duration::from_secs(3), || watch.count() > before);
        last = watch.count();
        if last == before || sys::interrupted() {
            break;
        }
    }
}

/// Sends the requests from several keep-alive clients; every answer must have `status`.
fn clients(web: &NetNs, clients: usize, requests: u64, status: u16, bound: Duration) -> Result<u64> {
    let (next, done) = (AtomicU64::new(0), AtomicU64::new(0));
    let one = || -> Result<()> {
        sys::enter(web.fd())?;
        let stream = TcpStream::connect(NGINX)?;
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(bound))?;
        let mut reader = BufReader::new(stream);
        while next.fetch_add(1, Ordering::Relaxed) < requests && !sys::interrupted() {
            let got = client::exchange(&mut reader, "GET / HTTP/1.1\r\nHost: shop.example.com\r\n\r\n")?;
            if got != status {
                bail!("status {got}, expected {status}");
            }
            done.fetch_add(1, Ordering::Relaxed);
        }
        Ok(())
    };
    std::thread::scope(|scope| {
        let threads: Vec<_> = (0..clients.max(1)).map(|_| scope.spawn(one)).collect();
        for thread in threads {
            match thread.join() {
                Ok(result) => result?,
                Err(_) => bail!("a client thread panicked"),
            }
        }
        Ok(())
    })?;
    Ok(done.into_inner())
}
