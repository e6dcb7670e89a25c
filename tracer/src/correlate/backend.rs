//! The process at the far end of a connection that stood.

use crate::event::Death;

/// What is known of it; all empty for a server on another machine.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Backend {
    /// The process whose end closed the connection.
    pub death: Option<Death>,
}
