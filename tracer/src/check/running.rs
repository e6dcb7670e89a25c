//! Is nginx running, and is it running what is on disk: processes, reloads, what cannot be read, listening sockets.

use std::{net::IpAddr, path::Path, time::SystemTime};

use super::{Checked, Finding, Name, Options, Place, Report, Subject, config};
use crate::{
    nginx::{
        Problem,
        model::{Layer, Listen, Model},
    },
    report::{moment, plural},
    session::Snapshot,
    sys::{
        netns::NetNs,
        owners, process,
        process::Role,
        sockdiag::{self, Listener},
    },
};

/// What is found here.
pub const NAMES: &[Name] = &[
    ("no-workers", "the master runs, and no worker does"),
    ("not-reloaded", "files were changed after nginx had read its configuration"),
    (
        "config-unreadable",
        "a part of the configuration does not parse, or cannot be read: nginx -t refuses it",
    ),
    ("config-refused", "a value that nginx refuses"),
    ("not-listening", "a listen line has no socket"),
];

/// Looks.
pub fn inspect(subject: &Subject<'_>, _options: &Options) -> Report {
    let mut report = processes(subject);
    let reload = reload(subject);
    report.checked.extend(reload.checked);
    report.findings.extend(reload.findings);
    let listening = listening(subject);
    report.checked.extend(listening.checked);
    report.findings.extend(listening.findings);
    report
}

fn processes(subject: &Subject<'_>) -> Report {
    let master = &subject.master;
    let old = subject.workers.iter().filter(|worker| worker.role == Role::WorkerShuttingDown).count();
    let workers = subject.workers.len() - old;
    let mut seen = format!("running since {}, {}", moment(master.started), plural(workers, "worker"));
    if old > 0 {
        seen += &format!(", {} of an older configuration still at work", plural(old, "worker"));
    }
    if master.exe_deleted {
        seen += "; its executable was replaced since: it runs the old one until it is restarted";
    }
    let mut report = Report::default();
    // A master that has just been started forks in a moment: it is asked once more.
    let none = subject.workers.is_empty() && master.role == Role::Master && is_childless(subject);
    let mut names = Vec::new();
    if none {
        names.push("no-workers");
        report.findings.push(
            Finding::problem("no-workers", format!("the master (pid {}) has no worker", master.pid))
                .breaks("Nobody takes connections: clients hang or are refused.")
                .fix("look at the end of the error log: workers that end at once say why there")
                .fix_with("restart nginx", "systemctl restart nginx"),
        );
    }
    report.checked.push(Checked { what: "nginx", seen, incomplete: None, findings: names });
    report
}

fn is_childless(subject: &Subject<'_>) -> bool {
    let mut finder = process::Finder::new(crate::nginx::binary::is_nginx_binary);
    let Ok(scan) = finder.find_nginx() else { return false };
    scan.instances.iter().any(|one| one.master.pid == subject.master.pid && one.workers().next().is_none())
}

/// Whether it runs what is on disk, and whether it could.
fn reload(subject: &Subject<'_>) -> Report {
    let snapshot = subject.snapshot;
    let mut findings = Vec::new();
    let reload = format!("kill -HUP {}", subject.master.pid);
    let main = snapshot.main.as_deref();
    // Each reload forks workers anew.
    let newest = subject.workers.iter().map(|worker| worker.started).max().unwrap_or(subject.master.started);
    let disk = snapshot.unread().is_some().then(|| snapshot.again(&subject.master));
    if let Some(unread) = snapshot.unread() {
        findings.push(
            not_reloaded(unread)
                .because("memory", "the texts in nginx's own memory differ from the files")
                .fix_with("test the files, then reload", format!("nginx -t && {reload}")),
        );
    } else if let Some((path, changed)) = changed_since(snapshot, newest, subject.master.pid) {
        findings.push(
            not_reloaded(format!(
                "{path} was changed at {}, after the newest worker had started at {}",
                moment(changed),
                moment(newest)
            ))
            .likely("a change that changed nothing, such as of the file's owner")
            .fix_with("test the files, then reload", format!("nginx -t && {reload}")),
        );
    }
    // What the next reload would read.
    let next = disk.as_ref().unwrap_or(snapshot);
    findings.extend(unreadable(&next.problems));
    if let Some(disk) = &disk {
        findings.extend(config::lint_all(&disk.model).into_iter().filter(|one| one.name == "nginx-refuses"));
    }
    let files = snapshot.model.config().files().count();
    let state = if findings.is_empty() { "as on disk" } else { "see below" };
    let what = main.map_or_else(
        || plural(files, "file"),
        |main| format!("{} ({})", main.display(), plural(files, "file")),
    );
    let incomplete = snapshot
        .is_guess
        .then(|| "nginx's command line is cut off in its title: it may run with another file (-p PATH of the right one)".to_owned());
    let names = findings.iter().map(|finding| finding.name).collect();
    let checked =
        Checked { what: "running version", seen: format!("{what}: {state}"), incomplete, findings: names };
    Report { checked: vec![checked], findings }
}

fn not_reloaded(summary: impl Into<String>) -> Finding {
    Finding::warning("not-reloaded", summary)
        .breaks("What was mended in the files has no effect until nginx is reloaded; what was broken in them breaks then.")
}

/// The newest file that has changed after a time, where nothing says what nginx has read.
fn changed_since(snapshot: &Snapshot, newest: SystemTime, pid: u32) -> Option<(String, SystemTime)> {
    let newer = snapshot.newer_than(newest);
    let (path, changed) = newer.first()?;
    // A process's memory was asked, and says that nothing differs.
    (!snapshot.is_in_memory_of(pid)).then(|| (path.display().to_string(), *changed))
}

/// What a reader of the files stumbles over, as findings.
#[must_use]
pub fn unreadable(problems: &[Problem]) -> Vec<Finding> {
    let place = |problem: &Problem| Place {
        role: "directive",
        file: problem.file.clone(),
        line: problem.line,
        text: String::new(),
    };
    // Those without a file are told where the command line is looked at.
    let with_file = problems.iter().filter(|problem| problem.file.is_some());
    with_file
        .map(|problem| {
            let text = without_place(&problem.text, problem.file.as_deref(), problem.line);
            let name = if problem.missing { "config-unreadable" } else { "config-refused" };
            Finding::problem(name, text)
                .breaks(
                    "nginx -t fails: a reload is refused and the old configuration stays; a restart leaves no nginx running.",
                )
                .at(place(problem))
                .fix_with("mend the line, then test", "nginx -t")
        })
        .collect()
}

/// `file:line: ` is said by the place.
fn without_place(text: &str, file: Option<&Path>, line: Option<u32>) -> String {
    let place = match (file, line) {
        (Some(file), Some(line)) => format!("{}:{line}: ", file.display()),
        (Some(file), None) => format!("{}: ", file.display()),
        (None, _) => return text.to_owned(),
    };
    text.strip_prefix(&place).unwrap_or(text).to_owned()
}

/// An address that must have a listening socket.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Wanted {
    /// `None`: any address of its family.
    ip: Option<IpAddr>,
    port: u16,
}

/// The addresses of a `listen` that can be told without looking names up.
fn wanted(listen: &Listen) -> Vec<Wanted> {
    let Some((first, last)) = listen.ports.filter(|_| !listen.udp) else { return Vec::new() };
    let text = listen.address.as_str();
    let host = match text.rsplit_once(':') {
        Some((host, port)) if !port.ends_with(']') => host,
        _ if text.starts_with('[') => text,
        _ if text.bytes().all(|byte| byte.is_ascii_digit() || byte == b'-') => "*",
        _ => text,
    };
    let ip = if host == "*" {
        None
    } else {
        match host.trim_start_matches('[').trim_end_matches(']').parse::<IpAddr>() {
            Ok(ip) => Some(ip),
            Err(_) => return Vec::new(),
        }
    };
    (first..=last).map(|port| Wanted { ip, port }).collect()
}

fn is_there(wanted: Wanted, listeners: &[Listener]) -> bool {
    let fits = |local: IpAddr| match wanted.ip {
        None => local.is_unspecified(),
        // nginx opens no socket of its own beside a wildcard of the same port.
        Some(ip) => local.to_canonical() == ip.to_canonical() || local.is_unspecified(),
    };
    listeners.iter().any(|one| one.local.port() == wanted.port && fits(one.local.ip()))
}

/// All `listen`s of a model with their lines.
fn all_listens(model: &Model) -> Vec<(Wanted, Option<Place>)> {
    let mut all = Vec::new();
    for server in &model.servers {
        if server.listens.is_empty() && server.layer == Layer::Http {
            // As root; else it is 8000.
            continue;
        }
        let lines: Vec<_> = config::view::in_block(model, server.node, "listen").collect();
        for (index, listen) in server.listens.iter().enumerate() {
            let place = lines.get(index).map(|node| Place::of(model, "listen", *node));
            all.extend(wanted(listen).into_iter().map(|one| (one, place.clone())));
        }
    }
    all
}

fn listening(subject: &Subject<'_>) -> Report {
    let pid = subject.master.pid;
    let all = all_listens(&subject.snapshot.model);
    let incomplete = |why: String| {
        let checked = Checked {
            what: "listening",
            seen: "not looked at".to_owned(),
            incomplete: Some(why),
            findings: Vec::new(),
        };
        Report { checked: vec![checked], findings: Vec::new() }
    };
    let listeners = match NetNs::of_pid(pid).and_then(|ns| sockdiag::listeners(&ns)) {
        Ok(listeners) => listeners,
        Err(error) => return incomplete(error.to_string()),
    };
    // Only those that nginx holds: another program on the same port is not it.
    let holds = |one: &Listener| {
        std::iter::once(pid)
            .chain(subject.workers.iter().map(|worker| worker.pid))
            .any(|pid| owners::holds(pid, one.inode))
    };
    let ports: Vec<u16> = all.iter().map(|(wanted, _)| wanted.port).collect();
    let own: Vec<Listener> =
        listeners.into_iter().filter(|one| ports.contains(&one.local.port()) && holds(one)).collect();
    let mut findings = Vec::new();
    let certain = subject.snapshot.problems.is_empty() && !subject.snapshot.is_guess;
    for (wanted, place) in all.iter().filter(|_| certain) {
        if is_there(*wanted, &own)
            || findings.iter().any(|one: &Finding| place.as_ref().is_some_and(|place| one.at.contains(place)))
        {
            continue;
        }
        let mut one = Finding::problem(
            "not-listening",
            format!("nginx has no socket for port {} of this line", wanted.port),
        )
        .likely("a configuration that nginx has not read yet")
        .breaks("Clients of this port are refused, or are served by another program.")
        .fix_with(
            "see who has the port, and what nginx says to it",
            format!("ss -ltnp 'sport = :{}'; nginx -t", wanted.port),
        );
        one.at.extend(place.clone());
        findings.push(one);
    }
    let mut numbers = ports;
    numbers.sort_unstable();
    numbers.dedup();
    let list: Vec<String> = numbers.iter().take(12).map(ToString::to_string).collect();
    let more = if numbers.len() > 12 { format!(" and {} more", numbers.len() - 12) } else { String::new() };
    let seen = match list.as_slice() {
        [] => "on unix sockets, UDP or names alone: not compared".to_owned(),
        [only] => format!("TCP port {only}"),
        _ => format!("TCP ports {}{more}", list.join(", ")),
    };
    let names = if findings.is_empty() { Vec::new() } else { vec!["not-listening"] };
    Report { checked: vec![Checked { what: "listening", seen, incomplete: None, findings: names }], findings }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{check::config_testing::model, nginx::Version};

    fn all(text: &str) -> Vec<String> {
        let model = model(text, Version(1, 22, 1));
        let show =
            |one: &Wanted| format!("{}:{}", one.ip.map_or("*".to_owned(), |ip| ip.to_string()), one.port);
        all_listens(&model).iter().map(|(wanted, _)| show(wanted)).collect()
    }

    #[test]
    fn addresses_of_listen_lines() {
        let text = "http { server { listen 80; listen [::]:443 ssl; listen 127.0.0.1:8080; listen 10.0.0.1; listen unix:/a; \
                    listen *:81; listen localhost:82; listen 83 quic; } } stream { server { listen 5000-5001; } }";
        assert_eq!(
            all(text),
            ["*:80", ":::443", "127.0.0.1:8080", "10.0.0.1:80", "*:81", "*:5000", "*:5001"]
        );
    }

    fn listener(local: &str) -> Listener {
        Listener {
            local: local.parse().unwrap(),
            inode: 1,
            recv_q: 0,
            send_q: 1,
            uid: 0,
            v6only: true,
            reuseport: false,
            bound_if: None,
        }
    }

    #[test]
    fn sockets_for_them() {
        let there = |ip: Option<&str>, port, sockets: &[&str]| {
            let sockets: Vec<Listener> = sockets.iter().map(|one| listener(one)).collect();
            is_there(Wanted { ip: ip.map(|ip| ip.parse().unwrap()), port }, &sockets)
        };
        assert!(there(None, 80, &["0.0.0.0:80"]));
        assert!(there(Some("127.0.0.1"), 80, &["0.0.0.0:80"]));
        assert!(there(Some("::"), 80, &["[::]:80"]));
        assert!(!there(None, 80, &["127.0.0.1:80"]));
        assert!(!there(Some("127.0.0.1"), 80, &["127.0.0.1:81", "127.0.0.2:80"]));
    }

    #[test]
    fn problems_name_their_line_once() {
        let problem = |missing| Problem {
            file: Some("/etc/nginx/a.conf".into()),
            line: Some(7),
            text: "/etc/nginx/a.conf:7: unexpected \"}\"".to_owned(),
            missing,
        };
        let found = unreadable(&[problem(true), problem(false), Problem::from("no file".to_owned())]);
        let names: Vec<&str> = found.iter().map(|one| one.name).collect();
        assert_eq!(names, ["config-unreadable", "config-refused"]);
        assert_eq!((found[0].summary.as_str(), found[0].at[0].line), ("unexpected \"}\"", Some(7)));
    }
}
