//! The unsafe and system-specific corner: namespaces, signals, socket options the standard library lacks,
//! and the one way this program waits (`poll_until`).

use std::ffi::CString;
use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

static INTERRUPTED: AtomicBool = AtomicBool::new(false);

extern "C" fn on_signal(_signal: libc::c_int) {
    INTERRUPTED.store(true, Ordering::SeqCst);
}

/// Turns SIGINT and SIGTERM into a flag, so that every namespace and process is removed by its `Drop`.
pub(crate) fn catch_signals() -> io::Result<()> {
    for signal in [libc::SIGINT, libc::SIGTERM] {
        // SAFETY: sigaction is plain data for which all-zero is a valid value (no flags, empty mask).
        let mut action: libc::sigaction = unsafe { std::mem::zeroed() };
        action.sa_sigaction = on_signal as *const () as libc::sighandler_t;
        // SAFETY: `action` is initialised and outlives the call; the handler only stores to an atomic.
        if unsafe { libc::sigaction(signal, &raw const action, std::ptr::null_mut()) } != 0 {
            return Err(io::Error::last_os_error());
        }
    }
    Ok(())
}

/// Whether the user asked to stop.
pub(crate) fn interrupted() -> bool {
    INTERRUPTED.load(Ordering::SeqCst)
}

/// Asks `ready` again and again until it is true, the bound has passed (false) or the user interrupts (false).
pub(crate) fn poll_until(bound: Duration, mut ready: impl FnMut() -> bool) -> bool {
    let start = Instant::now();
    loop {
        if ready() {
            return true;
        }
        let waited = start.elapsed();
        if waited >= bound || interrupted() {
            return false;
        }
        // Often at first, seldom later: looking costs time that an emulated guest has not got.
        let pause = (waited / 8).clamp(Duration::from_millis(2), Duration::from_millis(50));
        thread::sleep(pause.min(bound.saturating_sub(waited)));
    }
}

/// Moves the calling thread into the network namespace `ns`.
pub(crate) fn enter(ns: RawFd) -> io::Result<()> {
    // SAFETY: setns takes a descriptor and a flag; a bad descriptor is an error return, not undefined.
    if unsafe { libc::setns(ns, libc::CLONE_NEWNET) } != 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

/// Moves the calling thread into a new network namespace, keeps that under the path of the empty file `at`, and sets its
/// loopback device up.
pub(crate) fn new_netns(at: &Path) -> io::Result<()> {
    let own = c"/proc/thread-self/ns/net";
    let at = CString::new(at.as_os_str().as_bytes())?;
    // SAFETY: unshare and mount take flags and strings that live through the calls.
    let rc = unsafe {
        let none = std::ptr::null();
        match libc::unshare(libc::CLONE_NEWNET) {
            0 => libc::mount(own.as_ptr(), at.as_ptr(), none, libc::MS_BIND, none.cast()),
            failed => failed,
        }
    };
    if rc != 0 {
        return Err(io::Error::last_os_error());
    }
    // Any socket of the namespace will do.
    let socket = std::net::UdpSocket::bind("0.0.0.0:0")?;
    // struct ifreq: the name, then a union of which SIOCSIFFLAGS reads the u16 flags.
    let mut request = [0_u8; 40];
    request[..2].copy_from_slice(b"lo");
    let up = u16::try_from(libc::IFF_UP).map_err(io::Error::other)?;
    request[16..18].copy_from_slice(&up.to_ne_bytes());
    // SAFETY: SIOCSIFFLAGS reads one ifreq (40 bytes on 64-bit Linux), the size of `request`.
    if unsafe { libc::ioctl(socket.as_raw_fd(), libc::SIOCSIFFLAGS, request.as_mut_ptr()) } < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

/// Takes away what is mounted at the path, and the file.
pub(crate) fn forget_netns(at: &Path) -> io::Result<()> {
    let path = CString::new(at.as_os_str().as_bytes())?;
    // SAFETY: the string lives through the call.
    if unsafe { libc::umount2(path.as_ptr(), libc::MNT_DETACH) } != 0 {
        return Err(io::Error::last_os_error());
    }
    std::fs::remove_file(at)
}

/// Makes `command` start in the namespace, in its own process group (so that a terminal's ^C reaches only this
/// program, which then cleans up) and end when the thread that started it is gone.
pub(crate) fn run_in(command: &mut Command, ns: RawFd) {
    command.process_group(0);
    // SAFETY: between fork and exec only the async-signal-safe setns and prctl are called.
    unsafe {
        command.pre_exec(move || {
            enter(ns)?;
            libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGTERM);
            Ok(())
        });
    }
}

/// Gives `command` a mount namespace of its own in which `file` stands in the place of `over`.
pub(crate) fn cover(command: &mut Command, file: &Path, over: &Path) -> io::Result<()> {
    let file = CString::new(file.as_os_str().as_bytes())?;
    let over = CString::new(over.as_os_str().as_bytes())?;
    let root = CString::new("/")?;
    // SAFETY: between fork and exec only the async-signal-safe unshare and mount are called, with strings that
    // were made before and live in the closure.
    unsafe {
        command.pre_exec(move || {
            let none = std::ptr::null();
            let private = libc::MS_REC | libc::MS_PRIVATE;
            if libc::unshare(libc::CLONE_NEWNS) != 0
                || libc::mount(none, root.as_ptr(), none, private, none.cast()) != 0
                || libc::mount(file.as_ptr(), over.as_ptr(), none, libc::MS_BIND, none.cast()) != 0
            {
                return Err(io::Error::last_os_error());
            }
            Ok(())
        });
    }
    Ok(())
}

/// Sends `signal` to one process; a process that is already gone is not an error.
pub(crate) fn kill(pid: u32, signal: libc::c_int) {
    if let Ok(pid) = libc::pid_t::try_from(pid)
        && pid > 1
    {
        // SAFETY: kill has no memory effects here; pid > 1 excludes groups and init.
        unsafe { libc::kill(pid, signal) };
    }
}

/// Changes the backlog of a listening socket: a second listen() does that.
pub(crate) fn set_backlog(fd: RawFd, backlog: i32) -> io::Result<()> {
    // SAFETY: plain system call on a descriptor that the caller owns.
    if unsafe { libc::listen(fd, backlog) } != 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

/// Makes close() send RST instead of FIN.
pub(crate) fn reset_on_close(fd: RawFd) -> io::Result<()> {
    let linger = libc::linger { l_onoff: 1, l_linger: 0 };
    let size = libc::socklen_t::try_from(size_of::<libc::linger>()).map_err(io::Error::other)?;
    // SAFETY: the pointer and the length describe `linger`, which lives through the call.
    let rc =
        unsafe { libc::setsockopt(fd, libc::SOL_SOCKET, libc::SO_LINGER, (&raw const linger).cast(), size) };
    if rc == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Makes the process a backend: it leaves no core dump, its children need no waiting for, and many connections may be
/// open.
pub(crate) fn backend_manners() -> io::Result<()> {
    let none = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    let mut files = none;
    // SAFETY: the pointers describe `none` and `files`; SIG_IGN is a valid disposition.
    let rc = unsafe {
        libc::getrlimit(libc::RLIMIT_NOFILE, &raw mut files);
        files.rlim_cur = files.rlim_max;
        libc::setrlimit(libc::RLIMIT_NOFILE, &raw const files);
        libc::signal(libc::SIGCHLD, libc::SIG_IGN);
        // Ends as a program without handlers does.
        libc::signal(libc::SIGTERM, libc::SIG_DFL);
        libc::signal(libc::SIGINT, libc::SIG_DFL);
        libc::setrlimit(libc::RLIMIT_CORE, &raw const none)
    };
    if rc == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// fork(2) of a process with one thread; true in the child.
pub(crate) fn fork() -> io::Result<bool> {
    // SAFETY: the caller has one thread, so that the child finds every lock as it needs it.
    match unsafe { libc::fork() } {
        0 => Ok(true),
        -1 => Err(io::Error::last_os_error()),
        _ => Ok(false),
    }
}

/// Ends the process at once, as a crash of a program does not: without a word.
pub(crate) fn exit(status: libc::c_int) -> ! {
    // SAFETY: _exit has no memory effects.
    unsafe { libc::_exit(status) }
}

/// Sends the process a signal with its default effect.
pub(crate) fn signal_self(signal: libc::c_int) -> io::Result<()> {
    // SAFETY: the default disposition is valid for every signal; kill has no memory effects here.
    let rc = unsafe {
        // Rust's own handler of stack overflows would take SIGSEGV.
        libc::signal(signal, libc::SIG_DFL);
        libc::kill(libc::getpid(), signal)
    };
    if rc == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Waits until `fd` can be read (or accepted from); false when `bound` passed.
pub(crate) fn readable(fd: RawFd, bound: Duration) -> bool {
    let mut poll = libc::pollfd { fd, events: libc::POLLIN, revents: 0 };
    let bound = libc::c_int::try_from(bound.as_millis()).unwrap_or(libc::c_int::MAX);
    // SAFETY: exactly one initialised pollfd is passed.
    unsafe { libc::poll(&raw mut poll, 1, bound) > 0 }
}

/// Waits without reading until the peer has closed its side.
pub(crate) fn until_hung_up(fd: RawFd) {
    let mut poll = libc::pollfd { fd, events: libc::POLLRDHUP, revents: 0 };
    // SAFETY: exactly one initialised pollfd is passed.
    while unsafe { libc::poll(&raw mut poll, 1, -1) } < 1 {}
}

/// Creates the TUN device `name` in the calling thread's namespace: whole IP packets, no extra header.
pub(crate) fn open_tun(name: &str) -> io::Result<File> {
    const IFF_TUN: u16 = 0x0001;
    const IFF_NO_PI: u16 = 0x1000;
    let file = File::options().read(true).write(true).open("/dev/net/tun")?;
    // struct ifreq: the name, then a union of which TUNSETIFF reads the u16 flags.
    let mut request = [0_u8; 40];
    for (to, from) in request.iter_mut().take(15).zip(name.bytes()) {
        *to = from;
    }
    request[16..18].copy_from_slice(&(IFF_TUN | IFF_NO_PI).to_ne_bytes());
    // SAFETY: TUNSETIFF reads and writes one ifreq (40 bytes on 64-bit Linux), the size of `request`.
    if unsafe { libc::ioctl(file.as_raw_fd(), libc::TUNSETIFF, request.as_mut_ptr()) } < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(file)
}

/// A netlink socket of the netfilter family in the calling thread's namespace.
pub(crate) fn netfilter_netlink() -> io::Result<OwnedFd> {
    // SAFETY: socket() has no memory arguments.
    let fd = unsafe {
        libc::socket(libc::AF_NETLINK, libc::SOCK_RAW | libc::SOCK_CLOEXEC, libc::NETLINK_NETFILTER)
    };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the descriptor was just created and belongs to nobody else.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// send() and recv() on a raw descriptor, for netlink.
pub(crate) fn send(fd: RawFd, bytes: &[u8]) -> io::Result<()> {
    // SAFETY: the pointer and the length describe `bytes`.
    let sent = unsafe { libc::send(fd, bytes.as_ptr().cast(), bytes.len(), 0) };
    if usize::try_from(sent) == Ok(bytes.len()) { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Receives one datagram into `buffer`; the number of bytes.
pub(crate) fn recv(fd: RawFd, buffer: &mut [u8]) -> io::Result<usize> {
    // SAFETY: the pointer and the length describe `buffer`, which is writable.
    let got = unsafe { libc::recv(fd, buffer.as_mut_ptr().cast(), buffer.len(), 0) };
    usize::try_from(got).map_err(|_| io::Error::last_os_error())
}

/// CLOCK_MONOTONIC, ns.
pub(crate) fn monotonic_ns() -> u64 {
    let mut now = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: the pointer is to a timespec of ours.
    unsafe { libc::clock_gettime(libc::CLOCK_MONOTONIC, &raw mut now) };
    let seconds = u64::try_from(now.tv_sec).unwrap_or(0);
    seconds.saturating_mul(1_000_000_000).saturating_add(u64::try_from(now.tv_nsec).unwrap_or(0))
}

/// The running kernel's release as (major, minor); (0, 0) when it cannot be read.
pub(crate) fn kernel() -> (u32, u32) {
    let release = std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    parse_release(&release)
}

pub(crate) fn parse_release(release: &str) -> (u32, u32) {
    let mut parts = release.trim().split(|c: char| !c.is_ascii_digit());
    let mut next = || parts.next().and_then(|p| p.parse().ok()).unwrap_or(0);
    (next(), next())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn releases() {
        assert_eq!(parse_release("6.12.117+deb12-cloud-amd64\n"), (6, 12));
        assert_eq!(parse_release("7.2"), (7, 2));
        assert_eq!(parse_release("odd"), (0, 0));
    }

    #[test]
    fn polls_are_bounded() {
        assert!(poll_until(Duration::from_millis(1), || true));
        assert!(!poll_until(Duration::from_millis(1), || false));
    }
}
