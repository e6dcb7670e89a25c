//! A running why502: its start, its kernel programs, its summary.

use std::fs;
use std::io::{BufRead, BufReader};
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use serde::Deserialize;

use super::bpf::{self, Cost, Hook};
use super::system;
use crate::signals;

/// How long a start, and an end that has a storm to explain, may take.
const START_LIMIT: Duration = Duration::from_secs(20);
const END_LIMIT: Duration = Duration::from_secs(180);

/// The last line of `why502 trace -o json`, as far as it is used.
#[derive(Debug, Clone, Deserialize)]
pub(crate) struct Summary {
    /// Incidents that were reported.
    pub incidents_total: u64,
    /// Records that did not arrive.
    pub events_lost: u64,
    /// Connects that the kernel side saw.
    pub connects: u64,
    /// Attempts that it saw fail.
    pub failed: u64,
    /// Records that went through the ring buffer.
    pub ring_records: u64,
}

/// One of why502's programs.
#[derive(Debug)]
pub(crate) struct Program {
    /// Its name, cut by the kernel at 15 bytes.
    pub name: String,
    /// Where it is attached, if the kernel tells.
    pub hook: Option<Hook>,
    /// Size of its machine code, bytes.
    pub jited_bytes: u32,
    /// Instructions that the verifier walked through.
    pub verified: u32,
    fd: OwnedFd,
}

impl Program {
    /// Its counters.
    pub(crate) fn cost(&self) -> Result<Cost> {
        Ok(bpf::info(&self.fd)?.cost)
    }
}

/// The why502 that is measured.
#[derive(Debug)]
pub(crate) struct Subject {
    /// The program.
    pub file: PathBuf,
    /// Further arguments of `trace`.
    pub args: Vec<String>,
}

/// A why502 that is watching; dropping it ends it at once.
#[derive(Debug)]
pub(crate) struct Watcher {
    child: Child,
    /// From before fork() to the line `why502: watching`.
    pub start_time: Duration,
    stdout: Option<JoinHandle<Option<String>>>,
}

impl Watcher {
    /// Starts why502 on one nginx and waits until it watches.
    pub(crate) fn start(program: &Subject, master: u32, stats: bool) -> Result<Self> {
        let mut command = Command::new(&program.file);
        command.args(["trace", "-o", "json", "-p", &master.to_string()]).args(&program.args);
        if stats {
            command.arg("--stats");
        }
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let begin = Instant::now();
        let mut child = system::dies_with_us(&mut command, libc::SIGKILL)
            .spawn()
            .with_context(|| format!("cannot start {}", program.file.display()))?;
        let (stdout, stderr) = (child.stdout.take(), child.stderr.take());
        let mut watcher = Self { child, start_time: Duration::ZERO, stdout: None };
        let (Some(stdout), Some(stderr)) = (stdout, stderr) else {
            bail!("why502 has no output");
        };
        watcher.stdout = Some(std::thread::spawn(move || last_line(BufReader::new(stdout))));
        let (sender, receiver) = mpsc::channel();
        std::thread::spawn(move || {
            for line in BufReader::new(stderr).lines().map_while(Result::ok) {
                // After the start nobody listens; the pipe is still emptied.
                let _ = sender.send((Instant::now(), line));
            }
        });
        let mut said = Vec::new();
        loop {
            match receiver.recv_timeout(START_LIMIT.saturating_sub(begin.elapsed())) {
                Ok((when, line)) if line.starts_with("why502: watching") => {
                    watcher.start_time = when - begin;
                    return Ok(watcher);
                }
                Ok((_, line)) => said.push(line),
                Err(_) => bail!("why502 did not start watching; it says:\n{}", said.join("\n")),
            }
        }
    }

    /// Its PID.
    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Its programs, found through its descriptors.
    pub(crate) fn programs(&self) -> Result<Vec<Program>> {
        let dir = format!("/proc/{}/fdinfo", self.pid());
        let mut ids = Vec::new();
        let mut hooks = Vec::new();
        for entry in fs::read_dir(&dir).with_context(|| format!("cannot read {dir}"))? {
            // A descriptor may be closed meanwhile.
            let text = fs::read_to_string(entry?.path()).unwrap_or_default();
            match describe(&text) {
                Some(Described::Program(id)) => ids.push(id),
                Some(Described::Link(id, hook)) => hooks.push((id, hook)),
                None => {}
            }
        }
        ids.sort_unstable();
        ids.dedup();
        let mut programs = Vec::with_capacity(ids.len());
        for id in ids {
            let fd = bpf::program(id)?;
            let info = bpf::info(&fd)?;
            let hook = hooks.iter().find(|(of, _)| *of == id).map(|(_, hook)| hook.clone());
            programs.push(Program {
                name: info.name,
                hook,
                jited_bytes: info.jited_bytes,
                verified: info.verified,
                fd,
            });
        }
        if programs.is_empty() {
            bail!("why502 (PID {}) holds no BPF programs", self.pid());
        }
        Ok(programs)
    }

    /// Halts it, or lets it go on.
    pub(crate) fn halt(&self, halted: bool) {
        system::send(self.pid(), if halted { libc::SIGSTOP } else { libc::SIGCONT });
    }

    /// Asks it to end, and waits until it has explained what it holds.
    pub(crate) fn finish(mut self) -> Result<Summary> {
        if signals::stop(&mut self.child, libc::SIGTERM, END_LIMIT).is_none() {
            bail!("why502 did not end within {} s of SIGTERM", END_LIMIT.as_secs());
        }
        let line = self.stdout.take().and_then(|reader| reader.join().ok().flatten());
        let line = line.context("why502 ended without a summary")?;
        serde_json::from_str(&line).with_context(|| format!("why502's summary cannot be read: {line}"))
    }
}

impl Drop for Watcher {
    fn drop(&mut self) {
        if matches!(self.child.try_wait(), Ok(None)) {
            let _ = self.child.kill();
            let _ = self.child.wait();
        }
    }
}

/// Empties the pipe and keeps the summary.
fn last_line(mut reader: impl BufRead) -> Option<String> {
    let mut line = Vec::new();
    let mut last = None;
    while reader.read_until(b'\n', &mut line).is_ok_and(|n| n > 0) {
        if line.starts_with(br#"{"schema":"why502/1","type":"summary""#) {
            last = Some(String::from_utf8_lossy(&line).into_owned());
        }
        line.clear();
    }
    last
}

#[derive(Debug, PartialEq)]
enum Described {
    Program(u32),
    Link(u32, Hook),
}

/// What a BPF descriptor is, from /proc/PID/fdinfo (kernel/bpf/syscall.c, bpf_link_show_fdinfo).
fn describe(fdinfo: &str) -> Option<Described> {
    let field = |name: &str| {
        fdinfo.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':')).map(str::trim)
    };
    let id: u32 = field("prog_id")?.parse().ok()?;
    let Some(kind) = field("link_type") else {
        return Some(Described::Program(id));
    };
    let target = field("tp_name")?.to_owned();
    match kind {
        "raw_tracepoint" => Some(Described::Link(id, Hook::RawTracepoint(target))),
        "perf" => Some(Described::Link(id, Hook::TraceEvent(target))),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tells_programs_from_links() {
        let program = "pos:\t0\nprog_type:\t17\nprog_id:\t314\nrun_cnt:\t5\n";
        assert_eq!(describe(program), Some(Described::Program(314)));
        let link = "link_type:\traw_tracepoint\nlink_id:\t9\nprog_id:\t314\ntp_name:\tkfree_skb\n";
        assert_eq!(describe(link), Some(Described::Link(314, Hook::RawTracepoint("kfree_skb".into()))));
        let perf = "link_type:\tperf\nprog_id:\t311\ntp_name:\tsys_exit_socket\n";
        assert_eq!(describe(perf), Some(Described::Link(311, Hook::TraceEvent("sys_exit_socket".into()))));
        assert_eq!(describe("map_type:\t1\n"), None);
        assert_eq!(describe("link_type:\ttracing\nprog_id:\t3\n"), None);
    }

    #[test]
    fn keeps_the_summary() {
        let text = "{\"schema\":\"why502/1\",\"type\":\"incident\"}\n\
                    {\"schema\":\"why502/1\",\"type\":\"summary\",\"connects\":1}\n";
        assert!(last_line(text.as_bytes()).unwrap().contains("connects"));
        assert_eq!(last_line(&b"{}\n"[..]), None);
    }
}
