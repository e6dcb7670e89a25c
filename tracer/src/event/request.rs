//! Clients' requests and name servers' replies.

use std::net::SocketAddr;

use tracer_ebpf::{self as wire, kind};

use super::{DecodeError, Event, Wire, ip, read};

impl Wire for wire::request::Request {}
impl Wire for wire::request::Dns {}

/// A request whose attempts failed has been answered, or its client has left.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Answered {
    /// Worker's PID in the initial PID namespace.
    pub worker: u32,
    /// As [`Attempt::request`](super::Attempt::request).
    pub request: u64,
    /// When, CLOCK_MONOTONIC ns.
    pub time_ns: u64,
    /// Who asked.
    pub client: SocketAddr,
    /// The address that the client connected to; nginx chooses the `server` by it.
    pub local: SocketAddr,
    /// Status of the answer, if it could be read.
    pub status: Option<u16>,
    /// What holds of it, see [`wire::request::client_flag`].
    pub flags: u32,
    /// How many of the first bytes held no NUL when they were read.
    pub clean: u32,
    /// The request's first bytes.
    pub bytes: Vec<u8>,
}

/// A name server's reply without an answer, or a read from it that failed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Dns {
    /// Worker's PID in the initial PID namespace.
    pub worker: u32,
    /// When it was read, CLOCK_MONOTONIC ns.
    pub time_ns: u64,
    /// The name server.
    pub server: SocketAddr,
    /// errno of the read (positive); 0 if it brought a reply.
    pub errno: i32,
    /// The reply's first bytes.
    pub bytes: Vec<u8>,
}

/// Reads a request with the bytes that follow it.
pub(super) fn answered(record: &[u8]) -> Result<Event, DecodeError> {
    let head = read::<wire::request::Request>(record, kind::REQUEST)?;
    let bytes = behind::<wire::request::Request>(record, kind::REQUEST, head.len)?;
    Ok(Event::Answered(Box::new(Answered {
        worker: head.tgid,
        request: head.id,
        time_ns: head.time_ns,
        client: SocketAddr::new(ip(&head.client), head.client_port),
        local: SocketAddr::new(ip(&head.local), head.local_port),
        status: (head.status >= 100).then_some(head.status),
        flags: head.flags,
        clean: head.clean,
        bytes: bytes.to_vec(),
    })))
}

/// Reads what a name server said, with the bytes that follow.
pub(super) fn dns(record: &[u8]) -> Result<Event, DecodeError> {
    let head = read::<wire::request::Dns>(record, kind::DNS)?;
    let bytes = behind::<wire::request::Dns>(record, kind::DNS, head.len)?;
    Ok(Event::Dns(Box::new(Dns {
        worker: head.tgid,
        time_ns: head.time_ns,
        server: SocketAddr::new(ip(&head.server), head.server_port),
        errno: head.ret.saturating_neg().max(0),
        bytes: bytes.to_vec(),
    })))
}

/// The `len` bytes behind a record's fixed part.
fn behind<T: Wire>(record: &[u8], kind: u32, len: u32) -> Result<&[u8], DecodeError> {
    let size = size_of::<T>();
    let need = size.saturating_add(usize::try_from(len).unwrap_or(usize::MAX));
    record.get(size..need).ok_or(DecodeError::Short { kind, len: record.len(), need })
}
