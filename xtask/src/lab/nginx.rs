//! A current nginx beside the installed one: Debian's newest with the libraries that it was built for, unpacked into
//! the cache. It starts like any program, from any folder and without a container: its file names its own loader
//! and its own libraries, so that `/proc/PID/exe` is nginx itself.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

use super::archive::Archive;
use super::cache::{self, Cache, Scratch};
use crate::process;

/// Where it may come from; the newest counts.
pub(super) const SUITES: &[&str] = &["sid", "forky"];

/// nginx, and every library that it loads.
pub(super) const PACKAGES: &[&str] =
    &[NGINX, "libnginx-mod-stream", "libc6", "libcrypt1", "libpcre2-8-0", "libssl3t64", "libzstd1", "zlib1g"];

/// Its name in the cache and in guests: the fault lab and the tests of the configuration look for
/// `current-nginx/nginx` there.
pub(super) const LINK: &str = "current-nginx";
/// What guests have in place of the cache; guest-init.sh tells the fault lab so.
pub(super) const GUEST_CACHE: &str = "/opt/why502-lab";

const NGINX: &str = "nginx";
const LOADER: &str = "lib/ld-linux-x86-64.so.2";
/// Goes up when the way it is unpacked changes.
const RECIPE: &str = "1";

/// A current nginx that is ready to run.
#[derive(Clone, Debug)]
pub(crate) struct CurrentNginx {
    /// Debian's version, such as `1.30.6-2`.
    pub(crate) version: String,
    /// The folder: `nginx`, `lib`, `modules`.
    pub(crate) dir: PathBuf,
}

/// Whether every package has a version.
pub(super) fn is_complete(versions: &BTreeMap<String, String>) -> bool {
    PACKAGES.iter().all(|name| versions.contains_key(*name))
}

/// The one with these versions, if it has been unpacked.
pub(super) fn unpacked(cache: &Cache, versions: &BTreeMap<String, String>) -> Option<CurrentNginx> {
    let dir = cache.path(&folder(cache, versions));
    let version = versions.get(NGINX)?.clone();
    dir.join(NGINX).exists().then_some(CurrentNginx { version, dir })
}

/// Downloads and unpacks it under the cache's lock. Takes a few seconds.
pub(super) fn unpack(cache: &Cache, versions: &BTreeMap<String, String>) -> Result<()> {
    let packages: Vec<String> = versions.iter().map(|(name, version)| format!("{name}={version}")).collect();
    let files = cache.scratch("unpack-nginx")?;
    Archive::open(cache, SUITES)?.unpack(&packages, &files)?;
    let out = cache.scratch("build-nginx")?;
    gather(&files, &out)?;

    // First with its loader named by hand: a library that is not in `PACKAGES` shows here.
    let mut try_out = Command::new(out.join(LOADER));
    try_out.arg("--library-path").arg(out.join("lib")).arg(out.join(NGINX)).arg("-v");
    process::output(&mut try_out)
        .context("Debian's current nginx needs more than xtask/src/lab/nginx.rs names")?;

    let name = folder(cache, versions);
    let to = cache.path(&name);
    settle(out.path(), &to)?;
    fs::rename(out.path(), &to).with_context(|| format!("cannot move nginx to {}", to.display()))?;
    cache.prune("nginx-", &name);
    Ok(())
}

/// Whether the name that the tests know leads to it.
pub(super) fn is_linked(cache: &Cache, nginx: &CurrentNginx) -> bool {
    fs::read_link(cache.path(LINK)).is_ok_and(|target| nginx.dir.file_name() == Some(target.as_os_str()))
}

/// Points that name to it, under the cache's lock.
pub(super) fn link(cache: &Cache, nginx: &CurrentNginx) -> Result<()> {
    let (path, new) = (cache.path(LINK), cache.path("current-nginx.new"));
    let target = nginx.dir.file_name().context("the folder of nginx has a name")?;
    // Left over if an earlier attempt ended between the two calls.
    let _ = fs::remove_file(&new);
    symlink(target, &new)
        .and_then(|()| fs::rename(&new, &path))
        .with_context(|| format!("cannot link {}", path.display()))
}

/// Copies it into a root file system, for guests.
pub(super) fn install(nginx: &CurrentNginx, rootfs: &Path) -> Result<()> {
    let place = Path::new(GUEST_CACHE).join(LINK);
    let inside = rootfs.join(place.strip_prefix("/").unwrap_or(&place));
    fs::create_dir_all(&inside).with_context(|| format!("cannot create {}", inside.display()))?;
    process::output(Command::new("cp").args(["-a", "--"]).arg(nginx.dir.join(".")).arg(&inside))?;
    settle(&inside, &place)
}

/// The folder's name. The place of the cache is part of it: the program's file names its loader by its path.
pub(super) fn folder(cache: &Cache, versions: &BTreeMap<String, String>) -> String {
    let listed: Vec<String> = versions.iter().map(|(name, version)| format!("{name}={version}")).collect();
    let place = cache.dir().to_string_lossy();
    let mut parts = vec![RECIPE, &*place];
    parts.extend(listed.iter().map(String::as_str));
    let version = versions.get(NGINX).map_or("", String::as_str);
    format!("nginx-{version}-{}", cache::stamp(&parts))
}

/// Takes the program, its module and the libraries out of the unpacked packages.
fn gather(files: &Scratch, out: &Scratch) -> Result<()> {
    let lib = out.join("lib");
    fs::create_dir_all(out.join("modules"))
        .with_context(|| format!("cannot create {}", out.path().display()))?;
    fs::create_dir(&lib).with_context(|| format!("cannot create {}", lib.display()))?;
    for (from, to) in [
        ("usr/sbin/nginx", NGINX),
        ("usr/lib/nginx/modules/ngx_stream_module.so", "modules/ngx_stream_module.so"),
    ] {
        fs::copy(files.join(from), out.join(to)).with_context(|| format!("Debian's nginx has no {from}"))?;
    }
    let libraries = files.join("usr/lib/x86_64-linux-gnu");
    for entry in fs::read_dir(&libraries).with_context(|| format!("cannot list {}", libraries.display()))? {
        let entry = entry.with_context(|| format!("cannot list {}", libraries.display()))?;
        // Links become files: only what they lead to is needed, under their name.
        if entry.file_name().to_string_lossy().contains(".so.") && entry.path().is_file() {
            fs::copy(entry.path(), lib.join(entry.file_name()))
                .with_context(|| format!("cannot copy {}", entry.path().display()))?;
        }
    }
    if !out.join(LOADER).exists() {
        bail!("Debian's libc has no {LOADER} any more: adapt xtask/src/lab/nginx.rs");
    }
    Ok(())
}

/// Makes the program in `dir` one that runs at `place`. DT_RPATH, not DT_RUNPATH: it holds for the libraries'
/// own needs too.
fn settle(dir: &Path, place: &Path) -> Result<()> {
    let mut patchelf = Command::new("patchelf");
    patchelf.arg("--set-interpreter").arg(place.join(LOADER));
    patchelf.args(["--force-rpath", "--set-rpath", "$ORIGIN/lib"]).arg(dir.join(NGINX));
    process::output(&mut patchelf)
        .context("cannot give nginx its libraries (`cargo xtask setup` installs patchelf)")?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn versions(nginx: &str) -> BTreeMap<String, String> {
        PACKAGES.iter().map(|name| ((*name).to_owned(), nginx.to_owned())).collect()
    }

    #[test]
    fn a_folder_is_named_by_version_and_place() {
        let (one, other) = (Cache::at(Path::new("/a")), Cache::at(Path::new("/b")));
        let name = folder(&one, &versions("1.30.6-2"));
        assert!(name.starts_with("nginx-1.30.6-2-"), "{name}");
        assert_ne!(name, folder(&other, &versions("1.30.6-2")));
        assert_ne!(name, folder(&one, &versions("1.30.7-1")));
    }

    #[test]
    fn nothing_is_ready_in_an_empty_cache_and_every_package_counts() {
        let dir = tempfile::tempdir().unwrap();
        assert!(unpacked(&Cache::at(dir.path()), &versions("1")).is_none());
        let mut some = versions("1");
        assert!(is_complete(&some));
        some.remove("libc6");
        assert!(!is_complete(&some));
    }

    #[test]
    fn the_link_follows_the_newest() {
        let dir = tempfile::tempdir().unwrap();
        let cache = Cache::at(dir.path());
        for name in ["nginx-1", "nginx-2", "nginx-2"] {
            let nginx = CurrentNginx { version: "1".into(), dir: cache.path(name) };
            fs::create_dir_all(&nginx.dir).unwrap();
            link(&cache, &nginx).unwrap();
            assert_eq!(fs::read_link(cache.path(LINK)).unwrap(), Path::new(name));
            assert!(is_linked(&cache, &nginx));
        }
    }
}
