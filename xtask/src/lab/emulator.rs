//! The program that runs guests: the installed QEMU, or a newer one of Debian's in the cache where that one is too old.
//!
//! In 7.2 one processor of a guest can translate kernel code while another patches it (static keys, tracepoints, BPF
//! trampolines), and keep the translation: the kernel then meets a breakpoint that it has long taken out, and dies. Guests
//! keep two processors: much of what is tested are races, and one alone takes twice the time.

use std::collections::BTreeMap;
use std::fs;
use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context, Result, bail};

use super::archive::Archive;
use super::cache::{self, Cache};
use crate::process;

/// Where a newer one comes from. It uses the libraries of bookworm that the installed one came with.
pub(super) const SUITES: &[&str] = &["bookworm-backports"];

/// The program and its firmware; its modules are of no use without display and sound.
pub(super) const PACKAGES: &[&str] = &[PACKAGE, "qemu-system-data", "seabios"];

const PACKAGE: &str = "qemu-system-x86";
const PROGRAM: &str = "qemu-system-x86_64";
/// From this version on, pages are locked before they are translated.
const SOUND: (u32, u32) = (8, 2);
/// What an unpacked one consists of.
const UNPACKED: &str = "usr/bin/qemu-system-x86_64";
const FIRMWARE: [&str; 2] = ["usr/share/qemu", "usr/share/seabios"];
/// Goes up when the way it is unpacked changes.
const RECIPE: &str = "1";

/// An emulator that is ready to run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Emulator {
    /// The program's own version, or that of its package.
    pub(super) version: String,
    program: PathBuf,
    /// Where its firmware is, if not where it was built for.
    firmware: Vec<PathBuf>,
}

impl Emulator {
    /// The installed one, sound or not.
    ///
    /// # Errors
    /// If there is none, or its version cannot be read.
    pub(super) fn installed() -> Result<Emulator> {
        let program = process::find_program(PROGRAM).unwrap_or_else(|| PROGRAM.into());
        let output = process::output(Command::new(&program).arg("--version"))?;
        let text = String::from_utf8_lossy(&output.stdout);
        let Some(version) = version(&text) else {
            bail!("{PROGRAM} --version names no version: {}", text.trim_end());
        };
        Ok(Emulator { version: version.to_owned(), program, firmware: Vec::new() })
    }

    /// Whether guests with two processors live in it.
    pub(super) fn is_sound(&self) -> bool {
        is_sound(&self.version)
    }

    /// The words that start it.
    pub(super) fn words(&self) -> Vec<PathBuf> {
        let firmware = self.firmware.iter().flat_map(|dir| [PathBuf::from("-L"), dir.clone()]);
        [self.program.clone()].into_iter().chain(firmware).collect()
    }
}

/// Whether every package has a version, and the program's is new enough.
pub(super) fn is_usable(versions: &BTreeMap<String, String>) -> bool {
    PACKAGES.iter().all(|name| versions.contains_key(*name))
        && versions.get(PACKAGE).is_some_and(|version| is_sound(version))
}

/// The one with these versions, if it has been unpacked.
pub(super) fn unpacked(cache: &Cache, versions: &BTreeMap<String, String>) -> Option<Emulator> {
    let dir = cache.path(&folder(versions));
    let version = versions.get(PACKAGE)?.clone();
    let program = dir.join(UNPACKED);
    let firmware = FIRMWARE.iter().map(|name| dir.join(name)).collect();
    program.exists().then_some(Emulator { version, program, firmware })
}

/// Downloads and unpacks it under the cache's lock. Takes a few seconds.
pub(super) fn unpack(cache: &Cache, versions: &BTreeMap<String, String>) -> Result<()> {
    let packages: Vec<String> = versions.iter().map(|(name, version)| format!("{name}={version}")).collect();
    let files = cache.scratch("unpack-emulator")?;
    Archive::open(cache, SUITES)?.unpack(&packages, &files)?;
    for part in FIRMWARE {
        if !files.join(part).is_dir() {
            bail!("Debian's QEMU has no {part} any more: adapt xtask/src/lab/emulator.rs");
        }
    }
    // A library that this machine lacks shows here.
    process::output(Command::new(files.join(UNPACKED)).arg("--version"))
        .context("Debian's newer QEMU does not run on this machine")?;

    let name = folder(versions);
    let to = cache.path(&name);
    fs::rename(files.path(), &to).with_context(|| format!("cannot move QEMU to {}", to.display()))?;
    cache.prune("emulator-", &name);
    Ok(())
}

/// The folder's name.
pub(super) fn folder(versions: &BTreeMap<String, String>) -> String {
    let listed: Vec<String> = versions.iter().map(|(name, version)| format!("{name}={version}")).collect();
    let mut parts = vec![RECIPE];
    parts.extend(listed.iter().map(String::as_str));
    format!("emulator-{}", cache::stamp(&parts))
}

/// What the user can do in place of a download.
pub(super) fn by_hand(installed: &Emulator) -> String {
    format!(
        "QEMU {} lets guest kernels die while they patch their own code: install {}.{} or newer, or let the \
         lab fetch Debian's",
        installed.version, SOUND.0, SOUND.1
    )
}

/// The version in what `--version` prints, such as `QEMU emulator version 7.2.22 (Debian 1:7.2+dfsg-7)`.
fn version(text: &str) -> Option<&str> {
    let (_, rest) = text.lines().next()?.split_once(" version ")?;
    rest.split_whitespace().next()
}

/// Whether a version such as `7.2.22`, or of a package `1:10.0.2+ds-2`, is new enough. One that cannot be read is not.
fn is_sound(version: &str) -> bool {
    let version = version.split_once(':').map_or(version, |(_epoch, version)| version);
    let mut numbers = version.split(|c: char| !c.is_ascii_digit()).map(|part| part.parse::<u32>().ok());
    let (major, minor) = (numbers.next().flatten(), numbers.next().flatten());
    major.is_some_and(|major| (major, minor.unwrap_or(0)) >= SOUND)
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    fn versions(qemu: &str) -> BTreeMap<String, String> {
        PACKAGES.iter().map(|name| ((*name).to_owned(), qemu.to_owned())).collect()
    }

    #[test]
    fn versions_are_read_from_what_programs_print() {
        let debian = "QEMU emulator version 7.2.22 (Debian 1:7.2+dfsg-7+deb12u18+b3)\nCopyright (c) …\n";
        assert_eq!(version(debian), Some("7.2.22"));
        assert_eq!(version("QEMU emulator version 9.1.50\n"), Some("9.1.50"));
        for text in ["", "QEMU emulator\nversion 9\n", "QEMU emulator version "] {
            assert_eq!(version(text), None, "{text}");
        }
    }

    #[test]
    fn versions_are_compared_by_number() {
        for sound in ["8.2", "8.2.0", "9.0.0-rc1", "10.0.2+ds-2+deb13u1~bpo12+1", "10"] {
            assert!(is_sound(sound), "{sound}");
        }
        for old in ["7.2.22", "8.1.5", "8", "0.15", "", "unknown", "v9.0"] {
            assert!(!is_sound(old), "{old}");
        }
    }

    #[test]
    fn packages_are_usable_together_and_new_enough() {
        let mut some = versions("1:10.0.2+ds-2+deb13u1~bpo12+1");
        assert!(is_usable(&some));
        some.remove("seabios");
        assert!(!is_usable(&some));
        assert!(!is_usable(&versions("1:7.2+dfsg-7")));
        assert!(!is_usable(&BTreeMap::new()));
    }

    #[test]
    fn an_unpacked_one_brings_its_firmware() {
        let dir = tempfile::tempdir().unwrap();
        let (cache, versions) = (Cache::at(dir.path()), versions("1:10.0.2"));
        assert_eq!(unpacked(&cache, &versions), None);
        let to = cache.path(&folder(&versions));
        fs::create_dir_all(to.join("usr/bin")).unwrap();
        fs::write(to.join(UNPACKED), "").unwrap();
        let words = unpacked(&cache, &versions).unwrap().words();
        let of = |name: &str| to.join(name);
        let option = || Path::new("-L").to_owned();
        assert_eq!(words, [of(UNPACKED), option(), of("usr/share/qemu"), option(), of("usr/share/seabios")]);
    }
}
