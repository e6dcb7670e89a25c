//! `why502 check`: the running nginx, its configuration and its upstream servers, looked at without traffic.

mod build;
pub mod config;
mod finding;
mod handshake;
pub mod limits;
#[cfg(test)]
mod model_of;
pub mod pages;
pub mod past;
mod position;
pub mod probe;
pub mod resolvers;
pub mod running;
pub mod security;
mod subject;
mod targets;
pub mod temp;
pub mod upstreams;

pub use finding::{Checked, Finding, Place, Severity};
pub use subject::{Options, Report, Subject};

#[cfg(test)]
pub(crate) use config::testing as config_testing;

use crate::session::Snapshot;

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
    Family { names: running::NAMES, inspect: running::inspect },
    Family { names: config::NAMES, inspect: config::inspect },
    Family { names: upstreams::NAMES, inspect: upstreams::inspect },
    Family { names: resolvers::NAMES, inspect: resolvers::inspect },
    Family { names: security::NAMES, inspect: security::inspect },
    Family { names: limits::NAMES, inspect: limits::inspect },
    Family { names: temp::NAMES, inspect: temp::inspect },
    Family { names: past::NAMES, inspect: past::inspect },
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

/// Looks at a configuration without any nginx.
#[must_use]
pub fn inspect_file(snapshot: &Snapshot, options: &Options) -> Report {
    let mut whole = config::of_model(&snapshot.model, &snapshot.problems);
    let broken = running::unreadable(&snapshot.problems, &snapshot.model, "nginx -t");
    if let Some(checked) = whole.checked.first_mut() {
        checked.findings.extend(broken.iter().map(|finding| finding.name));
    }
    whole.findings.extend(broken);
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

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;
    use crate::diagnose::Confidence;

    #[test]
    fn every_name_belongs_to_one_family() {
        let all: Vec<&str> = names().map(|(name, _)| name).collect();
        let unique: BTreeSet<&str> = all.iter().copied().collect();
        assert_eq!(unique.len(), all.len());
    }

    #[test]
    fn the_worst_comes_first_and_what_is_ignored_does_not_come() {
        let all = vec![
            Finding::warning("a", "1"),
            Finding::problem("b", "2").likely("x"),
            Finding::problem("c", "3"),
            Finding { confidence: Confidence::Unexplained, ..Finding::problem("d", "4") },
            Finding::problem("e", "5"),
        ];
        let checked = Checked { what: "x", seen: String::new(), incomplete: None, findings: vec!["a", "e"] };
        let options = Options { ignore: vec!["e".to_owned()], ..Options::default() };
        let settled = settle(Report { checked: vec![checked], findings: all }, &options);
        let names: Vec<&str> = settled.findings.iter().map(|finding| finding.name).collect();
        assert_eq!(names, ["c", "b", "d", "a"]);
        assert_eq!(settled.checked[0].findings, ["a"]);
    }
}
