//! The wire contract of unix sockets: connections by path or by abstract name.

use crate::{Conn, talk::Talk};

/// Most bytes of a name (`sockaddr_un.sun_path`, include/uapi/linux/un.h).
pub const NAME: usize = 108;

/// How the sockets begin by which libc asks daemons for users, groups and hosts (nscd, systemd-userdbd, systemd-resolved,
/// sssd). Most hosts have none of them, and every process asks: a failed connect() there is nobody's failure.
pub const LIBC: [[u8; 16]; 5] = [
    *b"/var/run/nscd/so",
    *b"/run/nscd/socket",
    *b"/run/systemd/use",
    *b"/run/systemd/res",
    *b"/var/lib/sss/pip",
];

/// A connect() of a worker to a unix stream socket that failed.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct Unix {
    /// [`kind::UNIX`](crate::kind::UNIX).
    pub kind: u32,
    /// [`flag`](crate::flag) bits: `LSM`, `ASKED`.
    pub flags: u32,
    /// When connect() returned.
    pub time_ns: u64,
    /// The worker's own `struct sock *`.
    pub sk: u64,
    /// Worker's thread group id.
    pub tgid: u32,
    /// The network namespace of the worker's socket (inode).
    pub netns: u32,
    /// What connect() returned (negative errno).
    pub ret: i32,
    /// `security_socket_connect`'s answer (negative errno), if [`flag::LSM`](crate::flag::LSM).
    pub lsm_ret: i32,
    /// Bytes of the name as the worker told them: what lies behind a path's NUL included; at most [`NAME`].
    pub len: u16,
    /// Padding.
    pub _pad: [u16; 3],
    /// The name; an abstract one begins with a NUL.
    pub name: [u8; NAME],
    /// Padding.
    pub _pad2: u32,
}

/// Connections to unix sockets that are followed at a time.
pub const STANDING: u32 = 2048;

/// A connection of a worker to a unix stream socket that stands.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct Standing {
    /// As the beginning of an [`Entry`](crate::Entry): addresses and ports are 0.
    pub conn: Conn,
    /// The exchange at work. [`Talk::write_seq`] and [`Talk::copied_seq`] count the bytes written and read in it.
    pub talk: Talk,
    /// Bytes in [`Standing::name`].
    pub name_len: u16,
    /// Padding.
    pub _pad: [u16; 3],
    /// As in [`Unix::name`].
    pub name: [u8; NAME + 4],
}

/// The far end of a connection to a unix socket as nginx closed its own, in the place of [`Attempt::daddr`](crate::Attempt).
#[repr(C)]
#[derive(Clone, Copy)]
pub struct Far {
    /// [`far`] bits.
    pub flags: u32,
    /// Inode number of the far end's socket, as in /proc/PID/fd; 0 unknown.
    pub inode: u32,
    /// Kernel memory of what nginx wrote and the far end has not read, bytes: more than those bytes.
    pub unread: u32,
    /// Padding.
    pub _pad: u32,
}

/// Bits of [`Far::flags`].
pub mod far {
    /// The far end is still open.
    pub const OPEN: u32 = 1 << 0;
    /// A process has accepted the connection.
    pub const ACCEPTED: u32 = 1 << 1;
    /// So much of what nginx wrote is unread that its socket took no more.
    pub const FULL: u32 = 1 << 2;
}

const _: () = {
    assert!(size_of::<Unix>() == 160);
    assert!(size_of::<Far>() == size_of::<crate::Addr>());
    assert!(size_of::<Standing>() == size_of::<crate::Entry>() + 8 + 112);
};
