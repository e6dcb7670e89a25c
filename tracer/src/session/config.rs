//! Snapshots of an nginx's configuration, read as its processes see it.

use std::{
    cell::RefCell,
    collections::{BTreeMap, HashMap},
    ffi::{OsStr, OsString},
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, ToSocketAddrs},
    os::unix::{
        ffi::{OsStrExt as _, OsStringExt as _},
        fs::MetadataExt as _,
    },
    path::{Path, PathBuf},
    sync::{Arc, Mutex, mpsc},
    thread,
    time::{Duration, Instant, SystemTime},
};

mod title;

use crate::{
    correlate::story::StaleName,
    event::{Attempt, Stage, UnixName},
    nginx::{
        self, Candidate, Files, Model, Platform, Problem, Source, Version,
        binary::{self, Build},
        dump::Dump,
        glob,
        invocation::Invocation,
        kept::{self, Kept},
        running::{self, Place},
        value::Address,
    },
    sys::{memory::Memory, proc, process::Process, rootfs::RootFs},
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
    /// The folders for what does not fit nginx's buffers where no directive sets them, by the directives' first words; relative
    /// to the prefix.
    pub temporary: BTreeMap<&'static str, PathBuf>,
    /// The command line was not to be read in full: it may be the wrong configuration.
    pub is_guess: bool,
    /// The texts are those of a process's memory, not of the disk.
    pub(super) from_memory: bool,
    /// Where a process of this nginx keeps them.
    pub(super) place: Option<Place>,
    /// What each file was on disk.
    versions: Vec<(PathBuf, OnDisk)>,
    /// The files that patterns stood for.
    globs: Vec<Glob>,
    /// When it was read.
    made: Option<SystemTime>,
    /// The command line that led to it.
    pub(super) started: Option<Invocation>,
    /// The master that it was read for.
    pid: u32,
    /// The master's /etc/hosts.
    hosts: Option<Vec<u8>>,
    /// What its process holds for its servers.
    kept: Kept,
    /// When that was asked, which configuration it had, as an address in its memory.
    cycle: Option<u64>,
    /// What it holds, by name.
    kept_names: HashMap<String, Vec<IpAddr>>,
    /// What names resolved to when the snapshot was made, as far as that is known by now.
    remembered: Names,
    /// What they resolved to when that was last asked.
    resolved: RefCell<HashMap<String, (Vec<IpAddr>, Instant)>>,
    /// The last answer of [`Snapshot::edited`].
    edited: RefCell<Option<Edited>>,
    /// Answers of [`Snapshot::candidates`]: a storm of failures asks for the same few addresses.
    found: RefCell<HashMap<SocketAddr, (Vec<Candidate>, Instant)>>,
}

/// What has become of a file of the configuration.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Change {
    /// It was changed then.
    At(SystemTime),
    /// Its path leads to another file, which itself was not changed.
    Other,
    /// It cannot be read any more.
    Gone,
    /// A pattern finds it now, and did not before.
    Added,
}

/// Changed files, and when they were looked at.
type Edited = (Vec<(PathBuf, Change)>, Instant);

/// Addresses of names, filled in by a thread of its own.
type Names = Arc<Mutex<HashMap<String, Vec<IpAddr>>>>;

/// How long a name's addresses, and what was concluded from them, are used again.
const FRESH: Duration = Duration::from_secs(30);
/// How long the answer which files have changed is used again.
const FRESH_FILES: Duration = Duration::from_secs(1);
/// Most names that are remembered.
const MOST_NAMES: usize = 512;

/// Most remembered answers.
const MOST_FOUND: usize = 1024;

/// Size, inode, and when that was changed last (seconds, nanoseconds).
type OnDisk = Option<(u64, u64, i64, i64)>;

struct ProcessFiles {
    root: RootFs,
    /// What each pattern was, and what it gave.
    globs: RefCell<Vec<Glob>>,
}

type Glob = (PathBuf, Vec<PathBuf>);

impl From<RootFs> for ProcessFiles {
    fn from(root: RootFs) -> Self {
        Self { root, globs: RefCell::default() }
    }
}

impl Files for ProcessFiles {
    fn read(&self, path: &Path) -> io::Result<Vec<u8>> {
        self.root.read(path, MAX_FILE)
    }

    fn glob(&self, pattern: &Path) -> io::Result<Vec<PathBuf>> {
        let found = expand(&self.root, pattern)?;
        self.globs.borrow_mut().push((pattern.to_path_buf(), found.clone()));
        Ok(found)
    }
}

fn expand(root: &RootFs, pattern: &Path) -> io::Result<Vec<PathBuf>> {
    glob::expand(pattern, &mut |folder| {
        Ok(root.list(folder, MAX_ENTRIES)?.into_iter().map(OsString::from_vec).collect())
    })
}

impl Snapshot {
    /// Reads the configuration of a master (or single process).
    #[must_use]
    pub fn of(master: &Process) -> Self {
        Self::read(master, None).unwrap_or_else(Self::failed)
    }

    /// Reads it again. A master keeps its command line, but its title may not tell it in full.
    #[must_use]
    pub fn again(&self, master: &Process) -> Self {
        let known = self.started.as_ref().filter(|_| self.pid == master.pid && !self.is_guess);
        Self::read(master, known).unwrap_or_else(Self::failed)
    }

    fn failed(problem: String) -> Self {
        Self { problems: vec![problem.into()], ..Self::default() }
    }

    /// Reads a configuration, or a dump of `nginx -T`, without any nginx.
    ///
    /// # Errors
    /// If the main file cannot be read.
    pub fn of_file(main: &Path, build: Option<Build>, version: Option<Version>) -> io::Result<Self> {
        let files = ProcessFiles::from(RootFs::at(Path::new("/"))?);
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

    fn read(master: &Process, known: Option<&Invocation>) -> Result<Self, String> {
        let pid = master.pid;
        let root =
            RootFs::of_pid(pid).map_err(|e| format!("cannot enter the root of nginx (pid {pid}): {e}"))?;
        let exe = read_exe(pid).map_err(|e| format!("cannot read nginx's executable (pid {pid}): {e}"))?;
        let defaults = binary::build_defaults(&exe).unwrap_or_default();
        let build = binary::build(&exe);
        let place = running::place(&exe);
        drop(exe);
        let cwd = std::fs::read_link(format!("/proc/{pid}/cwd")).unwrap_or_else(|_| PathBuf::from("/"));
        let started = match known {
            Some(known) => known.clone(),
            None => title::invocation_of(master, &defaults, &cwd, title::LIMIT)
                .map_err(|e| format!("cannot tell which configuration nginx (pid {pid}) runs with: {e}"))?,
        };
        let cut_off = known.is_none() && title::is_cut_off(master);
        let made = SystemTime::now();
        let files = ProcessFiles::from(root);
        let source = Source { main: &started.conf_path, globals: started.globals.as_deref() };
        let (config, errors) = nginx::parse_partial(&files, source);
        let versions =
            config.files().map(|(path, _)| (path.to_path_buf(), version(&files.root, path))).collect();
        let model = Model::for_platform(config, platform(build.as_ref().and_then(Build::core)));
        let mut problems: Vec<Problem> = errors.iter().chain(&model.warnings).map(Problem::from).collect();
        if cut_off {
            problems.push(Problem {
                file: None,
                line: None,
                text: format!(
                    "the title of nginx (pid {pid}) is cut off, as it was started with little or no environment: it may \
                     run with another configuration than {}",
                    started.conf_path.display()
                ),
                missing: true,
            });
        }
        let hosts = files.root.read(Path::new("/etc/hosts"), 1 << 20).ok();
        Ok(Self {
            model,
            problems,
            main: Some(started.conf_path.clone()),
            build,
            temporary: defaults.temporary,
            is_guess: cut_off,
            place,
            versions,
            globs: files.globs.into_inner(),
            made: Some(made),
            started: Some(started),
            pid,
            hosts,
            ..Self::default()
        })
    }

    /// The same nginx with texts that are not those of the disk.
    pub(super) fn with_texts(&self, model: Model) -> Self {
        let problems = model.warnings.iter().map(Problem::from).collect();
        Self {
            model,
            problems,
            main: self.main.clone(),
            build: self.build.clone(),
            temporary: self.temporary.clone(),
            from_memory: true,
            place: self.place,
            made: Some(SystemTime::now()),
            started: self.started.clone(),
            pid: self.pid,
            hosts: self.hosts.clone(),
            ..Self::default()
        }
    }

    /// The files that were read, with their texts.
    pub(super) fn texts(&self) -> impl Iterator<Item = (&Path, &[u8])> {
        self.model.config().files().filter(|(path, _)| path.is_absolute())
    }

    /// True if a file has changed on disk since.
    #[must_use]
    pub fn is_stale(&self, pid: u32) -> bool {
        let Ok(root) = RootFs::of_pid(pid) else {
            return false;
        };
        !self.differences(&root).is_empty()
    }

    /// Asks the memory of a process that runs with this configuration which addresses it holds for its servers.
    pub fn ask_for_addresses(&mut self, pid: u32) {
        let Some(place) = self.place else { return };
        let Ok(memory) = Memory::of_pid(pid) else { return };
        let read = |at, length| memory.read(at, length);
        self.cycle = place.cycle(memory.phdr(), &read);
        let groups = kept::groups(&place, memory.phdr(), &read);
        self.kept = groups.map(Kept::of).unwrap_or_default();
        self.kept_names = self.kept.names(&self.model);
    }

    /// Whether a process has another configuration in its memory than the one that was asked for its addresses: a reload
    /// resolves names again, also where no file has changed.
    #[must_use]
    pub fn was_resolved_again(&self, pid: u32) -> bool {
        let Some(place) = self.place else { return false };
        let Ok(memory) = Memory::of_pid(pid) else { return false };
        let cycle = place.cycle(memory.phdr(), &|at, length| memory.read(at, length));
        cycle.is_some() && cycle != self.cycle
    }

    /// What its process holds for its servers, as far as it was asked.
    #[must_use]
    pub fn kept(&self) -> &Kept {
        &self.kept
    }

    /// Looks up the names of the configuration in the background, to know later which have changed. What nginx itself holds
    /// needs no look-up.
    pub fn remember_names(&self) {
        let asked = |name: &String| !self.kept_names.contains_key(name);
        let names: Vec<String> = self.model.names().into_iter().filter(asked).take(MOST_NAMES).collect();
        let hosts = self.hosts.clone().unwrap_or_default();
        let remembered = Arc::clone(&self.remembered);
        if names.iter().all(|name| known_name(name).is_some()) {
            return;
        }
        // Without a thread nothing is remembered, and nothing is claimed.
        let _ = thread::Builder::new().name("why502-names".into()).spawn(move || {
            for name in names {
                let from_file = hosts_file(&hosts, &name);
                let found = if from_file.is_empty() { look_up(&name) } else { from_file };
                if let Ok(mut remembered) = remembered.lock() {
                    remembered.insert(name, found);
                }
            }
        });
    }

    /// The files that are newer on disk than a process that runs with them, newest first: what it runs may be
    /// older than this snapshot.
    #[must_use]
    pub fn newer_than(&self, started: SystemTime) -> Vec<(&Path, SystemTime)> {
        let mut newer: Vec<(&Path, SystemTime)> = self
            .versions
            .iter()
            .filter_map(|(path, version)| {
                let changed = changed_at(*version)?;
                (changed > started + CLOCK_SLACK).then_some((path.as_path(), changed))
            })
            .collect();
        newer.sort_by_key(|(_, changed)| std::cmp::Reverse(*changed));
        newer
    }

    /// The files that are not what they were when this snapshot was made. Looked up once a second at most.
    #[must_use]
    pub fn edited(&self) -> Vec<(PathBuf, Change)> {
        if let Some((known, _)) = self.edited.borrow().as_ref().filter(|(_, at)| at.elapsed() < FRESH_FILES) {
            return known.clone();
        }
        let edited = RootFs::of_pid(self.pid).map(|root| self.differences(&root)).unwrap_or_default();
        *self.edited.borrow_mut() = Some((edited.clone(), Instant::now()));
        edited
    }

    fn differences(&self, root: &RootFs) -> Vec<(PathBuf, Change)> {
        if self.from_memory {
            let other = |path: &Path, text: &[u8]| root.read(path, MAX_FILE).map_or(true, |now| now != text);
            return self
                .texts()
                .filter(|(path, text)| other(path, text))
                .map(|(path, _)| {
                    let changed = changed_at(version(root, path));
                    (path.to_path_buf(), changed.map_or(Change::Gone, Change::At))
                })
                .collect();
        }
        let now = self.versions.iter().map(|(path, then)| (path, then, version(root, path)));
        let changed = now.filter(|(_, then, now)| now != *then);
        let mut all: Vec<(PathBuf, Change)> = changed
            .map(|(path, _, now)| {
                let change = match changed_at(now) {
                    Some(at) if self.made.is_none_or(|made| at + CLOCK_SLACK > made) => Change::At(at),
                    // A symbolic link leads to another file.
                    Some(_) => Change::Other,
                    None => Change::Gone,
                };
                (path.clone(), change)
            })
            .collect();
        for (pattern, then) in &self.globs {
            let now = expand(root, pattern).unwrap_or_default();
            all.extend(now.into_iter().filter(|path| !then.contains(path)).map(|path| (path, Change::Added)));
        }
        all
    }

    /// The configuration lines that lead to a unix socket, by the name that nginx used.
    #[must_use]
    pub fn candidates_unix(&self, name: &UnixName) -> Vec<Candidate> {
        let path = name.path().map(|path| Path::new(OsStr::from_bytes(path)));
        let mut candidates = path.map(|path| self.model.candidates_unix(path)).unwrap_or_default();
        if self.is_guess {
            candidates.iter_mut().for_each(|candidate| candidate.exact = false);
        }
        candidates
    }

    /// The lines that can have led to where an attempt went.
    #[must_use]
    pub fn candidates_of(&self, attempt: &Attempt) -> Vec<Candidate> {
        let mut candidates = match &attempt.unix {
            Some(name) => self.candidates_unix(name),
            None => self.candidates(attempt.remote),
        };
        if attempt.stage == Stage::Established {
            self.model.add_settings(&mut candidates);
        }
        candidates
    }

    /// The configuration lines that lead to an address. Names are looked up only if no literal address fits; where
    /// none leads there now, those that did when the snapshot was made are taken, then, as possible ones, all names
    /// with this port: nginx resolves a name once, when it reads its configuration.
    #[must_use]
    pub fn candidates(&self, addr: SocketAddr) -> Vec<Candidate> {
        if let Some((known, _)) = self.found.borrow().get(&addr).filter(|(_, at)| at.elapsed() < FRESH) {
            return known.clone();
        }
        let mut candidates = self.search(addr);
        if self.is_guess {
            candidates.iter_mut().for_each(|candidate| candidate.exact = false);
        }
        let mut found = self.found.borrow_mut();
        if found.len() >= MOST_FOUND {
            found.retain(|_, (_, at)| at.elapsed() < FRESH);
        }
        if found.len() < MOST_FOUND {
            found.insert(addr, (candidates.clone(), Instant::now()));
        }
        candidates
    }

    fn search(&self, addr: SocketAddr) -> Vec<Candidate> {
        let is_exact = |found: &[Candidate]| found.iter().any(|candidate| candidate.exact);
        let literal = self.model.candidates(addr, &|name| known_name(name).unwrap_or_default());
        if is_exact(&literal) {
            return literal;
        }
        let now = self.model.candidates(addr, &|name| match self.kept_names.get(name) {
            Some(kept) => kept.clone(),
            None => self.resolve(name),
        });
        if is_exact(&now) {
            return now;
        }
        let then = self.model.candidates(addr, &|name| self.then(name));
        if is_exact(&then) {
            return then;
        }
        // Whatever a name resolved to when nginx asked: it may be this one.
        let mut perhaps = self.model.candidates(addr, &|name| match known_name(name) {
            Some(known) => known,
            None => vec![addr.ip()],
        });
        perhaps.iter_mut().for_each(|candidate| candidate.exact = false);
        perhaps
    }

    /// The names among these candidates that nginx resolved when it read its configuration, and that lead
    /// elsewhere now.
    #[must_use]
    pub fn stale_names(&self, addr: SocketAddr, candidates: &[Candidate]) -> Vec<StaleName> {
        let mut stale: Vec<StaleName> = Vec::new();
        for name in candidates.iter().filter_map(|candidate| self.static_name(candidate)) {
            if known_name(name).is_some() || stale.iter().any(|known| known.name == name) {
                continue;
            }
            let contains =
                |all: &[IpAddr]| all.iter().any(|ip| ip.to_canonical() == addr.ip().to_canonical());
            let now = self.resolve(name);
            if !contains(&now) {
                let kept = self.kept_names.get(name);
                if kept.is_some_and(|kept| !contains(kept)) {
                    continue;
                }
                let did = contains(&self.then(name));
                stale.push(StaleName { name: name.to_owned(), did, kept: kept.is_some(), now });
            }
        }
        stale
    }

    /// The host name of a candidate, unless nginx keeps resolving it.
    fn static_name(&self, candidate: &Candidate) -> Option<&str> {
        let target = match candidate.upstream_server {
            Some((upstream, server)) => {
                let server = self.model.upstreams.get(upstream)?.servers.get(server)?;
                (!server.resolve && server.service.is_none()).then_some(&server.address)
            }
            None => self.model.passes.get(*candidate.passes.first()?).map(|pass| &pass.target),
        };
        match target? {
            Address::Name { host, .. } => Some(host),
            Address::Ip { .. } | Address::Unix { .. } | Address::Variable { .. } | Address::Invalid => None,
        }
    }

    /// The addresses that a name of the configuration had when the snapshot was made, else has now, and whether nginx
    /// must have got the same: from its /etc/hosts, say.
    #[must_use]
    pub fn addresses(&self, name: &str) -> (Vec<IpAddr>, bool) {
        if let Some(kept) = self.kept_names.get(name) {
            return (kept.clone(), true);
        }
        let from_file = self.hosts.as_deref().map(|hosts| hosts_file(hosts, name)).unwrap_or_default();
        if !from_file.is_empty() {
            return (from_file, true);
        }
        let then = self.then(name);
        (if then.is_empty() { self.resolve(name) } else { then }, false)
    }

    fn then(&self, name: &str) -> Vec<IpAddr> {
        if let Some(kept) = self.kept_names.get(name) {
            return kept.clone();
        }
        if let Some(known) = known_name(name) {
            return known;
        }
        self.remembered.lock().ok().and_then(|names| names.get(name).cloned()).unwrap_or_default()
    }

    fn resolve(&self, name: &str) -> Vec<IpAddr> {
        if let Some(known) = known_name(name) {
            return known;
        }
        if let Some((found, _)) = self.resolved.borrow().get(name).filter(|(_, at)| at.elapsed() < FRESH) {
            return found.clone();
        }
        let hosts =
            RootFs::of_pid(self.pid).and_then(|root| root.read(Path::new("/etc/hosts"), 1 << 20)).ok();
        let hosts = hosts.as_deref().or(self.hosts.as_deref());
        let from_file = hosts.map(|hosts| hosts_file(hosts, name)).unwrap_or_default();
        let found = if from_file.is_empty() { dns(name) } else { from_file };
        self.resolved.borrow_mut().insert(name.to_owned(), (found.clone(), Instant::now()));
        found
    }
}

/// A process's start is known to some 10 ms, a file's change to a clock tick.
const CLOCK_SLACK: Duration = Duration::from_millis(100);

fn platform(version: Option<Version>) -> Platform {
    // SAFETY: sysconf takes no pointers.
    let page = u32::try_from(unsafe { libc::sysconf(libc::_SC_PAGESIZE) });
    Platform { version, page: page.unwrap_or(Platform::default().page) }
}

fn version(root: &RootFs, path: &Path) -> OnDisk {
    // Not the time of modification: a file that was moved there keeps it, and anybody can set it.
    let file = root.metadata(path).ok()?;
    let changed = |m: &std::fs::Metadata| (m.ctime(), m.ctime_nsec());
    // A link that was made anew leads to another file, however old that is.
    let link = root.symlink_metadata(path).ok().map(|link| changed(&link));
    let (seconds, nanos) = link.unwrap_or_default().max(changed(&file));
    Some((file.size(), file.ino(), seconds, nanos))
}

fn changed_at(version: OnDisk) -> Option<SystemTime> {
    let (_, _, seconds, nanos) = version?;
    let since = Duration::new(u64::try_from(seconds).ok()?, u32::try_from(nanos).ok()?);
    SystemTime::UNIX_EPOCH.checked_add(since)
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

/// The system's resolver, however long it takes.
fn look_up(name: &str) -> Vec<IpAddr> {
    (name, 0).to_socket_addrs().map(|all| all.map(|a| a.ip()).collect()).unwrap_or_default()
}

/// The system's resolver, bounded in time; an answer that comes later is dropped with its thread.
fn dns(name: &str) -> Vec<IpAddr> {
    let (send, receive) = mpsc::channel();
    let owned = name.to_owned();
    let spawned = thread::Builder::new().name("why502-dns".into()).spawn(move || {
        // The receiver may have given up.
        let _ = send.send(look_up(&owned));
    });
    match spawned {
        Ok(_) => receive.recv_timeout(DNS_LIMIT).unwrap_or_default(),
        Err(_) => Vec::new(),
    }
}

#[cfg(test)]
mod tests;
