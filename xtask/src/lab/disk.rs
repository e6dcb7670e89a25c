//! ext4 disk images without mounting anything: made from a directory, read back with debugfs.

use std::ffi::CString;
use std::fs;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, bail};

use crate::process;

/// ext4 features that every kernel from 5.10 on mounts, named one by one because the defaults of e2fsprogs
/// move on. No journal: the images are thrown away.
const FEATURES: &str = "none,ext_attr,resize_inode,dir_index,filetype,extent,flex_bg,sparse_super,large_file,\
                        huge_file,dir_nlink,extra_isize,64bit,metadata_csum";
const MIB: u64 = 1 << 20;
/// One inode for so many bytes: enough for many small files.
const BYTES_PER_INODE: &str = "8192";

/// Free space beyond the content.
#[derive(Clone, Copy)]
pub(super) struct Slack(u64);

impl Slack {
    pub(super) const fn mib(mib: u64) -> Slack {
        Slack(mib * MIB)
    }
}

/// Writes the content of `dir`, with owners and extended attributes, into a new (sparse) image.
pub(super) fn make(dir: &Path, image: &Path, slack: Slack) -> Result<()> {
    // Inode tables and rounding up to blocks take their share: a quarter is generous.
    let size = (content_size(dir)? * 5 / 4 + slack.0).div_ceil(MIB);
    let mke2fs = process::find_program("mke2fs").unwrap_or_else(|| "mke2fs".into());
    process::output(
        Command::new(mke2fs)
            .args(["-q", "-F", "-t", "ext4", "-O", FEATURES, "-m", "0", "-i", BYTES_PER_INODE])
            .args(["-E", "root_owner=0:0,lazy_itable_init=1,nodiscard", "-d"])
            .arg(dir)
            .arg(image)
            .arg(format!("{size}M")),
    )
    .with_context(|| format!("cannot make a disk image of {}", dir.display()))?;
    Ok(())
}

/// Copies a file out of an image.
pub(super) fn read_out(image: &Path, file: &str, to: &Path) -> Result<()> {
    if file.contains(['"', '\n']) || to.as_os_str().as_bytes().iter().any(|byte| b"\"\n".contains(byte)) {
        bail!("cannot fetch {file:?} to {}: quotes and line breaks in names are not supported", to.display());
    }
    let debugfs = process::find_program("debugfs").unwrap_or_else(|| "debugfs".into());
    // debugfs exits with 0 even if there is no such file.
    let done = process::output(
        Command::new(debugfs).arg("-R").arg(format!("dump \"/{file}\" \"{}\"", to.display())).arg(image),
    )?;
    let complaint = String::from_utf8_lossy(&done.stderr);
    if let Some(reason) = complaint.lines().find(|line| !line.starts_with("debugfs ")) {
        let _ = fs::remove_file(to); // an empty file, made before the failure
        bail!("cannot fetch {file} from the job disk: {reason}");
    }
    Ok(())
}

/// Gives `path` and everything in it the SELinux label `label`. Needs root.
pub(super) fn label(path: &Path, label: &str) -> Result<()> {
    set_label(path, label).with_context(|| {
        format!("cannot label {}: the cache needs a file system with extended attributes", path.display())
    })?;
    if path.symlink_metadata().with_context(|| format!("cannot stat {}", path.display()))?.is_dir() {
        for entry in fs::read_dir(path).with_context(|| format!("cannot list {}", path.display()))? {
            let entry = entry.with_context(|| format!("cannot list {}", path.display()))?;
            self::label(&entry.path(), label)?;
        }
    }
    Ok(())
}

fn set_label(path: &Path, label: &str) -> io::Result<()> {
    let path = CString::new(path.as_os_str().as_bytes())?;
    let label = CString::new(label)?;
    let value = label.as_bytes_with_nul();
    // SAFETY: path and name are NUL-terminated, value points to `len` readable bytes; the call keeps no pointer.
    let result = unsafe {
        libc::lsetxattr(path.as_ptr(), c"security.selinux".as_ptr(), value.as_ptr().cast(), value.len(), 0)
    };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Bytes that the files under `dir` need, in whole blocks of 4 KiB, one more for each entry.
fn content_size(dir: &Path) -> Result<u64> {
    const BLOCK: u64 = 4096;
    let mut size = BLOCK;
    for entry in fs::read_dir(dir).with_context(|| format!("cannot list {}", dir.display()))? {
        let entry = entry.with_context(|| format!("cannot list {}", dir.display()))?;
        let path = entry.path();
        let meta = path.symlink_metadata().with_context(|| format!("cannot stat {}", path.display()))?;
        size += BLOCK;
        size += if meta.is_dir() { content_size(&path)? } else { meta.len().next_multiple_of(BLOCK) };
    }
    Ok(size)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn disks_give_back_what_they_were_made_of() {
        if process::find_program("mke2fs").is_none() || process::find_program("debugfs").is_none() {
            why502_skip::skipped("no mke2fs or debugfs here");
            return;
        }
        let dir = tempfile::tempdir().unwrap();
        let content = dir.path().join("content");
        fs::create_dir_all(content.join("sub")).unwrap();
        fs::write(content.join("sub/a file"), "hello").unwrap();
        let image = dir.path().join("disk.img");
        make(&content, &image, Slack::mib(1)).unwrap();
        let to = dir.path().join("out");
        read_out(&image, "sub/a file", &to).unwrap();
        assert_eq!(fs::read(&to).unwrap(), b"hello");
        let error = read_out(&image, "missing", &to).unwrap_err();
        assert!(format!("{error}").contains("cannot fetch missing"), "{error}");
        read_out(&image, "a\"b", &to).unwrap_err();
    }

    #[test]
    fn size_counts_blocks() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("one"), "x").unwrap();
        fs::write(dir.path().join("two"), vec![0; 4097]).unwrap();
        assert_eq!(content_size(dir.path()).unwrap(), 4096 * (1 + 2 + 3));
    }
}
