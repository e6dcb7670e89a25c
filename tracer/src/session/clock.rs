//! The kernel's clock, by which its records count, and the wall's.

use std::time::{Duration, SystemTime};

/// Wall-clock time of a CLOCK_MONOTONIC instant.
pub(super) fn wall_clock(mono_ns: u64) -> SystemTime {
    SystemTime::now() - Duration::from_nanos(monotonic_ns().saturating_sub(mono_ns))
}

/// CLOCK_MONOTONIC, nanoseconds.
pub(super) fn monotonic_ns() -> u64 {
    let mut now = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: writes into the given timespec only.
    unsafe { libc::clock_gettime(libc::CLOCK_MONOTONIC, &raw mut now) };
    let seconds = u64::try_from(now.tv_sec).unwrap_or(0);
    seconds.saturating_mul(1_000_000_000).saturating_add(u64::try_from(now.tv_nsec).unwrap_or(0))
}
