//! The memory that the items of all jobs take.
//!
//! Each run has an equal share for the blocks that it holds. A block that does not fit into its run's
//! share waits, behind those of other runs, for memory that is kept for such blocks.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::Instant;

/// The most bytes that the shares of all runs have together.
const MAX_SHARED_OUT: usize = 32 << 20;

/// What an item is assumed to take besides its line.
pub(super) const PER_ITEM: usize = 1024;

/// The most bytes of results that wait until they are recorded. Those of calls in flight come on top.
const MAX_UNRECORDED: usize = 32 << 20;

/// How long a run keeps the memory of a block that did not fit while others wait for it. Its items may be
/// waiting for a quota, for a day.
const LONGEST_HOLD: Duration = Duration::from_secs(5 * 60);

/// The unit of the semaphore, which counts in 32 bits: 1 KiB.
const UNIT: usize = 1024;

/// The memory of all runs.
#[derive(Debug)]
pub(super) struct ItemMemory {
    /// How many runs there are.
    runs: AtomicUsize,
    /// The bytes of the blocks that are in their runs' shares.
    used: AtomicUsize,
    /// For blocks that do not fit. First come, first served. One that is larger than all of it has all of
    /// it, and so is the only one.
    large: Arc<Semaphore>,
    /// How many permits that has.
    large_units: usize,
    /// How many runs wait for it.
    waiting: AtomicUsize,
}

/// What a run uses of its share. Dropping it returns the bytes.
#[derive(Debug)]
pub(super) struct Usage {
    memory: Arc<ItemMemory>,
    bytes: usize,
}

/// Memory for a block that does not fit into its run's share. Dropping it returns the bytes.
#[derive(Debug)]
pub(super) struct LargeBlock {
    memory: Arc<ItemMemory>,
    bytes: usize,
    since: Instant,
    _permit: OwnedSemaphorePermit,
}

/// A run that waits for memory.
struct Waiting<'a>(&'a AtomicUsize);

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

impl ItemMemory {
    /// The memory, with so many bytes for blocks that do not fit into the shares of their runs.
    pub fn new(large: usize) -> Arc<Self> {
        let large_units = (large / UNIT).clamp(1, u32::MAX as usize);
        Arc::new(Self {
            runs: AtomicUsize::new(0),
            used: AtomicUsize::new(0),
            large: Arc::new(Semaphore::new(large_units)),
            large_units,
            waiting: AtomicUsize::new(0),
        })
    }

    /// Counts a run that begins.
    pub fn run_begins(&self) {
        self.runs.fetch_add(1, Ordering::Relaxed);
    }

    /// Counts a run that has ended.
    pub fn run_ended(&self) {
        self.runs.fetch_sub(1, Ordering::Relaxed);
    }

    /// How many bytes of results of each run may wait until they are recorded.
    pub fn unrecorded(&self) -> usize {
        MAX_UNRECORDED / self.runs()
    }

    /// Waits for memory for a block of so many bytes, behind those that came before.
    pub async fn large(self: Arc<Self>, bytes: usize) -> LargeBlock {
        let units = bytes.div_ceil(UNIT).clamp(1, self.large_units);
        self.waiting.fetch_add(1, Ordering::Relaxed);
        let waiting = Waiting(&self.waiting);
        let permit = Arc::clone(&self.large).acquire_many_owned(units as u32).await;
        let permit = permit.expect("the semaphore is never closed");
        drop(waiting);
        LargeBlock { memory: self, bytes, since: Instant::now(), _permit: permit }
    }

    fn share(&self) -> usize {
        MAX_SHARED_OUT / self.runs()
    }

    fn runs(&self) -> usize {
        self.runs.load(Ordering::Relaxed).max(1)
    }
}

impl Usage {
    /// Nothing yet.
    pub fn new(memory: &Arc<ItemMemory>) -> Self {
        Self { memory: Arc::clone(memory), bytes: 0 }
    }

    /// The run uses so many bytes now.
    pub fn set(&mut self, bytes: usize) {
        let used = &self.memory.used;
        match bytes.checked_sub(self.bytes) {
            Some(more) => used.fetch_add(more, Ordering::Relaxed),
            None => used.fetch_sub(self.bytes - bytes, Ordering::Relaxed),
        };
        self.bytes = bytes;
    }

    /// How many bytes the run may use, with those that it uses.
    pub fn share(&self) -> usize {
        self.memory.share()
    }

    /// How many bytes the run may add. Others may use more than their share, since it was larger before
    /// there were so many runs.
    pub fn room(&self) -> usize {
        let free = MAX_SHARED_OUT.saturating_sub(self.memory.used.load(Ordering::Relaxed));
        self.share().saturating_sub(self.bytes).min(free)
    }
}

impl Drop for Usage {
    fn drop(&mut self) {
        self.set(0);
    }
}

impl LargeBlock {
    /// For how many bytes it is.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// When it is to be given back if others wait for it.
    pub fn due_at(&self) -> Instant {
        self.since + LONGEST_HOLD
    }

    /// Whether it is to be given back now.
    pub fn is_due(&self, now: Instant) -> bool {
        now >= self.due_at() && self.memory.waiting.load(Ordering::Relaxed) > 0
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt;

    use super::*;

    const MAX_LARGE: usize = 32 << 20;

    #[test]
    fn shares_are_equal_and_end_at_what_all_use() {
        let memory = ItemMemory::new(MAX_LARGE);
        memory.run_begins();
        let mut first = Usage::new(&memory);
        first.set(MAX_SHARED_OUT - 1000);
        assert_eq!(first.room(), 1000);
        memory.run_begins();
        let mut second = Usage::new(&memory);
        assert_eq!((first.room(), second.room()), (0, 1000));
        first.set(10);
        assert_eq!(second.room(), MAX_SHARED_OUT / 2);
        second.set(MAX_SHARED_OUT / 2);
        assert_eq!((second.room(), first.room()), (0, MAX_SHARED_OUT / 2 - 10));
        drop(second);
        memory.run_ended();
        assert_eq!(first.room(), MAX_SHARED_OUT - 10);
    }

    #[tokio::test(start_paused = true)]
    async fn large_blocks_get_memory_in_their_order_and_the_largest_alone() {
        let memory = ItemMemory::new(MAX_LARGE);
        let large = |bytes| Box::pin(Arc::clone(&memory).large(bytes));
        let first = large(MAX_LARGE - 4096).await;
        let small = large(4096).now_or_never().expect("there is room");
        let mut huge = large(3 * MAX_LARGE);
        assert!(huge.as_mut().now_or_never().is_none());
        // It would fit, but the huge one came before.
        let mut late = large(1);
        drop(small);
        assert!(huge.as_mut().now_or_never().is_none() && late.as_mut().now_or_never().is_none());
        drop(first);
        let huge = huge.await;
        assert_eq!(huge.bytes(), 3 * MAX_LARGE);
        assert!(late.as_mut().now_or_never().is_none());
        drop(huge);
        late.await;
    }

    #[tokio::test(start_paused = true)]
    async fn a_large_block_is_given_back_after_a_while_only_if_others_wait() {
        let memory = ItemMemory::new(MAX_LARGE);
        let first = Arc::clone(&memory).large(MAX_LARGE).await;
        tokio::time::advance(LONGEST_HOLD).await;
        assert!(!first.is_due(Instant::now()));
        let mut second = Box::pin(Arc::clone(&memory).large(1));
        assert!(second.as_mut().now_or_never().is_none());
        assert!(first.is_due(Instant::now()) && !first.is_due(first.since));
        drop(second);
        assert!(!first.is_due(Instant::now()));
    }
}
