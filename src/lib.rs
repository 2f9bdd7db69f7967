//! One door to Google Gemini.
//!
//! Everything that shares a Gemini account sends its requests through this service, which keeps
//! the account at full speed and never over its limits.
//!
//! # The house
//!
//! | room | what is in it |
//! |---|---|
//! | [`config`] | every setting: variable, default, unit, meaning |
//! | [`gateway`] | what every handler shares |
//! | [`server`] | accept, stop accepting, drain within the grace period |
//! | [`telemetry`] | logs |
//! | [`metrics`] | counters and histograms, for Prometheus |
//! | [`api`] | routes, authentication, bodies: the only place that knows HTTP status codes |
//! | [`generation`] | what is asked of Gemini and how the answer is read; many at once, in order |
//! | [`dispatch`] | one call through the door: admit, send, retry |
//! | [`limits`] | the door: the global and the named semaphores; knows nothing of Gemini's wire |
//! | [`gemini`] | the upstream: one exchange, its wire types, its errors; knows nothing of limits |
//! | [`simulator`] | a stand-in for Gemini with real quotas and real error bodies |
//!
//! # The path of a request
//!
//! `api::router` → `api::auth` → its handler → `generation` → `dispatch` → `limits`, then
//! `gemini`, and back up. Nothing below calls upward, and `limits` and `gemini` do not know each
//! other: `dispatch` joins them.

pub mod api;
pub mod config;
pub mod dispatch;
pub mod gateway;
pub mod gemini;
pub mod generation;
pub mod limits;
pub mod metrics;
pub mod server;
pub mod simulator;
pub mod telemetry;
