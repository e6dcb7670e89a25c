//! Kept connections to upstream servers that are not kept after all.

use super::{
    super::{Finding, Place},
    view,
};
use crate::{
    diagnose::Cause,
    nginx::{
        Model, Version,
        model::{Layer, Module, Pass, Upstream},
        tree::NodeId,
    },
};

/// Since this version HTTP/1.1 and a kept connection are the default, and `keepalive` may stand before the method.
const BY_DEFAULT: Version = Version(1, 29, 7);

/// The `keepalive` of an `upstream`, if one is written that keeps any.
fn keeps(model: &Model, upstream: &Upstream) -> Option<NodeId> {
    let node = view::in_block(model, upstream.node, "keepalive").next()?;
    let number = model.config().arg(node, 0)?;
    number.parse::<u64>().is_ok_and(|number| number > 0).then_some(node)
}

/// Why a pass keeps no connection: what to add, and the line in the way.
fn in_the_way(model: &Model, pass: &Pass) -> Option<(Vec<&'static str>, Vec<Place>)> {
    let (mut add, mut lines) = (Vec::new(), Vec::new());
    match pass.module {
        Module::Proxy => {
            let version = model.effective_of(pass, "http_version")?;
            if version.value.as_deref()? == "1.0" {
                add.push("proxy_http_version 1.1;");
                lines.push(match version.node() {
                    Some(node) => view::place(model, node),
                    None => Place::default_of(format!(
                        "proxy_http_version 1.0 ({})",
                        version.origin.unwrap_or_default()
                    )),
                });
            }
            let headers = view::headers(model, pass);
            match view::find(&headers, "Connection") {
                Some(header) if header.value.eq_ignore_ascii_case("close") => {
                    add.push("proxy_set_header Connection \"\";");
                    lines.push(view::place(model, header.node));
                }
                None if model.platform.version? < BY_DEFAULT => {
                    add.push("proxy_set_header Connection \"\";");
                    lines.push(Place::default_of(format!(
                        "proxy_set_header Connection close ({})",
                        model.platform.origin()
                    )));
                }
                _ => {}
            }
        }
        Module::Fastcgi => {
            let keep = model.effective_of(pass, "keep_conn")?;
            if keep.value.as_deref()? == "off" {
                add.push("fastcgi_keep_conn on;");
                lines.push(match keep.node() {
                    Some(node) => view::place(model, node),
                    None => Place::default_of(format!(
                        "fastcgi_keep_conn off ({})",
                        keep.origin.unwrap_or_default()
                    )),
                });
            }
        }
        // gRPC and memcached keep them by themselves; the others never do.
        Module::Grpc | Module::Memcached | Module::Uwsgi | Module::Scgi | Module::Stream => {}
    }
    (!add.is_empty()).then_some((add, lines))
}

/// `keepalive` is there, and the passes close each connection.
pub(super) fn without_effect(model: &Model) -> Vec<Finding> {
    let mut found = Vec::new();
    for pass in &model.passes {
        let Some(upstream) = pass.upstream.and_then(|index| model.upstreams.get(index)) else { continue };
        let Some(keepalive) = keeps(model, upstream) else { continue };
        let Some((add, lines)) = in_the_way(model, pass) else { continue };
        // A WebSocket's location keeps nothing anyway.
        if view::find(&view::headers(model, pass), "Upgrade").is_some() {
            continue;
        }
        let mut one = Finding::warning(
            "keepalive-without-effect",
            format!("{} of upstream {} keeps no connection", model.config().text(keepalive).trim_end_matches(';'), upstream.name),
        )
        .cause(Cause::LocalPortExhausted)
        .breaks(
            "Every request opens a connection of its own: under load the local ports run out (502), and each request pays \
             a handshake.",
        )
        .at(Place::of(model, "directive", keepalive))
        .at(view::pass_place(model, pass));
        one = lines.into_iter().fold(one, Finding::at);
        found.push(one.fix(format!("add to the block of the pass: {}", add.join(" "))));
    }
    found
}

/// Methods take the place of what `keepalive` had put there.
pub(super) fn before_method(model: &Model) -> Vec<Finding> {
    let mut found = Vec::new();
    if model.platform.version.is_none_or(|version| version >= BY_DEFAULT) {
        return found;
    }
    for upstream in model.upstreams.iter().filter(|upstream| upstream.layer == Layer::Http) {
        let (Some(keepalive), Some(method)) = (keeps(model, upstream), upstream.method) else { continue };
        if keepalive > method {
            continue;
        }
        let name = String::from_utf8_lossy(&model.config().name(method)).into_owned();
        found.push(
            Finding::warning(
                "keepalive-before-method",
                format!("\"keepalive\" stands before \"{name}\" in upstream {}, which undoes it", upstream.name),
            )
            .cause(Cause::LocalPortExhausted)
            .breaks(
                "No connection is kept: every request opens one, and under load the local ports run out (502). nginx -t \
                 only warns: load balancing method redefined.",
            )
            .at(Place::of(model, "directive", keepalive))
            .at(Place::of(model, "directive", method))
            .fix(format!("move the keepalive line behind {name}")),
        );
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::check::config::testing::{clean, clean_in, one, one_in};

    fn at(upstream: &str, lines: &str) -> String {
        format!("http {{ upstream app {{ {upstream} }} server {{ location / {{ {lines} }} }} }}")
    }

    #[test]
    fn keepalive_needs_http11_and_no_connection_header() {
        let kept = "server 127.0.0.1:3000; keepalive 16;";
        let found = one(without_effect, &at(kept, "proxy_pass http://app;"));
        assert!(
            found.fix[0].text.contains("proxy_http_version 1.1;")
                && found.fix[0].text.contains("Connection \"\"")
        );
        one(without_effect, &at(kept, "proxy_http_version 1.1; proxy_pass http://app;"));
        one(
            without_effect,
            &at(kept, "proxy_http_version 1.1; proxy_set_header Connection close; proxy_pass http://app;"),
        );
        one(without_effect, &at(kept, "proxy_set_header Connection \"\"; proxy_pass http://app;"));
        one(without_effect, &at(kept, "fastcgi_pass app;"));
        one_in(
            without_effect,
            &at(kept, "proxy_http_version 1.0; proxy_pass http://app;"),
            Version(1, 29, 7),
        );
        for (upstream, lines) in [
            (kept, "proxy_http_version 1.1; proxy_set_header Connection \"\"; proxy_pass http://app;"),
            (kept, "proxy_http_version 1.1; proxy_set_header Connection $up; proxy_pass http://app;"),
            (kept, "fastcgi_keep_conn on; fastcgi_pass app;"),
            (kept, "grpc_pass app;"),
            (kept, "uwsgi_pass app;"),
            ("server 127.0.0.1:3000;", "proxy_pass http://app;"),
            ("server 127.0.0.1:3000; keepalive 0;", "proxy_pass http://app;"),
        ] {
            clean(without_effect, &at(upstream, lines));
        }
        clean_in(without_effect, &at(kept, "proxy_pass http://app;"), Version(1, 29, 7));
    }

    #[test]
    fn methods_come_first() {
        one(before_method, &at("keepalive 8; least_conn; server 127.0.0.1:1;", "proxy_pass http://app;"));
        clean(before_method, &at("least_conn; server 127.0.0.1:1; keepalive 8;", "proxy_pass http://app;"));
        clean(before_method, &at("keepalive 8; server 127.0.0.1:1;", "proxy_pass http://app;"));
        clean_in(before_method, &at("keepalive 8; least_conn; server 127.0.0.1:1;", ""), Version(1, 29, 7));
    }
}
