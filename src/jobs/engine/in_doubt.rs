//! Calls whose results are not recorded. A crash repeats them.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use tokio::sync::Notify;
use tokio::time::timeout;

/// The shortest wait: timers are not finer.
const SHORTEST_WAIT: Duration = Duration::from_millis(1);

/// The calls in doubt of all jobs of this process.
#[derive(Debug, Default)]
pub(super) struct InDoubt {
    calls: AtomicUsize,
    fewer: Notify,
}

/// A call in doubt, until this is dropped.
#[derive(Debug)]
pub(super) struct CallInDoubt(Arc<InDoubt>);

impl InDoubt {
    /// Counts a call that is about to be sent, once there are fewer than `most`, or after `longest`.
    pub async fn begin(self: &Arc<Self>, most: usize, longest: Duration) -> CallInDoubt {
        if !self.take_place(most) {
            let has_place = async {
                while !self.take_place(most) {
                    self.fewer.notified().await;
                }
            };
            if longest < SHORTEST_WAIT || timeout(longest, has_place).await.is_err() {
                return self.begin_again();
            }
        }
        CallInDoubt(Arc::clone(self))
    }

    /// Counts a call that is sent again, at once.
    pub fn begin_again(self: &Arc<Self>) -> CallInDoubt {
        self.calls.fetch_add(1, Ordering::Relaxed);
        CallInDoubt(Arc::clone(self))
    }

    /// Counts a call if there are fewer than `most`.
    fn take_place(&self, most: usize) -> bool {
        let more = |calls: usize| (calls < most).then(|| calls + 1);
        self.calls.fetch_update(Ordering::Relaxed, Ordering::Relaxed, more).is_ok()
    }
}

impl Drop for CallInDoubt {
    fn drop(&mut self) {
        self.0.calls.fetch_sub(1, Ordering::Relaxed);
        // Kept for the next one that waits, if none does now.
        self.0.fewer.notify_one();
    }
}

#[cfg(test)]
mod tests {
    use tokio::time::{Instant, sleep};

    use super::*;

    const LONGEST: Duration = Duration::from_millis(60);

    #[tokio::test(start_paused = true)]
    async fn a_call_is_sent_once_fewer_are_in_doubt_or_after_the_longest_wait() {
        let in_doubt = Arc::new(InDoubt::default());
        let begin = Instant::now();
        let first = in_doubt.begin(2, LONGEST).await;
        let second = in_doubt.begin(2, LONGEST).await;
        assert_eq!(begin.elapsed(), Duration::ZERO, "there are fewer than two");
        let third = in_doubt.begin(2, LONGEST).await;
        assert!((60..=61).contains(&begin.elapsed().as_millis()), "{:?}", begin.elapsed());
        drop((first, second));
        let recorded = async {
            sleep(Duration::from_millis(5)).await;
            drop(third);
        };
        let begin = Instant::now();
        let fourth = in_doubt.begin(2, LONGEST).await;
        let (fifth, ()) = tokio::join!(in_doubt.begin(2, LONGEST), recorded);
        assert_eq!(begin.elapsed(), Duration::from_millis(5), "until one was recorded");
        let quick = in_doubt.begin(2, Duration::from_micros(900)).await;
        assert_eq!(begin.elapsed(), Duration::from_millis(5), "calls are quicker than timers");
        drop((fourth, fifth, quick));
        assert_eq!(in_doubt.calls.load(Ordering::Relaxed), 0);
    }

    #[tokio::test(start_paused = true)]
    async fn every_call_that_waits_is_woken() {
        let in_doubt = Arc::new(InDoubt::default());
        let held = in_doubt.begin(1, LONGEST).await;
        let waits = (0..10).map(|_| in_doubt.begin(1, Duration::from_secs(60)));
        let begin = Instant::now();
        let all = futures_util::future::join_all(waits.map(|call| async { drop(call.await) }));
        let release = async {
            sleep(Duration::from_millis(5)).await;
            drop(held);
        };
        tokio::join!(all, release);
        assert_eq!(begin.elapsed(), Duration::from_millis(5));
    }
}
