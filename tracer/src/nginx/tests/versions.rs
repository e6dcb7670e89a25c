//! What differs between versions of nginx, asked of two of them: which directives there are, how often one may stand,
//! what its default is, and what the newest syntax means.

use std::{
    fmt::Write as _,
    path::{Path, PathBuf},
    process::Command,
};

use super::{
    live::{Nginx, ask, asks_each_nginx, version},
    read,
};
use crate::nginx::{
    Model, Platform, Version,
    directives::{DIRECTIVES, Directive, Fallback, Inherit, Owner},
    model::{Layer, Module},
};

asks_each_nginx!(
    directives_are_those_of_nginx,
    defaults_are_written_as_nginx_reads_them,
    kept_connections_are_those_of_nginx,
    new_syntax_is_read
);

fn platform(nginx: &Path) -> Platform {
    Platform { version: Some(version(nginx)), page: 4096 }
}

/// The modules under whose names a directive goes.
fn modules(directive: &Directive) -> Vec<Module> {
    match directive.owner {
        Owner::Passes(modules) => modules.to_vec(),
        Owner::Core(layers) | Owner::Upstream(layers) => layers.iter().map(|layer| layer.module()).collect(),
    }
}

/// Debian builds the stream module as a file of its own; a current nginx has it in a folder beside it.
fn stream_module(nginx: &Path) -> PathBuf {
    let own = nginx.with_file_name("modules/ngx_stream_module.so");
    if own.exists() { own } else { PathBuf::from("/usr/lib/nginx/modules/ngx_stream_module.so") }
}

/// A configuration with these statements where a directive of this owner may stand.
fn around(nginx: &Path, directive: &Directive, layer: Layer, statements: &str) -> String {
    let server = "server 127.0.0.1:1;";
    let (load, server) = match layer {
        Layer::Http => (String::new(), server),
        Layer::Stream => (format!("load_module {};", stream_module(nginx).display()), server),
    };
    let body = match (directive.owner, layer) {
        (Owner::Upstream(_), _) => format!("upstream u {{ {server}\n{statements}\n}}"),
        (_, Layer::Http) => format!("server {{ location / {{\n{statements}\n}} }}"),
        (_, Layer::Stream) => format!("server {{ listen 1; proxy_pass 127.0.0.1:1;\n{statements}\n}}"),
    };
    format!("{load} events {{ }} {} {{ {body} }}", layer.name())
}

/// What `nginx -t` says against a configuration.
fn complaint(nginx: &Path, folder: &Path, text: &str) -> Option<String> {
    let path = folder.join("nginx.conf");
    std::fs::write(&path, text).unwrap();
    let mut command = Command::new(nginx);
    command.args(["-t", "-e", "stderr", "-p"]).arg(folder).arg("-c").arg(&path);
    command.arg("-g").arg(format!("pid {}/pid;", folder.display()));
    let said = String::from_utf8_lossy(&command.output().unwrap().stderr).into_owned();
    said.lines().find(|line| line.contains("[emerg]") && line.contains("nginx.conf:")).map(str::to_owned)
}

fn directives_are_those_of_nginx(nginx: &Path) {
    let folder = tempfile::tempdir().unwrap();
    let platform = platform(nginx);
    let (mut there, mut not) = (0, 0);
    for directive in DIRECTIVES {
        for module in modules(directive) {
            let name = directive.full_name(module);
            let text = around(nginx, directive, module.layer(), &format!("{name};"));
            // Without arguments none of them is complete, so nginx says something either way.
            let said = complaint(nginx, folder.path(), &text).unwrap_or_else(|| panic!("nginx takes {text}"));
            let exists = !said.contains("unknown directive") && !said.contains("is not allowed here");
            assert_eq!(directive.exists(platform), exists, "{module:?} {name}: {said}");
            if exists { there += 1 } else { not += 1 }
        }
    }
    println!("{there} directives are there, {not} are not");
    assert!(there > 100);
}

/// What may be written for a directive: its default if that is a value.
fn sample(directive: &Directive, platform: Platform) -> Option<String> {
    let own = match directive.name {
        "ssl_name" => "a.test",
        "set_header" | "param" => "X-A b",
        "ssl_conf_command" => "Options PrioritizeChaCha",
        "resolver" => "127.0.0.1",
        "error_page" => "404 /x",
        "zone" => "z 64k",
        // Before it was the default it could not be written.
        "keepalive" if directive.fallback(platform) == Some(Fallback::Text("off")) => "4",
        _ => return directive.fallback(platform)?.text(platform),
    };
    Some(own.to_owned())
}

fn defaults_are_written_as_nginx_reads_them(nginx: &Path) {
    let folder = tempfile::tempdir().unwrap();
    let platform = platform(nginx);
    for directive in DIRECTIVES.iter().filter(|directive| directive.exists(platform)) {
        let Some(value) = sample(directive, platform) else { continue };
        for module in modules(directive) {
            let line = format!("{} {value};\n", directive.full_name(module));
            let say = |times: usize| {
                let text = around(nginx, directive, module.layer(), &line.repeat(times));
                complaint(nginx, folder.path(), &text)
            };
            assert_eq!(say(1), None, "{line}");
            let twice = say(2);
            let once_only = twice.as_ref().is_some_and(|said| said.contains("is duplicate"));
            assert_eq!(directive.inherit == Inherit::Value, once_only, "{line} twice: {twice:?}");
        }
    }
}

/// Whether two requests share a connection to the backend, as the upstream's `keepalive`, the version of HTTP and the
/// header in force say.
fn kept_connections_are_those_of_nginx(nginx: &Path) {
    let platform = platform(nginx);
    let since_default = platform.version >= Some(Version(1, 29, 7));
    let mut upstreams = vec!["", "keepalive 4;"];
    if since_default {
        upstreams.extend(["keepalive 4 local;", "keepalive 0;"]);
    }
    let https = ["", "proxy_http_version 1.0;", "proxy_http_version 1.1;"];
    let headers = ["", "proxy_set_header Connection \"\";", "proxy_set_header Connection close;"];
    let mut text = String::from(
        "server { listen SOCKET; return 200; }\n\
         server { listen SOCKET.9999; return 200 \"$connection $http_connection\"; }\n",
    );
    let mut count = 0;
    for upstream in upstreams {
        for http in https {
            for header in headers {
                writeln!(
                    text,
                    "upstream u{count} {{ server SOCKET.9999; {upstream} }} server {{ listen SOCKET.{count}; \
                     location / {{ {http} {header} proxy_pass http://u{count}; }} location /direct {{ {http} {header} \
                     proxy_pass http://SOCKET.9999; }} }}"
                )
                .unwrap();
                count += 1;
            }
        }
    }
    let running = Nginx::start(nginx, &text).expect("nginx takes the upstreams");
    let model = text.replace("SOCKET", "unix:/s");
    let model = Model::for_platform(read(format!("http {{ {model} }}")).unwrap(), platform);
    let mut reused = 0;
    for (index, pass) in model.passes.iter().enumerate() {
        let group = index / 2;
        let target = if index % 2 == 0 { "/" } else { "/direct" };
        let mut stream = running.connect(group);
        let mut connection = || {
            let body = ask(&mut stream, Some("a.test"), target).body;
            String::from_utf8_lossy(&body).split(' ').next().unwrap_or_default().to_owned()
        };
        let (first, second) = (connection(), connection());
        let theirs = !first.is_empty() && first == second;

        let value = |name: &str| model.effective_of(pass, name).and_then(|found| found.value).unwrap();
        let keepalive = pass.upstream.is_some_and(|upstream| {
            let all = model.effective_in(&model.upstreams[upstream]);
            let found = all.iter().find(|(directive, _)| directive.name == "keepalive").unwrap();
            !matches!(found.1.value.as_deref(), Some("off" | "0"))
        });
        let ours =
            keepalive && value("http_version") == "1.1" && !value("set_header").contains("Connection close");
        assert_eq!(theirs, ours, "{target} {first} {second}: {}", model.config().text(pass.node));
        reused += usize::from(theirs);
    }
    println!("{reused} of {} are kept", model.passes.len());
    assert!(reused >= if since_default { 10 } else { 1 });
}

/// What the versions since 1.25 have brought: what nginx takes, we read without a word, and as it is meant.
fn new_syntax_is_read(nginx: &Path) {
    const NEW: &str = r#"
http {
    keepalive_min_timeout 1s;
    max_headers 100;
    resolver 127.0.0.1 ipv4=on ipv6=off;
    geo $place { default other; include places/*.conf; 10.0.0.0/8 inside; }
    map $uri $target { volatile; default http://back; "~^/(?<x>\d+)$" http://back/$x; }
    upstream back {
        zone back 64k;
        resolver 127.0.0.1 valid=10s;
        resolver_timeout 2s;
        server localhost:3000 resolve max_fails=2;
        server localhost service=_http._tcp resolve backup;
        server 127.0.0.1:3001 down;
        keepalive 8 local;
        keepalive_time 30m;
    }
    server {
        listen 127.0.0.1:18999 ssl;
        listen 127.0.0.1:18998 quic reuseport;
        http2 on;
        http3 off;
        quic_retry off;
        server_name a.test;
        ssl_reject_handshake on;
        location / { proxy_pass http://back; proxy_http_version 2; proxy_pass_trailers on; }
        location /variable { proxy_pass $target; early_hints $http2; }
        location /grpc { grpc_pass grpc://back; grpc_ssl_certificate_cache max=2; }
    }
}
"#;
    let platform = platform(nginx);
    let folder = tempfile::tempdir().unwrap();
    std::fs::create_dir(folder.path().join("places")).unwrap();
    std::fs::write(folder.path().join("places/a.conf"), "192.168.0.0/16 home;\n").unwrap();
    let said = complaint(nginx, folder.path(), &format!("events {{ }}{NEW}"));
    let new = platform.version >= Some(Version(1, 29, 8));
    assert_eq!(said.is_none(), new, "{said:?}");

    let files =
        super::Memory::new(&[(super::MAIN, NEW), ("/etc/nginx/places/a.conf", "192.168.0.0/16 home;\n")]);
    let config = crate::nginx::parse(&files, super::Source::new(Path::new(super::MAIN))).unwrap();
    let model = Model::for_platform(config, platform);
    assert!(model.warnings.is_empty(), "{:?}", model.warnings);
    assert_eq!(model.config().files().count(), 2);
    let servers = &model.upstreams[0].servers;
    assert_eq!(servers.iter().filter(|server| server.resolve).count(), 2);
    assert_eq!(servers[1].service.as_deref(), Some("_http._tcp"));
    let udp: Vec<bool> = model.servers[0].listens.iter().map(|listen| listen.udp).collect();
    assert_eq!(udp, [false, true]);
    let values: Vec<_> = model.passes.iter().map(|pass| (pass.upstream, pass.values.len())).collect();
    assert_eq!(values[0].0, Some(0));
    assert_eq!(values[2].0, Some(0));
    assert!(values[1].1 > 0, "{:?}", model.passes[1]);
    let http = model.effective_of(&model.passes[0], "http_version").unwrap();
    assert_eq!(http.value.as_deref(), Some("2"));
}
