//! `cargo xtask demo`: a real nginx with broken upstreams in a network of its own, and what why502 says of them.
//!
//! The task itself installs, builds, and starts the demonstration (`inside`) in a new network namespace, here or
//! in a guest kernel: nothing of the machine is touched, and no port is ever taken.

mod inside;
mod routes;
mod scene;
mod sys;
mod watcher;

use std::env;
use std::io::{self, IsTerminal, Write};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail};

use crate::lab::{self, Job, Stream};
use crate::setup::{self, Purpose};
use crate::{binaries, process, signals};

/// Arguments of `cargo xtask demo`.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// Install nothing: fail with the list of what is missing
    #[arg(long)]
    no_install: bool,
    /// Run in a guest kernel of this series, such as 6.12, with all of why502's hooks
    #[arg(long, value_name = "SERIES")]
    guest: Option<String>,
}

/// Arguments of the hidden `xtask demo-inside`.
#[derive(clap::Args)]
pub(crate) struct InsideArgs {
    /// The program to show
    #[arg(long, value_name = "PATH")]
    why502: PathBuf,
    /// `--tier` of why502
    #[arg(long, value_name = "TIER", default_value = "auto")]
    tier: String,
    /// `--color` of why502
    #[arg(long, value_name = "WHEN", default_value = "auto")]
    color: String,
    /// Multiply every bound: for emulated machines
    #[arg(long, default_value_t = 1)]
    slow: u32,
}

/// Slow enough for an emulated guest on a busy machine.
const GUEST_SLOWNESS: u32 = 15;

/// Runs `cargo xtask demo`.
pub(crate) fn main(args: &Args) -> Result<ExitCode> {
    if args.guest.is_none() && !process::is_root() {
        bail!(
            "the demo needs root for BPF and for a network of its own: run it as root, or with --guest 6.12"
        );
    }
    let mut purposes = vec![Purpose::Build, Purpose::Demo];
    purposes.extend(args.guest.as_ref().map(|_| Purpose::Guest));
    setup::ensure(&purposes, args.no_install)?;
    eprintln!("demo: building why502");
    let binaries = binaries::build(&["--package", "tracer"])?;
    let why502 = binaries.get("why502")?;
    match &args.guest {
        Some(series) => in_guest(series, why502),
        None => here(why502),
    }
}

/// Runs the demonstration itself; the network namespace is the caller's.
pub(crate) fn inside(args: &InsideArgs) -> Result<ExitCode> {
    inside::run(args)
}

fn here(why502: &Path) -> Result<ExitCode> {
    // What it started must be taken down by itself even if this process is killed: it gets a SIGTERM then.
    let mut command = Command::new("setpriv");
    command.args(["--pdeathsig", "TERM", "unshare", "--net", "--"]);
    command.arg(env::current_exe().context("cannot find this program's file")?);
    command.args(["demo-inside", "--why502"]).arg(why502);
    // ^C reaches this process alone, which hands it on as SIGTERM.
    command.stdin(Stdio::null()).process_group(0);
    signals::catch()?;
    let mut child = command.spawn().context("cannot run setpriv (util-linux): `cargo xtask setup`")?;
    loop {
        if let Some(status) = child.try_wait().context("cannot wait for the demo")? {
            return Ok(exit_code(status.code()));
        }
        if signals::interrupted() {
            signals::stop(&mut child, libc::SIGTERM, Duration::from_secs(20));
            bail!("interrupted");
        }
        signals::poll_until(Duration::from_millis(200), || matches!(child.try_wait(), Ok(Some(_)) | Err(_)));
    }
}

fn in_guest(series: &str, why502: &Path) -> Result<ExitCode> {
    let kernel = lab::prepare_one(series)?;
    let this = env::current_exe().context("cannot find this program's file")?;
    let name = this.file_name().context("this program's file has no name")?.to_string_lossy().into_owned();
    let color =
        if io::stdout().is_terminal() && env::var_os("NO_COLOR").is_none() { "always" } else { "never" };
    let mut job = Job::new(["unshare", "--net", "--"]);
    job.command.extend([format!("./{name}"), "demo-inside".into(), "--why502".into(), "./why502".into()]);
    job.command.extend(["--tier", "full", "--color", color, "--slow"].map(str::to_owned));
    job.command.push(GUEST_SLOWNESS.to_string());
    job.copies = vec![this, why502.to_owned()];
    job.timeout = Duration::from_secs(240);
    eprintln!("demo: booting {} in QEMU", kernel.release);
    let guest = lab::run(&kernel, &job, &mut |stream, bytes| {
        // Somebody who no longer reads is no reason to stop the guest.
        let _ = match stream {
            Stream::Stdout => write_now(io::stdout(), bytes),
            Stream::Stderr => write_now(io::stderr(), bytes),
            Stream::Console => Ok(()),
        };
    })?;
    eprintln!("demo: {:.0} s in the guest, boot included", guest.wall.as_secs_f64());
    if guest.status != 0 {
        let console = String::from_utf8_lossy(&guest.console);
        eprintln!("--- end of the guest's console ---\n{}", process::tail(console.trim_end(), 4000));
    }
    Ok(exit_code(Some(guest.status)))
}

fn exit_code(status: Option<i32>) -> ExitCode {
    status.and_then(|code| u8::try_from(code).ok()).map_or(ExitCode::FAILURE, ExitCode::from)
}

fn write_now(mut to: impl Write, bytes: &[u8]) -> io::Result<()> {
    to.write_all(bytes)?;
    to.flush()
}
