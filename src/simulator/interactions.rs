//! The Interactions API.
//!
//! Source: Gemini API docs, interactions, streaming, background execution and API errors; recorded
//! responses.

mod events;
mod form;
mod request;
mod routes;
mod store;

pub(super) use form::InteractionForm;
pub(super) use routes::router;
pub(super) use store::Interactions;
