//! Errors as clients see them: the code from the [table](super::code), the detail, and how each
//! error of the layers below maps to them.

mod client;
mod envelope;
mod live;

use std::time::Duration;

use axum::Json;
use axum::response::{IntoResponse, Response};
use http::header::{ACCEPT_ENCODING, RETRY_AFTER};
use http::{HeaderMap, HeaderValue, StatusCode};
use serde::Serialize;
use utoipa::ToSchema;

use super::code::Code;
use super::semaphore_status::SemaphoreStatus;
use crate::dispatch::CallError;
use crate::gemini;
use crate::generation::{GenerationError, InvalidField, Segment};
use crate::jobs::StoreError;
use crate::limits::{Exhausted, QuotaKind, Refused, StoreUnavailable};
use crate::memory::OverBudget;

pub(super) use envelope::{GoogleFailure, OpenAiFailure};

/// `Retry-After` where no better time is known.
const SOON: Duration = Duration::from_secs(1);

/// `Retry-After` where the counts of a minute have to expire first.
const LATER: Duration = Duration::from_secs(60);

/// An error as the client sees it.
#[derive(Debug, Clone)]
pub(crate) struct ApiError {
    code: Code,
    detail: Detail,
    /// The semaphore that had too few free permits.
    semaphore: Option<Box<SemaphoreStatus>>,
    retry_after: Option<Duration>,
    /// The encodings that are supported, if the body was sent in another one.
    accept_encoding: Option<&'static str>,
}

/// The body of every error.
#[derive(Debug, Clone, Serialize, ToSchema)]
#[schema(example = json!({"detail": "Not Found", "code": "not_found"}))]
pub(super) struct ErrorBody {
    /// What went wrong; for 422 a list of the invalid fields.
    detail: Detail,
    /// The error code, which does not change.
    #[schema(value_type = String)]
    code: Code,
    /// The state of the semaphore, with `lease_unavailable`.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<SemaphoreStatus>)]
    semaphore: Option<Box<SemaphoreStatus>>,
}

/// What went wrong.
#[derive(Debug, Clone, Serialize, ToSchema)]
#[serde(untagged)]
pub(super) enum Detail {
    /// In a sentence.
    Text(String),
    /// Field by field.
    Fields(Vec<FieldError>),
}

/// An invalid field.
#[derive(Debug, Clone, Serialize, ToSchema)]
#[schema(example = json!({"type": "missing", "loc": ["body", "prompt"], "msg": "Field required"}))]
pub(super) struct FieldError {
    /// The kind of error, in a word that does not change.
    #[schema(value_type = String)]
    r#type: &'static str,
    /// The path to the field: keys and indices.
    #[schema(value_type = Vec<Value>)]
    loc: Vec<Segment>,
    /// What is wrong with it.
    msg: String,
}

impl ApiError {
    fn new(code: Code, detail: impl Into<String>) -> Self {
        let detail = Detail::Text(detail.into());
        Self { code, detail, semaphore: None, retry_after: None, accept_encoding: None }
    }

    fn after(self, retry_after: Duration) -> Self {
        Self { retry_after: Some(retry_after), ..self }
    }

    /// Invalid fields of the body.
    pub(super) fn invalid(fields: Vec<InvalidField>) -> Self {
        let fields = fields.into_iter().map(|InvalidField { path, kind, message }| FieldError {
            r#type: kind,
            loc: [Segment::from("body")].into_iter().chain(path).collect(),
            msg: message,
        });
        let detail = Detail::Fields(fields.collect());
        Self { detail, ..Self::new(Code::ValidationError, "") }
    }

    /// An invalid parameter of the query.
    pub(super) fn invalid_in_query(field: InvalidField) -> Self {
        Self::invalid_in("query", field)
    }

    /// An invalid header.
    pub(super) fn invalid_in_header(field: InvalidField) -> Self {
        Self::invalid_in("header", field)
    }

    fn invalid_in(place: &str, InvalidField { path, kind, message }: InvalidField) -> Self {
        let loc = [Segment::from(place)].into_iter().chain(path).collect();
        let detail = Detail::Fields(vec![FieldError { r#type: kind, loc, msg: message }]);
        Self { detail, ..Self::new(Code::ValidationError, "") }
    }

    /// The same error, in an item of a batch.
    pub(super) fn in_item(mut self, index: usize) -> Self {
        self.within("requests", index);
        self
    }

    /// The same error, in a line of a job.
    pub(super) fn in_line(mut self, number: u64) -> Self {
        self.within("line", usize::try_from(number).unwrap_or(usize::MAX));
        self
    }

    fn within(&mut self, list: &str, index: usize) {
        if let Detail::Fields(fields) = &mut self.detail {
            for FieldError { loc, .. } in fields {
                loc.splice(1..1, [Segment::from(list), Segment::Index(index)]);
            }
        }
    }

    /// The request took longer than `REQUEST_TIMEOUT_SECONDS`.
    fn request_timeout() -> Self {
        Self::new(Code::RequestTimeout, "The request timed out.")
    }

    pub(crate) fn internal() -> Self {
        Self::new(Code::InternalError, "Internal error.")
    }

    fn upstream(error: gemini::Error, retry_after: Option<Duration>) -> Self {
        let code = Code::from(&error.kind);
        let retry_after = match code.status() {
            StatusCode::TOO_MANY_REQUESTS => Some(retry_after.unwrap_or(SOON)),
            _ => retry_after,
        };
        Self { retry_after, ..Self::new(code, error.message) }
    }

    /// The headers of the answer, on every surface. Source: RFC 9110, section 12.5.3.
    fn headers(&self) -> HeaderMap {
        let wait = self.retry_after.map(|wait| (RETRY_AFTER, whole_seconds(wait)));
        let encodings = self.accept_encoding;
        let encodings = encodings.map(|all| (ACCEPT_ENCODING, HeaderValue::from_static(all)));
        wait.into_iter().chain(encodings).collect()
    }

    /// The error code.
    pub(crate) fn table_code(&self) -> Code {
        self.code
    }

    /// After how long another attempt can succeed, if that is known.
    pub(crate) fn retry_after(&self) -> Option<Duration> {
        self.retry_after
    }

    /// The invalid fields, if there are any.
    ///
    /// # Errors
    /// The error itself, if it is another one.
    pub(super) fn into_fields(self) -> Result<Vec<FieldError>, Self> {
        match self.detail {
            Detail::Fields(fields) => Ok(fields),
            Detail::Text(_) => Err(self),
        }
    }

    /// Invalid fields in several places.
    pub(super) fn of_fields(fields: Vec<FieldError>) -> Self {
        Self { detail: Detail::Fields(fields), ..Self::new(Code::ValidationError, "") }
    }

    /// The name of the error code.
    pub(super) fn code(&self) -> &'static str {
        self.code.name()
    }

    /// Whether the same request may succeed later.
    pub(super) fn is_retryable(&self) -> bool {
        self.code.is_retryable()
    }

    /// What went wrong.
    pub(super) fn into_detail(self) -> Detail {
        self.detail
    }

    /// What went wrong, as a sentence.
    pub(crate) fn into_text(self) -> String {
        self.detail.into_text()
    }
}

impl From<Refused> for ApiError {
    fn from(refused: Refused) -> Self {
        let error = |detail: &str| Self::new(Code::from(&refused), detail);
        match refused {
            Refused::QueueFull => error("Too many requests are waiting.").after(SOON),
            Refused::SemaphoreDeleted => {
                error("The semaphore was deleted while the request waited for it.")
            }
            Refused::Exhausted(exhausted) => exhausted.into(),
            Refused::Unfunded => error(
                "Gemini says that the account has no funds. Add credits, or raise \
                 its spending cap; the service tries again every few minutes.",
            ),
            Refused::StoreUnavailable(StoreUnavailable { retry_after }) => {
                error("The limits that the replicas share are unavailable.").after(retry_after)
            }
            Refused::TooManyAccounts => {
                error("Too many keys and models are in use to add another one.").after(LATER)
            }
            Refused::MoreThanLimit { limit } => {
                let message = format!("The semaphore has a limit of {limit}");
                Self::invalid(vec![InvalidField::new("permits", "out_of_range", message)])
            }
        }
    }
}

impl From<Exhausted> for ApiError {
    fn from(exhausted: Exhausted) -> Self {
        let error = |detail: &str| Self::new(Code::from(&Refused::from(exhausted)), detail);
        match exhausted {
            Exhausted::NotBefore { kind, retry_after } => error(&format!(
                "{} no room for the request before its deadline.",
                match kind {
                    Some(kind) => format!("{} has", quota(kind)),
                    None => "The key's quotas per minute for the model have".to_owned(),
                }
            ))
            .after(retry_after),
            Exhausted::NoRoom { retry_after } => error(
                "The batch jobs of the key and the model that have not ended leave no room for the \
                 tokens of another one.",
            )
            .after(retry_after),
            Exhausted::DayExhausted { kind, retry_after } => error(&format!(
                "{} is used up. It is renewed at midnight Pacific time.",
                kind.map_or("The key's quota per day for the model".to_owned(), quota)
            ))
            .after(retry_after),
            Exhausted::TooLarge { kind, cost, limit } => {
                let (resource, window) = (kind.resource(), kind.window());
                error(&format!(
                    "The request has about {cost} {resource}, more than the {limit} that the key \
                     may send to the model in a whole {window}."
                ))
            }
            Exhausted::NoQuota { kind } => {
                let quota = kind.map_or("The key's quota for the model".to_owned(), quota);
                error(&format!("{quota} is 0."))
            }
        }
    }
}

/// A quota, as the subject of a sentence.
fn quota(kind: QuotaKind) -> String {
    let (resource, window) = (kind.resource(), kind.window());
    match kind {
        QuotaKind::SpendPerTenMinutes => "What the key may spend in ten minutes".to_owned(),
        QuotaKind::EnqueuedTokens => {
            "What the batch jobs of the key and the model may hold of input tokens".to_owned()
        }
        _ => format!("The key's quota of {resource} per {window} for the model"),
    }
}

impl From<OverBudget> for ApiError {
    fn from(_: OverBudget) -> Self {
        let detail = "The bodies of the requests in flight use all the memory that is reserved \
                      for them. Try again soon.";
        Self::new(Code::ServerBusy, detail).after(SOON)
    }
}

impl From<StoreUnavailable> for ApiError {
    fn from(reason: StoreUnavailable) -> Self {
        Refused::from(reason).into()
    }
}

impl From<StoreError> for ApiError {
    /// The cause is for the log only: it may name files and hosts.
    fn from(error: StoreError) -> Self {
        tracing::warn!(%error, "the job store failed");
        match error {
            StoreError::Full(_) => {
                let detail = "The disk on which jobs are stored is full.";
                Self::new(Code::JobStoreFull, detail).after(LATER)
            }
            StoreError::Unavailable(_) => {
                let detail = "The store of the jobs is unavailable.";
                Self::new(Code::JobStoreUnavailable, detail).after(SOON)
            }
            StoreError::Damaged(_) => {
                Self::new(Code::JobStoreUnavailable, "The store of the jobs is damaged.")
            }
            StoreError::TooNew { .. } => {
                let detail = "A newer version of the service has written the store of the jobs.";
                Self::new(Code::JobStoreUnavailable, detail)
            }
        }
    }
}

impl From<CallError> for ApiError {
    fn from(error: CallError) -> Self {
        match error {
            CallError::Refused(refused) => refused.into(),
            CallError::DeadlineExceeded => Self::request_timeout(),
            CallError::Upstream { error, retry_after, .. } => Self::upstream(*error, retry_after),
        }
    }
}

impl From<GenerationError> for ApiError {
    fn from(error: GenerationError) -> Self {
        match error {
            GenerationError::Dispatch(error) => error.into(),
            GenerationError::SchemaViolation { violations, .. } => {
                let violations = violations.join("; ");
                let detail = format!("The answer does not match the schema: {violations}");
                Self::new(Code::SchemaViolation, detail)
            }
            GenerationError::Internal => Self::internal(),
        }
    }
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        let (status, headers) = (self.code.status(), self.headers());
        let Self { detail, code, semaphore, .. } = self;
        (status, headers, Json(ErrorBody { detail, code, semaphore })).into_response()
    }
}

/// A time in whole seconds, rounded up, because a client that retries too early is refused again.
fn whole_seconds(wait: Duration) -> HeaderValue {
    let seconds = wait.as_secs().saturating_add(u64::from(wait.subsec_nanos() > 0));
    seconds.max(1).into()
}
