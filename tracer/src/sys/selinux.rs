//! What selinuxfs, /proc and labels of files say.

use std::{
    ffi::CString,
    fs::{self, File},
    io,
    os::unix::{ffi::OsStrExt as _, fs::FileExt as _},
    path::Path,
};

use super::proc;
use crate::selinux::kernel::Classes;

/// Where selinuxfs is mounted.
const FS: &str = "/sys/fs/selinux";
/// A policy is some megabytes; more than this is none, bytes.
const LARGEST_POLICY: usize = 64 << 20;
/// Longest context that is believed, bytes.
const LONGEST: usize = 4096;
/// Offset of `policyload` in `struct selinux_kernel_status` (security/selinux/include/security.h), and its end.
const STATUS: (usize, usize) = (12, 16);

/// True if the system enforces its policy; None without SELinux.
#[must_use]
pub fn enforcing() -> Option<bool> {
    let text = fs::read_to_string(Path::new(FS).join("enforce")).ok()?;
    Some(text.trim() != "0")
}

/// A number that changes with every policy that is loaded and every boolean that is set.
#[must_use]
pub fn policy_number() -> Option<u32> {
    let bytes = proc::read_up_to(Path::new(FS).join("status"), 64).ok()?;
    let word = bytes.get(STATUS.0..STATUS.1)?;
    Some(u32::from_ne_bytes(word.try_into().ok()?))
}

/// The loaded policy with the booleans' current values in it.
///
/// # Errors
/// If it cannot be read (it needs `security { read_policy }`), or another process reads it just now (EBUSY).
pub fn policy() -> io::Result<Vec<u8>> {
    proc::read_up_to(Path::new(FS).join("policy"), LARGEST_POLICY)
}

/// A boolean's value that was set and not committed, if it differs from the current one.
#[must_use]
pub fn pending(boolean: &str) -> Option<bool> {
    if boolean.contains('/') {
        return None;
    }
    let text = fs::read_to_string(Path::new(FS).join("booleans").join(boolean)).ok()?;
    let (current, pending) = text.trim_matches(['\0', '\n', ' ']).split_once(' ')?;
    (current != pending).then(|| pending == "1")
}

/// Security context of a process.
#[must_use]
pub fn of_process(pid: u32) -> Option<String> {
    clean(&proc::read_up_to(format!("/proc/{pid}/attr/current"), LONGEST).ok()?)
}

/// Security context of a file; the last component is not followed if it is a link.
#[must_use]
pub fn of_file(path: &Path) -> Option<String> {
    let path = CString::new(path.as_os_str().as_bytes()).ok()?;
    let mut buffer = vec![0_u8; LONGEST];
    // SAFETY: both strings end with NUL, and the kernel writes at most so many bytes into the buffer.
    let len = unsafe {
        libc::lgetxattr(path.as_ptr(), c"security.selinux".as_ptr(), buffer.as_mut_ptr().cast(), buffer.len())
    };
    buffer.truncate(usize::try_from(len).ok()?);
    clean(&buffer)
}

fn clean(bytes: &[u8]) -> Option<String> {
    let text = std::str::from_utf8(bytes).ok()?.trim_end_matches(['\0', '\n']);
    (!text.is_empty() && text.contains(':')).then(|| text.to_owned())
}

/// True if audit was switched off on the kernel's command line.
#[must_use]
pub fn audit_off() -> bool {
    let line = fs::read_to_string("/proc/cmdline").unwrap_or_default();
    line.split_whitespace()
        .filter_map(|w| w.strip_prefix("audit="))
        .next_back()
        .is_some_and(|v| v == "0" || v == "off")
}

/// Files of the policy's file contexts, in the order in which libselinux reads them, and of its aliases of paths.
#[must_use]
pub fn file_contexts() -> Option<(String, String)> {
    let config = fs::read_to_string("/etc/selinux/config").ok()?;
    let name = config.lines().find_map(|line| line.strip_prefix("SELINUXTYPE="))?.trim();
    let folder = Path::new("/etc/selinux").join(name).join("contexts/files");
    let read = |name: &str| fs::read_to_string(folder.join(name)).unwrap_or_default();
    let lines = ["file_contexts", "file_contexts.homedirs", "file_contexts.local"].map(read).join("\n");
    let aliases = ["file_contexts.subs_dist", "file_contexts.subs"].map(read).join("\n");
    Some((lines, aliases))
}

/// Names of classes and permissions from the running kernel's memory, else what all kernels agree on.
#[must_use]
pub fn classes() -> Classes {
    from_memory().unwrap_or_else(Classes::stable)
}

fn from_memory() -> Option<Classes> {
    let address = super::kallsyms::address(super::kallsyms::open().ok()?, "secclass_map").ok()??;
    let core = Core::open()?;
    Classes::read(address, |at, len| core.read(at, len))
}

/// The kernel's memory as /proc/kcore shows it: an ELF file whose segments are the mapped ranges.
struct Core {
    file: File,
    /// Address, length and place in the file.
    segments: Vec<(u64, u64, u64)>,
}

impl Core {
    /// None without CAP_SYS_RAWIO, or if the kernel is locked down.
    fn open() -> Option<Self> {
        let file = File::open("/proc/kcore").ok()?;
        let mut header = [0; 64];
        file.read_exact_at(&mut header, 0).ok()?;
        let segments = segments(&header, |table| file.read_exact_at(table, 64).is_ok())?;
        Some(Self { file, segments })
    }

    fn read(&self, at: u64, len: usize) -> Option<Vec<u8>> {
        let (from, size, place) =
            self.segments.iter().find(|(from, size, _)| at >= *from && at - from < *size)?;
        let inside = at - from;
        let len = u64::try_from(len).ok()?.min(size - inside);
        let mut bytes = vec![0; usize::try_from(len).ok()?];
        self.file.read_exact_at(&mut bytes, place.checked_add(inside)?).ok()?;
        Some(bytes)
    }
}

/// The loaded segments of a 64-bit ELF file whose program headers follow its header.
fn segments(header: &[u8; 64], read: impl FnOnce(&mut [u8]) -> bool) -> Option<Vec<(u64, u64, u64)>> {
    const ENTRY: usize = 56;
    const LOAD: u32 = 1;
    let count = usize::from(u16::from_ne_bytes([header[56], header[57]]));
    if !header.starts_with(b"\x7fELF\x02") || count == 0 || count > 4096 {
        return None;
    }
    let mut table = vec![0; count * ENTRY];
    if !read(&mut table) {
        return None;
    }
    let word = |entry: &[u8], at: usize| {
        entry.get(at..at + 8).and_then(|b| b.try_into().ok()).map_or(0, u64::from_ne_bytes)
    };
    let load = |entry: &&[u8]| entry.starts_with(&LOAD.to_ne_bytes());
    Some(table.chunks_exact(ENTRY).filter(load).map(|e| (word(e, 16), word(e, 40), word(e, 8))).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn contexts_end_with_nul_or_newline() {
        assert_eq!(clean(b"system_u:system_r:httpd_t:s0\0").as_deref(), Some("system_u:system_r:httpd_t:s0"));
        assert_eq!(clean(b"u:r:t:s0\n").as_deref(), Some("u:r:t:s0"));
        // AppArmor answers the same file with a profile.
        assert_eq!(clean(b"unconfined\n"), None);
        assert_eq!(clean(b""), None);
        assert_eq!(clean(b"\xff:"), None);
    }

    #[test]
    fn segments_of_the_kernels_memory() {
        let mut header = [0; 64];
        header[..5].copy_from_slice(b"\x7fELF\x02");
        header[56] = 2;
        let table = |bytes: &mut [u8]| {
            bytes[0] = 4; // a note
            bytes[56] = 1;
            bytes[56 + 8..56 + 16].copy_from_slice(&0x3000_u64.to_ne_bytes());
            bytes[56 + 16..56 + 24].copy_from_slice(&0xffff_ffff_8000_0000_u64.to_ne_bytes());
            bytes[56 + 40..56 + 48].copy_from_slice(&0x1000_u64.to_ne_bytes());
            true
        };
        assert_eq!(segments(&header, table), Some(vec![(0xffff_ffff_8000_0000, 0x1000, 0x3000)]));
        assert_eq!(segments(&header, |_| false), None);
        header[0] = 0;
        assert_eq!(segments(&header, table), None);
    }

    #[test]
    fn our_own_context_is_none_or_one() {
        let own = of_process(std::process::id());
        assert!(own.is_none_or(|context| crate::selinux::type_of(&context).is_some()));
        assert_eq!(of_file(Path::new("/no/such/file")), None);
        assert_eq!(pending("../enforce"), None);
    }
}
