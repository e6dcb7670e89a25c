//! Headers that a backend needs and does not get.

use super::{
    super::{Finding, Place},
    view,
};
use crate::nginx::{
    Model, Version,
    model::{Layer, Module, Pass},
    tree::NodeId,
    value::Address,
};

fn http_passes(model: &Model) -> impl Iterator<Item = &Pass> {
    model.passes.iter().filter(|pass| pass.module == Module::Proxy)
}

/// The name that a pass sends as `Host` where nothing sets one: that of the `upstream` block.
fn block_name<'a>(model: &'a Model, pass: &Pass) -> Option<&'a str> {
    Some(model.upstreams.get(pass.upstream?)?.name.as_str())
}

/// The block's own name goes out as `Host` where servers refuse it, or cannot know it.
pub(super) fn host_is_block_name(model: &Model) -> Vec<Finding> {
    let mut found = Vec::new();
    for pass in http_passes(model) {
        let headers = view::headers(model, pass);
        let host = view::find(&headers, "Host");
        let own = host.is_none_or(|host| host.value == "$proxy_host");
        let Some(name) = block_name(model, pass).filter(|_| own) else { continue };
        let Some(upstream) = pass.upstream.and_then(|index| model.upstreams.get(index)) else { continue };
        let targets = view::targets(model, pass);
        let named: Vec<&str> =
            targets.iter().filter_map(view::Target::host).filter(|host| view::is_dotted(host)).collect();
        let all_named = !targets.is_empty() && named.len() == targets.len();
        let (breaks, fix) = if name.contains('_') {
            (
                "A name with `_` is no valid host: Tomcat, Django, IIS and others answer each request with 400.".to_owned(),
                "add `proxy_set_header Host $host;`".to_owned(),
            )
        } else if all_named && !named.iter().any(|host| host.eq_ignore_ascii_case(name)) {
            (
                format!(
                    "A server that has several sites chooses by this name and does not know \"{name}\": it answers with \
                     404, 421 or another site."
                ),
                match named.as_slice() {
                    [only] => format!("add `proxy_set_header Host {only};`"),
                    _ => "add `proxy_set_header Host NAME;` with the name that these servers know, or $host"
                        .to_owned(),
                },
            )
        } else {
            continue;
        };
        let mut one = Finding::warning(
            "host-is-upstream-name",
            format!("requests go out with \"Host: {name}\", the name of the upstream block"),
        )
        .likely("a server that does not look at Host")
        .breaks(breaks)
        .at(view::pass_place(model, pass))
        .at(Place::of(model, "upstream", upstream.node));
        if let Some(host) = host {
            one = one.at(view::place(model, host.node));
        }
        found.push(one.fix(fix));
    }
    found
}

/// A block with a `proxy_set_header` of its own inherits none, and so `Host` is back to the name of the pass.
pub(super) fn lost_host(model: &Model) -> Vec<Finding> {
    let mut found = Vec::new();
    for pass in http_passes(model) {
        let headers = view::headers(model, pass);
        let Some(first) = headers.first() else { continue };
        if view::find(&headers, "Host").is_some() {
            continue;
        }
        // $proxy_host of a public name is what that server knows.
        let meaningless = match &pass.target {
            Address::Name { host, .. } => pass.upstream.is_some() || !view::is_dotted(host),
            Address::Ip { .. } | Address::Unix { .. } => true,
            Address::Variable { .. } | Address::Invalid => false,
        };
        let Some(own) = model.config().parent(first.node).filter(|_| meaningless) else { continue };
        let outer = view::inherited(model, model.config().parent(own), "proxy_set_header");
        let outer: Vec<_> = outer.into_iter().filter_map(|node| view::header(model, node)).collect();
        let Some(lost) = view::find(&outer, "Host") else { continue };
        let others: Vec<&str> = outer
            .iter()
            .filter(|header| view::find(&headers, &header.name).is_none())
            .map(|header| header.name.as_str())
            .collect();
        let sent = block_name(model, pass).map_or_else(|| pass.authority.clone(), str::to_owned);
        found.push(
            Finding::warning(
                "proxy-headers-not-inherited",
                format!("\"{}\" is not sent here: proxy_set_header in this block drops those further out", lost.name),
            )
            .likely("a server that does not look at Host")
            .breaks(format!(
                "The backend gets \"Host: {sent}\" and loses {}: sites chosen by name, redirects and cookies go wrong.",
                others.join(", ")
            ))
            .at(view::place(model, first.node))
            .at(view::place(model, lost.node))
            .at(view::pass_place(model, pass))
            .fix(format!("repeat the outer lines in this block: {}", repeat(&outer, &headers))),
        );
    }
    found
}

fn repeat(outer: &[view::Header], inner: &[view::Header]) -> String {
    let missing = outer.iter().filter(|header| view::find(inner, &header.name).is_none());
    let lines: Vec<String> =
        missing.map(|header| format!("proxy_set_header {} {};", header.name, quote(&header.value))).collect();
    lines.join(" ")
}

fn quote(value: &str) -> String {
    if value.is_empty() || value.contains([' ', ';', '{', '}', '"']) {
        format!("{value:?}")
    } else {
        value.to_owned()
    }
}

/// Headers by which applications learn that the client came by TLS.
const SCHEME: [&str; 9] = [
    "X-Forwarded-Proto",
    "X-Forwarded-Protocol",
    "X-Forwarded-Ssl",
    "X-Forwarded-Scheme",
    "X-Forwarded-Port",
    "X-Scheme",
    "X-Url-Scheme",
    "Front-End-Https",
    "Forwarded",
];

/// TLS ends here, the application is told about the client, but not that the client came by TLS.
pub(super) fn no_scheme(model: &Model) -> Vec<Finding> {
    let mut found = Vec::new();
    for pass in http_passes(model).filter(|pass| pass.tls == Some(false)) {
        let Some(server) = model.server_of(pass) else { continue };
        let all_tls = !server.listens.is_empty()
            && server
                .listens
                .iter()
                .all(|one| one.parameters.iter().any(|flag| flag == "ssl" || flag == "quic"));
        let headers = view::headers(model, pass);
        let Some(forwarded) = view::find(&headers, "X-Forwarded-For").filter(|_| all_tls) else { continue };
        let told = SCHEME.iter().any(|name| view::find(&headers, name).is_some())
            || headers.iter().any(|header| {
                view::variables(&header.value).iter().any(|name| name == "scheme" || name == "https")
            });
        if told {
            continue;
        }
        found.push(
            Finding::warning(
                "scheme-not-forwarded",
                "clients come by TLS, the backend is asked by http, and no header tells it: X-Forwarded-Proto is missing",
            )
            .likely("an application that makes no links and no redirects")
            .breaks(
                "An application that makes absolute links or redirects writes http://; one that insists on https redirects \
                 for ever; secure cookies are refused.",
            )
            .at(view::place(model, forwarded.node))
            .at(view::pass_place(model, pass))
            .fix("add `proxy_set_header X-Forwarded-Proto $scheme;`"),
        );
    }
    found
}

/// Headers whose loss opens a page to attacks.
const PROTECTING: [&str; 4] =
    ["Content-Security-Policy", "X-Frame-Options", "Strict-Transport-Security", "X-Content-Type-Options"];

/// The same trap with `add_header`, for answers of applications.
pub(super) fn lost_protection(model: &Model) -> Vec<Finding> {
    let mut found = Vec::new();
    let mut done: Vec<NodeId> = Vec::new();
    for pass in model.passes.iter().filter(|pass| pass.module.layer() == Layer::Http) {
        let Some(inner) = model.config().parent(pass.node) else { continue };
        // Since 1.29.3 a block may add to what is further out.
        let merged = !view::inherited(model, Some(inner), "add_header_inherit").is_empty();
        let lines = view::inherited(model, Some(inner), "add_header");
        let Some(first) = lines.first().copied().filter(|first| !merged && !done.contains(first)) else {
            continue;
        };
        let name = |node: NodeId| model.config().arg(node, 0).unwrap_or_default();
        let Some(block) = model.config().parent(first) else { continue };
        let outer = view::inherited(model, model.config().parent(block), "add_header");
        let lost: Vec<NodeId> = outer
            .into_iter()
            .filter(|node| PROTECTING.iter().any(|one| one.eq_ignore_ascii_case(&name(*node))))
            .filter(|node| !lines.iter().any(|own| name(*own).eq_ignore_ascii_case(&name(*node))))
            .collect();
        let Some(example) = lost.first() else { continue };
        done.push(first);
        let names: Vec<String> = lost.iter().map(|node| name(*node)).collect();
        found.push(
            Finding::warning(
                "response-headers-not-inherited",
                format!(
                    "{} is not sent here: \"add_header\" in this block drops those further out",
                    names.join(", ")
                ),
            )
            .breaks("Answers of this location go to browsers without that protection.")
            .at(view::place(model, first))
            .at(view::place(model, *example))
            .fix(if model.platform.version.is_some_and(|version| version >= Version(1, 29, 3)) {
                "add `add_header_inherit merge;` to this block, or repeat the lines"
            } else {
                "repeat the outer add_header lines in this block (an included file keeps them in one place)"
            }),
        );
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::check::config::testing::{clean, one};

    fn site(block: &str, inner: &str) -> String {
        format!("http {{ {block} server {{ listen 443 ssl; {inner} }} }}")
    }

    #[test]
    fn a_blocks_name_as_host() {
        let bad = "upstream my_app { server 127.0.0.1:3000; }";
        let pass = "location / { proxy_pass http://my_app; }";
        assert!(one(host_is_block_name, &site(bad, pass)).summary.contains("my_app"));
        let named = "upstream api { server api.example.com:443; }";
        let found = one(host_is_block_name, &site(named, "location / { proxy_pass https://api; }"));
        assert!(found.fix[0].text.contains("Host api.example.com"), "{found:?}");
        for (block, inner) in [
            (bad, "location / { proxy_pass http://my_app; proxy_set_header Host $host; }"),
            (bad, "proxy_set_header host $http_host; location / { proxy_pass http://my_app; }"),
            ("upstream app { server 127.0.0.1:3000; }", "location / { proxy_pass http://app; }"),
            (
                "upstream api.example.com { server api.example.com:443; }",
                "location / { proxy_pass https://api.example.com; }",
            ),
            ("upstream app { server app:3000; }", "location / { proxy_pass http://app; }"),
            (bad, "location / { fastcgi_pass my_app; }"),
            (bad, "location / { grpc_pass grpc://my_app; }"),
        ] {
            clean(host_is_block_name, &site(block, inner));
        }
    }

    #[test]
    fn host_lost_in_an_inner_block() {
        let app = "upstream app { server 127.0.0.1:3000; } proxy_set_header Host $host; proxy_set_header X-Real-IP $remote_addr;";
        let found = one(
            lost_host,
            &site(app, "location / { proxy_set_header Connection \"\"; proxy_pass http://app; }"),
        );
        assert!(
            found.fix[0].text.contains("proxy_set_header Host $host;")
                && found.fix[0].text.contains("X-Real-IP")
        );
        assert!(found.breaks.contains("Host: app"), "{found:?}");
        for inner in [
            "location / { proxy_pass http://app; }",
            "location / { proxy_set_header Host $host; proxy_pass http://app; }",
            "location / { proxy_set_header Authorization x; proxy_pass https://api.example.com; }",
            "proxy_set_header Host $host; proxy_set_header Connection \"\"; location / { proxy_pass http://app; }",
        ] {
            clean(lost_host, &site(app, inner));
        }
        clean(
            lost_host,
            &site(
                "upstream app { server 127.0.0.1:3000; }",
                "location / { proxy_set_header A b; proxy_pass http://app; }",
            ),
        );
    }

    #[test]
    fn the_scheme_is_told() {
        let at = |headers: &str| {
            site("", &format!("location / {{ {headers} proxy_pass http://127.0.0.1:3000; }}"))
        };
        one(no_scheme, &at("proxy_set_header X-Forwarded-For $proxy_add_x_forwarded_for;"));
        for headers in [
            "",
            "proxy_set_header Host $host;",
            "proxy_set_header X-Forwarded-For $remote_addr; proxy_set_header X-Forwarded-Proto https;",
            "proxy_set_header X-Forwarded-For $remote_addr; proxy_set_header Forwarded \"proto=https\";",
            "proxy_set_header X-Forwarded-For $remote_addr; proxy_set_header X-My-Scheme $scheme;",
        ] {
            clean(no_scheme, &at(headers));
        }
        let xff = "proxy_set_header X-Forwarded-For $remote_addr;";
        clean(
            no_scheme,
            &format!(
                "http {{ server {{ listen 80; location / {{ {xff} proxy_pass http://127.0.0.1:3000; }} }} }}"
            ),
        );
        clean(no_scheme, &site("", &format!("location / {{ {xff} proxy_pass https://127.0.0.1:3000; }}")));
    }

    #[test]
    fn protection_lost_in_an_inner_block() {
        let outer = "add_header X-Frame-Options DENY always;";
        one(
            lost_protection,
            &site(outer, "location / { add_header Cache-Control no-store; proxy_pass http://127.0.0.1:1; }"),
        );
        for inner in [
            "location / { proxy_pass http://127.0.0.1:1; }",
            "location / { add_header X-Frame-Options SAMEORIGIN; proxy_pass http://127.0.0.1:1; }",
            "location /static/ { add_header Cache-Control public; }",
            "location / { add_header_inherit merge; add_header Cache-Control no-store; proxy_pass http://127.0.0.1:1; }",
        ] {
            clean(lost_protection, &site(outer, inner));
        }
        clean(
            lost_protection,
            &site(
                "add_header X-Served-By a;",
                "location / { add_header B c; proxy_pass http://127.0.0.1:1; }",
            ),
        );
    }
}
