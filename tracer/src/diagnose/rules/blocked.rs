//! `blocked-apparmor`, `blocked-landlock`, `blocked-bpf-lsm`, `blocked-cgroup-bpf`, `blocked-seccomp`: somebody who
//! watches over system calls refused one.
//!
//! The errno proves nothing: EACCES is a prohibit route's as well, or that of file permissions; EPERM is all of theirs.
//! What proves it is the answer of the module's own function together with that of all modules, of the cgroup's
//! programs, or of the filter, in the same system call and with the same errno. Where no hook can see that (tracepoint
//! tier) only elimination is left: `likely` at best.

use crate::{
    correlate::{
        Case,
        blocked::{Confinement, Program},
    },
    diagnose::{Cause, Verdict, words},
    event::{Denial, Speaker, Stage},
};

pub(super) fn check(case: &Case) -> Option<Verdict> {
    if !matches!(case.attempt.stage, Stage::Socket | Stage::Bind | Stage::Connect) {
        return None;
    }
    let refusals: Vec<&Denial> = refusals(case).collect();
    if refusals.is_empty() {
        return by_elimination(case);
    }
    let spoke = |speaker: Speaker| refusals.iter().any(|d| d.speaker == speaker);
    // A filter answers before the call runs: nobody else can have spoken.
    if spoke(Speaker::Seccomp) {
        return Some(seccomp(case, None).because("syscall", said(case, &refusals)));
    }
    let mut modules: Vec<Speaker> = refusals.iter().map(|d| d.speaker).filter(|s| own_answer(*s)).collect();
    modules.dedup();
    let sum = refusals.iter().any(|d| is_sum(d.speaker));
    if !sum && modules.is_empty() && (spoke(Speaker::CgroupConnect) || spoke(Speaker::CgroupCreate)) {
        return Some(cgroup(case, None).because("syscall", said(case, &refusals)));
    }
    // The chain of modules ends at the first refusal: more than one cannot have spoken in one call.
    let rival = match modules.as_slice() {
        [_] if sum => None,
        [_] => Some("another module: the answer of all together was not seen".to_owned()),
        _ => return None,
    };
    let verdict = match modules.first()? {
        Speaker::Apparmor => apparmor(case, rival),
        Speaker::Landlock => landlock(case, rival),
        Speaker::BpfLsm => bpf_lsm(case, rival),
        // SELinux has a rule of its own; for TOMOYO and Smack there is no cause.
        _ => return None,
    };
    Some(verdict.because("lsm", said(case, &refusals)))
}

/// What refused the call that failed.
pub(crate) fn refusals(case: &Case) -> impl Iterator<Item = &Denial> {
    let a = &case.attempt;
    a.denials.iter().filter(|d| d.ret < 0 && d.ret == a.ret)
}

/// True if the call that failed is known to have been refused by a module, a cgroup's program or a filter: then it
/// failed for nothing else.
pub(crate) fn is_refused(case: &Case) -> bool {
    refusals(case).any(|d| {
        is_sum(d.speaker)
            || matches!(d.speaker, Speaker::CgroupConnect | Speaker::CgroupCreate | Speaker::Seccomp)
    })
}

/// True for the causes of this family.
pub(crate) fn is_block(cause: Cause) -> bool {
    matches!(
        cause,
        Cause::BlockedSelinux
            | Cause::BlockedApparmor
            | Cause::BlockedBpfLsm
            | Cause::BlockedCgroupBpf
            | Cause::BlockedSeccomp
            | Cause::BlockedLandlock
    )
}

fn is_sum(speaker: Speaker) -> bool {
    matches!(
        speaker,
        Speaker::SumConnect | Speaker::SumUnix | Speaker::SumCreate | Speaker::SumBind | Speaker::SumPath
    )
}

fn own_answer(speaker: Speaker) -> bool {
    matches!(
        speaker,
        Speaker::Selinux
            | Speaker::Apparmor
            | Speaker::Tomoyo
            | Speaker::Smack
            | Speaker::Landlock
            | Speaker::BpfLsm
    )
}

/// The name of who spoke, for evidence.
pub(crate) fn name(speaker: Speaker) -> &'static str {
    match speaker {
        Speaker::SumConnect => "the security modules' hook on connect()",
        Speaker::SumUnix => "the security modules' hook on unix connections",
        Speaker::SumCreate => "the security modules' hook on socket()",
        Speaker::SumBind => "the security modules' hook on bind()",
        Speaker::SumSend => "the security modules' hook on writes",
        Speaker::SumRecv => "the security modules' hook on reads",
        Speaker::SumInode => "the security modules' hook on files",
        Speaker::SumPath => "the security modules' hook on paths",
        Speaker::Selinux => "SELinux",
        Speaker::Apparmor => "AppArmor",
        Speaker::Tomoyo => "TOMOYO",
        Speaker::Smack => "Smack",
        Speaker::Landlock => "Landlock",
        Speaker::BpfLsm => "the BPF LSM programs",
        Speaker::AvcDenied => "SELinux's policy",
        Speaker::AvcAudit => "SELinux's audit",
        Speaker::CgroupConnect => "the cgroup's connect and bind programs",
        Speaker::CgroupCreate => "the cgroup's sock_create programs",
        Speaker::Seccomp => "the system call filter",
    }
}

/// Who returned what.
fn said(case: &Case, refusals: &[&Denial]) -> String {
    let mut names: Vec<&str> = refusals.iter().map(|d| name(d.speaker)).collect();
    names.dedup();
    format!(
        "{} returned {} in the same system call as {}",
        what(case),
        words::errno(case.attempt.ret.saturating_neg()),
        names.join(" and ")
    )
}

/// `connect() to 127.0.0.1:3000`.
pub(crate) fn what(case: &Case) -> String {
    let a = &case.attempt;
    let family = if a.remote.is_ipv6() { "IPv6" } else { "IPv4" };
    match (a.stage, &a.unix) {
        (Stage::Socket, Some(_)) => "socket() for a unix socket".to_owned(),
        (Stage::Socket, None) => format!("socket() for TCP over {family}"),
        (Stage::Bind, _) => format!("bind() to {}", a.remote),
        (_, Some(_)) => "connect() to a unix socket".to_owned(),
        (_, None) => format!("connect() to {}", a.remote),
    }
}

fn graded(cause: Cause, summary: String, rival: Option<String>) -> Verdict {
    match rival {
        None => Verdict::proven(cause, summary),
        Some(rival) => Verdict::likely(cause, summary, rival),
    }
}

fn apparmor(case: &Case, rival: Option<String>) -> Verdict {
    let found = case.facts.suspects.as_ref().and_then(|s| s.apparmor.as_ref());
    let Some(c) = found.filter(|c| c.profile != "unconfined") else {
        return graded(Cause::BlockedApparmor, format!("AppArmor refused {}", what(case)), rival)
            .because_if(
                "apparmor",
                found.is_some().then_some("the worker is unconfined now: its profile was removed since"),
            )
            .fix_with("see which profile confines nginx, and add one rule to it", "aa-status");
    };
    let mode = c.mode.as_deref().map(|m| format!(" ({m})")).unwrap_or_default();
    let kind = c.wanted.split_whitespace().next().unwrap_or("network");
    let mut verdict = graded(
        Cause::BlockedApparmor,
        format!("AppArmor's profile {} refused {} ({kind} rule)", c.profile, what(case)),
        rival,
    )
    .because("apparmor", format!("the worker runs under the profile {}{mode}", c.profile))
    .because_if("profile", c.header.as_ref().map(|h| format!("the profile is at {}: {}", h.place(), h.text)));
    let reload = c.header.as_ref().map(|h| format!("apparmor_parser -r {}", h.file));
    match (&c.deny, &c.allow) {
        (Some(deny), _) => {
            verdict = verdict.because("profile", format!("{}: {}", deny.place(), deny.text));
            if !c.deny_is_audited {
                verdict = verdict
                    .because("silenced", "a deny rule without `audit` is quiet: no log shows this refusal");
            }
            verdict = with(
                verdict,
                format!(
                    "remove or narrow the rule at {}: a deny rule wins over every rule that allows",
                    deny.place()
                ),
                reload,
            );
        }
        (None, Some(allow)) => {
            verdict = with(
                verdict.because(
                    "profile",
                    format!(
                        "{}: {} allows it: what is loaded is not what the file says",
                        allow.place(),
                        allow.text
                    ),
                ),
                "load the profile's file again".to_owned(),
                reload,
            );
        }
        (None, None) => {
            if c.header.is_some() {
                let scope = if c.whole { "" } else { " (not every rule of it could be read)" };
                verdict = verdict
                    .because("profile", format!("no rule of the profile allows `{}`{scope}", c.wanted));
            }
            verdict = with(verdict, advice(c), reload);
        }
    }
    verdict
}

fn advice(c: &Confinement) -> String {
    match (&c.local, &c.header) {
        (Some(local), _) => format!("add the line `{}` to {local}, which the profile includes", c.wanted),
        (None, Some(header)) => {
            format!("add the line `{}` to the profile {} in {}", c.wanted, c.profile, header.file)
        }
        (None, None) => format!("add the line `{}` to the profile {}", c.wanted, c.profile),
    }
}

fn with(verdict: Verdict, text: String, command: Option<String>) -> Verdict {
    match command {
        Some(command) => verdict.fix_with(text, command),
        None => verdict.fix(text),
    }
}

fn landlock(case: &Case, rival: Option<String>) -> Verdict {
    graded(Cause::BlockedLandlock, format!("a Landlock ruleset refused {}", what(case)), rival).fix(
        "whoever started nginx restricted it by Landlock, which no running process can undo: allow this port in the \
         ruleset of that program (or leave TCP out of what it handles), then start nginx anew",
    )
}

fn bpf_lsm(case: &Case, rival: Option<String>) -> Verdict {
    let programs = case.facts.suspects.as_ref().and_then(|s| s.lsm_programs.as_deref()).unwrap_or_default();
    let who = match programs {
        [one] => format!("the BPF LSM program {}", label(one)),
        [] => "a BPF LSM program".to_owned(),
        many => format!("one of {} BPF LSM programs", many.len()),
    };
    let verdict = graded(Cause::BlockedBpfLsm, format!("{who} refused {}", what(case)), rival);
    by_owner(
        verdict,
        programs,
        "whoever loaded it decides: change its rules for this upstream, or ask its owner",
    )
}

fn cgroup(case: &Case, rival: Option<String>) -> Verdict {
    let suspects = case.facts.suspects.as_ref();
    let programs = suspects.and_then(|s| s.cgroup_programs.as_deref()).unwrap_or_default();
    let who = match programs {
        [one] => format!("the cgroup program {}", label(one)),
        [] => "a program of the worker's cgroup".to_owned(),
        many => format!("one of {} programs of the worker's cgroup", many.len()),
    };
    let verdict = graded(Cause::BlockedCgroupBpf, format!("{who} refused {}", what(case)), rival);
    let verdict = by_owner(
        verdict,
        programs,
        "whoever attached it to the cgroup decides: change its rules for this upstream",
    );
    unit(verdict, case, &["SocketBindDeny", "SocketBindAllow"])
}

/// What is known of each program; at most four.
pub(super) fn listed(mut verdict: Verdict, programs: &[Program]) -> Verdict {
    for program in programs.iter().take(4) {
        let mut text = format!("program {}", label(program));
        if let Some(cgroup) = &program.cgroup {
            text += &format!(", attached to the cgroup {cgroup}");
        }
        if let Some(s) = program.loaded_s_ago {
            text += &format!(", loaded {s} s ago by user {}", program.uid);
        }
        if !program.holders.is_empty() {
            text += &format!(", held by {}", program.holders.join(", "));
        }
        verdict = verdict.because("program", text);
    }
    verdict
}

fn by_owner(verdict: Verdict, programs: &[Program], fix: &str) -> Verdict {
    let show = programs.first().map(|p| format!("bpftool prog show id {}", p.id));
    with(listed(verdict, programs), fix.to_owned(), show)
}

fn label(program: &Program) -> String {
    let name = if program.name.is_empty() { "without a name" } else { program.name.as_str() };
    format!("{name} (id {})", program.id)
}

/// The unit's lines that can be the reason.
pub(super) fn unit(mut verdict: Verdict, case: &Case, keys: &[&str]) -> Verdict {
    let Some(unit) = case.facts.suspects.as_ref().and_then(|s| s.unit.as_ref()) else {
        return verdict;
    };
    let of_key = |text: &str| text.split_once('=').is_some_and(|(key, _)| keys.contains(&key.trim()));
    let lines: Vec<_> = unit.lines.iter().filter(|line| of_key(&line.text)).collect();
    if lines.is_empty() {
        return verdict;
    }
    for line in &lines {
        verdict = verdict.because("unit", format!("{}: {}: {}", unit.name, line.place(), line.text));
    }
    let last = lines.last().map(|line| line.place()).unwrap_or_default();
    verdict.fix_with(
        format!("allow just this upstream in a drop-in of {} (now: {last}), then restart it", unit.name),
        format!("systemctl edit {}", unit.name),
    )
}

fn seccomp(case: &Case, rival: Option<String>) -> Verdict {
    let suspects = case.facts.suspects.as_ref();
    let verdict = graded(
        Cause::BlockedSeccomp,
        format!("a system call filter (seccomp) refused {}", what(case)),
        rival,
    )
    .because_if(
        "seccomp",
        suspects.filter(|s| s.seccomp == Some(2)).map(|s| {
            let sealed = if s.no_new_privileges == Some(true) { ", no_new_privs is set" } else { "" };
            format!("the worker has a system call filter (Seccomp: 2 in its status){sealed}")
        }),
    );
    let before = verdict.fix.len();
    let verdict =
        unit(verdict, case, &["RestrictAddressFamilies", "SystemCallFilter", "SystemCallErrorNumber"]);
    if verdict.fix.len() > before {
        return verdict;
    }
    verdict.fix(
        "allow this call in the filter of whoever starts nginx (systemd: RestrictAddressFamilies=, SystemCallFilter=; \
         containers: the runtime's seccomp profile), then start nginx anew",
    )
}

/// Where the hooks cannot be had: who is there that refuses with this errno.
fn by_elimination(case: &Case) -> Option<Verdict> {
    let (a, watched) = (&case.attempt, case.reach.blockers);
    let seen = match a.stage {
        Stage::Socket => watched.create && watched.cgroup_create && watched.seccomp,
        Stage::Bind => watched.bind && watched.cgroup_connect && watched.seccomp,
        _ => case.reach.security && watched.cgroup_connect && watched.seccomp,
    };
    let errno = a.ret.saturating_neg();
    if seen || !matches!(errno, libc::EPERM | libc::EACCES | libc::EAFNOSUPPORT) {
        return None;
    }
    // A mode that certainly refuses comes before somebody who may have; its rule names them as rivals.
    if case.facts.unix.as_ref().is_some_and(|fact| fact.refusal.is_some()) {
        return None;
    }
    let suspects = case.facts.suspects.as_ref()?;
    let some = |programs: &Option<Vec<Program>>| programs.as_ref().is_some_and(|p| !p.is_empty());
    let mut rivals = Vec::new();
    if suspects.seccomp == Some(2) && !watched.seccomp {
        rivals.push((Cause::BlockedSeccomp, "a system call filter (seccomp)"));
    }
    let security = if a.stage == Stage::Socket { watched.create } else { case.reach.security };
    if errno != libc::EAFNOSUPPORT {
        if !security && errno == libc::EACCES && suspects.apparmor.as_ref().is_some_and(Confinement::enforces)
        {
            rivals.push((Cause::BlockedApparmor, "AppArmor"));
        }
        if !watched.cgroup_connect && some(&suspects.cgroup_programs) {
            rivals.push((Cause::BlockedCgroupBpf, "a program of the worker's cgroup"));
        }
        if !security && some(&suspects.lsm_programs) {
            rivals.push((Cause::BlockedBpfLsm, "a BPF LSM program"));
        }
    }
    let (first, _) = *rivals.first()?;
    let others: Vec<&str> = rivals.iter().skip(1).map(|(_, name)| *name).collect();
    let rival = if others.is_empty() {
        "somebody whose hooks cannot be watched on this tier".to_owned()
    } else {
        others.join(", or ")
    };
    let verdict = match first {
        Cause::BlockedSeccomp => seccomp(case, Some(rival)),
        Cause::BlockedApparmor => apparmor(case, Some(rival)),
        Cause::BlockedCgroupBpf => cgroup(case, Some(rival)),
        _ => bpf_lsm(case, Some(rival)),
    };
    Some(verdict.because("syscall", format!("{} returned {}", what(case), words::errno(errno))))
}
