//! Cases that hang on time: what a case says of it, how often such a case passes, and what the run's own counters excuse.
//! Pure.

use crate::report::Outcome;
use serde::Deserialize;
use serde_json::Value;

/// What of a case hangs on time.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Timing {
    /// In a sentence.
    pub(crate) why: String,
    /// On a real machine as well, not only where the machine is emulated.
    #[serde(default)]
    pub(crate) host: bool,
}

impl Timing {
    /// Whether it does so on this kind of machine.
    pub(crate) fn matters(&self, emulated: bool) -> bool {
        emulated || self.host
    }
}

/// How often a case passed of the times it was played.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Rate {
    pub(crate) passed: u32,
    pub(crate) played: u32,
}

/// Puts several plays of one case together: the first that failed stands for all, with every play's score.
pub(crate) fn together(plays: Vec<Outcome>) -> Outcome {
    let mut rate = Rate::default();
    let mut whole = Outcome::default();
    let mut score = whole.score;
    for play in plays {
        rate.played += 1;
        rate.passed += u32::from(play.passed());
        score.add(play.score);
        if rate.played == 1 || whole.passed() && !play.passed() {
            whole = play;
        }
    }
    whole.score = score;
    whole.rate = (whole.skipped.is_none()).then_some(rate);
    whole
}

/// True if a verdict was wrong: then no further play can mend it.
pub(crate) fn is_wrong(outcome: &Outcome) -> bool {
    outcome.score.wrong > 0 || outcome.score.false_proven > 0
}

/// Incidents that the summary says why502 cannot have seen: programs that the kernel skipped, records that were lost.
pub(crate) fn unseen(summary: Option<&Value>) -> u64 {
    let number = |name: &str| summary.and_then(|s| s.get(name)?.as_u64()).unwrap_or(0);
    number("skipped_runs") + number("events_lost")
}

/// Excuses cases that hang on time and whose one failure is a missing incident, if all of these together are not more than
/// `unseen`. They count as skipped, by name.
pub(crate) fn excuse(outcomes: &mut [Outcome], unseen: u64) {
    let excusable = |o: &Outcome| {
        o.rate.is_some()
            && o.score.missing > 0
            && o.failures.len() == 1
            && !is_wrong(o)
            && o.skipped.is_none()
    };
    let missing: u64 = outcomes.iter().filter(|o| excusable(o)).map(|o| u64::from(o.score.missing)).sum();
    if missing == 0 || missing > unseen {
        return;
    }
    for outcome in outcomes.iter_mut().filter(|o| excusable(o)) {
        let count = outcome.score.missing;
        outcome.skipped = Some(format!(
            "excused: {count} incidents are missing, and why502 counts {unseen} moments that it did not see"
        ));
        outcome.failures.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::judge::Score;
    use serde_json::json;

    fn play(failures: &[&str], missing: u32) -> Outcome {
        Outcome {
            failures: failures.iter().map(ToString::to_string).collect(),
            score: Score { missing, ..Score::default() },
            ..Outcome::default()
        }
    }

    #[test]
    fn one_failure_stands_for_all_plays() {
        let whole = together(vec![play(&[], 0), play(&["first"], 1), play(&["second"], 1)]);
        assert_eq!(whole.rate, Some(Rate { passed: 1, played: 3 }));
        assert_eq!((whole.failures, whole.score.missing), (vec!["first".to_owned()], 2));
        assert!(together(vec![play(&[], 0), play(&[], 0)]).passed());
        let skipped = Outcome { skipped: Some("no tun".to_owned()), ..Outcome::default() };
        assert_eq!(together(vec![skipped]).rate, None);
    }

    #[test]
    fn counters_excuse_by_number() {
        let runs = || {
            let wrong =
                Outcome { score: Score { wrong: 1, missing: 1, ..Score::default() }, ..play(&["w"], 0) };
            [vec![play(&["0 incidents"], 1)], vec![play(&["x", "y"], 1)], vec![wrong]].map(together)
        };
        let excused = |unseen| {
            let mut outcomes = runs();
            excuse(&mut outcomes, unseen);
            outcomes.map(|outcome| outcome.skipped.is_some())
        };
        assert_eq!(excused(0), [false, false, false]);
        assert_eq!(excused(1), [true, false, false]);
        let mut many = [vec![play(&["0"], 2)], vec![play(&["0"], 2)]].map(together);
        excuse(&mut many, 3);
        assert!(many.iter().all(|outcome| outcome.skipped.is_none()), "four are missing");
        // A case that does not hang on time is not excused.
        let mut plain = [play(&["0 incidents"], 1)];
        excuse(&mut plain, 9);
        assert!(plain[0].skipped.is_none());
        assert_eq!(unseen(Some(&json!({"skipped_runs": 2, "events_lost": 1}))), 3);
        assert_eq!(unseen(None), 0);
    }

    #[test]
    fn emulated_machines_are_slower() {
        let timing = |host| Timing { why: String::new(), host };
        assert!(timing(false).matters(true) && !timing(false).matters(false) && timing(true).matters(false));
    }
}
