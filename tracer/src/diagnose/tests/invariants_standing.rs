//! What holds for every case of a connection that stood.

use super::{invariants::Must, *};
use crate::{
    correlate::{
        ending,
        talk::{self, Answer},
    },
    event::said::{Fault, Said},
};

pub(super) fn hold(case: &Case, v: &Verdict, must: &mut Must<'_>) {
    let a = &case.attempt;
    let proven = v.confidence == Confidence::Proven;
    let of_standing = matches!(
        v.cause,
        Cause::UpstreamDied
            | Cause::UpstreamClosedEarly
            | Cause::UpstreamReset
            | Cause::KeepaliveRace
            | Cause::ReadTimeout
            | Cause::SendTimeout
    );
    let of_bytes = matches!(
        v.cause,
        Cause::HeaderTooBig
            | Cause::InvalidResponse
            | Cause::ResponseTruncated
            | Cause::TlsToPlainPort
            | Cause::PlainToTlsPort
            | Cause::TlsHandshakeFailed
            | Cause::TlsHandshakeTimeout
            | Cause::TlsCertificateRejected
            | Cause::UpstreamReturned5xx
    );
    let Some(talk) = a.talk.as_deref().filter(|_| a.stage == Stage::Established) else {
        must(!of_standing && !of_bytes, "the connection never stood");
        return;
    };
    let ended = talk.fin_ns.is_some() || a.reset || talk.told.is_some() || talk.eof;
    // nginx itself has said so.
    let said = ending::said(case).is_some();
    let backend = &case.facts.backend;
    must(!of_standing || !talk.said_5xx, "the server itself answered");
    must(!of_bytes || !proven || talk.watched || said, "what nginx read was not seen");
    let handshake = talk.tls && !talk.tls_data;
    let open = matches!(
        v.cause,
        Cause::TlsToPlainPort
            | Cause::TlsHandshakeFailed
            | Cause::TlsHandshakeTimeout
            | Cause::TlsCertificateRejected
    );
    must(!open || handshake, "no handshake was under way");
    let plain = matches!(
        v.cause,
        Cause::HeaderTooBig | Cause::InvalidResponse | Cause::ResponseTruncated | Cause::PlainToTlsPort
    );
    must(!plain || (!talk.tls && talk.got_bytes > 0) || said, "no byte of an answer in plain text came");
    // FastCGI ends a request with a record.
    let record =
        matches!(talk::answer(case), Answer::Fastcgi(found) if found.ended.is_some()) || talk.last_chunk;
    must(v.cause != Cause::ResponseTruncated || ended || said || record, "the far end did not end it");
    must(v.cause != Cause::TlsToPlainPort || !talk.response.is_empty(), "it said nothing");
    must(
        v.cause != Cause::UpstreamReturned5xx || talk.said_5xx || talk.answered_bad,
        "no such status was seen",
    );
    match v.cause {
        Cause::UpstreamDied => {
            must(ended || said, "nothing came from the far end");
            let death = backend.death.as_ref();
            must(death.is_some_and(|d| d.ending || backend.gone == Some(true)), "no process ended");
            must(
                !proven || death.is_some_and(|d| d.ending || d.sent.is_some()),
                "the process closed the connection itself, and nobody told it to end",
            );
        }
        Cause::UpstreamClosedEarly | Cause::UpstreamReset => {
            // In TLS the end can be said in a record.
            let bye = !proven && v.cause == Cause::UpstreamClosedEarly && ending::said_goodbye(case);
            must(ended || bye || said, "nothing came from the far end");
            must(
                !proven
                    || (talk.watched
                        && backend.death.as_ref().is_some_and(|d| !d.ending)
                        && backend.gone == Some(false)),
                "the process that closed may have died",
            );
            let hidden = talk.got_bytes > 0 && ending::is_hidden(case);
            must(!proven || !hidden, "TLS hides whether the response was whole");
        }
        Cause::KeepaliveRace => {
            must(talk.requests > 1 || talk.found, "the connection was new");
            must(talk.got_bytes == 0, "the server had begun to answer");
            let first = [talk.fin_ns, a.reset.then_some(a.reset_ns)].into_iter().flatten().min();
            must(
                !proven
                    || first.zip(talk.sent_ns).is_some_and(|(end, sent)| end <= sent)
                    || backend.death.as_ref().is_some_and(|d| d.unread >= talk.sent_bytes),
                "the request was first",
            );
        }
        Cause::ReadTimeout | Cause::SendTimeout => {
            must(a.app_closed && !a.exiting, "nginx did not close it, or its worker ended");
            let late = matches!(case.facts.said, Some(Said::Broken { fault: Fault::TimedOut, .. }));
            let silent = talk.fin_ns.is_none() && !a.reset;
            must((late || silent) && talk.told.is_none(), "the far end ended it");
            must(!talk.tls || talk.tls_data, "the handshake was not done");
            must(
                v.cause != Cause::SendTimeout
                    || !proven
                    || talk.unacked > 0
                    || talk.request.is_empty()
                    || talk.sent_bytes < 32,
                "all of the request was taken",
            );
        }
        Cause::ClientAborted => {
            must(case.client_gone.is_some(), "no client left");
            let unseen = talk.fin_ns.is_some() && !talk.watched;
            let learned = a.reset || talk.told.is_some() || talk.eof || unseen;
            must(!learned, "the far end ended it, and nginx may have known");
        }
        _ => {}
    }
}
