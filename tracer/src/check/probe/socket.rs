//! The system calls around one connection.

use std::{
    io,
    mem::{self, offset_of},
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    os::fd::{AsRawFd as _, BorrowedFd, FromRawFd as _, OwnedFd},
};

use super::wire::{Ask, Call, Where};
use crate::event::Icmp;

/// A connection that has begun.
pub(super) enum Begun {
    /// It stands already.
    Stands(OwnedFd),
    /// It does not yet.
    OnItsWay(OwnedFd),
}

/// An address as the kernel reads it.
struct Raw {
    storage: libc::sockaddr_storage,
    len: libc::socklen_t,
}

impl Raw {
    fn empty() -> Self {
        // SAFETY: all zeroes is a valid sockaddr_storage (family AF_UNSPEC).
        Self { storage: unsafe { mem::zeroed() }, len: 0 }
    }

    fn of(address: SocketAddr) -> Self {
        let mut raw = Self::empty();
        match address {
            SocketAddr::V4(v4) => {
                let sin = libc::sockaddr_in {
                    sin_family: libc::AF_INET as libc::sa_family_t,
                    sin_port: v4.port().to_be(),
                    sin_addr: libc::in_addr { s_addr: u32::from_ne_bytes(v4.ip().octets()) },
                    sin_zero: [0; 8],
                };
                // SAFETY: sockaddr_storage is large enough for, and aligned as, every address.
                unsafe { (&raw mut raw.storage).cast::<libc::sockaddr_in>().write(sin) };
                raw.len = size_of::<libc::sockaddr_in>() as libc::socklen_t;
            }
            SocketAddr::V6(v6) => {
                let sin6 = libc::sockaddr_in6 {
                    sin6_family: libc::AF_INET6 as libc::sa_family_t,
                    sin6_port: v6.port().to_be(),
                    sin6_flowinfo: 0,
                    sin6_addr: libc::in6_addr { s6_addr: v6.ip().octets() },
                    sin6_scope_id: v6.scope_id(),
                };
                // SAFETY: as above.
                unsafe { (&raw mut raw.storage).cast::<libc::sockaddr_in6>().write(sin6) };
                raw.len = size_of::<libc::sockaddr_in6>() as libc::socklen_t;
            }
        }
        raw
    }

    /// None for a path that does not fit.
    fn path(path: &[u8]) -> Option<Self> {
        let mut raw = Self::empty();
        let mut sun =
            libc::sockaddr_un { sun_family: libc::AF_UNIX as libc::sa_family_t, sun_path: [0; 108] };
        if path.len() >= sun.sun_path.len() {
            return None;
        }
        for (to, from) in sun.sun_path.iter_mut().zip(path) {
            *to = from.cast_signed() as libc::c_char;
        }
        // SAFETY: as above.
        unsafe { (&raw mut raw.storage).cast::<libc::sockaddr_un>().write(sun) };
        // nginx passes the whole structure (ngx_parse_unix_domain_url).
        raw.len = size_of::<libc::sockaddr_un>() as libc::socklen_t;
        Some(raw)
    }

    fn read(&self) -> Option<SocketAddr> {
        match i32::from(self.storage.ss_family) {
            libc::AF_INET => {
                // SAFETY: the family says which structure it is; the storage holds it whole.
                let sin = unsafe { (&raw const self.storage).cast::<libc::sockaddr_in>().read() };
                let ip = Ipv4Addr::from(sin.sin_addr.s_addr.to_ne_bytes());
                Some(SocketAddr::new(ip.into(), u16::from_be(sin.sin_port)))
            }
            libc::AF_INET6 => {
                // SAFETY: as above.
                let sin6 = unsafe { (&raw const self.storage).cast::<libc::sockaddr_in6>().read() };
                let ip = Ipv6Addr::from(sin6.sin6_addr.s6_addr);
                Some(SocketAddr::new(ip.into(), u16::from_be(sin6.sin6_port)))
            }
            _ => None,
        }
    }
}

fn last_errno() -> i32 {
    io::Error::last_os_error().raw_os_error().unwrap_or(0)
}

/// Makes a socket and begins to connect it, as `ngx_event_connect_peer` does; one for datagrams if something is to be asked.
pub(super) fn begin(ask: &Ask) -> Result<Begun, (Call, i32)> {
    let (family, raw) = match &ask.to {
        Where::Tcp(to) => (if to.is_ipv4() { libc::AF_INET } else { libc::AF_INET6 }, Raw::of(*to)),
        Where::Unix(path) => (libc::AF_UNIX, Raw::path(path).ok_or((Call::Connect, libc::ENAMETOOLONG))?),
    };
    let kind = if ask.question.is_some() { libc::SOCK_DGRAM } else { libc::SOCK_STREAM };
    let kind = kind | libc::SOCK_NONBLOCK | libc::SOCK_CLOEXEC;
    // SAFETY: socket takes no pointers.
    let fd = unsafe { libc::socket(family, kind, 0) };
    if fd < 0 {
        return Err((Call::Socket, last_errno()));
    }
    // SAFETY: a new descriptor that nothing else owns.
    let fd = unsafe { OwnedFd::from_raw_fd(fd) };
    // ICMP errors are then kept with their sender. What cannot be set is not seen.
    match family {
        libc::AF_INET => set(&fd, libc::IPPROTO_IP, libc::IP_RECVERR, 1),
        libc::AF_INET6 => set(&fd, libc::IPPROTO_IPV6, libc::IPV6_RECVERR, 1),
        _ => {}
    }
    if let Some(from) = ask.from {
        set(&fd, libc::IPPROTO_IP, libc::IP_BIND_ADDRESS_NO_PORT, 1);
        let raw = Raw::of(SocketAddr::new(from, 0));
        // SAFETY: the pointer is to an address of that length.
        let status = unsafe { libc::bind(fd.as_raw_fd(), (&raw const raw.storage).cast(), raw.len) };
        if status != 0 {
            return Err((Call::Bind, last_errno()));
        }
    }
    // SAFETY: as above.
    let status = unsafe { libc::connect(fd.as_raw_fd(), (&raw const raw.storage).cast(), raw.len) };
    if status == 0 {
        return Ok(Begun::Stands(fd));
    }
    match last_errno() {
        libc::EINPROGRESS => Ok(Begun::OnItsWay(fd)),
        errno => Err((Call::Connect, errno)),
    }
}

fn set(fd: &OwnedFd, level: i32, option: i32, value: i32) {
    let len = size_of::<i32>() as libc::socklen_t;
    // SAFETY: the pointer is to an int of that length.
    unsafe { libc::setsockopt(fd.as_raw_fd(), level, option, (&raw const value).cast(), len) };
}

/// Sends a datagram; the errno if that fails.
pub(super) fn send(fd: BorrowedFd<'_>, bytes: &[u8]) -> Result<(), i32> {
    // SAFETY: the pointer is to that many bytes.
    let sent = unsafe { libc::send(fd.as_raw_fd(), bytes.as_ptr().cast(), bytes.len(), libc::MSG_DONTWAIT) };
    if sent < 0 { Err(last_errno()) } else { Ok(()) }
}

/// Receives a datagram, or its beginning: None if there is none; the errno if that fails.
pub(super) fn receive(fd: BorrowedFd<'_>, buffer: &mut [u8]) -> Result<Option<usize>, i32> {
    // SAFETY: the pointer is to that many bytes.
    let got =
        unsafe { libc::recv(fd.as_raw_fd(), buffer.as_mut_ptr().cast(), buffer.len(), libc::MSG_DONTWAIT) };
    match usize::try_from(got) {
        Ok(length) => Ok(Some(length)),
        Err(_) => match last_errno() {
            libc::EAGAIN | libc::EINTR => Ok(None),
            errno => Err(errno),
        },
    }
}

/// `SO_ERROR`, which it clears.
pub(super) fn error(fd: BorrowedFd<'_>) -> i32 {
    let mut value = 0_i32;
    let mut len = size_of::<i32>() as libc::socklen_t;
    // SAFETY: the pointers are to an int and its length.
    unsafe {
        libc::getsockopt(
            fd.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_ERROR,
            (&raw mut value).cast(),
            &raw mut len,
        )
    };
    value
}

/// The socket's own address.
pub(super) fn local(fd: BorrowedFd<'_>) -> Option<SocketAddr> {
    let mut raw = Raw::empty();
    raw.len = size_of::<libc::sockaddr_storage>() as libc::socklen_t;
    // SAFETY: the pointers are to a storage and its size.
    let status =
        unsafe { libc::getsockname(fd.as_raw_fd(), (&raw mut raw.storage).cast(), &raw mut raw.len) };
    if status == 0 { raw.read() } else { None }
}

/// Whether it has a peer.
pub(super) fn stands(fd: BorrowedFd<'_>) -> bool {
    let mut raw = Raw::empty();
    raw.len = size_of::<libc::sockaddr_storage>() as libc::socklen_t;
    // SAFETY: as above.
    unsafe { libc::getpeername(fd.as_raw_fd(), (&raw mut raw.storage).cast(), &raw mut raw.len) == 0 }
}

/// Packets that were sent again.
pub(super) fn retransmits(fd: BorrowedFd<'_>) -> u32 {
    // SAFETY: tcp_info is integers alone, for which zero is valid.
    let mut info: libc::tcp_info = unsafe { mem::zeroed() };
    let mut len = size_of::<libc::tcp_info>() as libc::socklen_t;
    // SAFETY: the pointers are to the structure and its size; the kernel writes no more than that.
    let status = unsafe {
        libc::getsockopt(
            fd.as_raw_fd(),
            libc::IPPROTO_TCP,
            libc::TCP_INFO,
            (&raw mut info).cast(),
            &raw mut len,
        )
    };
    let whole = usize::try_from(len).unwrap_or(0) >= offset_of!(libc::tcp_info, tcpi_total_retrans) + 4;
    if status == 0 && whole { info.tcpi_total_retrans } else { 0 }
}

/// The first ICMP error in the socket's error queue (ip(7), `IP_RECVERR`).
pub(super) fn icmp(fd: BorrowedFd<'_>) -> Option<Icmp> {
    for _ in 0..8 {
        if let Some(icmp) = next_error(fd)? {
            return Some(icmp);
        }
    }
    None
}

/// Room for one control message, aligned as its header.
#[repr(C, align(8))]
struct Control([u8; 256]);

/// The next entry: None if there is none, `Some(None)` if it is something else.
fn next_error(fd: BorrowedFd<'_>) -> Option<Option<Icmp>> {
    let mut data = [0_u8; 64];
    let mut control = Control([0; 256]);
    let mut part = libc::iovec { iov_base: data.as_mut_ptr().cast(), iov_len: data.len() };
    // SAFETY: msghdr is pointers and integers, for which zero is valid.
    let mut message: libc::msghdr = unsafe { mem::zeroed() };
    message.msg_iov = &raw mut part;
    message.msg_iovlen = 1;
    message.msg_control = control.0.as_mut_ptr().cast();
    message.msg_controllen = control.0.len();
    let flags = libc::MSG_ERRQUEUE | libc::MSG_DONTWAIT;
    // SAFETY: the message points to live buffers of the lengths that it says.
    if unsafe { libc::recvmsg(fd.as_raw_fd(), &raw mut message, flags) } < 0 {
        return None;
    }
    let filled = control.0.get(..message.msg_controllen.min(256))?;
    Some(read_control(filled))
}

/// Reads control messages: `cmsghdr`, then `sock_extended_err`, then the sender's address.
fn read_control(mut bytes: &[u8]) -> Option<Icmp> {
    const HEADER: usize = 16;
    const EXTENDED: usize = 16;
    while let Some(length) = bytes.first_chunk::<8>().map(|raw| usize::from_ne_bytes(*raw)) {
        let word = |at: usize| bytes.get(at..at + 4)?.first_chunk::<4>().map(|raw| i32::from_ne_bytes(*raw));
        let (level, kind) = (word(8)?, word(12)?);
        let body = bytes.get(HEADER..length)?;
        let is_error = matches!(
            (level, kind),
            (libc::IPPROTO_IP, libc::IP_RECVERR) | (libc::IPPROTO_IPV6, libc::IPV6_RECVERR)
        );
        if is_error {
            let (origin, kind, code) = (*body.get(4)?, *body.get(5)?, *body.get(6)?);
            let v4 = origin == libc::SO_EE_ORIGIN_ICMP;
            if !v4 && origin != libc::SO_EE_ORIGIN_ICMP6 {
                return None;
            }
            let address = body.get(EXTENDED..)?;
            let sender = if v4 {
                IpAddr::from(*address.get(4..8)?.first_chunk::<4>()?)
            } else {
                IpAddr::from(*address.get(8..24)?.first_chunk::<16>()?).to_canonical()
            };
            return Some(Icmp { kind, code, sender });
        }
        bytes = bytes.get(length.next_multiple_of(8)..)?;
    }
    None
}

/// How many descriptors this process may have, after it has asked for as many as it may.
pub(super) fn room() -> usize {
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: the pointer is to a live structure.
    if unsafe { libc::getrlimit(libc::RLIMIT_NOFILE, &raw mut limit) } != 0 {
        return 64;
    }
    let more = libc::rlimit { rlim_cur: limit.rlim_max, ..limit };
    // SAFETY: as above.
    let raised = unsafe { libc::setrlimit(libc::RLIMIT_NOFILE, &raw const more) } == 0;
    usize::try_from(if raised { more.rlim_cur } else { limit.rlim_cur }).unwrap_or(usize::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn control(origin: u8, level: i32, kind: i32, address: &[u8]) -> Vec<u8> {
        let mut bytes = (16 + 16 + address.len()).to_ne_bytes().to_vec();
        bytes.extend(level.to_ne_bytes());
        bytes.extend(kind.to_ne_bytes());
        bytes.extend([111, 0, 0, 0, origin, 3, 13, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
        bytes.extend(address);
        bytes
    }

    #[test]
    fn an_icmp_error_is_read_with_its_sender() {
        let sin = [2, 0, 0, 0, 10, 0, 0, 7, 0, 0, 0, 0, 0, 0, 0, 0];
        let bytes = control(2, libc::IPPROTO_IP, libc::IP_RECVERR, &sin);
        let wanted = Icmp { kind: 3, code: 13, sender: "10.0.0.7".parse().unwrap() };
        assert_eq!(read_control(&bytes), Some(wanted));
        // One of the socket's own, and one that another option left.
        assert_eq!(read_control(&control(1, libc::IPPROTO_IP, libc::IP_RECVERR, &sin)), None);
        assert_eq!(read_control(&control(2, libc::IPPROTO_IP, libc::IP_TTL, &sin)), None);
        for end in 0..bytes.len() - 8 {
            assert_eq!(read_control(&bytes[..end]), None, "{end}");
        }
    }
}
