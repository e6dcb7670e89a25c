//! The page of each cause: what it means, how it is proven, what looks like it, fixes, wrong advice.
//!
//! Markdown of a small kind, so that the same text serves `why502 explain` and the web: `## ` headings, paragraphs of
//! one line, items that begin with `- ` or a number, and `code`.

use super::Cause;

/// The headings of every page, in their order.
pub const SECTIONS: [&str; 5] =
    ["What it means", "How it is proven", "What looks like it", "Fixes", "Wrong advice"];

/// The page of a cause; None if this version does not tell it yet.
#[must_use]
pub fn page(cause: Cause) -> Option<&'static str> {
    Some(match cause {
        Cause::ConnectRefusedNoListener => include_str!("pages/connect-refused-no-listener.md"),
        Cause::ConnectRefusedByPeer => include_str!("pages/connect-refused-by-peer.md"),
        Cause::ConnectRefusedByFirewall => include_str!("pages/connect-refused-by-firewall.md"),
        Cause::ConnectTimeoutFirewallDrop => include_str!("pages/connect-timeout-firewall-drop.md"),
        Cause::ConnectTimeoutNoAnswer => include_str!("pages/connect-timeout-no-answer.md"),
        Cause::ConnectTimeoutBacklogFull => include_str!("pages/connect-timeout-backlog-full.md"),
        Cause::ConnectTimeoutConntrackFull => include_str!("pages/connect-timeout-conntrack-full.md"),
        Cause::HostUnreachable => include_str!("pages/host-unreachable.md"),
        Cause::NetworkUnreachable => include_str!("pages/network-unreachable.md"),
        Cause::LocalPortExhausted => include_str!("pages/local-port-exhausted.md"),
        Cause::BindFailed => include_str!("pages/bind-failed.md"),
        Cause::FdLimit => include_str!("pages/fd-limit.md"),
        Cause::BlockedSelinux => include_str!("pages/blocked-selinux.md"),
        Cause::BlockedApparmor => include_str!("pages/blocked-apparmor.md"),
        Cause::BlockedBpfLsm => include_str!("pages/blocked-bpf-lsm.md"),
        Cause::BlockedCgroupBpf => include_str!("pages/blocked-cgroup-bpf.md"),
        Cause::BlockedLandlock => include_str!("pages/blocked-landlock.md"),
        Cause::BlockedSeccomp => include_str!("pages/blocked-seccomp.md"),
        Cause::UnixMissing => include_str!("pages/unix-missing.md"),
        Cause::UnixPermission => include_str!("pages/unix-permission.md"),
        Cause::UnixNoListener => include_str!("pages/unix-no-listener.md"),
        Cause::UnixBacklogFull => include_str!("pages/unix-backlog-full.md"),
        Cause::UnixNotASocket => include_str!("pages/unix-not-a-socket.md"),
        Cause::ResolverFailed => include_str!("pages/resolver-failed.md"),
        Cause::NoResolver => include_str!("pages/no-resolver.md"),
        Cause::NoLiveUpstreams => include_str!("pages/no-live-upstreams.md"),
        Cause::UpstreamClosedEarly => include_str!("pages/upstream-closed-early.md"),
        Cause::UpstreamReset => include_str!("pages/upstream-reset.md"),
        Cause::UpstreamDied => include_str!("pages/upstream-died.md"),
        Cause::KeepaliveRace => include_str!("pages/keepalive-race.md"),
        Cause::ReadTimeout => include_str!("pages/read-timeout.md"),
        Cause::SendTimeout => include_str!("pages/send-timeout.md"),
        Cause::ClientAborted => include_str!("pages/client-aborted.md"),
        Cause::Unexplained => include_str!("pages/unexplained.md"),
        Cause::HeaderTooBig => include_str!("pages/header-too-big.md"),
        Cause::InvalidResponse => include_str!("pages/invalid-response.md"),
        Cause::ResponseTruncated => include_str!("pages/response-truncated.md"),
        Cause::TlsToPlainPort => include_str!("pages/tls-to-plain-port.md"),
        Cause::PlainToTlsPort => include_str!("pages/plain-to-tls-port.md"),
        Cause::TlsHandshakeFailed => include_str!("pages/tls-handshake-failed.md"),
        Cause::TlsHandshakeTimeout => include_str!("pages/tls-handshake-timeout.md"),
        Cause::TlsCertificateRejected => include_str!("pages/tls-certificate-rejected.md"),
        Cause::UpstreamReturned5xx => include_str!("pages/upstream-returned-5xx.md"),
    })
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;
    use crate::diagnose::RULES;

    fn told() -> BTreeSet<Cause> {
        RULES.iter().flat_map(|rule| rule.causes.iter().copied()).chain([Cause::Unexplained]).collect()
    }

    #[test]
    fn whatever_a_rule_can_name_has_a_page() {
        for cause in told() {
            assert!(page(cause).is_some(), "{cause} has no page");
        }
    }

    #[test]
    fn pages_have_all_sections_each_with_text() {
        for (cause, text) in Cause::ALL.iter().filter_map(|cause| Some((cause, page(*cause)?))) {
            let parts: Vec<(&str, &str)> =
                text.split("## ").skip(1).filter_map(|part| part.split_once('\n')).collect();
            let heads: Vec<&str> = parts.iter().map(|(head, _)| *head).collect();
            assert_eq!(heads, SECTIONS, "{cause}");
            for (head, body) in parts {
                assert!(body.trim().len() > 20, "{cause}: {head} says nothing");
            }
            assert!(text.lines().any(|line| line.starts_with("1. ")), "{cause} has no first fix");
        }
    }

    /// A name in backticks that is built like a cause's must be one: a renamed cause must not live on in a page.
    #[test]
    fn pages_name_only_causes_that_exist() {
        const FAMILIES: [&str; 6] = ["connect-", "blocked-", "unix-", "tls-", "upstream-", "no-"];
        for (cause, text) in Cause::ALL.iter().filter_map(|cause| Some((cause, page(*cause)?))) {
            for word in text.split('`').skip(1).step_by(2) {
                let like = FAMILIES.iter().any(|family| word.starts_with(family));
                let plain = word.chars().all(|c| c.is_ascii_lowercase() || c == '-');
                assert!(!(like && plain) || word.parse::<Cause>().is_ok(), "{cause} mentions {word}");
            }
        }
    }

    /// Advice that this program exists to replace stands only where it is called wrong.
    #[test]
    fn wide_advice_is_never_a_fix() {
        for (cause, text) in Cause::ALL.iter().filter_map(|cause| Some((cause, page(*cause)?))) {
            let right = text.split("## Wrong advice").next().unwrap_or_default();
            for wide in ["setenforce 0", "chmod 777", "chmod 666", "aa-complain", "aa-disable", "8.8.8.8"] {
                assert!(!right.contains(wide), "{cause} advises {wide}");
            }
        }
    }
}
