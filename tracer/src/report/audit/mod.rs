//! Showing an audit: counts, and each line and incident that does not fit.

mod json;
mod text;

use crate::audit::{Audit, Basis, Logs, Stream};

pub use json::json;
pub use text::text;

/// An audit and where its sides come from.
#[derive(Debug)]
pub struct Shown<'a> {
    /// Name of the stream.
    pub stream_name: &'a str,
    /// Names of the logs.
    pub log_names: &'a [String],
    /// What was told.
    pub stream: &'a Stream,
    /// What was written.
    pub logs: &'a Logs,
    /// What came of it.
    pub audit: &'a Audit<'a>,
}

impl Shown<'_> {
    /// What makes the input less than whole.
    #[must_use]
    pub fn doubts(&self) -> Vec<String> {
        let mut doubts = self.stream.doubts();
        doubts.extend(self.logs.doubts());
        doubts
    }

    /// `FILE:LINE` of a line.
    fn place(&self, at: crate::audit::Source) -> String {
        format!("{}:{}", self.log_names.get(at.log).map_or("?", String::as_str), at.line)
    }

    /// Why the zone is what it is.
    fn basis(&self) -> String {
        match self.audit.zone.basis {
            Basis::User => "--utc-offset".to_owned(),
            Basis::Incidents(1) => "with it one incident has a line of its request and server".to_owned(),
            Basis::Incidents(count) => {
                format!(
                    "with it {count} incidents have a line of their request and server, fewer with any other"
                )
            }
            Basis::Machine => "this machine's: nothing else tells it (--utc-offset does)".to_owned(),
        }
    }
}
