//! What only a database on another machine can suffer.

use super::*;

async fn server() -> Postgres {
    Postgres::start().await
}

/// Repeats an operation until the database is back.
async fn until_available<T>(mut operation: impl FnMut() -> Stored<T>) -> T {
    loop {
        match operation().await {
            Ok(done) => return done,
            Err(StoreError::Unavailable(_)) => tokio::time::sleep(Duration::from_millis(20)).await,
            Err(error) => panic!("{error}"),
        }
    }
}

#[tokio::test]
async fn replicas_that_start_together_make_the_tables_once() {
    let server = server().await;
    let stores: Vec<_> = (0..6).map(|_| in_database(&server)).collect();
    for checked in join_all(stores.iter().map(|store| store.check())).await {
        checked.unwrap();
    }
    assert_eq!(server.number("SELECT count(*) FROM job_format").await, 1);
}

#[tokio::test]
async fn a_newer_format_is_refused() {
    let server = server().await;
    in_database(&server).check().await.unwrap();
    server.execute("UPDATE job_format SET format = 77").await;
    let refused = StoreError::TooNew { found: 77, known: 1 };
    assert_eq!(in_database(&server).check().await, Err(refused));
}

#[tokio::test]
async fn a_database_that_is_gone_is_unavailable_until_it_is_back() {
    let mut server = server().await;
    let store = in_database(&server);
    let job = upload(&store, new_job(), 100).await;
    let claimed = claim_all(&store, job.number, "a").await;
    record(&store, job.number, (0..50).map(answered).collect()).await;
    server.stop().await;
    for error in [
        store.check().await.err(),
        store.record(job.number, vec![answered(50)], at(1)).await.err(),
        store.begin(new_job(), replica("a")).await.err(),
    ] {
        assert!(matches!(error, Some(StoreError::Unavailable(_))), "{error:?}");
    }
    server.start_again().await;
    let rest: Vec<_> = (45..100).map(answered).collect();
    let ended = until_available(|| store.record(job.number, rest.clone(), at(1))).await.unwrap();
    assert_eq!((ended.state, ended.progress.succeeded), (JobState::Completed, 100));
    let all: Vec<_> = (0..100).collect();
    assert_eq!(indices(&store, job.number, Order::Input, false).await, all);
    assert_eq!(claimed.len(), 10);
}

#[tokio::test]
async fn a_database_that_restarts_in_the_middle_loses_and_repeats_nothing() {
    let mut server = server().await;
    let stores = [in_database(&server), in_database(&server)];
    let job = upload(&stores[0], new_job(), 400).await;
    let work = (0..4_u64).map(|worker| {
        let store = Arc::clone(&stores[worker as usize % 2]);
        tokio::spawn(async move {
            let mut index = worker;
            while index < 400 {
                let record = || store.record(job.number, vec![answered(index)], at(1));
                until_available(record).await.unwrap();
                index += 4;
            }
        })
    });
    let work: Vec<_> = work.collect();
    for answered in [50, 150, 250] {
        loop {
            let store = &stores[0];
            let found = until_available(|| store.job(job.id.clone())).await.unwrap();
            if found.progress.succeeded >= answered {
                break;
            }
        }
        server.stop().await;
        server.start_again().await;
    }
    for worker in work {
        worker.await.unwrap();
    }
    let ended = until_available(|| stores[0].job(job.id.clone())).await.unwrap();
    assert_eq!((ended.state, ended.progress.succeeded), (JobState::Completed, 400));
    assert_eq!(ended.progress.input_tokens, 1200);
    let all: Vec<_> = (0..400).collect();
    assert_eq!(indices(&stores[1], job.number, Order::Input, false).await, all);
}

#[tokio::test]
async fn a_database_that_stands_still_only_delays() {
    let server = server().await;
    let store = in_database(&server);
    let job = upload(&store, new_job(), 20).await;
    server.signal_all(Signal::STOP);
    let recording = tokio::spawn(store.record(job.number, vec![answered(0)], at(1)));
    let still = tokio::time::timeout(Duration::from_millis(300), store.check()).await;
    assert!(still.is_err() || still == Ok(Ok(())), "{still:?}");
    server.signal_all(Signal::CONT);
    let recorded = recording.await.unwrap().unwrap().unwrap();
    assert_eq!(recorded.progress.succeeded, 1);
}

#[tokio::test]
async fn an_upload_whose_replica_died_is_removed_by_another() {
    let server = server().await;
    let [dead, alive] = [in_database(&server), in_database(&server)];
    let number = dead.begin(new_job(), replica("dead")).await.unwrap();
    dead.append(number, blocks(50)).await.unwrap();
    let kept = alive.begin(new_job(), replica("alive")).await.unwrap();
    alive.append(kept, blocks(50)).await.unwrap();
    server.execute("UPDATE jobs SET lease_until = clock_timestamp() - interval '1 second'").await;
    alive.renew(replica("alive"), LEASE).await.unwrap();
    while server.number("SELECT count(*) FROM job_payloads").await != 5 {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    assert!(dead.append(number, blocks(1)).await.is_err());
    assert!(dead.commit(number, totals(50)).await.is_err());
    assert!(matches!(alive.commit(kept, totals(50)).await, Ok(Committed::New(_))));
}

#[tokio::test]
async fn a_deletion_whose_replica_died_is_finished_by_another() {
    let server = server().await;
    let store = in_database(&server);
    let job = upload(&store, new_job(), 3000).await;
    record(&store, job.number, (0..3000).map(answered).collect()).await;
    server
        .execute("UPDATE jobs SET state = 'deleting', lease_until = clock_timestamp()")
        .await;
    store.renew(replica("a"), LEASE).await.unwrap();
    let left = "SELECT (SELECT count(*) FROM jobs) + (SELECT count(*) FROM job_results) \
        + (SELECT count(*) FROM job_blocks) + (SELECT count(*) FROM job_payloads)";
    while server.number(left).await != 0 {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

#[tokio::test]
async fn nothing_of_a_deleted_job_is_left_in_the_tables() {
    let server = server().await;
    let store = in_database(&server);
    let job = upload(&store, new_job(), 3000).await;
    let results = (0..3000).map(|index| failed(index, "timeout", true)).collect();
    record(&store, job.number, results).await;
    store.delete(job.number).await.unwrap();
    for table in ["jobs", "job_blocks", "job_payloads", "job_results", "job_failures"] {
        assert_eq!(server.number(&format!("SELECT count(*) FROM {table}")).await, 0, "{table}");
    }
}

#[tokio::test]
async fn no_error_shows_the_password() {
    let server = server().await;
    server.execute("CREATE ROLE guest LOGIN PASSWORD 'Sesame77'").await;
    let address = server.url();
    let address = address.split_once('@').unwrap().1;
    let refused = format!("postgres://nobody:Sesame77@{address}");
    let unreachable = "postgres://guest:Sesame77@127.0.0.1:1/postgres".to_owned();
    let no_tls = format!("postgres://guest:Sesame77@{}", address.replace("disable", "require"));
    for url in [refused, unreachable, no_tls] {
        let settings = StoreSettings { folder: "/no/such".into(), database: Some(url.into()) };
        let store = open(&settings);
        let error = store.check().await.unwrap_err();
        assert!(matches!(error, StoreError::Unavailable(_)), "{error:?}");
        for text in [format!("{error} {error:?}"), format!("{settings:?}"), format!("{store:?}")] {
            assert!(!text.contains("Sesame77"), "{text}");
        }
    }
}

#[tokio::test]
async fn a_claim_whose_answer_was_lost_is_not_held_for_ever() {
    let server = server().await;
    let store = in_database(&server);
    let number = upload(&store, new_job(), 20).await.number;
    // The database makes the claim, but its answer comes too late for the caller.
    server.signal_all(Signal::STOP);
    let claim = store.claim(number, replica("a"), 20, 1 << 20, LEASE);
    assert!(tokio::time::timeout(Duration::from_millis(100), claim).await.is_err());
    server.signal_all(Signal::CONT);
    while claim_all(&store, number, "b").await.is_empty() {
        store.renew(replica("a"), LEASE).await.unwrap();
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}
