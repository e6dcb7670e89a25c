//! Everything the lab prints, and its machine-readable files.

use crate::judge::{self, Score};
use crate::timing::Rate;
use anyhow::{Context, Result};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::io::Write;
use std::path::Path;
use std::time::Duration;

/// What became of one case.
#[derive(Debug, Default)]
pub(crate) struct Outcome {
    pub(crate) name: String,
    pub(crate) skipped: Option<String>,
    pub(crate) failures: Vec<String>,
    pub(crate) incidents: Vec<Value>,
    /// What `why502 check` found.
    pub(crate) findings: Vec<Value>,
    pub(crate) score: Score,
    /// How often it passed, if it was played for that.
    pub(crate) rate: Option<Rate>,
    pub(crate) time: Duration,
    /// Everything that helps after a failure.
    pub(crate) dump: String,
    /// Print the dump although the case passed.
    pub(crate) verbose: bool,
}

impl Outcome {
    pub(crate) fn passed(&self) -> bool {
        self.skipped.is_none() && self.failures.is_empty()
    }
}

/// A line on stdout; a closed pipe is not an error here, the exit code tells the result.
pub(crate) fn say(line: &str) {
    let _ = writeln!(std::io::stdout().lock(), "{line}");
}

/// A line on stderr.
pub(crate) fn note(line: &str) {
    let _ = writeln!(std::io::stderr().lock(), "faultlab: {line}");
}

/// One line for the case and, after a failure, all there is to know.
pub(crate) fn outcome(outcome: &Outcome) {
    if let Some(why) = &outcome.skipped {
        say(&format!("skip {:<44} {why}", outcome.name));
        return;
    }
    let word = if outcome.passed() { "pass" } else { "FAIL" };
    let mut said: BTreeMap<String, u32> = BTreeMap::new();
    for incident in &outcome.incidents {
        let verdict = format!("{} {}", judge::text(incident, "/cause"), judge::text(incident, "/confidence"));
        *said.entry(verdict).or_insert(0) += 1;
    }
    for finding in &outcome.findings {
        let verdict = format!("{} {}", judge::text(finding, "/name"), judge::text(finding, "/confidence"));
        *said.entry(verdict).or_insert(0) += 1;
    }
    let said: Vec<String> =
        said.into_iter().map(|(v, n)| if n > 1 { format!("{n}x {v}") } else { v }).collect();
    let said = if said.is_empty() { "-".to_owned() } else { said.join(", ") };
    let mut text = format!("{word} {:<44} {:6.2} s  {said}", outcome.name, outcome.time.as_secs_f64());
    for failure in &outcome.failures {
        text += &format!("\n     ! {failure}");
    }
    if !outcome.passed() || outcome.verbose {
        text += &format!("\n{}", indent(&outcome.dump));
    }
    say(&text);
}

/// The last lines of a run.
pub(crate) fn totals(outcomes: &[Outcome], tier: &str, problems: &[String]) {
    for outcome in outcomes {
        if let Some(Rate { passed, played }) = outcome.rate {
            say(&format!("rate: {} {passed}/{played}", outcome.name));
        }
        if let Some(excuse) = outcome.skipped.as_ref().filter(|why| why.starts_with("excused: ")) {
            say(&format!("skip {:<44} {excuse}", outcome.name));
        }
        if let Some(first) = outcome.failures.first() {
            say(&format!("failed: {}: {}", outcome.name, first.lines().next().unwrap_or_default()));
        }
    }
    for problem in problems {
        say(&format!("failed: why502 itself: {problem}"));
    }
    let mut score = Score::default();
    for outcome in outcomes {
        score.add(outcome.score);
    }
    if !tier.is_empty() {
        let Score { right, likely, unexplained, wrong, false_proven, missing, known, lost } = score;
        say(&format!(
            "tier {tier}: {right} right, {likely} likely, {unexplained} unexplained, {wrong} wrong, \
             {false_proven} false proven, {missing} missing; {known} requests known, {lost} lost their link"
        ));
    }
    if score.loses_requests() {
        say("failed: requests: too many that had to be known are null");
    }
    let passed = outcomes.iter().filter(|o| o.passed()).count();
    let skipped = outcomes.iter().filter(|o| o.skipped.is_some()).count();
    let failed = outcomes.len() - passed - skipped
        + usize::from(!problems.is_empty())
        + usize::from(score.loses_requests());
    say(&format!("{passed} passed, {failed} failed, {skipped} skipped"));
}

/// Writes the outcomes as JSON, with every incident.
pub(crate) fn json_file(
    path: &Path,
    tier: &str,
    outcomes: &[Outcome],
    summary: Option<&Value>,
) -> Result<()> {
    let cases: Vec<Value> = outcomes
        .iter()
        .map(|o| {
            json!({"name": o.name, "passed": o.passed(), "skipped": o.skipped, "failures": o.failures,
                   "rate": o.rate.map(|rate| [rate.passed, rate.played]), "seconds": o.time.as_secs_f64(), "incidents": o.incidents, "findings": o.findings})
        })
        .collect();
    let all = json!({"tier": tier, "cases": cases, "summary": summary});
    std::fs::write(path, format!("{all:#}\n")).with_context(|| format!("cannot write {}", path.display()))
}

/// Writes the outcomes as JUnit XML.
pub(crate) fn junit_file(path: &Path, tier: &str, outcomes: &[Outcome]) -> Result<()> {
    let failed = outcomes.iter().filter(|o| !o.failures.is_empty()).count();
    let skipped = outcomes.iter().filter(|o| o.skipped.is_some()).count();
    let mut xml = format!(
        "<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n<testsuite name=\"faultlab {}\" tests=\"{}\" \
         failures=\"{failed}\" skipped=\"{skipped}\">\n",
        escape(tier),
        outcomes.len()
    );
    for o in outcomes {
        xml += &format!("  <testcase name=\"{}\" time=\"{:.3}\">", escape(&o.name), o.time.as_secs_f64());
        if let Some(why) = &o.skipped {
            xml += &format!("<skipped message=\"{}\"/>", escape(why));
        }
        if !o.failures.is_empty() {
            let (what, dump) = (escape(&o.failures.join("; ")), escape(&o.dump));
            xml += &format!("<failure message=\"{what}\">{dump}</failure>");
        }
        xml += "</testcase>\n";
    }
    xml += "</testsuite>\n";
    std::fs::write(path, xml).with_context(|| format!("cannot write {}", path.display()))
}

/// XML text: the five characters, and nothing that XML 1.0 forbids.
fn escape(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '<' => out += "&lt;",
            '>' => out += "&gt;",
            '&' => out += "&amp;",
            '"' => out += "&quot;",
            '\n' | '\t' => out.push(c),
            c if c.is_control() => out.push('\u{fffd}'),
            c => out.push(c),
        }
    }
    out
}

fn indent(text: &str) -> String {
    text.lines().map(|line| format!("     | {line}\n")).collect::<String>().trim_end().to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn xml_is_escaped() {
        assert_eq!(escape("<a b=\"c\">\u{1b}&"), "&lt;a b=&quot;c&quot;&gt;\u{fffd}&amp;");
    }
}
