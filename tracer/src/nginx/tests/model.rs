//! From addresses to lines.

use std::{net::IpAddr, path::Path};

use super::read;
use crate::nginx::{
    Candidate, Model, Module, Setting,
    model::Pass,
    value::{self, Address},
};

const SHOP: &str = r#"
http {
    proxy_connect_timeout 5s;
    upstream backend {
        server 127.0.0.1:3000 max_fails=3 fail_timeout=1m weight=5;
        server [::1]:3001 backup down;
        server app.internal:3002 resolve;
        server unix:/run/app.sock;
        server 127.0.0.1;
    }
    upstream orphan { server 10.9.9.9:1; }
    server {
        listen 443 ssl; listen [::]:8443 quic; listen 127.0.0.1:8080; listen unix:/x;
        server_name shop.example.com www.shop.example.com;
        proxy_connect_timeout 1m30s;
        location /a { proxy_pass http://BACKEND; }
        location = /b {
            proxy_connect_timeout 500ms;
            if ($slow) { proxy_pass http://backend/b; }
            limit_except GET { proxy_pass https://127.0.0.1; }
        }
        location /c { proxy_pass http://127.0.0.1:3000/c; proxy_read_timeout 7; }
        location /d { proxy_pass http://localhost:4000$request_uri; }
        location /e { proxy_pass http://$target; }
        location /f { proxy_pass http://10.0.$x.1:5000; }
        location /g { proxy_pass http://app-$color:6000/; }
        location /h { fastcgi_pass unix:/run/php.sock; }
        location /i { fastcgi_pass backend; }
        location /j { grpc_pass grpcs://127.0.0.1:50051; }
        location /k { proxy_pass http://unix:/run/app.sock:/uri; }
        location /l { memcached_pass 127.0.0.1:11211; memcached_connect_timeout 2s; }
    }
    server { proxy_connect_timeout 9s; location / { uwsgi_pass uwsgi://127.0.0.1:3031; } }
}
stream {
    upstream db { server 127.0.0.1:5432; server db.internal:5432; }
    server { listen 5433; proxy_pass db; }
    server { listen 5000-5002; listen 53 udp; proxy_pass 127.0.0.1:6; proxy_connect_timeout 1s; }
}
"#;

fn shop() -> Model {
    let model = Model::new(read(SHOP).unwrap());
    assert!(model.warnings.is_empty(), "{:?}", model.warnings);
    model
}

fn find(model: &Model, addr: &str) -> Vec<Candidate> {
    let resolved = |name: &str| -> Vec<IpAddr> {
        match name {
            "localhost" => vec!["127.0.0.1".parse().unwrap(), "::1".parse().unwrap()],
            "app.internal" => vec!["10.1.1.1".parse().unwrap()],
            _ => Vec::new(),
        }
    };
    model.candidates(addr.parse().unwrap(), &resolved)
}

/// `upstream server module: line line…`, with `~` for candidates that are not exact.
fn show(candidates: &[Candidate]) -> Vec<String> {
    let one = |candidate: &Candidate| {
        let lines: Vec<_> = candidate.lines.iter().map(|line| line.line.to_string()).collect();
        format!(
            "{}{} {} {}: {}",
            if candidate.exact { "" } else { "~" },
            candidate.upstream.as_deref().unwrap_or("-"),
            candidate.server,
            candidate.module.name(),
            lines.join(" ")
        )
    };
    candidates.iter().map(one).collect()
}

#[test]
fn candidates() {
    let model = shop();
    assert_eq!(
        show(&find(&model, "127.0.0.1:3000")),
        [
            "backend 127.0.0.1:3000 proxy: 5 16 19",
            "backend 127.0.0.1:3000 fastcgi: 5 28",
            "127.0.0.1:3000 127.0.0.1:3000 proxy: 22",
            "~backend 127.0.0.1:3000 proxy: 5 24",
            "~- $target proxy: 24",
        ]
    );
    assert_eq!(show(&find(&model, "127.0.0.1:443"))[0], "127.0.0.1:443 127.0.0.1 proxy: 20");
    assert_eq!(show(&find(&model, "127.0.0.1:80"))[0], "backend 127.0.0.1 proxy: 9 16 19");
    assert_eq!(show(&find(&model, "[::1]:4000"))[0], "localhost:4000 localhost:4000 proxy: 23");
    assert_eq!(show(&find(&model, "[::ffff:127.0.0.1]:4000"))[0], "localhost:4000 localhost:4000 proxy: 23");
    assert_eq!(show(&find(&model, "10.1.1.1:3002"))[0], "backend app.internal:3002 proxy: 7 16 19");
    assert_eq!(show(&find(&model, "10.0.7.1:5000")), ["~- $target proxy: 24", "~- 10.0.$x.1:5000 proxy: 25"]);
    assert_eq!(show(&find(&model, "10.2.7.1:5000")), ["~- $target proxy: 24"]);
    assert_eq!(show(&find(&model, "9.9.9.9:6000")), ["~- $target proxy: 24", "~- app-$color:6000 proxy: 26"]);
    assert_eq!(show(&find(&model, "[::1]:3001"))[0], "~backend [::1]:3001 proxy: 6 16 19", "down");
    assert_eq!(show(&find(&model, "127.0.0.1:50051"))[0], "127.0.0.1:50051 127.0.0.1:50051 grpc: 29");
    assert_eq!(show(&find(&model, "127.0.0.1:3031"))[0], "127.0.0.1:3031 127.0.0.1:3031 uwsgi: 33");
    assert_eq!(show(&find(&model, "127.0.0.1:5432"))[0], "db 127.0.0.1:5432 stream: 36 37");
    let unix = model.candidates_unix(Path::new("/run/app.sock"));
    assert_eq!(show(&unix)[2], "unix:/run/app.sock unix:/run/app.sock proxy: 30");
    assert_eq!(
        show(&model.candidates_unix(Path::new("/run/php.sock")))[0],
        "unix:/run/php.sock unix:/run/php.sock fastcgi: 27"
    );
}

#[test]
fn balancers() {
    let text = "http { upstream u { server 0.0.0.1; balancer_by_lua_block { x() } }\n\
                server { location / { proxy_pass http://u; } } }";
    let model = Model::new(read(text).unwrap());
    assert_eq!(show(&find(&model, "10.2.3.4:5")), ["~u balancer_by_lua_block { proxy: 1 2"]);
}

#[test]
fn timeouts() {
    let model = shop();
    let timeout = |addr: &str, index: usize| find(&model, addr)[index].connect_timeouts.clone();
    let shown: Vec<_> = timeout("127.0.0.1:3000", 0).into_iter().map(|timeout| timeout.text).collect();
    assert_eq!(shown, ["proxy_connect_timeout 1m30s;", "proxy_connect_timeout 500ms;"]);
    assert_eq!(find(&model, "127.0.0.1:3000")[0].connect_timeout(), None);
    let fastcgi = &timeout("127.0.0.1:3000", 1)[0];
    assert_eq!(
        (fastcgi.milliseconds, &*fastcgi.text),
        (Some(60_000), "fastcgi_connect_timeout 60s (default)")
    );
    let read = |pass: &Pass| model.timeout(pass, Setting::ReadTimeout).milliseconds;
    let by_url = |url: &str| model.passes.iter().find(|pass| pass.url == url).unwrap();
    assert_eq!(read(by_url("http://127.0.0.1:3000/c")), Some(7000));
    assert_eq!(read(by_url("db")), Some(600_000));
    assert_eq!(model.effective(by_url("db"), Setting::NextUpstream).value.as_deref(), Some("on"));
    assert_eq!(model.timeout(by_url("127.0.0.1:6"), Setting::ConnectTimeout).milliseconds, Some(1000));
    let memcached = model.timeout(by_url("127.0.0.1:11211"), Setting::ConnectTimeout);
    assert_eq!((memcached.milliseconds, memcached.line.unwrap().line), (Some(2000), 31));
    let limited = model.timeout(by_url("https://127.0.0.1"), Setting::ConnectTimeout);
    assert_eq!(limited.line.unwrap().line, 18);
}

#[test]
fn surroundings() {
    let model = shop();
    let pass = model.passes.iter().find(|pass| pass.url == "http://backend/b").unwrap();
    assert_eq!(model.location_of(pass).as_deref(), Some("= /b"));
    assert_eq!(model.server_of(pass).unwrap().names, ["shop.example.com", "www.shop.example.com"]);
    assert_eq!(model.names(), ["app.internal", "db.internal", "localhost"]);
    assert_eq!(model.listen_ports(), [80, 443, 5000, 5001, 5002, 5433, 8080]);
    let server = &model.upstreams[0].servers[0];
    assert_eq!((server.weight, server.max_fails, server.fail_timeout_s), (5, 3, 60));
    assert_eq!(server.parameters, ["max_fails=3", "fail_timeout=1m", "weight=5"]);
    assert!(model.upstreams[0].servers[1].backup && model.upstreams[0].servers[2].resolve);
    let grpc = model.passes.iter().find(|pass| pass.module == Module::Grpc).unwrap();
    assert_eq!((grpc.scheme.as_deref(), grpc.tls), (Some("grpcs"), Some(true)));
    let uri = model.passes.iter().find(|pass| pass.authority == "localhost:4000").unwrap();
    assert!(uri.variables);
}

#[test]
fn warnings() {
    let model = Model::new(
        read("http { upstream a { server x:99999 weight=b; } server { location / { proxy_pass a; } } }")
            .unwrap(),
    );
    let shown: Vec<_> = model.warnings.iter().map(ToString::to_string).collect();
    assert_eq!(
        shown,
        [
            "/etc/nginx/nginx.conf:1: \"x:99999\" is no address of a server",
            "/etc/nginx/nginx.conf:1: parameter \"weight=b\" has no valid value",
            "/etc/nginx/nginx.conf:1: \"a\" is no address to pass to",
        ]
    );
}

#[test]
fn times() {
    let cases = [
        ("60", Some(60_000)),
        ("60s", Some(60_000)),
        ("1m", Some(60_000)),
        ("500ms", Some(500)),
        ("1m30s", Some(90_000)),
        ("1m 30s", Some(90_000)),
        ("1h30", Some(3_630_000)),
        ("1s500ms", Some(1500)),
        ("0", Some(0)),
        ("1d", Some(86_400_000)),
        ("30s1m", None),
        ("1y", None),
        ("", None),
        ("s", None),
        ("-1", None),
        ("1x", None),
        ("99999999999999999999", None),
    ];
    for (text, expected) in cases {
        assert_eq!(value::milliseconds(text), expected, "{text}");
    }
    assert_eq!(value::seconds("1m30s"), Some(90));
    assert_eq!(value::seconds("1y"), Some(31_536_000));
    assert_eq!(value::seconds("500ms"), None);
}

#[test]
fn addresses() {
    let ip = |text: &str, port| Address::Ip { ip: text.parse().unwrap(), port };
    assert_eq!(value::address("127.0.0.1", Some(80), false), ip("127.0.0.1", Some(80)));
    assert_eq!(value::address("127.0.0.01:8", None, false), ip("127.0.0.1", Some(8)));
    assert_eq!(value::address("[::1]", Some(443), false), ip("::1", Some(443)));
    assert_eq!(value::address("[::1]:8/x:y", Some(443), true), ip("::1", Some(8)));
    assert_eq!(value::address("UNIX:/a:/b", None, true), Address::Unix { path: "/a".into() });
    for wrong in ["", ":80", "a:0", "a:65536", "a:b", "a:80/x", "[::1", "[::1]80", "unix:", "[x]:1"] {
        assert_eq!(value::address(wrong, None, false), Address::Invalid, "{wrong}");
    }
    for (pattern, name, expected) in [
        ("$a", "anything", true),
        ("app-${color}.x", "APP-blue.x", true),
        ("app-$color.x", "app-.y", false),
        ("aa$b", "a", false),
        ("a$b$c-d", "a-d", true),
        ("ab$b-ab", "ab", false),
        ("plain", "plain", true),
        ("plain", "plain2", false),
    ] {
        assert_eq!(value::pattern_fits(pattern, name), expected, "{pattern} {name}");
    }
}
