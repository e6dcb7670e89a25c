//! From the ring buffer's bytes to owned events: the only place that reads wire records.
//!
//! Pure, and total: a record of unknown kind or wrong length is an error to be counted, never a panic.

pub mod denial;
mod drops;
mod redact;
mod request;
pub mod said;
mod talk;
mod unix;

use std::net::{IpAddr, Ipv6Addr, SocketAddr};

use bytes::Bytes;
use thiserror::Error;
use tracer_ebpf::{self as wire, Addr, flag, kind, proc_change, stage};

pub use denial::{Avc, Denial, Speaker};
pub use drops::{Drop, DropClass};
pub use request::{Answered, Dns, Place as RequestPlace};
pub use talk::{Death, Sent, Talk, Told};
pub use unix::{FarEnd, UnixName};

/// Why a record could not be read.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum DecodeError {
    /// Shorter than its kind demands.
    #[error("record of kind {kind} has {len} bytes, {need} are needed")]
    Short {
        /// The record's kind.
        kind: u32,
        /// Its length, bytes.
        len: usize,
        /// The length its kind needs, bytes.
        need: usize,
    },
    /// A kind that this version does not know.
    #[error("record of unknown kind {0}")]
    Kind(u32),
    /// A field holds a value outside its range.
    #[error("record field {0} holds {1}")]
    Field(&'static str, u64),
}

/// Where an attempt ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, serde::Serialize, serde::Deserialize)]
pub enum Stage {
    /// `socket()` failed.
    Socket,
    /// `bind()` failed.
    Bind,
    /// `connect()` failed at once.
    Connect,
    /// The SYN was out.
    SynSent,
    /// The connection stood.
    Established,
    /// nginx tried no server at all. Never in a record of an attempt: made of a request that nginx answered by itself.
    Untried,
}

impl TryFrom<u8> for Stage {
    type Error = DecodeError;

    fn try_from(value: u8) -> Result<Self, DecodeError> {
        match value {
            stage::SOCKET => Ok(Stage::Socket),
            stage::BIND => Ok(Stage::Bind),
            stage::CONNECT => Ok(Stage::Connect),
            stage::SYN_SENT => Ok(Stage::SynSent),
            stage::ESTABLISHED => Ok(Stage::Established),
            other => Err(DecodeError::Field("stage", u64::from(other))),
        }
    }
}

/// An ICMP error that named this connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Icmp {
    /// Type.
    pub kind: u8,
    /// Code.
    pub code: u8,
    /// Who sent it.
    pub sender: IpAddr,
}

/// A listener's accept queue that was full when the SYN came.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Overflow {
    /// Connections waiting in the queue.
    pub queued: u32,
    /// The queue's limit: min(backlog, somaxconn).
    pub limit: u32,
    /// The listener's network namespace.
    pub netns: u32,
}

/// A failed attempt.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Attempt {
    /// Where it ended.
    pub stage: Stage,
    /// Worker's PID in the initial PID namespace.
    pub worker: u32,
    /// The socket's name in the kernel; 0 if there is none. An address of the kernel's: never recorded.
    #[serde(skip)]
    pub socket: u64,
    /// Worker's network namespace (inode); 0 unknown.
    pub netns: u32,
    /// Beginning, CLOCK_MONOTONIC ns; None if it was before why502 watched.
    pub start_ns: Option<u64>,
    /// The same, or when it was found, where that is all that is known: a name of this connection among those of its socket; 0: none.
    pub name_ns: u64,
    /// End, CLOCK_MONOTONIC ns.
    pub end_ns: u64,
    /// Local address; unspecified if none was chosen yet.
    pub local: SocketAddr,
    /// What nginx wanted to reach; for [`Stage::Bind`] what it wanted to bind.
    pub remote: SocketAddr,
    /// True if `remote` tells nothing (`socket()` failed, or it was a unix socket).
    pub no_remote: bool,
    /// True if the socket had reached SYN_SENT when it failed.
    pub syn_state: bool,
    /// Negative errno of the failed system call, 0 if none failed.
    pub ret: i32,
    /// `sk_err` at the end (errno).
    pub sk_err: i32,
    /// `sk_err_soft` at the end (errno).
    pub sk_err_soft: i32,
    /// The security modules' common answer to connect() (negative errno), if a refusal was seen.
    pub security: Option<i32>,
    /// What hooks said in the same system call, in their order; joined by the session.
    pub denials: Vec<Denial>,
    /// The unix socket that nginx wanted to reach, in place of `remote` (which is then unspecified); None for TCP.
    pub unix: Option<UnixName>,
    /// A RST arrived.
    pub reset: bool,
    /// When it arrived, CLOCK_MONOTONIC ns; 0 if not.
    pub reset_ns: u64,
    /// TTL of the RST.
    pub reset_ttl: Option<u8>,
    /// nginx closed the socket.
    pub app_closed: bool,
    /// The process that closed it was ending.
    pub exiting: bool,
    /// SYN retransmission timers that fired.
    pub retransmits: u16,
    /// Packet-level evidence may be missing: the absence of a drop proves nothing.
    pub evidence_gap: bool,
    /// The record was made later than the end: an error that nginx had read by then is gone.
    pub missed_end: bool,
    /// ICMP error.
    pub icmp: Option<Icmp>,
    /// Dropped packets.
    pub drop: Option<Drop>,
    /// Full accept queue.
    pub overflow: Option<Overflow>,
    /// nginx's memory names the request that it serves: a statement follows, or came before.
    #[serde(default)]
    pub asked: bool,
    /// 502 or 504, if nginx has noted that of its own for the attempt (`upstream_states`, which `$upstream_status` shows).
    #[serde(default)]
    pub noted: Option<u16>,
    /// Which attempt of its request this is, from 1.
    pub number: Option<u32>,
    /// It stands for equal failures that the kernel counts and does not send.
    #[serde(skip)]
    pub exemplar: bool,
    /// What was said on a connection that stood; None before [`Stage::Established`].
    pub talk: Option<Box<Talk>>,
}

impl Attempt {
    /// One of which nothing is known but how far a worker came.
    #[must_use]
    pub fn blank(stage: Stage, worker: u32) -> Self {
        let nobody = SocketAddr::from(([0; 4], 0));
        Self {
            stage,
            worker,
            socket: 0,
            netns: 0,
            start_ns: None,
            name_ns: 0,
            end_ns: 0,
            local: nobody,
            remote: nobody,
            no_remote: matches!(stage, Stage::Socket | Stage::Untried),
            syn_state: stage == Stage::SynSent,
            ret: 0,
            sk_err: 0,
            sk_err_soft: 0,
            security: None,
            denials: Vec::new(),
            unix: None,
            reset: false,
            reset_ns: 0,
            reset_ttl: None,
            app_closed: false,
            exiting: false,
            retransmits: 0,
            evidence_gap: false,
            missed_end: false,
            icmp: None,
            drop: None,
            overflow: None,
            asked: false,
            noted: None,
            number: None,
            exemplar: false,
            talk: None,
        }
    }

    /// Duration, microseconds; None if the beginning is unknown, or if a system call failed at once.
    #[must_use]
    pub fn duration_us(&self) -> Option<u64> {
        match self.stage {
            Stage::Socket | Stage::Bind | Stage::Untried => None,
            Stage::Connect if !self.syn_state => None,
            Stage::Connect | Stage::SynSent | Stage::Established => {
                Some(self.end_ns.saturating_sub(self.start_ns?) / 1000)
            }
        }
    }

    /// A refusal comes by RST or by ICMP. Where the hook for RSTs was kept from running but this machine's own stack
    /// was seen to have no socket, or no ICMP error came though all are seen, it was a RST.
    pub fn deduce_reset(&mut self, icmp_is_seen: bool) {
        let refused = self.stage == Stage::SynSent && self.sk_err == libc::ECONNREFUSED;
        if !refused || self.reset || self.icmp.is_some() {
            return;
        }
        let no_socket = self
            .drop
            .as_ref()
            .is_some_and(|d| d.saw(DropClass::NoSocket) && !d.saw(DropClass::Netfilter) && !d.reply);
        self.reset = no_socket || (self.missed_end && icmp_is_seen);
    }

    /// True if the kernel ended the attempt for a reason that nginx, on another CPU, had read before the record was made.
    #[must_use]
    pub fn lost_its_error(&self) -> bool {
        let silent = self.sk_err == 0 && !self.app_closed && !self.reset && self.icmp.is_none();
        self.stage == Stage::SynSent && self.missed_end && silent
    }

    /// Of the reasons that leave no packet behind there is one: as many SYNs as the kernel sends (`tcp_syn_retries`) were
    /// sent again without an answer (tcp_write_timeout, net/ipv4/tcp_timer.c).
    pub fn deduce_give_up(&mut self, syn_retries: Option<u32>) {
        let all_sent = syn_retries.is_some_and(|most| most > 0 && u32::from(self.retransmits) >= most);
        if all_sent && self.lost_its_error() {
            self.sk_err = libc::ETIMEDOUT;
        }
    }

    /// The errno that the attempt ended with (positive), if any.
    #[must_use]
    pub fn errno(&self) -> Option<i32> {
        [self.ret.saturating_neg(), self.sk_err, self.sk_err_soft].into_iter().find(|e| *e > 0)
    }
}

/// Something the kernel told.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// An attempt failed.
    Attempt(Box<Attempt>),
    /// A watched process was created.
    Fork {
        /// The new process.
        pid: u32,
        /// Its parent.
        parent: u32,
    },
    /// A watched or nginx-like process executed a program.
    Exec {
        /// The process.
        pid: u32,
    },
    /// A watched process ended.
    Exit {
        /// The process.
        pid: u32,
    },
    /// A SYN is unanswered so far.
    Hint {
        /// The attempt's socket.
        socket: u64,
        /// The worker.
        worker: u32,
        /// Destination.
        remote: SocketAddr,
    },
    /// The worker gave up an attempt because its client had gone.
    ClientGone {
        /// The attempt's socket.
        socket: u64,
        /// The attempt's end, CLOCK_MONOTONIC ns.
        end_ns: u64,
        /// The client.
        client: SocketAddr,
        /// The client reset the connection instead of closing it.
        reset: bool,
    },
    /// A request has been answered: one whose attempts failed, or one for which none was made.
    Answered(Answered),
    /// A worker heard from a name server.
    Dns(Box<Dns>),
    /// A security module, a cgroup program or a system call filter refused, or would have.
    Denial(Box<Denial>),
    /// nginx itself says what has failed.
    Said(Box<said::Statement>),
    /// A process that held the far end of a watched connection ended.
    Death(Box<Death>),
}

/// include/net/tcp_states.h.
const TCP_SYN_SENT: u8 = 2;

/// Reads one record.
///
/// # Errors
/// [`DecodeError`]; the record is then to be counted as lost.
pub fn decode(record: &Bytes) -> Result<Event, DecodeError> {
    let kind = record.first_chunk::<4>().copied().map(u32::from_ne_bytes);
    let kind = kind.ok_or(DecodeError::Short { kind: 0, len: record.len(), need: 4 })?;
    match kind {
        kind::ATTEMPT => attempt(&read_attempt(record)?),
        kind::PROC => proc_event(&read::<wire::ProcEvent>(record, kind)?),
        kind::HINT => {
            let hint = read::<wire::Hint>(record, kind)?;
            let remote = SocketAddr::new(ip(&hint.daddr), hint.dport);
            Ok(Event::Hint { socket: hint.sk, worker: hint.tgid, remote })
        }
        kind::CLIENT_GONE => {
            let gone = read::<wire::ClientGone>(record, kind)?;
            Ok(Event::ClientGone {
                socket: gone.attempt_sk,
                end_ns: gone.attempt_end_ns,
                client: SocketAddr::new(ip(&gone.client), gone.client_port),
                reset: gone.how == 2,
            })
        }
        kind::ANSWER => Ok(Event::Answered(Answered::of(&read(record, kind)?))),
        kind::SAID => Ok(Event::Said(Box::new(said::Statement::of(&read(record, kind)?)))),
        kind::DNS => request::dns(record),
        kind::UNIX => Ok(Event::Attempt(Box::new(unix::attempt(&read(record, kind)?)))),
        kind::DENIAL => Denial::of(&read(record, kind)?).map(|d| Event::Denial(Box::new(d))),
        kind::TALK => talk::broken(record),
        kind::DEATH => Ok(Event::Death(Box::new(talk::death(&read(record, kind)?)))),
        other => Err(DecodeError::Kind(other)),
    }
}

/// Wire types: plain integers, so that any bytes are a value.
trait Wire: Copy {}
impl Wire for wire::Attempt {}
impl Wire for wire::ProcEvent {}
impl Wire for wire::Hint {}
impl Wire for wire::ClientGone {}
impl Wire for wire::Evidence {}
impl Wire for wire::said::Said {}
impl Wire for wire::denial::Denial {}
impl Wire for wire::unix::Unix {}
impl Wire for wire::talk::Broken {}
impl Wire for wire::talk::Death {}

fn read<T: Wire>(record: &[u8], kind: u32) -> Result<T, DecodeError> {
    if record.len() < size_of::<T>() {
        return Err(DecodeError::Short { kind, len: record.len(), need: size_of::<T>() });
    }
    // SAFETY: the length was checked; `Wire` types are repr(C) integers valid for every bit pattern; the
    // read does not assume alignment.
    Ok(unsafe { std::ptr::read_unaligned(record.as_ptr().cast::<T>()) })
}

/// Reads an attempt, which ends before its evidence if there is none.
fn read_attempt(record: &[u8]) -> Result<wire::Attempt, DecodeError> {
    const PARTS: u32 = flag::DROP | flag::ICMP | flag::LISTEN_OVERFLOW;
    let mut whole = [0; size_of::<wire::Attempt>()];
    let len = record.len().min(whole.len());
    let (Some(to), Some(from)) = (whole.get_mut(..len), record.get(..len)) else {
        return Err(DecodeError::Short { kind: kind::ATTEMPT, len, need: whole.len() });
    };
    to.copy_from_slice(from);
    let attempt = read::<wire::Attempt>(&whole, kind::ATTEMPT)?;
    let head_only = attempt.flags & PARTS == 0 || record.len() < wire::ATTEMPT_HEAD;
    let need = if head_only { wire::ATTEMPT_HEAD } else { whole.len() };
    if record.len() < need {
        return Err(DecodeError::Short { kind: kind::ATTEMPT, len: record.len(), need });
    }
    Ok(attempt)
}

/// An IP address from the wire's 16 bytes.
#[must_use]
pub fn ip(addr: &Addr) -> IpAddr {
    let v6 = Ipv6Addr::from(*addr);
    v6.to_ipv4_mapped().map_or(IpAddr::V6(v6), IpAddr::V4)
}

/// The wire's 16 bytes of an IP address.
#[must_use]
pub fn addr(ip: IpAddr) -> Addr {
    match ip {
        IpAddr::V4(v4) => v4.to_ipv6_mapped().octets(),
        IpAddr::V6(v6) => v6.octets(),
    }
}

fn proc_event(p: &wire::ProcEvent) -> Result<Event, DecodeError> {
    match p.change {
        proc_change::FORK => Ok(Event::Fork { pid: p.tgid, parent: p.parent }),
        proc_change::EXEC => Ok(Event::Exec { pid: p.tgid }),
        proc_change::EXIT => Ok(Event::Exit { pid: p.tgid }),
        other => Err(DecodeError::Field("change", u64::from(other))),
    }
}

fn attempt(a: &wire::Attempt) -> Result<Event, DecodeError> {
    let stage = Stage::try_from(a.stage)?;
    let has = |bit: u32| a.flags & bit != 0;
    let unspecified = |addr: &Addr| if *addr == [0; 16] { blank(a.family) } else { ip(addr) };
    let (mut drop, icmp, overflow) = evidence(&a.evidence, a.flags)?;
    if let Some(drop) = &mut drop {
        drop.forget_before(a.start_ns);
    }
    if has(flag::NO_SOCKET) {
        drop = Some(no_socket(a, drop));
    }
    Ok(Event::Attempt(Box::new(Attempt {
        stage,
        worker: a.tgid,
        socket: a.sk,
        netns: a.netns,
        start_ns: (!has(flag::UNKNOWN_START)).then_some(a.start_ns),
        name_ns: a.start_ns,
        end_ns: a.end_ns,
        local: SocketAddr::new(unspecified(&a.saddr), a.sport),
        remote: SocketAddr::new(unspecified(&a.daddr), a.dport),
        no_remote: stage == Stage::Socket,
        syn_state: a.old_state == TCP_SYN_SENT,
        ret: a.ret,
        sk_err: a.sk_err,
        sk_err_soft: a.sk_err_soft,
        security: has(flag::LSM).then_some(a.lsm_ret),
        denials: Vec::new(),
        unix: None,
        reset: has(flag::RST_IN),
        reset_ns: a.rst_ns,
        reset_ttl: has(flag::RST_TTL).then_some(a.rst_ttl),
        app_closed: has(flag::APP_CLOSED),
        exiting: has(flag::TASK_EXITING),
        retransmits: a.retransmits,
        evidence_gap: has(flag::EVIDENCE_GAP),
        missed_end: has(flag::MISSED_END),
        icmp,
        drop,
        overflow,
        asked: has(flag::ASKED),
        noted: None,
        number: None,
        exemplar: has(flag::EXEMPLAR),
        talk: None,
    })))
}

/// What [`flag::NO_SOCKET`] says, together with other drops of the same attempt.
fn no_socket(a: &wire::Attempt, others: Option<Drop>) -> Drop {
    let bit = 1 << wire::drop_class::NO_SOCKET;
    match others {
        Some(drop) => Drop {
            count: drop.count.saturating_add(1),
            classes: drop.classes | bit,
            no_socket_netns: a.netns,
            ..drop
        },
        None => Drop {
            class: DropClass::NoSocket,
            reason: 0,
            count: 1,
            first_ns: a.rst_ns,
            last_ns: a.rst_ns,
            location: 0,
            stack: Vec::new(),
            netns: a.netns,
            reply: false,
            conntrack: false,
            classes: bit,
            no_socket_netns: a.netns,
            wire_dst: SocketAddr::new(ip(&a.daddr), a.dport),
        },
    }
}

/// The address that stands for "none" in a family.
fn blank(family: u16) -> IpAddr {
    if i32::from(family) == libc::AF_INET6 {
        IpAddr::V6(Ipv6Addr::UNSPECIFIED)
    } else {
        IpAddr::V4(std::net::Ipv4Addr::UNSPECIFIED)
    }
}

type Parts = (Option<Drop>, Option<Icmp>, Option<Overflow>);

/// Packet-level evidence, from a record or straight from the kernel's map; `flags` tells which parts hold.
///
/// # Errors
/// [`DecodeError::Field`] for an unknown drop class.
pub fn evidence(e: &wire::Evidence, flags: u32) -> Result<Parts, DecodeError> {
    let has = |bit: u32| flags & bit != 0;
    let drop = if has(flag::DROP) {
        Some(Drop {
            class: DropClass::try_from(e.drop_class)?,
            reason: e.drop_reason,
            count: e.drop_count,
            first_ns: e.drop_first_ns,
            last_ns: e.drop_last_ns,
            location: e.drop_location,
            stack: e.drop_stack.iter().copied().take_while(|a| *a != 0).collect(),
            netns: e.drop_netns,
            reply: e.flags & wire::drop_flag::REPLY != 0,
            conntrack: e.flags & wire::drop_flag::CONNTRACK != 0,
            classes: e.classes,
            no_socket_netns: e.no_socket_netns,
            wire_dst: SocketAddr::new(ip(&e.wire_daddr), e.wire_dport),
        })
    } else {
        None
    };
    let icmp =
        has(flag::ICMP).then(|| Icmp { kind: e.icmp_type, code: e.icmp_code, sender: ip(&e.icmp_sender) });
    let overflow = has(flag::LISTEN_OVERFLOW).then_some(Overflow {
        queued: e.backlog,
        limit: e.backlog_max,
        netns: e.backlog_netns,
    });
    Ok((drop, icmp, overflow))
}

/// Reads an [`wire::Evidence`] from bytes, for recordings and tests.
///
/// # Errors
/// If there are too few bytes.
pub fn read_evidence(bytes: &[u8]) -> Result<wire::Evidence, DecodeError> {
    read(bytes, 0)
}

#[cfg(test)]
mod tests;
