//! The request that nginx itself names, by its word or by its memory: it is the one that the failed attempt's socket belongs to.

use std::borrow::Cow;

use super::request::{Attribution, Head, Ids, OPAQUE, Request, parse};
use crate::event::said::{Statement, Words};

/// Nothing was seen of the answer.
pub const STATUS_UNSEEN: &str = "the status that the client saw is not known";

/// The request that a statement is about, without a number; None if its client's connection is not TCP.
#[must_use]
pub fn request(said: &Statement) -> Option<Request> {
    let (client, local) = said.client?;
    let ids = Ids::of(&said.head);
    Some(Request { id: 0, client, local, head: head(&said.line, &said.host), status: None, ids })
}

/// The same with its number and the status of the answer to it, as far as that was seen.
#[must_use]
pub fn attribution(own: Request, id: u64, status: Option<u16>) -> Attribution {
    let note = match (&own.head, status) {
        (Some(_), Some(_)) => None,
        (Some(_), None) => Some(STATUS_UNSEEN),
        (None, _) => Some(OPAQUE),
    };
    Attribution { request: Some(Request { id, status, ..own }), note: note.map(Cow::Borrowed) }
}

/// The client of a session of the stream module: nothing else is known of it, and nothing else is missing.
#[must_use]
pub fn session(own: Request, id: u64) -> Attribution {
    Attribution { request: Some(Request { id, head: None, status: None, ..own }), note: None }
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

#[cfg(test)]
mod tests {
    use super::*;

    fn words(text: &str) -> Words {
        Words { bytes: text.as_bytes().to_vec(), truncated: false }
    }

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
    fn what_is_not_known_is_said() {
        let made = |line: &str, status| {
            let head = head(&words(line), &words("shop.test"));
            let (client, local) = ("192.0.2.7:1000".parse().unwrap(), "192.0.2.1:443".parse().unwrap());
            attribution(Request { id: 0, client, local, head, status: None, ids: Ids::default() }, 7, status)
        };
        let whole = made("GET /a HTTP/2.0", Some(502));
        let request = whole.request.unwrap();
        assert_eq!((request.id, request.status, whole.note), (7, Some(502), None));
        assert_eq!(made("GET /a HTTP/1.1", None).note.as_deref(), Some(STATUS_UNSEEN));
        let hidden = made("", Some(502));
        assert_eq!(hidden.note.as_deref(), Some(OPAQUE));
        assert_eq!(hidden.request.unwrap().head, None);
    }
}
