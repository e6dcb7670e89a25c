//! Another process's memory, through /proc/PID/mem (proc(5)); needs `PTRACE_MODE_ATTACH` access (CAP_SYS_PTRACE), and
//! neither stops nor changes the process.

use std::{fs::File, io, os::unix::fs::FileExt as _};

use super::proc;

/// `AT_PHDR` (include/uapi/linux/auxvec.h): where the program headers are.
const AT_PHDR: u64 = 3;
/// More than any auxiliary vector has, bytes.
const MOST_AUXV: usize = 8192;

/// A process's memory.
#[derive(Debug)]
pub struct Memory {
    file: File,
    phdr: u64,
}

impl Memory {
    /// Opens it.
    ///
    /// # Errors
    /// If the process is gone, is a kernel thread or may not be read.
    pub fn of_pid(pid: u32) -> io::Result<Self> {
        let auxv = proc::read_up_to(format!("/proc/{pid}/auxv"), MOST_AUXV)?;
        let phdr = phdr(&auxv).ok_or(io::ErrorKind::NotFound)?;
        Ok(Self { file: File::open(format!("/proc/{pid}/mem"))?, phdr })
    }

    /// The address of its program headers, from which follows where it was loaded.
    #[must_use]
    pub fn phdr(&self) -> u64 {
        self.phdr
    }

    /// Reads so many bytes, all or nothing.
    #[must_use]
    pub fn read(&self, at: u64, length: usize) -> Option<Vec<u8>> {
        // Asked first whether it is there: the length comes from that process.
        let mut bytes = [0; 1];
        let last = at.checked_add(u64::try_from(length).ok()?.checked_sub(1)?)?;
        self.file.read_exact_at(&mut bytes, at).ok()?;
        self.file.read_exact_at(&mut bytes, last).ok()?;
        let mut bytes = vec![0; length];
        self.file.read_exact_at(&mut bytes, at).ok()?;
        Some(bytes)
    }
}

/// `AT_PHDR` of an auxiliary vector: pairs of words, to one of zeroes.
fn phdr(auxv: &[u8]) -> Option<u64> {
    let word = |bytes: &[u8]| Some(u64::from_ne_bytes(bytes.try_into().ok()?));
    let mut pairs = auxv.chunks_exact(16).map_while(|pair| {
        let (key, value) = pair.split_at(8);
        Some((word(key)?, word(value)?))
    });
    pairs.find(|(key, _)| *key == AT_PHDR).map(|(_, value)| value).filter(|value| *value != 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_our_own() {
        let memory = Memory::of_pid(std::process::id()).unwrap();
        let text = b"here it is".to_vec();
        let at = text.as_ptr() as u64;
        assert_eq!(memory.read(at, text.len()).unwrap(), text);
        assert_eq!(memory.read(memory.phdr() & !4095, 4).unwrap(), b"\x7fELF");
        assert!(memory.read(0, 8).is_none() && memory.read(u64::MAX, 8).is_none());
        assert!(memory.read(at, usize::MAX).is_none() && memory.read(at, 0).is_none());
        assert!(Memory::of_pid(u32::MAX).is_err());
    }

    #[test]
    fn an_auxiliary_vector_may_be_anything() {
        let words = |words: &[u64]| words.iter().flat_map(|word| word.to_ne_bytes()).collect::<Vec<u8>>();
        assert_eq!(phdr(&words(&[6, 4096, AT_PHDR, 64, 0, 0])), Some(64));
        assert_eq!(phdr(&words(&[6, 4096, AT_PHDR])), None);
        assert_eq!(phdr(&words(&[AT_PHDR, 0])), None);
        assert_eq!(phdr(b"short"), None);
    }
}
