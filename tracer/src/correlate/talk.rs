//! What the bytes and times of a connection that stood say: which protocol nginx spoke, whether the answer was one of it and
//! whole, and whether there was a failure at all.

pub mod fastcgi;
pub mod http1;
pub mod http2;
pub mod memcached;
pub mod payload;
pub mod tls;

use super::{
    Case,
    ending::{self, End, Head as Seen},
};
use crate::{
    event::{
        Stage, Talk, Told,
        said::{During, Fault, Said},
    },
    nginx::{Candidate, InForce, Module},
};

/// A protocol that nginx speaks to an upstream server.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Protocol {
    /// HTTP/1.0 and 1.1.
    Http,
    /// FastCGI.
    Fastcgi,
    /// uwsgi.
    Uwsgi,
    /// SCGI.
    Scgi,
    /// HTTP/2: gRPC, and `proxy_http_version 2`.
    Http2,
    /// memcached.
    Memcached,
    /// Whatever the client speaks: the stream module.
    Stream,
}

impl Protocol {
    /// Name for people.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Http => "HTTP",
            Self::Fastcgi => "FastCGI",
            Self::Uwsgi => "uwsgi",
            Self::Scgi => "SCGI",
            Self::Http2 => "HTTP/2",
            Self::Memcached => "memcached",
            Self::Stream => "a stream",
        }
    }

    fn of_module(module: Module) -> Self {
        match module {
            Module::Proxy => Self::Http,
            Module::Fastcgi => Self::Fastcgi,
            Module::Uwsgi => Self::Uwsgi,
            Module::Scgi => Self::Scgi,
            Module::Grpc => Self::Http2,
            Module::Memcached => Self::Memcached,
            Module::Stream => Self::Stream,
        }
    }

    /// By the first bytes that nginx wrote; `None` where they tell nothing.
    fn of_bytes(talk: &Talk) -> Option<Self> {
        let start: &[u8] = if talk.request.is_empty() { &talk.first } else { &talk.request };
        if talk.tls || start.iter().all(|b| *b == 0) {
            return None;
        }
        let digits = start.iter().take_while(|b| b.is_ascii_digit()).count();
        match start {
            [1, 1, 0, 1, ..] => Some(Self::Fastcgi),
            _ if start.iter().zip(http2::PREFACE).all(|(a, b)| a == b) => Some(Self::Http2),
            [0, _, _, 1, ..] => Some(Self::Http2),
            [0, _, _, 0, ..] => Some(Self::Uwsgi),
            _ if digits > 0 && start.get(digits) == Some(&b':') => Some(Self::Scgi),
            _ if start.starts_with(b"get ") || start.starts_with(b"gets ") => Some(Self::Memcached),
            _ if http1::method(start).is_some() => Some(Self::Http),
            _ => None,
        }
    }
}

/// A protocol, and whether both the configuration and the bytes say so.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Spoken {
    /// What was spoken.
    pub protocol: Protocol,
    /// The bytes that nginx wrote agree.
    pub sure: bool,
}

/// Which protocol nginx spoke inside the connection; `None` if the lines that lead there differ, none is known, or the bytes
/// are of another.
#[must_use]
pub fn spoken(case: &Case) -> Option<Spoken> {
    let talk = case.attempt.talk.as_deref()?;
    let module = Protocol::of_module(ending::module(case)?);
    Some(match (module, Protocol::of_bytes(talk)) {
        (Protocol::Stream, _) => Spoken { protocol: Protocol::Stream, sure: true },
        (protocol, None) => Spoken { protocol, sure: false },
        (Protocol::Http, Some(Protocol::Http2)) => Spoken { protocol: Protocol::Http2, sure: true },
        (protocol, Some(bytes)) if protocol == bytes => Spoken { protocol, sure: true },
        (_, Some(_)) => return None,
    })
}

/// Whether nginx itself spoke TLS there, not a client through it: `Some(true)` if the configuration and the bytes say so,
/// `None` if only the bytes do.
#[must_use]
pub fn tls_spoken(case: &Case) -> Option<bool> {
    let talk = case.attempt.talk.as_deref()?;
    let says = |wanted: bool| case.config.iter().all(|c| c.settings.tls == Some(wanted));
    match (talk.tls, case.config.is_empty()) {
        (true, false) if says(true) => Some(true),
        (true, false) if case.config.iter().any(|c| c.settings.tls == Some(false)) => Some(false),
        (true, _) => None,
        (false, _) => Some(false),
    }
}

/// The exchange, if its TLS handshake was under way: no request was written.
#[must_use]
pub fn in_handshake(case: &Case) -> Option<&Talk> {
    let talk = case.attempt.talk.as_deref()?;
    let open = case.attempt.stage == Stage::Established && talk.tls && !talk.tls_data && !talk.said_5xx;
    let open = open && (ending::module(case) != Some(Module::Stream) || is_broken_handshake(case, talk));
    (open && tls_spoken(case) != Some(false)).then_some(talk)
}

/// What passes through a stream may be as short as an alert, so that its size tells nothing ([`Talk::tls_data`]): a handshake has come
/// to nothing only where the server said nothing, or no TLS, or either side refused it in the clear, or nginx says so.
fn is_broken_handshake(case: &Case, talk: &Talk) -> bool {
    let is_tls = |bytes: &[u8]| matches!(bytes, [0x14..=0x17, 3, ..]);
    talk.got_bytes == 0
        || talk.alert_sent.is_some()
        || talk.alert_received.is_some()
        || !(talk.response.is_empty() || is_tls(&talk.response))
        || matches!(ending::said(case), Some((_, During::Handshake)))
        || matches!(case.facts.said, Some(Said::Certificate { .. }))
}

/// nginx answered the client with 502 in its own name after this exchange, and nothing but failed attempts came between the
/// request and it; or it says itself that it refused what came.
#[must_use]
pub fn refused(case: &Case) -> bool {
    let Some(talk) = case.attempt.talk.as_deref() else { return false };
    let own = case.own_status() == Some(502);
    let bad = talk.answered_bad && case.attempt.noted.or(talk.answered).is_none_or(|status| status == 502);
    let said = ending::said(case).is_some_and(|(fault, _)| matches!(fault, Fault::Invalid | Fault::TooBig));
    (own || bad || said) && talk.status.is_none_or(|status| status < 500)
}

/// The first bytes of a response as what they should be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Answer {
    /// Nothing came.
    Nothing,
    /// It is not told: TLS, no payload, or another protocol.
    Unknown,
    /// HTTP/1, or a CGI head.
    Head(http1::Head),
    /// Where HTTP/1 was due: no status line; the first wrong byte.
    NoStatusLine(usize),
    /// FastCGI.
    Fastcgi(fastcgi::Answer),
    /// HTTP/2.
    Http2(http2::Answer),
    /// memcached.
    Memcached(memcached::Answer),
}

impl Answer {
    /// The status that it names.
    #[must_use]
    pub fn status(&self) -> Option<u16> {
        match self {
            Self::Head(head) => head.status,
            Self::Fastcgi(found) => found.head.status,
            Self::Nothing | Self::Unknown | Self::NoStatusLine(_) | Self::Http2(_) | Self::Memcached(_) => {
                None
            }
        }
    }
}

/// Reads the response as the protocol that nginx spoke.
#[must_use]
pub fn answer(case: &Case) -> Answer {
    let Some(talk) = case.attempt.talk.as_deref() else { return Answer::Unknown };
    if talk.before && talk.sent_ns.is_none() {
        return Answer::Unknown;
    }
    if talk.got_bytes == 0 {
        return Answer::Nothing;
    }
    let bytes = &talk.response[..];
    if talk.tls || bytes.is_empty() {
        return Answer::Unknown;
    }
    // Where the configuration does not tell, the bytes that nginx wrote may; such an answer proves nothing.
    let Some(protocol) = spoken(case).map(|spoken| spoken.protocol).or_else(|| Protocol::of_bytes(talk))
    else {
        return Answer::Unknown;
    };
    // What later versions refuse is right where nginx has taken the header.
    let taken = |mut head: http1::Head| {
        let passed =
            (talk.asked && talk.passed_on) || (case.client_saw.is_some() && case.client_saw == head.status);
        if passed {
            head.fault.take_if(|fault| fault.kind.is_new());
        }
        Answer::Head(head)
    };
    match protocol {
        Protocol::Http => http1::response(bytes).map_or_else(Answer::NoStatusLine, taken),
        // nginx takes either there.
        Protocol::Uwsgi | Protocol::Scgi => {
            Answer::Head(http1::response(bytes).unwrap_or_else(|_| http1::cgi(bytes)))
        }
        Protocol::Fastcgi => Answer::Fastcgi(fastcgi::answer(bytes)),
        Protocol::Http2 => Answer::Http2(http2::answer(bytes)),
        Protocol::Memcached => Answer::Memcached(memcached::answer(bytes)),
        Protocol::Stream => Answer::Unknown,
    }
}

/// Where a chunked body is none, with all that was read there to be looked at: the offset in the response of the first byte that fits no
/// chunk, and how many chunks came before it. None where nginx has no use for the body.
#[must_use]
pub fn bad_chunk(case: &Case) -> Option<(usize, usize)> {
    let talk = case.attempt.talk.as_deref().filter(|talk| talk.watched && !talk.before)?;
    let is_proxy = spoken(case).is_some_and(|spoken| spoken.protocol == Protocol::Http);
    let Answer::Head(head) = answer(case) else { return None };
    let whole = head.fault.is_none() && head.chunked && talk.got_bytes as usize <= talk.response.len();
    let used = !head.is_bodyless() && is_head(talk) != Some(true) && !is_dropped_on_purpose(case, &head);
    if !is_proxy || !whole || !used || head.status == Some(101) {
        return None;
    }
    let start = head.length?;
    let body = talk.response.get(start..)?;
    // Of a recording that left it out nothing can be told.
    let masked = body.iter().all(|byte| *byte == b'x');
    match http1::chunks(body) {
        _ if masked => None,
        http1::Chunks::Bad(at, before) => Some((start + at, before)),
        http1::Chunks::Ended | http1::Chunks::Open => None,
    }
}

/// Where HTTP/1 was due and no status line came, which nginx takes for HTTP/0.9: the first byte that does not fit one. None where the
/// beginning of the response may not be its beginning, and for an alert of TLS.
#[must_use]
pub fn no_status_line(case: &Case) -> Option<usize> {
    let talk = case.attempt.talk.as_deref().filter(|talk| talk.watched && !talk.before)?;
    spoken(case).filter(|spoken| spoken.protocol == Protocol::Http)?;
    match answer(case) {
        Answer::NoStatusLine(at) if tls::alert(&talk.response).is_none() => Some(at),
        _ => None,
    }
}

/// How much of a response's body came.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Body {
    /// All of it, or it has none.
    Whole,
    /// Less than its length says: bytes due, and bytes that came at most.
    Short(u64, u64),
    /// It is chunked, and the last chunk did not come.
    NoLastChunk,
    /// FastCGI, and its end did not come.
    NoEnd,
    /// Its end is the end of the stream.
    Open,
    /// The header has not ended, as far as it was seen, or this cannot be told.
    Unknown,
}

/// How much of the body came, as far as the head tells.
#[must_use]
pub fn body(case: &Case, answer: &Answer) -> Body {
    let Some(talk) = case.attempt.talk.as_deref() else { return Body::Unknown };
    // All that nginx read is there to be looked at.
    let all = talk.got_bytes as usize <= talk.response.len();
    let got = u64::from(talk.got_bytes);
    match answer {
        Answer::Head(head) => http_body(talk, head, all, got),
        Answer::Fastcgi(found) => {
            let Some(end) = found.head_end else { return Body::Unknown };
            if found.head.is_bodyless() || is_head(talk) != Some(false) && found.head.content_length.is_some()
            {
                return Body::Whole;
            }
            let most = if all { found.body as u64 } else { got.saturating_sub(end as u64) };
            match found.head.content_length {
                Some(due) if most < due => Body::Short(due, most),
                _ if found.ended.is_some() || talk.whole || talk.last_chunk => Body::Whole,
                _ if all => Body::NoEnd,
                _ => Body::Unknown,
            }
        }
        Answer::Memcached(memcached::Answer::Missing) => Body::Whole,
        Answer::Memcached(memcached::Answer::Value(start, due)) => {
            // `\r\nEND\r\n` follows the value.
            let came = got.saturating_sub(*start as u64);
            if came < due.saturating_add(7) { Body::Short(*due, came.min(*due)) } else { Body::Whole }
        }
        Answer::Http2(found) if found.ended => Body::Whole,
        Answer::Nothing
        | Answer::Unknown
        | Answer::NoStatusLine(_)
        | Answer::Http2(_)
        | Answer::Memcached(_) => Body::Unknown,
    }
}

fn http_body(talk: &Talk, head: &http1::Head, all: bool, got: u64) -> Body {
    if head.fault.is_some() || head.status.is_none() {
        return Body::Unknown;
    }
    if head.status == Some(101) {
        return if head.length.is_some() { Body::Open } else { Body::Unknown };
    }
    let by_head = is_head(talk);
    if head.length.is_some() && (head.is_bodyless() || by_head == Some(true)) {
        return Body::Whole;
    }
    let Some(length) = head.length else {
        // The header has not ended among the bytes that were kept; what is behind them is its rest, and the body.
        let most = got.saturating_sub(talk.response.len() as u64);
        return match head.content_length {
            Some(due)
                if !all && !head.chunked && !head.is_bodyless() && by_head == Some(false) && most < due =>
            {
                Body::Short(due, most)
            }
            _ if talk.whole || (head.chunked && talk.last_chunk) => Body::Whole,
            _ => Body::Unknown,
        };
    };
    let came = got.saturating_sub(length as u64);
    if head.chunked {
        let chunks = talk.response.get(length..).unwrap_or_default();
        // By all of its bytes, where they are there; else by the last of them.
        let ended =
            if all { http1::chunks(chunks) == http1::Chunks::Ended } else { talk.last_chunk || talk.whole };
        return if ended { Body::Whole } else { Body::NoLastChunk };
    }
    match head.content_length {
        Some(due) if came >= due => Body::Whole,
        // An answer to HEAD has a length and no body; where the method is not known, that is possible.
        Some(_) if by_head.is_none() && came == 0 => Body::Unknown,
        Some(due) => Body::Short(due, came),
        None => Body::Open,
    }
}

/// Whether the request asked for a head alone; `None` if its method is not known.
#[must_use]
pub fn is_head(talk: &Talk) -> Option<bool> {
    const NAME: &[u8] = b"REQUEST_METHOD";
    let start: &[u8] = if talk.request.is_empty() { &talk.first } else { &talk.request };
    if talk.tls || start.iter().all(|b| *b == 0) {
        return None;
    }
    if let Some(method) = http1::method(start) {
        return Some(method == "HEAD");
    }
    // FastCGI has the value right behind the name, uwsgi behind its length, SCGI behind a NUL.
    let at = start.windows(NAME.len()).position(|window| window == NAME)? + NAME.len();
    let value = start.get(at..)?;
    let value = if value.starts_with(b"\x04\0") {
        value.get(2..)?
    } else {
        value.strip_prefix(b"\0").unwrap_or(value)
    };
    // Cut off within the word nothing is known.
    (value.len() >= 4 || !b"HEAD".starts_with(value)).then(|| value.starts_with(b"HEAD"))
}

/// nginx leaves the rest of a response unread on purpose: it goes elsewhere (`X-Accel-Redirect`), shows a page of its own
/// instead (`intercept_errors`), or asks another server because of the status (`next_upstream`).
fn is_dropped_on_purpose(case: &Case, head: &http1::Head) -> bool {
    let Some(status) = head.status else { return head.redirect };
    let word = format!("http_{status}");
    let any = |key: &'static str, wanted: &dyn Fn(&InForce) -> bool| {
        case.config.iter().flat_map(|c| c.settings.all(key)).any(wanted)
    };
    head.redirect
        || (status >= 300 && any("intercept_errors", &InForce::is_on))
        || (status >= 400 && any("next_upstream", &|one| one.has(&word)))
}

/// The line by which nginx asks another server because of the status of this response, if one is left
/// (ngx_http_upstream_test_next): what it has sent with some methods it does not send again.
#[must_use]
pub fn tries_elsewhere(case: &Case) -> Option<&InForce> {
    let talk = case.attempt.talk.as_deref()?;
    let word = format!("http_{}", answer(case).status().or(talk.status)?);
    let once = matches!(ending::method(talk), Some("POST" | "LOCK" | "PATCH"));
    let next = case.config.iter().flat_map(|c| c.settings.all("next_upstream")).find(|one| one.has(&word))?;
    (!once || next.has("non_idempotent")).then_some(next)
}

/// True if all of the response had come, by what it says of its own length.
#[must_use]
pub fn is_whole(case: &Case) -> bool {
    body(case, &answer(case)) == Body::Whole
}

/// False for a connection that only looked suspicious to the kernel side, whose filter is deliberately wide: its response was
/// whole, and nginx passed it on; or nothing tells a failure from that. Then there is no incident. To be asked again when
/// the status of the answer to the client is known.
#[must_use]
pub fn is_failure(case: &Case) -> bool {
    if case.attempt.stage != Stage::Established {
        return true;
    }
    let Some(talk) = case.attempt.talk.as_deref() else { return false };
    if talk.said_5xx || talk.answered_bad || case.attempt.noted.is_some() {
        return true;
    }
    if talk.said_error && case.facts.said.as_ref().is_none_or(|said| matches!(said, Said::Broken { .. })) {
        // What it has said is still to be read, or was of this.
        return true;
    }
    // nginx learned of an error, or its answer tells that it had one.
    let told = matches!(talk.told, Some(Told::Error(_)));
    let answered = case.own_status().is_some();
    if ending::module(case) == Some(Module::Stream) {
        // A farewell (SSL_shutdown) can meet a RST behind all that was said.
        let told = told && !(talk.said_bye && tls_spoken(case) == Some(true));
        return in_handshake(case).is_some() || stream_failed(case, talk, told);
    }
    if in_handshake(case).is_some() {
        return true;
    }
    if talk.tls {
        // Tickets and close_notify are left unread by healthy ones, and kept ones are closed some time. A farewell (SSL_shutdown)
        // can meet a RST behind a response that was whole: nginx tells its log of no error then.
        let served = talk.got_bytes > 0 && case.client_saw.is_some_and(|status| status < 500);
        let told = told && !(served && is_content(case, talk));
        return told || answered || ending::head(case) == Seen::Nothing || was_given_up(case);
    }
    if talk.got_bytes == 0 {
        return true;
    }
    // Without the hooks on reads nobody knows which exchange an end belongs to.
    if !talk.watched {
        return answered;
    }
    let answer = answer(case);
    match body(case, &answer) {
        // nginx reads on behind a response that it has whole, now and then, and logs the RST that it meets there.
        Body::Whole => {
            talk.told == Some(Told::Error(libc::ECONNRESET)) || (answered && !has_5xx(talk, &answer))
        }
        // nginx takes ends that are not the ones looked for, and would have told of one that is missing.
        Body::NoLastChunk if is_content(case, talk) && !answered && ending::end(case) == Some(End::Fin) => {
            false
        }
        Body::Short(..) | Body::NoLastChunk | Body::NoEnd => {
            let by_nginx = ending::end(case) == Some(End::Closed);
            !(by_nginx && matches!(&answer, Answer::Head(head) if is_dropped_on_purpose(case, head)))
                || answered
        }
        // An upgraded connection ends when either side likes.
        Body::Open if matches!(&answer, Answer::Head(head) if head.status == Some(101)) => {
            told || answered || ending::read_fit(case).is_some()
        }
        Body::Open => told || answered || is_dropped(case, talk, &answer) || was_given_up(case),
        Body::Unknown => told || answered || headless(case, talk, &answer),
    }
}

/// nginx would have told its log of an error, and has not: neither a statement came, nor was the connection marked by one that was
/// left out.
fn is_content(case: &Case, talk: &Talk) -> bool {
    case.facts.said == Some(Said::Nothing) && !talk.said_error
}

/// nginx threw away what had arrived, and not on purpose.
fn is_dropped(case: &Case, talk: &Talk, answer: &Answer) -> bool {
    let purpose = matches!(answer, Answer::Head(head) if is_dropped_on_purpose(case, head));
    talk.unread > 0 && !purpose
}

/// nginx closed it without having learned of an end, when its time-out for reads ran out or its client left; not as one that
/// was kept and is used no more.
fn was_given_up(case: &Case) -> bool {
    if ending::end(case) != Some(End::Closed) {
        return false;
    }
    let talk = case.attempt.talk.as_deref();
    let idle_ms = talk.and_then(|t| t.read_ns).map(|ns| case.attempt.end_ns.saturating_sub(ns) / 1_000_000);
    let kept = |candidate: &Candidate| {
        let is_kept = candidate
            .settings
            .all("keepalive")
            .any(|one| one.value.as_deref().is_none_or(|value| !matches!(value, "off" | "0")));
        let near = |(kept, idle): (u64, u64)| idle + 500 >= kept && idle <= kept + 2000;
        let ran_out = candidate
            .settings
            .all("keepalive_timeout")
            .any(|one| one.milliseconds().zip(idle_ms).is_none_or(near));
        is_kept && ran_out
    };
    case.client_gone.is_some() || (ending::read_fit(case).is_some() && !case.config.iter().any(kept))
}

fn has_5xx(talk: &Talk, answer: &Answer) -> bool {
    talk.status.or(answer.status()).is_some_and(|status| status >= 500)
}

/// For responses of which no more is known than their first bytes: true if those tell that nginx cannot have passed them on,
/// or if nginx itself ended it without having learned of an end.
fn headless(case: &Case, talk: &Talk, answer: &Answer) -> bool {
    let all = talk.got_bytes as usize <= talk.response.len();
    let given_up = || was_given_up(case);
    let dropped = || is_dropped(case, talk, answer);
    match answer {
        Answer::Nothing => true,
        // To nginx that is HTTP/0.9, and its client gets no status. An alert is no answer to anybody. Of a long response the first
        // read may have been missed: then the client has a status.
        Answer::NoStatusLine(_) => all || case.client_saw.is_none() || tls::alert(&talk.response).is_some(),
        Answer::Head(head) => head.fault.is_some() || all || dropped() || given_up(),
        Answer::Fastcgi(found) => {
            found.fault.is_some() || (all && found.head_end.is_none()) || dropped() || given_up()
        }
        Answer::Http2(found) => {
            let bad = found.too_large.is_some()
                || found.reset.is_some_and(|e| e != 0)
                || found.goaway.is_some_and(|(_, e)| e != 0);
            bad || (all && !found.headers) || talk.eof || given_up()
        }
        Answer::Memcached(_) => true,
        Answer::Unknown => given_up(),
    }
}

/// A session of the stream module ends when either side likes, and nginx finds nothing wrong with that. It has failed if nginx
/// was told an error, if its server died without having said a word, or if it was idle for too long.
fn stream_failed(case: &Case, talk: &Talk, told: bool) -> bool {
    if told || (case.attempt.reset && talk.got_bytes == 0) {
        return true;
    }
    let silent = talk.got_bytes == 0 && talk.fin_ns.is_some() && talk.sent_ns.is_some() && talk.eof;
    let died = case.facts.backend.death.as_ref().is_some_and(|death| death.ending || death.sent.is_some());
    (silent && died) || (ending::end(case) == Some(End::Closed) && ending::read_fit(case).is_some())
}
