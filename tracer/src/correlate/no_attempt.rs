//! A request that nginx answered with 502 although it tried no server: what it had to choose from.
//!
//! Why nginx finds no server is told by its own rules (ngx_http_upstream_round_robin.c): a server is left out for
//! `fail_timeout` after `max_fails` failures that lie no further apart than that, in the memory of one worker, or of
//! all of them where the group has a `zone`; a lone server never is, nor one with `max_fails=0`.

use std::{borrow::Cow, net::SocketAddr};

use crate::{event::Attempt, nginx::ConfigLine};

/// nginx compares whole seconds of a clock that it reads once per round of its event loop.
const CLOCK_NS: u64 = 50_000_000;

/// How it is known that nginx tried nobody.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub enum Source {
    /// The worker read the request and answered, without a connection that could have served it.
    Answer {
        /// It did nothing else in between.
        at_once: bool,
        /// In between it began connections, perhaps for others.
        crowded: bool,
    },
    /// nginx itself has told its log.
    Said(Word),
}

/// What nginx tells its log when it tries nobody.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub enum Word {
    /// "no live upstreams".
    NoLive,
    /// "no resolver defined to resolve …".
    NoResolver,
    /// "… could not be resolved", with a response code of DNS or ETIMEDOUT.
    NotResolved(u64),
}

impl Source {
    /// No connection was begun between request and answer.
    #[must_use]
    pub fn no_connection(self) -> bool {
        match self {
            Source::Answer { crowded, .. } => !crowded,
            Source::Said(_) => true,
        }
    }

    /// Nothing at all was done in between.
    #[must_use]
    pub fn at_once(self) -> bool {
        match self {
            Source::Answer { at_once, .. } => at_once,
            Source::Said(_) => true,
        }
    }

    /// What nginx itself says, if it is asked.
    #[must_use]
    pub fn word(self) -> Option<Word> {
        match self {
            Source::Answer { .. } => None,
            Source::Said(word) => Some(word),
        }
    }
}

/// What nginx had to choose from for one request, and what it chose from it: nothing.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct NoAttempt {
    /// How that is known.
    pub source: Source,
    /// Servers that nginx had tried for the request before, where it says so itself.
    pub tried: u64,
    /// From the request's first byte to its answer, microseconds.
    pub waited_us: u64,
    /// The request surely came to this pass.
    pub certain: bool,
    /// Directives that can have made the same answer, in words.
    pub others: Vec<String>,
    /// The pass.
    pub pass: ConfigLine,
    /// What it leads to.
    pub choice: Choice,
}

impl NoAttempt {
    /// The request came to this pass and nothing but the choice can have made the answer.
    #[must_use]
    pub fn is_certain(&self) -> bool {
        self.certain && self.others.is_empty() && self.source.no_connection()
    }

    /// What else may have made the answer, for a rival's name.
    #[must_use]
    pub fn doubt(&self) -> Option<String> {
        if let Some(first) = self.others.first() {
            return Some(format!("{first}, which answers with 502 as well"));
        }
        if !self.certain {
            return Some(
                "another place of the configuration, to which the request may have been led".to_owned(),
            );
        }
        (!self.source.no_connection())
            .then(|| "a connection that this worker began meanwhile, and that failed later".to_owned())
    }
}

/// What a pass leads to.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub enum Choice {
    /// Several servers, or one.
    Group(Group),
    /// A name to be looked up.
    Name(LookUp),
}

/// The servers of a group.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Group {
    /// Its name.
    pub name: String,
    /// Its workers share what they know of the servers (`zone`).
    pub shared: bool,
    /// nginx's own rules choose among the servers.
    pub known: bool,
    /// An address each.
    pub peers: Vec<Peer>,
}

/// What failures are counted by, within a group.
#[derive(Debug, Clone, PartialEq, Eq, Hash, serde::Serialize, serde::Deserialize)]
pub enum Place {
    /// An address.
    Inet(SocketAddr),
    /// The path of a unix socket, as bytes.
    Unix(#[serde(with = "crate::plain::bytes")] Vec<u8>),
}

impl Place {
    /// Where an attempt went; None if that is not known.
    #[must_use]
    pub fn of(attempt: &Attempt) -> Option<Self> {
        match &attempt.unix {
            Some(name) => name.path().map(|path| Self::Unix(path.to_vec())),
            None => (!attempt.no_remote).then_some(Self::Inet(attempt.remote)),
        }
    }
}

/// A server's address.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Peer {
    /// The server as written.
    pub server: String,
    /// Where it is; None if its name has no known address, or if it is a unix socket (`unix`).
    pub address: Option<SocketAddr>,
    /// nginx surely has this address, and no other by the same name.
    pub sure: bool,
    /// Its line.
    pub line: ConfigLine,
    /// `down`.
    pub down: bool,
    /// `backup`.
    pub backup: bool,
    /// The path of a unix socket.
    pub unix: Option<String>,
    /// `max_fails`.
    pub max_fails: u64,
    /// `fail_timeout`, seconds.
    pub fail_timeout_s: u64,
    /// `max_conns`, 0 for none.
    pub max_conns: u64,
    /// The last failures that nginx counted, as far as they were seen, the oldest first.
    pub failures: Vec<Failure>,
}

/// A failure that nginx counts against a server.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Failure {
    /// The worker.
    pub worker: u32,
    /// When, CLOCK_MONOTONIC ns.
    pub at_ns: u64,
    /// Cause of its incident.
    pub cause: Cow<'static, str>,
    /// The connection was surely made for this group.
    pub sure: bool,
}

/// Whether nginx can choose a server.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub enum Standing {
    /// The configuration says that it is out.
    Down,
    /// It is out by failures that were seen.
    Out {
        /// For how long it is, nanoseconds.
        left_ns: u64,
    },
    /// It may be out by what was not seen.
    Unknown,
    /// Nothing takes it out.
    Always,
}

impl Group {
    /// nginx ignores the failures of a lone server.
    #[must_use]
    pub fn is_lone(&self) -> bool {
        self.peers.len() == 1
    }

    /// Whether nginx could choose a server at that moment, CLOCK_MONOTONIC ns.
    #[must_use]
    pub fn standing(&self, peer: &Peer, now_ns: u64) -> Standing {
        if peer.down {
            return Standing::Down;
        }
        if peer.address.is_none() && peer.unix.is_none() {
            return Standing::Unknown;
        }
        if peer.max_fails == 0 || self.is_lone() {
            // A name may stand for more addresses than are known.
            let always = peer.max_conns == 0 && (peer.max_fails == 0 || peer.sure);
            return if always { Standing::Always } else { Standing::Unknown };
        }
        let timeout_ns = peer.fail_timeout_s.saturating_mul(1_000_000_000);
        let wanted = usize::try_from(peer.max_fails).unwrap_or(usize::MAX);
        // What came later counts for others.
        let past: Vec<&Failure> = peer.failures.iter().filter(|f| f.at_ns <= now_ns).collect();
        let Some(last) = past.len().checked_sub(wanted).and_then(|first| past.get(first..)) else {
            return Standing::Unknown;
        };
        let near = |from: u64, to: u64| to.saturating_sub(from) <= timeout_ns.saturating_add(CLOCK_NS);
        let in_a_row = last.windows(2).all(|pair| match pair {
            [one, two] => near(one.at_ns, two.at_ns),
            _ => true,
        });
        match last.last() {
            Some(end) if in_a_row && near(end.at_ns, now_ns) => {
                Standing::Out { left_ns: end.at_ns.saturating_add(timeout_ns).saturating_sub(now_ns) }
            }
            _ => Standing::Unknown,
        }
    }
}

/// A name that nginx has to look up for a request.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct LookUp {
    /// The name, if the request tells it.
    pub name: Option<String>,
    /// It is a host's name, not that of a group.
    pub sure: bool,
    /// The `resolver` in force.
    pub resolver: Option<ConfigLine>,
    /// `resolver_timeout`, milliseconds; None if it is no time.
    pub timeout_ms: Option<u64>,
    /// The same as it is written, or the default.
    pub timeout_text: String,
    /// Replies without an answer can be seen.
    pub watched: bool,
    /// What name servers told the worker between request and answer, in order.
    pub replies: Vec<Reply>,
}

/// What a name server told.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Reply {
    /// The name server.
    pub server: SocketAddr,
    /// Before nginx's answer to the client, microseconds.
    pub before_us: u64,
    /// What it was.
    pub what: Said,
    /// The name asked for.
    pub name: Option<String>,
}

/// Kinds of reply.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub enum Said {
    /// The read failed with that errno.
    Error(i32),
    /// A response code other than NOERROR.
    Code(u8),
    /// NOERROR and no record.
    Empty,
    /// Too long for a datagram: nginx asks again by TCP.
    Truncated,
}

/// Reads what a name server sent (RFC 1035, 4.1): what it says and the name asked for. None if it is no reply
/// without an answer.
#[must_use]
pub fn reply(bytes: &[u8]) -> Option<(Said, Option<String>)> {
    let [_, _, high, low, _, _, answers_high, answers_low, ..] = bytes else {
        return None;
    };
    if bytes.len() < 12 || high & 0x80 == 0 {
        return None;
    }
    let said = match (low & 15, high & 2 != 0) {
        (_, true) => Said::Truncated,
        (0, false) if *answers_high == 0 && *answers_low == 0 => Said::Empty,
        (0, false) => return None,
        (code, false) => Said::Code(code),
    };
    Some((said, bytes.get(12..).and_then(question)))
}

/// The name in the first question: labels with their lengths, without compression as nothing stands before it.
fn question(mut rest: &[u8]) -> Option<String> {
    let mut name = String::new();
    loop {
        let (length, after) = rest.split_first()?;
        if *length == 0 {
            return (!name.is_empty()).then_some(name);
        }
        let (label, after) = after.split_at_checked(usize::from(*length)).filter(|_| *length < 64)?;
        if !name.is_empty() {
            name.push('.');
        }
        for byte in label {
            if byte.is_ascii_graphic() && *byte != b'\\' {
                name.push(char::from(byte.to_ascii_lowercase()));
            } else {
                name.push_str(&format!("\\x{byte:02x}"));
            }
        }
        if name.len() > 1024 {
            return None;
        }
        rest = after;
    }
}

/// Name of a response code (RFC 1035, 4.1.1; RFC 2136, 2.2).
#[must_use]
pub fn code_name(code: u8) -> String {
    match code {
        1 => "FORMERR".to_owned(),
        2 => "SERVFAIL".to_owned(),
        3 => "NXDOMAIN".to_owned(),
        4 => "NOTIMP".to_owned(),
        5 => "REFUSED".to_owned(),
        other => format!("code {other}"),
    }
}

#[cfg(test)]
#[path = "no_attempt_tests.rs"]
mod tests;
