//! First bytes in a form that can be shown: text as it is, everything else escaped, heads without the bodies behind them.

use super::http1;

/// Most characters that are shown of either direction.
pub const MOST: usize = 256;

/// The beginning of what was sent or received; `None` if there is nothing. Secrets are masked already, when the record is
/// read; what follows the end of an HTTP head is a body, and nobody's business.
#[must_use]
pub fn shown(bytes: &[u8]) -> Option<String> {
    if bytes.is_empty() {
        return None;
    }
    Some(escaped(bytes.get(..body(bytes)).unwrap_or(bytes), MOST))
}

/// Where the body behind an HTTP head begins; the length where there is none.
#[must_use]
pub fn body(bytes: &[u8]) -> usize {
    let looks_like_head = bytes.first().is_some_and(u8::is_ascii_alphabetic);
    let head = if looks_like_head { http1::head_length(bytes) } else { None };
    head.unwrap_or(bytes.len())
}

/// Bytes as a C string literal would hold them, at most so many characters.
#[must_use]
pub fn escaped(bytes: &[u8], most: usize) -> String {
    let mut text = String::with_capacity(bytes.len().min(most));
    for byte in bytes {
        let piece = match byte {
            b'\r' => "\\r".to_owned(),
            b'\n' => "\\n".to_owned(),
            b'\t' => "\\t".to_owned(),
            b'\\' => "\\\\".to_owned(),
            0x20..=0x7e => char::from(*byte).to_string(),
            other => format!("\\x{other:02x}"),
        };
        if text.len() + piece.len() > most {
            break;
        }
        text.push_str(&piece);
    }
    text
}

/// The same for a verdict: in quotes, short, without the runs of blanks that would look like layout.
#[must_use]
pub fn quoted(bytes: &[u8], most: usize) -> String {
    let text = escaped(bytes, most).replace("  ", "\\x20 ").replace("  ", "\\x20 ");
    let cut = if escaped(bytes, usize::MAX).len() > most { "…" } else { "" };
    format!("\"{text}{cut}\"")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_can_steer_a_terminal_and_bodies_are_left_out() {
        let head = b"HTTP/1.1 200 OK\r\nA: \x1b[2J\\\r\n\r\nsecret body";
        assert_eq!(shown(head).as_deref(), Some("HTTP/1.1 200 OK\\r\\nA: \\x1b[2J\\\\\\r\\n\\r\\n"));
        assert_eq!(shown(b""), None);
        assert_eq!(shown(b"\x15\x03\x01\0\x02\x02\x46").as_deref(), Some("\\x15\\x03\\x01\\x00\\x02\\x02F"));
        let long = vec![0xff; 512];
        assert_eq!(shown(&long).unwrap().len(), MOST, "64 bytes of four characters each");
        assert_eq!(quoted(b"a    b", 80), "\"a\\x20 \\x20 b\"");
        assert_eq!(quoted(b"abcdef", 3), "\"abc…\"");
    }
}
