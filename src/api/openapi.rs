//! What the documentation says of all endpoints together.

mod relayed;

use utoipa::openapi::security::{ApiKey, ApiKeyValue, HttpAuthScheme, HttpBuilder, SecurityScheme};
use utoipa::openapi::{OpenApi as Document, RefOr};
use utoipa::{IntoParams, IntoResponses, Modify, OpenApi};

use super::error::ErrorBody;

#[derive(OpenApi)]
#[openapi(
    info(
        title = "Gemini Concurrent Generation Service",
        description = "A gateway to Google Gemini: everything that shares an account sends its \
                       requests through it. A request is paid for by the server's key where it \
                       brings the admin key, else by the key in its `credentials`, else by the \
                       key in its headers, else by the server's key where the server allows that."
    ),
    tags(
        (name = "generation", description = "Texts, JSON and stories, one by one or in batches"),
        (name = "gemini", description = "Gemini's own surface, for Google's SDKs"),
        (name = "openai", description = "OpenAI's surface, for its clients"),
        (name = "semaphores", description = "Limits that several services share"),
        (name = "leases", description = "Permits of a semaphore for work outside this service"),
        (name = "limits", description = "What each key may send to each model"),
        (name = "service", description = "How the service is doing")
    ),
    modifiers(&Keys)
)]
pub(super) struct Documentation;

/// What is passed on as it came.
#[derive(OpenApi)]
#[openapi(paths(
    relayed::generate_content,
    relayed::stream_generate_content,
    relayed::chat_completions,
    relayed::embeddings,
    relayed::models
))]
pub(super) struct Relayed;

/// The ways in which a request can bring a key.
struct Keys;

impl Modify for Keys {
    fn modify(&self, document: &mut Document) {
        let header = ApiKeyValue::with_description(
            "Admin-API-Key",
            "The server's ADMIN_API_KEY: whoever knows it spends the server's Gemini key, \
             manages semaphores and sees limits.",
        );
        let google = ApiKeyValue::with_description(
            "x-goog-api-key",
            "The caller's own Gemini key, or the admin key.",
        );
        let bearer = HttpBuilder::new().scheme(HttpAuthScheme::Bearer);
        let bearer = bearer.description(Some("The same, as OpenAI's clients send it."));
        let schemes = &mut document.components.get_or_insert_default().security_schemes;
        for (name, scheme) in [
            ("AdminKey", SecurityScheme::ApiKey(ApiKey::Header(header))),
            ("GoogleApiKey", SecurityScheme::ApiKey(ApiKey::Header(google))),
            ("BearerToken", SecurityScheme::Http(bearer.build())),
        ] {
            schemes.insert(name.to_owned(), RefOr::T(scheme));
        }
    }
}

/// The semaphore of requests that name none in their body.
#[derive(IntoParams)]
#[into_params(parameter_in = Header)]
#[expect(dead_code, reason = "only its documentation is used")]
pub(super) struct ExternalSemaphore {
    /// A registered semaphore to hold in addition to the global limit, where the body names none.
    #[param(rename = "X-External-Semaphore-Id")]
    external_semaphore_id: Option<String>,
}

/// The ways in which a generation fails, all with the same body.
#[derive(IntoResponses)]
#[expect(dead_code, reason = "only its documentation is used")]
pub(super) enum Failures {
    /// Gemini does not take the request, or blocks the prompt or the answer
    /// (`invalid_request`, `content_blocked`), the connection ended before the body did
    /// (`body_incomplete`), or the request alone costs more than the key may spend in a
    /// minute (`request_exceeds_quota`)
    #[response(status = 400, example = json!({
        "detail": "The prompt was blocked: PROHIBITED_CONTENT", "code": "content_blocked"
    }))]
    BadRequest(ErrorBody),
    /// No key pays for the request, or Gemini does not know the key (`unauthenticated`,
    /// `invalid_api_key`)
    #[response(status = 401, example = json!({
        "detail": "Authentication failed. Provide 'Admin-API-Key' in headers or complete \
                   credentials in payload.",
        "code": "unauthenticated"
    }))]
    Unauthorized(ErrorBody),
    /// Gemini says that the account has nothing left to pay with (`account_unfunded`)
    #[response(status = 402)]
    PaymentRequired(ErrorBody),
    /// The key may not do this (`permission_denied`), or has no quota for the model (`no_quota`)
    #[response(status = 403)]
    Forbidden(ErrorBody),
    /// There is no such model or semaphore (`model_not_found`, `semaphore_not_found`)
    #[response(status = 404)]
    NotFound(ErrorBody),
    /// The body did not come in time (`client_timeout`)
    #[response(status = 408)]
    RequestTimeout(ErrorBody),
    /// The semaphore was deleted while the request waited for it (`semaphore_deleted`)
    #[response(status = 409)]
    Conflict(ErrorBody),
    /// The body is larger than `MAX_BODY_BYTES`, or than `BODY_MEMORY_BYTES` allows
    /// (`body_too_large`)
    #[response(status = 413)]
    PayloadTooLarge(ErrorBody),
    /// The body is not sent as JSON (`unsupported_media_type`)
    #[response(status = 415)]
    UnsupportedMediaType(ErrorBody),
    /// Fields that cannot be used, each with its place (`validation_error`)
    #[response(status = 422, example = json!({
        "detail": [{"type": "missing", "loc": ["body", "prompt"], "msg": "Field required"}],
        "code": "validation_error"
    }))]
    UnprocessableEntity(ErrorBody),
    /// A quota of the account is used up; `Retry-After` says for how long (`rate_limited`,
    /// `daily_quota_exhausted`, `spend_limited`, `other_quota_exhausted`)
    #[response(status = 429)]
    TooManyRequests(ErrorBody),
    /// Something broke in this service, or it has no key to pay with (`internal_error`,
    /// `server_key_missing`)
    #[response(status = 500)]
    InternalServerError(ErrorBody),
    /// Gemini gave no usable answer (`upstream_unavailable`, `upstream_connection`,
    /// `malformed_answer`, `empty_answer`, `truncated_answer`, `schema_violation`)
    #[response(status = 502)]
    BadGateway(ErrorBody),
    /// Too many requests wait (`queue_full`), their bodies take too much memory (`server_busy`), too
    /// many keys and models are in use (`too_many_accounts`), or the limits that the replicas share
    /// are unavailable (`limits_unavailable`); `Retry-After` says when to come back
    #[response(status = 503)]
    ServiceUnavailable(ErrorBody),
    /// It took too long (`upstream_timeout`, `request_timeout`)
    #[response(status = 504)]
    GatewayTimeout(ErrorBody),
}

/// The ways in which a body cannot be read.
#[derive(IntoResponses)]
#[expect(dead_code, reason = "only its documentation is used")]
pub(super) enum BodyFailures {
    /// The connection ended before the body did (`body_incomplete`)
    #[response(status = 400)]
    BadRequest(ErrorBody),
    /// The body did not come in time (`client_timeout`)
    #[response(status = 408)]
    RequestTimeout(ErrorBody),
    /// The body is larger than `MAX_BODY_BYTES` (`body_too_large`)
    #[response(status = 413)]
    PayloadTooLarge(ErrorBody),
    /// The body is not sent as JSON (`unsupported_media_type`)
    #[response(status = 415)]
    UnsupportedMediaType(ErrorBody),
}

/// The ways in which an administrator's request fails.
#[derive(IntoResponses)]
#[expect(dead_code, reason = "only its documentation is used")]
pub(super) enum AdminFailures {
    /// The admin key is missing or wrong, or the server has none
    #[response(status = 401)]
    Unauthorized(ErrorBody),
    /// The limits that the replicas share are unavailable (`limits_unavailable`), or the bodies of
    /// requests take too much memory (`server_busy`)
    #[response(status = 503)]
    ServiceUnavailable(ErrorBody),
}
