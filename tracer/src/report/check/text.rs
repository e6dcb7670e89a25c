//! Findings for people: a checklist, then one block a finding.

use std::io::{self, Write};

use anstyle::{AnsiColor, Style};

use super::{
    super::text::{LABEL, LIKELY, PLACE, PROVEN, safe, short, wrap},
    Count, Shown,
    snippet::snippet,
};
use crate::{
    check::{Checked, Finding, Place, Severity},
    diagnose::Confidence,
    nginx::Model,
};

/// Label column: two blanks, eight letters, three blanks.
const INDENT: usize = 13;
/// Checklist: two blanks, a mark of two, two blanks, the item, two blanks.
const ITEM: usize = 18;
/// Narrowest text column; a narrower terminal breaks lines by itself.
const NARROWEST: usize = 30;
/// Most lines of the configuration that one finding shows.
const MOST_PLACES: usize = 5;
const HEAD: Style = Style::new().bold();
const GOOD: Style = AnsiColor::Green.on_default();

/// Writes all for people. `width`: columns of the terminal.
///
/// # Errors
/// Those of the output.
pub fn text(out: &mut dyn Write, shown: &[Shown<'_>], width: Option<usize>) -> io::Result<()> {
    let mut writer = Writer { out, width: width.unwrap_or(usize::MAX) };
    for (index, one) in shown.iter().enumerate() {
        if index > 0 {
            writeln!(writer.out)?;
        }
        writer.nginx(one)?;
    }
    let count = Count::of(shown);
    let style = match (count.problems, count.warnings, count.incomplete) {
        (0, 0, 0) => GOOD,
        (0, ..) => LIKELY,
        _ => PROVEN,
    };
    writeln!(writer.out, "\n{style}{}{style:#}", count.words())?;
    writer.out.flush()
}

struct Writer<'a> {
    out: &'a mut dyn Write,
    width: usize,
}

fn style_of(severity: Severity) -> Style {
    match severity {
        Severity::Problem => PROVEN,
        Severity::Warning => LIKELY,
    }
}

impl Writer<'_> {
    fn nginx(&mut self, shown: &Shown<'_>) -> io::Result<()> {
        let title = match (shown.build, shown.model.platform.version) {
            (Some(build), _) => format!("{} {}", build.flavor, build.version),
            (None, Some(version)) => format!("nginx {version}"),
            (None, None) => "nginx of unknown version".to_owned(),
        };
        let mut title = vec![title];
        title.extend(shown.pid.map(|pid| format!("pid {pid}")));
        title.extend(shown.executable.map(|path| path.to_string_lossy().into_owned()));
        title.extend(shown.container.clone());
        title.extend(
            shown.main.filter(|_| shown.pid.is_none()).map(|path| path.to_string_lossy().into_owned()),
        );
        writeln!(self.out, "{HEAD}{}{HEAD:#}", safe(&title.join("  ")))?;
        for checked in &shown.report.checked {
            self.item(checked, &shown.report.findings)?;
        }
        for finding in &shown.report.findings {
            self.finding(shown.model, finding)?;
        }
        Ok(())
    }

    /// One line of the checklist.
    fn item(&mut self, checked: &Checked, findings: &[Finding]) -> io::Result<()> {
        let own = findings.iter().filter(|finding| checked.findings.contains(&finding.name));
        let worst = own.map(|finding| finding.severity).min();
        let (mark, style) = match (worst, &checked.incomplete) {
            (Some(severity), _) => ("!!", style_of(severity)),
            (None, Some(_)) => ("??", LIKELY),
            (None, None) => ("ok", GOOD),
        };
        let indent = 6 + ITEM;
        let room = self.width.saturating_sub(indent).max(NARROWEST);
        for (index, line) in wrap(&safe(&checked.seen), room).into_iter().enumerate() {
            if index == 0 {
                writeln!(self.out, "  {style}{mark}{style:#}  {:<ITEM$}{line}", checked.what)?;
            } else {
                writeln!(self.out, "{:indent$}{line}", "")?;
            }
        }
        if let Some(why) = &checked.incomplete {
            for line in wrap(&safe(why), room) {
                writeln!(self.out, "{:indent$}{LIKELY}{line}{LIKELY:#}", "")?;
            }
        }
        Ok(())
    }

    fn finding(&mut self, model: &Model, finding: &Finding) -> io::Result<()> {
        let style = style_of(finding.severity);
        let tag = match finding.confidence {
            Confidence::Unexplained => format!("({})", finding.name),
            Confidence::Likely | Confidence::Proven => {
                format!("({}, {})", finding.name, finding.confidence.name())
            }
        };
        writeln!(self.out)?;
        let label = finding.severity.name();
        let room = self.width.saturating_sub(INDENT).max(NARROWEST);
        let mut lines = wrap(&safe(&finding.summary), room);
        let last = lines.last().map_or(0, |line| line.chars().count());
        let fits = self.width != usize::MAX && last + 2 + tag.chars().count() <= room;
        let tag_line = if fits { None } else { Some(tag.clone()) };
        let end = lines.len().saturating_sub(1);
        for (index, line) in lines.drain(..).enumerate() {
            let label = if index == 0 { label } else { "" };
            write!(self.out, "{style}{label:<9}{style:#}    {style}{line}{style:#}")?;
            if fits && index == end {
                write!(self.out, "  {LABEL}{tag}{LABEL:#}")?;
            }
            writeln!(self.out)?;
        }
        if let Some(tag) = tag_line {
            self.paragraph("", LABEL, &tag)?;
        }
        if let Some(upstream) = &finding.upstream {
            self.paragraph("upstream", Style::new(), &safe(upstream))?;
        }
        self.places(model, finding)?;
        self.paragraph("breaks", Style::new(), &safe(&finding.breaks))?;
        if let Some(rival) = &finding.rival {
            self.paragraph("unless", LIKELY, &safe(rival))?;
        }
        for (index, evidence) in finding.evidence.iter().enumerate() {
            self.paragraph(if index == 0 { "evidence" } else { "" }, Style::new(), &safe(&evidence.text))?;
        }
        for (index, fix) in finding.fix.iter().enumerate() {
            self.paragraph(if index == 0 { "fix" } else { "" }, GOOD, &safe(&fix.text))?;
            if let Some(command) = &fix.command {
                self.paragraph("", Style::new(), &format!("$ {}", safe(command)))?;
            }
        }
        if let Some(cause) = finding.cause {
            self.paragraph("more", LABEL, &format!("why502 explain {cause}"))?;
        }
        Ok(())
    }

    fn places(&mut self, model: &Model, finding: &Finding) -> io::Result<()> {
        let shown = || finding.at.iter().take(MOST_PLACES);
        let number = |place: &Place| place.line.map(|line| line.to_string()).unwrap_or_default();
        let column = shown().map(|place| number(place).len()).max().unwrap_or(0);
        let gutter = INDENT.saturating_sub(3).max(column + 2);
        for (index, place) in shown().enumerate() {
            let name = match (&place.file, place.line) {
                (Some(file), Some(line)) => format!("{}:{line}", short(file)),
                (Some(file), None) => short(file),
                (None, _) => "default".to_owned(),
            };
            writeln!(self.out, "{:gutter$}--> {PLACE}{name}{PLACE:#}", "")?;
            let found = snippet(model, place, &finding.summary, index == 0);
            writeln!(self.out, "{LABEL}{:>gutter$} |{LABEL:#} {}", number(place), found.text)?;
            if let Some((at, length)) = found.mark {
                let (line, style) = if index == 0 { ("^", style_of(finding.severity)) } else { ("-", PLACE) };
                let line = line.repeat(length.max(1));
                writeln!(self.out, "{LABEL}{:>gutter$} |{LABEL:#} {:at$}{style}{line}{style:#}", "", "")?;
            }
        }
        match finding.at.len().saturating_sub(MOST_PLACES) {
            0 => Ok(()),
            1 => self.paragraph("", LABEL, "and 1 other line"),
            more => self.paragraph("", LABEL, &format!("and {more} other lines")),
        }
    }

    /// A labelled paragraph, broken at blanks.
    fn paragraph(&mut self, label: &str, style: Style, text: &str) -> io::Result<()> {
        let room = self.width.saturating_sub(INDENT).max(NARROWEST);
        for (index, line) in wrap(text, room).into_iter().enumerate() {
            let label = if index == 0 { label } else { "" };
            writeln!(self.out, "  {LABEL}{label:<8}{LABEL:#}   {style}{line}{style:#}")?;
        }
        Ok(())
    }
}
