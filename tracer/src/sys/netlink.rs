//! One exchange loop for all netlink families, and bounds-checked access to what comes back.
//!
//! Written by hand because the queries need what the crates leave out (the filter bytecode of inet_diag,
//! `RTM_F_FIB_MATCH`, ctnetlink as a whole) and because one loop is easier to trust than three crates' worth.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::time::{Duration, Instant};

use super::error::{Error, Result};
use super::netns::NetNs;

/// How long the kernel may take for one datagram; it answers from memory, so this is never met in practice.
const RECEIVE_LIMIT: Duration = Duration::from_secs(1);
/// How long a whole dump may take: a million sockets or routes fit.
const DUMP_LIMIT: Duration = Duration::from_secs(3);
/// The kernel builds dumps in buffers of at most 32 KiB (netlink_recvmsg, since 4.4).
const BUFFER: usize = 32 * 1024;
/// Tries of a dump whose table changed meanwhile.
const ATTEMPTS: u32 = 4;

const HEADER: usize = 16;
const NLMSG_ERROR: u16 = 2;
const NLMSG_DONE: u16 = 3;
/// Types below this are netlink's own.
const NLMSG_MIN_TYPE: u16 = 16;
const REQUEST: u16 = 0x1;
const ACK: u16 = 0x4;
const DUMP: u16 = 0x300;
const DUMP_INTR: u16 = 0x10;

/// A netlink socket inside some namespace.
pub(super) struct Socket {
    fd: OwnedFd,
    buffer: Vec<u8>,
    sequence: u32,
}

/// How an exchange ended.
enum End {
    Complete,
    Interrupted,
}

impl Socket {
    /// Opens one; `protocol` is NETLINK_*.
    pub(super) fn open(ns: &NetNs, protocol: i32) -> Result<Self> {
        let fd = ns.socket(libc::AF_NETLINK, libc::SOCK_RAW, protocol)?;
        let limit = libc::timeval { tv_sec: RECEIVE_LIMIT.as_secs().cast_signed(), tv_usec: 0 };
        set_option(&fd, libc::SOL_SOCKET, libc::SO_RCVTIMEO, &limit)?;
        Ok(Self { fd, buffer: vec![0; BUFFER], sequence: 0 })
    }

    /// Makes dumps honour the fields of the request (kernel 4.20); ignored where it is unknown.
    pub(super) fn strict(self) -> Self {
        let _ = set_option(&self.fd, libc::SOL_NETLINK, libc::NETLINK_GET_STRICT_CHK, &1_i32);
        self
    }

    /// One request, one answer (or none, when the kernel only acknowledges).
    pub(super) fn get<T>(
        &mut self,
        action: &str,
        kind: u16,
        body: &Body,
        parse: impl Fn(&[u8]) -> Option<T>,
    ) -> Result<Option<T>> {
        let mut found = None;
        self.exchange(action, kind, REQUEST | ACK, body, |payload| {
            found = found.take().or_else(|| parse(payload));
        })?;
        Ok(found)
    }

    /// A dump, folded into `T`. It starts again when the table changed while it ran.
    pub(super) fn dump<T>(
        &mut self,
        action: &str,
        kind: u16,
        body: &Body,
        start: impl Fn() -> T,
        mut each: impl FnMut(&mut T, &[u8]),
    ) -> Result<T> {
        for _ in 0..ATTEMPTS {
            let mut value = start();
            match self.exchange(action, kind, REQUEST | DUMP, body, |payload| each(&mut value, payload))? {
                End::Complete => return Ok(value),
                End::Interrupted => {}
            }
        }
        Err(Error::Interrupted { action: action.to_owned() })
    }

    /// Sends messages that the kernel takes all or none (nfnetlink's batch), and waits for its answer to each.
    pub(super) fn batch(
        &mut self,
        action: &str,
        subsystem: u16,
        messages: &[(u16, u16, Body)],
    ) -> Result<()> {
        const BATCH_BEGIN: u16 = 0x10;
        const BATCH_END: u16 = 0x11;
        let edge = Body::new(&[0, 0, (subsystem >> 8).to_be_bytes()[0], (subsystem >> 8).to_be_bytes()[1]]);
        let mut bytes = edge.message(BATCH_BEGIN, REQUEST, self.sequence);
        let first = self.sequence.wrapping_add(1);
        for (kind, flags, body) in messages {
            self.sequence = self.sequence.wrapping_add(1);
            bytes.extend(body.message(*kind, REQUEST | ACK | flags, self.sequence));
        }
        let last = self.sequence;
        self.sequence = self.sequence.wrapping_add(1);
        bytes.extend(edge.message(BATCH_END, REQUEST, self.sequence));
        send(&self.fd, &bytes).map_err(|source| Error::os(action, source))?;
        let deadline = Instant::now() + DUMP_LIMIT;
        loop {
            let datagram = match receive(&self.fd, &mut self.buffer) {
                Ok(Some(datagram)) => datagram,
                Ok(None) if Instant::now() < deadline => continue,
                Ok(None) => return Err(Error::errno_of(action, libc::ETIMEDOUT)),
                Err(error) => return Err(Error::os(action, error)),
            };
            for message in Messages(datagram) {
                let ours = message.sequence.wrapping_sub(first) <= last.wrapping_sub(first);
                if message.kind != NLMSG_ERROR || !ours {
                    continue;
                }
                let status = i32_at(message.payload, 0).unwrap_or(0);
                if status < 0 {
                    return Err(Error::errno_of(action, status.saturating_neg()));
                }
                if message.sequence == last {
                    return Ok(());
                }
            }
        }
    }

    /// From now on the kernel sends what happens in that group; the socket does not wait any more.
    pub(super) fn subscribe(&mut self, group: u32) -> Result<()> {
        const NETLINK_ADD_MEMBERSHIP: i32 = 1;
        // Without a port of its own it would count as the sender of what the kernel tells all, and be left out.
        // SAFETY: sockaddr_nl is plain integers, for which zero is valid.
        let mut own: libc::sockaddr_nl = unsafe { std::mem::zeroed() };
        own.nl_family = u16::try_from(libc::AF_NETLINK).unwrap_or(0);
        let length = libc::socklen_t::try_from(size_of_val(&own)).unwrap_or(0);
        // SAFETY: the address is live and `length` is its size.
        if unsafe { libc::bind(self.fd.as_raw_fd(), (&raw const own).cast(), length) } != 0 {
            return Err(Error::os("bind a netlink socket", io::Error::last_os_error()));
        }
        set_option(&self.fd, libc::SOL_NETLINK, NETLINK_ADD_MEMBERSHIP, &group)?;
        // SAFETY: fcntl(2) with F_SETFL takes no pointers.
        let status = unsafe { libc::fcntl(self.fd.as_raw_fd(), libc::F_SETFL, libc::O_NONBLOCK) };
        if status == 0 { Ok(()) } else { Err(Error::os("set a socket option", io::Error::last_os_error())) }
    }

    /// The messages of that kind that have come since; at most `most` datagrams.
    pub(super) fn events(&mut self, kind: u16, most: usize, mut each: impl FnMut(&[u8])) {
        for _ in 0..most {
            match receive(&self.fd, &mut self.buffer) {
                Ok(Some(datagram)) => {
                    Messages(datagram).filter(|m| m.kind == kind).for_each(|m| each(m.payload));
                }
                Ok(None) => {}
                // Nothing more; or some were lost, which is no harm: others come.
                Err(_) => return,
            }
        }
    }

    fn exchange(
        &mut self,
        action: &str,
        kind: u16,
        flags: u16,
        body: &Body,
        mut each: impl FnMut(&[u8]),
    ) -> Result<End> {
        let deadline = Instant::now() + DUMP_LIMIT;
        let timeout = || Error::Timeout {
            action: action.to_owned(),
            limit_ms: u64::try_from(DUMP_LIMIT.as_millis()).unwrap_or(u64::MAX),
        };
        self.sequence = self.sequence.wrapping_add(1);
        send(&self.fd, &body.message(kind, flags, self.sequence))
            .map_err(|source| Error::os(action, source))?;
        let mut interrupted = false;
        loop {
            if Instant::now() > deadline {
                return Err(timeout());
            }
            let datagram = match receive(&self.fd, &mut self.buffer) {
                Ok(Some(datagram)) => datagram,
                Ok(None) => continue,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Err(timeout()),
                Err(error) => return Err(Error::os(action, error)),
            };
            for message in Messages(datagram) {
                if message.sequence != self.sequence {
                    continue;
                }
                interrupted |= message.flags & DUMP_INTR != 0;
                match message.kind {
                    NLMSG_DONE | NLMSG_ERROR => {
                        // Both carry an errno; older dumps end with an empty NLMSG_DONE.
                        let status = i32_at(message.payload, 0).unwrap_or(0);
                        if status < 0 {
                            return Err(Error::errno_of(action, status.saturating_neg()));
                        }
                        return Ok(if interrupted { End::Interrupted } else { End::Complete });
                    }
                    kind if kind < NLMSG_MIN_TYPE => {}
                    _ => each(message.payload),
                }
            }
        }
    }
}

fn set_option<T>(fd: &OwnedFd, level: i32, name: i32, value: &T) -> Result<()> {
    let length = libc::socklen_t::try_from(size_of::<T>()).unwrap_or(0);
    // SAFETY: `value` is a live T and `length` is its size.
    let status = unsafe { libc::setsockopt(fd.as_raw_fd(), level, name, (&raw const *value).cast(), length) };
    if status == 0 { Ok(()) } else { Err(Error::os("set a socket option", io::Error::last_os_error())) }
}

fn send(fd: &OwnedFd, bytes: &[u8]) -> io::Result<()> {
    // SAFETY: the pointer and the length are those of one live slice.
    let sent = unsafe { libc::send(fd.as_raw_fd(), bytes.as_ptr().cast(), bytes.len(), 0) };
    match usize::try_from(sent) {
        Ok(count) if count == bytes.len() => Ok(()),
        Ok(_) => Err(io::ErrorKind::WriteZero.into()),
        Err(_) => Err(io::Error::last_os_error()),
    }
}

/// One datagram; `None` when it is to be ignored (a signal came, or it is not from the kernel).
fn receive<'a>(fd: &OwnedFd, buffer: &'a mut [u8]) -> io::Result<Option<&'a [u8]>> {
    // SAFETY: sockaddr_nl is plain integers, for which zero is valid.
    let mut from: libc::sockaddr_nl = unsafe { std::mem::zeroed() };
    let mut length = libc::socklen_t::try_from(size_of_val(&from)).unwrap_or(0);
    // SAFETY: buffer and address are live for the call, and their true sizes are given. MSG_TRUNC only makes
    // the return value the datagram's full length.
    let count = unsafe {
        libc::recvfrom(
            fd.as_raw_fd(),
            buffer.as_mut_ptr().cast(),
            buffer.len(),
            libc::MSG_TRUNC,
            (&raw mut from).cast(),
            &raw mut length,
        )
    };
    let Ok(count) = usize::try_from(count) else {
        let error = io::Error::last_os_error();
        return if error.kind() == io::ErrorKind::Interrupted { Ok(None) } else { Err(error) };
    };
    if from.nl_pid != 0 {
        return Ok(None);
    }
    buffer.get(..count).map(Some).ok_or_else(|| io::Error::from_raw_os_error(libc::EMSGSIZE))
}

struct Message<'a> {
    kind: u16,
    flags: u16,
    sequence: u32,
    payload: &'a [u8],
}

struct Messages<'a>(&'a [u8]);

impl<'a> Iterator for Messages<'a> {
    type Item = Message<'a>;

    fn next(&mut self) -> Option<Message<'a>> {
        let bytes = self.0;
        let length = usize::try_from(u32_at(bytes, 0)?).ok()?;
        let payload = bytes.get(HEADER..length)?;
        let message = Message {
            kind: u16_at(bytes, 4)?,
            flags: u16_at(bytes, 6)?,
            sequence: u32_at(bytes, 8)?,
            payload,
        };
        self.0 = bytes.get(align(length)..).unwrap_or_default();
        Some(message)
    }
}

/// The attributes in a message or in a nested attribute. Stops at the first that does not fit.
pub(super) struct Attrs<'a>(pub(super) &'a [u8]);

impl<'a> Iterator for Attrs<'a> {
    type Item = (u16, &'a [u8]);

    fn next(&mut self) -> Option<(u16, &'a [u8])> {
        let length = usize::from(u16_at(self.0, 0)?);
        // The two top bits say "nested" and "network byte order".
        let kind = u16_at(self.0, 2)? & 0x3fff;
        let value = self.0.get(4..length)?;
        self.0 = self.0.get(align(length)..).unwrap_or_default();
        Some((kind, value))
    }
}

/// The attributes after a fixed header of `skip` bytes.
pub(super) fn attrs(payload: &[u8], skip: usize) -> Attrs<'_> {
    Attrs(payload.get(align(skip)..).unwrap_or_default())
}

/// The first attribute of a kind.
pub(super) fn attr(bytes: &[u8], wanted: u16) -> Option<&[u8]> {
    Attrs(bytes).find_map(|(kind, value)| (kind == wanted).then_some(value))
}

fn align(length: usize) -> usize {
    length.saturating_add(3) & !3
}

/// A request's payload.
pub(super) struct Body(Vec<u8>);

impl Body {
    /// Starts with the family's fixed header.
    pub(super) fn new(header: &[u8]) -> Self {
        let mut bytes = vec![0; HEADER];
        bytes.extend_from_slice(header);
        Self(bytes)
    }

    /// Adds an attribute. Values are far below the 64 KiB that an attribute can hold.
    pub(super) fn attr(mut self, kind: u16, value: &[u8]) -> Self {
        self.push(kind, value);
        self
    }

    /// Adds an attribute that holds attributes.
    pub(super) fn nest(mut self, kind: u16, fill: impl FnOnce(Self) -> Self) -> Self {
        let inner = fill(Self(Vec::new()));
        self.push(kind | 0x8000, &inner.0);
        self
    }

    fn push(&mut self, kind: u16, value: &[u8]) {
        self.0.resize(align(self.0.len()), 0);
        let length = u16::try_from(value.len().saturating_add(4)).unwrap_or(u16::MAX);
        self.0.extend_from_slice(&length.to_ne_bytes());
        self.0.extend_from_slice(&kind.to_ne_bytes());
        self.0.extend_from_slice(value);
        self.0.resize(align(self.0.len()), 0);
    }

    pub(super) fn message(&self, kind: u16, flags: u16, sequence: u32) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(self.0.len());
        bytes.extend_from_slice(&u32::try_from(self.0.len()).unwrap_or(0).to_ne_bytes());
        bytes.extend_from_slice(&kind.to_ne_bytes());
        bytes.extend_from_slice(&flags.to_ne_bytes());
        bytes.extend_from_slice(&sequence.to_ne_bytes());
        bytes.extend_from_slice(&0_u32.to_ne_bytes());
        bytes.extend_from_slice(self.0.get(HEADER..).unwrap_or_default());
        bytes
    }
}

fn array_at<const N: usize>(bytes: &[u8], offset: usize) -> Option<[u8; N]> {
    bytes.get(offset..offset.checked_add(N)?)?.try_into().ok()
}

/// A byte at an offset.
pub(super) fn u8_at(bytes: &[u8], offset: usize) -> Option<u8> {
    bytes.get(offset).copied()
}

/// A host-order u16 at an offset.
pub(super) fn u16_at(bytes: &[u8], offset: usize) -> Option<u16> {
    array_at(bytes, offset).map(u16::from_ne_bytes)
}

/// A network-order u16 at an offset.
pub(super) fn be16_at(bytes: &[u8], offset: usize) -> Option<u16> {
    array_at(bytes, offset).map(u16::from_be_bytes)
}

/// A host-order u32 at an offset.
pub(super) fn u32_at(bytes: &[u8], offset: usize) -> Option<u32> {
    array_at(bytes, offset).map(u32::from_ne_bytes)
}

/// A host-order u64 at an offset.
pub(super) fn u64_at(bytes: &[u8], offset: usize) -> Option<u64> {
    array_at(bytes, offset).map(u64::from_ne_bytes)
}

/// A network-order u32 at an offset.
pub(super) fn be32_at(bytes: &[u8], offset: usize) -> Option<u32> {
    array_at(bytes, offset).map(u32::from_be_bytes)
}

/// A host-order i32 at an offset.
pub(super) fn i32_at(bytes: &[u8], offset: usize) -> Option<i32> {
    array_at(bytes, offset).map(i32::from_ne_bytes)
}

/// The IPv4 or IPv6 address at an offset.
pub(super) fn ip_at(bytes: &[u8], offset: usize, family: u8) -> Option<IpAddr> {
    match i32::from(family) {
        libc::AF_INET => array_at::<4>(bytes, offset).map(|octets| Ipv4Addr::from(octets).into()),
        libc::AF_INET6 => array_at::<16>(bytes, offset).map(|octets| Ipv6Addr::from(octets).into()),
        _ => None,
    }
}

/// An address whose family follows from its length.
pub(super) fn ip(bytes: &[u8]) -> Option<IpAddr> {
    match bytes.len() {
        4 => ip_at(bytes, 0, AF_INET),
        16 => ip_at(bytes, 0, AF_INET6),
        _ => None,
    }
}

/// The bytes of an address.
pub(super) fn octets(ip: IpAddr) -> Vec<u8> {
    match ip {
        IpAddr::V4(ip) => ip.octets().to_vec(),
        IpAddr::V6(ip) => ip.octets().to_vec(),
    }
}

/// AF_INET as netlink headers hold it.
pub(super) const AF_INET: u8 = 2;
/// AF_INET6 as netlink headers hold it.
pub(super) const AF_INET6: u8 = 10;

/// The address family of an address.
pub(super) fn family(ip: IpAddr) -> u8 {
    if ip.is_ipv4() { AF_INET } else { AF_INET6 }
}

/// A NUL-terminated name.
pub(super) fn name(bytes: &[u8]) -> String {
    super::proc::printable(bytes.split(|&byte| byte == 0).next().unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_and_attributes_round_trip() {
        let body = Body::new(&[1, 2, 3, 4]).attr(5, b"abc").nest(6, |inner| inner.attr(7, &[9]));
        let bytes = [body.message(20, REQUEST, 3), body.message(21, DUMP_INTR, 3)].concat();
        let messages: Vec<_> = Messages(&bytes).collect();
        assert_eq!(messages.len(), 2);
        assert_eq!((messages[1].kind, messages[1].flags, messages[1].sequence), (21, DUMP_INTR, 3));
        let found: Vec<_> = attrs(messages[0].payload, 4).collect();
        assert_eq!(found[0], (5, &b"abc"[..]));
        assert_eq!(attr(found[1].1, 7), Some(&[9][..]));
    }

    #[test]
    fn hostile_lengths_end_the_walk() {
        let good = Body::new(&[0; 4]).attr(1, &[1, 2, 3, 4]).message(20, 0, 1);
        for end in 0..good.len() {
            assert!(Messages(&good[..end]).next().is_none(), "{end}");
        }
        for position in 0..good.len() {
            for value in [0, 1, 3, 0x7f, 0xff] {
                let mut bytes = good.clone();
                bytes[position] = value;
                for message in Messages(&bytes).take(100) {
                    assert!(attrs(message.payload, 4).count() < 100);
                }
            }
        }
        assert!(Attrs(&[0, 0, 0, 0]).next().is_none());
        assert!(attrs(&[1, 2], 12).next().is_none());
    }
}
