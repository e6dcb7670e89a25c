//! The output of `nginx -T`: every file of a configuration behind a line `# configuration file PATH:`.

use std::{
    ffi::OsStr,
    io,
    os::unix::ffi::OsStrExt,
    path::{Path, PathBuf},
};

use super::{Files, glob};

const MARK: &[u8] = b"# configuration file ";

/// The files of a dump, the main file first.
#[derive(Debug, Clone)]
pub struct Dump {
    main: PathBuf,
    rest: Vec<(PathBuf, Vec<u8>)>,
    main_bytes: Vec<u8>,
}

impl Dump {
    /// Splits a dump; `None` when the bytes are none. Lines in front of the first mark (nginx's messages on
    /// stderr) are skipped. A comment that looks like a mark cannot be told from one.
    pub fn parse(bytes: &[u8]) -> Option<Self> {
        let mut files: Vec<(PathBuf, Vec<u8>)> = Vec::new();
        for line in bytes.split_inclusive(|byte| *byte == b'\n') {
            let mark = line.strip_prefix(MARK).and_then(|rest| rest.trim_ascii_end().strip_suffix(b":"));
            match (mark, files.last_mut()) {
                (Some(path), _) => files.push((PathBuf::from(OsStr::from_bytes(path)), Vec::new())),
                (None, Some((_, contents))) => contents.extend_from_slice(line),
                (None, None) => {}
            }
        }
        // nginx writes a line break behind each file.
        for (_, contents) in &mut files {
            if contents.last() == Some(&b'\n') {
                contents.pop();
            }
        }
        Self::of(files)
    }

    /// A dump of these files, the main file first; `None` without any.
    pub fn of(files: Vec<(PathBuf, Vec<u8>)>) -> Option<Self> {
        let mut files = files.into_iter();
        let (main, main_bytes) = files.next()?;
        Some(Self { main, main_bytes, rest: files.collect() })
    }

    /// The main file: what [`Source`](super::Source) needs.
    pub fn main(&self) -> &Path {
        &self.main
    }

    /// All files with their texts.
    pub fn files(&self) -> impl Iterator<Item = (&Path, &[u8])> {
        let rest = self.rest.iter().map(|(path, bytes)| (path.as_path(), bytes.as_slice()));
        std::iter::once((self.main.as_path(), self.main_bytes.as_slice())).chain(rest)
    }
}

impl Files for Dump {
    fn read(&self, path: &Path) -> io::Result<Vec<u8>> {
        if path == self.main {
            return Ok(self.main_bytes.clone());
        }
        let found = self.rest.iter().find(|(name, _)| name == path);
        found.map(|(_, contents)| contents.clone()).ok_or_else(|| io::ErrorKind::NotFound.into())
    }

    fn glob(&self, pattern: &Path) -> io::Result<Vec<PathBuf>> {
        let names = self.rest.iter().map(|(name, _)| name);
        let mut found: Vec<_> = names.filter(|name| glob::matches_path(pattern, name)).cloned().collect();
        found.sort_unstable();
        found.dedup();
        Ok(found)
    }
}
