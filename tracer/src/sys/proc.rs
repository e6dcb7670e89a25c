//! Bounded readers of /proc and the few formats in it that more than one module needs.
//!
//! A process chooses its own comm and cmdline, so nothing here assumes UTF-8 or a sane length.

use std::fs::{self, File};
use std::io::{self, Read as _};
use std::path::Path;

/// Reads at most `max` bytes of a file; what is beyond is left out.
pub fn read_up_to(path: impl AsRef<Path>, max: usize) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    let limit = u64::try_from(max).unwrap_or(u64::MAX);
    File::open(path)?.take(limit).read_to_end(&mut bytes)?;
    Ok(bytes)
}

/// Reads a small text file (sysctl and the like) and trims it.
pub fn read_trimmed(path: impl AsRef<Path>) -> io::Result<String> {
    let bytes = read_up_to(path, 64 * 1024)?;
    Ok(String::from_utf8_lossy(&bytes).trim().to_owned())
}

/// All process ids of this PID namespace, in ascending order as /proc lists them.
pub fn pids() -> io::Result<impl Iterator<Item = u32>> {
    let entries = fs::read_dir("/proc")?;
    Ok(entries.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok()))
}

/// The task's name, escaped for a terminal. Empty when the process is gone.
pub fn comm(pid: u32) -> String {
    read_up_to(format!("/proc/{pid}/comm"), 64)
        .map(|bytes| printable(bytes.strip_suffix(b"\n").unwrap_or(&bytes)))
        .unwrap_or_default()
}

/// The file name of the executable, escaped for a terminal.
pub fn exe_name(pid: u32) -> Option<String> {
    use std::os::unix::ffi::OsStrExt as _;
    let path = fs::read_link(format!("/proc/{pid}/exe")).ok()?;
    let name = path.file_name()?.as_bytes();
    Some(printable(name.strip_suffix(b" (deleted)").unwrap_or(name)))
}

/// Text that cannot move a terminal's cursor: control characters and broken UTF-8 are escaped.
pub fn printable(bytes: &[u8]) -> String {
    let mut text = String::with_capacity(bytes.len());
    for chunk in bytes.utf8_chunks() {
        for character in chunk.valid().chars() {
            if character.is_control() || is_bidi(character) {
                text.extend(character.escape_default());
            } else {
                text.push(character);
            }
        }
        for byte in chunk.invalid() {
            text.push_str(&format!("\\x{byte:02x}"));
        }
    }
    text
}

/// The lines of a text file, each as [`printable`].
pub fn printable_lines(bytes: &[u8]) -> Vec<String> {
    bytes.split(|&byte| byte == b'\n').map(printable).collect()
}

/// Characters that reorder the text after them on a terminal.
fn is_bidi(character: char) -> bool {
    matches!(character, '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

/// The part of /proc/PID/stat that is used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stat {
    /// State letter: R, S, D, Z, T …
    pub state: u8,
    /// Parent, 0 if it is outside this PID namespace.
    pub ppid: u32,
    /// Start, in clock ticks after boot.
    pub start_ticks: u64,
}

/// Parses /proc/PID/stat. The name in it may hold spaces and parentheses: the last `)` ends it.
pub fn parse_stat(bytes: &[u8]) -> Option<Stat> {
    let end = bytes.iter().rposition(|&byte| byte == b')')?;
    let rest = std::str::from_utf8(bytes.get(end + 1..)?).ok()?;
    let mut fields = rest.split_ascii_whitespace();
    let state = *fields.next()?.as_bytes().first()?;
    let ppid = fields.next()?.parse().ok()?;
    // proc(5): starttime is field 22; state was field 3, so 17 more lie between ppid (4) and it.
    let start_ticks = fields.nth(17)?.parse().ok()?;
    Some(Stat { state, ppid, start_ticks })
}

/// Bytes that a process has for its title: its arguments and the environment behind them (proc(5), `arg_start` to
/// `env_end` of /proc/PID/stat). `None` where they are hidden (no CAP_SYS_PTRACE over it) or odd.
pub fn title_room(stat: &[u8]) -> Option<(usize, usize)> {
    let end = stat.iter().rposition(|&byte| byte == b')')?;
    let rest = std::str::from_utf8(stat.get(end + 1..)?).ok()?;
    // arg_start is field 48, state was field 3.
    let mut fields = rest.split_ascii_whitespace().skip(45).map(|field| field.parse::<u64>().ok());
    let mut next = || fields.next().flatten().filter(|&address| address > 0);
    let (arg_start, arg_end, env_start, env_end) = (next()?, next()?, next()?, next()?);
    let length = |start: u64, end: u64| usize::try_from(end.checked_sub(start)?).ok();
    Some((length(arg_start, arg_end)?, length(env_start, env_end)?))
}

/// A value of a `Key:\tvalue` file such as /proc/PID/status.
pub fn field<'a>(bytes: &'a [u8], key: &str) -> Option<&'a str> {
    bytes.split(|&byte| byte == b'\n').find_map(|line| {
        let value = line.strip_prefix(key.as_bytes())?.strip_prefix(b":")?;
        std::str::from_utf8(value).ok().map(str::trim)
    })
}

/// The numbers in a field's value; what is not a number is left out.
pub fn numbers(value: &str) -> Vec<u32> {
    value.split_ascii_whitespace().filter_map(|word| word.parse().ok()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stat_with_hostile_name() {
        let line = b"42 (a) S 1 (b\n) R 7 1 1 0 -1 4194560 1 2 3 4 5 6 7 8 20 0 1 0 98765 1 2\n";
        assert_eq!(parse_stat(line), Some(Stat { state: b'R', ppid: 7, start_ticks: 98765 }));
        for end in 0..line.len() {
            let _ = parse_stat(&line[..end]);
        }
        assert_eq!(parse_stat(b""), None);
    }

    #[test]
    fn room_for_a_title() {
        let fields: Vec<String> = (3..=52).map(|field| (field * 100).to_string()).collect();
        let line = format!("42 (a) b) {}", fields.join(" "));
        // Fields 48 to 51, each 100 behind the one before.
        assert_eq!(title_room(line.as_bytes()), Some((100, 100)));
        let hidden = line.replace(" 4800 4900 5000 5100", " 0 0 0 0");
        assert_eq!(title_room(hidden.as_bytes()), None);
        for end in 0..line.len() {
            let _ = title_room(&line.as_bytes()[..end]);
        }
    }

    #[test]
    fn terminal_bytes_are_escaped() {
        assert_eq!(printable(b"ok \xc3\xa9 \x1b[2J\xff"), "ok é \\u{1b}[2J\\xff");
        assert_eq!(printable("a\u{202e}b".as_bytes()), "a\\u{202e}b");
    }

    #[test]
    fn status_fields() {
        let status = b"Name:\tnginx\nUid:\t0\t33\t33\t33\nGroups:\t33 4 \nNSpid:\t120\t7\n";
        assert_eq!(numbers(field(status, "Uid").unwrap()), [0, 33, 33, 33]);
        assert_eq!(numbers(field(status, "Groups").unwrap()), [33, 4]);
        assert_eq!(field(status, "NSp"), None);
    }

    #[test]
    fn own_process() {
        let pid = std::process::id();
        assert!(pids().unwrap().any(|candidate| candidate == pid));
        assert!(parse_stat(&read_up_to("/proc/self/stat", 4096).unwrap()).is_some());
        assert!(!comm(pid).is_empty());
    }
}
