//! Which package versions the lab uses: looked up in Debian's archive at most once a day, kept in the cache.

use std::collections::BTreeMap;
use std::fs;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, bail};
use serde::{Deserialize, Serialize};

use super::SERIES;
use super::archive::{Archive, ROOT_SUITES};
use super::cache::Cache;
use super::debian::KernelBuild;
use super::images::{INITRD_PACKAGE, ROOT_PACKAGES};
use super::{emulator, nginx};

const LOOK_UP_EVERY: Duration = Duration::from_secs(24 * 3600);
const FILE: &str = "choice.json";

/// The versions in use.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Choice {
    /// Seconds since the epoch.
    pub(super) looked_up: u64,
    /// Series → newest build. A series that the archive lacks is absent.
    pub(super) kernels: BTreeMap<String, KernelBuild>,
    /// Package → version.
    pub(super) root: BTreeMap<String, String>,
    pub(super) busybox: String,
    /// Package → version of the current nginx; empty if the archive lacks one. None: not looked up.
    #[serde(default)]
    pub(super) nginx: Option<BTreeMap<String, String>>,
    /// The same of the emulator for machines whose own is too old.
    #[serde(default)]
    pub(super) emulator: Option<BTreeMap<String, String>>,
    /// What apt complained about; empty if nothing.
    pub(super) complaints: String,
}

impl Choice {
    /// The choice in the cache, however old; None if there is none or its format has changed.
    pub(super) fn cached(cache: &Cache) -> Option<Choice> {
        let text = fs::read(cache.path(FILE)).ok()?;
        let choice: Choice = serde_json::from_slice(&text).ok()?;
        choice.is_complete().then_some(choice)
    }

    pub(super) fn is_fresh(&self) -> bool {
        let now = seconds_now();
        // A clock that was set back must not keep a choice for ever.
        let whole = self.nginx.is_some() && self.emulator.is_some();
        whole && self.looked_up <= now && now - self.looked_up < LOOK_UP_EVERY.as_secs()
    }

    /// Asks the archive. Without network an older choice goes on being used, with a warning.
    pub(super) fn look_up(cache: &Cache) -> Result<Choice> {
        eprintln!("lab: looking for the newest guest packages (once a day)");
        let mut suites = ROOT_SUITES.to_vec();
        suites.extend(SERIES.iter().flat_map(|series| series.suites.iter().copied()));
        suites.extend(nginx::SUITES.iter().chain(emulator::SUITES));
        suites.sort_unstable();
        suites.dedup();
        let archive = Archive::open(cache, &suites)?;
        let complaints = archive.update()?.unwrap_or_default();
        if !complaints.is_empty() {
            eprintln!("lab: apt could not fetch everything:\n{complaints}");
        }
        let mut kernels = BTreeMap::new();
        for series in SERIES {
            if let Some(build) = archive.newest_kernel(series.name, series.suites)? {
                kernels.insert(series.name.to_owned(), build);
            }
        }
        let mut names = ROOT_PACKAGES.to_vec();
        names.push(INITRD_PACKAGE);
        let mut root = archive.newest_versions(&names, ROOT_SUITES)?;
        let busybox = root.remove(INITRD_PACKAGE).unwrap_or_default();
        let mut nginx = archive.newest_versions(nginx::PACKAGES, nginx::SUITES)?;
        if !nginx::is_complete(&nginx) {
            nginx.clear();
        }
        let mut emulator = archive.newest_versions(emulator::PACKAGES, emulator::SUITES)?;
        if !emulator::is_usable(&emulator) {
            emulator.clear();
        }
        let (nginx, emulator) = (Some(nginx), Some(emulator));
        let new = Choice { looked_up: seconds_now(), kernels, root, busybox, nginx, emulator, complaints };
        let choice = new.or_older(Choice::cached(cache))?;
        choice.save(cache)?;
        Ok(choice)
    }

    /// Fills what the archive did not have from an earlier choice: sid drops a series without notice, but a
    /// kernel that has been built is still good.
    fn or_older(self, older: Option<Choice>) -> Result<Choice> {
        match older {
            Some(older) if !self.is_complete() => {
                let (nginx, emulator) = (older.nginx.or(self.nginx), older.emulator.or(self.emulator));
                Ok(Choice { looked_up: self.looked_up, nginx, emulator, ..older })
            }
            Some(older) => {
                let mut kernels = older.kernels;
                kernels.extend(self.kernels);
                let nginx = found_or(self.nginx, older.nginx);
                let emulator = found_or(self.emulator, older.emulator);
                Ok(Choice { kernels, nginx, emulator, ..self })
            }
            None if self.is_complete() => Ok(self),
            None => bail!(
                "Debian's package indexes lack what the guests need: is there a network? Set http_proxy or \
                 WHY502_LAB_MIRROR if this machine needs them, then `cargo xtask lab build --refresh`"
            ),
        }
    }

    fn is_complete(&self) -> bool {
        !self.busybox.is_empty() && ROOT_PACKAGES.iter().all(|name| self.root.contains_key(*name))
    }

    fn save(&self, cache: &Cache) -> Result<()> {
        let (path, new) = (cache.path(FILE), cache.path("choice.json.new"));
        let text = serde_json::to_vec_pretty(self).context("cannot encode the choice of packages")?;
        fs::write(&new, text).with_context(|| format!("cannot write {}", new.display()))?;
        fs::rename(&new, &path).with_context(|| format!("cannot replace {}", path.display()))
    }
}

/// What was found now, else what was found earlier.
fn found_or<T>(
    now: Option<BTreeMap<String, T>>,
    earlier: Option<BTreeMap<String, T>>,
) -> Option<BTreeMap<String, T>> {
    now.filter(|versions| !versions.is_empty()).or(earlier).or(Some(BTreeMap::new()))
}

fn seconds_now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn choice(kernels: &[(&str, &str)]) -> Choice {
        Choice {
            looked_up: seconds_now(),
            kernels: kernels
                .iter()
                .map(|(series, release)| {
                    let build = KernelBuild {
                        release: (*release).to_owned(),
                        version: "1".into(),
                        packages: Vec::new(),
                    };
                    ((*series).to_owned(), build)
                })
                .collect(),
            root: ROOT_PACKAGES.iter().map(|name| ((*name).to_owned(), "1".to_owned())).collect(),
            busybox: "1".into(),
            nginx: Some(BTreeMap::from([("nginx".to_owned(), "1".to_owned())])),
            emulator: Some(BTreeMap::from([("qemu-system-x86".to_owned(), "1".to_owned())])),
            complaints: String::new(),
        }
    }

    #[test]
    fn a_dropped_series_keeps_its_older_build() {
        let older = choice(&[("7.2", "7.2.1"), ("6.1", "6.1.0-1")]);
        let merged = choice(&[("6.1", "6.1.0-2")]).or_older(Some(older)).unwrap();
        assert_eq!(merged.kernels["7.2"].release, "7.2.1");
        assert_eq!(merged.kernels["6.1"].release, "6.1.0-2");
    }

    #[test]
    fn an_nginx_or_emulator_that_is_gone_from_the_archive_is_kept() {
        let older = choice(&[]);
        let mut new = choice(&[]);
        (new.nginx, new.emulator) = (Some(BTreeMap::new()), Some(BTreeMap::new()));
        for broken in [false, true] {
            if broken {
                new.root.clear();
            }
            let merged = new.clone().or_older(Some(older.clone())).unwrap();
            assert_eq!((&merged.nginx, &merged.emulator), (&older.nginx, &older.emulator));
        }
        // What an earlier xtask has written knows of none.
        let before = |name: &str| {
            let text = serde_json::to_string(&older).unwrap();
            serde_json::from_str::<Choice>(&text.replace(&format!("\"{name}\":"), "\"something\":")).unwrap()
        };
        assert!(before("emulator").emulator.is_none() && !before("emulator").is_fresh());
        let older = before("nginx");
        assert!(older.nginx.is_none() && !older.is_fresh());
        assert_eq!(new.or_older(Some(older)).unwrap().nginx, Some(BTreeMap::new()));
    }

    #[test]
    fn without_indexes_the_older_choice_stays_or_it_is_an_error() {
        let mut nothing = choice(&[]);
        nothing.root.clear();
        let older = choice(&[("6.1", "6.1.0-1")]);
        assert_eq!(nothing.clone().or_older(Some(older.clone())).unwrap().kernels, older.kernels);
        let error = nothing.or_older(None).unwrap_err();
        assert!(format!("{error}").contains("--refresh"));
    }

    #[test]
    fn a_choice_is_fresh_for_a_day() {
        let mut choice = choice(&[]);
        assert!(choice.is_fresh());
        choice.looked_up += 3600;
        assert!(!choice.is_fresh());
        choice.looked_up -= 26 * 3600;
        assert!(!choice.is_fresh());
    }

    #[test]
    fn choices_survive_the_disk() {
        let dir = tempfile::tempdir().unwrap();
        let cache = Cache::at(dir.path());
        assert_eq!(Choice::cached(&cache), None);
        let choice = choice(&[("6.1", "6.1.0-1")]);
        choice.save(&cache).unwrap();
        assert_eq!(Choice::cached(&cache), Some(choice));
        fs::write(cache.path(FILE), "{}").unwrap();
        assert_eq!(Choice::cached(&cache), None);
    }
}
