//! SELinux's policy: bytes → [`Policy`] → what it allows, what would allow it, how a port is labelled. Pure: where the
//! bytes come from is no matter of this module.

mod access;
mod bytes;
mod constraint;
mod context;
pub mod kernel;
pub mod labels;
mod policy;
mod ports;

pub use access::{Access, Remedy};
pub use bytes::PolicyError;
pub use context::{Context, type_of};
pub use policy::Policy;
pub use ports::{Port, TCP};

#[cfg(test)]
mod tests;
