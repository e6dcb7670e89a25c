//! A line of the configuration as a compiler shows it: with its number, the words in question underlined.

use super::super::text::safe;
use crate::{check::Place, nginx::Model};

/// Longest line that is shown whole, columns.
const WIDEST: usize = 160;

/// A line to show, and what to underline.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Snippet {
    /// The line without what it is indented by, fit for a terminal.
    pub(super) text: String,
    /// First column and number of columns to underline.
    pub(super) mark: Option<(usize, usize)>,
}

/// The source line of a place; its own text where the file is not at hand.
pub(super) fn snippet(model: &Model, place: &Place, summary: &str, first: bool) -> Snippet {
    let line = source(model, place).unwrap_or_else(|| place.text.clone());
    let plain = |text: &str| safe(text.trim().replace('\t', " ").as_str());
    let (shown, whole) = (plain(&line), plain(&place.text));
    let word = word_of(&whole, summary);
    let wanted = match (&word, first) {
        (Some(word), _) => Some(word.as_str()),
        (None, true) => Some(whole.as_str()),
        (None, false) => None,
    };
    // A directive that spans lines is underlined as far as its first line goes.
    let mark = wanted.map(|wanted| find(&shown, wanted).unwrap_or((0, shown.chars().count())));
    cut(shown, mark)
}

fn source(model: &Model, place: &Place) -> Option<String> {
    let (path, line) = (place.file.as_deref()?, usize::try_from(place.line?).ok()?);
    let (_, bytes) = model.config().files().find(|(file, _)| *file == path)?;
    let line = bytes.split(|byte| *byte == b'\n').nth(line.checked_sub(1)?)?;
    let text = String::from_utf8_lossy(line).into_owned();
    (!text.trim().is_empty()).then_some(text)
}

/// The longest argument of the directive that the summary speaks of.
fn word_of(directive: &str, summary: &str) -> Option<String> {
    let bare = |word: &str| word.trim_matches([';', '{', '}', '"', '\'']).to_owned();
    let mut words: Vec<String> =
        directive.split(' ').map(bare).filter(|word| word.chars().count() > 1).collect();
    let name = words.first().cloned();
    words.retain(|word| speaks_of(summary, word));
    // Arguments say more than the directive's name, which stands for the whole line.
    words.iter().filter(|word| Some(*word) != name.as_ref()).max_by_key(|word| word.len()).cloned()
}

/// Whether a text has that word for itself, and not as a part of a longer one.
fn speaks_of(text: &str, word: &str) -> bool {
    let inner = |c: Option<char>| c.is_some_and(|c| c.is_alphanumeric() || c == '_');
    text.match_indices(word).any(|(at, found)| {
        let before = text.get(..at).and_then(|text| text.chars().next_back());
        let after = text.get(at + found.len()..).and_then(|text| text.chars().next());
        !inner(before) && !inner(after)
    })
}

/// Columns of a word in a line.
fn find(line: &str, word: &str) -> Option<(usize, usize)> {
    let at = line.find(word)?;
    Some((line.get(..at)?.chars().count(), word.chars().count()))
}

/// Shortens a very long line around its mark.
fn cut(text: String, mark: Option<(usize, usize)>) -> Snippet {
    if text.chars().count() <= WIDEST {
        return Snippet { text, mark };
    }
    let from = mark.map_or(0, |(at, _)| at.saturating_sub(40));
    let part: String = text.chars().skip(from).take(WIDEST).collect();
    let more = text.chars().count() > from + WIDEST;
    let lead = if from > 0 { "…" } else { "" };
    let shift = |(at, length): (usize, usize)| {
        let at = at - from + lead.chars().count();
        (at, length.min(WIDEST.saturating_sub(at)))
    };
    Snippet { text: format!("{lead}{part}{}", if more { "…" } else { "" }), mark: mark.map(shift) }
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use super::*;
    use crate::check::config_testing::model;

    fn place(line: u32, text: &str) -> Place {
        Place {
            role: "pass",
            file: Some(PathBuf::from("/etc/nginx/nginx.conf")),
            line: Some(line),
            text: text.to_owned(),
        }
    }

    /// What is underlined.
    fn marked(text: &str, line: u32, directive: &str, summary: &str) -> String {
        let model = model(text, crate::nginx::Version(1, 22, 1));
        let found = snippet(&model, &place(line, directive), summary, true);
        let (at, length) = found.mark.unwrap();
        found.text.chars().skip(at).take(length).collect()
    }

    const TEXT: &str = "http {\n\tserver {\n\t  location / { proxy_pass\thttps://b; }\n } upstream b { server\n127.0.0.1:1; } }";

    #[test]
    fn the_word_that_the_summary_names_is_underlined() {
        assert_eq!(marked(TEXT, 3, "proxy_pass\thttps://b;", "TLS is spoken: https://b → x"), "https://b");
        assert_eq!(marked(TEXT, 3, "location / {", "nothing of it"), "location / {");
        // Part of another word is no mention.
        assert_eq!(marked("http { server { listen 80; } }", 1, "listen 80;", "port 8080"), "listen 80;");
    }

    #[test]
    fn lines_that_are_not_there_and_long_ones() {
        let model = model(TEXT, crate::nginx::Version(1, 22, 1));
        let other = Place { file: None, line: None, ..place(1, "proxy_read_timeout 60s (default)") };
        assert_eq!(snippet(&model, &other, "x", true).text, "proxy_read_timeout 60s (default)");
        assert_eq!(snippet(&model, &place(4000, "a b;"), "x", true).text, "a b;");
        // The directive begins in line 4 and ends in the next.
        assert_eq!(marked(TEXT, 4, "server 127.0.0.1:1;", "x"), "} upstream b { server");
        let long = format!("{}word{}", "x ".repeat(200), " y".repeat(200));
        let found = cut(long, Some((400, 4)));
        let (at, length) = found.mark.unwrap();
        assert_eq!(found.text.chars().skip(at).take(length).collect::<String>(), "word");
        assert!(found.text.chars().count() <= WIDEST + 2);
    }

    #[test]
    fn bytes_of_files_cannot_steer_a_terminal() {
        let text = "http { server { location / { proxy_pass http://b\u{1b}[2J; } } }";
        let model = model(text, crate::nginx::Version(1, 22, 1));
        let found = snippet(&model, &place(1, "proxy_pass http://b\u{1b}[2J;"), "http://b", true);
        assert!(!found.text.contains('\u{1b}'), "{found:?}");
    }
}
