//! The one `why502 trace` of a run: its start, its stream of incidents, its end.

use crate::hooks::Hooks;
use crate::sys;
use anyhow::{Context, Result, bail};
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};
use std::io::{BufRead, BufReader};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

/// The tier that lacks some hooks.
const TRACEPOINT: &str = "tracepoint";

/// More incidents than this are counted by cause and not kept (the leak run makes a million).
const KEPT: usize = 20_000;

/// What a start may take at least: the kernel verifies every program, and other work may be beside it.
const START: Duration = Duration::from_secs(60);

#[derive(Debug, Default)]
struct Stream {
    incidents: Vec<Value>,
    counts: BTreeMap<String, u64>,
    summary: Option<Value>,
    /// Lines of stdout that are no JSON object with a type.
    odd: Vec<String>,
    stderr: Vec<String>,
}

#[derive(Debug)]
pub(crate) struct Watch {
    child: Child,
    stream: Arc<Mutex<Stream>>,
    pub(crate) tier: String,
    /// The hooks of this tier; known of the tracepoint tier, which alone lacks some.
    pub(crate) hooks: Hooks,
    /// `--uprobes`, if it is given.
    uprobes: Option<String>,
}

/// How to start why502.
#[derive(Debug, Clone)]
pub(crate) struct Program {
    pub(crate) path: PathBuf,
    pub(crate) tier: String,
    pub(crate) extra: Vec<String>,
}

/// Why there is no run: the difference between "this kernel cannot" and "broken".
#[derive(Debug)]
pub(crate) enum Start {
    Running(Watch),
    /// Exit code 3: cannot attach.
    Refused(String),
}

/// The end of the run.
#[derive(Debug)]
pub(crate) struct End {
    pub(crate) summary: Option<Value>,
    pub(crate) counts: BTreeMap<String, u64>,
    pub(crate) problems: Vec<String>,
    pub(crate) stderr: String,
}

impl Watch {
    /// Whether nginx's log is asked.
    pub(crate) fn asks(&self) -> bool {
        self.uprobes.as_deref() != Some("off")
    }

    /// Starts why502 and waits for its line `why502: watching`.
    pub(crate) fn start(program: &Program, bound: Duration) -> Result<Start> {
        let mut command = Command::new(&program.path);
        command.args(["trace", "-o", "json", "--wait"]);
        if program.tier != "auto" {
            command.args(["--tier", &program.tier]);
        }
        command.args(&program.extra);
        own_group(&mut command);
        let bound = bound.max(START);
        let mut child = command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .with_context(|| format!("cannot start {}", program.path.display()))?;
        let stream = Arc::new(Mutex::new(Stream::default()));
        if let Some(out) = child.stdout.take() {
            follow(out, &stream, stdout_line);
        }
        if let Some(err) = child.stderr.take() {
            follow(err, &stream, |stream, line| stream.stderr.push(line));
        }
        // Beside the start, which keeps one processor busy with the kernel's verifier for many seconds in an emulated guest.
        let asked = (program.tier == TRACEPOINT).then(|| {
            let (path, tier) = (program.path.clone(), program.tier.clone());
            std::thread::spawn(move || Hooks::ask(&path, &tier))
        });
        let uprobes = program.extra.iter().find_map(|arg| arg.strip_prefix("--uprobes=")).map(str::to_owned);
        let mut watch = Self { child, stream, tier: program.tier.clone(), hooks: Hooks::default(), uprobes };
        let mut exit = None;
        let attached = sys::poll_until(bound, || {
            exit = watch.child.try_wait().ok().flatten();
            exit.is_some() || watch.banner().is_some()
        });
        let stderr = watch.stderr();
        if let Some(status) = exit {
            if status.code() == Some(3) {
                return Ok(Start::Refused(stderr));
            }
            bail!("why502 ended at its start: {status}\n{stderr}");
        }
        if !attached {
            bail!("why502 did not print `why502: watching` in {} s\n{stderr}", bound.as_secs());
        }
        if let Some(tier) = watch.banner().and_then(|line| tier_in(&line)) {
            if program.tier != "auto" && program.tier != tier {
                bail!("why502 was asked for the tier {} and took {tier}\n{stderr}", program.tier);
            }
            watch.tier = tier;
        }
        if watch.tier == TRACEPOINT {
            watch.hooks = match asked.map(JoinHandle::join) {
                Some(Ok(hooks)) => hooks?,
                Some(Err(_)) | None => Hooks::ask(&program.path, &watch.tier)?,
            };
        }
        Ok(Start::Running(watch))
    }

    fn banner(&self) -> Option<String> {
        self.lock().stderr.iter().find(|line| line.starts_with("why502: watching")).cloned()
    }

    fn lock(&self) -> MutexGuard<'_, Stream> {
        self.stream.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn stderr(&self) -> String {
        self.lock().stderr.join("\n")
    }

    /// Whether a line of stderr names this process: why502 has found a new master.
    pub(crate) fn names_process(&self, pid: u32) -> bool {
        let pid = pid.to_string();
        let word = |line: &String| line.split(|c: char| !c.is_ascii_digit()).any(|word| word == pid);
        self.lock().stderr.iter().any(word)
    }

    /// Incidents of the given worker processes, in the order of the stream.
    pub(crate) fn incidents(&self, pids: &BTreeSet<u32>) -> Vec<Value> {
        let stream = self.lock();
        let ours = |incident: &&Value| worker(incident).is_some_and(|pid| pids.contains(&pid));
        stream.incidents.iter().filter(ours).cloned().collect()
    }

    /// All incidents so far, also those not kept.
    pub(crate) fn count(&self) -> u64 {
        self.lock().counts.values().sum()
    }

    /// Ends why502 with SIGINT and reads its summary.
    pub(crate) fn finish(mut self, bound: Duration) -> End {
        let mut problems = Vec::new();
        if let Ok(Some(status)) = self.child.try_wait() {
            problems.push(format!("why502 ended before the run did: {status}"));
        }
        sys::kill(self.child.id(), libc::SIGINT);
        let mut exit = None;
        let end = std::time::Instant::now() + bound;
        while exit.is_none() && std::time::Instant::now() < end {
            exit = self.child.try_wait().ok().flatten();
            std::thread::sleep(Duration::from_millis(10));
        }
        match exit {
            None => problems.push("why502 did not end on SIGINT".to_owned()),
            Some(status) if !matches!(status.code(), Some(0)) => {
                problems.push(format!("why502 ended with {status}"));
            }
            Some(_) => {}
        }
        // The readers end with the pipe; the last line may still be on its way.
        sys::poll_until(Duration::from_secs(1), || self.lock().summary.is_some());
        let stream = std::mem::take(&mut *self.lock());
        problems.extend(stream.odd.iter().take(5).map(|line| format!("not a JSON line: {line}")));
        match &stream.summary {
            None => problems.push("no summary line".to_owned()),
            Some(summary) => match summary.get("events_lost").and_then(Value::as_u64) {
                Some(0) => {}
                lost => problems.push(format!("summary.events_lost must be 0, is {lost:?}")),
            },
        }
        End { summary: stream.summary, counts: stream.counts, problems, stderr: stream.stderr.join("\n") }
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        if let Ok(None) = self.child.try_wait() {
            let _ = self.child.kill();
            let _ = self.child.wait();
        }
    }
}

/// `worker.pid` of an incident.
pub(crate) fn worker(incident: &Value) -> Option<u32> {
    incident.pointer("/worker/pid")?.as_u64()?.try_into().ok()
}

fn own_group(command: &mut Command) {
    std::os::unix::process::CommandExt::process_group(command, 0);
}

fn tier_in(line: &str) -> Option<String> {
    let words = || line.split(|c: char| !c.is_ascii_alphanumeric());
    crate::expect::TIERS.iter().find(|tier| words().any(|word| word == **tier)).map(ToString::to_string)
}

fn follow(
    pipe: impl std::io::Read + Send + 'static,
    stream: &Arc<Mutex<Stream>>,
    take: fn(&mut Stream, String),
) {
    let stream = Arc::clone(stream);
    std::thread::spawn(move || {
        for line in BufReader::new(pipe).split(b'\n') {
            let Ok(line) = line else { return };
            let line = String::from_utf8_lossy(&line).into_owned();
            take(&mut stream.lock().unwrap_or_else(PoisonError::into_inner), line);
        }
    });
}

fn stdout_line(stream: &mut Stream, line: String) {
    let value: Option<Value> = serde_json::from_str(&line).ok();
    let kind = value.as_ref().and_then(|v| v.get("type")).and_then(Value::as_str).map(str::to_owned);
    match (value, kind.as_deref()) {
        (Some(value), Some("incident")) => {
            let cause = value.get("cause").and_then(Value::as_str).unwrap_or("").to_owned();
            // One may stand for many that were counted.
            let stands_for = value.pointer("/repeats/count").and_then(Value::as_u64).unwrap_or(1);
            *stream.counts.entry(cause).or_insert(0) += stands_for;
            if stream.incidents.len() < KEPT {
                stream.incidents.push(value);
            }
        }
        (Some(value), Some("summary")) => stream.summary = Some(value),
        (Some(_), Some(_)) => {}
        _ => stream.odd.push(line),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tiers_in_the_banner() {
        assert_eq!(tier_in("why502: watching 2 workers, tier full").as_deref(), Some("full"));
        assert_eq!(tier_in("why502: watching 0 workers (kprobe)").as_deref(), Some("kprobe"));
        assert_eq!(tier_in("why502: watching carefully"), None);
    }

    #[test]
    fn lines_of_the_stream() {
        let mut stream = Stream::default();
        for line in [
            r#"{"type":"incident","cause":"fd-limit","worker":{"pid":7}}"#,
            r#"{"type":"summary","events_lost":0}"#,
            r#"{"type":"later"}"#,
            "oops",
        ] {
            stdout_line(&mut stream, line.to_owned());
        }
        assert_eq!(worker(&stream.incidents[0]), Some(7));
        assert_eq!(stream.counts["fd-limit"], 1);
        assert!(stream.summary.is_some());
        assert_eq!(stream.odd, ["oops"]);
    }
}
