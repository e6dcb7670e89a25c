//! Real connections from a worker's place: a helper process makes them (`child.rs`), this side bounds and reads it.

mod child;
mod question;
mod socket;
mod tls;
mod wire;

use std::{
    io::{self, BufRead as _, BufReader, Read as _, Write as _},
    path::Path,
    process::{Child, Command, Stdio},
    sync::mpsc,
    thread,
    time::{Duration, Instant},
};

pub use child::{WORD, child};
pub use question::kind;
pub use wire::{Answer, Ask, Call, Outcome, Plan, Question, TlsAnswer, TlsAsk, TlsOutcome, Where};

use wire::Said;

/// How much longer than the plan's own time the helper is waited for.
const GRACE: Duration = Duration::from_secs(2);
/// A line is no longer than this, bytes: a certificate chain in hexadecimal and what goes with it.
const MOST_LINE: u64 = (wire::MOST_CHAIN as u64) * 2 + 4096;

/// What came of a plan.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Run {
    /// By the number of the connection.
    pub answers: Vec<Answer>,
    /// Sockets that were open at once at most; None if the helper did not come to its end.
    pub most_open: Option<usize>,
    /// It could not take the worker's place: at what, and the errno.
    pub stuck: Option<(String, i32)>,
}

/// Ends the helper whatever happens.
struct Ended(Child);

impl Drop for Ended {
    fn drop(&mut self) {
        // It has ended by itself as a rule.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Runs a plan. `exe` is this program; `told` hears how many connections are done.
///
/// # Errors
/// The helper cannot be started.
pub fn run(exe: &Path, plan: &Plan, mut told: impl FnMut(usize)) -> io::Result<Run> {
    let mut child = Command::new(exe)
        .arg(WORD)
        .env_clear()
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()?;
    let (input, output) = (child.stdin.take(), child.stdout.take());
    let _ended = Ended(child);
    // It reads all before it says anything, so neither waits for the other. One that ends early says so by its silence.
    if let Some(mut input) = input {
        let _ = input.write_all(plan.write().as_bytes());
    }
    let mut run = Run { answers: vec![Answer::NONE; plan.asks.len()], most_open: None, stuck: None };
    let Some(output) = output else { return Ok(run) };
    let (send, receive) = mpsc::sync_channel(64);
    thread::Builder::new().name("why502-probe".into()).spawn(move || {
        let mut reader = BufReader::new(output);
        let mut line = String::new();
        // A reader that has gone, an odd byte, the end: all end it.
        while reader.by_ref().take(MOST_LINE).read_line(&mut line).is_ok_and(|count| count > 0) {
            let Some(said) = Said::read(&line) else { return };
            if send.send(said).is_err() {
                return;
            }
            line.clear();
        }
    })?;
    let end = Instant::now() + plan.total + GRACE;
    let mut done = 0;
    while let Ok(said) = receive.recv_timeout(end.saturating_duration_since(Instant::now())) {
        match said {
            Said::Answer(number, answer) => {
                if let Some(place) = run.answers.get_mut(number) {
                    *place = *answer;
                }
                done += 1;
                told(done);
            }
            Said::Stuck(at, errno) => run.stuck = Some((at, errno)),
            Said::End(most) => run.most_open = Some(most),
        }
    }
    Ok(run)
}
