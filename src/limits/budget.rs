//! The hot path of quotas: a call reserves what it is expected to cost, is sent, and settles at what
//! it cost.
//!
//! A reservation counts in full until the call is sent, however long that takes. What was sent
//! counts for a minute from that moment, and until the end of its day.

use std::fmt;
use std::sync::Arc;

use futures_util::future::{BoxFuture, Either, ready};
use tokio::time::Instant;

use super::model::{
    BudgetUsage, Cost, Exhausted, Line, PlannedQuotas, QuotaKind, Quotas, Resource, SPEND_MARGIN,
    Spent, StoreUnavailable,
};

/// The quotas of one account, as a call uses them. [`LocalBudget`](super::LocalBudget) counts in this
/// process; another implementation counts in Redis, for all replicas.
pub trait Budget: fmt::Debug + Send + Sync {
    /// Reserves what a call costs if it fits now and nothing waits.
    fn try_reserve(self: Arc<Self>, cost: Cost, deadline: Instant) -> TryReserve;

    /// Waits in a line until the cost fits, and reserves it. Dropping the future leaves the line.
    ///
    /// # Errors
    /// [`Exhausted`]: at once if the call cannot be sent before its deadline even when everything
    /// ahead of it is sent as soon as possible; when that becomes certain while the call is first
    /// in line; and at the deadline.
    fn reserve(
        self: Arc<Self>,
        line: Line,
        cost: Cost,
        deadline: Instant,
    ) -> BoxFuture<'static, Result<Reservation, Exhausted>>;

    /// Gives a reservation back that was not sent.
    fn give_back(&self, cost: Cost);

    /// Counts a reservation as sent now.
    fn start(&self, cost: Cost) -> Started;

    /// Replaces what was `counted` for a call that was sent by its `actual` cost: nothing, if Gemini
    /// refused the call and did not count it.
    fn settle(&self, started: Started, counted: Cost, actual: Cost);

    /// Counts an amount of a resource from now on that was used without a reservation.
    fn spend(&self, resource: Resource, amount: u64) {
        let nothing = Cost::default();
        let spent = nothing.with(resource, Cost::bounded_amount(resource, amount));
        self.settle(self.start(nothing), nothing, spent);
    }

    /// Takes a call out of its day and leaves it in its minute.
    fn take_back_of_day(&self, started: Started, cost: Cost);

    /// Whether a refusal by Gemini pauses the account.
    fn is_paused(&self) -> bool;
}

/// The quotas of one account, as they are learned, changed, moved and shown.
pub trait BudgetAdmin: Budget {
    /// Takes over quotas that Gemini named. The others stay as they are. They hold until the day ends
    /// in California; then the settings hold again.
    fn learn(&self, named: Quotas);

    /// Takes over new settings, for waiting calls too: the account's `own` quotas, and those that hold
    /// `with_aliases`, the accounts that are charged here, which have their new settings already. If the
    /// quotas change, learned ones are dropped.
    fn plan(&self, own: PlannedQuotas, with_aliases: PlannedQuotas);

    /// Returns to the quotas of the settings, and ends a pause and a used-up day.
    fn forget(&self);

    /// Whether a new budget would behave the same: nothing is spent, reserved, queued, paused, used
    /// up or learned, or all of it is kept in Redis.
    fn is_blank(&self) -> bool;

    /// Takes out what is spent and what Gemini named, because Gemini charges another account for
    /// these calls.
    fn transfer_out(&self) -> Transfer;

    /// Adds what another account has spent. The limits set by hand for that account hold here too:
    /// of each quota, the lowest of them holds and precedes the tier's. Quotas that Gemini named
    /// stay within it. `from_replica`: another replica reported the transfer.
    fn transfer_in(&self, from: Transfer, from_replica: bool);

    /// The model that is charged for the account's calls, if another replica has reported one since
    /// the last call of this method.
    fn take_charged_model(&self) -> Option<ChargedModel> {
        None
    }

    /// Starts no call until then, because Gemini refused one for the `quota`, if it is known which.
    /// Calls that wait keep their position. Of several such times, the latest holds.
    fn pause_until(&self, until: Instant, quota: Option<QuotaKind>);

    /// Refuses calls until the midnight after `sent_at`, waiting ones included: Gemini refused a call
    /// that was sent then because the quota of its day is used up.
    fn close_day(&self, sent_at: Instant);

    /// Notes that Gemini has accepted a call of the account, so its key and model exist.
    fn prove(&self) {}

    /// The usage now.
    ///
    /// # Errors
    /// [`StoreUnavailable`].
    fn usage(&self) -> BoxFuture<'_, Result<BudgetUsage, StoreUnavailable>>;
}

/// What is spent of an account and what limits it, on the way to the account that Gemini charges.
#[derive(Debug, Clone)]
pub enum Transfer {
    /// Kept in this process.
    Local(Box<Spent>),
    /// Kept in Redis under this account name.
    Shared(Arc<str>),
}

/// The model that Gemini charges for an account's calls, as another replica reported it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ChargedModel {
    /// The account's own.
    Own,
    /// Another one.
    Other(Arc<str>),
}

/// The moment at which a call was sent.
#[derive(Debug, Clone, Copy)]
pub struct Started {
    /// The number by which the budget knows the call.
    pub(super) number: u64,
    /// When the call was sent.
    pub(super) at: Instant,
}

/// The outcome of [`Budget::try_reserve`]. It needs no allocation if it is known at once.
pub enum TryReserve {
    /// Known at once. `None`: the call has to wait.
    Ready(Result<Option<Reservation>, NotReserved>),
    /// Requested from Redis.
    Pending(BoxFuture<'static, Result<Option<Reservation>, NotReserved>>),
}

impl TryReserve {
    /// Waits for the outcome.
    ///
    /// # Errors
    /// [`NotReserved`].
    // Not an `async fn`, whose future holds the outcome twice.
    pub fn result(self) -> impl Future<Output = Result<Option<Reservation>, NotReserved>> {
        match self {
            Self::Ready(result) => Either::Left(ready(result)),
            Self::Pending(result) => Either::Right(result),
        }
    }
}

/// Why [`Budget::try_reserve`] failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum NotReserved {
    /// The quotas have no room for the call before its deadline.
    #[error(transparent)]
    Exhausted(#[from] Exhausted),
    /// The quotas are shared and the store is unavailable.
    #[error(transparent)]
    StoreUnavailable(#[from] StoreUnavailable),
}

/// The right to send one call. Dropping it gives the reserved cost back.
#[derive(Debug)]
#[must_use = "dropping a reservation gives it back at once"]
pub struct Reservation {
    /// `None` once the call is sent.
    budget: Option<Arc<dyn Budget>>,
    pub(super) cost: Cost,
}

impl Reservation {
    /// A reservation that the budget has already counted.
    pub(super) fn new(budget: Arc<dyn Budget>, cost: Cost) -> Self {
        Self { budget: Some(budget), cost }
    }

    /// Counts the call as sent now.
    pub fn start(mut self) -> Sent {
        let budget = self.budget.take().expect("a reservation is used once");
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

/// A call that was sent. Dropping it leaves the estimated cost in place.
#[derive(Debug)]
#[must_use = "a call that was sent is settled at its cost, or was refused"]
pub struct Sent {
    budget: Arc<dyn Budget>,
    pub(super) cost: Cost,
    pub(super) started: Started,
}

impl Sent {
    /// When the call was sent.
    pub fn at(&self) -> Instant {
        self.started.at
    }

    /// Replaces the estimate by the input tokens that the call cost. Has no effect on the minute if
    /// the call was sent more than a minute ago.
    pub fn settle(self, actual_tokens: u64) {
        self.settle_at(Resource::InputTokens, actual_tokens);
    }

    /// Replaces the estimate by the money that the call cost, in billionths of a dollar. Google counts
    /// money when it answers, so a long call counts from its end.
    pub(super) fn settle_spend(self, actual: u64) {
        if self.started.at.elapsed() < SPEND_MARGIN {
            return self.settle_at(Resource::Spend, actual);
        }
        self.budget.settle(self.started, self.cost, Cost::default());
        self.budget.spend(Resource::Spend, actual);
    }

    pub(super) fn settle_at(self, resource: Resource, amount: u64) {
        let actual = self.cost.with(resource, Cost::bounded_amount(resource, amount));
        if actual != self.cost {
            self.budget.settle(self.started, self.cost, actual);
        }
    }

    /// Takes the call out of the day of the account that is charged now. Its cost moved there while
    /// it was in flight, with everything else that was spent.
    pub(super) fn take_back_of_day_at(&self, charged: &dyn Budget) {
        charged.take_back_of_day(self.started, self.cost);
    }

    /// Gemini refused the request itself: the call does not count in its day. In its minute the
    /// estimate stays.
    pub fn take_back_of_day(self) {
        self.budget.take_back_of_day(self.started, self.cost);
    }

    /// Gemini refused the call with 429: it counts neither in the minute nor in the day.
    pub fn take_back(self) {
        self.budget.settle(self.started, self.cost, Cost::default());
    }
}
