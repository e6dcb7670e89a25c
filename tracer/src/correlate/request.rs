//! The client's request that a failed attempt belongs to, parsed.
//!
//! The bytes come from the network through nginx's memory: anything may be in them. Parsing is total and bounded.
//! nginx parses in place and leaves marks: it writes a NUL behind each header's name and each header's value
//! (ngx_http_process_request_headers), never into the request line.

use std::{borrow::Cow, net::SocketAddr};

/// Longest method that is taken for one (RFC 9110 knows none above 16 letters).
const MOST_METHOD: usize = 32;
/// Longest request ID that is told.
const MOST_ID: usize = 128;
/// Longest host name with port that is shown.
const MOST_HOST: usize = 300;

/// The head of a request, HTTP/1 in clear text.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Head {
    /// Method, such as `GET`.
    pub method: String,
    /// Target as the client sent it; bytes that are no text are written `\xNN`.
    pub target: String,
    /// The target goes on: more of it was not to be had.
    pub truncated: bool,
    /// Host: of an absolute target, else of the Host header.
    pub host: Option<String>,
}

impl Head {
    /// The path with which nginx looks for a location, and the host, each only if it is certain.
    #[must_use]
    pub fn place(&self) -> (Option<&str>, Option<&str>) {
        let start = match authority(self.target.as_bytes()) {
            Some(host) => self.target.find("://").map(|colon| colon + 3 + host.len()),
            None => Some(0),
        };
        let path = start.and_then(|start| self.target.get(start..)).filter(|path| {
            // A query may be cut off, as it does not choose; a blank may stand in front of what was the version.
            let whole = !self.truncated || path.split_once('?').is_some_and(|(path, _)| !path.contains(' '));
            // `\xNN` stands for a byte that is no text.
            path.starts_with('/') && whole && !path.contains("\\x")
        });
        (path, self.host.as_deref())
    }
}

/// A client's request.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Request {
    /// A number of this run's; attempts of the same request share it.
    pub id: u64,
    /// Who asked.
    pub client: SocketAddr,
    /// The address that it connected to.
    pub local: SocketAddr,
    /// What was asked; None if it cannot be read (TLS, HTTP/2) or its beginning is in doubt.
    pub head: Option<Head>,
    /// Status of the answer.
    pub status: Option<u16>,
    /// What ties it to logs and traces elsewhere.
    #[serde(default)]
    pub ids: Ids,
}

/// Names that a request goes by in the logs and traces of others, if they are among the bytes that were seen.
#[derive(Debug, Clone, PartialEq, Eq, Default, serde::Serialize, serde::Deserialize)]
#[serde(default)]
pub struct Ids {
    /// `X-Request-ID`.
    pub request_id: Option<String>,
    /// `traceparent` (W3C Trace Context, 3.2).
    pub traceparent: Option<String>,
}

impl Ids {
    /// Those in the head of an HTTP/1 request, as the client or nginx sent it; whatever else the bytes are, there are none.
    #[must_use]
    pub fn of(bytes: &[u8]) -> Self {
        let Some((_, rest)) = request_line(bytes).filter(|_| parse(bytes).is_some()) else {
            return Self::default();
        };
        let value = |name: &[u8], fits: &dyn Fn(&[u8]) -> bool| {
            let mut fields = headers(rest).filter(|field| field.name.eq_ignore_ascii_case(name));
            let value = fields.next()?.value;
            (fits(value) && fields.next().is_none()).then(|| text(value))
        };
        let printable = |id: &[u8]| (1..=MOST_ID).contains(&id.len()) && id.iter().all(u8::is_ascii_graphic);
        Self {
            request_id: value(b"x-request-id", &printable),
            traceparent: value(b"traceparent", &is_traceparent),
        }
    }

    /// These, and where one is not known that of the others.
    #[must_use]
    pub fn or(self, others: Self) -> Self {
        Self {
            request_id: self.request_id.or(others.request_id),
            traceparent: self.traceparent.or(others.traceparent),
        }
    }
}

/// Version, trace, parent and flags in lower-case hexadecimal; later versions may have more behind them.
fn is_traceparent(value: &[u8]) -> bool {
    let mut parts = value.split(|byte| *byte == b'-');
    let hex = |byte: &u8| byte.is_ascii_digit() || (b'a'..=b'f').contains(byte);
    let lengths = [2, 32, 16, 2];
    value.len() <= MOST_ID
        && value.iter().all(u8::is_ascii_graphic)
        && lengths
            .iter()
            .all(|length| parts.next().is_some_and(|part| part.len() == *length && part.iter().all(hex)))
}

/// Which request an attempt belongs to, as far as that is certain.
#[derive(Debug, Clone, PartialEq, Eq, Default, serde::Serialize, serde::Deserialize)]
pub struct Attribution {
    /// The request.
    pub request: Option<Request>,
    /// Why it, or a part of it, is not known.
    pub note: Option<Cow<'static, str>>,
}

/// Neither nginx's memory nor its word names the request.
pub const UNLINKED: &str = "nginx's memory does not name the request of this connection";
/// Why there is none: see [`Repeats`](crate::report::Repeats).
pub const COUNTED: &str = "equal failures in quick succession, counted and not looked at one by one";
/// What nginx's memory was to tell did not come.
pub const UNANSWERED: &str = "nginx was not asked in time whose request it was";
/// The request line cannot be read.
pub const OPAQUE: &str = "the request line could not be read from nginx's memory";

impl Attribution {
    /// Not known, and why.
    #[must_use]
    pub fn unknown(note: &'static str) -> Self {
        Self { request: None, note: Some(Cow::Borrowed(note)) }
    }
}

/// Text of bytes: what is no UTF-8 is written `\xNN`.
fn text(bytes: &[u8]) -> String {
    let mut text = String::with_capacity(bytes.len());
    for chunk in bytes.utf8_chunks() {
        text.push_str(chunk.valid());
        for byte in chunk.invalid() {
            text.push_str(&format!("\\x{byte:02x}"));
        }
    }
    text
}

/// The request line without its end, and what follows; None if it does not end.
fn request_line(bytes: &[u8]) -> Option<(&[u8], &[u8])> {
    let end = bytes.iter().position(|b| *b == b'\n')?;
    let (line, rest) = (bytes.get(..end)?, bytes.get(end + 1..)?);
    Some((line.strip_suffix(b"\r").unwrap_or(line), rest))
}

/// Reads the head of a request; None if it is none.
#[must_use]
pub fn parse(bytes: &[u8]) -> Option<Head> {
    let (line, rest, whole) = match request_line(bytes) {
        Some((line, rest)) => (line, rest, true),
        None => (bytes, &[][..], false),
    };
    let space = line.iter().take(MOST_METHOD + 1).position(|b| *b == b' ')?;
    let (method, after) = line.split_at_checked(space)?;
    let is_method = !method.is_empty() && method.iter().all(|b| b.is_ascii_uppercase() || b"_-".contains(b));
    // The preface of HTTP/2 (RFC 9113, 3.4) looks like a request on purpose.
    if !is_method || method == b"PRI" {
        return None;
    }
    let after = after.trim_ascii_start();
    let target = if whole { without_version(after)? } else { after };
    if target.is_empty() || target.contains(&0) {
        return None;
    }
    let host = authority(target).or_else(|| {
        headers(rest)
            .find(|h| h.name.eq_ignore_ascii_case(b"host"))
            .map(|h| h.value)
            .filter(|v| !v.is_empty())
    });
    Some(Head {
        method: text(method),
        target: text(target),
        truncated: !whole,
        host: host.filter(|h| whole && h.len() <= MOST_HOST).map(text),
    })
}

/// The target before ` HTTP/1.x`; HTTP/0.9 has no version.
fn without_version(after: &[u8]) -> Option<&[u8]> {
    let after = after.trim_ascii_end();
    let Some(space) = after.iter().rposition(|b| *b == b' ') else {
        return Some(after);
    };
    let (target, version) = after.split_at_checked(space)?;
    match version.trim_ascii_start() {
        [b'H', b'T', b'T', b'P', b'/', major, b'.', minor]
            if major.is_ascii_digit() && minor.is_ascii_digit() =>
        {
            Some(target.trim_ascii_end())
        }
        _ => None,
    }
}

/// Host and port of an absolute target.
fn authority(target: &[u8]) -> Option<&[u8]> {
    let colon = target.iter().take(8).position(|b| *b == b':')?;
    let (scheme, rest) = target.split_at_checked(colon)?;
    if !scheme.eq_ignore_ascii_case(b"http") && !scheme.eq_ignore_ascii_case(b"https") {
        return None;
    }
    let rest = rest.strip_prefix(b"://")?;
    let end = rest.iter().position(|b| b"/?#".contains(b)).unwrap_or(rest.len());
    rest.get(..end).filter(|host| !host.is_empty())
}

struct Header<'a> {
    name: &'a [u8],
    value: &'a [u8],
}

/// The headers, with or without nginx's marks.
fn headers(bytes: &[u8]) -> impl Iterator<Item = Header<'_>> {
    let mut at = 0_usize;
    std::iter::from_fn(move || {
        let rest = bytes.get(at..)?;
        if rest.is_empty() || rest.starts_with(b"\r\n") || rest.starts_with(b"\n") {
            return None;
        }
        let length = rest.iter().position(|b| matches!(b, b':' | 0 | b'\n')).unwrap_or(rest.len());
        let name = rest.get(..length)?;
        let separator = rest.get(length).copied();
        if !matches!(separator, Some(b':' | 0)) {
            // A line without a colon.
            at += length + 1;
            return Some(Header { name: name.trim_ascii_end(), value: &[] });
        }
        let mut end = length + 1;
        while rest.get(end) == Some(&b' ') {
            end += 1;
        }
        let start = end;
        // What is cut off is no value.
        end += rest.get(end..)?.iter().position(|b| matches!(b, 0 | b'\r' | b'\n'))?;
        let value = rest.get(start..end)?.trim_ascii_end();
        // Behind the value: CR LF, or a NUL in place of the first of them, or of a blank before them.
        let mut next = end + 1;
        let behind = rest.get(next..).unwrap_or_default();
        let blanks = behind.iter().take_while(|b| matches!(b, b' ' | b'\r')).count();
        if rest.get(end) != Some(&b'\n') && behind.get(blanks) == Some(&b'\n') {
            next += blanks + 1;
        }
        at += next;
        Some(Header { name, value })
    })
}

#[cfg(test)]
#[path = "request_tests.rs"]
mod tests;
