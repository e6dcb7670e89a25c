//! Stream sockets of the unix family: who listens on a path's inode, how full its queue is, and what one has not read.

use super::error::Result;
use super::netlink::{self, Body, Socket};
use super::netns::NetNs;

const SOCK_DIAG_BY_FAMILY: u16 = 20;
/// sizeof(struct unix_diag_msg).
const MESSAGE: usize = 16;
const SHOW: u32 = 0x01 | 0x02 | SHOW_QUEUE;
const SHOW_QUEUE: u32 = 0x10;
const DIAG_NAME: u16 = 0;
const DIAG_VFS: u16 = 1;
const DIAG_RQLEN: u16 = 4;
const TCP_CLOSE: u8 = 7;
const TCP_LISTEN: u8 = 10;

/// A unix socket that listens, or that has a name and no connection.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UnixListener {
    /// The socket's inode, as in /proc/PID/fd.
    pub inode: u32,
    /// The address it was bound to (raw bytes, relative to whoever bound it); abstract names begin with NUL.
    pub name: Vec<u8>,
    /// Low 32 bits of the inode number of the file it was bound to; `None` for abstract names.
    pub file_inode: Option<u32>,
    /// The kernel's encoding of the file's device: `(major << 20) | minor`.
    pub file_device: Option<u32>,
    /// Connections that wait for accept(2).
    pub recv_q: u32,
    /// The limit.
    pub send_q: u32,
    /// SOCK_STREAM (1), SOCK_DGRAM (2) or SOCK_SEQPACKET (5).
    pub kind: u8,
    /// It listens.
    pub listens: bool,
}

impl UnixListener {
    /// Whether connect(2) now gives EAGAIN to a non-blocking caller (`unix_recvq_full`).
    pub fn queue_full(&self) -> bool {
        self.recv_q > self.send_q
    }

    /// Whether this is the listener behind a file with this `st_dev` and `st_ino`.
    pub fn matches(&self, device: u64, inode: u64) -> FileMatch {
        let kernel_device = (u64::from(libc::major(device)) << 20) | u64::from(libc::minor(device));
        if self.file_inode.map(u64::from) != Some(inode & 0xffff_ffff) {
            FileMatch::No
        } else if self.file_device.map(u64::from) == Some(kernel_device) {
            FileMatch::Yes
        } else {
            FileMatch::InodeOnly
        }
    }
}

/// Whether a socket is the one behind a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FileMatch {
    /// Device and inode agree.
    Yes,
    /// The inode agrees and the device does not. On btrfs and overlayfs stat(2) reports another device than
    /// the kernel's own, so this is likely the socket; elsewhere it is likely not. Never proof.
    InodeOnly,
    /// Another file.
    No,
}

/// All listening unix sockets that were made in a network namespace. A path reaches across network
/// namespaces: a backend's socket is listed in the backend's.
pub fn listeners(ns: &NetNs) -> Result<Vec<UnixListener>> {
    list(ns, 1 << TCP_LISTEN)
}

/// The same, and those that have a name without listening: datagram sockets, and stream sockets between bind(2) and
/// listen(2).
pub fn named(ns: &NetNs) -> Result<Vec<UnixListener>> {
    let mut all = list(ns, 1 << TCP_LISTEN | 1 << TCP_CLOSE)?;
    all.retain(|socket| socket.listens || !socket.name.is_empty());
    Ok(all)
}

/// What waits in a connected socket, bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Waiting {
    /// Arrived and not read by whoever holds it.
    pub unread: u32,
    /// Written by it and not read by the other end (kernel memory: more than the bytes).
    pub unsent: u32,
}

/// Looks at one connected socket by its inode; `None` if there is none such. A connection's two ends are both in the network
/// namespace of the one that connected.
pub fn waiting(ns: &NetNs, inode: u32) -> Result<Option<Waiting>> {
    let mut socket = Socket::open(ns, libc::NETLINK_SOCK_DIAG)?;
    let body = Body::new(&request(!0, inode, SHOW_QUEUE));
    let found = socket.get("look at a unix socket", SOCK_DIAG_BY_FAMILY, &body, |payload| {
        let same = netlink::u32_at(payload, 4)? == inode && netlink::u8_at(payload, 2)? != TCP_LISTEN;
        let queue = netlink::attrs(payload, MESSAGE).find(|(kind, _)| *kind == DIAG_RQLEN)?.1;
        same.then_some(Waiting { unread: netlink::u32_at(queue, 0)?, unsent: netlink::u32_at(queue, 4)? })
    });
    match found {
        Err(error) if error.errno() == Some(libc::ENOENT) => Ok(None),
        other => other,
    }
}

/// struct unix_diag_req: any cookie.
fn request(states: u32, inode: u32, show: u32) -> Vec<u8> {
    let mut header = vec![libc::AF_UNIX as u8, 0, 0, 0];
    header.extend_from_slice(&states.to_ne_bytes());
    header.extend_from_slice(&inode.to_ne_bytes());
    header.extend_from_slice(&show.to_ne_bytes());
    header.extend_from_slice(&[0xff; 8]);
    header
}

fn list(ns: &NetNs, states: u32) -> Result<Vec<UnixListener>> {
    let mut socket = Socket::open(ns, libc::NETLINK_SOCK_DIAG)?;
    let action = "list listening unix sockets";
    let body = Body::new(&request(states, 0, SHOW));
    let found = socket
        .dump(action, SOCK_DIAG_BY_FAMILY, &body, Vec::new, |list, payload| list.extend(parse(payload)));
    found.map_err(|error| match error.errno() {
        Some(libc::ENOENT) => error.hint("the kernel lacks unix_diag: modprobe unix_diag"),
        _ => error,
    })
}

fn parse(payload: &[u8]) -> Option<UnixListener> {
    let mut found = UnixListener {
        inode: netlink::u32_at(payload, 4)?,
        name: Vec::new(),
        file_inode: None,
        file_device: None,
        recv_q: 0,
        send_q: 0,
        kind: netlink::u8_at(payload, 1)?,
        listens: netlink::u8_at(payload, 2)? == TCP_LISTEN,
    };
    if !matches!(netlink::u8_at(payload, 2)?, TCP_LISTEN | TCP_CLOSE) {
        return None;
    }
    for (kind, value) in netlink::attrs(payload, MESSAGE) {
        match kind {
            DIAG_NAME => found.name = value.to_vec(),
            DIAG_VFS => {
                found.file_inode = netlink::u32_at(value, 0);
                found.file_device = netlink::u32_at(value, 4);
            }
            DIAG_RQLEN => {
                found.recv_q = netlink::u32_at(value, 0)?;
                found.send_q = netlink::u32_at(value, 4)?;
            }
            _ => {}
        }
    }
    Some(found)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::MetadataExt as _;
    use std::os::unix::net::{UnixListener as Server, UnixStream};

    use super::*;
    use crate::sys::testing;

    #[test]
    fn a_listener_is_found_by_its_file() {
        let Some(ns) = testing::namespace() else { return };
        let path = std::env::temp_dir().join(format!("why502-unixdiag-{}.sock", std::process::id()));
        let server = ns.run(|| Server::bind(&path).unwrap()).unwrap();
        let file = std::fs::symlink_metadata(&path).unwrap();
        let found = listeners(&ns).unwrap();
        assert_eq!(found.len(), 1);
        assert_ne!(found[0].matches(file.dev(), file.ino()), FileMatch::No, "{found:?} {file:?}");
        assert_eq!(found[0].matches(file.dev(), file.ino() + 1), FileMatch::No);
        assert!(found[0].send_q > 0 && found[0].recv_q == 0 && found[0].kind == 1);
        let _client = UnixStream::connect(&path).unwrap();
        assert_eq!(listeners(&ns).unwrap()[0].recv_q, 1);
        drop(server);
        std::fs::remove_file(&path).unwrap();
        // Another test's fork may hold a copy of the descriptor for a moment.
        testing::poll("no listener", || listeners(&ns).unwrap().is_empty().then_some(()));
    }

    #[test]
    fn what_waits_is_counted() {
        use std::io::{Read as _, Write as _};
        use std::os::fd::AsRawFd as _;
        let Some(ns) = testing::namespace() else { return };
        let (mut near, mut far) = ns.run(|| UnixStream::pair().unwrap()).unwrap();
        let link = std::fs::read_link(format!("/proc/self/fd/{}", far.as_raw_fd())).unwrap();
        let text = link.to_string_lossy().into_owned();
        let inode: u32 = text.trim_start_matches("socket:[").trim_end_matches(']').parse().unwrap();
        assert_eq!(waiting(&ns, inode).unwrap(), Some(Waiting { unread: 0, unsent: 0 }));
        near.write_all(b"0123456789").unwrap();
        far.read_exact(&mut [0; 4]).unwrap();
        assert_eq!(waiting(&ns, inode).unwrap().unwrap().unread, 6);
        drop(near);
        assert_eq!(waiting(&ns, inode).unwrap().unwrap().unread, 6);
        drop(far);
        testing::poll("no socket", || waiting(&ns, inode).unwrap().is_none().then_some(()));
    }

    #[test]
    fn cut_messages_are_refused() {
        let bytes = [1, 1, TCP_LISTEN, 0, 9, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
        assert_eq!(parse(&bytes).unwrap().inode, 9);
        for end in 0..8 {
            assert!(parse(&bytes[..end]).is_none());
        }
    }
}
