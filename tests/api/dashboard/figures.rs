//! The pages of figures: overview, accounts, replicas and recent failures.

use gemini_concurrent_generation::config::Config;
use gemini_concurrent_generation::simulator::Options;
use reqwest::StatusCode;
use serde_json::json;

use super::Browser;
use crate::limits::plan;
use crate::support::{SERVER_KEY, Service, answer};

const MODEL: &str = "gemini-3.5-flash-lite";

/// A service whose account has quotas, after some calls and a sample.
async fn sampled(change: impl FnOnce(&mut Config)) -> Service {
    let service = Service::with(Options::default(), |config| {
        config.max_attempts = 1;
        config.quota_plan = plan("*:rpm=1000,tpm=100000,rpd=20000,spend=5", "");
        change(config);
    })
    .await;
    for prompt in ["one", "two", "[[simulate:blocked=SAFETY]]"] {
        service.chat(prompt).await;
    }
    service.until_idle().await;
    service.gateway.history.sample().await;
    service
}

#[tokio::test]
async fn the_overview_shows_what_was_counted_beside_its_limits() {
    let service = sampled(|config| config.concurrency_limit = 7).await;
    let browser = Browser::signed_in(&service).await;
    let shown = browser.get("/dashboard").await;
    for text in [
        "<small>of 7</small>",
        "This process has its own limits.",
        MODEL,
        "Requests a minute",
        "3 of 1k",
        "aria-label=\"In flight, last 1 h; in flight now ",
        "; limit now 7, at most 7\"",
        "aria-label=\"Calls, last 1 h; calls now ",
        "; quota now 1k, at most 1k\"",
        "content_blocked",
        "p95",
    ] {
        shown.has(text);
    }
    let day = browser.get("/dashboard?window=day").await;
    day.has("last 1 d;");
    day.has("data-live=\"/dashboard/live?window=day\"");
    day.has("Nothing yet");
}

#[tokio::test]
async fn an_account_shows_every_quota_its_limits_and_why_it_is_paused() {
    let service = sampled(|_| {}).await;
    let browser = Browser::signed_in(&service).await;
    let shown = browser.get("/dashboard/accounts").await;
    for text in [
        "Requests a minute",
        "Input tokens a minute",
        "Requests a day",
        "3 of 20k",
        "Spend of ten minutes, over all models",
        "of $5.00",
        "Limit of the settings",
        "Next free slot",
        "adaptive limit now ",
        "sending",
    ] {
        shown.has(text);
    }
    shown.has_not(SERVER_KEY);
    service.chat("[[simulate:quota=minute]]").await;
    service.gateway.history.sample().await;
    let paused = browser.get("/dashboard/accounts").await;
    paused.has("paused");
    paused.has("Gemini refused a call");
}

#[tokio::test]
async fn accounts_are_shown_page_by_page() {
    let service = sampled(|_| {}).await;
    let browser = Browser::signed_in(&service).await;
    for number in 0..11 {
        let own = json!({"gemini_api_key": format!("own-key-{number}")});
        let chat = json!({"prompt": "x", "credentials": own});
        assert_eq!(answer(service.post("/chat", &chat)).await.status, StatusCode::OK);
    }
    service.gateway.history.sample().await;
    let articles = |shown: &super::Shown| shown.text.matches("<article").count();
    let first = browser.get("/dashboard/accounts?window=day").await;
    assert_eq!(articles(&first), 10);
    first.has("/dashboard/accounts?window=day&amp;page=1");
    first.has_not("Previous");
    let second = browser.get("/dashboard/accounts?window=day&page=1").await;
    assert_eq!(articles(&second), 2);
    second.has("data-live=\"/dashboard/accounts/live?window=day&amp;page=1\"");
    second.has_not(">Next<");
    for page in ["-1", "x", "64", "99999999999999999999"] {
        let shown = browser.get(&format!("/dashboard/accounts?page={page}")).await;
        assert_eq!(shown.status, StatusCode::NOT_FOUND, "{page}");
    }
}

#[tokio::test]
async fn what_was_learned_about_an_account_is_reset() {
    let service = sampled(|_| {}).await;
    let browser = Browser::signed_in(&service).await;
    service.chat("[[simulate:quota=minute]]").await;
    assert!(service.only_account().await["paused_for_seconds"].is_f64());
    let page = browser.get("/dashboard/accounts").await;
    page.has("action=\"/dashboard/accounts/reset\"");
    page.has(&format!("name=\"model\" value=\"{MODEL}\""));
    let reset = [("key", "server"), ("model", MODEL)];
    let sent = browser.post("/dashboard/accounts/reset", &reset).await;
    assert_eq!(sent.leads_to(), "/dashboard/accounts?done=limits-reset");
    browser.get(sent.leads_to()).await.has("is forgotten");
    assert!(service.only_account().await["paused_for_seconds"].is_null());
    let unknown = [("key", "<b>"), ("model", MODEL)];
    let refused = browser.post("/dashboard/accounts/reset", &unknown).await;
    assert_eq!(refused.status, StatusCode::NOT_FOUND);
    refused.has("No key &quot;&lt;b&gt;&quot; is in use");
}

#[tokio::test]
async fn recent_failures_have_no_prompt_answer_or_key_and_hostile_ids_are_text() {
    let service = sampled(|_| {}).await;
    let browser = Browser::signed_in(&service).await;
    let body = json!({
        "prompt": "the-secret-prompt [[simulate:status=400]]",
        "model": "invented-model",
        "credentials": {"gemini_api_key": "the-callers-own-key"},
    });
    let request = service.post("/chat", &body).header("x-request-id", "<script>order-66</script>");
    answer(request).await;
    let shown = browser.get("/dashboard/failures").await;
    for text in
        ["model_not_found", "Gemini does not know the model", "content_blocked", "invented-model"]
    {
        shown.has(text);
    }
    shown.has("&lt;script&gt;order-66&lt;/script&gt;");
    for text in ["<script>order", "secret", "the-callers-own-key", SERVER_KEY] {
        shown.has_not(text);
    }
}

#[tokio::test]
async fn replicas_are_listed() {
    let service = sampled(|_| {}).await;
    let browser = Browser::signed_in(&service).await;
    let shown = browser.get("/dashboard/replicas").await;
    shown.has(env!("CARGO_PKG_VERSION"));
    shown.has("this one");
    shown.has("REDIS_URL");
    shown.has("running");
}
