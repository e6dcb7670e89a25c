//! What the configuration's own story has to say of a case.

use super::{config::Change as OnDisk, watch::Watched};
use crate::{
    correlate::{
        Case,
        story::{Change, Changed, PlainPath, StaleName, Story},
    },
    event::Stage,
    moment::Moment,
};

/// Most names that are told.
const MOST_NAMES: usize = 3;

/// What concerns this case.
pub(super) fn story(case: &Case, worker: &Watched) -> Story {
    let story = Story { master: worker.master, ..Story::default() };
    if case.config.is_empty() {
        return story;
    }
    let guessed = worker.config.main.clone().filter(|_| worker.config.is_guess).map(PlainPath);
    Story { guessed, changed: changed(worker), names: names(case, worker), ..story }
}

fn changed(worker: &Watched) -> Option<Changed> {
    // Of one whose memory was read it is known what it runs with.
    let newer = if worker.exact { Vec::new() } else { worker.config.newer_than(worker.started) };
    if let [(path, changed), others @ ..] = newer.as_slice() {
        return Some(Changed {
            path: PlainPath(path.to_path_buf()),
            others: others.len(),
            how: Change::At(Moment::local(*changed)),
            started: Some(Moment::local(worker.started)),
        });
    }
    let edited = worker.config.edited();
    let [(path, changed), others @ ..] = edited.as_slice() else {
        return None;
    };
    let how = match changed {
        OnDisk::At(at) => Change::At(Moment::local(*at)),
        OnDisk::Other => Change::Other,
        OnDisk::Gone => Change::Gone,
        OnDisk::Added => Change::Added,
    };
    Some(Changed { path: PlainPath(path.clone()), others: others.len(), how, started: None })
}

fn names(case: &Case, worker: &Watched) -> Vec<StaleName> {
    // Nothing tells the address.
    if case.attempt.no_remote || matches!(case.attempt.stage, Stage::Socket | Stage::Untried) {
        return Vec::new();
    }
    let stale = worker.config.stale_names(case.attempt.remote, &case.config);
    // Several names can have had the address, and only one of them had.
    let certain = stale.iter().any(|name| name.did);
    stale.into_iter().filter(|name| name.did || !certain).take(MOST_NAMES).collect()
}
