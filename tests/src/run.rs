//! A run of the lab: the cases one after the other or side by side, under one why502.

use crate::Which;
use crate::case::{self, Case};
use crate::check::CheckExpect;
use crate::judge::Score;
use crate::late;
use crate::look;
use crate::needs;
use crate::report::{self, Outcome};
use crate::scene::{self, Seen, Setup};
use crate::sys;
use crate::watch::{End, Program, Start, Watch};
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
    /// Play what failed again, alone.
    pub(crate) again: bool,
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
    if options.check == Some(Which::Expecting) {
        cases.retain(|c| c.check.as_ref().is_some_and(CheckExpect::expects));
    }
    let attach = Duration::from_secs_f64(15.0 * options.slow);
    let traced = options.program.as_ref().filter(|_| options.check.is_none());
    let watch = match traced.map(|p| Watch::start(p, attach)).transpose()? {
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
    let mut done = play_all(&cases, options.jobs, &setup);
    if options.again {
        play_again(&cases, &mut done, &setup);
    }
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
    if sys::interrupted() {
        problems.push("interrupted".to_owned());
    }
    let outcomes: Vec<Outcome> = done.into_iter().map(|(outcome, _)| outcome).collect();
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

fn play_all(cases: &[Case], jobs: usize, setup: &Setup<'_>) -> Vec<(Outcome, Seen)> {
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
                    let played = scene::run(case, setup);
                    let mut done = done.lock().unwrap_or_else(PoisonError::into_inner);
                    report::outcome(&played.0);
                    done.push(played);
                }
            });
        }
    });
    done.into_inner().unwrap_or_else(PoisonError::into_inner)
}

/// Plays cases that failed twice more, alone: in an emulated guest, cases side by side starve each other, and with them nginx's
/// timers and the order of things. One that passes both times has passed, and the run says so. A wrong verdict stays one, and
/// a run that needs this often has failed.
fn play_again(cases: &[Case], done: &mut [(Outcome, Seen)], setup: &Setup<'_>) {
    const PLAYS: usize = 2;
    let failed = |outcome: &Outcome| {
        !outcome.failures.is_empty() && outcome.score.false_proven == 0 && outcome.score.wrong == 0
    };
    let count = done.iter().filter(|(outcome, _)| failed(outcome)).count();
    if count > 1 + cases.len() / 50 {
        report::say(&format!("again: {count} failed cases are too many to be chance"));
        return;
    }
    for played in done.iter_mut().filter(|(outcome, _)| failed(outcome)) {
        let Some(case) = cases.iter().find(|case| case.name == played.0.name) else { continue };
        let mut last = None;
        for _ in 0..PLAYS {
            let (outcome, seen) = scene::run(case, setup);
            report::outcome(&outcome);
            last = outcome.passed().then_some((outcome, seen));
            if last.is_none() {
                break;
            }
        }
        if let Some(good) = last {
            report::say(&format!("again: {}: failed beside others, passed {PLAYS} times alone", case.name));
            *played = good;
        }
    }
}

/// What is wrong with incidents that came after their case was judged: no case waits long for what should not come.
fn came_late(watch: &Watch, done: &[(Outcome, Seen)]) -> Vec<String> {
    let mut found = Vec::new();
    let mut judged = 0;
    for (outcome, seen) in done {
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
