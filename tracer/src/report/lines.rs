//! Which directives belong to a cause, and are shown with it.

use crate::{diagnose::Cause, event::Stage};

/// Names, behind the module's prefix or in an `upstream`, of the directives that are shown with a cause whose connection
/// stood; those that a module does not have are passed over.
pub(super) fn directives(cause: Cause, stage: Stage) -> &'static [&'static str] {
    if stage != Stage::Established {
        return &[];
    }
    match cause {
        Cause::HeaderTooBig => &["buffer_size"],
        Cause::ReadTimeout => &["read_timeout", "timeout"],
        Cause::SendTimeout => &["send_timeout", "timeout"],
        Cause::KeepaliveRace => &["keepalive", "keepalive_timeout"],
        Cause::TlsToPlainPort => &["ssl"],
        Cause::PlainToTlsPort => &["ssl"],
        Cause::TlsHandshakeFailed => {
            &["ssl_protocols", "ssl_ciphers", "ssl_server_name", "ssl_name", "ssl_certificate"]
        }
        Cause::TlsHandshakeTimeout => &["connect_timeout"],
        Cause::TlsCertificateRejected => {
            &["ssl_verify", "ssl_trusted_certificate", "ssl_verify_depth", "ssl_name"]
        }
        Cause::UpstreamReturned5xx => &["next_upstream"],
        Cause::ConnectRefusedNoListener
        | Cause::ConnectRefusedByPeer
        | Cause::ConnectRefusedByFirewall
        | Cause::ConnectTimeoutFirewallDrop
        | Cause::ConnectTimeoutNoAnswer
        | Cause::ConnectTimeoutBacklogFull
        | Cause::ConnectTimeoutConntrackFull
        | Cause::HostUnreachable
        | Cause::NetworkUnreachable
        | Cause::LocalPortExhausted
        | Cause::BindFailed
        | Cause::FdLimit
        | Cause::BlockedSelinux
        | Cause::BlockedApparmor
        | Cause::BlockedBpfLsm
        | Cause::BlockedCgroupBpf
        | Cause::BlockedSeccomp
        | Cause::BlockedLandlock
        | Cause::UnixMissing
        | Cause::UnixPermission
        | Cause::UnixNoListener
        | Cause::UnixBacklogFull
        | Cause::UnixNotASocket
        | Cause::ResolverFailed
        | Cause::NoResolver
        | Cause::UpstreamClosedEarly
        | Cause::UpstreamReset
        | Cause::UpstreamDied
        | Cause::InvalidResponse
        | Cause::ResponseTruncated
        | Cause::NoLiveUpstreams
        | Cause::ClientAborted
        | Cause::Unexplained => &[],
    }
}

/// Whether the bytes of the exchange make a cause clearer.
pub(super) fn shows_bytes(cause: Cause) -> bool {
    matches!(
        cause,
        Cause::HeaderTooBig
            | Cause::InvalidResponse
            | Cause::ResponseTruncated
            | Cause::TlsToPlainPort
            | Cause::PlainToTlsPort
            | Cause::TlsHandshakeFailed
            | Cause::UpstreamReturned5xx
            | Cause::Unexplained
    )
}
