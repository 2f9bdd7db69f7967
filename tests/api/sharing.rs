//! What replicas share, what outlasts them, and how they start and stop.

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use reqwest::{Method, RequestBuilder};
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::io::AsyncWriteExt;
use tokio::net::TcpListener;

use crate::process::{Process, Start};
use crate::redis_server::{RedisServer, free_port};
use crate::replicas::{Surroundings, health};
use crate::support::{ADMIN_KEY, TEST_TIMEOUT, answer, slow, until};

pub const PREFIX: &str = "gemini-concurrent-generation";
pub const SEMAPHORES: &str = "/_admin/semaphores";
pub const LEASES: &str = "/_admin/semaphores/jobs/leases";

/// A Redis that counts as one that has been up for long, so that nobody waits for its lease.
pub async fn surroundings() -> Surroundings {
    let redis = RedisServer::start().await;
    redis.season(PREFIX).await;
    Surroundings::new(redis).await
}

pub fn admin(request: RequestBuilder) -> RequestBuilder {
    request.header("Admin-API-Key", ADMIN_KEY)
}

pub async fn register(replica: &Process, limit: usize) -> u16 {
    let body = json!({"semaphore_id": "jobs", "limit": limit});
    answer(admin(replica.post(SEMAPHORES, &body))).await.status.as_u16()
}

/// The only semaphore, as a replica sees it.
pub async fn semaphore(replica: &Process) -> Value {
    answer(admin(replica.get(SEMAPHORES))).await.body["semaphores"][0].clone()
}

pub async fn until_waiting(replica: &Process, count: usize) {
    let wait = async {
        while health(replica).await["concurrency_status"]["waiting"] != count {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(TEST_TIMEOUT, wait).await.expect("so many never waited");
}

pub fn chat(replica: &Process, prompt: &str) -> RequestBuilder {
    replica.post("/chat", &json!({"prompt": prompt}))
}

#[tokio::test]
async fn who_asks_first_goes_first_on_whatever_replica() {
    let all = surroundings().await;
    let (one, two) = (all.replica(5).run().await, all.replica(5).run().await);
    register(&one, 1).await;
    let send = |replica: &Process, prompt: String| {
        let body = json!({"prompt": prompt, "external_semaphore_id": "jobs"});
        tokio::spawn(answer(replica.post("/chat", &body)))
    };
    // For longer than it takes a busy machine until all of them wait.
    let held = send(&two, slow(5000));
    all.until_in_flight(1).await;
    let mut waiting = Vec::new();
    for (number, replica) in [&one, &two, &one, &two].into_iter().enumerate() {
        waiting.push(send(replica, format!("number {number}")));
        until_waiting(replica, number / 2 + 1).await;
        // A replica counts it before Redis has heard of it.
        while semaphore(replica).await["waiting"] != number + 1 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }
    assert_eq!(all.simulator.stats().in_flight, 1, "the limit is everybody's");
    for request in waiting.into_iter().chain([held]) {
        assert_eq!(request.await.unwrap().status, 200);
    }
    let prompts = all.simulator.journal().into_iter().map(|call| call.prompt_text);
    let ought = (0..4).map(|number| format!("number {number}"));
    assert_eq!(prompts.skip(1).collect::<Vec<_>>(), ought.collect::<Vec<_>>());
}

#[tokio::test]
async fn more_than_the_limit_wait_in_the_order_of_all_replicas() {
    let all = surroundings().await;
    let (one, two) = (all.replica(1).run().await, all.replica(1).run().await);
    // For longer than it takes a busy machine until all of them wait.
    let held = tokio::spawn(answer(chat(&one, &slow(5000))));
    all.until_in_flight(1).await;
    let mut waiting = Vec::new();
    // Each with how many wait at its replica then.
    let requests = [(&one, 1), (&one, 2), (&one, 3), (&two, 1), (&one, 4)];
    for (number, (replica, wait_there)) in requests.into_iter().enumerate() {
        waiting.push(tokio::spawn(answer(chat(replica, &format!("number {number}")))));
        until_waiting(replica, wait_there).await;
        // A replica counts it before Redis has heard of it.
        let heard = async {
            while all.redis.waiting(PREFIX).await <= number {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        tokio::time::timeout(TEST_TIMEOUT, heard).await.expect("Redis never heard of it");
    }
    for request in waiting.into_iter().chain([held]) {
        assert_eq!(request.await.unwrap().status, 200);
    }
    let prompts = all.simulator.journal().into_iter().map(|call| call.prompt_text);
    let ought = (0..5).map(|number| format!("number {number}"));
    assert_eq!(prompts.skip(1).collect::<Vec<_>>(), ought.collect::<Vec<_>>());
}

#[tokio::test]
async fn semaphores_are_of_all_replicas_and_outlast_them() {
    let all = surroundings().await;
    // The last one decides on the global limit, however large.
    let (one, two) = (all.replica(usize::MAX).run().await, all.replica(5).run().await);
    assert_eq!(register(&one, 3).await, 201);
    assert_eq!(register(&two, 1).await, 200, "it is there");
    assert_eq!(semaphore(&one).await["limit"], 1);

    let with = |prompt: String| json!({"prompt": prompt, "external_semaphore_id": "jobs"});
    let held = tokio::spawn(answer(one.post("/chat", &with(slow(1500)))));
    all.until_in_flight(1).await;
    assert_eq!(semaphore(&two).await["in_use"], 1);
    let waits = tokio::spawn(answer(two.post("/chat", &with("Hello".to_owned()))));
    until_waiting(&two, 1).await;
    let path = format!("{SEMAPHORES}/jobs");
    let deleted = answer(admin(one.request(Method::DELETE, &path))).await;
    assert_eq!(deleted.status, 204);
    let refused = waits.await.unwrap();
    assert_eq!(
        (refused.status.as_u16(), &refused.body["code"]),
        (409, &json!("semaphore_deleted"))
    );
    assert_eq!(held.await.unwrap().status, 200);
    assert_eq!(answer(two.post("/chat", &with("Hello".to_owned()))).await.status, 404);

    assert_eq!(register(&two, 7).await, 201);
    for replica in [one, two] {
        replica.terminate().await;
        assert_eq!(replica.end().await.0, Some(0));
    }
    let anew = all.replica(5).run().await;
    assert_eq!(semaphore(&anew).await["limit"], 7);
}

#[tokio::test]
async fn leases_and_batches_of_all_replicas_draw_from_the_same_permits() {
    let all = surroundings().await;
    let (one, two) = (all.replica(50).run().await, all.replica(50).run().await);
    register(&one, 4).await;
    let lease = |key: &str| json!({"holder": "h", "ttl_seconds": 600, "idempotency_key": key});
    let first = answer(admin(one.post(LEASES, &lease("a")))).await;
    let same = answer(admin(two.post(LEASES, &lease("a")))).await;
    assert_eq!((first.status.as_u16(), same.status.as_u16()), (201, 200));
    assert_eq!(first.body["lease_id"], same.body["lease_id"]);
    let second = answer(admin(two.post(LEASES, &lease("b")))).await.body;
    assert!(second["fencing_token"].as_u64() > first.body["fencing_token"].as_u64());
    assert_eq!(answer(admin(one.get(LEASES))).await.body["count"], 2);

    // Two permits are left for the batches.
    let items: Vec<_> = (0..20).map(|n| json!({"prompt": format!("{n} {}", slow(30))})).collect();
    let batch = json!({"requests": items, "external_semaphore_id": "jobs"});
    let batches =
        [&one, &two].map(|replica| tokio::spawn(answer(replica.post("/batch/chat", &batch))));
    for batch in batches {
        assert_eq!(batch.await.unwrap().body["successful_requests"], 20);
    }
    assert_eq!(all.simulator.stats().highest_in_flight, 2);

    let path = format!("{LEASES}/{}", second["lease_id"].as_str().unwrap());
    assert_eq!(answer(admin(one.request(Method::PUT, &path))).await.status, 200);
    assert_eq!(answer(admin(one.request(Method::DELETE, &path))).await.status, 204);
    assert_eq!(answer(admin(two.request(Method::PUT, &path))).await.status, 404);
    assert_eq!(semaphore(&two).await["in_use"], 1);
}

#[tokio::test]
async fn quotas_are_spent_together() {
    let all = surroundings().await;
    let start = || all.replica(5).set("GEMINI_LIMITS", "*:rpd=3").run();
    let (one, two) = (start().await, start().await);
    for replica in [&one, &two, &one] {
        assert_eq!(answer(chat(replica, "Hello")).await.status, 200);
    }
    for replica in [&one, &two] {
        let refused = answer(chat(replica, "Hello")).await;
        assert_eq!(refused.body["code"], "daily_quota_exhausted", "{:?}", refused.body);
        let limits = answer(admin(replica.get("/_admin/limits"))).await.body;
        assert_eq!(limits["limits"][0]["requests_per_day"]["used"], 3);
    }
    assert_eq!(all.simulator.stats().calls, 3);
}

#[tokio::test]
async fn of_limits_that_differ_the_lowest_holds_and_every_replica_warns_once() {
    let all = surroundings().await;
    let start = |limits: &str| all.replica(5).set("GEMINI_LIMITS", limits).run();
    let (one, two) = (start("*:rpd=3,rpm=100").await, start("*:rpd=2,rpm=200").await);
    let limit = async |replica: &Process, quota: &str| {
        let limits = answer(admin(replica.get("/_admin/limits"))).await.body;
        limits["limits"][0][quota]["limit"].clone()
    };
    for replica in [&two, &one] {
        assert_eq!(answer(chat(replica, "Hello")).await.status, 200);
    }
    for replica in [&one, &two] {
        replica.until_logged("the lowest limit of all running replicas counts").await;
        assert_eq!(limit(replica, "requests_per_day").await, 2);
        assert_eq!(limit(replica, "requests_per_minute").await, 100);
        let refused = answer(chat(replica, "Hello")).await;
        assert_eq!(refused.body["code"], "daily_quota_exhausted", "{:?}", refused.body);
    }
    two.terminate().await;
    let (code, log) = two.end().await;
    assert_eq!(code, Some(0));
    assert_eq!(log.matches("the lowest limit of all running replicas counts").count(), 1);
    assert_eq!(limit(&one, "requests_per_day").await, 3);
    assert_eq!(answer(chat(&one, "Hello")).await.status, 200);
    assert_eq!(one.log().matches("the lowest limit of all running replicas counts").count(), 1);
}

#[tokio::test]
async fn a_day_that_gemini_calls_used_up_is_over_for_all_replicas() {
    let all = surroundings().await;
    let (one, two) = (all.replica(5).run().await, all.replica(5).run().await);
    assert_eq!(answer(chat(&two, "Hello")).await.status, 200);
    for prompt in ["[[simulate:quota=day]]", "Hello"] {
        let refused = answer(chat(&one, prompt)).await;
        assert_eq!(refused.body["code"], "daily_quota_exhausted", "{:?}", refused.body);
    }
    let told = async {
        while answer(chat(&two, "Hello")).await.body["code"] != "daily_quota_exhausted" {}
    };
    tokio::time::timeout(TEST_TIMEOUT, told).await.expect("it is never told");
}

#[tokio::test]
async fn a_replica_that_stops_leaves_its_permits_at_once() {
    let all = surroundings().await;
    let start = || all.replica(1).set("SHUTDOWN_GRACE_SECONDS", "0.1").run();
    let (one, two) = (start().await, start().await);
    let cut_off = tokio::spawn(chat(&one, &slow(600_000)).send());
    all.until_in_flight(1).await;
    let waits = tokio::spawn(answer(chat(&two, "Hello")));
    until_waiting(&two, 1).await;
    one.terminate().await;
    assert_eq!(one.end().await.0, Some(0));
    // Its lease of 30 seconds would outlast the patience of a client here.
    let answered = tokio::time::timeout(Duration::from_secs(20), waits).await;
    assert_eq!(answered.expect("before the lease is over").unwrap().status, 200);
    assert!(cut_off.await.unwrap().is_err());
}

#[tokio::test]
async fn prefixes_share_nothing() {
    let all = surroundings().await;
    all.redis.season("other").await;
    let one = all.replica(1).run().await;
    let other = all.replica(1).set("REDIS_PREFIX", "other").run().await;
    register(&one, 3).await;
    let calls = [&one, &other].map(|replica| tokio::spawn(answer(chat(replica, &slow(1500)))));
    all.until_in_flight(2).await;
    assert_eq!(semaphore(&other).await, Value::Null);
    for call in calls {
        assert_eq!(call.await.unwrap().status, 200);
    }
}

/// What a start that has to fail ends with, in one line.
async fn failure(start: Start) -> String {
    let output = start.set("GEMINI_BASE_URL", "http://127.0.0.1:9").output().await;
    let log = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(1), "{log}");
    assert_eq!(log.lines().count(), 1, "{log}");
    log
}

#[tokio::test]
async fn a_redis_that_cannot_be_used_stops_the_start_unless_it_may_do_without() {
    let free = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = free.local_addr().unwrap();
    drop(free);
    let url = format!("redis://user:topsecret@{address}");
    let log = failure(Start::with_arguments(&["serve"]).set("REDIS_URL", &url)).await;
    assert!(log.contains(&format!("Redis at {address}: ")), "{log}");
    assert!(log.contains("REDIS_REQUIRED=false") && !log.contains("topsecret"), "{log}");

    let start = Start::simulated().set("REDIS_URL", &url).set("REDIS_REQUIRED", "false");
    let replica = start.run().await;
    assert_eq!(answer(chat(&replica, "Hello")).await.status, 200);
    assert_eq!(health(&replica).await["shared_limits"], Value::Null);
    let log = replica.log();
    assert!(log.contains("WARN") && log.contains(&address.to_string()), "{log}");
    assert!(!log.contains("topsecret"), "{log}");
}

#[tokio::test]
async fn a_version_that_keeps_another_format_is_refused_at_the_start() {
    let all = surroundings().await;
    let format = redis::cmd("SET").arg(format!("{{{PREFIX}}}:members")).arg("999").to_owned();
    all.redis.say(&format).await;
    let start = || Start::with_arguments(&["serve"]).set("REDIS_URL", &all.redis.url());
    let log = failure(start()).await;
    assert!(log.contains("in format 999, and this one in format 4"), "{log}");
    assert!(log.contains("REDIS_PREFIX"), "{log}");
    let other = all.replica(1).set("REDIS_PREFIX", "other").set("REDIS_LEASE_SECONDS", "1");
    assert_eq!(answer(chat(&other.run().await, "Hello")).await.status, 200);
}

#[tokio::test]
async fn what_is_no_redis_is_refused_clearly() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("redis://{}", listener.local_addr().unwrap());
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            // Whoever hung up first has heard enough.
            let _ = stream.write_all(b"HTTP/1.1 400 Bad Request\r\n\r\n").await;
        }
    });
    let log = failure(Start::with_arguments(&["serve"]).set("REDIS_URL", &url)).await;
    assert!(log.contains("Redis at 127.0.0.1"), "{log}");
}

#[tokio::test]
async fn a_server_that_never_answers_stops_the_start() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("redis://{}", listener.local_addr().unwrap());
    tokio::spawn(async move {
        let mut connections = Vec::new();
        while let Ok((stream, _)) = listener.accept().await {
            connections.push(stream);
        }
    });
    let start = Start::with_arguments(&["serve"]).set("REDIS_URL", &url);
    let log = failure(start.set("REDIS_LEASE_SECONDS", "1")).await;
    assert!(log.contains("Redis at 127.0.0.1") && log.contains("timed out"), "{log}");
}

#[tokio::test]
async fn a_password_is_used_and_never_shown() {
    let redis = RedisServer::with(&["--save", "", "--requirepass", "topsecret"]).await;
    let port = redis.port();
    let mut all = Surroundings::new(redis).await;
    let wrong = format!("redis://:wrongsecret@127.0.0.1:{port}");
    let log = failure(all.replica(1).unset("REDIS_URL").set("REDIS_URL", &wrong)).await;
    assert!(!log.contains("wrongsecret"), "{log}");

    let right = format!("redis://:topsecret@127.0.0.1:{port}");
    let start = all.replica(1).unset("REDIS_URL").set("REDIS_URL", &right);
    let replica = start.set("REDIS_LEASE_SECONDS", "1").set("RUST_LOG", "trace").run().await;
    assert_eq!(answer(chat(&replica, "Hello")).await.status, 200);
    all.redis.stop().await;
    replica.until_logged("Redis is unavailable").await;
    let metrics = replica.get("/metrics").send().await.unwrap().text().await.unwrap();
    until("it is logged", || replica.log().contains("/metrics")).await;
    for shown in [replica.log(), metrics, health(&replica).await.to_string()] {
        assert!(!shown.contains("topsecret"), "{shown}");
    }
}

#[tokio::test]
async fn any_node_of_a_cluster_leads_to_the_one_that_keeps_the_limits() {
    let node = || RedisServer::with(&["--save", "", "--cluster-enabled", "yes"]);
    let (keeper, other) = (node().await, node().await);
    let mut slots = redis::cmd("CLUSTER").arg("ADDSLOTS").to_owned();
    slots.arg((0..16_384).collect::<Vec<u32>>());
    keeper.say(&slots).await;
    let meet = redis::cmd("CLUSTER").arg("MEET").arg("127.0.0.1").arg(keeper.port()).to_owned();
    other.say(&meet).await;
    let all = Surroundings::new(other).await;
    let lease = |start: Start| start.set("REDIS_LEASE_SECONDS", "1");
    let one = loop {
        // Until the nodes have told each other who keeps what.
        let output = lease(all.replica(1)).set("REDIS_REQUIRED", "false").run().await;
        if health(&output).await["shared_limits"]["connected"] == true {
            break output;
        }
    };
    let two = lease(all.replica(1)).unset("REDIS_URL").set("REDIS_URL", &keeper.url()).run().await;
    register(&one, 3).await;
    assert_eq!(semaphore(&two).await["limit"], 3);
    let calls = [&one, &two].map(|replica| tokio::spawn(answer(chat(replica, &slow(100)))));
    for call in calls {
        assert_eq!(call.await.unwrap().status, 200);
    }
    assert_eq!(all.simulator.stats().highest_in_flight, 1);
}

/// Runs OpenSSL, which comes with the CA certificates.
pub fn openssl(folder: &Path, arguments: &str) {
    let output = Command::new("openssl").args(arguments.split(' ')).current_dir(folder).output();
    let output = output.expect("the package openssl has to be installed");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

#[tokio::test]
async fn redis_is_spoken_to_over_tls_and_has_to_be_trusted() {
    let folder = TempDir::new().unwrap();
    let path = |name: &str| folder.path().join(name).to_str().unwrap().to_owned();
    let key = "-newkey rsa:2048 -nodes";
    openssl(folder.path(), &format!("req -x509 {key} -keyout ca.key -out ca.pem -subj /CN=ca"));
    openssl(folder.path(), &format!("req {key} -keyout key -out request -subj /CN=localhost"));
    std::fs::write(path("names"), "subjectAltName=DNS:localhost").unwrap();
    let sign = "x509 -req -in request -CA ca.pem -CAkey ca.key -CAcreateserial -out pem";
    openssl(folder.path(), &format!("{sign} -extfile names"));
    let port = free_port().to_string();
    let redis = RedisServer::with(&[
        "--save",
        "",
        "--tls-port",
        &port,
        "--tls-auth-clients",
        "no",
        "--tls-cert-file",
        &path("pem"),
        "--tls-key-file",
        &path("key"),
        "--tls-ca-cert-file",
        &path("ca.pem"),
    ])
    .await;
    let all = Surroundings::new(redis).await;
    let start = || {
        let url = format!("rediss://localhost:{port}");
        all.replica(1).unset("REDIS_URL").set("REDIS_URL", &url).set("REDIS_LEASE_SECONDS", "3")
    };
    let log = failure(start()).await;
    assert!(log.contains("certificate"), "{log}");
    let replica = start().set("SSL_CERT_FILE", &path("ca.pem")).run().await;
    assert_eq!(answer(chat(&replica, "Hello")).await.status, 200);
    assert_eq!(health(&replica).await["shared_limits"]["connected"], true);
}
