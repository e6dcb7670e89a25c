//! What `why502 check` finds: one thing that is wrong, with what breaks because of it.

use std::path::PathBuf;

use crate::diagnose::{Cause, Confidence, Evidence, Fix};

/// How bad it is; worst first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Severity {
    /// Requests fail now, or will when they come this way.
    Problem,
    /// Requests fail under circumstances that the text names.
    Warning,
}

impl Severity {
    /// Name in the JSON.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Severity::Problem => "problem",
            Severity::Warning => "warning",
        }
    }
}

/// A line of the configuration that a finding is about.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Place {
    /// What the line is in the finding: `server`, `pass`, `directive`, `upstream`, `location`, `listen`.
    pub role: &'static str,
    /// The file as nginx sees it; none for a default that no line sets.
    pub file: Option<PathBuf>,
    /// From 1.
    pub line: Option<u32>,
    /// The text, such as `proxy_pass https://backend;`.
    pub text: String,
}

/// One finding.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Finding {
    /// Stable name, by which it can be silenced (`--ignore NAME`); part of the interface.
    pub name: &'static str,
    /// How bad it is.
    pub severity: Severity,
    /// The cause that a request's failure would have, if it is one of them.
    pub cause: Option<Cause>,
    /// How sure it is. `Unexplained` where something failed and nothing says why.
    pub confidence: Confidence,
    /// One line.
    pub summary: String,
    /// What breaks because of it: one or two sentences.
    pub breaks: String,
    /// What else it could be, if it is not proven.
    pub rival: Option<String>,
    /// The address or socket that it is about, as an incident's `upstream.address` writes it.
    pub upstream: Option<String>,
    /// The lines, the most telling first.
    pub at: Vec<Place>,
    /// What it rests on.
    pub evidence: Vec<Evidence>,
    /// What to do, from narrow to wide.
    pub fix: Vec<Fix>,
}

/// One item of the checklist: something that was looked at, whether or not anything was found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Checked {
    /// What was looked at, such as `configuration`, `upstream servers`, `SELinux`.
    pub what: &'static str,
    /// What was seen, in a few words, such as `12 of 12 answer, slowest 3 ms`.
    pub seen: String,
    /// Why it could not be looked at (in full), and what to do about that.
    pub incomplete: Option<String>,
    /// Names of the findings that belong to it.
    pub findings: Vec<&'static str>,
}
