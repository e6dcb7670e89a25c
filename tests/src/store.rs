//! Recordings of whole runs, as the tests keep them: one file a case, kernel and tier, without what belongs to one run, and
//! only where it shows something that the others of its case do not.

use crate::record::{Played, list_of};
use crate::scrub::scrub;
use anyhow::{Context, Result, bail};
use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use tracer::record::{Entry, Header, Reader, compose};
use tracer::report::Incident;

/// How recordings end.
pub(crate) const SUFFIX: &str = "w502";
/// Bytes of all of them at most.
const MOST: u64 = 8 << 20;

/// One run: `6.12-full` of a file of that name.
#[derive(Debug)]
struct Run {
    label: String,
    header: Header,
    /// By case.
    incidents: BTreeMap<String, Vec<Incident>>,
}

/// What two recordings of a case have in common if they show the same.
type Sight = Vec<(String, String, Vec<String>, Vec<String>)>;

fn sight(incidents: &[Incident]) -> Sight {
    let of = |i: &Incident| {
        let verdict = &i.verdict;
        let kinds: BTreeSet<&str> = verdict.evidence.iter().map(|evidence| evidence.kind).collect();
        let fixes = verdict.fix.iter().map(|fix| without_digits(&fix.text)).collect();
        (
            verdict.cause.name().to_owned(),
            verdict.confidence.name().to_owned(),
            kinds.into_iter().map(str::to_owned).collect(),
            fixes,
        )
    };
    let mut sight: Sight = incidents.iter().map(of).collect();
    sight.sort();
    sight.dedup();
    sight
}

fn without_digits(text: &str) -> String {
    text.chars().filter(|c| !c.is_ascii_digit()).collect()
}

/// Reads a run and sorts its incidents by case. Only cases that passed and whose incidents are all there.
fn read(path: &Path) -> Result<Run> {
    let list = list_of(path);
    let text = fs::read(&list).with_context(|| format!("cannot read {}", list.display()))?;
    let played: Played = serde_json::from_slice(&text).with_context(|| format!("in {}", list.display()))?;
    let file = File::open(path).with_context(|| format!("cannot open {}", path.display()))?;
    let mut reader = Reader::open(file).with_context(|| format!("in {}", path.display()))?;
    let mut found: BTreeMap<String, Vec<Incident>> = BTreeMap::new();
    while let Some(entry) = reader.entry().with_context(|| format!("in {}", path.display()))? {
        let Entry::Incident(mut incident, _) = entry else { continue };
        let master = incident.case.story.as_ref().map_or(0, |story| story.master);
        let worker = incident.case.attempt.worker;
        // It is told a while after it happened.
        let its = played.cases.iter().find(|case| {
            (case.pids.contains(&master) || case.pids.contains(&worker))
                && (case.from_ns..=case.to_ns).contains(&incident.mono_ns)
        });
        if let Some(case) = its.filter(|case| case.passed) {
            incident.explain();
            found.entry(case.name.clone()).or_default().push(*incident);
        }
    }
    let header = reader.header().clone();
    let mut incidents = BTreeMap::new();
    for case in &played.cases {
        if let Some(all) = found.remove(&case.name).filter(|all| all.len() == case.incidents) {
            let clean: Result<Vec<Incident>> = scrub(&all, &case.dir, &played.cwd);
            incidents.insert(case.name.clone(), clean.with_context(|| case.name.clone())?);
        }
    }
    let label = path.file_stem().unwrap_or_default().to_string_lossy().into_owned();
    Ok(Run { label, header, incidents })
}

/// Replaces the recordings of the cases below `data` that these runs have played.
pub(crate) fn store(files: &[PathBuf], data: &Path) -> Result<bool> {
    let mut runs = Vec::new();
    for file in files {
        runs.push(read(file)?);
    }
    // What sees most comes first: the others are kept where they differ.
    let rank = |run: &Run| {
        let tier = ["full", "kprobe", "tracepoint"].iter().position(|tier| run.label.ends_with(tier));
        let kernel = ["6.12", "7.2", "6.1", "5.10"].iter().position(|kernel| run.label.starts_with(kernel));
        (tier.unwrap_or(9), kernel.unwrap_or(9), run.label.clone())
    };
    runs.sort_by_key(rank);
    let names: BTreeSet<&String> = runs.iter().flat_map(|run| run.incidents.keys()).collect();
    let (mut stored, mut alike) = (0, 0);
    for name in names {
        let folder = data.join(name);
        forget(&folder)?;
        let mut seen: Vec<Sight> = Vec::new();
        for run in &runs {
            let Some(incidents) = run.incidents.get(name) else { continue };
            let sight = sight(incidents);
            if seen.contains(&sight) {
                alike += 1;
                continue;
            }
            let header = Header {
                hooks: Vec::new(),
                host: "lab".to_owned(),
                masters: Vec::new(),
                ..run.header.clone()
            };
            let bytes = compose(&header, incidents).with_context(|| name.clone())?;
            let path = folder.join(format!("{}.{SUFFIX}", run.label));
            fs::write(&path, bytes).with_context(|| format!("cannot write {}", path.display()))?;
            seen.push(sight);
            stored += 1;
        }
    }
    let all = size(data)?;
    crate::report::say(&format!(
        "{stored} recordings stored, {alike} show what another one does; {all} bytes in all"
    ));
    if all > MOST {
        bail!("the recordings are larger than {MOST} bytes together");
    }
    Ok(true)
}

fn forget(folder: &Path) -> Result<()> {
    for path in recordings(folder)? {
        fs::remove_file(&path).with_context(|| format!("cannot remove {}", path.display()))?;
    }
    Ok(())
}

/// The recordings in a case's folder, in the order of their names.
pub(crate) fn recordings(folder: &Path) -> Result<Vec<PathBuf>> {
    let entries = fs::read_dir(folder).with_context(|| format!("cannot read {}", folder.display()))?;
    let mut paths: Vec<PathBuf> = entries
        .flatten()
        .map(|entry| entry.path())
        .filter(|path| path.extension().is_some_and(|extension| extension == SUFFIX))
        .collect();
    paths.sort();
    Ok(paths)
}

fn size(data: &Path) -> Result<u64> {
    let mut all = 0;
    for entry in fs::read_dir(data).with_context(|| format!("cannot read {}", data.display()))?.flatten() {
        if entry.path().is_dir() {
            for path in recordings(&entry.path())? {
                all +=
                    fs::metadata(&path).with_context(|| format!("cannot look at {}", path.display()))?.len();
            }
        }
    }
    Ok(all)
}
