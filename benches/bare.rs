//! How long a batch's calls take without the service: a bare client sends the same number of calls
//! to an upstream, with the same concurrency. Prints the median of its rounds, in seconds.
//!
//! `cargo bench --bench bare -- URL CALLS LIMIT ROUNDS`

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;

use axum::body::Bytes;
use axum::http::{Request, Uri, header::CONTENT_TYPE};
use http_body_util::{BodyExt, Full};
use hyper_util::client::legacy::{Client, connect::HttpConnector};
use hyper_util::rt::TokioExecutor;
use tokio::task::JoinSet;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

type Http = Client<HttpConnector, Full<Bytes>>;

fn main() {
    let arguments: Vec<_> = std::env::args().skip(1).filter(|text| text != "--bench").collect();
    let [url, numbers @ ..] = &*arguments else { panic!("URL CALLS LIMIT ROUNDS") };
    let numbers: Vec<usize> =
        numbers.iter().map(|number| number.parse().expect("a number")).collect();
    let [calls, limit, rounds] = *numbers else { panic!("URL CALLS LIMIT ROUNDS") };
    let uri: Uri = url.parse().expect("a URL");
    // The faster of the two runtimes here, as for the service.
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let times = runtime.expect("the runtime starts").block_on(async {
        let http: Http =
            Client::builder(TokioExecutor::new()).pool_max_idle_per_host(limit).build_http();
        // The first round opens the connections.
        round(&http, &uri, calls, limit).await;
        let mut times = Vec::new();
        for _ in 0..rounds {
            times.push(round(&http, &uri, calls, limit).await);
        }
        times.sort_by(f64::total_cmp);
        times
    });
    println!("{}", times[times.len() / 2]);
}

async fn round(http: &Http, uri: &Uri, calls: usize, limit: usize) -> f64 {
    let began = Instant::now();
    let next = Arc::new(AtomicUsize::new(0));
    let mut workers = JoinSet::new();
    for _ in 0..limit {
        let (http, uri, next) = (http.clone(), uri.clone(), Arc::clone(&next));
        workers.spawn(async move {
            loop {
                let number = next.fetch_add(1, Ordering::Relaxed);
                if number >= calls {
                    return;
                }
                call(&http, &uri, number).await;
            }
        });
    }
    workers.join_all().await;
    began.elapsed().as_secs_f64()
}

async fn call(http: &Http, uri: &Uri, number: usize) {
    let body = format!(r#"{{"contents":[{{"role":"user","parts":[{{"text":"{number}"}}]}}]}}"#);
    let request = Request::post(uri.clone()).header(CONTENT_TYPE, "application/json");
    let request = request.header("x-goog-api-key", "bench").body(Full::from(body));
    let response = http.request(request.expect("a request")).await.expect("an answer");
    assert!(response.status().is_success(), "{}", response.status());
    response.into_body().collect().await.expect("a whole answer");
}
