//! A running why502 of the demo.

use std::fs::{self, File};
use std::io::{self, BufRead, BufReader, Read};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use serde_json::Value;

use super::scene::own;
use super::sys;
use crate::signals;

/// One why502; dropping it ends it.
pub(super) struct Watcher {
    child: Child,
    stderr: PathBuf,
    /// How much of its stderr has been taken.
    taken: usize,
}

impl Watcher {
    /// Starts `command` with stdout to `stdout` and waits until it watches.
    pub(super) fn start(
        mut command: Command,
        stdout: Stdio,
        stderr: PathBuf,
        bound: Duration,
    ) -> Result<Watcher> {
        let log = File::create(&stderr).with_context(|| format!("cannot create {}", stderr.display()))?;
        let child = own(&mut command)
            .stdin(Stdio::null())
            .stdout(stdout)
            .stderr(log)
            .spawn()
            .context("cannot start why502")?;
        let mut watcher = Watcher { child, stderr, taken: 0 };
        let mut ended = false;
        let watching = signals::poll_until(bound, || {
            ended = !matches!(watcher.child.try_wait(), Ok(None));
            ended || watcher.banner().is_some()
        });
        signals::go_on()?;
        if ended || !watching {
            let what = if ended { "why502 ended at its start" } else { "why502 did not say that it watches" };
            bail!("{what}:\n{}(`why502 doctor` tells what this kernel allows)", watcher.take_stderr());
        }
        Ok(watcher)
    }

    /// The tier that it has chosen.
    pub(super) fn tier(&self) -> String {
        self.banner().and_then(|line| tier_in(&line)).unwrap_or_default()
    }

    /// What it has written to stderr since this was last asked.
    pub(super) fn take_stderr(&mut self) -> String {
        let text = fs::read_to_string(&self.stderr).unwrap_or_default();
        let new = text.get(self.taken..).unwrap_or_default().to_owned();
        self.taken = text.len();
        new
    }

    /// Ends it as ^C does.
    pub(super) fn finish(&mut self, bound: Duration) -> Result<()> {
        match signals::stop(&mut self.child, libc::SIGINT, bound) {
            Some(status) if status.success() => Ok(()),
            Some(status) => bail!("why502 ended with {status}:\n{}", self.take_stderr()),
            None => bail!("why502 did not end on SIGINT in {} s", bound.as_secs()),
        }
    }

    fn banner(&self) -> Option<String> {
        let text = fs::read_to_string(&self.stderr).ok()?;
        text.lines().find(|line| line.starts_with("why502: watching")).map(str::to_owned)
    }
}

impl Drop for Watcher {
    fn drop(&mut self) {
        signals::stop(&mut self.child, libc::SIGTERM, Duration::from_secs(2));
    }
}

/// The tier in the line that begins `why502: watching`.
fn tier_in(line: &str) -> Option<String> {
    let (_, rest) = line.split_once("tier ")?;
    Some(rest.chars().take_while(char::is_ascii_alphanumeric).collect())
}

/// The text that a why502 writes for people, passed on when it is wanted.
pub(super) struct Text {
    read: Arc<Mutex<String>>,
    reader: JoinHandle<()>,
}

impl Text {
    /// Its other side: for why502's stdout, a terminal if this program's stdout is one.
    pub(super) fn new() -> Result<(Text, Stdio)> {
        let (ours, theirs): (Box<dyn Read + Send>, Stdio) = match sys::terminal() {
            Some((ours, theirs)) => (Box::new(ours), theirs.into()),
            None => {
                let (ours, theirs) = io::pipe().context("cannot make a pipe")?;
                (Box::new(ours), theirs.into())
            }
        };
        let read = Arc::new(Mutex::new(String::new()));
        let shared = Arc::clone(&read);
        let reader = thread::spawn(move || {
            for line in BufReader::new(ours).split(b'\n').map_while(Result::ok) {
                let line = String::from_utf8_lossy(&line);
                let mut read = shared.lock().unwrap_or_else(PoisonError::into_inner);
                // A terminal returns the carriage too.
                read.push_str(line.trim_end_matches('\r'));
                read.push('\n');
            }
        });
        Ok((Text { read, reader }, theirs))
    }

    /// Waits for a whole verdict, which ends with an empty line, and takes all there is.
    pub(super) fn take(&self, bound: Duration) -> String {
        let lock = || self.read.lock().unwrap_or_else(PoisonError::into_inner);
        signals::poll_until(bound, || lock().ends_with("\n\n"));
        std::mem::take(&mut *lock())
    }

    /// The rest, once why502 has ended.
    pub(super) fn rest(self) -> String {
        signals::poll_until(Duration::from_secs(2), || self.reader.is_finished());
        self.take(Duration::ZERO)
    }
}

/// Lines of a JSON stream whose `type` is `kind`; an incomplete last line is not there yet.
pub(super) fn of_type(stream: &str, kind: &str) -> Vec<Value> {
    let complete = stream.rsplit_once('\n').map_or("", |(lines, _)| lines);
    let values = complete.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
    values.filter(|value| value.get("type").and_then(Value::as_str) == Some(kind)).collect()
}

/// The incidents of a JSON stream that are about this upstream address.
pub(super) fn about<'a>(incidents: &'a [Value], address: &str) -> Vec<&'a Value> {
    let is =
        |incident: &&Value| incident.pointer("/upstream/address").and_then(Value::as_str) == Some(address);
    incidents.iter().filter(is).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tiers() {
        let line = "why502: watching 1 worker of 1 nginx master (tier full); no more";
        assert_eq!(tier_in(line).as_deref(), Some("full"));
        assert_eq!(tier_in("why502: watching"), None);
    }

    #[test]
    fn incidents_by_address() {
        let stream = "{\"type\":\"incident\",\"upstream\":{\"address\":\"127.0.0.1:1\"}}\n\
                      {\"type\":\"summary\",\"events_lost\":0}\n{\"type\":\"incident\"";
        let incidents = of_type(stream, "incident");
        assert_eq!(about(&incidents, "127.0.0.1:1").len(), 1);
        assert!(about(&incidents, "127.0.0.1:2").is_empty());
        assert_eq!(of_type(stream, "summary").len(), 1);
    }
}
