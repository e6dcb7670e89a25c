//! `why502`: parse, run, exit code.

mod audit_cmd;
mod check_cmd;
mod cli;
mod doctor;
mod explain;
mod find;
mod replay_cmd;
mod retold;
mod run;
mod show;

use std::process::ExitCode;

use clap::Parser as _;

use cli::{Cli, Command};

fn main() -> ExitCode {
    // Before a second thread exists: the helper of a check goes into other mounts.
    if let Some(code) = tracer::check::probe::child() {
        return code;
    }
    let cli = Cli::parse();
    let result = match &cli.command {
        Some(Command::Doctor(options)) => doctor::run(options),
        Some(Command::Explain(options)) => explain::run(options),
        Some(Command::Config(options)) => show::run(options),
        Some(Command::Check(options)) => check_cmd::run(options),
        Some(Command::Replay(options)) => replay_cmd::run(options),
        Some(Command::Audit(options)) => audit_cmd::run(options),
        Some(Command::Trace(options)) => run::trace(options),
        None => run::trace(&cli.trace),
    };
    result.unwrap_or_else(|error| run::fail(&error))
}
