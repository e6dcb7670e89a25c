//! What the configuration's own story adds to a verdict: files that are newer than the worker, names that have
//! moved since nginx resolved them.

use super::{config::Change, watch::Watched};
use crate::{
    correlate::Case,
    diagnose::{Evidence, Fix, Verdict},
    event::Stage,
    report::moment,
};

/// Adds the notes that concern a case; they change neither cause nor confidence.
pub(super) fn add(verdict: &mut Verdict, case: &Case, worker: &Watched) {
    if case.config.is_empty() {
        return;
    }
    if let Some(main) = worker.config.main.as_ref().filter(|_| worker.config.is_guess) {
        verdict.evidence.push(Evidence {
            kind: "config-unknown",
            text: format!(
                "nginx's command line is cut off in its title: it may run with another configuration than {}",
                main.display()
            ),
        });
    }
    // Of one whose memory was read it is known what it runs with.
    let newer = if worker.exact { Vec::new() } else { worker.config.newer_than(worker.started) };
    if let [(path, changed), others @ ..] = newer.as_slice() {
        let others = and_others(others.len());
        verdict.evidence.push(Evidence {
            kind: "config-changed",
            text: format!(
                "{}{others} changed on disk at {}, after this worker started (at {}): the configuration lines may differ \
                 from what it runs",
                path.display(),
                moment(*changed),
                moment(worker.started)
            ),
        });
    } else if let [(path, changed), others @ ..] = worker.config.edited().as_slice() {
        let others = and_others(others.len());
        let what = match changed {
            Change::At(at) => format!("changed on disk at {}", moment(*at)),
            Change::Other => "is another file now".to_owned(),
            Change::Gone => "cannot be read any more".to_owned(),
            Change::Added => "was added".to_owned(),
        };
        verdict.evidence.push(Evidence {
            kind: "config-changed",
            text: format!(
                "{}{others} {what}, after nginx had read its configuration: this worker runs the lines as they were \
                 before, and so they are shown",
                path.display()
            ),
        });
    }
    if case.attempt.no_remote {
        return;
    }
    let address = case.attempt.remote;
    let stale = match case.attempt.stage {
        // Nothing tells the address.
        Stage::Socket | Stage::Untried => Vec::new(),
        Stage::Bind | Stage::Connect | Stage::SynSent | Stage::Established => {
            worker.config.stale_names(address, &case.config)
        }
    };
    // Several names can have had the address, and only one of them had.
    let certain = stale.iter().any(|name| name.did);
    for name in stale.iter().filter(|name| name.did || !certain).take(3) {
        let list: Vec<String> = name.now.iter().map(ToString::to_string).collect();
        let now = if list.is_empty() {
            "does not resolve now".to_owned()
        } else {
            format!("resolves to {} now", list.join(", "))
        };
        let text = if name.did {
            format!(
                "{} resolved to {} when why502 read the configuration, and {now}: nginx keeps the addresses that it got \
                 when it started or was reloaded",
                name.name,
                address.ip()
            )
        } else {
            format!(
                "{} {now}, not to {}: nginx keeps the addresses that it got when it started or was reloaded, and may \
                 have got this one",
                name.name,
                address.ip()
            )
        };
        verdict.evidence.push(Evidence { kind: "dns-stale", text });
        if !name.now.is_empty() {
            verdict.fix.push(Fix {
                text: format!("reload nginx, so that it resolves {} again", name.name),
                command: Some(format!("kill -HUP {}", worker.master)),
            });
        }
    }
}

pub(super) fn and_others(others: usize) -> String {
    match others {
        0 => String::new(),
        1 => " and 1 other file".to_owned(),
        more => format!(" and {more} other files"),
    }
}
