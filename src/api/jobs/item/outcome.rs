//! What becomes of an item, and its result in the words of its kind.

use std::borrow::Cow;

use bytes::Bytes;
use http::{Response, StatusCode};
use serde::Serialize;
use serde_json::value::RawValue;

use crate::api::batch::{BatchResult, ItemError, ItemIds};
use crate::api::code::Code;
use crate::api::error::{ApiError, GoogleFailure, OpenAiFailure};
use crate::api::jobs::object::{Object, compact};
use crate::dispatch::CallError;
use crate::gemini::{Model, Usage};
use crate::generation::GenerationError;
use crate::jobs::item::ItemOutcome;
use crate::jobs::{Answered, JobId};

/// What identifies an item in its result.
#[derive(Debug)]
pub(in crate::api::jobs) struct Labels {
    pub job: JobId,
    pub index: u64,
    pub names: Names,
    /// The model that is asked.
    pub model: Model,
    /// Whether the item itself names the model, so that other items may have others.
    pub names_model: bool,
}

/// The ids that a caller gave to an item, by the form of its line.
#[derive(Debug)]
pub(in crate::api::jobs) enum Names {
    Own(ItemIds),
    OpenAi(Option<String>),
    Gemini(Option<String>),
}

/// Why an item has no answer.
pub(in crate::api::jobs) struct Failure {
    error: ApiError,
    /// The tokens that were spent all the same.
    usage: Usage,
    /// Gemini's response, where there is one.
    response: Option<Box<Response<Bytes>>>,
    /// Whether Gemini was asked.
    was_sent: bool,
}

impl From<ApiError> for Failure {
    fn from(error: ApiError) -> Self {
        Self { error, usage: Usage::default(), response: None, was_sent: false }
    }
}

impl From<CallError> for Failure {
    fn from(mut error: CallError) -> Self {
        let (usage, response, was_sent) = match &mut error {
            CallError::Upstream { error, response, .. } => (*error.usage, response.take(), true),
            CallError::DeadlineExceeded => (Usage::default(), None, true),
            CallError::Refused(_) => (Usage::default(), None, false),
        };
        Self { error: error.into(), usage, response, was_sent }
    }
}

impl From<GenerationError> for Failure {
    fn from(error: GenerationError) -> Self {
        match error {
            GenerationError::Dispatch(error) => error.into(),
            error => {
                let usage = error.usage();
                Self { error: error.into(), usage, response: None, was_sent: true }
            }
        }
    }
}

impl Failure {
    /// The same, after an answer that has cost this.
    pub(super) fn after(self, spent: Usage) -> Self {
        Self { usage: spent + self.usage, was_sent: true, ..self }
    }
}

/// What becomes of an item that was not admitted in time, or not at all.
pub(super) fn refused(labels: Labels, error: CallError) -> ItemOutcome {
    match error {
        // It waited for others, and nothing was asked.
        CallError::DeadlineExceeded => ItemOutcome::Later(None),
        error => failed(labels, error.into()),
    }
}

/// What becomes of an item that has an answer.
pub(super) fn succeeded(index: u64, result: &impl Serialize, usage: Usage) -> ItemOutcome {
    ItemOutcome::Done(answered(index, line(result), usage))
}

/// What becomes of an item that failed.
pub(in crate::api::jobs) fn failed(labels: Labels, failure: Failure) -> ItemOutcome {
    use Code as C;
    let code = failure.error.table_code();
    match code {
        C::RateLimited
        | C::DailyQuotaExhausted
        | C::SpendLimited
        | C::OtherQuotaExhausted
        | C::QueueFull
        | C::TooManyAccounts
        | C::LimitsUnavailable => ItemOutcome::Later(failure.error.retry_after()),
        // After a call there was no memory for its answer: each further one costs as much.
        C::ServerBusy if !failure.was_sent => ItemOutcome::Later(failure.error.retry_after()),
        C::InvalidApiKey | C::AccountUnfunded => ItemOutcome::Hopeless(code.name()),
        // The key may do less with a model or a cached content that only some items name.
        C::PermissionDenied | C::NoQuota if !labels.names_model => {
            ItemOutcome::Hopeless(code.name())
        }
        code if code.is_retryable() => ItemOutcome::Repeat(failure_of(labels, failure)),
        _ => ItemOutcome::Done(failure_of(labels, failure)),
    }
}

/// The result of an item that failed.
pub(in crate::api::jobs) fn failure_of(labels: Labels, failure: Failure) -> Answered {
    let Labels { job, index, names, model, .. } = labels;
    let Failure { error, usage, response, was_sent } = failure;
    let code = error.table_code();
    let line = match names {
        Names::Own(ids) => {
            let position = usize::try_from(index).unwrap_or(usize::MAX);
            let error = ItemError::new(error, model);
            line(&BatchResult::<()>::failure(position, error, ids))
        }
        Names::OpenAi(custom_id) => line(&openai_failure(&job, index, custom_id, error, was_sent)),
        Names::Gemini(key) => gemini_failure(index, key, error, response),
    };
    let (failure, retryable) = (Some(code.name().to_owned()), code.is_retryable());
    Answered { failure, retryable, ..answered(index, line, usage) }
}

fn answered(index: u64, line: Bytes, usage: Usage) -> Answered {
    Answered {
        index,
        line,
        failure: None,
        retryable: false,
        input_tokens: usage.prompt_tokens.saturating_add(usage.tool_tokens),
        output_tokens: usage.output_tokens.saturating_add(usage.thinking_tokens),
        cost: usage.cost,
    }
}

fn line(result: &impl Serialize) -> Bytes {
    serde_json::to_vec(result).expect("a result is written to memory").into()
}

/// A line of OpenAI's batch output. Source: OpenAI's API reference, "The request output object". The
/// index is this gateway's own.
#[derive(Serialize)]
pub(super) struct OpenAiResult<'a, B> {
    id: String,
    custom_id: Option<String>,
    response: Option<OpenAiResponse<'a, B>>,
    error: Option<OpenAiItemError>,
    index: u64,
}

#[derive(Serialize)]
struct OpenAiResponse<'a, B> {
    status_code: u16,
    request_id: Cow<'a, str>,
    body: B,
}

/// The error of a request that has no response.
#[derive(Serialize)]
struct OpenAiItemError {
    code: &'static str,
    message: String,
}

impl<B> OpenAiResult<'_, B> {
    /// The result of an item that has an answer.
    pub(super) fn answered(job: &JobId, index: u64, custom_id: Option<String>, body: B) -> Self {
        Self::responded(job, index, custom_id, StatusCode::OK, body)
    }

    fn responded(
        job: &JobId,
        index: u64,
        custom_id: Option<String>,
        status: StatusCode,
        body: B,
    ) -> Self {
        let id = request_id(job, index);
        let (status_code, request_id) = (status.as_u16(), format!("req_{id}").into());
        let response = Some(OpenAiResponse { status_code, request_id, body });
        Self { id: format!("batch_req_{id}"), custom_id, response, error: None, index }
    }
}

/// A name of the request that no other has.
fn request_id(job: &JobId, index: u64) -> String {
    let job = job.as_str();
    format!("{}_{index}", job.strip_prefix("job_").unwrap_or(job))
}

fn openai_failure(
    job: &JobId,
    index: u64,
    custom_id: Option<String>,
    error: ApiError,
    was_sent: bool,
) -> OpenAiResult<'static, OpenAiFailure> {
    if was_sent {
        let (status, body) = error.into_openai_failure();
        return OpenAiResult::responded(job, index, custom_id, status, body);
    }
    let (code, message) = (error.code(), error.into_detail().into_text());
    let id = format!("batch_req_{}", request_id(job, index));
    let error = Some(OpenAiItemError { code, message });
    OpenAiResult { id, custom_id, response: None, error, index }
}

/// A line of Gemini's batch output. Source: Gemini API docs, "Batch API". The index is this gateway's own.
#[derive(Serialize)]
pub(super) struct GeminiResult<'a> {
    #[serde(skip_serializing_if = "Option::is_none")]
    key: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    response: Option<&'a RawValue>,
    #[serde(flatten, skip_serializing_if = "Option::is_none")]
    failure: Option<GoogleFailure>,
    index: u64,
}

impl<'a> GeminiResult<'a> {
    /// The result of an item that has an answer.
    pub(super) fn answered(index: u64, key: Option<String>, response: &'a RawValue) -> Self {
        Self { key, response: Some(response), failure: None, index }
    }
}

/// The error is Gemini's own, where Gemini has given one.
fn gemini_failure(
    index: u64,
    key: Option<String>,
    error: ApiError,
    response: Option<Box<Response<Bytes>>>,
) -> Bytes {
    let body = response.map(|response| compact(response.body()));
    let theirs = body.as_deref().and_then(Object::read);
    let theirs = theirs.and_then(|body| body.get("error").filter(|error| error.starts_with('{')));
    let Some(theirs) = theirs else {
        let failure = Some(error.into_google_failure());
        return line(&GeminiResult { key, response: None, failure, index });
    };
    let mut result = Vec::from(b"{");
    if let Some(key) = key {
        result.extend(format!("\"key\":{},", serde_json::Value::String(key)).into_bytes());
    }
    result.extend(format!("\"error\":{theirs},\"index\":{index}}}").into_bytes());
    result.into()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::memory::OverBudget;

    fn labels() -> Labels {
        let (job, model) = (JobId::random(), Model::parse("m").unwrap());
        Labels { job, index: 0, names: Names::Gemini(None), model, names_model: false }
    }

    #[test]
    fn an_item_without_memory_waits_before_its_call_and_is_repeated_a_few_times_after_it() {
        let busy = || Failure::from(ApiError::from(OverBudget));
        assert!(matches!(failed(labels(), busy()), ItemOutcome::Later(_)));
        let after_call = busy().after(Usage::default());
        assert!(matches!(failed(labels(), after_call), ItemOutcome::Repeat(_)));
    }
}
