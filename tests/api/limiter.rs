//! The global limit, semaphores, queue order, and that every slot is given back.

use std::time::Duration;

use futures_util::future::join_all;
use gemini_concurrent_generation::simulator::Options;
use reqwest::StatusCode;
use serde_json::{Value, json};

use crate::support::{Service, answer, slow, until};

fn latency(latency_ms: u64) -> Options {
    Options { latency_ms, ..Options::default() }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_global_limit_holds_under_any_mix_of_clients() {
    let service = Service::with(latency(5), |config| config.concurrency_limit = 7).await;
    service.register("wide", 100).await;
    let chats = join_all((0..60).map(|n| service.chat(format!("single {n}"))));
    let batches = join_all((0..3).map(|batch| {
        let requests: Vec<Value> =
            (0..60).map(|n| json!({"prompt": format!("batch {batch} item {n}")})).collect();
        let semaphore = (batch == 1).then_some("wide");
        let body = json!({"requests": requests, "external_semaphore_id": semaphore});
        answer(service.post("/batch/chat", &body))
    }));
    let (chats, batches) = tokio::join!(chats, batches);

    assert!(chats.iter().all(|chat| chat.status == StatusCode::OK));
    assert!(batches.iter().all(|batch| batch.body["successful_requests"] == 60));
    let stats = service.simulator.stats();
    assert_eq!((stats.calls, stats.highest_in_flight), (240, 7));
    service.until_idle().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_semaphore_applies_in_addition_to_the_global_limit() {
    let service = Service::with(latency(2), |config| config.concurrency_limit = 1).await;
    service.register("fifty", 50).await;
    let requests: Vec<Value> = (0..50).map(|n| json!({"prompt": n.to_string()})).collect();
    let chats = requests.iter().map(|request| {
        let body = json!({"prompt": request["prompt"], "external_semaphore_id": "fifty"});
        answer(service.post("/chat", &body))
    });
    let batch = json!({"requests": requests, "external_semaphore_id": "fifty"});
    let (_, batch) = tokio::join!(join_all(chats), answer(service.post("/batch/chat", &batch)));

    assert_eq!(batch.body["successful_requests"], 50);
    let stats = service.simulator.stats();
    assert_eq!((stats.calls, stats.highest_in_flight), (100, 1));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_semaphore_limits_only_requests_that_name_it() {
    let service = Service::with(latency(300), |config| config.concurrency_limit = 10).await;
    service.register("two", 2).await;
    let named = join_all((0..4).map(|n| {
        let body = json!({"prompt": format!("named {n}"), "external_semaphore_id": "two"});
        answer(service.post("/chat", &body))
    }));
    let watch = async {
        service
            .until("two are in flight and two wait", |d| d.in_flight == 2 && d.waiting == 2)
            .await;
        let others = join_all((0..3).map(|n| service.chat(format!("other {n}"))));
        let ((), others) = tokio::join!(
            service.until("five are in flight", |limiter| limiter.in_flight == 5
                && limiter.waiting == 2),
            others
        );
        others
    };
    let (named, others) = tokio::join!(named, watch);
    assert!(named.iter().chain(&others).all(|answer| answer.status == StatusCode::OK));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_batch_has_one_position_in_the_queue() {
    let service = Service::with(latency(20), |config| config.concurrency_limit = 2).await;
    let requests: Vec<Value> = (0..100).map(|n| json!({"prompt": format!("item {n}")})).collect();
    let body = json!({"requests": requests});
    let batch = answer(service.post("/batch/chat", &body));
    let single = async {
        service
            .until("the batch waits", |limiter| limiter.in_flight == 2 && limiter.waiting > 0)
            .await;
        let waiting = service.gateway.limiter.occupancy().waiting;
        assert!(waiting <= 1, "one queue position for ninety-eight items, not {waiting}");
        service.chat("beside the batch").await
    };
    let (batch, single) = tokio::join!(batch, single);
    assert_eq!(single.status, StatusCode::OK);
    assert_eq!(batch.body["successful_requests"], 100);

    let prompts: Vec<String> =
        service.simulator.journal().into_iter().map(|entry| entry.prompt_text).collect();
    let place = prompts.iter().position(|prompt| prompt == "beside the batch").unwrap();
    // Two calls run when the chat arrives, and the batch's next item is ahead of it. A few more may
    // have started while it was on its way.
    assert!(place < 20, "it started as number {place} of 101");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_thousand_cancelled_requests_leave_every_slot_free() {
    let service = Service::with(latency(5), |config| config.concurrency_limit = 20).await;
    service.register("ten", 10).await;
    let cancels = (0..1000).map(|n: u64| {
        let semaphore = n.is_multiple_of(3).then_some("ten");
        let chat = json!({"prompt": format!("{n}"), "external_semaphore_id": semaphore});
        let request = if n.is_multiple_of(10) {
            service.post("/batch/chat", &json!({"requests": [chat, chat, chat]}))
        } else {
            service.post("/chat", &chat)
        };
        // At every point from before the request is read to after it is answered.
        let delay = Duration::from_micros(fastrand::u64(0..40_000));
        async move { tokio::time::timeout(delay, answer(request)).await.is_err() }
    });
    let cancelled = join_all(cancels).await.into_iter().filter(|cancelled| *cancelled).count();
    assert!(cancelled > 100, "only {cancelled} were cancelled");
    service.until_idle().await;
    assert!(service.simulator.stats().highest_in_flight <= 20);
    for (_, semaphore) in service.gateway.limiter.store().named() {
        let usage = semaphore.usage();
        assert_eq!((usage.in_use, usage.waiting, usage.available()), (0, 0, 10));
    }
}

#[tokio::test]
async fn a_client_that_disconnects_cancels_its_upstream_call() {
    let service = Service::start().await;
    let request = service.post("/chat", &json!({"prompt": slow(60_000)}));
    let request_task = tokio::spawn(answer(request));
    service.until("the call is in flight", |limiter| limiter.in_flight == 1).await;
    request_task.abort();
    service.until_idle().await;
    until("the simulator saw it", || service.simulator.stats().cancelled == 1).await;
}

#[tokio::test]
async fn a_batch_is_cancelled_upstream_when_its_client_disconnects() {
    let service = Service::with(Options::default(), |config| config.concurrency_limit = 3).await;
    let requests: Vec<Value> = (0..10).map(|_| json!({"prompt": slow(60_000)})).collect();
    let request_task =
        tokio::spawn(answer(service.post("/batch/chat", &json!({"requests": requests}))));
    service.until("three are in flight", |limiter| limiter.in_flight == 3).await;
    request_task.abort();
    service.until_idle().await;
    until("the simulator saw it", || service.simulator.stats().cancelled == 3).await;
    assert_eq!(service.simulator.stats().calls, 3);
}

#[tokio::test]
async fn a_full_queue_refuses_new_requests_and_keeps_waiting_ones() {
    let service = Service::with(Options::default(), |config| {
        config.concurrency_limit = 1;
        config.max_queued_requests = 2;
    })
    .await;
    let first = service.post("/chat", &json!({"prompt": slow(300)}));
    let first = tokio::spawn(answer(first));
    service.until("one is in flight", |limiter| limiter.in_flight == 1).await;
    let batch = json!({"requests": [{"prompt": "a"}, {"prompt": "b"}, {"prompt": "c"}]});
    let second = tokio::spawn(answer(service.post("/batch/chat", &batch)));
    let third = tokio::spawn(answer(service.post("/chat", &json!({"prompt": "third"}))));
    service.until("two wait", |limiter| limiter.waiting == 2).await;

    for (path, body) in [("/chat", json!({"prompt": "fourth"})), ("/batch/chat", batch)] {
        let refused = answer(service.post(path, &body)).await;
        assert_eq!(refused.status, StatusCode::SERVICE_UNAVAILABLE);
        assert_eq!(refused.body["code"], "queue_full");
        assert_eq!(refused.headers["retry-after"], "1");
    }
    assert_eq!(first.await.unwrap().status, StatusCode::OK);
    assert_eq!(second.await.unwrap().body["successful_requests"], 3);
    assert_eq!(third.await.unwrap().status, StatusCode::OK);
    assert_eq!(service.simulator.stats().calls, 5);
}

#[tokio::test]
async fn a_request_that_times_out_frees_its_slot() {
    let service = Service::with(Options::default(), |config| {
        config.concurrency_limit = 1;
        config.request_timeout = Duration::from_millis(200);
    })
    .await;
    let batch = json!({"requests": [{"prompt": slow(60_000)}, {"prompt": "quick"}]});
    let (in_flight, queued) =
        tokio::join!(service.post("/chat", &json!({"prompt": slow(60_000)})).send(), async {
            service.until("one is in flight", |limiter| limiter.in_flight == 1).await;
            service.chat("queued behind it").await
        });
    let in_flight = in_flight.unwrap();
    assert_eq!(in_flight.status(), StatusCode::GATEWAY_TIMEOUT);
    // The one behind it may have started when the first timed out, or timed out as well.
    assert!([StatusCode::OK, StatusCode::GATEWAY_TIMEOUT].contains(&queued.status));
    service.until_idle().await;

    let batch = answer(service.post("/batch/chat", &batch)).await;
    assert_eq!(batch.body["results"][0]["error_code"], "request_timeout");
    assert_eq!(batch.body["results"][0]["retryable"], true);
    service.until_idle().await;
}

/// Over one HTTP/2 connection, three hundred calls would be about a hundred.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn three_hundred_calls_run_at_once() {
    let service = Service::with(latency(60_000), |config| config.concurrency_limit = 300).await;
    let requests: Vec<Value> = (0..300).map(|n| json!({"prompt": n.to_string()})).collect();
    let batch = tokio::spawn(answer(service.post("/batch/chat", &json!({"requests": requests}))));
    until("all have arrived", || service.simulator.stats().in_flight == 300).await;
    batch.abort();
    service.until_idle().await;
}
