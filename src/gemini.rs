//! The upstream: one exchange with Gemini, its wire and its errors. Knows nothing of limits,
//! retries or keys other than the one it is given.
//!
//! What is said here about Gemini's wire comes from recorded exchanges; `tests/api/corpus.rs`
//! reads them all again.

mod answer;
mod client;
mod error;
mod events;
mod forward;
mod growing;
mod images;
mod input;
mod json;
mod key;
mod live;
mod model;
mod named;
mod opening;
mod quota;
mod redact;
mod request;
mod retirement;
mod retry_after;
mod status;
mod tokens;
mod unreachable;
mod usage;
mod watch;

pub use answer::Answer;
pub use client::{API_KEY, BoxError, Client, Fence, InvalidBaseUrl, Payload, USER_PROJECT};
pub use error::{Error, ErrorKind};
pub use events::{Event, Events};
pub use forward::{Forward, Held, Rejected, Surface};
pub use growing::Growing;
pub use images::requested_images;
pub use input::embedding_requests;
pub use json::{Nesting, without_lone_surrogates};
pub use key::{ApiKey, Claim, InvalidKey};
pub use live::{
    InvalidSetup, LiveApi, LiveEvent, LiveReceiver, LiveSender, LiveSocket, LiveUsage,
    closing_error,
};
pub use model::{InvalidModel, Model};
pub use named::{RepeatedModel, named_model};
pub use quota::{Period, Quantity, Refusal, RefusalScope, Violation};
pub use redact::{Masked, Masker, Secrets, redact, spellings};
pub use request::GenerateContent;
pub use retirement::warn_of_retirement;
pub use tokens::{InputFeatures, TokenEstimator};
pub use usage::{Usage, UsageScanner};
pub use watch::Watch;
