//! Each incident with its line: the worker, the time, the server and the request must be the same.

use std::collections::{BTreeMap, BTreeSet, HashMap};

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

/// Most lines that are looked at for one incident in one round: an incident comes in the order of its line, so that the right
/// one is near the first that is free.
const MOST_TRIED: usize = 10_000;

/// Most incidents of a worker that are asked for its other number.
const MOST_ASKED: usize = 256;

/// Lines in the order of time.
struct InTime<'a> {
    lines: &'a [&'a Written],
    /// The time of each, and which it is.
    order: Vec<(i64, usize)>,
    /// The farthest that one may be from its incident.
    widest: i64,
    /// For each place in the order, that place or a later one, up to the first that is free.
    free: Vec<usize>,
}

impl<'a> InTime<'a> {
    fn new(lines: &'a [&'a Written], offset: i64, which: impl Iterator<Item = usize>) -> Self {
        let get = |at: usize| lines.get(at).copied();
        let mut order: Vec<(i64, usize)> = which.filter_map(|at| Some((get(at)?.time(offset), at))).collect();
        order.sort_unstable();
        let widest = order.iter().filter_map(|(_, at)| Some(get(*at)?.within())).max().unwrap_or(0);
        let free = (0..=order.len()).collect();
        Self { lines, order, widest, free }
    }

    /// The first place whose line can be of the time of an incident.
    fn begin(&self, told: &Told) -> usize {
        self.order.partition_point(|(time, _)| *time < told.since - self.widest)
    }

    /// The line at a place, unless it and all that follow are too late for an incident; whether it is in time and of the
    /// same server.
    fn at(&self, place: usize, told: &Told) -> Option<(usize, &'a Written, bool)> {
        let (time, at) = *self.order.get(place).filter(|(time, _)| *time <= told.time + self.widest)?;
        let line = self.lines.get(at).copied()?;
        let server = match (&line.address, &told.address) {
            (Some(line), Some(told)) => line == told,
            _ => true,
        };
        Some((at, line, server && (told.since - line.within()..=told.time + line.within()).contains(&time)))
    }

    /// The first free place from here on.
    fn free_from(&mut self, mut place: usize) -> usize {
        while let Some(next) = self.free.get(place).copied().filter(|next| *next != place) {
            let after = self.free.get(next).copied().unwrap_or(next);
            if let Some(shorter) = self.free.get_mut(place) {
                *shorter = after;
            }
            place = next;
        }
        place
    }

    /// Takes the first free line that can be an incident's and is as wanted.
    fn take(&mut self, told: &Told, taken: &mut [bool], wanted: impl Fn(&Written) -> bool) -> Option<usize> {
        let mut place = self.free_from(self.begin(told));
        let mut tried = 0;
        while tried < MOST_TRIED {
            let (at, line, near) = self.at(place, told)?;
            let is_taken = taken.get_mut(at)?;
            if *is_taken {
                // By another list that holds it.
                *self.free.get_mut(place)? = place + 1;
            } else if near && wanted(line) {
                *is_taken = true;
                *self.free.get_mut(place)? = place + 1;
                return Some(at);
            } else {
                tried += 1;
            }
            place = self.free_from(place + 1);
        }
        None
    }

    /// All that can be of the time of an incident and are of the same server.
    fn near(&self, told: &Told) -> impl Iterator<Item = &'a Written> {
        (self.begin(told)..)
            .map_while(move |place| self.at(place, told))
            .filter_map(|(_, line, near)| near.then_some(line))
            .take(MOST_TRIED)
    }
}

/// The lines of a worker.
struct Worker<'a> {
    all: InTime<'a>,
    /// Those of one target.
    by_target: HashMap<&'a str, InTime<'a>>,
    /// Those that name none, or not the whole.
    of_unknown: InTime<'a>,
}

impl<'a> Worker<'a> {
    fn new(lines: &'a [&'a Written], offset: i64, own: &[usize]) -> Self {
        let mut by_target: HashMap<&str, Vec<usize>> = HashMap::new();
        let mut unknown = Vec::new();
        for at in own {
            match lines.get(*at).and_then(|line| line.target.as_deref().filter(|_| !line.cut)) {
                Some(target) => by_target.entry(target).or_default().push(*at),
                None => unknown.push(*at),
            }
        }
        let in_time = |which: Vec<usize>| InTime::new(lines, offset, which.into_iter());
        Self {
            all: in_time(own.to_vec()),
            by_target: by_target.into_iter().map(|(target, which)| (target, in_time(which))).collect(),
            of_unknown: in_time(unknown),
        }
    }

    fn take(&mut self, told: &Told, taken: &mut [bool], round: &Round) -> Option<usize> {
        let wanted = |line: &Written| {
            (line.meaning == Meaning::Remark) == round.remark
                && (request::target(told, line) == Some(false)) == round.other_target
                && fits(line.meaning, line.tls, told.cause) == round.fits
        };
        match told.target.as_deref().filter(|_| !told.truncated && !round.other_target) {
            Some(target) => self
                .by_target
                .get_mut(target)
                .and_then(|own| own.take(told, taken, wanted))
                .or_else(|| self.of_unknown.take(told, taken, wanted)),
            None => self.all.take(told, taken, wanted),
        }
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
    let mut workers: BTreeMap<u32, Worker<'_>> =
        by_worker.into_iter().map(|(pid, own)| (pid, Worker::new(lines, offset, &own))).collect();
    let mut paired = Paired { line_of: vec![None; told.len()], taken: vec![false; lines.len()] };
    for round in ROUNDS {
        for (_, at) in &order {
            let (Some(told), Some(line_of)) = (told.get(*at), paired.line_of.get_mut(*at)) else { continue };
            if line_of.is_some() || told.target.is_some() != round.named {
                continue;
            }
            let pid = aliases.get(&told.pid).unwrap_or(&told.pid);
            let Some(worker) = workers.get_mut(pid) else { continue };
            *line_of = worker.take(told, &mut paired.taken, round);
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
        let mut asked: BTreeMap<u32, usize> = BTreeMap::new();
        for told in told.iter().filter(strange) {
            let asked = asked.entry(told.pid).or_default();
            *asked += 1;
            if *asked > MOST_ASKED {
                continue;
            }
            let own: BTreeSet<u32> = all
                .near(told)
                .filter(|line| {
                    !hosts.contains(&line.pid)
                        && request::target(told, line) == Some(true)
                        && fits(line.meaning, line.tls, told.cause)
                })
                .map(|line| line.pid)
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
