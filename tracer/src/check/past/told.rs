//! What the past's error lines mean to a check. One message can have several causes: the likeliest, and its rival.

use crate::{
    diagnose::Cause,
    errlog::{Address, Line, Meaning, fields, meaning},
    event::said::During,
};

/// What decides where one message has several meanings.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Lsm {
    /// SELinux is there.
    Selinux,
    /// AppArmor is.
    Apparmor,
    /// Neither.
    Neither,
}

/// What a line says of an upstream.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Told {
    /// The cause that fits best.
    pub(super) cause: Cause,
    /// What else it can have been.
    pub(super) rival: &'static str,
    /// The message without names and numbers of requests.
    pub(super) message: String,
    /// Where nginx had gone, if the line says so.
    pub(super) upstream: Option<String>,
}

/// What a line tells of an upstream; `None` where it is about something else.
pub(super) fn told(line: &Line<'_>, lsm: Lsm) -> Option<Told> {
    let fields = fields(line.text);
    let upstream = fields.address();
    let (cause, rival) = cause(meaning(fields.message, line.level)?, upstream.as_ref(), lsm)?;
    // Names that only one request had would make each line a message of its own.
    let message = match fields.message.split_once(" does not match \"") {
        Some((before, _)) => before.to_owned(),
        None => fields.message.split(": \"").next().unwrap_or(fields.message).to_owned(),
    };
    Some(Told { cause, rival, message, upstream: upstream.map(|address| address.to_string()) })
}

fn cause(meaning: Meaning, upstream: Option<&Address>, lsm: Lsm) -> Option<(Cause, &'static str)> {
    Some(match meaning {
        Meaning::Connect(errno) => return connect(errno, upstream, lsm),
        Meaning::Socket(24 | 23) => (Cause::FdLimit, "the host's own limit (fs.file-max)"),
        Meaning::Bind => (Cause::BindFailed, "no free local port at that address"),
        Meaning::ConnectTimeout => {
            (Cause::ConnectTimeoutNoAnswer, "a firewall rule that drops, or a full accept queue")
        }
        Meaning::TimedOut(During::Handshake) => {
            (Cause::TlsHandshakeTimeout, "a plain-text server that waits for more")
        }
        Meaning::TimedOut(During::Request) => (Cause::SendTimeout, "a network that loses packets"),
        Meaning::TimedOut(_) => (Cause::ReadTimeout, "an answer that was lost on its way"),
        Meaning::Ended(During::Header | During::Request) => (
            Cause::UpstreamClosedEarly,
            "a process that died, or a kept connection closed as it was used again",
        ),
        Meaning::Ended(_) => (Cause::ResponseTruncated, "a process that died in the middle of its answer"),
        Meaning::Broken(None | Some(104 | 32), During::Body) => {
            (Cause::ResponseTruncated, "a process that died in the middle of its answer")
        }
        Meaning::Broken(None | Some(104 | 32), _) => {
            (Cause::UpstreamReset, "a kept connection that was closed as it was used again")
        }
        Meaning::Broken(Some(110), _) => {
            (Cause::ReadTimeout, "packets that were lost until the kernel gave up")
        }
        Meaning::Broken(Some(113), _) => (Cause::HostUnreachable, "a firewall that answers with ICMP"),
        Meaning::TooBig => (Cause::HeaderTooBig, "a server of another protocol"),
        Meaning::Invalid => (Cause::InvalidResponse, "a server of another protocol on that port"),
        Meaning::Handshake { plain: true } => {
            (Cause::TlsToPlainPort, "a server that speaks no TLS version that nginx does")
        }
        Meaning::Handshake { plain: false } => (Cause::TlsHandshakeFailed, "a plain-text server that closed"),
        Meaning::Certificate => {
            (Cause::TlsCertificateRejected, "a proxy in between with a certificate of its own")
        }
        Meaning::NoLive => (Cause::NoLiveUpstreams, "servers at their max_conns"),
        Meaning::NoResolver => (Cause::NoResolver, "nothing: the message has this one meaning"),
        Meaning::Unresolved => (Cause::ResolverFailed, "a client that asked for a host that does not exist"),
        Meaning::Socket(_)
        | Meaning::Broken(..)
        | Meaning::ClientLeft
        | Meaning::Returned5xx
        | Meaning::Remark => return None,
    })
}

fn connect(errno: i32, upstream: Option<&Address>, lsm: Lsm) -> Option<(Cause, &'static str)> {
    let is_unix = matches!(upstream, Some(Address::Unix(_)));
    let is_local = match upstream {
        Some(Address::Ip(address)) => address.ip().is_loopback(),
        Some(Address::Name(name)) => name.starts_with("localhost"),
        _ => false,
    };
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
    use crate::errlog::Level;

    const REST: &str = ", client: 203.0.113.9, server: shop, request: \"GET / HTTP/1.1\", upstream: \"http://127.0.0.1:3000/\", host: \"shop\"";

    /// What a line with this text tells.
    fn of(text: &str, lsm: Lsm) -> Option<Told> {
        told(&Line { clock: 0, level: Level::Error, pid: 1, text }, lsm)
    }

    fn cause(message: &str) -> Option<Cause> {
        Some(of(message, Lsm::Neither)?.cause)
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
            let found = of(&text, Lsm::Selinux).unwrap();
            assert_eq!((found.cause, found.upstream.as_deref()), (expected, Some("unix:/run/php.sock")));
        }
        let denied = format!(
            "connect() to 127.0.0.1:3000 failed (13: Permission denied) while connecting to upstream{REST}"
        );
        assert_eq!(of(&denied, Lsm::Selinux).unwrap().cause, Cause::BlockedSelinux);
    }

    #[test]
    fn other_lines_are_of_no_upstream() {
        for text in [
            "open() \"/var/www/favicon.ico\" failed (2: No such file or directory), client: 1.2.3.4",
            "open() \"/var/www/connect() failed (111: x) while connecting to upstream\" failed (2: x), client: 1.2.3.4",
            "limiting requests, excess: 0.5 by zone \"one\", client: 1.2.3.4",
            "an upstream response is buffered to a temporary file /x while reading upstream, client: 1.2.3.4",
            "FastCGI sent in stderr: \"Primary script unknown\" while reading response header from upstream, client: 1.2.3.4",
            "client prematurely closed connection, client: 1.2.3.4",
            "SSL_do_handshake() failed (SSL: error:1) while SSL handshaking, client: 1.2.3.4",
            "recv() failed (104: Connection reset by peer) while sending to client, client: 1.2.3.4",
            "a b could not be resolved (x), client: 1.2.3.4",
            "signal process started",
        ] {
            assert_eq!(of(text, Lsm::Neither), None, "{text}");
        }
    }
}
