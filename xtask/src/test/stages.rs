//! The table of stages.

use anyhow::Result;

use super::{Counts, Session, cargo, guests, live};
use crate::lab;
use crate::setup::{self, Purpose};

/// One stage.
pub(super) struct Stage {
    pub(super) name: &'static str,
    pub(super) about: &'static str,
    /// Stages without which it makes no sense.
    pub(super) needs: &'static [&'static str],
    /// It needs root.
    pub(super) root: bool,
    /// It boots guest kernels.
    pub(super) guest: bool,
    pub(super) run: fn(&mut Session) -> Result<Counts>,
}

const STAGE: Stage = Stage {
    name: "",
    about: "",
    needs: &["setup"],
    root: false,
    guest: false,
    run: |_| Ok(Counts::default()),
};
const LIVE: Stage = Stage { needs: &["build"], root: true, ..STAGE };

/// In their order: what is quick and fails often comes first.
#[rustfmt::skip] // a table
pub(super) const STAGES: &[Stage] = &[
    Stage { name: "setup", about: "what the tests need is here", needs: &[], run: set_up, ..STAGE },
    Stage { name: "nginx", about: "a current nginx beside the installed one", run: nginx, ..STAGE },
    Stage { name: "fmt", about: "cargo fmt --check", run: cargo::fmt, ..STAGE },
    Stage { name: "clippy", about: "cargo clippy, warnings denied", run: cargo::clippy, ..STAGE },
    Stage { name: "unit", about: "cargo test: units, command line, golden data", run: cargo::unit, ..STAGE },
    Stage { name: "fuzz", about: "every fuzz target, a fixed number of inputs from its seeds", run: cargo::fuzz, ..STAGE },
    Stage { name: "build", about: "release build of why502 and the fault lab", run: cargo::build, ..STAGE },
    Stage { name: "live", about: "the fault lab on this kernel", run: live::cases, ..LIVE },
    Stage { name: "check", about: "what check finds in every case before its first request", run: live::check, ..LIVE },
    Stage { name: "healthy", about: "very many healthy requests, not a word", run: live::healthy, ..LIVE },
    Stage { name: "leak", about: "very many failed connections, nothing left in the maps", run: live::leak, ..LIVE },
    Stage { name: "older", about: "connections that stand when why502 starts", run: live::older, ..LIVE },
    Stage { name: "requests", about: "very many requests of many kinds, none taken for another", run: live::requests, ..LIVE },
    Stage { name: "uprobes", about: "the same with all uprobes, and with none: nginx's memory alone", run: live::uprobes, ..LIVE },
    Stage { name: "chaos", about: "backends that fail at random: nginx's own logs and the incidents, one to one", run: live::chaos, ..LIVE },
    Stage { name: "guests", about: "the fault lab in guest kernels, on every tier", needs: &["build"], guest: true,
            run: guests::run, ..STAGE },
];

fn set_up(session: &mut Session) -> Result<Counts> {
    let purposes: &[Purpose] =
        if session.host_only { &[Purpose::Build, Purpose::Test] } else { &[Purpose::All] };
    setup::ensure(purposes, session.no_install)?;
    Ok(Counts::one_passed())
}

/// Without it the fault lab skips its cases by name, and the tests of the configuration ask the installed one alone.
fn nginx(session: &mut Session) -> Result<Counts> {
    Ok(match lab::current_nginx(session.no_install) {
        Ok(nginx) => {
            println!("nginx {} in {}", nginx.version, nginx.dir.display());
            Counts::one_passed()
        }
        Err(error) => {
            println!("skip all tests with a current nginx: {error:#}");
            Counts::one_skipped()
        }
    })
}
