//! `response-truncated`: the head was passed on, and the body ended early. The client and the access log have a 200.
//!
//! Look-alikes: a body that ends with its stream (that is its end); an answer to HEAD, 204 and 304, which have a length and no
//! body; nginx's own time-out in the body (`read-timeout`); a client that left; a process that died (`upstream-died`).

use super::{bytes, standing};
use crate::{
    correlate::{
        Case,
        ending::{self, End},
        talk::{self, Answer, Body},
    },
    diagnose::{Cause, Verdict, words},
    event::said::{During, Fault, Said},
};

pub(super) fn check(case: &Case) -> Option<Verdict> {
    by_bytes(case).or_else(|| by_word(case))
}

/// Where the bytes do not tell, nginx's own word does.
fn by_word(case: &Case) -> Option<Verdict> {
    let talk = bytes::exchange(case)?;
    if ending::said(case)? != (Fault::ClosedEarly, During::Body) {
        return None;
    }
    let target = words::target(&case.attempt);
    let end = match ending::end(case)? {
        End::Reset | End::Error(_) => format!("{target} reset the connection"),
        End::Fin | End::Closed | End::WorkerEnded => format!("{target} ended the connection"),
    };
    let verdict = Verdict::proven(Cause::ResponseTruncated, format!("{end} in the middle of its response"))
        .because("said", "nginx itself tells its log that the response ended too early")
        .because("end", format!("{end} before the response was whole, as nginx saw it"))
        .because_if("response", (talk.got_bytes > 0).then(|| standing::response(talk)))
        .because("client", log(case.client_saw));
    Some(advise(
        verdict.because_if("listener", standing::listener(case)).because_if("dnat", words::translation(case)),
    ))
}

/// What the access log shows.
fn log(shown: Option<u16>) -> String {
    match shown {
        Some(status) => format!(
            "the client had the status {status} by then: the access log shows {status}, and the client a body that is cut off"
        ),
        None => "the client had the head by then: the access log shows no error, and the client a body that is cut off".to_owned(),
    }
}

fn advise(verdict: Verdict) -> Verdict {
    verdict
        .fix("see the backend's log for this request: it gave up in the middle of its answer (an exception, a limit on time or memory), or what it reads from did")
        .fix("no time-out of nginx is concerned; if it is a proxy itself, look at its own upstream")
}

fn by_bytes(case: &Case) -> Option<Verdict> {
    let talk = bytes::exchange(case)?;
    if talk.answered_bad || talk.tls || talk::bad_chunk(case).is_some() {
        return None;
    }
    let answer = talk::answer(case);
    // The request was ended by its own record, which nginx has read, and nginx says that this was too early: it may as well have dropped
    // the response on purpose (X-Accel-Redirect).
    let record = matches!(&answer, Answer::Fastcgi(found) if found.ended.is_some() || talk.last_chunk)
        && matches!(case.facts.said, Some(Said::Broken { fault: Fault::ClosedEarly, .. }));
    let body = talk::body(case, &answer);
    let target = words::target(&case.attempt);
    // Trailers may stand behind the last chunk (RFC 9112, 7.1.2): a server must have been told that they are welcome.
    let trailers = [&talk.request, &talk.response].into_iter().any(|head| {
        head.split(|b| *b == b'\n').any(|line| {
            let name = line.split(|b| *b == b':').next().unwrap_or_default();
            name.eq_ignore_ascii_case(b"te") || name.eq_ignore_ascii_case(b"trailer")
        })
    });
    let (what, sure) = match body {
        Body::Short(due, came) => (format!("its head promised {due} bytes of body, and {came} came"), true),
        Body::NoLastChunk => ("the last chunk of its chunked body did not come".to_owned(), !trailers),
        Body::NoEnd => ("the record that ends a FastCGI response did not come".to_owned(), true),
        Body::Whole | Body::Open | Body::Unknown => return None,
    };
    let end = ending::end(case)?;
    let (by, who) = match end {
        End::Fin => (format!("{target} closed the connection (FIN)"), "closed"),
        End::Reset => (format!("{target} reset the connection (RST)"), "reset"),
        End::Error(errno @ (libc::ECONNRESET | libc::EPIPE)) => {
            (format!("nginx was told {} as it read", words::errno(errno)), "reset")
        }
        End::Closed if record && matches!(body, Body::Short(..)) => (
            format!("{target} ended the request (FastCGI's END_REQUEST), and nginx closed the connection"),
            "ended",
        ),
        End::Error(_) | End::Closed | End::WorkerEnded => return None,
    };
    let by_record = end == End::Closed;
    let spoken = talk::spoken(case).is_some_and(|spoken| spoken.sure);
    let has_method = talk::is_head(talk).is_some();
    // A RST of which nginx was not told came after it had closed for another reason.
    let told = talk.told.is_some() || talk.eof || by_record;
    let proof = sure && spoken && (has_method || body == Body::NoEnd) && told && talk.watched;
    let shown = case.client_saw.or(answer.status());
    let stderr = match &answer {
        Answer::Fastcgi(found) if !found.stderr.is_empty() => {
            Some(format!("on its stderr: {}", bytes::quoted(&found.stderr)))
        }
        _ => None,
    };
    Some(advise(
        Verdict::graded(
            Cause::ResponseTruncated,
            proof,
            format!(
                "{target} {who} {} in the middle of its response: {what}",
                if by_record { "the request" } else { "the connection" }
            ),
            if !sure {
                "it was whole, with trailers behind the last chunk"
            } else if !told {
                "nginx gave up by itself in the same moment"
            } else if !has_method {
                "the request was HEAD, whose answer has a length and no body"
            } else {
                "nginx spoke another protocol there than its configuration says"
            },
        )
        .because("body", what)
        .because("end", by)
        .because_if("response", (talk.got_bytes > 0).then(|| standing::response(talk)))
        .because("client", log(shown))
        .because_if("stderr", stderr)
        .because_if("listener", standing::listener(case))
        .because_if("dnat", words::translation(case)),
    ))
}
