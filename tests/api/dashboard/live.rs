//! The changes of pages.

use futures_util::StreamExt;
use reqwest::{Method, StatusCode};
use serde_json::Value;
use tokio::time::timeout;

use super::{Browser, PAGES};
use crate::jobs::JobService;
use crate::support::{Service, TEST_TIMEOUT};

/// The events of a page, as they come.
struct Events {
    response: reqwest::Response,
    text: String,
}

impl Events {
    async fn of(browser: &Browser, page: &str) -> Self {
        let response = browser.request(Method::GET, page).send().await.unwrap();
        assert_eq!(response.status(), StatusCode::OK);
        assert_eq!(response.headers()["content-type"], "text/event-stream");
        Self { response, text: String::new() }
    }

    /// The next event: its name and data. `None` at the end.
    async fn next(&mut self) -> Option<(String, String)> {
        loop {
            if let Some((event, rest)) = self.text.split_once("\n\n") {
                let field = |name: &str| {
                    let line = event.lines().find_map(|line| line.strip_prefix(name));
                    line.unwrap_or_default().trim().to_owned()
                };
                let event = (field("event:"), field("data:"));
                self.text = rest.to_owned();
                if event.0.is_empty() {
                    continue;
                }
                return Some(event);
            }
            let chunk = timeout(TEST_TIMEOUT, self.response.chunk()).await.expect("an event");
            self.text.push_str(std::str::from_utf8(&chunk.expect("a whole answer")?).unwrap());
        }
    }

    /// Waits until a fragment has a text.
    async fn until(&mut self, id: &str, text: &str) {
        loop {
            let (event, data) = self.next().await.expect("an event");
            assert_eq!(event, "fragment", "{data}");
            let fragment: Value = serde_json::from_str(&data).unwrap();
            if fragment["id"] == id && fragment["html"].as_str().unwrap().contains(text) {
                return;
            }
        }
    }
}

#[tokio::test]
async fn every_page_sends_the_fragments_that_it_shows() {
    let service = Service::start().await;
    let browser = Browser::signed_in(&service).await;
    for page in PAGES {
        let shown = browser.get(page).await;
        let live = format!("{page}/live");
        shown.has(&format!("data-live=\"{live}\""));
        let (event, data) = Events::of(&browser, &live).await.next().await.unwrap();
        assert_eq!(event, "fragment");
        let fragment: Value = serde_json::from_str(&data).unwrap();
        shown.has(&format!("id=\"{}\"", fragment["id"].as_str().unwrap()));
    }
}

#[tokio::test]
async fn a_page_follows_what_changes() {
    let service = JobService::without_engine(|_| {}).await;
    let browser = Browser::signed_in(&service).await;
    let mut jobs = Events::of(&browser, "/dashboard/jobs/live").await;
    jobs.until("jobs", "No jobs").await;
    let id = service.chats(["x".to_owned()]).await;
    jobs.until("jobs", "0 of 1").await;
    let mut job = Events::of(&browser, &format!("/dashboard/jobs/{id}/live")).await;
    job.until("actions", "/pause").await;
    browser.post(&format!("/dashboard/jobs/{id}/pause"), &[]).await;
    job.until("actions", "/resume").await;
    jobs.until("jobs", "paused").await;
    browser.post(&format!("/dashboard/jobs/{id}/delete"), &[]).await;
    loop {
        let (event, data) = job.next().await.unwrap();
        if event == "trouble" {
            assert!(data.contains("no such job"), "{data}");
            break;
        }
    }
}

#[tokio::test]
async fn updates_end_with_the_session() {
    let service = Service::start().await;
    let browser = Browser::signed_in(&service).await;
    let mut events = Events::of(&browser, "/dashboard/live").await;
    events.next().await.unwrap();
    browser.post("/dashboard/logout", &[]).await;
    loop {
        let (event, data) = events.next().await.unwrap();
        if event == "end" {
            assert_eq!(data, "session");
            break;
        }
    }
    assert_eq!(events.next().await, None);
    let refused = browser.get("/dashboard/live").await;
    assert_eq!(refused.status, StatusCode::SEE_OTHER);
    // A page that connects again is told so, and leads to the login.
    let again = browser.request(Method::GET, "/dashboard/live");
    let again = browser.send(again.header("accept", "text/event-stream")).await;
    assert_eq!((again.status, &*again.text), (StatusCode::OK, "event: end\ndata: session\n\n"));
    assert_eq!(again.headers["content-type"], "text/event-stream");
}

#[tokio::test]
async fn only_so_many_pages_are_kept_up_to_date() {
    let service = Service::start().await;
    let browser = Browser::signed_in(&service).await;
    let streams = futures_util::stream::iter(0..64);
    let streams: Vec<_> = streams.then(|_| Events::of(&browser, "/dashboard/live")).collect().await;
    let refused = browser.get("/dashboard/live").await;
    assert_eq!(refused.status, StatusCode::SERVICE_UNAVAILABLE);
    drop(streams);
    let freed = async {
        while browser.request(Method::GET, "/dashboard/live").send().await.unwrap().status() != 200
        {
            tokio::task::yield_now().await;
        }
    };
    timeout(TEST_TIMEOUT, freed).await.expect("a place is free again");
}
