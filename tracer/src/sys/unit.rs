//! The systemd unit of a process, and the lines of its files that restrict what it may do.
//!
//! By the files alone: what was given by `systemctl set-property --runtime` or over D-Bus lies in files as well
//! (/run/systemd), and what a file says since the last daemon-reload is what the next start will do.

use std::{
    fs,
    path::{Path, PathBuf},
};

use super::proc;

/// Where units are looked for, the strongest first (systemd.unit(5)).
const FOLDERS: &[&str] = &[
    "/etc/systemd/system.control",
    "/run/systemd/system.control",
    "/run/systemd/transient",
    "/etc/systemd/system",
    "/run/systemd/system",
    "/usr/local/lib/systemd/system",
    "/usr/lib/systemd/system",
    "/lib/systemd/system",
];

/// The settings that can refuse a connection.
const KEYS: &[&str] = &[
    "IPAddressDeny",
    "IPAddressAllow",
    "RestrictAddressFamilies",
    "SystemCallFilter",
    "SystemCallErrorNumber",
    "SocketBindDeny",
    "SocketBindAllow",
    "RestrictNetworkInterfaces",
    "IPEgressFilterPath",
    "BPFProgram",
    "AppArmorProfile",
];

/// A line of a unit's file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Line {
    /// The file.
    pub file: PathBuf,
    /// From 1.
    pub line: usize,
    /// Trimmed.
    pub text: String,
}

/// The path of the process's cgroup of the second version, from the root of cgroups.
#[must_use]
pub fn cgroup_of(pid: u32) -> Option<String> {
    let bytes = proc::read_up_to(format!("/proc/{pid}/cgroup"), 64 * 1024).ok()?;
    let text = String::from_utf8_lossy(&bytes);
    text.lines().find_map(|line| line.strip_prefix("0::")).map(str::to_owned)
}

/// Where cgroups of the second version are mounted.
#[must_use]
pub fn cgroup_mount() -> Option<PathBuf> {
    let bytes = proc::read_up_to("/proc/self/mounts", 1 << 20).ok()?;
    String::from_utf8_lossy(&bytes).lines().find_map(|line| {
        let mut words = line.split(' ');
        let (_, at, kind) = (words.next()?, words.next()?, words.next()?);
        (kind == "cgroup2").then(|| PathBuf::from(at))
    })
}

/// The service that a process belongs to, on hosts with cgroups of either version.
#[must_use]
pub fn service_of(pid: u32) -> Option<String> {
    service_in(&proc::read_up_to(format!("/proc/{pid}/cgroup"), 64 * 1024).ok()?)
}

fn service_in(cgroup: &[u8]) -> Option<String> {
    let text = std::str::from_utf8(cgroup).ok()?;
    let path = text
        .lines()
        .find_map(|line| line.strip_prefix("0::").or(line.split_once(":name=systemd:").map(|p| p.1)))?;
    let unit = path.rsplit('/').find(|part| part.ends_with(".service"))?;
    Some(proc::printable(unit.as_bytes()))
}

/// The unit that a cgroup's path names: the last part that is a service or a scope.
#[must_use]
pub fn name_in(cgroup: &str) -> Option<&str> {
    cgroup.rsplit('/').find(|part| part.ends_with(".service") || part.ends_with(".scope"))
}

/// The restricting lines of a unit's file and of its drop-ins, in the order in which systemd reads them.
#[must_use]
pub fn restrictions(unit: &str) -> Vec<Line> {
    let folders: Vec<PathBuf> = FOLDERS.iter().map(PathBuf::from).collect();
    files(&folders, unit)
        .into_iter()
        .filter_map(|file| {
            let bytes = proc::read_up_to(&file, 1 << 20).ok()?;
            Some(lines(&file, &String::from_utf8_lossy(&bytes)))
        })
        .flatten()
        .collect()
}

/// The unit's file, then its drop-ins by name; a stronger folder's file hides another of its name.
fn files(folders: &[PathBuf], unit: &str) -> Vec<PathBuf> {
    // nginx@blue.service has the file of nginx@.service as well.
    let template = unit
        .split_once('@')
        .and_then(|(name, rest)| rest.rsplit_once('.').map(|(_, suffix)| format!("{name}@.{suffix}")));
    let names: Vec<&str> = std::iter::once(unit).chain(template.as_deref()).collect();
    let main = names
        .iter()
        .flat_map(|name| folders.iter().map(move |folder| folder.join(name)))
        .find(|path| path.is_file());
    let suffix = unit.rsplit('.').next().unwrap_or_default();
    let mut drop_ins: Vec<(String, PathBuf)> = Vec::new();
    for name in std::iter::once(suffix).chain(names.iter().rev().copied()) {
        for folder in folders {
            let Ok(entries) = fs::read_dir(folder.join(format!("{name}.d"))) else { continue };
            for path in entries.flatten().map(|entry| entry.path()) {
                let file = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
                if file.ends_with(".conf") && !drop_ins.iter().any(|(known, _)| *known == file) {
                    drop_ins.push((file, path));
                }
            }
        }
    }
    drop_ins.sort();
    main.into_iter().chain(drop_ins.into_iter().map(|(_, path)| path)).collect()
}

/// The lines that set one of [`KEYS`].
fn lines(file: &Path, text: &str) -> Vec<Line> {
    text.lines()
        .enumerate()
        .filter(|(_, line)| line.split_once('=').is_some_and(|(key, _)| KEYS.contains(&key.trim())))
        .map(|(at, line)| Line { file: file.to_owned(), line: at + 1, text: line.trim().to_owned() })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn services() {
        let of = |text: &str| service_in(text.as_bytes());
        assert_eq!(of("0::/system.slice/php8.2-fpm.service\n").as_deref(), Some("php8.2-fpm.service"));
        assert_eq!(
            of("12:pids:/x\n1:name=systemd:/system.slice/nginx.service\n").as_deref(),
            Some("nginx.service")
        );
        assert_eq!(of("0::/user.slice/session-1.scope\n"), None);
    }

    #[test]
    fn units_by_cgroup() {
        assert_eq!(name_in("/system.slice/nginx.service"), Some("nginx.service"));
        assert_eq!(name_in("/user.slice/user-0.slice/user@0.service/app.slice/x.scope"), Some("x.scope"));
        assert_eq!(name_in("/machine/payload"), None);
    }

    #[test]
    fn drop_ins_come_behind_and_stronger_folders_hide() {
        let dir = std::env::temp_dir().join(format!("why502-unit-{}", std::process::id()));
        let (strong, weak) = (dir.join("etc"), dir.join("lib"));
        for (path, text) in [
            (weak.join("web@.service"), "[Service]\nIPAddressDeny=any\n# RestrictAddressFamilies=AF_UNIX\n"),
            (weak.join("web@a.service.d/10-x.conf"), "[Service]\nSystemCallFilter=@system-service\n"),
            (strong.join("web@a.service.d/10-x.conf"), "[Service]\n  RestrictAddressFamilies = AF_UNIX\n"),
            (strong.join("service.d/05-all.conf"), "[Service]\nIPAddressAllow=localhost\n"),
        ] {
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        }
        let found: Vec<(usize, String)> = files(&[strong, weak], "web@a.service")
            .iter()
            .flat_map(|file| lines(file, &fs::read_to_string(file).unwrap()))
            .map(|l| (l.line, l.text))
            .collect();
        fs::remove_dir_all(dir).unwrap();
        let expected = [
            (2, "IPAddressDeny=any"),
            (2, "IPAddressAllow=localhost"),
            (2, "RestrictAddressFamilies = AF_UNIX"),
        ];
        assert_eq!(found, expected.map(|(n, t)| (n, t.to_owned())));
    }
}
