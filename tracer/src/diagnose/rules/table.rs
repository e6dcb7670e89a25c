//! `connect-timeout-conntrack-full`: the connection tracking table has no room, so new flows are dropped.
//!
//! Look-alike: a firewall rule that drops; the kernel's reason is the same (NETFILTER_DROP). What tells them
//! apart: the victim of a full table has no conntrack entry, and the table's own drop counter rose.

use crate::{
    correlate::{Case, ConntrackFact, GaveUp},
    diagnose::{Cause, Verdict, words},
    event::DropClass,
};

pub(super) fn check(case: &Case) -> Option<Verdict> {
    let a = &case.attempt;
    let how = case.gave_up()?;
    if matches!(how, GaveUp::ClientGone | GaveUp::WorkerEnded | GaveUp::Early) {
        return None;
    }
    let table = case.facts.conntrack?;
    if !table.full() || table.drops == 0 {
        return None;
    }
    if a.drop.is_none() && a.overflow.is_none() && !case.reach.drops {
        return Some(unseen(case, how, table));
    }
    let drop = a.drop.as_ref().filter(|d| d.saw(DropClass::Netfilter) && !d.conntrack)?;
    // A raw-table rule drops before tracking as well; its drops do not count as the table's.
    Some(
        Verdict::graded(
            Cause::ConnectTimeoutConntrackFull,
            table.drops >= u64::from(drop.count)
                && drop.count >= case.syns()
                && case.facts.drop_engine.is_none()
                && !words::other_namespace(case, drop.netns),
            format!(
                "the connection tracking table is full ({} of {}): new connections are dropped",
                table.count, table.max
            ),
            "a firewall rule ahead of connection tracking that drops the SYN",
        )
        .because(
            "conntrack",
            format!(
                "{} entries, limit {}, {} packets dropped for want of room since why502 watches",
                table.count, table.max, table.drops
            ),
        )
        .because_if("drop", words::drop_text(case))
        .because("no-entry", "the dropped SYN had no conntrack entry")
        .because("end", words::gave_up(case, how))
        .advise(table),
    )
}

/// Silence beside a full table, where drops cannot be seen.
fn unseen(case: &Case, how: GaveUp, table: ConntrackFact) -> Verdict {
    Verdict::likely(
        Cause::ConnectTimeoutConntrackFull,
        format!(
            "the connection tracking table is full ({} of {}) and drops new connections; {} sent to {} got no answer",
            table.count,
            table.max,
            words::syns(case.syns()),
            case.attempt.remote
        ),
        "a firewall rule that drops, a full accept queue, or an upstream that does not answer: the drop itself was not seen",
    )
    .because("conntrack", format!("{} entries, limit {}, {} packets dropped for want of room so far", table.count, table.max, table.drops))
    .because("end", words::gave_up(case, how))
    .advise(table)
}

impl Verdict {
    fn advise(self, table: ConntrackFact) -> Self {
        self.fix_with("raise the limit", format!("sysctl net.netfilter.nf_conntrack_max={}", u64::from(table.max) * 2))
            .fix("fewer entries: upstream keepalive, shorter nf_conntrack_tcp_timeout_time_wait, or notrack for this traffic")
    }
}
