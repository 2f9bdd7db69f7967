//! What one key may ask of one model.

use std::any::Any;
use std::collections::HashMap;
use std::fmt;
use std::hash::{Hash, Hasher};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, RwLock, Weak};
use std::time::Duration;

use tokio::sync;
use tokio::time::Instant;

use super::adaptive::AdaptiveLimit;
use super::breakers::{Breaker, Breakers, RefusedHere, Tripped};
use super::budget::{Budget, BudgetUsage, LocalBudget};
use super::plan::{Planned, PlannedQuotas, QuotaPlan, Source};
use super::quota::Quotas;
use super::semaphore::StoreUnavailable;
use super::store::Store;

/// How long an alias stays with a model when Gemini's answers name another one that they named
/// before: Google can route the calls of an alias to several models in turn.
pub(super) const FOLLOW_AGAIN: Duration = Duration::from_secs(3600);

/// More models that Gemini named for one account's calls are not remembered.
const MOST_NAMED: usize = 16;

/// Who pays, without the key: what all keys of one project have in common, or what tells one key
/// from all others.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Payer {
    /// All keys of this label.
    Labelled(Arc<str>),
    /// The key with this SHA-256.
    Key([u8; 32]),
}

impl Hash for Payer {
    /// Half of the SHA-256 is enough: nobody finds many keys in which it is the same.
    fn hash<H: Hasher>(&self, state: &mut H) {
        match self {
            Self::Labelled(label) => label.hash(state),
            Self::Key(digest) => state.write(&digest[..16]),
        }
    }
}

impl fmt::Display for Payer {
    /// The label, or the first 8 hex digits of the key's SHA-256.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Labelled(label) => f.write_str(label),
            Self::Key(digest) => digest[..4].iter().try_for_each(|byte| write!(f, "{byte:02x}")),
        }
    }
}

/// The calls that an account counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Counted {
    /// Those that are charged to the model.
    Model,
    /// Those of one method of the model, such as `countTokens`, which has quotas of its own.
    Method,
}

/// One key and one model: the quotas that count for them, and how many calls run at once.
#[derive(Debug)]
pub struct Account {
    payer: Payer,
    model: Arc<str>,
    counted: Counted,
    /// What the settings say.
    planned: Mutex<PlannedQuotas>,
    budget: Arc<dyn Budget>,
    concurrency: Arc<AdaptiveLimit>,
    /// Whether Gemini has ever accepted a call of this account.
    proven: AtomicBool,
    /// Shared by all accounts.
    breakers: Arc<Breakers>,
    /// Whether `real` is set: calls of accounts without it need no lock.
    is_alias: AtomicBool,
    /// The account that Gemini charges for this one's calls.
    real: RwLock<Option<Arc<Account>>>,
    /// The models that Gemini has named for this one's calls, and when it was last followed.
    named: Mutex<Vec<(Arc<str>, Instant)>>,
    /// Whether calls are refused because too many accounts are open.
    turned_away: bool,
    /// When it was last asked for, in accounts opened before.
    used: AtomicU64,
    /// What another module keeps here.
    attached: OnceLock<Arc<dyn Any + Send + Sync>>,
    /// By the semaphore's number, the lines of calls that had a permit but no quota.
    returning: Mutex<HashMap<u64, Weak<sync::Mutex<()>>>>,
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
        let label = match &payer {
            Payer::Labelled(label) => Some(&**label),
            Payer::Key(_) => None,
        };
        // The plan's quotas are the model's.
        let planned = match counted {
            Counted::Model => plan.quotas(label, &model),
            Counted::Method => PlannedQuotas::default(),
        };
        let budget = store.budget(&payer, &model, planned, plan.minute);
        let account = Self::new(payer, model, planned, budget, ceiling);
        Self { breakers: Arc::clone(breakers), counted, ..account }
    }

    /// An account of which nothing is kept, and whose calls are refused.
    pub(super) fn turned_away(payer: Payer, model: Arc<str>) -> Self {
        let budget = LocalBudget::new(Quotas::default(), QuotaPlan::default().minute);
        let account = Self::new(payer, model, PlannedQuotas::default(), budget, 1);
        Self { turned_away: true, ..account }
    }

    fn new(
        payer: Payer,
        model: Arc<str>,
        planned: PlannedQuotas,
        budget: Arc<dyn Budget>,
        ceiling: usize,
    ) -> Self {
        Self {
            payer,
            model,
            counted: Counted::Model,
            planned: Mutex::new(planned),
            budget,
            concurrency: AdaptiveLimit::new(ceiling),
            proven: AtomicBool::new(false),
            breakers: Arc::default(),
            is_alias: AtomicBool::new(false),
            real: RwLock::default(),
            named: Mutex::default(),
            turned_away: false,
            used: AtomicU64::new(0),
            attached: OnceLock::new(),
            returning: Mutex::default(),
        }
    }

    /// Whether all calls are refused because too many accounts are open.
    pub(super) fn is_turned_away(&self) -> bool {
        self.turned_away
    }

    /// Whose it is.
    pub fn payer(&self) -> &Payer {
        &self.payer
    }

    /// The model.
    pub fn model(&self) -> &str {
        &self.model
    }

    /// What may be spent.
    pub fn budget(&self) -> &Arc<dyn Budget> {
        &self.budget
    }

    /// How many calls run at once.
    pub fn concurrency(&self) -> &Arc<AdaptiveLimit> {
        &self.concurrency
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

    /// Whether another account is charged for this one's calls.
    pub(super) fn is_alias(&self) -> bool {
        self.is_alias.load(Ordering::Acquire)
    }

    /// Whether this one's calls are charged to `account`.
    pub(super) fn is_charged_to(self: &Arc<Self>, account: &Arc<Self>) -> bool {
        if self.is_alias.load(Ordering::Acquire) {
            return Arc::ptr_eq(&self.charged(), account);
        }
        Arc::ptr_eq(self, account)
    }

    /// What another module keeps with the account, such as what it has learned of its calls. It is
    /// made when it is first asked for, is of one type, and is forgotten with the account.
    ///
    /// # Panics
    /// Where something of another type is kept here.
    pub fn attached<T: Default + Send + Sync + 'static>(&self) -> Arc<T> {
        let attached = self.attached.get_or_init(|| Arc::new(T::default()));
        Arc::clone(attached).downcast().expect("one type is kept with accounts")
    }

    /// The quotas that count now, each with where it comes from, and what is spent of them.
    ///
    /// # Errors
    /// [`StoreUnavailable`] where others share them and they cannot be reached.
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

    /// Takes over the quotas that Gemini named when it refused a call, lower ones and higher ones,
    /// and leaves the others as they are. What was set for this account by hand stays the most
    /// that it spends, to which the budget keeps: whoever set it may want to leave room for others.
    ///
    /// The budget is told each time, also of what this process has heard before: Redis may have
    /// forgotten it.
    pub fn correct(&self, named: Quotas) {
        if named == Quotas::default() {
            return;
        }
        self.budget.learn(named);
        // Gemini knows the key and the model, and that the quota is not 0; it has served nothing.
        let [_, model] = self.own_breakers();
        self.breakers.reset(&[model]);
        self.note_known();
    }

    /// Forgets what was learned from Gemini: quotas, pauses, a used-up day, how many calls run at
    /// once, and that another model is charged.
    pub(super) fn forget(&self) {
        self.charge(None);
        self.named().clear();
        self.budget.forget();
        self.concurrency.reset();
        self.breakers.reset(&self.own_breakers());
    }

    /// From now on this account's calls are charged to `real`, or to itself.
    pub(super) fn charge(&self, real: Option<Arc<Self>>) {
        let mut now = self.real.write().unwrap_or_else(PoisonError::into_inner);
        self.is_alias.store(real.is_some(), Ordering::Release);
        *now = real;
    }

    /// This account is charged for the calls of another: takes over what was spent, and what was set
    /// by hand. `heard` where another replica has found it out.
    pub(super) fn take_over(&self, alias: &Self, heard: bool) {
        let of_alias = *alias.planned();
        let mut planned = self.planned();
        *planned = planned.with_alias(of_alias);
        drop(planned);
        self.budget.take_over(alias.budget.hand_over(), heard);
    }

    /// Whether Gemini has named the model for this one's calls, and it was followed lately.
    pub(super) fn was_named(&self, model: &str) -> bool {
        let named = self.named();
        let known = named.iter().find(|(known, _)| **known == *model);
        known.is_some_and(|(_, followed_at)| followed_at.elapsed() < FOLLOW_AGAIN)
    }

    /// Gemini has named the model for this one's calls. Whether that is news.
    pub(super) fn is_named(&self, model: &str) -> bool {
        let (mut named, now) = (self.named(), Instant::now());
        if let Some((_, followed_at)) = named.iter_mut().find(|(known, _)| **known == *model) {
            *followed_at = now;
            return false;
        }
        if named.len() >= MOST_NAMED {
            named.remove(0);
        }
        named.push((model.into(), now));
        true
    }

    fn named(&self) -> MutexGuard<'_, Vec<(Arc<str>, Instant)>> {
        self.named.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether these are calls that Gemini counts apart from the model's.
    pub(super) fn is_apart(&self) -> bool {
        self.counted == Counted::Method
    }

    /// What can keep all calls of this account from being served.
    fn own_breakers(&self) -> [Breaker; 2] {
        let payer = self.payer.clone();
        [Breaker::Payer(payer.clone()), Breaker::Model(payer, Arc::clone(&self.model))]
    }

    /// Refuses a call that Gemini is certain to refuse, before it waits for anything. Calls that are
    /// counted apart may be free of charge, and are left to Gemini.
    pub(super) fn check(&self) -> Result<(), Tripped> {
        if !self.breakers.any() || self.is_apart() {
            return Ok(());
        }
        self.breakers.check(&self.own_breakers())
    }

    /// The same for a call that is about to start, which may be the one that finds out whether
    /// Gemini still refuses.
    pub(super) fn start(&self) -> Result<(), Tripped> {
        if !self.breakers.any() || self.is_apart() {
            return Ok(());
        }
        self.breakers.start(&self.own_breakers())
    }

    /// Why this account's calls are refused here, if they are, since when and for how long.
    pub fn refused_here(&self) -> Option<RefusedHere> {
        if !self.breakers.any() || self.is_apart() {
            return None;
        }
        self.breakers.refused(&self.own_breakers())
    }

    /// Gemini says that the payer has nothing left to pay with: its calls are refused here, of
    /// every model, but for one every few minutes.
    pub(super) fn is_unfunded(&self) {
        if self.breakers.trip(Breaker::Payer(self.payer.clone())) {
            tracing::error!(
                payer = %self.payer,
                "Gemini says that this account has nothing left to pay with; its calls are \
                 refused until somebody adds credits or raises its cap"
            );
        }
    }

    /// Gemini says that a quota of this account is 0: its calls are refused here, but for one every
    /// few minutes.
    pub(super) fn is_without_quota(&self) {
        let breaker = Breaker::Model(self.payer.clone(), Arc::clone(&self.model));
        if self.breakers.trip(breaker) {
            tracing::warn!(
                payer = %self.payer,
                model = &*self.model,
                "Gemini says that this key's quota for the model is 0"
            );
        }
    }

    /// Gemini has accepted a call of this account.
    pub(super) fn prove(&self) {
        if self.breakers.any() && !self.is_apart() && self.breakers.reset(&self.own_breakers()) {
            tracing::info!(payer = %self.payer, model = &*self.model, "Gemini serves it again");
        }
        self.note_known();
    }

    /// Gemini knows the key and the model: nobody made them up.
    fn note_known(&self) {
        // Read first: a store by every call would take the line from the other processors.
        if !self.proven.load(Ordering::Relaxed) {
            self.proven.store(true, Ordering::Relaxed);
            self.budget.prove();
        }
    }

    /// Whether Gemini has ever accepted a call of this account.
    pub(super) fn is_proven(&self) -> bool {
        self.proven.load(Ordering::Relaxed)
    }

    /// Notes that it was asked for when so many accounts had been opened.
    pub(super) fn touch(&self, opened: u64) {
        if self.used.load(Ordering::Relaxed) != opened {
            self.used.store(opened, Ordering::Relaxed);
        }
    }

    /// When it was last asked for: greater is later.
    pub(super) fn last_used(&self) -> u64 {
        self.used.load(Ordering::Relaxed)
    }

    /// Whether nothing would be lost with it but what was learned of the length of texts, and that
    /// another account is charged of which nothing would be lost either: the next answer says so
    /// again.
    pub(super) fn is_blank(&self) -> bool {
        let real = self.real.read().unwrap_or_else(PoisonError::into_inner).clone();
        self.concurrency.is_at_rest()
            && self.budget.is_blank()
            && real.is_none_or(|real| real.is_blank())
    }

    /// The line of the calls that had a permit of the semaphore and no quota.
    pub(super) fn returning(&self, semaphore: u64) -> Arc<sync::Mutex<()>> {
        let mut lines = self.returning.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(line) = lines.get(&semaphore).and_then(Weak::upgrade) {
            return line;
        }
        lines.retain(|_, line| line.strong_count() > 0);
        let line = Arc::default();
        lines.insert(semaphore, Arc::downgrade(&line));
        line
    }

    fn planned(&self) -> MutexGuard<'_, PlannedQuotas> {
        self.planned.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
