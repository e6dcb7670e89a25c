//! What `why502 audit` makes of a run: nginx's own logs against the incidents, one to one.

use crate::report;
use crate::watch::Program;
use anyhow::{Context, Result, bail};
use serde_json::Value;
use std::collections::BTreeMap;
use std::path::Path;
use std::process::{Command, Output};

/// Names of the files in the folder of the run.
pub(crate) const ERRORS: &str = "error.log";
pub(crate) const ACCESSES: &str = "chaos.log";
pub(crate) const INCIDENTS: &str = "incidents.jsonl";
/// The format of the access log that `why502 audit --access` reads.
pub(crate) const ACCESS: &str =
    "$msec|$pid|$request_uri|$upstream_addr|$upstream_status|$upstream_header_time|$request_time";
/// How many misses of each kind are shown.
const SHOWN: &str = "12";

/// What must be reached, percent.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Floors {
    pub(crate) precision: f64,
    pub(crate) recall: f64,
}

/// Has the run in `folder` audited, tells the result, and gives what is wrong with it. What fails it is a false proof, a method,
/// host or client that is not that of the request, a line that is not understood, and less than the floors. (An incident and a
/// line that are left and differ in their target can have nothing to do with each other: both count against the floors.)
pub(crate) fn judge(program: &Program, folder: &Path, level: &str, floors: Floors) -> Result<Vec<String>> {
    let shown = audit(program, folder, level, &["--list", SHOWN])?;
    String::from_utf8_lossy(&shown.stdout).lines().for_each(report::say);
    let output = audit(program, folder, level, &["-o", "json"])?;
    std::fs::write(folder.join("audit.jsonl"), &output.stdout)?;
    let last = output.stdout.trim_ascii_end().rsplit(|byte| *byte == b'\n').next().unwrap_or_default();
    let audit: Value = serde_json::from_slice(last).context("why502 audit: the last line is no JSON")?;
    let mut problems = problems(&audit, floors);
    if output.status.code() != Some(0) {
        problems.push(format!("why502 audit ended with {}: {}", output.status, text(&output.stderr)));
    }
    Ok(problems)
}

fn audit(program: &Program, folder: &Path, level: &str, more: &[&str]) -> Result<Output> {
    let mut command = Command::new(&program.path);
    // nginx runs with TZ=UTC0 and writes seconds of that.
    command.args(["audit", "--utc-offset=Z", "--level", level, "--access"]).arg(folder.join(ACCESSES));
    let output = command
        .args(more)
        .args([INCIDENTS, ERRORS].map(|name| folder.join(name)))
        .output()
        .with_context(|| format!("cannot start {}", program.path.display()))?;
    if output.stdout.is_empty() {
        bail!("why502 audit says nothing: {}", text(&output.stderr));
    }
    Ok(output)
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).trim().to_owned()
}

fn problems(audit: &Value, floors: Floors) -> Vec<String> {
    let number = |path: &str| audit.pointer(path).and_then(Value::as_u64);
    let mut problems = Vec::new();
    for (path, what) in [
        ("/false_proven", "incidents are proven to be what they are not"),
        ("/requests/other-method", "incidents name another method than the line of their request"),
        ("/requests/other-host", "incidents name another host"),
        ("/requests/other-client", "incidents name another client"),
        ("/lines/unknown", "lines of nginx are not known"),
        ("/lines/outside", "lines of nginx are outside of the run"),
    ] {
        match number(path) {
            Some(0) => {}
            Some(count) => problems.push(format!("{count} {what}")),
            None => problems.push(format!("why502 audit does not tell {path}")),
        }
    }
    let percent = |name: &str| audit.get(name).and_then(Value::as_f64).unwrap_or(0.0);
    let (precision, recall) = (percent("precision"), percent("recall"));
    if precision < floors.precision || recall < floors.recall {
        problems.push(format!(
            "precision {precision:.3} % and recall {recall:.3} %, at least {} and {} are expected",
            floors.precision, floors.recall
        ));
    }
    if number("/lines/counted").is_none_or(|lines| lines == 0) {
        problems.push("nginx has written nothing that could be compared".to_owned());
    }
    problems
}

/// Without why502: what nginx complains about, and how often.
pub(crate) fn tell(errors: &str) {
    let mut counts: BTreeMap<&str, u32> = BTreeMap::new();
    for line in errors.lines().filter(|line| line.contains(", upstream: \"")) {
        let message = line.split(", client: ").next().unwrap_or(line);
        let message =
            message.split_once(": *").and_then(|(_, rest)| Some(rest.split_once(' ')?.1)).unwrap_or(message);
        *counts.entry(message.split(": \"").next().unwrap_or(message)).or_default() += 1;
    }
    for (message, count) in counts {
        report::say(&format!("  {count:>6} {message}"));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    const FLOORS: Floors = Floors { precision: 95.0, recall: 92.0 };

    fn good() -> Value {
        json!({"precision": 99.0, "recall": 92.0, "false_proven": 0,
            "lines": {"counted": 7, "unknown": 0, "outside": 0},
            "requests": {"equal": 6, "other-target": 1, "other-method": 0, "other-host": 0, "other-client": 0}})
    }

    #[test]
    fn what_fails_a_run() {
        assert_eq!(problems(&good(), FLOORS), Vec::<String>::new());
        for (path, value, says) in [
            ("/precision", json!(94.999), "precision 94.999 %"),
            ("/recall", json!(91.0), "recall 91.000 %"),
            ("/false_proven", json!(1), "1 incidents are proven"),
            ("/requests/other-host", json!(2), "2 incidents name another host"),
            ("/lines/unknown", json!(3), "3 lines of nginx are not known"),
            ("/lines/outside", json!(3), "3 lines of nginx are outside"),
            ("/lines/counted", json!(0), "nothing that could be compared"),
            ("/false_proven", Value::Null, "does not tell /false_proven"),
        ] {
            let mut audit = good();
            *audit.pointer_mut(path).unwrap() = value;
            let problems = problems(&audit, FLOORS);
            assert!(problems.len() == 1 && problems[0].contains(says), "{path}: {problems:?}");
        }
        assert!(problems(&Value::Null, FLOORS).len() > 4);
    }
}
