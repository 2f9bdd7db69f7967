//! The queue of one request's calls for the same account, and their admission.

use std::sync::Arc;

use tokio::sync;
use tokio::time::Instant;

use super::admission::{Admission, Reserved};
use super::held_by::{HeldUpSince, Waits};
use super::{HeldBy, QueueTicket, Refused};
use crate::limits::accounts::Account;
use crate::limits::model::{Capacity, Estimate};
use crate::limits::semaphore::{NotGranted, Semaphore, WaitMode};

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

impl AccountQueue {
    pub(super) fn new(
        ticket: Arc<QueueTicket>,
        account: Arc<Account>,
        named: Option<Arc<dyn Semaphore>>,
    ) -> Self {
        let (head, held_up_since) =
            (sync::Mutex::new(()), HeldUpSince::after(ticket.limiter.began));
        Self { ticket, account, named, capacity: Capacity::default(), head, held_up_since }
    }

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
            ticket.note_account(account);
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
            let counted = ticket.count();
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
