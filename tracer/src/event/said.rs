//! What nginx itself says of a failed attempt, read by uprobes.
//!
//! Every byte comes out of nginx's memory, and most of them from the network before: lengths are checked, texts are
//! kept as bytes, and what is not understood is [`Said::Other`].

use std::{
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    os::unix::ffi::OsStrExt as _,
    path::PathBuf,
    time::{Duration, SystemTime},
};

use tracer_ebpf::said::{self as wire, said_flag};

use super::{ip, request};

/// A text of nginx's memory.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Words {
    /// As much of it as there was room for.
    pub bytes: Vec<u8>,
    /// It goes on.
    pub truncated: bool,
}

impl Words {
    fn of(room: &[u8], length: u16) -> Self {
        let most = room.len().saturating_sub(1);
        let length = usize::from(length);
        Self { bytes: room.get(..length.min(most)).unwrap_or_default().to_vec(), truncated: length > most }
    }

    /// For people: what is no UTF-8 is replaced.
    #[must_use]
    pub fn text(&self) -> String {
        let mut text = String::from_utf8_lossy(&self.bytes).into_owned();
        if self.truncated {
            text.push('…');
        }
        text
    }
}

/// What it is about.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub enum Said {
    /// All servers of an upstream are down, have failed or are busy: no socket was opened.
    NoLiveUpstreams {
        /// The upstream's name.
        upstream: String,
    },
    /// A name could not be resolved: no socket was opened.
    NotResolved {
        /// The name.
        name: String,
        /// A DNS rcode (RFC 1035, 4.1.1), or ETIMEDOUT.
        state: u64,
    },
    /// A variable led to a name, and there is no `resolver`.
    NoResolver {
        /// The name.
        name: String,
    },
    /// The server's certificate is not what nginx accepts; why, as far as that is known.
    Certificate {
        /// In the words of OpenSSL (X509_verify_cert_error_string), or of nginx.
        reason: Option<String>,
    },
    /// What went wrong with an upstream connection that stood.
    Broken {
        /// What.
        fault: Fault,
        /// What nginx was doing.
        during: During,
    },
    /// Nothing, though it would have told its log of an error, and that would have been seen.
    Nothing,
    /// Anything else.
    Other,
}

/// What nginx finds wrong with an upstream connection that stood.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, serde::Serialize, serde::Deserialize)]
pub enum Fault {
    /// The server ended it before the response was whole.
    ClosedEarly,
    /// One of nginx's timers ran out.
    TimedOut,
    /// The response's header did not fit its buffer.
    TooBig,
    /// What came is not what the protocol demands.
    Invalid,
    /// An answer without a status line, which it passes on as HTTP/0.9.
    NoHeader,
}

/// What nginx was doing (`ngx_log_t.action`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, serde::Serialize, serde::Deserialize)]
pub enum During {
    /// The handshake of TLS.
    Handshake,
    /// Sending the request.
    Request,
    /// Reading the response's header.
    Header,
    /// Passing on its body.
    Body,
    /// Something else, or it is not known.
    Unknown,
}

impl During {
    pub(crate) fn of(action: &[u8]) -> Self {
        match action {
            b"SSL handshaking to upstream" => Self::Handshake,
            b"sending request to upstream" => Self::Request,
            b"reading response header from upstream" => Self::Header,
            b"reading upstream" | b"sending to client" | b"proxying upgraded connection" => Self::Body,
            _ => Self::Unknown,
        }
    }
}

impl Fault {
    /// By the text (ngx_http_upstream.c, ngx_event_pipe.c and the modules). Of those that say what was sent, only what ends the
    /// attempt has the level of an error, but for a response without a status line, which is passed on as HTTP/0.9.
    pub(crate) fn of(format: &[u8]) -> Option<Self> {
        let begins = |text: &str| format.starts_with(text.as_bytes());
        if begins("upstream prematurely closed stream") {
            // Its connection stands: what came says more.
            None
        } else if begins("upstream prematurely closed") {
            Some(Self::ClosedEarly)
        } else if begins("upstream timed out") {
            Some(Self::TimedOut)
        } else if begins("upstream sent too big header") || begins("upstream sent too big early hints") {
            Some(Self::TooBig)
        } else if begins("upstream sent no valid HTTP/1.0 header") {
            Some(Self::NoHeader)
        } else if REFUSALS.iter().any(|text| begins(text)) {
            Some(Self::Invalid)
        } else {
            None
        }
    }
}

/// How nginx's texts of what it does not take begin.
const REFUSALS: [&str; 7] = [
    "upstream sent",
    "upstream rejected",
    "upstream violated",
    "upstream prematurely sent",
    "memcached sent invalid",
    "unsafe URI ",
    "connection upgrade in subrequest",
];

/// What nginx logs of a certificate that its library refused, with the reason in words behind it
/// (ngx_http_upstream_ssl_handshake, ngx_stream_proxy_ssl_handshake).
pub const REFUSED: &[u8] = b"upstream SSL certificate verify error: (%l:%s)";
/// How [`Said::Certificate`] begins where the certificate is for other names.
pub const OTHER_NAME: &str = "it is not for the name";
/// What nginx logs of that.
const NAMELESS: &[u8] = b"upstream SSL certificate does not match \"%V\"";

/// Where a request is in the configuration, as nginx's memory has it.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Place {
    /// File of the `server`.
    #[serde(with = "crate::plain::path")]
    pub file: PathBuf,
    /// Line of its `{`, from 1.
    pub line: u32,
    /// Name of the `location`, without its modifier; empty at the level of the `server`.
    #[serde(with = "crate::plain::bytes")]
    pub location: Vec<u8>,
}

/// A request's name among those of one run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Identity {
    /// Where it lies.
    pub place: request::Place,
    client: Option<SocketAddr>,
}

/// One statement of nginx.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Statement {
    /// Worker's PID in the initial PID namespace.
    pub worker: u32,
    /// When, CLOCK_MONOTONIC ns.
    pub time_ns: u64,
    /// The attempt that it is about: its socket (0 if there is none) and its [`start_ns`](super::Attempt::start_ns).
    pub attempt: Option<(u64, u64)>,
    /// It is about a session of the stream module, which has neither request line, host nor location.
    pub session: bool,
    /// True if nginx had an upstream connection at all.
    pub connected: bool,
    /// The errno in it.
    pub errno: Option<i32>,
    /// The client's request, or its session.
    pub request: Identity,
    /// The client, and the address that it connected to; None if its connection is not TCP.
    pub client: Option<(SocketAddr, SocketAddr)>,
    /// The request line, as nginx keeps it for clients of any protocol.
    pub line: Words,
    /// The Host header; empty if there is none.
    pub host: Words,
    /// Where in the configuration.
    pub place: Option<Place>,
    /// The upstream server's address, if nginx has chosen one.
    pub peer: Option<SocketAddr>,
    /// nginx's log does not show it.
    pub silent: bool,
    /// The first bytes of the request as its client sent them (nginx's marks in them): line and header. Of HTTP/1 alone.
    pub head: Vec<u8>,
    /// The number of this attempt among those of the request, from 1; None if the request was led elsewhere in between.
    pub attempt_number: Option<u32>,
    /// The status that nginx has noted for the attempt, if it has noted one.
    pub noted: Option<u16>,
    /// The header of the response was whole.
    pub has_header: bool,
    /// Its text without the arguments; empty if it could not be read.
    pub format: Vec<u8>,
    /// Where the text lies in the worker; 0 if there is none.
    pub format_at: u64,
    /// What nginx was doing, in its words; empty if that could not be read.
    pub action: Vec<u8>,
    /// Where they lie in the worker; 0 if there are none.
    pub action_at: u64,
    /// The text's second argument: a number, or where a string lies in the worker.
    pub number: u64,
    /// Tries of the request so far, this one of nobody included; more where it was led elsewhere.
    pub tries: u64,
    /// That string, once it is read; see `session::said`.
    pub reason: Option<String>,
    subject: Words,
    peer_name: Words,
}

impl Statement {
    /// Reads a record.
    pub(super) fn of(said: &wire::Said) -> Self {
        let has = |bit: u32| said.flags & bit != 0;
        let [format, file, location, line, host, subject, peer_name, action] = said.lens;
        let words = |room: &[u8], length| Words::of(room, length);
        let (file, location) = (words(&said.file, file), words(&said.location, location));
        // A text that ends with a NUL and fills its room may go on.
        let whole = file.bytes.len() + 1 < wire::FILE && file.bytes.starts_with(b"/") && !location.truncated;
        let place =
            u32::try_from(said.server_line).ok().filter(|line| whole && *line > 0).map(|line| Place {
                file: PathBuf::from(std::ffi::OsStr::from_bytes(&file.bytes)),
                line,
                location: location.bytes,
            });
        let client = has(said_flag::CLIENT).then(|| {
            let local = SocketAddr::new(ip(&said.local), said.local_port);
            (SocketAddr::new(ip(&said.client), said.client_port), local)
        });
        Self {
            worker: said.tgid,
            time_ns: said.time_ns,
            attempt: (said.upstream_start_ns != 0).then_some((said.upstream_sk, said.upstream_start_ns)),
            session: has(said_flag::SESSION),
            connected: has(said_flag::UPSTREAM),
            errno: (said.err > 0).then_some(said.err),
            request: Identity {
                place: request::Place {
                    worker: said.tgid,
                    address: said.request,
                    began: said.began,
                    mark: said.mark,
                },
                client: client.map(|(client, _)| client),
            },
            client,
            line: words(&said.line, line),
            host: words(&said.host, host),
            place,
            peer: socket_address(&said.peer),
            silent: has(said_flag::SILENT),
            head: words(&said.line, said.head_len).bytes,
            attempt_number: u32::try_from(said.states)
                .ok()
                .filter(|number| *number > 0 && !has(said_flag::LED)),
            noted: u16::try_from(said.status).ok().filter(|status| *status >= 100),
            has_header: said.header_ms != u32::MAX,
            format: words(&said.format, format).bytes,
            format_at: said.format_at,
            action: words(&said.action, action).bytes,
            action_at: said.action_at,
            subject: words(&said.subject, subject),
            number: said.number,
            tries: said.states,
            reason: None,
            peer_name: words(&said.peer_name, peer_name),
        }
    }

    /// When the request began, by nginx's clock, which it reads once per round of its loop.
    #[must_use]
    pub fn began(&self) -> SystemTime {
        let [seconds, ms] = self.request.place.began;
        let since = Duration::from_secs(seconds).saturating_add(Duration::from_millis(ms.min(999)));
        SystemTime::UNIX_EPOCH.checked_add(since).unwrap_or(SystemTime::UNIX_EPOCH)
    }

    /// What it is about, by its text (src/http/ngx_http_upstream.c, src/stream/ngx_stream_proxy_module.c, 1.14 to 1.31).
    #[must_use]
    pub fn said(&self) -> Said {
        match self.format.as_slice() {
            b"no live upstreams" => Said::NoLiveUpstreams { upstream: self.peer_name.text() },
            b"%V could not be resolved (%i: %s)" => {
                Said::NotResolved { name: self.subject.text(), state: self.number }
            }
            b"no resolver defined to resolve %V" => Said::NoResolver { name: self.subject.text() },
            REFUSED => Said::Certificate { reason: self.reason.clone() },
            NAMELESS => {
                let name = self.subject.text();
                Said::Certificate {
                    reason: (!name.is_empty()).then(|| format!("{OTHER_NAME} {}", name.escape_debug())),
                }
            }
            text => match Fault::of(text) {
                Some(fault) => Said::Broken { fault, during: During::of(&self.action) },
                None => Said::Other,
            },
        }
    }

    /// Its text for people, with an ellipsis for each argument that stands among its words, and without those behind them.
    #[must_use]
    pub fn text(&self) -> Option<String> {
        if let Said::Certificate { reason: Some(reason) } = self.said() {
            return Some(format!("upstream SSL certificate: {reason}"));
        }
        let text = std::str::from_utf8(&self.format).ok()?;
        let plain = text.chars().all(|c| c.is_ascii_graphic() || c == ' ');
        Some(words_of(text)).filter(|text| plain && !text.is_empty())
    }
}

/// The words of a text for ngx_vslprintf.
fn words_of(format: &str) -> String {
    let mut pieces = format.split('%');
    let mut text = pieces.next().unwrap_or_default().to_owned();
    for piece in pieces {
        let after = piece.trim_start_matches(|c: char| c.is_ascii_digit() || ".*uxXm".contains(c));
        // The letter of the argument's type.
        let after = after.get(1..).unwrap_or_default();
        if !after.starts_with(' ') {
            break;
        }
        text = text + "…" + after;
    }
    text.trim_end_matches([' ', ':', '"', '(']).to_owned()
}

/// A `struct sockaddr` of either family; None for others, and for none.
fn socket_address(bytes: &[u8; 28]) -> Option<SocketAddr> {
    let (family, rest) = bytes.split_first_chunk::<2>()?;
    let (port, rest) = rest.split_first_chunk::<2>()?;
    let port = u16::from_be_bytes(*port);
    let ip = match i32::from(u16::from_ne_bytes(*family)) {
        libc::AF_INET => IpAddr::V4(Ipv4Addr::from(*rest.first_chunk::<4>()?)),
        libc::AF_INET6 => IpAddr::V6(Ipv6Addr::from(*rest.get(4..)?.first_chunk::<16>()?)),
        _ => return None,
    };
    Some(SocketAddr::new(ip.to_canonical(), port))
}

#[cfg(test)]
#[path = "said_tests.rs"]
pub(crate) mod tests;
