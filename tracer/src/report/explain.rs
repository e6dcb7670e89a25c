//! Pages of causes, for a terminal: wrapped, headings and commands set off.

use std::io::{self, Write};

use anstyle::{AnsiColor, Style};

use super::text::wrap;
use crate::{
    check,
    diagnose::{Cause, pages},
};

/// Lines longer than this tire the eye.
const WIDEST: usize = 100;
/// Narrower terminals break lines by themselves.
const NARROWEST: usize = 40;

const HEADING: Style = Style::new().bold();
const CODE: Style = AnsiColor::Cyan.on_default();
const QUIET: Style = Style::new().dimmed();

/// Writes the page of a cause. `width`: columns of the terminal; None if it is none.
///
/// # Errors
/// Those of the output.
pub fn page(out: &mut dyn Write, cause: Cause, width: Option<usize>) -> io::Result<()> {
    let width = width.unwrap_or(WIDEST).clamp(NARROWEST, WIDEST);
    writeln!(out, "{HEADING}{cause}{HEADING:#}")?;
    paragraph(out, cause.meaning(), width)?;
    let Some(text) = pages::page(cause) else {
        writeln!(out)?;
        return paragraph(out, "The name is reserved; this version does not tell this cause yet.", width);
    };
    writeln!(out)?;
    for line in text.lines() {
        if let Some(heading) = line.strip_prefix("## ") {
            writeln!(out, "{HEADING}{heading}{HEADING:#}")?;
        } else {
            paragraph(out, line, width)?;
        }
    }
    Ok(())
}

/// Writes the page of a finding of `why502 check` that is no cause. False if there is none of that name.
///
/// # Errors
/// Those of the output.
pub fn finding(out: &mut dyn Write, name: &str, width: Option<usize>) -> io::Result<bool> {
    let found = check::names().find(|(other, _)| *other == name).zip(check::pages::page(name));
    let Some(((name, finds), page)) = found else { return Ok(false) };
    let width = width.unwrap_or(WIDEST).clamp(NARROWEST, WIDEST);
    writeln!(out, "{HEADING}{name}{HEADING:#}")?;
    paragraph(out, finds, width)?;
    for (heading, text) in [("What breaks", page.breaks), ("Why", page.why), ("What to do", page.fix)] {
        writeln!(out, "\n{HEADING}{heading}{HEADING:#}")?;
        paragraph(out, text, width)?;
    }
    writeln!(out)?;
    paragraph(out, &format!("`why502 check --ignore {name}` leaves it out."), width)?;
    Ok(true)
}

/// Writes every cause with its meaning.
///
/// # Errors
/// Those of the output.
pub fn list(out: &mut dyn Write, width: Option<usize>) -> io::Result<()> {
    let width = width.unwrap_or(usize::MAX);
    let column = Cause::ALL.iter().map(|cause| cause.name().len()).max().unwrap_or(0);
    for cause in Cause::ALL {
        let style = if pages::page(*cause).is_some() { CODE } else { QUIET };
        let later = if pages::page(*cause).is_some() { "" } else { " (not told yet)" };
        let text = format!("{}{later}", cause.meaning());
        let room = width.saturating_sub(column + 2).max(NARROWEST);
        for (index, line) in wrap(&text, room).into_iter().enumerate() {
            let name = if index == 0 { cause.name() } else { "" };
            writeln!(out, "{style}{name:<column$}{style:#}  {line}")?;
        }
    }
    writeln!(
        out,
        "\n`why502 explain NAME` tells how each is proven, what looks like it, and what to do; it takes names of `why502 check --list` as well."
    )
}

/// One paragraph or item; what belongs to an item stands under its text.
fn paragraph(out: &mut dyn Write, line: &str, width: usize) -> io::Result<()> {
    let indent = if line.starts_with("- ") {
        2
    } else if line.split_once(". ").is_some_and(|(n, _)| n.parse::<u8>().is_ok()) {
        3
    } else {
        0
    };
    let mut code = false;
    for (index, part) in wrap(line, width.saturating_sub(3)).into_iter().enumerate() {
        let hang = if index == 0 { 0 } else { indent };
        write!(out, "{:hang$}", "")?;
        // `code` may be broken over two lines.
        for (at, piece) in part.split('`').enumerate() {
            if at > 0 {
                code = !code;
                // Colours may be off.
                write!(out, "`")?;
            }
            if code {
                write!(out, "{CODE}{piece}{CODE:#}")?;
            } else {
                write!(out, "{piece}")?;
            }
        }
        writeln!(out)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plain(cause: Cause, width: usize) -> String {
        let mut bytes = Vec::new();
        page(&mut bytes, cause, Some(width)).unwrap();
        String::from_utf8(anstream::adapter::strip_bytes(&bytes).into_vec()).unwrap()
    }

    #[test]
    fn no_line_is_wider_than_the_terminal_and_no_word_is_lost() {
        for cause in Cause::ALL {
            let narrow = plain(*cause, 60);
            for line in narrow.lines() {
                assert!(line.chars().count() <= 60 || !line.trim().contains(' '), "{cause}: {line}");
            }
            let words = |text: &str| text.split_whitespace().map(str::to_owned).collect::<Vec<_>>();
            assert_eq!(words(&narrow), words(&plain(*cause, 100)), "{cause}");
        }
    }

    #[test]
    fn items_hang_under_their_text() {
        let mut bytes = Vec::new();
        paragraph(&mut bytes, "1. aaaa bbbb cccc dddd eeee ffff gggg hhhh iiii jjjj", 40).unwrap();
        assert_eq!(
            String::from_utf8(bytes).unwrap(),
            "1. aaaa bbbb cccc dddd eeee ffff gggg\n   hhhh iiii jjjj\n"
        );
    }

    #[test]
    fn the_list_has_every_cause_and_says_what_is_not_told() {
        let mut bytes = Vec::new();
        list(&mut bytes, None).unwrap();
        let text = String::from_utf8(bytes).unwrap();
        let text = String::from_utf8(anstream::adapter::strip_bytes(text.as_bytes()).into_vec()).unwrap();
        for cause in Cause::ALL {
            let line = text.lines().find(|line| line.split(' ').next() == Some(cause.name())).unwrap();
            assert_eq!(line.contains("not told yet"), pages::page(*cause).is_none(), "{line}");
        }
    }
}
