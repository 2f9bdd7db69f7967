//! What a request says of a whole job: in its query, its headers, a first line or beside its requests.

use bytes::Bytes;
use http::HeaderMap;
use serde::Deserialize;
use serde_json::value::RawValue;
use serde_json::{Map, Value};
use utoipa::ToSchema;

use super::query::Query;
use super::rules::{FALLBACK, UNSHARED};
use crate::api::auth::check_text;
use crate::api::credentials::Credentials;
use crate::api::error::ApiError;
use crate::api::incoming::semaphore_id;
use crate::api::service_tier::TierFields;
use crate::gateway::Gateway;
use crate::gemini::Model;
use crate::generation::InvalidField;
use crate::jobs::webhook::check_webhook_url;
use crate::jobs::{JobKind, JobSpec, SharedFields};

/// The parameters of `POST /jobs`.
pub(super) const PARAMETERS: &[&str] = &[
    "kind",
    "model",
    "job_name",
    "external_semaphore_id",
    "service_tier",
    "flex_fallback_seconds",
    "webhook_url",
];

/// The longest options that a job may have, in bytes.
pub(super) const MAX_OPTIONS: usize = 4 << 20;

/// The longest name of a job, in characters.
const MAX_NAME: usize = 256;

/// The options of a job. A first line has them as `{"job": {…}}`.
#[derive(Debug, Default, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub(in crate::api) struct JobOptions {
    kind: Option<JobKind>,
    model: Option<String>,
    job_name: Option<String>,
    external_semaphore_id: Option<String>,
    service_tier: Option<String>,
    flex_fallback_seconds: Option<f64>,
    webhook_url: Option<String>,
    shared: Option<Map<String, Value>>,
}

/// A job as JSON: a list of requests, with what a batch has beside it and the options of a job.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(example = json!({"kind": "chat", "job_name": "questions", "requests": [
    {"prompt": "Why is the sky blue?", "custom_id": "sky"},
    {"prompt": "Why is the sea salty?", "custom_id": "sea"}
]}))]
pub(in crate::api) struct JobBatch {
    /// The items: requests of the kind's endpoint, with an optional `custom_id` or `id`, or lines of
    /// Gemini's or OpenAI's batch files.
    #[schema(value_type = Vec<Object>)]
    requests: Vec<Box<RawValue>>,
    /// The caller's own key. It is not stored.
    credentials: Option<Credentials>,
    /// `chat`, `structured-output`, `cinematic-story-design`, `gemini` or `openai`.
    #[schema(value_type = Option<String>)]
    kind: Option<JobKind>,
    /// The model of the items that name none.
    model: Option<String>,
    /// A name for people: 1 to 256 characters.
    #[schema(min_length = 1, max_length = 256)]
    job_name: Option<String>,
    /// The semaphore of the items that name none.
    external_semaphore_id: Option<String>,
    /// The service tier of the items that name none: `standard`, `flex` or `priority`.
    #[schema(pattern = "^(standard|flex|priority)$")]
    service_tier: Option<String>,
    /// With the service tier `flex`: after how many seconds an item that has not been served is sent in
    /// the standard tier instead.
    #[schema(exclusive_minimum = 0, maximum = 31_536_000)]
    flex_fallback_seconds: Option<f64>,
    /// Where the end of the job is announced.
    webhook_url: Option<String>,
    /// Fields that are added to each item that lacks them, such as a system prompt or a schema.
    #[schema(value_type = Option<Object>)]
    shared: Option<Map<String, Value>>,
}

impl JobBatch {
    /// The key that pays, if it is here; the options; and the items.
    pub(in crate::api) fn into_parts(self) -> (Option<Credentials>, JobOptions, Vec<Bytes>) {
        let Self { requests, credentials, kind, model, job_name, .. } = self;
        let Self { external_semaphore_id, service_tier, flex_fallback_seconds, .. } = self;
        let Self { webhook_url, shared, .. } = self;
        let options = JobOptions {
            kind,
            model,
            job_name,
            external_semaphore_id,
            service_tier,
            flex_fallback_seconds,
            webhook_url,
            shared,
        };
        let requests = requests.into_iter().map(|request| Box::<str>::from(request).into_string());
        (credentials, options, requests.map(Bytes::from).collect())
    }
}

impl JobOptions {
    /// The options in the query and in the headers.
    ///
    /// # Errors
    /// 422 for a value that cannot be read.
    pub(super) fn of_head(mut query: Query, headers: &HeaderMap) -> Result<Self, ApiError> {
        let kind = query.take("kind").map(|kind| kind_named(&kind)).transpose();
        let kind = kind.map_err(ApiError::invalid_in_query)?;
        let seconds = query.take(FALLBACK).map(|seconds| seconds.parse());
        let flex_fallback_seconds = seconds.transpose().map_err(|_| {
            let message = "Input should be a number";
            ApiError::invalid_in_query(InvalidField::new(FALLBACK, "float_type", message))
        })?;
        Ok(Self {
            kind,
            model: query.take("model"),
            job_name: query.take("job_name"),
            external_semaphore_id: query
                .take("external_semaphore_id")
                .or_else(|| semaphore_id(headers)),
            service_tier: query.take("service_tier"),
            flex_fallback_seconds,
            webhook_url: query.take("webhook_url"),
            shared: None,
        })
    }

    /// Sets an option from the field of a form. Returns whether there is such an option.
    ///
    /// # Errors
    /// The value cannot be read.
    pub(super) fn set(&mut self, name: &str, value: String) -> Result<bool, InvalidField> {
        match name {
            "kind" => self.kind = Some(kind_named(&value)?),
            "model" => self.model = Some(value),
            "job_name" => self.job_name = Some(value),
            "external_semaphore_id" => self.external_semaphore_id = Some(value),
            "service_tier" => self.service_tier = Some(value),
            "webhook_url" => self.webhook_url = Some(value),
            FALLBACK => {
                let seconds = value.parse().map_err(|_| {
                    InvalidField::new(FALLBACK, "float_type", "Input should be a number")
                })?;
                self.flex_fallback_seconds = Some(seconds);
            }
            "shared" => {
                let shared = serde_json::from_str(&value).map_err(|_| {
                    InvalidField::new("shared", "object_type", "Input should be an object")
                })?;
                self.shared = Some(shared);
            }
            _ => return Ok(false),
        }
        Ok(true)
    }

    /// These options, and those of `other` where these have none.
    pub(super) fn or(self, other: Self) -> Self {
        Self {
            kind: self.kind.or(other.kind),
            model: self.model.or(other.model),
            job_name: self.job_name.or(other.job_name),
            external_semaphore_id: self.external_semaphore_id.or(other.external_semaphore_id),
            service_tier: self.service_tier.or(other.service_tier),
            flex_fallback_seconds: self.flex_fallback_seconds.or(other.flex_fallback_seconds),
            webhook_url: self.webhook_url.or(other.webhook_url),
            shared: self.shared.or(other.shared),
        }
    }

    /// The kind that they name.
    pub(super) fn kind(&self) -> Option<JobKind> {
        self.kind
    }

    /// The same with another kind.
    pub(super) fn of_kind(self, kind: Option<JobKind>) -> Self {
        Self { kind, ..self }
    }

    /// The options of a batch of this kind, by the headers of its request.
    pub(in crate::api) fn of_batch(kind: JobKind, headers: &HeaderMap) -> Self {
        let external_semaphore_id = semaphore_id(headers);
        Self { kind: Some(kind), external_semaphore_id, ..Self::default() }
    }

    /// What is stored of a job of this kind. The model, the semaphore and the tier among the shared
    /// fields count as the job's own.
    ///
    /// # Errors
    /// 401 if they contain the admin key, 422 with every option that cannot be used.
    pub(super) async fn spec(
        self,
        kind: JobKind,
        gateway: &Gateway,
    ) -> Result<(JobSpec, SharedFields), ApiError> {
        let mut errors = Vec::new();
        let mut shared = self.shared.unwrap_or_default();
        let mut text = |name: &str, own: Option<String>| {
            let shared = shared.shift_remove(name).filter(|value| !value.is_null());
            match (own, shared) {
                (None, Some(Value::String(shared))) => Some(shared),
                (None, Some(_)) => {
                    errors.push(in_shared(name, "string_type", "Input should be a string"));
                    None
                }
                (own, _) => own,
            }
        };
        let model = text("model", self.model);
        let external_semaphore_id = text("external_semaphore_id", self.external_semaphore_id);
        let service_tier = text("service_tier", self.service_tier);
        if let Some(seconds) = self.flex_fallback_seconds {
            shared.insert(FALLBACK.to_owned(), seconds.into());
        }
        for name in UNSHARED.iter().filter(|name| shared.contains_key(**name)) {
            errors.push(in_shared(name, "extra_forbidden", "This field cannot be shared"));
        }
        match shared.get(FALLBACK) {
            Some(_) if matches!(kind, JobKind::Gemini | JobKind::OpenAi) => {
                let message = "Calls in Gemini's or OpenAI's form do not fall back";
                errors.push(InvalidField::new(FALLBACK, "value_error", message));
            }
            Some(seconds) if !seconds.is_number() => {
                errors.push(in_shared(FALLBACK, "float_type", "Input should be a number"));
            }
            seconds => {
                let flex_fallback_seconds = seconds.and_then(Value::as_f64);
                let tier = TierFields { service_tier: service_tier.clone(), flex_fallback_seconds };
                errors.extend(tier.check().err().into_iter().flatten());
            }
        }
        if let Some(error) = model.as_deref().and_then(|model| Model::parse(model).err()) {
            errors.push(InvalidField::new("model", "model_name", error.to_string()));
        }
        errors.extend(self.job_name.as_deref().and_then(invalid_name));
        if let Some(url) = &self.webhook_url
            && let Err(error) = check_webhook_url(url, &gateway.config.webhooks)
        {
            errors.push(InvalidField::new("webhook_url", "url", error.to_string()));
        }
        let shared_text = serde_json::to_vec(&shared).map_err(|_| ApiError::internal())?;
        if shared_text.len() > MAX_OPTIONS {
            let message = format!("The shared fields have at most {MAX_OPTIONS} bytes");
            errors.push(InvalidField::new("shared", "too_long", message));
        }
        if !errors.is_empty() {
            return Err(ApiError::invalid(errors));
        }
        let spec = JobSpec {
            kind,
            name: self.job_name,
            model,
            external_semaphore_id,
            service_tier,
            webhook_url: self.webhook_url,
            shared_bytes: if shared.is_empty() { 0 } else { shared_text.len() },
        };
        let text = serde_json::to_vec(&spec).map_err(|_| ApiError::internal())?;
        check_text(|| text.into(), gateway).await?;
        check_text(|| shared_text.into(), gateway).await?;
        Ok((spec, shared))
    }
}

fn kind_named(name: &str) -> Result<JobKind, InvalidField> {
    let kind = serde_json::from_value(Value::String(name.to_owned()));
    kind.map_err(|_| unknown_kind())
}

/// The error for a job whose kind is not known.
pub(super) fn unknown_kind() -> InvalidField {
    let message = "Input should be 'chat', 'structured-output', 'cinematic-story-design', 'gemini' \
                   or 'openai'; only lines in Gemini's or OpenAI's form show their kind";
    InvalidField::new("kind", "literal_error", message)
}

fn in_shared(name: &str, kind: &'static str, message: &str) -> InvalidField {
    let path = vec!["shared".into(), name.into()];
    InvalidField { path, kind, message: message.to_owned() }
}

fn invalid_name(name: &str) -> Option<InvalidField> {
    let is_valid = (1..=MAX_NAME).contains(&name.chars().count());
    let message = || format!("A name has 1 to {MAX_NAME} characters");
    (!is_valid).then(|| InvalidField::new("job_name", "string_length", message()))
}
