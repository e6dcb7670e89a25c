//! The wire contract of refusals: what a security module, a cgroup program or a system call filter said.
//!
//! One record per hook that spoke, in the order in which they returned; user space joins those of one system call
//! (same thread, before the attempt's own record) into one story.

use crate::Addr;

/// Who spoke ([`Denial::hook`]).
pub mod hook {
    /// `security_socket_connect`: the sum of all modules on connect().
    pub const SUM_CONNECT: u32 = 1;
    /// `security_unix_stream_connect`: the sum of all modules on a unix connection's other end.
    pub const SUM_UNIX: u32 = 2;
    /// `security_socket_create`: the sum of all modules on socket().
    pub const SUM_CREATE: u32 = 3;
    /// `security_socket_bind`: the sum of all modules on bind().
    pub const SUM_BIND: u32 = 4;
    /// `security_socket_sendmsg`: the sum of all modules on a write.
    pub const SUM_SEND: u32 = 5;
    /// `security_socket_recvmsg`: the sum of all modules on a read.
    pub const SUM_RECV: u32 = 6;
    /// `security_inode_permission`: the sum of all modules on a path's component or a socket file.
    pub const SUM_INODE: u32 = 7;
    /// `security_path_*`: the sum of all modules that judge by path.
    pub const SUM_PATH: u32 = 8;
    /// SELinux's own answer to the same call as the sum that follows.
    pub const SELINUX: u32 = 16;
    /// AppArmor's own answer.
    pub const APPARMOR: u32 = 17;
    /// TOMOYO's own answer.
    pub const TOMOYO: u32 = 18;
    /// Smack's own answer.
    pub const SMACK: u32 = 19;
    /// Landlock's own answer.
    pub const LANDLOCK: u32 = 20;
    /// The answer of all BPF LSM programs.
    pub const BPF_LSM: u32 = 21;
    /// `avc_denied`: SELinux's policy does not allow it; the answer is 0 where it is permissive.
    pub const AVC_DENIED: u32 = 32;
    /// `slow_avc_audit`, `selinux_audited`: SELinux writes the denial to the audit log.
    pub const AVC_AUDIT: u32 = 33;
    /// `tcp_v4_pre_connect`, `tcp_v6_pre_connect`: a connect4/connect6 program of a cgroup.
    pub const CGROUP_CONNECT: u32 = 48;
    /// `__cgroup_bpf_run_filter_sk`: a sock_create program of a cgroup.
    pub const CGROUP_CREATE: u32 = 49;
    /// A system call filter: the call returned without having run.
    pub const SECCOMP: u32 = 64;
}

/// One refusal (or, of SELinux's permissive mode, what would be one).
#[repr(C)]
#[derive(Clone, Copy)]
pub struct Denial {
    /// [`kind::DENIAL`](crate::kind::DENIAL).
    pub kind: u32,
    /// [`hook`].
    pub hook: u32,
    /// Worker's thread group id.
    pub tgid: u32,
    /// The thread.
    pub tid: u32,
    /// When.
    pub time_ns: u64,
    /// `struct sock *` that it is about; 0 unknown.
    pub sk: u64,
    /// What the hook returned (negative errno), 0 of [`hook::AVC_DENIED`] in permissive mode.
    pub ret: i32,
    /// Destination port, host order; 0 if there is none.
    pub dport: u16,
    /// Address family of the destination or of the socket asked for; 0 unknown.
    pub family: u16,
    /// Destination.
    pub daddr: Addr,
    /// SELinux: security identifier of the source.
    pub ssid: u32,
    /// SELinux: security identifier of the target.
    pub tsid: u32,
    /// SELinux: the kernel's number of the target class (security/selinux/include/classmap.h, from 1).
    pub tclass: u32,
    /// SELinux: the permissions asked for, bits in the kernel's order of that class.
    pub requested: u32,
    /// Number of the system call that it happened in; [`NONE`](crate::NONE) unknown.
    pub syscall: u32,
    /// Second argument of the system call, as it is (socket(): the type).
    pub arg: u32,
}
