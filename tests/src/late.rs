//! What comes when its case is over.

use crate::expect::Expect;
use crate::judge::{counted, matches, text};
use serde_json::Value;

/// Judges incidents of a case that came when it was over and its machines were gone: facts are missing then, so that only what
/// must never be said, and too much, is wrong.
pub(crate) fn judge(expect: &Expect, tier: &str, incidents: &[Value]) -> Vec<String> {
    let mut failures = Vec::new();
    for cause in incidents.iter().map(|incident| text(incident, "/cause")) {
        if expect.never.iter().any(|never| matches(never, cause)) {
            failures.push(format!("said {cause}, which must not be said here"));
        }
    }
    let counted = counted(expect, incidents);
    let (_, max) = expect.incidents(tier);
    if counted.len() > max {
        failures.push(format!("{} incidents, expected at most {max}", counted.len()));
    }
    let others = counted.iter().filter(|incident| expect.cause.as_deref() != Some(text(incident, "/cause")));
    let proven = others.filter(|incident| text(incident, "/confidence") == "proven");
    failures.extend(proven.map(|incident| format!("FALSE PROVEN: {}", text(incident, "/cause"))));
    failures
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn incident(cause: &str, confidence: &str) -> Value {
        json!({"cause": cause, "confidence": confidence})
    }

    #[test]
    fn what_must_not_come_late_either() {
        let expect: Expect = toml::from_str(
            "cause = 'read-timeout'\nallow = ['upstream-returned-5xx']\nnever = ['connect-refused-*']",
        )
        .unwrap();
        for (said, failures) in [
            (vec![incident("read-timeout", "proven")], 0),
            (vec![incident("unexplained", "unexplained")], 0),
            (vec![incident("read-timeout", "likely"), incident("upstream-returned-5xx", "proven")], 0),
            (vec![incident("read-timeout", "likely"), incident("read-timeout", "likely")], 1),
            (vec![incident("upstream-reset", "proven")], 1),
            (vec![incident("connect-refused-by-peer", "likely")], 1),
        ] {
            let found = judge(&expect, "full", &said);
            assert_eq!(found.len(), failures, "{said:?}: {found:?}");
        }
    }
}
