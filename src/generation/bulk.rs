//! Many calls that hold one position in the queue: the items of a batch or of a job. There is one runner
//! for all of them, whoever brings the items and wherever their outcomes go.

use std::collections::{HashMap, VecDeque};
use std::panic::AssertUnwindSafe;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;

use futures_util::FutureExt;
use tokio::time::Instant;
use tokio_util::sync::{CancellationToken, DropGuard};
use tokio_util::task::TaskTracker;
use tracing::Instrument;

use crate::dispatch::{
    Admitted, Call, CallError, CallKind, CallObserver, CallQueue, CallSize, Dispatcher, TierChoice,
};
use crate::gemini::{ApiKey, Model};
use crate::limits::{QueueTicket, Refused, Semaphore};

/// How long an item without a deadline waits for admission at a time, far beyond any quota's window.
const ENDLESS: Duration = Duration::from_secs(365 * 24 * 60 * 60);

/// How many groups there are before those without items are removed.
const GROUPS_KEPT: usize = 64;

/// An item of a bulk: what one call asks for.
pub trait BulkItem: Send + 'static {
    /// What becomes of it.
    type Outcome: Send + 'static;

    /// What its call is expected to cost.
    fn size(&self) -> CallSize;

    /// How long it may take.
    fn time_limit(&self) -> TimeLimit;

    /// Who is told what happens to its calls, from when it reaches the head of the queue.
    fn observer(&self) -> Option<Arc<dyn CallObserver>> {
        None
    }

    /// Makes its call, which has been admitted.
    fn send(
        self,
        dispatcher: &Dispatcher,
        call: Call,
        admitted: Admitted,
    ) -> impl Future<Output = Self::Outcome> + Send;

    /// The outcome of an item that was not admitted.
    fn refused(self, error: CallError) -> Self::Outcome;

    /// The outcome of an item whose call panicked.
    fn panicked() -> Self::Outcome;
}

/// How long an item may take, retries included.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TimeLimit {
    /// So long from when it reaches the head of the queue.
    FromHead(Duration),
    /// So long from its admission, for which it waits as long as it takes.
    FromAdmission(Duration),
}

/// Takes the outcomes of a bulk.
pub trait Outcomes<T>: Send + Sync + 'static {
    /// Waits until there is room for more outcomes. An item is not admitted before.
    fn room(&self) -> impl Future<Output = ()> + Send {
        std::future::ready(())
    }

    /// Takes the outcome of an item, which holds nothing any more.
    fn take(&self, index: u64, outcome: T) -> impl Future<Output = ()> + Send;
}

/// What decides in which line an item waits.
#[derive(Debug)]
pub struct Route {
    /// The kind of its call.
    pub kind: CallKind,
    /// The key that pays.
    pub key: ApiKey,
    /// The model that is asked.
    pub model: Model,
    /// The semaphore that its calls hold in addition to the global limit.
    pub semaphore: Option<Arc<dyn Semaphore>>,
    /// The service tier of its calls.
    pub tier: TierChoice,
}

/// The parts of a route that tell whether two are the same.
type RouteId = (CallKind, [u8; 32], Model, Option<u64>, TierChoice);

/// Items that are admitted under one queue ticket. Those with the same route are admitted one after
/// the other and then run concurrently; other items do not wait for them. Dropping it cancels all.
pub struct Bulk<I: BulkItem, O> {
    shared: Arc<Shared<I, O>>,
    _cancelled_on_drop: DropGuard,
}

/// What the runners of a bulk share.
struct Shared<I: BulkItem, O> {
    dispatcher: Arc<Dispatcher>,
    ticket: Arc<QueueTicket>,
    groups: Mutex<Groups<I>>,
    outcomes: O,
    runners: TaskTracker,
    /// Drops everything, calls in flight included.
    cancelled: CancellationToken,
    /// Ends the waits for admission. Cancelled with `cancelled`, too.
    stopped: CancellationToken,
    /// Why the bulk was refused.
    refused: OnceLock<Refused>,
}

/// The groups of a bulk.
struct Groups<I> {
    by_route: HashMap<RouteId, Arc<Group<I>>>,
    /// How many there may be until unused ones are removed.
    kept: usize,
}

/// The items with the same route that have not been admitted yet.
struct Group<I> {
    queue: Arc<CallQueue>,
    waiting: Mutex<Waiting<I>>,
}

/// What waits in a group.
struct Waiting<I> {
    /// Each with its index.
    items: VecDeque<(u64, I)>,
    /// How many runners wait for the head of the queue.
    runners: usize,
}

/// An item that left the queue: admitted, or with the outcome of one that was not.
type Next<I> = (u64, Result<(I, Call, Admitted), <I as BulkItem>::Outcome>);

impl<I: BulkItem, O: Outcomes<I::Outcome>> Bulk<I, O> {
    /// A bulk without items, with a ticket of its own.
    pub fn new(dispatcher: &Arc<Dispatcher>, outcomes: O) -> Self {
        let cancelled = CancellationToken::new();
        let shared = Shared {
            dispatcher: Arc::clone(dispatcher),
            ticket: dispatcher.enqueue_batch(),
            groups: Mutex::new(Groups { by_route: HashMap::new(), kept: GROUPS_KEPT }),
            outcomes,
            runners: TaskTracker::new(),
            stopped: cancelled.child_token(),
            cancelled: cancelled.clone(),
            refused: OnceLock::new(),
        };
        Self { shared: Arc::new(shared), _cancelled_on_drop: cancelled.drop_guard() }
    }

    /// Adds an item behind those with the same route.
    pub fn add(&self, index: u64, route: Route, item: I) {
        let group = self.shared.group(route);
        let mut waiting = lock(&group.waiting);
        waiting.items.push_back((index, item));
        let starts = waiting.runners == 0;
        waiting.runners += usize::from(starts);
        drop(waiting);
        if starts {
            self.shared.start_runner(group);
        }
    }

    /// Says that no item will be added.
    pub fn close(&self) {
        self.shared.runners.close();
    }

    /// Admits no further item. Those in flight go on. The others are dropped and have no outcome.
    pub fn stop(&self) {
        self.shared.stopped.cancel();
        self.close();
    }

    /// Drops all items, those in flight included.
    pub fn cancel(&self) {
        self.shared.cancelled.cancel();
        self.close();
    }

    /// Waits until the bulk is closed, stopped, cancelled or refused, and all outcomes that there will
    /// be have been taken.
    pub async fn finished(&self) {
        self.shared.runners.wait().await;
    }

    /// Why no item was admitted: [`Refused::QueueFull`] if the queue was full, and
    /// [`Refused::StoreUnavailable`] if the shared limits were unavailable. Such a bulk is cancelled.
    pub fn refused(&self) -> Option<Refused> {
        self.shared.refused.get().copied()
    }

    /// Where the outcomes go.
    pub fn outcomes(&self) -> &O {
        &self.shared.outcomes
    }
}

impl<I: BulkItem, O: Outcomes<I::Outcome>> Shared<I, O> {
    /// The group of a route.
    fn group(&self, route: Route) -> Arc<Group<I>> {
        let Route { kind, key, model, semaphore, tier } = route;
        let number = semaphore.as_ref().map(|own| own.number());
        let id = (kind, *key.sha256(), model, number, tier);
        let mut groups = lock(&self.groups);
        if let Some(group) = groups.by_route.get(&id) {
            return Arc::clone(group);
        }
        groups.remove_unused();
        let model = id.2.clone();
        let queue = self.dispatcher.queue(&self.ticket, kind, key, model, semaphore, tier);
        let waiting = Mutex::new(Waiting { items: VecDeque::new(), runners: 0 });
        let group = Arc::new(Group { queue: Arc::new(queue), waiting });
        groups.by_route.insert(id, Arc::clone(&group));
        group
    }

    fn start_runner(self: &Arc<Self>, group: Arc<Group<I>>) {
        // Boxed, because each wrapper around it would otherwise hold a copy of its size.
        let runner = Box::pin(Arc::clone(self).run(group));
        let runner = self.cancelled.clone().run_until_cancelled_owned(runner);
        self.runners.spawn(runner.in_current_span());
    }

    /// Takes items of a group one after the other, waits until each is admitted, and sends it. A runner
    /// whose item is admitted starts another runner for the next item if none is waiting, so there is
    /// one runner for each item in flight, and one that waits.
    async fn run(self: Arc<Self>, group: Arc<Group<I>>) {
        while let Some(Some((index, next))) =
            self.stopped.run_until_cancelled(self.next(&group)).await
        {
            let outcome = match next {
                Ok((item, call, admitted)) => {
                    if group.lacks_runner() {
                        self.start_runner(Arc::clone(&group));
                    }
                    let sent = item.send(&self.dispatcher, call, admitted);
                    let outcome = AssertUnwindSafe(sent).catch_unwind().await;
                    outcome.unwrap_or_else(|_| I::panicked())
                }
                Err(outcome) => outcome,
            };
            self.outcomes.take(index, outcome).await;
            // One waiting runner is enough. More would only make retried items wait longer.
            if !group.add_runner() {
                return;
            }
        }
    }

    /// Waits until the next item of a group is admitted, or fails to be. `None` if there is none, or
    /// the bulk was refused.
    async fn next(&self, group: &Group<I>) -> Option<Next<I>> {
        self.outcomes.room().await;
        let head = group.queue.head().await;
        let (index, item) = group.pop()?;
        let (wait, from_admission) = match item.time_limit() {
            TimeLimit::FromHead(limit) => (limit, None),
            TimeLimit::FromAdmission(limit) => (ENDLESS, Some(limit)),
        };
        let call = group.queue.call(item.size(), Instant::now() + wait);
        let call = call.observed_by(item.observer());
        match self.dispatcher.admit_at_head(&call, head).await {
            Ok(admitted) => {
                let Some(limit) = from_admission else {
                    return Some((index, Ok((item, call, admitted))));
                };
                let deadline = Instant::now() + limit;
                Some((index, Ok((item, call.due(deadline), admitted.due(deadline)))))
            }
            Err(CallError::Refused(
                refused @ (Refused::QueueFull | Refused::StoreUnavailable(_)),
            )) => {
                // Another group may have set it first.
                let _ = self.refused.set(refused);
                self.runners.close();
                self.cancelled.cancel();
                None
            }
            Err(error) => Some((index, Err(item.refused(error)))),
        }
    }
}

impl<I> Groups<I> {
    /// Removes groups without items, once there are many groups.
    fn remove_unused(&mut self) {
        if self.by_route.len() < self.kept {
            return;
        }
        // A runner, and whoever adds an item, holds the group.
        self.by_route.retain(|_, group| Arc::strong_count(group) > 1);
        self.kept = GROUPS_KEPT.max(2 * self.by_route.len());
    }
}

impl<I> Group<I> {
    /// Takes the next item for a runner that waits no more.
    fn pop(&self) -> Option<(u64, I)> {
        let mut waiting = lock(&self.waiting);
        waiting.runners -= 1;
        waiting.items.pop_front()
    }

    /// Whether items wait and no runner does. Then one more is counted as waiting.
    fn lacks_runner(&self) -> bool {
        let mut waiting = lock(&self.waiting);
        let lacks = waiting.runners == 0 && !waiting.items.is_empty();
        waiting.runners += usize::from(lacks);
        lacks
    }

    /// Counts one more runner as waiting, unless one is.
    fn add_runner(&self) -> bool {
        let mut waiting = lock(&self.waiting);
        let is_first = waiting.runners == 0;
        waiting.runners += usize::from(is_first);
        is_first
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
