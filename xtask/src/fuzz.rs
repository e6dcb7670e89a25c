//! `cargo xtask fuzz`: libFuzzer against the reader of nginx's configuration, for as long as one likes.
//!
//! It needs no nightly compiler: the coverage that libFuzzer follows is a pass of LLVM, and code without `unsafe`
//! needs no sanitizer.

use std::path::Path;
use std::process::{Command, ExitCode};

use anyhow::{Context, Result};

use crate::{binaries, process};

/// Arguments of `cargo xtask fuzz`.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// How long to look for failures
    #[arg(long, value_name = "N", default_value_t = 60)]
    seconds: u64,
    /// Play one input again: a file that an earlier run has left
    #[arg(long, value_name = "FILE", conflicts_with = "seconds")]
    input: Option<std::path::PathBuf>,
}

const FOLDER: &str = "tests/fuzz";
/// Inline counters, comparisons and program counters, as cargo-fuzz asks for them.
const COVERAGE: &str = "-Cpasses=sancov-module -Cllvm-args=-sanitizer-coverage-level=4 \
    -Cllvm-args=-sanitizer-coverage-inline-8bit-counters -Cllvm-args=-sanitizer-coverage-pc-table \
    -Cllvm-args=-sanitizer-coverage-trace-compares -Ccodegen-units=1 --cfg=fuzzing";

/// Runs `cargo xtask fuzz`.
///
/// # Errors
/// If the target does not build, or fails: the input is kept, and its path is the last thing printed.
pub(crate) fn main(args: &Args) -> Result<ExitCode> {
    let root = binaries::root();
    let (target, corpus) = (root.join("target/fuzz"), root.join("target/fuzz-corpus"));
    let program = build(&target)?;
    std::fs::create_dir_all(&corpus).with_context(|| format!("cannot create {}", corpus.display()))?;
    let mut fuzz = Command::new(&program);
    fuzz.args(["-timeout=10", "-rss_limit_mb=1024", "-print_final_stats=1"]);
    fuzz.arg(format!("-artifact_prefix={}/", target.display()));
    match &args.input {
        Some(input) => fuzz.arg(input),
        None => {
            fuzz.arg(format!("-max_total_time={}", args.seconds)).arg("-max_len=8192");
            fuzz.arg(format!("-dict={}", root.join(FOLDER).join("nginx.dict").display()));
            fuzz.arg(&corpus).arg(root.join(FOLDER).join("seeds"))
        }
    };
    process::visible(&mut fuzz)?;
    Ok(ExitCode::SUCCESS)
}

/// Builds the target; what runs while it is built (macros, build scripts) is not instrumented, because it is built
/// for the host and not for a named target.
fn build(target: &Path) -> Result<std::path::PathBuf> {
    let triple = host()?;
    let mut command = binaries::cargo(["build", "--release", "--target", &triple]);
    command.arg("--manifest-path").arg(Path::new(FOLDER).join("Cargo.toml")).arg("--target-dir").arg(target);
    command.env("RUSTFLAGS", COVERAGE).env_remove("CARGO_ENCODED_RUSTFLAGS");
    // Nothing is loaded into the kernel here.
    command.env("WHY502_BPF_OBJECT", "/dev/null");
    process::visible(&mut command)
        .context("cannot build the fuzz target (libFuzzer itself needs a C++ compiler)")?;
    Ok(target.join(&triple).join("release/config"))
}

/// The compiler's own target, such as `x86_64-unknown-linux-gnu`.
fn host() -> Result<String> {
    let rustc = std::env::var_os("RUSTC").unwrap_or_else(|| "rustc".into());
    let output = process::output(Command::new(rustc).arg("-vV"))?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let line = text.lines().find_map(|line| line.strip_prefix("host: "));
    line.map(str::to_owned).context("rustc -vV names no host")
}
