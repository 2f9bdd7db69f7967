use std::time::Duration;

use tokio::time::Instant;

use super::*;
use crate::limits::model::{Limit, LimitScope, Limits, QuotaPlan};

const KEY: [u8; 32] = [1; 32];
const OTHER_KEY: [u8; 32] = [2; 32];

fn limiter(limit: u64) -> Arc<Limiter> {
    let mut plan = QuotaPlan::default();
    let limits = Limits::default().with(QuotaKind::EnqueuedTokens, Limit::AtMost(limit));
    plan.add_limits(LimitScope { label: None, model: Some("m".into()) }, limits).unwrap();
    Limiter::new(4, 10, plan)
}

async fn reserve(
    limiter: &Arc<Limiter>,
    key: &[u8; 32],
    tokens: u64,
) -> Result<EnqueuedTokens, Refused> {
    let deadline = Instant::now() + Duration::from_secs(10);
    Ok(limiter.reserve_enqueued(key, "m", tokens, 0, deadline).await?.expect("it is limited"))
}

fn no_room<T>(result: Result<T, Refused>) -> bool {
    matches!(result, Err(Refused::Exhausted(Exhausted::NoRoom { .. })))
}

#[tokio::test(start_paused = true)]
async fn a_job_holds_its_tokens_until_it_ends() {
    let limiter = limiter(100);
    reserve(&limiter, &KEY, 70).await.unwrap().held_by(&limiter, "batches/a").await;
    assert!(no_room(reserve(&limiter, &KEY, 40).await));
    drop(reserve(&limiter, &OTHER_KEY, 100).await.unwrap());
    // Another key cannot end the job, and another name does not.
    limiter.job_ended(&OTHER_KEY, "batches/a").await.unwrap();
    limiter.job_ended(&KEY, "batches/b").await.unwrap();
    assert!(no_room(reserve(&limiter, &KEY, 40).await));
    limiter.job_ended(&KEY, "batches/a").await.unwrap();
    limiter.job_ended(&KEY, "batches/a").await.unwrap();
    drop(reserve(&limiter, &KEY, 100).await.unwrap());
}

#[tokio::test(start_paused = true)]
async fn a_job_waits_for_room_until_its_deadline() {
    let limiter = limiter(100);
    reserve(&limiter, &KEY, 70).await.unwrap().held_by(&limiter, "batches/a").await;
    let waiting = tokio::spawn({
        let limiter = Arc::clone(&limiter);
        async move { reserve(&limiter, &KEY, 40).await.is_ok() }
    });
    while limiter.occupancy().waiting == 0 {
        tokio::task::yield_now().await;
    }
    limiter.job_ended(&KEY, "batches/a").await.unwrap();
    assert!(waiting.await.unwrap());
}

#[tokio::test(start_paused = true)]
async fn a_job_that_nothing_reports_as_ended_gives_its_tokens_back_after_two_days() {
    let limiter = limiter(100);
    reserve(&limiter, &KEY, 100).await.unwrap().held_by(&limiter, "batches/a").await;
    tokio::time::sleep(Duration::from_secs(48 * 3600)).await;
    assert!(no_room(reserve(&limiter, &KEY, 1).await));
    tokio::time::sleep(Duration::from_secs(2 * 3600)).await;
    drop(reserve(&limiter, &KEY, 100).await.unwrap());
}

#[tokio::test(start_paused = true)]
async fn only_a_job_that_never_fits_is_too_large() {
    let limiter = limiter(100);
    let deadline = Instant::now() + Duration::from_secs(10);
    let job = |tokens, at_least| limiter.reserve_enqueued(&KEY, "m", tokens, at_least, deadline);
    assert!(job(1000, 100).await.unwrap().is_some(), "the estimate may be wrong");
    let too_large = job(1000, 101).await.unwrap_err();
    assert!(matches!(too_large, Refused::Exhausted(Exhausted::TooLarge { cost: 101, .. })));
    let unlimited = limiter.reserve_enqueued(&KEY, "other", 1000, 1000, deadline).await;
    assert!(unlimited.unwrap().is_none());
    assert!(!limiter.limits_enqueued(&KEY, "other") && limiter.limits_enqueued(&KEY, "m"));
}

#[tokio::test(start_paused = true)]
async fn made_up_keys_displace_only_those_that_hold_nothing() {
    let limiter = limiter(100);
    reserve(&limiter, &KEY, 100).await.unwrap().held_by(&limiter, "batches/a").await;
    for number in 0..=MAX_KEPT {
        let mut key = [7; 32];
        key[..8].copy_from_slice(&(number as u64).to_be_bytes());
        drop(reserve(&limiter, &key, 1).await.unwrap());
    }
    assert!(limiter.store().enqueued().len() <= MAX_KEPT);
    assert!(no_room(reserve(&limiter, &KEY, 1).await));
    assert!(limiter.store().named().is_empty(), "they are not shown as semaphores");
}
