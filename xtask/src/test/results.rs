//! What the places of a run counted, and how often cases that hang on time passed; `--thorough` keeps it by the tree that was
//! tested, and adds up what several runs of that tree have found.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Mutex, MutexGuard, PoisonError};

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};

use super::Counts;
use crate::lab::{self, SERIES};
use crate::{binaries, process};

/// What one place, a stage or a part of a guest, has found in one run.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
struct Place {
    passed: u64,
    failed: u64,
    skipped: u64,
    /// Of cases that hang on time: passed and played.
    rates: BTreeMap<String, (u64, u64)>,
    /// Lines about failures.
    failures: Vec<String>,
    /// Where the whole output is.
    log: Option<PathBuf>,
}

type Places = BTreeMap<String, Place>;

static ALL: Mutex<Places> = Mutex::new(Places::new());

/// Notes what a line of a test program says of its place.
pub(super) fn note(place: &str, line: &str) {
    if let Some((case, passed, played)) = rate(line) {
        let mut all = all();
        let sum = all.entry(place.to_owned()).or_default().rates.entry(case.to_owned()).or_default();
        *sum = (sum.0 + passed, sum.1 + played);
    } else if let Some(failure) = line.strip_prefix("failed: ") {
        all().entry(place.to_owned()).or_default().failures.push(failure.to_owned());
    }
}

/// Adds what a place has counted.
pub(super) fn count(place: &str, counts: Counts, log: Option<PathBuf>) {
    let mut all = all();
    let one = all.entry(place.to_owned()).or_default();
    one.passed += counts.passed;
    one.failed += counts.failed;
    one.skipped += counts.skipped;
    one.log = log;
}

fn all() -> MutexGuard<'static, Places> {
    ALL.lock().unwrap_or_else(PoisonError::into_inner)
}

/// faultlab's line `rate: NAME 2/3`.
fn rate(line: &str) -> Option<(&str, u64, u64)> {
    let (case, rate) = line.strip_prefix("rate: ")?.rsplit_once(' ')?;
    let (passed, played) = rate.split_once('/')?;
    Some((case, passed.parse().ok()?, played.parse().ok()?))
}

/// Keeps what this run has found, as one more line of the tree's file.
pub(super) fn keep() -> Result<()> {
    let path = file()?;
    let mut line = serde_json::to_string(&*all()).context("cannot write the results as JSON")?;
    line.push('\n');
    let mut file = File::options()
        .create(true)
        .append(true)
        .open(&path)
        .with_context(|| format!("cannot open {}", path.display()))?;
    file.write_all(line.as_bytes()).with_context(|| format!("cannot write {}", path.display()))
}

/// Tells what all runs of this tree have found together; true if nothing failed and nothing is left to run.
pub(super) fn report() -> Result<bool> {
    let path = file()?;
    // No file: no run yet.
    let text = fs::read_to_string(&path).unwrap_or_default();
    let runs: Vec<Places> = text
        .lines()
        .map(serde_json::from_str)
        .collect::<Result<_, _>>()
        .with_context(|| format!("{} is damaged: remove it", path.display()))?;
    println!("\n── all thorough runs of this tree: {} in {}", runs.len(), path.display());
    let sum = add_up(&runs);
    let mut total = Counts::default();
    for (name, (place, times)) in &sum {
        let counts = Counts { passed: place.passed, failed: place.failed, skipped: place.skipped };
        total.add(counts);
        println!("{name:<34} {counts}  ({times} runs)");
        place.failures.iter().for_each(|failure| println!("    failed: {failure}"));
    }
    for line in below_one(&sum) {
        println!("{line}");
    }
    let left: Vec<&str> =
        SERIES.iter().map(|series| series.name).filter(|name| !sum.contains_key(&kernel(name))).collect();
    if !left.is_empty() {
        println!("not run yet: kernel {}", left.join(", "));
    }
    println!("{total}");
    Ok(total.failed == 0 && left.is_empty())
}

/// The place that a kernel is sure to have once it has run.
fn kernel(series: &str) -> String {
    format!("kernel {series}, full")
}

/// Counts are those of the place's newest run; rates are those of all runs.
fn add_up(runs: &[Places]) -> BTreeMap<String, (Place, u64)> {
    let mut sum: BTreeMap<String, (Place, u64)> = BTreeMap::new();
    for (name, place) in runs.iter().flatten() {
        let (known, times) = sum.entry(name.clone()).or_default();
        let mut rates = std::mem::take(&mut known.rates);
        for (case, (passed, played)) in &place.rates {
            let rate = rates.entry(case.clone()).or_default();
            *rate = (rate.0 + passed, rate.1 + played);
        }
        *known = Place { rates, ..place.clone() };
        *times += 1;
    }
    sum
}

/// The cases that did not always pass, worst first.
fn below_one(sum: &BTreeMap<String, (Place, u64)>) -> Vec<String> {
    let mut low = Vec::new();
    for (name, (place, _)) in sum {
        for (case, (passed, played)) in place.rates.iter().filter(|(_, (passed, played))| passed < played) {
            let log = place.log.as_ref().map(|log| format!("; {}", log.display())).unwrap_or_default();
            low.push((
                passed * 1000 / played.max(&1),
                format!("rate {passed}/{played}  {case} ({name}{log})"),
            ));
        }
    }
    low.sort();
    low.into_iter().map(|(_, line)| line).collect()
}

/// The file of the tree that is tested.
fn file() -> Result<PathBuf> {
    Ok(lab::folder("thorough")?.join(format!("{}.jsonl", tree()?)))
}

/// Git's name of the tree as it is, whether it is committed or not: what is ignored is no part of it.
fn tree() -> Result<String> {
    let index = binaries::root().join("target").join(format!("tree-{}", std::process::id()));
    let tree = write_tree(&index);
    // Nobody else's: it is named after this process.
    let _ = fs::remove_file(&index);
    tree
}

fn write_tree(index: &Path) -> Result<String> {
    let git = |args: &[&str]| {
        let mut command = Command::new("git");
        command.current_dir(binaries::root()).args(args).env("GIT_INDEX_FILE", index);
        process::output(&mut command).context("results are kept by git's name of the tree")
    };
    git(&["add", "--all"])?;
    let name = git(&["write-tree"])?.stdout;
    Ok(String::from_utf8_lossy(&name).trim().to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_of_the_lab() {
        assert_eq!(rate("rate: stood-died-oom 2/3"), Some(("stood-died-oom", 2, 3)));
        assert_eq!(rate("rate: x"), None);
        assert_eq!(rate("pass x 1/2"), None);
    }

    #[test]
    fn runs_of_a_tree_add_up() {
        let run = |passed: u64, case: (u64, u64)| {
            let place = Place {
                passed,
                failed: 1,
                rates: BTreeMap::from([("late".to_owned(), case), ("good".to_owned(), (3, 3))]),
                ..Place::default()
            };
            Places::from([("kernel 6.1, full".to_owned(), place)])
        };
        let sum = add_up(&[run(10, (1, 3)), run(11, (3, 3))]);
        let (place, times) = &sum[&kernel("6.1")];
        assert_eq!((place.passed, place.failed, *times), (11, 1, 2));
        assert_eq!(place.rates["late"], (4, 6));
        assert_eq!(below_one(&sum), ["rate 4/6  late (kernel 6.1, full)"]);
    }

    #[test]
    fn a_tree_has_a_name() {
        let name = tree().unwrap();
        assert!(name.len() >= 40 && name.bytes().all(|byte| byte.is_ascii_hexdigit()), "{name}");
        assert_eq!(name, tree().unwrap());
    }
}
