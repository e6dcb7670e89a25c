//! The running kernel's own numbers of classes and permissions. They are not the policy's (`selinux_map` in
//! ss/services.c translates), and they move between versions: 6.17 put a permission in front of those that only folders have.
//!
//! The kernel keeps the names in `secclass_map`, an array of `struct security_class_mapping` (a name and 33 names of
//! permissions, all pointers), which is read from its memory. Where that cannot be had, what has been the same in 5.10 to
//! 7.2 is known.

/// Permissions of one class, and the end mark.
const POINTERS: usize = 1 + 33;
/// Longest name that is believed.
const LONGEST: usize = 64;
/// More classes than any kernel has.
const MOST: usize = 512;

const FILE_AND_SOCKET: &[&str] = &[
    "ioctl",
    "read",
    "write",
    "create",
    "getattr",
    "setattr",
    "lock",
    "relabelfrom",
    "relabelto",
    "append",
    "map",
];
const FILE: &[&str] = &[
    "unlink",
    "link",
    "rename",
    "execute",
    "quotaon",
    "mounton",
    "audit_access",
    "open",
    "execmod",
    "watch",
    "watch_mount",
    "watch_sb",
    "watch_with_perm",
    "watch_reads",
];
const SOCKET: &[&str] = &[
    "bind",
    "connect",
    "listen",
    "accept",
    "getopt",
    "setopt",
    "shutdown",
    "recvfrom",
    "sendto",
    "name_bind",
];
/// Classes whose number and whose first permissions have been the same since 4.14 (security/selinux/include/classmap.h).
const STABLE: &[(usize, &str, &[&str], &[&str])] = &[
    (7, "file", FILE, &[]),
    (8, "dir", FILE, &[]),
    (10, "lnk_file", FILE, &[]),
    (13, "sock_file", FILE, &[]),
    (16, "tcp_socket", SOCKET, &["node_bind", "name_connect"]),
    (17, "udp_socket", SOCKET, &["node_bind"]),
    (24, "unix_stream_socket", SOCKET, &["connectto"]),
    (25, "unix_dgram_socket", SOCKET, &[]),
];

/// Names of classes and permissions by the kernel's numbers.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Classes {
    /// By number less one; an empty name is an unknown class.
    classes: Vec<(String, Vec<String>)>,
}

impl Classes {
    /// Reads `secclass_map` at `address`. `read` gives bytes of the kernel's memory, as many as asked for.
    ///
    /// None if that is not what lies there.
    pub fn read(address: u64, mut read: impl FnMut(u64, usize) -> Option<Vec<u8>>) -> Option<Self> {
        let size = u64::try_from(POINTERS * 8).ok()?;
        let mut classes = Vec::new();
        for at in 0..MOST {
            let row = read(address.checked_add(size.checked_mul(u64::try_from(at).ok()?)?)?, POINTERS * 8)?;
            let mut pointers = row.chunks_exact(8).map(|b| b.try_into().map_or(0, u64::from_le_bytes));
            let name = pointers.next()?;
            if name == 0 {
                break;
            }
            let name = text(name, &mut read)?;
            let mut permissions = Vec::new();
            for pointer in pointers.take_while(|pointer| *pointer != 0) {
                permissions.push(text(pointer, &mut read)?);
            }
            classes.push((name, permissions));
        }
        let first = classes.first().is_some_and(|(name, permissions)| {
            name == "security" && permissions.first().is_some_and(|p| p == "compute_av")
        });
        (first && classes.len() < MOST).then_some(Self { classes })
    }

    /// What is the same on all kernels.
    #[must_use]
    pub fn stable() -> Self {
        let mut classes = vec![(String::new(), Vec::new()); 25];
        for (number, name, more, last) in STABLE {
            let permissions = FILE_AND_SOCKET.iter().chain(*more).chain(*last);
            if let Some(class) = classes.get_mut(number - 1) {
                *class = ((*name).to_owned(), permissions.map(|p| (*p).to_owned()).collect());
            }
        }
        Self { classes }
    }

    /// Name of a class, by the kernel's number from 1.
    #[must_use]
    pub fn class(&self, number: u32) -> Option<&str> {
        self.row(number).map(|(name, _)| name.as_str())
    }

    /// Names of permissions by the kernel's bits; None if one of them is unknown.
    #[must_use]
    pub fn permissions(&self, class: u32, bits: u32) -> Option<Vec<&str>> {
        let (_, names) = self.row(class)?;
        let wanted = (0..32_usize).filter(|bit| bits >> bit & 1 == 1);
        wanted.map(|bit| names.get(bit).map(String::as_str)).collect()
    }

    fn row(&self, number: u32) -> Option<&(String, Vec<String>)> {
        let at = usize::try_from(number).ok()?.checked_sub(1)?;
        self.classes.get(at).filter(|(name, _)| !name.is_empty())
    }
}

/// A name that is made of small letters, digits and underscores.
fn text(address: u64, read: &mut impl FnMut(u64, usize) -> Option<Vec<u8>>) -> Option<String> {
    let bytes = read(address, LONGEST)?;
    let end = bytes.iter().position(|byte| *byte == 0).filter(|end| *end > 0)?;
    let word = bytes.get(..end)?;
    word.iter()
        .all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || *b == b'_')
        .then(|| String::from_utf8_lossy(word).into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Lays out the kernel's array at 0x1000 and its names behind it.
    fn memory(rows: &[(&str, &[&str])]) -> Vec<u8> {
        let mut words = vec![0_u8; (rows.len() + 1) * POINTERS * 8];
        let mut names = Vec::new();
        let table = words.len();
        for (at, (name, permissions)) in rows.iter().enumerate() {
            for (i, word) in std::iter::once(name).chain(*permissions).enumerate() {
                let pointer = 0x1000 + table + names.len();
                let place = (at * POINTERS + i) * 8;
                words[place..place + 8].copy_from_slice(&u64::try_from(pointer).unwrap().to_le_bytes());
                names.extend(word.as_bytes());
                names.push(0);
            }
        }
        words.extend(names);
        words.extend([0; LONGEST]);
        words
    }

    fn read(bytes: &[u8]) -> Option<Classes> {
        Classes::read(0x1000, |address, len| {
            let from = usize::try_from(address).unwrap().checked_sub(0x1000)?;
            bytes.get(from..from + len).map(<[u8]>::to_vec)
        })
    }

    #[test]
    fn names_come_from_the_kernels_array() {
        let bytes = memory(&[("security", &["compute_av", "x2"]), ("dir", &["ioctl", "search"])]);
        let classes = read(&bytes).unwrap();
        assert_eq!(classes.class(2), Some("dir"));
        assert_eq!(classes.permissions(2, 0b11).unwrap(), ["ioctl", "search"]);
        assert_eq!(classes.permissions(2, 0b100), None);
        assert_eq!((classes.class(0), classes.class(3)), (None, None));
    }

    #[test]
    fn other_memory_is_no_array() {
        assert_eq!(read(&memory(&[("socket", &["compute_av"])])), None);
        assert_eq!(read(&memory(&[("security", &["Compute"])])), None);
        assert_eq!(read(&memory(&[])), None);
        let bytes = memory(&[("security", &["compute_av"])]);
        assert_eq!(read(&bytes[..300]), None);
    }

    #[test]
    fn what_every_kernel_agrees_on() {
        let classes = Classes::stable();
        assert_eq!(classes.class(16), Some("tcp_socket"));
        assert_eq!(classes.permissions(16, 1 << 22), Some(vec!["name_connect"]));
        assert_eq!(classes.permissions(24, 1 << 21), Some(vec!["connectto"]));
        assert_eq!(classes.permissions(13, 1 << 2), Some(vec!["write"]));
        // The permissions of folders alone have moved.
        assert_eq!(classes.permissions(8, 1 << 28), None);
        assert_eq!(classes.class(1), None);
    }
}
