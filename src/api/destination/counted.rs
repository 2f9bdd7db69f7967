//! Calls that are counted: what each counts as, and for which model.

use super::openai::OPENAI;
use crate::api::auth::Purpose;
use crate::api::error::ApiError;
use crate::dispatch::CallKind;
use crate::gemini::Model;

/// A call that goes through admission.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in crate::api) struct CountedCall {
    /// What it counts as.
    pub kind: CallKind,
    /// Where its model is named.
    pub model: ModelSource,
}

/// Where the model of a call is named.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in crate::api) enum ModelSource {
    /// In its path.
    Path(Model),
    /// In its body as `model` or `agent`, which must be there.
    Body,
    /// In its body. A call that names none is counted under the name of its resource.
    BodyOr(Model),
}

/// A call that is known to cost something.
struct Row {
    path: Path<'static>,
    kind: CallKind,
    purpose: Purpose,
    /// Whether its body must name a model.
    needs_model: bool,
}

/// How the path of a call is recognized.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Path<'a> {
    /// `…/{model}:{method}`, in any collection.
    Method(&'a str),
    /// A path that ends with `/{resource}`.
    Resource(&'a str),
    /// What follows `/v1beta/openai/`.
    OpenAi(&'a str),
}

impl Row {
    const fn new(path: Path<'static>, kind: CallKind) -> Self {
        Self { path, kind, purpose: Purpose::Generation, needs_model: false }
    }

    /// The same for a call that leaves something behind that belongs to the key.
    const fn of_account(path: Path<'static>, kind: CallKind) -> Self {
        Self { purpose: Purpose::Account, ..Self::new(path, kind) }
    }

    const fn needing_model(path: Path<'static>, kind: CallKind) -> Self {
        Self { needs_model: true, ..Self::new(path, kind) }
    }
}

/// The calls that are known to cost something. To count another one as something of its own, add a
/// row here, and a kind where none fits. Source: Gemini API reference, and the paths and types in
/// Google's Python SDK 3.6.1.
const COUNTED: &[Row] = {
    use CallKind as Kind;
    use Path::{Method, OpenAi, Resource};
    &[
        Row::new(Method("generateContent"), Kind::GenerateContent),
        Row::new(Method("streamGenerateContent"), Kind::StreamGenerateContent),
        Row::new(Method("countTokens"), Kind::CountTokens),
        Row::new(Method("embedContent"), Kind::EmbedContent),
        Row::new(Method("batchEmbedContents"), Kind::EmbedContent),
        Row::new(Method("predict"), Kind::Predict),
        Row::new(Method("predictLongRunning"), Kind::Predict),
        Row::of_account(Method("batchGenerateContent"), Kind::BatchGenerateContent),
        Row::of_account(Method("asyncBatchEmbedContent"), Kind::AsyncBatchEmbedContent),
        Row::new(Resource("interactions"), Kind::Interaction),
        Row::new(Resource("decisions"), Kind::Decision),
        Row::new(Resource("voices"), Kind::Voice),
        Row::needing_model(OpenAi("chat/completions"), Kind::OpenAiChat),
        Row::needing_model(OpenAi("embeddings"), Kind::OpenAiEmbeddings),
        Row::needing_model(OpenAi("images/generations"), Kind::OpenAiOther),
        Row::new(OpenAi("videos"), Kind::OpenAiOther),
        Row::of_account(OpenAi("batches"), Kind::OpenAiBatch),
    ]
};

/// Credentials with which a client calls Gemini past this service.
const AUTH_TOKENS: &str = "auth_tokens";

/// The name under which calls are counted whose resource has no name that a model could have.
const OTHER: &str = "other";

impl CountedCall {
    /// Reads a path of Gemini's.
    ///
    /// # Errors
    /// 400 for a method of something that cannot be a model.
    pub(super) fn of_gemini(path: &str) -> Result<(Self, Purpose), ApiError> {
        if let Some((model, method)) = method_of_model(path)? {
            let (kind, purpose) = match row(Path::Method(method)) {
                Some(row) => (row.kind, row.purpose),
                None => unknown_method(method),
            };
            return Ok((Self { kind, model: ModelSource::Path(model) }, purpose));
        }
        let known = path.rsplit_once('/').and_then(|(_, last)| row(Path::Resource(last)));
        let purpose = if path.split(['/', ':']).any(|part| part == AUTH_TOKENS) {
            Purpose::Credential
        } else {
            known.map_or(Purpose::Account, |row| row.purpose)
        };
        let kind = known.map_or(CallKind::OtherMethod, |row| row.kind);
        let resource = path.split('/').skip(1).find(|segment| !is_prefix(segment));
        let model = ModelSource::BodyOr(named(resource.unwrap_or_default()));
        Ok((Self { kind, model }, purpose))
    }

    /// Reads a path of OpenAI's form at Gemini.
    pub(super) fn of_openai(path: &str) -> (Self, Purpose) {
        let path = path.strip_prefix(OPENAI).unwrap_or_default().trim_start_matches('/');
        let known = row(Path::OpenAi(path));
        let model = match known {
            Some(row) if row.needs_model => ModelSource::Body,
            _ => ModelSource::BodyOr(named(path.split('/').next().unwrap_or_default())),
        };
        let (kind, purpose) =
            known.map_or((CallKind::OpenAiOther, Purpose::Account), |row| (row.kind, row.purpose));
        (Self { kind, model }, purpose)
    }
}

/// The row of a path.
fn row(path: Path<'_>) -> Option<&'static Row> {
    COUNTED.iter().find(|row| row.path == path)
}

/// What a method counts as that has no row.
fn unknown_method(method: &str) -> (CallKind, Purpose) {
    if method.starts_with("predict") {
        (CallKind::Predict, Purpose::Generation)
    } else if method.starts_with("stream") {
        (CallKind::OtherStream, Purpose::Account)
    } else {
        (CallKind::OtherMethod, Purpose::Account)
    }
}

/// The model and the method of `…/models/{model}:{method}`. A known method counts for a model in
/// any collection.
fn method_of_model(path: &str) -> Result<Option<(Model, &str)>, ApiError> {
    let Some((collection, last)) = path.rsplit_once('/') else { return Ok(None) };
    let Some((model, method)) = last.rsplit_once(':') else { return Ok(None) };
    let name = match collection.rsplit('/').next() {
        Some("tunedModels") => format!("tunedModels/{model}"),
        Some("models") => model.to_owned(),
        _ if row(Path::Method(method)).is_some() => model.to_owned(),
        _ => return Ok(None),
    };
    let model = Model::parse(&name).map_err(|error| ApiError::unusable_path(error.to_string()))?;
    Ok(Some((model, method)))
}

/// Whether a segment stands before the resource.
fn is_prefix(segment: &str) -> bool {
    matches!(segment, "v1" | "v1beta" | "v1alpha" | "upload" | "download")
}

/// The name under which calls of a resource are counted.
fn named(resource: &str) -> Model {
    let name = resource.split(':').next().unwrap_or_default();
    Model::parse(name).unwrap_or_else(|_| Model::parse(OTHER).expect("a name"))
}
