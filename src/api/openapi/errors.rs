//! The errors of each group of endpoints, described by the [table of codes](Code).

use std::collections::BTreeMap;

use serde_json::{Value, json};
use utoipa::IntoResponses;
use utoipa::openapi::{ContentBuilder, Ref, RefOr, Response, ResponseBuilder};

use crate::api::code::Code;

/// Defines a set of errors: one response for each status, which lists the codes with that status and may
/// show an example.
macro_rules! errors {
    ($($(#[$doc:meta])* $name:ident($example:ident): $($code:ident)*;)*) => {$(
        $(#[$doc])*
        pub(in crate::api) enum $name {}

        impl IntoResponses for $name {
            fn responses() -> BTreeMap<String, RefOr<Response>> {
                responses(&[$(Code::$code),*], $example)
            }
        }
    )*};
}

errors! {
    /// The errors of a generation.
    GenerationErrors(example):
        MultipleCredentials InvalidRequest ContentBlocked BodyIncomplete BodyNotDecoded
        RequestExceedsQuota Unauthenticated InvalidApiKey AccountUnfunded PermissionDenied NoQuota
        ModelNotFound SemaphoreNotFound ClientTimeout SemaphoreDeleted BodyTooLarge
        UnsupportedMediaType ValidationError RateLimited DailyQuotaExhausted SpendLimited
        OtherQuotaExhausted InternalError ServerKeyMissing UpstreamUnavailable UpstreamConnection
        MalformedAnswer EmptyAnswer TruncatedAnswer SchemaViolation QueueFull ServerBusy
        TooManyAccounts LimitsUnavailable UpstreamTimeout RequestTimeout;

    /// The errors of a batch.
    BatchErrors(example):
        MultipleCredentials InvalidRequest ContentBlocked BodyIncomplete BodyNotDecoded
        RequestExceedsQuota Unauthenticated InvalidApiKey AccountUnfunded
        PermissionDenied NoQuota ModelNotFound SemaphoreNotFound JobNotFound
        ClientTimeout SemaphoreDeleted IdempotencyConflict JobStateConflict BodyTooLarge
        UnsupportedMediaType ValidationError RateLimited DailyQuotaExhausted
        SpendLimited OtherQuotaExhausted InternalError ServerKeyMissing
        UpstreamUnavailable UpstreamConnection MalformedAnswer EmptyAnswer
        TruncatedAnswer SchemaViolation QueueFull ServerBusy TooManyAccounts
        LimitsUnavailable JobStoreUnavailable UpstreamTimeout RequestTimeout
        JobStoreFull;

    /// The errors of beginning a job.
    BeginJobErrors(example):
        MultipleCredentials BodyIncomplete BodyNotDecoded Unauthenticated SemaphoreNotFound
        ClientTimeout IdempotencyConflict BodyTooLarge UnsupportedMediaType ValidationError
        InternalError ServerKeyMissing ServerBusy LimitsUnavailable JobStoreUnavailable
        RequestTimeout JobStoreFull;

    /// The errors of listing jobs.
    ListJobsErrors(no_example):
        MultipleCredentials Unauthenticated JobNotFound ValidationError JobStoreUnavailable;

    /// The errors of a request that reads or deletes a job.
    JobErrors(no_example):
        MultipleCredentials Unauthenticated JobNotFound ValidationError JobStoreUnavailable
        JobStoreFull;

    /// The errors of changing a job.
    ChangeJobErrors(no_example):
        MultipleCredentials BodyIncomplete BodyNotDecoded Unauthenticated JobNotFound ClientTimeout
        JobStateConflict BodyTooLarge UnsupportedMediaType ValidationError ServerBusy
        JobStoreUnavailable JobStoreFull;

    /// The errors of an administrator's request without a body.
    AdminErrors(no_example): Unauthenticated LimitsUnavailable;

    /// The errors of resetting the limits of a key and a model.
    ResetLimitsErrors(no_example): Unauthenticated AccountNotFound LimitsUnavailable;

    /// The errors of registering a semaphore.
    RegisterSemaphoreErrors(no_example):
        BodyIncomplete BodyNotDecoded Unauthenticated ClientTimeout BodyTooLarge
        UnsupportedMediaType ValidationError ServerBusy LimitsUnavailable;

    /// The errors of an administrator's request that names a semaphore.
    SemaphoreErrors(no_example): Unauthenticated SemaphoreNotFound LimitsUnavailable;

    /// The errors of taking a lease.
    TakeLeaseErrors(no_example):
        BodyIncomplete BodyNotDecoded Unauthenticated SemaphoreNotFound ClientTimeout
        SemaphoreDeleted LeaseUnavailable BodyTooLarge UnsupportedMediaType ValidationError
        QueueFull ServerBusy LimitsUnavailable;

    /// The errors of renewing a lease.
    RenewLeaseErrors(no_example):
        BodyIncomplete BodyNotDecoded Unauthenticated LeaseNotFound ClientTimeout BodyTooLarge
        UnsupportedMediaType ValidationError ServerBusy LimitsUnavailable;
}

fn responses(
    codes: &[Code],
    example: fn(Code) -> Option<Value>,
) -> BTreeMap<String, RefOr<Response>> {
    let mut statuses = BTreeMap::<_, Vec<Code>>::new();
    for code in codes {
        statuses.entry(code.status().as_u16()).or_default().push(*code);
    }
    let responses = statuses.into_iter();
    responses
        .map(|(status, codes)| (status.to_string(), RefOr::T(response(&codes, example))))
        .collect()
}

fn response(codes: &[Code], example: fn(Code) -> Option<Value>) -> Response {
    let lines = codes.iter().map(|code| format!("- `{code}`: {}", code.meaning()));
    let example = codes.iter().find_map(|code| example(*code));
    let schema = Ref::from_schema_name("ErrorBody");
    let content = ContentBuilder::new().schema(Some(schema)).example(example).build();
    ResponseBuilder::new()
        .description(lines.collect::<Vec<_>>().join("\n"))
        .content("application/json", content)
        .build()
}

/// No answer is shown.
fn no_example(_: Code) -> Option<Value> {
    None
}

/// The answer of a generation with this code, for the most common ones.
fn example(code: Code) -> Option<Value> {
    let detail = match code {
        Code::ContentBlocked => json!("Gemini blocked the prompt: PROHIBITED_CONTENT"),
        Code::Unauthenticated => json!(
            "Authentication failed. Provide 'Admin-API-Key' in headers or complete credentials in \
             payload."
        ),
        Code::ValidationError => {
            json!([{"type": "missing", "loc": ["body", "prompt"], "msg": "Field required"}])
        }
        _ => return None,
    };
    Some(json!({"detail": detail, "code": code}))
}
