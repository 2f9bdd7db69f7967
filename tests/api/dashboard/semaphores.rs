//! The pages of semaphores and what can be done there.

use reqwest::StatusCode;
use serde_json::json;

use super::Browser;
use crate::support::{Service, admin, answer, until};

#[tokio::test]
async fn a_semaphore_is_created_changed_and_deleted() {
    let service = Service::start().await;
    let browser = Browser::signed_in(&service).await;
    browser.get("/dashboard/semaphores").await.has("No semaphores");
    let set = async |path: &str, fields: &[(&str, &str)], done: &str| {
        let sent = browser.post(path, fields).await;
        assert_eq!(sent.status, StatusCode::SEE_OTHER, "{sent:?}");
        let shown = browser.get(sent.leads_to()).await;
        shown.has(done);
    };
    let create = [("semaphore_id", " images "), ("limit", "3")];
    set("/dashboard/semaphores", &create, "The semaphore is registered.").await;
    let page = "/dashboard/semaphores/images";
    set(&format!("{page}/limit"), &[("limit", "7")], "The semaphore has the new limit.").await;
    assert_eq!(service.gateway.limiter.store().named()[0].1.usage().limit, 7);
    browser.get("/dashboard/semaphores").await.has("0 of 7");
    set(&format!("{page}/delete"), &[], "The semaphore is deleted.").await;
    assert!(service.gateway.limiter.store().named().is_empty());
    assert_eq!(browser.get(page).await.status, StatusCode::NOT_FOUND);
    for action in ["limit", "delete"] {
        let gone = browser.post(&format!("{page}/{action}"), &[("limit", "7")]).await;
        assert_eq!(gone.status, StatusCode::NOT_FOUND, "{action}");
    }
    assert!(service.gateway.limiter.store().named().is_empty(), "a change creates none");
}

#[tokio::test]
async fn semaphores_are_shown_page_by_page() {
    let service = Service::start().await;
    let browser = Browser::signed_in(&service).await;
    for number in 0..51 {
        service.register(&format!("images-{number:03}"), 3).await;
    }
    let rows = |shown: &super::Shown| shown.text.matches("data-key=\"images-").count();
    let first = browser.get("/dashboard/semaphores").await;
    assert_eq!(rows(&first), 50);
    first.has("href=\"/dashboard/semaphores?page=1\">Next");
    first.has_not("Previous");
    let second = browser.get("/dashboard/semaphores?page=1").await;
    assert_eq!(rows(&second), 1);
    second.has("images-050");
    second.has("data-live=\"/dashboard/semaphores/live?page=1\"");
    second.has_not(">Next<");
    for page in ["-1", "x", "99999999999999999999"] {
        let shown = browser.get(&format!("/dashboard/semaphores?page={page}")).await;
        assert_eq!(shown.status, StatusCode::NOT_FOUND, "{page}");
    }
}

#[tokio::test]
async fn invalid_semaphores_are_refused_with_the_reason() {
    let service = Service::start().await;
    let browser = Browser::signed_in(&service).await;
    for (name, limit) in [
        ("", "3"),
        ("<b>", "3"),
        ("images", "0"),
        ("images", "x"),
        ("images", "1001"),
        ("images", ""),
    ] {
        let fields = [("semaphore_id", name), ("limit", limit)];
        let refused = browser.post("/dashboard/semaphores", &fields).await;
        assert_eq!(refused.status, StatusCode::UNPROCESSABLE_ENTITY, "{name} {limit}");
        refused.has("role=\"alert\"");
        refused.has_not("<b>");
    }
    assert!(service.gateway.limiter.store().named().is_empty());
}

#[tokio::test]
async fn leases_are_shown_with_their_holders_and_released() {
    let service = Service::start().await;
    let browser = Browser::signed_in(&service).await;
    service.register("images", 3).await;
    let lease = json!({"holder": "<i>render-7</i>", "permits": 2, "ttl_seconds": 60});
    let lease = answer(admin(service.post("/_admin/semaphores/images/leases", &lease))).await;
    let id = lease.body["lease_id"].as_str().unwrap();
    let shown = browser.get("/dashboard/semaphores/images").await;
    shown.has("&lt;i&gt;render-7&lt;/i&gt;");
    shown.has("2 of 3");
    let release = format!("/dashboard/semaphores/images/leases/{id}/release");
    shown.has(&release);
    let elsewhere = format!("/dashboard/semaphores/audio/leases/{id}/release");
    assert_eq!(browser.post(&elsewhere, &[]).await.status, StatusCode::NOT_FOUND);
    let sent = browser.post(&release, &[]).await;
    let shown = browser.get(sent.leads_to()).await;
    shown.has("The lease is released.");
    shown.has("0 of 3");
    shown.has("No leases");
}

#[tokio::test]
async fn requests_that_wait_for_a_semaphore_are_shown() {
    let service = Service::start().await;
    let browser = Browser::signed_in(&service).await;
    service.register("images", 1).await;
    let store = service.gateway.limiter.store();
    let lease = |holder: &str| {
        let lease = json!({"holder": holder, "ttl_seconds": 60, "wait_seconds": 60});
        answer(admin(service.post("/_admin/semaphores/images/leases", &lease)))
    };
    assert_eq!(lease("render-7").await.status, StatusCode::CREATED);
    let page = "/dashboard/semaphores/images";
    browser.get(page).await.has("Nothing waits");
    let waiting = async |count: usize, request| {
        tokio::select! {
        answer = request => panic!("it waits: {answer:?}"),
        () = until("it waits", || store.named()[0].1.usage().waiting == count) => {}
        }
    };
    let mut lease = std::pin::pin!(lease("<i>render-8</i>"));
    waiting(1, lease.as_mut()).await;
    let shown = browser.get(page).await;
    shown.has("&lt;i&gt;render-8&lt;/i&gt;");
    shown.has_not("Calls: ");
    let chat = json!({"prompt": "Hello", "external_semaphore_id": "images"});
    let mut chat = std::pin::pin!(answer(service.post("/chat", &chat)));
    waiting(2, chat.as_mut()).await;
    browser.get(page).await.has("Calls: 1");
}
