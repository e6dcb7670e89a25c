//! The request that an incident names, against that of its line.

use std::collections::BTreeSet;

use super::{Told, Written};

/// How the two compare.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Same {
    /// All that both name is equal, the target among it.
    Equal,
    /// One of them names no target.
    Unknown,
    /// The clients alone differ, and no line names the incident's: nginx takes them from a header (real_ip) or from the
    /// PROXY protocol.
    Behind,
    /// Another target.
    Target,
    /// Another method.
    Method,
    /// Another host.
    Host,
    /// Another client.
    Client,
}

impl Same {
    /// All there are.
    pub const ALL: [Self; 7] =
        [Self::Equal, Self::Unknown, Self::Behind, Self::Target, Self::Method, Self::Host, Self::Client];

    /// A name for counts.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Equal => "equal",
            Self::Unknown => "unknown",
            Self::Behind => "client-behind-a-proxy",
            Self::Target => "other-target",
            Self::Method => "other-method",
            Self::Host => "other-host",
            Self::Client => "other-client",
        }
    }

    /// True if the incident names a request that is not its own.
    #[must_use]
    pub fn is_other(self) -> bool {
        match self {
            Self::Equal | Self::Unknown | Self::Behind => false,
            Self::Target | Self::Method | Self::Host | Self::Client => true,
        }
    }
}

/// Whether both name the same target, as far as they are whole; `None` if one of them names none.
pub(super) fn target(told: &Told, line: &Written) -> Option<bool> {
    let (a, b) = (told.target.as_deref()?, line.target.as_deref()?);
    Some(match (told.truncated, line.cut) {
        (false, false) => a == b,
        (true, false) => b.starts_with(a),
        (false, true) => a.starts_with(b),
        (true, true) => a.starts_with(b) || b.starts_with(a),
    })
}

/// Compares them; `clients` are all that the logs name.
pub(super) fn compare(told: &Told, line: &Written, clients: &BTreeSet<&str>) -> Same {
    let differ = |a: &Option<String>, b: &Option<String>| match (a, b) {
        (Some(a), Some(b)) => a != b,
        _ => false,
    };
    let target = target(told, line);
    if target == Some(false) {
        return Same::Target;
    }
    if differ(&told.method, &line.method) {
        return Same::Method;
    }
    // The host of an absolute target counts, and the header, which may be another, is in the log.
    let absolute = told.target.as_deref().is_some_and(|target| !target.starts_with('/'));
    if !absolute && differ(&told.host, &line.host) {
        return Same::Host;
    }
    if differ(&told.client, &line.client) {
        let known = told.client.as_deref().is_some_and(|client| clients.contains(client));
        return if known { Same::Client } else { Same::Behind };
    }
    if target.is_some() { Same::Equal } else { Same::Unknown }
}
