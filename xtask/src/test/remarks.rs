//! What the output says of failures, kept to be said once more at its end: it is long.

use std::sync::{Mutex, PoisonError};

use super::results;

static ALL: Mutex<Vec<String>> = Mutex::new(Vec::new());

/// Keeps a line of a test program that is worth it; `place`: whose it is.
pub(super) fn note(place: &str, line: &str) {
    results::note(place, line);
    if let Some(remark) = of(line) {
        all().push(format!("{place}: {remark}"));
    }
}

/// All that were kept, in their order.
pub(super) fn take() -> Vec<String> {
    std::mem::take(&mut *all())
}

fn all() -> std::sync::MutexGuard<'static, Vec<String>> {
    ALL.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Of faultlab `failed: …`, of cargo a test that failed.
fn of(line: &str) -> Option<&str> {
    let cargo = || line.strip_prefix("test ").filter(|rest| rest.ends_with(" ... FAILED"));
    line.starts_with("failed: ").then_some(line).or_else(cargo)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_kept() {
        for (line, expect) in [
            ("failed: stood-closed: no incident", true),
            ("test check::tests::one ... FAILED", true),
            ("test check::tests::one ... ok", false),
            ("FAIL stood-closed    0.10 s  -", false),
            ("0 passed, 1 failed, 0 skipped", false),
        ] {
            assert_eq!(of(line).is_some(), expect, "{line}");
        }
    }
}
