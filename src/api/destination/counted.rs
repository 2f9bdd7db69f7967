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
    /// Whether its body is a file, which is not read but passed on as it comes.
    pub takes_file: bool,
}

/// Where the model of a call is named.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in crate::api) enum ModelSource {
    /// In its path.
    Path(Model),
    /// In its body as `model` or `agent`, which must be there.
    Body,
    /// In its body, or in the field `within` of it. A call that names none is counted under the
    /// name of its resource.
    BodyOr {
        /// The name of the resource.
        resource: Model,
        /// The field whose object names the model, where the body itself does not.
        within: Option<&'static str>,
    },
}

/// A call that is known to cost something.
struct Row {
    path: Path<'static>,
    kind: CallKind,
    purpose: Purpose,
    /// Whether its body must name a model.
    needs_model: bool,
    /// The field of its body whose object names the model.
    within: Option<&'static str>,
    takes_file: bool,
}

/// How the path of a call is recognized.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Path<'a> {
    /// `…/{model}:{method}`, in any collection.
    Method(&'a str),
    /// `…/{collection}/{name}:{method}`, where the name is not a model's.
    MethodOf(&'a str, &'a str),
    /// A path that ends with `/{resource}`.
    Resource(&'a str),
    /// What follows `/v1beta/openai/`.
    OpenAi(&'a str),
}

impl Row {
    const fn new(path: Path<'static>, kind: CallKind) -> Self {
        let (purpose, needs_model) = (Purpose::Generation, false);
        Self { path, kind, purpose, needs_model, within: None, takes_file: false }
    }

    /// The same for a call that leaves something behind that belongs to the key.
    const fn of_account(path: Path<'static>, kind: CallKind) -> Self {
        Self { purpose: Purpose::Account, ..Self::new(path, kind) }
    }

    const fn needing_model(path: Path<'static>, kind: CallKind) -> Self {
        Self { needs_model: true, ..Self::new(path, kind) }
    }

    const fn naming_model_in(self, field: &'static str) -> Self {
        Self { within: Some(field), ..self }
    }

    const fn taking_file(self) -> Self {
        Self { takes_file: true, ..self }
    }

    fn call(&self, model: ModelSource) -> CountedCall {
        CountedCall { kind: self.kind, model, takes_file: self.takes_file }
    }
}

/// The calls that are known to cost something. To count another one as something of its own, add a
/// row here, and a kind where none fits. Source: Gemini API reference, and the paths and types in
/// Google's Python SDK 3.6.1.
const COUNTED: &[Row] = {
    use CallKind as Kind;
    use Path::{Method, MethodOf, OpenAi, Resource};
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
        Row::new(Resource("voices"), Kind::Voice).naming_model_in("voice"),
        Row::of_account(Resource("executions"), Kind::TriggerExecution),
        Row::of_account(MethodOf(STORES, "importFile"), Kind::IndexFile),
        Row::of_account(MethodOf(STORES, "uploadToFileSearchStore"), Kind::IndexFile).taking_file(),
        Row::needing_model(OpenAi("chat/completions"), Kind::OpenAiChat),
        Row::needing_model(OpenAi("embeddings"), Kind::OpenAiEmbeddings),
        Row::needing_model(OpenAi("images/generations"), Kind::OpenAiOther),
        Row::new(OpenAi("videos"), Kind::OpenAiOther),
        Row::of_account(OpenAi("batches"), Kind::OpenAiBatch),
    ]
};

/// The collection whose files are embedded when they are added.
const STORES: &str = "fileSearchStores";

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
        let known = row_of_collection(path);
        if let (None, Some((model, method))) = (known, method_of_model(path)?) {
            let model = ModelSource::Path(model);
            return Ok(match row(Path::Method(method)) {
                Some(row) => (row.call(model), row.purpose),
                None => {
                    let (kind, purpose) = unknown_method(method);
                    (Self { kind, model, takes_file: false }, purpose)
                }
            });
        }
        let last = path.rsplit_once('/').map(|(_, last)| Path::Resource(last));
        let known = known.or_else(|| row(last?));
        let resource = path.split('/').skip(1).find(|segment| !is_prefix(segment));
        let resource = named(resource.unwrap_or_default());
        let is_credential = path.split(['/', ':']).any(|part| part == AUTH_TOKENS);
        let (call, purpose) = of_row_or(known, CallKind::OtherMethod, resource);
        Ok((call, if is_credential { Purpose::Credential } else { purpose }))
    }

    /// Reads a path of OpenAI's form at Gemini.
    pub(super) fn of_openai(path: &str) -> (Self, Purpose) {
        let path = path.strip_prefix(OPENAI).unwrap_or_default().trim_start_matches('/');
        match row(Path::OpenAi(path)) {
            Some(row) if row.needs_model => (row.call(ModelSource::Body), row.purpose),
            known => {
                let resource = named(path.split('/').next().unwrap_or_default());
                of_row_or(known, CallKind::OpenAiOther, resource)
            }
        }
    }
}

/// The call of a row whose body need not name a model, and what it uses the key for; of another kind
/// where there is no row.
fn of_row_or(known: Option<&Row>, other: CallKind, resource: Model) -> (CountedCall, Purpose) {
    let model = ModelSource::BodyOr { resource, within: known.and_then(|row| row.within) };
    match known {
        Some(row) => (row.call(model), row.purpose),
        None => (CountedCall { kind: other, model, takes_file: false }, Purpose::Account),
    }
}

/// The row of a method of something that is not a model.
fn row_of_collection(path: &str) -> Option<&'static Row> {
    let (collection, last) = path.rsplit_once('/')?;
    let (_, method) = last.rsplit_once(':')?;
    row(Path::MethodOf(collection.rsplit('/').next()?, method))
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
