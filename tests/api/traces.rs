//! Traces, as a real receiver of OTLP gets them.

mod receiver;

use std::time::Duration;

use futures_util::future::join_all;
use gemini_concurrent_generation::traces::{SpanQueue, TraceSampler};
use http::{HeaderName, HeaderValue};
use reqwest::{Method, StatusCode};
use serde_json::{Value, json};

use crate::process::Start;
use crate::proxies::Certificates;
use crate::support::{
    ADMIN_KEY, SERVER_KEY, Service, admin, answer, closed_port, contents, slow, until,
};
use receiver::{CLIENT, INTERNAL, Receiver, SERVER, Span, Traced};

const CHAT: &str = "POST /chat";
const ATTEMPT: &str = "generate_content gemini-3.5-flash-lite";
const PARENT: &str = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";

fn names(spans: &[Span]) -> Vec<&str> {
    spans.iter().map(|span| &*span.name).collect()
}

#[tokio::test]
async fn a_chat_with_a_retry_is_a_trace_of_its_waits_and_its_attempts() {
    let receiver = Receiver::start().await;
    let service = receiver.service().await;
    let prompt = "Hello [[simulate:status=503,fail_times=1]]";
    let chat = service.post("/chat", &json!({"prompt": prompt})).header("user-agent", "tests/1");
    let chat = answer(chat).await;
    assert_eq!(chat.status, StatusCode::OK);
    let [root] = &*receiver.until(CHAT, 1).await else { unreachable!() };
    let children = receiver.children(root);
    assert_eq!(names(&children), ["queue", ATTEMPT, "backoff", "queue", ATTEMPT]);

    assert_eq!((root.kind, &*root.parent, root.failed), (SERVER, "", false));
    assert_eq!(root.attributes["http.request.method"], "POST");
    assert_eq!(root.attributes["http.route"], "/chat");
    assert_eq!(root.attributes["url.path"], "/chat");
    assert_eq!(root.attributes["http.response.status_code"], 200);
    assert_eq!(root.attributes["user_agent.original"], "tests/1");
    assert_eq!(
        root.attributes["gemini_gateway.request_id"],
        chat.headers["x-request-id"].to_str().unwrap()
    );
    assert_eq!(root.resource["service.name"], "tested");
    assert_eq!(root.resource["telemetry.sdk.language"], "rust");

    let [queue, failed, backoff, _, succeeded] = &*children else { unreachable!() };
    assert_eq!((queue.kind, backoff.kind, queue.failed), (INTERNAL, INTERNAL, false));
    assert_eq!(queue.attributes["gemini_gateway.kind"], "chat");
    assert_eq!((failed.kind, failed.failed), (CLIENT, true));
    assert_eq!(failed.attributes["error.type"], "upstream_unavailable");
    assert_eq!(failed.attributes["http.response.status_code"], 503);
    assert!(!failed.attributes.contains_key("http.request.resend_count"));

    let base: http::Uri = service.gateway.config.base_url.parse().unwrap();
    let usage = &chat.body["usage"];
    assert_eq!((succeeded.kind, succeeded.failed), (CLIENT, false));
    for (name, value) in [
        ("gen_ai.operation.name", json!("generate_content")),
        ("gen_ai.provider.name", json!("gcp.gemini")),
        ("gen_ai.request.model", json!("gemini-3.5-flash-lite")),
        ("gen_ai.response.model", chat.body["model_version"].clone()),
        ("gen_ai.response.finish_reasons", json!(["stop"])),
        ("gen_ai.usage.input_tokens", usage["prompt_tokens"].clone()),
        ("gen_ai.usage.output_tokens", usage["output_tokens"].clone()),
        ("gemini_gateway.cost_usd", usage["cost_usd"].clone()),
        ("gemini_gateway.outcome", json!("success")),
        ("gemini_gateway.service_tier", json!("standard")),
        ("http.request.resend_count", json!(1)),
        ("http.response.status_code", json!(200)),
        ("server.address", json!("127.0.0.1")),
        ("server.port", json!(base.port_u16())),
    ] {
        assert_eq!(succeeded.attributes.get(name), Some(&value), "{name}");
    }
}

#[tokio::test]
async fn a_wait_names_the_limit_and_a_refusal_its_code() {
    let receiver = Receiver::start().await;
    let service = receiver
        .service_with(|config| {
            (config.concurrency_limit, config.max_queued_requests) = (1, 1);
        })
        .await;
    let chat = |ms| service.chat(slow(ms));
    let (first, second, third) = tokio::join!(
        chat(300),
        async {
            service.until("the first runs", |limiter| limiter.in_flight == 1).await;
            chat(0).await
        },
        async {
            service.until("the second waits", |limiter| limiter.waiting == 1).await;
            chat(0).await
        }
    );
    assert_eq!([first.status, second.status], [StatusCode::OK; 2]);
    assert_eq!(third.body["code"], "queue_full");
    let queues = receiver.until("queue", 3).await;
    let held: Vec<_> =
        queues.iter().filter_map(|wait| wait.attributes.get("gemini_gateway.held_by")).collect();
    assert_eq!(held, ["concurrency_limit"]);
    let refused = queues.iter().find(|wait| wait.failed).expect("a refusal");
    assert_eq!(refused.attributes["error.type"], "queue_full");
    let requests = receiver.until(CHAT, 3).await;
    let failed = requests.iter().find(|request| request.failed).expect("a failed request");
    assert_eq!(failed.attributes["error.type"], "503");
    assert_eq!(names(&receiver.children(failed)), ["queue"]);
}

#[tokio::test]
async fn the_span_of_a_stream_ends_with_its_last_byte() {
    let receiver = Receiver::start().await;
    let service = receiver.service().await;
    let body = json!({"prompt": "[[simulate:chunks=3,bytes=100]]", "stream": true});
    let response = service.post("/chat", &body).send().await.unwrap();
    assert!(response.text().await.unwrap().contains("\"success\":true"));
    let [root] = &*receiver.until(CHAT, 1).await else { unreachable!() };
    let children = receiver.children(root);
    assert_eq!(names(&children), ["queue", ATTEMPT]);
    let attempt = &children[1].attributes;
    assert_eq!(attempt["gen_ai.request.stream"], true);
    assert!(attempt["gen_ai.response.time_to_first_chunk"].as_f64().unwrap() > 0.0);
    assert!(attempt["gen_ai.usage.output_tokens"].as_i64().unwrap() > 0);
    assert_eq!(attempt["gen_ai.response.finish_reasons"], json!(["stop"]));
}

#[tokio::test]
async fn a_client_that_hangs_up_is_no_error() {
    let receiver = Receiver::start().await;
    let service = receiver.service().await;
    let body = json!({"prompt": "[[simulate:chunks=3,stall_after=1]]", "stream": true});
    let mut stream = service.post("/chat", &body).send().await.unwrap();
    stream.chunk().await.unwrap().expect("the first piece");
    drop(stream);
    service.until_idle().await;
    let whole = tokio::spawn(service.post("/chat", &json!({"prompt": slow(60_000)})).send());
    service.until("it runs", |limiter| limiter.in_flight == 1).await;
    whole.abort();
    let roots = receiver.until(CHAT, 2).await;
    let attempts = receiver.until(ATTEMPT, 2).await;
    for attempt in &attempts {
        assert!(!attempt.failed && !attempt.attributes.contains_key("error.type"), "{attempt:?}");
        assert_eq!(attempt.attributes["gemini_gateway.outcome"], "cancelled");
    }
    for root in &roots {
        assert_eq!((root.failed, &*root.events), (false, &["the client hung up".to_owned()][..]));
    }
}

#[tokio::test]
async fn relayed_calls_are_named_by_what_they_ask_for() {
    let receiver = Receiver::start().await;
    let service = receiver.service().await;
    const MODEL: &str = "gemini-3.5-flash-lite";
    let native = format!("/v1beta/models/{MODEL}:generateContent");
    let stream =
        format!("/v1beta/models/{MODEL}:streamGenerateContent?alt=sse&key=the-callers-key");
    let embed = "/v1beta/models/gemini-embedding-2:embedContent";
    let openai = "/v1/chat/completions";
    let message = json!({"model": MODEL, "messages": [{"role": "user", "content": "Hello"}]});
    let text = json!({"content": {"parts": [{"text": "Hello"}]}});
    for (path, body) in [
        (&*native, contents("Hello")),
        (&stream, contents("Hello")),
        (embed, text),
        (openai, message),
    ] {
        let response = service.post(path, &body).send().await.unwrap();
        assert_eq!(response.status(), StatusCode::OK, "{path}");
        response.bytes().await.unwrap();
    }
    let mut roots = Vec::new();
    for name in [
        "POST /v1beta/models/{model}:generateContent",
        "POST /v1beta/models/{model}:streamGenerateContent",
        "POST /v1beta/{*path}",
        "POST /v1/chat/completions",
    ] {
        roots.extend(receiver.until(name, 1).await);
    }
    let of = |root: &Span| receiver.children(root).pop().expect("an attempt");
    let attempts: Vec<_> = roots.iter().map(of).collect();
    assert_eq!(
        names(&attempts),
        [ATTEMPT, ATTEMPT, "embeddings gemini-embedding-2", &format!("chat {MODEL}")]
    );
    assert_eq!(roots[0].attributes["url.path"], native);
    for (attempt, kind) in attempts.iter().zip([
        "generate_content",
        "stream_generate_content",
        "embed_content",
        "openai_chat",
    ]) {
        assert_eq!(attempt.attributes["gemini_gateway.kind"], kind);
        assert_eq!(attempt.attributes["gen_ai.provider.name"], "gcp.gemini");
    }
    let [plain, streamed, _, compatible] = &*attempts else { unreachable!() };
    assert!(!plain.attributes.contains_key("gen_ai.request.stream"));
    assert_eq!(streamed.attributes["gen_ai.request.stream"], true);
    for attempt in [plain, streamed, compatible] {
        assert!(attempt.attributes["gen_ai.usage.input_tokens"].as_i64().unwrap() > 0);
    }
    assert!(!receiver.text().contains("the-callers-key"));
}

#[tokio::test]
async fn each_item_of_a_batch_has_a_span_with_its_calls() {
    let receiver = Receiver::start().await;
    let service = receiver.service().await;
    let requests: Vec<_> =
        ["a", "[[simulate:blocked=SAFETY]]", "c"].map(|prompt| json!({"prompt": prompt})).into();
    let batch = answer(service.post("/batch/chat", &json!({"requests": requests}))).await;
    assert_eq!(batch.body["successful_requests"], 2);
    let [root] = &*receiver.until("POST /batch/chat", 1).await else { unreachable!() };
    let items = receiver.until("batch item", 3).await;
    assert_eq!(receiver.children(root).len(), 3);
    for item in &items {
        assert_eq!(item.parent, root.id);
        assert_eq!(names(&receiver.children(item)), ["queue", ATTEMPT]);
        let fails = item.attributes["gemini_gateway.item.index"] == 1;
        assert_eq!(item.failed, fails);
        assert_eq!(item.attributes.get("error.type"), fails.then_some(&json!("content_blocked")));
    }
}

#[tokio::test]
async fn items_of_a_job_are_traces_that_are_linked_to_its_run() {
    let receiver = Receiver::start().await;
    let process = Start::simulated()
        .set("ADMIN_API_KEY", ADMIN_KEY)
        .set("OTEL_EXPORTER_OTLP_ENDPOINT", &receiver.url)
        .set("OTEL_BSP_SCHEDULE_DELAY", "10")
        .set("OTEL_SERVICE_NAME", "a-job")
        .run()
        .await;
    let lines =
        "{\"prompt\":\"a\"}\n{\"prompt\":\"b\"}\n{\"prompt\":\"[[simulate:blocked=SAFETY]]\"}\n";
    let job = process.request(Method::POST, "/jobs?kind=chat").body(lines);
    let job = answer(admin(job.header("content-type", "application/x-ndjson"))).await;
    assert_eq!(job.status, StatusCode::ACCEPTED, "{job:?}");
    let [run] = &*receiver.until("job", 1).await else { unreachable!() };
    assert_eq!((run.kind, &*run.parent, run.failed), (INTERNAL, "", false));
    for (name, value) in [
        ("gemini_gateway.job.id", job.body["job_id"].clone()),
        ("gemini_gateway.job.kind", json!("chat")),
        ("gemini_gateway.job.items", json!(3)),
        ("gemini_gateway.job.state", json!("completed")),
        ("gemini_gateway.job.succeeded", json!(2)),
        ("gemini_gateway.job.failed", json!(1)),
    ] {
        assert_eq!(run.attributes.get(name), Some(&value), "{name}");
    }
    assert_eq!(run.resource["service.name"], "a-job");
    for (index, item) in (0..).zip(by_index(receiver.until("job item", 3).await)) {
        assert_eq!(item.attributes["gemini_gateway.item.index"], index);
        assert_eq!(item.attributes["gemini_gateway.job.id"], job.body["job_id"]);
        assert_eq!((&*item.parent, &*item.links), ("", &[run.id.clone()][..]));
        assert_ne!(item.trace, run.trace);
        assert_eq!(names(&receiver.children(&item)), ["queue", ATTEMPT]);
        assert_eq!(item.failed, index == 2);
    }
}

fn by_index(mut items: Vec<Span>) -> Vec<Span> {
    items.sort_by_key(|item| item.attributes["gemini_gateway.item.index"].as_i64());
    items
}

#[tokio::test]
async fn a_callers_trace_goes_on_at_gemini_below_the_attempt() {
    let (receiver, upstream) = (Receiver::start().await, Traced::start().await);
    let service = receiver.service_with(|config| config.base_url = upstream.base_url.clone()).await;
    let chat = || service.post("/chat", &json!({"prompt": "Hello"}));
    let native = "/v1beta/models/gemini-3.5-flash-lite:generateContent";
    let claimed = |request: reqwest::RequestBuilder| {
        request.header("traceparent", PARENT).header("tracestate", "vendor=1")
    };
    answer(claimed(chat())).await;
    answer(claimed(service.post(native, &contents("Hello")))).await;
    answer(claimed(admin(service.get("/v1beta/models")))).await;
    answer(chat().header("traceparent", "00-nonsense").header("tracestate", "vendor=1")).await;
    let attempts = receiver.until(ATTEMPT, 3).await;
    let listed = receiver.until("GET /v1beta/{*path}", 1).await;
    let context = |span: &Span| format!("00-{}-{}-01", span.trace, span.id);
    let state = || Some("vendor=1".to_owned());
    assert_eq!(
        upstream.contexts(),
        [
            [Some(context(&attempts[0])), state()],
            [Some(context(&attempts[1])), state()],
            [Some(context(&listed[0])), state()],
            [Some(context(&attempts[2])), None],
        ]
    );
    for span in [&attempts[0], &attempts[1], &listed[0]] {
        assert_eq!(span.trace, PARENT[3..35]);
    }
    assert_eq!(listed[0].parent, PARENT[36..52]);
    assert_ne!(attempts[2].trace, PARENT[3..35]);
}

#[tokio::test]
async fn without_traces_gemini_gets_no_header_that_the_client_did_not_send() {
    let upstream = Traced::start().await;
    let service = Service::over(&upstream.base_url).await;
    let chat = || service.post("/chat", &json!({"prompt": "Hello"}));
    answer(chat().header("traceparent", PARENT)).await;
    let native = "/v1beta/models/gemini-3.5-flash-lite:generateContent";
    answer(service.post(native, &contents("Hello")).header("traceparent", PARENT)).await;
    answer(service.post(native, &contents("Hello"))).await;
    let relayed = [Some(PARENT.to_owned()), None];
    assert_eq!(upstream.contexts(), [[None, None], relayed, [None, None]]);
}

#[tokio::test]
async fn without_propagation_no_context_is_taken_or_sent() {
    let (receiver, upstream) = (Receiver::start().await, Traced::start().await);
    let service = receiver
        .service_with(|config| {
            config.base_url = upstream.base_url.clone();
            config.traces.as_mut().unwrap().propagates = false;
        })
        .await;
    answer(service.post("/chat", &json!({"prompt": "Hello"})).header("traceparent", PARENT)).await;
    let [root] = &*receiver.until(CHAT, 1).await else { unreachable!() };
    assert_eq!(root.parent, "");
    assert_ne!(root.trace, PARENT[3..35]);
    assert_eq!(upstream.contexts(), [[None, None]]);
}

#[tokio::test]
async fn a_sampler_decides_for_whole_traces_and_the_caller_before_it() {
    let (receiver, upstream) = (Receiver::start().await, Traced::start().await);
    let service = receiver
        .service_with(|config| {
            config.base_url = upstream.base_url.clone();
            let sampler = TraceSampler { ratio: 0.0, follows_caller: true };
            config.traces.as_mut().unwrap().sampler = sampler;
        })
        .await;
    let chat = || service.post("/chat", &json!({"prompt": "Hello"}));
    answer(chat()).await;
    answer(chat().header("traceparent", PARENT)).await;
    let [root] = &*receiver.until(CHAT, 1).await else { unreachable!() };
    assert_eq!(root.trace, PARENT[3..35], "the caller's decision holds");
    assert_eq!(names(&receiver.children(root)), ["queue", ATTEMPT]);
    let flags: Vec<_> = upstream
        .contexts()
        .iter()
        .map(|[parent, _]| parent.as_ref().unwrap()[53..].to_owned())
        .collect();
    assert_eq!(flags, ["00", "01"], "Gemini is told of the decision");
    assert_eq!(receiver.spans().len(), 3);
}

#[tokio::test]
async fn half_of_the_traces_are_taken_if_the_ratio_says_so() {
    let receiver = Receiver::start().await;
    let service = receiver
        .service_with(|config| {
            let sampler = TraceSampler { ratio: 0.5, follows_caller: false };
            config.traces.as_mut().unwrap().sampler = sampler;
        })
        .await;
    join_all((0..200).map(|_| service.chat("Hello"))).await;
    service.gateway.traces.stop().await;
    let roots = receiver.spans().into_iter().filter(|span| span.name == CHAT).count();
    // Beyond six standard deviations.
    assert!((57..=143).contains(&roots), "{roots}");
}

#[tokio::test]
async fn nothing_of_a_prompt_an_answer_or_a_key_is_in_a_trace() {
    const OWN: &str = "AIzaSyD3Nq8mVxT0rKc2LwYb5HfJ7uEpG9aZsQ1";
    let receiver = Receiver::start().await;
    let service = receiver.service().await;
    let body = json!({"prompt": "the-prompt [[simulate:text=the-answer]]", "system_prompt": "the-instruction"});
    answer(service.post("/chat", &body)).await;
    answer(service.post("/chat", &body).header("x-goog-api-key", OWN)).await;
    answer(admin(service.post("/chat", &body))).await;
    let refused = json!({"prompt": "the-prompt [[simulate:no_such_marker]]"});
    assert_eq!(answer(service.post("/chat", &refused)).await.status, StatusCode::BAD_REQUEST);
    let native = format!("/v1beta/models/gemini-3.5-flash-lite:generateContent?key={OWN}");
    answer(service.post(&native, &contents("the-prompt"))).await;
    answer(service.get(&format!("/v1beta/models/{OWN}"))).await;
    // Someone mistakes the model for the key.
    answer(service.post(&format!("/v1beta/models/{OWN}:generateContent"), &contents("x"))).await;
    answer(service.post("/chat", &json!({"prompt": "x", "model": OWN}))).await;
    answer(service.post("/chat", &json!({"prompt": "x", "model": SERVER_KEY}))).await;
    answer(service.get(&format!("/v1beta/models/{SERVER_KEY}"))).await;
    let state = format!("a={ADMIN_KEY}");
    let chat = service.post("/chat", &body).header("traceparent", PARENT);
    answer(chat.header("tracestate", state).header("user-agent", SERVER_KEY)).await;
    service.gateway.traces.stop().await;
    assert!(receiver.spans().len() >= 20, "{}", receiver.spans().len());
    let sent = receiver.text();
    for secret in ["the-prompt", "the-instruction", "the-answer", OWN, SERVER_KEY, ADMIN_KEY] {
        assert!(!sent.contains(secret), "{secret}");
    }
    assert!(sent.contains("/v1beta/models/***"), "paths are kept without their keys");
}

#[tokio::test]
async fn prompts_and_answers_are_in_traces_if_a_setting_says_so_without_the_servers_key() {
    let receiver = Receiver::start().await;
    let service = receiver
        .service_with(|config| config.traces.as_mut().unwrap().captures_content = true)
        .await;
    let prompt = format!("Hello, {SERVER_KEY} [[simulate:text=Good day]]");
    let body = json!({"prompt": prompt, "system_prompt": "Be kind."});
    answer(service.post("/chat", &body)).await;
    let mut streamed = body.clone();
    streamed["stream"] = json!(true);
    service.post("/chat", &streamed).send().await.unwrap().bytes().await.unwrap();
    let native = "/v1beta/models/gemini-3.5-flash-lite:generateContent";
    answer(service.post(native, &contents("a relayed prompt"))).await;
    service.gateway.traces.stop().await;
    let attempts = receiver.until(ATTEMPT, 3).await;
    for attempt in &attempts[..2] {
        let messages = |name: &str| -> Value {
            serde_json::from_str(attempt.attributes[name].as_str().unwrap()).unwrap()
        };
        let part = |text: &str| json!([{"type": "text", "content": text}]);
        assert_eq!(messages("gen_ai.system_instructions"), part("Be kind."));
        let asked = messages("gen_ai.input.messages")[0]["parts"][0]["content"].clone();
        assert!(asked.as_str().unwrap().starts_with("Hello, *************"), "{asked}");
        let expected =
            json!([{"role": "assistant", "parts": part("Good day"), "finish_reason": "stop"}]);
        assert_eq!(messages("gen_ai.output.messages"), expected);
    }
    let sent = receiver.text();
    assert!(!sent.contains(SERVER_KEY) && !sent.contains("a relayed prompt"));
}

#[tokio::test]
async fn exports_carry_their_headers_and_are_compressed_on_request() {
    let receiver = Receiver::start().await;
    let service = receiver
        .service_with(|config| {
            let collector = &mut config.traces.as_mut().unwrap().collector;
            let token = HeaderValue::from_static("Bearer secret-token");
            collector.headers = vec![(HeaderName::from_static("authorization"), token)];
            collector.compresses = true;
        })
        .await;
    service.chat("Hello").await;
    receiver.until(CHAT, 1).await;
    for headers in receiver.headers() {
        assert_eq!(headers["authorization"], "Bearer secret-token");
        assert_eq!(headers["content-encoding"], "gzip");
        assert_eq!(headers["content-type"], "application/x-protobuf");
    }
    let settings = service.gateway.config.traces.as_ref().unwrap();
    assert!(!format!("{settings:?}").contains("secret-token"));
}

#[tokio::test]
async fn a_receiver_with_a_certificate_of_a_private_authority_is_trusted_if_a_variable_says_so() {
    let (receiver, certificates) = (Receiver::start().await, Certificates::new());
    let address = receiver.url.strip_prefix("http://").unwrap().parse().unwrap();
    let port = certificates.terminate_tls(address).await.port();
    let start = || {
        Start::simulated()
            .set("OTEL_EXPORTER_OTLP_ENDPOINT", &format!("https://localhost:{port}"))
            .set("OTEL_BSP_SCHEDULE_DELAY", "10")
    };
    let distrusting = start().run().await;
    answer(distrusting.post("/chat", &json!({"prompt": "Hello"}))).await;
    distrusting.until_logged("its certificate is not trusted on this machine").await;
    let authority = certificates.path("ca.pem");
    let trusting = start().set("OTEL_EXPORTER_OTLP_CERTIFICATE", &authority).run().await;
    answer(trusting.post("/chat", &json!({"prompt": "Hello"}))).await;
    receiver.until(CHAT, 1).await;
}

#[tokio::test]
async fn health_checks_metrics_and_pages_are_not_traced() {
    let receiver = Receiver::start().await;
    let service = receiver.service().await;
    answer(service.get("/")).await;
    for page in [
        "/dashboard",
        "/dashboard/jobs/live",
        "/dashboard/playground",
        "/dashboard/assets/dashboard.css",
    ] {
        service.get(page).send().await.unwrap();
    }
    service.metric("gemini_gateway_limit").await;
    service.chat("Hello").await;
    receiver.until(CHAT, 1).await;
    service.gateway.traces.stop().await;
    assert_eq!(receiver.spans().len(), 3);
}

/// The receiver is not there, or refuses everything.
#[tokio::test]
async fn a_dead_or_refusing_receiver_harms_no_request_and_is_logged_once() {
    let refusing = Receiver::start().await;
    refusing.answer_with(StatusCode::UNAUTHORIZED);
    for (url, reason) in [
        (format!("http://127.0.0.1:{}", closed_port()), "the connection was refused"),
        (refusing.url.clone(), "401 Unauthorized"),
    ] {
        let process = Start::simulated()
            .set("OTEL_EXPORTER_OTLP_ENDPOINT", &url)
            .set("OTEL_EXPORTER_OTLP_HEADERS", "authorization=Bearer%20secret-token")
            .set("OTEL_BSP_SCHEDULE_DELAY", "1")
            .run()
            .await;
        for _ in 0..5 {
            let chat = answer(process.post("/chat", &json!({"prompt": "Hello"}))).await;
            assert_eq!(chat.status, StatusCode::OK);
            let failed = |text: &str| text.contains("spans_total{outcome=\"export_failed\"}");
            until_metrics(&process, failed).await;
        }
        process.terminate().await;
        let (code, log) = process.end().await;
        assert_eq!(code, Some(0), "{log}");
        assert_eq!(log.matches("spans cannot be exported").count(), 1, "{log}");
        assert!(log.contains(reason) && !log.contains("secret-token"), "{log}");
    }
}

async fn until_metrics(process: &crate::process::Process, is: impl Fn(&str) -> bool) {
    let wait = async {
        loop {
            let text = process.get("/metrics").send().await.unwrap().text().await.unwrap();
            if is(&text) {
                return;
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(crate::support::TEST_TIMEOUT, wait).await.expect("in time");
}

/// The receiver takes a connection and never answers.
#[tokio::test]
async fn a_slow_receiver_delays_no_request_and_spans_beyond_the_queue_are_counted() {
    let receiver = Receiver::with(0).await;
    let service = receiver
        .service_with(|config| {
            let queue = SpanQueue { length: 6, batch: 3, delay: Duration::from_millis(1) };
            config.traces.as_mut().unwrap().queue = queue;
        })
        .await;
    service.chat("Hello").await;
    until("the receiver is asked", || receiver.requests() == 1).await;
    for _ in 0..4 {
        assert_eq!(service.chat("Hello").await.status, StatusCode::OK);
    }
    let dropped = "gemini_gateway_spans_total{outcome=\"queue_full\"}";
    let lost = service.metric(dropped).await;
    assert!((4.0..=9.0).contains(&lost), "15 spans, of which 3 are sent and 6 wait: {lost}");
    receiver.answer_more(100);
    let all = |exported: f64| exported + lost == 15.0;
    let exported = "gemini_gateway_spans_total{outcome=\"exported\"}";
    while !all(service.metric(exported).await) {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

#[tokio::test]
async fn the_last_spans_are_exported_on_sigterm() {
    let receiver = Receiver::start().await;
    let process = Start::simulated()
        .set("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", &format!("{}/v1/traces", receiver.url))
        .set("OTEL_BSP_SCHEDULE_DELAY", "3600000")
        .run()
        .await;
    let chat = process.post("/chat", &json!({"prompt": slow(300)})).send();
    let (chat, ()) = tokio::join!(chat, async {
        process.until_in_flight(1).await;
        process.terminate().await;
    });
    assert_eq!(chat.unwrap().status(), StatusCode::OK);
    let (code, log) = process.end().await;
    assert_eq!(code, Some(0), "{log}");
    let [root] = &*receiver.until(CHAT, 1).await else { unreachable!() };
    assert_eq!(names(&receiver.children(root)), ["queue", ATTEMPT]);
}

/// The last spans have three seconds.
#[tokio::test]
async fn a_receiver_that_never_answers_does_not_keep_the_process() {
    let receiver = Receiver::with(0).await;
    let process = Start::simulated()
        .set("OTEL_EXPORTER_OTLP_ENDPOINT", &receiver.url)
        .set("OTEL_EXPORTER_OTLP_TIMEOUT", "3600000")
        .set("OTEL_BSP_EXPORT_TIMEOUT", "3600000")
        .run()
        .await;
    answer(process.post("/chat", &json!({"prompt": "Hello"}))).await;
    process.terminate().await;
    let (code, log) = process.end().await;
    assert_eq!(code, Some(0), "{log}");
    assert!(log.contains("the last spans could not be exported"), "{log}");
}

#[tokio::test]
async fn metrics_have_the_traces_of_calls_as_exemplars() {
    let receiver = Receiver::start().await;
    let service = receiver.service().await;
    service.chat("Hello").await;
    let [root] = &*receiver.until(CHAT, 1).await else { unreachable!() };
    let metrics = service.get("/metrics").header("accept", "application/openmetrics-text");
    let metrics = metrics.send().await.unwrap().text().await.unwrap();
    for name in ["queue_wait_seconds_bucket", "upstream_latency_seconds_bucket"] {
        let exemplar = format!("# {{trace_id=\"{}\"}}", root.trace);
        let is_marked = |line: &str| line.contains(name) && line.contains(&exemplar);
        assert!(metrics.lines().any(is_marked), "{name}");
    }
}

#[tokio::test]
async fn log_lines_name_the_trace() {
    let receiver = Receiver::start().await;
    let process = Start::simulated()
        .set("OTEL_EXPORTER_OTLP_ENDPOINT", &receiver.url)
        .set("OTEL_BSP_SCHEDULE_DELAY", "10")
        .set("LOG_FORMAT", "json")
        .run()
        .await;
    answer(process.post("/chat", &json!({"prompt": "Hello"}))).await;
    let [root] = &*receiver.until(CHAT, 1).await else { unreachable!() };
    process.until_logged(&root.trace).await;
}

#[tokio::test]
async fn an_invalid_variable_fails_the_start_only_if_traces_are_on() {
    let protocol = |start: Start| start.set("OTEL_EXPORTER_OTLP_PROTOCOL", "grpc");
    let on = Start::simulated().set("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:4317");
    let output = protocol(on).output().await;
    let log = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(1), "{log}");
    let expected =
        "gemini-concurrent-generation: OTEL_EXPORTER_OTLP_PROTOCOL: expected http/protobuf";
    assert!(log.starts_with(expected) && log.lines().count() == 1, "{log}");
    protocol(Start::simulated()).run().await.health().await;
}
