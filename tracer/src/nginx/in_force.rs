//! The directives that matter once a connection stands, as they hold for the passes of a candidate.

use std::borrow::Cow;

use super::{
    lookup::Candidate,
    model::{ConfigLine, Model, Module, Pass, Role},
    settings::Effective,
    value,
};

/// Directives of a pass, by their names behind the module's prefix. A module has only some of them.
const OF_PASS: &[&str] = &[
    "connect_timeout",
    "send_timeout",
    "read_timeout",
    "timeout",
    "next_upstream",
    "next_upstream_tries",
    "buffer_size",
    "buffers",
    "buffering",
    "request_buffering",
    "ignore_client_abort",
    "intercept_errors",
    "http_version",
    "catch_stderr",
    "keep_conn",
    "half_close",
    "ssl",
    "ssl_verify",
    "ssl_verify_depth",
    "ssl_server_name",
    "ssl_name",
    "ssl_protocols",
    "ssl_ciphers",
    "ssl_certificate",
    "ssl_trusted_certificate",
];

/// Directives of an `upstream`.
const OF_UPSTREAM: &[&str] = &["keepalive", "keepalive_requests", "keepalive_timeout", "keepalive_time"];

/// A directive that holds for a pass, or for the `upstream` that it uses.
#[derive(Debug, Clone, PartialEq, Eq, Hash, serde::Serialize, serde::Deserialize)]
pub struct InForce {
    key: Cow<'static, str>,
    /// The full name, such as `proxy_buffer_size`.
    pub name: String,
    /// Its value; `None` where it has none, or where that depends on a version that is not known.
    pub value: Option<String>,
    /// The directive as written, or such as `proxy_buffer_size 4k (default of nginx 1.22.1)`.
    pub text: String,
    /// Where it is set; `None` for the default.
    pub line: Option<ConfigLine>,
}

impl InForce {
    /// The value as a time, milliseconds.
    #[must_use]
    pub fn milliseconds(&self) -> Option<u64> {
        value::milliseconds(self.value.as_deref()?)
    }

    /// The value as a size, bytes.
    #[must_use]
    pub fn bytes(&self) -> Option<u64> {
        value::bytes(self.value.as_deref()?)
    }

    /// True for `on`.
    #[must_use]
    pub fn is_on(&self) -> bool {
        self.value.as_deref() == Some("on")
    }

    /// True if the word is one of its arguments.
    #[must_use]
    pub fn has(&self, word: &str) -> bool {
        self.value.as_deref().is_some_and(|value| value.split_ascii_whitespace().any(|w| w == word))
    }
}

/// What holds for a candidate whose connection stood. Empty for others: nothing asks for it there.
#[derive(Debug, Clone, PartialEq, Eq, Default, serde::Serialize, serde::Deserialize)]
pub struct InForces {
    list: Vec<InForce>,
    /// Whether its passes speak TLS; `None` where they differ, or a variable decides.
    pub tls: Option<bool>,
    /// Whether one of them has a cache.
    pub cached: bool,
}

impl InForces {
    /// Every value of a directive, by its name behind the module's prefix (`read_timeout`), or of the `upstream`
    /// (`keepalive_timeout`); several if the passes differ.
    pub fn all<'a>(&'a self, key: &'a str) -> impl Iterator<Item = &'a InForce> {
        self.list.iter().filter(move |one| one.key == key)
    }

    /// The value that all passes have in common, wherever they have it from; `None` if they differ, or have none.
    #[must_use]
    pub fn get(&self, key: &str) -> Option<&InForce> {
        let mut all = self.list.iter().filter(|one| one.key == key);
        let first = all.next()?;
        all.all(|other| other.value == first.value).then_some(first)
    }

    /// With one directive more, for tests of what is told of it.
    #[cfg(test)]
    #[must_use]
    pub(crate) fn with(
        mut self,
        key: &'static str,
        name: &str,
        value: &str,
        line: Option<ConfigLine>,
    ) -> Self {
        let text = match &line {
            Some(line) => line.text.clone(),
            None => format!("{name} {value} (default)"),
        };
        self.list.push(InForce {
            key: key.into(),
            name: name.to_owned(),
            value: Some(value.to_owned()),
            text,
            line,
        });
        self
    }

    fn add(&mut self, one: InForce) {
        if !self.list.contains(&one) {
            self.list.push(one);
        }
    }
}

impl Model {
    /// Adds to candidates what holds for their passes once a connection stands.
    pub fn add_settings(&self, candidates: &mut [Candidate]) {
        for candidate in candidates {
            candidate.settings = self.in_force(&candidate.passes, candidate.upstream_server);
        }
    }

    pub(super) fn in_force(&self, passes: &[usize], upstream_server: Option<(usize, usize)>) -> InForces {
        let mut found = InForces::default();
        let mut tls: Vec<Option<bool>> = Vec::new();
        for pass in passes.iter().filter_map(|index| self.passes.get(*index)) {
            for key in OF_PASS {
                if let Some(effective) = self.effective_of(pass, key) {
                    found.add(self.told(key, effective));
                }
            }
            tls.push(self.speaks_tls(pass));
            found.cached |= self.is_cached(pass);
        }
        let (first, rest) = tls.split_first().map_or((None, [].as_slice()), |(first, rest)| (*first, rest));
        found.tls = first.filter(|first| rest.iter().all(|other| *other == Some(*first)));
        if let Some(upstream) = upstream_server.and_then(|(index, _)| self.upstreams.get(index)) {
            for (directive, effective) in self.effective_in(upstream) {
                if let Some(key) = OF_UPSTREAM.iter().find(|key| **key == directive.name) {
                    found.add(self.told(key, effective));
                }
            }
        }
        found
    }

    fn speaks_tls(&self, pass: &Pass) -> Option<bool> {
        match pass.module {
            Module::Stream => match self.effective_of(pass, "ssl")?.value.as_deref() {
                Some("on") => Some(true),
                Some("off") => Some(false),
                Some(_) | None => None,
            },
            Module::Proxy | Module::Uwsgi | Module::Grpc => pass.tls,
            Module::Fastcgi | Module::Scgi | Module::Memcached => Some(false),
        }
    }

    fn told(&self, key: &'static str, effective: Effective) -> InForce {
        let line = effective.node().map(|node| self.line(Role::Directive, node));
        let name = &effective.name;
        let text = match (&line, &effective.value, &effective.origin) {
            (Some(line), ..) => line.text.clone(),
            (None, Some(value), Some(origin)) => format!("{name} {value} ({origin})"),
            // A default that the version decides, which is not known.
            (None, None, Some(origin)) if origin.starts_with("default: ") => format!("{name} ({origin})"),
            (None, None, Some(_)) => format!("{name} (not set)"),
            (None, _, None) => name.clone(),
        };
        InForce { key: key.into(), name: effective.name, value: effective.value, text, line }
    }
}
