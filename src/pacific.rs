//! Gemini's day. Daily quotas reset at midnight in California, with daylight saving time. Source: Gemini
//! API documentation, rate limits ("RPD quotas reset at midnight Pacific time").

use std::fmt;
use std::sync::LazyLock;
use std::time::Duration;

use jiff::tz::TimeZone;
use jiff::{SignedDuration, Timestamp};
use tokio::time::Instant;

/// California's time.
static PACIFIC: LazyLock<TimeZone> = LazyLock::new(|| {
    TimeZone::get("America/Los_Angeles").expect("the time zone database is compiled in")
});

/// The midnight in California at which the day of `now` began.
pub fn last_midnight(now: Timestamp) -> Timestamp {
    let midnight = now.to_zoned_datetime(PACIFIC.clone()).start_of_day();
    midnight.expect("the day of now is a valid date").timestamp()
}

/// The time from `now` to the next midnight in California.
pub fn until_midnight(now: Timestamp) -> Duration {
    let now = now.to_zoned_datetime(PACIFIC.clone());
    let midnight = now.tomorrow().and_then(|tomorrow| tomorrow.start_of_day());
    let midnight = midnight.expect("the day after now is a valid date");
    Duration::try_from(now.duration_until(&midnight)).expect("tomorrow is after now")
}

/// A wall clock. Unlike tokio's clock it can be set, and it continues while the machine is suspended.
pub trait WallClock: fmt::Debug + Send + Sync {
    /// The wall clock's time at `now`, the present moment on tokio's clock.
    fn at(&self, now: Instant) -> Timestamp;
}

/// The wall clock of this machine.
#[derive(Debug, Clone, Copy)]
pub struct SystemClock;

impl WallClock for SystemClock {
    fn at(&self, _now: Instant) -> Timestamp {
        Timestamp::now()
    }
}

/// Maps tokio's clock, which tests can pause, to the calendar. Valid as long as the wall clock is not set
/// and the machine is not suspended.
#[derive(Debug, Clone, Copy)]
pub struct Calendar {
    /// The wall clock's time at `instant`.
    pub wall: Timestamp,
    /// The same moment on tokio's clock.
    pub instant: Instant,
}

impl WallClock for Calendar {
    fn at(&self, now: Instant) -> Timestamp {
        self.wall_at(now)
    }
}

impl Calendar {
    /// The next midnight in California after `at`.
    pub fn midnight_after(self, at: Instant) -> Instant {
        at + until_midnight(self.wall_at(at))
    }

    /// The wall clock's time at `at`.
    pub fn wall_at(self, at: Instant) -> Timestamp {
        let wall = || {
            let since = SignedDuration::try_from(at.saturating_duration_since(self.instant))?;
            let before = SignedDuration::try_from(self.instant.saturating_duration_since(at))?;
            self.wall.checked_add(since)?.checked_sub(before)
        };
        wall().expect("the time is a valid date")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOUR: u64 = 3600;

    fn until(now: &str) -> Duration {
        until_midnight(now.parse().unwrap())
    }

    #[test]
    fn a_day_ends_at_midnight_in_california() {
        // Summer, UTC−7; winter, UTC−8.
        assert_eq!(until("2026-07-01T06:59:59.5Z"), Duration::from_millis(500));
        assert_eq!(until("2026-07-01T07:00:00Z"), Duration::from_secs(24 * HOUR));
        assert_eq!(until("2026-12-01T00:00:00Z"), Duration::from_secs(8 * HOUR));
        let begun = |now: &str| last_midnight(now.parse().unwrap()).to_string();
        assert_eq!(begun("2026-07-01T07:00:00Z"), "2026-07-01T07:00:00Z");
        assert_eq!(begun("2026-12-01T07:59:59Z"), "2026-11-30T08:00:00Z");
    }

    #[test]
    fn days_with_clock_changes_have_23_and_25_hours() {
        let hours = |now| until(now).as_secs_f64() / HOUR as f64;
        assert_eq!(hours("2026-03-08T08:00:00Z"), 23.0, "from the first moment of the day");
        assert_eq!(hours("2026-03-08T09:59:00Z"), 21.0 + 1.0 / 60.0, "a minute before the change");
        assert_eq!(hours("2026-03-08T10:00:00Z"), 21.0, "at the change");
        assert_eq!(hours("2026-11-01T07:00:00Z"), 25.0);
        assert_eq!(hours("2026-11-01T08:30:00Z"), 23.5, "half past one, the first time");
        assert_eq!(hours("2026-11-01T09:30:00Z"), 22.5, "half past one, the second time");
    }
}
