//! `why502 config`: the configuration as nginx runs with it.

use std::{
    path::{Path, PathBuf},
    process::ExitCode,
};

use anyhow::{Context as _, Result};

use crate::{
    cli::{Config, Format},
    find,
    run::{DONE, INCOMPLETE, output, terminal_width},
};
use tracer::{
    nginx::{
        Version,
        binary::{self, Build},
    },
    report::config::{self, Shown},
    session::Snapshot,
    sys::{proc, process::Process},
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
    let snapshots: Vec<(Option<Process>, Snapshot)> = match &options.file {
        Some(path) => vec![(None, of_file(path, options.nginx_version)?)],
        None => {
            let masters =
                find::instances(&options.pids, "config")?.into_iter().map(|instance| instance.master);
            masters.map(|master| (Some(master.clone()), find::running(&master))).collect()
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

/// Reads a file with the defaults of a version, else of the nginx that is installed.
pub(crate) fn of_file(path: &Path, version: Option<Version>) -> Result<Snapshot> {
    let path = std::path::absolute(path).with_context(|| format!("--file {}", path.display()))?;
    let build = if version.is_some() { None } else { installed() };
    Snapshot::of_file(&path, build, version)
        .with_context(|| format!("cannot read the configuration {}", path.display()))
}

/// The nginx that is installed.
fn installed() -> Option<Build> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let folders = std::env::split_paths(&path).chain(FOLDERS.map(PathBuf::from));
    let bytes = folders.map(|folder| folder.join("nginx")).filter(|path| path.is_file());
    bytes.filter_map(|path| proc::read_up_to(path, MOST_EXE).ok()).find_map(|bytes| binary::build(&bytes))
}
