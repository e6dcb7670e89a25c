//! The causes: stable names, part of the interface.

use std::{fmt, str::FromStr};

macro_rules! causes {
    ($($variant:ident = $name:literal, $meaning:literal;)+) => {
        /// Why an attempt failed.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
        pub enum Cause {
            $(#[doc = $meaning] $variant,)+
        }

        impl Cause {
            /// Every cause.
            pub const ALL: &[Cause] = &[$(Cause::$variant,)+];

            /// Name in the JSON, on the command line and in the documentation.
            #[must_use]
            pub fn name(self) -> &'static str {
                match self {
                    $(Cause::$variant => $name,)+
                }
            }

            /// One line that says what it means.
            #[must_use]
            pub fn meaning(self) -> &'static str {
                match self {
                    $(Cause::$variant => $meaning,)+
                }
            }
        }
    };
}

causes! {
    ConnectRefusedNoListener = "connect-refused-no-listener", "nothing listens on the upstream's local address and port";
    ConnectRefusedByPeer = "connect-refused-by-peer", "the upstream host answered the SYN with a RST";
    ConnectRefusedByFirewall = "connect-refused-by-firewall", "a firewall rejected the connection";
    ConnectTimeoutFirewallDrop = "connect-timeout-firewall-drop", "a rule of this machine dropped the handshake";
    ConnectTimeoutNoAnswer = "connect-timeout-no-answer", "nothing was dropped here and no answer came";
    ConnectTimeoutBacklogFull = "connect-timeout-backlog-full", "the local backend's accept queue was full";
    ConnectTimeoutConntrackFull = "connect-timeout-conntrack-full", "the connection tracking table was full";
    HostUnreachable = "host-unreachable", "the upstream host cannot be reached on the last hop";
    NetworkUnreachable = "network-unreachable", "there is no route to the upstream, or one that forbids it";
    LocalPortExhausted = "local-port-exhausted", "no free local port is left for this destination";
    BindFailed = "bind-failed", "the local address of proxy_bind cannot be used";
    FdLimit = "fd-limit", "no file descriptor is left";
    BlockedSelinux = "blocked-selinux", "SELinux denied it";
    BlockedApparmor = "blocked-apparmor", "AppArmor denied it";
    BlockedBpfLsm = "blocked-bpf-lsm", "a BPF LSM program denied it";
    BlockedCgroupBpf = "blocked-cgroup-bpf", "a cgroup BPF program denied it";
    BlockedSeccomp = "blocked-seccomp", "a seccomp filter denied it";
    BlockedLandlock = "blocked-landlock", "a Landlock ruleset denied it";
    UnixMissing = "unix-missing", "the unix socket's path does not exist";
    UnixPermission = "unix-permission", "file permissions refuse the unix socket";
    UnixNoListener = "unix-no-listener", "nobody listens on the unix socket";
    UnixBacklogFull = "unix-backlog-full", "the unix socket's accept queue is full";
    UnixNotASocket = "unix-not-a-socket", "the path is no socket, or of another type";
    ResolverFailed = "resolver-failed", "the upstream's name could not be resolved";
    NoResolver = "no-resolver", "a variable upstream name needs a resolver and there is none";
    UpstreamClosedEarly = "upstream-closed-early", "the upstream closed the connection before a full header";
    UpstreamReset = "upstream-reset", "the upstream reset the connection";
    UpstreamDied = "upstream-died", "the upstream's process ended";
    KeepaliveRace = "keepalive-race", "the upstream closed an idle connection as nginx reused it";
    ReadTimeout = "read-timeout", "the upstream did not answer in time";
    SendTimeout = "send-timeout", "the request could not be sent in time";
    HeaderTooBig = "header-too-big", "the reply's header does not fit the buffer";
    InvalidResponse = "invalid-response", "the reply is not what the protocol demands";
    ResponseTruncated = "response-truncated", "the reply ended early";
    TlsToPlainPort = "tls-to-plain-port", "TLS was spoken to a plain-text port";
    PlainToTlsPort = "plain-to-tls-port", "plain text was spoken to a TLS port";
    TlsHandshakeFailed = "tls-handshake-failed", "the TLS handshake failed";
    TlsHandshakeTimeout = "tls-handshake-timeout", "the TLS handshake did not end in time";
    TlsCertificateRejected = "tls-certificate-rejected", "the upstream's certificate was rejected";
    NoLiveUpstreams = "no-live-upstreams", "every upstream server was out of service";
    UpstreamReturned5xx = "upstream-returned-5xx", "the upstream itself answered with an error";
    ClientAborted = "client-aborted", "the client left before the upstream answered";
    Unexplained = "unexplained", "the evidence does not single out a cause";
}

impl fmt::Display for Cause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl serde::Serialize for Cause {
    fn serialize<S: serde::Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        to.serialize_str(self.name())
    }
}

impl<'de> serde::Deserialize<'de> for Cause {
    fn deserialize<D: serde::Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        String::deserialize(from)?.parse().map_err(serde::de::Error::custom)
    }
}

impl FromStr for Cause {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        Cause::ALL.iter().copied().find(|c| c.name() == text).ok_or_else(|| {
            let near: Vec<&str> = Cause::ALL
                .iter()
                .map(|c| c.name())
                .filter(|n| n.contains(text) || related(n, text))
                .collect();
            if near.is_empty() {
                let all: Vec<&str> = Cause::ALL.iter().map(|c| c.name()).collect();
                format!("there is no cause {text}; there are {}", all.join(", "))
            } else {
                format!("there is no cause {text}; did you mean {}?", near.join(", "))
            }
        })
    }
}

/// True if the two share a word.
fn related(name: &str, text: &str) -> bool {
    text.split('-').any(|word| word.len() > 3 && name.split('-').any(|n| n == word))
}
