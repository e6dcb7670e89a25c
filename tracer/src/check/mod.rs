//! `why502 check`: the running nginx, its configuration and its upstream servers, looked at without traffic.

mod finding;
mod handshake;
pub mod limits;
#[cfg(test)]
mod model_of;
pub mod probe;
pub mod security;
mod subject;
mod targets;
pub mod upstreams;

pub use finding::{Checked, Finding, Place, Severity};
pub use subject::{Options, Report, Subject};

/// A family of checks.
#[derive(Debug, Clone, Copy)]
pub struct Family {
    /// What it finds: each name with one line that says what is wrong.
    pub names: &'static [Name],
    /// Looks.
    pub inspect: fn(&Subject<'_>, &Options) -> Report,
}

/// A finding's name, with one line that says what is wrong.
pub type Name = (&'static str, &'static str);

/// Every family, in the order in which they are told.
pub const FAMILIES: &[Family] = &[
    Family { names: upstreams::NAMES, inspect: upstreams::inspect },
    Family { names: security::NAMES, inspect: security::inspect },
    Family { names: limits::NAMES, inspect: limits::inspect },
];

/// Every name that a finding can have.
pub fn names() -> impl Iterator<Item = Name> {
    FAMILIES.iter().flat_map(|family| family.names.iter().copied())
}

/// Looks at one nginx: every family in turn, what is to be ignored left out, worst first.
#[must_use]
pub fn inspect(subject: &Subject<'_>, options: &Options) -> Report {
    let mut whole = Report::default();
    for family in FAMILIES {
        let found = (family.inspect)(subject, options);
        whole.checked.extend(found.checked);
        whole.findings.extend(found.findings);
    }
    settle(whole, options)
}

/// Leaves out what is to be ignored, and puts the worst first. Stable: among equals the order of looking holds.
fn settle(mut whole: Report, options: &Options) -> Report {
    let ignored = |name: &str| options.ignore.iter().any(|other| other == name);
    whole.findings.retain(|finding| !ignored(finding.name));
    for checked in &mut whole.checked {
        checked.findings.retain(|name| !ignored(name));
    }
    whole.findings.sort_by_key(|finding| (finding.severity, std::cmp::Reverse(finding.confidence)));
    whole
}
