//! The fault lab on this machine's kernel, with whatever tier it allows.

use std::process::Command;
use std::time::Duration;

use anyhow::Result;

use super::counts::{self, Counts};
use super::{Session, results, stream};
use crate::binaries;

/// Limits far above what the runs take: they end what hangs.
const LIMIT: Duration = Duration::from_secs(600);

pub(super) fn cases(session: &mut Session) -> Result<Counts> {
    both(session, "live", &[])
}

/// The cases that do not hang on time, side by side; thoroughly, the others as well, several times and alone.
fn both(session: &Session, name: &str, args: &[&str]) -> Result<Counts> {
    let with = |timing: &[&str]| -> Result<Command> {
        let mut command = faultlab(session, timing)?;
        command.args(args).arg("--cases").arg(binaries::root().join("tests/data"));
        if session.quick {
            command.arg("--core");
        }
        Ok(command)
    };
    let mut counts = run(&with(&["--jobs", "4", "--timing", "leave"])?, name)?;
    if session.thorough {
        let mut timed = with(&["--jobs", "1", "--timing", "only", "--plays", "3"])?;
        let name = format!("{name}-timed");
        let recording = stream::log_file(&name)?.with_extension("w502");
        if !args.contains(&"--check") {
            timed.arg("--record").arg(&recording);
        }
        counts.add(run(&timed, &name)?);
        results::count(&name, Counts::default(), Some(recording));
    }
    Ok(counts)
}

/// What `why502 check` finds in the same cases before their first request.
pub(super) fn check(session: &mut Session) -> Result<Counts> {
    both(session, "check", &["--check", "all"])
}

pub(super) fn healthy(session: &mut Session) -> Result<Counts> {
    let requests = if session.quick { "10000" } else { "100000" };
    run(&faultlab(session, &["healthy", "--requests", requests])?, "healthy")
}

pub(super) fn leak(session: &mut Session) -> Result<Counts> {
    let connects = if session.quick { "100000" } else { "1000000" };
    run(&faultlab(session, &["leak", "--connects", connects])?, "leak")
}

pub(super) fn older(session: &mut Session) -> Result<Counts> {
    run(&faultlab(session, &["older"])?, "older")
}

pub(super) fn requests(session: &mut Session) -> Result<Counts> {
    run(&faultlab(session, &["requests", "--requests", asked_for(session), ALONE, ROOM, EACH])?, "requests")
}

/// Requests at full speed, from which no incident may name a wrong one. How often that is tried is a matter of time: thoroughly, more.
fn asked_for(session: &Session) -> &'static str {
    if session.thorough { "20000" } else { "3000" }
}

/// From the kernel and nginx's memory alone, and with nginx's log, which tells what TLS hides.
pub(super) fn chaos(session: &mut Session) -> Result<Counts> {
    let requests = if session.quick { session.chaos.min(2000) } else { session.chaos }.to_string();
    let chaos = ["chaos", "--requests", &requests, EACH];
    let mut counts = run(faultlab(session, &chaos)?.arg(ALONE), "chaos")?;
    counts.add(run(faultlab(session, &chaos)?.args([AUTO, "--quiet-log"]), "chaos-uprobes")?);
    Ok(counts)
}

/// A ring buffer that holds a whole storm, in KiB: on a machine with other work beside it why502 reads late, and loses nothing.
const ROOM: &str = "--why502-arg=--ring-size=65536";
/// Each failure is explained, however many there are in a second: what is looked at are their requests.
const EACH: &str = "--why502-arg=--one-by-one=4294967295";
/// nginx's log is heard: always, where it costs nothing, and never.
const ASKED: &str = "--why502-arg=--uprobes=on";
const AUTO: &str = "--why502-arg=--uprobes=auto";
const ALONE: &str = "--why502-arg=--uprobes=off";

/// With all uprobes the cases of which nginx's log can tell more; without any the core cases, and requests with its memory alone.
pub(super) fn uprobes(session: &mut Session) -> Result<Counts> {
    const TOLD: [&str; 8] = [
        "request-",
        "stood-tls-",
        "current-tls-",
        "tls-client",
        "resolver-nxdomain",
        "resolver-refused",
        "resolver-servfail",
        "resolver-silent",
    ];
    let args: Vec<&str> = [ASKED].into_iter().chain(TOLD.iter().flat_map(|name| ["--case", name])).collect();
    let mut counts = both(session, "uprobes", &args)?;
    let alone: &[&str] = if session.quick { &[ALONE] } else { &[ALONE, "--core"] };
    counts.add(both(session, "memory", alone)?);
    counts.add(run(
        &faultlab(session, &["requests", "--requests", asked_for(session), ASKED, ROOM, EACH])?,
        "uprobes-requests",
    )?);
    Ok(counts)
}

fn faultlab(session: &Session, args: &[&str]) -> Result<Command> {
    let mut command = Command::new(session.binaries.get("faultlab")?);
    command.args(args).arg("--why502").arg(session.binaries.get("why502")?);
    Ok(command)
}

/// Runs the lab; the last line that counts is the one that holds.
fn run(command: &Command, name: &str) -> Result<Counts> {
    let mut counts = Counts::default();
    let status = stream::run(stream::limited(command, LIMIT), name, |line| {
        if let Some(result) = counts::of_faultlab(line) {
            counts = result;
        }
        is_news(line)
    })?;
    Ok(counts.with_status(status.success()))
}

/// Whether a line of the lab tells more than that a case passed.
pub(super) fn is_news(line: &str) -> bool {
    !line.starts_with("pass ")
}
