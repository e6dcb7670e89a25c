//! Times for people and machines, without a calendar library: libc knows the time zone.

use std::time::{SystemTime, UNIX_EPOCH};

fn parts(time: SystemTime) -> (i64, u32) {
    let since = time.duration_since(UNIX_EPOCH).unwrap_or_default();
    (i64::try_from(since.as_secs()).unwrap_or(i64::MAX), since.subsec_nanos())
}

fn broken_down(seconds: i64, local: bool) -> libc::tm {
    // SAFETY: `tm` is plain data for which zero is valid, and the functions write into it alone.
    unsafe {
        let mut tm: libc::tm = std::mem::zeroed();
        if local {
            libc::localtime_r(&raw const seconds, &raw mut tm);
        } else {
            libc::gmtime_r(&raw const seconds, &raw mut tm);
        }
        tm
    }
}

/// RFC 3339 in UTC with microseconds: `2026-11-22T14:02:11.482113Z`.
pub(super) fn rfc3339(time: SystemTime) -> String {
    let (seconds, nanos) = parts(time);
    let tm = broken_down(seconds, false);
    format!(
        "{:04}-{:02}-{:02}T{:02}:{:02}:{:02}.{:06}Z",
        i64::from(tm.tm_year) + 1900,
        tm.tm_mon + 1,
        tm.tm_mday,
        tm.tm_hour,
        tm.tm_min,
        tm.tm_sec,
        nanos / 1000
    )
}

/// Local time of day with milliseconds: `14:02:11.482`.
pub(super) fn clock(time: SystemTime) -> String {
    let (seconds, nanos) = parts(time);
    let tm = broken_down(seconds, true);
    format!("{:02}:{:02}:{:02}.{:03}", tm.tm_hour, tm.tm_min, tm.tm_sec, nanos / 1_000_000)
}

/// Local date and time: `2026-11-22 14:02:11`.
pub fn moment(time: SystemTime) -> String {
    let tm = broken_down(parts(time).0, true);
    format!(
        "{:04}-{:02}-{:02} {:02}:{:02}:{:02}",
        i64::from(tm.tm_year) + 1900,
        tm.tm_mon + 1,
        tm.tm_mday,
        tm.tm_hour,
        tm.tm_min,
        tm.tm_sec
    )
}

/// What this machine's clock is ahead of UTC at a time (seconds after 1970), seconds.
#[must_use]
pub fn local_offset(at: i64) -> i64 {
    broken_down(at, true).tm_gmtoff
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn writes_rfc3339() {
        let time = UNIX_EPOCH + Duration::from_micros(1_795_356_131_482_113);
        assert_eq!(rfc3339(time), "2026-11-22T14:02:11.482113Z");
        assert_eq!(rfc3339(UNIX_EPOCH), "1970-01-01T00:00:00.000000Z");
    }
}
