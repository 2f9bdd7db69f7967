//! What becomes of items.

use tokio::time::Instant;

use super::*;
use crate::jobs::PauseReason;

#[tokio::test(start_paused = true)]
async fn each_item_of_a_job_gets_its_own_answer_from_one_call() {
    let script = Script::new(|_, _| Action::Answer);
    let process = Process::started(8, &script);
    let job = process.submit("a", 1234).await;
    let job = process.until_completed(job).await;
    assert!(are_all_answered(&process.store, job.number, "a", 1234));
    assert_eq!((script.calls(), job.progress.succeeded, job.progress.failed), (1234, 1234, 0));
}

#[tokio::test(start_paused = true)]
async fn every_slot_is_in_use() {
    let script = Script::new(|_, _| Action::Answer);
    let process = Process::started(8, &script);
    process.store.set(|settings| settings.record_takes = CALL / 2);
    let begin = Instant::now();
    let job = process.submit("a", 4000).await;
    process.until_completed(job).await;
    let least = CALL * 4000 / 8;
    assert!(begin.elapsed() < least.mul_f64(1.05), "{:?} instead of {least:?}", begin.elapsed());
}

#[tokio::test(start_paused = true)]
async fn items_that_wait_to_be_sent_again_hold_up_no_others() {
    let wait = CALL * 200;
    let script = Script::new(move |line, _| match line {
        "a 0" | "a 1" | "a 2" | "a 3" => Action::BackOff(wait),
        _ => Action::Answer,
    });
    let process = Process::started(4, &script);
    process.store.set(|settings| settings.record_takes = CALL / 40);
    let begin = Instant::now();
    let job = process.submit("a", 404).await;
    process.until(job, |job| job.progress.succeeded == 400).await;
    let least = CALL * 101;
    assert!(begin.elapsed() < least.mul_f64(1.05), "{:?} instead of {least:?}", begin.elapsed());
    process.until_completed(job).await;
}

#[tokio::test(start_paused = true)]
async fn a_job_uses_slots_that_were_added_while_it_runs() {
    let script = Script::new(|_, _| Action::Answer);
    let process = Process::started(4, &script);
    let job = process.submit("a", 20_000).await;
    process.until(job, |job| job.progress.succeeded > 0).await;
    process.limiter.reconfigure(600, 10, QuotaPlan::default()).await.unwrap();
    while process.in_flight() < 600 {
        assert_ne!(process.store.get(job).state, JobState::Completed);
        sleep(CALL / 10).await;
    }
}

#[tokio::test(start_paused = true)]
async fn the_window_of_a_large_job_is_bounded() {
    let script = Script::new(|_, _| Action::Answer);
    let process = Process::started(64, &script);
    let job = process.submit("a", 100_000).await;
    process.until_completed(job).await;
    let most = process.store.counted().most_claimed;
    assert!(most <= 256 + BLOCK, "{most} items were in memory");
    assert_eq!(script.calls(), 100_000);
}

#[tokio::test(start_paused = true)]
async fn items_fail_alone_and_may_panic() {
    let script = Script::new(|line, _| match line {
        "a 1" => Action::Fail,
        "a 2" => Action::Panic,
        "a 3" => Action::Unprepared(Action::Fail.into()),
        "a 4" => Action::Unprepared(Action::Panic.into()),
        _ => Action::Answer,
    });
    let process = Process::started(2, &script);
    let job = process.submit("a", 10).await;
    let job = process.until_completed(job).await;
    assert_eq!((job.progress.succeeded, job.progress.failed), (6, 4));
    let failures: Vec<_> = (process.store.results_of(job.number).into_iter())
        .filter_map(|result| Some((result.index, result.failure?)))
        .collect();
    let expected = [(1, "invalid_request"), (2, "internal_error"), (3, "invalid_request")];
    let expected = expected.into_iter().chain([(4, "internal_error")]);
    assert_eq!(failures, expected.map(|(n, code)| (n, code.to_owned())).collect::<Vec<_>>());
    assert_eq!(process.in_flight(), 0);
}

#[tokio::test(start_paused = true)]
async fn an_item_that_a_limit_stops_is_sent_again_until_it_is_answered() {
    let script = Script::new(|line, times| match line {
        "a 1" if times < 50 => Action::Later(None),
        "a 2" if times < 2 => Action::Later(Some(Duration::from_secs(100))),
        _ => Action::Answer,
    });
    let process = Process::started(2, &script);
    let begin = Instant::now();
    let job = process.submit("a", 3).await;
    process.until_completed(job).await;
    assert!(are_all_answered(&process.store, job, "a", 3));
    assert_eq!([script.asked("a 1"), script.asked("a 2")], [51, 3]);
    assert!(begin.elapsed() > Duration::from_secs(44 * 60));
}

#[tokio::test(start_paused = true)]
async fn a_job_of_which_every_item_is_stopped_does_not_spin() {
    let script = Script::new(|_, _| Action::Later(None));
    let process = Process::started(8, &script);
    let job = process.submit("a", 20_000).await;
    sleep(Duration::from_secs(5 * 60)).await;
    // 4096 items are put off, and the window is full. Each is asked 6 times in the first minute and once
    // in each further one.
    assert!(script.calls() < 10 * (4096 + 256 + 2 * BLOCK as u32), "{}", script.calls());
    assert!(process.store.counted().most_claimed <= 4096 + 256 + 2 * BLOCK);
    assert_eq!(process.store.get(job).unanswered(), 20_000);
}

#[tokio::test(start_paused = true)]
async fn an_item_that_fails_in_passing_is_repeated_three_times() {
    let script = Script::new(|line, times| match line {
        "a 0" => Action::Repeat,
        "a 1" if times < 3 => Action::Repeat,
        _ => Action::Answer,
    });
    let process = Process::started(2, &script);
    let begin = Instant::now();
    let job = process.submit("a", 3).await;
    let job = process.until_completed(job).await;
    assert_eq!((script.asked("a 0"), script.asked("a 1")), (4, 4));
    assert_eq!((job.progress.succeeded, job.progress.failed), (2, 1));
    let results = process.store.results_of(job.number);
    assert_eq!(results[0].failure.as_deref(), Some("unavailable"));
    let tokens: Vec<_> = results.iter().map(|result| result.input_tokens).collect();
    assert_eq!(tokens, [4, 4, 1], "those of all calls");
    assert!(begin.elapsed() >= Duration::from_secs(5 + 20 + 80));
}

#[tokio::test(start_paused = true)]
async fn a_job_is_paused_if_all_of_its_items_would_fail_and_goes_on_when_it_is_resumed() {
    let script = Script::new(|line, times| match line {
        "a 3" if times == 0 => Action::Hopeless,
        _ => Action::Answer,
    });
    let process = Process::started(1, &script);
    let job = process.submit("a", 10).await;
    let paused = process.until(job, |job| job.state == JobState::Paused).await;
    assert_eq!(paused.reason, Some(PauseReason::Failing("invalid_api_key".to_owned())));
    let paused = process.until(job, |job| job.progress.claimed == 0).await;
    let calls = script.calls();
    assert_eq!(paused.unanswered(), 10 - u64::from(calls - 1), "the others in flight have answers");
    sleep(Duration::from_secs(600)).await;
    assert_eq!(script.calls(), calls);
    process.change(job, Change::Resume).await;
    process.until_completed(job).await;
    assert!(are_all_answered(&process.store, job, "a", 10));
    assert_eq!(script.calls(), 11);
}
