//! Admission: a request takes a ticket in the queue and its calls are let in when their turn comes.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync;
use tokio::time::{Instant, timeout};

use super::account::Account;
use super::accounts::Accounts;
use super::adaptive::Slot;
use super::breakers::Tripped;
use super::budget::{Cost, Estimate, Exhausted, Line, NotReserved, Reservation, Sent};
use super::plan::QuotaPlan;
use super::quota::{Quotas, Resource};
use super::semaphore::{
    Fence, LocalSemaphore, NotGranted, Permit, Semaphore, StoreUnavailable, WaitMode,
};
use super::store::{LocalStore, Store};

/// How long a call may hold a permit of a named semaphore until it knows whether its quotas have
/// room, or hold its quota until it knows whether a permit is free. Redis answers sooner.
const MOMENT: Duration = Duration::from_millis(100);

/// How long a call keeps its quota while it waits for a permit at the head of the queue, after
/// others have used the quota up during an earlier such wait.
const SECOND_TRY: Duration = Duration::from_secs(60);

/// The one way in to Gemini: a global limit on calls in flight, the semaphores that add to it,
/// and the accounts with their quotas.
#[derive(Debug)]
pub struct Limiter {
    store: Arc<dyn Store>,
    global: Arc<dyn Semaphore>,
    accounts: Accounts,
    waiting: AtomicUsize,
    max_waiting: usize,
}

/// Why a call was not let in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Refused {
    /// As many requests wait as may wait.
    #[error("the queue is full")]
    QueueFull,
    /// The named semaphore was deleted while the call waited for it.
    #[error("the semaphore was deleted")]
    SemaphoreDeleted,
    /// The quotas have no room for the call in time.
    #[error(transparent)]
    Exhausted(#[from] Exhausted),
    /// The account has nothing left to pay with, as Gemini said of an earlier call.
    #[error("the account has nothing left to pay with")]
    Unfunded,
    /// More permits of a semaphore are asked for at once than it has.
    #[error("the semaphore has no more than {limit} permits")]
    MoreThanLimit {
        /// The semaphore's limit.
        limit: usize,
    },
    /// The limits that the replicas share are unavailable.
    #[error(transparent)]
    StoreUnavailable(#[from] StoreUnavailable),
    /// The table of accounts is full, and the call is for a new key or model.
    #[error("too many keys and models are in use")]
    TooManyAccounts,
}

impl From<NotReserved> for Refused {
    fn from(reason: NotReserved) -> Self {
        match reason {
            NotReserved::Exhausted(reason) => Self::Exhausted(reason),
            NotReserved::StoreUnavailable(reason) => Self::StoreUnavailable(reason),
        }
    }
}

impl From<Tripped> for Refused {
    fn from(reason: Tripped) -> Self {
        match reason {
            Tripped::Unfunded => Self::Unfunded,
            Tripped::NoQuota => Self::Exhausted(Exhausted::NoQuota),
        }
    }
}

impl From<NotGranted> for Refused {
    fn from(reason: NotGranted) -> Self {
        match reason {
            // Only who does not wait is told so.
            NotGranted::NoneFree => Self::QueueFull,
            NotGranted::Closed => Self::SemaphoreDeleted,
            NotGranted::MoreThanLimit { limit } => Self::MoreThanLimit { limit },
            NotGranted::StoreUnavailable(reason) => Self::StoreUnavailable(reason),
        }
    }
}

/// How busy the limiter is at one moment. In calls, but for `waiting`: in requests, of which a
/// batch is one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Occupancy {
    /// How many calls may be in flight at once.
    pub limit: usize,
    /// How many more could start now.
    pub available: usize,
    /// How many are in flight.
    pub in_flight: usize,
    /// How many wait: for a quota, or for one of the semaphores.
    pub waiting: usize,
}

impl Limiter {
    /// A limiter with limits of its own, through which `limit` calls go at once.
    pub fn new(limit: usize, max_waiting: usize, plan: QuotaPlan) -> Arc<Self> {
        Self::with_store(LocalStore::new(limit), limit, max_waiting, plan)
    }

    /// A limiter with the limits of a store, of which the global one was set to `limit`; at which
    /// `max_waiting` requests wait, and which keeps the quotas of `plan`.
    pub fn with_store(
        store: Arc<dyn Store>,
        limit: usize,
        max_waiting: usize,
        plan: QuotaPlan,
    ) -> Arc<Self> {
        Arc::new(Self {
            global: store.global(),
            accounts: Accounts::new(Arc::clone(&store), plan, limit),
            store,
            waiting: AtomicUsize::new(0),
            max_waiting,
        })
    }

    /// Where the limits are kept.
    pub fn store(&self) -> &Arc<dyn Store> {
        &self.store
    }

    /// The accounts that calls are made for.
    pub fn accounts(&self) -> &Accounts {
        &self.accounts
    }

    /// Whether a request could join the queue now, if it had to wait. A live session is accepted before
    /// it is known for which account it is.
    ///
    /// # Errors
    /// [`Refused::QueueFull`]; [`Refused::StoreUnavailable`].
    pub fn check_queue(&self) -> Result<(), Refused> {
        self.store.reach()?;
        let Occupancy { available, waiting, .. } = self.occupancy();
        if available == 0 && waiting >= self.max_waiting { Err(Refused::QueueFull) } else { Ok(()) }
    }

    /// How busy the limiter is now.
    pub fn occupancy(&self) -> Occupancy {
        let global = self.global.usage();
        Occupancy {
            limit: global.limit,
            available: global.available(),
            in_flight: global.in_use,
            waiting: self.waiting.load(Ordering::Relaxed),
        }
    }
}

/// A request's ticket in the queue. A batch of any size has one, as a single request has: its
/// calls pass one after the other, first attempts and retries alike, so that nobody who comes
/// after ten thousand items waits for more than one of them.
///
/// A batch of several models, or keys, waits for each in a [`AccountQueue`] of its own, so that none of
/// them holds up another; for the global slot, which all have in common, it still waits once.
#[derive(Debug)]
pub struct QueueTicket {
    limiter: Arc<Limiter>,
    /// Whether those go first, once, who come while it waits with nobody before it.
    yields_once: bool,
    head: sync::Mutex<()>,
    state: Mutex<QueueState>,
}

/// How a request stands with the queue.
#[derive(Debug, Default)]
struct QueueState {
    /// Whether it was let into the queue or past it: unknown before it came to that.
    accepted: Option<bool>,
    /// In how many of its queues a call waits.
    queues: usize,
}

/// The calls of one request that are for the same account and hold the same semaphore, if any.
/// They are let in one after the other.
#[derive(Debug)]
pub struct AccountQueue {
    ticket: Arc<QueueTicket>,
    account: Arc<Account>,
    named: Option<Arc<dyn Semaphore>>,
    head: sync::Mutex<()>,
}

/// A call's turn to be let in, before all others of its queue.
#[derive(Debug)]
pub struct HeadOfQueue<'a> {
    queue: &'a AccountQueue,
    since: Instant,
    _head: sync::MutexGuard<'a, ()>,
}

impl QueueTicket {
    /// A ticket for one request.
    pub fn new(limiter: Arc<Limiter>) -> Arc<Self> {
        Self::at(limiter, false)
    }

    /// A ticket for a batch. Having had a turn just now, it lets those who come while it waits for
    /// the next go first, once: a single request beside a batch waits for the next slot, not for
    /// the one after it, and the batch loses nothing by it.
    pub fn for_many(limiter: Arc<Limiter>) -> Arc<Self> {
        Self::at(limiter, true)
    }

    fn at(limiter: Arc<Limiter>, yields_once: bool) -> Arc<Self> {
        Arc::new(Self { limiter, yields_once, head: sync::Mutex::new(()), state: Mutex::default() })
    }

    /// The queue of the calls for an account that hold a named semaphore, or none.
    pub fn queue(
        self: &Arc<Self>,
        account: Arc<Account>,
        named: Option<Arc<dyn Semaphore>>,
    ) -> AccountQueue {
        AccountQueue { ticket: Arc::clone(self), account, named, head: sync::Mutex::new(()) }
    }

    async fn acquire(&self, semaphore: &Arc<dyn Semaphore>) -> Result<Permit, Refused> {
        self.acquire_many(semaphore, 1).await
    }

    /// Waits for so many permits of a semaphore and for nothing else, for work that is done
    /// outside. It counts in the queue as a call does. Dropping the future leaves the queue.
    ///
    /// # Errors
    /// [`Refused::QueueFull`] where it would have to wait and too many do;
    /// [`Refused::SemaphoreDeleted`]; [`Refused::MoreThanLimit`]; [`Refused::StoreUnavailable`] where
    /// the request was not accepted before: what was waits until the store is there again.
    pub async fn acquire_many(
        &self,
        semaphore: &Arc<dyn Semaphore>,
        permits: usize,
    ) -> Result<Permit, Refused> {
        let ask = |mode| Arc::clone(semaphore).ask(permits, mode);
        match ask(WaitMode::None).await {
            Err(NotGranted::NoneFree) => {}
            Err(NotGranted::StoreUnavailable(_)) if self.may_wait_for_store() => {}
            answer => return Ok(answer?),
        }
        let _waiting = self.join_queue()?;
        let lets_others_go = self.yields_once && semaphore.usage().waiting == 0;
        let permit = ask(WaitMode::Endless).await?;
        if !lets_others_go || semaphore.usage().waiting == 0 {
            return Ok(permit);
        }
        drop(permit);
        Ok(ask(WaitMode::Endless).await?)
    }

    /// Waits for a slot of the account and a global one.
    async fn slots(&self, account: &Account) -> Result<(Permit, Permit), Refused> {
        let own = account.concurrency().semaphore();
        let usage = own.usage();
        // Where the account's limit keeps nothing back, all wait for the global slot alone, so
        // that replicas let in whoever came first to any of them.
        let keeps_back = usage.limit < self.limiter.global.usage().limit;
        if usage.waiting == 0 && !keeps_back {
            let global = self.global().await?;
            if let Some(slot) = own.try_acquire() {
                return Ok((slot, global));
            }
            // It has fallen meanwhile: others may have the global slot while this one waits.
        }
        let own: Arc<dyn Semaphore> = Arc::<LocalSemaphore>::clone(own);
        let slot = self.acquire(&own).await?;
        Ok((slot, self.global().await?))
    }

    async fn global(&self) -> Result<Permit, Refused> {
        let _head = self.head.lock().await;
        self.acquire(&self.limiter.global).await
    }

    async fn reserve(
        &self,
        account: &Account,
        estimate: Estimate,
        deadline: Instant,
    ) -> Result<Reservation, Refused> {
        let mut cost = estimate.cost;
        loop {
            let attempt = Arc::clone(account.budget()).try_reserve(cost, deadline);
            match attempt.answer().await {
                Ok(Some(reservation)) => return Ok(reservation),
                Ok(None) => break,
                Err(NotReserved::Exhausted(reason)) => cost = estimate.within(reason, cost)?,
                Err(NotReserved::StoreUnavailable(_)) if self.may_wait_for_store() => break,
                Err(reason) => return Err(reason.into()),
            }
        }
        let _waiting = self.join_queue()?;
        let line = if self.yields_once { Line::YieldOnce } else { Line::Queue };
        Ok(reserve_in(line, account, estimate, deadline).await?)
    }

    async fn reserve_again(
        &self,
        account: &Account,
        estimate: Estimate,
        deadline: Instant,
    ) -> Result<Reservation, Refused> {
        let _waiting = self.join_queue()?;
        Ok(reserve_in(Line::Returning, account, estimate, deadline).await?)
    }

    /// Waits for a permit of a named semaphore and for the quota, and holds neither while it waits
    /// for the other.
    ///
    /// 1. The call waits for a permit, first come, first served. If its quota has room then, it
    ///    has both.
    /// 2. Otherwise it gives the permit back and waits for the quota at the head of its account's
    ///    line.
    /// 3. With the quota reserved, it takes a permit if one is free. Otherwise it gives the
    ///    quota back and waits for a permit at the head of the semaphore's queue.
    /// 4. With the permit, it has both if the quota still has room. Otherwise it begins again at 2.
    ///
    /// From its second round on it keeps the quota in step 3, for a minute at most, so that
    /// other calls of its account cannot delay it for ever. Only one call of an account does this
    /// for each semaphore; others that came to step 2 wait behind it.
    async fn permit_and_quota(
        &self,
        named: &Arc<dyn Semaphore>,
        account: &Account,
        estimate: Estimate,
        deadline: Instant,
    ) -> Result<(Permit, Reservation), Refused> {
        let permit = self.acquire(named).await?;
        if let Some(reservation) = reserve_now(account, estimate, deadline).await? {
            return Ok((permit, reservation));
        }
        drop(permit);
        let _waiting = self.join_queue()?;
        let line = account.returning(named.number());
        let _head = line.lock().await;
        let mut keep_quota_for = MOMENT;
        loop {
            let reservation = self.reserve_again(account, estimate, deadline).await?;
            let mut ticket = Arc::clone(named).ask(1, WaitMode::Returning);
            if let Ok(permit) = timeout(keep_quota_for, &mut ticket).await {
                return Ok((permit?, reservation));
            }
            drop(reservation);
            let permit = ticket.await?;
            if let Some(reservation) = reserve_now(account, estimate, deadline).await? {
                return Ok((permit, reservation));
            }
            keep_quota_for = SECOND_TRY;
        }
    }

    /// Whether the request was accepted before the store was lost. One that was not is refused,
    /// with all of its calls.
    fn may_wait_for_store(&self) -> bool {
        *self.state().accepted.get_or_insert(false)
    }

    /// A call of the request is let in, unless another was refused: then nothing of it is sent.
    fn accept(&self) -> Result<(), Refused> {
        if *self.state().accepted.get_or_insert(true) { Ok(()) } else { Err(Refused::QueueFull) }
    }

    /// Waits as one more in the queue, however many queues do. Work that was accepted is not
    /// refused later for those who came after it; what was not is refused where the store is lost.
    fn join_queue(&self) -> Result<InQueue<'_>, Refused> {
        let mut state = self.state();
        if state.accepted != Some(true)
            && let Err(lost) = self.limiter.store.reach()
        {
            state.accepted = Some(false);
            return Err(lost.into());
        }
        if state.queues == 0 {
            let most = match state.accepted {
                None => self.limiter.max_waiting,
                Some(true) => usize::MAX,
                Some(false) => 0,
            };
            let one_more = |waiting| (waiting < most).then_some(waiting + 1);
            let queue = &self.limiter.waiting;
            let joined = queue.fetch_update(Ordering::Relaxed, Ordering::Relaxed, one_more).is_ok();
            state.accepted = Some(joined);
            if !joined {
                return Err(Refused::QueueFull);
            }
        }
        state.queues += 1;
        Ok(InQueue(self))
    }

    fn state(&self) -> MutexGuard<'_, QueueState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Reserves what a call is expected to cost, or a whole minute's tokens: see
/// [`Estimate::within`].
async fn reserve_in(
    line: Line,
    account: &Account,
    estimate: Estimate,
    deadline: Instant,
) -> Result<Reservation, Exhausted> {
    let mut cost = estimate.cost;
    loop {
        match Arc::clone(account.budget()).reserve(line, cost, deadline).await {
            Err(reason) => cost = estimate.within(reason, cost)?,
            reserved => return reserved,
        }
    }
}

/// Reserves at the head of the account's line, if there is room at once.
async fn reserve_now(
    account: &Account,
    estimate: Estimate,
    deadline: Instant,
) -> Result<Option<Reservation>, Exhausted> {
    let at_once = deadline.min(Instant::now() + MOMENT);
    match reserve_in(Line::Returning, account, estimate, at_once).await {
        Ok(reservation) => Ok(Some(reservation)),
        Err(Exhausted::NotBefore { retry_after }) if Instant::now() + retry_after < deadline => {
            Ok(None)
        }
        Err(reason) => Err(reason),
    }
}

/// A queue of a request that waits; dropping it leaves the queue.
struct InQueue<'a>(&'a QueueTicket);

impl Drop for InQueue<'_> {
    fn drop(&mut self) {
        let mut state = self.0.state();
        state.queues -= 1;
        if state.queues == 0 {
            self.0.limiter.waiting.fetch_sub(1, Ordering::Relaxed);
        }
    }
}

impl AccountQueue {
    /// Waits until the calls of this queue that asked before are in. Dropping the future leaves
    /// the queue.
    pub async fn head(&self) -> HeadOfQueue<'_> {
        let head = self.head.lock().await;
        HeadOfQueue { queue: self, since: Instant::now(), _head: head }
    }
}

impl HeadOfQueue<'_> {
    /// Waits until the quotas have room for what the call costs; for the named semaphore, if any;
    /// for a slot of the account, where its limit has fallen; and for a global slot. Dropping
    /// the future leaves the queue.
    ///
    /// In this order nobody can deadlock, and the global slot is never held by one who still
    /// waits. A call that has to wait for its semaphore keeps no quota from the account's others
    /// meanwhile, and one that has to wait for its quota no permit of the semaphore.
    ///
    /// # Errors
    /// [`Refused::QueueFull`] when a request that has not waited before would have to and too
    /// many do; [`Refused::StoreUnavailable`] where it was not accepted before the store was lost;
    /// [`Refused::SemaphoreDeleted`]; [`Refused::Exhausted`] as soon as it is certain that the
    /// quotas have no room before the deadline; [`Refused::TooManyAccounts`]; [`Refused::Unfunded`].
    pub async fn admit(
        self,
        estimate: impl Into<Estimate>,
        deadline: Instant,
    ) -> Result<Admission, Refused> {
        let estimate = estimate.into();
        let AccountQueue { ticket, account: asked, .. } = self.queue;
        let accounts = &ticket.limiter.accounts;
        let mut instead = accounts.charged_instead(asked);
        let account = instead.as_ref().unwrap_or(asked);
        if account.is_turned_away() {
            return Err(Refused::TooManyAccounts);
        }
        account.check()?;
        let mut reservation = ticket.reserve(account, estimate, deadline).await?;
        loop {
            let account = instead.unwrap_or_else(|| Arc::clone(asked));
            let admission = self.admit_with(account, reservation, estimate, deadline).await?;
            let is_charged = accounts.is_charged(asked, &admission.account);
            if is_charged && !admission.account.budget().is_paused() {
                ticket.accept()?;
                admission.account.start()?;
                return Ok(admission);
            }
            // Gemini has refused a call of this account since the quota was reserved, or charges
            // another one.
            drop(admission);
            instead = accounts.charged_instead(asked);
            let account = instead.as_ref().unwrap_or(asked);
            reservation = ticket.reserve_again(account, estimate, deadline).await?;
        }
    }

    async fn admit_with(
        &self,
        account: Arc<Account>,
        mut reservation: Reservation,
        estimate: Estimate,
        deadline: Instant,
    ) -> Result<Admission, Refused> {
        let AccountQueue { ticket, account: asked, named, .. } = self.queue;
        let named = match named {
            None => None,
            Some(named) => match Arc::clone(named).ask(1, WaitMode::None).await {
                Ok(permit) => Some(permit),
                Err(NotGranted::NoneFree | NotGranted::StoreUnavailable(_)) => {
                    drop(reservation);
                    // In a box, so that calls which do not wait here take no memory for it.
                    let both = ticket.permit_and_quota(named, &account, estimate, deadline);
                    let (permit, again) = Box::pin(both).await?;
                    reservation = again;
                    Some(permit)
                }
                Err(reason) => return Err(reason.into()),
            },
        };
        let (concurrency, global) = ticket.slots(&account).await?;
        let waited = self.since.elapsed();
        let alias = (!Arc::ptr_eq(asked, &account)).then(|| Arc::clone(asked));
        Ok(Admission { global, concurrency, named, reservation, account, alias, waited })
    }
}

/// The right to one call; dropping it lets the next one in.
#[derive(Debug)]
#[must_use = "dropping an admission gives its slots back at once"]
pub struct Admission {
    // Fields drop in this order: who is given the global slot finds one of the account.
    concurrency: Permit,
    global: Permit,
    named: Option<Permit>,
    reservation: Reservation,
    account: Arc<Account>,
    /// The account that the call was made for, where another one is charged.
    alias: Option<Arc<Account>>,
    /// How long the call waited to be let in, once it was its queue's turn.
    pub waited: Duration,
}

impl Admission {
    /// The call leaves now: from this moment it counts against the quotas.
    ///
    /// # Errors
    /// [`PermitsExpired`] where it must not leave any more.
    pub fn start(self) -> Result<InFlightCall, PermitsExpired> {
        if !self.named.iter().chain([&self.global]).all(Permit::is_in_force) {
            return Err(PermitsExpired);
        }
        let Self { global, concurrency, named, reservation, account, alias, .. } = self;
        let slot = account.concurrency().enter(concurrency);
        Ok(InFlightCall { global, slot, named, sent: reservation.leave(), account, alias })
    }
}

/// Too much time passed since the call was let in: others may have been given its permits. It has
/// to be let in once more.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the call's permits have lapsed")]
pub struct PermitsExpired;

/// A call that has left. Dropping it gives its slots back and lets the estimate of its cost
/// stand, as it is right for a call of which nobody knows what became.
#[derive(Debug)]
#[must_use = "dropping a call under way gives its slots back at once"]
pub struct InFlightCall {
    // In this order, as of an admission.
    slot: Slot,
    global: Permit,
    named: Option<Permit>,
    sent: Sent,
    account: Arc<Account>,
    alias: Option<Arc<Account>>,
}

impl InFlightCall {
    /// What tells whether the call may still be written to Gemini, where others share its permits:
    /// they may be given to others while it is on its way.
    pub fn fence(&self) -> Option<Fence> {
        self.global.fence()
    }

    /// The account that the call was made for; not the one that is charged, where Gemini has named
    /// another model.
    pub fn account(&self) -> &Arc<Account> {
        self.alias.as_ref().unwrap_or(&self.account)
    }

    /// The call does not count, in its minute or its day.
    fn did_not_count(self) {
        self.give_day_back();
        self.sent.refused();
    }

    /// What the account had spent moved to another one, if that is charged since the call started.
    fn give_day_back(&self) {
        let charged = self.account.charged();
        if !Arc::ptr_eq(&charged, &self.account) {
            self.sent.take_back_of_day_at(charged.budget());
        }
    }

    /// Nothing of the call was written to Gemini: it counts nowhere.
    pub fn unsent(self) {
        self.did_not_count();
    }

    /// Gemini refused the request itself, with 400, 401, 403 or 404: it does not count in its day.
    /// In its minute it may, and the estimate stands.
    pub fn declined(self) {
        self.give_day_back();
        self.sent.not_of_the_day();
    }

    /// Gemini refused the call for a quota that says nothing of the account's other calls, or that
    /// is kept elsewhere: it did not count.
    pub fn refused_alone(self) {
        self.did_not_count();
    }

    /// Gemini refused the call because the payer has nothing left to pay with: it did not count,
    /// and all others of the payer are refused, but for one every few minutes.
    pub fn unfunded(self) {
        self.account.is_unfunded();
        self.did_not_count();
    }

    /// Gemini refused the call because a quota of the account is 0: it did not count, and all
    /// others of the account are refused, but for one every few minutes.
    pub fn without_quota(self) {
        // Another account may be charged since the call started.
        self.account.charged().is_without_quota();
        self.did_not_count();
    }

    /// Gemini answered; the call cost so many input tokens, where it says so.
    pub fn answered(self, input_tokens: Option<u64>) {
        let Self { global, slot, named, sent, account, .. } = self;
        slot.succeeded();
        drop(global);
        drop(named);
        account.prove();
        if let Some(tokens) = input_tokens {
            sent.settle(tokens);
        }
    }

    /// The call has used so many input tokens beyond its estimate while it runs: they count from now
    /// on.
    pub fn spend(&self, input_tokens: u64) {
        let account = self.account.charged();
        let tokens = Cost::bounded_amount(input_tokens);
        let (none, spent) = (Cost::default(), Cost::default().with(Resource::InputTokens, tokens));
        let started = account.budget().start(none);
        account.budget().settle(started, none, spent);
    }

    /// Gemini refused the call because too many run at once. It counted there, for all one knows.
    pub fn overloaded(self) {
        self.slot.overloaded();
        drop(self.global);
    }

    /// Gemini refused the call for a quota per minute: it did not count, and none of the account
    /// goes before `until`. The quotas that Gemini `named` hold from now on; where it named none,
    /// so that nobody knows how many may go then, fewer run at once.
    pub fn refused(self, until: Instant, named: Quotas) {
        // Another account may be charged since the call started.
        let charged = self.account.charged();
        charged.correct(named);
        charged.budget().pause_until(until);
        self.give_day_back();
        self.sent.refused();
        if named == Quotas::default() {
            self.slot.overloaded();
        }
    }

    /// Gemini refused the call for a quota per day: it did not count, and none of the account
    /// goes before midnight in California. The quotas that Gemini `named` hold from now on.
    pub fn refused_for_the_day(self, named: Quotas) {
        let charged = self.account.charged();
        charged.correct(named);
        charged.budget().close_day(self.sent.left_at());
        self.did_not_count();
    }
}

#[cfg(test)]
mod tests;
