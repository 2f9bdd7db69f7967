//! The three ways of counting a per-minute quota.

use std::collections::VecDeque;
use std::time::Duration;

use tokio::time::Instant;

use super::options::Counting;

/// A per-minute quota and its usage.
pub(super) struct Meter {
    pub limit: u64,
    minute: Duration,
    usage: Usage,
}

enum Usage {
    /// The amounts of the last minute, oldest first, and their sum.
    SlidingWindow { taken: VecDeque<(Instant, u64)>, used: u64 },
    /// The number of the current minute since the start, and its sum.
    FixedMinute { start: Instant, number: u128, used: u64 },
    /// The content of the bucket; a debt when negative.
    TokenBucket { level: f64, updated: Instant },
}

impl Meter {
    /// An unused quota.
    pub fn new(counting: Counting, limit: u64, minute: Duration, start: Instant) -> Self {
        let usage = match counting {
            Counting::SlidingWindow => Usage::SlidingWindow { taken: VecDeque::new(), used: 0 },
            Counting::FixedMinute => Usage::FixedMinute { start, number: 0, used: 0 },
            Counting::TokenBucket => {
                Usage::TokenBucket { level: bucket_size(limit), updated: start }
            }
        };
        Self { limit, minute, usage }
    }

    /// How long until there is room for the amount; zero when there is. An amount above the whole
    /// quota never fits: the wait is a minute each time.
    pub fn wait(&mut self, amount: u64, now: Instant) -> Duration {
        self.age(now);
        if amount > self.limit {
            return self.minute;
        }
        match &self.usage {
            Usage::SlidingWindow { taken, used } => {
                let excess = (used + amount).saturating_sub(self.limit);
                until_freed(taken, excess, self.minute, now)
            }
            Usage::FixedMinute { used, .. } if used + amount <= self.limit => Duration::ZERO,
            Usage::FixedMinute { start, .. } => rest_of_minute(*start, now, self.minute),
            Usage::TokenBucket { level, .. } => {
                let missing = bucket_size(self.limit).min(amount as f64) - level;
                // Less than a billionth is a rounding error.
                if missing < 1e-9 {
                    Duration::ZERO
                } else {
                    self.minute.mul_f64(missing / self.limit as f64)
                }
            }
        }
    }

    /// Counts an amount.
    pub fn take(&mut self, amount: u64, now: Instant) {
        match &mut self.usage {
            Usage::SlidingWindow { taken, used } => {
                taken.push_back((now, amount));
                *used += amount;
            }
            Usage::FixedMinute { used, .. } => *used += amount,
            Usage::TokenBucket { level, .. } => *level -= amount as f64,
        }
    }

    /// Removes what no longer counts.
    fn age(&mut self, now: Instant) {
        match &mut self.usage {
            Usage::SlidingWindow { taken, used } => {
                while let Some(&(at, amount)) = taken.front()
                    && now.saturating_duration_since(at) >= self.minute
                {
                    taken.pop_front();
                    *used -= amount;
                }
            }
            Usage::FixedMinute { start, number, used } => {
                let current = (now - *start).as_nanos() / self.minute.as_nanos();
                if *number != current {
                    (*number, *used) = (current, 0);
                }
            }
            Usage::TokenBucket { level, updated } => {
                let minutes = now.saturating_duration_since(*updated).div_duration_f64(self.minute);
                *level = (*level + minutes * self.limit as f64).min(bucket_size(self.limit));
                *updated = now;
            }
        }
    }
}

/// The size of a bucket: one second's worth, and at least one.
fn bucket_size(limit: u64) -> f64 {
    (limit as f64 / 60.0).max(1.0)
}

/// How long until an amount of this size is older than a minute.
fn until_freed(
    taken: &VecDeque<(Instant, u64)>,
    excess: u64,
    minute: Duration,
    now: Instant,
) -> Duration {
    if excess == 0 {
        return Duration::ZERO;
    }
    let mut freed = 0;
    let last = taken.iter().find(|(_, amount)| {
        freed += amount;
        freed >= excess
    });
    last.map_or(minute, |&(at, _)| (at + minute).saturating_duration_since(now))
}

/// The rest of the current minute, counting minutes from a start.
pub(super) fn rest_of_minute(start: Instant, now: Instant, minute: Duration) -> Duration {
    let into_minute = (now - start).as_nanos() % minute.as_nanos();
    minute - Duration::from_nanos_u128(into_minute)
}
