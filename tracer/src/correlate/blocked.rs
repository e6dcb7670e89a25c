//! Refusals by security modules, cgroup programs and system call filters: what could have been seen, and what user space
//! knows of them.

/// Whose refusals would have been seen. A module that is not active counts as watched: it refuses nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[expect(clippy::struct_excessive_bools, reason = "one independent fact each")]
pub struct Watched {
    /// All modules together, on socket().
    pub create: bool,
    /// All modules together, on bind().
    pub bind: bool,
    /// All modules together, on connections to unix sockets.
    pub unix: bool,
    /// SELinux's own answers.
    pub selinux: bool,
    /// What SELinux's policy denies, silenced denials included.
    pub avc: bool,
    /// Which of SELinux's denials were written to the audit log.
    pub audit: bool,
    /// AppArmor's own answers.
    pub apparmor: bool,
    /// TOMOYO's own answers.
    pub tomoyo: bool,
    /// Smack's own answers.
    pub smack: bool,
    /// Landlock's own answers.
    pub landlock: bool,
    /// The answers of BPF LSM programs.
    pub bpf: bool,
    /// connect4, connect6 and bind programs of cgroups.
    pub cgroup_connect: bool,
    /// sock_create programs of cgroups.
    pub cgroup_create: bool,
    /// System call filters.
    pub seccomp: bool,
}

impl Watched {
    /// Everything is watched.
    pub const ALL: Self = Self {
        create: true,
        bind: true,
        unix: true,
        selinux: true,
        avc: true,
        audit: true,
        apparmor: true,
        tomoyo: true,
        smack: true,
        landlock: true,
        bpf: true,
        cgroup_connect: true,
        cgroup_create: true,
        seccomp: true,
    };
    /// Nothing is.
    pub const NONE: Self = Self {
        create: false,
        bind: false,
        unix: false,
        selinux: false,
        avc: false,
        audit: false,
        apparmor: false,
        tomoyo: false,
        smack: false,
        landlock: false,
        bpf: false,
        cgroup_connect: false,
        cgroup_create: false,
        seccomp: false,
    };
}
