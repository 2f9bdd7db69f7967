//! How long to wait before something is tried again.

use std::time::Duration;

/// The shortest and the longest wait of an item that a limit has stopped, unless the limit says how
/// long it lasts.
const PUT_OFF: (Duration, Duration) = (Duration::from_secs(1), LONGEST_GUESS);

/// The longest wait of such an item if the limit does not say how long it lasts.
pub(super) const LONGEST_GUESS: Duration = Duration::from_secs(60);

/// How long an item waits at most, whatever the limit says: limits are raised and reset.
const LONGEST_PUT_OFF: Duration = Duration::from_secs(600);

/// How often an item is repeated after a transient error. Each of these rounds has the attempts of a
/// single request.
const ROUNDS: u32 = 3;

/// The wait before the first such repetition. Each further one is four times as long.
const FIRST_ROUND: Duration = Duration::from_secs(5);

/// The shortest and the longest wait before the store or the queue is tried again.
const AGAIN: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(30));

/// How long an item waits that a limit has stopped. `before`: how often that happened before; `told`:
/// how long the limit lasts, if that is known.
pub(super) fn put_off(before: u32, told: Option<Duration>) -> Duration {
    let own = doubled(PUT_OFF, before);
    spread(told.unwrap_or_default().min(LONGEST_PUT_OFF).max(own))
}

/// How long an item waits after a transient error and `before` repetitions. `None` after the last
/// round.
pub(super) fn repeat(before: u32) -> Option<Duration> {
    (before < ROUNDS).then(|| spread(FIRST_ROUND * 4_u32.pow(before)))
}

/// How long to wait before the store or the queue is tried again, after `before` waits.
pub(super) fn again(before: u32) -> Duration {
    spread(doubled(AGAIN, before))
}

fn doubled((shortest, longest): (Duration, Duration), times: u32) -> Duration {
    shortest.saturating_mul(2_u32.saturating_pow(times)).min(longest)
}

/// Up to a quarter longer, so that what failed together is not tried together.
fn spread(wait: Duration) -> Duration {
    wait + wait.mul_f64(fastrand::f64() / 4.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn is_about(wait: Duration, seconds: u64) -> bool {
        wait >= Duration::from_secs(seconds) && wait <= Duration::from_secs(seconds).mul_f64(1.25)
    }

    #[test]
    fn an_item_that_a_limit_stops_waits_a_second_then_longer_and_never_less_than_told() {
        let told = |seconds| Some(Duration::from_secs(seconds));
        assert!(is_about(put_off(0, None), 1) && is_about(put_off(3, None), 8));
        assert!(is_about(put_off(1000, None), 60));
        assert!(is_about(put_off(0, told(0)), 1) && is_about(put_off(0, told(45)), 45));
        assert!(is_about(put_off(10, told(45)), 60));
        assert!(is_about(put_off(0, told(86_400)), 600));
    }

    #[test]
    fn an_item_with_a_transient_error_is_repeated_three_times() {
        let waits = [5, 20, 80];
        assert!((0..).zip(waits).all(|(before, wait)| is_about(repeat(before).unwrap(), wait)));
        assert_eq!(repeat(3), None);
    }

    #[test]
    fn the_store_is_tried_again_after_one_to_thirty_seconds() {
        assert!(is_about(again(0), 1) && is_about(again(4), 16) && is_about(again(50), 30));
    }
}
