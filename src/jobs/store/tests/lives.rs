//! The lives of jobs, from upload to deletion.

use super::*;

for_both_stores!(
    a_job_is_seen_once_it_is_committed,
    a_job_is_read_as_it_was_written,
    a_job_without_items_is_completed_at_once,
    an_abandoned_job_is_gone,
    an_upload_that_lacks_items_is_not_accepted,
    a_commit_may_be_repeated,
    the_same_request_is_the_same_job,
    the_same_key_with_other_content_is_a_conflict,
    of_two_uploads_at_once_with_the_same_key_one_is_accepted,
    a_job_is_paused_resumed_and_cancelled,
    jobs_are_listed_newest_first,
    a_deleted_job_is_gone,
    only_jobs_that_ended_early_enough_are_removed,
    the_end_is_announced,
    a_retry_takes_back_the_announcement,
    a_closed_store_is_unavailable,
);

async fn a_job_is_seen_once_it_is_committed(database: Database) {
    let store = database.open();
    let new = new_job();
    let id = new.id.clone();
    let number = store.begin(new, replica("a")).await.unwrap();
    store.append(number, vec![block(0, 3)]).await.unwrap();
    assert_eq!(store.job(id.clone()).await.unwrap(), None);
    assert_eq!(store.jobs(None, None, 10).await.unwrap(), []);
    assert_eq!(store.open_jobs().await.unwrap(), []);
    assert!(claim_all(&store, number, "a").await.is_empty());
    assert_eq!(store.record(number, vec![answered(0)], at(1)).await.unwrap(), None);
    store.append(number, vec![block(3, 2)]).await.unwrap();
    let Committed::New(job) = store.commit(number, totals(5)).await.unwrap() else { panic!() };
    assert_eq!(store.job(id).await.unwrap().as_ref(), Some(&*job));
    assert_eq!(store.open_jobs().await.unwrap(), [*job]);
}

async fn a_job_is_read_as_it_was_written(database: Database) {
    let store = database.open();
    let mut new = new_job();
    new.owner = Owner::Key([0xa7; 32]);
    let number = store.begin(new.clone(), replica("a")).await.unwrap();
    store.append(number, blocks(5)).await.unwrap();
    let totals = Totals { items: 5, bytes: u64::MAX, content: [1; 32] };
    let Committed::New(job) = store.commit(number, totals).await.unwrap() else { panic!() };
    assert_eq!((&job.id, &job.owner, &*job.spec), (&new.id, &new.owner, &new.spec));
    assert_eq!((job.total, job.bytes), (5, i64::MAX as u64));
    assert_eq!((job.state, &job.reason), (JobState::Queued, &None));
    assert_eq!((job.created_at, job.started_at, job.ended_at), (at(0), None, None));
    assert_eq!(job.progress, crate::jobs::Progress::default());
    assert_eq!(store.shared_fields(number).await.unwrap(), new.shared);
    assert_eq!(store.shared_fields(JobNumber(99)).await.unwrap(), SharedFields::new());
    store.close().await;
    assert_eq!(database.open().job(new.id).await.unwrap(), Some(*job));
}

async fn a_job_without_items_is_completed_at_once(database: Database) {
    let store = database.open();
    let job = upload(&store, new_job(), 0).await;
    assert_eq!(job.state, JobState::Completed);
    assert!(job.ended_at.is_some());
    let page = store.results(job.number, Order::Input, false, 0, 10, 1000).await.unwrap();
    assert!(page.results.is_empty() && page.is_last);
}

async fn an_abandoned_job_is_gone(database: Database) {
    let store = database.open();
    let number = store.begin(new_job(), replica("a")).await.unwrap();
    store.append(number, blocks(50)).await.unwrap();
    store.abandon(number).await.unwrap();
    for result in [
        store.append(number, vec![block(50, 1)]).await.err(),
        store.commit(number, totals(50)).await.err(),
    ] {
        assert!(matches!(result, Some(StoreError::Unavailable(_))), "{result:?}");
    }
    assert_eq!(store.jobs(None, None, 10).await.unwrap(), []);
    // What is accepted is not abandoned.
    let job = upload(&store, new_job(), 1).await;
    store.abandon(job.number).await.unwrap();
    assert_eq!(store.jobs(None, None, 10).await.unwrap(), [job]);
}

async fn an_upload_that_lacks_items_is_not_accepted(database: Database) {
    let store = database.open();
    let number = store.begin(new_job(), replica("a")).await.unwrap();
    store.append(number, blocks(50)).await.unwrap();
    let result = store.commit(number, totals(51)).await;
    assert!(matches!(result, Err(StoreError::Damaged(_))), "{result:?}");
}

async fn a_commit_may_be_repeated(database: Database) {
    let store = database.open();
    let accepted = upload(&store, new_job(), 3).await;
    let again = store.commit(accepted.number, totals(3)).await.unwrap();
    assert_eq!(again, Committed::New(Box::new(accepted)));
}

fn with_key(key: u8) -> NewJob {
    NewJob { idempotency_key: Some([key; 32]), ..new_job() }
}

async fn the_same_request_is_the_same_job(database: Database) {
    let store = database.open();
    let first = upload(&store, with_key(1), 5).await;
    let number = store.begin(with_key(1), replica("a")).await.unwrap();
    store.append(number, blocks(5)).await.unwrap();
    let same = store.commit(number, totals(5)).await.unwrap();
    assert_eq!(same, Committed::Same(Box::new(first.clone())));
    // Another key, another owner, and no key at all are other jobs.
    upload(&store, with_key(2), 5).await;
    upload(&store, NewJob { owner: Owner::Fallback, ..with_key(1) }, 5).await;
    upload(&store, new_job(), 5).await;
    upload(&store, new_job(), 5).await;
    assert_eq!(store.jobs(None, None, 10).await.unwrap().len(), 5);
    // A job that was deleted has no key any more.
    store.delete(first.number).await.unwrap();
    upload(&store, with_key(1), 5).await;
}

async fn the_same_key_with_other_content_is_a_conflict(database: Database) {
    let store = database.open();
    let first = upload(&store, with_key(1), 5).await;
    let number = store.begin(with_key(1), replica("a")).await.unwrap();
    store.append(number, blocks(6)).await.unwrap();
    assert_eq!(store.commit(number, totals(6)).await.unwrap(), Committed::Conflict);
    assert_eq!(store.jobs(None, None, 10).await.unwrap(), [first]);
}

async fn of_two_uploads_at_once_with_the_same_key_one_is_accepted(database: Database) {
    let stores = database.open_two();
    let uploads = stores.iter().map(|store| async {
        let number = store.begin(with_key(1), replica("a")).await.unwrap();
        store.append(number, blocks(5)).await.unwrap();
        number
    });
    let numbers = join_all(uploads).await;
    let commits = stores.iter().zip(numbers).map(|(store, it)| store.commit(it, totals(5)));
    let committed: Vec<_> = join_all(commits).await.into_iter().map(Result::unwrap).collect();
    let is_new = |committed: &&Committed| matches!(committed, Committed::New(_));
    assert_eq!(committed.iter().filter(is_new).count(), 1, "{committed:?}");
    assert!(!committed.contains(&Committed::Conflict), "{committed:?}");
    assert_eq!(stores[0].jobs(None, None, 10).await.unwrap().len(), 1);
}

async fn a_job_is_paused_resumed_and_cancelled(database: Database) {
    let store = database.open();
    let number = upload(&store, new_job(), 30).await.number;
    let change = async |change| store.change(number, change, at(5)).await.unwrap().unwrap();
    let paused = change(Change::Pause(PauseReason::KeyNeeded)).await;
    assert_eq!((paused.state, &paused.reason), (JobState::Paused, &Some(PauseReason::KeyNeeded)));
    assert_eq!(store.open_jobs().await.unwrap(), [paused]);
    assert!(claim_all(&store, number, "a").await.is_empty());
    assert_eq!(change(Change::Resume).await.state, JobState::Queued);
    let claimed = store.claim(number, replica("a"), 10, 9999, LEASE).await.unwrap();
    assert_eq!(claimed.blocks.len(), 1);
    let running = store.open_jobs().await.unwrap().remove(0);
    assert_eq!((running.state, running.progress.claimed), (JobState::Running, 10));
    let failing = PauseReason::Failing("account_unfunded".to_owned());
    assert_eq!(change(Change::Pause(failing.clone())).await.reason, Some(failing));
    // What was in flight is still recorded.
    assert_eq!(record(&store, number, vec![answered(0)]).await.progress.succeeded, 1);
    assert_eq!(change(Change::Resume).await.state, JobState::Running);
    let cancelled = change(Change::Cancel).await;
    assert_eq!((cancelled.state, cancelled.progress.claimed), (JobState::Cancelled, 0));
    assert!(cancelled.ended_at.is_some());
    assert_eq!(change(Change::Resume).await, cancelled);
    assert_eq!(record(&store, number, vec![answered(1)]).await, cancelled);
    assert!(claim_all(&store, number, "a").await.is_empty());
    assert_eq!(store.open_jobs().await.unwrap(), []);
    let gone = store.change(JobNumber(99), Change::Cancel, at(5)).await;
    assert_eq!(gone, Ok(None));
}

async fn jobs_are_listed_newest_first(database: Database) {
    let store = database.open();
    let mut all = Vec::new();
    for index in 0..6 {
        let owner = [Owner::Admin, Owner::Fallback, Owner::Key([5; 32])][index % 3].clone();
        all.insert(0, upload(&store, NewJob { owner, ..new_job() }, 1).await);
    }
    assert_eq!(store.jobs(None, None, 10).await.unwrap(), all);
    assert_eq!(store.jobs(None, None, 4).await.unwrap(), all[..4]);
    assert_eq!(store.jobs(None, Some(all[3].number), 10).await.unwrap(), all[4..]);
    let own = [all[0].clone(), all[3].clone()];
    assert_eq!(store.jobs(Some(Owner::Key([5; 32])), None, 10).await.unwrap(), own);
    let older = store.jobs(Some(Owner::Key([5; 32])), Some(own[0].number), 10).await.unwrap();
    assert_eq!(older, own[1..]);
    assert_eq!(store.jobs(Some(Owner::Key([6; 32])), None, 10).await.unwrap(), []);
    all.reverse();
    assert_eq!(store.open_jobs().await.unwrap(), all);
}

async fn a_deleted_job_is_gone(database: Database) {
    let store = database.open();
    let (job, kept) = (upload(&store, new_job(), 2000).await, upload(&store, new_job(), 5).await);
    claim_all(&store, job.number, "a").await;
    let results = (0..2000).map(|index| failed(index, "timeout", true)).collect();
    record(&store, job.number, results).await;
    let deleting = store.delete(job.number);
    deleting.await.unwrap();
    assert_eq!(store.job(job.id.clone()).await, Ok(None));
    assert_eq!(store.record(job.number, vec![answered(0)], at(1)).await, Ok(None));
    assert_eq!(store.change(job.number, Change::Cancel, at(1)).await, Ok(None));
    assert_eq!(store.retry(job.number, FailuresToRetry::All, at(1)).await, Ok(None));
    let page = store.results(job.number, Order::Input, false, 0, 10, 1000).await.unwrap();
    assert!(page.results.is_empty() && page.is_last);
    assert_eq!(store.jobs(None, None, 10).await.unwrap(), [kept]);
    store.delete(job.number).await.unwrap();
}

async fn only_jobs_that_ended_early_enough_are_removed(database: Database) {
    let store = database.open();
    let jobs = [upload(&store, new_job(), 1).await, upload(&store, new_job(), 1).await];
    upload(&store, new_job(), 1).await;
    for (job, time) in jobs.iter().zip([10, 20]) {
        store.record(job.number, vec![answered(0)], at(time)).await.unwrap();
    }
    for (time, ended) in [(10, &jobs[..0]), (15, &jobs[..1]), (30, &jobs[..])] {
        let ended: Vec<_> = ended.iter().map(|job| job.number).collect();
        assert_eq!(store.ended_before(at(time), 10).await.unwrap(), ended);
    }
    assert_eq!(store.ended_before(at(30), 1).await.unwrap(), [jobs[0].number]);
}

fn with_webhook() -> NewJob {
    let mut new = new_job();
    new.spec.webhook_url = Some("https://hooks.example".to_owned());
    new
}

async fn the_end_is_announced(database: Database) {
    let store = database.open();
    let job = upload(&store, with_webhook(), 1).await;
    let silent = upload(&store, new_job(), 1).await;
    let due =
        async |time| store.due_announcements(at(time), Duration::from_secs(30), 10).await.unwrap();
    assert_eq!(due(1).await, []);
    let ended = store.record(job.number, vec![answered(0)], at(5)).await.unwrap().unwrap();
    let ended_at = ended.ended_at.expect("it has ended");
    store.record(silent.number, vec![answered(0)], at(5)).await.unwrap();
    assert_eq!(due(4).await, []);
    assert_eq!(due(6).await, [(ended.clone(), 0)]);
    assert_eq!(due(35).await, [], "it is claimed");
    assert_eq!(due(36).await, [(ended.clone(), 1)], "whoever claimed it died");
    store.announced(job.number, ended_at, Some(at(100))).await.unwrap();
    assert_eq!(due(99).await, []);
    assert_eq!(due(100).await, [(ended, 2)]);
    store.announced(job.number, ended_at, None).await.unwrap();
    assert_eq!(due(10_000).await, []);
    let cancelled = upload(&store, with_webhook(), 1).await;
    store.change(cancelled.number, Change::Cancel, at(5)).await.unwrap();
    assert_eq!(due(6).await.len(), 1);
}

async fn a_retry_takes_back_the_announcement(database: Database) {
    let store = database.open();
    let job = upload(&store, with_webhook(), 1).await;
    let due = async || store.due_announcements(at(10), Duration::from_secs(30), 10).await.unwrap();
    record(&store, job.number, vec![failed(0, "timeout", true)]).await;
    let first = due().await;
    let ended_at = first[0].0.ended_at.expect("it has ended");
    store.retry(job.number, FailuresToRetry::All, at(1)).await.unwrap();
    store.announced(job.number, ended_at, Some(at(2))).await.unwrap();
    assert_eq!(due().await, []);
    record(&store, job.number, vec![answered(0)]).await;
    assert_eq!(due().await.iter().map(|(_, attempts)| *attempts).collect::<Vec<_>>(), [0]);
}

async fn a_closed_store_is_unavailable(database: Database) {
    let store = database.open();
    let job = upload(&store, new_job(), 1).await;
    store.close().await;
    store.close().await;
    assert!(matches!(store.check().await, Err(StoreError::Unavailable(_))));
    assert!(matches!(store.job(job.id.clone()).await, Err(StoreError::Unavailable(_))));
    assert!(database.open().job(job.id).await.unwrap().is_some());
}
