//! Embeddings, in Gemini's shape and in OpenAI's.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;

use super::*;

const EMBED: &str = "/v1beta/models/gemini-embedding-001:embedContent";
const BATCH: &str = "/v1/models/text-embedding-004:batchEmbedContents";
const OPENAI: &str = "/v1beta/openai/embeddings";

fn to_embed(text: &str) -> Value {
    json!({"content": {"parts": [{"text": text}]}})
}

async fn embed(simulator: &Simulator, text: &str) -> (u16, Value) {
    json_of(post(simulator, EMBED, &to_embed(text)).await).await
}

fn floats(values: &Value) -> Vec<f32> {
    let values = values.as_array().expect("a vector");
    values.iter().map(|value| value.as_f64().expect("a number") as f32).collect()
}

#[tokio::test]
async fn equal_texts_have_equal_vectors() {
    let simulator = simulator();
    let (status, first) = embed(&simulator, "a").await;
    assert_eq!((status, floats(&first["embedding"]["values"]).len()), (200, 8));
    assert_eq!(embed(&simulator, "a").await.1, first);
    assert_ne!(embed(&simulator, "b").await.1, first);
    let mut shorter = to_embed("a");
    shorter["outputDimensionality"] = json!(3);
    let (_, answer) = json_of(post(&simulator, EMBED, &shorter).await).await;
    assert_eq!(floats(&answer["embedding"]["values"]).len(), 3);
}

#[tokio::test]
async fn each_text_counts_as_a_request() {
    let options = Options { requests_per_minute: Some(3), ..Options::default() };
    let simulator = Simulator::new(options);
    let two = json!({"requests": [to_embed("a"), to_embed("b")]});
    assert_eq!(post(&simulator, BATCH, &two).await.status(), 200);
    let openai = json!({"model": "gemini-embedding-001", "input": ["a", "b"]});
    assert_eq!(post(&simulator, BATCH, &two).await.status(), 429, "one is left");
    assert_eq!(embed(&simulator, "a").await.0, 200);
    assert_eq!(post(&simulator, OPENAI, &openai).await.status(), 200, "of another model");
    assert_eq!(post(&simulator, OPENAI, &openai).await.status(), 429);
}

#[tokio::test]
async fn a_batch_keeps_its_order() {
    let simulator = simulator();
    let mut requests = vec![to_embed("a"), to_embed("b"), to_embed("a")];
    requests[1]["output_dimensionality"] = json!(2);
    let (status, answer) =
        json_of(post(&simulator, BATCH, &json!({"requests": requests})).await).await;
    assert_eq!(status, 200);
    let vectors: Vec<_> = answer["embeddings"]
        .as_array()
        .expect("embeddings")
        .iter()
        .map(|embedding| floats(&embedding["values"]))
        .collect();
    assert_eq!(vectors.iter().map(Vec::len).collect::<Vec<_>>(), [8, 2, 8]);
    assert_eq!(vectors[0], vectors[2]);
}

#[tokio::test]
async fn openais_clients_get_floats_or_base64() {
    let simulator = simulator();
    let mut body = json!({"model": "gemini-embedding-001", "input": ["abcd", "b"]});
    let (status, answer) = json_of(post_as_openai(&simulator, OPENAI, &body).await).await;
    assert_eq!((status, &answer["object"]), (200, &json!("list")));
    assert_eq!(answer["usage"], json!({"prompt_tokens": 2, "total_tokens": 2}));
    assert_eq!(answer["data"][1]["index"], 1);
    let (_, native) = embed(&simulator, "abcd").await;
    let vector = floats(&native["embedding"]["values"]);
    assert_eq!(floats(&answer["data"][0]["embedding"]), vector);

    body["input"] = json!("abcd");
    body["encoding_format"] = json!("base64");
    let (_, answer) = json_of(post_as_openai(&simulator, OPENAI, &body).await).await;
    let encoded = answer["data"][0]["embedding"].as_str().expect("base64");
    let bytes = STANDARD.decode(encoded).expect("base64");
    let decoded: Vec<f32> = bytes
        .chunks_exact(4)
        .map(|bytes| f32::from_le_bytes(bytes.try_into().expect("four bytes")))
        .collect();
    assert_eq!(decoded, vector);
}

#[tokio::test]
async fn embeddings_obey_markers_and_quotas() {
    let simulator = Simulator::new(Options {
        requests_per_minute: Some(2),
        journal: true,
        ..Options::default()
    });
    assert_eq!(embed(&simulator, "a").await.0, 200);
    assert_eq!(embed(&simulator, "[[simulate:status=503]]").await.0, 503);
    assert_eq!(embed(&simulator, "c").await.0, 429);
    let body = json!({"model": "gemini-embedding-001", "input": "d"});
    let (status, refusal) = json_of(post_as_openai(&simulator, OPENAI, &body).await).await;
    assert_eq!((status, &refusal[0]["error"]["code"]), (429, &json!(429)));
    let stats = simulator.stats();
    assert_eq!((stats.calls, stats.answered, stats.by_model["gemini-embedding-001"]), (4, 1, 4));
    let journal = simulator.journal();
    assert_eq!((journal[0].prompt_text.as_str(), &journal[0].body), ("a", &to_embed("a")));
    assert_eq!(journal[3].body, body);
}

#[tokio::test]
async fn embeddings_that_gemini_refuses_are_refused() {
    let simulator = simulator();
    let mut endless = to_embed("a");
    endless["outputDimensionality"] = json!(1_000_000_000);
    for (path, body) in [
        (EMBED, json!({})),
        (EMBED, chat("a")),
        (EMBED, endless),
        (BATCH, json!({"requests": []})),
        (BATCH, json!({"requests": vec![to_embed("a"); 101]})),
        (OPENAI, json!({"model": "gemini-embedding-001", "input": []})),
    ] {
        let response = post(&simulator, path, &body).await;
        assert_eq!(response.status(), 400, "{path} {body}");
    }
}
