//! `tls-to-plain-port`: nginx spoke TLS to a server that does not. `plain-to-tls-port`: the other way round.
//!
//! Look-alikes: a TLS server that hangs up or sends an alert (`tls-handshake-failed`); an answer that is broken otherwise
//! (`invalid-response`); the stream module, which carries whatever its client speaks.

use super::bytes;
use crate::{
    correlate::{
        Case,
        talk::{self, Protocol, http1, tls},
    },
    diagnose::{Cause, Verdict, words},
};

/// What HTTPS ports answer to plain HTTP: nginx, Apache httpd, Go's net/http, Jetty, Node.js behind OpenSSL.
const COMPLAINTS: [&[u8]; 5] = [
    b"The plain HTTP request was sent to HTTPS port",
    b"speaking plain HTTP to an SSL-enabled server port",
    b"Client sent an HTTP request to an HTTPS server",
    b"This combination of host and port requires TLS",
    b"Instead use the HTTPS scheme to access this URL",
];

pub(super) fn tls_to_plain(case: &Case) -> Option<Verdict> {
    let talk = talk::in_handshake(case)?;
    let answer = &talk.response[..];
    if answer.is_empty() || tls::is_record(answer) {
        return None;
    }
    let target = words::target(&case.attempt);
    let text = bytes::is_text(answer);
    let is_http = answer.starts_with(b"HTTP/");
    let speaks = if is_http { "plain HTTP" } else { "no TLS" };
    let place = bytes::in_pass(case);
    let scheme = match case.config.first().map(|c| c.module) {
        Some(crate::nginx::Module::Grpc) => "grpc:// in place of grpcs://",
        Some(crate::nginx::Module::Uwsgi) => "uwsgi_pass without suwsgi://",
        Some(crate::nginx::Module::Stream) => "proxy_ssl off",
        Some(_) | None => "http:// in place of https://",
    };
    let verdict = Verdict::graded(
        Cause::TlsToPlainPort,
        text && talk.watched,
        format!("nginx spoke TLS to {target}, which speaks {speaks} there"),
        "a broken TLS server, or something on the way that answers in its place",
    )
    .because_if("sent", bytes::began(case))
    .because("received", format!("the answer is no TLS record: {}", bytes::quoted(answer)));
    Some(
        bytes::counts(verdict, case, talk)
            .fix(format!("use {scheme}{place}, if plain text is meant there"))
            .fix("or the port on which that server speaks TLS: many services have both"),
    )
}

pub(super) fn plain_to_tls(case: &Case) -> Option<Verdict> {
    let talk = bytes::exchange(case)?;
    let spoken = talk::spoken(case)?;
    // What a client says through the stream module is its own affair.
    if talk.tls || talk.got_bytes == 0 || spoken.protocol == Protocol::Stream {
        return None;
    }
    let alert = bytes::alert(talk);
    let head = http1::response(&talk.response).ok();
    let complaint = COMPLAINTS.iter().find(|text| talk.response.windows(text.len()).any(|w| w == **text));
    let is_400 = head.as_ref().is_some_and(|head| matches!(head.status, Some(400 | 426)));
    let said = match (alert, complaint) {
        (Some(alert), _) => format!("the answer is a TLS alert in the clear: {}", alert.words()),
        (None, Some(text)) if is_400 => {
            format!("the answer is an error page that says so: {}", bytes::quoted(text))
        }
        (None, _) => return None,
    };
    let target = words::target(&case.attempt);
    let place = bytes::in_pass(case);
    let name = spoken.protocol.name();
    let verdict = Verdict::graded(
        Cause::PlainToTlsPort,
        talk.watched && spoken.sure,
        format!("nginx spoke plain {name} to {target}, which speaks TLS there"),
        "a server that speaks something else, and whose answer looks like TLS by chance",
    )
    .because_if("sent", bytes::began(case))
    .because("received", said);
    let advice = match spoken.protocol {
        Protocol::Http => format!(
            "use https:// in place of http://{place}, and proxy_ssl_server_name on; if the server chooses its certificate by name"
        ),
        Protocol::Http2 => format!("use grpcs:// in place of grpc://{place}"),
        Protocol::Uwsgi => format!("use suwsgi://{place}"),
        Protocol::Fastcgi | Protocol::Scgi | Protocol::Memcached | Protocol::Stream => {
            format!(
                "nginx speaks {name} in plain text only: point it{place} at the port that does, or put a TLS client (stunnel, or nginx's stream module with proxy_ssl on) between"
            )
        }
    };
    Some(
        bytes::counts(verdict, case, talk)
            .fix(advice)
            .fix("or the port on which that server speaks plain text"),
    )
}
