//! One nginx of a case: its prefix folder, its start, its processes and its logs.

use crate::case::Nginx as Settings;
use crate::listen;
use crate::net::NetNs;
use crate::sys;
use anyhow::{Context, Result, bail};
use std::collections::BTreeMap;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};
use std::time::Duration;

/// The installed one.
const PROGRAM: &str = "/usr/sbin/nginx";

/// Debian's place of the stream module, which is a shared object there.
pub(crate) const STREAM_MODULE: &str = "/usr/lib/nginx/modules/ngx_stream_module.so";

/// The current nginx that `cargo xtask setup` unpacks beside the installed one: a folder with `nginx` and `modules`.
/// The lab's cache is found as xtask finds it (xtask/src/lab/cache.rs); in a guest it is part of the root file system.
pub(crate) fn current() -> Option<PathBuf> {
    let set = |name| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    let cache = set("WHY502_LAB_CACHE")
        .or_else(|| Some(set("XDG_CACHE_HOME")?.join("why502/lab")))
        .or_else(|| Some(set("HOME")?.join(".cache/why502/lab")))?;
    Some(cache.join("current-nginx")).filter(|dir| dir.join("nginx").exists())
}

/// Paths of the program and of its stream module.
fn program(settings: &Settings) -> Result<(PathBuf, PathBuf)> {
    if !settings.current {
        return Ok((PROGRAM.into(), STREAM_MODULE.into()));
    }
    let dir = current().context("no current nginx; `cargo xtask setup` fetches one")?;
    Ok((dir.join("nginx"), dir.join("modules/ngx_stream_module.so")))
}

/// A configuration line: the file and the number from 1.
pub(crate) type Line = (PathBuf, u64);

#[derive(Debug)]
pub(crate) struct Nginx {
    dir: PathBuf,
    child: Option<Child>,
    /// The master, or the only process.
    pub(crate) pid: u32,
    /// The first worker, or the only process.
    pub(crate) worker: u32,
}

impl Nginx {
    /// Starts nginx in `web` and waits until it listens and its worker runs.
    pub(crate) fn start(web: &NetNs, settings: &Settings, dir: &Path, bound: Duration) -> Result<Self> {
        let (program, stream_module) = program(settings)?;
        let text = config(settings, &stream_module).replace("@DIR@", &dir.to_string_lossy());
        std::fs::write(dir.join("nginx.conf"), text).context("cannot write nginx.conf")?;
        let out = std::fs::File::create(dir.join("output"))?;
        // The absolute path is what USR2 executes again.
        let mut command =
            web.command(settings.launch.as_ref().map_or(program.as_path(), |_| Path::new("sh")));
        if let Some(text) = &settings.launch {
            command.args(["-euc", text, "sh"]).arg(&program).env("DIR", dir);
            command.env("FAULTLAB", std::env::current_exe()?);
        }
        if let Some(hosts) = &settings.etc_hosts {
            let path = dir.join("hosts");
            std::fs::write(&path, hosts)?;
            sys::cover(&mut command, &path, Path::new("/etc/hosts"))?;
        }
        let child = command
            .arg("-p")
            .arg(dir)
            .args(["-c", "nginx.conf", "-e", "error.log"])
            .stdin(Stdio::null())
            .stdout(out.try_clone()?)
            .stderr(out)
            .spawn()
            .with_context(|| format!("cannot start {}; install nginx", program.display()))?;
        let mut nginx = Self { dir: dir.to_owned(), pid: child.id(), worker: 0, child: Some(child) };
        let ready = sys::poll_until(bound, || nginx.ready(web, settings));
        if !ready {
            bail!("nginx did not start: {}{}", nginx.read("output"), nginx.read("error.log"));
        }
        Ok(nginx)
    }

    fn ready(&mut self, web: &NetNs, settings: &Settings) -> bool {
        if settings.launch.is_some() {
            let Some(pid) = web.pids().into_iter().find(|pid| self.launched(*pid)) else { return false };
            self.pid = pid;
        }
        if settings.daemon {
            let Ok(pid) = self.read("nginx.pid").trim().parse() else { return false };
            self.pid = pid;
        }
        let Some(port) = settings.listen.rsplit(':').next().and_then(|p| p.parse::<u16>().ok()) else {
            return false;
        };
        if !listen::sockets(&self.pid.to_string(), 0x0a).iter().any(|s| s.port == port) {
            return false;
        }
        self.worker = if settings.master {
            // A child that has not written its own title yet has its master's, and is no worker to anybody who looks.
            let children: Vec<u32> =
                web.pids().into_iter().filter(|pid| parent(*pid) == Some(self.pid)).collect();
            let titled = children.iter().all(|pid| !title(*pid).starts_with(b"nginx: master process"));
            children.first().copied().filter(|_| titled).unwrap_or(0)
        } else {
            self.pid
        };
        self.worker != 0
    }

    /// Whether a process is the master that the `launch` text has started.
    fn launched(&self, pid: u32) -> bool {
        let title = title(pid);
        let Some(child) = self.child.as_ref().map(Child::id) else { return false };
        title.starts_with(b"nginx: master process")
            && std::iter::successors(Some(pid), |pid| parent(*pid)).any(|pid| pid == child)
    }

    /// The master, and the process that was started: why502 may have found a daemon before it left that one.
    pub(crate) fn pids(&self) -> impl Iterator<Item = u32> {
        [Some(self.pid), self.child.as_ref().map(Child::id)].into_iter().flatten()
    }

    /// A file of the prefix as text; empty when there is none.
    pub(crate) fn read(&self, name: &str) -> String {
        std::fs::read(self.dir.join(name))
            .map(|b| String::from_utf8_lossy(&b).into_owned())
            .unwrap_or_default()
    }

    /// Ends every process of `web`, nginx and whatever the steps left running.
    pub(crate) fn stop_all(web: &NetNs, bound: Duration) {
        for signal in [libc::SIGTERM, libc::SIGKILL] {
            for pid in web.pids() {
                sys::kill(pid, signal);
                // One that a case has stopped ends no sooner than it goes on.
                sys::kill(pid, libc::SIGCONT);
            }
            if sys::poll_until(bound, || web.pids().is_empty()) {
                return;
            }
        }
    }
}

impl Drop for Nginx {
    fn drop(&mut self) {
        if let Some(mut child) = self.child.take() {
            // The workers end with their master on SIGTERM; a namespace's drop kills what is left.
            sys::kill(child.id(), libc::SIGTERM);
            if !sys::poll_until(Duration::from_secs(3), || !matches!(child.try_wait(), Ok(None))) {
                let _ = child.kill();
                let _ = child.wait();
            }
        }
    }
}

/// The processes by which a case's nginx are known now: a step may have put another master in the first one's place.
pub(crate) fn masters(web: &NetNs, started: &[Nginx]) -> Vec<u32> {
    // One that has ended and is not waited for has no title.
    let alive: Vec<u32> =
        started.iter().map(|nginx| nginx.pid).filter(|pid| !title(*pid).is_empty()).collect();
    if !alive.is_empty() {
        return alive;
    }
    web.pids().into_iter().filter(|pid| title(*pid).starts_with(b"nginx: master process")).collect()
}

/// A new folder that a worker of any user can enter, with the files of the case in it.
pub(crate) fn prefix(dir: &Path, case: &Path) -> Result<()> {
    std::fs::create_dir_all(dir.join("tmp")).with_context(|| format!("cannot create {}", dir.display()))?;
    std::fs::set_permissions(dir, std::fs::Permissions::from_mode(0o755))?;
    copy(case, dir)
}

fn copy(from: &Path, to: &Path) -> Result<()> {
    for entry in std::fs::read_dir(from)? {
        let entry = entry?;
        let target = to.join(entry.file_name());
        if entry.file_type()?.is_dir() {
            std::fs::create_dir_all(&target)?;
            copy(&entry.path(), &target)?;
        } else if entry.file_name() != "case.toml" {
            std::fs::copy(entry.path(), &target)?;
        }
    }
    Ok(())
}

/// Adds where each `#@name` stands, in every file below `dir` that looks like configuration. A name that is known
/// keeps its place: a step may have changed the file since nginx has read it. `seen_at` is where nginx sees `dir`.
pub(crate) fn markers(dir: &Path, seen_at: Option<&Path>, found: &mut BTreeMap<String, Line>) -> Result<()> {
    let mut folders = vec![dir.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(&folder)? {
            let path = entry?.path();
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|e| e == "conf") {
                let text = std::fs::read_to_string(&path)?;
                let seen = match (seen_at, path.strip_prefix(dir)) {
                    (Some(elsewhere), Ok(rest)) => elsewhere.join(rest),
                    _ => path,
                };
                for (line, name) in marked(&text) {
                    found.entry(name.to_owned()).or_insert_with(|| (seen.clone(), line));
                }
            }
        }
    }
    Ok(())
}

fn marked(text: &str) -> impl Iterator<Item = (u64, &str)> {
    (1..).zip(text.lines()).flat_map(|(number, line)| {
        line.split_ascii_whitespace().filter_map(move |word| Some((number, word.strip_prefix("#@")?)))
    })
}

fn title(pid: u32) -> Vec<u8> {
    std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default()
}

/// The parent of a process.
fn parent(pid: u32) -> Option<u32> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The name may hold anything, so count from its closing parenthesis.
    stat.rsplit_once(')')?.1.split_ascii_whitespace().nth(1)?.parse().ok()
}

fn config(settings: &Settings, stream_module: &Path) -> String {
    let on = |flag| if flag { "on" } else { "off" };
    let mut text = String::new();
    if !settings.stream.is_empty() {
        text += &format!("load_module {};\n", stream_module.display());
    }
    text += &format!(
        "daemon {};\nmaster_process {};\nworker_processes {};\nuser {};\npid nginx.pid;\n\
         error_log error.log info;\n{}\nevents {{ worker_connections 512; }}\n",
        on(settings.daemon),
        on(settings.master),
        settings.workers,
        settings.user,
        settings.main.trim_end(),
    );
    text += "http {\n    access_log access.log;\n    client_body_temp_path tmp/body;\n";
    for module in ["proxy", "fastcgi", "uwsgi", "scgi"] {
        text += &format!("    {module}_temp_path tmp/{module};\n");
    }
    text += &format!("{}\n}}\n", settings.conf.trim_end());
    if !settings.stream.is_empty() {
        text += &format!("stream {{\n{}\n}}\n", settings.stream.trim_end());
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn marks() {
        let found: Vec<_> = marked("a;\nserver x; #@server\nb; #@b #@c\n").collect();
        assert_eq!(found, [(2, "server"), (3, "b"), (3, "c")]);
    }

    #[test]
    fn marks_keep_their_place() {
        let dir = std::env::temp_dir().join(format!("w502-marks-{}", std::process::id()));
        std::fs::create_dir_all(dir.join("sites")).unwrap();
        let path = dir.join("sites/a.conf");
        let mut found = BTreeMap::new();
        std::fs::write(&path, "a; #@a\n").unwrap();
        markers(&dir, None, &mut found).unwrap();
        std::fs::write(&path, "\na; #@a\nb; #@b\n").unwrap();
        markers(&dir, Some(Path::new("/srv/x")), &mut found).unwrap();
        std::fs::remove_dir_all(&dir).unwrap();
        assert_eq!(found["a"], (path, 1));
        assert_eq!(found["b"], ("/srv/x/sites/a.conf".into(), 3));
    }

    #[test]
    fn our_own_parent() {
        assert_eq!(parent(std::process::id()), Some(std::os::unix::process::parent_id()));
    }
}
