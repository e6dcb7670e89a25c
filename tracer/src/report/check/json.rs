//! Findings as JSON lines, schema `why502/1`: one object a checked item and a finding, the summary last. Unknown fields
//! are null.

use std::{
    borrow::Cow,
    io::{self, Write},
};

use serde::Serialize;

use super::{super::json, Count, Shown};
use crate::check::{Checked, Finding};

#[derive(Serialize)]
struct Nginx<'a> {
    pid: Option<u32>,
    container: Option<&'a str>,
    main: Option<Cow<'a, str>>,
}

#[derive(Serialize)]
struct CheckedLine<'a> {
    schema: &'static str,
    r#type: &'static str,
    nginx: Nginx<'a>,
    what: &'a str,
    seen: &'a str,
    incomplete: Option<&'a str>,
    findings: &'a [&'static str],
}

#[derive(Serialize)]
struct FindingLine<'a> {
    schema: &'static str,
    r#type: &'static str,
    nginx: Nginx<'a>,
    name: &'a str,
    severity: &'static str,
    cause: Option<&'static str>,
    confidence: &'static str,
    summary: &'a str,
    breaks: &'a str,
    rival: Option<&'a str>,
    upstream: Option<&'a str>,
    config: Vec<Line<'a>>,
    evidence: Vec<Evidence<'a>>,
    fix: Vec<Fix<'a>>,
}

#[derive(Serialize)]
struct Line<'a> {
    role: &'static str,
    file: Option<Cow<'a, str>>,
    line: Option<u32>,
    text: &'a str,
}

#[derive(Serialize)]
struct Evidence<'a> {
    kind: &'static str,
    text: &'a str,
}

#[derive(Serialize)]
struct Fix<'a> {
    text: &'a str,
    command: Option<&'a str>,
}

#[derive(Serialize)]
struct SummaryLine {
    schema: &'static str,
    r#type: &'static str,
    nginx: usize,
    checked: usize,
    problems: usize,
    warnings: usize,
    incomplete: usize,
}

/// Writes one object a line.
///
/// # Errors
/// Those of the output.
pub fn json(out: &mut dyn Write, shown: &[Shown<'_>]) -> io::Result<()> {
    for one in shown {
        for checked in &one.report.checked {
            json::write_line(out, &checked_line(one, checked))?;
        }
        for finding in &one.report.findings {
            json::write_line(out, &finding_line(one, finding))?;
        }
    }
    let count = Count::of(shown);
    let summary = SummaryLine {
        schema: json::SCHEMA,
        r#type: "summary",
        nginx: shown.len(),
        checked: shown.iter().map(|one| one.report.checked.len()).sum(),
        problems: count.problems,
        warnings: count.warnings,
        incomplete: count.incomplete,
    };
    json::write_line(out, &summary)
}

fn nginx<'a>(shown: &'a Shown<'_>) -> Nginx<'a> {
    Nginx {
        pid: shown.pid,
        container: shown.container.as_deref(),
        main: shown.main.map(|path| path.to_string_lossy()),
    }
}

fn checked_line<'a>(shown: &'a Shown<'_>, checked: &'a Checked) -> CheckedLine<'a> {
    CheckedLine {
        schema: json::SCHEMA,
        r#type: "checked",
        nginx: nginx(shown),
        what: checked.what,
        seen: &checked.seen,
        incomplete: checked.incomplete.as_deref(),
        findings: &checked.findings,
    }
}

fn finding_line<'a>(shown: &'a Shown<'_>, finding: &'a Finding) -> FindingLine<'a> {
    let line = |place: &'a crate::check::Place| Line {
        role: place.role,
        file: place.file.as_deref().map(|path| path.to_string_lossy()),
        line: place.line,
        text: &place.text,
    };
    FindingLine {
        schema: json::SCHEMA,
        r#type: "finding",
        nginx: nginx(shown),
        name: finding.name,
        severity: finding.severity.name(),
        cause: finding.cause.map(crate::diagnose::Cause::name),
        confidence: finding.confidence.name(),
        summary: &finding.summary,
        breaks: &finding.breaks,
        rival: finding.rival.as_deref(),
        upstream: finding.upstream.as_deref(),
        config: finding.at.iter().map(line).collect(),
        evidence: finding.evidence.iter().map(|e| Evidence { kind: e.kind, text: &e.text }).collect(),
        fix: finding.fix.iter().map(|f| Fix { text: &f.text, command: f.command.as_deref() }).collect(),
    }
}
