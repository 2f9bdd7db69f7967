//! The program's end: readiness, connections and calls in flight.

use std::io::ErrorKind;

use reqwest::StatusCode;
use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::timeout;

use crate::lifecycle::read_to_end;
use crate::process::{Process, Start};
use crate::support::{TEST_TIMEOUT, answer, slow};

/// Waits until the address refuses connections.
async fn until_refused(process: &Process) {
    let refused = async {
        loop {
            match TcpStream::connect(process.address).await {
                Err(error) if error.kind() == ErrorKind::ConnectionRefused => return,
                _ => tokio::task::yield_now().await,
            }
        }
    };
    timeout(TEST_TIMEOUT, refused).await.expect("connections are refused");
}

#[tokio::test]
async fn calls_in_flight_finish_after_sigterm_and_new_ones_are_refused() {
    let process = Start::simulated().run().await;
    let idle = TcpStream::connect(process.address).await.unwrap();
    let chat = tokio::spawn(answer(process.post("/chat", &json!({"prompt": slow(1_500)}))));
    let requests = vec![json!({"prompt": slow(700)}); 20];
    let batch = tokio::spawn(answer(process.post("/batch/chat", &json!({"requests": requests}))));
    process.until_in_flight(15).await;

    process.terminate().await;
    until_refused(&process).await;
    assert!(!chat.is_finished(), "the chat should be in flight");
    assert_eq!(chat.await.unwrap().status, StatusCode::OK);
    assert_eq!(batch.await.unwrap().body["successful_requests"], 20);
    let (code, log) = process.end().await;
    assert_eq!(code, Some(0));
    assert!(log.contains("shutting down") && log.contains("stopped"), "{log}");
    drop(idle);
}

#[tokio::test]
async fn a_request_that_outlasts_the_grace_period_is_cut_off() {
    let process = Start::simulated().set("SHUTDOWN_GRACE_SECONDS", "0.3").run().await;
    let chat = process.post("/chat", &json!({"prompt": slow(60_000)}));
    let chat = tokio::spawn(chat.send());
    process.until_in_flight(1).await;
    process.terminate().await;
    let (code, log) = process.end().await;
    assert_eq!(code, Some(0));
    assert!(log.contains("the grace period is over"), "{log}");
    assert!(chat.await.unwrap().is_err(), "the chat got an answer");
}

/// Jobs go on after the next start, so there is nothing to wait for.
#[tokio::test]
async fn clients_that_follow_a_job_do_not_delay_the_shutdown() {
    let process = Start::simulated().set("SHUTDOWN_GRACE_SECONDS", "3600").run().await;
    let mut requests = vec![json!({"prompt": "One"})];
    requests.extend(vec![json!({"prompt": slow(500)}); 300]);
    let job = json!({"kind": "chat", "requests": requests});
    let job = answer(process.post("/jobs", &job)).await.body["job_id"].clone();
    let job = job.as_str().expect("its id");
    let follow = async |path: &str| process.get(&format!("/jobs/{job}/{path}")).send().await;
    let mut results = follow("results?follow=true").await.unwrap();
    let failed = follow("results?follow=true&only=failed").await.unwrap();
    let events = follow("events").await.unwrap();
    let first = results.chunk().await.unwrap().expect("the first result");
    assert!(first.starts_with(b"{\"success\":true"), "{first:?}");

    process.terminate().await;
    let (code, log) = process.end().await;
    assert_eq!(code, Some(0), "{log}");
    assert!(!log.contains("the grace period is over"), "{log}");
    assert!(log.contains("the results of a job ended early"), "{log}");
    // What was answered in the grace period is sent, and incomplete results do not look complete.
    let rest = async {
        let mut lines = Vec::new();
        loop {
            match results.chunk().await {
                Ok(Some(more)) => lines.extend_from_slice(&more),
                Ok(None) => panic!("the results look complete"),
                Err(_) => return lines,
            }
        }
    };
    let rest = String::from_utf8(rest.await).unwrap();
    assert!(rest.lines().count() >= 14, "{rest}");
    assert!(failed.bytes().await.is_err(), "they look complete");
    let events = events.text().await.expect("the events end properly");
    assert!(events.contains("event: progress") && !events.contains("event: end"), "{events}");
}

#[tokio::test]
async fn a_webhook_that_is_not_answered_ends_with_the_grace_period() {
    let receiver = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let process = Start::simulated()
        .set("SHUTDOWN_GRACE_SECONDS", "0.3")
        .set("JOB_WEBHOOK_SECRET", "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw")
        .set("JOB_WEBHOOK_ALLOW", "127.0.0.1")
        .run()
        .await;
    let url = format!("http://{}/", receiver.local_addr().unwrap());
    let job = json!({"kind": "chat", "requests": [{"prompt": "One"}], "webhook_url": url});
    assert_eq!(answer(process.post("/jobs", &job)).await.status, StatusCode::ACCEPTED);
    let _silent = timeout(TEST_TIMEOUT, receiver.accept()).await.expect("a webhook").unwrap();
    process.terminate().await;
    let (code, log) = process.end().await;
    assert_eq!(code, Some(0), "{log}");
    assert!(!log.contains("webhook failed"), "its own timeout ended it: {log}");
}

#[tokio::test]
async fn a_second_signal_ends_the_grace_period_at_once() {
    for signals in [["TERM", "TERM"], ["TERM", "INT"], ["INT", "TERM"]] {
        let process = Start::simulated().set("SHUTDOWN_GRACE_SECONDS", "3600").run().await;
        let chat = process.post("/chat", &json!({"prompt": slow(3_000_000)}));
        let chat = tokio::spawn(chat.send());
        process.until_in_flight(1).await;
        process.signal(signals[0]).await;
        process.until_logged("shutting down").await;
        process.signal(signals[1]).await;
        let (code, log) = process.end().await;
        assert_eq!(code, Some(0), "{log}");
        assert!(log.contains("stopping at once"), "{log}");
        assert!(chat.await.unwrap().is_err(), "the chat got an answer");
    }
}

#[tokio::test]
async fn during_the_shutdown_delay_a_service_is_not_ready_and_serves_until_clients_have_left() {
    let process = Start::simulated().set("SHUTDOWN_DELAY_SECONDS", "3600").run().await;
    let mut kept = TcpStream::connect(process.address).await.unwrap();
    let request = b"GET /livez HTTP/1.1\r\nHost: localhost\r\n\r\n";
    kept.write_all(request).await.unwrap();
    let mut part = [0; 4096];
    let read = kept.read(&mut part).await.unwrap();
    assert!(!String::from_utf8_lossy(&part[..read]).contains("connection: close"));

    process.terminate().await;
    process.until_logged("shutting down").await;
    let ready = answer(process.get("/readyz")).await;
    assert_eq!(ready.status, StatusCode::SERVICE_UNAVAILABLE);
    assert_eq!(ready.body["reasons"], json!(["shutting_down"]));
    assert_eq!(process.get("/livez").send().await.unwrap().status(), StatusCode::OK);
    let chat = answer(process.post("/chat", &json!({"prompt": "Hello"}))).await;
    assert_eq!(chat.status, StatusCode::OK, "new connections are served");
    assert_eq!(chat.headers["connection"], "close");
    kept.write_all(request).await.unwrap();
    let rest = read_to_end(&mut kept).await;
    assert!(rest.contains("200 OK") && rest.contains("connection: close"), "{rest}");

    process.terminate().await;
    assert_eq!(process.end().await.0, Some(0), "a second signal ends the delay too");
}

#[tokio::test]
async fn after_the_shutdown_delay_new_connections_are_refused() {
    let process = Start::simulated().set("SHUTDOWN_DELAY_SECONDS", "0.3").run().await;
    let chat = tokio::spawn(answer(process.post("/chat", &json!({"prompt": slow(2_000)}))));
    process.until_in_flight(1).await;
    process.terminate().await;
    until_refused(&process).await;
    assert!(!chat.is_finished(), "the chat should be in flight");
    assert_eq!(chat.await.unwrap().status, StatusCode::OK);
    assert_eq!(process.end().await.0, Some(0));
}

/// A client cannot know whether a request was read that it sent on an established connection.
#[tokio::test]
async fn requests_on_connections_that_are_not_accepted_yet_are_answered_at_shutdown() {
    const CLIENTS: usize = 40;
    let process = Start::simulated().run().await;
    process.signal("STOP").await;
    let request = b"GET /livez HTTP/1.1\r\nHost: localhost\r\n\r\n";
    let mut clients = Vec::new();
    for _ in 0..CLIENTS {
        let mut client = TcpStream::connect(process.address).await.unwrap();
        client.write_all(request).await.unwrap();
        clients.push(client);
    }
    process.terminate().await;
    process.signal("CONT").await;
    for client in &mut clients {
        let text = read_to_end(client).await;
        assert!(text.contains("200 OK") && text.contains("connection: close"), "{text:?}");
    }
    assert_eq!(process.end().await.0, Some(0));
}

#[tokio::test]
async fn an_idle_service_stops_at_once() {
    let process = Start::simulated().set("SHUTDOWN_GRACE_SECONDS", "3600").run().await;
    let mut kept_alive = TcpStream::connect(process.address).await.unwrap();
    kept_alive.write_all(b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n").await.unwrap();
    assert_ne!(kept_alive.read(&mut [0; 16]).await.unwrap(), 0);
    process.terminate().await;
    assert_eq!(process.end().await.0, Some(0));
}
