//! Effective values, defaults by version, and the values of variables.

use std::net::IpAddr;

use super::read;
use crate::nginx::{
    Model, Platform, Version,
    binary::Build,
    directives::{DIRECTIVES, Inherit, Owner},
    model::{Module, Pass},
};

fn model(text: &str, version: Option<&str>) -> Model {
    let version = version.map(|text| text.parse().unwrap());
    let model = Model::for_platform(read(text).unwrap(), Platform { version, page: 4096 });
    assert!(model.warnings.is_empty(), "{:?}", model.warnings);
    model
}

/// `value @ line line` or `value @ origin`.
fn value(model: &Model, pass: &Pass, name: &str) -> String {
    let Some(found) = model.effective_of(pass, name) else { return "-".to_owned() };
    let value = found.value.unwrap_or_else(|| "none".to_owned());
    let lines: Vec<_> = found.nodes.iter().map(|node| model.config().line(*node).to_string()).collect();
    format!("{value} @ {}", found.origin.unwrap_or_else(|| lines.join(" ")))
}

const NESTED: &str = r#"http {
    proxy_connect_timeout 1s; proxy_set_header A 1;
    proxy_set_header B 2; error_page 502 /a.html;
    fastcgi_buffers 4 8k; resolver 10.0.0.53;
    server {
        proxy_read_timeout 2s; proxy_buffer_size 16k;
        error_page 502 /b.html; error_page 504 =200 @c;
        location / {
            proxy_set_header C 3;
            location /in { proxy_read_timeout 3s; if ($x) { proxy_pass http://127.0.0.1:1; } }
            proxy_pass http://127.0.0.1:2;
        }
        location ~ php { fastcgi_pass 127.0.0.1:3; fastcgi_buffer_size 32k; }
        location /g { grpc_pass 127.0.0.1:4; }
        location /m { memcached_pass 127.0.0.1:5; }
    }
    server { location /u { uwsgi_pass 127.0.0.1:6; limit_except GET { proxy_pass http://127.0.0.1:7; } } }
}
stream { proxy_timeout 5m; server { proxy_pass 127.0.0.1:8; proxy_ssl on; } }
"#;

#[test]
fn every_value_has_its_line_or_its_origin() {
    let model = model(NESTED, Some("1.22.1"));
    let by_port = |port: u16| {
        let end = format!(":{port}");
        model.passes.iter().find(|pass| pass.authority.ends_with(&end)).unwrap()
    };
    for (port, name, expected) in [
        (1, "connect_timeout", "1s @ 2"),
        (1, "read_timeout", "3s @ 10"),
        (2, "read_timeout", "2s @ 6"),
        (1, "set_header", "C 3 @ 9"),
        (7, "set_header", "A 1, B 2 @ 2 3"),
        (2, "error_page", "502 /b.html, 504 =200 @c @ 7 7"),
        (7, "error_page", "502 /a.html @ 3"),
        (2, "busy_buffers_size", "32k @ default of nginx 1.22.1"),
        (7, "busy_buffers_size", "8k @ default of nginx 1.22.1"),
        (3, "busy_buffers_size", "64k @ default of nginx 1.22.1"),
        (3, "buffers", "4 8k @ 4"),
        (7, "buffers", "8 4k @ default of nginx 1.22.1"),
        (2, "http_version", "1.0 @ default of nginx 1.22.1"),
        (3, "http_version", "-"),
        (4, "ssl_protocols", "TLSv1 TLSv1.1 TLSv1.2 @ default of nginx 1.22.1"),
        (4, "buffering", "-"),
        (5, "buffer_size", "4k @ default of nginx 1.22.1"),
        (5, "resolver", "10.0.0.53 @ 4"),
        (6, "client_body_buffer_size", "8k @ default of nginx 1.22.1"),
        (8, "timeout", "5m @ 19"),
        (8, "ssl", "on @ 19"),
        (8, "read_timeout", "-"),
        (8, "resolver", "none @ default of nginx 1.22.1"),
        (8, "next_upstream", "on @ default of nginx 1.22.1"),
    ] {
        assert_eq!(value(&model, by_port(port), name), expected, "{port} {name}");
    }
}

#[test]
fn names_in_front_of_a_variable_port_are_known() {
    let text = "http { server { location / { proxy_pass http://db.test:$port; } location /u { proxy_pass \
                http://$host.test:80; } location /v { proxy_pass http://10.0.0.1:$port; } } }";
    assert_eq!(model(text, None).names(), ["db.test"]);
}

#[test]
fn flags_of_several_lines_add_up_and_of_zones_the_last_counts() {
    let text = "http { upstream u { zone a 1m; server 127.0.0.1:1; zone b 2m; } proxy_next_upstream off; server {\nproxy_next_upstream error;\nproxy_next_upstream http_502 timeout;\n\
                proxy_ssl_protocols TLSv1.2;\nproxy_ssl_protocols TLSv1.3; location / { proxy_pass http://127.0.0.1:1; } } }";
    let model = model(text, None);
    assert_eq!(value(&model, &model.passes[0], "next_upstream"), "error http_502 timeout @ 2 3");
    assert_eq!(value(&model, &model.passes[0], "ssl_protocols"), "TLSv1.2 TLSv1.3 @ 4 5");
    let all = model.effective_in(&model.upstreams[0]);
    assert_eq!(
        all.iter().find(|(directive, _)| directive.name == "zone").unwrap().1.value.as_deref(),
        Some("b 2m")
    );
}

#[test]
fn defaults_follow_the_version() {
    let text = "http { upstream u { server 127.0.0.1:1; } server { location / { proxy_pass http://u; } } }";
    let of = |version: Option<&str>, name: &str| {
        let model = model(text, version);
        value(&model, &model.passes[0], name).split(" @").next().unwrap().to_owned()
    };
    let in_upstream = |version: Option<&str>, name: &str| {
        let model = model(text, version);
        let all = model.effective_in(&model.upstreams[0]);
        all.into_iter().find(|(directive, _)| directive.name == name).map(|(_, found)| found.value)
    };
    for (version, name, expected) in [
        (Some("1.29.6"), "http_version", "1.0"),
        (Some("1.29.7"), "http_version", "1.1"),
        (None, "http_version", "none"),
        (Some("1.9.0"), "ssl_protocols", "SSLv3 TLSv1 TLSv1.1 TLSv1.2"),
        (Some("1.23.3"), "ssl_protocols", "TLSv1 TLSv1.1 TLSv1.2"),
        (Some("1.23.4"), "ssl_protocols", "TLSv1 TLSv1.1 TLSv1.2 TLSv1.3"),
        (Some("1.27.3"), "ssl_protocols", "TLSv1.2 TLSv1.3"),
        (Some("1.15.5"), "socket_keepalive", "-"),
        (Some("1.15.6"), "socket_keepalive", "off"),
        (None, "socket_keepalive", "off"),
        (Some("1.19.9"), "keepalive_requests", "100"),
        (Some("1.19.10"), "keepalive_requests", "1000"),
    ] {
        assert_eq!(of(version, name), expected, "{version:?} {name}");
    }
    let text = |text: &str| Some(Some(text.to_owned()));
    assert_eq!(in_upstream(Some("1.22.1"), "keepalive"), text("off"));
    assert_eq!(in_upstream(Some("1.29.7"), "keepalive"), text("32 local"));
    assert_eq!(in_upstream(None, "keepalive"), Some(None));
    assert_eq!(in_upstream(Some("1.15.2"), "keepalive_timeout"), None);
    assert_eq!(in_upstream(Some("1.19.9"), "keepalive_requests"), text("100"));
    assert_eq!(in_upstream(Some("1.26.0"), "resolver"), None);
    let unknown = model("http { server { location / { proxy_pass http://127.0.0.1; } } }", None);
    assert_eq!(
        value(&unknown, &unknown.passes[0], "http_version"),
        "none @ default: 1.0 before nginx 1.29.7, then 1.1"
    );
    assert_eq!(value(&unknown, &unknown.passes[0], "read_timeout"), "60s @ default");
}

#[test]
fn versions() {
    let core = |flavor: &str, version: &str, core: Option<&str>| {
        let core = core.map(str::to_owned);
        Build { flavor: flavor.into(), version: version.into(), core }.core()
    };
    assert_eq!(core("nginx", "1.22.1", None), Some(Version(1, 22, 1)));
    assert_eq!(core("openresty", "1.27.1.2", None), Some(Version(1, 27, 1)));
    assert_eq!(core("Tengine", "3.1.0", Some("1.24.0")), Some(Version(1, 24, 0)));
    assert_eq!(core("Tengine", "3.1.0", None), None);
    assert_eq!(core("Angie", "1.10.0", None), None, "1.10.0 of Angie is not that of nginx");
    assert_eq!(core("freenginx", "1.25.3", None), Some(Version(1, 25, 3)));
    assert_eq!(core("freenginx", "1.29.7", None), None);
    assert_eq!("1.31.5-dev".parse(), Ok(Version(1, 31, 5)));
    for wrong in ["", "1", "1.2", "a.b.c", "1.2.", "1..2", "99999.1.1"] {
        assert!(wrong.parse::<Version>().is_err(), "{wrong}");
    }
}

#[test]
fn the_table_is_in_order() {
    for directive in DIRECTIVES {
        let versions: Vec<_> = directive.defaults.iter().map(|(since, _)| since).collect();
        assert!(versions.is_sorted() && !versions.is_empty(), "{}", directive.name);
        if let Owner::Upstream(_) = directive.owner {
            assert!(matches!(directive.inherit, Inherit::Value | Inherit::Last), "{}", directive.name);
        }
    }
    for module in [Module::Proxy, Module::Stream, Module::Grpc] {
        let mut names: Vec<_> = DIRECTIVES
            .iter()
            .filter(|directive| directive.concerns(module))
            .map(|directive| directive.full_name(module))
            .collect();
        let number = names.len();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), number, "{module:?}");
    }
}

/// The values of the last pass, with `…` where there can be others.
fn values(text: &str) -> String {
    let model = model(text, None);
    let pass = model.passes.last().unwrap();
    let mut shown: Vec<_> = pass.values.iter().map(|value| value.text.clone()).collect();
    shown.extend((!pass.complete).then(|| "…".to_owned()));
    shown.join(" ")
}

#[test]
fn variables() {
    let server = |body: &str| format!("http {{ server {{ {body} }} }}");
    let cases = [
        ("set $b app:1; location / { proxy_pass http://$b; }", "http://app:1"),
        ("set $b app:1; location / { proxy_pass $scheme://$b; }", "http://app:1 https://app:1"),
        ("location / { set $b http://app/x; proxy_pass $b$request_uri; }", "http://app/x"),
        ("location / { set $b http://app/x; proxy_pass $b; }", "http://app/x"),
        ("set $b a; location / { set $b b; proxy_pass http://$b:1; }", "http://b:1"),
        ("set $b a; location / { if ($x) { set $b b; } proxy_pass http://$b:1; }", "http://a:1 http://b:1"),
        ("set $b a; location / { break; set $b b; proxy_pass http://$b:1; }", "http://a:1 http://b:1"),
        ("location / { if ($x) { set $b 10.0.0.1; } proxy_pass http://${b}:1; }", "http://10.0.0.1:1"),
        ("if ($host ~ (?<b>.*)) { set $b a; } location / { proxy_pass http://$b:1; }", "http://a:1 …"),
        ("set $b $arg_b; location / { proxy_pass http://$b; }", "…"),
        ("set $a x; set $b $a.y; location / { proxy_pass http://$b:8; }", "http://x.y:8"),
        ("set $b $b; location / { proxy_pass http://$b:8; }", "…"),
        (
            "set $b a; auth_request_set $b $upstream_http_b; location / { proxy_pass http://$b; }",
            "http://a …",
        ),
        ("set $b a; rewrite_by_lua_block { x() } location / { proxy_pass http://$b; }", "http://a …"),
        ("set $b a; location / { proxy_pass http://$b:$arg_p; }", "…"),
        ("set $b 'unix:/run/a.sock'; location / { fastcgi_pass $b; }", "unix:/run/a.sock"),
        ("location / { proxy_pass http://10.0.0.1:80$request_uri; }", ""),
    ];
    for (body, expected) in cases {
        let found = values(&server(body));
        let expected = if expected.is_empty() { "…" } else { expected };
        assert_eq!(found, expected, "{body}");
    }
    let http = |table: &str| {
        format!(
            "http {{ {table} upstream u {{ server 1.1.1.1; }} server {{ location / {{ proxy_pass http://$b; }} }} }}"
        )
    };
    for (table, expected) in [
        ("map $host $b { default u; ~^x 10.0.0.2:1; }", "http://u http://10.0.0.2:1"),
        ("map $host $b { hostnames; .a.b u; default $c; } map $uri $c { / v; }", "http://u http://v"),
        ("map $host $b { ~^(.*)$ $1; default u; }", "http://u …"),
        ("split_clients $remote_addr $b { 5% v; * u; }", "http://v http://u"),
        ("geo $b { ranges; default u; 10.0.0.0-10.1.0.0 v; proxy 1.2.3.4; }", "http://u http://v"),
        ("geo $remote_addr $b { default u; }", "http://u"),
    ] {
        assert_eq!(values(&http(table)), expected, "{table}");
    }
}

#[test]
fn candidates_through_variables() {
    let text = "http {
        map $host $pool { default blue; ~^x green; }
        upstream blue { server 10.0.0.1:80; }
        upstream green { server 10.0.0.2:80; }
        upstream other { server 10.0.0.3:80; }
        server { location / { proxy_pass http://$pool; } }
        server { set $t 10.0.0.4:81; location / { proxy_pass http://$t; } }
    }";
    let model = model(text, None);
    let find = |addr: &str| -> Vec<String> {
        let found = model.candidates(addr.parse().unwrap(), &|_| Vec::<IpAddr>::new());
        let one = |candidate: &crate::nginx::Candidate| {
            let lines: Vec<_> = candidate.lines.iter().map(|line| line.line).collect();
            format!("{}{} {lines:?}", if candidate.exact { "" } else { "~" }, candidate.server)
        };
        found.iter().map(one).collect()
    };
    assert_eq!(find("10.0.0.1:80"), ["10.0.0.1:80 [3, 6]"]);
    assert_eq!(find("10.0.0.2:80"), ["10.0.0.2:80 [4, 6]"]);
    assert_eq!(find("10.0.0.3:80"), ["~10.0.0.3:80 [5]"], "no pass can name it");
    assert_eq!(find("10.0.0.4:81"), ["10.0.0.4:81 [7]"]);
    assert_eq!(find("10.0.0.9:80"), Vec::<String>::new());
    assert_eq!(model.users_by_upstream(), [vec![0], vec![0], vec![]]);
}
