//! Packets that this machine dropped.

use std::net::SocketAddr;

use tracer_ebpf as wire;

use super::DecodeError;

/// What a drop means; see [`wire::drop_class`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub enum DropClass {
    /// A reason without a class of its own.
    Other,
    /// A netfilter hook.
    Netfilter,
    /// No socket wanted the packet.
    NoSocket,
    /// Reverse path filter.
    RpFilter,
    /// A cgroup egress or socket filter program.
    Bpf,
    /// Traffic control.
    Tc,
    /// Neighbour discovery failed.
    Neighbour,
    /// No route.
    NoRoute,
    /// IPsec policy.
    Xfrm,
    /// The final ACK met a full accept queue.
    ListenOverflow,
}

impl TryFrom<u8> for DropClass {
    type Error = DecodeError;

    fn try_from(value: u8) -> Result<Self, DecodeError> {
        use wire::drop_class as class;
        match value {
            class::OTHER => Ok(DropClass::Other),
            class::NETFILTER => Ok(DropClass::Netfilter),
            class::NO_SOCKET => Ok(DropClass::NoSocket),
            class::RPFILTER => Ok(DropClass::RpFilter),
            class::BPF => Ok(DropClass::Bpf),
            class::TC => Ok(DropClass::Tc),
            class::NEIGH => Ok(DropClass::Neighbour),
            class::NO_ROUTE => Ok(DropClass::NoRoute),
            class::XFRM => Ok(DropClass::Xfrm),
            class::LISTEN_OVERFLOW => Ok(DropClass::ListenOverflow),
            other => Err(DecodeError::Field("drop_class", u64::from(other))),
        }
    }
}

/// Packets of the handshake that this machine dropped.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Drop {
    /// Class of the last drop.
    pub class: DropClass,
    /// `enum skb_drop_reason` of the last drop; 0 before 5.17.
    pub reason: u32,
    /// Packets dropped.
    pub count: u32,
    /// First drop, CLOCK_MONOTONIC ns.
    pub first_ns: u64,
    /// Last drop, CLOCK_MONOTONIC ns.
    pub last_ns: u64,
    /// Kernel address that freed the packet.
    #[serde(skip)]
    pub location: u64,
    /// Return addresses, innermost first.
    #[serde(skip)]
    pub stack: Vec<u64>,
    /// Network namespace of the last drop; 0 unknown.
    pub netns: u32,
    /// The packet was on its way back to nginx.
    pub reply: bool,
    /// The packet had a conntrack entry.
    pub conntrack: bool,
    /// Bit set of classes seen.
    pub(super) classes: u8,
    /// Namespace whose stack had no socket for the SYN; 0 if none said so.
    pub no_socket_netns: u32,
    /// Destination that the packet carried: differs from the attempt's after DNAT.
    pub wire_dst: SocketAddr,
}

impl Drop {
    /// What must have become of `count` SYNs to `to` in a namespace, without anybody having seen it: as its rules say, or as
    /// it has no socket for them.
    #[must_use]
    pub fn deduced(class: DropClass, netns: u32, to: SocketAddr, count: u32) -> Self {
        Self {
            class,
            reason: 0,
            count,
            first_ns: 0,
            last_ns: 0,
            location: 0,
            stack: Vec::new(),
            netns,
            reply: false,
            // A full connection tracking table is no rival of what was deduced from rules.
            conntrack: true,
            classes: if (class as u8) < 8 { 1 << (class as u8) } else { 0 },
            no_socket_netns: if class == DropClass::NoSocket { netns } else { 0 },
            wire_dst: to,
        }
    }

    /// Leaves only the last drop if the entry began with an earlier connection that had the same ports.
    pub fn forget_before(&mut self, start_ns: u64) {
        if self.first_ns >= start_ns {
            return;
        }
        self.first_ns = self.last_ns;
        self.count = 1;
        self.classes = if (self.class as u8) < 8 { 1 << (self.class as u8) } else { 0 };
        if self.class != DropClass::NoSocket {
            self.no_socket_netns = 0;
        }
    }

    /// This and what was seen of the same attempt later.
    #[must_use]
    pub fn and_later(self, later: Self) -> Self {
        let no_socket_netns =
            if later.no_socket_netns == 0 { self.no_socket_netns } else { later.no_socket_netns };
        Self {
            count: self.count.saturating_add(later.count),
            first_ns: self.first_ns,
            classes: self.classes | later.classes,
            no_socket_netns,
            ..later
        }
    }

    /// True if a drop of that class was seen.
    #[must_use]
    pub fn saw(&self, class: DropClass) -> bool {
        self.class == class || ((class as u8) < 8 && self.classes >> (class as u8) & 1 == 1)
    }
}
