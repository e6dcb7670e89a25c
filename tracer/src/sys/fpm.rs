//! php-fpm's pools: which file and line made it listen where it does, and who may connect there.

use std::path::{Path, PathBuf};

use super::proc;
use super::rootfs::RootFs;

/// Largest file that is read, bytes.
const MOST: u64 = 1 << 20;
/// Most files of a folder.
const MOST_FILES: usize = 256;

/// One setting of a pool.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Setting {
    /// `listen`, `listen.mode` …
    pub key: String,
    /// Its value, without quotes.
    pub value: String,
    /// Its file, as php-fpm sees it.
    pub file: PathBuf,
    /// Its line, from 1.
    pub line: usize,
}

/// The settings of the pool that listens on `path`, by the running php-fpm's own files; empty if it is none or if no
/// pool of its says so.
pub fn pool(pid: u32, path: &[u8]) -> Vec<Setting> {
    let title = proc::read_up_to(format!("/proc/{pid}/cmdline"), 4096).unwrap_or_default();
    let Some(main) = main_file(&title) else { return Vec::new() };
    let Ok(root) = RootFs::of_pid(pid) else { return Vec::new() };
    let read = |file: &Path| {
        let bytes = root.read(file, MOST).unwrap_or_default();
        String::from_utf8_lossy(&bytes).into_owned()
    };
    let text = read(&main);
    let mut files = vec![(main, text)];
    for pattern in includes(&files) {
        let Some((folder, name)) = pattern.parent().zip(pattern.file_name()) else { continue };
        let Some((before, after)) = name.to_str().and_then(|name| name.split_once('*')) else {
            let text = read(&pattern);
            files.push((pattern, text));
            continue;
        };
        for name in root.list(folder, MOST_FILES).unwrap_or_default() {
            let Ok(name) = String::from_utf8(name) else { continue };
            if name.len() >= before.len() + after.len() && name.starts_with(before) && name.ends_with(after) {
                let file = folder.join(name);
                let text = read(&file);
                files.push((file, text));
            }
        }
    }
    files.iter().find_map(|(file, text)| pool_in(file, text, path)).unwrap_or_default()
}

/// The main file by the title that the master sets: `php-fpm: master process (/etc/php/8.2/fpm/php-fpm.conf)`.
fn main_file(title: &[u8]) -> Option<PathBuf> {
    let title = std::str::from_utf8(title).ok()?;
    let rest = title.strip_prefix("php-fpm: master process (")?;
    let (path, _) = rest.split_once(')')?;
    path.starts_with('/').then(|| PathBuf::from(path))
}

/// A line of an INI file as key and value; comments and sections are none.
fn pair(line: &str) -> Option<(&str, &str)> {
    let (key, value) = line.trim().split_once('=')?;
    let (key, value) = (key.trim(), value.trim());
    let value = match value.strip_prefix('"').and_then(|rest| rest.split_once('"')) {
        Some((quoted, _)) => quoted,
        None => value.split(';').next().unwrap_or_default().trim(),
    };
    (!key.starts_with([';', '#', '['])).then_some((key, value))
}

fn includes(files: &[(PathBuf, String)]) -> Vec<PathBuf> {
    let lines = files.iter().flat_map(|(_, text)| text.lines());
    lines.filter_map(pair).filter(|(key, _)| *key == "include").map(|(_, value)| value.into()).collect()
}

/// The settings that concern the socket and who serves it, of the pool in this file that listens on `path`.
fn pool_in(file: &Path, text: &str, path: &[u8]) -> Option<Vec<Setting>> {
    let mut pools: Vec<Vec<Setting>> = vec![Vec::new()];
    for (index, line) in text.lines().enumerate() {
        if line.trim_start().starts_with('[') {
            pools.push(Vec::new());
            continue;
        }
        let Some((key, value)) = pair(line) else { continue };
        let wanted = matches!(key, "listen" | "pm.max_children" | "request_terminate_timeout");
        if wanted || key.starts_with("listen.") {
            let (key, value) = (key.to_owned(), value.to_owned());
            pools.last_mut()?.push(Setting { key, value, file: file.to_owned(), line: index + 1 });
        }
    }
    let listens = |pool: &[Setting]| pool.iter().any(|s| s.key == "listen" && s.value.as_bytes() == path);
    pools.into_iter().find(|pool| listens(pool))
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = "; listen = /run/php/no.sock\n[www]\nuser = www-data\nlisten = /run/php/a.sock ; why\n\
                        listen.mode=0660\n[api]\nlisten = \"/run/php/b.sock\"\nlisten.backlog = 511\n";

    #[test]
    fn pools() {
        let file = Path::new("/etc/php/pool.d/www.conf");
        let of = |path: &str| pool_in(file, TEXT, path.as_bytes());
        let shown = |path: &str| -> Vec<String> {
            let settings = of(path).unwrap();
            settings.iter().map(|s| format!("{}:{}={}", s.line, s.key, s.value)).collect()
        };
        assert_eq!(shown("/run/php/a.sock"), ["4:listen=/run/php/a.sock", "5:listen.mode=0660"]);
        assert_eq!(shown("/run/php/b.sock"), ["7:listen=/run/php/b.sock", "8:listen.backlog=511"]);
        assert_eq!(of("/run/php/no.sock"), None);
    }

    #[test]
    fn titles_and_includes() {
        let title = b"php-fpm: master process (/etc/php/8.2/fpm/php-fpm.conf)\0\0";
        assert_eq!(main_file(title), Some(PathBuf::from("/etc/php/8.2/fpm/php-fpm.conf")));
        assert_eq!(main_file(b"php-fpm: pool www"), None);
        assert_eq!(main_file(b"php-fpm: master process (relative"), None);
        let files = [(PathBuf::new(), "#include=x\n include = /etc/php/*.conf\n".to_owned())];
        assert_eq!(includes(&files), [PathBuf::from("/etc/php/*.conf")]);
    }
}
