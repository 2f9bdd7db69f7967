//! The parts of the OpenAPI document that endpoints share.

mod errors;
mod relayed;

use utoipa::openapi::security::{ApiKey, ApiKeyValue, HttpAuthScheme, HttpBuilder, SecurityScheme};
use utoipa::openapi::{OpenApi as Document, RefOr};
use utoipa::{IntoParams, Modify, OpenApi};

use super::error::ErrorBody;

pub(super) use errors::*;

#[derive(OpenApi)]
#[openapi(
    info(
        title = "Gemini Concurrent Generation Service",
        description = "A gateway for Google Gemini: everything that shares an account sends its \
                       requests through it. A request with the admin key is paid for by the \
                       server's key. Otherwise the key in its `credentials` pays, or the key in \
                       its headers, or, if the server allows that, the server's key."
    ),
    tags(
        (name = "generation", description = "Chats, structured output and stories, one at a time or in batches"),
        (name = "jobs", description = "Durable bulk work: any number of requests in one body, answered in the background"),
        (name = "gemini", description = "Gemini's own API, for Google's SDKs"),
        (name = "openai", description = "OpenAI's API, for its clients"),
        (name = "semaphores", description = "Concurrency limits that several services share"),
        (name = "leases", description = "Permits of a semaphore for programs outside this service"),
        (name = "limits", description = "The quotas and limits of each key and model"),
        (name = "service", description = "Health and metrics")
    ),
    components(schemas(ErrorBody)),
    modifiers(&Keys)
)]
pub(super) struct Documentation;

/// Requests that are relayed unchanged.
#[derive(OpenApi)]
#[openapi(paths(
    relayed::generate_content,
    relayed::stream_generate_content,
    relayed::chat_completions,
    relayed::embeddings,
    relayed::models
))]
pub(super) struct Relayed;

/// The headers in which a request can have a key.
struct Keys;

impl Modify for Keys {
    fn modify(&self, document: &mut Document) {
        let header = ApiKeyValue::with_description(
            "Admin-API-Key",
            "The server's ADMIN_API_KEY. With it, a request spends the server's Gemini key, manages \
             semaphores and sees limits.",
        );
        let google = ApiKeyValue::with_description(
            "x-goog-api-key",
            "The caller's own Gemini key, or the admin key.",
        );
        let bearer = HttpBuilder::new().scheme(HttpAuthScheme::Bearer);
        let bearer = bearer.description(Some("The same keys, as OpenAI's clients send them."));
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

/// The semaphore of requests whose body names none.
#[derive(IntoParams)]
#[into_params(parameter_in = Header)]
#[expect(dead_code, reason = "only its documentation is used")]
pub(super) struct ExternalSemaphore {
    /// A registered semaphore to hold in addition to the global limit, if the body names none.
    #[param(rename = "X-External-Semaphore-Id")]
    external_semaphore_id: Option<String>,
}

/// How the answer of a batch is sent.
#[derive(IntoParams)]
#[into_params(parameter_in = Header)]
#[expect(dead_code, reason = "only its documentation is used")]
pub(super) struct Prefer {
    /// `respond-async`: the batch is stored as a job, and answered at once with its status.
    #[param(rename = "Prefer")]
    prefer: Option<String>,
}
