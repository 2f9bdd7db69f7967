//! A gateway for Google Gemini.
//!
//! Everything that shares a Gemini account sends its requests through this service, which keeps
//! the account at full speed and never over its limits. `docs/architecture.md` explains the decisions.
//!
//! # Modules
//!
//! | module | what it is for |
//! |---|---|
//! | [`config`] | every setting: variable, default, unit, meaning |
//! | [`gateway`] | what every handler shares |
//! | [`server`] | accept, stop accepting, drain within the grace period |
//! | [`telemetry`] | logs |
//! | [`memory`] | the memory that the bodies of all requests take together |
//! | [`metrics`] | counters and histograms, for Prometheus |
//! | [`api`] | routes, authentication, bodies: the only place that knows HTTP status codes |
//! | [`generation`] | what is asked of Gemini and how the answer is read; many at once, in order |
//! | [`schema`] | JSON Schema to Gemini's two dialects, and the check of answers |
//! | [`dispatch`] | one upstream call: admit, send, retry, settle |
//! | [`limits`] | admission: the queue, global and named semaphores, accounts with their quotas, kept here or in Redis for all replicas; knows nothing of Gemini's wire |
//! | [`gemini`] | the upstream: one exchange, read here or passed on, its wire types, its errors; knows nothing of limits |
//! | [`connect`] | how connections to other services are made |
//! | [`pacific`] | Gemini's day, which ends at midnight in California |
//! | [`prices`] | what calls cost in US dollars |
//! | [`simulator`] | a stand-in for Gemini with real quotas and real error bodies |
//! | [`with_permit`] | a client of the service: runs a command while holding a lease |
//!
//! # The path of a request
//!
//! `api::router` → `api::auth` → its handler → `generation` → `dispatch` → `limits`, then
//! `gemini`, and back up. Nothing below calls upward, and `limits` and `gemini` do not know each
//! other: `dispatch` joins them. A request in Gemini's or OpenAI's own form skips `generation`:
//! `api::relay` hands it to `dispatch` as it came.

pub mod api;
pub mod config;
pub mod connect;
pub mod dispatch;
pub mod gateway;
pub mod gemini;
pub mod generation;
pub mod limits;
pub mod memory;
pub mod metrics;
pub mod pacific;
pub mod prices;
pub mod schema;
pub mod server;
pub mod simulator;
pub mod telemetry;
pub mod with_permit;
