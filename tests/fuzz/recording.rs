//! Any bytes are a recording; and any text is what a whole one holds behind its header. Reading ends, keeps what it has read to the
//! first error, and what it has read can be explained, shown and written again.
#![no_main]

use libfuzzer_sys::fuzz_target;
use tracer::{
    record::{Entry, Reader},
    report::Incident,
};

mod shown;

/// Longer than any run of the reader: each entry takes a line.
const MOST: usize = 1 << 14;
/// A whole header, as `why502 trace --record` writes it.
const HEADER: &str = r#"{"header":{"why502":"0.1.0","host":"h","kernel":"6.1.0","machine":"x86_64","time":{"seconds":0,"nanos":0,"offset":0},"tier":"Full","hooks":[],"masters":[],"payload":true,"part":1}}"#;

fuzz_target!(|bytes: &[u8]| {
    read(bytes);
    // Behind checksums no fuzzer gets by chance.
    let mut whole = b"\x57\x2a\x4d\x18\x13\0\0\0why502-recording 1\n".to_vec();
    for lines in [HEADER.as_bytes(), bytes] {
        let ended = [lines, b"\n"].concat();
        whole.extend(zstd::bulk::compress(&ended, 1).expect("a vector has room"));
    }
    assert!(read(&whole), "the header is refused: {:?}", Reader::open(&whole[..]).err());
});

/// False if it is no recording at all.
fn read(bytes: &[u8]) -> bool {
    let Ok(mut reader) = Reader::open(bytes) else { return false };
    for _ in 0..MOST {
        match reader.entry() {
            Ok(Some(Entry::Incident(incident, _))) => again(*incident),
            Ok(Some(Entry::Summary(_) | Entry::Continued)) => {}
            Ok(None) => return true,
            Err(error) => {
                assert!(!error.to_string().is_empty());
                assert!(matches!(reader.entry(), Ok(None)), "there is something behind an error");
                return true;
            }
        }
    }
    panic!("it does not end");
}

fn again(mut incident: Incident) {
    incident.explain();
    shown::everywhere(&incident);
    let text = serde_json::to_string(&incident).expect("what was read can be written");
    let mut copy: Incident = serde_json::from_str(&text).expect("what was written can be read");
    copy.explain();
    assert_eq!(format!("{copy:?}"), format!("{incident:?}"), "it comes back as another");
}
