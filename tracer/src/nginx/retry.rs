//! Whether nginx goes on to another server of a group when one fails (`ngx_http_upstream_next`, `ngx_stream_proxy_next_upstream`).

use super::{
    model::{ConfigLine, Model, Module, Pass, Role},
    settings::{Effective, Setting},
};

/// The lines that keep nginx from another server. Empty: none does.
#[derive(Debug, Clone, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Barred {
    /// Whether the group has another server, or another address.
    pub others: bool,
    /// After a connection that failed with an error.
    pub error: Vec<ConfigLine>,
    /// After one that timed out.
    pub timeout: Vec<ConfigLine>,
}

impl Barred {
    /// Whether it says nothing.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}

impl Model {
    /// What keeps a pass from another server once `failing` of them have failed a request. The defaults keep it from none.
    #[must_use]
    pub fn barred(&self, pass: &Pass, failing: u64) -> Barred {
        let next = self.effective(pass, Setting::NextUpstream);
        let tries = self.effective(pass, Setting::NextUpstreamTries);
        let line = |effective: &Effective| effective.node().map(|node| self.line(Role::Directive, node));
        let has = |word: &str| {
            let words = next.value.as_deref().unwrap_or_default();
            words.split_ascii_whitespace().any(|one| one == word)
        };
        let limit = tries.value.as_deref().and_then(|tries| tries.parse::<u64>().ok()).unwrap_or(0);
        let too_few = line(&tries).filter(|_| limit > 0 && limit <= failing);
        let after = |word: &str| {
            let is_off = has("off") || pass.module != Module::Stream && !has(word);
            line(&next).filter(|_| is_off).into_iter().chain(too_few.clone()).collect()
        };
        Barred { others: false, error: after("error"), timeout: after("timeout") }
    }

    /// The same for several passes of a group with more than one server: lines only if each pass is kept from the next.
    pub(super) fn all_barred(&self, passes: &[usize]) -> Barred {
        let each: Vec<Barred> = passes
            .iter()
            .filter_map(|index| self.passes.get(*index))
            .map(|pass| self.barred(pass, 1))
            .collect();
        let union = |of: fn(&Barred) -> &Vec<ConfigLine>| {
            let mut lines: Vec<ConfigLine> = Vec::new();
            if each.iter().all(|one| !of(one).is_empty()) {
                for line in each.iter().flat_map(of) {
                    if !lines.contains(line) {
                        lines.push(line.clone());
                    }
                }
            }
            lines
        };
        Barred { others: true, error: union(|one| &one.error), timeout: union(|one| &one.timeout) }
    }
}

#[cfg(test)]
mod tests {
    use super::{super::tests::read, *};

    fn barred(http: &str, failing: u64) -> (usize, usize) {
        let model = Model::new(read(http).unwrap());
        let barred = model.barred(&model.passes[0], failing);
        (barred.error.len(), barred.timeout.len())
    }

    #[test]
    fn what_keeps_a_request_from_the_next_server() {
        let at = |lines: &str| {
            format!("http {{ server {{ location / {{ {lines} proxy_pass http://a.test; }} }} }}")
        };
        for (lines, failing, expected) in [
            ("", 1, (0, 0)),
            ("proxy_next_upstream off;", 1, (1, 1)),
            ("proxy_next_upstream error;", 1, (0, 1)),
            ("proxy_next_upstream http_503 timeout;", 1, (1, 0)),
            ("proxy_next_upstream error timeout http_502;", 1, (0, 0)),
            ("proxy_next_upstream_tries 1;", 1, (1, 1)),
            ("proxy_next_upstream_tries 2;", 1, (0, 0)),
            ("proxy_next_upstream_tries 2;", 2, (1, 1)),
            ("proxy_next_upstream_tries 0;", 9, (0, 0)),
            ("proxy_next_upstream off; proxy_next_upstream_tries 1;", 1, (2, 2)),
            ("fastcgi_next_upstream off;", 1, (0, 0)),
        ] {
            assert_eq!(barred(&at(lines), failing), expected, "{lines}");
        }
        let stream =
            |lines: &str| format!("stream {{ server {{ listen 1; {lines} proxy_pass a.test:1; }} }}");
        for (lines, expected) in
            [("", (0, 0)), ("proxy_next_upstream off;", (1, 1)), ("proxy_next_upstream on;", (0, 0))]
        {
            assert_eq!(barred(&stream(lines), 1), expected, "{lines}");
        }
    }
}
