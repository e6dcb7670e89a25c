//! nginx processes: finding them, telling master from worker, and the limits they run under.
//!
//! A process chooses its own title, so a title only makes a candidate; whether it really is an nginx is decided
//! on the bytes of its executable, by the caller's judge, once for each executable.

use std::collections::HashMap;
use std::fs::{self, File};
use std::io::{self, Read as _};
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::MetadataExt as _;
use std::path::PathBuf;
use std::time::{Duration, SystemTime};

use super::container::{self, ContainerId};
use super::netns;
use super::proc;

/// Words in a name or title that make a process a candidate.
const WORDS: [&[u8]; 4] = [b"nginx", b"angie", b"openresty", b"tengine"];
/// What is read of an executable at most.
const MOST_EXE: u64 = 64 * 1024 * 1024;
/// What is read of a command line at most.
const MOST_TITLE: usize = 64 * 1024;

/// What a process is to nginx.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Role {
    /// `master process`.
    Master,
    /// `worker process`.
    Worker,
    /// `worker process is shutting down`: it still serves, with the old configuration.
    WorkerShuttingDown,
    /// `cache manager process` or `cache loader process`.
    CacheHelper,
    /// Another helper with a title, such as OpenResty's `privileged agent process`.
    Helper,
    /// No title, no master: `master_process off`.
    Single,
    /// A command such as `nginx -t` or `nginx -s reload`.
    Command,
    /// A process that has just begun, or one with a title that nginx never sets.
    Unknown,
}

impl Role {
    /// Whether it makes upstream connections.
    pub fn serves(self) -> bool {
        matches!(self, Self::Worker | Self::WorkerShuttingDown | Self::Single)
    }
}

/// Identity of an executable file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct ExeId {
    /// Device.
    pub dev: u64,
    /// Inode.
    pub ino: u64,
}

/// A user and its groups, as the kernel checks them on files.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Credentials {
    /// Effective user.
    pub uid: u32,
    /// Effective group.
    pub gid: u32,
    /// User for file access.
    pub fsuid: u32,
    /// Group for file access.
    pub fsgid: u32,
    /// Supplementary groups.
    pub groups: Vec<u32>,
}

impl Credentials {
    /// All groups that count for file access.
    pub fn file_groups(&self) -> Vec<u32> {
        std::iter::once(self.fsgid).chain(self.groups.iter().copied()).collect()
    }
}

/// An nginx process.
#[derive(Clone, Debug)]
pub struct Process {
    /// PID as /proc here shows it.
    pub pid: u32,
    /// Parent; 0 when it is in an outer PID namespace.
    pub ppid: u32,
    /// PIDs from this PID namespace inwards; the last is what its own log says.
    pub ns_pids: Vec<u32>,
    /// Path of the executable in its own mount namespace.
    pub exe: PathBuf,
    /// The file was replaced or removed since it started (an upgrade without restart).
    pub exe_deleted: bool,
    /// Identity of the executable.
    pub exe_id: ExeId,
    /// Title or command line: raw, arguments separated by NUL, as far as 64 KiB.
    pub title: Vec<u8>,
    /// What it is.
    pub role: Role,
    /// Start, in clock ticks after boot; with `pid` it names a process for good.
    pub start_ticks: u64,
    /// Start by the wall clock, exact to some 10 ms.
    pub started: SystemTime,
    /// Users and groups.
    pub credentials: Credentials,
    /// Inode number of its network namespace; `None` when that may not be read.
    pub netns: Option<u32>,
    /// Its root directory is not ours (chroot, container): read its files through [`super::rootfs`].
    pub root_differs: bool,
    /// Its mount namespace is not ours (container, PrivateTmp=): the same path may be another file.
    pub mounts_differ: bool,
    /// Its container.
    pub container: Option<ContainerId>,
}

impl Process {
    /// The title with arguments separated by blanks and escaped for a terminal.
    pub fn title_text(&self) -> String {
        let spaced: Vec<u8> = self.title.iter().map(|&byte| if byte == 0 { b' ' } else { byte }).collect();
        proc::printable(&spaced)
    }

    /// Whether the same process still runs, and not another with its PID.
    pub fn is_alive(&self) -> bool {
        stat(self.pid).is_ok_and(|now| now.start_ticks == self.start_ticks && now.state != b'Z')
    }
}

/// A master with its workers.
#[derive(Clone, Debug)]
pub struct Instance {
    /// The master, or the only process under `master_process off`.
    pub master: Process,
    /// Its children: workers and helpers.
    pub children: Vec<Process>,
    /// After SIGUSR2 the new master is the old one's child: the old one's PID.
    pub upgraded_from: Option<u32>,
}

impl Instance {
    /// The processes that make upstream connections.
    pub fn workers(&self) -> impl Iterator<Item = &Process> {
        std::iter::once(&self.master).chain(&self.children).filter(|process| process.role.serves())
    }
}

/// All nginx of a host.
#[derive(Clone, Debug, Default)]
pub struct Scan {
    /// Masters, by PID.
    pub instances: Vec<Instance>,
    /// Workers whose master is gone.
    pub orphans: Vec<Process>,
    /// Candidates that could not be examined, with the reason: most often a missing capability.
    pub refused: Vec<(u32, String)>,
}

/// Finds nginx processes and remembers which executables are one.
pub struct Finder {
    is_nginx: Judge,
    known: HashMap<ExeId, Verdict>,
}

type Judge = Box<dyn Fn(&[u8]) -> bool + Send>;

/// What was found about one executable file.
#[derive(Clone, Copy)]
struct Verdict {
    /// An inode number is used again after its file is gone: size and change time tell.
    version: (u64, i64, i64),
    is_nginx: bool,
}

impl std::fmt::Debug for Finder {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Finder").field("known", &self.known.len()).finish_non_exhaustive()
    }
}

impl Finder {
    /// `is_nginx` judges the bytes of an executable (its first 64 MiB).
    pub fn new(is_nginx: impl Fn(&[u8]) -> bool + Send + 'static) -> Self {
        Self { is_nginx: Box::new(is_nginx), known: HashMap::new() }
    }

    /// Looks at all processes.
    pub fn find_nginx(&mut self) -> io::Result<Scan> {
        let mut found = Vec::new();
        let mut refused = Vec::new();
        for pid in proc::pids()? {
            match self.examine(pid) {
                Ok(process) => found.extend(process),
                Err(error) if is_gone(&error) => {}
                Err(error) => refused.push((pid, error.to_string())),
            }
        }
        let mut scan = group(found);
        scan.refused = refused;
        Ok(scan)
    }

    /// Looks at one process; `None` when it is no nginx. Its role is as far as its title tells.
    pub fn examine(&mut self, pid: u32) -> io::Result<Option<Process>> {
        let title = read_title(pid)?;
        // A kernel thread or a zombie has no command line.
        if title.is_empty() || !is_candidate(pid, &title) {
            return Ok(None);
        }
        let exe = fs::metadata(format!("/proc/{pid}/exe"))?;
        let exe_id = ExeId { dev: exe.dev(), ino: exe.ino() };
        if !self.judge(pid, exe_id, &exe)? {
            return Ok(None);
        }
        describe(pid, exe_id, title).map(Some)
    }

    fn judge(&mut self, pid: u32, id: ExeId, exe: &fs::Metadata) -> io::Result<bool> {
        let version = (exe.size(), exe.ctime(), exe.ctime_nsec());
        if let Some(known) = self.known.get(&id).filter(|known| known.version == version) {
            return Ok(known.is_nginx);
        }
        let file = File::open(format!("/proc/{pid}/exe"))?;
        let mut bytes = Vec::with_capacity(usize::try_from(exe.size().min(MOST_EXE)).unwrap_or(0));
        file.take(MOST_EXE).read_to_end(&mut bytes)?;
        let is_nginx = (self.is_nginx)(&bytes);
        self.known.insert(id, Verdict { version, is_nginx });
        Ok(is_nginx)
    }
}

fn is_gone(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::ENOENT | libc::ESRCH))
}

/// Its title or arguments, without the padding.
///
/// # Errors
/// If the process is gone, or may not be looked at.
pub fn read_title(pid: u32) -> io::Result<Vec<u8>> {
    let mut title = proc::read_up_to(format!("/proc/{pid}/cmdline"), MOST_TITLE)?;
    // nginx overwrites its arguments and pads with NULs, or blanks where SETPROCTITLE_PAD says so.
    let length = title.iter().rposition(|&byte| byte != 0 && byte != b' ').map_or(0, |last| last + 1);
    title.truncate(length);
    Ok(title)
}

fn is_candidate(pid: u32, title: &[u8]) -> bool {
    if contains_word(program(title)) {
        return true;
    }
    if proc::read_up_to(format!("/proc/{pid}/comm"), 64).is_ok_and(|comm| contains_word(&comm)) {
        return true;
    }
    let exe = fs::read_link(format!("/proc/{pid}/exe"));
    exe.is_ok_and(|path| path.file_name().is_some_and(|name| contains_word(name.as_bytes())))
}

/// The program's name in a title or command line, without its folder: an editor that has nginx.conf open is no
/// candidate, since each one costs a look at its executable.
fn program(title: &[u8]) -> &[u8] {
    let word = title.split(|byte| b"\0 :".contains(byte)).next().unwrap_or_default();
    let start = word.iter().rposition(|&byte| byte == b'/').map_or(0, |slash| slash + 1);
    word.get(start..).unwrap_or_default()
}

fn contains_word(text: &[u8]) -> bool {
    WORDS.iter().any(|word| text.windows(word.len()).any(|part| part.eq_ignore_ascii_case(word)))
}

fn stat(pid: u32) -> io::Result<proc::Stat> {
    let bytes = proc::read_up_to(format!("/proc/{pid}/stat"), 4096)?;
    proc::parse_stat(&bytes)
        .ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, "/proc/PID/stat is odd"))
}

fn describe(pid: u32, exe_id: ExeId, title: Vec<u8>) -> io::Result<Process> {
    let stat = stat(pid)?;
    let status = proc::read_up_to(format!("/proc/{pid}/status"), 64 * 1024)?;
    let (exe, exe_deleted) = exe_path(pid)?;
    let ns_pids = proc::field(&status, "NSpid").map_or_else(|| vec![pid], proc::numbers);
    Ok(Process {
        pid,
        ppid: stat.ppid,
        ns_pids,
        exe,
        exe_deleted,
        exe_id,
        role: role_of(&title),
        title,
        start_ticks: stat.start_ticks,
        started: started(stat.start_ticks),
        credentials: parse_credentials(&status),
        netns: netns::inum_of_pid(pid).ok(),
        root_differs: differs(pid, "root"),
        mounts_differ: differs(pid, "ns/mnt"),
        container: container::of_pid(pid),
    })
}

fn exe_path(pid: u32) -> io::Result<(PathBuf, bool)> {
    let path = fs::read_link(format!("/proc/{pid}/exe"))?;
    let bytes = path.as_os_str().as_bytes();
    let Some(bare) = bytes.strip_suffix(b" (deleted)") else { return Ok((path, false)) };
    Ok((PathBuf::from(std::ffi::OsStr::from_bytes(bare)), true))
}

fn differs(pid: u32, what: &str) -> bool {
    let identity =
        |who: &str| fs::metadata(format!("/proc/{who}/{what}")).map(|found| (found.dev(), found.ino()));
    matches!((identity(&pid.to_string()), identity("self")), (Ok(theirs), Ok(ours)) if theirs != ours)
}

pub(super) fn parse_credentials(status: &[u8]) -> Credentials {
    let ids = |key| proc::field(status, key).map(proc::numbers).unwrap_or_default();
    let (uids, gids) = (ids("Uid"), ids("Gid"));
    let at = |list: &[u32], index: usize| list.get(index).copied().unwrap_or(u32::MAX);
    Credentials {
        uid: at(&uids, 1),
        gid: at(&gids, 1),
        fsuid: at(&uids, 3),
        fsgid: at(&gids, 3),
        groups: ids("Groups"),
    }
}

fn started(ticks: u64) -> SystemTime {
    // SAFETY: sysconf takes no pointers.
    let per_second =
        u64::try_from(unsafe { libc::sysconf(libc::_SC_CLK_TCK) }).ok().filter(|&hz| hz > 0).unwrap_or(100);
    // SAFETY: timespec is two integers, for which zero is valid.
    let mut now: libc::timespec = unsafe { std::mem::zeroed() };
    // SAFETY: the pointer is to a live timespec.
    unsafe { libc::clock_gettime(libc::CLOCK_BOOTTIME, &raw mut now) };
    let up = Duration::new(u64::try_from(now.tv_sec).unwrap_or(0), u32::try_from(now.tv_nsec).unwrap_or(0));
    let nanos = (ticks % per_second).saturating_mul(1_000_000_000) / per_second;
    let start = Duration::from_secs(ticks / per_second) + Duration::from_nanos(nanos);
    SystemTime::now().checked_sub(up.saturating_sub(start)).unwrap_or(SystemTime::UNIX_EPOCH)
}

/// What a title says. `nginx: master process …`, `angie: worker process`, or the arguments of a start.
pub fn role_of(title: &[u8]) -> Role {
    let words = title.iter().position(|&byte| byte == b':').and_then(|colon| {
        let (name, rest) = title.split_at(colon);
        let plain =
            !name.is_empty() && name.iter().all(|byte| byte.is_ascii_alphanumeric() || b"-_".contains(byte));
        plain.then(|| rest.strip_prefix(b": "))?
    });
    if let Some(words) = words {
        return match words {
            // Angie adds the generation: `worker process #2`.
            _ if words.starts_with(b"worker process") => {
                if words.ends_with(b" is shutting down") {
                    Role::WorkerShuttingDown
                } else {
                    Role::Worker
                }
            }
            _ if words.starts_with(b"master process") => Role::Master,
            _ if words.starts_with(b"cache manager process")
                || words.starts_with(b"cache loader process") =>
            {
                Role::CacheHelper
            }
            _ if words.starts_with(b"privileged agent process") => Role::Helper,
            _ => Role::Unknown,
        };
    }
    let mut arguments = title.split(|&byte| byte == 0).skip(1);
    while let Some(argument) = arguments.next() {
        match argument {
            b"-p" | b"-c" | b"-g" | b"-e" => {
                arguments.next();
            }
            // nginx takes several letters in one argument: -tq, -vV.
            _ if argument.first() == Some(&b'-')
                && argument.get(1).is_some_and(|letter| b"?hvVtTs".contains(letter)) =>
            {
                return Role::Command;
            }
            _ => {}
        }
    }
    Role::Single
}

/// Sorts processes into masters, their children, and orphans.
fn group(mut processes: Vec<Process>) -> Scan {
    let children_of =
        |pid: u32, list: &[Process]| list.iter().any(|one| one.ppid == pid && one.role != Role::Master);
    // A build that sets no master title is known by its titled children; a child without a title of its own is a
    // worker of such a build.
    let untitled: Vec<u32> = processes
        .iter()
        .filter(|one| one.role == Role::Single && children_of(one.pid, &processes))
        .map(|one| one.pid)
        .collect();
    for process in &mut processes {
        if untitled.contains(&process.pid) {
            process.role = Role::Master;
        }
    }
    let masters: Vec<u32> =
        processes.iter().filter(|one| one.role == Role::Master).map(|one| one.pid).collect();
    for process in &mut processes {
        if process.role == Role::Single && masters.contains(&process.ppid) {
            // Forked, and not titled yet: nothing is known of it until it is looked at again.
            process.role = Role::Unknown;
        }
    }
    let mut scan = Scan::default();
    let (heads, rest): (Vec<_>, Vec<_>) =
        processes.into_iter().partition(|one| matches!(one.role, Role::Master | Role::Single));
    for master in heads {
        let upgraded_from = masters.contains(&master.ppid).then_some(master.ppid);
        scan.instances.push(Instance { master, children: Vec::new(), upgraded_from });
    }
    for process in rest {
        match scan.instances.iter_mut().find(|instance| instance.master.pid == process.ppid) {
            Some(instance) => instance.children.push(process),
            None if matches!(process.role, Role::Command | Role::Unknown) => {}
            None => scan.orphans.push(process),
        }
    }
    scan.instances.sort_by_key(|instance| instance.master.pid);
    scan
}

/// Open files of a process against its limits and the host's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FdUsage {
    /// Open descriptors.
    pub open: u64,
    /// RLIMIT_NOFILE, soft; `u64::MAX` is unlimited.
    pub soft: u64,
    /// RLIMIT_NOFILE, hard.
    pub hard: u64,
    /// Open files of the host (fs.file-nr).
    pub host_open: Option<u64>,
    /// fs.file-max.
    pub host_max: Option<u64>,
}

/// Reads the use of descriptors.
pub fn fd_usage(pid: u32) -> io::Result<FdUsage> {
    let limits = proc::read_up_to(format!("/proc/{pid}/limits"), 16 * 1024)?;
    let (soft, hard) = parse_nofile(&limits).ok_or_else(|| {
        io::Error::new(io::ErrorKind::InvalidData, "no open-files limit in /proc/PID/limits")
    })?;
    let directory = format!("/proc/{pid}/fd");
    // Since Linux 6.2 the directory's size is the count.
    let open = match fs::metadata(&directory)?.size() {
        0 => u64::try_from(fs::read_dir(&directory)?.count()).unwrap_or(u64::MAX),
        count => count,
    };
    let host = proc::read_trimmed("/proc/sys/fs/file-nr").unwrap_or_default();
    let number = |index| host.split_ascii_whitespace().nth(index).and_then(|word| word.parse().ok());
    Ok(FdUsage { open, soft, hard, host_open: number(0), host_max: number(2) })
}

fn parse_nofile(limits: &[u8]) -> Option<(u64, u64)> {
    let text = std::str::from_utf8(limits).ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix("Max open files"))?;
    let mut values = line.split_ascii_whitespace();
    let mut next = || match values.next()? {
        "unlimited" => Some(u64::MAX),
        number => number.parse().ok(),
    };
    Some((next()?, next()?))
}

#[cfg(test)]
#[path = "process_tests.rs"]
mod tests;
