//! A recording as the JSON lines that its run would have printed, for whatever reads those.

use std::io::{self, BufReader, Read};

use tracer::{
    record::{Entry, Reader},
    report::{Report as _, json::Json},
};

/// Reads as JSON lines, made as they are asked for. A recording that cannot be read to its end ends with an error.
pub(crate) struct Retold<R> {
    reader: Reader<R>,
    text: Vec<u8>,
    used: usize,
    ended: bool,
}

/// JSON lines of a recording.
pub(crate) fn retold<R: Read>(reader: Reader<R>) -> BufReader<Retold<R>> {
    BufReader::new(Retold { reader, text: Vec::new(), used: 0, ended: false })
}

impl<R: Read> Retold<R> {
    /// Makes the next line; false at the end.
    fn next(&mut self) -> io::Result<bool> {
        (self.text, self.used) = (Vec::new(), 0);
        match self.reader.entry() {
            Ok(Some(Entry::Incident(mut incident, _))) => {
                incident.explain();
                Json.incident(&mut self.text, &incident)?;
            }
            Ok(Some(Entry::Summary(summary))) => Json.summary(&mut self.text, &summary)?,
            Ok(Some(Entry::Continued) | None) => return Ok(false),
            Err(error) => return Err(io::Error::other(error)),
        }
        Ok(true)
    }
}

impl<R: Read> Read for Retold<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        while self.used >= self.text.len() {
            if self.ended || !self.next().inspect_err(|_| self.ended = true)? {
                self.ended = true;
                return Ok(0);
            }
        }
        let mut rest = self.text.get(self.used..).unwrap_or_default();
        let read = rest.read(buffer)?;
        self.used += read;
        Ok(read)
    }
}
