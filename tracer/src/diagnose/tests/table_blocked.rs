//! Refusals by security modules, cgroup programs and system call filters, with their look-alikes.

use super::*;
use crate::{
    correlate::blocked::{Confinement, FileLine, Program, Suspects, Unit},
    event::{Denial, Speaker},
};
use Cause::{
    BlockedApparmor, BlockedBpfLsm, BlockedCgroupBpf, BlockedLandlock, BlockedSeccomp, FdLimit,
    NetworkUnreachable, Unexplained,
};
use Confidence::{Likely, Proven, Unexplained as No};

const SOCKET6: &str = "[::]:0";

impl Build {
    /// This one returned that errno (0: let it through) in the same system call.
    fn says(self, speaker: Speaker, errno: i32) -> Self {
        self.edit(|c| {
            c.attempt.denials.push(Denial {
                speaker,
                worker: c.attempt.worker,
                thread: c.attempt.worker,
                time_ns: c.attempt.end_ns,
                socket: c.attempt.socket,
                ret: -errno,
                family: 0,
                remote: None,
                avc: None,
                syscall: None,
                arg: 0,
            });
        })
    }

    fn suspects(self, suspects: Suspects) -> Self {
        self.edit(|c| c.facts.suspects = Some(Box::new(suspects)))
    }
}

fn confined(mode: &str) -> Suspects {
    let confinement = Confinement {
        profile: "nginx".to_owned(),
        mode: Some(mode.to_owned()),
        wanted: "network inet6 stream,".to_owned(),
        whole: true,
        ..Confinement::default()
    };
    Suspects { apparmor: Some(confinement), ..Suspects::default() }
}

fn program(id: u32) -> Program {
    Program { id, name: "deny".to_owned(), ..Program::default() }
}

#[test]
fn who_spoke_is_named() {
    let connect = |errno| call(Stage::Connect, FAR, errno);
    let by = |sum, own, errno| connect(errno).says(own, errno).says(sum, errno);
    let sum = Speaker::SumConnect;
    check(vec![
        ("AppArmor", by(sum, Speaker::Apparmor, libc::EACCES), BlockedApparmor, Proven),
        ("Landlock", by(sum, Speaker::Landlock, libc::EACCES), BlockedLandlock, Proven),
        ("BPF LSM", by(sum, Speaker::BpfLsm, libc::EPERM), BlockedBpfLsm, Proven),
        ("TOMOYO has no cause", by(sum, Speaker::Tomoyo, libc::EPERM), Unexplained, No),
        ("cgroup", connect(libc::EPERM).says(Speaker::CgroupConnect, libc::EPERM), BlockedCgroupBpf, Proven),
        ("filter", connect(libc::EPERM).says(Speaker::Seccomp, libc::EPERM), BlockedSeccomp, Proven),
        (
            "its sum was not seen",
            connect(libc::EPERM).says(Speaker::BpfLsm, libc::EPERM),
            BlockedBpfLsm,
            Likely,
        ),
        ("whose module was not seen", connect(libc::EPERM).says(sum, libc::EPERM), Unexplained, No),
        (
            "socket()",
            call(Stage::Socket, SOCKET6, libc::EACCES)
                .says(Speaker::Apparmor, libc::EACCES)
                .says(Speaker::SumCreate, libc::EACCES),
            BlockedApparmor,
            Proven,
        ),
    ]);
}

#[test]
fn an_errno_that_is_somebody_elses_deceives_nobody() {
    let by_bpf = |build: Build, sum, errno| build.says(Speaker::BpfLsm, errno).says(sum, errno);
    let connect = |errno| call(Stage::Connect, FAR, errno);
    check(vec![
        (
            "a descriptor limit",
            by_bpf(call(Stage::Socket, SOCKET6, libc::EMFILE), Speaker::SumCreate, libc::EMFILE),
            BlockedBpfLsm,
            Proven,
        ),
        (
            "a missing route",
            by_bpf(connect(libc::ENETUNREACH), Speaker::SumConnect, libc::ENETUNREACH)
                .route(Some(libc::ENETUNREACH), "unicast"),
            BlockedBpfLsm,
            Proven,
        ),
        (
            "a prohibit route beside a confined worker",
            connect(libc::EACCES).route(Some(libc::EACCES), "prohibit").suspects(confined("enforce")),
            NetworkUnreachable,
            Proven,
        ),
        (
            "what permissive mode let through before a limit was met",
            call(Stage::Socket, SOCKET6, libc::EMFILE).says(Speaker::AvcDenied, 0),
            FdLimit,
            Proven,
        ),
    ]);
}

#[test]
fn elimination_is_likely_at_best() {
    let socket = |errno| call(Stage::Socket, SOCKET6, errno);
    let filter = || Suspects { seccomp: Some(2), ..Suspects::default() };
    let lsm = || Suspects { lsm_programs: Some(vec![program(7)]), ..Suspects::default() };
    let group = || Suspects { cgroup_programs: Some(vec![program(7)]), ..Suspects::default() };
    let seen = |build: Build| build.on(FULL);
    let unseen = |build: Build| build.on(TRACEPOINT);
    check(vec![
        ("AppArmor", unseen(socket(libc::EACCES)).suspects(confined("enforce")), BlockedApparmor, Likely),
        ("complaining", unseen(socket(libc::EACCES)).suspects(confined("complain")), Unexplained, No),
        ("no EACCES", unseen(socket(libc::EPERM)).suspects(confined("enforce")), Unexplained, No),
        ("filter", unseen(socket(libc::EAFNOSUPPORT)).suspects(filter()), BlockedSeccomp, Likely),
        ("no filter", unseen(socket(libc::EAFNOSUPPORT)).suspects(Suspects::default()), Unexplained, No),
        ("BPF LSM", unseen(socket(libc::EPERM)).suspects(lsm()), BlockedBpfLsm, Likely),
        ("cgroup", unseen(socket(libc::EPERM)).suspects(group()), BlockedCgroupBpf, Likely),
        ("all is watched, and nobody spoke", seen(socket(libc::EPERM)).suspects(group()), Unexplained, No),
    ]);
}

#[test]
fn rules_and_units_are_shown_and_fixes_are_narrow() {
    let at = |file: &str, line, text: &str| FileLine { file: file.to_owned(), line, text: text.to_owned() };
    let mut suspects = confined("enforce");
    let profile = suspects.apparmor.as_mut().unwrap();
    profile.header = Some(at("/etc/apparmor.d/nginx", 3, "profile nginx {"));
    profile.deny = Some(at("/etc/apparmor.d/nginx", 9, "deny network inet6"));
    let refused = |suspects| {
        let build = call(Stage::Socket, SOCKET6, libc::EACCES)
            .says(Speaker::Apparmor, libc::EACCES)
            .says(Speaker::SumCreate, libc::EACCES)
            .suspects(suspects);
        diagnose(&build.0)
    };
    let quiet = refused(suspects.clone());
    assert!(quiet.evidence.iter().any(|e| e.kind == "silenced"), "{quiet:#?}");
    assert!(quiet.fix[0].text.contains("/etc/apparmor.d/nginx:9"), "{quiet:#?}");
    assert_eq!(quiet.fix[0].command.as_deref(), Some("apparmor_parser -r /etc/apparmor.d/nginx"));

    let profile = suspects.apparmor.as_mut().unwrap();
    profile.deny = None;
    profile.local = Some("/etc/apparmor.d/local/nginx".to_owned());
    let missing = refused(suspects);
    assert!(missing.evidence.iter().all(|e| e.kind != "silenced"), "{missing:#?}");
    assert!(
        missing.fix[0].text.contains("`network inet6 stream,` to /etc/apparmor.d/local/nginx"),
        "{missing:#?}"
    );

    let unit = Unit {
        name: "nginx.service".to_owned(),
        lines: vec![
            at("/etc/systemd/system/nginx.service", 7, "RestrictAddressFamilies=AF_UNIX AF_INET"),
            at("/etc/systemd/system/nginx.service", 8, "IPAddressDeny=any"),
        ],
    };
    let filtered = call(Stage::Socket, SOCKET6, libc::EAFNOSUPPORT)
        .says(Speaker::Seccomp, libc::EAFNOSUPPORT)
        .suspects(Suspects { unit: Some(unit), seccomp: Some(2), ..Suspects::default() });
    let verdict = diagnose(&filtered.0);
    let units: Vec<&str> =
        verdict.evidence.iter().filter(|e| e.kind == "unit").map(|e| e.text.as_str()).collect();
    assert_eq!(units.len(), 1, "{verdict:#?}");
    assert!(units[0].contains("nginx.service:7: RestrictAddressFamilies=AF_UNIX AF_INET"), "{units:?}");
}
