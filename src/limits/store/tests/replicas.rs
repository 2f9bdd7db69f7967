//! Several replicas that share a store.

use super::budgets::{budget, limit_of, reserve, reserve_now, soon, used};
use super::leases::new_lease;
use super::*;

#[tokio::test]
async fn a_quota_learned_by_one_replica_holds_for_all() {
    let server = RedisServer::start().await;
    let (one, two): (Shared, Shared) = (server.store(5).await, server.store(5).await);
    let (here, there) = (budget(&one, "m", None), budget(&two, "m", None));
    for budget in [&here, &here, &there] {
        let _ = reserve_now(budget).await.unwrap().expect("nothing limits it").start();
    }
    here.learn(Quotas::default().with(RequestsPerMinute, 10));
    here.pause_until(Instant::now() + 20 * SECOND, None);
    let received = async {
        while !there.is_paused() || used(&there).await.0 < 3 {
            tokio::time::sleep(SECOND / 1000).await;
        }
    };
    tokio::time::timeout(20 * SECOND, received)
        .await
        .expect("it receives the pause, and its calls are counted");
    let usage = there.usage().await.unwrap();
    assert_eq!(usage[RequestsPerMinute].limit, Some(10));
    assert!(usage.paused_for > Some(10 * SECOND), "{usage:?}");
    assert!(reserve_now(&there).await.unwrap().is_none());
    // A replica that starts later has the quota too.
    let three: Shared = server.store(5).await;
    let later = budget(&three, "m", None);
    let received = async {
        while later.usage().await.unwrap()[RequestsPerMinute].limit.is_none() {
            tokio::time::sleep(SECOND / 1000).await;
        }
    };
    tokio::time::timeout(20 * SECOND, received).await.expect("it looks it up");
}

#[tokio::test]
async fn a_returning_request_is_admitted_before_first_requests_of_all_replicas() {
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

#[tokio::test]
async fn a_login_is_accepted_by_all_replicas_until_it_is_closed_or_unused() {
    let server = RedisServer::start().await;
    let (one, two): (Shared, Shared) = (server.store(5).await, server.store(5).await);
    let (idle, longest) = (SECOND / 2, 60 * SECOND);
    for id in ["closed", "unused"] {
        assert!(!two.use_login(id, None).await.unwrap());
        one.open_login(id, idle, longest).await.unwrap();
        assert!(two.use_login(id, Some(60 * SECOND)).await.unwrap());
        assert!(one.use_login(id, Some(idle)).await.unwrap());
    }
    two.close_login("closed").await.unwrap();
    assert!(!one.use_login("closed", Some(idle)).await.unwrap());
    let began = Instant::now();
    while two.use_login("unused", None).await.unwrap() {
        assert!(began.elapsed() < 20 * SECOND, "it is not used");
        tokio::time::sleep(SECOND / 100).await;
    }
}

#[tokio::test]
async fn a_login_ends_after_its_time_and_with_the_replica_that_opened_it() {
    let server = RedisServer::start().await;
    let (one, two): (Shared, Shared) = (server.store(5).await, server.store(5).await);
    one.open_login("short", 60 * SECOND, SECOND / 2).await.unwrap();
    let began = Instant::now();
    while two.use_login("short", Some(60 * SECOND)).await.unwrap() {
        assert!(began.elapsed() < 20 * SECOND, "its time is over, however much it is used");
        tokio::time::sleep(SECOND / 100).await;
    }
    one.open_login("long", 60 * SECOND, 60 * SECOND).await.unwrap();
    two.open_login("other", 60 * SECOND, 60 * SECOND).await.unwrap();
    assert!(two.use_login("long", None).await.unwrap());
    one.close().await;
    assert!(!two.use_login("long", Some(60 * SECOND)).await.unwrap());
    assert!(two.use_login("other", None).await.unwrap());
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
        until("the other replica is notified", || {
            let charged = replicas[other].charged_instead(&aliases[other]);
            charged.is_some_and(|charged| Arc::ptr_eq(&charged, &reals[other]))
        })
        .await;
        for account in &reals {
            assert_eq!(limit_of(account.budget()).await, Some(7), "{found_by}");
            let usage = account.budget().usage().await.unwrap();
            assert_eq!(usage[RequestsPerDay].used, 4, "all is counted there");
        }
        // A replica that starts later finds it, whatever it does first.
        let three: Shared = server.store(5).await;
        let later = accounts(&three);
        let [alias, real] = ["latest", "real"].map(|name| later.of(&[7; 32], &name.into()));
        drop(reserve_now(real.budget()).await);
        drop(reserve_now(alias.budget()).await);
        until("the third replica is notified", || {
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
        tokio::time::timeout(20 * SECOND, limited).await.expect("it is notified");
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

#[tokio::test]
async fn of_different_limits_of_enqueued_tokens_the_lowest_of_all_running_replicas_holds() {
    let server = RedisServer::start().await;
    let (one, two): (Shared, Shared) = (server.store(5).await, server.store(5).await);
    let id = SemaphoreId::enqueued(&Payer::Key([1; 32]), "m");
    let register = async |store: &Shared, limit| {
        store.register(id.clone(), limit).await.unwrap().0.usage().limit
    };
    assert_eq!(register(&one, 100).await, 100);
    assert_eq!(register(&two, 60).await, 60);
    assert_eq!(register(&one, 100).await, 60, "whoever registers last");
    let here = one.find(&id).await.unwrap().expect("it is registered");
    two.close().await;
    until("the lower limit ends with its replica", || here.usage().limit == 100).await;
    let three: Shared = server.store(5).await;
    assert_eq!(register(&three, 200).await, 100);
    // A semaphore that clients have named has one limit, which is set for all.
    let named = semaphore(&one, 3).await;
    assert_eq!(semaphore(&three, 7).await.usage().limit, 7);
    until("it is notified", || named.usage().limit == 7).await;
}

/// Two replicas that both know that an account is paused.
async fn paused(server: &RedisServer) -> [(Shared, Arc<dyn BudgetAdmin>); 2] {
    let (one, two): (Shared, Shared) = (server.store(5).await, server.store(5).await);
    let (here, there) = (budget(&one, "m", Some(600)), budget(&two, "m", Some(600)));
    for budget in [&here, &there] {
        drop(reserve(budget, Line::Queue).await.unwrap());
    }
    here.pause_until(Instant::now() + 20 * SECOND, None);
    until("it is notified", || there.is_paused()).await;
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
    until("it is notified", || !there.is_paused()).await;
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
    let received = async {
        while reserve_now(&there).await.is_ok() {
            tokio::time::sleep(SECOND / 1000).await;
        }
    };
    tokio::time::timeout(20 * SECOND, received).await.expect("it is notified");
}
