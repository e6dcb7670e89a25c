//! Statuses that nginx makes itself and that look like an upstream's failure, or hide one.

use super::{
    super::{Finding, Place},
    view,
};
use crate::nginx::{Model, tree::NodeId};

/// The passes whose requests a block's own directives concern.
fn has_pass(model: &Model, block: NodeId) -> Option<NodeId> {
    let inside = |node: NodeId| view::around(model, node).any(|around| around == block);
    model.passes.iter().map(|pass| pass.node).find(|node| inside(*node))
}

/// Limits that answer as a broken upstream does.
pub(super) fn limit_status(model: &Model) -> Vec<Finding> {
    let mut found = Vec::new();
    for name in ["limit_req_status", "limit_conn_status"] {
        for node in view::all(model, name) {
            let status = model.config().arg(node, 0).unwrap_or_default();
            if status != "502" && status != "504" {
                continue;
            }
            found.push(
                Finding::warning("limit-looks-like-failure", format!("{name} {status}: a client over its limit gets what a broken upstream gets"))
                    .breaks("Nobody can tell a limited client from a failed upstream: monitors raise alarms, clients retry at once.")
                    .at(Place::of(model, "directive", node))
                    .fix(format!("write {name} 429")),
            );
        }
    }
    found
}

/// A request rate without any burst refuses what comes together.
pub(super) fn limit_without_burst(model: &Model) -> Vec<Finding> {
    let mut found = Vec::new();
    for node in view::all(model, "limit_req") {
        let config = model.config();
        let words: Vec<String> = (0..).map_while(|index| config.arg(node, index)).collect();
        let Some(block) = config.parent(node) else { continue };
        if words.iter().any(|word| word.starts_with("burst=")) || has_pass(model, block).is_none() {
            continue;
        }
        let first = |name: &str| {
            view::inherited(model, Some(block), name).first().and_then(|node| config.arg(*node, 0))
        };
        let status = first("limit_req_status").unwrap_or_else(|| "503".to_owned());
        // 429 says what it is.
        if !status.starts_with('5') || first("limit_req_dry_run").as_deref() == Some("on") {
            continue;
        }
        // A login page is limited like that on purpose.
        let zone = words.iter().find_map(|word| word.strip_prefix("zone="));
        let rate = zone.and_then(|zone| rate_of(model, zone));
        if rate.as_deref().is_some_and(|rate| rate.ends_with("r/m")) {
            continue;
        }
        found.push(
            Finding::warning(
                "limit-without-burst",
                format!("\"limit_req\" without burst answers {status} to requests that come together"),
            )
            .likely("clients that never send two requests at once")
            .breaks(format!(
                "At {} a browser that asks for a page and its pictures is over the limit with its second request; the {status} \
                 looks like a failed upstream.",
                rate.unwrap_or_else(|| "this rate".to_owned())
            ))
            .at(Place::of(model, "directive", node))
            .fix("add burst=20 nodelay (as many as one page needs)")
            .fix("and limit_req_status 429, so that limits are not taken for failures"),
        );
    }
    found
}

fn rate_of(model: &Model, zone: &str) -> Option<String> {
    view::all(model, "limit_req_zone").find_map(|node| {
        let words: Vec<String> = (0..).map_while(|index| model.config().arg(node, index)).collect();
        let own = words.iter().find_map(|word| word.strip_prefix("zone="))?;
        let own = own.split(':').next()?;
        (own == zone).then(|| words.iter().find_map(|word| word.strip_prefix("rate=")).map(str::to_owned))?
    })
}

/// A failure that is told to the client as success.
pub(super) fn hidden_failure(model: &Model) -> Vec<Finding> {
    let mut found = Vec::new();
    for node in view::all(model, "error_page") {
        let words: Vec<String> = (0..).map_while(|index| model.config().arg(node, index)).collect();
        let hides = words.iter().find(|word| {
            word.strip_prefix('=')
                .and_then(|code| code.parse::<u16>().ok())
                .is_some_and(|code| (200..300).contains(&code))
        });
        let failures: Vec<&str> = words
            .iter()
            .map(String::as_str)
            .filter(|word| matches!(*word, "500" | "502" | "503" | "504"))
            .collect();
        let (Some(hides), Some(_)) = (hides, failures.first()) else { continue };
        let to = words.last().map(String::as_str).unwrap_or_default();
        // What another location computes is an answer of its own.
        if to.starts_with('@') {
            continue;
        }
        found.push(
            Finding::warning(
                "failure-told-as-success",
                format!("error_page {}: clients are told {hides} when upstream servers fail", failures.join(" ")),
            )
            .breaks("Monitors, caches and clients take the error page for the answer: the failure goes unnoticed, or is cached.")
            .at(Place::of(model, "directive", node))
            .fix(format!("drop {hides}: error_page {} {to};", failures.join(" "))),
        );
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::check::config::testing::{clean, one};

    fn at(outer: &str, inner: &str) -> String {
        format!("http {{ {outer} server {{ location / {{ {inner} proxy_pass http://127.0.0.1:1; }} }} }}")
    }

    #[test]
    fn limits_say_what_they_are() {
        one(limit_status, &at("limit_req_status 502;", ""));
        one(limit_status, &at("", "limit_conn_status 504;"));
        clean(limit_status, &at("limit_req_status 429; limit_conn_status 503;", ""));
    }

    #[test]
    fn bursts() {
        let zone = "limit_req_zone $binary_remote_addr zone=one:10m rate=10r/s;";
        let found = one(limit_without_burst, &at(zone, "limit_req zone=one;"));
        assert!(found.breaks.contains("10r/s"), "{found:?}");
        one(limit_without_burst, &at(&format!("{zone} limit_req zone=one;"), ""));
        clean(limit_without_burst, &at(zone, "limit_req zone=one burst=20;"));
        clean(limit_without_burst, &at(&format!("{zone} limit_req_status 429;"), "limit_req zone=one;"));
        clean(limit_without_burst, &at(zone, "limit_req zone=one; limit_req_dry_run on;"));
        clean(
            limit_without_burst,
            &at("limit_req_zone $binary_remote_addr zone=login:10m rate=5r/m;", "limit_req zone=login;"),
        );
        clean(
            limit_without_burst,
            &format!("http {{ {zone} server {{ location /d/ {{ limit_req zone=one; }} }} }}"),
        );
    }

    #[test]
    fn failures_stay_failures() {
        let found = one(hidden_failure, &at("error_page 502 504 =200 /sorry.html;", ""));
        assert_eq!(found.fix[0].text, "drop =200: error_page 502 504 /sorry.html;");
        for line in [
            "error_page 502 504 /sorry.html;",
            "error_page 404 =200 /index.html;",
            "error_page 502 =200 @fallback;",
            "error_page 502 =503 /sorry.html;",
            "error_page 502 = @fallback;",
        ] {
            clean(hidden_failure, &at(line, ""));
        }
    }
}
