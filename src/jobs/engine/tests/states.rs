//! What pausing, cancelling, stopping and a missing key do.

use std::sync::atomic::{AtomicBool, Ordering};

use super::*;
use crate::jobs::PauseReason;
use crate::metrics::Format;

#[tokio::test(start_paused = true)]
async fn a_paused_job_sends_nothing_more_and_records_what_is_in_flight() {
    let script = Script::new(|_, _| Action::Answer);
    let process = Process::started(4, &script);
    let job = process.submit("a", 1000).await;
    process.until(job, |job| job.progress.succeeded >= 100).await;
    process.change(job, Change::Pause(PauseReason::Requested)).await;
    let paused = process.until(job, |job| job.progress.claimed == 0).await;
    assert_eq!(paused.progress.succeeded, u64::from(script.calls()));
    let calls = script.calls();
    assert!(calls < 200);
    sleep(Duration::from_secs(600)).await;
    assert_eq!((script.calls(), process.in_flight()), (calls, 0));
    process.change(job, Change::Resume).await;
    process.until_completed(job).await;
    assert!(are_all_answered(&process.store, job, "a", 1000));
    assert_eq!(script.calls(), 1000);
}

#[tokio::test(start_paused = true)]
async fn a_job_that_is_resumed_before_it_has_come_to_rest_goes_on() {
    let script = Script::new(|_, _| Action::Answer);
    let process = Process::started(4, &script);
    let job = process.submit("a", 500).await;
    for done in [50, 100, 150] {
        process.until(job, |job| job.progress.succeeded >= done).await;
        process.change(job, Change::Pause(PauseReason::Requested)).await;
        sleep(CALL / 4).await;
        process.change(job, Change::Resume).await;
    }
    process.until_completed(job).await;
    assert!(are_all_answered(&process.store, job, "a", 500));
    assert_eq!(script.calls(), 500);
}

#[tokio::test(start_paused = true)]
async fn cancelling_or_deleting_a_job_drops_its_calls() {
    let script = Script::new(|_, _| Action::Hang);
    let process = Process::started(4, &script);
    for deleted in [false, true] {
        let job = process.submit("a", 1000).await;
        while process.in_flight() < 4 {
            sleep(CALL).await;
        }
        let calls = script.calls();
        if deleted {
            process.store.delete(job).await.unwrap();
            process.jobs.wake(job);
        } else {
            process.change(job, Change::Cancel).await;
        }
        while process.in_flight() > 0 {
            sleep(CALL).await;
        }
        sleep(Duration::from_secs(60)).await;
        assert_eq!(script.calls(), calls);
    }
}

#[tokio::test(start_paused = true)]
async fn a_job_of_an_own_key_waits_for_its_key_after_a_restart() {
    let script = Script::new(|_, _| Action::Answer);
    let store = MemoryStore::default();
    let first = Process::new(&store, 2, &script);
    let owner = Owner::Key(*key("own-key").sha256());
    let job = begin(&first.jobs, owner).await;
    commit(&first.jobs, job, "a", 10).await;
    drop(first);
    let mut process = Process::new(&store, 2, &script);
    process.start();
    let paused = process.until(job, |job| job.state == JobState::Paused).await;
    assert_eq!((paused.reason, script.calls()), (Some(PauseReason::KeyNeeded), 0));
    process.jobs.hold_key(job, key("another-key"));
    process.jobs.wake(job);
    sleep(Duration::from_secs(10)).await;
    assert_eq!(script.calls(), 0, "only its own key pays");
    process.jobs.hold_key(job, key("own-key"));
    process.change(job, Change::Resume).await;
    process.until_completed(job).await;
    assert_eq!(script.calls(), 10);
    sleep(Duration::from_secs(3)).await;
    assert!(process.jobs.key_of(job).is_none(), "the key is forgotten with the end of the job");
}

#[tokio::test(start_paused = true)]
async fn a_replica_without_the_key_leaves_a_job_to_the_one_that_has_it() {
    let script = Script::new(|_, times| match times {
        0 => Action::Later(Some(Duration::from_secs(500))),
        _ => Action::Answer,
    });
    let store = MemoryStore::default();
    store.set(|settings| settings.is_shared = true);
    let (mut with, mut without) =
        (Process::new(&store, 2, &script), Process::new(&store, 2, &script));
    without.start();
    let job = begin(&with.jobs, Owner::Key(*key("own-key").sha256())).await;
    with.jobs.hold_key(job, key("own-key"));
    commit(&with.jobs, job, "a", 10).await;
    with.start();
    sleep(Duration::from_secs(300)).await;
    assert_eq!(store.get(job).state, JobState::Running);
    with.until_completed(job).await;

    // Once the replica with the key is gone, the job waits for the key.
    let job = begin(&without.jobs, Owner::Key(*key("own-key").sha256())).await;
    commit(&without.jobs, job, "b", 10).await;
    let paused = without.until(job, |job| job.state == JobState::Paused).await;
    assert_eq!(paused.reason, Some(PauseReason::KeyNeeded));
}

#[tokio::test(start_paused = true)]
async fn a_stop_records_the_calls_in_flight_and_gives_the_claims_back() {
    let script = Script::new(|_, _| Action::Answer);
    let mut process = Process::started(4, &script);
    let job = process.submit("a", 1000).await;
    process.until(job, |job| job.progress.succeeded >= 100).await;
    process.stop(sleep(Duration::from_secs(30))).await;
    let stopped = process.store.get(job);
    assert_eq!(stopped.progress.succeeded, u64::from(script.calls()));
    assert_eq!((stopped.state, stopped.progress.claimed), (JobState::Running, 0));
    process.start();
    process.until_completed(job).await;
    assert_eq!(script.calls(), 1000);
}

#[tokio::test(start_paused = true)]
async fn a_stop_drops_calls_that_outlast_the_grace_period() {
    let hangs = Arc::new(AtomicBool::new(true));
    let hanging = Arc::clone(&hangs);
    let script = Script::new(move |line, _| match line {
        "a 5" if hanging.load(Ordering::Relaxed) => Action::Hang,
        _ => Action::Answer,
    });
    let mut process = Process::started(4, &script);
    let job = process.submit("a", 10).await;
    process.until(job, |job| job.progress.succeeded == 9).await;
    process.stop(sleep(Duration::from_secs(30))).await;
    assert_eq!((process.store.get(job).progress.claimed, process.in_flight()), (0, 0));
    hangs.store(false, Ordering::Relaxed);
    process.start();
    process.until_completed(job).await;
    assert!(are_all_answered(&process.store, job, "a", 10));
    assert_eq!(script.calls(), 11);
}

#[tokio::test(start_paused = true)]
async fn failed_items_are_asked_again_after_a_retry() {
    let script = Script::new(|line, times| match line {
        "a 7" if times == 0 => Action::Fail,
        _ => Action::Answer,
    });
    let process = Process::started(4, &script);
    let job = process.submit("a", 10).await;
    process.until_completed(job).await;
    let which = crate::jobs::FailuresToRetry::All;
    process.store.retry(job, which, Timestamp::now()).await.unwrap();
    process.jobs.wake(job);
    process.until_completed(job).await;
    assert!(are_all_answered(&process.store, job, "a", 10));
    assert_eq!(script.calls(), 11);
}

#[tokio::test(start_paused = true)]
async fn a_job_waits_until_there_is_room_in_the_queue() {
    let script = Script::new(|_, _| Action::Answer);
    let mut process = Process::with_queue(&MemoryStore::default(), 1, 0, &script);
    let ticket = crate::limits::QueueTicket::new(Arc::clone(&process.limiter));
    let global = process.limiter.store().global();
    let slot = ticket.acquire_many(&global, 1).await.unwrap();
    process.start();
    let job = process.submit("a", 10).await;
    sleep(Duration::from_secs(300)).await;
    assert_eq!((script.calls(), process.limiter.occupancy().waiting), (0, 0));
    drop(slot);
    process.until_completed(job).await;
    assert_eq!(script.calls(), 10);
}

#[tokio::test(start_paused = true)]
async fn more_jobs_than_run_at_once_all_complete() {
    let script = Script::new(|_, _| Action::Answer);
    let process = Process::started(8, &script);
    let mut jobs = Vec::new();
    for n in 0..300 {
        jobs.push(process.submit(&format!("job {n}"), 3).await);
    }
    for (n, job) in jobs.into_iter().enumerate() {
        process.until_completed(job).await;
        assert!(are_all_answered(&process.store, job, &format!("job {n}"), 3));
    }
    assert_eq!(script.calls(), 900);
}

#[tokio::test(start_paused = true)]
async fn jobs_and_their_items_are_counted() {
    let script = Script::new(|line, times| match line {
        "a 0" => Action::Fail,
        "a 1" if times == 0 => Action::Repeat,
        _ => Action::Answer,
    });
    let process = Process::started(4, &script);
    let job = process.submit("a", 10).await;
    process.until_completed(job).await;
    let job = process.submit("b", 10).await;
    process.change(job, Change::Pause(PauseReason::Requested)).await;
    sleep(Duration::from_secs(3)).await;
    let metrics = process.metrics.encode(Format::Text).unwrap();
    for line in [
        "gemini_gateway_job_items_total{outcome=\"failed\"} 1",
        "gemini_gateway_job_items_total{outcome=\"repeated\"} 1",
        "gemini_gateway_jobs{state=\"paused\"} 1",
        "gemini_gateway_jobs{state=\"running\"} 0",
    ] {
        assert!(metrics.contains(line), "{line} is not in {metrics}");
    }
}

#[tokio::test(start_paused = true)]
async fn jobs_that_ended_long_ago_are_removed() {
    let script = Script::new(|_, _| Action::Answer);
    let process = Process::started(4, &script);
    let job = process.submit("a", 10).await;
    let id = process.until_completed(job).await.id;
    // It ended a moment ago on the wall clock, which does not follow the paused one.
    sleep(Duration::from_secs(2 * 60 * 60)).await;
    assert!(process.store.job(id.clone()).await.unwrap().is_some());
    super::super::sweep_once(&process.jobs, Duration::ZERO).await.unwrap();
    assert!(process.store.job(id).await.unwrap().is_none());
}
