//! Every upstream server of the running configuration: looked up, connected to from the worker's place, and explained if
//! that fails.

use std::{
    collections::{BTreeSet, HashMap},
    path::Path,
    time::{Duration, Instant},
};

use super::{
    Checked, Finding, Name, Options, Place, Report, Severity, Subject,
    config::view,
    handshake,
    position::{Outcomes, attempt, look_up, no_start, plan, try_all, worker},
    probe::{self, Answer, Ask, Call, Outcome, Plan, Where},
    targets::{self, Target, Targets, Unresolved, Use},
};
use crate::{
    correlate::{
        Case,
        story::{StaleName, Story},
    },
    diagnose::{Cause, Confidence, Evidence, Fix, Verdict, words},
    event::Speaker,
    nginx::{
        Candidate, ConfigLine,
        model::{Layer, Model, Role, UpstreamServer},
    },
    session::{Explainer, Tried, unix_name},
    sys::{proc, process::Process, resolve, selinux},
};

/// What is wrong with a name.
const UNRESOLVED: &str = "name-does-not-resolve";
const MOVED: &str = "name-has-moved";

/// Everything that this family finds: a name of its own, and causes that a request's failure would have.
pub const NAMES: &[Name] = &[
    (UNRESOLVED, "an upstream's name has no address now: nginx keeps its old ones, and the next start fails"),
    (MOVED, "an upstream's name has other addresses now than nginx goes on using"),
    ("connect-refused-no-listener", "nothing listens on an upstream's local address and port"),
    ("connect-refused-by-peer", "an upstream host answers connections with a RST"),
    ("connect-refused-by-firewall", "a firewall rejects connections to an upstream"),
    ("connect-timeout-firewall-drop", "a rule of this machine drops connections to an upstream"),
    ("connect-timeout-no-answer", "an upstream does not answer"),
    ("connect-timeout-backlog-full", "a local backend's accept queue is full"),
    ("connect-timeout-conntrack-full", "the connection tracking table is full"),
    ("host-unreachable", "an upstream host cannot be reached on the last hop"),
    ("network-unreachable", "there is no route to an upstream, or one that forbids it"),
    ("local-port-exhausted", "no free local port is left for an upstream"),
    ("bind-failed", "the local address of proxy_bind cannot be used"),
    ("fd-limit", "no file descriptor is left"),
    ("blocked-selinux", "SELinux's policy denies the worker an upstream's port or socket"),
    ("blocked-apparmor", "the worker's AppArmor profile denies connections to an upstream"),
    ("blocked-bpf-lsm", "a BPF LSM program denies connections to an upstream"),
    ("blocked-cgroup-bpf", "a program of the worker's cgroup denies connections to an upstream"),
    ("blocked-seccomp", "a system call filter denies connections to an upstream"),
    ("blocked-landlock", "a Landlock ruleset denies connections to an upstream"),
    ("unix-missing", "an upstream's unix socket does not exist"),
    ("unix-permission", "the worker may not connect to an upstream's unix socket"),
    ("unix-no-listener", "nobody listens on an upstream's unix socket"),
    ("unix-backlog-full", "the accept queue of an upstream's unix socket is full"),
    ("unix-not-a-socket", "an upstream's unix socket is none, or of another type"),
    ("invalid-response", "a gRPC upstream does not speak HTTP/2"),
    ("tls-to-plain-port", "TLS is to be spoken to a port that speaks plain text"),
    ("plain-to-tls-port", "plain text is to be spoken to a TLS port"),
    ("tls-handshake-failed", "the TLS handshake with an upstream fails"),
    ("tls-handshake-timeout", "the TLS handshake with an upstream does not end in time"),
    ("tls-certificate-rejected", "an upstream's certificate does not pass proxy_ssl_verify"),
    ("unexplained", "a connection to an upstream fails, and nothing singles out why"),
];

/// Lines of one finding.
const MOST_LINES: usize = 12;

/// Looks at every upstream server.
#[must_use]
pub fn inspect(subject: &Subject<'_>, options: &Options) -> Report {
    inspect_with(Path::new("/proc/self/exe"), subject, options)
}

/// The same with the program at `exe` as the helper.
#[must_use]
pub fn inspect_with(exe: &Path, subject: &Subject<'_>, options: &Options) -> Report {
    let model = &subject.snapshot.model;
    let mut report = Report::default();
    let Some(worker) = worker(subject) else {
        let why = "no worker is running: nobody's place can be taken. See nginx's error log for why its workers end";
        report.checked.push(checked("nothing was tried".to_owned(), Some(why.to_owned()), &[]));
        return report;
    };
    let (resolved, foreign) = look_up(worker, model, options);
    let targets = targets::of(model, &resolved, subject.snapshot.kept());
    let mut look = Look {
        subject,
        options,
        worker,
        explainer: Explainer::default(),
        end: Instant::now() + options.total,
        targets: &targets,
        answers: Vec::new(),
        findings: Vec::new(),
        not_explained: 0,
    };
    let (incomplete, sum) = look.run(exe, foreign);
    let names: Vec<&'static str> = look.findings.iter().map(|finding| finding.name).collect();
    report.checked.push(checked(sum, incomplete, &names));
    report.findings = look.findings;
    report
}

fn checked(seen: String, incomplete: Option<String>, findings: &[&'static str]) -> Checked {
    let findings: BTreeSet<&'static str> = findings.iter().copied().collect();
    Checked { what: "upstream servers", seen, incomplete, findings: findings.into_iter().collect() }
}

/// What a server's failure breaks.
struct Effect {
    severity: Severity,
    breaks: String,
    /// The lines that keep nginx from a server that answers.
    barred: Vec<ConfigLine>,
}

/// One look at one nginx.
struct Look<'a> {
    subject: &'a Subject<'a>,
    options: &'a Options,
    worker: &'a Process,
    explainer: Explainer,
    end: Instant,
    targets: &'a Targets,
    /// By target.
    answers: Vec<Answer>,
    findings: Vec<Finding>,
    /// Failures for which there was no time left.
    not_explained: usize,
}

impl Look<'_> {
    /// Returns what could not be looked at, and what was seen.
    fn run(&mut self, exe: &Path, foreign: bool) -> (Option<String>, String) {
        let mut missing: Vec<String> = Vec::new();
        let plan = self.plan();
        let mut refused_by = HashMap::new();
        if !plan.asks.is_empty() {
            match self.connect(exe, &plan, &mut refused_by) {
                Ok(()) => {}
                Err(why) => missing.push(why),
            }
        }
        self.answers.resize(plan.asks.len(), Answer::NONE);
        self.explain(&plan, &refused_by);
        self.moved();
        for one in &self.targets.unresolved {
            match &one.answer {
                Some(answer) => self.findings.push(self.unresolved(one, answer)),
                None if foreign => {}
                None => missing.push(format!("the name {} was not looked up in time", one.name)),
            }
        }
        let left = self.targets.unresolved.iter().filter(|one| one.answer.is_none()).count();
        if foreign && left > 0 {
            missing.push(format!(
                "{left} {} of upstream servers: nginx has mounts of its own, and its name servers were not asked. Run \
                 why502 check where nginx runs",
                if left == 1 { "name" } else { "names" }
            ));
        }
        let not_tried = self.answers.iter().filter(|a| a.outcome == Outcome::NotTried).count();
        if not_tried > 0 && missing.is_empty() {
            let seconds = self.options.total.as_secs();
            missing.push(format!("{not_tried} servers: no time was left after {seconds} s for all"));
        }
        if self.not_explained > 0 {
            missing.push(format!("why {} of the servers fail: no time was left", self.not_explained));
        }
        ((!missing.is_empty()).then(|| missing.join("; ")), self.sum())
    }

    fn sum(&self) -> String {
        let tried: Vec<(&Target, &Answer)> = self
            .targets
            .targets
            .iter()
            .zip(&self.answers)
            .filter(|(target, answer)| {
                !target.is_plain && !target.is_next() && answer.outcome != Outcome::NotTried
            })
            .collect();
        let stood: Vec<_> = tried.iter().filter(|(_, a)| a.outcome == Outcome::Connected).collect();
        let mut text = match tried.len() {
            0 if self.targets.targets.is_empty() => "none to connect to".to_owned(),
            all => format!("{} of {all} answer", stood.len()),
        };
        if let Some((target, answer)) = stood.iter().max_by_key(|(_, answer)| answer.us) {
            text += &format!(", slowest {} ({})", words::duration(answer.us), shown(&target.ask));
        }
        if !tried.is_empty() && selinux::enforcing().is_some() {
            text += ", tried in why502's own SELinux domain";
        }
        let model = &self.subject.snapshot.model;
        let passes = tried.iter().flat_map(|(target, _)| &target.uses).flat_map(|one| &one.passes);
        let passes: BTreeSet<usize> = passes.copied().collect();
        let left_out =
            |pass: &&usize| model.passes.get(**pass).is_some_and(|p| handshake::is_left_out(model, p));
        let left_out = passes.iter().filter(left_out).count();
        if left_out > 0 {
            text += &format!(
                ", {left_out} of the passes without the TLS handshake (it needs a client's certificate, a name that a \
                 request tells, or an old version)"
            );
        }
        if self.targets.down > 0 {
            text += &format!(", {} marked down and left out", self.targets.down);
        }
        if self.targets.open > 0 {
            let are = if self.targets.open == 1 {
                "1 pass goes"
            } else {
                &format!("{} passes go", self.targets.open)
            };
            text += &format!(", {are} where only a request tells");
        }
        text
    }

    fn plan(&self) -> Plan {
        // What is left is for finding out why.
        let total = self.end.saturating_duration_since(Instant::now()) * 2 / 3;
        let asks = self.targets.targets.iter().map(|target| target.ask.clone()).collect();
        plan(self.worker, self.options, total, asks)
    }

    /// Makes the connections, and those that were refused once more without the worker's profile, and outside of its cgroup.
    fn connect(
        &mut self,
        exe: &Path,
        plan: &Plan,
        refused_by: &mut HashMap<usize, Option<Speaker>>,
    ) -> Result<(), String> {
        let all = plan.asks.len();
        let progress = self.options.progress;
        let told = |done: usize| {
            if done.is_multiple_of(100) {
                progress(&format!("{done} of {all} upstream servers"));
            }
        };
        let Outcomes { answers, whole, plan, given_up } = try_all(exe, plan, "connection", told)?;
        let plan = &plan;
        self.answers = answers;
        if !whole {
            return Err("the helper that connects ended early: some servers were not tried".to_owned());
        }
        let is_refused =
            |answer: &Answer| matches!(answer.outcome, Outcome::Failed(_, libc::EACCES | libc::EPERM));
        let mut refused: Vec<usize> =
            (0..all).filter(|n| self.answers.get(*n).is_some_and(is_refused)).collect();
        let without = [
            (plan.profile.is_some(), Speaker::Apparmor, Plan { profile: None, ..plan.clone() }),
            (
                plan.cgroup.is_some(),
                Speaker::CgroupConnect,
                Plan { cgroup: None, profile: None, ..plan.clone() },
            ),
        ];
        for (is_there, speaker, mut other) in without {
            if !is_there || refused.is_empty() {
                continue;
            }
            other.asks = refused.iter().filter_map(|n| plan.asks.get(*n).cloned()).collect();
            other.total = self.end.saturating_duration_since(Instant::now());
            let again = probe::run(exe, &other, |_| {}).map_err(|error| no_start(&error))?;
            let mut still = Vec::new();
            for (number, answer) in refused.iter().zip(&again.answers) {
                if answer.outcome == Outcome::NotTried {
                    continue;
                }
                if is_refused(answer) {
                    still.push(*number);
                } else {
                    refused_by.insert(*number, Some(speaker));
                }
            }
            refused = still;
        }
        // Neither is the reason.
        refused_by.extend(refused.into_iter().map(|number| (number, None)));
        given_up.map_or(Ok(()), Err)
    }

    fn explain(&mut self, plan: &Plan, refused_by: &HashMap<usize, Option<Speaker>>) {
        let unconfined = plan.profile.is_none() && plan.cgroup.is_none();
        let targets = self.targets;
        let mut denied = HashMap::new();
        for (number, target) in targets.targets.iter().enumerate() {
            if target.is_next() {
                continue;
            }
            if !target.is_plain {
                self.selinux(target, &mut denied);
            }
            let Some(answer) = self.answers.get(number).cloned() else { continue };
            // A second connection to the same server adds nothing to the failure of the first.
            let failed =
                !target.is_plain && !matches!(answer.outcome, Outcome::Connected | Outcome::NotTried);
            let whole = if failed { self.whole(number, target, &answer) } else { None };
            if let Some(target) = whole.as_ref() {
                let who = refused_by.get(&number);
                let tried = Tried {
                    attempt: attempt(self.worker, &target.ask, &answer),
                    lasted: Duration::from_micros(answer.us),
                    config: self.lines(&target.ask),
                    timeout: self.options.timeout,
                    refused_by: who.copied().flatten(),
                    unconfined_too: unconfined || who.is_some_and(Option::is_none),
                    story: self.story(target),
                };
                // Explaining takes longer than trying; what is certain is told in any case.
                if Instant::now() < self.end {
                    let (case, verdict) = self.explainer.explain(tried);
                    self.add(target, &answer, &case, verdict);
                } else {
                    self.not_explained += 1;
                    self.push(target, not_explained(&target.ask, &answer), status(&answer));
                }
            }
            if let Some(tls) = answer.tls.as_ref() {
                let snapshot = self.subject.snapshot;
                let main = snapshot.main.as_deref();
                let found = handshake::judge(&snapshot.model, self.worker, target, main, tls);
                if let Some(verdict) = found {
                    let late = verdict.cause == Cause::TlsHandshakeTimeout;
                    self.push(target, verdict, if late { "504" } else { "502" });
                }
            }
        }
    }

    /// What SELinux would deny on the way to a target.
    fn selinux(&mut self, target: &Target, known: &mut HashMap<Where, bool>) {
        let key = match &target.ask.to {
            // The policy knows ports alone.
            Where::Tcp(to) => Where::Tcp(([0, 0, 0, 0], to.port()).into()),
            path @ Where::Unix(_) => path.clone(),
        };
        if known.get(&key) == Some(&false) {
            return;
        }
        let asked = match &target.ask.to {
            Where::Tcp(to) => Ok(to.port()),
            Where::Unix(path) => Err(path.as_slice()),
        };
        let found = self.explainer.foresee(self.worker.pid, asked).filter(|found| found.enforced);
        known.insert(key, found.is_some());
        if let Some(found) = found {
            let to = attempt(self.worker, &target.ask, &Answer::NONE);
            let verdict = self.explainer.explain_denial(self.worker.pid, &found, &to);
            self.push(target, verdict, "502");
        }
    }

    /// A server that cannot be reached, with all that leads to it: what would be said on the connection (TLS, for several
    /// names) makes no difference. None if another target stands for it.
    fn whole(&self, number: usize, target: &Target, answer: &Answer) -> Option<Target> {
        let same = |(_, (other, its)): &(usize, (&Target, &Answer))| {
            !other.is_plain
                && (&other.ask.to, other.ask.from) == (&target.ask.to, target.ask.from)
                && its.outcome == answer.outcome
        };
        let all = self.targets.targets.iter().zip(&self.answers).enumerate();
        let mut all = all.filter(same).peekable();
        if all.peek().is_none_or(|(first, _)| *first != number) {
            return None;
        }
        let uses =
            all.flat_map(|(_, (other, _))| other.uses.iter()).filter(|one| !one.next).cloned().collect();
        Some(Target { uses, ..target.clone() })
    }

    /// The lines that lead to a target.
    fn lines(&self, ask: &Ask) -> Vec<Candidate> {
        match &ask.to {
            Where::Tcp(to) => self.subject.snapshot.candidates(*to),
            Where::Unix(path) => self.subject.snapshot.candidates_unix(&unix_name(path)),
        }
    }

    fn add(&mut self, target: &Target, answer: &Answer, case: &Case, mut verdict: Verdict) {
        if verdict.cause == Cause::Unexplained && verdict.evidence.is_empty() {
            verdict.evidence.push(Evidence {
                kind: "errno",
                text: case.attempt.errno().map_or_else(|| "no answer".to_owned(), words::errno),
            });
        }
        self.after_reload(target, &mut verdict);
        self.push(target, verdict, status(answer));
    }

    /// `status`: what nginx answers if it has no other server.
    fn push(&mut self, target: &Target, verdict: Verdict, status: &str) {
        let model = &self.subject.snapshot.model;
        let Effect { severity, breaks, barred } = self.effect(target, status);
        let mut at = places(model, &target.uses);
        let mut fix = verdict.fix;
        if let Some((place, answers)) = self.other_address(target)
            && !fix.iter().any(|one| one.text.contains(&answers))
        {
            fix.insert(
                0,
                Fix { text: format!("name the address that answers, {answers}, in {place}"), command: None },
            );
        }
        let word = if status == "504" { "timeout" } else { "error" };
        for line in barred {
            fix.push(Fix {
                text: format!("let nginx go on to the next server: {}", words::unbar(&line, word)),
                command: None,
            });
            at.push(place(line));
        }
        self.findings.push(Finding {
            name: verdict.cause.name(),
            severity,
            cause: Some(verdict.cause),
            confidence: verdict.confidence,
            summary: verdict.summary,
            breaks,
            rival: verdict.rival,
            upstream: Some(shown(&target.ask)),
            at,
            evidence: verdict.evidence,
            fix,
        });
    }

    /// What is known of the names that an address was got from, for those that have moved since.
    fn story(&self, target: &Target) -> Option<Box<Story>> {
        let mut names: Vec<StaleName> = Vec::new();
        for one in &target.uses {
            let (Some(name), Some(now)) = (&one.name, &one.moved) else { continue };
            if !names.iter().any(|known| known.name == *name) {
                names.push(StaleName { name: name.clone(), did: true, kept: true, now: now.clone() });
            }
        }
        let master = self.subject.master.pid;
        (!names.is_empty()).then(|| Box::new(Story { master, names, ..Story::default() }))
    }

    /// Whether the addresses that a name has now answer: only then does a reload help.
    fn after_reload(&self, target: &Target, verdict: &mut Verdict) {
        if !target.uses.iter().any(|one| one.moved.is_some()) {
            return;
        }
        let same = |other: &Use| {
            target.uses.iter().any(|one| (&one.name, one.server) == (&other.name, other.server))
        };
        let all = self.targets.targets.iter().zip(&self.answers);
        let next: Vec<(&Target, &Answer)> =
            all.filter(|(other, _)| other.is_next() && other.uses.iter().any(same)).collect();
        let Some((target, answer)) = next
            .iter()
            .find(|(_, answer)| answer.outcome == Outcome::Connected)
            .or_else(|| next.iter().find(|(_, answer)| answer.outcome != Outcome::NotTried))
        else {
            return;
        };
        let answers = answer.outcome == Outcome::Connected;
        verdict.evidence.push(Evidence {
            kind: "dns-now",
            text: if answers {
                format!("{}, where the name leads now, answers", shown(&target.ask))
            } else {
                format!("{}, where the name leads now, does not answer either", shown(&target.ask))
            },
        });
        if !answers {
            let reloads = |one: &Fix| one.text.starts_with("reload nginx");
            let (late, early): (Vec<Fix>, Vec<Fix>) = verdict.fix.drain(..).partition(reloads);
            verdict.fix.extend(early.into_iter().chain(late));
        }
    }

    /// Names that have moved altogether, while what nginx holds for them still answers.
    fn moved(&mut self) {
        let all: Vec<(&Target, &Answer)> = self.targets.targets.iter().zip(&self.answers).collect();
        let mut found: Vec<Finding> = Vec::new();
        for (target, answer) in &all {
            for one in &target.uses {
                let (Some(name), Some(now)) = (&one.name, &one.moved) else { continue };
                // One that still leads to another address that nginx holds gives some of many at a time.
                let stays = |other: &Use| {
                    (&other.name, other.server) == (&one.name, one.server)
                        && !other.next
                        && other.moved.is_none()
                };
                let partly = all.iter().any(|(other, _)| other.uses.iter().any(stays));
                let known = found.iter().any(|finding| finding.summary.starts_with(&format!("{name} ")));
                if answer.outcome != Outcome::Connected || partly || known {
                    continue;
                }
                let list: Vec<String> = now.iter().map(ToString::to_string).collect();
                found.push(Finding {
                    name: MOVED,
                    severity: Severity::Warning,
                    cause: None,
                    confidence: Confidence::Likely,
                    summary: format!(
                        "{} leads to {} now, and nginx goes on sending to {}",
                        proc::printable(name.as_bytes()),
                        list.join(", "),
                        shown(&target.ask)
                    ),
                    breaks: "nginx keeps the addresses that it got when it started or was reloaded: requests go to what is \
                             there by now, and fail when it goes"
                        .to_owned(),
                    rival: Some("a name whose servers give other addresses each time that they are asked".to_owned()),
                    upstream: Some(shown(&target.ask)),
                    at: places(&self.subject.snapshot.model, std::slice::from_ref(one)),
                    evidence: vec![Evidence {
                        kind: "dns-stale",
                        text: format!("nginx's own memory holds {} for it", shown(&target.ask)),
                    }],
                    fix: vec![
                        Fix {
                            text: "reload nginx, so that it resolves the name again".to_owned(),
                            command: Some(format!("kill -HUP {}", self.subject.master.pid)),
                        },
                        Fix {
                            text: "for names that come and go: a `resolver`, and `server NAME:PORT resolve;` with a `zone` (nginx \
                                   1.27.3)"
                                .to_owned(),
                            command: None,
                        },
                    ],
                });
            }
        }
        self.findings.extend(found);
    }

    /// Another address of the same name, which answers, and the line that names it: the name stands for several servers.
    fn other_address(&self, target: &Target) -> Option<(String, String)> {
        let [one, ..] = target.uses.as_slice() else { return None };
        let name = one.name.as_ref().filter(|_| one.moved.is_none())?;
        let same = |other: &Use| {
            !other.next
                && other.moved.is_none()
                && (other.name.as_ref(), other.server) == (Some(name), one.server)
                && (one.server.is_some() || one.passes.iter().any(|pass| other.passes.contains(pass)))
        };
        let mut all = self.targets.targets.iter().zip(&self.answers);
        let (answers, _) = all.find(|(other, answer)| {
            answer.outcome == Outcome::Connected && !other.is_plain && other.uses.iter().any(same)
        })?;
        let model = &self.subject.snapshot.model;
        let line = match one.server {
            Some((group, at)) => model.line(Role::Server, model.upstreams.get(group)?.servers.get(at)?.node),
            None => model.line(Role::Pass, model.passes.get(*one.passes.first()?)?.node),
        };
        Some((format!("{} instead of {}", at(&line), proc::printable(name.as_bytes())), shown(&answers.ask)))
    }

    fn same_group(one: &Use, other: &Use) -> bool {
        match (one.server, other.server) {
            _ if one.next || other.next => false,
            (Some((group, _)), Some((other, _))) => group == other,
            (None, None) => one.passes.iter().any(|pass| other.passes.contains(pass)),
            _ => false,
        }
    }

    /// True if nginx has another server, or another address, for the same request, and it answers.
    fn other_answers(&self, target: &Target, one: &Use) -> bool {
        self.targets.targets.iter().zip(&self.answers).any(|(other, answer)| {
            other != target
                && answer.outcome == Outcome::Connected
                && other.uses.iter().any(|other| Self::same_group(one, other))
        })
    }

    /// How many of a group's addresses fail: so many tries a request may need.
    fn failing(&self, one: &Use) -> u64 {
        let fails = |answer: &Answer| matches!(answer.outcome, Outcome::Failed(..) | Outcome::TimedOut);
        let all = self.targets.targets.iter().zip(&self.answers).filter(|(other, answer)| {
            fails(answer) && !other.is_plain && other.uses.iter().any(|other| Self::same_group(one, other))
        });
        let places: BTreeSet<&Where> = all.map(|(other, _)| &other.ask.to).collect();
        places.len().try_into().unwrap_or(u64::MAX)
    }

    /// What keeps a pass from the servers that answer; None if nothing does.
    fn barred(&self, one: &Use, pass: usize, status: &str) -> Option<Vec<ConfigLine>> {
        let model = &self.subject.snapshot.model;
        let barred = model.barred(model.passes.get(pass)?, self.failing(one).max(1));
        match status {
            // Without a socket nginx asks nobody (ngx_http_upstream_connect).
            "500" => Some(Vec::new()),
            "504" => Some(barred.timeout).filter(|lines| !lines.is_empty()),
            _ => Some(barred.error).filter(|lines| !lines.is_empty()),
        }
    }

    /// How bad a server's failure is, and what breaks because of it.
    fn effect(&self, target: &Target, status: &str) -> Effect {
        let model = &self.subject.snapshot.model;
        let uses = || target.uses.iter().filter(|one| !one.next);
        let is_stream = |passes: &[usize]| {
            let mut all = passes.iter().filter_map(|pass| model.passes.get(*pass));
            all.all(|pass| pass.module.layer() == Layer::Stream)
        };
        let lines = |passes: &[usize]| -> Vec<String> {
            let all = passes.iter().filter_map(|pass| model.passes.get(*pass));
            let mut seen = BTreeSet::new();
            all.map(|pass| at(&model.line(Role::Pass, pass.node)))
                .filter(|place| seen.insert(place.clone()))
                .collect()
        };
        let mirrored = |pass: &usize| model.passes.get(*pass).and_then(|pass| view::mirrored(model, pass));
        // What a client gets an answer from.
        let seen = |one: &Use| -> Vec<usize> {
            one.passes.iter().filter(|pass| mirrored(pass).is_none()).copied().collect()
        };
        let all: Vec<usize> = uses().flat_map(|one| one.passes.iter().copied()).collect();
        if !all.is_empty() && all.iter().all(|pass| mirrored(pass).is_some()) {
            let mut breaks =
                format!("the copies of requests that `mirror` sends to {} are lost", list(&lines(&all)));
            if status == "504" {
                breaks += "; the requests themselves are answered, and their connections are held until nginx gives up";
            } else {
                breaks += "; the requests themselves are answered";
            }
            if all.iter().any(|pass| mirrored(pass) == Some(false)) {
                breaks += &format!(" (a client that asks for that location itself gets {status})");
            }
            return Effect { severity: Severity::Warning, breaks, barred: Vec::new() };
        }
        let sure = || uses().filter(|one| !one.perhaps);
        let worst: Vec<usize> =
            sure().filter(|one| !self.other_answers(target, one)).flat_map(seen).collect();
        if !worst.is_empty() {
            let which = list(&lines(&worst));
            let breaks = if is_stream(&worst) {
                format!("every connection that comes to {which} is closed: no other server answers")
            } else {
                format!("every request that comes to {which} gets {status}: no other server answers")
            };
            return Effect { severity: Severity::Problem, breaks, barred: Vec::new() };
        }
        let mut stuck: Vec<usize> = Vec::new();
        let mut barred: Vec<ConfigLine> = Vec::new();
        let mut rests: Vec<String> = Vec::new();
        for one in sure().filter(|one| !self.is_backup(one)) {
            for pass in seen(one) {
                if let Some(found) = self.barred(one, pass, status) {
                    stuck.push(pass);
                    barred.extend(found);
                    rests.extend(self.rest(one));
                }
            }
        }
        let mut known = BTreeSet::new();
        barred.retain(|line| known.insert(at(line)));
        if !stuck.is_empty() {
            let which = list(&lines(&stuck));
            let what = if is_stream(&stuck) { "connections" } else { "requests" };
            let get = if is_stream(&stuck) { "are closed".to_owned() } else { format!("get {status}") };
            let why: Vec<String> =
                barred.iter().map(|line| format!("{} ({})", line.text, at(line))).collect();
            let why = match why.as_slice() {
                [] => "nginx asks no other server after such an error".to_owned(),
                _ => format!("another server answers, and {} keeps nginx from asking it", why.join(", ")),
            };
            let rest = rests.first().map(|rest| format!("; {rest}")).unwrap_or_default();
            let breaks =
                format!("{what} to {which} {get} whenever nginx chooses this server first: {why}{rest}");
            return Effect { severity: Severity::Problem, breaks, barred };
        }
        let Some(one) = uses().find(|one| !one.perhaps).or_else(|| uses().next()) else {
            return Effect { severity: Severity::Warning, breaks: String::new(), barred: Vec::new() };
        };
        let which = list(&lines(&one.passes));
        let breaks = if one.perhaps {
            format!("requests to {which} get {status}, if they choose this server")
        } else {
            let lost = if status == "504" {
                "waits for it as long as the connect timeout is"
            } else {
                "fails on it"
            };
            format!(
                "each request to {which} that it is chosen for {lost} before nginx goes on to the next server"
            )
        };
        Effect { severity: Severity::Warning, breaks, barred: Vec::new() }
    }

    fn server(&self, one: &Use) -> Option<&UpstreamServer> {
        let (group, at) = one.server?;
        self.subject.snapshot.model.upstreams.get(group)?.servers.get(at)
    }

    /// It is asked when others have failed.
    fn is_backup(&self, one: &Use) -> bool {
        self.server(one).is_some_and(|server| server.backup)
    }

    /// For how long nginx leaves a server alone that has failed.
    fn rest(&self, one: &Use) -> Option<String> {
        let (fails, seconds) =
            self.server(one).map_or((1, 10), |server| (server.max_fails, server.fail_timeout_s));
        (fails > 0).then(|| {
            format!(
                "each worker leaves it alone for {seconds} s after max_fails={fails}, then tries it again"
            )
        })
    }

    fn unresolved(&self, one: &Unresolved, answer: &resolve::Answer) -> Finding {
        let (why, rival) = match answer {
            resolve::Answer::None(why) => (why, None),
            resolve::Answer::Failed(why) => {
                (why, Some("a name server that is slow or failing just now".to_owned()))
            }
            resolve::Answer::Addresses(_) => (&one.name, None),
        };
        let name = proc::printable(one.name.as_bytes());
        Finding {
            name: UNRESOLVED,
            severity: Severity::Warning,
            cause: None,
            confidence: if rival.is_some() { Confidence::Likely } else { Confidence::Proven },
            summary: format!("{name} has no address now: {why}"),
            breaks: "nginx goes on with the addresses that it got when it started, whatever is there by now; its next start or \
                     reload fails (\"host not found in upstream\")"
                .to_owned(),
            rival,
            upstream: None,
            at: places(&self.subject.snapshot.model, &one.uses),
            evidence: vec![Evidence {
                kind: "resolver",
                text: format!("getaddrinfo({name}) in nginx's network namespace: {why}"),
            }],
            fix: vec![
                Fix { text: "correct the name, or the DNS zone".to_owned(), command: Some(format!("getent ahosts {name}")) },
                Fix {
                    text: "for names that come and go: a `resolver`, and `server NAME:PORT resolve;` with a `zone` (nginx 1.27.3)"
                        .to_owned(),
                    command: None,
                },
            ],
        }
    }
}

/// A failure of which no more is known: there was no time left.
fn not_explained(ask: &Ask, answer: &Answer) -> Verdict {
    let how = match answer.outcome {
        Outcome::Failed(_, errno) => words::errno(errno),
        Outcome::TimedOut | Outcome::Connected | Outcome::NotTried => "no answer in time".to_owned(),
    };
    let mut verdict = Verdict::proven(Cause::Unexplained, format!("connections to {} fail", shown(ask)))
        .because("errno", format!("{how}; no time was left to find out why"))
        .fix("check this nginx again when fewer of its servers fail");
    verdict.confidence = Confidence::Unexplained;
    verdict
}

/// `conf.d/shop.conf:18`.
fn at(line: &ConfigLine) -> String {
    format!("{}:{}", line.file.display(), line.line)
}

fn list(places: &[String]) -> String {
    match places {
        [] => "it".to_owned(),
        [one] => one.clone(),
        [one, two] => format!("{one} or {two}"),
        [one, rest @ ..] => format!("{one} and {} other lines", rest.len()),
    }
}

/// The address as an incident writes it.
pub(super) fn shown(ask: &Ask) -> String {
    match &ask.to {
        Where::Tcp(to) => to.to_string(),
        Where::Unix(path) => format!("unix:{}", proc::printable(path)),
    }
}

fn place(line: ConfigLine) -> Place {
    Place { role: line.role.name(), file: Some(line.file), line: Some(line.line), text: line.text }
}

/// The `server` lines, then the passes.
pub(super) fn places(model: &Model, uses: &[Use]) -> Vec<Place> {
    let mut found: Vec<Place> = Vec::new();
    let mut add = |line: ConfigLine| {
        let place = place(line);
        if found.len() < MOST_LINES && !found.contains(&place) {
            found.push(place);
        }
    };
    for one in uses {
        let server = one.server.and_then(|(group, at)| model.upstreams.get(group)?.servers.get(at));
        if let Some(server) = server {
            add(model.line(Role::Server, server.node));
        }
    }
    for pass in uses.iter().flat_map(|one| &one.passes).filter_map(|pass| model.passes.get(*pass)) {
        add(model.line(Role::Pass, pass.node));
    }
    found
}

/// What nginx answers after such a failure, if no other server is left: it has no way on from a socket that it cannot make or
/// bind (ngx_event_connect_peer).
fn status(answer: &Answer) -> &'static str {
    match answer.outcome {
        Outcome::TimedOut => "504",
        Outcome::Failed(Call::Socket | Call::Bind, _) => "500",
        Outcome::Failed(Call::Connect | Call::Later, _) | Outcome::Connected | Outcome::NotTried => "502",
    }
}
