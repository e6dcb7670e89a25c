//! The wire contract of requests: which client's request an attempt serves.
//!
//! nginx parses a request in place, in a buffer that stays as it is until the answer is out. So the kernel side
//! remembers only where that buffer is, and reads it when a failed attempt's request is answered.

use crate::Addr;

/// Clients that are remembered at a time; one that finds its place taken drives the other out, whose request then
/// stays unknown.
pub const CLIENTS: u32 = 16384;

/// Failed attempts whose sockets nginx has not closed yet, likewise.
pub const FAILED: u32 = 4096;

/// Most bytes of a request that are sent to user space.
pub const MOST: usize = 1023;

/// Bytes at the beginning of a request that are looked at for NULs.
pub const CLEAN: usize = 512;

/// The status with which nginx answers a request for which it could try no server (NGX_HTTP_BAD_GATEWAY).
pub const BAD_GATEWAY: u16 = 502;

/// The status that stands for a timer of nginx (NGX_HTTP_GATEWAY_TIME_OUT).
pub const GATEWAY_TIMEOUT: u16 = 504;

/// Most bytes of a name server's reply that are sent to user space: header, question and a little more.
pub const MOST_DNS: usize = 511;

/// Kinds of [`Turn`].
pub mod turn {
    /// Something that says nothing of requests.
    pub const NOTHING: u32 = 0;
    /// Read from a client whose request is not answered yet.
    pub const READ_CLIENT: u32 = 1;
    /// Read from an upstream connection.
    pub const READ_UPSTREAM: u32 = 2;
    /// Closed a failed attempt.
    pub const CLOSED: u32 = 3;
}

/// Bits of [`Client::flags`] and [`Request::flags`].
pub mod client_flag {
    /// The read began with a capital letter, as a method does, and came by `recv()`.
    pub const HTTP: u32 = 1 << 0;
    /// It was all that had ever arrived on the connection: a request begins there.
    pub const FIRST: u32 = 1 << 1;
    /// It went to the beginning of a buffer of the size that requests begin in.
    pub const ALIGNED: u32 = 1 << 2;
    /// It has been answered.
    pub const ANSWERED: u32 = 1 << 3;
    /// The header of the PROXY protocol.
    pub const PROXY: u32 = 1 << 4;
    /// An upstream connection was begun, or one that was kept was written to, right after it was read.
    pub const LINKED: u32 = 1 << 5;
    /// nginx has said that an attempt of it failed: its answer is to be reported.
    pub const AWAITED: u32 = 1 << 6;
    /// Another client was written to: two requests could be meant.
    pub const MISMATCH: u32 = 1 << 8;
    /// The connection was closed without an answer.
    pub const LEFT: u32 = 1 << 9;
    /// No attempt was seen to serve it: nginx made the answer by itself.
    pub const ALONE: u32 = 1 << 10;
    /// With [`ALONE`]: the worker did something else between the request and its answer.
    pub const LATE: u32 = 1 << 11;
    /// With [`LATE`]: among that it began upstream connections, for whomever.
    pub const CROWDED: u32 = 1 << 12;
}

/// What a worker did last: the next thing that it does belongs to the same request, unless something else, which
/// is not seen, came between; both ends of that chain must agree.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct Turn {
    /// [`Client::id`].
    pub id: u64,
    /// The connection that was read from (`struct sock *`).
    pub sk: u64,
    /// See [`turn`].
    pub kind: u32,
    /// [`Conn::number`](crate::Conn::number) of the attempt.
    pub number: u16,
    /// 1 if an attempt of that request has failed.
    pub retry: u16,
}

impl Turn {
    /// Nothing yet.
    pub const NOTHING: Self = Self { id: 0, sk: 0, kind: turn::NOTHING, number: 0, retry: 0 };
}

/// A client's request that is not answered yet.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct Client {
    /// The client's socket (`struct sock *`).
    pub sk: u64,
    /// A sum of all other fields: a place that two CPUs wrote to at a time holds nothing.
    pub check: u64,
    /// When its first bytes were read; names the request among those of its worker.
    pub id: u64,
    /// Where they were read to.
    pub buf: u64,
    /// The worker.
    pub tgid: u32,
    /// How many bytes the first read asked for.
    pub asked: u32,
    /// How many have been read since, wherever to.
    pub received: u32,
    /// `tcp_sock.write_seq` then: as long as it stays, nothing has been answered.
    pub write_seq: u32,
    /// `tcp_sock.copied_seq` after the last read.
    pub copied_seq: u32,
    /// How many bytes the first read of the connection asked for; 0 unknown.
    pub buffer: u32,
    /// How many of the first bytes were free of NULs when they were read.
    pub clean: u32,
    /// [`client_flag`] bits.
    pub flags: u32,
}

/// A failed attempt whose socket is not closed yet.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct Failed {
    /// The attempt's socket (`struct sock *`).
    pub sk: u64,
    /// As in [`Client`].
    pub check: u64,
    /// The request.
    pub id: u64,
    /// [`Conn::start_ns`](crate::Conn::start_ns).
    pub start_ns: u64,
    /// The worker.
    pub tgid: u32,
    /// [`Conn::number`](crate::Conn::number).
    pub number: u32,
}

/// The request that failed attempts belong to, sent when it is answered; the request's first bytes follow.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct Request {
    /// [`kind::REQUEST`](crate::kind::REQUEST).
    pub kind: u32,
    /// [`client_flag`] bits.
    pub flags: u32,
    /// The worker.
    pub tgid: u32,
    /// Status of the answer; 0 if it cannot be read.
    pub status: u16,
    /// The client's port.
    pub client_port: u16,
    /// When it was answered.
    pub time_ns: u64,
    /// [`Client::id`].
    pub id: u64,
    /// The client's address.
    pub client: Addr,
    /// The address that the client connected to.
    pub local: Addr,
    /// Bytes that follow.
    pub len: u32,
    /// [`Client::clean`].
    pub clean: u32,
    /// The port that the client connected to.
    pub local_port: u16,
    /// Padding.
    pub _pad: [u16; 3],
}

/// A read of a worker from a UDP socket that failed, or that brought a name server's reply without an answer; the
/// reply's first bytes follow.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct Dns {
    /// [`kind::DNS`](crate::kind::DNS).
    pub kind: u32,
    /// The worker.
    pub tgid: u32,
    /// When it was read.
    pub time_ns: u64,
    /// Whom the socket is connected to.
    pub server: Addr,
    /// Its port.
    pub server_port: u16,
    /// Padding.
    pub _pad: u16,
    /// What the read returned: bytes, or a negative errno.
    pub ret: i32,
    /// Bytes that follow.
    pub len: u32,
    /// Padding.
    pub _pad2: u32,
}

const _: () = {
    assert!(size_of::<Turn>() == 24);
    assert!(size_of::<Dns>() == 48);
    assert!(size_of::<Client>() == 64);
    assert!(size_of::<Failed>() == 40);
    assert!(size_of::<Request>() == 80);
    assert!(CLIENTS.is_power_of_two() && FAILED.is_power_of_two());
};
