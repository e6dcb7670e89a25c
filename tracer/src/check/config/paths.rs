//! URIs that arrive at the backend, or at the disk, as something else.

use super::{
    super::{Finding, Place},
    view,
};
use crate::{
    diagnose::Cause,
    nginx::{
        Model,
        model::{Module, Pass},
        tree::NodeId,
        value::Address,
    },
};

/// `location /a { alias /b/; }`: `/a../x` is `/b/../x`.
pub(super) fn alias_traversal(model: &Model) -> Vec<Finding> {
    let mut found = Vec::new();
    for node in view::all(model, "alias") {
        let Some(block) =
            model.config().parent(node).filter(|block| view::is_block(model, *block, "location"))
        else {
            continue;
        };
        let path = model.config().arg(node, 0).unwrap_or_default();
        let (modifier, name) = view::location(model, block);
        let is_prefix = modifier.is_empty() || modifier == "^~";
        if !is_prefix || name.ends_with('/') || !path.ends_with('/') || path.contains('$') {
            continue;
        }
        let above = path.trim_end_matches('/').rsplit_once('/').map_or("/", |(above, _)| above);
        found.push(
            Finding::warning("alias-leaves-its-folder", format!("\"{name}../\" leads out of {path}"))
                .breaks(format!("Anybody can read files of {above}/ by asking for {name}../FILE."))
                .at(Place::of(model, "location", block))
                .at(view::place(model, node))
                .fix(format!(
                    "write location {}{name}/ with the slash",
                    if modifier.is_empty() { "" } else { "^~ " }
                )),
        );
    }
    found
}

/// The decoded URI in a place where it must be encoded.
pub(super) fn decoded_uri(model: &Model) -> Vec<Finding> {
    let decoded =
        |text: &str| view::variables(text).into_iter().find(|name| name == "uri" || name == "document_uri");
    let mut found = Vec::new();
    for pass in model.passes.iter().filter(|pass| pass.module == Module::Proxy) {
        let Some(name) = decoded(&pass.url) else { continue };
        // What the pass was narrowed to cannot hold a blank.
        found.push(
            Finding::warning("decoded-uri-passed-on", format!("\"${name}\" is the decoded URI, and goes into the request as it is"))
                .cause(Cause::InvalidResponse)
                .likely("clients that never send %20, %0d or the like")
                .breaks(
                    "A URI with %20 becomes a request line with a blank (400 from the backend), and one with %0d%0a lets a \
                     client write requests of its own.",
                )
                .at(view::pass_place(model, pass))
                .fix("write $request_uri, or no URI at all: proxy_pass http://NAME; passes on what the client sent"),
        );
    }
    for node in view::all(model, "return") {
        let Some(to) = model.config().arg(node, 1) else { continue };
        let code = model.config().arg(node, 0).unwrap_or_default();
        let Some(name) = decoded(&to).filter(|_| code.starts_with('3')) else { continue };
        found.push(
            Finding::warning("decoded-uri-in-redirect", format!("\"${name}\" is the decoded URI, and goes into the Location header as it is"))
                .likely("nothing in front of clients that would be fooled")
                .breaks("A client that is led to a link with %0d%0a gets headers, such as cookies, that an attacker wrote.")
                .at(view::place(model, node))
                .fix("write $request_uri instead"),
        );
    }
    found
}

/// The client says where nginx connects to.
pub(super) fn anywhere(model: &Model) -> Vec<Finding> {
    let mut found = Vec::new();
    for pass in &model.passes {
        let Address::Variable { pattern, .. } = &pass.target else { continue };
        let host = pattern.split_once(':').map_or(pattern.as_str(), |(host, _)| host);
        // Text around the variable binds it to a domain.
        let names = view::variables(host);
        let [only] = names.as_slice() else { continue };
        if !host.eq_ignore_ascii_case(&format!("${only}"))
            && !host.eq_ignore_ascii_case(&format!("${{{only}}}"))
        {
            continue;
        }
        let theirs = |name: &String| {
            name.starts_with("arg_")
                || name.starts_with("cookie_")
                || (name.starts_with("http_") && name != "http_host" && name != "http_upgrade")
        };
        let Some(name) = Some(only).filter(|name| theirs(name)) else { continue };
        let internal = view::around(model, pass.node)
            .any(|block| view::in_block(model, block, "internal").next().is_some());
        if internal {
            continue;
        }
        found.push(
            Finding::warning("client-chooses-the-server", format!("\"${name}\" comes from the client, and says where nginx connects to"))
                .breaks(
                    "Anybody can make nginx ask any host that it reaches, such as the cloud's metadata address; mistakes in \
                     it end with 502.",
                )
                .at(view::pass_place(model, pass))
                .fix("choose among known servers with a map, or mark the location `internal`"),
        );
    }
    found
}

/// `location /api/` with `proxy_pass http://b/v1`: the slash between the two is lost.
pub(super) fn lost_slash(model: &Model) -> Vec<Finding> {
    let mut found = Vec::new();
    let plain = |pass: &&Pass| pass.module == Module::Proxy && !pass.variables;
    for pass in model.passes.iter().filter(plain) {
        let Some(block) = pass.location.filter(|block| model.config().parent(pass.node) == Some(*block))
        else {
            continue;
        };
        let (modifier, name) = view::location(model, block);
        let at = pass.url.find(&pass.authority).map_or(0, |at| at + pass.authority.len());
        let uri = pass.url.get(at..).unwrap_or_default();
        let is_prefix = modifier.is_empty() || modifier == "^~";
        if !is_prefix || !name.ends_with('/') || name == "/" || !uri.starts_with('/') {
            continue;
        }
        if uri.ends_with(['/', '=', '-', '_']) || uri.contains('?') || rewrites(model, block) {
            continue;
        }
        found.push(
            Finding::warning(
                "slash-lost-in-pass",
                format!("\"{name}x\" is asked of the backend as \"{uri}x\": the slash between is lost"),
            )
            .likely("a backend whose paths begin like that")
            .breaks(
                "The backend does not know such paths: it answers 404, or what else it has for unknown ones.",
            )
            .at(view::pass_place(model, pass))
            .at(Place::of(model, "location", block))
            .fix(format!("write the slash: proxy_pass {}/;", pass.url)),
        );
    }
    found
}

/// `rewrite … break` takes the pass's URI out of use.
fn rewrites(model: &Model, block: NodeId) -> bool {
    view::in_block(model, block, "rewrite").next().is_some()
}

/// PHP without the name of the script.
pub(super) fn no_script(model: &Model) -> Vec<Finding> {
    let mut found = Vec::new();
    for pass in model.passes.iter().filter(|pass| pass.module == Module::Fastcgi) {
        let parameters = model.effective_of(pass, "param").map(|found| found.nodes).unwrap_or_default();
        let has = |wanted: &str| {
            parameters.iter().any(|node| model.config().arg(*node, 0).as_deref() == Some(wanted))
        };
        let is_php = model.location_of(pass).is_some_and(|location| location.contains("php"))
            || pass.authority.contains("php")
            || view::targets(model, pass).iter().any(|target| target.text.contains("php"));
        if has("SCRIPT_FILENAME") || !is_php {
            continue;
        }
        let mut one = Finding::problem(
            "php-without-script-filename",
            "php-fpm is not told which script to run: \"SCRIPT_FILENAME\" is not sent",
        )
        .likely("a FastCGI server that is not php-fpm")
        .breaks("php-fpm answers every request with an empty page, or with 404 File not found.")
        .at(view::pass_place(model, pass));
        if let Some(node) = parameters.first() {
            one = one.at(view::place(model, *node));
        }
        let outer = parameters.first().and_then(|first| model.config().parent(*first)).is_some_and(|own| {
            let outer = view::inherited(model, model.config().parent(own), "fastcgi_param");
            outer.iter().any(|node| model.config().arg(*node, 0).as_deref() == Some("SCRIPT_FILENAME"))
        });
        if outer {
            one = one.because(
                "inherited",
                "an outer block sets it, but fastcgi_param lines in this block drop those further out",
            );
        }
        found.push(one.fix("add `fastcgi_param SCRIPT_FILENAME $document_root$fastcgi_script_name;` (or include fastcgi.conf, which has it)"));
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::check::config::testing::{clean, one};

    fn at(location: &str, lines: &str) -> String {
        format!("http {{ server {{ location {location} {{ {lines} }} }} }}")
    }

    #[test]
    fn alias_and_slash() {
        one(alias_traversal, &at("/img", "alias /srv/www/img/;"));
        one(alias_traversal, &at("^~ /img", "alias /srv/www/img/;"));
        for (location, lines) in [
            ("/img/", "alias /srv/www/img/;"),
            ("/img", "alias /srv/www/img;"),
            ("= /img", "alias /srv/www/img/;"),
            ("~ ^/img(.*)$", "alias /srv/www/img/;"),
            ("/img", "root /srv/www/;"),
        ] {
            clean(alias_traversal, &at(location, lines));
        }
    }

    #[test]
    fn decoded_uris() {
        one(decoded_uri, &at("/", "proxy_pass http://127.0.0.1:1$uri$is_args$args;"));
        one(decoded_uri, &at("/", "return 301 https://$host$uri;"));
        for lines in [
            "proxy_pass http://127.0.0.1:1$request_uri;",
            "proxy_pass http://127.0.0.1:1;",
            "return 301 https://$host$request_uri;",
            "return 200 $uri;",
            "try_files $uri $uri/ /index.html;",
        ] {
            clean(decoded_uri, &at("/", lines));
        }
    }

    #[test]
    fn clients_choose() {
        one(anywhere, &at("/", "proxy_pass http://$arg_url;"));
        one(anywhere, &at("/", "proxy_pass http://$http_x_backend:8080/x;"));
        for lines in [
            "internal; proxy_pass http://$arg_url;",
            "proxy_pass http://$host;",
            "proxy_pass http://$arg_app.internal.example.com;",
            "proxy_pass http://127.0.0.1:1/$arg_x;",
            "proxy_pass http://app-$arg_color;",
        ] {
            clean(anywhere, &at("/", lines));
        }
    }

    #[test]
    fn slashes() {
        one(lost_slash, &at("/api/", "proxy_pass http://127.0.0.1:1/v1;"));
        for (location, lines) in [
            ("/api/", "proxy_pass http://127.0.0.1:1/v1/;"),
            ("/api/", "proxy_pass http://127.0.0.1:1/;"),
            ("/api/", "proxy_pass http://127.0.0.1:1;"),
            ("/api", "proxy_pass http://127.0.0.1:1/v1;"),
            ("= /api/", "proxy_pass http://127.0.0.1:1/v1;"),
            ("/api/", "proxy_pass http://127.0.0.1:1/get?path=;"),
            ("/api/", "rewrite ^/api/(.*) /v1/$1 break; proxy_pass http://127.0.0.1:1/x;"),
        ] {
            clean(lost_slash, &at(location, lines));
        }
    }

    #[test]
    fn scripts_have_names() {
        let found = one(
            no_script,
            &format!(
                "http {{ fastcgi_param SCRIPT_FILENAME $document_root$fastcgi_script_name; {}",
                at("~ \\.php$", "fastcgi_param A b; fastcgi_pass unix:/run/php/php-fpm.sock;")
                    .strip_prefix("http {")
                    .unwrap()
            ),
        );
        assert_eq!(found.evidence.len(), 1);
        one(no_script, &at("~ \\.php$", "fastcgi_pass 127.0.0.1:9000;"));
        clean(
            no_script,
            &at(
                "~ \\.php$",
                "fastcgi_param SCRIPT_FILENAME $document_root$fastcgi_script_name; fastcgi_pass 127.0.0.1:9000;",
            ),
        );
        clean(no_script, &at("/", "fastcgi_param A b; fastcgi_pass 127.0.0.1:9000;"));
    }
}
