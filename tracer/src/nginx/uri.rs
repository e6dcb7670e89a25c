//! The URI that nginx matches locations against: `ngx_http_parse_request_line` with `ngx_http_parse_complex_uri`
//! (src/http/ngx_http_parse.c), and the host of a request as `ngx_http_validate_host` reads it.

use std::borrow::Cow;

/// Where the reading of a path stands.
#[derive(Clone, Copy, PartialEq, Eq)]
enum State {
    Usual,
    Slash,
    Dot,
    DotDot,
}

/// Percent-decodes a path, resolves `.` and `..`, merges slashes, and drops the query and the fragment. `None` for
/// what nginx answers with 400: a path that does not begin with `/`, leads above the root, or is badly encoded.
pub fn normalise(target: &[u8], merge_slashes: bool) -> Option<Vec<u8>> {
    if target.first() != Some(&b'/') {
        return None;
    }
    let mut out = Vec::with_capacity(target.len());
    let mut state = State::Usual;
    let mut rest = target;
    while let Some((&raw, after)) = rest.split_first() {
        rest = after;
        let mut byte = raw;
        if raw == b'%' {
            let (high, low) = (hex(*rest.first()?)?, hex(*rest.get(1)?)?);
            rest = rest.get(2..)?;
            byte = high << 4 | low;
            match byte {
                0 => return None,
                // These mean nothing special once they were encoded.
                b'%' | b'#' | b'?' => {
                    out.push(byte);
                    state = State::Usual;
                    continue;
                }
                _ => {}
            }
        } else if raw == b'?' || raw == b'#' {
            break;
        }
        state = match (state, byte) {
            (State::Dot, b'/') => {
                out.pop();
                State::Slash
            }
            (State::DotDot, b'/') => {
                parent(&mut out)?;
                State::Slash
            }
            (State::Slash, b'/') => {
                if !merge_slashes {
                    out.push(byte);
                }
                State::Slash
            }
            (State::Slash, b'.') => {
                out.push(byte);
                State::Dot
            }
            (State::Dot, b'.') => {
                out.push(byte);
                State::DotDot
            }
            (_, b'/') => {
                out.push(byte);
                State::Slash
            }
            _ => {
                out.push(byte);
                State::Usual
            }
        };
    }
    match state {
        State::Dot => {
            out.pop();
        }
        State::DotDot => parent(&mut out)?,
        State::Usual | State::Slash => {}
    }
    Some(out)
}

/// Takes `/..` and the folder before it away, up to and including its leading slash's successor.
fn parent(out: &mut Vec<u8>) -> Option<()> {
    // Behind the last slash stand the two dots, before it the folder that they leave.
    out.truncate(out.len().checked_sub(3)?);
    let slash = out.iter().rposition(|byte| *byte == b'/')?;
    out.truncate(slash + 1);
    Some(())
}

fn hex(digit: u8) -> Option<u8> {
    char::from(digit).to_digit(16).and_then(|value| u8::try_from(value).ok())
}

/// The name that nginx compares with `server_name`: without port and final dot, in lower case. `None` for a header
/// that nginx refuses.
pub fn host_name(header: &str) -> Option<Cow<'_, str>> {
    if header.contains("..") || header.bytes().any(|byte| byte <= 0x20 || byte == 0x7f || byte == b'/') {
        return None;
    }
    let end = match header.strip_prefix('[') {
        Some(literal) => literal.find(']').map(|at| at + 2),
        None => header.find(':'),
    };
    let name = header.get(..end.unwrap_or(header.len()))?;
    let name = name.strip_suffix('.').unwrap_or(name);
    if name.is_empty() {
        return None;
    }
    Some(if name.bytes().any(|byte| byte.is_ascii_uppercase()) {
        Cow::Owned(name.to_ascii_lowercase())
    } else {
        Cow::Borrowed(name)
    })
}
