//! Every upstream server of the running configuration: looked up, connected to from the worker's place, and explained if
//! that fails.

use std::{
    collections::{BTreeSet, HashMap},
    path::Path,
    time::{Duration, Instant},
};

use super::{
    Checked, Finding, Name, Options, Place, Report, Severity, Subject, handshake,
    position::{Outcomes, attempt, look_up, no_start, plan, try_all, worker},
    probe::{self, Answer, Ask, Call, Outcome, Plan, Where},
    targets::{self, Target, Targets, Unresolved, Use},
};
use crate::{
    correlate::Case,
    diagnose::{Cause, Confidence, Evidence, Fix, Verdict, words},
    event::Speaker,
    nginx::{
        Candidate, ConfigLine,
        model::{Layer, Model, Role},
    },
    session::{Explainer, Tried, unix_name},
    sys::{proc, process::Process, resolve, selinux},
};

/// What is wrong with a name.
const UNRESOLVED: &str = "name-does-not-resolve";

/// Everything that this family finds: a name of its own, and causes that a request's failure would have.
pub const NAMES: &[Name] = &[
    (UNRESOLVED, "an upstream's name has no address now: nginx keeps its old ones, and the next start fails"),
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
    let targets = targets::of(model, &resolved);
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
            .filter(|(target, answer)| !target.is_plain && answer.outcome != Outcome::NotTried)
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
            if !target.is_plain {
                self.selinux(target, &mut denied);
            }
            let Some(answer) = self.answers.get(number).cloned() else { continue };
            // A second connection to the same server adds nothing to the failure of the first.
            let failed =
                !target.is_plain && !matches!(answer.outcome, Outcome::Connected | Outcome::NotTried);
            let whole = if failed { self.whole(number, target, &answer) } else { None };
            if let Some(target) = whole.as_ref().filter(|target| !self.is_spare_localhost(target)) {
                let who = refused_by.get(&number);
                let tried = Tried {
                    attempt: attempt(self.worker, &target.ask, &answer),
                    lasted: Duration::from_micros(answer.us),
                    config: self.lines(&target.ask),
                    timeout: self.options.timeout,
                    refused_by: who.copied().flatten(),
                    unconfined_too: unconfined || who.is_some_and(Option::is_none),
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
        let uses = all.flat_map(|(_, (other, _))| other.uses.iter().cloned()).collect();
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
        self.push(target, verdict, status(answer));
    }

    /// `status`: what nginx answers if it has no other server.
    fn push(&mut self, target: &Target, verdict: Verdict, status: &str) {
        let (severity, breaks) = self.effect(target, status);
        self.findings.push(Finding {
            name: verdict.cause.name(),
            severity,
            cause: Some(verdict.cause),
            confidence: verdict.confidence,
            summary: verdict.summary,
            breaks,
            rival: verdict.rival,
            upstream: Some(shown(&target.ask)),
            at: places(&self.subject.snapshot.model, &target.uses),
            evidence: verdict.evidence,
            fix: verdict.fix,
        });
    }

    /// The name `localhost` stands for both loopback addresses; where one of them answers, nginx finds it.
    fn is_spare_localhost(&self, target: &Target) -> bool {
        let is_one =
            |one: &Use| one.name.as_deref().is_some_and(|name| name.eq_ignore_ascii_case("localhost"));
        target.uses.iter().all(|one| is_one(one) && self.other_answers(target, one))
    }

    /// True if nginx has another server, or another address, for the same request, and it answers.
    fn other_answers(&self, target: &Target, one: &Use) -> bool {
        let same = |other: &Use| match (one.server, other.server) {
            (Some((group, _)), Some((other, _))) => group == other,
            (None, None) => one.passes.iter().any(|pass| other.passes.contains(pass)),
            _ => false,
        };
        self.targets.targets.iter().zip(&self.answers).any(|(other, answer)| {
            other != target && answer.outcome == Outcome::Connected && other.uses.iter().any(same)
        })
    }

    /// How bad a server's failure is, and what breaks because of it.
    fn effect(&self, target: &Target, status: &str) -> (Severity, String) {
        let model = &self.subject.snapshot.model;
        let alone = |one: &&Use| !self.other_answers(target, one);
        let sure = |one: &&Use| !one.perhaps;
        let worst: Vec<&Use> = target.uses.iter().filter(sure).filter(alone).collect();
        let passes = |one: &Use| -> Vec<String> {
            let lines = one.passes.iter().filter_map(|pass| model.passes.get(*pass));
            lines.map(|pass| at(&model.line(Role::Pass, pass.node))).collect()
        };
        if !worst.is_empty() {
            let stream = worst
                .iter()
                .flat_map(|one| &one.passes)
                .filter_map(|pass| model.passes.get(*pass))
                .all(|pass| pass.module.layer() == Layer::Stream);
            let mut all: Vec<String> = worst.iter().flat_map(|one| passes(one)).collect();
            let mut seen = BTreeSet::new();
            all.retain(|place| seen.insert(place.clone()));
            let which = list(&all);
            let text = if stream {
                format!("every connection that comes to {which} is closed: no other server answers")
            } else {
                format!("every request that comes to {which} gets {status}: no other server answers")
            };
            return (Severity::Problem, text);
        }
        let Some(one) = target.uses.iter().find(|one| !one.perhaps).or_else(|| target.uses.first()) else {
            return (Severity::Warning, String::new());
        };
        if one.perhaps {
            let text = format!("requests to {} get {status}, if they choose this server", list(&passes(one)));
            return (Severity::Warning, text);
        }
        let lost =
            if status == "504" { "waits for it as long as the connect timeout is" } else { "fails on it" };
        let text = format!(
            "each request to {} that it is chosen for {lost} before nginx goes on to the next server",
            list(&passes(one))
        );
        (Severity::Warning, text)
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

/// The `server` lines, then the passes.
pub(super) fn places(model: &Model, uses: &[Use]) -> Vec<Place> {
    let mut found: Vec<Place> = Vec::new();
    let mut add = |line: ConfigLine| {
        let place =
            Place { role: line.role.name(), file: Some(line.file), line: Some(line.line), text: line.text };
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
