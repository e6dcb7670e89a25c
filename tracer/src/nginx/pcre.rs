//! nginx's regular expressions (PCRE, on bytes) as far as they mean the same to an engine without backtracking:
//! what only PCRE knows, or reads differently, has no answer rather than a wrong one.

use regex_lite::{Regex, RegexBuilder};

/// Longest expression that is compiled, bytes; nginx itself cannot read longer ones.
const LONGEST: usize = 4096;

/// An expression that can be answered.
#[derive(Debug)]
pub(super) struct Pattern {
    regex: Regex,
    /// PCRE's `$` also fits before a newline at the end of the text.
    dollar: bool,
}

impl Pattern {
    /// Compiles an expression; `None` for one that cannot be answered.
    pub(super) fn new(pattern: &[u8], caseless: bool) -> Option<Self> {
        if pattern.len() > LONGEST || !is_common(pattern) {
            return None;
        }
        let regex = RegexBuilder::new(&latin1(pattern))
            .case_insensitive(caseless)
            .size_limit(1 << 20)
            .build()
            .ok()?;
        Some(Self { regex, dollar: pattern.contains(&b'$') })
    }

    /// Whether it is found in a text; `None` where that cannot be said.
    pub(super) fn is_match(&self, text: &[u8]) -> Option<bool> {
        if self.dollar && text.ends_with(b"\n") {
            return None;
        }
        Some(self.regex.is_match(&latin1(text)))
    }

    /// The groups of the first match, as bytes, the whole match first. The outer `None`: cannot be said; the inner
    /// one: no match.
    pub(super) fn captures(&self, text: &[u8]) -> Option<Option<Vec<Vec<u8>>>> {
        if self.dollar && text.ends_with(b"\n") {
            return None;
        }
        let shown = latin1(text);
        let Some(found) = self.regex.captures(&shown) else { return Some(None) };
        let bytes = |text: &str| text.chars().filter_map(|letter| u8::try_from(letter).ok()).collect();
        Some(Some(
            found.iter().map(|group| group.map_or_else(Vec::new, |group| bytes(group.as_str()))).collect(),
        ))
    }
}

/// One letter for each byte, as PCRE without UTF-8 reads them.
fn latin1(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| char::from(*byte)).collect()
}

/// Whether both engines read the expression alike.
fn is_common(pattern: &[u8]) -> bool {
    let mut rest = pattern;
    // Whether the last thing was a quantifier: a `+` behind one makes it possessive in PCRE.
    let mut quantified = false;
    while let Some((&byte, after)) = rest.split_first() {
        rest = after;
        let was_quantified = std::mem::take(&mut quantified);
        match byte {
            b'\\' => {
                let Some((&letter, after)) = rest.split_first() else { return false };
                rest = after;
                let hex = letter == b'x'
                    && matches!(rest, [a, b, ..] if a.is_ascii_hexdigit() && b.is_ascii_hexdigit());
                let known = matches!(
                    letter,
                    b'd' | b'D'
                        | b'w'
                        | b'W'
                        | b's'
                        | b'S'
                        | b'b'
                        | b'B'
                        | b'A'
                        | b'z'
                        | b'n'
                        | b'r'
                        | b't'
                        | b'f'
                );
                let literal = letter.is_ascii_punctuation() && !matches!(letter, b'<' | b'>');
                // `\b{start}` is a word boundary of another kind to the other engine.
                if !(known || hex || literal) || letter == b'b' && rest.first() == Some(&b'{') {
                    return false;
                }
            }
            b'[' => match class(rest) {
                Some(after) => rest = after,
                None => return false,
            },
            b'(' => {
                if let Some(kind) = rest.strip_prefix(b"?") {
                    let named = kind.strip_prefix(b"P").unwrap_or(kind);
                    let named = matches!(named, [b'<', letter, ..] if letter.is_ascii_alphabetic() || *letter == b'_');
                    let flags = [&b":"[..], b"i)", b"i:", b"-i)", b"-i:", b"s)", b"s:"];
                    if !named && !flags.iter().any(|flag| kind.starts_with(flag)) {
                        return false;
                    }
                } else if rest.first() == Some(&b'*') {
                    return false;
                }
            }
            b'*' | b'+' | b'?' => {
                if was_quantified {
                    // A second `?` makes it lazy, which changes nothing about whether it fits.
                    if byte != b'?' {
                        return false;
                    }
                } else {
                    quantified = true;
                }
            }
            b'{' => match repetition(rest) {
                Some(after) => {
                    rest = after;
                    quantified = true;
                }
                None => return false,
            },
            // A line break in an expression, or one of the bytes beyond ASCII, means itself to both.
            _ => {}
        }
    }
    true
}

/// Skips a class behind its `[`; `None` for what the engines read differently.
fn class(text: &[u8]) -> Option<&[u8]> {
    let mut rest = text.strip_prefix(b"^").unwrap_or(text);
    let mut first = true;
    loop {
        let (&byte, after) = rest.split_first()?;
        let next = after.first();
        match byte {
            b']' if !first => return Some(after),
            b'\\' => {
                let (&letter, after) = after.split_first()?;
                let known =
                    matches!(letter, b'd' | b'D' | b'w' | b'W' | b's' | b'S' | b'n' | b'r' | b't' | b'f');
                if !known && !letter.is_ascii_punctuation() {
                    return None;
                }
                rest = after;
                first = false;
                continue;
            }
            // Sets of POSIX, nested classes and set operations.
            b'[' => return None,
            b'&' | b'~' | b'-' if next == Some(&byte) => return None,
            _ => {}
        }
        rest = after;
        first = false;
    }
}

/// Skips `{3}`, `{3,}` or `{3,5}` behind its brace; to PCRE anything else there is plain text.
fn repetition(text: &[u8]) -> Option<&[u8]> {
    let end = text.iter().position(|byte| *byte == b'}')?;
    let (inner, after) = text.split_at(end);
    let mut parts = inner.splitn(2, |byte| *byte == b',');
    let is_number = |part: &[u8]| !part.is_empty() && part.len() < 4 && part.iter().all(u8::is_ascii_digit);
    let low = parts.next().filter(|part| is_number(part));
    let high = parts.next().is_none_or(|part| part.is_empty() || is_number(part));
    (low.is_some() && high).then(|| after.get(1..).unwrap_or_default())
}
