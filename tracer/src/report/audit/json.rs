//! An audit as JSON lines, schema `why502/1`: one object for each line and incident that does not fit, the counts last.

use std::{
    collections::BTreeMap,
    io::{self, Write},
    time::{Duration, UNIX_EPOCH},
};

use serde::Serialize;

use super::{
    super::{json, time::rfc3339},
    Shown,
};
use crate::{
    audit::{Basis, Same, Told, Written},
    errlog::Level,
};

/// One line or incident that does not fit.
#[derive(Serialize)]
struct MissLine<'a> {
    schema: &'static str,
    r#type: &'static str,
    line: Option<Line<'a>>,
    incident: Option<Incident<'a>>,
    request: Option<&'static str>,
    note: Option<&'a str>,
}

#[derive(Serialize)]
struct Line<'a> {
    file: Option<&'a str>,
    line: u64,
    says: Option<String>,
    text: &'a str,
}

#[derive(Serialize)]
struct Incident<'a> {
    line: u64,
    time: String,
    worker: u32,
    cause: &'static str,
    confidence: &'static str,
    summary: &'a str,
    upstream: Option<String>,
    method: Option<&'a str>,
    target: Option<&'a str>,
    host: Option<&'a str>,
    client: Option<&'a str>,
}

#[derive(Serialize)]
struct AuditLine<'a> {
    schema: &'static str,
    r#type: &'static str,
    agrees: bool,
    precision: f64,
    recall: f64,
    right: usize,
    false_proven: usize,
    run: Option<Run>,
    incomplete: Vec<String>,
    logs: Vec<Log<'a>>,
    utc_offset_s: i64,
    utc_offset_by: &'static str,
    level: Option<&'static str>,
    lines: Lines,
    incidents: Incidents,
    requests: BTreeMap<&'static str, usize>,
    excused: BTreeMap<&'static str, usize>,
    workers: BTreeMap<String, u32>,
    table: Vec<Row<'a>>,
}

#[derive(Serialize)]
struct Run {
    from: String,
    to: String,
    incidents: usize,
    events_lost: u64,
}

#[derive(Serialize)]
struct Log<'a> {
    file: &'a str,
    lines: u64,
    of_upstreams: u64,
}

#[derive(Serialize)]
struct Lines {
    counted: usize,
    missing: usize,
    at_edge: usize,
    outside: usize,
    remarks: usize,
    unknown: usize,
}

#[derive(Serialize)]
struct Incidents {
    counted: usize,
    surplus: usize,
    contradicted: usize,
    unexplained: usize,
    other_request: usize,
    remarked: usize,
}

#[derive(Serialize)]
struct Row<'a> {
    says: &'a str,
    cause: &'static str,
    fits: bool,
    count: usize,
}

fn stamp(micros: i64) -> String {
    rfc3339(UNIX_EPOCH + Duration::from_micros(u64::try_from(micros).unwrap_or(0)))
}

fn incident(told: &Told) -> Incident<'_> {
    Incident {
        line: told.line,
        time: stamp(told.time),
        worker: told.pid,
        cause: told.cause.name(),
        confidence: told.confidence.name(),
        summary: &told.summary,
        upstream: told.address.as_ref().map(ToString::to_string),
        method: told.method.as_deref(),
        target: told.target.as_deref(),
        host: told.host.as_deref(),
        client: told.client.as_deref(),
    }
}

/// Writes all.
///
/// # Errors
/// Those of the output.
pub fn json(out: &mut dyn Write, shown: &Shown<'_>) -> io::Result<()> {
    let audit = shown.audit;
    for written in &audit.missing {
        let line = Some(of_line(shown, written, true));
        json::write_line(out, &MissLine { line, ..miss("missing") })?;
    }
    for surplus in &audit.surplus {
        let said = Some(incident(surplus.told));
        json::write_line(out, &MissLine { incident: said, note: surplus.note, ..miss("surplus") })?;
    }
    for (kind, pairs) in [
        ("contradicted", &audit.contradicted),
        ("other-request", &audit.other_request),
        ("unexplained", &audit.unexplained),
    ] {
        for pair in pairs {
            let line = MissLine {
                line: Some(of_line(shown, pair.line, true)),
                incident: Some(incident(pair.told)),
                request: Some(pair.request.name()),
                ..miss(kind)
            };
            json::write_line(out, &line)?;
        }
    }
    for written in &audit.unknown {
        let line = Some(of_line(shown, written, false));
        json::write_line(out, &MissLine { line, ..miss("unknown-line") })?;
    }
    json::write_line(out, &counts(shown))
}

fn miss<'a>(kind: &'static str) -> MissLine<'a> {
    MissLine { schema: json::SCHEMA, r#type: kind, line: None, incident: None, request: None, note: None }
}

fn of_line<'a>(shown: &Shown<'a>, line: &'a Written, known: bool) -> Line<'a> {
    Line {
        file: shown.log_names.get(line.at.log).map(String::as_str),
        line: line.at.line,
        says: known.then(|| line.kind()),
        text: &line.text,
    }
}

fn counts<'a>(shown: &Shown<'a>) -> AuditLine<'a> {
    let (stream, audit) = (shown.stream, shown.audit);
    let logs = shown.log_names.iter().zip(&shown.logs.counts);
    AuditLine {
        schema: json::SCHEMA,
        r#type: "audit",
        agrees: audit.agrees(),
        precision: audit.precision(),
        recall: audit.recall(),
        right: audit.right,
        false_proven: audit.false_proven,
        run: stream.span().map(|(from, to)| Run {
            from: stamp(from),
            to: stamp(to),
            incidents: stream.told.len(),
            events_lost: stream.runs.iter().map(|run| run.lost).sum(),
        }),
        incomplete: shown.doubts(),
        logs: logs.map(|(file, (lines, own))| Log { file, lines: *lines, of_upstreams: *own }).collect(),
        utc_offset_s: audit.zone.offset,
        utc_offset_by: match audit.zone.basis {
            Basis::User => "option",
            Basis::Incidents(_) => "incidents",
            Basis::Machine => "machine",
        },
        level: audit.level.map(Level::name),
        lines: Lines {
            counted: audit.lines,
            missing: audit.missing.len(),
            at_edge: audit.at_edge,
            outside: audit.outside,
            remarks: audit.remarks,
            unknown: audit.unknown.len(),
        },
        incidents: Incidents {
            counted: audit.incidents,
            surplus: audit.surplus.len(),
            contradicted: audit.contradicted.len(),
            unexplained: audit.unexplained.len(),
            other_request: audit.other_request.len(),
            remarked: audit.remarked,
        },
        requests: Same::ALL.map(|same| (same.name(), audit.requests.get(&same).copied().unwrap_or(0))).into(),
        excused: audit.excused.iter().map(|(excuse, count)| (excuse.name(), *count)).collect(),
        workers: audit.aliases.iter().map(|(host, own)| (host.to_string(), *own)).collect(),
        table: audit
            .table
            .iter()
            .map(|((says, cause), said)| Row {
                says,
                cause: cause.name(),
                fits: said.fits,
                count: said.count,
            })
            .collect(),
    }
}
