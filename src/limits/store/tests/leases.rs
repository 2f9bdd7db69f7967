//! Leases of every store.

use super::*;

for_both_stores! {
    a_lease_holds_permits_until_it_is_released,
    a_lease_expires_unless_it_is_renewed,
    a_lease_belongs_to_one_semaphore,
    an_idempotency_key_finds_its_lease,
    fencing_tokens_grow,
    a_lease_outlives_its_semaphore,
    a_job_holds_its_tokens_until_its_lease_is_released,
}

async fn a_job_holds_its_tokens_until_its_lease_is_released(store: Shared) {
    const TOKENS: usize = 3_000_000;
    let id = SemaphoreId::enqueued(&Payer::Key([1; 32]), "gemini-3.8-flash");
    let (tokens, new) = store.register(id.clone(), TOKENS).await.unwrap();
    assert!(new && store.named().is_empty());
    assert!(matches!(&store.enqueued()[..], [(kept, _)] if *kept == id));
    let new = NewLease {
        id: "key/batches/a".into(),
        semaphore_id: id.clone(),
        terms: LeaseTerms { holder: "batch job".into(), permits: TOKENS, ttl: 180_000 * SECOND },
        key: None,
    };
    let (granted, _) = lease(&store, &tokens, &new).await;
    assert_eq!(granted.semaphore_id, id);
    assert_eq!(usage(&store, &tokens).await.in_use, TOKENS);
    let next = waiting(&store, tokens.acquire()).await;
    store.release_lease(&id, "key/batches/b").await.unwrap().unwrap();
    store.release_lease(&id, "key/batches/a").await.unwrap().unwrap();
    let _next = next.await.unwrap();
    assert_eq!(usage(&store, &tokens).await.in_use, 1);
}

pub(super) fn new_lease(permits: usize, ttl: Duration, key: Option<&str>) -> NewLease {
    NewLease {
        id: format!("{:032x}", fastrand::u128(..)).into(),
        semaphore_id: id("images"),
        terms: LeaseTerms { holder: "render-7".into(), permits, ttl },
        key: key.map(Arc::from),
    }
}

pub(super) async fn lease(
    store: &Shared,
    semaphore: &Arc<dyn Semaphore>,
    new: &NewLease,
) -> (Lease, bool) {
    let permit = semaphore.acquire_many(new.terms.permits).await.unwrap();
    store.lease(permit, new.clone()).await.unwrap()
}

async fn a_lease_holds_permits_until_it_is_released(store: Shared) {
    let semaphore = semaphore(&store, 3).await;
    let (two, new) = lease(&store, &semaphore, &new_lease(2, 60 * SECOND, None)).await;
    assert!(new);
    let (one, _) = lease(&store, &semaphore, &new_lease(1, 60 * SECOND, None)).await;
    let listed = store.leases(&semaphore).await.unwrap();
    assert_eq!((usage(&store, &semaphore).await.in_use, store.leased(&id("images"))), (3, 3));
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

    // A renewal does not change the requested terms.
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
