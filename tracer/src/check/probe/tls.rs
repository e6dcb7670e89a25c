//! A TLS handshake without a word after it.

use std::os::fd::BorrowedFd;

use super::wire::{TlsAnswer, TlsAsk, TlsOutcome};

/// One under way.
pub(super) struct Handshake;

impl Handshake {
    pub(super) fn begin(_ask: &TlsAsk) -> Result<Self, TlsAnswer> {
        Err(TlsAnswer { outcome: TlsOutcome::Failed(String::new()), chain: Vec::new(), us: 0 })
    }

    pub(super) fn wants(&self) -> libc::c_short {
        libc::POLLIN
    }

    pub(super) fn advance(&mut self, _fd: BorrowedFd<'_>, _late: bool) -> Option<TlsAnswer> {
        None
    }
}
