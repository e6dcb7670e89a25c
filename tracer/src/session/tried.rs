//! Connections that `why502 check` made itself, explained by the rules that explain nginx's own.
//!
//! No hook has watched them. What was seen is what a process sees of its own connection: the errno, an ICMP error with its
//! sender, the time. The rest is deduced: the rules of the worker's own network namespace are run on the SYN, SELinux's
//! policy is asked, and a refusal that ends once the worker's profile or cgroup is left out was theirs.

use std::time::Duration;

use super::{
    clock::monotonic_ns,
    doubts::{self, Doubts},
    facts::{Gatherer, table},
};
use crate::{
    correlate::{
        Case, Facts, Reach,
        selinux::{Decision, SelinuxFact},
        story::Story,
    },
    diagnose::{self, Cause, Confidence, Evidence, Verdict, words},
    event::{Attempt, Denial, DropClass, Speaker, Stage, UnixName},
    firewall::Hook,
    nginx::{Candidate, Timeout},
    sys::{proc, selinux as system},
};

/// Modules that refuse no connection.
const HARMLESS: [&str; 9] =
    ["capability", "yama", "lockdown", "safesetid", "loadpin", "integrity", "ima", "evm", "landlock"];

/// A connection that failed, and how it was made.
#[derive(Debug, Clone)]
pub struct Tried {
    /// What is known of it, with the times of [`Tried::lasted`].
    pub attempt: Attempt,
    /// How long it lasted.
    pub lasted: Duration,
    /// The lines that lead there.
    pub config: Vec<Candidate>,
    /// How long it was waited for.
    pub timeout: Duration,
    /// The same without the worker's AppArmor profile, or outside of its cgroup, got further: who refused it.
    pub refused_by: Option<Speaker>,
    /// It failed in the same way without any confinement: neither AppArmor nor a cgroup's program is the reason.
    pub unconfined_too: bool,
    /// What nginx's configuration has to say of it.
    pub story: Option<Box<Story>>,
}

/// What SELinux's policy would deny a worker.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Foreseen {
    /// What it would deny.
    pub decision: Decision,
    /// The system and the worker's domain enforce it.
    pub enforced: bool,
    /// The policy was asked about exactly what the kernel would ask. False where the target's label had to be guessed, or a
    /// constraint could not be evaluated.
    pub exact: bool,
}

/// Asks the operating system and the rules.
pub struct Explainer {
    gatherer: Gatherer,
    doubts: doubts::Asker,
}

impl Default for Explainer {
    fn default() -> Self {
        Self {
            gatherer: Gatherer::new(std::collections::HashMap::new(), std::collections::HashMap::new()),
            doubts: doubts::Asker::default(),
        }
    }
}

impl Explainer {
    /// Why a connection failed, and everything that was found.
    pub fn explain(&mut self, tried: Tried) -> (Case, Verdict) {
        let Tried { mut attempt, lasted, mut config, timeout, refused_by, unconfined_too, story } = tried;
        attempt.end_ns = monotonic_ns();
        let lasted_ns = u64::try_from(lasted.as_nanos()).unwrap_or(0);
        attempt.start_ns = Some(attempt.end_ns.saturating_sub(lasted_ns));
        let whole = waited(timeout);
        // The check's own patience takes the place of nginx's timer.
        for candidate in &mut config {
            candidate.connect_timeouts = vec![whole.clone()];
        }
        if let Some(speaker) = refused_by {
            attempt.denials = denials(&attempt, speaker);
        }
        let mut reach = Reach { resets: true, icmp: true, ..Reach::default() };
        let mut facts = self.gatherer.gather(&attempt, reach);
        let programs = facts.suspects.as_ref().and_then(|s| s.lsm_programs.as_ref());
        let nobody = others(programs.is_none_or(Vec::is_empty), unconfined_too);
        reach.security = nobody || refused_by.is_some();
        reach.blockers.unix = reach.security;
        reach.blockers.bind = reach.security;
        reach.blockers.create = reach.security;
        // The helper has no system call filter; of programs of a cgroup it has met those of the worker's.
        reach.blockers.seccomp = true;
        reach.blockers.cgroup_connect = unconfined_too;
        let deduced = if attempt.stage == Stage::SynSent {
            self.deduce(&mut attempt, &mut facts)
        } else {
            Deduced::default()
        };
        let silent = attempt.drop.is_none() && attempt.icmp.is_none() && !attempt.reset;
        if silent && attempt.stage == Stage::SynSent {
            facts.conntrack = self.gatherer.own(&attempt).as_ref().and_then(table);
        }
        let mut case = Case::new(attempt, reach, facts, config);
        case.story = story;
        let mut verdict = diagnose::diagnose(&case);
        reword(&mut verdict, &case, &deduced, refused_by);
        diagnose::story::add(&mut verdict, &case);
        // A refusal that two tries have compared needs no elimination.
        if verdict.confidence == Confidence::Proven && refused_by.is_none() {
            let ns = self.gatherer.own(&case.attempt);
            let mut doubts = self.doubts.ask(&case.attempt, ns.as_ref());
            if deduced.beside && doubts.answered.is_none() {
                doubts.answered = Some("a rule at the hook of an interface (nft's netdev family)".to_owned());
            }
            doubt(&mut verdict, &case, deduced.hook, doubts);
        }
        (case, verdict)
    }

    /// What SELinux would refuse of a worker's connection: the first denial on the way. `Ok`: a TCP port; `Err`: the path
    /// of a unix socket.
    pub fn foresee(&mut self, worker: u32, to: Result<u16, &[u8]>) -> Option<Foreseen> {
        let enforcing = system::enforcing()?;
        let decisions = self.gatherer.selinux.foresee(worker, to);
        let denied = |d: &Decision| d.policy.as_ref().is_some_and(|policy| !policy.allows_now);
        let decision = decisions.into_iter().find(denied)?;
        let policy = decision.policy.clone().unwrap_or_default();
        // Whose socket it is was told by who holds it now: it may have been made by another.
        let guessed = decision.class.as_deref() == Some("unix_stream_socket");
        Some(Foreseen {
            enforced: enforcing && !policy.permissive_domain,
            exact: !guessed && !policy.unevaluated,
            decision,
        })
    }

    /// The verdict that a denial would have.
    pub fn explain_denial(&mut self, worker: u32, foreseen: &Foreseen, to: &Attempt) -> Verdict {
        let mut attempt = Attempt { worker, ret: -libc::EACCES, ..to.clone() };
        attempt.stage = Stage::Connect;
        let decision = Decision { refused: true, ..foreseen.decision.clone() };
        let fact =
            SelinuxFact { enforcing: Some(true), audit_off: system::audit_off(), decisions: vec![decision] };
        let facts = Facts { selinux: Some(Box::new(fact)), ..Facts::default() };
        let case = Case::new(attempt, Reach::default(), facts, Vec::new());
        let mut verdict = diagnose::diagnose(&case);
        // Nothing was tried: no call has returned anything.
        verdict.evidence.retain(|evidence| evidence.kind != "syscall");
        verdict.evidence.push(Evidence {
            kind: "selinux-policy",
            text: "the loaded policy was asked; no connection was tried in the worker's domain, so nothing was denied"
                .to_owned(),
        });
        (verdict.confidence, verdict.rival) = if foreseen.exact {
            (Confidence::Proven, None)
        } else {
            (
                Confidence::Likely,
                Some("the socket has another label than the process that holds it".to_owned()),
            )
        };
        verdict
    }

    /// Runs the rules of the worker's namespace on the SYN.
    fn deduce(&mut self, attempt: &mut Attempt, facts: &mut Facts) -> Deduced {
        let syns = u32::from(attempt.retransmits) + 1;
        let refused = attempt.reset || attempt.icmp.is_some();
        let Some(found) = self.gatherer.foresee(attempt, facts) else {
            return Deduced { unread: true, ..Deduced::default() };
        };
        let nobody = facts.listeners.as_ref().is_some_and(|l| l.exact.is_empty());
        let own = facts.is_local == Some(true);
        let beside = found.beside;
        let mut met = found.met.into_iter();
        if let Some(first) = met.next() {
            let target = facts.translated.unwrap_or(attempt.remote);
            let Met { hook, rules, certain } = first;
            let words = rules.words();
            // A rule that may fit is no explanation of a refusal that has a plain one. A RST from this machine has none where
            // somebody listens.
            let odd = attempt.reset && own && !nobody && !found.translates;
            if certain || !refused || odd {
                attempt.drop = Some(event_drop(DropClass::Netfilter, attempt.netns, target, syns));
                facts.drop_hook = Some(hook.name().into());
                facts.rules = Some(rules);
            }
            return Deduced { rule: Some((words, certain)), hook: Some(hook), beside, ..Deduced::default() };
        }
        if attempt.reset && own && nobody && !found.translates && attempt.netns != 0 {
            attempt.drop = Some(event_drop(DropClass::NoSocket, attempt.netns, attempt.remote, syns));
        }
        Deduced { clear: own && !found.translates, beside, ..Deduced::default() }
    }
}

use super::rules::Met;
use crate::event::Drop;

fn event_drop(class: DropClass, netns: u32, to: std::net::SocketAddr, count: u32) -> Drop {
    Drop::deduced(class, netns, to, count)
}

/// What running the rules has shown.
#[derive(Default)]
struct Deduced {
    /// Rules that fit, in words, and whether one of them stops every such SYN.
    rule: Option<(Vec<String>, bool)>,
    /// Where.
    hook: Option<Hook>,
    /// There are rules that were not run.
    beside: bool,
    /// No rule can have stopped it, in either direction of the loopback.
    clear: bool,
    /// The rules could not be read.
    unread: bool,
}

/// The time-out of a check in the place of nginx's.
fn waited(timeout: Duration) -> Timeout {
    Timeout {
        milliseconds: u64::try_from(timeout.as_millis()).ok(),
        text: "the time that a check waits (--timeout)".to_owned(),
        line: None,
    }
}

/// The refusal that comparing two tries has shown.
fn denials(attempt: &Attempt, speaker: Speaker) -> Vec<Denial> {
    let sum = match (attempt.stage, &attempt.unix) {
        (Stage::Socket, _) => Speaker::SumCreate,
        (Stage::Bind, _) => Speaker::SumBind,
        (_, Some(_)) => Speaker::SumUnix,
        (_, None) => Speaker::SumConnect,
    };
    let speakers: Vec<Speaker> = match speaker {
        Speaker::CgroupConnect if attempt.stage == Stage::Socket => vec![Speaker::CgroupCreate],
        Speaker::CgroupConnect => vec![Speaker::CgroupConnect],
        other => vec![sum, other],
    };
    let denial = |speaker| Denial {
        speaker,
        worker: attempt.worker,
        thread: attempt.worker,
        time_ns: attempt.end_ns,
        socket: 0,
        ret: attempt.ret,
        family: 0,
        remote: None,
        avc: None,
        syscall: None,
        arg: 0,
    };
    speakers.into_iter().map(denial).collect()
}

/// True if no security module can have refused the helper: none is there that does, or it is known not to have.
fn others(no_programs: bool, unconfined_too: bool) -> bool {
    let Ok(list) = proc::read_trimmed("/sys/kernel/security/lsm") else { return false };
    list.split(',').all(|module| match module {
        "bpf" => no_programs,
        // A worker without a profile was tried without one; one with a profile was tried both ways.
        "apparmor" => unconfined_too,
        other => HARMLESS.contains(&other),
    })
}

/// What a trace has seen, a check has deduced: the texts say so.
fn reword(verdict: &mut Verdict, case: &Case, deduced: &Deduced, refused_by: Option<Speaker>) {
    let silent = case.attempt.stage == Stage::SynSent && case.gave_up().is_some();
    verdict.evidence.retain(|evidence| !(silent && matches!(evidence.kind, "syn" | "end")));
    if silent {
        let sent = words::syns(case.syns());
        let text = format!("{sent} sent by why502 in the worker's place, no answer {}", words::after(case));
        verdict.evidence.push(Evidence { kind: "syn", text });
    }
    // No RST was seen to arrive: only what connect() came to.
    if case.attempt.stage == Stage::SynSent && case.attempt.reset {
        for evidence in
            verdict.evidence.iter_mut().filter(|evidence| matches!(evidence.kind, "rst" | "reject"))
        {
            evidence.kind = "errno";
            evidence.text = format!(
                "connect() by why502 in the worker's place: {} {}, without an ICMP error",
                words::errno(libc::ECONNREFUSED),
                words::after(case)
            );
        }
        if verdict.cause == Cause::ConnectRefusedNoListener && deduced.clear {
            let text = "no rule of nginx's network namespace rejects or translates this connection";
            verdict.evidence.push(Evidence { kind: "rules", text: text.to_owned() });
        }
    }
    if let Some((words, certain)) = &deduced.rule {
        let hook = deduced.hook.map(Hook::name).unwrap_or_default();
        for evidence in verdict.evidence.iter_mut().filter(|evidence| evidence.kind == "drop") {
            evidence.text = if *certain {
                format!("the rules at the {hook} hook of nginx's network namespace stop every such SYN")
            } else {
                format!("at the {hook} hook of nginx's network namespace a rule may stop such a SYN")
            };
        }
        verdict.evidence.retain(|evidence| evidence.kind != "reject" || *certain);
        if !certain {
            let known = |text: &String| verdict.evidence.iter().any(|evidence| evidence.text == *text);
            let new: Vec<String> = words.iter().filter(|text| !known(text)).cloned().collect();
            verdict.evidence.extend(new.into_iter().map(|text| Evidence { kind: "rule", text }));
            if verdict.confidence == Confidence::Proven {
                verdict.confidence = Confidence::Likely;
                let other =
                    if silent { "a host that does not answer" } else { "something else that resets it" };
                verdict.rival = Some(format!("{other}: whether the rule fits depends on what is not known"));
            }
        }
    }
    if let Some(speaker) = refused_by {
        let without = match speaker {
            Speaker::Apparmor => "without the worker's AppArmor profile",
            _ => "outside of the worker's cgroup",
        };
        for evidence in &mut verdict.evidence {
            if evidence.text.contains("in the same system call as") {
                evidence.text = format!(
                    "tried twice by why502 in the worker's place: refused with {}, and not refused {without}",
                    words::errno(case.attempt.ret.saturating_neg())
                );
            }
        }
    }
    if let Some(rival) = &mut verdict.rival {
        *rival = if deduced.clear && rival.contains("dropped packets cannot be seen") {
            "a loss on this machine that no firewall rule explains".to_owned()
        } else {
            rival
                .replace("cannot be seen on this tier", "cannot be seen by a check")
                .replace("cannot be watched on this tier", "cannot be watched by a check")
                .replace("this tier does not see", "a check does not see")
                .replace("on this tier only", "here only")
        };
        if deduced.unread {
            rival.push_str("; the firewall's rules could not be read");
        }
    }
}

/// What may have led the connection elsewhere, or answered it in the place of an own address, is the rival of a proof.
fn doubt(verdict: &mut Verdict, case: &Case, hook: Option<Hook>, doubts: Doubts) {
    let own = case.attempt.stage == Stage::SynSent && case.facts.is_local == Some(true);
    // Rules at the output hook come before everything on the way.
    let answered = doubts.answered.filter(|_| own && hook != Some(Hook::Output));
    if let Some(rival) = doubts.led_away.or(answered) {
        verdict.confidence = Confidence::Likely;
        verdict.rival = Some(rival);
    }
}

/// A connection that failed at a stage, as [`Explainer::explain`] wants it: `errno` of the call, or of the socket later.
#[must_use]
pub fn attempt(stage: Stage, worker: u32, netns: u32, errno: i32) -> Attempt {
    let mut attempt = Attempt { netns, ..Attempt::blank(stage, worker) };
    match stage {
        Stage::SynSent => {
            attempt.sk_err = errno;
            attempt.app_closed = errno == 0;
        }
        _ => attempt.ret = -errno,
    }
    attempt
}

/// The name of a unix socket, as nginx's configuration has it.
#[must_use]
pub fn unix_name(path: &[u8]) -> UnixName {
    UnixName::of(path)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn judged(stage: Stage, own: bool, hook: Option<Hook>, doubts: Doubts) -> (Confidence, Option<String>) {
        let attempt = attempt(stage, 1, 1, libc::ECONNREFUSED);
        let facts = Facts { is_local: Some(own), ..Facts::default() };
        let reach = Reach::default();
        let case = Case::new(attempt, reach, facts, Vec::new());
        let mut verdict = Verdict::proven(Cause::ConnectRefusedNoListener, "x".to_owned());
        doubt(&mut verdict, &case, hook, doubts);
        (verdict.confidence, verdict.rival)
    }

    #[test]
    fn doubts_take_the_proof_away_where_they_can_be_true() {
        let way = Doubts { answered: Some("tc".to_owned()), ..Doubts::default() };
        let led = Doubts { led_away: Some("cgroup".to_owned()), ..Doubts::default() };
        let likely = |rival: &str| (Confidence::Likely, Some(rival.to_owned()));
        let proven = (Confidence::Proven, None);
        assert_eq!(judged(Stage::SynSent, true, None, Doubts::default()), proven);
        assert_eq!(judged(Stage::SynSent, true, None, way.clone()), likely("tc"));
        assert_eq!(judged(Stage::SynSent, true, Some(Hook::Input), way.clone()), likely("tc"));
        // Rules of the output hook are met before lo; nothing of lo is met on the way to others, nor by a call that failed.
        assert_eq!(judged(Stage::SynSent, true, Some(Hook::Output), way.clone()), proven);
        assert_eq!(judged(Stage::SynSent, false, None, way.clone()), proven);
        assert_eq!(judged(Stage::Connect, true, None, way), proven);
        // An address that is not the one that was asked for makes everything else doubtful.
        assert_eq!(judged(Stage::Connect, false, None, led.clone()), likely("cgroup"));
        assert_eq!(judged(Stage::SynSent, true, Some(Hook::Output), led), likely("cgroup"));
    }
}
