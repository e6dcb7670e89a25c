//! `cargo xtask`: development tasks of why502. Parses, dispatches, turns an error into an exit code.
#![expect(clippy::print_stdout, reason = "a development tool: what it finds goes to stdout")]

mod bench;
mod binaries;
#[expect(dead_code, unreachable_pub, reason = "shared with tracer/build.rs, which uses the rest")]
mod bpf_toolchain;
mod demo;
mod fuzz;
mod lab;
mod process;
mod recordings;
mod records;
mod setup;
mod signals;
mod test;

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
    /// Show why502 at work: a real nginx with broken upstreams, in a network of its own
    Demo(demo::Args),
    /// The part of `demo` that runs in the network namespace
    #[command(hide = true)]
    DemoInside(demo::InsideArgs),
    /// Run all tests: formatting, lints, units, and the fault lab here and in guest kernels
    Test(test::Args),
    /// Run commands in guest kernels under QEMU
    Lab(lab::Args),
    /// Look for inputs that break whatever reads what others wrote
    Fuzz(fuzz::Args),
    /// Collect raw records from kernels, for the tests of the decoder
    Records(records::Args),
    /// Record the cases of the fault lab anew, here and in guest kernels, for the tests that replay them
    Recordings(recordings::Args),
    /// Measure what why502 costs: kernel time per connection, memory, throughput
    Bench(bench::Args),
}

fn main() -> ExitCode {
    let done = match Cli::parse().task {
        Task::Setup(args) => setup::main(&args),
        Task::Demo(args) => demo::main(&args),
        Task::DemoInside(args) => demo::inside(&args),
        Task::Test(args) => test::main(&args),
        Task::Lab(args) => lab::main(&args),
        Task::Fuzz(args) => fuzz::main(&args),
        Task::Records(args) => records::main(&args),
        Task::Recordings(args) => recordings::main(&args),
        Task::Bench(args) => bench::main(&args),
    };
    done.unwrap_or_else(|error| {
        eprintln!("xtask: {error:#}");
        ExitCode::FAILURE
    })
}
