//! `--trace-rules`: after a drop by a rule was seen, the kernel is asked to name the rule for the next such packet.

use std::{
    net::SocketAddr,
    time::{Duration, Instant},
};

use super::{facts::Gatherer, rules::Word};
use crate::{
    correlate::Case,
    event::DropClass,
    sys::{
        netns::NetNs,
        nftrace::{self, Armed},
    },
};

/// How long the next packet is waited for.
const WAIT: Duration = Duration::from_secs(10);
/// Tables at a time.
const MOST: usize = 4;

struct Trap {
    armed: Armed,
    ns: NetNs,
    /// What nginx asked for.
    remote: SocketAddr,
    reply: bool,
    until: Instant,
}

/// The tables that trace now.
#[derive(Default)]
pub(super) struct Traces {
    wanted: bool,
    traps: Vec<Trap>,
}

impl Traces {
    /// `wanted`: the user asked for it. Says what was left by runs that were killed.
    pub(super) fn new(wanted: bool) -> (Self, Vec<String>) {
        let said = if wanted { nftrace::remove_leftovers() } else { Vec::new() };
        (Self { wanted, traps: Vec::new() }, said)
    }

    /// True while some packet is waited for.
    pub(super) fn any(&self) -> bool {
        !self.traps.is_empty()
    }

    /// Lies in wait for the next packet like the one that was dropped; says so.
    pub(super) fn arm(&mut self, gatherer: &mut Gatherer, case: &Case) -> Option<String> {
        let attempt = &case.attempt;
        let drop = attempt.drop.as_ref().filter(|d| self.wanted && d.class == DropClass::Netfilter)?;
        let named = case.facts.rules.as_ref()?;
        // Only nf_tables' own rules can be traced; those have handles or are policies of its chains.
        let any = named.candidates.iter().any(|c| !c.chain.ends_with("(legacy)"));
        let inum = if drop.netns == 0 { attempt.netns } else { drop.netns };
        let (remote, reply) = (attempt.remote, drop.reply);
        let waits = |t: &Trap| (t.ns.inum(), t.remote, t.reply) == (inum, remote, reply);
        if !any
            || self.traps.len() >= MOST
            || self.traps.iter().any(waits)
            || gatherer.rules.has_word(inum, remote, reply)
        {
            return None;
        }
        let ns = gatherer.open(inum, None)?;
        // Before translation, as the table comes first: of answers that is what the server itself says.
        let server = if reply { drop.wire_dst } else { remote };
        match gatherer.rules.unnoticed(&ns, || Armed::new(&ns, server, reply)) {
            Ok(armed) => {
                let said = format!(
                    "--trace-rules: table {} traces handshakes with {server} in network namespace {inum} for {} s at most",
                    armed.table(),
                    WAIT.as_secs()
                );
                self.traps.push(Trap { armed, ns, remote, reply, until: Instant::now() + WAIT });
                Some(said)
            }
            Err(error) => Some(format!("--trace-rules: {error}")),
        }
    }

    /// Hears what the kernel has named, and takes away what is not needed any more.
    pub(super) fn poll(&mut self, gatherer: &mut Gatherer) {
        let mut index = 0;
        while let Some(trap) = self.traps.get_mut(index) {
            let dropper = trap.armed.droppers().pop();
            if dropper.is_none() && Instant::now() < trap.until {
                index += 1;
                continue;
            }
            let Trap { armed, ns, remote, reply, .. } = self.traps.swap_remove(index);
            if let Some(dropper) = dropper {
                let word = Word { chain: dropper.chain, handle: dropper.handle, at: Instant::now() };
                gatherer.rules.heard(&ns, remote, reply, word);
            }
            gatherer.rules.unnoticed(&ns, || drop(armed));
        }
    }
}
