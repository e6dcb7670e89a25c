use bytes::Bytes;
use tracer_ebpf::kind;

use super::*;
use crate::event::{DecodeError, Event, addr, decode, read};

fn put(room: &mut [u8], text: &[u8]) -> u16 {
    let length = text.len().min(room.len() - 1);
    room[..length].copy_from_slice(&text[..length]);
    u16::try_from(text.len()).unwrap_or(u16::MAX)
}

fn wire() -> wire::Said {
    let mut said: wire::Said = read(&vec![0; size_of::<wire::Said>()], 0).unwrap();
    said.kind = kind::SAID;
    said.flags = said_flag::CLIENT | said_flag::UPSTREAM;
    said.tgid = 77;
    said.err = 111;
    said.time_ns = 5;
    said.upstream_sk = 6;
    said.upstream_start_ns = 4;
    said.request = 0x5555;
    said.began = [9, 10];
    (said.status, said.header_ms, said.states) = (504, u32::MAX, 2);
    said.mark = 3;
    said.server_line = 12;
    said.client = addr("192.0.2.7".parse().unwrap());
    said.client_port = 4711;
    said.local = addr("2001:db8::1".parse().unwrap());
    said.local_port = 443;
    said.peer[..8].copy_from_slice(&[2, 0, 0x0b, 0xb8, 127, 0, 0, 1]);
    said.lens = [
        put(&mut said.format, b"connect() failed"),
        put(&mut said.file, b"/etc/nginx/nginx.conf"),
        put(&mut said.location, b"/api/"),
        put(&mut said.line, b"GET /api/1 HTTP/2.0"),
        put(&mut said.host, b"shop.test"),
        0,
        put(&mut said.peer_name, b"127.0.0.1:3000"),
        put(&mut said.action, b"connecting to upstream"),
    ];
    said
}

fn bytes(said: &wire::Said) -> Bytes {
    // SAFETY: repr(C) without implicit padding, as the size is asserted; the slice ends with the borrow.
    let bytes =
        unsafe { std::slice::from_raw_parts(std::ptr::from_ref(said).cast::<u8>(), size_of::<wire::Said>()) };
    Bytes::copy_from_slice(bytes)
}

fn statement(said: &wire::Said) -> Statement {
    match decode(&bytes(said)).unwrap() {
        Event::Said(statement) => *statement,
        other => panic!("{other:?}"),
    }
}

/// A statement, changed.
pub(crate) fn sample(change: impl FnOnce(&mut wire::Said)) -> Statement {
    let mut said = wire();
    change(&mut said);
    statement(&said)
}

#[test]
fn reads_a_statement() {
    let s = statement(&wire());
    assert_eq!((s.worker, s.time_ns, s.attempt, s.errno), (77, 5, Some((6, 4)), Some(111)));
    assert_eq!((s.attempt_number, s.noted, s.has_header), (Some(2), Some(504), false));
    let led = sample(|said| said.flags |= said_flag::LED);
    assert_eq!((led.attempt_number, sample(|said| said.status = 0).noted), (None, None));
    assert_eq!(s.client, Some(("192.0.2.7:4711".parse().unwrap(), "[2001:db8::1]:443".parse().unwrap())));
    assert_eq!(s.line.bytes, b"GET /api/1 HTTP/2.0");
    assert_eq!(s.host.text(), "shop.test");
    assert_eq!(s.peer, Some("127.0.0.1:3000".parse().unwrap()));
    let place = s.place.clone().unwrap();
    assert_eq!((place.file.to_str(), place.line), (Some("/etc/nginx/nginx.conf"), 12));
    assert_eq!(place.location, b"/api/");
    assert_eq!(s.text().as_deref(), Some("connect() failed"));
    assert_eq!(s.said(), Said::Other);
}

#[test]
fn texts_for_people() {
    for (format, expect) in [
        ("connect() failed", "connect() failed"),
        ("connect() to %V failed", "connect() to … failed"),
        ("%V could not be resolved (%i: %s)", "… could not be resolved"),
        ("no resolver defined to resolve %V", "no resolver defined to resolve"),
        ("upstream sent invalid header: \"%*s\\x%02xd...\"", "upstream sent invalid header"),
        (
            "upstream sent more data than specified in \"Content-Length\" header",
            "upstream sent more data than specified in \"Content-Length\" header",
        ),
        ("%", ""),
        ("100% é", "100"),
    ] {
        assert_eq!(words_of(format), expect, "{format}");
    }
}

#[test]
fn knows_the_failures_without_a_socket() {
    let about = |format: &[u8], subject: &[u8], number| {
        let mut said = wire();
        said.lens[0] = put(&mut said.format, format);
        said.lens[5] = put(&mut said.subject, subject);
        said.lens[6] = put(&mut said.peer_name, b"backend");
        said.number = number;
        (said.upstream_sk, said.upstream_start_ns, said.flags) = (0, 0, said_flag::CLIENT);
        let statement = statement(&said);
        assert_eq!((statement.attempt, statement.connected), (None, false));
        statement.said()
    };
    let text = |text: &str| text.to_owned();
    assert_eq!(about(b"no live upstreams", b"", 0), Said::NoLiveUpstreams { upstream: text("backend") });
    assert_eq!(
        about(b"%V could not be resolved (%i: %s)", b"db.test", 3),
        Said::NotResolved { name: text("db.test"), state: 3 }
    );
    assert_eq!(
        about(b"no resolver defined to resolve %V", b"db.test", 0),
        Said::NoResolver { name: text("db.test") }
    );
    assert_eq!(about(b"no live upstreams, they say", b"", 0), Said::Other);
    assert_eq!(
        about(b"upstream SSL certificate does not match \"%V\"", b"app\x1b.test", 0),
        Said::Certificate { reason: Some(text("it is not for the name app\\u{1b}.test")) }
    );
    assert_eq!(about(REFUSED, b"", 1), Said::Certificate { reason: None }, "what is not read yet");
    assert_eq!(about(b"upstream SSL certificate status not found in the OCSP response", b"", 0), Said::Other);
}

#[test]
fn what_is_cut_off_is_no_place() {
    let mut said = wire();
    said.lens[1] = put(&mut said.file, &[b'/'; 300]);
    said.lens[1] = 255;
    assert_eq!(statement(&said).place, None);
    let mut said = wire();
    said.lens[2] = put(&mut said.location, &[b'a'; 200]);
    assert_eq!(statement(&said).place, None);
    let mut said = wire();
    said.lens[1] = put(&mut said.file, b"relative");
    assert_eq!(statement(&said).place, None);
    let mut said = wire();
    said.server_line = u64::MAX;
    assert_eq!(statement(&said).place, None);
    let mut said = wire();
    said.lens[3] = put(&mut said.line, &[b'x'; 1600]);
    assert!(statement(&said).line.truncated);
}

#[test]
fn is_total() {
    let whole = bytes(&wire());
    for length in 4..whole.len() {
        let short = decode(&whole.slice(..length));
        assert!(matches!(short, Err(DecodeError::Short { .. })), "{length}");
    }
    let mut seed = 502_u64;
    for _ in 0..2000 {
        let mut random = whole.to_vec();
        for byte in &mut random[4..] {
            seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            *byte = (seed >> 33) as u8;
        }
        match decode(&Bytes::from(random)).unwrap() {
            Event::Said(s) => drop((s.said(), s.text(), s.line.text())),
            other => panic!("{other:?}"),
        }
    }
}

#[test]
fn a_session_has_a_client_and_no_request() {
    let said = sample(|said| {
        said.flags |= said_flag::SESSION;
        said.mark = 0;
        said.lens[2..5].copy_from_slice(&[0; 3]);
        said.head_len = 0;
    });
    assert!(said.session && !sample(|_| {}).session);
    assert!(said.line.bytes.is_empty() && said.host.bytes.is_empty() && said.head.is_empty());
    assert_eq!(said.place.unwrap().location, b"");
    assert_eq!(said.client.unwrap().0, "192.0.2.7:4711".parse().unwrap());
}
