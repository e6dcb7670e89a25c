//! The installed nginx as the judge: for damaged configurations, `nginx -t` and the parser must agree on
//! what is wrong and where.

use std::{path::Path, process::Command};

use super::{Config, Error, Memory, Random, Source, parse};

const CASES: usize = 300;

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

#[test]
fn agrees_with_nginx() {
    let installed = ["/usr/sbin/nginx", "/usr/local/sbin/nginx", "/usr/local/nginx/sbin/nginx"];
    let Some(nginx) = installed.iter().find(|path| Path::new(path).exists()) else {
        println!("skipped: nginx is not installed, so that there is nothing to compare with");
        return;
    };
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("nginx.conf");
    let mut random = Random(0x5eed_0502);
    let (mut refused, mut accepted) = (0, 0);
    for case in 0..CASES {
        let text = if case == 0 { BASE.as_bytes().to_vec() } else { random.mutate(BASE.as_bytes()) };
        std::fs::write(&path, &text).unwrap();
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
        let files = Memory([(path.clone(), text.clone())].into());
        let ours = parse(&files, Source::new(&path));
        let emerg = said.lines().find(|line| line.contains("[emerg]"));
        if let Err(why) = compare(emerg, &path, &ours) {
            let text = String::from_utf8_lossy(&text);
            panic!("case {case}: {why}\nnginx: {said}\nwe: {:?}\n{text}", ours.map(|_| "accepted"));
        }
        if emerg.is_some() { refused += 1 } else { accepted += 1 }
    }
    println!("{refused} refused and {accepted} accepted alike");
    assert!(refused > CASES / 3, "the mutations damage too little to show anything");
}

/// nginx stops at the first mistake of any kind, we know only mistakes of syntax.
fn compare(emerg: Option<&str>, path: &Path, ours: &Result<Config, Error>) -> Result<(), String> {
    let error = ours.as_ref().err().map(|error| match error {
        Error::Syntax { line, kind, .. } => (*line, kind.to_string()),
        other => (u32::MAX, other.to_string()),
    });
    let Some(emerg) = emerg else {
        return error.map_or(Ok(()), |error| Err(format!("nginx accepts it, we say {error:?}")));
    };
    let place = format!(" in {}:", path.display());
    if emerg.len() > 1000 {
        return Ok(()); // nginx cuts off long messages
    }
    let Some((message, line)) = emerg.rsplit_once(place.as_str()) else {
        return Ok(());
    };
    let message = message.split_once(": ").map_or(message, |(_, message)| message);
    let line: u32 = line.parse().map_err(|_| format!("no line in {emerg}"))?;
    let starts = ["unexpected end of ", "too long parameter", "unexpected \""];
    let syntax = starts.iter().any(|start| message.starts_with(start)) && !message.ends_with(" in condition");
    if syntax {
        let same = error.as_ref().is_some_and(|(ours, kind)| {
            let kind = kind.split(" (nginx").next().unwrap_or_default();
            let same_text = kind == message || !message.is_ascii() || kind.contains("\\x");
            *ours == line && same_text
        });
        return if same { Ok(()) } else { Err(format!("nginx says {message} at {line}, we {error:?}")) };
    }
    if let Some((ours, kind)) = &error
        && *ours < line
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
