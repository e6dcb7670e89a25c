//! Which process holds a socket, by its inode in /proc/PID/fd.

use std::collections::{BTreeMap, HashSet};
use std::fs;
use std::os::unix::ffi::OsStrExt as _;
use std::time::{Duration, Instant};

use super::container::{self, ContainerId};
use super::proc;

/// A process that holds a socket.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Owner {
    /// Its PID.
    pub pid: u32,
    /// Its name, escaped for a terminal. It chose that itself.
    pub comm: String,
    /// File name of its executable, escaped; `None` when that may not be read.
    pub exe: Option<String>,
    /// Its container.
    pub container: Option<ContainerId>,
}

/// How much a scan may cost.
#[derive(Clone, Copy, Debug)]
pub struct Budget {
    /// Time.
    pub time: Duration,
    /// Descriptors looked at.
    pub descriptors: usize,
}

impl Default for Budget {
    /// Enough for some 100,000 descriptors.
    fn default() -> Self {
        Self { time: Duration::from_millis(300), descriptors: 300_000 }
    }
}

/// Who holds which socket.
#[derive(Clone, Debug, Default)]
pub struct Owners {
    by_inode: BTreeMap<u32, Owner>,
    /// Whether every wanted inode was found or every process was looked at. Where it is false, a missing
    /// owner means nothing.
    pub complete: bool,
}

impl Owners {
    /// The holder with the lowest PID (the master, where workers inherited the socket).
    pub fn get(&self, inode: u32) -> Option<&Owner> {
        self.by_inode.get(&inode)
    }
}

/// Finds the holders of these socket inodes, and stops as soon as each has one. Sockets of the kernel, of
/// processes in PID namespaces that are not visible, and those not yet accepted have none.
pub fn find(inodes: &[u32], budget: Budget) -> Owners {
    let mut wanted: HashSet<u32> = inodes.iter().copied().filter(|&inode| inode != 0).collect();
    let mut found = Owners { by_inode: BTreeMap::new(), complete: true };
    let end = Instant::now() + budget.time;
    let mut left = budget.descriptors;
    let Ok(pids) = proc::pids() else {
        found.complete = wanted.is_empty();
        return found;
    };
    for pid in pids {
        if wanted.is_empty() {
            found.complete = true;
            return found;
        }
        let entries = match fs::read_dir(format!("/proc/{pid}/fd")) {
            Ok(entries) => entries,
            Err(error) => {
                // A process that ended holds nothing; one that may not be looked at may hold anything.
                found.complete &= error.kind() == std::io::ErrorKind::NotFound;
                continue;
            }
        };
        for entry in entries.flatten() {
            if left == 0 || (left.is_multiple_of(256) && Instant::now() > end) {
                found.complete = false;
                return found;
            }
            left -= 1;
            let Ok(target) = fs::read_link(entry.path()) else { continue };
            if let Some(inode) = socket_inode(target.as_os_str().as_bytes())
                && wanted.remove(&inode)
            {
                found.by_inode.insert(inode, describe(pid));
            }
        }
        if Instant::now() > end {
            found.complete = wanted.is_empty();
            return found;
        }
    }
    found.complete |= wanted.is_empty();
    found
}

/// The sockets of a process: inode and descriptor of each; of its descriptors, the first 65,536 are looked at.
///
/// # Errors
/// If they may not be listed, or the process is gone.
pub fn sockets_of(pid: u32) -> std::io::Result<Vec<(u32, u32)>> {
    const MOST: usize = 65_536;
    let entries = fs::read_dir(format!("/proc/{pid}/fd"))?;
    let one = |entry: fs::DirEntry| {
        let target = fs::read_link(entry.path()).ok()?;
        Some((socket_inode(target.as_os_str().as_bytes())?, entry.file_name().to_str()?.parse().ok()?))
    };
    Ok(entries.flatten().take(MOST).filter_map(one).collect())
}

/// True if a process holds a socket; of its descriptors, the first 65,536 are looked at.
pub fn holds(pid: u32, inode: u32) -> bool {
    const MOST: usize = 65_536;
    let Ok(entries) = fs::read_dir(format!("/proc/{pid}/fd")) else {
        return false;
    };
    entries.flatten().take(MOST).any(|entry| {
        fs::read_link(entry.path())
            .is_ok_and(|target| socket_inode(target.as_os_str().as_bytes()) == Some(inode))
    })
}

/// Describes a process as an owner.
pub fn describe(pid: u32) -> Owner {
    Owner { pid, comm: proc::comm(pid), exe: proc::exe_name(pid), container: container::of_pid(pid) }
}

fn socket_inode(target: &[u8]) -> Option<u32> {
    let number = target.strip_prefix(b"socket:[")?.strip_suffix(b"]")?;
    std::str::from_utf8(number).ok()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;
    use std::os::unix::fs::MetadataExt as _;

    use super::*;

    #[test]
    fn own_socket_is_found() {
        let server = TcpListener::bind("127.0.0.1:0").unwrap();
        let fd = std::os::fd::AsRawFd::as_raw_fd(&server);
        let inode = u32::try_from(fs::metadata(format!("/proc/self/fd/{fd}")).unwrap().ino()).unwrap();
        let found = find(&[inode, 0], Budget { time: Duration::from_secs(5), ..Budget::default() });
        assert!(found.complete);
        assert_eq!(found.get(inode).unwrap().pid, std::process::id());
        assert!(sockets_of(std::process::id()).unwrap().contains(&(inode, u32::try_from(fd).unwrap())));
        assert!(holds(std::process::id(), inode) && !holds(std::process::id(), inode.wrapping_add(1)));
        assert!(found.get(inode).unwrap().exe.is_some());
    }

    #[test]
    fn a_spent_budget_is_told() {
        let found = find(&[u32::MAX], Budget { time: Duration::from_secs(5), descriptors: 1 });
        assert!(!found.complete && found.get(u32::MAX).is_none());
        assert!(find(&[], Budget { time: Duration::ZERO, descriptors: 0 }).complete);
    }

    #[test]
    fn link_targets() {
        assert_eq!(socket_inode(b"socket:[12]"), Some(12));
        for other in
            [&b"socket:[]"[..], b"socket:[x]", b"/tmp/socket:[12]", b"pipe:[12]", b"socket:[99999999999]"]
        {
            assert_eq!(socket_inode(other), None);
        }
    }
}
