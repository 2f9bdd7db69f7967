//! Admitted calls, and calls in flight.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use super::HeldBy;
use crate::limits::accounts::Account;
use crate::limits::budget::{Reservation, Sent};
use crate::limits::local::Slot;
use crate::limits::model::{Capacity, Quotas, Resource, Window};
use crate::limits::semaphore::{Fence, Permit};

/// What a call has reserved.
#[derive(Debug)]
pub(super) struct Reserved {
    /// Of the model's quotas.
    pub quota: Reservation,
    /// Of what the payer may spend, if that has a limit. Boxed, because few calls have it.
    pub spend: Option<Box<Reservation>>,
}

/// The right to one call. Dropping it admits the next one.
#[derive(Debug)]
#[must_use = "dropping an admission gives its slots back at once"]
pub struct Admission {
    // Fields drop in this order: the call that gets the global slot finds a free slot of the account.
    pub(super) concurrency: Permit,
    pub(super) capacity: Capacity,
    pub(super) global: Permit,
    pub(super) named: Option<Permit>,
    pub(super) reserved: Reserved,
    pub(super) account: Arc<Account>,
    /// The account that the call was made for, if another one is charged.
    pub(super) alias: Option<Arc<Account>>,
    /// How long the call waited at the head of its queue.
    pub waited: Duration,
    /// The limit that it waited for the longest; `None` if it did not wait.
    pub held_by: Option<HeldBy>,
}

impl Admission {
    /// The account that is charged for the call.
    pub(super) fn charged_account(&self) -> &Arc<Account> {
        &self.account
    }

    /// Starts the call: from this moment it counts against the quotas.
    ///
    /// # Errors
    /// [`PermitsExpired`] if it is too late.
    pub fn start(self) -> Result<InFlightCall, PermitsExpired> {
        if !self.named.iter().chain([&self.global]).all(Permit::is_in_force) {
            return Err(PermitsExpired);
        }
        let Self { global, concurrency, capacity, named, reserved, account, alias, .. } = self;
        let slot = account.concurrency_of(capacity).enter(concurrency);
        let Reserved { quota, spend } = reserved;
        let (sent, spend) = (quota.start(), spend.map(|spend| spend.start()));
        Ok(InFlightCall { global, slot, named, sent, spend, account, alias })
    }
}

/// Too much time has passed since admission, and the permits may have been granted to another call.
/// The call has to be admitted again.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the call's permits have expired")]
pub struct PermitsExpired;

/// A call that was sent. Dropping it gives its slots back and leaves the estimated cost in place,
/// which is right for a call whose outcome is unknown.
#[derive(Debug)]
#[must_use = "dropping a call in flight gives its slots back at once"]
pub struct InFlightCall {
    // Fields drop in this order, as those of an admission do.
    slot: Slot,
    global: Permit,
    named: Option<Permit>,
    sent: Sent,
    /// What counts of the payer's spend, until it is known.
    spend: Option<Sent>,
    account: Arc<Account>,
    alias: Option<Arc<Account>>,
}

impl InFlightCall {
    /// A check whether the call may still be written to Gemini; `None` if its permits do not expire.
    pub fn fence(&self) -> Option<Fence> {
        self.global.fence()
    }

    /// The account that the call was made for. Another one may be charged, if Gemini has named another
    /// model.
    pub fn account(&self) -> &Arc<Account> {
        self.alias.as_ref().unwrap_or(&self.account)
    }

    /// The call cost so many billionths of a US dollar.
    pub fn charge(&mut self, nanodollars: u64) {
        if let Some(spend) = self.spend.take() {
            spend.settle_spend(nanodollars);
        }
    }

    /// The call costs nothing.
    fn was_free(&mut self) {
        if let Some(spend) = self.spend.take() {
            spend.take_back();
        }
    }

    /// The call counts neither in its minute nor in its day, and costs nothing.
    fn did_not_count(mut self) {
        self.was_free();
        self.give_day_back();
        self.sent.take_back();
    }

    /// Takes the call out of its day in the account that is charged now, if that is another one since
    /// the call started: what the old one had spent moved there.
    fn give_day_back(&self) {
        let charged = self.account.charged();
        if !Arc::ptr_eq(&charged, &self.account) {
            self.sent.take_back_of_day_at(&**charged.budget());
        }
    }

    /// Nothing of the call was written to Gemini. It does not count.
    pub fn unsent(self) {
        self.did_not_count();
    }

    /// Gemini refused the request itself, with 400, 401, 403 or 404. It does not count in its day. It
    /// may count in its minute, so the estimate stays there. It costs nothing.
    pub fn declined(mut self) {
        self.was_free();
        self.give_day_back();
        self.sent.take_back_of_day();
    }

    /// Gemini refused the call for a quota that says nothing about the account's other calls, or that
    /// is counted elsewhere. The call did not count.
    pub fn refused_alone(self) {
        self.did_not_count();
    }

    /// Gemini refused the call because the payer has no funds. The call did not count,
    /// and other calls of the payer are refused, except a probe every few minutes.
    pub fn unfunded(self) {
        self.account.note_unfunded();
        self.did_not_count();
    }

    /// Gemini refused the call because a quota of the account is 0. The call did not count, and other
    /// calls of the account are refused, except a probe every few minutes.
    pub fn without_quota(self) {
        // Another account may have become the charged one since the call started.
        self.account.charged().note_without_quota();
        self.did_not_count();
    }

    /// Gemini answered. `input_tokens` is what the call cost, if Gemini reports it. The estimated money
    /// stands unless the call was [charged](Self::charge).
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

    /// The call has used input tokens in addition to its estimated cost while it runs. They count from
    /// now on.
    pub fn spend(&self, input_tokens: u64) {
        self.account.charged().budget().spend(Resource::InputTokens, input_tokens);
    }

    /// The call has cost so many billionths of a US dollar in addition to its estimated cost while it
    /// runs. They count from now on.
    pub fn pay(&self, nanodollars: u64) {
        if let Some(spend) = self.account.spend().filter(|_| self.spend.is_some()) {
            spend.spend(Resource::Spend, nanodollars);
        }
    }

    /// Gemini refused the call because too many run at once. Assume that Gemini counted it, though it
    /// costs nothing.
    pub fn overloaded(mut self) {
        self.was_free();
        self.slot.overloaded();
        drop(self.global);
    }

    /// Gemini refused the call for a quota per minute. The call did not count, and the account starts
    /// none before `until`. The quotas that Gemini `named` hold from now on. If it named none, the
    /// right rate is unknown, and fewer calls run at once.
    pub fn refused(mut self, until: Instant, named: Quotas) {
        self.was_free();
        // Another account may have become the charged one since the call started.
        let charged = self.account.charged();
        charged.correct(named);
        charged.budget().pause_until(until, named.first_in(Window::Minute));
        self.give_day_back();
        self.sent.take_back();
        if named == Quotas::default() {
            self.slot.overloaded();
        }
    }

    /// Gemini refused the call for a quota per day. The call did not count, and the account starts none
    /// before midnight in California. The quotas that Gemini `named` hold from now on.
    pub fn refused_for_the_day(self, named: Quotas) {
        let charged = self.account.charged();
        charged.correct(named);
        charged.budget().close_day(self.sent.at());
        self.did_not_count();
    }
}
