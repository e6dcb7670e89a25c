//! Any bytes are a configuration, or a dump of several files as `nginx -T` prints it: reading them ends, panics
//! nowhere, and keeps the promises that the rest of why502 relies on. A comment `# ask HOST TARGET` is a request.
#![no_main]

use std::{
    io,
    net::{IpAddr, Ipv4Addr, SocketAddr},
    path::{Path, PathBuf},
};

use libfuzzer_sys::fuzz_target;
use tracer::nginx::{
    Config, Files, Model, Platform, Source, Version, dump::Dump, parse, parse_partial, value::Address,
};

/// One file, under any name.
struct Only<'a>(&'a [u8]);

impl Files for Only<'_> {
    fn read(&self, path: &Path) -> io::Result<Vec<u8>> {
        if path == Path::new(MAIN) { Ok(self.0.to_vec()) } else { Err(io::ErrorKind::NotFound.into()) }
    }

    fn glob(&self, _: &Path) -> io::Result<Vec<PathBuf>> {
        Ok(Vec::new())
    }
}

const MAIN: &str = "/etc/nginx/nginx.conf";
const VERSIONS: [Option<Version>; 3] = [None, Some(Version(1, 22, 1)), Some(Version(1, 30, 6))];
const TARGETS: [&str; 6] = ["/", "/a/b.php?x=1", "/%61/../a//b", "//", "/a b", "/%"];

fuzz_target!(|bytes: &[u8]| {
    match Dump::parse(bytes) {
        Some(dump) => read(&dump, dump.main(), bytes),
        None => read(&Only(bytes), Path::new(MAIN), bytes),
    }
});

fn read(files: &dyn Files, main: &Path, bytes: &[u8]) {
    let source = Source::new(main);
    let (config, errors) = parse_partial(files, source);
    let strict = parse(files, source);
    assert_eq!(strict.is_err(), !errors.is_empty(), "the two ways of reading disagree: {errors:?}");
    if let Ok(strict) = strict {
        assert_eq!(nodes(&strict), nodes(&config));
    }
    let version = VERSIONS[bytes.len() % VERSIONS.len()];
    let text = String::from_utf8_lossy(bytes);
    let own = text.lines().filter_map(|line| line.strip_prefix("# ask ")?.split_once(' '));
    let own: Vec<(&str, &str)> = own.take(4).collect();
    ask(&Model::for_platform(config, Platform { version, page: 4096 }), &own);
}

fn nodes(config: &Config) -> Vec<(PathBuf, u32, String)> {
    let node = |id| (config.file(id).to_owned(), config.line(id), config.text(id));
    config.all().map(node).collect()
}

/// The questions that a trace asks, with answers that no configuration may break.
fn ask(model: &Model, requests: &[(&str, &str)]) {
    for id in model.config().all() {
        assert!(model.config().line(id) >= 1 && model.config().end_line(id) >= model.config().line(id));
    }
    let names = model.names();
    let resolve = |name: &str| {
        assert!(names.iter().any(|known| known == name), "{name} is asked for and not among the names");
        vec![IpAddr::V4(Ipv4Addr::new(192, 0, 2, 1))]
    };
    let mut addresses = vec![SocketAddr::from(([192, 0, 2, 1], 80))];
    for (index, pass) in model.passes.iter().enumerate() {
        model.effective_all(pass);
        if let Some(address) = literal(&pass.target) {
            addresses.push(address);
            let found = model.candidates(address, &resolve);
            let named = found.iter().any(|candidate| candidate.passes.contains(&index));
            assert!(named, "{} leads to {address}, and is not among its candidates", pass.url);
        }
        if let Address::Unix { path } = &pass.target {
            model.candidates_unix(Path::new(path));
        }
    }
    let users = model.users_by_upstream();
    for (index, upstream) in model.upstreams.iter().enumerate() {
        model.effective_in(upstream);
        for (at, server) in upstream.servers.iter().enumerate() {
            let Some(address) = literal(&server.address) else { continue };
            let found = model.candidates(address, &resolve);
            let named = found.iter().any(|candidate| candidate.upstream_server == Some((index, at)));
            assert!(named || users[index].is_empty(), "{} is not among its candidates", server.text);
        }
    }
    for port in model.listen_ports().into_iter().take(4) {
        model.locate_stream(Some(SocketAddr::from(([127, 0, 0, 1], port))));
    }
    let own = model.servers.iter().flat_map(|server| &server.names).next().map(String::as_str);
    for address in addresses.into_iter().take(4) {
        let candidates = model.candidates(address, &resolve);
        let usual = [Some("a.test"), own, None].into_iter().zip(TARGETS);
        let asked = requests.iter().map(|(host, target)| (Some(*host), *target));
        for (host, target) in usual.chain([(None, TARGETS[5])]).chain(asked) {
            let located = model.locate(Some(address), host, target);
            assert!(located.passes.iter().all(|pass| *pass < model.passes.len()), "{located:?}");
            assert!(!located.exact || located.passes.len() <= 1, "{located:?}");
            assert!(located.server.is_none_or(|server| located.servers == [server]), "{located:?}");
            assert_eq!(model.narrow(&candidates, &located).is_empty(), candidates.is_empty());
        }
    }
}

/// Where nginx connects to an address that needs no name; the kernel makes another of the unspecified one.
fn literal(address: &Address) -> Option<SocketAddr> {
    match address {
        Address::Ip { ip, port: Some(port) } if !ip.to_canonical().is_unspecified() => {
            Some(SocketAddr::new(*ip, *port))
        }
        _ => None,
    }
}
