//! Reading: frames of bounded size, lines of known kinds.

use std::io;

use thiserror::Error;
use zstd::stream::raw::{Decoder, InBuffer, Operation as _, OutBuffer};

use super::{
    EXPANDED, Header, LINE, NAME, SKIPPABLE, Then, VERSION, WINDOW_LOG, ZSTANDARD, line::Read as Line,
};
use crate::report::{Incident, Summary};

/// Longest skippable frame that is skipped, bytes.
const SKIPPED: u64 = 64 << 10;
/// Bytes that are read at a time.
const BLOCK: usize = 64 << 10;

/// Why a recording cannot be read, or not to its end.
#[derive(Debug, Error)]
pub enum ReadError {
    /// Something else.
    #[error("this is no recording of why502: it does not begin like one")]
    NotOurs,
    /// Of a version that this program does not know.
    #[error(
        "this recording has format {0}, and this why502 reads formats up to {VERSION}: use a newer why502"
    )]
    TooNew(u32),
    /// The file ends too early.
    #[error("it is cut off at byte {at}: its run was killed, or its disk was full")]
    Cut {
        /// Bytes of the file that are whole.
        at: u64,
    },
    /// It was changed since it was written.
    #[error("it is damaged behind byte {at}: {why}")]
    Damaged {
        /// Bytes of the file that are whole.
        at: u64,
        /// What is wrong.
        why: String,
    },
    /// The file itself.
    #[error("cannot read it")]
    Io(#[from] io::Error),
}

/// What a recording holds behind its header.
#[derive(Debug)]
pub enum Entry {
    /// An incident without a verdict, and what was said of it then.
    Incident(Box<Incident>, Then),
    /// The run's end.
    Summary(Box<Summary>),
    /// The recording goes on in another file.
    Continued,
}

/// A recording that is being read.
pub struct Reader<R> {
    from: R,
    header: Header,
    /// Bytes of the file that have been read, and were whole frames.
    at: u64,
    /// Read and not used yet: a frame may end within a block.
    block: Vec<u8>,
    used: usize,
    /// Lines of the current frame.
    lines: Vec<u8>,
    line: usize,
    ended: bool,
}

impl<R: io::Read> Reader<R> {
    /// Reads the header.
    ///
    /// # Errors
    /// If it is no recording, or one that this version cannot read.
    pub fn open(from: R) -> Result<Self, ReadError> {
        let header = Header::none();
        let mut reader = Self {
            from,
            header,
            at: 0,
            block: Vec::new(),
            used: 0,
            lines: Vec::new(),
            line: 0,
            ended: false,
        };
        reader.preface()?;
        match reader.read()? {
            Some(Line::Header(header)) => reader.header = header,
            Some(_) => return Err(reader.damaged("it has no header")),
            None => return Err(ReadError::Cut { at: reader.at }),
        }
        Ok(reader)
    }

    /// What the run had to see with.
    pub fn header(&self) -> &Header {
        &self.header
    }

    /// The next entry; None behind the last. A recording whose run was not ended has no summary.
    ///
    /// # Errors
    /// If it is cut off or damaged here; there is nothing behind that.
    pub fn entry(&mut self) -> Result<Option<Entry>, ReadError> {
        if self.ended {
            return Ok(None);
        }
        let read = self.read().inspect_err(|_| self.ended = true)?;
        self.ended = read.is_none();
        match read {
            None => Ok(None),
            Some(Line::Incident { then, incident }) => Ok(Some(Entry::Incident(incident, then))),
            Some(Line::Summary(summary)) => Ok(Some(Entry::Summary(summary))),
            Some(Line::Continued {}) => Ok(Some(Entry::Continued)),
            Some(Line::Header(_)) => {
                self.ended = true;
                Err(self.damaged("it has a second header"))
            }
        }
    }

    fn damaged(&self, why: impl Into<String>) -> ReadError {
        ReadError::Damaged { at: self.at, why: why.into() }
    }

    fn preface(&mut self) -> Result<(), ReadError> {
        let mut head = [0; 8];
        self.exactly(&mut head).map_err(|_| ReadError::NotOurs)?;
        let (magic, length) = head.split_at(4);
        let length = length.first_chunk::<4>().copied().map_or(0, u32::from_le_bytes);
        let mut text = vec![0; usize::try_from(length).unwrap_or(usize::MAX).min(64)];
        if magic != SKIPPABLE || length > 64 || self.exactly(&mut text).is_err() {
            return Err(ReadError::NotOurs);
        }
        let digits = text.strip_prefix(NAME).and_then(|rest| rest.strip_suffix(b"\n"));
        let version = digits.and_then(|digits| std::str::from_utf8(digits).ok()?.parse::<u32>().ok());
        self.at = 8 + u64::from(length);
        match version {
            Some(1..=VERSION) => Ok(()),
            Some(version) if version > VERSION => Err(ReadError::TooNew(version)),
            _ => Err(ReadError::NotOurs),
        }
    }

    /// The next line.
    fn read(&mut self) -> Result<Option<Line>, ReadError> {
        loop {
            let rest = self.lines.get(self.line..).unwrap_or_default();
            if rest.is_empty() {
                if !self.frame()? {
                    return Ok(None);
                }
                continue;
            }
            let Some(length) = rest.iter().position(|byte| *byte == b'\n') else {
                return Err(self.damaged("a line does not end"));
            };
            let text = rest.get(..length).unwrap_or_default();
            if length > LINE {
                return Err(self.damaged("a line is too long"));
            }
            let line = serde_json::from_slice(text);
            self.line += length + 1;
            return match line {
                Ok(line) => Ok(Some(line)),
                Err(error) => Err(self.damaged(format!("a line cannot be understood: {error}"))),
            };
        }
    }

    /// Reads the next frame's lines; false at the end of the file.
    fn frame(&mut self) -> Result<bool, ReadError> {
        loop {
            let mut magic = [0; 4];
            match self.upto(&mut magic)? {
                0 => return Ok(false),
                4 => {}
                _ => return Err(ReadError::Cut { at: self.at }),
            }
            if magic == ZSTANDARD {
                return self.expand(magic).map(|()| true);
            }
            let [low, rest @ ..] = magic;
            let [first, others @ ..] = SKIPPABLE;
            if rest != others || low & 0xf0 != first & 0xf0 {
                return Err(self.damaged("no frame begins there"));
            }
            let mut length = [0; 4];
            self.exactly(&mut length)?;
            let length = u64::from(u32::from_le_bytes(length));
            if length > SKIPPED {
                return Err(self.damaged("a frame is too large"));
            }
            let mut skipped = vec![0; usize::try_from(length).unwrap_or(0)];
            self.exactly(&mut skipped)?;
            self.at += 8 + length;
        }
    }

    /// Expands the frame behind the magic number that was read.
    fn expand(&mut self, magic: [u8; 4]) -> Result<(), ReadError> {
        let mut decoder = Decoder::new()?;
        decoder.set_parameter(zstd::stream::raw::DParameter::WindowLogMax(WINDOW_LOG))?;
        let mut lines = Vec::new();
        let mut out = vec![0; BLOCK];
        let mut length = 4_u64;
        let mut pending: Vec<u8> = magic.to_vec();
        loop {
            if pending.is_empty() && !self.fill()? {
                return Err(ReadError::Cut { at: self.at });
            }
            let from_block = pending.is_empty();
            let source: &[u8] =
                if from_block { self.block.get(self.used..).unwrap_or_default() } else { &pending };
            let mut input = InBuffer::around(source);
            let mut output = OutBuffer::around(&mut out[..]);
            let hint = decoder.run(&mut input, &mut output);
            let (consumed, written) = (input.pos(), output.pos());
            let hint = match hint {
                Ok(hint) => hint,
                Err(error) => return Err(self.damaged(error.to_string())),
            };
            if from_block {
                self.used += consumed;
                length += consumed as u64;
            } else {
                pending.drain(..consumed);
            }
            lines.extend_from_slice(out.get(..written).unwrap_or_default());
            if lines.len() > EXPANDED {
                return Err(self.damaged("a frame is larger than any that why502 writes"));
            }
            if hint == 0 {
                break;
            }
        }
        self.at += length;
        (self.lines, self.line) = (lines, 0);
        Ok(())
    }

    /// Has at least one unused byte in the block; false at the end of the file.
    fn fill(&mut self) -> io::Result<bool> {
        if self.used < self.block.len() {
            return Ok(true);
        }
        self.block.resize(BLOCK, 0);
        self.used = 0;
        let read = loop {
            match self.from.read(&mut self.block) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                other => break other,
            }
        };
        self.block.truncate(read.as_ref().copied().unwrap_or(0));
        read.map(|read| read > 0)
    }

    /// Reads until the buffer is full or the file ends.
    fn upto(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let mut done = 0;
        while done < buffer.len() && self.fill()? {
            let from = self.block.get(self.used..).unwrap_or_default();
            let to = buffer.get_mut(done..).unwrap_or_default();
            let count = from.len().min(to.len());
            to.iter_mut().zip(from).for_each(|(to, from)| *to = *from);
            self.used += count;
            done += count;
        }
        Ok(done)
    }

    fn exactly(&mut self, buffer: &mut [u8]) -> Result<(), ReadError> {
        if self.upto(buffer)? == buffer.len() { Ok(()) } else { Err(ReadError::Cut { at: self.at }) }
    }
}
