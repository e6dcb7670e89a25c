//! Mistakes in a configuration that parses: each a function of the model alone, with a name by which it can be
//! silenced. What breaks is said with each; what breaks nothing is not looked for.

mod headers;
mod keepalive;
mod names;
pub(super) use names::looked_up;
mod paths;
mod protocol;
mod refused;
mod servers;
mod status;
#[cfg(test)]
pub(crate) mod testing;
mod timeouts;
mod tls;
pub(super) mod view;
mod websocket;

use std::collections::HashMap;

use super::{Checked, Finding, Name, Options, Report, Subject};
use crate::{nginx::Model, report::plural};

/// A mistake that is looked for.
#[derive(Debug, Clone, Copy)]
pub struct Lint {
    /// Name of its findings.
    pub name: &'static str,
    /// One line that says what is wrong.
    pub finds: &'static str,
    /// Looks.
    pub check: fn(&Model) -> Vec<Finding>,
    /// Whether it rests on something that is not there: then it is silent where a part could not be read.
    pub of_absence: bool,
}

/// A mistake that the lines that are there make.
const fn lint(name: &'static str, finds: &'static str, check: fn(&Model) -> Vec<Finding>) -> Lint {
    Lint { name, finds, check, of_absence: false }
}

/// A mistake that is made by what is not there.
const fn lack(name: &'static str, finds: &'static str, check: fn(&Model) -> Vec<Finding>) -> Lint {
    Lint { name, finds, check, of_absence: true }
}

/// Every mistake, in the order in which they are told.
pub const LINTS: &[Lint] = &[
    lack(
        "nginx-refuses",
        "nginx would not start with it: buffers that do not fit each other, no servers, a URI where none may be",
        refused,
    ),
    lack(
        "variable-without-resolver",
        "a variable names the upstream host, and nobody can be asked for its address",
        names::no_resolver,
    ),
    lint(
        "resolver-cannot-know-name",
        "the resolver in force does not know the upstream's name",
        names::wrong_resolver,
    ),
    lack(
        "no-such-upstream",
        "a pass names an upstream that is spelt differently, or is one of another layer",
        names::almost_an_upstream,
    ),
    lack(
        "tls-to-port-80",
        "TLS is spoken to port 80, most often because a server has no port",
        protocol::tls_to_80,
    ),
    lint("plain-to-port-443", "http:// or grpc:// is spoken to port 443", protocol::plain_to_443),
    lint("two-protocols-on-one-port", "one address is spoken to in two protocols", protocol::two_languages),
    lack(
        "own-port-speaks-another-protocol",
        "a pass leads to a port of this nginx that speaks another protocol",
        protocol::own_port,
    ),
    lack(
        "grpc-without-http2",
        "gRPC clients cannot come in, as the server does not take HTTP/2",
        protocol::grpc_without_http2,
    ),
    lack(
        "tls-without-server-name",
        "no server name (SNI) is sent to a TLS server that is known by a name",
        tls::no_server_name,
    ),
    lack(
        "certificate-name-cannot-fit",
        "certificates are held against a name that none has",
        tls::name_to_verify,
    ),
    lint("tls-protocols-outdated", "only TLS versions that servers refuse", tls::old_protocols),
    lint(
        "verify-without-tls",
        "certificates are to be verified, and the pass speaks plain text",
        tls::verify_without_tls,
    ),
    lack("all-servers-down", "every server of an upstream is marked down", servers::all_down),
    lack(
        "live-server-beside-down",
        "one live server beside others that are down: it can be taken out of service, and nobody is left",
        servers::live_beside_down,
    ),
    lack("backup-never-used", "a backup that nothing ever leads to", servers::never_marked),
    lack("max-fails-on-a-lone-server", "max_fails is set where it has no effect", servers::lone_max_fails),
    lint("timeout-of-zero", "a time-out of 0, which is no time at all", timeouts::zero),
    lack(
        "no-time-for-the-next-server",
        "retries end before the first server's connect time-out",
        timeouts::no_time_for_the_next,
    ),
    lint(
        "header-buffer-small",
        "the buffer for response headers is smaller than many a header",
        timeouts::small_header_buffer,
    ),
    lack(
        "keepalive-without-effect",
        "keepalive is set, and every connection is closed nevertheless",
        keepalive::without_effect,
    ),
    lint(
        "keepalive-before-method",
        "keepalive is undone by the balancing method behind it",
        keepalive::before_method,
    ),
    lack(
        "upgrade-without-connection",
        "WebSocket: Upgrade is passed on without Connection",
        websocket::no_connection,
    ),
    lack("upgrade-with-http-1.0", "WebSocket: Upgrade is passed on in HTTP/1.0", websocket::http10),
    lack(
        "host-is-upstream-name",
        "the backend gets the upstream block's name as Host, and refuses it or does not know it",
        headers::host_is_block_name,
    ),
    lack(
        "proxy-headers-not-inherited",
        "proxy_set_header in a block drops Host of the outer ones",
        headers::lost_host,
    ),
    lack("scheme-not-forwarded", "the backend is not told that clients come by TLS", headers::no_scheme),
    lack("php-without-script-filename", "php-fpm is not told which script to run", paths::no_script),
    lack(
        "slash-lost-in-pass",
        "the URI of a pass lacks the slash that its location ends with",
        paths::lost_slash,
    ),
    lint(
        "decoded-uri-passed-on",
        "the decoded URI goes into requests: %20 breaks them, %0d%0a splits them",
        decoded_in_pass,
    ),
    lint(
        "decoded-uri-in-answer",
        "the decoded URI goes into headers of answers: clients can be given forged ones",
        decoded_in_answer,
    ),
    lint("limit-looks-like-failure", "limits are answered with 502 or 504", status::limit_status),
    lack(
        "limit-without-burst",
        "a rate limit refuses requests that come together, with 503",
        status::limit_without_burst,
    ),
    lint("failure-told-as-success", "error_page turns a failure into 200", status::hidden_failure),
    lack("client-chooses-the-server", "a client says where nginx connects to", paths::anywhere),
    lint(
        "alias-leaves-its-folder",
        "alias without a slash lets clients leave the folder",
        paths::alias_traversal,
    ),
    lack(
        "response-headers-not-inherited",
        "add_header in a block drops protecting headers of the outer ones",
        headers::lost_protection,
    ),
];

fn refused(model: &Model) -> Vec<Finding> {
    [refused::buffers, refused::upstreams, refused::passes, refused::versions]
        .iter()
        .flat_map(|check| check(model))
        .collect()
}

fn decoded_in_pass(model: &Model) -> Vec<Finding> {
    only("decoded-uri-passed-on", paths::decoded_uri(model))
}

fn decoded_in_answer(model: &Model) -> Vec<Finding> {
    only("decoded-uri-in-answer", paths::decoded_uri(model))
}

fn only(name: &str, mut findings: Vec<Finding>) -> Vec<Finding> {
    findings.retain(|finding| finding.name == name);
    findings
}

/// The names of all lints.
pub const NAMES: &[Name] = &{
    let mut names = [("", ""); LINTS.len()];
    let mut at = 0;
    while at < LINTS.len() {
        names[at] = (LINTS[at].name, LINTS[at].finds);
        at += 1;
    }
    names
};

/// Looks for every mistake; in a configuration of which a part is missing, for those that this part cannot undo. One that
/// several lines share is one finding with all of them.
#[must_use]
pub fn lint_all(model: &Model, is_whole: bool) -> Vec<Finding> {
    let mut all: Vec<Finding> = Vec::new();
    let mut known: HashMap<(&'static str, String), usize> = HashMap::new();
    let told = LINTS.iter().filter(|lint| is_whole || !lint.of_absence);
    for finding in told.flat_map(|lint| (lint.check)(model)) {
        let index = *known.entry((finding.name, finding.summary.clone())).or_insert(all.len());
        match all.get_mut(index) {
            Some(one) => {
                let new: Vec<_> = finding.at.into_iter().filter(|place| !one.at.contains(place)).collect();
                one.at.extend(new);
            }
            None => all.push(finding),
        }
    }
    all
}

/// What was looked at, in one line.
#[must_use]
pub fn checked(model: &Model, findings: &[Finding], incomplete: Option<String>) -> Checked {
    let mut names: Vec<&'static str> = findings.iter().map(|finding| finding.name).collect();
    names.dedup();
    Checked {
        what: "configuration",
        seen: format!(
            "{}, {}, {}; looked for {} kinds of mistakes",
            plural(model.config().files().count(), "file"),
            plural(model.upstreams.len(), "upstream"),
            if model.passes.len() == 1 {
                "1 pass".to_owned()
            } else {
                format!("{} passes", model.passes.len())
            },
            LINTS.len()
        ),
        incomplete,
        findings: names,
    }
}

/// Looks at the configuration that runs.
pub fn inspect(subject: &Subject<'_>, _options: &Options) -> Report {
    of_model(&subject.snapshot.model, &subject.snapshot.problems)
}

/// Looks at a configuration of which parts may be missing.
#[must_use]
pub fn of_model(model: &Model, problems: &[crate::nginx::Problem]) -> Report {
    let missing = problems.iter().find(|problem| problem.missing);
    let findings = lint_all(model, missing.is_none());
    let incomplete = missing.map(|problem| {
        format!("a part of it could not be read, so that what is lacking in the rest is not told: {problem}")
    });
    Report { checked: vec![checked(model, &findings, incomplete)], findings }
}

#[cfg(test)]
mod tests;
