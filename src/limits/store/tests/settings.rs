//! New settings while calls run, in every store.

use super::budgets::{limit_of, reserve, reserve_now, used};
use super::*;

for_both_stores! {
    a_new_global_limit_holds_for_waiting_calls,
    new_quotas_hold_for_an_account_in_use_and_for_what_it_spent,
    quotas_are_imposed_on_an_account_that_had_none,
    unchanged_settings_keep_what_gemini_named,
    new_limits_of_an_alias_hold_for_the_account_that_is_charged,
    what_a_payer_may_spend_is_changed_and_imposed,
}

/// Limits set by hand of each model, on requests a day.
fn plan(models: &[(&str, u64)]) -> QuotaPlan {
    let mut plan = QuotaPlan::default();
    for (model, limit) in models {
        let scope = LimitScope { label: None, model: Some((*model).into()) };
        let limits = Limits::default().with(RequestsPerDay, Some(Limit::AtMost(*limit)));
        plan.add_limits(scope, limits).unwrap();
    }
    plan
}

/// A limit on what each payer spends in ten minutes.
fn spend_plan(limit: Limit) -> QuotaPlan {
    let mut plan = QuotaPlan::default();
    let scope = LimitScope { label: None, model: None };
    plan.add_limits(scope, Limits::default().with(SpendPerTenMinutes, Some(limit))).unwrap();
    plan
}

async fn send(budget: &Arc<dyn BudgetAdmin>) -> Result<(), Exhausted> {
    reserve(budget, Line::Queue).await.map(|reservation| drop(reservation.start()))
}

async fn daily_limit(budget: &Arc<dyn BudgetAdmin>) -> Option<u64> {
    budget.usage().await.unwrap()[RequestsPerDay].limit
}

async fn a_new_global_limit_holds_for_waiting_calls(store: Shared) {
    let global = store.global();
    let held = global.acquire_many(5).await.unwrap();
    let next = waiting(&store, global.acquire()).await;
    store.set_global(6).await.unwrap();
    let sixth = next.await.unwrap();
    store.set_global(2).await.unwrap();
    drop(sixth);
    assert_eq!(usage(&store, &global).await, SemaphoreUsage { limit: 2, in_use: 5, waiting: 0 });
    drop(held);
    drop(global.acquire_many(2).await.unwrap());
    assert_eq!(global.acquire_many(3).await.err(), Some(NotGranted::MoreThanLimit { limit: 2 }));
}

async fn new_quotas_hold_for_an_account_in_use_and_for_what_it_spent(store: Shared) {
    let accounts = Accounts::new(Arc::clone(&store), plan(&[("m", 2)]), 5);
    let account = accounts.of(&[7; 32], &"m".into());
    let budget = account.budget();
    send(budget).await.unwrap();
    send(budget).await.unwrap();
    assert!(matches!(send(budget).await, Err(Exhausted::DayExhausted { .. })));
    accounts.replan(plan(&[("m", 3)]), 9);
    assert!(Arc::ptr_eq(&account, &accounts.of(&[7; 32], &"m".into())), "the same account");
    assert_eq!(daily_limit(budget).await, Some(3));
    let (quotas, usage) = account.quotas().await.unwrap();
    let set = Planned { limit: 3, source: Source::Setting };
    assert_eq!((quotas[RequestsPerDay], usage[RequestsPerDay].used), (Some(set), 2));
    send(budget).await.unwrap();
    assert!(matches!(send(budget).await, Err(Exhausted::DayExhausted { .. })));
    accounts.replan(plan(&[]), 9);
    assert_eq!(daily_limit(budget).await, None);
    send(budget).await.unwrap();
    assert_eq!(account.concurrency().limit(), 9);
}

async fn quotas_are_imposed_on_an_account_that_had_none(store: Shared) {
    let accounts = Accounts::new(Arc::clone(&store), plan(&[]), 5);
    let account = accounts.of(&[7; 32], &"m".into());
    send(account.budget()).await.unwrap();
    accounts.replan(plan(&[("m", 2), ("n", 1)]), 5);
    send(account.budget()).await.unwrap();
    assert!(matches!(send(account.budget()).await, Err(Exhausted::DayExhausted { .. })));
    let other = accounts.of(&[7; 32], &"n".into());
    assert_eq!(daily_limit(other.budget()).await, Some(1), "it is opened with the new settings");
}

async fn unchanged_settings_keep_what_gemini_named(store: Shared) {
    let accounts = Accounts::new(Arc::clone(&store), plan(&[("m", 9)]), 5);
    let account = accounts.of(&[7; 32], &"m".into());
    account.correct(Quotas::default().with(RequestsPerMinute, 60));
    send(account.budget()).await.unwrap();
    accounts.replan(plan(&[("m", 9)]), 5);
    assert_eq!(limit_of(account.budget()).await, Some(60));
    accounts.replan(plan(&[("m", 8)]), 5);
    assert_eq!(limit_of(account.budget()).await, None, "as after a restart");
}

async fn new_limits_of_an_alias_hold_for_the_account_that_is_charged(store: Shared) {
    let accounts = Accounts::new(Arc::clone(&store), plan(&[("latest", 7), ("real", 9)]), 5);
    let [alias, real] = ["latest", "real"].map(|name| accounts.of(&[7; 32], &name.into()));
    accounts.alias(&alias, "real", NamedBy::Answer);
    assert_eq!(daily_limit(real.budget()).await, Some(7));
    accounts.replan(plan(&[("latest", 4), ("real", 9)]), 5);
    assert_eq!(daily_limit(real.budget()).await, Some(4));
    accounts.replan(plan(&[("latest", 20), ("real", 8)]), 5);
    assert_eq!(daily_limit(real.budget()).await, Some(8));
    accounts.replan(plan(&[("latest", 5)]), 5);
    assert_eq!(daily_limit(real.budget()).await, Some(5));
    accounts.replan(plan(&[]), 5);
    assert_eq!(daily_limit(real.budget()).await, None);
}

async fn what_a_payer_may_spend_is_changed_and_imposed(store: Shared) {
    let accounts = Accounts::new(Arc::clone(&store), plan(&[]), 5);
    let account = accounts.of(&[7; 32], &"m".into());
    assert!(accounts.spending(10).await.unwrap().is_empty() && !account.counts_spend());
    for limit in [1000, 2000] {
        accounts.replan(spend_plan(Limit::AtMost(limit)), 5);
        let spend = account.spend().expect("it has a limit");
        let nothing = Cost::default();
        let reserved = Arc::clone(spend).try_reserve(nothing, Instant::now() + SECOND);
        drop(reserved.result().await.unwrap().expect("it costs nothing"));
        let spending = accounts.spending(10).await.unwrap();
        let [spending] = &spending[..] else { panic!("one payer: {spending:?}") };
        assert_eq!(spending.planned.map(|planned| planned.limit), Some(limit));
        assert_eq!(spending.usage[SpendPerTenMinutes].limit, Some(limit));
        let other = accounts.of(&[7; 32], &"n".into());
        assert!(Arc::ptr_eq(other.spend().expect("the payer's"), spend));
    }
    accounts.replan(spend_plan(Limit::Unlimited), 5);
    assert!(accounts.spending(10).await.unwrap().is_empty());
}

#[tokio::test]
async fn a_replica_that_is_reconfigured_changes_the_limits_of_the_others() {
    let server = RedisServer::start().await;
    let (one, two): (Shared, Shared) = (server.store(5).await, server.store(5).await);
    let accounts = |store: &Shared| Accounts::new(Arc::clone(store), plan(&[("m", 4)]), 5);
    let (here, there) = (accounts(&one), accounts(&two));
    let [own, other] = [&here, &there].map(|accounts| accounts.of(&[7; 32], &"m".into()));
    send(own.budget()).await.unwrap();
    send(other.budget()).await.unwrap();
    one.set_global(3).await.unwrap();
    assert_eq!(usage(&two, &two.global()).await.limit, 3);
    here.replan(plan(&[("m", 2)]), 3);
    assert_eq!(daily_limit(own.budget()).await, Some(2));
    assert_eq!(daily_limit(other.budget()).await, Some(2), "the lowest limit holds");
    here.replan(plan(&[("m", 9)]), 3);
    assert_eq!(daily_limit(own.budget()).await, Some(4), "until the other is reconfigured too");
    there.replan(plan(&[("m", 9)]), 3);
    assert_eq!(daily_limit(other.budget()).await, Some(9));
    assert_eq!(used(own.budget()).await.0, 2, "what both have sent stays counted");
    assert!(reserve_now(own.budget()).await.unwrap().is_some());
}
