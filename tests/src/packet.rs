//! IP packets of the remote stack: reads SYNs, builds the answers. Bytes in, bytes out.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

pub(crate) const FIN: u8 = 1;
pub(crate) const SYN: u8 = 2;
pub(crate) const RST: u8 = 4;
pub(crate) const PSH: u8 = 8;
pub(crate) const ACK: u8 = 16;

/// A TCP segment in an IP packet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Segment {
    pub(crate) from: IpAddr,
    pub(crate) to: IpAddr,
    pub(crate) from_port: u16,
    pub(crate) to_port: u16,
    pub(crate) seq: u32,
    pub(crate) ack: u32,
    pub(crate) flags: u8,
    pub(crate) payload: Vec<u8>,
}

impl Segment {
    /// The TCP segment in `packet`, or None for anything else (ICMP, UDP, extension headers, fragments).
    pub(crate) fn parse(packet: &[u8]) -> Option<Self> {
        let (from, to, tcp) = match packet.first()? >> 4 {
            4 => {
                let header = usize::from(packet[0] & 15) * 4;
                if *packet.get(9)? != 6 {
                    return None;
                }
                let length = usize::from(u16_at(packet, 2)?);
                let from = <[u8; 4]>::try_from(packet.get(12..16)?).ok()?;
                let to = <[u8; 4]>::try_from(packet.get(16..20)?).ok()?;
                (IpAddr::from(from), IpAddr::from(to), packet.get(header..length)?)
            }
            6 => {
                if *packet.get(6)? != 6 {
                    return None;
                }
                let from = <[u8; 16]>::try_from(packet.get(8..24)?).ok()?;
                let to = <[u8; 16]>::try_from(packet.get(24..40)?).ok()?;
                (IpAddr::from(from), IpAddr::from(to), packet.get(40..)?)
            }
            _ => return None,
        };
        let offset = usize::from(*tcp.get(12)? >> 4) * 4;
        Some(Self {
            from,
            to,
            from_port: u16_at(tcp, 0)?,
            to_port: u16_at(tcp, 2)?,
            seq: u32_at(tcp, 4)?,
            ack: u32_at(tcp, 8)?,
            flags: *tcp.get(13)?,
            payload: tcp.get(offset..)?.to_vec(),
        })
    }

    /// The sequence number that acknowledges this segment.
    pub(crate) fn next_seq(&self) -> u32 {
        let flags = u32::from(self.flags & (SYN | FIN) != 0);
        let length = u32::try_from(self.payload.len()).unwrap_or(0);
        self.seq.wrapping_add(length).wrapping_add(flags)
    }

    /// An answer in the other direction.
    pub(crate) fn reply(&self, seq: u32, flags: u8, payload: &[u8]) -> Self {
        Self {
            from: self.to,
            to: self.from,
            from_port: self.to_port,
            to_port: self.from_port,
            seq,
            ack: self.next_seq(),
            flags,
            payload: payload.to_vec(),
        }
    }

    /// The whole packet, with checksums.
    pub(crate) fn bytes(&self, ttl: u8) -> Vec<u8> {
        let mut tcp = Vec::with_capacity(20 + self.payload.len());
        tcp.extend(self.from_port.to_be_bytes());
        tcp.extend(self.to_port.to_be_bytes());
        tcp.extend(self.seq.to_be_bytes());
        tcp.extend(self.ack.to_be_bytes());
        tcp.extend([5 << 4, self.flags]);
        tcp.extend(65_000_u16.to_be_bytes());
        tcp.extend([0; 4]);
        tcp.extend(&self.payload);
        ip(self.from, self.to, 6, ttl, tcp, 16)
    }
}

/// An ICMP or ICMPv6 error about `original`, sent by `from` to the original's sender.
/// None when the families differ.
pub(crate) fn icmp_error(from: IpAddr, kind: u8, code: u8, original: &[u8], ttl: u8) -> Option<Vec<u8>> {
    let to = match (original.first()? >> 4, from) {
        (4, IpAddr::V4(_)) => IpAddr::from(<[u8; 4]>::try_from(original.get(12..16)?).ok()?),
        (6, IpAddr::V6(_)) => IpAddr::from(<[u8; 16]>::try_from(original.get(8..24)?).ok()?),
        _ => return None,
    };
    let mut body = vec![kind, code, 0, 0, 0, 0, 0, 0];
    body.extend(original.iter().take(512));
    let protocol = if from.is_ipv4() { 1 } else { 58 };
    Some(ip(from, to, protocol, ttl, body, 2))
}

/// Puts the IP header before `body` and its checksum at `checksum_at`.
fn ip(from: IpAddr, to: IpAddr, protocol: u8, ttl: u8, mut body: Vec<u8>, checksum_at: usize) -> Vec<u8> {
    let length = u16::try_from(body.len()).unwrap_or(u16::MAX);
    let mut pseudo = Vec::with_capacity(40 + body.len());
    let mut header = Vec::with_capacity(40 + body.len());
    match (from, to) {
        (IpAddr::V4(from), IpAddr::V4(to)) => {
            if protocol != 1 {
                pseudo.extend(Ipv4Addr::octets(&from));
                pseudo.extend(to.octets());
                pseudo.extend([0, protocol]);
                pseudo.extend(length.to_be_bytes());
            }
            header.extend([0x45, 0]);
            header.extend((length + 20).to_be_bytes());
            header.extend([0, 0, 0x40, 0, ttl, protocol, 0, 0]);
            header.extend(from.octets());
            header.extend(to.octets());
            let sum = checksum(&header);
            header[10..12].copy_from_slice(&sum.to_be_bytes());
        }
        (from, to) => {
            let (from, to) = (v6(from), v6(to));
            pseudo.extend(from.octets());
            pseudo.extend(to.octets());
            pseudo.extend(u32::from(length).to_be_bytes());
            pseudo.extend([0, 0, 0, protocol]);
            header.extend([0x60, 0, 0, 0]);
            header.extend(length.to_be_bytes());
            header.extend([protocol, ttl]);
            header.extend(from.octets());
            header.extend(to.octets());
        }
    }
    pseudo.extend(&body);
    let sum = checksum(&pseudo);
    if let Some(field) = body.get_mut(checksum_at..checksum_at + 2) {
        field.copy_from_slice(&sum.to_be_bytes());
    }
    header.extend(body);
    header
}

fn v6(address: IpAddr) -> Ipv6Addr {
    match address {
        IpAddr::V4(address) => address.to_ipv6_mapped(),
        IpAddr::V6(address) => address,
    }
}

/// RFC 1071.
fn checksum(bytes: &[u8]) -> u16 {
    let mut sum = 0_u32;
    for pair in bytes.chunks(2) {
        sum += u32::from(u16::from_be_bytes([pair[0], pair.get(1).copied().unwrap_or(0)]));
    }
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !u16::try_from(sum).unwrap_or(0)
}

fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_be_bytes(bytes.get(at..at + 2)?.try_into().ok()?))
}

fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_be_bytes(bytes.get(at..at + 4)?.try_into().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn syn(from: &str, to: &str) -> Segment {
        Segment {
            from: from.parse().unwrap(),
            to: to.parse().unwrap(),
            from_port: 40_000,
            to_port: 80,
            seq: u32::MAX,
            ack: 0,
            flags: SYN,
            payload: Vec::new(),
        }
    }

    #[test]
    fn there_and_back() {
        for (from, to) in [("10.0.0.1", "203.0.113.9"), ("2001:db8::1", "2001:db8:5::9")] {
            let syn = syn(from, to);
            assert_eq!(Segment::parse(&syn.bytes(64)), Some(syn.clone()));
            let answer = syn.reply(7, SYN | ACK, b"");
            assert_eq!((answer.ack, answer.to, answer.to_port), (0, syn.from, 40_000));
        }
    }

    #[test]
    fn icmp_quotes_the_packet() {
        let original = syn("10.0.0.1", "203.0.113.9").bytes(64);
        let error = icmp_error("203.0.113.1".parse().unwrap(), 3, 13, &original, 60).unwrap();
        assert_eq!(checksum(&error[20..]), 0);
        assert_eq!(checksum(&error[..20]), 0);
        assert_eq!(&error[28..], original);
        assert!(icmp_error("2001:db8::1".parse().unwrap(), 1, 1, &original, 60).is_none());
    }

    #[test]
    fn odd_bytes_are_refused() {
        assert_eq!(Segment::parse(&[]), None);
        assert_eq!(Segment::parse(&[0x45; 12]), None);
        let whole = syn("10.0.0.1", "203.0.113.9").bytes(64);
        assert_eq!(Segment::parse(&whole[..30]), None);
    }
}
