//! Batches.

use std::time::Duration;

use http::Method;

use super::*;

const CREATE: &str = "/v1beta/models/gemini-3.5-flash-lite:batchGenerateContent";

fn batch(prompts: &[&str]) -> Value {
    let item = |prompt: &&str| json!({"request": chat(prompt), "metadata": {"key": prompt}});
    let requests: Vec<Value> = prompts.iter().map(item).collect();
    json!({"batch": {"displayName": "mine", "inputConfig": {"requests": {"requests": requests}}}})
}

async fn create(simulator: &Simulator, prompts: &[&str]) -> (u16, Value) {
    json_of(post(simulator, CREATE, &batch(prompts)).await).await
}

fn path_of(operation: &Value) -> String {
    format!("/v1beta/{}", operation["name"].as_str().expect("a name"))
}

#[tokio::test(start_paused = true)]
async fn a_batch_is_pending_then_running_then_answered_in_order() {
    let options = Options { batch_ms: 10_000, journal: true, ..Options::default() };
    let simulator = Simulator::new(options);
    let (status, created) = create(&simulator, &["a", "[[simulate:status=500]]b"]).await;
    assert_eq!((status, created.get("done")), (200, None));
    let entry = simulator.journal().remove(0);
    assert_eq!((&*entry.api_key, entry.status), ("key", Some(200)));
    assert!(entry.body["batch"].is_object());
    let path = path_of(&created);
    let state = async || get(&simulator, &path).await.1["metadata"]["state"].clone();
    assert_eq!(state().await, "BATCH_STATE_PENDING");
    tokio::time::advance(Duration::from_secs(5)).await;
    assert_eq!(state().await, "BATCH_STATE_RUNNING");
    tokio::time::advance(Duration::from_secs(5)).await;
    let (_, ended) = get(&simulator, &path).await;
    assert_eq!((&ended["done"], &ended["metadata"]["displayName"]), (&json!(true), &json!("mine")));
    assert_eq!(
        ended["metadata"]["batchStats"],
        json!({"requestCount": "2", "successfulRequestCount": "1", "failedRequestCount": "1"})
    );
    let answers = &ended["metadata"]["output"]["inlinedResponses"]["inlinedResponses"];
    assert_eq!(text_of(&answers[0]["response"]), "Simulated answer to: a");
    assert_eq!(answers[1]["error"]["code"], 500);
    assert_eq!(answers[1]["metadata"]["key"], "[[simulate:status=500]]b");
}

#[tokio::test(start_paused = true)]
async fn active_batches_hold_the_enqueued_tokens() {
    let options = Options { enqueued_tokens: Some(5), batch_ms: 1_000, ..Options::default() };
    let simulator = Simulator::new(options);
    let (_, first) = create(&simulator, &["1234", "12345678"]).await;
    assert_eq!(create(&simulator, &["1234", "1234"]).await.0, 200);
    assert_eq!(simulator.stats().enqueued_tokens, 5);
    let (status, refusal) = create(&simulator, &["a"]).await;
    assert_eq!(status, 429);
    let details = refusal["error"]["details"].as_array().expect("details");
    assert_eq!(details.len(), 1);
    assert_eq!(details[0]["@type"], "type.googleapis.com/google.rpc.Help");
    let cancel = format!("{}:cancel", path_of(&first));
    assert_eq!(send(&simulator, Method::POST, &cancel).await.status(), 200);
    assert_eq!(
        get(&simulator, &path_of(&first)).await.1["metadata"]["state"],
        "BATCH_STATE_CANCELLED"
    );
    assert_eq!(create(&simulator, &["123456789012"]).await.0, 200);
    tokio::time::advance(Duration::from_secs(1)).await;
    let stats = simulator.stats();
    assert_eq!((stats.enqueued_tokens, stats.highest_enqueued_tokens), (0, 5));
    assert_eq!(stats.refused_429["batch"], 1);
    assert_eq!(create(&simulator, &["12345678901234567890"]).await.0, 200);
}

#[tokio::test]
async fn a_batch_of_embeddings_ends_with_vectors_and_another_in_its_scripted_state() {
    let simulator = simulator();
    let path = "/v1beta/models/gemini-embedding-2:asyncBatchEmbedContent";
    let request = json!({"content": {"parts": [{"text": "a"}]}, "output_dimensionality": 4});
    let requests = json!({"requests": {"requests": [{"request": request}]}});
    let body = json!({"batch": {"input_config": requests}});
    let (_, created) = json_of(post(&simulator, path, &body).await).await;
    let output = &created["response"]["inlinedEmbedContentResponses"]["inlinedResponses"][0];
    let vector = output["response"]["embedding"]["values"].as_array().expect("a vector");
    assert_eq!(vector.len(), 4);
    let (_, failed) = create(&simulator, &["[[simulate:ends_as=expired]]a"]).await;
    assert_eq!(failed["metadata"]["state"], "BATCH_STATE_EXPIRED");
    assert_eq!((&failed["done"], failed.get("response")), (&json!(true), None));
    let (_, listed) = get(&simulator, "/v1beta/batches").await;
    assert_eq!(listed["operations"].as_array().map(Vec::len), Some(2));
    let path = path_of(&failed);
    assert_eq!(send(&simulator, Method::DELETE, &path).await.status(), 200);
    assert_eq!(get(&simulator, &path).await.0, 404);
}

#[tokio::test]
async fn a_batch_can_be_read_from_a_file() {
    let simulator = simulator();
    let upload = post(&simulator, "/upload/v1beta/files", &json!("0123456789")).await;
    let (_, file) = json_of(upload).await;
    let config = json!({"fileName": file["file"]["name"]});
    let body = json!({"batch": {"inputConfig": config}});
    let (status, created) = json_of(post(&simulator, CREATE, &body).await).await;
    assert_eq!(status, 200);
    assert!(created["response"]["responsesFile"].is_string());
    let unknown = json!({"batch": {"inputConfig": {"fileName": "files/none"}}});
    assert_eq!(post(&simulator, CREATE, &unknown).await.status(), 403);
    assert_eq!(create(&simulator, &[]).await.0, 400);
}
