//! An upstream that cannot be reached or is not Gemini: what the caller and the log get.

use std::net::Ipv4Addr;

use serde_json::{Value, json};
use tokio::io::AsyncWriteExt;
use tokio::net::TcpListener as Listener;

use crate::process::Start;
use crate::recording::Recording;
use crate::support::{Service, answer, closed_port, until};

const GENERATE: &str = "/v1beta/models/gemini-3.5-flash-lite:generateContent";

async fn service_over(base_url: &str) -> Service {
    Service::over_with(base_url, |config| config.max_attempts = 1).await
}

/// A host name that fails without a lookup: one of its labels is too long.
fn unresolvable_name() -> String {
    format!("{}.invalid", "a".repeat(64))
}

/// Answers every connection with bytes that are not TLS. Returns its port.
async fn plain_text_server() -> u16 {
    let listener = Listener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    let port = listener.local_addr().unwrap().port();
    tokio::spawn(async move {
        while let Ok((mut socket, _)) = listener.accept().await {
            let _ = socket.write_all(b"HTTP/1.1 400 Bad Request\r\n\r\n").await;
        }
    });
    port
}

#[tokio::test]
async fn a_connection_error_gives_its_reason_without_the_address() {
    for (base_url, reason) in [
        (format!("http://127.0.0.1:{}", closed_port()), "the connection was refused"),
        (format!("http://{}", unresolvable_name()), "its host name cannot be resolved"),
        (
            format!("https://127.0.0.1:{}", plain_text_server().await),
            "the server does not speak TLS",
        ),
    ] {
        let service = service_over(&base_url).await;
        let detail = format!("cannot connect to Gemini: {reason}");
        let chat = service.chat("Hello").await;
        assert_eq!(chat.status, 502);
        assert_eq!(chat.body, json!({"detail": detail, "code": "upstream_connection"}));
        let completion = json!({"model": "gemini-3.5-flash-lite", "messages": []});
        for request in [
            service.post(GENERATE, &json!({"contents": []})),
            service.post("/v1/chat/completions", &completion),
            service.get("/v1beta/models"),
        ] {
            assert_eq!(answer(request).await.body["error"]["message"], detail);
        }
        let batch = json!({"requests": [{"prompt": "Hello"}]});
        let batch = answer(service.post("/batch/chat", &batch)).await;
        assert_eq!(batch.body["results"][0]["error"], detail);
    }
}

#[tokio::test]
async fn the_log_gives_the_cause_of_a_failed_connection() {
    let start = Start::with_arguments(&["serve"]).set("GEMINI_API_KEY", "the-secret-key");
    let base_url = format!("http://127.0.0.1:{}", closed_port());
    let process = start.set("GEMINI_BASE_URL", &base_url).set("GEMINI_MAX_ATTEMPTS", "1");
    let process = process.run().await;
    let chat = json!({"prompt": "Hello"});
    let batch = json!({"requests": [chat, chat]});
    for (path, body) in [("/chat", &chat), ("/batch/chat", &batch), (GENERATE, &chat)] {
        answer(process.post(path, body)).await;
    }
    answer(process.get("/v1beta/files")).await;
    until("each failure is logged with its cause", || {
        process.log().lines().filter(|line| line.contains("Connection refused")).count() == 4
    })
    .await;
    assert!(!process.log().contains("the-secret-key"));
}

#[tokio::test]
async fn an_html_page_is_a_malformed_answer_and_is_not_shown() {
    const PAGE: &[u8] = b"<!DOCTYPE html><title>Error 404 (Not Found)!!1</title>secret";
    let completion = json!({"model": "gemini-3.5-flash-lite", "messages": []});
    let chat = json!({"prompt": "Hello"});
    for (status, code) in [
        (200, "malformed_answer"),
        (404, "malformed_answer"),
        (401, "malformed_answer"),
        (502, "upstream_unavailable"),
        (503, "upstream_unavailable"),
    ] {
        let page = Recording::play(status, "text/html; charset=UTF-8", vec![PAGE.into()]).await;
        let service = service_over(&page.base_url).await;
        let failed = answer(service.post("/chat", &chat)).await;
        assert_eq!((failed.status.as_u16(), &failed.body["code"]), (502, &json!(code)), "{status}");
        let detail = failed.body["detail"].as_str().unwrap();
        let start = format!("Gemini answered {status} ");
        assert!(detail.starts_with(&start) && detail.contains("text/html"), "{detail}");
        let streamed = json!({"prompt": "Hello", "stream": true});
        let streamed = answer(service.post("/chat", &streamed)).await;
        assert_eq!(streamed.body["code"], code, "{status}: {streamed:?}");
        let openai = answer(service.post("/v1/chat/completions", &completion)).await;
        assert_eq!(openai.body["error"]["code"], code, "{status}: {openai:?}");
        for body in [&failed.body, &streamed.body, &openai.body] {
            assert!(!body.to_string().contains("secret"), "{body}");
        }
        // On its own surface Gemini's errors are relayed unchanged. An HTML page is not one of
        // them.
        let native = service.post(GENERATE, &json!({"contents": []})).send().await.unwrap();
        assert_eq!(native.status(), if status == 503 { 503 } else { 502 });
        if code == "malformed_answer" {
            let native = native.text().await.unwrap();
            let native: Value = serde_json::from_str(&native).unwrap();
            assert_eq!(native["error"]["details"][0]["reason"], "MALFORMED_ANSWER");
        }
    }
}

#[tokio::test]
async fn geminis_404_for_an_unknown_path_is_relayed() {
    let page = Recording::play(404, "text/html", vec![b"<html>".into()]).await;
    let service = service_over(&page.base_url).await;
    let unknown = service.get("/v1beta/model").send().await.unwrap();
    assert_eq!(unknown.status(), 404);
}
