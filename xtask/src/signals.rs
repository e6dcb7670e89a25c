//! ^C as a flag, so that whatever a task started is taken down by its `Drop`; and the one way tasks wait.

use std::io;
use std::process::{Child, ExitStatus};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

static INTERRUPTED: AtomicBool = AtomicBool::new(false);

extern "C" fn on_signal(_signal: libc::c_int) {
    INTERRUPTED.store(true, Ordering::SeqCst);
}

/// Turns SIGINT, SIGTERM and SIGHUP into a flag from now on.
pub(crate) fn catch() -> Result<()> {
    for signal in [libc::SIGINT, libc::SIGTERM, libc::SIGHUP] {
        // SAFETY: sigaction is plain data for which all-zero is a valid value (no flags, empty mask).
        let mut action: libc::sigaction = unsafe { std::mem::zeroed() };
        action.sa_sigaction = on_signal as *const () as libc::sighandler_t;
        // SAFETY: `action` is initialised and outlives the call; the handler only stores to an atomic.
        if unsafe { libc::sigaction(signal, &raw const action, std::ptr::null_mut()) } != 0 {
            return Err(io::Error::last_os_error()).context("cannot catch signals");
        }
    }
    Ok(())
}

/// Whether somebody asked this program to stop.
pub(crate) fn interrupted() -> bool {
    INTERRUPTED.load(Ordering::SeqCst)
}

/// An error once somebody asked this program to stop.
pub(crate) fn go_on() -> Result<()> {
    if interrupted() {
        bail!("interrupted");
    }
    Ok(())
}

/// Asks `ready` again and again until it is true, `bound` has passed (false) or somebody interrupts (false).
pub(crate) fn poll_until(bound: Duration, mut ready: impl FnMut() -> bool) -> bool {
    let start = Instant::now();
    while !ready() {
        if start.elapsed() >= bound || interrupted() {
            return false;
        }
        thread::sleep(Duration::from_millis(10));
    }
    true
}

/// Asks a process of ours to stop with `signal`, waits for it, and kills it if it does not; None if it had to be
/// killed. The wait is not cut short by an interruption: stopping is what was asked for.
pub(crate) fn stop(child: &mut Child, signal: libc::c_int, bound: Duration) -> Option<ExitStatus> {
    if let Ok(Some(status)) = child.try_wait() {
        return Some(status);
    }
    if let Ok(pid) = libc::pid_t::try_from(child.id()) {
        // SAFETY: kill has no memory effects; the PID is a child that has not been waited for, so it is still ours.
        unsafe { libc::kill(pid, signal) };
    }
    let start = Instant::now();
    while start.elapsed() < bound {
        if let Ok(Some(status)) = child.try_wait() {
            return Some(status);
        }
        thread::sleep(Duration::from_millis(5));
    }
    let _ = child.kill();
    let _ = child.wait();
    None
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::Command;

    #[test]
    fn polls_are_bounded() {
        assert!(poll_until(Duration::ZERO, || true));
        assert!(!poll_until(Duration::from_millis(1), || false));
    }

    #[test]
    fn stubborn_processes_are_killed() {
        let mut child = Command::new("sleep").arg("60").spawn().unwrap();
        assert!(stop(&mut child, libc::SIGTERM, Duration::from_secs(5)).is_some());
        let mut child = Command::new("sleep").arg("60").spawn().unwrap();
        assert!(stop(&mut child, libc::SIGCONT, Duration::from_millis(10)).is_none());
    }
}
