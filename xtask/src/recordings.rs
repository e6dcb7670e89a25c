//! `cargo xtask recordings`: the recordings of the fault lab's cases (tests/data/*/*.w502) anew, from this kernel and every
//! guest, on every tier. The tests replay them.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use std::time::Duration;

use anyhow::{Context, Result, bail};

use crate::lab::{self, Job, Lsm, SERIES, Series};
use crate::records::short;
use crate::{binaries, process};

/// Arguments of `cargo xtask recordings`.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// Only guest kernels of this series, such as 6.12 (repeatable)
    #[arg(long, value_name = "SERIES")]
    kernel: Vec<String>,
    /// Only this machine's kernel
    #[arg(long, conflicts_with = "kernel")]
    host_only: bool,
    /// Only guest kernels: what an earlier run has left of this machine's is used
    #[arg(long, conflicts_with = "host_only")]
    guests_only: bool,
    /// Play nothing: choose anew from what earlier runs have left in target/recordings
    #[arg(long, conflicts_with_all = ["kernel", "host_only", "guests_only"])]
    again: bool,
}

const TIERS: [&str; 3] = ["full", "kprobe", "tracepoint"];
/// The guest that plays every case on its full tier; the others play the core cases on every tier.
const WHOLE: &str = "6.12";
/// For a whole guest, or the run on this machine.
const LIMIT: Duration = Duration::from_secs(3600);

/// Runs `cargo xtask recordings`.
///
/// # Errors
/// If nothing can be built or run.
pub(crate) fn main(args: &Args) -> Result<ExitCode> {
    let raw = binaries::root().join("target/recordings");
    fs::create_dir_all(&raw).with_context(|| format!("cannot create {}", raw.display()))?;
    let built = binaries::build(&["--package", "tracer", "--package", "why502-tests"])?;
    let programs = [built.get("why502")?.to_owned(), built.get("faultlab")?.to_owned()];
    if !args.again {
        play(args, &programs, &raw)?;
    }
    let mut store = Command::new(&programs[1]);
    store.arg("store").arg("--cases").arg(binaries::root().join("tests/data"));
    let mut files = left(&raw)?;
    files.sort();
    if files.is_empty() {
        bail!("there is no recording in {}", raw.display());
    }
    process::visible(store.args(files))?;
    Ok(ExitCode::SUCCESS)
}

/// What runs have left; those that saw nothing have left nothing.
fn left(raw: &Path) -> Result<Vec<PathBuf>> {
    let files = fs::read_dir(raw).with_context(|| format!("cannot read {}", raw.display()))?;
    let is_whole = |path: &PathBuf| {
        let full = |path: &Path| fs::metadata(path).is_ok_and(|metadata| metadata.len() > 0);
        path.extension().is_some_and(|ext| ext == "w502")
            && full(path)
            && full(&path.with_extension("w502.cases"))
    };
    Ok(files.flatten().map(|entry| entry.path()).filter(is_whole).collect())
}

fn play(args: &Args, programs: &[PathBuf; 2], raw: &Path) -> Result<()> {
    let series: Vec<&Series> = match (args.host_only, args.kernel.is_empty()) {
        (true, _) => Vec::new(),
        (false, true) => SERIES.iter().collect(),
        (false, false) => args.kernel.iter().map(|name| lab::series(name)).collect::<Result<_>>()?,
    };
    if args.kernel.is_empty() && !args.guests_only {
        host(programs, raw)?;
    }
    if !series.is_empty() {
        guests(&series, programs, raw)?;
    }
    Ok(())
}

/// Tracepoints are what every kernel has. What TLS hides is told only where nginx itself is asked: those cases once more.
fn host(programs: &[PathBuf; 2], raw: &Path) -> Result<()> {
    let release = process::output(Command::new("uname").arg("-r"))?;
    let release = String::from_utf8_lossy(&release.stdout).into_owned();
    let [why502, faultlab] = programs;
    let asked = ["--why502-arg=--uprobes=on", "--case", "-tls-"];
    for (name, more) in [("", &[][..]), ("-asked", &asked)] {
        let file = raw.join(format!("{}{name}-tracepoint.w502", short(&release)?));
        let mut lab = Command::new("timeout");
        lab.arg(LIMIT.as_secs().to_string()).arg(faultlab).arg("--why502").arg(why502);
        lab.arg("--cases").arg(binaries::root().join("tests/data"));
        lab.args(["--jobs", "2", "--tier", "tracepoint", "--record"]).arg(&file).args(more);
        // A case that failed is not stored.
        if let Err(error) = process::visible(&mut lab) {
            eprintln!("recordings: {error:#}");
        }
    }
    Ok(())
}

fn guests(series: &[&'static Series], programs: &[PathBuf; 2], raw: &Path) -> Result<()> {
    let prepared = lab::prepare(series, false)?;
    for skipped in &prepared.skipped {
        eprintln!("recordings: no kernel {}: {}", skipped.series, skipped.reason);
    }
    for kernel in &prepared.kernels {
        for lsm in [Lsm::Apparmor, Lsm::Selinux] {
            let name = if lsm == Lsm::Selinux { "-selinux" } else { "" };
            let mut job = Job::new(["sh", "-c", &script(kernel.series, lsm)]);
            job.copies = programs.to_vec();
            job.copies.push(binaries::root().join("tests/data"));
            job.lsm = lsm;
            job.timeout = LIMIT;
            job.memory_mib = 2048;
            for tier in TIERS {
                let file = raw.join(format!("{}{name}-{tier}.w502", kernel.series));
                job.fetch.push((format!("{tier}.w502"), file.clone()));
                job.fetch.push((format!("{tier}.w502.cases"), file.with_extension("w502.cases")));
            }
            let guest = lab::run(kernel, &job, &mut |_, _| {})
                .with_context(|| format!("kernel {}{name}", kernel.series))?;
            eprintln!("recordings: kernel {}{name}: {:.0} s", kernel.series, guest.wall.as_secs_f64());
            let text = String::from_utf8_lossy(&guest.stdout);
            let told = |line: &&str| line.contains(" passed, ") || line.starts_with("FAIL");
            text.lines().filter(told).for_each(|line| eprintln!("recordings: {line}"));
        }
    }
    Ok(())
}

/// Runs in a guest: each tier in turn. Emulated guests are slow.
fn script(series: &str, lsm: Lsm) -> String {
    let part = |tier: &str| {
        let cases = match lsm {
            Lsm::Selinux => "--jobs 1 --case selinux-",
            Lsm::Kernel | Lsm::Bpf | Lsm::Apparmor if series == WHOLE && tier == "full" => "--jobs 4",
            Lsm::Kernel | Lsm::Bpf | Lsm::Apparmor => "--jobs 4 --core",
        };
        format!(
            "./faultlab --why502 ./why502 --cases data --slow 15 --settle-ms 20 --tier {tier} --record {tier}.w502 {cases}
             touch {tier}.w502 {tier}.w502.cases"
        )
    };
    TIERS.map(part).join("\n")
}
