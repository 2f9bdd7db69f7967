//! One test suite for all stores, and tests of several replicas that share one.

mod rules;

use std::time::Duration;

use futures_util::FutureExt;
use rustix::process::Signal;
use tokio::time::Instant;

use super::*;
use crate::limits::accounts::{Accounts, NamedBy};
use crate::limits::budget::{NotReserved, Reservation};
use crate::limits::local::LocalStore;
use crate::limits::model::{
    Cost, Exhausted, LeaseTerms, Limit, LimitScope, Limits, Line, Planned, QuotaKind::*, QuotaPlan,
    Quotas, Source,
};
use crate::limits::redis::test_server::RedisServer;
use crate::limits::semaphore::{Acquire, NotGranted, PermitRequest, SemaphoreUsage, WaitMode};

const SECOND: Duration = Duration::from_secs(1);

/// Runs each test against a store of this process and against one in Redis.
macro_rules! for_both_stores {
    ($($test:ident),+ $(,)?) => {
        mod local {
            $(#[tokio::test]
            async fn $test() {
                super::$test(super::LocalStore::new(5)).await;
            })+
        }

        mod shared {
            $(#[tokio::test]
            async fn $test() {
                let server = super::RedisServer::start().await;
                super::$test(server.store(5).await).await;
            })+
        }
    };
}

for_both_stores! {
    requests_are_served_in_order,
    a_request_that_does_not_wait_gets_free_permits_or_nothing,
    a_request_for_several_permits_is_not_overtaken,
    a_returning_request_goes_before_all_first_requests,
    leaving_the_queue_lets_later_requests_go,
    a_permit_that_nobody_receives_is_given_back,
    a_lowered_limit_holds_and_a_raised_limit_wakes_waiters,
    a_request_above_the_limit_is_refused_at_once_and_when_the_limit_falls,
    deleting_a_semaphore_ends_waits_and_a_new_one_of_its_name_is_another,
    semaphores_are_found_by_name,
    a_lease_holds_permits_until_it_is_released,
    a_lease_expires_unless_it_is_renewed,
    a_lease_belongs_to_one_semaphore,
    an_idempotency_key_finds_its_lease,
    fencing_tokens_grow,
    a_lease_outlives_its_semaphore,
    random_histories_match_the_model,
    calls_are_spread_over_the_minute,
    a_returned_reservation_is_available_to_the_next_call,
    a_call_that_cannot_be_sent_in_time_is_refused_at_once,
    a_refusal_sets_quotas_and_pauses_the_account,
    an_alias_is_charged_to_another_account,
    the_lowest_limit_set_by_hand_for_either_account_holds_for_both,
    quotas_that_gemini_named_stay_when_accounts_are_joined,
    a_declined_call_gives_its_day_back_even_if_quotas_are_learned_later,
    a_used_up_day_refuses_calls,
}

type Shared = Arc<dyn Store>;

fn id(name: &str) -> SemaphoreId {
    SemaphoreId::parse(name).unwrap()
}

async fn semaphore(store: &Shared, limit: usize) -> Arc<dyn Semaphore> {
    store.register(id("images"), limit).await.unwrap().0
}

/// The usage after all commands sent so far.
async fn usage(store: &Shared, semaphore: &Arc<dyn Semaphore>) -> SemaphoreUsage {
    store.refresh().await.unwrap();
    semaphore.usage()
}

/// A request that has to wait.
async fn waiting(store: &Shared, mut request: PermitRequest) -> PermitRequest {
    store.refresh().await.unwrap();
    assert!((&mut request).now_or_never().is_none(), "it has to wait");
    request
}

async fn requests_are_served_in_order(store: Shared) {
    let semaphore = store.global();
    let held = semaphore.acquire_many(5).await.unwrap();
    let first = waiting(&store, semaphore.acquire_many(5)).await;
    let second = waiting(&store, semaphore.acquire()).await;
    assert_eq!(usage(&store, &semaphore).await, SemaphoreUsage { limit: 5, in_use: 5, waiting: 2 });
    drop(held);
    let first = first.await.unwrap();
    let second = waiting(&store, second).await;
    drop(first);
    drop(second.await.unwrap());
    assert_eq!(usage(&store, &semaphore).await, SemaphoreUsage { limit: 5, in_use: 0, waiting: 0 });
}

async fn a_request_that_does_not_wait_gets_free_permits_or_nothing(store: Shared) {
    let semaphore = semaphore(&store, 3).await;
    let ask = |permits| Arc::clone(&semaphore).request(permits, WaitMode::None);
    let held = ask(2).await.unwrap();
    assert_eq!(ask(2).await.err(), Some(NotGranted::NoneFree));
    let three = waiting(&store, semaphore.acquire_many(3)).await;
    assert_eq!(ask(1).await.err(), Some(NotGranted::NoneFree), "it is waited for");
    assert_eq!(usage(&store, &semaphore).await.waiting, 1, "nobody else is in the queue");
    drop(held);
    drop(three.await.unwrap());
    assert!(ask(3).await.unwrap().is_in_force());
}

async fn a_request_for_several_permits_is_not_overtaken(store: Shared) {
    let semaphore = semaphore(&store, 3).await;
    let held = semaphore.acquire_many(2).await.unwrap();
    let several = waiting(&store, semaphore.acquire_many(3)).await;
    let one = waiting(&store, semaphore.acquire()).await;
    drop(held);
    let several = several.await.unwrap();
    assert_eq!(several.permits(), 3);
    let one = waiting(&store, one).await;
    drop(several);
    let _one = one.await.unwrap();
    assert_eq!(usage(&store, &semaphore).await.in_use, 1);
}

async fn a_returning_request_goes_before_all_first_requests(store: Shared) {
    let semaphore = semaphore(&store, 1).await;
    let held = semaphore.acquire().await.unwrap();
    let first = waiting(&store, semaphore.acquire()).await;
    let returns = || Arc::clone(&semaphore).request(1, WaitMode::Returning);
    let [one, two] = [waiting(&store, returns()).await, waiting(&store, returns()).await];
    drop(held);
    for returning in [one, two] {
        drop(returning.await.unwrap());
    }
    drop(first.await.unwrap());
}

async fn leaving_the_queue_lets_later_requests_go(store: Shared) {
    let semaphore = semaphore(&store, 3).await;
    let _held = semaphore.acquire_many(2).await.unwrap();
    let several = waiting(&store, semaphore.acquire_many(2)).await;
    let one = waiting(&store, semaphore.acquire()).await;
    drop(several);
    drop(one.await.unwrap());
}

async fn a_permit_that_nobody_receives_is_given_back(store: Shared) {
    let semaphore = semaphore(&store, 1).await;
    let held = semaphore.acquire().await.unwrap();
    let leaver = waiting(&store, semaphore.acquire()).await;
    drop(held);
    store.refresh().await.unwrap();
    drop(leaver);
    assert_eq!(usage(&store, &semaphore).await, SemaphoreUsage { limit: 1, in_use: 0, waiting: 0 });
    // A request dropped before its answer comes leaves nothing behind either.
    drop(semaphore.acquire());
    assert_eq!(usage(&store, &semaphore).await.in_use, 0);
    drop(semaphore.acquire().await.unwrap());
}

async fn a_lowered_limit_holds_and_a_raised_limit_wakes_waiters(store: Shared) {
    let semaphore = semaphore(&store, 3).await;
    let mut held = Vec::new();
    for _ in 0..3 {
        held.push(semaphore.acquire().await.unwrap());
    }
    assert!(!store.register(id("images"), 1).await.unwrap().1, "it is there already");
    held.truncate(1);
    let next = waiting(&store, semaphore.acquire()).await;
    assert_eq!(usage(&store, &semaphore).await, SemaphoreUsage { limit: 1, in_use: 1, waiting: 1 });
    store.register(id("images"), 2).await.unwrap();
    let _next = next.await.unwrap();
    assert_eq!(usage(&store, &semaphore).await.in_use, 2);
}

async fn a_request_above_the_limit_is_refused_at_once_and_when_the_limit_falls(store: Shared) {
    let semaphore = semaphore(&store, 3).await;
    let refused = |limit| Some(NotGranted::MoreThanLimit { limit });
    assert_eq!(semaphore.acquire_many(4).await.err(), refused(3));
    let held = semaphore.acquire_many(3).await.unwrap();
    let two = waiting(&store, semaphore.acquire_many(2)).await;
    let three = waiting(&store, semaphore.acquire_many(3)).await;
    store.register(id("images"), 2).await.unwrap();
    assert_eq!(three.await.err(), refused(2));
    drop(held);
    drop(two.await.unwrap());
}

async fn deleting_a_semaphore_ends_waits_and_a_new_one_of_its_name_is_another(store: Shared) {
    let before = semaphore(&store, 1).await;
    let held = before.acquire().await.unwrap();
    let waits = waiting(&store, before.acquire()).await;
    assert!(store.delete(&id("images")).await.unwrap());
    assert!(!store.delete(&id("images")).await.unwrap());
    assert_eq!(waits.await.err(), Some(NotGranted::Closed));
    assert_eq!(before.acquire().await.err(), Some(NotGranted::Closed));
    let anew = semaphore(&store, 1).await;
    assert_ne!(anew.number(), before.number());
    let other = anew.acquire().await.unwrap();
    drop(held);
    assert_eq!(usage(&store, &anew).await, SemaphoreUsage { limit: 1, in_use: 1, waiting: 0 });
    drop(other);
}

async fn semaphores_are_found_by_name(store: Shared) {
    assert!(store.find(&id("b")).await.unwrap().is_none());
    for (name, limit) in [("b", 2), ("a", 1), ("b", 3)] {
        let new = store.register(id(name), limit).await.unwrap().1;
        assert_eq!(new, limit < 3);
    }
    let found = store.find(&id("b")).await.unwrap().unwrap();
    assert_eq!(found.usage(), SemaphoreUsage { limit: 3, in_use: 0, waiting: 0 });
    let all = store.named();
    let names: Vec<_> = all.iter().map(|(id, own)| (id.as_str(), own.usage().limit)).collect();
    assert_eq!(names, [("a", 1), ("b", 3)]);
    store.delete(&id("a")).await.unwrap();
    assert!(store.find(&id("a")).await.unwrap().is_none());
}

fn new_lease(permits: usize, ttl: Duration, key: Option<&str>) -> NewLease {
    NewLease {
        id: format!("{:032x}", fastrand::u128(..)).into(),
        semaphore_id: id("images"),
        terms: LeaseTerms { holder: "render-7".into(), permits, ttl },
        key: key.map(Arc::from),
    }
}

async fn lease(store: &Shared, semaphore: &Arc<dyn Semaphore>, new: &NewLease) -> (Lease, bool) {
    let permit = semaphore.acquire_many(new.terms.permits).await.unwrap();
    store.lease(permit, new.clone()).await.unwrap()
}

async fn a_lease_holds_permits_until_it_is_released(store: Shared) {
    let semaphore = semaphore(&store, 3).await;
    let (two, new) = lease(&store, &semaphore, &new_lease(2, 60 * SECOND, None)).await;
    assert!(new);
    let (one, _) = lease(&store, &semaphore, &new_lease(1, 60 * SECOND, None)).await;
    let listed = store.leases(&semaphore).await.unwrap();
    let ids: Vec<_> = listed.iter().map(|lease| (&*lease.id, lease.terms.permits)).collect();
    assert_eq!(ids, [(&*two.id, 2), (&*one.id, 1)]);
    assert_eq!(usage(&store, &semaphore).await.in_use, 3);
    let next = waiting(&store, semaphore.acquire()).await;
    for _ in 0..2 {
        store.release_lease(&id("images"), &two.id).await.unwrap().unwrap();
    }
    let _next = next.await.unwrap();
    assert_eq!(usage(&store, &semaphore).await.in_use, 2, "nothing is given back twice");
}

async fn a_lease_expires_unless_it_is_renewed(store: Shared) {
    let semaphore = semaphore(&store, 1).await;
    let began = Instant::now();
    let ttl = SECOND / 5;
    let (held, _) = lease(&store, &semaphore, &new_lease(1, ttl, None)).await;
    let next = waiting(&store, semaphore.acquire()).await;
    let renewed = store.renew_lease(&id("images"), &held.id, Some(2 * ttl)).await.unwrap().unwrap();
    assert!(renewed.expires > held.expires && renewed.expires_at > held.expires_at);
    assert_eq!(renewed.fencing_token, held.fencing_token);
    let _next = next.await.unwrap();
    assert!(began.elapsed() >= 2 * ttl, "not before its time: {:?}", began.elapsed());
    let gone = store.renew_lease(&id("images"), &held.id, None).await.unwrap();
    assert_eq!(gone, Err(NoSuchLease), "it does not come back");
    store.release_lease(&id("images"), &held.id).await.unwrap().unwrap();
    assert_eq!(usage(&store, &semaphore).await.in_use, 1);
}

async fn a_lease_belongs_to_one_semaphore(store: Shared) {
    let semaphore = semaphore(&store, 1).await;
    let (held, _) = lease(&store, &semaphore, &new_lease(1, 60 * SECOND, None)).await;
    let other = id("audio");
    assert_eq!(store.renew_lease(&other, &held.id, None).await.unwrap(), Err(NoSuchLease));
    assert_eq!(store.release_lease(&other, &held.id).await.unwrap(), Err(NoSuchLease));
    assert_eq!(usage(&store, &semaphore).await.in_use, 1);
}

async fn an_idempotency_key_finds_its_lease(store: Shared) {
    let semaphore = semaphore(&store, 3).await;
    let new = new_lease(1, 60 * SECOND, Some("order 66"));
    assert_eq!(store.find_lease(&semaphore, "order 66").await.unwrap(), None);
    let (first, _) = lease(&store, &semaphore, &new).await;
    let found = store.find_lease(&semaphore, "order 66").await.unwrap().unwrap();
    assert_eq!((&found.id, &found.terms), (&first.id, &first.terms));
    let again = new_lease(1, 60 * SECOND, Some("order 66"));
    let (second, is_new) = lease(&store, &semaphore, &again).await;
    assert_eq!((&second.id, is_new), (&first.id, false));
    assert_eq!(usage(&store, &semaphore).await.in_use, 1, "the second permit went back");

    // What a renewal changes is not what was asked for.
    store.renew_lease(&id("images"), &first.id, Some(SECOND * 9)).await.unwrap().unwrap();
    let found = store.find_lease(&semaphore, "order 66").await.unwrap().unwrap();
    assert_eq!(found.terms, new.terms);
    store.release_lease(&id("images"), &first.id).await.unwrap().unwrap();
    assert_eq!(store.find_lease(&semaphore, "order 66").await.unwrap(), None);
    assert!(lease(&store, &semaphore, &again).await.1);
}

async fn fencing_tokens_grow(store: Shared) {
    let semaphore = semaphore(&store, 100).await;
    let mut last = 0;
    for _ in 0..100 {
        let (lease, _) = lease(&store, &semaphore, &new_lease(1, 60 * SECOND, None)).await;
        assert!(lease.fencing_token > last, "{} after {last}", lease.fencing_token);
        last = lease.fencing_token;
    }
}

async fn a_lease_outlives_its_semaphore(store: Shared) {
    let before = semaphore(&store, 1).await;
    let (held, _) = lease(&store, &before, &new_lease(1, 60 * SECOND, Some("key"))).await;
    store.delete(&id("images")).await.unwrap();
    let anew = semaphore(&store, 1).await;
    assert_eq!(store.leases(&anew).await.unwrap(), []);
    assert_eq!(store.find_lease(&anew, "key").await.unwrap(), None);
    store.renew_lease(&id("images"), &held.id, None).await.unwrap().unwrap();
    store.release_lease(&id("images"), &held.id).await.unwrap().unwrap();
    assert_eq!(usage(&store, &anew).await, SemaphoreUsage { limit: 1, in_use: 0, waiting: 0 });
}

async fn random_histories_match_the_model(store: Shared) {
    let seed = fastrand::u64(..);
    println!("seed: {seed}");
    let mut random = fastrand::Rng::with_seed(seed);
    for history in 0..40 {
        let (id, limit) = (id(&format!("history-{history}")), random.usize(1..6));
        let (semaphore, _) = store.register(id.clone(), limit).await.unwrap();
        rules::History::new(&store, semaphore, id, limit).run(&mut random, 60).await;
    }
}

/// A minute of six seconds.
const MINUTE: Duration = Duration::from_secs(6);

fn budget(store: &Shared, model: &str, requests_per_minute: Option<u64>) -> Arc<dyn BudgetAdmin> {
    planned_budget(store, model, requests_per_minute, Source::Tier)
}

fn planned_budget(
    store: &Shared,
    model: &str,
    requests_per_minute: Option<u64>,
    source: Source,
) -> Arc<dyn BudgetAdmin> {
    let planned = requests_per_minute.map(|limit| Planned { limit, source });
    let planned = PlannedQuotas::default().with(RequestsPerMinute, planned);
    store.budget(&Payer::Key([7; 32]), model, planned, MINUTE)
}

fn soon() -> Instant {
    Instant::now() + 30 * SECOND
}

async fn reserve(budget: &Arc<dyn BudgetAdmin>, line: Line) -> Result<Reservation, Exhausted> {
    Arc::clone(budget).reserve(line, Cost::one(1), soon()).await
}

async fn reserve_now(budget: &Arc<dyn BudgetAdmin>) -> Result<Option<Reservation>, NotReserved> {
    Arc::clone(budget).try_reserve(Cost::one(1), soon()).result().await
}

async fn used(budget: &Arc<dyn BudgetAdmin>) -> (u64, u64) {
    let usage = budget.usage().await.unwrap()[RequestsPerMinute];
    (usage.used, usage.reserved)
}

async fn calls_are_spread_over_the_minute(store: Shared) {
    // Ten a second, of which one can be saved up.
    let budget = budget(&store, "m", Some(60));
    let began = Instant::now();
    for sent in 1..=5 {
        let reservation = reserve(&budget, Line::Queue).await.unwrap();
        assert_eq!(used(&budget).await, (sent - 1, 1));
        let _ = reservation.start();
    }
    assert_eq!(used(&budget).await, (5, 0));
    assert!(began.elapsed() >= 4 * SECOND / 10, "{:?}", began.elapsed());
    assert!(reserve_now(&budget).await.unwrap().is_none(), "there is no room now");
}

async fn a_returned_reservation_is_available_to_the_next_call(store: Shared) {
    let budget = budget(&store, "m", Some(60));
    let held = reserve_now(&budget).await.unwrap().expect("nothing is spent");
    let next = tokio::spawn({
        let budget = Arc::clone(&budget);
        async move { reserve(&budget, Line::Queue).await }
    });
    while budget.usage().await.unwrap().waiting == 0 {
        tokio::task::yield_now().await;
    }
    assert!(reserve_now(&budget).await.unwrap().is_none(), "it is waited for");
    drop(held);
    drop(next.await.unwrap().unwrap());
    assert_eq!(used(&budget).await, (0, 0));
}

async fn a_call_that_cannot_be_sent_in_time_is_refused_at_once(store: Shared) {
    let budget = budget(&store, "m", Some(1));
    let _ = reserve_now(&budget).await.unwrap().expect("nothing is spent").start();
    let deadline = Instant::now() + SECOND;
    let refused =
        Arc::clone(&budget).reserve(Line::Queue, Cost::one(1), deadline).await.unwrap_err();
    let Exhausted::NotBefore { retry_after } = refused else { panic!("{refused}") };
    assert!(retry_after > 5 * SECOND && retry_after < 7 * SECOND, "{retry_after:?}");
    assert!(Instant::now() < deadline, "it did not wait for it");
    let none = self::budget(&store, "other", Some(0));
    assert_eq!(reserve(&none, Line::Queue).await.err(), Some(Exhausted::NoQuota));
}

async fn a_refusal_sets_quotas_and_pauses_the_account(store: Shared) {
    let budget = budget(&store, "m", None);
    let mut sent = Vec::new();
    for _ in 0..3 {
        sent.push(reserve_now(&budget).await.unwrap().expect("nothing limits it").start());
    }
    budget.learn(Quotas::default().with(RequestsPerMinute, 3));
    budget.pause_until(Instant::now() + SECOND / 5);
    assert!(budget.is_paused());
    sent.pop().expect("three left").take_back();
    let usage = budget.usage().await.unwrap();
    assert_eq!(usage[RequestsPerMinute].limit, Some(3));
    assert!(usage[RequestsPerMinute].used >= 2, "what left before counts: {usage:?}");
    assert!(usage.paused_for.is_some());
    assert!(reserve_now(&budget).await.unwrap().is_none(), "it is paused");
    budget.forget();
    assert!(!budget.is_paused());
    let usage = budget.usage().await.unwrap();
    assert_eq!((usage[RequestsPerMinute].limit, usage.paused_for), (None, None));
}

async fn an_alias_is_charged_to_another_account(store: Shared) {
    let (alias, real) = (budget(&store, "latest", Some(600)), budget(&store, "real", Some(600)));
    for budget in [&alias, &alias, &real] {
        let _ = reserve(budget, Line::Queue).await.unwrap().start();
    }
    real.transfer_in(alias.transfer_out(), false);
    assert_eq!(used(&real).await.0, 3);
    assert_eq!(real.usage().await.unwrap()[RequestsPerDay].used, 3);
    assert_eq!(used(&alias).await.0, 0);
}

async fn limit_of(budget: &Arc<dyn BudgetAdmin>) -> Option<u64> {
    budget.usage().await.unwrap()[RequestsPerMinute].limit
}

async fn the_lowest_limit_set_by_hand_for_either_account_holds_for_both(store: Shared) {
    use Source::{Setting, Tier};
    for (number, (real, alias, counts)) in [
        ((Some(300), Tier), (Some(7), Setting), Some(7)),
        ((Some(300), Tier), (Some(1000), Setting), Some(1000)),
        ((Some(9), Setting), (Some(7), Setting), Some(7)),
        ((Some(7), Setting), (Some(9), Setting), Some(7)),
        ((Some(500), Setting), (Some(300), Tier), Some(500)),
        ((None, Setting), (Some(300), Tier), None),
        ((Some(300), Tier), (None, Setting), Some(300)),
    ]
    .into_iter()
    .enumerate()
    {
        let open = |name: &str, (limit, source)| {
            planned_budget(&store, &format!("{name}-{number}"), limit, source)
        };
        let (alias, real) = (open("latest", alias), open("real", real));
        drop(reserve(&alias, Line::Queue).await.unwrap());
        for _ in 0..2 {
            real.transfer_in(alias.transfer_out(), false);
            assert_eq!(limit_of(&real).await, counts, "{number}");
        }
    }
}

async fn quotas_that_gemini_named_stay_when_accounts_are_joined(store: Shared) {
    let named = |requests, tokens| {
        Quotas::default().with(RequestsPerMinute, requests).with(InputTokensPerMinute, tokens)
    };
    let alias = planned_budget(&store, "latest", Some(30), Source::Setting);
    let real = budget(&store, "real", Some(100));
    alias.learn(named(Some(20), Some(9000)));
    real.learn(named(Some(40), None));
    real.transfer_in(alias.transfer_out(), false);
    let usage = real.usage().await.unwrap();
    assert_eq!(usage[RequestsPerMinute].limit, Some(30), "what was set by hand is the most");
    assert_eq!(usage[InputTokensPerMinute].limit, Some(9000));
    real.learn(named(Some(25), None));
    assert_eq!(limit_of(&real).await, Some(25));
    real.forget();
    let usage = real.usage().await.unwrap();
    assert_eq!(usage[RequestsPerMinute].limit, Some(30));
    assert_eq!(usage[InputTokensPerMinute].limit, None);
}

/// The first burst: some calls are over, some in flight, and one is admitted when Gemini names a quota.
async fn a_declined_call_gives_its_day_back_even_if_quotas_are_learned_later(store: Shared) {
    let budget = budget(&store, "m", None);
    let take = async || reserve_now(&budget).await.unwrap().expect("nothing limits it");
    let mut sent = Vec::new();
    for _ in 0..6 {
        sent.push(take().await.start());
    }
    let [refused, declined, before, answered, lost, late] =
        <[_; 6]>::try_from(sent).expect("six have left");
    let unsent = take().await;
    before.take_back_of_day();
    budget.learn(Quotas::default().with(RequestsPerMinute, 600));
    refused.take_back();
    late.take_back();
    declined.take_back_of_day();
    answered.settle(1);
    drop((unsent, lost));
    let usage = budget.usage().await.unwrap();
    assert_eq!(usage[RequestsPerDay].used, 2, "one was answered and one was lost: {usage:?}");
}

async fn a_used_up_day_refuses_calls(store: Shared) {
    let budget = budget(&store, "m", Some(600));
    let sent = reserve_now(&budget).await.unwrap().expect("nothing is spent").start();
    budget.close_day(sent.at());
    sent.take_back();
    let refused = reserve_now(&budget).await.err();
    let closed = matches!(refused, Some(NotReserved::Exhausted(Exhausted::DayExhausted { .. })));
    assert!(closed, "{refused:?}");
}

#[tokio::test]
async fn a_quota_learned_by_one_replica_holds_for_all() {
    let server = RedisServer::start().await;
    let (one, two): (Shared, Shared) = (server.store(5).await, server.store(5).await);
    let (here, there) = (budget(&one, "m", None), budget(&two, "m", None));
    for budget in [&here, &here, &there] {
        let _ = reserve_now(budget).await.unwrap().expect("nothing limits it").start();
    }
    here.learn(Quotas::default().with(RequestsPerMinute, 10));
    here.pause_until(Instant::now() + 20 * SECOND);
    let told = async {
        while !there.is_paused() || used(&there).await.0 < 3 {
            tokio::time::sleep(SECOND / 1000).await;
        }
    };
    tokio::time::timeout(20 * SECOND, told).await.expect("it is told, and tells what it has sent");
    let usage = there.usage().await.unwrap();
    assert_eq!(usage[RequestsPerMinute].limit, Some(10));
    assert!(usage.paused_for > Some(10 * SECOND), "{usage:?}");
    assert!(reserve_now(&there).await.unwrap().is_none());
    // A replica that starts later has the quota too.
    let three: Shared = server.store(5).await;
    let later = budget(&three, "m", None);
    let told = async {
        while later.usage().await.unwrap()[RequestsPerMinute].limit.is_none() {
            tokio::time::sleep(SECOND / 1000).await;
        }
    };
    tokio::time::timeout(20 * SECOND, told).await.expect("it looks it up");
}

#[tokio::test]
async fn a_returning_request_goes_before_first_requests_of_all_replicas() {
    let server = RedisServer::start().await;
    let (one, two): (Shared, Shared) = (server.store(5).await, server.store(5).await);
    let here = semaphore(&one, 1).await;
    let there = two.find(&id("images")).await.unwrap().expect("it is registered");
    let held = here.acquire().await.unwrap();
    let own = waiting(&one, here.acquire()).await;
    let other = waiting(&two, there.acquire()).await;
    let returning = waiting(&one, Arc::clone(&here).request(1, WaitMode::Returning)).await;
    let later = waiting(&two, Arc::clone(&there).request(1, WaitMode::Returning)).await;
    drop(held);
    for next in [returning, later, own, other] {
        drop(next.await.unwrap());
    }
}

/// The accounts of a replica, with limits set by hand: 7 requests a minute for the alias, and 9 for
/// the model that is charged.
fn accounts(store: &Shared) -> Accounts {
    let mut plan = QuotaPlan::default();
    for (name, limit) in [("latest", 7), ("real", 9)] {
        let requests_per_minute = Some(Limit::AtMost(limit));
        let limits = Limits::default().with(RequestsPerMinute, requests_per_minute);
        plan.add_limits(LimitScope { label: None, model: Some(name.into()) }, limits).unwrap();
    }
    Accounts::new(Arc::clone(store), plan, 5)
}

#[tokio::test]
async fn replicas_keep_the_same_limits_whichever_finds_the_charged_model() {
    for found_by in 0..2 {
        let server = RedisServer::start().await;
        let stores: [Shared; 2] = [server.store(5).await, server.store(5).await];
        let replicas = stores.each_ref().map(accounts);
        let of = |name: &str| {
            let model = name.into();
            replicas.each_ref().map(|accounts| accounts.of(&[7; 32], &model))
        };
        let (aliases, reals) = (of("latest"), of("real"));
        for account in aliases.iter().chain(&reals) {
            let _ = reserve(account.budget(), Line::Queue).await.unwrap().start();
        }
        let found = &aliases[found_by];
        reals[1].correct(Quotas::default().with(RequestsPerMinute, 8));
        replicas[found_by].alias(found, "real", NamedBy::Answer);
        let other = 1 - found_by;
        until("the other one is told", || {
            let charged = replicas[other].charged_instead(&aliases[other]);
            charged.is_some_and(|charged| Arc::ptr_eq(&charged, &reals[other]))
        })
        .await;
        for account in &reals {
            assert_eq!(limit_of(account.budget()).await, Some(7), "{found_by}");
            let usage = account.budget().usage().await.unwrap();
            assert_eq!(usage[RequestsPerDay].used, 4, "all is counted there");
        }
        // A replica that comes later finds it, whatever it does first.
        let three: Shared = server.store(5).await;
        let later = accounts(&three);
        let [alias, real] = ["latest", "real"].map(|name| later.of(&[7; 32], &name.into()));
        drop(reserve_now(real.budget()).await);
        drop(reserve_now(alias.budget()).await);
        until("the third one is told", || {
            later.charged_instead(&alias).is_some_and(|charged| Arc::ptr_eq(&charged, &real))
        })
        .await;
        for account in reals.iter().chain([&real]) {
            assert_eq!(limit_of(account.budget()).await, Some(7), "{found_by}");
        }
        reals[other].forget();
        assert_eq!(limit_of(reals[found_by].budget()).await, Some(7), "not 9");
    }
}

#[tokio::test]
async fn replicas_that_find_opposite_aliases_agree_and_form_no_cycle() {
    let server = RedisServer::start().await;
    let stores: [Shared; 2] = [server.store(5).await, server.store(5).await];
    let replicas = stores.each_ref().map(accounts);
    let of = |name: &str| {
        let model = name.into();
        replicas.each_ref().map(|accounts| accounts.of(&[7; 32], &model))
    };
    let (aliases, reals) = (of("latest"), of("real"));
    replicas[0].alias(&aliases[0], "real", NamedBy::Answer);
    replicas[1].alias(&reals[1], "latest", NamedBy::Answer);
    let charged = |number: usize| {
        let of = [&aliases[number], &reals[number]];
        of.map(|account| {
            let instead = replicas[number].charged_instead(account);
            instead.as_ref().unwrap_or(account).model().to_owned()
        })
    };
    until("they agree", || charged(0) == charged(1)).await;
    assert_eq!(charged(0)[0], charged(0)[1]);
}

#[tokio::test]
async fn a_quota_that_redis_lost_is_sent_again() {
    let server = RedisServer::start().await;
    let (one, two): (Shared, Shared) = (server.store(5).await, server.store(5).await);
    let (here, there) = (budget(&one, "m", None), budget(&two, "m", None));
    here.learn(Quotas::default().with(RequestsPerMinute, 10));
    let until_limited = async |budget: &Arc<dyn BudgetAdmin>| {
        let limited = async {
            while budget.usage().await.unwrap()[RequestsPerMinute].limit != Some(10) {
                tokio::time::sleep(SECOND / 1000).await;
            }
        };
        tokio::time::timeout(20 * SECOND, limited).await.expect("it is told");
    };
    until_limited(&there).await;
    // Only the account is forgotten, so that the replicas stay members.
    let mut connection = server.connection().await;
    let forgotten: Vec<String> =
        redis::cmd("KEYS").arg("{test}:budget:*").query_async(&mut connection).await.unwrap();
    let deleted = redis::cmd("DEL").arg(forgotten).to_owned();
    deleted.exec_async(&mut connection).await.unwrap();
    // The replica that did not learn it from Gemini sends it again.
    let _ = reserve(&there, Line::Queue).await.unwrap().start();
    until_limited(&there).await;
}

/// Two replicas, both of which know that an account is paused.
async fn paused(server: &RedisServer) -> [(Shared, Arc<dyn BudgetAdmin>); 2] {
    let (one, two): (Shared, Shared) = (server.store(5).await, server.store(5).await);
    let (here, there) = (budget(&one, "m", Some(600)), budget(&two, "m", Some(600)));
    for budget in [&here, &there] {
        drop(reserve(budget, Line::Queue).await.unwrap());
    }
    here.pause_until(Instant::now() + 20 * SECOND);
    until("it is told", || there.is_paused()).await;
    [(one, here), (two, there)]
}

async fn until(what: &str, is_so: impl Fn() -> bool) {
    let wait = async {
        while !is_so() {
            tokio::time::sleep(SECOND / 1000).await;
        }
    };
    tokio::time::timeout(20 * SECOND, wait).await.expect(what);
}

#[tokio::test]
async fn a_pause_reset_on_one_replica_ends_on_all() {
    let server = RedisServer::start().await;
    let [(_one, here), (_two, there)] = paused(&server).await;
    here.forget();
    until("it is told", || !there.is_paused()).await;
    drop(reserve_now(&there).await.unwrap().expect("nothing keeps it back"));
}

#[tokio::test]
async fn replicas_keep_a_pause_that_redis_lost() {
    let server = RedisServer::start().await;
    let [(_one, _here), (_two, there)] = paused(&server).await;
    let mut connection = server.connection().await;
    let forgotten: Vec<String> =
        redis::cmd("KEYS").arg("{test}:budget:*").query_async(&mut connection).await.unwrap();
    let deleted = redis::cmd("DEL").arg(forgotten).to_owned();
    deleted.exec_async(&mut connection).await.unwrap();
    let reserve_by = |deadline| Arc::clone(&there).reserve(Line::Queue, Cost::one(1), deadline);
    let refused = reserve_by(Instant::now() + SECOND).await.err();
    assert!(matches!(refused, Some(Exhausted::NotBefore { .. })), "{refused:?}");
    let waiting = tokio::spawn(reserve_by(soon()));
    there.forget();
    drop(waiting.await.unwrap().unwrap());
}

#[tokio::test]
async fn a_lease_whose_reply_is_lost_is_released() {
    let server = RedisServer::start().await;
    let store: Shared = server.store_with_lease(5, 5 * SECOND).await;
    let other: Shared = server.store(5).await;
    let semaphore = semaphore(&store, 3).await;
    let permit = semaphore.acquire_many(2).await.unwrap();
    // When it continues, it executes the commands received before.
    server.signal(Signal::STOP);
    let lost = store.lease(permit, new_lease(2, 600 * SECOND, None)).await;
    assert!(matches!(lost, Err(Unleased::StoreUnavailable(_))), "{lost:?}");
    server.signal(Signal::CONT);
    let there = other.find(&id("images")).await.unwrap().expect("it was registered");
    let released = async {
        while usage(&other, &there).await.in_use > 0 {
            tokio::time::sleep(SECOND / 100).await;
        }
    };
    tokio::time::timeout(20 * SECOND, released).await.expect("it is never released");
    assert_eq!(other.leases(&there).await.unwrap(), []);
}

#[tokio::test]
async fn accounts_are_opened_in_redis_by_their_first_call() {
    let server = RedisServer::start().await;
    let store: Shared = server.store(5).await;
    let mut connection = server.connection().await;
    let mut accounts = async || -> Vec<String> {
        store.refresh().await.unwrap();
        let keys = redis::cmd("KEYS").arg("{test}:budget:*").to_owned();
        keys.query_async(&mut connection).await.unwrap()
    };
    let made_up: Vec<_> =
        (0..100).map(|n| self::budget(&store, &format!("made-up-{n}"), Some(60))).collect();
    assert!(accounts().await.is_empty());
    assert_eq!(made_up[0].usage().await.unwrap()[RequestsPerMinute].limit, Some(60));
    assert!(accounts().await.is_empty(), "nor does a look open it");
    drop(reserve_now(&made_up[7]).await.unwrap().expect("nothing is spent"));
    assert_eq!(accounts().await.len(), 1);
}

#[tokio::test]
async fn a_used_up_day_refuses_calls_on_all_replicas() {
    let server = RedisServer::start().await;
    let (one, two): (Shared, Shared) = (server.store(5).await, server.store(5).await);
    let (here, there) = (budget(&one, "m", None), budget(&two, "m", None));
    here.close_day(Instant::now());
    let told = async {
        while reserve_now(&there).await.is_ok() {
            tokio::time::sleep(SECOND / 1000).await;
        }
    };
    tokio::time::timeout(20 * SECOND, told).await.expect("it is told");
}
