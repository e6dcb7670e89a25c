//! `cargo xtask`: development tasks of why502. Parses, dispatches, turns an error into an exit code.
#![expect(clippy::print_stdout, reason = "a development tool: what it finds goes to stdout")]

#[expect(dead_code, unreachable_pub, reason = "shared with tracer/build.rs, which uses the rest")]
mod bpf_toolchain;
mod lab;
mod process;
mod setup;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

/// Development tasks of why502.
#[derive(Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask", version)]
struct Cli {
    #[command(subcommand)]
    task: Task,
}

#[derive(Subcommand)]
enum Task {
    /// Install what the build and the tests need, or say what is missing
    Setup(setup::Args),
    /// Run commands in guest kernels under QEMU
    Lab(lab::Args),
}

fn main() -> ExitCode {
    let done = match Cli::parse().task {
        Task::Setup(args) => setup::main(&args),
        Task::Lab(args) => lab::main(&args),
    };
    done.unwrap_or_else(|error| {
        eprintln!("xtask: {error:#}");
        ExitCode::FAILURE
    })
}
