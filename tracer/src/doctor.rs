//! `why502 doctor`: what this kernel allows.

use std::{
    collections::HashSet,
    fs,
    io::{self, Write},
    process::ExitCode,
};

use anyhow::{Context as _, Result};

use crate::{
    cli::Doctor,
    run::{check_privileges, kernel_options},
};
use tracer::{
    nginx::binary,
    probes::{
        load::{self, Loaded, State},
        uprobes::{self, Mode},
    },
    sys::{caps, process::Finder},
};

/// Loads and attaches everything for a moment, and says what became of each hook.
pub(crate) fn run(options: &Doctor) -> Result<ExitCode> {
    let mut out = io::stdout().lock();
    let host = caps::host().context("cannot read this host's kernel version and privileges from /proc")?;
    let written = |r: io::Result<()>| r.context("cannot write to stdout");
    written(writeln!(out, "kernel     {}", host.kernel))?;
    let modules = host
        .lsms
        .as_ref()
        .map_or_else(|| "not known (securityfs is not mounted)".to_owned(), |l| l.join(", "));
    written(writeln!(out, "security   {modules}"))?;
    let missing = host.effective.missing();
    let names: Vec<&str> = missing.iter().map(|c| c.name()).collect();
    let held = if names.is_empty() {
        "all that why502 uses".to_owned()
    } else {
        format!("missing: {}", names.join(", "))
    };
    written(writeln!(out, "privileges {held}"))?;
    check_privileges()?;
    let mut loaded = load::load(&kernel_options(&options.kernel))?;
    written(writeln!(
        out,
        "tier       {}{}\n",
        loaded.tier,
        loaded.tier_reason.as_deref().map(|why| format!(": {why}")).unwrap_or_default()
    ))?;
    for status in &loaded.probes {
        let probe = status.probe;
        written(match &status.state {
            State::Attached(label) => {
                writeln!(out, "  ok       {:<17} {label}\n           tells {}", probe.name, probe.tells)
            }
            State::Missing(why) => {
                writeln!(out, "  MISSING  {:<17} {why}\n           lost  {}", probe.name, probe.lost)
            }
            State::Ready(label) => writeln!(
                out,
                "  ok       {:<17} {label}, when a worker has a filter\n           tells {}",
                probe.name, probe.tells
            ),
            State::NotNeeded(why) => writeln!(out, "  -        {:<17} not needed here: {why}", probe.name),
            State::NotInTier => writeln!(
                out,
                "  -        {:<17} not in the {} tier\n           lost  {}",
                probe.name, loaded.tier, probe.lost
            ),
        })?;
    }
    let attached =
        loaded.probes.iter().filter(|s| matches!(s.state, State::Attached(_) | State::Ready(_))).count();
    written(writeln!(out, "\n{attached} of {} hooks attached", loaded.probes.len()))?;
    executables(&mut out, &mut loaded)?;
    Ok(ExitCode::SUCCESS)
}

/// Whether the executables of the running nginxes can be probed: each for a moment.
fn executables(out: &mut impl Write, loaded: &mut Loaded) -> Result<()> {
    let written = |r: io::Result<()>| r.context("cannot write to stdout");
    let found = Finder::new(binary::is_nginx_binary).find_nginx();
    let found = found.context("cannot list the processes of this host (/proc)")?;
    let mut seen = HashSet::new();
    for master in found.instances.iter().map(|instance| instance.master.pid) {
        if !uprobes::file_of(master).is_ok_and(|file| seen.insert(file)) {
            continue;
        }
        let path = fs::read_link(format!("/proc/{master}/exe")).unwrap_or_default();
        let path = path.display();
        let attached = uprobes::read(master)
            .and_then(|symbols| uprobes::attach(&mut loaded.ebpf, master, &symbols, Mode::On, true));
        match attached {
            Ok(attached) => {
                let functions = attached.functions.join(", ");
                written(writeln!(
                    out,
                    "\nuprobes on {path}\n  ok       {functions}\n           tell  {}",
                    uprobes::TELLS
                ))?;
                for text in &attached.left_out {
                    written(writeln!(out, "  -        {text}"))?;
                }
                uprobes::detach(&mut loaded.ebpf, attached);
            }
            Err(error) => written(writeln!(
                out,
                "\nuprobes on {path}\n  MISSING  {error}\n           lost  {}",
                uprobes::LOST
            ))?,
        }
    }
    if seen.is_empty() {
        written(writeln!(
            out,
            "\nno nginx is running: whether uprobes are possible is seen at its executable"
        ))?;
    }
    Ok(())
}
