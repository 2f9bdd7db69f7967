//! Quotas, capacity, latency, failures, connections and counters.

use std::time::Duration;

use futures_util::StreamExt;
use http::{Method, StatusCode, header};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::time::Instant;

use super::*;

#[tokio::test]
async fn a_call_can_fail_a_number_of_times() {
    let simulator = simulator();
    let prompt = "a [[simulate:fail_times=2,status=500]]";
    let mut statuses = Vec::new();
    for _ in 0..3 {
        statuses.push(ask(&simulator, prompt).await.0);
    }
    assert_eq!(statuses, [500, 500, 200]);
    assert_eq!(ask(&simulator, "b [[simulate:fail_times=2,status=500]]").await.0, 500);
    assert_eq!(text_of(&ask(&simulator, prompt).await.1), "Simulated answer to: a");
}

#[tokio::test(start_paused = true)]
async fn a_quota_refuses_and_frees() {
    let simulator = Simulator::new(Options {
        requests_per_minute: Some(2),
        free_tier: true,
        ..Options::default()
    });
    assert_eq!(ask(&simulator, "a").await.0, 200);
    assert_eq!(ask(&simulator, "b").await.0, 200);
    tokio::time::advance(Duration::from_millis(11_500)).await;
    let response = post(&simulator, FLASH, &chat("c")).await;
    assert_eq!(response.status(), 429);
    assert!(!response.headers().contains_key(header::RETRY_AFTER));
    let (_, refusal) = json_of(response).await;
    assert!(message_of(&refusal).ends_with("Please retry in 48.500000000s."));
    assert_eq!(refusal["error"]["details"][2]["retryDelay"], "48s");
    let stats = simulator.stats();
    assert_eq!(stats.refused_429["GenerateRequestsPerMinutePerProjectPerModel-FreeTier"], 1);
    assert_eq!((stats.admitted, stats.admitted_input_tokens), (2, 2));
    tokio::time::advance(Duration::from_millis(48_500)).await;
    assert_eq!(ask(&simulator, "c").await.0, 200);
}

#[tokio::test(start_paused = true)]
async fn calls_above_the_capacity_are_refused() {
    let simulator =
        Simulator::new(Options { capacity: Some(2), latency_ms: 1000, ..Options::default() });
    let statuses =
        futures_util::future::join_all((0..5).map(async |_| ask(&simulator, "a").await.0));
    assert_eq!(statuses.await, [200, 200, 503, 503, 503]);
    let stats = simulator.stats();
    assert_eq!((stats.answered, stats.refused_503, stats.in_flight), (2, 3, 0));
    assert_eq!(stats.admitted, 5);
    assert!(stats.highest_in_flight >= 3);

    simulator.set_capacity(None);
    simulator.reset();
    let statuses =
        futures_util::future::join_all((0..5).map(async |_| ask(&simulator, "a").await.0));
    assert_eq!(statuses.await, [200; 5]);
    assert_eq!(simulator.stats().highest_in_flight, 5);
}

#[tokio::test(start_paused = true)]
async fn latency_counts_from_the_arrival() {
    let simulator = Simulator::new(Options { latency_ms: 400, ..Options::default() });
    let took = async |path: &str, prompt: &str| {
        let start = Instant::now();
        bytes(post(&simulator, path, &chat(prompt)).await).await;
        start.elapsed().as_millis()
    };
    // The paused clock has no timer lag, so the correction for it is visible.
    assert_eq!(took(FLASH, "a").await, 399);
    assert_eq!(took(STREAM, "a").await, 399);
    assert_eq!(took(FLASH, "[[simulate:latency_ms=7,status=503]]").await, 6);
    simulator.set_latency_ms(0);
    assert_eq!(took(FLASH, "a").await, 0);
}

#[tokio::test(start_paused = true)]
async fn a_client_that_hangs_up_is_counted() {
    let simulator = Simulator::new(Options { latency_ms: 1000, ..Options::default() });
    let unanswered = ask(&simulator, "a");
    assert!(tokio::time::timeout(Duration::from_millis(10), unanswered).await.is_err());
    assert_eq!((simulator.stats().cancelled, simulator.stats().in_flight), (1, 0));

    let half_read = post(&simulator, STREAM, &chat("a")).await;
    assert_eq!(simulator.stats().in_flight, 1);
    drop(half_read);
    assert_eq!((simulator.stats().cancelled, simulator.stats().in_flight), (2, 0));
    assert_eq!(simulator.stats().answered, 0);
}

#[tokio::test]
async fn a_script_sets_the_size_and_the_chunks_of_a_stream() {
    let prompt = "[[simulate:bytes=1000000,chunks=1000]]";
    let response = post(&simulator(), &format!("{STREAM}?alt=sse"), &chat(prompt)).await;
    let events = events_of(response, "\r\n\r\n").await;
    assert_eq!(events.len(), 1000);
    let sizes = events.iter().map(|event| {
        let event: Value = serde_json::from_str(&event["data: ".len()..]).expect("JSON");
        text_of(&event).len()
    });
    assert!(sizes.eq(std::iter::repeat_n(1000, 1000)));
}

#[tokio::test(start_paused = true)]
async fn a_response_can_stall() {
    let simulator = simulator();
    let path = format!("{STREAM}?alt=sse");
    let response = post(&simulator, &path, &chat("[[simulate:stall_after=2]]a")).await;
    let mut stream = response.into_body().into_data_stream();
    for _ in 0..2 {
        stream.next().await.expect("a chunk").expect("no error");
    }
    let an_hour = Duration::from_secs(3600);
    assert!(tokio::time::timeout(an_hour, stream.next()).await.is_err());
    assert_eq!((simulator.stats().cancelled, simulator.stats().in_flight), (0, 1));
    drop(stream);
    assert_eq!((simulator.stats().cancelled, simulator.stats().in_flight), (1, 0));

    let response = post(&simulator, FLASH, &chat("[[simulate:stall_after=0]]")).await;
    assert_eq!(response.status(), 200);
    let body = tokio::time::timeout(an_hour, to_bytes(response.into_body(), usize::MAX)).await;
    assert!(body.is_err());
    assert_eq!(ask(&simulator, "[[simulate:stall_after=2]]a").await.0, 200, "it is one chunk");
}

#[tokio::test(start_paused = true)]
async fn a_spread_of_latencies_and_failures_is_the_same_for_the_same_seed() {
    let run = async |seed| {
        let simulator = Simulator::new(Options {
            latency_ms: 100,
            latency_sigma: 0.5,
            error_rate_503: 0.2,
            error_rate_500: 0.2,
            seed,
            ..Options::default()
        });
        let mut seen = Vec::new();
        for _ in 0..200 {
            let start = Instant::now();
            seen.push((ask(&simulator, "a").await.0, start.elapsed().as_millis()));
        }
        seen
    };
    let seen = run(1).await;
    assert_eq!(seen, run(1).await);
    assert_ne!(seen, run(2).await);
    let failed = seen.iter().filter(|(status, _)| *status != 200).count();
    assert!((60..=100).contains(&failed), "{failed} of 200 failed");
    let above_median = seen.iter().filter(|(_, took)| *took > 100).count();
    assert!((80..=120).contains(&above_median), "{above_median} of 200 took more than the median");
}

#[tokio::test]
async fn the_journal_has_the_key_the_prompt_and_the_status() {
    let simulator = Simulator::new(Options { journal: true, ..Options::default() });
    for (key, prompt) in [("one", "a"), ("two", "b [[simulate:status=503]]"), ("invalid", "c")] {
        bytes(post_with_key(&simulator, FLASH, &chat(prompt), key).await).await;
    }
    let journal = simulator.journal();
    let seen: Vec<_> = journal.iter().map(|e| (&*e.api_key, &*e.prompt_text, e.status)).collect();
    assert_eq!(
        seen,
        [
            ("one", "a", Some(200)),
            ("two", "b [[simulate:status=503]]", Some(503)),
            ("invalid", "c", Some(400)),
        ]
    );
    assert_eq!(journal[0].body, chat("a"));
    simulator.reset();
    assert!(simulator.journal().is_empty());
}

#[tokio::test]
async fn stats_are_shown_and_reset_without_showing_keys() {
    let simulator = simulator();
    post_with_key(&simulator, FLASH, &chat("a"), "a-secret-key").await;
    let shown = bytes(send(&simulator, Method::GET, "/_simulator/stats").await).await;
    let shown = String::from_utf8(shown.to_vec()).expect("UTF-8");
    assert!(!shown.contains("a-secret-key"));
    let stats: Value = serde_json::from_str(&shown).expect("JSON");
    assert_eq!(stats["answered"], 1);
    assert_eq!(stats["by_model"], json!({"gemini-3.5-flash-lite": 1}));
    assert_eq!(stats["by_key"].as_object().expect("keys").len(), 1);
    let reset = send(&simulator, Method::POST, "/_simulator/reset").await;
    assert_eq!(reset.status(), StatusCode::NO_CONTENT);
    assert_eq!(simulator.stats().calls, 0);
}

/// What a client receives over a real connection until it ends.
async fn over_the_wire(simulator: &Simulator, prompt: &str) -> String {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a free port");
    let address = listener.local_addr().expect("an address");
    let server = tokio::spawn(axum::serve(listener, simulator.router()).into_future());
    let mut client = tokio::net::TcpStream::connect(address).await.expect("a connection");
    let body = chat(prompt).to_string();
    let request = format!(
        "POST {FLASH} HTTP/1.1\r\nhost: localhost\r\nx-goog-api-key: key\r\n\
         content-length: {}\r\n\r\n{body}",
        body.len()
    );
    client.write_all(request.as_bytes()).await.expect("the server reads");
    let mut received = Vec::new();
    client.read_to_end(&mut received).await.expect("the server closes");
    server.abort();
    String::from_utf8(received).expect("UTF-8")
}

#[tokio::test]
async fn a_connection_can_be_closed_without_an_answer() {
    let simulator = simulator();
    assert_eq!(over_the_wire(&simulator, "[[simulate:close]]").await, "");
    assert_eq!(simulator.stats().errors, 1);
}

#[tokio::test]
async fn a_body_can_be_cut_in_half() {
    let simulator = simulator();
    let received = over_the_wire(&simulator, "[[simulate:truncate_body]]").await;
    let (head, body) = received.split_once("\r\n\r\n").expect("a head");
    let length = head
        .lines()
        .find_map(|line| line.strip_prefix("content-length: "))
        .and_then(|length| length.parse::<usize>().ok())
        .expect("a length");
    assert_eq!(body.len(), length / 2);
    assert_eq!((simulator.stats().errors, simulator.stats().in_flight), (1, 0));
}
