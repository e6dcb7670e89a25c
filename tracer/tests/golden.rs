//! Recorded cases → verdict → JSON line and text block, byte for byte as checked in under `tests/golden/`.
//!
//! `UPDATE_GOLDEN=1 cargo test -p tracer --test golden` rewrites the files; the diff is what users would see.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking, in its helpers as well")]

#[path = "golden/cases.rs"]
mod cases;
#[path = "golden/checks.rs"]
mod checks;

use std::{
    collections::BTreeSet,
    fmt::Write as _,
    fs,
    path::{Path, PathBuf},
    sync::Once,
};

use tracer::{
    correlate::request::Attribution,
    diagnose::{Cause, diagnose},
    nginx::{Platform, Version, binary::Build},
    report::{
        Incident, Report,
        config::{self, Shown},
        json::Json,
        text::Text,
    },
};

use cases::Sample;

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden")
}

/// The text report shows local time.
fn in_utc() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        // SAFETY: every test of this program calls this first and waits for it; until then no other thread
        // reads the environment.
        unsafe { std::env::set_var("TZ", "UTC") };
    });
}

fn incident(sample: Sample) -> Incident {
    let verdict = diagnose(&sample.case);
    Incident {
        time: cases::time(),
        mono_ns: sample.case.attempt.end_ns,
        shown_ns: sample.case.attempt.end_ns,
        case: sample.case,
        verdict,
        container: sample.container,
        bind_lines: sample.bind_lines,
        attribution: Attribution::default(),
        repeats: None,
    }
}

fn shown(mut report: impl Report, incident: &Incident) -> String {
    let mut out = Vec::new();
    report.incident(&mut out, incident).unwrap();
    String::from_utf8(out).unwrap()
}

fn block(width: Option<usize>, incident: &Incident) -> String {
    anstream::adapter::strip_str(&shown(Text::new(width), incident)).to_string()
}

/// Compares with the file, or rewrites it; the answer is what is wrong.
fn compare(name: &str, actual: &str) -> Option<String> {
    let path = folder().join(name);
    if std::env::var_os("UPDATE_GOLDEN").is_some() {
        fs::write(&path, actual).unwrap();
        return None;
    }
    let expected = fs::read_to_string(&path).unwrap_or_else(|e| format!("({e})\n"));
    if expected == actual {
        return None;
    }
    let mut diff = format!("{name} differs (UPDATE_GOLDEN=1 rewrites it):\n");
    let (old, new): (Vec<_>, Vec<_>) = (expected.split('\n').collect(), actual.split('\n').collect());
    for index in 0..old.len().max(new.len()) {
        let (old, new) = (old.get(index), new.get(index));
        if old != new {
            writeln!(
                diff,
                "{:>4} - {}\n     + {}",
                index + 1,
                old.unwrap_or(&"(end)"),
                new.unwrap_or(&"(end)")
            )
            .unwrap();
        }
    }
    Some(diff)
}

/// What `why502 config` prints, for a known and an unknown version.
fn configurations() -> Vec<(String, String)> {
    let mut files = Vec::new();
    for version in [Some(Version(1, 22, 1)), Some(Version(1, 29, 7)), None] {
        let (model, problems) = cases::config(Platform { version, page: 4096 });
        let build =
            version.map(|version| Build { flavor: "nginx".into(), version: version.to_string(), core: None });
        let shown = [Shown {
            pid: version.map(|_| 133),
            container: version.map(|_| "docker 0123456789ab".to_owned()),
            executable: version.map(|_| Path::new("/usr/sbin/nginx")),
            build: build.as_ref(),
            main: Some(Path::new("/etc/nginx/config.conf")),
            model: &model,
            problems: &problems,
        }];
        let name = version.map_or_else(|| "unknown".to_owned(), |version| version.to_string());
        let mut json = Vec::new();
        config::json(&mut json, &shown).unwrap();
        let value: serde_json::Value = serde_json::from_slice(&json).unwrap();
        let json = serde_json::to_string_pretty(&value).unwrap() + "\n";
        files.push((format!("config-{name}.json"), json));
        let mut text = String::new();
        for (width, all) in [(Some(60), false), (Some(100), false), (None, true)] {
            let mut out = Vec::new();
            config::text(&mut out, &shown, width, all).unwrap();
            let out = String::from_utf8(out).unwrap();
            let columns = width.map_or_else(|| "no terminal, --all".to_owned(), |w| format!("{w} columns"));
            write!(text, "==== {columns}\n{}", anstream::adapter::strip_str(&out)).unwrap();
        }
        files.push((format!("config-{name}.txt"), text));
    }
    files
}

#[test]
fn reports_are_as_checked_in() {
    in_utc();
    let mut wrong = String::new();
    let mut files = BTreeSet::new();
    for sample in cases::all() {
        let name = sample.name;
        let cause = sample.cause;
        let incident = incident(sample);
        assert_eq!((incident.verdict.cause, incident.verdict.confidence.name()), cause, "{name}");
        let mut text = String::new();
        for width in [Some(60), Some(100), None] {
            let columns = width.map_or_else(|| "no terminal".to_owned(), |w| format!("{w} columns"));
            write!(text, "==== {columns}\n{}", block(width, &incident)).unwrap();
        }
        for (file, actual) in
            [(format!("{name}.json"), shown(Json, &incident)), (format!("{name}.txt"), text)]
        {
            wrong.extend(compare(&file, &actual));
            assert!(files.insert(file), "two cases are called {name}");
        }
    }
    for (file, actual) in configurations().into_iter().chain(checks::all()) {
        wrong.extend(compare(&file, &actual));
        files.insert(file);
    }
    let mut summary = Vec::new();
    Json.summary(&mut summary, &cases::summary()).unwrap();
    wrong.extend(compare("summary.json", &String::from_utf8(summary).unwrap()));
    files.insert("summary.json".to_owned());
    for entry in fs::read_dir(folder()).unwrap() {
        let name = entry.unwrap().file_name().into_string().unwrap();
        let data = [".json", ".txt"].iter().any(|end| name.ends_with(end));
        if data && !files.contains(&name) {
            writeln!(wrong, "{name} belongs to no case").unwrap();
        }
    }
    assert!(wrong.is_empty(), "{wrong}");
}

#[test]
fn every_connect_phase_cause_has_a_case() {
    in_utc();
    let there: BTreeSet<&str> = cases::all().into_iter().map(|s| s.cause.0.name()).collect();
    let connect = |c: &&Cause| {
        let prefixes = ["connect-", "host-", "network-", "local-", "bind-", "fd-", "client-", "unexplained"];
        prefixes.iter().any(|p| c.name().starts_with(p))
    };
    for cause in Cause::ALL.iter().filter(connect) {
        assert!(there.contains(cause.name()), "{cause} has none");
    }
}

#[test]
fn text_keeps_to_the_width_wherever_a_word_allows() {
    in_utc();
    for sample in cases::all() {
        let name = sample.name;
        let incident = incident(sample);
        for width in [50, 60, 80, 100, 140] {
            for line in block(Some(width), &incident).lines() {
                // The headline and lines of the configuration are never broken: they are copied and searched.
                let config = incident.lines().iter().any(|l| match l {
                    tracer::report::Line::Config(c) => line.ends_with(&c.text),
                    tracer::report::Line::Default(text) => line.ends_with(text),
                });
                let headline = line.starts_with("14:02:11.482");
                let one_word = line.split_whitespace().count() <= 2;
                assert!(
                    line.chars().count() <= width || config || headline || one_word,
                    "{name}, {width} columns: {} in {line}",
                    line.chars().count()
                );
            }
        }
    }
}

#[test]
fn the_width_changes_breaks_and_nothing_else() {
    in_utc();
    let words = |text: &str| text.split_whitespace().map(str::to_owned).collect::<Vec<_>>();
    for sample in cases::all() {
        let name = sample.name;
        let incident = incident(sample);
        let whole = words(&block(None, &incident));
        for width in [1, 40, 60, 80, 200] {
            assert_eq!(words(&block(Some(width), &incident)), whole, "{name}, {width} columns");
        }
    }
}

#[test]
fn json_has_every_documented_field() {
    in_utc();
    for sample in cases::all() {
        let name = sample.name;
        let line = shown(Json, &incident(sample));
        assert_eq!(line.matches('\n').count(), 1, "{name}: one object, one line");
        let value: serde_json::Value = serde_json::from_str(&line).unwrap();
        for path in cases::INCIDENT_FIELDS {
            assert!(value.pointer(path).is_some(), "{name}: {path} is absent: {line}");
        }
        for (list, fields) in cases::LIST_FIELDS {
            for item in value[list].as_array().unwrap() {
                for field in *fields {
                    assert!(item.get(field).is_some(), "{name}: {list}.{field} is absent");
                }
            }
        }
        assert_eq!(value["schema"], "why502/1");
        assert_eq!(value["time"], "2026-11-22T14:02:11.482113Z");
    }
}
