//! An item of a job on its way through the bulk runner.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use tokio::sync::{Notify, mpsc};

use super::lease::Lease;
use crate::dispatch::{Admitted, Call, CallError, CallObserver, CallSize, Dispatcher};
use crate::gemini::ApiKey;
use crate::generation::bulk::{BulkItem, Outcomes, Route, TimeLimit};
use crate::jobs::item::{ItemOutcome, ItemSender, PreparedItem};
use crate::jobs::observer::RunObserver;

/// How many bytes of results may wait until they are recorded before no further item is sent. The
/// results of items in flight come on top.
const MAX_UNRECORDED: usize = 8 * 1024 * 1024;

/// An item that is ready to be sent.
pub(super) struct JobItem {
    size: CallSize,
    timeout: Duration,
    sender: Box<dyn ItemSender>,
    lease: Arc<Lease>,
    /// The observer of the job, and the index of the item.
    observer: Option<(Arc<dyn RunObserver>, u64)>,
}

/// What became of an item.
#[derive(Debug)]
pub(super) enum Ended {
    /// Its format tells.
    With(ItemOutcome),
    /// It was not sent, because the claim may have been lost.
    NotSent,
    /// Its code panicked.
    Panicked,
}

impl JobItem {
    /// An item and where it waits.
    pub fn new(item: PreparedItem, key: ApiKey, lease: Arc<Lease>) -> (Route, Self) {
        let PreparedItem { kind, model, semaphore, tier, size, timeout, sender } = item;
        let item = Self { size, timeout, sender, lease, observer: None };
        (Route { kind, key, model, semaphore, tier }, item)
    }

    /// The same item, which has this index, for a job with an observer.
    pub fn observed_by(self, observer: Option<&Arc<dyn RunObserver>>, index: u64) -> Self {
        Self { observer: observer.map(|run| (Arc::clone(run), index)), ..self }
    }
}

impl BulkItem for JobItem {
    type Outcome = Ended;

    fn size(&self) -> CallSize {
        self.size
    }

    fn time_limit(&self) -> TimeLimit {
        TimeLimit::FromAdmission(self.timeout)
    }

    fn observer(&self) -> Option<Arc<dyn CallObserver>> {
        let (run, index) = self.observer.as_ref()?;
        run.item(*index)
    }

    async fn send(self, _: &Dispatcher, call: Call, admitted: Admitted) -> Ended {
        if !self.lease.is_in_force() {
            return Ended::NotSent;
        }
        Ended::With(self.sender.send(call, admitted).await)
    }

    fn refused(self, error: CallError) -> Ended {
        match error {
            // It has no deadline before it is admitted, so it waits on.
            CallError::DeadlineExceeded => Ended::With(ItemOutcome::Later(None)),
            error => Ended::With(self.sender.refused(error)),
        }
    }

    fn panicked() -> Ended {
        Ended::Panicked
    }
}

/// Brings the outcomes of a job's items to its run.
#[derive(Debug, Clone)]
pub(super) struct Returned {
    pub outcomes: mpsc::UnboundedSender<(u64, Ended)>,
    pub unrecorded: Arc<Unrecorded>,
}

/// A job's results that are not recorded. A crash loses them.
#[derive(Debug)]
pub(super) struct Unrecorded {
    /// How many there may be before no further item is sent.
    most: usize,
    results: AtomicUsize,
    bytes: AtomicUsize,
    fewer: Notify,
}

impl Outcomes<Ended> for Returned {
    async fn room(&self) {
        loop {
            let fewer = self.unrecorded.fewer.notified();
            if self.unrecorded.has_room() {
                return;
            }
            fewer.await;
        }
    }

    async fn take(&self, index: u64, outcome: Ended) {
        self.put(index, outcome);
    }
}

impl Returned {
    /// Takes the outcome of an item.
    pub fn put(&self, index: u64, outcome: Ended) {
        if let Ended::With(ItemOutcome::Done(answered) | ItemOutcome::Repeat(answered)) = &outcome {
            self.unrecorded.add(answered.line.len());
        }
        // It fails only if the run was dropped.
        let _ = self.outcomes.send((index, outcome));
    }
}

impl Unrecorded {
    /// None yet. There may be `most`.
    pub fn new(most: usize) -> Self {
        let (results, bytes) = (AtomicUsize::new(0), AtomicUsize::new(0));
        Self { most, results, bytes, fewer: Notify::new() }
    }

    fn has_room(&self) -> bool {
        let (results, bytes) = (&self.results, &self.bytes);
        results.load(Ordering::Relaxed) < self.most
            && bytes.load(Ordering::Relaxed) < MAX_UNRECORDED
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
