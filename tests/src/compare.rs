//! The truth of the chaos run: nginx's own logs against the incidents, one to one. Pure.
//!
//! What nginx writes to its error log about an upstream, and what its access log tells of 5xx that a backend itself has
//! sent, is the one side; it was not written with why502 in mind.

use crate::judge::text;
use serde_json::Value;
use std::collections::BTreeMap;

/// What a line says, as far as a cause can follow from it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Class {
    Refused,
    ConnectTimeout,
    HandshakeTimeout,
    SendTimeout,
    HeaderTimeout,
    BodyTimeout,
    ClosedInHeader,
    ClosedInBody,
    /// As the two, in TLS: nginx says the same of a RST there (ngx_ssl_handle_recv asks OpenSSL's own errors alone).
    EndedInHeader,
    EndedInBody,
    ResetInHeader,
    ResetInBody,
    ResetInRequest,
    TooBig,
    Invalid,
    Handshake,
    Certificate,
    NoLive,
    ClientGone,
    /// The backend's own 5xx, from the access log.
    Said5xx,
    /// Nothing that fails a request: an incident may say something of it and need not.
    Remark,
}

/// The texts, the first that is found counts. The second text must be there as well.
const TEXTS: &[(&str, &str, Class)] = &[
    ("no live upstreams", "", Class::NoLive),
    ("so upstream connection is closed too", "", Class::ClientGone),
    ("while sending to client", "client", Class::Remark),
    ("no valid HTTP/1.0 header", "", Class::Remark),
    ("upstream sent more data than", "", Class::Remark),
    ("FastCGI sent in stderr", "", Class::Remark),
    ("was not found by memcached", "", Class::Remark),
    ("server temporarily disabled", "", Class::Remark),
    ("is buffered to a temporary file", "", Class::Remark),
    ("upstream timed out", "while connecting to upstream", Class::ConnectTimeout),
    ("upstream timed out", "while SSL handshaking", Class::HandshakeTimeout),
    ("upstream timed out", "while sending request", Class::SendTimeout),
    ("upstream timed out", "while reading response header", Class::HeaderTimeout),
    ("upstream timed out", "while reading upstream", Class::BodyTimeout),
    ("connect() failed (111", "", Class::Refused),
    ("sent too big header", "", Class::TooBig),
    ("certificate verify error", "", Class::Certificate),
    ("certificate does not match", "", Class::Certificate),
    ("SSL_do_handshake() failed", "", Class::Handshake),
    ("while SSL handshaking", "", Class::Handshake),
    ("prematurely closed", "while reading upstream", Class::ClosedInBody),
    ("prematurely closed", "", Class::ClosedInHeader),
    ("closed prematurely", "while reading upstream", Class::ClosedInBody),
    ("closed prematurely", "", Class::ClosedInHeader),
    ("upstream sent invalid", "", Class::Invalid),
    ("upstream sent unsupported", "", Class::Invalid),
    ("upstream sent unexpected", "", Class::Invalid),
    ("upstream sent too large http2", "", Class::Invalid),
    ("upstream sent unknown", "", Class::Invalid),
    ("upstream sent \"", "", Class::Invalid),
    ("upstream sent duplicate", "", Class::Invalid),
    ("memcached sent invalid", "", Class::Invalid),
    ("failed (104", "while reading upstream", Class::ResetInBody),
    ("failed (104", "while sending request", Class::ResetInRequest),
    ("failed (32", "while sending request", Class::ResetInRequest),
    ("failed (104", "", Class::ResetInHeader),
    ("SSL_read() failed", "while reading upstream", Class::ResetInBody),
    ("SSL_read() failed", "", Class::ResetInHeader),
    ("SSL_write() failed", "", Class::ResetInRequest),
];

impl Class {
    /// Whether an incident with this cause tells what the line tells.
    pub(crate) fn fits(self, cause: &str) -> bool {
        let any = |causes: &[&str]| causes.contains(&cause);
        match self {
            Class::Refused => cause.starts_with("connect-refused-"),
            Class::ConnectTimeout => cause.starts_with("connect-timeout-"),
            Class::HandshakeTimeout => any(&["tls-handshake-timeout"]),
            Class::SendTimeout => any(&["send-timeout"]),
            Class::HeaderTimeout | Class::BodyTimeout => any(&["read-timeout"]),
            Class::ClosedInHeader => {
                any(&["upstream-closed-early", "upstream-died", "keepalive-race", "plain-to-tls-port"])
            }
            Class::EndedInHeader => Class::ClosedInHeader.fits(cause) || cause == "upstream-reset",
            Class::EndedInBody => Class::ClosedInBody.fits(cause) || cause == "upstream-reset",
            Class::ClosedInBody => any(&["response-truncated", "upstream-died"]),
            Class::ResetInHeader | Class::ResetInRequest => any(&[
                "upstream-reset",
                "upstream-died",
                "keepalive-race",
                "upstream-closed-early",
                "plain-to-tls-port",
            ]),
            Class::ResetInBody => any(&["response-truncated", "upstream-reset", "upstream-died"]),
            Class::TooBig => any(&["header-too-big"]),
            Class::Invalid => any(&["invalid-response"]),
            Class::Handshake => any(&[
                "tls-to-plain-port",
                "tls-handshake-failed",
                "tls-certificate-rejected",
                "upstream-closed-early",
                "upstream-reset",
                "upstream-died",
            ]),
            Class::Certificate => any(&["tls-certificate-rejected"]),
            Class::NoLive => any(&["no-live-upstreams"]),
            Class::ClientGone => any(&["client-aborted"]),
            Class::Said5xx => any(&["upstream-returned-5xx"]),
            Class::Remark => {
                any(&["invalid-response", "plain-to-tls-port", "client-aborted", "response-truncated"])
            }
        }
    }
}

/// One thing that nginx has logged.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Line {
    /// Unix time, seconds; of the middle of the second that nginx names.
    pub(crate) time: f64,
    /// How far the incident's own time may be from it.
    pub(crate) within: f64,
    pub(crate) pid: u32,
    pub(crate) class: Class,
    pub(crate) target: String,
    /// Empty if there was no server to name.
    pub(crate) address: String,
    pub(crate) text: String,
}

/// A line of the error log (its times in UTC); None if it is not about an upstream.
pub(crate) fn error_line(text: &str) -> Option<Line> {
    let (stamp, rest) = text.split_at_checked(19)?;
    let (_level, rest) = rest.strip_prefix(" [")?.split_once("] ")?;
    let (pid, _) = rest.split_once('#')?;
    let upstream = quoted(rest, ", upstream: \"")?;
    // The message alone: a request may hold any text.
    let message = rest.split(", client: ").next()?;
    let found = TEXTS.iter().find(|(text, where_, _)| message.contains(text) && message.contains(where_));
    let (scheme, authority) = upstream.split_once("://")?;
    let class = match (found.map(|(_, _, class)| *class)?, scheme) {
        (Class::ClosedInHeader, "https" | "grpcs") => Class::EndedInHeader,
        (Class::ClosedInBody, "https" | "grpcs") => Class::EndedInBody,
        (class, _) => class,
    };
    let address = authority.split('/').next().unwrap_or_default();
    Some(Line {
        time: unix(stamp.get(..10)?, stamp.get(11..)?)? + 0.5,
        // nginx's clock is read once a round of its loop.
        within: 1.5,
        pid: pid.parse().ok()?,
        class,
        target: quoted(rest, ", request: \"")?.split(' ').nth(1)?.to_owned(),
        address: if class == Class::NoLive { String::new() } else { address.to_owned() },
        text: text.to_owned(),
    })
}

/// Whether a line is about an upstream at all: what `error_line` must know then.
pub(crate) fn names_upstream(text: &str) -> bool {
    text.contains(", upstream: \"")
}

/// The format of the access log that `access_line` reads.
pub(crate) const ACCESS: &str =
    "$msec|$pid|$request_uri|$upstream_addr|$upstream_status|$upstream_header_time";

/// The servers of one request that answered 5xx themselves: a header of theirs has come.
pub(crate) fn access_line(text: &str) -> Vec<Line> {
    let fields: Vec<&str> = text.split('|').collect();
    let [time, pid, target, addresses, statuses, headers] = fields.as_slice() else { return Vec::new() };
    let (Ok(time), Ok(pid)) = (time.parse::<f64>(), pid.parse()) else { return Vec::new() };
    let list = |text: &str| -> Vec<String> {
        text.split([',', ' ']).filter(|word| !word.is_empty() && *word != ":").map(str::to_owned).collect()
    };
    let attempts = list(addresses).into_iter().zip(list(statuses)).zip(list(headers));
    let own = attempts.filter(|((_, status), header)| status.starts_with('5') && header != "-");
    own.map(|((address, _), _)| Line {
        time,
        // The request ends later than the answer.
        within: 10.0,
        pid,
        class: Class::Said5xx,
        target: (*target).to_owned(),
        address,
        text: text.to_owned(),
    })
    .collect()
}

fn quoted<'a>(text: &'a str, before: &str) -> Option<&'a str> {
    text.split_once(before)?.1.split('"').next()
}

/// `2026/11/23` or `2026-11-23`, and `12:46:31` with any fraction, in UTC.
fn unix(date: &str, time: &str) -> Option<f64> {
    let mut parts = date.split(['/', '-']).map(str::parse::<i64>);
    let mut part = || parts.next()?.ok();
    let (year, month, day) = (part()?, part()?, part()?);
    // Days from the civil date, with years that begin in March.
    let shifted = if month <= 2 { year - 1 } else { year };
    let days = 365 * shifted + shifted / 4 - shifted / 100
        + shifted / 400
        + (153 * ((month + 9) % 12) + 2) / 5
        + day
        - 719_469;
    let mut parts = time.split(':').map(str::parse::<f64>);
    let mut part = || parts.next()?.ok();
    Some(days as f64 * 86_400.0 + part()? * 3600.0 + part()? * 60.0 + part()?)
}

/// What an incident says, as far as it is compared.
struct Said<'a> {
    incident: &'a Value,
    time: f64,
    pid: u32,
    cause: &'a str,
    target: &'a str,
    address: &'a str,
}

impl<'a> Said<'a> {
    fn of(incident: &'a Value) -> Self {
        let stamp = text(incident, "/time").trim_end_matches('Z');
        let (date, time) = stamp.split_once('T').unwrap_or(("", ""));
        Self {
            incident,
            time: unix(date, time).unwrap_or(0.0),
            pid: crate::watch::worker(incident).unwrap_or(0),
            cause: text(incident, "/cause"),
            target: text(incident, "/request/target"),
            address: text(incident, "/upstream/address"),
        }
    }

    /// Whether it can be about the same attempt, whatever its cause.
    fn is_of(&self, line: &Line) -> bool {
        self.pid == line.pid
            && (self.time - line.time).abs() <= line.within
            && (line.address.is_empty() || line.address == self.address)
            && (self.target.is_empty() || self.target == line.target)
    }

    /// Whether nginx writes nothing of it. (It does not look whether a FastCGI response has ended by its protocol.)
    fn is_silent(&self) -> bool {
        self.cause == "response-truncated" && text(self.incident, "/upstream/module") == "fastcgi"
    }
}

/// The result.
#[derive(Debug, Default)]
pub(crate) struct Truth {
    /// Lines that need an incident.
    pub(crate) lines: usize,
    /// Incidents that need a line.
    pub(crate) incidents: usize,
    /// Pairs of the same attempt and of fitting cause.
    pub(crate) pairs: usize,
    /// How often each cause was said of each class, unexplained and wrong ones included.
    pub(crate) table: BTreeMap<(Class, String), usize>,
    /// Pairs whose cause does not fit, in words.
    pub(crate) wrong: Vec<String>,
    /// Wrong pairs that are called proven.
    pub(crate) false_proven: usize,
    /// Lines without an incident.
    pub(crate) missed: Vec<String>,
    /// Incidents without a line.
    pub(crate) surplus: Vec<String>,
}

impl Truth {
    /// Of the incidents, those that are right, percent.
    pub(crate) fn precision(&self) -> f64 {
        percent(self.pairs, self.incidents)
    }

    /// Of the lines, those that have their incident, percent.
    pub(crate) fn recall(&self) -> f64 {
        percent(self.pairs, self.lines)
    }
}

fn percent(part: usize, all: usize) -> f64 {
    if all == 0 { 100.0 } else { part as f64 * 100.0 / all as f64 }
}

/// Pairs lines and incidents, each once.
pub(crate) fn compare(lines: &[Line], incidents: &[Value]) -> Truth {
    let said: Vec<Said<'_>> = incidents.iter().map(Said::of).collect();
    let mut order: Vec<usize> = (0..said.len()).collect();
    order.sort_by(|a, b| said[*a].time.total_cmp(&said[*b].time));
    let mut by_pid: BTreeMap<u32, Vec<usize>> = BTreeMap::new();
    for (index, line) in lines.iter().enumerate() {
        by_pid.entry(line.pid).or_default().push(index);
    }
    for of in by_pid.values_mut() {
        of.sort_by(|a, b| lines[*a].time.total_cmp(&lines[*b].time));
    }
    let mut line_of: Vec<Option<usize>> = vec![None; said.len()];
    let mut taken = vec![false; lines.len()];
    // What names its request first; a cause that does not fit last. Remarks are what is left over.
    for (named, fitting, remark) in [
        (true, true, false),
        (false, true, false),
        (true, true, true),
        (false, true, true),
        (true, false, false),
        (false, false, false),
    ] {
        for index in &order {
            let it = &said[*index];
            if line_of[*index].is_some() || it.target.is_empty() == named {
                continue;
            }
            let fits = |at: &&usize| {
                let line = &lines[**at];
                !taken[**at]
                    && (line.class == Class::Remark) == remark
                    && line.class.fits(it.cause) == fitting
                    && it.is_of(line)
            };
            let found = by_pid.get(&it.pid).and_then(|of| of.iter().find(fits)).copied();
            if let Some(at) = found {
                taken[at] = true;
                line_of[*index] = Some(at);
            }
        }
    }
    let mut truth = Truth::default();
    for (it, at) in said.iter().zip(&line_of) {
        let Some(line) = at.map(|at| &lines[at]) else {
            if !it.is_silent() {
                truth.incidents += 1;
                truth.surplus.push(it.incident.to_string());
            }
            continue;
        };
        if line.class == Class::Remark {
            continue;
        }
        truth.incidents += 1;
        *truth.table.entry((line.class, it.cause.to_owned())).or_default() += 1;
        if line.class.fits(it.cause) {
            truth.pairs += 1;
        } else {
            truth.false_proven += usize::from(text(it.incident, "/confidence") == "proven");
            truth.wrong.push(format!("{:?}: {}\n    {}", line.class, line.text, it.incident));
        }
    }
    for (line, taken) in lines.iter().zip(&taken) {
        if line.class == Class::Remark {
            continue;
        }
        truth.lines += 1;
        if !taken {
            truth.missed.push(format!("{:?}: {}", line.class, line.text));
        }
    }
    truth
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    const RESET: &str = "2026/11/23 12:46:31 [error] 22#22: *5 recv() failed (104: Connection reset by peer) while \
        reading response header from upstream, client: 127.0.0.1, server: , request: \"GET /p/7 HTTP/1.1\", \
        upstream: \"http://127.0.0.1:3000/p/7\", host: \"shop.example.com\"";

    fn incident(time: &str, cause: &str, target: Option<&str>, address: &str) -> Value {
        json!({"time": format!("2026-11-23T{time}Z"), "cause": cause, "confidence": "proven", "worker": {"pid": 22},
            "request": {"target": target}, "upstream": {"address": address, "module": "proxy"}})
    }

    fn line(class: Class, time: f64, target: &str) -> Line {
        let line = error_line(RESET).unwrap();
        Line { class, time: line.time + time, target: target.to_owned(), ..line }
    }

    #[test]
    fn lines_of_the_error_log() {
        let line = error_line(RESET).unwrap();
        assert_eq!((line.pid, line.class), (22, Class::ResetInHeader));
        assert_eq!((line.target.as_str(), line.address.as_str()), ("/p/7", "127.0.0.1:3000"));
        assert!((line.time - 1_795_437_991.5).abs() < 0.01, "{}", line.time);
        for (message, upstream, class) in [
            (
                "upstream timed out (110: Connection timed out) while reading upstream",
                "http://1.2.3.4:1/",
                Class::BodyTimeout,
            ),
            (
                "upstream timed out (110: x) while SSL handshaking to upstream",
                "https://1.2.3.4:1/",
                Class::HandshakeTimeout,
            ),
            ("no live upstreams while connecting to upstream", "http://group/x", Class::NoLive),
            (
                "upstream prematurely closed connection while reading upstream",
                "http://1.2.3.4:1/",
                Class::ClosedInBody,
            ),
            (
                "upstream prematurely closed connection while reading response header from upstream",
                "http://1.2.3.4:1/",
                Class::ClosedInHeader,
            ),
            (
                "upstream prematurely closed connection while reading response header from upstream",
                "https://1.2.3.4:1/",
                Class::EndedInHeader,
            ),
            (
                "epoll_wait() reported that client prematurely closed connection, so upstream connection is closed too while sending request to upstream",
                "http://1.2.3.4:1/",
                Class::ClientGone,
            ),
            (
                "upstream sent no valid HTTP/1.0 header while reading response header from upstream",
                "http://1.2.3.4:1/",
                Class::Remark,
            ),
            (
                "upstream sent \"Content-Length\" and \"Transfer-Encoding\" headers at the same time",
                "http://1.2.3.4:1/",
                Class::Invalid,
            ),
            (
                "upstream sent unsupported FastCGI protocol version: 72 while reading",
                "fastcgi://1.2.3.4:1",
                Class::Invalid,
            ),
            (
                "peer closed connection in SSL handshake (104: Connection reset by peer) while SSL handshaking to upstream",
                "https://1.2.3.4:1/",
                Class::Handshake,
            ),
        ] {
            let text = format!(
                "2026/11/23 12:46:31 [error] 22#22: *5 {message}, client: 127.0.0.1, server: , request: \"GET /upstream HTTP/1.1\", upstream: \"{upstream}\""
            );
            let line = error_line(&text).unwrap();
            assert_eq!(line.class, class, "{message}");
            assert_eq!(line.address, if class == Class::NoLive { "" } else { "1.2.3.4:1" });
        }
        assert!(
            error_line("2026/11/23 12:46:31 [info] 22#22: *5 client closed keepalive connection").is_none()
        );
    }

    #[test]
    fn own_5xx_of_the_access_log() {
        let own = |text: &str| access_line(text).into_iter().map(|line| line.address).collect::<Vec<_>>();
        assert_eq!(own("1.5|22|/n/1|1.2.3.4:1, 1.2.3.4:2|502, 200|0.001, 0.002"), ["1.2.3.4:1"]);
        assert_eq!(own("1.5|22|/n/1|1.2.3.4:1, 1.2.3.4:2|502, 503|-, 0.002"), ["1.2.3.4:2"]);
        assert_eq!(own("1.5|22|/n/1|1.2.3.4:1 : 1.2.3.4:2|500 : 200|0.1 : 0.2"), ["1.2.3.4:1"]);
        assert!(own("1.5|22|/n/1|-|502|-").is_empty());
        assert!(own("nonsense").is_empty());
    }

    #[test]
    fn pairs_are_one_to_one() {
        let lines = [line(Class::ResetInHeader, 0.0, "/p/7"), line(Class::ResetInHeader, 0.0, "/p/8")];
        // The one that knows its request leaves the other line to the one that does not, whatever their order.
        let incidents = [
            incident("12:46:31.2", "upstream-reset", None, "127.0.0.1:3000"),
            incident("12:46:31.3", "upstream-reset", Some("/p/7"), "127.0.0.1:3000"),
        ];
        let truth = compare(&lines, &incidents);
        assert_eq!((truth.pairs, truth.lines, truth.incidents), (2, 2, 2));
        let truth = compare(&lines[..1], &incidents);
        assert_eq!((truth.pairs, truth.surplus.len()), (1, 1));
        assert!(truth.surplus[0].contains("null"), "{}", truth.surplus[0]);
        let truth = compare(&lines, &incidents[..1]);
        assert_eq!((truth.pairs, truth.missed.len()), (1, 1));
        assert!((truth.recall() - 50.0).abs() < 0.01 && (truth.precision() - 100.0).abs() < 0.01);
    }

    #[test]
    fn what_is_not_the_same_attempt() {
        let lines = [line(Class::ResetInHeader, 0.0, "/p/7")];
        for other in [
            incident("12:46:34.2", "upstream-reset", None, "127.0.0.1:3000"),
            incident("12:46:31.2", "upstream-reset", None, "127.0.0.1:3001"),
            incident("12:46:31.2", "upstream-reset", Some("/p/8"), "127.0.0.1:3000"),
        ] {
            let truth = compare(&lines, std::slice::from_ref(&other));
            assert_eq!((truth.pairs, truth.missed.len(), truth.surplus.len()), (0, 1, 1), "{other}");
        }
        let wrong = [incident("12:46:31.2", "read-timeout", None, "127.0.0.1:3000")];
        let truth = compare(&lines, &wrong);
        assert_eq!(
            (truth.wrong.len(), truth.false_proven, truth.missed.len(), truth.surplus.len()),
            (1, 1, 0, 0)
        );
    }

    #[test]
    fn remarks_need_nobody() {
        let lines = [line(Class::Remark, 0.0, "/p/7")];
        let truth = compare(&lines, &[]);
        assert_eq!((truth.lines, truth.missed.len()), (0, 0));
        let truth = compare(&lines, &[incident("12:46:31.2", "invalid-response", None, "127.0.0.1:3000")]);
        assert_eq!((truth.incidents, truth.surplus.len()), (0, 0));
        let truth = compare(&lines, &[incident("12:46:31.2", "upstream-reset", None, "127.0.0.1:3000")]);
        assert_eq!(truth.surplus.len(), 1);
    }
}
