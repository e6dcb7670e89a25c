//! The wire contract of unix sockets: a connect() by path or by abstract name that failed.

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
    /// [`flag`](crate::flag) bits: `LSM`, `RETRY`.
    pub flags: u32,
    /// When connect() returned.
    pub time_ns: u64,
    /// The worker's own `struct sock *`.
    pub sk: u64,
    /// [`Conn::client`](crate::Conn::client).
    pub client: u64,
    /// Worker's thread group id.
    pub tgid: u32,
    /// The network namespace of the worker's socket (inode).
    pub netns: u32,
    /// What connect() returned (negative errno).
    pub ret: i32,
    /// `security_socket_connect`'s answer (negative errno), if [`flag::LSM`](crate::flag::LSM).
    pub lsm_ret: i32,
    /// [`Conn::number`](crate::Conn::number).
    pub number: u16,
    /// Bytes of the name as the worker told them: what lies behind a path's NUL included; at most [`NAME`].
    pub len: u16,
    /// Padding.
    pub _pad: u32,
    /// The name; an abstract one begins with a NUL.
    pub name: [u8; NAME],
    /// Padding.
    pub _pad2: u32,
}

const _: () = assert!(size_of::<Unix>() == 168);
