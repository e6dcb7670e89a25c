//! `why502 config`: the configuration as nginx runs with it.

use std::{
    path::{Path, PathBuf},
    process::ExitCode,
};

use anyhow::{Context as _, Result, anyhow};

use crate::{
    cli::{Config, Format},
    run::{DONE, INCOMPLETE, no_nginx, output, terminal_width},
};
use tracer::{
    nginx::binary::{self, Build},
    report::config::{self, Shown},
    session::{Snapshot, complain},
    sys::{
        proc,
        process::{Finder, Process},
    },
};

/// Where an nginx is installed besides the folders of PATH.
const FOLDERS: [&str; 5] = [
    "/usr/sbin",
    "/usr/local/sbin",
    "/usr/local/nginx/sbin",
    "/usr/local/openresty/nginx/sbin",
    "/opt/nginx/sbin",
];
/// What is read of an executable, bytes.
const MOST_EXE: usize = 64 << 20;

/// Reads the configurations and prints them. Exits with 4 if parts of one could not be read.
pub(crate) fn run(options: &Config) -> Result<ExitCode> {
    let snapshots = match &options.file {
        Some(path) => vec![(None, of_file(path, options)?)],
        None => {
            let masters = masters(&options.pids)?;
            masters.into_iter().map(running).collect()
        }
    };
    let shown: Vec<Shown<'_>> = snapshots
        .iter()
        .map(|(master, snapshot)| Shown {
            pid: master.as_ref().map(|master| master.pid),
            container: master.as_ref().and_then(|master| Some(master.container.as_ref()?.to_string())),
            executable: master.as_ref().map(|master| master.exe.as_path()),
            build: snapshot.build.as_ref(),
            main: snapshot.main.as_deref(),
            model: &snapshot.model,
            problems: &snapshot.problems,
        })
        .collect();
    let mut out = output(options.output, options.color);
    let written = match options.output {
        Format::Json => config::json(&mut *out, &shown),
        Format::Text => config::text(&mut *out, &shown, terminal_width(), options.all),
    };
    written.context("cannot write to stdout")?;
    let missing = snapshots.iter().any(|(_, snapshot)| snapshot.problems.iter().any(|p| p.missing));
    Ok(ExitCode::from(if missing { INCOMPLETE } else { DONE }))
}

/// A master with what it runs with; says so if that is not what is on disk.
fn running(master: Process) -> (Option<Process>, Snapshot) {
    let on_disk = Snapshot::of(&master);
    let snapshot = on_disk.instead(master.pid, master.started).unwrap_or(on_disk);
    if let Some(unread) = snapshot.unread() {
        complain(&[format!("nginx (pid {}): {unread}", master.pid)]);
    }
    (Some(master), snapshot)
}

/// The masters to show, by PID.
fn masters(pids: &[u32]) -> Result<Vec<Process>> {
    let mut finder = Finder::new(binary::is_nginx_binary);
    let scan = finder.find_nginx().context("cannot list the processes of this host (/proc)")?;
    let mut found = Vec::new();
    for instance in scan.instances {
        let family = || std::iter::once(&instance.master).chain(&instance.children);
        if pids.is_empty() || family().any(|process| pids.contains(&process.pid)) {
            found.push(instance.master);
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
             CAP_SYS_PTRACE and CAP_DAC_READ_SEARCH: run `sudo why502 config`, or read a file with --file"
        )),
        None => Err(no_nginx(pids, false)),
    }
}

fn of_file(path: &Path, options: &Config) -> Result<Snapshot> {
    let path = std::path::absolute(path).with_context(|| format!("--file {}", path.display()))?;
    let build = if options.nginx_version.is_some() { None } else { installed() };
    Snapshot::of_file(&path, build, options.nginx_version)
        .with_context(|| format!("cannot read the configuration {}", path.display()))
}

/// The nginx that is installed.
fn installed() -> Option<Build> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let folders = std::env::split_paths(&path).chain(FOLDERS.map(PathBuf::from));
    let bytes = folders.map(|folder| folder.join("nginx")).filter(|path| path.is_file());
    bytes.filter_map(|path| proc::read_up_to(path, MOST_EXE).ok()).find_map(|bytes| binary::build(&bytes))
}
