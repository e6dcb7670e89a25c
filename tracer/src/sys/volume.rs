//! What is left of a file system, as one process sees it.

use std::{io, os::fd::AsRawFd as _, path::Path};

use super::rootfs::RootFs;

/// A file system.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Volume {
    /// The mount lets nobody write.
    pub read_only: bool,
    /// Bytes that can be written.
    pub bytes: u64,
    /// Files that can be made; None where the file system does not count them.
    pub files: Option<u64>,
}

/// The file system of a folder. `privileged`: what is reserved for root counts as well. Errors: those of opening the folder.
pub fn of(root: &RootFs, folder: &Path, privileged: bool) -> io::Result<Volume> {
    let folder = root.folder(folder)?;
    // SAFETY: integers only.
    let mut found: libc::statvfs = unsafe { std::mem::zeroed() };
    // SAFETY: a live descriptor; the call writes into the given struct only.
    if unsafe { libc::fstatvfs(folder.as_raw_fd(), &raw mut found) } != 0 {
        return Err(io::Error::last_os_error());
    }
    let blocks = if privileged { found.f_bfree } else { found.f_bavail };
    let files = if privileged { found.f_ffree } else { found.f_favail };
    Ok(Volume {
        read_only: found.f_flag & libc::ST_RDONLY != 0,
        bytes: blocks.saturating_mul(found.f_frsize),
        files: (found.f_files > 0).then_some(files),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tells_room_from_none() {
        let root = RootFs::at(Path::new("/")).unwrap();
        let folder = tempfile::tempdir().unwrap();
        let here = of(&root, folder.path(), true).unwrap();
        assert!(!here.read_only && here.bytes > 0 && here.files != Some(0), "{here:?}");
        assert!(of(&root, Path::new("/there/is/none"), true).is_err());
    }
}
