//! Jobs beside each other and beside single requests.

use tokio::time::Instant;

use super::*;
use crate::dispatch::CallRequest;

#[tokio::test(start_paused = true)]
async fn two_jobs_get_equal_shares() {
    let script = Script::new(|_, _| Action::Answer);
    let process = Process::started(8, &script);
    let (one, other) = (process.submit("a", 4000).await, process.submit("b", 4000).await);
    process.until(one, |job| job.progress.succeeded >= 2000).await;
    let done = |job| process.store.get(job).progress.succeeded as f64;
    let share = done(one) / (done(one) + done(other));
    assert!((0.475..0.525).contains(&share), "{share}");
}

#[tokio::test(start_paused = true)]
async fn a_chat_beside_jobs_waits_two_slot_times_at_most() {
    const LIMIT: u32 = 8;
    let script = Script::new(|_, _| Action::Answer);
    let process = Process::started(LIMIT as usize, &script);
    for name in ["a", "b", "c"] {
        process.submit(name, 100_000).await;
    }
    while process.in_flight() < LIMIT as usize {
        sleep(CALL).await;
    }
    let mut longest = Duration::ZERO;
    for n in 0..200 {
        sleep(CALL.mul_f64(fastrand::f64() * 3.0)).await;
        let call = process.dispatcher.enqueue(CallRequest {
            kind: CallKind::Chat,
            key: key("server-key"),
            model: script.model.clone(),
            semaphore: None,
            size: InputFeatures::of(&format!("chat {n}")).into(),
            tier: TierChoice::default(),
            deadline: Instant::now() + Duration::from_secs(60),
            observer: None,
        });
        let begin = Instant::now();
        let admitted = process.dispatcher.admit(&call).await.unwrap();
        longest = longest.max(begin.elapsed());
        sleep(CALL).await;
        drop(admitted);
    }
    assert!(longest <= 2 * CALL, "{longest:?}");
}
