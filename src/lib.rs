//! Gemini Concurrent Generation Service: a gateway for Google Gemini.
//!
//! Everything that shares a Gemini account sends its requests through the gateway, which keeps the account
//! at full speed and within its limits. `docs/architecture.md` explains the decisions.
//!
//! # Modules
//!
//! | module | what it is for |
//! |---|---|
//! | [`config`] | every setting: variable, default, unit, meaning |
//! | [`gateway`] | the state that all handlers share |
//! | [`server`] | accepts connections, and drains them at shutdown |
//! | [`upgrade`] | connections that switch from HTTP to another protocol |
//! | [`telemetry`] | logs |
//! | [`traces`] | OpenTelemetry traces of requests, calls and jobs |
//! | [`reload`] | new settings while the gateway runs |
//! | [`memory`] | the memory budget for the bodies of all requests |
//! | [`metrics`] | counters and histograms, for Prometheus; the last hour and the last day, for the dashboard |
//! | [`api`] | routes, authentication, bodies: with `dashboard`, the only place that knows HTTP status codes |
//! | [`dashboard`] | the operator's web pages |
//! | [`generation`] | builds what Gemini is asked and reads the answer; batches |
//! | [`jobs`] | durable bulk work: what a job is, where jobs are kept, the engine that sends their items, webhooks |
//! | [`schema`] | translates JSON Schema to Gemini's two dialects, and checks answers |
//! | [`dispatch`] | one upstream call: admit, send, retry, settle |
//! | [`limits`] | admission: the queue, semaphores, accounts and their quotas, in memory or in Redis for all replicas; knows nothing of Gemini's wire format |
//! | [`gemini`] | the upstream: one exchange with its wire types and errors; knows nothing of limits |
//! | [`connect`] | makes connections to other services |
//! | [`pacific`] | Gemini's day, which ends at midnight in California |
//! | [`prices`] | what calls cost in US dollars |
//! | [`regular_file`] | reads files that settings name |
//! | [`request_id`] | the ID of a request, in logs, answers and the list of failures |
//! | [`simulator`] | a simulator of Gemini with real quotas and real error bodies |
//! | [`signals`] | the signals that ask this process to end |
//! | [`client`] | a client of a gateway: of a running service, or of one in this process |
//! | [`run`] | answers the prompts of a file, and lists and changes jobs |
//! | [`with_permit`] | a client of the gateway: runs a command while holding a lease |
//!
//! # The path of a request
//!
//! `api::router` → `api::auth` → its handler → `generation` → `dispatch` → `limits`, then
//! `gemini`, and back. No module calls one above it, and `limits` and `gemini` do not know each
//! other: `dispatch` joins them. A request on Gemini's or OpenAI's surface skips `generation`:
//! `api::relay` passes it to `dispatch` unchanged.
pub mod api;
pub mod client;
pub mod config;
pub mod connect;
pub mod dashboard;
pub mod dispatch;
pub mod gateway;
pub mod gemini;
pub mod generation;
pub mod jobs;
pub mod limits;
pub mod memory;
pub mod metrics;
pub mod pacific;
pub mod prices;
pub mod regular_file;
pub mod reload;
pub mod request_id;
pub mod run;
pub mod schema;
pub mod server;
pub mod signals;
pub mod simulator;
pub mod telemetry;
pub mod traces;
pub mod upgrade;
pub mod with_permit;
