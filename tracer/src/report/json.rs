//! JSON lines, schema `why502/1`: own types, so that the inner ones can change. Unknown fields are null.

use std::{
    collections::BTreeMap,
    io::{self, Write},
    path::Path,
};

use serde::Serialize;

use super::{Incident, Line, Occupancy, Report, Summary, risky};
use crate::{diagnose::words, event::Stage};

/// Name and version of the schema.
pub const SCHEMA: &str = "why502/1";

#[derive(Serialize)]
struct IncidentLine<'a> {
    schema: &'static str,
    r#type: &'static str,
    time: String,
    mono_ns: u64,
    cause: &'static str,
    confidence: &'static str,
    repeats: Option<Repeats>,
    summary: &'a str,
    rival: Option<&'a str>,
    worker: Worker<'a>,
    upstream: Upstream<'a>,
    config: Vec<Config<'a>>,
    attempt: Attempt,
    request: Request<'a>,
    evidence: Vec<Evidence<'a>>,
    fix: Vec<Fix<'a>>,
}

#[derive(Serialize)]
struct Worker<'a> {
    pid: u32,
    container: Option<&'a str>,
}

#[derive(Serialize)]
struct Upstream<'a> {
    name: Option<&'a str>,
    address: Option<String>,
    server: Option<&'a str>,
    module: Option<&'a str>,
}

#[derive(Serialize)]
struct Config<'a> {
    role: &'static str,
    file: Option<std::borrow::Cow<'a, str>>,
    line: Option<u32>,
    text: &'a str,
}

/// The incident stands for so many failures, which were counted and not looked at one by one.
#[derive(Serialize)]
struct Repeats {
    count: u64,
    since: String,
}

#[derive(Serialize)]
struct Attempt {
    phase: Option<&'static str>,
    errno: Option<i32>,
    errno_name: Option<&'static str>,
    duration_us: Option<u64>,
    local: Option<String>,
    syns: Option<u32>,
    number: Option<u32>,
    client_saw: Option<u16>,
    payload: Option<Payload>,
}

/// The first bytes of the exchange; secrets are masked, bodies left out.
#[derive(Serialize)]
struct Payload {
    sent: Option<String>,
    received: Option<String>,
}

/// The client's request; what is not certain is null, and `note` says why.
#[derive(Serialize)]
struct Request<'a> {
    id: Option<u64>,
    method: Option<&'a str>,
    target: Option<&'a str>,
    target_truncated: Option<bool>,
    host: Option<&'a str>,
    client: Option<String>,
    request_id: Option<String>,
    traceparent: Option<String>,
    note: Option<&'a str>,
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
struct SummaryLine<'a> {
    schema: &'static str,
    r#type: &'static str,
    time: String,
    duration_s: f64,
    incidents: BTreeMap<&'static str, u64>,
    incidents_total: u64,
    events_lost: u64,
    workers: usize,
    masters: usize,
    tier: &'static str,
    connects: u64,
    established: u64,
    failed: u64,
    ring_records: u64,
    counted: u64,
    skipped_runs: u64,
    found_late: u64,
    overhead_ns_per_connection: Option<u64>,
    programs: &'a [super::ProgramCost],
    checked: &'a [super::innocence::Checked],
    maps: Occupancy,
}

/// Writes one object a line.
#[derive(Debug, Default)]
pub struct Json;

fn file(path: &Path) -> Option<std::borrow::Cow<'_, str>> {
    Some(path.to_string_lossy())
}

fn request(i: &Incident) -> Request<'_> {
    let request = i.attribution.request.as_ref();
    let head = i.head();
    let ids = i.ids();
    Request {
        id: request.map(|r| r.id),
        method: head.map(|h| h.method.as_str()),
        target: head.map(|h| h.target.as_str()),
        target_truncated: head.map(|h| h.truncated),
        host: head.and_then(|h| h.host.as_deref()),
        client: request.map(|r| r.client.to_string()),
        request_id: ids.request_id,
        traceparent: ids.traceparent,
        note: i.attribution.note.as_deref(),
    }
}

impl Report for Json {
    fn incident(&mut self, out: &mut dyn Write, i: &Incident) -> io::Result<()> {
        let a = &i.case.attempt;
        let errno = a.errno();
        let config = i
            .lines()
            .into_iter()
            .map(|line| match line {
                Line::Config(c) => {
                    Config { role: line.role(), file: file(&c.file), line: Some(c.line), text: &c.text }
                }
                Line::Default(text) => Config { role: line.role(), file: None, line: None, text },
            })
            .collect();
        let line = IncidentLine {
            schema: SCHEMA,
            r#type: "incident",
            time: i.time.rfc3339(),
            mono_ns: i.mono_ns,
            cause: i.verdict.cause.name(),
            confidence: i.verdict.confidence.name(),
            repeats: i
                .repeats
                .map(|repeats| Repeats { count: repeats.count, since: repeats.since.rfc3339() }),
            summary: &i.verdict.summary,
            rival: i.verdict.rival.as_deref(),
            worker: Worker { pid: a.worker, container: i.container.as_deref() },
            upstream: Upstream {
                name: i.upstream(),
                address: i.address(),
                server: i.server(),
                module: i.module(),
            },
            config,
            attempt: Attempt {
                phase: match a.stage {
                    Stage::Socket => Some("socket"),
                    Stage::Bind => Some("bind"),
                    Stage::Connect | Stage::SynSent => Some("connect"),
                    Stage::Established => Some("established"),
                    Stage::Untried => None,
                },
                errno,
                errno_name: errno.and_then(words::errno_name),
                duration_us: a.duration_us().filter(|_| i.repeats.is_none()),
                local: (a.local.port() != 0 && i.repeats.is_none()).then(|| a.local.to_string()),
                syns: (a.stage == Stage::SynSent).then(|| i.case.syns()),
                number: i.number(),
                client_saw: i.client_saw(),
                payload: i.payload().map(|(sent, received)| Payload { sent, received }),
            },
            request: request(i),
            evidence: i.verdict.evidence.iter().map(|e| Evidence { kind: e.kind, text: &e.text }).collect(),
            fix: i.verdict.fix.iter().map(|f| Fix { text: &f.text, command: f.command.as_deref() }).collect(),
        };
        write_line(out, &line)
    }

    fn summary(&mut self, out: &mut dyn Write, s: &Summary) -> io::Result<()> {
        let line = SummaryLine {
            schema: SCHEMA,
            r#type: "summary",
            time: s.time.rfc3339(),
            duration_s: s.duration.as_secs_f64(),
            incidents: s.incidents.iter().map(|(cause, n)| (cause.name(), *n)).collect(),
            incidents_total: s.incidents.values().sum(),
            events_lost: s.lost(),
            workers: s.workers,
            masters: s.masters,
            tier: s.tier.name(),
            connects: s.counters.connects,
            established: s.counters.established,
            failed: s.counters.failed,
            ring_records: s.counters.sent,
            counted: s.counters.counted,
            skipped_runs: s.skipped_runs,
            found_late: s.counters.found_late,
            overhead_ns_per_connection: s.overhead_ns(),
            programs: &s.programs,
            checked: &s.checked,
            maps: s.maps,
        };
        write_line(out, &line)
    }
}

/// Compact JSON in which no character can steer a terminal: what [`risky`] names is escaped, as any parser
/// reads it back.
struct Escaping;

impl serde_json::ser::Formatter for Escaping {
    fn write_string_fragment<W: ?Sized + Write>(&mut self, writer: &mut W, fragment: &str) -> io::Result<()> {
        let mut rest = fragment;
        while let Some((at, found)) = rest.char_indices().find(|(_, c)| risky(*c)) {
            let (plain, tail) = rest.split_at(at);
            writer.write_all(plain.as_bytes())?;
            // All of them lie in the basic plane: one escape.
            write!(writer, "\\u{:04x}", u32::from(found))?;
            rest = tail.get(found.len_utf8()..).unwrap_or_default();
        }
        writer.write_all(rest.as_bytes())
    }
}

pub(super) fn write_line(out: &mut dyn Write, value: &impl Serialize) -> io::Result<()> {
    let mut line = Vec::with_capacity(2048);
    value.serialize(&mut serde_json::Serializer::with_formatter(&mut line, Escaping))?;
    line.push(b'\n');
    out.write_all(&line)?;
    out.flush()
}
