//! Reserving what a call is expected to cost, and waiting until there is room for it.

use std::ops::ControlFlow;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::{BoxFuture, Either, Ready, ready};
use tokio::time::{Instant, timeout, timeout_at};

use super::admission::Reserved;
use super::{QueueTicket, Refused};
use crate::limits::accounts::Account;
use crate::limits::budget::{BudgetAdmin, NotReserved, Reservation, TryReserve};
use crate::limits::model::{Cost, Estimate, Exhausted, Line};
use crate::limits::semaphore::{Permit, Semaphore, WaitMode};

/// How long a call holds a permit of a named semaphore until it is known whether its quotas have
/// room, or holds its quota until it is known whether a permit is free. Redis answers sooner.
pub(super) const BRIEF_HOLD: Duration = Duration::from_millis(100);

/// How long a call keeps its quota while it waits at the head of the queue for a permit, once
/// other calls have used the quota up during an earlier such wait.
const LONG_HOLD: Duration = Duration::from_secs(60);

/// The outcome of a try to reserve; `None` if the call has to wait.
type Tried = Result<Option<Reservation>, Refused>;

impl QueueTicket {
    /// Reserves what a call costs of the model's quotas, and of what its payer may spend if that has a limit.
    pub(super) async fn reserve(
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
        if let Some(quota) =
            self.try_reserve(account.budget(), estimate, estimate.cost, deadline).await?
        {
            return Ok(Reserved { quota, spend: None });
        }
        let _waiting = self.join_queue()?;
        let quota = reserve_in(line, account.budget(), estimate, deadline).await?;
        Ok(Reserved { quota, spend: None })
    }

    /// Reserves this cost, or what [`Estimate::within`] says instead, if there is room and nothing waits.
    // Not an `async fn`: each layer of futures copies what it is given, and most calls need none here.
    fn try_reserve<'a>(
        &'a self,
        budget: &'a Arc<dyn BudgetAdmin>,
        estimate: &'a Estimate,
        mut cost: Cost,
        deadline: Instant,
    ) -> Either<Ready<Tried>, BoxFuture<'a, Tried>> {
        loop {
            let outcome = match Arc::clone(budget).try_reserve(cost, deadline) {
                TryReserve::Ready(outcome) => outcome,
                TryReserve::Pending(outcome) => {
                    return Either::Right(Box::pin(async move {
                        match self.reserved_or_less(outcome.await, estimate, cost) {
                            ControlFlow::Break(tried) => tried,
                            ControlFlow::Continue(less) => {
                                self.try_reserve(budget, estimate, less, deadline).await
                            }
                        }
                    }));
                }
            };
            match self.reserved_or_less(outcome, estimate, cost) {
                ControlFlow::Break(tried) => return Either::Left(ready(tried)),
                ControlFlow::Continue(less) => cost = less,
            }
        }
    }

    /// The outcome of a try to reserve, or a lower cost to try next: see [`Estimate::within`].
    fn reserved_or_less(
        &self,
        outcome: Result<Option<Reservation>, NotReserved>,
        estimate: &Estimate,
        cost: Cost,
    ) -> ControlFlow<Tried, Cost> {
        ControlFlow::Break(match outcome {
            Ok(reserved) => Ok(reserved),
            Err(NotReserved::Exhausted(reason)) => match estimate.within(reason, cost) {
                Ok(less) => return ControlFlow::Continue(less),
                Err(reason) => Err(reason.into()),
            },
            Err(NotReserved::StoreUnavailable(_)) if self.may_wait_for_store() => Ok(None),
            Err(reason) => Err(reason.into()),
        })
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
        let quota =
            match self.try_reserve(account.budget(), estimate, estimate.cost, deadline).await? {
                Some(quota) => quota,
                None => {
                    waiting = Some(self.join_queue()?);
                    reserve_in(line, account.budget(), estimate, deadline).await?
                }
            };
        if let Some(spend) = self.try_reserve(spend, &of_payer, of_payer.cost, deadline).await? {
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

    pub(super) async fn reserve_again(
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
    pub(super) async fn permit_and_quota(
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
