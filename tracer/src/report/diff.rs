//! What today's rules say of a recorded incident, against what was said of it then.

use std::io::{self, Write};

use serde::Serialize;

use super::{
    Incident,
    json::{SCHEMA, write_line},
    text::safe,
};
use crate::record::Then;

#[derive(Serialize)]
struct DiffLine<'a> {
    schema: &'static str,
    r#type: &'static str,
    time: String,
    mono_ns: u64,
    then: &'a Then,
    now: &'a Then,
}

/// One JSON object.
///
/// # Errors
/// Those of the output.
pub fn json(out: &mut dyn Write, i: &Incident, then: &Then, now: &Then) -> io::Result<()> {
    let line =
        DiffLine { schema: SCHEMA, r#type: "diff", time: i.time.rfc3339(), mono_ns: i.mono_ns, then, now };
    write_line(out, &line)
}

/// Lines for people: what is gone begins with `-`, what is new with `+`.
///
/// # Errors
/// Those of the output.
pub fn text(out: &mut dyn Write, i: &Incident, then: &Then, now: &Then) -> io::Result<()> {
    let place = i.address().unwrap_or_else(|| "no address".to_owned());
    writeln!(out, "{}  {}  worker {}", i.time.clock(), safe(&place), i.case.attempt.worker)?;
    let (old, new) = (lines(then), lines(now));
    for line in old.iter().filter(|line| !new.contains(line)) {
        writeln!(out, "  - {}", safe(line))?;
    }
    for line in new.iter().filter(|line| !old.contains(line)) {
        writeln!(out, "  + {}", safe(line))?;
    }
    writeln!(out)
}

fn lines(then: &Then) -> Vec<String> {
    let mut lines = vec![
        format!("cause     {} ({})", then.cause, then.confidence),
        format!("summary   {}", then.summary),
    ];
    lines.extend(then.rival.iter().map(|rival| format!("or        {rival}")));
    lines.extend(then.evidence.iter().map(|(_, text)| format!("evidence  {text}")));
    for (text, command) in &then.fix {
        lines.push(format!("fix       {text}"));
        lines.extend(command.iter().map(|command| format!("          $ {command}")));
    }
    lines
}
