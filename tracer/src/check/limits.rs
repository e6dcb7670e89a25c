//! Limits that are near: file descriptors, connections of a worker, local ports, accept queues of local backends.

use std::{
    collections::{BTreeSet, HashMap},
    net::SocketAddr,
    thread,
    time::{Duration, Instant},
};

use super::{
    Checked, Finding, Name, Options, Place, Report, Severity, Subject,
    position::worker,
    probe::Where,
    targets::{self, Target},
    upstreams::{places, shown},
};
use crate::{
    diagnose::{Cause, Confidence, Evidence, Fix},
    nginx::{
        model::{Model, Role},
        tree::NodeId,
    },
    sys::{
        netns::NetNs,
        process::{self, Process},
        route, sockdiag, sysctl,
    },
};

const BELOW: &str = "fd-limit-below-connections";
const FDS: &str = "fd-limit-near";
const CONNECTIONS: &str = "worker-connections-near";
const PORTS: &str = "local-ports-near";
const QUEUE: &str = "accept-queue-near";

/// What is found here.
pub const NAMES: &[Name] = &[
    (BELOW, "a worker may have fewer file descriptors than connections"),
    (FDS, "nearly all file descriptors of a worker, or of the host, are open"),
    (CONNECTIONS, "nearly all connections that a worker may have are open"),
    (PORTS, "nearly all local ports towards one upstream server are taken"),
    (QUEUE, "the accept queue of a local backend stays nearly full"),
];

/// What nginx takes if nothing sets worker_connections (ngx_event.c, DEFAULT_CONNECTIONS).
const CONNECTIONS_BY_DEFAULT: u64 = 512;
/// How long ports are counted: each count walks the kernel's whole table.
const FOR_PORTS: Duration = Duration::from_secs(1);
/// Between two looks at a queue: a burst is over by then, a backend that does not accept is not.
const BETWEEN: Duration = Duration::from_millis(150);

/// Nine tenths: what is left lasts for a burst no longer.
fn is_near(used: u64, most: u64) -> bool {
    most > 0 && used.saturating_mul(10) >= most.saturating_mul(9)
}

/// Looks at all of them.
#[must_use]
pub fn inspect(subject: &Subject<'_>, _: &Options) -> Report {
    let mut report = Report::default();
    let model = &subject.snapshot.model;
    let (wanted, line) = worker_connections(model);
    let mut fullest: Option<(u64, u64)> = None;
    for one in subject.workers.iter().filter(|worker| worker.role.serves()) {
        let Ok(usage) = process::fd_usage(one.pid) else { continue };
        if fullest.is_none_or(|(open, soft)| usage.open * soft.max(1) > open * usage.soft.max(1)) {
            fullest = Some((usage.open, usage.soft));
        }
        let known = |name: &str| report.findings.iter().any(|finding| finding.name == name);
        let found = [
            below(model, one, usage, wanted, line).filter(|_| !known(BELOW)),
            descriptors(one, usage).filter(|_| !known(FDS)),
            connections(model, one, usage, wanted, line).filter(|_| !known(CONNECTIONS)),
        ];
        report.findings.extend(found.into_iter().flatten());
    }
    let mut seen = vec![match fullest {
        Some((open, u64::MAX)) => format!("{open} descriptors open, no limit"),
        Some((open, soft)) => format!("{open} of {soft} descriptors open in the fullest worker"),
        None => "no worker to look at".to_owned(),
    }];
    seen.push(format!("worker_connections {wanted}"));
    if let Some(worker) = worker(subject)
        && let Ok(ns) = NetNs::of_pid(worker.pid)
    {
        let all = targets::of(model, &HashMap::new(), subject.snapshot.kept());
        report.findings.extend(ports(model, &ns, &all.targets, &mut seen));
        report.findings.extend(queues(model, &ns, &all.targets, &mut seen));
    }
    let names: BTreeSet<&'static str> = report.findings.iter().map(|finding| finding.name).collect();
    report.checked.push(Checked {
        what: "limits",
        seen: seen.join(", "),
        incomplete: None,
        findings: names.into_iter().collect(),
    });
    report
}

/// `worker_connections`, and its line.
fn worker_connections(model: &Model) -> (u64, Option<NodeId>) {
    let config = model.config();
    let in_events = config
        .top()
        .filter(|id| &*config.name(*id) == b"events")
        .flat_map(|events| config.children(events))
        .find(|id| &*config.name(*id) == b"worker_connections");
    let number = in_events.and_then(|id| config.arg(id, 0)?.parse().ok());
    (number.unwrap_or(CONNECTIONS_BY_DEFAULT), in_events)
}

fn connections_line(model: &Model, line: Option<NodeId>) -> Place {
    match line {
        Some(node) => {
            let line = model.line(Role::Directive, node);
            Place { role: "directive", file: Some(line.file), line: Some(line.line), text: line.text }
        }
        None => Place {
            role: "directive",
            file: None,
            line: None,
            text: format!("worker_connections {CONNECTIONS_BY_DEFAULT} (default)"),
        },
    }
}

fn evidence(kind: &'static str, text: String) -> Vec<Evidence> {
    vec![Evidence { kind, text }]
}

fn fix(text: &str, command: Option<String>) -> Fix {
    Fix { text: text.to_owned(), command }
}

fn warning(name: &'static str, cause: Option<Cause>, summary: String, breaks: &str) -> Finding {
    Finding {
        name,
        severity: Severity::Warning,
        cause,
        confidence: Confidence::Proven,
        summary,
        breaks: breaks.to_owned(),
        rival: None,
        upstream: None,
        at: Vec::new(),
        evidence: Vec::new(),
        fix: Vec::new(),
    }
}

/// nginx itself warns of it as it starts, in a line that few read (ngx_event_process_init).
fn below(
    model: &Model,
    worker: &Process,
    usage: process::FdUsage,
    wanted: u64,
    line: Option<NodeId>,
) -> Option<Finding> {
    if usage.soft >= wanted {
        return None;
    }
    let mut found = warning(
        BELOW,
        Some(Cause::FdLimit),
        format!("worker_connections is {wanted}, but a worker may open {} files only", usage.soft),
        "under load new connections fail with \"Too many open files\" before worker_connections is reached: clients are not \
         accepted, and requests get 500 or 502",
    );
    found.at = vec![connections_line(model, line)];
    found.evidence = evidence(
        "fds",
        format!("worker {}: RLIMIT_NOFILE {} (soft), {} (hard)", worker.pid, usage.soft, usage.hard),
    );
    // A proxied request takes two connections, and a file for what is buffered on disk.
    let enough = wanted.saturating_mul(2);
    found.fix = vec![
        fix(&format!("set `worker_rlimit_nofile {enough};` at the top of nginx.conf, then reload"), None),
        fix("or in the unit: LimitNOFILE=", Some("systemctl edit nginx.service".to_owned())),
    ];
    Some(found)
}

fn descriptors(worker: &Process, usage: process::FdUsage) -> Option<Finding> {
    let host = usage.host_open.zip(usage.host_max).filter(|(open, most)| is_near(*open, *most));
    let own = usage.soft != u64::MAX && is_near(usage.open, usage.soft);
    let summary = match (own, host) {
        (true, _) => {
            format!("worker {} has {} of {} file descriptors open", worker.pid, usage.open, usage.soft)
        }
        (false, Some((open, most))) => format!("the host has {open} of {most} files open (fs.file-max)"),
        (false, None) => return None,
    };
    let mut found = warning(
        FDS,
        Some(Cause::FdLimit),
        summary,
        "when none is left, connections to upstream servers fail with \"Too many open files\"",
    );
    found.evidence = evidence("fds", format!("counted in /proc/{}/fd", worker.pid));
    found.fix = vec![fix(
        "raise worker_rlimit_nofile, then reload; if the number only ever grows, look for what is not closed",
        Some(format!("ls -l /proc/{}/fd", worker.pid)),
    )];
    Some(found)
}

fn connections(
    model: &Model,
    worker: &Process,
    usage: process::FdUsage,
    wanted: u64,
    line: Option<NodeId>,
) -> Option<Finding> {
    // Descriptors are more than connections: logs and listening sockets are among them.
    if !is_near(usage.open, wanted) {
        return None;
    }
    let sockets = sockets_of(worker.pid)?;
    if !is_near(sockets, wanted) {
        return None;
    }
    let mut found = warning(
        CONNECTIONS,
        None,
        format!("worker {} has {sockets} of {wanted} connections open (worker_connections)", worker.pid),
        "when none is left, nginx closes idle ones, then answers 500 (\"worker_connections are not enough\"): a proxied request \
         takes two",
    );
    found.at = vec![connections_line(model, line)];
    found.evidence = evidence("fds", format!("sockets in /proc/{}/fd", worker.pid));
    found.fix = vec![fix("raise worker_connections (and worker_rlimit_nofile above it), then reload", None)];
    Some(found)
}

fn sockets_of(pid: u32) -> Option<u64> {
    let entries = std::fs::read_dir(format!("/proc/{pid}/fd")).ok()?;
    let is_socket = |entry: &std::fs::DirEntry| {
        std::fs::read_link(entry.path())
            .is_ok_and(|to| to.as_os_str().as_encoded_bytes().starts_with(b"socket:"))
    };
    u64::try_from(entries.flatten().filter(is_socket).count()).ok()
}

fn tcp(targets: &[Target]) -> impl Iterator<Item = (&Target, SocketAddr)> {
    targets.iter().filter_map(|target| match target.ask.to {
        Where::Tcp(to) => Some((target, to)),
        Where::Unix(_) => None,
    })
}

fn ports(model: &Model, ns: &NetNs, targets: &[Target], seen: &mut Vec<String>) -> Vec<Finding> {
    let Some(range) = sysctl::settings(ns).ok().and_then(|settings| settings.ephemeral_ports()) else {
        return Vec::new();
    };
    seen.push(format!("{range} local ports for each upstream address"));
    let end = Instant::now() + FOR_PORTS;
    let mut found = Vec::new();
    for (target, to) in tcp(targets) {
        if Instant::now() > end {
            break;
        }
        let Ok(used) = sockdiag::count_to(ns, to) else { continue };
        let Some((source, count)) = used.by_source.first() else { continue };
        if !is_near(u64::from(*count), u64::from(range)) {
            continue;
        }
        let waiting = used.states.get(sockdiag::TcpState::TimeWait);
        let mut finding = warning(
            PORTS,
            Some(Cause::LocalPortExhausted),
            format!("{count} of {range} local ports from {source} to {to} are taken"),
            "when none is left, connections to this server fail with \"Cannot assign requested address\": requests get 502",
        );
        finding.upstream = Some(shown(&target.ask));
        finding.at = places(model, &target.uses);
        finding.evidence = evidence("ports", format!("{waiting} of the sockets are in TIME_WAIT"));
        finding.fix = vec![
            fix(
                "keep connections open: `keepalive` in the upstream, with HTTP/1.1 and an empty Connection header",
                None,
            ),
            fix(
                "or a wider net.ipv4.ip_local_port_range",
                Some("sysctl net.ipv4.ip_local_port_range".to_owned()),
            ),
        ];
        found.push(finding);
    }
    found
}

/// Listening sockets of this namespace that a target reaches.
fn serving(ns: &NetNs, to: SocketAddr, all: &[sockdiag::Listener]) -> Vec<sockdiag::Listener> {
    let fits = |l: &&sockdiag::Listener| l.local.port() == to.port() && l.serves(to.ip());
    let found: Vec<sockdiag::Listener> = all.iter().filter(fits).cloned().collect();
    // Another host's address is no business of the wildcard's.
    if found.is_empty() || !route::is_local(ns, to.ip()).unwrap_or(false) { Vec::new() } else { found }
}

/// Three quarters of a queue, and not a handful: bursts of a few are a server's daily bread. One that is full already is found
/// by connecting.
fn is_filling(listener: &sockdiag::Listener) -> bool {
    let (queued, limit) = (u64::from(listener.recv_q), u64::from(listener.send_q));
    queued >= 8 && queued * 4 >= limit * 3 && queued <= limit
}

fn queues(model: &Model, ns: &NetNs, targets: &[Target], seen: &mut Vec<String>) -> Vec<Finding> {
    let Ok(all) = sockdiag::listeners(ns) else { return Vec::new() };
    let suspects: Vec<(&Target, SocketAddr)> =
        tcp(targets).filter(|(_, to)| serving(ns, *to, &all).iter().any(is_filling)).collect();
    if suspects.is_empty() {
        return Vec::new();
    }
    // Not a wait for something to happen: the second look tells a queue that stays full from a burst.
    thread::sleep(BETWEEN);
    let Ok(again) = sockdiag::listeners(ns) else { return Vec::new() };
    let mut found = Vec::new();
    for (target, to) in suspects {
        let Some(now) = serving(ns, to, &again).into_iter().find(is_filling) else { continue };
        let mut finding = warning(
            QUEUE,
            Some(Cause::ConnectTimeoutBacklogFull),
            format!(
                "{} connections wait in the accept queue of {}, its limit is {}",
                now.recv_q, now.local, now.send_q
            ),
            "the backend accepts too slowly, or not at all: once the queue is full, connections to it are not answered",
        );
        finding.upstream = Some(shown(&target.ask));
        finding.at = places(model, &target.uses);
        finding.evidence = evidence(
            "accept-queue",
            format!("looked at twice, {} ms apart: it stayed at three quarters or more", BETWEEN.as_millis()),
        );
        finding.fix = vec![fix(
            "find out why the backend does not accept: all its workers busy, blocked or stopped",
            Some(format!("ss -ltnp 'sport = :{}'", to.port())),
        )];
        found.push(finding);
    }
    seen.push("an accept queue is filling".to_owned());
    found
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::check::model_of::model;

    #[test]
    fn near_is_nine_tenths() {
        assert!(is_near(90, 100) && is_near(100, 100) && !is_near(89, 100) && !is_near(0, 0));
    }

    #[test]
    fn worker_connections_stand_in_events() {
        let of = |text: &str| worker_connections(&model(text)).0;
        assert_eq!(of("events { worker_connections 768; }"), 768);
        assert_eq!(of("events { }"), 512);
        assert_eq!(of("http { }"), 512);
    }

    #[test]
    fn a_handful_is_no_filling_queue() {
        let of = |recv_q, send_q| sockdiag::Listener {
            local: "127.0.0.1:1".parse().unwrap(),
            inode: 1,
            recv_q,
            send_q,
            uid: 0,
            v6only: false,
            reuseport: false,
            bound_if: None,
        };
        assert!(is_filling(&of(97, 128)) && is_filling(&of(128, 128)));
        assert!(!is_filling(&of(129, 128)) && !is_filling(&of(3, 4)) && !is_filling(&of(2, 1)));
        assert!(!is_filling(&of(64, 128)) && !is_filling(&of(0, 0)));
    }
}
