//! The wire contract between the BPF object and `why502`: every struct that crosses the border.
//!
//! All types are `repr(C)`, of fixed-width fields with explicit padding, and their sizes are asserted, so
//! that both compilers agree. An address is always 16 bytes; IPv4 is stored as `::ffff:a.b.c.d`, so one
//! key type serves both families. Ports are in host byte order. Times are `bpf_ktime_get_ns()`
//! (CLOCK_MONOTONIC, nanoseconds); 0 means "did not happen".
#![no_std]

pub mod denial;
pub mod loopback;
pub mod older;
pub mod request;
pub mod said;
mod settings;
pub mod storm;
pub mod talk;
pub mod unix;

pub use settings::{NONE, Settings};

/// Version of this contract, the first field of [`Settings`]; both sides are built together, so a
/// mismatch can only come from a damaged recording.
pub const WIRE_VERSION: u32 = 1;

/// Stack depth kept with a dropped packet: enough to reach the IP-layer function that names the hook.
pub const DROP_STACK_DEPTH: usize = 10;

/// Capacity of the map of packet-level evidence. At nginx's default connect timeout of a minute it holds what
/// 270 dropped handshakes a second leave.
pub const FLOWS: u32 = 16384;

/// Capacity of the set of upstream peers.
pub const PEERS: u32 = 16384;

/// Marks of thread group ids, a power of two: an eighth of a MiB, and one process of a thousand that is not nginx is
/// taken for it with 16 workers.
pub const MARKS: u32 = 16384;

/// Kinds of record in the ring buffer (the first four bytes of each).
pub mod kind {
    /// An [`Attempt`](super::Attempt): a failed connection attempt.
    pub const ATTEMPT: u32 = 1;
    /// A [`ProcEvent`](super::ProcEvent): a watched process forked, executed a program or ended.
    pub const PROC: u32 = 2;
    /// A [`Hint`](super::Hint): a first SYN went unanswered; look at the listener now, not in a minute.
    pub const HINT: u32 = 3;
    /// A [`ClientGone`](super::ClientGone): the worker gave up an attempt because its client had left.
    pub const CLIENT_GONE: u32 = 4;
    /// An [`Answer`](super::request::Answer): what nginx answers a request with of which an attempt failed.
    pub const ANSWER: u32 = 5;
    /// A [`Dns`](super::request::Dns): a name server's reply without an answer, read by a worker.
    pub const DNS: u32 = 6;
    /// A [`Denial`](super::denial::Denial): what a security module, cgroup program or system call filter said.
    pub const DENIAL: u32 = 7;
    /// A [`Said`](super::said::Said): what nginx itself says of a failed attempt, by uprobes or asked by its memory.
    pub const SAID: u32 = 8;
    /// A [`Unix`](super::unix::Unix): a failed connect() to a unix socket.
    pub const UNIX: u32 = 9;
    /// A [`Broken`](super::talk::Broken): a connection that stood and then failed.
    pub const TALK: u32 = 10;
    /// A [`Death`](super::talk::Death): a process ended that held the far end of a watched connection.
    pub const DEATH: u32 = 11;
}

/// Where an attempt ended.
pub mod stage {
    /// `socket()` failed: no socket exists, the destination is unknown.
    pub const SOCKET: u8 = 1;
    /// `bind()` failed; `saddr`/`sport` hold the address asked for.
    pub const BIND: u8 = 2;
    /// `connect()` failed before a SYN could be sent (routing, security hooks, ports).
    pub const CONNECT: u8 = 3;
    /// The socket was in SYN_SENT.
    pub const SYN_SENT: u8 = 4;
    /// The connection was established.
    pub const ESTABLISHED: u8 = 5;
}

/// Bits of [`Attempt::flags`] and [`Conn::flags`].
pub mod flag {
    /// A RST arrived for this socket (`tcp_reset`).
    pub const RST_IN: u32 = 1 << 0;
    /// The socket was closed inside `connect()`; the errno comes from the return of the system call.
    pub const SYNC_CLOSED: u32 = 1 << 1;
    /// The application (nginx) closed the socket.
    pub const APP_CLOSED: u32 = 1 << 2;
    /// The closing task was exiting.
    pub const TASK_EXITING: u32 = 1 << 3;
    /// The connection began before why502 was attached: `start_ns` is unknown.
    pub const UNKNOWN_START: u32 = 1 << 5;
    /// [`Attempt::icmp_type`] and what follows is valid.
    pub const ICMP: u32 = 1 << 6;
    /// The ICMP error came from the socket's error queue (its sender is the outer IP header's source).
    pub const ICMP_FROM_QUEUE: u32 = 1 << 7;
    /// The drop fields are valid: this host freed a packet of the handshake.
    pub const DROP: u32 = 1 << 8;
    /// The accept queue of a listener on this machine was full when the SYN came.
    pub const LISTEN_OVERFLOW: u32 = 1 << 9;
    /// [`Attempt::lsm_ret`] is valid: the security hook on connect was seen to answer.
    pub const LSM: u32 = 1 << 10;
    /// The kernel was asked for the errno of `connect()` (the exit hook was attached).
    pub const CONNECT_RET: u32 = 1 << 11;
    /// [`Attempt::rst_ttl`] is valid.
    pub const RST_TTL: u32 = 1 << 12;
    /// A SYN of this attempt was retransmitted.
    pub const SYN_RETRANSMIT: u32 = 1 << 13;
    /// So many other flows or peers came meanwhile that evidence of this one may have been evicted, or what was seen of it
    /// may be another namespace's ([`loopback`](super::loopback)): the absence of a drop proves nothing.
    pub const EVIDENCE_GAP: u32 = 1 << 14;
    /// The moment of the end was missed; the record was made when the socket was destroyed.
    pub const MISSED_END: u32 = 1 << 15;
    /// The stack of the connection's own network namespace had no socket for the SYN. Seen inside `connect()`, so
    /// it needs no entry in the map of packet-level evidence.
    pub const NO_SOCKET: u32 = 1 << 16;
    /// nginx's own connection is known: a [`Said`](super::said::Said) that names the request follows, or came before.
    pub const ASKED: u32 = 1 << 17;
    /// It stands for equal failures that are counted and not sent ([`storm`](super::storm)).
    pub const EXEMPLAR: u32 = 1 << 18;
}

/// Bits of [`Evidence::flags`].
pub mod drop_flag {
    /// The packet was on its way back (SYN-ACK or RST towards nginx).
    pub const REPLY: u32 = 1 << 0;
    /// The packet had a conntrack entry; the flow key is the entry's original tuple.
    pub const CONNTRACK: u32 = 1 << 1;
    /// The kernel gave a drop reason (since 5.17); else the place in the kernel was judged.
    pub const HAS_REASON: u32 = 1 << 2;
    /// The packet carried its socket (on the way out).
    pub const HAS_SK: u32 = 1 << 3;
}

/// What a drop means, judged in the kernel from reason or location; stable across kernels, unlike
/// `enum skb_drop_reason`.
pub mod drop_class {
    /// Not in one of the classes below; the raw reason number tells more.
    pub const OTHER: u8 = 0;
    /// A netfilter hook refused the packet (`SKB_DROP_REASON_NETFILTER_DROP`).
    pub const NETFILTER: u8 = 1;
    /// No socket wanted the packet (`SKB_DROP_REASON_NO_SOCKET`).
    pub const NO_SOCKET: u8 = 2;
    /// Reverse path filter.
    pub const RPFILTER: u8 = 3;
    /// A cgroup egress or socket filter program.
    pub const BPF: u8 = 4;
    /// Traffic control (tc).
    pub const TC: u8 = 5;
    /// Neighbour discovery failed (`NEIGH_FAILED`, `NEIGH_QUEUEFULL`).
    pub const NEIGH: u8 = 6;
    /// No route for the packet.
    pub const NO_ROUTE: u8 = 7;
    /// IPsec policy.
    pub const XFRM: u8 = 8;
    /// The final ACK met a full accept queue (`TCP_LISTEN_OVERFLOW`).
    pub const LISTEN_OVERFLOW: u8 = 9;
    /// Number of classes.
    pub const COUNT: usize = 10;
}

/// Role of a watched process.
pub mod role {
    /// Executed a program with an nginx-like name; not recorded until its executable is verified.
    pub const UNVERIFIED: u32 = 0;
    /// nginx: master, worker or single process.
    pub const NGINX: u32 = 1;
}

/// What happened to a process.
pub mod proc_change {
    /// A watched process created this one.
    pub const FORK: u32 = 1;
    /// This process executed a new program.
    pub const EXEC: u32 = 2;
    /// This process ended.
    pub const EXIT: u32 = 3;
}

/// A 16-byte address (network order; IPv4 mapped).
pub type Addr = [u8; 16];

/// One connection of a watched process while it is open; value of the map keyed by `struct sock *`.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct Conn {
    /// CLOSE → SYN_SENT.
    pub start_ns: u64,
    /// Arrival of a RST.
    pub rst_ns: u64,
    /// Destination as nginx asked for it (before any DNAT).
    pub daddr: Addr,
    /// Thread group id of the worker, in the initial PID namespace.
    pub tgid: u32,
    /// [`flag`] bits.
    pub flags: u32,
    /// Destination port.
    pub dport: u16,
    /// AF_INET or AF_INET6.
    pub family: u16,
    /// TTL or hop limit of the RST, if [`flag::RST_TTL`].
    pub rst_ttl: u8,
    /// Padding.
    pub _pad: [u8; 3],
    /// [`Shared::flow_inserts`] at the beginning.
    pub flow_seq: u32,
    /// [`Shared::peer_inserts`] at the beginning.
    pub peer_seq: u32,
    /// nginx's own record of the connection (`ngx_connection_t *` in the worker); 0 unknown.
    pub nginx: u64,
}

/// Places in a [`Bucket`].
pub const WAYS: usize = 4;

/// One step of looking for the last place that fits: `at` if `equal` is 1, `way` if it is 0. Without a branch, for the verifier.
#[must_use]
#[inline(always)]
pub const fn last_of(way: u64, at: u64, equal: u64) -> u64 {
    way ^ ((way ^ at) & equal.wrapping_neg())
}

/// An open connection with what is said on it.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct Entry {
    /// The connection.
    pub conn: Conn,
    /// What is said.
    pub talk: talk::Talk,
}

/// Some open connections: a cache line of `struct sock *`, then their records.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct Bucket {
    /// Who is about to take a place: a lock of one try.
    pub lock: u64,
    /// The sockets; 0 is a free place.
    pub tags: [u64; WAYS],
    /// Padding.
    pub _pad: [u64; 3],
    /// The record of each.
    pub conns: [Entry; WAYS],
}

/// Key of [`Evidence`]: a flow as the client side sees it.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct FlowKey {
    /// Source (nginx's side).
    pub saddr: Addr,
    /// Destination.
    pub daddr: Addr,
    /// Source port.
    pub sport: u16,
    /// Destination port.
    pub dport: u16,
}

/// Key of the set of upstream peers: only packets from or to one of them are looked at.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct PeerKey {
    /// Peer's address.
    pub addr: Addr,
    /// Peer's port.
    pub port: u16,
    /// Padding (zero, it is part of the hashed key).
    pub _pad: u16,
}

/// What the packet-level hooks saw of one flow: drops, ICMP errors, a full accept queue.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct Evidence {
    /// First drop.
    pub drop_first_ns: u64,
    /// Last drop.
    pub drop_last_ns: u64,
    /// Kernel address that freed the packet.
    pub drop_location: u64,
    /// Return addresses at the last drop, innermost first; 0 ends the list.
    pub drop_stack: [u64; DROP_STACK_DEPTH],
    /// Last ICMP error.
    pub icmp_ns: u64,
    /// Last time that the listener's accept queue was found full.
    pub overflow_ns: u64,
    /// Sender of the ICMP error.
    pub icmp_sender: Addr,
    /// Destination address that the dropped packet carried (differs from the key's after DNAT).
    pub wire_daddr: Addr,
    /// Packets dropped.
    pub drop_count: u32,
    /// `enum skb_drop_reason` of the last drop; 0 before 5.17.
    pub drop_reason: u32,
    /// Network namespace (inode) in which the last drop happened; 0 unknown.
    pub drop_netns: u32,
    /// [`drop_flag`] bits of the last drop.
    pub flags: u32,
    /// `sk_ack_backlog` of the full listener.
    pub backlog: u32,
    /// `sk_max_ack_backlog` of the full listener.
    pub backlog_max: u32,
    /// Network namespace of the full listener.
    pub backlog_netns: u32,
    /// Network namespace in which NO_SOCKET was said; 0 if never.
    pub no_socket_netns: u32,
    /// Destination port that the dropped packet carried.
    pub wire_dport: u16,
    /// [`drop_class`] of the last drop.
    pub drop_class: u8,
    /// ICMP type.
    pub icmp_type: u8,
    /// ICMP code.
    pub icmp_code: u8,
    /// Bit set of the [`drop_class`]es 0 to 7 seen.
    pub classes: u8,
    /// Padding.
    pub _pad: [u8; 2],
    /// `struct sk_buff *` of the last drop: two programs watch drops, and count each once.
    pub drop_skb: u64,
}

/// A failed attempt, as sent through the ring buffer: the whole story of one connection.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct Attempt {
    /// [`kind::ATTEMPT`].
    pub kind: u32,
    /// [`flag`] bits.
    pub flags: u32,
    /// Beginning of the attempt; 0 if unknown.
    pub start_ns: u64,
    /// End of the attempt.
    pub end_ns: u64,
    /// Arrival of a RST.
    pub rst_ns: u64,
    /// `struct sock *`, an opaque name of the socket; 0 if there is none.
    pub sk: u64,
    /// Bytes acknowledged by the peer (`tcp_sock.bytes_acked`).
    pub bytes_acked: u64,
    /// Bytes received (`tcp_sock.bytes_received`).
    pub bytes_received: u64,
    /// Local address.
    pub saddr: Addr,
    /// Destination as nginx asked for it.
    pub daddr: Addr,
    /// Worker's thread group id.
    pub tgid: u32,
    /// Worker's network namespace (inode).
    pub netns: u32,
    /// `sk_err` at the end.
    pub sk_err: i32,
    /// `sk_err_soft` at the end.
    pub sk_err_soft: i32,
    /// Return value of the failed system call (negative errno), 0 if it did not fail.
    pub ret: i32,
    /// `security_socket_connect`'s answer (negative errno), if [`flag::LSM`].
    pub lsm_ret: i32,
    /// Which security module answered, 0 = not known; filled by the per-module hooks.
    pub lsm_id: u32,
    /// Interface index on which the RST or ICMP error came in; 0 unknown.
    pub ifindex: u32,
    /// Local port; 0 if none was assigned.
    pub sport: u16,
    /// Destination port.
    pub dport: u16,
    /// AF_INET or AF_INET6.
    pub family: u16,
    /// SYN retransmission timer expirations (`icsk_retransmits`) or, once established, retransmissions.
    pub retransmits: u16,
    /// Where it ended, see [`stage`].
    pub stage: u8,
    /// TCP state before the final transition (include/net/tcp_states.h).
    pub old_state: u8,
    /// `sk_shutdown` at the end: 3 if the application closed it.
    pub shutdown: u8,
    /// TTL of the RST, if [`flag::RST_TTL`].
    pub rst_ttl: u8,
    /// Padding.
    pub _pad: [u8; 4],
    /// What packet-level hooks saw of this flow, if [`flag::DROP`], [`flag::ICMP`] or
    /// [`flag::LISTEN_OVERFLOW`]; a record without any of them ends before it ([`ATTEMPT_HEAD`]).
    pub evidence: Evidence,
}

/// Size of an [`Attempt`] without evidence, bytes.
pub const ATTEMPT_HEAD: usize = core::mem::offset_of!(Attempt, evidence);

/// A change in the family of watched processes.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct ProcEvent {
    /// [`kind::PROC`].
    pub kind: u32,
    /// See [`proc_change`].
    pub change: u32,
    /// The process.
    pub tgid: u32,
    /// Its parent (fork only).
    pub parent: u32,
    /// When.
    pub time_ns: u64,
    /// `task_struct.comm`.
    pub comm: [u8; 16],
}

/// A SYN of a watched connection was retransmitted for the first time.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct Hint {
    /// [`kind::HINT`].
    pub kind: u32,
    /// Worker's thread group id.
    pub tgid: u32,
    /// When.
    pub time_ns: u64,
    /// `struct sock *`.
    pub sk: u64,
    /// Destination.
    pub daddr: Addr,
    /// Destination port.
    pub dport: u16,
    /// Padding.
    pub _pad: [u8; 6],
}

/// Right after giving up an attempt the worker closed a client connection whose client had left.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct ClientGone {
    /// [`kind::CLIENT_GONE`].
    pub kind: u32,
    /// Worker's thread group id.
    pub tgid: u32,
    /// When the client's socket was closed.
    pub time_ns: u64,
    /// `struct sock *` of the attempt that was given up.
    pub attempt_sk: u64,
    /// End of that attempt.
    pub attempt_end_ns: u64,
    /// The client's address.
    pub client: Addr,
    /// The client's port.
    pub client_port: u16,
    /// 1: the client had sent FIN; 2: the client had reset the connection.
    pub how: u8,
    /// Padding.
    pub _pad: [u8; 5],
}

/// How long after an attempt was given up its [`ClientGone`] may follow, at most, nanoseconds.
pub const CLIENT_WAIT_NS: u64 = 100_000_000;

/// The last attempt that a worker gave up, watched until it has gone on to something else.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct GivenUp {
    /// `struct sock *`.
    pub sk: u64,
    /// When.
    pub end_ns: u64,
    /// A socket that the worker itself moved to CLOSE meanwhile (its destruction proves nothing).
    pub closed_sk: u64,
    /// The thread's time on a CPU then, nanoseconds.
    pub ran_ns: u64,
    /// How often it had gone to sleep by itself.
    pub slept: u64,
    /// 1 if a client that left may be the reason.
    pub quiet: u32,
    /// The attempt's own port: its far end, where that is a process of this machine, is closed by nginx's RST, and no client.
    pub port: u32,
}

/// A watched process.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct Proc {
    /// See [`role`].
    pub role: u32,
    /// The process that the watched family began with (a master, as a rule).
    pub root: u32,
    /// The peer it connected to last: known to be in the set of peers, which saves a look-up.
    pub last: PeerKey,
    /// 1 from CLOSE → SYN_SENT to the return of connect(): what is 0 there was not recorded.
    pub begun: u32,
    /// The connection begun last.
    pub sk: u64,
    /// Until when an answer is waited for, seconds (CLOCK_MONOTONIC); 0: none is.
    pub awaiting: u32,
    /// What socket() or bind() of its failed with last, and nginx has not told of yet (negative errno); 0: nothing.
    pub failed: i32,
    /// [`Attempt::start_ns`] and socket of that attempt.
    pub failed_attempt: [u64; 2],
}

/// Per-CPU counters; user space sums them.
#[repr(C)]
#[derive(Clone, Copy, Default, Debug)]
pub struct Counters {
    /// Connections begun by watched processes.
    pub connects: u64,
    /// Connections established.
    pub established: u64,
    /// Attempts that failed.
    pub failed: u64,
    /// Failed attempts sent to user space.
    pub sent: u64,
    /// Failed attempts lost because the ring buffer was full.
    pub lost: u64,
    /// Connections not recorded because the connection map was full.
    pub conns_full: u64,
    /// Process events lost because the ring buffer was full.
    pub proc_lost: u64,
    /// Connections removed from the map.
    pub closed: u64,
    /// Hints and client notes lost because the ring buffer was full.
    pub hints_lost: u64,
    /// Connections whose beginning the kernel kept from us, found when connect() returned.
    pub found_late: u64,
    /// Freed packets that the first of the two programs was kept from looking at, but not the second.
    pub drops_rescued: u64,
    /// Failed attempts that were counted with their kind in place of being sent ([`storm`]).
    pub counted: u64,
}

/// State shared by all CPUs (one array element).
#[repr(C)]
#[derive(Clone, Copy)]
pub struct Shared {
    /// While the clock is below this, closes of client sockets are looked at.
    pub watch_until_ns: u64,
    /// Insertions into the map of packet-level evidence, modulo 2^32; concurrent ones may be counted once.
    pub flow_inserts: u32,
    /// Insertions into the set of peers, likewise.
    pub peer_inserts: u32,
    /// Connections in the hash map, because their bucket was full.
    pub spilled: u64,
    /// Failed attempts whose sockets are not closed yet.
    pub failed_open: u64,
    /// 1 once a worker has connected to a unix socket.
    pub standing: u64,
    /// When the second began in which failures are counted.
    pub second_ns: u64,
    /// How many there were in it.
    pub in_second: u64,
}

const _: () = {
    assert!(size_of::<Conn>() == 64);
    assert!(size_of::<Entry>() == 64 * 3);
    assert!(size_of::<Bucket>() == 64 * (1 + 3 * WAYS));
    assert!(size_of::<FlowKey>() == 36);
    assert!(size_of::<PeerKey>() == 20);
    assert!(size_of::<Evidence>() == 8 * (3 + DROP_STACK_DEPTH + 2) + 32 + 32 + 8 + 8);
    assert!(size_of::<Attempt>() == 8 + 6 * 8 + 32 + size_of::<Evidence>() + 32 + 16);
    assert!(ATTEMPT_HEAD.is_multiple_of(8));
    assert!(size_of::<ProcEvent>() == 40);
    assert!(size_of::<Hint>() == 48);
    assert!(size_of::<ClientGone>() == 56);
    assert!(size_of::<GivenUp>() == 48);
    assert!(size_of::<Proc>() == 64);
    assert!(size_of::<Shared>() == 56);
    assert!(size_of::<Counters>() == 96);
    assert!(last_of(1, 2, 1) == 2 && last_of(3, 1, 1) == 1 && last_of(1, 2, 0) == 1);
};

#[cfg(feature = "user")]
mod pod {
    use super::{
        Attempt, Bucket, Conn, Counters, Entry, Evidence, FlowKey, PeerKey, Proc, Settings, Shared,
        request::Failed,
        said::Layout,
        storm::{Alike, Repeats},
    };

    macro_rules! pod {
        ($($t:ty),+ $(,)?) => {
            $(
                // SAFETY: repr(C), fixed-width integers and arrays of them only, padding explicit, every
                // bit pattern valid.
                unsafe impl aya::Pod for $t {}
            )+
        };
    }
    pod!(
        Attempt, Bucket, Conn, Counters, Entry, Failed, Evidence, FlowKey, PeerKey, Proc, Settings, Shared,
        Layout, Alike, Repeats
    );
}
