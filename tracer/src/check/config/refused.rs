//! What nginx itself refuses, beyond syntax: a running nginx cannot have it, but the file that it will read next can.

use super::{
    super::{Finding, Place},
    view,
};
use crate::nginx::{
    Model, Version,
    model::{Module, Pass},
    tree::NodeId,
    value::{self, Address},
};

fn refused(model: &Model, node: NodeId, message: impl Into<String>) -> Finding {
    Finding::problem("nginx-refuses", message)
        .breaks("nginx -t fails: a reload is refused and the old configuration stays; a restart leaves no nginx running.")
        .at(Place::of(model, "directive", node))
}

/// Sizes of buffers that do not fit each other (`ngx_http_upstream` and the merge functions of its modules).
pub(super) fn buffers(model: &Model) -> Vec<Finding> {
    let mut found = Vec::new();
    for pass in &model.passes {
        if matches!(pass.module, Module::Proxy | Module::Fastcgi | Module::Uwsgi | Module::Scgi) {
            found.extend(buffers_of(model, pass));
        }
    }
    found
}

fn buffers_of(model: &Model, pass: &Pass) -> Option<Finding> {
    let prefix = pass.module.prefix();
    let size = |name: &str| value::bytes(&view::value(model, pass, name)?);
    let many = view::value(model, pass, "buffers")?;
    let (number, each) = many.split_once(' ')?;
    let (number, each): (u64, u64) = (number.parse().ok()?, value::bytes(each)?);
    let first = size("buffer_size")?;
    let busy = size("busy_buffers_size")?;
    let largest = first.max(each);
    let line = |names: &[&str]| names.iter().find_map(|name| view::set_at(model, pass, name));
    let temporary = size("max_temp_file_size");
    let (message, fix, node) = if number < 2 {
        (
            format!("there must be at least 2 \"{prefix}buffers\""),
            format!("{prefix}buffers 8 {}", shown(each)),
            line(&["buffers"])?,
        )
    } else if busy < largest {
        (
            format!(
                "\"{prefix}busy_buffers_size\" ({}) is smaller than the largest of {prefix}buffer_size and one of {prefix}buffers \
                 ({})",
                shown(busy),
                shown(largest)
            ),
            format!("{prefix}busy_buffers_size {}", shown(2 * largest)),
            line(&["busy_buffers_size", "buffer_size", "buffers"])?,
        )
    } else if busy > number.saturating_sub(1).saturating_mul(each) {
        (
            format!(
                "\"{prefix}busy_buffers_size\" ({}{}) is larger than all {prefix}buffers without one ({} of {})",
                shown(busy),
                if line(&["busy_buffers_size"]).is_some() {
                    ""
                } else {
                    ", twice the largest buffer by default"
                },
                number - 1,
                shown(each)
            ),
            format!("{prefix}buffers {} {}", 4.max(number), shown(largest.max(each))),
            line(&["busy_buffers_size", "buffer_size", "buffers"])?,
        )
    } else if temporary.is_some_and(|most| most > 0 && most < largest) {
        (
            format!(
                "\"{prefix}max_temp_file_size\" is neither 0 nor as large as one buffer ({})",
                shown(largest)
            ),
            format!("{prefix}max_temp_file_size 0"),
            line(&["max_temp_file_size"])?,
        )
    } else {
        return None;
    };
    Some(refused(model, node, message).at(view::pass_place(model, pass)).fix(format!("for example: {fix};")))
}

fn shown(bytes: u64) -> String {
    crate::nginx::directives::size(bytes)
}

/// `upstream` blocks.
pub(super) fn upstreams(model: &Model) -> Vec<Finding> {
    let mut found = Vec::new();
    for (index, upstream) in model.upstreams.iter().enumerate() {
        let name = &upstream.name;
        let block = upstream.node;
        let same = |other: &&crate::nginx::model::Upstream| {
            other.layer == upstream.layer && other.name.eq_ignore_ascii_case(name)
        };
        if model.upstreams.iter().take(index).any(|other| same(&other)) {
            found.push(
                refused(model, block, format!("duplicate upstream \"{name}\""))
                    .fix("rename or remove one of the two"),
            );
        }
        if upstream.balancer.is_some() {
            continue;
        }
        let method = upstream.method.map(|node| (node, model.config().name(node).into_owned()));
        let known = method.as_ref().is_none_or(|(_, name)| {
            [&b"least_conn"[..], b"ip_hash", b"hash", b"random"].contains(&name.as_slice())
        });
        // A file can hold what is not shown here: `include` of a missing pattern, templates of other programs.
        if upstream.servers.is_empty() && view::in_block(model, block, "zone").next().is_none() && known {
            found.push(
                refused(model, block, format!("no servers are inside upstream \"{name}\""))
                    .fix("add a server line"),
            );
        } else if !upstream.servers.is_empty() && upstream.servers.iter().all(|server| server.backup) {
            found.push(
                refused(model, block, format!("every server of upstream \"{name}\" is \"backup\""))
                    .fix("remove backup from one of them"),
            );
        }
        for server in &upstream.servers {
            for parameter in server
                .parameters
                .iter()
                .filter(|one| ["ssl", "tls", "https", "http2"].contains(&one.as_str()))
            {
                found.push(
                    refused(model, server.node, format!("a server has no parameter \"{parameter}\""))
                        .fix("say it in the pass: proxy_pass https://…, with proxy_ssl_server_name on"),
                );
            }
            let ahead = method.as_ref().filter(|(node, name)| {
                *node < server.node && [&b"ip_hash"[..], b"hash", b"random"].contains(&name.as_slice())
            });
            if let Some((node, name)) = ahead.filter(|_| server.backup) {
                found.push(
                    refused(
                        model,
                        server.node,
                        format!("\"backup\" does not go with {}", String::from_utf8_lossy(name)),
                    )
                    .at(Place::of(model, "directive", *node))
                    .fix("remove backup, or choose by least_conn"),
                );
            }
        }
    }
    found
}

/// Passes whose address, URI or certificates nginx refuses.
pub(super) fn passes(model: &Model) -> Vec<Finding> {
    let mut found = Vec::new();
    for pass in &model.passes {
        if let Address::Name { host, explicit_port: true, port: Some(port) } = &pass.target
            && let Some(upstream) = model
                .upstreams
                .iter()
                .find(|one| one.layer == pass.module.layer() && one.name.eq_ignore_ascii_case(host))
        {
            found.push(
                refused(model, pass.node, format!("upstream \"{host}\" may not have port {port}"))
                    .at(Place::of(model, "upstream", upstream.node))
                    .fix(format!("drop :{port} here; ports stand at the servers of the upstream")),
            );
        }
        if let Some(uri) = uri(pass).filter(|_| pass.module == Module::Proxy && !pass.variables)
            && let Some((block, what)) = no_uri_in(model, pass)
        {
            found.push(
                refused(
                    model,
                    pass.node,
                    format!("proxy_pass cannot have the URI part \"{uri}\" inside {what}"),
                )
                .at(Place::of(model, "location", block))
                .fix("drop the URI part, or change the URI with `rewrite … break;` before the pass"),
            );
        }
        if view::is_tls(model, pass)
            && view::is_on(model, pass, "ssl_verify")
            && view::set_at(model, pass, "ssl_trusted_certificate").is_none()
            && let Some(verify) = view::set_at(model, pass, "ssl_verify")
        {
            let prefix = pass.module.prefix();
            found.push(
                refused(model, verify, format!("no {prefix}ssl_trusted_certificate for \"{prefix}ssl_verify\""))
                    .at(view::pass_place(model, pass))
                    .fix(format!("add `{prefix}ssl_trusted_certificate FILE;`, on Debian /etc/ssl/certs/ca-certificates.crt")),
            );
        }
    }
    found
}

/// What follows host and port in a pass.
fn uri(pass: &Pass) -> Option<&str> {
    let at = pass.url.find(&pass.authority)? + pass.authority.len();
    let rest = pass.url.get(at..)?;
    // `http://unix:/run/x:/uri`
    let rest = rest.strip_prefix(':').unwrap_or(rest);
    (!rest.is_empty()).then_some(rest)
}

/// The block around a pass that allows no URI in it.
fn no_uri_in(model: &Model, pass: &Pass) -> Option<(NodeId, &'static str)> {
    for block in view::around(model, pass.node) {
        if view::is_block(model, block, "if") {
            return Some((block, "\"if\""));
        }
        if view::is_block(model, block, "limit_except") {
            return Some((block, "\"limit_except\""));
        }
        if view::is_block(model, block, "location") {
            return match view::location(model, block).0.as_str() {
                "~" | "~*" => Some((block, "a location given by a regular expression")),
                "@" => Some((block, "a named location")),
                _ => None,
            };
        }
    }
    None
}

/// `http2 on` and the like came with a version: what the installed one does not know, it refuses.
pub(super) fn versions(model: &Model) -> Vec<Finding> {
    const SINCE: [(&str, Version); 3] = [
        ("http2", Version(1, 25, 1)),
        ("add_header_inherit", Version(1, 29, 3)),
        ("proxy_next_upstream_tries", Version(1, 7, 5)),
    ];
    let Some(version) = model.platform.version else { return Vec::new() };
    let mut found = Vec::new();
    for (name, since) in SINCE.into_iter().filter(|(_, since)| version < *since) {
        for node in view::all(model, name) {
            found.push(
                refused(
                    model,
                    node,
                    format!("unknown directive \"{name}\": it came with nginx {since}, this is {version}"),
                )
                .fix(if name == "http2" {
                    "write http2 as a parameter of listen instead".to_owned()
                } else {
                    format!("remove the line, or run nginx {since} or newer")
                }),
            );
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::check::config::testing::{clean, one};

    fn at(lines: &str) -> String {
        format!("http {{ upstream app {{ server 127.0.0.1:1; }} server {{ location / {{ {lines} }} }} }}")
    }

    /// Each text here was given to `nginx -t` (1.22.1) as well: see tests/cli/check.rs.
    #[test]
    fn buffers_must_fit() {
        for lines in [
            "proxy_buffer_size 128k; proxy_pass http://app;",
            "proxy_buffers 1 4k; proxy_pass http://app;",
            "proxy_busy_buffers_size 2k; proxy_pass http://app;",
            "proxy_max_temp_file_size 2k; proxy_pass http://app;",
            "fastcgi_buffer_size 64k; fastcgi_pass app;",
        ] {
            one(buffers, &at(lines));
        }
        for lines in [
            "proxy_buffer_size 128k; proxy_buffers 4 256k; proxy_busy_buffers_size 256k; proxy_pass http://app;",
            "proxy_buffer_size 8k; proxy_pass http://app;",
            "fastcgi_buffer_size 32k; fastcgi_buffers 8 16k; proxy_buffer_size 128k; fastcgi_pass app;",
            "proxy_max_temp_file_size 0; proxy_pass http://app;",
            "grpc_buffer_size 128k; grpc_pass app;",
            "proxy_pass http://app;",
        ] {
            clean(buffers, &at(lines));
        }
    }

    #[test]
    fn upstream_blocks() {
        for block in [
            "upstream b { }",
            "upstream b { server 127.0.0.1:1 backup; }",
            "upstream b { server 127.0.0.1:1; } upstream B { server 127.0.0.1:1; }",
            "upstream b { server 127.0.0.1:1 ssl; }",
            "upstream b { ip_hash; server 127.0.0.1:1 backup; server 127.0.0.1:2; }",
        ] {
            one(upstreams, &format!("http {{ {block} }}"));
        }
        for block in [
            "upstream b { server 127.0.0.1:1; server 127.0.0.1:2 backup; }",
            "upstream b { server 127.0.0.1:1 backup; server 127.0.0.1:2; ip_hash; }",
            "upstream b { least_conn; server 127.0.0.1:1 backup; server 127.0.0.1:2; }",
            "upstream b { balancer_by_lua_block { x() } }",
            "upstream b { zone b 64k; }",
        ] {
            clean(upstreams, &format!("http {{ {block} }}"));
        }
        clean(
            upstreams,
            "http { upstream b { server 127.0.0.1:1; } } stream { upstream b { server 127.0.0.1:1; } }",
        );
    }

    #[test]
    fn passes_with_uris_ports_and_certificates() {
        for lines in [
            "proxy_pass http://app:80;",
            "if ($uri) { proxy_pass http://app/; }",
            "proxy_ssl_verify on; proxy_pass https://app;",
        ] {
            one(passes, &at(lines));
        }
        one(passes, "http { server { location ~ x { proxy_pass http://127.0.0.1:1/y; } } }");
        one(passes, "http { server { location @x { proxy_pass http://unix:/run/a:/y; } } }");
        for lines in [
            "proxy_pass http://app/;",
            "if ($uri) { proxy_pass http://app; }",
            "proxy_ssl_verify on; proxy_pass http://app;",
            "proxy_ssl_verify on; proxy_ssl_trusted_certificate /a; proxy_pass https://app;",
            "proxy_pass http://other:80;",
        ] {
            clean(passes, &at(lines));
        }
        clean(
            passes,
            "http { server { location ~ x { proxy_pass http://127.0.0.1:1$uri; } location @y { proxy_pass http://unix:/run/a; } } }",
        );
    }

    #[test]
    fn directives_of_later_versions() {
        one(versions, "http { server { http2 on; } }");
        clean(versions, "http { server { listen 80 http2; } }");
    }
}
