//! Loopback addresses: every network namespace has its own, so addresses and ports alone name no connection there.

use crate::Addr;

/// True for 127.0.0.0/8 and ::1. As two words: comparing bytes would call `memcmp`.
#[must_use]
#[inline(always)]
pub const fn is_loopback(addr: &Addr) -> bool {
    let a = addr;
    let high = u64::from_be_bytes([a[0], a[1], a[2], a[3], a[4], a[5], a[6], a[7]]);
    let low = u64::from_be_bytes([a[8], a[9], a[10], a[11], a[12], a[13], a[14], a[15]]);
    // ::1, and ::ffff:127.x.y.z.
    high == 0 && (low == 1 || low >> 24 == 0xff_ff7f)
}

/// True if what was seen of a flow to `daddr` in the network namespace `seen` (0 unknown) belongs to the connection of the
/// namespace `own`. To a loopback address only its own namespace's does, and what happened nobody knows where does not: taken
/// for this connection's it would prove what another's packets went through. Whoever turns it down has a gap in the evidence,
/// since it may have been this connection's after all.
#[must_use]
#[inline(always)]
pub const fn is_own(daddr: &Addr, seen: u32, own: u32) -> bool {
    !is_loopback(daddr) || (seen != 0 && seen == own)
}
