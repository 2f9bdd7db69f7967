//! Jobs beside each other and beside single requests.

use tokio::time::Instant;

use super::*;
use crate::dispatch::CallRequest;

const HOUR: Duration = Duration::from_secs(60 * 60);

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

/// A process that starts no call of the slow model for an hour.
fn without_quota(script: &Arc<Script>) -> Process {
    let process = Process::started(8, script);
    let accounts = process.limiter.accounts();
    let account = accounts.of(key("server-key").sha256(), script.slow.shared());
    accounts.pause_payer(&account, Instant::now() + HOUR);
    process
}

/// A job of which every other item is of the slow model.
async fn submit_mixed(process: &Process, items: u64) -> JobNumber {
    let job = begin(&process.jobs, Owner::Admin).await;
    let blocks = (0..items).step_by(BLOCK as usize).map(|first| {
        let name = |index| if index % 2 == 0 { "slow" } else { "quick" };
        let lines = (first..first + BLOCK).map(|index| format!("{} {index}\n", name(index)));
        NewBlock { first, lines: lines.collect::<String>().into(), items: BLOCK as u32 }
    });
    let blocks = blocks.collect();
    commit_blocks(&process.jobs, job, blocks).await
}

#[tokio::test(start_paused = true)]
async fn a_model_that_waits_for_a_quota_does_not_hold_up_thousands_of_items_of_others() {
    let script = Script::new(|_, _| Action::Answer);
    let process = without_quota(&script);
    let begin = Instant::now();
    let job = submit_mixed(&process, 10_000).await;
    process.until(job, |job| job.progress.succeeded == 5000).await;
    assert!(begin.elapsed() < CALL * 5000 / 8 * 2, "{:?}", begin.elapsed());
    sleep(HOUR).await;
    process.until_completed(job).await;
    assert_eq!(script.calls(), 10_000);
}

#[tokio::test(start_paused = true)]
async fn items_that_are_refused_for_the_day_do_not_hold_up_thousands_of_items_of_others() {
    let script = Script::new(|line, times| match line.starts_with("slow") && times == 0 {
        true => Action::Later(Some(HOUR)),
        false => Action::Answer,
    });
    let process = Process::started(8, &script);
    let begin = Instant::now();
    let job = submit_mixed(&process, 10_000).await;
    process.until(job, |job| job.progress.succeeded == 5000).await;
    assert!(begin.elapsed() < CALL * 10_000 / 8 * 2, "{:?}", begin.elapsed());
    process.until_completed(job).await;
    assert_eq!(script.calls(), 15_000);
}

#[tokio::test(start_paused = true)]
async fn items_that_wait_for_a_quota_take_bounded_memory() {
    let script = Script::new(|_, _| Action::Answer);
    let process = without_quota(&script);
    let job = begin(&process.jobs, Owner::Admin).await;
    let lines = format!("slow {}\n", "x".repeat(10_000)).repeat(BLOCK as usize);
    let lines = Bytes::from(lines);
    let block =
        |number| NewBlock { first: number * BLOCK, lines: lines.clone(), items: BLOCK as u32 };
    commit_blocks(&process.jobs, job, (0..100).map(block).collect()).await;
    sleep(HOUR).await;
    let most = process.store.counted().most_bytes;
    assert!((28 << 20..32 << 20).contains(&most), "{most} bytes");
}

#[tokio::test(start_paused = true)]
async fn items_that_wait_only_for_a_slot_are_no_reason_to_claim_more() {
    let script = Script::new(|_, _| Action::Hang);
    let process = Process::started(8, &script);
    process.submit("a", 10_000).await;
    process.submit("b", 10_000).await;
    sleep(HOUR).await;
    let most = process.store.counted().most_claimed;
    assert!(most <= 256 + BLOCK, "{most} items were in memory");
}

#[tokio::test(start_paused = true)]
async fn the_items_in_flight_of_a_job_are_told() {
    let script = Script::new(|_, _| Action::Hang);
    let store = MemoryStore::default();
    store.set(|settings| settings.is_shared = true);
    let mut one = Process::new(&store, 8, &script);
    one.start();
    let (a, b) = (one.submit("a", 1000).await, one.submit("b", 1000).await);
    sleep(Duration::from_secs(60)).await;
    let [a, b] = [a, b].map(|job| store.get(job));
    let of = |process: &Process, job| process.jobs.in_flight(job, 8);
    assert_eq!((one.in_flight(), of(&one, &a) + of(&one, &b)), (8, 8));
    assert!(of(&one, &a) > 0 && of(&one, &b) > 0 && a.progress.claimed > 8);
    // Another replica knows only what is claimed.
    let other = Process::new(&store, 8, &script);
    assert_eq!((of(&other, &a), of(&other, &b)), (8, 8));
    drop(one.engine.take());
    sleep(CALL).await;
    store.expire(one.jobs.replica());
    let a = store.get(a.number);
    assert_eq!((of(&one, &a), of(&other, &a)), (0, 0));
}
