//! `why502 audit`: what a run has told, against what nginx itself wrote to its logs, line by line. Pure: bytes in, counts out.
//!
//! Nothing of nginx's log was written with why502 in mind, and `trace` reads none: the two are independent of each other.

mod fits;
mod pair;
mod request;
mod told;
mod written;
mod zone;

#[cfg(test)]
mod tests;

use std::{
    collections::{BTreeMap, BTreeSet},
    io::{self, BufRead},
};

pub use fits::Excuse;
pub use request::Same;
pub use told::{Run, Said, Stream, Told};
pub use written::{ACCESS, Clock, Logs, Source, Written};
pub use zone::{Basis, Zone};

use crate::{
    diagnose::{Cause, Confidence},
    errlog::{Level, Meaning},
};

/// Microseconds in a second.
const SECOND: i64 = 1_000_000;

/// What decides where the logs do not.
#[derive(Debug, Clone, Copy, Default)]
pub struct Options {
    /// How far the logs' clock is ahead of UTC, seconds, if the user says so.
    pub offset: Option<i64>,
    /// The same of the machine that audits, for when nothing tells it.
    pub machine: i64,
    /// The level of the logs, if the user says so.
    pub level: Option<Level>,
}

/// A line and its incident.
#[derive(Debug, Clone, Copy)]
pub struct Pair<'a> {
    /// The line.
    pub line: &'a Written,
    /// The incident.
    pub told: &'a Told,
    /// Its request against that of the line.
    pub request: Same,
}

/// An incident without a line.
#[derive(Debug, Clone, Copy)]
pub struct Surplus<'a> {
    /// The incident.
    pub told: &'a Told,
    /// What may be the reason, and is none that can be relied on.
    pub note: Option<&'static str>,
}

/// How often a cause was said of a text.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Counted {
    /// Whether the text allows the cause.
    pub fits: bool,
    /// How often.
    pub count: usize,
}

/// What came of it.
#[derive(Debug)]
pub struct Audit<'a> {
    /// The time zone of the logs.
    pub zone: Zone,
    /// The lowest level that the logs show.
    pub level: Option<Level>,
    /// Workers whose own number for themselves is another (in a container): the host's, and theirs.
    pub aliases: BTreeMap<u32, u32>,
    /// Lines that need an incident.
    pub lines: usize,
    /// Incidents that need a line.
    pub incidents: usize,
    /// Lines with an incident whose cause the text allows and whose request is no other.
    pub right: usize,
    /// Lines outside of the run.
    pub outside: usize,
    /// Lines of the seconds in which the run began or ended, which have no incident: it may not have seen them.
    pub at_edge: usize,
    /// Lines that fail no request.
    pub remarks: usize,
    /// Incidents to which such a line belongs.
    pub remarked: usize,
    /// Texts, TLS or not, and the causes that were said of them.
    pub table: BTreeMap<(String, Cause), Counted>,
    /// Requests of the pairs.
    pub requests: BTreeMap<Same, usize>,
    /// Pairs whose cause the text does not allow, though it is called proven.
    pub false_proven: usize,
    /// Lines without an incident.
    pub missing: Vec<&'a Written>,
    /// Incidents without a line, and without an excuse.
    pub surplus: Vec<Surplus<'a>>,
    /// Incidents of which nginx writes nothing.
    pub excused: BTreeMap<Excuse, usize>,
    /// Pairs whose cause the text does not allow.
    pub contradicted: Vec<Pair<'a>>,
    /// Pairs whose incident names no cause.
    pub unexplained: Vec<Pair<'a>>,
    /// Pairs whose incident names another request than the line.
    pub other_request: Vec<Pair<'a>>,
    /// Lines that name an upstream server and are not understood.
    pub unknown: Vec<&'a Written>,
}

impl Audit<'_> {
    /// Of the incidents, those that are right, percent.
    #[must_use]
    pub fn precision(&self) -> f64 {
        percent(self.right, self.incidents)
    }

    /// Of the lines, those that have their right incident, percent.
    #[must_use]
    pub fn recall(&self) -> f64 {
        percent(self.right, self.lines)
    }

    /// True if nginx and the run say the same. An incident that names no cause says nothing else.
    #[must_use]
    pub fn agrees(&self) -> bool {
        self.missing.is_empty()
            && self.surplus.is_empty()
            && self.contradicted.is_empty()
            && self.other_request.is_empty()
    }
}

fn percent(part: usize, all: usize) -> f64 {
    if all == 0 { 100.0 } else { part as f64 * 100.0 / all as f64 }
}

/// Compares. Each line is used once, and each incident.
#[must_use]
pub fn audit<'a>(stream: &'a Stream, logs: &'a Logs, options: &Options) -> Audit<'a> {
    let zone = zone::decide(&stream.told, &logs.lines, options);
    let span = |line: &Written| stream.place(line, zone.offset);
    let inside: Vec<&Written> = logs.lines.iter().filter(|line| span(line) != told::Place::Outside).collect();
    let level = options.level.or(logs.lowest);
    let aliases = pair::aliases(&stream.told, &inside, zone.offset);
    let found = pair::pair(&stream.told, &inside, zone.offset, &aliases);
    let clients: BTreeSet<&str> = logs.lines.iter().filter_map(|line| line.client.as_deref()).collect();
    let mut audit = Audit {
        zone,
        level,
        lines: 0,
        incidents: 0,
        right: 0,
        outside: logs.lines.len() - inside.len(),
        at_edge: 0,
        remarks: inside.iter().filter(|line| line.meaning == Meaning::Remark).count(),
        remarked: 0,
        table: BTreeMap::new(),
        requests: BTreeMap::new(),
        false_proven: 0,
        missing: Vec::new(),
        surplus: Vec::new(),
        excused: BTreeMap::new(),
        contradicted: Vec::new(),
        unexplained: Vec::new(),
        other_request: Vec::new(),
        unknown: logs.unknown.iter().filter(|line| span(line) != told::Place::Outside).collect(),
        aliases,
    };
    let workers: BTreeSet<u32> = inside.iter().map(|line| line.pid).collect();
    let begin = logs.lines.iter().map(|line| line.time(zone.offset)).min();
    for (told, line) in stream.told.iter().zip(&found.line_of) {
        match line.and_then(|at| inside.get(at)).copied() {
            Some(line) => audit.matched(told, line, &clients),
            None => {
                if let Some(excuse) = fits::excuse(told, level, logs.has_access) {
                    *audit.excused.entry(excuse).or_default() += 1;
                    continue;
                }
                audit.incidents += 1;
                let pid = audit.aliases.get(&told.pid).unwrap_or(&told.pid);
                let note = if !workers.contains(pid) {
                    Some(
                        "this worker wrote no line to these logs: another nginx's, or a log is not among them",
                    )
                } else if begin.is_some_and(|begin| told.time < begin) {
                    Some("before the first line of these logs: a rotated piece may not be among them")
                } else {
                    None
                };
                audit.surplus.push(Surplus { told, note });
            }
        }
    }
    for (line, taken) in inside.iter().copied().zip(&found.taken) {
        if line.meaning == Meaning::Remark || *taken {
            continue;
        }
        if span(line) == told::Place::Edge {
            audit.at_edge += 1;
        } else {
            audit.lines += 1;
            audit.missing.push(line);
        }
    }
    audit
}

impl<'a> Audit<'a> {
    fn matched(&mut self, told: &'a Told, line: &'a Written, clients: &BTreeSet<&str>) {
        if line.meaning == Meaning::Remark {
            self.remarked += 1;
            return;
        }
        let fits = fits::fits(line.meaning, line.tls, told.cause);
        let request = request::compare(told, line, clients);
        let pair = Pair { line, told, request };
        self.lines += 1;
        self.incidents += 1;
        let said = self.table.entry((line.kind(), told.cause)).or_insert(Counted { fits, count: 0 });
        said.count += 1;
        *self.requests.entry(request).or_default() += 1;
        if request.is_other() {
            self.other_request.push(pair);
        } else if fits {
            self.right += 1;
        }
        if told.cause == Cause::Unexplained {
            self.unexplained.push(pair);
        } else if !fits {
            self.false_proven += usize::from(told.confidence == Confidence::Proven);
            self.contradicted.push(pair);
        }
    }
}

/// Calls `each` with every line, its number from 1, and whether it is whole: of one that is longer than `most` bytes the rest
/// is left out.
fn each_line(
    mut reader: impl BufRead,
    most: usize,
    mut each: impl FnMut(u64, &[u8], bool),
) -> io::Result<()> {
    let (mut line, mut whole, mut number) = (Vec::new(), true, 0);
    loop {
        let bytes = reader.fill_buf()?;
        if bytes.is_empty() {
            break;
        }
        let end = bytes.iter().position(|byte| *byte == b'\n');
        let part = bytes.get(..end.unwrap_or(bytes.len())).unwrap_or_default();
        let room = most.saturating_sub(line.len());
        whole &= part.len() <= room;
        line.extend_from_slice(part.get(..room.min(part.len())).unwrap_or_default());
        let used = part.len() + usize::from(end.is_some());
        reader.consume(used);
        if end.is_some() {
            number += 1;
            each(number, &line, whole);
            line.clear();
            whole = true;
        }
    }
    if !line.is_empty() || !whole {
        each(number + 1, &line, whole);
    }
    Ok(())
}
