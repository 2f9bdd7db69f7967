//! A simulator of the Gemini API: it enforces quotas and answers with the error bodies that Gemini
//! sends.
//!
//! It serves Gemini's own API under `/v1`, `/v1beta` and `/v1alpha`: `generateContent` and its
//! streamed form, `countTokens`, embeddings, models, files, batches, interactions, the calls beside
//! them that cost tokens, and live sessions. OpenAI's clients use `/v1beta/openai`. The answer to
//! `TEXT` is `Simulated answer to: TEXT`, or JSON that matches the request's schema; equal requests
//! get equal answers. [`Options`] sets the quotas, the latency and the failure rates. A marker in a
//! prompt, such as `[[simulate:status=503]]`, changes a single call: `script.rs` lists the settings.
//!
//! Text counts as one token for every four bytes and one for every East Asian character. Each key
//! is a project with quotas of its own. `GET /_simulator/stats` returns [`Stats`] and `POST
//! /_simulator/reset` clears them.
//!
//! | module | contents |
//! |---|---|
//! | `options`, `script` | the options; the markers in prompts |
//! | `models`, `tier` | the models with prices and retirement dates; the service tiers |
//! | `quota`, `meter` | the quotas and the ways to count them |
//! | `request`, `json`, `repeated`, `tokens` | reading requests and counting their tokens |
//! | `schema`, `instance`, `pattern` | checking a schema; generating a value that matches it |
//! | `refusal` | error bodies |
//! | `response`, `compose` | response bodies; composing the text of a response |
//! | `completion`, `embeddings`, `form` | the forms a response can have |
//! | `target` | the model and the key of a call |
//! | `stats` | counters and the journal |
//! | `state` | the state that all calls share |
//! | `call`, `plan`, `transmission` | handling one call: planning its response and sending it |
//! | `routes`, `openai`, `files`, `file_search`, `interactions`, `batches`, `other_calls`, `live` | the endpoints |

mod batches;
mod call;
mod completion;
mod compose;
mod embeddings;
mod file_search;
mod files;
mod form;
mod instance;
mod interactions;
mod json;
mod live;
mod meter;
mod models;
mod openai;
mod options;
mod other_calls;
mod pattern;
mod plan;
mod quota;
mod refusal;
mod repeated;
mod request;
mod response;
mod routes;
mod schema;
mod script;
mod state;
mod stats;
mod target;
#[cfg(test)]
mod tests;
mod tier;
mod tokens;
mod transmission;

use axum::Router;

pub use options::{Counting, Options};
pub use schema::refused_schema;
pub use state::Simulator;
pub use stats::{JournalEntry, Stats};

impl Simulator {
    /// The HTTP endpoints.
    pub fn router(&self) -> Router {
        routes::router(self.clone())
    }
}
