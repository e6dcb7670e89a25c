//! `why502 doctor`: what this kernel allows.

use std::{
    io::{self, Write},
    process::ExitCode,
};

use anyhow::{Context as _, Result};

use crate::{
    cli::Doctor,
    run::{check_privileges, kernel_options},
};
use tracer::{
    probes::load::{self, State},
    sys::caps,
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
    let loaded = load::load(&kernel_options(&options.kernel))?;
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
            State::Unwanted => writeln!(out, "  -        {:<17} not wanted", probe.name),
            State::NotInTier => writeln!(
                out,
                "  -        {:<17} not in the {} tier\n           lost  {}",
                probe.name, loaded.tier, probe.lost
            ),
        })?;
    }
    let attached = loaded.probes.iter().filter(|s| matches!(s.state, State::Attached(_))).count();
    written(writeln!(out, "\n{attached} of {} hooks attached", loaded.probes.len()))?;
    Ok(ExitCode::SUCCESS)
}
