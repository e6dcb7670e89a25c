//! Any bytes are what nginx was sent, or sent: by an upstream server in each protocol, by a client, by a name server. Offsets and
//! lengths lie within them, and the beginning of an answer never contradicts the whole of it.
#![no_main]

use libfuzzer_sys::fuzz_target;
use tracer::correlate::{
    no_attempt, request,
    talk::{
        fastcgi,
        http1::{self, Chunks},
        http2, memcached, payload, tls,
    },
};

fuzz_target!(|bytes: &[u8]| {
    // As records do, the bytes may end anywhere.
    let cut = bytes.last().map_or(0, |last| usize::from(*last) * bytes.len() / 256);
    let start = &bytes[..cut];
    of_http1(bytes, start);
    of_fastcgi(bytes, start);
    of_http2(bytes, start);
    of_tls(bytes, start);
    of_memcached(bytes, start);
    of_clients(bytes);
    shown(bytes);
    if let Some((_, Some(name))) = no_attempt::reply(bytes) {
        assert!(!name.is_empty() && name.bytes().all(|b| b.is_ascii_graphic()), "{name:?}");
    }
});

fn within(head: &http1::Head, len: usize) {
    assert!(head.length.is_none_or(|end| end <= len), "{head:?}");
    assert!(head.fault.as_ref().is_none_or(|fault| fault.at <= len), "{head:?}");
}

fn of_http1(bytes: &[u8], start: &[u8]) {
    assert!(http1::head_length(bytes).is_none_or(|end| end <= bytes.len()));
    assert!(http1::method(bytes).is_none_or(|method| bytes.starts_with(method.as_bytes())));
    let status = http1::status_line(bytes);
    match (status, http1::status_line(start)) {
        (Ok(Some(whole)), Ok(Some(begun))) => assert_eq!(whole, begun),
        (whole, Err(at)) => assert_eq!(whole, Err(at), "the rest makes it right"),
        (Err(at), Ok(None)) => assert!(at >= start.len(), "{at} was right so far"),
        (whole, begun) => assert_eq!(begun, Ok(None), "{whole:?}"),
    }
    let chunks = http1::chunks(bytes);
    assert!(!matches!(chunks, Chunks::Bad(at, _) if at >= bytes.len()), "{chunks:?}");
    let begun = http1::chunks(start);
    assert!(begun == Chunks::Open || begun == chunks, "{begun:?}, then {chunks:?}");
    let Ok(head) = http1::response(bytes) else { return };
    within(&head, bytes.len());
    within(&http1::cgi(bytes), bytes.len());
    if let Some(end) = head.length {
        assert_eq!(http1::response(&bytes[..end]).as_ref(), Ok(&head), "its body changes the head");
    }
    if head.status != Some(103)
        && let Ok(begun) = http1::response(start)
        && begun.status != Some(103)
    {
        assert!(begun.status.is_none() || begun.status == head.status);
        assert!(begun.length.is_none() || begun == head);
        assert!(begun.fault.is_none() || begun.fault == head.fault);
    }
}

fn of_fastcgi(bytes: &[u8], start: &[u8]) {
    let (found, begun) = (fastcgi::answer(bytes), fastcgi::answer(start));
    for (one, len) in [(&found, bytes.len()), (&begun, start.len())] {
        assert!(one.head_end.is_none_or(|end| end <= len) && one.body <= len && one.stderr.len() <= len);
        assert!(one.fault.is_none_or(|(at, _)| at <= len), "{one:?}");
        assert!(one.head_end.is_some() == one.head.length.is_some(), "{one:?}");
        within(&one.head, len);
    }
    assert!(begun.head_end.is_none() || begun.head_end == found.head_end);
    assert!(begun.ended.is_none() || begun.ended == found.ended);
    assert!(found.stderr.starts_with(&begun.stderr));
}

fn of_http2(bytes: &[u8], start: &[u8]) {
    let (found, begun) = (http2::answer(bytes), http2::answer(start));
    assert!(found.frames.len() <= bytes.len() / 9 && found.frames.starts_with(&begun.frames));
    assert!(found.too_large.is_none_or(|(at, _)| at < bytes.len()));
    assert!(begun.too_large.is_none() || begun.too_large == found.too_large);
    assert!(begun.ended <= found.ended && begun.headers <= found.headers);
    assert!(found.frames.is_empty() || http2::is_frame(bytes) || found.frames[0] > 9);
}

fn of_tls(bytes: &[u8], start: &[u8]) {
    tls::alert(bytes).map(tls::Alert::words);
    let Some(found) = tls::stream(bytes) else { return };
    assert!(tls::is_record(bytes) && found.broken.is_none_or(|at| at < bytes.len()));
    assert!(found.handshake.len() <= bytes.len() / 4);
    if let Some(begun) = tls::stream(start) {
        assert!(found.handshake.starts_with(&begun.handshake), "{begun:?}, then {found:?}");
        assert!(begun.alert.is_none() || begun.alert == found.alert);
    }
}

fn of_memcached(bytes: &[u8], start: &[u8]) {
    use memcached::Answer;
    let (found, begun) = (memcached::answer(bytes), memcached::answer(start));
    let ended = matches!((begun, found), (Answer::Value(..), Answer::Trailer(..)));
    assert!(begun == Answer::Cut || begun == found || ended);
    match found {
        Answer::Cut | Answer::Missing => {}
        Answer::Value(at, _) | Answer::Trailer(at, _) | Answer::Invalid(at) => assert!(at <= bytes.len()),
    }
}

fn of_clients(bytes: &[u8]) {
    let Some(head) = request::parse(bytes) else { return };
    assert!(!head.method.is_empty() && !head.target.is_empty() && bytes.starts_with(head.method.as_bytes()));
    // `\xNN` stands for a byte.
    assert!(
        head.target.len() <= bytes.len() * 4 && head.host.as_ref().is_none_or(|host| host.len() <= 300 * 4)
    );
    let (path, host) = head.place();
    assert!(path.is_none_or(|path| path.starts_with('/') && head.target.ends_with(path)));
    assert_eq!(host, head.host.as_deref());
}

fn shown(bytes: &[u8]) {
    let plain = |text: &str| text.bytes().all(|b| matches!(b, 0x20..=0x7e));
    assert!(payload::shown(bytes).is_none_or(|text| text.len() <= payload::MOST && plain(&text)));
    assert!(plain(&payload::escaped(bytes, 64)) && plain(&payload::quoted(bytes, 64).replace('…', "")));
}
