//! What the request, once it is known, adds to an explained incident: which of the configuration's lines were meant,
//! and that its client was still there. Nothing is gathered again; the verdict is made anew of the same facts.

use super::{notes, watch::Watched};
use crate::{
    correlate::{Case, request::Request},
    diagnose,
    nginx::{Asked, Candidate},
    report::Incident,
};

/// Leaves of an incident's candidates those that its request can have led to.
pub(super) fn by_request(incident: &mut Incident, worker: &Watched) {
    let Some(request) = &incident.attribution.request else { return };
    let case = &mut incident.case;
    let left = candidates(case, request, worker);
    if left.is_none() && request.status.is_none() {
        return;
    }
    if let Some(left) = left {
        case.config = left;
    }
    case.client_saw = request.status;
    incident.verdict = diagnose::diagnose(case);
    notes::add(&mut incident.verdict, case, worker);
}

/// The candidates that remain, if they are fewer.
fn candidates(case: &Case, request: &Request, worker: &Watched) -> Option<Vec<Candidate>> {
    let config = &worker.config;
    if case.config.iter().map(|candidate| candidate.passes.len()).sum::<usize>() < 2 {
        return None;
    }
    // A part that is missing, or may be another than what the worker runs, can hold any location.
    let uncertain = config.is_guess
        || config.problems.iter().any(|problem| problem.missing)
        || !config.newer_than(worker.started).is_empty()
        || (worker.master == case.attempt.worker && !config.edited().is_empty());
    // The worker's PID may have passed on to one with another configuration.
    if uncertain || config.candidates(case.attempt.remote) != case.config {
        return None;
    }
    let (target, host) = request.head.as_ref().map_or((None, None), |head| head.place());
    // An attempt has a number if all that came since the request was read was failed attempts.
    let answered = case.attempt.number.is_none();
    let located = config.model.locate_attempt(&Asked { listen: request.local, host, target, answered });
    let left = config.model.narrow(&case.config, &located);
    (left != case.config).then_some(left)
}
