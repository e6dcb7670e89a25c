//! `tls-handshake-failed`, `tls-handshake-timeout`, `tls-certificate-rejected`: nginx as a TLS client.
//!
//! Look-alikes: each other; a plain-text server (`tls-to-plain-port`), which may also hang up or say nothing; a client that
//! left; a process that died.
//!
//! With `proxy_ssl_verify on` nginx lets the handshake finish and looks at the certificate then
//! (ngx_http_upstream_ssl_handshake): it closes without having written a request. A handshake that its TLS library refuses
//! ends with an alert instead, in the clear before the ServerHello's keys, as a record of 19 bytes after them.

use super::{bytes, standing};
use crate::{
    correlate::{
        Case,
        ending::{self, End},
        talk::{
            self,
            tls::{self, Alert, Stream},
        },
    },
    diagnose::{Cause, Verdict, words},
    event::{
        Talk,
        said::{During, Fault, OTHER_NAME, Said},
    },
    nginx::InForce,
};

/// What a client's last flight has at least, bytes: a Finished of TLS 1.3 with its record (5 + 4 + 32 + 1 + 16), or of TLS
/// 1.2 with ChangeCipherSpec (6 + 5 + 8 + 16 + 16). An encrypted alert has 24, or 30 with a ChangeCipherSpec.
const FINISHED: u32 = 51;

/// TLS 1.2 as a ServerHello names it (RFC 5246, A.1).
const TLS12: u16 = 0x0303;

/// Whose doing it was, and by what.
enum How {
    /// The server's alert.
    Alert(Alert),
    /// nginx's own alert, in the clear.
    OwnAlert(Alert),
    /// nginx's own alert, encrypted: by its size.
    OwnSecretAlert,
    /// FIN.
    Closed,
    /// RST.
    Reset,
}

/// A warning that lets the handshake go on is no failure, and close_notify tells no more than FIN.
fn counts(alert: Alert) -> bool {
    alert.description != 0 && (alert.level == 2 || alert.name().is_none() || alert.description == 112)
}

/// Bytes that nginx wrote after its ClientHello.
fn after_hello(talk: &Talk) -> Option<u32> {
    let [22, 3, _, high, low, ..] = talk.first else { return None };
    talk.sent_bytes.checked_sub(5 + u32::from(u16::from_be_bytes([high, low])))
}

fn end(case: &Case, talk: &Talk) -> Option<End> {
    // What follows an answer to the client is known without the reads' hooks.
    let end = ending::end(case).or_else(|| talk.answered_bad.then_some(End::Closed))?;
    // A FIN that answers nginx's own close_notify ends nothing.
    let answers = talk.said_bye && talk.last_sent_ns.zip(talk.fin_ns).is_some_and(|(bye, fin)| fin >= bye);
    Some(if answers && talk.told.is_none() { End::Closed } else { end })
}

fn how(case: &Case, talk: &Talk, server: Option<&Stream>) -> Option<How> {
    let later = talk.alert_received.map(|(level, description)| Alert { level, description });
    if let Some(alert) = server.and_then(|s| s.alert).or(later).filter(|alert| counts(*alert)) {
        return Some(How::Alert(alert));
    }
    let own = talk.alert_sent.map(|(level, description)| Alert { level, description });
    if let Some(alert) = own.filter(|alert| alert.description != 0) {
        return Some(How::OwnAlert(alert));
    }
    match end(case, talk)? {
        End::Fin => Some(How::Closed),
        End::Reset | End::Error(libc::ECONNRESET | libc::EPIPE) => Some(How::Reset),
        End::Closed if server.is_some() && matches!(after_hello(talk), Some(24 | 30)) => {
            Some(How::OwnSecretAlert)
        }
        End::Closed | End::Error(_) | End::WorkerEnded => None,
    }
}

pub(super) fn failed(case: &Case) -> Option<Verdict> {
    let talk = talk::in_handshake(case)?;
    let server = tls::stream(&talk.response);
    if server.is_none() && !talk.response.is_empty() {
        return None;
    }
    let how = how(case, talk, server.as_ref())?;
    let target = words::target(&case.attempt);
    let sure = talk.watched && talk::tls_spoken(case) == Some(true);
    let (proof, summary, rival) = match &how {
        How::Alert(alert) => (
            sure,
            format!("{target} refused the TLS handshake: {}", alert.words()),
            "the connection carries a client's TLS, not nginx's own",
        ),
        How::OwnAlert(alert) => (
            sure,
            format!("nginx refused the TLS handshake with {target}: {}", alert.words()),
            "the connection carries a client's TLS, not nginx's own",
        ),
        How::OwnSecretAlert => (
            false,
            format!("nginx's TLS library refused what {target} sent"),
            "nginx closed for another reason, and the bytes only have the size of an alert",
        ),
        How::Closed if server.is_none() => (
            false,
            format!("{target} closed the connection in the TLS handshake, without a word"),
            "a plain-text server that hangs up on what it does not understand (tls-to-plain-port)",
        ),
        How::Reset if server.is_none() => (
            false,
            format!("{target} reset the connection in the TLS handshake"),
            "a plain-text server (tls-to-plain-port), a firewall that looks into TLS, or a process that ended",
        ),
        How::Closed => (
            false,
            format!("{target} closed the connection in the middle of the TLS handshake"),
            "the server's process ended, or it wanted something that its alert, which is encrypted, would name",
        ),
        How::Reset => (
            false,
            format!("{target} reset the connection in the middle of the TLS handshake"),
            "the server's process ended, or a firewall on the way resets",
        ),
    };
    let verdict = Verdict::graded(Cause::TlsHandshakeFailed, proof, summary, rival)
        .because("handshake", progress(talk, server.as_ref()))
        .because_if("end", ended(case, talk));
    let alert = match &how {
        How::Alert(alert) => Some((*alert, true)),
        How::OwnAlert(alert) => Some((*alert, false)),
        How::OwnSecretAlert | How::Closed | How::Reset => None,
    };
    let said = alert.map(|(alert, theirs)| {
        format!("{} sent {}, in the clear", if theirs { "the server" } else { "nginx" }, alert.words())
    });
    let verdict = verdict.because_if("alert", said);
    let mut verdict = bytes::counts(verdict, case, talk);
    verdict = match alert {
        Some((alert, theirs)) => verdict.fix(advice(case, alert, theirs)),
        None => verdict.fix(format!(
            "try it by hand, with nginx's name and protocols{}: it prints the server's alert if there is one",
            name(case).map(|name| format!(" ({name})")).unwrap_or_default()
        )),
    };
    if alert.is_none() && sends_name(case) != Some(true) {
        verdict = verdict.fix(format!("many servers hang up without a server name: {}", send_name(case)));
    }
    Some(verdict.fix_with("see what the server offers", command(case)))
}

/// Whether nginx names the server in its handshake (SNI, RFC 6066, 3); `None` where that is not known, or differs.
fn sends_name(case: &Case) -> Option<bool> {
    one(case, "ssl_server_name").map(InForce::is_on)
}

/// True if the configuration names versions or ciphers of its own.
fn narrowed(case: &Case) -> bool {
    ["ssl_protocols", "ssl_ciphers"].iter().any(|key| one(case, key).is_some_and(|one| one.line.is_some()))
}

/// How to let it do so.
fn send_name(case: &Case) -> String {
    let named = |key: &str| one(case, key).map_or_else(|| format!("proxy_{key}"), |one| one.name.clone());
    format!(
        "{} on, and {} with the server's name if the pass has an address or the name of an upstream block",
        named("ssl_server_name"),
        named("ssl_name")
    )
}

fn one<'a>(case: &'a Case, key: &str) -> Option<&'a InForce> {
    let (first, rest) = case.config.split_first()?;
    let value = first.settings.get(key)?;
    rest.iter().all(|c| c.settings.get(key).is_some_and(|v| v.value == value.value)).then_some(value)
}

/// The name that nginx sends and checks, if it is a plain one.
fn name(case: &Case) -> Option<&str> {
    let name = one(case, "ssl_name").filter(|one| one.line.is_some())?.value.as_deref()?;
    (!name.contains('$') && name.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '.' | '-')))
        .then_some(name)
}

fn command(case: &Case) -> String {
    let target = match &case.attempt.unix {
        Some(name) => format!("-unix {name}"),
        None => format!("-connect {}", case.attempt.remote),
    };
    let sends_name = sends_name(case) == Some(true);
    let name = match name(case).filter(|_| sends_name) {
        Some(name) => format!("-servername {name}"),
        None if sends_name => "-servername NAME".to_owned(),
        None => "-noservername".to_owned(),
    };
    format!("openssl s_client {target} {name} </dev/null")
}

/// The narrowest thing to do about an alert; `theirs`: the server sent it.
fn advice(case: &Case, alert: Alert, theirs: bool) -> String {
    let told = |key: &str| one(case, key).map(standing::directive);
    let or = |key: &str, name: &str| told(key).unwrap_or_else(|| name.to_owned());
    match (alert.description, theirs) {
        (70, _) => format!("let both have a version of TLS in common: nginx offers {}", or("ssl_protocols", "proxy_ssl_protocols")),
        (112, true) if sends_name(case) == Some(false) => {
            format!("nginx sent no server name, and the server knows itself only by one: {}", send_name(case))
        }
        (112, true) => format!(
            "the server does not know the name that nginx sent: {}, {}; set proxy_ssl_name to a name that it serves",
            or("ssl_server_name", "proxy_ssl_server_name"),
            or("ssl_name", "proxy_ssl_name")
        ),
        (116, true) => format!("the server wants a client certificate: {}", or("ssl_certificate", "set proxy_ssl_certificate")),
        (42..=46 | 48 | 49, true) => format!(
            "the server does not accept nginx's own certificate: {}",
            or("ssl_certificate", "see proxy_ssl_certificate")
        ),
        (40 | 71, true) if sends_name(case) == Some(false) && !narrowed(case) => format!(
            "nginx sent no server name, which many servers demand: {}; if that is not it, look at the client certificate ({}), the protocols ({}) and ciphers ({})",
            send_name(case),
            or("ssl_certificate", "proxy_ssl_certificate"),
            or("ssl_protocols", "proxy_ssl_protocols"),
            or("ssl_ciphers", "proxy_ssl_ciphers")
        ),
        (40 | 71, true) => format!(
            "the server found nothing in common, or misses something: in this order look at the client certificate ({}), the server name ({}), the protocols ({}) and ciphers ({})",
            or("ssl_certificate", "proxy_ssl_certificate"),
            or("ssl_server_name", "proxy_ssl_server_name"),
            or("ssl_protocols", "proxy_ssl_protocols"),
            or("ssl_ciphers", "proxy_ssl_ciphers")
        ),
        (120, true) => "the server speaks none of the protocols that nginx offers inside TLS (ALPN): for gRPC it must offer h2".to_owned(),
        (80, true) => "the server had an error of its own: see its log".to_owned(),
        (_, true) => "see the server's log for this handshake".to_owned(),
        (_, false) => format!(
            "nginx's TLS library does not take what the server sent (a key or a signature that is too weak, a version that is off): compare with {} and {}",
            or("ssl_protocols", "proxy_ssl_protocols"),
            or("ssl_ciphers", "proxy_ssl_ciphers")
        ),
    }
}

/// How far it came.
fn progress(talk: &Talk, server: Option<&Stream>) -> String {
    let Some(server) = server else {
        return match talk.got_bytes {
            0 => "nginx sent its ClientHello, and not a byte of an answer came".to_owned(),
            count => {
                format!("nginx sent its ClientHello; {} came, which are not told", standing::bytes(count))
            }
        };
    };
    let hello = match server.version {
        Some(version) => format!("the server chose {}", tls::version_name(version)),
        None if server.handshake.is_empty() => "no ServerHello came".to_owned(),
        None => "a ServerHello came".to_owned(),
    };
    let done = match after_hello(talk) {
        Some(bytes) if bytes >= FINISHED => ", and nginx had finished its part",
        Some(_) | None => "",
    };
    format!("nginx sent its ClientHello; {hello}{done}")
}

fn ended(case: &Case, talk: &Talk) -> Option<String> {
    let after = |ns: u64| {
        let sent = talk.sent_ns.filter(|sent| *sent <= ns)?;
        Some(words::duration((ns - sent) / 1000))
    };
    match end(case, talk)? {
        End::Fin => talk
            .fin_ns
            .and_then(after)
            .map(|t| format!("the server's FIN came {t} after nginx's first bytes")),
        End::Reset => {
            after(case.attempt.reset_ns).map(|t| format!("a RST came {t} after nginx's first bytes"))
        }
        End::Error(errno) => Some(format!("nginx was told {}", words::errno(errno))),
        End::Closed => after(case.attempt.end_ns).map(|t| format!("nginx closed {t} after its first bytes")),
        End::WorkerEnded => Some("the worker ended".to_owned()),
    }
}

/// nginx's timer for the handshake is the connect time-out, set when the first bytes are out.
pub(super) fn timeout(case: &Case) -> Option<Verdict> {
    let talk = talk::in_handshake(case)?;
    if end(case, talk)? != End::Closed
        || talk.fin_ns.is_some()
        || talk.alert_sent.is_some_and(|(_, d)| d != 0)
    {
        return None;
    }
    let server = tls::stream(&talk.response);
    if server.is_none() && !talk.response.is_empty() {
        return None;
    }
    let waited_ms = case.attempt.end_ns.saturating_sub(talk.sent_ns?) / 1_000_000;
    let slack = |ms: u64| (ms / 2).min(500) + 15;
    let timer = case
        .config
        .iter()
        .flat_map(|c| c.settings.all("connect_timeout"))
        .filter(|t| {
            t.milliseconds()
                .is_some_and(|ms| ms <= waited_ms + slack(ms) && waited_ms <= ms + 2000.max(ms / 2))
        })
        .max_by_key(|t| t.milliseconds());
    let said = ending::said(case) == Some((Fault::TimedOut, During::Handshake));
    let answered = said || case.own_status() == Some(504);
    if timer.is_none() && !answered {
        return None;
    }
    // What the timer ends is answered with 504; and who has sent Finished waits for what the server thinks of it in TLS 1.2
    // alone.
    let finished = after_hello(talk).is_some_and(|count| count >= FINISHED) && talk.got_bytes > 0;
    if finished && talk::refused(case) {
        return None;
    }
    let over = finished && server.as_ref().is_none_or(|server| server.version != Some(TLS12));
    let whole = timer.and_then(InForce::milliseconds).is_some_and(|ms| waited_ms >= ms);
    let stays = case.client_gone.is_none() || (whole && case.client_saw.is_some());
    let sure = talk.watched && talk::tls_spoken(case) == Some(true);
    let target = words::target(&case.attempt);
    let waited = words::duration(waited_ms.saturating_mul(1000));
    let verdict = Verdict::graded(
        Cause::TlsHandshakeTimeout,
        sure && (answered || stays) && !over && !talk::refused(case),
        match talk.got_bytes {
            0 => format!("{target} did not answer the TLS handshake in time"),
            _ => format!("{target} did not finish the TLS handshake in time"),
        },
        if over || talk::refused(case) {
            "nginx did not accept the server's certificate, just as the time ran out (tls-certificate-rejected)"
        } else {
            "its client left at the same time, and nginx gave up for that (client-aborted)"
        },
    )
    .because("handshake", progress(talk, server.as_ref()))
    .because(
        "timer",
        match timer {
            Some(timer) => format!(
                "nginx gave up {waited} after its first bytes: {}, which holds for the handshake as well",
                standing::directive(timer)
            ),
            None if said => format!("nginx gave up {waited} after its first bytes, by its own word for the time"),
            None => format!(
                "nginx gave up {waited} after its first bytes and answered 504, which stands for its timer"
            ),
        },
    )
    .because_if("listener", standing::listener(case));
    let verdict = bytes::counts(verdict, case, talk);
    let verdict = if talk.unacked > 0 {
        verdict.fix(
            "the ClientHello was not even acknowledged: look for lost packets and MTU between here and there",
        )
    } else if talk.got_bytes == 0 {
        verdict.fix("the server took the ClientHello and said nothing: it is stuck or overloaded, or no TLS server and waits for a line that never ends")
    } else {
        verdict.fix("the server began and did not go on: it is stuck or overloaded, or large packets (its certificates) are lost on the way (MTU)")
    };
    Some(verdict.fix_with("see how it answers by hand", command(case)))
}

/// Why nginx refused the certificate, in its own words; None if it says nothing of a certificate.
fn said(case: &Case) -> Option<Option<&str>> {
    match &case.facts.said {
        Some(Said::Certificate { reason }) => Some(reason.as_deref()),
        _ => None,
    }
}

/// Whether the wire proves that the certificate was refused; None if it does not even look so.
fn seems_refused(case: &Case, talk: &Talk, server: Option<&Stream>) -> Option<bool> {
    let hung_up =
        talk.fin_ns.is_some_and(|fin| !talk.said_bye || talk.last_sent_ns.is_some_and(|bye| fin < bye));
    if end(case, talk)? != End::Closed || hung_up || how(case, talk, server).is_some() {
        return None;
    }
    let verifies =
        |on: bool| case.config.iter().flat_map(|c| c.settings.all("ssl_verify")).any(|v| v.is_on() == on);
    // Finished, and nobody had to wait: the closing followed the server's last bytes at once.
    let finished = after_hello(talk).is_some_and(|count| count >= FINISHED) && talk.got_bytes > 0;
    let prompt = talk
        .read_ns
        .or(talk.last_sent_ns)
        .is_some_and(|ns| case.attempt.end_ns.saturating_sub(ns) < 100_000_000);
    // What a timer ends is answered with 504, and who has left gets no answer: after a 502 nobody needs to have been quick.
    let answered = talk::refused(case);
    if !verifies(true) || !finished || !(prompt || answered) {
        return None;
    }
    let sure = talk.watched && talk::tls_spoken(case) == Some(true) && !verifies(false);
    Some(sure && answered && server.is_some() && !case.attempt.exiting)
}

pub(super) fn certificate(case: &Case) -> Option<Verdict> {
    let talk = talk::in_handshake(case)?;
    let server = tls::stream(&talk.response);
    let said = said(case);
    let proof = if said.is_some() { true } else { seems_refused(case, talk, server.as_ref())? };
    let gone = case.client_gone.is_some() && !talk::refused(case);
    let target = words::target(&case.attempt);
    let trusted = one(case, "ssl_trusted_certificate").map(standing::directive);
    let reason = said.flatten();
    let verdict = Verdict::graded(
        Cause::TlsCertificateRejected,
        proof,
        format!(
            "nginx did not accept the certificate of {target}: {}",
            reason.unwrap_or("it is not signed by who is trusted, or is not for that name")
        ),
        if gone {
            "its client left at the same time, and nginx gave up for that (client-aborted)"
        } else {
            "nginx gave up after the handshake for a reason that cannot be seen on the wire"
        },
    )
    .because("handshake", progress(talk, server.as_ref()))
    .because("end", "nginx closed right after the handshake and wrote no request".to_owned())
    .because_if("verify", one(case, "ssl_verify").map(standing::directive));
    let mut verdict = bytes::counts(verdict, case, talk).fix_with(
        match reason {
            Some(_) => "see the certificate and whom it names",
            None => "see which of both it is: the first line is about the signature, the names are in the certificate",
        },
        format!("{} 2>&1 | grep -E 'Verif|subject|issuer'", command(case)),
    );
    let of = |words: &[&str]| reason.is_none_or(|reason| words.iter().any(|word| reason.contains(word)));
    // X509_verify_cert_error_string (OpenSSL, crypto/x509/x509_txt.c).
    let dated = reason.is_some() && of(&["expired", "not yet valid"]);
    let named = of(&[OTHER_NAME]);
    if dated {
        verdict = verdict
            .fix("renew the server's certificate; if it is good by its dates, set this machine's clock");
    } else if reason.is_none() || !named {
        verdict = verdict.fix(match trusted {
            Some(line) => format!("not signed by who is trusted: add the issuer to {line}"),
            None => {
                "not signed by who is trusted: name the issuer in proxy_ssl_trusted_certificate".to_owned()
            }
        });
    }
    if named {
        verdict = verdict.fix("another name: set proxy_ssl_name to one that the certificate has (and proxy_ssl_server_name on, if the server chooses by name)");
    }
    Some(verdict)
}
