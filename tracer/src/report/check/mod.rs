//! Showing what `why502 check` found: a checklist, then the findings, worst first, with the lines they are about.

mod json;
mod snippet;
mod text;

use std::path::Path;

use crate::{
    check::{Finding, Report, Severity},
    nginx::{Model, binary::Build},
};

pub use json::json;
pub use text::text;

/// One nginx with what was found.
#[derive(Debug)]
pub struct Shown<'a> {
    /// PID of the master; `None` for a file.
    pub pid: Option<u32>,
    /// The container, as `docker 0123456789ab`.
    pub container: Option<String>,
    /// The executable, in its own root.
    pub executable: Option<&'a Path>,
    /// Which nginx it is.
    pub build: Option<&'a Build>,
    /// The main file.
    pub main: Option<&'a Path>,
    /// The configuration, for the lines that findings are about.
    pub model: &'a Model,
    /// What was looked at, and what was found.
    pub report: &'a Report,
}

/// How many there are of what.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Count {
    /// Findings with which requests fail.
    pub problems: usize,
    /// Findings with which they fail under circumstances.
    pub warnings: usize,
    /// Items that could not be looked at in full.
    pub incomplete: usize,
}

impl Count {
    /// Counts.
    #[must_use]
    pub fn of(shown: &[Shown<'_>]) -> Self {
        let findings = || shown.iter().flat_map(|one| &one.report.findings);
        let of =
            |severity: Severity| findings().filter(|finding: &&Finding| finding.severity == severity).count();
        let checked = shown.iter().flat_map(|one| &one.report.checked);
        Self {
            problems: of(Severity::Problem),
            warnings: of(Severity::Warning),
            incomplete: checked.filter(|checked| checked.incomplete.is_some()).count(),
        }
    }

    /// The last line: `nothing wrong`, or how much is.
    #[must_use]
    pub fn words(self) -> String {
        let mut parts = Vec::new();
        if self.problems > 0 {
            parts.push(super::plural(self.problems, "problem"));
        }
        if self.warnings > 0 {
            parts.push(super::plural(self.warnings, "warning"));
        }
        let found = if parts.is_empty() { "nothing wrong".to_owned() } else { parts.join(", ") };
        match self.incomplete {
            0 => found,
            1 => format!("{found}; 1 item could not be looked at in full"),
            more => format!("{found}; {more} items could not be looked at in full"),
        }
    }
}
