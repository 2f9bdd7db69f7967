//! What this replica says to the others' common store, and what it waits to hear.
//!
//! Nothing here waits for the network. What is to be said is put into the outbox, which a
//! [session](super::session) sends, all at once, as soon as the answer to what it sent before has
//! come.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use jiff::Timestamp;
use serde::de::DeserializeOwned;
use serde_json::value::RawValue;
use tokio::sync::{Notify, oneshot};
use tokio::time::Instant;

use super::budget::SharedBudget;
use super::replica_lease::ReplicaLease;
use super::semaphore::SharedSemaphore;
use super::wire::{Answer, GLOBAL, Generation, Op, Reply, Verdict, micros};
use crate::limits::budget::{Cost, Exhausted, Line, NotReserved, Reservation};
use crate::limits::quota::Resource;
use crate::limits::semaphore::{NotGranted, Permit, StoreUnavailable, WaitMode};
use crate::pacific::until_midnight;

/// The most that is said at once: Redis does nothing else meanwhile.
const MAX_SAID_AT_ONCE: usize = 250;

/// The most accounts that are spoken of at once: each takes Redis about 60 µs.
const MAX_ACCOUNTS_AT_ONCE: usize = 32;

/// So many accounts are remembered before those that nobody uses any more are looked for.
const MANY_BUDGETS: usize = 1024;

/// The replica's end of the line.
#[derive(Debug)]
pub(super) struct Link {
    pub tenure: ReplicaLease,
    /// What this process is called, whatever member it is.
    name: Arc<str>,
    /// How often this process became a member.
    sessions: AtomicU64,
    /// The greatest tenure that it has heard of, in microseconds.
    longest_us: AtomicU64,
    /// Whether it was warned that the settings of replicas differ.
    warned_of_settings: AtomicBool,
    state: Mutex<State>,
    /// There is something to be said.
    pub outgoing: Notify,
}

#[derive(Debug, Default)]
struct State {
    outbox: Vec<Said>,
    last_ticket: u64,
    /// Those who wait, by their tickets, which grow.
    waiters: BTreeMap<u64, Waiter>,
    /// The permits in this process, of each semaphore.
    held: BTreeMap<Generation, usize>,
    /// What is reserved here and has not left, of each account.
    reserved: BTreeMap<Arc<str>, Cost>,
    budgets: BTreeMap<Arc<str>, Weak<SharedBudget>>,
    /// How many of them there are when the unused ones are looked for.
    sweep_at: usize,
    /// What it is a member of, as Redis names it.
    lineage: Option<Arc<str>>,
}

/// Something to be said.
#[derive(Debug)]
pub(super) struct Said {
    pub op: Op,
    pub result: Option<ResultSender>,
}

/// Where the result of an operation is waited for; `None` is an operation's way to say no.
type ResultSender = oneshot::Sender<Option<Box<RawValue>>>;

#[derive(Debug)]
struct Waiter {
    since: Instant,
    wait: bool,
    wants: Wants,
}

#[derive(Debug)]
enum Wants {
    Permits {
        semaphore: Arc<SharedSemaphore>,
        permits: usize,
        /// Whether it goes before all that ask for the first time.
        returns: bool,
        answer: oneshot::Sender<Result<Permit, NotGranted>>,
    },
    Reservation {
        budget: Arc<SharedBudget>,
        line: Line,
        cost: Cost,
        deadline: Instant,
        answer: oneshot::Sender<Result<Option<Reservation>, NotReserved>>,
    },
}

/// What a ticket waits for, and where the answer will come.
pub(super) type Ticket<T, E> = (u64, oneshot::Receiver<Result<T, E>>);

impl Waiter {
    fn ask(&self, ticket: u64) -> Op {
        let Self { since, wait, .. } = *self;
        match &self.wants {
            Wants::Permits { semaphore, permits, returns, .. } => {
                let semaphore = semaphore.generation();
                Op::Ask { semaphore, ticket, permits: *permits, since, wait, returns: *returns }
            }
            Wants::Reservation { budget, line, cost, deadline, .. } => Op::Reserve {
                account: budget.account(),
                ticket,
                cost: *cost,
                line: match line {
                    Line::Queue => "queue",
                    Line::YieldOnce => "yields_once",
                    Line::Returning => "returning",
                },
                since,
                deadline: *deadline,
                midnight_us: midnight_us(),
                wait,
            },
        }
    }

    fn leave(&self, ticket: u64) -> Op {
        match &self.wants {
            Wants::Permits { semaphore, permits, .. } => {
                Op::Leave { semaphore: semaphore.generation(), ticket, permits: *permits }
            }
            Wants::Reservation { budget, .. } => {
                Op::LeaveBudget { account: budget.account(), ticket }
            }
        }
    }

    fn semaphore(&self) -> Option<Generation> {
        match &self.wants {
            Wants::Permits { semaphore, .. } => Some(semaphore.generation()),
            Wants::Reservation { .. } => None,
        }
    }
}

/// How long the day in California still lasts.
pub(super) fn midnight_us() -> u64 {
    micros(until_midnight(Timestamp::now()))
}

impl Link {
    pub fn new(tenure: ReplicaLease) -> Arc<Self> {
        let name = format!("{:032x}", fastrand::u128(..)).into();
        let longest_us = AtomicU64::new(micros(tenure.length()));
        Arc::new(Self {
            tenure,
            name,
            sessions: AtomicU64::new(0),
            longest_us,
            warned_of_settings: AtomicBool::new(false),
            state: Mutex::default(),
            outgoing: Notify::new(),
        })
    }

    /// Whether nobody has been warned yet that the settings of replicas differ; from now on somebody
    /// has.
    pub fn is_first_warning_of_settings(&self) -> bool {
        !self.warned_of_settings.swap(true, Ordering::Relaxed)
    }

    /// What this process is called.
    pub fn name(&self) -> Arc<str> {
        Arc::clone(&self.name)
    }

    /// Which of its sessions this is.
    pub fn session(&self) -> u64 {
        self.sessions.load(Ordering::Acquire)
    }

    /// The greatest tenure that it has heard of, in microseconds.
    pub fn longest_us(&self) -> u64 {
        self.longest_us.load(Ordering::Acquire)
    }

    /// Somebody has such a tenure.
    pub fn note_tenure(&self, longest_us: u64) {
        self.longest_us.fetch_max(longest_us, Ordering::AcqRel);
    }

    /// What it is a member of.
    pub fn lineage(&self) -> Option<Arc<str>> {
        self.state().lineage.clone()
    }

    /// It has become a member of this.
    pub fn set_lineage(&self, lineage: Arc<str>) {
        self.state().lineage = Some(lineage);
    }

    /// Says something.
    pub fn say(&self, op: Op) {
        self.say_in(self.state(), op);
    }

    /// Says something that goes with a change of the state, before anybody else says anything.
    fn say_in(&self, mut state: MutexGuard<'_, State>, op: Op) {
        state.outbox.push(Said { op, result: None });
        drop(state);
        self.outgoing.notify_one();
    }

    /// Says something and waits for its result, unless Redis is unavailable.
    pub async fn ask<T: DeserializeOwned>(&self, op: Op) -> Result<Option<T>, StoreUnavailable> {
        self.tenure.reach()?;
        self.request(op).await
    }

    /// Says something and waits for its result. What is unread when the line breaks has none:
    /// nobody knows whether it was done.
    pub async fn request<T: DeserializeOwned>(
        &self,
        op: Op,
    ) -> Result<Option<T>, StoreUnavailable> {
        let (result, answered) = oneshot::channel();
        self.state().outbox.push(Said { op, result: Some(result) });
        self.outgoing.notify_one();
        let answered = tokio::time::timeout(self.tenure.timeout(), answered).await;
        let result = answered.ok().and_then(Result::ok).ok_or(self.tenure.unavailable())?;
        let Some(result) = result else { return Ok(None) };
        serde_json::from_str(result.get()).map(Some).map_err(|error| {
            tracing::error!(%error, "Redis gave a result that cannot be read");
            self.tenure.unavailable()
        })
    }

    /// Asks a semaphore for permits.
    pub fn ask_permits(
        &self,
        semaphore: Arc<SharedSemaphore>,
        permits: usize,
        mode: WaitMode,
    ) -> Ticket<Permit, NotGranted> {
        let (answer, answered) = oneshot::channel();
        let returns = mode == WaitMode::Returning;
        let wants = Wants::Permits { semaphore, permits, returns, answer };
        (self.queue(wants, mode != WaitMode::None), answered)
    }

    /// Asks a budget for a reservation.
    pub fn ask_reservation(
        &self,
        budget: Arc<SharedBudget>,
        line: Line,
        cost: Cost,
        deadline: Instant,
        wait: bool,
    ) -> Ticket<Option<Reservation>, NotReserved> {
        let (answer, answered) = oneshot::channel();
        let wants = Wants::Reservation { budget, line, cost, deadline, answer };
        (self.queue(wants, wait), answered)
    }

    fn queue(&self, wants: Wants, wait: bool) -> u64 {
        let waiter = Waiter { since: Instant::now(), wait, wants };
        let mut state = self.state();
        let ticket = state.next_ticket();
        let ask = waiter.ask(ticket);
        state.waiters.insert(ticket, waiter);
        self.say_in(state, ask);
        ticket
    }

    /// A number that no other ticket of this process has.
    pub fn number(&self) -> u64 {
        self.state().next_ticket()
    }

    /// Leaves the queue, unless the answer has come.
    pub fn leave(&self, ticket: u64) {
        let mut state = self.state();
        if let Some(waiter) = state.waiters.remove(&ticket) {
            self.say_in(state, waiter.leave(ticket));
        }
    }

    /// What is reserved of an account leaves or is given back, which is to be said.
    pub fn unreserve(&self, account: &Arc<str>, cost: Cost, op: Op) {
        let mut state = self.state();
        if let Some(reserved) = state.reserved.get_mut(account) {
            *reserved = reserved.saturating_sub(cost);
            if reserved[Resource::Requests] == 0 {
                state.reserved.remove(account);
            }
        }
        self.say_in(state, op);
    }

    /// Keeps a budget in mind for when it is spoken of.
    pub fn know(&self, account: Arc<str>, budget: &Arc<SharedBudget>) {
        let mut state = self.state();
        if state.budgets.len() >= state.sweep_at {
            state.budgets.retain(|_, known| known.strong_count() > 0);
            state.sweep_at = MANY_BUDGETS.max(2 * state.budgets.len());
        }
        state.budgets.insert(account, Arc::downgrade(budget));
    }

    /// The budget of an account, where it is used here.
    pub fn budget(&self, account: &str) -> Option<Arc<SharedBudget>> {
        self.state().budgets.get(account).and_then(Weak::upgrade)
    }

    /// Gives permits back.
    pub fn give_back(&self, semaphore: Generation, permits: usize) {
        let mut state = self.state();
        state.release(semaphore, permits);
        self.say_in(state, Op::GiveBack { semaphore, permits });
    }

    /// Permits of this process are to become a lease's.
    pub fn hand_over(&self, semaphore: Generation, permits: usize) {
        self.state().release(semaphore, permits);
    }

    /// Whether anybody waits here.
    pub fn is_waited_for(&self) -> bool {
        !self.state().waiters.is_empty()
    }

    /// Tells those who do not wait that nobody can answer them.
    pub fn refuse_impatient(&self, reason: StoreUnavailable) {
        let refused: Vec<_> = {
            let mut state = self.state();
            state.waiters.extract_if(.., |_, waiter| !waiter.wait).collect()
        };
        for (_, waiter) in refused {
            // Who has left does not miss it.
            match waiter.wants {
                Wants::Permits { answer, .. } => drop(answer.send(Err(reason.into()))),
                Wants::Reservation { answer, .. } => drop(answer.send(Err(reason.into()))),
            }
        }
    }

    pub fn has_nothing_to_say(&self) -> bool {
        self.state().outbox.is_empty()
    }

    /// What is to be said next.
    pub fn take_outbox(&self) -> Vec<Said> {
        let mut state = self.state();
        let count = said_at_once(&state.outbox);
        state.outbox.drain(..count).collect()
    }

    /// What was said may not have been heard: what can be said twice will be.
    pub fn take_back(&self, said: Vec<Said>) {
        let again = said.into_iter().filter(|said| said.op.can_be_said_twice());
        self.state().outbox.splice(..0, again);
    }

    /// Asks the script to look again at the global semaphore and at those that are waited for
    /// here.
    pub fn look_again(&self) {
        let mut state = self.state();
        let waited = state.waiters.values().filter_map(Waiter::semaphore);
        let waited: BTreeSet<_> = waited.chain([GLOBAL]).collect();
        let looks = waited.into_iter().map(|semaphore| Op::Look { semaphore });
        state.outbox.extend(looks.map(|op| Said { op, result: None }));
    }

    /// Begins again as a new member: says first `join`, then what this process holds and what it
    /// waits for. What was said and may not have been heard, and is about those, is not repeated.
    pub fn start_over(&self, join: Said, previous: Option<&str>) {
        let mut state = self.state();
        let session = self.sessions.fetch_add(1, Ordering::AcqRel) + 1;
        let budgets = state.budgets_in_use();
        let stands = |said: &Said| match said.op {
            // It is made of permits that are claimed no more.
            Op::Lease { .. } => false,
            Op::Settle { .. } => true,
            ref op => said.result.is_some() || op.can_be_said_twice(),
        };
        let requests: Vec<_> = state.outbox.drain(..).filter(stands).collect();
        state.outbox.push(join);
        let claims = state.held.iter();
        let claims = claims.map(|(&semaphore, &permits)| Op::Claim { semaphore, permits });
        let claims = claims.chain(budgets.iter().flat_map(|budget| {
            let account = budget.account();
            let cost = state.reserved.get(&account).copied().unwrap_or_default();
            let from = previous.map(str::to_owned);
            budget.mark_introduced(session);
            [budget.introduction(), Op::ClaimBudget { account, cost, from }]
        }));
        let asks = state.waiters.iter().map(|(&ticket, waiter)| waiter.ask(ticket));
        let all: Vec<_> = claims.chain(asks).map(|op| Said { op, result: None }).collect();
        state.outbox.extend(all);
        state.outbox.extend(requests);
        // Whoever was the last to use one of them lets go of it without the lock.
        drop(state);
        drop(budgets);
    }

    /// Takes in what came back for what was said. Who hears a result knows that the answers which
    /// came with it have been handed out.
    pub fn hear(&self, said: Vec<Said>, mut reply: Reply) -> Option<Duration> {
        self.answer(std::mem::take(&mut reply.answers));
        for (place, said) in said.into_iter().enumerate() {
            if let Some(sender) = said.result {
                // Who no longer waits for it does not miss it.
                let _ = sender.send(reply.results.remove(&place));
            }
        }
        reply.look_again_in_us.map(|micros| Duration::from_micros(micros.ceil() as u64))
    }

    /// Hands the answers to those who wait for them.
    pub fn answer(&self, answers: Vec<Answer>) {
        for Answer { ticket, verdict } in answers {
            let waiter = {
                let mut state = self.state();
                state.count(&verdict);
                if verdict == Verdict::Unopened {
                    state.ask_again(ticket);
                    self.outgoing.notify_one();
                    continue;
                }
                state.waiters.remove(&ticket)
            };
            match (waiter, verdict) {
                (Some(waiter), verdict) => self.hand(waiter.wants, verdict),
                (None, Verdict::Granted { semaphore, permits }) => {
                    self.give_back(semaphore, permits);
                }
                (None, Verdict::Reserved { account, cost }) => {
                    let back = Op::GiveBackBudget { account: Arc::clone(&account), cost };
                    self.unreserve(&account, cost, back);
                }
                (None, _) => {}
            }
        }
    }

    /// Hands an answer over. What is not taken up gives itself back.
    fn hand(&self, wants: Wants, verdict: Verdict) {
        match wants {
            Wants::Permits { semaphore, answer, .. } => {
                let _ = answer.send(self.permit(semaphore, &verdict));
            }
            Wants::Reservation { budget, answer, .. } => {
                let _ = answer.send(self.reservation(budget, &verdict));
            }
        }
    }

    fn permit(
        &self,
        semaphore: Arc<SharedSemaphore>,
        verdict: &Verdict,
    ) -> Result<Permit, NotGranted> {
        match *verdict {
            Verdict::Granted { permits, .. } => {
                Ok(Permit::new(semaphore, permits, self.tenure.current()))
            }
            Verdict::MoreThanLimit { limit } => Err(NotGranted::MoreThanLimit { limit }),
            Verdict::Unavailable => Err(NotGranted::NoneFree),
            _ => {
                semaphore.delete();
                Err(NotGranted::Closed)
            }
        }
    }

    fn reservation(
        &self,
        budget: Arc<SharedBudget>,
        verdict: &Verdict,
    ) -> Result<Option<Reservation>, NotReserved> {
        let exhausted = match *verdict {
            Verdict::Reserved { cost, .. } => {
                return Ok(Some(Reservation::new(budget, cost)));
            }
            Verdict::NoQuota => Exhausted::NoQuota,
            Verdict::TooLarge { kind, cost, limit } => Exhausted::TooLarge { kind, cost, limit },
            Verdict::NotBefore { retry_after_us } => {
                Exhausted::NotBefore { retry_after: Duration::from_micros(retry_after_us) }
            }
            Verdict::DayExhausted { retry_after_us } => {
                Exhausted::DayExhausted { retry_after: Duration::from_micros(retry_after_us) }
            }
            _ => return Ok(None),
        };
        Err(exhausted.into())
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// How much of what is to be said goes in one call of the script.
fn said_at_once(outbox: &[Said]) -> usize {
    let mut accounts = BTreeSet::new();
    let one_too_many = outbox.iter().take(MAX_SAID_AT_ONCE).position(|said| {
        accounts.extend(said.op.account());
        accounts.len() > MAX_ACCOUNTS_AT_ONCE
    });
    one_too_many.unwrap_or(outbox.len().min(MAX_SAID_AT_ONCE))
}

impl State {
    fn next_ticket(&mut self) -> u64 {
        self.last_ticket += 1;
        self.last_ticket
    }

    /// Notes what has come here.
    fn count(&mut self, verdict: &Verdict) {
        match verdict {
            Verdict::Granted { semaphore, permits } => {
                *self.held.entry(*semaphore).or_default() += permits;
            }
            Verdict::Reserved { account, cost } => {
                *self.reserved.entry(Arc::clone(account)).or_default() += *cost;
            }
            _ => {}
        }
    }

    /// The accounts of which something is reserved or waited for here.
    fn budgets_in_use(&self) -> Vec<Arc<SharedBudget>> {
        let waited = self.waiters.values().filter_map(|waiter| match &waiter.wants {
            Wants::Reservation { budget, .. } => Some(budget.account()),
            Wants::Permits { .. } => None,
        });
        let accounts: BTreeSet<_> = waited.chain(self.reserved.keys().cloned()).collect();
        let budget = |account| self.budgets.get(account).and_then(Weak::upgrade);
        accounts.iter().filter_map(budget).collect()
    }

    /// Redis has no such account any more: it is opened, and asked once more.
    fn ask_again(&mut self, ticket: u64) {
        if let Some(waiter) = self.waiters.get(&ticket)
            && let Wants::Reservation { budget, .. } = &waiter.wants
        {
            let ops = [budget.introduction(), waiter.ask(ticket)];
            self.outbox.extend(ops.map(|op| Said { op, result: None }));
        }
    }

    fn release(&mut self, semaphore: Generation, permits: usize) {
        let held = self.held.entry(semaphore).or_default();
        *held = held.saturating_sub(permits);
        if *held == 0 {
            self.held.remove(&semaphore);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_said_at_once_is_bounded_in_operations_and_in_accounts() {
        let said = |op| Said { op, result: None };
        let look = |n: u64| said(Op::Look { semaphore: n });
        let prove = |n: u64| said(Op::ProveBudget { account: n.to_string().into() });
        let outbox = |each: &dyn Fn(u64) -> Said| -> Vec<_> { (0..1000).map(each).collect() };
        assert_eq!(said_at_once(&[]), 0);
        assert_eq!(said_at_once(&outbox(&look)), MAX_SAID_AT_ONCE);
        assert_eq!(said_at_once(&outbox(&|n| prove(n % 5))), MAX_SAID_AT_ONCE);
        assert_eq!(said_at_once(&outbox(&prove)), MAX_ACCOUNTS_AT_ONCE);
        let mixed = outbox(&|n| if n % 2 == 0 { look(n) } else { prove(n) });
        assert_eq!(said_at_once(&mixed), 2 * MAX_ACCOUNTS_AT_ONCE + 1);
    }
}
