//! All accounts that calls were made for, and which of them are forgotten.

#[cfg(test)]
mod tests;

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::Duration;

use tokio::time::Instant;

use super::account::{Account, Counted, Payer};
use super::breakers::Breakers;
use super::budget::Charged;
use super::plan::QuotaPlan;
use super::store::Store;

/// More accounts that Gemini never accepted are kept only while calls hold them: callers make up
/// keys and models.
const MAX_UNPROVEN: usize = 4096;

/// More proven accounts are kept only while calls hold them or there is something to remember.
const MAX_IDLE: usize = 4096;

/// More proven accounts than this, all with something to remember, and new ones are refused rather
/// than an old one forgotten: about 2 KB each, and up to 80 KB where a window is full.
const MAX_PROVEN: usize = 16_384;

/// How long a full table is left alone before it is looked at again.
const LOOK_AGAIN: Duration = Duration::from_secs(1);

/// The most characters of a model's name.
const MAX_NAME: usize = 128;

/// All accounts that calls were made for.
///
/// Those that Gemini never accepted are bounded by themselves, so that made-up keys and models
/// push out one another and nothing else. A proven account is forgotten only where nothing is spent,
/// paused, used up or learned, the least recently used first.
#[derive(Debug)]
pub struct Accounts {
    store: Arc<dyn Store>,
    plan: QuotaPlan,
    /// How many calls of one account may run at once, at most.
    ceiling: usize,
    open: RwLock<Open>,
    /// Which of them Gemini is certain to refuse.
    breakers: Arc<Breakers>,
    /// Held by whoever joins two accounts, so that no circle arises.
    joining: Mutex<()>,
}

/// What has named the model that is charged.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NamedBy {
    /// An answer of Gemini's.
    Answer,
    /// A refusal of Gemini's, which says whose quota is used up.
    Refusal,
    /// Another replica, which has found it out.
    Replica,
}

/// The payer and the model of an account.
type Name = (Payer, Arc<str>);

/// The accounts, by payer and model.
#[derive(Debug, Default)]
struct Open {
    accounts: HashMap<Name, Arc<Account>>,
    /// How many were ever opened.
    opened: u64,
    /// How many may be unproven: those that were so when this was last counted, and those opened
    /// since.
    unproven: usize,
    /// With how many of those they are counted again.
    count_at: usize,
    /// When the table was last found full of accounts that cannot be forgotten.
    full_at: Option<Instant>,
}

impl Accounts {
    pub(super) fn new(store: Arc<dyn Store>, plan: QuotaPlan, ceiling: usize) -> Self {
        let open = Open { count_at: MAX_UNPROVEN, ..Open::default() };
        Self {
            store,
            plan,
            ceiling,
            open: RwLock::new(open),
            breakers: Arc::default(),
            joining: Mutex::default(),
        }
    }

    /// The account of a key and those calls of a model that Gemini counts apart, by the name of
    /// their method, such as `countTokens`. No quotas are known of it until Gemini names some.
    pub fn apart(&self, key_sha256: &[u8; 32], model: &str, method: &str) -> Arc<Account> {
        let name = format!("{model}:{method}").into();
        self.find_or_open(self.payer(key_sha256), name, Counted::Method)
    }

    /// The account of a key, told by its SHA-256, and a model; opened where there is none. Where
    /// the table is full, one whose calls are refused.
    pub fn of(&self, key_sha256: &[u8; 32], model: &Arc<str>) -> Arc<Account> {
        self.find_or_open(self.payer(key_sha256), Arc::clone(model), Counted::Model)
    }

    fn payer(&self, key_sha256: &[u8; 32]) -> Payer {
        match self.plan.label(key_sha256) {
            Some(label) => Payer::Labelled(Arc::clone(label)),
            None => Payer::Key(*key_sha256),
        }
    }

    fn find_or_open(&self, payer: Payer, model: Arc<str>, counted: Counted) -> Arc<Account> {
        let name = (payer, model);
        let open = self.open.read().unwrap_or_else(PoisonError::into_inner);
        if let Some(account) = open.accounts.get(&name) {
            account.touch(open.opened);
            return Arc::clone(account);
        }
        drop(open);
        let mut open = self.open.write().unwrap_or_else(PoisonError::into_inner);
        if let Some(account) = open.accounts.get(&name) {
            return Arc::clone(account);
        }
        let (payer, model) = name.clone();
        if !open.has_room() {
            return Arc::new(Account::turned_away(payer, model));
        }
        let (plan, ceiling) = (&self.plan, self.ceiling);
        let (store, breakers) = (&*self.store, &self.breakers);
        let account = Account::open(store, payer, model, counted, plan, ceiling, breakers);
        let account = Arc::new(account);
        open.insert(name, Arc::clone(&account));
        account
    }

    /// Gemini charges the calls of `account` to another model, `counts_as`: from now on they
    /// count in that model's account with the same payer, to which what was spent within the minute
    /// and today moves. Of the limits that were set by hand for either the lowest holds for both
    /// together. Calls that are in flight settle where they were admitted.
    ///
    /// A text that cannot be a model's name is ignored, and so is a name that would close a circle.
    /// So is, in an answer, a model that was named before and left for another within the last
    /// hour: where Google routes an alias to several, it stays with one of them.
    pub fn alias(&self, account: &Arc<Account>, counts_as: &str, named_by: NamedBy) {
        let name = counts_as.strip_prefix("models/").unwrap_or(counts_as);
        if name == account.model()
            || account.is_apart()
            || !is_model(name)
            || account.is_turned_away()
        {
            return;
        }
        if account.charged().model() == name
            || named_by == NamedBy::Answer && account.was_named(name)
        {
            return;
        }
        let _joining = self.joining.lock().unwrap_or_else(PoisonError::into_inner);
        let named = self.find_or_open(account.payer().clone(), name.into(), Counted::Model);
        if named_by == NamedBy::Replica && named.is_charged_to(account) {
            // This replica has found the opposite, later.
            named.charge(None);
        }
        let real = named.charged();
        let is_known = Arc::ptr_eq(&real, &account.charged());
        let is_news = account.is_named(name);
        if is_known || Arc::ptr_eq(&real, account) || real.is_turned_away() {
            return;
        }
        if is_news {
            let (payer, model) = (account.payer(), account.model());
            tracing::info!(%payer, model, counts_as = real.model(), "Gemini charges another model");
        }
        // Gemini knows both.
        account.prove();
        real.prove();
        account.charge(Some(Arc::clone(&real)));
        real.take_over(account, named_by == NamedBy::Replica);
    }

    /// The account that is charged for the calls of this one instead of itself, if any, also where
    /// another replica has found it out.
    pub(super) fn charged_instead(&self, account: &Arc<Account>) -> Option<Arc<Account>> {
        self.hear(account);
        if !account.is_alias() {
            return None;
        }
        let charged = account.charged();
        self.hear(&charged);
        Some(charged.charged())
    }

    /// Whether the calls of `asked` are charged to `account`.
    pub(super) fn is_charged(&self, asked: &Arc<Account>, account: &Arc<Account>) -> bool {
        self.hear(asked);
        asked.is_charged_to(account)
    }

    fn hear(&self, account: &Arc<Account>) {
        match account.budget().heard() {
            None => {}
            Some(Charged::Model(model)) => self.alias(account, &model, NamedBy::Replica),
            Some(Charged::Itself) => account.charge(None),
        }
    }

    /// Keeps back all that a payer asks for until then, because Gemini refused a call for what the
    /// payer spends on all models together. Accounts that Gemini never served find out by themselves.
    pub fn pause_payer(&self, account: &Account, until: Instant) {
        account.budget().pause_until(until);
        let open = self.open.read().unwrap_or_else(PoisonError::into_inner);
        let of_payer = open.accounts.values().filter(|other| {
            other.payer() == account.payer() && other.is_proven() && !other.is_apart()
        });
        let of_payer: Vec<_> = of_payer.cloned().collect();
        drop(open);
        of_payer.iter().for_each(|other| other.budget().pause_until(until));
    }

    /// Forgets what was learned of a model with the key that is shown so, by its label or the first
    /// digits of its SHA-256. False where no such account is open.
    pub fn forget(&self, payer: &str, model: &str) -> bool {
        let all = self.all();
        let of_name = |account: &&Arc<Account>| {
            account.model() == model && account.payer().to_string() == payer
        };
        let mut found = false;
        for account in all.iter().filter(of_name) {
            account.forget();
            found = true;
        }
        found
    }

    /// How many are open.
    pub fn count(&self) -> usize {
        self.open.read().unwrap_or_else(PoisonError::into_inner).accounts.len()
    }

    /// Those of which the number of calls at once has been lowered or may still rise.
    pub fn lowered(&self) -> Vec<Arc<Account>> {
        let open = self.open.read().unwrap_or_else(PoisonError::into_inner);
        let lowered = open.accounts.values().filter(|account| !account.concurrency().is_at_rest());
        lowered.cloned().collect()
    }

    /// All of them, in the order of their names.
    pub fn all(&self) -> Vec<Arc<Account>> {
        self.at_most(usize::MAX)
    }

    /// So many of them, proven ones before others and the last used first, in the order of their
    /// names.
    pub fn at_most(&self, most: usize) -> Vec<Arc<Account>> {
        let open = self.open.read().unwrap_or_else(PoisonError::into_inner);
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

/// Whether a text that came from upstream can be the name of a model.
fn is_model(name: &str) -> bool {
    name.len() <= MAX_NAME
        && name.starts_with(|first: char| first.is_ascii_alphanumeric())
        && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"._-".contains(&byte))
}

impl Open {
    fn insert(&mut self, name: Name, account: Arc<Account>) {
        self.opened += 1;
        self.unproven += 1;
        account.touch(self.opened);
        self.accounts.insert(name, account);
    }

    /// Makes room for one more where too many are open. False where there is none.
    fn has_room(&mut self) -> bool {
        if self.full_at.is_some_and(|full_at| full_at.elapsed() < LOOK_AGAIN) {
            return false;
        }
        if self.full_at.is_some() || self.unproven >= self.count_at {
            self.make_room();
        }
        self.full_at.is_none()
    }

    /// Closes unproven accounts down to half of what may be open, and proven ones of which there is
    /// nothing to remember; none that a call holds.
    fn make_room(&mut self) {
        let (proven, unproven): (Vec<_>, Vec<_>) =
            self.accounts.iter().partition(|(_, account)| account.is_proven());
        let [proven_count, unproven_count] = [proven.len(), unproven.len()];
        let blank = |account: &Arc<Account>| !is_held(account) && account.is_blank();
        let surplus = proven_count.saturating_sub(MAX_IDLE);
        let closed = if surplus > 0 { least_used(proven, surplus, blank) } else { Vec::new() };
        let surplus = unproven_count.saturating_sub(MAX_UNPROVEN / 2);
        let made_up = least_used(unproven, surplus, |account| !is_held(account));
        let proven = proven_count - closed.len();
        self.unproven = unproven_count - made_up.len();
        for name in closed.iter().chain(&made_up) {
            self.accounts.remove(name);
        }
        // Where calls hold most of them, the next count is put off, so that its cost stays small
        // for each that is opened.
        self.count_at = (2 * self.unproven).max(MAX_UNPROVEN);
        let was_full = self.full_at.is_some();
        self.full_at = (proven >= MAX_PROVEN).then(Instant::now);
        if self.full_at.is_some() && !was_full {
            tracing::warn!(accounts = proven, "too many accounts are in use: new ones are refused");
        }
    }
}

/// Whether a call or another account refers to it.
fn is_held(account: &Arc<Account>) -> bool {
    Arc::strong_count(account) > 1
}

/// The names of those that may be closed, the least recently used first; at most so many.
fn least_used(
    mut accounts: Vec<(&Name, &Arc<Account>)>,
    most: usize,
    may_close: impl Fn(&Arc<Account>) -> bool,
) -> Vec<Name> {
    accounts.sort_by_key(|(_, account)| account.last_used());
    let closed = accounts.into_iter().filter(|(_, account)| may_close(account));
    closed.take(most).map(|(name, _)| name.clone()).collect()
}
