//! The registry of kernel hooks: what each tells, how each tier attaches it, what is lost without it.
//!
//! A hook that only a security issue needs has its row here as well, so that `doctor` and the record agree
//! on what a tier can prove.

pub mod ask;
pub mod denials;
pub mod layout;
pub mod load;
pub mod uprobes;

use std::fmt;

/// The set of hooks that the running kernel allows; evidence, not verdicts, differs between them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, serde::Serialize, serde::Deserialize)]
pub enum Tier {
    /// Tracepoints and raw tracepoints only.
    Tracepoint,
    /// The same and kprobes.
    Kprobe,
    /// The same and fentry/fexit (BTF trampolines).
    Full,
}

impl Tier {
    /// Name as in `--tier` and the JSON.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Tier::Tracepoint => "tracepoint",
            Tier::Kprobe => "kprobe",
            Tier::Full => "full",
        }
    }
}

impl fmt::Display for Tier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// How a program is attached.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Attach {
    /// Raw tracepoint.
    RawTracepoint(&'static str),
    /// Tracepoint of a category: goes through perf_event_open and tracefs.
    Tracepoint(&'static str, &'static str),
    /// Entry of a kernel function, BTF trampoline.
    FEntry(&'static str),
    /// Return of a kernel function, BTF trampoline.
    FExit(&'static str),
    /// Entry of a kernel function, kprobe.
    KProbe(&'static str),
    /// Return of a kernel function, kretprobe.
    KRetProbe(&'static str),
}

impl Attach {
    /// Attach point as users know it, such as `fexit:__sys_connect`.
    #[must_use]
    pub fn label(self) -> String {
        match self {
            Attach::RawTracepoint(name) => format!("raw_tp:{name}"),
            Attach::Tracepoint(category, name) => format!("tracepoint:{category}:{name}"),
            Attach::FEntry(name) => format!("fentry:{name}"),
            Attach::FExit(name) => format!("fexit:{name}"),
            Attach::KProbe(name) => format!("kprobe:{name}"),
            Attach::KRetProbe(name) => format!("kretprobe:{name}"),
        }
    }

    /// The function or tracepoint that must exist.
    #[must_use]
    pub fn target(self) -> &'static str {
        match self {
            Attach::RawTracepoint(name)
            | Attach::Tracepoint(_, name)
            | Attach::FEntry(name)
            | Attach::FExit(name)
            | Attach::KProbe(name)
            | Attach::KRetProbe(name) => name,
        }
    }
}

/// One way to get a piece of evidence.
#[derive(Debug, Clone, Copy)]
pub struct Variant {
    /// Tiers that use it.
    pub tiers: &'static [Tier],
    /// Program's name in the BPF object.
    pub program: &'static str,
    /// Where it goes.
    pub attach: Attach,
}

/// One piece of evidence, and every way to get it.
#[derive(Debug, Clone, Copy)]
pub struct Probe {
    /// Stable name.
    pub name: &'static str,
    /// What it tells.
    pub tells: &'static str,
    /// What can no longer be told without it.
    pub lost: &'static str,
    /// True if why502 cannot run without it.
    pub required: bool,
    /// Ways, best first; the first one of the tier in use that the kernel takes is attached.
    pub variants: &'static [Variant],
}

impl Probe {
    /// The way that `tier` prefers, if it has one.
    #[must_use]
    pub fn variant(&self, tier: Tier) -> Option<&'static Variant> {
        self.ways(tier).next()
    }

    /// Every way that `tier` has, best first.
    pub fn ways(&self, tier: Tier) -> impl Iterator<Item = &'static Variant> {
        self.variants.iter().filter(move |v| v.tiers.contains(&tier))
    }
}

const ALL: &[Tier] = &[Tier::Full, Tier::Kprobe, Tier::Tracepoint];
const FULL: &[Tier] = &[Tier::Full];
const KPROBE: &[Tier] = &[Tier::Kprobe];
const TRACEPOINT: &[Tier] = &[Tier::Tracepoint];

const fn everywhere(program: &'static str, tracepoint: &'static str) -> Variant {
    Variant { tiers: ALL, program, attach: Attach::RawTracepoint(tracepoint) }
}

const fn on(tiers: &'static [Tier], program: &'static str, attach: Attach) -> Variant {
    Variant { tiers, program, attach }
}

/// Every hook of the program, in the order of attaching; but the first, which begins the records, comes last. One program may
/// serve several rows: it is attached once.
pub const PROBES: &[Probe] =
    &joined::<{ CONNECTIONS.len() + denials::ROWS.len() }>(&[CONNECTIONS, denials::ROWS]);

/// One table of several, which together have `N` rows.
const fn joined<const N: usize>(parts: &[&[Probe]]) -> [Probe; N] {
    let mut all = [CONNECTIONS[0]; N];
    let (mut part, mut row, mut at) = (0, 0, 0);
    while part < parts.len() {
        if row == parts[part].len() {
            (part, row) = (part + 1, 0);
        } else {
            all[at] = parts[part][row];
            (at, row) = (at + 1, row + 1);
        }
    }
    all
}

/// What happens to connections, processes and requests.
const CONNECTIONS: &[Probe] = &[
    Probe {
        name: "tcp-state",
        tells: "beginning, success and end of every connection of nginx",
        lost: "everything",
        required: true,
        variants: &[everywhere("set_state", "inet_sock_set_state")],
    },
    Probe {
        name: "process-fork",
        tells: "new nginx workers, from their first instruction",
        lost: "workers started after why502",
        required: true,
        variants: &[everywhere("process_fork", "sched_process_fork")],
    },
    Probe {
        name: "process-exec",
        tells: "newly started nginx masters, binary upgrades",
        lost: "nginx masters started after why502",
        required: true,
        variants: &[everywhere("process_exec", "sched_process_exec")],
    },
    Probe {
        name: "signal",
        tells: "who sent a backend the signal that ended it",
        lost: "who killed a backend",
        required: false,
        variants: &[everywhere("signal", "signal_generate")],
    },
    Probe {
        name: "oom",
        tells: "backends that the OOM killer chose",
        lost: "OOM kills: they look like any SIGKILL by the kernel",
        required: false,
        variants: &[everywhere("oom", "mark_victim")],
    },
    Probe {
        name: "process-exit",
        tells: "ended nginx processes",
        lost: "the end of workers: a reused PID could be taken for nginx",
        required: true,
        variants: &[everywhere("process_exit", "sched_process_exit")],
    },
    Probe {
        name: "reset",
        tells: "that a RST, not an ICMP error, refused the connection",
        lost: "RST against ICMP port unreachable: refusals are `likely` at best",
        required: false,
        variants: &[everywhere("receive_reset", "tcp_receive_reset")],
    },
    Probe {
        name: "reset-ttl",
        tells: "TTL of the RST",
        lost: "the TTL of a RST (a hint at a middlebox)",
        required: false,
        variants: &[
            on(FULL, "reset_fentry", Attach::FEntry("tcp_reset")),
            on(KPROBE, "reset_kprobe", Attach::KProbe("tcp_reset")),
        ],
    },
    Probe {
        name: "drop",
        tells: "packets of the handshake that this machine dropped, why and at which hook",
        lost: "local firewall drops and rejects, and refusals by this machine's own stack: neither can be proven",
        required: false,
        variants: &[everywhere("kfree_skb", "kfree_skb")],
    },
    // Attached in the order of the rows, so this one runs after `drop`.
    Probe {
        name: "drop-again",
        tells: "the same once more, as the kernel skips a program that it is interrupting",
        lost: "a dropped packet now and then: that nothing was dropped cannot be proven",
        required: false,
        variants: &[everywhere("kfree_skb_again", "kfree_skb")],
    },
    Probe {
        name: "retransmit",
        tells: "the first unanswered SYN, so that the listener's queue is looked at while it is full",
        lost: "full accept queues that drain before nginx gives up (tracepoint tier)",
        required: false,
        variants: &[everywhere("retransmit", "tcp_retransmit_skb")],
    },
    Probe {
        name: "client-close",
        tells: "that nginx gave up because its client had reset the connection",
        lost: "client resets: such attempts are told from the connect time-out by time alone",
        required: false,
        variants: &[everywhere("destroy_sock", "tcp_destroy_sock")],
    },
    Probe {
        name: "connect-return",
        tells: "errno of a connect() that failed at once: unix sockets, routes, ports, security modules",
        lost: "failures of unix sockets, and connects that fail before a SYN is sent (no route, prohibit, no free port)",
        required: false,
        variants: &[
            on(FULL, "connect_fexit", Attach::FExit("__sys_connect")),
            on(KPROBE, "connect_kretprobe", Attach::KRetProbe("__sys_connect")),
            on(TRACEPOINT, "connect_tracepoint", Attach::Tracepoint("syscalls", "sys_exit_connect")),
        ],
    },
    Probe {
        name: "bind-return",
        tells: "errno of a failed bind() (proxy_bind)",
        lost: "bind-failed",
        required: false,
        variants: &[
            on(FULL, "bind_fexit", Attach::FExit("__sys_bind")),
            on(KPROBE, "bind_kretprobe", Attach::KRetProbe("__sys_bind")),
            on(TRACEPOINT, "bind_tracepoint", Attach::Tracepoint("syscalls", "sys_exit_bind")),
        ],
    },
    Probe {
        name: "socket-return",
        tells: "errno of a failed socket() (file descriptor limits)",
        lost: "fd-limit",
        required: false,
        variants: &[
            on(FULL, "socket_fexit", Attach::FExit("__sys_socket")),
            on(KPROBE, "socket_kretprobe", Attach::KRetProbe("__sys_socket")),
            on(TRACEPOINT, "socket_tracepoint", Attach::Tracepoint("syscalls", "sys_exit_socket")),
        ],
    },
    Probe {
        name: "unix-write",
        tells: "what nginx writes to unix sockets",
        lost: "what was asked of a server at a unix socket: unix-read tells nothing without it",
        required: false,
        variants: &[
            on(FULL, "unix_write_fexit", Attach::FExit("unix_stream_sendmsg")),
            on(KPROBE, "unix_write_tracepoint", Attach::RawTracepoint("sock_send_length")),
            on(TRACEPOINT, "written", Attach::RawTracepoint("sock_send_length")),
            on(KPROBE, "unix_write_kretprobe", Attach::KRetProbe("unix_stream_sendmsg")),
        ],
    },
    Probe {
        name: "unix-read",
        tells: "what servers at unix sockets (php-fpm) answer",
        lost: "failures of connections to unix sockets that stand: time-outs, early ends, broken answers",
        required: false,
        variants: &[
            everywhere("received", "sock_recv_length"),
            on(FULL, "unix_read_fexit", Attach::FExit("unix_stream_recvmsg")),
            on(KPROBE, "unix_read_kretprobe", Attach::KRetProbe("unix_stream_recvmsg")),
        ],
    },
    Probe {
        name: "unix-close",
        tells: "the end of connections to unix sockets, and who closed them",
        lost: "failures of connections to unix sockets that stand",
        required: false,
        variants: &[
            on(FULL, "unix_close_fentry", Attach::FEntry("unix_release")),
            on(KPROBE, "unix_close_kprobe", Attach::KProbe("unix_release")),
            on(TRACEPOINT, "unix_close_tracepoint", Attach::Tracepoint("syscalls", "sys_enter_close")),
        ],
    },
    Probe {
        name: "upstream-write",
        tells: "what nginx asks of servers, and when",
        lost: "failures of connections that stand: upstream-read tells nothing without it",
        required: false,
        variants: &[
            on(FULL, "write_fentry", Attach::FEntry("tcp_sendmsg")),
            on(KPROBE, "write_kprobe", Attach::KProbe("tcp_sendmsg")),
            on(TRACEPOINT, "written", Attach::RawTracepoint("sock_send_length")),
        ],
    },
    Probe {
        name: "upstream-read",
        tells: "what servers answered, when, and when nginx learned that they had closed",
        lost: "failures of connections that stand: only those without a single byte from the server are found, and not proven",
        required: false,
        variants: &[
            everywhere("received", "sock_recv_length"),
            on(FULL, "read_fexit", Attach::FExit("tcp_recvmsg")),
            on(KPROBE, "read_kprobe", Attach::KProbe("tcp_cleanup_rbuf")),
        ],
    },
    Probe {
        name: "dns4",
        tells: "what name servers told nginx that has to resolve a name for a request",
        lost: "why a name was not resolved: resolver-failed is `likely` at best",
        required: false,
        variants: &[
            on(FULL, "dns4_fexit", Attach::FExit("udp_recvmsg")),
            on(KPROBE, "dns4_kretprobe", Attach::KRetProbe("udp_recvmsg")),
        ],
    },
    Probe {
        name: "dns6",
        tells: "the same of name servers at IPv6 addresses",
        lost: "why a name was not resolved, if the name server has an IPv6 address",
        required: false,
        variants: &[
            on(FULL, "dns6_fexit", Attach::FExit("udpv6_recvmsg")),
            on(KPROBE, "dns6_kretprobe", Attach::KRetProbe("udpv6_recvmsg")),
        ],
    },
    Probe {
        name: "icmp4",
        tells: "type, code and sender of ICMP errors",
        lost: "ICMP errors that never reach the socket's error queue",
        required: false,
        variants: &[
            on(FULL, "icmp4_fentry", Attach::FEntry("tcp_v4_err")),
            on(KPROBE, "icmp4_kprobe", Attach::KProbe("tcp_v4_err")),
        ],
    },
    Probe {
        name: "icmp6",
        tells: "type, code and sender of ICMPv6 errors",
        lost: "type and sender of ICMPv6 errors: only the errno remains",
        required: false,
        variants: &[
            on(FULL, "icmp6_fentry", Attach::FEntry("tcp_v6_err")),
            on(KPROBE, "icmp6_kprobe", Attach::KProbe("tcp_v6_err")),
        ],
    },
    Probe {
        name: "accept-queue",
        tells: "a SYN that met a full accept queue on this machine, with the queue's length",
        lost: "proof of a full accept queue (its length is asked from user space instead)",
        required: false,
        variants: &[
            on(FULL, "conn_request_fentry", Attach::FEntry("tcp_conn_request")),
            on(KPROBE, "conn_request_kprobe", Attach::KProbe("tcp_conn_request")),
        ],
    },
];

#[cfg(test)]
mod tests {
    use std::collections::{HashMap, HashSet};

    use super::*;

    #[test]
    fn names_are_unique_and_a_program_goes_to_one_place() {
        let names: HashSet<_> = PROBES.iter().map(|p| p.name).collect();
        assert_eq!(names.len(), PROBES.len());
        let mut places = HashMap::new();
        for way in PROBES.iter().flat_map(|p| p.variants) {
            assert_eq!(*places.entry(way.program).or_insert(way.attach), way.attach, "{}", way.program);
        }
    }

    #[test]
    fn required_probes_work_on_every_tier() {
        for probe in PROBES.iter().filter(|p| p.required) {
            for tier in ALL {
                assert!(probe.variant(*tier).is_some(), "{} has no way on {tier}", probe.name);
            }
        }
    }
}
