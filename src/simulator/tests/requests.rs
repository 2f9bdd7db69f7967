//! Keys, models and bodies that are accepted or refused.

use axum::body::Body;
use http::Request;
use serde_json::{Value, json};

use super::*;

#[tokio::test]
async fn a_key_is_accepted_in_three_places_and_checked() {
    let simulator =
        Simulator::new(Options { bad_keys: vec!["revoked".to_owned()], ..Options::default() });
    let send = async |path: String, headers: &[(&str, &str)]| {
        let mut request =
            Request::post(path).body(Body::from(chat("a").to_string())).expect("valid");
        for (name, value) in headers {
            let name = http::HeaderName::from_bytes(name.as_bytes()).expect("a name");
            request.headers_mut().insert(name, value.parse().expect("a value"));
        }
        json_of(call(&simulator, request).await).await
    };
    let path = FLASH.to_owned();
    assert_eq!(send(path.clone(), &[("x-goog-api-key", "key")]).await.0, 200);
    assert_eq!(send(path.clone(), &[("authorization", "Bearer key")]).await.0, 200);
    assert_eq!(send(format!("{path}?key=key"), &[]).await.0, 200);

    let (status, refusal) = send(path.clone(), &[]).await;
    assert_eq!((status, &refusal["error"]["status"]), (403, &json!("PERMISSION_DENIED")));
    for bad in ["revoked", "invalid-one"] {
        let (status, refusal) = send(path.clone(), &[("x-goog-api-key", bad)]).await;
        assert_eq!((status, &refusal["error"]["status"]), (400, &json!("INVALID_ARGUMENT")));
        assert_eq!(refusal["error"]["details"][0]["reason"], "API_KEY_INVALID");
    }
}

#[tokio::test]
async fn models_that_do_not_exist_are_not_found() {
    let path = |model: &str| format!("/v1beta/models/{model}:generateContent");
    let refused = async |options: Options, model: &str| {
        let simulator = Simulator::new(options);
        json_of(post(&simulator, &path(model), &chat("a")).await).await
    };
    let (status, refusal) = refused(Options::default(), "gemini-unknown").await;
    assert_eq!(status, 404);
    assert_eq!(
        message_of(&refusal),
        "models/gemini-unknown is not found for API version v1beta, or is not supported for \
         generateContent. Call ModelService.ListModels to see the list of available models and \
         their supported methods."
    );
    let (status, refusal) = refused(Options::default(), "gemini-retired").await;
    assert_eq!(status, 404);
    assert!(message_of(&refusal).contains("is no longer available"));

    let listed = Options { models: vec!["mine".to_owned()], ..Options::default() };
    assert_eq!(refused(listed.clone(), "gemini-3.5-flash-lite").await.0, 404);
    assert_eq!(refused(listed, "mine").await.0, 200);
}

#[tokio::test]
async fn models_are_listed_and_described() {
    let simulator =
        Simulator::new(Options { models: vec!["mine".to_owned()], ..Options::default() });
    let fetch = async |path: &str| {
        let request = Request::get(path).header("x-goog-api-key", "key");
        json_of(call(&simulator, request.body(Body::empty()).expect("valid")).await).await
    };
    assert_eq!(fetch("/v1beta/models").await.1["models"][0]["name"], "models/mine");
    assert_eq!(fetch("/v1/models/mine").await.1["name"], "models/mine");
    assert_eq!(fetch("/v1/models/other").await.0, 404);
}

#[tokio::test]
async fn tokens_are_counted() {
    let path = "/v1beta/models/gemini-3.5-flash-lite:countTokens";
    let simulator = simulator();
    let (status, counted) = json_of(post(&simulator, path, &chat("12345")).await).await;
    assert_eq!((status, &counted["totalTokens"]), (200, &json!(2)));
    assert_eq!((simulator.stats().count_tokens, simulator.stats().calls), (1, 0));
}

#[tokio::test(start_paused = true)]
async fn counting_tokens_takes_time_in_flight() {
    let path = "/v1beta/models/gemini-3.5-flash-lite:countTokens";
    let simulator = Simulator::new(Options { latency_ms: 1000, ..Options::default() });
    let body = chat("a");
    let counting = post(&simulator, path, &body);
    let half_a_second = std::time::Duration::from_millis(500);
    let in_flight = async {
        tokio::time::sleep(half_a_second).await;
        simulator.stats().in_flight
    };
    assert_eq!(tokio::join!(in_flight, counting).0, 1);
    assert_eq!(simulator.stats().in_flight, 0);
}

#[tokio::test]
async fn schemas_and_requests_that_gemini_refuses_are_refused() {
    let object = json!({"type": "object", "properties": {"a": {"type": "string"}}});
    let mut both = structured("responseSchema", &object);
    both["generationConfig"]["responseJsonSchema"] = object.clone();
    let mut no_mime_type = structured("responseSchema", &object);
    no_mime_type["generationConfig"]["responseMimeType"] = Value::Null;
    let endless = json!({"type": "object", "properties": {"a": {"$ref": "#"}}, "required": ["a"]});
    for request in [
        json!({"contents": []}),
        json!({"prompt": "a"}),
        both,
        no_mime_type,
        structured("responseSchema", &json!({"type": "OBJECT", "properties": {}})),
        structured("responseSchema", &json!({"type": "STRING", "const": "a"})),
        structured("responseJsonSchema", &json!({"not": {}})),
        structured("responseJsonSchema", &endless),
        chat("[[simulate:nonsense]]"),
        chat(&"word ".repeat(1_000_000)),
    ] {
        let (status, refusal) = json_of(post(&simulator(), FLASH, &request).await).await;
        assert_eq!((status, &refusal["error"]["code"]), (400, &json!(400)));
        assert_eq!(refusal["error"]["status"], "INVALID_ARGUMENT");
    }
}

#[tokio::test]
async fn a_short_deadline_is_refused() {
    let request = Request::post(FLASH)
        .header("x-goog-api-key", "key")
        .header("X-Server-Timeout", "5")
        .body(Body::from(chat("a").to_string()))
        .expect("valid");
    let (status, refusal) = json_of(call(&simulator(), request).await).await;
    assert_eq!(status, 400);
    assert_eq!(
        message_of(&refusal),
        "Manually set deadline 5s is too short. Minimum allowed deadline is 10s."
    );
}
