//! `cargo xtask test`: everything that has to hold, in stages; the last line counts the tests.
//!
//! A stage that fails hides only those that need it. Whatever cannot run here is counted as skipped, by name.

mod cargo;
mod counts;
mod guests;
mod live;
mod remarks;
mod results;
mod stages;
mod stream;

use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Result, bail};

use crate::lab::{self, SERIES, Series};
use crate::{binaries::Binaries, process, signals};
pub(crate) use counts::Counts;
use stages::{STAGES, Stage};

/// Arguments of `cargo xtask test`.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// Install nothing: fail with the list of what is missing
    #[arg(long)]
    no_install: bool,
    /// Only this stage and what it needs; a family by the beginning of its names (repeatable)
    #[arg(long, value_name = "NAME")]
    only: Vec<String>,
    /// Without this stage or family (repeatable)
    #[arg(long, value_name = "NAME")]
    skip: Vec<String>,
    /// Without guest kernels
    #[arg(long)]
    host_only: bool,
    /// Only guest kernels of this series, such as 6.12 (repeatable)
    #[arg(long, value_name = "SERIES")]
    kernel: Vec<String>,
    /// Smaller live runs: core cases, a tenth of the load
    #[arg(long, conflicts_with = "thorough")]
    quick: bool,
    /// Also what hangs on time, several times, with its rate, and every case in every guest; the results of one tree add up
    #[arg(long)]
    thorough: bool,
    /// Run nothing: tell what all thorough runs of this tree have found
    #[arg(long)]
    report: bool,
    /// Requests of the stage `chaos` (default: 5000, with `--thorough` 50000)
    #[arg(long, value_name = "REQUESTS")]
    chaos: Option<u64>,
    /// Name the stages and end
    #[arg(long)]
    list: bool,
}

/// What the stages share.
#[derive(Default)]
struct Session {
    no_install: bool,
    host_only: bool,
    quick: bool,
    thorough: bool,
    chaos: u64,
    kernels: Vec<&'static Series>,
    binaries: Binaries,
}

/// How a stage ended.
#[derive(Debug)]
struct Done {
    name: &'static str,
    counts: Counts,
    time: Duration,
    /// Why it failed or was skipped.
    note: String,
}

impl Done {
    fn is_good(&self) -> bool {
        self.counts.failed == 0
    }
}

/// Runs `cargo xtask test`.
pub(crate) fn main(args: &Args) -> Result<ExitCode> {
    if args.list {
        STAGES.iter().for_each(|stage| println!("{:<10} {}", stage.name, stage.about));
        return Ok(ExitCode::SUCCESS);
    }
    if args.report {
        return Ok(if results::report()? { ExitCode::SUCCESS } else { ExitCode::FAILURE });
    }
    let chosen = choose(args)?;
    let kernels = if args.kernel.is_empty() {
        SERIES.iter().collect()
    } else {
        args.kernel.iter().map(|name| lab::series(name)).collect::<Result<_>>()?
    };
    signals::catch()?;
    let mut session = Session {
        no_install: args.no_install,
        host_only: args.host_only,
        quick: args.quick,
        thorough: args.thorough,
        chaos: args.chaos.unwrap_or(if args.thorough { 50_000 } else { 5000 }),
        kernels,
        binaries: Binaries::default(),
    };
    let started = Instant::now();
    let mut done: Vec<Done> = Vec::new();
    for stage in STAGES.iter().filter(|stage| chosen.contains(&stage.name)) {
        println!("\n── {}: {}", stage.name, stage.about);
        let begun = Instant::now();
        let (counts, note) = run(stage, &mut session, &done);
        let time = begun.elapsed();
        if !stage.guest {
            results::count(stage.name, counts, Some(stream::log_file(stage.name)?));
        }
        let this = Done { name: stage.name, counts, time, note };
        println!("── {}", line(&this));
        done.push(this);
    }
    let code = finish(&done, started.elapsed());
    if args.thorough && !signals::interrupted() {
        results::keep()?;
        results::report()?;
    }
    Ok(code)
}

/// Runs one stage, unless it cannot.
fn run(stage: &Stage, session: &mut Session, done: &[Done]) -> (Counts, String) {
    if signals::interrupted() {
        return (Counts::one_skipped(), "interrupted".into());
    }
    let broken = done.iter().find(|done| stage.needs.contains(&done.name) && !done.is_good());
    if let Some(broken) = broken {
        return (Counts::one_skipped(), format!("{} failed", broken.name));
    }
    if stage.root && !process::is_root() {
        return (Counts::one_skipped(), "needs root".into());
    }
    match (stage.run)(session) {
        Ok(counts) => (counts, String::new()),
        Err(error) => {
            println!("{error:#}");
            let first = format!("{error:#}").lines().next().unwrap_or_default().to_owned();
            (Counts::one_failed(), first)
        }
    }
}

/// The names of the stages to run: what was asked for, and what that needs.
fn choose(args: &Args) -> Result<Vec<&'static str>> {
    let matches =
        |stage: &Stage, names: &[String]| names.iter().any(|name| stage.name.starts_with(name.as_str()));
    for name in args.only.iter().chain(&args.skip) {
        if !STAGES.iter().any(|stage| stage.name.starts_with(name.as_str())) {
            bail!("there is no stage {name}: `cargo xtask test --list` names them");
        }
    }
    let mut chosen: Vec<&'static str> = STAGES
        .iter()
        .filter(|stage| args.only.is_empty() || matches(stage, &args.only))
        .filter(|stage| !(matches(stage, &args.skip) || args.host_only && stage.guest))
        .map(|stage| stage.name)
        .collect();
    // Needs stand before what needs them, so one way back through the table finds them all.
    for stage in STAGES.iter().rev() {
        if chosen.contains(&stage.name) {
            let asked = |need: &&&'static str| !args.skip.iter().any(|name| need.starts_with(name.as_str()));
            let needs: Vec<&'static str> = stage.needs.iter().filter(asked).copied().collect();
            chosen.extend(needs);
        }
    }
    Ok(chosen)
}

fn line(done: &Done) -> String {
    let seconds = done.time.as_secs_f64();
    let word = match done.counts {
        Counts { failed: 1.., .. } => "FAILED",
        Counts { passed: 0, skipped: 1.., .. } => "skipped",
        Counts { .. } => "ok",
    };
    let note = if done.note.is_empty() { String::new() } else { format!("  ({})", done.note) };
    format!("{:<10} {word:<8} {seconds:>7.1} s  {}{note}", done.name, done.counts)
}

/// Prints the table and the last line.
fn finish(done: &[Done], time: Duration) -> ExitCode {
    println!("\n── all stages, {:.0} s", time.as_secs_f64());
    let mut total = Counts::default();
    for stage in done {
        println!("{}", line(stage));
        total.add(stage.counts);
    }
    for remark in remarks::take() {
        println!("{remark}");
    }
    println!("{total}");
    if total.failed == 0 && !signals::interrupted() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        args: Args,
    }

    fn chosen(line: &str) -> Vec<&'static str> {
        let args = Line::parse_from(["test"].into_iter().chain(line.split_whitespace())).args;
        let chosen = choose(&args).unwrap();
        STAGES.iter().map(|stage| stage.name).filter(|name| chosen.contains(name)).collect()
    }

    #[test]
    fn stages_bring_what_they_need() {
        assert_eq!(chosen("--only fmt"), ["setup", "fmt"]);
        assert_eq!(chosen("--only live"), ["setup", "build", "live"]);
        assert_eq!(chosen("--only live --skip build"), ["live"]);
        assert!(!chosen("--host-only").iter().any(|name| name.starts_with("guest")));
        assert_eq!(chosen("").len(), STAGES.len());
        let args = Line::parse_from(["test", "--only", "nonsense"]).args;
        assert!(choose(&args).unwrap_err().to_string().contains("--list"));
    }

    #[test]
    fn needs_stand_before_what_needs_them() {
        for (index, stage) in STAGES.iter().enumerate() {
            for need in stage.needs {
                assert!(STAGES[..index].iter().any(|other| other.name == *need), "{} {need}", stage.name);
            }
        }
    }

    #[test]
    fn a_table_line_tells_the_reason() {
        let done = Done {
            name: "live",
            counts: Counts::one_skipped(),
            time: Duration::ZERO,
            note: "needs root".into(),
        };
        assert!(line(&done).contains("skipped") && line(&done).ends_with("(needs root)"), "{}", line(&done));
    }
}
