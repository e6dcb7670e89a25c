//! Facts about SELinux's decisions: the kernel tells numbers, this finds the words and what the policy has to say.

use std::{
    collections::HashSet,
    ffi::OsStr,
    os::unix::{ffi::OsStrExt as _, fs::MetadataExt as _},
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use crate::{
    correlate::selinux::{Decision, Label, PolicyFact, SelinuxFact},
    event::{Attempt, Avc, Denial, Speaker},
    selinux::{Context, Policy, TCP, kernel::Classes, labels, type_of},
    sys::{
        netns::{self, NetNs},
        owners, selinux as system,
        unixdiag::{self, FileMatch},
    },
};

/// How long a policy is kept that nobody asks (2 MB for Debian's).
const KEEP: Duration = Duration::from_secs(30);
/// Warnings that are remembered so that each is given once.
const MOST_WARNINGS: usize = 4096;
/// Network namespaces that are searched for a unix listener.
const MOST_NAMESPACES: usize = 64;

/// Where a decision happened.
struct Place<'a> {
    worker: u32,
    /// TCP port, if it was about one.
    port: Option<u16>,
    /// Path of a unix socket.
    path: Option<&'a [u8]>,
}

/// Asks SELinux, and remembers the policy for a while.
#[derive(Default)]
pub(super) struct Selinux {
    policy: Option<Loaded>,
    classes: Option<Classes>,
    warned: HashSet<(u32, u32, u32, u32)>,
}

struct Loaded {
    policy: Policy,
    /// `None`: the kernel does not number policies.
    number: Option<u32>,
    used: Instant,
}

impl Selinux {
    /// Forgets what is old.
    pub(super) fn sweep(&mut self) {
        if self.policy.as_ref().is_some_and(|loaded| loaded.used.elapsed() > KEEP) {
            self.policy = None;
        }
    }

    /// What SELinux decided in the system call that ended an attempt; None if nothing. `audit_seen`: what is written to
    /// the audit log is watched.
    pub(super) fn gather(&mut self, attempt: &Attempt, audit_seen: bool) -> Option<Box<SelinuxFact>> {
        let said = decisions(&attempt.denials);
        if said.is_empty() {
            return None;
        }
        let place = Place {
            worker: attempt.worker,
            port: (attempt.unix.is_none() && !attempt.no_remote).then(|| attempt.remote.port()),
            path: attempt.unix.as_ref().and_then(|name| name.path()),
        };
        let mut decisions: Vec<Decision> = Vec::new();
        for (avc, refused, audited) in said {
            let mut decision = self.describe(avc, &place);
            decision.refused = refused;
            decision.audited = audit_seen.then_some(audited);
            decisions.push(decision);
        }
        Some(Box::new(SelinuxFact {
            enforcing: system::enforcing(),
            audit_off: system::audit_off(),
            decisions,
        }))
    }

    /// What a worker's connection needs, each asked of the loaded policy; nothing is tried. `Ok`: a TCP port; `Err`: the path
    /// of a unix socket. Empty without SELinux, or if its policy cannot be read.
    pub(super) fn foresee(&mut self, worker: u32, to: Result<u16, &[u8]>) -> Vec<Decision> {
        let needs: &[(&str, &str)] = match to {
            Ok(_) => &[("tcp_socket", "name_connect")],
            Err(_) => &[("dir", "search"), ("sock_file", "write"), ("unix_stream_socket", "connectto")],
        };
        let place = Place { worker, port: to.ok(), path: to.err() };
        let Some(source) = system::of_process(worker) else { return Vec::new() };
        let Some(policy) = self.policy() else { return Vec::new() };
        let asked = needs.iter().filter_map(|(class, permission)| {
            let mut decision = Decision {
                source: Some(source.clone()),
                class: Some((*class).to_owned()),
                permissions: vec![(*permission).to_owned()],
                ..Decision::default()
            };
            find_target(&mut decision, &place, Some(policy));
            decision.policy = ask(policy, &decision);
            decision.label = label(policy, &decision, &place);
            decision.policy.as_ref()?;
            Some(decision)
        });
        asked.collect()
    }

    /// What would be denied if the system or the domain were enforcing, in one line; None if it has been told before.
    pub(super) fn warning(&mut self, denial: &Denial) -> Option<String> {
        let avc = denial.avc.filter(|_| denial.speaker == Speaker::AvcDenied && denial.ret == 0)?;
        let key = (avc.ssid, avc.tsid, avc.class, avc.requested);
        if self.warned.len() >= MOST_WARNINGS || !self.warned.insert(key) {
            return None;
        }
        let place = Place {
            worker: denial.worker,
            port: denial.remote.map(|to| to.port()).filter(|port| *port != 0),
            path: None,
        };
        let enforcing = system::enforcing();
        let decision = self.describe(avc, &place);
        let why = match (&decision.policy, enforcing) {
            (Some(policy), Some(true)) if policy.permissive_domain => "its domain is permissive",
            (_, Some(false)) => "SELinux is permissive",
            _ => "SELinux let it through",
        };
        let object = decision.object.as_ref().map_or(String::new(), |object| format!(" on {object}"));
        Some(format!(
            "SELinux would deny worker {} {}{object} when enforcing; now {why}",
            denial.worker,
            decision.text()
        ))
    }

    fn describe(&mut self, avc: Avc, place: &Place<'_>) -> Decision {
        let classes = self.classes.get_or_insert_with(system::classes);
        let class = classes.class(avc.class).map(str::to_owned);
        let permissions: Vec<String> = classes
            .permissions(avc.class, avc.requested)
            .unwrap_or_default()
            .into_iter()
            .map(str::to_owned)
            .collect();
        let mut decision = Decision {
            source: system::of_process(place.worker),
            class,
            permissions,
            numbers: Some(avc),
            ..Decision::default()
        };
        let policy = self.policy();
        find_target(&mut decision, place, policy);
        if let Some(policy) = policy {
            decision.policy = ask(policy, &decision);
            decision.label = label(policy, &decision, place);
        }
        decision
    }

    /// The policy that is loaded now.
    fn policy(&mut self) -> Option<&Policy> {
        let number = system::policy_number();
        let fresh = |loaded: &Loaded| number.is_some() && loaded.number == number;
        if !self.policy.as_ref().is_some_and(fresh) {
            let bytes = system::policy().ok()?;
            self.policy = Policy::read(&bytes)
                .inspect_err(|error| super::complain(&[format!("cannot read SELinux's policy: {error}")]))
                .ok()
                .map(|policy| Loaded { policy, number, used: Instant::now() });
        }
        let loaded = self.policy.as_mut()?;
        loaded.used = Instant::now();
        Some(&loaded.policy)
    }
}

/// Each decision once: the numbers, whether it was refused, whether it went into the audit log.
fn decisions(denials: &[Denial]) -> Vec<(Avc, bool, bool)> {
    let mut found: Vec<(Avc, bool, bool)> = Vec::new();
    for denial in denials {
        let Some(avc) = denial.avc else { continue };
        let audit = denial.speaker == Speaker::AvcAudit;
        let same = |(other, ..): &&mut (Avc, bool, bool)| {
            (other.ssid, other.tsid, other.class) == (avc.ssid, avc.tsid, avc.class)
                && other.requested & avc.requested != 0
        };
        match found.iter_mut().find(same) {
            Some((_, refused, audited)) => {
                *refused |= denial.ret < 0;
                *audited |= audit;
            }
            None => found.push((avc, denial.ret < 0, audit)),
        }
    }
    found
}

/// Sets object and target context.
fn find_target(decision: &mut Decision, place: &Place<'_>, policy: Option<&Policy>) {
    let connects = |name: &str| decision.permissions.iter().any(|p| p == name);
    match decision.class.as_deref() {
        Some("tcp_socket") if connects("name_connect") || connects("name_bind") => {
            let Some(port) = place.port else { return };
            decision.object = Some(format!("port {port}"));
            decision.target = policy.and_then(|policy| policy.show(policy.port_context(TCP, port)?));
        }
        Some("sock_file") => {
            let Some(path) = place.path.map(inside(place.worker)) else { return };
            decision.object = place.path.map(shown);
            decision.target = system::of_file(&path);
        }
        Some("dir" | "lnk_file") => {
            let Some(path) = place.path else { return };
            if let Some((name, target)) = component(decision, path, place.worker, policy) {
                decision.object = Some(name);
                decision.target = Some(target);
            }
        }
        Some("unix_stream_socket") if connects("connectto") => {
            let Some(path) = place.path.map(inside(place.worker)) else { return };
            let Some(pid) = listener(&path, place.worker) else { return };
            decision.object = Some(owner(pid));
            decision.target = system::of_process(pid);
        }
        // A socket that a process makes has the label of the process.
        Some("tcp_socket" | "udp_socket" | "unix_stream_socket" | "unix_dgram_socket") => {
            decision.object = Some("its own socket".to_owned());
            decision.target.clone_from(&decision.source);
        }
        _ => {}
    }
}

/// A path as the worker sees it, in ours.
fn inside(worker: u32) -> impl Fn(&[u8]) -> PathBuf {
    move |path| {
        let rest = path.strip_prefix(b"/").unwrap_or(path);
        let root = if rest.len() < path.len() { "root" } else { "cwd" };
        Path::new("/proc").join(worker.to_string()).join(root).join(OsStr::from_bytes(rest))
    }
}

fn shown(path: &[u8]) -> String {
    String::from_utf8_lossy(path).escape_debug().to_string()
}

/// The first folder or link of a path, that the policy denies to the decision's source.
fn component(
    decision: &Decision,
    path: &[u8],
    worker: u32,
    policy: Option<&Policy>,
) -> Option<(String, String)> {
    let policy = policy?;
    let ends = path.iter().enumerate().filter(|(_, byte)| **byte == b'/').map(|(at, _)| at);
    for end in ends.chain([path.len()]) {
        let part = if end == 0 { b"/".as_slice() } else { path.get(..end)? };
        let Some(context) = system::of_file(&inside(worker)(part)) else { continue };
        let asked = Decision { target: Some(context.clone()), ..decision.clone() };
        if ask(policy, &asked).is_some_and(|fact| !fact.allows_now) {
            return Some((shown(part), context));
        }
    }
    None
}

/// The process that listens on a unix socket's file.
fn listener(path: &Path, worker: u32) -> Option<u32> {
    let file = std::fs::metadata(path).ok()?;
    let own = NetNs::of_pid(worker).ok();
    let others = netns::all(MOST_NAMESPACES).unwrap_or_default();
    let others = others.iter().filter_map(|resident| resident.open().ok());
    for ns in own.into_iter().chain(others) {
        let listeners = unixdiag::listeners(&ns).unwrap_or_default();
        let fits = listeners.iter().find(|l| l.matches(file.dev(), file.ino()) == FileMatch::Yes);
        if let Some(found) = fits {
            let holders = owners::find(&[found.inode], owners::Budget::default());
            return holders.get(found.inode).map(|owner| owner.pid);
        }
    }
    None
}

fn owner(pid: u32) -> String {
    let owner = owners::describe(pid);
    format!("the socket of {} (pid {pid})", owner.exe.unwrap_or(owner.comm))
}

/// Source, target, class and permissions in the policy's numbers; None if the policy lacks one of them.
fn question(policy: &Policy, decision: &Decision) -> Option<(Context, Context, u16, u32)> {
    let source = policy.parse_context(decision.source.as_deref()?)?;
    let target = decision.target.as_deref()?;
    // Contexts of ports are told without their level, which is the lowest.
    let target = policy.parse_context(target).or_else(|| policy.parse_context(&format!("{target}:s0")))?;
    let class = policy.class(decision.class.as_deref()?)?;
    let permissions = policy.permissions(class, decision.permissions.iter().map(String::as_str))?;
    (permissions != 0).then_some((source, target, class, permissions))
}

fn ask(policy: &Policy, decision: &Decision) -> Option<PolicyFact> {
    let (source, target, class, permissions) = question(policy, decision)?;
    let access = policy.access(&source, &target, class);
    Some(PolicyFact {
        allows_now: access.granted() & permissions == permissions,
        dontaudit: access.silent & permissions == permissions & !access.granted(),
        constrained: access.allowed & permissions == permissions && access.constrained & permissions != 0,
        unevaluated: access.unevaluated,
        permissive_domain: policy.is_permissive(&source),
        booleans: policy.remedies(&source, &target, class, permissions),
    })
}

/// Another label under which it would be allowed now.
fn label(policy: &Policy, decision: &Decision, place: &Place<'_>) -> Option<Label> {
    let (source, target, class, permissions) = question(policy, decision)?;
    let allowed =
        |other: &Context| policy.access(&source, other, class).granted() & permissions == permissions;
    match decision.class.as_deref()? {
        "tcp_socket" => {
            let port = place.port?;
            // A port that a line names on its own belongs to another service.
            if policy.port_line(TCP, port).is_some_and(|line| line.low == line.high) {
                return None;
            }
            let fits = policy
                .port_types(TCP)
                .into_iter()
                .find(|(name, context)| name.starts_with("http") && allowed(context));
            fits.map(|(kind, _)| Label::Port { port, kind: kind.to_owned() })
        }
        "sock_file" => {
            let path = shown(place.path?);
            let current = decision.target.as_deref()?;
            let (lines, aliases) = system::file_contexts()?;
            let wanted = labels::of_socket(&labels::substitute(&path, &aliases), &lines);
            if let Some(wanted) = wanted
                && type_of(&wanted) != type_of(current)
                && policy.parse_context(&wanted).is_some_and(|context| allowed(&context))
            {
                return Some(Label::Restore { path, wanted });
            }
            let domain = type_of(decision.source.as_deref()?)?;
            // The reference policy's names for what a domain keeps in /run: since 2020, and before.
            let own =
                ["_runtime_t", "_var_run_t"].map(|end| format!("{}{end}", domain.trim_end_matches("_t")));
            let fits = |kind: &String| {
                type_of(current) != Some(kind) && policy.retyped(&target, kind).is_some_and(|c| allowed(&c))
            };
            own.into_iter().find(fits).map(|kind| Label::File { path, kind })
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn denial(speaker: Speaker, ret: i32, class: u32, requested: u32) -> Denial {
        Denial {
            speaker,
            worker: 1,
            thread: 1,
            time_ns: 1,
            socket: 0,
            ret,
            family: 2,
            remote: None,
            avc: matches!(speaker, Speaker::AvcDenied | Speaker::AvcAudit).then_some(Avc {
                ssid: 1,
                tsid: 2,
                class,
                requested,
            }),
            syscall: None,
            arg: 0,
        }
    }

    #[test]
    fn a_decision_is_told_once() {
        let said = [
            denial(Speaker::AvcDenied, -13, 16, 4),
            denial(Speaker::AvcAudit, -13, 16, 4),
            denial(Speaker::Selinux, -13, 0, 0),
            denial(Speaker::AvcDenied, 0, 8, 1),
        ];
        let found = decisions(&said);
        let shown: Vec<_> =
            found.iter().map(|(avc, refused, audited)| (avc.class, *refused, *audited)).collect();
        assert_eq!(shown, [(16, true, true), (8, false, false)]);
        assert!(decisions(&[denial(Speaker::SumConnect, -13, 0, 0)]).is_empty());
    }

    #[test]
    fn paths_are_the_workers() {
        assert_eq!(inside(7)(b"/run/a.sock"), Path::new("/proc/7/root/run/a.sock"));
        assert_eq!(inside(7)(b"a.sock"), Path::new("/proc/7/cwd/a.sock"));
        assert_eq!(shown(b"/run/\x1b[1m"), "/run/\\u{1b}[1m");
    }

    #[test]
    fn warnings_are_given_once() {
        let mut selinux = Selinux::default();
        let would = denial(Speaker::AvcDenied, 0, 16, 1 << 22);
        let text = selinux.warning(&would).unwrap();
        assert!(text.contains("tcp_socket { name_connect }") && text.contains("worker 1"), "{text}");
        assert_eq!(selinux.warning(&would), None);
        assert_eq!(selinux.warning(&denial(Speaker::AvcDenied, -13, 16, 4)), None);
        assert_eq!(selinux.warning(&denial(Speaker::SumConnect, 0, 16, 4)), None);
    }
}
