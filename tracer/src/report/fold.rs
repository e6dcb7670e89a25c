//! Equal failures in a row: the first is told whole, the others are counted, and a line a second says how many there were.
//!
//! What happens depends on the incidents and their times alone, so a recording is told as the run was.

use std::collections::{BTreeMap, BTreeSet};

use super::Incident;
use crate::{
    diagnose::{Cause, Confidence, words},
    moment::Moment,
};

/// A failure that has not been seen for so long is told whole again.
const FORGET_NS: u64 = 5_000_000_000;
/// One that goes on is told whole once in this time.
const RENEW_NS: u64 = 60_000_000_000;
/// From one line about equal failures to the next.
const LINE_NS: u64 = 1_000_000_000;
/// Kinds that are counted at most; further ones are told whole.
const MOST: usize = 4096;

/// What makes two failures equal to a reader.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
struct Kind {
    cause: Cause,
    confidence: Confidence,
    /// Without its numbers: each failure has times and counts of its own.
    summary: String,
    destination: String,
    netns: u32,
    /// What the client saw.
    status: Option<u16>,
    /// What the server said.
    said: Option<u16>,
    /// Who held the server's socket.
    holder: Option<String>,
    /// Kinds of the evidence.
    evidence: BTreeSet<&'static str>,
}

impl Kind {
    fn of(i: &Incident, destination: &str) -> Self {
        let holder = i.case.facts.backend.holder.as_ref().map(|holder| without_numbers(&holder.name));
        Self {
            cause: i.verdict.cause,
            confidence: i.verdict.confidence,
            summary: without_numbers(&i.verdict.summary),
            destination: destination.to_owned(),
            netns: i.case.attempt.netns,
            status: i.client_saw(),
            said: i.case.attempt.talk.as_ref().and_then(|talk| talk.status),
            holder,
            evidence: i.verdict.evidence.iter().map(|evidence| evidence.kind).collect(),
        }
    }
}

/// A text in which each number, with the unit of a time behind it, is `#`.
fn without_numbers(text: &str) -> String {
    let mut short = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(start) = rest.find(|c: char| c.is_ascii_digit()) {
        let (before, number) = rest.split_at(start);
        short.push_str(before);
        short.push('#');
        rest = number.trim_start_matches(|c: char| c.is_ascii_digit() || c == '.');
        for unit in [" µs", " ms", " s", " min"] {
            if let Some(after) = rest.strip_prefix(unit)
                && !after.starts_with(char::is_alphanumeric)
            {
                rest = after;
                break;
            }
        }
    }
    short.push_str(rest);
    short
}

#[derive(Debug, Clone)]
struct Count {
    /// When it was told whole.
    whole_ns: u64,
    /// When it was seen last.
    last_ns: u64,
    /// When a line about it was written last.
    line_ns: u64,
    /// Since it was told whole, that one included.
    all: u64,
    /// Not told yet.
    untold: u64,
    /// The last of them.
    time: Moment,
    /// What the line says of it.
    label: String,
}

/// The kinds of late.
#[derive(Debug, Default)]
pub(super) struct Fold {
    kinds: BTreeMap<Kind, Count>,
    /// Nothing is due before.
    due_ns: u64,
}

impl Fold {
    /// True if the incident is to be told whole; else it is counted, and told of by a later [`Fold::due`]. `label`: what is
    /// to be said of it then.
    pub(super) fn is_new(&mut self, i: &Incident, destination: &str, label: impl Fn() -> String) -> bool {
        let now = i.shown_ns;
        if i.repeats.is_some() && self.add(i, destination) {
            return false;
        }
        let kind = Kind::of(i, destination);
        if let Some(count) = self.kinds.get_mut(&kind)
            && now.saturating_sub(count.whole_ns) < RENEW_NS
        {
            if count.untold == 0 {
                self.due_ns = self.due_ns.min(count.line_ns.saturating_add(LINE_NS));
            }
            count.add(i);
            return false;
        }
        if self.kinds.len() < MOST {
            let count = Count {
                whole_ns: now,
                last_ns: now,
                line_ns: now,
                all: i.attempts(),
                untold: 0,
                time: i.time,
                label: label(),
            };
            self.kinds.insert(kind, count);
        }
        true
    }

    /// Adds failures that were not looked at one by one to the latest of their cause and server: what their clients saw is not
    /// known. False if there is none.
    fn add(&mut self, i: &Incident, destination: &str) -> bool {
        let same = |kind: &Kind| {
            kind.cause == i.verdict.cause
                && kind.destination == destination
                && kind.netns == i.case.attempt.netns
        };
        let latest =
            self.kinds.iter_mut().filter(|(kind, _)| same(kind)).max_by_key(|(_, count)| count.last_ns);
        let Some((_, count)) = latest else { return false };
        if let Some(repeats) = i.repeats {
            // They came before they were told.
            let took_ns = i.mono_ns.saturating_sub(repeats.since_ns);
            count.line_ns = count.line_ns.min(i.shown_ns.saturating_sub(took_ns));
        }
        self.due_ns = self.due_ns.min(count.line_ns.saturating_add(LINE_NS));
        count.add(i);
        true
    }

    /// True if some have been counted and not told.
    pub(super) fn waits(&self) -> bool {
        self.kinds.values().any(|count| count.untold > 0)
    }

    /// The lines that are due at `now_ns`, each with the moment of the last incident that it counts; `end`: the run ends.
    pub(super) fn due(&mut self, now_ns: u64, end: bool) -> Vec<(Moment, String)> {
        if now_ns < self.due_ns && !end {
            return Vec::new();
        }
        let mut lines = Vec::new();
        for count in self.kinds.values_mut().filter(|count| count.untold > 0) {
            let since = now_ns.saturating_sub(count.line_ns);
            if since < LINE_NS && !end && now_ns.saturating_sub(count.whole_ns) < RENEW_NS {
                continue;
            }
            lines.push((count.time, count.line()));
            (count.line_ns, count.untold) = (now_ns, 0);
        }
        self.kinds.retain(|_, count| {
            now_ns.saturating_sub(count.last_ns) < FORGET_NS
                && now_ns.saturating_sub(count.whole_ns) < RENEW_NS
        });
        let next = self.kinds.values().map(|count| count.line_ns.saturating_add(LINE_NS)).min();
        self.due_ns = next.unwrap_or(now_ns);
        lines
    }
}

impl Count {
    fn add(&mut self, i: &Incident) {
        (self.last_ns, self.time) = (i.shown_ns, i.time);
        self.all += i.attempts();
        self.untold += i.attempts();
    }

    /// `again 811 times in 1.000 s (811/s), 812 in all: …`.
    fn line(&self) -> String {
        let span_ns = self.last_ns.saturating_sub(self.line_ns);
        let times = super::plural(usize::try_from(self.untold).unwrap_or(usize::MAX), "time");
        let rate = if span_ns >= LINE_NS / 2 && self.untold > 2 {
            format!(" ({}/s)", self.untold.saturating_mul(1_000_000_000) / span_ns)
        } else {
            String::new()
        };
        format!(
            "again {times} in {}{rate}, {} in all: {}",
            words::duration(span_ns / 1000),
            self.all,
            self.label
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::tests::incident;

    const MS: u64 = 1_000_000;

    fn at(ms: u64) -> Incident {
        let mut one = incident(Cause::ConnectRefusedNoListener, Vec::new());
        one.shown_ns = 10_000 * MS + ms * MS;
        one
    }

    fn told(fold: &mut Fold, one: &Incident) -> (Vec<String>, bool) {
        let lines = fold.due(one.shown_ns, false).into_iter().map(|(_, line)| line).collect();
        (lines, fold.is_new(one, "127.0.0.1:3000", || "x".to_owned()))
    }

    #[test]
    fn numbers_do_not_make_a_kind() {
        assert_eq!(
            without_numbers("its RST came 9 µs before nginx wrote"),
            "its RST came # before nginx wrote"
        );
        assert_eq!(without_numbers("1.350 s idle, 2 of 3 seen, 4 sockets"), "# idle, # of # seen, # sockets");
        assert_eq!(without_numbers("none"), "none");
        assert_eq!(without_numbers("7"), "#");
    }

    #[test]
    fn one_line_a_second_and_nothing_lost() {
        let mut fold = Fold::default();
        let mut lines = Vec::new();
        let mut whole = 0;
        for ms in 0..3500 {
            let (some, new) = told(&mut fold, &at(ms));
            lines.extend(some);
            whole += u64::from(new);
        }
        lines.extend(fold.due(at(3500).shown_ns, true).into_iter().map(|(_, line)| line));
        assert_eq!(whole, 1);
        assert_eq!(
            lines,
            [
                "again 999 times in 999.0 ms (1000/s), 1000 in all: x",
                "again 1000 times in 999.0 ms (1001/s), 2000 in all: x",
                "again 1000 times in 999.0 ms (1001/s), 3000 in all: x",
                "again 500 times in 499.0 ms, 3500 in all: x",
            ]
        );
        assert!(!fold.waits());
    }

    #[test]
    fn what_differs_for_the_reader_is_told_whole() {
        let mut fold = Fold::default();
        assert!(told(&mut fold, &at(0)).1);
        assert!(!told(&mut fold, &at(1)).1);
        let mut other = at(2);
        other.verdict.summary = "something else".to_owned();
        assert!(told(&mut fold, &other).1);
        let mut other = at(3);
        other.verdict.confidence = Confidence::Likely;
        assert!(told(&mut fold, &other).1);
        let mut other = at(4);
        other.verdict.evidence.clear();
        assert!(told(&mut fold, &other).1);
        assert!(fold.waits());
    }

    #[test]
    fn a_kind_is_forgotten_and_renewed() {
        let mut fold = Fold::default();
        assert!(told(&mut fold, &at(0)).1);
        assert!(!told(&mut fold, &at(4900)).1);
        let (lines, new) = told(&mut fold, &at(9950));
        assert!(new, "not seen for five seconds");
        assert_eq!(lines, ["again 1 time in 4.900 s, 2 in all: x"]);
        let mut whole = 0;
        for s in 10..130 {
            whole += u64::from(told(&mut fold, &at(s * 1000)).1);
        }
        assert_eq!(whole, 1, "after 60 s");
    }
}
