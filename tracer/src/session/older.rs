//! Connections that are older than why502, or than its look at their nginx: each is entered in the kernel's table once, so that
//! its hooks follow it like any other. Nothing is done to the process or to the connection.

use std::{
    collections::{BTreeMap, HashMap},
    time::Duration,
};

use anyhow::{Context as _, Result, anyhow, bail};
use aya::Ebpf;
use tracer_ebpf::{
    older::{Older, UNKNOWN, answer},
    talk::proto,
};

use super::{Snapshot, watch::Watch};
use crate::{
    nginx::{Candidate, Module},
    probes::{
        ask,
        load::{ENTER_OLDER, FIND_PROCESS},
    },
    sys::{
        netns::NetNs,
        owners,
        sockdiag::{self, Listener},
        standing::{self, Standing},
    },
};

/// Looks at a namespace: bytes that pass between a look and its use make it useless for that connection.
const LOOKS: usize = 3;
/// Runs of the walk for one process: 256 processes are passed in each, and a walk that met a freed one begins anew.
const MOST_RUNS: u32 = 4096;
/// Ticks of the kernel's clock are 1, 4 or 10 ms; what is closer together has no order.
const TICK: Duration = Duration::from_millis(12);

/// Enters the upstream connections of the processes that are watched since the last call. Returns their number, and what
/// went wrong.
pub(super) fn enter(ebpf: &Ebpf, watch: &mut Watch) -> (usize, Vec<String>) {
    let mut by_namespace: BTreeMap<u32, Vec<u32>> = BTreeMap::new();
    for pid in watch.take_new() {
        if let Some(netns) = watch.get(pid).and_then(|process| process.netns) {
            by_namespace.entry(netns).or_default().push(pid);
        }
    }
    let mut entered = 0;
    let mut problems = Vec::new();
    for pids in by_namespace.into_values() {
        let mut left = pids;
        for _ in 0..LOOKS {
            match look(ebpf, watch, &left, &mut entered) {
                Ok(changed) => left = changed,
                Err(error) => {
                    let who: Vec<String> = left.iter().map(ToString::to_string).collect();
                    problems.push(format!(
                        "connections of nginx that stood already are not followed (process {}): {error}",
                        who.join(", ")
                    ));
                    break;
                }
            }
            if left.is_empty() {
                break;
            }
        }
    }
    (entered, problems)
}

/// One look at a namespace, and what is to be done for these processes in it. Returns those with connections that must be
/// looked at again.
fn look(ebpf: &Ebpf, watch: &Watch, pids: &[u32], entered: &mut usize) -> Result<Vec<u32>> {
    let Some(ns) = pids.iter().find_map(|pid| NetNs::of_pid(*pid).ok()) else { return Ok(Vec::new()) };
    let listeners = sockdiag::listeners(&ns)?;
    let all: HashMap<u32, Standing> = standing::all(&ns)?
        .into_iter()
        .filter(|one| !is_accepted(one, &listeners))
        .map(|one| (one.inode, one))
        .collect();
    if all.is_empty() {
        return Ok(Vec::new());
    }
    let mut again = Vec::new();
    for pid in pids {
        // Who is gone has no connections any more.
        let (Some(process), Ok(sockets)) = (watch.get(*pid), owners::sockets_of(*pid)) else { continue };
        let mut upstream = sockets.iter().filter_map(|(inode, fd)| Some((*fd, all.get(inode)?))).peekable();
        if upstream.peek().is_none() || !find(ebpf, *pid)? {
            continue;
        }
        let mut changed = false;
        for (fd, one) in upstream {
            match run(ebpf, ENTER_OLDER, &words(&told(*pid, fd, one, &process.config)))? {
                answer::DONE => *entered += 1,
                answer::CHANGED => changed = true,
                answer::FULL => bail!("the table of connections is full (--max-connections makes it larger)"),
                // It is closed by now, or its hooks saw it begin.
                _ => {}
            }
        }
        if changed {
            again.push(*pid);
        }
    }
    Ok(again)
}

/// True for a client's connection: its own address is a listener's. (A port that is chosen for a connection is never that of a
/// listener that it could be mistaken for: `inet_csk_find_open_port`, `__inet_hash_connect`.)
fn is_accepted(one: &Standing, listeners: &[Listener]) -> bool {
    listeners.iter().any(|l| l.local.port() == one.local.port() && l.serves(one.local.ip()))
}

/// Has the kernel side find a process; false if it is not there.
fn find(ebpf: &Ebpf, pid: u32) -> Result<bool> {
    for _ in 0..MOST_RUNS {
        match run(ebpf, FIND_PROCESS, &[u64::from(pid)])? {
            answer::DONE => return Ok(true),
            answer::MORE => {}
            _ => return Ok(false),
        }
    }
    bail!("the kernel's list of processes changes too fast to be read")
}

fn run(ebpf: &Ebpf, name: &str, arguments: &[u64]) -> Result<u32> {
    let program = ebpf.program(name).ok_or_else(|| anyhow!("the BPF object has no program {name}"))?;
    ask::run(program, arguments)
        .with_context(|| format!("the kernel does not run the program {name} by itself"))
}

fn words(told: &Older) -> [u64; 8] {
    [told.tgid, told.fd, told.inode, told.proto, told.sent_us, told.read_us, told.received, told.sent]
}

fn told(pid: u32, fd: u32, one: &Standing, config: &Snapshot) -> Older {
    let mut candidates = config.candidates(one.remote);
    config.model.add_settings(&mut candidates);
    let proto = spoken(&candidates);
    let us = |ago: Duration| u64::try_from(ago.as_micros()).unwrap_or(UNKNOWN);
    let waits = waits(one, &candidates, proto);
    Older {
        tgid: u64::from(pid),
        fd: u64::from(fd),
        inode: u64::from(one.inode),
        proto: u64::from(proto),
        sent_us: if waits { us(one.sent_ago) } else { UNKNOWN },
        read_us: if one.received > 0 { us(one.received_ago) } else { UNKNOWN },
        received: one.received,
        sent: one.sent,
    }
}

/// What nginx speaks there, if all lines that lead there agree.
fn spoken(candidates: &[Candidate]) -> u32 {
    let of = |candidate: &Candidate| match (candidate.settings.tls, candidate.module) {
        (Some(true), _) => proto::TLS,
        (None, _) | (_, Module::Stream) => proto::OTHER,
        (_, Module::Proxy) => match candidate.settings.get("http_version").and_then(|v| v.value.as_deref()) {
            Some("1.0" | "1.1") => proto::HTTP,
            _ => proto::OTHER,
        },
        (_, Module::Fastcgi) => proto::FASTCGI,
        (_, Module::Uwsgi | Module::Scgi) => proto::CGI,
        (_, Module::Grpc) => proto::HTTP2,
        (_, Module::Memcached) => proto::MEMCACHED,
    };
    let mut all = candidates.iter().map(of);
    let Some(first) = all.next() else { return proto::OTHER };
    if all.all(|other| other == first) { first } else { proto::OTHER }
}

/// True if a request is out and not a byte has come back for it. An idle connection can look like that where either side may
/// write last (HTTP/2, TLS, what was upgraded); those are taken for idle, unless nothing was ever received.
fn waits(one: &Standing, candidates: &[Candidate], proto: u32) -> bool {
    if candidates.is_empty() || candidates.iter().any(|c| c.module == Module::Stream) || one.sent == 0 {
        return false;
    }
    match proto {
        proto::HTTP | proto::CGI if one.received == 0 => true,
        proto::FASTCGI | proto::MEMCACHED => one.received == 0 || one.sent_ago + TICK < one.received_ago,
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::nginx::InForces;

    fn standing(sent: u64, received: u64, sent_ms: u64, received_ms: u64) -> Standing {
        Standing {
            local: "10.0.0.1:40000".parse().unwrap(),
            remote: "10.0.0.2:3000".parse().unwrap(),
            inode: 7,
            sent_ago: Duration::from_millis(sent_ms),
            received_ago: Duration::from_millis(received_ms),
            sent,
            received,
        }
    }

    fn candidate(module: Module, tls: Option<bool>) -> Candidate {
        let mut settings = InForces::default().with("http_version", "proxy_http_version", "1.1", None);
        settings.tls = tls;
        Candidate {
            upstream: None,
            server: String::new(),
            module,
            lines: Vec::new(),
            connect_timeouts: Vec::new(),
            barred: crate::nginx::Barred::default(),
            settings,
            exact: true,
            upstream_server: None,
            passes: Vec::new(),
        }
    }

    #[test]
    fn what_is_spoken() {
        let plain = |module| candidate(module, Some(false));
        assert_eq!(spoken(&[plain(Module::Proxy), plain(Module::Proxy)]), proto::HTTP);
        assert_eq!(spoken(&[plain(Module::Proxy), plain(Module::Fastcgi)]), proto::OTHER);
        assert_eq!(spoken(&[candidate(Module::Proxy, Some(true))]), proto::TLS);
        assert_eq!(spoken(&[candidate(Module::Proxy, None)]), proto::OTHER);
        assert_eq!(spoken(&[plain(Module::Stream)]), proto::OTHER);
        assert_eq!(spoken(&[]), proto::OTHER);
    }

    #[test]
    fn who_waits_for_an_answer() {
        let http = [candidate(Module::Proxy, Some(false))];
        let fastcgi = [candidate(Module::Fastcgi, Some(false))];
        let stream = [candidate(Module::Stream, Some(false))];
        for (name, one, candidates, proto, expect) in [
            ("nothing came yet", standing(90, 0, 500, 500), &http[..], proto::HTTP, true),
            ("nothing was sent", standing(0, 0, 500, 500), &http[..], proto::HTTP, false),
            ("it was answered, and may be upgraded", standing(90, 9, 5, 500), &http[..], proto::HTTP, false),
            ("FastCGI cannot be", standing(90, 9, 5, 500), &fastcgi[..], proto::FASTCGI, true),
            ("in the same tick", standing(90, 9, 495, 500), &fastcgi[..], proto::FASTCGI, false),
            ("it is idle", standing(90, 9, 500, 5), &fastcgi[..], proto::FASTCGI, false),
            ("who speaks first is not known", standing(90, 0, 5, 5), &stream[..], proto::OTHER, false),
            ("nobody knows what it is", standing(90, 0, 5, 5), &[], proto::OTHER, false),
        ] {
            assert_eq!(waits(&one, candidates, proto), expect, "{name}");
        }
    }

    #[test]
    fn whose_connection_it_is() {
        let listener = |local: &str| Listener::at(local.parse().unwrap());
        let one = standing(1, 1, 1, 1);
        for (local, accepted) in [
            ("0.0.0.0:40000", true),
            ("10.0.0.1:40000", true),
            ("[::]:40000", true),
            ("10.0.0.9:40000", false),
            ("0.0.0.0:80", false),
        ] {
            assert_eq!(is_accepted(&one, &[listener(local)]), accepted, "{local}");
        }
    }
}
