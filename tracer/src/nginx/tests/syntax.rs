//! Tokenizer, includes and globs.

use std::{
    ffi::OsString,
    io,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use super::{MAIN, Memory, Random, read};
use crate::nginx::{
    Config, Error, Files, Model, Source, SyntaxError,
    dump::Dump,
    glob, parse, parse_partial,
    tree::{Kind, NodeId},
};

/// All directives as `name|arg|arg`, with blocks in brackets.
fn shape(config: &Config) -> String {
    let mut out = String::new();
    let mut open: Vec<NodeId> = Vec::new();
    for id in config.all().filter(|id| config.kind(*id) != Kind::Include) {
        while open.last().is_some_and(|block| Some(*block) != config.parent(id)) {
            open.pop();
            out.push(']');
        }
        let words: Vec<_> = std::iter::once(config.name(id)).chain(config.args(id)).collect();
        let words: Vec<_> = words.iter().map(|word| String::from_utf8_lossy(word)).collect();
        out += &format!(" {}", words.join("|"));
        if matches!(config.kind(id), Kind::Block) {
            out.push('[');
            open.push(id);
        }
    }
    out + &"]".repeat(open.len())
}

#[track_caller]
fn check(text: &str, expected: &str) {
    let found = match read(text) {
        Ok(config) => shape(&config).trim().to_owned(),
        Err(error) => error.to_string().trim_start_matches(MAIN).trim_start_matches(':').to_owned(),
    };
    assert_eq!(found, expected, "{text:?}");
}

#[test]
fn words() {
    check("a b;c\td;", "a|b c|d");
    check("a b{c;}", "a|b[ c]");
    check(r#"a "b c" 'd;e{';"#, "a|b c|d;e{");
    check(r#"a b"c d"e;"#, r#"a|b"c|d"e"#);
    check("a b#c; # d; {\ne;", "a|b#c e");
    check("a ${b}c $d;", "a|${b}c|$d");
    check("a x${b}{c;}", "a|x${b}[ c]");
    check("a b}c;", "a|b}c");
    check(r#"a "\"\t\x\\" b\ c\;;"#, "a|\"\t\\x\\|b\\ c\\;");
    check(r#"if ($a = "b"){c;}"#, "if|($a|=|b|)[ c]");
    check("a \"\" '';", "a||");
    check("", "");
    check(" # only a comment", "");
    check("a\r\nb\r\n;", "a|b");
    check("\u{feff}a;", "\u{feff}a");
}

#[test]
fn refusals() {
    check("a b", "1: unexpected end of file, expecting \";\" or \"}\"");
    check("a {\nb;\n", "3: unexpected end of file, expecting \"}\"");
    check("a;\n;", "2: unexpected \";\"");
    check("a;\n{", "2: unexpected \"{\"");
    check("a;\n}", "2: unexpected \"}\"");
    check("a {\nb }\n", "2: unexpected \"}\"");
    check("a \"b\"c;", "1: unexpected \"c\"");
    check("a \"b\n\nc;", "3: unexpected end of file, expecting \";\" or \"}\"");
    check("include {", "1: directive \"include\" is not terminated by \";\"");
    check("include a b;", "1: invalid number of arguments in \"include\" directive");
    check("map $a $b { c { } }", "1: unexpected \"{\"");
    check(
        "a {\nx_by_lua_block {\n'}'",
        "3: unexpected end of file, expecting terminating characters for lua code block",
    );
}

#[test]
fn long_words() {
    let at = |length: usize| read(format!("a;\n\nb {};\n", "x".repeat(length)));
    assert!(at(4095).is_ok());
    let spaced = |length: usize| read(format!("{} b;", "x".repeat(length)));
    assert!(spaced(4094).is_ok() && spaced(4095).is_err());
    let message = at(4096).unwrap_err().to_string();
    assert!(
        message.starts_with("/etc/nginx/nginx.conf:3: too long parameter \"xxxxxxxxxx...\" started"),
        "{message}"
    );
    let quoted = read(format!("a \"{}\nb;\n", "y\n".repeat(3000))).unwrap_err().to_string();
    assert!(
        quoted.ends_with(":1: too long parameter, probably missing terminating \"\"\" character"),
        "{quoted}"
    );
    assert!(
        read(format!("#{}\na;", "y".repeat(4096))).is_err(),
        "nginx keeps comments in its buffer as well"
    );
    assert!(read(format!("#{}\na;", "y".repeat(4094))).is_ok());
}

#[test]
fn lua_is_skipped() {
    let lua = r#"a_by_lua_block {
        local s = "}" .. '\'}' .. [[ } ]] .. [==[ ]] } ]==] -- } it's
        --[[ } ]] if x then y = { 1, { 2 } } end t[s[1]] = 0
    } b;"#;
    check(lua, "a_by_lua_block b");
    let config = read(lua).unwrap();
    let last = config.all().last().unwrap();
    assert_eq!((config.line(last), config.tokens(last)[0].column), (4, 7));
}

#[test]
fn places() {
    let config = read("http {\n  server   a:1\n  b;  x 'y z' ;\n}").unwrap();
    let ids: Vec<_> = config.all().collect();
    assert_eq!((config.line(ids[1]), config.end_line(ids[1])), (2, 3));
    assert_eq!(config.text(ids[0]), "http {");
    assert_eq!(config.text(ids[1]), "server a:1 b;");
    assert_eq!(config.text(ids[2]), "x 'y z' ;");
    assert_eq!(config.tokens(ids[2])[1].column, 9);
}

#[test]
fn tables_are_no_directives() {
    let config = read("http { map $a $b { server x; include y.map; } types { a b; } server { } }");
    assert!(matches!(config, Err(Error::Include { .. })));
    let config = read("http { map $a $b { server x; default y; } }").unwrap();
    let kinds: Vec<_> = config.all().map(|id| config.kind(id)).collect();
    assert_eq!(kinds, [Kind::Block, Kind::Block, Kind::Entry, Kind::Entry]);
}

#[test]
fn includes() {
    let files = Memory::new(&[
        (MAIN, "http { include conf.d/*.conf; last; include none/*; include one; } end;"),
        ("/etc/nginx/conf.d/b.conf", "b { include one; }"),
        ("/etc/nginx/conf.d/a.conf", "a; include snippets/*;"),
        ("/etc/nginx/conf.d/.hidden.conf", "hidden;"),
        ("/etc/nginx/snippets/x", "x;"),
        ("/etc/nginx/snippets/y", "y {\n}"),
        ("/etc/nginx/one", "one;"),
    ]);
    let config = parse(&files, Source::new(Path::new(MAIN))).unwrap();
    assert_eq!(shape(&config).trim(), "http[ a x y[] b[ one] last one] end");
    let http = config.top().next().unwrap();
    let names: Vec<_> = config.children(http).map(|id| config.text(id)).collect();
    assert_eq!(names, ["a;", "x;", "y {", "b {", "last;", "one;"]);
    assert_eq!(config.top().count(), 2);
    assert_eq!(config.files().count(), 6, "a file that is included twice is one file");
    assert_eq!(config.file(config.children(http).next().unwrap()), Path::new("/etc/nginx/conf.d/a.conf"));
}

#[test]
fn include_mistakes() {
    let missing = Memory::new(&[(MAIN, "a;\ninclude b.conf;\nc;")]);
    let error = parse(&missing, Source::new(Path::new(MAIN))).unwrap_err().to_string();
    assert!(error.starts_with("/etc/nginx/nginx.conf:2: include \"/etc/nginx/b.conf\" failed: "), "{error}");
    let (config, errors) = parse_partial(&missing, Source::new(Path::new(MAIN)));
    assert_eq!((shape(&config).trim(), errors.len()), ("a c", 1));

    let cycle = Memory::new(&[(MAIN, "include a;"), ("/etc/nginx/a", "x;\ninclude nginx.con?;")]);
    let error = parse(&cycle, Source::new(Path::new(MAIN))).unwrap_err();
    assert!(matches!(error, Error::Cycle { line: 2, .. }), "{error}");

    let damaged = Memory::new(&[
        (MAIN, "http { include c/*; z; }"),
        ("/etc/nginx/c/a", "a { aa; } };"),
        ("/etc/nginx/c/b", "b { bb"),
        ("/etc/nginx/c/c", "c;"),
    ]);
    let (config, errors) = parse_partial(&damaged, Source::new(Path::new(MAIN)));
    assert_eq!((shape(&config).trim(), errors.len()), ("http[ a[ aa] b[] c z]", 2));

    struct Endless;
    impl Files for Endless {
        fn read(&self, path: &Path) -> io::Result<Vec<u8>> {
            Ok(format!("include {}/x;", path.display()).into_bytes())
        }
        fn glob(&self, _: &Path) -> io::Result<Vec<PathBuf>> {
            Ok(Vec::new())
        }
    }
    assert!(matches!(parse(&Endless, Source::new(Path::new(MAIN))), Err(Error::TooLarge { .. })));
}

#[test]
fn globals_come_first() {
    let files = Memory::new(&[(MAIN, "a;")]);
    let with = |text: &str| {
        let source = Source { main: Path::new(MAIN), globals: Some(text.as_bytes()) };
        parse(&files, source)
            .map(|config| shape(&config).trim().to_owned())
            .map_err(|error| error.to_string())
    };
    assert_eq!(with("daemon off; user x;").unwrap(), "daemon|off user|x a");
    assert_eq!(with("daemon off").unwrap_err(), "-g:1: unexpected end of parameter, expecting \";\"");
    assert_eq!(with("a { }").unwrap_err(), "-g:1: block directives are not supported in -g option");
}

#[test]
fn depth_is_bounded() {
    let deep = "a{".repeat(200_000);
    let error = read(&deep).unwrap_err();
    assert!(matches!(error, Error::Syntax { kind: SyntaxError::TooDeep, .. }), "{error}");
    let fine = format!("{}{}", "a{".repeat(900), "}".repeat(900));
    assert_eq!(read(&fine).unwrap().all().count(), 900);
}

#[test]
fn dumps() {
    let text = "nginx: the configuration file /e/n.conf syntax is ok\n# configuration file /e/n.conf:\n\
                http {\n    include c/*.conf;\n}\n\n# configuration file /e/c/a.conf:\nserver { a; }\n";
    let dump = Dump::parse(text.as_bytes()).unwrap();
    let config = parse(&dump, Source::new(dump.main())).unwrap();
    assert_eq!(shape(&config).trim(), "http[ server[ a]]");
    assert!(Dump::parse(b"http { }").is_none());
}

#[test]
fn globs() {
    let cases = [
        ("*.conf", "a.conf", true),
        ("*.conf", ".a.conf", false),
        (".*", ".a", true),
        ("a?c", "abc", true),
        ("[a-c]x", "bx", true),
        ("[!a-c]x", "bx", false),
        ("[^a-c]x", "dx", true),
        ("[[:digit:]]*", "00-a", true),
        ("[]]", "]", true),
        ("[a-]", "-", true),
        ("a[b", "a[b", true),
        (r"\*", "*", true),
        (r"\*", "a", false),
        ("*a*b*c", "xxaxxbxxcxc", true),
        ("*", "", true),
        ("", "a", false),
    ];
    for (pattern, name, expected) in cases {
        assert_eq!(glob::matches(pattern.as_bytes(), name.as_bytes()), expected, "{pattern} {name}");
    }
    assert!(!glob::matches(&b"*a".repeat(2000), &b"a".repeat(1000)));
    let mut list = |folder: &Path| match folder.to_str() {
        Some("/e/") => Ok(vec![OsString::from("s2"), "s1".into(), ".h".into()]),
        Some("/e/s1/" | "/e/s2/") => Ok(vec![OsString::from("c")]),
        Some("/e/s1/c/") => Ok(vec![OsString::from("z.conf"), "a.conf".into()]),
        _ => Err(io::ErrorKind::NotFound.into()),
    };
    let found = glob::expand(Path::new("/e/s*/c/*.conf"), &mut list).unwrap();
    assert_eq!(found, [PathBuf::from("/e/s1/c/a.conf"), PathBuf::from("/e/s1/c/z.conf")]);
    assert_eq!(glob::expand(Path::new("/none/*"), &mut list).unwrap(), Vec::<PathBuf>::new());
}

#[test]
fn nothing_panics() {
    let mut random = Random(42);
    let seeds: [&[u8]; 4] = [
        b"http { upstream b { server 1:2 weight=x; } server { listen [::]:1-2; proxy_pass http://$a{:}[; } }",
        b"a_by_lua_block { --[==[ ]=] \"\\ } map $a ${ { include x.bin; } \\",
        b"stream { server { proxy_pass unix:; proxy_timeout 1y99999999999999999999ms; } } \"'\"",
        b"\xff\xfe\0{};# $\\",
    ];
    for round in 0..4000 * super::long() {
        let text = random.mutate(seeds[round % seeds.len()]);
        let files = Memory([(PathBuf::from(MAIN), text.clone())].into());
        let source = Source { main: Path::new(MAIN), globals: Some(&text) };
        let (config, _) = parse_partial(&files, source);
        let model = Model::new(config);
        let _ = (model.names(), model.listen_ports());
        let _ = model.candidates("127.0.0.1:80".parse().unwrap(), &|_| vec!["127.0.0.1".parse().unwrap()]);
        let _ = model.candidates_unix(Path::new("/a"));
        let _ = Dump::parse(&text);
        let _ = glob::matches(&text, b"name");
    }
}

/// Prints what a large configuration costs; the bounds are those of a loaded machine.
#[test]
fn a_large_configuration_is_read_quickly() {
    let mut text = "events {}\nhttp {\n    proxy_read_timeout 30s;\n".to_owned();
    let mut number = 0;
    while text.len() < 10_000_000 {
        text += &format!(
            "upstream backend{number} {{\n    server 10.0.{}.{}:8080 weight=5 max_fails=3 fail_timeout=30s;\n    \
             server backup{number}.internal:8080 backup;\n}}\nserver {{\n    listen 443 ssl http2; # {number}\n    \
             server_name shop{number}.example.com www.shop{number}.example.com;\n    location / {{\n        \
             proxy_set_header X-Forwarded-For \"$proxy_add_x_forwarded_for\";\n        proxy_pass \
             http://backend{number};\n    }}\n    location ~ \\.php$ {{ fastcgi_pass unix:/run/php{number}.sock; }}\n    \
             location /static/ {{ alias /srv/static/{number}/; expires 30d; }}\n}}\n",
            number >> 8 & 255,
            number & 255
        );
        number += 1;
    }
    text += "}\n";
    let files = Memory([(PathBuf::from(MAIN), text.into_bytes())].into());
    let start = Instant::now();
    let config = parse(&files, Source::new(Path::new(MAIN))).unwrap();
    let parsed = start.elapsed();
    let model = Model::new(config);
    let built = start.elapsed() - parsed;
    let start = Instant::now();
    let listen = Some("10.0.0.1:443".parse().unwrap());
    let located = model.locate(listen, Some("shop7.example.com"), "/x/index.html");
    let located_in = start.elapsed();
    assert!(located.exact && located.passes.len() == 1, "{located:?}");
    println!("10 MB: parsed in {parsed:?}, modelled in {built:?}; a request located in {located_in:?}");
    if !cfg!(debug_assertions) {
        assert!(parsed + built < Duration::from_secs(1), "{parsed:?}, {built:?}");
        assert!(located_in < Duration::from_millis(100), "{located_in:?}");
    }
}
