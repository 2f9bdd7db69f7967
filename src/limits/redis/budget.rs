//! The quotas of one account, counted in Redis for all replicas.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use jiff::Timestamp;
use tokio::time::{Instant, timeout_at};

use super::command::{Command, bounded, micros};
use super::link::{BudgetChange, Link, LinkedBudget, midnight_us};
use super::reply::UsageResult;
use crate::limits::budget::{
    Budget, BudgetAdmin, ChargedModel, NotReserved, Reservation, Started, Transfer, TryReserve,
};
use crate::limits::local::LocalBudget;
use crate::limits::model::{
    BudgetUsage, Cost, EVERY_MODEL, Exhausted, Line, Payer, PerKind, PlannedQuotas, QuotaKind,
    Quotas, Spent, StoreUnavailable, end_of_used_up,
};
use crate::pacific::Calendar;

/// How many accounts that are charged to one are sent to Redis.
const MAX_ALIASES: usize = 32;

/// A budget that Redis keeps as soon as there is something to keep: quotas of the settings, or
/// quotas that Gemini named to any replica. Until then nothing limits it, and it needs no command.
#[derive(Debug)]
pub(super) struct SharedBudget {
    /// Given to the local budget when everything moves to Redis.
    own: Weak<Self>,
    link: Arc<Link>,
    /// The account's name in Redis.
    account: Arc<str>,
    /// Where the model begins in `account`.
    model_at: usize,
    /// The account's name in logs.
    name: Arc<str>,
    quotas: Mutex<KnownQuotas>,
    minute: Duration,
    /// Whether Redis keeps it.
    watched: AtomicBool,
    /// Whether Gemini has accepted a call of it.
    proven: AtomicBool,
    /// The last session in which Redis was informed of it; 0 for none.
    introduced: AtomicU64,
    /// The model that is charged for its calls, as another replica reported.
    charged: Mutex<Option<ChargedModel>>,
    /// Whether `charged` is set, so that calls need no lock.
    is_charged_reported: AtomicBool,
    /// What is spent until Redis keeps it; and pauses, always.
    local: Arc<LocalBudget>,
}

/// The quotas that this process knows.
#[derive(Debug, Clone)]
struct KnownQuotas {
    /// Those of its settings.
    planned: Quotas,
    /// Those of them that were set by hand.
    by_hand: Quotas,
    /// Those set by hand for the accounts that are charged here, as this process has found out.
    aliases: BTreeMap<Arc<str>, Quotas>,
    /// Those that hold in Redis.
    current: Quotas,
    /// Those of them that Gemini named.
    learned: Quotas,
}

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
            quotas: Mutex::new(KnownQuotas {
                planned,
                by_hand,
                aliases: BTreeMap::new(),
                current: bounded(planned),
                learned: Quotas::default(),
            }),
            minute,
            watched: AtomicBool::new(planned != Quotas::default()),
            proven: AtomicBool::new(false),
            introduced: AtomicU64::new(0),
            charged: Mutex::default(),
            is_charged_reported: AtomicBool::new(false),
            local: LocalBudget::new(Quotas::default(), minute),
        });
        let own: Weak<Self> = Arc::downgrade(&budget);
        link.register(account, own);
        budget
    }

    fn account(&self) -> Arc<str> {
        Arc::clone(&self.account)
    }

    fn is_watched(&self) -> bool {
        self.watched.load(Ordering::Acquire)
    }

    /// Informs Redis of the budget before any request, once a session. If Redis cannot be reached,
    /// the next session does it.
    fn introduce(&self) {
        let session = self.link.session();
        if self.introduced.load(Ordering::Acquire) == session || self.link.lease.reach().is_err() {
            return;
        }
        if self.mark_introduced(session) {
            self.link.send(self.introduction());
        }
    }

    /// Moves the budget to Redis, with what was sent within the last minute and today. What is
    /// reserved here counts there as sent, and is given back if it is not.
    fn watch(&self) {
        if self.watched.swap(true, Ordering::AcqRel) {
            return;
        }
        self.introduced.store(self.link.session(), Ordering::Release);
        self.link.send(self.introduction());
        let own: Weak<dyn Budget> = self.own.clone();
        let Spent { minute, today, since, .. } = self.local.move_to(own);
        if (minute, today) != (Cost::default(), Cost::default()) {
            self.link.send(Command::CountBudget {
                account: self.account(),
                minute,
                today,
                began_us_ago: micros(since.elapsed()),
                midnight_us: midnight_us(),
            });
        }
    }

    /// Moves the budget to Redis, which is informed of it before any other command.
    fn watch_and_introduce(&self) {
        self.watch();
        self.introduce();
    }

    /// The outcome at a deadline. How much longer the wait would have been is unknown.
    fn not_in_time(&self) -> Exhausted {
        let is_of_payer = &self.account[self.model_at..] == EVERY_MODEL;
        let kind = is_of_payer.then_some(QuotaKind::SpendPerTenMinutes);
        Exhausted::NotBefore { kind, retry_after: Duration::from_secs(1) }
    }

    fn set_quotas(&self, quotas: Quotas, learned: Quotas) {
        let mut known = self.quotas();
        if quotas != known.current {
            tracing::info!(account = %self.name, ?quotas, "limits changed for all replicas");
        }
        (known.current, known.learned) = (quotas, learned);
    }

    /// Warns once in this process: the same mistake shows in many accounts.
    fn warn_of_differing_settings(&self) {
        if self.link.is_first_warning_of_settings() {
            let known = self.quotas().clone();
            tracing::warn!(
                account = %self.name,
                here = ?known.planned,
                counts = ?known.current,
                "replicas have different GEMINI_LIMITS or GEMINI_TIER; of each quota the lowest \
                 limit of all running replicas counts"
            );
        }
    }

    fn set_charged(&self, other: Option<&str>) {
        let (payer, _) = self.account.split_at(self.model_at);
        let model = other.and_then(|other| other.strip_prefix(payer));
        let charged = model.map_or(ChargedModel::Own, |model| ChargedModel::Other(model.into()));
        *self.charged() = Some(charged);
        self.is_charged_reported.store(true, Ordering::Release);
    }

    fn charged(&self) -> MutexGuard<'_, Option<ChargedModel>> {
        self.charged.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The lowest limits set by hand for the account and for those that are charged to it.
    fn by_hand(&self) -> Quotas {
        let known = self.quotas();
        let aliases = known.aliases.values().copied();
        bounded(aliases.fold(known.by_hand, Quotas::lower))
    }

    fn quotas(&self) -> MutexGuard<'_, KnownQuotas> {
        self.quotas.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn request(
        self: Arc<Self>,
        line: Line,
        cost: Cost,
        deadline: Instant,
        wait: bool,
    ) -> Result<Option<Reservation>, NotReserved> {
        let (link, account) = (Arc::clone(&self.link), self.account());
        let not_in_time = self.not_in_time();
        let (ticket, result) = link.request_reservation(self, account, line, cost, deadline, wait);
        let request = QueuedReservation { link, ticket };
        let result = timeout_at(deadline, result).await;
        drop(request);
        result.ok().and_then(Result::ok).unwrap_or_else(|| Err(not_in_time.into()))
    }
}

/// A request for a reservation. Dropping it leaves the queue.
struct QueuedReservation {
    link: Arc<Link>,
    ticket: u64,
}

impl Drop for QueuedReservation {
    fn drop(&mut self) {
        self.link.cancel(self.ticket);
    }
}

impl LinkedBudget for SharedBudget {
    fn introduction(&self) -> Command {
        let account = self.account();
        if !self.is_watched() {
            return Command::LookUpBudget { account };
        }
        let known = self.quotas().clone();
        Command::OpenBudget {
            account,
            planned: bounded(known.planned).into(),
            by_hand: bounded(known.by_hand).into(),
            aliases: known.aliases,
            learned: Some(known.learned).filter(Quotas::is_any).map(Box::new),
            minute_us: micros(self.minute),
            midnight_us: midnight_us(),
            proven: self.proven.load(Ordering::Acquire),
        }
    }

    fn mark_introduced(&self, session: u64) -> bool {
        self.introduced.swap(session, Ordering::AcqRel) != session
    }

    fn receive(&self, change: BudgetChange) {
        match change {
            BudgetChange::Watched => self.watch(),
            BudgetChange::Paused(time, quota) => {
                self.local.pause_until(Instant::now() + time, quota);
            }
            BudgetChange::Resumed => self.local.resume(),
            BudgetChange::Corrected(corrected) => {
                self.set_quotas(corrected.quotas, corrected.learned);
                if corrected.settings_differ {
                    self.warn_of_differing_settings();
                }
            }
            BudgetChange::ChargedTo(other) => self.set_charged(other.as_deref()),
        }
    }

    fn take_spent_here(&self) -> Option<Spent> {
        if self.is_watched() {
            return None;
        }
        match self.local.transfer_out() {
            Transfer::Local(spent) => Some(*spent),
            Transfer::Shared(_) => None,
        }
    }

    fn open(&self) -> Quotas {
        self.watch_and_introduce();
        self.by_hand()
    }
}

impl Budget for SharedBudget {
    fn try_reserve(self: Arc<Self>, cost: Cost, deadline: Instant) -> TryReserve {
        self.introduce();
        if !self.is_watched() {
            return Arc::clone(&self.local).try_reserve(cost, deadline);
        }
        if let Err(reason) = self.link.lease.reach() {
            return TryReserve::Ready(Err(reason.into()));
        }
        TryReserve::Pending(self.request(Line::Queue, cost.bounded(), deadline, false).boxed())
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
                let result = Arc::clone(&self).request(line, cost.bounded(), deadline, true).await;
                let reservation = match result {
                    Ok(Some(reservation)) => reservation,
                    Err(NotReserved::Exhausted(reason)) => return Err(reason),
                    Ok(None) | Err(NotReserved::StoreUnavailable(_)) => {
                        return Err(self.not_in_time());
                    }
                };
                if !self.local.is_paused() {
                    return Ok(reservation);
                }
                // Redis has lost the pause. No call starts before the pause is over, so wait for
                // its end here and request again.
                drop(reservation);
                let paused = Arc::clone(&self.local);
                drop(paused.reserve(Line::Returning, Cost::one(0), deadline).await?);
            }
        }
        .boxed()
    }

    fn give_back(&self, cost: Cost) {
        let command = Command::GiveBackBudget { account: self.account(), cost };
        self.link.unreserve(&self.account, cost, command);
    }

    fn start(&self, cost: Cost) -> Started {
        let number = self.link.next_ticket();
        let command = Command::StartCall {
            account: self.account(),
            ticket: number,
            cost,
            midnight_us: midnight_us(),
            by: self.link.name(),
        };
        self.link.unreserve(&self.account, cost, command);
        Started { number, at: Instant::now() }
    }

    fn settle(&self, started: Started, counted: Cost, actual: Cost) {
        self.link.send(Command::Settle {
            account: self.account(),
            ticket: started.number,
            counted,
            actual,
            sent_us_ago: micros(started.at.elapsed()),
            midnight_us: midnight_us(),
            by: self.link.name(),
        });
    }

    fn take_back_of_day(&self, started: Started, cost: Cost) {
        if !self.is_watched() {
            return self.local.take_back_of_day(started, cost);
        }
        // No call has the number 0, so this corrects the day alone.
        self.settle(Started { number: 0, ..started }, cost, Cost::default());
    }

    fn is_paused(&self) -> bool {
        self.local.is_paused()
    }
}

impl BudgetAdmin for SharedBudget {
    fn learn(&self, named: Quotas) {
        self.watch_and_introduce();
        self.link.send(Command::LearnQuotas { account: self.account(), quotas: bounded(named) });
    }

    fn forget(&self) {
        self.local.forget();
        if self.is_watched() {
            self.link.send(Command::ForgetQuotas { account: self.account() });
        }
    }

    fn is_blank(&self) -> bool {
        self.is_watched() || self.local.is_blank()
    }

    fn transfer_out(&self) -> Transfer {
        Transfer::Shared(self.account())
    }

    fn transfer_in(&self, from: Transfer, from_replica: bool) {
        let Transfer::Shared(from) = from else { return };
        // The caller holds the other account.
        let Some(alias) = self.link.budget(&from) else { return };
        if !self.is_watched()
            && let Some(spent) = alias.take_spent_here()
        {
            return self.local.transfer_in(Transfer::Local(Box::new(spent)), from_replica);
        }
        let by_hand = alias.open();
        self.watch_and_introduce();
        let mut known = self.quotas();
        if by_hand.is_any() && known.aliases.len() < MAX_ALIASES {
            known.aliases.insert(Arc::clone(&from), by_hand);
        }
        drop(known);
        let (account, midnight_us) = (self.account(), midnight_us());
        self.link.send(Command::TransferBudget {
            account,
            from,
            by_hand,
            from_replica,
            midnight_us,
        });
    }

    fn take_charged_model(&self) -> Option<ChargedModel> {
        if !self.is_charged_reported.load(Ordering::Acquire) {
            return None;
        }
        self.is_charged_reported.store(false, Ordering::Release);
        self.charged().take()
    }

    fn pause_until(&self, until: Instant, quota: Option<QuotaKind>) {
        self.watch_and_introduce();
        self.local.pause_until(until, quota);
        let for_us = micros(until.saturating_duration_since(Instant::now()));
        self.link.send(Command::Pause { account: self.account(), for_us, kind: quota });
    }

    fn close_day(&self, sent_at: Instant) {
        self.watch_and_introduce();
        let calendar = Calendar { wall: Timestamp::now(), instant: Instant::now() };
        let end = end_of_used_up(calendar, sent_at);
        let for_us = micros(end.saturating_duration_since(Instant::now()));
        self.link.send(Command::CloseDay { account: self.account(), for_us });
    }

    fn prove(&self) {
        if !self.proven.swap(true, Ordering::AcqRel) && self.is_watched() {
            self.link.send(Command::ProveBudget { account: self.account() });
        }
    }

    fn usage(&self) -> BoxFuture<'_, Result<BudgetUsage, StoreUnavailable>> {
        if !self.is_watched() {
            self.introduce();
            return self.local.usage();
        }
        let command = Command::BudgetUsage { account: self.account(), midnight_us: midnight_us() };
        async move {
            let usage: Option<UsageResult> = self.link.call(command).await?;
            // If Redis does not know the account, nothing is spent.
            let fresh = || LocalBudget::new(self.quotas().current, self.minute).usage_now();
            Ok(usage.map_or_else(fresh, to_usage))
        }
        .boxed()
    }
}

fn to_usage(usage: UsageResult) -> BudgetUsage {
    BudgetUsage {
        quotas: PerKind::from_fn(|kind| usage.quotas[kind].unwrap_or_default()),
        waiting: usage.waiting,
        next_free_in: usage.next_free_in_us.map(Duration::from_micros),
        paused_for: usage.paused_for_us.map(Duration::from_micros),
        paused_quota: usage.paused_quota,
        day_closed_for: usage.day_closed_for_us.map(Duration::from_micros),
    }
}
