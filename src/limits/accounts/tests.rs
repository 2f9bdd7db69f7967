use futures_util::FutureExt;

use super::account::FOLLOW_AGAIN;
use super::*;
use crate::limits::local::LocalStore;
use crate::limits::model::{
    BudgetUsage, Cost, Limit, LimitScope, Limits, Planned, PlannedQuotas, QuotaKind::*, Quotas,
    Source, Tier,
};

/// Accounts with limits that no test reaches, so that what is spent matters.
fn accounts() -> Accounts {
    let far = Limit::AtMost(1_000_000);
    let limits = Limits::default().with(RequestsPerMinute, far).with(RequestsPerDay, far);
    let mut plan = QuotaPlan::default();
    plan.add_limits(LimitScope { label: None, model: None }, limits).unwrap();
    with_plan(plan)
}

fn with_plan(plan: QuotaPlan) -> Accounts {
    Accounts::new(LocalStore::new(10), plan, 10)
}

fn model(name: &str) -> Arc<str> {
    name.into()
}

fn requests(limit: u64) -> Quotas {
    Quotas::default().with(RequestsPerMinute, limit)
}

fn quotas_and_usage(account: &Account) -> (PlannedQuotas, BudgetUsage) {
    account.quotas().now_or_never().expect("at once").unwrap()
}

/// Sends a call, so that there is something to remember.
fn spend(account: &Account) {
    let deadline = Instant::now() + Duration::from_secs(60);
    let reserved = Arc::clone(account.budget()).try_reserve(Cost::one(10), deadline).result();
    let _ = reserved.now_or_never().expect("at once").unwrap().expect("room").start();
}

fn proven(accounts: &Accounts, name: &str) -> Arc<Account> {
    let account = accounts.of(&[1; 32], &model(name));
    account.prove();
    account
}

#[test]
fn calls_counted_apart_spend_nothing_of_the_model() {
    let mut plan = QuotaPlan::default();
    plan.tier = Some(Tier::Free);
    let accounts = with_plan(plan);
    let model = accounts.of(&[1; 32], &model("a"));
    let apart = accounts.apart(&[1; 32], "a", "countTokens");
    assert!(!Arc::ptr_eq(&model, &apart));
    assert_ne!(quotas_and_usage(&model).0, PlannedQuotas::default());
    assert_eq!(quotas_and_usage(&apart).0, PlannedQuotas::default());
}

#[test]
fn each_key_and_model_has_its_own_account() {
    let accounts = accounts();
    let first = accounts.of(&[1; 32], &model("a"));
    assert!(Arc::ptr_eq(&first, &accounts.of(&[1; 32], &model("a"))));
    assert!(!Arc::ptr_eq(&first, &accounts.of(&[1; 32], &model("b"))));
    assert!(!Arc::ptr_eq(&first, &accounts.of(&[2; 32], &model("a"))));
    assert_eq!(first.payer().to_string(), "01010101");
    assert_eq!((accounts.count(), accounts.all().len()), (3, 3));
}

#[tokio::test(start_paused = true)]
async fn gemini_lowers_and_raises_the_quota_it_names_and_no_other() {
    let account = accounts().of(&[1; 32], &model("a"));
    for limit in [60, 20, 300] {
        account.correct(requests(limit));
        let (quotas, usage) = quotas_and_usage(&account);
        let named = Planned { limit, source: Source::Gemini };
        assert_eq!(quotas[RequestsPerMinute], Some(named));
        assert_eq!(quotas[InputTokensPerMinute], None);
        assert_eq!(usage[RequestsPerMinute].limit, Some(limit));
    }
    let tokens = Quotas::default().with(InputTokensPerMinute, 1000);
    account.correct(tokens);
    let (quotas, _) = quotas_and_usage(&account);
    let limit_of = |quota: Option<Planned>| quota.map(|quota| quota.limit);
    assert_eq!(limit_of(quotas[RequestsPerMinute]), Some(300), "what was named before stays");
    assert_eq!(limit_of(quotas[InputTokensPerMinute]), Some(1000));
}

#[tokio::test(start_paused = true)]
async fn a_reset_forgets_learned_quotas_and_not_what_is_spent() {
    let accounts = with_plan(QuotaPlan::default());
    let account = accounts.of(&[1; 32], &model("a"));
    spend(&account);
    account.correct(requests(5));
    account.budget().pause_until(Instant::now() + Duration::from_secs(30), None);
    account.budget().close_day(Instant::now());
    assert!(accounts.forget("01010101", "a"));
    let (quotas, usage) = quotas_and_usage(&account);
    assert_eq!(quotas, PlannedQuotas::default());
    assert_eq!((usage.paused_for, usage.next_free_in), (None, Some(Duration::ZERO)));
    assert_eq!(usage[RequestsPerDay].used, 1);
    for (key, model) in [("01010101", "b"), ("02020202", "a"), ("0101", "a")] {
        assert!(!accounts.forget(key, model), "{key} {model}");
    }
}

#[tokio::test(start_paused = true)]
async fn made_up_keys_are_bounded_and_close_no_proven_account() {
    let accounts = accounts();
    let idle = Arc::as_ptr(&proven(&accounts, "idle"));
    let held = accounts.of(&[2; 32], &model("a"));
    let spent = accounts.of(&[2; 32], &model("spent"));
    spend(&spent);
    drop(spent);
    for n in 0..3 * MAX_UNPROVEN {
        let _ = accounts.of(&[3; 32], &model(&n.to_string()));
        assert!(accounts.count() <= MAX_UNPROVEN + 1);
    }
    assert!(Arc::ptr_eq(&held, &accounts.of(&[2; 32], &model("a"))));
    assert_eq!(Arc::as_ptr(&accounts.of(&[1; 32], &model("idle"))), idle, "it was proven");
    let newest = (3 * MAX_UNPROVEN - 1).to_string();
    assert!(accounts.all().iter().any(|account| account.model() == newest));
}

#[tokio::test(start_paused = true)]
async fn proven_accounts_with_nothing_to_remember_are_closed_oldest_first() {
    let accounts = accounts();
    let name = |n: usize| format!("m-{n}");
    for n in 0..MAX_IDLE + 200 {
        let account = proven(&accounts, &name(n));
        match n {
            0 => spend(&account),
            1 => account.correct(requests(5)),
            2 => account.budget().pause_until(Instant::now() + Duration::from_secs(3600), None),
            3 => account.budget().close_day(Instant::now()),
            _ => {}
        }
    }
    // Accounts are counted when many have been opened.
    for n in 0..MAX_UNPROVEN {
        let _ = accounts.of(&[4; 32], &model(&n.to_string()));
        let _ = accounts.of(&[1; 32], &model(&name(4)));
    }
    let open: Vec<_> = accounts.all();
    let is_open = |n: usize| open.iter().any(|account| account.model() == name(n));
    let proven = open.iter().filter(|account| account.is_proven()).count();
    assert_eq!(proven, MAX_IDLE);
    assert!((0..=4).all(is_open), "there is something to remember, or it was just used");
    assert!(!is_open(5) && !is_open(100), "they were not used for longest");
    assert!(is_open(MAX_IDLE + 199));
}

#[tokio::test(start_paused = true)]
async fn new_accounts_are_refused_when_all_have_something_to_remember() {
    let accounts = accounts();
    let name = |n: usize| model(&format!("m-{n}"));
    for n in 0..MAX_PROVEN + MAX_UNPROVEN {
        let account = accounts.of(&[1; 32], &name(n));
        account.prove();
        if !account.is_rejected() {
            spend(&account);
        }
    }
    let count = accounts.count();
    assert!((MAX_PROVEN..=MAX_PROVEN + MAX_UNPROVEN).contains(&count), "{count}");
    let new_account = || accounts.of(&[2; 32], &model("a"));
    assert!(new_account().is_rejected());
    assert_eq!(accounts.count(), count, "nothing is kept of it");
    let (_, usage) = quotas_and_usage(&accounts.of(&[1; 32], &name(0)));
    assert_eq!(usage[RequestsPerDay].used, 1, "nothing was forgotten");

    // When the day and the minute are over, there is nothing to remember.
    tokio::time::advance(Duration::from_secs(3600)).await;
    for account in accounts.all() {
        account.budget().transfer_out();
    }
    assert!(!new_account().is_rejected());
}

#[tokio::test(start_paused = true)]
async fn an_alias_is_charged_to_the_real_model_with_what_it_has_spent() {
    let accounts = accounts();
    let alias = accounts.of(&[1; 32], &model("latest"));
    let real = accounts.of(&[1; 32], &model("real"));
    spend(&alias);
    spend(&real);
    alias.budget().pause_until(Instant::now() + Duration::from_secs(30), None);
    accounts.alias(&alias, "models/real", NamedBy::Answer);
    assert!(Arc::ptr_eq(&alias.charged(), &real));
    assert!(Arc::ptr_eq(&accounts.of(&[1; 32], &model("latest")).charged(), &real));
    let (_, usage) = quotas_and_usage(&real);
    assert_eq!((usage[RequestsPerMinute].used, usage[RequestsPerDay].used), (2, 2));
    assert_eq!(usage[InputTokensPerMinute].used, 20);
    assert_eq!(usage.paused_for, Some(Duration::from_secs(30)));
    assert_eq!(quotas_and_usage(&alias).1[RequestsPerDay].used, 0);
    accounts.alias(&alias, "real", NamedBy::Answer);
    assert_eq!(quotas_and_usage(&real).1[RequestsPerDay].used, 2, "it moves once");

    let other = accounts.of(&[2; 32], &model("latest"));
    assert!(Arc::ptr_eq(&other.charged(), &other), "another key learns it for itself");
    assert!(accounts.forget("01010101", "latest"));
    assert!(Arc::ptr_eq(&alias.charged(), &alias));
}

#[tokio::test(start_paused = true)]
async fn unused_aliases_are_closed_unless_the_real_model_has_something_to_remember() {
    let accounts = accounts();
    let name = |n: usize| format!("latest-{n}");
    for n in 0..MAX_IDLE + 200 {
        let real = if n == 0 { "busy" } else { "idle" };
        accounts.alias(&proven(&accounts, &name(n)), real, NamedBy::Answer);
    }
    spend(&accounts.of(&[1; 32], &model("busy")));
    // Accounts are counted when many have been opened.
    for n in 0..MAX_UNPROVEN {
        let _ = accounts.of(&[4; 32], &model(&n.to_string()));
    }
    let open = accounts.all();
    let is_open = |n: usize| open.iter().any(|account| account.model() == name(n));
    assert_eq!(open.iter().filter(|account| account.is_proven()).count(), MAX_IDLE);
    assert!(is_open(0), "what is spent of the real model would be forgotten with it");
    assert!(!is_open(1));
}

#[tokio::test(start_paused = true)]
async fn a_call_in_flight_settles_beside_one_sent_after_the_accounts_were_joined() {
    let accounts = accounts();
    let alias = accounts.of(&[1; 32], &model("latest"));
    let deadline = Instant::now() + Duration::from_secs(60);
    let reserve = |tokens| {
        let reserved = Arc::clone(alias.budget()).try_reserve(Cost::one(tokens), deadline).result();
        reserved.now_or_never().expect("at once").unwrap().expect("room")
    };
    let (sent, late) = (reserve(100).start(), reserve(10));
    accounts.alias(&alias, "real", NamedBy::Answer);
    let _late = late.start();
    sent.settle(5);
    assert_eq!(quotas_and_usage(&alias).1[InputTokensPerMinute].used, 5);
}

#[test]
fn an_alias_can_move_and_never_forms_a_cycle() {
    let accounts = accounts();
    let [a, b, c] = ["a", "b", "c"].map(|name| accounts.of(&[1; 32], &model(name)));
    accounts.alias(&a, "b", NamedBy::Answer);
    accounts.alias(&b, "a", NamedBy::Answer);
    assert!(Arc::ptr_eq(&b.charged(), &b), "its alias is charged to it already");
    accounts.alias(&b, "c", NamedBy::Answer);
    assert!(Arc::ptr_eq(&a.charged(), &c));
    accounts.alias(&c, "a", NamedBy::Answer);
    accounts.alias(&c, "b", NamedBy::Answer);
    assert!(Arc::ptr_eq(&c.charged(), &c));
    accounts.alias(&a, "d", NamedBy::Answer);
    assert_eq!(a.charged().model(), "d");
    assert_eq!(b.charged().model(), "c");
}

/// Google can route the calls of an alias to several models.
#[tokio::test(start_paused = true)]
async fn an_alias_stays_with_one_model_when_answers_name_several_in_turn() {
    let accounts = accounts();
    let alias = accounts.of(&[1; 32], &model("latest"));
    for name in ["one", "two", "one", "two", "one"] {
        accounts.alias(&alias, name, NamedBy::Answer);
    }
    assert_eq!(alias.charged().model(), "two", "the last model that changed anything");
    accounts.alias(&alias, "one", NamedBy::Refusal);
    assert_eq!(alias.charged().model(), "one", "it is the one whose quota is used up");
    accounts.alias(&alias, "two", NamedBy::Answer);
    assert_eq!(alias.charged().model(), "one");
    tokio::time::advance(FOLLOW_AGAIN).await;
    accounts.alias(&alias, "two", NamedBy::Answer);
    assert_eq!(alias.charged().model(), "two", "it may have moved for good");
    accounts.forget("01010101", "latest");
    accounts.alias(&alias, "one", NamedBy::Answer);
    assert_eq!(alias.charged().model(), "one");
}

#[test]
fn an_invalid_model_name_joins_nothing() {
    let accounts = accounts();
    let account = accounts.of(&[1; 32], &model("a"));
    let long = "m".repeat(129);
    for name in ["", "a", "models/a", "b/c", "b c", "../b", "b:countTokens", "b\n", "é", &*long] {
        accounts.alias(&account, name, NamedBy::Answer);
        assert!(Arc::ptr_eq(&account.charged(), &account), "{name:?}");
    }
    let apart = accounts.apart(&[1; 32], "a", "countTokens");
    accounts.alias(&apart, "b", NamedBy::Answer);
    assert!(Arc::ptr_eq(&apart.charged(), &apart));
    assert_eq!(accounts.count(), 2, "nothing was opened");
}

#[test]
fn limits_set_for_an_alias_hold_for_the_real_model_too() {
    let mut plan = QuotaPlan::default();
    plan.tier = Some(Tier::Tier1);
    for (name, limit) in [("latest", 1000), ("preview", 7), ("real", 9)] {
        let limits = Limits::default().with(RequestsPerMinute, Limit::AtMost(limit));
        plan.add_limits(LimitScope { label: None, model: Some(name.into()) }, limits).unwrap();
    }
    let accounts = with_plan(plan);
    let limit = |name: &str| {
        let account = accounts.of(&[1; 32], &model(name));
        quotas_and_usage(&account).0[RequestsPerMinute].unwrap().limit
    };
    accounts.alias(&accounts.of(&[1; 32], &model("latest")), "unset", NamedBy::Answer);
    assert_eq!(limit("unset"), 1000, "a setting before the tier's 300");
    accounts.alias(&accounts.of(&[1; 32], &model("preview")), "real", NamedBy::Answer);
    assert_eq!(limit("real"), 7, "of two settings the lower");
}

#[tokio::test(start_paused = true)]
async fn accounts_without_limits_are_closed_whatever_they_have_spent() {
    let accounts = with_plan(QuotaPlan::default());
    for n in 0..MAX_PROVEN + MAX_UNPROVEN {
        let account = accounts.of(&[1; 32], &model(&format!("m-{n}")));
        assert!(!account.is_rejected(), "{n}");
        account.prove();
        spend(&account);
    }
    assert!(accounts.count() <= MAX_IDLE + 2 * MAX_UNPROVEN, "{}", accounts.count());
}
