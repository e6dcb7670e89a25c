//! TCP connections of a namespace that stand, with what their stacks say of the bytes on them (`struct tcp_info`).

use super::error::Result;
use super::netlink::{self, AF_INET, AF_INET6, Socket};
use super::netns::NetNs;
use super::sockdiag::{self, Ask, MESSAGE};
use super::tcp_state::TcpState;
use std::net::SocketAddr;
use std::time::Duration;

/// `INET_DIAG_INFO` (linux/inet_diag.h), as an extension and as an attribute.
const DIAG_INFO: u16 = 2;

// Offsets within struct tcp_info (linux/tcp.h): what is told to users never moves.
const LAST_DATA_SENT: usize = 44;
const LAST_DATA_RECEIVED: usize = 52;
const BYTES_RECEIVED: usize = 128;
const BYTES_SENT: usize = 200;

/// A connection that stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Standing {
    /// Its own address.
    pub local: SocketAddr,
    /// The peer's.
    pub remote: SocketAddr,
    /// Inode, as in /proc/PID/fd.
    pub inode: u32,
    /// Since a segment with data was sent last; exact to a tick of the kernel's clock (1 to 10 ms). Since the handshake, if
    /// none was.
    pub sent_ago: Duration,
    /// Since one came last, likewise.
    pub received_ago: Duration,
    /// `tcp_sock.bytes_sent`: with what was sent again.
    pub sent: u64,
    /// `tcp_sock.bytes_received`.
    pub received: u64,
}

/// All TCP connections of a namespace in ESTABLISHED and CLOSE_WAIT that a process holds. Needs Linux 4.19, which tells the
/// bytes sent.
///
/// # Errors
/// Those of netlink; the text names what is missing.
pub fn all(ns: &NetNs) -> Result<Vec<Standing>> {
    let mut socket = Socket::open(ns, libc::NETLINK_SOCK_DIAG)?;
    let mut found = Vec::new();
    for family in [AF_INET, AF_INET6] {
        let states = TcpState::Established.bit() | TcpState::CloseWait.bit();
        let ask = Ask::new("list connections", family, states).with_info();
        let parse = |list: &mut Vec<Standing>, payload: &[u8]| list.extend(parse(payload));
        found.extend(sockdiag::dump(&mut socket, &ask, Vec::new, parse)?);
    }
    Ok(found)
}

fn parse(payload: &[u8]) -> Option<Standing> {
    let raw = sockdiag::parse(payload).filter(|raw| raw.inode != 0)?;
    let info = netlink::attrs(payload, MESSAGE).find(|(kind, _)| *kind == DIAG_INFO)?.1;
    let ms = |at| Some(Duration::from_millis(u64::from(netlink::u32_at(info, at)?)));
    Some(Standing {
        local: raw.local,
        remote: raw.remote,
        inode: raw.inode,
        sent_ago: ms(LAST_DATA_SENT)?,
        received_ago: ms(LAST_DATA_RECEIVED)?,
        sent: netlink::u64_at(info, BYTES_SENT)?,
        received: netlink::u64_at(info, BYTES_RECEIVED)?,
    })
}

#[cfg(test)]
mod tests {
    use std::io::{Read as _, Write as _};
    use std::net::{TcpListener, TcpStream};

    use super::*;

    #[test]
    fn own_connections() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let mut near = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let (mut far, _) = listener.accept().unwrap();
        near.write_all(b"hello").unwrap();
        far.read_exact(&mut [0; 5]).unwrap();
        let (local, remote) = (near.local_addr().unwrap(), near.peer_addr().unwrap());
        let found = all(&NetNs::current().unwrap()).unwrap();
        let one = |local, remote| found.iter().find(|c| c.local == local && c.remote == remote).unwrap();
        let (here, there) = (one(local, remote), one(remote, local));
        assert_eq!((here.sent, here.received, there.sent, there.received), (5, 0, 0, 5));
        assert!(here.inode != 0 && here.inode != there.inode);
        assert!(here.sent_ago < Duration::from_secs(60) && there.received_ago < Duration::from_secs(60));
    }

    #[test]
    fn what_is_cut_off_is_none() {
        let mut bytes = vec![2, 1, 0, 0];
        bytes.resize(MESSAGE, 7);
        bytes.extend_from_slice(&[212, 0, 2, 0]);
        bytes.resize(MESSAGE + 212, 1);
        assert!(parse(&bytes).is_some());
        for end in 0..bytes.len() {
            assert!(parse(&bytes[..end]).is_none(), "{end}");
        }
    }
}
