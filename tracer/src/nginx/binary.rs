//! What an executable's bytes say: whether it is nginx (or a fork of it), its version, and the paths that
//! were compiled in. Needs no symbols and no sections, so that stripped and static builds are read as well.

use std::{collections::BTreeMap, path::PathBuf};

/// Texts that every nginx since 1.0 and every fork must contain as C strings: names of core and event
/// directives, and messages of the configuration parser. A linker may store a name as the tail of a longer
/// string, so that only the end of each is compared.
const REQUIRED: [&[u8]; 8] = [
    b"worker_connections",
    b"worker_processes",
    b"worker_rlimit_nofile",
    b"master_process",
    b"daemon",
    b"accept_mutex",
    b"debug_points",
    b"unexpected end of file, expecting \"}\"",
];

/// Whether these bytes are an executable that is nginx, OpenResty, Tengine, Angie or freenginx. A program that
/// merely knows nginx's directives (this one, an ingress controller, a linter) keeps them in tables without
/// terminators, or lacks the parser's messages.
pub fn is_nginx_binary(elf: &[u8]) -> bool {
    if !elf.starts_with(b"\x7fELF") {
        return false;
    }
    let mut missing: Vec<&[u8]> = REQUIRED.to_vec();
    let mut configure = false;
    for text in elf.split(|byte| *byte == 0).filter(|text| text.len() >= 6) {
        missing.retain(|required| !text.ends_with(required));
        configure |= is_configure(text);
        if configure && missing.is_empty() {
            return true;
        }
    }
    false
}

const CONFIGURE: &[u8] = b"configure arguments:";

/// `-V` prints it as one string that ends the line.
fn is_configure(text: &[u8]) -> bool {
    text.starts_with(CONFIGURE) && text.ends_with(b"\n")
}

/// Which nginx an executable is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Build {
    /// `nginx`, `openresty`, `Tengine`, `Angie`, `freenginx` …, as it calls itself.
    pub flavor: String,
    /// Its own version, such as `1.22.1`; those of forks other than OpenResty do not follow nginx's.
    pub version: String,
    /// The nginx version that a fork says it contains, as Tengine does.
    pub core: Option<String>,
}

/// Reads `nginx version: nginx/1.22.1`, which `-v` prints; Tengine's says `Tengine version:` first and nginx's on
/// the second line, others in words behind their own.
pub fn build(elf: &[u8]) -> Option<Build> {
    let texts = elf.split(|byte| *byte == 0).filter(|text| text.len() >= 16 && text.len() < 4096);
    let (flavor, version, rest) =
        texts.filter_map(|text| std::str::from_utf8(text).ok()).find_map(|text| {
            let (flavor, version) = banner(text.lines().next()?)?;
            Some((flavor, version, text))
        })?;
    let core = rest.lines().skip(1).filter_map(banner).find(|(name, _)| name == "nginx");
    let core = core.filter(|_| flavor != "nginx").map(|(_, version)| version);
    Some(Build { flavor, version, core })
}

/// `NAME version: FLAVOR/VERSION …`.
fn banner(line: &str) -> Option<(String, String)> {
    const NAMES: [&str; 5] = ["nginx", "angie", "tengine", "freenginx", "openresty"];
    let (name, rest) = line.split_once(" version: ")?;
    if !NAMES.contains(&name.to_ascii_lowercase().as_str()) {
        return None;
    }
    let (flavor, version) = rest.split_once('/')?;
    let version = version.split([' ', '(']).next()?;
    let is_version = version.starts_with(|first: char| first.is_ascii_digit());
    is_version.then(|| (flavor.to_owned(), version.to_owned()))
}

/// The version alone, such as `1.22.1`.
pub fn version(elf: &[u8]) -> Option<String> {
    build(elf).map(|build| build.version)
}

/// The folders for what does not fit nginx's buffers: what their directives begin with, and where they are by default
/// (auto/options); relative to the prefix.
pub const TEMPORARY: [(&str, &str); 5] = [
    ("client_body", "client_body_temp"),
    ("proxy", "proxy_temp"),
    ("fastcgi", "fastcgi_temp"),
    ("uwsgi", "uwsgi_temp"),
    ("scgi", "scgi_temp"),
];

/// The paths given to `./configure`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Defaults {
    /// `--prefix=`; `None` where it was given empty: then the prefix is the folder nginx is started in.
    pub prefix: Option<PathBuf>,
    /// `--conf-path=`; may be relative to the prefix.
    pub conf_path: PathBuf,
    /// `--sbin-path=`.
    pub sbin_path: Option<PathBuf>,
    /// `--error-log-path=`; `stderr`, as in Debian's newer builds, is no path.
    pub error_log_path: Option<PathBuf>,
    /// `--http-proxy-temp-path=` and the like, by the first words of [`TEMPORARY`].
    pub temporary: BTreeMap<&'static str, PathBuf>,
}

impl Default for Defaults {
    /// Those of a `./configure` without options (auto/configure, auto/options).
    fn default() -> Self {
        Self {
            prefix: Some(PathBuf::from("/usr/local/nginx")),
            conf_path: PathBuf::from("conf/nginx.conf"),
            sbin_path: None,
            error_log_path: None,
            temporary: TEMPORARY.iter().map(|(kind, path)| (*kind, PathBuf::from(path))).collect(),
        }
    }
}

/// Reads the compiled-in paths from the text that `-V` prints; `None` where the executable has none.
pub fn build_defaults(elf: &[u8]) -> Option<Defaults> {
    let text = elf.split(|byte| *byte == 0).find(|text| is_configure(text))?;
    let text = String::from_utf8_lossy(text.get(CONFIGURE.len()..)?);
    let mut defaults = Defaults::default();
    for argument in arguments(&text) {
        let Some((name, value)) = argument.split_once('=') else { continue };
        let path = PathBuf::from(value);
        match name {
            "--prefix" => defaults.prefix = (!value.is_empty()).then_some(path),
            "--conf-path" if !value.is_empty() => defaults.conf_path = path,
            "--sbin-path" => defaults.sbin_path = Some(path),
            "--error-log-path" => defaults.error_log_path = Some(path),
            _ => {
                let kind = name.strip_prefix("--http-").and_then(|name| name.strip_suffix("-temp-path"));
                let is_it = |(known, _): &&(&'static str, &str)| {
                    kind.is_some_and(|kind| kind.replace('-', "_") == *known)
                };
                if let Some((kind, _)) = TEMPORARY.iter().find(is_it).filter(|_| !value.is_empty()) {
                    defaults.temporary.insert(kind, path);
                }
            }
        }
    }
    Some(defaults)
}

/// Splits at spaces outside single quotes, which `./configure` puts around the values of some arguments.
fn arguments(text: &str) -> Vec<String> {
    let mut found = vec![String::new()];
    let mut quoted = false;
    for letter in text.trim_end().chars() {
        match letter {
            '\'' => quoted = !quoted,
            ' ' if !quoted => found.push(String::new()),
            _ => {
                if let Some(last) = found.last_mut() {
                    last.push(letter);
                }
            }
        }
    }
    found
}
