//! What the bytes and times of a connection that stood say.

pub mod fastcgi;
pub mod http1;
pub mod payload;
pub mod tls;

use super::Case;
use crate::event::Stage;

/// False for a connection that only looked suspicious to the kernel side, whose filter is deliberately wide: its response was
/// whole, and nginx passed it on. Then there is no incident.
#[must_use]
pub fn is_failure(case: &Case) -> bool {
    case.attempt.stage != Stage::Established || case.attempt.talk.is_some()
}
