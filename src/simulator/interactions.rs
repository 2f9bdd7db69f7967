//! The Interactions API.
//!
//! Source: Gemini API docs, interactions, streaming, background execution and API errors; recorded
//! responses.

mod events;
pub(super) mod form;
mod request;
mod routes;
pub(super) mod store;

pub(super) use form::usage;
pub(super) use request::contents;
pub(super) use routes::{create_interaction, refused, router};
