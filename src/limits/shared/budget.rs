//! What an account may spend, shared by all replicas.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use jiff::Timestamp;
use tokio::time::{Instant, timeout_at};

use super::link::{Link, midnight_us};
use super::wire::{self, Op, UsageResult, micros};
use crate::limits::account::Payer;
use crate::limits::budget::{
    Attempt, Budget, BudgetUsage, Charged, Cost, Exhausted, HandedOver, Line, LocalBudget,
    NotReserved, Reservation, Spent, Started, end_of_used_up,
};
use crate::limits::plan::PlannedQuotas;
use crate::limits::quota::{PerKind, Quotas};
use crate::limits::semaphore::StoreUnavailable;
use crate::pacific::Calendar;

/// The answer at a deadline: how much longer it would have been, nobody has said.
const NOT_IN_TIME: Exhausted = Exhausted::NotBefore { retry_after: Duration::from_secs(1) };

/// A budget that is kept in Redis as soon as there is something to keep: quotas that are set, or
/// that a replica has met with. Until then nothing limits it, and it costs no word to Redis.
#[derive(Debug)]
pub(super) struct SharedBudget {
    /// What it is known by to the budget of this process.
    own: Weak<Self>,
    link: Arc<Link>,
    account: Arc<str>,
    /// Where the model begins in it.
    model_at: usize,
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
    /// The model that is charged for its calls, as another replica has found out.
    charged: Mutex<Option<Charged>>,
    has_news: AtomicBool,
    /// What is spent while it is not; and for how long it is paused, in any case.
    local: Arc<LocalBudget>,
}

/// The quotas as far as this process knows them.
#[derive(Debug, Clone)]
struct Told {
    /// What its settings say.
    planned: Quotas,
    /// What of it was set by hand.
    by_hand: Quotas,
    /// What was set by hand for the accounts that are charged here, as this process has found out.
    aliases: BTreeMap<Arc<str>, Quotas>,
    /// What counts in Redis.
    counts: Quotas,
    /// What of it Gemini named.
    learned: Quotas,
}

/// More accounts that are charged to one are not told of.
const MOST_ALIASES: usize = 32;

impl SharedBudget {
    pub fn new(
        link: &Arc<Link>,
        payer: &Payer,
        model: &str,
        planned: PlannedQuotas,
        minute: Duration,
    ) -> Arc<Self> {
        let (planned, by_hand) = (Quotas::from(planned), planned.by_hand());
        let account: Arc<str> = match payer {
            Payer::Labelled(label) => format!("label/{label}/{model}").into(),
            Payer::Key(digest) => {
                let digest: String = digest.iter().map(|byte| format!("{byte:02x}")).collect();
                format!("key/{digest}/{model}").into()
            }
        };
        let budget = Arc::new_cyclic(|own: &Weak<Self>| Self {
            own: own.clone(),
            link: Arc::clone(link),
            account: Arc::clone(&account),
            name: format!("{payer}/{model}").into(),
            model_at: account.len() - model.len(),
            quotas: Mutex::new(Told {
                planned,
                by_hand,
                aliases: BTreeMap::new(),
                counts: wire::told(planned),
                learned: Quotas::default(),
            }),
            minute,
            watched: AtomicBool::new(planned != Quotas::default()),
            proven: AtomicBool::new(false),
            introduced: AtomicU64::new(0),
            charged: Mutex::default(),
            has_news: AtomicBool::new(false),
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
        let told = self.quotas().clone();
        Op::OpenBudget {
            account,
            planned: wire::told(told.planned),
            by_hand: wire::told(told.by_hand),
            aliases: told.aliases,
            learned: Some(told.learned).filter(Quotas::is_any),
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

    /// From now on it is kept in Redis, with what has left within the last minute and today. What
    /// is reserved here is counted as if it had left, and given back there if it does not.
    pub fn watch(&self) {
        if self.watched.swap(true, Ordering::AcqRel) {
            return;
        }
        self.introduced.store(self.link.session(), Ordering::Release);
        self.link.say(self.introduction());
        let own: Weak<dyn Budget> = self.own.clone();
        let Spent { minute, today, since, .. } = self.local.move_to(own);
        if (minute, today) != (Cost::default(), Cost::default()) {
            self.link.say(Op::CountBudget {
                account: self.account(),
                minute,
                today,
                began_us_ago: micros(since.elapsed()),
                midnight_us: midnight_us(),
            });
        }
    }

    /// From now on it is kept in Redis, which is told of it before anything else is said.
    fn open(&self) {
        self.watch();
        self.introduce();
    }

    /// Other quotas count from now on, of which Gemini named some.
    pub fn is_corrected(&self, quotas: Quotas, learned: Quotas) {
        let mut told = self.quotas();
        if quotas != told.counts {
            tracing::info!(account = %self.name, ?quotas, "limits changed for all replicas");
        }
        (told.counts, told.learned) = (quotas, learned);
    }

    /// Warns once in this process: the same mistake shows in many accounts.
    pub fn warn_of_differing_settings(&self) {
        if self.link.is_first_warning_of_settings() {
            let told = self.quotas().clone();
            tracing::warn!(
                account = %self.name,
                here = ?told.planned,
                counts = ?told.counts,
                "replicas have different GEMINI_LIMITS or GEMINI_TIER; of each quota the lowest \
                 limit of all running replicas counts"
            );
        }
    }

    /// Gemini charges another account, or this one, for its calls, as a replica has found out.
    pub fn is_charged_to(&self, other: Option<&str>) {
        let (payer, _) = self.account.split_at(self.model_at);
        let model = other.and_then(|other| other.strip_prefix(payer));
        let charged = model.map_or(Charged::Itself, |model| Charged::Model(model.into()));
        *self.charged() = Some(charged);
        self.has_news.store(true, Ordering::Release);
    }

    fn charged(&self) -> MutexGuard<'_, Option<Charged>> {
        self.charged.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What was set by hand for it, or for those that are charged to it.
    fn by_hand(&self) -> Quotas {
        let told = self.quotas();
        let by_hand = told.aliases.values().copied();
        wire::told(by_hand.fold(told.by_hand, Quotas::lower))
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
                    Ok(None) | Err(NotReserved::StoreUnavailable(_)) => return Err(NOT_IN_TIME),
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

    fn learn(&self, named: Quotas) {
        self.open();
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
        HandedOver::Shared(self.account())
    }

    fn take_over(&self, from: HandedOver, heard: bool) {
        let HandedOver::Shared(from) = from else { return };
        // Whoever hands it over has it.
        let Some(alias) = self.link.budget(&from) else { return };
        if !alias.is_watched() && !self.is_watched() {
            return self.local.take_over(alias.local.hand_over(), heard);
        }
        alias.open();
        self.open();
        let by_hand = alias.by_hand();
        let mut told = self.quotas();
        if by_hand.is_any() && told.aliases.len() < MOST_ALIASES {
            told.aliases.insert(Arc::clone(&from), by_hand);
        }
        drop(told);
        let (account, midnight_us) = (self.account(), midnight_us());
        self.link.say(Op::TakeOverBudget { account, from, by_hand, heard, midnight_us });
    }

    fn heard(&self) -> Option<Charged> {
        if !self.has_news.load(Ordering::Acquire) {
            return None;
        }
        self.has_news.store(false, Ordering::Release);
        self.charged().take()
    }

    fn pause_until(&self, until: Instant) {
        self.open();
        self.local.pause_until(until);
        let for_us = micros(until.saturating_duration_since(Instant::now()));
        self.link.say(Op::Pause { account: self.account(), for_us });
    }

    fn is_paused(&self) -> bool {
        self.local.is_paused()
    }

    fn usage(&self) -> BoxFuture<'_, Result<BudgetUsage, StoreUnavailable>> {
        if !self.is_watched() {
            self.introduce();
            return self.local.usage();
        }
        let op = Op::BudgetUsage { account: self.account(), midnight_us: midnight_us() };
        async move {
            let usage: Option<UsageResult> = self.link.ask(op).await?;
            // Redis does not know it: nothing is spent.
            let fresh = || LocalBudget::new(self.quotas().counts, self.minute).usage_now();
            Ok(usage.map_or_else(fresh, told))
        }
        .boxed()
    }

    fn give_back(&self, cost: Cost) {
        let op = Op::GiveBackBudget { account: self.account(), cost };
        self.link.unreserve(&self.account, cost, op);
    }

    fn start(&self, cost: Cost) -> Started {
        let number = self.link.number();
        let op = Op::Depart {
            account: self.account(),
            ticket: number,
            cost,
            midnight_us: midnight_us(),
            by: self.link.name(),
        };
        self.link.unreserve(&self.account, cost, op);
        Started { number, at: Instant::now() }
    }

    fn settle(&self, started: Started, counted: Cost, actual: Cost) {
        self.link.say(Op::Settle {
            account: self.account(),
            ticket: started.number,
            counted,
            actual,
            left_us_ago: micros(started.at.elapsed()),
            midnight_us: midnight_us(),
            by: self.link.name(),
        });
    }

    fn prove(&self) {
        if !self.proven.swap(true, Ordering::AcqRel) && self.is_watched() {
            self.link.say(Op::ProveBudget { account: self.account() });
        }
    }

    fn take_back_of_day(&self, started: Started, cost: Cost) {
        if !self.is_watched() {
            return self.local.take_back_of_day(started, cost);
        }
        // No call has left by this number, so that only the day is corrected.
        self.settle(Started { number: 0, ..started }, cost, Cost::default());
    }

    fn close_day(&self, left_at: Instant) {
        self.open();
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
