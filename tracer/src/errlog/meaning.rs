//! What a message says of an upstream server, by its text (ngx_http_upstream.c, ngx_event_pipe.c, ngx_stream_proxy_module.c
//! and the modules of the protocols, 1.14 to 1.31).

use super::Level;
use crate::event::said::{During, Fault};

/// What a message says of an upstream server.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Meaning {
    /// `connect()` failed, at once or later.
    Connect(i32),
    /// There was no socket.
    Socket(i32),
    /// `bind()` failed.
    Bind,
    /// The connection was not made in time.
    ConnectTimeout,
    /// A time-out of a connection that stood.
    TimedOut(During),
    /// The server ended the connection, or its answer, too early.
    Ended(During),
    /// A read or a write failed; without an errno in TLS.
    Broken(Option<i32>, During),
    /// The header did not fit.
    TooBig,
    /// What came is not what the protocol demands.
    Invalid,
    /// The TLS handshake failed.
    Handshake {
        /// What came was no TLS.
        plain: bool,
    },
    /// The server's certificate was refused.
    Certificate,
    /// No server was in service.
    NoLive,
    /// A name, and nothing to resolve it.
    NoResolver,
    /// A name that was not resolved.
    Unresolved,
    /// The client left, and its upstream connection was closed for that.
    ClientLeft,
    /// The server's own status, 5xx. (No error log has it; an access log can.)
    Returned5xx,
    /// Nothing that fails a request.
    Remark,
}

impl Meaning {
    /// A name for counts.
    #[must_use]
    pub fn name(self) -> String {
        let of = |during: During| match during {
            During::Handshake => "in-handshake",
            During::Request => "in-request",
            During::Header => "in-header",
            During::Body => "in-body",
            During::Unknown => "in-session",
        };
        match self {
            Self::Connect(errno) => format!("connect-failed-{errno}"),
            Self::Socket(errno) => format!("socket-failed-{errno}"),
            Self::Bind => "bind-failed".to_owned(),
            Self::ConnectTimeout => "timed-out-in-connect".to_owned(),
            Self::TimedOut(during) => format!("timed-out-{}", of(during)),
            Self::Ended(during) => format!("ended-{}", of(during)),
            Self::Broken(Some(errno), during) => format!("failed-{errno}-{}", of(during)),
            Self::Broken(None, during) => format!("failed-{}", of(during)),
            Self::TooBig => "too-big-header".to_owned(),
            Self::Invalid => "invalid".to_owned(),
            Self::Handshake { plain: true } => "handshake-no-tls".to_owned(),
            Self::Handshake { plain: false } => "handshake-failed".to_owned(),
            Self::Certificate => "certificate".to_owned(),
            Self::NoLive => "no-live".to_owned(),
            Self::NoResolver => "no-resolver".to_owned(),
            Self::Unresolved => "not-resolved".to_owned(),
            Self::ClientLeft => "client-left".to_owned(),
            Self::Returned5xx => "own-5xx".to_owned(),
            Self::Remark => "remark".to_owned(),
        }
    }
}

/// The number of `connect() failed (111: Connection refused)`.
fn errno(message: &str) -> Option<i32> {
    let (_, rest) = message.split_once(" failed (")?;
    rest.split(':').next()?.parse().ok()
}

/// What a message (see [`super::fields`]) says of an upstream server; `None` where it is about something else, or is not
/// known.
#[must_use]
pub fn meaning(message: &str, level: Level) -> Option<Meaning> {
    let begins = |texts: &[&str]| texts.iter().any(|text| message.starts_with(text));
    let action = message.rsplit_once(" while ").map_or("", |(_, action)| action);
    let during = During::of(action.as_bytes());
    let of_upstream = message.contains("upstream");
    if begins(&["connect() ", "kevent() reported that connect() "]) && of_upstream {
        return Some(Meaning::Connect(errno(message)?));
    }
    let client = [
        "client prematurely closed connection",
        "epoll_wait() reported that client",
        "kevent() reported that client",
    ];
    if begins(&client) && message.contains("so upstream connection is closed too") {
        return Some(Meaning::ClientLeft);
    }
    if begins(&["no live upstreams"]) {
        return Some(Meaning::NoLive);
    }
    if begins(&["no resolver defined to resolve "]) {
        return Some(Meaning::NoResolver);
    }
    if message
        .find(' ')
        .is_some_and(|space| message.get(space..).is_some_and(|m| m.starts_with(" could not be resolved (")))
    {
        return Some(Meaning::Unresolved);
    }
    if begins(&["bind("]) && of_upstream {
        return Some(Meaning::Bind);
    }
    if begins(&["socket() failed (", "accept4() failed ("]) {
        return Some(Meaning::Socket(errno(message)?));
    }
    if begins(&["upstream SSL certificate"]) {
        return Some(Meaning::Certificate);
    }
    if begins(&["SSL_do_handshake() failed", "peer closed connection in SSL handshake", "handshake rejected"])
        && message.contains("to upstream")
    {
        let plain = message.contains("wrong version number") || message.contains("packet length too long");
        return Some(Meaning::Handshake { plain });
    }
    if begins(&["upstream prematurely closed"]) {
        return Some(Meaning::Ended(during));
    }
    // An unsafe URI may be a client's.
    let own = !begins(&["unsafe URI "]) || of_upstream;
    let fault = Fault::of(message.as_bytes()).filter(|_| own);
    // What is sent and does no harm has a lower level.
    if let Some(fault) = fault.filter(|_| level >= Level::Error) {
        return Some(match fault {
            Fault::TimedOut if action == "connecting to upstream" => Meaning::ConnectTimeout,
            Fault::TimedOut => Meaning::TimedOut(during),
            Fault::ClosedEarly => Meaning::Ended(during),
            Fault::TooBig => Meaning::TooBig,
            Fault::Invalid => Meaning::Invalid,
            Fault::NoHeader => Meaning::Remark,
        });
    }
    let calls = [
        "recv() failed",
        "recvmsg() failed",
        "readv() failed",
        "writev() failed",
        "send() failed",
        "sendfile() failed",
        "sendmsg() failed",
        "SSL_read() failed",
        "SSL_write() failed",
    ];
    if begins(&calls) && of_upstream {
        return Some(Meaning::Broken(errno(message), during));
    }
    let remarks = ["FastCGI sent in stderr", "client prematurely closed connection", "client timed out"];
    let remark = fault.is_some() || level < Level::Error || action == "sending to client" || begins(&remarks);
    remark.then_some(Meaning::Remark)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(level: Level, message: &str, expected: Option<Meaning>) {
        assert_eq!(meaning(message, level), expected, "{message}");
    }

    /// As nginx 1.22 wrote them.
    #[test]
    fn messages_of_failures() {
        for (message, expected) in [
            (
                "connect() failed (111: Connection refused) while connecting to upstream",
                Meaning::Connect(111),
            ),
            (
                "connect() to unix:/run/a failed (2: No such file or directory) while connecting to upstream",
                Meaning::Connect(2),
            ),
            ("socket() failed (24: Too many open files) while connecting to upstream", Meaning::Socket(24)),
            (
                "bind(10.9.9.9) failed (99: Cannot assign requested address) while connecting to upstream",
                Meaning::Bind,
            ),
            (
                "upstream timed out (110: Connection timed out) while connecting to upstream",
                Meaning::ConnectTimeout,
            ),
            (
                "upstream timed out (110: Connection timed out) while SSL handshaking to upstream",
                Meaning::TimedOut(During::Handshake),
            ),
            (
                "upstream timed out (110: Connection timed out) while sending request to upstream",
                Meaning::TimedOut(During::Request),
            ),
            (
                "upstream timed out (110: Connection timed out) while reading response header from upstream",
                Meaning::TimedOut(During::Header),
            ),
            (
                "upstream timed out (110: Connection timed out) while reading upstream",
                Meaning::TimedOut(During::Body),
            ),
            (
                "upstream timed out (110: Connection timed out) while proxying connection",
                Meaning::TimedOut(During::Unknown),
            ),
            (
                "upstream prematurely closed connection while reading response header from upstream",
                Meaning::Ended(During::Header),
            ),
            (
                "upstream prematurely closed FastCGI stdout while reading response header from upstream",
                Meaning::Ended(During::Header),
            ),
            ("upstream prematurely closed connection while sending to client", Meaning::Ended(During::Body)),
            ("upstream prematurely closed stream while reading upstream", Meaning::Ended(During::Body)),
            (
                "recv() failed (104: Connection reset by peer) while reading response header from upstream",
                Meaning::Broken(Some(104), During::Header),
            ),
            (
                "writev() failed (32: Broken pipe) while sending request to upstream",
                Meaning::Broken(Some(32), During::Request),
            ),
            (
                "SSL_read() failed (SSL: error:0A000126:SSL routines::unexpected eof while reading) while reading response header from upstream",
                Meaning::Broken(None, During::Header),
            ),
            (
                "recv() failed (104: Connection reset by peer) while proxying and reading from upstream",
                Meaning::Broken(Some(104), During::Unknown),
            ),
            ("upstream sent too big header while reading response header from upstream", Meaning::TooBig),
            (
                "upstream sent invalid header: \"a b\\x20...\" while reading response header from upstream",
                Meaning::Invalid,
            ),
            (
                "upstream sent \"Content-Length\" and \"Transfer-Encoding\" headers at the same time while reading response header from upstream",
                Meaning::Invalid,
            ),
            (
                "upstream rejected request with error 2 while reading response header from upstream",
                Meaning::Invalid,
            ),
            (
                "memcached sent invalid response: \"HTTP/1.1 400\" while reading response header from upstream",
                Meaning::Invalid,
            ),
            (
                "SSL_do_handshake() failed (SSL: error:0A00010B:SSL routines::wrong version number) while SSL handshaking to upstream",
                Meaning::Handshake { plain: true },
            ),
            (
                "peer closed connection in SSL handshake (104: Connection reset by peer) while SSL handshaking to upstream",
                Meaning::Handshake { plain: false },
            ),
            (
                "upstream SSL certificate verify error: (18:self-signed certificate) while SSL handshaking to upstream",
                Meaning::Certificate,
            ),
            ("no live upstreams while connecting to upstream", Meaning::NoLive),
            ("no resolver defined to resolve app.example.com", Meaning::NoResolver),
            ("app.example.com could not be resolved (3: Host not found)", Meaning::Unresolved),
        ] {
            check(Level::Error, message, Some(expected));
        }
        let left = "epoll_wait() reported that client prematurely closed connection, so upstream connection is closed too while sending request to upstream";
        check(Level::Info, left, Some(Meaning::ClientLeft));
    }

    #[test]
    fn remarks_fail_no_request() {
        for (level, message) in [
            (
                Level::Warn,
                "upstream sent more data than specified in \"Content-Length\" header while reading upstream",
            ),
            (
                Level::Warn,
                "upstream sent duplicate header line: \"Expires: 0\", previous value: \"Expires: 1\", ignored while reading response header from upstream",
            ),
            (Level::Warn, "upstream server temporarily disabled while connecting to upstream"),
            (Level::Warn, "an upstream response is buffered to a temporary file /x while reading upstream"),
            (
                Level::Error,
                "upstream sent no valid HTTP/1.0 header while reading response header from upstream",
            ),
            (
                Level::Error,
                "FastCGI sent in stderr: \"Primary script unknown\" while reading response header from upstream",
            ),
            (
                Level::Info,
                "key: \"k\" was not found by memcached while reading response header from upstream",
            ),
            (Level::Info, "writev() failed (32: Broken pipe) while sending to client"),
        ] {
            check(level, message, Some(Meaning::Remark));
        }
    }

    #[test]
    fn what_is_not_known_has_no_meaning() {
        for message in [
            "open() \"/var/www/favicon.ico\" failed (2: No such file or directory)",
            "upstream was eaten by a bear while reading upstream",
            "SSL_do_handshake() failed (SSL: error:1) while SSL handshaking",
            "a b could not be resolved (x)",
            "connect() to 127.0.0.1:53 failed (111: Connection refused), resolver: 127.0.0.1:53",
            "connect() failed while connecting to upstream",
            "",
        ] {
            check(Level::Error, message, None);
        }
    }
}
