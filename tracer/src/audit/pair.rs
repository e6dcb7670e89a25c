//! Each incident with its line: the worker, the time, the server and the request must be the same.

use std::collections::{BTreeMap, BTreeSet};

use super::{Told, Written, fits::fits, request};
use crate::errlog::Meaning;

/// Which is whose.
#[derive(Debug)]
pub(super) struct Paired {
    /// The line of each incident.
    pub(super) line_of: Vec<Option<usize>>,
    /// The lines that have one.
    pub(super) taken: Vec<bool>,
}

/// Lines in the order of time.
struct InTime<'a> {
    lines: &'a [&'a Written],
    offset: i64,
    /// The time of each, and which it is.
    order: Vec<(i64, usize)>,
    /// The farthest that one may be from its incident.
    widest: i64,
}

impl<'a> InTime<'a> {
    fn new(lines: &'a [&'a Written], offset: i64, which: impl Iterator<Item = usize>) -> Self {
        let get = |at: usize| lines.get(at).copied();
        let mut order: Vec<(i64, usize)> = which.filter_map(|at| Some((get(at)?.time(offset), at))).collect();
        order.sort_unstable();
        let widest = order.iter().filter_map(|(_, at)| Some(get(*at)?.within())).max().unwrap_or(0);
        Self { lines, offset, order, widest }
    }

    /// Those that can be of the time of an incident and are of the same server, the earliest first.
    fn near<'b>(&'b self, told: &'b Told) -> impl Iterator<Item = (usize, &'a Written)> + 'b {
        let begin = self.order.partition_point(|(time, _)| *time < told.time - self.widest);
        let rest = self.order.get(begin..).unwrap_or_default().iter();
        rest.take_while(move |(time, _)| *time <= told.time + self.widest).filter_map(move |(_, at)| {
            let line = self.lines.get(*at).copied()?;
            let server = match (&line.address, &told.address) {
                (Some(line), Some(told)) => line == told,
                _ => true,
            };
            let in_time = (line.time(self.offset) - told.time).abs() <= line.within();
            (server && in_time).then_some((*at, line))
        })
    }
}

/// One round of the search.
struct Round {
    /// Of incidents that name their request, or of the others.
    named: bool,
    /// The text allows the cause.
    fits: bool,
    /// A line that fails no request.
    remark: bool,
    /// The line names another target.
    other_target: bool,
}

const fn round(named: bool, fits: bool, remark: bool) -> Round {
    Round { named, fits, remark, other_target: false }
}

/// What names its request comes first; a cause that the text does not allow comes late, another request last. Remarks are what
/// is left over.
const ROUNDS: &[Round] = &[
    round(true, true, false),
    round(false, true, false),
    round(true, true, true),
    round(false, true, true),
    round(true, false, false),
    round(false, false, false),
    Round { named: true, fits: true, remark: false, other_target: true },
];

/// Pairs incidents with lines, each once.
pub(super) fn pair(told: &[Told], lines: &[&Written], offset: i64, aliases: &BTreeMap<u32, u32>) -> Paired {
    let mut order: Vec<(i64, usize)> = told.iter().enumerate().map(|(at, told)| (told.time, at)).collect();
    order.sort_unstable();
    let mut by_worker: BTreeMap<u32, Vec<usize>> = BTreeMap::new();
    for (at, line) in lines.iter().enumerate() {
        by_worker.entry(line.pid).or_default().push(at);
    }
    let by_worker: BTreeMap<u32, InTime<'_>> = by_worker
        .into_iter()
        .map(|(pid, which)| (pid, InTime::new(lines, offset, which.into_iter())))
        .collect();
    let mut paired = Paired { line_of: vec![None; told.len()], taken: vec![false; lines.len()] };
    for round in ROUNDS {
        for (_, at) in &order {
            let (Some(told), Some(line_of)) = (told.get(*at), paired.line_of.get_mut(*at)) else { continue };
            if line_of.is_some() || told.target.is_some() != round.named {
                continue;
            }
            let Some(of) = by_worker.get(aliases.get(&told.pid).unwrap_or(&told.pid)) else { continue };
            let found = of.near(told).find(|(at, line)| {
                !paired.taken.get(*at).copied().unwrap_or(true)
                    && (line.meaning == Meaning::Remark) == round.remark
                    && (request::target(told, line) == Some(false)) == round.other_target
                    && fits(line.meaning, line.tls, told.cause) == round.fits
            });
            if let Some((line, _)) = found {
                *line_of = Some(line);
                if let Some(taken) = paired.taken.get_mut(line) {
                    *taken = true;
                }
            }
        }
    }
    paired
}

/// Workers that wrote no line under their number: in a PID namespace they know themselves by another, and what they wrote tells
/// by which. The host's number and theirs.
pub(super) fn aliases(told: &[Told], lines: &[&Written], offset: i64) -> BTreeMap<u32, u32> {
    let writers: BTreeSet<u32> = lines.iter().map(|line| line.pid).collect();
    let hosts: BTreeSet<u32> = told.iter().map(|told| told.pid).collect();
    let strange = |told: &&Told| !writers.contains(&told.pid) && told.target.is_some();
    let mut votes: BTreeMap<(u32, u32), usize> = BTreeMap::new();
    if told.iter().any(|told| strange(&told)) {
        let all = InTime::new(lines, offset, 0..lines.len());
        for told in told.iter().filter(strange) {
            let own: BTreeSet<u32> = all
                .near(told)
                .filter(|(_, line)| {
                    !hosts.contains(&line.pid)
                        && request::target(told, line) == Some(true)
                        && fits(line.meaning, line.tls, told.cause)
                })
                .map(|(_, line)| line.pid)
                .collect();
            for pid in own {
                *votes.entry((told.pid, pid)).or_default() += 1;
            }
        }
    }
    let mut order: Vec<_> = votes.into_iter().collect();
    order.sort_unstable_by_key(|(pair, count)| (std::cmp::Reverse(*count), *pair));
    let mut aliases = BTreeMap::new();
    let mut used = BTreeSet::new();
    for ((host, own), _) in order {
        if !aliases.contains_key(&host) && used.insert(own) {
            aliases.insert(host, own);
        }
    }
    aliases
}
