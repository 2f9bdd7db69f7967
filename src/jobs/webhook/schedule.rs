//! When a message is sent again.

use std::time::Duration;

use jiff::Timestamp;

const MINUTE: u64 = 60;
const HOUR: u64 = 60 * MINUTE;

/// The waits after each failed attempt, in seconds. The first attempt is made at once, the last one
/// three days later. Source: the example schedule in the specification of Standard Webhooks.
const WAITS: [u64; 9] =
    [5, 5 * MINUTE, 30 * MINUTE, 2 * HOUR, 5 * HOUR, 10 * HOUR, 14 * HOUR, 20 * HOUR, 24 * HOUR];

/// The longest wait that a receiver can ask for.
pub(super) const LONGEST_WAIT: Duration = Duration::from_secs(24 * HOUR);

/// By how much a wait varies, so that messages that failed together are not sent together again.
const JITTER: f64 = 0.1;

/// The next attempt after one that failed at `now`, when `failed` attempts had failed before it. A
/// receiver can ask for a longer wait. `None` after the last attempt.
pub(super) fn next_attempt(
    failed: u32,
    asked: Option<Duration>,
    now: Timestamp,
) -> Option<Timestamp> {
    let wait = Duration::from_secs(*WAITS.get(usize::try_from(failed).ok()?)?);
    let wait = wait.max(asked.unwrap_or_default()).min(LONGEST_WAIT);
    let wait = wait.mul_f64(1.0 + JITTER * fastrand::f64());
    now.checked_add(wait).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wait(failed: u32, asked: Option<u64>) -> Option<f64> {
        let now = Timestamp::UNIX_EPOCH;
        let next = next_attempt(failed, asked.map(Duration::from_secs), now)?;
        Some(next.duration_since(now).as_secs_f64())
    }

    #[test]
    fn attempts_spread_over_three_days() {
        let waits: Vec<_> = (0..).map_while(|failed| wait(failed, None)).collect();
        assert_eq!(waits.len() + 1, 10, "attempts");
        for (wait, least) in waits.iter().zip(WAITS) {
            let least = least as f64;
            assert!((least..=least * 1.1).contains(wait), "{wait} {least}");
        }
        let all = waits.iter().sum::<f64>() / 3600.0;
        assert!((75.0..=84.0).contains(&all), "{all} hours");
    }

    #[test]
    fn a_receiver_can_ask_for_a_longer_wait_but_not_for_a_shorter_one() {
        for (failed, asked, least) in [
            (0, 60, 60.0),
            (0, 1, 5.0),
            (1, 0, 300.0),
            (3, 86_400, 86_400.0),
            (0, u64::MAX, 86_400.0),
        ] {
            let wait = wait(failed, Some(asked)).unwrap();
            assert!((least..=least * 1.1).contains(&wait), "{failed} {asked}: {wait}");
        }
        assert_eq!(wait(9, Some(60)), None);
        assert_eq!(wait(u32::MAX, None), None);
    }
}
