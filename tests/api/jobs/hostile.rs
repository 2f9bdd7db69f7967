//! Uploads that are broken, slow, or made to fill memory.

use std::io::Write;
use std::time::Duration;

use bytes::Bytes;
use flate2::Compression;
use flate2::write::GzEncoder;
use futures_util::stream::{self, StreamExt};
use reqwest::{Body, StatusCode};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use super::{JobService, accepted, chats, faults};
use crate::support::{answer, until};

async fn service() -> JobService {
    JobService::without_engine(|config| {
        config.max_body_bytes = 1 << 20;
        config.client_timeout = Duration::from_millis(500);
    })
    .await
}

#[tokio::test]
async fn a_line_that_cannot_be_read_is_refused_and_nothing_is_stored() {
    let service = service().await;
    let nested = format!("{{\"prompt\": {}1{}}}", "[".repeat(100_000), "]".repeat(100_000));
    let open = format!("{{\"prompt\": {}", "[".repeat(100_000));
    let lines: [(&[u8], &str); 8] = [
        (nested.as_bytes(), "too_deep"),
        (open.as_bytes(), "too_deep"),
        (br#"{"prompt": "a", "generation_config": {"temperature": 1e999}}"#, "number_out_of_range"),
        (b"{\"prompt\": \"a\0b\"}", "json_invalid"),
        (b"{\"prompt\": \"\xff\"}", "string_unicode"),
        (br#"{"prompt": "\ud83d"}"#, "string_unicode"),
        (b"\0", "json_invalid"),
        (b"{\"prompt\": \"a\"} {\"prompt\": \"b\"}", "json_invalid"),
    ];
    for (line, kind) in lines {
        let text = [b"{\"prompt\": \"a\"}\n", line, b"\n"].concat();
        let refused = answer(service.upload("chat", text)).await;
        assert_eq!(refused.status, StatusCode::UNPROCESSABLE_ENTITY, "{kind}");
        let found = faults(&refused);
        assert!(found[0].0.starts_with("[\"body\",\"line\",2"), "{found:?}");
        assert_eq!(found[0].1, kind, "{}", String::from_utf8_lossy(&line[..line.len().min(60)]));
    }
    for kind in ["openai", "gemini"] {
        for body in [&*nested, &*open, "{\"body\": \"\0\"}", "{\"request\": 1e999}"] {
            let refused = answer(service.upload(kind, body.to_owned())).await;
            assert_eq!(refused.status, StatusCode::UNPROCESSABLE_ENTITY, "{kind}");
        }
    }
    assert_eq!(service.list().await, [Value::Null; 0]);
    assert_eq!(service.gateway.bodies.used(), 0);
}

#[tokio::test]
async fn a_line_without_an_end_is_refused_before_it_fills_memory() {
    let service = service().await;
    let piece = Bytes::from(vec![b'x'; 64 * 1024]);
    let endless = stream::repeat(piece).map(Ok::<_, std::io::Error>);
    let begun = service.upload("chat", Body::wrap_stream(endless)).send().await;
    // The answer may be lost when the connection closes while the client still sends.
    if let Ok(refused) = begun {
        assert_eq!(refused.status(), StatusCode::PAYLOAD_TOO_LARGE);
    }
    until("no memory is held", || service.gateway.bodies.used() == 0).await;
    assert_eq!(service.list().await, [Value::Null; 0]);
}

#[tokio::test]
async fn a_body_that_unpacks_to_much_more_is_refused() {
    let service = service().await;
    let bomb = |byte: u8| {
        let mut encoder = GzEncoder::new(Vec::new(), Compression::best());
        (0..16).for_each(|_| encoder.write_all(&[byte; 1 << 20]).unwrap());
        encoder.finish().unwrap()
    };
    let spaces = bomb(b' ');
    for (encoding, body) in [
        ("gzip", spaces.clone()),
        ("gzip", bomb(b'\n')),
        ("zstd", zstd::encode_all(&vec![b'\n'; 16 << 20][..], 3).unwrap()),
    ] {
        let request = service.upload("chat", body).header("content-encoding", encoding);
        let refused = answer(request).await;
        assert_eq!(refused.status, StatusCode::PAYLOAD_TOO_LARGE, "{encoding}: {refused:?}");
    }
    for (encoding, body) in [
        ("gzip", spaces[..500].to_vec()),
        ("gzip", b"{\"prompt\": \"a\"}\n".to_vec()),
        ("zstd", b"{\"prompt\": \"a\"}\n".to_vec()),
        ("br", b"{\"prompt\": \"a\"}\n".to_vec()),
    ] {
        let request = service.upload("chat", body).header("content-encoding", encoding);
        let refused = answer(request).await;
        assert_eq!(refused.body["code"], "body_not_decoded", "{encoding}: {refused:?}");
    }
    let request = service.upload("chat", "{}").header("content-encoding", "compress");
    assert_eq!(answer(request).await.status, StatusCode::UNSUPPORTED_MEDIA_TYPE);
    until("no memory is held", || service.gateway.bodies.used() == 0).await;
}

#[tokio::test]
async fn millions_of_empty_lines_are_skipped() {
    let service = service().await;
    let empty =
        stream::iter((0..64).map(|_| Ok::<_, std::io::Error>(Bytes::from(vec![b'\n'; 64 * 1024]))));
    let last = stream::iter([Ok(Bytes::from_static(b"{\"prompt\": 7}"))]);
    let refused = answer(service.upload("chat", Body::wrap_stream(empty.chain(last)))).await;
    let place = format!("[\"body\",\"line\",{},\"prompt\"]", 64 * 64 * 1024 + 1);
    assert_eq!(faults(&refused), [(place, "string_type".to_owned())]);
}

#[tokio::test]
async fn a_sender_that_pauses_for_too_long_is_refused() {
    let service = service().await;
    let first = stream::iter([Ok::<_, std::io::Error>(Bytes::from(chats(["a".to_owned()])))]);
    let stalled = first.chain(stream::pending());
    let refused = answer(service.upload("chat", Body::wrap_stream(stalled))).await;
    assert_eq!(
        (refused.status, &refused.body["code"]),
        (StatusCode::REQUEST_TIMEOUT, &json!("client_timeout"))
    );
    // One that goes on in time may take as long as it needs.
    let slow = stream::iter(0..8).then(async |n| {
        tokio::time::sleep(Duration::from_millis(150)).await;
        Ok::<_, std::io::Error>(Bytes::from(chats([n.to_string()])))
    });
    let id = accepted(answer(service.upload("chat", Body::wrap_stream(slow))).await);
    assert_eq!(service.job(&id).await["total"], 8);
}

#[tokio::test]
async fn an_upload_whose_connection_breaks_stores_nothing() {
    let service = service().await;
    // More than one block is stored before it breaks.
    let text = chats((0..30_000).map(|n| format!("question {n} {}", "x".repeat(100))));
    let head = format!(
        "POST /jobs?kind=chat HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/x-ndjson\r\n\
         content-length: {}\r\n\r\n",
        text.len() + 1
    );
    let mut connection = TcpStream::connect(service.address).await.unwrap();
    connection.write_all(head.as_bytes()).await.unwrap();
    connection.write_all(text.as_bytes()).await.unwrap();
    until("it is being read", || service.gateway.bodies.used() > 0).await;
    drop(connection);
    until("no memory is held", || service.gateway.bodies.used() == 0).await;
    assert_eq!(service.list().await, [Value::Null; 0]);
    // A body of chunks that ends without its last chunk is broken too.
    let mut connection = TcpStream::connect(service.address).await.unwrap();
    let head =
        head.replace(&format!("content-length: {}", text.len() + 1), "transfer-encoding: chunked");
    connection
        .write_all(format!("{head}10\r\n{{\"prompt\": \"ab\"}}\r\n").as_bytes())
        .await
        .unwrap();
    connection.shutdown().await.unwrap();
    let mut answered = String::new();
    connection.read_to_string(&mut answered).await.unwrap();
    assert!(answered.is_empty() || answered.contains("body_incomplete"), "{answered}");
    assert_eq!(service.list().await, [Value::Null; 0]);
}

#[tokio::test]
async fn a_form_that_is_none_is_refused() {
    let service = service().await;
    let send = |body: Vec<u8>| {
        let request = service.http.post(service.url("/jobs?kind=chat")).body(body);
        answer(request.header("content-type", "multipart/form-data; boundary=x"))
    };
    let field = |name: &str, value: &str| {
        format!("--x\r\nContent-Disposition: form-data; name=\"{name}\"\r\n\r\n{value}\r\n")
    };
    let file = field("file\"; filename=\"a", "{\"prompt\": \"a\"}");
    let endless = [&b"--x\r\nContent-Disposition: form-data; x="[..], &[b'y'; 4 << 20]].concat();
    for (body, status) in [
        (format!("{}--x--\r\n", field("kind", "chat")).into_bytes(), 422),
        (format!("{}{file}--x--\r\n", field("nonsense", "1")).into_bytes(), 422),
        (format!("{file}{}--x--\r\n", field("job_name", "late")).into_bytes(), 422),
        (field("job_name", &"x".repeat(5 << 20)).into_bytes(), 422),
        (file.clone().into_bytes(), 400),
        (b"garbage".to_vec(), 400),
        (endless, 422),
    ] {
        let refused = send(body).await;
        assert_eq!(refused.status.as_u16(), status, "{refused:?}");
    }
    accepted(send(format!("{}{file}--x--\r\n", field("purpose", "batch")).into_bytes()).await);
    until("no memory is held", || service.gateway.bodies.used() == 0).await;
    assert_eq!(service.list().await.len(), 1);
}
