//! Live sessions: relayed over WebSockets, with a slot for as long as they last.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use futures_util::{SinkExt, StreamExt};
use gemini_concurrent_generation::config::Config;
use gemini_concurrent_generation::dispatch::{CallKind, CallRequest, TierChoice};
use gemini_concurrent_generation::gemini::{ApiKey, Forward, InputFeatures, LiveApi, Model};
use gemini_concurrent_generation::simulator::Options;
use reqwest::StatusCode;
use serde_json::{Value, json};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Notify;
use tokio::task::AbortHandle;
use tokio::time::timeout;
use tokio_tungstenite::tungstenite::client::IntoClientRequest;
use tokio_tungstenite::tungstenite::handshake::server::{Request, Response};
use tokio_tungstenite::tungstenite::protocol::CloseFrame;
use tokio_tungstenite::tungstenite::{Error, Message};
use tokio_tungstenite::{WebSocketStream, accept_hdr_async, client_async};

use crate::limits::plan;
use crate::process::Start;
use crate::support::{ADMIN_KEY, SERVER_KEY, Service, TEST_TIMEOUT, answer, until};

pub const BIDI: &str =
    "/ws/google.ai.generativelanguage.v1beta.GenerativeService.BidiGenerateContent";
const MODEL: &str = "models/gemini-3.8-live";
const ADMIN: (&str, &str) = ("x-goog-api-key", ADMIN_KEY);
const OWN: (&str, &str) = ("x-goog-api-key", "callers-own-key");

/// A client of a session.
pub struct Client(WebSocketStream<TcpStream>);

/// Opens a WebSocket, or says with which status and body it is refused.
pub async fn connect(
    address: std::net::SocketAddr,
    path: &str,
    headers: &[(&'static str, &str)],
) -> Result<Client, (StatusCode, Value)> {
    let mut request = format!("ws://{address}{path}").into_client_request().expect("a URL");
    for (name, value) in headers {
        request.headers_mut().insert(*name, value.parse().expect("a header"));
    }
    let stream = TcpStream::connect(address).await.expect("a connection");
    match client_async(request, stream).await {
        Ok((stream, _)) => Ok(Client(stream)),
        Err(Error::Http(response)) => {
            let body = response.body().clone().unwrap_or_default();
            Err((response.status(), serde_json::from_slice(&body).unwrap_or_default()))
        }
        Err(error) => panic!("{error}"),
    }
}

impl Client {
    async fn say(&mut self, message: &Value) {
        self.0.send(Message::text(message.to_string())).await.expect("an open socket");
    }

    pub async fn set_up(&mut self) {
        self.say(&json!({"setup": {"model": MODEL}})).await;
        assert_eq!(self.hear().await, json!({"setupComplete": {}}));
    }

    pub async fn ask(&mut self, text: &str) {
        let turns = json!([{"role": "user", "parts": [{"text": text}]}]);
        self.say(&json!({"clientContent": {"turns": turns, "turnComplete": true}})).await;
    }

    async fn next(&mut self) -> Message {
        loop {
            let next = timeout(TEST_TIMEOUT, self.0.next()).await.expect("a message");
            match next.expect("an open socket").expect("a message") {
                Message::Ping(_) | Message::Pong(_) => {}
                message => return message,
            }
        }
    }

    async fn hear(&mut self) -> Value {
        match self.next().await {
            Message::Text(text) => serde_json::from_str(&text).expect("JSON"),
            Message::Binary(bytes) => serde_json::from_slice(&bytes).expect("JSON"),
            other => panic!("a message, not {other:?}"),
        }
    }

    /// The text of a turn of the model.
    pub async fn turn(&mut self) -> String {
        let mut text = String::new();
        loop {
            let message = self.hear().await;
            let content = &message["serverContent"];
            text += content["modelTurn"]["parts"][0]["text"].as_str().unwrap_or_default();
            if content["turnComplete"] == true {
                return text;
            }
        }
    }

    /// The code and the reason that the session is closed with, whatever comes before.
    async fn closed(&mut self) -> (u16, String) {
        loop {
            match self.next().await {
                Message::Close(Some(CloseFrame { code, reason })) => {
                    return (code.into(), reason.to_string());
                }
                Message::Close(None) => return (1005, String::new()),
                _ => {}
            }
        }
    }

    async fn close(&mut self) {
        self.0.close(None).await.expect("an open socket");
        while let Some(Ok(_)) = self.0.next().await {}
    }
}

/// A session that Gemini has accepted.
async fn session(service: &Service) -> Client {
    let mut client = connect(service.address, BIDI, &[ADMIN]).await.expect("a session");
    client.set_up().await;
    client
}

async fn with(change: impl FnOnce(&mut Config)) -> Service {
    Service::with(Options::default(), change).await
}

/// Waits until the session in a service holds its slot.
async fn until_held(service: &Service) {
    service.until("a session holds a slot", |limiter| limiter.in_flight == 1).await;
}

#[tokio::test]
async fn a_session_is_relayed_and_its_tokens_are_counted() {
    let service = Service::start().await;
    let mut client = session(&service).await;
    for text in ["Hello", "Ciao."] {
        client.ask(text).await;
        assert_eq!(client.turn().await, format!("Simulated answer to: {text}"));
    }
    assert_eq!(service.gateway.limiter.occupancy().in_flight, 1);
    client.close().await;
    service.until_idle().await;
    let calls =
        "gemini_gateway_calls_total{kind=\"live\",model=\"gemini-3.8-live\",outcome=\"success\"}";
    assert_eq!(service.metric(calls).await, 1.0);
    for (kind, tokens) in [("prompt", 4.0), ("output", 14.0)] {
        let series =
            format!("gemini_gateway_tokens_total{{model=\"gemini-3.8-live\",type=\"{kind}\"}}");
        assert_eq!(service.metric(&series).await, tokens, "{kind}");
    }
}

#[tokio::test]
async fn a_live_interaction_is_relayed_and_its_tokens_are_counted() {
    let service = Service::start().await;
    for (version, turns) in [("v1beta", 2), ("v1", 1)] {
        let path = format!("/{version}/interactions/live");
        let mut client = connect(service.address, &path, &[ADMIN]).await.expect("a session");
        client.say(&json!({"event_type": "interaction.create", "model": "gemini-3.8-live"})).await;
        assert_eq!(client.hear().await["event_type"], "interaction.created");
        for _ in 0..turns {
            let content = json!([{"type": "text", "text": "Hello"}]);
            client.say(&json!({"event_type": "input", "content": content})).await;
            while client.hear().await["event_type"] != "interaction.status_update" {}
        }
        client.say(&json!({"event_type": "interaction.complete"})).await;
        let completed = client.hear().await;
        assert_eq!(completed["event_type"], "interaction.completed");
        assert_eq!(client.closed().await.0, 1000);
        service.until_idle().await;
    }
    let series = "gemini_gateway_tokens_total{model=\"gemini-3.8-live\",type=\"prompt\"}";
    assert_eq!(service.metric(series).await, 6.0);
}

/// The requests and the input tokens of the minute that the only account has used.
async fn used(service: &Service) -> [u64; 2] {
    let limits = service.get("/_admin/limits").header("Admin-API-Key", ADMIN_KEY);
    let limits = answer(limits).await.body;
    let used = |quota: &str| limits["limits"][0][quota]["used"].as_u64();
    let used = ["requests_per_minute", "input_tokens_per_minute"].map(used);
    used.map(|used| used.unwrap_or_else(|| panic!("{limits}")))
}

#[tokio::test]
async fn tokens_and_money_count_against_the_quotas_while_the_session_runs() {
    let service = with(|config| {
        config.quota_plan = plan("gemini-3.8-live:rpm=10,tpm=1000;*:spend=10", "");
    })
    .await;
    let spent = async || service.limits().await["spend"][0]["used_usd"].as_f64().expect("dollars");
    let mut client = session(&service).await;
    let estimate = spent().await;
    client.ask("Hello").await;
    client.turn().await;
    assert!(spent().await > estimate, "{estimate}");
    // The estimate of the first message, and what Gemini said of the turn.
    let limits = used(&service).await;
    let [1, estimate_and_turn] = limits else { panic!("{limits:?}") };
    assert!(estimate_and_turn > 2, "{limits:?}");
    client.close().await;
    service.until_idle().await;
    assert_eq!(used(&service).await, [1, 2], "what Gemini said counts in place of the estimate");
    let cost = "gemini_gateway_cost_usd_total{model=\"gemini-3.8-live\",tier=\"standard\"}";
    let cost = service.metric(cost).await;
    assert!(cost > 0.0 && (spent().await - cost).abs() < 1e-9, "{cost}");
}

#[tokio::test]
async fn a_session_holds_its_slot_and_frees_it_on_every_way_out() {
    let service = with(|config| {
        config.live_idle_timeout = Duration::from_millis(500);
        config.max_attempts = 1;
    })
    .await;
    // The client closes.
    let mut client = session(&service).await;
    until_held(&service).await;
    client.close().await;
    service.until_idle().await;
    // The client is gone.
    let client = session(&service).await;
    until_held(&service).await;
    drop(client);
    service.until_idle().await;
    // Gemini closes.
    let mut client = session(&service).await;
    client.ask("[[simulate:go_away]] Hello").await;
    assert_eq!(client.closed().await.0, 1000);
    service.until_idle().await;
    // Gemini refuses a turn.
    let mut client = session(&service).await;
    client.ask("[[simulate:status=500]] Hello").await;
    assert_eq!(client.closed().await.0, 1011);
    service.until_idle().await;
    // Gemini breaks the connection off.
    let mut client = session(&service).await;
    client.ask("[[simulate:close]] Hello").await;
    let (code, reason) = client.closed().await;
    assert_eq!((code, reason.starts_with("upstream_connection: ")), (1013, true), "{reason}");
    service.until_idle().await;
    // Nobody says anything.
    let mut client = session(&service).await;
    let (code, reason) = client.closed().await;
    assert_eq!((code, reason.contains("LIVE_IDLE_TIMEOUT_SECONDS")), (1008, true), "{reason}");
    service.until_idle().await;
    // What the client says is not JSON that opens a session.
    let mut client = connect(service.address, BIDI, &[ADMIN]).await.expect("a session");
    client.say(&json!({"clientContent": {}})).await;
    let (code, reason) = client.closed().await;
    assert_eq!((code, reason.starts_with("validation_error: ")), (1008, true), "{reason}");
    service.until_idle().await;
}

#[tokio::test]
async fn a_session_ends_after_the_longest_time_even_if_it_is_busy() {
    let service = with(|config| config.live_timeout = Duration::from_millis(500)).await;
    let mut client = session(&service).await;
    let (code, reason) = loop {
        client.ask("Hello").await;
        let message = client.next().await;
        if let Message::Close(Some(CloseFrame { code, reason })) = message {
            break (u16::from(code), reason.to_string());
        }
    };
    assert_eq!((code, reason.contains("LIVE_TIMEOUT_SECONDS")), (1013, true), "{reason}");
    service.until_idle().await;
}

#[tokio::test]
async fn a_session_waits_for_its_turn_and_leaves_the_queue_when_its_client_does() {
    let service = with(|config| config.concurrency_limit = 1).await;
    let mut first = session(&service).await;
    let mut second = connect(service.address, BIDI, &[ADMIN]).await.expect("a session");
    second.say(&json!({"setup": {"model": MODEL}})).await;
    let third = connect(service.address, BIDI, &[ADMIN]).await;
    let mut third = third.expect("a session");
    third.say(&json!({"setup": {"model": MODEL}})).await;
    service.until("both wait", |limiter| limiter.waiting == 2).await;
    drop(third);
    service.until("one waits", |limiter| limiter.waiting == 1).await;
    assert_eq!(service.simulator.stats().live_sessions, 1);
    first.close().await;
    assert_eq!(second.hear().await, json!({"setupComplete": {}}));
    second.close().await;
    service.until_idle().await;
}

#[tokio::test]
async fn a_session_holds_the_semaphore_that_it_names() {
    let service = Service::start().await;
    service.register("voices", 1).await;
    let headers = [ADMIN, ("x-external-semaphore-id", "voices")];
    let mut client = connect(service.address, BIDI, &headers).await.expect("a session");
    client.set_up().await;
    let in_use = "gemini_gateway_semaphore_in_use{semaphore=\"voices\"}";
    assert_eq!(service.metric(in_use).await, 1.0);
    client.close().await;
    service.until_idle().await;
    assert_eq!(service.metric(in_use).await, 0.0);
    let headers = [ADMIN, ("x-external-semaphore-id", "unknown")];
    let refused = connect(service.address, BIDI, &headers).await.err().expect("a refusal");
    assert_eq!(refused.0, StatusCode::NOT_FOUND);
}

#[tokio::test]
async fn refusals_before_the_handshake_have_the_format_of_their_api() {
    let service = with(|config| {
        config.environment_fallback = false;
        config.concurrency_limit = 1;
        config.max_queued_requests = 0;
    })
    .await;
    let refused = async |path: &str, headers: &[(&'static str, &str)]| {
        let (status, body) = connect(service.address, path, headers).await.err().expect(path);
        let reason = body["error"]["details"][0]["reason"].as_str().unwrap_or_default().to_owned();
        (status.as_u16(), reason)
    };
    let is = |status: u16, reason: &str| (status, reason.to_owned());
    assert_eq!(refused(BIDI, &[]).await, is(401, "UNAUTHENTICATED"));
    let interactions = connect(service.address, "/v1beta/interactions/live", &[]).await;
    let (status, body) = interactions.err().expect("a refusal");
    assert_eq!((status.as_u16(), &body["error"]["code"]), (401, &json!("authentication")));
    assert_eq!(refused("/ws/other", &[OWN]).await, is(404, "NOT_FOUND"));
    let two = format!("{BIDI}?key=another-key");
    assert_eq!(refused(&two, &[OWN]).await, is(400, "MULTIPLE_CREDENTIALS"));
    let _held = session(&service).await;
    assert_eq!(refused(BIDI, &[OWN]).await, is(503, "QUEUE_FULL"));

    for (path, place, code) in [
        (BIDI, "/error/details/0/reason", "UPGRADE_REQUIRED"),
        ("/v1/interactions/live", "/error/code", "invalid_request"),
    ] {
        let plain = answer(service.get(path)).await;
        assert_eq!(plain.status, StatusCode::UPGRADE_REQUIRED);
        assert_eq!(plain.headers["upgrade"], "websocket");
        assert_eq!(plain.body.pointer(place), Some(&json!(code)));
    }
}

#[tokio::test]
async fn a_session_that_gemini_refuses_is_closed_with_the_reason() {
    let service = with(|config| config.max_attempts = 1).await;
    let mut client = connect(service.address, BIDI, &[ADMIN]).await.expect("a session");
    client.say(&json!({"setup": {"model": "models/no-such-model"}})).await;
    let (code, reason) = client.closed().await;
    assert_eq!((code, reason.starts_with("model_not_found: ")), (1008, true), "{reason}");
    let bad = [("x-goog-api-key", "invalid-key")];
    let mut client = connect(service.address, BIDI, &bad).await.expect("a session");
    client.say(&json!({"setup": {"model": MODEL}})).await;
    let (code, reason) = client.closed().await;
    assert_eq!((code, reason.starts_with("invalid_api_key: ")), (1008, true), "{reason}");
    service.until_idle().await;
}

#[tokio::test]
async fn a_page_of_another_origin_opens_no_session_unless_it_may_read_answers() {
    let service = with(|config| {
        let origins =
            Config::read(|name| (name == "CORS_ORIGINS").then(|| "https://app.example".to_owned()));
        config.cors_origins = origins.expect("origins").cors_origins;
    })
    .await;
    let own_origin = format!("http://{}", service.address);
    for (origin, key, opens) in [
        ("https://evil.example", None, false),
        ("https://evil.example", Some(OWN), false),
        ("null", None, false),
        ("https://app.example", None, true),
        (&*own_origin, None, true),
    ] {
        let headers: Vec<_> = [("origin", origin)].into_iter().chain(key).collect();
        let opened = connect(service.address, BIDI, &headers).await;
        assert_eq!(opened.is_ok(), opens, "{origin}");
        if let Err((status, _)) = opened {
            assert_eq!(status, StatusCode::UNAUTHORIZED);
        }
    }
    let any = with(|config| {
        let any = Config::read(|name| (name == "CORS_ORIGINS").then(|| "*".to_owned()));
        config.cors_origins = any.expect("origins").cors_origins;
    })
    .await;
    let foreign = ("origin", "https://evil.example");
    assert!(connect(any.address, BIDI, &[foreign]).await.is_err(), "it needs a key of its own");
    assert!(connect(any.address, BIDI, &[foreign, OWN]).await.is_ok());
    let host = [("host", "evil.example")];
    assert!(connect(any.address, BIDI, &host).await.is_err(), "DNS rebinding");
}

type Head = (String, Vec<(String, String)>);

/// An upstream that accepts every WebSocket and hands it to a function.
struct Upstream {
    base_url: String,
    /// The URL and the headers of each handshake.
    heads: Arc<Mutex<Vec<Head>>>,
    task: AbortHandle,
}

impl Drop for Upstream {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Upstream {
    #[expect(clippy::result_large_err, reason = "the library wants a response as the error")]
    async fn start<F: Future<Output = ()> + Send + 'static>(
        serve: impl Fn(WebSocketStream<TcpStream>) -> F + Send + Sync + 'static,
    ) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let base_url = format!("http://{}", listener.local_addr().expect("its address"));
        let heads = Arc::<Mutex<Vec<Head>>>::default();
        let seen = Arc::clone(&heads);
        let task = tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let callback = |request: &Request, response: Response| {
                    let headers = request.headers().iter();
                    let headers = headers.map(|(name, value)| {
                        (name.to_string(), String::from_utf8_lossy(value.as_bytes()).into_owned())
                    });
                    seen.lock().unwrap().push((request.uri().to_string(), headers.collect()));
                    Ok(response)
                };
                if let Ok(socket) = accept_hdr_async(stream, callback).await {
                    tokio::spawn(serve(socket));
                }
            }
        });
        Self { base_url, heads, task: task.abort_handle() }
    }

    async fn service(&self, change: impl FnOnce(&mut Config)) -> Service {
        with(|config| {
            config.base_url.clone_from(&self.base_url);
            change(config);
        })
        .await
    }
}

async fn accept_setup(socket: &mut WebSocketStream<TcpStream>) {
    socket.next().await.expect("a first message").expect("a message");
    let complete = json!({"setupComplete": {}}).to_string();
    socket.send(Message::binary(complete)).await.expect("an open socket");
}

#[tokio::test]
async fn gemini_gets_one_credential_in_a_header_and_nothing_of_the_gateways() {
    let upstream = Upstream::start(async |mut socket| accept_setup(&mut socket).await).await;
    let service = upstream.service(|_| {}).await;
    let constrained = format!("{}Constrained", BIDI.replace("v1beta", "v1alpha"));
    let token = "auth_tokens/0123456789abcdef";
    let (key, authorization) = ("x-goog-api-key", "authorization");
    let token_header = format!("Token {token}");
    for (path, headers, name, value) in [
        (BIDI.to_owned(), vec![], key, SERVER_KEY),
        (BIDI.to_owned(), vec![ADMIN], key, SERVER_KEY),
        (format!("{BIDI}?key={ADMIN_KEY}&alt=json"), vec![], key, SERVER_KEY),
        (BIDI.to_owned(), vec![("admin-api-key", ADMIN_KEY)], key, SERVER_KEY),
        (BIDI.to_owned(), vec![OWN], key, OWN.1),
        (format!("{BIDI}?key={}", OWN.1), vec![], key, OWN.1),
        (format!("/{}", BIDI.replace("/google", "//google")), vec![], key, SERVER_KEY),
        (constrained.clone(), vec![(authorization, &*token_header)], authorization, &*token_header),
        (format!("{constrained}?access_token={token}"), vec![], authorization, &*token_header),
        ("/v1beta/interactions/live".to_owned(), vec![(key, token)], key, token),
    ] {
        let headers = [&headers[..], &[("cookie", "a=b"), ("x-mine", "1")]].concat();
        let mut client = connect(service.address, &path, &headers).await.expect(&path);
        client
            .say(&json!({
                "setup": {"model": MODEL}, "event_type": "interaction.create", "model": "m"
            }))
            .await;
        assert_eq!(client.hear().await, json!({"setupComplete": {}}));
        let (uri, head) = upstream.heads.lock().unwrap().pop().expect("a handshake");
        let expected = path.replace("//", "/").replace(&format!("key={ADMIN_KEY}&"), "");
        let expected = expected.split_once("?key=").map_or(&*expected, |(path, _)| path);
        let expected = expected.split_once("?access_token=").map_or(expected, |(path, _)| path);
        assert_eq!(uri, expected);
        let credentials: Vec<_> =
            head.iter().filter(|(name, _)| [key, authorization].contains(&&**name)).collect();
        assert_eq!(credentials, [&(name.to_owned(), value.to_owned())], "{path}");
        let named = |name: &str| head.iter().find(|(other, _)| other == name);
        assert!(named("x-mine").is_some() && named("cookie").is_none());
        let text = format!("{uri} {head:?}");
        assert!(!text.contains(ADMIN_KEY), "{text}");
    }
}

#[tokio::test]
async fn no_key_comes_out_of_messages_or_reasons() {
    let upstream = Upstream::start(async |mut socket| {
        accept_setup(&mut socket).await;
        let form = format!("AIza{}", "x".repeat(35));
        let quoted = json!({"error": {"message": format!("{SERVER_KEY} and {form}")}});
        socket.send(Message::text(quoted.to_string())).await.expect("an open socket");
        let reason = format!("Consumer {SERVER_KEY} and {form} suspended").into();
        let frame = CloseFrame { code: 1008.into(), reason };
        socket.close(Some(frame)).await.expect("an open socket");
    })
    .await;
    let service = upstream.service(|_| {}).await;
    let mut client = session(&service).await;
    let message = client.hear().await["error"]["message"].as_str().unwrap().to_owned();
    let (code, reason) = client.closed().await;
    assert_eq!(code, 1008);
    for text in [message, reason] {
        assert!(text.contains("***") && text.contains(" and "), "{text}");
        assert!(!text.contains("server-key") && !text.contains("AIza"), "{text}");
    }
}

#[tokio::test]
async fn the_admin_key_in_a_message_does_not_reach_gemini() {
    let heard = Arc::new(Mutex::new(String::new()));
    let ear = Arc::clone(&heard);
    let upstream = Upstream::start(move |mut socket| {
        let ear = Arc::clone(&ear);
        async move {
            accept_setup(&mut socket).await;
            while let Some(Ok(Message::Text(text))) = socket.next().await {
                ear.lock().unwrap().push_str(&text);
            }
        }
    })
    .await;
    let admin = "a-long-admin-key-0123456789abcdef";
    let service = upstream
        .service(|config| {
            let read = Config::read(|name| (name == "ADMIN_API_KEY").then(|| admin.to_owned()));
            config.admin_api_key = read.expect("a key").admin_api_key;
        })
        .await;
    let mut client = connect(service.address, BIDI, &[("x-goog-api-key", admin)]).await.unwrap();
    client.set_up().await;
    client.ask("Hello").await;
    client.ask(admin).await;
    let (code, reason) = client.closed().await;
    assert_eq!((code, reason.starts_with("unauthenticated: ")), (1008, true), "{reason}");
    service.until_idle().await;
    assert!(!heard.lock().unwrap().contains(admin));
}

#[tokio::test]
async fn a_client_is_read_only_as_fast_as_gemini_takes_its_messages() {
    let release = Arc::new(Notify::new());
    let (released, read) = (Arc::clone(&release), Arc::new(Mutex::new(0)));
    let counted = Arc::clone(&read);
    let upstream = Upstream::start(move |mut socket| {
        let (released, counted) = (Arc::clone(&released), Arc::clone(&counted));
        async move {
            accept_setup(&mut socket).await;
            released.notified().await;
            while let Some(Ok(Message::Binary(bytes))) = socket.next().await {
                assert_eq!(bytes.len(), 1 << 20);
                *counted.lock().unwrap() += 1;
            }
        }
    })
    .await;
    let service = upstream.service(|_| {}).await;
    let mut client = session(&service).await;
    let piece = Message::binary(vec![b'x'; 1 << 20]);
    let mut sent = 0;
    while timeout(Duration::from_secs(1), client.0.send(piece.clone())).await.is_ok() {
        sent += 1;
        assert!(sent < 64, "everything is taken, and nothing passed on");
    }
    // What was begun is sent on with the flush.
    release.notify_one();
    timeout(TEST_TIMEOUT, client.0.flush()).await.expect("it goes on").expect("an open socket");
    until("all has come", || *read.lock().unwrap() == sent + 1).await;
    assert!(service.gateway.bodies.used() <= 2 << 20, "what has passed takes no memory");
    client.close().await;
    service.until_idle().await;
}

#[tokio::test]
async fn gemini_is_read_only_as_fast_as_the_client_accepts_messages() {
    const PIECES: usize = 64;
    let sent = Arc::new(Mutex::new(0));
    let counted = Arc::clone(&sent);
    let upstream = Upstream::start(move |mut socket| {
        let counted = Arc::clone(&counted);
        async move {
            accept_setup(&mut socket).await;
            for number in 0..PIECES {
                let piece = vec![u8::try_from(number).expect("a small number"); 1 << 20];
                socket.send(Message::binary(piece)).await.expect("an open socket");
                *counted.lock().unwrap() += 1;
            }
            socket.close(None).await.expect("an open socket");
        }
    })
    .await;
    let service = upstream.service(|_| {}).await;
    let mut client = session(&service).await;
    let mut before = None;
    while before != Some(*sent.lock().unwrap()) {
        before = Some(*sent.lock().unwrap());
        tokio::time::sleep(Duration::from_millis(500)).await;
    }
    assert!(before < Some(PIECES), "everything is read, although the client reads nothing");
    for number in 0..PIECES {
        let Message::Binary(piece) = client.next().await else { panic!("a piece") };
        assert!(piece.len() == 1 << 20 && piece.iter().all(|byte| usize::from(*byte) == number));
    }
    assert_eq!(client.closed().await, (1005, String::new()));
    service.until_idle().await;
}

#[tokio::test]
async fn messages_that_arrive_before_the_session_is_open_are_relayed_in_order() {
    let service = with(|config| config.concurrency_limit = 1).await;
    let mut first = session(&service).await;
    let mut second = connect(service.address, BIDI, &[ADMIN]).await.expect("a session");
    second.say(&json!({"setup": {"model": MODEL}})).await;
    for text in ["One", "Two", "Three"] {
        second.ask(text).await;
    }
    let mut third = connect(service.address, BIDI, &[ADMIN]).await.expect("a session");
    third.say(&json!({"setup": {"model": MODEL}})).await;
    third.ask("Hello").await;
    service.until("both wait", |limiter| limiter.waiting == 2).await;
    third.close().await;
    service.until("one has left the queue", |limiter| limiter.waiting == 1).await;
    first.close().await;
    assert_eq!(second.hear().await, json!({"setupComplete": {}}));
    for text in ["One", "Two", "Three"] {
        assert_eq!(second.turn().await, format!("Simulated answer to: {text}"));
    }
    second.close().await;
    service.until_idle().await;
}

/// A client that waits in the queue and has sent so many messages behind its first.
async fn early(service: &Service, messages: usize, bytes: usize) -> Client {
    let mut client = connect(service.address, BIDI, &[ADMIN]).await.expect("a session");
    client.say(&json!({"setup": {"model": MODEL}})).await;
    for _ in 0..messages {
        // The gateway may have closed the session by now.
        let _ = client.0.send(Message::binary(vec![b' '; bytes])).await;
    }
    client
}

#[tokio::test]
async fn a_client_that_leaves_the_queue_is_noticed_however_much_it_has_sent() {
    let service = with(|config| config.concurrency_limit = 1).await;
    let first = session(&service).await;
    let mut gone = early(&service, 1000, 100).await;
    service.until("it waits", |limiter| limiter.waiting == 1).await;
    let _ = gone.0.send(Message::Close(None)).await;
    service.until("it has left", |limiter| limiter.waiting == 0).await;
    let gone = early(&service, 1000, 100).await;
    service.until("it waits", |limiter| limiter.waiting == 1).await;
    drop(gone);
    service.until("it has left", |limiter| limiter.waiting == 0).await;
    assert_eq!(service.simulator.stats().live_sessions, 1);
    drop(first);
}

#[tokio::test]
async fn a_client_that_sends_too_much_before_its_session_is_open_is_closed() {
    let service = with(|config| {
        config.concurrency_limit = 1;
        config.max_body_bytes = 10_000;
    })
    .await;
    let first = session(&service).await;
    for (messages, bytes) in [(1100, 1), (11, 1000)] {
        let mut client = early(&service, messages, bytes).await;
        let (code, reason) = client.closed().await;
        assert_eq!((code, reason.starts_with("body_too_large: More")), (1008, true), "{reason}");
        service.until("it has left", |limiter| limiter.waiting == 0).await;
    }
    drop(first);
}

#[tokio::test]
async fn a_panic_frees_the_slot_of_a_session() {
    let service = Service::start().await;
    let dispatcher = Arc::clone(&service.gateway.dispatcher);
    let opened = tokio::spawn(async move {
        let model = Model::parse(MODEL).expect("a model");
        let call = dispatcher.enqueue(CallRequest {
            kind: CallKind::Live,
            key: ApiKey::new(SERVER_KEY).expect("a key"),
            model: model.clone(),
            semaphore: None,
            size: InputFeatures::default().into(),
            tier: TierChoice::default(),
            deadline: tokio::time::Instant::now() + TEST_TIMEOUT,
            observer: None,
        });
        let path = BIDI.parse().expect("a path");
        let request = Forward { path, ..Forward::stream(&model) };
        let setup = Message::text(json!({"setup": {"model": MODEL}}).to_string());
        let opened = dispatcher.open_live(&call, &request, LiveApi::Bidi, setup).await;
        let _session = opened.expect("a session");
        panic!("the session panics");
    });
    assert!(opened.await.expect_err("it panics").is_panic());
    service.until_idle().await;
    assert_eq!(service.simulator.stats().highest_live_sessions, 1);
}

#[tokio::test]
async fn messages_that_are_too_large_or_find_no_memory_end_the_session() {
    let service = with(|config| config.max_body_bytes = 1000).await;
    let mut client = session(&service).await;
    client.ask(&"x".repeat(2000)).await;
    let (code, reason) = client.closed().await;
    assert_eq!((code, reason.starts_with("body_too_large: ")), (1009, true), "{reason}");
    service.until_idle().await;

    let service = with(|config| config.body_memory_bytes = Some(100_000)).await;
    let mut client = session(&service).await;
    let mut share = service.gateway.bodies.share();
    share.grow(80_000).expect("room");
    client.ask(&"x".repeat(70_000)).await;
    let (code, reason) = client.closed().await;
    assert_eq!((code, reason.starts_with("server_busy: ")), (1013, true), "{reason}");
    service.until_idle().await;
}

#[tokio::test]
async fn pings_of_a_client_take_no_memory_from_the_bodies_of_others() {
    let service = with(|config| config.body_memory_bytes = Some(100_000)).await;
    let mut client = session(&service).await;
    for _ in 0..2_000 {
        client.0.feed(Message::Ping(vec![b'x'; 125].into())).await.expect("an open socket");
    }
    client.0.flush().await.expect("an open socket");
    client.ask("Hello").await;
    assert_eq!(client.turn().await, "Simulated answer to: Hello");
}

#[tokio::test]
async fn a_client_that_does_not_answer_is_found_out() {
    let service = with(|config| config.client_timeout = Duration::from_millis(200)).await;
    // It opens no session.
    let mut silent = connect(service.address, BIDI, &[ADMIN]).await.expect("a session");
    let (code, reason) = silent.closed().await;
    assert_eq!((code, reason.starts_with("client_timeout: ")), (1008, true), "{reason}");
    // It answers no pings: nothing reads its socket.
    let deaf = session(&service).await;
    until_held(&service).await;
    service.until_idle().await;
    // One that does is kept.
    let mut there = session(&service).await;
    let _ = timeout(Duration::from_secs(1), there.0.next()).await;
    until_held(&service).await;
    drop(deaf);
}

#[tokio::test]
async fn a_session_is_waited_for_at_shutdown_and_then_closed_properly() {
    let process = Start::simulated()
        .set("SHUTDOWN_GRACE_SECONDS", "1")
        .set("RUST_LOG", "trace")
        .set("GEMINI_API_KEY", "secret-server-key")
        .run()
        .await;
    let path = format!("{BIDI}?key=secret-callers-key");
    let mut client = connect(process.address, &path, &[]).await.expect("a session");
    client.set_up().await;
    process.terminate().await;
    process.until_logged("shutting down").await;
    client.ask("Hello").await;
    assert_eq!(client.turn().await, "Simulated answer to: Hello");
    let (code, reason) = client.closed().await;
    assert_eq!((code, &*reason), (1001, "The gateway is shutting down."));
    let (code, log) = process.end().await;
    assert_eq!(code, Some(0), "{log}");
    assert!(log.contains("the live session ended"), "{log}");
    assert!(!log.contains("secret"), "{log}");
}
