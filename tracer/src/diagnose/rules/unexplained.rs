//! What no rule explains: all evidence, and no guess.

use crate::{
    correlate::{Case, GaveUp},
    diagnose::{Cause, Confidence, Verdict, words},
    event::Stage,
};

pub(crate) fn verdict(case: &Case) -> Verdict {
    let a = &case.attempt;
    let errno = a.errno();
    let how = case.gave_up();
    let target = words::target(a);
    let summary = match (a.stage, a.security, how) {
        (Stage::Connect, Some(ret), _) => {
            format!(
                "a security module refused the connect() to {target} ({})",
                words::errno(ret.saturating_neg())
            )
        }
        (Stage::Socket, ..) => format!("socket() failed ({})", words::errno(errno.unwrap_or(0))),
        (Stage::Bind, ..) => format!("bind({}) failed ({})", a.remote, words::errno(errno.unwrap_or(0))),
        (Stage::Untried, ..) => "nginx answered without trying a server".to_owned(),
        (Stage::SynSent, _, Some(GaveUp::WorkerEnded)) => {
            format!("the worker process ended while it was connecting to {target}")
        }
        (Stage::Connect | Stage::SynSent | Stage::Established, ..) => match errno {
            Some(errno) => format!("the connection to {target} failed ({})", words::errno(errno)),
            None => format!("the connection to {target} came to nothing"),
        },
    };
    let rivals = match (a.stage, errno) {
        (Stage::Connect, Some(libc::EPERM)) if a.security.is_none() => {
            Some("a cgroup BPF program, seccomp, or a netfilter rule at the output hook".to_owned())
        }
        (Stage::Connect, Some(libc::EACCES)) if a.security.is_none() && !case.reach.security => {
            Some("a security module (SELinux, AppArmor): its hook cannot be watched on this tier".to_owned())
        }
        _ => None,
    };
    let mut verdict = Verdict {
        cause: Cause::Unexplained,
        confidence: Confidence::Unexplained,
        summary,
        rival: rivals,
        evidence: Vec::new(),
        fix: Vec::new(),
    }
    .because_if("errno", errno.map(|e| format!("it ended with {} {}", words::errno(e), words::after(case))))
    .because_if("security", words::denials(case))
    .because_if("rst", a.reset.then(|| format!("a RST came {}", words::after(case))))
    .because_if("icmp", words::icmp(case))
    .because_if("drop", words::drop_text(case))
    .because_if("end", how.map(|h| words::gave_up(case, h)))
    .because_if("dnat", words::translation(case))
    .because_if(
        "accept-queue",
        a.overflow.map(|o| {
            format!("the upstream's accept queue was full ({} waiting, limit {})", o.queued, o.limit)
        }),
    );
    if let Some(talk) = a.talk.as_deref() {
        verdict = verdict
            .because_if("request", super::standing::request(talk))
            .because("response", super::standing::response(talk))
            .because_if("sent", super::bytes::began(case))
            .because_if("received", super::bytes::received(talk))
            .because_if("client", super::bytes::client(case));
    }
    if let Some(fact) = &case.facts.unix {
        verdict = verdict.because("path", super::unix::path(fact)).because("worker", fact.worker.clone());
    }
    if a.stage == Stage::SynSent {
        verdict = verdict.because("syn", format!("{} sent", words::syns(case.syns())));
    }
    if let Some(listeners) = &case.facts.listeners {
        for found in listeners.exact.iter().take(2) {
            verdict = verdict.because("listener", words::listening(found));
        }
    }
    if let Some(entry) = case.facts.route.as_ref().and_then(|r| r.entry.as_deref()) {
        verdict = verdict.because("route", format!("route: {entry}"));
    }
    verdict
}
