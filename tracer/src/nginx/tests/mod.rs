//! Tests of the nginx module. Configurations are given as texts through [`Memory`].

mod choice;
mod inheritance;
mod live;
mod locate;
mod model;
mod oracle;
mod place;
mod places;
mod process;
mod settings;
mod syntax;
mod versions;

use std::{
    collections::BTreeMap,
    io,
    path::{Path, PathBuf},
};

use super::{Config, Error, Files, Source, glob, parse};

/// Files that exist in memory only.
#[derive(Default)]
struct Memory(BTreeMap<PathBuf, Vec<u8>>);

impl Memory {
    fn new(files: &[(&str, &str)]) -> Self {
        Self(files.iter().map(|(path, text)| (PathBuf::from(path), text.as_bytes().to_vec())).collect())
    }
}

impl Files for Memory {
    fn read(&self, path: &Path) -> io::Result<Vec<u8>> {
        self.0.get(path).cloned().ok_or_else(|| io::ErrorKind::NotFound.into())
    }

    fn glob(&self, pattern: &Path) -> io::Result<Vec<PathBuf>> {
        Ok(self.0.keys().filter(|path| glob::matches_path(pattern, path)).cloned().collect())
    }
}

const MAIN: &str = "/etc/nginx/nginx.conf";

pub(super) fn read(text: impl AsRef<[u8]>) -> Result<Config, Error> {
    let files = Memory([(PathBuf::from(MAIN), text.as_ref().to_vec())].into());
    parse(&files, Source::new(Path::new(MAIN)))
}

/// A small deterministic source of choices (xorshift64).
struct Random(u64);

impl Random {
    fn below(&mut self, end: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        usize::try_from(self.0 % end.max(1) as u64).unwrap()
    }

    /// Damages a text in one to three places.
    fn mutate(&mut self, text: &[u8]) -> Vec<u8> {
        let mut text = text.to_vec();
        for _ in 0..=self.below(3) {
            let at = self.below(text.len());
            let pieces: [&[u8]; 20] = [
                b";", b"{", b"}", b"\"", b"'", b"#", b"\\", b"$", b"${", b" ", b"\n", b"\t", b"\r\n", b")",
                b"(", b"\xff", b"\\\"", b"\\n", b"''", b"# x\n",
            ];
            match self.below(10) {
                0..3 => {
                    // White space and comments where some stand already change nothing.
                    let to =
                        text[at..].iter().position(|byte| *byte == b' ').map_or(at, |offset| at + offset);
                    let pieces: [&[u8]; 4] = [b"\n", b"\t ", b"\r\n", b" # { \" ' ; \\\n"];
                    text.splice(to..to, pieces[self.below(pieces.len())].iter().copied());
                }
                3..6 => {
                    let piece = pieces[self.below(pieces.len())];
                    text.splice(at..at, piece.iter().copied());
                }
                6 => {
                    text.remove(at);
                }
                7 => text.truncate(at.max(1)),
                8 => {
                    let end = (at + self.below(40)).min(text.len());
                    let copy = text[at..end].to_vec();
                    let to = self.below(text.len());
                    text.splice(to..to, copy);
                }
                _ => {
                    let length = 4080 + self.below(30);
                    let byte = [b'a', b' ', b'#'][self.below(3)];
                    text.splice(at..at, std::iter::repeat_n(byte, length));
                }
            }
        }
        text
    }
}

/// What can be read of one file.
fn partial(text: &str) -> (Config, Vec<Error>) {
    super::parse_partial(&Memory::new(&[(MAIN, text)]), Source::new(Path::new(MAIN)))
}

/// How much longer a test that generates its cases runs than usual: `WHY502_LONG=1` makes it a hundred times.
fn long() -> usize {
    if std::env::var_os("WHY502_LONG").is_some() { 100 } else { 1 }
}

/// Where a test that generates its cases begins: always the same, unless `WHY502_SEED` gives a number.
fn seed(own: u64) -> u64 {
    let wanted: Option<u64> = std::env::var("WHY502_SEED").ok().and_then(|text| text.parse().ok());
    own ^ wanted.unwrap_or(0).wrapping_mul(0x9e37_79b9_7f4a_7c15)
}
