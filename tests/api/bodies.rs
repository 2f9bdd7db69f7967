//! Bodies as clients send them: compressed, with a byte order mark, malformed, as a form.

use std::io::Write;

use flate2::Compression;
use flate2::write::{DeflateEncoder, GzEncoder, ZlibEncoder};
use gemini_concurrent_generation::simulator::Options;
use reqwest::RequestBuilder;
use serde_json::{Value, json};

use crate::recording::Recording;
use crate::support::{Answer, Service, answer};

const GENERATE: &str = "/v1beta/models/gemini-3.5-flash-lite:generateContent";
const CHAT: &str = "/v1/chat/completions";

const COMPLETION: &str =
    r#"{"model":"gemini-3.5-flash-lite","messages":[{"role":"user","content":"Hello"}]}"#;

/// `COMPLETION` and 8 MiB of spaces, compressed by the command `brotli`.
const BROTLI: &[u8] = b"\x1bO\x00\xe0\xac\x0a\xecF\xf3\xcf\xe3\x85B<P\xdc\xe9\xe9\x95Rdk\xafgj\xce\xd8\xb4\x0eKW\xdfjqi\x91\x962\xbaU\x96\x06\x0e9\x11\xc8\xde\x02)\xf0`cl=\x11\xa1\xb1\xd2\x80\x22;Z\x94\xf4\xfa'\xb5\xa5U\x03q\x847>\xb1\xe0;";
const BROTLI_BOMB: &[u8] = b"\xcb\xff\xff?\xf8%@\xe2\xb1@ \xf7\xfeo";

fn gzip(body: &[u8]) -> Vec<u8> {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::default());
    encoder.write_all(body).unwrap();
    encoder.finish().unwrap()
}

fn zlib(body: &[u8]) -> Vec<u8> {
    let mut encoder = ZlibEncoder::new(Vec::new(), Compression::default());
    encoder.write_all(body).unwrap();
    encoder.finish().unwrap()
}

fn bare_deflate(body: &[u8]) -> Vec<u8> {
    let mut encoder = DeflateEncoder::new(Vec::new(), Compression::default());
    encoder.write_all(body).unwrap();
    encoder.finish().unwrap()
}

fn zstd(body: &[u8]) -> Vec<u8> {
    zstd::encode_all(body, 0).unwrap()
}

/// The numbers below one, as text, which compresses to about half its size.
fn digits(numbers: usize) -> String {
    (0..numbers).map(|number| number.to_string()).collect()
}

fn encoded(service: &Service, path: &str, encoding: &str, body: Vec<u8>) -> RequestBuilder {
    let request = service.post(path, &Value::Null).body(body);
    request.header("content-encoding", encoding)
}

#[tokio::test]
async fn a_compressed_body_is_read_in_every_common_encoding() {
    let recording = Recording::play(200, "application/json", vec![b"{}".into()]).await;
    let service = Service::with(Options::default(), |config| {
        config.base_url.clone_from(&recording.base_url);
    })
    .await;
    for (encoding, body) in [
        ("gzip", gzip(COMPLETION.as_bytes())),
        ("X-GZIP", gzip(COMPLETION.as_bytes())),
        ("deflate", zlib(COMPLETION.as_bytes())),
        ("deflate", bare_deflate(COMPLETION.as_bytes())),
        ("zstd", zstd(COMPLETION.as_bytes())),
        ("br", BROTLI.to_vec()),
        ("identity", COMPLETION.into()),
    ] {
        let sent = answer(encoded(&service, CHAT, encoding, body)).await;
        assert_eq!(sent.status, 200, "{encoding}: {sent:?}");
        // The body is relayed decoded, without the header.
        let asked = recording.requests().pop().unwrap();
        let (head, body) = asked.split_once("\r\n\r\n").unwrap();
        assert_eq!(body, COMPLETION, "{encoding}");
        assert!(!head.contains("content-encoding"), "{head}");
        assert!(head.contains(&format!("content-length: {}", COMPLETION.len())), "{head}");
    }
}

#[tokio::test]
async fn a_compressed_body_is_read_on_every_surface() {
    let service = Service::start().await;
    let contents = json!({"contents": [{"parts": [{"text": "Hello"}]}]}).to_string();
    for (path, body) in [
        (GENERATE, contents),
        (CHAT, COMPLETION.to_owned()),
        ("/chat", json!({"prompt": "Hello"}).to_string()),
        // This request uses the fallback key, and its body is decoded too.
        ("/chat", json!({"prompt": format!("Hello {}", digits(20_000))}).to_string()),
        ("/batch/chat", json!({"requests": [{"prompt": "Hello"}]}).to_string()),
    ] {
        let sent = answer(encoded(&service, path, "gzip", gzip(body.as_bytes()))).await;
        assert_eq!(sent.status, 200, "{path}: {sent:?}");
        assert!(sent.body.to_string().contains("Simulated answer to: Hello"), "{sent:?}");
    }
    assert_eq!(service.gateway.bodies.used(), 0);
}

#[tokio::test]
async fn a_body_that_cannot_be_decoded_is_refused() {
    let service = Service::start().await;
    let packed = gzip(COMPLETION.as_bytes());
    for (encoding, body, status, code) in [
        ("compress", packed.clone(), 415, "unsupported_media_type"),
        ("gzip, gzip", gzip(&packed), 415, "unsupported_media_type"),
        ("gzip", COMPLETION.into(), 400, "body_not_decoded"),
        ("gzip", packed[..packed.len() / 2].to_vec(), 400, "body_not_decoded"),
        ("br", BROTLI[..BROTLI.len() / 2].to_vec(), 400, "body_not_decoded"),
        ("zstd", packed, 400, "body_not_decoded"),
        // The start of a zstd stream whose window may be up to a gigabyte.
        ("br", vec![0x11, 0x1e, 0, 0], 400, "body_not_decoded"),
    ] {
        let refused = answer(encoded(&service, CHAT, encoding, body)).await;
        assert_eq!(
            (refused.status.as_u16(), &refused.body["error"]["code"]),
            (status, &json!(code))
        );
        let accepted = refused.headers.get("accept-encoding");
        assert_eq!(
            accepted.is_some_and(|accepted| accepted == "gzip, deflate, br, zstd"),
            status == 415
        );
    }
    let refused = answer(encoded(&service, "/chat", "lzma", vec![0])).await;
    assert_eq!(
        (refused.status.as_u16(), &refused.body["code"]),
        (415, &json!("unsupported_media_type"))
    );
    assert!(refused.headers.contains_key("accept-encoding"));
    assert_eq!(service.gateway.bodies.used(), 0);
}

#[tokio::test]
async fn a_decompression_bomb_is_refused_and_uses_no_memory() {
    let spaces = vec![b' '; 2 << 20];
    let service = Service::start().await;
    for (encoding, bomb) in [
        ("gzip", gzip(&spaces)),
        ("deflate", zlib(&spaces)),
        ("zstd", zstd(&spaces)),
        ("br", BROTLI_BOMB.to_vec()),
    ] {
        for path in [CHAT, "/chat"] {
            let refused = answer(encoded(&service, path, encoding, bomb.clone())).await;
            assert_eq!(refused.status, 413, "{encoding}: {refused:?}");
        }
    }
    // Data that compresses less counts with its decoded size.
    let small = Service::with(Options::default(), |config| config.max_body_bytes = 100_000).await;
    let text = digits(30_000);
    let packed = gzip(text.as_bytes());
    assert!(packed.len() < 100_000 && text.len() > 100_000);
    let refused = answer(encoded(&small, "/chat", "gzip", packed)).await;
    assert_eq!(refused.body["detail"], "The body is larger than 100000 bytes.");
    assert_eq!((service.gateway.bodies.used(), small.gateway.bodies.used()), (0, 0));
}

#[tokio::test]
async fn a_byte_order_mark_is_skipped_and_not_relayed() {
    let recording = Recording::play(200, "application/json", vec![b"{}".into()]).await;
    let service = Service::with(Options::default(), |config| {
        config.base_url.clone_from(&recording.base_url);
    })
    .await;
    let marked = service.post(CHAT, &Value::Null).body(format!("\u{feff}{COMPLETION}"));
    assert_eq!(answer(marked).await.status, 200);
    assert!(recording.requests().pop().unwrap().ends_with(&format!("\r\n\r\n{COMPLETION}")));

    let service = Service::start().await;
    let marked = service.post("/chat", &Value::Null).body("\u{feff}{\"prompt\": \"Hello\"}");
    assert_eq!(answer(marked).await.body["response"], "Simulated answer to: Hello");
    let wide: Vec<u8> = COMPLETION.encode_utf16().flat_map(u16::to_le_bytes).collect();
    let refused = answer(service.post(CHAT, &Value::Null).body(wide)).await;
    assert_eq!(refused.status, 400);
    assert_eq!(refused.body["error"]["message"], "body: The body is in UTF-16: send it in UTF-8");
}

/// The error message of OpenAI's surface for a body.
async fn refused(service: &Service, body: &str) -> Answer {
    let refused = answer(service.post(CHAT, &Value::Null).body(body.to_owned())).await;
    assert_eq!(refused.status, 400, "{refused:?}");
    assert_eq!(refused.body["error"]["type"], "invalid_request_error");
    refused
}

#[tokio::test]
async fn an_invalid_openai_body_is_reported_with_its_location() {
    let service = Service::start().await;
    let message = async |body: &str| refused(&service, body).await.body["error"]["message"].take();
    let cut_off = message("{\"model\":\"m\",\n\"messages\":[").await;
    let expected = "body: The body is not JSON: EOF while parsing a list at line 2 column 12";
    assert_eq!(cut_off, expected);
    let quotes = message("{'model': 'm'}").await;
    assert_eq!(quotes, "body: The body is not JSON: key must be a string at line 1 column 2");
    let twice = message(r#"{"model":"a","messages":[],"model":"b"}"#).await;
    assert_eq!(twice, "body.model: `model` or `agent` appears more than once");
    assert_eq!(message(r#"{"messages":[]}"#).await, "body.model: Field required");
    let half = message(r#"{"model":"\ud83d","messages":[]}"#).await;
    assert!(half.as_str().unwrap().starts_with("body.model: The text has an escape"), "{half}");
    assert_eq!(message(r#"{"model":1}"#).await, "body.model: Input should be a string");
}

fn form(service: &Service, path: &str, parts: &[(&str, &str)]) -> RequestBuilder {
    let part = |(name, text): &(&str, &str)| {
        format!("--X\r\nContent-Disposition: form-data; name=\"{name}\"\r\n\r\n{text}\r\n")
    };
    let parts: String = parts.iter().map(part).collect();
    // The file comes after the text fields.
    let file = "--X\r\nContent-Disposition: form-data; name=\"input_reference\"; \
                filename=\"a.png\"\r\nContent-Type: image/png\r\n\r\nPNG\r\n--X--\r\n";
    let request = reqwest::Client::new().post(service.url(path)).body(parts + file);
    request
        .header("content-type", "multipart/form-data; boundary=X")
        .header("authorization", "Bearer callers-key")
}

#[tokio::test]
async fn the_parsed_copy_of_a_form_counts_against_the_budget() {
    let recording = Recording::play(200, "application/json", vec![b"{}".into()]).await;
    let service = Service::with(Options::default(), |config| {
        config.base_url.clone_from(&recording.base_url);
        config.body_memory_bytes = Some(1 << 20);
    })
    .await;
    for (size, status) in [(400 << 10, 200), (600 << 10, 503)] {
        let prompt = "x".repeat(size);
        let video = form(&service, "/v1/videos", &[("model", "veo-3.1"), ("prompt", &prompt)]);
        assert_eq!(answer(video).await.status, status, "{size}");
    }
}

#[tokio::test]
async fn an_openai_form_is_counted_for_its_model_or_refused() {
    let recording = Recording::play(200, "application/json", vec![b"{}".into()]).await;
    let service = Service::with(Options::default(), |config| {
        config.base_url.clone_from(&recording.base_url);
        config.max_body_bytes = 1000;
    })
    .await;
    let video = form(&service, "/v1/videos", &[("model", "veo-3.1"), ("prompt", "A storm")]);
    assert_eq!(answer(video).await.status, 200);
    let asked = recording.requests().pop().unwrap();
    assert!(asked.starts_with("POST /v1beta/openai/videos HTTP/1.1\r\n"), "{asked}");
    assert!(asked.contains("name=\"model\"\r\n\r\nveo-3.1\r\n"), "{asked}");
    assert!(asked.contains("multipart/form-data; boundary=X"), "{asked}");
    let limits = service.get("/_admin/limits").header("Admin-API-Key", crate::support::ADMIN_KEY);
    let limits = answer(limits).await.body;
    assert_eq!(limits["limits"][0]["model"], "veo-3.1", "{limits}");

    let twice = form(&service, "/v1/videos", &[("model", "a"), ("model", "b")]);
    assert_eq!(answer(twice).await.status, 400);
    let chat = answer(form(&service, CHAT, &[("model", "m")])).await;
    assert_eq!(chat.status, 415);
    assert!(chat.body["error"]["message"].as_str().unwrap().contains("is a form"), "{chat:?}");
    for path in ["/v1/audio/transcriptions", "/v1/images/edits", "/v1/images/variations"] {
        let missing = answer(form(&service, path, &[("model", "m")])).await;
        assert_eq!(
            (missing.status.as_u16(), &missing.body["error"]["code"]),
            (404, &json!("not_found"))
        );
    }
    assert_eq!(answer(form(&service, "/v1/files", &[("purpose", "batch")])).await.status, 200);
    assert_eq!(recording.requests().len(), 2);
}
