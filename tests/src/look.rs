//! Asking `why502 check` about a case's nginx.

use crate::case::Case;
use crate::sys;
use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;
use std::collections::BTreeSet;
use std::fs::File;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

/// What `why502 check` said.
#[derive(Debug, Default)]
pub(crate) struct Said {
    /// None if a signal ended it.
    pub(crate) exit: Option<i32>,
    /// Lines of stdout that are JSON, in their order.
    pub(crate) lines: Vec<Value>,
    /// Those that are not.
    pub(crate) odd: Vec<String>,
    pub(crate) stderr: String,
    pub(crate) time: Duration,
}

impl Said {
    pub(crate) fn of(exit: Option<i32>, stdout: &str, stderr: String) -> Self {
        let mut said = Self { exit, stderr, ..Self::default() };
        for line in stdout.lines() {
            match serde_json::from_str::<Value>(line) {
                Ok(value) if value.is_object() => said.lines.push(value),
                _ => said.odd.push(line.to_owned()),
            }
        }
        said
    }

    /// The objects of a type.
    pub(crate) fn of_type<'a>(&'a self, name: &'a str) -> impl Iterator<Item = &'a Value> {
        self.lines.iter().filter(move |line| line.get("type").and_then(Value::as_str) == Some(name))
    }

    pub(crate) fn findings(&self) -> Vec<Value> {
        self.of_type("finding").cloned().collect()
    }

    /// All of it, for the reader of a failure.
    pub(crate) fn text(&self) -> String {
        let mut text = format!("check: exit {:?} after {:.2} s\n", self.exit, self.time.as_secs_f64());
        for finding in self.of_type("finding") {
            text += &format!("finding: {finding:#}\n");
        }
        for checked in self.of_type("checked") {
            let of = |key| checked.get(key).map(Value::to_string).unwrap_or_default();
            text += &format!("checked: {}: {} (incomplete: {})\n", of("what"), of("seen"), of("incomplete"));
        }
        for (name, lines) in [("odd", self.odd.join("\n")), ("stderr", self.stderr.clone())] {
            if !lines.is_empty() {
                text += &format!("--- {name}\n{lines}\n");
            }
        }
        text
    }
}

/// Runs it from outside of the case's namespaces, as a user would.
pub(crate) fn check(program: &Path, masters: &[u32], dir: &Path, bound: Duration) -> Result<Said> {
    ensure!(!masters.is_empty(), "no nginx of the case runs");
    let (out, err) = (dir.join("check.out"), dir.join("check.err"));
    let mut command = Command::new(program);
    command.args(["check", "-o", "json"]);
    for pid in masters {
        command.args(["-p", &pid.to_string()]);
    }
    let start = Instant::now();
    let mut child = command
        .process_group(0)
        .stdin(Stdio::null())
        .stdout(File::create(&out).context("cannot create check.out")?)
        .stderr(File::create(&err).context("cannot create check.err")?)
        .spawn()
        .with_context(|| format!("cannot start {}", program.display()))?;
    let mut status = None;
    sys::poll_until(bound, || {
        status = child.try_wait().ok().flatten();
        status.is_some()
    });
    let time = start.elapsed();
    if status.is_none() {
        let _ = child.kill();
        let _ = child.wait();
    }
    let read = |path: &Path| String::from_utf8_lossy(&std::fs::read(path).unwrap_or_default()).into_owned();
    let Some(status) = status else {
        bail!("why502 check did not end in {} s: {}{}", bound.as_secs(), read(&out), read(&err))
    };
    Ok(Said { time, ..Said::of(status.code(), &read(&out), read(&err)) })
}

/// A typing error in a case must not become a finding that is never looked for.
pub(crate) fn names_exist(program: &Path, cases: &[Case]) -> Result<()> {
    let output = Command::new(program)
        .args(["check", "--list"])
        .stdin(Stdio::null())
        .output()
        .with_context(|| format!("cannot start {}", program.display()))?;
    let text = String::from_utf8_lossy(&output.stdout);
    let known: BTreeSet<&str> = text.lines().filter_map(|line| line.split_whitespace().next()).collect();
    ensure!(output.status.success() && !known.is_empty(), "why502 check --list names nothing");
    for case in cases {
        for name in case.check.iter().flat_map(|check| check.finds.iter().chain(&check.also)) {
            ensure!(
                known.contains(name.as_str()),
                "{}: check finds nothing named `{name}`: see why502 check --list",
                case.name
            );
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_sorted_by_what_they_are() {
        let said = Said::of(
            Some(0),
            "{\"type\":\"checked\",\"what\":\"a\"}\n{\"type\":\"finding\",\"name\":\"b\"}\noops\n7\n",
            String::new(),
        );
        assert_eq!(said.findings().len(), 1);
        assert_eq!(said.of_type("checked").count(), 1);
        assert_eq!(said.odd, ["oops", "7"]);
        assert!(said.text().contains("oops") && said.text().contains("\"b\""), "{}", said.text());
    }
}
