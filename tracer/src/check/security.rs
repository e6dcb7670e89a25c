//! Who may refuse what the worker does: SELinux, AppArmor, a system call filter. What they refuse of upstream servers is
//! found with those (`upstreams.rs`).

use super::{Checked, Name, Options, Report, Subject, position::worker, probe::Where, targets};
use crate::{
    selinux::type_of,
    session::Explainer,
    sys::{apparmor, proc, process::Process, selinux},
};

/// It finds nothing of its own.
pub const NAMES: &[Name] = &[];

/// Looks at the modes and at what confines the worker.
#[must_use]
pub fn inspect(subject: &Subject<'_>, _: &Options) -> Report {
    let Some(worker) = worker(subject) else { return Report::default() };
    let checked = [selinux_mode(subject, worker), apparmor_mode(worker), filter(worker)];
    Report { checked: checked.into_iter().flatten().collect(), findings: Vec::new() }
}

fn one(what: &'static str, seen: String, incomplete: Option<String>) -> Checked {
    Checked { what, seen, incomplete, findings: Vec::new() }
}

fn selinux_mode(subject: &Subject<'_>, worker: &Process) -> Option<Checked> {
    let enforcing = selinux::enforcing()?;
    let context = selinux::of_process(worker.pid);
    let domain = context.as_deref().and_then(type_of).unwrap_or("an unknown domain");
    if selinux::policy().is_err() {
        let why = "the policy cannot be read (security { read_policy }): whether it allows the upstream servers is not known";
        let mode = if enforcing { "enforcing" } else { "permissive" };
        return Some(one("SELinux", format!("{mode}, the worker runs as {domain}"), Some(why.to_owned())));
    }
    let mut explainer = Explainer::default();
    let all =
        targets::of(&subject.snapshot.model, &std::collections::HashMap::new(), subject.snapshot.kept());
    let mut would = 0;
    let mut enforced = 0;
    for target in &all.targets {
        let asked = match &target.ask.to {
            Where::Tcp(to) => Ok(to.port()),
            Where::Unix(path) => Err(path.as_slice()),
        };
        match explainer.foresee(worker.pid, asked) {
            Some(found) if found.enforced => enforced += 1,
            Some(_) => would += 1,
            None => {}
        }
    }
    let mut seen = if enforcing {
        format!("enforcing, the worker runs as {domain}")
    } else {
        format!("permissive: nothing is refused; the worker runs as {domain}")
    };
    if enforced > 0 {
        seen += &format!("; the policy denies {enforced} of the upstream servers");
    }
    if would > 0 {
        seen += &format!("; when enforcing, the policy would deny {would} of the upstream servers");
    }
    Some(one("SELinux", seen, None))
}

fn apparmor_mode(worker: &Process) -> Option<Checked> {
    let (profile, mode) = apparmor::confinement(worker.pid)?;
    if profile == "unconfined" {
        return Some(one("AppArmor", "no profile confines the worker".to_owned(), None));
    }
    let name = match &mode {
        Some(mode) => format!("{profile} ({mode})"),
        None => profile.clone(),
    };
    Some(match mode.as_deref() {
        Some("complain") => one("AppArmor", format!("profile {name}: it refuses nothing"), None),
        Some("enforce") if !profile.contains("//&") => {
            one("AppArmor", format!("profile {name}: connections were tried under it"), None)
        }
        _ => {
            let why = "connections were tried without this profile: it cannot be taken on. What it refuses shows in `why502 \
                       trace`";
            one("AppArmor", format!("profile {name}"), Some(why.to_owned()))
        }
    })
}

fn filter(worker: &Process) -> Option<Checked> {
    let status = proc::read_up_to(format!("/proc/{}/status", worker.pid), 64 << 10).ok()?;
    let mode: u32 = proc::field(&status, "Seccomp")?.parse().ok()?;
    let seen = match mode {
        0 => return None,
        1 => "the worker runs in strict mode",
        _ => "the worker has one; what it refuses shows in `why502 trace` alone",
    };
    Some(one("seccomp", seen.to_owned(), None))
}
