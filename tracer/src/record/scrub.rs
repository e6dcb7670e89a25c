//! What is nobody's business stays out of a recording: bodies, as text and JSON leave them out. Secrets of heads are masked
//! already, when the kernel's record is read.

use std::borrow::Cow;

use bytes::Bytes;

use crate::{correlate::talk::payload, diagnose, report::Incident};

/// What stands in place of a byte of a body. Lengths stay as they were.
const MASK: u8 = b'x';

/// The bytes without the body behind their head; None if there is none.
fn masked(bytes: &Bytes) -> Option<Bytes> {
    let body = payload::body(bytes);
    if body >= bytes.len() {
        return None;
    }
    let mut masked = bytes.to_vec();
    masked.get_mut(body..)?.fill(MASK);
    (masked != bytes[..]).then(|| masked.into())
}

/// The incident without the bodies of its exchange. One that the verdict rests on, and thus quotes, stays: a broken chunk,
/// or the page of a port that speaks TLS.
pub(super) fn scrubbed(incident: &Incident) -> Cow<'_, Incident> {
    let Some(talk) = incident.case.attempt.talk.as_deref() else {
        return Cow::Borrowed(incident);
    };
    let (request, response) = (masked(&talk.request), masked(&talk.response));
    let ways = [(request.as_ref(), response.as_ref()), (request.as_ref(), None), (None, response.as_ref())];
    for (request, response) in ways {
        if request.is_none() && response.is_none() {
            continue;
        }
        let mut changed = incident.clone();
        if let Some(talk) = changed.case.attempt.talk.as_deref_mut() {
            talk.request = request.cloned().unwrap_or_else(|| talk.request.clone());
            talk.response = response.cloned().unwrap_or_else(|| talk.response.clone());
        }
        if diagnose::verdict(&changed.case) == incident.verdict {
            return Cow::Owned(changed);
        }
    }
    Cow::Borrowed(incident)
}
