//! Recordings: incidents as the complete cases that their verdicts were made of, in a file and back.
//!
//! A recording is a Zstandard file: a skippable frame that names format and version, then frames of JSON lines, each with
//! its checksum. `zstdcat FILE` shows it. The first line is the [`Header`], the last one the summary. Nothing of the kernel
//! side's records is in it, so that it outlives them; its types are those of `correlate`, whose new fields must be optional
//! or have a default.
//!
//! Reading is bounded in memory and total: a recording may come from anybody.

mod keep;
mod line;
mod read;
mod recorder;
mod scrub;
mod write;

#[cfg(test)]
mod tests;

pub use keep::Keep;
pub use line::{Header, Hook, Master, Then};
pub use read::{Entry, ReadError, Reader};
pub use recorder::{Recorder, Target};
pub use write::{Writer, compose, file_of_ours};

/// The version that this program writes, and the newest that it reads.
pub const VERSION: u32 = 1;

/// What a recording begins with, inside a skippable frame (RFC 8878, 3.1.2), before its version.
const NAME: &[u8] = b"why502-recording ";
/// Magic number of the skippable frame that is used.
const SKIPPABLE: [u8; 4] = 0x184D_2A57_u32.to_le_bytes();
/// Magic number of a Zstandard frame.
const ZSTANDARD: [u8; 4] = 0xFD2F_B528_u32.to_le_bytes();
/// Most bytes of lines in a frame: a frame that has as many is closed.
const FRAME: usize = 128 << 10;
/// Longest line, bytes; a longer one is refused by writer and reader.
const LINE: usize = 4 << 20;
/// Most bytes that a frame may expand to.
const EXPANDED: usize = FRAME + LINE;
/// Window of the compression, as a power of two: bounds the reader's memory.
const WINDOW_LOG: u32 = 23;

/// True if these first bytes of a file can be those of a recording.
#[must_use]
pub fn begins_like_ours(bytes: &[u8]) -> bool {
    bytes.starts_with(&SKIPPABLE)
}

/// The skippable frame.
fn preface() -> Vec<u8> {
    let text = [NAME, VERSION.to_string().as_bytes(), b"\n"].concat();
    let length = u32::try_from(text.len()).unwrap_or(0);
    [&SKIPPABLE[..], &length.to_le_bytes(), &text].concat()
}
