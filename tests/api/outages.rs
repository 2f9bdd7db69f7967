//! Redis is lost, hangs or restarts; a replica is killed or paused.

use std::time::Duration;

use serde_json::json;
use tokio::task::JoinHandle;
use tokio::time::timeout;

use crate::process::{Process, Start};
use crate::redis_server::RedisServer;
use crate::replicas::{Backends, until_connected};
use crate::sharing::{
    LEASES, PREFIX, SEMAPHORES, backends, chat, register, semaphore, until_waiting,
};
use crate::support::{Answer, admin, answer, slow};

/// Short, but long enough for a replica on a busy machine to renew it.
const LEASE: Duration = Duration::from_secs(3);

/// A replica with this lease, not started yet.
fn replica(backends: &Backends, limit: usize) -> Start {
    backends.replica(limit).set("REDIS_LEASE_SECONDS", &LEASE.as_secs().to_string())
}

fn send(replica: &Process, prompt: &str) -> JoinHandle<Answer> {
    tokio::spawn(answer(chat(replica, prompt)))
}

async fn assert_unavailable(request: reqwest::RequestBuilder) {
    let refused = answer(request).await;
    assert_eq!(refused.status, 503, "{:?}", refused.body);
    assert_eq!(refused.body["code"], "limits_unavailable");
}

#[tokio::test]
async fn without_redis_new_requests_are_refused_however_many_wait() {
    let mut backends = backends().await;
    let replica = replica(&backends, 2).run().await;
    let mut before = vec![send(&replica, &slow(4000)), send(&replica, &slow(4000))];
    backends.until_in_flight(2).await;
    before.extend((0..3).map(|_| send(&replica, "Hello")));
    let items: Vec<_> = (0..3).map(|number| json!({"prompt": number.to_string()})).collect();
    let batch = tokio::spawn(answer(replica.post("/batch/chat", &json!({"requests": items}))));
    until_waiting(&replica, 4).await;

    backends.redis.stop().await;
    until_connected(&replica, false).await;
    assert_unavailable(chat(&replica, "Too late")).await;
    // Both slots are free again, but no waiting request may start.
    backends.until_in_flight(0).await;
    assert_unavailable(chat(&replica, "Too late")).await;
    assert_unavailable(replica.post("/batch/chat", &json!({"requests": items}))).await;
    until_waiting(&replica, 4).await;
    assert_eq!(backends.simulator.stats().calls, 2);

    backends.redis.restart().await;
    for request in before {
        let answered = request.await.unwrap();
        assert_eq!(answered.status, 200, "{:?}", answered.body);
    }
    assert_eq!(batch.await.unwrap().body["successful_requests"], 3);
}

#[tokio::test]
async fn a_replica_restores_semaphores_that_redis_lost() {
    let mut backends = backends().await;
    let replica = backends.replica(5).set("REDIS_LEASE_SECONDS", "1").run().await;
    assert_eq!(register(&replica, 4).await, 201);
    backends.redis.stop().await;
    backends.redis.restart().await;
    replica.until_logged("connected to Redis again").await;
    assert_eq!(semaphore(&replica).await["limit"], 4);
    let restarted = backends.replica(5).set("REDIS_LEASE_SECONDS", "1").run().await;
    assert_eq!(semaphore(&restarted).await["limit"], 4);
}

#[tokio::test]
async fn shared_state_survives_a_restart_of_a_persistent_redis() {
    let options = ["--save", "", "--appendonly", "yes", "--appendfsync", "always"];
    let redis = RedisServer::with(&options).await;
    redis.mark_as_long_running(PREFIX).await;
    let mut backends = Backends::new(redis).await;
    let start = |backends: &Backends| {
        backends.replica(5).set("REDIS_LEASE_SECONDS", "1").set("GEMINI_LIMITS", "*:rpd=3").run()
    };
    let replica = start(&backends).await;
    assert_eq!(register(&replica, 4).await, 201);
    let lease = json!({"holder": "h", "permits": 2, "ttl_seconds": 600});
    let lease = answer(admin(replica.post(LEASES, &lease))).await.body;
    for _ in 0..2 {
        assert_eq!(answer(chat(&replica, "Hello")).await.status, 200);
    }
    // No replica is left that remembers the semaphore.
    replica.terminate().await;
    assert_eq!(replica.end().await.0, Some(0));
    backends.redis.stop().await;
    backends.redis.restart().await;

    let restarted = start(&backends).await;
    let jobs = semaphore(&restarted).await;
    assert_eq!((&jobs["limit"], &jobs["in_use"]), (&json!(4), &json!(2)));
    let leases = answer(admin(restarted.get(LEASES))).await.body;
    assert_eq!(leases["leases"][0]["lease_id"], lease["lease_id"]);
    assert_eq!(leases["leases"][0]["fencing_token"], lease["fencing_token"]);
    assert_eq!(answer(chat(&restarted, "Hello")).await.status, 200);
    let refused = answer(chat(&restarted, "Hello")).await;
    assert_eq!(refused.body["code"], "daily_quota_exhausted", "{:?}", refused.body);
}

#[tokio::test]
async fn a_killed_replicas_permits_are_freed_when_its_lease_expires() {
    let backends = backends().await;
    let start = || replica(&backends, 1).run();
    let (one, two) = (start().await, start().await);
    let cut_off = tokio::spawn(chat(&one, &slow(600_000)).send());
    backends.until_in_flight(1).await;
    let waits = send(&two, "Hello");
    until_waiting(&two, 1).await;
    one.kill().await;
    // The rest is slack for a busy machine.
    let answered = timeout(LEASE + Duration::from_secs(3), waits).await;
    assert_eq!(answered.expect("the lease is over").unwrap().status, 200);
    assert!(cut_off.await.unwrap().is_err());
}

#[tokio::test]
async fn the_limit_holds_when_redis_loses_everything() {
    let backends = backends().await;
    let start = || replica(&backends, 4).run();
    let (one, two) = (start().await, start().await);
    let busy = |count| [&one, &two].into_iter().cycle().take(count).map(|at| send(at, &slow(1500)));
    let mut calls: Vec<_> = busy(4).collect();
    backends.until_in_flight(4).await;
    calls.extend(busy(12));
    until_waiting(&one, 6).await;
    until_waiting(&two, 6).await;
    backends.redis.execute(&redis::cmd("FLUSHALL")).await;
    // A replica that has just started does not know that anything was lost.
    let three = start().await;
    calls.push(send(&three, "Hello"));
    for call in calls {
        let answered = call.await.unwrap();
        assert_eq!(answered.status, 200, "{:?}", answered.body);
    }
    assert_eq!(backends.simulator.stats().highest_in_flight, 4);
}

/// The replica takes permits for its waiting requests and does not know how long it has held them.
#[tokio::test]
async fn permits_granted_to_a_paused_replica_are_void_when_it_resumes() {
    let backends = backends().await;
    let start = || replica(&backends, 2).run();
    let (one, two) = (start().await, start().await);
    let mut calls = vec![send(&two, &slow(2500)), send(&two, &slow(2500))];
    backends.until_in_flight(2).await;
    calls.extend([send(&one, &slow(1000)), send(&one, &slow(1000))]);
    until_waiting(&one, 2).await;
    calls.extend([send(&two, &slow(6000)), send(&two, &slow(6000))]);
    until_waiting(&two, 2).await;

    one.signal("STOP").await;
    // The next permits are the paused replica's. When its lease expires, they go to the other one.
    backends.until_in_flight(0).await;
    backends.until_in_flight(2).await;
    one.signal("CONT").await;
    one.until_logged("connected to Redis again").await;
    for call in calls {
        let answered = call.await.unwrap();
        assert_eq!(answered.status, 200, "{:?}", answered.body);
    }
    assert_eq!(backends.simulator.stats().highest_in_flight, 2);
}

#[tokio::test]
async fn a_redis_that_hangs_counts_as_unavailable() {
    let backends = backends().await;
    let replica = replica(&backends, 2).run().await;
    assert_eq!(answer(chat(&replica, "Hello")).await.status, 200);
    backends.redis.signal("STOP").await;
    // Whether the outage has been noticed or not. The replica needs a fifth of the lease to find
    // that no reply arrives, and another fifth to find that a new connection does not help. The rest
    // is slack for a busy machine.
    let soon = Duration::from_secs(10);
    timeout(soon, assert_unavailable(chat(&replica, "Hello"))).await.expect("in time");
    until_connected(&replica, false).await;
    assert_eq!(replica.health().await["status"], "degraded");
    timeout(soon, assert_unavailable(chat(&replica, "Hello"))).await.expect("in time");
    let register = admin(replica.post(SEMAPHORES, &json!({"semaphore_id": "jobs", "limit": 1})));
    timeout(soon, assert_unavailable(register)).await.expect("in time");

    backends.redis.signal("CONT").await;
    until_connected(&replica, true).await;
    assert_eq!(answer(chat(&replica, "Hello")).await.status, 200);
}
