//! `read-timeout` and `send-timeout`: nginx's own timers on a connection that stood, and who was late. `client-aborted`: nginx
//! closed it before any of them, as its client had left.
//!
//! Look-alikes: each other; a response that nginx refuses (it closes as well); a worker that ends; a TLS handshake, whose
//! timer is the connect time-out.

use super::standing;
use crate::{
    correlate::{
        Case,
        ending::{self, End, Fit, Head, Sent},
        talk,
    },
    diagnose::{Cause, Verdict, words},
    event::{
        Talk,
        said::{During, Fault, Said},
    },
};

/// Which timer ran out, if one did.
enum Timer<'a> {
    Read(Option<Fit<'a>>),
    Send(Option<Fit<'a>>),
    /// One of both: which, the evidence does not tell.
    Either(Fit<'a>, Fit<'a>),
}

/// nginx closed the connection, and neither an end, nor an error, nor its handshake explains that.
fn closed(case: &Case) -> Option<&Talk> {
    let talk = ending::of(case).filter(|_| !is_no_answer(case))?;
    // What came behind its timer changes nothing.
    let late = ending::said(case).is_some_and(|(fault, _)| fault == Fault::TimedOut);
    // nginx reads until nothing is left: what it left of a header, it did not want.
    let refused = talk.unread > 0 && !talk.tls && ending::head(case) != Head::Whole;
    let other = ending::end(case)? != End::Closed || (talk.tls && !talk.tls_data) || talk.whole;
    (!other && talk.watched && (late || (talk.fin_ns.is_none() && !refused))).then_some(talk)
}

/// What came is no response, nor ever was to be one: how long nginx and its client waited behind it tells nothing.
fn is_no_answer(case: &Case) -> bool {
    talk::no_status_line(case).is_some()
        || ending::said(case).is_some_and(|(fault, _)| fault == Fault::NoHeader)
}

fn timer(case: &Case) -> Option<Timer<'_>> {
    let talk = closed(case)?;
    match ending::said(case) {
        // What it sends it has not sent in whole.
        Some((Fault::TimedOut, During::Request)) if talk.tls || ending::sent(talk) != Sent::Whole => {
            return Some(Timer::Send(ending::send_fit(case)));
        }
        Some((Fault::TimedOut, During::Header | During::Body)) => {
            return Some(Timer::Read(ending::read_fit(case)));
        }
        _ => {}
    }
    let sent = ending::sent(talk);
    let read = ending::read_fit(case).filter(|_| sent != Sent::Part);
    let send = ending::send_fit(case).filter(|_| sent != Sent::Whole && talk.got_bytes == 0);
    match (read, send) {
        (Some(read), Some(send)) => Some(Timer::Either(read, send)),
        (Some(read), None) => Some(Timer::Read(Some(read))),
        (None, Some(send)) => Some(Timer::Send(Some(send))),
        (None, None) if !ending::answered_by_timer(case) => None,
        (None, None) if sent == Sent::Part => Some(Timer::Send(None)),
        (None, None) if sent == Sent::Whole || talk.before => Some(Timer::Read(None)),
        (None, None) => None,
    }
}

/// Nothing but the timer can have ended it: it had run out in full or no client had left, or the client was told so.
fn certain(case: &Case, fit: Option<&Fit<'_>>) -> bool {
    ending::answered_by_timer(case)
        || fit.is_some_and(|fit| case.client_gone.is_none() || (fit.whole && case.client_saw.is_some()))
}

const CLIENT: &str = "its client left at the same time, and nginx gave up for that (client-aborted)";

pub(super) fn check(case: &Case) -> Option<Verdict> {
    let talk = closed(case)?;
    match timer(case)? {
        Timer::Read(fit) if talk.before && talk.sent_ns.is_none() => Some(read(
            case,
            talk,
            fit.as_ref(),
            false,
            "the socket took no more of the request (send-timeout)",
        )),
        Timer::Read(fit) => Some(read(case, talk, fit.as_ref(), certain(case, fit.as_ref()), CLIENT)),
        Timer::Send(fit) => Some(send(case, talk, fit.as_ref(), certain(case, fit.as_ref()), CLIENT)),
        // The socket's buffer holds what the peer does not take: the more is in it, the likelier it is full.
        Timer::Either(fit, other) if talk.unacked < 16_384 => {
            let rival =
                format!("the socket took no more of the request: {}", standing::directive(other.timeout));
            Some(read(case, talk, Some(&fit), false, &rival))
        }
        Timer::Either(other, fit) => {
            let rival =
                format!("all of it was sent and no answer came: {}", standing::directive(other.timeout));
            Some(send(case, talk, Some(&fit), false, &rival))
        }
    }
}

/// Who was late, for the summary and for advice.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Late {
    /// The path, or the host's kernel.
    Path,
    /// Nobody accepted the connection.
    Accept,
    /// The request lies unread.
    Unread,
    /// It was read and not answered.
    Answer,
    /// The host has it; no more can be seen.
    Host,
    /// It had begun to answer.
    Body,
}

fn late(case: &Case, talk: &Talk) -> Late {
    let far = standing::far_socket(case);
    if ending::head(case) == Head::Whole && talk.unacked == 0 {
        return Late::Body;
    }
    match far {
        Some(far) if !far.accepted && talk.unacked == 0 => Late::Accept,
        // php leaves the end of FastCGI's standard input unread while it works.
        Some(far) if far.unread > 0 && !talk.before && far.unread >= talk.sent_bytes && talk.unacked == 0 => {
            Late::Unread
        }
        _ if talk.unacked > 0 => Late::Path,
        Some(_) => Late::Answer,
        None => Late::Host,
    }
}

fn read(case: &Case, talk: &Talk, fit: Option<&Fit<'_>>, proof: bool, rival: &str) -> Verdict {
    let target = words::target(&case.attempt);
    let late = late(case, talk);
    let who = standing::holder(case);
    let summary = match late {
        Late::Path => format!(
            "{target} did not even acknowledge the request in time: packets are lost, or its host hangs"
        ),
        Late::Accept => format!("{target} has the request, but no process accepted the connection in time"),
        Late::Unread => format!("{who} at {target} did not read the request in time"),
        Late::Answer => format!("{who} at {target} read the request and did not answer in time"),
        Late::Host => format!("{target} acknowledged the request and did not answer in time"),
        Late::Body => format!("{target} stopped in the middle of its response"),
    };
    let verdict = Verdict::graded(Cause::ReadTimeout, proof, summary, rival)
        .because("timer", ran_out(case, fit))
        .because_if("request", standing::request(talk))
        .because("response", standing::response(talk));
    let verdict = backend(verdict, case);
    match late {
        Late::Path => verdict
            .fix("look for lost packets between here and there (a stateful firewall that forgot the connection, MTU, a host that hangs): the backend has not got the request"),
        Late::Accept => verdict
            .because_if("pool", standing::pool(case, "pm.max_children"))
            .fix("all workers of the backend are busy or stuck: more of them, or see what they do; a longer time-out makes the queue longer"),
        Late::Unread | Late::Answer | Late::Host | Late::Body => verdict
            .fix("see what the backend does with this request (its log, a stack dump of the process); it was late, not nginx"),
    }
    .fix(match fit {
        Some(fit) => format!(
            "raise {} only if requests may take that long{}",
            fit.timeout.name,
            place(fit)
        ),
        None => "raise the read time-out only if requests may take that long".to_owned(),
    })
}

fn send(case: &Case, talk: &Talk, fit: Option<&Fit<'_>>, proof: bool, rival: &str) -> Verdict {
    let target = words::target(&case.attempt);
    let who = standing::holder(case);
    let unread = standing::far_socket(case).map_or(0, |far| far.unread);
    let summary = if unread > 0 {
        format!(
            "{who} at {target} did not read the request: {} lie in its queue, and the rest could not be sent",
            standing::bytes(unread)
        )
    } else {
        format!("{target} did not take the whole request in time")
    };
    let verdict = Verdict::graded(Cause::SendTimeout, proof, summary, rival)
        .because("timer", ran_out(case, fit))
        .because_if("request", standing::request(talk));
    backend(verdict, case)
        .fix("see why the backend does not read the request's body: it answers late, waits for something else, or is stuck")
        .fix(match fit {
            Some(fit) => format!("raise {} only if the backend may pause that long between two reads{}", fit.timeout.name, place(fit)),
            None => "raise the send time-out only if the backend may pause that long between two reads".to_owned(),
        })
}

fn place(fit: &Fit<'_>) -> String {
    match &fit.timeout.line {
        Some(line) => format!(", in {}:{}", line.file.display(), line.line),
        None => String::new(),
    }
}

fn ran_out(case: &Case, fit: Option<&Fit<'_>>) -> String {
    match fit {
        Some(fit) => format!("nginx gave up {}", standing::fit(fit)),
        None => match case.client_saw {
            Some(504) => "nginx gave up and answered 504, which stands for its timer".to_owned(),
            Some(_) | None => "nginx gave up".to_owned(),
        },
    }
}

fn backend(verdict: Verdict, case: &Case) -> Verdict {
    let remote = (case.facts.backend.here == Some(false))
        .then_some("the backend is on another machine: what its process did cannot be seen from here");
    verdict
        .because_if("queue", standing::far(case))
        .because_if("threads", standing::threads(case))
        .because_if("listener", standing::listener(case))
        .because_if("remote", remote)
        .because_if("client", client_text(case))
        .because_if("dnat", words::translation(case))
}

fn client_text(case: &Case) -> Option<String> {
    // A client that got the status of a timer was there.
    let (client, reset) = case.client_gone.filter(|_| case.own_status().is_none())?;
    let how = if reset { "reset the connection" } else { "closed" };
    Some(format!("client {client} had {how}, and nginx closed its connection in the same moment"))
}

/// `client-aborted` for a connection that stood.
pub(super) fn client(case: &Case) -> Option<Verdict> {
    let talk = ending::of(case).filter(|_| !is_no_answer(case))?;
    case.client_gone?;
    // An end that nginx has not read is none of its reasons, where reads are seen.
    let ended = (talk.fin_ns.is_some() && !talk.watched) || case.attempt.reset;
    let by_nginx = ending::end(case)? == End::Closed && !ended && !talk.whole;
    if !by_nginx
        || case.client_saw.is_some_and(|status| status >= 500)
        || case.attempt.noted.is_some()
        || matches!(case.facts.said, Some(Said::Certificate { .. }))
        || timer(case).is_some()
        || super::handshake::timeout(case).is_some()
    {
        return None;
    }
    let shortest = ending::timeouts(case).filter_map(crate::nginx::InForce::milliseconds).min();
    let waited = talk.last_sent_ns.map(|ns| case.attempt.end_ns.saturating_sub(ns) / 1000);
    let before = shortest.zip(waited).map(|(ms, us)| {
        format!(
            "{} after the request was sent, before the time-out of {}",
            words::duration(us),
            words::duration(ms.saturating_mul(1000))
        )
    });
    // A response that nginx refuses makes it close as well.
    let refused = talk.got_bytes > 0 && ending::head(case) != Head::Whole;
    let verdict = Verdict::graded(
        Cause::ClientAborted,
        shortest.is_some() && talk.watched && !refused,
        if talk.unread > 0 {
            format!("the client left before nginx had read the answer of {}", words::target(&case.attempt))
        } else {
            format!("the client left before {} had answered", words::target(&case.attempt))
        },
        "nginx gave up for a reason that why502 did not see, and the client left at the same time",
    )
    .because_if("time", before)
    .because_if("request", standing::request(talk))
    .because("response", standing::response(talk))
    .because_if(
        "unread",
        (talk.unread > 0)
            .then(|| format!("{} had arrived, which nginx had not read", standing::bytes(talk.unread))),
    );
    Some(
        backend(verdict, case).fix(
            "nothing failed here: if it happens often, see why the answer takes longer than clients wait",
        ),
    )
}
