//! The accounts that calls are made for, and when they are forgotten.
//!
//! | file | what is in it |
//! |---|---|
//! | `account` | one key and model: a budget and an adaptive limit |
//! | `replan` | new settings while calls run |
//! | `breakers` | calls that Gemini is certain to refuse until somebody pays or raises a quota |

mod account;
mod breakers;
mod replan;
#[cfg(test)]
mod tests;

use std::sync::{Arc, Mutex, PoisonError, RwLock, RwLockReadGuard, Weak};
use std::time::Duration;

use futures_util::future::try_join_all;
use hashbrown::{Equivalent, HashMap};
use tokio::time::Instant;

use super::budget::{BudgetAdmin, ChargedModel};
use super::model::{
    BudgetUsage, EVERY_MODEL, Payer, PayerRef, Planned, QuotaKind, QuotaPlan, Quotas,
    StoreUnavailable,
};
use super::store::Store;
use account::Counted;
use breakers::Breakers;

pub use account::Account;
#[cfg(test)]
pub(super) use breakers::PROBE_INTERVAL;
pub use breakers::{RefusedHere, Tripped};

/// How many accounts that Gemini never accepted are kept while no call holds them. Callers can make
/// up keys and models.
const MAX_UNPROVEN: usize = 4096;

/// How many proven accounts are kept while no call holds them and there is nothing to remember.
const MAX_IDLE: usize = 4096;

/// How many proven accounts with something to remember are kept. Beyond that, new ones are refused
/// rather than an old one forgotten. An account takes about 2 KB, and up to 80 KB if its minute is
/// full.
const MAX_PROVEN: usize = 16_384;

/// How long a full table is left alone before it is checked again.
const RECHECK_AFTER: Duration = Duration::from_secs(1);

/// The longest name of a model, in bytes.
const MAX_NAME: usize = 128;

/// All accounts that calls were made for.
///
/// Accounts that Gemini never accepted have a bound of their own, so that made-up keys and models
/// displace only one another. A proven account is forgotten only if nothing is spent, paused, used up
/// or learned; the least recently used goes first.
#[derive(Debug)]
pub struct Accounts {
    store: Arc<dyn Store>,
    open: RwLock<Open>,
    /// Shared by all accounts.
    breakers: Arc<Breakers>,
    /// Held while two accounts are joined, so that aliases form no cycle.
    joining: Mutex<()>,
}

/// Where the name of the charged model comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NamedBy {
    /// An answer from Gemini.
    Answer,
    /// A refusal by Gemini, which says whose quota is used up.
    Refusal,
    /// Another replica.
    Replica,
}

/// What a payer has spent on all models.
#[derive(Debug, Clone)]
pub struct Spending {
    /// Whom Gemini charges.
    pub payer: Payer,
    /// The limit of the settings.
    pub planned: Option<Planned>,
    /// The usage.
    pub usage: BudgetUsage,
}

impl Spending {
    /// Whether a limit is set or known.
    fn is_limited(&self) -> bool {
        self.planned.is_some() || self.usage[QuotaKind::SpendPerTenMinutes].limit.is_some()
    }
}

/// The payer and the model of an account.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Name {
    payer: Payer,
    model: Arc<str>,
}

/// The same, borrowed: nothing is copied to find an account.
#[derive(Debug, Clone, Copy, Hash)]
struct NameRef<'a> {
    payer: PayerRef<'a>,
    model: &'a str,
}

impl Equivalent<Name> for NameRef<'_> {
    fn equivalent(&self, name: &Name) -> bool {
        self.payer == name.payer.borrowed() && *self.model == *name.model
    }
}

/// How the payer of a call is given.
#[derive(Debug, Clone, Copy)]
enum PaidBy<'a> {
    /// By the SHA-256 of the key.
    Key(&'a [u8; 32]),
    Payer(&'a Payer),
}

impl<'a> PaidBy<'a> {
    /// The payer, by the labels of the settings.
    fn payer(self, plan: &'a QuotaPlan) -> PayerRef<'a> {
        match self {
            Self::Key(sha256) => payer(plan, sha256),
            Self::Payer(payer) => payer.borrowed(),
        }
    }
}

/// The accounts, by payer and model, and the settings that hold for them.
#[derive(Debug, Default)]
struct Open {
    plan: Arc<QuotaPlan>,
    /// The highest limit on concurrent calls of one account.
    ceiling: usize,
    // The hash is quick, and its seed is random. Callers choose the models' names. Names that collide would
    // only make lookups slower, in a table of bounded size.
    accounts: HashMap<Name, Arc<Account>>,
    /// The spend of the payers that have a limit and an account. Entries of closed accounts are removed
    /// when there are many.
    spend: HashMap<Payer, Weak<dyn BudgetAdmin>>,
    /// How many were ever opened.
    opened: u64,
    /// An upper bound of the number of unproven accounts: those at the last count, and those opened
    /// since.
    unproven: usize,
    /// The bound at which they are counted again.
    count_at: usize,
    /// When the table was last full of accounts that cannot be forgotten.
    full_at: Option<Instant>,
}

impl Accounts {
    pub(super) fn new(store: Arc<dyn Store>, plan: QuotaPlan, ceiling: usize) -> Self {
        let plan = Arc::new(plan);
        let open = Open { plan, ceiling, count_at: MAX_UNPROVEN, ..Open::default() };
        Self { store, open: RwLock::new(open), breakers: Arc::default(), joining: Mutex::default() }
    }

    /// The account of a key and of calls that Gemini counts apart from the model's generating calls,
    /// by their method, such as `countTokens`. Its quotas are unknown until Gemini names them.
    pub fn apart(&self, key_sha256: &[u8; 32], model: &str, method: &str) -> Arc<Account> {
        let name = format!("{model}:{method}");
        self.find_or_open(PaidBy::Key(key_sha256), &name, Counted::Method)
    }

    /// The account of a key, given by its SHA-256, and a model. It is opened if there is none. If the
    /// table is full, the returned account refuses its calls.
    pub fn of(&self, key_sha256: &[u8; 32], model: &Arc<str>) -> Arc<Account> {
        self.find_or_open(PaidBy::Key(key_sha256), model, Counted::Model)
    }

    /// The limit of the tokens that the batch jobs of a payer and a model hold.
    pub(super) fn enqueued_limit(&self, payer: &Payer, model: &str) -> Option<Planned> {
        let label = match payer {
            Payer::Labelled(label) => Some(&**label),
            Payer::Key(_) => None,
        };
        self.open().plan.quotas(label, model)[QuotaKind::EnqueuedTokens]
    }

    /// Whom Gemini charges for the calls of a key.
    pub(super) fn payer(&self, key_sha256: &[u8; 32]) -> Payer {
        payer(&self.open().plan, key_sha256).into()
    }

    fn find_or_open(&self, paid_by: PaidBy<'_>, model: &str, counted: Counted) -> Arc<Account> {
        let open = self.open();
        if let Some(account) = open.account(paid_by, model) {
            account.touch(open.opened);
            return Arc::clone(account);
        }
        drop(open);
        let mut open = self.open.write().unwrap_or_else(PoisonError::into_inner);
        // It may have been opened meanwhile, or the settings have changed.
        if let Some(account) = open.account(paid_by, model) {
            return Arc::clone(account);
        }
        let payer = Payer::from(paid_by.payer(&open.plan));
        let name = Name { payer, model: model.into() };
        let Name { payer, model } = name.clone();
        if !open.has_room() {
            return Arc::new(Account::rejected(payer, model));
        }
        let (store, breakers) = (&*self.store, &self.breakers);
        let spend = match counted {
            Counted::Model => open.spend_of(&payer, store),
            // What Gemini counts apart costs nothing, or later.
            Counted::Method => None,
        };
        let Open { plan, ceiling, .. } = &*open;
        let account = Account::open(store, payer, model, counted, plan, *ceiling, breakers);
        let account = Arc::new(account.spending(spend));
        open.insert(name, Arc::clone(&account));
        account
    }

    /// The highest limit on concurrent calls of one account.
    pub(super) fn ceiling(&self) -> usize {
        self.open().ceiling
    }

    fn open(&self) -> RwLockReadGuard<'_, Open> {
        self.open.read().unwrap_or_else(PoisonError::into_inner)
    }

    /// Notes that Gemini charges the calls of `account` to another model, `counts_as`. From now on
    /// they count in that model's account with the same payer, and what was spent within the minute
    /// and today moves there. Of the limits set by hand for either, the lowest holds for both
    /// together. Calls in flight settle where they were admitted.
    ///
    /// A text that cannot be a model's name is ignored, and so is a name that would form a cycle. An
    /// answer that names a model which was named before, within the last hour, is ignored too: if
    /// Google routes an alias to several models, the alias stays with one of them.
    pub fn alias(&self, account: &Arc<Account>, counts_as: &str, named_by: NamedBy) {
        let name = counts_as.strip_prefix("models/").unwrap_or(counts_as);
        if name == account.model() || account.is_apart() || !is_model(name) || account.is_rejected()
        {
            return;
        }
        if account.charged().model() == name
            || named_by == NamedBy::Answer && account.was_named(name)
        {
            return;
        }
        let _joining = self.joining.lock().unwrap_or_else(PoisonError::into_inner);
        let named = self.find_or_open(PaidBy::Payer(account.payer()), name, Counted::Model);
        if named_by == NamedBy::Replica && named.is_charged_to(account) {
            // This replica had found the opposite before.
            named.charge(None);
        }
        let real = named.charged();
        let is_known = Arc::ptr_eq(&real, &account.charged());
        let is_new = account.note_named(name);
        if is_known || Arc::ptr_eq(&real, account) || real.is_rejected() {
            return;
        }
        if is_new {
            let (payer, model) = (account.payer(), account.model());
            tracing::info!(%payer, model, counts_as = real.model(), "Gemini charges another model");
        }
        // Gemini knows both models.
        account.prove();
        real.prove();
        account.charge(Some(Arc::clone(&real)));
        real.transfer_in(account, named_by == NamedBy::Replica);
    }

    /// The account that is charged for this one's calls instead of itself, if any, also if another
    /// replica reported it.
    pub(super) fn charged_instead(&self, account: &Arc<Account>) -> Option<Arc<Account>> {
        self.apply_reports(account);
        if !account.is_alias() {
            return None;
        }
        let charged = account.charged();
        self.apply_reports(&charged);
        Some(charged.charged())
    }

    /// Whether the calls of `asked` are charged to `account`.
    pub(super) fn is_charged(&self, asked: &Arc<Account>, account: &Arc<Account>) -> bool {
        self.apply_reports(asked);
        asked.is_charged_to(account)
    }

    /// Applies what another replica reported about the charged model.
    fn apply_reports(&self, account: &Arc<Account>) {
        match account.budget().take_charged_model() {
            None => {}
            Some(ChargedModel::Other(model)) => self.alias(account, &model, NamedBy::Replica),
            Some(ChargedModel::Own) => account.charge(None),
        }
    }

    /// Starts no call of a payer until then, because Gemini refused one for what the payer spends on
    /// all models together. Accounts that Gemini never served are not paused: Gemini refuses them
    /// itself if it has to.
    pub fn pause_payer(&self, account: &Account, until: Instant) {
        account.pause_until(until);
        let quota = Some(QuotaKind::SpendPerTenMinutes);
        let open = self.open();
        let of_payer = open.accounts.values().filter(|other| {
            other.payer() == account.payer() && other.is_proven() && !other.is_apart()
        });
        let of_payer: Vec<_> = of_payer.cloned().collect();
        drop(open);
        of_payer.iter().for_each(|other| other.budget().pause_until(until, quota));
    }

    /// Forgets what was learned about a model and a payer, given by its label or the first digits of
    /// the key's SHA-256, as it is displayed. Returns false if no such account is open.
    pub fn forget(&self, payer: &str, model: &str) -> bool {
        let all = self.all();
        let matches = |account: &&Arc<Account>| {
            account.model() == model && account.payer().to_string() == payer
        };
        let mut found = false;
        for account in all.iter().filter(matches) {
            account.forget();
            found = true;
        }
        found
    }

    /// What at most `most` payers with a limit on their spend have spent on all models, by name.
    ///
    /// # Errors
    /// [`StoreUnavailable`] if the limits are shared and cannot be reached.
    pub async fn spending(&self, most: usize) -> Result<Vec<Spending>, StoreUnavailable> {
        let budgets = self.spend_budgets(most).into_iter().map(async |(payer, budget)| {
            let planned = self.open().plan.of_payer(payer.label())[QuotaKind::SpendPerTenMinutes];
            Ok(Spending { payer, planned, usage: budget.usage().await? })
        });
        let mut all = try_join_all(budgets).await?;
        all.retain(Spending::is_limited);
        Ok(all)
    }

    fn spend_budgets(&self, most: usize) -> Vec<(Payer, Arc<dyn BudgetAdmin>)> {
        let open = self.open();
        let budgets = open.spend.iter();
        let mut budgets: Vec<_> = budgets
            .filter_map(|(payer, budget)| Some((payer.clone(), budget.upgrade()?)))
            .collect();
        drop(open);
        budgets.sort_by(|(a, _), (b, _)| a.cmp(b));
        budgets.truncate(most);
        budgets
    }

    /// The number of open accounts.
    pub fn count(&self) -> usize {
        self.open().accounts.len()
    }

    /// The accounts whose limit on concurrent calls was lowered or may still rise.
    pub fn lowered(&self) -> Vec<Arc<Account>> {
        let open = self.open();
        let lowered = open.accounts.values().filter(|account| !account.concurrency().is_at_rest());
        lowered.cloned().collect()
    }

    /// At most `most` accounts that Gemini has accepted, by payer and model. Recently used ones are
    /// preferred.
    pub fn proven(&self, most: usize) -> Vec<Arc<Account>> {
        let mut proven = self.at_most(most);
        proven.retain(|account| account.is_proven());
        proven
    }

    /// All accounts, by payer and model.
    pub fn all(&self) -> Vec<Arc<Account>> {
        self.at_most(usize::MAX)
    }

    /// At most `most` accounts, by payer and model. Proven accounts and recently used ones are
    /// preferred.
    pub fn at_most(&self, most: usize) -> Vec<Arc<Account>> {
        let open = self.open();
        let mut all: Vec<_> = open.accounts.values().cloned().collect();
        drop(open);
        if all.len() > most {
            all.sort_by_cached_key(|account| {
                std::cmp::Reverse((account.is_proven(), account.last_used()))
            });
            all.truncate(most);
        }
        all.sort_by(|a, b| (a.payer(), a.model()).cmp(&(b.payer(), b.model())));
        all
    }
}

/// Whom Gemini charges for the calls of a key, by the labels of the settings.
fn payer<'a>(plan: &'a QuotaPlan, key_sha256: &'a [u8; 32]) -> PayerRef<'a> {
    match plan.label(key_sha256) {
        Some(label) => PayerRef::Labelled(label),
        None => PayerRef::Key(key_sha256),
    }
}

/// Whether a text from upstream can be the name of a model.
fn is_model(name: &str) -> bool {
    name.len() <= MAX_NAME
        && name.starts_with(|first: char| first.is_ascii_alphanumeric())
        && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"._-".contains(&byte))
}

impl Open {
    fn account(&self, paid_by: PaidBy<'_>, model: &str) -> Option<&Arc<Account>> {
        self.accounts.get(&NameRef { payer: paid_by.payer(&self.plan), model })
    }

    /// The budget of what a payer spends on all models, if there is a limit. All its accounts share it.
    fn spend_of(&mut self, payer: &Payer, store: &dyn Store) -> Option<Arc<dyn BudgetAdmin>> {
        let planned = self.plan.of_payer(payer.label());
        if !Quotas::from(planned).is_any() {
            return None;
        }
        if let Some(known) = self.spend.get(payer).and_then(Weak::upgrade) {
            return Some(known);
        }
        if self.spend.len() == self.spend.capacity() {
            self.spend.retain(|_, budget| budget.strong_count() > 0);
        }
        let budget = store.budget(payer, EVERY_MODEL, planned, self.plan.ten_minutes());
        self.spend.insert(payer.clone(), Arc::downgrade(&budget));
        Some(budget)
    }

    fn insert(&mut self, name: Name, account: Arc<Account>) {
        self.opened += 1;
        self.unproven += 1;
        account.touch(self.opened);
        self.accounts.insert(name, account);
    }

    /// Makes room for one more account if too many are open. Returns whether there is room.
    fn has_room(&mut self) -> bool {
        if self.full_at.is_some_and(|full_at| full_at.elapsed() < RECHECK_AFTER) {
            return false;
        }
        if self.full_at.is_some() || self.unproven >= self.count_at {
            self.make_room();
        }
        self.full_at.is_none()
    }

    /// Closes unproven accounts until half of their bound is left, and proven ones with nothing to
    /// remember. Accounts that a call holds stay.
    fn make_room(&mut self) {
        let (proven, unproven): (Vec<_>, Vec<_>) =
            self.accounts.iter().partition(|(_, account)| account.is_proven());
        let [proven_count, unproven_count] = [proven.len(), unproven.len()];
        let blank = |account: &Arc<Account>| !is_held(account) && account.is_blank();
        let surplus = proven_count.saturating_sub(MAX_IDLE);
        let closed = if surplus > 0 { least_used(proven, surplus, blank) } else { Vec::new() };
        let surplus = unproven_count.saturating_sub(MAX_UNPROVEN / 2);
        let closed_unproven = least_used(unproven, surplus, |account| !is_held(account));
        let proven = proven_count - closed.len();
        self.unproven = unproven_count - closed_unproven.len();
        for name in closed.iter().chain(&closed_unproven) {
            self.accounts.remove(name);
        }
        // If calls hold most of them, the next count is put off, so that its cost per opened account
        // stays small.
        self.count_at = (2 * self.unproven).max(MAX_UNPROVEN);
        let was_full = self.full_at.is_some();
        self.full_at = (proven >= MAX_PROVEN).then(Instant::now);
        if self.full_at.is_some() && !was_full {
            tracing::warn!(accounts = proven, "too many accounts are in use: new ones are refused");
        }
    }
}

/// Whether a call or another account refers to the account.
fn is_held(account: &Arc<Account>) -> bool {
    Arc::strong_count(account) > 1
}

/// The names of at most `most` accounts that may be closed, the least recently used first.
fn least_used(
    mut accounts: Vec<(&Name, &Arc<Account>)>,
    most: usize,
    may_close: impl Fn(&Arc<Account>) -> bool,
) -> Vec<Name> {
    accounts.sort_by_key(|(_, account)| account.last_used());
    let closed = accounts.into_iter().filter(|(_, account)| may_close(account));
    closed.take(most).map(|(name, _)| name.clone()).collect()
}
