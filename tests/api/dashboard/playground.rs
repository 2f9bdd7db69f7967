//! The playground.

use gemini_concurrent_generation::simulator::Options;
use reqwest::{Method, StatusCode};

use super::{Browser, Shown, form};
use crate::support::{SERVER_KEY, Service, slow};

async fn send(browser: &Browser, kind: &str, fields: &[(&str, &str)]) -> Shown {
    let fields = [&[("kind", kind)], fields].concat();
    browser.post("/dashboard/playground", &fields).await
}

#[tokio::test]
async fn each_kind_has_a_form_with_an_example() {
    let service = Service::start().await;
    service.register("images", 3).await;
    let browser = Browser::signed_in(&service).await;
    for (kind, text) in [
        ("chat", "Why is the sky blue?"),
        ("structured", "name=\"schema\""),
        ("story", "name=\"voices\""),
        ("nonsense", "Why is the sky blue?"),
    ] {
        let shown = browser.get(&format!("/dashboard/playground?kind={kind}")).await;
        assert_eq!(shown.status, StatusCode::OK);
        shown.has(text);
        shown.has("<option value=\"images\">images</option>");
        shown.has_not(SERVER_KEY);
    }
}

#[tokio::test]
async fn a_chat_is_shown_with_its_timeline_and_cost() {
    let service = Service::start().await;
    let browser = Browser::signed_in(&service).await;
    let fields = [("prompt", "<b>Hello</b>"), ("system_prompt", ""), ("model", "gemini-3.8-flash")];
    let shown = send(&browser, "chat", &fields).await;
    assert_eq!(shown.status, StatusCode::OK);
    for text in [
        "Waits for admission: gemini-3.8-flash, standard tier",
        "Attempt 1 is sent",
        "The answer is complete: ",
        "Simulated answer to: &lt;b&gt;Hello&lt;/b&gt;",
        "<span class=\"name\">Queue</span>",
        "Cost",
        "answered",
        "</html>",
    ] {
        shown.has(text);
    }
    shown.has_not("<b>Hello");
    let calls = service.simulator.journal();
    assert_eq!((calls.len(), &*calls[0].api_key), (1, SERVER_KEY));
}

#[tokio::test]
async fn a_retry_is_a_step_and_a_failure_says_why() {
    let service = Service::start().await;
    let browser = Browser::signed_in(&service).await;
    let retried = [("prompt", "[[simulate:status=503,fail_times=1]]")];
    let shown = send(&browser, "chat", &retried).await;
    shown.has("The attempt failed: upstream_unavailable (503");
    shown.has("It is sent again in ");
    shown.has("<span class=\"name\">Attempt 2</span>");
    shown.has("<span class=\"name\">Pause</span>");
    let failed = send(&browser, "chat", &[("prompt", "[[simulate:status=400]]")]).await;
    assert_eq!(failed.status, StatusCode::OK, "the steps were written before");
    failed.has("invalid_request");
    failed.has("role=\"alert\"");
    // It belongs to its request.
    let (_, failure) = service.gateway.history.failures(1).pop().unwrap();
    let id = failed.headers["x-request-id"].to_str().unwrap();
    assert_eq!(failure.request_id.as_deref(), Some(id));
}

#[tokio::test]
async fn structured_output_is_shown_as_json() {
    let service = Service::start().await;
    let browser = Browser::signed_in(&service).await;
    let schema =
        r#"{"type": "object", "required": ["name"], "properties": {"name": {"type": "string"}}}"#;
    let fields = [("prompt", "Anna"), ("system_prompt", "Who?"), ("schema", schema)];
    let shown = send(&browser, "structured", &fields).await;
    shown.has("<pre class=\"answer\"");
    shown.has("&quot;name&quot;: &quot;");
    for (schema, status, text) in [
        ("{", 422, "The JSON Schema is not JSON"),
        ("{\"type\": \"nonsense\"}", 422, "json_schema"),
        (&"[".repeat(60_000), 422, "recursion limit"),
    ] {
        let fields = [("prompt", "Anna"), ("system_prompt", "Who?"), ("schema", schema)];
        let refused = send(&browser, "structured", &fields).await;
        assert_eq!(refused.status.as_u16(), status, "{text}");
        refused.has(text);
    }
}

#[tokio::test]
async fn a_story_is_shown_as_a_story() {
    let service = Service::start().await;
    let browser = Browser::signed_in(&service).await;
    let fields =
        [("prompt", "A storm"), ("system_prompt", "Tell"), ("voices", "voice-amber, voice-basil,")];
    let shown = send(&browser, "story", &fields).await;
    for text in ["Cover", "Characters", "Chapter 1: ", "<blockquote", "Publication", "As JSON"] {
        shown.has(text);
    }
    assert!(shown.text.contains("voice-amber</bdi>") || shown.text.contains("voice-basil</bdi>"));
}

#[tokio::test]
async fn invalid_input_is_refused_with_the_entered_text() {
    let service = Service::start().await;
    let browser = Browser::signed_in(&service).await;
    for (fields, status, text) in [
        (&[("prompt", " ")][..], 422, "prompt"),
        (&[("prompt", "kept-text"), ("model", "no such model")], 422, "model"),
        (&[("prompt", "kept-text"), ("semaphore", "none")], 404, "There is no semaphore"),
        (&[("prompt", "kept-text"), ("tier", "fastest")], 422, "service_tier"),
    ] {
        let refused = send(&browser, "chat", fields).await;
        assert_eq!(refused.status.as_u16(), status, "{fields:?}");
        refused.has("role=\"alert\"");
        refused.has(text);
        if fields[0].1 == "kept-text" {
            refused.has("kept-text</textarea>");
        }
    }
    assert!(service.simulator.journal().is_empty());
    let forged = browser.request(Method::POST, "/dashboard/playground");
    let forged = browser.send(forged.body(form(&[("kind", "chat"), ("prompt", "x")]))).await;
    assert_eq!(forged.status, StatusCode::FORBIDDEN);
}

#[tokio::test]
async fn without_a_key_of_the_server_nothing_is_sent() {
    let service = Service::with(Options::default(), |config| config.gemini_api_key = None).await;
    let browser = Browser::signed_in(&service).await;
    let refused = send(&browser, "chat", &[("prompt", "x")]).await;
    assert_eq!(refused.status, StatusCode::INTERNAL_SERVER_ERROR);
    refused.has("GEMINI_API_KEY");
}

#[tokio::test]
async fn steps_are_written_as_they_happen_and_leaving_cancels_the_call() {
    let service = Service::start().await;
    let browser = Browser::signed_in(&service).await;
    let fields = [("csrf", &*browser.csrf), ("kind", "chat"), ("prompt", &slow(60_000))];
    let request = browser.request(Method::POST, "/dashboard/playground");
    let mut response = request.body(form(&fields)).send().await.unwrap();
    let mut text = String::new();
    while !text.contains("Attempt 1 is sent") {
        let chunk = response.chunk().await.unwrap().expect("more");
        text.push_str(std::str::from_utf8(&chunk).unwrap());
    }
    service.until("the call is in flight", |limiter| limiter.in_flight == 1).await;
    drop(response);
    service.until_idle().await;
}
