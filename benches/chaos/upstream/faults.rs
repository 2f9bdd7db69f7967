//! Everything an upstream can do other than answer well.

use std::time::Duration;

use bytes::Bytes;
use fastrand::Rng;

use super::script::{Form, Request, Script, Step};
use super::words::{
    candidate, chunk, google, gzip, head, http, json, piece, stream_end, stream_head, suspended,
    text, whole, without_candidate,
};

const TICK: Duration = Duration::from_millis(3);

/// Any fault that does not affect the account's limits.
pub fn any(random: &mut Rng, request: &Request) -> Script {
    match random.u8(..10) {
        0..4 => refusal(random),
        4..7 if request.form.is_stream() => broken_stream(random, request),
        4..8 => broken_answer(random, request),
        8 => odd_answer(random, request),
        _ => quoting_key(random, request),
    }
}

fn once(name: &'static str, answer: Bytes) -> Script {
    Script::new(name, vec![Step::Last(answer)])
}

/// Error statuses with their bodies.
fn refusal(random: &mut Rng) -> Script {
    let html = "Content-Type: text/html\r\n";
    match random.u8(..14) {
        0 => once(
            "500",
            json(
                "500 Internal Server Error",
                &google(500, "INTERNAL", "An internal error has occurred.", ""),
            ),
        ),
        1 => {
            once("502, a page", http("502 Bad Gateway", html, b"<!DOCTYPE html><title>502</title>"))
        }
        2 => once(
            "504",
            json("504 Gateway Timeout", &google(504, "DEADLINE_EXCEEDED", "Deadline expired.", "")),
        ),
        3 => once(
            "400",
            json(
                "400 Bad Request",
                &google(400, "INVALID_ARGUMENT", "Request contains an invalid argument.", ""),
            ),
        ),
        4 => once("403", json("403 Forbidden", &google(403, "PERMISSION_DENIED", "No.", ""))),
        5 => once(
            "404",
            json("404 Not Found", &google(404, "NOT_FOUND", "models/x is not found.", "")),
        ),
        6 => once(
            "499",
            json(
                "499 Client Closed Request",
                &google(499, "CANCELLED", "The operation was cancelled.", ""),
            ),
        ),
        7 => once("204", Bytes::from_static(b"HTTP/1.1 204 No Content\r\n\r\n")),
        8 => once("304", Bytes::from_static(b"HTTP/1.1 304 Not Modified\r\n\r\n")),
        9 => once("302", http("302 Found", "Location: http://127.0.0.1:9/\r\n", b"")),
        10 => once("599", http("599 Whatever", "", b"")),
        11 => once("999", http("999 No Such Status", "", b"")),
        12 => once("413, empty", http("413 Payload Too Large", "", b"")),
        _ => once("500, 1 MB", http("500 Internal Server Error", html, &vec![b'x'; 1 << 20])),
    }
}

/// Answers that are missing, incomplete or not HTTP.
fn broken_answer(random: &mut Rng, request: &Request) -> Script {
    let body = whole(request, &text(request, "as you asked #end"));
    let half = || body.as_bytes()[..body.len() / 2].to_vec();
    let long_head = format!("Content-Type: application/json\r\nContent-Length: {}\r\n", body.len());
    match random.u8(..14) {
        0 => Script::new("closed before the answer", vec![Step::Close]),
        1 => Script::new("reset before the answer", vec![Step::Wait(TICK), Step::Reset]),
        2 | 3 => {
            let mut answer = head("200 OK", &long_head);
            answer.extend(half());
            Script::new("cut off", vec![Step::Send(answer.into()), Step::Wait(TICK), Step::Close])
        }
        4 => {
            let chunked = "Content-Type: application/json\r\nTransfer-Encoding: chunked\r\n";
            let mut answer = head("200 OK", chunked);
            answer.extend_from_slice(&chunk(&half()));
            Script::new("cut off between chunks", vec![Step::Send(answer.into()), Step::Close])
        }
        5 => {
            let mut answer = head("200 OK", &long_head);
            answer.extend(half());
            Script::new(
                "reset within the body",
                vec![Step::Send(answer.into()), Step::Wait(TICK), Step::Reset],
            )
        }
        6 => Script::new("silent", vec![Step::Silence]),
        7 => {
            let answer = head("200 OK", &long_head);
            Script::new("silent after the head", vec![Step::Send(answer.into()), Step::Silence])
        }
        8 => {
            let mut steps = vec![Step::Send(head("200 OK", &long_head).into())];
            for part in body.as_bytes().chunks(body.len() / 8 + 1) {
                steps.extend([Step::Wait(TICK * 10), Step::Send(Bytes::copy_from_slice(part))]);
            }
            if let Some(Step::Send(last)) = steps.pop() {
                steps.push(Step::Last(last));
            }
            Script::new("slow", steps)
        }
        9 => Script::new(
            "not HTTP",
            vec![
                Step::Send(Bytes::from_static(b"\0\xff\xfeSSH-2.0-OpenSSH_9.9\r\n\r\n")),
                Step::Close,
            ],
        ),
        10 => once(
            "not JSON",
            http("200 OK", "Content-Type: application/json\r\n", b"{\"candidates\":[{\"content\""),
        ),
        11 => once("empty", http("200 OK", "Content-Type: application/json\r\n", b"")),
        12 => {
            let both = format!("{long_head}Transfer-Encoding: chunked\r\n");
            let mut answer = head("200 OK", &both);
            answer.extend_from_slice(&chunk(body.as_bytes()));
            answer.extend_from_slice(b"0\r\n\r\n");
            Script::new("length and chunks", vec![Step::Send(answer.into()), Step::Close])
        }
        _ => {
            let long = format!("X-Long: {}\r\n", "x".repeat(300_000));
            Script::new(
                "a head of 300 KB",
                vec![Step::Send(http("200 OK", &long, b"{}")), Step::Close],
            )
        }
    }
}

/// Well-formed answers without a usable result, and one with a lone surrogate, whose other text is
/// usable.
fn odd_answer(random: &mut Rng, request: &Request) -> Script {
    let answer = |body: &str| json("200 OK", body);
    match random.u8(..7) {
        0 => once("no candidate", answer(&without_candidate("{}"))),
        1 => once("blocked", answer(&without_candidate(r#"{"blockReason":"SAFETY"}"#))),
        2 => once("no text", answer(r#"{"candidates":[{"finishReason":"MAX_TOKENS"}]}"#)),
        3 => once(
            "lone surrogate",
            answer(&whole(request, &text(request, r"\ud800 as you asked #end"))),
        ),
        4 => {
            let body = format!("{{\"candidates\":{}", "[{\"content\":".repeat(20_000));
            once("nested deeply", answer(&body))
        }
        5 => once(
            "numbers out of range",
            answer(
                r#"{"candidates":[],"usageMetadata":{"promptTokenCount":1e400,"totalTokenCount":-9223372036854775809}}"#,
            ),
        ),
        _ => {
            once("an error with status 200", answer(&google(503, "UNAVAILABLE", "overloaded", "")))
        }
    }
}

/// Streams that fail after they have begun.
fn broken_stream(random: &mut Rng, request: &Request) -> Script {
    let id = request.id;
    let first = [
        Step::Send(stream_head()),
        Step::Send(piece(request, &format!("a#{id}# here "), false)),
        Step::Wait(TICK),
    ];
    let error = google(503, "UNAVAILABLE", "The model is overloaded.", "");
    let (name, rest): (_, Vec<Step>) = match random.u8(..9) {
        0 => {
            let event = chunk(format!("data: {error}\r\n\r\n").as_bytes());
            let steps =
                vec![Step::Send(stream_head()), Step::Send(event), Step::Last(stream_end(request))];
            return Script::new("stream: an error first", steps);
        }
        1 => (
            "stream: an error midway",
            vec![
                Step::Send(chunk(format!("data: {error}\r\n\r\n").as_bytes())),
                Step::Last(stream_end(request)),
            ],
        ),
        2 => (
            "stream: a bare error midway",
            vec![Step::Send(chunk(error.as_bytes())), Step::Last(Bytes::from_static(b"0\r\n\r\n"))],
        ),
        3 => (
            "stream: closed without an end",
            vec![
                Step::Send(piece(request, "#cut", false)),
                Step::Last(Bytes::from_static(b"0\r\n\r\n")),
            ],
        ),
        4 => ("stream: cut off", vec![Step::Send(piece(request, "and ", false)), Step::Close]),
        5 => ("stream: reset", vec![Step::Reset]),
        6 => ("stream: silent midway", vec![Step::Silence]),
        7 => (
            "stream: garbage",
            vec![
                Step::Send(chunk(b"data: {\"candidates\":[[[\r\n\r\nevent: \xff\r\n\r\n")),
                Step::Send(piece(request, "#cut", true)),
                Step::Last(stream_end(request)),
            ],
        ),
        _ => (
            "stream: cut off within a chunk",
            vec![Step::Send(Bytes::from_static(b"ffff\r\ndata: {\"cand")), Step::Close],
        ),
    };
    Script::new(name, first.into_iter().chain(rest).collect())
}

/// Errors that quote the key in every possible place.
pub fn quoting_key(random: &mut Rng, request: &Request) -> Script {
    let key = &request.key;
    let words = suspended(key);
    let error = google(403, "PERMISSION_DENIED", &words, "");
    if request.form.is_stream() && random.bool() {
        return quoting_stream(random, request, &error);
    }
    let forbidden = "403 Forbidden";
    match random.u8(..10) {
        0 | 1 => once("key in an error", json(forbidden, &error)),
        2 => once(
            "key in a page",
            http("502 Bad Gateway", "Content-Type: text/html\r\n", words.as_bytes()),
        ),
        3 => {
            let headers = "Content-Type: application/json\r\nContent-Encoding: gzip\r\n";
            once("key in an encoded error", http(forbidden, headers, &gzip(error.as_bytes())))
        }
        4 => {
            let headers = format!(
                "Content-Type: application/json\r\nX-Consumer: api_key:{key}\r\nWWW-Authenticate: Bearer realm=\"{key}\"\r\n"
            );
            once("key in headers", http(forbidden, &headers, b"{}"))
        }
        5 => {
            let headers = format!("Content-Type: application/json\r\nX-Consumer: {key}\r\n");
            let body = whole(request, &text(request, "as you asked #end"));
            once("key in headers of an answer", http("200 OK", &headers, body.as_bytes()))
        }
        6 => once(
            "key in a block reason",
            json(
                "200 OK",
                &without_candidate(&format!(
                    r#"{{"blockReason":"OTHER","blockReasonMessage":"{words}"}}"#
                )),
            ),
        ),
        7 => once(
            "key in a finish message",
            json(
                "200 OK",
                &format!(
                    r#"{{"candidates":[{{"finishReason":"OTHER {key}","finishMessage":"{words}"}}]}}"#
                ),
            ),
        ),
        8 => {
            // In two events, with the key in both.
            let answer = json(forbidden, &error);
            let middle = answer.len() - error.len() + error.find(key).unwrap_or(0) + key.len() / 2;
            let (mut one, two) = (answer.clone(), answer.slice(middle..));
            one.truncate(middle);
            Script::new(
                "key in two pieces",
                vec![Step::Send(one), Step::Wait(TICK), Step::Last(two)],
            )
        }
        _ => once("key in an error with status 200", json("200 OK", &error)),
    }
}

fn quoting_stream(random: &mut Rng, request: &Request, error: &str) -> Script {
    let key = &request.key;
    let begun = format!("a#{}# here ", request.id);
    let mut steps = vec![Step::Send(stream_head())];
    let event = format!("data: {error}\r\n\r\n");
    let name = match random.u8(..4) {
        0 => {
            steps.push(Step::Send(chunk(event.as_bytes())));
            "stream: key in the first event"
        }
        1 => {
            steps.push(Step::Send(piece(request, &begun, false)));
            steps.push(Step::Send(chunk(event.as_bytes())));
            "stream: key in an error event"
        }
        2 => {
            let middle = event.find(key.as_str()).unwrap_or(0) + key.len() / 2;
            let (one, two) = event.as_bytes().split_at(middle);
            steps.push(Step::Send(piece(request, &begun, false)));
            steps.extend([Step::Send(chunk(one)), Step::Wait(TICK), Step::Send(chunk(two))]);
            "stream: key in two pieces"
        }
        _ => {
            let message = suspended(key);
            let reason = format!(r#","finishReason":"SAFETY","finishMessage":"{message}""#);
            let event =
                format!("data: {}\r\n\r\n", candidate(request, &format!("{begun}#cut"), &reason));
            let event = if request.form == Form::OpenAiStream {
                format!("data: {error}\n\n")
            } else {
                event
            };
            steps.push(Step::Send(chunk(event.as_bytes())));
            "stream: key in a finish message"
        }
    };
    steps.push(Step::Last(Bytes::from_static(b"0\r\n\r\n")));
    Script::new(name, steps)
}

/// Refusals for load.
pub fn overload(random: &mut Rng) -> Script {
    let message = "Resource has been exhausted (e.g. check quota).";
    let load = google(429, "RESOURCE_EXHAUSTED", message, "");
    let refused = |after: &str| {
        let headers = format!("Content-Type: application/json\r\nRetry-After: {after}\r\n");
        http("429 Too Many Requests", &headers, load.as_bytes())
    };
    match random.u8(..6) {
        0 | 1 => once(
            "503",
            json(
                "503 Service Unavailable",
                &google(503, "UNAVAILABLE", "The model is overloaded. Please try again later.", ""),
            ),
        ),
        2 => once("429 for load", json("429 Too Many Requests", &load)),
        3 => once("429, Retry-After 1", refused("1")),
        4 => once("429, Retry-After of three centuries", refused("9999999999")),
        _ => once("429, Retry-After a date", refused("Fri, 31 Dec 9999 23:59:59 GMT")),
    }
}

/// Refusals for quotas, with absurd numbers, and for billing.
pub fn quota(random: &mut Rng) -> Script {
    let delays = [
        "9223372036854775807s",
        "3153600000s",
        "-1s",
        "0s",
        "1e400s",
        "99999999999999999999s",
        "5000000h",
        "",
    ];
    let values =
        ["0", "1", "18446744073709551615", "-1", "99999999999999999999999", "1e9", "", "5"];
    let delay = delays[random.usize(..delays.len())];
    let value = values[random.usize(..values.len())];
    let retry =
        format!(r#"{{"@type":"type.googleapis.com/google.rpc.RetryInfo","retryDelay":"{delay}"}}"#);
    let named = |id: &str, value: &str| {
        format!(
            r#"{{"@type":"type.googleapis.com/google.rpc.QuotaFailure","violations":[{{"quotaMetric":"generativelanguage.googleapis.com/generate_content_requests","quotaId":"{id}","quotaDimensions":{{"model":"gemini-chaos"}},"quotaValue":"{value}"}}]}},{retry}"#
        )
    };
    let refused = |name, message: &str, details: &str| {
        once(
            name,
            json("429 Too Many Requests", &google(429, "RESOURCE_EXHAUSTED", message, details)),
        )
    };
    let exceeded = "You exceeded your current quota, please check your plan and billing details.";
    let message = format!("{exceeded} Please retry in {delay}.");
    match random.u8(..10) {
        0..3 => refused(
            "429, requests a minute, absurd delay",
            &message,
            &named("GenerateRequestsPerMinutePerProjectPerModel", "20000"),
        ),
        3 | 4 => refused(
            "429, requests a minute, absurd value",
            exceeded,
            &named("GenerateRequestsPerMinutePerProjectPerModel", value),
        ),
        5 => refused(
            "429, tokens a minute, absurd value",
            exceeded,
            &named("GenerateContentInputTokensPerModelPerMinute", value),
        ),
        6 => refused(
            "429, requests a day",
            exceeded,
            &named("GenerateRequestsPerDayPerProjectPerModel", "250"),
        ),
        7 => refused("429, a quota with an unknown name", exceeded, &named("PerFortnight", value)),
        8 => refused(
            "429, billing",
            exceeded,
            r#"{"@type":"type.googleapis.com/google.rpc.Help","links":[]}"#,
        ),
        _ => once(
            "402",
            json(
                "402 Payment Required",
                &google(402, "FAILED_PRECONDITION", "Your prepaid credits are used up.", ""),
            ),
        ),
    }
}
