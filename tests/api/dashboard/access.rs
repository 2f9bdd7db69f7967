//! Who may see a page and send a form.

use reqwest::{Method, StatusCode};
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;

use super::{ACTIONS, Browser, PAGES, form};
use crate::support::{Service, until};

const POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; \
                      connect-src 'self'; form-action 'self'; frame-ancestors 'none'; base-uri 'none'";

#[tokio::test]
async fn every_page_has_the_strict_policy_and_nothing_inline() {
    let service = Service::start().await;
    let browser = Browser::signed_in(&service).await;
    let files = ["/dashboard/assets/dashboard.css", "/dashboard/assets/dashboard.js"];
    let others = [
        "/dashboard/login",
        "/dashboard/nowhere",
        "/dashboard/",
        "/dashboard/playground?kind=story",
    ];
    for path in PAGES.iter().chain(&files).chain(&others) {
        let shown = browser.get(path).await;
        assert_eq!(shown.headers["content-security-policy"], POLICY, "{path}");
        for (name, value) in [
            ("x-content-type-options", "nosniff"),
            ("x-frame-options", "DENY"),
            ("referrer-policy", "same-origin"),
            ("cross-origin-opener-policy", "same-origin"),
            ("cross-origin-resource-policy", "same-origin"),
        ] {
            assert_eq!(shown.headers[name], value, "{path}: {name}");
        }
        if !files.contains(path) {
            assert_eq!(shown.headers["cache-control"], "no-store", "{path}");
            for inline in ["style=", "<style", " onclick=", " onload=", "javascript:"] {
                shown.has_not(inline);
            }
            let scripts = shown.text.matches("<script").count();
            assert_eq!(scripts, shown.text.matches("<script src=\"/dashboard/assets/").count());
        }
    }
}

#[tokio::test]
async fn files_are_served_once_and_then_only_when_they_change() {
    let service = Service::start().await;
    let browser = Browser::new(&service);
    for (file, content_type) in [
        ("dashboard.css", "text/css; charset=utf-8"),
        ("dashboard.js", "text/javascript; charset=utf-8"),
        ("icon.svg", "image/svg+xml"),
    ] {
        let path = format!("/dashboard/assets/{file}");
        let first = browser.get(&path).await;
        assert_eq!((first.status, first.text.is_empty()), (StatusCode::OK, false));
        assert_eq!(first.headers["content-type"], content_type);
        let etag = first.headers["etag"].to_str().unwrap();
        for (known, status) in
            [(etag.to_owned(), 304), (format!("\"x\", W/{etag}"), 304), ("\"x\"".to_owned(), 200)]
        {
            let request = browser.request(Method::GET, &path).header("if-none-match", known);
            assert_eq!(browser.send(request).await.status.as_u16(), status, "{file}");
        }
    }
    assert_eq!(browser.get("/dashboard/assets/other.css").await.status, StatusCode::NOT_FOUND);
}

#[tokio::test]
async fn an_action_without_the_token_of_its_session_is_refused() {
    let service = Service::start().await;
    service.register("images", 3).await;
    let browser = Browser::signed_in(&service).await;
    let other = Browser::signed_in(&service).await;
    for action in ACTIONS {
        for csrf in [None, Some(""), Some("wrong"), Some(&*other.csrf)] {
            let fields: Vec<_> = csrf.map(|csrf| ("csrf", csrf)).into_iter().collect();
            let fields = [&fields[..], &[("semaphore_id", "other"), ("limit", "7")]].concat();
            let request = browser.request(Method::POST, action).body(form(&fields));
            let refused = browser.send(request).await;
            assert_eq!(refused.status, StatusCode::FORBIDDEN, "{action} {csrf:?}");
        }
        let get = browser.get(action).await;
        assert!(
            get.status == StatusCode::METHOD_NOT_ALLOWED || get.status == StatusCode::OK,
            "{action}"
        );
    }
    let all = service.gateway.limiter.store().named();
    assert_eq!(
        all.iter().map(|(id, s)| (id.as_str(), s.usage().limit)).collect::<Vec<_>>(),
        [("images", 3)]
    );
    assert_eq!(browser.get("/dashboard").await.status, StatusCode::OK, "nobody was signed out");
}

#[tokio::test]
async fn an_action_without_a_session_does_nothing() {
    let service = Service::start().await;
    service.register("images", 3).await;
    let browser = Browser::new(&service);
    for action in ACTIONS {
        let refused = browser.post(action, &[("limit", "7")]).await;
        assert_eq!(refused.leads_to(), "/dashboard/login?next=/dashboard", "{action}");
    }
    let results = browser.get("/dashboard/jobs/job_00000000000000000000000000000000/results").await;
    assert_eq!(results.status, StatusCode::SEE_OTHER);
    let all = service.gateway.limiter.store().named();
    assert_eq!(all[0].1.usage().limit, 3);
}

#[tokio::test]
async fn a_form_that_is_no_form_or_too_large_is_refused() {
    let service = Service::start().await;
    let browser = Browser::signed_in(&service).await;
    let post = || browser.request(Method::POST, "/dashboard/semaphores");
    let json = post().header("content-type", "application/json").body("{}");
    // The client adds the second content type to the first.
    let json = browser.http.execute({
        let mut request = json.build().unwrap();
        request.headers_mut().insert("content-type", "application/json".parse().unwrap());
        request
    });
    assert_eq!(json.await.unwrap().status(), StatusCode::UNSUPPORTED_MEDIA_TYPE);
    let large = post().body(form(&[("csrf", &browser.csrf), ("x", &"x".repeat(300_000))]));
    assert_eq!(browser.send(large).await.status, StatusCode::PAYLOAD_TOO_LARGE);
}

/// So that many forms that are sent slowly, also by strangers, cannot use up the memory.
#[tokio::test]
async fn a_form_takes_its_memory_while_it_arrives() {
    let service = Service::start().await;
    let mut stranger = TcpStream::connect(service.address).await.unwrap();
    let head = "POST /dashboard/login HTTP/1.1\r\nhost: localhost\r\ncontent-length: 200000\r\n\
                content-type: application/x-www-form-urlencoded\r\n\r\n";
    stranger.write_all(head.as_bytes()).await.unwrap();
    stranger.write_all(&[b'x'; 100_000]).await.unwrap();
    let bodies = &service.gateway.bodies;
    until("half of the form is counted", || bodies.used() == 100_000).await;
    drop(stranger);
    until("its memory is given back", || bodies.used() == 0).await;
}

#[tokio::test]
async fn pages_of_other_origins_can_neither_read_nor_send_anything() {
    let service = Service::with(Default::default(), |config| {
        config.cors_origins = gemini_concurrent_generation::config::CorsOrigins::These(vec![
            "https://app.example".parse().unwrap(),
        ]);
    })
    .await;
    let browser = Browser::signed_in(&service).await;
    let own = format!("http://{}", service.address);
    for (number, (name, value, status)) in [
        ("origin", "https://evil.example", 403),
        ("origin", "https://app.example", 403),
        ("origin", "null", 403),
        ("sec-fetch-site", "cross-site", 403),
        ("sec-fetch-site", "same-site", 403),
        ("sec-fetch-site", "same-origin", 303),
        ("origin", &own, 303),
    ]
    .into_iter()
    .enumerate()
    {
        let id = number.to_string();
        let fields = form(&[("csrf", &browser.csrf), ("semaphore_id", &id), ("limit", "1")]);
        let post = browser.request(Method::POST, "/dashboard/semaphores").header(name, value);
        let sent = browser.send(post.body(fields)).await;
        assert_eq!(sent.status.as_u16(), status, "{name}: {value}");
        assert!(!sent.headers.contains_key("access-control-allow-credentials"));
        let read = browser.request(Method::GET, "/dashboard").header(name, value);
        let read = browser.send(read.header("sec-fetch-mode", "cors")).await;
        let expected = if status == 403 { 403 } else { 200 };
        assert_eq!(read.status.as_u16(), expected, "{name}: {value}");
    }
}

#[tokio::test]
async fn a_link_from_another_site_is_followed_with_the_session() {
    let service = Service::start().await;
    let browser = Browser::new(&service);
    let request = browser.request(Method::GET, "/dashboard/jobs?after=%22%3E");
    let request =
        request.header("sec-fetch-site", "cross-site").header("sec-fetch-mode", "navigate");
    let shown = browser.send(request).await;
    assert_eq!(shown.status, StatusCode::OK);
    shown.has("<meta http-equiv=\"refresh\" content=\"0; url=/dashboard/jobs?after=%22%3E\">");
}

#[tokio::test]
async fn an_unknown_host_name_is_refused() {
    let service = Service::with(Default::default(), |config| {
        config.allowed_hosts = vec!["gateway.internal".to_owned()];
    })
    .await;
    let browser = Browser::signed_in(&service).await;
    for (host, status) in [("localhost", 200), ("gateway.internal:80", 200), ("evil.example", 403)]
    {
        for path in ["/dashboard", "/dashboard/login"] {
            let shown = browser.send(browser.request(Method::GET, path).header("host", host)).await;
            let status = if status == 200 && path.ends_with("login") { 303 } else { status };
            assert_eq!(shown.status.as_u16(), status, "{host}{path}");
        }
        let login = browser.request(Method::POST, "/dashboard/login").header("host", host);
        let login = browser.send(login.body(form(&[("key", "wrong")]))).await;
        assert_eq!(login.status.as_u16(), if status == 200 { 401 } else { 403 }, "{host}");
    }
}

#[tokio::test]
async fn paths_that_are_no_pages_are_not_found() {
    let service = Service::start().await;
    let browser = Browser::signed_in(&service).await;
    for path in [
        "/dashboard/nowhere",
        "/dashboard/jobs/nonsense",
        "/dashboard/jobs/job_00000000000000000000000000000000",
        "/dashboard/jobs?after=nonsense",
        "/dashboard/semaphores/none",
        "/dashboard/semaphores/a%00b",
        "/dashboard/semaphores/%ff",
    ] {
        let shown = browser.get(path).await;
        assert_eq!(shown.status, StatusCode::NOT_FOUND, "{path}");
        assert!(shown.headers["content-type"].to_str().unwrap().starts_with("text/html"), "{path}");
    }
}

#[tokio::test]
async fn other_methods_are_refused_with_a_page_that_names_those_allowed() {
    let service = Service::start().await;
    let browser = Browser::signed_in(&service).await;
    for (method, path, allowed) in [
        (Method::PUT, "/dashboard", "GET,HEAD"),
        (Method::DELETE, "/dashboard/semaphores", "POST,GET,HEAD"),
        (Method::GET, "/dashboard/logout", "POST"),
        (Method::POST, "/dashboard/live", "GET,HEAD"),
    ] {
        let shown = browser.send(browser.request(method, path)).await;
        assert_eq!(shown.status, StatusCode::METHOD_NOT_ALLOWED, "{path}");
        assert_eq!(shown.headers["allow"], allowed, "{path}");
        shown.has("Back to the overview");
    }
}
