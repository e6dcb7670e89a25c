//! How a connection that stood came to its end, by whose hand and by which clock.

use super::{
    Case,
    talk::{self, http1, in_handshake},
};
use crate::{
    event::{
        Stage, Talk, Told,
        said::{During, Fault, Said},
    },
    nginx::{InForce, Module},
};

/// How much of a response's header nginx has read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Head {
    /// Not a byte of a response.
    Nothing,
    /// Its beginning, not its end.
    Part,
    /// All of it; where a protocol has none, this stands for it.
    Whole,
    /// Not told: TLS, or the bytes are not there.
    Unknown,
}

/// Whose doing the end was.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum End {
    /// The far end closed (FIN), and nginx read that.
    Fin,
    /// A RST came.
    Reset,
    /// A read or write failed with this errno, and no RST was seen.
    Error(i32),
    /// nginx closed, without having been told of an end or error.
    Closed,
    /// The worker ended.
    WorkerEnded,
}

/// Whether nginx had written all of its request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Sent {
    /// All of it.
    Whole,
    /// Not all: the socket took no more.
    Part,
    /// Not told.
    Unknown,
}

/// A time-out of nginx that fits the time that passed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fit<'a> {
    /// The directive.
    pub timeout: &'a InForce,
    /// What it counts from, in words.
    pub since: &'static str,
    /// How long that was, microseconds.
    pub waited_us: u64,
    /// The time-out had passed in full, by the kernel's clock.
    pub whole: bool,
}

/// nginx leaves a timer as it is if the new one differs by less (NGX_TIMER_LAZY_DELAY, src/event/ngx_event_timer.h), so a
/// timer that is set anew at each read can fire so much earlier.
const LAZY_MS: u64 = 300;
/// A worker that is that much later than its timer is in trouble of its own, or it was not this timer.
const LATE_MS: u64 = 2000;
/// What a socket takes at once whatever its settings: the smallest send buffer (SOCK_MIN_SNDBUF is 4608 on 64 bits) less the
/// kernel's overhead for one segment.
const ALWAYS_TAKEN: u32 = 2048;

/// The exchange, if the connection stood and the record tells of its end.
#[must_use]
pub fn of(case: &Case) -> Option<&Talk> {
    let talk = case.attempt.talk.as_deref()?;
    // In TLS, and of what began before why502, nobody knows whether the response was whole before nginx refused it.
    let whole = talk.answered_bad && !talk.tls && !talk.before;
    (case.attempt.stage == Stage::Established && !talk.said_5xx && !whole).then_some(talk)
}

/// The response came through TLS, and that its header was not whole is only told by nginx's own 502 or 504: it can have come
/// and been refused as well.
#[must_use]
pub fn is_hidden(case: &Case) -> bool {
    said(case).is_none()
        && of(case).is_some_and(|talk| {
            talk.tls && talk.tls_data && head_by_bytes(talk, module(case)) == Head::Unknown
        })
}

/// What nginx itself says was wrong with the exchange, and what it was doing; None if what was seen of the connection
/// contradicts that.
#[must_use]
pub fn said(case: &Case) -> Option<(Fault, During)> {
    let Some(Said::Broken { fault, during }) = case.facts.said else { return None };
    let (a, talk) = (&case.attempt, of(case)?);
    let read = talk.got_bytes > 0 || talk.before || !talk.watched;
    let told = talk.told.is_some() || talk.eof;
    let ended = told || a.reset || talk.fin_ns.is_some();
    let fits = match fault {
        Fault::TooBig | Fault::Invalid => read && a.app_closed && !a.exiting,
        Fault::NoHeader => read,
        Fault::ClosedEarly => ended || (talk.tls && read) || !talk.watched,
        // A FIN or a RST that arrives behind the timer is not read any more.
        Fault::TimedOut => a.app_closed && !a.exiting && !told,
    };
    fits.then_some((fault, during))
}

/// How it ended; None if that cannot be said.
#[must_use]
pub fn end(case: &Case) -> Option<End> {
    let a = &case.attempt;
    let talk = of(case)?;
    let fin = || talk.fin_ns.is_some_and(|ns| ns <= a.end_ns);
    match said(case) {
        // It does so by itself, whatever comes at the same time.
        Some((Fault::TooBig | Fault::Invalid | Fault::TimedOut, _)) => return Some(End::Closed),
        // In TLS the end is told before the FIN, and nginx closes at once.
        Some((Fault::ClosedEarly, _)) if talk.tls && talk.told.is_none() && !a.reset => {
            return Some(End::Fin);
        }
        _ => {}
    }
    Some(match talk.told {
        _ if a.reset => End::Reset,
        Some(Told::Error(errno)) => End::Error(errno),
        Some(Told::End) => End::Fin,
        None if talk.eof => End::Fin,
        // Without the hooks on reads the FIN itself is all there is.
        None if !talk.watched && fin() => End::Fin,
        None if a.app_closed && a.exiting => End::WorkerEnded,
        None if a.app_closed => End::Closed,
        None => return None,
    })
}

/// When the far end's FIN or RST came, whichever was first, CLOCK_MONOTONIC ns.
#[must_use]
pub fn far_end_ns(case: &Case) -> Option<u64> {
    let talk = of(case)?;
    let reset = case.attempt.reset.then_some(case.attempt.reset_ns).filter(|ns| *ns != 0);
    [talk.fin_ns, reset].into_iter().flatten().min()
}

/// The module that spoke, if all candidates agree.
#[must_use]
pub fn module(case: &Case) -> Option<Module> {
    let (first, rest) = case.config.split_first()?;
    rest.iter().all(|other| other.module == first.module).then_some(first.module)
}

/// How much of the header was read.
#[must_use]
pub fn head(case: &Case) -> Head {
    let Some(talk) = of(case) else { return Head::Unknown };
    let seen = head_by_bytes(talk, module(case));
    match said(case) {
        // To nginx it has none.
        Some((Fault::NoHeader, _)) => return Head::Whole,
        Some((_, During::Header)) if seen == Head::Unknown => return Head::Part,
        Some((_, During::Body)) if seen == Head::Unknown => return Head::Whole,
        _ => {}
    }
    // nginx answers in its own name as long as it has no header to pass on.
    match seen {
        Head::Unknown if talk.asked && talk.passed_on => Head::Whole,
        Head::Unknown if case.own_status().is_some() => Head::Part,
        Head::Unknown if talk.answered_bad => Head::Part,
        Head::Unknown if talk::no_status_line(case).is_some() => Head::Whole,
        seen => seen,
    }
}

fn head_by_bytes(talk: &Talk, module: Option<Module>) -> Head {
    if module == Some(Module::Stream) {
        return Head::Whole;
    }
    if !talk.watched {
        return Head::Unknown;
    }
    if talk.before && talk.sent_ns.is_none() {
        return Head::Unknown;
    }
    if talk.got_bytes == 0 {
        return Head::Nothing;
    }
    if talk.tls {
        // What came before the request went out was the handshake's.
        let after = talk.read_ns.zip(talk.last_sent_ns).is_some_and(|(read, sent)| read > sent);
        return if talk.tls_data && !after { Head::Nothing } else { Head::Unknown };
    }
    let bytes = &talk.response[..];
    if bytes.is_empty() {
        return Head::Unknown;
    }
    let whole = match module {
        Some(Module::Memcached) => bytes.contains(&b'\n'),
        Some(Module::Grpc) => has_headers_frame(bytes),
        Some(Module::Fastcgi) => [&b"\r\n\r\n"[..], b"\n\n"].iter().any(|end| find(bytes, end)),
        Some(Module::Uwsgi | Module::Scgi) => http1::head_length(bytes).is_some(),
        Some(Module::Proxy | Module::Stream) | None => {
            let prefix = bytes.iter().zip(b"HTTP/").all(|(a, b)| a == b);
            if !prefix {
                // nginx takes it for HTTP/0.9, a body without a header.
                return Head::Unknown;
            }
            http1::head_length(bytes).is_some()
        }
    };
    match whole {
        true => Head::Whole,
        false if talk.got_bytes as usize > bytes.len() => Head::Unknown,
        false => Head::Part,
    }
}

fn find(bytes: &[u8], what: &[u8]) -> bool {
    bytes.windows(what.len()).any(|window| window == what)
}

/// Frames of RFC 9113, 4.1: length (3 bytes), type, flags, stream (4).
fn has_headers_frame(mut bytes: &[u8]) -> bool {
    const HEADERS: u8 = 1;
    while let Some((head, rest)) = bytes.split_first_chunk::<9>() {
        if head[3] == HEADERS {
            return true;
        }
        let length = usize::from(head[0]) << 16 | usize::from(head[1]) << 8 | usize::from(head[2]);
        let Some(next) = rest.get(length..) else { return false };
        bytes = next;
    }
    false
}

/// Whether all of the request was out.
#[must_use]
pub fn sent(talk: &Talk) -> Sent {
    let total = whole_request(talk);
    if talk.sent_ns.is_none() {
        return Sent::Unknown;
    }
    match total {
        Some(total) if u64::from(talk.sent_bytes) < total => Sent::Part,
        Some(_) => Sent::Whole,
        None if talk.far.is_some_and(|far| far.full) => Sent::Unknown,
        // A socket whose bytes are all acknowledged takes more: nginx had none.
        None if talk.unacked == 0 || (talk.sent_bytes <= ALWAYS_TAKEN && !talk.before) => Sent::Whole,
        None => Sent::Unknown,
    }
}

/// Length of an HTTP/1 request with its body, bytes, if its head says that.
fn whole_request(talk: &Talk) -> Option<u64> {
    if talk.tls {
        return None;
    }
    let head = http1::head_length(&talk.request)?;
    let bytes = talk.request.get(..head)?;
    let mut length = 0;
    for line in bytes.split(|byte| *byte == b'\n').skip(1) {
        let Some(colon) = line.iter().position(|byte| *byte == b':') else { continue };
        let (name, value) = line.split_at(colon);
        if name.eq_ignore_ascii_case(b"transfer-encoding") {
            return None;
        }
        if name.eq_ignore_ascii_case(b"content-length") {
            length = std::str::from_utf8(value.get(1..)?).ok()?.trim().parse().ok()?;
        }
    }
    // The first line must be a request's: FastCGI and others have no such head.
    let first = bytes.split(|byte| *byte == b'\n').next()?;
    find(first, b" HTTP/1.").then_some(u64::try_from(head).ok()?.checked_add(length)?)
}

/// The method of an HTTP/1 request that was written in clear text.
#[must_use]
pub fn method(talk: &Talk) -> Option<&'static str> {
    const METHODS: [&str; 10] =
        ["GET", "HEAD", "POST", "PUT", "DELETE", "PATCH", "OPTIONS", "LOCK", "PROPFIND", "MKCOL"];
    let start: &[u8] = if talk.request.is_empty() { &talk.first } else { &talk.request };
    METHODS
        .into_iter()
        .find(|name| start.strip_prefix(name.as_bytes()).is_some_and(|rest| rest.first() == Some(&b' ')))
}

/// The values in force of a directive, by its name behind the module's prefix.
fn in_force<'a>(case: &'a Case, key: &'a str) -> impl Iterator<Item = &'a InForce> {
    case.config.iter().flat_map(move |candidate| candidate.settings.all(key))
}

/// Key of the time-out for reads: `stream` has one for both directions.
fn read_key(case: &Case) -> &'static str {
    if module(case) == Some(Module::Stream) { "timeout" } else { "read_timeout" }
}

fn send_key(case: &Case) -> &'static str {
    if module(case) == Some(Module::Stream) { "timeout" } else { "send_timeout" }
}

/// Time-outs that hold once a connection stands; empty if none is known.
pub fn timeouts(case: &Case) -> impl Iterator<Item = &InForce> {
    in_force(case, read_key(case)).chain(in_force(case, send_key(case)))
}

/// The time-out for reads, if the time fits it. Before the header has ended it counts from the end of the request (nginx
/// does not set it anew when a part of the header comes), in the body from the last bytes read.
#[must_use]
pub fn read_fit(case: &Case) -> Option<Fit<'_>> {
    let talk = of(case)?;
    let sent = talk.last_sent_ns.map(|ns| (ns, "since the request was sent", 0));
    let read = talk.read_ns.map(|ns| (ns, "since the last bytes of the response", LAZY_MS));
    let bases = match head(case) {
        Head::Nothing | Head::Part => [sent, None],
        Head::Whole => [read.or(sent), None],
        Head::Unknown => [read, sent],
    };
    bases.into_iter().flatten().find_map(|base| fit(case, read_key(case), base))
}

/// The time-out for writes, if the time fits it: it counts from the last one that the socket took.
#[must_use]
pub fn send_fit(case: &Case) -> Option<Fit<'_>> {
    let last = of(case)?.last_sent_ns?;
    fit(case, send_key(case), (last, "since the socket took the last bytes of the request", LAZY_MS))
}

fn fit<'a>(
    case: &'a Case,
    key: &'static str,
    (from_ns, since, lazy_ms): (u64, &'static str, u64),
) -> Option<Fit<'a>> {
    let waited_us = case.attempt.end_ns.saturating_sub(from_ns) / 1000;
    let waited_ms = waited_us / 1000;
    let early = |ms: u64| super::timer_slack_ms(ms) + lazy_ms.min(ms / 2);
    // A round of the loop and a lazy timer together do not make up for all of a short time-out.
    let fits =
        |ms: u64| waited_ms + early(ms) >= ms && waited_ms > ms / 4 && waited_ms <= ms + LATE_MS.max(ms / 2);
    let timeout = in_force(case, key)
        .filter(|one| one.milliseconds().is_some_and(|ms| ms > 0 && fits(ms)))
        .max_by_key(|one| one.milliseconds())?;
    let whole = timeout.milliseconds().is_some_and(|ms| waited_ms >= ms);
    Some(Fit { timeout, since, waited_us, whole })
}

/// nginx answered the client with 504 in its own name, and nothing but failed attempts came between: its timer, unless that
/// was the next attempt's (a known time-out is far from over).
#[must_use]
pub fn answered_by_timer(case: &Case) -> bool {
    if said(case).is_some_and(|(fault, _)| fault == Fault::TimedOut) {
        return true;
    }
    if of(case)
        .is_some_and(|talk| case.attempt.noted == Some(504) || (talk.before && talk.answered == Some(504)))
    {
        return true;
    }
    let own = case.own_status() == Some(504) && head(case) != Head::Whole;
    own && may_be_over(case) && !(is_hidden(case) && has_just_read(case))
}

/// What nginx read last may be what it answers with.
fn has_just_read(case: &Case) -> bool {
    const JUST_NS: u64 = 50_000_000;
    let read = of(case).and_then(|talk| talk.read_ns);
    read.is_some_and(|ns| case.attempt.end_ns.saturating_sub(ns) < JUST_NS)
}

/// The server said by TLS that it has no more to say, and the connection's end was nginx's: the last record that nginx read is an
/// alert, or as long as one is in TLS 1.3 (two bytes, the type and the cipher's tag; RFC 8446, 5.2).
#[must_use]
pub fn said_goodbye(case: &Case) -> bool {
    const ALERT: u8 = 21;
    const SEALED_ALERT: usize = 2 + 1 + 16;
    let Some(talk) = of(case).filter(|talk| talk.tls && talk.tls_data) else { return false };
    let mut rest = &talk.response[..];
    let mut bye = false;
    // All that was read must be there, in whole records.
    while let Some((head, more)) = rest.split_first_chunk::<5>() {
        let length = usize::from(u16::from_be_bytes([head[3], head[4]]));
        let Some(next) = more.get(length..) else { return false };
        bye = head[0] == ALERT || length == SEALED_ALERT;
        rest = next;
    }
    bye && rest.is_empty() && talk.got_bytes as usize == talk.response.len()
}

/// False if every time-out that is known was far from over, counted from the last write.
fn may_be_over(case: &Case) -> bool {
    let known = || [read_key(case), send_key(case)].into_iter().flat_map(|key| in_force(case, key));
    let Some(from_ns) = of(case).and_then(|talk| talk.last_sent_ns) else { return true };
    let waited_ms = case.attempt.end_ns.saturating_sub(from_ns) / 1_000_000;
    let over =
        |ms: u64| waited_ms + super::timer_slack_ms(ms) + LAZY_MS.min(ms / 2) >= ms && waited_ms > ms / 4;
    let mut times = known().filter_map(InForce::milliseconds).peekable();
    times.peek().is_none() || times.any(over)
}

/// How long the far end kept an idle connection: from the last response to its FIN or RST, microseconds; None if the
/// connection had not been idle, or if it ended after the request could have reached the far end.
#[must_use]
pub fn idle_end_us(case: &Case) -> Option<u64> {
    let talk = of(case)?;
    let (sent, idle_us) = (talk.sent_ns?, talk.idle_us?);
    let ended = far_end_ns(case)?;
    (talk.got_bytes == 0 && ended <= sent + u64::from(talk.srtt_us) * 1000)
        .then(|| (ended.saturating_sub(sent.saturating_sub(idle_us.saturating_mul(1000)))) / 1000)
}

/// True if the far end counts as failed for nginx (`max_fails`): it does until a header has come
/// (ngx_http_upstream_next calls the balancer's `free` with NGX_PEER_FAILED, ngx_http_upstream_finalize_request with 0).
#[must_use]
pub fn counts_as_failure(case: &Case) -> bool {
    if case.attempt.talk.as_deref().is_some_and(|talk| talk.said_5xx) {
        // With no server left to ask, nginx passes it on and counts nothing: that is not to be seen here.
        return talk::tries_elsewhere(case).is_some();
    }
    let gone = || case.client_gone.is_some() && read_fit(case).is_none() && send_fit(case).is_none();
    match end(case) {
        None | Some(End::WorkerEnded) => false,
        Some(End::Closed) if gone() => false,
        // The stream module counts a handshake that failed (ngx_stream_proxy_next_upstream), nothing behind it.
        Some(_) if module(case) == Some(Module::Stream) => in_handshake(case).is_some(),
        Some(_) => head(case) != Head::Whole,
    }
}
