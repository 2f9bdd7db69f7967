//! Claims of further blocks of a job, and the memory for them.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use futures_util::FutureExt;
use futures_util::future::{BoxFuture, pending};
use tokio::time::Instant;

use super::memory::{LargeBlock, PER_ITEM, Usage};
use super::window::Window;
use super::{Shared, backoff};
use crate::jobs::model::{Block, Claimed, JobNumber};
use crate::jobs::store::{StoreError, Stored};

/// How long to wait at most before a claim is tried again that found nothing: blocks of a process that
/// ended come free, unless it gave them back, when their lease ends.
const NOTHING_TO_CLAIM: Duration = Duration::from_secs(15);

/// How often it is looked whether others wait for the memory of a large block, once it is due.
const LOOK_FOR_OTHERS: Duration = Duration::from_secs(10);

/// The claims of a run.
pub(super) struct Claims {
    engine: Arc<Shared>,
    job: JobNumber,
    /// The bytes of the fields that are added to each item while it is sent.
    per_sent_item: usize,
    pending: Option<Stored<Claimed>>,
    /// How often there was nothing in a row, or it failed.
    in_vain: u32,
    again_at: Option<Instant>,
    usage: Usage,
    /// The bytes of the next block, if it did not fit.
    next: usize,
    large: Large,
}

/// A block that does not fit into the run's share.
enum Large {
    /// There is none.
    None,
    /// The next one is, and so large.
    Needed(usize),
    /// It waits for memory.
    Waits(BoxFuture<'static, LargeBlock>),
    /// There is memory for it, and it is to be claimed.
    Granted(LargeBlock),
    /// There is memory for these blocks, which were claimed.
    Held(LargeBlock, HashSet<u64>),
}

impl Claims {
    /// None yet, of a job whose shared fields have `per_sent_item` bytes.
    pub fn new(engine: Arc<Shared>, job: JobNumber, per_sent_item: usize) -> Self {
        let usage = Usage::new(&engine.memory);
        Self {
            engine,
            job,
            per_sent_item,
            pending: None,
            in_vain: 0,
            again_at: None,
            usage,
            next: 0,
            large: Large::None,
        }
    }

    /// Notes what the window takes now. Memory of a large block that is gone is returned.
    pub fn count(&mut self, window: &Window) {
        let (mut large, mut sent) = (0, window.out());
        if let Large::Held(_, blocks) = &self.large {
            large = window.bytes_of(blocks);
            // Their memory has room for what is added to one of their items.
            sent = sent.saturating_sub(1);
            if !window.has_any(blocks) {
                self.large = Large::None;
            }
        }
        self.usage.set(window.bytes() - large + self.per_sent_item * sent);
    }

    /// Begins a claim of at most `items` items, or waits for memory for one, if there is memory or the
    /// window is empty.
    pub fn begin(&mut self, window: &Window, items: usize, now: Instant) {
        if self.is_pending() || self.again_at.is_some_and(|at| at > now) {
            return;
        }
        // At least one item has to be sent.
        let room = self.usage.room().saturating_sub(self.per_sent_item);
        let (items, bytes) = match &self.large {
            Large::Waits(_) => return,
            Large::Granted(large) => (items, large.bytes().saturating_sub(self.per_sent_item)),
            Large::Needed(bytes) => {
                let bytes = bytes.saturating_add(self.per_sent_item);
                let memory = Arc::clone(&self.engine.memory);
                self.large = Large::Waits(memory.large(bytes).boxed());
                return;
            }
            Large::Held(..) | Large::None if room >= self.next.max(1) || window.is_empty() => {
                (items.min(room / PER_ITEM), room)
            }
            Large::Held(..) | Large::None => return,
        };
        let (jobs, lease) = (&self.engine.jobs, self.engine.lease.length());
        let items = u32::try_from(items).unwrap_or(u32::MAX);
        let replica = jobs.replica().clone();
        self.pending = Some(jobs.store().claim(self.job, replica, items, bytes, lease));
    }

    /// Waits until there is something to do: `Some` with what a claim has found, `None` if a claim may be
    /// begun that was waiting for memory. Dropping the future loses nothing.
    pub async fn progress(&mut self) -> Option<Result<Claimed, StoreError>> {
        if let Some(claim) = &mut self.pending {
            let found = claim.await;
            self.pending = None;
            return Some(found);
        }
        let Large::Waits(memory) = &mut self.large else { return pending().await };
        self.large = Large::Granted(memory.await);
        None
    }

    /// Takes what a claim has found. Returns the blocks.
    pub fn found(&mut self, found: Claimed, window: &Window) -> Vec<Block> {
        let Claimed { blocks, too_large } = found;
        let large = match &self.large {
            Large::Granted(_) => std::mem::replace(&mut self.large, Large::None),
            _ => Large::None,
        };
        self.next = too_large.unwrap_or(0);
        if let Some(bytes) = too_large {
            let fits = bytes.saturating_add(self.per_sent_item) <= self.usage.share();
            if matches!(self.large, Large::None) && (!fits || window.is_empty()) {
                self.large = Large::Needed(bytes);
            }
            return blocks;
        }
        if blocks.is_empty() {
            self.wait();
            return blocks;
        }
        if let Large::Granted(large) = large {
            let blocks = blocks.iter().map(|block| block.first).collect();
            self.large = Large::Held(large, blocks);
        }
        (self.in_vain, self.again_at) = (0, None);
        blocks
    }

    /// A claim failed.
    pub fn failed(&mut self) {
        if let Large::Granted(large) = &self.large {
            self.large = Large::Needed(large.bytes().saturating_sub(self.per_sent_item));
        }
        self.again_at = Some(Instant::now() + backoff::again(self.in_vain));
        self.in_vain += 1;
    }

    fn wait(&mut self) {
        let wait = backoff::again(self.in_vain).min(NOTHING_TO_CLAIM);
        self.again_at = Some(Instant::now() + wait);
        self.in_vain += 1;
    }

    /// Whether a claim is being made.
    pub fn is_pending(&self) -> bool {
        self.pending.is_some()
    }

    /// Waits for the claim that is being made. What it has found is given back with the others.
    pub async fn finish(&mut self) {
        if let Some(claim) = self.pending.take() {
            let _ = claim.await;
        }
    }

    /// How many items may be out at once: each takes what is added to it. At least one may.
    pub fn most_sent(&self, window: &Window) -> usize {
        if self.per_sent_item == 0 {
            return usize::MAX;
        }
        let large = match &self.large {
            Large::Held(large, _) => large.bytes(),
            _ => 0,
        };
        let free = (self.usage.share() + large).saturating_sub(window.bytes());
        (free / self.per_sent_item).max(1)
    }

    /// When a claim is tried again.
    pub fn again_at(&self) -> Option<Instant> {
        self.again_at
    }

    /// Whether the run holds memory that it has had for long and others wait for.
    pub fn is_due(&self, now: Instant) -> bool {
        self.granted().is_some_and(|large| large.is_due(now))
    }

    /// When that is to be looked at.
    pub fn due_at(&self, now: Instant) -> Option<Instant> {
        self.granted().map(|large| large.due_at().max(now + LOOK_FOR_OTHERS))
    }

    fn granted(&self) -> Option<&LargeBlock> {
        match &self.large {
            Large::Held(large, _) | Large::Granted(large) => Some(large),
            Large::None | Large::Needed(_) | Large::Waits(_) => None,
        }
    }
}
