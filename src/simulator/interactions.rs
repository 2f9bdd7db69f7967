//! The Interactions API.
//!
//! Source: Gemini API docs, interactions, streaming, background execution and API errors; recorded
//! responses.

mod events;
mod form;
mod request;
mod routes;
mod store;

pub(super) use form::{InteractionForm, usage};
pub(super) use request::contents;
pub(super) use routes::{create_interaction, router};
pub(super) use store::Interactions;
