//! Path patterns as glob(3) reads them for nginx's `include` (no flags, C locale): the matching is here, the
//! listing of folders is the caller's.

use std::{
    ffi::{OsStr, OsString},
    io,
    os::unix::ffi::{OsStrExt, OsStringExt},
    path::{Path, PathBuf},
};

/// Whether nginx expands this `include` at all, rather than opening a file of that name: it looks for any of
/// `*?[`.
pub fn is_pattern(path: &[u8]) -> bool {
    path.iter().any(|byte| matches!(byte, b'*' | b'?' | b'['))
}

/// Whether one file name matches one component of a pattern. A leading dot must be matched by a dot. Time is
/// at most the product of the lengths.
pub fn matches(pattern: &[u8], name: &[u8]) -> bool {
    if name.first() == Some(&b'.') && !matches!(pattern, [b'.', ..] | [b'\\', b'.', ..]) {
        return false;
    }
    let (mut p, mut n) = (0, 0);
    // Where to go on when a match fails: behind the last `*`, one byte further than it swallowed last time.
    let mut retry: Option<(usize, usize)> = None;
    loop {
        let rest = pattern.get(p..).unwrap_or_default();
        if rest.first() == Some(&b'*') {
            p += 1;
            retry = Some((p, n));
            continue;
        }
        match name.get(n) {
            None if rest.is_empty() => return true,
            None => return false,
            Some(&byte) => {
                if let Some(used) = matches_one(rest, byte) {
                    p += used;
                    n += 1;
                } else if let Some((after, swallowed)) = retry {
                    (p, n) = (after, swallowed + 1);
                    retry = Some((after, n));
                } else {
                    return false;
                }
            }
        }
    }
}

/// How many bytes of the pattern match this byte; `None` when they do not.
fn matches_one(pattern: &[u8], byte: u8) -> Option<usize> {
    match pattern {
        [b'?', ..] => Some(1),
        [b'[', rest @ ..] => match bracket(rest, byte) {
            Some((true, used)) => Some(used + 1),
            Some((false, _)) => None,
            None => (byte == b'[').then_some(1),
        },
        [b'\\', escaped, ..] => (*escaped == byte).then_some(2),
        [literal, ..] => (*literal == byte).then_some(1),
        [] => None,
    }
}

/// Reads `!a-z[:digit:]]`, what follows a `[`: whether the byte is in it, and its length. `None` when no `]`
/// closes it: then the `[` stands for itself.
fn bracket(text: &[u8], byte: u8) -> Option<(bool, usize)> {
    let negated = matches!(text.first(), Some(b'!' | b'^'));
    let first = usize::from(negated);
    let (mut at, mut found) = (first, false);
    loop {
        let low = match text.get(at..)? {
            [b']', ..] if at > first => return Some((found != negated, at + 1)),
            [b'[', b':', rest @ ..] => {
                if let Some(end) = rest.windows(2).position(|pair| pair == b":]") {
                    found |= in_class(rest.get(..end)?, byte);
                    at += end + 4;
                    continue;
                }
                b'['
            }
            [b'\\', escaped, ..] => {
                at += 1;
                *escaped
            }
            [low, ..] => *low,
            [] => return None,
        };
        at += 1;
        let high = match text.get(at..)? {
            [b'-', b']', ..] => low,
            [b'-', b'\\', escaped, ..] => {
                at += 3;
                *escaped
            }
            [b'-', high, ..] => {
                at += 2;
                *high
            }
            _ => low,
        };
        found |= (low..=high).contains(&byte);
    }
}

fn in_class(class: &[u8], byte: u8) -> bool {
    match class {
        b"alpha" => byte.is_ascii_alphabetic(),
        b"digit" => byte.is_ascii_digit(),
        b"alnum" => byte.is_ascii_alphanumeric(),
        b"upper" => byte.is_ascii_uppercase(),
        b"lower" => byte.is_ascii_lowercase(),
        b"space" => byte.is_ascii_whitespace() || byte == 0x0b,
        b"blank" => matches!(byte, b' ' | b'\t'),
        b"punct" => byte.is_ascii_punctuation(),
        b"xdigit" => byte.is_ascii_hexdigit(),
        b"cntrl" => byte.is_ascii_control(),
        b"graph" => byte.is_ascii_graphic(),
        b"print" => byte.is_ascii_graphic() || byte == b' ',
        _ => false,
    }
}

/// Whether a whole path matches a whole pattern, component by component.
pub fn matches_path(pattern: &Path, path: &Path) -> bool {
    let mut patterns = pattern.as_os_str().as_bytes().split(|byte| *byte == b'/');
    let mut names = path.as_os_str().as_bytes().split(|byte| *byte == b'/');
    loop {
        match (patterns.next(), names.next()) {
            (None, None) => return true,
            (Some(pattern), Some(name)) if matches(pattern, name) => {}
            _ => return false,
        }
    }
}

/// Expands a pattern to the sorted paths that exist, given a way to list the names in a folder. For
/// [`Files::glob`](super::Files::glob) on a real file system: `list` is `read_dir`, through the container's
/// root where there is one.
///
/// # Errors
/// Those of `list`, except that a folder that is missing or is none simply holds nothing, as in glob(3).
pub fn expand(
    pattern: &Path,
    list: &mut dyn FnMut(&Path) -> io::Result<Vec<OsString>>,
) -> io::Result<Vec<PathBuf>> {
    let bytes = pattern.as_os_str().as_bytes();
    let mut found = vec![Vec::new()];
    // Components in front of the first pattern need no listing; behind it, each must be seen to exist.
    let mut listing = false;
    for (index, part) in bytes.split(|byte| *byte == b'/').enumerate() {
        listing |= is_pattern(part);
        let mut next = Vec::new();
        for folder in found {
            let prefix = if index == 0 { folder } else { [folder, b"/".to_vec()].concat() };
            if !listing || part.is_empty() {
                next.push([prefix.as_slice(), part].concat());
                continue;
            }
            let shown: &[u8] = if prefix.is_empty() { b"." } else { &prefix };
            let names = match list(Path::new(OsStr::from_bytes(shown))) {
                Ok(names) => names,
                Err(error)
                    if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) =>
                {
                    continue;
                }
                Err(error) => return Err(error),
            };
            let fits = names.iter().map(|name| name.as_bytes()).filter(|name| matches(part, name));
            next.extend(fits.map(|name| [prefix.as_slice(), name].concat()));
        }
        found = next;
    }
    found.sort_unstable();
    Ok(found.into_iter().map(|path| PathBuf::from(OsString::from_vec(path))).collect())
}
