//! nginx's error log, line by line: who wrote it, what it is about, and what it means. Pure; the bytes are hostile, since
//! requests, headers and what servers sent stand in them.

mod fields;
mod meaning;

pub use fields::{Address, Fields, fields};
pub use meaning::{Meaning, meaning};

/// How bad nginx takes it to be; the worst last.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Level {
    /// `debug`
    Debug,
    /// `info`
    Info,
    /// `notice`
    Notice,
    /// `warn`
    Warn,
    /// `error`
    Error,
    /// `crit`
    Crit,
    /// `alert`
    Alert,
    /// `emerg`
    Emerg,
}

impl Level {
    const ALL: [(&str, Level); 8] = [
        ("debug", Level::Debug),
        ("info", Level::Info),
        ("notice", Level::Notice),
        ("warn", Level::Warn),
        ("error", Level::Error),
        ("crit", Level::Crit),
        ("alert", Level::Alert),
        ("emerg", Level::Emerg),
    ];

    /// As nginx writes it.
    #[must_use]
    pub fn name(self) -> &'static str {
        Self::ALL.iter().find(|(_, level)| *level == self).map_or("", |(name, _)| name)
    }
}

impl std::str::FromStr for Level {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        Self::ALL.iter().find(|(name, _)| *name == text).map(|(_, level)| *level).ok_or_else(|| {
            let names: Vec<&str> = Self::ALL.iter().map(|(name, _)| *name).collect();
            format!("there is no level {text}; there are {}", names.join(", "))
        })
    }
}

/// One line.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Line<'a> {
    /// Seconds after 1970 if its clock were UTC.
    pub clock: i64,
    /// How bad it is.
    pub level: Level,
    /// The process that wrote it, as its own namespace numbers it.
    pub pid: u32,
    /// What it says, without the connection's number.
    pub text: &'a str,
}

/// Reads `2026/11/23 17:05:41 [error] 123#123: *5 connect() failed …`; `None` for anything else, such as the second line
/// of a message.
#[must_use]
pub fn line(text: &str) -> Option<Line<'_>> {
    let (date, rest) = text.split_once(' ')?;
    let (time, rest) = rest.split_once(' ')?;
    let (level, rest) = rest.strip_prefix('[')?.split_once("] ")?;
    let (pid, rest) = rest.split_once('#')?;
    let (_, rest) = rest.split_once(": ")?;
    let text = match rest.strip_prefix('*').and_then(|rest| rest.split_once(' ')) {
        Some((number, text)) if number.bytes().all(|byte| byte.is_ascii_digit()) => text,
        _ => rest,
    };
    Some(Line { clock: clock(date, '/', time)?, level: level.parse().ok()?, pid: pid.parse().ok()?, text })
}

/// `2026/11/23` (the parts divided by `by`) and `17:05:41`, as seconds after 1970 of a clock that is UTC.
#[must_use]
pub fn clock(date: &str, by: char, time: &str) -> Option<i64> {
    let three = |text: &str, by: char| -> Option<(i64, i64, i64)> {
        let mut parts = text
            .split(by)
            .map(|part| part.parse::<i64>().ok().filter(|_| part.bytes().all(|b| b.is_ascii_digit())));
        let all = (parts.next()??, parts.next()??, parts.next()??);
        parts.next().is_none().then_some(all)
    };
    let (year, month, day) = three(date, by)?;
    let (hour, minute, second) = three(time, ':')?;
    let fits = (1970..10_000).contains(&year) && (1..=12).contains(&month) && (1..=31).contains(&day);
    if !fits || hour > 23 || minute > 59 || second > 60 {
        return None;
    }
    // Days from the civil calendar: years begin in March, so that the leap day comes last.
    let (year, month) = if month < 3 { (year - 1, month + 9) } else { (year, month - 3) };
    let days = year * 365 + year / 4 - year / 100 + year / 400 + (153 * month + 2) / 5 + day - 1 - 719_468;
    Some(days * 86_400 + hour * 3600 + minute * 60 + second)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_lines() {
        let found = line("2026/11/23 17:05:41 [error] 123#456: *5 connect() failed").unwrap();
        assert_eq!(
            (found.clock, found.level, found.pid, found.text),
            (1_795_453_541, Level::Error, 123, "connect() failed")
        );
        assert_eq!(line("1970/01/01 00:00:00 [emerg] 1#1: bind()").unwrap().clock, 0);
        assert_eq!(line("2024/02/29 12:00:00 [warn] 1#1: x").unwrap().clock, 1_709_208_000);
        for bad in [
            "",
            "PHP message: x",
            "2026/11/23 17:05:41",
            "2026/13/23 17:05:41 [error] 1#1: x",
            "2026/11/23 17:05 [error] 1#1: x",
            "2026/11/23 17:05:41 [nope] 1#1: x",
            "-1/1/1 0:0:0 [error] 1#1: x",
        ] {
            assert_eq!(line(bad), None, "{bad}");
        }
    }

    #[test]
    fn levels_are_ordered_and_named() {
        assert!(Level::Debug < Level::Info && Level::Warn < Level::Error && Level::Error < Level::Emerg);
        for (name, level) in Level::ALL {
            assert_eq!((level.name(), name.parse()), (name, Ok(level)));
        }
        assert!("verbose".parse::<Level>().unwrap_err().contains("notice"));
    }
}
