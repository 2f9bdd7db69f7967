//! One key and one model: what counts for their calls.

use std::any::Any;
use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, RwLock, Weak};
use std::time::Duration;

use tokio::sync;
use tokio::time::Instant;

use super::breakers::{Breaker, Breakers, RefusedHere, Tripped};
use crate::limits::budget::BudgetAdmin;
use crate::limits::local::{AdaptiveLimit, LocalBudget};
use crate::limits::model::{
    BudgetUsage, Capacity, Payer, Planned, PlannedQuotas, QuotaKind, QuotaPlan, Quotas, Source,
    StoreUnavailable,
};
use crate::limits::store::Store;

/// How long an alias stays with a model before an answer that names an earlier model moves it back:
/// Google can route the calls of an alias to several models in turn.
pub(super) const FOLLOW_AGAIN: Duration = Duration::from_secs(3600);

/// How many models that Gemini named for one account's calls are remembered.
const MAX_NAMED: usize = 16;

/// The calls that an account counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Counted {
    /// Those that are charged to the model.
    Model,
    /// Those of one method of the model, such as `countTokens`, which has quotas of its own.
    Method,
}

impl Counted {
    /// The quotas in these settings.
    fn quotas(self, plan: &QuotaPlan, payer: &Payer, model: &str) -> PlannedQuotas {
        match self {
            // Enqueued tokens are kept apart.
            Self::Model => plan.quotas(payer.label(), model).with(QuotaKind::EnqueuedTokens, None),
            // The plan's quotas are the model's.
            Self::Method => PlannedQuotas::default(),
        }
    }
}

/// One key and one model: their quotas, and how many of their calls run at once.
#[derive(Debug)]
pub struct Account {
    payer: Payer,
    model: Arc<str>,
    counted: Counted,
    /// The quotas of the settings.
    planned: Mutex<PlannedQuotas>,
    budget: Arc<dyn BudgetAdmin>,
    /// What the payer spends on all its models together; unset if that has never had a limit.
    spend: OnceLock<Arc<dyn BudgetAdmin>>,
    concurrency: Arc<AdaptiveLimit>,
    flex_concurrency: Arc<AdaptiveLimit>,
    /// Whether Gemini has ever accepted a call of this account.
    proven: AtomicBool,
    /// Shared by all accounts.
    breakers: Arc<Breakers>,
    /// Whether `real` is set: calls of accounts without it need no lock.
    is_alias: AtomicBool,
    /// The account that Gemini charges for this one's calls.
    real: RwLock<Option<Arc<Account>>>,
    /// The models that Gemini has named for this one's calls, and when each was last charged.
    named: Mutex<Vec<(Arc<str>, Instant)>>,
    /// Whether calls are refused because too many accounts are open.
    rejected: bool,
    /// When it was last used, as the number of accounts opened by then.
    used: AtomicU64,
    /// Data that another module keeps with the account.
    attached: OnceLock<Arc<dyn Any + Send + Sync>>,
    /// By semaphore number, the queues of calls that had a permit and no quota.
    returning: Mutex<HashMap<u64, Weak<sync::Mutex<()>>>>,
    /// The queue of calls for which the model's quotas and the payer's spend had no room at once.
    reserving: sync::Mutex<()>,
}

impl Account {
    pub(super) fn open(
        store: &dyn Store,
        payer: Payer,
        model: Arc<str>,
        counted: Counted,
        plan: &QuotaPlan,
        ceiling: usize,
        breakers: &Arc<Breakers>,
    ) -> Self {
        let planned = counted.quotas(plan, &payer, &model);
        let budget = store.budget(&payer, &model, planned, plan.minute);
        let account = Self::new(payer, model, planned, budget, ceiling);
        Self { breakers: Arc::clone(breakers), counted, ..account }
    }

    /// The same account, whose calls count in the payer's spend.
    pub(super) fn spending(self, spend: Option<Arc<dyn BudgetAdmin>>) -> Self {
        Self { spend: spend.map_or_else(OnceLock::new, OnceLock::from), ..self }
    }

    /// The quotas of the account itself in these settings.
    pub(super) fn quotas_in(&self, plan: &QuotaPlan) -> PlannedQuotas {
        self.counted.quotas(plan, &self.payer, &self.model)
    }

    /// Takes over new settings: its `own` quotas, those that hold `with_aliases`, the highest limit on
    /// concurrent calls, and what the payer may spend, if that has a limit. What was spent before it had
    /// one is not counted.
    pub(super) fn replan(
        &self,
        own: PlannedQuotas,
        with_aliases: PlannedQuotas,
        ceiling: usize,
        spend: Option<Arc<dyn BudgetAdmin>>,
    ) {
        *self.planned() = with_aliases;
        self.budget.plan(own, with_aliases);
        self.concurrency.set_ceiling(ceiling);
        self.flex_concurrency.set_ceiling(ceiling);
        if let Some(spend) = spend.filter(|_| self.counted == Counted::Model) {
            // All accounts of a payer have the same one.
            let _ = self.spend.set(spend);
        }
    }

    /// An account that is not kept and whose calls are refused.
    pub(in crate::limits) fn rejected(payer: Payer, model: Arc<str>) -> Self {
        let budget = LocalBudget::new(Quotas::default(), QuotaPlan::default().minute);
        let account = Self::new(payer, model, PlannedQuotas::default(), budget, 1);
        Self { rejected: true, ..account }
    }

    fn new(
        payer: Payer,
        model: Arc<str>,
        planned: PlannedQuotas,
        budget: Arc<dyn BudgetAdmin>,
        ceiling: usize,
    ) -> Self {
        Self {
            payer,
            model,
            counted: Counted::Model,
            planned: Mutex::new(planned),
            budget,
            spend: OnceLock::new(),
            concurrency: AdaptiveLimit::new(ceiling),
            flex_concurrency: AdaptiveLimit::new(ceiling),
            proven: AtomicBool::new(false),
            breakers: Arc::default(),
            is_alias: AtomicBool::new(false),
            real: RwLock::default(),
            named: Mutex::default(),
            rejected: false,
            used: AtomicU64::new(0),
            attached: OnceLock::new(),
            returning: Mutex::default(),
            reserving: sync::Mutex::default(),
        }
    }

    /// Whether all calls are refused because too many accounts are open.
    pub(in crate::limits) fn is_rejected(&self) -> bool {
        self.rejected
    }

    /// Whom Gemini charges.
    pub fn payer(&self) -> &Payer {
        &self.payer
    }

    /// The model.
    pub fn model(&self) -> &str {
        &self.model
    }

    /// The quotas and what is spent of them.
    pub fn budget(&self) -> &Arc<dyn BudgetAdmin> {
        &self.budget
    }

    /// What the payer spends on all its models together; `None` if that has never had a limit.
    pub(in crate::limits) fn spend(&self) -> Option<&Arc<dyn BudgetAdmin>> {
        self.spend.get()
    }

    /// Whether it is counted what the payer spends, because that has or had a limit.
    pub fn counts_spend(&self) -> bool {
        self.spend().is_some()
    }

    /// Whether a refusal by Gemini pauses the account.
    pub(in crate::limits) fn is_paused(&self) -> bool {
        self.budget.is_paused() || self.spend().is_some_and(|spend| spend.is_paused())
    }

    /// Starts no call of the account, and none that costs the payer money, until then, because Gemini
    /// refused one for what the payer spends.
    pub(super) fn pause_until(&self, until: Instant) {
        let quota = Some(QuotaKind::SpendPerTenMinutes);
        self.budget.pause_until(until, quota);
        if let Some(spend) = self.spend() {
            spend.pause_until(until, quota);
        }
    }

    /// The limit on concurrent calls, flex calls aside.
    pub fn concurrency(&self) -> &Arc<AdaptiveLimit> {
        &self.concurrency
    }

    /// The limit on concurrent calls that use this part of Gemini's capacity.
    pub fn concurrency_of(&self, capacity: Capacity) -> &Arc<AdaptiveLimit> {
        match capacity {
            Capacity::Standard => &self.concurrency,
            Capacity::Flex => &self.flex_concurrency,
        }
    }

    /// The account that is charged for this one's calls: itself, unless Gemini has named another
    /// model for them.
    pub fn charged(self: &Arc<Self>) -> Arc<Self> {
        let mut account = Arc::clone(self);
        while account.is_alias.load(Ordering::Acquire) {
            let real = account.real.read().unwrap_or_else(PoisonError::into_inner).clone();
            let Some(real) = real else { break };
            account = real;
        }
        account
    }

    /// Through how many other accounts this one's calls are charged: 0 if it is charged itself.
    pub(super) fn charged_through(self: &Arc<Self>) -> usize {
        let mut account = Arc::clone(self);
        let mut count = 0;
        while account.is_alias() {
            let real = account.real.read().unwrap_or_else(PoisonError::into_inner).clone();
            let Some(real) = real else { break };
            account = real;
            count += 1;
        }
        count
    }

    /// Whether another account is charged for this one's calls.
    pub(super) fn is_alias(&self) -> bool {
        self.is_alias.load(Ordering::Acquire)
    }

    /// Whether this one's calls are charged to `account`.
    pub(in crate::limits) fn is_charged_to(self: &Arc<Self>, account: &Arc<Self>) -> bool {
        if self.is_alias.load(Ordering::Acquire) {
            return Arc::ptr_eq(&self.charged(), account);
        }
        Arc::ptr_eq(self, account)
    }

    /// Data that another module keeps with the account, such as what it has learned from its calls.
    /// It is created on first use and forgotten with the account.
    ///
    /// # Panics
    /// If data of another type is kept here.
    pub fn attached<T: Default + Send + Sync + 'static>(&self) -> Arc<T> {
        let attached = self.attached.get_or_init(|| Arc::new(T::default()));
        Arc::clone(attached).downcast().expect("accounts keep data of one type")
    }

    /// The quotas that hold now with their sources, and the usage.
    ///
    /// # Errors
    /// [`StoreUnavailable`] if the quotas are shared and cannot be reached.
    pub async fn quotas(&self) -> Result<(PlannedQuotas, BudgetUsage), StoreUnavailable> {
        let usage = self.budget.usage().await?;
        let mut quotas = *self.planned();
        for (kind, quota) in quotas.iter_mut() {
            let limit = usage.quotas[kind].limit;
            if quota.map(|quota| quota.limit) != limit {
                *quota = limit.map(|limit| Planned { limit, source: Source::Gemini });
            }
        }
        Ok((quotas, usage))
    }

    /// Takes over the quotas that Gemini named when it refused a call, lower and higher ones, and
    /// leaves the others as they are. A limit set by hand stays the most that the account spends:
    /// the operator may want to leave room for others.
    ///
    /// The budget receives the quotas each time, even if they are known: Redis may have lost them.
    pub fn correct(&self, named: Quotas) {
        if named == Quotas::default() {
            return;
        }
        self.budget.learn(named);
        // Gemini knows the key and the model, and the quota is not 0. The payer may still have
        // no funds, since Gemini served nothing.
        let [_, model] = self.own_breakers();
        self.breakers.reset(&[model]);
        self.note_known();
    }

    /// Forgets what was learned from Gemini: quotas, pauses (the payer's too), a used-up day, the
    /// limits on concurrent calls, and that another model is charged.
    pub(in crate::limits) fn forget(&self) {
        self.charge(None);
        self.named().clear();
        self.budget.forget();
        if let Some(spend) = self.spend() {
            spend.forget();
        }
        self.concurrency.reset();
        self.flex_concurrency.reset();
        self.breakers.reset(&self.own_breakers());
    }

    /// From now on this account's calls are charged to `real`, or to itself.
    pub(super) fn charge(&self, real: Option<Arc<Self>>) {
        let mut now = self.real.write().unwrap_or_else(PoisonError::into_inner);
        self.is_alias.store(real.is_some(), Ordering::Release);
        *now = real;
    }

    /// This account is charged for the calls of another: adds what that one has spent, and its limits
    /// set by hand. `from_replica`: another replica reported it.
    pub(super) fn transfer_in(&self, alias: &Self, from_replica: bool) {
        let of_alias = *alias.planned();
        let mut planned = self.planned();
        *planned = planned.with_alias(of_alias);
        drop(planned);
        self.budget.transfer_in(alias.budget.transfer_out(), from_replica);
    }

    /// Whether Gemini has named the model for this one's calls within the last hour.
    pub(super) fn was_named(&self, model: &str) -> bool {
        let named = self.named();
        let known = named.iter().find(|(known, _)| **known == *model);
        known.is_some_and(|(_, followed_at)| followed_at.elapsed() < FOLLOW_AGAIN)
    }

    /// Notes that Gemini has named the model for this one's calls. Returns whether it is new.
    pub(super) fn note_named(&self, model: &str) -> bool {
        let (mut named, now) = (self.named(), Instant::now());
        if let Some((_, followed_at)) = named.iter_mut().find(|(known, _)| **known == *model) {
            *followed_at = now;
            return false;
        }
        if named.len() >= MAX_NAMED {
            named.remove(0);
        }
        named.push((model.into(), now));
        true
    }

    fn named(&self) -> MutexGuard<'_, Vec<(Arc<str>, Instant)>> {
        self.named.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether these are calls that Gemini counts apart from the model's generating calls.
    pub(super) fn is_apart(&self) -> bool {
        self.counted == Counted::Method
    }

    /// The breakers that refuse all calls of this account.
    fn own_breakers(&self) -> [Breaker; 2] {
        let payer = self.payer.clone();
        [Breaker::Payer(payer.clone()), Breaker::Model(payer, Arc::clone(&self.model))]
    }

    /// Refuses a call that Gemini is certain to refuse, before it waits for anything. Calls that are
    /// counted apart may be free of charge, so Gemini decides on them.
    pub(in crate::limits) fn check(&self) -> Result<(), Tripped> {
        if !self.breakers.any() || self.is_apart() {
            return Ok(());
        }
        self.breakers.check(&self.own_breakers())
    }

    /// The same for a call that is about to start. It may be the probe that finds out whether Gemini
    /// still refuses.
    pub(in crate::limits) fn start(&self) -> Result<(), Tripped> {
        if !self.breakers.any() || self.is_apart() {
            return Ok(());
        }
        self.breakers.start(&self.own_breakers())
    }

    /// Why, since when and for how long this account's calls are refused here, if they are.
    pub fn refused_here(&self) -> Option<RefusedHere> {
        if !self.breakers.any() || self.is_apart() {
            return None;
        }
        self.breakers.refused(&self.own_breakers())
    }

    /// Gemini says that the payer has no funds: its calls of every model are refused
    /// here, except a probe every few minutes.
    pub(in crate::limits) fn note_unfunded(&self) {
        if self.breakers.trip(Breaker::Payer(self.payer.clone())) {
            tracing::error!(
                payer = %self.payer,
                "Gemini says that this account has no funds; its calls are \
                 refused until somebody adds credits or raises its cap"
            );
        }
    }

    /// Gemini says that a quota of this account is 0: its calls are refused here, except a probe
    /// every few minutes.
    pub(in crate::limits) fn note_without_quota(&self) {
        let breaker = Breaker::Model(self.payer.clone(), Arc::clone(&self.model));
        if self.breakers.trip(breaker) {
            tracing::warn!(
                payer = %self.payer,
                model = &*self.model,
                "Gemini says that this key's quota for the model is 0"
            );
        }
    }

    /// Notes that Gemini has accepted a call of this account.
    pub(in crate::limits) fn prove(&self) {
        if self.breakers.any() && !self.is_apart() && self.breakers.reset(&self.own_breakers()) {
            tracing::info!(payer = %self.payer, model = &*self.model, "Gemini serves it again");
        }
        self.note_known();
    }

    /// Notes that Gemini knows the key and the model.
    fn note_known(&self) {
        // Read first: a write by every call would invalidate the cache line of other processors.
        if !self.proven.load(Ordering::Relaxed) {
            self.proven.store(true, Ordering::Relaxed);
            self.budget.prove();
            if let Some(spend) = self.spend() {
                spend.prove();
            }
        }
    }

    /// Whether Gemini has ever accepted a call of this account.
    pub(in crate::limits) fn is_proven(&self) -> bool {
        self.proven.load(Ordering::Relaxed)
    }

    /// Notes a use, at a time when `opened` accounts had been opened.
    pub(super) fn touch(&self, opened: u64) {
        if self.used.load(Ordering::Relaxed) != opened {
            self.used.store(opened, Ordering::Relaxed);
        }
    }

    /// When it was last used: greater is later.
    pub(super) fn last_used(&self) -> u64 {
        self.used.load(Ordering::Relaxed)
    }

    /// Whether closing it loses nothing but what was learned about token counts, and an alias of an
    /// account that is blank too: Gemini's next answer names the model again.
    pub(super) fn is_blank(&self) -> bool {
        let real = self.real.read().unwrap_or_else(PoisonError::into_inner).clone();
        self.concurrency.is_at_rest()
            && self.flex_concurrency.is_at_rest()
            && self.budget.is_blank()
            && self.spend().is_none_or(|spend| spend.is_blank())
            && real.is_none_or(|real| real.is_blank())
    }

    /// The queue of calls that had a permit of the semaphore and no quota.
    pub(in crate::limits) fn returning(&self, semaphore: u64) -> Arc<sync::Mutex<()>> {
        let mut lines = self.returning.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(line) = lines.get(&semaphore).and_then(Weak::upgrade) {
            return line;
        }
        lines.retain(|_, line| line.strong_count() > 0);
        let line = Arc::default();
        lines.insert(semaphore, Arc::downgrade(&line));
        line
    }

    /// The queue of calls for which the model's quotas and the payer's spend had no room at once.
    pub(in crate::limits) fn reserving(&self) -> &sync::Mutex<()> {
        &self.reserving
    }

    fn planned(&self) -> MutexGuard<'_, PlannedQuotas> {
        self.planned.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
