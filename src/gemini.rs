//! The upstream: one exchange with Gemini, its wire format and its errors. This module knows nothing
//! of limits, of retries, or of keys other than the one it is given.
//!
//! Facts about Gemini's wire format come from recorded exchanges; `tests/api/corpus.rs` reads all of
//! them again.

mod answer;
mod answer_builder;
mod answer_start;
mod batch_jobs;
mod client;
mod continuation;
mod embedding;
mod error;
mod events;
mod fields;
mod forward;
mod images;
mod input;
mod interaction;
mod interaction_scanner;
mod json;
mod key;
mod live;
mod model;
mod named_model;
mod payload;
mod quota;
mod redact;
mod request;
mod retirement;
mod retry_after;
mod send_context;
mod service_tier;
mod status;
mod stream_monitor;
mod surface;
mod tokens;
mod usage;
mod usage_scanner;

pub use answer::{Answer, AnswerPart};
pub use answer_builder::AnswerBuilder;
pub use batch_jobs::{JobScanner, batch_file, file_size, job_name};
pub use client::{API_KEY, BoxError, Client, InvalidBaseUrl, USER_PROJECT};
pub use continuation::ContinuationToken;
pub use embedding::embedding_requests;
pub use error::{Error, ErrorKind};
pub use events::{Event, Events};
pub use fields::RepeatedField;
pub use forward::{Forward, ForwardError, ForwardedBody};
pub use images::requested_images;
pub use interaction::{InteractionPath, InteractionRequest};
pub use interaction_scanner::InteractionScanner;
pub use json::{Nesting, without_lone_surrogates};
pub use key::{ApiKey, InvalidKey, ProjectClaim};
pub use live::{
    InvalidSetup, LiveApi, LiveEvent, LiveReceiver, LiveSender, LiveSocket, LiveUsage,
    closing_error,
};
pub use model::{InvalidModel, Model};
pub use named_model::{RepeatedModel, named_model};
pub use payload::{Payload, SendCheck};
pub use quota::{Period, Quantity, Refusal, RefusalScope, Violation};
pub use redact::{MaskedBody, Masker, Secrets, encodings, redact};
pub use request::GenerateContent;
pub use retirement::warn_of_retirement;
pub use retry_after::read as retry_after;
pub use send_context::{SendContext, TRACEPARENT, TRACESTATE, TraceContext};
pub use service_tier::ServiceTier;
pub use stream_monitor::StreamMonitor;
pub use surface::Surface;
pub use tokens::{InputFeatures, TokenEstimator};
pub use usage::Usage;
pub use usage_scanner::UsageScanner;
