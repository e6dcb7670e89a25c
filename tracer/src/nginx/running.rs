//! The configuration that an nginx runs with, from its memory.
//!
//! An nginx built with `--with-debug` keeps the text of every file that it has read (`ngx_conf_add_dump`,
//! src/core/ngx_conf_file.c; without that, only `nginx -T` does), and each worker that of the configuration it was
//! born with. The exported `ngx_cycle` leads there: `ngx_cycle_t` holds an array of `{name, buffer}` somewhere
//! (src/core/ngx_cycle.h; where depends on version and options). It is found by what it must hold: the main file's path
//! as the name of its first element. Nothing is believed that does not fit; the memory may change while it is read.

use std::{
    ffi::OsStr,
    os::unix::ffi::OsStrExt as _,
    path::{Path, PathBuf},
};

use object::{Object as _, ObjectSegment as _, ObjectSymbol as _, read::elf::ElfFile64};

use super::dump::Dump;

/// Bytes of `ngx_cycle_t` that are looked through; it has some 600.
const CYCLE: usize = 1024;
/// `sizeof(ngx_conf_dump_t)`: a string of length and address, and the buffer's address.
const ELEMENT: usize = 24;
/// The beginning of `ngx_buf_t`: pos, last, file_pos, file_last, start, end.
const BUFFER: usize = 48;
/// Most files.
const MOST_FILES: u64 = 100_000;
/// Longest path (PATH_MAX).
const LONGEST_PATH: u64 = 4096;
/// Most bytes of all files together.
const MOST_BYTES: u64 = 256 << 20;

/// Reads that many bytes at an address of the process, all or nothing.
pub type Read<'a> = &'a dyn Fn(u64, usize) -> Option<Vec<u8>>;

/// Where an executable was loaded and where its `ngx_cycle` is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Place {
    /// `ngx_cycle`, as linked.
    pub(super) cycle: u64,
    /// `ngx_core_module`, which every list of modules begins with.
    pub(super) core: Option<u64>,
    /// The program headers, as linked: the kernel tells a process where they are (`AT_PHDR`).
    pub(super) headers: u64,
}

/// Finds `ngx_cycle`; `None` where it is not exported, or for what is no 64-bit program of this byte order.
pub fn place(elf: &[u8]) -> Option<Place> {
    let file: ElfFile64<'_> = ElfFile64::parse(elf).ok()?;
    if file.is_little_endian() != cfg!(target_endian = "little") {
        return None;
    }
    let address = |name: &str| {
        let mut all = file.dynamic_symbols();
        all.find(|symbol| symbol.is_definition() && symbol.name() == Ok(name)).map(|symbol| symbol.address())
    };
    let (cycle, core) = (address("ngx_cycle")?, address("ngx_core_module"));
    let at = file.elf_header().e_phoff.get(file.endian());
    let headers = file.segments().find_map(|segment| {
        let (offset, size) = segment.file_range();
        let inside = at.checked_sub(offset).filter(|inside| *inside < size)?;
        segment.address().checked_add(inside)
    })?;
    Some(Place { cycle, core, headers })
}

impl Place {
    /// Where a symbol is in the process.
    pub(super) fn loaded(&self, phdr: u64, linked: u64) -> u64 {
        phdr.wrapping_sub(self.headers).wrapping_add(linked)
    }

    /// The configuration that the process runs with, as an address: another one after each reload.
    pub fn cycle(&self, phdr: u64, read: Read<'_>) -> Option<u64> {
        word(&read(self.loaded(phdr, self.cycle), 8)?, 0)
    }

    /// The files that the process has read, the main file first; `None` if it does not keep them. `phdr`: `AT_PHDR` of
    /// its auxiliary vector.
    pub fn files(&self, phdr: u64, main: &Path, read: Read<'_>) -> Option<Dump> {
        let cycle = self.cycle(phdr, read)?;
        let bytes = read(cycle, CYCLE)?;
        (0..CYCLE / 8 - 3).find_map(|index| array(&bytes, index * 8, main, read))
    }
}

/// The array at that place of the cycle (`ngx_array_t`: elements, their number, size, room), if it is the one.
fn array(cycle: &[u8], at: usize, main: &Path, read: Read<'_>) -> Option<Dump> {
    let elements = word(cycle, at)?;
    let (number, size, room) = (word(cycle, at + 8)?, word(cycle, at + 16)?, word(cycle, at + 24)?);
    let fits = elements != 0 && size == ELEMENT as u64 && (1..=room).contains(&number) && room <= MOST_FILES;
    if !fits {
        return None;
    }
    let elements = read(elements, ELEMENT.checked_mul(usize::try_from(number).ok()?)?)?;
    let mut files: Vec<(PathBuf, Vec<u8>)> = Vec::new();
    let mut total = 0_u64;
    for element in elements.chunks_exact(ELEMENT) {
        let (length, name, buffer) = (word(element, 0)?, word(element, 8)?, word(element, 16)?);
        if !(1..=LONGEST_PATH).contains(&length) {
            return None;
        }
        let name = read(name, usize::try_from(length).ok()?)?;
        let name = PathBuf::from(OsStr::from_bytes(&name));
        if files.is_empty() && name != main {
            return None;
        }
        let buffer = read(buffer, BUFFER)?;
        let (pos, last, start, end) =
            (word(&buffer, 0)?, word(&buffer, 8)?, word(&buffer, 32)?, word(&buffer, 40)?);
        if pos != start || start > last || last > end {
            return None;
        }
        total = total.checked_add(last - start).filter(|total| *total <= MOST_BYTES)?;
        let text = if last == start { Vec::new() } else { read(start, usize::try_from(last - start).ok()?)? };
        files.push((name, text));
    }
    Dump::of(files)
}

pub(super) fn word(bytes: &[u8], at: usize) -> Option<u64> {
    Some(u64::from_ne_bytes(bytes.get(at..at.checked_add(8)?)?.try_into().ok()?))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use crate::nginx::Files as _;

    /// Memory of a process: pieces by address.
    #[derive(Default, Clone)]
    struct Pieces(BTreeMap<u64, Vec<u8>>);

    impl Pieces {
        fn read(&self, at: u64, length: usize) -> Option<Vec<u8>> {
            let (start, bytes) = self.0.range(..=at).next_back()?;
            let from = usize::try_from(at - start).ok()?;
            Some(bytes.get(from..from.checked_add(length)?)?.to_vec())
        }

        fn words(&mut self, at: u64, words: &[u64]) {
            self.0.insert(at, words.iter().flat_map(|word| word.to_ne_bytes()).collect());
        }
    }

    const LOADED: u64 = 0x5555_0000_0000;
    const PLACE: Place = Place { cycle: 0x3000, core: None, headers: 0x40 };

    /// A process with two files, its array at that word of the cycle.
    fn process(index: usize) -> Pieces {
        let mut memory = Pieces::default();
        memory.words(LOADED + 0x3000, &[0x10_0000]);
        let mut cycle = vec![0x20_0000_u64; CYCLE / 8];
        for (word, value) in cycle.iter_mut().skip(index).zip([0x20_0000, 2, 24, 4]) {
            *word = value;
        }
        memory.words(0x10_0000, &cycle);
        memory.words(0x20_0000, &[15, 0x30_0000, 0x40_0000, 9, 0x30_0100, 0x40_0100]);
        memory.0.insert(0x30_0000, b"/etc/nginx.conf".to_vec());
        memory.0.insert(0x30_0100, b"/etc/b\xffcf".to_vec());
        memory.words(0x40_0000, &[0x50_0000, 0x50_0009, 0, 0, 0x50_0000, 0x50_0010]);
        memory.words(0x40_0100, &[0x60_0000, 0x60_0000, 0, 0, 0x60_0000, 0x60_0010]);
        memory.0.insert(0x50_0000, b"events {}, and more".to_vec());
        memory
    }

    fn files(memory: &Pieces, main: &str) -> Option<Dump> {
        PLACE.files(LOADED + 0x40, Path::new(main), &|at, length| memory.read(at, length))
    }

    #[test]
    fn finds_the_files_wherever_they_are() {
        for index in [0, 1, 34, 71, CYCLE / 8 - 4] {
            let dump = files(&process(index), "/etc/nginx.conf").unwrap();
            assert_eq!(dump.main(), Path::new("/etc/nginx.conf"));
            assert_eq!(dump.read(Path::new("/etc/nginx.conf")).unwrap(), b"events {}");
            let other = PathBuf::from(OsStr::from_bytes(b"/etc/b\xffcf"));
            assert_eq!(dump.read(&other).unwrap(), b"", "an empty file");
        }
    }

    #[test]
    fn believes_nothing_that_does_not_fit() {
        assert!(files(&process(34), "/etc/other.conf").is_none(), "another main file");
        assert!(files(&Pieces::default(), "/etc/nginx.conf").is_none(), "nothing to read");
        let whole = process(34);
        let places: Vec<(u64, usize)> = whole.0.iter().map(|(at, bytes)| (*at, bytes.len())).collect();
        for (at, length) in places {
            // Every piece missing, and every word of it changed.
            let mut without = whole.clone();
            without.0.remove(&at);
            let left = files(&without, "/etc/nginx.conf");
            assert!(left.is_none(), "{at:x}");
            for word in 0..length / 8 {
                for value in [0_u64, 1, u64::MAX, 1 << 63, 0x7fff_ffff_f000] {
                    let mut changed = whole.clone();
                    let piece = changed.0.get_mut(&at).unwrap();
                    piece.get_mut(word * 8..word * 8 + 8).unwrap().copy_from_slice(&value.to_ne_bytes());
                    // Nothing is asked but an answer; the texts are compared with what they must be elsewhere.
                    let _ = files(&changed, "/etc/nginx.conf");
                }
            }
        }
    }

    #[test]
    fn reads_the_installed_nginx() {
        let Ok(elf) = std::fs::read("/usr/sbin/nginx") else { return };
        let place = place(&elf).unwrap();
        assert!(place.cycle > place.headers && place.headers == 64, "{place:?}");
        assert_eq!(super::place(b"\x7fELF"), None);
        assert_eq!(super::place(&std::fs::read("/proc/self/exe").unwrap()), None);
    }
}
