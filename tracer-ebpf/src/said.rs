//! The wire contract of uprobes: what nginx itself says of a failed attempt.
//!
//! Where a field of nginx's lies is read from its executable and checked (`tracer::nginx::symbols`), or proven by a
//! mark in nginx's memory; what fits neither is not believed.

use crate::Addr;

/// Masters whose layout can be kept.
pub const LAYOUTS: u32 = 1024;

/// Bits of [`Said::flags`].
pub mod said_flag {
    /// nginx was at a subrequest; the request is its main one.
    pub const SUBREQUEST: u32 = 1 << 0;
    /// nginx writes nothing of it into its log: its level hides it.
    pub const SILENT: u32 = 1 << 1;
    /// The client's connection is TCP, and its addresses are those of the socket.
    pub const CLIENT: u32 = 1 << 2;
    /// There is an upstream connection.
    pub const UPSTREAM: u32 = 1 << 3;
    /// nginx said nothing: its memory was asked as the attempt ended.
    pub const ASKED: u32 = 1 << 4;
    /// The request was led elsewhere between its attempts (`X-Accel-Redirect`, `error_page`): their number tells nothing.
    pub const LED: u32 = 1 << 5;
    /// It is about a session of the stream module, which has neither request line, host nor location.
    pub const SESSION: u32 = 1 << 6;
}

/// Offsets in an nginx's `ngx_http_request_t`.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Layout {
    /// `upstream`.
    pub upstream: u32,
    /// `headers_in.host`.
    pub host: u32,
    /// `start_sec`, followed by `start_msec`, `method`, `http_version`, `request_line`.
    pub start_sec: u32,
    /// Padding.
    pub _pad: u32,
}

/// Room for the text that nginx logs.
pub const FORMAT: usize = 64;
/// Room for what nginx was doing.
pub const ACTION: usize = 40;
/// Room for the file of the `server`.
pub const FILE: usize = 256;
/// Room for each of the names.
pub const NAME: usize = 128;
/// Room for the request line, and for what stands behind it in the client's buffer: the header.
pub const LINE: usize = 1024;

/// What nginx said. Of each text there is one byte less than its room at most; its length is the whole one's.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct Said {
    /// [`kind::SAID`](crate::kind::SAID).
    pub kind: u32,
    /// [`said_flag`] bits.
    pub flags: u32,
    /// The worker.
    pub tgid: u32,
    /// The errno that it says; 0 for none.
    pub err: i32,
    /// When.
    pub time_ns: u64,
    /// The upstream connection's `struct sock *`; 0 if there is none, or none of TCP.
    pub upstream_sk: u64,
    /// [`Attempt::start_ns`](crate::Attempt::start_ns) of that connection; 0 if it is not known.
    pub upstream_start_ns: u64,
    /// The request's address in the worker: with when it began, a name for it.
    pub request: u64,
    /// When it began: seconds, milliseconds.
    pub began: [u64; 2],
    /// What nginx has noted of the attempt (`ngx_http_upstream_state_t`): `status`, the server's or 502 and 504 of its own; 0 if
    /// it is not set.
    pub status: u32,
    /// `header_time`, milliseconds; `u32::MAX` if the response's header was not whole.
    pub header_ms: u32,
    /// Where the text is in the worker.
    pub format_at: u64,
    /// Where the words of what nginx was doing are in the worker.
    pub action_at: u64,
    /// The text's second argument.
    pub number: u64,
    /// Elements of `ngx_http_request_t.upstream_states`: one for each try, that of trying nobody included; more where the request
    /// was led elsewhere.
    pub states: u64,
    /// Line of the `server`.
    pub server_line: u64,
    /// The client's address.
    pub client: Addr,
    /// The address that the client connected to.
    pub local: Addr,
    /// Its port.
    pub client_port: u16,
    /// The port that it connected to.
    pub local_port: u16,
    /// Lengths: text, file, location, request line, host, subject, peer, action.
    pub lens: [u16; 8],
    /// Bytes in [`Said::line`]: the request line and what follows it.
    pub head_len: u16,
    /// Padding.
    pub _pad: u16,
    /// As in [`Moment::mark`](crate::request::Moment::mark).
    pub mark: u32,
    /// The peer's address, a `struct sockaddr`.
    pub peer: [u8; 28],
    /// The text as it stands in the program, without its arguments.
    pub format: [u8; FORMAT],
    /// What nginx was doing, in its words (`ngx_log_t.action`).
    pub action: [u8; ACTION],
    /// File of the `server`.
    pub file: [u8; FILE],
    /// Name of the `location`.
    pub location: [u8; NAME],
    /// The request line.
    pub line: [u8; LINE],
    /// The Host header.
    pub host: [u8; NAME],
    /// The text's first argument, where that is a string.
    pub subject: [u8; NAME],
    /// The peer's name: address or upstream.
    pub peer_name: [u8; NAME],
}

const _: () = {
    assert!(size_of::<Layout>() == 16);
    assert!(
        size_of::<Said>() == 16 + 12 * 8 + 32 + 4 + 16 + 8 + 28 + FORMAT + ACTION + FILE + 4 * NAME + LINE
    );
    assert!(FORMAT.is_power_of_two() && FILE.is_power_of_two());
    assert!(NAME.is_power_of_two() && LINE.is_power_of_two());
};
