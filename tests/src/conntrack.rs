//! Fills the connection table of a namespace through netlink: assured entries, which the kernel does not evict.
//!
//! `nf_conntrack_max` is one number for the machine and read-only in other namespaces than the first, but it is
//! compared with the entries of each namespace, so a full table needs no change to the machine.

use crate::net::NetNs;
use crate::sys;
use anyhow::{Context, Result, bail};
use std::os::fd::AsRawFd;

const MAX: &str = "/proc/sys/net/netfilter/nf_conntrack_max";
/// IPCTNL_MSG_CT_NEW of NFNL_SUBSYS_CTNETLINK.
const CT_NEW: u16 = 1 << 8;
const REQUEST: u16 = 1;
const WANT_ACK: u16 = 4;
const CREATE: u16 = 0x400;
const NESTED: u16 = 0x8000;
/// SEEN_REPLY, ASSURED, CONFIRMED.
const STATUS: u32 = 2 | 4 | 8;
const BATCH: u32 = 128;

/// Adds entries until the kernel says that there is no room.
pub(crate) fn fill(ns: &NetNs) -> Result<()> {
    let max: u32 = std::fs::read_to_string(MAX)
        .with_context(|| format!("cannot read {MAX}; load the module nf_conntrack"))?
        .trim()
        .parse()?;
    ns.run(|| {
        let socket = sys::netfilter_netlink().context("netlink")?;
        let mut next = 0;
        while next <= max.saturating_add(BATCH) {
            let batch: Vec<u8> = (next..next + BATCH).flat_map(|n| entry(n, n == next + BATCH - 1)).collect();
            sys::send(socket.as_raw_fd(), &batch).context("netlink")?;
            next += BATCH;
            if full(socket.as_raw_fd(), next)? {
                return Ok(());
            }
        }
        bail!("{next} entries and the table of {max} is not full")
    })
}

/// Reads the answers to one batch up to the acknowledgement of number `last`.
fn full(socket: i32, last: u32) -> Result<bool> {
    let mut full = false;
    let mut buffer = [0; 16384];
    loop {
        let length = sys::recv(socket, &mut buffer).context("netlink answer")?;
        let mut rest = &buffer[..length];
        while let Some((error, sequence, size)) = answer(rest) {
            match error {
                0 => {}
                libc::ENOMEM => full = true,
                other => bail!("ctnetlink: {}", std::io::Error::from_raw_os_error(other)),
            }
            if sequence == last {
                return Ok(full);
            }
            rest = rest.get(size..).unwrap_or(&[]);
        }
    }
}

/// (errno, sequence number, size) of the first NLMSG_ERROR.
fn answer(bytes: &[u8]) -> Option<(i32, u32, usize)> {
    let size = u32::from_ne_bytes(bytes.get(..4)?.try_into().ok()?);
    let sequence = u32::from_ne_bytes(bytes.get(8..12)?.try_into().ok()?);
    let error = i32::from_ne_bytes(bytes.get(16..20)?.try_into().ok()?);
    Some((-error, sequence, usize::try_from(size).ok()?.next_multiple_of(4)))
}

/// The message that creates entry `n`: UDP from 100.64.0.0/10, ten minutes. Its sequence number is `n` + 1.
fn entry(n: u32, last: bool) -> Vec<u8> {
    let outside = (0x6440_0000 + (n >> 14)).to_be_bytes();
    let port = u16::try_from(n & 0x3fff).unwrap_or(0) + 1;
    let there = tuple(1, outside, [192, 0, 2, 1], port, 9);
    let back = tuple(2, [192, 0, 2, 1], outside, 9, port);
    let mut body = vec![2, 0, 0, 0];
    body.extend(there);
    body.extend(back);
    body.extend(attribute(3, &STATUS.to_be_bytes()));
    body.extend(attribute(7, &600_u32.to_be_bytes()));
    let mut message = Vec::new();
    let length = u32::try_from(body.len() + 16).unwrap_or(0);
    message.extend(length.to_ne_bytes());
    message.extend(CT_NEW.to_ne_bytes());
    message.extend((REQUEST | CREATE | if last { WANT_ACK } else { 0 }).to_ne_bytes());
    message.extend((n + 1).to_ne_bytes());
    message.extend([0; 4]);
    message.extend(body);
    message
}

fn tuple(kind: u16, from: [u8; 4], to: [u8; 4], from_port: u16, to_port: u16) -> Vec<u8> {
    let ip = [attribute(1, &from), attribute(2, &to)].concat();
    let ports =
        [attribute(1, &[17]), attribute(2, &from_port.to_be_bytes()), attribute(3, &to_port.to_be_bytes())]
            .concat();
    attribute(kind | NESTED, &[attribute(1 | NESTED, &ip), attribute(2 | NESTED, &ports)].concat())
}

fn attribute(kind: u16, value: &[u8]) -> Vec<u8> {
    let length = u16::try_from(value.len() + 4).unwrap_or(0);
    let mut bytes = Vec::with_capacity(value.len() + 8);
    bytes.extend(length.to_ne_bytes());
    bytes.extend(kind.to_ne_bytes());
    bytes.extend(value);
    bytes.resize(bytes.len().next_multiple_of(4), 0);
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_are_aligned_and_sized() {
        let message = entry(70_000, true);
        assert_eq!(message.len() % 4, 0);
        assert_eq!(
            u32::from_ne_bytes(message[..4].try_into().unwrap()),
            u32::try_from(message.len()).unwrap()
        );
        assert_ne!(entry(1, false), entry(2, false));
    }

    #[test]
    fn answers() {
        let mut bytes = vec![36, 0, 0, 0, 2, 0, 0, 0, 9, 0, 0, 0, 0, 0, 0, 0];
        bytes.extend((-12_i32).to_ne_bytes());
        assert_eq!(answer(&bytes), Some((12, 9, 36)));
        assert_eq!(answer(&bytes[..17]), None);
    }
}
