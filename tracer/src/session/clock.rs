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

/// CLOCK_BOOTTIME, ns: what the kernel dates programs by.
pub(super) fn boottime_ns() -> u64 {
    let mut now = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: a valid structure; this clock exists since 2.6.39.
    unsafe { libc::clock_gettime(libc::CLOCK_BOOTTIME, &raw mut now) };
    let seconds = u64::try_from(now.tv_sec).unwrap_or(0);
    seconds * 1_000_000_000 + u64::try_from(now.tv_nsec).unwrap_or(0)
}
