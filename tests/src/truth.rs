//! The truth test of requests: very many, side by side, over good and bad upstreams; each has a target of its own
//! and, where nginx can be told so, a server address of its own. No incident may name a request that is not its own.

use crate::case::{Listen, ListenMode, Nginx as Settings};
use crate::client;
use crate::judge::text;
use crate::listen;
use crate::net::{self, NetNs, World};
use crate::nginx::Nginx;
use crate::report;
use crate::stress::{self, Options, Scratch};
use crate::sys;
use crate::watch::{Start, Watch};
use anyhow::{Context, Result, bail};
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};
use std::io::{BufReader, Write};
use std::net::{Ipv4Addr, TcpStream};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

const NGINX: &str = "127.0.0.1:8080";

/// What becomes of a request: its location, the status that its client sees, the port of its dead server, and
/// whether that server's address is the request's own.
struct Fate {
    name: &'static str,
    status: u16,
    dead: u16,
    own: bool,
    /// How often it is played, of all.
    weight: u64,
}

const fn fate(name: &'static str, status: u16, dead: u16, own: bool, weight: u64) -> Fate {
    Fate { name, status, dead, own, weight }
}

/// Ports: 3000 answers and closes, 3001 keeps its connections, 3002 answers after 50 ms; 20001 and on are dead, 20009
/// swallows SYNs.
const FATES: &[Fate] = &[
    fate("static", 200, 0, false, 4),
    fate("ok", 200, 0, false, 4),
    fate("okka", 200, 0, false, 4),
    fate("bad", 502, 20_001, true, 6),
    fate("retry", 200, 20_002, false, 4),
    fate("retryka", 200, 20_003, false, 4),
    fate("three", 200, 20_004, false, 2),
    fate("slow", 200, 20_005, true, 2),
    fate("limit", 502, 20_006, true, 5),
    fate("limitok", 200, 0, false, 3),
    fate("limitstatic", 200, 0, false, 3),
    fate("auth", 500, 20_007, true, 3),
    fate("authok", 502, 20_008, true, 3),
    fate("timeout", 504, 20_009, true, 1),
    fate("masked", 200, 20_010, true, 3),
    fate("fallback", 200, 20_011, true, 3),
    fate("mirror", 200, 20_012, true, 3),
    fate("mirrorka", 200, 20_013, true, 3),
];

const CONF: &str = r#"
limit_req_zone $server_name zone=slow:1m rate=400r/s;
upstream retry { server 127.0.0.1:20002 max_fails=0; server 127.0.0.1:3000 max_fails=0; }
upstream retryka { server 127.0.0.1:20003 max_fails=0; server 127.0.0.1:3001 max_fails=0; keepalive 16; }
upstream three {
    server 127.0.0.1:20004 max_fails=0; server 127.0.0.2:20004 max_fails=0; server 127.0.0.1:3000 max_fails=0;
}
upstream kept { server 127.0.0.1:3001 max_fails=0; keepalive 16; }
proxy_http_version 1.1;
proxy_set_header Connection "";
proxy_connect_timeout 5s;
server {
    listen 127.0.0.1:8080 backlog=1024;
    keepalive_requests 1000000000;
    access_log off;
    location ~ ^/static/ { return 200 "x"; }
    location ~ ^/ok/ { proxy_pass http://127.0.0.1:3000; }
    location ~ ^/okka/ { proxy_pass http://kept; }
    location ~ ^/bad/\d+/(?<far>[\d.]+)$ { proxy_pass http://$far:20001; }
    location ~ ^/retry/ { proxy_pass http://retry; }
    location ~ ^/retryka/ { proxy_pass http://retryka; }
    location ~ ^/three/ { proxy_pass http://three; }
    location ~ ^/slow/\d+/(?<far>[\d.]+)$ { proxy_pass http://$far:20005; error_page 502 = @slow; }
    location @slow { proxy_pass http://127.0.0.1:3002; }
    location ~ ^/limit/\d+/(?<far>[\d.]+)$ { limit_req zone=slow burst=100000; proxy_pass http://$far:20006; }
    location ~ ^/limitok/ { limit_req zone=slow burst=100000; proxy_pass http://127.0.0.1:3000; }
    location ~ ^/limitstatic/ { limit_req zone=slow burst=100000; stub_status; }
    location ~ ^/auth/\d+/(?<far>[\d.]+)$ { auth_request /authbad; proxy_pass http://127.0.0.1:3000; }
    location = /authbad { internal; proxy_pass_request_body off; proxy_pass http://$far:20007; }
    location ~ ^/authok/\d+/(?<far>[\d.]+)$ { auth_request /authgood; proxy_pass http://$far:20008; }
    location = /authgood { internal; proxy_pass_request_body off; proxy_pass http://127.0.0.1:3000; }
    location ~ ^/timeout/\d+/(?<far>[\d.]+)$ { proxy_connect_timeout 100ms; proxy_pass http://$far:20009; }
    location ~ ^/masked/\d+/(?<far>[\d.]+)$ { proxy_pass http://$far:20010; error_page 502 =200 /static/masked; }
    location ~ ^/fallback/\d+/(?<far>[\d.]+)$ { proxy_pass http://$far:20011; error_page 502 = @kept; }
    location @kept { proxy_pass http://kept; }
    location ~ ^/mirror/\d+/(?<far>[\d.]+)$ { mirror /mirrored; proxy_pass http://127.0.0.1:3000; }
    location = /mirrored { internal; proxy_pass http://$far:20012; }
    location ~ ^/mirrorka/\d+/(?<far>[\d.]+)$ { mirror /mirroredka; proxy_pass http://kept; }
    location = /mirroredka { internal; proxy_pass http://$far:20013; }
}
"#;

/// A request as its client saw it.
#[derive(Debug, Clone)]
struct Sent {
    fate: usize,
    /// The server address of its own.
    far: Ipv4Addr,
    method: &'static str,
    client: String,
    status: u16,
    manner: Manner,
}

impl Sent {
    fn target(&self, id: u64) -> String {
        format!("/{}/{id}/{}", FATES[self.fate].name, self.far)
    }
}

struct Dice(u64);

impl Dice {
    fn roll(&mut self, sides: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % sides
    }

    fn fate(&mut self) -> usize {
        let mut at = self.roll(FATES.iter().map(|f| f.weight).sum());
        for (index, fate) in FATES.iter().enumerate() {
            if at < fate.weight {
                return index;
            }
            at -= fate.weight;
        }
        0
    }
}

/// Sends the requests and compares every incident with the fate of its request.
pub(crate) fn run(options: &Options, requests: u64, workers: u32) -> Result<bool> {
    let bound = Duration::from_secs_f64(15.0 * options.slow);
    let Some(program) = &options.program else { bail!("this run needs --why502 PATH") };
    let watch = match Watch::start(program, bound)? {
        Start::Refused(why) => {
            report::say(&format!("skip {}\n0 passed, 0 failed, 1 skipped", why.lines().last().unwrap_or("")));
            return Ok(true);
        }
        Start::Running(watch) => watch,
    };
    let scratch = Scratch(std::env::temp_dir().join(format!("w502-{}", net::tag())));
    let world = World::create(&BTreeMap::new())?;
    let web = &world.web;
    let mut held = Vec::new();
    for (port, mode, delay_ms) in
        [(3000, ListenMode::Http, 0), (3001, ListenMode::HttpKeepalive, 0), (3002, ListenMode::Http, 50)]
    {
        let listen = Listen {
            address: format!("127.0.0.1:{port}"),
            mode,
            backlog: 1024,
            delay_ms,
            status: 200,
            names: BTreeMap::new(),
        };
        held.push(listen::listen(web, &listen, &scratch.0, 24, bound)?);
    }
    net::command_ok(
        web.command("nft")
            .args(["add table ip t; add chain ip t o { type filter hook output priority 0; }; \
         add rule ip t o tcp dport 20009 drop"]),
    )?;
    let settings = Settings {
        main: "error_log /dev/null crit;\n".to_owned(),
        workers,
        ..Settings::plain(CONF.to_owned(), NGINX)
    };
    std::fs::create_dir_all(scratch.0.join("tmp"))?;
    let nginx = Nginx::start(web, &settings, &scratch.0, bound)?;
    sys::poll_until(Duration::from_secs(1), || watch.names_process(nginx.pid));
    let pids: BTreeSet<u32> = web.pids().into_iter().collect();
    let start = Instant::now();
    let sent = clients(web, options.clients, requests, bound)?;
    let seconds = start.elapsed().as_secs_f64();
    report::say(&format!("{} requests in {seconds:.1} s, {workers} workers", sent.len()));
    stress::stand_still(&watch);
    let incidents = watch.incidents(&pids);
    Nginx::stop_all(web, bound);
    drop(held);
    let end = watch.finish(bound);
    let mut problems = end.problems;
    problems.extend(judge(&sent, &incidents));
    Ok(stress::verdict(&problems, &end.stderr))
}

/// Every incident against the requests; what is wrong.
fn judge(sent: &BTreeMap<u64, Sent>, incidents: &[Value]) -> Vec<String> {
    let mut problems = Vec::new();
    // By fate: incidents, with the whole request, with the client alone.
    let mut tally: BTreeMap<&str, [u32; 3]> = BTreeMap::new();
    let mut notes: BTreeMap<&str, u32> = BTreeMap::new();
    let mut manners: BTreeMap<Manner, [u32; 2]> = BTreeMap::new();
    let owners: BTreeMap<(String, u16), u64> = sent
        .iter()
        .filter(|(_, s)| FATES[s.fate].own)
        .map(|(id, s)| ((s.far.to_string(), FATES[s.fate].dead), *id))
        .collect();
    for incident in incidents {
        let address = text(incident, "/upstream/address");
        let (ip, port) = address.rsplit_once(':').unwrap_or(("", ""));
        let port = port.parse().unwrap_or(0);
        let fate = FATES.iter().position(|f| f.dead == port && port != 0);
        let Some(fate) = fate else {
            problems.push(format!("an incident of {address}, which is no dead server: {incident}"));
            continue;
        };
        let count = tally.entry(FATES[fate].name).or_default();
        count[0] += 1;
        let client = text(incident, "/request/client");
        let target = text(incident, "/request/target");
        let note = text(incident, "/request/note");
        if !note.is_empty() {
            *notes.entry(note).or_default() += 1;
        }
        let owner = owners.get(&(ip.to_owned(), port));
        if let Some(manner) = owner.and_then(|id| sent.get(id)).map(|s| s.manner)
            && !FATES[fate].name.starts_with("mirror")
        {
            let count = manners.entry(manner).or_default();
            count[0] += 1;
            count[1] += u32::from(!target.is_empty());
        }
        if target.is_empty() && client.is_empty() {
            continue;
        }
        count[if target.is_empty() { 2 } else { 1 }] += 1;
        if let Some(wrong) = wrong(sent, fate, owner, incident) {
            problems.push(format!("{wrong}: {incident}"));
        }
    }
    let mut sums = [0_u32; 3];
    for (name, count) in &tally {
        report::say(&format!(
            "  {name:<12} {:>6} incidents, {:>6} requests known, {:>6} clients",
            count[0], count[1], count[2]
        ));
        sums.iter_mut().zip(count).for_each(|(sum, count)| *sum += count);
    }
    for (note, count) in &notes {
        report::say(&format!("  {count:>6} {note}"));
    }
    report::say(&format!(
        "requests: {} incidents, {} with their request ({:.2} %), {} with their client alone, {} wrong",
        sums[0],
        sums[1],
        f64::from(sums[1]) * 100.0 / f64::from(sums[0].max(1)),
        sums[2],
        problems.len()
    ));
    for (manner, [all, known]) in &manners {
        report::say(&format!("  {manner:?}: {known} of {all} requests with a server of their own are known"));
        let percent = match manner {
            Manner::Keepalive | Manner::Single => 90,
            Manner::Posts => 75,
            Manner::Pipelined | Manner::Hostile => 0,
        };
        if known * 100 < all * percent {
            problems.push(format!("{manner:?}: less than {percent} % of the requests are known"));
        }
    }
    problems.truncate(20);
    problems
}

/// Why the request that the incident names cannot be its own.
fn wrong(sent: &BTreeMap<u64, Sent>, fate: usize, owner: Option<&u64>, incident: &Value) -> Option<String> {
    let client = text(incident, "/request/client");
    let target = text(incident, "/request/target");
    if target.is_empty() {
        // The client alone: that of the one whose server it is.
        let own = owner.and_then(|id| sent.get(id))?;
        return (own.client != client).then(|| format!("the client is {}", own.client));
    }
    let Some(id) = target.split('/').nth(2).and_then(|id| id.parse::<u64>().ok()) else {
        return Some("a target that nobody sent".to_owned());
    };
    let Some(named) = sent.get(&id) else { return Some("a request that nobody sent".to_owned()) };
    let saw = incident.pointer("/attempt/client_saw").and_then(Value::as_u64);
    if named.target(id) != target {
        return Some(format!("the target was {}", named.target(id)));
    }
    if named.fate != fate {
        return Some("that server is of another location".to_owned());
    }
    if FATES[fate].own && owner != Some(&id) {
        return Some(format!("that server's request is {owner:?}"));
    }
    if text(incident, "/request/method") != named.method
        || text(incident, "/request/host") != "shop.example.com"
    {
        return Some(format!("it was a {}", named.method));
    }
    if client != named.client {
        return Some(format!("the client was {}", named.client));
    }
    let unseen = saw.is_none() && !text(incident, "/request/note").is_empty();
    if !unseen && saw != Some(u64::from(named.status)) {
        return Some(format!("the client saw {}", named.status));
    }
    None
}

/// How a client behaves.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Manner {
    /// One connection for all.
    Keepalive,
    /// A connection each.
    Single,
    /// Some requests in one write.
    Pipelined,
    /// With bodies of a kilobyte.
    Posts,
    /// With such bodies behind requests that are answered first, and as if they were requests themselves.
    Hostile,
}

const MANNERS: [Manner; 8] = [
    Manner::Keepalive,
    Manner::Single,
    Manner::Keepalive,
    Manner::Pipelined,
    Manner::Keepalive,
    Manner::Posts,
    Manner::Single,
    Manner::Hostile,
];

fn clients(web: &NetNs, clients: usize, requests: u64, bound: Duration) -> Result<BTreeMap<u64, Sent>> {
    let next = AtomicU64::new(1);
    let all = Mutex::new(BTreeMap::new());
    let one = |index: usize| -> Result<()> {
        sys::enter(web.fd())?;
        let mut client = Client {
            dice: Dice(0x9e37_79b9_7f4a_7c15 ^ (index as u64 + 1)),
            manner: MANNERS[index % MANNERS.len()],
            bound,
            open: None,
            sent: BTreeMap::new(),
        };
        while !sys::interrupted() {
            let id = next.fetch_add(3, Ordering::Relaxed);
            if id > requests {
                break;
            }
            client.play(id).with_context(|| format!("{:?} at request {id}", client.manner))?;
        }
        all.lock().unwrap_or_else(PoisonError::into_inner).extend(client.sent);
        Ok(())
    };
    std::thread::scope(|scope| {
        let threads: Vec<_> = (0..clients.max(1)).map(|index| scope.spawn(move || one(index))).collect();
        for thread in threads {
            match thread.join() {
                Ok(result) => result?,
                Err(_) => bail!("a client thread panicked"),
            }
        }
        Ok(())
    })?;
    Ok(all.into_inner().unwrap_or_else(PoisonError::into_inner))
}

struct Client {
    dice: Dice,
    manner: Manner,
    bound: Duration,
    open: Option<BufReader<TcpStream>>,
    sent: BTreeMap<u64, Sent>,
}

impl Client {
    /// Sends the requests `id`, `id + 1` and `id + 2`.
    fn play(&mut self, id: u64) -> Result<()> {
        match self.manner {
            Manner::Keepalive => (id..id + 3).try_for_each(|id| {
                let fate = self.dice.fate();
                self.exchange(id, fate, "GET")
            }),
            Manner::Single => (id..id + 3).try_for_each(|id| {
                let fate = self.dice.fate();
                self.exchange(id, fate, "GET")?;
                self.open = None;
                Ok(())
            }),
            Manner::Pipelined => self.pipeline(id),
            Manner::Posts | Manner::Hostile => self.bodies(id),
        }
    }

    fn connection(&mut self) -> Result<&mut BufReader<TcpStream>> {
        if self.open.is_none() {
            let stream = TcpStream::connect(NGINX)?;
            stream.set_nodelay(true)?;
            stream.set_read_timeout(Some(self.bound))?;
            self.open = Some(BufReader::new(stream));
        }
        self.open.as_mut().context("just opened")
    }

    /// Notes a request and gives its first line and Host header.
    fn head(&mut self, id: u64, fate: usize, method: &'static str) -> Result<String> {
        let client = self.connection()?.get_ref().local_addr()?.to_string();
        let [_, a, b, c] = u32::try_from(id)?.to_be_bytes();
        let far = Ipv4Addr::new(127, a.wrapping_add(1), b, c);
        let sent = Sent { fate, far, method, client, status: FATES[fate].status, manner: self.manner };
        let head = format!("{method} {} HTTP/1.1\r\nHost: shop.example.com\r\n", sent.target(id));
        self.sent.insert(id, sent);
        Ok(head)
    }

    /// Reads the answer to a request.
    fn answer(&mut self, id: u64, send: &str) -> Result<()> {
        let got = client::exchange(self.connection()?, send)?;
        let sent = self.sent.get(&id).context("not sent")?;
        if got != sent.status {
            bail!("{}: status {got}, expected {}", sent.target(id), sent.status);
        }
        if got == 500 {
            // After which nginx keeps no connection.
            self.open = None;
        }
        Ok(())
    }

    fn exchange(&mut self, id: u64, fate: usize, method: &'static str) -> Result<()> {
        let head = self.head(id, fate, method)? + "\r\n";
        self.answer(id, &head)
    }

    /// Three requests at once, or the last one cut in two.
    fn pipeline(&mut self, id: u64) -> Result<()> {
        let mut all = String::new();
        for id in id..id + 3 {
            let mut fate = self.dice.fate();
            while FATES[fate].status == 500 {
                fate = self.dice.fate();
            }
            all += &self.head(id, fate, "GET")?;
            all += "\r\n";
        }
        let cut = if self.dice.roll(2) == 0 { all.len() } else { all.len() - self.dice.roll(60) as usize };
        self.connection()?.get_mut().write_all(&all.as_bytes()[..cut])?;
        self.answer(id, "")?;
        self.answer(id + 1, &all[cut..])?;
        self.answer(id + 2, "")
    }

    /// A body that comes late, one behind an answer that looks like a request that nginx has parsed, and a request.
    fn bodies(&mut self, id: u64) -> Result<()> {
        let fate = |name: &str| FATES.iter().position(|f| f.name == name).context("no such fate");
        let evil = |nul: bool| {
            let marks = if nul { "Host\0 evil\0\n\0\r\n" } else { "Host: evil\r\n\r\n" };
            let mut body = format!("GET /bad/999999/127.9.9.9 HTTP/1.1\r\n{marks}");
            body += &"x".repeat(1024 - body.len());
            body
        };
        let nul = self.dice.roll(2) == 0;
        let body = evil(nul);
        let post = |head: String| format!("{head}Content-Length: {}\r\n\r\n", body.len());
        match self.dice.roll(3) {
            0 => {
                let bad = self.dice.fate();
                let no_post = ["mirror", "mirrorka", "limitstatic"].contains(&FATES[bad].name);
                let bad = if no_post { fate("bad")? } else { bad };
                let head = self.head(id, bad, "POST")?;
                self.connection()?.get_mut().write_all(post(head).as_bytes())?;
                std::thread::sleep(Duration::from_millis(1));
                self.answer(id, &body)?;
            }
            1 => {
                let head = self.head(id, fate("bad")?, "POST")?;
                let head = format!("{head}Expect: 100-continue\r\nContent-Length: {}\r\n\r\n", body.len());
                let got = client::exchange(self.connection()?, &head)?;
                if got == 100 {
                    self.answer(id, &body)?;
                } else {
                    bail!("100 expected, got {got}");
                }
            }
            _ => {
                let bad = fate("bad")?;
                let head = self.head(id, bad, "POST")?;
                self.answer(id, &(post(head) + &body))?;
            }
        }
        if self.manner == Manner::Posts {
            let any = self.dice.fate();
            self.exchange(id + 1, any, "GET")?;
            let head = self.head(id + 2, fate("bad")?, "POST")?;
            return self.answer(id + 2, &(head + "Content-Length: 3\r\n\r\na=b"));
        }
        // The head of a POST behind a request that is answered first; its body is all that is read next.
        let first = self.head(id + 1, fate("static")?, "GET")? + "\r\n";
        let second = self.head(id + 2, fate("bad")?, "POST")?;
        let both = first + &post(second);
        self.answer(id + 1, &both)?;
        self.answer(id + 2, &body)
    }
}
