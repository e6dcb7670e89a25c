//! How far the clock of the logs is ahead of UTC: nginx writes local time, and no zone.

use std::collections::{BTreeMap, HashMap};

use super::{Options, SECOND, Told, Written, written::Clock};
use crate::errlog::Address;

/// Zones are a whole number of these.
const QUARTER: i64 = 900;
/// Farthest.
const FARTHEST: i64 = 14 * 3600;
/// Lines of one request to one server that are looked at.
const MOST: usize = 64;

/// What decides.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Basis {
    /// The user.
    User,
    /// So many incidents have a line then, and fewer with any other.
    Incidents(usize),
    /// The machine that audits.
    Machine,
}

/// The zone of the logs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Zone {
    /// Seconds ahead of UTC.
    pub offset: i64,
    /// By what.
    pub basis: Basis,
}

/// Decides: by the user's word, else by the zone in which most incidents have a line of the same request (or, where none is
/// known, worker) and server, else by this machine's.
pub(super) fn decide(told: &[Told], lines: &[Written], options: &Options) -> Zone {
    if let Some(offset) = options.offset {
        return Zone { offset, basis: Basis::User };
    }
    let by_target = |address: Option<&Address>, target: Option<&str>, _: u32| {
        Some((address?.clone(), target?.to_owned()))
    };
    let by_worker =
        |address: Option<&Address>, _: Option<&str>, pid: u32| Some((address?.clone(), pid.to_string()));
    votes(told, lines, by_target).or_else(|| votes(told, lines, by_worker)).map_or(
        Zone { offset: options.machine, basis: Basis::Machine },
        |(offset, count)| Zone { offset, basis: Basis::Incidents(count) },
    )
}

/// The zone with the most votes, if there is one alone.
fn votes(
    told: &[Told],
    lines: &[Written],
    key: impl Fn(Option<&Address>, Option<&str>, u32) -> Option<(Address, String)>,
) -> Option<(i64, usize)> {
    let mut clocks: HashMap<(Address, String), Vec<i64>> = HashMap::new();
    for line in lines {
        let Clock::Local(second) = line.clock else { continue };
        if let Some(key) = key(line.address.as_ref(), line.target.as_deref(), line.pid) {
            let of = clocks.entry(key).or_default();
            if of.len() < MOST {
                of.push(second);
            }
        }
    }
    let mut votes: BTreeMap<i64, usize> = BTreeMap::new();
    for one in told {
        let Some(key) = key(one.address.as_ref(), one.target.as_deref(), one.pid) else { continue };
        let mut zones: Vec<i64> =
            clocks.get(&key).into_iter().flatten().filter_map(|second| zone(*second, one.time)).collect();
        zones.sort_unstable();
        zones.dedup();
        for zone in zones {
            *votes.entry(zone).or_default() += 1;
        }
    }
    let most = votes.values().copied().max()?;
    let mut best = votes.iter().filter(|(_, count)| **count == most);
    let (zone, _) = best.next()?;
    best.next().is_none().then_some((*zone, most))
}

/// The zone in which a line of this second is of that time.
fn zone(second: i64, time: i64) -> Option<i64> {
    let ahead = second * SECOND + SECOND / 2 - time;
    let zone = (ahead + QUARTER * SECOND / 2).div_euclid(QUARTER * SECOND) * QUARTER;
    (zone.abs() <= FARTHEST && (ahead - zone * SECOND).abs() <= 3 * SECOND / 2).then_some(zone)
}
