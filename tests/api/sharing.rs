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
use crate::replicas::Backends;
use crate::support::{TEST_TIMEOUT, admin, answer, slow, until};

pub const PREFIX: &str = "gemini-concurrent-generation";
pub const SEMAPHORES: &str = "/_admin/semaphores";
pub const LEASES: &str = "/_admin/semaphores/jobs/leases";

/// A simulator, and a Redis that counts as long-running, so that replicas need not wait for a
/// lease.
pub async fn backends() -> Backends {
    let redis = RedisServer::start().await;
    redis.mark_as_long_running(PREFIX).await;
    Backends::new(redis).await
}

pub async fn register(replica: &Process, limit: usize) -> u16 {
    let body = json!({"semaphore_id": "jobs", "limit": limit});
    answer(admin(replica.post(SEMAPHORES, &body))).await.status.as_u16()
}

/// The only semaphore, as a replica reports it.
pub async fn semaphore(replica: &Process) -> Value {
    answer(admin(replica.get(SEMAPHORES))).await.body["semaphores"][0].clone()
}

pub async fn until_waiting(replica: &Process, count: usize) {
    let wait = async {
        while replica.health().await["concurrency_status"]["waiting"] != count {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(TEST_TIMEOUT, wait)
        .await
        .expect("the number of waiting requests was not reached");
}

pub fn chat(replica: &Process, prompt: &str) -> RequestBuilder {
    replica.post("/chat", &json!({"prompt": prompt}))
}

#[tokio::test]
async fn requests_start_in_order_across_replicas() {
    let backends = backends().await;
    let (one, two) = (backends.replica(5).run().await, backends.replica(5).run().await);
    register(&one, 1).await;
    let send = |replica: &Process, prompt: String| {
        let body = json!({"prompt": prompt, "external_semaphore_id": "jobs"});
        tokio::spawn(answer(replica.post("/chat", &body)))
    };
    // Longer than a busy machine needs until all of them wait.
    let held = send(&two, slow(5000));
    backends.until_in_flight(1).await;
    let mut waiting = Vec::new();
    for (number, replica) in [&one, &two, &one, &two].into_iter().enumerate() {
        waiting.push(send(replica, format!("number {number}")));
        until_waiting(replica, number / 2 + 1).await;
        // A replica counts it before Redis does.
        while semaphore(replica).await["waiting"] != number + 1 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }
    assert_eq!(backends.simulator.stats().in_flight, 1, "all replicas share the limit");
    for request in waiting.into_iter().chain([held]) {
        assert_eq!(request.await.unwrap().status, 200);
    }
    let prompts = backends.simulator.journal().into_iter().map(|call| call.prompt_text);
    let ought = (0..4).map(|number| format!("number {number}"));
    assert_eq!(prompts.skip(1).collect::<Vec<_>>(), ought.collect::<Vec<_>>());
}

#[tokio::test]
async fn waiting_requests_keep_their_order_across_replicas() {
    let backends = backends().await;
    let (one, two) = (backends.replica(1).run().await, backends.replica(1).run().await);
    // Longer than a busy machine needs until all of them wait.
    let held = tokio::spawn(answer(chat(&one, &slow(5000))));
    backends.until_in_flight(1).await;
    let mut waiting = Vec::new();
    // Each with the number that then waits at its replica.
    let requests = [(&one, 1), (&one, 2), (&one, 3), (&two, 1), (&one, 4)];
    for (number, (replica, wait_there)) in requests.into_iter().enumerate() {
        waiting.push(tokio::spawn(answer(chat(replica, &format!("number {number}")))));
        until_waiting(replica, wait_there).await;
        // A replica counts it before Redis does.
        let counted = async {
            while backends.redis.waiting(PREFIX).await <= number {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        tokio::time::timeout(TEST_TIMEOUT, counted).await.expect("Redis never counted it");
    }
    for request in waiting.into_iter().chain([held]) {
        assert_eq!(request.await.unwrap().status, 200);
    }
    let prompts = backends.simulator.journal().into_iter().map(|call| call.prompt_text);
    let ought = (0..5).map(|number| format!("number {number}"));
    assert_eq!(prompts.skip(1).collect::<Vec<_>>(), ought.collect::<Vec<_>>());
}

#[tokio::test]
async fn semaphores_are_shared_by_replicas_and_outlast_them() {
    let backends = backends().await;
    // The replica that starts last sets the global limit.
    let (one, two) = (backends.replica(usize::MAX).run().await, backends.replica(5).run().await);
    assert_eq!(register(&one, 3).await, 201);
    assert_eq!(register(&two, 1).await, 200, "it exists");
    assert_eq!(semaphore(&one).await["limit"], 1);

    let with = |prompt: String| json!({"prompt": prompt, "external_semaphore_id": "jobs"});
    let held = tokio::spawn(answer(one.post("/chat", &with(slow(1500)))));
    backends.until_in_flight(1).await;
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
    let restarted = backends.replica(5).run().await;
    assert_eq!(semaphore(&restarted).await["limit"], 7);
}

#[tokio::test]
async fn leases_and_batches_of_all_replicas_share_permits() {
    let backends = backends().await;
    let (one, two) = (backends.replica(50).run().await, backends.replica(50).run().await);
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
    assert_eq!(backends.simulator.stats().highest_in_flight, 2);

    let path = format!("{LEASES}/{}", second["lease_id"].as_str().unwrap());
    assert_eq!(answer(admin(one.request(Method::PUT, &path))).await.status, 200);
    assert_eq!(answer(admin(one.request(Method::DELETE, &path))).await.status, 204);
    assert_eq!(answer(admin(two.request(Method::PUT, &path))).await.status, 404);
    assert_eq!(semaphore(&two).await["in_use"], 1);
}

#[tokio::test]
async fn quotas_are_shared_by_replicas() {
    let backends = backends().await;
    let start = || backends.replica(5).set("GEMINI_LIMITS", "*:rpd=3").run();
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
    assert_eq!(backends.simulator.stats().calls, 3);
}

#[tokio::test]
async fn the_lowest_of_different_limits_counts_and_each_replica_warns_once() {
    let backends = backends().await;
    let start = |limits: &str| backends.replica(5).set("GEMINI_LIMITS", limits).run();
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
async fn an_exhausted_daily_quota_pauses_all_replicas() {
    let backends = backends().await;
    let (one, two) = (backends.replica(5).run().await, backends.replica(5).run().await);
    assert_eq!(answer(chat(&two, "Hello")).await.status, 200);
    for prompt in ["[[simulate:quota=day]]", "Hello"] {
        let refused = answer(chat(&one, prompt)).await;
        assert_eq!(refused.body["code"], "daily_quota_exhausted", "{:?}", refused.body);
    }
    let notified = async {
        while answer(chat(&two, "Hello")).await.body["code"] != "daily_quota_exhausted" {}
    };
    tokio::time::timeout(TEST_TIMEOUT, notified)
        .await
        .expect("the other replica was never notified");
}

#[tokio::test]
async fn a_stopping_replica_frees_its_permits_at_once() {
    let backends = backends().await;
    let start = || backends.replica(1).set("SHUTDOWN_GRACE_SECONDS", "0.1").run();
    let (one, two) = (start().await, start().await);
    let cut_off = tokio::spawn(chat(&one, &slow(600_000)).send());
    backends.until_in_flight(1).await;
    let waits = tokio::spawn(answer(chat(&two, "Hello")));
    until_waiting(&two, 1).await;
    one.terminate().await;
    assert_eq!(one.end().await.0, Some(0));
    // Its lease of 30 seconds is longer than these clients wait.
    let answered = tokio::time::timeout(Duration::from_secs(20), waits).await;
    assert_eq!(answered.expect("before the lease expires").unwrap().status, 200);
    assert!(cut_off.await.unwrap().is_err());
}

#[tokio::test]
async fn replicas_with_different_prefixes_share_nothing() {
    let backends = backends().await;
    backends.redis.mark_as_long_running("other").await;
    let one = backends.replica(1).run().await;
    let other = backends.replica(1).set("REDIS_PREFIX", "other").run().await;
    register(&one, 3).await;
    let calls = [&one, &other].map(|replica| tokio::spawn(answer(chat(replica, &slow(1500)))));
    backends.until_in_flight(2).await;
    assert_eq!(semaphore(&other).await, Value::Null);
    for call in calls {
        assert_eq!(call.await.unwrap().status, 200);
    }
}

/// The log line of a start that must fail.
async fn failure(start: Start) -> String {
    let output = start.set("GEMINI_BASE_URL", "http://127.0.0.1:9").output().await;
    let log = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(1), "{log}");
    assert_eq!(log.lines().count(), 1, "{log}");
    log
}

#[tokio::test]
async fn an_unusable_redis_fails_the_start_unless_redis_is_optional() {
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
    assert_eq!(replica.health().await["shared_limits"], Value::Null);
    let log = replica.log();
    assert!(log.contains("WARN") && log.contains(&address.to_string()), "{log}");
    assert!(!log.contains("topsecret"), "{log}");
}

#[tokio::test]
async fn a_store_of_another_format_version_is_refused_at_the_start() {
    let backends = backends().await;
    let format = redis::cmd("SET").arg(format!("{{{PREFIX}}}:members")).arg("999").to_owned();
    backends.redis.execute(&format).await;
    let start = || Start::with_arguments(&["serve"]).set("REDIS_URL", &backends.redis.url());
    let log = failure(start()).await;
    assert!(log.contains("in format 999, and this one in format 5"), "{log}");
    assert!(log.contains("REDIS_PREFIX"), "{log}");
    let other = backends.replica(1).set("REDIS_PREFIX", "other").set("REDIS_LEASE_SECONDS", "1");
    assert_eq!(answer(chat(&other.run().await, "Hello")).await.status, 200);
}

#[tokio::test]
async fn a_server_that_is_not_redis_is_refused_clearly() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("redis://{}", listener.local_addr().unwrap());
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            // The client may have disconnected already.
            let _ = stream.write_all(b"HTTP/1.1 400 Bad Request\r\n\r\n").await;
        }
    });
    let log = failure(Start::with_arguments(&["serve"]).set("REDIS_URL", &url)).await;
    assert!(log.contains("Redis at 127.0.0.1"), "{log}");
}

#[tokio::test]
async fn a_server_that_never_answers_fails_the_start() {
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
    let mut backends = Backends::new(redis).await;
    let wrong = format!("redis://:wrongsecret@127.0.0.1:{port}");
    let log = failure(backends.replica(1).unset("REDIS_URL").set("REDIS_URL", &wrong)).await;
    assert!(!log.contains("wrongsecret"), "{log}");

    let right = format!("redis://:topsecret@127.0.0.1:{port}");
    let start = backends.replica(1).unset("REDIS_URL").set("REDIS_URL", &right);
    let replica = start.set("REDIS_LEASE_SECONDS", "1").set("RUST_LOG", "trace").run().await;
    assert_eq!(answer(chat(&replica, "Hello")).await.status, 200);
    backends.redis.stop().await;
    replica.until_logged("Redis is unavailable").await;
    let metrics = replica.get("/metrics").send().await.unwrap().text().await.unwrap();
    until("it is logged", || replica.log().contains("/metrics")).await;
    for shown in [replica.log(), metrics, replica.health().await.to_string()] {
        assert!(!shown.contains("topsecret"), "{shown}");
    }
}

#[tokio::test]
async fn any_cluster_node_leads_to_the_node_that_keeps_the_limits() {
    let node = || RedisServer::with(&["--save", "", "--cluster-enabled", "yes"]);
    let (keeper, other) = (node().await, node().await);
    let mut slots = redis::cmd("CLUSTER").arg("ADDSLOTS").to_owned();
    slots.arg((0..16_384).collect::<Vec<u32>>());
    keeper.execute(&slots).await;
    let meet = redis::cmd("CLUSTER").arg("MEET").arg("127.0.0.1").arg(keeper.port()).to_owned();
    other.execute(&meet).await;
    let backends = Backends::new(other).await;
    let lease = |start: Start| start.set("REDIS_LEASE_SECONDS", "1");
    let one = loop {
        // Until the nodes have agreed on who owns which slots.
        let output = lease(backends.replica(1)).set("REDIS_REQUIRED", "false").run().await;
        if output.health().await["shared_limits"]["connected"] == true {
            break output;
        }
    };
    let two =
        lease(backends.replica(1)).unset("REDIS_URL").set("REDIS_URL", &keeper.url()).run().await;
    register(&one, 3).await;
    assert_eq!(semaphore(&two).await["limit"], 3);
    let calls = [&one, &two].map(|replica| tokio::spawn(answer(chat(replica, &slow(100)))));
    for call in calls {
        assert_eq!(call.await.unwrap().status, 200);
    }
    assert_eq!(backends.simulator.stats().highest_in_flight, 1);
}

/// Runs OpenSSL, which is installed with the CA certificates.
pub fn openssl(folder: &Path, arguments: &str) {
    let output = Command::new("openssl").args(arguments.split(' ')).current_dir(folder).output();
    let output = output.expect("the package openssl must be installed");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

#[tokio::test]
async fn redis_over_tls_must_have_a_trusted_certificate() {
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
    let backends = Backends::new(redis).await;
    let start = || {
        let url = format!("rediss://localhost:{port}");
        backends
            .replica(1)
            .unset("REDIS_URL")
            .set("REDIS_URL", &url)
            .set("REDIS_LEASE_SECONDS", "3")
    };
    let log = failure(start()).await;
    assert!(log.contains("certificate"), "{log}");
    let replica = start().set("SSL_CERT_FILE", &path("ca.pem")).run().await;
    assert_eq!(answer(chat(&replica, "Hello")).await.status, 200);
    assert_eq!(replica.health().await["shared_limits"]["connected"], true);
}
