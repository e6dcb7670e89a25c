//! `cargo xtask records`: the decoder's fixtures (tracer/tests/records) anew: what the kernel side really sends, on this kernel
//! and in every guest, on every tier, from the few cases of the fault lab that together make every kind of record.

mod scrub;

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use std::time::Duration;

use anyhow::{Context, Result, bail};

use crate::lab::{self, Job, Lsm, SERIES, Series};
use crate::{binaries, process};

/// Arguments of `cargo xtask records`.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// Only guest kernels of this series, such as 6.12 (repeatable)
    #[arg(long, value_name = "SERIES")]
    kernel: Vec<String>,
    /// Only this machine's kernel
    #[arg(long, conflicts_with = "kernel")]
    host_only: bool,
    /// Play nothing: choose anew from what earlier runs have left in target/records
    #[arg(long, conflicts_with_all = ["kernel", "host_only"])]
    again: bool,
}

const TIERS: [&str; 3] = ["full", "kprobe", "tracepoint"];
/// For a whole guest, or the run on this machine.
const LIMIT: Duration = Duration::from_secs(900);

/// A refusal, a drop, a full queue, ICMP errors, calls that fail, clients that leave, unix sockets, every protocol of connections
/// that stand, deaths, name servers, guards, requests that nobody was tried for, and processes that come and go.
const CASES: [&str; 29] = [
    "refused-no-listener-v4",
    "refused-no-listener-v6",
    "drop-output-v6",
    "firewall-output-reset",
    "backlog-full-v6",
    "firewall-remote-icmp-port",
    "network-unreachable-no-route-v6",
    "bind-failed-in-use",
    "fd-limit",
    "client-aborted",
    "unix-abstract-missing",
    "unix-permission-socket",
    "stood-closed-early-in-header",
    "stood-returned-503-kept",
    "stood-truncated-chunked",
    "stood-fastcgi-truncated-length",
    "stood-unix-truncated",
    "stood-tls-cipher",
    "stood-reset-in-request",
    "stood-died-killed",
    "resolver-nxdomain",
    "resolver-port-closed",
    "no-live-upstreams-down",
    "no-resolver-host",
    "lsm-seccomp-connect",
    "lsm-apparmor-deny-quiet",
    "lsm-landlock-connect",
    "lsm-cgroup-connect4",
    "reload-during-connect",
];

/// Runs `cargo xtask records`.
///
/// # Errors
/// If nothing can be built or run, or the decoder refuses what was collected.
pub(crate) fn main(args: &Args) -> Result<ExitCode> {
    let raw = binaries::root().join("target/records");
    fs::create_dir_all(&raw).with_context(|| format!("cannot create {}", raw.display()))?;
    let files = if args.again { left(&raw)? } else { collect(args, &raw)? };
    // Those that are there are kept, whatever is missing.
    let missing: Vec<String> =
        files.iter().filter_map(|file| store(file).err()).map(|error| format!("{error:#}")).collect();
    let mut bless = binaries::cargo(["test", "--quiet", "--package", "tracer", "--test", "records"]);
    process::visible(bless.env("WHY502_BLESS", "1"))?;
    if !missing.is_empty() {
        bail!("old fixtures stay where nothing was collected:\n{}", missing.join("\n"));
    }
    Ok(ExitCode::SUCCESS)
}

/// What earlier runs have left.
fn left(raw: &Path) -> Result<Vec<PathBuf>> {
    let files = fs::read_dir(raw).with_context(|| format!("cannot read {}", raw.display()))?;
    let paths = files.flatten().map(|entry| entry.path());
    Ok(paths.filter(|path| path.extension().is_some_and(|ext| ext == "raw")).collect())
}

fn collect(args: &Args, raw: &Path) -> Result<Vec<PathBuf>> {
    let built = binaries::build(&["--package", "tracer", "--package", "why502-tests"])?;
    let programs = [built.get("why502")?.to_owned(), built.get("faultlab")?.to_owned()];
    let series: Vec<&Series> = match (args.host_only, args.kernel.is_empty()) {
        (true, _) => Vec::new(),
        (false, true) => SERIES.iter().collect(),
        (false, false) => args.kernel.iter().map(|name| lab::series(name)).collect::<Result<_>>()?,
    };
    let mut files = Vec::new();
    if args.kernel.is_empty() {
        files.push(host(&programs, raw)?);
    }
    if !series.is_empty() {
        files.extend(guests(&series, &programs, raw)?);
    }
    Ok(files)
}

/// The arguments of the fault lab on a tier.
fn arguments(tier: &str, slow: &str, jobs: &str, file: &str) -> Vec<String> {
    let mut args: Vec<String> =
        ["--slow", slow, "--jobs", jobs, "--settle-ms", "20", "--tier", tier].map(str::to_owned).into();
    args.push("--why502-arg=--uprobes=on".to_owned());
    args.push(format!("--why502-arg=--dump-records={file}"));
    args.extend(CASES.iter().flat_map(|case| ["--case".to_owned(), (*case).to_owned()]));
    args
}

/// Tracepoints are what every kernel has.
fn host(programs: &[PathBuf; 2], raw: &Path) -> Result<PathBuf> {
    let release = process::output(Command::new("uname").arg("-r"))?;
    let release = String::from_utf8_lossy(&release.stdout).into_owned();
    let file = raw.join(format!("{}-tracepoint.raw", short(&release)?));
    let [why502, faultlab] = programs;
    let mut lab = Command::new("timeout");
    lab.arg(LIMIT.as_secs().to_string()).arg(faultlab).arg("--why502").arg(why502);
    lab.arg("--cases").arg(binaries::root().join("tests/data"));
    lab.args(arguments("tracepoint", "1", "4", &file.to_string_lossy()));
    // A case that fails has made its records all the same.
    if let Err(error) = process::visible(&mut lab) {
        eprintln!("records: {error:#}");
    }
    Ok(file)
}

fn guests(series: &[&'static Series], programs: &[PathBuf; 2], raw: &Path) -> Result<Vec<PathBuf>> {
    let mut collected = Vec::new();
    let prepared = lab::prepare(series, false)?;
    for skipped in &prepared.skipped {
        eprintln!("records: no kernel {}: {}", skipped.series, skipped.reason);
    }
    for kernel in &prepared.kernels {
        let mut job = Job::new(["sh", "-c", &script()]);
        job.copies = programs.to_vec();
        job.copies.push(binaries::root().join("tests/data"));
        // All guards that a kernel can have, so that all can refuse.
        job.lsm = Lsm::Apparmor;
        job.timeout = LIMIT;
        job.memory_mib = 2048;
        let files = TIERS.map(|tier| (tier, raw.join(format!("{}-{tier}.raw", kernel.series))));
        job.fetch = files.iter().map(|(tier, file)| (format!("{tier}.raw"), file.clone())).collect();
        let guest =
            lab::run(kernel, &job, &mut |_, _| {}).with_context(|| format!("kernel {}", kernel.series))?;
        let seconds = guest.wall.as_secs_f64();
        eprintln!("records: kernel {}: {seconds:.0} s", kernel.series);
        let text = String::from_utf8_lossy(&guest.stdout);
        text.lines().filter(|line| line.contains(" passed, ")).for_each(|line| eprintln!("records: {line}"));
        collected.extend(files.map(|(_, file)| file));
    }
    Ok(collected)
}

/// Runs in a guest: each tier in turn. Emulated guests are slow.
fn script() -> String {
    let part = |tier: &str| {
        let args = arguments(tier, "15", "4", &format!("{tier}.raw")).join(" ");
        format!("./faultlab --why502 ./why502 --cases data {args}; touch {tier}.raw")
    };
    TIERS.map(part).join("\n")
}

/// `6.18` of `6.18.3-amd64`.
pub(crate) fn short(release: &str) -> Result<String> {
    let mut parts = release.trim().split(['.', '-']);
    match (parts.next(), parts.next()) {
        (Some(major), Some(minor)) => Ok(format!("{major}.{minor}")),
        _ => bail!("uname -r says {release}"),
    }
}

/// Keeps a few records of each sort from a file of `--dump-records`, without what belongs to one boot.
fn store(raw: &Path) -> Result<()> {
    let bytes = fs::read(raw).with_context(|| format!("cannot read {}", raw.display()))?;
    let records = scrub::choose(scrub::split(&bytes).with_context(|| format!("in {}", raw.display()))?);
    if records.is_empty() {
        bail!("{} holds no record: why502 could not run there", raw.display());
    }
    let kinds: BTreeSet<u32> = records.iter().map(|record| scrub::kind_of(record)).collect();
    let name = raw.file_stem().unwrap_or_default().to_string_lossy().into_owned();
    let file = binaries::root().join("tracer/tests/records").join(format!("{name}.bin"));
    let mut framed = Vec::new();
    for record in &records {
        framed.extend(u32::try_from(record.len()).context("a record of 4 GiB")?.to_le_bytes());
        framed.extend(record);
    }
    fs::write(&file, &framed).with_context(|| format!("cannot write {}", file.display()))?;
    println!("{name}: {} records of the kinds {kinds:?}, {} bytes", records.len(), framed.len());
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_kernels() {
        assert_eq!(short("6.18.3-amd64\n").unwrap(), "6.18");
        assert_eq!(short("7.2-rc1").unwrap(), "7.2");
        assert!(short("linux").is_err());
    }

    #[test]
    fn every_case_is_one_of_the_labs() {
        let data = fs::read_dir(binaries::root().join("tests/data")).unwrap();
        let names: Vec<String> =
            data.flatten().map(|entry| entry.file_name().to_string_lossy().into_owned()).collect();
        for case in CASES {
            assert!(names.iter().any(|name| name.contains(case)), "{case}");
        }
    }
}
