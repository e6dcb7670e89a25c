//! `cargo xtask lab`: the lab from the command line.

use std::io::{self, Write};
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use clap::Subcommand;

use super::cache::Cache;
use super::choice::Choice;
use super::{
    Emulator, GuestRun, Job, Lsm, Prepared, SERIES, Series, Stream, emulator, images, nginx, prepare,
    prepare_one, run, series,
};

/// Arguments of `cargo xtask lab`.
#[derive(clap::Args)]
pub(crate) struct Args {
    #[command(subcommand)]
    action: Action,
}

#[derive(Subcommand)]
enum Action {
    /// List the kernel series, their newest builds and what is ready to boot
    List,
    /// Build the guests' images (as root), all or those of the series given
    Build {
        /// Kernel series, such as 6.12
        series: Vec<String>,
        /// Look for newer packages now, not once a day
        #[arg(long)]
        refresh: bool,
    },
    /// Run a command in a guest; exits with its status
    Run(RunArgs),
    /// Remove everything the lab has cached
    Clean,
}

#[derive(clap::Args)]
struct RunArgs {
    /// Kernel series, such as 6.12
    series: String,
    /// Put a file or directory into the command's working directory (repeatable)
    #[arg(long, value_name = "PATH")]
    copy: Vec<PathBuf>,
    /// Make the content of this directory the command's working directory
    #[arg(long, value_name = "DIR")]
    dir: Option<PathBuf>,
    /// Bring a file of the working directory back into the current directory (repeatable)
    #[arg(long, value_name = "FILE")]
    fetch: Vec<String>,
    /// Security modules the kernel starts with
    #[arg(long, value_enum, default_value_t)]
    lsm: Lsm,
    /// One more kernel parameter (repeatable)
    #[arg(long, value_name = "PARAMETER")]
    append: Vec<String>,
    /// Seconds for the whole run with boot
    #[arg(long, value_name = "SECONDS", default_value_t = 120)]
    timeout: u64,
    /// Guest memory in MiB
    #[arg(long, value_name = "MIB", default_value_t = 1024)]
    memory: u32,
    /// Guest CPUs
    #[arg(long, value_name = "N", default_value_t = 2)]
    cpus: u32,
    /// Show the kernel's console on stderr
    #[arg(short, long)]
    verbose: bool,
    /// The command and its arguments
    #[arg(last = true, required = true)]
    command: Vec<String>,
}

/// Runs `cargo xtask lab`.
pub(crate) fn main(args: &Args) -> Result<ExitCode> {
    match &args.action {
        Action::List => list(),
        Action::Build { series: names, refresh } => build(names, *refresh),
        Action::Run(args) => run_one(args),
        Action::Clean => {
            let cache = Cache::open()?;
            cache.clean()?;
            eprintln!("lab: {} is empty", cache.dir().display());
            Ok(ExitCode::SUCCESS)
        }
    }
}

fn list() -> Result<ExitCode> {
    let cache = Cache::open()?;
    let choice = Choice::cached(&cache);
    println!("cache: {}", cache.dir().display());
    let versions = choice.as_ref().and_then(|choice| choice.nginx.clone()).unwrap_or_default();
    let nginx = nginx::unpacked(&cache, &versions);
    let root = choice.as_ref().map(|choice| images::root_name(&choice.root, nginx.as_ref()));
    let root = root.is_some_and(|name| images::root(&cache, &name).is_some());
    println!("{:<7} {:<32} {}", "root", "bookworm", state(root));
    let version = versions.get("nginx").map_or("not looked up", String::as_str);
    println!("{:<7} {version:<32} {}", "nginx", state(nginx.is_some()));
    let (version, ready) = match Emulator::installed() {
        Ok(installed) if installed.is_sound() => (installed.version, true),
        Ok(_) => {
            let versions = choice.as_ref().and_then(|choice| choice.emulator.clone()).unwrap_or_default();
            let version = versions.get(emulator::PACKAGES[0]).map_or("not looked up", String::as_str);
            (version.to_owned(), emulator::unpacked(&cache, &versions).is_some())
        }
        Err(_) => ("not installed".to_owned(), false),
    };
    println!("{:<7} {version:<32} {}", "qemu", state(ready));
    for series in SERIES {
        let build = choice.as_ref().and_then(|choice| choice.kernels.get(series.name));
        let ready = build.is_some_and(|build| images::kernel(&cache, &images::kernel_name(build)).is_some());
        println!(
            "{:<7} {:<32} {}",
            series.name,
            build.map_or("not looked up", |build| &build.release),
            state(ready)
        );
    }
    Ok(ExitCode::SUCCESS)
}

fn state(ready: bool) -> &'static str {
    if ready { "ready" } else { "not built: `cargo xtask lab build`" }
}

fn build(names: &[String], refresh: bool) -> Result<ExitCode> {
    let started = Instant::now();
    let wanted: Vec<&'static Series> = if names.is_empty() {
        SERIES.iter().collect()
    } else {
        names.iter().map(|name| series(name)).collect::<Result<_>>()?
    };
    let Prepared { kernels, skipped, nginx, emulator } = prepare(&wanted, refresh)?;
    println!("{:<7} {:<32} ready", "qemu", emulator.version);
    match &nginx {
        Ok(nginx) => println!("{:<7} {:<32} ready", "nginx", nginx.version),
        Err(error) => println!("{:<7} skipped: {error:#}", "nginx"),
    }
    for kernel in &kernels {
        println!("{:<7} {:<32} ready", kernel.series, kernel.release);
    }
    for skip in &skipped {
        println!("{:<7} skipped: {}", skip.series, skip.reason);
    }
    let seconds = started.elapsed().as_secs_f64();
    eprintln!("lab: {} kernels ready, {} skipped, {seconds:.1} s", kernels.len(), skipped.len());
    Ok(if skipped.is_empty() && nginx.is_ok() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn run_one(args: &RunArgs) -> Result<ExitCode> {
    let kernel = prepare_one(&args.series)?;
    let mut job = Job::new(args.command.iter().cloned());
    job.copies.clone_from(&args.copy);
    job.dir.clone_from(&args.dir);
    job.timeout = Duration::from_secs(args.timeout);
    job.lsm = args.lsm;
    job.parameters.clone_from(&args.append);
    job.memory_mib = args.memory;
    job.cpus = args.cpus;
    job.verbose_kernel = args.verbose;
    for file in &args.fetch {
        let name = file.rsplit('/').next().unwrap_or(file);
        if name.is_empty() {
            bail!("--fetch takes a file, not a directory: {file}");
        }
        job.fetch.push((file.clone(), PathBuf::from(name)));
    }
    let mut broken = None;
    let guest = run(&kernel, &job, &mut |stream, bytes| {
        let written = match stream {
            Stream::Stdout => write_now(io::stdout(), bytes),
            Stream::Stderr => write_now(io::stderr(), bytes),
            Stream::Console if args.verbose => write_now(io::stderr(), bytes),
            Stream::Console => Ok(()),
        };
        // A reader that went away, such as `head`, is no reason to stop the guest.
        broken = broken.take().or(written.err().filter(|error| error.kind() != io::ErrorKind::BrokenPipe));
    })?;
    if let Some(error) = broken {
        return Err(error).context("cannot write the guest's output");
    }
    report(&kernel.release, &guest);
    Ok(ExitCode::from(u8::try_from(guest.status).unwrap_or(u8::MAX)))
}

fn report(release: &str, guest: &GuestRun) {
    eprintln!(
        "lab: {release} exited with {} (boot {:.1} s, all {:.1} s; {} + {} bytes of output, {} of console)",
        guest.status,
        guest.boot.as_secs_f64(),
        guest.wall.as_secs_f64(),
        guest.stdout.len(),
        guest.stderr.len(),
        guest.console.len(),
    );
}

fn write_now(mut to: impl Write, bytes: &[u8]) -> io::Result<()> {
    to.write_all(bytes)?;
    to.flush()
}
