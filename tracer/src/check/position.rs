//! Whose place is taken: the worker, its names, its confinement; and what a connection from there amounts to.

use std::{
    collections::HashMap,
    io,
    net::IpAddr,
    path::{Path, PathBuf},
    time::Duration,
};

use super::{
    Options, Subject,
    probe::{self, Answer, Ask, Call, Outcome, Plan, Where},
    targets,
};
use crate::{
    diagnose::words,
    event::{Attempt, Stage},
    nginx::Model,
    session::{made_attempt, unix_name},
    sys::{
        apparmor,
        bpfprog::{self, Moment},
        netns::NetNs,
        proc,
        process::{Process, Role as ProcessRole},
        resolve,
        rootfs::RootFs,
        sockdiag, sysctl, unit,
    },
};

/// Of the time for all, what names may take.
const FOR_NAMES: u32 = 3;

/// The process whose place is taken: a worker that is not about to end, if there is one.
pub(super) fn worker<'a>(subject: &'a Subject<'_>) -> Option<&'a Process> {
    let serving = |role| subject.workers.iter().find(|w| w.role == role && w.is_alive());
    serving(ProcessRole::Worker)
        .or_else(|| serving(ProcessRole::Single))
        .or_else(|| Some(&subject.master).filter(|master| master.role == ProcessRole::Single))
}

/// What is to be asked from the worker's place, and how long it may take.
pub(super) fn plan(worker: &Process, options: &Options, total: Duration, asks: Vec<Ask>) -> Plan {
    let status = proc::read_up_to(format!("/proc/{}/status", worker.pid), 64 << 10).unwrap_or_default();
    let capabilities = proc::field(&status, "CapEff").and_then(|hex| u64::from_str_radix(hex, 16).ok());
    Plan {
        worker: worker.pid,
        uid: worker.credentials.uid,
        gid: worker.credentials.gid,
        groups: worker.credentials.groups.clone(),
        capabilities: capabilities.unwrap_or(0),
        profile: profile(worker.pid),
        cgroup: cgroup(worker.pid),
        timeout: options.timeout,
        total,
        parallel: options.parallel.max(1),
        asks,
    }
}

/// What came of a plan.
pub(super) struct Outcomes {
    /// By ask.
    pub answers: Vec<Answer>,
    /// False if the helper ended before all was tried.
    pub whole: bool,
    /// With the confinement that was taken on.
    pub plan: Plan,
    /// What of the worker's confinement could not be.
    pub given_up: Option<String>,
}

pub(super) fn no_start(error: &io::Error) -> String {
    format!("the helper that connects cannot be started: {error}")
}

/// Runs a plan in the worker's place, or as near to it as can be. `what` names one of its asks.
pub(super) fn try_all(
    exe: &Path,
    plan: &Plan,
    what: &str,
    mut told: impl FnMut(usize),
) -> Result<Outcomes, String> {
    let mut plan = plan.clone();
    let mut given_up: Option<String> = None;
    let mut run = probe::run(exe, &plan, &mut told).map_err(|error| no_start(&error))?;
    // Without what cannot be taken on the answers are worth less, but worth something.
    while let Some((at, errno)) = run.stuck.take_if(|_| plan.profile.is_some() || plan.cgroup.is_some()) {
        if plan.profile.take().is_none() {
            plan.cgroup = None;
        }
        given_up = Some(format!(
            "{what}s were tried without all of the worker's confinement: cannot {at} ({})",
            words::errno(errno)
        ));
        run = probe::run(exe, &plan, &mut told).map_err(|error| no_start(&error))?;
    }
    if let Some((at, errno)) = run.stuck {
        let needs =
            if errno == libc::EPERM || errno == libc::EACCES { ": run `sudo why502 check`" } else { "" };
        return Err(format!("no {what} was tried: cannot {at} ({}){needs}", words::errno(errno)));
    }
    let whole = run.most_open.is_some() || run.answers.iter().all(|a| a.outcome != Outcome::NotTried);
    Ok(Outcomes { answers: run.answers, whole, plan, given_up })
}

/// The addresses of the names, as the worker's system knows them; with it, whether only its hosts file could be asked.
pub(super) fn look_up(
    worker: &Process,
    model: &Model,
    options: &Options,
) -> (HashMap<String, resolve::Answer>, bool) {
    let names = targets::names(model);
    if names.is_empty() {
        return (HashMap::new(), false);
    }
    let foreign = worker.mounts_differ || worker.root_differs;
    if !foreign && let Ok(ns) = NetNs::of_pid(worker.pid) {
        (options.progress)(&format!("looking up {} names", names.len()));
        return (resolve::all(&ns, &names, options.total / FOR_NAMES), false);
    }
    // Its libc and its resolv.conf are its own: running them here would be a guess.
    let hosts = RootFs::of_pid(worker.pid).and_then(|root| root.read(Path::new("/etc/hosts"), 1 << 20));
    let hosts = hosts.unwrap_or_default();
    let found = names.into_iter().filter_map(|name| {
        let all = hosts_file(&hosts, &name);
        (!all.is_empty()).then_some((name, resolve::Answer::Addresses(all)))
    });
    (found.collect(), true)
}

/// Addresses of a name in a hosts file (hosts(5)).
fn hosts_file(bytes: &[u8], name: &str) -> Vec<IpAddr> {
    let text = String::from_utf8_lossy(bytes);
    let of_line = |line: &str| {
        let mut words = line.split('#').next()?.split_ascii_whitespace();
        let ip: IpAddr = words.next()?.parse().ok()?;
        words.any(|word| word.eq_ignore_ascii_case(name)).then_some(ip)
    };
    text.lines().filter_map(of_line).collect()
}

/// What is known of a connection that why502 made, as if nginx had made it.
pub(super) fn attempt(worker: &Process, ask: &Ask, answer: &Answer) -> Attempt {
    let netns = worker.netns.unwrap_or(0);
    let (stage, errno) = match answer.outcome {
        Outcome::Failed(Call::Socket, errno) => (Stage::Socket, errno),
        Outcome::Failed(Call::Bind, errno) => (Stage::Bind, errno),
        Outcome::Failed(Call::Connect, errno) => (Stage::Connect, errno),
        Outcome::Failed(Call::Later, errno) => (Stage::SynSent, errno),
        Outcome::Connected | Outcome::NotTried => (Stage::Connect, 0),
        Outcome::TimedOut => (Stage::SynSent, 0),
    };
    let mut attempt = made_attempt(stage, worker.pid, netns, errno);
    match &ask.to {
        Where::Tcp(to) => attempt.remote = *to,
        Where::Unix(path) => {
            attempt.unix = Some(unix_name(path));
            attempt.no_remote = true;
        }
    }
    if stage == Stage::Bind
        && let Some(from) = ask.from
    {
        attempt.remote = (from, 0).into();
    }
    if let Some(local) = answer.local {
        attempt.local = local;
    }
    attempt.retransmits = u16::try_from(answer.retransmits).unwrap_or(u16::MAX);
    attempt.icmp = answer.icmp;
    attempt.reset = stage == Stage::SynSent && errno == libc::ECONNREFUSED && answer.icmp.is_none();
    attempt.syn_state |= stage == Stage::Connect && errno == libc::EADDRNOTAVAIL && ports_are_short(&attempt);
    attempt
}

/// Whether EADDRNOTAVAIL comes of a lack of ports; otherwise there is no source address.
fn ports_are_short(attempt: &Attempt) -> bool {
    let Ok(ns) = NetNs::of_pid(attempt.worker) else { return false };
    let range = sysctl::settings(&ns).ok().and_then(|settings| settings.ephemeral_ports());
    let used = sockdiag::count_to(&ns, attempt.remote).ok();
    let most = used.and_then(|used| used.by_source.first().map(|(_, count)| *count));
    range.zip(most).is_some_and(|(range, most)| most.saturating_mul(10) >= range.saturating_mul(9))
}

/// The profile to change to: one that is enforced, by a simple name. One that kills would kill the helper.
pub(super) fn profile(worker: u32) -> Option<String> {
    let (name, mode) = apparmor::confinement(worker)?;
    let own = apparmor::confinement(std::process::id());
    let free = own.is_some_and(|(name, _)| name == "unconfined");
    (free && mode.as_deref() == Some("enforce") && !name.contains("//&")).then_some(name)
}

/// The folder of the worker's cgroup, if programs are in force there that can refuse a connection and are not in force here.
pub(super) fn cgroup(worker: u32) -> Option<PathBuf> {
    let path = unit::cgroup_of(worker)?;
    if unit::cgroup_of(std::process::id()).as_deref() == Some(path.as_str()) {
        return None;
    }
    let mount = unit::cgroup_mount()?;
    let below = |path: &str| mount.join(path.trim_start_matches('/'));
    let folder = below(&path);
    let own = unit::cgroup_of(std::process::id()).map(|path| below(&path));
    let moments =
        [Moment::Create, Moment::Bind4, Moment::Bind6, Moment::Connect4, Moment::Connect6, Moment::Egress];
    let ids = |folder: &Path, moment| -> Vec<u32> {
        bpfprog::effective(folder, moment).map(|all| all.iter().map(|p| p.id).collect()).unwrap_or_default()
    };
    let any = moments.into_iter().any(|moment| {
        let here = own.as_deref().map(|own| ids(own, moment)).unwrap_or_default();
        ids(&folder, moment).iter().any(|id| !here.contains(id))
    });
    any.then_some(folder)
}
