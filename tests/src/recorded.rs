//! The recorded cases, replayed: from the case to the verdict to text and JSON, without a kernel and without privileges.
//!
//! `WHY502_BLESS=1` takes what is said now for right, in the recordings and in `golden/`; read the diff.

use crate::case::{self, Case};
use crate::late;
use crate::store::recordings;
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use tracer::diagnose::{Cause, Confidence};
use tracer::record::{Entry, Header, Reader, Then, compose};
use tracer::report::{Incident, Report, diff, json::Json, text::Text};

/// Columns of the goldens.
const WIDTH: usize = 100;

fn below(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(name)
}

fn bless() -> bool {
    std::env::var_os("WHY502_BLESS").is_some()
}

struct Recording {
    path: PathBuf,
    header: Header,
    incidents: Vec<(Incident, Then)>,
}

fn read(path: &Path) -> Recording {
    let file = File::open(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    let mut reader = Reader::open(file).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    let mut incidents = Vec::new();
    loop {
        match reader.entry() {
            Ok(Some(Entry::Incident(mut incident, then))) => {
                incident.explain();
                incidents.push((*incident, then));
            }
            Ok(Some(Entry::Summary(_) | Entry::Continued)) => {}
            Ok(None) => break,
            Err(error) => panic!("{}: {error}", path.display()),
        }
    }
    Recording { path: path.to_owned(), header: reader.header().clone(), incidents }
}

fn all() -> Vec<(Case, Vec<Recording>)> {
    let cases = case::load_all(&below("data")).unwrap();
    let with = |case: Case| {
        let paths = recordings(&case.dir).unwrap();
        let read = paths.iter().map(|path| read(path)).collect();
        (case, read)
    };
    cases.into_iter().map(with).collect()
}

fn shown(mut report: impl Report, incident: &Incident) -> String {
    let mut out = Vec::new();
    report.incident(&mut out, incident).unwrap();
    let plain = anstream::adapter::strip_bytes(&out).into_vec();
    String::from_utf8(plain).unwrap()
}

fn as_json(incident: &Incident) -> Value {
    serde_json::from_str(&shown(Json, incident)).unwrap()
}

#[test]
fn every_recording_says_what_was_said_and_what_its_case_demands() {
    let mut wrong = Vec::new();
    let (mut files, mut incidents) = (0, 0);
    for (case, recordings) in all() {
        for recording in recordings {
            files += 1;
            incidents += recording.incidents.len();
            let mut differs = Vec::new();
            for (incident, then) in &recording.incidents {
                let now = Then::from(&incident.verdict);
                if *then != now {
                    diff::text(&mut differs, incident, then, &now).unwrap();
                }
                // Whatever a recording holds can be shown.
                assert!(shown(Text::new(Some(WIDTH)), incident).lines().count() > 2);
            }
            if !differs.is_empty() {
                if bless() {
                    let list: Vec<Incident> = recording.incidents.iter().map(|(i, _)| i.clone()).collect();
                    fs::write(&recording.path, compose(&recording.header, &list).unwrap()).unwrap();
                }
                wrong.push(format!("{}:\n{}", recording.path.display(), String::from_utf8_lossy(&differs)));
            }
            let said: Vec<Value> =
                recording.incidents.iter().map(|(incident, _)| as_json(incident)).collect();
            let failures = late::judge(&case.expect, recording.header.tier.name(), &said);
            wrong.extend(failures.iter().map(|failure| format!("{}: {failure}", recording.path.display())));
        }
    }
    assert!(files > 400 && incidents > files, "{files} recordings of {incidents} incidents");
    assert!(
        wrong.is_empty() || bless(),
        "{} of {files} recordings; if what is said now (+) is right: WHY502_BLESS=1 cargo test --package why502-tests\n{}",
        wrong.len(),
        wrong.join("\n")
    );
}

#[test]
fn cases_have_recordings() {
    let without: Vec<String> = all()
        .into_iter()
        .filter(|(case, recordings)| !case.expect.none && recordings.is_empty())
        .map(|(case, _)| case.name)
        .collect();
    let known = fs::read_to_string(below("data/unrecorded.txt")).unwrap();
    let known: BTreeSet<&str> = known.lines().filter_map(|line| line.split(':').next()).collect();
    let new: Vec<&String> = without.iter().filter(|name| !known.contains(name.as_str())).collect();
    assert!(
        new.is_empty(),
        "{new:?} have no recording: `cargo xtask recordings`, or say why in tests/data/unrecorded.txt"
    );
}

/// Every cause as text and JSON, of the first recording that proves it, else of the first that names it.
#[test]
fn every_cause_is_shown_as_it_was() {
    let mut best: BTreeMap<Cause, (Confidence, Incident)> = BTreeMap::new();
    for (_, recordings) in all() {
        for recording in recordings {
            for (incident, _) in recording.incidents {
                let confidence = incident.verdict.confidence;
                let known = best.get(&incident.verdict.cause).map(|(known, _)| *known);
                if known.is_none_or(|known| confidence > known) {
                    best.insert(incident.verdict.cause, (confidence, incident));
                }
            }
        }
    }
    let mut wrong = Vec::new();
    for cause in Cause::ALL {
        let Some((_, incident)) = best.get(cause) else {
            wrong.push(format!("{cause}: no recording has it"));
            continue;
        };
        for (ending, now) in
            [("txt", shown(Text::new(Some(WIDTH)), incident)), ("json", pretty(&as_json(incident)))]
        {
            let path = below("golden").join(format!("{cause}.{ending}"));
            if bless() {
                fs::write(&path, &now).unwrap();
            }
            let known = fs::read_to_string(&path).unwrap_or_default();
            if known != now {
                wrong.push(format!("{}:\n--- known\n{known}--- now\n{now}", path.display()));
            }
        }
    }
    assert!(wrong.is_empty(), "WHY502_BLESS=1 takes what is shown now for right\n{}", wrong.join("\n"));
}

fn pretty(value: &Value) -> String {
    let mut text = serde_json::to_string_pretty(value).unwrap();
    text.push('\n');
    text
}
