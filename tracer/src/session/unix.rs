//! Unix sockets: which failed connects are upstream's.

use super::{serves, watch::Watched};
use crate::event::Attempt;

/// True for a connect() that has nothing to do with upstream servers: looking up users and groups, libc asks daemons by
/// unix sockets that often do not exist (nscd, systemd-userdbd, sssd), in the master and as a worker begins.
pub(super) fn is_foreign(attempt: &Attempt, worker: &Watched) -> bool {
    let leads_there = !worker.config.candidates_of(attempt).is_empty();
    // Without a line it may be a script's, but never without a request.
    (attempt.request.is_none() && !leads_there) || !serves(attempt.worker)
}
