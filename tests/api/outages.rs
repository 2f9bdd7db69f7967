//! Redis is lost or started anew.

use serde_json::json;
use tokio::task::JoinHandle;

use crate::process::Process;
use crate::replicas::until_connected;
use crate::sharing::{chat, register, semaphore, surroundings, until_waiting};
use crate::support::{Answer, answer, slow};

/// As short as may be where no call is to be cut short.
const LEASE_SECONDS: &str = "3";

fn send(replica: &Process, prompt: &str) -> JoinHandle<Answer> {
    tokio::spawn(answer(chat(replica, prompt)))
}

async fn assert_unavailable(request: reqwest::RequestBuilder) {
    let refused = answer(request).await;
    assert_eq!(refused.status, 503, "{:?}", refused.body);
    assert_eq!(refused.body["code"], "limits_unavailable");
}

#[tokio::test]
async fn without_redis_newcomers_are_refused_however_many_wait() {
    let mut all = surroundings().await;
    let replica = all.replica(2).set("REDIS_LEASE_SECONDS", LEASE_SECONDS).run().await;
    let mut before = vec![send(&replica, &slow(4000)), send(&replica, &slow(4000))];
    all.until_in_flight(2).await;
    before.extend((0..3).map(|_| send(&replica, "Hello")));
    let items: Vec<_> = (0..3).map(|number| json!({"prompt": number.to_string()})).collect();
    let batch = tokio::spawn(answer(replica.post("/batch/chat", &json!({"requests": items}))));
    until_waiting(&replica, 4).await;

    all.redis.stop().await;
    until_connected(&replica, false).await;
    assert_unavailable(chat(&replica, "Too late")).await;
    // Those who wait are two slots further on, and no call of theirs has begun.
    all.until_in_flight(0).await;
    assert_unavailable(chat(&replica, "Too late")).await;
    assert_unavailable(replica.post("/batch/chat", &json!({"requests": items}))).await;
    until_waiting(&replica, 4).await;
    assert_eq!(all.simulator.stats().calls, 2);

    all.redis.start_again().await;
    for request in before {
        let answered = request.await.unwrap();
        assert_eq!(answered.status, 200, "{:?}", answered.body);
    }
    assert_eq!(batch.await.unwrap().body["successful_requests"], 3);
}

#[tokio::test]
async fn semaphores_outlast_a_redis_that_a_replica_remembers_them_for() {
    let mut all = surroundings().await;
    let replica = all.replica(5).set("REDIS_LEASE_SECONDS", "1").run().await;
    assert_eq!(register(&replica, 4).await, 201);
    all.redis.stop().await;
    all.redis.start_again().await;
    replica.until_logged("connected to Redis again").await;
    assert_eq!(semaphore(&replica).await["limit"], 4);
    let anew = all.replica(5).set("REDIS_LEASE_SECONDS", "1").run().await;
    assert_eq!(semaphore(&anew).await["limit"], 4);
}
