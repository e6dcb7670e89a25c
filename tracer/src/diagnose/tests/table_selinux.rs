//! What SELinux denies, and what only looks like it.

use super::*;
use crate::{
    correlate::selinux::{Decision, Label, PolicyFact, SelinuxFact},
    event::{Avc, Denial, Speaker},
    selinux::Remedy,
};
use Cause::{BlockedSelinux, NetworkUnreachable};
use Confidence::{Likely, Proven};

fn said(speaker: Speaker, ret: i32) -> Denial {
    let avc = Avc { ssid: 1, tsid: 2, class: 16, requested: 1 << 22 };
    Denial {
        speaker,
        worker: 133,
        thread: 133,
        time_ns: 5_000_030_000,
        socket: 0xffff_8881_0000_0000,
        ret,
        family: 2,
        remote: None,
        avc: matches!(speaker, Speaker::AvcDenied | Speaker::AvcAudit).then_some(avc),
        syscall: None,
        arg: 0,
    }
}

fn decision(class: &str, permission: &str) -> Decision {
    Decision {
        refused: true,
        audited: Some(true),
        source: Some("system_u:system_r:httpd_t:s0".to_owned()),
        target: Some("system_u:object_r:other_t:s0".to_owned()),
        object: Some("port 3000".to_owned()),
        class: Some(class.to_owned()),
        permissions: vec![permission.to_owned()],
        policy: Some(PolicyFact::default()),
        label: None,
        numbers: None,
    }
}

/// connect() refused with EACCES, and what was said in it.
fn refused_by(speakers: &[Speaker], decision: Decision) -> Build {
    call(Stage::Connect, FAR, libc::EACCES).edit(|c| {
        c.attempt.denials = speakers.iter().map(|s| said(*s, -libc::EACCES)).collect();
        c.attempt.security = speakers.contains(&Speaker::SumConnect).then_some(-libc::EACCES);
        let decisions = vec![decision];
        c.facts.selinux = Some(Box::new(SelinuxFact { enforcing: Some(true), audit_off: false, decisions }));
    })
}

const CHAIN: &[Speaker] = &[Speaker::AvcDenied, Speaker::Selinux, Speaker::SumConnect];

fn verdict(build: &Build) -> Verdict {
    diagnose(&build.0)
}

fn told(build: &Build) -> (Cause, Confidence) {
    let verdict = verdict(build);
    (verdict.cause, verdict.confidence)
}

fn advice(edit: impl FnOnce(&mut Decision)) -> Vec<String> {
    let mut d = decision("tcp_socket", "name_connect");
    edit(&mut d);
    let verdict = verdict(&refused_by(CHAIN, d));
    assert_eq!(verdict.cause, BlockedSelinux);
    verdict.fix.into_iter().map(|fix| fix.command.unwrap_or(fix.text)).collect()
}

fn remedy(name: &str, value: bool) -> Remedy {
    Remedy { boolean: name.to_owned(), value, own: 1, others: 0 }
}

#[test]
fn the_whole_chain_is_proof() {
    let connect = || decision("tcp_socket", "name_connect");
    assert_eq!(told(&refused_by(CHAIN, connect())), (BlockedSelinux, Proven));
    for missing in 0..CHAIN.len() {
        let rest: Vec<Speaker> =
            CHAIN.iter().enumerate().filter(|(at, _)| *at != missing).map(|(_, s)| *s).collect();
        assert_eq!(told(&refused_by(&rest, connect())), (BlockedSelinux, Likely), "without {missing}");
    }
    let both: Vec<Speaker> = CHAIN.iter().copied().chain([Speaker::CgroupConnect]).collect();
    assert_ne!(told(&refused_by(&both, connect())), (BlockedSelinux, Proven));
}

#[test]
fn a_denial_that_was_let_through_is_no_cause() {
    let lax =
        refused_by(&[], Decision { refused: false, ..decision("tcp_socket", "name_connect") }).edit(|c| {
            c.attempt.denials = vec![said(Speaker::AvcDenied, 0)];
            c.facts.route = Some(RouteFact {
                errno: Some(libc::EACCES),
                kind: Some("prohibit".to_owned()),
                entry: Some("prohibit 10.0.0.0/24".to_owned()),
                next_hop: None,
                device: None,
                device_up: None,
                device_xdp: false,
            });
        });
    assert_eq!(told(&lax), (NetworkUnreachable, Proven));
}

#[test]
fn tracepoints_alone_prove_nothing() {
    let seen = refused_by(&[Speaker::AvcAudit], decision("tcp_socket", "name_connect"))
        .edit(|c| c.reach = TRACEPOINT);
    assert_eq!(told(&seen), (BlockedSelinux, Likely));
    assert!(verdict(&seen).rival.is_some_and(|rival| rival.contains("prohibit route")));
}

#[test]
fn a_capability_leaves_file_permissions_to_refuse() {
    let told = told(&refused_by(CHAIN, decision("capability", "dac_override")));
    assert_eq!(told, (BlockedSelinux, Likely));
}

#[test]
fn advice_is_narrow() {
    let two = |d: &mut Decision| {
        d.policy.as_mut().unwrap().booleans = vec![remedy("narrow", true), remedy("wide", false)];
    };
    assert_eq!(advice(two), ["setsebool -P narrow on", "setsebool -P wide off"]);
    let label = |d: &mut Decision| d.label = Some(Label::Port { port: 3000, kind: "http_port_t".to_owned() });
    assert_eq!(advice(label), ["semanage port -a -t http_port_t -p tcp 3000"]);
    let wrong = |d: &mut Decision| {
        let (path, wanted) = ("/run/a.sock".to_owned(), "system_u:object_r:httpd_runtime_t:s0".to_owned());
        d.label = Some(Label::Restore { path, wanted });
    };
    assert_eq!(advice(wrong), ["restorecon -v /run/a.sock"]);
    let nothing = advice(|_| {});
    assert!(nothing[0].contains("(allow httpd_t other_t (tcp_socket (name_connect)))"), "{nothing:?}");
    let own = advice(|d| d.target.clone_from(&d.source));
    assert!(own[0].contains("(allow httpd_t self "), "{own:?}");
    let now = advice(|d| d.policy.as_mut().unwrap().allows_now = true);
    assert_eq!(now, ["nothing to change: the policy that is loaded now allows it"]);
    let constrained = advice(|d| d.policy.as_mut().unwrap().constrained = true);
    assert!(constrained.len() == 1 && constrained[0].contains("no allow rule lifts a constraint"));
}

#[test]
fn silence_has_a_reason() {
    let text = |audited: Option<bool>, dontaudit: bool, audit_off: bool| {
        let mut d = Decision { audited, ..decision("tcp_socket", "name_connect") };
        d.policy.as_mut().unwrap().dontaudit = dontaudit;
        let build = refused_by(CHAIN, d).edit(|c| c.facts.selinux.as_mut().unwrap().audit_off = audit_off);
        let found = verdict(&build).evidence.into_iter().find(|e| e.kind == "selinux-audit");
        found.map(|e| e.text).unwrap_or_default()
    };
    assert!(text(Some(true), true, true).starts_with("the audit log has it"));
    assert!(text(Some(false), true, false).contains("dontaudit rule keeps"));
    assert!(text(Some(false), false, true).contains("audit=0"));
    assert!(text(Some(false), false, false).contains("exclude rule"));
    assert_eq!(text(None, true, true), "", "what cannot be seen is not told");
}
