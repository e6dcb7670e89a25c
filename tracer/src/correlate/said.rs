//! The request that nginx itself names, against what the kernel side saw of it.
//!
//! nginx's own word is exact: it comes from the request that the failed attempt's socket belongs to. The status is the
//! kernel's, as is everything where both agree; where they differ, nothing is told.

use std::borrow::Cow;

use super::request::{Attribution, Head, Ids, OPAQUE, Request, parse};
use crate::event::said::{Statement, Words};

/// The two sources of evidence name different requests.
pub const DISAGREE: &str = "what nginx says of the request and what the kernel saw of it differ";
/// Nothing was seen of the answer.
pub const STATUS_UNSEEN: &str = "the status that the client saw is not known";

/// The request that a statement is about, without a number; None if its client's connection is not TCP.
#[must_use]
pub fn request(said: &Statement) -> Option<Request> {
    let (client, local) = said.client?;
    Some(Request {
        id: 0,
        client,
        local,
        head: head(&said.line, &said.host),
        status: None,
        ids: Ids::default(),
    })
}

/// The head as a client of HTTP/1 would have sent it: nginx makes such a request line for the others.
fn head(line: &Words, host: &Words) -> Option<Head> {
    let mut text = line.bytes.clone();
    if line.truncated {
        return parse(&text);
    }
    text.extend_from_slice(b"\r\n");
    if !host.truncated && !host.bytes.is_empty() && !host.bytes.iter().any(u8::is_ascii_control) {
        text.extend_from_slice(b"Host: ");
        text.extend_from_slice(&host.bytes);
        text.extend_from_slice(b"\r\n");
    }
    text.extend_from_slice(b"\r\n");
    parse(&text)
}

/// True if both can be of one request, as far as each is known.
fn same(one: &Head, other: &Head) -> bool {
    let (a, b) = (one.target.as_str(), other.target.as_str());
    let targets = match (one.truncated, other.truncated) {
        (false, false) => a == b,
        (true, false) => b.starts_with(a),
        (false, true) => a.starts_with(b),
        (true, true) => a.starts_with(b) || b.starts_with(a),
    };
    let hosts = one.host.is_none() || other.host.is_none() || one.host == other.host;
    one.method == other.method && targets && hosts
}

/// Puts together what nginx says (`own`), what both links of the kernel side led to (`kernel`), and the answer that
/// was reported for nginx's request (`answer`).
#[must_use]
pub fn join(mut own: Request, kernel: Option<&Attribution>, answer: Option<&Attribution>) -> Attribution {
    let fits = |request: &Request| {
        request.client == own.client
            && match (&request.head, &own.head) {
                (Some(kernel), Some(said)) => same(kernel, said),
                _ => true,
            }
    };
    if let Some(seen) = kernel.and_then(|kernel| kernel.request.as_ref()) {
        if !fits(seen) {
            return Attribution::unknown(DISAGREE);
        }
        own.status = seen.status;
        own.ids = seen.ids.clone();
        own.head = seen.head.clone().or(own.head);
        let note = kernel.and_then(|kernel| kernel.note.clone()).filter(|_| own.head.is_none());
        let unseen = own.status.is_none().then_some(STATUS_UNSEEN).filter(|_| seen.head.is_none());
        return Attribution { note: note.or(unseen.map(Cow::Borrowed)), request: Some(own) };
    }
    let status = answer.and_then(|answer| answer.request.as_ref()).filter(|seen| fits(seen));
    own.status = status.and_then(|seen| seen.status);
    own.ids = status.map(|seen| seen.ids.clone()).unwrap_or_default();
    let note = match (&own.head, own.status) {
        (Some(_), Some(_)) => None,
        (Some(_), None) => Some(STATUS_UNSEEN),
        (None, _) => Some(OPAQUE),
    };
    Attribution { request: Some(own), note: note.map(Cow::Borrowed) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::correlate::request::UNLINKED;

    fn words(text: &str) -> Words {
        Words { bytes: text.as_bytes().to_vec(), truncated: false }
    }

    fn made(client: &str, line: &str, status: Option<u16>) -> Request {
        let head = head(&words(line), &words("shop.test"));
        let client = client.parse().unwrap();
        Request { id: 1, client, local: "192.0.2.1:443".parse().unwrap(), head, status, ids: Ids::default() }
    }

    fn seen(request: Request) -> Attribution {
        Attribution { request: Some(request), note: None }
    }

    const A: &str = "192.0.2.7:1000";

    #[test]
    fn heads_of_all_protocols() {
        for line in ["GET /a?b HTTP/1.1", "GET /a?b HTTP/2.0", "GET /a?b HTTP/3.0", "GET /a?b"] {
            let head = head(&words(line), &words("shop.test")).unwrap();
            let host = head.host.as_deref();
            assert_eq!(
                (head.method.as_str(), head.target.as_str(), host),
                ("GET", "/a?b", Some("shop.test"))
            );
        }
        let absolute = head(&words("GET http://other.test/ HTTP/1.1"), &words("shop.test")).unwrap();
        assert_eq!(absolute.host.as_deref(), Some("other.test"));
        let cut = Words { truncated: true, ..words("GET /aaaa") };
        let cut = head(&cut, &words("shop.test")).unwrap();
        assert!(cut.truncated && cut.target == "/aaaa");
        assert_eq!(head(&words(""), &words("x")), None);
        assert_eq!(head(&words("GET / HTTP/1.1"), &words("a\nb")).unwrap().host, None);
    }

    #[test]
    fn nginx_alone() {
        let joined = join(made(A, "GET /a HTTP/1.1", None), None, None);
        assert_eq!(joined.request.unwrap().head.unwrap().target, "/a");
        assert_eq!(joined.note.as_deref(), Some(STATUS_UNSEEN));
        let unlinked = Attribution::unknown(UNLINKED);
        let answer = seen(made(A, "GET /a HTTP/1.1", Some(502)));
        let joined = join(made(A, "GET /a HTTP/1.1", None), Some(&unlinked), Some(&answer));
        assert_eq!((joined.request.unwrap().status, joined.note.as_deref()), (Some(502), None));
    }

    #[test]
    fn the_answer_of_another_request_is_not_its_own() {
        for other in
            [made("192.0.2.7:1001", "GET /a HTTP/1.1", Some(200)), made(A, "GET /b HTTP/1.1", Some(200))]
        {
            let joined = join(made(A, "GET /a HTTP/1.1", None), None, Some(&seen(other)));
            assert_eq!((joined.request.unwrap().status, joined.note.as_deref()), (None, Some(STATUS_UNSEEN)));
        }
    }

    #[test]
    fn agreement_and_contradiction() {
        let own = || made(A, "GET /a HTTP/1.1", None);
        let joined = join(own(), Some(&seen(made(A, "GET /a HTTP/1.1", Some(504)))), None);
        assert_eq!((joined.request.unwrap().status, joined.note.as_deref()), (Some(504), None));
        for other in ["GET /b HTTP/1.1", "POST /a HTTP/1.1", "GET http://x.test/a HTTP/1.1"] {
            let joined = join(own(), Some(&seen(made(A, other, Some(504)))), None);
            assert_eq!(joined, Attribution::unknown(DISAGREE), "{other}");
        }
        let other = seen(made("192.0.2.8:1000", "GET /a HTTP/1.1", Some(504)));
        assert_eq!(join(own(), Some(&other), None), Attribution::unknown(DISAGREE));
    }

    #[test]
    fn a_client_whose_bytes_tell_nothing() {
        let mut hidden = made(A, "", None);
        hidden.head = None;
        let kernel = Attribution { request: Some(hidden), note: Some(OPAQUE.into()) };
        let joined = join(made(A, "GET /secret HTTP/2.0", None), Some(&kernel), None);
        assert_eq!(joined.request.unwrap().head.unwrap().target, "/secret");
        assert_eq!(joined.note.as_deref(), Some(STATUS_UNSEEN));
    }

    #[test]
    fn cut_off_targets_agree_by_their_beginnings() {
        let long = "x".repeat(900);
        let whole = made(A, &format!("GET /{long} HTTP/1.1"), Some(502));
        let line = Words { bytes: format!("GET /{long}").into_bytes()[..511].to_vec(), truncated: true };
        let mut own = made(A, "", None);
        own.head = head(&line, &words("shop.test"));
        let joined = join(own, Some(&seen(whole.clone())), None);
        assert_eq!(joined.request.unwrap().head, whole.head);
    }
}
