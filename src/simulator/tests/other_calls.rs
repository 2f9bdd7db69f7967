//! The other calls that cost tokens.

use super::*;

async fn ask_for(simulator: &Simulator, path: &str, body: Value) -> (u16, Value) {
    json_of(post(simulator, path, &body).await).await
}

#[tokio::test]
async fn a_decision_answers_every_question_and_has_usage() {
    let simulator = simulator();
    let body = json!({
        "model": "models/gemini-3.8-flash",
        "input": "Is it new?",
        "questions": {
            "which": {"type": "choice", "criteria": {"old": "not new", "new": "not old"}},
            "is_new": {"type": "noul"},
            "how_new": {"type": "score"},
        },
    });
    let (status, answer) = ask_for(&simulator, "/v1beta/decisions", body).await;
    assert_eq!((status, &answer["answers"]["which"]["choice"]), (200, &json!("old")));
    assert_eq!(answer["answers"].as_object().map(serde_json::Map::len), Some(3));
    assert_eq!(answer["usage"]["total_input_tokens"], 3);
    assert_eq!(simulator.stats().by_model["gemini-3.8-flash"], 1);
    let unnamed = json!({"input": "a", "questions": {}});
    let (status, refusal) = ask_for(&simulator, "/v1beta/decisions", unnamed).await;
    assert_eq!((status, &refusal["error"]["code"]), (404, &json!("model_not_found")));
}

#[tokio::test]
async fn a_voice_has_a_sample_and_usage() {
    let body = json!({"voice": {"type": "prompted", "prompted": {"prompt": "warm"}}});
    let (status, voice) = ask_for(&simulator(), "/v1/voices", body).await;
    assert_eq!((status, &voice["type"]), (200, &json!("prompted")));
    assert!(voice["sample_audio"]["data"].is_string());
    assert!(voice["usage"]["total_input_tokens"].as_u64() > Some(0));
}

#[tokio::test]
async fn a_trigger_execution_starts_an_interaction() {
    let simulator = simulator();
    let interaction = json!({"agent": "deep-research-preview-04-2026", "input": "a"});
    let trigger = json!({"interaction": interaction, "schedule": "0 0 * * *", "time_zone": "UTC"});
    let (_, trigger) = ask_for(&simulator, "/v1beta/triggers", trigger).await;
    assert_eq!(simulator.stats().calls, 0);
    let id = trigger["id"].as_str().expect("an ID");
    let path = format!("/v1beta/triggers/{id}/executions");
    let (status, execution) = ask_for(&simulator, &path, json!({})).await;
    assert_eq!((status, &execution["status"]), (200, &json!("in_progress")));
    let interaction = execution["interaction_id"].as_str().expect("an ID");
    let (_, ended) = get(&simulator, &format!("/v1beta/interactions/{interaction}")).await;
    assert_eq!(ended["status"], "completed");
    assert_eq!(simulator.stats().calls, 1);
    let path = "/v1beta/triggers/none/executions";
    assert_eq!(ask_for(&simulator, path, json!({})).await.0, 404);
}

#[tokio::test]
async fn adding_a_file_to_a_store_costs_tokens_of_the_embedding_model() {
    let simulator = simulator();
    let upload = post(&simulator, "/upload/v1beta/files", &json!("0123456789")).await;
    let (_, file) = json_of(upload).await;
    let import = json!({"fileName": file["file"]["name"]});
    let path = "/v1beta/fileSearchStores/mine:importFile";
    let (status, operation) = ask_for(&simulator, path, import).await;
    assert_eq!((status, operation.get("done")), (200, None));
    let name = operation["name"].as_str().expect("a name");
    assert_eq!(get(&simulator, &format!("/v1beta/{name}")).await.1["done"], true);
    assert_eq!(simulator.stats().admitted_input_tokens, 3);

    let path = "/upload/v1beta/fileSearchStores/mine:uploadToFileSearchStore";
    let (status, operation) = ask_for(&simulator, path, json!("0123456789")).await;
    assert_eq!(status, 200);
    assert!(operation["name"].as_str().expect("a name").contains("/operations/"));
    let stats = simulator.stats();
    assert_eq!((stats.admitted_input_tokens, stats.by_model["gemini-embedding-001"]), (6, 2));
}
