//! Semaphores of every store.

use super::rules::History;
use super::*;

for_both_stores! {
    requests_are_served_in_order,
    a_request_that_does_not_wait_gets_free_permits_or_nothing,
    a_request_for_several_permits_is_not_overtaken,
    a_returning_request_is_admitted_before_all_first_requests,
    leaving_the_queue_unblocks_later_requests,
    a_permit_that_nobody_receives_is_given_back,
    a_lowered_limit_holds_and_a_raised_limit_wakes_waiters,
    a_request_above_the_limit_is_refused_at_once_and_when_the_limit_falls,
    deleting_a_semaphore_ends_waits_and_a_new_one_of_its_name_is_another,
    semaphores_are_found_by_name,
    random_histories_match_the_model,
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

async fn a_returning_request_is_admitted_before_all_first_requests(store: Shared) {
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

async fn leaving_the_queue_unblocks_later_requests(store: Shared) {
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
    // A request dropped before its answer arrives leaves nothing behind either.
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

async fn random_histories_match_the_model(store: Shared) {
    let seed = fastrand::u64(..);
    println!("seed: {seed}");
    let mut random = fastrand::Rng::with_seed(seed);
    for history in 0..40 {
        let (id, limit) = (id(&format!("history-{history}")), random.usize(1..6));
        let (semaphore, _) = store.register(id.clone(), limit).await.unwrap();
        History::new(&store, semaphore, id, limit).run(&mut random, 60).await;
    }
}
