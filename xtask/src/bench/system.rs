//! What the machine tells: CPU times, memory, namespaces, signals.

use std::fs;
use std::io;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result};

use super::bpf::TRACEFS;
use crate::process;

/// Moves this process into network and mount namespaces of its own: nothing that the bench does to
/// sysctls, addresses and mounts is seen by others, and all of it ends with the process. Must come before
/// any thread.
pub(crate) fn private_namespaces() -> Result<()> {
    // SAFETY: a plain system call without pointers.
    if unsafe { libc::unshare(libc::CLONE_NEWNET | libc::CLONE_NEWNS) } != 0 {
        return Err(io::Error::last_os_error())
            .context("cannot make a network namespace: the bench needs root with CAP_SYS_ADMIN");
    }
    process::output(Command::new("mount").args(["--make-rprivate", "/"]))?;
    if !Path::new(TRACEFS).join("events").exists() {
        process::output(Command::new("mount").args(["-t", "tracefs", "tracefs", TRACEFS]))?;
    }
    process::output(Command::new("ip").args(["link", "set", "lo", "up"]))?;
    for (name, value) in [
        ("ipv4/ip_local_port_range", "1024 65535"),
        ("ipv4/tcp_tw_reuse", "1"),
        ("ipv4/tcp_max_tw_buckets", "262144"),
        ("core/somaxconn", "4096"),
    ] {
        fs::write(format!("/proc/sys/net/{name}"), value)
            .with_context(|| format!("cannot set net/{name} in the bench's own network namespace"))?;
    }
    Ok(())
}

/// CPU time of a process and its ended threads, to the nanosecond.
pub(crate) fn cpu_time(pid: u32) -> Result<Duration> {
    let mut clock: libc::clockid_t = 0;
    let pid_t = libc::pid_t::try_from(pid)?;
    // SAFETY: writes one clockid_t to a live variable.
    let error = unsafe { libc::clock_getcpuclockid(pid_t, &raw mut clock) };
    if error != 0 {
        return Err(io::Error::from_raw_os_error(error))
            .with_context(|| format!("no CPU clock of process {pid}"));
    }
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: writes one timespec to a live variable.
    if unsafe { libc::clock_gettime(clock, &raw mut time) } != 0 {
        return Err(io::Error::last_os_error())
            .with_context(|| format!("cannot read the CPU clock of process {pid}"));
    }
    Ok(Duration::new(u64::try_from(time.tv_sec)?, u32::try_from(time.tv_nsec)?))
}

/// CPU time of this process and of its ended, waited-for children.
pub(crate) fn own_and_ended_children() -> Duration {
    [libc::RUSAGE_SELF, libc::RUSAGE_CHILDREN].into_iter().map(usage).sum()
}

fn usage(who: libc::c_int) -> Duration {
    // SAFETY: rusage consists of integers; all zeroes is a valid value.
    let mut usage: libc::rusage = unsafe { std::mem::zeroed() };
    // SAFETY: writes one rusage to a live variable; a failure leaves the zeroes.
    unsafe { libc::getrusage(who, &raw mut usage) };
    [usage.ru_utime, usage.ru_stime]
        .into_iter()
        .map(|t| {
            let micros = t.tv_sec.saturating_mul(1_000_000).saturating_add(t.tv_usec);
            Duration::from_micros(u64::try_from(micros).unwrap_or(0))
        })
        .sum()
}

/// A number of /proc/PID/status, such as `VmRSS` (kB) or `voluntary_ctxt_switches`.
pub(crate) fn status(pid: u32, field: &str) -> Result<u64> {
    let file = format!("/proc/{pid}/status");
    let text = fs::read_to_string(&file).with_context(|| format!("cannot read {file}"))?;
    status_field(&text, field).with_context(|| format!("{file} has no {field}"))
}

fn status_field(text: &str, field: &str) -> Option<u64> {
    text.lines()
        .find_map(|line| line.strip_prefix(field)?.strip_prefix(':'))
        .and_then(|rest| rest.split_whitespace().next()?.parse().ok())
}

/// Children of a process's main thread.
pub(crate) fn children(pid: u32) -> Vec<u32> {
    let list = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap_or_default();
    list.split_whitespace().filter_map(|word| word.parse().ok()).collect()
}

/// CPU time that the whole machine spent on anything, and that the hypervisor took away.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub(crate) struct Machine {
    /// User, nice, system and interrupts, seconds.
    pub busy: f64,
    /// Stolen, seconds.
    pub steal: f64,
}

/// Reads /proc/stat.
pub(crate) fn machine() -> Result<Machine> {
    let text = fs::read_to_string("/proc/stat").context("cannot read /proc/stat")?;
    // SAFETY: no pointers.
    let ticks = unsafe { libc::sysconf(libc::_SC_CLK_TCK) };
    machine_of(&text, ticks as f64).context("cannot understand /proc/stat")
}

/// proc(5): user nice system idle iowait irq softirq steal.
fn machine_of(text: &str, ticks_per_second: f64) -> Option<Machine> {
    let line = text.lines().next()?.strip_prefix("cpu ")?;
    let t: Vec<f64> = line.split_whitespace().filter_map(|w| w.parse().ok()).collect();
    let busy = t.first()? + t.get(1)? + t.get(2)? + t.get(5)? + t.get(6)?;
    Some(Machine { busy: busy / ticks_per_second, steal: t.get(7)? / ticks_per_second })
}

/// `1.05` of /proc/loadavg.
pub(crate) fn load_average() -> f64 {
    let text = fs::read_to_string("/proc/loadavg").unwrap_or_default();
    text.split_whitespace().next().and_then(|w| w.parse().ok()).unwrap_or(0.0)
}

/// Lets the kernel send `signal` to the command's process if the bench dies without cleaning up.
pub(crate) fn dies_with_us(command: &mut Command, signal: libc::c_int) -> &mut Command {
    // SAFETY: prctl is async-signal-safe and touches nothing of the parent's memory.
    unsafe {
        command.pre_exec(move || {
            if libc::prctl(libc::PR_SET_PDEATHSIG, signal) == 0 {
                Ok(())
            } else {
                Err(io::Error::last_os_error())
            }
        })
    }
}

/// Sends a signal to a process that this one started and has not waited for.
pub(crate) fn send(pid: u32, signal: libc::c_int) {
    if let Ok(pid) = libc::pid_t::try_from(pid)
        && pid > 1
    {
        // SAFETY: no pointers. The process may have ended: then nothing happens, its number is not reused
        // before it is waited for.
        unsafe { libc::kill(pid, signal) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_status_fields() {
        let text = "Name:\twhy502\nVmHWM:\t   11952 kB\nvoluntary_ctxt_switches:\t27\n";
        assert_eq!(status_field(text, "VmHWM"), Some(11952));
        assert_eq!(status_field(text, "voluntary_ctxt_switches"), Some(27));
        assert_eq!(status_field(text, "VmRSS"), None);
    }

    #[test]
    fn reads_the_machine() {
        let found = machine_of("cpu  100 0 50 9000 7 1 9 40 0 0\ncpu0 1\n", 100.0);
        assert_eq!(found, Some(Machine { busy: 1.6, steal: 0.4 }));
        assert_eq!(machine_of("intr 1\n", 100.0), None);
    }

    #[test]
    fn own_clock_runs() {
        let before = cpu_time(std::process::id()).unwrap();
        let mut sum = 0u64;
        for i in 0..1_000_000u64 {
            sum = std::hint::black_box(sum.wrapping_add(i));
        }
        assert!(cpu_time(std::process::id()).unwrap() > before, "{sum}");
    }
}
