//! Deliveries through a proxy, and over TLS.

use std::net::{IpAddr, Ipv4Addr};
use std::path::Path;
use std::process::Command;
use std::sync::{Arc, Mutex};

use axum::response::IntoResponse;
use futures_util::FutureExt;
use http::{StatusCode, Uri};
use jiff::Timestamp;
use tempfile::TempDir;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::ServerConfig;
use tokio_rustls::rustls::crypto::ring;
use tokio_rustls::rustls::pki_types::pem::PemObject;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer};

use super::delivery::{Answers, head, listen, message, reason, receive, settings};
use crate::connect::{Authorities, Proxy};
use crate::jobs::webhook::WebhookSender;
use crate::jobs::webhook::delivery::{Deliver, Outcome};

/// Reads a request, answers with a status and closes the connection. Returns the request's head.
async fn answer(mut stream: impl AsyncRead + AsyncWrite + Unpin, status: &str) -> String {
    let head = head(&mut stream).await;
    let length = head.lines().find_map(|line| line.strip_prefix("content-length: "));
    let length = length.map_or(0, |length| length.parse().unwrap());
    stream.read_exact(&mut vec![0; length]).await.unwrap();
    let answer = format!("HTTP/1.1 {status}\r\ncontent-length: 0\r\nconnection: close\r\n\r\n");
    stream.write_all(answer.as_bytes()).await.unwrap();
    stream.shutdown().await.unwrap();
    head
}

#[tokio::test]
async fn a_proxy_is_asked_for_the_address_that_was_checked() {
    let (listener, address) = listen().await;
    let proxy = Proxy::parse(&format!("http://{address}"), "", &Uri::from_static("https://g.test"));
    let proxy = proxy.unwrap().unwrap();
    let send = async |url: &str, allowed: &[&str], answer: &str| {
        let answers = [vec![answer.parse().unwrap()]];
        let resolver = Arc::new(Answers(Mutex::new(answers.into())));
        let settings = settings(allowed);
        let authorities = Authorities::default();
        let sender = WebhookSender::with_resolver(settings, Some(&proxy), &authorities, resolver);
        sender.unwrap().deliver(message(url), Timestamp::now()).await
    };
    for (public, asked) in [
        ("8.8.8.8", "CONNECT 8.8.8.8:8443 HTTP/1.1\r\n"),
        ("2606:4700::1", "CONNECT [2606:4700::1]:8443 HTTP/1.1\r\n"),
    ] {
        let proxying = async {
            let (stream, _): (TcpStream, _) = listener.accept().await.unwrap();
            answer(stream, "403 Forbidden").await
        };
        let sending = send("https://hooks.example:8443/", &[], public);
        let (outcome, head) = tokio::join!(sending, proxying);
        assert!(head.starts_with(asked), "{head}");
        assert!(reason(outcome).contains("the proxy refused to connect (403"));
    }
    // Nothing private is asked of the proxy, and what is allowed is reached directly.
    let private = send("https://hooks.example/", &[], "10.0.0.1").await;
    assert!(reason(private).contains("private"));
    let (url, _requests) = receive(|| StatusCode::OK.into_response()).await;
    let url = url.replace("127.0.0.1", "hooks.internal");
    let direct = send(&url, &["hooks.internal"], "127.0.0.1").await;
    assert_eq!(direct, Outcome::Delivered);
    assert!(listener.accept().now_or_never().is_none());
}

fn openssl(folder: &Path, arguments: &str) {
    let output = Command::new("openssl").args(arguments.split(' ')).current_dir(folder).output();
    let output = output.expect("the package openssl must be installed");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

#[tokio::test]
async fn a_receivers_certificate_is_checked_for_the_name_in_the_url() {
    let folder = TempDir::new().unwrap();
    let path = |name: &str| folder.path().join(name);
    let key = "-newkey rsa:2048 -nodes";
    std::fs::write(path("names"), "subjectAltName=DNS:hooks.test").unwrap();
    openssl(folder.path(), &format!("req -x509 {key} -keyout ca.key -out ca.pem -subj /CN=ca"));
    openssl(folder.path(), &format!("req {key} -keyout key -out request -subj /CN=hooks"));
    let sign = "x509 -req -in request -CA ca.pem -CAkey ca.key -CAcreateserial -out pem";
    openssl(folder.path(), &format!("{sign} -extfile names"));
    let chain = CertificateDer::from_pem_file(path("pem")).unwrap();
    let key = PrivateKeyDer::from_pem_file(path("key")).unwrap();
    let config = ServerConfig::builder_with_provider(ring::default_provider().into())
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![chain], key)
        .unwrap();
    let acceptor = TlsAcceptor::from(Arc::new(config));
    let (listener, address) = listen().await;
    tokio::spawn(async move {
        loop {
            let (stream, _) = listener.accept().await.unwrap();
            if let Ok(stream) = acceptor.accept(stream).await {
                answer(stream, "204 No Content").await;
            }
        }
    });
    let own = Authorities::read(&path("ca.pem")).unwrap();
    let failure = "cannot connect to the receiver: its certificate is";
    for (host, authorities, expected) in [
        ("hooks.test", &own, Ok(())),
        ("other.test", &own, Err(format!("{failure} for another name"))),
        (
            "hooks.test",
            &Authorities::default(),
            Err(format!("{failure} not trusted on this machine")),
        ),
    ] {
        let here = IpAddr::from(Ipv4Addr::LOCALHOST);
        let resolver = Arc::new(Answers(Mutex::new([vec![here]].into())));
        let settings = settings(&["127.0.0.1"]);
        let sender = WebhookSender::with_resolver(settings, None, authorities, resolver).unwrap();
        let url = format!("https://{host}:{}/", address.port());
        let outcome = sender.deliver(message(url), Timestamp::now()).await;
        match expected {
            Ok(()) => assert_eq!(outcome, Outcome::Delivered),
            Err(expected) => assert_eq!(reason(outcome), expected),
        }
    }
}
