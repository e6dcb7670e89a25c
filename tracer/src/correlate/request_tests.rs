//! Heads as clients send them and as nginx leaves them, hostile bytes, and what may be said of each record.

use super::*;

fn head(method: &str, target: &str, host: Option<&str>) -> Option<Head> {
    Some(Head {
        method: method.to_owned(),
        target: target.to_owned(),
        truncated: false,
        host: host.map(str::to_owned),
    })
}

#[test]
fn reads_heads() {
    for (bytes, expected) in [
        (&b"GET /a HTTP/1.1\r\nHost: x.example\r\n\r\n"[..], head("GET", "/a", Some("x.example"))),
        (b"GET /a HTTP/1.1\nhost:x\n\n", head("GET", "/a", Some("x"))),
        (b"POST  /a?b=c  HTTP/1.0 \r\nA: b\r\nHOST:   y:81  \r\n\r\n", head("POST", "/a?b=c", Some("y:81"))),
        // nginx has been here.
        (b"GET /a HTTP/1.1\r\nHost\0 x\0\nAccept\0 */*\0\n\r\n", head("GET", "/a", Some("x"))),
        (b"GET /a HTTP/1.1\r\nA\0 b\0 \r\nHost\0 x\0\n\r\n", head("GET", "/a", Some("x"))),
        (b"GET /a HTTP/1.1\nA\0 b\0Host\0 x\0\n", head("GET", "/a", Some("x"))),
        (b"GET /a HTTP/1.1\r\nA\0\0\nHost\0 x\0\n\r\n", head("GET", "/a", Some("x"))),
        // The absolute target wins.
        (b"GET http://b:8/c HTTP/1.1\r\nHost: x\r\n\r\n", head("GET", "http://b:8/c", Some("b:8"))),
        (b"OPTIONS * HTTP/1.1\r\nHost: x\r\n\r\n", head("OPTIONS", "*", Some("x"))),
        (b"GET /\r\n", head("GET", "/", None)),
        (b"GET /a b HTTP/1.1\r\n\r\n", head("GET", "/a b", None)),
        (b"GET /\xff\xfe\xc3\xa9 HTTP/1.1\r\n\r\n", head("GET", "/\\xff\\xfe\u{e9}", None)),
        // What is cut off is no host.
        (b"GET /a HTTP/1.1\r\nHost: x.exam", head("GET", "/a", None)),
        (b"GET /a HTTP/1.1\r\nHost\0 x.exam", head("GET", "/a", None)),
        (b"GET /a HTTP/1.1\r\nHost", head("GET", "/a", None)),
        // After the empty line there is a body.
        (b"GET / HTTP/1.1\r\n\r\nHost: evil\r\n\r\n", head("GET", "/", None)),
        (b"GET / HTTP/1.1\r\nno colon\r\nHost: x\r\n\r\n", head("GET", "/", Some("x"))),
        (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", None),
        (b"GET\r\n", None),
        (b"get / HTTP/1.1\r\n", None),
        (b"GET /a\0b HTTP/1.1\r\n", None),
        (b"GET / HTTP/1.1 x\r\n", None),
        (b"", None),
        (b" / HTTP/1.1\r\n", None),
        (b"\x16\x03\x01\x02\x00\x01", None),
    ] {
        assert_eq!(parse(bytes), expected, "{}", bytes.escape_ascii());
    }
}

#[test]
fn a_place_is_given_only_if_it_is_certain() {
    for (target, truncated, path) in [
        ("/a?b", false, Some("/a?b")),
        ("http://b:8/c", false, Some("/c")),
        ("HTTPS://b/c/d?e", false, Some("/c/d?e")),
        ("http://b", false, None),
        ("http://b?x/y", false, None),
        ("*", false, None),
        ("/a\\xff", false, None),
        ("/a/b", true, None),
        ("/a/b?c", true, Some("/a/b?c")),
        ("/a HTTP/1.1?", true, None),
    ] {
        let head = Head {
            method: "GET".to_owned(),
            target: target.to_owned(),
            truncated,
            host: Some("h".to_owned()),
        };
        assert_eq!(head.place(), (path, Some("h")), "{target}");
    }
}

#[test]
fn a_target_without_end_is_truncated() {
    let long = format!("GET /{}", "a".repeat(1000));
    let head = parse(long.as_bytes()).unwrap();
    assert!(head.truncated && head.host.is_none());
    assert_eq!(head.target.len(), 1001);
}

/// A small generator of pseudo-random numbers (xorshift).
struct Dice(u64);

impl Dice {
    fn roll(&mut self, sides: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        usize::try_from(self.0 % (sides as u64)).unwrap()
    }
}

#[test]
fn hostile_bytes_are_bounded_and_never_a_panic() {
    let pieces: [&[u8]; 14] = [
        b"GET ",
        b"/",
        b" HTTP/1.1",
        b"\r\n",
        b"\n",
        b"\0",
        b":",
        b" ",
        b"Host",
        b"http://",
        b"\xff",
        b"\x1b[2J",
        b"a",
        b"\r",
    ];
    let mut dice = Dice(0x1234_5678_9abc_def1);
    for _ in 0..200_000 {
        let mut bytes = Vec::new();
        for _ in 0..dice.roll(24) {
            bytes.extend_from_slice(pieces[dice.roll(pieces.len())]);
        }
        if let Some(head) = parse(&bytes) {
            assert!(!head.method.is_empty() && !head.target.is_empty());
            assert!(!head.target.contains(['\n', '\0']), "{}", bytes.escape_ascii());
            assert!(head.target.len() <= bytes.len() * 4);
        }
    }
    for _ in 0..20_000 {
        let bytes: Vec<u8> = (0..dice.roll(80)).map(|_| dice.roll(256) as u8).collect();
        let _ = (parse(&bytes), Ids::of(&bytes));
    }
}

#[test]
fn nginx_marks_change_nothing_of_what_is_read() {
    // What nginx does to a head, by its own rules, leaves method, target and host as they were.
    for (sent, left) in [
        (
            &b"GET /x HTTP/1.1\r\nHost: shop\r\nAccept: a b\r\n\r\n"[..],
            &b"GET /x HTTP/1.1\r\nHost\0 shop\0\nAccept\0 a b\0\n\r\n"[..],
        ),
        (
            b"PUT /x HTTP/1.1\r\nA:1\r\nHost:shop  \r\n\r\n",
            b"PUT /x HTTP/1.1\r\nA\x001\0\nHost\0shop\0 \r\n\r\n",
        ),
    ] {
        assert_eq!(parse(sent), parse(left));
    }
}

#[test]
fn names_in_the_logs_of_others() {
    const PARENT: &str = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
    let ids = |request_id: Option<&str>, traceparent: Option<&str>| Ids {
        request_id: request_id.map(str::to_owned),
        traceparent: traceparent.map(str::to_owned),
    };
    let none = ids(None, None);
    for (text, expect) in [
        (
            format!("GET / HTTP/1.1\r\nX-Request-ID: a1\r\ntraceparent: {PARENT}\r\n\r\n"),
            ids(Some("a1"), Some(PARENT)),
        ),
        (
            format!("GET / HTTP/1.1\r\nTraceparent: {PARENT}-more\r\n\r\n"),
            ids(None, Some(&format!("{PARENT}-more"))),
        ),
        // As nginx leaves them in its memory.
        ("GET / HTTP/1.1\r\nx-request-id\0 a2\0\nHost\0 x\0\n\r\n".to_owned(), ids(Some("a2"), None)),
        ("GET / HTTP/1.1\r\nX-Request-ID: a\r\nX-Request-ID: b\r\n\r\n".to_owned(), none.clone()),
        ("GET / HTTP/1.1\r\nX-Request-ID: a b\r\n\r\n".to_owned(), none.clone()),
        (format!("GET / HTTP/1.1\r\nX-Request-ID: {}\r\n\r\n", "x".repeat(129)), none.clone()),
        (format!("GET / HTTP/1.1\r\ntraceparent: {}\r\n\r\n", PARENT.to_uppercase()), none.clone()),
        ("GET / HTTP/1.1\r\ntraceparent: 00-1-2-3\r\n\r\n".to_owned(), none.clone()),
        ("GET / HTTP/1.1\r\n\r\nX-Request-ID: body\r\n".to_owned(), none.clone()),
        ("HTTP/1.1 200 OK\r\nX-Request-ID: a\r\n\r\n".to_owned(), none.clone()),
        (String::new(), none.clone()),
    ] {
        assert_eq!(Ids::of(text.as_bytes()), expect, "{text:?}");
    }
    assert_eq!(ids(Some("a"), None).or(ids(Some("b"), Some("c"))), ids(Some("a"), Some("c")));
}
