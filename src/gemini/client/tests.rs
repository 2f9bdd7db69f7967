use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
};

use super::*;
use crate::gemini::SendCheck;

const ANSWER: &str =
    r#"{"candidates":[{"content":{"parts":[{"text":"Hi"}]},"finishReason":"STOP"}]}"#;
const LONG: Duration = Duration::from_secs(20);

/// A listener that each test serves, and the base URL for it.
async fn upstream(scheme: &str) -> (TcpListener, String) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let base = format!("{scheme}://{}", listener.local_addr().unwrap());
    (listener, base)
}

/// One call to the model `m` with a body of 5 bytes.
fn call(base: &str, timeout: Duration) -> impl Future<Output = Result<Answer, Error>> + use<> {
    let client = Client::new(base).unwrap();
    async move { call_with(&client, timeout).await }
}

async fn call_with(client: &Client, timeout: Duration) -> Result<Answer, Error> {
    let key = ApiKey::new("callers-key").unwrap();
    let model = Model::parse("m").unwrap();
    client
        .generate(
            &key,
            &model,
            Bytes::from_static(b"hello"),
            AnswerPart::First,
            SendContext::default(),
            timeout,
        )
        .await
}

/// Reads a request with a body of 5 bytes to its end.
async fn read_request(socket: &mut TcpStream) -> String {
    let mut request = Vec::new();
    while !request.ends_with(b"\r\n\r\nhello") {
        assert_ne!(socket.read_buf(&mut request).await.unwrap(), 0, "the request broke off");
    }
    String::from_utf8(request).unwrap()
}

async fn respond(socket: &mut TcpStream, status: &str, body: &str) {
    let head = format!("HTTP/1.1 {status}\r\ncontent-length: {}\r\n\r\n", body.len());
    socket.write_all(format!("{head}{body}").as_bytes()).await.unwrap();
}

#[tokio::test]
async fn a_call_is_a_post_with_the_key_in_a_header() {
    let (listener, base) = upstream("http").await;
    let serve = async {
        let (mut socket, _) = listener.accept().await.unwrap();
        let request = read_request(&mut socket).await;
        respond(&mut socket, "200 OK", ANSWER).await;
        request
    };
    let base = format!("{base}/some/prefix/");
    let (request, answer) = tokio::join!(serve, call(&base, LONG));

    assert_eq!(answer.unwrap().text, "Hi");
    let (head, _) = request.split_once("\r\n\r\n").unwrap();
    let (line, headers) = head.split_once("\r\n").unwrap();
    assert_eq!(line, "POST /some/prefix/v1beta/models/m:generateContent HTTP/1.1");
    let mut headers: Vec<_> =
        headers.lines().filter(|header| !header.starts_with("host:")).collect();
    headers.sort_unstable();
    assert_eq!(
        headers,
        [
            "accept-encoding: identity",
            "content-length: 5",
            "content-type: application/json",
            concat!("user-agent: gemini-concurrent-generation/", env!("CARGO_PKG_VERSION")),
            "x-goog-api-key: callers-key",
        ]
    );
}

#[tokio::test]
async fn http2_is_never_offered() {
    let (listener, base) = upstream("https").await;
    let serve = async {
        let (mut socket, _) = listener.accept().await.unwrap();
        let mut header = [0; 5];
        socket.read_exact(&mut header).await.unwrap();
        let mut hello = vec![0; u16::from_be_bytes([header[3], header[4]]).into()];
        socket.read_exact(&mut hello).await.unwrap();
        (header[0], hello)
    };
    let ((record, hello), failed) = tokio::join!(serve, call(&base, LONG));

    assert_eq!((record, hello[0]), (0x16, 0x01), "a handshake record with a ClientHello in it");
    let offers = |protocol: &[u8]| hello.windows(protocol.len()).any(|window| window == protocol);
    assert!(!offers(b"\x02h2"));
    assert_eq!(failed.unwrap_err().kind, ErrorKind::Connection);
}

#[tokio::test]
async fn every_call_in_flight_has_a_connection_of_its_own() {
    let (listener, base) = upstream("http").await;
    let client = Client::new(&base).unwrap();
    let serve = async {
        let mut sockets = Vec::new();
        for _ in 0..150 {
            let (mut socket, _) = listener.accept().await.unwrap();
            read_request(&mut socket).await;
            sockets.push(socket);
        }
        for socket in &mut sockets {
            respond(socket, "200 OK", ANSWER).await;
        }
    };
    let calls = (0..150).map(|_| call_with(&client, LONG));
    let ((), answers) = tokio::join!(serve, futures_util::future::join_all(calls));
    assert!(answers.iter().all(Result::is_ok));
}

#[tokio::test]
async fn a_dropped_call_closes_its_connection() {
    let (listener, base) = upstream("http").await;
    let call = tokio::spawn(call(&base, LONG));
    let (mut socket, _) = listener.accept().await.unwrap();
    read_request(&mut socket).await;
    call.abort();
    let rest = tokio::time::timeout(LONG, socket.read(&mut [0; 1])).await.unwrap();
    assert!(matches!(rest, Ok(0) | Err(_)), "{rest:?}");
}

#[tokio::test]
async fn a_call_times_out_even_in_the_middle_of_the_answer() {
    let (listener, base) = upstream("http").await;
    let serve = async {
        let (mut socket, _) = listener.accept().await.unwrap();
        read_request(&mut socket).await;
        socket.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 99\r\n\r\n{").await.unwrap();
        let _ = socket.read(&mut [0; 1]).await;
    };
    let ((), result) = tokio::join!(serve, call(&base, Duration::from_millis(200)));
    let error = result.unwrap_err();
    assert_eq!(error.kind, ErrorKind::Timeout);
    assert_eq!(error.message, "Gemini did not answer within 200ms");
    assert!(!error.is_transient(), "Gemini may still be working on it");
}

#[tokio::test]
async fn broken_connections_are_distinguished_from_answers() {
    for sent in ["", "HTTP/1.1 200 OK\r\n", "HTTP/1.1 200 OK\r\ncontent-length: 99\r\n\r\n{}"] {
        let (listener, base) = upstream("http").await;
        let serve = async {
            let (mut socket, _) = listener.accept().await.unwrap();
            read_request(&mut socket).await;
            socket.write_all(sent.as_bytes()).await.unwrap();
        };
        let ((), result) = tokio::join!(serve, call(&base, LONG));
        let error = result.unwrap_err();
        assert_eq!(error.kind, ErrorKind::BrokenOff, "{sent:?}: Gemini may have run it");
        assert!(error.is_transient() && !error.accepted_model, "{sent:?}");
    }
    let (listener, base) = upstream("http").await;
    drop(listener);
    let error = call(&base, LONG).await.unwrap_err();
    assert_eq!(error.kind, ErrorKind::Connection);
    assert_eq!(error.message, "cannot connect to Gemini: the connection was refused");
    let cause = error.cause().unwrap();
    assert!(cause.starts_with(&error.message) && cause.contains("Connection refused"), "{cause}");
}

#[tokio::test]
async fn a_connection_closed_while_idle_is_not_an_error() {
    let (listener, base) = upstream("http").await;
    let client = Client::new(&base).unwrap();
    for _ in 0..3 {
        let serve = async {
            let (mut socket, _) = listener.accept().await.unwrap();
            read_request(&mut socket).await;
            respond(&mut socket, "200 OK", ANSWER).await;
        };
        let ((), answer) = tokio::join!(serve, call_with(&client, LONG));
        answer.unwrap();
    }
}

#[tokio::test]
async fn a_connection_reset_before_the_answer_may_have_carried_the_call() {
    let (listener, base) = upstream("http").await;
    let client = Client::new(&base).unwrap();
    let serve = async {
        let (mut socket, _) = listener.accept().await.unwrap();
        read_request(&mut socket).await;
        respond(&mut socket, "200 OK", ANSWER).await;
        // The next call uses the same connection and gets no answer.
        read_request(&mut socket).await;
        drop(socket);
    };
    let calls = async {
        call_with(&client, LONG).await.unwrap();
        call_with(&client, LONG).await.unwrap_err()
    };
    let ((), error) = tokio::join!(serve, calls);
    assert_eq!(error.kind, ErrorKind::BrokenOff);
}

#[tokio::test]
async fn the_retry_after_header_is_read() {
    let seven = Some(Duration::from_secs(7));
    for (status, expected) in [
        ("503 Service Unavailable", ErrorKind::Overloaded(seven)),
        ("500 Internal Server Error", ErrorKind::Unavailable),
    ] {
        let (listener, base) = upstream("http").await;
        let serve = async {
            let (mut socket, _) = listener.accept().await.unwrap();
            read_request(&mut socket).await;
            respond(&mut socket, &format!("{status}\r\nretry-after: 7"), "").await;
        };
        let ((), result) = tokio::join!(serve, call(&base, LONG));
        assert_eq!(result.unwrap_err().kind, expected);
    }
}

#[tokio::test]
async fn an_error_never_shows_the_key_and_redirects_are_not_followed() {
    let quoting = r#"{"error":{"code":403,"message":"Bad consumer callers-key, sorry."}}"#;
    for (status, body, kind, message) in [
        ("403 Forbidden", quoting, ErrorKind::PermissionDenied, "Bad consumer ***********, sorry."),
        (
            "502 Bad Gateway",
            "<html>",
            ErrorKind::Unavailable,
            "Gemini answered 502 Bad Gateway with content of no type instead of JSON",
        ),
        ("302 Found\r\nlocation: /x", "", ErrorKind::Malformed, "Gemini answered 302 Found"),
    ] {
        let (listener, base) = upstream("http").await;
        let serve = async {
            let (mut socket, _) = listener.accept().await.unwrap();
            read_request(&mut socket).await;
            respond(&mut socket, status, body).await;
        };
        let ((), result) = tokio::join!(serve, call(&base, LONG));
        let error = result.unwrap_err();
        assert_eq!((error.kind, &*error.message), (kind, message));
    }
}

#[tokio::test]
async fn an_endless_answer_is_cut_off() {
    let (listener, base) = upstream("http").await;
    let serve = async {
        let (mut socket, _) = listener.accept().await.unwrap();
        read_request(&mut socket).await;
        socket.write_all(b"HTTP/1.1 200 OK\r\n\r\n").await.unwrap();
        while socket.write_all(&[b' '; 1 << 16]).await.is_ok() {}
    };
    let ((), result) = tokio::join!(serve, call(&base, LONG));
    let error = result.unwrap_err();
    assert_eq!(error.kind, ErrorKind::Malformed);
    assert_eq!(error.message, "Gemini's answer is too long");
}

#[test]
fn a_base_url_has_a_host_and_a_path_and_nothing_else() {
    for (given, url) in [
        ("https://g.example", "https://g.example/v1beta/models/m:generateContent"),
        ("https://g.example/", "https://g.example/v1beta/models/m:generateContent"),
        ("http://[::1]:5005/a/b", "http://[::1]:5005/a/b/v1beta/models/m:generateContent"),
    ] {
        let base = Base::parse(given).unwrap();
        let call = base.url(format_args!("/v1beta/models/m:generateContent"));
        assert_eq!(call.to_string(), url);
    }
    for given in [
        "",
        "g.example",
        "ftp://g.example",
        "https://u:p@g.example",
        "http://g.example?key=k",
        "http://g.example/#x",
        "http://g.example:99999",
        "http://g.example:0",
        "http://g.example:",
        "http://[::1]:65536",
    ] {
        assert!(Client::new(given).is_err(), "{given:?}");
    }
}

#[tokio::test]
async fn a_call_that_may_no_longer_be_sent_writes_nothing() {
    let (listener, base) = upstream("http").await;
    let client = Client::new(&base).unwrap();
    let (key, model) = (ApiKey::new("callers-key").unwrap(), Model::parse("m").unwrap());
    let call = |may_send: bool| {
        let send_check: SendCheck = Arc::new(move || may_send);
        client.generate(
            &key,
            &model,
            Bytes::from_static(b"hello"),
            AnswerPart::First,
            SendContext::checked(Some(send_check)),
            LONG,
        )
    };
    // On a new connection, and on one that was used before.
    for used in [false, true] {
        let serve = async {
            let (mut socket, _) = listener.accept().await.unwrap();
            if used {
                read_request(&mut socket).await;
                respond(&mut socket, "200 OK", ANSWER).await;
            }
            let mut rest = Vec::new();
            socket.read_to_end(&mut rest).await.unwrap();
            String::from_utf8(rest).unwrap()
        };
        let calls = async {
            if used {
                call(true).await.unwrap();
            }
            call(false).await
        };
        let (written, result) = tokio::join!(serve, calls);
        assert_eq!(written, "");
        let error = result.unwrap_err();
        assert_eq!(error.kind, ErrorKind::Connection);
        assert!(error.is_transient(), "the call can be admitted again");
    }
}
