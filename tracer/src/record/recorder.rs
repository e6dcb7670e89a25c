//! What a run records, and where it goes. A recording that cannot go on ends; the run does not.

use std::{io, path::PathBuf, time::Duration};

use super::{Header, Keep, Then, Writer, line::Written, scrub::scrubbed};
use crate::{
    moment::Moment,
    report::{Incident, Summary},
};

/// After a match of `--cause` the flight recorder waits so long for what follows before it writes.
const AFTER_NS: u64 = 2_000_000_000;
/// From one file of the flight recorder that a match made to the next.
const BETWEEN_NS: u64 = 60_000_000_000;
/// Files that matches make in one run.
const MOST_FILES: u32 = 100;

/// Where a recording goes.
#[derive(Debug, Clone)]
pub struct Target {
    /// The file, or what the flight recorder's files are named after.
    pub path: PathBuf,
    /// Bytes at most, older part included.
    pub most: Option<u64>,
    /// The flight recorder's span.
    pub keep: Option<Duration>,
}

#[derive(Debug)]
enum Way {
    File(Writer),
    Keep(Keep),
    /// It could not go on.
    Ended,
}

/// The recording of a run.
#[derive(Debug)]
pub struct Recorder {
    way: Way,
    path: PathBuf,
    /// A match is to be written out then.
    due_ns: Option<u64>,
    last_file_ns: Option<u64>,
    files: u32,
    /// Something was not recorded.
    failed: bool,
}

/// Bytes that the flight recorder holds if nothing is said.
const HELD: u64 = 64 << 20;

impl Recorder {
    /// Begins.
    ///
    /// # Errors
    /// Those of the file system.
    pub fn begin(target: &Target, header: Header) -> io::Result<Self> {
        let way = match target.keep {
            Some(span) => Way::Keep(Keep::new(&target.path, header, span, target.most.unwrap_or(HELD))),
            None => Way::File(Writer::begin(&target.path, header, target.most)?),
        };
        Ok(Self { way, path: target.path.clone(), due_ns: None, last_file_ns: None, files: 0, failed: false })
    }

    /// True for a flight recorder: it records whatever fails, and what is asked for makes it write.
    #[must_use]
    pub fn keeps(&self) -> bool {
        matches!(self.way, Way::Keep(_))
    }

    /// True if something was not recorded.
    #[must_use]
    pub fn failed(&self) -> bool {
        self.failed
    }

    /// True if it is to be called again soon.
    #[must_use]
    pub fn waits(&self) -> bool {
        match &self.way {
            Way::File(writer) => writer.waits(),
            Way::Keep(_) => self.due_ns.is_some(),
            Way::Ended => false,
        }
    }

    /// Records an incident; `matched`: it is what `--cause` asks for. Says what went wrong.
    pub fn incident(&mut self, incident: &Incident, matched: bool, now_ns: u64) -> Vec<String> {
        let scrubbed = scrubbed(incident);
        let line = Written::Incident { then: Then::from(&incident.verdict), incident: &scrubbed };
        let done = match &mut self.way {
            Way::File(writer) => writer.line(&line, now_ns),
            Way::Keep(keep) => keep.line(&line, now_ns),
            Way::Ended => return Vec::new(),
        };
        if matched && self.keeps() && self.due_ns.is_none() && self.files < MOST_FILES {
            let next = self.last_file_ns.map_or(0, |last| last.saturating_add(BETWEEN_NS));
            self.due_ns = Some(next.max(now_ns.saturating_add(AFTER_NS)));
        }
        self.settle(done)
    }

    /// Time passes.
    pub fn tick(&mut self, now: Moment, now_ns: u64) -> Vec<String> {
        if self.due_ns.is_some_and(|due| due <= now_ns) {
            self.due_ns = None;
            self.files += 1;
            self.last_file_ns = Some(now_ns);
            let mut told = self.write_out(now, now_ns);
            if self.files == MOST_FILES {
                told.push(format!("{MOST_FILES} files were written for --cause: there will be no more"));
            }
            return told;
        }
        let done = match &mut self.way {
            Way::File(writer) => writer.tick(now_ns),
            Way::Keep(_) | Way::Ended => Ok(()),
        };
        self.settle(done)
    }

    /// Somebody asks for what there is (SIGUSR1).
    pub fn write_out(&mut self, now: Moment, now_ns: u64) -> Vec<String> {
        match &mut self.way {
            Way::File(writer) => {
                let done = writer.flush();
                self.settle(done)
            }
            Way::Keep(keep) if keep.is_empty() => {
                vec!["nothing has failed of late: no file was written".to_owned()]
            }
            Way::Keep(keep) => match keep.write_out(now, now_ns, None) {
                Ok(path) => vec![format!("the last minutes are in {}", path.display())],
                Err(error) => self.settle(Err(error)),
            },
            Way::Ended => Vec::new(),
        }
    }

    /// The run ends.
    pub fn end(&mut self, summary: &Summary) -> Vec<String> {
        let line = Written::Summary(summary);
        match &mut self.way {
            Way::File(writer) => {
                let done = writer.line(&line, summary.mono_ns).and_then(|()| writer.flush());
                self.settle(done)
            }
            Way::Keep(keep) => match keep.write_out(summary.time, summary.mono_ns, Some(&line)) {
                Ok(path) => vec![format!("the last minutes are in {}", path.display())],
                Err(error) => self.settle(Err(error)),
            },
            Way::Ended => Vec::new(),
        }
    }

    fn settle(&mut self, done: io::Result<()>) -> Vec<String> {
        let Err(error) = done else { return Vec::new() };
        self.failed = true;
        self.way = Way::Ended;
        self.due_ns = None;
        vec![format!("{}: recording ends here, the run goes on: {error}", self.path.display())]
    }
}
