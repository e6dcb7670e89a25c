//! What `why502 check` must find in a case: the `[check]` part of `case.toml`, and the judgement. Pure.

use crate::case::Case;
use crate::expect::Confidence;
use crate::judge::{Score, confidence, matches, names_line, text};
use crate::look::Said;
use crate::nginx::Line;
use anyhow::{Result, ensure};
use serde::Deserialize;
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};

/// What must be found. One of `finds`, `none` and `unseen`.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct CheckExpect {
    /// Names of findings: each must be there, and no others (but see `also`).
    #[serde(default)]
    pub(crate) finds: Vec<String>,
    /// Nothing at all may be found, and everything must have been looked at.
    #[serde(default)]
    pub(crate) none: bool,
    /// Why the fault is not there to be seen.
    pub(crate) unseen: Option<Unseen>,
    /// The least confidence of what is in `finds`.
    #[serde(default = "likely")]
    pub(crate) confidence: Confidence,
    /// The most that the evidence allows.
    #[serde(default = "proven")]
    pub(crate) at_most: Confidence,
    /// Markers of lines: each is named by something in `finds`.
    #[serde(default)]
    pub(crate) lines: Vec<String>,
    /// The addresses, all of them, that `finds` is about.
    #[serde(default)]
    pub(crate) addresses: Vec<String>,
    /// Texts that the advice of what is in `finds` contains.
    #[serde(default)]
    pub(crate) fix_contains: Vec<String>,
    /// Text in the first advice of something in `finds`.
    #[serde(default)]
    pub(crate) first_fix_contains: Vec<String>,
    /// Texts in what is said to break.
    #[serde(default)]
    pub(crate) breaks_contains: Vec<String>,
    /// Other findings that are true here and may come.
    #[serde(default)]
    pub(crate) also: Vec<String>,
    #[serde(default)]
    pub(crate) at: Moment,
}

fn likely() -> Confidence {
    Confidence::Likely
}

fn proven() -> Confidence {
    Confidence::Proven
}

/// Why a fault whose cause `check` knows cannot be seen before the first request.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Unseen {
    /// A step makes it after a request.
    Later,
    /// One connection that is closed at once meets it by chance alone.
    Load,
    /// The request says where nginx connects to, or lets it ask its name servers.
    Request,
    /// What refuses belongs to nginx's own processes, and no other can take it on: a system call filter, Landlock, a BPF program
    /// that looks for them.
    Own,
    /// The label of a socket decides that only its connection would show.
    Label,
    /// Only what nginx says brings it out, and a check says nothing to a plain server.
    Silence,
    /// OpenSSL is more particular than the check's own TLS.
    Openssl,
}

/// When it is asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Moment {
    #[default]
    BeforeRequests,
    AfterRequests,
}

impl CheckExpect {
    /// Checks what the types cannot say.
    pub(crate) fn is_whole(&self) -> Result<()> {
        let said = [!self.finds.is_empty(), self.none, self.unseen.is_some()];
        ensure!(
            said.iter().filter(|said| **said).count() == 1,
            "[check] needs exactly one of `finds`, `none = true` and `unseen`"
        );
        let of_finds = !self.lines.is_empty()
            || !self.addresses.is_empty()
            || !self.fix_contains.is_empty()
            || !self.breaks_contains.is_empty()
            || !self.first_fix_contains.is_empty();
        ensure!(
            !of_finds || !self.finds.is_empty(),
            "[check] `lines`, `addresses`, `fix_contains`, `first_fix_contains` and `breaks_contains` belong to `finds`"
        );
        ensure!(self.confidence <= self.at_most, "[check] `at_most` is less than `confidence`");
        Ok(())
    }

    /// Whether it says what must be found, or that nothing may be.
    pub(crate) fn expects(&self) -> bool {
        self.unseen.is_none()
    }
}

pub(crate) fn moment(case: &Case) -> Moment {
    case.check.as_ref().map(|check| check.at).unwrap_or_default()
}

/// Judges what was said of one case.
pub(crate) fn judge(case: &Case, said: &Said, markers: &BTreeMap<String, Line>) -> (Vec<String>, Score) {
    let mut failures = form(said);
    let mut score = Score::default();
    let findings: Vec<&Value> = said.of_type("finding").collect();
    for finding in &findings {
        let (name, cause) = (text(finding, "/name"), text(finding, "/cause"));
        let is_proven = confidence(text(finding, "/confidence")) == Some(Confidence::Proven);
        if is_proven && case.expect.never.iter().any(|never| matches(never, cause)) && !finds(case, name) {
            score.false_proven += 1;
            failures.push(format!("FALSE PROVEN: {name}, which must not be said here ({})", about(finding)));
        } else if !may_be_found(case, finding) {
            score.wrong += u32::from(is_proven);
            failures.push(format!("found {name}, which is not there ({})", about(finding)));
        }
    }
    if let Some(check) = &case.check {
        failures.extend(wanted(check, said, &findings, markers));
    }
    (failures, score)
}

/// Whether the case says that this is found.
fn finds(case: &Case, name: &str) -> bool {
    case.check.iter().flat_map(|check| check.finds.iter().chain(&check.also)).any(|one| one == name)
}

fn may_be_found(case: &Case, finding: &Value) -> bool {
    let (name, cause) = (text(finding, "/name"), text(finding, "/cause"));
    if finds(case, name) {
        return true;
    }
    if case.check.as_ref().is_some_and(CheckExpect::expects) {
        return false;
    }
    let expect = &case.expect;
    let mut true_here = expect.cause.iter().chain(&expect.cause_any).chain(&expect.allow);
    true_here.any(|one| one == cause)
}

/// What holds for every answer, whatever was found.
fn form(said: &Said) -> Vec<String> {
    let mut failures = Vec::new();
    if !matches!(said.exit, Some(0 | 4)) {
        failures.push(format!("check ended with {:?}; 0 and 4 are its own", said.exit));
    }
    if said.stderr.contains("panicked") {
        failures.push("check panicked".to_owned());
    }
    failures.extend(said.odd.iter().take(3).map(|line| format!("not a JSON line: {line}")));
    let kinds: Vec<&str> = said.lines.iter().map(|line| text(line, "/type")).collect();
    if kinds.last() != Some(&"summary") || kinds.iter().filter(|kind| **kind == "summary").count() != 1 {
        failures.push(format!("the last line, and no other, is the summary: {kinds:?}"));
        return failures;
    }
    let Some(summary) = said.lines.last() else { return failures };
    let number = |key: &str| summary.get(key).and_then(Value::as_u64).and_then(|n| usize::try_from(n).ok());
    let severe = |name| said.of_type("finding").filter(|f| text(f, "/severity") == name).count();
    let incomplete = said.of_type("checked").filter(|c| !text(c, "/incomplete").is_empty()).count();
    for (key, counted) in [
        ("problems", severe("problem")),
        ("warnings", severe("warning")),
        ("checked", said.of_type("checked").count()),
        ("incomplete", incomplete),
    ] {
        if number(key) != Some(counted) {
            failures.push(format!("summary.{key} is {:?}, the lines have {counted}", number(key)));
        }
    }
    if (said.exit == Some(4)) != (incomplete > 0) {
        failures.push(format!("exit {:?} with {incomplete} incomplete", said.exit));
    }
    failures
}

/// What the case asks for.
fn wanted(
    check: &CheckExpect,
    said: &Said,
    findings: &[&Value],
    markers: &BTreeMap<String, Line>,
) -> Vec<String> {
    let mut failures = Vec::new();
    if check.none {
        let incomplete = said.of_type("checked").filter(|checked| !text(checked, "/incomplete").is_empty());
        failures.extend(incomplete.map(|c| format!("not looked at: {}", text(c, "/incomplete"))));
        return failures;
    }
    let of = |name: &str| -> Vec<&Value> {
        findings.iter().filter(|finding| text(finding, "/name") == name).copied().collect()
    };
    for name in &check.finds {
        if of(name).is_empty() {
            failures.push(format!("{name} was not found"));
        }
        for finding in of(name) {
            let said = confidence(text(finding, "/confidence"));
            if said.is_none_or(|said| said < check.confidence) {
                let floor = check.confidence;
                failures.push(format!("{name} is {said:?}, must be at least {floor:?} ({})", about(finding)));
            } else if said > Some(check.at_most) {
                let most = check.at_most;
                failures
                    .push(format!("{name} is {said:?}, the evidence allows {most:?} ({})", about(finding)));
            }
        }
    }
    let found: Vec<&Value> = check.finds.iter().flat_map(|name| of(name)).collect();
    if found.is_empty() {
        return failures;
    }
    let upstreams: BTreeSet<&str> = found.iter().map(|finding| text(finding, "/upstream")).collect();
    let addresses: BTreeSet<&str> = check.addresses.iter().map(String::as_str).collect();
    if !addresses.is_empty() && upstreams != addresses {
        failures.push(format!("found of {upstreams:?}, expected {addresses:?}"));
    }
    let fixes = |finding: &&Value| -> Vec<String> {
        let all = finding.get("fix").and_then(Value::as_array).into_iter().flatten();
        all.map(|fix| text(fix, "/text").to_owned()).collect()
    };
    for wanted in &check.fix_contains {
        if !found.iter().flat_map(fixes).any(|fix| fix.contains(wanted.as_str())) {
            failures.push(format!(
                "no advice says {wanted:?}: {:?}",
                found.iter().map(fixes).collect::<Vec<_>>()
            ));
        }
    }
    for wanted in &check.first_fix_contains {
        if !found
            .iter()
            .any(|finding| fixes(finding).first().is_some_and(|fix| fix.contains(wanted.as_str())))
        {
            failures.push(format!(
                "no first advice says {wanted:?}: {:?}",
                found.iter().map(fixes).collect::<Vec<_>>()
            ));
        }
    }
    for wanted in &check.breaks_contains {
        if !found.iter().any(|finding| text(finding, "/breaks").contains(wanted.as_str())) {
            let all: Vec<&str> = found.iter().map(|finding| text(finding, "/breaks")).collect();
            failures.push(format!("what breaks is not {wanted:?}: {all:?}"));
        }
    }
    for marker in &check.lines {
        match markers.get(marker) {
            None => failures.push(format!("the case has no line marked #@{marker}")),
            Some((file, line)) if !found.iter().any(|finding| names_line(finding, file, *line)) => {
                failures.push(format!("line not named: {marker} = {}:{line}", file.display()));
            }
            Some(_) => {}
        }
    }
    failures
}

/// A finding for the reader of a failure.
fn about(finding: &Value) -> String {
    let (confidence, summary) = (text(finding, "/confidence"), text(finding, "/summary"));
    match text(finding, "/rival") {
        "" => format!("{confidence}: {summary}"),
        rival => format!("{confidence}: {summary}; rival: {rival}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::case;
    use serde_json::json;
    use std::path::Path;

    /// Causes that a check without traffic can find; `invalid-response` and what happens under way are not among them.
    const WITHOUT_TRAFFIC: [&str; 12] = [
        "connect-",
        "host-unreachable",
        "network-unreachable",
        "local-port-exhausted",
        "bind-failed",
        "fd-limit",
        "blocked-",
        "unix-",
        "tls-",
        "plain-to-tls-port",
        "resolver-failed",
        "no-",
    ];

    #[test]
    fn no_case_is_forgotten() {
        let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("data");
        let cases = case::load_all(&dir).unwrap();
        let forgotten: Vec<&str> = cases
            .iter()
            .filter(|case| case.check.is_none())
            .filter(|case| {
                let cause = case.expect.cause.as_deref().unwrap_or_default();
                WITHOUT_TRAFFIC.iter().any(|beginning| cause.starts_with(beginning))
            })
            .map(|case| case.name.as_str())
            .collect();
        assert!(forgotten.is_empty(), "say in [check] what why502 check finds, or why not: {forgotten:?}");
        let healthy = cases.iter().filter(|case| case.check.as_ref().is_some_and(|check| check.none)).count();
        assert!(healthy >= 50, "{healthy} cases in which check finds nothing");
    }

    fn case(check: &str) -> Case {
        case::parse(&format!(
            "about = 'x'\n[nginx]\n[expect]\ncause = 'unix-missing'\nnever = ['connect-refused-*']\n\
             confidence = {{ full = 'proven', kprobe = 'proven', tracepoint = 'likely' }}\n{check}"
        ))
        .unwrap()
    }

    fn finding(name: &str, confidence: &str) -> Value {
        json!({"type": "finding", "name": name, "cause": name, "confidence": confidence, "severity": "problem",
               "upstream": "127.0.0.1:1", "config": [{"file": "/a", "line": 3}]})
    }

    fn said(findings: &[Value]) -> Said {
        let summary = json!({"type": "summary", "problems": findings.len(), "warnings": 0, "checked": 0,
                             "incomplete": 0});
        let lines: Vec<String> = findings.iter().chain([&summary]).map(Value::to_string).collect();
        Said::of(Some(0), &lines.join("\n"), String::new())
    }

    fn failures(check: &str, findings: &[Value]) -> Vec<String> {
        let markers =
            BTreeMap::from([("server".to_owned(), ("/a".into(), 3)), ("pass".to_owned(), ("/a".into(), 4))]);
        judge(&case(check), &said(findings), &markers).0
    }

    #[test]
    fn what_is_found_is_what_is_there() {
        let missing = finding("unix-missing", "proven");
        for (check, findings, says) in [
            ("[check]\nfinds = ['unix-missing']\nlines = ['server']", vec![missing.clone()], ""),
            ("[check]\nfinds = ['unix-missing']\nlines = ['pass']", vec![missing.clone()], "line not named"),
            (
                "[check]\nfinds = ['unix-missing']\naddresses = ['x']",
                vec![missing.clone()],
                "expected {\"x\"}",
            ),
            ("[check]\nfinds = ['unix-missing']", vec![], "unix-missing was not found"),
            (
                "[check]\nfinds = ['unix-missing']\nconfidence = 'proven'",
                vec![finding("unix-missing", "likely")],
                "must be at least Proven",
            ),
            (
                "[check]\nfinds = ['unix-missing']\nat_most = 'likely'",
                vec![missing.clone()],
                "the evidence allows Likely",
            ),
            ("[check]\nnone = true", vec![missing.clone()], "which is not there"),
            ("[check]\nnone = true", vec![], ""),
            ("[check]\nunseen = 'load'", vec![missing.clone()], ""),
            ("", vec![missing.clone()], ""),
            ("", vec![finding("bind-failed", "likely")], "which is not there"),
            ("", vec![finding("connect-refused-by-peer", "proven")], "FALSE PROVEN"),
            (
                "[check]\nfinds = ['unix-missing']",
                vec![missing.clone(), finding("bind-failed", "likely")],
                "found bind-failed",
            ),
            (
                "[check]\nfinds = ['unix-missing']\nalso = ['bind-failed']",
                vec![missing.clone(), finding("bind-failed", "likely")],
                "",
            ),
        ] {
            let found = failures(check, &findings);
            let fits =
                if says.is_empty() { found.is_empty() } else { found.len() == 1 && found[0].contains(says) };
            assert!(fits, "{check}: {found:?}, expected {says:?}");
        }
    }

    #[test]
    fn a_proven_lie_is_counted() {
        let lie = said(&[finding("connect-refused-by-peer", "proven")]);
        assert_eq!(judge(&case(""), &lie, &BTreeMap::new()).1.false_proven, 1);
    }

    #[test]
    fn the_form_is_judged_as_well() {
        for (exit, stdout, stderr, says) in [
            (Some(101), "{\"type\":\"summary\"}", "thread 'main' panicked at x", "panicked"),
            (Some(0), "", "", "the last line"),
            (Some(0), "oops", "", "not a JSON line"),
            (Some(4), "{\"type\":\"summary\",\"incomplete\":0}", "", "with 0 incomplete"),
        ] {
            let found = form(&Said::of(exit, stdout, stderr.to_owned()));
            assert!(found.iter().any(|failure| failure.contains(says)), "{found:?}");
        }
    }

    #[test]
    fn a_case_says_one_thing() {
        for bad in ["", "finds = ['a']\nnone = true", "none = true\nlines = ['a']"] {
            let text = format!("[check]\n{bad}");
            let case = toml::from_str::<BTreeMap<String, CheckExpect>>(&text).unwrap();
            assert!(case["check"].is_whole().is_err(), "{bad}");
        }
    }
}
