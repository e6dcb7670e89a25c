//! Any bytes are a log: of nginx's errors, of the kernel's and the audit daemon's denials. Requests and headers stand in it.
#![no_main]

use libfuzzer_sys::fuzz_target;
use tracer::check::past::{
    denial,
    line::{self, Lsm},
};

/// The end of the year 9999.
const LAST: i64 = 253_402_300_800;

fuzz_target!(|bytes: &[u8]| {
    let text = String::from_utf8_lossy(bytes);
    for whole in text.lines() {
        if let Some(found) = denial::denial(whole) {
            assert!(whole.contains(&found.id) && whole.contains(&found.comm), "{found:?}");
            assert_eq!(denial::denial(whole).as_ref(), Some(&found));
        }
        let Some(line) = line::line(whole) else { continue };
        assert!(whole.ends_with(line.text) && whole.contains(line.level), "{line:?}");
        assert!((0..=LAST).contains(&line.clock), "{line:?}");
        for lsm in [Lsm::Selinux, Lsm::Apparmor, Lsm::Neither] {
            let Some(told) = line::told(line.text, lsm) else { continue };
            // One message stands for all lines that differ in names alone, and is part of this one.
            assert!(line.text.starts_with(&told.message), "{told:?}");
            assert!(!told.message.contains(", client: "), "{told:?}");
            let upstream = told.upstream.iter();
            upstream
                .for_each(|name| assert!(!name.is_empty() && line.text.contains(name.as_str()), "{told:?}"));
        }
    }
});
