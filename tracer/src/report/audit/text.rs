//! An audit for people.

use std::{
    collections::BTreeMap,
    io::{self, Write},
    time::{Duration, UNIX_EPOCH},
};

use anstyle::{AnsiColor, Style};

use super::{
    super::{
        moment, plural,
        text::{LABEL, LIKELY, PLACE, PROVEN, safe},
    },
    Shown,
};
use crate::{
    audit::{Pair, Told, Written},
    errlog::Level,
};

const GOOD: Style = AnsiColor::Green.on_default();

fn at(micros: i64) -> String {
    moment(UNIX_EPOCH + Duration::from_micros(u64::try_from(micros).unwrap_or(0)))
}

fn zone(offset: i64) -> String {
    let (sign, size) = if offset < 0 { ('-', -offset) } else { ('+', offset) };
    format!("UTC{sign}{:02}:{:02}", size / 3600, size % 3600 / 60)
}

/// Writes all; of each kind that does not fit, the first `most`.
///
/// # Errors
/// Those of the output.
pub fn text(out: &mut dyn Write, shown: &Shown<'_>, most: usize) -> io::Result<()> {
    let mut writer = Writer { out, shown, most };
    writer.sides()?;
    writer.table()?;
    writer.counts()?;
    writer.misses()?;
    writer.verdict()?;
    writer.out.flush()
}

struct Writer<'a> {
    out: &'a mut dyn Write,
    shown: &'a Shown<'a>,
    most: usize,
}

impl Writer<'_> {
    fn item(&mut self, label: &str, text: &str) -> io::Result<()> {
        writeln!(self.out, "  {LABEL}{label:<14}{LABEL:#}{}", safe(text))
    }

    /// What is compared with what.
    fn sides(&mut self) -> io::Result<()> {
        let shown = self.shown;
        let (stream, audit) = (shown.stream, shown.audit);
        let when = match stream.span() {
            Some((from, to)) => format!("{} to {}", at(from), at(to)),
            None => "of unknown time".to_owned(),
        };
        let told = plural(stream.told.len(), "incident");
        self.item("run", &format!("{}: {when}, {told}", shown.stream_name))?;
        for (name, (all, own)) in shown.log_names.iter().zip(&shown.logs.counts) {
            self.item("log", &format!("{name}: {all} lines, {own} about upstream servers near the run"))?;
        }
        self.item("times", &format!("{}: {}", zone(audit.zone.offset), shown.basis()))?;
        let level = audit.level.map_or("nothing was written", Level::name);
        self.item("level", level)?;
        for (host, own) in &audit.aliases {
            self.item("worker", &format!("{host} calls itself {own} in the logs"))?;
        }
        for doubt in shown.doubts() {
            writeln!(self.out, "  {LIKELY}{:<14}{}{LIKELY:#}", "incomplete", safe(&doubt))?;
        }
        Ok(())
    }

    /// What was said of which text.
    fn table(&mut self) -> io::Result<()> {
        let audit = self.shown.audit;
        if audit.table.is_empty() {
            return Ok(());
        }
        let width = audit.table.keys().map(|(says, _)| says.len()).max().unwrap_or(0);
        writeln!(self.out, "\n    {LABEL}{:>7}  {:<width$}  cause{LABEL:#}", "pairs", "nginx's text")?;
        for ((says, cause), said) in &audit.table {
            let (mark, style) = if said.fits { (' ', Style::new()) } else { ('!', LIKELY) };
            writeln!(self.out, "  {style}{mark} {:>7}  {says:<width$}  {cause}{style:#}", said.count)?;
        }
        Ok(())
    }

    fn counts(&mut self) -> io::Result<()> {
        let audit = self.shown.audit;
        writeln!(self.out)?;
        let right = format!(
            "{} pairs, for {} and {}",
            audit.right,
            plural(audit.lines, "line"),
            plural(audit.incidents, "incident")
        );
        self.item("right", &right)?;
        let requests: Vec<String> =
            audit.requests.iter().map(|(same, count)| format!("{count} {}", same.name())).collect();
        if !requests.is_empty() {
            self.item("requests", &requests.join(", "))?;
        }
        for (excuse, count) in &audit.excused {
            self.item("no line", &format!("{count}: {}", excuse.words()))?;
        }
        for (count, what) in [
            (audit.at_edge, "in the seconds in which the run began or ended, which it may not have seen"),
            (audit.outside, "of other times"),
            (audit.remarks, "that fail no request"),
        ] {
            if count > 0 {
                self.item("not counted", &format!("{} {what}", plural(count, "line")))?;
            }
        }
        Ok(())
    }

    fn misses(&mut self) -> io::Result<()> {
        let audit = self.shown.audit;
        let lines = |lines: &[&Written]| lines.iter().map(|line| self.line(line)).collect::<Vec<_>>();
        let pairs = |pairs: &[Pair<'_>]| {
            pairs
                .iter()
                .map(|pair| format!("{}\n      {}", self.line(pair.line), self.told(pair.told)))
                .collect::<Vec<_>>()
        };
        let surplus = audit.surplus.iter().map(|surplus| {
            let note = surplus.note.map(|note| format!("\n      ({note})")).unwrap_or_default();
            format!("{}{note}", self.told(surplus.told))
        });
        let causes = audit.surplus.iter().map(|surplus| surplus.told.cause.name().to_owned());
        let all = [
            ("missing", "a line without an incident", lines(&audit.missing)),
            ("surplus", "an incident without a line", surplus.collect()),
            ("contradicted", "the text does not allow the cause", pairs(&audit.contradicted)),
            (
                "other request",
                "the line is of another request, or neither has its own",
                pairs(&audit.other_request),
            ),
            ("unexplained", "the incident names no cause", pairs(&audit.unexplained)),
            ("not known", "a line that this program does not know", lines(&audit.unknown)),
        ];
        let kinds = [kinds(audit.missing.iter().map(|line| line.kind())), kinds(causes)]
            .into_iter()
            .chain(std::iter::repeat_with(String::new));
        for ((label, meaning, list), kinds) in all.into_iter().zip(kinds) {
            if list.is_empty() {
                continue;
            }
            writeln!(self.out, "\n  {PROVEN}{label:<14}{}{PROVEN:#} {meaning}{kinds}", list.len())?;
            for text in list.iter().take(self.most) {
                writeln!(self.out, "    {text}")?;
            }
            if list.len() > self.most {
                let more = list.len() - self.most;
                writeln!(self.out, "    and {more} more (--list {}, or -o json)", list.len())?;
            }
        }
        Ok(())
    }

    fn line(&self, line: &Written) -> String {
        format!("{PLACE}{}{PLACE:#}  {}", safe(&self.shown.place(line.at)), safe(&line.text))
    }

    fn told(&self, told: &Told) -> String {
        let place = format!("{}:{}", self.shown.stream_name, told.line);
        let confidence = told.confidence.name();
        let server = told.address.as_ref().map(ToString::to_string).unwrap_or_default();
        let request = match (&told.method, &told.target) {
            (Some(method), Some(target)) => format!("  {method} {target}"),
            (_, Some(target)) => format!("  {target}"),
            _ => String::new(),
        };
        format!(
            "{PLACE}{}{PLACE:#}  {}  {} ({}, {confidence})  {}{}  worker {}",
            safe(&place),
            at(told.time),
            safe(&told.summary),
            told.cause,
            safe(&server),
            safe(&request),
            told.pid
        )
    }

    fn verdict(&mut self) -> io::Result<()> {
        let audit = self.shown.audit;
        let style = if audit.false_proven > 0 {
            PROVEN
        } else if audit.agrees() {
            GOOD
        } else {
            LIKELY
        };
        let wrong = [
            (audit.missing.len(), "missing"),
            (audit.surplus.len(), "surplus"),
            (audit.contradicted.len(), "contradicted"),
            (audit.other_request.len(), "of another request"),
            (audit.unexplained.len(), "unexplained"),
            (audit.false_proven, "proven and wrong"),
        ];
        let wrong: Vec<String> = wrong
            .iter()
            .filter(|(count, _)| *count > 0)
            .map(|(count, what)| format!("{count} {what}"))
            .collect();
        let end = match (audit.lines + audit.incidents, wrong.is_empty()) {
            (0, _) => "nothing to compare: no line and no incident needs the other".to_owned(),
            (_, true) => "each line has its incident, each incident its line".to_owned(),
            (_, false) => wrong.join(", "),
        };
        writeln!(
            self.out,
            "\n{style}precision {:.3} %, recall {:.3} %: {end}{style:#}",
            audit.precision(),
            audit.recall()
        )
    }
}

/// ` (3 ended-in-header, 1 invalid)`
fn kinds(names: impl Iterator<Item = String>) -> String {
    let mut counts: BTreeMap<String, usize> = BTreeMap::new();
    for name in names {
        *counts.entry(name).or_default() += 1;
    }
    let mut counts: Vec<(String, usize)> = counts.into_iter().collect();
    counts.sort_by_key(|(_, count)| std::cmp::Reverse(*count));
    let all: Vec<String> = counts.into_iter().map(|(name, count)| format!("{count} {name}")).collect();
    format!(": {}", all.join(", "))
}
