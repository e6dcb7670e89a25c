//! `cargo xtask fuzz`: libFuzzer against everything that reads what others wrote, for as long as one likes.
//!
//! It needs no nightly compiler: the coverage that libFuzzer follows is a pass of LLVM, and code without `unsafe`
//! needs no sanitizer.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use std::time::Instant;

use anyhow::{Context, Result, bail};

use crate::{binaries, process};

/// Arguments of `cargo xtask fuzz`.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// What reads the bytes, by its name in tests/fuzz; all, one after the other, if none is named
    #[arg(value_name = "TARGET", value_parser = target)]
    target: Option<&'static Target>,
    /// How long to look for failures, each target
    #[arg(long, value_name = "N", default_value_t = 60)]
    seconds: u64,
    /// Play one input again: a file that an earlier run has left
    #[arg(long, value_name = "FILE", conflicts_with = "seconds", requires = "target")]
    input: Option<PathBuf>,
}

/// A program of tests/fuzz, with its seeds in tests/fuzz/seeds and, where that helps, a dictionary.
#[derive(Debug)]
pub(crate) struct Target {
    /// Its name.
    pub(crate) name: &'static str,
    /// Longest input, bytes.
    most: u32,
    /// Inputs of the run that has an end.
    runs: u32,
}

/// All of them.
#[rustfmt::skip] // a table
pub(crate) const TARGETS: &[Target] = &[
    Target { name: "config", most: 8192, runs: 2_000 },
    Target { name: "event", most: 4096, runs: 10_000 },
    Target { name: "log_line", most: 4096, runs: 50_000 },
    Target { name: "selinux_policy", most: 8192, runs: 10_000 },
    Target { name: "btf", most: 4096, runs: 5_000 },
    Target { name: "protocols", most: 2048, runs: 40_000 },
    Target { name: "recording", most: 16_384, runs: 5_000 },
];

/// So many of them at most, unless the run is a thorough one.
const SHORT: u32 = 5_000;
/// The short run's inputs take less time than the compiler needs to make them fast.
const SHORT_BUILD: [&str; 4] =
    ["--config", "profile.release.opt-level=1", "--config", "profile.release.package.tracer.opt-level=1"];

const FOLDER: &str = "tests/fuzz";
/// Inline counters, comparisons and program counters, as cargo-fuzz asks for them.
const COVERAGE: &str = "-Cpasses=sancov-module -Cllvm-args=-sanitizer-coverage-level=4 \
    -Cllvm-args=-sanitizer-coverage-inline-8bit-counters -Cllvm-args=-sanitizer-coverage-pc-table \
    -Cllvm-args=-sanitizer-coverage-trace-compares --cfg=fuzzing";

fn target(name: &str) -> Result<&'static Target, String> {
    TARGETS.iter().find(|target| target.name == name).ok_or_else(|| {
        let names: Vec<&str> = TARGETS.iter().map(|target| target.name).collect();
        format!("there is no such target; there are {}", names.join(", "))
    })
}

/// Runs `cargo xtask fuzz`.
///
/// # Errors
/// If the targets do not build, or one fails: the input is kept, and its path is the last thing printed.
pub(crate) fn main(args: &Args) -> Result<ExitCode> {
    let programs = build(&[])?;
    let chosen = TARGETS.iter().filter(|target| args.target.is_none_or(|one| one.name == target.name));
    for target in chosen {
        eprintln!("fuzz: {}", target.name);
        let mut fuzz = command(&programs, target)?;
        match &args.input {
            Some(input) => fuzz.arg(input),
            None => {
                let corpus = root().join("target/fuzz-corpus").join(target.name);
                fs::create_dir_all(&corpus).with_context(|| format!("cannot create {}", corpus.display()))?;
                fuzz.arg(format!("-max_total_time={}", args.seconds)).arg(corpus).arg(seeds(target))
            }
        };
        process::visible(&mut fuzz)?;
    }
    Ok(ExitCode::SUCCESS)
}

/// The run of every target that has an end: from the seeds of the tree alone, and with the same numbers each time. Whether each
/// passed.
///
/// # Errors
/// If the targets do not build.
pub(crate) fn fixed(thorough: bool) -> Result<Vec<(&'static str, Result<()>)>> {
    let (most, options) = if thorough { (u32::MAX, &[][..]) } else { (SHORT, &SHORT_BUILD[..]) };
    let programs = build(options)?;
    let run = |target: &'static Target| (target.name, once(&programs, target, target.runs.min(most)));
    Ok(TARGETS.iter().map(run).collect())
}

fn once(programs: &Path, target: &Target, runs: u32) -> Result<()> {
    let started = Instant::now();
    let corpus = root().join("target/fuzz/short").join(target.name);
    if corpus.exists() {
        fs::remove_dir_all(&corpus).with_context(|| format!("cannot remove {}", corpus.display()))?;
    }
    fs::create_dir_all(&corpus).with_context(|| format!("cannot create {}", corpus.display()))?;
    let mut fuzz = command(programs, target)?;
    fuzz.args(["-seed=1", "-reload=0", &format!("-runs={runs}")]).arg(corpus).arg(seeds(target));
    process::output(&mut fuzz)?;
    println!("{:<15} {:>6} inputs, {:.1} s", target.name, runs, started.elapsed().as_secs_f64());
    Ok(())
}

fn root() -> PathBuf {
    binaries::root()
}

fn seeds(target: &Target) -> PathBuf {
    root().join(FOLDER).join("seeds").join(target.name)
}

/// The program with what holds for every run.
fn command(programs: &Path, target: &Target) -> Result<Command> {
    if fs::read_dir(seeds(target)).is_ok_and(|mut files| files.next().is_none()) {
        bail!("{} holds no seeds", seeds(target).display());
    }
    let mut fuzz = Command::new(programs.join(target.name));
    // By the clock on the wall, of which a crowded machine takes its share.
    fuzz.args(["-timeout=100", "-rss_limit_mb=1024", "-print_final_stats=1"]);
    fuzz.arg(format!("-max_len={}", target.most));
    fuzz.arg(format!("-artifact_prefix={}/{}-", root().join("target/fuzz").display(), target.name));
    let dictionary = root().join(FOLDER).join(format!("{}.dict", target.name));
    if dictionary.exists() {
        fuzz.arg(format!("-dict={}", dictionary.display()));
    }
    Ok(fuzz)
}

/// Builds the targets with more options of cargo's, and returns the folder they are in. What runs while they are built (macros,
/// build scripts) is not instrumented, because it is built for the host and not for a named target.
fn build(options: &[&str]) -> Result<PathBuf> {
    let (folder, triple) = (root().join("target/fuzz"), host()?);
    let mut command = binaries::cargo(["build", "--release", "--target", &triple]);
    command.arg("--manifest-path").arg(Path::new(FOLDER).join("Cargo.toml")).arg("--target-dir").arg(&folder);
    command.args(options);
    command.env("RUSTFLAGS", COVERAGE).env_remove("CARGO_ENCODED_RUSTFLAGS");
    // Nothing is loaded into the kernel here.
    command.env("WHY502_BPF_OBJECT", "/dev/null");
    process::visible(&mut command)
        .context("cannot build the fuzz targets (libFuzzer itself needs a C++ compiler)")?;
    Ok(folder.join(&triple).join("release"))
}

/// The compiler's own target, such as `x86_64-unknown-linux-gnu`.
fn host() -> Result<String> {
    let rustc = std::env::var_os("RUSTC").unwrap_or_else(|| "rustc".into());
    let output = process::output(Command::new(rustc).arg("-vV"))?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let line = text.lines().find_map(|line| line.strip_prefix("host: "));
    line.map(str::to_owned).context("rustc -vV names no host")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_names_every_target_and_each_has_seeds() {
        let manifest = fs::read_to_string(root().join(FOLDER).join("Cargo.toml")).unwrap();
        let built: Vec<&str> = manifest.lines().filter_map(|line| line.strip_prefix("path = \"")).collect();
        let named: Vec<String> = TARGETS.iter().map(|target| format!("{}.rs\"", target.name)).collect();
        assert_eq!(built, named);
        for target in TARGETS {
            let files: Vec<_> = fs::read_dir(seeds(target)).unwrap().flatten().collect();
            assert!(!files.is_empty(), "{}", target.name);
            for file in files {
                let length = file.metadata().unwrap().len();
                assert!(length <= u64::from(target.most), "{} is cut", file.path().display());
            }
        }
    }
}
