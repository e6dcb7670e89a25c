//! `blocked-selinux`: the policy denied what the worker's system call needed.
//!
//! Look-alikes: EACCES of file permissions, of a `prohibit` route, of another security module; a denial in permissive mode
//! that something else's refusal followed. So a denial alone proves nothing: it must have been refused, the call must have
//! returned that, and for connections SELinux's own function and the sum of all modules must say the same.

use crate::{
    correlate::{
        Case,
        selinux::{Decision, Label, PolicyFact, SelinuxFact},
    },
    diagnose::{Cause, Verdict, words},
    event::{Speaker, Stage},
    selinux::{Remedy, type_of},
};

pub(super) fn check(case: &Case) -> Option<Verdict> {
    let a = &case.attempt;
    let fact = case.facts.selinux.as_deref()?;
    if !matches!(a.stage, Stage::Socket | Stage::Bind | Stage::Connect) || a.ret >= 0 {
        return None;
    }
    // The last refusal is the one that the call returned.
    let decision = fact.decisions.iter().rev().find(|d| d.refused)?;
    let errno = a.ret.saturating_neg();
    let proof = errno == libc::EACCES && agrees(case, decision);
    let capability = decision.class.as_deref().is_some_and(|class| class.starts_with("cap"));
    let rival = if capability {
        "file permissions: what was denied is only the capability to override them"
    } else if a.denials.iter().any(|d| d.speaker == Speaker::AvcDenied) {
        "another check of the same call that refused as well"
    } else {
        "file permissions, a prohibit route or another security module: on this tier only the audit log's side is seen"
    };
    let mut verdict = Verdict::graded(Cause::BlockedSelinux, proof, summary(case, decision), rival)
        .because("selinux", decision.text())
        .because_if("selinux-source", decision.source.as_ref().map(|c| format!("worker {}: {c}", a.worker)))
        .because_if(
            "selinux-target",
            decision.target.as_ref().map(|target| match &decision.object {
                Some(object) => format!("{object}: {target}"),
                None => target.clone(),
            }),
        )
        .because("syscall", format!("{} returned {}", call(case), words::errno(errno)))
        .because_if("selinux-audit", audit(fact, decision))
        .because_if("selinux-policy", decision.policy.as_ref().and_then(policy));
    for fix in fixes(decision) {
        verdict = match fix {
            (text, Some(command)) => verdict.fix_with(text, command),
            (text, None) => verdict.fix(text),
        };
    }
    Some(verdict)
}

/// True if every hook on the way says that this denial is what the call returned.
fn agrees(case: &Case, decision: &Decision) -> bool {
    let denials = &case.attempt.denials;
    let refused = |speaker: Speaker| denials.iter().any(|d| d.speaker == speaker && d.ret == -libc::EACCES);
    let others = |d: &crate::event::Denial| {
        d.ret < 0
            && matches!(
                d.speaker,
                Speaker::Apparmor
                    | Speaker::Tomoyo
                    | Speaker::Smack
                    | Speaker::Landlock
                    | Speaker::BpfLsm
                    | Speaker::CgroupConnect
                    | Speaker::CgroupCreate
                    | Speaker::Seccomp
            )
    };
    if !refused(Speaker::AvcDenied) || denials.iter().any(others) {
        return false;
    }
    let sum = match case.attempt.stage {
        Stage::Socket => Speaker::SumCreate,
        Stage::Bind => Speaker::SumBind,
        Stage::Connect if case.attempt.unix.is_some() => Speaker::SumUnix,
        _ => Speaker::SumConnect,
    };
    match decision.class.as_deref() {
        // What refuses to walk a path or to write to a socket's file is returned as it is, by nobody else's leave.
        Some("sock_file" | "dir" | "lnk_file") => case.attempt.unix.is_some(),
        Some(class) if class.ends_with("_socket") => refused(Speaker::Selinux) && refused(sum),
        // A capability that is denied leaves file permissions in force: these refused.
        _ => false,
    }
}

fn call(case: &Case) -> &'static str {
    match case.attempt.stage {
        Stage::Socket => "socket()",
        Stage::Bind => "bind()",
        Stage::Connect | Stage::SynSent | Stage::Established | Stage::Untried => "connect()",
    }
}

fn summary(case: &Case, decision: &Decision) -> String {
    let domain = decision.source.as_deref().and_then(type_of).unwrap_or("nginx's domain");
    let label = decision.target.as_deref().and_then(type_of);
    let labelled = label.map_or(String::new(), |label| format!(", labelled {label}"));
    let what = match (case.attempt.stage, &decision.object) {
        (Stage::Socket, _) => "make a socket".to_owned(),
        (Stage::Bind, _) => format!("bind to {}", words::target(&case.attempt)),
        (_, Some(object)) => format!("connect to {object}{labelled}"),
        (_, None) => format!("connect to {}", words::target(&case.attempt)),
    };
    format!("SELinux does not let {domain} {what}")
}

fn audit(fact: &SelinuxFact, decision: &Decision) -> Option<String> {
    let dontaudit = decision.policy.as_ref().is_some_and(|p| p.dontaudit);
    Some(match decision.audited? {
        true => "the audit log has it".to_owned(),
        false if dontaudit => "silenced: a dontaudit rule keeps it out of every log".to_owned(),
        false if fact.audit_off => {
            "silenced: the kernel was started with audit=0, so no log has it".to_owned()
        }
        false => {
            "silenced: no log has it (no dontaudit rule: an exclude rule of audit, or its limit)".to_owned()
        }
    })
}

fn policy(policy: &PolicyFact) -> Option<String> {
    if policy.allows_now {
        return Some("the policy that is loaded now allows it: it has changed since".to_owned());
    }
    if policy.constrained {
        return Some("rules allow it, a constraint on user, role or level does not".to_owned());
    }
    policy.unevaluated.then(|| "a constraint of this class could not be evaluated".to_owned())
}

/// From narrow to wide: booleans; else another label; else a rule of its own.
fn fixes(decision: &Decision) -> Vec<(String, Option<String>)> {
    let domain = decision.source.as_deref().and_then(type_of).unwrap_or("the domain");
    let mut fixes = Vec::new();
    let fact = decision.policy.as_ref();
    if fact.is_some_and(|p| p.allows_now) {
        return vec![("nothing to change: the policy that is loaded now allows it".to_owned(), None)];
    }
    if fact.is_some_and(|p| p.constrained) {
        fixes.push((
            "compare user, role and level of both contexts: no allow rule lifts a constraint".to_owned(),
            None,
        ));
        return fixes;
    }
    let booleans = fact.map_or(&[][..], |p| &p.booleans);
    // A wrong label is mended before anything is opened.
    if let Some(Label::Restore { path, wanted }) = &decision.label {
        let wanted = type_of(wanted).unwrap_or(wanted);
        fixes.push((
            format!("give {path} the label that the policy has for it, {wanted}"),
            Some(format!("restorecon -v {path}")),
        ));
    }
    for (at, remedy) in booleans.iter().enumerate() {
        fixes.push(boolean(remedy, domain, at));
    }
    let or = if booleans.is_empty() { "" } else { "or narrower: " };
    match &decision.label {
        Some(Label::Port { port, kind }) => fixes.push((
            format!("{or}label this port {kind}, to which {domain} may connect already"),
            Some(format!("semanage port -a -t {kind} -p tcp {port}")),
        )),
        Some(Label::File { path, kind }) => fixes.push((
            format!("{or}label the socket {kind}, to which {domain} may write already"),
            Some(format!("semanage fcontext -a -t {kind} '{path}' && restorecon -v {path}")),
        )),
        Some(Label::Restore { .. }) | None => {}
    }
    if !fixes.is_empty() {
        return fixes;
    }
    if let (Some(source), Some(target), Some(class)) = (
        decision.source.as_deref().and_then(type_of),
        decision.target.as_deref().and_then(type_of),
        &decision.class,
    ) && !decision.permissions.is_empty()
    {
        let target = if source == target { "self" } else { target };
        let rule = format!("(allow {source} {target} ({class} ({})))", decision.permissions.join(" "));
        fixes.push((
            "neither a boolean nor a label allows it: a policy module with this rule alone".to_owned(),
            Some(format!("echo '{rule}' >why502_local.cil && semodule -i why502_local.cil")),
        ));
    }
    fixes
}

fn boolean(remedy: &Remedy, domain: &str, at: usize) -> (String, Option<String>) {
    let value = if remedy.value { "on" } else { "off" };
    let others = match remedy.others {
        0 => "nothing to other domains".to_owned(),
        n => format!("{n} to other domains"),
    };
    let how = if at == 0 { "switch" } else { "or, wider, switch" };
    (
        format!(
            "{how} the boolean {} {value}: it gives {domain} up to {} permission{}, {others}",
            remedy.boolean,
            remedy.own,
            if remedy.own == 1 { "" } else { "s" }
        ),
        Some(format!("setsebool -P {} {value}", remedy.boolean)),
    )
}
