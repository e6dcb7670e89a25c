//! Phrases for what bytes tell.

use super::standing;
use crate::{
    correlate::{
        Case, ending,
        talk::{self, payload, tls},
    },
    diagnose::{Verdict, words},
    event::{Stage, Talk},
};

/// Most characters of the network's bytes in one line of evidence.
const QUOTED: usize = 60;

/// The exchange of a connection that stood, but for those of which no more is known than the server's own status.
pub(super) fn exchange(case: &Case) -> Option<&Talk> {
    let talk = case.attempt.talk.as_deref()?;
    (case.attempt.stage == Stage::Established && !talk.said_5xx).then_some(talk)
}

/// The first line of some bytes, quoted and short.
pub(super) fn quoted(bytes: &[u8]) -> String {
    let end = bytes.iter().position(|b| matches!(b, b'\r' | b'\n')).unwrap_or(bytes.len());
    let text = bytes.iter().all(|b| (0x20..0x7f).contains(b) || matches!(b, b'\r' | b'\n' | b'\t'));
    let shown = if text { bytes.get(..end) } else { bytes.get(..16) };
    payload::quoted(shown.unwrap_or(bytes), QUOTED)
}

/// What nginx wrote first, in words: no secret and no body can be in it.
pub(super) fn began(case: &Case) -> Option<String> {
    let talk = case.attempt.talk.as_deref()?;
    if talk.tls {
        return Some("nginx spoke TLS: its first bytes are a ClientHello".to_owned());
    }
    let spoken = talk::spoken(case)?;
    let bytes: &[u8] = if talk.request.is_empty() { &talk.first } else { &talk.request };
    let name = spoken.protocol.name();
    Some(if spoken.sure && spoken.protocol != talk::Protocol::Stream {
        let start = bytes.get(..8).unwrap_or(bytes);
        format!("nginx spoke {name}: its first bytes are {}", payload::quoted(start, QUOTED))
    } else {
        format!("by its configuration nginx spoke {name}")
    })
}

/// How the client fared, if that is known.
pub(super) fn client(case: &Case) -> Option<String> {
    let own = talk::refused(case);
    if let Some(status) = case.client_saw.filter(|_| own && ending::is_hidden(case)) {
        return Some(format!(
            "the client got {status}; TLS hides whether that was nginx's own or the server's"
        ));
    }
    match (case.client_saw, case.attempt.talk.as_deref()) {
        (Some(status), _) if own && status >= 500 => {
            Some(format!("nginx answered its client with {status} in its own name"))
        }
        (Some(status), _) => Some(format!("the client got {status}")),
        (None, _) if case.attempt.noted.is_some() => case
            .attempt
            .noted
            .map(|status| format!("nginx itself has noted {status} for this attempt ($upstream_status)")),
        (None, Some(talk)) if talk.answered_bad => {
            Some("nginx answered its client with 502 or 504 in its own name".to_owned())
        }
        (None, _) => None,
    }
}

/// `conf.d/shop.conf:18`, if one pass alone can be meant.
pub(super) fn pass_line(case: &Case) -> Option<String> {
    let [only] = case.config.as_slice() else { return None };
    let mut passes = only.lines.iter().filter(|line| line.role == crate::nginx::Role::Pass);
    let line = passes.next().filter(|_| passes.next().is_none())?;
    Some(format!("{}:{}", line.file.display(), line.line))
}

/// ` in conf.d/shop.conf:18`, or nothing.
pub(super) fn in_pass(case: &Case) -> String {
    pass_line(case).map(|place| format!(" in {place}")).unwrap_or_default()
}

/// Bytes and times of the exchange.
pub(super) fn counts(verdict: Verdict, case: &Case, talk: &Talk) -> Verdict {
    verdict
        .because_if("request", standing::request(talk))
        .because_if("client", client(case))
        .because_if("dnat", words::translation(case))
}

/// What a plain-text server said to a ClientHello, or to anything it does not understand.
pub(super) fn is_text(bytes: &[u8]) -> bool {
    let start = bytes.get(..16).unwrap_or(bytes);
    start.len() >= 3 && start.iter().all(|b| (0x20..0x7f).contains(b) || matches!(b, b'\r' | b'\n' | b'\t'))
}

/// The alert in the clear that answers something else than TLS.
pub(super) fn alert(talk: &Talk) -> Option<tls::Alert> {
    tls::alert(&talk.response).filter(|_| !talk.tls)
}

/// What came first, in words.
pub(super) fn received(talk: &Talk) -> Option<String> {
    if talk.response.is_empty() {
        return None;
    }
    let left = if talk.unread > 0 {
        format!("; {} had arrived and were not read", standing::bytes(talk.unread))
    } else {
        String::new()
    };
    Some(match tls::stream(&talk.response).filter(|_| talk.tls) {
        Some(stream) => {
            let version = stream.version.map_or("no version", tls::version_name);
            let alert = stream.alert.map(|alert| format!(", {}", alert.words())).unwrap_or_default();
            format!("the answer begins with TLS records ({version}{alert}){left}")
        }
        None => format!("the response begins {}{left}", quoted(&talk.response)),
    })
}
