//! Text for people: one block an incident, as wide as the terminal, colours only as an addition.

use std::{
    io::{self, Write},
    path::Path,
};

use anstyle::{AnsiColor, Style};

use super::{Incident, Line, Report, Summary, fold::Fold, risky};
use crate::{
    diagnose::{Cause, Confidence, words},
    event::Stage,
    nginx::Role,
};

/// Label column: two blanks, eight letters, three blanks.
const INDENT: usize = 13;
/// Narrowest text column; a narrower terminal breaks lines by itself.
const NARROWEST: usize = 30;

pub(super) const TIME: Style = Style::new().dimmed();
pub(super) const LABEL: Style = Style::new().dimmed();
pub(super) const PROVEN: Style = AnsiColor::Red.on_default().bold();
pub(super) const LIKELY: Style = AnsiColor::Yellow.on_default().bold();
pub(super) const PLACE: Style = AnsiColor::Cyan.on_default();
const FIX: Style = AnsiColor::Green.on_default();

/// The text report.
#[derive(Debug)]
pub struct Text {
    width: usize,
    fold: Fold,
}

impl Text {
    /// `width`: columns of the terminal; None if it is none.
    #[must_use]
    pub fn new(width: Option<usize>) -> Self {
        Self { width: width.unwrap_or(usize::MAX), fold: Fold::default() }
    }

    /// Writes a labelled paragraph, broken at blanks.
    fn paragraph(&self, out: &mut dyn Write, label: &str, style: Style, text: &str) -> io::Result<()> {
        let room = self.width.saturating_sub(INDENT).max(NARROWEST);
        for (index, line) in wrap(text, room).into_iter().enumerate() {
            let label = if index == 0 { label } else { "" };
            writeln!(out, "  {LABEL}{label:<8}{LABEL:#}   {style}{line}{style:#}")?;
        }
        Ok(())
    }

    /// Says how many equal failures there were.
    fn repeats(&mut self, out: &mut dyn Write, now_ns: u64, end: bool) -> io::Result<()> {
        let lines = self.fold.due(now_ns, end);
        for (time, line) in &lines {
            writeln!(out, "{TIME}{}{TIME:#}  {line}", time.clock())?;
        }
        if lines.is_empty() { Ok(()) } else { out.flush() }
    }

    fn cause(&self, out: &mut dyn Write, i: &Incident) -> io::Result<()> {
        let tag = if i.verdict.cause == Cause::Unexplained {
            format!("({})", i.verdict.cause)
        } else {
            format!("({}, {})", i.verdict.cause, i.verdict.confidence.name())
        };
        let style = match i.verdict.confidence {
            Confidence::Proven => PROVEN,
            Confidence::Likely | Confidence::Unexplained => LIKELY,
        };
        let summary = safe(&i.verdict.summary);
        let room = self.width.saturating_sub(INDENT).max(NARROWEST);
        let used = summary.chars().count();
        if self.width != usize::MAX && used + 2 + tag.chars().count() <= room {
            let gap = (room - used - tag.chars().count()).min(60_usize.saturating_sub(used).max(2));
            return writeln!(
                out,
                "  {LABEL}cause   {LABEL:#}   {style}{summary}{style:#}{:gap$}{LABEL}{tag}{LABEL:#}",
                ""
            );
        }
        self.paragraph(out, "cause", style, &summary)?;
        self.paragraph(out, "", LABEL, &tag)
    }
}

/// Breaks a text at blanks into lines of at most `room` columns; a longer word has a line of its own.
pub(super) fn wrap(text: &str, room: usize) -> Vec<String> {
    let mut lines = vec![String::new()];
    for word in text.split(' ') {
        let used = lines.last().map_or(0, |l| l.chars().count());
        if used > 0 && used.saturating_add(1).saturating_add(word.chars().count()) > room {
            lines.push(String::new());
        }
        if let Some(line) = lines.last_mut() {
            if !line.is_empty() {
                line.push(' ');
            }
            line.push_str(word);
        }
    }
    lines
}

/// Replaces what could steer a terminal: control characters, and marks that change the writing direction.
pub(super) fn safe(text: &str) -> String {
    text.chars()
        .flat_map(|c| {
            let (plain, escaped) = if risky(c) { (None, Some(c.escape_default())) } else { (Some(c), None) };
            plain.into_iter().chain(escaped.into_iter().flatten())
        })
        .collect()
}

/// A path as people know it: relative to /etc/nginx where it is below.
pub(super) fn short(path: &Path) -> String {
    let shown = path.strip_prefix("/etc/nginx").unwrap_or(path);
    safe(&shown.to_string_lossy())
}

/// The request as its client saw it: `502  GET /api/orders  shop.example.com  client 203.0.113.9  worker 133`.
fn headline(i: &Incident) -> String {
    let container = i.container.as_deref().map(|c| format!("  {}", safe(c))).unwrap_or_default();
    let worker = format!("worker {}{container}", i.case.attempt.worker);
    if let Some(repeats) = i.repeats {
        let span_us = i.mono_ns.saturating_sub(repeats.since_ns) / 1000;
        return format!("{}  {} times in {}  {worker}", how(i), repeats.count, words::duration(span_us));
    }
    let Some(request) = &i.attribution.request else {
        return format!("{}  {worker}", how(i));
    };
    let client = format!("client {}", request.client.ip());
    let Some(head) = &request.head else {
        return format!("{}  {client}  {worker}", how(i));
    };
    let status = request.status.map_or_else(|| "---".to_owned(), |s| s.to_string());
    let host = head.host.as_deref().map(|h| format!("  {}", safe(h))).unwrap_or_default();
    let more = if head.truncated { "…" } else { "" };
    format!(
        "{status}  {} {}{more}{host}  {client}  {worker}",
        safe(&head.method),
        bounded(&safe(&head.target))
    )
}

/// A target that leaves room for the rest of the line.
fn bounded(target: &str) -> String {
    const MOST: usize = 200;
    match target.char_indices().nth(MOST) {
        Some((end, _)) => format!("{}…", target.get(..end).unwrap_or_default()),
        None => target.to_owned(),
    }
}

/// True if nginx had tried servers for the request before it found no other.
fn tried_some(i: &Incident) -> bool {
    i.case.facts.no_attempt.as_ref().is_some_and(|none| none.tried > 0)
}

/// What the request is called elsewhere.
fn ids(i: &Incident) -> Option<String> {
    let ids = i.ids();
    let request_id = ids.request_id.map(|id| format!("X-Request-ID {id}"));
    let traceparent = ids.traceparent.map(|id| format!("traceparent {id}"));
    let all: Vec<String> = request_id.into_iter().chain(traceparent).collect();
    (!all.is_empty()).then(|| all.join("  "))
}

/// How the attempt failed, in a few words.
fn how(i: &Incident) -> String {
    let a = &i.case.attempt;
    let what = match a.stage {
        Stage::Socket => "socket failed",
        Stage::Bind => "bind failed",
        Stage::Connect | Stage::SynSent => "connect failed",
        Stage::Established if i.verdict.cause == Cause::UpstreamReturned5xx => "answered with an error",
        Stage::Established => "connection failed",
        Stage::Untried if tried_some(i) => "no further server was tried",
        Stage::Untried => "no server was tried",
    };
    let errno = a.errno().map(|e| format!("  {}", words::errno(e))).unwrap_or_default();
    let after = a
        .duration_us()
        .filter(|_| i.repeats.is_none())
        .map(|us| format!("  after {}", words::duration(us)))
        .unwrap_or_default();
    format!("{what}{errno}{after}")
}

/// The attempt, where the headline is the request's.
fn attempt(i: &Incident) -> Option<String> {
    i.head()?;
    let number = i.number().filter(|n| *n > 1).map(|n| format!("attempt {n}: ")).unwrap_or_default();
    // A body that was cut off is noticed, whatever the status.
    let rescued = i.client_saw().is_some_and(|status| status < 500) && !i.passed_on();
    let end = if rescued { "; the client never noticed" } else { "" };
    Some(format!("{number}{}{end}", how(i)))
}

/// Which lines it was one of, where that is open.
fn ambiguity(i: &Incident) -> Option<String> {
    let mut places: Vec<String> = Vec::new();
    for candidate in &i.case.config {
        let passes = candidate.lines.iter().filter(|line| line.role == Role::Pass);
        // Where no pass is known, the server's line stands for it.
        let own = candidate.lines.first().filter(|_| candidate.passes.is_empty());
        for line in passes.chain(own) {
            let place = format!("{}:{}", short(&line.file), line.line);
            if !places.contains(&place) {
                places.push(place);
            }
        }
    }
    match places.as_slice() {
        [] | [_] => (i.case.config.len() > 1)
            .then(|| "several places of the configuration lead to this address".to_owned()),
        all => {
            let silent = if i.attribution.request.is_some() { "the request" } else { "the address alone" };
            Some(format!("one of {}: {silent} does not tell which", all.join(", ")))
        }
    }
}

fn upstream(i: &Incident) -> String {
    let unknown = match i.case.attempt.stage {
        Stage::Untried if tried_some(i) => "(no further server was tried)",
        Stage::Untried => "(no server was tried)",
        Stage::Bind => "(not known: bind() failed first)",
        Stage::Socket | Stage::Connect | Stage::SynSent | Stage::Established => {
            "(not known: no socket was opened)"
        }
    };
    let address = i.address().map_or_else(|| unknown.to_owned(), |a| safe(&a));
    match i.upstream() {
        Some(name) if Some(name) != i.address().as_deref() => {
            format!("{} → {address}", safe(name))
        }
        _ => address,
    }
}

impl Report for Text {
    fn incident(&mut self, out: &mut dyn Write, i: &Incident) -> io::Result<()> {
        let destination = i.address().unwrap_or_else(|| upstream(i));
        let label = || format!("{}  {}", i.verdict.cause, upstream(i));
        if !self.fold.is_new(i, &destination, label) {
            return Ok(());
        }
        let clock = i.time.clock();
        writeln!(out, "{TIME}{clock}{TIME:#}  {}", headline(i))?;
        if let Some(ids) = ids(i) {
            self.paragraph(out, "request", Style::new(), &safe(&ids))?;
        }
        self.paragraph(out, "upstream", Style::new(), &upstream(i))?;
        if let Some(attempt) = attempt(i) {
            self.paragraph(out, "attempt", Style::new(), &attempt)?;
        }
        self.cause(out, i)?;
        if let Some(rival) = &i.verdict.rival {
            self.paragraph(out, "or", LIKELY, &safe(rival))?;
        }
        let lines = i.lines();
        let place = |line: &Line<'_>| match line {
            Line::Config(c) => format!("{}:{}", short(&c.file), c.line),
            Line::Default(_) => "default".to_owned(),
        };
        let column = lines.iter().map(|l| place(l).chars().count()).max().unwrap_or(0);
        for (index, line) in lines.iter().enumerate() {
            let label = if index == 0 { "config" } else { "" };
            let text = match line {
                Line::Config(c) => c.text.as_str(),
                Line::Default(text) => text,
            };
            writeln!(
                out,
                "  {LABEL}{label:<8}{LABEL:#}   {PLACE}{:<column$}{PLACE:#}  {}",
                place(line),
                safe(text)
            )?;
        }
        if let Some(text) = ambiguity(i) {
            self.paragraph(out, "", LIKELY, &text)?;
        }
        for (index, evidence) in i.verdict.evidence.iter().enumerate() {
            self.paragraph(
                out,
                if index == 0 { "evidence" } else { "" },
                Style::new(),
                &safe(&evidence.text),
            )?;
        }
        for (index, fix) in i.verdict.fix.iter().enumerate() {
            self.paragraph(out, if index == 0 { "fix" } else { "" }, FIX, &safe(&fix.text))?;
            if let Some(command) = &fix.command {
                self.paragraph(out, "", Style::new(), &format!("$ {}", safe(command)))?;
            }
        }
        writeln!(out)?;
        out.flush()
    }

    fn tick(&mut self, out: &mut dyn Write, now_ns: u64) -> io::Result<()> {
        self.repeats(out, now_ns, false)
    }

    fn waits(&self) -> bool {
        self.fold.waits()
    }

    fn summary(&mut self, out: &mut dyn Write, s: &Summary) -> io::Result<()> {
        self.repeats(out, s.mono_ns, true)?;
        let mut err = anstream::stderr().lock();
        let total: u64 = s.incidents.values().sum();
        writeln!(
            err,
            "why502: watched {} for {}: {total} incident{}, {} connects, {} established, {} failed",
            super::plural(s.workers, "worker"),
            words::duration(u64::try_from(s.duration.as_micros()).unwrap_or(u64::MAX)),
            if total == 1 { "" } else { "s" },
            s.counters.connects,
            s.counters.established,
            s.counters.failed
        )?;
        for (cause, count) in &s.incidents {
            writeln!(err, "{count:>10}  {cause}: {}", cause.meaning())?;
        }
        for checked in &s.checked {
            writeln!(err, "why502: {}: {}", checked.cause, checked.text)?;
        }
        if s.lost() > 0 {
            writeln!(
                err,
                "why502: {} events were lost: the list above is incomplete (a larger --ring-size helps)",
                s.lost()
            )?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn wraps_at_blanks_and_never_loses_a_word() {
        assert_eq!(wrap("one two three", 7), ["one two", "three"]);
        assert_eq!(wrap("incomprehensibilities x", 5), ["incomprehensibilities", "x"]);
        assert_eq!(wrap("", 5), [""]);
    }

    #[test]
    fn bytes_from_outside_cannot_steer_the_terminal() {
        assert_eq!(safe("a\u{1b}[2Jb\u{202e}c→é"), "a\\u{1b}[2Jb\\u{202e}c→é");
    }
}
