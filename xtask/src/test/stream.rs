//! Runs a program whose stdout is read as it comes: shown in part, kept whole in a log.

use std::fs::{self, File};
use std::io::{BufRead, BufReader, Write};
use std::path::PathBuf;
use std::process::{Command, ExitStatus, Stdio};
use std::time::Duration;

use anyhow::{Context, Result};

use super::remarks;
use crate::{binaries, process};

/// Where the whole output of stages is kept: beside what cargo builds.
pub(super) fn log_file(name: &str) -> Result<PathBuf> {
    let dir = binaries::root().join("target/test-logs");
    fs::create_dir_all(&dir).with_context(|| format!("cannot create {}", dir.display()))?;
    Ok(dir.join(format!("{name}.log")))
}

/// `command` under coreutils' timeout: SIGTERM after `limit`, SIGKILL half a minute later.
pub(super) fn limited(command: &Command, limit: Duration) -> Command {
    let mut outer = Command::new("timeout");
    // In the foreground: ^C of a terminal reaches the command too.
    outer.args(["--foreground", "--kill-after=30", &limit.as_secs().to_string()]);
    outer.arg(command.get_program()).args(command.get_args());
    if let Some(dir) = command.get_current_dir() {
        outer.current_dir(dir);
    }
    outer
}

/// Runs `command`; stderr goes to the caller's, each line of stdout to log `name`, to `on_line`, and to stdout
/// where that returns true.
pub(super) fn run(
    mut command: Command,
    name: &str,
    mut on_line: impl FnMut(&str) -> bool,
) -> Result<ExitStatus> {
    let path = log_file(name)?;
    let mut log = File::create(&path).with_context(|| format!("cannot create {}", path.display()))?;
    let mut child = command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .with_context(|| format!("cannot run {}", process::describe(&command)))?;
    if let Some(stdout) = child.stdout.take() {
        for line in BufReader::new(stdout).split(b'\n') {
            let line = line.context("cannot read a program's output")?;
            let line = String::from_utf8_lossy(&line);
            writeln!(log, "{line}").with_context(|| format!("cannot write {}", path.display()))?;
            remarks::note(name, &line);
            if on_line(&line) {
                println!("{line}");
            }
        }
    }
    let status = child.wait().with_context(|| format!("cannot wait for {}", process::describe(&command)))?;
    if status.code() == Some(124) {
        println!("stopped after its time limit");
    }
    Ok(status)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn limits_are_kept() {
        let mut sleep = Command::new("sleep");
        sleep.arg("60");
        let status = limited(&sleep, Duration::from_secs(1)).status().unwrap();
        assert_eq!(status.code(), Some(124));
    }
}
