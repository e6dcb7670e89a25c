//! From requests to passes, and from there to fewer candidates; the URI that locations see.

use super::{Random, read};
use crate::nginx::{Asked, Candidate, Model, pcre::Pattern, uri};

const SHOP: &str = r"http {
    upstream app { server 127.0.0.1:3000; }
    server {
        listen 80 default_server; merge_slashes off; server_name shop.test *.shop.test;
        location /api/ { proxy_connect_timeout 1s; proxy_pass http://app; }
        location / { proxy_pass http://app; proxy_connect_timeout 2s; }
        location ~ \.php$ { try_files $uri @app; }
        location @app { proxy_pass http://127.0.0.1:3000; }
    }
    server { listen 80; server_name ~^admin\d+\.; location / { auth_request /auth; proxy_pass http://app; }
        location = /auth { internal; proxy_pass http://127.0.0.1:4000; } }
    server { listen 127.0.0.1:81; location / { proxy_pass http://app; if ($slow) { proxy_pass http://127.0.0.1:1; } } }
}
stream { server { listen 90; proxy_pass 127.0.0.1:9; } }
";

fn shop() -> Model {
    let model = Model::new(read(SHOP).unwrap());
    assert!(model.warnings.is_empty(), "{:?}", model.warnings);
    model
}

fn lines(candidates: &[Candidate]) -> Vec<Vec<u32>> {
    candidates.iter().map(|candidate| candidate.lines.iter().map(|line| line.line).collect()).collect()
}

#[test]
fn a_request_leaves_fewer_candidates() {
    let model = shop();
    let all = model.candidates("127.0.0.1:3000".parse().unwrap(), &|_| Vec::new());
    assert_eq!(lines(&all), [vec![2, 5, 6, 10, 12], vec![8]]);
    let narrowed = |listen: Option<&str>, host: Option<&str>, target: &str| {
        let located = model.locate(listen.map(|text| text.parse().unwrap()), host, target);
        let left = model.narrow(&all, &located);
        (lines(&left), located.exact, left)
    };
    let port = Some("10.0.0.1:80");
    let (left, exact, candidates) = narrowed(port, Some("shop.test"), "/api/orders?x=1");
    assert_eq!((left, exact), (vec![vec![2, 5]], true));
    assert_eq!(candidates[0].connect_timeout().unwrap().milliseconds, Some(1000));
    assert_eq!(candidates[0].upstream_server, Some((0, 0)));
    assert_eq!(narrowed(port, Some("a.shop.test"), "/x.php").0, [vec![8]]);
    assert_eq!(narrowed(port, Some("other.test"), "/x").0, [vec![2, 6]], "the default server");
    assert_eq!(narrowed(port, Some("admin7.test"), "/x").0, [vec![2, 10]]);
    assert!(!narrowed(port, Some("admin7.test"), "/x").1, "the subrequest may have failed");
    assert_eq!(narrowed(Some("127.0.0.1:81"), Some("shop.test"), "/").0, [vec![2, 12]]);
    assert_eq!(narrowed(None, Some("shop.test"), "/api/").0, [vec![2, 5, 12]], "either address");
    assert_eq!(narrowed(port, None, "/api/").0, [vec![2, 5, 10]], "any host");
    assert_eq!(narrowed(port, Some("shop.test"), "//api/").0, [vec![2, 6]], "slashes are not merged here");
    // A contradiction leaves everything as it was.
    assert_eq!(narrowed(Some("10.0.0.1:9999"), Some("shop.test"), "/").0, lines(&all));
    let stream = model.locate_stream(Some("10.0.0.1:90".parse().unwrap()));
    assert_eq!((stream.passes, stream.exact), (vec![7], true));
}

/// Passes 0 to 3 in this order; the request is for `/a`.
#[track_caller]
fn leads(in_server: &str, in_a: &str, answered: bool, passes: &[usize]) {
    let text = format!(
        "http {{ upstream u {{ server unix:/u; }} server {{ listen 80; {in_server}\n location /a {{ {in_a} proxy_pass \
         http://127.0.0.1:1; }} location /b {{ proxy_pass http://127.0.0.1:1; }} location @c {{ proxy_pass \
         http://127.0.0.1:1; }} location /d {{ proxy_pass http://127.0.0.1:1; }} }} \
         server {{ listen 81; location / {{ proxy_pass http://127.0.0.1:1; }} }} }}"
    );
    let model = Model::new(read(&text).unwrap());
    let listen = "10.0.0.1:80".parse().unwrap();
    let asked = Asked { listen, host: Some("x"), target: Some("/a"), answered };
    assert_eq!(model.locate_attempt(&asked).passes, passes, "{text}");
}

#[test]
fn what_an_attempt_can_have_come_from() {
    leads("", "", false, &[0]);
    leads("", "", true, &[0, 1, 2, 3]);
    leads("proxy_ignore_headers Expires x-accel-redirect;", "", true, &[0]);
    leads("", "proxy_cache z;", false, &[0, 1, 2, 3]);
    leads("proxy_cache z;", "proxy_cache off;", false, &[0]);
    leads("", "if ($x) { error_page 503 @c; return 503; }", false, &[0, 2]);
    leads("error_page 418 @c; if ($x) { return 418; }", "error_page 500 /d;", false, &[0, 2, 3]);
    leads("error_page 400 /b;", "error_page 404 /none;", false, &[0, 1]);
    leads("", "if ($x) { ssi on; }", false, &[0, 1, 2, 3]);
    leads("", "echo_location /b;", false, &[0, 1, 2, 3]);
    leads("", "auth_request /d;", false, &[0, 3]);
    leads("", "rewrite ^ /b last;", false, &[1]);
}

#[test]
fn an_answer_over_a_unix_socket_is_not_seen() {
    let model = Model::new(
        read(
            "http { upstream u { server unix:/u; } server { listen 80;
             location /a { auth_request /auth; proxy_pass http://127.0.0.1:1; }
             location = /auth { proxy_pass http://u; } location /b { proxy_pass http://127.0.0.1:1; } } }",
        )
        .unwrap(),
    );
    let listen = "10.0.0.1:80".parse().unwrap();
    let of = |target: Option<&str>| {
        model.locate_attempt(&Asked { listen, host: Some("x"), target, answered: false }).passes
    };
    assert_eq!(of(Some("/a")), [0, 1, 2]);
    assert_eq!(of(Some("/b")), [2]);
    assert_eq!(of(None), [0, 1, 2]);
}

#[test]
fn without_a_target_the_listen_address_tells() {
    let model = shop();
    let of = |listen: &str, host: Option<&str>| {
        let listen = listen.parse().unwrap();
        model.locate_attempt(&Asked { listen, host, target: None, answered: false }).passes
    };
    assert_eq!(of("10.0.0.1:80", None), [0, 1, 2, 3, 4]);
    assert_eq!(
        of("10.0.0.1:80", Some("admin7.test")),
        [0, 1, 2, 3, 4],
        "the default server may have refused it"
    );
    assert_eq!(of("127.0.0.1:81", None), [5, 6]);
    assert_eq!(of("127.0.0.1:90", None), [7]);
    assert!(of("127.0.0.1:9999", None).is_empty());
}

#[test]
fn slashes_are_merged_as_the_default_server_says() {
    let model = Model::new(
        read(
            "http { server { listen 80; merge_slashes off; location / { proxy_pass http://127.0.0.1:1; } }
                    server { listen 80; server_name b; location / { proxy_pass http://127.0.0.1:2; }
                             location /a/b { proxy_pass http://127.0.0.1:3; } } }",
        )
        .unwrap(),
    );
    let at =
        |listen: Option<&str>| model.locate(listen.map(|text| text.parse().unwrap()), Some("b"), "/a//b");
    assert_eq!(at(Some("10.0.0.1:80")).passes, [1]);
    assert_eq!((at(None).passes, at(None).location), (vec![1, 2], None));
}

#[test]
fn scripts_may_lead_anywhere() {
    for script in ["content_by_lua_block { x() }", "js_content x.y;", "ssi on;"] {
        let text = format!(
            "http {{ server {{ location / {{ {script} }} location /a {{ proxy_pass http://127.0.0.1:1; }} \
             location /b {{ proxy_pass http://127.0.0.1:2; }} }} }}"
        );
        let model = Model::new(read(&text).unwrap());
        let located = model.locate(None, None, "/");
        assert_eq!((located.passes.len(), located.exact), (2, false), "{script}");
        assert!(model.locate(None, None, "/a").exact, "{script}");
    }
}

#[test]
fn uris() {
    for (target, merged) in [
        ("/", Some("/")),
        ("/a/b", Some("/a/b")),
        ("/a//b///c", Some("/a/b/c")),
        ("/a/./b/.", Some("/a/b/")),
        ("/a/../b", Some("/b")),
        ("/a/b/..", Some("/a/")),
        ("/..", None),
        ("/a/../..", None),
        ("/a/%2e%2e/b", Some("/b")),
        ("/a%2Fb%2f%2fc", Some("/a/b/c")),
        ("/%61%20b", Some("/a b")),
        ("/a?b/../c", Some("/a")),
        ("/a#b", Some("/a")),
        ("/a%3fb%23c%25d", Some("/a?b#c%d")),
        ("/a%", None),
        ("/a%2", None),
        ("/a%zz", None),
        ("/a%00", None),
        ("/...", Some("/...")),
        ("/a/..b", Some("/a/..b")),
        ("/.%2e", None),
        ("", None),
        ("*", None),
        ("http://a/b", None),
    ] {
        let found = uri::normalise(target.as_bytes(), true);
        assert_eq!(found.as_deref().map(|uri| std::str::from_utf8(uri).unwrap()), merged, "{target}");
    }
    assert_eq!(uri::normalise(b"/a//b/", false).unwrap(), b"/a//b/");
    for (header, expected) in [
        ("A.Example.:80", Some("a.example")),
        ("[::1]:80", Some("[::1]")),
        ("[::1]", Some("[::1]")),
        ("a..b", None),
        ("a/b", None),
        ("a b", None),
        (":80", None),
        (".", None),
    ] {
        assert_eq!(uri::host_name(header).as_deref(), expected, "{header}");
    }
}

#[test]
fn normalised_uris_stay_as_they_are() {
    let mut random = Random(0x00f1);
    let pieces = ["/", "/", ".", "..", "a", "%2e", "%2f", "%61", "%25", "%3f", "%c3%a9", "?", "#", "+", "é"];
    for _ in 0..20_000 * super::long() {
        let target: String = (0..random.below(12)).map(|_| pieces[random.below(pieces.len())]).collect();
        let target = format!("/{target}");
        for merge in [true, false] {
            let Some(once) = uri::normalise(target.as_bytes(), merge) else { continue };
            assert!(once.starts_with(b"/"), "{target}");
            assert!(once.len() <= target.len(), "{target}");
            let text = String::from_utf8_lossy(&once);
            let segments: Vec<_> = text.split('/').collect();
            let dots = segments.iter().any(|part| *part == "." || *part == "..");
            assert!(!dots, "{target} became {text}");
            assert!(!merge || !text.contains("//"), "{target} became {text}");
            // What has no encoded sign left is read the same again.
            if !once.iter().any(|byte| b"%?#".contains(byte)) {
                assert_eq!(uri::normalise(&once, merge).as_deref(), Some(&*once), "{target}");
            }
        }
    }
}

#[test]
fn expressions_have_an_answer_or_none() {
    let answer = |pattern: &str, text: &str| {
        Pattern::new(pattern.as_bytes(), false).and_then(|regex| regex.is_match(text.as_bytes()))
    };
    for (pattern, text, expected) in [
        (r"^/a\.php$", "/a.php", Some(true)),
        (r"^/a\.php$", "/a.php\n", None),
        (r"^/(?<x>[a-z0-9_-]+)/", "/a-b/", Some(true)),
        (r"\w\W\d\s", "a-1 ", Some(true)),
        ("é", "/é", Some(true)),
        (r"^.{2}$", "é", Some(true)),
        ("[^a]{1,3}", "a", Some(false)),
        ("(?i)ABC", "xabc", Some(true)),
        ("a*?b", "b", Some(true)),
        ("a++b", "aab", None),
        ("(?>a)b", "ab", None),
        ("(?=a)", "a", None),
        ("(?#x)a", "a", None),
        (r"(a)\1", "aa", None),
        (r"\Qa\E", "a", None),
        (r"\h", " ", None),
        (r"\K", "", None),
        ("a{,3}", "a", None),
        ("a{x}", "a", None),
        ("[[:alpha:]]", "a", None),
        ("[a&&b]", "a", None),
        ("[a[b]", "a", None),
        ("(*UTF8)a", "a", None),
        (r"\b{start}a", "a", None),
        (r"\<a", "a", None),
        ("(", "a", None),
        ("a|", "", Some(true)),
    ] {
        assert_eq!(answer(pattern, text), expected, "{pattern} {text:?}");
    }
}

#[test]
fn nothing_panics() {
    let mut random = Random(0x10ca);
    for _ in 0..600 * super::long() {
        let text = random.mutate(SHOP.as_bytes());
        let text = String::from_utf8_lossy(&text).into_owned();
        let (config, _) = super::partial(&text);
        let model = Model::new(config);
        let target = random.mutate(b"/a/../%2e%2f?x#y");
        let target = String::from_utf8_lossy(&target).into_owned();
        let listen = Some("10.0.0.1:80".parse().unwrap());
        for host in [None, Some("shop.test"), Some(target.as_str())] {
            let located = model.locate(listen, host, &target);
            let all = model.candidates("127.0.0.1:3000".parse().unwrap(), &|_| Vec::new());
            let left = model.narrow(&all, &located);
            assert!(left.len() <= all.len());
        }
        for pass in &model.passes {
            let _ = model.effective_all(pass);
        }
        for upstream in &model.upstreams {
            let _ = model.effective_in(upstream);
        }
        let _ = (model.users_by_upstream(), model.locate_stream(listen));
    }
}

/// Found by the fuzzer: two to the power of the steps.
#[test]
fn a_uri_that_doubles_ends() {
    for lead in ["rewrite ^(.*)$ $1$1 last;", "try_files /none $uri$uri;", "error_page 404 = $uri$uri$uri;"] {
        let text = format!("http {{ server {{ location / {{ {lead} proxy_pass http://127.0.0.1:1; }} }} }}");
        let model = Model::new(read(text).unwrap());
        let located = model.locate(None, Some("a.test"), "/abc");
        assert_eq!((located.passes.as_slice(), located.exact), (&[0][..], false), "{lead}");
    }
}
