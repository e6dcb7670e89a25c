//! Stages that are cargo's work.

use std::fs;
use std::process::Command;

use anyhow::{Context, Result};

use super::counts::{self, Counts};
use super::{Session, stream};
use crate::{binaries, fuzz, process};

/// Where tests that cannot run note their names: `why502_skip::FILE`.
const SKIPS: &str = "WHY502_SKIPS";
/// Every package of the host; the BPF object has a target of its own.
const HOST: [&str; 3] = ["--workspace", "--exclude", "tracer-ebpf"];

pub(super) fn fmt(_: &mut Session) -> Result<Counts> {
    process::visible(&mut binaries::cargo(["fmt", "--all", "--check"]))?;
    Ok(Counts::one_passed())
}

pub(super) fn clippy(_: &mut Session) -> Result<Counts> {
    let mut host = binaries::cargo(["clippy", "--quiet"]);
    host.args(HOST).arg("--all-targets");
    let mut contract = binaries::cargo(["clippy", "--quiet", "--package", "tracer-ebpf", "--lib"]);
    contract.args(["--features", "user"]);
    let mut counts = Counts::default();
    for mut command in [host, contract] {
        command.args(["--", "-D", "warnings"]);
        counts.add(check(&mut command));
    }
    Ok(counts)
}

/// With cargo's profile for tests: it checks overflows, and needs less time than linking optimised tests.
pub(super) fn unit(_: &mut Session) -> Result<Counts> {
    let skips = stream::log_file("unit-skipped")?;
    if skips.exists() {
        fs::remove_file(&skips).with_context(|| format!("cannot remove {}", skips.display()))?;
    }
    let mut command = binaries::cargo(["test", "--quiet"]);
    command.args(HOST).args(["--no-fail-fast", "--", "--format", "pretty"]).env(SKIPS, &skips);
    let mut counts = Counts::default();
    let status = stream::run(command, "unit", |line| {
        if let Some(result) = counts::of_cargo(line) {
            counts.add(result);
        }
        is_news(line)
    })?;
    // A test that cannot run returns, and cargo takes it for passed; it has noted its name (tests/skip).
    let noted = fs::read_to_string(&skips).unwrap_or_default();
    let skipped = counts::skipped(&noted);
    skipped.iter().for_each(|(test, why)| println!("skip {test}: {why}"));
    Ok(counts.without(skipped.len()).with_status(status.success()))
}

/// Every fuzz target from its seeds, the same inputs each time.
pub(super) fn fuzz(session: &mut Session) -> Result<Counts> {
    let mut counts = Counts::default();
    for (name, result) in fuzz::fixed(session.thorough)? {
        match result {
            Ok(()) => counts.add(Counts::one_passed()),
            Err(error) => {
                println!("failed: {name}: {error:#}");
                counts.add(Counts::one_failed());
            }
        }
    }
    Ok(counts)
}

pub(super) fn build(session: &mut Session) -> Result<Counts> {
    session.binaries = binaries::build(&["--package", "tracer", "--package", "why502-tests"])?;
    session.binaries.get("why502")?;
    session.binaries.get("faultlab")?;
    Ok(Counts::one_passed())
}

fn check(command: &mut Command) -> Counts {
    match process::visible(command) {
        Ok(()) => Counts::one_passed(),
        Err(error) => {
            println!("{error:#}");
            Counts::one_failed()
        }
    }
}

/// What is worth reading of a test program's output: everything but passing tests and empty ones.
fn is_news(line: &str) -> bool {
    let passing =
        line.starts_with("test ") && (line.ends_with(" ... ok") || line.contains("result: ok. 0 passed"));
    !(passing || line.is_empty() || line.starts_with("running "))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn skipped_tests_are_noted_where_they_are_counted() {
        assert_eq!(SKIPS, why502_skip::FILE);
    }

    #[test]
    fn failing_tests_are_news() {
        for news in
            ["test a::b ... FAILED", "test c ... ignored, needs root", "thread 'a' panicked at b.rs:1:2"]
        {
            assert!(is_news(news), "{news}");
        }
        for old in
            ["test a::b ... ok", "", "running 3 tests", "test result: ok. 0 passed; 0 failed; 0 ignored"]
        {
            assert!(!is_news(old), "{old}");
        }
    }
}
