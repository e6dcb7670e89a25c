//! Locations and the ways between them, as a real nginx takes them.

use std::{fmt::Write as _, path::Path};

use super::{
    Random,
    live::{Answer, Nginx, ask, asks_each_nginx, id},
    read, seed,
};
use crate::nginx::{Located, Model};

const REGEXES: [&str; 24] = [
    "^/a",
    "b$",
    "\\.php$",
    "^/(?<part>a+)/",
    "^/[ab]+/?$",
    "\\d+",
    "B/A",
    "a{2}",
    "^/(a|b)/(?:b|c)",
    "(?i)ab",
    "(?!a)b",
    "a++",
    "(a)\\1",
    "[^/]+\\.(php|a)$",
    "^/a/b$|^/b",
    "[\\w.-]+b",
    "\\x62",
    "^/.$",
    "/{2}",
    " ",
    "[[:digit:]]",
    "a(?=/)",
    "^(/a)?/b\\b",
    "\\/a\\/b",
];

const PARTS: [&str; 14] = ["a", "b", "ab", "A", "a.php", "c", "aa", "b1", ".", "..", "", "a b", "é", "ab.a"];

/// Locations inside a block, each with an id of its own.
fn locations(random: &mut Random, parent: Option<&str>, depth: usize, next: &mut u32, out: &mut String) {
    let mut used: Vec<String> = Vec::new();
    for _ in 0..1 + random.below(7) {
        *next += 1;
        let id = *next;
        let kind = random.below(6);
        let mut name = parent.unwrap_or("").to_owned();
        for _ in 0..random.below(3) + usize::from(parent.is_none()) {
            let part = PARTS[random.below(PARTS.len())];
            let bare = random.below(if name.is_empty() { 30 } else { 5 }) == 0;
            write!(name, "{}{part}", if bare { "" } else { "/" }).unwrap();
        }
        if name.is_empty() || name.starts_with(['=', '~', '^', '@']) {
            continue;
        }
        let regex = REGEXES[random.below(REGEXES.len())];
        let (modifier, name) = match kind {
            0 => ("=", name),
            1 | 2 => ("", name),
            3 => ("^~", name),
            4 => ("~", regex.to_owned()),
            _ => ("~*", regex.to_owned()),
        };
        let key = if matches!(modifier, "" | "^~") { name.clone() } else { format!("{modifier} {name}") };
        if used.contains(&key) {
            continue;
        }
        used.push(key);
        let pass = modifier.is_empty() && random.below(4) == 0;
        let handler = if pass { "proxy_pass http://127.0.0.1:1;" } else { "return 200;" };
        writeln!(
            out,
            "location {modifier} \"{}\" {{ add_header X-Id {id} always; {handler}",
            name.replace('\\', "\\\\")
        )
        .unwrap();
        let nests = depth < 3 && modifier != "=" && random.below(3) == 0;
        if nests {
            // Inside a regular expression only others fit.
            let inner = if modifier.starts_with('~') { None } else { Some(name.as_str()) };
            if inner.is_some() {
                locations(random, inner, depth + 1, next, out);
            } else {
                *next += 1;
                writeln!(out, "location ~ b {{ add_header X-Id {next} always; return 200; }}").unwrap();
            }
        }
        out.push_str("}\n");
    }
}

fn target(random: &mut Random) -> String {
    const JOINS: [&str; 12] = ["/", "/", "/", "/", "//", "/./", "/../", "%2F", "/%2e/", "", "///", "/a/.."];
    const ENDS: [&str; 14] =
        ["", "", "", "/", "?x=/../..", "#f", "/.", "/..", "%", "%2", "%3f", "%25", "%00", "%0a"];
    let mut made = String::new();
    for _ in 0..1 + random.below(4) {
        made.push_str(if made.is_empty() { "/" } else { JOINS[random.below(JOINS.len())] });
        let part = PARTS[random.below(PARTS.len())];
        for byte in part.bytes() {
            match random.below(12) {
                _ if byte <= b' ' || byte >= 0x80 => write!(made, "%{byte:02x}").unwrap(),
                0 => write!(made, "%{byte:02X}").unwrap(),
                _ => made.push(char::from(byte)),
            }
        }
    }
    made.push_str(ENDS[random.below(ENDS.len())]);
    made
}

/// Compares one answer; the count of those that could be said for certain.
fn compare(model: &Model, located: &Located, answer: &Answer, what: &str) -> usize {
    let ours = located.location.and_then(|location| id(model, location));
    let uncertain = located.because.contains(&"location ~") || located.because.contains(&"uri");
    match answer.status {
        400 => {
            assert!(located.because.contains(&"uri"), "nginx refuses {what}, we say {located:?}");
            return 1;
        }
        301 => {
            assert!(ours.is_none() || uncertain, "nginx redirects {what}, we say {ours:?}");
            return usize::from(!uncertain);
        }
        502 => {
            let pass = model
                .passes
                .iter()
                .position(|pass| pass.location.and_then(|location| id(model, location)) == answer.id);
            let pass = pass.unwrap();
            assert!(located.passes.contains(&pass), "{what}: pass {:?} is not in {located:?}", answer.id);
        }
        _ => {}
    }
    if uncertain && ours.is_none() {
        return 0;
    }
    assert_eq!(ours, answer.id, "{what}: {answer:?} {located:?}");
    1
}

asks_each_nginx!(locations_are_those_of_nginx, passes_are_among_those_of_the_model);

fn locations_are_those_of_nginx(nginx: &Path) {
    const SETS: usize = 400;
    const URIS: usize = 25;
    let mut random = Random(seed(0x0010_ca7e));
    let (mut all, mut sets) = (String::new(), Vec::new());
    for set in 0..SETS {
        let mut body = String::new();
        let mut next = 0;
        locations(&mut random, None, 0, &mut next, &mut body);
        let merge = if random.below(5) == 0 { "merge_slashes off;" } else { "" };
        let server = format!("server {{ listen SOCKET.{set}; {merge}\n{body}}}\n");
        all.push_str(&server);
        sets.push(server);
    }
    all.push_str("server { listen SOCKET; return 200; }");
    let nginx = Nginx::start(nginx, &all).expect("nginx takes the generated locations");
    let (mut asked, mut certain) = (0, 0);
    for (set, server) in sets.iter().enumerate() {
        let mut stream = nginx.connect(set);
        let model = Model::new(read(format!("http {{ {server} }}")).unwrap());
        for _ in 0..URIS {
            let target = target(&mut random);
            let mut answer = ask(&mut stream, Some("a.test"), &target);
            if answer.status == 0 {
                // nginx has closed the connection in between.
                stream = nginx.connect(set);
                answer = ask(&mut stream, Some("a.test"), &target);
            }
            if !answer.open {
                stream = nginx.connect(set);
            }
            let located = model.locate(None, Some("a.test"), &target);
            certain += compare(&model, &located, &answer, &format!("{target} in\n{server}"));
            asked += 1;
        }
    }
    println!("{asked} requests, {certain} answers for certain");
    assert!(certain * 10 > asked * 6, "{certain} of {asked} can be said");
}

/// Locations that lead elsewhere: by rewrites, `try_files`, `error_page`, subrequests and `if`.
fn flows(random: &mut Random) -> String {
    const REWRITES: [&str; 10] = [
        "rewrite ^/a(.*)$ /b$1 last;",
        "rewrite ^/b(.*)$ /c$1;",
        "rewrite ^/c/(.*)$ /a/$1 break;",
        "rewrite ^/d /e?x=1 last;",
        "rewrite (?=b)b /x last;",
        "rewrite ^/e http://other.test/ permanent;",
        "if ($arg_y) { rewrite ^ /c/y last; }",
        "if ($request_uri ~ b) { return 503; }",
        "rewrite ^/x(.*)$ $uri/c$is_args last;",
        "break;",
    ];
    const LEADS: [&str; 9] = [
        "try_files /none @n;",
        "try_files $uri $uri/ /c$uri?x;",
        "try_files /none /b/$arg_z;",
        "error_page 404 502 503 = @n;",
        "error_page 404 502 503 = /e;",
        "index a.php /d;",
        "error_page 404 =200 /b;",
        "auth_request /e;",
        "mirror /d;",
    ];
    let mut text = String::new();
    for _ in 0..random.below(3) {
        text.push_str(REWRITES[random.below(REWRITES.len())]);
    }
    if random.below(4) == 0 {
        text.push_str(LEADS[3 + random.below(3)]);
    }
    for (id, name) in
        ["/", "/a", "/b", "= /b/c", "/c", "~ \\.php$", "/d", "~* e", "/x/", "@n", "/e"].iter().enumerate()
    {
        if *name != "@n" && random.below(3) == 0 {
            continue;
        }
        write!(text, "\nlocation {name} {{ add_header X-Id {id} always; ").unwrap();
        if random.below(6) == 0 {
            text.push_str("internal; ");
        }
        for _ in 0..random.below(2) {
            text.push_str(REWRITES[random.below(REWRITES.len())]);
        }
        if random.below(2) == 0 {
            text.push_str(LEADS[random.below(LEADS.len())]);
        }
        if random.below(5) > 0 {
            text.push_str("proxy_pass http://127.0.0.1:1;");
        }
        if random.below(6) == 0 && !name.starts_with(['~', '@']) {
            text.push_str("if ($arg_x) { add_header X-Id if always; proxy_pass http://127.0.0.1:1; }");
        }
        text.push_str(" }");
    }
    text
}

fn passes_are_among_those_of_the_model(nginx: &Path) {
    const SETS: usize = 300;
    let mut random = Random(seed(0xf103));
    let (mut all, mut sets) = (String::new(), Vec::new());
    for set in 0..SETS {
        let server = format!("server {{ listen SOCKET.{set}; {}\n}}\n", flows(&mut random));
        all.push_str(&server);
        sets.push(server);
    }
    all.push_str("server { listen SOCKET; return 200; }");
    let nginx = Nginx::start(nginx, &all).expect("nginx takes the generated servers");
    let (mut failed, mut exact) = (0, 0);
    for (set, server) in sets.iter().enumerate() {
        let model = Model::new(read(format!("http {{ {server} }}")).unwrap());
        let targets =
            ["/", "/a", "/a/b?x=1", "/b/c", "/b/", "/c/x", "/d?y=1", "/ee", "/x/1", "/x.php", "/E", "/x"];
        for target in targets {
            let answer = ask(&mut nginx.connect(set), Some("a.test"), target);
            if answer.status != 502 && answer.id.as_deref() != Some("if") {
                continue;
            }
            let located = model.locate(None, Some("a.test"), target);
            let fits = |pass: &usize| {
                let parent = model.config().parent(model.passes[*pass].node);
                parent.and_then(|block| id(&model, block)) == answer.id
            };
            // An answer without an id comes from the server's own level, after a redirect from a pass.
            let what = format!("{target}: {answer:?} {located:?} in\n{server}");
            assert!(answer.id.is_none() || located.passes.iter().any(fits), "{what}");
            failed += 1;
            exact += usize::from(located.exact);
        }
    }
    println!("{failed} requests reached a pass, {exact} exact");
    assert!(exact * 10 > failed, "{exact} of {failed} are exact");
}
