//! The quotas of one account, counted in this process.

#[cfg(test)]
pub(in crate::limits) mod tests;

use std::future::ready;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, Weak};
use std::time::Duration;

use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use tokio::sync::{self, Notify};
use tokio::time::{Instant, timeout_at};

use crate::limits::budget::{
    Budget, BudgetAdmin, NotReserved, Reservation, Started, Transfer, TryReserve,
};
use crate::limits::model::{
    BudgetUsage, Cost, Exhausted, Ledger, Line, Opening, PlannedQuotas, QuotaKind, Quotas, Spent,
    StoreUnavailable,
};
use crate::pacific::{SystemClock, WallClock};

/// The budget of an account, counted in this process.
#[derive(Debug)]
pub struct LocalBudget {
    ledger: Mutex<Ledger>,
    queue: Queue,
    /// Calls that were admitted once and go before the queue.
    returning: Queue,
    /// The budget to which everything moved, once it has. What is given back later is given back to
    /// its day too, because what was reserved here was counted there.
    moved_to: OnceLock<Weak<dyn Budget>>,
}

/// Calls that wait in a line.
#[derive(Debug, Default)]
struct Queue {
    /// Held by the head of the queue, which alone watches the clock and `changed`.
    head: sync::Mutex<()>,
    changed: Notify,
}

impl LocalBudget {
    /// A budget of which nothing is spent. A `minute` shorter than 60 seconds scales a long
    /// measurement down; the day keeps its length.
    pub fn new(quotas: Quotas, minute: Duration) -> Arc<Self> {
        let budget = Self::named("".into(), PlannedQuotas::default(), minute);
        budget.set(quotas);
        budget
    }

    /// Changes the quotas of the settings, for waiting calls too. What was sent within the minute
    /// counts against the new quotas, even if it was unlimited then.
    pub fn set(&self, quotas: Quotas) {
        self.change(|ledger, now| ledger.set(quotas, now));
    }

    /// A budget of an account with this name in logs.
    pub(in crate::limits) fn named(
        name: Arc<str>,
        planned: PlannedQuotas,
        minute: Duration,
    ) -> Arc<Self> {
        Self::with_clock(name, planned, minute, Arc::new(SystemClock))
    }

    fn with_clock(
        name: Arc<str>,
        planned: PlannedQuotas,
        minute: Duration,
        clock: Arc<dyn WallClock>,
    ) -> Arc<Self> {
        Arc::new(Self {
            ledger: Mutex::new(Ledger::new(name, planned, minute, clock)),
            queue: Queue::default(),
            returning: Queue::default(),
            moved_to: OnceLock::new(),
        })
    }

    /// The queue of a line.
    fn queue(&self, line: Line) -> &Queue {
        match line {
            Line::Queue | Line::YieldOnce => &self.queue,
            Line::Returning => &self.returning,
        }
    }

    /// The usage now.
    pub fn usage_now(&self) -> BudgetUsage {
        self.ledger().usage()
    }

    /// Ends a pause.
    pub(in crate::limits) fn resume(&self) {
        self.change(Ledger::resume);
    }

    /// Takes out what is spent. From now on `budget` counts everything.
    pub(in crate::limits) fn move_to(&self, budget: Weak<dyn Budget>) -> Spent {
        let mut ledger = self.ledger();
        // A budget moves once.
        let _ = self.moved_to.set(budget);
        ledger.hand_over()
    }

    /// Gives a cost back to its day in the budget to which this one moved.
    fn give_day_back(&self, sent_at: Instant, cost: Cost) {
        if let Some(budget) = self.moved_to.get().and_then(Weak::upgrade) {
            budget.take_back_of_day(Started { number: 0, at: sent_at }, cost);
        }
    }

    /// Changes the ledger and wakes the heads of the queues. Returns whether the budget has moved.
    fn change(&self, change: impl FnOnce(&mut Ledger, Instant)) -> bool {
        self.change_at_any_time(|ledger| {
            let now = ledger.expire();
            change(ledger, now);
        })
    }

    /// The same for a change that does not depend on the time, so the clock is not read.
    fn change_at_any_time(&self, change: impl FnOnce(&mut Ledger)) -> bool {
        let mut ledger = self.ledger();
        change(&mut ledger);
        let is_moved = self.moved_to.get().is_some();
        let is_waited_for = ledger.is_waited_for();
        drop(ledger);
        // A call that joins later checks the ledger first.
        if is_waited_for {
            self.queue.changed.notify_one();
            self.returning.changed.notify_one();
        }
        is_moved
    }

    fn ledger(&self) -> MutexGuard<'_, Ledger> {
        self.ledger.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Budget for LocalBudget {
    fn try_reserve(self: Arc<Self>, cost: Cost, deadline: Instant) -> TryReserve {
        let cost = cost.bounded();
        let reserved = self.ledger().try_reserve(cost, deadline);
        let result = reserved.map(|reserved| reserved.then(|| Reservation::new(self, cost)));
        TryReserve::Ready(result.map_err(NotReserved::Exhausted))
    }

    fn reserve(
        self: Arc<Self>,
        line: Line,
        cost: Cost,
        deadline: Instant,
    ) -> BoxFuture<'static, Result<Reservation, Exhausted>> {
        match QueueEntry::join(self, line, cost.bounded(), deadline) {
            Ok(entry) => entry.wait(deadline).boxed(),
            Err(reason) => ready(Err(reason)).boxed(),
        }
    }

    fn give_back(&self, cost: Cost) {
        if self.change_at_any_time(|ledger| ledger.give_back(cost)) {
            self.give_day_back(Instant::now(), cost);
        }
    }

    fn start(&self, cost: Cost) -> Started {
        let mut sent_at = None;
        self.change(|ledger, now| {
            sent_at = Some(now);
            ledger.start(cost, now);
        });
        Started { number: 0, at: sent_at.expect("the change runs at once") }
    }

    fn settle(&self, started: Started, counted: Cost, actual: Cost) {
        if self.change(|ledger, now| ledger.correct(started.at, counted, actual, now)) {
            self.give_day_back(started.at, counted.saturating_sub(actual));
        }
    }

    fn take_back_of_day(&self, started: Started, cost: Cost) {
        if self.change(|ledger, _| ledger.take_back_of_day(started.at, cost)) {
            self.give_day_back(started.at, cost);
        }
    }

    fn is_paused(&self) -> bool {
        self.ledger().is_paused()
    }
}

impl BudgetAdmin for LocalBudget {
    fn learn(&self, named: Quotas) {
        self.change(|ledger, now| ledger.learn(named, now));
    }

    fn plan(&self, _own: PlannedQuotas, with_aliases: PlannedQuotas) {
        self.change(|ledger, now| ledger.plan(with_aliases, now));
    }

    fn forget(&self) {
        self.change(Ledger::forget);
    }

    fn is_blank(&self) -> bool {
        self.ledger().is_blank()
    }

    fn transfer_out(&self) -> Transfer {
        Transfer::Local(Box::new(self.ledger().hand_over()))
    }

    fn transfer_in(&self, from: Transfer, _from_replica: bool) {
        if let Transfer::Local(spent) = from {
            self.change(|ledger, now| ledger.take_over(*spent, now));
        }
    }

    fn pause_until(&self, until: Instant, quota: Option<QuotaKind>) {
        self.change(|ledger, _| ledger.pause_until(until, quota));
    }

    fn close_day(&self, sent_at: Instant) {
        self.change(|ledger, _| ledger.close_day(sent_at));
    }

    fn usage(&self) -> BoxFuture<'_, Result<BudgetUsage, StoreUnavailable>> {
        ready(Ok(self.usage_now())).boxed()
    }
}

/// A waiting call's entry in a queue. Dropping it leaves the queue.
struct QueueEntry {
    budget: Arc<LocalBudget>,
    line: Line,
    cost: Cost,
    waits: bool,
}

impl QueueEntry {
    fn join(
        budget: Arc<LocalBudget>,
        line: Line,
        cost: Cost,
        deadline: Instant,
    ) -> Result<Self, Exhausted> {
        let line = budget.ledger().join(line, cost, deadline)?;
        Ok(Self { budget, line, cost, waits: true })
    }

    /// Waits for a reservation.
    async fn wait(mut self, deadline: Instant) -> Result<Reservation, Exhausted> {
        'queue: loop {
            let queue = self.budget.queue(self.line);
            let Ok(_head) = timeout_at(deadline, queue.head.lock()).await else {
                self.waits = false;
                return Err(self.budget.ledger().give_up(self.line, self.cost));
            };
            loop {
                let opening = self.budget.ledger().advance(self.line, self.cost, deadline)?;
                let until = match opening {
                    Opening::Now => {
                        self.waits = false;
                        let budget = Arc::<LocalBudget>::clone(&self.budget);
                        return Ok(Reservation::new(budget, self.cost));
                    }
                    Opening::Yield => {
                        self.line = Line::Queue;
                        continue 'queue;
                    }
                    Opening::At(at) => at.min(deadline),
                    Opening::OnChange => deadline,
                };
                // Either way, the ledger is checked again.
                let _ = timeout_at(until, queue.changed.notified()).await;
            }
        }
    }
}

impl Drop for QueueEntry {
    fn drop(&mut self) {
        if self.waits {
            self.budget.ledger().leave(self.line, self.cost);
        }
    }
}
