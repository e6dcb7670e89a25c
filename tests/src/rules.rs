//! Whether the firewall rule that an incident names is the right one.

use crate::expect::Expect;
use crate::judge::text;
use serde_json::Value;

/// True if the text says that it is the only rule that fits, or that the kernel named it.
fn alone(rule: &str) -> bool {
    rule.ends_with("the only one that fits") || rule.contains("the kernel named it itself")
}

/// What is wrong with the rules that the incidents name.
pub(crate) fn judge(expect: &Expect, counted: &[&Value]) -> Vec<String> {
    let own: Vec<&&Value> =
        counted.iter().filter(|i| expect.cause.as_deref() == Some(text(i, "/cause"))).collect();
    let named: Vec<Vec<&str>> = own.iter().map(|incident| rules(incident)).collect();
    let all = || named.iter().flatten();
    let mut failures = Vec::new();
    for wanted in &expect.rule {
        if !all().any(|rule| rule.contains(wanted.as_str())) {
            failures.push(format!("no rule is named with `{wanted}`: {named:?}"));
        }
    }
    for never in &expect.rule_never {
        failures.extend(
            all()
                .filter(|rule| rule.contains(never.as_str()))
                .map(|rule| format!("WRONG RULE: `{never}` in {rule}")),
        );
    }
    if let Some(wanted) = expect.rule_only {
        for rules in named.iter().filter(|rules| rules.iter().any(|rule| alone(rule)) != wanted) {
            failures
                .push(format!("one rule alone must {}be named: {rules:?}", if wanted { "" } else { "not " }));
        }
    }
    failures
}

fn rules(incident: &Value) -> Vec<&str> {
    let evidence = incident.get("evidence").and_then(Value::as_array);
    evidence.into_iter().flatten().filter(|e| text(e, "/kind") == "rule").map(|e| text(e, "/text")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn said(rules: &[&str]) -> Value {
        let rules: Vec<Value> = rules.iter().map(|r| json!({"kind": "rule", "text": r})).collect();
        json!({"cause": "fd-limit", "evidence": rules, "fix": [{"text": "x", "command": "nft insert"}]})
    }

    #[track_caller]
    fn check(more: &str, rules: &[&str], says: &[&str]) {
        let text = format!(
            "cause = 'fd-limit'\nconfidence = {{ full = 'proven', kprobe = 'proven', tracepoint = 'likely' }}\n{more}"
        );
        let failures = judge(&toml::from_str(&text).unwrap(), &[&said(rules)]);
        assert_eq!(failures.len(), says.len(), "{failures:?}");
        for (failure, says) in failures.iter().zip(says) {
            assert!(failure.contains(says), "{failure}");
        }
    }

    #[test]
    fn rules_are_judged() {
        let alone = "rule (handle 7) of inet f o: drop, the only one that fits";
        check("rule = ['handle 7']\nrule_only = true", &[alone], &[]);
        check("rule_only = false", &[alone], &["must not be named"]);
        check("rule_only = false", &[&format!("{alone} now; but")], &[]);
        check("rule_only = true", &["one of 2 that fit: a", "one of 2 that fit: b"], &["must be named"]);
        check("rule = ['handle 8']\nrule_never = ['handle 7']", &[alone], &["no rule", "WRONG RULE"]);
        check("rule_only = true", &[], &["must be named"]);
    }
}
