//! The past, where it was written down: nginx's error logs, and what the kernel and the audit daemon say of denials. Counted
//! by cause; what is older than a day is mentioned and is no finding.

mod collect;
pub mod denial;
mod logs;
mod read;
mod told;

use std::{
    fs::File,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use self::{
    collect::{Collected, Group},
    denial::Denial,
    told::Lsm,
};
use super::{Checked, Finding, Name, Options, Report, Subject};
use crate::{
    diagnose::Cause,
    report::{moment, plural},
};

/// What is found here.
pub const NAMES: &[Name] = &[
    ("reload-refused", "nginx refused its last reload and runs what it had before"),
    ("upstream-errors-logged", "the error log has upstream failures of the last day"),
    ("worker-crashed", "a worker was killed by a signal in the last day"),
    ("connections-ran-out", "worker_connections were not enough in the last day"),
    ("connections-denied", "the kernel logged that a connection of nginx was denied in the last day"),
];

/// How long the past goes on.
const DAY: Duration = Duration::from_secs(24 * 3600);
/// What is read of the audit daemon's log, bytes.
const MOST_AUDIT: u64 = 4 << 20;
const AUDIT_LOG: &str = "/var/log/audit/audit.log";

/// Looks.
pub fn inspect(subject: &Subject<'_>, options: &Options) -> Report {
    (options.progress)("reading the error log");
    let now = SystemTime::now();
    let mut report = errors(subject, now);
    (options.progress)("reading the kernel's log");
    let denied = denials(subject, now);
    report.checked.extend(denied.checked);
    report.findings.extend(denied.findings);
    report
}

fn seconds(time: SystemTime) -> i64 {
    let since = time.duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_secs()).unwrap_or(i64::MAX)
}

fn at(seconds: i64) -> String {
    moment(UNIX_EPOCH + Duration::from_secs(u64::try_from(seconds).unwrap_or(0)))
}

fn lsm() -> Lsm {
    let list = crate::sys::proc::read_trimmed("/sys/kernel/security/lsm").unwrap_or_default();
    let has = |name: &str| list.split(',').any(|one| one == name);
    if has("selinux") || std::path::Path::new("/sys/fs/selinux/enforce").exists() {
        Lsm::Selinux
    } else if has("apparmor") {
        Lsm::Apparmor
    } else {
        Lsm::Neither
    }
}

fn errors(subject: &Subject<'_>, now: SystemTime) -> Report {
    let logs = logs::read(subject);
    let newest = subject.workers.iter().map(|worker| worker.started).max().unwrap_or(subject.master.started);
    let context = collect::Context {
        since: seconds(now) - seconds(UNIX_EPOCH + DAY),
        until: seconds(now) + 60,
        lsm: lsm(),
        master: subject.master.ns_pids.last().copied().unwrap_or(subject.master.pid),
        // Written to the second.
        newest_worker: seconds(newest),
    };
    let mut collected = Collected::default();
    for log in &logs.texts {
        collected.add(&log.text, log.offset, &context);
    }
    let mut findings = findings(&collected, &logs, &super::running::test_command(subject));
    for finding in &mut findings {
        finding.at.extend(logs.places.iter().take(1).cloned());
    }
    let mut seen = match (collected.recent(), collected.older) {
        _ if logs.texts.is_empty() && logs.notes.is_empty() => "no error log is written".to_owned(),
        _ if logs.texts.is_empty() => String::new(),
        (0, 0) => format!("no upstream failure in {}", logs.names()),
        (0, older) => format!("{} in {}, none in the last day", plural_errors(older), logs.names()),
        (recent, _) => format!("{} in the last day in {}", plural_errors(recent), logs.names()),
    };
    for note in &logs.notes {
        let between = if seen.is_empty() { "" } else { "; " };
        seen += &format!("{between}{note}");
    }
    let names = findings.iter().map(|finding| finding.name).collect::<Vec<_>>();
    let incomplete = (!logs.unread.is_empty()).then(|| logs.unread.join("; "));
    Report { checked: vec![Checked { what: "error log", seen, incomplete, findings: names }], findings }
}

fn plural_errors(count: u64) -> String {
    plural(usize::try_from(count).unwrap_or(usize::MAX), "upstream failure")
}

fn findings(collected: &Collected, logs: &logs::Logs, test: &str) -> Vec<Finding> {
    let mut findings = Vec::new();
    if let Some((time, text)) = &collected.refused {
        let mut one = Finding::problem(
            "reload-refused",
            "nginx refused its last reload and runs what it had before",
        )
        .likely("a reload that succeeded without a new worker")
        .breaks("Nothing that was changed since has any effect, and a restart would leave no nginx running.")
        .because("log", format!("{}: {text}", at(*time)))
        .fix_with("mend what nginx complains about, and test", test);
        one.at.extend(collect::place(text));
        findings.push(one);
    }
    for (cause, group) in &collected.causes {
        findings.push(upstream_errors(*cause, group, logs));
    }
    if let Some(group) = &collected.crashes {
        findings.push(
            Finding::warning("worker-crashed", format!("a worker crashed {} in the last day", plural_times(group.count)))
                .breaks("Every request that such a worker was at is cut off: its clients see a reset, its upstream servers an end.")
                .because("log", group.example.clone())
                .because("time", span(group))
                .fix("look for a module that is not of nginx's own, and for its known bugs; a core dump tells more"),
        );
    }
    if let Some(group) = &collected.exhausted {
        findings.push(
            Finding::warning("connections-ran-out", format!("worker_connections were not enough {}", plural_times(group.count)))
                .breaks("A request that needs a connection and gets none ends with 500, or is closed before it is read.")
                .because("log", group.example.clone())
                .because("time", span(group))
                .fix("raise worker_connections in events (a proxied request needs two), and worker_rlimit_nofile with it"),
        );
    }
    findings
}

fn plural_times(count: u64) -> String {
    if count == 1 { "once".to_owned() } else { format!("{count} times") }
}

/// When it was.
fn span(group: &Group) -> String {
    if group.first == group.last {
        format!("at {}", at(group.last))
    } else {
        format!("first at {}, last at {}", at(group.first), at(group.last))
    }
}

fn upstream_errors(cause: Cause, group: &Group, logs: &logs::Logs) -> Finding {
    let mut one = Finding::warning(
        "upstream-errors-logged",
        format!(
            "{} in the last day: {} (last at {})",
            plural_times(group.count),
            group.message,
            at(group.last)
        ),
    )
    .cause(cause)
    .likely(group.rival)
    .breaks(
        "These requests failed, or were tried again elsewhere. Whether it still happens is told by `why502`.",
    )
    .because("time", span(group))
    .because("log", group.example.clone());
    if let [(only, _)] = group.upstreams.as_slice() {
        one = one.upstream(only.clone());
    } else if !group.upstreams.is_empty() {
        let mut list = group.upstreams.clone();
        list.sort_by_key(|(_, count)| std::cmp::Reverse(*count));
        let shown: Vec<String> =
            list.iter().take(5).map(|(name, count)| format!("{name} ({count})")).collect();
        let more = list.len().saturating_sub(5);
        let more = if more > 0 { format!(" and {more} more") } else { String::new() };
        one = one.because("upstreams", format!("{}{more}", shown.join(", ")));
    }
    if logs.cut {
        one = one.because("part", "only the last 4 MiB of the log were read: there may have been more");
    }
    one.fix_with("watch the next one, with evidence from the kernel", format!("sudo why502 --cause {cause}"))
}

/// Denials of a program with nginx's name, in all logs that are there.
fn denials(subject: &Subject<'_>, now: SystemTime) -> Report {
    let (mut sources, mut found): (Vec<&'static str>, Vec<Denial>) = (Vec::new(), Vec::new());
    let mut refused = Vec::new();
    let mut add = |name: &'static str, lines: &mut dyn Iterator<Item = &str>| {
        sources.push(name);
        for denial in lines.filter_map(denial::denial) {
            if !found.iter().any(|known| known.id == denial.id && known.what == denial.what)
                && found.len() < MOST_DENIALS
            {
                found.push(denial);
            }
        }
    };
    match File::open(AUDIT_LOG).and_then(|file| read::tail(&file, MOST_AUDIT)) {
        Ok((bytes, _)) => add(AUDIT_LOG, &mut String::from_utf8_lossy(&bytes).lines()),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
        Err(error) => refused.push(format!("cannot read {AUDIT_LOG}: {error}")),
    }
    match read::kernel_log() {
        Ok(lines) => add("the kernel's log", &mut lines.iter().map(String::as_str)),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
        Err(error) => refused.push(format!("cannot read /dev/kmsg: {error} (CAP_SYSLOG is needed)")),
    }
    if let Some(entries) = read::journal(&["_TRANSPORT=kernel", "+", "_TRANSPORT=audit"]) {
        add("the journal", &mut entries.iter().map(|(_, text)| text.as_str()));
    }
    let name =
        subject.master.exe.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
    // The kernel keeps 15 bytes of a name.
    let name: String = name.chars().take(15).collect();
    let pids: Vec<u32> =
        std::iter::once(subject.master.pid).chain(subject.workers.iter().map(|worker| worker.pid)).collect();
    let own = |denial: &&Denial| denial.comm == name || denial.pid.is_some_and(|pid| pids.contains(&pid));
    let since = seconds(now) - seconds(UNIX_EPOCH + DAY);
    let recent: Vec<&Denial> = found.iter().filter(own).filter(|denial| denial.time >= since).collect();
    let findings = denied(&recent, &pids);
    let others = recent.iter().filter(|denial| denial.cause.is_none()).count();
    let connections = recent.len() - others;
    let mut seen = match connections {
        0 => "no denied connection of nginx in the last day".to_owned(),
        _ => format!("{} of nginx in the last day", plural(connections, "denied connection")),
    };
    if others > 0 {
        seen += &format!(", {} of other things (not of connections)", plural(others, "denial"));
    }
    if !sources.is_empty() {
        seen += &format!(" in {}", sources.join(", "));
    }
    // One source that can be read is enough, as they hold the same.
    let incomplete = (sources.is_empty() && !refused.is_empty()).then(|| refused.join("; "));
    let names = if findings.is_empty() { Vec::new() } else { vec!["connections-denied"] };
    Report { checked: vec![Checked { what: "denials", seen, incomplete, findings: names }], findings }
}

/// Most denials that are kept apart.
const MOST_DENIALS: usize = 4096;

/// Equal denials are one finding.
fn denied(recent: &[&Denial], pids: &[u32]) -> Vec<Finding> {
    let mut groups: Vec<(&Denial, u64, bool)> = Vec::new();
    for denial in recent.iter().filter(|denial| denial.cause.is_some()) {
        let certain = denial.pid.is_some_and(|pid| pids.contains(&pid));
        match groups.iter_mut().find(|(known, ..)| known.what == denial.what) {
            Some((last, count, any)) => {
                *count += 1;
                *any |= certain;
                if denial.time > last.time {
                    *last = denial;
                }
            }
            None => groups.push((denial, 1, certain)),
        }
    }
    let finding = |(last, count, certain): (&Denial, u64, bool)| {
        let cause = last.cause.unwrap_or(Cause::Unexplained);
        let one = Finding::warning(
            "connections-denied",
            format!("{} in the last day: {}", plural_times(count), last.what),
        )
        .cause(cause)
        .breaks("A connection that is denied is a 502; the error log says only \"Permission denied\" or the like.")
        .because("audit", format!("last at {} (audit record {})", at(last.time), last.id))
        .fix_with("prove it on the next one, silenced denials included", format!("sudo why502 --cause {cause}"));
        if certain {
            one
        } else {
            one.likely("another program that is called nginx, or a process that is gone")
        }
    };
    groups.into_iter().take(10).map(finding).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn denial(pid: u32, time: i64, what: &str, cause: Option<Cause>) -> Denial {
        Denial {
            id: format!("{time}.0:1"),
            time,
            pid: Some(pid),
            comm: "nginx".to_owned(),
            cause,
            what: what.to_owned(),
        }
    }

    #[test]
    fn equal_denials_are_one_finding() {
        let selinux = Some(Cause::BlockedSelinux);
        let all = [
            denial(7, 10, "SELinux: a", selinux),
            denial(8, 30, "SELinux: a", selinux),
            denial(9, 20, "SELinux: b", selinux),
            denial(7, 20, "SELinux: a file", None),
        ];
        let found = denied(&all.iter().collect::<Vec<_>>(), &[7]);
        assert_eq!(found.len(), 2);
        assert!(found[0].summary.starts_with("2 times") && found[0].rival.is_none(), "{found:?}");
        assert!(found[1].rival.is_some() && found[1].summary.starts_with("once"), "{found:?}");
        assert!(found[0].evidence[0].text.contains("30.0:1"));
    }
}
