//! `connect-timeout-backlog-full`: the backend is on this machine, listens, and its accept queue was full when
//! the SYN came; the kernel drops it without a word.
//!
//! Look-alike: a rule that drops while the listener is fine.

use crate::{
    correlate::{Case, GaveUp},
    diagnose::{Cause, Verdict, words},
    event::DropClass,
};

pub(super) fn check(case: &Case) -> Option<Verdict> {
    let a = &case.attempt;
    let how = case.gave_up()?;
    if matches!(how, GaveUp::ClientGone | GaveUp::WorkerEnded) {
        return None;
    }
    let by_rule = a.drop.as_ref().is_some_and(|d| d.saw(DropClass::Netfilter));
    if by_rule {
        return None;
    }
    let now = case.facts.listeners.as_ref().and_then(|l| l.exact.iter().find(|l| l.full()));
    let then = case.facts.queue_at_retransmit.as_ref().filter(|l| l.full());
    let (proof, queued, limit) = match (a.overflow, then, now) {
        (Some(seen), _, _) => (how != GaveUp::Early, seen.queued, seen.limit),
        (None, Some(l), _) | (None, None, Some(l)) => (false, l.queued, l.limit),
        (None, None, None) => return None,
    };
    let owner = then
        .or(now)
        .and_then(|l| l.owner.clone())
        .or_else(|| case.facts.listeners.as_ref()?.exact.first()?.owner.clone());
    let elsewhere = a.overflow.is_some_and(|o| words::other_namespace(case, o.netns));
    let place = if elsewhere {
        case.facts.other_namespace.as_deref().map(|n| format!(" in {n}")).unwrap_or_default()
    } else {
        String::new()
    };
    Some(
        Verdict::graded(
            Cause::ConnectTimeoutBacklogFull,
            proof,
            format!("the accept queue of {}{place} is full ({queued} waiting, limit {limit}): the backend does not accept", a.remote),
            "packets lost elsewhere while the queue happened to be full",
        )
        .because(
            "accept-queue",
            match &owner {
                Some(owner) => format!("{owner}: {queued} connections wait to be accepted, limit {limit} (min of its backlog and net.core.somaxconn)"),
                None => format!("{queued} connections wait to be accepted, limit {limit} (min of the backlog and net.core.somaxconn)"),
            },
        )
        .because_if("syn", a.overflow.is_some().then(|| format!("{} sent; the kernel found the queue full when they came and dropped them silently", words::syns(case.syns()))))
        .because("end", words::gave_up(case, how))
        .because_if("dnat", words::translation(case))
        .fix("find out why the backend does not accept: all its workers busy, blocked or stopped")
        .fix("a larger backlog (and net.core.somaxconn) helps against bursts only; a longer connect timeout does not help"),
    )
}
