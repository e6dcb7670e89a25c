//! A flight recorder: the last minutes are held in memory, and written out when somebody asks.

use std::{
    collections::VecDeque,
    fs,
    io::{self, Write as _},
    path::{Path, PathBuf},
    time::Duration,
};

use super::{
    FRAME, Header,
    line::Written,
    write::{beginning, bounded, create, frame},
};
use crate::moment::Moment;

/// A frame, and when its last line came, CLOCK_MONOTONIC ns.
#[derive(Debug)]
struct Held {
    frame: Vec<u8>,
    last_ns: u64,
}

/// The last minutes, compressed as they will be in the file.
#[derive(Debug)]
pub struct Keep {
    path: PathBuf,
    header: Header,
    span_ns: u64,
    most: u64,
    held: VecDeque<Held>,
    bytes: u64,
    lines: Vec<u8>,
    last_ns: u64,
}

impl Keep {
    /// Holds what is younger than `span`, in at most so many bytes. Files are named after `path`.
    #[must_use]
    pub fn new(path: &Path, header: Header, span: Duration, most: u64) -> Self {
        Self {
            path: path.to_owned(),
            header,
            span_ns: u64::try_from(span.as_nanos()).unwrap_or(u64::MAX),
            most,
            held: VecDeque::new(),
            bytes: 0,
            lines: Vec::new(),
            last_ns: 0,
        }
    }

    /// Adds a line.
    pub(super) fn line(&mut self, line: &Written<'_>, now_ns: u64) -> io::Result<()> {
        self.lines.extend(bounded(line)?);
        self.last_ns = now_ns;
        if self.lines.len() >= FRAME {
            self.close()?;
        }
        self.forget(now_ns);
        Ok(())
    }

    /// Makes a frame of the lines so far.
    fn close(&mut self) -> io::Result<()> {
        if !self.lines.is_empty() {
            let frame = frame(&std::mem::take(&mut self.lines))?;
            self.bytes += frame.len() as u64;
            self.held.push_back(Held { frame, last_ns: self.last_ns });
        }
        Ok(())
    }

    /// Drops what is too old, and the oldest of what is too much.
    fn forget(&mut self, now_ns: u64) {
        while let Some(oldest) = self.held.front() {
            let old = now_ns.saturating_sub(oldest.last_ns) > self.span_ns;
            if !old && self.bytes <= self.most {
                break;
            }
            self.bytes -= oldest.frame.len() as u64;
            self.held.pop_front();
        }
    }

    /// True if nothing is held.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.held.is_empty() && self.lines.is_empty()
    }

    /// Writes what is held to a file of its own, whose name ends with the moment in UTC, and forgets it. `end`: the line that
    /// ends the run.
    pub(super) fn write_out(
        &mut self,
        now: Moment,
        now_ns: u64,
        end: Option<&Written<'_>>,
    ) -> io::Result<PathBuf> {
        if let Some(end) = end {
            self.line(end, now_ns)?;
        }
        self.close()?;
        self.forget(now_ns);
        let path = free_name(&self.path, now);
        let mut file = create(&path)?;
        file.write_all(&beginning(&self.header)?)?;
        for held in &self.held {
            file.write_all(&held.frame)?;
        }
        if end.is_none() {
            file.write_all(&frame(&bounded(&Written::Continued {})?)?)?;
        }
        self.held.clear();
        self.bytes = 0;
        Ok(path)
    }
}

/// `FILE-20261130T081502Z`, with a number behind it if that is taken.
fn free_name(path: &Path, now: Moment) -> PathBuf {
    let stamp: String = now.rfc3339().chars().filter(|c| !matches!(c, '-' | ':')).collect();
    let stamp = stamp.split('.').next().unwrap_or_default();
    let named = |number: u32| {
        let mut name = path.as_os_str().to_owned();
        name.push(format!("-{stamp}Z"));
        if number > 1 {
            name.push(format!("-{number}"));
        }
        PathBuf::from(name)
    };
    let taken = |path: &PathBuf| fs::symlink_metadata(path).is_ok();
    (1..1000).map(named).find(|path| !taken(path)).unwrap_or_else(|| named(1000))
}
