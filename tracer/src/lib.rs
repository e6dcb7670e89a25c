//! why502: explains every failed upstream connection of a live nginx from kernel evidence.
//!
//! The program is `main.rs`; this library holds everything else, so that tests, benchmarks and fuzzers reach
//! it. ARCHITECTURE.md is the map.

pub mod audit;
pub mod check;
pub mod correlate;
pub mod diagnose;
pub mod errlog;
pub mod event;
pub mod firewall;
pub mod moment;
pub mod nginx;
pub mod plain;
pub mod probes;
pub mod record;
pub mod report;
pub mod selinux;
pub mod session;
pub mod sys;
