//! The rules, one cause family a file.

use super::{Cause, Rule};

mod bind;
pub(super) mod blocked;
mod bytes;
mod client;
mod closed;
mod died;
mod fds;
mod firewall;
mod foreign;
mod handshake;
mod host;
mod invalid;
mod late;
mod listener;
mod network;
mod no_answer;
mod no_live;
mod peer;
mod plain;
mod ports;
mod queue;
mod race;
mod resolver;
mod returned;
mod selinux;
mod standing;
mod table;
mod too_big;
mod truncated;
pub(super) mod unexplained;
mod unix;

/// Every rule. The order decides only among equally sure verdicts.
pub const RULES: &[Rule] = &[
    Rule { causes: &[Cause::FdLimit], check: fds::check },
    Rule { causes: &[Cause::BindFailed, Cause::LocalPortExhausted], check: bind::check },
    Rule { causes: &[Cause::LocalPortExhausted], check: ports::check },
    Rule { causes: &[Cause::BlockedSelinux], check: selinux::check },
    Rule { causes: &[Cause::NetworkUnreachable], check: network::check },
    Rule {
        causes: &[
            Cause::BlockedApparmor,
            Cause::BlockedBpfLsm,
            Cause::BlockedCgroupBpf,
            Cause::BlockedSeccomp,
            Cause::BlockedLandlock,
        ],
        check: blocked::check,
    },
    Rule { causes: &[Cause::HostUnreachable], check: host::check },
    Rule { causes: &[Cause::ConnectRefusedByFirewall], check: firewall::refused },
    Rule { causes: &[Cause::ConnectRefusedNoListener], check: listener::check },
    Rule { causes: &[Cause::ConnectRefusedByPeer], check: peer::check },
    Rule { causes: &[Cause::ConnectTimeoutConntrackFull], check: table::check },
    Rule { causes: &[Cause::ConnectTimeoutFirewallDrop, Cause::BlockedCgroupBpf], check: firewall::dropped },
    Rule { causes: &[Cause::ConnectTimeoutBacklogFull], check: queue::check },
    Rule { causes: &[Cause::ClientAborted], check: client::check },
    Rule { causes: &[Cause::ConnectTimeoutNoAnswer], check: no_answer::check },
    Rule { causes: &[Cause::UnixMissing], check: unix::missing },
    Rule { causes: &[Cause::UnixPermission], check: unix::permission },
    Rule { causes: &[Cause::UnixNoListener], check: unix::no_listener },
    Rule { causes: &[Cause::UnixNotASocket], check: unix::not_a_socket },
    Rule { causes: &[Cause::UnixBacklogFull], check: unix::backlog },
    Rule { causes: &[Cause::NoLiveUpstreams], check: no_live::check },
    Rule { causes: &[Cause::NoResolver], check: resolver::none },
    Rule { causes: &[Cause::ResolverFailed], check: resolver::failed },
    Rule { causes: &[Cause::UpstreamReturned5xx], check: returned::check },
    Rule { causes: &[Cause::TlsToPlainPort], check: plain::tls_to_plain },
    Rule { causes: &[Cause::PlainToTlsPort], check: plain::plain_to_tls },
    Rule { causes: &[Cause::TlsHandshakeFailed], check: handshake::failed },
    Rule { causes: &[Cause::TlsHandshakeTimeout], check: handshake::timeout },
    Rule { causes: &[Cause::TlsCertificateRejected], check: handshake::certificate },
    Rule { causes: &[Cause::InvalidResponse], check: invalid::check },
    Rule { causes: &[Cause::HeaderTooBig], check: too_big::check },
    Rule { causes: &[Cause::ResponseTruncated], check: truncated::check },
    Rule { causes: &[Cause::UpstreamDied], check: died::check },
    Rule { causes: &[Cause::KeepaliveRace], check: race::check },
    Rule { causes: &[Cause::ReadTimeout, Cause::SendTimeout], check: late::check },
    Rule { causes: &[Cause::ClientAborted], check: late::client },
    Rule { causes: &[Cause::UpstreamClosedEarly], check: closed::early },
    Rule { causes: &[Cause::UpstreamReset], check: closed::reset },
];

/// Causes that the bytes of an exchange prove.
pub(super) fn is_told_by_bytes(cause: Cause) -> bool {
    matches!(
        cause,
        Cause::HeaderTooBig
            | Cause::InvalidResponse
            | Cause::ResponseTruncated
            | Cause::TlsToPlainPort
            | Cause::PlainToTlsPort
            | Cause::TlsHandshakeFailed
    )
}

/// Causes that only say by whose hand a connection ended.
pub(super) fn is_manner_of_ending(cause: Cause) -> bool {
    matches!(cause, Cause::UpstreamClosedEarly | Cause::UpstreamReset)
}
