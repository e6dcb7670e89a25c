//! Which causes each of nginx's texts allows, and of which incidents nginx writes nothing.

use super::Told;
use crate::{
    diagnose::Cause,
    errlog::{Level, Meaning},
    event::said::During,
};

/// Why nginx has no line for an incident.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Excuse {
    /// The level of the logs hides it.
    Level,
    /// The server's own 5xx is passed on and no error.
    Returned5xx,
    /// nginx does not look whether a FastCGI response ends as the protocol demands.
    FastCgiEnd,
}

impl Excuse {
    /// A name for counts.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Level => "level",
            Self::Returned5xx => "own-5xx",
            Self::FastCgiEnd => "fastcgi-end",
        }
    }

    /// In words.
    #[must_use]
    pub fn words(self) -> &'static str {
        match self {
            Self::Level => "the level of the logs hides it (clients that leave are logged at info)",
            Self::Returned5xx => "the server's own 5xx, of which nginx writes no error",
            Self::FastCgiEnd => "a FastCGI response that was cut off, which nginx does not notice",
        }
    }
}

/// Why nginx has no line for an incident, if there is a reason; `access` is true if servers' own 5xx are among the lines.
pub(super) fn excuse(told: &Told, level: Option<Level>, access: bool) -> Option<Excuse> {
    let logged_at = if told.cause == Cause::ClientAborted { Level::Info } else { Level::Error };
    // Nothing below `warn` was seen where nothing at all was.
    if level.unwrap_or(Level::Warn) > logged_at {
        return Some(Excuse::Level);
    }
    match told.cause {
        Cause::UpstreamReturned5xx if !access => Some(Excuse::Returned5xx),
        Cause::ResponseTruncated if told.fastcgi => Some(Excuse::FastCgiEnd),
        _ => None,
    }
}

const BLOCKED: &[Cause] = &[
    Cause::BlockedSelinux,
    Cause::BlockedApparmor,
    Cause::BlockedBpfLsm,
    Cause::BlockedCgroupBpf,
    Cause::BlockedSeccomp,
    Cause::BlockedLandlock,
];
/// A filter of a cgroup drops packets as a firewall does.
const TIMEOUTS: &[Cause] = &[
    Cause::ConnectTimeoutFirewallDrop,
    Cause::ConnectTimeoutNoAnswer,
    Cause::ConnectTimeoutBacklogFull,
    Cause::ConnectTimeoutConntrackFull,
    Cause::BlockedCgroupBpf,
];
const ENDED: &[Cause] =
    &[Cause::UpstreamClosedEarly, Cause::UpstreamDied, Cause::KeepaliveRace, Cause::PlainToTlsPort];
const RESET: &[Cause] = &[
    Cause::UpstreamReset,
    Cause::UpstreamDied,
    Cause::KeepaliveRace,
    Cause::UpstreamClosedEarly,
    Cause::PlainToTlsPort,
];
const CUT: &[Cause] = &[Cause::ResponseTruncated, Cause::UpstreamDied];

/// Whether an incident with this cause says what the line says.
pub(super) fn fits(meaning: Meaning, tls: bool, cause: Cause) -> bool {
    let any = |causes: &[Cause]| causes.contains(&cause);
    match meaning {
        Meaning::Connect(errno) => connect(errno, cause),
        // A filter's own errno is whatever it was told.
        Meaning::Socket(24 | 23) => any(&[Cause::FdLimit, Cause::BlockedSeccomp]),
        Meaning::Socket(_) => any(BLOCKED),
        Meaning::Bind => any(&[Cause::BindFailed, Cause::LocalPortExhausted]) || any(BLOCKED),
        Meaning::ConnectTimeout => any(TIMEOUTS),
        Meaning::TimedOut(During::Handshake) => any(&[Cause::TlsHandshakeTimeout]),
        Meaning::TimedOut(During::Request) => any(&[Cause::SendTimeout]),
        Meaning::TimedOut(During::Header) => any(&[Cause::ReadTimeout]),
        // Behind what is no response nginx waits for more.
        Meaning::TimedOut(During::Body) => any(&[Cause::ReadTimeout, Cause::InvalidResponse]),
        Meaning::TimedOut(During::Unknown) => any(&[Cause::ReadTimeout, Cause::SendTimeout]),
        // In TLS nginx says the same of a RST (ngx_ssl_handle_recv asks OpenSSL's own errors alone).
        Meaning::Ended(_) if tls && cause == Cause::UpstreamReset => true,
        Meaning::Ended(During::Body) => any(CUT),
        Meaning::Ended(During::Handshake | During::Request | During::Header) => any(ENDED),
        Meaning::Ended(During::Unknown) => any(ENDED) || any(CUT),
        Meaning::Broken(Some(110), _) => any(&[Cause::ReadTimeout, Cause::SendTimeout]),
        Meaning::Broken(Some(101 | 113), _) => {
            any(&[Cause::HostUnreachable, Cause::NetworkUnreachable, Cause::ConnectRefusedByFirewall])
        }
        Meaning::Broken(_, During::Body) => any(CUT) || cause == Cause::UpstreamReset,
        // The last word of TLS 1.3's handshake may come with the first read.
        Meaning::Broken(None, During::Header | During::Request) if cause == Cause::TlsHandshakeFailed => true,
        Meaning::Broken(_, During::Handshake | During::Request | During::Header) => any(RESET),
        Meaning::Broken(_, During::Unknown) => any(RESET) || any(CUT),
        Meaning::TooBig => any(&[Cause::HeaderTooBig]),
        Meaning::Invalid => any(&[Cause::InvalidResponse]),
        Meaning::Handshake { .. } => any(&[
            Cause::TlsToPlainPort,
            Cause::TlsHandshakeFailed,
            Cause::TlsCertificateRejected,
            Cause::UpstreamClosedEarly,
            Cause::UpstreamReset,
            Cause::UpstreamDied,
        ]),
        Meaning::Certificate => any(&[Cause::TlsCertificateRejected]),
        Meaning::NoLive => any(&[Cause::NoLiveUpstreams]),
        Meaning::NoResolver => any(&[Cause::NoResolver]),
        Meaning::Unresolved => any(&[Cause::ResolverFailed]),
        Meaning::ClientLeft => any(&[Cause::ClientAborted]),
        Meaning::Returned5xx => any(&[Cause::UpstreamReturned5xx]),
        Meaning::Remark => any(&[
            Cause::InvalidResponse,
            Cause::PlainToTlsPort,
            Cause::ClientAborted,
            Cause::ResponseTruncated,
        ]),
    }
}

/// The same of `connect() failed` with this errno.
fn connect(errno: i32, cause: Cause) -> bool {
    let any = |causes: &[Cause]| causes.contains(&cause);
    // LSMs written in BPF, and programs of a cgroup, choose their errno.
    let chosen = any(&[Cause::BlockedBpfLsm, Cause::BlockedCgroupBpf, Cause::BlockedSeccomp]);
    chosen
        || match errno {
            libc::ECONNREFUSED => any(&[
                Cause::ConnectRefusedNoListener,
                Cause::ConnectRefusedByPeer,
                Cause::ConnectRefusedByFirewall,
                Cause::UnixNoListener,
                Cause::UnixNotASocket,
            ]),
            libc::ETIMEDOUT => any(TIMEOUTS),
            libc::EACCES | libc::EPERM => {
                any(BLOCKED)
                    || any(&[
                        Cause::UnixPermission,
                        Cause::NetworkUnreachable,
                        Cause::ConnectRefusedByFirewall,
                    ])
            }
            libc::EHOSTUNREACH | libc::ENETUNREACH | libc::EHOSTDOWN | libc::ENETDOWN => {
                any(&[Cause::HostUnreachable, Cause::NetworkUnreachable, Cause::ConnectRefusedByFirewall])
            }
            libc::EINVAL => any(&[Cause::NetworkUnreachable]),
            libc::EADDRNOTAVAIL => {
                any(&[Cause::LocalPortExhausted, Cause::BindFailed, Cause::NetworkUnreachable])
            }
            libc::EAGAIN => any(&[Cause::UnixBacklogFull, Cause::LocalPortExhausted]),
            libc::ENOENT | libc::ENOTDIR | libc::ELOOP | libc::ENAMETOOLONG => any(&[Cause::UnixMissing]),
            libc::ENOTSOCK | libc::EPROTOTYPE => any(&[Cause::UnixNotASocket]),
            libc::EMFILE | libc::ENFILE => any(&[Cause::FdLimit]),
            // Made, and reset before nginx looked.
            libc::ECONNRESET => any(RESET) || cause == Cause::ConnectRefusedByPeer,
            libc::ENOPROTOOPT => any(&[Cause::ConnectRefusedByFirewall]),
            _ => false,
        }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Every text allows something, and none allows everything.
    #[test]
    fn texts_allow_some_causes() {
        let during = [During::Handshake, During::Request, During::Header, During::Body, During::Unknown];
        let mut all = vec![
            Meaning::Socket(24),
            Meaning::Socket(1),
            Meaning::Bind,
            Meaning::ConnectTimeout,
            Meaning::TooBig,
            Meaning::Invalid,
            Meaning::Handshake { plain: true },
            Meaning::Certificate,
            Meaning::NoLive,
            Meaning::NoResolver,
            Meaning::Unresolved,
            Meaning::ClientLeft,
            Meaning::Returned5xx,
            Meaning::Remark,
        ];
        all.extend(
            [111, 110, 13, 1, 113, 101, 22, 99, 11, 2, 88, 91, 24, 104, 92, 7777].map(Meaning::Connect),
        );
        for one in during {
            all.extend([Meaning::TimedOut(one), Meaning::Ended(one), Meaning::Broken(None, one)]);
            all.extend([104, 110, 113].map(|errno| Meaning::Broken(Some(errno), one)));
        }
        for meaning in all {
            let count = Cause::ALL.iter().filter(|cause| fits(meaning, false, **cause)).count();
            assert!((1..=12).contains(&count), "{meaning:?}: {count}");
            assert!(!fits(meaning, true, Cause::Unexplained), "{meaning:?}");
        }
        // Every cause that nginx writes of is allowed by some text.
        for cause in Cause::ALL.iter().filter(|cause| **cause != Cause::Unexplained) {
            let connect = (0..200).map(Meaning::Connect).any(|meaning| fits(meaning, false, *cause));
            let ended = during.into_iter().any(|one| {
                [Meaning::TimedOut(one), Meaning::Ended(one), Meaning::Broken(Some(104), one)]
                    .iter()
                    .any(|meaning| fits(*meaning, false, *cause))
            });
            let rest = [
                Meaning::Bind,
                Meaning::Socket(1),
                Meaning::Socket(24),
                Meaning::TooBig,
                Meaning::Invalid,
                Meaning::Handshake { plain: false },
                Meaning::Certificate,
                Meaning::NoLive,
                Meaning::NoResolver,
                Meaning::Unresolved,
                Meaning::ClientLeft,
                Meaning::Returned5xx,
                Meaning::ConnectTimeout,
            ];
            assert!(connect || ended || rest.iter().any(|m| fits(*m, false, *cause)), "{cause}");
        }
    }

    #[test]
    fn tls_hides_a_reset() {
        for during in [During::Header, During::Body] {
            assert!(fits(Meaning::Ended(during), true, Cause::UpstreamReset));
            assert!(!fits(Meaning::Ended(during), false, Cause::UpstreamReset));
        }
        assert!(fits(Meaning::Broken(None, During::Header), true, Cause::TlsHandshakeFailed));
        assert!(!fits(Meaning::Broken(Some(104), During::Header), false, Cause::TlsHandshakeFailed));
    }

    #[test]
    fn errnos_of_connect() {
        for (errno, cause, expected) in [
            (111, Cause::ConnectRefusedByPeer, true),
            (111, Cause::ConnectTimeoutNoAnswer, false),
            (110, Cause::ConnectTimeoutNoAnswer, true),
            (2, Cause::UnixMissing, true),
            (2, Cause::UnixPermission, false),
            (13, Cause::BlockedSelinux, true),
            (13, Cause::ConnectRefusedNoListener, false),
            (5, Cause::BlockedSeccomp, true),
            (5, Cause::UnixMissing, false),
        ] {
            assert_eq!(connect(errno, cause), expected, "{errno} {cause}");
        }
    }
}
