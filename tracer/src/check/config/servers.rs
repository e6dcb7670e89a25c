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

/// The upstreams that a pass leads to and whose servers are those of their lines, with their indices.
fn used(model: &Model) -> Vec<(usize, &Upstream)> {
    let users = model.users_by_upstream();
    let is_used = |index: usize| users.get(index).is_some_and(|users| !users.is_empty());
    let all = model.upstreams.iter().enumerate();
    all.filter(|(index, upstream)| upstream.balancer.is_none() && is_used(*index)).collect()
}

/// Nobody is left to ask.
pub(super) fn all_down(model: &Model) -> Vec<Finding> {
    let mut found = Vec::new();
    for (_, upstream) in used(model) {
        if upstream.servers.is_empty() || !upstream.servers.iter().all(|server| server.down) {
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
    for (_, upstream) in used(model) {
        let [server] = upstream.servers.as_slice() else { continue };
        if !matches!(server.address, Address::Ip { .. } | Address::Unix { .. }) {
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

/// The only live server has company that never serves: with it goes what nginx grants a server that is alone.
pub(super) fn live_beside_down(model: &Model) -> Vec<Finding> {
    let mut found = Vec::new();
    for (_, upstream) in used(model) {
        let (down, live): (Vec<_>, Vec<_>) = upstream.servers.iter().partition(|server| server.down);
        let ([live], [first, ..]) = (live.as_slice(), down.as_slice()) else { continue };
        if live.max_fails == 0 || live.resolve || live.service.is_some() {
            continue;
        }
        let mut one = Finding::warning(
            "live-server-beside-down",
            format!(
                "{} is the only live server of upstream {}, and nginx takes it out of service as it would one of several",
                live.text, upstream.name
            ),
        )
        .cause(Cause::NoLiveUpstreams)
        .breaks(format!(
            "A server that is alone is always tried; beside one that is `down` it is not: after max_fails={} failures nginx tries \
             nobody for {} s, and every request ends with 502, no live upstreams.",
            live.max_fails, live.fail_timeout_s
        ))
        .at(Place::of(model, "server", live.node));
        if matches!(live.address, Address::Name { .. }) {
            one = one.likely("a name with several addresses, of which another is tried");
        }
        for server in &down {
            one = one.at(Place::of(model, "server", server.node));
        }
        let which =
            if down.len() == 1 { first.text.clone() } else { "the servers that are `down`".to_owned() };
        found.push(
            one.fix(format!("add max_fails=0 to {}: it is tried whatever it did before", live.text))
                .fix(format!("or remove the line of {which}, until there is a second server")),
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
    for (index, upstream) in used(model) {
        let usable: Vec<&UpstreamServer> = upstream.servers.iter().filter(|server| !server.down).collect();
        let backup: Vec<&&UpstreamServer> = usable.iter().filter(|server| server.backup).collect();
        let primary: Vec<&&UpstreamServer> = usable.iter().filter(|server| !server.backup).collect();
        // Without a backup it is a choice that some make on purpose.
        let (Some(first), Some(spare)) = (primary.first(), backup.first()) else { continue };
        if !primary.iter().all(|server| server.max_fails == 0) {
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
    fn a_placeholder_takes_the_exemption_away() {
        let found = one(live_beside_down, &at("server 127.0.0.1:1; server 127.0.0.1:2 down;", ""));
        assert_eq!(found.at.len(), 2);
        assert!(found.fix[0].text.contains("max_fails=0") && found.breaks.contains("for 10 s"), "{found:?}");
        one(live_beside_down, &at("server 127.0.0.1:1 down backup; server unix:/run/a max_fails=2;", ""));
        let named = one(live_beside_down, &at("server app.test:1; server 127.0.0.1:2 down;", ""));
        assert!(named.rival.is_some(), "{named:?}");
        for servers in [
            "server 127.0.0.1:1;",
            "server 127.0.0.1:1 max_fails=0; server 127.0.0.1:2 down;",
            "server 127.0.0.1:1; server 127.0.0.1:2; server 127.0.0.1:3 down;",
            "server 127.0.0.1:1; server 127.0.0.1:2 backup; server 127.0.0.1:3 down;",
            "server 127.0.0.1:1 down; server 127.0.0.1:2 down;",
        ] {
            clean(live_beside_down, &at(servers, ""));
        }
        clean(live_beside_down, "http { upstream app { server 127.0.0.1:1; server 127.0.0.1:2 down; } }");
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
