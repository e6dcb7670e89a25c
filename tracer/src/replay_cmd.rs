//! `why502 replay`: a recording, told as its run was told. Needs no privileges and no nginx.

use std::{collections::BTreeMap, fs::File, io::Write, path::Path, process::ExitCode};

use anyhow::{Context as _, Result};

use crate::{
    cli::{Format, Replay},
    run::{DONE, INCIDENTS, INCOMPLETE, output, report_for},
};
use tracer::{
    diagnose::Cause,
    record::{Entry, Reader, Then},
    report::{Incident, Report, Summary, diff, plural},
    session::complain,
};

/// What has been told so far.
#[derive(Default)]
struct Told {
    /// By cause.
    incidents: BTreeMap<Cause, u64>,
    /// Of which today's rules say something else.
    differ: u64,
    all: u64,
    summary: Option<Summary>,
    /// A file could not be read to its end.
    broken: bool,
}

impl Told {
    fn count(&self) -> u64 {
        self.incidents.values().sum()
    }
}

/// Tells a recording. Exits with 4 if it is cut off or damaged, or if its run had lost events.
pub(crate) fn run(options: &Replay) -> Result<ExitCode> {
    let mut report = report_for(options.output);
    let mut out = output(options.output, options.color);
    let mut told = Told::default();
    let select = options.select.with_pids(&options.pids);
    for file in &options.files {
        tell(file, options, &mut *report, &mut *out, &mut told)?;
    }
    let lost = match told.summary.take() {
        Some(mut summary) => {
            if !select.is_empty() || options.count.is_some() {
                summary.incidents = std::mem::take(&mut told.incidents);
            }
            if !select.causes.is_empty() {
                summary.ask(&select.causes);
            }
            if !options.diff {
                report.summary(&mut *out, &summary).context("cannot write to stdout")?;
            }
            summary.lost() > 0
        }
        None => {
            if !told.broken {
                complain(&[
                    "the recording has no end: its run was killed, or goes on in another file".to_owned()
                ]);
            }
            true
        }
    };
    if options.diff {
        let same = told.all - told.differ;
        complain(&[format!(
            "{} of {} would be told otherwise today, {same} as then",
            told.differ,
            plural(usize::try_from(told.all).unwrap_or(usize::MAX), "incident")
        )]);
    }
    let found = if options.diff { told.differ } else { told.all };
    Ok(ExitCode::from(if told.broken || lost {
        INCOMPLETE
    } else if options.exit_code && found > 0 {
        INCIDENTS
    } else {
        DONE
    }))
}

fn tell(
    path: &Path,
    options: &Replay,
    report: &mut dyn Report,
    out: &mut dyn Write,
    told: &mut Told,
) -> Result<()> {
    let file = File::open(path).with_context(|| format!("cannot open {}", path.display()))?;
    let mut reader = Reader::open(file).with_context(|| format!("cannot replay {}", path.display()))?;
    let select = options.select.with_pids(&options.pids);
    let mut here = 0_u64;
    loop {
        if options.count.is_some_and(|most| told.count() >= most && told.summary.is_some()) {
            return Ok(());
        }
        match reader.entry() {
            Ok(Some(Entry::Incident(mut incident, then))) => {
                here += 1;
                incident.explain();
                let full = options.count.is_some_and(|most| told.count() >= most);
                if full || !select.matches(&incident) {
                    continue;
                }
                told.all += 1;
                *told.incidents.entry(incident.verdict.cause).or_default() += incident.attempts();
                let written = if options.diff {
                    differ(out, options.output, &incident, &then, told)
                } else {
                    report.tick(out, incident.shown_ns).and_then(|()| report.incident(out, &incident))
                };
                written.context("cannot write to stdout")?;
            }
            Ok(Some(Entry::Summary(summary))) => told.summary = Some(*summary),
            Ok(Some(Entry::Continued) | None) => return Ok(()),
            Err(error) => {
                told.broken = true;
                let count = plural(usize::try_from(here).unwrap_or(usize::MAX), "incident");
                complain(&[format!("{}: {error}; {count} could be read before that", path.display())]);
                return Ok(());
            }
        }
    }
}

fn differ(
    out: &mut dyn Write,
    format: Format,
    incident: &Incident,
    then: &Then,
    told: &mut Told,
) -> std::io::Result<()> {
    let now = Then::from(&incident.verdict);
    if *then == now {
        return Ok(());
    }
    told.differ += 1;
    match format {
        Format::Json => diff::json(out, incident, then, &now),
        Format::Text => diff::text(out, incident, then, &now),
    }
}
