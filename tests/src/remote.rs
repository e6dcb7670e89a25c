//! The remote stack: a TUN device in `web` whose far side is a thread of this program.

use crate::case::{Action, Remote, RemoteRule};
use crate::net::NetNs;
use crate::packet::{ACK, FIN, PSH, RST, SYN, Segment, icmp_error};
use crate::sys;
use anyhow::{Context, Result};
use std::collections::HashMap;
use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::AsRawFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

const DEVICE: &str = "remote0";
/// The remote's initial sequence number: any will do.
const ISS: u32 = 0x5020_0000;
const ANSWER: &[u8] = b"HTTP/1.0 200 OK\r\nContent-Length: 3\r\n\r\nok\n";

/// Answers for the remote prefixes until it is dropped.
#[derive(Debug)]
pub(crate) struct Responder {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Responder {
    pub(crate) fn start(web: &NetNs, remote: &Remote) -> Result<Self> {
        let device =
            web.run(|| sys::open_tun(DEVICE).context("cannot create a TUN device; load the module `tun`"))?;
        let mut setup = format!(
            "addr add 198.51.100.1/24 dev {DEVICE}\naddr add 2001:db8:4::1/64 dev {DEVICE} nodad\n\
             link set {DEVICE} up\n"
        );
        if remote.routes {
            setup +=
                &format!("route add 203.0.113.0/24 dev {DEVICE}\nroute add 2001:db8:5::/64 dev {DEVICE}\n");
        }
        web.ip(&setup)?;
        let stop = Arc::new(AtomicBool::new(false));
        let (seen, rules) = (Arc::clone(&stop), remote.rule.clone());
        let thread = std::thread::spawn(move || Stack::new(device, rules).serve(&seen));
        Ok(Self { stop, thread: Some(thread) })
    }
}

impl Drop for Responder {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::SeqCst);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// One connection by its tuple as the client sees it.
type Tuple = (std::net::IpAddr, u16, std::net::IpAddr, u16);

struct Stack {
    device: File,
    rules: Vec<RemoteRule>,
    syns: HashMap<Tuple, u32>,
    later: Vec<(Instant, Vec<u8>)>,
}

impl Stack {
    fn new(device: File, rules: Vec<RemoteRule>) -> Self {
        Self { device, rules, syns: HashMap::new(), later: Vec::new() }
    }

    fn serve(&mut self, stop: &AtomicBool) {
        let mut buffer = [0; 4096];
        while !stop.load(Ordering::SeqCst) {
            let now = Instant::now();
            let next = self.later.iter().map(|(at, _)| at.saturating_duration_since(now)).min();
            if sys::readable(self.device.as_raw_fd(), next.unwrap_or(POLL).min(POLL))
                && let Ok(length) = self.device.read(&mut buffer)
            {
                self.packet(&buffer[..length]);
            }
            self.flush();
        }
    }

    fn flush(&mut self) {
        let now = Instant::now();
        let (due, later) = std::mem::take(&mut self.later).into_iter().partition(|(at, _)| *at <= now);
        self.later = later;
        let due: Vec<(Instant, Vec<u8>)> = due;
        for (_, packet) in due {
            // A packet that the kernel refuses is a packet lost on the way.
            let _ = self.device.write_all(&packet);
        }
    }

    fn packet(&mut self, packet: &[u8]) {
        let Some(segment) = Segment::parse(packet) else { return };
        let Some(rule) = self.rules.iter().find(|r| {
            r.to.is_none_or(|to| to == segment.to) && r.port.is_none_or(|port| port == segment.to_port)
        }) else {
            return;
        };
        let rule = rule.clone();
        let answer = if segment.flags & (SYN | ACK) == SYN {
            let tuple = (segment.from, segment.from_port, segment.to, segment.to_port);
            let seen = self.syns.entry(tuple).or_insert(0);
            *seen += 1;
            if *seen <= rule.ignore_syns {
                return;
            }
            to_syn(&rule, &segment, packet)
        } else {
            to_data(&rule, &segment)
        };
        if let Some(answer) = answer {
            self.later.push((Instant::now() + Duration::from_millis(rule.delay_ms), answer));
        }
    }
}

/// How often the thread looks whether it should end.
const POLL: Duration = Duration::from_millis(50);

fn to_syn(rule: &RemoteRule, syn: &Segment, packet: &[u8]) -> Option<Vec<u8>> {
    match rule.action {
        Action::Silent => None,
        Action::Rst => Some(syn.reply(0, RST | ACK, b"").bytes(rule.ttl)),
        Action::Icmp => {
            let icmp = rule.icmp?;
            icmp_error(icmp.from.unwrap_or(syn.to), icmp.r#type, icmp.code, packet, rule.ttl)
        }
        Action::Http | Action::SynackThenRst | Action::SynackThenSilent => {
            Some(syn.reply(ISS, SYN | ACK, b"").bytes(rule.ttl))
        }
    }
}

fn to_data(rule: &RemoteRule, segment: &Segment) -> Option<Vec<u8>> {
    let has_data = !segment.payload.is_empty();
    match rule.action {
        Action::Http if has_data => Some(segment.reply(segment.ack, PSH | ACK | FIN, ANSWER).bytes(rule.ttl)),
        Action::Http if segment.flags & FIN != 0 => {
            Some(segment.reply(segment.ack, ACK, b"").bytes(rule.ttl))
        }
        Action::SynackThenRst if has_data => Some(segment.reply(segment.ack, RST, b"").bytes(rule.ttl)),
        Action::Rst
        | Action::Silent
        | Action::Icmp
        | Action::Http
        | Action::SynackThenRst
        | Action::SynackThenSilent => None,
    }
}
