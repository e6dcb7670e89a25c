//! What kept nginx from another server of the group: a request that failed on one address need not have failed.

use super::{Cause, Evidence, Fix, Verdict, words};
use crate::{correlate::Case, event::Stage, nginx::ConfigLine};

/// Adds the lines, where they are certain to have made this failure the request's.
pub(super) fn add(verdict: &mut Verdict, case: &Case) {
    // nginx has no way on from a socket that it cannot make or bind, and asks nobody else for a client that left.
    let connecting = matches!(case.attempt.stage, Stage::Connect | Stage::SynSent);
    let [only] = case.config.as_slice() else { return };
    if !connecting || !only.exact || verdict.cause == Cause::ClientAborted {
        return;
    }
    // The status says which of the two it was; without it both must be kept from it.
    let (error, timeout) = (&only.barred.error, &only.barred.timeout);
    let (lines, word) = match case.client_saw {
        Some(502) => (error, "error"),
        Some(504) => (timeout, "timeout"),
        None if error == timeout => (error, "error timeout"),
        Some(_) | None => return,
    };
    if lines.is_empty() {
        return;
    }
    let place = |line: &ConfigLine| format!("{} ({}:{})", line.text, line.file.display(), line.line);
    let all: Vec<String> = lines.iter().map(place).collect();
    let group = only.upstream.as_deref().unwrap_or("the group");
    verdict.evidence.push(Evidence {
        kind: "no-retry",
        text: format!("{group} has another server or address, and nginx did not ask it: {}", all.join(", ")),
    });
    verdict.fix.extend(lines.iter().map(|line| Fix {
        text: format!(
            "let nginx go on to the next server when {} fails: {}",
            words::target(&case.attempt),
            words::unbar(line, word)
        ),
        command: None,
    }));
}
