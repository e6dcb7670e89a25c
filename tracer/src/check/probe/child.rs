//! The helper: this program again, as a process of its own, in the worker's place.
//!
//! It reads a plan, opens what it needs of /proc, goes into the worker's namespaces, folder, cgroup, user and profile (in
//! that order, as each step may forbid those before it), and only then makes a connection. One thread: `setns` into
//! another mount namespace allows no second.

use std::{
    ffi::CString,
    fs::{File, OpenOptions},
    io::{self, Read as _, Write as _},
    os::{
        fd::{AsFd as _, AsRawFd as _, OwnedFd},
        unix::fs::OpenOptionsExt as _,
    },
    process::ExitCode,
    time::{Duration, Instant},
};

use super::{
    question,
    socket::{self, Begun},
    tls::Handshake,
    wire::{Answer, Ask, Call, Outcome, Plan, Question, Said},
};

/// The argument that makes this program the helper.
pub const WORD: &str = "__probe";
/// A plan is no longer, bytes.
const MOST_PLAN: u64 = 64 << 20;
/// What a name server sends over UDP is no longer as a rule (RFC 1035, 4.2.1), bytes.
const MOST_REPLY: usize = 512;
/// So often a question is sent in the time that it has: one packet that is lost is no silence.
const TIMES: u32 = 3;
/// Errors of sending that say nothing of the peer.
const OWN_WANT: [i32; 3] = [libc::ENOBUFS, libc::ENOMEM, libc::EAGAIN];

/// Runs as the helper if the command line says so: first thing in `main`, before a second thread exists.
#[must_use]
pub fn child() -> Option<ExitCode> {
    if std::env::args_os().nth(1)? != WORD {
        return None;
    }
    // A check that has gone away reads no answer: then there is nothing to do but to end.
    Some(if run().is_ok() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn run() -> io::Result<()> {
    let mut text = String::new();
    io::stdin().lock().take(MOST_PLAN).read_to_string(&mut text)?;
    let Some(plan) = Plan::read(&text) else {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "no plan"));
    };
    let mut out = io::stdout().lock();
    if let Err((at, error)) = join(&plan) {
        let said = Said::Stuck(at.to_owned(), error.raw_os_error().unwrap_or(0));
        out.write_all(said.write().as_bytes())?;
        return out.flush();
    }
    let most = connect_all(&plan, &mut out)?;
    out.write_all(Said::End(most).write().as_bytes())?;
    out.flush()
}

type Step<T> = Result<T, (&'static str, io::Error)>;

/// Takes the worker's place.
fn join(plan: &Plan) -> Step<()> {
    let of = |what: &str| format!("/proc/{}/{what}", plan.worker);
    let folder = |what: &str| {
        OpenOptions::new().read(true).custom_flags(libc::O_PATH | libc::O_DIRECTORY).open(of(what))
    };
    // Everything that needs /proc or rights is opened before the first step.
    let net = File::open(of("ns/net")).map_err(|e| ("open its network namespace", e))?;
    let mounts = File::open(of("ns/mnt")).map_err(|e| ("open its mount namespace", e))?;
    let root = folder("root").map_err(|e| ("open its root folder", e))?;
    let cwd = folder("cwd").map_err(|e| ("open its working folder", e))?;
    let profile = match &plan.profile {
        Some(name) => Some((open_profile().map_err(|e| ("open AppArmor's interface", e))?, name)),
        None => None,
    };
    if let Some(cgroup) = &plan.cgroup {
        OpenOptions::new()
            .write(true)
            .open(cgroup.join("cgroup.procs"))
            .and_then(|mut file| file.write_all(b"0"))
            .map_err(|e| ("go into its cgroup", e))?;
    }
    enter(&net, libc::CLONE_NEWNET).map_err(|e| ("go into its network namespace", e))?;
    enter(&mounts, libc::CLONE_NEWNS).map_err(|e| ("go into its mounts", e))?;
    change_root(&root).map_err(|e| ("go into its root folder", e))?;
    // A working folder that is gone is no obstacle: paths of sockets are absolute as a rule.
    let _ = go(&cwd);
    become_user(plan).map_err(|e| ("become its user", e))?;
    // SAFETY: prctl(PR_SET_PDEATHSIG) takes no pointers. After the change of user, which clears it.
    unsafe { libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL) };
    if let Some((mut file, name)) = profile {
        file.write_all(format!("changeprofile {name}").as_bytes())
            .map_err(|e| ("change to its AppArmor profile", e))?;
    }
    Ok(())
}

/// AppArmor's own file (5.8), else the one that all modules share.
fn open_profile() -> io::Result<File> {
    let open = |path| OpenOptions::new().write(true).open(path);
    open("/proc/self/attr/apparmor/current").or_else(|_| open("/proc/self/attr/current"))
}

fn checked(status: i32) -> io::Result<()> {
    if status == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

fn enter(namespace: &File, kind: i32) -> io::Result<()> {
    // SAFETY: setns takes no pointers; the descriptor is open, and this process has one thread.
    checked(unsafe { libc::setns(namespace.as_raw_fd(), kind) })
}

fn go(folder: &File) -> io::Result<()> {
    // SAFETY: fchdir takes no pointers, and the descriptor is open.
    checked(unsafe { libc::fchdir(folder.as_raw_fd()) })
}

fn change_root(root: &File) -> io::Result<()> {
    go(root)?;
    let here = CString::new(".").unwrap_or_default();
    // SAFETY: the string ends with NUL and lives through the call.
    checked(unsafe { libc::chroot(here.as_ptr()) })
}

fn become_user(plan: &Plan) -> io::Result<()> {
    let groups: Vec<libc::gid_t> = plan.groups.clone();
    // SAFETY: the pointer is to that many group ids.
    checked(unsafe { libc::setgroups(groups.len(), groups.as_ptr()) })?;
    // SAFETY: setresgid takes no pointers.
    checked(unsafe { libc::setresgid(plan.gid, plan.gid, plan.gid) })?;
    // SAFETY: setresuid takes no pointers. Any other user than root loses all capabilities by it (capabilities(7)).
    checked(unsafe { libc::setresuid(plan.uid, plan.uid, plan.uid) })?;
    if plan.uid == 0 { limit_capabilities(plan.capabilities) } else { Ok(()) }
}

/// A worker that runs as root may have lost capabilities all the same (containers): modes of files then count for it.
fn limit_capabilities(wanted: u64) -> io::Result<()> {
    /// `_LINUX_CAPABILITY_VERSION_3` (linux/capability.h).
    const VERSION: u32 = 0x2008_0522;
    let header = [VERSION, 0];
    let low = u32::try_from(wanted & 0xffff_ffff).unwrap_or(0);
    let high = u32::try_from(wanted >> 32).unwrap_or(0);
    // effective, permitted, inheritable; twice.
    let mut data = [low, low, 0, high, high, 0];
    // SAFETY: `header` and `data` have the layout that version 3 demands, and live through the call.
    let status = unsafe { libc::syscall(libc::SYS_capset, header.as_ptr(), data.as_mut_ptr()) };
    checked(i32::try_from(status).unwrap_or(-1))
}

/// A socket that waits for something.
struct Open {
    number: usize,
    fd: OwnedFd,
    began: Instant,
    until: Instant,
    answer: Answer,
    /// Set once the connection stands.
    handshake: Option<Handshake>,
    /// Set once it is asked.
    asked: Option<Asked>,
}

/// A question that waits for its answer.
struct Asked {
    packet: Vec<u8>,
    /// When it is sent again.
    again: Instant,
}

/// Makes all connections, so many at once. Returns how many sockets were open at once at most.
fn connect_all(plan: &Plan, out: &mut impl io::Write) -> io::Result<usize> {
    let end = Instant::now() + plan.total;
    let room = socket::room().saturating_sub(8).max(1);
    let parallel = plan.parallel.min(room);
    let mut open: Vec<Open> = Vec::new();
    let mut most = 0;
    let mut next = 0;
    while next < plan.asks.len() || !open.is_empty() {
        while open.len() < parallel
            && let Some(ask) = plan.asks.get(next)
        {
            if Instant::now() >= end {
                say(out, next, Answer::NONE)?;
            } else {
                // Counted before it exists: what is told is never too little.
                most = most.max(open.len() + 1);
                match begin(plan, next, ask, end) {
                    Ok(begun) => open.push(*begun),
                    Err(answer) => say(out, next, *answer)?,
                }
            }
            next += 1;
        }
        wait(&open, end)?;
        let mut index = 0;
        while index < open.len() {
            let done = open.get_mut(index).and_then(|one| advance(one, plan, end));
            match done {
                Some(answer) => {
                    let one = open.swap_remove(index);
                    say(out, one.number, answer)?;
                }
                None => index += 1,
            }
        }
        out.flush()?;
    }
    Ok(most)
}

fn say(out: &mut impl io::Write, number: usize, answer: Answer) -> io::Result<()> {
    out.write_all(Said::Answer(number, Box::new(answer)).write().as_bytes())
}

/// Begins a connection; `Err` is the answer of one that has ended already.
fn begin(plan: &Plan, number: usize, ask: &Ask, end: Instant) -> Result<Box<Open>, Box<Answer>> {
    let began = Instant::now();
    let failed = |call: Call, errno: i32| {
        Box::new(Answer {
            outcome: Outcome::Failed(call, errno),
            us: micros(began.elapsed()),
            ..Answer::NONE
        })
    };
    let begun = socket::begin(ask).map_err(|(call, errno)| failed(call, errno))?;
    let (fd, stands) = match begun {
        Begun::Stands(fd) => (fd, true),
        Begun::OnItsWay(fd) => (fd, false),
    };
    let mut one = Open {
        number,
        answer: Answer { local: socket::local(fd.as_fd()), ..Answer::NONE },
        fd,
        began,
        until: (began + plan.timeout).min(end),
        handshake: None,
        asked: None,
    };
    if let Some(asked) = &ask.question {
        return match put(&mut one, number, asked, plan) {
            Ok(()) => Ok(Box::new(one)),
            Err(Some(errno)) => Err(failed(Call::Later, errno)),
            // Nothing that the name server could be blamed for.
            Err(None) => Err(Box::new(Answer::NONE)),
        };
    }
    if stands && let Some(answer) = stood(&mut one, plan, end) {
        return Err(Box::new(answer));
    }
    Ok(Box::new(one))
}

/// Asks a name server. `Err`: the errno; None if it is no name that can be asked for, or this machine's own want of memory.
fn put(one: &mut Open, number: usize, asked: &Question, plan: &Plan) -> Result<(), Option<i32>> {
    // Any number will do: the socket takes nothing from anybody else.
    let id = u16::try_from(number & 0xffff).unwrap_or(0);
    let packet = question::write(id, asked).ok_or(None)?;
    socket::send(one.fd.as_fd(), &packet)
        .map_err(|errno| Some(errno).filter(|errno| !OWN_WANT.contains(errno)))?;
    one.asked = Some(Asked { packet, again: Instant::now() + plan.timeout / TIMES });
    Ok(())
}

/// Looks for the answer; asks again if it does not come.
fn listen(one: &mut Open, plan: &Plan) -> Option<Answer> {
    let asked = one.asked.as_mut()?;
    one.answer.us = micros(one.began.elapsed());
    let mut buffer = [0; MOST_REPLY];
    // Bounded: who floods the socket with other things must not keep the rest waiting.
    for _ in 0..64 {
        match socket::receive(one.fd.as_fd(), &mut buffer) {
            Ok(Some(length)) => {
                let bytes = buffer.get(..length).unwrap_or_default();
                if question::is_reply(&asked.packet, bytes) {
                    one.answer.outcome = Outcome::Connected;
                    one.answer.reply = Some(bytes.to_vec());
                    return Some(one.answer.clone());
                }
            }
            Ok(None) => break,
            Err(errno) => {
                // After the error, which reading the queue would take away (sock_dequeue_err_skb, net/core/skbuff.c).
                one.answer.icmp = socket::icmp(one.fd.as_fd());
                one.answer.outcome = Outcome::Failed(Call::Later, errno);
                return Some(one.answer.clone());
            }
        }
    }
    let now = Instant::now();
    if now >= one.until {
        one.answer.outcome = Outcome::TimedOut;
        return Some(one.answer.clone());
    }
    if now >= asked.again {
        asked.again = now + plan.timeout / TIMES;
        if let Err(errno) = socket::send(one.fd.as_fd(), &asked.packet)
            && !OWN_WANT.contains(&errno)
        {
            one.answer.icmp = socket::icmp(one.fd.as_fd());
            one.answer.outcome = Outcome::Failed(Call::Later, errno);
            return Some(one.answer.clone());
        }
    }
    None
}

/// Waits until a socket has something to tell, or a time is up.
fn wait(open: &[Open], end: Instant) -> io::Result<()> {
    let next = |one: &Open| one.asked.as_ref().map_or(one.until, |asked| asked.again.min(one.until));
    let Some(first) = open.iter().map(next).min() else { return Ok(()) };
    let left = first.min(end).saturating_duration_since(Instant::now());
    let mut polled: Vec<libc::pollfd> = open
        .iter()
        .map(|one| {
            let connects = if one.asked.is_some() { libc::POLLIN } else { libc::POLLOUT };
            let wants = one.handshake.as_ref().map_or(connects, Handshake::wants);
            libc::pollfd { fd: one.fd.as_raw_fd(), events: wants, revents: 0 }
        })
        .collect();
    let count = libc::nfds_t::try_from(polled.len()).unwrap_or(0);
    // Rounded up: a time that is nearly over must not be waited for in circles.
    let millis = i32::try_from(left.as_millis().saturating_add(1)).unwrap_or(i32::MAX);
    // SAFETY: the pointer is to `count` entries that live through the call.
    let status = unsafe { libc::poll(polled.as_mut_ptr(), count, millis) };
    let error = io::Error::last_os_error();
    if status < 0 && error.kind() != io::ErrorKind::Interrupted { Err(error) } else { Ok(()) }
}

/// Looks at a socket; its answer if it is done.
fn advance(one: &mut Open, plan: &Plan, end: Instant) -> Option<Answer> {
    if one.asked.is_some() {
        return listen(one, plan);
    }
    if let Some(handshake) = &mut one.handshake {
        let late = Instant::now() >= one.until;
        let answer = handshake.advance(one.fd.as_fd(), late)?;
        one.answer.tls = Some(answer);
        return Some(one.answer.clone());
    }
    // What an ICMP error said is read first: the socket's own error is gone once it is read.
    if let Some(icmp) = socket::icmp(one.fd.as_fd()) {
        one.answer.icmp = Some(icmp);
    }
    let us = micros(one.began.elapsed());
    let error = socket::error(one.fd.as_fd());
    one.answer.us = us;
    if error != 0 {
        // An ICMP error that came between the two looks.
        if one.answer.icmp.is_none() {
            one.answer.icmp = socket::icmp(one.fd.as_fd());
        }
        one.answer.retransmits = socket::retransmits(one.fd.as_fd());
        one.answer.outcome = Outcome::Failed(Call::Later, error);
        return Some(one.answer.clone());
    }
    if socket::stands(one.fd.as_fd()) {
        return stood(one, plan, end);
    }
    if Instant::now() < one.until {
        return None;
    }
    one.answer.retransmits = socket::retransmits(one.fd.as_fd());
    one.answer.outcome = Outcome::TimedOut;
    Some(one.answer.clone())
}

/// The connection stands: that was all, or the handshake begins.
fn stood(one: &mut Open, plan: &Plan, end: Instant) -> Option<Answer> {
    one.answer.us = micros(one.began.elapsed());
    one.answer.outcome = Outcome::Connected;
    one.answer.retransmits = socket::retransmits(one.fd.as_fd());
    let Some(tls) = plan.asks.get(one.number).and_then(|ask| ask.tls.as_ref()) else {
        return Some(one.answer.clone());
    };
    one.until = (Instant::now() + plan.timeout).min(end);
    match Handshake::begin(tls) {
        Ok(handshake) => {
            one.handshake = Some(handshake);
            None
        }
        Err(answer) => {
            one.answer.tls = Some(answer);
            Some(one.answer.clone())
        }
    }
}

pub(super) fn micros(time: Duration) -> u64 {
    u64::try_from(time.as_micros()).unwrap_or(u64::MAX)
}
