//! How fast results come.

use jiff::Timestamp;

/// How fast results come: an average that forgets what is more than about a minute old.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct Rate {
    /// Results, each weighted by its age.
    weighted: f64,
    /// The time over which they came, weighted in the same way, in seconds.
    seconds: f64,
    /// When it was last updated, in milliseconds since 1970; 0 before the first result.
    at: i64,
}

/// The age at which a result counts as 1/e of a new one, in seconds.
const RATE_MEMORY: f64 = 30.0;

impl Rate {
    /// The rate after `results` more results. A clock that was set back counts as standing still.
    #[must_use]
    pub fn after(self, results: u64, now: Timestamp) -> Self {
        let now = now.as_millisecond();
        let passed = if self.at == 0 { 0.0 } else { (now - self.at).max(0) as f64 / 1000.0 };
        let kept = (-passed / RATE_MEMORY).exp();
        Self {
            weighted: self.weighted * kept + results as f64,
            seconds: self.seconds * kept + RATE_MEMORY * (1.0 - kept),
            at: now,
        }
    }

    /// The rate as numbers that a store keeps: results and seconds, both weighted, and the time of the last
    /// update in milliseconds since 1970.
    pub(in crate::jobs) fn to_parts(self) -> (f64, f64, i64) {
        (self.weighted, self.seconds, self.at)
    }

    /// The rate from numbers that a store kept.
    pub(in crate::jobs) fn from_parts((weighted, seconds, at): (f64, f64, i64)) -> Self {
        Self { weighted, seconds, at }
    }

    /// Results per second; 0 before it can be told.
    pub fn per_second(self, now: Timestamp) -> f64 {
        let Self { weighted, seconds, .. } = self.after(0, now);
        if seconds < 0.5 { 0.0 } else { weighted / seconds }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The rate after a second of each entry, with so many results.
    fn rate(start: i64, results: &[u64]) -> (Rate, Timestamp) {
        let mut rate = Rate::default().after(0, time(start));
        for (second, results) in (1..).zip(results) {
            rate = rate.after(*results, time(start + 1000 * second));
        }
        (rate, time(start + 1000 * results.len() as i64))
    }

    fn time(millis: i64) -> Timestamp {
        Timestamp::from_millisecond(millis).unwrap()
    }

    fn is_about(found: f64, expected: f64) -> bool {
        (found - expected).abs() < expected * 0.05
    }

    #[test]
    fn the_rate_is_that_of_the_last_minute() {
        let (steady, now) = rate(1_000_000, &[50; 10]);
        assert!(is_about(steady.per_second(now), 50.0), "{}", steady.per_second(now));
        let changed: Vec<_> = [500; 300].into_iter().chain([20; 300]).collect();
        let (changed, now) = rate(1_000_000, &changed);
        assert!(is_about(changed.per_second(now), 20.0), "{}", changed.per_second(now));
    }

    #[test]
    fn the_rate_is_0_before_it_can_be_told() {
        let now = time(1_000_000);
        assert_eq!(Rate::default().per_second(now), 0.0);
        assert_eq!(Rate::default().after(1000, now).per_second(now), 0.0);
    }

    #[test]
    fn the_rate_falls_while_nothing_comes() {
        let (rate, now) = rate(1_000_000, &[50; 60]);
        let later = time(now.as_millisecond() + 120_000);
        assert!(rate.per_second(later) < 2.0, "{}", rate.per_second(later));
    }

    #[test]
    fn a_clock_that_was_set_back_stands_still_for_the_rate() {
        let (before, now) = rate(10_000_000, &[50; 60]);
        let back = time(1_000_000);
        assert!(is_about(before.per_second(back), before.per_second(now)));
        let mut rate = before.after(50, back);
        for second in 1..60 {
            rate = rate.after(50, time(1_000_000 + 1000 * second));
        }
        assert!(is_about(rate.per_second(time(1_059_000)), 50.0));
    }

    #[test]
    fn a_rate_is_kept_in_its_parts() {
        let (rate, _) = rate(1_000_000, &[3, 1, 4]);
        assert_eq!(Rate::from_parts(rate.to_parts()), rate);
    }
}
