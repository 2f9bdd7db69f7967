//! How durations are distributed, in buckets small enough to be kept for a day and summed over replicas.

use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// How many buckets there are.
const BUCKETS: usize = 84;

/// The upper bound of the first bucket, in seconds.
const FIRST: f64 = 0.001;

/// How many buckets double the bound: each bucket is 19 % wider than the one before.
const PER_DOUBLING: f64 = 4.0;

/// A distribution of durations from 1 ms to half an hour. A quantile is off by less than 19 %: by the width
/// of its bucket.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Distribution {
    /// Bucket `n` counts durations up to `FIRST * 2^(n / PER_DOUBLING)`. The last has no upper bound.
    buckets: [u32; BUCKETS],
}

impl Default for Distribution {
    fn default() -> Self {
        Self { buckets: [0; BUCKETS] }
    }
}

impl Distribution {
    /// Counts one duration.
    pub fn observe(&mut self, duration: Duration) {
        let bucket = &mut self.buckets[bucket_of(duration)];
        *bucket = bucket.saturating_add(1);
    }

    /// How many durations were counted.
    pub fn count(&self) -> u64 {
        self.buckets.iter().map(|count| u64::from(*count)).sum()
    }

    /// The duration that a share of all durations does not exceed, such as 0.95. `None` if none was counted.
    pub fn quantile(&self, share: f64) -> Option<Duration> {
        let count = self.count();
        if count == 0 {
            return None;
        }
        let rank = share.clamp(0.0, 1.0) * count as f64;
        let mut below = 0.0;
        for (index, counted) in self.buckets.iter().enumerate().filter(|(_, count)| **count > 0) {
            let counted = f64::from(*counted);
            if below + counted >= rank {
                let lower = if index == 0 { 0.0 } else { bound(index - 1) };
                let within = ((rank - below) / counted).clamp(0.0, 1.0);
                return Some(Duration::from_secs_f64(lower + within * (bound(index) - lower)));
            }
            below += counted;
        }
        None
    }

    /// Adds the durations of another distribution.
    pub fn add(&mut self, other: &Self) {
        for (count, more) in self.buckets.iter_mut().zip(&other.buckets) {
            *count = count.saturating_add(*more);
        }
    }

    /// What was counted since `before`.
    pub(super) fn since(&self, before: &Self) -> Self {
        let mut buckets = self.buckets;
        for (count, before) in buckets.iter_mut().zip(&before.buckets) {
            // The counters of a process wrap around.
            *count = count.wrapping_sub(*before);
        }
        Self { buckets }
    }
}

/// The upper bound of a bucket, in seconds.
fn bound(bucket: usize) -> f64 {
    FIRST * (bucket as f64 / PER_DOUBLING).exp2()
}

fn bucket_of(duration: Duration) -> usize {
    let doublings = (duration.as_secs_f64() / FIRST).log2();
    // The conversion turns negative numbers into 0.
    ((doublings * PER_DOUBLING).ceil() as usize).min(BUCKETS - 1)
}

/// The counts of the buckets that are not empty, each after its index.
impl Serialize for Distribution {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let counts = self.buckets.iter().enumerate().filter(|(_, count)| **count > 0);
        serializer.collect_seq(counts.map(|(index, count)| (index, *count)))
    }
}

impl<'de> Deserialize<'de> for Distribution {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let mut read = Self::default();
        for (index, count) in Vec::<(usize, u32)>::deserialize(deserializer)? {
            if let Some(bucket) = read.buckets.get_mut(index) {
                *bucket = count;
            }
        }
        Ok(read)
    }
}

/// A distribution that all threads add to. Its counts wrap around.
#[derive(Debug)]
pub(super) struct SharedDistribution([AtomicU32; BUCKETS]);

impl Default for SharedDistribution {
    fn default() -> Self {
        Self([const { AtomicU32::new(0) }; BUCKETS])
    }
}

impl SharedDistribution {
    /// Counts one duration.
    pub fn observe(&self, duration: Duration) {
        self.0[bucket_of(duration)].fetch_add(1, Ordering::Relaxed);
    }

    /// The counts until now.
    pub fn read(&self) -> Distribution {
        Distribution { buckets: std::array::from_fn(|n| self.0[n].load(Ordering::Relaxed)) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn seconds(duration: Option<Duration>) -> f64 {
        duration.expect("durations were counted").as_secs_f64()
    }

    #[test]
    fn quantiles_are_off_by_no_more_than_a_bucket() {
        let mut distribution = Distribution::default();
        assert_eq!(distribution.quantile(0.5), None);
        for millis in 1..=10_000 {
            distribution.observe(Duration::from_millis(millis));
        }
        assert_eq!(distribution.count(), 10_000);
        for (share, exact) in [(0.1, 1.0), (0.5, 5.0), (0.95, 9.5), (0.99, 9.9), (1.0, 10.0)] {
            let found = seconds(distribution.quantile(share));
            assert!((exact / 1.2..=exact * 1.2).contains(&found), "{share}: {found}, not {exact}");
        }
    }

    #[test]
    fn extreme_durations_are_counted_in_the_first_and_the_last_bucket() {
        let mut distribution = Distribution::default();
        distribution.observe(Duration::ZERO);
        assert!(seconds(distribution.quantile(1.0)) <= 0.001);
        for duration in [Duration::from_secs(3600), Duration::MAX] {
            distribution.observe(duration);
            assert!((1700.0..2000.0).contains(&seconds(distribution.quantile(1.0))));
        }
    }

    #[test]
    fn a_difference_of_wrapped_counts_is_right() {
        let shared = SharedDistribution::default();
        shared.0[3].store(u32::MAX - 1, Ordering::Relaxed);
        let before = shared.read();
        for _ in 0..5 {
            shared.observe(Duration::from_micros(1600));
        }
        assert_eq!(shared.read().since(&before).count(), 5);
    }

    #[test]
    fn it_is_written_sparsely_and_read_with_bounds() {
        let mut distribution = Distribution::default();
        distribution.observe(Duration::from_secs(1));
        distribution.observe(Duration::from_secs(1));
        let written = serde_json::to_string(&distribution).unwrap();
        assert_eq!(written, "[[40,2]]");
        assert_eq!(serde_json::from_str::<Distribution>(&written).unwrap(), distribution);
        let hostile = serde_json::from_str::<Distribution>("[[99999,1],[2,7]]").unwrap();
        assert_eq!(hostile.count(), 7);
    }
}
