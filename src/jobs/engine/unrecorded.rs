//! A job's results that are not recorded. They are kept in memory, so they are kept few, and a crash loses
//! them.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use tokio::sync::Notify;

use super::in_doubt::{CallInDoubt, InDoubt};
use super::memory::ItemMemory;
use crate::dispatch::Dispatcher;

/// How many results of a job may wait to be recorded, at least and for each slot. They are fewer as long
/// as the store keeps up.
const LEAST: usize = 16;
const PER_SLOT: usize = 2;

/// The part of the time that a call takes for which it waits until earlier results are recorded, at most:
/// one in so many.
const WAITED: u32 = 4;

/// The results of a run that are not recorded.
#[derive(Debug)]
pub(super) struct Unrecorded {
    dispatcher: Arc<Dispatcher>,
    memory: Arc<ItemMemory>,
    in_doubt: Arc<InDoubt>,
    results: AtomicUsize,
    bytes: AtomicUsize,
    fewer: Notify,
    call_takes: Average,
    recording_takes: Average,
    is_stopped: AtomicBool,
}

/// About how long something took the last times, in microseconds. 0: not known.
#[derive(Debug, Default)]
struct Average(AtomicU64);

impl Unrecorded {
    /// None yet, of calls that this dispatcher makes.
    pub fn new(
        dispatcher: &Arc<Dispatcher>,
        memory: &Arc<ItemMemory>,
        in_doubt: &Arc<InDoubt>,
    ) -> Self {
        Self {
            dispatcher: Arc::clone(dispatcher),
            memory: Arc::clone(memory),
            in_doubt: Arc::clone(in_doubt),
            results: AtomicUsize::new(0),
            bytes: AtomicUsize::new(0),
            fewer: Notify::new(),
            call_takes: Average::default(),
            recording_takes: Average::default(),
            is_stopped: AtomicBool::new(false),
        }
    }

    /// Waits until there are few enough results for another call.
    pub async fn room(&self) {
        loop {
            let fewer = self.fewer.notified();
            if self.is_below_most() {
                return;
            }
            fewer.await;
        }
    }

    /// Counts a call that has been admitted as in doubt, from now until its result is recorded. There are
    /// no more of them than slots, so that a crash repeats no more: the call waits for earlier results. It
    /// has its slot meanwhile. So it does not wait if calls take less than four times as long as recording.
    pub async fn begin_call(&self) -> CallInDoubt {
        let longest = self.call_takes.get() / WAITED;
        let longest = if self.recording_takes.get() <= longest { longest } else { Duration::ZERO };
        self.in_doubt.begin(self.dispatcher.concurrency_limit(), longest).await
    }

    fn is_below_most(&self) -> bool {
        let most = self.dispatcher.concurrency_limit().saturating_mul(PER_SLOT).max(LEAST);
        self.results.load(Ordering::Relaxed) < most
            && self.bytes.load(Ordering::Relaxed) < self.memory.unrecorded()
    }

    /// Counts a call as in doubt that is sent again, after it held nothing for a while.
    pub fn begin_again(&self) -> CallInDoubt {
        self.in_doubt.begin_again()
    }

    /// Whether the bulk was stopped: calls that have been admitted are not to be sent. Once it has
    /// finished, there may be a new one.
    pub fn is_stopped(&self) -> bool {
        self.is_stopped.load(Ordering::Relaxed)
    }

    /// Sets whether the bulk was stopped.
    pub fn set_stopped(&self, is_stopped: bool) {
        self.is_stopped.store(is_stopped, Ordering::Relaxed);
    }

    /// Notes how long a call took, without waits.
    pub fn note_call(&self, took: Duration) {
        self.call_takes.note(took);
    }

    /// Notes how long it took from a call's end until its result was recorded.
    pub fn note_recording(&self, took: Duration) {
        self.recording_takes.note(took);
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

impl Average {
    /// The weight of the last time: one in so many.
    const WEIGHT: u64 = 8;

    fn note(&self, took: Duration) {
        let took = u64::try_from(took.as_micros()).unwrap_or(u64::MAX);
        // If another time is noted meanwhile, one of the two is lost.
        let average = match self.0.load(Ordering::Relaxed) {
            0 => took,
            average => average - average / Self::WEIGHT + took / Self::WEIGHT,
        };
        self.0.store(average, Ordering::Relaxed);
    }

    fn get(&self) -> Duration {
        Duration::from_micros(self.0.load(Ordering::Relaxed))
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

    #[tokio::test(start_paused = true)]
    async fn a_call_beyond_the_slots_waits_for_a_quarter_of_a_call_if_recording_is_quicker() {
        let memory = ItemMemory::new(0);
        let unrecorded = Unrecorded::new(&dispatcher(2), &memory, &Arc::default());
        let waited = async || {
            let begin = Instant::now();
            let call = unrecorded.begin_call().await;
            (call, begin.elapsed().as_millis())
        };
        let (_first, at_once) = waited().await;
        assert_eq!(at_once, 0, "there are two slots");
        let (second, at_once) = waited().await;
        assert_eq!(at_once, 0, "there are two slots");
        let (third, unknown) = waited().await;
        assert_eq!(unknown, 0, "nothing is known of calls");
        unrecorded.note_call(Duration::from_secs(1));
        unrecorded.note_recording(Duration::from_millis(250));
        let (fourth, quick) = waited().await;
        assert!((250..=251).contains(&quick), "{quick}");
        unrecorded.note_recording(Duration::from_millis(300));
        let (fifth, slow) = waited().await;
        assert_eq!(slow, 0, "recording takes longer");
        drop((second, third, fourth, fifth));
        unrecorded.note_recording(Duration::ZERO);
        let (_sixth, at_once) = waited().await;
        assert_eq!(at_once, 0, "one call is in doubt");
    }
}
