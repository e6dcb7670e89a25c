//! The real program from outside: exit codes, messages, streams, signals, terminals.
//!
//! Live tests need root, BPF and nginx, and say so when they skip. Each has an nginx of its own in a network
//! namespace of its own and watches that one alone (`-p`), so that they run side by side.

#![expect(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking, in its helpers as well")]

#[path = "cli/audit.rs"]
mod audit;
#[path = "cli/check.rs"]
mod check;
#[path = "cli/config.rs"]
mod config;
#[path = "cli/incidents.rs"]
mod incidents;
#[path = "cli/kernels.rs"]
mod kernels;
#[path = "cli/nginx.rs"]
mod nginx;
#[path = "cli/program.rs"]
mod program;
#[path = "cli/recordings.rs"]
mod recordings;
#[path = "cli/refusals.rs"]
mod refusals;
#[path = "cli/streams.rs"]
mod streams;
#[path = "cli/terminal.rs"]
mod terminal;
#[path = "cli/usage.rs"]
mod usage;
