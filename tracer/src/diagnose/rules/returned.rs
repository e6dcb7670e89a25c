//! `upstream-returned-5xx`: the server itself answered with an error; nginx failed nothing.
//!
//! Look-alikes: nginx's own 502 and 504 for a server that did not answer; an error page that nginx shows instead.

use super::{bytes, died, standing};
use crate::{
    correlate::{
        Case, ending,
        talk::{self, Answer},
    },
    diagnose::{Cause, Verdict, words},
    event::{Death, Sent, Stage, Talk, said::Said},
    nginx::InForce,
};

pub(super) fn check(case: &Case) -> Option<Verdict> {
    let talk = case.attempt.talk.as_deref().filter(|_| case.attempt.stage == Stage::Established)?;
    if !talk.said_5xx && !talk.answered_bad {
        return None;
    }
    let answer = talk::answer(case);
    let read = answer.status();
    // A header that nginx has whole and finds nothing wrong with is the server's, whatever else bears the same status.
    let whole = matches!(&answer, Answer::Head(head) if head.length.is_some() && head.fault.is_none())
        && ending::said(case).is_none();
    let hidden = talk.tls && read.is_none() && talk.status.is_none();
    let shown = if hidden { passed_on(case, talk) } else { None };
    let status = read.or(talk.status).or(shown).filter(|status| (500..=599).contains(status))?;
    let target = words::target(&case.attempt);
    let both = talk.status.zip(read).is_none_or(|(kernel, bytes)| kernel == bytes);
    let first = talk.sent_ns.zip(talk.first_read_ns).filter(|(sent, read)| read >= sent);
    let after =
        first.map(|(sent, read)| format!(" {} after the request", words::duration((read - sent) / 1000)));
    let said = if hidden {
        format!("TLS hides the response; nginx gave its client {status} right after it had read it")
    } else if read.is_some() && !talk.response.is_empty() {
        format!("its response begins {}", bytes::quoted(&talk.response))
    } else if talk.tls && talk.asked {
        format!("nginx itself has noted {status} as the status of its response")
    } else {
        format!("the status in its response is {status}")
    };
    let word = format!("http_{status}");
    let next = case.config.iter().flat_map(|c| c.settings.all("next_upstream")).find(|one| one.has(&word));
    let again = talk::tries_elsewhere(case).is_some();
    let method = ending::method(talk).unwrap_or("it").to_owned();
    let intercept =
        case.config.iter().flat_map(|c| c.settings.all("intercept_errors")).find(|one| InForce::is_on(one));
    let silent = (hidden && case.facts.said == Some(Said::Nothing))
        .then_some("nginx told its log of no error, which it does whenever such a status is its own");
    let saw = case.client_saw.filter(|_| !hidden).map(|client| {
        if client == status && again {
            format!("its client got {client} in the end")
        } else if client == status {
            format!("nginx passed it on: its client got {client}")
        } else {
            format!("its client got {client}")
        }
    });
    let last_word = last_word(case, talk);
    let verdict =
        Verdict::graded(
            Cause::UpstreamReturned5xx,
            both && talk.watched && (talk.said_5xx || whole) && !hidden,
            match last_word {
                Some((death, ..)) => format!("{target} itself answered {status}, as {} had been told to end", died::who(death)),
                None => format!("{target} itself answered {status}{}", meaning(status)),
            },
            if hidden && status == 502 { REFUSED } else { "nginx made that status itself" },
        )
        .because("status", format!("{said}{}", after.unwrap_or_default()))
        .because_if("silence", silent)
        .because_if("request", standing::request(talk))
        .because_if("client", saw)
        .because_if("next", next.map(|one| {
            let line = standing::directive(one);
            if again {
                format!("with such a status nginx asks another server, if one is left: {line}")
            } else {
                format!("nginx asks no other server for it: {method} had been sent, and non_idempotent is not set: {line}")
            }
        }))
        .because_if("intercept", intercept.map(|one| format!("nginx may show a page of its own for it: {}", standing::directive(one))))
        .because_if("dnat", words::translation(case));
    if let Some((death, sent, work_us)) = last_word {
        let verdict = verdict.because(
            "signal",
            format!(
                "{} {} after the request, and closed the connection behind its answer",
                died::told(death, sent),
                words::duration(work_us)
            ),
        );
        // One that is to stop for another reason finishes what it has begun.
        return Some(if i32::from(sent.signal) == libc::SIGABRT && died::is_time_limit(death, work_us) {
            died::limited(verdict, death, "told it to end")
        } else {
            verdict
                .fix(format!("the log of the application at {target} says what went wrong"))
                .fix("see who stops the backend while it serves requests: a restart, a deployment, a limit of its supervisor")
        });
    }
    Some(
        verdict
        .fix(match status {
            502 | 504 => format!("nginx has failed nothing: {target} is a proxy itself, and what it asked did not answer it; look there"),
            503 => format!("nginx has failed nothing: {target} refuses work (overload, maintenance, a limit); its log says why"),
            _ => format!("nginx has failed nothing: the log of the application at {target} says what went wrong"),
        })
        .fix("no time-out, buffer or firewall is concerned: the request arrived and was answered"),
    )
}

/// The signal that a process was sent while it served the request, and to which it answered with an error: who, what and how long after
/// the request, microseconds.
fn last_word<'a>(case: &'a Case, talk: &Talk) -> Option<(&'a Death, &'a Sent, u64)> {
    let death = case.facts.backend.death.as_ref()?;
    let sent = death.sent.as_ref()?;
    let (began, answered) = talk.sent_ns.zip(talk.first_read_ns)?;
    let during =
        began <= sent.time_ns && sent.time_ns <= answered && answered.abs_diff(death.time_ns) <= CLOSE_NS;
    during.then_some((death, sent, (sent.time_ns - began) / 1000))
}

/// Between a last word and the close behind it.
const CLOSE_NS: u64 = 20_000_000;

const REFUSED: &str = "nginx refused what the server sent, and TLS hides that (invalid-response, header-too-big, upstream-closed-early)";

/// The status of a response in TLS, by what nginx passed on. A 502 is as likely nginx's own, unless nginx would have said so.
fn passed_on(case: &Case, talk: &Talk) -> Option<u16> {
    let status = talk.answered.or(case.client_saw)?;
    let own = status == 502 && case.facts.said != Some(Said::Nothing);
    (!own && ending::said(case).is_none()).then_some(status)
}

/// What the usual ones stand for (RFC 9110, 15.6).
fn meaning(status: u16) -> &'static str {
    match status {
        500 => " (an error of its own)",
        501 => " (not implemented)",
        502 => " (a server behind it failed)",
        503 => " (not available)",
        504 => " (a server behind it was late)",
        505 => " (it does not take this version of HTTP)",
        _ => "",
    }
}
