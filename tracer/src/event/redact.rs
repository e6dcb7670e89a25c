//! Values that are nobody's business are overwritten as soon as a record is read: those of Authorization,
//! Proxy-Authorization, Cookie and Set-Cookie, in whatever protocol nginx sends them on. Lengths stay as they were.

/// What stands in place of a secret byte.
const MASK: u8 = b'*';

/// Names of header fields, lower case.
const SECRET: [&[u8]; 4] = [b"authorization", b"proxy-authorization", b"cookie", b"set-cookie"];

/// The same as parameters of FastCGI, uwsgi and SCGI.
const SECRET_PARAMS: [&[u8]; 3] = [b"HTTP_AUTHORIZATION", b"HTTP_PROXY_AUTHORIZATION", b"HTTP_COOKIE"];

/// The beginning of an HTTP/2 connection (RFC 9113, 3.4).
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// As much of a response's header block as can hold nothing but its status (RFC 7541, 6: an indexed or a literal field).
const STATUS_FIELD: usize = 5;

fn fill(bytes: &mut [u8], from: usize, to: usize) {
    if let Some(part) = bytes.get_mut(from..to) {
        part.fill(MASK);
    }
}

fn find(bytes: &[u8], what: &[u8]) -> Option<usize> {
    bytes.windows(what.len()).position(|window| window.eq_ignore_ascii_case(what))
}

/// Overwrites the secrets of the first bytes that nginx sent, or was sent.
pub(super) fn redact(bytes: &mut [u8], is_request: bool) {
    let frames = if bytes.starts_with(PREFACE) {
        Some(PREFACE.len())
    } else {
        // Frames on a connection that has been used: shorter than 64 KiB, of a known type. A uwsgi request begins with a
        // NUL as well, and has its second modifier, 0, where a frame has its type.
        let kinds = if is_request { 1..=9 } else { 0..=9 };
        (bytes.first() == Some(&0) && bytes.get(3).is_some_and(|kind| kinds.contains(kind))).then_some(0)
    };
    if let Some(start) = frames {
        return header_blocks(bytes, start, is_request);
    }
    parameters(bytes);
    fields(bytes);
}

/// HPACK packs names and values: nothing behind what may be the status is kept.
fn header_blocks(bytes: &mut [u8], start: usize, is_request: bool) {
    let mut at = start;
    while let Some([a, b, c, kind, ..]) = bytes.get(at..).and_then(<[u8]>::first_chunk::<9>).copied() {
        let length = u32::from_be_bytes([0, a, b, c]) as usize;
        let body = at + 9;
        let end = body.saturating_add(length).min(bytes.len());
        match kind {
            1 if !is_request => fill(bytes, (body + STATUS_FIELD).min(end), end),
            0 | 1 | 5 | 9 => fill(bytes, body, end),
            _ => {}
        }
        at = body.saturating_add(length);
    }
}

/// Parameters are coded by length, or end in a NUL: what follows the name of a secret one goes, to the end.
fn parameters(bytes: &mut [u8]) {
    let first = SECRET_PARAMS.iter().filter_map(|name| Some(find(bytes, name)? + name.len())).min();
    if let Some(from) = first {
        fill(bytes, from, bytes.len());
    }
}

/// Lines of a header: what follows the colon, with the lines that continue it.
fn fields(bytes: &mut [u8]) {
    let mut at = 0_usize;
    let mut hides = false;
    while at < bytes.len() {
        let rest = bytes.get(at..).unwrap_or_default();
        let length = rest.iter().position(|b| *b == b'\n').unwrap_or(rest.len());
        let line = rest.get(..length).unwrap_or_default();
        let text = line.strip_suffix(b"\r").unwrap_or(line).len();
        let continues = matches!(line.first(), Some(b' ' | b'\t'));
        // nginx itself, and some backends, put a blank or a NUL before the colon.
        let name_end = line.iter().position(|b| *b == b':');
        let name = name_end.and_then(|end| line.get(..end)).unwrap_or_default();
        let name: &[u8] = name.trim_ascii();
        if !continues {
            hides = SECRET.iter().any(|secret| secret.eq_ignore_ascii_case(name));
        }
        if hides {
            let from = if continues { at } else { at + name_end.map_or(0, |end| end + 1) };
            fill(bytes, from, at + text);
        }
        at += length + 1;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn masked(text: &[u8], is_request: bool) -> String {
        let mut bytes = text.to_vec();
        redact(&mut bytes, is_request);
        assert_eq!(bytes.len(), text.len());
        String::from_utf8_lossy(&bytes).into_owned()
    }

    #[test]
    fn values_of_secret_fields_are_masked_and_nothing_else() {
        for (text, want) in [
            (
                "GET / HTTP/1.0\r\nCookie: a=b\r\nHost: x\r\n\r\n",
                "GET / HTTP/1.0\r\nCookie:****\r\nHost: x\r\n\r\n",
            ),
            ("GET / HTTP/1.0\r\nauthorization:Basic cGFzcw", "GET / HTTP/1.0\r\nauthorization:************"),
            ("HTTP/1.1 200 OK\nSet-Cookie: a\n\tb\nX: y\n", "HTTP/1.1 200 OK\nSet-Cookie:**\n**\nX: y\n"),
            (
                "P / HTTP/1.0\r\nPROXY-AUTHORIZATION : x\r\n\r\n",
                "P / HTTP/1.0\r\nPROXY-AUTHORIZATION :**\r\n\r\n",
            ),
            ("GET /cookie:x HTTP/1.0\r\nX-Cookie: y\r\n", "GET /cookie:x HTTP/1.0\r\nX-Cookie: y\r\n"),
            ("", ""),
            ("\n\n:\n", "\n\n:\n"),
        ] {
            assert_eq!(masked(text.as_bytes(), true), want);
        }
    }

    #[test]
    fn parameters_are_masked_behind_the_name_of_a_secret_one() {
        let scgi = b"65:CONTENT_LENGTH\x000\x00HTTP_HOST\0x\0HTTP_COOKIE\0secret\0";
        assert!(!masked(scgi, true).contains("secret"));
        assert!(masked(scgi, true).contains("HTTP_HOST\0x"));
        let fastcgi = b"\x01\x01\0\x01\0\x08\0\0\0\x01\0\0\0\0\0\0\x01\x04\0\x01\0\x20\0\0\x12\x06HTTP_AUTHORIZATIONsecret";
        let shown = masked(fastcgi, true);
        assert!(shown.contains("HTTP_AUTHORIZATION*") && !shown.contains("secret"), "{shown}");
    }

    #[test]
    fn header_blocks_keep_no_more_than_the_status() {
        let mut request = PREFACE.to_vec();
        request.extend(b"\0\0\0\x04\0\0\0\0\0\0\0\x09\x01\x04\0\0\0\x01\x83secretxx");
        assert!(!masked(&request, true).contains("secret"));
        assert!(masked(&request, true).starts_with("PRI * HTTP/2.0"));
        let response = b"\0\0\0\x04\0\0\0\0\0\0\0\x0c\x01\x04\0\0\0\x01\x48\x03502secret!";
        let shown = masked(response, false);
        assert!(shown.contains("502") && !shown.contains("secret"), "{shown}");
    }
}
