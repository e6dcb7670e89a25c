//! Files as another process sees them: paths are resolved by the kernel inside that process's root, so that a
//! container's symlinks (`/etc/nginx/nginx.conf -> /host`) and `..` stay in the container.

use std::ffi::CString;
use std::fs::{self, File, Metadata};
use std::io::{self, Read as _};
use std::os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

/// The root directory of a process. It stays valid after the process ends.
#[derive(Debug)]
pub struct RootFs {
    root: OwnedFd,
}

/// One step of a path, with symbolic links already followed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Step {
    /// The path up to here, as it was written.
    pub path: PathBuf,
    /// File type and mode bits (`st_mode`).
    pub mode: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
}

impl Step {
    /// Whether it is a directory.
    pub fn is_dir(&self) -> bool {
        self.mode & libc::S_IFMT == libc::S_IFDIR
    }

    /// Whether it is a socket.
    pub fn is_socket(&self) -> bool {
        self.mode & libc::S_IFMT == libc::S_IFSOCK
    }

    /// Whether the mode bits let a user do this (`4` read, `2` write, `1` search). ACLs, capabilities and LSMs
    /// are not looked at, and a user's own class decides even where a wider one allows more.
    pub fn allows(&self, uid: u32, groups: &[u32], wanted: u32) -> bool {
        let shift = if uid == self.uid {
            6
        } else if groups.contains(&self.gid) {
            3
        } else {
            0
        };
        self.mode >> shift & wanted == wanted
    }
}

impl RootFs {
    /// The root of a process. Errors: it is gone, or no CAP_SYS_PTRACE over it.
    pub fn of_pid(pid: u32) -> io::Result<Self> {
        Self::at(Path::new(&format!("/proc/{pid}/root")))
    }

    /// A root by path.
    pub fn at(path: &Path) -> io::Result<Self> {
        let flags = libc::O_PATH | libc::O_DIRECTORY;
        let file = File::options().read(true).custom_flags(flags).open(path)?;
        Ok(Self { root: file.into() })
    }

    /// Reads a regular file; relative paths begin at the root. Errors: EFBIG above `max` bytes, EINVAL for
    /// anything but a regular file (a FIFO would block, a device may act).
    pub fn read(&self, path: &Path, max: u64) -> io::Result<Vec<u8>> {
        let handle = File::from(self.open(path, libc::O_PATH)?);
        let found = handle.metadata()?;
        if !found.is_file() {
            return Err(io::Error::from_raw_os_error(libc::EINVAL));
        }
        if found.len() > max {
            return Err(io::Error::from_raw_os_error(libc::EFBIG));
        }
        // By descriptor: what was checked is what is read.
        let file = File::open(format!("/proc/thread-self/fd/{}", handle.as_raw_fd()))?;
        let mut bytes = Vec::with_capacity(usize::try_from(found.len()).unwrap_or(0));
        file.take(max.saturating_add(1)).read_to_end(&mut bytes)?;
        if u64::try_from(bytes.len()).unwrap_or(u64::MAX) > max {
            return Err(io::Error::from_raw_os_error(libc::EFBIG));
        }
        Ok(bytes)
    }

    /// A regular file by an O_PATH descriptor, symbolic links followed inside the root. Errors: EINVAL for anything
    /// but a regular file.
    pub fn file(&self, path: &Path) -> io::Result<File> {
        let handle = File::from(self.open(path, libc::O_PATH)?);
        if handle.metadata()?.is_file() {
            Ok(handle)
        } else {
            Err(io::Error::from_raw_os_error(libc::EINVAL))
        }
    }

    /// A directory by an O_PATH descriptor, symbolic links followed inside the root.
    ///
    /// # Errors
    /// Those of opening it.
    pub fn folder(&self, path: &Path) -> io::Result<File> {
        Ok(File::from(self.open(path, libc::O_PATH | libc::O_DIRECTORY)?))
    }

    /// The names in a directory, sorted by bytes, at most `max` of them.
    pub fn list(&self, path: &Path, max: usize) -> io::Result<Vec<Vec<u8>>> {
        let handle = self.open(path, libc::O_PATH | libc::O_DIRECTORY)?;
        let entries = fs::read_dir(format!("/proc/thread-self/fd/{}", handle.as_raw_fd()))?;
        let names = entries.take(max).map(|entry| Ok(entry?.file_name().as_bytes().to_vec()));
        let mut names = names.collect::<io::Result<Vec<_>>>()?;
        names.sort_unstable();
        Ok(names)
    }

    /// Metadata, symbolic links followed inside the root.
    pub fn metadata(&self, path: &Path) -> io::Result<Metadata> {
        File::from(self.open(path, libc::O_PATH)?).metadata()
    }

    /// Metadata of the last component itself.
    pub fn symlink_metadata(&self, path: &Path) -> io::Result<Metadata> {
        File::from(self.open(path, libc::O_PATH | libc::O_NOFOLLOW)?).metadata()
    }

    /// Every component of an absolute path from the root down, until the end or the first error: which
    /// directory keeps a user out, or which one is missing.
    pub fn walk(&self, path: &Path) -> (Vec<Step>, io::Result<()>) {
        let mut steps = Vec::new();
        let mut ancestors: Vec<&Path> = path.ancestors().filter(|one| !one.as_os_str().is_empty()).collect();
        ancestors.reverse();
        for ancestor in ancestors {
            match self.metadata(ancestor) {
                Ok(found) => {
                    let (mode, uid, gid) = (found.mode(), found.uid(), found.gid());
                    steps.push(Step { path: ancestor.to_owned(), mode, uid, gid });
                }
                Err(error) => return (steps, Err(error)),
            }
        }
        (steps, Ok(()))
    }

    fn open(&self, path: &Path, flags: i32) -> io::Result<OwnedFd> {
        // The kernel gives EAGAIN when a rename races with `..` inside the root.
        const TRIES: u32 = 8;
        let path = CString::new(path.as_os_str().as_bytes())?;
        // SAFETY: open_how is plain integers, for which zero is valid.
        let mut how: libc::open_how = unsafe { std::mem::zeroed() };
        how.flags = u64::from((flags | libc::O_CLOEXEC).cast_unsigned());
        how.resolve = libc::RESOLVE_IN_ROOT | libc::RESOLVE_NO_MAGICLINKS;
        let mut last = io::Error::from_raw_os_error(libc::EAGAIN);
        for _ in 0..TRIES {
            // SAFETY: path and how are live for the call, and the size of `how` is given.
            let fd = unsafe {
                libc::syscall(
                    libc::SYS_openat2,
                    self.root.as_raw_fd(),
                    path.as_ptr(),
                    &raw const how,
                    size_of::<libc::open_how>(),
                )
            };
            match i32::try_from(fd) {
                // SAFETY: the call returned a new descriptor that nothing else owns.
                Ok(fd) if fd >= 0 => return Ok(unsafe { OwnedFd::from_raw_fd(fd) }),
                _ => last = io::Error::last_os_error(),
            }
            if !matches!(last.raw_os_error(), Some(libc::EAGAIN | libc::EINTR)) {
                break;
            }
        }
        Err(last)
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{PermissionsExt as _, symlink};

    use super::*;

    struct Tree(PathBuf);

    impl Tree {
        fn new(name: &str) -> Self {
            let path = std::env::temp_dir().join(format!("why502-rootfs-{name}-{}", std::process::id()));
            let _ = fs::remove_dir_all(&path);
            fs::create_dir_all(path.join("etc/conf.d")).unwrap();
            Self(path)
        }
    }

    impl Drop for Tree {
        fn drop(&mut self) {
            let _ = fs::remove_dir_all(&self.0);
        }
    }

    #[test]
    fn links_stay_inside() {
        let tree = Tree::new("links");
        fs::write(tree.0.join("etc/passwd"), "inside").unwrap();
        symlink("/etc/passwd", tree.0.join("absolute")).unwrap();
        symlink("../../../../../../etc/passwd", tree.0.join("etc/dots")).unwrap();
        symlink("/proc/self/root/etc/passwd", tree.0.join("magic")).unwrap();
        symlink("/loop", tree.0.join("loop")).unwrap();
        let root = RootFs::at(&tree.0).unwrap();
        let read = |path: &str| root.read(Path::new(path), 100);
        for path in ["/etc/passwd", "etc/passwd", "/absolute", "/etc/dots", "/../../etc/passwd"] {
            assert_eq!(read(path).unwrap(), b"inside", "{path}");
        }
        assert!(read("/magic").is_err() && read("/loop").is_err() && read("/none").is_err());
        assert_eq!(read("/etc").unwrap_err().raw_os_error(), Some(libc::EINVAL));
        assert_eq!(root.read(Path::new("/absolute"), 5).unwrap_err().raw_os_error(), Some(libc::EFBIG));
        assert!(root.symlink_metadata(Path::new("/absolute")).unwrap().is_symlink());
        assert_eq!(root.list(Path::new("/etc"), 10).unwrap(), [&b"conf.d"[..], b"dots", b"passwd"]);
        assert!(read("a\0b").is_err());
    }

    #[test]
    fn a_fifo_does_not_block() {
        let tree = Tree::new("fifo");
        let path = CString::new(tree.0.join("fifo").as_os_str().as_bytes()).unwrap();
        // SAFETY: a live C string.
        assert_eq!(unsafe { libc::mkfifo(path.as_ptr(), 0o600) }, 0);
        let root = RootFs::at(&tree.0).unwrap();
        assert_eq!(root.read(Path::new("/fifo"), 9).unwrap_err().raw_os_error(), Some(libc::EINVAL));
    }

    #[test]
    fn the_closed_door_is_found() {
        let tree = Tree::new("walk");
        fs::set_permissions(tree.0.join("etc"), fs::Permissions::from_mode(0o750)).unwrap();
        let (steps, end) = RootFs::at(&tree.0).unwrap().walk(Path::new("/etc/conf.d/none"));
        assert_eq!(end.unwrap_err().kind(), io::ErrorKind::NotFound);
        let paths: Vec<_> = steps.iter().map(|step| step.path.to_str().unwrap()).collect();
        assert_eq!(paths, ["/", "/etc", "/etc/conf.d"]);
        let etc = &steps[1];
        assert!(etc.is_dir() && !etc.is_socket());
        assert!(!etc.allows(etc.uid + 1, &[etc.gid + 1], 1));
        assert!(etc.allows(etc.uid + 1, &[etc.gid], 1) && etc.allows(etc.uid, &[], 3));
    }

    #[test]
    fn own_root() {
        let root = RootFs::of_pid(std::process::id()).unwrap();
        assert!(root.metadata(Path::new("/etc")).unwrap().is_dir());
    }
}
