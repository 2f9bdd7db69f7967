use super::*;

#[test]
fn a_quota_refusal_names_the_quota_the_delay_and_the_documentation() {
    let exceeded = QuotaExceeded {
        violations: vec![(Quota::InputTokensPerMinute, 250_000)],
        retry_in: Duration::from_millis(48_939),
    };
    let refusal = ErrorResponse::quota_exceeded(&exceeded, "gemini-2.5-flash", true);
    let body: Value = serde_json::from_slice(refusal.body()).expect("JSON");
    let metric = "generativelanguage.googleapis.com/generate_content_free_tier_input_token_count";
    let message = body["error"]["message"].as_str().expect("a message");
    assert!(message.starts_with("You exceeded your current quota, please check your plan"));
    assert!(message.ends_with(&format!(
        "\n* Quota exceeded for metric: {metric}, limit: 250000, model: gemini-2.5-flash\
         \nPlease retry in 48.939000000s."
    )));
    assert_eq!(body["error"]["code"], 429);
    assert_eq!(body["error"]["status"], "RESOURCE_EXHAUSTED");
    let details = body["error"]["details"].as_array().expect("details");
    assert_eq!(
        details[1]["violations"],
        json!([{
            "quotaMetric": metric,
            "quotaId": "GenerateContentInputTokensPerModelPerMinute-FreeTier",
            "quotaDimensions": {"location": "global", "model": "gemini-2.5-flash"},
            "quotaValue": "250000",
        }])
    );
    assert_eq!(details[2]["retryDelay"], "48s");
}

#[test]
fn a_violation_of_the_request_itself_has_no_field() {
    let violations = [
        FieldViolation::unknown_name("response_format", "generation_config"),
        FieldViolation::unknown_name("response_schema", ""),
    ];
    let body: Value =
        serde_json::from_slice(ErrorResponse::bad_request(&violations).body()).expect("JSON");
    let first = "Invalid JSON payload received. Unknown name \"response_format\" at \
        'generation_config': Cannot find field.";
    let second = "Invalid JSON payload received. Unknown name \"response_schema\": \
        Cannot find field.";
    assert_eq!(
        body,
        json!({"error": {
            "code": 400,
            "message": format!("{first}\n{second}"),
            "status": "INVALID_ARGUMENT",
            "details": [{
                "@type": "type.googleapis.com/google.rpc.BadRequest",
                "fieldViolations": [
                    {"field": "generation_config", "description": first},
                    {"description": second},
                ],
            }],
        }})
    );
}
