//! What this replica sends to Redis, what it waits for, and what it holds.
//!
//! Nothing here waits for the network. Commands go to the outbox. The session sends the whole
//! outbox in one call as soon as the reply to the previous call has arrived.

mod state;
mod waiter;

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use jiff::Timestamp;
use serde::de::DeserializeOwned;
use tokio::sync::{Notify, oneshot};
use tokio::time::Instant;

use super::command::{Command, GLOBAL, SemaphoreGeneration, micros};
use super::replica_lease::ReplicaLease;
use super::reply::{Corrected, Reply, TicketAnswer, Verdict};
use crate::limits::budget::{Budget, NotReserved, Reservation};
use crate::limits::model::{
    Cost, Exhausted, Line, QuotaKind, Quotas, Resource, Spent, StoreUnavailable,
};
use crate::limits::semaphore::{GrantResult, NotGranted, Permit, Semaphore, WaitMode};
use crate::pacific::until_midnight;
pub(super) use state::Outgoing;
use state::{MANY_BUDGETS, State, commands_of_next_call};
use waiter::{Request, Waiter};

/// A semaphore whose permits are granted through the link.
pub(super) trait LinkedSemaphore: Semaphore {
    /// Notes that Redis no longer has the semaphore.
    fn mark_deleted(&self);
}

/// A budget that is kept in Redis, as the link and other budgets use it.
pub(super) trait LinkedBudget: Budget {
    /// The command that a new member sends about the budget first.
    fn introduction(&self) -> Command;

    /// Notes that Redis is informed of the budget in this session. Returns whether it was not before.
    fn mark_introduced(&self, session: u64) -> bool;

    /// Applies a notification from another replica.
    fn receive(&self, change: BudgetChange);

    /// Takes out what is spent, if Redis does not keep the budget.
    fn take_spent_here(&self) -> Option<Spent>;

    /// Keeps the budget in Redis from now on. Returns the limits set by hand.
    fn open(&self) -> Quotas;
}

/// What another replica has found out about an account.
#[derive(Debug)]
pub(super) enum BudgetChange {
    /// Redis keeps the account.
    Watched,
    /// Gemini refused a call, for this quota if it is known: no call starts for this long.
    Paused(Duration, Option<QuotaKind>),
    /// An operator ended the pause.
    Resumed,
    /// Other quotas hold.
    Corrected(Box<Corrected>),
    /// Gemini charges another account; the account itself if `None`.
    ChargedTo(Option<Arc<str>>),
}

/// This replica's side of the connection to Redis. It outlives single connections.
#[derive(Debug)]
pub(super) struct Link {
    pub lease: ReplicaLease,
    /// Identifies this process, whatever member it is.
    name: Arc<str>,
    /// How often this process became a member.
    sessions: AtomicU64,
    /// The longest replica lease that it knows of, in microseconds.
    longest_us: AtomicU64,
    /// Whether this process has warned that the settings of replicas differ.
    warned_of_settings: AtomicBool,
    state: Mutex<State>,
    /// Signals that the outbox is not empty.
    pub outgoing: Notify,
}

/// A ticket and the receiver of its outcome.
pub(super) type Pending<T> = (u64, oneshot::Receiver<T>);

/// The time until midnight in California, in microseconds.
pub(super) fn midnight_us() -> u64 {
    micros(until_midnight(Timestamp::now()))
}

impl Link {
    pub fn new(lease: ReplicaLease) -> Arc<Self> {
        let name = format!("{:032x}", fastrand::u128(..)).into();
        let longest_us = AtomicU64::new(micros(lease.length()));
        Arc::new(Self {
            lease,
            name,
            sessions: AtomicU64::new(0),
            longest_us,
            warned_of_settings: AtomicBool::new(false),
            state: Mutex::default(),
            outgoing: Notify::new(),
        })
    }

    /// Whether this is the first warning that the settings of replicas differ.
    pub fn is_first_warning_of_settings(&self) -> bool {
        !self.warned_of_settings.swap(true, Ordering::Relaxed)
    }

    /// The name of this process.
    pub fn name(&self) -> Arc<str> {
        Arc::clone(&self.name)
    }

    /// The number of the current session.
    pub fn session(&self) -> u64 {
        self.sessions.load(Ordering::Acquire)
    }

    /// The longest replica lease that this process knows of, in microseconds.
    pub fn longest_us(&self) -> u64 {
        self.longest_us.load(Ordering::Acquire)
    }

    /// Notes that a replica has a lease of this length.
    pub fn note_lease(&self, longest_us: u64) {
        self.longest_us.fetch_max(longest_us, Ordering::AcqRel);
    }

    /// The data set that this process is a member of.
    pub fn lineage(&self) -> Option<Arc<str>> {
        self.state().lineage.clone()
    }

    pub fn set_lineage(&self, lineage: Arc<str>) {
        self.state().lineage = Some(lineage);
    }

    /// Queues a command.
    pub fn send(&self, command: Command) {
        self.send_in(self.state(), command);
    }

    /// Queues a command that belongs to a change of the state, before any other.
    fn send_in(&self, mut state: MutexGuard<'_, State>, command: Command) {
        state.outbox.push(Outgoing::without_result(command));
        drop(state);
        self.outgoing.notify_one();
    }

    /// Sends a command and waits for its result, unless Redis is unavailable.
    pub async fn call<T: DeserializeOwned>(
        &self,
        command: Command,
    ) -> Result<Option<T>, StoreUnavailable> {
        self.lease.reach()?;
        self.call_anyway(command).await
    }

    /// Sends a command and waits for its result, even if Redis is unavailable now. If the connection
    /// breaks meanwhile, it is unknown whether the command was executed.
    pub async fn call_anyway<T: DeserializeOwned>(
        &self,
        command: Command,
    ) -> Result<Option<T>, StoreUnavailable> {
        let (result, receiver) = oneshot::channel();
        self.state().outbox.push(Outgoing { command, result: Some(result) });
        self.outgoing.notify_one();
        let received = tokio::time::timeout(self.lease.timeout(), receiver).await;
        let result = received.ok().and_then(Result::ok).ok_or(self.lease.unavailable())?;
        let Some(result) = result else { return Ok(None) };
        serde_json::from_str(result.get()).map(Some).map_err(|error| {
            tracing::error!(%error, "Redis returned an unreadable result");
            self.lease.unavailable()
        })
    }

    /// Requests permits.
    pub fn request_permits(
        &self,
        semaphore: Arc<dyn LinkedSemaphore>,
        generation: SemaphoreGeneration,
        permits: usize,
        mode: WaitMode,
    ) -> Pending<GrantResult> {
        let (result, receiver) = oneshot::channel();
        let returns = mode == WaitMode::Returning;
        let request = Request::Permits { semaphore, generation, permits, returns, result };
        (self.queue(request, mode != WaitMode::None), receiver)
    }

    /// Requests a reservation.
    pub fn request_reservation(
        &self,
        budget: Arc<dyn Budget>,
        account: Arc<str>,
        line: Line,
        cost: Cost,
        deadline: Instant,
        wait: bool,
    ) -> Pending<Result<Option<Reservation>, NotReserved>> {
        let (result, receiver) = oneshot::channel();
        let request = Request::Reservation { budget, account, line, cost, deadline, result };
        (self.queue(request, wait), receiver)
    }

    fn queue(&self, request: Request, wait: bool) -> u64 {
        let waiter = Waiter { since: Instant::now(), wait, request };
        let mut state = self.state();
        let ticket = state.next_ticket();
        let command = waiter.command(ticket);
        state.waiters.insert(ticket, waiter);
        self.send_in(state, command);
        ticket
    }

    /// A number that no other ticket of this process has.
    pub fn next_ticket(&self) -> u64 {
        self.state().next_ticket()
    }

    /// Withdraws a request, unless its answer has arrived.
    pub fn cancel(&self, ticket: u64) {
        let mut state = self.state();
        if let Some(waiter) = state.waiters.remove(&ticket) {
            self.send_in(state, waiter.cancel(ticket));
        }
    }

    /// Reduces what is reserved of an account and sends the command that says why.
    pub fn unreserve(&self, account: &Arc<str>, cost: Cost, command: Command) {
        let mut state = self.state();
        if let Some(reserved) = state.reserved.get_mut(account) {
            *reserved = reserved.saturating_sub(cost);
            if reserved[Resource::Requests] == 0 {
                state.reserved.remove(account);
            }
        }
        self.send_in(state, command);
    }

    /// Registers the budget of an account.
    pub fn register(&self, account: Arc<str>, budget: Weak<dyn LinkedBudget>) {
        let mut state = self.state();
        if state.budgets.len() >= state.sweep_at {
            state.budgets.retain(|_, known| known.strong_count() > 0);
            state.sweep_at = MANY_BUDGETS.max(2 * state.budgets.len());
        }
        state.budgets.insert(account, budget);
    }

    /// The budget of an account, if it is in use here.
    pub fn budget(&self, account: &str) -> Option<Arc<dyn LinkedBudget>> {
        self.state().budgets.get(account).and_then(Weak::upgrade)
    }

    /// Gives permits back.
    pub fn release(&self, semaphore: SemaphoreGeneration, permits: usize) {
        let mut state = self.state();
        state.release(semaphore, permits);
        self.send_in(state, Command::ReleasePermits { semaphore, permits });
    }

    /// Notes that permits of this process are about to become a lease's.
    pub fn hand_over(&self, semaphore: SemaphoreGeneration, permits: usize) {
        self.state().release(semaphore, permits);
    }

    /// How many permits of a semaphore this process holds.
    pub fn held(&self, semaphore: SemaphoreGeneration) -> usize {
        self.state().held.get(&semaphore).copied().unwrap_or_default()
    }

    /// Whether any request waits for an answer.
    pub fn has_waiters(&self) -> bool {
        !self.state().waiters.is_empty()
    }

    /// Fails the requests that do not wait: nothing can answer them.
    pub fn refuse_without_waiting(&self, reason: StoreUnavailable) {
        let refused: Vec<_> = {
            let mut state = self.state();
            state.waiters.extract_if(.., |_, waiter| !waiter.wait).collect()
        };
        for (_, waiter) in refused {
            waiter.refuse(reason);
        }
    }

    pub fn is_outbox_empty(&self) -> bool {
        self.state().outbox.is_empty()
    }

    /// Takes the commands of the next call out of the outbox.
    pub fn take_outbox(&self) -> Vec<Outgoing> {
        let mut state = self.state();
        let count = commands_of_next_call(&state.outbox);
        state.outbox.drain(..count).collect()
    }

    /// Takes back commands that may not have been executed. Idempotent ones are sent again.
    pub fn take_back(&self, outgoing: Vec<Outgoing>) {
        let again = outgoing.into_iter().filter(|outgoing| outgoing.command.is_idempotent());
        self.state().outbox.splice(..0, again);
    }

    /// Asks the script to serve again the global semaphore and those that requests wait for here.
    pub fn check_again(&self) {
        let mut state = self.state();
        let waited = state.waiters.values().filter_map(Waiter::semaphore);
        let waited: BTreeSet<_> = waited.chain([GLOBAL]).collect();
        let refreshes = waited.into_iter().map(|semaphore| Command::Refresh { semaphore });
        state.outbox.extend(refreshes.map(Outgoing::without_result));
    }

    /// Starts a session as a new member. Sends first `join`, then what this process holds and waits
    /// for. Older commands about that are dropped from the outbox.
    pub fn start_over(&self, join: Outgoing, previous: Option<&str>) {
        let mut state = self.state();
        let session = self.sessions.fetch_add(1, Ordering::AcqRel) + 1;
        let budgets = state.budgets_in_use();
        let is_kept = |outgoing: &Outgoing| match outgoing.command {
            // Its permits are not claimed again.
            Command::Lease { .. } => false,
            Command::Settle { .. } => true,
            ref command => outgoing.result.is_some() || command.is_idempotent(),
        };
        let kept: Vec<_> = state.outbox.drain(..).filter(is_kept).collect();
        state.outbox.push(join);
        let claims = state.held.iter();
        let claims =
            claims.map(|(&semaphore, &permits)| Command::ClaimPermits { semaphore, permits });
        let claims = claims.chain(budgets.iter().flat_map(|(account, budget)| {
            let account = Arc::clone(account);
            let cost = state.reserved.get(&account).copied().unwrap_or_default();
            let from = previous.map(str::to_owned);
            budget.mark_introduced(session);
            [budget.introduction(), Command::ClaimBudget { account, cost, from }]
        }));
        let requests = state.waiters.iter().map(|(&ticket, waiter)| waiter.command(ticket));
        let all: Vec<_> = claims.chain(requests).map(Outgoing::without_result).collect();
        state.outbox.extend(all);
        state.outbox.extend(kept);
        // These may be the last references: budgets are dropped without the lock.
        drop(state);
        drop(budgets);
    }

    /// Handles the reply to a call. Answers are delivered before results, so whoever receives a
    /// result knows that the answers of the same reply are delivered. Returns when to check again.
    pub fn handle(&self, outgoing: Vec<Outgoing>, mut reply: Reply) -> Option<Duration> {
        self.deliver(std::mem::take(&mut reply.answers));
        for (index, outgoing) in outgoing.into_iter().enumerate() {
            if let Some(sender) = outgoing.result {
                // The receiver may be gone.
                let _ = sender.send(reply.results.remove(&index));
            }
        }
        reply.check_again_in_us.map(|micros| Duration::from_micros(micros.ceil() as u64))
    }

    /// Delivers answers to the requests that wait for them.
    pub fn deliver(&self, answers: Vec<TicketAnswer>) {
        for TicketAnswer { ticket, verdict } in answers {
            let waiter = {
                let mut state = self.state();
                state.count(&verdict);
                if verdict == Verdict::Unopened {
                    drop(state);
                    self.open_and_repeat(ticket);
                    continue;
                }
                state.waiters.remove(&ticket)
            };
            match (waiter, verdict) {
                (Some(waiter), verdict) => self.complete(waiter.request, verdict),
                (None, Verdict::Granted { semaphore, permits }) => {
                    self.release(semaphore, permits);
                }
                (None, Verdict::Reserved { account, cost }) => {
                    let back = Command::GiveBackBudget { account: Arc::clone(&account), cost };
                    self.unreserve(&account, cost, back);
                }
                (None, _) => {}
            }
        }
    }

    /// Completes a request. A permit or reservation that nobody receives gives itself back.
    fn complete(&self, request: Request, verdict: Verdict) {
        match request {
            Request::Permits { semaphore, result, .. } => {
                let _ = result.send(self.permit(semaphore, &verdict));
            }
            Request::Reservation { budget, result, .. } => {
                let _ = result.send(reservation(budget, &verdict));
            }
        }
    }

    fn permit(&self, semaphore: Arc<dyn LinkedSemaphore>, verdict: &Verdict) -> GrantResult {
        match *verdict {
            Verdict::Granted { permits, .. } => {
                Ok(Permit::new(semaphore, permits, self.lease.epoch()))
            }
            Verdict::MoreThanLimit { limit } => Err(NotGranted::MoreThanLimit { limit }),
            Verdict::Unavailable => Err(NotGranted::NoneFree),
            _ => {
                semaphore.mark_deleted();
                Err(NotGranted::Closed)
            }
        }
    }

    /// Redis no longer has the account of a reservation: opens it and requests again.
    fn open_and_repeat(&self, ticket: u64) {
        let mut state = self.state();
        let Some(waiter) = state.waiters.get(&ticket) else { return };
        let budget = waiter.account().and_then(|account| state.budgets.get(account));
        let Some(budget) = budget.and_then(Weak::upgrade) else { return };
        let commands = [budget.introduction(), waiter.command(ticket)];
        state.outbox.extend(commands.map(Outgoing::without_result));
        // This may be the last reference: the budget is dropped without the lock.
        drop(state);
        self.outgoing.notify_one();
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn reservation(
    budget: Arc<dyn Budget>,
    verdict: &Verdict,
) -> Result<Option<Reservation>, NotReserved> {
    let exhausted = match *verdict {
        Verdict::Reserved { cost, .. } => {
            return Ok(Some(Reservation::new(budget, cost)));
        }
        Verdict::NoQuota { kind } => Exhausted::NoQuota { kind },
        Verdict::TooLarge { kind, cost, limit } => Exhausted::TooLarge { kind, cost, limit },
        Verdict::NotBefore { kind, retry_after_us } => {
            Exhausted::NotBefore { kind, retry_after: Duration::from_micros(retry_after_us) }
        }
        Verdict::DayExhausted { kind, retry_after_us } => {
            Exhausted::DayExhausted { kind, retry_after: Duration::from_micros(retry_after_us) }
        }
        _ => return Ok(None),
    };
    Err(exhausted.into())
}
