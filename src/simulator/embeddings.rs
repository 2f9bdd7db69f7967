//! Embeddings: reading requests in Gemini's and OpenAI's shape, and writing vectors.

use std::borrow::Cow;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use fastrand::Rng;
use serde::Deserialize;
use serde::de::IgnoredAny;
use serde_json::{Value, json};

use super::json::parse;
use super::refusal::ErrorResponse;
use super::repeated::OneOrMany;
use super::request::{Content, GenerateContentRequest, Part, Text};
use super::stats::hash;

/// The default length of a vector. It is short because the values have no meaning.
const DIMENSIONS: usize = 8;

/// The longest vector. Source: Gemini API docs, embeddings.
const MAX_DIMENSIONS: usize = 3072;

/// The most requests of one `batchEmbedContents`.
const MAX_BATCH: usize = 100;

/// Body of `embedContent`, and of each request of `batchEmbedContents`.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[expect(
    dead_code,
    reason = "fields that do not affect the answer are declared so that they are accepted"
)]
struct EmbedContentRequest<'a> {
    #[serde(borrow)]
    content: Option<Content<'a>>,
    #[serde(alias = "output_dimensionality")]
    output_dimensionality: Option<usize>,
    #[serde(alias = "task_type")]
    task_type: Option<IgnoredAny>,
    title: Option<IgnoredAny>,
    model: Option<IgnoredAny>,
}

/// Body of `batchEmbedContents`.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct BatchEmbedContentsRequest<'a> {
    #[serde(borrow)]
    requests: Option<OneOrMany<EmbedContentRequest<'a>>>,
}

/// Body of OpenAI's `embeddings`, as far as it affects the answer.
#[derive(Deserialize)]
struct EmbeddingsRequest<'a> {
    #[serde(borrow)]
    model: Text<'a>,
    #[serde(borrow)]
    input: Input<'a>,
    dimensions: Option<usize>,
    #[serde(borrow)]
    encoding_format: Option<Text<'a>>,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum Input<'a> {
    One(#[serde(borrow)] Text<'a>),
    Many(#[serde(borrow)] Vec<Text<'a>>),
}

/// How embeddings are written.
pub(super) struct Embeddings {
    /// The length of each vector.
    dimensions: Vec<usize>,
    layout: Layout,
}

#[derive(Clone, Copy)]
enum Layout {
    One,
    Batch,
    OpenAi { base64: bool },
}

/// How the vectors are to be written, and the texts as a request in Gemini's shape.
pub(super) type EmbeddingsCall<'a> =
    (Embeddings, Result<GenerateContentRequest<'a>, ErrorResponse>);

/// Reads the body of `embedContent`.
pub(super) fn embed_content(body: &[u8]) -> EmbeddingsCall<'_> {
    native(Layout::One, parse(body).map(|request| vec![request]))
}

/// Reads the body of `batchEmbedContents`.
pub(super) fn batch_embed_contents(body: &[u8]) -> EmbeddingsCall<'_> {
    let requests = parse(body).and_then(|batch: BatchEmbedContentsRequest<'_>| {
        let requests = batch.requests.map_or_else(Vec::new, OneOrMany::into_vec);
        if requests.len() > MAX_BATCH {
            return Err(ErrorResponse::rules(&[format!(
                "BatchEmbedContentsRequest.requests: at most {MAX_BATCH} requests can be in one \
                 batch"
            )]));
        }
        Ok(requests)
    });
    native(Layout::Batch, requests)
}

fn native(
    layout: Layout,
    requests: Result<Vec<EmbedContentRequest<'_>>, ErrorResponse>,
) -> EmbeddingsCall<'_> {
    let (mut dimensions, mut contents) = (Vec::new(), Vec::new());
    let read = requests.and_then(|requests| {
        for request in requests {
            dimensions.push(request.output_dimensionality.unwrap_or(DIMENSIONS));
            contents.push(request.content.ok_or_else(|| {
                ErrorResponse::rules(&[
                    "EmbedContentRequest.content: content is not specified".to_owned()
                ])
            })?);
        }
        check_dimensions(&dimensions)?;
        GenerateContentRequest::of_contents(contents).checked()
    });
    (Embeddings { dimensions, layout }, read)
}

/// Reads the body of OpenAI's `embeddings`, and the model that it names.
pub(super) fn openai_embeddings(body: &[u8]) -> (Cow<'_, str>, EmbeddingsCall<'_>) {
    let form = |dimensions, base64| Embeddings { dimensions, layout: Layout::OpenAi { base64 } };
    let request: EmbeddingsRequest<'_> = match parse(body) {
        Ok(request) => request,
        Err(refusal) => return (Cow::default(), (form(Vec::new(), false), Err(refusal))),
    };
    let texts = match request.input {
        Input::One(text) => vec![text],
        Input::Many(texts) => texts,
    };
    let dimensions = vec![request.dimensions.unwrap_or(DIMENSIONS); texts.len()];
    let contents = texts.into_iter().map(|text| Content::new("user", vec![Part::of_text(text)]));
    let read = check_dimensions(&dimensions)
        .and_then(|()| GenerateContentRequest::of_contents(contents.collect()).checked());
    let base64 = request.encoding_format.is_some_and(|format| format.0 == "base64");
    (request.model.0, (form(dimensions, base64), read))
}

fn check_dimensions(dimensions: &[usize]) -> Result<(), ErrorResponse> {
    match dimensions.iter().find(|length| !(1..=MAX_DIMENSIONS).contains(length)) {
        Some(length) => Err(ErrorResponse::invalid_argument(format!(
            "output_dimensionality must be from 1 to {MAX_DIMENSIONS}, not {length}."
        ))),
        None => Ok(()),
    }
}

impl Embeddings {
    /// Whether OpenAI's client asked for them.
    pub fn is_openai(&self) -> bool {
        matches!(self.layout, Layout::OpenAi { .. })
    }

    /// How many texts there are.
    pub fn len(&self) -> usize {
        self.dimensions.len()
    }

    /// Writes the body, with a vector for each text.
    pub fn encode(&self, request: &GenerateContentRequest<'_>, model: &str) -> Bytes {
        let vectors = request
            .texts()
            .zip(&self.dimensions)
            .map(|(text, length)| vector(&text, model, *length));
        let body = match self.layout {
            Layout::One => json!({"embedding": values(vectors).next()}),
            Layout::Batch => json!({"embeddings": values(vectors).collect::<Vec<_>>()}),
            Layout::OpenAi { base64 } => {
                let data = vectors.enumerate().map(|(index, vector)| {
                    let vector = if base64 { in_base64(&vector) } else { json!(vector) };
                    json!({"object": "embedding", "index": index, "embedding": vector})
                });
                let tokens = request.input_tokens();
                json!({
                    "object": "list",
                    "data": data.collect::<Vec<_>>(),
                    "model": model,
                    "usage": {"prompt_tokens": tokens, "total_tokens": tokens},
                })
            }
        };
        body.to_string().into()
    }
}

fn values(vectors: impl Iterator<Item = Vec<f32>>) -> impl Iterator<Item = Value> {
    vectors.map(|vector| json!({"values": vector}))
}

fn in_base64(vector: &[f32]) -> Value {
    let bytes: Vec<u8> = vector.iter().flat_map(|value| value.to_le_bytes()).collect();
    STANDARD.encode(bytes).into()
}

/// A unit vector. Equal texts have equal vectors.
fn vector(text: &str, model: &str, length: usize) -> Vec<f32> {
    let mut random = Rng::with_seed(hash((model, text)));
    let mut vector: Vec<f32> = (0..length).map(|_| random.f32() - 0.5).collect();
    let norm = vector.iter().map(|value| value * value).sum::<f32>().sqrt();
    vector.iter_mut().for_each(|value| *value /= norm);
    vector
}
