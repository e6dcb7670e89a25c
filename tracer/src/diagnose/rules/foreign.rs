//! Who speaks something else than nginx does, by the first bytes of its answer, and what in nginx leads there.

use crate::{
    correlate::talk::{Protocol, http1, http2},
    diagnose::rules::bytes,
};

/// A protocol by its first bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Foreign {
    /// Its name.
    pub(super) name: &'static str,
    /// What in nginx leads there, as advice.
    pub(super) advice: &'static str,
}

const HTTP: &str = "use proxy_pass for it (or the port on which it speaks the protocol of the pass)";
const HTTP2: &str = "use grpc_pass for it, if it serves gRPC; else the port on which it speaks HTTP/1.1, or proxy_http_version 2; \
                     (since 1.29.4)";
const STREAM: &str = "the port is another service's: point the pass at the HTTP server that was meant; what speaks no HTTP nginx passes \
                      on in a `server` of `stream { }`, with a `listen` of its own";
const SHOUTCAST: &str = "it is a SHOUTcast server of version 1, whose status line is ICY's: nginx passes it on in a `server` of \
                         `stream { }`, with a `listen` of its own; Icecast and SHOUTcast 2 answer in HTTP";

/// Texts that a protocol begins with.
const TEXTS: &[(&[u8], Foreign)] = &[
    (b"HTTP/1.", Foreign { name: "HTTP/1", advice: HTTP }),
    (b"HTTP/2", Foreign { name: "HTTP/1", advice: HTTP }),
    (b"SSH-", Foreign { name: "SSH", advice: STREAM }),
    (b"220 ", Foreign { name: "SMTP or FTP", advice: STREAM }),
    (b"220-", Foreign { name: "SMTP or FTP", advice: STREAM }),
    (b"+OK ", Foreign { name: "POP3", advice: STREAM }),
    (b"* OK ", Foreign { name: "IMAP", advice: STREAM }),
    (b"-ERR ", Foreign { name: "Redis", advice: STREAM }),
    (b"-NOAUTH ", Foreign { name: "Redis", advice: STREAM }),
    (b"-DENIED ", Foreign { name: "Redis", advice: STREAM }),
    (b"AMQP\0", Foreign { name: "AMQP", advice: STREAM }),
    (b"RTSP/1.", Foreign { name: "RTSP", advice: STREAM }),
    (b"ICY ", Foreign { name: "ICY", advice: SHOUTCAST }),
    (b"ERROR\r\n", Foreign { name: "memcached", advice: "use memcached_pass for it" }),
];

/// Who speaks something else, by its first bytes.
pub(super) fn of(answer: &[u8]) -> Option<Foreign> {
    if let Some((_, found)) = TEXTS.iter().find(|(text, _)| answer.starts_with(text)) {
        return Some(*found);
    }
    Some(match answer {
        [1, 3 | 6 | 7, 0, 1, ..] => Foreign { name: "FastCGI", advice: "use fastcgi_pass for it" },
        // The first packet of a server: its length, number 0, protocol 10, its version as text.
        [_, _, 0, 0, 10, b'0'..=b'9', ..] => Foreign { name: "MySQL", advice: STREAM },
        // SETTINGS, of stream 0.
        [..] if http2::is_frame(answer)
            && answer.get(3..9).is_some_and(|rest| matches!(rest, [4, 0 | 1, 0, 0, 0, 0])) =>
        {
            Foreign { name: "HTTP/2", advice: HTTP2 }
        }
        _ => return None,
    })
}

/// What an answer to HTTP/1 without a status line seems to be, and advice. `at`: the first byte that does not fit one.
pub(super) fn headless(answer: &[u8], at: usize) -> (String, String) {
    const LINE: &str = "let the server begin its response with a status line: `HTTP/1.1 200 OK`";
    let text = answer.trim_ascii_start();
    let shown = bytes::quoted(answer);
    if answer.starts_with(b"HTTP/") {
        return (
            format!("answered with a status line that nginx cannot read: {shown}"),
            "let the server write a status of three digits behind the version: `HTTP/1.1 200 OK`".to_owned(),
        );
    }
    if let Some(found) = of(answer) {
        return (
            format!("speaks {}, and nginx spoke {} to it", found.name, Protocol::Http.name()),
            found.advice.to_owned(),
        );
    }
    if text.len() < answer.len() && text.starts_with(b"HTTP/") {
        return (
            "sent blanks or empty lines before its status line".to_owned(),
            "let the server begin its response with the status line: what stands before it is, as a rule, printed by a script, or the \
             rest of a body that was longer than its Content-Length"
                .to_owned(),
        );
    }
    if text.starts_with(b"<") {
        return (
            format!("answered with a page and no header: {shown}"),
            format!("{LINE}, header lines and an empty line, before the page"),
        );
    }
    if is_header(answer) {
        return (
            format!("answered with a header that has no status line: {shown}"),
            format!(
                "{LINE}; header lines alone are a CGI program's, which needs a server that runs it (fcgiwrap and fastcgi_pass, uwsgi)"
            ),
        );
    }
    if bytes::is_text(answer) {
        return (
            format!("answered with something that is no HTTP response: {shown}"),
            format!("{LINE}, if it is an HTTP server; else see what listens there"),
        );
    }
    (
        format!("answered with something that is no HTTP response, from byte {at} on"),
        "see what listens there: it does not speak HTTP".to_owned(),
    )
}

/// True if it begins as the header of a CGI program's output does.
fn is_header(answer: &[u8]) -> bool {
    let line = answer.split(|b| *b == b'\n').next().unwrap_or_default();
    let name = line.split(|b| *b == b':').next().unwrap_or_default();
    line.contains(&b':')
        && !name.is_empty()
        && name.iter().all(|b| b.is_ascii_alphanumeric() || *b == b'-')
        && http1::cgi(answer).fault.is_none()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn protocols_by_their_first_bytes() {
        for (bytes, want) in [
            (&b"SSH-2.0-OpenSSH_9.2p1 Debian-2\r\n"[..], Some("SSH")),
            (b"220 mail.example.com ESMTP\r\n", Some("SMTP or FTP")),
            (b"-ERR wrong number of arguments for 'get' command\r\n", Some("Redis")),
            (b"-DENIED Redis is running in protected mode", Some("Redis")),
            (b"\0\0\x12\x04\0\0\0\0\0\0\x03\0\0\0\x64", Some("HTTP/2")),
            (b"\0\0\0\x04\x01\0\0\0\0", Some("HTTP/2")),
            (b"J\0\0\0\n8.0.33\0", Some("MySQL")),
            (b"\x01\x06\0\x01\0\x02\0\0ok", Some("FastCGI")),
            (b"ICY 200 OK\r\n", Some("ICY")),
            // A frame of a stream is no beginning, nor is what is cut off.
            (b"\0\0\x12\x04\0\0\0\0\x01\0\x03", None),
            (b"\0\0\0\x04", None),
            (b"<h1>It works</h1>", None),
            (b"-1 is no error", None),
            (b"220", None),
            (b"", None),
        ] {
            assert_eq!(of(bytes).map(|found| found.name), want, "{}", bytes.escape_ascii());
        }
    }

    #[test]
    fn answers_without_a_status_line() {
        for (bytes, want) in [
            (&b"HTTP/1.1 OK\r\n\r\n"[..], "a status line that nginx cannot read: \"HTTP/1.1 OK\""),
            (b"HTTP/2 200 OK\r\n", "a status line that nginx cannot read"),
            (b"\r\nHTTP/1.1 200 OK\r\n", "before its status line"),
            (b"<h1>It works</h1>", "a page and no header"),
            (b"Content-Type: text/html\r\n\r\nhello", "a header that has no status line"),
            (b"Traceback (most recent call last):\n", "no HTTP response: \"Traceback"),
            (b"hello\n", "no HTTP response: \"hello\""),
            (b"SSH-2.0-x\r\n", "speaks SSH, and nginx spoke HTTP to it"),
            (b"\x7fELF\x02\x01", "no HTTP response, from byte 0 on"),
        ] {
            let (summary, advice) = headless(bytes, 0);
            assert!(summary.contains(want) && !advice.is_empty(), "{summary}");
        }
    }
}
