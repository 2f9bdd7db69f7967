//! Gemini's and OpenAI's formats: heads, bodies, events and errors.

use bytes::Bytes;

use super::script::{Form, Request};
use crate::calls::{CHAT_MODEL, STRUCTURED_MODEL};

const USAGE: &str =
    r#""usageMetadata":{"promptTokenCount":12,"candidatesTokenCount":8,"totalTokenCount":20}"#;

/// A complete HTTP response. Each extra header includes its line end.
pub fn http(status: &str, headers: &str, body: &[u8]) -> Bytes {
    let mut answer = head(status, &format!("{headers}Content-Length: {}\r\n", body.len()));
    answer.extend_from_slice(body);
    answer.into()
}

pub fn json(status: &str, body: &str) -> Bytes {
    http(status, "Content-Type: application/json; charset=UTF-8\r\n", body.as_bytes())
}

pub fn head(status: &str, headers: &str) -> Vec<u8> {
    format!("HTTP/1.1 {status}\r\n{headers}\r\n").into_bytes()
}

/// The head of an event stream.
pub fn stream_head() -> Bytes {
    let headers = "Content-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n";
    head("200 OK", headers).into()
}

pub fn chunk(data: &[u8]) -> Bytes {
    let mut chunk = format!("{:x}\r\n", data.len()).into_bytes();
    chunk.extend_from_slice(data);
    chunk.extend_from_slice(b"\r\n");
    chunk.into()
}

pub const LAST_CHUNK: &[u8] = b"0\r\n\r\n";

/// An error in Google's format, with further details in JSON.
pub fn google(code: u16, status: &str, message: &str, details: &str) -> String {
    let details =
        if details.is_empty() { String::new() } else { format!(r#","details":[{details}]"#) };
    format!(r#"{{"error":{{"code":{code},"message":"{message}","status":"{status}"{details}}}}}"#)
}

/// Google's message that quotes a key.
pub fn suspended(key: &str) -> String {
    format!("Permission denied: Consumer 'api_key:{key}' has been suspended.")
}

/// The text that answers a call, to be put into JSON.
pub fn text(request: &Request, words: &str) -> String {
    let id = request.id;
    if request.is_structured {
        format!(r#"{{\"id\":{id},\"note\":\"a#{id}# {words}\"}}"#)
    } else {
        format!("a#{id}# {words}")
    }
}

/// A complete answer with a text.
pub fn whole(request: &Request, text: &str) -> String {
    match request.form {
        Form::OpenAi => format!(
            r#"{{"id":"c","object":"chat.completion","created":1,"model":"{CHAT_MODEL}","choices":[{{"index":0,"message":{{"role":"assistant","content":"{text}"}},"finish_reason":"stop"}}],"usage":{{"prompt_tokens":12,"completion_tokens":8,"total_tokens":20}}}}"#
        ),
        _ => candidate(request, text, r#","finishReason":"STOP""#),
    }
}

/// An answer of Gemini's, or one event of it, with other fields of the candidate.
pub fn candidate(request: &Request, text: &str, more: &str) -> String {
    let model = if request.is_structured { STRUCTURED_MODEL } else { CHAT_MODEL };
    format!(
        r#"{{"candidates":[{{"content":{{"role":"model","parts":[{{"text":"{text}"}}]}}{more},"index":0}}],{USAGE},"modelVersion":"{model}"}}"#
    )
}

/// An answer of Gemini's without candidates.
pub fn without_candidate(feedback: &str) -> String {
    format!(r#"{{"promptFeedback":{feedback},{USAGE}}}"#)
}

/// One event of a stream, as a chunk. The last one has the finish reason.
pub fn piece(request: &Request, text: &str, is_last: bool) -> Bytes {
    let event = if request.form == Form::OpenAiStream {
        let reason = if is_last { r#""stop""# } else { "null" };
        format!(
            "data: {{\"id\":\"c\",\"object\":\"chat.completion.chunk\",\"created\":1,\"model\":\"{CHAT_MODEL}\",\"choices\":[{{\"index\":0,\"delta\":{{\"role\":\"assistant\",\"content\":\"{text}\"}},\"finish_reason\":{reason}}}]}}\n\n"
        )
    } else {
        let reason = if is_last { r#","finishReason":"STOP""# } else { "" };
        format!("data: {}\r\n\r\n", candidate(request, text, reason))
    };
    chunk(event.as_bytes())
}

/// What follows the last event.
pub fn stream_end(request: &Request) -> Bytes {
    if request.form == Form::OpenAiStream {
        let mut end = chunk(b"data: [DONE]\n\n").to_vec();
        end.extend_from_slice(LAST_CHUNK);
        end.into()
    } else {
        Bytes::from_static(LAST_CHUNK)
    }
}

/// A gzip body, not compressed.
pub fn gzip(body: &[u8]) -> Vec<u8> {
    let length = u16::try_from(body.len()).expect("a short body");
    let mut out = vec![0x1f, 0x8b, 8, 0, 0, 0, 0, 0, 0, 255, 1];
    out.extend(length.to_le_bytes());
    out.extend((!length).to_le_bytes());
    out.extend_from_slice(body);
    out.extend(crc32(body).to_le_bytes());
    out.extend(u32::from(length).to_le_bytes());
    out
}

fn crc32(data: &[u8]) -> u32 {
    !data.iter().fold(!0, |crc, byte| {
        (0..8).fold(crc ^ u32::from(*byte), |crc, _| {
            (crc >> 1) ^ (0xedb8_8320 & (crc & 1).wrapping_neg())
        })
    })
}
