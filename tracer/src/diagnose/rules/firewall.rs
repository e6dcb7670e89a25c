//! `connect-refused-by-firewall` and `connect-timeout-firewall-drop`: a rule rejected or dropped.
//!
//! A local reject is a drop of our SYN followed by a RST or ICMP error. It is proven when *every* SYN that was
//! sent is known to have been dropped here: then no answer can be the peer's. Look-alikes: a drop of the first
//! SYN only and an honest RST for the second; a full conntrack table (see `table`); a closed port.

use super::blocked;
use crate::{
    correlate::{Case, GaveUp},
    diagnose::{Cause, Fix, Verdict, words},
    event::{Drop, DropClass, Stage},
    firewall::Naming,
};

pub(super) fn refused(case: &Case) -> Option<Verdict> {
    let a = &case.attempt;
    if a.stage != Stage::SynSent {
        return None;
    }
    let drop = a.drop.as_ref().filter(|d| d.saw(DropClass::Netfilter) && !d.reply);
    let answered = a.reset || a.icmp.is_some() || (a.sk_err != 0 && a.sk_err != libc::ETIMEDOUT);
    if let Some(drop) = drop.filter(|_| answered) {
        // An honest refusal of a later SYN: the host's stack said that there was no socket.
        if drop.saw(DropClass::NoSocket) {
            return None;
        }
        let how = match (a.reset, words::icmp(case)) {
            (true, _) => format!("RST {}, although no SYN had left", words::after(case)),
            (false, Some(icmp)) => icmp,
            (false, None) => {
                format!("the connection ended with {} {}", words::errno(a.sk_err), words::after(case))
            }
        };
        return Some(
            Verdict::graded(
                Cause::ConnectRefusedByFirewall,
                case.all_syns_dropped() && only_by_rules(drop),
                format!("a firewall rule rejects connections to {}", a.remote),
                "a refusal by the upstream itself, of a SYN that a rule let through",
            )
            .because_if("drop", words::drop_text(case))
            .because("reject", how)
            .because_if("dnat", words::translation(case))
            .because_if("listener", listener(case))
            .named(case),
        );
    }
    remote(case)
}

/// Rejected on the way: the ICMP message tells.
fn remote(case: &Case) -> Option<Verdict> {
    let a = &case.attempt;
    let to = a.remote;
    if a.reset {
        return None;
    }
    let Some(icmp) = a.icmp else {
        // IPv6 without the ICMP hook: an error that came from outside, neither RST nor timeout.
        let what = match a.sk_err {
            libc::ECONNREFUSED if case.reach.resets => "port unreachable",
            libc::EACCES => "administratively prohibited",
            _ => return None,
        };
        return Some(
            Verdict::likely(
                Cause::ConnectRefusedByFirewall,
                format!("a firewall rejects connections to {to}"),
                "the upstream host itself: type and sender of the ICMP error are not known on this tier",
            )
            .because(
                "errno",
                format!(
                    "{} {}, without a RST: an ICMP error ({what})",
                    words::errno(a.sk_err),
                    words::after(case)
                ),
            )
            .fix("look at the firewalls between this host and the upstream"),
        );
    };
    let v6 = icmp.sender.is_ipv6();
    let by_peer = icmp.sender == to.ip();
    let own = case.facts.icmp_sender_is_own == Some(true);
    let proof = match (v6, icmp.kind, icmp.code) {
        (false, 3, 9 | 10 | 13) | (true, 1, 1 | 5) => true,
        // Linux answers a closed TCP port with a RST; RFC 1122 would let another stack say this.
        (false, 3, 3) | (true, 1, 4 | 6) => !by_peer,
        (false, 3, 2) => false,
        // A host that calls itself or its own network unreachable.
        (false, 3, 0 | 1) | (true, 1, 0 | 3) if by_peer => false,
        _ => return None,
    };
    // From this host's own address and no drop of ours seen: some own rule, but that was not witnessed.
    // And where no SYN has left, what answers is of another time.
    let proof = proof && (!own || case.reach.drops) && !case.all_syns_dropped();
    let who = if by_peer {
        format!("the firewall of {}", to.ip())
    } else if own {
        "a firewall rule of this host".to_owned()
    } else {
        format!("a firewall at {}", icmp.sender)
    };
    Some(
        Verdict::graded(
            Cause::ConnectRefusedByFirewall,
            proof,
            format!("{who} rejects connections to {to}"),
            "an unusual TCP stack that answers closed ports with ICMP",
        )
        .because_if("icmp", words::icmp(case))
        .because_if("drop", words::drop_text(case))
        .because("not-listener", "a Linux host answers a closed TCP port with a RST, not with ICMP")
        .fix(format!(
            "allow this host to reach {to} in the rules of {}",
            if by_peer { to.ip() } else { icmp.sender }
        )),
    )
}

/// Dropped: nothing came back.
pub(super) fn dropped(case: &Case) -> Option<Verdict> {
    let a = &case.attempt;
    let how = case.gave_up()?;
    let drop = a.drop.as_ref()?;
    let by_rule = [DropClass::Netfilter, DropClass::RpFilter, DropClass::Bpf, DropClass::Tc, DropClass::Xfrm];
    let class = by_rule.into_iter().find(|c| drop.saw(*c))?;
    if matches!(how, GaveUp::ClientGone | GaveUp::WorkerEnded) {
        return None;
    }
    let every = drop.count >= case.syns();
    // A full conntrack table drops with the same reason; a packet that has an entry cannot be its victim.
    let table_excluded = class != DropClass::Netfilter
        || drop.conntrack
        || case.facts.conntrack.is_some_and(|t| !t.full() && t.drops == 0)
        || (drop.netns == a.netns && case.facts.conntrack.is_none() && case.facts.is_local.is_some());
    let direction = if drop.reply { "the upstream's answer" } else { "the SYN" };
    let cause =
        if class == DropClass::Bpf { Cause::BlockedCgroupBpf } else { Cause::ConnectTimeoutFirewallDrop };
    let who = match class {
        DropClass::RpFilter => "the reverse path filter",
        DropClass::Bpf => "a cgroup BPF program",
        DropClass::Tc => "a tc filter",
        DropClass::Xfrm => "an IPsec policy",
        _ => "a firewall rule",
    };
    let early = how == GaveUp::Early;
    let rival = if early {
        "a client that left before nginx's timer, unseen"
    } else if every {
        "a connection tracking table that was full then"
    } else {
        "a host that did not answer the SYNs that got through"
    };
    let verdict = Verdict::graded(
        cause,
        every && table_excluded && only_by_rules(drop) && !early,
        format!("{who} drops {direction} for {}", a.remote),
        rival,
    )
    .because_if("drop", words::drop_text(case))
    .because("syn", format!("{} sent, {} dropped here", words::syns(case.syns()), drop.count))
    .because("end", words::gave_up(case, how))
    .because_if("dnat", words::translation(case))
    .because_if("listener", listener(case));
    Some(match class {
        DropClass::RpFilter => verdict.fix_with(
            "correct the route back to the upstream, or loosen rp_filter on that interface",
            "ip route get; sysctl net.ipv4.conf.all.rp_filter",
        ),
        DropClass::Tc => {
            verdict.fix_with("remove or correct the tc filter on that interface", "tc filter show")
        }
        DropClass::Bpf => {
            let programs = case.facts.suspects.as_ref().and_then(|s| s.cgroup_programs.as_deref());
            let verdict = verdict
                .fix_with("systemd: IPAddressAllow= for the upstream in nginx's unit", "bpftool cgroup tree");
            let verdict = blocked::listed(verdict, programs.unwrap_or_default());
            blocked::unit(verdict, case, &["IPAddressDeny", "IPAddressAllow", "IPEgressFilterPath"])
        }
        DropClass::Xfrm => verdict.fix_with("correct the IPsec policy for that address", "ip xfrm policy"),
        _ => verdict.named(case),
    })
}

impl Verdict {
    /// Adds the rule that it was, or those that it can have been, and how to let the connection through.
    fn named(mut self, case: &Case) -> Self {
        let found = case.facts.rules.as_ref();
        for words in found.map(Naming::words).unwrap_or_default() {
            self = self.because("rule", words);
        }
        if let Some(rule) = found.and_then(Naming::only) {
            for (text, command) in &rule.fix {
                self.fix.push(Fix { text: text.clone(), command: command.clone() });
            }
            return self;
        }
        self.fix_with(
            format!(
                "allow {} in the {} chain of that ruleset",
                case.attempt.remote,
                case.facts.drop_hook.as_deref().unwrap_or("matching")
            ),
            found.map_or("nft -a list ruleset", |found| found.list.as_str()),
        )
    }
}

/// False if a SYN was also dropped for want of a neighbour or a route: that answers for itself.
fn only_by_rules(drop: &Drop) -> bool {
    !drop.saw(DropClass::Neighbour) && !drop.saw(DropClass::NoRoute)
}

/// Whether the service itself is there, for an address of this host.
fn listener(case: &Case) -> Option<String> {
    let found = case.facts.listeners.as_ref()?;
    match found.exact.first() {
        Some(listener) => Some(format!("the service is there: {}", words::listening(listener))),
        None if case.facts.is_local == Some(true) => {
            Some("besides, nothing listens there now: without the rule it would be refused".to_owned())
        }
        None => None,
    }
}
