//! What an account may spend, shared by all replicas.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use jiff::Timestamp;
use tokio::time::{Instant, timeout_at};

use super::link::{Link, midnight_us};
use super::wire::{self, Op, UsageResult, micros};
use crate::limits::account::Payer;
use crate::limits::budget::{
    Attempt, Budget, BudgetUsage, Cost, Departure, Exhausted, HandedOver, Line, LocalBudget,
    NotReserved, Reservation, end_of_used_up,
};
use crate::limits::quota::{PerKind, Quotas, Resource, Window};
use crate::limits::semaphore::OutOfReach;
use crate::pacific::Calendar;

/// The answer at a deadline: how much longer it would have been, nobody has said.
const NOT_IN_TIME: Exhausted = Exhausted::NotBefore { retry_after: Duration::from_secs(1) };

/// A budget that is kept in Redis as soon as there is something to keep: quotas that are set, or
/// that a replica has met with. Until then nothing limits it, and it costs no word to Redis.
#[derive(Debug)]
pub(super) struct SharedBudget {
    link: Arc<Link>,
    account: Arc<str>,
    /// What the account is called in logs.
    name: Arc<str>,
    quotas: Mutex<Told>,
    minute: Duration,
    /// Whether it is kept in Redis.
    watched: AtomicBool,
    /// Whether Gemini has answered a call of it.
    proven: AtomicBool,
    /// The last session in which Redis was told of it; 0 for none.
    introduced: AtomicU64,
    /// What is spent while it is not; and for how long it is paused, in any case.
    local: Arc<LocalBudget>,
}

/// The quotas as far as this process knows them.
#[derive(Debug, Clone, Copy)]
struct Told {
    /// What its settings say.
    planned: Quotas,
    /// What counts in Redis, where that differs: Gemini named it.
    learned: Option<Quotas>,
}

impl SharedBudget {
    pub fn new(
        link: &Arc<Link>,
        payer: &Payer,
        model: &str,
        planned: Quotas,
        minute: Duration,
    ) -> Arc<Self> {
        let account: Arc<str> = match payer {
            Payer::Labelled(label) => format!("label/{label}/{model}").into(),
            Payer::Key(digest) => {
                let digest: String = digest.iter().map(|byte| format!("{byte:02x}")).collect();
                format!("key/{digest}/{model}").into()
            }
        };
        let budget = Arc::new(Self {
            link: Arc::clone(link),
            account: Arc::clone(&account),
            name: format!("{payer}/{model}").into(),
            quotas: Mutex::new(Told { planned, learned: None }),
            minute,
            watched: AtomicBool::new(planned != Quotas::default()),
            proven: AtomicBool::new(false),
            introduced: AtomicU64::new(0),
            local: LocalBudget::new(Quotas::default(), minute),
        });
        link.know(account, &budget);
        budget
    }

    pub fn account(&self) -> Arc<str> {
        Arc::clone(&self.account)
    }

    pub fn is_watched(&self) -> bool {
        self.watched.load(Ordering::Acquire)
    }

    /// What a new member says of it first.
    pub fn introduction(&self) -> Op {
        let account = self.account();
        if !self.is_watched() {
            return Op::LookUpBudget { account };
        }
        let Told { planned, learned } = *self.quotas();
        Op::OpenBudget {
            account,
            planned: wire::told(planned),
            learned,
            minute_us: micros(self.minute),
            midnight_us: midnight_us(),
            proven: self.proven.load(Ordering::Acquire),
        }
    }

    /// Notes that Redis is told of it in this session. Whether it had not been told before.
    pub fn mark_introduced(&self, session: u64) -> bool {
        self.introduced.swap(session, Ordering::AcqRel) != session
    }

    /// Tells Redis of it before anything is asked, once a session. Where Redis cannot be reached,
    /// that waits until it can.
    fn introduce(&self) {
        let session = self.link.session();
        if self.introduced.load(Ordering::Acquire) == session || self.link.tenure.reach().is_err() {
            return;
        }
        if self.mark_introduced(session) {
            self.link.say(self.introduction());
        }
    }

    /// From now on it is kept in Redis, with what has left within the last minute.
    pub fn watch(&self) {
        if self.watched.swap(true, Ordering::AcqRel) {
            return;
        }
        self.introduced.store(self.link.session(), Ordering::Release);
        self.link.say(self.introduction());
        let spent = self.local.usage_now();
        let minutes = spent.quotas.iter().filter(|(kind, _)| kind.window() == Window::Minute);
        let cost = minutes
            .fold(Cost::default(), |cost, (kind, usage)| cost.with(kind.resource(), usage.used));
        if cost[Resource::Requests] > 0 {
            let (account, midnight_us) = (self.account(), midnight_us());
            self.link.say(Op::CountBudget { account, cost, midnight_us });
        }
    }

    /// Other quotas count from now on.
    pub fn is_corrected(&self, quotas: Quotas) {
        let mut told = self.quotas();
        let learned = (quotas != wire::told(told.planned)).then_some(quotas);
        if learned != told.learned {
            tracing::info!(account = %self.name, ?quotas, "limits changed for all replicas");
            told.learned = learned;
        }
    }

    fn quotas(&self) -> MutexGuard<'_, Told> {
        self.quotas.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A replica was told by Gemini to wait for so long.
    pub fn is_paused_for(&self, time: Duration) {
        self.local.pause_until(Instant::now() + time);
    }

    /// A replica was told to forget what Gemini said, and with it the pause.
    pub fn is_resumed(&self) {
        self.local.resume();
    }

    async fn answer(
        self: Arc<Self>,
        line: Line,
        cost: Cost,
        deadline: Instant,
        wait: bool,
    ) -> Result<Option<Reservation>, NotReserved> {
        let link = Arc::clone(&self.link);
        let (number, answer) = link.ask_reservation(self, line, cost, deadline, wait);
        let asked = Asked { link, number };
        let answer = timeout_at(deadline, answer).await;
        drop(asked);
        answer.ok().and_then(Result::ok).unwrap_or(Err(NOT_IN_TIME.into()))
    }
}

/// One who asked. Dropping it leaves the queue.
struct Asked {
    link: Arc<Link>,
    number: u64,
}

impl Drop for Asked {
    fn drop(&mut self) {
        self.link.leave(self.number);
    }
}

impl Budget for SharedBudget {
    fn try_reserve(self: Arc<Self>, cost: Cost, deadline: Instant) -> Attempt {
        self.introduce();
        if !self.is_watched() {
            return Arc::clone(&self.local).try_reserve(cost, deadline);
        }
        if let Err(reason) = self.link.tenure.reach() {
            return Attempt::Answered(Err(reason.into()));
        }
        Attempt::Asked(self.answer(Line::Queue, cost.bounded(), deadline, false).boxed())
    }

    fn reserve(
        self: Arc<Self>,
        line: Line,
        cost: Cost,
        deadline: Instant,
    ) -> BoxFuture<'static, Result<Reservation, Exhausted>> {
        self.introduce();
        if !self.is_watched() {
            return Arc::clone(&self.local).reserve(line, cost, deadline);
        }
        async move {
            loop {
                let answer = Arc::clone(&self).answer(line, cost.bounded(), deadline, true).await;
                let reservation = match answer {
                    Ok(Some(reservation)) => reservation,
                    Err(NotReserved::Exhausted(reason)) => return Err(reason),
                    Ok(None) | Err(NotReserved::OutOfReach(_)) => return Err(NOT_IN_TIME),
                };
                if !self.local.is_paused() {
                    return Ok(reservation);
                }
                // Redis has forgotten the pause. Nothing starts before it is over, so that the call
                // waits for its end here, and asks again.
                drop(reservation);
                let paused = Arc::clone(&self.local);
                drop(paused.reserve(Line::Returning, Cost::one(0), deadline).await?);
            }
        }
        .boxed()
    }

    fn set(&self, quotas: Quotas) {
        self.watch();
        *self.quotas() = Told { planned: quotas, learned: None };
        self.link.say(self.introduction());
    }

    fn learn(&self, named: Quotas) {
        self.watch();
        self.link.say(Op::LearnQuotas { account: self.account(), quotas: wire::told(named) });
    }

    fn forget(&self) {
        self.local.forget();
        if self.is_watched() {
            self.link.say(Op::ForgetQuotas { account: self.account() });
        }
    }

    fn is_blank(&self) -> bool {
        self.is_watched() || self.local.is_blank()
    }

    fn hand_over(&self) -> HandedOver {
        if self.is_watched() { HandedOver::Shared(self.account()) } else { self.local.hand_over() }
    }

    fn take_over(&self, spent: HandedOver) {
        match spent {
            HandedOver::Spent(spent) if self.is_watched() => {
                let (account, midnight_us) = (self.account(), midnight_us());
                self.link.say(Op::CountBudget { account, cost: spent.minute, midnight_us });
            }
            HandedOver::Spent(_) => self.local.take_over(spent),
            HandedOver::Shared(from) => {
                self.watch();
                let (account, midnight_us) = (self.account(), midnight_us());
                self.link.say(Op::TakeOverBudget { account, from, midnight_us });
            }
        }
    }

    fn pause_until(&self, until: Instant) {
        self.watch();
        self.local.pause_until(until);
        let for_us = micros(until.saturating_duration_since(Instant::now()));
        self.link.say(Op::Pause { account: self.account(), for_us });
    }

    fn is_paused(&self) -> bool {
        self.local.is_paused()
    }

    fn usage(&self) -> BoxFuture<'_, Result<BudgetUsage, OutOfReach>> {
        if !self.is_watched() {
            self.introduce();
            return self.local.usage();
        }
        let op = Op::BudgetUsage { account: self.account(), midnight_us: midnight_us() };
        async move {
            let usage: Option<UsageResult> = self.link.ask(op).await?;
            // Redis does not know it: nothing is spent.
            let fresh = || LocalBudget::new(self.quotas().planned, self.minute).usage_now();
            Ok(usage.map_or_else(fresh, told))
        }
        .boxed()
    }

    fn give_back(&self, cost: Cost) {
        let op = Op::GiveBackBudget { account: self.account(), cost };
        self.link.unreserve(&self.account, cost, op);
    }

    fn depart(&self, cost: Cost) -> Departure {
        let number = self.link.number();
        let op = Op::Depart {
            account: self.account(),
            ticket: number,
            cost,
            midnight_us: midnight_us(),
            by: self.link.name(),
        };
        self.link.unreserve(&self.account, cost, op);
        Departure { number, at: Instant::now() }
    }

    fn settle(&self, departure: Departure, counted: Cost, actual: Cost) {
        self.link.say(Op::Settle {
            account: self.account(),
            ticket: departure.number,
            counted,
            actual,
            left_us_ago: micros(departure.at.elapsed()),
            midnight_us: midnight_us(),
            by: self.link.name(),
        });
    }

    fn prove(&self) {
        if !self.proven.swap(true, Ordering::AcqRel) && self.is_watched() {
            self.link.say(Op::ProveBudget { account: self.account() });
        }
    }

    fn take_back_of_day(&self, departure: Departure, cost: Cost) {
        // No call has left by this number, so that only the day is corrected.
        self.settle(Departure { number: 0, ..departure }, cost, Cost::default());
    }

    fn close_day(&self, left_at: Instant) {
        self.watch();
        let calendar = Calendar { wall: Timestamp::now(), instant: Instant::now() };
        let end = end_of_used_up(calendar, left_at);
        let for_us = micros(end.saturating_duration_since(Instant::now()));
        self.link.say(Op::CloseDay { account: self.account(), for_us });
    }
}

fn told(usage: UsageResult) -> BudgetUsage {
    BudgetUsage {
        quotas: PerKind::from_fn(|kind| usage.quotas[kind].unwrap_or_default()),
        waiting: usage.waiting,
        next_free_in: usage.next_free_in_us.map(Duration::from_micros),
        paused_for: usage.paused_for_us.map(Duration::from_micros),
    }
}
