//! What is said of the requests, against those of the case. Pure.

use crate::case::Request;
use crate::client::HOST;
use crate::expect::{Expect, RequestExpect};
use crate::judge::{all, counted, kinds, only, text, wanted};
use crate::nginx::Line;
use serde_json::Value;
use std::collections::BTreeMap;

/// What is wrong with what is said of the requests.
pub(crate) fn judge(
    expect: &Expect,
    tier: &str,
    told: bool,
    sent: &[Request],
    incidents: &[Value],
    markers: &BTreeMap<String, Line>,
) -> Vec<String> {
    let told = expect.uprobes.as_ref().filter(|_| told);
    let wanted = told.map_or_else(|| wanted(expect, tier), |told| told.request);
    let mut failures = Vec::new();
    for incident in counted(expect, incidents) {
        if let Some(wanted) = told.and_then(|told| told.lines.as_ref()) {
            failures.extend(all(wanted, incident, markers));
            failures.extend(only(wanted, incident, markers));
        }
        let target = text(incident, "/request/target");
        let client = text(incident, "/request/client");
        let fits = match wanted {
            RequestExpect::Any => true,
            // One whose link is missing is counted; it says so.
            RequestExpect::Known => !target.is_empty() || !text(incident, "/request/note").is_empty(),
            RequestExpect::Client => target.is_empty() && !client.is_empty(),
            RequestExpect::Unknown => target.is_empty() && client.is_empty(),
        };
        if !fits {
            let said = incident.get("request").map(Value::to_string).unwrap_or_default();
            failures.push(format!("the request must be {wanted:?}: {said}"));
        }
        if target.is_empty() {
            continue;
        }
        let saw = incident.pointer("/attempt/client_saw").and_then(Value::as_u64);
        // nginx names a request whose answer nobody may have seen: its status is null, and the note says so.
        let of_nginx = kinds(&["nginx-said".to_owned()], &[], &[incident]).is_empty();
        let unseen = of_nginx && saw.is_none() && !text(incident, "/request/note").is_empty();
        let by_step = text(incident, "/request/method") == "GET"
            && text(incident, "/request/host") == HOST
            && told.is_some_and(|told| told.sent.iter().any(|t| t == target));
        let is_it = |request: &Request| {
            request.method == text(incident, "/request/method")
                && (1..=request.count).any(|number| request.target(number) == target)
                && text(incident, "/request/host") == HOST
                && (unseen || request.expect_status.is_none() || request.expect_status.map(u64::from) == saw)
                && (request.abort.is_none() || request.abort_after.is_some() || saw.is_none())
        };
        if !(by_step || sent.iter().any(is_it)) || client.is_empty() {
            let said = incident.get("request").map(Value::to_string).unwrap_or_default();
            failures.push(format!("WRONG REQUEST: {said}, client_saw {saw:?}"));
        }
    }
    failures.extend(numbers(told.map_or(&[], |told| &told.sent), incidents));
    failures
}

/// A request that was sent once has one number, in whatever incidents it is.
fn numbers(sent: &[String], incidents: &[Value]) -> Vec<String> {
    let of = |target: &str| {
        let mut all: Vec<u64> = incidents
            .iter()
            .filter(|incident| text(incident, "/request/target") == target)
            .filter_map(|incident| incident.pointer("/request/id")?.as_u64())
            .collect();
        all.dedup();
        (all.len() > 1).then(|| format!("{target} is one request, and has the numbers {all:?}"))
    };
    sent.iter().filter_map(|target| of(target)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::judge::tests::{expect, said};
    use serde_json::json;

    #[test]
    fn requests_are_their_own() {
        let sent: Vec<Request> = vec![
            toml::from_str("path = '/a'\nexpect_status = 502").unwrap(),
            toml::from_str("path = '/b{n}'\ncount = 2").unwrap(),
        ];
        let of = |more: &str, target: &str, saw: u16| {
            let mut said = said("fd-limit", "proven");
            said["request"] =
                json!({"method": "GET", "target": target, "host": HOST, "client": "127.0.0.1:1"});
            said["attempt"] = json!({"client_saw": saw});
            judge(&expect(more), "full", false, &sent, &[said], &BTreeMap::new())
        };
        assert!(of("", "/a", 502).is_empty() && of("request = 'known'", "/b2", 200).is_empty());
        for (more, target, saw) in
            [("", "/a", 200), ("", "/c", 502), ("", "/b3", 502), ("request = 'client'", "/a", 502)]
        {
            assert_eq!(of(more, target, saw).len(), 1, "{more} {target} {saw}");
        }
        let known = expect("request = 'known'");
        let said = [said("fd-limit", "proven")];
        let nothing = judge(&known, "full", false, &sent, &said, &BTreeMap::new());
        assert!(nothing[0].contains("must be Known"), "{nothing:?}");
    }

    #[test]
    fn a_request_has_one_number() {
        let of = |ids: [u64; 2]| {
            let incidents = ids.map(|id| json!({"request": {"target": "/a", "id": id}}));
            numbers(&["/a".to_owned()], &incidents).len()
        };
        assert_eq!((of([3, 3]), of([3, 4])), (0, 1));
    }
}
