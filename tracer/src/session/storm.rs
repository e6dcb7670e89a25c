//! Failures that come faster than they are worth explaining one by one: the kernel side counts equal ones, and sends one of each
//! kind a second. What is said of that one holds for those that were counted with it.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use tracer_ebpf::storm::{Alike, Repeats as Counted};

use super::clock::wall_clock;
use crate::{
    correlate::request::{Attribution, COUNTED},
    moment::Moment,
    report::{Incident, Repeats},
};

/// From one look at the counts to the next.
const EVERY: Duration = Duration::from_secs(1);
/// How long after the last exemplar, or the last that was counted, they are looked at.
const AFTER: Duration = Duration::from_secs(3);
/// How long the kernel's entry of a worker that has ended is kept, nanoseconds: nothing adds to it any more.
const KEEP_NS: u64 = 10_000_000_000;
/// Exemplars whose kind has not been seen yet.
const MOST: usize = 4 * tracer_ebpf::storm::KINDS as usize;

/// What is known of one kind.
#[derive(Debug, Default)]
struct Kind {
    exemplar: Option<Incident>,
    /// How many of those that were counted have been told.
    told: u64,
    /// When the last of them ended, CLOCK_MONOTONIC ns.
    until_ns: u64,
}

/// Kinds of equal failures.
#[derive(Debug, Default)]
pub(super) struct Storm {
    kinds: BTreeMap<Alike, Kind>,
    /// By socket and beginning.
    exemplars: BTreeMap<(u64, u64), Incident>,
    told: u64,
    looked: Option<Instant>,
    /// Until when to look.
    until: Option<Instant>,
}

impl Storm {
    /// Keeps an incident that stands for others.
    pub(super) fn keep(&mut self, incident: &Incident, now: Instant) {
        let attempt = &incident.case.attempt;
        if self.exemplars.len() >= MOST {
            self.exemplars.pop_first();
        }
        self.exemplars.insert((attempt.socket, attempt.name_ns), incident.clone());
        if self.until.is_none() {
            // It is told before those that it stands for.
            self.looked = Some(now);
        }
        self.until = Some(now + AFTER);
    }

    /// True if there may be some to tell of.
    pub(super) fn any_waits(&self) -> bool {
        self.until.is_some()
    }

    /// True if it is time to look.
    pub(super) fn is_due(&self, now: Instant) -> bool {
        self.until.is_some() && self.looked.is_none_or(|looked| now.duration_since(looked) >= EVERY)
    }

    /// How many were told.
    pub(super) fn told(&self) -> u64 {
        self.told
    }

    /// What has been counted since the last look, an incident for each kind; and the kinds whose workers have ended, to be forgotten.
    pub(super) fn look(
        &mut self,
        counts: impl Iterator<Item = (Alike, Counted)>,
        is_watched: impl Fn(u32) -> bool,
        now: Instant,
        now_ns: u64,
    ) -> (Vec<Incident>, Vec<Alike>) {
        let (mut news, mut gone) = (Vec::new(), Vec::new());
        self.looked = Some(now);
        for (alike, counted) in counts {
            let kind = self.kinds.entry(alike).or_default();
            if let Some(exemplar) = self.exemplars.remove(&(counted.sk, counted.start_ns)) {
                kind.exemplar = Some(exemplar);
            }
            let count = counted.count.saturating_sub(kind.told);
            if count == 0 {
                if !is_watched(u32::try_from(counted.tgid).unwrap_or(0))
                    && now_ns.saturating_sub(counted.last_ns) > KEEP_NS
                {
                    gone.push(alike);
                }
                continue;
            }
            self.until = Some(now + AFTER);
            // It may still wait to be explained.
            let Some(exemplar) = &kind.exemplar else { continue };
            news.push(repeated(exemplar, count, kind.until_ns.max(exemplar.mono_ns), counted.last_ns));
            (kind.told, kind.until_ns) = (counted.count, counted.last_ns);
            self.told += count;
        }
        for alike in &gone {
            self.kinds.remove(alike);
        }
        if self.until.is_some_and(|until| until <= now) {
            self.until = None;
            self.exemplars.clear();
        }
        (news, gone)
    }
}

/// So many more failures like this one.
fn repeated(exemplar: &Incident, count: u64, since_ns: u64, until_ns: u64) -> Incident {
    let until_ns = until_ns.max(exemplar.mono_ns);
    let since_ns = since_ns.min(until_ns);
    let moment = |ns| Moment::local(wall_clock(ns));
    Incident {
        time: moment(until_ns),
        mono_ns: until_ns,
        attribution: Attribution::unknown(COUNTED),
        repeats: Some(Repeats { count, since: moment(since_ns), since_ns }),
        ..exemplar.clone()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{diagnose::Cause, report::tests::incident};

    fn alike(first: u64) -> Alike {
        Alike { first, second: 0 }
    }

    fn exemplar(sk: u64, start_ns: u64) -> Incident {
        let mut one = incident(Cause::ConnectRefusedNoListener, Vec::new());
        (one.case.attempt.socket, one.case.attempt.name_ns, one.mono_ns) = (sk, start_ns, start_ns + 1);
        one
    }

    fn counted(count: u64, sk: u64) -> Counted {
        Counted { count, last_ns: 5_000, sent_ns: 1_000, sk, start_ns: 1_000, tgid: 1 }
    }

    fn look(storm: &mut Storm, counts: &[(Alike, Counted)], now: Instant) -> Vec<u64> {
        let (news, _) = storm.look(counts.iter().copied(), |_| true, now, 6_000);
        news.iter().map(Incident::attempts).collect()
    }

    #[test]
    fn each_is_told_once_and_none_before_its_exemplar() {
        let now = Instant::now();
        let mut storm = Storm::default();
        assert!(!storm.any_waits() && !storm.is_due(now));
        // The exemplar of kind 2 waits to be explained.
        let counts = [(alike(1), counted(10, 7)), (alike(2), counted(20, 8))];
        storm.keep(&exemplar(7, 1_000), now - EVERY);
        assert!(storm.is_due(now) && !storm.is_due(now - EVERY));
        assert_eq!(look(&mut storm, &counts, now), [10]);
        assert!(!storm.is_due(now) && storm.is_due(now + EVERY));
        storm.keep(&exemplar(8, 1_000), now);
        let counts = [(alike(1), counted(11, 7)), (alike(2), counted(25, 8))];
        assert_eq!(look(&mut storm, &counts, now + EVERY), [1, 25]);
        assert_eq!(look(&mut storm, &counts, now + 2 * EVERY), [0_u64; 0]);
        assert_eq!(storm.told(), 36);
        // The next exemplar of a kind takes over; until it is explained, the last one stands.
        let counts = [(alike(1), counted(12, 9)), (alike(2), counted(25, 8))];
        assert_eq!(look(&mut storm, &counts, now + 3 * EVERY), [1]);
        assert_eq!(look(&mut storm, &counts, now + 9 * EVERY), [0_u64; 0]);
        assert!(!storm.any_waits());
    }

    #[test]
    fn what_it_says_is_of_the_exemplar_and_names_no_request() {
        let one = repeated(&exemplar(7, 1_000), 3, 2_000, 5_000);
        assert_eq!((one.mono_ns, one.attempts()), (5_000, 3));
        assert_eq!(one.repeats.unwrap().since_ns, 2_000);
        assert!(one.attribution.request.is_none() && one.attribution.note.is_some());
        assert_eq!(one.verdict.cause, Cause::ConnectRefusedNoListener);
        // Clocks of two CPUs: what was counted first may seem to end before its exemplar.
        let one = repeated(&exemplar(7, 1_000), 3, 2_000, 900);
        assert_eq!((one.mono_ns, one.repeats.unwrap().since_ns), (1_001, 1_001));
    }

    #[test]
    fn a_worker_that_ended_is_forgotten() {
        let now = Instant::now();
        let mut storm = Storm::default();
        storm.keep(&exemplar(7, 1_000), now);
        let counts = [(alike(1), counted(10, 7))];
        assert_eq!(look(&mut storm, &counts, now), [10]);
        let gone = |storm: &mut Storm, watched: bool, now_ns| {
            storm.look(counts.iter().copied(), |_| watched, now, now_ns).1.len()
        };
        assert_eq!(gone(&mut storm, true, 2 * KEEP_NS), 0);
        assert_eq!(gone(&mut storm, false, 6_000), 0);
        assert_eq!(gone(&mut storm, false, 2 * KEEP_NS), 1);
    }
}
