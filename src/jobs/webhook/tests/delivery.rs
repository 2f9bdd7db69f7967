//! Single attempts, over real connections.

use std::collections::VecDeque;
use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use axum::Router;
use axum::response::{IntoResponse, Response};
use axum::routing::any;
use base64::prelude::{BASE64_STANDARD, Engine};
use bytes::Bytes;
use futures_util::FutureExt;
use futures_util::future::{BoxFuture, ready};
use hmac::{Hmac, KeyInit, Mac};
use http::header::{LOCATION, RETRY_AFTER};
use http::{HeaderMap, Method, StatusCode, Uri};
use jiff::Timestamp;
use sha2::Sha256;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;
use tokio::sync::mpsc;

use crate::connect::{AllowedDestinations, Authorities, Resolver};
use crate::jobs::webhook::delivery::{Deliver, Outcome};
use crate::jobs::webhook::message::Message;
use crate::jobs::webhook::{WebhookSecrets, WebhookSender, WebhookSettings};

const KEY: [u8; 32] = [7; 32];
const OTHER_KEY: [u8; 32] = [8; 32];
const ID: &str = "job_0_1";

fn secrets(keys: &[[u8; 32]]) -> WebhookSecrets {
    let secrets = keys.iter().map(|key| format!("whsec_{}", BASE64_STANDARD.encode(key)));
    WebhookSecrets::parse(&secrets.collect::<Vec<_>>().join(",")).unwrap()
}

pub(super) fn settings(allowed: &[&str]) -> WebhookSettings {
    let allowed = AllowedDestinations::parse(allowed.iter().copied()).unwrap();
    WebhookSettings { secrets: secrets(&[KEY]), allowed }
}

pub(super) fn message(url: impl Into<String>) -> Message {
    let body = Bytes::from_static(b"{\"type\":\"job.completed\"}");
    Message { url: url.into(), id: ID.to_owned(), body }
}

/// Makes an attempt with these destinations allowed.
async fn send(url: impl Into<String>, allowed: &[&str]) -> Outcome {
    let sender = WebhookSender::new(settings(allowed), None, &Authorities::default()).unwrap();
    sender.deliver(message(url), Timestamp::now()).await
}

/// Makes an attempt with a resolver that gives these answers, one after the other.
async fn send_resolving(
    url: &str,
    allowed: &[&str],
    answers: impl IntoIterator<Item = Vec<IpAddr>>,
) -> Outcome {
    let resolver = Arc::new(Answers(Mutex::new(answers.into_iter().collect())));
    let authorities = Authorities::default();
    let settings = settings(allowed);
    let sender = WebhookSender::with_resolver(settings, None, &authorities, resolver).unwrap();
    sender.deliver(message(url), Timestamp::now()).await
}

/// A name server that an attacker controls.
#[derive(Debug)]
pub(super) struct Answers(pub Mutex<VecDeque<Vec<IpAddr>>>);

impl Resolver for Answers {
    fn resolve(&self, _host: &str) -> BoxFuture<'static, io::Result<Vec<IpAddr>>> {
        let answer = self.0.lock().unwrap().pop_front().expect("no further question");
        ready(Ok(answer)).boxed()
    }
}

pub(super) fn reason(outcome: Outcome) -> String {
    match outcome {
        Outcome::Failed { reason, wait: None } => reason.into_owned(),
        outcome => panic!("{outcome:?}"),
    }
}

pub(super) async fn listen() -> (TcpListener, SocketAddr) {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    let address = listener.local_addr().unwrap();
    (listener, address)
}

/// A request that was received.
type Received = (Method, Uri, HeaderMap, Bytes);

/// A receiver that answers every request in the same way. Returns its URL and what it receives.
pub(super) async fn receive(
    respond: impl Fn() -> Response + Clone + Send + Sync + 'static,
) -> (String, mpsc::UnboundedReceiver<Received>) {
    let (received, requests) = mpsc::unbounded_channel();
    let handler = async move |method: Method, uri: Uri, headers: HeaderMap, body: Bytes| {
        let _ = received.send((method, uri, headers, body));
        respond()
    };
    let (listener, address) = listen().await;
    let router = Router::new().fallback(any(handler));
    tokio::spawn(async move { axum::serve(listener, router).await });
    (format!("http://{address}/path?token=secret"), requests)
}

/// Whether one of the signatures is by this key. Computed from the specification's words.
fn is_signed(headers: &HeaderMap, body: &[u8], key: &[u8]) -> bool {
    let header = |name: &str| headers[name].to_str().unwrap();
    let signed = [header("webhook-id"), header("webhook-timestamp")].join(".") + ".";
    let signed = [signed.as_bytes(), body].concat();
    header("webhook-signature").split(' ').any(|signature| {
        let (version, signature) = signature.split_once(',').unwrap();
        assert_eq!(version, "v1");
        let mac = Hmac::<Sha256>::new_from_slice(key).unwrap().chain_update(&signed);
        mac.verify_slice(&BASE64_STANDARD.decode(signature).unwrap()).is_ok()
    })
}

#[tokio::test]
async fn a_message_is_posted_with_its_signatures() {
    let (url, mut requests) = receive(|| StatusCode::NO_CONTENT.into_response()).await;
    let allowed = settings(&["127.0.0.1"]).allowed;
    let settings = WebhookSettings { secrets: secrets(&[KEY, OTHER_KEY]), allowed };
    let sender = WebhookSender::new(settings, None, &Authorities::default()).unwrap();
    let now = Timestamp::now();
    assert_eq!(sender.deliver(message(&*url), now).await, Outcome::Delivered);
    let (method, uri, headers, body) = requests.recv().await.unwrap();
    assert_eq!((method, uri.to_string()), (Method::POST, "/path?token=secret".to_owned()));
    assert_eq!(body, message("").body);
    assert_eq!(headers["content-type"], "application/json");
    assert!(url.contains(headers["host"].to_str().unwrap()));
    assert_eq!(headers["webhook-id"], ID);
    assert_eq!(headers["webhook-timestamp"], now.as_second().to_string());
    assert!(is_signed(&headers, &body, &KEY) && is_signed(&headers, &body, &OTHER_KEY));
    assert!(!is_signed(&headers, &body, &[9; 32]) && !is_signed(&headers, b"{}", &KEY));
    assert!(requests.try_recv().is_err());
}

#[tokio::test]
async fn only_the_status_says_whether_a_message_was_delivered() {
    let wait = |seconds| Some(Duration::from_secs(seconds));
    for (status, retry_after, expected) in [
        (200, None, Ok(Outcome::Delivered)),
        (202, Some("7"), Ok(Outcome::Delivered)),
        (410, Some("7"), Ok(Outcome::Unwanted)),
        (301, None, Err(None)),
        (400, None, Err(None)),
        (404, None, Err(None)),
        (429, Some("120"), Err(wait(120))),
        (500, Some("soon"), Err(None)),
        (503, Some("99999999"), Err(wait(86_400))),
    ] {
        let status = StatusCode::from_u16(status).unwrap();
        let (url, _requests) = receive(move || {
            let mut answer = (status, "secret-of-the-receiver").into_response();
            if let Some(wait) = retry_after {
                answer.headers_mut().insert(RETRY_AFTER, wait.parse().unwrap());
            }
            answer
        })
        .await;
        let reason = format!("the receiver answered {}", status.as_u16()).into();
        let expected = expected.unwrap_or_else(|wait| Outcome::Failed { reason, wait });
        assert_eq!(send(url, &["127.0.0.1"]).await, expected);
    }
}

#[tokio::test]
async fn a_redirect_is_not_followed() {
    let (other, address) = listen().await;
    for status in [301, 302, 303, 307, 308] {
        let (url, mut requests) = receive(move || {
            let location = format!("http://{address}/");
            (StatusCode::from_u16(status).unwrap(), [(LOCATION, location)]).into_response()
        })
        .await;
        let outcome = send(url, &["127.0.0.1"]).await;
        assert_eq!(reason(outcome), format!("the receiver answered {status}"));
        requests.recv().await.unwrap();
        assert!(requests.try_recv().is_err());
        assert!(other.accept().now_or_never().is_none());
    }
}

/// The paused clock advances as soon as everything waits for the receiver.
#[tokio::test(start_paused = true)]
async fn a_receiver_that_does_not_answer_is_given_fifteen_seconds() {
    let (listener, address) = listen().await;
    let outcome = send(format!("http://{address}/"), &["127.0.0.1"]).await;
    assert_eq!(reason(outcome), "the receiver did not answer in 15 s");
    drop(listener);
}

/// Answers a request with a beginning, and then repeats a part until the connection is closed.
async fn repeat(listener: TcpListener, beginning: &'static str, part: &'static str) -> io::Error {
    let (mut stream, _) = listener.accept().await.unwrap();
    head(&mut stream).await;
    stream.write_all(beginning.as_bytes()).await.unwrap();
    loop {
        if let Err(error) = stream.write_all(part.as_bytes()).await {
            return error;
        }
    }
}

#[tokio::test]
async fn an_endless_answer_is_not_read_to_its_end() {
    let (listener, address) = listen().await;
    let body = "HTTP/1.1 200 OK\r\ncontent-length: 999999999999\r\n\r\n";
    let receiver = tokio::spawn(repeat(listener, body, "all work and no play "));
    let outcome = send(format!("http://{address}/"), &["127.0.0.1"]).await;
    assert_eq!(outcome, Outcome::Delivered);
    receiver.await.unwrap();
}

#[tokio::test]
async fn an_endless_head_is_a_failure() {
    for beginning in ["HTTP/1.1 200 OK\r\n", "HTTP/1.1 200 ", "x"] {
        let (listener, address) = listen().await;
        let receiver = tokio::spawn(repeat(listener, beginning, "x-header: 1\r\n"));
        let outcome = send(format!("http://{address}/"), &["127.0.0.1"]).await;
        assert!(matches!(outcome, Outcome::Failed { .. }), "{outcome:?}");
        receiver.await.unwrap();
    }
}

#[tokio::test]
async fn a_name_that_leads_to_a_private_address_is_not_connected_to() {
    let (listener, address) = listen().await;
    let url = format!("https://hooks.example:{}/", address.port());
    for private in ["127.0.0.1", "::1", "::ffff:127.0.0.1", "10.0.0.1", "169.254.169.254"] {
        let outcome = send_resolving(&url, &[], [vec![private.parse().unwrap()]]).await;
        assert_eq!(
            reason(outcome),
            "cannot connect to the receiver: its address is private or reserved, or public and \
             reached without TLS",
            "{private}"
        );
    }
    assert!(listener.accept().now_or_never().is_none());
}

#[tokio::test]
async fn a_connection_leads_to_the_address_that_was_checked() {
    let (url, mut requests) = receive(|| StatusCode::OK.into_response()).await;
    let port = url.parse::<Uri>().unwrap().port_u16().unwrap();
    let url = format!("http://hooks.example:{port}/");
    let here = vec![IpAddr::from(Ipv4Addr::LOCALHOST)];
    // A second question would panic: there is one answer.
    let outcome = send_resolving(&url, &["127.0.0.1"], [here.clone()]).await;
    assert_eq!(outcome, Outcome::Delivered);
    let host = &requests.recv().await.unwrap().2["host"];
    assert_eq!(host, &*format!("hooks.example:{port}"));
    // Only permitted addresses count.
    let mixed = ["169.254.169.254", "8.8.8.8", "127.0.0.2", "127.0.0.1"];
    let mixed = mixed.map(|address| address.parse().unwrap()).to_vec();
    assert_eq!(send_resolving(&url, &["127.0.0.1"], [mixed]).await, Outcome::Delivered);
    // A host is allowed by its name, wherever it leads.
    assert_eq!(send_resolving(&url, &["hooks.example"], [here]).await, Outcome::Delivered);
}

#[tokio::test]
async fn a_public_address_is_not_reached_without_tls() {
    let public = vec!["8.8.8.8".parse().unwrap()];
    let outcome = send_resolving("http://hooks.example/", &["10.0.0.0/8"], [public]).await;
    assert!(reason(outcome).ends_with("public and reached without TLS"));
}

#[tokio::test]
async fn a_url_that_is_no_longer_allowed_is_not_sent_to() {
    let (listener, address) = listen().await;
    let outcome = send(format!("http://{address}/"), &[]).await;
    assert!(reason(outcome).contains("JOB_WEBHOOK_ALLOW"));
    assert!(listener.accept().now_or_never().is_none());
}

#[tokio::test]
async fn failed_connections_are_explained_without_the_url() {
    let (listener, address) = listen().await;
    drop(listener);
    let outcome = send(format!("http://{address}/"), &["127.0.0.1"]).await;
    assert_eq!(reason(outcome), "cannot connect to the receiver: the connection was refused");
    let outcome = send_resolving("https://hooks.example/", &[], [vec![]]).await;
    assert_eq!(reason(outcome), "cannot connect to the receiver: its host name cannot be resolved");
}

/// Reads the head of a request.
pub(super) async fn head(stream: &mut (impl AsyncRead + Unpin)) -> String {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(stream.read_u8().await.unwrap());
    }
    String::from_utf8(head).unwrap()
}
