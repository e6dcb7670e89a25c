//! A path as one process meets it: every folder, link and file on the way, and the first that keeps it out.
//!
//! Components are opened one by one below the process's root (chroot, container) without following links; links are
//! then followed by hand, so that each of them is seen. The order of checks is the kernel's (link_path_walk, fs/namei.c).

use std::collections::VecDeque;
use std::ffi::CString;
use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use super::acl::{self, Entry};
use super::proc;
use super::process::Credentials;

/// MAXSYMLINKS (include/linux/namei.h).
const MOST_LINKS: u32 = 40;
/// An access control list is no longer than that: XATTR_SIZE_MAX would be 64 KiB.
const MOST_ACL: usize = 4096;

/// What a component is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A folder.
    Folder,
    /// A socket.
    Socket,
    /// A symbolic link.
    Link,
    /// A regular file.
    File,
    /// A device, a FIFO.
    Other,
}

/// One component.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Step {
    /// The path up to here, links resolved.
    pub path: PathBuf,
    /// What it is.
    pub kind: Kind,
    /// Mode bits without the type.
    pub mode: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Access control list; empty if there is none.
    pub acl: Vec<Entry>,
    /// Device and inode.
    pub id: (u64, u64),
    /// When it was last written to; of a socket: when it was bound.
    pub modified: SystemTime,
    /// When anything about it changed.
    pub changed: SystemTime,
}

/// A path's components, as far as they exist.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Walk {
    /// In the order in which the kernel meets them; the first is where the path begins.
    pub steps: Vec<Step>,
    /// The component that is not there and the errno, if the path does not lead to its end.
    pub end: Option<(PathBuf, i32)>,
    /// How many components would have come after that one.
    pub left: usize,
}

/// What a step was asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wanted {
    /// To go through a folder.
    Search,
    /// To follow a link: fs.protected_symlinks.
    Follow,
    /// To connect.
    Write,
}

impl Wanted {
    fn bits(self) -> u32 {
        match self {
            Self::Search | Self::Follow => 1,
            Self::Write => 2,
        }
    }
}

/// Who walks.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Walker {
    /// Its user and groups.
    pub credentials: Credentials,
    /// CAP_DAC_OVERRIDE: no mode stops it.
    pub overrides: bool,
    /// CAP_DAC_READ_SEARCH: no folder's mode stops it.
    pub searches: bool,
    /// fs.protected_symlinks.
    pub protected_links: bool,
}

impl Walker {
    /// A process. Errors: it is gone.
    pub fn of_pid(pid: u32) -> io::Result<Self> {
        const DAC_OVERRIDE: u64 = 1 << 1;
        const DAC_READ_SEARCH: u64 = 1 << 2;
        let status = proc::read_up_to(format!("/proc/{pid}/status"), 1 << 16)?;
        let credentials = super::process::parse_credentials(&status);
        let caps = proc::field(&status, "CapEff").and_then(|hex| u64::from_str_radix(hex, 16).ok());
        let caps = caps.unwrap_or(0);
        Ok(Self {
            credentials,
            overrides: caps & DAC_OVERRIDE != 0,
            searches: caps & (DAC_OVERRIDE | DAC_READ_SEARCH) != 0,
            protected_links: proc::read_trimmed("/proc/sys/fs/protected_symlinks").is_ok_and(|on| on == "1"),
        })
    }

    /// Whether the mode or the list of a component lets it, and the entry of the list that decided.
    pub fn may(&self, step: &Step, wanted: Wanted) -> (bool, Option<Entry>) {
        if self.overrides || (self.searches && step.kind == Kind::Folder) {
            return (true, None);
        }
        let uid = self.credentials.fsuid;
        let groups = self.credentials.file_groups();
        if let Some((entry, yes)) = acl::decide(&step.acl, (step.uid, step.gid), uid, &groups, wanted.bits())
        {
            return (yes, Some(entry));
        }
        let shift = if uid == step.uid {
            6
        } else if groups.contains(&step.gid) {
            3
        } else {
            0
        };
        (step.mode >> shift & wanted.bits() == wanted.bits(), None)
    }
}

impl Walk {
    /// The first component that keeps `walker` out of connecting to the path, by owner, mode and list alone.
    pub fn refusal(&self, walker: &Walker) -> Option<(&Step, Wanted, Option<Entry>)> {
        let mut folder: Option<&Step> = None;
        for (index, step) in self.steps.iter().enumerate() {
            let last = index + 1 == self.steps.len() && self.end.is_none();
            match step.kind {
                Kind::Link => {
                    // may_follow_link(): in a folder like /tmp only the link's owner, or one of the folder's owner's.
                    let own = step.uid == walker.credentials.fsuid;
                    let trap = folder.is_some_and(|f| f.mode & 0o1002 == 0o1002 && f.uid != step.uid);
                    if walker.protected_links && trap && !own {
                        return Some((step, Wanted::Follow, None));
                    }
                    continue;
                }
                Kind::Folder if !last => {
                    let (yes, entry) = walker.may(step, Wanted::Search);
                    if !yes {
                        return Some((step, Wanted::Search, entry));
                    }
                    folder = Some(step);
                }
                Kind::Folder | Kind::Socket | Kind::File | Kind::Other if last => {
                    let (yes, entry) = walker.may(step, Wanted::Write);
                    if !yes {
                        return Some((step, Wanted::Write, entry));
                    }
                }
                Kind::Folder | Kind::Socket | Kind::File | Kind::Other => {}
            }
        }
        None
    }

    /// True if it ends before its last component.
    pub fn folder_is_missing(&self) -> bool {
        self.end.is_some() && self.left > 0
    }

    /// The file at the end, if the path leads there.
    pub fn file(&self) -> Option<&Step> {
        self.steps.last().filter(|_| self.end.is_none())
    }
}

/// Walks a path as a process sees it: below its root, relative ones from its working folder. Errors: it is gone, or no
/// CAP_SYS_PTRACE over it.
pub fn walk(pid: u32, path: &[u8]) -> io::Result<Walk> {
    let root = open_folder(Path::new(&format!("/proc/{pid}/root")))?;
    if path.first() == Some(&b'/') {
        return from(&root, &root, PathBuf::from("/"), path);
    }
    let cwd = PathBuf::from(format!("/proc/{pid}/cwd"));
    from(&root, &open_folder(&cwd)?, std::fs::read_link(&cwd)?, path)
}

fn open_folder(path: &Path) -> io::Result<File> {
    File::options().read(true).custom_flags(libc::O_PATH | libc::O_DIRECTORY).open(path)
}

/// Walks from a folder, which is called `place`; links that begin with `/` lead to `root`.
fn from(root: &File, start: &File, mut place: PathBuf, path: &[u8]) -> io::Result<Walk> {
    let mut left: VecDeque<Vec<u8>> = split(path);
    let mut here = start.try_clone()?;
    let mut walk = Walk { steps: vec![step(&here, &place)?], end: None, left: 0 };
    let top = identity(root)?;
    let mut links = 0;
    while let Some(name) = left.pop_front() {
        if name == b".." && identity(&here)? == top {
            continue;
        }
        let next = place.join(std::ffi::OsStr::from_bytes(&name));
        let found = match open_at(&here, &name) {
            Ok(found) => found,
            Err(error) => {
                walk.end = Some((next, error.raw_os_error().unwrap_or(libc::EIO)));
                walk.left = left.len();
                return Ok(walk);
            }
        };
        let one = step(&found, &next)?;
        let is_link = one.kind == Kind::Link;
        if name == b".." {
            place.pop();
        } else {
            walk.steps.push(one);
        }
        if !is_link {
            if name != b".." {
                place = next;
            }
            here = found;
            continue;
        }
        links += 1;
        if links > MOST_LINKS {
            walk.end = Some((next, libc::ELOOP));
            return Ok(walk);
        }
        let target = read_link(&found)?;
        if target.first() == Some(&b'/') {
            here = root.try_clone()?;
            place = PathBuf::from("/");
        }
        for part in split(&target).into_iter().rev() {
            left.push_front(part);
        }
    }
    Ok(walk)
}

fn split(path: &[u8]) -> VecDeque<Vec<u8>> {
    let parts = path.split(|byte| *byte == b'/').filter(|part| !part.is_empty() && *part != b".");
    parts.map(<[u8]>::to_vec).collect()
}

fn identity(file: &File) -> io::Result<(u64, u64)> {
    let found = file.metadata()?;
    Ok((found.dev(), found.ino()))
}

fn step(file: &File, path: &Path) -> io::Result<Step> {
    let found = file.metadata()?;
    let kind = match found.mode() & libc::S_IFMT {
        libc::S_IFDIR => Kind::Folder,
        libc::S_IFSOCK => Kind::Socket,
        libc::S_IFLNK => Kind::Link,
        libc::S_IFREG => Kind::File,
        _ => Kind::Other,
    };
    let time = |seconds: i64, nanos: i64| {
        let seconds = Duration::new(u64::try_from(seconds).unwrap_or(0), u32::try_from(nanos).unwrap_or(0));
        SystemTime::UNIX_EPOCH + seconds
    };
    Ok(Step {
        path: path.to_owned(),
        kind,
        mode: found.mode() & 0o7777,
        uid: found.uid(),
        gid: found.gid(),
        acl: if kind == Kind::Link { Vec::new() } else { list_of(file) },
        id: (found.dev(), found.ino()),
        modified: time(found.mtime(), found.mtime_nsec()),
        changed: time(found.ctime(), found.ctime_nsec()),
    })
}

/// The access control list; empty if there is none, or if the file system knows none.
fn list_of(file: &File) -> Vec<Entry> {
    // By name: a descriptor that is only a place in a path gives no attributes.
    let Ok(path) = CString::new(format!("/proc/thread-self/fd/{}", file.as_raw_fd())) else {
        return Vec::new();
    };
    let mut value = [0_u8; MOST_ACL];
    // SAFETY: live C strings and a buffer of the told size.
    let length = unsafe {
        libc::getxattr(path.as_ptr(), acl::ATTRIBUTE.as_ptr(), value.as_mut_ptr().cast(), value.len())
    };
    let length = usize::try_from(length).unwrap_or(0);
    value.get(..length).and_then(acl::decode).unwrap_or_default()
}

fn open_at(folder: &File, name: &[u8]) -> io::Result<File> {
    let name = CString::new(name)?;
    let flags = libc::O_PATH | libc::O_NOFOLLOW | libc::O_CLOEXEC;
    // SAFETY: a live descriptor and C string.
    let fd = unsafe { libc::openat(folder.as_raw_fd(), name.as_ptr(), flags) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: a new descriptor that nothing else owns.
    Ok(File::from(unsafe { OwnedFd::from_raw_fd(fd) }))
}

fn read_link(link: &File) -> io::Result<Vec<u8>> {
    let mut target = vec![0_u8; 4096];
    // SAFETY: an empty name means the descriptor itself; a buffer of the told size.
    let length =
        unsafe { libc::readlinkat(link.as_raw_fd(), c"".as_ptr(), target.as_mut_ptr().cast(), target.len()) };
    let length = usize::try_from(length).map_err(|_| io::Error::last_os_error())?;
    target.truncate(length);
    Ok(target)
}

#[cfg(test)]
#[path = "walk_tests.rs"]
mod tests;
