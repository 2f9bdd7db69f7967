//! Calls to Gemini through a proxy, and private certificate authorities.

use std::net::{Ipv4Addr, SocketAddr};
use std::process::Command;
use std::sync::{Arc, Mutex};

use base64::prelude::{BASE64_STANDARD, Engine};
use gemini_concurrent_generation::simulator::{Options, Simulator};
use reqwest::StatusCode;
use serde_json::json;
use tempfile::TempDir;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, copy_bidirectional};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::ServerConfig;
use tokio_rustls::rustls::crypto::ring;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject};
use tokio_util::sync::{CancellationToken, DropGuard};

use crate::live;
use crate::process::{Process, Start};
use crate::recording::Recording;
use crate::sharing::openssl;
use crate::support::{Answer, answer, closed_port, listen};

const NO_CONNECTION: &str = "cannot connect to Gemini: ";
const UNAUTHORIZED: &str =
    "the proxy requires a user name and a password, or rejects those it was given (407)";

/// Listens, and runs a function for each connection.
pub async fn accept_each<F: Future<Output = Option<()>> + Send + 'static>(
    serve: impl Fn(TcpStream) -> F + Send + Clone + 'static,
) -> SocketAddr {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.expect("a free port");
    let address = listener.local_addr().expect("its address");
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let serve = serve.clone();
            tokio::spawn(async move { serve(stream).await });
        }
    });
    address
}

/// Copies between a client and a server until both are done.
async fn copy_both_ways(
    mut client: impl AsyncRead + AsyncWrite + Unpin,
    server: SocketAddr,
) -> Option<()> {
    let mut server = TcpStream::connect(server).await.ok()?;
    copy_bidirectional(&mut client, &mut server).await.ok().map(drop)
}

/// Reads the head of a request.
async fn head(client: &mut TcpStream) -> Option<String> {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(client.read_u8().await.ok()?);
    }
    Some(String::from_utf8(head).expect("a head"))
}

/// An HTTP proxy that sends every host to one address.
#[derive(Clone)]
struct HttpProxy {
    upstream: SocketAddr,
    /// The required `Proxy-Authorization`.
    authorization: Option<String>,
    /// The status line with which CONNECT is refused.
    refusal: Option<&'static str>,
    heads: Arc<Mutex<Vec<String>>>,
}

impl HttpProxy {
    fn to(upstream: SocketAddr) -> Self {
        Self { upstream, authorization: None, refusal: None, heads: Arc::default() }
    }

    fn with_password(self, credentials: &str) -> Self {
        let authorization = format!("Basic {}", BASE64_STANDARD.encode(credentials));
        Self { authorization: Some(authorization), ..self }
    }

    async fn start(&self) -> SocketAddr {
        let proxy = self.clone();
        accept_each(move |stream| proxy.clone().serve(stream)).await
    }

    /// The request lines so far.
    fn requests(&self) -> Vec<String> {
        let heads = self.heads.lock().unwrap();
        heads.iter().filter_map(|head| head.lines().next()).map(str::to_owned).collect()
    }

    async fn serve(self, mut client: TcpStream) -> Option<()> {
        let head = head(&mut client).await?;
        self.heads.lock().unwrap().push(head.clone());
        let given = head.lines().find_map(|line| line.strip_prefix("proxy-authorization: "));
        let refused = (self.authorization.as_deref() != given && self.authorization.is_some())
            .then_some("407 Proxy Authentication Required");
        if let Some(status) = refused.or(self.refusal) {
            let page = "<html>the-page-of-the-proxy</html>";
            let answer = format!(
                "HTTP/1.1 {status}\r\nproxy-authenticate: Basic\r\ncontent-type: text/html\r\n\
                 content-length: {}\r\nconnection: close\r\n\r\n{page}",
                page.len()
            );
            client.write_all(answer.as_bytes()).await.ok()?;
            return client.shutdown().await.ok();
        }
        if head.starts_with("CONNECT ") {
            client.write_all(b"HTTP/1.1 200 Connection established\r\n\r\n").await.ok()?;
            return copy_both_ways(client, self.upstream).await;
        }
        // Forwarded as a proxy does: path only, without the proxy's own headers, one request for
        // each connection.
        let (method, rest) = head.split_once(" http://").expect("a whole URL");
        let (_, path) = rest.split_once('/').expect("a path");
        let passed_on: String = format!("{method} /{path}")
            .split_inclusive("\r\n")
            .filter(|line| !line.starts_with("proxy-authorization"))
            .collect();
        let passed_on = passed_on.replacen("\r\n", "\r\nconnection: close\r\n", 1);
        let mut server = TcpStream::connect(self.upstream).await.ok()?;
        server.write_all(passed_on.as_bytes()).await.ok()?;
        copy_bidirectional(&mut client, &mut server).await.ok().map(drop)
    }
}

/// A SOCKS5 proxy with the user `user` and the password `secret`, which sends every host to one
/// address. Source: RFCs 1928 and 1929.
#[derive(Clone)]
struct SocksProxy {
    upstream: SocketAddr,
    /// The reply to a connect request; 0 means success.
    reply: u8,
    /// The requested hosts: names or addresses.
    asked: Arc<Mutex<Vec<String>>>,
}

impl SocksProxy {
    fn to(upstream: SocketAddr) -> Self {
        Self { upstream, reply: 0, asked: Arc::default() }
    }

    async fn start(&self) -> SocketAddr {
        let proxy = self.clone();
        accept_each(move |stream| proxy.clone().serve(stream)).await
    }

    async fn serve(self, mut client: TcpStream) -> Option<()> {
        assert_eq!(client.read_u8().await.ok()?, 5);
        let methods = bytes(&mut client).await?;
        let with_password = methods.contains(&2);
        client.write_all(&[5, if with_password { 2 } else { 0 }]).await.ok()?;
        if with_password {
            assert_eq!(client.read_u8().await.ok()?, 1);
            let credentials = [bytes(&mut client).await?, bytes(&mut client).await?];
            let is_right = credentials == [b"user".to_vec(), b"secret".to_vec()];
            client.write_all(&[1, u8::from(!is_right)]).await.ok()?;
        }
        let mut request = [0; 4];
        client.read_exact(&mut request).await.ok()?;
        assert_eq!(request[..3], [5, 1, 0]);
        let host = match request[3] {
            1 => Ipv4Addr::from(client.read_u32().await.ok()?).to_string(),
            3 => String::from_utf8(bytes(&mut client).await?).ok()?,
            other => panic!("address type {other}"),
        };
        let port = client.read_u16().await.ok()?;
        self.asked.lock().unwrap().push(format!("{host}:{port}"));
        client.write_all(&[5, self.reply, 0, 1, 0, 0, 0, 0, 0, 0]).await.ok()?;
        copy_both_ways(client, self.upstream).await
    }
}

/// Bytes preceded by their number.
async fn bytes(stream: &mut TcpStream) -> Option<Vec<u8>> {
    let mut bytes = vec![0; stream.read_u8().await.ok()?.into()];
    stream.read_exact(&mut bytes).await.ok()?;
    Some(bytes)
}

/// A certificate for `gemini.test` and `localhost`, and the authority that signed it.
pub struct Certificates(TempDir);

impl Certificates {
    pub fn new() -> Self {
        let folder = TempDir::new().unwrap();
        let key = "-newkey rsa:2048 -nodes";
        let names = "subjectAltName=DNS:gemini.test,DNS:localhost";
        std::fs::write(folder.path().join("names"), names).unwrap();
        openssl(folder.path(), &format!("req -x509 {key} -keyout ca.key -out ca.pem -subj /CN=ca"));
        openssl(folder.path(), &format!("req {key} -keyout key -out request -subj /CN=gemini"));
        let sign = "x509 -req -in request -CA ca.pem -CAkey ca.key -CAcreateserial -out pem";
        openssl(folder.path(), &format!("{sign} -extfile names"));
        Self(folder)
    }

    pub fn path(&self, name: &str) -> String {
        self.0.path().join(name).to_str().unwrap().to_owned()
    }

    /// Terminates TLS in front of a server. Returns its address.
    pub async fn terminate_tls(&self, server: SocketAddr) -> SocketAddr {
        let chain = CertificateDer::from_pem_file(self.path("pem")).unwrap();
        let key = PrivateKeyDer::from_pem_file(self.path("key")).unwrap();
        let config = ServerConfig::builder_with_provider(ring::default_provider().into())
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(vec![chain], key)
            .unwrap();
        let acceptor = TlsAcceptor::from(Arc::new(config));
        accept_each(move |stream| {
            let acceptor = acceptor.clone();
            async move { copy_both_ways(acceptor.accept(stream).await.ok()?, server).await }
        })
        .await
    }
}

/// A simulator of Gemini that runs until the guard is dropped.
async fn simulator() -> (SocketAddr, DropGuard) {
    let stop = CancellationToken::new();
    let address = listen(Simulator::new(Options::default()).router(), &stop).await;
    (address, stop.drop_guard())
}

/// The service over a base URL, with these variables.
fn service_over(base_url: &str, variables: &[(&str, &str)]) -> Start {
    let start = Start::with_arguments(&["serve"])
        .set("GEMINI_API_KEY", "the-secret-key")
        .set("GEMINI_MAX_ATTEMPTS", "1")
        .set("GEMINI_BASE_URL", base_url);
    variables.iter().fold(start, |start, (name, value)| start.set(name, value))
}

async fn chat(service: &Process) -> Answer {
    answer(service.post("/chat", &json!({"prompt": "Hello"}))).await
}

/// The answer to a chat from a service started for it.
async fn one_chat(base_url: &str, variables: &[(&str, &str)]) -> Answer {
    chat(&service_over(base_url, variables).run().await).await
}

/// Checks that a failed chat's detail gives this reason.
fn check_failure(answer: &Answer, reason: &str) {
    let expected =
        json!({"detail": format!("{NO_CONNECTION}{reason}"), "code": "upstream_connection"});
    assert_eq!((answer.status, &answer.body), (StatusCode::BAD_GATEWAY, &expected));
}

#[tokio::test]
async fn a_tunnel_reaches_a_tls_upstream_certified_by_a_private_authority() {
    let certificates = Certificates::new();
    let (simulator, _stop) = simulator().await;
    let proxy =
        HttpProxy::to(certificates.terminate_tls(simulator).await).with_password("user:p@ss");
    let url = format!("http://user:p%40ss@{}", proxy.start().await);
    let authority = certificates.path("ca.pem");
    let variables = [("HTTPS_PROXY", &*url), ("GEMINI_CA_FILE", &*authority)];
    let service = service_over("https://gemini.test", &variables).run().await;
    let answered = chat(&service).await;
    assert_eq!(answered.status, 200, "{answered:?}");
    assert_eq!(proxy.requests(), ["CONNECT gemini.test:443 HTTP/1.1"]);
    let log = service.log();
    let shown = url.rsplit_once('@').expect("a host").1;
    assert!(log.lines().any(|line| line.contains("proxy") && line.contains(shown)), "{log}");
    for secret in ["user", "p@ss", "p%40ss", "dXNlcjpwQHNz"] {
        assert!(!log.contains(secret), "{log}");
    }
    // No other authority certifies it. With the private authority, the system's are not needed.
    let untrusted = one_chat("https://gemini.test", &variables[..1]).await;
    check_failure(&untrusted, "its certificate is not trusted on this machine");
    let alone = [variables[0], variables[1], ("SSL_CERT_FILE", "/does/not/exist")];
    assert_eq!(one_chat("https://gemini.test", &alone).await.status, 200);
}

#[tokio::test]
async fn a_live_session_passes_a_tunnel_to_an_upstream_with_tls() {
    let certificates = Certificates::new();
    let (simulator, _stop) = simulator().await;
    let proxy = HttpProxy::to(certificates.terminate_tls(simulator).await);
    let url = format!("http://{}", proxy.start().await);
    let authority = certificates.path("ca.pem");
    let variables = [("HTTPS_PROXY", &*url), ("GEMINI_CA_FILE", &*authority)];
    let service = service_over("https://gemini.test", &variables).run().await;
    let mut client = live::connect(service.address, live::BIDI, &[]).await.expect("a session");
    client.set_up().await;
    client.ask("Hello").await;
    assert_eq!(client.turn().await, "Simulated answer to: Hello");
    assert_eq!(proxy.requests(), ["CONNECT gemini.test:443 HTTP/1.1"]);
}

#[tokio::test]
async fn the_proxy_itself_may_be_reached_over_tls() {
    let certificates = Certificates::new();
    let (simulator, _stop) = simulator().await;
    let proxy = HttpProxy::to(certificates.terminate_tls(simulator).await);
    let address = certificates.terminate_tls(proxy.start().await).await;
    let url = format!("https://localhost:{}", address.port());
    let authority = certificates.path("ca.pem");
    let variables = [("all_proxy", &*url), ("GEMINI_CA_FILE", &*authority)];
    assert_eq!(one_chat("https://gemini.test:8443", &variables).await.status, 200);
    assert_eq!(proxy.requests(), ["CONNECT gemini.test:8443 HTTP/1.1"]);
    let untrusted = one_chat("https://gemini.test", &variables[..1]).await;
    let reason = "the proxy cannot be reached: its certificate is not trusted on this machine";
    check_failure(&untrusted, reason);
}

#[tokio::test]
async fn requests_to_a_plain_http_upstream_are_forwarded_by_the_proxy() {
    const ANSWER: &str =
        r#"{"candidates":[{"content":{"parts":[{"text":"Hi"}]},"finishReason":"STOP"}]}"#;
    let upstream = Recording::play(200, "application/json", vec![ANSWER.into()]).await;
    let address = upstream.base_url.strip_prefix("http://").unwrap().parse().unwrap();
    let proxy = HttpProxy::to(address).with_password("user:secret");
    let url = format!("http://user:secret@{}", proxy.start().await);
    let base_url = "http://gemini.test:8080/prefix";
    let service = service_over(base_url, &[("http_proxy", &url)]).run().await;
    assert_eq!(chat(&service).await.body["response"], "Hi");
    let asked = proxy.requests();
    assert!(asked[0].starts_with(&format!("POST {base_url}/v1beta/models/")), "{asked:?}");
    let seen = upstream.requests();
    assert!(seen[0].contains("host: gemini.test:8080"), "{seen:?}");
    assert!(!seen[0].contains("proxy-authorization"), "{seen:?}");
    // A client's own proxy password is not relayed.
    let listed = service.get("/v1beta/models").header("proxy-authorization", "Basic other");
    assert_eq!(listed.send().await.unwrap().status(), 200);
    assert_eq!(proxy.requests().len(), 2);
}

#[tokio::test]
async fn a_proxys_refusal_is_reported() {
    let nowhere = SocketAddr::from((Ipv4Addr::LOCALHOST, closed_port()));
    let open = HttpProxy::to(nowhere);
    let refusing = |status| HttpProxy { refusal: Some(status), ..open.clone() };
    let refused = |status| format!("the proxy refused to connect ({status})");
    for (proxy, reason) in [
        (open.clone().with_password("user:secret"), UNAUTHORIZED.to_owned()),
        (refusing("403 the-reason-of-the-proxy"), refused("403 Forbidden")),
        (refusing("502 Bad Gateway"), refused("502 Bad Gateway")),
    ] {
        let url = proxy.start().await.to_string();
        let service = service_over("https://gemini.test", &[("HTTPS_PROXY", &url)]).run().await;
        check_failure(&chat(&service).await, &reason);
        service.until_logged(&reason).await;
        let log = service.log();
        assert!(!log.contains("of-the-proxy") && !log.contains("the-secret-key"), "{log}");
    }
    // With a forwarding proxy, only this status cannot be the upstream's.
    let proxy = open.with_password("user:secret");
    let url = format!("http://user:wrong@{}", proxy.start().await);
    let service = service_over("http://gemini.test", &[("HTTP_PROXY", &url)]).run().await;
    check_failure(&chat(&service).await, UNAUTHORIZED);
    let listed = answer(service.get("/v1beta/models")).await;
    assert_eq!(listed.status, 502);
    assert_eq!(listed.body["error"]["message"], format!("{NO_CONNECTION}{UNAUTHORIZED}"));
}

#[tokio::test]
async fn an_unusable_proxy_is_reported() {
    let closed = format!("127.0.0.1:{}", closed_port());
    // Everything sent is read first, so that the connection ends without a reset.
    let hangs_up = accept_each(|mut stream| async move { head(&mut stream).await.map(drop) }).await;
    let hangs_up = hangs_up.to_string();
    let unknown = format!("{}.invalid", "a".repeat(64));
    let unreachable = "the proxy cannot be reached";
    for (url, reason) in [
        (closed, format!("{unreachable}: the connection was refused")),
        (unknown, format!("{unreachable}: its host name cannot be resolved")),
        (hangs_up, "the proxy closed the connection, or is not an HTTP proxy".to_owned()),
    ] {
        let failed = one_chat("https://gemini.test", &[("HTTPS_PROXY", &url)]).await;
        check_failure(&failed, &reason);
    }
}

#[tokio::test]
async fn a_socks_proxy_resolves_names_only_with_socks5h() {
    let (simulator, _stop) = simulator().await;
    // A resolver reads a number as an address without a lookup; other programs read it as a name.
    let base_url = "http://2130706433:8080";
    for (scheme, asked) in [("socks5", "127.0.0.1:8080"), ("socks5h", "2130706433:8080")] {
        let proxy = SocksProxy::to(simulator);
        let url = format!("{scheme}://user:secret@{}", proxy.start().await);
        assert_eq!(one_chat(base_url, &[("ALL_PROXY", &url)]).await.status, 200, "{scheme}");
        assert_eq!(*proxy.asked.lock().unwrap(), [asked]);
    }
    let certificates = Certificates::new();
    let proxy = SocksProxy::to(certificates.terminate_tls(simulator).await);
    let url = format!("socks5h://{}", proxy.start().await);
    let authority = certificates.path("ca.pem");
    let variables = [("HTTPS_PROXY", &*url), ("GEMINI_CA_FILE", &*authority)];
    assert_eq!(one_chat("https://gemini.test", &variables).await.status, 200);
    assert_eq!(*proxy.asked.lock().unwrap(), ["gemini.test:443"]);
}

#[tokio::test]
async fn a_socks_proxys_refusal_is_reported() {
    let nowhere = SocketAddr::from((Ipv4Addr::LOCALHOST, closed_port()));
    for (reply, password, reason) in
        [(0, "wrong", "credentials not accepted"), (2, "secret", "connection not allowed")]
    {
        let proxy = SocksProxy { reply, ..SocksProxy::to(nowhere) };
        let url = format!("socks5h://user:{password}@{}", proxy.start().await);
        let failed = one_chat("http://gemini.test", &[("HTTP_PROXY", &url)]).await;
        check_failure(&failed, &format!("the proxy did not connect (SOCKS5: {reason})"));
    }
}

#[tokio::test]
async fn no_proxy_hosts_and_loopback_are_reached_directly() {
    let (simulator, _stop) = simulator().await;
    let proxy = format!("http://127.0.0.1:{}", closed_port());
    let proxy = ("HTTP_PROXY", &*proxy);
    // This address reaches this machine but is not recognized as loopback.
    let base_url = format!("http://0.0.0.0:{}", simulator.port());
    let failed = one_chat(&base_url, &[proxy]).await;
    check_failure(&failed, "the proxy cannot be reached: the connection was refused");
    for spared in [("NO_PROXY", "x.test, 0.0.0.0/8"), ("no_proxy", "*"), ("REQUEST_METHOD", "GET")]
    {
        assert_eq!(one_chat(&base_url, &[proxy, spared]).await.status, 200, "{spared:?}");
    }
    let local = format!("http://localhost:{}", simulator.port());
    assert_eq!(one_chat(&local, &[proxy]).await.status, 200);
    let simulated = Start::simulated().set("HTTP_PROXY", proxy.1).set("HTTPS_PROXY", proxy.1);
    assert_eq!(chat(&simulated.run().await).await.status, 200);
}

#[tokio::test]
async fn unusable_network_settings_fail_the_start_and_are_named() {
    let folder = TempDir::new().unwrap();
    let file = |name: &str, text: &str| {
        let path = folder.path().join(name);
        std::fs::write(&path, text).unwrap();
        path.to_str().unwrap().to_owned()
    };
    let empty = file("empty", "");
    let broken = "-----BEGIN CERTIFICATE-----\nc2VjcmV0\n-----END CERTIFICATE-----\n";
    let broken = file("broken", broken);
    // Nobody writes to it, so that opening it would never end.
    let pipe = folder.path().join("pipe").to_str().unwrap().to_owned();
    assert!(Command::new("mkfifo").arg(&pipe).status().unwrap().success());
    for (name, value, expected) in [
        ("HTTPS_PROXY", "ftp://user:secret@proxy", "HTTPS_PROXY: expected the URL of an http"),
        ("https_proxy", "http://user:secret/@proxy:1", "https_proxy: expected the URL"),
        ("ALL_PROXY", "socks5://secret@proxy:port", "ALL_PROXY: expected the URL"),
        ("HTTPS_PROXY", "\"http://user:secret@proxy\"", "HTTPS_PROXY: expected a value without"),
        ("GEMINI_CA_FILE", "/does/not/exist", "that can be read: No such file"),
        ("GEMINI_CA_FILE", "/", "that can be read: Is a directory"),
        ("GEMINI_CA_FILE", &pipe, "that can be read: it is not a regular file"),
        ("GEMINI_PRICES_FILE", &pipe, "cannot be read: it is not a regular file"),
        ("GEMINI_CA_FILE", &empty, "GEMINI_CA_FILE: expected a PEM file with at least one"),
        (
            "GEMINI_CA_FILE",
            &broken,
            "GEMINI_CA_FILE: expected a PEM file of certificates: number 1",
        ),
    ] {
        let output = service_over("https://gemini.test", &[(name, value)]).output().await;
        let log = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(1), "{log}");
        assert!(log.contains(expected) && !log.contains("secret"), "{log}");
    }
    let no_authorities =
        service_over("https://gemini.test", &[("SSL_CERT_FILE", "/does/not/exist")]);
    // Variables of the TLS library may be in `.env` too.
    let in_the_file =
        service_over("https://gemini.test", &[]).dotenv("SSL_CERT_FILE='/does/$not/\"exist\"'");
    for start in [no_authorities, in_the_file] {
        let log = String::from_utf8(start.output().await.stderr).unwrap();
        assert!(log.contains("this machine has no CA certificates"), "{log}");
    }
}
