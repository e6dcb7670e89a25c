//! Lines of nginx's error log, and what they mean. The bytes are hostile: requests, paths and headers stand in them.

use crate::diagnose::Cause;

/// One line.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Line<'a> {
    /// Seconds after 1970 if its clock were UTC.
    pub clock: i64,
    /// `error`, `emerg` …
    pub level: &'a str,
    /// The process that wrote it, as its own namespace numbers it.
    pub pid: u32,
    /// What it says, without the connection's number.
    pub text: &'a str,
}

/// Reads `2026/11/23 17:05:41 [error] 123#123: *5 connect() failed …`; `None` for anything else, such as the second line
/// of a message.
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
    let known = ["debug", "info", "notice", "warn", "error", "crit", "alert", "emerg"];
    known.contains(&level).then_some(())?;
    Some(Line { clock: clock(date, time)?, level, pid: pid.parse().ok()?, text })
}

/// `2026/11/23` and `17:05:41`.
fn clock(date: &str, time: &str) -> Option<i64> {
    let three = |text: &str, by: char| -> Option<(i64, i64, i64)> {
        let mut parts = text
            .split(by)
            .map(|part| part.parse::<i64>().ok().filter(|_| part.bytes().all(|b| b.is_ascii_digit())));
        let all = (parts.next()??, parts.next()??, parts.next()??);
        parts.next().is_none().then_some(all)
    };
    let (year, month, day) = three(date, '/')?;
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

/// What decides where one message has several meanings.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Lsm {
    /// SELinux is there.
    Selinux,
    /// AppArmor is.
    Apparmor,
    /// Neither.
    Neither,
}

/// What a line says of an upstream.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Told {
    /// The cause that fits best.
    pub cause: Cause,
    /// What else it can have been.
    pub rival: &'static str,
    /// The message without names and numbers of requests.
    pub message: String,
    /// Where nginx had gone, if the line says so.
    pub upstream: Option<String>,
}

/// What a line tells of an upstream; `None` where it is about something else.
pub fn told(text: &str, lsm: Lsm) -> Option<Told> {
    // What follows comes from clients and servers.
    let message = text.split(", client: ").next().unwrap_or(text);
    let upstream = upstream(text);
    let (cause, rival) = meaning(message, upstream.as_deref(), lsm)?;
    // Names that only one request had would make each line a message of its own.
    let message = match message.split_once(" does not match \"") {
        Some((before, _)) => before.to_owned(),
        None => message.split(": \"").next().unwrap_or(message).to_owned(),
    };
    Some(Told { cause, rival, message, upstream })
}

/// Address of `, upstream: "http://127.0.0.1:3000/x"` as an incident writes it.
fn upstream(text: &str) -> Option<String> {
    let (_, rest) = text.rsplit_once(", upstream: \"")?;
    let url = rest.split('"').next()?;
    let authority = match url.split_once("://") {
        Some((scheme, rest)) => {
            let known = ["http", "https", "fastcgi", "uwsgi", "suwsgi", "scgi", "grpc", "grpcs", "memcached"];
            known.contains(&scheme).then_some(rest)?
        }
        None => url,
    };
    if let Some(path) = authority.strip_prefix("unix:") {
        let path = path.split(':').next()?;
        return path.starts_with('/').then(|| format!("unix:{path}"));
    }
    let authority = authority.split(['/', '?']).next()?;
    let fits = |c: char| c.is_ascii_alphanumeric() || ".:-_[]".contains(c);
    (!authority.is_empty() && authority.len() <= 256 && authority.chars().all(fits))
        .then(|| authority.to_owned())
}

/// The number of `connect() failed (111: Connection refused)`.
fn errno(message: &str) -> Option<i32> {
    let (_, rest) = message.split_once(" failed (")?;
    rest.split(':').next()?.parse().ok()
}

fn meaning(message: &str, upstream: Option<&str>, lsm: Lsm) -> Option<(Cause, &'static str)> {
    let is_unix = upstream.is_some_and(|upstream| upstream.starts_with("unix:"))
        || message.starts_with("connect() to unix:");
    let is_local = upstream.is_some_and(|upstream| {
        ["127.", "[::1]", "localhost"].iter().any(|local| upstream.starts_with(local))
    });
    let of_upstream = message.contains("upstream");
    if message.starts_with("connect() ") && of_upstream {
        return connect(errno(message)?, is_unix, is_local, lsm);
    }
    if message.starts_with("upstream timed out (110") {
        return Some(if message.ends_with("while connecting to upstream") {
            (Cause::ConnectTimeoutNoAnswer, "a firewall rule that drops, or a full accept queue")
        } else if message.contains("SSL handshaking") {
            (Cause::TlsHandshakeTimeout, "a plain-text server that waits for more")
        } else if message.contains("while sending request") {
            (Cause::SendTimeout, "a network that loses packets")
        } else {
            (Cause::ReadTimeout, "an answer that was lost on its way")
        });
    }
    if message.starts_with("upstream prematurely closed") {
        return Some(if message.contains("response header") || message.contains("first record") {
            (
                Cause::UpstreamClosedEarly,
                "a process that died, or a kept connection closed as it was used again",
            )
        } else {
            (Cause::ResponseTruncated, "a process that died in the middle of its answer")
        });
    }
    if message.starts_with("upstream sent too big header")
        || message.starts_with("upstream sent too long header line")
    {
        return Some((Cause::HeaderTooBig, "a server of another protocol"));
    }
    let invalid =
        ["invalid", "no valid", "unsupported", "unexpected", "duplicate", "too large", "too long", "unknown"];
    if let Some(rest) = message.strip_prefix("upstream sent ") {
        let hit = invalid.iter().any(|word| rest.starts_with(word));
        return hit.then_some((Cause::InvalidResponse, "a server of another protocol on that port"));
    }
    if message.starts_with("upstream SSL certificate") {
        return Some((Cause::TlsCertificateRejected, "a proxy in between with a certificate of its own"));
    }
    if (message.starts_with("SSL_do_handshake() failed")
        || message.starts_with("peer closed connection in SSL handshake"))
        && message.contains("to upstream")
    {
        let plain = message.contains("wrong version number") || message.contains("packet length too long");
        return Some(if plain {
            (Cause::TlsToPlainPort, "a server that speaks no TLS version that nginx does")
        } else {
            (Cause::TlsHandshakeFailed, "a plain-text server that closed")
        });
    }
    if message.starts_with("no live upstreams") {
        return Some((Cause::NoLiveUpstreams, "servers at their max_conns"));
    }
    if message.starts_with("no resolver defined to resolve ") {
        return Some((Cause::NoResolver, "nothing: the message has this one meaning"));
    }
    if message.contains(" could not be resolved (")
        && message.find(' ') == message.find(" could not be resolved (")
    {
        return Some((Cause::ResolverFailed, "a client that asked for a host that does not exist"));
    }
    if message.starts_with("bind(") && of_upstream {
        return Some((Cause::BindFailed, "no free local port at that address"));
    }
    let call = [
        "recv() failed",
        "readv() failed",
        "writev() failed",
        "send() failed",
        "sendfile() failed",
        "sendmsg() failed",
    ];
    if call.iter().any(|call| message.starts_with(call)) && of_upstream {
        return match errno(message)? {
            104 | 32 if message.contains("while reading upstream") => {
                Some((Cause::ResponseTruncated, "a client that had left"))
            }
            104 | 32 => {
                Some((Cause::UpstreamReset, "a kept connection that was closed as it was used again"))
            }
            110 => Some((Cause::ReadTimeout, "packets that were lost until the kernel gave up")),
            113 => Some((Cause::HostUnreachable, "a firewall that answers with ICMP")),
            _ => None,
        };
    }
    if message.starts_with("socket() failed (24") || message.starts_with("accept4() failed (24") {
        return Some((Cause::FdLimit, "the host's own limit (fs.file-max)"));
    }
    None
}

fn connect(errno: i32, is_unix: bool, is_local: bool, lsm: Lsm) -> Option<(Cause, &'static str)> {
    let permission = match lsm {
        Lsm::Selinux => (Cause::BlockedSelinux, "a route of type prohibit, or another guard"),
        Lsm::Apparmor => (Cause::BlockedApparmor, "a route of type prohibit, or another guard"),
        Lsm::Neither => (Cause::NetworkUnreachable, "a guard such as a BPF program"),
    };
    Some(match (errno, is_unix) {
        (2, _) => (Cause::UnixMissing, "a folder that is another one in nginx's mount namespace"),
        (13, true) => match lsm {
            Lsm::Selinux => (Cause::UnixPermission, "SELinux, for which the message is the same"),
            Lsm::Apparmor => (Cause::UnixPermission, "AppArmor, for which the message is the same"),
            Lsm::Neither => (Cause::UnixPermission, "a guard such as a BPF program"),
        },
        (13, false) => permission,
        (111, true) => (Cause::UnixNoListener, "a file that is no socket"),
        (11, true) => (Cause::UnixBacklogFull, "a local address without free ports"),
        (91 | 88, true) => (Cause::UnixNotASocket, "a socket of another type"),
        (111, false) if is_local => {
            (Cause::ConnectRefusedNoListener, "a firewall rule that rejects with a reset")
        }
        (111, false) => (Cause::ConnectRefusedByPeer, "a firewall on the way that rejects"),
        (110, _) => (Cause::ConnectTimeoutNoAnswer, "a firewall rule that drops, or a full accept queue"),
        (113, _) => (Cause::HostUnreachable, "a firewall that answers with ICMP"),
        (101 | 22, _) => (Cause::NetworkUnreachable, "an interface that was down for a moment"),
        (99 | 11, false) => (Cause::LocalPortExhausted, "a proxy_bind address that is gone"),
        (1, _) => (Cause::BlockedCgroupBpf, "a seccomp filter, or another guard"),
        (24 | 23, _) => (Cause::FdLimit, "the host's own limit (fs.file-max)"),
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const REST: &str = ", client: 203.0.113.9, server: shop, request: \"GET / HTTP/1.1\", upstream: \"http://127.0.0.1:3000/\", host: \"shop\"";

    fn cause(message: &str) -> Option<Cause> {
        Some(told(message, Lsm::Neither)?.cause)
    }

    #[test]
    fn reads_lines() {
        let found = line("2026/11/23 17:05:41 [error] 123#456: *5 connect() failed").unwrap();
        assert_eq!(
            (found.clock, found.level, found.pid, found.text),
            (1_795_453_541, "error", 123, "connect() failed")
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

    /// Every message that nginx has for a failed upstream, as facts/1.22.1 wrote it, with its cause.
    #[test]
    fn messages_have_causes() {
        let with = |message: &str| format!("{message}{REST}");
        for (message, expected) in [
            (
                "connect() failed (111: Connection refused) while connecting to upstream",
                Cause::ConnectRefusedNoListener,
            ),
            ("connect() failed (113: No route to host) while connecting to upstream", Cause::HostUnreachable),
            (
                "connect() failed (110: Connection timed out) while connecting to upstream",
                Cause::ConnectTimeoutNoAnswer,
            ),
            (
                "connect() to 127.0.0.1:3000 failed (99: Cannot assign requested address) while connecting to upstream",
                Cause::LocalPortExhausted,
            ),
            (
                "connect() to 127.0.0.1:3000 failed (1: Operation not permitted) while connecting to upstream",
                Cause::BlockedCgroupBpf,
            ),
            (
                "upstream timed out (110: Connection timed out) while connecting to upstream",
                Cause::ConnectTimeoutNoAnswer,
            ),
            (
                "upstream timed out (110: Connection timed out) while reading response header from upstream",
                Cause::ReadTimeout,
            ),
            (
                "upstream timed out (110: Connection timed out) while sending request to upstream",
                Cause::SendTimeout,
            ),
            (
                "upstream timed out (110: Connection timed out) while SSL handshaking to upstream",
                Cause::TlsHandshakeTimeout,
            ),
            (
                "upstream prematurely closed connection while reading response header from upstream",
                Cause::UpstreamClosedEarly,
            ),
            ("upstream prematurely closed connection while reading upstream", Cause::ResponseTruncated),
            (
                "recv() failed (104: Connection reset by peer) while reading response header from upstream",
                Cause::UpstreamReset,
            ),
            ("upstream sent too big header while reading response header from upstream", Cause::HeaderTooBig),
            (
                "upstream sent invalid header: \"a b\\x20...\" while reading response header from upstream",
                Cause::InvalidResponse,
            ),
            (
                "upstream sent unsupported FastCGI protocol version: 72 while reading response header from upstream",
                Cause::InvalidResponse,
            ),
            (
                "SSL_do_handshake() failed (SSL: error:0A00010B:SSL routines::wrong version number) while SSL handshaking to upstream",
                Cause::TlsToPlainPort,
            ),
            (
                "SSL_do_handshake() failed (SSL: error:0A000410:SSL routines::sslv3 alert handshake failure:SSL alert number 40) while SSL handshaking to upstream",
                Cause::TlsHandshakeFailed,
            ),
            (
                "upstream SSL certificate verify error: (18:self-signed certificate) while SSL handshaking to upstream",
                Cause::TlsCertificateRejected,
            ),
            (
                "upstream SSL certificate does not match \"x\" while SSL handshaking to upstream",
                Cause::TlsCertificateRejected,
            ),
            ("no live upstreams while connecting to upstream", Cause::NoLiveUpstreams),
            ("no resolver defined to resolve app.example.com", Cause::NoResolver),
            ("app.example.com could not be resolved (3: Host not found)", Cause::ResolverFailed),
            ("socket() failed (24: Too many open files) while connecting to upstream", Cause::FdLimit),
            ("accept4() failed (24: Too many open files)", Cause::FdLimit),
        ] {
            assert_eq!(cause(&with(message)), Some(expected), "{message}");
        }
        let unix = ", client: 1.2.3.4, server: s, request: \"GET / HTTP/1.1\", upstream: \"fastcgi://unix:/run/php.sock:\", host: \"h\"";
        for (errno, expected) in [
            (2, Cause::UnixMissing),
            (13, Cause::UnixPermission),
            (111, Cause::UnixNoListener),
            (11, Cause::UnixBacklogFull),
        ] {
            let text = format!(
                "connect() to unix:/run/php.sock failed ({errno}: x) while connecting to upstream{unix}"
            );
            let found = told(&text, Lsm::Selinux).unwrap();
            assert_eq!((found.cause, found.upstream.as_deref()), (expected, Some("unix:/run/php.sock")));
        }
        let denied = format!(
            "connect() to 127.0.0.1:3000 failed (13: Permission denied) while connecting to upstream{REST}"
        );
        assert_eq!(told(&denied, Lsm::Selinux).unwrap().cause, Cause::BlockedSelinux);
    }

    #[test]
    fn other_lines_are_of_no_upstream() {
        for text in [
            "open() \"/var/www/favicon.ico\" failed (2: No such file or directory), client: 1.2.3.4",
            "open() \"/var/www/connect() failed (111: x) while connecting to upstream\" failed (2: x), client: 1.2.3.4",
            "limiting requests, excess: 0.5 by zone \"one\", client: 1.2.3.4",
            "an upstream response is buffered to a temporary file /x while reading upstream, client: 1.2.3.4",
            "upstream server temporarily disabled while connecting to upstream, client: 1.2.3.4",
            "upstream sent more data than specified in \"Content-Length\" header while reading upstream, client: 1.2.3.4",
            "FastCGI sent in stderr: \"Primary script unknown\" while reading response header from upstream, client: 1.2.3.4",
            "client prematurely closed connection, client: 1.2.3.4",
            "SSL_do_handshake() failed (SSL: error:1) while SSL handshaking, client: 1.2.3.4",
            "recv() failed (104: Connection reset by peer) while sending to client, client: 1.2.3.4",
            "a b could not be resolved (x), client: 1.2.3.4",
            "signal process started",
        ] {
            assert_eq!(told(text, Lsm::Neither), None, "{text}");
        }
    }

    #[test]
    fn upstreams_are_addresses_or_nothing() {
        let of = |url: &str| upstream(&format!("x, client: y, upstream: \"{url}\", host: \"h\""));
        assert_eq!(of("http://127.0.0.1:3000/a?b").as_deref(), Some("127.0.0.1:3000"));
        assert_eq!(of("https://[2001:db8::1]:443/").as_deref(), Some("[2001:db8::1]:443"));
        assert_eq!(of("http://unix:/run/a.sock:/x").as_deref(), Some("unix:/run/a.sock"));
        assert_eq!(of("10.0.0.1:5432").as_deref(), Some("10.0.0.1:5432"));
        for bad in ["", "javascript://x", "http://", "http://a b/", "http://\u{1b}[2J/", "http://unix:rel:"] {
            assert_eq!(of(bad), None, "{bad}");
        }
    }

    #[test]
    fn no_bytes_make_it_panic() {
        let good = format!(
            "2026/11/23 17:05:41 [error] 1#1: *5 connect() to unix:/é failed (111: x) while connecting to upstream{REST}"
        );
        for end in 0..good.len() {
            if let Some(text) = good.get(..end).and_then(line) {
                let _ = told(text.text, Lsm::Neither);
            }
            if let Some(text) = good.get(end..) {
                let _ = (line(text), told(text, Lsm::Apparmor));
            }
        }
    }
}
