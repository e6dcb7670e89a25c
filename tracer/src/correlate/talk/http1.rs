//! Heads of HTTP/1 and CGI responses, read as nginx reads them (src/http/ngx_http_parse.c, the status line and header lines
//! of 1.22 to 1.31, and the handlers of single fields in src/http/ngx_http_upstream.c). Of heads that are cut off, as far as
//! they go.

/// Something in a head that nginx refuses.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fault {
    /// Offset of the first byte that does not fit.
    pub at: usize,
    /// What is wrong.
    pub kind: FaultKind,
}

/// What nginx does not accept.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum FaultKind {
    /// A name that begins with, or contains, a blank, a control character or nothing before the colon.
    Name,
    /// A NUL in a value.
    Nul,
    /// A CR without LF.
    Cr,
    /// `Content-Length` that is no number.
    Length,
    /// A second `Content-Length` (since 1.23.0).
    TwoLengths,
    /// A second `Transfer-Encoding` (since 1.23.0).
    TwoEncodings,
    /// `Content-Length` and `Transfer-Encoding` (since 1.23.0).
    LengthAndEncoding,
    /// A `Transfer-Encoding` other than `chunked` (since 1.23.0).
    Encoding,
    /// A CGI `Status` that is no number.
    Status,
}

impl FaultKind {
    /// What is wrong, in words.
    #[must_use]
    pub fn words(self) -> &'static str {
        match self {
            Self::Name => "a byte that no header name may hold",
            Self::Nul => "a NUL in a header's value",
            Self::Cr => "a CR that no LF follows",
            Self::Length => "a Content-Length that is no number",
            Self::TwoLengths => "a second Content-Length",
            Self::TwoEncodings => "a second Transfer-Encoding",
            Self::LengthAndEncoding => "Content-Length and Transfer-Encoding together",
            Self::Encoding => "a Transfer-Encoding other than chunked",
            Self::Status => "a Status that is no number",
        }
    }

    /// Whether versions before 1.23.0 took it.
    #[must_use]
    pub fn is_new(self) -> bool {
        match self {
            Self::Name | Self::Nul | Self::Cr | Self::Status => false,
            Self::Length
            | Self::TwoLengths
            | Self::TwoEncodings
            | Self::LengthAndEncoding
            | Self::Encoding => true,
        }
    }
}

/// What a head says, as far as it was read.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Head {
    /// Status; 200 for a CGI head without one.
    pub status: Option<u16>,
    /// HTTP version, as major × 1000 + minor; 0 for a CGI head.
    pub version: u32,
    /// Length of the head with its empty line, bytes; `None` if that has not come.
    pub length: Option<usize>,
    /// `Content-Length`.
    pub content_length: Option<u64>,
    /// `Transfer-Encoding: chunked`.
    pub chunked: bool,
    /// `Connection: close`.
    pub close: bool,
    /// `Location` of a CGI head, which makes it a redirect without a status.
    pub location: bool,
    /// `X-Accel-Redirect`: nginx drops the body and goes elsewhere.
    pub redirect: bool,
    /// `Upgrade`: after 101 the connection is this protocol's.
    pub upgrade: Option<Vec<u8>>,
    /// The first thing that nginx refuses.
    pub fault: Option<Fault>,
}

impl Head {
    /// True if a response with this head has no body, whatever its fields say (RFC 9112, 6.3).
    #[must_use]
    pub fn is_bodyless(&self) -> bool {
        matches!(self.status, Some(100..=199 | 204 | 304))
    }
}

/// Length of a head with its empty line, if it is all there: lines end in LF, with or without CR.
#[must_use]
pub fn head_length(bytes: &[u8]) -> Option<usize> {
    let mut at = 0_usize;
    loop {
        let line = bytes.get(at..)?;
        let length = line.iter().position(|b| *b == b'\n')?;
        let text = line.get(..length).unwrap_or_default();
        at += length + 1;
        if text.is_empty() || text == b"\r" {
            return Some(at);
        }
    }
}

/// Reads the status line as nginx does. `Ok(None)`: it is cut off, and right so far. `Err`: it is none, which nginx takes for
/// HTTP/0.9; the offset of the first wrong byte.
///
/// # Errors
/// The offset.
pub fn status_line(bytes: &[u8]) -> Result<Option<(u32, u16, usize)>, usize> {
    const START: &[u8] = b"HTTP/";
    for (at, want) in START.iter().enumerate() {
        match bytes.get(at) {
            None => return Ok(None),
            Some(byte) if byte != want => return Err(at),
            Some(_) => {}
        }
    }
    let mut at = START.len();
    let number =
        |at: &mut usize, end: u8, first: std::ops::RangeInclusive<u8>| -> Result<Option<u32>, usize> {
            let mut value = 0_u32;
            let mut digits = 0;
            loop {
                let Some(byte) = bytes.get(*at) else { return Ok(None) };
                let fits =
                    if digits == 0 { first.contains(byte) } else { byte.is_ascii_digit() && value <= 99 };
                if fits {
                    value = value * 10 + u32::from(byte - b'0');
                    digits += 1;
                    *at += 1;
                } else if digits > 0 && *byte == end {
                    *at += 1;
                    return Ok(Some(value));
                } else {
                    return Err(*at);
                }
            }
        };
    let Some(major) = number(&mut at, b'.', b'1'..=b'9')? else { return Ok(None) };
    let Some(minor) = number(&mut at, b' ', b'0'..=b'9')? else { return Ok(None) };
    let mut status = 0_u16;
    let mut digits = 0;
    while digits < 3 {
        match bytes.get(at) {
            None => return Ok(None),
            Some(b' ') => {}
            Some(byte) if byte.is_ascii_digit() => {
                status = status * 10 + u16::from(byte - b'0');
                digits += 1;
            }
            Some(_) => return Err(at),
        }
        at += 1;
    }
    match bytes.get(at) {
        None => return Ok(None),
        Some(b' ' | b'.' | b'\r' | b'\n') => {}
        Some(_) => return Err(at),
    }
    let Some(end) = bytes.get(at..).and_then(|rest| rest.iter().position(|b| matches!(b, b'\r' | b'\n')))
    else {
        return Ok(None);
    };
    at += end;
    if bytes.get(at) == Some(&b'\r') {
        at += 1;
        match bytes.get(at) {
            None => return Ok(None),
            Some(b'\n') => {}
            Some(_) => return Err(at),
        }
    }
    Ok(Some((major * 1000 + minor, status, at + 1)))
}

/// Reads an HTTP/1 response head. `Err`: what it begins with is no status line; the offset of the first wrong byte.
///
/// # Errors
/// The offset.
pub fn response(bytes: &[u8]) -> Result<Head, usize> {
    let Some((version, status, end)) = status_line(bytes)? else { return Ok(Head::default()) };
    let mut head = Head { status: Some(status), version, ..Head::default() };
    fields(bytes, end, &mut head);
    // Informational responses that nginx passes by (103 since 1.29.0): the real head follows.
    if status == 103
        && let Some(length) = head.length
        && let Some(rest) = bytes.get(length..)
        && !rest.is_empty()
        && let Ok(mut next) = response(rest)
    {
        next.length = next.length.map(|own| own + length);
        if let Some(fault) = &mut next.fault {
            fault.at += length;
        }
        return Ok(next);
    }
    Ok(head)
}

/// Reads the head of a CGI response: header lines alone, `Status` among them (scgi, FastCGI's stdout).
#[must_use]
pub fn cgi(bytes: &[u8]) -> Head {
    let mut head = Head::default();
    fields(bytes, 0, &mut head);
    if head.length.is_some() && head.status.is_none() {
        head.status = Some(if head.location { 302 } else { 200 });
    }
    head
}

/// One line of the header as nginx reads it: name, value, and the offset behind it.
enum Line<'a> {
    Field(&'a [u8], &'a [u8], usize),
    /// The duplicate status line that IIS sends: passed over.
    Skip(usize),
    /// The empty line, with the offset behind it.
    End(usize),
    /// It is cut off.
    Cut,
    Bad(Fault),
}

fn line(bytes: &[u8], start: usize) -> Line<'_> {
    let bad = |at, kind| Line::Bad(Fault { at, kind });
    let rest = bytes.get(start..).unwrap_or_default();
    match rest {
        [b'\n', ..] => return Line::End(start + 1),
        [b'\r', b'\n', ..] => return Line::End(start + 2),
        [] | [b'\r'] => return Line::Cut,
        [b'\r', ..] => return bad(start + 1, FaultKind::Cr),
        _ => {}
    }
    let mut at = start;
    let name_end = loop {
        let Some(byte) = bytes.get(at) else { return Line::Cut };
        match byte {
            b':' if at == start => return bad(at, FaultKind::Name),
            b':' | b'\r' | b'\n' => break at,
            b'/' if bytes.get(start..at) == Some(b"HTTP".as_slice()) => {
                let end = rest.iter().position(|b| *b == b'\n');
                return end.map_or(Line::Cut, |end| Line::Skip(start + end + 1));
            }
            0..=0x20 | 0x7f => return bad(at, FaultKind::Name),
            _ => at += 1,
        }
    };
    let name = bytes.get(start..name_end).unwrap_or_default();
    if bytes.get(at) == Some(&b':') {
        at += 1;
    }
    let value_start = at;
    let value_end = loop {
        let Some(byte) = bytes.get(at) else { return Line::Cut };
        match byte {
            0 => return bad(at, FaultKind::Nul),
            b'\r' | b'\n' => break at,
            _ => at += 1,
        }
    };
    let value = bytes.get(value_start..value_end).unwrap_or_default();
    let value = value.trim_ascii();
    // Several CRs in a row are taken for one.
    while bytes.get(at) == Some(&b'\r') {
        at += 1;
    }
    match bytes.get(at) {
        None => Line::Cut,
        Some(b'\n') => Line::Field(name, value, at + 1),
        Some(_) => bad(at, FaultKind::Cr),
    }
}

fn fields(bytes: &[u8], start: usize, head: &mut Head) {
    let mut at = start;
    let (mut lengths, mut encodings) = (0, 0);
    loop {
        let (name, value, next) = match line(bytes, at) {
            Line::Field(name, value, next) => (name, value, next),
            Line::Skip(next) => {
                at = next;
                continue;
            }
            Line::End(next) => {
                head.length = Some(next);
                return;
            }
            Line::Cut => return,
            Line::Bad(fault) => {
                head.fault.get_or_insert(fault);
                return;
            }
        };
        let mut fault = |kind| {
            head.fault.get_or_insert(Fault { at, kind });
        };
        let is = |wanted: &str| name.eq_ignore_ascii_case(wanted.as_bytes());
        if is("content-length") {
            lengths += 1;
            let number = number(value);
            if encodings > 0 {
                fault(FaultKind::LengthAndEncoding);
            } else if lengths > 1 {
                fault(FaultKind::TwoLengths);
            } else if number.is_none() {
                fault(FaultKind::Length);
            }
            head.content_length = number;
        } else if is("transfer-encoding") {
            encodings += 1;
            let chunked = value.eq_ignore_ascii_case(b"chunked");
            if lengths > 0 {
                fault(FaultKind::LengthAndEncoding);
            } else if encodings > 1 {
                fault(FaultKind::TwoEncodings);
            } else if !chunked {
                fault(FaultKind::Encoding);
            }
            head.chunked |= chunked;
        } else if is("connection") {
            head.close |= value.to_ascii_lowercase().windows(5).any(|word| word == b"close");
        } else if is("x-accel-redirect") {
            head.redirect = true;
        } else if is("upgrade") {
            head.upgrade = Some(value.to_vec());
        } else if is("location") {
            head.location = true;
        } else if is("status") && head.version == 0 && head.status.is_none() {
            match value.first_chunk::<3>().and_then(number_of) {
                Some(status) => head.status = Some(status),
                None => fault(FaultKind::Status),
            }
        }
        at = next;
    }
}

/// What the bytes of a chunked body say (RFC 9112, 7.1), with bare line feeds as well: nginx takes both (ngx_http_parse_chunked).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Chunks {
    /// Its end is there.
    Ended,
    /// They go on.
    Open,
    /// What nginx refuses: the offset of the first byte that fits no chunk, and how many chunks came before it.
    Bad(usize, usize),
}

/// Reads a chunked body.
#[must_use]
pub fn chunks(bytes: &[u8]) -> Chunks {
    let mut at = 0_usize;
    let mut count = 0_usize;
    loop {
        let rest = bytes.get(at..).unwrap_or_default();
        let digits = rest.iter().take_while(|byte| byte.is_ascii_hexdigit()).count();
        let Some(after) = rest.get(digits) else { return Chunks::Open };
        let text = rest.get(..digits).and_then(|digits| std::str::from_utf8(digits).ok()).unwrap_or_default();
        let Some(size) = usize::from_str_radix(text, 16)
            .ok()
            .filter(|_| matches!(after, b'\r' | b'\n' | b';' | b' ' | b'\t'))
        else {
            return Chunks::Bad(at + digits, count);
        };
        let Some(end) = rest.iter().position(|byte| matches!(byte, b'\r' | b'\n')) else {
            return Chunks::Open;
        };
        let next = match line_end(rest, end) {
            Ok(next) => at + next,
            Err(None) => return Chunks::Open,
            Err(Some(bad)) => return Chunks::Bad(at + bad, count),
        };
        if size == 0 {
            // Trailers, and an empty line.
            let mut lines = bytes.get(next..).unwrap_or_default().split_inclusive(|byte| *byte == b'\n');
            let ended = lines.any(|one| one == b"\n" || one == b"\r\n");
            return if ended { Chunks::Ended } else { Chunks::Open };
        }
        let Some(behind) = next.checked_add(size).filter(|behind| *behind < bytes.len()) else {
            return Chunks::Open;
        };
        at = match line_end(bytes, behind) {
            Ok(next) => next,
            Err(None) => return Chunks::Open,
            Err(Some(bad)) => return Chunks::Bad(bad, count),
        };
        count += 1;
    }
}

/// The offset behind the end of a line, CR LF or LF. `Err`: it is cut off (`None`), or the byte that is neither.
fn line_end(bytes: &[u8], at: usize) -> Result<usize, Option<usize>> {
    match (bytes.get(at), bytes.get(at + 1)) {
        (Some(b'\n'), _) => Ok(at + 1),
        (Some(b'\r'), Some(b'\n')) => Ok(at + 2),
        (Some(b'\r'), Some(_)) => Err(Some(at + 1)),
        (Some(b'\r') | None, _) => Err(None),
        (Some(_), _) => Err(Some(at)),
    }
}

fn number(text: &[u8]) -> Option<u64> {
    let all_digits = !text.is_empty() && text.iter().all(u8::is_ascii_digit);
    std::str::from_utf8(text).ok().filter(|_| all_digits)?.parse().ok()
}

fn number_of(digits: &[u8; 3]) -> Option<u16> {
    number(digits).and_then(|n| u16::try_from(n).ok())
}

/// The method of an HTTP/1 request, if it begins with one.
#[must_use]
pub fn method(bytes: &[u8]) -> Option<&str> {
    let end = bytes.iter().position(|b| *b == b' ').filter(|end| (1..=32).contains(end))?;
    let word = bytes.get(..end)?;
    let fits = |b: &u8| b.is_ascii_uppercase() || matches!(b, b'_' | b'-');
    word.iter().all(fits).then(|| std::str::from_utf8(word).ok())?
}

#[cfg(test)]
mod tests {
    use super::{Chunks, chunks};

    #[test]
    fn ends_of_chunked_bodies() {
        for whole in [
            "0\r\n\r\n",
            "0\n\n",
            "5\r\nhello\r\n0\r\n\r\n",
            "5\nhello\n0\n\n",
            "00005;a=b\r\n0\r\n\r\n\r\n000\r\n\r\n",
            "2\r\nab\r\n0\r\nX-Sum: 1\r\n\r\n",
            "1\r\na\r\n0\n\r\n",
        ] {
            assert_eq!(chunks(whole.as_bytes()), Chunks::Ended, "{whole:?}");
            for end in 0..whole.len() {
                assert_eq!(chunks(&whole.as_bytes()[..end]), Chunks::Open, "{end} of {whole:?}");
            }
        }
        for (broken, at, before) in [
            ("\r\n\r\n", 0, 0),
            ("x\r\n\r\n", 0, 0),
            ("hello", 0, 0),
            ("5\r\nhello!0\r\n\r\n", 8, 0),
            ("5\r\nhello\rx", 9, 0),
            ("5\r\nhello\r\nzz", 10, 1),
            ("5 \rx", 3, 0),
            ("ffffffffffffffffff\r\n", 18, 0),
        ] {
            assert_eq!(chunks(broken.as_bytes()), Chunks::Bad(at, before), "{broken:?}");
        }
        for open in ["", "6\r\n0\r\n\r\na", "5", "5;abc", "ffffffffffffffff\r\n"] {
            assert_eq!(chunks(open.as_bytes()), Chunks::Open, "{open:?}");
        }
    }
}
