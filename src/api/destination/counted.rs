//! Calls that are counted: of which model, and how.

use super::openai::OPENAI;
use crate::api::auth::Purpose;
use crate::api::error::ApiError;
use crate::gemini::Model;

/// A call that goes through admission.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in crate::api) struct Counted {
    /// What it is called in metrics and logs.
    pub kind: &'static str,
    /// Which model it is for.
    pub target: Target,
    /// Under which name Gemini counts it beside what the model generates, if it does.
    pub apart: Option<&'static str>,
    /// Whether its path says that the answer comes bit by bit.
    pub streams: bool,
}

/// Which model a call is for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in crate::api) enum Target {
    /// The one in its path.
    Path(Model),
    /// The one that its body names as `model` or `agent`, which must be there.
    Body,
    /// The one that its body names. Without one it is counted under the name of its resource.
    BodyOr(Model),
}

/// A method of a model: its name, its kind, and under which name it is counted apart.
type Method = (&'static str, &'static str, Option<&'static str>);

/// The methods that are known. Batch jobs are done when Gemini likes and have quotas of their own,
/// as counting tokens has.
const METHODS: [Method; 9] = [
    ("generateContent", "generate_content", None),
    ("streamGenerateContent", "stream_generate_content", None),
    ("countTokens", COUNT_TOKENS, Some("countTokens")),
    ("embedContent", "embed_content", None),
    ("batchEmbedContents", "embed_content", None),
    ("predict", "predict", None),
    ("predictLongRunning", "predict", None),
    ("batchGenerateContent", CREATE_BATCH, Some("batchGenerateContent")),
    ("asyncBatchEmbedContent", CREATE_BATCH, Some("asyncBatchEmbedContent")),
];

const COUNT_TOKENS: &str = "count_tokens";
/// What the creation of a batch job is called.
const CREATE_BATCH: &str = "create_batch";

/// The resources whose creation generates at once, with the kind of each. Source: paths and types in
/// Google's Python SDK 3.6.1.
const GENERATING: [(&str, &str); 3] =
    [("interactions", "interaction"), ("decisions", "decision"), ("voices", "voice")];

/// Credentials with which a client calls Gemini past this service.
const AUTH_TOKENS: &str = "auth_tokens";

/// What a resource is called whose name cannot be a model's.
const OTHER: &str = "other";

impl Counted {
    /// Reads a path of Gemini's.
    ///
    /// # Errors
    /// 400 for a call of something that is no model.
    pub(super) fn of_gemini(path: &str) -> Result<(Self, Purpose), ApiError> {
        if let Some((model, method)) = method_of_model(path)? {
            let known = METHODS.iter().find(|(name, ..)| *name == method);
            let (kind, apart) = match known {
                Some((_, kind, apart)) => (*kind, *apart),
                None if method.starts_with("predict") => ("predict", None),
                None => ("other_method", None),
            };
            let purpose = match kind {
                CREATE_BATCH | "other_method" => Purpose::Account,
                _ => Purpose::Generation,
            };
            let streams = method.starts_with("stream");
            return Ok((Self { kind, target: Target::Path(model), apart, streams }, purpose));
        }
        let resource = path.split('/').skip(1).find(|segment| !is_prefix(segment));
        let resource = resource.unwrap_or_default();
        let generating = GENERATING.iter().find(|(name, _)| path.ends_with(&format!("/{name}")));
        let purpose = if path.split(['/', ':']).any(|part| part == AUTH_TOKENS) {
            Purpose::Credential
        } else if generating.is_some() {
            Purpose::Generation
        } else {
            Purpose::Account
        };
        let kind = generating.map_or("other_method", |(_, kind)| *kind);
        Ok((Self::of_body(kind, Target::BodyOr(named(resource))), purpose))
    }

    /// Reads a path of OpenAI's shape at Gemini.
    pub(super) fn of_openai(path: &str) -> (Self, Purpose) {
        let resource = path.strip_prefix(OPENAI).unwrap_or_default().trim_start_matches('/');
        let other = || Target::BodyOr(named(resource.split('/').next().unwrap_or_default()));
        match resource {
            "chat/completions" => (Self::of_body("openai_chat", Target::Body), Purpose::Generation),
            "embeddings" => (Self::of_body("openai_embeddings", Target::Body), Purpose::Generation),
            "images/generations" => {
                (Self::of_body("openai_other", Target::Body), Purpose::Generation)
            }
            "videos" => (Self::of_body("openai_other", other()), Purpose::Generation),
            "batches" => {
                let call = Self::of_body(CREATE_BATCH, other());
                (Self { apart: Some("create"), ..call }, Purpose::Account)
            }
            _ => (Self::of_body("openai_other", other()), Purpose::Account),
        }
    }

    fn of_body(kind: &'static str, target: Target) -> Self {
        Self { kind, target, apart: None, streams: false }
    }
}

/// The model and the method of `…/models/{model}:{method}`. A method of a model that is known is one
/// in any collection.
fn method_of_model(path: &str) -> Result<Option<(Model, &str)>, ApiError> {
    let Some((collection, last)) = path.rsplit_once('/') else { return Ok(None) };
    let Some((model, method)) = last.rsplit_once(':') else { return Ok(None) };
    let collection = collection.rsplit('/').next().unwrap_or_default();
    let is_known = METHODS.iter().any(|(name, ..)| *name == method);
    let name = match collection {
        "tunedModels" => format!("tunedModels/{model}"),
        "models" => model.to_owned(),
        _ if is_known => model.to_owned(),
        _ => return Ok(None),
    };
    let model = Model::parse(&name).map_err(|error| ApiError::unusable_path(error.to_string()))?;
    Ok(Some((model, method)))
}

/// Whether a segment stands in front of the resource.
fn is_prefix(segment: &str) -> bool {
    matches!(segment, "v1" | "v1beta" | "v1alpha" | "upload" | "download")
}

/// The name under which calls of a resource are counted.
fn named(resource: &str) -> Model {
    let name = resource.split(':').next().unwrap_or_default();
    Model::parse(name).unwrap_or_else(|_| Model::parse(OTHER).expect("a name"))
}
