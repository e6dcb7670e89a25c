//! `faultlab`: makes nginx fail in known ways, in network namespaces of its own, and judges what why502 says.
//!
//! Without a subcommand it runs the cases; `leak`, `healthy` and `requests` are the long runs. See ../README.md.

mod audit;
mod backend;
mod case;
mod chaos;
mod check;
mod client;
mod conntrack;
mod dns;
mod expect;
mod hooks;
mod judge;
mod late;
mod listen;
mod look;
mod needs;
mod net;
mod nginx;
mod older;
mod packet;
mod record;
#[cfg(test)]
mod recorded;
mod refuse;
mod remote;
mod report;
mod requests;
mod rules;
mod run;
mod scene;
mod script;
mod scrub;
mod store;
mod stress;
mod sys;
mod timing;
mod tls;
mod truth;
mod unix;
mod watch;

use anyhow::{Context, Result, bail};
use clap::{Args, Parser, Subcommand, ValueEnum};
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;
use watch::Program;

#[derive(Debug, Parser)]
#[command(about = "the fault lab of why502", args_conflicts_with_subcommands = true)]
struct Cli {
    #[command(subcommand)]
    command: Option<Command>,
    #[command(flatten)]
    program: ProgramArgs,
    #[command(flatten)]
    cases: CasesArgs,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Fail very many upstream connections and see that the connection map is empty again
    Leak {
        #[command(flatten)]
        program: ProgramArgs,
        #[command(flatten)]
        load: LoadArgs,
        /// Upstream connections, rounded up to a multiple of 100
        #[arg(long, default_value_t = 1_000_000)]
        connects: u64,
        /// Entries that may be left in the map
        #[arg(long, default_value_t = 0)]
        baseline: u64,
    },
    /// Send healthy requests, a new upstream connection each, and see that why502 says nothing
    Healthy {
        #[command(flatten)]
        program: ProgramArgs,
        #[command(flatten)]
        load: LoadArgs,
        #[arg(long, default_value_t = 100_000)]
        requests: u64,
    },
    /// Be a backend that follows a script, for the cases
    Backend(backend::Options),
    /// Send requests to backends that fail at random, and compare the incidents with nginx's own logs, one to one
    Chaos {
        #[command(flatten)]
        program: ProgramArgs,
        #[command(flatten)]
        load: chaos::Load,
    },
    /// Start why502 when connections stand already, and see that what becomes of them is told
    Older {
        #[command(flatten)]
        program: ProgramArgs,
    },
    /// Replace the recordings of the cases by those of these runs (`--record`), named KERNEL-TIER
    Store {
        /// The folder of the cases
        #[arg(long, value_name = "DIR", default_value = "tests/data")]
        cases: PathBuf,
        /// The recordings
        #[arg(required = true, value_name = "FILE")]
        files: Vec<PathBuf>,
    },
    /// Stand in the way of a program, for the cases
    Refuse {
        #[command(subcommand)]
        what: refuse::What,
    },
    /// Send requests of many kinds side by side and see that no incident names a wrong one
    Requests {
        #[command(flatten)]
        program: ProgramArgs,
        /// Client connections
        #[arg(long, default_value_t = 8)]
        clients: usize,
        #[arg(long, default_value_t = 20_000)]
        requests: u64,
        /// nginx's workers
        #[arg(long, default_value_t = 4)]
        workers: u32,
    },
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum Tier {
    Auto,
    Full,
    Kprobe,
    Tracepoint,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Which {
    /// Every case: what must never be said is not said
    All,
    /// Those that say what must be found, or that nothing may be
    Expecting,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Choice {
    /// Cases that hang on time and those that do not
    Any,
    /// None that hangs on time on this kind of machine
    Leave,
    /// Those alone
    Only,
}

#[derive(Debug, Args)]
struct ProgramArgs {
    /// The why502 to judge
    #[arg(long, value_name = "PATH")]
    why502: Option<PathBuf>,
    /// Without why502: see only that the faults are what they claim
    #[arg(long, conflicts_with = "why502")]
    no_why502: bool,
    /// Hooks that why502 must use
    #[arg(long, value_enum, default_value_t = Tier::Auto)]
    tier: Tier,
    /// A further argument for `why502 trace`
    #[arg(long, value_name = "ARG", allow_hyphen_values = true)]
    why502_arg: Vec<String>,
    /// Multiply every bound (emulated guests: 10 to 20)
    #[arg(long, default_value_t = 1.0)]
    slow: f64,
}

#[derive(Debug, Args)]
struct CasesArgs {
    /// The folder of the cases
    #[arg(long, value_name = "DIR")]
    cases: Option<PathBuf>,
    /// Only cases whose name contains this
    #[arg(long = "case", value_name = "NAME")]
    names: Vec<String>,
    /// Only the smaller set of cases, for slow guests
    #[arg(long)]
    core: bool,
    /// Print the names of the cases and what they are
    #[arg(long)]
    list: bool,
    /// Judge `why502 check` in place of `why502 trace`: each case is played up to its first request, which is never sent
    #[arg(long, value_enum, value_name = "WHICH")]
    check: Option<Which>,
    /// Cases side by side
    #[arg(long, default_value_t = 2)]
    jobs: usize,
    /// How long to look for incidents that should not come
    #[arg(long, default_value_t = 300, value_name = "MS")]
    settle_ms: u64,
    /// Which cases, by whether their outcome hangs on time here (`timing` in case.toml)
    #[arg(long, value_enum, default_value_t = Choice::Any, value_name = "WHICH")]
    timing: Choice,
    /// Play those that hang on time so often, and tell how often each passed
    #[arg(long, default_value_t = 1, value_name = "N")]
    plays: u32,
    /// Print everything about passing cases too
    #[arg(long, short)]
    verbose: bool,
    /// Let why502 record the run, and write a list of what was played to FILE.cases, for `faultlab store`
    #[arg(long, value_name = "FILE")]
    record: Option<PathBuf>,
    /// Write the outcomes and all incidents as JSON
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Write the outcomes as JUnit XML
    #[arg(long, value_name = "FILE")]
    junit: Option<PathBuf>,
}

#[derive(Debug, Args)]
struct LoadArgs {
    /// Client connections
    #[arg(long, default_value_t = 4)]
    clients: usize,
}

fn main() -> ExitCode {
    match try_main() {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            report::note(&format!("{error:#}"));
            ExitCode::from(2)
        }
    }
}

fn try_main() -> Result<bool> {
    let cli = Cli::parse();
    sys::catch_signals().context("cannot catch signals")?;
    match cli.command {
        None => {
            let Some(dir) = cli.cases.cases else { bail!("name the folder of the cases with --cases DIR") };
            if cli.cases.list {
                return run::list(&dir);
            }
            run::run(&run::Options {
                cases: dir,
                names: cli.cases.names,
                core: cli.cases.core,
                check: cli.cases.check,
                jobs: cli.cases.jobs,
                slow: slow(&cli.program)?,
                settle: Duration::from_millis(cli.cases.settle_ms),
                verbose: cli.cases.verbose,
                timing: cli.cases.timing,
                plays: cli.cases.plays,
                record: cli.cases.record,
                json: cli.cases.json,
                junit: cli.cases.junit,
                program: program(cli.program)?,
            })
        }
        Some(Command::Leak { program, load, connects, baseline }) => {
            stress::leak(&load_options(program, &load)?, connects, baseline)
        }
        Some(Command::Healthy { program, load, requests }) => {
            stress::healthy(&load_options(program, &load)?, requests)
        }
        Some(Command::Store { cases, files }) => store::store(&files, &cases),
        Some(Command::Backend(options)) => backend::run(&options),
        Some(Command::Chaos { program, load }) => {
            chaos::run(&load_options(program, &LoadArgs { clients: 0 })?, &load)
        }
        Some(Command::Older { program }) => older::run(&load_options(program, &LoadArgs { clients: 0 })?),
        Some(Command::Refuse { what }) => refuse::run(&what).map(|()| true),
        Some(Command::Requests { program, clients, requests, workers }) => {
            truth::run(&load_options(program, &LoadArgs { clients })?, requests, workers)
        }
    }
}

fn load_options(args: ProgramArgs, load: &LoadArgs) -> Result<stress::Options> {
    Ok(stress::Options { slow: slow(&args)?, clients: load.clients, program: program(args)? })
}

fn slow(args: &ProgramArgs) -> Result<f64> {
    if !(1.0..=1000.0).contains(&args.slow) {
        bail!("--slow {}: use 1 to 1000", args.slow);
    }
    Ok(args.slow)
}

fn program(args: ProgramArgs) -> Result<Option<Program>> {
    let tier = match args.tier {
        Tier::Auto => "auto",
        Tier::Full => "full",
        Tier::Kprobe => "kprobe",
        Tier::Tracepoint => "tracepoint",
    };
    match args.why502 {
        Some(path) => Ok(Some(Program { path, tier: tier.to_owned(), extra: args.why502_arg })),
        None if args.no_why502 => Ok(None),
        None => bail!("name the program with --why502 PATH, or test the lab alone with --no-why502"),
    }
}
