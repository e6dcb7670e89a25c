//! Guest kernels for tests: Debian kernels of several series, booted under QEMU with a shared root file system.
//!
//! `prepare` gives kernels that are ready to boot (building what is missing), `run` runs one command in one of
//! them. Every run starts from the same clean disks and needs neither network nor KVM.

mod archive;
mod cache;
mod choice;
mod command;
mod cpio;
mod debian;
mod disk;
mod emulator;
mod guest;
mod images;
mod nginx;

use std::fs::{self, File};
use std::path::PathBuf;

use anyhow::{Context, Result, bail};

use archive::Archive;
use cache::Cache;
use choice::Choice;
pub(crate) use command::{Args, main};
use emulator::Emulator;
pub(crate) use guest::{GuestRun, Job, LockedUp, Lsm, Stream, run};
use images::{KernelFiles, Root};
pub(crate) use nginx::CurrentNginx;

use crate::process;

/// A kernel series that the lab tests, and the suites that may have it.
#[derive(Debug)]
pub(crate) struct Series {
    pub(crate) name: &'static str,
    suites: &'static [&'static str],
}

/// The oldest supported kernel, two that distributions ship today, and the newest there is.
pub(crate) const SERIES: &[Series] = &[
    Series { name: "5.10", suites: &["bullseye", "bullseye-security"] },
    Series { name: "6.1", suites: &["bookworm", "bookworm-updates", "bookworm-security"] },
    Series { name: "6.12", suites: &["bookworm-security", "bookworm-backports"] },
    Series { name: "7.2", suites: &["sid", "forky"] },
];

/// A kernel that is ready to boot.
#[derive(Clone, Debug)]
pub(crate) struct Kernel {
    pub(crate) series: &'static str,
    /// What `uname -r` prints in the guest.
    pub(crate) release: String,
    files: KernelFiles,
    root: Root,
    emulator: Emulator,
    cache: Cache,
}

/// A kernel that cannot be had now, and why.
#[derive(Debug)]
pub(crate) struct Skipped {
    pub(crate) series: &'static str,
    pub(crate) reason: String,
}

/// What `prepare` got: every series asked for is in one of the two lists.
#[derive(Debug)]
pub(crate) struct Prepared {
    pub(crate) kernels: Vec<Kernel>,
    pub(crate) skipped: Vec<Skipped>,
    /// The current nginx in the guests, or why they have none.
    pub(crate) nginx: Result<CurrentNginx>,
    /// What runs them.
    emulator: Emulator,
}

/// Finds a series by its name, such as `6.12`.
pub(crate) fn series(name: &str) -> Result<&'static Series> {
    match SERIES.iter().find(|series| series.name == name) {
        Some(series) => Ok(series),
        None => {
            let known: Vec<&str> = SERIES.iter().map(|series| series.name).collect();
            bail!("no kernel series {name}: there are {}", known.join(", "))
        }
    }
}

/// Makes the kernels of `wanted` ready to boot. Offline and immediate when they have been built and the newest
/// packages were looked up within a day; `refresh` looks them up anyway. Only root looks up and builds; others
/// use what root has built, however old.
///
/// # Errors
/// If the emulator or the shared root file system cannot be had. A single kernel that cannot is skipped.
pub(crate) fn prepare(wanted: &[&'static Series], refresh: bool) -> Result<Prepared> {
    let cache = Cache::open()?;
    let mut lock = None;
    let choice = choose(&cache, refresh, &mut lock)?;
    let emulator = ready_emulator(&cache, &choice, &mut lock)?;
    let nginx = ready_nginx(&cache, &choice, &mut lock);
    let root = ready_root(&cache, &choice, nginx.as_ref().ok(), &mut lock)?;
    let mut prepared = Prepared { kernels: Vec::new(), skipped: Vec::new(), nginx, emulator };
    for series in wanted {
        match ready_kernel(&cache, &choice, series, &mut lock) {
            Ok((release, files)) => prepared.kernels.push(Kernel {
                series: series.name,
                release,
                files,
                root: root.clone(),
                emulator: prepared.emulator.clone(),
                cache: cache.clone(),
            }),
            Err(error) => {
                prepared.skipped.push(Skipped { series: series.name, reason: format!("{error:#}") });
            }
        }
    }
    Ok(prepared)
}

/// A folder of the lab's cache for what outlives a run; it exists.
///
/// # Errors
/// If it cannot be made.
pub(crate) fn folder(name: &str) -> Result<PathBuf> {
    let dir = Cache::open()?.path(name);
    fs::create_dir_all(&dir).with_context(|| format!("cannot create {}", dir.display()))?;
    Ok(dir)
}

/// Makes the current nginx ready to run on this machine: like [`prepare`], and without guests. With `offline` only one
/// that has been unpacked will do.
///
/// # Errors
/// If it cannot be had.
pub(crate) fn current_nginx(offline: bool) -> Result<CurrentNginx> {
    let cache = Cache::open()?;
    if offline {
        let versions = Choice::cached(&cache).and_then(|choice| choice.nginx).unwrap_or_default();
        return nginx::unpacked(&cache, &versions).context("it has not been unpacked");
    }
    let mut lock = None;
    let choice = choose(&cache, false, &mut lock)?;
    ready_nginx(&cache, &choice, &mut lock)
}

/// The versions in use: those of the cache, or the archive's if those are old and this is root.
fn choose(cache: &Cache, refresh: bool, lock: &mut Option<File>) -> Result<Choice> {
    match Choice::cached(cache) {
        Some(choice) if !refresh && (choice.is_fresh() || !process::is_root()) => Ok(choice),
        _ => {
            need_root()?;
            hold(cache, lock)?;
            cache.share_runs()?;
            // Another process may have looked while this one waited for the lock.
            match Choice::cached(cache) {
                Some(choice) if choice.is_fresh() && !refresh => Ok(choice),
                _ => Choice::look_up(cache),
            }
        }
    }
}

/// Makes one kernel ready to boot; that it cannot be had is an error.
pub(crate) fn prepare_one(name: &str) -> Result<Kernel> {
    let mut prepared = prepare(&[series(name)?], false)?;
    match (prepared.kernels.pop(), prepared.skipped.pop()) {
        (Some(kernel), _) => Ok(kernel),
        (None, Some(skipped)) => bail!("kernel {name} cannot be had: {}", skipped.reason),
        (None, None) => bail!("kernel {name} cannot be had"),
    }
}

fn ready_emulator(cache: &Cache, choice: &Choice, lock: &mut Option<File>) -> Result<Emulator> {
    let installed = Emulator::installed()?;
    if installed.is_sound() {
        return Ok(installed);
    }
    newer_emulator(cache, choice, &installed, lock).with_context(|| emulator::by_hand(&installed))
}

fn newer_emulator(
    cache: &Cache,
    choice: &Choice,
    installed: &Emulator,
    lock: &mut Option<File>,
) -> Result<Emulator> {
    let versions = choice.emulator.as_ref().filter(|versions| emulator::is_usable(versions));
    let Some(versions) = versions else {
        bail!("{} has no newer one now; {}", emulator::SUITES.join(" and "), or_none(&choice.complaints));
    };
    if emulator::unpacked(cache, versions).is_none() {
        need_root()?;
        hold(cache, lock)?;
        if emulator::unpacked(cache, versions).is_none() {
            eprintln!("lab: QEMU {} is too old, unpacking a newer one beside it", installed.version);
            emulator::unpack(cache, versions)?;
        }
    }
    cache.mark_used(&emulator::folder(versions));
    emulator::unpacked(cache, versions).context("the new QEMU vanished: try again")
}

fn ready_nginx(cache: &Cache, choice: &Choice, lock: &mut Option<File>) -> Result<CurrentNginx> {
    let versions = choice.nginx.as_ref().filter(|versions| nginx::is_complete(versions));
    let Some(versions) = versions else {
        bail!("{} have no nginx now; {}", nginx::SUITES.join(" and "), or_none(&choice.complaints));
    };
    if nginx::unpacked(cache, versions).is_none() {
        need_root()?;
        hold(cache, lock)?;
        if nginx::unpacked(cache, versions).is_none() {
            eprintln!("lab: unpacking a current nginx beside the installed one");
            nginx::unpack(cache, versions)?;
        }
    }
    let ready = nginx::unpacked(cache, versions).context("the new nginx vanished: try again")?;
    if process::is_root() && !nginx::is_linked(cache, &ready) {
        hold(cache, lock)?;
        nginx::link(cache, &ready)?;
    }
    cache.mark_used(&nginx::folder(cache, versions));
    Ok(ready)
}

fn ready_root(
    cache: &Cache,
    choice: &Choice,
    nginx: Option<&CurrentNginx>,
    lock: &mut Option<File>,
) -> Result<Root> {
    let name = images::root_name(&choice.root, nginx);
    if images::root(cache, &name).is_none() {
        need_root()?;
        hold(cache, lock)?;
        if images::root(cache, &name).is_none() {
            eprintln!("lab: building the guests' root file system (about a minute)");
            let archive = Archive::open(cache, archive::ROOT_SUITES)?;
            images::build_root(cache, &archive, &name, &choice.busybox, nginx)?;
            cache.prune("root-", &name);
        }
    }
    cache.mark_used(&name);
    images::root(cache, &name).ok_or_else(|| anyhow::anyhow!("the new root file system vanished: try again"))
}

fn ready_kernel(
    cache: &Cache,
    choice: &Choice,
    series: &Series,
    lock: &mut Option<File>,
) -> Result<(String, KernelFiles)> {
    let Some(build) = choice.kernels.get(series.name) else {
        bail!(
            "{} have no kernel {} now; {}",
            series.suites.join(" and "),
            series.name,
            or_none(&choice.complaints)
        );
    };
    let name = images::kernel_name(build);
    if images::kernel(cache, &name).is_none() {
        need_root()?;
        hold(cache, lock)?;
        if images::kernel(cache, &name).is_none() {
            eprintln!("lab: preparing kernel {}", build.release);
            images::build_kernel(cache, &Archive::open(cache, series.suites)?, build)?;
            cache.prune(&format!("kernel-{}.", series.name), &name);
        }
    }
    cache.mark_used(&name);
    let files =
        images::kernel(cache, &name).ok_or_else(|| anyhow::anyhow!("the new kernel vanished: try again"))?;
    Ok((build.release.clone(), files))
}

fn hold(cache: &Cache, lock: &mut Option<File>) -> Result<()> {
    if lock.is_none() {
        *lock = Some(cache.lock()?);
    }
    Ok(())
}

fn need_root() -> Result<()> {
    if !process::is_root() {
        bail!(
            "guest images are made as root: run `cargo xtask lab build` as root with the same WHY502_LAB_CACHE (a \
             directory that you can read too); running guests needs no root"
        );
    }
    Ok(())
}

fn or_none(complaints: &str) -> &str {
    if complaints.is_empty() { "apt reported no error" } else { complaints }
}
