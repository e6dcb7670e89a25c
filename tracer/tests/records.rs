//! The decoder and what kernels really send: raw records of each kernel and tier (tests/records/*.bin, collected by
//! `cargo xtask records`), and what they mean beside them. `WHY502_BLESS=1` writes that anew.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking, in its helpers as well")]

use std::{
    collections::BTreeSet,
    fmt::Write as _,
    fs,
    path::{Path, PathBuf},
};

use bytes::Bytes;
use tracer::event::{self, Event};
use tracer_ebpf::kind;

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/records")
}

/// The fixtures' names, such as `6.12-full`.
fn names() -> Vec<String> {
    let files = fs::read_dir(folder()).unwrap().map(|entry| entry.unwrap().path());
    let fixtures = files.filter(|path| path.extension().is_some_and(|ext| ext == "bin"));
    let mut names: Vec<String> =
        fixtures.map(|path| path.file_stem().unwrap().to_str().unwrap().to_owned()).collect();
    names.sort();
    names
}

/// The records of a fixture, each behind its length.
fn records(name: &str) -> Vec<Bytes> {
    let whole = Bytes::from(fs::read(folder().join(format!("{name}.bin"))).unwrap());
    let (mut records, mut at) = (Vec::new(), 0);
    while at < whole.len() {
        let len = u32::from_le_bytes(*whole[at..].first_chunk().unwrap()) as usize;
        records.push(whole.slice(at + 4..at + 4 + len));
        at += 4 + len;
    }
    records
}

fn kind_of(record: &Bytes) -> u32 {
    u32::from_ne_bytes(*record.first_chunk().unwrap())
}

#[test]
fn what_kernels_sent_means_what_it_meant() {
    let bless = std::env::var_os("WHY502_BLESS").is_some();
    let mut changed = Vec::new();
    for name in names() {
        let mut text = String::new();
        for record in records(&name) {
            let event = event::decode(&record).unwrap_or_else(|error| {
                panic!("{name}: a record of kind {} and {} bytes: {error}", kind_of(&record), record.len())
            });
            writeln!(text, "{} bytes: {event:?}", record.len()).unwrap();
        }
        let golden = folder().join(format!("{name}.txt"));
        if bless {
            fs::write(&golden, &text).unwrap();
            continue;
        }
        let expected = fs::read_to_string(&golden).unwrap_or_default();
        let differs = text.lines().zip(expected.lines()).find(|(now, before)| now != before);
        if let Some((now, before)) = differs {
            changed.push(format!("{name}:\n  was {before}\n  is  {now}"));
        } else if text != expected {
            changed.push(format!("{name}: another number of records"));
        }
    }
    assert!(
        changed.is_empty(),
        "what records mean has changed; if that is right: WHY502_BLESS=1 cargo test -p tracer --test records\n{}",
        changed.join("\n")
    );
}

#[test]
fn every_kind_comes_from_a_kernel_and_no_address_of_it() {
    let names = names();
    for tier in ["full", "kprobe", "tracepoint"] {
        assert!(names.iter().any(|name| name.ends_with(&format!("-{tier}"))), "{tier}: {names:?}");
    }
    let all: Vec<Bytes> = names.iter().flat_map(|name| records(name)).collect();
    let kinds: BTreeSet<u32> = all.iter().map(kind_of).collect();
    assert_eq!(kinds, (kind::ATTEMPT..=kind::DEATH).collect());
    let most = 1 << 20;
    for record in &all {
        match event::decode(record).unwrap() {
            Event::Attempt(attempt) => {
                let drop = attempt.drop.iter();
                let code = drop.flat_map(|drop| drop.stack.iter().chain([&drop.location]).copied());
                assert!(code.chain([attempt.socket]).all(|address| address < most), "{attempt:?}");
            }
            Event::Hint { socket, .. } | Event::ClientGone { socket, .. } => assert!(socket < most),
            Event::Denial(denial) => assert!(denial.socket < most),
            Event::Death(death) => assert!(death.socket < most),
            Event::Said(said) => assert!(said.format_at.max(said.action_at) < most),
            Event::Fork { .. }
            | Event::Exec { .. }
            | Event::Exit { .. }
            | Event::Answered(_)
            | Event::Dns(_) => {}
        }
    }
}

/// The kernel writes a record in one piece, but rings and files are cut: no beginning of a record is taken for the whole.
#[test]
fn no_record_is_read_from_its_beginning_alone() {
    for record in names().iter().flat_map(|name| records(name)) {
        let whole = event::decode(&record);
        for len in 0..record.len() {
            let cut = event::decode(&record.slice(..len));
            assert!(
                cut.is_err() || cut == whole,
                "{len} of {} bytes of kind {}",
                record.len(),
                kind_of(&record)
            );
        }
    }
}
