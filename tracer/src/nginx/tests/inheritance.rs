//! What a real nginx sends to its backend must be what the model says is in force: inheritance and defaults.

use std::{collections::BTreeMap, fmt::Write as _, path::Path};

use super::{
    Random,
    live::{Nginx, ask, asks_each_nginx, version},
    read, seed,
};
use crate::nginx::{Model, Platform, model::Pass};

const HEADERS: [&str; 3] = ["X-A", "X-B", "X-C"];

/// Some of the directives, in one block.
fn directives(random: &mut Random, level: &str) -> String {
    let mut text = String::new();
    for header in HEADERS {
        if random.below(4) == 0 {
            write!(text, "proxy_set_header {header} {level}{}; ", random.below(9)).unwrap();
        }
    }
    if random.below(5) == 0 {
        write!(text, "proxy_http_version 1.{}; ", random.below(2)).unwrap();
    }
    if random.below(5) == 0 {
        write!(text, "client_max_body_size {}; ", 1 + random.below(9)).unwrap();
    }
    if random.below(5) == 0 {
        write!(
            text,
            "proxy_pass_request_headers on; proxy_intercept_errors {}; ",
            ["on", "off"][random.below(2)]
        )
        .unwrap();
    }
    text
}

/// What the backend sees with these settings.
fn expected(model: &Model, pass: &Pass) -> String {
    let value = |name: &str| model.effective_of(pass, name).and_then(|found| found.value);
    let set: BTreeMap<String, String> = value("set_header")
        .unwrap_or_default()
        .split(", ")
        .filter_map(|line| line.split_once(' '))
        .map(|(name, value)| (name.to_owned(), value.to_owned()))
        .collect();
    let headers = HEADERS.map(|header| set.get(header).cloned().unwrap_or_default());
    format!("{} HTTP/{}", headers.join(" "), value("http_version").unwrap())
}

asks_each_nginx!(values_in_force_are_those_of_nginx);

fn values_in_force_are_those_of_nginx(nginx: &Path) {
    const SERVERS: usize = 150;
    let version = version(nginx);
    let mut random = Random(seed(0x0001_4e17));
    let top = "proxy_set_header X-A top; proxy_set_header X-B top;\n";
    let mut all = format!(
        "{top}server {{ listen SOCKET; return 200; }}\n\
         server {{ listen SOCKET.9999; return 200 \"$http_x_a $http_x_b $http_x_c $server_protocol\"; }}\n"
    );
    let pass = "proxy_pass http://SOCKET.9999;";
    let mut servers = Vec::new();
    for server in 0..SERVERS {
        let mut block = |level: &str| directives(&mut random, level);
        let text = format!(
            "server {{ listen SOCKET.{server}; {}\nlocation / {{ {} {pass} if ($arg_x) {{ proxy_pass \
             http://SOCKET.9999; }}\nlocation /in {{ {} {pass} }} }}\nlocation /fail {{ {} error_page 405 =201 /made; \
             limit_except GET {{ {pass} }} return 405; }} location = /made {{ return 200 made; }} }}\n",
            block("s"),
            block("l"),
            block("i"),
            block("f")
        );
        all.push_str(&text);
        servers.push(text);
    }
    let nginx = Nginx::start(nginx, &all).expect("nginx takes the generated directives");
    for (server, text) in servers.iter().enumerate() {
        let text = format!("http {{ {top} {text} }}").replace("SOCKET", "unix:/s");
        let model =
            Model::for_platform(read(&text).unwrap(), Platform { version: Some(version), page: 4096 });
        assert!(model.warnings.is_empty(), "{:?}", model.warnings);
        let mut stream = nginx.connect(server);
        // The passes in the order of the file: the location's, the one in `if`, the inner location's.
        for (target, pass) in [("/", 0), ("/?x=1", 1), ("/in/x", 2)] {
            let answer = ask(&mut stream, Some("a.test"), target);
            let body = String::from_utf8_lossy(&answer.body).into_owned();
            let ours = expected(&model, &model.passes[pass]);
            assert_eq!(body, ours, "{target} in {text}");
            let located = model.locate(None, Some("a.test"), target);
            assert!(located.passes.contains(&pass), "{target}: {located:?} in {text}");
        }
        assert_eq!(ask(&mut stream, Some("a.test"), "/fail").body, b"made", "{text}");
    }
}
