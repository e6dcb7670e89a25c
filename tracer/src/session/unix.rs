//! Unix sockets: which failed connects are upstream's, and what the operating system knows of the socket.

use std::{
    collections::HashMap,
    ffi::OsStr,
    fs, io,
    os::unix::{ffi::OsStrExt as _, fs::MetadataExt as _},
    path::{Path, PathBuf},
    time::{Instant, SystemTime},
};

use tracer_ebpf::unix::LIBC;

use super::{clock::wall_clock, explain::serves, facts, watch::Watched};
use crate::{
    correlate::unix::{Bound, Component, Elsewhere, End, Near, PoolLine, Refusal, Type, UnixFact, Wanted},
    event::{Attempt, UnixName},
    report::moment,
    sys::{
        acl::{self, Tag},
        apparmor, fpm,
        netns::{self, NetNs},
        owners::{self, Budget, Owners},
        proc,
        rootfs::RootFs,
        sysctl, unit,
        unixdiag::{self, FileMatch, UnixListener},
        walk::{self, Kind, Step, Walk, Walker},
    },
};

/// Network namespaces that are searched for the backend's end.
const MOST_NAMESPACES: usize = 64;
/// Names of a folder that are compared.
const MOST_NAMES: usize = 2000;
/// Similar names, and other places, that are told.
const MOST_TOLD: usize = 3;
/// Remembered answers.
const MOST: usize = 256;

/// True for a connect() that has nothing to do with upstream servers: looking up users and groups, libc asks daemons by
/// unix sockets that often do not exist (nscd, systemd-userdbd, sssd), in the master and as a worker begins.
pub(super) fn is_foreign(attempt: &Attempt, worker: &Watched) -> bool {
    if attempt.unix.as_ref().and_then(UnixName::path).is_some_and(asks_for_names) {
        return true;
    }
    let leads_there = !worker.config.candidates_of(attempt).is_empty();
    // Without a line it may be a script's, but never without a request.
    (!attempt.asked && !leads_there) || !serves(attempt.worker)
}

/// True for a daemon that libc asks for users, groups and hosts: most hosts have none of them.
fn asks_for_names(path: &[u8]) -> bool {
    LIBC.iter().any(|daemon| path.starts_with(daemon))
}

/// What was found of late, by worker and name.
#[derive(Default)]
pub(super) struct Known(HashMap<(u32, UnixName), (UnixFact, Option<SystemTime>, Instant)>);

impl Known {
    /// Everything about the socket of an attempt; None if the worker is gone.
    pub(super) fn gather(&mut self, attempt: &Attempt, name: &UnixName) -> Option<Box<UnixFact>> {
        let key = (attempt.worker, name.clone());
        let fresh = self.0.get(&key).filter(|(_, _, at)| at.elapsed() < facts::FRESH);
        let (mut fact, changed) = match fresh {
            Some((fact, changed, _)) => (fact.clone(), *changed),
            None => {
                let (fact, changed) = look(attempt.worker, name).ok()?;
                if self.0.len() < MOST {
                    self.0.insert(key, (fact.clone(), changed, Instant::now()));
                }
                (fact, changed)
            }
        };
        fact.changed_since = changed.is_some_and(|at| at > wall_clock(attempt.end_ns));
        Some(Box::new(fact))
    }

    pub(super) fn sweep(&mut self) {
        self.0.retain(|_, (.., at)| at.elapsed() < facts::FRESH);
    }
}

/// A socket that is bound, and the network namespace that it was made in.
pub(super) struct Found {
    pub(super) socket: UnixListener,
    namespace: usize,
}

/// All bound sockets of this machine, as far as they can be seen.
pub(super) struct Sockets {
    found: Vec<Found>,
    namespaces: Vec<NetNs>,
    complete: bool,
}

impl Sockets {
    pub(super) fn read(worker: u32) -> Self {
        let mut all = Self { found: Vec::new(), namespaces: Vec::new(), complete: true };
        all.add(NetNs::of_pid(worker).ok());
        let residents = netns::all(MOST_NAMESPACES).unwrap_or_default();
        all.complete &= residents.len() < MOST_NAMESPACES && !residents.is_empty();
        for resident in residents {
            if all.namespaces.iter().all(|ns| ns.inum() != resident.inum) {
                all.add(resident.open().ok());
            }
        }
        all
    }

    fn add(&mut self, ns: Option<NetNs>) {
        let Some((ns, sockets)) = ns.and_then(|ns| Some((ns.clone(), unixdiag::named(&ns).ok()?))) else {
            self.complete = false;
            return;
        };
        let namespace = self.namespaces.len();
        self.namespaces.push(ns);
        self.found.extend(sockets.into_iter().map(|socket| Found { socket, namespace }));
    }

    /// The abstract socket of that name in the worker's network namespace.
    pub(super) fn of_name(&self, name: &[u8]) -> Option<&Found> {
        self.found.iter().find(|f| f.namespace == 0 && f.socket.name.strip_prefix(&[0]) == Some(name))
    }

    /// The socket behind a file. Where the file system reports another device than the kernel's own, the inode number
    /// alone decides, if the name ends alike.
    pub(super) fn of_file(&self, (device, inode): (u64, u64), name: &[u8]) -> Option<&Found> {
        let exact = |f: &&Found| f.socket.matches(device, inode) == FileMatch::Yes;
        let near = |f: &&Found| {
            f.socket.matches(device, inode) == FileMatch::InodeOnly && last(&f.socket.name) == last(name)
        };
        self.found.iter().find(exact).or_else(|| self.found.iter().find(near))
    }
}

/// The last component of a path.
fn last(path: &[u8]) -> &[u8] {
    let path = path.split(|byte| *byte == 0).next().unwrap_or_default();
    path.rsplit(|byte| *byte == b'/').next().unwrap_or_default()
}

/// Looks at a name as a worker sees it; with it, when anything about the path changed last.
fn look(worker: u32, name: &UnixName) -> io::Result<(UnixFact, Option<SystemTime>)> {
    let walker = Walker::of_pid(worker)?;
    let names = Names::of(worker);
    let sockets = Sockets::read(worker);
    let mut fact = UnixFact {
        worker: names.describe(&walker),
        user: names.user(walker.credentials.fsuid),
        unit: unit::service_of(worker),
        own_mounts: !sees_the_same(worker, std::process::id()),
        end: End::Abstract,
        file: None,
        since: None,
        changed_since: false,
        refusal: None,
        bound: None,
        searched_all: sockets.complete,
        pool: Vec::new(),
        elsewhere: Vec::new(),
        near: Vec::new(),
        selinux: selinux(),
        apparmor: profile(worker),
    };
    let path = match name {
        UnixName::Path(path) => path,
        UnixName::Abstract(name) => {
            abstract_name(&mut fact, name, &sockets);
            return Ok((fact, None));
        }
    };
    let walk = walk::walk(worker, path)?;
    fact.end = end(&walk);
    let owner_of = |found: &Found| {
        let owners = owners::find(&[found.socket.inode], Budget::default());
        owners.get(found.socket.inode).cloned()
    };
    if let Some((step, wanted, entry)) = walk.refusal(&walker) {
        fact.refusal = Some(refusal(step, wanted, entry, &walker, &names));
    }
    if let Some(file) = walk.file() {
        fact.file = Some(names.component(file));
        fact.since = Some(moment(file.modified));
        let found = sockets.of_file(file.id, path).filter(|_| file.kind == Kind::Socket);
        if let Some(found) = found {
            let owner = owner_of(found);
            if let Some(owner) = &owner {
                fact.pool = pool(owner.pid, &found.socket.name);
                // Who can connect has nothing to do with it.
                fact.pool.retain(|line| line.key != "request_terminate_timeout");
            }
            fact.bound = Some(bound(found, &sockets, owner.as_ref()));
        }
    } else {
        let owners = elsewhere(&mut fact, worker, path, &sockets);
        near(&mut fact, worker, &walk, path, &sockets, &owners);
    }
    // What decides: the file itself, links that lead to it, and the folder that keeps the worker out.
    let refusing = walk.refusal(&walker).map(|(step, ..)| step);
    let decides =
        |step: &&Step| step.kind == Kind::Link || Some(*step) == walk.steps.last() || Some(*step) == refusing;
    let changed = walk.steps.iter().filter(decides).map(|step| step.changed).max();
    Ok((fact, changed))
}

fn abstract_name(fact: &mut UnixFact, name: &[u8], sockets: &Sockets) {
    // Abstract names are told apart by network namespace.
    if let Some(found) = sockets.of_name(name) {
        let owners = owners::find(&[found.socket.inode], Budget::default());
        fact.bound = Some(bound(found, sockets, owners.get(found.socket.inode)));
        return;
    }
    let is = |f: &&Found| f.socket.name.strip_prefix(&[0]) == Some(name);
    let others: Vec<&Found> = sockets.found.iter().filter(is).take(MOST_TOLD).collect();
    let inodes: Vec<u32> = others.iter().map(|f| f.socket.inode).collect();
    let owners = owners::find(&inodes, Budget::default());
    for other in others {
        if let Some(owner) = owners.get(other.socket.inode) {
            let who = format!("{} in another network namespace", facts::owner(owner));
            fact.elsewhere.push(Elsewhere {
                who,
                unit: unit::service_of(owner.pid),
                host_path: None,
                private_tmp: false,
            });
        }
    }
}

fn end(walk: &Walk) -> End {
    let Some((place, errno)) = &walk.end else {
        return match walk.file().map(|file| file.kind) {
            Some(Kind::Socket) => End::Socket,
            Some(kind) => End::Other(word(kind).into()),
            None => End::Unreadable(libc::EIO),
        };
    };
    let shown = text(place);
    match *errno {
        libc::ENOENT => {
            let link = walk.steps.last().filter(|step| step.kind == Kind::Link);
            let is_folder = walk.folder_is_missing();
            End::Missing { missing: shown, is_folder, link: link.map(|link| text(&link.path)) }
        }
        libc::ENOTDIR => End::NotAFolder(place.parent().map_or(shown, text)),
        libc::ELOOP => End::Circle(shown),
        other => End::Unreadable(other),
    }
}

fn text(path: &Path) -> String {
    proc::printable(path.as_os_str().as_bytes())
}

fn word(kind: Kind) -> &'static str {
    match kind {
        Kind::Folder => "folder",
        Kind::Socket => "socket",
        Kind::Link => "link",
        Kind::File => "regular file",
        Kind::Other => "device or FIFO",
    }
}

fn bound(found: &Found, sockets: &Sockets, owner: Option<&owners::Owner>) -> Bound {
    let socket = &found.socket;
    let namespace = sockets.namespaces.get(found.namespace);
    let state = |pid| {
        let stat = proc::read_up_to(format!("/proc/{pid}/stat"), 4096).ok()?;
        Some(proc::parse_stat(&stat)?.state)
    };
    Bound {
        kind: match i32::from(socket.kind) {
            libc::SOCK_DGRAM => Type::Datagram,
            libc::SOCK_SEQPACKET => Type::Seqpacket,
            _ => Type::Stream,
        },
        listens: socket.listens,
        queued: socket.recv_q,
        limit: socket.send_q,
        owner: owner.map(facts::owner),
        stopped: owner.and_then(|owner| state(owner.pid)).is_some_and(|state| matches!(state, b'T' | b't')),
        somaxconn: namespace.and_then(|ns| sysctl::settings(ns).ok()?.somaxconn),
    }
}

/// php-fpm's lines about the pool that listens there; empty if that process is none.
pub(super) fn pool(pid: u32, path: &[u8]) -> Vec<PoolLine> {
    let path = path.split(|byte| *byte == 0).next().unwrap_or_default();
    let settings = fpm::pool(pid, path).into_iter();
    let place = |s: &fpm::Setting| format!("{}:{}", text(&s.file), s.line);
    settings.map(|s| PoolLine { place: place(&s), key: s.key, value: s.value }).collect()
}

/// Names of users and groups, as the worker's own /etc has them.
struct Names {
    users: HashMap<u32, String>,
    groups: HashMap<u32, String>,
}

impl Names {
    fn of(worker: u32) -> Self {
        let root = RootFs::of_pid(worker);
        let read = |file: &str| {
            let bytes = root.as_ref().ok().and_then(|root| root.read(Path::new(file), 1 << 20).ok());
            let text = proc::printable_lines(&bytes.unwrap_or_default());
            let pair = |line: &String| {
                let mut fields = line.split(':');
                let name = fields.next()?.to_owned();
                Some((fields.nth(1)?.parse().ok()?, name))
            };
            text.iter().rev().filter_map(pair).collect()
        };
        Self { users: read("/etc/passwd"), groups: read("/etc/group") }
    }

    fn user(&self, uid: u32) -> String {
        self.users.get(&uid).cloned().unwrap_or_else(|| uid.to_string())
    }

    fn group(&self, gid: u32) -> String {
        self.groups.get(&gid).cloned().unwrap_or_else(|| gid.to_string())
    }

    fn describe(&self, walker: &Walker) -> String {
        let mut groups: Vec<String> = Vec::new();
        for gid in walker.credentials.file_groups() {
            let name = self.group(gid);
            if !groups.contains(&name) {
                groups.push(name);
            }
        }
        let plural = if groups.len() == 1 { "group" } else { "groups" };
        let uid = walker.credentials.fsuid;
        format!("{} (uid {uid}, {plural} {})", self.user(uid), groups.join(", "))
    }

    fn component(&self, step: &Step) -> Component {
        Component {
            path: text(&step.path),
            kind: word(step.kind).into(),
            mode: step.mode,
            owner: self.user(step.uid),
            group: self.group(step.gid),
        }
    }
}

fn refusal(
    step: &Step,
    wanted: walk::Wanted,
    entry: Option<acl::Entry>,
    walker: &Walker,
    names: &Names,
) -> Refusal {
    let groups = walker.credentials.file_groups();
    let (owns, member) = (step.uid == walker.credentials.fsuid, groups.contains(&step.gid));
    let permissions = |allowed: u32| {
        let bit = |mask: u32, letter: char| if allowed & mask != 0 { letter } else { '-' };
        [bit(4, 'r'), bit(2, 'w'), bit(1, 'x')].iter().collect::<String>()
    };
    let because = match entry {
        Some(entry) => {
            let whose = match entry.tag {
                Tag::Owner => "user:".to_owned(),
                Tag::User(uid) => format!("user:{}", names.user(uid)),
                Tag::OwningGroup => "group:".to_owned(),
                Tag::Group(gid) => format!("group:{}", names.group(gid)),
                Tag::Mask => "mask:".to_owned(),
                Tag::Other => "other:".to_owned(),
            };
            let mask = step.acl.iter().find(|e| e.tag == Tag::Mask).map(|e| permissions(e.allowed));
            let mask = mask.map(|mask| format!(" under the mask {mask}")).unwrap_or_default();
            format!("its access control list says {whose}:{}{mask}", permissions(entry.allowed))
        }
        None if owns => {
            "the worker owns it, and what its owner may do is decided by the first three letters".to_owned()
        }
        None if member => "the worker is of its group, so the middle three letters decide".to_owned(),
        None => "the worker is neither its owner nor of its group".to_owned(),
    };
    let bits = match wanted {
        walk::Wanted::Write => 2,
        walk::Wanted::Search | walk::Wanted::Follow => 1,
    };
    Refusal {
        at: names.component(step),
        wanted: match wanted {
            walk::Wanted::Search => Wanted::Search,
            walk::Wanted::Follow => Wanted::Follow,
            walk::Wanted::Write => Wanted::Write,
        },
        because,
        group_may: entry.is_none() && !owns && !member && step.mode >> 3 & bits == bits,
        by_list: entry.is_some(),
        own_rules: step.own_rules,
    }
}

/// Finds the path where others see it: the host, and whoever is bound to a socket of that name. Returns the owners of
/// sockets with a like name.
fn elsewhere(fact: &mut UnixFact, worker: u32, path: &[u8], sockets: &Sockets) -> Owners {
    let like: Vec<u32> = sockets
        .found
        .iter()
        .filter(|f| {
            f.socket.listens && !f.socket.name.is_empty() && similar(last(&f.socket.name), last(path))
        })
        .map(|f| f.socket.inode)
        .collect();
    let owners = owners::find(&like, Budget::default());
    let shown = PathBuf::from(OsStr::from_bytes(path));
    for found in &sockets.found {
        let is_it = trimmed(&found.socket.name) == path && found.socket.listens;
        let Some(owner) = owners.get(found.socket.inode).filter(|_| is_it) else { continue };
        if fact.elsewhere.len() >= MOST_TOLD || sees_the_same(owner.pid, worker) {
            continue;
        }
        let host_path = host_path(&shown, found);
        let private_tmp = host_path.as_deref().is_some_and(|path| path.contains("/systemd-private-"));
        let unit = unit::service_of(owner.pid);
        fact.elsewhere.push(Elsewhere { who: facts::owner(owner), unit, host_path, private_tmp });
    }
    let host = fs::symlink_metadata(&shown).is_ok();
    if host && path.first() == Some(&b'/') && fact.own_mounts && fact.elsewhere.len() < MOST_TOLD {
        let known = fact.elsewhere.iter().any(|other| other.host_path.as_deref() == Some(&*text(&shown)));
        if !known {
            fact.elsewhere.push(Elsewhere {
                who: "the host".to_owned(),
                unit: None,
                host_path: Some(text(&shown)),
                private_tmp: false,
            });
        }
    }
    owners
}

/// Where the host sees the file that a socket is bound to: at the same path, or in the folder that systemd made for
/// PrivateTmp= (`/tmp/systemd-private-<boot>-<unit>-<random>/tmp`).
fn host_path(path: &Path, found: &Found) -> Option<String> {
    let is_it = |candidate: &Path| {
        let meta = fs::symlink_metadata(candidate).ok()?;
        (found.socket.matches(meta.dev(), meta.ino()) != FileMatch::No).then(|| text(candidate))
    };
    if let Some(same) = is_it(path) {
        return Some(same);
    }
    let (tmp, rest) =
        ["/tmp", "/var/tmp"].iter().find_map(|tmp| Some((Path::new(tmp), path.strip_prefix(tmp).ok()?)))?;
    let folders = fs::read_dir(tmp).ok()?.flatten().take(MOST_NAMES);
    let private = folders.filter(|entry| entry.file_name().as_bytes().starts_with(b"systemd-private-"));
    private.into_iter().find_map(|entry| is_it(&entry.path().join("tmp").join(rest)))
}

fn trimmed(name: &[u8]) -> &[u8] {
    name.split(|byte| *byte == 0).next().unwrap_or_default()
}

/// Sockets whose names are like the missing one: in the same folder, of the same name elsewhere, or, of a name that begins
/// with `@`, an abstract one.
fn near(fact: &mut UnixFact, worker: u32, walk: &Walk, path: &[u8], sockets: &Sockets, owners: &Owners) {
    let mut names: Vec<Vec<u8>> = Vec::new();
    if let Some(name) = path.strip_prefix(b"@") {
        let is = |f: &&Found| f.socket.name.strip_prefix(&[0]) == Some(name) && f.socket.listens;
        if let Some(found) = sockets.found.iter().find(is) {
            let owners = owners::find(&[found.socket.inode], Budget::default());
            let owner = owners.get(found.socket.inode).map(facts::owner);
            fact.near.push(Near { name: proc::printable(path), owner, listens: true });
        }
    }
    let folder = walk.steps.iter().rev().find(|step| step.kind == Kind::Folder);
    if let Some(folder) = folder.filter(|_| !walk.folder_is_missing())
        && let Ok(root) = RootFs::of_pid(worker)
    {
        let all = root.list(&folder.path, MOST_NAMES).unwrap_or_default();
        let like = all.into_iter().filter(|name| similar(name, last(path)));
        names.extend(
            like.map(|name| folder.path.join(OsStr::from_bytes(&name)).as_os_str().as_bytes().to_vec()),
        );
    }
    // The same name in another folder.
    let same = |f: &&Found| f.socket.listens && similar(last(&f.socket.name), last(path));
    names.extend(sockets.found.iter().filter(same).map(|f| trimmed(&f.socket.name).to_vec()));
    for name in names {
        if fact.near.len() >= MOST_TOLD {
            return;
        }
        let Some(file) = walk::walk(worker, &name).ok().and_then(|walk| walk.file().cloned()) else {
            continue;
        };
        let shown = proc::printable(&name);
        if file.kind != Kind::Socket || fact.near.iter().any(|near| near.name == shown) {
            continue;
        }
        let found = sockets.of_file(file.id, &name).filter(|found| found.socket.listens);
        let owner = found.and_then(|found| owners.get(found.socket.inode)).map(facts::owner);
        fact.near.push(Near { name: shown, owner, listens: found.is_some() });
    }
    // Who listens comes first.
    fact.near.sort_by_key(|near| !near.listens);
}

/// True for names that may have been meant for each other: equal but for digits, or two letters apart.
fn similar(one: &[u8], other: &[u8]) -> bool {
    let bare = |name: &[u8]| -> Vec<u8> {
        name.iter()
            .filter(|b| !b.is_ascii_digit() && !b"._-".contains(b))
            .map(u8::to_ascii_lowercase)
            .collect()
    };
    let (a, b) = (bare(one), bare(other));
    if a.is_empty() || b.is_empty() {
        return false;
    }
    a == b || (a.len().min(b.len()) > 4 && a.len().abs_diff(b.len()) <= 2 && distance(&a, &b) <= 2)
}

/// Letters to insert, delete or replace (Levenshtein).
fn distance(a: &[u8], b: &[u8]) -> usize {
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.iter().enumerate() {
        let mut before = i;
        let mut left = i + 1;
        for (y, cell) in b.iter().zip(row.iter_mut().skip(1)) {
            let above = *cell;
            left = (before + usize::from(x != y)).min(above + 1).min(left + 1);
            before = above;
            *cell = left;
        }
        if let Some(first) = row.first_mut() {
            *first = i + 1;
        }
    }
    row.last().copied().unwrap_or(0)
}

/// True if two processes have the same mounts and the same root: a path is the same file for both.
fn sees_the_same(one: u32, other: u32) -> bool {
    let view = |pid: u32| {
        let root = fs::metadata(format!("/proc/{pid}/root/")).ok()?;
        let mounts = fs::read_link(format!("/proc/{pid}/ns/mnt")).ok()?;
        Some((mounts, root.dev(), root.ino()))
    };
    view(one).is_some_and(|seen| view(other) == Some(seen))
}

fn selinux() -> bool {
    proc::read_trimmed("/sys/fs/selinux/enforce").is_ok_and(|on| on == "1")
}

/// The AppArmor profile that is enforced on a process: `nginx (enforce)`.
fn profile(pid: u32) -> Option<String> {
    let (profile, mode) = apparmor::confinement(pid)?;
    let enforced = profile != "unconfined" && !matches!(mode.as_deref(), Some("complain" | "unconfined"));
    enforced.then(|| mode.map_or_else(|| profile.clone(), |mode| format!("{profile} ({mode})")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_that_were_meant() {
        for (one, other) in [
            ("php8.1-fpm.sock", "php8.2-fpm.sock"),
            ("php-fpm.sock", "php8.2-fpm.sock"),
            ("gunicorn.sock", "gunicron.sock"),
            ("app.sock", "app1.sock"),
        ] {
            assert!(similar(one.as_bytes(), other.as_bytes()), "{one} {other}");
        }
        for (one, other) in [("app.sock", "redis.sock"), ("a.sock", "mysqld.sock"), ("", "x"), ("1", "2")] {
            assert!(!similar(one.as_bytes(), other.as_bytes()), "{one} {other}");
        }
        assert_eq!((distance(b"kitten", b"sitting"), distance(b"", b"ab"), distance(b"a", b"a")), (3, 2, 0));
    }

    #[test]
    fn who_is_asked_for_names() {
        for path in
            ["/var/run/nscd/socket", "/run/systemd/userdb/io.systemd.Multiplexer", "/var/lib/sss/pipes/nss"]
        {
            assert!(asks_for_names(path.as_bytes()));
        }
        assert!(!asks_for_names(b"/run/php/fpm.sock"));
        assert_eq!(last(b"/run/php/a.sock\0\0"), b"a.sock");
        assert!(sees_the_same(std::process::id(), std::process::id()));
    }
}
