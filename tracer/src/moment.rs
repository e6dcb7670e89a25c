//! Moments for people and machines, without a calendar library: libc knows the time zone.
//!
//! A moment keeps the zone's offset of its own day and place, so that a recording shows it elsewhere as it was shown there.

use std::{
    fmt,
    time::{SystemTime, UNIX_EPOCH},
};

/// Seconds of a day.
const DAY: i64 = 86_400;

/// A moment, and how far local time was ahead of UTC then.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, serde::Serialize, serde::Deserialize)]
pub struct Moment {
    /// Seconds since 1970-01-01T00:00:00Z; 0 for earlier ones.
    seconds: i64,
    /// Nanoseconds of its second, below 1,000,000,000.
    nanos: u32,
    /// Local time minus UTC, seconds.
    offset: i32,
}

impl Moment {
    /// With the offset that this machine's zone has then.
    #[must_use]
    pub fn local(time: SystemTime) -> Self {
        let moment = Self::utc(time);
        // SAFETY: `tm` is plain data for which zero is valid, and the function writes into it alone.
        let tm = unsafe {
            let mut tm: libc::tm = std::mem::zeroed();
            libc::localtime_r(&raw const moment.seconds, &raw mut tm);
            tm
        };
        Self { offset: i32::try_from(tm.tm_gmtoff).unwrap_or(0), ..moment }
    }

    /// Shown in UTC.
    #[must_use]
    pub fn utc(time: SystemTime) -> Self {
        let since = time.duration_since(UNIX_EPOCH).unwrap_or_default();
        let seconds = i64::try_from(since.as_secs()).unwrap_or(i64::MAX);
        Self { seconds, nanos: since.subsec_nanos(), offset: 0 }
    }

    /// Nanoseconds since 1970.
    #[must_use]
    pub fn unix_ns(self) -> u64 {
        let seconds = u64::try_from(self.seconds).unwrap_or(0);
        seconds.saturating_mul(1_000_000_000).saturating_add(u64::from(self.nanos))
    }

    /// Seconds since 1970.
    #[must_use]
    pub fn unix_seconds(self) -> i64 {
        self.seconds
    }

    /// Local time minus UTC, seconds.
    #[must_use]
    pub fn offset(self) -> i32 {
        self.offset
    }

    /// RFC 3339 in UTC with microseconds: `2026-11-22T14:02:11.482113Z`.
    #[must_use]
    pub fn rfc3339(self) -> String {
        let (year, month, day) = civil(self.seconds.div_euclid(DAY));
        let (hour, minute, second) = of_day(self.seconds);
        let micros = self.nanos / 1000;
        format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}.{micros:06}Z")
    }

    /// Local time of day with milliseconds: `14:02:11.482`.
    #[must_use]
    pub fn clock(self) -> String {
        let (hour, minute, second) = of_day(self.there());
        format!("{hour:02}:{minute:02}:{second:02}.{:03}", self.nanos / 1_000_000)
    }

    /// Its seconds, counted as a clock on the wall does.
    fn there(self) -> i64 {
        self.seconds.saturating_add(i64::from(self.offset))
    }
}

/// Local date and time: `2026-11-22 14:02:11`.
impl fmt::Display for Moment {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (year, month, day) = civil(self.there().div_euclid(DAY));
        let (hour, minute, second) = of_day(self.there());
        write!(f, "{year:04}-{month:02}-{day:02} {hour:02}:{minute:02}:{second:02}")
    }
}

/// Local date and time of this machine: `2026-11-22 14:02:11`.
#[must_use]
pub fn moment(time: SystemTime) -> String {
    Moment::local(time).to_string()
}

/// What this machine's clock is ahead of UTC at a time (seconds after 1970), seconds.
#[must_use]
pub fn local_offset(at: i64) -> i64 {
    let since = std::time::Duration::from_secs(u64::try_from(at).unwrap_or(0));
    i64::from(Moment::local(UNIX_EPOCH.checked_add(since).unwrap_or(UNIX_EPOCH)).offset())
}

/// Hour, minute and second.
fn of_day(seconds: i64) -> (i64, i64, i64) {
    let of_day = seconds.rem_euclid(DAY);
    (of_day / 3600, of_day / 60 % 60, of_day % 60)
}

/// Year, month and day of a day since 1970-01-01 in the Gregorian calendar: years are taken to begin in March, so that the
/// leap day is their last, and repeat after 400 years of 146,097 days.
fn civil(day: i64) -> (i64, i64, i64) {
    let day = day.saturating_add(719_468);
    let era = day.div_euclid(146_097);
    let of_era = day.rem_euclid(146_097);
    let year = (of_era - of_era / 1460 + of_era / 36_524 - of_era / 146_096) / 365;
    let of_year = of_era - (365 * year + year / 4 - year / 100);
    let month = (5 * of_year + 2) / 153;
    let day = of_year - (153 * month + 2) / 5 + 1;
    let month = if month < 10 { month + 3 } else { month - 9 };
    (year + era * 400 + i64::from(month <= 2), month, day)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn at(micros: u64) -> SystemTime {
        UNIX_EPOCH + Duration::from_micros(micros)
    }

    #[test]
    fn writes_rfc3339() {
        assert_eq!(Moment::utc(at(1_795_356_131_482_113)).rfc3339(), "2026-11-22T14:02:11.482113Z");
        assert_eq!(Moment::utc(UNIX_EPOCH).rfc3339(), "1970-01-01T00:00:00.000000Z");
        assert_eq!(Moment::utc(at(951_782_400_000_000)).rfc3339(), "2000-02-29T00:00:00.000000Z");
    }

    #[test]
    fn shows_the_time_of_its_own_zone() {
        let there = Moment { offset: 19_800, ..Moment::utc(at(1_795_390_331_482_113)) };
        assert_eq!(there.to_string(), "2026-11-23 05:02:11");
        assert_eq!(there.clock(), "05:02:11.482");
        assert_eq!(there.rfc3339(), "2026-11-22T23:32:11.482113Z");
        let west = Moment { offset: -3600, ..Moment::utc(UNIX_EPOCH) };
        assert_eq!(west.to_string(), "1969-12-31 23:00:00");
    }

    #[test]
    fn agrees_with_libc_on_every_day_of_500_years() {
        for day in 0..182_621 {
            let seconds: i64 = day * DAY;
            // SAFETY: as in `Moment::local`.
            let tm = unsafe {
                let mut tm: libc::tm = std::mem::zeroed();
                libc::gmtime_r(&raw const seconds, &raw mut tm);
                tm
            };
            let known = (i64::from(tm.tm_year) + 1900, i64::from(tm.tm_mon) + 1, i64::from(tm.tm_mday));
            assert_eq!(civil(day), known, "day {day}");
        }
    }
}
