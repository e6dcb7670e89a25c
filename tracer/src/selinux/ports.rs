//! Labels of ports.

use super::{Context, Policy};

/// `SECINITSID_PORT`: the context of a port that no line names.
const PORT_SID: u32 = 9;
/// `IPPROTO_TCP`.
pub const TCP: u32 = 6;

/// A `portcon` line.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Port {
    /// IP protocol.
    pub protocol: u32,
    /// First port.
    pub low: u32,
    /// Last port.
    pub high: u32,
    pub(super) context: Context,
}

impl Policy {
    /// The line that names a port: the first that fits, as the kernel takes it (`security_port_sid`).
    #[must_use]
    pub fn port_line(&self, protocol: u32, port: u16) -> Option<&Port> {
        let port = u32::from(port);
        self.ports.iter().find(|p| p.protocol == protocol && (p.low..=p.high).contains(&port))
    }

    /// Context of a port; None only if the policy lacks the one of all other ports.
    #[must_use]
    pub fn port_context(&self, protocol: u32, port: u16) -> Option<&Context> {
        self.port_line(protocol, port).map(|line| &line.context).or_else(|| self.initial.get(&PORT_SID))
    }

    /// Every type that a `portcon` line of the protocol gives, each once, in the policy's order.
    pub fn port_types(&self, protocol: u32) -> Vec<(&str, &Context)> {
        let mut found: Vec<(&str, &Context)> = Vec::new();
        for line in self.ports.iter().filter(|line| line.protocol == protocol) {
            let Some(kind) = self.types.get(&line.context.kind) else { continue };
            if found.iter().all(|(name, _)| *name != kind.name) {
                found.push((&kind.name, &line.context));
            }
        }
        found
    }
}
