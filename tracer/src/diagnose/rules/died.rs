//! `upstream-died`: the process at the far end ended, and its end of the connection with it.
//!
//! Look-alikes: a process that closes the connection and lives; one that dies later of something else; a process that was
//! told to end and closes its connections first, as Python's do.

use super::standing;
use crate::{
    correlate::{
        Case,
        backend::told_to_end,
        ending::{self, End},
        talk,
    },
    diagnose::{Cause, Verdict, words},
    event::{Death, Sent},
};

/// Between the close at the far end and what arrives from it lies no more than this machine's own stack; clocks are one.
const SLACK_NS: u64 = 1_000_000;

/// The death that explains the end of the connection, if there is one.
pub(super) fn death(case: &Case) -> Option<&Death> {
    let death = case.facts.backend.death.as_ref()?;
    if !matches!(ending::end(case)?, End::Fin | End::Reset | End::Error(_)) {
        return None;
    }
    let told = ending::of(case)?.told_ns;
    let arrived = [ending::far_end_ns(case), told].into_iter().flatten().min().unwrap_or(case.attempt.end_ns);
    // What it closed after the far end had ended already ended nothing.
    let first = death.time_ns <= arrived + SLACK_NS;
    (first && (death.ending || case.facts.backend.gone == Some(true))).then_some(death)
}

pub(super) fn check(case: &Case) -> Option<Verdict> {
    let death = death(case)?;
    let talk = ending::of(case)?;
    // What speaks another protocol ends when it has said so, as a server does that forks for each connection.
    if death.signal.is_none() && death.sent.is_none() && talk::no_status_line(case).is_some() {
        return None;
    }
    let by_signal = death.sent.as_ref().filter(|_| told_to_end(death));
    let proof = death.ending || by_signal.is_some();
    let sent_first = talk.sent_ns.filter(|sent| *sent <= death.time_ns);
    let work_us = sent_first.map(|sent| (death.time_ns - sent) / 1000);
    let verdict = Verdict::graded(
        Cause::UpstreamDied,
        proof,
        format!("{}: {} {}", words::target(&case.attempt), who(death), how(death)),
        "it closed the connection for a reason of its own, and ended afterwards",
    )
    .because("exit", format!("{} {}", who(death), how(death)))
    .because("death", end_text(case, death))
    .because_if("signal", by_signal.map(|sent| signal_text(death, sent)))
    .because_if(
        "request",
        match (work_us, talk.sent_ns) {
            (Some(us), _) if talk.before => Some(format!(
                "it had been at work for {} or less when it ended: the request was sent before why502 watched",
                words::duration(us)
            )),
            (Some(us), _) => Some(format!(
                "it had been at work for {} when it ended: {} of request sent, {} of response read",
                words::duration(us),
                standing::bytes(talk.sent_bytes),
                standing::bytes(talk.got_bytes)
            )),
            (None, Some(_)) => Some(format!(
                "the connection was kept from an earlier request{}, and the process was gone when this one was sent",
                talk.idle_us.map(|us| format!(" and idle for {}", words::duration(us))).unwrap_or_default()
            )),
            (None, None) => None,
        },
    )
    .because_if("pool", limit(case, death))
    .because_if("listener", standing::listener(case));
    Some(advice(verdict, death, work_us))
}

/// php-fpm's own limit on requests, if its master ended the process.
fn limit(case: &Case, death: &Death) -> Option<String> {
    let by_master = death.sent.as_ref()?.sender.as_ref().is_some_and(|(pid, _)| *pid == death.parent);
    standing::pool(case, "request_terminate_timeout").filter(|_| by_master)
}

pub(super) fn who(death: &Death) -> String {
    format!("{} (pid {})", death.comm, death.pid)
}

fn sender(death: &Death, sent: &Sent) -> String {
    match &sent.sender {
        None => "the kernel".to_owned(),
        Some((pid, _)) if *pid == death.pid => "itself".to_owned(),
        Some((pid, name)) if *pid == death.parent => format!("its parent {name} (pid {pid})"),
        Some((1, name)) => format!("{name} (pid 1), which manages services"),
        Some((pid, name)) => format!("{name} (pid {pid})"),
    }
}

/// The signal that ended it, with its sender if that is known.
fn ended_by(death: &Death) -> Option<(u8, Option<&Sent>)> {
    let signal = death.signal?;
    Some((signal, death.sent.as_ref().filter(|sent| sent.signal == signal)))
}

fn how(death: &Death) -> String {
    if death.oom {
        return "was killed by the OOM killer".to_owned();
    }
    let core = if death.core { ", and left a core dump" } else { "" };
    match (ended_by(death), &death.sent) {
        (Some((signal, Some(sent))), _) if !is_crash(death) => {
            format!("was killed with {} by {}{core}", name(signal), sender(death, sent))
        }
        (Some((signal, _)), _) if is_crash(death) => format!("crashed: {}{core}", name(signal)),
        (Some((signal, _)), _) => format!("was killed with {}{core}", name(signal)),
        (None, Some(sent)) => {
            format!("ended {} after {} from {}", status(death), name(sent.signal), sender(death, sent))
        }
        (None, None) => format!("ended {}", status(death)),
    }
}

fn status(death: &Death) -> String {
    match death.status {
        Some(status) => format!("with exit status {status}"),
        None => "right after it had closed the connection".to_owned(),
    }
}

/// The process did it to itself: a fault, or abort().
fn is_crash(death: &Death) -> bool {
    let faults = [libc::SIGSEGV, libc::SIGBUS, libc::SIGILL, libc::SIGFPE, libc::SIGSYS, libc::SIGABRT];
    death.signal.is_some_and(|signal| faults.contains(&i32::from(signal)))
        && death
            .sent
            .as_ref()
            .filter(|sent| Some(sent.signal) == death.signal)
            .is_none_or(|sent| sent.sender.as_ref().is_none_or(|(pid, _)| *pid == death.pid))
}

fn end_text(case: &Case, death: &Death) -> String {
    let talk = ending::of(case);
    let fin = talk.and_then(|talk| talk.fin_ns);
    let reset = case.attempt.reset.then_some(case.attempt.reset_ns).filter(|ns| *ns != 0);
    let what = if death.ending { "the kernel closed what it left open" } else { "it closed the connection" };
    let after = |ns: u64| words::duration(ns.saturating_sub(death.time_ns) / 1000);
    match (fin, reset) {
        _ if case.attempt.unix.is_some() => what.to_owned(),
        (Some(fin), _) => format!("{what}, and its FIN came {} later", after(fin)),
        (None, Some(reset)) => format!("{what}, and its RST came {} later", after(reset)),
        (None, None) => what.to_owned(),
    }
}

fn signal_text(death: &Death, sent: &Sent) -> String {
    format!(
        "{} came from {}, {} before the connection was closed",
        name(sent.signal),
        sender(death, sent),
        words::duration(death.time_ns.saturating_sub(sent.time_ns) / 1000)
    )
}

/// Name of a signal (signal(7), x86).
fn name(signal: u8) -> String {
    let name = match i32::from(signal) {
        libc::SIGHUP => "SIGHUP",
        libc::SIGINT => "SIGINT",
        libc::SIGQUIT => "SIGQUIT",
        libc::SIGILL => "SIGILL",
        libc::SIGTRAP => "SIGTRAP",
        libc::SIGABRT => "SIGABRT",
        libc::SIGBUS => "SIGBUS",
        libc::SIGFPE => "SIGFPE",
        libc::SIGKILL => "SIGKILL",
        libc::SIGUSR1 => "SIGUSR1",
        libc::SIGSEGV => "SIGSEGV",
        libc::SIGUSR2 => "SIGUSR2",
        libc::SIGPIPE => "SIGPIPE",
        libc::SIGALRM => "SIGALRM",
        libc::SIGTERM => "SIGTERM",
        libc::SIGXCPU => "SIGXCPU",
        libc::SIGVTALRM => "SIGVTALRM",
        libc::SIGPROF => "SIGPROF",
        libc::SIGSYS => "SIGSYS",
        _ => return format!("signal {signal}"),
    };
    format!("{name} ({signal})")
}

/// Its master has ended it when a request had taken that long.
pub(super) fn is_time_limit(death: &Death, work_us: u64) -> bool {
    /// No worker time-out is shorter.
    const LONG_US: u64 = 900_000;
    let sender = death.sent.as_ref().and_then(|sent| sent.sender.as_ref());
    sender.is_some_and(|(pid, _)| *pid == death.parent) && work_us >= LONG_US
}

/// Advice for that; `how`: what its master did to it.
pub(super) fn limited(verdict: Verdict, death: &Death, how: &str) -> Verdict {
    let is = |name: &str| death.comm.starts_with(name);
    let directive = if is("gunicorn") {
        "gunicorn's --timeout"
    } else if is("php-fpm") {
        "php-fpm's request_terminate_timeout"
    } else if is("uwsgi") {
        "uwsgi's harakiri"
    } else if death.sent.as_ref().is_some_and(|sent| i32::from(sent.signal) == libc::SIGABRT) {
        "the server's worker time-out (gunicorn's is --timeout, 30 s unless set)"
    } else {
        "the server's worker time-out"
    };
    verdict
        .fix(format!("its master {how} in the middle of the request: {directive} is shorter than this request takes; make the request faster, or raise that"))
        .fix("proxy_read_timeout is not what ran out: raising it does not help")
}

/// What a process was told as it served a request: `python3 (pid 7) was sent SIGABRT (6) by its parent python3 (pid 5)`.
pub(super) fn told(death: &Death, sent: &Sent) -> String {
    format!("{} was sent {} by {}", who(death), name(sent.signal), sender(death, sent))
}

fn advice(verdict: Verdict, death: &Death, work_us: Option<u64>) -> Verdict {
    if death.oom {
        return verdict
            .fix_with(
                "give it more memory (its cgroup's limit, or the machine's), or fewer workers; see which process grew",
                "journalctl -k --grep 'oom|Out of memory'",
            )
            .fix("a longer proxy_read_timeout does not help");
    }
    if is_crash(death) {
        return verdict
            .fix_with("the program has a bug: its core dump and its log tell where", "coredumpctl info")
            .fix("no directive of nginx helps; proxy_next_upstream hides it for requests that may be sent twice");
    }
    if work_us.is_some_and(|us| is_time_limit(death, us)) {
        return limited(verdict, death, "killed it");
    }
    match &death.sent {
        Some(sent) if sent.sender.as_ref().is_some_and(|(pid, _)| *pid != death.pid) => verdict
            .fix("see who stops the backend while it serves requests: a restart, a deployment, a limit of its supervisor")
            .fix("let it end gracefully: stop listening, finish what was begun, then exit"),
        Some(_) | None => {
            verdict.fix(format!("see the log of {} for why it ended", death.comm))
        }
    }
}
