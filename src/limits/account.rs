//! What one key may ask of one model.

use std::collections::HashMap;
use std::fmt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};

use tokio::time::Instant;

use super::adaptive::AdaptiveLimit;
use super::breakers::{Breaker, Breakers, Tripped};
use super::budget::{Budget, BudgetUsage, Quotas};
use super::plan::{Planned, PlannedQuotas, QuotaPlan, Source};
use super::semaphore::OutOfReach;
use super::store::Store;

/// More accounts than this are kept only while calls hold them: callers make up keys and models.
const MAX_ACCOUNTS: usize = 4096;

/// Who pays, without the key: what all keys of one project have in common, or what tells one key
/// from all others.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Payer {
    /// All keys of this label.
    Labelled(Arc<str>),
    /// The key with this SHA-256.
    Key([u8; 32]),
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

/// One key and one model: the quotas that count for them, and how many calls run at once.
#[derive(Debug)]
pub struct Account {
    payer: Payer,
    model: Arc<str>,
    /// What the settings say.
    planned: PlannedQuotas,
    /// What counts: what the settings say until Gemini knows better.
    quotas: Mutex<PlannedQuotas>,
    budget: Arc<dyn Budget>,
    concurrency: Arc<AdaptiveLimit>,
    /// Whether a call of this account has ever succeeded.
    proven: AtomicBool,
    /// Shared by all accounts.
    breakers: Arc<Breakers>,
}

impl Account {
    fn open(
        store: &dyn Store,
        payer: Payer,
        model: Arc<str>,
        plan: &QuotaPlan,
        ceiling: usize,
        breakers: &Arc<Breakers>,
    ) -> Self {
        let label = match &payer {
            Payer::Labelled(label) => Some(&**label),
            Payer::Key(_) => None,
        };
        // What the plan says is about generating.
        let is_apart = model.contains(':');
        let planned = if is_apart { PlannedQuotas::default() } else { plan.quotas(label, &model) };
        let budget = store.budget(&payer, &model, planned.into(), plan.minute);
        Self {
            payer,
            model,
            planned,
            quotas: Mutex::new(planned),
            budget,
            concurrency: AdaptiveLimit::new(ceiling),
            proven: AtomicBool::new(false),
            breakers: Arc::clone(breakers),
        }
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

    /// The quotas that count now, each with where it comes from, and what is spent of them.
    ///
    /// # Errors
    /// [`OutOfReach`] where others share them and they cannot be reached.
    pub async fn quotas(&self) -> Result<(PlannedQuotas, BudgetUsage), OutOfReach> {
        let usage = self.budget.usage().await?;
        let mut quotas = *self.counting();
        let PlannedQuotas { requests_per_minute, input_tokens_per_minute, requests_per_day } =
            &mut quotas;
        for (quota, usage) in [
            (requests_per_minute, usage.requests_per_minute),
            (input_tokens_per_minute, usage.input_tokens_per_minute),
            (requests_per_day, usage.requests_per_day),
        ] {
            if quota.map(|quota| quota.limit) != usage.limit {
                // Gemini has told another replica.
                *quota = usage.limit.map(|limit| Planned { limit, source: Source::Gemini });
            }
        }
        Ok((quotas, usage))
    }

    /// Takes over the quotas that Gemini named when it refused a call, lower ones and higher ones,
    /// and leaves the others as they are. What was set for this account by hand stays the most
    /// that it spends: whoever set it may want to leave room for others.
    pub fn correct(&self, named: Quotas) {
        let mut quotas = self.counting();
        let before = *quotas;
        let PlannedQuotas { requests_per_minute, input_tokens_per_minute, requests_per_day } =
            &mut *quotas;
        for (quota, planned, named) in [
            (requests_per_minute, self.planned.requests_per_minute, named.requests_per_minute),
            (
                input_tokens_per_minute,
                self.planned.input_tokens_per_minute,
                named.input_tokens_per_minute,
            ),
            (requests_per_day, self.planned.requests_per_day, named.requests_per_day),
        ] {
            let Some(limit) = named else { continue };
            let by_hand = planned.filter(|planned| planned.source == Source::Setting);
            let told = Planned { limit, source: Source::Gemini };
            *quota = Some(by_hand.filter(|by_hand| by_hand.limit <= limit).unwrap_or(told));
        }
        if *quotas != before {
            let quotas = Quotas::from(*quotas);
            tracing::info!(payer = %self.payer, model = &*self.model, ?quotas, "limits corrected");
            self.budget.set(quotas);
        }
    }

    /// Whether these are calls that Gemini counts apart from the model's.
    fn is_apart(&self) -> bool {
        self.model.contains(':')
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

    /// A call of this account succeeded.
    pub(super) fn prove(&self) {
        if self.breakers.any() && !self.is_apart() && self.breakers.reset(&self.own_breakers()) {
            tracing::info!(payer = %self.payer, model = &*self.model, "Gemini serves it again");
        }
        // Read first: a store by every call would take the line from the other processors.
        if !self.proven.load(Ordering::Relaxed) {
            self.proven.store(true, Ordering::Relaxed);
            self.budget.prove();
        }
    }

    fn counting(&self) -> MutexGuard<'_, PlannedQuotas> {
        self.quotas.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The accounts, by payer and model.
type Open = HashMap<(Payer, Arc<str>), Arc<Account>>;

/// All accounts that calls were made for.
#[derive(Debug)]
pub struct Accounts {
    store: Arc<dyn Store>,
    plan: QuotaPlan,
    /// How many calls of one account may run at once, at most.
    ceiling: usize,
    open: RwLock<Open>,
    breakers: Arc<Breakers>,
}

impl Accounts {
    pub(super) fn new(store: Arc<dyn Store>, plan: QuotaPlan, ceiling: usize) -> Self {
        Self { store, plan, ceiling, open: RwLock::default(), breakers: Arc::default() }
    }

    /// The account of a key and those calls of a model that Gemini counts apart, by the name of
    /// their method, such as `countTokens`. No quotas are known of it until Gemini names some.
    pub fn apart(&self, key_sha256: &[u8; 32], model: &str, method: &str) -> Arc<Account> {
        self.of(key_sha256, &format!("{model}:{method}").into())
    }

    /// The account of a key, told by its SHA-256, and a model; opened where there is none.
    pub fn of(&self, key_sha256: &[u8; 32], model: &Arc<str>) -> Arc<Account> {
        let payer = match self.plan.label(key_sha256) {
            Some(label) => Payer::Labelled(Arc::clone(label)),
            None => Payer::Key(*key_sha256),
        };
        let name = (payer, Arc::clone(model));
        let open = self.open.read().unwrap_or_else(PoisonError::into_inner);
        if let Some(account) = open.get(&name) {
            return Arc::clone(account);
        }
        drop(open);
        let mut open = self.open.write().unwrap_or_else(PoisonError::into_inner);
        if open.len() >= MAX_ACCOUNTS && !open.contains_key(&name) {
            make_room(&mut open);
        }
        let account = open.entry(name).or_insert_with_key(|(payer, model)| {
            Arc::new({
                let (payer, model) = (payer.clone(), Arc::clone(model));
                let (plan, ceiling) = (&self.plan, self.ceiling);
                Account::open(&*self.store, payer, model, plan, ceiling, &self.breakers)
            })
        });
        Arc::clone(account)
    }

    /// Keeps back all that a payer asks for until then, because Gemini refused a call for what the
    /// payer spends on all models together. Accounts that Gemini never served find out by themselves.
    pub fn pause_payer(&self, account: &Account, until: Instant) {
        account.budget.pause_until(until);
        let open = self.open.read().unwrap_or_else(PoisonError::into_inner);
        let of_payer = open.values().filter(|other| {
            other.payer == account.payer
                && other.proven.load(Ordering::Relaxed)
                && !other.is_apart()
        });
        let of_payer: Vec<_> = of_payer.cloned().collect();
        drop(open);
        of_payer.iter().for_each(|other| other.budget.pause_until(until));
    }

    /// Gemini counts the calls of an account for the model `counts_as`, which is not the name that
    /// they are asked by: an alias, a preview, or a deprecated model that is routed to another.
    /// Told with each such call.
    pub fn alias(&self, account: &Arc<Account>, counts_as: &str) {
        tracing::debug!(payer = %account.payer, model = &*account.model, counts_as, "counts as another");
    }

    /// All of them, in the order of their names.
    pub fn all(&self) -> Vec<Arc<Account>> {
        let open = self.open.read().unwrap_or_else(PoisonError::into_inner);
        let mut all: Vec<_> = open.values().cloned().collect();
        drop(open);
        all.sort_by(|a, b| (&a.payer, &a.model).cmp(&(&b.payer, &b.model)));
        all
    }
}

/// Closes accounts that no call holds: those to which Gemini never gave an answer, made up by
/// callers; and where that is not enough, all.
fn make_room(open: &mut Open) {
    let is_held = |account: &Arc<Account>| Arc::strong_count(account) > 1;
    open.retain(|_, account| is_held(account) || account.proven.load(Ordering::Relaxed));
    if open.len() >= MAX_ACCOUNTS {
        open.retain(|_, account| is_held(account));
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt;

    use super::*;
    use crate::limits::plan::Tier;
    use crate::limits::store::LocalStore;

    fn accounts() -> Accounts {
        Accounts::new(LocalStore::new(10), QuotaPlan::default(), 10)
    }

    fn model(name: &str) -> Arc<str> {
        name.into()
    }

    fn requests(limit: u64) -> Quotas {
        Quotas { requests_per_minute: Some(limit), ..Quotas::default() }
    }

    #[test]
    fn what_is_counted_apart_spends_nothing_of_the_model() {
        let mut plan = QuotaPlan::default();
        plan.tier = Some(Tier::Free);
        let accounts = Accounts::new(LocalStore::new(1), plan, 1);
        let model = accounts.of(&[1; 32], &model("a"));
        let apart = accounts.apart(&[1; 32], "a", "countTokens");
        assert!(!Arc::ptr_eq(&model, &apart));
        assert_ne!(*model.counting(), PlannedQuotas::default());
        assert_eq!(*apart.counting(), PlannedQuotas::default());
    }

    #[test]
    fn each_key_and_each_model_has_an_account_of_its_own() {
        let accounts = accounts();
        let first = accounts.of(&[1; 32], &model("a"));
        assert!(Arc::ptr_eq(&first, &accounts.of(&[1; 32], &model("a"))));
        assert!(!Arc::ptr_eq(&first, &accounts.of(&[1; 32], &model("b"))));
        assert!(!Arc::ptr_eq(&first, &accounts.of(&[2; 32], &model("a"))));
        assert_eq!(first.payer().to_string(), "01010101");
        assert_eq!(accounts.all().len(), 3);
    }

    #[test]
    fn gemini_corrects_the_quota_it_names_down_and_up_and_no_other() {
        let account = accounts().of(&[1; 32], &model("a"));
        for limit in [60, 20, 300] {
            account.correct(requests(limit));
            let (quotas, usage) = account.quotas().now_or_never().expect("at once").unwrap();
            let told = Planned { limit, source: Source::Gemini };
            assert_eq!(quotas.requests_per_minute, Some(told));
            assert_eq!(quotas.input_tokens_per_minute, None);
            assert_eq!(usage.requests_per_minute.limit, Some(limit));
        }
    }

    #[test]
    fn made_up_keys_do_not_fill_the_memory_and_close_no_account_in_use() {
        let accounts = accounts();
        let proven = accounts.of(&[1; 32], &model("a"));
        proven.prove();
        drop(proven);
        let held = accounts.of(&[2; 32], &model("a"));
        for n in 0..3 * MAX_ACCOUNTS {
            let _ = accounts.of(&[3; 32], &model(&n.to_string()));
        }
        let all = accounts.all();
        assert!(all.len() <= MAX_ACCOUNTS);
        assert!(all.iter().any(|account| Arc::ptr_eq(account, &held)));
        assert!(all.iter().any(|account| account.payer == Payer::Key([1; 32])));
    }
}
