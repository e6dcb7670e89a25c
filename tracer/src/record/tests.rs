//! What is written comes back; what was damaged is an error with what came before it.

use std::{fs, path::PathBuf, time::Duration};

use super::{
    line::Written,
    write::{beginning, bounded, frame},
    *,
};
use crate::{
    correlate::{
        request::{Attribution, Head, Ids, Request},
        story::Story,
    },
    diagnose::Cause,
    event::{Talk, Told},
    moment::Moment,
    report::{Incident, Occupancy, Summary, Totals, tests::incident},
};

const SECOND: u64 = 1_000_000_000;

fn header() -> Header {
    Header { why502: "1".to_owned(), kernel: "6.1".to_owned(), ..Header::none() }
}

fn sample(number: u64) -> Incident {
    let mut one = incident(Cause::ConnectRefusedNoListener, Vec::new());
    one.mono_ns = number;
    one.attribution = Attribution {
        request: Some(Request {
            id: number,
            client: "[2001:db8::1]:51514".parse().unwrap(),
            local: "192.0.2.1:443".parse().unwrap(),
            head: Some(Head {
                method: "GET".to_owned(),
                target: format!("/{number}"),
                truncated: false,
                host: Some("shop.example.com".to_owned()),
            }),
            status: Some(502),
            ids: Ids::default(),
        }),
        note: Some("a note".into()),
    };
    one.case.story = Some(Box::new(Story { master: 7, ..Story::default() }));
    one.explain();
    one
}

fn summary() -> Summary {
    Summary {
        time: Moment::utc(std::time::UNIX_EPOCH),
        mono_ns: 5 * SECOND,
        duration: Duration::from_secs(5),
        incidents: [(Cause::FdLimit, 3)].into(),
        counters: Totals { connects: 9, ..Totals::default() },
        unread: 0,
        workers: 1,
        masters: 1,
        tier: crate::probes::Tier::Full,
        maps: Occupancy::default(),
        skipped_runs: 0,
        programs: Vec::new(),
        unrecorded: false,
        account: crate::report::innocence::Account::default(),
        checked: Vec::new(),
    }
}

fn lines(incidents: &[Incident]) -> Vec<u8> {
    let line = |incident: &Incident| {
        bounded(&Written::Incident { then: Then::from(&incident.verdict), incident }).unwrap()
    };
    incidents.iter().flat_map(line).collect()
}

/// A recording of so many incidents, a frame each, and its summary.
fn recording(count: u64) -> Vec<u8> {
    let mut bytes = beginning(&header()).unwrap();
    for number in 1..=count {
        bytes.extend(frame(&lines(&[sample(number)])).unwrap());
    }
    bytes.extend(frame(&bounded(&Written::Summary(&summary())).unwrap()).unwrap());
    bytes
}

/// The incidents, whether there was a summary, and the error that ended it.
fn read(bytes: &[u8]) -> (Vec<Incident>, bool, Option<ReadError>) {
    let (mut incidents, mut summary) = (Vec::new(), false);
    let mut reader = match Reader::open(bytes) {
        Ok(reader) => reader,
        Err(error) => return (incidents, summary, Some(error)),
    };
    loop {
        match reader.entry() {
            Ok(Some(Entry::Incident(incident, _))) => incidents.push(*incident),
            Ok(Some(Entry::Summary(_))) => summary = true,
            Ok(Some(Entry::Continued)) => {}
            Ok(None) => return (incidents, summary, None),
            Err(error) => {
                assert!(matches!(reader.entry(), Ok(None)), "there is nothing behind an error");
                return (incidents, summary, Some(error));
            }
        }
    }
}

struct Folder(tempfile::TempDir);

impl Folder {
    fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    fn file(&self) -> PathBuf {
        self.0.path().join("run.w502")
    }

    fn names(&self) -> Vec<String> {
        let entries = fs::read_dir(self.0.path()).unwrap();
        let mut names: Vec<String> =
            entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }
}

#[test]
fn what_was_written_comes_back() {
    let bytes = recording(3);
    let (incidents, ended, error) = read(&bytes);
    assert!(ended && error.is_none(), "{error:?}");
    assert_eq!(incidents.len(), 3);
    for (incident, number) in incidents.into_iter().zip(1..) {
        let mut known = sample(number);
        // Addresses of the kernel's are not recorded.
        known.case.attempt.socket = 0;
        let mut incident = incident;
        incident.explain();
        assert_eq!(format!("{incident:?}"), format!("{known:?}"));
    }
    assert_eq!(Reader::open(&bytes[..]).unwrap().header(), &header());
}

#[test]
fn a_recording_that_was_cut_is_read_up_to_there() {
    let bytes = recording(3);
    let mut seen = [false; 4];
    for length in (0..bytes.len()).step_by(3) {
        let (incidents, ended, error) = read(&bytes[..length]);
        assert!(!ended, "{length}");
        seen[incidents.len()] = true;
        // Between two frames nothing is missing but the end.
        let fits = matches!(error, None | Some(ReadError::Cut { .. } | ReadError::NotOurs));
        assert!(fits, "{length}: {error:?}");
        assert_eq!(matches!(error, Some(ReadError::NotOurs)), length < preface().len(), "{length}");
    }
    assert_eq!(seen, [true; 4]);
}

#[test]
fn a_changed_bit_is_noticed() {
    let bytes = recording(2);
    let whole: Vec<String> = read(&bytes).0.iter().map(|i| format!("{i:?}")).collect();
    for at in (0..bytes.len()).step_by(11) {
        let mut changed = bytes.clone();
        changed[at] ^= 1 << (at % 8);
        let (incidents, ended, error) = read(&changed);
        let told: Vec<String> = incidents.iter().map(|i| format!("{i:?}")).collect();
        assert!(whole.starts_with(&told), "{at}: something else was told");
        assert!(error.is_some() || (ended && told.len() == 2), "{at}: noticed nothing");
    }
}

#[test]
fn what_is_no_recording() {
    for bytes in [&b""[..], b"{}", b"\x28\xb5\x2f\xfd", &[0; 100], b"#!/bin/sh\necho why502-recording 1\n"] {
        assert!(matches!(read(bytes).2, Some(ReadError::NotOurs)), "{bytes:?}");
    }
    let mut new = preface();
    let digit = new.len() - 2;
    new[digit] = b'9';
    let error = read(&new).2.unwrap();
    assert!(matches!(error, ReadError::TooNew(9)), "{error}");
    assert!(error.to_string().contains("use a newer why502"), "{error}");
    let mut headless = preface();
    headless.extend(frame(&lines(&[sample(1)])).unwrap());
    assert!(matches!(read(&headless).2, Some(ReadError::Damaged { .. })));
}

#[test]
fn a_bomb_is_not_expanded() {
    let mut bytes = beginning(&header()).unwrap();
    let mut encoder = zstd::Encoder::new(Vec::new(), 1).unwrap();
    std::io::copy(&mut std::io::Read::take(std::io::repeat(b' '), 64 << 20), &mut encoder).unwrap();
    let bomb = encoder.finish().unwrap();
    assert!(bomb.len() < 1 << 20);
    bytes.extend(bomb);
    let error = read(&bytes).2.unwrap();
    assert!(error.to_string().contains("larger than any"), "{error}");
    let mut window = zstd::Encoder::new(Vec::new(), 1).unwrap();
    window.window_log(30).unwrap();
    std::io::Write::write_all(&mut window, b"{}\n").unwrap();
    let mut bytes = beginning(&header()).unwrap();
    bytes.extend(window.finish().unwrap());
    assert!(matches!(read(&bytes).2, Some(ReadError::Damaged { .. })));
}

#[test]
fn lines_of_anybody_are_errors() {
    for text in [
        "\n",
        "{}\n",
        "null\n",
        "{\"incident\":{}}\n",
        "{\"header\":{}}\n",
        "{\"what\":{}}\n",
        "{\"summary\":[]}",
        "\u{0}\n",
    ] {
        let mut bytes = beginning(&header()).unwrap();
        bytes.extend(frame(text.as_bytes()).unwrap());
        assert!(matches!(read(&bytes).2, Some(ReadError::Damaged { .. })), "{text:?}");
    }
    let deep = format!("{}\n", "[".repeat(100_000));
    let mut bytes = beginning(&header()).unwrap();
    bytes.extend(frame(deep.as_bytes()).unwrap());
    assert!(matches!(read(&bytes).2, Some(ReadError::Damaged { .. })));
}

#[test]
fn a_recording_is_readable_a_second_after_the_incident() {
    let folder = Folder::new();
    let mut writer = Writer::begin(&folder.file(), header(), None).unwrap();
    let one = sample(1);
    let line = Written::Incident { then: Then::from(&one.verdict), incident: &one };
    writer.line(&line, 10 * SECOND).unwrap();
    writer.tick(10 * SECOND + SECOND / 2).unwrap();
    assert!(writer.waits());
    assert_eq!(read(&fs::read(folder.file()).unwrap()).0.len(), 0);
    writer.tick(11 * SECOND).unwrap();
    assert!(!writer.waits());
    assert_eq!(read(&fs::read(folder.file()).unwrap()).0.len(), 1);
}

#[test]
fn a_recording_rotates_within_its_size() {
    let folder = Folder::new();
    let most = 256 << 10;
    let mut writer = Writer::begin(&folder.file(), header(), Some(most)).unwrap();
    let mut noise = 1_u64;
    for number in 0..2000 {
        let mut one = sample(number);
        // Something that cannot be compressed.
        let target: String = std::iter::repeat_with(|| {
            noise ^= noise << 13;
            noise ^= noise >> 7;
            noise ^= noise << 17;
            format!("{noise:016x}")
        })
        .take(64)
        .collect();
        if let Some(head) = one.attribution.request.as_mut().and_then(|request| request.head.as_mut()) {
            head.target = target;
        }
        let line = Written::Incident { then: Then::from(&one.verdict), incident: &one };
        writer.line(&line, number).unwrap();
    }
    writer.line(&Written::Summary(&summary()), 0).unwrap();
    writer.flush().unwrap();
    assert_eq!(folder.names(), ["run.w502", "run.w502.1"]);
    let size = |name: &str| fs::metadata(folder.0.path().join(name)).unwrap().len();
    assert!(size("run.w502") + size("run.w502.1") <= most, "both together");
    let older = fs::read(folder.0.path().join("run.w502.1")).unwrap();
    let (first, ended, error) = read(&older);
    assert!(!ended && error.is_none() && !first.is_empty());
    let newer = fs::read(folder.file()).unwrap();
    let (second, ended, error) = read(&newer);
    assert!(ended && error.is_none());
    assert!(Reader::open(&newer[..]).unwrap().header().part > 2);
    let numbers: Vec<u64> = first.iter().chain(&second).map(|i| i.mono_ns).collect();
    let last = *numbers.last().unwrap();
    assert_eq!(last, 1999);
    assert!(numbers.windows(2).all(|pair| pair[0] + 1 == pair[1]), "nothing is missing between the two");
}

#[test]
fn a_foreign_file_is_left_alone() {
    let folder = Folder::new();
    assert!(file_of_ours(&folder.file()).unwrap(), "there is none");
    fs::write(folder.file(), "").unwrap();
    assert!(file_of_ours(&folder.file()).unwrap(), "an empty one");
    fs::write(folder.file(), recording(1)).unwrap();
    assert!(file_of_ours(&folder.file()).unwrap());
    fs::write(folder.file(), "precious").unwrap();
    assert!(!file_of_ours(&folder.file()).unwrap());
    assert!(file_of_ours(folder.0.path()).is_err(), "a folder");
}

#[test]
fn a_flight_recorder_holds_the_last_minutes() {
    let folder = Folder::new();
    let target = Target { path: folder.file(), most: None, keep: Some(Duration::from_secs(60)) };
    let mut recorder = Recorder::begin(&target, header()).unwrap();
    assert!(recorder.keeps());
    for number in 0..400 {
        assert_eq!(recorder.incident(&sample(number), false, number * SECOND), Vec::<String>::new());
    }
    assert_eq!(folder.names(), Vec::<String>::new(), "nothing is written before somebody asks");
    let told = recorder.write_out(Moment::utc(std::time::UNIX_EPOCH), 400 * SECOND);
    assert!(told[0].contains("run.w502-19700101T000000Z"), "{told:?}");
    let (held, _, error) = read(&fs::read(folder.0.path().join(&folder.names()[0])).unwrap());
    assert!(error.is_none());
    assert_eq!(held.last().unwrap().mono_ns, 399);
    let oldest = held.first().unwrap().mono_ns;
    assert!((250..=340).contains(&oldest), "{oldest}: a frame is dropped as a whole");
    assert!(
        recorder.write_out(Moment::utc(std::time::UNIX_EPOCH), 400 * SECOND)[0]
            .contains("nothing has failed")
    );
}

#[test]
fn a_flight_recorder_writes_after_a_match_and_not_too_often() {
    let folder = Folder::new();
    let target = Target { path: folder.file(), most: None, keep: Some(Duration::from_secs(900)) };
    let mut recorder = Recorder::begin(&target, header()).unwrap();
    let now = Moment::utc(std::time::UNIX_EPOCH);
    recorder.incident(&sample(1), false, SECOND);
    assert!(!recorder.waits());
    recorder.incident(&sample(2), true, 2 * SECOND);
    recorder.incident(&sample(3), true, 3 * SECOND);
    assert!(recorder.waits());
    recorder.tick(now, 3 * SECOND);
    assert_eq!(folder.names().len(), 0, "what follows belongs to it");
    recorder.tick(now, 4 * SECOND);
    assert_eq!(folder.names().len(), 1);
    recorder.incident(&sample(4), true, 5 * SECOND);
    recorder.tick(now, 30 * SECOND);
    assert_eq!(folder.names().len(), 1);
    recorder.tick(now, 64 * SECOND);
    assert_eq!(folder.names().len(), 2);
    recorder.end(&summary());
    assert_eq!(folder.names().len(), 3, "the end of the run is told too");
}

#[test]
fn bodies_and_addresses_of_the_kernel_stay_out() {
    let mut one = sample(1);
    one.case.attempt.stage = crate::event::Stage::Established;
    one.case.attempt.socket = 0xffff_8881_2345_6789;
    one.case.attempt.talk = Some(Box::new(Talk {
        watched: true,
        requests: 1,
        sent_ns: Some(2_000),
        first_read_ns: Some(3_000),
        read_ns: Some(4_000),
        told_ns: Some(5_000),
        told: Some(Told::End),
        eof: true,
        sent_bytes: 60,
        got_bytes: 50,
        request: bytes::Bytes::from_static(
            b"POST / HTTP/1.1\r\nCookie:****\r\nContent-Length: 6\r\n\r\nsecret",
        ),
        response: bytes::Bytes::from_static(b"HTTP/1.1 200 OK\r\nContent-Length: 90\r\n\r\nsecret"),
        ..Talk::default()
    }));
    one.explain();
    assert_eq!(one.verdict.cause, Cause::ResponseTruncated);
    let folder = Folder::new();
    let target = Target { path: folder.file(), most: None, keep: None };
    let mut recorder = Recorder::begin(&target, header()).unwrap();
    recorder.incident(&one, true, 0);
    recorder.end(&summary());
    let bytes = fs::read(folder.file()).unwrap();
    let text = String::from_utf8(zstd::decode_all(&bytes[..]).unwrap()).unwrap();
    assert!(text.contains("POST / HTTP/1.1") && text.contains("200 OK"), "{text}");
    assert!(!text.contains("secret") && !text.contains("18446613"), "{text}");
    let (mut again, _, error) = read(&bytes);
    assert!(error.is_none(), "{error:?}");
    again[0].explain();
    assert_eq!(again[0].verdict, one.verdict);
    assert_eq!(again[0].payload(), one.payload());
}

#[test]
fn a_full_disk_ends_the_recording_and_not_the_run() {
    let target = Target { path: "/dev/full".into(), most: None, keep: None };
    assert!(Recorder::begin(&target, header()).is_err(), "at the beginning it is an error");
    let folder = Folder::new();
    let target = Target { path: folder.file(), most: Some(64 << 10), keep: None };
    let mut recorder = Recorder::begin(&target, header()).unwrap();
    // The older part cannot be moved to where a folder is that holds something.
    fs::create_dir_all(folder.0.path().join("run.w502.1/x")).unwrap();
    let mut told = Vec::new();
    for number in 0..20_000 {
        told.extend(recorder.incident(&sample(number), true, number));
        if !told.is_empty() {
            break;
        }
    }
    assert!(recorder.failed() && told[0].contains("recording ends here"), "{told:?}");
    assert_eq!(recorder.incident(&sample(1), true, 0), Vec::<String>::new());
    assert_eq!(recorder.end(&summary()), Vec::<String>::new());
}
