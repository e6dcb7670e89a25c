//! Any bytes are a record of the ring buffer: reading them is total, keeps nothing that is not in them, and does not hang on
//! where they lie. What is read is explained and shown, and none of it can steer a terminal.
#![no_main]

use std::{mem::offset_of, time::SystemTime};

use bytes::Bytes;
use libfuzzer_sys::fuzz_target;
use tracer::{
    correlate::{Case, Facts, Reach, blocked::Watched, no_attempt, request::Attribution, said, talk},
    diagnose::{Confidence, verdict},
    event::{self, Attempt, Event, Stage},
    moment::Moment,
    report::Incident,
};
use tracer_ebpf::{kind, talk::Broken};

mod shown;

fuzz_target!(|record: &[u8]| {
    let decoded = event::decode(&Bytes::copy_from_slice(record));
    let shifted = Bytes::from([&[0; 3], record].concat()).slice(3..);
    assert_eq!(event::decode(&shifted), decoded, "it hangs on where the record lies");
    let Ok(found) = decoded else { return };
    // The ring buffer rounds lengths up.
    let longer = Bytes::from([record, &[0xff; 8]].concat());
    assert_eq!(event::decode(&longer).as_ref(), Ok(&found), "it hangs on what follows the record");
    match found {
        Event::Attempt(attempt) => {
            masked_once(record, &attempt);
            explain(*attempt, record.last().copied().unwrap_or(0));
        }
        Event::Dns(dns) => {
            assert!(dns.bytes.len() <= record.len() && dns.errno >= 0);
            let name = no_attempt::reply(&dns.bytes).and_then(|(_, name)| name);
            assert!(name.is_none_or(|name| !name.contains(char::is_control)));
        }
        Event::Said(said) => {
            let words = [&said.line, &said.host];
            assert!(words.iter().all(|words| words.bytes.len() <= record.len()));
            assert!(said.head.len() <= record.len() && said.attempt_number != Some(0));
            if let Some(request) = said::request(&said) {
                let found = said::attribution(request, 1, said.noted);
                assert!(found.note.is_some() || found.request.is_some_and(|request| request.head.is_some()));
            }
            assert!(said.text().is_none_or(|text| !text.contains(char::is_control)));
            assert!(said.began() >= SystemTime::UNIX_EPOCH && said.said() == said.said());
        }
        Event::Death(death) => assert!(death.comm.is_ascii() && !death.comm.contains(char::is_control)),
        Event::Fork { .. }
        | Event::Exec { .. }
        | Event::Exit { .. }
        | Event::Answered(_)
        | Event::Hint { .. }
        | Event::ClientGone { .. }
        | Event::Denial(_) => {}
    }
});

/// What was masked stays as it is when it is read again.
fn masked_once(record: &[u8], attempt: &Attempt) {
    let Some(talk) = attempt.talk.as_deref() else { return };
    assert_eq!(record.first_chunk::<4>(), Some(&kind::TALK.to_ne_bytes()));
    let mut again = record.to_vec();
    for (at, bytes) in [(offset_of!(Broken, sent), &talk.request), (offset_of!(Broken, got), &talk.response)]
    {
        again[at..at + bytes.len()].copy_from_slice(bytes);
    }
    let Ok(Event::Attempt(read)) = event::decode(&again.into()) else { panic!("it is a record no longer") };
    let second = read.talk.map(|talk| (talk.request.clone(), talk.response.clone()));
    assert_eq!(second, Some((talk.request.clone(), talk.response.clone())), "masking twice differs");
}

/// With nothing known but the record; `dice` decides what can have been seen.
fn explain(mut attempt: Attempt, dice: u8) {
    let bit = |n: u8| dice >> n & 1 == 1;
    attempt.deduce_reset(bit(0));
    attempt.deduce_give_up(bit(1).then_some(6));
    let reach = Reach {
        drops: bit(2),
        drop_reasons: bit(2),
        resets: bit(3),
        icmp: bit(0),
        accept_queue: bit(4),
        security: bit(5),
        blockers: if bit(5) { Watched::ALL } else { Watched::NONE },
        talk: bit(6),
        unix_talk: bit(6),
        deaths: bit(6),
    };
    let facts = Facts { is_local: bit(7).then(|| attempt.remote.ip().is_loopback()), ..Facts::default() };
    let client_saw = [None, Some(502), Some(504), Some(200)][usize::from(dice >> 1 & 3)];
    let mono_ns = attempt.end_ns;
    let case = Case {
        attempt,
        client_gone: None,
        client_saw,
        reach,
        facts,
        config: Vec::new(),
        story: None,
        word: None,
    };
    let whole = talk::is_whole(&case);
    assert_eq!(whole, talk::body(&case, &talk::answer(&case)) == talk::Body::Whole);
    let shown = talk::is_failure(&case);
    assert!(shown || case.attempt.stage == Stage::Established, "only what stood can have gone well");
    let found = verdict(&case);
    assert_eq!(found, verdict(&case), "two verdicts for one case");
    assert!(
        found.confidence != Confidence::Proven || found.rival.is_none(),
        "a proof has a rival: {found:?}"
    );
    shown::everywhere(&Incident {
        time: Moment::utc(SystemTime::UNIX_EPOCH),
        mono_ns,
        shown_ns: mono_ns,
        case,
        verdict: found,
        container: None,
        bind_lines: Vec::new(),
        attribution: Attribution::default(),
        repeats: None,
    });
}
