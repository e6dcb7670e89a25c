//! Writes the `newc` cpio archive that Linux unpacks as its initial root (kernel: driver-api/early-userspace).

/// An archive in memory; `finish` gives its bytes.
pub(super) struct Cpio {
    bytes: Vec<u8>,
    inode: u32,
}

const DIRECTORY: u32 = 0o040_755;
const EXECUTABLE: u32 = 0o100_755;

impl Cpio {
    pub(super) fn new() -> Cpio {
        Cpio { bytes: Vec::new(), inode: 0 }
    }

    pub(super) fn directory(&mut self, path: &str) {
        self.entry(path, DIRECTORY, &[]);
    }

    pub(super) fn file(&mut self, path: &str, content: &[u8]) {
        self.entry(path, EXECUTABLE, content);
    }

    pub(super) fn finish(mut self) -> Vec<u8> {
        self.entry("TRAILER!!!", 0, &[]);
        self.bytes
    }

    /// Paths have no leading slash. Files are far below the format's limit of 4 GiB.
    fn entry(&mut self, path: &str, mode: u32, content: &[u8]) {
        self.inode += 1;
        let links = if mode == DIRECTORY { 2 } else { 1 };
        let fields = [
            self.inode as usize,
            mode as usize,
            0, // uid
            0, // gid
            links,
            0, // mtime
            content.len(),
            0, // device major
            0, // device minor
            0, // rdev major
            0, // rdev minor
            path.len() + 1,
            0, // checksum: unused in this variant
        ];
        self.bytes.extend_from_slice(b"070701");
        for field in fields {
            self.bytes.extend_from_slice(format!("{field:08x}").as_bytes());
        }
        self.bytes.extend_from_slice(path.as_bytes());
        self.bytes.push(0);
        self.pad();
        self.bytes.extend_from_slice(content);
        self.pad();
    }

    fn pad(&mut self) {
        let padded = self.bytes.len().next_multiple_of(4);
        self.bytes.resize(padded, 0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn layout_follows_newc() {
        let mut cpio = Cpio::new();
        cpio.directory("bin");
        cpio.file("bin/init", b"hello");
        let bytes = cpio.finish();
        assert_eq!(bytes.len() % 4, 0);
        // Header of 110 bytes, "bin\0" and 2 bytes of padding.
        assert_eq!(&bytes[..14], b"07070100000001");
        assert_eq!(&bytes[110..114], b"bin\0");
        assert_eq!(&bytes[116..122], b"070701");
        assert_eq!(&bytes[116 + 54..116 + 62], b"00000005");
        assert_eq!(&bytes[116 + 110..116 + 119], b"bin/init\0");
        assert_eq!(&bytes[116 + 120..116 + 125], b"hello");
        assert!(bytes.windows(11).any(|w| w == b"TRAILER!!!\0"));
    }
}
