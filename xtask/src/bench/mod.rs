//! `cargo xtask bench`: what why502 costs, in two layers.
//!
//! The first layer counts what the kernel counts and can be compared between runs; the second measures
//! requests a second, which on a shared machine shows nothing below some 5–10%.

mod accounting;
mod bpf;
mod paced;
mod report;
mod site;
mod system;
mod throughput;
mod watcher;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

use anyhow::{Context, Result, bail};
use clap::ValueEnum;

use crate::{process, signals};
use report::{Report, Targets};
use site::Site;
use watcher::Subject;

/// Starts of why502 whose median is reported.
const STARTS: usize = 10;

/// Options of `bench`.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Only this shape of load. Repeatable.
    #[arg(long = "shape", value_enum, value_name = "NAME")]
    shapes: Vec<Shape>,
    /// Pairs of windows of the throughput layer; 0 leaves the layer out.
    #[arg(long, value_name = "N", default_value_t = 10)]
    pairs: usize,
    /// Length of a window.
    #[arg(long, value_name = "SECONDS", default_value_t = 2, value_parser = clap::value_parser!(u32).range(1..=600))]
    seconds: u32,
    /// Windows of the accounting layer, whose median counts.
    #[arg(long, value_name = "N", default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..=100))]
    windows: u32,
    /// Where the results go as JSON.
    #[arg(long, value_name = "FILE", default_value = "target/bench.json")]
    json: PathBuf,
    /// Short windows, few of them, and four pairs: a look, not a result.
    #[arg(long)]
    quick: bool,
    /// Exit with 1 if a target of the accounting layer is missed.
    #[arg(long)]
    gate: bool,
    /// A further argument for `why502 trace`. Repeatable.
    #[arg(long, value_name = "ARG", allow_hyphen_values = true)]
    why502_arg: Vec<String>,
    /// Level of nginx's error log: with `error` it writes a line for each failure
    #[arg(long, value_name = "LEVEL", default_value = "crit", value_parser = ["crit", "error"])]
    error_log: String,
    /// Measure this why502 instead of building one.
    #[arg(long, value_name = "FILE")]
    program: Option<PathBuf>,
}

/// A shape of load.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Shape {
    /// Healthy, a new upstream connection for each request
    Connect,
    /// Healthy, upstream connections are kept
    Keepalive,
    /// Every connect is refused by a RST
    Refused,
    /// Every connect fails at once: no route
    Unreachable,
    /// Refused connects, 10,000 a second
    Paced,
    /// The same, with why502 stopped for two seconds
    Stopped,
}

impl Shape {
    /// Its name on the command line.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Shape::Connect => "connect",
            Shape::Keepalive => "keepalive",
            Shape::Refused => "refused",
            Shape::Unreachable => "unreachable",
            Shape::Paced => "paced",
            Shape::Stopped => "stopped",
        }
    }

    /// The front's location.
    pub(crate) fn path(self) -> &'static str {
        match self {
            Shape::Connect => "/connect",
            Shape::Keepalive => "/keepalive",
            Shape::Refused | Shape::Paced | Shape::Stopped => "/refused",
            Shape::Unreachable => "/unreachable",
        }
    }

    /// Whether the throughput layer has it: an unbounded load that nginx answers.
    fn has_throughput(self) -> bool {
        matches!(self, Shape::Connect | Shape::Keepalive | Shape::Refused)
    }
}

/// Runs the task.
pub(crate) fn main(args: &Args) -> Result<ExitCode> {
    if !process::is_root() {
        bail!(
            "the bench needs root: it makes a network namespace and loads BPF programs. sudo -E cargo xtask bench"
        );
    }
    for (program, of) in [("wrk", "wrk"), ("nginx", "nginx"), ("ip", "iproute2")] {
        if process::find_program(program).is_none() {
            bail!("no {program}: `cargo xtask setup` (Debian: apt-get install {of}) installs it");
        }
    }
    let built = match &args.program {
        Some(file) => file.clone(),
        None => build()?,
    };
    signals::catch()?;
    system::private_namespaces()?;
    let _stats = bpf::enable_stats()?;
    let copy = Copy::of(&built)?;
    let subject = Subject { file: copy.file.clone(), args: args.why502_arg.clone() };
    let report = measure(args, &subject)?;
    if let Some(dir) = args.json.parent().filter(|dir| !dir.as_os_str().is_empty()) {
        fs::create_dir_all(dir).with_context(|| format!("cannot make {}", dir.display()))?;
    }
    fs::write(&args.json, serde_json::to_vec_pretty(&report)?)
        .with_context(|| format!("cannot write {}", args.json.display()))?;
    print!("{report}");
    println!("\nwritten to {}", args.json.display());
    let missed = args.gate && report.missed() > 0;
    Ok(if missed { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}

fn measure(args: &Args, program: &Subject) -> Result<Report> {
    let site = Site::start(&args.error_log)?;
    let shapes: Vec<Shape> =
        if args.shapes.is_empty() { Shape::value_variants().to_vec() } else { args.shapes.clone() };
    let (windows, seconds, pairs) =
        if args.quick { (2, 1, args.pairs.min(4)) } else { (args.windows, args.seconds, args.pairs) };
    let mut report = Report::new(&program.file)?;
    eprintln!("bench: {STARTS} starts");
    report.starts = Some(accounting::starts(program, &site, STARTS)?);
    let hooks = hooks(program, &site)?;
    for &shape in &shapes {
        eprintln!("bench: accounting, {}", shape.name());
        match shape {
            Shape::Paced | Shape::Stopped => {
                report.paced.push(accounting::paced(program, &site, shape, shape == Shape::Stopped)?);
            }
            Shape::Connect | Shape::Keepalive | Shape::Refused | Shape::Unreachable => {
                report.shapes.push(accounting::steady(program, &site, shape, &hooks, (windows, seconds))?);
            }
        }
    }
    if pairs > 0 {
        for shape in shapes.iter().copied().filter(|s| s.has_throughput()) {
            eprintln!("bench: throughput, {}", shape.name());
            report.throughput.extend(throughput::measure(program, &site, shape, &hooks, pairs, seconds)?);
        }
    }
    report.checks = Targets::of(&report);
    report.finish();
    Ok(report)
}

/// Where why502's programs are attached.
fn hooks(program: &Subject, site: &Site) -> Result<Vec<bpf::Hook>> {
    let watcher = watcher::Watcher::start(program, site.master(), false)?;
    let hooks = watcher.programs()?.into_iter().filter_map(|p| p.hook).collect();
    watcher.finish()?;
    Ok(hooks)
}

/// Builds why502 as users do; the path of the program.
fn build() -> Result<PathBuf> {
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().context("xtask lies in no workspace")?;
    process::visible(Command::new(cargo).current_dir(root).args([
        "build",
        "--release",
        "--package",
        "tracer",
        "--bin",
        "why502",
    ]))?;
    let target = std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| root.join("target"), PathBuf::from);
    Ok(target.join("release/why502"))
}

/// A copy of the program under test: a build beside the bench must not change it in the middle.
struct Copy {
    file: PathBuf,
}

impl Copy {
    fn of(program: &Path) -> Result<Self> {
        let file = std::env::temp_dir().join(format!("why502-under-test-{}", std::process::id()));
        fs::copy(program, &file).with_context(|| format!("cannot copy {}", program.display()))?;
        Ok(Self { file })
    }
}

impl Drop for Copy {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.file);
    }
}

/// The middle value, the mean of the two middle ones; 0 of nothing. Sorts.
pub(crate) fn median(values: &mut [f64]) -> f64 {
    values.sort_by(f64::total_cmp);
    let half = values.len() / 2;
    match (values.get(half), values.len() % 2) {
        (None, _) => 0.0,
        (Some(middle), 1) => *middle,
        (Some(upper), _) => (values.get(half.wrapping_sub(1)).unwrap_or(upper) + upper) / 2.0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn medians() {
        assert_eq!(median(&mut []), 0.0);
        assert_eq!(median(&mut [3.0, 1.0, 2.0]), 2.0);
        assert_eq!(median(&mut [4.0, 1.0, 2.0, 3.0]), 2.5);
    }
}
