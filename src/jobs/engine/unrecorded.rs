//! A job's results that are not recorded. A crash loses them, and their items are asked again, so they are
//! kept few.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use tokio::sync::Notify;
use tokio::time::timeout;

use super::memory::ItemMemory;
use crate::dispatch::Dispatcher;

/// How many results of a job may wait to be recorded, at least and for each slot. They are fewer as long
/// as the store keeps up.
const LEAST: usize = 16;
const PER_SLOT: usize = 2;

/// The shortest time that is waited for results to be recorded: clocks are not finer.
const SHORTEST_WAIT: Duration = Duration::from_millis(2);

/// The weight of a new call in the average time that calls take: one in so many.
const WEIGHT: u64 = 8;

/// The results of a run that are not recorded.
#[derive(Debug)]
pub(super) struct Unrecorded {
    dispatcher: Arc<Dispatcher>,
    memory: Arc<ItemMemory>,
    results: AtomicUsize,
    bytes: AtomicUsize,
    fewer: Notify,
    /// How long calls take on average, in microseconds.
    call: AtomicU64,
}

impl Unrecorded {
    /// None yet, of calls that this dispatcher makes.
    pub fn new(dispatcher: &Arc<Dispatcher>, memory: &Arc<ItemMemory>) -> Self {
        Self {
            dispatcher: Arc::clone(dispatcher),
            memory: Arc::clone(memory),
            results: AtomicUsize::new(0),
            bytes: AtomicUsize::new(0),
            fewer: Notify::new(),
            call: AtomicU64::new(0),
        }
    }

    /// Waits until there are few enough results for another call. While calls are slow and the store is
    /// not, there are none: the next call waits for its slot only when all is recorded. So a crash repeats
    /// one call more than there are slots at most. The wait ends after half the time between two answers,
    /// so that a slow store takes no slot from a job.
    pub async fn room(&self) {
        self.until(|this| this.is_below_most()).await;
        let longest = self.longest_wait();
        if longest >= SHORTEST_WAIT && self.results.load(Ordering::Relaxed) > 0 {
            let recorded = self.until(|this| this.results.load(Ordering::Relaxed) == 0);
            // It goes on either way.
            let _ = timeout(longest, recorded).await;
        }
    }

    async fn until(&self, is_so: impl Fn(&Self) -> bool) {
        loop {
            let fewer = self.fewer.notified();
            if is_so(self) {
                return;
            }
            fewer.await;
        }
    }

    fn is_below_most(&self) -> bool {
        let most = self.dispatcher.concurrency_limit().saturating_mul(PER_SLOT).max(LEAST);
        self.results.load(Ordering::Relaxed) < most
            && self.bytes.load(Ordering::Relaxed) < self.memory.unrecorded()
    }

    fn longest_wait(&self) -> Duration {
        let slots = u64::try_from(self.dispatcher.concurrency_limit()).unwrap_or(u64::MAX).max(1);
        Duration::from_micros(self.call.load(Ordering::Relaxed) / slots / 2)
    }

    /// Notes how long a call took.
    pub fn note_call(&self, took: Duration) {
        let took = u64::try_from(took.as_micros()).unwrap_or(u64::MAX);
        let average = self.call.load(Ordering::Relaxed);
        let average = average - average / WEIGHT + took / WEIGHT;
        // Another call may be noted meanwhile, and one of them is lost.
        self.call.store(average, Ordering::Relaxed);
    }

    /// Counts a result of so many bytes that is to be recorded.
    pub fn add(&self, bytes: usize) {
        self.results.fetch_add(1, Ordering::Relaxed);
        self.bytes.fetch_add(bytes, Ordering::Relaxed);
    }

    /// Counts a result that was recorded, or is not to be.
    pub fn subtract(&self, bytes: usize) {
        self.results.fetch_sub(1, Ordering::Relaxed);
        self.bytes.fetch_sub(bytes, Ordering::Relaxed);
        self.fewer.notify_waiters();
    }
}

#[cfg(test)]
mod tests {
    use tokio::time::Instant;

    use super::*;
    use crate::jobs::engine;
    use crate::limits::{Limiter, QuotaPlan};
    use crate::metrics::Metrics;

    fn dispatcher(slots: usize) -> Arc<Dispatcher> {
        let limiter = Limiter::new(slots, 10, QuotaPlan::default());
        let metrics = Arc::new(Metrics::new(Arc::clone(&limiter)));
        engine::tests::dispatcher(&limiter, &metrics)
    }

    async fn waited(unrecorded: &Unrecorded) -> Duration {
        let begin = Instant::now();
        unrecorded.room().await;
        begin.elapsed()
    }

    #[tokio::test(start_paused = true)]
    async fn the_next_of_slow_calls_waits_until_results_are_recorded_but_not_for_long() {
        let unrecorded = Unrecorded::new(&dispatcher(8), &ItemMemory::new(0));
        unrecorded.add(1);
        assert_eq!(waited(&unrecorded).await, Duration::ZERO, "nothing is known of calls");
        (0..100).for_each(|_| unrecorded.note_call(Duration::from_secs(1)));
        let longest = waited(&unrecorded).await;
        assert!((60..=63).contains(&longest.as_millis()), "{longest:?}");
        let recorded = async {
            tokio::time::sleep(Duration::from_millis(5)).await;
            unrecorded.subtract(1);
        };
        let (waited, ()) = tokio::join!(waited(&unrecorded), recorded);
        assert_eq!(waited, Duration::from_millis(5));
        unrecorded.add(1);
        (0..100).for_each(|_| unrecorded.note_call(Duration::from_millis(20)));
        assert_eq!(self::waited(&unrecorded).await, Duration::ZERO, "calls are quick");
    }
}
