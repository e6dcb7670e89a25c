//! The packet of the evidence, as far as it is known.

use std::net::{IpAddr, SocketAddr};

use super::Bits;

/// A network device at the time.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum Interface {
    /// The hook has none there.
    None,
    /// This one.
    Known {
        /// Its number.
        index: u32,
        /// Its name.
        name: String,
    },
    /// Not known.
    #[default]
    Unknown,
}

/// A TCP packet of the handshake.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Packet {
    /// IPv6.
    pub v6: bool,
    /// From the server to nginx.
    pub reply: bool,
    /// Source, if it is known.
    pub source: Option<SocketAddr>,
    /// Destination, if it is known.
    pub destination: Option<SocketAddr>,
    /// It had a conntrack entry; false: not known.
    pub tracked: bool,
    /// The destination is not what nginx asked for: DNAT has been before the drop.
    pub translated: bool,
    /// Incoming device.
    pub input: Interface,
    /// Outgoing device.
    pub output: Interface,
    /// User and group of the sending process (fsuid, fsgid), where the hook can see them.
    pub owner: Option<(u32, u32)>,
    /// It is known to begin a connection whose ports no earlier one had of late: to conntrack it is new.
    pub fresh: bool,
}

/// IPPROTO_TCP.
pub(super) const TCP: u8 = 6;
const FIN: u8 = 0x01;
const SYN: u8 = 0x02;
const RST: u8 = 0x04;
const PSH: u8 = 0x08;
const ACK: u8 = 0x10;
const URG: u8 = 0x20;

impl Packet {
    /// Its network header. IP options are not expected: without them the transport header follows.
    #[must_use]
    pub fn network(&self) -> Bits {
        let (len, version, protocol_at, addresses_at, address_len) =
            if self.v6 { (40, 6, 6, 8, 16) } else { (20, 4, 9, 12, 4) };
        let mut header = Bits::unknown(len);
        header.put(0, &Bits::partly(&[version << 4], &[0xf0]));
        header.put(protocol_at, &Bits::known(&[TCP]));
        for (number, address) in [self.source, self.destination].into_iter().enumerate() {
            if let Some(address) = address {
                header.put(addresses_at + number * address_len, &Bits::known(&octets(address.ip())));
            }
        }
        header
    }

    /// Its TCP header.
    #[must_use]
    pub fn transport(&self) -> Bits {
        let mut header = Bits::unknown(20);
        for (number, address) in [self.source, self.destination].into_iter().enumerate() {
            if let Some(address) = address {
                header.put(number * 2, &Bits::known(&address.port().to_be_bytes()));
            }
        }
        let flags = if self.reply {
            // A SYN-ACK, or the peer's RST.
            Bits::partly(&[ACK], &[ACK])
        } else {
            Bits::partly(&[SYN], &[FIN | SYN | RST | PSH | ACK | URG])
        };
        header.put(13, &flags);
        header
    }

    /// The TCP flags: which are known, and their values.
    #[must_use]
    pub fn flags(&self) -> Bits {
        self.transport().slice(13, 1)
    }

    /// Bits of the conntrack states that it can be in (NF_CT_STATE_BIT), in a chain of that priority at a hook
    /// where conntrack comes in. None: any.
    #[must_use]
    pub fn states(&self, after_conntrack: bool) -> Option<u32> {
        const ESTABLISHED: u32 = 2;
        const RELATED: u32 = 4;
        const NEW: u32 = 8;
        const UNTRACKED: u32 = 64;
        if self.fresh && !self.reply && after_conntrack {
            // Tracked, it is new; a rule may have exempted it.
            return Some(NEW | UNTRACKED);
        }
        match (self.tracked && after_conntrack, self.reply) {
            (false, _) => None,
            // Established, if the entry is that of an earlier connection with the same ports.
            (true, false) => Some(NEW | ESTABLISHED),
            (true, true) => Some(ESTABLISHED | RELATED),
        }
    }
}

pub(super) fn octets(ip: IpAddr) -> Vec<u8> {
    match ip {
        IpAddr::V4(ip) => ip.octets().to_vec(),
        IpAddr::V6(ip) => ip.octets().to_vec(),
    }
}
