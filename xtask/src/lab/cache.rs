//! The lab's directory outside the source tree: where it is, its lock, stamps, clean-up.

use std::env;
use std::fs::{self, File, TryLockError};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, SystemTime};

use anyhow::{Context, Result, anyhow};

const KEEP_UNUSED: Duration = Duration::from_secs(24 * 3600);

/// The cache directory; it exists.
#[derive(Clone, Debug)]
pub(super) struct Cache {
    dir: PathBuf,
}

impl Cache {
    /// `$WHY502_LAB_CACHE`, else `$XDG_CACHE_HOME/why502/lab`, else `~/.cache/why502/lab`.
    pub(super) fn open() -> Result<Cache> {
        let dir = location(|name| env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from))
            .context("no place for guest images: set WHY502_LAB_CACHE to a directory")?;
        fs::create_dir_all(&dir).with_context(|| {
            format!("cannot create {}: set WHY502_LAB_CACHE to a directory you may write to", dir.display())
        })?;
        let dir = dir.canonicalize().with_context(|| format!("cannot resolve {}", dir.display()))?;
        Ok(Cache { dir })
    }

    #[cfg(test)]
    pub(super) fn at(dir: &Path) -> Cache {
        Cache { dir: dir.to_owned() }
    }

    pub(super) fn path(&self, name: &str) -> PathBuf {
        self.dir.join(name)
    }

    /// Takes the lock under which images are made; other processes wait until the guard is dropped.
    pub(super) fn lock(&self) -> Result<File> {
        let path = self.path("lock");
        let file = File::options()
            .create(true)
            .truncate(false)
            .write(true)
            .open(&path)
            .with_context(|| format!("cannot open {}", path.display()))?;
        match file.try_lock() {
            Ok(()) => return Ok(file),
            Err(TryLockError::WouldBlock) => {}
            Err(TryLockError::Error(error)) => {
                return Err(anyhow!(error).context(format!("cannot lock {}", path.display())));
            }
        }
        eprintln!("lab: another process prepares images in {}, waiting for it", self.dir.display());
        file.lock().with_context(|| format!("cannot lock {}", path.display()))?;
        Ok(file)
    }

    /// An empty directory for work in progress under the lock; leftovers of an earlier attempt are removed.
    pub(super) fn scratch(&self, name: &str) -> Result<Scratch> {
        let path = self.path(name);
        remove_tree(&path)?;
        fs::create_dir_all(&path).with_context(|| format!("cannot create {}", path.display()))?;
        Ok(Scratch { path })
    }

    /// Lets every user run guests with the images that root makes.
    pub(super) fn share_runs(&self) -> Result<()> {
        let runs = self.path("run");
        fs::create_dir_all(&runs)
            .and_then(|()| fs::set_permissions(&runs, fs::Permissions::from_mode(0o1777)))
            .with_context(|| format!("cannot prepare {}", runs.display()))
    }

    /// A directory for one guest run. Those whose process is gone (killed before its clean-up) are removed.
    pub(super) fn run_dir(&self) -> Result<Scratch> {
        static RUNS: AtomicU32 = AtomicU32::new(0);
        let runs = self.path("run");
        fs::create_dir_all(&runs).with_context(|| format!("cannot create {}", runs.display()))?;
        for entry in fs::read_dir(&runs).with_context(|| format!("cannot list {}", runs.display()))?.flatten()
        {
            let name = entry.file_name().to_string_lossy().into_owned();
            let owner = name.split('-').next().unwrap_or_default();
            if !Path::new("/proc").join(owner).exists() {
                // Another process may have removed it a moment ago.
                let _ = fs::remove_dir_all(entry.path());
            }
        }
        let name = format!("{}-{}", process::id(), RUNS.fetch_add(1, Ordering::Relaxed));
        let path = runs.join(name);
        fs::create_dir_all(&path).with_context(|| format!("cannot create {}", path.display()))?;
        Ok(Scratch { path })
    }

    /// Notes that an image is in use now.
    pub(super) fn mark_used(&self, name: &str) {
        // It may belong to root, who made it, and be used by somebody else: then it counts as unused, which
        // costs a rebuild at worst.
        let _ = File::open(self.path(name)).and_then(|dir| dir.set_modified(SystemTime::now()));
    }

    /// Removes entries that begin with `prefix`, other than `keep`, once they have been unused for a day: a guest
    /// of another process may be about to open one.
    pub(super) fn prune(&self, prefix: &str, keep: &str) {
        let entries = fs::read_dir(&self.dir).into_iter().flatten().flatten();
        for entry in entries {
            let name = entry.file_name().to_string_lossy().into_owned();
            let age = entry
                .metadata()
                .and_then(|m| m.modified())
                .ok()
                .and_then(|t| SystemTime::now().duration_since(t).ok());
            if name.starts_with(prefix) && name != keep && age.is_some_and(|age| age > KEEP_UNUSED) {
                // Left over until the next time if it cannot be removed now.
                let _ = remove_tree(&entry.path());
            }
        }
    }

    /// Removes everything in the cache. Takes the lock.
    pub(super) fn clean(&self) -> Result<()> {
        let _lock = self.lock()?;
        let entries =
            fs::read_dir(&self.dir).with_context(|| format!("cannot list {}", self.dir.display()))?;
        for entry in entries.flatten() {
            if entry.file_name() != "lock" {
                remove_tree(&entry.path())?;
            }
        }
        Ok(())
    }

    pub(super) fn dir(&self) -> &Path {
        &self.dir
    }
}

/// A directory that is removed when dropped.
pub(super) struct Scratch {
    path: PathBuf,
}

impl Scratch {
    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    pub(super) fn join(&self, name: &str) -> PathBuf {
        self.path.join(name)
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        // The next scratch of this name, or the next run, tries again.
        let _ = remove_tree(&self.path);
    }
}

/// A short name for what went into an image: FNV-1a over the parts, each closed by a byte that text lacks.
pub(super) fn stamp(parts: &[&str]) -> String {
    let mut hash: u64 = 0xcbf2_9ce4_8422_2325;
    for byte in parts.iter().flat_map(|part| part.bytes().chain([0xff])) {
        hash = (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3);
    }
    format!("{hash:016x}")
}

fn remove_tree(path: &Path) -> Result<()> {
    let result = match fs::symlink_metadata(path) {
        Ok(meta) if meta.is_dir() => fs::remove_dir_all(path),
        Ok(_) => fs::remove_file(path),
        Err(_) => return Ok(()),
    };
    result.with_context(|| format!("cannot remove {}: remove it by hand, perhaps as root", path.display()))
}

fn location(var: impl Fn(&str) -> Option<PathBuf>) -> Option<PathBuf> {
    var("WHY502_LAB_CACHE")
        .or_else(|| Some(var("XDG_CACHE_HOME")?.join("why502/lab")))
        .or_else(|| Some(var("HOME")?.join(".cache/why502/lab")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn place_of_the_cache() {
        let with = |set: &'static [(&str, &str)]| {
            location(move |name| {
                set.iter().find(|(key, _)| *key == name).map(|(_, value)| PathBuf::from(value))
            })
        };
        assert_eq!(with(&[]), None);
        assert_eq!(with(&[("HOME", "/h")]).unwrap(), Path::new("/h/.cache/why502/lab"));
        assert_eq!(with(&[("HOME", "/h"), ("XDG_CACHE_HOME", "/x")]).unwrap(), Path::new("/x/why502/lab"));
        assert_eq!(with(&[("HOME", "/h"), ("WHY502_LAB_CACHE", "/w")]).unwrap(), Path::new("/w"));
    }

    #[test]
    fn stamps_depend_on_every_part_and_their_borders() {
        assert_eq!(stamp(&[]), "cbf29ce484222325");
        assert_eq!(stamp(&["a", "b"]), stamp(&["a", "b"]));
        for other in [&["ab"][..], &["a", "b", ""], &["b", "a"], &["", "ab"], &["a", "c"]] {
            assert_ne!(stamp(&["a", "b"]), stamp(other), "{other:?}");
        }
    }

    #[test]
    fn scratch_starts_empty_and_goes_away() {
        let dir = tempfile::tempdir().unwrap();
        let cache = Cache { dir: dir.path().to_owned() };
        fs::create_dir(cache.path("work")).unwrap();
        fs::write(cache.path("work/left-over"), "x").unwrap();
        let scratch = cache.scratch("work").unwrap();
        assert_eq!(fs::read_dir(scratch.path()).unwrap().count(), 0);
        drop(scratch);
        assert!(!cache.path("work").exists());
    }

    #[test]
    fn run_dirs_of_dead_processes_are_removed() {
        let dir = tempfile::tempdir().unwrap();
        let cache = Cache { dir: dir.path().to_owned() };
        fs::create_dir_all(cache.path("run/4294967295-0")).unwrap();
        let run = cache.run_dir().unwrap();
        assert!(run.path().exists());
        assert_eq!(fs::read_dir(cache.path("run")).unwrap().count(), 1);
    }
}
