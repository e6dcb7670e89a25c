//! The rules of judgement: what why502 said, against what the case expects. Pure.

use crate::expect::{Confidence, Each, Expect, RequestExpect, WithoutRequest};
use crate::nginx::Line;
use crate::rules;
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

/// How good the verdicts of a run were, one count for each incident.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Score {
    /// The right cause, proven.
    pub(crate) right: u32,
    /// The right cause, likely.
    pub(crate) likely: u32,
    pub(crate) unexplained: u32,
    /// Another cause, likely.
    pub(crate) wrong: u32,
    /// Another cause, proven: the worst.
    pub(crate) false_proven: u32,
    /// Expected incidents that never came.
    pub(crate) missing: u32,
    /// Requests that had to be known, and are.
    pub(crate) known: u32,
    /// Requests that had to be known and are null, with the reason why.
    pub(crate) lost: u32,
}

impl Score {
    /// True if more requests are null than a run can lose: a link is missing where the kernel skipped a program or another
    /// act came between, which is said and nothing wrong, and yet must stay rare.
    pub(crate) fn loses_requests(&self) -> bool {
        self.lost > 1 + (self.known + self.lost) / 20
    }

    pub(crate) fn add(&mut self, other: Self) {
        self.right += other.right;
        self.likely += other.likely;
        self.unexplained += other.unexplained;
        self.wrong += other.wrong;
        self.false_proven += other.false_proven;
        self.missing += other.missing;
        self.known += other.known;
        self.lost += other.lost;
    }
}

/// The incidents that count, without those of the causes in `allow`.
pub(crate) fn counted<'a>(expect: &Expect, incidents: &'a [Value]) -> Vec<&'a Value> {
    incidents.iter().filter(|i| !expect.allow.iter().any(|a| a == text(i, "/cause"))).collect()
}

/// Whether what nginx reads and writes is seen on this tier: the tracepoints behind every send and read are there since 6.6.
pub(crate) fn watched(tier: &str, kernel: (u32, u32)) -> bool {
    tier != "tracepoint" || kernel >= (6, 6)
}

/// Judges the incidents of one case on one tier; no failures means pass.
pub(crate) fn judge(
    expect: &Expect,
    tier: &str,
    incidents: &[Value],
    markers: &BTreeMap<String, Line>,
) -> (Vec<String>, Score) {
    let mut failures = Vec::new();
    let mut score = Score::default();
    for incident in incidents {
        let cause = text(incident, "/cause");
        if expect.never.iter().any(|never| matches(never, cause)) {
            failures.push(format!("said {cause}, which must not be said here"));
        }
    }
    let counted = counted(expect, incidents);
    let (min, max) = expect.incidents(tier);
    if counted.len() < min || counted.len() > max {
        let causes: Vec<&str> = counted.iter().map(|i| text(i, "/cause")).collect();
        failures.push(format!("{} incidents {causes:?}, expected {}", counted.len(), range(min, max)));
    }
    score.missing = u32::try_from(min.saturating_sub(counted.len())).unwrap_or(u32::MAX);
    for incident in &counted {
        verdict(expect, tier, incident, &mut failures, &mut score);
        address(expect, incident, &mut failures);
    }
    if !counted.is_empty() {
        let is_known = |incident: &Value| !text(incident, "/request/target").is_empty();
        if wanted(expect, tier) == RequestExpect::Known {
            let count = |known: bool| counted.iter().filter(|i| is_known(i) == known).count();
            score.known = u32::try_from(count(true)).unwrap_or(u32::MAX);
            score.lost = u32::try_from(count(false)).unwrap_or(u32::MAX);
        }
        let all_known = score.lost == 0;
        match expect.without_request.as_ref().filter(|_| !all_known) {
            Some(WithoutRequest { lines }) => {
                let unknown = counted.iter().filter(|incident| !is_known(incident));
                failures.extend(unknown.flat_map(|incident| {
                    only(lines, incident, markers).into_iter().chain(all(lines, incident, markers))
                }));
            }
            None => lines(expect, &counted, markers, &mut failures),
        }
        for (number, each) in (1..).zip(&expect.each).filter(|(_, each)| each.target.is_none()) {
            let Some(incident) = incident_of(each, number, &counted) else {
                failures.extend(each.address.iter().map(|address| format!("no incident of {address}")));
                continue;
            };
            failures
                .extend(one(each, incident, markers).into_iter().map(|f| format!("incident {number}: {f}")));
        }
        for each in &expect.each {
            let Some(target) = &each.target else { continue };
            let own: Vec<_> = counted.iter().filter(|i| text(i, "/request/target") == target).collect();
            if own.is_empty() && all_known {
                failures.push(format!("no incident of {target}"));
            }
            let found = own.into_iter().flat_map(|incident| one(each, incident, markers));
            failures.extend(found.map(|failure| format!("incident of {target}: {failure}")));
        }
        texts(expect, tier, &counted, &mut failures);
        failures.extend(rules::judge(expect, &counted));
    }
    (failures, score)
}

/// The incident that is meant: the one of an address, else the `number`th, from 1.
fn incident_of<'a>(each: &Each, number: usize, counted: &[&'a Value]) -> Option<&'a Value> {
    match &each.address {
        Some(wanted) => counted.iter().find(|i| text(i, "/upstream/address") == wanted).copied(),
        None => counted.get(number - 1).copied(),
    }
}

/// What is wrong with one incident among several.
fn one(each: &Each, incident: &Value, markers: &BTreeMap<String, Line>) -> Vec<String> {
    let mut found = only(&each.lines, incident, markers);
    found.extend(all(&each.lines, incident, markers));
    found.extend(kinds(&each.evidence_kinds, &each.never_kinds, &[incident]));
    found
}

fn verdict(expect: &Expect, tier: &str, incident: &Value, failures: &mut Vec<String>, score: &mut Score) {
    let cause = text(incident, "/cause");
    let Some(confidence) = confidence(text(incident, "/confidence")) else {
        failures.push(format!("confidence `{}` is none of ours", text(incident, "/confidence")));
        return;
    };
    let right = expect.cause.as_deref() == Some(cause);
    match (cause, right, confidence) {
        ("unexplained", false, _) | (_, true, Confidence::Unexplained) => score.unexplained += 1,
        (_, true, Confidence::Proven) => score.right += 1,
        (_, true, Confidence::Likely) => score.likely += 1,
        (_, false, Confidence::Proven) => score.false_proven += 1,
        (_, false, _) => score.wrong += 1,
    }
    let of_tier = expect.tier(tier);
    if right {
        let floor = expect.floor(tier);
        if confidence < floor {
            failures.push(format!(
                "{cause} is {confidence:?}, must be at least {floor:?} ({})",
                reasons(incident)
            ));
        }
        if let Some(most) = of_tier.and_then(|t| t.at_most).or(expect.at_most)
            && confidence > most
        {
            failures.push(format!("{cause} is {confidence:?}, the evidence allows {most:?} at most"));
        }
        return;
    }
    let mut tolerated = expect.cause_any.iter().chain(of_tier.iter().flat_map(|t| &t.cause_any));
    if confidence == Confidence::Proven {
        failures
            .push(format!("FALSE PROVEN: {cause}, is {}", expect.cause.as_deref().unwrap_or("no incident")));
    } else if !tolerated.any(|t| t == cause) {
        failures.push(format!(
            "wrong: {cause}, is {} ({})",
            expect.cause.as_deref().unwrap_or("no incident"),
            reasons(incident)
        ));
    }
}

/// What the verdict rests on, for the reader of a failure.
fn reasons(incident: &Value) -> String {
    let attempt = incident.get("attempt").map(ToString::to_string).unwrap_or_default();
    let evidence = entries(incident, "evidence", "/text").replace('\n', "; ");
    match text(incident, "/rival") {
        "" => format!("{evidence}; {attempt}"),
        rival => format!("rival: {rival}; {evidence}; {attempt}"),
    }
}

/// How much must be known of the requests.
pub(crate) fn wanted(expect: &Expect, tier: &str) -> RequestExpect {
    expect.tier(tier).and_then(|t| t.request).unwrap_or(expect.request)
}

fn address(expect: &Expect, incident: &Value, failures: &mut Vec<String>) {
    let address = text(incident, "/upstream/address");
    if !expect.addresses.is_empty() && !expect.addresses.iter().any(|a| a == address) {
        failures.push(format!("upstream.address is `{address}`, expected {:?}", expect.addresses));
    }
    let module = text(incident, "/upstream/module");
    if !expect.modules.is_empty() && !expect.modules.iter().any(|m| m == module) {
        failures.push(format!("upstream.module is `{module}`, expected {:?}", expect.modules));
    }
}

fn lines(expect: &Expect, counted: &[&Value], markers: &BTreeMap<String, Line>, failures: &mut Vec<String>) {
    for (marker, wanted) in
        expect.lines.iter().map(|m| (m, true)).chain(expect.not_lines.iter().map(|m| (m, false)))
    {
        let Some((file, line)) = markers.get(marker) else {
            failures.push(format!("the case has no line marked #@{marker}"));
            continue;
        };
        let named = counted.iter().any(|incident| names_line(incident, file, *line));
        if named != wanted {
            let what = if wanted { "not named" } else { "named and innocent" };
            failures.push(format!("config line {what}: {marker} = {}:{line}", file.display()));
        }
    }
    if expect.only_lines {
        failures.extend(counted.iter().flat_map(|incident| only(&expect.lines, incident, markers)));
    }
}

/// The lines that an incident names and that have none of these markers. A default has no line.
pub(crate) fn only(wanted: &[String], incident: &Value, markers: &BTreeMap<String, Line>) -> Vec<String> {
    let config = incident.get("config").and_then(Value::as_array);
    let of = |entry: &Value| Some((text(entry, "/file").into(), entry.get("line")?.as_u64()?));
    let lines = config.into_iter().flatten().filter_map(of);
    lines
        .filter(|line: &Line| !wanted.iter().any(|marker| markers.get(marker) == Some(line)))
        .map(|(file, line)| {
            format!("config line named and not among those in force: {}:{line}", file.display())
        })
        .collect()
}

/// The markers whose line the incident does not name.
pub(crate) fn all(wanted: &[String], incident: &Value, markers: &BTreeMap<String, Line>) -> Vec<String> {
    let named =
        |marker: &&String| markers.get(*marker).is_some_and(|(file, line)| names_line(incident, file, *line));
    let missing = wanted.iter().filter(|marker| !named(marker));
    missing.map(|marker| format!("config line not named: {marker} = {:?}", markers.get(marker))).collect()
}

/// Kinds of evidence that are missing, and those that must not be there.
pub(crate) fn kinds(wanted: &[String], never: &[String], incidents: &[&Value]) -> Vec<String> {
    let found: Vec<String> = incidents.iter().map(|i| entries(i, "evidence", "/kind")).collect();
    let has = |kind: &str| found.iter().any(|kinds| kinds.lines().any(|k| k == kind));
    let missing = wanted.iter().filter(|kind| !has(kind)).map(|kind| format!("no evidence of kind `{kind}`"));
    let wrong = never.iter().filter(|kind| has(kind)).map(|kind| format!("evidence of kind `{kind}`"));
    missing.chain(wrong).collect()
}

pub(crate) fn names_line(incident: &Value, file: &Path, line: u64) -> bool {
    let config = incident.get("config").and_then(Value::as_array);
    config.into_iter().flatten().any(|entry| {
        entry.get("line").and_then(Value::as_u64) == Some(line) && Path::new(text(entry, "/file")) == file
    })
}

fn texts(expect: &Expect, tier: &str, counted: &[&Value], failures: &mut Vec<String>) {
    let join = |of: fn(&Value) -> String| counted.iter().map(|i| of(i)).collect::<Vec<_>>().join("\n");
    let evidence = join(|i| entries(i, "evidence", "/text")).to_lowercase();
    let summary = join(|i| text(i, "/summary").to_owned()).to_lowercase();
    let fixes = join(|i| entries(i, "fix", "/text")).to_lowercase();
    for never in &expect.text_never {
        let needle = never.to_lowercase();
        if [&evidence, &summary, &fixes].iter().any(|t| t.contains(&needle)) {
            failures.push(format!("`{never}` must not be said"));
        }
    }
    failures.extend(kinds(&[], &expect.never_kinds, counted));
    if expect.tier(tier).is_some_and(|t| t.no_texts) {
        return;
    }
    let config = join(|i| entries(i, "config", "/text")).to_lowercase();
    let advice = |i: &Value, n: usize| {
        let list = i.get("fix").and_then(Value::as_array);
        let of = |fix: &Value| format!("{}\n{}", text(fix, "/text"), text(fix, "/command"));
        list.into_iter().flatten().take(n).map(of).collect::<Vec<_>>().join("\n")
    };
    let all = |n: usize| counted.iter().map(|i| advice(i, n)).collect::<Vec<_>>().join("\n").to_lowercase();
    let (first, any) = (all(1), all(usize::MAX));
    for (what, wanted, said) in [
        ("evidence", &expect.evidence_contains, &evidence),
        ("summary", &expect.summary_contains, &summary),
        ("configuration", &expect.config_contains, &config),
        ("first advice", &expect.first_fix_contains, &first),
        ("advice", &expect.fix_contains, &any),
    ] {
        for needle in wanted {
            if !said.contains(&needle.to_lowercase()) {
                failures.push(format!("the {what} does not say `{needle}`"));
            }
        }
    }
    failures.extend(kinds(&expect.evidence_kinds, &[], counted));
}

/// What must be on why502's stderr, in one line each, with the number of a process of the case.
pub(crate) fn warnings(expect: &Expect, tier: &str, stderr: &str, pids: &BTreeSet<u32>) -> Vec<String> {
    let names = |line: &str| {
        line.split(|c: char| !c.is_ascii_digit()).filter_map(|n| n.parse().ok()).any(|n| pids.contains(&n))
    };
    let count = |text: &str| stderr.lines().filter(|line| line.contains(text) && names(line)).count();
    let wanted = expect.warns.iter().filter(|_| tier != "tracepoint");
    wanted
        .map(|text| (text, count(text)))
        .filter(|(_, count)| *count != 1)
        .map(|(text, count)| format!("stderr says `{text}` of this case {count} times, expected once"))
        .collect()
}

fn entries(incident: &Value, list: &str, field: &str) -> String {
    let list = incident.get(list).and_then(Value::as_array);
    list.into_iter().flatten().map(|e| text(e, field)).collect::<Vec<_>>().join("\n")
}

/// A string field, empty when it is null or absent.
pub(crate) fn text<'a>(value: &'a Value, pointer: &str) -> &'a str {
    value.pointer(pointer).and_then(Value::as_str).unwrap_or("")
}

pub(crate) fn confidence(name: &str) -> Option<Confidence> {
    match name {
        "proven" => Some(Confidence::Proven),
        "likely" => Some(Confidence::Likely),
        "unexplained" => Some(Confidence::Unexplained),
        _ => None,
    }
}

pub(crate) fn matches(pattern: &str, cause: &str) -> bool {
    match pattern.strip_suffix('*') {
        Some(prefix) => cause.starts_with(prefix),
        None => pattern == cause,
    }
}

fn range(min: usize, max: usize) -> String {
    if min == max { min.to_string() } else { format!("{min} to {max}") }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use serde_json::json;

    pub(crate) fn expect(more: &str) -> Expect {
        let text = format!(
            "cause = 'fd-limit'\ncause_any = ['bind-failed']\nnever = ['connect-timeout-*']\n\
             confidence = {{ full = 'proven', kprobe = 'proven', tracepoint = 'likely' }}\n{more}"
        );
        toml::from_str(&text).unwrap()
    }

    pub(crate) fn said(cause: &str, confidence: &str) -> Value {
        json!({"cause": cause, "confidence": confidence, "summary": "EMFILE at 7",
               "upstream": {"address": "127.0.0.1:3000"},
               "config": [{"file": "/x/nginx.conf", "line": 4}],
               "evidence": [{"kind": "errno", "text": "socket() said EMFILE"}], "fix": []})
    }

    #[track_caller]
    fn check(more: &str, tier: &str, incidents: &[Value], says: &[&str]) -> Score {
        let markers =
            [("server".to_owned(), ("/x/nginx.conf".into(), 4)), ("no".to_owned(), ("/x/y".into(), 4))];
        let (failures, score) = judge(&expect(more), tier, incidents, &markers.into());
        assert_eq!(failures.len(), says.len(), "{failures:?}");
        for (failure, says) in failures.iter().zip(says) {
            assert!(failure.contains(says), "{failure} / {says}");
        }
        score
    }

    #[test]
    fn warnings_are_of_the_case_and_given_once() {
        let text = "about = 'x'\n[nginx]\n[expect]\nnone = true\nwarns = ['would deny']";
        let expect = crate::case::parse(text).unwrap().expect;
        let check = |stderr: &str| warnings(&expect, "full", stderr, &[12, 13].into()).len();
        assert_eq!(check("SELinux would deny worker 13 a"), 0);
        assert_eq!(check("SELinux would deny worker 1 a"), 1);
        assert_eq!(check("would deny worker 13 a\nwould deny worker 12 a"), 1);
        assert!(warnings(&expect, "tracepoint", "", &[12].into()).is_empty());
    }

    #[test]
    fn right_and_wrong() {
        let right = check("", "full", &[said("fd-limit", "proven")], &[]);
        assert_eq!(right, Score { right: 1, ..Score::default() });
        check("", "full", &[said("fd-limit", "likely")], &["at least Proven"]);
        check("", "tracepoint", &[said("fd-limit", "likely")], &[]);
        check("at_most = 'likely'", "tracepoint", &[said("fd-limit", "proven")], &["at most"]);
        check("", "full", &[said("bind-failed", "likely")], &[]);
        let worst = check("", "tracepoint", &[said("bind-failed", "proven")], &["FALSE PROVEN"]);
        assert_eq!(worst.false_proven, 1);
        check("", "full", &[said("no-resolver", "likely")], &["wrong"]);
        check(
            "tracepoint = { cause_any = ['no-resolver'] }",
            "tracepoint",
            &[said("no-resolver", "likely")],
            &[],
        );
    }

    #[test]
    fn incidents_are_found_by_their_address() {
        let mut other = said("fd-limit", "proven");
        other["upstream"]["address"] = json!("127.0.0.1:3001");
        other["config"] = json!([{"file": "/x/y", "line": 4, "text": "x 60s (default of nginx 1.30.6)"}]);
        let both = [other, said("fd-limit", "proven")];
        let more = "incidents = 2\nconfig_contains = ['default of nginx 1.30']\n\
                    each = [{ address = '127.0.0.1:3000', lines = ['server'] }, \
                    { address = '127.0.0.1:3001', lines = ['no'] }]";
        check(more, "full", &both, &[]);
        check(&more.replace(":3000", ":1"), "full", &both, &["no incident of 127.0.0.1:1"]);
        check(&more.replace("1.30", "1.22"), "full", &both, &["the configuration does not say"]);
    }

    #[test]
    fn requests_that_are_not_named() {
        assert!(watched("full", (5, 10)) && watched("tracepoint", (6, 6)) && !watched("tracepoint", (6, 1)));
        let more = "request = 'known'\nlines = ['no']\nwithout_request = { lines = ['server'] }\n\
                    [[each]]\ntarget = '/a'\nlines = ['no']";
        let incidents = [said("fd-limit", "proven")];
        let markers = BTreeMap::from([
            ("server".to_owned(), ("/x/nginx.conf".into(), 4)),
            ("no".to_owned(), ("/x/y".into(), 4)),
        ]);
        let of = || judge(&expect(more), "tracepoint", &incidents, &markers).0;
        // One that is not known is judged by its address; how many those are is limited.
        assert!(of().is_empty(), "{:?}", of());
        let score = |incidents: &[Value]| judge(&expect(more), "full", incidents, &markers).1;
        assert_eq!((score(&incidents).known, score(&incidents).lost), (0, 1));
        let mut known = said("fd-limit", "proven");
        known["request"] = json!({"target": "/a"});
        assert_eq!((score(&[known.clone()]).known, score(&[known.clone()]).lost), (1, 0));
        assert_eq!(judge(&expect(more), "full", &[known], &markers).0.len(), 3);
        let of = |known, lost| Score { known, lost, ..Score::default() }.loses_requests();
        assert!(!of(0, 1) && of(0, 2) && !of(38, 2) && !of(95, 5) && of(95, 7));
    }

    #[test]
    fn numbers() {
        assert_eq!(check("", "full", &[], &["0 incidents"]).missing, 1);
        check("", "full", &[said("fd-limit", "proven"), said("fd-limit", "proven")], &["2 incidents"]);
        let extra = said("no-live-upstreams", "proven");
        check("allow = ['no-live-upstreams']", "full", &[said("fd-limit", "proven"), extra], &[]);
        check("", "full", &[said("connect-timeout-no-answer", "likely")], &["must not be said", "wrong"]);
    }

    #[test]
    fn texts_and_lines() {
        let one = [said("fd-limit", "proven")];
        check(
            "lines = ['server']\nevidence_contains = ['emfile']\nevidence_kinds = ['errno']",
            "full",
            &one,
            &[],
        );
        check("lines = ['no']", "full", &one, &["not named"]);
        check("not_lines = ['server']", "full", &one, &["innocent"]);
        check("lines = ['absent']", "full", &one, &["#@absent"]);
        check("lines = ['server']\nonly_lines = true", "full", &one, &[]);
        check("only_lines = true", "full", &one, &["not among those in force: /x/nginx.conf:4"]);
        check("never_kinds = ['rst']", "full", &one, &[]);
        check("never_kinds = ['errno']", "full", &one, &["evidence of kind `errno`"]);
        check("summary_contains = ['x']", "full", &one, &["summary does not say"]);
        check("summary_contains = ['x']\nfull = { no_texts = true }", "full", &one, &[]);
        check("text_never = ['said emfile']", "full", &one, &["must not be said"]);
        check("first_fix_contains = ['x']", "full", &one, &["the first advice does not say `x`"]);
        check("fix_contains = ['x']", "full", &one, &["the advice does not say `x`"]);
        check("addresses = ['[::1]:3000']", "full", &one, &["upstream.address"]);
        check("modules = ['grpc']", "full", &one, &["upstream.module"]);
    }

    #[test]
    fn each_incident_by_itself() {
        let mut second = said("fd-limit", "proven");
        second["config"][0]["file"] = json!("/x/y");
        let both = [said("fd-limit", "proven"), second];
        let each = |lines: [&str; 2], more: &str| {
            let entry = |line| format!("[[each]]\nlines = ['{line}']\n{more}\n");
            format!("incidents = 2\n{}{}", entry(lines[0]), entry(lines[1]))
        };
        check(&each(["server", "no"], "evidence_kinds = ['errno']"), "full", &both, &[]);
        check(
            &each(["server", "no"], "never_kinds = ['errno']"),
            "full",
            &both,
            &["incident 1", "incident 2"],
        );
        let swapped = ["incident 1: config line named", "incident 1: config line not named", "2: ", "2: "];
        check(&each(["no", "server"], ""), "full", &both, &swapped);
    }
}
