//! Answers to memcached's `get` (protocol.txt of memcached), as ngx_http_memcached_process_header reads them.

/// What the first line says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Answer {
    /// Its line has not ended.
    Cut,
    /// `END`: the key is not there. Whole.
    Missing,
    /// `VALUE`: where the value begins, and its length; `END` follows it.
    Value(usize, u64),
    /// A value behind which no `END` stands, or not at its end: the offset of the first byte that does not fit, and the value's length.
    Trailer(usize, u64),
    /// Neither: the offset of the first byte that does not fit.
    Invalid(usize),
}

/// Reads the first line.
#[must_use]
pub fn answer(bytes: &[u8]) -> Answer {
    let Some(end) = bytes.iter().position(|b| *b == b'\n') else { return Answer::Cut };
    let Some(line) = bytes.get(..end).and_then(|line| line.strip_suffix(b"\r")) else {
        return Answer::Invalid(end);
    };
    if line == b"END" {
        return Answer::Missing;
    }
    let differs = line.iter().zip(b"VALUE ").position(|(a, b)| a != b);
    let Some(rest) = line.strip_prefix(b"VALUE ") else {
        return Answer::Invalid(differs.unwrap_or(line.len()));
    };
    let length = rest.rsplit(|b| *b == b' ').next().unwrap_or_default();
    let digits = !length.is_empty() && length.iter().all(u8::is_ascii_digit);
    match std::str::from_utf8(length).ok().filter(|_| digits).and_then(|text| text.parse().ok()) {
        Some(length) if rest.iter().filter(|b| **b == b' ').count() >= 2 => trailer(bytes, end + 1, length),
        Some(_) | None => Answer::Invalid(line.len() - length.len()),
    }
}

/// `\r\nEND\r\n` follows a value.
fn trailer(bytes: &[u8], start: usize, length: u64) -> Answer {
    let end = usize::try_from(length).ok().and_then(|length| start.checked_add(length));
    let behind = end.and_then(|end| bytes.get(end..)).unwrap_or_default();
    match (end, behind.iter().zip(b"\r\nEND\r\n").position(|(a, b)| a != b)) {
        (Some(end), Some(differs)) => Answer::Trailer(end + differs, length),
        _ => Answer::Value(start, length),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn first_lines() {
        for (bytes, want) in [
            (&b"END\r\n"[..], Answer::Missing),
            (b"VALUE key 0 5\r\nhello\r\nEND\r\n", Answer::Value(15, 5)),
            (b"VALUE key 0 5\r\nhello\r\nEN", Answer::Value(15, 5)),
            (b"VALUE key 0 5\r\nhelloworld\r\nEND\r\n", Answer::Trailer(20, 5)),
            (b"VALUE key 0 5\r\nhello\r\nVALUE", Answer::Trailer(22, 5)),
            (b"VALUE key 0 18446744073709551615\r\nhello", Answer::Value(34, u64::MAX)),
            (b"VALUE key 0 ", Answer::Cut),
            (b"", Answer::Cut),
            (b"ERROR\r\n", Answer::Invalid(0)),
            (b"HTTP/1.1 400 Bad Request\r\n", Answer::Invalid(0)),
            (b"SERVER_ERROR out of memory\r\n", Answer::Invalid(0)),
            (b"VALUE key 0 x\r\n", Answer::Invalid(12)),
            (b"VALUE 5\r\n", Answer::Invalid(6)),
            (b"END\n", Answer::Invalid(3)),
            (b"\n", Answer::Invalid(0)),
        ] {
            assert_eq!(answer(bytes), want, "{}", String::from_utf8_lossy(bytes));
        }
    }
}
