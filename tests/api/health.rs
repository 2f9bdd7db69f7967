//! `GET /`: what it reports, idle and busy. The probes `GET /livez` and `GET /readyz`.

use std::time::Duration;

use gemini_concurrent_generation::simulator::Options;
use reqwest::StatusCode;
use serde_json::{Value, json};
use tokio::time::{sleep, timeout};

use crate::process::Start;
use crate::replicas::until_connected;
use crate::sharing::backends;
use crate::support::{Service, TEST_TIMEOUT, answer, slow};

async fn concurrency_status(service: &Service) -> Value {
    answer(service.get("/")).await.body["concurrency_status"].clone()
}

#[tokio::test]
async fn it_names_the_service_and_its_features() {
    let service = Service::start().await;
    let health = answer(service.get("/")).await;
    assert_eq!(health.status, StatusCode::OK);
    let expected = json!({
        "status": "healthy",
        "service": "Gemini Concurrent Generation Service",
        "version": env!("CARGO_PKG_VERSION"),
        "simulated": true,
        "concurrency_status": {
            "global_concurrency_limit": 15,
            "current_available_slots": 15,
            "in_flight": 0,
            "waiting": 0,
            "external_semaphores_count": 0,
            "adaptive_limits": {},
        },
        "shared_limits": null,
        "admin_key_configured": true,
        "server_credentials_configured": true,
        "environment_fallback": true,
        "default_models": {"chat": "gemini-3.5-flash-lite", "structured": "gemini-3.8-flash"},
    });
    assert_eq!(health.body, expected);
}

#[tokio::test]
async fn it_says_which_keys_are_set_and_never_shows_them() {
    let service = Service::with(Options::default(), |config| {
        config.admin_api_key = None;
        config.gemini_api_key = None;
        config.environment_fallback = false;
    })
    .await;
    let health = answer(service.get("/")).await.body;
    for setting in ["admin_key_configured", "server_credentials_configured", "environment_fallback"]
    {
        assert_eq!(health[setting], false, "{setting}");
    }
}

#[tokio::test]
async fn it_reports_the_calls_in_flight_and_waiting() {
    let service = Service::with(Options::default(), |config| config.concurrency_limit = 2).await;
    service.register("one", 1).await;
    let batch = json!({"requests": vec![json!({"prompt": slow(60_000)}); 5]});
    let single = json!({"prompt": slow(60_000), "external_semaphore_id": "one"});
    let batch = tokio::spawn(answer(service.post("/batch/chat", &batch)));
    service
        .until("the batch is in flight", |limiter| limiter.in_flight == 2 && limiter.waiting == 1)
        .await;
    let single = tokio::spawn(answer(service.post("/chat", &single)));
    service.until("both wait", |limiter| limiter.waiting == 2).await;
    let busy = json!({
        "global_concurrency_limit": 2,
        "current_available_slots": 0,
        "in_flight": 2,
        "waiting": 2,
        "external_semaphores_count": 1,
        "adaptive_limits": {},
    });
    assert_eq!(concurrency_status(&service).await, busy);

    batch.abort();
    service
        .until("the single request starts", |limiter| {
            limiter.in_flight == 1 && limiter.waiting == 0
        })
        .await;
    assert_eq!(concurrency_status(&service).await["current_available_slots"], 1);
    single.abort();
    service.until_idle().await;
    assert_eq!(concurrency_status(&service).await["current_available_slots"], 2);
}

#[tokio::test]
async fn a_head_request_is_answered_without_a_body() {
    let service = Service::start().await;
    let response = service.head("/").send().await.unwrap();
    assert_eq!(response.status(), StatusCode::OK);
    assert_eq!(response.headers()["content-type"], "application/json");
    assert_eq!(response.text().await.unwrap(), "");
}

#[tokio::test]
async fn a_service_that_can_take_requests_is_live_and_ready() {
    let service = Service::start().await;
    let live = service.get("/livez").send().await.unwrap();
    assert_eq!(live.status(), StatusCode::OK);
    assert_eq!(live.text().await.unwrap(), "ok");
    let ready = answer(service.get("/readyz")).await;
    assert_eq!(ready.status, StatusCode::OK);
    assert_eq!(ready.body, json!({"status": "ready", "reasons": []}));
}

#[tokio::test]
async fn a_service_whose_job_store_cannot_be_used_is_live_and_not_ready() {
    let service = Service::with(Options::default(), |config| {
        std::fs::create_dir_all(&config.job_store.folder).unwrap();
        std::fs::write(config.job_store.folder.join("jobs.sqlite"), "no database").unwrap();
    })
    .await;
    let ready = answer(service.get("/readyz")).await;
    assert_eq!(ready.status, StatusCode::SERVICE_UNAVAILABLE);
    assert_eq!(ready.body, json!({"status": "not_ready", "reasons": ["job_store_unavailable"]}));
    assert_eq!(service.get("/livez").send().await.unwrap().status(), StatusCode::OK);
    std::fs::remove_file(service.gateway.config.job_store.folder.join("jobs.sqlite")).unwrap();
    let is_ready = async {
        while answer(service.get("/readyz")).await.status != StatusCode::OK {
            sleep(Duration::from_millis(50)).await;
        }
    };
    timeout(TEST_TIMEOUT, is_ready).await.expect("it is never ready");
}

#[tokio::test]
async fn a_replica_without_redis_is_live_and_not_ready() {
    let mut backends = backends().await;
    let replica = backends.replica(2).run().await;
    assert_eq!(answer(replica.get("/readyz")).await.status, StatusCode::OK);
    backends.redis.stop().await;
    until_connected(&replica, false).await;
    let ready = answer(replica.get("/readyz")).await;
    assert_eq!(ready.status, StatusCode::SERVICE_UNAVAILABLE);
    assert_eq!(ready.body["reasons"], json!(["limits_unavailable"]));
    assert_eq!(replica.get("/livez").send().await.unwrap().status(), StatusCode::OK);
    backends.redis.restart().await;
    until_connected(&replica, true).await;
    assert_eq!(answer(replica.get("/readyz")).await.status, StatusCode::OK);
}

#[tokio::test]
async fn probes_are_logged_for_debugging_only() {
    let process = Start::simulated().run().await;
    for path in ["/livez", "/readyz", "/metrics"] {
        process.get(path).send().await.unwrap().text().await.unwrap();
    }
    process.until_logged("path=\"/metrics\"").await;
    assert!(!process.log().contains("/livez") && !process.log().contains("/readyz"));
}
