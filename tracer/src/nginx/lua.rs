//! Finds the end of the Lua code in a `*_by_lua_block { … }`: braces count except in Lua's strings, long
//! brackets and comments, as lua-nginx-module's own scanner has it.

/// Bytes up to and including the `}` that closes a block whose `{` has been read; `None` when none does.
pub(super) fn block_length(code: &[u8]) -> Option<usize> {
    let mut at = 0;
    let mut depth = 1usize;
    loop {
        let rest = code.get(at..)?;
        match *rest.first()? {
            b'{' => depth += 1,
            b'}' => {
                depth -= 1;
                if depth == 0 {
                    return Some(at + 1);
                }
            }
            quote @ (b'"' | b'\'') => {
                at += short_string(rest, quote);
                continue;
            }
            b'[' => {
                if let Some(level) = long_bracket(rest) {
                    at += long_string(rest, level)?;
                    continue;
                }
            }
            b'-' if rest.get(1) == Some(&b'-') => {
                let body = rest.get(2..)?;
                at += 2 + match long_bracket(body) {
                    Some(level) => long_string(body, level)?,
                    None => body.iter().position(|byte| *byte == b'\n')?,
                };
                continue;
            }
            _ => {}
        }
        at += 1;
    }
}

/// Length of a quoted string with its quotes; an unescaped line break ends it too.
fn short_string(text: &[u8], quote: u8) -> usize {
    let mut at = 1;
    while let Some(&byte) = text.get(at) {
        match byte {
            b'\\' => at += 1,
            b'\n' => return at,
            _ if byte == quote => return at + 1,
            _ => {}
        }
        at += 1;
    }
    text.len()
}

/// The number of `=` in an opening `[[`, `[=[`, …; `None` for any other text.
fn long_bracket(text: &[u8]) -> Option<usize> {
    let rest = text.strip_prefix(b"[")?;
    let level = rest.iter().take_while(|byte| **byte == b'=').count();
    (rest.get(level) == Some(&b'[')).then_some(level)
}

/// Length of a long string or comment with both brackets; `None` when it does not end.
fn long_string(text: &[u8], level: usize) -> Option<usize> {
    let mut at = level + 2;
    loop {
        at += text.get(at..)?.iter().position(|byte| *byte == b']')? + 1;
        let equals = text.get(at..)?.iter().take_while(|byte| **byte == b'=').count();
        if equals == level && text.get(at + level) == Some(&b']') {
            return Some(at + level + 1);
        }
        at += equals;
    }
}
