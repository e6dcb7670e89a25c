//! Debian's package archive through apt with a state of its own: apt checks signatures and checksums, the
//! host's package lists stay untouched.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::BufReader;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

use super::cache::{Cache, Scratch};
use super::debian::{self, KernelBuild, Package};
use crate::process;

const MIRROR: &str = "http://deb.debian.org/debian";
const SECURITY_MIRROR: &str = "http://deb.debian.org/debian-security";
const KEYRING: &str = "/usr/share/keyrings/debian-archive-keyring.gpg";

const CONFIG: &str = "apt.conf";

/// The suites that make the guest's root file system.
pub(super) const ROOT_SUITES: &[&str] = &["bookworm", "bookworm-updates", "bookworm-security"];

/// A private apt.
pub(super) struct Archive {
    dir: PathBuf,
}

impl Archive {
    /// Prepares the private state for `suites` in the cache; no network yet.
    pub(super) fn open(cache: &Cache, suites: &[&str]) -> Result<Archive> {
        if !Path::new(KEYRING).exists() {
            bail!("{KEYRING} is missing: install debian-archive-keyring (`cargo xtask setup --for guest`)");
        }
        let archive = Archive { dir: cache.path("apt") };
        for sub in ["state/lists/partial", "cache/archives/partial"] {
            let dir = archive.dir.join(sub);
            fs::create_dir_all(&dir).with_context(|| format!("cannot create {}", dir.display()))?;
        }
        archive.write("status", "")?;
        archive.write(CONFIG, &config(&archive.dir))?;
        archive.write("sources.list", &source_lines(suites).join("\n"))?;
        Ok(archive)
    }

    /// Fetches the package indexes. A suite that cannot be had is reported in the returned warning.
    pub(super) fn update(&self) -> Result<Option<String>> {
        let update = self.apt_get("update").output().context("cannot run apt-get: is apt installed?")?;
        let stderr = String::from_utf8_lossy(&update.stderr);
        let complaints: Vec<&str> =
            stderr.lines().filter(|line| line.starts_with("E:") || line.starts_with("W:")).collect();
        if update.status.success() && complaints.is_empty() {
            return Ok(None);
        }
        Ok(Some(complaints.join("\n")))
    }

    /// The newest kernel of `series` in `suites`; None if no index has one.
    pub(super) fn newest_kernel(&self, series: &str, suites: &[&str]) -> Result<Option<KernelBuild>> {
        let packages = self.packages(suites, debian::is_kernel_package)?;
        Ok(debian::newest_kernel(&packages, series))
    }

    /// The newest versions of `names` in `suites`; names that have none are left out.
    pub(super) fn newest_versions(
        &self,
        names: &[&str],
        suites: &[&str],
    ) -> Result<BTreeMap<String, String>> {
        let packages = self.packages(suites, |name| names.contains(&name))?;
        Ok(debian::newest_versions(&packages))
    }

    /// Downloads packages (`name=version`) and unpacks them together into `into`.
    pub(super) fn unpack(&self, packages: &[String], into: &Scratch) -> Result<()> {
        let debs = into.join(".debs");
        fs::create_dir_all(&debs).with_context(|| format!("cannot create {}", debs.display()))?;
        process::output(self.apt_get("download").args(packages).current_dir(&debs)).with_context(
            || "the download failed; a newer package may have replaced it: `cargo xtask lab build --refresh`",
        )?;
        for deb in fs::read_dir(&debs).with_context(|| format!("cannot list {}", debs.display()))? {
            let deb = deb.with_context(|| format!("cannot list {}", debs.display()))?.path();
            process::output(Command::new("dpkg-deb").arg("--extract").arg(&deb).arg(into.path()))?;
        }
        fs::remove_dir_all(&debs).with_context(|| format!("cannot remove {}", debs.display()))
    }

    fn packages(&self, suites: &[&str], wanted: impl Fn(&str) -> bool) -> Result<Vec<Package>> {
        let lists = self.dir.join("state/lists");
        let mut packages = Vec::new();
        for entry in
            fs::read_dir(&lists).with_context(|| format!("cannot list {}", lists.display()))?.flatten()
        {
            let name = entry.file_name().to_string_lossy().into_owned();
            if suites.iter().any(|suite| is_index_of(&name, suite)) {
                let index = File::open(entry.path()).with_context(|| format!("cannot open {name}"))?;
                let found = debian::parse_index(BufReader::with_capacity(1 << 20, index), &wanted);
                packages.extend(found.with_context(|| format!("cannot read {name}"))?);
            }
        }
        Ok(packages)
    }

    fn apt_get(&self, action: &str) -> Command {
        let mut command = Command::new("apt-get");
        command.env("LC_ALL", "C").arg("-q").arg("-c").arg(self.dir.join(CONFIG)).arg(action);
        command
    }

    fn write(&self, name: &str, text: &str) -> Result<()> {
        let path = self.dir.join(name);
        fs::write(&path, text).with_context(|| format!("cannot write {}", path.display()))
    }
}

/// apt.conf(5) for a private state in `dir`. The host's settings, such as a proxy, stay in force otherwise.
fn config(dir: &Path) -> String {
    let dir = dir.display();
    format!(
        r#"Dir::State "{dir}/state";
Dir::State::status "{dir}/status";
Dir::Cache "{dir}/cache";
Dir::Etc::sourcelist "{dir}/sources.list";
Dir::Etc::sourceparts "-";
APT::Architecture "amd64";
APT::Architectures {{ "amd64"; }};
// The cache may lie in a directory that user _apt cannot enter.
APT::Sandbox::User "";
Acquire::Languages "none";
Acquire::GzipIndexes "false";
Acquire::IndexTargets::deb::DEP-11::DefaultEnabled "false";
Acquire::Retries "2";
// Hooks of the host would run for its package lists.
#clear APT::Update::Pre-Invoke;
#clear APT::Update::Post-Invoke;
#clear APT::Update::Post-Invoke-Success;
"#
    )
}

/// sources.list lines; `$WHY502_LAB_MIRROR` replaces Debian's mirror network (not the security archive).
pub(super) fn source_lines(suites: &[&str]) -> Vec<String> {
    let mirror = std::env::var("WHY502_LAB_MIRROR").unwrap_or_else(|_| MIRROR.to_owned());
    suites
        .iter()
        .map(|suite| {
            let base = if suite.ends_with("-security") { SECURITY_MIRROR } else { &mirror };
            format!("deb [arch=amd64 signed-by={KEYRING}] {base} {suite} main\n")
        })
        .collect()
}

/// Whether `file`, a name in apt's lists directory, is the package index of `suite`.
fn is_index_of(file: &str, suite: &str) -> bool {
    file.ends_with("_Packages") && file.contains(&format!("_dists_{suite}_"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn indexes_belong_to_one_suite() {
        let name = "deb.debian.org_debian_dists_bookworm_main_binary-amd64_Packages";
        assert!(is_index_of(name, "bookworm"));
        assert!(!is_index_of(name, "bookworm-security"));
        assert!(!is_index_of("deb.debian.org_debian_dists_bookworm_InRelease", "bookworm"));
        let security = "deb.debian.org_debian-security_dists_bookworm-security_main_binary-amd64_Packages";
        assert!(is_index_of(security, "bookworm-security"));
        assert!(!is_index_of(security, "bookworm"));
    }

    #[test]
    fn security_suites_have_their_own_archive() {
        let lines = source_lines(&["sid", "bookworm-security"]);
        assert!(lines[0].ends_with("/debian sid main\n"), "{}", lines[0]);
        assert!(lines[1].contains("/debian-security bookworm-security main"), "{}", lines[1]);
    }
}
