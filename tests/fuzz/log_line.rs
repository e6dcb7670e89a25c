//! Any bytes are a log: of nginx's errors, of the kernel's and the audit daemon's denials. Requests and headers stand in it.
#![no_main]

use libfuzzer_sys::fuzz_target;
use tracer::{
    check::past::denial,
    errlog::{fields, line, meaning},
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
        let Some(line) = line(whole) else { continue };
        assert!(whole.ends_with(line.text), "{line:?}");
        assert!((0..=LAST).contains(&line.clock), "{line:?}");
        let fields = fields(line.text);
        assert!(line.text.starts_with(fields.message), "{fields:?}");
        let parts =
            [fields.client, fields.server, fields.request, fields.subrequest, fields.upstream, fields.host];
        for part in parts.into_iter().flatten() {
            assert!(line.text.contains(part), "{fields:?}");
        }
        let _ = (fields.address(), fields.method_and_target(), meaning(fields.message, line.level));
    }
});
