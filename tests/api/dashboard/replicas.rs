//! The dashboard of several replicas, and of the real program.

use reqwest::StatusCode;
use serde_json::json;

use super::{Browser, Shown};
use crate::process::{Process, Start};
use crate::redis_server::RedisServer;
use crate::replicas::Backends;
use crate::support::{ADMIN_KEY, TEST_TIMEOUT, answer};

/// A browser that is signed in at a process.
async fn signed_in(process: &Process) -> Browser {
    let mut browser = Browser::at(process.address);
    let shown = browser.login(ADMIN_KEY).await;
    assert_eq!(shown.status, StatusCode::SEE_OTHER, "{shown:?}");
    browser.csrf = browser.get("/dashboard").await.csrf();
    browser
}

/// The same browser, whose requests go to another process.
fn at(process: &Process, browser: &Browser) -> Browser {
    let (cookie, csrf) = (browser.cookie.clone(), browser.csrf.clone());
    Browser { cookie, csrf, ..Browser::at(process.address) }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_session_is_valid_at_every_replica_which_shows_the_accounts_of_all_until_it_ends() {
    let backends = Backends::new(RedisServer::start().await).await;
    let (one, two) = (backends.replica(5).run().await, backends.replica(5).run().await);
    let browser = signed_in(&one).await;
    let elsewhere = at(&two, &browser);
    let fields = [("semaphore_id", "images"), ("limit", "3")];
    let created = elsewhere.post("/dashboard/semaphores", &fields).await;
    assert_eq!(created.leads_to(), "/dashboard/semaphores/images?done=semaphore-created");
    browser.get("/dashboard/semaphores").await.has("0 of 3");
    let chat = answer(two.post("/chat", &json!({"prompt": "Hello"}))).await;
    assert_eq!(chat.status, StatusCode::OK);
    // Both are listed, with the account of the other one, once each has reported.
    let rows = |shown: Shown| shown.text.matches("<tr><th scope=\"row\">").count();
    let both = async {
        while rows(browser.get("/dashboard/replicas").await) < 2
            || !browser.get("/dashboard/accounts").await.text.contains("<article")
        {
            tokio::time::sleep(std::time::Duration::from_millis(100)).await;
        }
    };
    tokio::time::timeout(TEST_TIMEOUT, both).await.expect("both are listed");
    let account = [("key", "server"), ("model", "gemini-3.5-flash-lite")];
    let elsewhere_used = browser.post("/dashboard/accounts/reset", &account).await;
    assert_eq!(elsewhere_used.status, StatusCode::NOT_FOUND);
    elsewhere_used.has("Another replica has");
    let reset = elsewhere.post("/dashboard/accounts/reset", &account).await;
    assert_eq!(reset.leads_to(), "/dashboard/accounts?done=limits-reset");
    elsewhere.post("/dashboard/logout", &[]).await;
    assert_eq!(browser.get("/dashboard").await.status, StatusCode::SEE_OTHER);

    // The session of a replica ends with it.
    let browser = signed_in(&one).await;
    let own = signed_in(&two).await;
    assert_eq!(at(&two, &browser).get("/dashboard").await.status, StatusCode::OK);
    one.terminate().await;
    one.end().await;
    assert_eq!(at(&two, &browser).get("/dashboard").await.status, StatusCode::SEE_OTHER);
    assert_eq!(own.get("/dashboard").await.status, StatusCode::OK);
}

#[tokio::test(flavor = "multi_thread")]
async fn sessions_last_while_redis_is_unavailable() {
    let mut redis = RedisServer::start().await;
    let backends = Backends::new(RedisServer::start().await).await;
    let replica = backends.replica(5).set("REDIS_URL", &redis.url()).run().await;
    let browser = signed_in(&replica).await;
    redis.stop().await;
    crate::replicas::until_connected(&replica, false).await;
    let shown = browser.get("/dashboard").await;
    assert_eq!(shown.status, StatusCode::OK);
    shown.has("shared limits unavailable");
    assert_eq!(browser.get("/dashboard/replicas").await.status, StatusCode::OK);
    let unknown = Browser {
        cookie: Some(format!("dashboard_session={}", "A".repeat(43))),
        ..Browser::at(replica.address)
    };
    assert_eq!(unknown.get("/dashboard").await.status, StatusCode::SEE_OTHER);
}

/// Each worker of the program has its own router.
#[tokio::test(flavor = "multi_thread")]
async fn the_workers_of_a_process_share_its_sessions_and_updates_do_not_delay_its_end() {
    let process = Start::simulated().set("ADMIN_API_KEY", ADMIN_KEY).run().await;
    let browser = signed_in(&process).await;
    let mut streams = Vec::new();
    for _ in 0..8 {
        // Each client has its own connection, and so another worker.
        let other = at(&process, &browser);
        assert_eq!(other.get("/dashboard").await.status, StatusCode::OK);
        let stream = other.request(reqwest::Method::GET, "/dashboard/live").send().await.unwrap();
        assert_eq!(stream.status(), StatusCode::OK);
        streams.push(stream);
    }
    process.terminate().await;
    let began = std::time::Instant::now();
    process.end().await;
    // The grace period is longer.
    assert!(began.elapsed().as_secs() < 10, "{:?}", began.elapsed());
    for stream in streams {
        assert!(stream.text().await.unwrap().contains("event: end\ndata: shutdown"));
    }
}
