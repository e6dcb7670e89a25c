//! What nginx wrote: lines of error logs, and of an access log that tells what servers answered.

use std::io::{self, BufRead};

use super::{SECOND, each_line};
use crate::errlog::{self, Address, Level, Meaning};

/// Most lines that are kept.
const MOST: usize = 500_000;
/// Longest line, bytes; nginx's end after 2048, those of some forks after 4096.
const LONGEST: usize = 16 << 10;
/// What is kept of a line to be shown, characters.
const SHOWN: usize = 600;
/// Farthest time zones, and something for the ends, µs.
const FARTHEST: i64 = (14 * 3600 + 10) * SECOND;

/// The format of an access log that tells servers' own 5xx.
pub const ACCESS: &str =
    "$msec|$pid|$request_uri|$upstream_addr|$upstream_status|$upstream_header_time|$request_time";

/// When a line was written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Clock {
    /// Seconds of a clock whose zone is not known.
    Local(i64),
    /// From when to when it can have been, µs after 1970.
    Utc(i64, i64),
}

/// Where a line stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Source {
    /// Which log.
    pub log: usize,
    /// Which line, from 1.
    pub line: u64,
}

/// A line about an upstream server.
#[derive(Debug, Clone, PartialEq)]
pub struct Written {
    /// Where.
    pub at: Source,
    /// When.
    pub clock: Clock,
    /// The process.
    pub pid: u32,
    /// What it says.
    pub meaning: Meaning,
    /// nginx spoke TLS to the server.
    pub tls: bool,
    /// The server; `None` where the line names none, or a group.
    pub address: Option<Address>,
    /// The client.
    pub client: Option<String>,
    /// The request's method.
    pub method: Option<String>,
    /// Its target.
    pub target: Option<String>,
    /// The target's end is not known.
    pub cut: bool,
    /// Its Host.
    pub host: Option<String>,
    /// The line, or its beginning.
    pub text: String,
}

impl Written {
    /// µs after 1970, the middle of what is possible, if the log's clock is `offset` seconds ahead of UTC.
    #[must_use]
    pub fn time(&self, offset: i64) -> i64 {
        let (from, to) = self.between(offset);
        from + (to - from) / 2
    }

    /// From when to when it can have been.
    pub(super) fn between(&self, offset: i64) -> (i64, i64) {
        match self.clock {
            Clock::Local(second) => ((second - offset) * SECOND, (second - offset + 1) * SECOND),
            Clock::Utc(from, to) => (from, to),
        }
    }

    /// How far the time of its incident may be from [`Self::time`].
    pub(super) fn within(&self) -> i64 {
        match self.clock {
            // nginx's clock is read once a round of its loop.
            Clock::Local(_) => 3 * SECOND / 2,
            Clock::Utc(from, to) => (to - from) / 2 + SECOND / 2,
        }
    }

    /// A name of what it says, for counts.
    #[must_use]
    pub fn kind(&self) -> String {
        let tls = if self.tls { "-tls" } else { "" };
        format!("{}{tls}", self.meaning.name())
    }
}

/// The logs.
#[derive(Debug, Clone, Default)]
pub struct Logs {
    /// Lines about upstream servers, near the run.
    pub lines: Vec<Written>,
    /// Those that are not understood.
    pub unknown: Vec<Written>,
    /// All lines of each log, and those that are about upstream servers and near the run.
    pub counts: Vec<(u64, u64)>,
    /// The lowest level that was seen near the run.
    pub lowest: Option<Level>,
    /// There is an access log among them.
    pub has_access: bool,
    /// Lines that are too long to be nginx's.
    pub too_long: u64,
    /// There were more lines than are kept.
    pub full: bool,
}

impl Logs {
    /// Reads an error log, as far as it is near a span of time (µs after 1970).
    ///
    /// # Errors
    /// Those of the reader.
    pub fn add_errors(&mut self, reader: impl BufRead, span: Option<(i64, i64)>) -> io::Result<()> {
        let log = self.counts.len();
        let near = span.map(|(from, to)| (from - FARTHEST) / SECOND..=(to + FARTHEST) / SECOND);
        let (mut all, mut own) = (0, 0);
        each_line(reader, LONGEST, |number, bytes, whole| {
            all = number;
            if !whole {
                self.too_long += 1;
                return;
            }
            let text = String::from_utf8_lossy(bytes);
            let Some(line) = errlog::line(text.trim_end_matches('\r')) else { return };
            if !near.as_ref().is_some_and(|near| near.contains(&line.clock)) {
                return;
            }
            self.lowest = Some(self.lowest.map_or(line.level, |lowest| lowest.min(line.level)));
            let Some((written, known)) = error(&line, &text, Source { log, line: number }) else { return };
            own += 1;
            self.keep(written, known);
        })?;
        self.counts.push((all, own));
        Ok(())
    }

    /// Reads an access log of the format [`ACCESS`].
    ///
    /// # Errors
    /// Those of the reader.
    pub fn add_access(&mut self, reader: impl BufRead, span: Option<(i64, i64)>) -> io::Result<()> {
        let log = self.counts.len();
        let (mut all, mut own) = (0, 0);
        self.has_access = true;
        each_line(reader, LONGEST, |number, bytes, whole| {
            all = number;
            if !whole {
                self.too_long += 1;
                return;
            }
            for written in access(&String::from_utf8_lossy(bytes), Source { log, line: number }) {
                let time = written.time(0);
                if span.is_some_and(|(from, to)| (from - FARTHEST..=to + FARTHEST).contains(&time)) {
                    own += 1;
                    self.keep(written, true);
                }
            }
        })?;
        self.counts.push((all, own));
        Ok(())
    }

    fn keep(&mut self, written: Written, known: bool) {
        let kept = if known { &mut self.lines } else { &mut self.unknown };
        if kept.len() < MOST {
            kept.push(written);
        } else {
            self.full = true;
        }
    }

    /// What makes them less than whole, in words.
    #[must_use]
    pub fn doubts(&self) -> Vec<String> {
        let mut doubts = Vec::new();
        if self.too_long > 0 {
            doubts.push(format!(
                "lines that are longer than nginx writes them, and were not read: {}",
                self.too_long
            ));
        }
        if self.full {
            doubts.push(format!("more than {MOST} lines about upstream servers: the rest was left out"));
        }
        doubts
    }
}

/// A line of an error log, and whether it is understood; `None` if it is not about an upstream server.
fn error(line: &errlog::Line<'_>, text: &str, at: Source) -> Option<(Written, bool)> {
    let fields = errlog::fields(line.text);
    fields.client?;
    let meaning = errlog::meaning(fields.message, line.level);
    let named = fields.upstream.is_some();
    let is_one = match meaning {
        Some(Meaning::Remark) | None => named,
        Some(_) => true,
    };
    if !is_one {
        return None;
    }
    let (method, target) = fields.method_and_target().unzip();
    let group = matches!(meaning, Some(Meaning::NoLive | Meaning::NoResolver | Meaning::Unresolved));
    let written = Written {
        at,
        clock: Clock::Local(line.clock),
        pid: line.pid,
        meaning: meaning.unwrap_or(Meaning::Remark),
        tls: fields.tls(),
        address: fields.address().filter(|_| !group),
        client: fields.client.map(str::to_owned),
        method: method.map(str::to_owned),
        target: target.map(str::to_owned),
        cut: fields.cut && !named,
        host: fields.host.map(str::to_owned),
        text: text.chars().take(SHOWN).collect(),
    };
    Some((written, meaning.is_some()))
}

/// The servers of one request that answered 5xx themselves: a header of theirs has come.
fn access(text: &str, at: Source) -> Vec<Written> {
    // The target may hold anything but a space.
    let Some((time, rest)) = text.trim_end().split_once('|') else { return Vec::new() };
    let Some((pid, rest)) = rest.split_once('|') else { return Vec::new() };
    let mut ends = rest.rsplitn(5, '|');
    let (Some(took), Some(headers), Some(statuses), Some(addresses), Some(target)) =
        (ends.next(), ends.next(), ends.next(), ends.next(), ends.next())
    else {
        return Vec::new();
    };
    let micros = |text: &str| {
        let seconds = text.parse::<f64>().ok().filter(|seconds| (0.0..1e11).contains(seconds))?;
        Some((seconds * SECOND as f64) as i64)
    };
    let (Some(end), Some(took), Ok(pid)) = (micros(time), micros(took), pid.parse()) else {
        return Vec::new();
    };
    let list = |text: &str| -> Vec<String> {
        text.split([',', ' ']).filter(|word| !word.is_empty() && *word != ":").map(str::to_owned).collect()
    };
    let attempts = list(addresses).into_iter().zip(list(statuses)).zip(list(headers));
    let own = attempts.filter(|((_, status), header)| status.starts_with('5') && header != "-");
    own.map(|((address, _), _)| Written {
        at,
        // The request may have ended long after the answer.
        clock: Clock::Utc(end - took, end),
        pid,
        meaning: Meaning::Returned5xx,
        tls: false,
        address: Address::of(&address),
        client: None,
        method: None,
        target: Some(target.to_owned()),
        cut: false,
        host: None,
        text: text.chars().take(SHOWN).collect(),
    })
    .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const DAY: Option<(i64, i64)> = Some((1_795_437_000 * SECOND, 1_795_439_000 * SECOND));

    #[test]
    fn lines_of_an_error_log() {
        let rest = ", client: 1.2.3.4, server: , request: \"GET /p/7 HTTP/1.1\", upstream: \"https://127.0.0.1:3000/p/7\", host: \"h\"";
        let text = format!(
            "2026/11/23 12:46:31 [notice] 22#22: signal process started\n\
             2026/11/23 12:46:31 [error] 22#22: *5 recv() failed (104: x) while reading response header from upstream{rest}\r\n\
             \tsecond line of something\n\
             2026/11/23 12:46:31 [error] 22#22: *5 open() \"/x\" failed (2: x), client: 1.2.3.4, server: , request: \"GET /x HTTP/1.1\", host: \"h\"\n\
             2026/11/23 12:46:32 [error] 22#22: *5 upstream danced while reading upstream{rest}\n\
             2020/11/23 12:46:32 [info] 22#22: *5 recv() failed (104: x) while reading upstream{rest}\n\
             2026/11/23 12:46:33 [error] 22#22: *6 no live upstreams while connecting to upstream, client: 1.2.3.4, server: , request: \"GET /p/8 HTTP/1.1\", upstream: \"http://group/p/8\", host: \"h\"\n\
             2026/11/23 12:46:33 [error] 22#22: *6 no resolver defined to resolve a.example, client: 1.2.3.4, server: , request: \"GET /p/9 HTTP/1.1\", host: \"h\""
        );
        let mut logs = Logs::default();
        logs.add_errors(text.as_bytes(), DAY).unwrap();
        logs.add_errors(&b""[..], DAY).unwrap();
        assert_eq!(logs.counts, [(8, 4), (0, 0)]);
        assert_eq!(logs.lowest, Some(Level::Notice), "the info of another year is not near");
        let [reset, no_live, no_resolver] = logs.lines.as_slice() else { panic!("{:?}", logs.lines) };
        assert_eq!((reset.at.line, reset.pid, reset.kind().as_str()), (2, 22, "failed-104-in-header-tls"));
        assert_eq!((reset.method.as_deref(), reset.target.as_deref()), (Some("GET"), Some("/p/7")));
        assert_eq!((reset.host.as_deref(), reset.client.as_deref()), (Some("h"), Some("1.2.3.4")));
        assert_eq!(reset.time(3600), (1_795_437_991 - 3600) * SECOND + SECOND / 2);
        assert_eq!((no_live.address.as_ref(), no_live.meaning), (None, Meaning::NoLive));
        assert_eq!(no_resolver.meaning, Meaning::NoResolver);
        assert_eq!((logs.unknown.len(), logs.unknown[0].at.line), (1, 5));
    }

    #[test]
    fn long_lines_are_counted_and_not_read() {
        let mut text = vec![b'x'; 100_000];
        text.extend_from_slice(b"\nx");
        let mut logs = Logs::default();
        logs.add_errors(text.as_slice(), DAY).unwrap();
        assert_eq!((logs.too_long, logs.counts[0].0), (1, 2));
        assert!(logs.doubts()[0].contains("not read: 1"));
    }

    #[test]
    fn own_5xx_of_an_access_log() {
        let at = Source { log: 0, line: 1 };
        let own = |text: &str| {
            access(text, at).into_iter().map(|line| line.address.unwrap().to_string()).collect::<Vec<_>>()
        };
        assert_eq!(own("1.5|22|/n/1|1.2.3.4:1, 1.2.3.4:2|502, 200|0.001, 0.002|0.1"), ["1.2.3.4:1"]);
        assert_eq!(own("1.5|22|/n/1|1.2.3.4:1, 1.2.3.4:2|502, 503|-, 0.002|0"), ["1.2.3.4:2"]);
        assert_eq!(own("1.5|22|/n/1|1.2.3.4:1 : 1.2.3.4:2|500 : 200|0.1 : 0.2|0.3"), ["1.2.3.4:1"]);
        assert_eq!(own("1.5|22|/n|-|502|/1|1.2.3.4:1|502|0.001|0.1"), ["1.2.3.4:1"]);
        for nothing in ["1.5|22|/n/1|-|502|-|0.1", "nonsense", "", "1.5|22|/n/1|1.2.3.4:1|502|0.1"] {
            assert!(own(nothing).is_empty(), "{nothing}");
        }
        let line = access("100.25|22|/n|1|1.2.3.4:1|502|0.001|2.000", at).remove(0);
        assert_eq!(line.clock, Clock::Utc(98_250_000, 100_250_000));
        assert_eq!((line.pid, line.target.as_deref()), (22, Some("/n|1")));
    }
}
