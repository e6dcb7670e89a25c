//! Network namespaces: opening another process's, doing something in it, finding who lives in one.
//!
//! `setns` is called on a fresh thread only, and that thread ends with the call, so no thread that runs other
//! code is ever in a foreign namespace, whatever the closure does. A socket stays in the namespace it was
//! made in, so netlink queries need that thread for `socket(2)` alone.

use std::fs::{self, File};
use std::os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd};
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;
use std::sync::Arc;
use std::{io, panic, thread};

use super::container::{self, ContainerId};
use super::error::{Context as _, Error, Result};
use super::proc;

/// An open network namespace. It lives as long as this handle, even when its last process exits.
#[derive(Clone, Debug)]
pub struct NetNs {
    fd: Arc<OwnedFd>,
    inum: u32,
}

impl NetNs {
    /// The namespace of a process. Errors: the process is gone, or no CAP_SYS_PTRACE over it.
    pub fn of_pid(pid: u32) -> Result<Self> {
        Self::open(format!("/proc/{pid}/ns/net"))
    }

    /// The calling thread's own namespace.
    pub fn current() -> Result<Self> {
        Self::open("/proc/thread-self/ns/net")
    }

    /// A namespace by path: /proc/PID/ns/net, or a bind mount such as /run/netns/NAME.
    pub fn open(path: impl AsRef<Path>) -> Result<Self> {
        let path = path.as_ref();
        let file = File::open(path).context(|| format!("open network namespace {}", path.display()))?;
        Self::from_fd(file.into())
    }

    /// A namespace by an open descriptor.
    pub fn from_fd(fd: OwnedFd) -> Result<Self> {
        let file = File::from(fd);
        let inode = file.metadata().context(|| "stat a network namespace".to_owned())?.ino();
        let inum = u32::try_from(inode)
            .map_err(|_| Error::malformed("identify a network namespace", "its inode number is too large"))?;
        Ok(Self { fd: Arc::new(file.into()), inum })
    }

    /// The number the kernel calls `net.ns.inum`.
    pub fn inum(&self) -> u32 {
        self.inum
    }

    /// A number that no other namespace gets until the next boot, unlike `inum`, which is used again (SO_NETNS_COOKIE,
    /// 5.14). Without it: the initial namespace's own number, as that one stays; else None.
    pub fn identity(&self) -> Option<u64> {
        const SO_NETNS_COOKIE: i32 = 71;
        let mut cookie = 0_u64;
        let mut len = libc::socklen_t::try_from(size_of_val(&cookie)).unwrap_or(0);
        let socket = self.socket(libc::AF_UNIX, libc::SOCK_DGRAM, 0).ok()?;
        // SAFETY: `cookie` is live and `len` is its size.
        let status = unsafe {
            libc::getsockopt(
                socket.as_raw_fd(),
                libc::SOL_SOCKET,
                SO_NETNS_COOKIE,
                (&raw mut cookie).cast(),
                &raw mut len,
            )
        };
        if status == 0 && cookie != 0 {
            return Some(cookie);
        }
        inum_of_pid(1).is_ok_and(|initial| initial == self.inum).then_some(u64::from(self.inum))
    }

    /// Runs `work` inside this namespace: at once if the caller is in it, else on a thread of its own.
    /// A panic in `work` goes on in the caller. Errors: `setns` needs CAP_SYS_ADMIN.
    pub fn run<T: Send>(&self, work: impl FnOnce() -> T + Send) -> Result<T> {
        if current_inum().is_ok_and(|inum| inum == self.inum) {
            return Ok(work());
        }
        let joined = thread::scope(|scope| {
            let builder = thread::Builder::new().name("netns".into()).stack_size(256 * 1024);
            let handle = builder.spawn_scoped(scope, || self.enter().map(|()| work()))?;
            Ok::<_, io::Error>(handle.join())
        })
        .context(|| "start a thread for a network namespace".to_owned())?;
        match joined {
            Ok(result) => result,
            Err(payload) => panic::resume_unwind(payload),
        }
    }

    /// Opens a socket that belongs to this namespace and may be used from any thread.
    pub(crate) fn socket(&self, domain: i32, kind: i32, protocol: i32) -> Result<OwnedFd> {
        let opened = self.run(|| {
            // SAFETY: socket(2) takes no pointers.
            let fd = unsafe { libc::socket(domain, kind | libc::SOCK_CLOEXEC, protocol) };
            if fd < 0 {
                return Err(io::Error::last_os_error());
            }
            // SAFETY: the call above returned a new descriptor that nothing else owns.
            Ok(unsafe { OwnedFd::from_raw_fd(fd) })
        })?;
        opened.context(|| format!("open a socket (family {domain}, protocol {protocol})"))
    }

    /// Moves the calling thread; private because only a thread that ends afterwards may do it.
    fn enter(&self) -> Result<()> {
        // SAFETY: setns(2) takes no pointers, and the descriptor is open for the life of `self`.
        let status = unsafe { libc::setns(self.fd.as_raw_fd(), libc::CLONE_NEWNET) };
        if status == 0 {
            return Ok(());
        }
        let error = Error::os(format!("enter network namespace {}", self.inum), io::Error::last_os_error());
        Err(error.hint("this needs CAP_SYS_ADMIN; without it only why502's own namespace can be looked at"))
    }
}

/// The inode number of a process's network namespace.
pub fn inum_of_pid(pid: u32) -> io::Result<u32> {
    inum_of_link(format!("/proc/{pid}/ns/net"))
}

/// The inode number of the calling thread's network namespace.
pub fn current_inum() -> io::Result<u32> {
    // Not /proc/self: that is the main thread, and the helper threads here differ from it.
    inum_of_link("/proc/thread-self/ns/net")
}

fn inum_of_link(path: impl AsRef<Path>) -> io::Result<u32> {
    let target = fs::read_link(path)?;
    let number = target.to_str().and_then(|text| text.strip_prefix("net:[")?.strip_suffix(']')?.parse().ok());
    number.ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, "not a namespace link"))
}

/// Who can be named as living in a network namespace.
#[derive(Clone, Debug)]
pub struct Resident {
    /// The namespace's inode number.
    pub inum: u32,
    /// The process with the lowest PID in it; `None` when only a bind mount keeps it.
    pub pid: Option<u32>,
    /// Its name under /run/netns, for those without a process.
    pub name: Option<String>,
    /// The container of `pid`.
    pub container: Option<ContainerId>,
}

impl Resident {
    /// Opens the namespace again. Errors: it is gone, or it is another one by now.
    pub fn open(&self) -> Result<NetNs> {
        let ns = match (self.pid, &self.name) {
            (Some(pid), _) => NetNs::of_pid(pid)?,
            (None, Some(name)) => NetNs::open(Path::new(NAMED).join(name))?,
            (None, None) => return Err(Error::errno_of("open a network namespace", libc::ENOENT)),
        };
        if ns.inum == self.inum {
            return Ok(ns);
        }
        Err(Error::errno_of(format!("open network namespace {}", self.inum), libc::ENOENT))
    }
}

/// Where `ip netns` keeps names.
const NAMED: &str = "/run/netns";

/// Finds a resident of the namespace with this inode number. Processes that may not be looked at are skipped.
pub fn find(inum: u32) -> Result<Option<Resident>> {
    let pids = proc::pids().context(|| "list /proc".to_owned())?;
    for pid in pids {
        if inum_of_pid(pid).is_ok_and(|found| found == inum) {
            return Ok(Some(Resident {
                inum,
                pid: Some(pid),
                name: None,
                container: container::of_pid(pid),
            }));
        }
    }
    Ok(named().find(|resident| resident.inum == inum))
}

/// Every network namespace that has a process or a name, at most `limit`, each with its lowest PID.
pub fn all(limit: usize) -> Result<Vec<Resident>> {
    let mut found: Vec<Resident> = Vec::new();
    for pid in proc::pids().context(|| "list /proc".to_owned())? {
        if found.len() >= limit {
            return Ok(found);
        }
        if let Ok(inum) = inum_of_pid(pid)
            && !found.iter().any(|resident| resident.inum == inum)
        {
            found.push(Resident { inum, pid: Some(pid), name: None, container: container::of_pid(pid) });
        }
    }
    for resident in named() {
        if found.len() < limit && !found.iter().any(|known| known.inum == resident.inum) {
            found.push(resident);
        }
    }
    Ok(found)
}

fn named() -> impl Iterator<Item = Resident> {
    let entries = fs::read_dir(NAMED).into_iter().flatten().flatten();
    entries.filter_map(|entry| {
        // A name whose mount is gone is a plain file on another file system: opening it as a namespace and
        // entering it fails, so comparing its inode alone could take it for a namespace. Ask the kernel.
        let file = File::open(entry.path()).ok()?;
        // SAFETY: NS_GET_NSTYPE takes no argument and only looks at the descriptor.
        let kind = unsafe { libc::ioctl(file.as_raw_fd(), NS_GET_NSTYPE) };
        if kind != libc::CLONE_NEWNET {
            return None;
        }
        let inum = u32::try_from(file.metadata().ok()?.ino()).ok()?;
        let name = entry.file_name().into_string().ok()?;
        Some(Resident { inum, pid: None, name: Some(name), container: None })
    })
}

/// linux/nsfs.h: _IO(0xb7, 0x3).
const NS_GET_NSTYPE: libc::c_ulong = 0xb703;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sys::testing;

    #[test]
    fn own_namespace_runs_in_place() {
        let own = NetNs::current().unwrap();
        assert_eq!(own.inum(), current_inum().unwrap());
        let caller = thread::current().id();
        assert_eq!(own.run(|| thread::current().id()).unwrap(), caller);
    }

    #[test]
    fn foreign_namespace_never_touches_the_caller() {
        let Some(ns) = testing::namespace() else { return };
        let before = current_inum().unwrap();
        assert_eq!(ns.run(|| current_inum().unwrap()).unwrap(), ns.inum());
        assert_eq!(current_inum().unwrap(), before);
        let panicked = panic::catch_unwind(|| ns.run(|| panic::resume_unwind(Box::new("wanted"))));
        assert!(panicked.is_err());
        assert_eq!(current_inum().unwrap(), before);
    }

    #[test]
    fn residents_are_found_by_number() {
        let Some(ns) = testing::namespace() else { return };
        assert!(find(ns.inum()).unwrap().is_none());
        let child = testing::Resident::new(&ns);
        assert_eq!(inum_of_pid(child.pid()).unwrap(), ns.inum());
        let found = find(ns.inum()).unwrap().unwrap();
        assert_eq!(found.pid, Some(child.pid()));
        assert_eq!(found.open().unwrap().inum(), ns.inum());
        assert!(all(1000).unwrap().iter().any(|resident| resident.inum == ns.inum()));
    }

    #[test]
    fn a_missing_process_is_gone() {
        assert!(NetNs::of_pid(u32::MAX).unwrap_err().is_gone());
    }
}
