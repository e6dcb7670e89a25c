//! Snapshots of an nginx's configuration, read as its processes see it.

use std::{
    cell::RefCell,
    collections::HashMap,
    ffi::OsString,
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, ToSocketAddrs},
    os::unix::{ffi::OsStringExt as _, fs::MetadataExt as _},
    path::{Path, PathBuf},
    sync::mpsc,
    thread,
    time::Duration,
};

use crate::{
    nginx::{
        self, Candidate, Files, Model, Platform, Problem, Source, Version,
        binary::{self, Build},
        dump::Dump,
        glob, invocation,
    },
    sys::{proc, process::Process, rootfs::RootFs},
};

/// Largest file that is read as configuration, bytes.
const MAX_FILE: u64 = 64 << 20;
/// Most entries of a folder that a glob looks at.
const MAX_ENTRIES: usize = 100_000;
/// What is read of an executable to find the compiled-in paths, bytes.
const MAX_EXE: u64 = 64 << 20;
/// How long a name is looked up; nginx itself resolved it when it started.
const DNS_LIMIT: Duration = Duration::from_secs(2);

/// The configuration as it was on disk when the snapshot was made.
#[derive(Debug, Default)]
pub struct Snapshot {
    /// The model; empty if nothing could be read.
    pub model: Model,
    /// What could not be read or understood.
    pub problems: Vec<Problem>,
    /// Path of the main file, as nginx sees it.
    pub main: Option<PathBuf>,
    /// Which nginx it is for, if its executable says so.
    pub build: Option<Build>,
    /// Size and modification time of each file.
    versions: Vec<(PathBuf, OnDisk)>,
    hosts: Option<Vec<u8>>,
    resolved: RefCell<HashMap<String, Vec<IpAddr>>>,
    /// Answers of [`Snapshot::candidates`]: a storm of failures asks for the same few addresses.
    found: RefCell<HashMap<SocketAddr, Vec<Candidate>>>,
}

/// Most remembered answers.
const MOST_FOUND: usize = 1024;

type OnDisk = Option<(u64, i64, i64)>;

struct ProcessFiles(RootFs);

impl Files for ProcessFiles {
    fn read(&self, path: &Path) -> io::Result<Vec<u8>> {
        self.0.read(path, MAX_FILE)
    }

    fn glob(&self, pattern: &Path) -> io::Result<Vec<PathBuf>> {
        glob::expand(pattern, &mut |folder| {
            Ok(self.0.list(folder, MAX_ENTRIES)?.into_iter().map(OsString::from_vec).collect())
        })
    }
}

impl Snapshot {
    /// Reads the configuration of a master (or single process).
    #[must_use]
    pub fn of(master: &Process) -> Self {
        match Self::read(master) {
            Ok(snapshot) => snapshot,
            Err(problem) => Self { problems: vec![problem.into()], ..Self::default() },
        }
    }

    /// Reads a configuration, or a dump of `nginx -T`, without any nginx.
    ///
    /// # Errors
    /// If the main file cannot be read.
    pub fn of_file(main: &Path, build: Option<Build>, version: Option<Version>) -> io::Result<Self> {
        let files = ProcessFiles(RootFs::at(Path::new("/"))?);
        let bytes = files.read(main)?;
        let platform = platform(version.or_else(|| build.as_ref()?.core()));
        let (config, errors) = match Dump::parse(&bytes) {
            Some(dump) => nginx::parse_partial(&dump, Source::new(dump.main())),
            None => nginx::parse_partial(&files, Source::new(main)),
        };
        let model = Model::for_platform(config, platform);
        let problems = errors.iter().chain(&model.warnings).map(Problem::from).collect();
        Ok(Self { model, problems, main: Some(main.to_path_buf()), build, ..Self::default() })
    }

    fn read(master: &Process) -> Result<Self, String> {
        let pid = master.pid;
        let root =
            RootFs::of_pid(pid).map_err(|e| format!("cannot enter the root of nginx (pid {pid}): {e}"))?;
        let exe = read_exe(pid).map_err(|e| format!("cannot read nginx's executable (pid {pid}): {e}"))?;
        let defaults = binary::build_defaults(&exe).unwrap_or_default();
        let build = binary::build(&exe);
        drop(exe);
        let cwd = std::fs::read_link(format!("/proc/{pid}/cwd")).unwrap_or_else(|_| PathBuf::from("/"));
        let started = invocation::invocation(&master.title, &defaults, &cwd)
            .map_err(|e| format!("cannot tell which configuration nginx (pid {pid}) runs with: {e}"))?;
        let files = ProcessFiles(root);
        let source = Source { main: &started.conf_path, globals: started.globals.as_deref() };
        let (config, errors) = nginx::parse_partial(&files, source);
        let versions =
            config.files().map(|(path, _)| (path.to_path_buf(), version(&files.0, path))).collect();
        let model = Model::for_platform(config, platform(build.as_ref().and_then(Build::core)));
        let problems = errors.iter().chain(&model.warnings).map(Problem::from).collect();
        let hosts = files.0.read(Path::new("/etc/hosts"), 1 << 20).ok();
        Ok(Self {
            model,
            problems,
            main: Some(started.conf_path),
            build,
            versions,
            hosts,
            resolved: RefCell::default(),
            found: RefCell::default(),
        })
    }

    /// True if a file has changed on disk since.
    #[must_use]
    pub fn is_stale(&self, pid: u32) -> bool {
        let Ok(root) = RootFs::of_pid(pid) else {
            return false;
        };
        self.versions.iter().any(|(path, then)| version(&root, path) != *then)
    }

    /// The configuration lines that lead to an address. Names are looked up only if no literal address
    /// fits; the answer may differ from what nginx got when it started.
    #[must_use]
    pub fn candidates(&self, addr: SocketAddr) -> Vec<Candidate> {
        if let Some(known) = self.found.borrow().get(&addr) {
            return known.clone();
        }
        let candidates = self.search(addr);
        if self.found.borrow().len() < MOST_FOUND {
            self.found.borrow_mut().insert(addr, candidates.clone());
        }
        candidates
    }

    fn search(&self, addr: SocketAddr) -> Vec<Candidate> {
        let literal = self.model.candidates(addr, &|name| known_name(name).unwrap_or_default());
        if literal.iter().any(|c| c.exact) {
            return literal;
        }
        self.model.candidates(addr, &|name| self.resolve(name))
    }

    fn resolve(&self, name: &str) -> Vec<IpAddr> {
        if let Some(known) = known_name(name) {
            return known;
        }
        if let Some(found) = self.resolved.borrow().get(name) {
            return found.clone();
        }
        let from_file = self.hosts.as_deref().map(|hosts| hosts_file(hosts, name)).unwrap_or_default();
        let found = if from_file.is_empty() { dns(name) } else { from_file };
        self.resolved.borrow_mut().insert(name.to_owned(), found.clone());
        found
    }
}

fn platform(version: Option<Version>) -> Platform {
    // SAFETY: sysconf takes no pointers.
    let page = u32::try_from(unsafe { libc::sysconf(libc::_SC_PAGESIZE) });
    Platform { version, page: page.unwrap_or(Platform::default().page) }
}

fn version(root: &RootFs, path: &Path) -> OnDisk {
    root.metadata(path).ok().map(|m| (m.size(), m.mtime(), m.mtime_nsec()))
}

fn read_exe(pid: u32) -> io::Result<Vec<u8>> {
    let max = usize::try_from(MAX_EXE).unwrap_or(usize::MAX);
    proc::read_up_to(format!("/proc/{pid}/exe"), max)
}

/// `localhost` needs no look-up; nginx asks for both families.
fn known_name(name: &str) -> Option<Vec<IpAddr>> {
    name.eq_ignore_ascii_case("localhost")
        .then(|| vec![IpAddr::V4(Ipv4Addr::LOCALHOST), IpAddr::V6(Ipv6Addr::LOCALHOST)])
}

/// Addresses of a name in a hosts file (hosts(5)).
fn hosts_file(bytes: &[u8], name: &str) -> Vec<IpAddr> {
    String::from_utf8_lossy(bytes)
        .lines()
        .filter_map(|line| {
            let mut words = line.split('#').next()?.split_ascii_whitespace();
            let ip: IpAddr = words.next()?.parse().ok()?;
            words.any(|word| word.eq_ignore_ascii_case(name)).then_some(ip)
        })
        .collect()
}

/// The system's resolver, bounded in time; an answer that comes later is dropped with its thread.
fn dns(name: &str) -> Vec<IpAddr> {
    let (send, receive) = mpsc::channel();
    let owned = name.to_owned();
    let spawned = thread::Builder::new().name("why502-dns".into()).spawn(move || {
        let found: Vec<IpAddr> = (owned.as_str(), 0)
            .to_socket_addrs()
            .map(|all| all.map(|a| a.ip()).collect())
            .unwrap_or_default();
        // The receiver may have given up.
        let _ = send.send(found);
    });
    match spawned {
        Ok(_) => receive.recv_timeout(DNS_LIMIT).unwrap_or_default(),
        Err(_) => Vec::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_a_hosts_file() {
        let file =
            b"127.0.0.1 localhost\n# 10.0.0.9 app\n10.0.0.1\tdb app # local\nfe80::1%eth0 x\n::2 APP\n";
        assert_eq!(hosts_file(file, "app"), ["10.0.0.1".parse::<IpAddr>().unwrap(), "::2".parse().unwrap()]);
        assert!(hosts_file(file, "nope").is_empty());
    }
}
