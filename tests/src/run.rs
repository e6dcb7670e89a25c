//! A run of the lab: the cases one after the other or side by side, under one why502.

use crate::case::{self, Case};
use crate::check::CheckExpect;
use crate::hooks::Hooks;
use crate::judge::Score;
use crate::late;
use crate::look;
use crate::needs;
use crate::record;
use crate::report::{self, Outcome};
use crate::scene::{self, Seen, Setup};
use crate::sys;
use crate::timing;
use crate::watch::{End, Program, Start, Watch};
use crate::{Choice, Which};
use anyhow::{Result, bail, ensure};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError, RwLock};
use std::time::Duration;

#[derive(Debug)]
pub(crate) struct Options {
    pub(crate) cases: PathBuf,
    pub(crate) names: Vec<String>,
    /// Only the smaller set.
    pub(crate) core: bool,
    /// `why502 check` is judged, and `why502 trace` not started.
    pub(crate) check: Option<Which>,
    pub(crate) jobs: usize,
    pub(crate) slow: f64,
    pub(crate) settle: Duration,
    pub(crate) verbose: bool,
    /// Which cases, by what hangs on time.
    pub(crate) timing: Choice,
    /// How often those are played.
    pub(crate) plays: u32,
    /// Where why502's recording goes; a list of what was played comes beside it.
    pub(crate) record: Option<PathBuf>,
    pub(crate) json: Option<PathBuf>,
    pub(crate) junit: Option<PathBuf>,
    /// None: the lab itself is tested, without why502.
    pub(crate) program: Option<Program>,
}

/// Prints the name of each case and what it is.
pub(crate) fn list(dir: &Path) -> Result<bool> {
    for case in case::load_all(dir)? {
        let core = if case.core { "core" } else { "" };
        report::say(&format!("{:<40} {core:<4} {}", case.name, case.about));
    }
    Ok(true)
}

/// Runs the cases; true when all is well.
pub(crate) fn run(options: &Options) -> Result<bool> {
    let mut cases = case::load_all(&options.cases)?;
    for name in &options.names {
        ensure!(cases.iter().any(|c| c.name.contains(name.as_str())), "no case is named like `{name}`");
    }
    if !options.names.is_empty() {
        cases.retain(|c| options.names.iter().any(|name| c.name.contains(name.as_str())));
    }
    cases.retain(|c| c.core || !options.core);
    let hangs = |case: &Case| case.timing.as_ref().is_some_and(|timing| timing.matters(options.slow > 1.0));
    cases.retain(|case| options.timing == Choice::Any || hangs(case) == (options.timing == Choice::Only));
    if options.check == Some(Which::Expecting) {
        cases.retain(|c| c.check.as_ref().is_some_and(CheckExpect::expects));
    }
    if cases.is_empty() {
        return finish(&[], "", &[], options, None);
    }
    let attach = Duration::from_secs_f64(15.0 * options.slow);
    let traced = options.program.clone().filter(|_| options.check.is_none()).map(|mut program| {
        program.extra.extend(options.record.iter().map(|path| format!("--write={}", path.display())));
        program
    });
    let watch = match traced.as_ref().map(|p| Watch::start(p, attach)).transpose()? {
        Some(Start::Refused(why)) => return refused(&cases, options, &why),
        Some(Start::Running(watch)) => Some(watch),
        None => None,
    };
    // Steps run in folders of their own.
    let program = options.program.as_ref().map(|p| std::path::absolute(&p.path)).transpose()?;
    if options.check.is_some() {
        let Some(program) = &program else { bail!("--check asks why502: name it with --why502 PATH") };
        look::names_exist(program, &cases)?;
    }
    let setup = Setup {
        watch: watch.as_ref(),
        program: program.as_deref(),
        check: options.check.is_some(),
        slow: options.slow,
        // Half of it is for why502's poll period, which is wall-clock time on every machine.
        settle: options.settle.mul_f64(options.slow.min(3.0)),
        verbose: options.verbose,
    };
    if let Some(watch) = &watch {
        hooks_exist(&watch.hooks, &cases)?;
    }
    let mut done = play_all(&cases, options.jobs, options.plays, &setup);
    done.sort_by(|a, b| a.0.name.cmp(&b.0.name));
    let tier = watch.as_ref().map(|w| w.tier.clone()).unwrap_or_default();
    let mut problems = Vec::new();
    let mut summary = None;
    if let Some(watch) = watch {
        problems.extend(came_late(&watch, &done));
        let End { summary: last, counts: _, problems: found, stderr } = watch.finish(attach);
        if !found.is_empty() {
            report::note(&format!("why502's stderr:\n{stderr}"));
        }
        problems.extend(found);
        summary = last;
    }
    if let Some(path) = &options.record {
        record::note(path, &tier, &done)?;
    }
    if sys::interrupted() {
        problems.push("interrupted".to_owned());
    }
    let mut outcomes: Vec<Outcome> = done.into_iter().map(|(outcome, _)| outcome).collect();
    timing::excuse(&mut outcomes, timing::unseen(summary.as_ref()));
    finish(&outcomes, &tier, &problems, options, summary.as_ref())
}

fn finish(
    outcomes: &[Outcome],
    tier: &str,
    problems: &[String],
    options: &Options,
    summary: Option<&serde_json::Value>,
) -> Result<bool> {
    if let Some(path) = &options.json {
        report::json_file(path, tier, outcomes, summary)?;
    }
    if let Some(path) = &options.junit {
        report::junit_file(path, tier, outcomes)?;
    }
    report::totals(outcomes, tier, problems);
    let mut score = Score::default();
    outcomes.iter().for_each(|outcome| score.add(outcome.score));
    let good = problems.is_empty() && !score.loses_requests();
    Ok(good && outcomes.iter().all(|o| o.failures.is_empty()))
}

/// The kernel offers no such tier: every case is skipped, by name.
fn refused(cases: &[Case], options: &Options, why: &str) -> Result<bool> {
    let tier = options.program.as_ref().map(|p| p.tier.as_str()).unwrap_or_default();
    let reason = why.lines().last().unwrap_or("why502 cannot attach").to_owned();
    report::note(&format!("why502 cannot attach (tier {tier}):\n{why}"));
    let skip = |case: &Case| Outcome {
        name: case.name.clone(),
        skipped: Some(reason.clone()),
        ..Outcome::default()
    };
    let outcomes: Vec<Outcome> = cases.iter().map(skip).collect();
    for outcome in &outcomes {
        report::outcome(outcome);
    }
    finish(&outcomes, "", &[], options, None)
}

/// A typing error in a case must not become a hook that is always missing.
fn hooks_exist(hooks: &Hooks, cases: &[Case]) -> Result<()> {
    if *hooks == Hooks::default() {
        return Ok(());
    }
    for case in cases {
        for name in case.expect.tracepoint.iter().flat_map(|tier| &tier.unexplained_without) {
            ensure!(hooks.knows(name), "{}: why502 has no hook `{name}`: see why502 doctor", case.name);
        }
    }
    Ok(())
}

/// One case with what its plays must be looked at for once more.
type Played = (Outcome, Vec<Seen>);

fn play_all(cases: &[Case], jobs: usize, plays: u32, setup: &Setup<'_>) -> Vec<Played> {
    let next = AtomicUsize::new(0);
    let done = Mutex::new(Vec::new());
    let machine = RwLock::new(());
    std::thread::scope(|scope| {
        for _ in 0..jobs.max(1) {
            scope.spawn(|| {
                while let Some(case) = cases.get(next.fetch_add(1, Ordering::Relaxed)) {
                    if sys::interrupted() {
                        return;
                    }
                    let (_alone, _beside);
                    if needs::whole_machine(&case.needs) {
                        _alone = machine.write().unwrap_or_else(PoisonError::into_inner);
                    } else {
                        _beside = machine.read().unwrap_or_else(PoisonError::into_inner);
                    }
                    let played = play(case, plays, setup);
                    done.lock().unwrap_or_else(PoisonError::into_inner).push(played);
                }
            });
        }
    });
    done.into_inner().unwrap_or_else(PoisonError::into_inner)
}

/// Plays a case once; one that hangs on time so often as `plays` says, or until a verdict is wrong.
fn play(case: &Case, plays: u32, setup: &Setup<'_>) -> Played {
    let timed = plays > 1 && case.timing.as_ref().is_some_and(|timing| timing.matters(setup.slow > 1.0));
    let (mut outcomes, mut seen) = (Vec::new(), Vec::new());
    for _ in 0..if timed { plays } else { 1 } {
        let (outcome, looked) = scene::run(case, setup);
        report::outcome(&outcome);
        let over = outcome.skipped.is_some() || timing::is_wrong(&outcome) || sys::interrupted();
        outcomes.push(outcome);
        seen.push(looked);
        if over {
            break;
        }
    }
    let outcome = if timed { timing::together(outcomes) } else { outcomes.pop().unwrap_or_default() };
    (outcome, seen)
}

/// What is wrong with incidents that came after their case was judged: no case waits long for what should not come.
fn came_late(watch: &Watch, done: &[Played]) -> Vec<String> {
    let mut found = Vec::new();
    let mut judged = 0;
    let plays = done.iter().flat_map(|(outcome, plays)| plays.iter().map(move |seen| (outcome, seen)));
    for (outcome, seen) in plays {
        let now = watch.incidents(&seen.pids);
        judged += now.len();
        if now.len() <= seen.incidents {
            continue;
        }
        let name = &outcome.name;
        match &seen.judged {
            Some(expect) => {
                let failures = late::judge(expect, &watch.tier, &now);
                found.extend(
                    failures.into_iter().map(|failure| format!("after the end of {name}: {failure}")),
                );
            }
            None => found.extend(
                now[seen.incidents..].iter().map(|incident| format!("after the end of {name}: {incident}")),
            ),
        }
    }
    let all = usize::try_from(watch.count()).unwrap_or(usize::MAX);
    if all > judged {
        report::note(&format!("{} incidents of nginx processes that are not ours", all - judged));
    }
    found
}
