//! One case from its first namespace to its judgement.

use crate::backend;
use crate::case::{At, Case, Nginx as Settings, Request, Step};
use crate::check::{self, Moment};
use crate::client::{self, Answer};
use crate::conntrack;
use crate::expect::Expect;
use crate::judge;
use crate::listen::{self, Held};
use crate::look;
use crate::needs;
use crate::net::{self, World};
use crate::nginx::{self, Line, Nginx};
use crate::remote::Responder;
use crate::report::Outcome;
use crate::requests;
use crate::sys;
use crate::watch::Watch;
use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

/// How often the processes of a case are looked for while a request is on its way: each look goes through all of /proc.
const LOOK: Duration = Duration::from_millis(100);

/// How long is waited for incidents that may come or not: several poll periods of why502.
const OPTIONAL: Duration = Duration::from_millis(600);

/// What a set-up may take, in seconds, with other work beside it: a step may start another why502, whose programs the kernel
/// verifies. It ends what hangs; a machine in a hurry never waits for it.
const SET_UP: f64 = 60.0;

/// How often a case is set up at most, if nginx's timer is faster.
const SET_UPS: u32 = 4;

/// How long is waited for an incident that must come, in seconds. How fast why502 is is measured elsewhere.
const INCIDENT: f64 = 10.0;

/// What `why502 check` may take, in seconds: it bounds itself at 30 for all upstream servers of one nginx.
const LOOKING: f64 = 45.0;

/// What all cases of a run share.
#[derive(Debug)]
pub(crate) struct Setup<'a> {
    pub(crate) watch: Option<&'a Watch>,
    /// why502 itself, for steps that ask it.
    pub(crate) program: Option<&'a Path>,
    /// `why502 check` is judged in place of `watch`, at the moment that the case names.
    pub(crate) check: bool,
    /// Bounds are this many times longer (emulated guests).
    pub(crate) slow: f64,
    /// How long to look for incidents that should not come.
    pub(crate) settle: Duration,
    /// Leave the dump even when the case passes.
    pub(crate) verbose: bool,
}

impl Setup<'_> {
    pub(crate) fn bound(&self, seconds: f64) -> Duration {
        Duration::from_secs_f64(seconds * self.slow)
    }
}

/// What is looked at once more when the run ends.
#[derive(Debug, Default)]
pub(crate) struct Seen {
    pub(crate) pids: BTreeSet<u32>,
    pub(crate) incidents: usize,
    /// What the case was judged by, if it came so far.
    pub(crate) judged: Option<Expect>,
    /// nginx's prefix.
    pub(crate) dir: PathBuf,
    /// When it was played, CLOCK_MONOTONIC ns.
    pub(crate) from_ns: u64,
    pub(crate) to_ns: u64,
}

/// Plays the case and judges it. Never fails itself: an error is a failed case.
pub(crate) fn run(case: &Case, setup: &Setup<'_>) -> (Outcome, Seen) {
    let start = Instant::now();
    let mut outcome = Outcome { name: case.name.clone(), verbose: setup.verbose, ..Outcome::default() };
    let mut seen = Seen { from_ns: sys::monotonic_ns(), ..Seen::default() };
    if let Some(watch) = setup.watch
        && !case.tiers.contains(&watch.tier)
    {
        outcome.skipped = Some(format!("not a case of the tier {}", watch.tier));
        return (outcome, seen);
    }
    let answers = setup.watch.is_none_or(|watch| judge::watched(&watch.tier, sys::kernel()));
    let words = setup.watch.is_none_or(Watch::asks);
    if let Some(why) = needs::unmet(&case.needs, answers, words) {
        outcome.skipped = Some(why);
        return (outcome, seen);
    }
    let mut scratch = Scratch::new();
    let mut played = play(case, setup, &scratch.0, &mut outcome, &mut seen);
    for _ in 1..SET_UPS {
        if !matches!(&played, Err(error) if error.is::<Overtaken>()) {
            break;
        }
        scratch = Scratch::new();
        outcome.failures.clear();
        seen = Seen { from_ns: seen.from_ns, ..Seen::default() };
        outcome.dump += "set up anew: nginx's timer was faster than a step\n";
        played = play(case, setup, &scratch.0, &mut outcome, &mut seen);
    }
    seen.dir.clone_from(&scratch.0);
    if let Err(error) = played {
        outcome.failures.push(format!("the lab: {error:#}"));
    }
    if !outcome.failures.is_empty() || setup.verbose {
        dump(case, setup, &scratch.0, &mut outcome);
    }
    seen.incidents = outcome.incidents.len();
    seen.to_ns = sys::monotonic_ns();
    outcome.time = start.elapsed();
    (outcome, seen)
}

/// The folder of a case's nginx; gone with it.
struct Scratch(PathBuf);

impl Scratch {
    fn new() -> Self {
        Self(std::env::temp_dir().join(format!("w502-{}", net::tag())))
    }
}

/// A set-up that nginx's own timer has overtaken: there is nothing to judge.
#[derive(Debug)]
struct Overtaken;

impl std::fmt::Display for Overtaken {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "nginx no longer connected when a step was done, {SET_UPS} times")
    }
}

impl std::error::Error for Overtaken {}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// Everything alive; dropped in this order.
struct Scene<'a> {
    case: &'a Case,
    setup: &'a Setup<'a>,
    dir: &'a Path,
    markers: BTreeMap<String, Line>,
    nginx: Vec<Nginx>,
    background: Vec<Child>,
    held: Vec<Held>,
    _remote: Option<Responder>,
    world: World,
}

fn play(case: &Case, setup: &Setup<'_>, dir: &Path, outcome: &mut Outcome, seen: &mut Seen) -> Result<()> {
    let world = World::create(&case.hosts).context("namespaces")?;
    let remote = case.remote.as_ref().map(|r| Responder::start(&world.web, r)).transpose()?;
    let mut scene = Scene {
        case,
        setup,
        dir,
        markers: BTreeMap::new(),
        nginx: Vec::new(),
        background: Vec::new(),
        held: Vec::new(),
        _remote: remote,
        world,
    };
    let acted = act(&mut scene, outcome, seen);
    Nginx::stop_all(&scene.world.web, setup.bound(5.0));
    // Whatever went wrong: these steps undo what is not the case's own.
    let undone = scene.steps(At::Finally);
    acted.and(undone)?;
    if !setup.check {
        scene.check_logs(outcome);
    }
    Ok(())
}

fn act(scene: &mut Scene<'_>, outcome: &mut Outcome, seen: &mut Seen) -> Result<()> {
    let Scene { case, setup, dir, .. } = *scene;
    nginx::prefix(dir, &case.dir)?;
    scene.steps(At::BeforeNginx)?;
    scene.start(&case.nginx, dir, seen)?;
    if let Some(second) = &case.second_nginx {
        let dir = dir.join("second");
        nginx::prefix(&dir, &case.dir)?;
        scene.start(second, &dir, seen)?;
    }
    // Before any step changes a file: the lines are those of the configuration nginx has read.
    scene.mark()?;
    scene.steps(At::AfterNginx)?;
    scene.followed();
    if setup.check && check::moment(case) == Moment::BeforeRequests {
        return scene.look(outcome);
    }
    for (number, request) in case.request.iter().enumerate() {
        scene.request(request, number == 0, outcome, seen)?;
        if number == 0 {
            scene.steps(At::AfterFirstRequest)?;
        }
    }
    scene.steps(At::AfterRequests)?;
    if setup.check {
        return scene.look(outcome);
    }
    scene.settle(outcome, seen);
    Nginx::stop_all(&scene.world.web, setup.bound(5.0));
    if let Some(watch) = setup.watch {
        outcome.incidents = watch.incidents(&seen.pids);
        let (expect, told) = expected(case, watch);
        let (failures, score) = judge::judge(&expect, &watch.tier, &outcome.incidents, &scene.markers);
        outcome.failures.extend(failures);
        outcome.failures.extend(requests::judge(
            &expect,
            &watch.tier,
            told,
            &case.request,
            &outcome.incidents,
            &scene.markers,
        ));
        outcome.score = score;
        seen.judged = Some(expect);
        let warned = scene.unwarned(watch, seen);
        if !warned.is_empty() {
            outcome.dump += &format!("why502's stderr:\n{}\n", watch.stderr());
        }
        outcome.failures.extend(warned);
    }
    Ok(())
}

/// What is expected in this run, and whether nginx tells more than the case expects otherwise: its memory is always asked.
fn expected(case: &Case, watch: &Watch) -> (Expect, bool) {
    let told = case.expect.uprobes.is_some();
    let expect = if told { case.expect.told(watch.asks()) } else { case.expect.clone() };
    (expect.without(&watch.tier, &watch.hooks.missing), told)
}

impl Scene<'_> {
    fn see(&self, seen: &mut Seen) {
        seen.pids.extend(self.world.web.pids());
    }

    fn start(&mut self, settings: &Settings, dir: &Path, seen: &mut Seen) -> Result<()> {
        let nginx = Nginx::start(&self.world.web, settings, dir, self.setup.bound(10.0))?;
        self.see(seen);
        if let Some(watch) = self.setup.watch {
            // why502 says on stderr when it follows a new master; what fails before is nobody's.
            let bound = if self.case.expect.none { 1.0 } else { INCIDENT };
            sys::poll_until(self.setup.bound(bound), || nginx.pids().any(|pid| watch.names_process(pid)));
        }
        self.nginx.push(nginx);
        Ok(())
    }

    /// Waits until why502 follows the master that a step has put in the place of the one that was started.
    fn followed(&self) {
        let Some(watch) = self.setup.watch else { return };
        let known = |pid: &u32| self.nginx.iter().any(|nginx| nginx.pids().any(|known| known == *pid));
        for pid in nginx::masters(&self.world.web, &self.nginx).into_iter().filter(|pid| !known(pid)) {
            sys::poll_until(self.setup.bound(INCIDENT), || watch.names_process(pid));
        }
    }

    fn mark(&mut self) -> Result<()> {
        // The second nginx's folder lies in the first's.
        if let Some(second) = &self.case.second_nginx {
            nginx::markers(&self.dir.join("second"), second.seen_at.as_deref(), &mut self.markers)?;
        }
        nginx::markers(self.dir, self.case.nginx.seen_at.as_deref(), &mut self.markers)
    }

    fn steps(&mut self, at: At) -> Result<()> {
        for step in self.case.step.iter().filter(|s| s.at == at) {
            self.step(step).with_context(|| format!("step {step:?}"))?;
        }
        // Lines of files that a step has written. Before nginx starts its own file is not there yet.
        if at == At::BeforeNginx { Ok(()) } else { self.mark() }
    }

    fn step(&mut self, step: &Step) -> Result<()> {
        let bound = self.setup.bound(SET_UP);
        let ns = self.world.get(&step.r#in)?;
        if let Some(listen) = &step.listen {
            self.held.push(listen::listen(ns, listen, self.dir, 4, bound)?);
        } else if let Some(backend) = &step.backend {
            self.background.extend(backend::start(ns, backend, self.dir, bound)?);
        } else if let Some(connect) = &step.connect {
            self.held.push(listen::connect(ns, connect)?);
        } else if step.fill_conntrack {
            conntrack::fill(ns)?;
        } else if let Some(command) = &step.run {
            let mut child = self.shell(&step.r#in, command)?;
            if step.background {
                self.background.push(child);
                return Ok(());
            }
            let mut status = None;
            if !sys::poll_until(bound, || {
                status = child.try_wait().ok().flatten();
                status.is_some()
            }) {
                let _ = child.kill();
                let _ = child.wait();
            }
            let output = std::fs::read_to_string(self.dir.join("step.out")).unwrap_or_default();
            match status {
                Some(status) => ensure!(status.success(), "{status}: {output}"),
                None => bail!("not done in {} s: {output}", bound.as_secs()),
            }
        } else if let Some(command) = &step.wait {
            let done = || {
                let child = self.shell(&step.r#in, command).and_then(|mut child| Ok(child.wait()?));
                child.is_ok_and(|status| status.success())
            };
            ensure!(sys::poll_until(bound, done), "it never came true");
        }
        Ok(())
    }

    fn shell(&self, host: &str, command: &str) -> Result<Child> {
        let output = std::fs::File::create(self.dir.join("step.out"))?;
        let first = self.nginx.first();
        self.world
            .get(host)?
            .command("sh")
            .args(["-euc", command])
            .current_dir(self.dir)
            .env("DIR", self.dir)
            .env("CASE", std::path::absolute(&self.case.dir)?)
            .env("FAULTLAB", std::env::current_exe().context("no path of this program")?)
            .env("WHY502", self.setup.program.unwrap_or(Path::new("")))
            .env("NGINX_PID", first.map_or(0, |n| n.pid).to_string())
            .env("WORKER_PID", first.map_or(0, |n| n.worker).to_string())
            .env("SECOND_PID", self.nginx.get(1).map_or(0, |n| n.pid).to_string())
            .stdin(Stdio::null())
            .stdout(output.try_clone()?)
            .stderr(output)
            .spawn()
            .context("cannot start sh")
    }

    fn request(
        &mut self,
        request: &Request,
        first: bool,
        outcome: &mut Outcome,
        seen: &mut Seen,
    ) -> Result<()> {
        let bound = self.setup.bound(20.0);
        let worker = self.nginx.first().map_or(0, |n| n.worker);
        let mut wanted = request.clone();
        for file in [&mut wanted.abort_when, &mut wanted.next_when].into_iter().flatten() {
            *file = self.dir.join(&*file);
        }
        let fd = self.world.web.fd();
        let thread = std::thread::spawn(move || -> Result<Vec<Answer>> {
            sys::enter(fd).context("setns")?;
            let _idle = if wanted.fill_worker_fds {
                client::fill_fds(&wanted.to, worker, bound)?
            } else {
                Vec::new()
            };
            Ok(client::send(&wanted, bound))
        });
        let mut steps = Ok(());
        if first && self.case.step.iter().any(|s| s.at == At::Connecting) {
            let who = worker.to_string();
            let connecting = sys::poll_until(bound, || !listen::sockets(&who, 2).is_empty());
            steps = if connecting {
                self.steps(At::Connecting)
            } else {
                Err(anyhow::anyhow!("nginx never was in SYN_SENT"))
            };
            let in_time = self.case.step.iter().any(|s| s.at == At::Connecting && s.in_time);
            if steps.is_ok() && in_time && listen::sockets(&who, 2).is_empty() {
                steps = Err(Overtaken.into());
            }
        }
        // The thread's own bounds end it; the processes that come and go meanwhile are ours to see.
        let mut looked = Instant::now();
        sys::poll_until(bound * (request.count + 1), || {
            if looked.elapsed() >= LOOK {
                self.see(seen);
                looked = Instant::now();
            }
            thread.is_finished()
        });
        self.see(seen);
        let Ok(answers) = thread.join() else { bail!("the client thread panicked") };
        steps?;
        for answer in answers? {
            let (status, seconds) = (answer.status, answer.time.as_secs_f64());
            outcome.dump += &format!(
                "client: {} {} status {status:?} after {seconds:.3} s\n",
                request.method, request.path
            );
            if let Some(error) = &answer.error
                && !request.may_fail
            {
                outcome.failures.push(format!("{}: {error}", request.path));
            } else if request.expect_status.is_some() && answer.status != request.expect_status {
                let (got, wanted) = (answer.status, request.expect_status);
                outcome.failures.push(format!("{}: status {got:?}, expected {wanted:?}", request.path));
            }
        }
        Ok(())
    }

    /// Asks `why502 check`, and judges what it says.
    fn look(&self, outcome: &mut Outcome) -> Result<()> {
        let Some(program) = self.setup.program else { bail!("no why502 to ask") };
        let masters = nginx::masters(&self.world.web, &self.nginx);
        let said = look::check(program, &masters, self.dir, self.setup.bound(LOOKING))?;
        outcome.dump += &said.text();
        let (failures, score) = check::judge(self.case, &said, &self.markers);
        outcome.failures.extend(failures);
        outcome.score = score;
        outcome.findings = said.findings();
        Ok(())
    }

    /// Waits for the incidents that should come, then a while for those that should not.
    fn settle(&self, outcome: &mut Outcome, seen: &mut Seen) {
        self.see(seen);
        let Some(watch) = self.setup.watch else { return };
        let (expect, _) = expected(self.case, watch);
        let (min, max) = expect.incidents(&watch.tier);
        let mut count = || {
            self.see(seen);
            let incidents: Vec<Value> = watch.incidents(&seen.pids);
            judge::counted(&expect, &incidents).len()
        };
        let start = Instant::now();
        if sys::poll_until(self.setup.bound(INCIDENT), || count() >= min) {
            // What should not come is also looked for when the run ends; what may come is told with its facts while these last.
            let settle = if max > min { self.setup.settle.max(OPTIONAL) } else { self.setup.settle };
            sys::poll_until(settle, || count() > max);
        }
        // While the worker is there: it is asked for its context.
        sys::poll_until(self.setup.bound(1.0), || self.unwarned(watch, seen).is_empty());
        outcome.dump += &format!("waited {:.2} s for incidents\n", start.elapsed().as_secs_f64());
    }

    fn unwarned(&self, watch: &Watch, seen: &Seen) -> Vec<String> {
        judge::warnings(&self.case.expect, &watch.tier, &watch.stderr(), &seen.pids)
    }

    fn check_logs(&self, outcome: &mut Outcome) {
        let logs: String = self.nginx.iter().map(|n| n.read("error.log")).collect();
        for wanted in &self.case.expect_log {
            if !logs.contains(wanted) {
                outcome.failures.push(format!("the lab: nginx's error log does not say `{wanted}`"));
            }
        }
        for bad in ["[emerg]", "[alert] "] {
            // A killed worker is an alert and may be the case itself.
            if let Some(line) = logs.lines().find(|l| l.contains(bad) && !l.contains("exited on signal")) {
                outcome.dump += &format!("nginx complains: {line}\n");
            }
        }
    }
}

impl Drop for Scene<'_> {
    fn drop(&mut self) {
        // Its own process group and namespace: the namespace's drop ends grandchildren.
        for mut child in self.background.drain(..) {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

fn dump(case: &Case, setup: &Setup<'_>, dir: &Path, outcome: &mut Outcome) {
    let mut text = format!("{}: {}\nkernel {:?}\n", case.name, case.about, sys::kernel());
    text += &outcome.dump;
    for incident in &outcome.incidents {
        text += &format!("incident: {incident:#}\n");
    }
    for name in ["nginx.conf", "error.log", "access.log", "output", "second/error.log", "step.out"] {
        if let Ok(bytes) = std::fs::read(dir.join(name))
            && !bytes.is_empty()
        {
            text += &format!("--- {name}\n{}", String::from_utf8_lossy(&bytes));
        }
    }
    if let Some(watch) = setup.watch {
        let stderr = watch.stderr();
        let lines: Vec<&str> = stderr.lines().collect();
        text += &format!(
            "--- why502's stderr, the end\n{}\n",
            lines[lines.len().saturating_sub(30)..].join("\n")
        );
    }
    outcome.dump = text;
}
