//! An item of a job on its way through the bulk runner.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::mpsc;

use super::attempts::Attempts;
use super::in_doubt::CallInDoubt;
use super::lease::Lease;
use super::unrecorded::Unrecorded;
use crate::dispatch::{Admitted, Call, CallError, CallObserver, CallSize, Dispatcher};
use crate::gemini::ApiKey;
use crate::generation::bulk::{BulkItem, Outcomes, Route, TimeLimit};
use crate::jobs::item::{ItemOutcome, ItemSender, PreparedItem};
use crate::jobs::observer::RunObserver;

/// An item that is ready to be sent.
pub(super) struct JobItem {
    size: CallSize,
    timeout: Duration,
    sender: Box<dyn ItemSender>,
    lease: Arc<Lease>,
    unrecorded: Arc<Unrecorded>,
    attempts: Arc<Attempts>,
    /// The observer of the job, and the index of the item.
    observer: Option<(Arc<dyn RunObserver>, u64)>,
}

/// What became of an item.
#[derive(Debug)]
pub(super) enum Ended {
    /// Its format tells. A call was made if it is in doubt.
    With(ItemOutcome, Option<CallInDoubt>),
    /// It was not sent, because the claim may have been lost.
    NotSent,
    /// Its code panicked.
    Panicked,
}

impl JobItem {
    /// An item and where it waits.
    pub fn new(
        item: PreparedItem,
        key: ApiKey,
        lease: Arc<Lease>,
        unrecorded: Arc<Unrecorded>,
    ) -> (Route, Self) {
        let PreparedItem { kind, model, semaphore, tier, size, timeout, sender } = item;
        let attempts = Attempts::new(Arc::clone(&unrecorded));
        let item = Self { size, timeout, sender, lease, unrecorded, attempts, observer: None };
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
        if let Some((run, index)) = &self.observer
            && let Some(observer) = run.item(*index)
        {
            self.attempts.observed_by(observer);
        }
        Some(Arc::<Attempts>::clone(&self.attempts))
    }

    async fn send(self, _: &Dispatcher, call: Call, admitted: Admitted) -> Ended {
        let in_doubt = self.unrecorded.begin_call().await;
        if !self.lease.is_in_force() || self.unrecorded.is_stopped() {
            return Ended::NotSent;
        }
        self.attempts.begin(in_doubt);
        let outcome = self.sender.send(call, admitted).await;
        Ended::With(outcome, self.attempts.end())
    }

    fn refused(self, error: CallError) -> Ended {
        match error {
            // It has no deadline before it is admitted, so it waits on.
            CallError::DeadlineExceeded => Ended::With(ItemOutcome::Later(None), None),
            error => Ended::With(self.sender.refused(error), None),
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

impl Outcomes<Ended> for Returned {
    async fn room(&self) {
        self.unrecorded.room().await;
    }

    async fn take(&self, index: u64, outcome: Ended) {
        self.put(index, outcome);
    }
}

impl Returned {
    /// Takes the outcome of an item.
    pub fn put(&self, index: u64, outcome: Ended) {
        if let Ended::With(ItemOutcome::Done(answered) | ItemOutcome::Repeat(answered), _) =
            &outcome
        {
            self.unrecorded.add(answered.line.len());
        }
        // It fails only if the run was dropped.
        let _ = self.outcomes.send((index, outcome));
    }
}
