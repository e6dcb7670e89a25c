//! Phrases for connections that stood.

use crate::{
    correlate::{
        Case,
        backend::{Far, Socket},
        ending::{self, Fit},
    },
    diagnose::words,
    event::Talk,
    nginx::InForce,
};

/// `1 byte`, `18 bytes`.
pub(super) fn bytes(count: u32) -> String {
    if count == 1 { "1 byte".to_owned() } else { format!("{count} bytes") }
}

/// A directive with its place: `proxy_read_timeout 1s; (/etc/nginx/conf.d/shop.conf:19)`.
pub(super) fn directive(one: &InForce) -> String {
    match &one.line {
        Some(line) => format!("{} ({}:{})", one.text, line.file.display(), line.line),
        None => one.text.clone(),
    }
}

/// How the measured time fits a time-out.
pub(super) fn fit(fit: &Fit<'_>) -> String {
    format!("{} {}: {}", words::duration(fit.waited_us), fit.since, directive(fit.timeout))
}

/// The request, its time and what the peer's stack has of it.
pub(super) fn request(talk: &Talk) -> Option<String> {
    talk.sent_ns?;
    if talk.before {
        let rest = if talk.unacked > 0 {
            format!("; {} of it are not acknowledged", bytes(talk.unacked))
        } else {
            String::new()
        };
        return Some(format!("it was sent before why502 watched{rest}"));
    }
    let method = ending::method(talk).map(|name| format!("{name}, ")).unwrap_or_default();
    let again = match talk.total_retrans {
        0 => String::new(),
        1 => ", 1 segment sent again".to_owned(),
        n => format!(", {n} segments sent again"),
    };
    let acked = match (talk.far, talk.unacked) {
        (Some(_), _) => String::new(),
        (None, 0) => ", all acknowledged by the peer's stack".to_owned(),
        (None, unacked) => format!(", {unacked} of them not acknowledged"),
    };
    Some(format!("{method}{} sent{acked}{again}", bytes(talk.sent_bytes)))
}

/// How the far end's close reached nginx.
pub(super) fn fin_word(case: &Case) -> &'static str {
    // A unix socket has no packets.
    if case.attempt.unix.is_some() { "its close" } else { "its FIN" }
}

/// What came of a response.
pub(super) fn response(talk: &Talk) -> String {
    match talk.got_bytes {
        0 => "not a byte of a response came".to_owned(),
        count => format!("{} of the response were read", bytes(count)),
    }
}

/// Who listens at the far end's address now.
pub(super) fn listener(case: &Case) -> Option<String> {
    let found = case.facts.listeners.as_ref()?.exact.first()?;
    Some(format!(
        "{}, {} of at most {} connections in its accept queue",
        words::listening(found),
        found.queued,
        found.limit
    ))
}

/// The far end's socket, when it was looked at, and who holds it.
pub(super) fn far(case: &Case) -> Option<String> {
    let backend = &case.facts.backend;
    let socket = far_socket(case)?;
    let who = holder(case);
    let state = match (socket.accepted, socket.unread) {
        (false, _) => "no process has accepted the connection yet".to_owned(),
        (true, 0) => format!("{who} has read all that arrived"),
        (true, unread) => format!("{} lie unread in the receive queue of {who}", bytes(unread)),
    };
    Some(format!("{} after the end: {state}", words::duration(backend.looked_us)))
}

pub(super) fn far_socket(case: &Case) -> Option<Socket> {
    match case.facts.backend.socket? {
        Far::None => None,
        Far::Some(socket) => Some(socket),
    }
}

/// Who holds the far end, or listens there.
pub(super) fn holder(case: &Case) -> String {
    let holder = case.facts.backend.holder.as_ref().map(|holder| holder.name.clone());
    holder.unwrap_or_else(|| "the backend".to_owned())
}

/// What its threads did.
pub(super) fn threads(case: &Case) -> Option<String> {
    let holder = case.facts.backend.holder.as_ref()?;
    Some(format!("{}: {}", holder.name, holder.threads.text()?))
}

/// php-fpm's own line about something: `pm.max_children = 5 (/etc/php/8.2/fpm/pool.d/www.conf:120)`.
pub(super) fn pool(case: &Case, key: &str) -> Option<String> {
    let line = case.facts.backend.pool.iter().find(|line| line.key == key)?;
    Some(format!("{} = {} ({})", line.key, line.value, line.place))
}

/// True if a child of the process that closed the far end has ended since the connection began: servers that fork for each
/// connection share it with the child, and who closes last is chance.
pub(super) fn shared(case: &Case) -> bool {
    let ended = case.facts.backend.death.as_ref().and_then(|death| death.child_ended_ns);
    ended.is_some_and(|ended| case.attempt.start_ns.is_none_or(|start| ended >= start))
}

/// Who closed the far end without ending.
pub(super) fn living_closer(case: &Case) -> Option<String> {
    let backend = &case.facts.backend;
    let lives = !backend.told_to_end() && backend.gone == Some(false) && !shared(case);
    let death = backend.death.as_ref().filter(|death| !death.ending && lives)?;
    Some(format!(
        "{} (pid {}) closed the connection, and was still there {} later",
        death.comm,
        death.pid,
        words::duration(backend.looked_us)
    ))
}
