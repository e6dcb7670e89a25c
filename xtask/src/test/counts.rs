//! How many tests passed, as the programs that ran them say.

use std::collections::BTreeMap;
use std::fmt;

/// Numbers of tests.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Counts {
    pub(crate) passed: u64,
    pub(crate) failed: u64,
    pub(crate) skipped: u64,
}

impl fmt::Display for Counts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} passed, {} failed, {} skipped", self.passed, self.failed, self.skipped)
    }
}

impl Counts {
    pub(crate) const fn one_passed() -> Counts {
        Counts { passed: 1, failed: 0, skipped: 0 }
    }

    pub(crate) const fn one_failed() -> Counts {
        Counts { passed: 0, failed: 1, skipped: 0 }
    }

    pub(crate) const fn one_skipped() -> Counts {
        Counts { passed: 0, failed: 0, skipped: 1 }
    }

    pub(crate) fn add(&mut self, other: Counts) {
        self.passed += other.passed;
        self.failed += other.failed;
        self.skipped += other.skipped;
    }

    /// So many tests that counted as passed did not run.
    pub(crate) fn without(mut self, skipped: usize) -> Counts {
        let skipped = u64::try_from(skipped).unwrap_or(u64::MAX).min(self.passed);
        self.passed -= skipped;
        self.skipped += skipped;
        self
    }

    /// A program that ended badly although it counted no failure has failed all the same.
    pub(crate) fn with_status(mut self, success: bool) -> Counts {
        if !success && self.failed == 0 {
            self.failed = 1;
        }
        self
    }
}

/// The line of a test program of cargo: `test result: ok. 12 passed; 0 failed; 1 ignored; …`.
pub(super) fn of_cargo(line: &str) -> Option<Counts> {
    let rest = line.trim().strip_prefix("test result: ")?;
    let (_, rest) = rest.split_once(". ")?;
    let number = |word: &str| {
        rest.split(';').find_map(|part| part.trim().strip_suffix(word)?.trim().parse::<u64>().ok())
    };
    Some(Counts { passed: number("passed")?, failed: number("failed")?, skipped: number("ignored")? })
}

/// Tests that did not run, each once with its first reason: lines `PROGRAM TEST: WHY` (tests/skip).
pub(super) fn skipped(lines: &str) -> BTreeMap<&str, &str> {
    let mut tests = BTreeMap::new();
    for (test, why) in lines.lines().filter_map(|line| line.split_once(": ")) {
        tests.entry(test).or_insert(why);
    }
    tests
}

/// The last line of faultlab: `12 passed, 0 failed, 1 skipped`.
pub(super) fn of_faultlab(line: &str) -> Option<Counts> {
    let mut parts = line.trim().split(", ");
    let mut number = |word: &str| parts.next()?.strip_suffix(word)?.trim_end().parse::<u64>().ok();
    let counts = Counts { passed: number("passed")?, failed: number("failed")?, skipped: number("skipped")? };
    parts.next().is_none().then_some(counts)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_of_test_programs() {
        let line = "test result: FAILED. 12 passed; 3 failed; 1 ignored; 0 measured; 0 filtered out; finished in 0.05s";
        assert_eq!(of_cargo(line), Some(Counts { passed: 12, failed: 3, skipped: 1 }));
        assert_eq!(of_cargo("test result: unclear"), None);
        assert_eq!(of_cargo("test tests::x ... ok"), None);
        assert_eq!(
            of_faultlab("114 passed, 0 failed, 2 skipped"),
            Some(Counts { passed: 114, failed: 0, skipped: 2 })
        );
        assert_eq!(of_faultlab("tier full: 90 right, 4 likely, 0 unexplained"), None);
    }

    #[test]
    fn what_is_printed_can_be_read() {
        let counts = Counts { passed: 1, failed: 2, skipped: 3 };
        assert_eq!(of_faultlab(&counts.to_string()), Some(counts));
    }

    #[test]
    fn tests_that_did_not_run_have_not_passed() {
        let lines = "tracer a::b: no nft\ntracer a::b: no nginx\nxtask c::d: no mke2fs\n";
        let tests = skipped(lines);
        assert_eq!(
            tests.iter().map(|(test, why)| (*test, *why)).collect::<Vec<_>>(),
            [("tracer a::b", "no nft"), ("xtask c::d", "no mke2fs")]
        );
        let counts = Counts { passed: 5, failed: 0, skipped: 1 }.without(tests.len());
        assert_eq!(counts, Counts { passed: 3, failed: 0, skipped: 3 });
    }

    #[test]
    fn a_bad_end_is_a_failure() {
        assert_eq!(Counts::default().with_status(false), Counts::one_failed());
        assert_eq!(Counts::one_failed().with_status(false), Counts::one_failed());
        assert_eq!(Counts::one_passed().with_status(true), Counts::one_passed());
    }
}
