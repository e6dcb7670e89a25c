//! `why502 check`: everything that can be seen without traffic.

use std::{
    io::{self, IsTerminal as _, Write as _},
    process::ExitCode,
};

use anyhow::{Context as _, Result};

use crate::{
    cli::{Check, Format},
    find,
    run::{DONE, INCIDENTS, INCOMPLETE, output, terminal_width},
    show,
};
use tracer::{
    check::{self, Options, Report, Subject},
    report::check::{Count, Shown, json, text},
    session::Snapshot,
    sys::process::{Instance, Process},
};

/// Looks and tells. Exits with 4 if something could not be looked at in full, with 1 if something was found and
/// `--exit-code` was given.
pub(crate) fn run(options: &Check) -> Result<ExitCode> {
    if options.list {
        return list(options);
    }
    let wishes = Options {
        timeout: options.timeout,
        total: options.total,
        parallel: usize::from(options.parallel),
        ignore: options.ignore.clone(),
        progress,
    };
    let looked: Vec<(Option<Process>, Snapshot, Report)> = match &options.file {
        Some(path) => {
            let snapshot = show::of_file(path, options.nginx_version)?;
            let report = check::inspect_file(&snapshot, &wishes);
            vec![(None, snapshot, report)]
        }
        None => find::instances(&options.pids, "check")?.into_iter().map(|one| look(one, &wishes)).collect(),
    };
    progress("");
    let shown: Vec<Shown<'_>> = looked
        .iter()
        .map(|(master, snapshot, report)| Shown {
            pid: master.as_ref().map(|master| master.pid),
            container: master.as_ref().and_then(|master| Some(master.container.as_ref()?.to_string())),
            executable: master.as_ref().map(|master| master.exe.as_path()),
            build: snapshot.build.as_ref(),
            main: snapshot.main.as_deref(),
            model: &snapshot.model,
            report,
        })
        .collect();
    let mut out = output(options.output, options.color);
    let written = match options.output {
        Format::Json => json(&mut *out, &shown),
        Format::Text => text(&mut *out, &shown, terminal_width()),
    };
    written.context("cannot write to stdout")?;
    let count = Count::of(&shown);
    Ok(ExitCode::from(if count.incomplete > 0 {
        INCOMPLETE
    } else if options.exit_code && count.problems + count.warnings > 0 {
        INCIDENTS
    } else {
        DONE
    }))
}

fn look(instance: Instance, wishes: &Options) -> (Option<Process>, Snapshot, Report) {
    let workers: Vec<Process> = instance.workers().cloned().collect();
    let master = instance.master;
    let on_disk = Snapshot::of(&master);
    let mut snapshot = on_disk.instead(master.pid, master.started).unwrap_or(on_disk);
    // A worker may still have the configuration from before a reload; the master has the one that all get.
    snapshot.ask_for_addresses(master.pid);
    let report = check::inspect(&Subject { master: master.clone(), workers, snapshot: &snapshot }, wishes);
    (Some(master), snapshot, report)
}

/// The names that `--ignore` takes.
fn list(options: &Check) -> Result<ExitCode> {
    let mut out = output(Format::Text, options.color);
    let width = check::names().map(|(name, _)| name.len()).max().unwrap_or(0);
    for (name, finds) in check::names() {
        writeln!(out, "{name:<width$}  {finds}").context("cannot write to stdout")?;
    }
    out.flush().context("cannot write to stdout")?;
    Ok(ExitCode::from(DONE))
}

/// Tells a terminal what long work is at; the next text takes the place of this one, an empty one clears it.
fn progress(text: &str) {
    let mut err = io::stderr().lock();
    if err.is_terminal() {
        // Nothing depends on it.
        let _ = write!(err, "\r\u{1b}[K{text}").and_then(|()| err.flush());
    }
}
