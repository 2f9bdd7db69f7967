//! How sessions begin and end.

use std::time::Duration;

use reqwest::header::SET_COOKIE;
use reqwest::{Method, StatusCode};

use super::{Browser, PAGES, form};
use crate::support::{ADMIN_KEY, Service, answer};

#[tokio::test]
async fn without_an_admin_key_there_is_no_dashboard() {
    let service = Service::with(Default::default(), |config| config.admin_api_key = None).await;
    for path in ["", "/", "/login", "/jobs", "/live", "/assets/dashboard.css"] {
        for method in [Method::GET, Method::POST] {
            let url = service.url(&format!("/dashboard{path}"));
            let absent = answer(service.http.request(method, url)).await;
            assert_eq!(
                (absent.status, &absent.body["code"]),
                (StatusCode::NOT_FOUND, &"not_found".into())
            );
            assert!(absent.body["detail"].as_str().unwrap().contains("ADMIN_API_KEY"));
        }
    }
}

#[tokio::test]
async fn a_page_without_a_session_leads_to_the_login_and_back() {
    let service = Service::start().await;
    let mut browser = Browser::new(&service);
    for page in PAGES {
        let asked = browser.get(&format!("{page}?a=b&c")).await;
        assert_eq!(asked.status, StatusCode::SEE_OTHER);
        assert!(asked.leads_to().starts_with("/dashboard/login?next=/dashboard"));
        let shown = browser.get(asked.leads_to()).await;
        assert_eq!(shown.status, StatusCode::OK);
        shown.has(&format!("name=\"next\" value=\"{page}?a=b&amp;c\""));
        shown.has_not("Sign out");
    }
    let request = browser.request(Method::POST, "/dashboard/login");
    let fields = form(&[("key", ADMIN_KEY), ("next", "/dashboard/jobs?x=1")]);
    assert_eq!(browser.send(request.body(fields)).await.leads_to(), "/dashboard/jobs?x=1");
    browser.login(ADMIN_KEY).await;
    let again = browser.get("/dashboard/login?next=https://evil.example/").await;
    assert_eq!((again.status.as_u16(), again.leads_to()), (303, "/dashboard"));
}

#[tokio::test]
async fn the_cookie_is_kept_from_scripts_and_other_sites() {
    let service = Service::start().await;
    let browser = Browser::new(&service);
    let login = |proto: &'static str| {
        let request = browser.request(Method::POST, "/dashboard/login");
        let request = request.header("x-forwarded-proto", proto);
        browser.send(request.body(form(&[("key", ADMIN_KEY)])))
    };
    for (proto, attributes) in [
        ("http", " Path=/dashboard; HttpOnly; SameSite=Strict"),
        ("https", " Path=/dashboard; HttpOnly; SameSite=Strict; Secure"),
        ("https, http", " Path=/dashboard; HttpOnly; SameSite=Strict; Secure"),
    ] {
        let shown = login(proto).await;
        let (cookie, found) = shown.headers[SET_COOKIE].to_str().unwrap().split_once(';').unwrap();
        assert_eq!(found, attributes);
        let token = cookie.strip_prefix("dashboard_session=").unwrap();
        assert!(token.len() >= 43, "256 bits: {token}");
        assert!(!shown.text.contains(token));
    }
}

#[tokio::test]
async fn a_wrong_key_begins_no_session_and_is_not_shown() {
    let service = Service::start().await;
    let mut browser = Browser::new(&service);
    for wrong in ["", "wrong-key-1234", "the-admin-ke", "the-admin-keyy"] {
        let shown = browser.login(wrong).await;
        assert_eq!(shown.status, StatusCode::UNAUTHORIZED);
        assert!(!shown.headers.contains_key(SET_COOKIE));
        shown.has("This is not the admin key.");
        shown.has_not("wrong-key-1234");
    }
}

#[tokio::test]
async fn guesses_are_slowed_for_each_client_and_the_right_key_is_not() {
    let service = Service::start().await;
    let browser = Browser::new(&service);
    let guess = |client: &'static str, key: &'static str| {
        let request = browser.request(Method::POST, "/dashboard/login");
        browser.send(request.header("x-forwarded-for", client).body(form(&[("key", key)])))
    };
    for _ in 0..20 {
        assert_eq!(guess("198.51.100.1", ADMIN_KEY).await.status, StatusCode::SEE_OTHER);
    }
    let mut statuses = Vec::new();
    for _ in 0..7 {
        statuses.push(guess("198.51.100.2", "wrong").await.status.as_u16());
    }
    assert_eq!(statuses, [401, 401, 401, 401, 401, 429, 429]);
    let slowed = guess("198.51.100.2", ADMIN_KEY).await;
    assert_eq!(slowed.status, StatusCode::TOO_MANY_REQUESTS, "the key is not even compared");
    let wait: u64 = slowed.headers["retry-after"].to_str().unwrap().parse().unwrap();
    assert!((1..=15).contains(&wait), "{wait}");
    assert_eq!(guess("198.51.100.1", ADMIN_KEY).await.status, StatusCode::SEE_OTHER);
}

#[tokio::test]
async fn guesses_of_many_clients_are_slowed_together() {
    let service = Service::start().await;
    let browser = Browser::new(&service);
    let mut slowed = 0;
    for client in 0..120 {
        let request = browser.request(Method::POST, "/dashboard/login");
        let request = request.header("x-forwarded-for", format!("198.51.100.{client}"));
        let shown = browser.send(request.body(form(&[("key", "wrong")]))).await;
        slowed += usize::from(shown.status == StatusCode::TOO_MANY_REQUESTS);
    }
    assert!(slowed > 0, "none of 120 guesses was slowed");
}

#[tokio::test]
async fn a_session_ends_at_the_logout_and_with_time() {
    let service = Service::start().await;
    let browser = Browser::signed_in(&service).await;
    let other = Browser::signed_in(&service).await;
    let out = browser.post("/dashboard/logout", &[]).await;
    assert_eq!((out.status.as_u16(), out.leads_to()), (303, "/dashboard/login"));
    assert!(out.headers[SET_COOKIE].to_str().unwrap().contains("Max-Age=0"));
    assert_eq!(browser.get("/dashboard").await.status, StatusCode::SEE_OTHER);
    assert_eq!(other.get("/dashboard").await.status, StatusCode::OK);

    tokio::time::pause();
    tokio::time::advance(Duration::from_secs(3600)).await;
    tokio::time::resume();
    let ended = other.get("/dashboard/jobs").await;
    assert_eq!(ended.leads_to(), "/dashboard/login?next=/dashboard/jobs");
    let action =
        other.post("/dashboard/semaphores", &[("semaphore_id", "a"), ("limit", "1")]).await;
    assert_eq!(action.leads_to(), "/dashboard/login?next=/dashboard");
    assert!(service.gateway.limiter.store().named().is_empty());
}

#[tokio::test]
async fn a_session_does_not_outlive_its_process() {
    let (one, other) = (Service::start().await, Service::start().await);
    let browser = Browser::signed_in(&one).await;
    let elsewhere = Browser { address: other.address, ..browser };
    assert_eq!(elsewhere.get("/dashboard").await.status, StatusCode::SEE_OTHER);
}
