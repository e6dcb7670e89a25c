//! What a security module, a cgroup program or a system call filter said.

use std::net::SocketAddr;

use tracer_ebpf::{
    NONE,
    denial::{self as wire, hook},
};

use super::{DecodeError, ip};

/// Who spoke.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, serde::Serialize, serde::Deserialize)]
pub enum Speaker {
    /// All modules together, on connect().
    SumConnect,
    /// All modules together, on the other end of a unix connection.
    SumUnix,
    /// All modules together, on socket().
    SumCreate,
    /// All modules together, on bind().
    SumBind,
    /// All modules together, on a write.
    SumSend,
    /// All modules together, on a read.
    SumRecv,
    /// All modules together, on a file or a folder of a path.
    SumInode,
    /// All modules together, on a whole path.
    SumPath,
    /// SELinux.
    Selinux,
    /// AppArmor.
    Apparmor,
    /// TOMOYO.
    Tomoyo,
    /// Smack.
    Smack,
    /// Landlock.
    Landlock,
    /// The BPF LSM programs together.
    BpfLsm,
    /// SELinux's access vector cache: denied by policy, in permissive mode too.
    AvcDenied,
    /// SELinux writes the denial to the audit log.
    AvcAudit,
    /// A cgroup's connect4/connect6 program.
    CgroupConnect,
    /// A cgroup's sock_create program.
    CgroupCreate,
    /// A system call filter.
    Seccomp,
}

impl TryFrom<u32> for Speaker {
    type Error = DecodeError;

    fn try_from(value: u32) -> Result<Self, DecodeError> {
        Ok(match value {
            hook::SUM_CONNECT => Speaker::SumConnect,
            hook::SUM_UNIX => Speaker::SumUnix,
            hook::SUM_CREATE => Speaker::SumCreate,
            hook::SUM_BIND => Speaker::SumBind,
            hook::SUM_SEND => Speaker::SumSend,
            hook::SUM_RECV => Speaker::SumRecv,
            hook::SUM_INODE => Speaker::SumInode,
            hook::SUM_PATH => Speaker::SumPath,
            hook::SELINUX => Speaker::Selinux,
            hook::APPARMOR => Speaker::Apparmor,
            hook::TOMOYO => Speaker::Tomoyo,
            hook::SMACK => Speaker::Smack,
            hook::LANDLOCK => Speaker::Landlock,
            hook::BPF_LSM => Speaker::BpfLsm,
            hook::AVC_DENIED => Speaker::AvcDenied,
            hook::AVC_AUDIT => Speaker::AvcAudit,
            hook::CGROUP_CONNECT => Speaker::CgroupConnect,
            hook::CGROUP_CREATE => Speaker::CgroupCreate,
            hook::SECCOMP => Speaker::Seccomp,
            other => return Err(DecodeError::Field("hook", u64::from(other))),
        })
    }
}

/// SELinux's numbers of one decision. Names need the policy.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, serde::Serialize, serde::Deserialize)]
pub struct Avc {
    /// Source.
    pub ssid: u32,
    /// Target.
    pub tsid: u32,
    /// Class, by the kernel's number.
    pub class: u32,
    /// Permissions asked for, by the kernel's bits.
    pub requested: u32,
}

/// One refusal (or, of SELinux's permissive mode, what would be one).
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Denial {
    /// Who.
    pub speaker: Speaker,
    /// Worker's PID in the initial PID namespace.
    pub worker: u32,
    /// The thread.
    pub thread: u32,
    /// When, CLOCK_MONOTONIC ns.
    pub time_ns: u64,
    /// The socket's name in the kernel; 0 if unknown.
    #[serde(skip)]
    pub socket: u64,
    /// Negative errno; 0 if it was let through.
    pub ret: i32,
    /// Address family; 0 unknown.
    pub family: u16,
    /// Where to, of TCP.
    pub remote: Option<SocketAddr>,
    /// Of [`Speaker::AvcDenied`] and [`Speaker::AvcAudit`].
    pub avc: Option<Avc>,
    /// Number of the system call, if known.
    pub syscall: Option<u32>,
    /// Second argument of the system call.
    pub arg: u32,
}

impl Denial {
    /// Reads a record.
    ///
    /// # Errors
    /// If it names a hook that this version does not know.
    pub fn of(d: &wire::Denial) -> Result<Self, DecodeError> {
        let speaker = Speaker::try_from(d.hook)?;
        let avc = Avc { ssid: d.ssid, tsid: d.tsid, class: d.tclass, requested: d.requested };
        Ok(Self {
            speaker,
            worker: d.tgid,
            thread: d.tid,
            time_ns: d.time_ns,
            socket: d.sk,
            ret: d.ret,
            family: d.family,
            remote: (d.daddr != [0; 16] || d.dport != 0).then(|| SocketAddr::new(ip(&d.daddr), d.dport)),
            avc: matches!(speaker, Speaker::AvcDenied | Speaker::AvcAudit).then_some(avc),
            syscall: (d.syscall != NONE).then_some(d.syscall),
            arg: d.arg,
        })
    }
}
