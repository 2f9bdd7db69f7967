//! Leases: permits of a named semaphore for work outside the service, shared with its own calls.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use futures_util::future::join_all;
use gemini_concurrent_generation::simulator::Options;
use reqwest::{Method, StatusCode};
use serde_json::{Value, json};
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep};

use crate::process::Start;
use crate::support::{ADMIN_KEY, Answer, Service, admin, answer, slow, until};

const LEASES: &str = "/_admin/semaphores/images/leases";

/// Asks for a lease of the semaphore `images`.
async fn take(service: &Service, body: Value) -> Answer {
    answer(admin(service.post(LEASES, &body))).await
}

/// Asks for a lease in a task of its own.
fn waiting(service: &Service, body: Value) -> JoinHandle<Answer> {
    tokio::spawn(answer(admin(service.post(LEASES, &body))))
}

/// Takes a lease that is available.
async fn take_available(service: &Service, permits: usize) -> Value {
    let body = json!({"holder": "outside", "permits": permits, "ttl_seconds": 600});
    let lease = take(service, body).await;
    assert_eq!(lease.status, StatusCode::CREATED, "{lease:?}");
    lease.body
}

fn path(lease: &Value) -> String {
    format!("{LEASES}/{}", lease["lease_id"].as_str().unwrap())
}

async fn renew(service: &Service, path: &str, body: Option<Value>) -> Answer {
    let request = reqwest::Client::new().request(Method::PUT, service.url(path));
    let request = match body {
        Some(body) => request.header("content-type", "application/json").body(body.to_string()),
        None => request,
    };
    answer(admin(request)).await
}

async fn release(service: &Service, lease: &Value) {
    let released = answer(service.delete(&path(lease))).await;
    assert_eq!((released.status, released.body), (StatusCode::NO_CONTENT, Value::Null));
}

async fn list(service: &Service) -> Value {
    let listed = answer(admin(service.get(LEASES))).await;
    assert_eq!(listed.status, StatusCode::OK);
    listed.body
}

/// What `GET /_admin/semaphores` reports for `images`: permits in use, and waiting requests.
async fn occupancy(service: &Service) -> (Value, Value) {
    let listed = answer(admin(service.get("/_admin/semaphores"))).await.body;
    let images = &listed["semaphores"][0];
    (images["in_use"].clone(), images["waiting"].clone())
}

#[tokio::test]
async fn a_lease_is_taken_listed_renewed_and_released() {
    let service = Service::start().await;
    service.register("images", 3).await;
    assert_eq!(list(&service).await, json!({"count": 0, "leases": []}));

    let first = take(&service, json!({"holder": "render-7", "ttl_seconds": 60})).await;
    assert_eq!(first.status, StatusCode::CREATED);
    let first = first.body;
    let fields: Vec<_> = first.as_object().unwrap().keys().map(String::as_str).collect();
    let expected = ["lease_id", "semaphore_id", "holder", "permits", "expires_at", "fencing_token"];
    assert_eq!(fields, expected);
    assert_eq!((&first["semaphore_id"], &first["holder"]), (&json!("images"), &json!("render-7")));
    assert_eq!(first["permits"], 1, "the default");
    let ends =
        |lease: &Value| lease["expires_at"].as_str().unwrap().parse::<jiff::Timestamp>().unwrap();
    let left = ends(&first).duration_since(jiff::Timestamp::now()).as_secs_f64();
    assert!((0.0..=60.0).contains(&left), "{left}");
    let second = take_available(&service, 2).await;
    assert!(second["fencing_token"].as_u64() > first["fencing_token"].as_u64());
    assert_eq!(list(&service).await, json!({"count": 2, "leases": [first, second]}));
    assert_eq!(occupancy(&service).await, (json!(3), json!(0)));

    let renewed = renew(&service, &path(&first), None).await;
    assert_eq!(renewed.status, StatusCode::OK);
    assert!(ends(&renewed.body) >= ends(&first));
    for unchanged in ["lease_id", "permits", "fencing_token"] {
        assert_eq!(renewed.body[unchanged], first[unchanged]);
    }
    let longer = renew(&service, &path(&first), Some(json!({"ttl_seconds": 600}))).await;
    let gained = ends(&longer.body).duration_since(ends(&renewed.body)).as_secs_f64();
    assert!(gained >= 540.0, "{gained}");

    for _ in 0..2 {
        release(&service, &first).await;
        assert_eq!(list(&service).await, json!({"count": 1, "leases": [second]}));
    }
    assert_eq!(occupancy(&service).await, (json!(2), json!(0)));
}

#[tokio::test]
async fn an_expired_lease_is_distinguished_from_a_held_one() {
    let service = Service::start().await;
    service.register("images", 1).await;
    let lease = take_available(&service, 1).await;
    release(&service, &lease).await;
    let id = lease["lease_id"].as_str().unwrap();
    let no_text = format!("{LEASES}/%FF");
    for path in [path(&lease), format!("{LEASES}/x%2Fy"), "/_admin/semaphores/%20/leases/x".into()]
    {
        let over = renew(&service, &path, None).await;
        assert_eq!(
            (over.status, &over.body["code"]),
            (StatusCode::NOT_FOUND, &json!("lease_not_found"))
        );
        assert!(
            path.contains("%") || over.body["detail"].as_str().unwrap().contains(id),
            "{over:?}"
        );
    }
    assert_eq!(renew(&service, &no_text, None).await.body["code"], "not_found");

    // A lease of another semaphore is unaffected.
    service.register("audio", 1).await;
    let lease = take_available(&service, 1).await;
    let elsewhere = path(&lease).replace("images", "audio");
    assert_eq!(renew(&service, &elsewhere, None).await.body["code"], "lease_not_found");
    let released = answer(service.delete(&elsewhere)).await;
    assert_eq!(
        (released.status, &released.body["code"]),
        (StatusCode::NOT_FOUND, &json!("lease_not_found"))
    );
    assert_eq!(list(&service).await["count"], 1);

    for (method, path) in [
        (Method::GET, "/_admin/semaphores/lost/leases"),
        (Method::POST, "/_admin/semaphores/lost/leases"),
        (Method::POST, "/_admin/semaphores/%20/leases"),
    ] {
        let body = json!({"holder": "x", "ttl_seconds": 1}).to_string();
        let request = reqwest::Client::new().request(method, service.url(path));
        let request = admin(request.header("content-type", "application/json").body(body));
        let unknown = answer(request).await;
        assert_eq!(
            (unknown.status, &unknown.body["code"]),
            (StatusCode::NOT_FOUND, &json!("semaphore_not_found"))
        );
    }
}

#[tokio::test]
async fn fields_out_of_range_are_refused() {
    let service = Service::start().await;
    service.register("images", 1000).await;
    let longest = "ü".repeat(128);
    for (field, value) in [
        ("holder", json!(longest)),
        ("permits", json!(1000)),
        ("permits", json!(30.0)),
        ("ttl_seconds", json!(1)),
        ("ttl_seconds", json!(1.5)),
        ("ttl_seconds", json!(3600)),
        ("wait_seconds", json!(0)),
        ("wait_seconds", json!(0.25)),
        ("wait_seconds", json!(600)),
        ("idempotency_key", json!(longest)),
        ("idempotency_key", json!(null)),
    ] {
        let mut body = json!({"holder": "x", "ttl_seconds": 60});
        body[field] = value.clone();
        let lease = take(&service, body).await;
        assert_eq!(lease.status, StatusCode::CREATED, "{field} {value}");
        release(&service, &lease.body).await;
    }
    let too_long = "x".repeat(129);
    for (field, value, kind) in [
        ("holder", json!(""), "string_blank"),
        ("holder", json!(" \n"), "string_blank"),
        ("holder", json!(too_long), "string_too_long"),
        ("holder", json!(7), "string_type"),
        ("permits", json!(0), "out_of_range"),
        ("permits", json!(1001), "out_of_range"),
        ("permits", json!(-1), "out_of_range"),
        ("permits", json!(1.5), "int_type"),
        ("permits", json!(null), "int_type"),
        ("ttl_seconds", json!(0.999), "out_of_range"),
        ("ttl_seconds", json!(3600.001), "out_of_range"),
        ("ttl_seconds", json!(-1e300), "out_of_range"),
        ("ttl_seconds", json!(1e300), "out_of_range"),
        ("ttl_seconds", json!("60"), "float_type"),
        ("ttl_seconds", json!(null), "float_type"),
        ("wait_seconds", json!(-0.001), "out_of_range"),
        ("wait_seconds", json!(600.5), "out_of_range"),
        ("wait_seconds", json!(true), "float_type"),
        ("idempotency_key", json!(""), "string_blank"),
        ("idempotency_key", json!(too_long), "string_too_long"),
        ("idempotency_key", json!(["x"]), "string_type"),
        ("surprise", json!(1), "extra_forbidden"),
    ] {
        let mut body = json!({"holder": "x", "ttl_seconds": 60});
        body[field] = value.clone();
        let refused = take(&service, body).await;
        assert_eq!(refused.status, StatusCode::UNPROCESSABLE_ENTITY, "{field} {value}");
        let fault = &refused.body["detail"][0];
        assert_eq!(
            (&fault["loc"], &fault["type"]),
            (&json!(["body", field]), &json!(kind)),
            "{value}"
        );
    }
    let all =
        take(&service, json!({"holder": "", "permits": 0, "ttl_seconds": 0, "wait_seconds": -1}))
            .await;
    assert_eq!(all.body["detail"].as_array().unwrap().len(), 4, "each fault is named: {all:?}");
    for missing in [json!({"holder": "x"}), json!({"ttl_seconds": 1}), json!([]), json!(null)] {
        assert_eq!(take(&service, missing).await.status, StatusCode::UNPROCESSABLE_ENTITY);
    }

    let lease = take_available(&service, 1).await;
    for body in
        [json!({"ttl_seconds": 0}), json!({"ttl_seconds": "x"}), json!({"ttl": 5}), json!([])]
    {
        let refused = renew(&service, &path(&lease), Some(body)).await;
        assert_eq!(refused.status, StatusCode::UNPROCESSABLE_ENTITY);
    }
    for body in [json!({}), json!({"ttl_seconds": null})] {
        assert_eq!(renew(&service, &path(&lease), Some(body)).await.status, StatusCode::OK);
    }
    assert_eq!(list(&service).await["count"], 1);
}

#[tokio::test]
async fn only_the_administrator_can_use_leases() {
    let service = Service::start().await;
    service.register("images", 1).await;
    let lease = take_available(&service, 1).await;
    for key in [None, Some("wrong")] {
        for (method, path) in [
            (Method::GET, LEASES.to_owned()),
            (Method::POST, LEASES.to_owned()),
            (Method::PUT, path(&lease)),
            (Method::DELETE, path(&lease)),
        ] {
            let request = reqwest::Client::new().request(method, service.url(&path));
            let request = key.into_iter().fold(request, |r, key| r.header("Admin-API-Key", key));
            assert_eq!(answer(request).await.status, StatusCode::UNAUTHORIZED, "{path}");
        }
    }
    assert_eq!(list(&service).await["count"], 1);
}

#[tokio::test]
async fn a_timed_out_acquire_reports_the_usage() {
    let service = Service::start().await;
    service.register("images", 3).await;
    let _lease = take_available(&service, 2).await;
    for wait in [0.0, 0.05] {
        let body = json!({"holder": "x", "permits": 2, "ttl_seconds": 60, "wait_seconds": wait});
        let started = Instant::now();
        let none = take(&service, body).await;
        assert_eq!(none.status, StatusCode::CONFLICT);
        assert!(started.elapsed() >= Duration::from_secs_f64(wait));
        assert_eq!(none.body["code"], "lease_unavailable");
        assert_eq!(none.headers["retry-after"], "1");
        let status = json!({"semaphore_id": "images", "limit": 3, "available": 1, "in_use": 2, "waiting": 0});
        assert_eq!(none.body["semaphore"], status);
    }
    let more = take(
        &service,
        json!({"holder": "x", "permits": 4, "ttl_seconds": 60, "wait_seconds": 600}),
    )
    .await;
    assert_eq!(
        more.status,
        StatusCode::UNPROCESSABLE_ENTITY,
        "more than the limit can never be granted"
    );
    assert_eq!(more.body["detail"][0]["loc"], json!(["body", "permits"]));
}

#[tokio::test]
async fn a_lease_that_is_not_renewed_expires() {
    let service = Service::start().await;
    service.register("images", 1).await;
    let started = Instant::now();
    let lease = take(&service, json!({"holder": "x", "ttl_seconds": 1})).await.body;
    let next = take(&service, json!({"holder": "y", "ttl_seconds": 60, "wait_seconds": 60})).await;
    assert_eq!(next.status, StatusCode::CREATED);
    assert!(started.elapsed() >= Duration::from_secs(1), "{:?}", started.elapsed());
    let gone = renew(&service, &path(&lease), None).await;
    assert_eq!(gone.body["code"], "lease_not_found");
    assert_eq!(list(&service).await["leases"], json!([next.body]));
}

#[tokio::test]
async fn a_waiting_client_that_disconnects_leaves_the_queue() {
    let service = Service::start().await;
    service.register("images", 1).await;
    let lease = take_available(&service, 1).await;
    let wait = |holder| json!({"holder": holder, "ttl_seconds": 60, "wait_seconds": 600});
    let leaver = waiting(&service, wait("leaver"));
    service.until("it waits", |limiter| limiter.waiting == 1).await;
    let next = waiting(&service, wait("next"));
    service.until("both wait", |limiter| limiter.waiting == 2).await;
    assert_eq!(occupancy(&service).await, (json!(1), json!(2)));
    leaver.abort();
    service.until("it left the queue", |limiter| limiter.waiting == 1).await;
    release(&service, &lease).await;
    let next = next.await.unwrap().body;
    assert_eq!(next["holder"], "next");
    assert_eq!(list(&service).await["leases"], json!([next]));
}

#[tokio::test]
async fn an_idempotency_key_always_returns_the_same_lease() {
    let service = Service::start().await;
    service.register("images", 2).await;
    let held = take_available(&service, 2).await;
    let mut body =
        json!({"holder": "x", "ttl_seconds": 60, "wait_seconds": 600, "idempotency_key": "k"});
    let first = waiting(&service, body.clone());
    service.until("it waits", |limiter| limiter.waiting == 1).await;
    let second = waiting(&service, body.clone());
    release(&service, &held).await;
    let (first, second) = (first.await.unwrap(), second.await.unwrap());
    assert_eq!((first.status, second.status), (StatusCode::CREATED, StatusCode::OK));
    body["wait_seconds"] = json!(0);
    let third = take(&service, body.clone()).await;
    assert_eq!(third.status, StatusCode::OK, "the timeout is not part of the idempotent request");
    assert_eq!((&first.body, &first.body), (&second.body, &third.body));
    assert_eq!(list(&service).await["count"], 1);

    body["permits"] = json!(2);
    let reused = take(&service, body.clone()).await;
    assert_eq!(reused.status, StatusCode::UNPROCESSABLE_ENTITY);
    let fault = &reused.body["detail"][0];
    assert_eq!(
        (&fault["loc"], &fault["type"]),
        (&json!(["body", "idempotency_key"]), &json!("reused"))
    );
    release(&service, &first.body).await;
    assert_eq!(take(&service, body).await.status, StatusCode::CREATED, "the key is free again");
}

#[tokio::test]
async fn leases_and_calls_share_one_queue() {
    let service = Service::start().await;
    service.register("images", 1).await;
    let lease = take_available(&service, 1).await;
    let call = json!({"prompt": slow(60_000), "external_semaphore_id": "images"});
    let call = tokio::spawn(answer(service.post("/chat", &call)));
    service.until("the call waits", |limiter| limiter.waiting == 1).await;
    let next = waiting(&service, json!({"holder": "x", "ttl_seconds": 60, "wait_seconds": 60}));
    service.until("the lease waits", |limiter| limiter.waiting == 2).await;
    assert_eq!(service.simulator.stats().calls, 0);

    release(&service, &lease).await;
    until("the call is sent", || service.simulator.stats().in_flight == 1).await;
    assert_eq!(occupancy(&service).await, (json!(1), json!(1)), "the lease still waits");
    assert!(!next.is_finished());
    call.abort();
    assert_eq!(next.await.unwrap().status, StatusCode::CREATED);
    assert_eq!(occupancy(&service).await, (json!(1), json!(0)));
}

#[tokio::test]
async fn waits_for_a_lease_count_towards_a_full_queue() {
    let service = Service::with(Options::default(), |config| config.max_queued_requests = 1).await;
    service.register("images", 1).await;
    let _lease = take_available(&service, 1).await;
    let _waits = waiting(&service, json!({"holder": "x", "ttl_seconds": 60, "wait_seconds": 600}));
    service.until("it waits", |limiter| limiter.waiting == 1).await;
    let full = take(&service, json!({"holder": "y", "ttl_seconds": 60, "wait_seconds": 600})).await;
    assert_eq!(
        (full.status, &full.body["code"]),
        (StatusCode::SERVICE_UNAVAILABLE, &json!("queue_full"))
    );
    let call = json!({"prompt": "Hello", "external_semaphore_id": "images"});
    assert_eq!(answer(service.post("/chat", &call)).await.body["code"], "queue_full");
}

#[tokio::test]
async fn deleting_a_semaphore_ends_the_waits_and_lets_holders_finish() {
    let service = Service::start().await;
    service.register("images", 1).await;
    let lease = take_available(&service, 1).await;
    let waits = waiting(&service, json!({"holder": "x", "ttl_seconds": 60, "wait_seconds": 600}));
    service.until("it waits", |limiter| limiter.waiting == 1).await;
    answer(service.delete("/_admin/semaphores/images")).await;
    let deleted = waits.await.unwrap();
    assert_eq!(
        (deleted.status, &deleted.body["code"]),
        (StatusCode::CONFLICT, &json!("semaphore_deleted"))
    );
    assert_eq!(answer(admin(service.get(LEASES))).await.body["code"], "semaphore_not_found");

    service.register("images", 1).await;
    assert_eq!(list(&service).await["count"], 0);
    assert_eq!(renew(&service, &path(&lease), None).await.status, StatusCode::OK);
    let new_lease = take_available(&service, 1).await;
    release(&service, &lease).await;
    assert_eq!(list(&service).await["leases"], json!([new_lease]));
    assert_eq!(occupancy(&service).await, (json!(1), json!(0)));
}

/// Two outside clients take and release leases of one and two permits as fast as they can, while a
/// batch sends its calls.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn leases_and_a_batch_together_never_exceed_the_limit() {
    const LIMIT: usize = 3;
    let service = Arc::new(Service::start().await);
    service.register("images", LIMIT as u64).await;
    let requests = vec![json!({"prompt": slow(5)}); 150];
    let batch = json!({"requests": requests, "external_semaphore_id": "images"});
    let batch = tokio::spawn(answer(service.post("/batch/chat", &batch)));

    let watch = Arc::new(Watch::default());
    let clients = [1, 2].map(|permits| {
        tokio::spawn(acquire_repeatedly(Arc::clone(&service), Arc::clone(&watch), permits))
    });
    while !batch.is_finished() {
        watch.sample(|| service.simulator.stats().in_flight);
        sleep(Duration::from_micros(200)).await;
    }
    watch.over.store(true, Ordering::Relaxed);
    let batch = batch.await.unwrap();
    assert_eq!(batch.body["successful_requests"], 150);
    let leases: usize = join_all(clients).await.into_iter().map(Result::unwrap).sum();
    let seen = watch.seen.lock().unwrap().clone();
    assert!(seen.iter().all(|(calls, held)| calls + held <= LIMIT), "{seen:?}");
    assert!(seen.iter().any(|(calls, held)| *calls > 0 && *held > 0), "both at once: {seen:?}");
    assert!(seen.iter().any(|(calls, held)| calls + held == LIMIT), "all in use: {seen:?}");
    assert!(leases >= 5, "{leases} leases beside the batch");
    assert_eq!(occupancy(&service).await, (json!(0), json!(0)));
}

/// What calls and leases hold together.
#[derive(Default)]
struct Watch {
    held: AtomicUsize,
    /// How often `held` has changed.
    changes: AtomicUsize,
    seen: Mutex<Vec<(usize, usize)>>,
    over: AtomicBool,
}

impl Watch {
    fn change(&self, change: impl FnOnce(&AtomicUsize)) {
        self.changes.fetch_add(1, Ordering::SeqCst);
        change(&self.held);
        self.changes.fetch_add(1, Ordering::SeqCst);
    }

    /// Reads both numbers, and counts them as simultaneous only if neither changed meanwhile.
    fn sample(&self, calls: impl FnOnce() -> usize) {
        let changes = self.changes.load(Ordering::SeqCst);
        let held = self.held.load(Ordering::SeqCst);
        let calls = calls();
        if changes.is_multiple_of(2) && self.changes.load(Ordering::SeqCst) == changes {
            let mut seen = self.seen.lock().unwrap();
            if !seen.contains(&(calls, held)) {
                seen.push((calls, held));
            }
        }
    }
}

async fn acquire_repeatedly(service: Arc<Service>, watch: Arc<Watch>, permits: usize) -> usize {
    let mut leases = 0;
    let body = json!({"holder": "x", "permits": permits, "ttl_seconds": 60, "wait_seconds": 60});
    while !watch.over.load(Ordering::Relaxed) {
        let lease = take(&service, body.clone()).await;
        assert_eq!(lease.status, StatusCode::CREATED, "{lease:?}");
        watch.change(|held| _ = held.fetch_add(permits, Ordering::SeqCst));
        watch.sample(|| service.simulator.stats().in_flight);
        sleep(Duration::from_millis(2)).await;
        // Subtracted before the release, so that no permit counts twice.
        watch.change(|held| _ = held.fetch_sub(permits, Ordering::SeqCst));
        release(&service, &lease.body).await;
        leases += 1;
    }
    leases
}

#[tokio::test]
async fn a_waiting_client_is_cut_off_after_the_grace_period() {
    let process = Start::simulated()
        .set("ADMIN_API_KEY", ADMIN_KEY)
        .set("SHUTDOWN_GRACE_SECONDS", "0.3")
        .run()
        .await;
    let semaphore = json!({"semaphore_id": "images", "limit": 1});
    answer(admin(process.post("/_admin/semaphores", &semaphore))).await;
    let body = json!({"holder": "x", "ttl_seconds": 600, "wait_seconds": 600});
    let held = answer(admin(process.post(LEASES, &body))).await;
    assert_eq!(held.status, StatusCode::CREATED);
    let waits = tokio::spawn(admin(process.post(LEASES, &body)).send());
    while answer(process.get("/")).await.body["concurrency_status"]["waiting"] != 1 {}
    process.terminate().await;
    assert_eq!(process.end().await.0, Some(0));
    assert!(waits.await.unwrap().is_err(), "it got an answer");
}
