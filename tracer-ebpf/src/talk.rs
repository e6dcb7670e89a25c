//! The wire contract of what happens on a connection that stands: one exchange (a request and its response) at a time.

use crate::{ATTEMPT_HEAD, unix};

/// Most bytes of a request that are sent to user space: those that nginx wrote first.
pub const SENT: usize = 256;

/// Most bytes of a response that are kept and sent to user space: those that nginx read first.
pub const GOT: usize = 512;

/// Places for the beginnings of responses, by socket; one that finds its place taken drives the other out. A power of two.
pub const HEADS: u32 = 4096;

/// Bits of [`Talk::flags`].
pub mod talk_flag {
    /// nginx reads and writes of this connection are seen: a field that is 0 did not happen.
    pub const WATCHED: u32 = 1 << 0;
    /// The connection was there before why502: earlier exchanges are unknown.
    pub const FOUND: u32 = 1 << 1;
    /// nginx has read the end of the stream (a read returned 0), not only looked whether it is there (MSG_PEEK).
    pub const EOF: u32 = 1 << 2;
    /// The last bytes that were read end a chunked body (RFC 9112, 7.1): `0\r\n\r\n`.
    pub const LAST_CHUNK: u32 = 1 << 3;
    /// The first bytes that were written are a TLS record.
    pub const TLS: u32 = 1 << 4;
    /// More than a handshake has been written through TLS, as far as sizes tell: a request is out.
    pub const TLS_DATA: u32 = 1 << 5;
    /// What nginx wrote last, after its last read, is a TLS alert (close_notify, as a rule).
    pub const TLS_BYE: u32 = 1 << 6;
    /// nginx has read the whole header of the response, by its own word.
    pub const HEADER: u32 = 1 << 7;
    /// The record was made when the response began, not when the connection ended: the server itself answered with an
    /// error (5xx).
    pub const SAID_5XX: u32 = 1 << 8;
    /// nginx has noted 502 or 504 of its own ([`Talk::answered`](super::Talk::answered)) while the response, by what the kernel looks
    /// at, was whole.
    pub const ANSWERED_BAD: u32 = 1 << 9;
    /// The kernel side saw a whole response (by its length, or its last chunk).
    pub const WHOLE: u32 = 1 << 10;
    /// Unread bytes were thrown away by the close.
    pub const UNREAD: u32 = 1 << 11;
    /// A unix socket: counters of TCP are 0.
    pub const UNIX: u32 = 1 << 12;
    /// nginx closed the connection before the response was whole, and its client had left.
    pub const CLIENT_LEFT: u32 = 1 << 15;
    /// The connection ended (RST, retransmissions that ran out) and nginx has not closed it yet.
    pub const ENDED: u32 = 1 << 16;
    /// FastCGI: the last bytes that were read are an END_REQUEST record.
    pub const END_REQUEST: u32 = 1 << 17;
    /// With [`FOUND`]: the exchange at work, if one is, began before why502, and its first bytes were not seen. Without
    /// [`Talk::sent_ns`](super::Talk::sent_ns) it is not known whether one is.
    pub const BEFORE: u32 = 1 << 18;
    /// nginx itself has told its log of an error of this connection, and a uprobe has seen it.
    pub const SAID_ERROR: u32 = 1 << 19;
    /// nginx has looked at the idle connection (MSG_PEEK) and found its end.
    pub const LOOKED: u32 = 1 << 20;
    /// The server itself answered with an error (5xx), which was seen only as nginx closed the connection.
    pub const SAID_5XX_LATE: u32 = 1 << 21;
    /// nginx was asked for the request as the connection ended: [`HEADER`], [`CLIENT_LEFT`] and
    /// [`Talk::answered`](super::Talk::answered) hold.
    pub const ASKED: u32 = 1 << 22;
    /// All of the response is among its kept bytes so far, and [`LAST_CHUNK`] not yet looked for.
    pub const KEPT: u32 = 1 << 23;
    /// What nginx speaks, by the first bytes of the connection: see [`proto`](super::proto).
    pub const PROTO: u32 = 7 << 24;
    /// How far [`PROTO`] is from the right.
    pub const PROTO_SHIFT: u32 = 24;
}

/// Protocols, told by the first bytes that nginx writes to a connection.
pub mod proto {
    /// None of the following.
    pub const OTHER: u32 = 0;
    /// HTTP/1: a method and a space.
    pub const HTTP: u32 = 1;
    /// TLS.
    pub const TLS: u32 = 2;
    /// FastCGI: a BEGIN_REQUEST record.
    pub const FASTCGI: u32 = 3;
    /// HTTP/2: its preface.
    pub const HTTP2: u32 = 4;
    /// memcached: `get `.
    pub const MEMCACHED: u32 = 5;
    /// uwsgi (modifier 0) or scgi (a netstring): one request a connection.
    pub const CGI: u32 = 6;
}

/// The beginning of a response.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct Head {
    /// The connection (`struct sock *`).
    pub sk: u64,
    /// [`Talk::first_read_ns`] of the exchange: another connection may have the same socket later.
    pub of_ns: u64,
    /// Bytes that are kept, at most [`GOT`].
    pub len: u32,
    /// Where the value of Content-Length begins, while it is looked at; 0: nowhere.
    pub length_at: u32,
    /// 1 if there is a Transfer-Encoding.
    pub coded: u32,
    /// Where the header ends, while it is looked at; 0: nowhere.
    pub end_at: u32,
    /// The bytes; the second half is room for what is copied behind them.
    pub bytes: [u8; GOT * 2],
}

/// What is kept of the exchange at work while a connection is open. Times are 0 for what has not happened in this exchange.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct Talk {
    /// The first write of this exchange.
    pub sent_ns: u64,
    /// Its last write.
    pub last_sent_ns: u64,
    /// The first read that brought bytes of its response.
    pub first_read_ns: u64,
    /// The last one.
    pub read_ns: u64,
    /// The peer's FIN arrived (of the connection, not of the exchange).
    pub fin_ns: u64,
    /// nginx learned of the end: a read returned 0 or an error, or a write an error.
    pub told_ns: u64,
    /// `tcp_sock.write_seq` as the peer's FIN or RST arrived, the first of them.
    pub end_seq: u32,
    /// Padding.
    pub _pad2: u32,
    /// Where the first bytes written lie in the worker's memory.
    pub buf: u64,
    /// The first 8 bytes written in this exchange.
    pub first: u64,
    /// The first 16 bytes read.
    pub head: [u64; 2],
    /// `tcp_sock.write_seq` before the first write.
    pub write_seq: u32,
    /// `tcp_sock.copied_seq` then.
    pub copied_seq: u32,
    /// How long the connection had been idle then: since the last read before, microseconds; 0 for the first exchange.
    pub idle_us: u32,
    /// How many bytes lie at [`Talk::buf`].
    pub buf_len: u32,
    /// Exchanges begun on this connection.
    pub requests: u32,
    /// [`talk_flag`] bits.
    pub flags: u32,
    /// The error that nginx was told (negative errno), with [`Talk::told_ns`]; 0 for an end of the stream.
    pub told: i32,
    /// TLS alert that nginx wrote in the clear: level << 8 | description (RFC 8446, 6); 0 if none.
    pub alert: u16,
    /// Status of the response (RFC 9112, 4), as far as the kernel side read it; 0 unknown.
    pub status: u16,
    /// 502 or 504, if nginx has noted that for the attempt, and no header of the server's was whole; else 0.
    pub answered: u16,
    /// TLS alert that the server sent in the clear, as [`Talk::alert`]: the last one.
    pub server_alert: u16,
    /// Padding.
    pub _pad: [u16; 2],
}

/// A connection that stood and failed, or that brought the server's own error; the name of its unix socket if it is one.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct Broken {
    /// As the head of an [`Attempt`](crate::Attempt), with [`kind::TALK`](crate::kind::TALK) and `ESTABLISHED`.
    pub head: [u64; ATTEMPT_HEAD / 8],
    /// The exchange.
    pub talk: Talk,
    /// Bytes written in this exchange.
    pub sent_bytes: u32,
    /// Bytes of its response that nginx has read.
    pub got_bytes: u32,
    /// Bytes written that the peer's stack has not acknowledged (`write_seq - snd_una`), a FIN of nginx's left out.
    pub unacked: u32,
    /// Bytes that had arrived and that nginx did not read.
    pub unread: u32,
    /// `tcp_sock.total_retrans`: segments sent again in the connection's life.
    pub total_retrans: u32,
    /// `tcp_sock.srtt_us`, microseconds.
    pub srtt_us: u32,
    /// Bytes in [`Broken::sent`].
    pub sent_len: u16,
    /// Bytes in [`Broken::got`].
    pub got_len: u16,
    /// Bytes in [`Broken::name`].
    pub name_len: u16,
    /// Padding.
    pub _pad: u16,
    /// The beginning of what nginx wrote.
    pub sent: [u8; SENT],
    /// The beginning of what it read.
    pub got: [u8; GOT],
    /// As in [`Unix`](unix::Unix); only with [`talk_flag::UNIX`].
    pub name: [u8; unix::NAME + 4],
}

/// A process closed the far end of a watched connection while it was ending, soon after a fatal signal, or
/// before it had sent as much as an answer takes.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct Death {
    /// [`kind::DEATH`](crate::kind::DEATH).
    pub kind: u32,
    /// The process (thread group id).
    pub tgid: u32,
    /// When its end of the connection was closed.
    pub time_ns: u64,
    /// The watched connection (`struct sock *`); 0 if only its addresses are known.
    pub sk: u64,
    /// nginx's address of it.
    pub saddr: crate::Addr,
    /// The far end's address.
    pub daddr: crate::Addr,
    /// nginx's port.
    pub sport: u16,
    /// The far end's port.
    pub dport: u16,
    /// `task_struct.exit_code`: status << 8 | 0x80 for a core dump | signal; `u32::MAX`: it was running, perhaps
    /// because of [`Death::signal`] not for long.
    pub exit_code: u32,
    /// Parent's thread group id.
    pub parent: u32,
    /// Who sent it the last fatal signal (thread group id); 0 unknown or the kernel.
    pub sender: u32,
    /// When that was sent; 0 unknown.
    pub signal_ns: u64,
    /// When the process began (`task_struct.start_time`).
    pub start_ns: u64,
    /// 1: the OOM killer chose it.
    pub oom: u32,
    /// That signal; 0 if none was seen.
    pub signal: u32,
    /// `task_struct.comm` of the process.
    pub comm: [u8; 16],
    /// And of the sender.
    pub sender_comm: [u8; 16],
    /// Network namespace of the closed socket (inode); 0 unknown.
    pub netns: u32,
    /// Bytes that it had received and not read, a FIN of nginx's included; 0 for a unix socket.
    pub unread: u32,
    /// When a child of the process ended last; 0 unknown, or not of late. It may have shared the socket.
    pub child_ns: u64,
}

const _: () = {
    assert!(size_of::<Talk>() == 128);
    assert!(size_of::<Broken>() == ATTEMPT_HEAD + 128 + 24 + 8 + SENT + GOT + 112);
    assert!(size_of::<Death>() == 144);
    assert!(HEADS.is_power_of_two());
};
