//! What a run has told: the few things of an incident that a log can confirm or deny.

use std::io::{self, BufRead};

use serde::Deserialize;

use super::{SECOND, Written, each_line};
use crate::{
    diagnose::{Cause, Confidence},
    errlog::{Address, clock},
};

/// Most incidents that are kept.
const MOST: usize = 500_000;
/// Longest line, bytes.
const LONGEST: usize = 1 << 20;
/// Most unreadable lines that are named.
const MOST_BAD: usize = 5;

/// An incident, as far as it is compared.
#[derive(Debug, Clone, PartialEq)]
pub struct Told {
    /// Its line in the stream, from 1.
    pub line: u64,
    /// When its attempt ended, µs after 1970.
    pub time: i64,
    /// It is one of several that ended between then and [`Told::time`], which were counted.
    pub since: i64,
    /// How many there are of it.
    pub count: u64,
    /// The worker, as the host numbers it.
    pub pid: u32,
    /// Why.
    pub cause: Cause,
    /// How sure.
    pub confidence: Confidence,
    /// In words.
    pub summary: String,
    /// The server.
    pub address: Option<Address>,
    /// nginx spoke FastCGI to it.
    pub fastcgi: bool,
    /// The request's method.
    pub method: Option<String>,
    /// Its target.
    pub target: Option<String>,
    /// The target's end is not known.
    pub truncated: bool,
    /// Its Host.
    pub host: Option<String>,
    /// The client, without its port.
    pub client: Option<String>,
}

/// A run, by the summary at its end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Run {
    /// When it began, µs after 1970.
    pub from: i64,
    /// When it ended.
    pub to: i64,
    /// Events that were lost.
    pub lost: u64,
}

/// Where a line is in time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Place {
    /// The run has seen all that it can be about.
    Inside,
    /// Or not: the run began or ended in that second.
    Edge,
    /// Not in any run.
    Outside,
}

/// One line of `why502 -o json`.
#[derive(Debug, Clone, PartialEq)]
pub enum Said {
    /// An incident.
    Incident(Told),
    /// The end of a run.
    Summary(Run),
    /// Something else.
    Other,
}

/// A stream of them.
#[derive(Debug, Clone, Default)]
pub struct Stream {
    /// The incidents.
    pub told: Vec<Told>,
    /// The runs.
    pub runs: Vec<Run>,
    /// Lines that could not be read: where and why, the first of them.
    pub bad: Vec<String>,
    /// How many they are.
    pub bad_lines: u64,
    /// There were more incidents than are kept.
    pub full: bool,
}

/// What is read of a line; all else is ignored.
#[derive(Deserialize)]
struct Raw {
    r#type: String,
    time: Option<String>,
    repeats: Option<RawRepeats>,
    cause: Option<String>,
    confidence: Option<String>,
    summary: Option<String>,
    worker: Option<RawWorker>,
    upstream: Option<RawUpstream>,
    request: Option<RawRequest>,
    duration_s: Option<f64>,
    events_lost: Option<u64>,
}

#[derive(Deserialize)]
struct RawRepeats {
    count: u64,
    since: String,
}

#[derive(Deserialize)]
struct RawWorker {
    pid: u32,
}

#[derive(Deserialize)]
struct RawUpstream {
    address: Option<String>,
    module: Option<String>,
}

#[derive(Deserialize)]
struct RawRequest {
    method: Option<String>,
    target: Option<String>,
    target_truncated: Option<bool>,
    host: Option<String>,
    client: Option<String>,
}

impl Said {
    /// Reads a line of the schema `why502/1`.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn from_json(line: u64, bytes: &[u8]) -> Result<Self, String> {
        let raw: Raw = serde_json::from_slice(bytes).map_err(|error| error.to_string())?;
        let time = |raw: &Raw| {
            let text = raw.time.as_deref().ok_or("it has no time")?;
            rfc3339(text).ok_or_else(|| format!("{text:?} is no time"))
        };
        match raw.r#type.as_str() {
            "incident" => {
                let time = time(&raw)?;
                let (since, count) = match &raw.repeats {
                    Some(repeats) => {
                        let since = rfc3339(&repeats.since);
                        (since.ok_or_else(|| format!("{:?} is no time", repeats.since))?, repeats.count)
                    }
                    None => (time, 1),
                };
                let name = raw.cause.ok_or("it has no cause")?;
                let cause: Cause = name.parse().map_err(|_| format!("there is no cause {name:?}"))?;
                let upstream = raw.upstream;
                let fastcgi =
                    upstream.as_ref().and_then(|upstream| upstream.module.as_deref()) == Some("fastcgi");
                let address = upstream.and_then(|upstream| Address::of(&upstream.address?));
                let request = raw.request.unwrap_or(RawRequest {
                    method: None,
                    target: None,
                    target_truncated: None,
                    host: None,
                    client: None,
                });
                Ok(Self::Incident(Told {
                    line,
                    time,
                    since: since.min(time),
                    count,
                    pid: raw.worker.ok_or("it has no worker")?.pid,
                    cause,
                    confidence: match raw.confidence.as_deref() {
                        Some("proven") => Confidence::Proven,
                        Some("likely") => Confidence::Likely,
                        _ => Confidence::Unexplained,
                    },
                    summary: raw.summary.unwrap_or_default(),
                    address,
                    fastcgi,
                    method: request.method,
                    target: request.target,
                    truncated: request.target_truncated.unwrap_or(false),
                    host: request.host,
                    client: request.client.map(without_port),
                }))
            }
            "summary" => {
                let to = time(&raw)?;
                let seconds =
                    raw.duration_s.filter(|s| (0.0..1e9).contains(s)).ok_or("it has no duration")?;
                // At most 1e15 µs, which an i64 holds.
                let length = (seconds * SECOND as f64) as i64;
                Ok(Self::Summary(Run { from: to - length, to, lost: raw.events_lost.unwrap_or(0) }))
            }
            _ => Ok(Self::Other),
        }
    }
}

/// `127.0.0.1` of `127.0.0.1:1234`, `::1` of `[::1]:1234`.
fn without_port(client: String) -> String {
    match client.parse::<std::net::SocketAddr>() {
        Ok(address) => address.ip().to_string(),
        Err(_) => client,
    }
}

/// µs after 1970 of `2026-11-22T14:02:11.482113Z`.
fn rfc3339(text: &str) -> Option<i64> {
    let (date, time) = text.strip_suffix('Z')?.split_once('T')?;
    let (time, fraction) = time.split_once('.').unwrap_or((time, "0"));
    let digits = fraction.len().min(6);
    let fraction: i64 = fraction.get(..digits)?.parse().ok().filter(|f| *f >= 0)?;
    let scale = 10_i64.pow(6 - u32::try_from(digits).ok()?);
    Some(clock(date, '-', time)? * SECOND + fraction * scale)
}

impl Stream {
    /// Reads a stream to its end.
    ///
    /// # Errors
    /// Those of the reader.
    pub fn read(reader: impl BufRead) -> io::Result<Self> {
        let mut stream = Self::default();
        each_line(reader, LONGEST, |number, bytes, whole| {
            if bytes.trim_ascii().is_empty() {
                return;
            }
            let said = if whole { Said::from_json(number, bytes) } else { Err("it is too long".to_owned()) };
            match said {
                Ok(said) => stream.add(said),
                Err(why) => {
                    stream.bad_lines += 1;
                    if stream.bad.len() < MOST_BAD {
                        stream.bad.push(format!("line {number}: {why}"));
                    }
                }
            }
        })?;
        Ok(stream)
    }

    /// Adds what a run has told.
    pub fn add(&mut self, said: Said) {
        match said {
            Said::Incident(told) => {
                let room = MOST.saturating_sub(self.told.len());
                let count = usize::try_from(told.count).unwrap_or(usize::MAX);
                self.full |= count > room;
                self.told.extend(std::iter::repeat_n(told, count.min(room)));
            }
            Said::Summary(run) => self.runs.push(run),
            Said::Other => {}
        }
    }

    /// What it is about in time, µs after 1970: by the summaries, or, if there are none, by the incidents.
    #[must_use]
    pub fn span(&self) -> Option<(i64, i64)> {
        let (from, to) = if self.runs.is_empty() {
            (self.told.iter().map(|told| told.since).min(), self.told.iter().map(|told| told.time).max())
        } else {
            (self.runs.iter().map(|run| run.from).min(), self.runs.iter().map(|run| run.to).max())
        };
        from.zip(to)
    }

    /// What makes it less than the whole of a run, in words.
    #[must_use]
    pub fn doubts(&self) -> Vec<String> {
        let mut doubts = Vec::new();
        if self.bad_lines > 0 {
            doubts.push(format!("no JSON of why502 in {} ({})", lines(self.bad_lines), self.bad.join("; ")));
        }
        if self.full {
            doubts.push(format!("more than {MOST} incidents: the rest was left out"));
        }
        if self.runs.is_empty() {
            doubts
                .push("no summary: the run was cut off, and its times are those of its incidents".to_owned());
        }
        let lost: u64 = self.runs.iter().map(|run| run.lost).sum();
        if lost > 0 {
            doubts.push(format!("the run lost {lost} events"));
        }
        doubts
    }

    /// Where a line is, if the logs' clock is `offset` seconds ahead of UTC.
    pub(super) fn place(&self, line: &Written, offset: i64) -> Place {
        let guessed = self.span().map(|(from, to)| Run { from, to, lost: 0 });
        let runs = if self.runs.is_empty() { guessed.as_slice() } else { &self.runs };
        let (first, last) = line.between(offset);
        let of = |run: &Run| {
            if run.from <= first && last <= run.to {
                Place::Inside
            } else if run.from - 2 * SECOND <= last && first <= run.to + 2 * SECOND {
                Place::Edge
            } else {
                Place::Outside
            }
        };
        runs.iter().map(of).fold(Place::Outside, |best, place| match (best, place) {
            (Place::Inside, _) | (_, Place::Inside) => Place::Inside,
            (Place::Edge, _) | (_, Place::Edge) => Place::Edge,
            (Place::Outside, Place::Outside) => Place::Outside,
        })
    }
}

fn lines(count: u64) -> String {
    if count == 1 { "1 line".to_owned() } else { format!("{count} lines") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times() {
        assert_eq!(rfc3339("2026-11-22T14:02:11.482113Z"), Some(1_795_356_131_482_113));
        assert_eq!(rfc3339("1970-01-01T00:00:01Z"), Some(SECOND));
        assert_eq!(rfc3339("1970-01-01T00:00:01.5Z"), Some(1_500_000));
        for bad in ["", "2026-11-22T14:02:11", "2026-11-22 14:02:11Z", "2026-11-22T14:02:11.-1Z", "T.Z"] {
            assert_eq!(rfc3339(bad), None, "{bad}");
        }
    }

    #[test]
    fn lines_of_a_stream() {
        let text = concat!(
            r#"{"type":"incident","time":"1970-01-01T00:00:02Z","cause":"upstream-reset","confidence":"proven","worker":{"pid":7,"container":null},"#,
            r#""upstream":{"address":"[::1]:80","module":"fastcgi"},"request":{"target":"/a","client":"[::1]:99"},"later":{"a":1}}"#,
            "\n\n",
            r#"{"type":"summary","time":"1970-01-01T00:00:05Z","duration_s":4.5,"events_lost":2}"#,
            "\n",
            r#"{"type":"finding"}"#,
            "\n",
            r#"{"type":"incident","time":"1970-01-01T00:00:02Z","cause":"witchcraft","worker":{"pid":7}}"#,
            "\n{\"type\":\"inci"
        );
        let stream = Stream::read(text.as_bytes()).unwrap();
        let told = &stream.told[0];
        assert_eq!((told.line, told.time, told.pid, told.cause), (1, 2 * SECOND, 7, Cause::UpstreamReset));
        assert!(told.confidence == Confidence::Proven && told.fastcgi && !told.truncated);
        assert_eq!((told.client.as_deref(), told.host.as_deref()), (Some("::1"), None));
        assert_eq!(told.address, Address::of("[::1]:80"));
        assert_eq!(stream.runs, [Run { from: 500_000, to: 5 * SECOND, lost: 2 }]);
        assert_eq!((stream.told.len(), stream.bad_lines), (1, 2));
        let doubts = stream.doubts().join("\n");
        for part in ["2 lines", "line 5: ", "line 6: ", "lost 2 events"] {
            assert!(doubts.contains(part), "{part}: {doubts}");
        }
    }

    #[test]
    fn without_a_summary_the_incidents_tell_the_time() {
        let text =
            r#"{"type":"incident","time":"1970-01-01T00:00:02Z","cause":"fd-limit","worker":{"pid":7}}"#;
        let stream = Stream::read(text.as_bytes()).unwrap();
        assert_eq!(stream.span(), Some((2 * SECOND, 2 * SECOND)));
        assert!(stream.doubts()[0].contains("no summary"));
        assert_eq!(Stream::default().span(), None);
    }
}
