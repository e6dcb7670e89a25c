//! Writing: lines are gathered into frames, frames go to a file.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, Write as _},
    os::unix::fs::OpenOptionsExt as _,
    path::{Path, PathBuf},
};

use super::{
    EXPANDED, FRAME, Header, LINE, NAME, SKIPPABLE, Then, WINDOW_LOG,
    line::{self, Written},
    preface,
};
use crate::report::Incident;

/// Compression level: 3 is Zstandard's own default.
const LEVEL: i32 = 3;

/// One compressed frame with its checksum.
pub(super) fn frame(lines: &[u8]) -> io::Result<Vec<u8>> {
    debug_assert!(lines.len() <= EXPANDED, "the reader would refuse it");
    let mut encoder = zstd::Encoder::new(Vec::with_capacity(lines.len() / 4), LEVEL)?;
    encoder.include_checksum(true)?;
    encoder.set_pledged_src_size(u64::try_from(lines.len()).ok())?;
    encoder.window_log(WINDOW_LOG.min(20))?;
    encoder.write_all(lines)?;
    encoder.finish()
}

/// The text of a line; an error if the reader would refuse it.
pub(super) fn bounded(line: &Written<'_>) -> io::Result<Vec<u8>> {
    let text = line::text(line)?;
    if text.len() > LINE {
        return Err(io::Error::other(format!(
            "an incident of {} bytes is too large to be recorded",
            text.len()
        )));
    }
    Ok(text)
}

/// How a file begins: what it is, and the header.
pub(super) fn beginning(header: &Header) -> io::Result<Vec<u8>> {
    let mut bytes = preface();
    bytes.extend(frame(&bounded(&Written::Header(header))?)?);
    Ok(bytes)
}

/// A whole recording of incidents with what is said of them now, that goes on elsewhere.
///
/// # Errors
/// If an incident is too large.
pub fn compose(header: &Header, incidents: &[Incident]) -> io::Result<Vec<u8>> {
    let mut bytes = beginning(header)?;
    let mut lines = Vec::new();
    for incident in incidents {
        let then = Then::from(&incident.verdict);
        lines.extend(bounded(&Written::Incident { then, incident })?);
        if lines.len() >= FRAME {
            bytes.extend(frame(&std::mem::take(&mut lines))?);
        }
    }
    lines.extend(bounded(&Written::Continued {})?);
    bytes.extend(frame(&lines)?);
    Ok(bytes)
}

/// True if a file is a recording, or empty, or not there: one that may be written over.
///
/// # Errors
/// If it cannot be read.
pub fn file_of_ours(path: &Path) -> io::Result<bool> {
    let mut begin = [0; 8 + NAME.len()];
    let file = match File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(true),
        Err(error) => return Err(error),
    };
    let mut read = 0;
    while let Some(room) = begin.get_mut(read..).filter(|room| !room.is_empty()) {
        match io::Read::read(&mut &file, room)? {
            0 => break,
            more => read += more,
        }
    }
    Ok(read == 0 || (begin.starts_with(&SKIPPABLE) && begin.ends_with(NAME)))
}

/// Makes a file for its owner alone: it holds what clients asked for.
pub(super) fn create(path: &Path) -> io::Result<File> {
    OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(path)
}

/// A recording under way, in one file, or in two of which the older is dropped.
#[derive(Debug)]
pub struct Writer {
    path: PathBuf,
    file: File,
    header: Header,
    /// Bytes of the file at which it is continued in another.
    most: Option<u64>,
    written: u64,
    lines: Vec<u8>,
    /// When the oldest line that is not written yet came, CLOCK_MONOTONIC ns.
    since_ns: u64,
}

/// How long a line may wait to be written, ns: what a killed run loses at most.
const WAIT_NS: u64 = 1_000_000_000;

impl Writer {
    /// Begins a recording; what was in the file is gone. `most`: bytes of it and of its older part (`FILE.1`) together.
    ///
    /// # Errors
    /// Those of the file system.
    pub fn begin(path: &Path, header: Header, most: Option<u64>) -> io::Result<Self> {
        let mut writer = Self {
            path: path.to_owned(),
            file: create(path)?,
            header,
            most: most.map(|most| most / 2),
            written: 0,
            lines: Vec::new(),
            since_ns: 0,
        };
        let begin = beginning(&writer.header)?;
        writer.put(&begin)?;
        Ok(writer)
    }

    fn put(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.file.write_all(bytes)?;
        self.written += bytes.len() as u64;
        Ok(())
    }

    /// Adds a line.
    pub(super) fn line(&mut self, line: &Written<'_>, now_ns: u64) -> io::Result<()> {
        let text = bounded(line)?;
        if self.lines.is_empty() {
            self.since_ns = now_ns;
        }
        self.lines.extend(text);
        if self.lines.len() >= FRAME { self.flush() } else { Ok(()) }
    }

    /// Writes what has waited long enough.
    ///
    /// # Errors
    /// Those of the file system.
    pub fn tick(&mut self, now_ns: u64) -> io::Result<()> {
        if self.waits() && now_ns.saturating_sub(self.since_ns) >= WAIT_NS { self.flush() } else { Ok(()) }
    }

    /// True if a line is not written yet.
    #[must_use]
    pub fn waits(&self) -> bool {
        !self.lines.is_empty()
    }

    /// Writes all lines.
    ///
    /// # Errors
    /// Those of the file system.
    pub fn flush(&mut self) -> io::Result<()> {
        if self.lines.is_empty() {
            return Ok(());
        }
        let compressed = frame(&std::mem::take(&mut self.lines))?;
        let full = |most: u64| self.written + compressed.len() as u64 > most;
        if self.most.is_some_and(full) {
            self.rotate()?;
        }
        self.put(&compressed)
    }

    /// Continues in a new file; the one so far becomes `FILE.1`.
    fn rotate(&mut self) -> io::Result<()> {
        let end = frame(&bounded(&Written::Continued {})?)?;
        self.put(&end)?;
        fs::rename(&self.path, older(&self.path))?;
        self.file = create(&self.path)?;
        self.written = 0;
        self.header.part += 1;
        let begin = beginning(&self.header)?;
        self.put(&begin)
    }
}

/// `FILE.1`.
fn older(path: &Path) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(".1");
    name.into()
}
