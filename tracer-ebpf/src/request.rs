//! The wire contract of requests and of what name servers say.

use crate::Addr;

/// Failed attempts whose sockets nginx has not closed yet; one that finds its place taken drives the other out, whose request
/// then stays unknown.
pub const FAILED: u32 = 4096;

/// Requests whose answer is waited for at a time.
pub const AWAITED: u32 = 4096;

/// Most bytes of a name server's reply that are sent to user space: header, question and a little more.
pub const MOST_DNS: usize = 511;

/// A failed attempt whose socket is not closed yet.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct Failed {
    /// The attempt's socket (`struct sock *`).
    pub sk: u64,
    /// A sum of the other fields but the last: a place that two CPUs wrote to at a time holds nothing.
    pub check: u64,
    /// [`Conn::nginx`](crate::Conn::nginx).
    pub nginx: u64,
    /// [`Conn::start_ns`](crate::Conn::start_ns).
    pub start_ns: u64,
    /// The worker.
    pub tgid: u64,
    /// 1 if nginx has told of it by itself.
    pub said: u64,
}

/// Which of the requests that lie at one address is meant: nginx uses the memory of one for the next.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct Moment {
    /// As in [`Said::began`](crate::said::Said::began).
    pub began: [u64; 2],
    /// A sum of what has been read of the client's connection (`tcp_sock.copied_seq`) and of where the request line lies: another
    /// for the next request on it, also if both came in one piece. 0 for HTTP/2, where others' bytes move it.
    pub mark: u64,
}

/// A request whose answer is waited for.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct Awaited {
    /// The worker.
    pub tgid: u64,
    /// The request's address in it.
    pub request: u64,
}

/// What nginx answers a request with of which an attempt failed.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct Answer {
    /// [`kind::ANSWER`](crate::kind::ANSWER).
    pub kind: u32,
    /// The worker.
    pub tgid: u32,
    /// When.
    pub time_ns: u64,
    /// As in [`Said::request`](crate::said::Said::request).
    pub request: u64,
    /// Which of those that lie there.
    pub moment: Moment,
    /// The status.
    pub status: u32,
    /// 1: nginx makes the answer by itself; 0: a server gave it.
    pub own: u32,
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
    assert!(size_of::<Dns>() == 48);
    assert!(size_of::<Failed>() == 48);
    assert!(size_of::<Awaited>() == 16);
    assert!(size_of::<Answer>() == 56);
    assert!(FAILED.is_power_of_two());
};
