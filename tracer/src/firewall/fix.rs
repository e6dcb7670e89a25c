//! The narrowest change that lets one connection through: an exception in front of the rule, by the tool that owns it.

use std::net::SocketAddr;

use super::{Chain, Engine, Family, Hook};

/// Text and command of each way, from narrow to wide. `rule`: which of the chain's, None for its policy; `server`: the
/// address and port that packets carry at that place; `reply`: it was the server's answer that was dropped; `enter`: what
/// stands before a command that is for the network namespace, if it is not the initial one.
#[must_use]
pub fn fixes(
    chain: &Chain,
    rule: Option<usize>,
    server: SocketAddr,
    reply: bool,
    enter: Option<&str>,
) -> Vec<(String, Option<String>)> {
    let hook = chain.base.as_ref().and_then(|base| base.hook);
    let prefix = enter.unwrap_or_default();
    if let Some(fix) = managed(chain, hook, server, reply, prefix) {
        return vec![fix];
    }
    let (ip, port) = (server.ip(), server.port());
    let whom = if reply { format!("answers from {server}") } else { format!("{server}") };
    if chain.is_iptables() {
        let program = match (chain.engine, chain.family) {
            (Engine::Legacy, Family::Ip6) => "ip6tables-legacy",
            (Engine::Legacy, _) => "iptables-legacy",
            (Engine::Nftables, Family::Ip6) => "ip6tables-nft",
            (Engine::Nftables, _) => "iptables-nft",
        };
        let place = match rule {
            Some(index) => format!("-I {} {}", chain.name, index + 1),
            None => format!("-I {}", chain.name),
        };
        let which = if reply {
            format!("-p tcp -s {ip} --sport {port} -m conntrack --ctstate ESTABLISHED")
        } else {
            format!("-p tcp -d {ip} --dport {port}")
        };
        return vec![(
            format!("let {whom} through in front of it (and where the rules are kept)"),
            Some(format!("{prefix}{program} -t {} {place} {which} -j ACCEPT", chain.table)),
        )];
    }
    let family = if server.is_ipv4() { "ip" } else { "ip6" };
    let which = if reply {
        format!("{family} saddr {ip} tcp sport {port} ct state established")
    } else {
        format!("{family} daddr {ip} tcp dport {port}")
    };
    let handle = rule.and_then(|index| chain.rules.get(index)).map(|rule| rule.handle);
    let path = chain.path();
    let Some(handle) = handle else {
        return vec![(
            format!("let {whom} through before the policy decides (and where the rules are kept)"),
            Some(format!("{prefix}nft insert rule {path} {which} accept")),
        )];
    };
    vec![
        (
            format!("let {whom} through in front of it (and where the rules are kept)"),
            Some(format!("{prefix}nft insert rule {path} position {handle} {which} accept")),
        ),
        (
            "or take the rule out, if nothing else needs it".to_owned(),
            Some(format!("{prefix}nft delete rule {path} handle {handle}")),
        ),
    ]
}

/// Where a program keeps the rules, that program's own command: it would undo a change behind its back.
fn managed(
    chain: &Chain,
    hook: Option<Hook>,
    server: SocketAddr,
    reply: bool,
    prefix: &str,
) -> Option<(String, Option<String>)> {
    let (ip, port) = (server.ip(), server.port());
    let name = chain.name.as_str();
    if name.starts_with("ufw-") || name.starts_with("ufw6-") {
        let way = |part: &str| name.contains(part);
        let rule = if way("-output") || way("-track-output") {
            format!("prepend allow out to {ip} port {port} proto tcp")
        } else if way("-forward") {
            format!("route prepend allow to {ip} port {port} proto tcp")
        } else if reply {
            format!("prepend allow in from {ip} port {port} proto tcp")
        } else {
            format!("prepend allow in to {ip} port {port} proto tcp")
        };
        return Some((
            "ufw keeps this chain: let it through there".to_owned(),
            Some(format!("{prefix}ufw {rule}")),
        ));
    }
    if chain.table == "firewalld" || name.starts_with("IN_") && chain.table == "filter" {
        let family = if server.is_ipv4() { "ipv4" } else { "ipv6" };
        let zone = name
            .strip_prefix("filter_IN_")
            .map(|rest| rest.trim_end_matches("_deny").trim_end_matches("_allow").trim_end_matches("_log"))
            .filter(|zone| !zone.is_empty() && !zone.starts_with("policy_") && *zone != "ZONES")
            .map(|zone| format!("--zone={zone} "))
            .unwrap_or_default();
        let inward = name.contains("IN") || matches!(hook, Some(Hook::Input | Hook::Prerouting));
        let command = (inward && !reply).then(|| {
            format!(
                "{prefix}firewall-cmd {zone}--add-rich-rule='rule family=\"{family}\" priority=\"-1\" destination \
                 address=\"{ip}\" port port=\"{port}\" protocol=\"tcp\" accept'"
            )
        });
        return Some((
            format!("firewalld keeps this table: allow {server} in its zone or policy for that direction"),
            command,
        ));
    }
    if name.starts_with("DOCKER") && chain.is_iptables() {
        return Some((
            "Docker keeps this chain: make the exception in DOCKER-USER, which it leaves alone".to_owned(),
            Some(format!("{prefix}iptables -I DOCKER-USER -p tcp -d {ip} --dport {port} -j ACCEPT")),
        ));
    }
    if name.starts_with("KUBE-") || name.starts_with("cali-") || name.starts_with("CILIUM") {
        return Some((format!("Kubernetes keeps this chain: allow {server} in a NetworkPolicy"), None));
    }
    None
}
