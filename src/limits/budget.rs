//! What a key may spend on one model, spread so that Gemini never has to refuse.
//!
//! A call reserves its requests (one, for most) and its estimated tokens, leaves, and settles with what it really
//! cost. Reserved calls count in full from the reservation on and do not age; what has left counts
//! for a minute from that moment. How the minute and its margins are chosen is told at
//! [`minute::Minute`].

mod cost;
mod day;
mod ledger;
mod minute;
mod rolling;
#[cfg(test)]
mod tests;

use std::fmt;
use std::future::ready;
use std::ops::Index;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, Weak};
use std::time::Duration;

use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use tokio::sync::{self, Notify};
use tokio::time::{Instant, timeout_at};

use serde::Deserialize;

use super::plan::PlannedQuotas;
use super::quota::{PerKind, QuotaKind, Quotas, Resource};
use super::semaphore::StoreUnavailable;
use crate::pacific::{SystemClock, WallClock};
use ledger::{Ledger, Opening};

pub use cost::{Cost, Estimate};
pub(super) use day::end_of_used_up;
pub use ledger::Line;

/// What is spent of an account that another turns out to be charged for, and what limits it.
#[derive(Debug, Clone)]
pub enum HandedOver {
    /// It was kept in this process.
    Spent(Box<Spent>),
    /// It is shared by all replicas, under this name.
    Shared(Arc<str>),
}

/// What another replica has found out: which model Gemini charges for an account's calls.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Charged {
    /// The account's own.
    Itself,
    /// Another one.
    Model(Arc<str>),
}

/// What is spent of a budget of this process.
#[derive(Debug, Clone, Copy)]
pub struct Spent {
    /// Within the last minute, and what is reserved.
    pub(super) minute: Cost,
    /// Today, and what is reserved.
    pub(super) today: Cost,
    /// Since when `today` is counted.
    pub(super) since: Instant,
    /// Until when Gemini's refusal keeps everything back; in the past where it does not.
    pub(super) paused_until: Instant,
    /// Until when the day is used up; in the past where it is not.
    pub(super) closed_until: Instant,
    /// The limits that were set by hand.
    pub(super) by_hand: Quotas,
    /// The quotas that Gemini named.
    pub(super) learned: Quotas,
}

/// The quotas of one key and model, and what is spent of them: by this process ([`LocalBudget`]) or
/// by all replicas.
pub trait Budget: fmt::Debug + Send + Sync {
    /// Reserves what a call costs if it fits now and nobody waits.
    fn try_reserve(self: Arc<Self>, cost: Cost, deadline: Instant) -> Attempt;

    /// Waits in a line until what a call costs fits, and reserves it. Dropping the future leaves
    /// the line.
    ///
    /// # Errors
    /// [`Exhausted`]: at once when it is certain that the call cannot go before its deadline if
    /// all who wait before it do go; when that becomes certain while it is the first in the
    /// queue; and at its deadline.
    fn reserve(
        self: Arc<Self>,
        line: Line,
        cost: Cost,
        deadline: Instant,
    ) -> BoxFuture<'static, Result<Reservation, Exhausted>>;

    /// Gemini named these quotas; the others stay as they are. They count until the day ends in
    /// California, when those of the settings count again.
    fn learn(&self, named: Quotas);

    /// Goes back to the settings' quotas and forgets what Gemini said, pauses and a used-up day
    /// included.
    fn forget(&self);

    /// Whether nothing would be lost if this budget were opened anew: nothing is spent, reserved,
    /// waited for, paused, used up or learned, or all of it is kept elsewhere.
    fn is_blank(&self) -> bool;

    /// Gives up what is spent and what Gemini named, because Gemini charges another account for
    /// these calls.
    fn hand_over(&self) -> HandedOver;

    /// Counts what was spent as another account, of which the limits that were set by hand hold
    /// here too: of each quota the lowest counts, before the tier's. Quotas that Gemini named stay
    /// within that. `heard` where another replica has found it out.
    fn take_over(&self, from: HandedOver, heard: bool);

    /// Which model is charged, where another replica has found it out since this was asked last.
    fn heard(&self) -> Option<Charged> {
        None
    }

    /// Keeps everything back until then, because Gemini refused a call for a quota per minute.
    /// Those who wait keep their places. Of several such moments the latest holds.
    fn pause_until(&self, until: Instant);

    /// Whether everything is kept back because Gemini refused a call.
    fn is_paused(&self) -> bool;

    /// What is spent now.
    fn usage(&self) -> BoxFuture<'_, Result<BudgetUsage, StoreUnavailable>>;

    /// A reservation is given back unsent.
    fn give_back(&self, cost: Cost);

    /// What was reserved leaves now.
    fn start(&self, cost: Cost) -> Started;

    /// What left and was counted as `counted` cost `actual`: nothing, where it was refused and does
    /// not count.
    fn settle(&self, started: Started, counted: Cost, actual: Cost);

    /// Gemini has answered a call of the account: nobody made its key and model up.
    fn prove(&self) {}

    /// What left does not count in its day.
    fn take_back_of_day(&self, started: Started, cost: Cost);

    /// What left then was refused because the requests of its day are used up: until the midnight
    /// after it, all others are refused at once, and so are those who wait.
    fn close_day(&self, left_at: Instant);
}

/// A call's leaving.
#[derive(Debug, Clone, Copy)]
pub struct Started {
    /// What the budget knows it by.
    pub(super) number: u64,
    /// When it was.
    pub(super) at: Instant,
}

/// The answer to one who asked for a reservation and does not wait for others.
pub enum Attempt {
    /// It is there; `None` where one would have to wait.
    Answered(Result<Option<Reservation>, NotReserved>),
    /// It has to be fetched.
    Asked(BoxFuture<'static, Result<Option<Reservation>, NotReserved>>),
}

impl Attempt {
    /// The answer.
    ///
    /// # Errors
    /// [`NotReserved`].
    pub async fn answer(self) -> Result<Option<Reservation>, NotReserved> {
        match self {
            Self::Answered(answer) => answer,
            Self::Asked(asked) => asked.await,
        }
    }
}

/// Why one who does not wait has no reservation.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum NotReserved {
    /// The quotas have no room for the call in time.
    #[error(transparent)]
    Exhausted(#[from] Exhausted),
    /// The quotas that the replicas share are unavailable.
    #[error(transparent)]
    StoreUnavailable(#[from] StoreUnavailable),
}

/// A budget of this process.
#[derive(Debug)]
pub struct LocalBudget {
    ledger: Mutex<Ledger>,
    queue: Queue,
    /// Those who had a turn already and go before the queue.
    returning: Queue,
    /// Where all is counted from some time on. Requests that are given back then are given back to
    /// the day there: what had left here was counted with it.
    moved_to: OnceLock<Weak<dyn Budget>>,
}

/// Calls that wait, one behind the other.
#[derive(Debug, Default)]
struct Queue {
    /// Held by the first. Only that one watches the clock and `changed`.
    first: sync::Mutex<()>,
    changed: Notify,
}

/// Why a call cannot be paid for in time.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Exhausted {
    /// A quota is 0.
    #[error("the quota is 0")]
    NoQuota,
    /// The call alone costs more than a whole quota.
    #[error("the request costs {cost} {}, more than the {limit} of a whole {}", kind.resource(), kind.window())]
    TooLarge {
        /// Which quota it exceeds.
        kind: QuotaKind,
        /// What the call costs of it, for tokens as estimated.
        cost: u64,
        /// The quota.
        limit: u64,
    },
    /// The call's turn cannot come before its deadline, or did not.
    #[error("the quota per minute has no room before {retry_after:?} have passed")]
    NotBefore {
        /// In how long it could go, behind all who wait now.
        retry_after: Duration,
    },
    /// The requests of the day are used up.
    #[error("the quota per day is used up for {retry_after:?}")]
    DayExhausted {
        /// What is left of the day.
        retry_after: Duration,
    },
}

/// What is spent of a budget at one moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BudgetUsage {
    /// Of each quota.
    pub quotas: PerKind<QuotaUsage>,
    /// How many requests wait.
    pub waiting: u64,
    /// In how long a small call could go, behind all who wait; `None` for never.
    pub next_free_in: Option<Duration>,
    /// For how long Gemini's refusal keeps everything back; `None` where nothing is kept back.
    pub paused_for: Option<Duration>,
}

impl Index<QuotaKind> for BudgetUsage {
    type Output = QuotaUsage;

    fn index(&self, kind: QuotaKind) -> &QuotaUsage {
        &self.quotas[kind]
    }
}

/// What is spent of one quota.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize)]
pub struct QuotaUsage {
    /// What may be spent; `None` for without end.
    pub limit: Option<u64>,
    /// What has left and still counts.
    pub used: u64,
    /// What is reserved and has not left.
    pub reserved: u64,
}

impl LocalBudget {
    /// A budget of which nothing is spent. A `minute` shorter than 60 seconds scales a long run
    /// down; the day stays a day.
    pub fn new(quotas: Quotas, minute: Duration) -> Arc<Self> {
        let budget = Self::named("".into(), PlannedQuotas::default(), minute);
        budget.set(quotas);
        budget
    }

    /// The settings say something else now, for calls that wait as for those that come. What has
    /// left within the minute counts against the new quotas, whether it was limited then or not.
    pub fn set(&self, quotas: Quotas) {
        self.change(|ledger, now| ledger.set(quotas, now));
    }

    /// The same, of an account that has this name in logs.
    pub(super) fn named(name: Arc<str>, planned: PlannedQuotas, minute: Duration) -> Arc<Self> {
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

    async fn wait(
        self: Arc<Self>,
        line: Line,
        cost: Cost,
        deadline: Instant,
    ) -> Result<Reservation, Exhausted> {
        let cost = cost.bounded();
        let line = match line {
            Line::YieldOnce if self.ledger().is_waited_for() => Line::Queue,
            line => line,
        };
        let queue = match line {
            Line::Queue | Line::YieldOnce => &self.queue,
            Line::Returning => &self.returning,
        };
        let mut entry = QueueEntry::join(&self, line, cost, deadline)?;
        'queue: loop {
            let Ok(_first) = timeout_at(deadline, queue.first.lock()).await else {
                return Err(entry.give_up());
            };
            loop {
                let until = match entry.advance(deadline)? {
                    Opening::Now => {
                        return Ok(self.reservation(cost));
                    }
                    Opening::Yield => {
                        entry.line = Line::Queue;
                        continue 'queue;
                    }
                    Opening::At(at) => at.min(deadline),
                    Opening::OnChange => deadline,
                };
                // Whichever comes first, the place is looked at again.
                let _ = timeout_at(until, queue.changed.notified()).await;
            }
        }
    }

    fn reservation(self: &Arc<Self>, cost: Cost) -> Reservation {
        Reservation::new(Arc::<Self>::clone(self), cost)
    }

    /// What is spent now.
    pub fn usage_now(&self) -> BudgetUsage {
        self.ledger().usage()
    }

    /// Ends a pause.
    pub(super) fn resume(&self) {
        self.change(Ledger::resume);
    }

    /// From now on all is counted as another budget: gives what is spent.
    pub(super) fn move_to(&self, budget: Weak<dyn Budget>) -> Spent {
        let mut ledger = self.ledger();
        // It moves once.
        let _ = self.moved_to.set(budget);
        ledger.hand_over()
    }

    /// Gives a cost back to the day where it is counted.
    fn give_day_back(&self, left_at: Instant, cost: Cost) {
        if let Some(budget) = self.moved_to.get().and_then(Weak::upgrade) {
            budget.take_back_of_day(Started { number: 0, at: left_at }, cost);
        }
    }

    /// Changes what the first ones wait for. Says whether all is counted elsewhere.
    fn change(&self, change: impl FnOnce(&mut Ledger, Instant)) -> bool {
        self.change_at_any_time(|ledger| {
            let now = ledger.expire();
            change(ledger, now);
        })
    }

    /// The same for a change to which the time does not matter, so that the clock is not read.
    fn change_at_any_time(&self, change: impl FnOnce(&mut Ledger)) -> bool {
        let mut ledger = self.ledger();
        change(&mut ledger);
        let is_moved = self.moved_to.get().is_some();
        let is_waited_for = ledger.is_waited_for();
        drop(ledger);
        // Whoever joins later looks at the ledger first.
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
    fn try_reserve(self: Arc<Self>, cost: Cost, deadline: Instant) -> Attempt {
        let cost = cost.bounded();
        let reserved = self.ledger().try_reserve(cost, deadline);
        let answer = reserved.map(|reserved| reserved.then(|| Reservation::new(self, cost)));
        Attempt::Answered(answer.map_err(NotReserved::Exhausted))
    }

    fn reserve(
        self: Arc<Self>,
        line: Line,
        cost: Cost,
        deadline: Instant,
    ) -> BoxFuture<'static, Result<Reservation, Exhausted>> {
        self.wait(line, cost, deadline).boxed()
    }

    fn learn(&self, named: Quotas) {
        self.change(|ledger, now| ledger.learn(named, now));
    }

    fn forget(&self) {
        self.change(Ledger::forget);
    }

    fn is_blank(&self) -> bool {
        self.ledger().is_blank()
    }

    fn hand_over(&self) -> HandedOver {
        HandedOver::Spent(Box::new(self.ledger().hand_over()))
    }

    fn take_over(&self, from: HandedOver, _heard: bool) {
        if let HandedOver::Spent(spent) = from {
            self.change(|ledger, now| ledger.take_over(*spent, now));
        }
    }

    fn pause_until(&self, until: Instant) {
        self.change(|ledger, _| ledger.pause_until(until));
    }

    fn is_paused(&self) -> bool {
        self.ledger().is_paused()
    }

    fn usage(&self) -> BoxFuture<'_, Result<BudgetUsage, StoreUnavailable>> {
        ready(Ok(self.usage_now())).boxed()
    }

    fn give_back(&self, cost: Cost) {
        if self.change_at_any_time(|ledger| ledger.give_back(cost)) {
            self.give_day_back(Instant::now(), cost);
        }
    }

    fn start(&self, cost: Cost) -> Started {
        let mut left_at = None;
        self.change(|ledger, now| {
            left_at = Some(now);
            ledger.start(cost, now);
        });
        Started { number: 0, at: left_at.expect("it is changed at once") }
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

    fn close_day(&self, left_at: Instant) {
        self.change(|ledger, _| ledger.close_day(left_at));
    }
}

/// A place in the queue, given up on drop.
struct QueueEntry<'a> {
    budget: &'a LocalBudget,
    line: Line,
    cost: Cost,
    waits: bool,
}

impl<'a> QueueEntry<'a> {
    fn join(
        budget: &'a LocalBudget,
        line: Line,
        cost: Cost,
        deadline: Instant,
    ) -> Result<Self, Exhausted> {
        budget.ledger().join(line, cost, deadline)?;
        Ok(Self { budget, line, cost, waits: true })
    }

    /// Trades the place, which is the first, for a reservation; or says what to wait for.
    fn advance(&mut self, deadline: Instant) -> Result<Opening, Exhausted> {
        let opening = self.budget.ledger().advance(self.line, self.cost, deadline)?;
        self.waits = !matches!(opening, Opening::Now);
        Ok(opening)
    }

    /// Leaves the queue at the deadline.
    fn give_up(mut self) -> Exhausted {
        self.waits = false;
        self.budget.ledger().give_up(self.line, self.cost)
    }
}

impl Drop for QueueEntry<'_> {
    fn drop(&mut self) {
        if self.waits {
            self.budget.ledger().leave(self.line, self.cost);
        }
    }
}

/// The right to send one call; dropping it gives everything back.
#[derive(Debug)]
#[must_use = "dropping a reservation gives it back at once"]
pub struct Reservation {
    /// `None` once the call has left.
    budget: Option<Arc<dyn Budget>>,
    cost: Cost,
}

impl Reservation {
    /// One that its budget has counted.
    pub(super) fn new(budget: Arc<dyn Budget>, cost: Cost) -> Self {
        Self { budget: Some(budget), cost }
    }

    /// The call leaves now: from this moment it counts for a minute.
    pub fn leave(mut self) -> Sent {
        let budget = self.budget.take().expect("a reservation leaves once");
        let started = budget.start(self.cost);
        Sent { budget, cost: self.cost, started }
    }
}

impl Drop for Reservation {
    fn drop(&mut self) {
        if let Some(budget) = self.budget.take() {
            budget.give_back(self.cost);
        }
    }
}

/// A call that has left. Dropping it lets the estimate stand.
#[derive(Debug)]
#[must_use = "a call that has left is settled with what it cost, or was refused"]
pub struct Sent {
    budget: Arc<dyn Budget>,
    cost: Cost,
    started: Started,
}

impl Sent {
    /// When it left.
    pub fn left_at(&self) -> Instant {
        self.started.at
    }

    /// Replaces the estimate with what the call cost, in tokens. Without effect a minute after
    /// it left.
    pub fn settle(self, actual_tokens: u64) {
        let tokens = Cost::bounded_amount(actual_tokens);
        let actual = self.cost.with(Resource::InputTokens, tokens);
        if actual != self.cost {
            self.budget.settle(self.started, self.cost, actual);
        }
    }

    /// Gives the requests of the day back to the account that is charged now: those of a call in
    /// flight moved there with all that was spent.
    pub(super) fn take_back_of_day_at(&self, charged: &Arc<dyn Budget>) {
        charged.take_back_of_day(self.started, self.cost);
    }

    /// Gemini refused the request itself: it does not count in its day, and the estimate stands in
    /// its minute.
    pub fn not_of_the_day(self) {
        self.budget.take_back_of_day(self.started, self.cost);
    }

    /// Gemini refused the call with 429, so that it did not count there and does not here.
    pub fn refused(self) {
        self.budget.settle(self.started, self.cost, Cost::default());
    }
}
