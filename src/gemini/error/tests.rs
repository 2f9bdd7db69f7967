use super::*;

fn read(status: u16, body: &str) -> Error {
    Error::read(StatusCode::from_u16(status).unwrap(), body.as_bytes())
}

#[test]
fn the_status_alone_determines_the_kind() {
    for body in ["", "<!DOCTYPE html><html>…", "{}", "[]", r#"{"error":null}"#, r#"{"error":"x"}"#]
    {
        for (status, kind, passing) in [
            (400, ErrorKind::InvalidRequest, false),
            (401, ErrorKind::InvalidKey, false),
            (403, ErrorKind::PermissionDenied, false),
            (404, ErrorKind::ModelNotFound, false),
            (408, ErrorKind::DeadlineExceeded, true),
            (402, ErrorKind::Unfunded, false),
            (413, ErrorKind::InvalidRequest, false),
            (499, ErrorKind::Unavailable, true),
            (500, ErrorKind::Unavailable, true),
            (502, ErrorKind::Unavailable, true),
            (503, ErrorKind::Overloaded(None), true),
            (504, ErrorKind::DeadlineExceeded, true),
            (302, ErrorKind::Malformed, false),
        ] {
            let error = read(status, body);
            assert_eq!((&error.kind, error.is_transient()), (&kind, passing), "{status} {body}");
            assert!(error.message.starts_with("Gemini answered "), "{}", error.message);
        }
        assert!(matches!(read(429, body).kind, ErrorKind::RateLimited(_)));
    }
}

#[test]
fn a_web_page_is_not_taken_for_an_answer_and_is_not_shown() {
    let not_gemini = |status: u16, content_type: &'static str, body: &str| {
        let status = StatusCode::from_u16(status).unwrap();
        Error::not_gemini(status, Some(&HeaderValue::from_static(content_type)), body.as_bytes())
    };
    let page = "<!DOCTYPE html><title>secret</title>";
    for (status, kind) in [
        (200, ErrorKind::Malformed),
        (302, ErrorKind::Malformed),
        (400, ErrorKind::InvalidRequest),
        (401, ErrorKind::Malformed),
        (403, ErrorKind::PermissionDenied),
        (404, ErrorKind::Malformed),
        (413, ErrorKind::InvalidRequest),
        (502, ErrorKind::Unavailable),
        (503, ErrorKind::Overloaded(None)),
    ] {
        let error = not_gemini(status, "text/html; charset=UTF-8", page).unwrap();
        assert_eq!(error.kind, kind, "{status}");
        assert!(error.message.contains(" with text/html instead of JSON"), "{error}");
        assert!(!error.message.contains("secret"), "{error}");
    }
    let posing = not_gemini(404, "application/json", page).unwrap();
    assert!(posing.message.contains(" with a page instead of JSON"), "{posing}");
    assert!(not_gemini(200, "text/plain", "OK").is_some());
    let odd = not_gemini(404, "text/secret key", page).unwrap();
    assert!(odd.message.contains("content of no type"), "{odd}");
    for (content_type, body) in [
        ("application/json", "not JSON"),
        ("application/json", ""),
        ("text/html", ""),
        ("text/html", " {\"error\": {}}"),
        ("text/html", "[{\"error\": {}}]"),
    ] {
        assert!(not_gemini(404, content_type, body).is_none(), "{content_type}: {body}");
    }
}

#[test]
fn an_envelope_is_read_with_and_without_an_array_around_it() {
    let envelope = r#"{"error":{"code":400,"message":"API key is odd.\n","details":[
        {"@type":"type.googleapis.com/google.rpc.ErrorInfo","metadata":7},
        {"@type":"type.googleapis.com/google.rpc.Brand.New","reason":"x"}, null,
        {"@type":"type.googleapis.com/google.rpc.ErrorInfo","reason":"API_KEY_INVALID"}]}}"#;
    for body in [envelope.to_owned(), format!(" [{envelope}\n]")] {
        let error = read(400, &body);
        assert_eq!((error.kind, &*error.message), (ErrorKind::InvalidKey, "API key is odd."));
    }
}

#[test]
fn an_exhausted_daily_quota_is_not_transient() {
    let refused = |id: &str| {
        read(
            429,
            &format!(
                r#"{{"error":{{"details":[{{"@type":"type.googleapis.com/google.rpc.QuotaFailure",
                 "violations":[{{"quotaId":"{id}"}}]}}]}}}}"#
            ),
        )
    };
    assert!(refused("RequestsPerMinute").is_transient());
    assert!(!refused("RequestsPerDay").is_transient());
    assert!(read(429, "").is_transient());
}

#[test]
fn an_account_without_funds_is_distinguished_from_an_exhausted_quota() {
    let unfunded = r#"{"error":{"code":429,"message":"Your prepayment credits are depleted."}}"#;
    assert_eq!(read(429, unfunded).kind, ErrorKind::Unfunded);
    let refused = r#"{"error":{"message":"Your credits: Quota exceeded for metric: m/requests"}}"#;
    assert!(matches!(read(429, refused).kind, ErrorKind::RateLimited(_)), "it names a quota");
}

#[test]
fn a_code_may_be_a_word() {
    let body = |code: &str| format!(r#"{{"error":{{"code":"{code}","message":"Words."}}}}"#);
    assert_eq!(read(503, &body("service_unavailable")).message, "Words.");
    let despite_success = |code| Error::read_despite_success(body(code).as_bytes()).kind;
    assert_eq!(despite_success("service_unavailable"), ErrorKind::Overloaded(None));
    assert_eq!(despite_success("cancelled"), ErrorKind::Unavailable);
    assert_eq!(despite_success("payment_required"), ErrorKind::Unfunded);
    assert_eq!(despite_success("brand_new"), ErrorKind::Malformed);
}

#[test]
fn an_error_without_a_number_is_read_by_its_status() {
    let kind = |error: &str| Error::read_despite_success(error.as_bytes()).kind.code();
    for (error, code) in [
        (r#"{"error":{"status":"UNAVAILABLE"}}"#, "upstream_unavailable"),
        (r#"{"error":{"code":"503"}}"#, "upstream_unavailable"),
        (r#"{"error":{"code":0,"status":"RESOURCE_EXHAUSTED"}}"#, "rate_limited"),
        (r#"{"error":{"code":null,"status":"INTERNAL"}}"#, "upstream_unavailable"),
        (r#"[{"error":{"code":504}}]"#, "upstream_timeout"),
        (r#"{"error":{"code":200}}"#, "malformed_answer"),
        (r#"{"error":{"status":"NOVEL"}}"#, "malformed_answer"),
        (r#"{"error":"busy"}"#, "malformed_answer"),
    ] {
        assert_eq!(kind(error), code, "{error}");
    }
}

#[test]
fn the_longer_wait_of_header_and_body_counts() {
    let body = r#"{"error":{"details":[
        {"@type":"type.googleapis.com/google.rpc.RetryInfo","retryDelay":"9s"}]}}"#;
    let wait = |status, header| {
        let error = read(status, body).waiting(Some(Duration::from_secs(header)));
        match error.kind {
            ErrorKind::RateLimited(refusal) => refusal.retry_after,
            ErrorKind::Overloaded(retry_after) => retry_after,
            _ => None,
        }
    };
    for status in [429, 503] {
        assert_eq!(wait(status, 3), Some(Duration::from_secs(10)), "{status}");
        assert_eq!(wait(status, 30), Some(Duration::from_secs(30)), "{status}");
    }
    assert_eq!(wait(500, 30), None);
}

#[test]
fn an_overload_is_accepted_for_an_hour_at_most() {
    let body = r#"{"error":{"details":[
        {"@type":"type.googleapis.com/google.rpc.RetryInfo","retryDelay":"3153600000s"}]}}"#;
    assert_eq!(read(503, body).kind, ErrorKind::Overloaded(Some(LONGEST_SHORTAGE)));
}

#[test]
fn a_long_message_is_cut_between_characters() {
    let error = read(400, &format!(r#"{{"error":{{"message":"{}"}}}}"#, "€".repeat(1000)));
    assert_eq!(error.message, format!("{}…", "€".repeat(MAX_MESSAGE / 3)));
}
