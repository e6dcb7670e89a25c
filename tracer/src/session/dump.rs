//! Records as the kernel side sends them, in a file: what the tests of the decoder are fed (`cargo xtask records`).

use std::{fs::File, io::Write as _, path::Path};

use anyhow::{Context as _, Result};

/// A file that grows by one record at a time.
pub(super) struct Dump(File);

impl Dump {
    /// Creates the file, or empties it.
    ///
    /// # Errors
    /// If it cannot be written.
    pub(super) fn create(path: &Path) -> Result<Self> {
        Ok(Self(File::create(path).with_context(|| format!("cannot write {}", path.display()))?))
    }

    /// Adds a record behind its length, with one write: whoever is killed leaves whole ones.
    ///
    /// # Errors
    /// Those of the file.
    pub(super) fn add(&mut self, record: &[u8]) -> Result<()> {
        let len = u32::try_from(record.len()).context("a record of 4 GiB")?;
        let framed = [&len.to_le_bytes(), record].concat();
        self.0.write_all(&framed).context("cannot write to the file of --dump-records")
    }
}
