//! Layer 2, throughput: requests a second with and without, in pairs. Reported, never gated: what this
//! layer can tell apart is shown by its A/A row.

use std::time::{Duration, Instant};

use anyhow::Result;
use serde::Serialize;

use super::bpf::{Empty, Hook};
use super::site::Site;
use super::system;
use super::watcher::{Subject, Watcher};
use super::{Shape, median};

/// Pairs in which others used more than this are rejected, in CPUs.
const FOREIGN_LIMIT: f64 = 0.10;
/// Gives up on quiet pairs after so many times the wanted number.
const PATIENCE: usize = 3;

/// What is compared with nothing.
#[derive(Debug, Clone, Copy)]
enum Mode {
    Nothing,
    Empty,
    Why502,
}

impl Mode {
    const ALL: [Mode; 3] = [Mode::Nothing, Mode::Empty, Mode::Why502];

    fn name(self) -> &'static str {
        match self {
            Mode::Nothing => "A/A (nothing)",
            Mode::Empty => "empty programs",
            Mode::Why502 => "why502",
        }
    }
}

/// One row.
#[derive(Debug, Serialize)]
pub(crate) struct Row {
    pub(crate) shape: &'static str,
    pub(crate) mode: &'static str,
    /// Requests a second without, median.
    pub(crate) off: f64,
    /// Ratio with ÷ without: median, least, most of the accepted pairs.
    pub(crate) ratio: Option<[f64; 3]>,
    pub(crate) accepted: usize,
    pub(crate) rejected: usize,
    /// The ratio of the rejected pairs, median: worth a look only if too few were accepted.
    pub(crate) rejected_ratio: Option<f64>,
}

/// A window's requests a second, and the CPUs that others used.
struct Window {
    rate: f64,
    foreign: f64,
}

/// What keeps a mode in force.
enum Attached {
    None,
    #[expect(dead_code, reason = "held for its Drop: the programs stay attached")]
    Empty(Vec<Empty>),
    Why502(Watcher),
}

/// Measures a shape in every mode.
pub(crate) fn measure(
    program: &Subject,
    site: &Site,
    shape: Shape,
    hooks: &[Hook],
    pairs: usize,
    seconds: u32,
) -> Result<Vec<Row>> {
    site.wrk(shape.path(), 1)?;
    let mut rows = Vec::new();
    for mode in Mode::ALL {
        let mut off = Vec::new();
        let (mut accepted, mut rejected) = (Vec::new(), Vec::new());
        while accepted.len() < pairs && accepted.len() + rejected.len() < PATIENCE * pairs {
            // A B B A: a drift of the machine's speed meets both sides alike.
            let first = window(site, shape, seconds, &Attached::None)?;
            let attached = attach(program, site, mode, hooks)?;
            let second = window(site, shape, seconds, &attached)?;
            let third = window(site, shape, seconds, &attached)?;
            if let Attached::Why502(watcher) = attached {
                watcher.finish()?;
            } else {
                drop(attached);
            }
            let fourth = window(site, shape, seconds, &Attached::None)?;
            for (a, b) in [(first, second), (fourth, third)] {
                let quiet = a.foreign <= FOREIGN_LIMIT && b.foreign <= FOREIGN_LIMIT;
                let list = if quiet { &mut accepted } else { &mut rejected };
                list.push(b.rate / a.rate.max(1.0));
                off.push(a.rate);
            }
        }
        accepted.sort_by(f64::total_cmp);
        let ends = accepted.first().copied().zip(accepted.last().copied());
        let ratio = ends.map(|(least, most)| [median(&mut accepted.clone()), least, most]);
        rows.push(Row {
            shape: shape.name(),
            mode: mode.name(),
            off: median(&mut off),
            ratio,
            accepted: accepted.len(),
            rejected: rejected.len(),
            rejected_ratio: (!rejected.is_empty()).then(|| median(&mut rejected)),
        });
    }
    Ok(rows)
}

fn attach(program: &Subject, site: &Site, mode: Mode, hooks: &[Hook]) -> Result<Attached> {
    Ok(match mode {
        Mode::Nothing => Attached::None,
        Mode::Empty => Attached::Empty(hooks.iter().map(Empty::attach).collect::<Result<_>>()?),
        Mode::Why502 => Attached::Why502(Watcher::start(program, site.master(), false)?),
    })
}

fn window(site: &Site, shape: Shape, seconds: u32, attached: &Attached) -> Result<Window> {
    let ours = || -> Duration {
        let watcher = match attached {
            Attached::Why502(watcher) => system::cpu_time(watcher.pid()).unwrap_or_default(),
            Attached::None | Attached::Empty(_) => Duration::ZERO,
        };
        system::own_and_ended_children() + site.cpu_time() + watcher
    };
    let (machine, before, begin) = (system::machine()?, ours(), Instant::now());
    let load = site.wrk(shape.path(), seconds)?;
    let (machine_after, after, elapsed) = (system::machine()?, ours(), begin.elapsed().as_secs_f64());
    let busy = machine_after.busy - machine.busy;
    let foreign =
        (busy - after.saturating_sub(before).as_secs_f64()).max(0.0) + machine_after.steal - machine.steal;
    Ok(Window { rate: load.rate, foreign: foreign / elapsed })
}
