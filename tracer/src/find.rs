//! Finding the nginx that a command is about.

use anyhow::{Context as _, Result, anyhow};

use crate::run::no_nginx;
use tracer::{
    nginx::binary,
    session::{Snapshot, complain},
    sys::process::{Finder, Instance, Process},
};

/// The running instances, by PID of their masters. `command`: what was called, such as `config`.
///
/// # Errors
/// If there is none, or it may not be looked at; the text says what to do.
pub(crate) fn instances(pids: &[u32], command: &str) -> Result<Vec<Instance>> {
    let mut finder = Finder::new(binary::is_nginx_binary);
    let scan = finder.find_nginx().context("cannot list the processes of this host (/proc)")?;
    let mut found = Vec::new();
    for instance in scan.instances {
        let family = || std::iter::once(&instance.master).chain(&instance.children);
        if pids.is_empty() || family().any(|process| pids.contains(&process.pid)) {
            found.push(instance);
        }
    }
    if !found.is_empty() {
        return Ok(found);
    }
    let wanted = |pid: &u32| pids.is_empty() || pids.contains(pid);
    if let Some(orphan) = scan.orphans.iter().find(|orphan| wanted(&orphan.pid)) {
        return Err(anyhow!(
            "process {} is a worker of nginx whose master is gone: only the master's command line says which \
             configuration it ran with. Read the file with --file",
            orphan.pid
        ));
    }
    match scan.refused.iter().find(|(pid, _)| wanted(pid)) {
        Some((pid, why)) => Err(anyhow!(
            "cannot examine process {pid}, which may be nginx: {why}. Its executable and its files can be read with \
             CAP_SYS_PTRACE and CAP_DAC_READ_SEARCH: run `sudo why502 {command}`, or read a file with --file"
        )),
        None => Err(no_nginx(pids, false)),
    }
}

/// What a master runs with; says so if that is not what is on disk.
pub(crate) fn running(master: &Process) -> Snapshot {
    let on_disk = Snapshot::of(master);
    let snapshot = on_disk.instead(master.pid, master.started).unwrap_or(on_disk);
    if let Some(unread) = snapshot.unread() {
        complain(&[format!("nginx (pid {}): {unread}", master.pid)]);
    }
    snapshot
}
