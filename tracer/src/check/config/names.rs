//! Names of upstream servers: those that nginx cannot look up, and those that mean something else than they look like.

use super::{super::Finding, view};
use crate::{
    diagnose::Cause,
    nginx::{
        Model,
        choice::Destination,
        model::{Layer, Pass},
        value::Address,
    },
};

/// Resolvers that anybody may ask, and that know only what is public.
const PUBLIC: [&str; 14] = [
    "8.8.8.8",
    "8.8.4.4",
    "1.1.1.1",
    "1.0.0.1",
    "9.9.9.9",
    "149.112.112.112",
    "208.67.222.222",
    "208.67.220.220",
    "94.140.14.14",
    "[2001:4860:4860::8888]",
    "[2001:4860:4860::8844]",
    "[2606:4700:4700::1111]",
    "[2606:4700:4700::1001]",
    "[2620:fe::fe]",
];
/// Endings that the public name space does not have (RFC 6761, RFC 6762, RFC 8375, ICANN's `.internal`, and what
/// Consul and Kubernetes use).
const PRIVATE: [&str; 12] = [
    ".local",
    ".localhost",
    ".localdomain",
    ".internal",
    ".lan",
    ".home.arpa",
    ".intranet",
    ".corp",
    ".private",
    ".consul",
    ".cluster.local",
    ".svc",
];

/// The names that a pass makes nginx look up while requests wait, and whether each is certain to be one.
pub(in crate::check) fn looked_up(model: &Model, index: usize, pass: &Pass) -> Vec<(String, bool)> {
    if !matches!(pass.target, Address::Variable { .. }) {
        return Vec::new();
    }
    let Some(Destination::Resolve { name, sure }) = model.destination(index, &|_| None) else {
        return Vec::new();
    };
    let mut names: Vec<(String, bool)> = name.map(|name| (name, sure)).into_iter().collect();
    if names.is_empty() && sure {
        let hosts = pass.values.iter().filter(|value| value.upstream.is_none());
        names.extend(hosts.filter_map(|value| match &value.target {
            Address::Name { host, .. } => Some((host.clone(), true)),
            Address::Ip { .. } | Address::Unix { .. } | Address::Variable { .. } | Address::Invalid => None,
        }));
    }
    names
}

/// What the text of a pass says by itself: a host with variables that no address can be.
fn written_name(pass: &Pass) -> Option<String> {
    let Address::Variable { pattern, .. } = &pass.target else { return None };
    let variables = view::variables(pattern);
    let host = pattern.split_once(':').map_or(pattern.as_str(), |(host, _)| host);
    // A client's Host is a name by its nature; text with letters around a variable is one as well.
    let by_host = matches!(variables.as_slice(), [only] if only == "host" || only == "http_host");
    let literal: String = host
        .split('$')
        .enumerate()
        .map(|(at, part)| {
            if at == 0 {
                part
            } else {
                part.trim_start_matches(|c: char| c.is_ascii_alphanumeric() || "_{}".contains(c))
            }
        })
        .collect();
    let lettered = literal.contains('.') && literal.chars().any(|c| c.is_ascii_alphabetic());
    (by_host || lettered).then(|| host.to_owned())
}

/// A variable names a host and nobody can be asked for its address.
pub(super) fn no_resolver(model: &Model) -> Vec<Finding> {
    let mut found = Vec::new();
    for (index, pass) in model.passes.iter().enumerate() {
        if view::set_at(model, pass, "resolver").is_some() {
            continue;
        }
        let names = looked_up(model, index, pass);
        let certain: Vec<&str> =
            names.iter().filter(|(_, sure)| *sure).map(|(name, _)| name.as_str()).collect();
        let fix = |one: Finding| {
            one.at(view::pass_place(model, pass))
                .fix("add `resolver ADDRESS;` with the address of your name server (see /etc/resolv.conf) to this block, or to http")
                .fix("or write the host without a variable: nginx then resolves it when it starts, and keeps the addresses")
        };
        if let Some(name) = certain.first() {
            let all = pass.complete && certain.len() == pass.values.len() || pass.values.len() <= 1;
            let breaks = if all {
                "nginx looks the name up while each request waits, and has nobody to ask: every request of this pass ends \
                 with 502."
            } else {
                "nginx looks the name up while the request waits, and has nobody to ask: requests for which the variable \
                 has this value end with 502."
            };
            let one = Finding::problem(
                "variable-without-resolver",
                format!("{} needs \"{name}\" looked up for each request, and there is no resolver", pass.url),
            );
            found.push(fix(one.cause(Cause::NoResolver).breaks(breaks)));
        } else if let Some(host) = written_name(pass).filter(|_| names.is_empty() && pass.values.is_empty()) {
            // Behind a port no upstream is meant.
            let has_port = matches!(&pass.target, Address::Variable { pattern, .. } if pattern.contains(':'));
            let is_group = !has_port
                && model.upstreams.iter().any(|upstream| {
                    upstream.layer == pass.module.layer()
                        && crate::nginx::value::pattern_fits(&host, &upstream.name)
                });
            if is_group {
                continue;
            }
            let one = Finding::warning(
                "variable-without-resolver",
                format!("{} has a host that depends on the request, and there is no resolver", pass.url),
            );
            found.push(fix(
                one.cause(Cause::NoResolver).likely("requests that always name an IP address").breaks(
                    "A host name that is not an upstream of this configuration cannot be looked up: such requests end \
                     with 502.",
                ),
            ));
        }
    }
    found
}

/// A resolver that cannot know the name.
pub(super) fn wrong_resolver(model: &Model) -> Vec<Finding> {
    let mut found = Vec::new();
    for (index, pass) in model.passes.iter().enumerate() {
        let Some(effective) = model.effective_of(pass, "resolver") else { continue };
        let (Some(node), Some(value)) = (effective.node(), effective.value.as_deref()) else { continue };
        let servers: Vec<&str> = value.split(' ').filter(|word| !word.contains('=')).collect();
        let bare = |server: &&str| server.strip_suffix(":53").unwrap_or(server).to_owned();
        let public =
            !servers.is_empty() && servers.iter().all(|server| PUBLIC.contains(&bare(server).as_str()));
        let kubernetes = servers.iter().any(|server| server.ends_with(".svc.cluster.local"));
        for (name, sure) in looked_up(model, index, pass) {
            let single = !view::is_dotted(&name);
            let private = PRIVATE.iter().any(|end| name.to_ascii_lowercase().ends_with(end));
            let why = if name.eq_ignore_ascii_case("localhost") {
                "most name servers do not know \"localhost\", and nginx's resolver does not read /etc/hosts"
            } else if public && (single || private) {
                "a public name server does not know names of your own network"
            } else if kubernetes && single {
                "nginx's resolver adds no search domain: Kubernetes' name server knows only the full name"
            } else {
                continue;
            };
            let full = if kubernetes && single {
                format!("write the full name: {name}.NAMESPACE.svc.cluster.local")
            } else if name.eq_ignore_ascii_case("localhost") {
                "write 127.0.0.1 instead of localhost".to_owned()
            } else {
                "name the resolver of your own network (see /etc/resolv.conf; in Docker 127.0.0.11)"
                    .to_owned()
            };
            let mut one = Finding::problem(
                "resolver-cannot-know-name",
                format!("\"{name}\" is asked of {}, which does not know it", servers.join(" ")),
            )
            .cause(Cause::ResolverFailed)
            .likely("a name server that answers for it nevertheless")
            .breaks(format!("Requests of this pass end with 502, as {why}."))
            .at(view::pass_place(model, pass))
            .at(view::place(model, node))
            .fix(full);
            if !sure {
                one.severity = super::super::Severity::Warning;
            }
            found.push(one);
        }
    }
    found
}

/// A name that looks like an `upstream` of this configuration and is none.
pub(super) fn almost_an_upstream(model: &Model) -> Vec<Finding> {
    let mut found = Vec::new();
    for pass in &model.passes {
        let Address::Name { host, explicit_port: false, .. } = &pass.target else { continue };
        if pass.upstream.is_some() || view::is_dotted(host) || host.eq_ignore_ascii_case("localhost") {
            continue;
        }
        let other_layer = model.upstreams.iter().find(|upstream| {
            upstream.layer != pass.module.layer() && upstream.name.eq_ignore_ascii_case(host)
        });
        let near = || {
            model
                .upstreams
                .iter()
                .filter(|upstream| upstream.layer == pass.module.layer())
                .find(|upstream| is_slip(&upstream.name.to_ascii_lowercase(), &host.to_ascii_lowercase()))
        };
        let (summary, upstream) = match (other_layer, near()) {
            (Some(other), _) => {
                let (there, here) = match other.layer {
                    Layer::Http => ("http", "stream"),
                    Layer::Stream => ("stream", "http"),
                };
                (format!("\"{host}\" is an upstream of {there}; a pass of {here} does not see it"), other)
            }
            (None, Some(near)) => {
                (format!("there is no upstream \"{host}\"; there is {}", view::quoted(&near.name)), near)
            }
            (None, None) => continue,
        };
        found.push(
            Finding::warning("no-such-upstream", summary)
                .cause(Cause::ResolverFailed)
                .likely(format!("a host that is really called {host}"))
                .breaks(
                    "nginx takes the name for a host: where that does not resolve it does not start, and where it does \
                     requests go to that host.",
                )
                .at(view::pass_place(model, pass))
                .at(super::super::Place::of(model, "upstream", upstream.node))
                .fix(format!("write the name of the upstream that is meant: {}", upstream.name)),
        );
    }
    found
}

/// Whether two names differ by one letter, by a swap of neighbours, or by `-` against `_`; and are long enough for that
/// to mean something.
fn is_slip(a: &str, b: &str) -> bool {
    let plain = |text: &str| text.replace(['-', '_'], "");
    if plain(a) == plain(b) {
        return true;
    }
    let (a, b): (Vec<char>, Vec<char>) = (a.chars().collect(), b.chars().collect());
    let (short, long) = if a.len() <= b.len() { (&a, &b) } else { (&b, &a) };
    // `app1` and `app2` are two applications.
    if short.len() < 5 || short.iter().chain(long).any(char::is_ascii_digit) {
        return false;
    }
    let start = short.iter().zip(long).take_while(|(x, y)| x == y).count();
    let rest = |text: &[char], skip: usize| text.get(start + skip..).map(<[char]>::to_vec);
    match long.len() - short.len() {
        0 => {
            let swapped = short.get(start) == long.get(start + 1) && short.get(start + 1) == long.get(start);
            rest(short, 1) == rest(long, 1) || swapped && rest(short, 2) == rest(long, 2)
        }
        1 => rest(short, 0) == rest(long, 1),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::check::{
        Severity,
        config::testing::{clean, one},
    };

    fn http(inner: &str) -> String {
        format!("http {{ upstream backend {{ server 10.0.0.1:80; }} server {{ {inner} }} }}")
    }

    #[test]
    fn variables_that_name_hosts_need_a_resolver() {
        let found =
            one(no_resolver, &http("set $up app.example.com; location / { proxy_pass http://$up:3000; }"));
        assert_eq!(found.severity, Severity::Problem);
        assert!(found.summary.contains("\"app.example.com\""), "{found:?}");
        one(no_resolver, &http("location / { set $up http://bakend; proxy_pass $up; }"));
        assert_eq!(
            one(no_resolver, &http("location / { proxy_pass http://$host:8080; }")).severity,
            Severity::Warning
        );
        assert_eq!(
            one(no_resolver, &http("location ~ ^/(\\w+)/ { proxy_pass http://$1.example.com; }")).severity,
            Severity::Warning
        );
        for quiet in [
            "resolver 10.0.0.53; set $up app.example.com; location / { proxy_pass http://$up:3000; }",
            "set $up backend; location / { proxy_pass http://$up; }",
            "set $up 10.0.0.7; location / { proxy_pass http://$up:3000; }",
            "location / { proxy_pass http://app.example.com$request_uri; }",
            "location ~ ^/(\\d+)/ { proxy_pass http://10.0.0.$1:80; }",
            "location / { proxy_pass http://$arg_ip; }",
            // Known from another, static pass.
            "set $up app.example.com; location / { proxy_pass http://$up; } location /s { proxy_pass http://app.example.com; }",
        ] {
            clean(no_resolver, &http(quiet));
        }
    }

    #[test]
    fn resolvers_that_cannot_know() {
        let with = |resolver: &str, name: &str| {
            http(&format!("resolver {resolver}; set $up {name}; location / {{ proxy_pass http://$up:80; }}"))
        };
        for (resolver, name) in [
            ("8.8.8.8", "app.internal"),
            ("1.1.1.1 8.8.8.8 valid=30s", "app"),
            ("127.0.0.53", "localhost"),
            ("kube-dns.kube-system.svc.cluster.local valid=5s", "app"),
        ] {
            one(wrong_resolver, &with(resolver, name));
        }
        for (resolver, name) in [
            ("8.8.8.8", "app.example.com"),
            ("127.0.0.11", "app"),
            ("8.8.8.8 10.0.0.53", "app.internal"),
            ("kube-dns.kube-system.svc.cluster.local", "app.default.svc.cluster.local"),
            ("8.8.8.8", "10.1.1.1"),
        ] {
            clean(wrong_resolver, &with(resolver, name));
        }
        // An upstream's name needs nobody to be asked; with a port it is no upstream's.
        clean(
            wrong_resolver,
            &http("resolver 8.8.8.8; set $up backend; location / { proxy_pass http://$up; }"),
        );
        one(wrong_resolver, &with("8.8.8.8", "backend"));
        // OCSP stapling asks a public server for public names.
        clean(wrong_resolver, &http("resolver 8.8.8.8; location / { proxy_pass http://backend; }"));
    }

    #[test]
    fn names_that_are_almost_an_upstream() {
        let found = one(almost_an_upstream, &http("location / { proxy_pass http://backnd; }"));
        assert!(found.summary.contains("\"backnd\"") && found.summary.contains("\"backend\""));
        one(
            almost_an_upstream,
            "http { upstream my_app { server 10.0.0.1; } server { location / { proxy_pass http://my-app; } } }",
        );
        one(
            almost_an_upstream,
            "http { server { location / { proxy_pass http://db; } } } stream { upstream db { server 10.0.0.1:1; } }",
        );
        for quiet in [
            "http://backend",
            "http://backend2",
            "http://redis",
            "http://backend.example.com",
            "http://backnd:3000",
        ] {
            clean(almost_an_upstream, &http(&format!("location / {{ proxy_pass {quiet}; }}")));
        }
        clean(
            almost_an_upstream,
            "http { upstream app1 { server 10.0.0.1; } server { location / { proxy_pass http://app2; } } }",
        );
    }
}
