//! Refusals by security modules, cgroup programs and system call filters: what could have been seen, and what user space
//! knows of them.

/// Whose refusals would have been seen. A module that is not active counts as watched: it refuses nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, serde::Serialize, serde::Deserialize)]
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

/// A BPF program that may have refused.
#[derive(Debug, Clone, PartialEq, Eq, Default, serde::Serialize, serde::Deserialize)]
pub struct Program {
    /// Number in the kernel.
    pub id: u32,
    /// Its name, at most 15 bytes; may be empty.
    pub name: String,
    /// User id of who loaded it.
    pub uid: u32,
    /// How long before it was asked, seconds.
    pub loaded_s_ago: Option<u64>,
    /// `systemd (pid 1)`: who holds it.
    pub holders: Vec<String>,
    /// The cgroup that it is attached to, as a path below the root of cgroups.
    pub cgroup: Option<String>,
}

/// A line of a file.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct FileLine {
    /// The file.
    pub file: String,
    /// From 1.
    pub line: usize,
    /// Without surrounding white space.
    pub text: String,
}

impl FileLine {
    /// `FILE:LINE`.
    #[must_use]
    pub fn place(&self) -> String {
        format!("{}:{}", self.file, self.line)
    }
}

/// The systemd unit that a process belongs to.
#[derive(Debug, Clone, PartialEq, Eq, Default, serde::Serialize, serde::Deserialize)]
pub struct Unit {
    /// `nginx.service`.
    pub name: String,
    /// The lines of its files that restrict it, in the order in which systemd reads them.
    pub lines: Vec<FileLine>,
}

/// A worker's confinement by AppArmor, and what its profile's file says of the call.
#[derive(Debug, Clone, PartialEq, Eq, Default, serde::Serialize, serde::Deserialize)]
pub struct Confinement {
    /// Name of the profile as the kernel tells it.
    pub profile: String,
    /// `enforce`, `complain`, `kill`; None if the kernel says none.
    pub mode: Option<String>,
    /// Where the profile begins, if its file was found.
    pub header: Option<FileLine>,
    /// A `deny` rule that fits.
    pub deny: Option<FileLine>,
    /// That rule says `audit`: without it nothing is logged.
    pub deny_is_audited: bool,
    /// A rule that allows it: then the file is not what is loaded, or was read wrongly.
    pub allow: Option<FileLine>,
    /// Every included file was found, and every rule that may be about the call was understood.
    pub whole: bool,
    /// The file for local additions that the profile includes.
    pub local: Option<String>,
    /// The rule that would allow it, such as `network inet stream,`.
    pub wanted: String,
}

impl Confinement {
    /// True if the profile refuses anything at all.
    #[must_use]
    pub fn enforces(&self) -> bool {
        self.profile != "unconfined" && !matches!(self.mode.as_deref(), Some("complain" | "unconfined"))
    }
}

/// What user space found about who may have refused; None: not asked, or no answer.
#[derive(Debug, Clone, PartialEq, Eq, Default, serde::Serialize, serde::Deserialize)]
pub struct Suspects {
    /// AppArmor's profile of the worker.
    pub apparmor: Option<Confinement>,
    /// BPF LSM programs on this call (on any call, where the kernel does not tell which).
    pub lsm_programs: Option<Vec<Program>>,
    /// Programs in force for the worker's cgroup at this call.
    pub cgroup_programs: Option<Vec<Program>>,
    /// `Seccomp:` of /proc/PID/status: 0 none, 1 strict, 2 filter.
    pub seccomp: Option<u32>,
    /// `NoNewPrivs:`.
    pub no_new_privileges: Option<bool>,
    /// The unit.
    pub unit: Option<Unit>,
}
