//! What a case expects of why502: the `[expect]` part of `case.toml`.

use serde::Deserialize;
use std::collections::BTreeSet;

/// The three sets of hooks, see design.md.
pub(crate) const TIERS: [&str; 3] = ["full", "kprobe", "tracepoint"];

/// Every stable cause name: a typing error in a case must not become a case that cannot fail.
pub(crate) const CAUSES: [&str; 45] = [
    "connect-refused-no-listener",
    "connect-refused-by-peer",
    "connect-refused-by-firewall",
    "connect-timeout-firewall-drop",
    "connect-timeout-no-answer",
    "connect-timeout-backlog-full",
    "connect-timeout-conntrack-full",
    "host-unreachable",
    "network-unreachable",
    "local-port-exhausted",
    "bind-failed",
    "fd-limit",
    "blocked-selinux",
    "blocked-apparmor",
    "blocked-bpf-lsm",
    "blocked-cgroup-bpf",
    "blocked-seccomp",
    "blocked-landlock",
    "unix-missing",
    "unix-permission",
    "unix-no-listener",
    "unix-backlog-full",
    "unix-not-a-socket",
    "resolver-failed",
    "no-resolver",
    "upstream-closed-early",
    "upstream-reset",
    "upstream-died",
    "keepalive-race",
    "read-timeout",
    "send-timeout",
    "header-too-big",
    "invalid-response",
    "response-truncated",
    "tls-to-plain-port",
    "plain-to-tls-port",
    "tls-handshake-failed",
    "tls-handshake-timeout",
    "tls-certificate-rejected",
    "no-live-upstreams",
    "upstream-returned-5xx",
    "client-aborted",
    "unexplained",
    // Groups, for `never`: every cause that begins so.
    "connect-timeout-*",
    "connect-refused-*",
];

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Confidence {
    Unexplained,
    Likely,
    Proven,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Floors {
    pub(crate) full: Confidence,
    pub(crate) kprobe: Confidence,
    pub(crate) tracepoint: Confidence,
}

/// How much must be known of the request that failed, where the kernel's hooks allow it (see `watched` in
/// `judge.rs`). Whatever is said of it must be true in any case.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum RequestExpect {
    /// Nothing.
    #[default]
    Any,
    /// Method, target, host, client and status.
    Known,
    /// The client alone: the rest cannot be known.
    Client,
    /// Nothing can be known.
    Unknown,
}

/// What why502 must and must not say. Either `cause` or `none = true`.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Expect {
    pub(crate) cause: Option<String>,
    /// No incident at all.
    #[serde(default)]
    pub(crate) none: bool,
    /// The least confidence, by tier.
    pub(crate) confidence: Option<Floors>,
    /// The most confidence the evidence allows (default proven).
    pub(crate) at_most: Option<Confidence>,
    /// Other causes that are tolerated, never as proven.
    #[serde(default)]
    pub(crate) cause_any: Vec<String>,
    /// Causes of further incidents that are not counted (true, but of a later phase or another issue).
    #[serde(default)]
    pub(crate) allow: Vec<String>,
    /// How many incidents; default 1 a request that is expected to fail, see `incidents()`.
    pub(crate) incidents: Option<usize>,
    pub(crate) incidents_min: Option<usize>,
    pub(crate) incidents_max: Option<usize>,
    /// Markers of configuration lines: each must be named by some incident.
    #[serde(default)]
    pub(crate) lines: Vec<String>,
    /// Markers that no incident may name.
    #[serde(default)]
    pub(crate) not_lines: Vec<String>,
    /// No incident may name a line that is not among `lines`.
    #[serde(default)]
    pub(crate) only_lines: bool,
    /// In place of `lines` and `only_lines` where the kernel tells nothing of requests.
    pub(crate) without_request: Option<WithoutRequest>,
    /// What belongs to the first incident, the second and so on, in the order of the stream.
    #[serde(default)]
    pub(crate) each: Vec<Each>,
    /// `upstream.address` must be one of these.
    #[serde(default)]
    pub(crate) addresses: Vec<String>,
    /// `upstream.module` must be one of these.
    #[serde(default)]
    pub(crate) modules: Vec<String>,
    /// Text in the evidence of some incident, case ignored.
    #[serde(default)]
    pub(crate) evidence_contains: Vec<String>,
    /// Text among the configuration lines of some incident, such as that of a default, which has no line.
    #[serde(default)]
    pub(crate) config_contains: Vec<String>,
    #[serde(default)]
    pub(crate) summary_contains: Vec<String>,
    /// Text in the first advice of some incident, its command included.
    #[serde(default)]
    pub(crate) first_fix_contains: Vec<String>,
    /// Text in any advice of some incident.
    #[serde(default)]
    pub(crate) fix_contains: Vec<String>,
    /// Text in exactly one line of why502's stderr that names a process of the case as well; not on the tracepoint tier.
    #[serde(default)]
    pub(crate) warns: Vec<String>,
    #[serde(default)]
    pub(crate) evidence_kinds: Vec<String>,
    /// Text of the firewall rule that some incident names (evidence of kind `rule`).
    #[serde(default)]
    pub(crate) rule: Vec<String>,
    /// Text that no rule may have that an incident names.
    #[serde(default)]
    pub(crate) rule_never: Vec<String>,
    /// True: each incident of the cause names one rule alone; false: none does so.
    pub(crate) rule_only: Option<bool>,
    /// Kinds of evidence that no incident may have.
    #[serde(default)]
    pub(crate) never_kinds: Vec<String>,
    /// Text that must be nowhere in the verdict.
    #[serde(default)]
    pub(crate) text_never: Vec<String>,
    /// Causes that must not be said with any confidence.
    #[serde(default)]
    pub(crate) never: Vec<String>,
    #[serde(default)]
    pub(crate) request: RequestExpect,
    pub(crate) full: Option<TierExpect>,
    pub(crate) kprobe: Option<TierExpect>,
    pub(crate) tracepoint: Option<TierExpect>,
    /// What else holds as nginx itself is asked: its memory, and its log unless `--why502-arg=--uprobes=off`.
    pub(crate) uprobes: Option<UprobeExpect>,
}

impl Expect {
    /// What is expected where nginx itself is asked: its word on the lines counts more than what a request leaves open. `words`: so
    /// is its log.
    pub(crate) fn told(&self, words: bool) -> Self {
        let mut told = self.clone();
        if let Some(lines) = self.uprobes.as_ref().and_then(|uprobes| uprobes.lines.clone()) {
            told.lines = lines;
            told.only_lines = true;
        }
        let says = self.uprobes.as_ref().and_then(|uprobes| uprobes.says.as_ref());
        if let Some(says) = says.filter(|_| words) {
            let sure = Confidence::Proven;
            told.confidence = Some(Floors { full: sure, kprobe: sure, tracepoint: sure });
            told.evidence_contains.push(says.clone());
            told.cause_any.clear();
            (told.incidents_min, told.incidents_max) = (None, None);
            (told.full, told.kprobe, told.tracepoint) = (None, None, None);
        }
        told
    }
}

impl Expect {
    /// What is expected where these hooks are missing: what only they tell may stay unexplained.
    pub(crate) fn without(mut self, tier: &str, missing: &BTreeSet<String>) -> Self {
        let of_tier = match tier {
            "full" => &mut self.full,
            "kprobe" => &mut self.kprobe,
            _ => &mut self.tracepoint,
        };
        if let Some(of_tier) = of_tier
            && of_tier.unexplained_without.iter().any(|hook| missing.contains(hook))
        {
            of_tier.cause_any.push("unexplained".to_owned());
        }
        self
    }
}

/// What nginx itself tells.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct UprobeExpect {
    pub(crate) request: RequestExpect,
    /// Markers of the lines that every incident names, all of them and no other.
    pub(crate) lines: Option<Vec<String>>,
    /// Text of nginx's that proves the cause on every tier: a part of the evidence.
    pub(crate) says: Option<String>,
    /// Targets of requests that a step sends: `GET`, for the case's host.
    #[serde(default)]
    pub(crate) sent: Vec<String>,
}

/// The lines where requests are not watched: what one address leads to is all that is known.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct WithoutRequest {
    /// Markers of the lines that incidents name, these and no others.
    pub(crate) lines: Vec<String>,
}

/// One incident among several.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Each {
    /// The incident of this `upstream.address`, wherever it stands: those of two workers have no order.
    pub(crate) address: Option<String>,
    /// The target of its request: then it holds for every incident of that target, wherever in the stream, and is not
    /// asked where requests are not watched.
    pub(crate) target: Option<String>,
    /// Markers of the lines that it names, all of them.
    pub(crate) lines: Vec<String>,
    #[serde(default)]
    pub(crate) evidence_kinds: Vec<String>,
    #[serde(default)]
    pub(crate) never_kinds: Vec<String>,
}

/// What one tier may say otherwise.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct TierExpect {
    /// Added to the tolerated causes.
    #[serde(default)]
    pub(crate) cause_any: Vec<String>,
    /// `unexplained` is tolerated where one of these hooks of why502 is missing (names of `why502 doctor`).
    #[serde(default)]
    pub(crate) unexplained_without: Vec<String>,
    pub(crate) at_most: Option<Confidence>,
    pub(crate) incidents_min: Option<usize>,
    pub(crate) incidents_max: Option<usize>,
    /// The texts are not asked for.
    #[serde(default)]
    pub(crate) no_texts: bool,
    pub(crate) request: Option<RequestExpect>,
}

impl Expect {
    pub(crate) fn tier(&self, tier: &str) -> Option<&TierExpect> {
        match tier {
            "full" => self.full.as_ref(),
            "kprobe" => self.kprobe.as_ref(),
            _ => self.tracepoint.as_ref(),
        }
    }

    pub(crate) fn floor(&self, tier: &str) -> Confidence {
        match (&self.confidence, tier) {
            (None, _) => Confidence::Unexplained,
            (Some(f), "full") => f.full,
            (Some(f), "kprobe") => f.kprobe,
            (Some(f), _) => f.tracepoint,
        }
    }

    /// The least and the most incidents that are right on this tier.
    pub(crate) fn incidents(&self, tier: &str) -> (usize, usize) {
        if self.none {
            return (0, 0);
        }
        let exact = self.incidents.unwrap_or(1);
        let of_tier = self.tier(tier);
        let min = of_tier.and_then(|t| t.incidents_min).or(self.incidents_min).unwrap_or(exact);
        let max = of_tier.and_then(|t| t.incidents_max).or(self.incidents_max).unwrap_or(exact);
        (min, max.max(min))
    }
}
