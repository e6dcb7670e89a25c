//! What this process and this kernel allow: capabilities, version, lockdown, LSMs, namespaces.

use std::ffi::CStr;
use std::fmt;
use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;

use super::proc;

/// The capabilities that why502 uses, with the kernel's numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum Capability {
    /// CAP_DAC_READ_SEARCH: read configuration that only root may read.
    DacReadSearch = 2,
    /// CAP_NET_ADMIN: firewall rules, conntrack.
    NetAdmin = 12,
    /// CAP_SYS_PTRACE: other users' /proc/PID/{exe,root,ns,fd}.
    SysPtrace = 19,
    /// CAP_SYS_ADMIN: setns into other network namespaces.
    SysAdmin = 21,
    /// CAP_SYS_RESOURCE: raise RLIMIT_MEMLOCK for BPF maps before Linux 5.11.
    SysResource = 24,
    /// CAP_PERFMON: attach BPF programs to the kernel.
    Perfmon = 38,
    /// CAP_BPF: load BPF programs.
    Bpf = 39,
}

impl Capability {
    /// All, in the order of importance.
    pub const ALL: [Self; 7] = [
        Self::Bpf,
        Self::Perfmon,
        Self::SysPtrace,
        Self::DacReadSearch,
        Self::NetAdmin,
        Self::SysAdmin,
        Self::SysResource,
    ];

    /// The name systemd and setcap know.
    pub fn name(self) -> &'static str {
        match self {
            Self::DacReadSearch => "CAP_DAC_READ_SEARCH",
            Self::NetAdmin => "CAP_NET_ADMIN",
            Self::SysPtrace => "CAP_SYS_PTRACE",
            Self::SysAdmin => "CAP_SYS_ADMIN",
            Self::SysResource => "CAP_SYS_RESOURCE",
            Self::Perfmon => "CAP_PERFMON",
            Self::Bpf => "CAP_BPF",
        }
    }
}

/// A set of capabilities, as /proc shows it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CapSet(pub u64);

impl CapSet {
    /// Whether the kernel would grant this: CAP_SYS_ADMIN stands in for CAP_BPF and CAP_PERFMON.
    pub fn has(self, capability: Capability) -> bool {
        let holds = |one: Capability| self.0 >> (one as u8) & 1 == 1;
        let older = matches!(capability, Capability::Bpf | Capability::Perfmon);
        holds(capability) || (older && holds(Capability::SysAdmin))
    }

    /// What is missing of all that why502 uses.
    pub fn missing(self) -> Vec<Capability> {
        Capability::ALL.into_iter().filter(|&one| !self.has(one)).collect()
    }
}

/// A kernel version.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KernelVersion {
    /// First number.
    pub major: u32,
    /// Second number.
    pub minor: u32,
    /// Third number; distributions often keep it at 0.
    pub patch: u32,
    /// The whole release, as `uname -r` prints it.
    pub release: String,
}

impl KernelVersion {
    /// Whether it is at least this version. Distributions backport: prefer to look for the feature itself.
    pub fn at_least(&self, major: u32, minor: u32) -> bool {
        (self.major, self.minor) >= (major, minor)
    }

    fn parse(release: &str) -> Self {
        let mut numbers = release.split(|c: char| !c.is_ascii_digit()).map(|part| part.parse().unwrap_or(0));
        let mut next = || numbers.next().unwrap_or(0);
        Self { major: next(), minor: next(), patch: next(), release: release.to_owned() }
    }
}

impl fmt::Display for KernelVersion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.release)
    }
}

/// Kernel lockdown.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lockdown {
    /// Off.
    None,
    /// Nothing may change the kernel.
    Integrity,
    /// Nor read its memory: BPF may not use bpf_probe_read_kernel.
    Confidentiality,
    /// securityfs is not mounted, or the kernel has no lockdown.
    Unknown,
}

/// The facts of this host and process.
#[derive(Clone, Debug)]
pub struct Host {
    /// Effective capabilities of the calling thread.
    pub effective: CapSet,
    /// The running kernel.
    pub kernel: KernelVersion,
    /// Lockdown.
    pub lockdown: Lockdown,
    /// Active LSMs by name, in their order; `None` when neither securityfs nor the kernel (6.8) tells.
    pub lsms: Option<Vec<String>>,
    /// kernel.unprivileged_bpf_disabled; `None` where the file is absent.
    pub unprivileged_bpf_disabled: Option<u32>,
    /// Whether PIDs are the host's: else those that BPF reports do not fit /proc here.
    pub initial_pid_ns: bool,
    /// Whether capabilities are the host's.
    pub initial_user_ns: bool,
}

/// Reads them all.
pub fn host() -> io::Result<Host> {
    Ok(Host {
        effective: effective()?,
        kernel: kernel_version()?,
        lockdown: proc::read_trimmed("/sys/kernel/security/lockdown")
            .map_or(Lockdown::Unknown, |text| parse_lockdown(&text)),
        lsms: lsms(),
        unprivileged_bpf_disabled: proc::read_trimmed("/proc/sys/kernel/unprivileged_bpf_disabled")
            .ok()
            .and_then(|text| text.parse().ok()),
        // PROC_PID_INIT_INO and PROC_USER_INIT_INO: linux/proc_ns.h, the same on all kernels.
        initial_pid_ns: is_namespace("pid", 0xEFFF_FFFC),
        initial_user_ns: is_namespace("user", 0xEFFF_FFFD),
    })
}

/// The effective capabilities of the calling thread.
pub fn effective() -> io::Result<CapSet> {
    let status = proc::read_up_to("/proc/thread-self/status", 64 * 1024)?;
    let bits = proc::field(&status, "CapEff").and_then(|text| u64::from_str_radix(text, 16).ok());
    bits.map(CapSet)
        .ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, "no CapEff in /proc/thread-self/status"))
}

/// The running kernel's version.
pub fn kernel_version() -> io::Result<KernelVersion> {
    // SAFETY: utsname is arrays of bytes, for which zero is valid.
    let mut names: libc::utsname = unsafe { std::mem::zeroed() };
    // SAFETY: the pointer is to a live utsname.
    if unsafe { libc::uname(&raw mut names) } != 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: uname(2) ends each field with a NUL, and the struct was zero before.
    let release = unsafe { CStr::from_ptr(names.release.as_ptr()) };
    Ok(KernelVersion::parse(&release.to_string_lossy()))
}

fn is_namespace(kind: &str, inode: u64) -> bool {
    fs::metadata(format!("/proc/self/ns/{kind}")).is_ok_and(|found| found.ino() == inode)
}

/// `none [integrity] confidentiality`: the brackets choose.
fn parse_lockdown(text: &str) -> Lockdown {
    match text.split_once('[').and_then(|(_, rest)| rest.split_once(']')).map(|(chosen, _)| chosen) {
        Some("none") => Lockdown::None,
        Some("integrity") => Lockdown::Integrity,
        Some("confidentiality") => Lockdown::Confidentiality,
        _ => Lockdown::Unknown,
    }
}

/// Every active security module in the kernel's order; None if the kernel does not tell.
#[must_use]
pub fn active_modules() -> Option<Vec<String>> {
    if let Ok(text) = proc::read_trimmed("/sys/kernel/security/lsm") {
        return Some(text.split(',').filter(|name| !name.is_empty()).map(str::to_owned).collect());
    }
    lsms_by_syscall()
}

fn lsms() -> Option<Vec<String>> {
    if let Some(names) = active_modules() {
        return Some(names);
    }
    // Older kernels without securityfs: what the two that matter show of themselves. Absence proves nothing.
    let mut found = Vec::new();
    if Path::new("/sys/fs/selinux/enforce").exists() {
        found.push("selinux".to_owned());
    }
    if proc::read_trimmed("/sys/module/apparmor/parameters/enabled").is_ok_and(|text| text == "Y") {
        found.push("apparmor".to_owned());
    }
    (!found.is_empty()).then_some(found)
}

/// lsm_list_modules(2), since Linux 6.8: needs no mount.
fn lsms_by_syscall() -> Option<Vec<String>> {
    // The same number on every architecture; not yet a constant in libc.
    const SYS_LSM_LIST_MODULES: libc::c_long = 461;
    let mut ids = [0_u64; 32];
    let mut size = u32::try_from(size_of_val(&ids)).ok()?;
    // SAFETY: the kernel writes at most `size` bytes to the array, and the used size to `size`.
    let count = unsafe { libc::syscall(SYS_LSM_LIST_MODULES, ids.as_mut_ptr(), &raw mut size, 0_u32) };
    let ids = ids.get(..usize::try_from(count).ok()?)?;
    Some(ids.iter().map(|&id| lsm_name(id)).collect())
}

/// uapi/linux/lsm.h.
fn lsm_name(id: u64) -> String {
    let known = [
        "capability",
        "selinux",
        "smack",
        "tomoyo",
        "apparmor",
        "yama",
        "loadpin",
        "safesetid",
        "lockdown",
        "bpf",
        "landlock",
        "ima",
        "evm",
        "ipe",
    ];
    let index = id.checked_sub(100).and_then(|offset| usize::try_from(offset).ok());
    index.and_then(|index| known.get(index)).map_or_else(|| format!("lsm-{id}"), |name| (*name).to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions() {
        let parse = |text| {
            let found = KernelVersion::parse(text);
            (found.major, found.minor, found.patch)
        };
        assert_eq!(parse("6.18.44-fc-v445"), (6, 18, 44));
        assert_eq!(parse("5.10.0-30-cloud-amd64"), (5, 10, 0));
        assert_eq!(parse("7.2"), (7, 2, 0));
        assert_eq!(parse("x"), (0, 0, 0));
        assert!(
            KernelVersion::parse("6.1.0").at_least(5, 15) && !KernelVersion::parse("5.9").at_least(5, 10)
        );
    }

    #[test]
    fn capabilities() {
        assert_eq!(CapSet(0).missing(), Capability::ALL);
        assert_eq!(CapSet(u64::MAX).missing(), []);
        assert!(CapSet(1 << 21).has(Capability::Bpf) && CapSet(1 << 21).has(Capability::Perfmon));
        assert!(!CapSet(1 << 39).has(Capability::SysAdmin));
    }

    #[test]
    fn lockdown_brackets() {
        assert_eq!(parse_lockdown("none [integrity] confidentiality"), Lockdown::Integrity);
        assert_eq!(parse_lockdown("[none] integrity confidentiality"), Lockdown::None);
        assert_eq!(parse_lockdown("]["), Lockdown::Unknown);
    }

    #[test]
    fn this_host() {
        let found = host().unwrap();
        assert!(found.kernel.at_least(4, 0));
        assert_eq!(lsm_name(101), "selinux");
        assert_eq!(lsm_name(500), "lsm-500");
        if let Some(lsms) = found.lsms {
            assert!(!lsms.is_empty());
        }
    }
}
