//! Stores that fail, processes that end without warning, and claims that are lost.

use super::*;
use crate::jobs::StoreError;

#[tokio::test(start_paused = true)]
async fn results_wait_while_the_store_cannot_be_written_and_nothing_more_is_sent() {
    for error in [StoreError::Full("no space".into()), StoreError::Unavailable("gone".into())] {
        let script = Script::new(|_, _| Action::Answer);
        let process = Process::started(4, &script);
        let job = process.submit("a", 1000).await;
        process.until(job, |job| job.progress.succeeded >= 100).await;
        process.store.set(|settings| settings.fails = Some(error));
        sleep(Duration::from_secs(300)).await;
        let (calls, recorded) = (script.calls(), process.store.get(job).progress.succeeded);
        // Those that were in flight, and those that came while the first record failed.
        assert!(u64::from(calls) - recorded <= 8, "{calls} calls, {recorded} recorded");
        let failed = process.store.counted().failed;
        assert!(failed < 100, "{failed} attempts in 5 minutes");
        process.store.set(|settings| settings.fails = None);
        process.until_completed(job).await;
        assert!(are_all_answered(&process.store, job, "a", 1000));
        assert_eq!((script.calls(), process.store.counted().repeated), (1000, 0));
    }
}

#[tokio::test(start_paused = true)]
async fn a_slow_store_gets_many_results_at_once() {
    let script = Script::new(|_, _| Action::Answer);
    let process = Process::started(64, &script);
    process.store.set(|settings| settings.record_takes = CALL * 5);
    let job = process.submit("a", 10_000).await;
    process.until_completed(job).await;
    let records = process.store.counted().records;
    assert!(records < 10_000 / 32, "{records} transactions");
}

#[tokio::test(start_paused = true)]
async fn after_crashes_only_the_calls_in_flight_are_repeated() {
    const LIMIT: usize = 8;
    let script = Script::new(|_, _| Action::Answer);
    let store = MemoryStore::default();
    store.set(|settings| settings.record_takes = CALL / 4);
    let mut process = Process::new(&store, LIMIT, &script);
    let job = process.submit("a", 2000).await;
    let mut crashes = 0;
    while store.get(job).state != JobState::Completed {
        process.start();
        let crash = CALL.mul_f64(1.0 + 10.0 * fastrand::f64());
        if tokio::time::timeout(crash, process.until_completed(job)).await.is_ok() {
            break;
        }
        crashes += 1;
        drop(process.engine.take());
        store.expire(process.jobs.replica());
        process = Process::new(&store, LIMIT, &script);
    }
    assert!(are_all_answered(&store, job, "a", 2000));
    // Those in flight, and those whose results were being recorded.
    let repeated = script.calls() as usize - 2000;
    assert!(repeated <= 2 * LIMIT * crashes, "{repeated} after {crashes} crashes");
}

#[tokio::test(start_paused = true)]
async fn an_item_whose_claim_was_lost_is_not_sent() {
    let script = Script::new(|_, _| Action::Answer);
    let store = MemoryStore::default();
    store.set(|settings| settings.is_shared = true);
    let mut slow = Process::new(&store, 1, &script);
    slow.start();
    let job = slow.submit("a", 200).await;
    slow.until(job, |job| job.progress.succeeded >= 5).await;
    // The queue of this process is held up, so that its claims outlast its calls.
    let global = slow.limiter.store().global();
    let ticket = crate::limits::QueueTicket::new(Arc::clone(&slow.limiter));
    let slot = ticket.acquire_many(&global, 1).await.unwrap();
    store.expire(slow.jobs.replica());
    let mut other = Process::new(&store, 4, &script);
    other.start();
    other.until_completed(job).await;
    sleep(Duration::from_secs(30)).await;
    drop(slot);
    sleep(Duration::from_secs(30)).await;
    assert!(are_all_answered(&store, job, "a", 200));
    assert!(script.calls() <= 202, "{} calls", script.calls());
}

#[tokio::test(start_paused = true)]
async fn nothing_is_sent_once_claims_could_not_be_renewed_for_too_long() {
    // Each call says that the item is to come again, so that nothing has to be recorded.
    let script = Script::new(|_, _| Action::Later(None));
    let process = Process::started(4, &script);
    let job = process.submit("a", 50).await;
    process.until(job, |job| job.progress.claimed == 50).await;
    process.store.set(|settings| settings.fails = Some(StoreError::Unavailable("gone".into())));
    sleep(Duration::from_secs(60)).await;
    let calls = script.calls();
    sleep(Duration::from_secs(600)).await;
    assert_eq!(script.calls(), calls);
    process.store.set(|settings| settings.fails = None);
    sleep(Duration::from_secs(120)).await;
    assert!(script.calls() > calls);
}

#[tokio::test(start_paused = true)]
async fn a_claim_whose_answer_was_lost_is_given_back() {
    let script = Script::new(|_, _| Action::Answer);
    let process = Process::started(4, &script);
    process.store.set(|settings| settings.loses_claims = true);
    let job = process.submit("a", 50).await;
    process.until(job, |job| job.progress.claimed == 50).await;
    process.store.set(|settings| settings.loses_claims = false);
    process.until_completed(job).await;
    assert_eq!(script.calls(), 50);
}

#[tokio::test(start_paused = true)]
async fn two_replicas_share_a_job_and_ask_each_item_once() {
    let script = Script::new(|_, _| Action::Answer);
    let store = MemoryStore::default();
    store.set(|settings| settings.is_shared = true);
    let (mut one, mut other) = (Process::new(&store, 4, &script), Process::new(&store, 4, &script));
    one.start();
    other.start();
    let job = one.submit("a", 4000).await;
    one.until_completed(job).await;
    assert!(are_all_answered(&store, job, "a", 4000));
    assert_eq!((script.calls(), store.counted().repeated), (4000, 0));
}

#[tokio::test(start_paused = true)]
async fn jobs_that_ended_long_ago_are_removed_soon_after_the_store_can_be_used() {
    let script = Script::new(|_, _| Action::Answer);
    let mut process = Process::new(&MemoryStore::default(), 1, &script);
    let job = process.submit("a", 1).await;
    process.change(job, Change::Cancel).await;
    process.retention = Duration::ZERO;
    process.store.set(|settings| settings.fails = Some(StoreError::Unavailable("gone".into())));
    process.start();
    sleep(Duration::from_secs(10 * 60)).await;
    assert!(process.store.has(job));
    process.store.set(|settings| settings.fails = None);
    sleep(Duration::from_secs(60)).await;
    assert!(!process.store.has(job));
}

#[tokio::test(start_paused = true)]
async fn a_crash_repeats_no_more_calls_than_there_are_slots_if_the_store_is_quick() {
    const LIMIT: u32 = 4;
    let script = Script::new(|_, _| Action::Answer);
    let process = Process::new(&MemoryStore::default(), LIMIT as usize, &script);
    // Less than a quarter of a call.
    process.store.set(|settings| settings.record_takes = CALL / 10);
    let mut process = process;
    process.start();
    let job = process.submit("a", 2000).await;
    let begin = tokio::time::Instant::now();
    loop {
        let recorded = process.store.get(job).progress.succeeded;
        if recorded == 2000 {
            break;
        }
        let repeated = u64::from(script.calls()) - recorded;
        // The first calls tell how long calls take.
        assert!(recorded < 50 || repeated <= u64::from(LIMIT), "{repeated} at {recorded}");
        sleep(CALL.mul_f64(0.05 + fastrand::f64())).await;
    }
    let least = CALL * 2000 / LIMIT;
    assert!(begin.elapsed() < least.mul_f64(1.15), "{:?} instead of {least:?}", begin.elapsed());
}
