//! What replicas report to each other.

use std::collections::BTreeMap;

use super::*;

fn report(text: &str) -> Report {
    Report { text: text.to_owned(), points: BTreeMap::new() }
}

/// The reports that a replica reads after its own, in order.
async fn reports(store: &Shared, own: &str) -> Vec<String> {
    let mut texts = store.report(report(own)).await.unwrap().texts;
    texts.sort();
    texts
}

#[tokio::test]
async fn replicas_read_the_reports_of_all_until_they_end() {
    let server = RedisServer::start().await;
    let [one, two, three]: [Shared; 3] =
        [server.store(5).await, server.store(5).await, server.store(5).await];
    assert_eq!(reports(&one, "a").await, ["a"]);
    assert_eq!(reports(&two, "b \" \\ ü").await, ["a", "b \" \\ ü"]);
    assert_eq!(reports(&one, "c").await, ["b \" \\ ü", "c"], "the last report holds");
    assert_eq!(reports(&three, "d").await.len(), 3);
    three.close().await;
    assert_eq!(reports(&two, "b").await, ["b", "c"]);
    let too_long = "x".repeat(70_000);
    assert_eq!(reports(&two, &too_long).await, ["b", "c"], "it is not kept");
    let first = [&one, &two].map(async |store| store.report(report("")).await.unwrap().is_first);
    let [one, two] = first;
    assert_ne!(one.await, two.await, "one of them is the first");
}

#[tokio::test]
async fn the_past_has_the_last_points_of_each_window() {
    let server = RedisServer::start().await;
    let store: Shared = server.store(5).await;
    for number in 0..400 {
        let points = BTreeMap::from([("hour", number.to_string()), ("other", "no window".into())]);
        store.report(Report { text: String::new(), points }).await.unwrap();
    }
    let another: Shared = server.store(5).await;
    let past = another.read_past("hour").await.unwrap();
    let expected: Vec<_> = (40..400).map(|number| number.to_string()).collect();
    assert_eq!(past, expected);
    assert_eq!(another.read_past("day").await.unwrap(), [""; 0]);
    assert_eq!(another.read_past("other").await.unwrap(), [""; 0]);
    let mut connection = server.connection().await;
    for key in ["reports", "past:hour"] {
        let ttl = redis::cmd("TTL").arg(format!("{{test}}:{key}")).to_owned();
        let seconds: i64 = ttl.query_async(&mut connection).await.unwrap();
        assert!((86_000..=86_400).contains(&seconds), "{key}: {seconds}");
    }
}

#[tokio::test]
async fn a_store_of_this_process_has_no_reports() {
    let store: Shared = LocalStore::new(5);
    assert_eq!(reports(&store, "a").await, [""; 0]);
    assert_eq!(store.read_past("hour").await.unwrap(), [""; 0]);
}

#[tokio::test]
async fn a_replica_counts_only_the_permits_that_it_holds_itself() {
    let server = RedisServer::start().await;
    let (one, two): (Shared, Shared) = (server.store(5).await, server.store(5).await);
    let permits = one.global().request(3, WaitMode::Endless).await.unwrap();
    two.refresh().await.unwrap();
    assert_eq!((one.held_here(), two.held_here()), (3, 0));
    assert_eq!(two.global().usage().in_use, 3);
    drop(permits);
    assert_eq!(one.held_here(), 0);
}
