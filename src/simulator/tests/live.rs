//! Live sessions.

use std::time::Duration;

use futures_util::{SinkExt, StreamExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinHandle;
use tokio_tungstenite::tungstenite::client::IntoClientRequest;
use tokio_tungstenite::tungstenite::protocol::CloseFrame;
use tokio_tungstenite::tungstenite::{Error, Message};
use tokio_tungstenite::{WebSocketStream, client_async};

use super::*;

const BIDI: &str = "/ws/google.ai.generativelanguage.v1beta.GenerativeService.BidiGenerateContent";

/// A simulator behind a real port.
struct Server {
    simulator: Simulator,
    address: String,
    task: JoinHandle<()>,
}

impl Drop for Server {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Server {
    async fn start(options: Options) -> Self {
        let simulator = Simulator::new(options);
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let address = listener.local_addr().expect("an address").to_string();
        let served = axum::serve(listener, simulator.router()).into_future();
        let task = tokio::spawn(async move { served.await.expect("it serves") });
        Self { simulator, address, task }
    }

    async fn connect(&self, path: &str, key: Option<&str>) -> Result<Client, Error> {
        let mut request = format!("ws://{}{path}", self.address).into_client_request()?;
        if let Some(key) = key {
            request.headers_mut().insert("x-goog-api-key", key.parse().expect("a header"));
        }
        let stream = TcpStream::connect(&self.address).await.expect("a connection");
        client_async(request, stream).await.map(|(stream, _)| Client(stream))
    }

    async fn session(&self) -> Client {
        let mut client = self.connect(BIDI, Some("key")).await.expect("a session");
        client.send(&json!({"setup": {"model": "models/gemini-3.8-live"}})).await;
        assert_eq!(client.receive().await, json!({"setupComplete": {}}));
        client
    }

    /// Waits until the counters are as expected.
    async fn until(&self, expected: impl Fn(&crate::simulator::Stats) -> bool) {
        let seen = async {
            while !expected(&self.simulator.stats()) {
                tokio::task::yield_now().await;
            }
        };
        let seen = tokio::time::timeout(Duration::from_secs(10), seen).await;
        assert!(seen.is_ok(), "{:?}", self.simulator.stats());
    }
}

struct Client(WebSocketStream<TcpStream>);

impl Client {
    async fn send(&mut self, message: &Value) {
        self.0.send(Message::text(message.to_string())).await.expect("an open socket");
    }

    async fn ask(&mut self, text: &str) {
        let turns = json!([{"role": "user", "parts": [{"text": text}]}]);
        self.send(&json!({"clientContent": {"turns": turns, "turnComplete": true}})).await;
    }

    async fn receive(&mut self) -> Value {
        match self.0.next().await {
            Some(Ok(Message::Text(text))) => serde_json::from_str(&text).expect("JSON"),
            other => panic!("a message, not {other:?}"),
        }
    }

    /// The code and the reason that the socket is closed with.
    async fn closed(&mut self) -> (u16, String) {
        match self.0.next().await {
            Some(Ok(Message::Close(Some(CloseFrame { code, reason })))) => {
                (code.into(), reason.to_string())
            }
            other => panic!("a close frame, not {other:?}"),
        }
    }

    /// The text of a turn of the model, and the last message.
    async fn turn(&mut self) -> (String, Value) {
        let mut text = String::new();
        loop {
            let message = self.receive().await;
            let content = &message["serverContent"];
            text += content["modelTurn"]["parts"][0]["text"].as_str().unwrap_or_default();
            if content["turnComplete"] == true {
                return (text, message);
            }
        }
    }
}

#[tokio::test]
async fn a_session_answers_turns_with_the_usage_of_each() {
    let server = Server::start(Options { journal: true, ..Options::default() }).await;
    let mut client = server.session().await;
    let entry = server.simulator.journal().remove(0);
    assert_eq!((&*entry.api_key, &*entry.model), ("key", "gemini-3.8-live"));
    for text in ["Hello", "Ciao."] {
        client.ask(text).await;
        let (answer, last) = client.turn().await;
        assert_eq!(answer, format!("Simulated answer to: {text}"));
        assert_eq!(last["usageMetadata"]["promptTokenCount"], 2);
        assert_eq!(last["usageMetadata"]["responseTokenCount"], 7);
    }
    let stats = server.simulator.stats();
    assert_eq!((stats.live_sessions, stats.in_flight, stats.calls), (1, 1, 1));
    assert_eq!((stats.admitted, stats.admitted_input_tokens), (1, 4));
    client.0.close(None).await.expect("it closes");
    server.until(|stats| stats.live_sessions == 0 && stats.in_flight == 0).await;
    assert_eq!(server.simulator.stats().answered, 1);
}

#[tokio::test]
async fn sessions_at_the_same_time_are_counted() {
    let server = Server::start(Options { capacity: Some(2), ..Options::default() }).await;
    let first = server.session().await;
    let second = server.session().await;
    let mut third = server.connect(BIDI, Some("key")).await.expect("a session");
    third.send(&json!({"setup": {"model": "models/gemini-3.8-live"}})).await;
    let (code, reason) = third.closed().await;
    assert_eq!((code, reason.as_str()), (1011, "The model is overloaded. Please try again later."));
    drop((first, second, third));
    server.until(|stats| stats.live_sessions == 0).await;
    let stats = server.simulator.stats();
    assert_eq!((stats.highest_live_sessions, stats.in_flight), (3, 0));
}

#[tokio::test]
async fn the_key_is_read_from_the_header_or_the_query() {
    let server = Server::start(Options::default()).await;
    for (path, key, accepted) in [
        (BIDI.to_owned(), Some("key"), true),
        (format!("{BIDI}?key=key"), None, true),
        (format!("{BIDI}?access_token=auth_tokens/a"), None, true),
        (BIDI.to_owned(), None, false),
        (BIDI.to_owned(), Some("invalid"), false),
    ] {
        let connected = server.connect(&path, key).await;
        assert_eq!(connected.is_ok(), accepted, "{path}");
    }
}

#[tokio::test]
async fn a_session_without_quota_is_closed() {
    let options = Options { requests_per_minute: Some(1), ..Options::default() };
    let server = Server::start(options).await;
    let _open = server.session().await;
    let mut refused = server.connect(BIDI, Some("key")).await.expect("a session");
    refused.send(&json!({"setup": {"model": "models/gemini-3.8-live"}})).await;
    let (code, reason) = refused.closed().await;
    assert_eq!(code, 1011);
    assert!(reason.starts_with("You exceeded your current quota"), "{reason}");
}

#[tokio::test]
async fn a_session_announces_its_end_and_how_to_resume() {
    let server = Server::start(Options::default()).await;
    let mut client = server.connect(BIDI, Some("key")).await.expect("a session");
    let setup = json!({"model": "models/gemini-3.8-live", "sessionResumption": {}});
    client.send(&json!({"setup": setup})).await;
    client.receive().await;
    client.ask("[[simulate:go_away]]Hello").await;
    client.turn().await;
    assert_eq!(client.receive().await["sessionResumptionUpdate"]["resumable"], true);
    assert_eq!(client.receive().await, json!({"goAway": {"timeLeft": "0.1s"}}));
    assert_eq!(client.closed().await.0, 1000);
}

#[tokio::test]
async fn a_session_is_closed_for_bad_messages_and_scripted_errors() {
    let server = Server::start(Options::default()).await;
    let mut client = server.connect(BIDI, Some("key")).await.expect("a session");
    client.send(&json!({"clientContent": {}})).await;
    assert_eq!(client.closed().await.0, 1008);
    let mut client = server.session().await;
    client.ask("[[simulate:status=500]]").await;
    assert_eq!(client.closed().await.0, 1011);
    let mut client = server.session().await;
    client.ask("[[simulate:close]]").await;
    assert!(matches!(client.0.next().await, Some(Err(_)) | None));
    server.until(|stats| stats.live_sessions == 0 && stats.in_flight == 0).await;
}

#[tokio::test]
async fn a_live_interaction_ends_with_the_usage_of_all_turns() {
    let server = Server::start(Options::default()).await;
    let path = "/v1beta/interactions/live";
    let mut client = server.connect(path, Some("key")).await.expect("a session");
    let create = json!({"event_type": "interaction.create", "model": "gemini-3.8-live"});
    client.send(&json!({"events": [create]})).await;
    assert_eq!(client.receive().await["event_type"], "interaction.created");
    for _ in 0..2 {
        let content = json!([{"type": "text", "text": "Hello"}]);
        client.send(&json!({"event_type": "input", "content": content})).await;
        let mut text = String::new();
        loop {
            let event = client.receive().await;
            text += event["delta"]["text"].as_str().unwrap_or_default();
            if event["event_type"] == "interaction.status_update" {
                break;
            }
        }
        assert_eq!(text, "Simulated answer to: Hello");
    }
    client.send(&json!({"event_type": "interaction.complete"})).await;
    let ended = client.receive().await;
    assert_eq!(ended["event_type"], "interaction.completed");
    assert_eq!(ended["interaction"]["usage"]["total_input_tokens"], 4);
    assert_eq!(client.closed().await.0, 1000);
    server.until(|stats| stats.live_sessions == 0).await;
}
