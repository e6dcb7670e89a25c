//! The table of lints, and configurations that are well: nothing may be found in them.

use std::{
    collections::BTreeSet,
    path::{Path, PathBuf},
};

use super::{LINTS, NAMES, lint_all, testing};
use crate::nginx::{Model, Platform, Source, Version, dump::Dump, parse_partial};

#[test]
fn names_are_stable_words_and_each_is_there_once() {
    let names: BTreeSet<&str> = LINTS.iter().map(|lint| lint.name).collect();
    assert_eq!(names.len(), LINTS.len());
    for (name, finds) in NAMES {
        assert!(
            name.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-' || c == '.'),
            "{name}"
        );
        assert!(finds.len() > 20 && !finds.ends_with('.'), "{name}: {finds}");
    }
}

/// Several lines with one mistake are one finding.
#[test]
fn a_mistake_is_told_once() {
    let text = "http { server { location /a/ { proxy_pass http://10.0.0.1:443; } location /b/ { proxy_pass http://10.0.0.1:443; } } }";
    let found = lint_all(&testing::model(text, Version(1, 22, 1)));
    assert_eq!(found.len(), 1, "{found:#?}");
    assert_eq!(found[0].at.len(), 1, "the same line: {found:#?}");
    let text = text.replace("} location", "}\nlocation");
    assert_eq!(lint_all(&testing::model(&text, Version(1, 22, 1)))[0].at.len(), 2);
}

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("src/check/config/healthy")
}

/// Dumps as `nginx -T` writes them, of sites that work.
#[test]
fn nothing_is_found_in_healthy_configurations() {
    let mut count = 0;
    for entry in std::fs::read_dir(folder()).unwrap() {
        let path = entry.unwrap().path();
        let bytes = std::fs::read(&path).unwrap();
        let dump = Dump::parse(&bytes).unwrap_or_else(|| panic!("{} is no dump", path.display()));
        for version in [Some(Version(1, 18, 0)), Some(Version(1, 22, 1)), Some(Version(1, 31, 4)), None] {
            let (config, errors) = parse_partial(&dump, Source::new(dump.main()));
            assert!(errors.is_empty(), "{}: {errors:?}", path.display());
            let model = Model::for_platform(config, Platform { version, page: 4096 });
            assert!(model.warnings.is_empty(), "{}: {:?}", path.display(), model.warnings);
            let found = lint_all(&model);
            // `http2 on` is too new for an old nginx: that is true.
            let found: Vec<_> = found
                .into_iter()
                .filter(|one| one.name != "nginx-refuses" || !one.summary.contains("it came with nginx"))
                .collect();
            assert!(found.is_empty(), "{} with {version:?}: {found:#?}", path.display());
        }
        count += 1;
    }
    assert!(count >= 7, "only {count} configurations in {}", folder().display());
}

/// Hostile and damaged texts: lints never panic.
#[test]
fn damaged_configurations_are_survived() {
    let mut texts = Vec::new();
    for entry in std::fs::read_dir(folder()).unwrap() {
        texts.push(std::fs::read(entry.unwrap().path()).unwrap());
    }
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let mut below = |end: usize| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        usize::try_from(state % end.max(1) as u64).unwrap()
    };
    let pieces: [&[u8]; 14] = [
        b";",
        b"{",
        b"}",
        b"$",
        b"\"",
        b" ",
        b"\xff",
        b"://",
        b":",
        b"[",
        b"~",
        b"=",
        b"0",
        b"location / { proxy_pass http://$x:443; }",
    ];
    for _ in 0..400 {
        let mut text = texts[below(texts.len())].clone();
        for _ in 0..=below(6) {
            let at = below(text.len());
            if below(3) == 0 {
                let end = (at + below(60)).min(text.len());
                text.drain(at..end);
            } else {
                text.splice(at..at, pieces[below(pieces.len())].iter().copied());
            }
        }
        let Some(dump) = Dump::parse(&text) else { continue };
        let (config, _) = parse_partial(&dump, Source::new(dump.main()));
        let _ =
            lint_all(&Model::for_platform(config, Platform { version: Some(Version(1, 22, 1)), page: 4096 }));
    }
}
