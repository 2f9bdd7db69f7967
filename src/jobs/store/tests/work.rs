//! Claims and results.

use std::collections::BTreeSet;

use super::*;

for_both_stores!(
    each_block_is_claimed_once,
    a_claim_takes_no_more_than_was_asked_for,
    a_block_that_is_too_large_is_told_and_not_claimed,
    a_claim_that_lapsed_is_made_again,
    answered_items_of_a_claimed_block_are_named,
    claims_are_renewed_and_given_back,
    a_claim_that_nobody_receives_is_given_back,
    an_item_has_one_result,
    a_job_is_completed_with_its_last_result,
    progress_agrees_with_the_results,
    many_results_at_once_are_all_recorded,
    the_clock_may_be_set_back,
    failed_items_are_asked_again,
    many_failed_items_are_asked_again,
    a_cancelled_job_goes_on_with_a_retry,
    a_cancelled_job_without_failed_items_goes_on_with_a_retry,
    a_job_that_runs_is_not_retried,
);

async fn each_block_is_claimed_once(database: Database) {
    let stores = database.open_two();
    let number = upload(&stores[0], new_job(), 1000).await.number;
    let claims = (0..8).map(|index| claim_all(&stores[index % 2], number, ["a", "b"][index % 2]));
    let mut claimed: Vec<_> = join_all(claims).await.into_iter().flatten().collect();
    claimed.sort_by_key(|block| block.first);
    let firsts: Vec<_> = claimed.iter().map(|block| block.first).collect();
    assert_eq!(firsts, (0..1000).step_by(10).collect::<Vec<_>>());
    for claimed in claimed {
        assert_eq!(claimed.lines, block(claimed.first, 10).lines);
        assert!(claimed.answered.is_empty());
    }
}

async fn a_claim_takes_no_more_than_was_asked_for(database: Database) {
    let store = database.open();
    let number = upload(&store, new_job(), 100).await.number;
    let bytes = block(10, 10).lines.len();
    let mut expected = 0;
    for (items, bytes, blocks) in [
        (1, bytes, 1),
        (0, bytes, 1),
        (29, 1 << 20, 2),
        (1000, 2 * bytes + 30, 2),
        (20, 1 << 20, 2),
    ] {
        let claimed = store.claim(number, replica("a"), items, bytes, LEASE).await.unwrap();
        assert_eq!(claimed.blocks.len(), blocks, "{items} items, {bytes} bytes");
        assert_eq!(claimed.too_large, None);
        for block in claimed.blocks {
            assert_eq!(block.first, expected);
            expected += 10;
        }
    }
}

async fn a_block_that_is_too_large_is_told_and_not_claimed(database: Database) {
    let store = database.open();
    let number = store.begin(new_job(), replica("a")).await.unwrap();
    // It is small on the disk.
    let large = format!("{{\"prompt\":\"{}\"}}\n", "x".repeat(100_000));
    let (second, third) = (block(1, 1), block(2, 1));
    let first = NewBlock { first: 0, lines: large.clone().into(), items: 1 };
    let small = second.lines.len();
    store.append(number, vec![first, second, third]).await.unwrap();
    store.commit(number, totals(3)).await.unwrap();
    for bytes in [0, large.len() - 1] {
        let claimed = store.claim(number, replica("a"), 10, bytes, LEASE).await.unwrap();
        assert!(claimed.blocks.is_empty(), "{bytes} bytes");
        assert_eq!(claimed.too_large, Some(large.len()));
    }
    assert_eq!(store.open_jobs().await.unwrap()[0].state, JobState::Queued);
    assert_eq!(store.renew(replica("a"), LEASE).await.unwrap(), []);
    let claimed = store.claim(number, replica("a"), 10, large.len(), LEASE).await.unwrap();
    assert_eq!(claimed.blocks[0].lines, large);
    assert_eq!((claimed.blocks.len(), claimed.too_large), (1, None));
    // What follows a block that fits is left without a word.
    let claimed = store.claim(number, replica("a"), 10, small + 1, LEASE).await.unwrap();
    assert_eq!((claimed.blocks.len(), claimed.too_large), (1, None));
    let claimed = store.claim(number, replica("a"), 10, small + 1, LEASE).await.unwrap();
    assert_eq!((claimed.blocks[0].first, claimed.too_large), (2, None));
    let claimed = store.claim(number, replica("a"), 10, 0, LEASE).await.unwrap();
    assert!(claimed.blocks.is_empty() && claimed.too_large.is_none());
}

async fn a_claim_that_lapsed_is_made_again(database: Database) {
    let [a, b] = database.open_two();
    let number = upload(&a, new_job(), 20).await.number;
    let claimed = a.claim(number, replica("a"), 20, 9999, Duration::ZERO).await.unwrap();
    assert_eq!(claimed.blocks.len(), 2);
    a.record(number, vec![answered(3), answered(12)], at(1)).await.unwrap();
    let again = claim_all(&b, number, "b").await;
    let answered: Vec<_> = again.iter().map(|block| block.answered.clone()).collect();
    assert_eq!(answered, [[3], [12]]);
    assert_eq!(a.renew(replica("a"), LEASE).await.unwrap(), []);
    assert_eq!(b.renew(replica("b"), LEASE).await.unwrap(), [(number, 0), (number, 10)]);
    assert!(claim_all(&a, number, "a").await.is_empty());
}

async fn answered_items_of_a_claimed_block_are_named(database: Database) {
    let store = database.open();
    let number = upload(&store, new_job(), 30).await.number;
    claim_all(&store, number, "a").await;
    let results = [0, 2, 9, 10, 11, 20].map(answered).to_vec();
    record(&store, number, results).await;
    record(&store, number, (10..20).map(answered).collect()).await;
    store.release(replica("a"), None).await.unwrap();
    let blocks = claim_all(&store, number, "b").await;
    let found: Vec<_> = blocks.iter().map(|it| (it.first, it.answered.clone())).collect();
    assert_eq!(found, [(0, vec![0, 2, 9]), (20, vec![20])]);
}

async fn claims_are_renewed_and_given_back(database: Database) {
    let store = database.open();
    let first = upload(&store, new_job(), 20).await.number;
    let second = upload(&store, new_job(), 10).await.number;
    for number in [first, second] {
        claim_all(&store, number, "a").await;
    }
    let held = [(first, 0), (first, 10), (second, 0)];
    assert_eq!(store.renew(replica("a"), Duration::ZERO).await.unwrap(), held);
    // They lapsed, but nobody else took them.
    assert_eq!(store.renew(replica("a"), LEASE).await.unwrap(), held);
    record(&store, first, (0..10).map(answered).collect()).await;
    assert_eq!(store.renew(replica("a"), LEASE).await.unwrap(), held[1..]);
    store.release(replica("b"), None).await.unwrap();
    store.release(replica("a"), Some(first)).await.unwrap();
    assert_eq!(store.renew(replica("a"), LEASE).await.unwrap(), held[2..]);
    assert_eq!(claim_all(&store, first, "b").await.len(), 1);
    store.change(second, Change::Cancel, at(1)).await.unwrap();
    assert_eq!(store.renew(replica("a"), LEASE).await.unwrap(), []);
}

async fn a_claim_that_nobody_receives_is_given_back(database: Database) {
    let store = database.open();
    let number = upload(&store, new_job(), 10).await.number;
    let claim = store.claim(number, replica("a"), 10, 9999, LEASE);
    // It is begun, and its caller goes away.
    let begun = tokio::time::timeout(Duration::ZERO, claim).await;
    if begun.is_err() {
        loop {
            store.renew(replica("a"), LEASE).await.unwrap();
            if !claim_all(&store, number, "b").await.is_empty() {
                return;
            }
        }
    }
}

async fn an_item_has_one_result(database: Database) {
    let [a, b] = database.open_two();
    let number = upload(&a, new_job(), 20).await.number;
    let results = vec![answered(3), failed(3, "timeout", true), answered(20), answered(u64::MAX)];
    let job = record(&a, number, results).await;
    assert_eq!((job.progress.succeeded, job.progress.failed), (1, 0));
    let rate = job.progress.rate;
    let again = record(&b, number, vec![failed(3, "timeout", true)]).await;
    assert_eq!((again.progress.succeeded, again.progress.failed), (1, 0));
    assert_eq!(again.progress.rate, rate);
    assert_eq!(again.progress.input_tokens, 3);
    assert!(again.progress.failures.is_empty());
    assert_eq!(indices(&a, number, Order::Completion, false).await, [3]);
}

async fn a_job_is_completed_with_its_last_result(database: Database) {
    let store = database.open();
    let number = upload(&store, new_job(), 20).await.number;
    claim_all(&store, number, "a").await;
    let first = store.record(number, (0..19).map(answered).collect(), at(5)).await.unwrap();
    assert_eq!(first.unwrap().state, JobState::Running);
    let paused = Change::Pause(PauseReason::Requested);
    store.change(number, paused, at(6)).await.unwrap();
    let last = store.record(number, vec![answered(19)], at(7)).await.unwrap().unwrap();
    assert_eq!((last.state, &last.reason), (JobState::Completed, &None));
    assert_eq!(
        (last.ended_at, last.progress.claimed),
        (Some(last.started_at.unwrap().max(at(7))), 0)
    );
    assert_eq!(store.renew(replica("a"), LEASE).await.unwrap(), []);
    assert_eq!(store.open_jobs().await.unwrap(), []);
    let cancelled = store.change(number, Change::Cancel, at(8)).await.unwrap().unwrap();
    assert_eq!(cancelled.state, JobState::Completed);
}

async fn progress_agrees_with_the_results(database: Database) {
    let store = database.open();
    let new = upload(&store, new_job(), 100).await;
    let number = new.number;
    for index in 0..50 {
        let result = match index % 5 {
            0 => failed(index, "timeout", true),
            1 => failed(index, "blocked", false),
            _ => answered(index),
        };
        record(&store, number, vec![result]).await;
    }
    let huge = Answered { cost: NanoDollars(u64::MAX), input_tokens: u64::MAX, ..answered(50) };
    record(&store, number, vec![huge]).await;
    let progress = job(&store, &new).await.progress;
    assert_eq!((progress.succeeded, progress.failed), (31, 20));
    assert_eq!(progress.output_tokens, 51 * 5);
    assert_eq!(progress.input_tokens, i64::MAX as u64);
    assert_eq!(progress.cost, NanoDollars(i64::MAX as u64));
    let timeout = Failures { count: 10, example: 0 };
    let blocked = Failures { count: 10, example: 1 };
    let expected = [("timeout".to_owned(), timeout), ("blocked".to_owned(), blocked)];
    assert_eq!(progress.failures, expected.into());
}

async fn many_results_at_once_are_all_recorded(database: Database) {
    let stores = database.open_two();
    let number = upload(&stores[0], new_job(), 300).await.number;
    let recording = (0..300_u64).map(|index| {
        let result = [index, (index + 1) % 300].map(answered).to_vec();
        stores[index as usize % 2].record(number, result, at(1))
    });
    for job in join_all(recording).await {
        job.unwrap();
    }
    let all: Vec<_> = (0..300).collect();
    assert_eq!(indices(&stores[0], number, Order::Input, false).await, all);
    let found = indices(&stores[1], number, Order::Completion, false).await;
    assert_eq!(found.len(), 300);
    assert_eq!(found.into_iter().collect::<BTreeSet<_>>().len(), 300);
    let job = stores[0].jobs(None, None, 1).await.unwrap().remove(0);
    assert_eq!((job.state, job.progress.succeeded), (JobState::Completed, 300));
}

async fn the_clock_may_be_set_back(database: Database) {
    let store = database.open();
    let new = upload(&store, new_job(), 20).await;
    claim_all(&store, new.number, "a").await;
    store.record(new.number, vec![answered(0)], at(100)).await.unwrap();
    store.record(new.number, vec![answered(1)], at(-100_000)).await.unwrap();
    assert!(claim_all(&store, new.number, "b").await.is_empty());
    let rest = (2..20).map(answered).collect();
    let ended = store.record(new.number, rest, at(-99_000)).await.unwrap().unwrap();
    assert_eq!(ended.state, JobState::Completed);
    assert!(ended.created_at <= ended.started_at.unwrap());
    assert!(ended.started_at <= ended.ended_at);
    assert!(ended.progress.rate.per_second(at(-99_000)) >= 0.0);
}

async fn failed_items_are_asked_again(database: Database) {
    let store = database.open();
    let number = upload(&store, new_job(), 40).await.number;
    let results = (0..40).map(|index| match index % 10 {
        0 => failed(index, "timeout", true),
        1 => failed(index, "blocked", false),
        2 if index > 30 => failed(index, "blocked", true),
        _ => answered(index),
    });
    let ended = record(&store, number, results.collect()).await;
    assert_eq!((ended.state, ended.progress.failed), (JobState::Completed, 9));
    let which = FailuresToRetry::Retryable;
    let again = store.retry(number, which, at(9)).await.unwrap().unwrap();
    assert_eq!((again.state, again.ended_at), (JobState::Queued, None));
    assert_eq!((again.progress.succeeded, again.progress.failed), (31, 4));
    let blocked = Failures { count: 4, example: 1 };
    assert_eq!(again.progress.failures, [("blocked".to_owned(), blocked)].into());
    assert_eq!(again.progress.input_tokens, 120, "what was spent stays counted");
    let claimed = claim_all(&store, number, "a").await;
    let unanswered = claimed.iter().flat_map(|block| {
        (block.first..block.first + 10).filter(|index| !block.answered.contains(index))
    });
    assert_eq!(unanswered.collect::<Vec<_>>(), [0, 10, 20, 30, 32]);
    record(&store, number, [0, 10, 20, 30, 32].map(answered).to_vec()).await;
    let all = store.retry(number, FailuresToRetry::All, at(9)).await.unwrap().unwrap();
    assert_eq!((all.state, all.progress.failed), (JobState::Queued, 0));
    assert!(all.progress.failures.is_empty());
    let ended = record(&store, number, [1, 11, 21, 31].map(answered).to_vec()).await;
    assert_eq!((ended.state, ended.progress.succeeded), (JobState::Completed, 40));
    let none = store.retry(number, FailuresToRetry::All, at(9)).await.unwrap().unwrap();
    assert_eq!(none, ended);
}

async fn many_failed_items_are_asked_again(database: Database) {
    let store = database.open();
    let number = upload(&store, new_job(), 10_010).await.number;
    let results = (0..10_010).map(|index| failed(index, "timeout", true)).collect();
    assert_eq!(record(&store, number, results).await.state, JobState::Completed);
    let again = store.retry(number, FailuresToRetry::All, at(9)).await.unwrap().unwrap();
    assert_eq!((again.state, again.progress.failed), (JobState::Queued, 0));
    assert!(again.progress.failures.is_empty());
    assert_eq!(claim_all(&store, number, "a").await.len(), 1001);
    assert!(indices(&store, number, Order::Completion, false).await.is_empty());
}

async fn a_cancelled_job_goes_on_with_a_retry(database: Database) {
    let store = database.open();
    let number = upload(&store, new_job(), 30).await.number;
    record(&store, number, vec![failed(0, "timeout", true), answered(1)]).await;
    store.change(number, Change::Cancel, at(5)).await.unwrap();
    let again = store.retry(number, FailuresToRetry::Retryable, at(9)).await.unwrap().unwrap();
    assert_eq!(again.state, JobState::Queued);
    assert_eq!(claim_all(&store, number, "a").await.len(), 3);
    let ended = record(&store, number, (0..30).map(answered).collect()).await;
    assert_eq!((ended.state, ended.progress.succeeded), (JobState::Completed, 30));
}

async fn a_cancelled_job_without_failed_items_goes_on_with_a_retry(database: Database) {
    let store = database.open();
    let number = upload(&store, new_job(), 30).await.number;
    record(&store, number, vec![failed(0, "invalid", false), answered(1)]).await;
    store.change(number, Change::Cancel, at(5)).await.unwrap();
    let again = store.retry(number, FailuresToRetry::Retryable, at(9)).await.unwrap().unwrap();
    assert_eq!((again.state, again.ended_at, again.progress.failed), (JobState::Queued, None, 1));
    let ended = record(&store, number, (1..30).map(answered).collect()).await;
    assert_eq!((ended.state, ended.progress.succeeded), (JobState::Completed, 29));
    // Now there is nothing to be asked again.
    let after = store.retry(number, FailuresToRetry::Retryable, at(9)).await.unwrap().unwrap();
    assert_eq!(after, ended);
}

async fn a_job_that_runs_is_not_retried(database: Database) {
    let store = database.open();
    let number = upload(&store, new_job(), 10).await.number;
    let before = record(&store, number, vec![failed(0, "timeout", true)]).await;
    let after = store.retry(number, FailuresToRetry::All, at(9)).await.unwrap().unwrap();
    assert_eq!(after, before);
}
