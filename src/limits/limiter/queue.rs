//! The queue: tickets of requests, and waiting for quota, permits and slots.

use std::pin::pin;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync;
use tokio::time::{Instant, timeout, timeout_at};

use super::admission::{Admission, InFlight, Reserved};
use super::held_by::{HeldUpSince, Waits};
use super::{HeldBy, Limiter, Refused};
use crate::limits::accounts::Account;
use crate::limits::budget::{BudgetAdmin, NotReserved, Reservation};
use crate::limits::local::LocalSemaphore;
use crate::limits::model::{Capacity, Estimate, Exhausted, Line};
use crate::limits::semaphore::{NotGranted, Permit, Semaphore, WaitMode};

/// How long a call holds a permit of a named semaphore until it is known whether its quotas have
/// room, or holds its quota until it is known whether a permit is free. Redis answers sooner.
pub(super) const BRIEF_HOLD: Duration = Duration::from_millis(100);

/// How long a call keeps its quota while it waits at the head of the queue for a permit, once
/// other calls have used the quota up during an earlier such wait.
const LONG_HOLD: Duration = Duration::from_secs(60);

/// A request's ticket in the queue. A batch of any size has one ticket, as a single request does.
/// Its calls are admitted one after the other, first attempts and retries alike. So a request that
/// arrives after ten thousand items waits for one of them at most.
///
/// A batch for several models or keys waits for each in an [`AccountQueue`] of its own, so that none
/// delays another. For the global slot it still waits once.
#[derive(Debug)]
pub struct QueueTicket {
    limiter: Arc<Limiter>,
    /// Whether requests that arrive while it waits at the head of the queue go first, once.
    yields_once: bool,
    head: sync::Mutex<()>,
    state: Mutex<QueueState>,
    /// Counts the admitted calls of the request while they hold a global slot.
    in_flight: Option<Arc<AtomicUsize>>,
}

/// The state of a request in the queue.
#[derive(Debug, Default)]
struct QueueState {
    /// Whether the request was accepted into the queue, or admitted without waiting. `None` until
    /// that is decided.
    accepted: Option<bool>,
    /// The number of its account queues in which a call waits.
    queues: usize,
}

/// The calls of one request for the same account and named semaphore, if any. They are admitted one
/// after the other.
#[derive(Debug)]
pub struct AccountQueue {
    ticket: Arc<QueueTicket>,
    account: Arc<Account>,
    named: Option<Arc<dyn Semaphore>>,
    capacity: Capacity,
    head: sync::Mutex<()>,
    held_up_since: HeldUpSince,
}

/// The head of an account queue: the call that is admitted next.
#[derive(Debug)]
pub struct HeadOfQueue<'a> {
    queue: &'a AccountQueue,
    _head: sync::MutexGuard<'a, ()>,
}

impl QueueTicket {
    /// A ticket for one request.
    pub fn new(limiter: Arc<Limiter>) -> Arc<Self> {
        Self::with_policy(limiter, false, None)
    }

    /// A ticket for a batch. While it waits for its next call, requests that arrive meanwhile go first,
    /// once. So a single request beside a batch waits for the next free slot and not for the one
    /// after it, and the batch is no slower.
    pub fn for_many(limiter: Arc<Limiter>) -> Arc<Self> {
        Self::with_policy(limiter, true, None)
    }

    /// The same. Its admitted calls are counted in `in_flight` while they hold a global slot.
    pub fn for_many_counted(limiter: Arc<Limiter>, in_flight: Arc<AtomicUsize>) -> Arc<Self> {
        Self::with_policy(limiter, true, Some(in_flight))
    }

    fn with_policy(
        limiter: Arc<Limiter>,
        yields_once: bool,
        in_flight: Option<Arc<AtomicUsize>>,
    ) -> Arc<Self> {
        let (head, state) = (sync::Mutex::new(()), Mutex::default());
        Arc::new(Self { limiter, yields_once, head, state, in_flight })
    }

    /// A queue of the calls for an account and a named semaphore, if any.
    pub fn queue(
        self: &Arc<Self>,
        account: Arc<Account>,
        named: Option<Arc<dyn Semaphore>>,
    ) -> AccountQueue {
        let (ticket, capacity) = (Arc::clone(self), Capacity::default());
        let (head, held_up_since) = (sync::Mutex::new(()), HeldUpSince::default());
        AccountQueue { ticket, account, named, capacity, head, held_up_since }
    }

    async fn acquire(&self, semaphore: &Arc<dyn Semaphore>) -> Result<Permit, Refused> {
        self.acquire_many(semaphore, 1).await
    }

    /// Waits for permits of a semaphore and for nothing else, for work outside this process. It counts
    /// in the queue as a call does. Dropping the future leaves the queue.
    ///
    /// # Errors
    /// [`Refused::QueueFull`] if it has to wait and too many requests do;
    /// [`Refused::SemaphoreDeleted`]; [`Refused::MoreThanLimit`]; [`Refused::StoreUnavailable`] if the
    /// request was not accepted before. An accepted request waits until the store is back.
    pub async fn acquire_many(
        &self,
        semaphore: &Arc<dyn Semaphore>,
        permits: usize,
    ) -> Result<Permit, Refused> {
        let request = |mode| Arc::clone(semaphore).request(permits, mode);
        match request(WaitMode::None).await {
            Err(NotGranted::NoneFree) => {}
            Err(NotGranted::StoreUnavailable(_)) if self.may_wait_for_store() => {}
            result => return Ok(result?),
        }
        let _waiting = self.join_queue()?;
        let yields = self.yields_once && semaphore.usage().waiting == 0;
        let permit = request(WaitMode::Endless).await?;
        if !yields || semaphore.usage().waiting == 0 {
            return Ok(permit);
        }
        drop(permit);
        Ok(request(WaitMode::Endless).await?)
    }

    /// Waits for a slot of the account and a global slot.
    #[expect(clippy::manual_async_fn, reason = "an async fn would hold the arguments twice")]
    fn slots(
        &self,
        account: &Account,
        capacity: Capacity,
        waits: &mut Waits<'_>,
    ) -> impl Future<Output = Result<(Permit, Permit), Refused>> {
        async move {
            let own = account.concurrency_of(capacity).semaphore();
            let usage = own.usage();
            // If the account's limit is not below the global one, calls wait for the global slot
            // alone. So the first of all replicas is admitted first.
            let is_lowered = usage.limit < self.limiter.global.usage().limit;
            if usage.waiting == 0 && !is_lowered {
                let global = waits.during(HeldBy::ConcurrencyLimit, self.global()).await?;
                if let Some(slot) = own.try_acquire() {
                    return Ok((slot, global));
                }
                // The account's limit fell meanwhile. Other calls may use the global slot while
                // this one waits.
            }
            let own: Arc<dyn Semaphore> = Arc::<LocalSemaphore>::clone(own);
            let slot = waits.during(HeldBy::AdaptiveLimit, self.acquire(&own)).await?;
            Ok((slot, waits.during(HeldBy::ConcurrencyLimit, self.global()).await?))
        }
    }

    async fn global(&self) -> Result<Permit, Refused> {
        let _head = self.head.lock().await;
        self.acquire(&self.limiter.global).await
    }

    async fn reserve(
        &self,
        account: &Account,
        estimate: &Estimate,
        deadline: Instant,
    ) -> Result<Reserved, Refused> {
        let line = if self.yields_once { Line::YieldOnce } else { Line::Queue };
        if let Some(spend) = limited_spend(account, estimate) {
            // Boxed, so that calls without a limit on their spend take no memory for it.
            return Box::pin(self.reserve_both(line, account, spend, estimate, deadline)).await;
        }
        if let Some(quota) = self.try_reserve(account.budget(), estimate, deadline).await? {
            return Ok(Reserved { quota, spend: None });
        }
        let _waiting = self.join_queue()?;
        let quota = reserve_in(line, account.budget(), estimate, deadline).await?;
        Ok(Reserved { quota, spend: None })
    }

    /// Reserves if there is room and nothing waits.
    async fn try_reserve(
        &self,
        budget: &Arc<dyn BudgetAdmin>,
        estimate: &Estimate,
        deadline: Instant,
    ) -> Result<Option<Reservation>, Refused> {
        let mut cost = estimate.cost;
        loop {
            let attempt = Arc::clone(budget).try_reserve(cost, deadline);
            match attempt.result().await {
                Ok(reserved) => return Ok(reserved),
                Err(NotReserved::Exhausted(reason)) => cost = estimate.within(reason, cost)?,
                Err(NotReserved::StoreUnavailable(_)) if self.may_wait_for_store() => {
                    return Ok(None);
                }
                Err(reason) => return Err(reason.into()),
            }
        }
    }

    /// Reserves what a call costs of the model's quotas and of what the payer may spend. While it waits
    /// for one it holds nothing of the other.
    ///
    /// 1. The call waits for the model's quotas. If the spend has room then and no call waits for it,
    ///    it has both.
    /// 2. Otherwise it gives the quotas back and waits for the spend, behind the calls of all models.
    ///    If the quotas have room then, it has both.
    /// 3. Otherwise it goes on as in [`both_returning`].
    async fn reserve_both(
        &self,
        line: Line,
        account: &Account,
        spend: &Arc<dyn BudgetAdmin>,
        estimate: &Estimate,
        deadline: Instant,
    ) -> Result<Reserved, Refused> {
        let of_payer = estimate.of_payer();
        let mut waiting = None;
        let quota = match self.try_reserve(account.budget(), estimate, deadline).await? {
            Some(quota) => quota,
            None => {
                waiting = Some(self.join_queue()?);
                reserve_in(line, account.budget(), estimate, deadline).await?
            }
        };
        if let Some(spend) = self.try_reserve(spend, &of_payer, deadline).await? {
            return Ok(Reserved { quota, spend: Some(Box::new(spend)) });
        }
        drop(quota);
        let _waiting = match waiting {
            Some(waiting) => waiting,
            None => self.join_queue()?,
        };
        let reserved = reserve_in(line, spend, &of_payer, deadline).await?;
        if let Some(quota) = reserve_at_once(account.budget(), estimate, deadline).await? {
            return Ok(Reserved { quota, spend: Some(Box::new(reserved)) });
        }
        drop(reserved);
        Ok(both_returning(account, spend, estimate, deadline).await?)
    }

    async fn reserve_again(
        &self,
        account: &Account,
        estimate: &Estimate,
        deadline: Instant,
    ) -> Result<Reserved, Refused> {
        let _waiting = self.join_queue()?;
        if let Some(spend) = limited_spend(account, estimate) {
            return Ok(Box::pin(both_returning(account, spend, estimate, deadline)).await?);
        }
        let quota = reserve_in(Line::Returning, account.budget(), estimate, deadline).await?;
        Ok(Reserved { quota, spend: None })
    }

    /// Waits for a permit of a named semaphore and for the quota, and holds neither while it waits
    /// for the other.
    ///
    /// 1. The call waits for a permit, first come, first served. If its quota has room then, it
    ///    has both.
    /// 2. Otherwise it gives the permit back and waits for the quota ahead of its account's queue.
    /// 3. With the quota reserved, it takes a permit if one is free. Otherwise it gives the
    ///    quota back and waits for a permit ahead of the semaphore's queue.
    /// 4. With the permit, it has both if the quota still has room. Otherwise it returns to 2.
    ///
    /// From its second round on it keeps the quota in step 3 for at most a minute, so that other
    /// calls of its account cannot delay it without end. Only one call of an account does this for
    /// each semaphore; others that reach step 2 wait behind it.
    async fn permit_and_quota(
        &self,
        named: &Arc<dyn Semaphore>,
        account: &Account,
        estimate: &Estimate,
        deadline: Instant,
    ) -> Result<(Permit, Reserved), Refused> {
        let permit = self.acquire(named).await?;
        if let Some(reservation) = reserve_now(account, estimate, deadline).await? {
            return Ok((permit, reservation));
        }
        drop(permit);
        let _waiting = self.join_queue()?;
        let returning = account.returning(named.number());
        let _head = returning.lock().await;
        let mut keep_quota_for = BRIEF_HOLD;
        loop {
            let reservation = self.reserve_again(account, estimate, deadline).await?;
            let mut request = Arc::clone(named).request(1, WaitMode::Returning);
            if let Ok(permit) = timeout(keep_quota_for, &mut request).await {
                return Ok((permit?, reservation));
            }
            drop(reservation);
            let permit = request.await?;
            if let Some(reservation) = reserve_now(account, estimate, deadline).await? {
                return Ok((permit, reservation));
            }
            keep_quota_for = LONG_HOLD;
        }
    }

    /// Whether the request was accepted before the store became unavailable. Otherwise it is refused,
    /// with all of its calls.
    fn may_wait_for_store(&self) -> bool {
        *self.state().accepted.get_or_insert(false)
    }

    /// Accepts the request, unless one of its calls was refused. Then none of them is sent.
    fn accept(&self) -> Result<(), Refused> {
        if *self.state().accepted.get_or_insert(true) { Ok(()) } else { Err(Refused::QueueFull) }
    }

    /// Joins the queue: the request counts once, however many of its account queues wait. A request
    /// that was accepted is never refused later. One that was not is refused if the store is
    /// unavailable.
    fn join_queue(&self) -> Result<InQueue<'_>, Refused> {
        let mut state = self.state();
        if state.accepted != Some(true)
            && let Err(reason) = self.limiter.store.reach()
        {
            state.accepted = Some(false);
            return Err(reason.into());
        }
        if state.queues == 0 {
            let max = match state.accepted {
                None => self.limiter.max_waiting(),
                Some(true) => usize::MAX,
                Some(false) => 0,
            };
            let one_more = |waiting| (waiting < max).then_some(waiting + 1);
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

/// What the payer may spend, if that has a limit and the call costs something.
fn limited_spend<'a>(
    account: &'a Account,
    estimate: &Estimate,
) -> Option<&'a Arc<dyn BudgetAdmin>> {
    account.spend().filter(|_| estimate.spend > 0)
}

/// Reserves what a call is expected to cost, or a whole window's tokens or money: see
/// [`Estimate::within`].
async fn reserve_in(
    line: Line,
    budget: &Arc<dyn BudgetAdmin>,
    estimate: &Estimate,
    deadline: Instant,
) -> Result<Reservation, Exhausted> {
    let mut cost = estimate.cost;
    loop {
        match Arc::clone(budget).reserve(line, cost, deadline).await {
            Err(reason) => cost = estimate.within(reason, cost)?,
            reserved => return reserved,
        }
    }
}

/// Reserves of the model's quotas and of the payer's spend ahead of the calls that wait for either.
///
/// The call waits for the quotas. With them, it waits for the spend only briefly; then it gives the
/// quotas back. With the spend, it has both if the quotas still have room. Otherwise it gives the
/// spend back and starts again. From its second round on it keeps the quotas for at most a minute, so
/// that others cannot delay it without end. Only one call of an account does this at a time.
async fn both_returning(
    account: &Account,
    spend: &Arc<dyn BudgetAdmin>,
    estimate: &Estimate,
    deadline: Instant,
) -> Result<Reserved, Exhausted> {
    let of_payer = estimate.of_payer();
    let Ok(_head) = timeout_at(deadline, account.reserving().lock()).await else {
        return Err(Exhausted::NotBefore { kind: None, retry_after: BRIEF_HOLD });
    };
    let mut keep_quota_for = BRIEF_HOLD;
    loop {
        let quota = reserve_in(Line::Returning, account.budget(), estimate, deadline).await?;
        let mut reserved = pin!(reserve_in(Line::Returning, spend, &of_payer, deadline));
        if let Ok(spend) = timeout(keep_quota_for, &mut reserved).await {
            return Ok(Reserved { quota, spend: Some(Box::new(spend?)) });
        }
        drop(quota);
        let reserved = reserved.await?;
        if let Some(quota) = reserve_at_once(account.budget(), estimate, deadline).await? {
            return Ok(Reserved { quota, spend: Some(Box::new(reserved)) });
        }
        keep_quota_for = LONG_HOLD;
    }
}

/// Reserves ahead of the account's queue, if there is room at once.
async fn reserve_now(
    account: &Account,
    estimate: &Estimate,
    deadline: Instant,
) -> Result<Option<Reserved>, Exhausted> {
    let Some(quota) = reserve_at_once(account.budget(), estimate, deadline).await? else {
        return Ok(None);
    };
    let Some(spend) = limited_spend(account, estimate) else {
        return Ok(Some(Reserved { quota, spend: None }));
    };
    let spend = reserve_at_once(spend, &estimate.of_payer(), deadline).await?;
    Ok(spend.map(|spend| Reserved { quota, spend: Some(Box::new(spend)) }))
}

/// Reserves ahead of a budget's queue, if there is room at once.
async fn reserve_at_once(
    budget: &Arc<dyn BudgetAdmin>,
    estimate: &Estimate,
    deadline: Instant,
) -> Result<Option<Reservation>, Exhausted> {
    let at_once = deadline.min(Instant::now() + BRIEF_HOLD);
    match reserve_in(Line::Returning, budget, estimate, at_once).await {
        Ok(reservation) => Ok(Some(reservation)),
        Err(Exhausted::NotBefore { retry_after, .. })
            if Instant::now() + retry_after < deadline =>
        {
            Ok(None)
        }
        Err(reason) => Err(reason),
    }
}

/// A request's presence in the queue. Dropping it leaves the queue.
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
    /// The account that its calls are made for. Another one may be charged.
    pub fn account(&self) -> &Arc<Account> {
        &self.account
    }

    /// Since when the call at the head has been waiting for a quota, a named semaphore or a slot of its
    /// account; `None` if there is no such call, or it waits for a global slot only.
    pub fn held_up_since(&self) -> Option<Instant> {
        self.held_up_since.get()
    }

    /// The same queue for calls that use this part of Gemini's capacity.
    pub fn using(self, capacity: Capacity) -> Self {
        Self { capacity, ..self }
    }

    /// Waits until all earlier calls of this queue are admitted. Dropping the future leaves the
    /// queue.
    pub async fn head(&self) -> HeadOfQueue<'_> {
        let head = self.head.lock().await;
        HeadOfQueue { queue: self, _head: head }
    }
}

impl HeadOfQueue<'_> {
    /// Waits until the quotas have room for what the call costs; then for the named semaphore, if
    /// any; for a slot of the account, if its limit was lowered; and for a global slot. Dropping the
    /// future leaves the queue.
    ///
    /// This order excludes deadlocks, and no call holds the global slot while it waits. A call that
    /// waits for its semaphore holds no quota meanwhile, and a call that waits for its quota holds
    /// no permit.
    ///
    /// # Errors
    /// [`Refused::QueueFull`] if the request has to wait for the first time and too many wait;
    /// [`Refused::StoreUnavailable`] if it was not accepted before the store became unavailable;
    /// [`Refused::SemaphoreDeleted`]; [`Refused::Exhausted`] as soon as it is certain that the quotas
    /// have no room before the deadline; [`Refused::TooManyAccounts`]; [`Refused::Unfunded`].
    // Not an `async fn`, whose future holds each argument twice: a hundred thousand of these may wait.
    pub fn admit(
        self,
        estimate: impl Into<Estimate>,
        deadline: Instant,
    ) -> impl Future<Output = Result<Admission, Refused>> {
        let estimate = estimate.into();
        async move {
            let AccountQueue { ticket, account: requested, .. } = self.queue;
            let accounts = &ticket.limiter.accounts;
            let mut instead = accounts.charged_instead(requested);
            let account = instead.as_ref().unwrap_or(requested);
            if account.is_rejected() {
                return Err(Refused::TooManyAccounts);
            }
            account.check()?;
            let mut waits = Waits::new(&self.queue.held_up_since);
            let reserve = ticket.reserve(account, &estimate, deadline);
            let mut reservation = waits.during(HeldBy::Quota, reserve).await?;
            loop {
                let account = instead.unwrap_or_else(|| Arc::clone(requested));
                let admission =
                    self.admit_with(account, reservation, &estimate, deadline, &mut waits);
                let admission = admission.await?;
                let is_charged = accounts.is_charged(requested, admission.charged_account());
                if is_charged && !admission.charged_account().is_paused() {
                    ticket.accept()?;
                    admission.charged_account().start()?;
                    return Ok(admission);
                }
                // Since the quota was reserved, Gemini has refused a call of this account or charged
                // another account.
                drop(admission);
                instead = accounts.charged_instead(requested);
                let account = instead.as_ref().unwrap_or(requested);
                let reserve = ticket.reserve_again(account, &estimate, deadline);
                reservation = waits.during(HeldBy::Quota, reserve).await?;
            }
        }
    }

    #[expect(clippy::manual_async_fn, reason = "an async fn would hold the arguments twice")]
    fn admit_with(
        &self,
        account: Arc<Account>,
        mut reserved: Reserved,
        estimate: &Estimate,
        deadline: Instant,
        waits: &mut Waits<'_>,
    ) -> impl Future<Output = Result<Admission, Refused>> {
        async move {
            let AccountQueue { ticket, account: requested, named, capacity, .. } = self.queue;
            let named = match named {
                None => None,
                Some(named) => {
                    let request = Arc::clone(named).request(1, WaitMode::None);
                    match waits.during(HeldBy::Semaphore, request).await {
                        Ok(permit) => Some(permit),
                        Err(NotGranted::NoneFree | NotGranted::StoreUnavailable(_)) => {
                            drop(reserved);
                            // Boxed, so that calls that do not wait here take no memory for it.
                            let both = ticket.permit_and_quota(named, &account, estimate, deadline);
                            let both = waits.during(HeldBy::Semaphore, Box::pin(both));
                            let (permit, again) = both.await?;
                            reserved = again;
                            Some(permit)
                        }
                        Err(reason) => return Err(reason.into()),
                    }
                }
            };
            let (concurrency, global) = ticket.slots(&account, *capacity, waits).await?;
            let counted = ticket.in_flight.as_ref().map(InFlight::new);
            let alias = (!Arc::ptr_eq(requested, &account)).then(|| Arc::clone(requested));
            let capacity = *capacity;
            Ok(Admission {
                counted,
                concurrency,
                capacity,
                global,
                named,
                reserved,
                account,
                alias,
                waited: waits.total(),
                held_by: waits.held_by(),
            })
        }
    }
}
