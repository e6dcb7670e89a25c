//! What the demo's nginx is asked for: each location, the fault behind it, and the verdict that is right.

use serde_json::Value;

/// What the fault is made of.
#[derive(Clone, Copy, Debug)]
pub(super) enum Ground {
    /// An application that answers on the upstream's address.
    Healthy,
    /// An application on this address, next to the one that nginx asks.
    Listener(&'static str),
    /// An application on the upstream's address that accepts nothing, its queue full.
    FullQueue,
    /// A link to this network, on whose far side nobody is.
    Swallow(&'static str),
    /// Rules for `nft -f`.
    Nft(&'static str),
    /// The network as it is.
    Nothing,
}

/// One location of nginx.
#[derive(Debug)]
pub(super) struct Route {
    /// Also the name of its upstream group, without the slash.
    pub(super) path: &'static str,
    pub(super) address: &'static str,
    /// For the reader: what is wrong.
    pub(super) about: &'static str,
    pub(super) ground: Ground,
    pub(super) status: u16,
    /// The cause, and whether it can be proven with all hooks; None if nothing may be said.
    pub(super) cause: Option<(&'static str, bool)>,
}

/// The demonstration. Addresses are those that RFC 5737 keeps free for documentation.
#[rustfmt::skip] // a table
pub(super) const ROUTES: &[Route] = &[
    Route { path: "/ok", address: "127.0.0.1:9000", about: "a healthy application",
            ground: Ground::Healthy, status: 200, cause: None },
    Route { path: "/dead", address: "127.0.0.1:3000", about: "the application listens on 3001, not on 3000",
            ground: Ground::Listener("127.0.0.1:3001"), status: 502, cause: Some(("connect-refused-no-listener", true)) },
    Route { path: "/full", address: "127.0.0.1:7000", about: "an application that hangs, its accept queue full",
            ground: Ground::FullQueue, status: 504, cause: Some(("connect-timeout-backlog-full", true)) },
    Route { path: "/dropped", address: "192.0.2.20:3000", about: "an nft rule of this host drops",
            ground: Ground::Nft("add table inet demo; \
                                 add chain inet demo out { type filter hook output priority 0; }; \
                                 add rule inet demo out ip daddr 192.0.2.20 drop\n"),
            status: 504, cause: Some(("connect-timeout-firewall-drop", true)) },
    Route { path: "/rejected", address: "192.0.2.30:3000", about: "an nft rule of this host rejects",
            ground: Ground::Nft("add table inet demo2; \
                                 add chain inet demo2 out { type filter hook output priority 0; }; \
                                 add rule inet demo2 out ip daddr 192.0.2.30 reject\n"),
            status: 502, cause: Some(("connect-refused-by-firewall", true)) },
    Route { path: "/noroute", address: "198.51.100.9:3000", about: "no route leads there",
            ground: Ground::Nothing, status: 502, cause: Some(("network-unreachable", true)) },
    Route { path: "/nobody", address: "192.0.2.77:3000", about: "nobody on the link has this address",
            ground: Ground::Nothing, status: 502, cause: Some(("host-unreachable", true)) },
    Route { path: "/silent", address: "203.0.113.9:3000", about: "a far host that never answers",
            ground: Ground::Swallow("203.0.113.0/24"),
            status: 504, cause: Some(("connect-timeout-no-answer", false)) },
];

/// nginx's configuration: one upstream group a route.
pub(super) fn config() -> String {
    let mut text = String::from(
        "daemon off;\nuser root;\nworker_processes 1;\npid nginx.pid;\nerror_log error.log;\n\
         events { worker_connections 64; }\nhttp {\n    access_log off;\n    client_body_temp_path tmp;\n",
    );
    for module in ["proxy", "fastcgi", "uwsgi", "scgi"] {
        text += &format!("    {module}_temp_path tmp;\n");
    }
    text += "    proxy_connect_timeout 1s;\n\n";
    for Route { path, address, about, .. } in ROUTES {
        let server = format!("upstream {} {{ server {address}; }}", name(path));
        text += &format!("    {server:<52} # {about}\n");
    }
    text += "\n    server {\n        listen 127.0.0.1:8080;\n";
    for Route { path, .. } in ROUTES {
        text += &format!(
            "        location {path:<10} {{ proxy_pass http://{}; {}}}\n",
            name(path),
            patience(path)
        );
    }
    text + "    }\n}\n"
}

fn name(path: &str) -> &str {
    path.trim_start_matches('/')
}

/// The kernel takes up to 3 s to give up on a neighbour; nginx's own timer would end the attempt before.
fn patience(path: &str) -> &'static str {
    if path == "/nobody" { "proxy_connect_timeout 9s; " } else { "" }
}

/// How a verdict compares with the right one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Mark {
    Right,
    /// Not false, and all that a kernel without the better hooks allows.
    Weak(String),
    Wrong(String),
}

/// Judges what was said (JSON incidents of its address) about `route` in `tier`.
pub(super) fn judge(route: &Route, tier: &str, incidents: &[&Value]) -> Mark {
    let text =
        |incident: &Value, field| incident.get(field).and_then(Value::as_str).unwrap_or("?").to_owned();
    let said: Vec<String> =
        incidents.iter().map(|i| format!("{} ({})", text(i, "cause"), text(i, "confidence"))).collect();
    let Some((cause, provable)) = route.cause else {
        return if said.is_empty() { Mark::Right } else { Mark::Wrong(format!("said {}", said.join(", "))) };
    };
    let [incident] = incidents else {
        let what =
            if said.is_empty() { "said nothing".to_owned() } else { format!("said {}", said.join(", ")) };
        return Mark::Wrong(format!("{what} instead of {cause} once"));
    };
    let confidence = text(incident, "confidence");
    let weak = tier == "tracepoint";
    if text(incident, "cause") == cause {
        let enough = confidence == "proven" || confidence == "likely" && (!provable || weak);
        let mark = if enough && (confidence == "proven" || !provable) {
            Mark::Right
        } else {
            Mark::Weak(said.concat())
        };
        return if enough { mark } else { Mark::Wrong(format!("said only {}", said.concat())) };
    }
    if weak && confidence != "proven" {
        return Mark::Weak(said.concat());
    }
    Mark::Wrong(format!("said {} instead of {cause}", said.concat()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn route(path: &str) -> &'static Route {
        ROUTES.iter().find(|route| route.path == path).unwrap()
    }

    #[test]
    fn verdicts_are_judged_by_what_the_tier_allows() {
        let said = |cause: &str, confidence: &str| json!({ "cause": cause, "confidence": confidence });
        let judge = |path, tier, said: &[Value]| judge(route(path), tier, &said.iter().collect::<Vec<_>>());
        let right = said("connect-refused-no-listener", "proven");
        assert_eq!(judge("/dead", "full", std::slice::from_ref(&right)), Mark::Right);
        assert!(matches!(judge("/dead", "full", &[]), Mark::Wrong(why) if why.contains("nothing")));
        assert!(matches!(judge("/dead", "full", &[right.clone(), right]), Mark::Wrong(_)));
        let likely = said("connect-refused-no-listener", "likely");
        assert!(matches!(judge("/dead", "full", std::slice::from_ref(&likely)), Mark::Wrong(_)));
        assert!(matches!(judge("/dead", "tracepoint", &[likely]), Mark::Weak(_)));
        let false_proof = said("connect-refused-by-peer", "proven");
        assert!(matches!(judge("/dead", "tracepoint", &[false_proof]), Mark::Wrong(_)));
        assert!(matches!(judge("/dead", "tracepoint", &[said("unexplained", "unexplained")]), Mark::Weak(_)));
        assert_eq!(judge("/silent", "full", &[said("connect-timeout-no-answer", "likely")]), Mark::Right);
        assert_eq!(judge("/ok", "full", &[]), Mark::Right);
        assert!(matches!(judge("/ok", "full", &[said("unexplained", "unexplained")]), Mark::Wrong(_)));
    }

    #[test]
    fn addresses_tell_the_routes_apart() {
        let addresses: std::collections::BTreeSet<_> = ROUTES.iter().map(|route| route.address).collect();
        assert_eq!(addresses.len(), ROUTES.len());
        let config = config();
        assert!(
            ROUTES.iter().all(|route| config.contains(&format!("server {};", route.address))),
            "{config}"
        );
    }
}
