//! A real nginx as the judge, the installed one and a current one: for damaged configurations, `nginx -t` and the parser must agree on
//! what is wrong and where.

use std::{
    fmt::Write as _,
    path::{Path, PathBuf},
    process::Command,
    thread,
};

use super::{
    Config, Error, Memory, Random, Source,
    live::{Nginx, ask, asks_each_nginx},
    long, parse, read, seed,
};

/// Texts that are compared; a hundred times as many in a long run.
const CASES: usize = 2400;

const BASE: &str = r##"events { worker_connections 64; }
# a comment; with { marks }
http {
    access_log off;
    map $uri $target { default "a b"; '~^/x\d{2}$' 'q;{'; /z z; }
    upstream back {
        server 127.0.0.1:3000 weight=2
               max_fails=3;
        server unix:/run/app.sock backup;
    }
    server {
        listen 127.0.0.1:18999;
        server_name a.example ~^(www\.)?b$;
        set $v "x${uri}y";
        location ~ "^/n/[0-9]{1,3}$" { return 200 "multi
line; }"; }
        if ($uri = "/q") { return 204; }
        location / { proxy_pass http://back; proxy_set_header X-A '$host'; }
    }
}
"##;

/// A word as people might write it: bare, quoted, with escapes and signs that mean something elsewhere.
fn word(random: &mut Random) -> String {
    const PARTS: [&str; 28] = [
        "a", "b1", "é", "-", "=", "#", "{", "}", ";", "\\\"", "\\'", "\\\\", "\\t", "\\n", "\\r", "\\x",
        "\\;", "\\ ", " ", "\t", "\n", "'", "\"", "(", ")", ",", "/*", "~",
    ];
    let quote = ["", "", "\"", "'"][random.below(4)];
    let inner: String = (0..random.below(8)).map(|_| PARTS[random.below(PARTS.len())]).collect();
    format!("{quote}{inner}{quote}")
}

/// A configuration that nginx mostly takes: blocks, tables, includes, comments and words of every kind.
fn generate(random: &mut Random) -> String {
    let mut text = String::from("events { }\nhttp {\n");
    for number in 0..1 + random.below(3) {
        match random.below(4) {
            0 => {
                write!(text, "map $uri $m{number} {{ default {}; ", word(random)).unwrap();
                for key in 0..random.below(4) {
                    writeln!(text, "k{key}{} {};", if random.below(2) == 0 { "" } else { "#" }, word(random))
                        .unwrap();
                }
                text.push_str("}\n");
            }
            1 => text.push_str("include part*.conf; # and a comment {\n"),
            _ => {
                writeln!(text, "server {{ listen 127.0.0.1:18999; server_name n{number};").unwrap();
                for location in 0..random.below(4) {
                    let body = match random.below(4) {
                        0 => format!("return 200 {};", word(random)),
                        1 => format!("add_header X-A {};", word(random)),
                        2 => "if ($arg_x) { set $y 1; }".to_owned(),
                        _ => format!("set $x{} {};", random.below(3), word(random)),
                    };
                    writeln!(text, "location /{location} {{ {body} }}").unwrap();
                }
                text.push_str("}\n");
            }
        }
    }
    text.push_str("}\n");
    text
}

asks_each_nginx!(agrees_with_nginx, words_are_read_as_nginx_reads_them);

fn agrees_with_nginx(nginx: &Path) {
    let cases = CASES * long();
    let (mut refused, mut accepted) = (0, 0);
    thread::scope(|scope| {
        let workers = [0, 1].map(|half| scope.spawn(move || compare_all(nginx, half, cases / 2)));
        for worker in workers {
            let (no, yes) = worker.join().unwrap();
            refused += no;
            accepted += yes;
        }
    });
    println!("{refused} refused and {accepted} accepted alike");
    assert!(refused > cases / 4, "the mutations damage too little to show anything");
    assert!(accepted > cases / 8, "too little is accepted to show anything");
}

/// What both nginx and we say about a part of the cases; how many were refused and accepted.
fn compare_all(nginx: &Path, half: u64, cases: usize) -> (usize, usize) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("nginx.conf");
    let part = folder.path().join("part1.conf");
    let mut random = Random(seed(0x5eed_0502 + half));
    let (mut refused, mut accepted) = (0, 0);
    for case in 0..cases {
        let text = match case % 3 {
            0 => random.mutate(BASE.as_bytes()),
            1 => generate(&mut random).into_bytes(),
            _ => {
                let text = generate(&mut random);
                random.mutate(text.as_bytes())
            }
        };
        let included = format!("map $uri $i {{ a {}; }}\n", word(&mut random));
        std::fs::write(&path, &text).unwrap();
        std::fs::write(&part, &included).unwrap();
        let globals = format!("pid {}/pid;", folder.path().display());
        let output = Command::new(nginx)
            .args(["-t", "-e", "stderr", "-p"])
            .arg(folder.path())
            .arg("-c")
            .arg(&path)
            .args(["-g", &globals])
            .output()
            .unwrap();
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        let files =
            Memory([(path.clone(), text.clone()), (part.clone(), included.clone().into_bytes())].into());
        let ours = parse(&files, Source::new(&path));
        let emerg = said.lines().find(|line| line.contains("[emerg]"));
        if let Err(why) = compare(emerg, &[&path, &part], &ours) {
            let text = String::from_utf8_lossy(&text);
            let ours = ours.map(|_| "accepted");
            panic!("case {case}: {why}\nnginx: {said}\nwe: {ours:?}\n{text}\npart: {included}");
        }
        if emerg.is_some() { refused += 1 } else { accepted += 1 }
    }
    (refused, accepted)
}

/// Words that nginx sends back as it reads them.
fn words_are_read_as_nginx_reads_them(nginx: &Path) {
    const WORDS: usize = 3000;
    let mut random = Random(seed(0x0030_30d5));
    let mut locations = String::new();
    let mut kept = 0;
    while kept < WORDS {
        let word = word(&mut random);
        let statement = format!("location = /{kept} {{ return 200 {word}; }}\n");
        let alone = read(format!("http {{ server {{\n{statement}}} }}"));
        // What has other arguments, or ends elsewhere, is for the comparison above.
        let whole = alone.is_ok_and(|config| {
            let last = config.all().last();
            last.is_some_and(|id| &*config.name(id) == b"return" && config.args(id).count() == 2)
                && config.all().count() == 4
        });
        if whole {
            locations.push_str(&statement);
            kept += 1;
        }
    }
    let server = format!("server {{ listen SOCKET.0;\n{locations} }}");
    let config = read(format!("http {{ {server} }}")).unwrap();
    let nginx = Nginx::start(nginx, &format!("{server} server {{ listen SOCKET; return 200; }}"))
        .expect("nginx takes the words");
    let mut stream = nginx.connect(0);
    let returns = config.all().filter(|id| &*config.name(*id) == b"return");
    for (number, id) in returns.enumerate() {
        let answer = ask(&mut stream, Some("a.test"), &format!("/{number}"));
        let ours = config.args(id).nth(1).unwrap();
        assert_eq!(answer.body, &*ours, "{}", config.text(id));
    }
}

/// nginx stops at the first mistake of any kind, we know only mistakes of syntax.
fn compare(emerg: Option<&str>, paths: &[&PathBuf], ours: &Result<Config, Error>) -> Result<(), String> {
    let error = ours.as_ref().err().map(|error| match error {
        Error::Syntax { file, line, kind } => (file.clone(), *line, kind.to_string()),
        other => (PathBuf::new(), u32::MAX, other.to_string()),
    });
    let Some(emerg) = emerg else {
        return error.map_or(Ok(()), |error| Err(format!("nginx accepts it, we say {error:?}")));
    };
    if emerg.len() > 1000 {
        return Ok(()); // nginx cuts off long messages
    }
    let place = |path: &&PathBuf| emerg.rsplit_once(format!(" in {}:", path.display()).as_str());
    let Some((path, (message, line))) = paths.iter().find_map(|path| Some((path, place(path)?))) else {
        return Ok(());
    };
    let message = message.split_once(": ").map_or(message, |(_, message)| message);
    let line: u32 = line.parse().map_err(|_| format!("no line in {emerg}"))?;
    let starts = ["unexpected end of ", "too long parameter", "unexpected \""];
    let syntax = starts.iter().any(|start| message.starts_with(start)) && !message.ends_with(" in condition");
    if syntax {
        let same = error.as_ref().is_some_and(|(file, ours, kind)| {
            let kind = kind.split(" (nginx").next().unwrap_or_default();
            let same_text = kind == message || !message.is_ascii() || kind.contains("\\x");
            *ours == line && *file == **path && same_text
        });
        return if same { Ok(()) } else { Err(format!("nginx says {message} at {line}, we {error:?}")) };
    }
    if let Some((file, ours, kind)) = &error
        && *ours < line
        && *file == **path
    {
        return Err(format!("nginx reads on to line {line}, we stop at {ours}: {kind}"));
    }
    let unknown = message.strip_prefix("unknown directive \"").and_then(|name| name.strip_suffix('"'));
    if let (Some(name), Ok(config)) = (unknown, ours) {
        let known = config.all().any(|id| {
            config.end_line(id) == line
                && (String::from_utf8_lossy(&config.name(id)) == name || !name.is_ascii())
        });
        if !known {
            return Err(format!("nginx reads a directive \"{name}\" that ends in line {line}, we do not"));
        }
    }
    Ok(())
}
