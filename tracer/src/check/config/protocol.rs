//! The wrong protocol for a port: what the configuration alone says of it.

use std::net::IpAddr;

use super::{
    super::Finding,
    view::{self, Target},
};
use crate::{
    diagnose::Cause,
    nginx::{
        Model,
        model::{Layer, Module, Pass, Server},
        value::Address,
    },
};

/// TLS to a port that is plain HTTP's: mostly a `server` without a port, which is 80 whatever the scheme.
pub(super) fn tls_to_80(model: &Model) -> Vec<Finding> {
    let mut found = Vec::new();
    for pass in model.passes.iter().filter(|pass| pass.module != Module::Stream) {
        if !view::is_tls(model, pass) {
            continue;
        }
        for target in view::targets(model, pass).iter().filter(|target| target.port() == Some(80)) {
            if is_own(model, target) {
                continue;
            }
            let written = target.text.ends_with(":80");
            let summary = if written {
                format!("TLS is spoken to port 80: {} → {}", pass.url, target.text)
            } else {
                format!(
                    "TLS is spoken to port 80: \"{}\" has no port, and the default of an upstream's server is 80, \
                     whatever the scheme of the pass",
                    target.text
                )
            };
            let right = with_port(target.text, 443);
            found.push(
                Finding::problem("tls-to-port-80", summary)
                    .cause(Cause::TlsToPlainPort)
                    .likely("a server that speaks TLS on port 80")
                    .breaks("A plain-text server takes the handshake for a broken request: every request ends with 502.")
                    .at(target.place(model))
                    .at(view::pass_place(model, pass))
                    .fix(if target.in_block {
                        format!("name the TLS port: server {right};")
                    } else {
                        format!("name the TLS port ({right}), or use http:// if the server speaks plain HTTP there")
                    }),
            );
        }
    }
    found
}

/// Plain text to port 443.
pub(super) fn plain_to_443(model: &Model) -> Vec<Finding> {
    let mut found = Vec::new();
    for pass in &model.passes {
        let (scheme, right) = match (pass.module, pass.tls) {
            (Module::Proxy, Some(false)) => ("http://", "https://"),
            (Module::Grpc, Some(false)) => ("grpc://", "grpcs://"),
            _ => continue,
        };
        for target in view::targets(model, pass).iter().filter(|target| target.port() == Some(443)) {
            if is_own(model, target) {
                continue;
            }
            found.push(
                Finding::problem(
                    "plain-to-port-443",
                    format!("{scheme} is spoken to port 443: {} → {}", pass.url, target.text),
                )
                .cause(Cause::PlainToTlsPort)
                .likely("a server that speaks plain text on port 443")
                .breaks(
                    "A TLS server answers a plain request with 400, or with an alert, which becomes a 502: no request \
                     succeeds.",
                )
                .at(view::pass_place(model, pass))
                .at(target.place(model))
                .fix(format!("write {right} in the pass (and proxy_ssl_server_name on if it goes to a host name)")),
            );
        }
    }
    found
}

/// What speaks on a wire, as far as two cannot share a port.
fn language(module: Module) -> Option<&'static str> {
    match module {
        // HTTP/1 and HTTP/2 can share one.
        Module::Proxy | Module::Grpc => Some("HTTP"),
        Module::Fastcgi => Some("FastCGI"),
        Module::Uwsgi => Some("uwsgi"),
        Module::Scgi => Some("SCGI"),
        Module::Memcached => Some("memcached"),
        Module::Stream => None,
    }
}

/// One address, two protocols.
pub(super) fn two_languages(model: &Model) -> Vec<Finding> {
    let mut seen: Vec<(&Address, &'static str, Target<'_>, &Pass)> = Vec::new();
    let mut found = Vec::new();
    for pass in &model.passes {
        let Some(spoken) = language(pass.module) else { continue };
        for target in view::targets(model, pass) {
            if matches!(target.address, Address::Name { port: None, .. } | Address::Ip { port: None, .. }) {
                continue;
            }
            let Some((_, other, _, first)) = seen.iter().find(|(known, ..)| *known == target.address) else {
                seen.push((target.address, spoken, target, pass));
                continue;
            };
            if *other == spoken {
                continue;
            }
            found.push(
                Finding::problem(
                    "two-protocols-on-one-port",
                    format!("{} is spoken to as {other} and as {spoken}", target.text),
                )
                .cause(Cause::InvalidResponse)
                .likely("a server that tells the two apart by their first bytes")
                .breaks("A server understands one of them: the requests of the other pass end with 502, or hang until 504.")
                .at(view::pass_place(model, pass))
                .at(view::pass_place(model, first))
                .fix(format!("let both passes speak what listens on {}, or give one of them its own port", target.text)),
            );
        }
    }
    found
}

/// Whether a `listen` address takes connections to this loopback or own address.
fn serves(listen: &str, ip: IpAddr, port: u16) -> bool {
    let bare = |text: &str| -> Option<(Option<IpAddr>, u16)> {
        if let Ok(port) = text.parse::<u16>() {
            return Some((None, port));
        }
        let (host, port) = match text.rsplit_once(':') {
            Some((host, port)) if !port.ends_with(']') => (host, port.parse().ok()?),
            _ => (text, 80),
        };
        if host == "*" {
            return Some((None, port));
        }
        let ip: IpAddr = host.trim_start_matches('[').trim_end_matches(']').parse().ok()?;
        Some((Some(ip), port))
    };
    match bare(listen) {
        Some((address, its)) if its == port => {
            address.is_none_or(|own| own == ip || own.is_unspecified() && own.is_ipv4() == ip.is_ipv4())
                && (address.is_some() || ip.is_ipv4())
        }
        _ => false,
    }
}

/// Whether a `listen` is for one address rather than for all of its port.
fn names_one_address(listen: &str) -> bool {
    let host = listen.rsplit_once(':').map_or(listen, |(host, _)| host);
    let ip: Option<IpAddr> = host.trim_start_matches('[').trim_end_matches(']').parse().ok();
    ip.is_some_and(|ip| !ip.is_unspecified())
}

/// Whether a loopback address is one of this nginx's own ports: [`own_port`] knows what they speak.
fn is_own(model: &Model, target: &Target<'_>) -> bool {
    let Address::Ip { ip, port: Some(port) } = target.address else { return false };
    let listens =
        model.servers.iter().filter(|server| server.layer == Layer::Http).flat_map(|server| &server.listens);
    ip.is_loopback() && listens.filter(|listen| !listen.udp).any(|listen| serves(&listen.address, *ip, *port))
}

/// A pass to a port of this same nginx, in another language than that port has.
pub(super) fn own_port(model: &Model) -> Vec<Finding> {
    let mut found = Vec::new();
    for pass in model.passes.iter().filter(|pass| pass.module != Module::Stream) {
        for target in view::targets(model, pass) {
            let Address::Ip { ip, port: Some(port) } = target.address else { continue };
            if !ip.is_loopback() {
                continue;
            }
            let own: Vec<(&Server, &crate::nginx::model::Listen)> = model
                .servers
                .iter()
                .filter(|server| server.layer == Layer::Http)
                .flat_map(|server| server.listens.iter().map(move |listen| (server, listen)))
                .filter(|(_, listen)| !listen.udp && serves(&listen.address, *ip, *port))
                .collect();
            // A socket of its own takes what comes to its address; the one of all addresses does not see it.
            let exact = own.iter().any(|(_, listen)| names_one_address(&listen.address));
            let own: Vec<_> =
                own.into_iter().filter(|(_, listen)| !exact || names_one_address(&listen.address)).collect();
            let Some((server, _)) = own.first() else { continue };
            let flag =
                |name: &str| own.iter().any(|(_, listen)| listen.parameters.iter().any(|one| one == name));
            // Each `listen` is for itself: `listen 80; listen 443 ssl;` is plain text on the first. `ssl on` (until nginx 1.25.1)
            // is for all of its server.
            let ssl_on = |server: &Server| {
                let on = view::inherited(model, Some(server.node), "ssl");
                on.iter().any(|node| model.config().arg(*node, 0).as_deref() == Some("on"))
            };
            let tls = flag("ssl") || own.iter().any(|(server, _)| ssl_on(server));
            let (summary, cause) = match pass.module {
                Module::Proxy if flag("proxy_protocol") => (
                    format!(
                        "{} is a port of this nginx that expects the PROXY protocol, which proxy_pass does not speak",
                        target.text
                    ),
                    Cause::UpstreamClosedEarly,
                ),
                Module::Proxy | Module::Grpc if pass.tls == Some(true) && !tls => (
                    format!("TLS is spoken to {}, which is a plain port of this same nginx", target.text),
                    Cause::TlsToPlainPort,
                ),
                Module::Proxy | Module::Grpc if pass.tls == Some(false) && tls => (
                    format!(
                        "plain text is spoken to {}, which is a TLS port of this same nginx",
                        target.text
                    ),
                    Cause::PlainToTlsPort,
                ),
                Module::Proxy | Module::Grpc => continue,
                Module::Fastcgi | Module::Uwsgi | Module::Scgi | Module::Memcached => (
                    format!(
                        "{} is spoken to {}, which is an HTTP port of this same nginx",
                        language(pass.module).unwrap_or_default(),
                        target.text
                    ),
                    Cause::InvalidResponse,
                ),
                Module::Stream => continue,
            };
            let listen = view::in_block(model, server.node, "listen").find(|node| {
                let is_it =
                    |address: &String| serves(address, *ip, *port) && (!exact || names_one_address(address));
                model.config().arg(*node, 0).as_ref().is_some_and(is_it)
            });
            let mut one = Finding::problem("own-port-speaks-another-protocol", summary)
                .cause(cause)
                .likely("another process that listens on that very address")
                .breaks("Every request of this pass fails.")
                .at(view::pass_place(model, pass));
            if let Some(listen) = listen {
                one = one.at(super::super::Place::of(model, "listen", listen));
            }
            found.push(
                one.fix("point the pass at the server that it was meant for, or speak what the port speaks"),
            );
        }
    }
    found
}

/// gRPC needs HTTP/2 from its clients as well.
pub(super) fn grpc_without_http2(model: &Model) -> Vec<Finding> {
    let mut found = Vec::new();
    let listens = |server: &Server| -> Vec<String> {
        if server.listens.is_empty() {
            return vec!["80".to_owned()];
        }
        server.listens.iter().map(|listen| listen.address.clone()).collect()
    };
    for pass in model.passes.iter().filter(|pass| pass.module == Module::Grpc) {
        let Some(server) = model.server_of(pass) else { continue };
        let on = view::inherited(model, Some(server.node), "http2");
        if on.iter().any(|node| model.config().arg(*node, 0).as_deref() == Some("on")) {
            continue;
        }
        let own = listens(server);
        // The flag belongs to the address, whichever server sets it; and `http2 on` of another server there counts.
        let shared = model.servers.iter().filter(|other| listens(other).iter().any(|one| own.contains(one)));
        let mut shared = shared;
        let any = shared.any(|other| {
            other
                .listens
                .iter()
                .any(|one| one.parameters.iter().any(|flag| flag == "http2" || flag == "quic"))
                || view::in_block(model, other.node, "http2").next().is_some()
        });
        if any {
            continue;
        }
        found.push(
            Finding::warning("grpc-without-http2", "a server with grpc_pass does not take HTTP/2 from its clients")
                .breaks("gRPC clients speak HTTP/2 alone: none of them can use this pass; only HTTP/1 clients come through.")
                .at(view::pass_place(model, pass))
                .at(super::super::Place::of(model, "server", server.node))
                .fix("add `http2 on;` to the server (before nginx 1.25.1: `http2` to its listen lines)"),
        );
    }
    found
}

/// `host:80` or `host` with another port.
fn with_port(text: &str, port: u16) -> String {
    format!("{}:{port}", text.strip_suffix(":80").unwrap_or(text))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::check::config::testing::{clean, one};

    #[test]
    fn a_server_without_port_is_80_even_for_https() {
        let found = one(
            tls_to_80,
            "http { upstream b { server api.example.com; } server { location / { proxy_pass https://b; } } }",
        );
        assert!(
            found.summary.contains("api.example.com") && found.fix[0].text.contains("api.example.com:443")
        );
        assert_eq!(found.at[0].role, "server");
        one(tls_to_80, "http { server { location / { proxy_pass https://10.0.0.1:80; } } }");
        one(
            tls_to_80,
            "http { upstream b { server 10.0.0.1; } server { location / { grpc_pass grpcs://b; } } }",
        );
        clean(
            tls_to_80,
            "http { upstream b { server api.example.com:443; server 10.0.0.1 down; } server { location / { proxy_pass https://b; } } }",
        );
        // A pass without an upstream block takes the scheme's port.
        clean(tls_to_80, "http { server { location / { proxy_pass https://api.example.com; } } }");
        clean(
            tls_to_80,
            "http { upstream b { server 10.0.0.1; } server { location / { proxy_pass http://b; } } }",
        );
        clean(
            tls_to_80,
            "http { upstream b { server unix:/run/b; } server { location / { proxy_pass https://b; } } }",
        );
    }

    #[test]
    fn plain_text_to_443() {
        one(plain_to_443, "http { server { location / { proxy_pass http://10.0.0.1:443; } } }");
        one(
            plain_to_443,
            "http { upstream b { server 10.0.0.1:443; } server { location / { proxy_pass http://b; } } }",
        );
        clean(
            plain_to_443,
            "http { upstream b { server 10.0.0.1:443; } server { location / { proxy_pass https://b; } } }",
        );
        clean(plain_to_443, "http { server { location / { proxy_pass http://10.0.0.1:8443; } } }");
        clean(plain_to_443, "http { server { listen 443; location / { proxy_pass http://10.0.0.1:80; } } }");
        clean(plain_to_443, "stream { server { listen 1; proxy_pass 10.0.0.1:443; } }");
        // What this nginx listens on is known.
        clean(
            plain_to_443,
            "http { server { listen 443; location / { proxy_pass http://127.0.0.1:443; } } }",
        );
        // A scheme that a variable gives is not known.
        clean(plain_to_443, "http { server { location / { proxy_pass $scheme://10.0.0.1:443; } } }");
    }

    #[test]
    fn one_port_two_languages() {
        one(
            two_languages,
            "http { server { location / { proxy_pass http://127.0.0.1:9000; } location /p { fastcgi_pass 127.0.0.1:9000; } } }",
        );
        one(
            two_languages,
            "http { upstream p { server unix:/run/php.sock; } server { location / { proxy_pass http://unix:/run/php.sock; } location /p { fastcgi_pass p; } } }",
        );
        clean(
            two_languages,
            "http { server { location / { proxy_pass http://127.0.0.1:9000; } location /p { grpc_pass 127.0.0.1:9000; } } }",
        );
        clean(
            two_languages,
            "http { server { location / { proxy_pass http://127.0.0.1:9000; } location /p { fastcgi_pass 127.0.0.1:9001; } } }",
        );
        clean(
            two_languages,
            "http { server { location / { fastcgi_pass 127.0.0.1:9000; } location /p { fastcgi_pass 127.0.0.1:9000; } } }",
        );
    }

    #[test]
    fn own_ports_speak_what_their_listen_says() {
        let at = |listen: &str, pass: &str| {
            format!(
                "http {{ server {{ listen {listen}; location /x {{ return 204; }} }} server {{ listen 81; location / {{ {pass}; }} }} }}"
            )
        };
        one(own_port, &at("443 ssl", "proxy_pass http://127.0.0.1:443"));
        one(own_port, &at("8080", "proxy_pass https://127.0.0.1:8080"));
        one(own_port, &at("127.0.0.1:8080", "fastcgi_pass 127.0.0.1:8080"));
        one(own_port, &at("127.0.0.1:8080 proxy_protocol", "proxy_pass http://127.0.0.1:8080"));
        clean(own_port, &at("8080", "proxy_pass http://127.0.0.1:8080"));
        // Another port of the same server speaks TLS.
        clean(own_port, &at("8081; listen 8082 ssl", "proxy_pass http://127.0.0.1:8081"));
        one(own_port, &at("8081; listen 8082 ssl", "proxy_pass http://127.0.0.1:8082"));
        one(own_port, &at("8081; listen 8082 ssl", "proxy_pass https://127.0.0.1:8081"));
        clean(own_port, &at("8081 ssl; listen 127.0.0.1:8081", "proxy_pass http://127.0.0.1:8081"));
        one(own_port, &at("8081; listen 127.0.0.1:8081 ssl", "proxy_pass http://127.0.0.1:8081"));
        one(own_port, &at("8081; ssl on", "proxy_pass http://127.0.0.1:8081"));
        clean(own_port, &at("443 ssl", "proxy_pass https://127.0.0.1:443"));
        clean(own_port, &at("10.0.0.1:8080", "fastcgi_pass 127.0.0.1:8080"));
        clean(own_port, &at("8080", "fastcgi_pass 10.0.0.1:8080"));
        clean(own_port, &at("[::]:8080", "fastcgi_pass 127.0.0.1:8080"));
    }

    #[test]
    fn grpc_wants_http2_from_clients() {
        one(grpc_without_http2, "http { server { listen 80; location / { grpc_pass 127.0.0.1:5; } } }");
        clean(
            grpc_without_http2,
            "http { server { listen 80 http2; location / { grpc_pass 127.0.0.1:5; } } }",
        );
        clean(
            grpc_without_http2,
            "http { server { listen 80; http2 on; location / { grpc_pass 127.0.0.1:5; } } }",
        );
        clean(
            grpc_without_http2,
            "http { http2 on; server { listen 80; location / { grpc_pass 127.0.0.1:5; } } }",
        );
        clean(
            grpc_without_http2,
            "http { server { listen 80 http2; } server { listen 80; server_name a; location / { grpc_pass 127.0.0.1:5; } } }",
        );
        clean(
            grpc_without_http2,
            "http { server { listen 80; location / { proxy_pass http://127.0.0.1:5; } } }",
        );
    }
}
