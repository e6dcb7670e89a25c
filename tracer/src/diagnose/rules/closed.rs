//! `upstream-closed-early`: the far end closed before it had sent a full header. `upstream-reset`: it sent a RST.
//!
//! Look-alikes: a process that died; a kept connection that was closed before the request came (`keepalive-race`); a TLS
//! handshake that was refused; a middlebox that resets.

use super::{died, race, standing};
use crate::{
    correlate::{
        Case,
        backend::Far,
        ending::{self, End, Head},
        talk::{self, Answer, http2},
    },
    diagnose::{Cause, Verdict, words},
    event::Talk,
};

const CHILD: &str = "a child of the process that closed the connection had just ended, and may have been the one that served it \
                     (upstream-died)";
const DIED: &str = "its process ended in the same moment, which cannot be seen from here";

const REFUSED: &str = "TLS hides what came: a header that nginx refused (invalid-response, header-too-big), or the server's own 502 \
                       (upstream-returned-5xx)";

const SERVED: &str = "the response was whole by then, and nothing failed: that was not to be seen";

/// True while a TLS handshake was not done: its failures have causes of their own.
fn in_handshake(talk: &Talk) -> bool {
    talk.tls && !talk.tls_data
}

/// The exchange, if the far end ended it in a way that is not told otherwise.
fn exchange(case: &Case) -> Option<&Talk> {
    let talk = ending::of(case)?;
    let otherwise = in_handshake(talk) || died::death(case).is_some() || race::before(case) == Some(true);
    (!otherwise).then_some(talk)
}

pub(super) fn early(case: &Case) -> Option<Verdict> {
    let talk = exchange(case)?;
    let bye = talk.answered_bad && ending::said_goodbye(case);
    match ending::end(case)? {
        End::Fin => {}
        // In TLS the end is said before the FIN, and nginx closes at once.
        End::Closed if bye => {}
        End::Closed | End::Reset | End::Error(_) | End::WorkerEnded => return None,
    }
    // Frames of the connection come before any header.
    let frames = match talk::answer(case) {
        Answer::Http2(found) if !found.headers && found.too_large.is_none() && !found.frames.is_empty() => {
            Some(found)
        }
        _ => None,
    };
    let away = frames.as_ref().and_then(|found| found.goaway);
    let part = match ending::head(case) {
        Head::Part if away.is_some() => "behind GOAWAY, before a header of the response",
        Head::Part if frames.is_some() => "behind frames of HTTP/2 alone, before a header of the response",
        Head::Nothing => "without a byte of a response",
        Head::Part => "in the middle of the response's header",
        Head::Whole | Head::Unknown => return None,
    };
    let alive = standing::living_closer(case);
    let hidden = ending::is_hidden(case);
    let proof =
        talk.watched && talk.sent_ns.is_some() && alive.is_some() && race::before(case).is_none() && !hidden;
    let part = if hidden { "before nginx had a whole header from it" } else { part };
    let rival = if hidden {
        REFUSED
    } else if race::before(case).is_some() {
        "the server closed a connection that it took for idle, as the request was on its way (keepalive-race)"
    } else if case.facts.backend.told_to_end() {
        "its process had been told to end, and did (upstream-died)"
    } else if standing::shared(case) {
        CHILD
    } else {
        DIED
    };
    Some(
        Verdict::graded(
            Cause::UpstreamClosedEarly,
            proof,
            format!("{} closed the connection {part}", words::target(&case.attempt)),
            rival,
        )
        .because_if("fin", (!bye || talk.fin_ns.is_some()).then(|| fin(case, talk)))
        .because_if("tls", bye.then_some("the last TLS record from it is as long as a close_notify: it had no more to say"))
        .because_if("request", standing::request(talk))
        .because_if("response", (talk.got_bytes > 0).then(|| standing::response(talk)))
        .because_if(
            "goaway",
            away.map(|(last, error)| {
                format!(
                    "GOAWAY with error {error} {} for the connection, the last stream that it serves is {last}{}",
                    http2::error_name(error),
                    http2::stream(&talk.request).map(|own| format!(": nginx's, {own}, was to be served")).unwrap_or_default()
                )
            }),
        )
        .because_if("process", alive)
        .because_if("listener", standing::listener(case))
        .because_if("dnat", words::translation(case))
        .fix("see the backend's log for this request: it ended the connection by itself (an exception, a limit on the request, a proxy in front of it that gave up)")
        .fix("no time-out of nginx is concerned"),
    )
}

fn fin(case: &Case, talk: &Talk) -> String {
    let at = ending::far_end_ns(case);
    let what = standing::fin_word(case);
    match (at, talk.sent_ns) {
        (Some(at), Some(sent)) if at >= sent => {
            format!("{what} came {} after the request was sent", words::duration((at - sent) / 1000))
        }
        (Some(at), Some(sent)) => {
            format!("{what} came {} before the request was sent", words::duration((sent - at) / 1000))
        }
        _ => format!("{what} came before the response was whole"),
    }
}

pub(super) fn reset(case: &Case) -> Option<Verdict> {
    let talk = exchange(case)?;
    let errno = match ending::end(case)? {
        End::Reset => None,
        End::Error(errno @ (libc::ECONNRESET | libc::EPIPE)) => Some(errno),
        End::Error(_) | End::Fin | End::Closed | End::WorkerEnded => return None,
    };
    if talk.whole && talk.told.is_none() {
        return None;
    }
    // A rule of this machine that resets leaves the far end as it is.
    let survives = matches!(case.facts.backend.socket, Some(Far::Some(socket)) if !socket.closed);
    let alive = standing::living_closer(case);
    // On a unix socket the error has one origin: the far end closed with bytes of nginx's unread (unix_release_sock).
    let seen = case.attempt.reset || case.attempt.unix.is_some();
    // Of what came in TLS nobody knows whether it was all.
    let midway = talk.before && talk.sent_ns.is_none();
    let hidden = (talk.got_bytes > 0 && ending::is_hidden(case)) || (midway && ending::said(case).is_none());
    let forgotten = race::forgotten(case);
    let proof = !forgotten
        && seen
        && talk.watched
        && alive.is_some()
        && !survives
        && race::before(case).is_none()
        && !hidden;
    let rival = match (race::before(case), survives) {
        _ if forgotten => {
            "the server closed a connection that it took for idle with a RST as the request was on its way (keepalive-race), or with the request unread"
        }
        _ if hidden && case.own_status().is_some() => REFUSED,
        _ if hidden => SERVED,
        (Some(_), _) => {
            "the server closed a connection that it took for idle, as the request was on its way (keepalive-race)"
        }
        (None, _) if case.facts.backend.told_to_end() => {
            "its process had been told to end, and did (upstream-died)"
        }
        (None, _) if standing::shared(case) => CHILD,
        (None, true) => "a rule of a firewall that resets connections: the far end's socket is still there",
        (None, false) if case.facts.backend.here == Some(true) => DIED,
        (None, false) => "a firewall or load balancer on the way that resets, or a process that ended there",
    };
    let whole = talk::is_whole(case);
    let upgraded = upgrade(case);
    let when = match (talk.got_bytes, ending::head(case)) {
        _ if upgraded.is_some() => "after it had switched protocols (101)",
        _ if talk.before && talk.sent_ns.is_none() => "in an exchange that had begun before why502 watched",
        (0, _) => "before a byte of the response",
        _ if hidden => "when it had sent some of a response, or all of it",
        _ if whole => "behind its whole response, of which nothing was lost",
        (_, Head::Whole) => "in the middle of the response",
        (_, _) => "before the response's header was whole",
    };
    let verdict = Verdict::graded(
        Cause::UpstreamReset,
        proof,
        if forgotten {
            format!(
                "{} answered a request on a kept connection with a RST, as one that it does not know",
                words::target(&case.attempt)
            )
        } else {
            format!("{} reset the connection {when}", words::target(&case.attempt))
        },
        rival,
    )
    .because("rst", rst(case, talk, errno))
    .because_if("request", standing::request(talk))
    .because_if("response", (talk.got_bytes > 0).then(|| standing::response(talk)))
    .because_if(
        "kept",
        talk.idle_us.filter(|_| forgotten).map(|us| {
            format!(
                "request {} on this connection, idle for {} before; no FIN had come",
                talk.requests,
                words::duration(us)
            )
        }),
    )
    .because_if(
        "upgrade",
        upgraded.as_ref().map(|to| {
            format!(
                "the response was 101, and the connection went on as {to}: {} more were read",
                standing::bytes(behind_head(case, talk))
            )
        }),
    )
    .because_if("process", alive)
    .because_if("unread", unread(case))
    .because_if("listener", standing::listener(case))
    .because_if("dnat", words::translation(case));
    let verdict = if forgotten { verdict.fix(forgotten_on_the_way(case)) } else { verdict };
    Some(
        verdict
        .fix(if upgraded.is_some() {
            "see the server's log for this session: a reset in place of a closing handshake is a process that gave up, restarted or ended, or one that closes with bytes unread; clients must connect again by themselves"
        } else if whole {
            "no request failed by it: nginx logs it and opens a new connection for the next one; a server resets instead of closing if bytes of nginx's are unread, or with SO_LINGER at 0"
        } else {
            "see the backend's log: a server that closes without having read the whole request resets as well (a limit on the body's size, a worker that gives up)"
        })
        .fix(if case.attempt.unix.is_some() {
            "if nothing is there: nothing lies between the two ends of a unix socket, so the process at the other end closed it or ended; see the system's log for its end (a signal, no memory)"
        } else {
            "if nothing is there, look at what lies between: capture at the backend and see who sends the RST"
        }),
    )
}

/// What a connection was upgraded to.
fn upgrade(case: &Case) -> Option<String> {
    let Answer::Head(head) = talk::answer(case) else { return None };
    let to = head.upgrade.filter(|_| head.status == Some(101) && head.length.is_some())?;
    let text = String::from_utf8(to).ok().filter(|text| text.bytes().all(|b| b.is_ascii_graphic()));
    Some(text.unwrap_or_else(|| "another protocol".to_owned()))
}

/// Bytes that came behind the header.
fn behind_head(case: &Case, talk: &Talk) -> u32 {
    let Answer::Head(head) = talk::answer(case) else { return 0 };
    let head = head.length.and_then(|length| u32::try_from(length).ok()).unwrap_or(0);
    talk.got_bytes.saturating_sub(head)
}

/// What keeps a connection from being forgotten.
fn forgotten_on_the_way(case: &Case) -> String {
    let name =
        case.config.iter().find_map(|one| one.settings.get("socket_keepalive")).map(|one| one.name.as_str());
    format!(
        "who lies on the way (NAT, a load balancer, a firewall) forgets connections that lie idle, as a host does that began anew: set \
         keepalive_timeout in the upstream block below the shortest idle limit on the way; {} on helps where \
         net.ipv4.tcp_keepalive_time (7200 s, if nobody set it) is below that, too",
        name.unwrap_or("proxy_socket_keepalive")
    )
}

fn unread(case: &Case) -> Option<String> {
    let count = case.facts.backend.death.as_ref().map(|death| death.unread).filter(|count| *count > 0)?;
    Some(format!("{} lay unread at the far end when it was closed", standing::bytes(count)))
}

fn rst(case: &Case, talk: &Talk, errno: Option<i32>) -> String {
    let at = case.attempt.reset_ns;
    let ttl = case.attempt.reset_ttl.map(|ttl| format!(", TTL {ttl}")).unwrap_or_default();
    match (errno, talk.sent_ns) {
        (Some(errno), _) => format!("nginx was told {}", words::errno(errno)),
        (None, Some(sent)) if at >= sent => {
            format!("a RST came {} after the request was sent{ttl}", words::duration((at - sent) / 1000))
        }
        (None, _) => format!("a RST came {}{ttl}", words::after(case)),
    }
}
