//! What the request, once it is known, adds to an explained incident: which of the configuration's lines were meant,
//! and that its client was still there. Nothing is gathered again; the verdict is made anew of the same facts.

use super::{Snapshot, notes, watch::Watched};
use crate::{
    correlate::{Case, ending, request::Request},
    event::Stage,
    nginx::{Asked, Candidate, ConfigLine, Located, Module, Role, Setting},
    report::Incident,
};

/// Leaves of an incident's candidates those that its request can have led to; `place`: where nginx says that the request
/// is. True if the case has changed by that, or by what the client saw: its verdict is to be made anew.
pub(super) fn by_request(incident: &mut Incident, worker: &Watched, place: Option<&Located>) -> bool {
    let Some(request) = &incident.attribution.request else {
        return false;
    };
    let case = &mut incident.case;
    let mut narrowed = false;
    // A session of the stream module is where nginx says that it is; it has no request that could lead anywhere.
    let stream = ending::module(case) == Some(Module::Stream);
    let leads = place.is_some() || !stream;
    if leads && is_open(case) && is_certain(case, worker) {
        let located = place.cloned().unwrap_or_else(|| locate(case, request, worker));
        match case.attempt.stage {
            Stage::Bind => {
                let ip = case.attempt.remote.ip();
                let lines = bind_lines(&worker.config, ip, Some(&located.passes));
                if !lines.is_empty() {
                    incident.bind_lines = lines;
                }
            }
            // No address tells anything, so it must be certain.
            Stage::Socket => {
                case.config.extend(only_pass(&located, worker));
                narrowed = !case.config.is_empty();
            }
            // The worker's PID may have passed on to one with another configuration.
            Stage::Connect | Stage::SynSent | Stage::Established
                if worker.config.candidates_of(&case.attempt) == case.config =>
            {
                let left = worker.config.model.narrow(&case.config, &located);
                narrowed = left != case.config;
                case.config = left;
            }
            Stage::Connect | Stage::SynSent | Stage::Established | Stage::Untried => {}
        }
    }
    let saw = case.client_saw != request.status;
    case.client_saw = request.status;
    let others = case.forget_other_client(request.client);
    if narrowed {
        case.story = Some(Box::new(notes::story(case, worker)));
    }
    narrowed || others || saw
}

/// True if there is more than one pass to choose from.
fn is_open(case: &Case) -> bool {
    match case.attempt.stage {
        Stage::Socket | Stage::Bind => true,
        Stage::Untried => false,
        Stage::Connect | Stage::SynSent | Stage::Established => {
            case.config.iter().map(|candidate| candidate.passes.len()).sum::<usize>() > 1
        }
    }
}

/// True if the model is all that the worker runs: what is missing, or may be another, can hold any location.
fn is_certain(case: &Case, worker: &Watched) -> bool {
    let config = &worker.config;
    if config.is_guess || config.problems.iter().any(|problem| problem.missing) {
        return false;
    }
    // A single process may have read its files again.
    let keeps = worker.master != case.attempt.worker || config.edited().is_empty();
    keeps && worker.runs_as_shown()
}

fn locate(case: &Case, request: &Request, worker: &Watched) -> Located {
    let (target, host) = request.head.as_ref().map_or((None, None), |head| head.place());
    // An attempt has a number if all that came since the request was read was failed attempts.
    let answered = case.attempt.number.is_none();
    worker.config.model.locate_attempt(&Asked { listen: request.local, host, target, answered })
}

/// The pass that the request leads to, if nothing else is possible.
fn only_pass(located: &Located, worker: &Watched) -> Option<Candidate> {
    let pass = located.passes.first().filter(|_| located.exact)?;
    worker.config.model.of_pass(*pass)
}

/// The lines whose local address nginx tried to bind, with the passes and servers that they hold for; `among`: the
/// passes that come into question, by index, if not all.
pub(super) fn bind_lines(
    config: &Snapshot,
    ip: std::net::IpAddr,
    among: Option<&[usize]>,
) -> Vec<ConfigLine> {
    let model = &config.model;
    let mut lines: Vec<ConfigLine> = Vec::new();
    let possible = |index: &usize| among.is_none_or(|among| among.contains(index));
    for (_, pass) in model.passes.iter().enumerate().filter(|(index, _)| possible(index)) {
        let effective = model.effective(pass, Setting::Bind);
        let value = effective.value.as_deref().unwrap_or_default();
        let names_it = value.contains(&ip.to_string()) || value.contains('$');
        let Some(node) = effective.node().filter(|_| names_it) else {
            continue;
        };
        let servers =
            pass.upstream.and_then(|index| model.upstreams.get(index)).map(|u| u.servers.as_slice());
        let of_servers = servers.unwrap_or_default().iter().map(|s| model.line(Role::Server, s.node));
        for line in of_servers.chain([model.line(Role::Pass, pass.node), model.line(Role::Directive, node)]) {
            if !lines.contains(&line) {
                lines.push(line);
            }
        }
    }
    lines
}
