//! Upstream servers that can never be used, and parameters that do nothing.

use super::{
    super::{Finding, Place},
    view,
};
use crate::{
    diagnose::Cause,
    nginx::{
        Model,
        model::{Upstream, UpstreamServer},
        value::Address,
    },
};

fn used(model: &Model, index: usize) -> bool {
    model.users_by_upstream().get(index).is_some_and(|users| !users.is_empty())
}

fn static_upstreams(model: &Model) -> impl Iterator<Item = (usize, &Upstream)> {
    model.upstreams.iter().enumerate().filter(|(_, upstream)| upstream.balancer.is_none())
}

/// Nobody is left to ask.
pub(super) fn all_down(model: &Model) -> Vec<Finding> {
    let mut found = Vec::new();
    for (index, upstream) in static_upstreams(model) {
        if upstream.servers.is_empty()
            || !upstream.servers.iter().all(|server| server.down)
            || !used(model, index)
        {
            continue;
        }
        let mut one = Finding::problem(
            "all-servers-down",
            format!("every server of upstream {} is marked \"down\"", upstream.name),
        )
        .cause(Cause::NoLiveUpstreams)
        .breaks("nginx has nobody to ask: every request to this upstream ends with 502, no live upstreams.");
        for server in &upstream.servers {
            one = one.at(Place::of(model, "server", server.node));
        }
        found.push(one.fix("remove down from a server that works"));
    }
    found
}

/// `max_fails` and `fail_timeout` of a server that has nobody beside it.
pub(super) fn lone_max_fails(model: &Model) -> Vec<Finding> {
    let mut found = Vec::new();
    for (index, upstream) in static_upstreams(model) {
        let [server] = upstream.servers.as_slice() else { continue };
        if !matches!(server.address, Address::Ip { .. } | Address::Unix { .. }) || !used(model, index) {
            continue;
        }
        let Some(parameter) = written(server, "max_fails").filter(|_| server.max_fails > 0) else { continue };
        found.push(
            Finding::warning("max-fails-on-a-lone-server", format!("{parameter} has no effect: upstream {} has one server", upstream.name))
                .breaks(
                    "nginx never takes the only server out: while it is down every request tries it, and waits for its \
                     time-outs.",
                )
                .at(Place::of(model, "server", server.node))
                .fix("add a second server (or one with backup that says so quickly), or remove the parameter"),
        );
    }
    found
}

fn written<'a>(server: &'a UpstreamServer, name: &str) -> Option<&'a str> {
    let is = |one: &&String| one.split_once('=').is_some_and(|(key, _)| key == name);
    server.parameters.iter().find(is).map(String::as_str)
}

/// Servers that are tried although they are known to be broken for good: `max_fails=0` on all of several.
pub(super) fn never_marked(model: &Model) -> Vec<Finding> {
    let mut found = Vec::new();
    for (index, upstream) in static_upstreams(model) {
        let usable: Vec<&UpstreamServer> = upstream.servers.iter().filter(|server| !server.down).collect();
        let backup: Vec<&&UpstreamServer> = usable.iter().filter(|server| server.backup).collect();
        let primary: Vec<&&UpstreamServer> = usable.iter().filter(|server| !server.backup).collect();
        // Without a backup it is a choice that some make on purpose.
        let (Some(first), Some(spare)) = (primary.first(), backup.first()) else { continue };
        if !primary.iter().all(|server| server.max_fails == 0) || !used(model, index) {
            continue;
        }
        // A retry would still reach the backup.
        let retries = model
            .passes
            .iter()
            .filter(|pass| pass.upstream == Some(index))
            .all(|pass| view::value(model, pass, "next_upstream").is_none_or(|text| text != "off"));
        if retries {
            continue;
        }
        found.push(
            Finding::warning("backup-never-used", format!("the backup of upstream {} is never reached", upstream.name))
                .cause(Cause::NoLiveUpstreams)
                .breaks("With max_fails=0 no server is ever out of service, and retries are off: the backup stays idle while requests fail.")
                .at(Place::of(model, "server", first.node))
                .at(Place::of(model, "server", spare.node))
                .fix("remove max_fails=0, or turn retries on (proxy_next_upstream error timeout)"),
        );
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::check::config::testing::{clean, one};

    fn at(servers: &str, lines: &str) -> String {
        format!(
            "http {{ upstream app {{ {servers} }} server {{ location / {{ {lines} proxy_pass http://app; }} }} }}"
        )
    }

    #[test]
    fn nobody_left() {
        one(all_down, &at("server 127.0.0.1:1 down; server 127.0.0.1:2 down;", ""));
        clean(all_down, &at("server 127.0.0.1:1 down; server 127.0.0.1:2;", ""));
        clean(all_down, "http { upstream app { server 127.0.0.1:1 down; } }");
    }

    #[test]
    fn a_lone_server_cannot_fail() {
        let found = one(lone_max_fails, &at("server 127.0.0.1:1 max_fails=3 fail_timeout=30s;", ""));
        assert!(found.summary.contains("max_fails=3"));
        one(lone_max_fails, &at("server unix:/run/a max_fails=2;", ""));
        for servers in [
            "server 127.0.0.1:1;",
            "server 127.0.0.1:1 max_fails=0;",
            "server 127.0.0.1:1 fail_timeout=30s;",
            "server app.example.com:1 max_fails=3;",
            "server 127.0.0.1:1 max_fails=3; server 127.0.0.1:2 backup;",
        ] {
            clean(lone_max_fails, &at(servers, ""));
        }
        clean(lone_max_fails, "http { upstream app { server 127.0.0.1:1 max_fails=3; } }");
    }

    #[test]
    fn backups_that_stay_idle() {
        let servers = "server 127.0.0.1:1 max_fails=0; server 127.0.0.1:2 backup;";
        one(never_marked, &at(servers, "proxy_next_upstream off;"));
        clean(never_marked, &at(servers, ""));
        clean(
            never_marked,
            &at("server 127.0.0.1:1; server 127.0.0.1:2 backup;", "proxy_next_upstream off;"),
        );
        clean(
            never_marked,
            &at(
                "server 127.0.0.1:1 max_fails=0; server 127.0.0.1:2 max_fails=0;",
                "proxy_next_upstream off;",
            ),
        );
    }
}
