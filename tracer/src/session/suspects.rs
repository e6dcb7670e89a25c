//! Who may have refused a system call: asked only where the record points to it, and remembered for a moment.

use std::{
    collections::HashMap,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use super::clock::boottime_ns;
use crate::{
    correlate::blocked::{Confinement, FileLine, Program, Suspects, Unit},
    event::{Attempt, DropClass, Stage, UnixName},
    sys::{
        apparmor::{self, Says},
        bpfprog::{self, Moment},
        proc, unit,
    },
};

/// As other facts.
const FRESH: Duration = Duration::from_millis(500);

/// What was found lately.
pub(super) struct Asker {
    /// Functions of BPF LSM by their number in the kernel's type information.
    functions: HashMap<u32, &'static str>,
    known: HashMap<Key, (Suspects, Instant)>,
}

#[derive(PartialEq, Eq, Hash)]
struct Key {
    worker: u32,
    stage: Stage,
    v6: bool,
    unix: Option<UnixName>,
}

impl Asker {
    pub(super) fn new(functions: HashMap<u32, &'static str>) -> Self {
        Self { functions, known: HashMap::new() }
    }

    pub(super) fn sweep(&mut self) {
        self.known.retain(|_, (_, at)| at.elapsed() < FRESH);
    }

    /// What there is to know, if the attempt looks as if somebody had refused it.
    pub(super) fn ask(&mut self, attempt: &Attempt) -> Option<Box<Suspects>> {
        if !suspicious(attempt) {
            return None;
        }
        let key = Key {
            worker: attempt.worker,
            stage: attempt.stage,
            v6: attempt.remote.is_ipv6(),
            unix: attempt.unix.clone(),
        };
        if let Some((found, _)) = self.known.get(&key).filter(|(_, at)| at.elapsed() < FRESH) {
            return Some(Box::new(found.clone()));
        }
        let found = self.find(attempt);
        self.sweep();
        self.known.insert(key, (found.clone(), Instant::now()));
        Some(Box::new(found))
    }

    fn find(&self, attempt: &Attempt) -> Suspects {
        let pid = attempt.worker;
        let status = proc::read_up_to(format!("/proc/{pid}/status"), 8192).unwrap_or_default();
        let number = |key| proc::field(&status, key).and_then(|value| value.parse::<u32>().ok());
        let cgroup = unit::cgroup_of(pid);
        let unit = cgroup.as_deref().and_then(unit::name_in).map(|name| Unit {
            name: name.to_owned(),
            lines: unit::restrictions(name).into_iter().map(|l| line(&l.file, l.line, &l.text)).collect(),
        });
        Suspects {
            apparmor: confinement(attempt),
            lsm_programs: self.lsm_programs(attempt),
            cgroup_programs: cgroup.and_then(|cgroup| cgroup_programs(&cgroup, attempt)),
            seccomp: number("Seccomp"),
            no_new_privileges: number("NoNewPrivs").map(|value| value != 0),
            unit,
        }
    }

    fn lsm_programs(&self, attempt: &Attempt) -> Option<Vec<Program>> {
        let wanted: &[&str] = match (attempt.stage, &attempt.unix) {
            (Stage::Socket, _) => &["bpf_lsm_socket_create", "bpf_lsm_socket_post_create"],
            (Stage::Bind, _) => &["bpf_lsm_socket_bind"],
            (_, Some(_)) => &["bpf_lsm_socket_connect", "bpf_lsm_unix_stream_connect"],
            (_, None) => &["bpf_lsm_socket_connect"],
        };
        let mut found = bpfprog::lsm_programs().ok()?;
        found.retain(|p| {
            let known = self.functions.get(&p.function);
            p.function == 0 || self.functions.is_empty() || known.is_some_and(|name| wanted.contains(name))
        });
        Some(describe(found, None))
    }
}

/// True if a hook spoke, the errno is one that those who refuse return, or a cgroup's program dropped the packet.
fn suspicious(attempt: &Attempt) -> bool {
    match attempt.stage {
        Stage::Socket | Stage::Bind | Stage::Connect => {
            !attempt.denials.is_empty()
                || matches!(-attempt.ret, libc::EPERM | libc::EACCES | libc::EAFNOSUPPORT)
        }
        Stage::SynSent => attempt.drop.as_ref().is_some_and(|drop| drop.saw(DropClass::Bpf)),
        Stage::Established | Stage::Untried => false,
    }
}

fn line(file: &Path, line: usize, text: &str) -> FileLine {
    FileLine { file: file.display().to_string(), line, text: proc::printable(text.as_bytes()) }
}

/// The worker's profile, and what its file says of the call.
fn confinement(attempt: &Attempt) -> Option<Confinement> {
    let (profile, mode) = apparmor::confinement(attempt.worker)?;
    let (family, wanted) = match (&attempt.unix, attempt.remote.is_ipv6()) {
        (Some(_), _) => ("unix", "network unix stream,"),
        (None, true) => ("inet6", "network inet6 stream,"),
        (None, false) => ("inet", "network inet stream,"),
    };
    let mut found =
        Confinement { profile, mode, wanted: wanted.to_owned(), whole: true, ..Confinement::default() };
    if found.profile == "unconfined" {
        return Some(found);
    }
    let Some(text) = apparmor::find(Path::new(apparmor::FOLDER), &found.profile) else {
        return Some(found);
    };
    let place = |rule: &apparmor::Rule| line(&rule.file, rule.line, &rule.text);
    for rule in &text.rules {
        match apparmor::about_network(&rule.text, family) {
            Some(Says::Deny(audited)) if found.deny.is_none() => {
                found.deny = Some(place(rule));
                found.deny_is_audited = audited;
            }
            Some(Says::Allow) if found.allow.is_none() => found.allow = Some(place(rule)),
            _ => {}
        }
    }
    found.whole = text.whole;
    // A socket's file is a matter of its own, where the family is not the reason.
    if let Some(UnixName::Path(path)) = &attempt.unix
        && found.deny.is_none()
        && found.allow.is_some()
    {
        let path = String::from_utf8_lossy(path).into_owned();
        found.allow = None;
        found.wanted = format!("{path} rw,");
        for rule in &text.rules {
            match apparmor::about_file(&rule.text, &path) {
                Some(Says::Deny(audited)) if found.deny.is_none() => {
                    found.deny = Some(place(rule));
                    found.deny_is_audited = audited;
                }
                Some(Says::Allow) if found.allow.is_none() => found.allow = Some(place(rule)),
                // What a variable stands for is not looked up.
                None if rule.text.contains("@{") => found.whole = false,
                _ => {}
            }
        }
    }
    found.header = Some(place(&text.header));
    found.local = text.local.map(|path| path.display().to_string());
    Some(found)
}

/// The programs in force for a cgroup at the call that failed, each with the cgroup that it is attached to.
fn cgroup_programs(cgroup: &str, attempt: &Attempt) -> Option<Vec<Program>> {
    let moment = match (attempt.stage, attempt.remote.is_ipv6()) {
        (Stage::Socket, _) => Moment::Create,
        (Stage::Bind, false) => Moment::Bind4,
        (Stage::Bind, true) => Moment::Bind6,
        (Stage::Connect, false) => Moment::Connect4,
        (Stage::Connect, true) => Moment::Connect6,
        _ => Moment::Egress,
    };
    let mount = unit::cgroup_mount()?;
    let below = |path: &str| -> PathBuf { mount.join(path.trim_start_matches('/')) };
    let found = bpfprog::effective(&below(cgroup), moment).ok()?;
    let ancestors = Path::new(cgroup).ancestors().map(|path| path.display().to_string());
    let places: Vec<(String, Vec<u32>)> = ancestors
        .filter_map(|path| bpfprog::attached(&below(&path), moment).ok().map(|ids| (path, ids)))
        .collect();
    Some(describe(found, Some(&places)))
}

fn describe(found: Vec<bpfprog::Program>, places: Option<&[(String, Vec<u32>)]>) -> Vec<Program> {
    let ids: Vec<u32> = found.iter().map(|p| p.id).collect();
    let holders = if ids.is_empty() { Vec::new() } else { bpfprog::holders(&ids) };
    let now = boottime_ns();
    found
        .into_iter()
        .map(|p| Program {
            id: p.id,
            uid: p.uid,
            loaded_s_ago: now.checked_sub(p.loaded_ns).map(|ns| ns / 1_000_000_000),
            holders: holders
                .iter()
                .filter(|(id, _)| *id == p.id)
                .map(|(_, pid)| format!("{} (pid {pid})", proc::comm(*pid)))
                .collect(),
            cgroup: places
                .and_then(|all| all.iter().find(|(_, ids)| ids.contains(&p.id)))
                .map(|(path, _)| path.clone()),
            name: p.name,
        })
        .collect()
}
