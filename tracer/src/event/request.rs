//! Clients' requests and name servers' replies.

use std::net::SocketAddr;

use tracer_ebpf::{self as wire, kind};

use super::{DecodeError, Event, Wire, ip, read};

impl Wire for wire::request::Answer {}
impl Wire for wire::request::Dns {}

/// nginx answers a request of which an attempt failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Answered {
    /// Which.
    pub request: Place,
    /// When, CLOCK_MONOTONIC ns.
    pub time_ns: u64,
    /// Status of the answer.
    pub status: u16,
    /// nginx makes the answer by itself; else a server gave it.
    pub own: bool,
}

/// A request in the memory of its worker, and when it began (seconds, milliseconds): a name among those of one run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Place {
    /// Worker's PID in the initial PID namespace.
    pub worker: u32,
    /// Where it lies, which the next one may use within the same millisecond.
    pub address: u64,
    /// When it began.
    pub began: [u64; 2],
    /// What tells it from the next request at that address ([`wire::request::Moment::mark`]).
    pub mark: u32,
}

impl Answered {
    pub(super) fn of(answer: &wire::request::Answer) -> Self {
        Self {
            request: Place {
                worker: answer.tgid,
                address: answer.request,
                began: answer.moment.began,
                mark: answer.moment.mark as u32,
            },
            time_ns: answer.time_ns,
            status: u16::try_from(answer.status).unwrap_or(0),
            own: answer.own != 0,
        }
    }
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
