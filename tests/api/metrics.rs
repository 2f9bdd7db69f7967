//! `GET /metrics`: what is counted, under which labels, and that Prometheus can parse it.

use std::collections::{BTreeMap, HashSet};
use std::time::{Duration, SystemTime};

use gemini_concurrent_generation::metrics::TraceId;
use gemini_concurrent_generation::simulator::Options;
use serde_json::json;

use crate::support::{ADMIN_KEY, SERVER_KEY, Service, admin, answer, slow};

async fn text(service: &Service) -> String {
    let response = service.get("/metrics").send().await.unwrap();
    assert_eq!(response.headers()["content-type"], "text/plain; version=0.0.4; charset=utf-8");
    response.text().await.unwrap()
}

#[tokio::test]
async fn it_shows_requests_in_flight_and_waiting() {
    let service = Service::with(Options::default(), |config| config.concurrency_limit = 3).await;
    service.register("one", 1).await;
    let named = json!({"prompt": slow(60_000), "external_semaphore_id": "one"});
    let batch = json!({"requests": vec![named.clone(); 4], "external_semaphore_id": "one"});
    let single = tokio::spawn(answer(service.post("/chat", &named)));
    service.until("the single request runs", |limiter| limiter.in_flight == 1).await;
    let batch = tokio::spawn(answer(service.post("/batch/chat", &batch)));
    service.until("the batch waits", |limiter| limiter.waiting == 1).await;
    for (series, value) in [
        ("gemini_gateway_in_flight", 1.0),
        ("gemini_gateway_waiting", 1.0),
        ("gemini_gateway_limit", 3.0),
        ("gemini_gateway_semaphore_in_use{semaphore=\"one\"}", 1.0),
        ("gemini_gateway_semaphore_waiting{semaphore=\"one\"}", 1.0),
        ("gemini_gateway_semaphore_limit{semaphore=\"one\"}", 1.0),
    ] {
        assert_eq!(service.metric(series).await, value, "{series}");
    }
    single.abort();
    batch.abort();
    service.until_idle().await;
    assert_eq!(service.metric("gemini_gateway_in_flight").await, 0.0);
    assert_eq!(service.metric("gemini_gateway_limit").await, 3.0);

    service.delete("/_admin/semaphores/one").send().await.unwrap();
    assert!(!text(&service).await.contains("semaphore=\"one\""));
}

#[tokio::test]
async fn it_counts_calls_by_kind_model_and_outcome() {
    let service = Service::start().await;
    let prompts = [
        "fine",
        "[[simulate:fail_times=1]]fine at the second attempt",
        "[[simulate:blocked=SAFETY]]",
        "[[simulate:finish=MAX_TOKENS,text=]]",
    ];
    for prompt in prompts {
        service.chat(prompt).await;
    }
    let batch = json!({"requests": [
        {"user_content": "u", "system_prompt": "s", "json_schema": {"type": "string"}},
        {"user_content": "u", "system_prompt": "s", "json_schema": {"type": "string"},
         "model": "gemini-other"},
    ]});
    let batch = answer(service.post("/batch/structured-output", &batch)).await;
    assert_eq!(batch.body["successful_requests"], 2, "{batch:?}");

    for (labels, value) in [
        (r#"kind="chat",model="gemini-3.5-flash-lite",outcome="success""#, 2.0),
        (r#"kind="chat",model="gemini-3.5-flash-lite",outcome="upstream_unavailable""#, 1.0),
        (r#"kind="chat",model="gemini-3.5-flash-lite",outcome="content_blocked""#, 1.0),
        (r#"kind="chat",model="gemini-3.5-flash-lite",outcome="truncated_answer""#, 1.0),
        (r#"kind="structured_output",model="gemini-3.8-flash",outcome="success""#, 1.0),
        (r#"kind="structured_output",model="gemini-other",outcome="success""#, 1.0),
    ] {
        let series = format!("gemini_gateway_calls_total{{{labels}}}");
        assert_eq!(service.metric(&series).await, value, "{series}");
    }
    let retries = "gemini_gateway_retries_total{kind=\"chat\",reason=\"upstream_unavailable\"}";
    assert_eq!(service.metric(retries).await, 1.0);
    // Every attempt is measured in the queue and upstream.
    assert_eq!(service.metric("gemini_gateway_queue_wait_seconds_count").await, 7.0);
    for (kind, calls) in [("chat", 5.0), ("structured_output", 2.0)] {
        let series = format!("gemini_gateway_upstream_latency_seconds_count{{kind=\"{kind}\"}}");
        assert_eq!(service.metric(&series).await, calls, "{series}");
    }
}

#[tokio::test]
async fn it_sums_the_tokens_that_answers_report() {
    let service = Service::start().await;
    let mut expected = BTreeMap::from([("prompt", 0), ("output", 0), ("thinking", 0)]);
    for prompt in ["one", "two, which is longer than the first"] {
        let body = json!({"prompt": prompt, "model": "gemini-3.8-flash"});
        let usage = answer(service.post("/chat", &body)).await.body["usage"].clone();
        for (kind, sum) in &mut expected {
            *sum += usage[format!("{kind}_tokens")].as_u64().unwrap();
        }
    }
    for (kind, sum) in expected {
        assert!(sum > 0, "the simulator reports {kind} tokens");
        let series =
            format!("gemini_gateway_tokens_total{{model=\"gemini-3.8-flash\",type=\"{kind}\"}}");
        assert_eq!(service.metric(&series).await, sum as f64, "{series}");
    }
}

#[tokio::test]
async fn it_measures_queue_wait_and_response_time() {
    let service = Service::with(Options::default(), |config| config.concurrency_limit = 1).await;
    // The simulator's latency exceeds the expected value a little: its answers arrive up to 1.5 ms
    // early.
    let (first, second) = tokio::join!(service.chat(slow(65)), service.chat(slow(65)));
    assert!(first.status.is_success() && second.status.is_success());
    let waited = service.metric("gemini_gateway_queue_wait_seconds_sum").await;
    assert!(waited >= 0.05, "the second waits for the first, not {waited} s");
    let series = "gemini_gateway_upstream_latency_seconds_sum{kind=\"chat\"}";
    let took = service.metric(series).await;
    assert!(took >= 0.12, "each took its 60 ms, not {took} s");
}

/// Names invented by callers are not used as labels, so that callers cannot create series without
/// bound.
#[tokio::test]
async fn it_shows_no_name_invented_by_a_caller_and_no_secret() {
    let service = Service::start().await;
    for n in 0..20 {
        let body = json!({"prompt": "q", "model": format!("made-up-{n}")});
        assert_eq!(answer(service.post("/chat", &body)).await.body["code"], "model_not_found");
        let body = json!({"prompt": "q", "external_semaphore_id": format!("made-up-{n}")});
        assert_eq!(answer(service.post("/chat", &body)).await.body["code"], "semaphore_not_found");
    }
    let secret = json!({
        "prompt": "the-secret-prompt",
        "credentials": {"gemini_api_key": "the-callers-secret-key"},
        "generation_config": {"stopSequences": ["the-secret-stop"]},
    });
    assert_eq!(answer(service.post("/chat", &secret)).await.status, 200);
    let bad_key = json!({"prompt": "q", "credentials": {"gemini_api_key": "invalid-secret-key"}});
    assert_eq!(answer(service.post("/chat", &bad_key)).await.body["code"], "invalid_api_key");

    let text = text(&service).await;
    for hidden in ["made-up", "secret", SERVER_KEY, ADMIN_KEY] {
        assert!(!text.contains(hidden), "{hidden} appears in\n{text}");
    }
    let refused =
        "gemini_gateway_calls_total{kind=\"chat\",model=\"other\",outcome=\"model_not_found\"}";
    assert_eq!(service.metric(refused).await, 20.0);
}

/// Keys come and go. Prometheus keeps the series of all of them.
#[tokio::test]
async fn however_many_keys_are_used_one_after_the_other_only_so_many_have_labels() {
    let service = Service::start().await;
    let mut payers = HashSet::new();
    for number in 0..80 {
        let credentials = json!({"gemini_api_key": format!("a-callers-own-key-{number}")});
        let chat = json!({"prompt": "q", "credentials": credentials});
        assert_eq!(answer(service.post("/chat", &chat)).await.status, 200);
        if number % 40 == 39 {
            service.gateway.history.sample().await;
            let text = text(&service).await;
            let labels = text.split("payer=\"").skip(1);
            payers.extend(labels.filter_map(|rest| Some(rest.split_once('"')?.0.to_owned())));
            check(&text);
        }
    }
    assert_eq!(payers.len(), 64, "{payers:?}");
}

#[tokio::test]
async fn prometheus_can_parse_it() {
    let service = Service::start().await;
    check(&text(&service).await);
    service.register("a", 1).await;
    service.register("b.c:d-e_f", 1).await;
    service.chat("fine").await;
    service.chat("[[simulate:status=400]]").await;
    let tuned = json!({"prompt": "q", "model": "tunedModels/x"});
    answer(service.post("/chat", &tuned)).await;
    check(&text(&service).await);
}

#[tokio::test]
async fn a_scraper_that_asks_for_openmetrics_gets_it_with_exemplars() {
    let service = Service::start().await;
    service.chat("fine").await;
    let trace = Some(TraceId([0x0f; 16]));
    service.gateway.metrics.admitted(Duration::from_secs(3), trace);
    let prometheus = "application/openmetrics-text;version=1.0.0,text/plain;version=0.0.4;q=0.5";
    let request = service.get("/metrics").header("accept", prometheus);
    let response = request.send().await.unwrap();
    let content_type = "application/openmetrics-text; version=1.0.0; charset=utf-8";
    assert_eq!(response.headers()["content-type"], content_type);
    let shown = response.text().await.unwrap();
    assert!(shown.ends_with("# EOF\n"), "{shown}");
    let exemplar = format!("# {{trace_id=\"{}\"}} 3", "0f".repeat(16));
    let found: Vec<_> = shown.lines().filter(|line| line.contains(&exemplar)).collect();
    assert_eq!(found.len(), 1, "{shown}");
    assert!(found[0].starts_with("gemini_gateway_queue_wait_seconds_bucket{le=\""), "{found:?}");
    assert!(!text(&service).await.contains("trace_id"), "the other format has no exemplars");
}

#[tokio::test]
async fn it_shows_the_version_and_the_process() {
    let service = Service::start().await;
    let build = concat!("gemini_gateway_build_info{version=\"", env!("CARGO_PKG_VERSION"), "\"}");
    assert_eq!(service.metric(build).await, 1.0);
    let memory = service.metric("process_resident_memory_bytes").await;
    assert!((1e6..1e11).contains(&memory), "{memory}");
    let files = service.metric("process_open_fds").await;
    assert!(files > 3.0 && files < service.metric("process_max_fds").await, "{files}");
    let started = service.metric("process_start_time_seconds").await;
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap().as_secs_f64();
    assert!((now - 3600.0..now + 2.0).contains(&started), "{started}, and it is {now}");
    assert!(service.metric("process_cpu_seconds_total").await > 0.0);
}

#[tokio::test]
async fn it_shows_the_permits_that_leases_hold() {
    let service = Service::start().await;
    service.register("images", 5).await;
    let lease = json!({"holder": "a test", "permits": 3, "ttl_seconds": 60});
    let leased = answer(admin(service.post("/_admin/semaphores/images/leases", &lease))).await;
    assert!(leased.status.is_success(), "{leased:?}");
    let series = |name: &str| format!("gemini_gateway_semaphore_{name}{{semaphore=\"images\"}}");
    assert_eq!(service.metric(&series("leased")).await, 3.0);
    let path =
        format!("/_admin/semaphores/images/leases/{}", leased.body["lease_id"].as_str().unwrap());
    service.delete(&path).send().await.unwrap();
    assert_eq!(service.metric(&series("leased")).await, 0.0);
    assert_eq!(service.metric(&series("in_use")).await, 0.0);
}

/// One metric family, as far as it was read.
struct Family<'a> {
    name: &'a str,
    kind: &'a str,
}

/// Checks a text against the exposition format, version 0.0.4, and a little stricter: every family
/// is described, typed and contiguous, and every histogram is consistent.
fn check(text: &str) {
    assert!(text.ends_with('\n'), "the last line has no newline");
    let mut families = HashSet::new();
    let mut series = HashSet::new();
    let mut buckets: BTreeMap<String, Vec<(f64, f64)>> = BTreeMap::new();
    let mut counts: BTreeMap<String, f64> = BTreeMap::new();
    let mut described = None;
    let mut family: Option<Family<'_>> = None;
    for line in text.lines() {
        if let Some(help) = line.strip_prefix("# HELP ") {
            let (name, help) = help.split_once(' ').expect(line);
            assert!(is_name(name) && !help.is_empty(), "{line}");
            assert!(families.insert(name), "{name} appears twice");
            described = Some(name);
        } else if let Some(kind) = line.strip_prefix("# TYPE ") {
            let (name, kind) = kind.split_once(' ').expect(line);
            assert_eq!(described.take(), Some(name), "{line}");
            assert!(["counter", "gauge", "histogram", "untyped"].contains(&kind), "{line}");
            family = Some(Family { name, kind });
        } else {
            assert!(!line.starts_with('#') && described.is_none(), "{line}");
            let Family { name, kind } = family.as_ref().expect(line);
            let (sample, labels, value) = sample(line);
            assert!(series.insert((sample, labels.clone())), "{line} appears twice");
            let suffix = sample.strip_prefix(name).unwrap_or_else(|| panic!("{line} in {name}"));
            if *kind != "histogram" {
                assert_eq!(suffix, "", "{line}");
                assert!(value >= 0.0, "{line}");
                continue;
            }
            let rest: Vec<_> = labels.iter().filter(|(label, _)| label != "le").collect();
            let id = format!("{name}{rest:?}");
            match (suffix, labels.iter().find(|(label, _)| label == "le")) {
                ("_bucket", Some((_, bound))) => {
                    buckets.entry(id).or_default().push((number(bound), value));
                }
                ("_count", None) => _ = counts.insert(id, value),
                ("_sum", None) => {}
                _ => panic!("{line}"),
            }
        }
    }
    assert!(!counts.is_empty() && counts.len() == buckets.len());
    for (id, buckets) in buckets {
        assert!(buckets.is_sorted_by(|a, b| a.0 < b.0 && a.1 <= b.1), "{id}: {buckets:?}");
        assert_eq!(buckets.last(), Some(&(f64::INFINITY, counts[&id])), "{id}");
    }
}

type Labels = Vec<(String, String)>;

/// Parses `name{label="value",…} number`.
fn sample(line: &str) -> (&str, Labels, f64) {
    let end = line.find(['{', ' ']).expect(line);
    let (name, mut rest) = line.split_at(end);
    assert!(is_name(name), "{line}");
    let mut labels = Labels::new();
    if let Some(inside) = rest.strip_prefix('{') {
        rest = inside;
        loop {
            let (label, value) = rest.split_once("=\"").expect(line);
            assert!(is_name(label) && !label.contains(':'), "{line}");
            let (value, after) = quoted(value).expect(line);
            labels.push((label.to_owned(), value));
            match after.strip_prefix(',') {
                Some(more) => rest = more,
                None => {
                    rest = after.strip_prefix('}').expect(line);
                    break;
                }
            }
        }
    }
    (name, labels, number(rest.strip_prefix(' ').expect(line)))
}

/// Parses up to the closing quotation mark. Returns the string and the rest.
fn quoted(text: &str) -> Option<(String, &str)> {
    let mut value = String::new();
    let mut characters = text.char_indices();
    while let Some((at, character)) = characters.next() {
        match character {
            '"' => return Some((value, &text[at + 1..])),
            '\\' => value.push(match characters.next()?.1 {
                'n' => '\n',
                escaped @ ('\\' | '"') => escaped,
                _ => return None,
            }),
            plain => value.push(plain),
        }
    }
    None
}

fn number(text: &str) -> f64 {
    match text {
        "+Inf" => f64::INFINITY,
        text => {
            let digits = text.bytes().all(|byte| byte.is_ascii_digit() || b"+-.e".contains(&byte));
            assert!(digits, "{text} is not a number");
            text.parse().unwrap_or_else(|_| panic!("{text} is not a number"))
        }
    }
}

fn is_name(name: &str) -> bool {
    let starts = |c: char| c.is_ascii_alphabetic() || c == '_' || c == ':';
    name.starts_with(starts) && name.chars().all(|c| starts(c) || c.is_ascii_digit())
}
