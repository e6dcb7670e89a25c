//! `upstream-returned-5xx`: the server itself answered with an error; nginx failed nothing.
//!
//! Look-alikes: nginx's own 502 and 504 for a server that did not answer; an error page that nginx shows instead.

use super::{bytes, standing};
use crate::{
    correlate::{Case, talk},
    diagnose::{Cause, Verdict, words},
    event::Stage,
    nginx::InForce,
};

pub(super) fn check(case: &Case) -> Option<Verdict> {
    let talk = case.attempt.talk.as_deref().filter(|_| case.attempt.stage == Stage::Established)?;
    let read = talk::answer(case).status();
    let status = read.or(talk.status).filter(|status| (500..=599).contains(status))?;
    if !talk.said_5xx && !talk.answered_bad {
        return None;
    }
    let target = words::target(&case.attempt);
    let both = talk.status.zip(read).is_none_or(|(kernel, bytes)| kernel == bytes);
    let first = talk.sent_ns.zip(talk.first_read_ns).filter(|(sent, read)| read >= sent);
    let after =
        first.map(|(sent, read)| format!(" {} after the request", words::duration((read - sent) / 1000)));
    let said = if read.is_some() && !talk.response.is_empty() {
        format!("its response begins {}", bytes::quoted(&talk.response))
    } else {
        format!("the status in its response is {status}")
    };
    let word = format!("http_{status}");
    let next = case.config.iter().flat_map(|c| c.settings.all("next_upstream")).find(|one| one.has(&word));
    let intercept =
        case.config.iter().flat_map(|c| c.settings.all("intercept_errors")).find(|one| InForce::is_on(one));
    let saw = case.client_saw.map(|client| {
        if client == status {
            format!("nginx passed it on: its client got {client}")
        } else {
            format!("its client got {client}")
        }
    });
    Some(
        Verdict::graded(
            Cause::UpstreamReturned5xx,
            both && talk.watched && talk.said_5xx,
            format!("{target} itself answered {status}{}", meaning(status)),
            "nginx made that status itself",
        )
        .because("status", format!("{said}{}", after.unwrap_or_default()))
        .because_if("request", standing::request(talk))
        .because_if("client", saw)
        .because_if("next", next.map(|one| format!("with such a status nginx asks another server, if there is one: {}", standing::directive(one))))
        .because_if("intercept", intercept.map(|one| format!("nginx may show a page of its own for it: {}", standing::directive(one))))
        .because_if("dnat", words::translation(case))
        .fix(match status {
            502 | 504 => format!("nginx has failed nothing: {target} is a proxy itself, and what it asked did not answer it; look there"),
            503 => format!("nginx has failed nothing: {target} refuses work (overload, maintenance, a limit); its log says why"),
            _ => format!("nginx has failed nothing: the log of the application at {target} says what went wrong"),
        })
        .fix("no time-out, buffer or firewall is concerned: the request arrived and was answered"),
    )
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
