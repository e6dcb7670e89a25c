//! TLS towards upstream servers.

use super::{
    super::{Finding, Place},
    view,
};
use crate::{
    diagnose::Cause,
    nginx::{
        Model,
        model::{Module, Pass},
        value::Address,
    },
};

fn tls_passes(model: &Model) -> impl Iterator<Item = &Pass> {
    model.passes.iter().filter(|pass| view::is_tls(model, pass))
}

/// No server name is sent to a host that is known by a name.
pub(super) fn no_server_name(model: &Model) -> Vec<Finding> {
    let mut found = Vec::new();
    for pass in tls_passes(model) {
        if view::value(model, pass, "ssl_server_name").as_deref() != Some("off") {
            continue;
        }
        let targets = view::targets(model, pass);
        let Some(target) = targets.iter().find(|target| target.host().is_some_and(view::is_dotted)) else {
            continue;
        };
        let host = target.host().unwrap_or_default();
        let prefix = pass.module.prefix();
        let line = match view::set_at(model, pass, "ssl_server_name") {
            Some(node) => view::place(model, node),
            None => Place::default_of(format!("{prefix}ssl_server_name off ({})", model.platform.origin())),
        };
        let mut one = Finding::warning("tls-without-server-name", format!("no server name (SNI) is sent to {host}"))
            .cause(Cause::TlsHandshakeFailed)
            .likely("a server that has one certificate for all names")
            .breaks(
                "A server that chooses its certificate by name (every CDN, cloud load balancer and ingress does) ends the \
                 handshake or shows another site's certificate: 502.",
            )
            .at(target.place(model))
            .at(view::pass_place(model, pass))
            .at(line)
            .fix(format!("add `{prefix}ssl_server_name on;`"));
        if target.in_block {
            one = one.fix(format!("and `{prefix}ssl_name {host};`: else the upstream block's name is sent"));
        }
        found.push(one);
    }
    found
}

/// The name that a certificate is held against, where no certificate can have it.
pub(super) fn name_to_verify(model: &Model) -> Vec<Finding> {
    let mut found = Vec::new();
    for pass in tls_passes(model) {
        let Some(verify) = view::set_at(model, pass, "ssl_verify") else { continue };
        if !view::is_on(model, pass, "ssl_verify") || view::set_at(model, pass, "ssl_name").is_some() {
            continue;
        }
        let block = pass.upstream.and_then(|index| model.upstreams.get(index));
        let (name, what) = match (block, &pass.target) {
            (Some(upstream), _) if !view::is_dotted(&upstream.name) => {
                (upstream.name.clone(), "the name of the upstream block")
            }
            (None, Address::Ip { ip, .. }) => {
                (ip.to_string(), "an address, which nginx compares with names alone")
            }
            _ => continue,
        };
        let prefix = pass.module.prefix();
        found.push(
            Finding::problem(
                "certificate-name-cannot-fit",
                format!("the certificate must be for \"{name}\": {what}"),
            )
            .cause(Cause::TlsCertificateRejected)
            .likely("a certificate of your own that has this very name")
            .breaks("nginx refuses a certificate that does not have this name: every request ends with 502.")
            .at(view::pass_place(model, pass))
            .at(view::place(model, verify))
            .fix(format!("add `{prefix}ssl_name NAME;` with the name that the server's certificate has")),
        );
    }
    found
}

/// Only protocols that servers have given up.
pub(super) fn old_protocols(model: &Model) -> Vec<Finding> {
    let mut found = Vec::new();
    for pass in tls_passes(model) {
        let Some(effective) = model.effective_of(pass, "ssl_protocols") else { continue };
        let (Some(node), Some(value)) = (effective.node(), effective.value.as_deref()) else { continue };
        if value.split(' ').any(|one| one == "TLSv1.2" || one == "TLSv1.3") {
            continue;
        }
        found.push(
            Finding::problem("tls-protocols-outdated", format!("only {value} may be used towards the upstream server"))
                .cause(Cause::TlsHandshakeFailed)
                .likely("a server that is as old")
                .breaks("Servers of today refuse anything below TLS 1.2: the handshake fails and every request ends with 502.")
                .at(view::place(model, node))
                .at(view::pass_place(model, pass))
                .fix(format!("remove the line, or write {} TLSv1.2 TLSv1.3", effective.name)),
        );
    }
    found
}

/// `proxy_ssl_…` towards servers that are asked in plain text has no effect, and somebody believes that it has.
pub(super) fn verify_without_tls(model: &Model) -> Vec<Finding> {
    let mut found = Vec::new();
    for pass in model.passes.iter().filter(|pass| pass.tls == Some(false) && pass.module == Module::Proxy) {
        let Some(node) =
            view::set_at(model, pass, "ssl_verify").filter(|_| view::is_on(model, pass, "ssl_verify"))
        else {
            continue;
        };
        // Set once for all passes further out it is no mistake.
        if model.config().parent(node) != model.config().parent(pass.node) {
            continue;
        }
        found.push(
            Finding::warning(
                "verify-without-tls",
                "proxy_ssl_verify on has no effect: the pass speaks http://",
            )
            .cause(Cause::PlainToTlsPort)
            .likely("a server that is meant to be asked in plain text")
            .breaks("Requests go out unencrypted and unverified; a TLS server answers them with 400 or 502.")
            .at(view::place(model, node))
            .at(view::pass_place(model, pass))
            .fix("write https:// in the pass, or remove the proxy_ssl_ lines"),
        );
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::check::config::testing::{clean, one};

    fn at(upstream: &str, lines: &str) -> String {
        format!("http {{ {upstream} server {{ location / {{ {lines} }} }} }}")
    }

    #[test]
    fn names_are_sent_to_hosts_with_names() {
        one(no_server_name, &at("", "proxy_pass https://api.example.com;"));
        let found = one(
            no_server_name,
            &at("upstream api { server api.example.com:443; }", "proxy_pass https://api;"),
        );
        assert!(found.fix[1].text.contains("proxy_ssl_name api.example.com"));
        one(no_server_name, &at("", "grpc_pass grpcs://api.example.com:443;"));
        for (upstream, lines) in [
            ("", "proxy_ssl_server_name on; proxy_pass https://api.example.com;"),
            ("", "proxy_pass http://api.example.com;"),
            ("", "proxy_pass https://10.0.0.1;"),
            ("", "proxy_pass https://backend:8443;"),
            ("upstream api { server 10.0.0.1:443; }", "proxy_pass https://api;"),
        ] {
            clean(no_server_name, &at(upstream, lines));
        }
        clean(no_server_name, "stream { server { listen 1; proxy_pass api.example.com:443; } }");
        one(no_server_name, "stream { server { listen 1; proxy_ssl on; proxy_pass api.example.com:443; } }");
    }

    #[test]
    fn certificates_have_names() {
        let verify = "proxy_ssl_verify on; proxy_ssl_trusted_certificate /ca;";
        let block = "upstream api { server api.example.com:443; }";
        one(name_to_verify, &at(block, &format!("{verify} proxy_pass https://api;")));
        one(name_to_verify, &at("", &format!("{verify} proxy_pass https://10.0.0.1;")));
        clean(
            name_to_verify,
            &at(block, &format!("{verify} proxy_ssl_name api.example.com; proxy_pass https://api;")),
        );
        clean(name_to_verify, &at("", &format!("{verify} proxy_pass https://api.example.com;")));
        clean(name_to_verify, &at(block, "proxy_pass https://api;"));
        clean(
            name_to_verify,
            &at(
                "upstream api.example.com { server 10.0.0.1:443; }",
                &format!("{verify} proxy_pass https://api.example.com;"),
            ),
        );
    }

    #[test]
    fn protocols_of_yesterday() {
        one(old_protocols, &at("", "proxy_ssl_protocols TLSv1 TLSv1.1; proxy_pass https://10.0.0.1;"));
        clean(old_protocols, &at("", "proxy_ssl_protocols TLSv1.1 TLSv1.2; proxy_pass https://10.0.0.1;"));
        clean(old_protocols, &at("", "proxy_ssl_protocols TLSv1; proxy_pass http://10.0.0.1;"));
        clean(old_protocols, &at("", "proxy_pass https://10.0.0.1;"));
    }

    #[test]
    fn verification_of_plain_text() {
        one(verify_without_tls, &at("", "proxy_ssl_verify on; proxy_pass http://10.0.0.1;"));
        clean(verify_without_tls, &at("proxy_ssl_verify on;", "proxy_pass http://10.0.0.1;"));
        clean(verify_without_tls, &at("", "proxy_ssl_verify off; proxy_pass http://10.0.0.1;"));
    }
}
