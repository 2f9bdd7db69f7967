//! The names of attributes.
//!
//! Sources: OpenTelemetry semantic conventions for generative AI 0.1.0, "Client inference"; semantic
//! conventions 1.44.0, "HTTP spans". What they lack starts with `gemini_gateway.`, as the metrics do.

pub(super) const OPERATION: &str = "gen_ai.operation.name";
pub(super) const PROVIDER: &str = "gen_ai.provider.name";
pub(super) const REQUEST_MODEL: &str = "gen_ai.request.model";
pub(super) const REQUEST_STREAM: &str = "gen_ai.request.stream";
pub(super) const OUTPUT_TYPE: &str = "gen_ai.output.type";
pub(super) const RESPONSE_MODEL: &str = "gen_ai.response.model";
pub(super) const FINISH_REASONS: &str = "gen_ai.response.finish_reasons";
pub(super) const FIRST_CHUNK: &str = "gen_ai.response.time_to_first_chunk";
pub(super) const INPUT_TOKENS: &str = "gen_ai.usage.input_tokens";
pub(super) const OUTPUT_TOKENS: &str = "gen_ai.usage.output_tokens";
pub(super) const CACHED_TOKENS: &str = "gen_ai.usage.cache_read.input_tokens";
pub(super) const THINKING_TOKENS: &str = "gen_ai.usage.reasoning.output_tokens";
pub(super) const SYSTEM_INSTRUCTIONS: &str = "gen_ai.system_instructions";
pub(super) const INPUT_MESSAGES: &str = "gen_ai.input.messages";
pub(super) const OUTPUT_MESSAGES: &str = "gen_ai.output.messages";

pub(super) const ERROR_TYPE: &str = "error.type";
pub(super) const SERVER_ADDRESS: &str = "server.address";
pub(super) const SERVER_PORT: &str = "server.port";
pub(super) const METHOD: &str = "http.request.method";
pub(super) const RESEND_COUNT: &str = "http.request.resend_count";
pub(super) const STATUS: &str = "http.response.status_code";
pub(super) const ROUTE: &str = "http.route";
pub(super) const PATH: &str = "url.path";
pub(super) const SCHEME: &str = "url.scheme";
pub(super) const PROTOCOL_VERSION: &str = "network.protocol.version";
pub(super) const USER_AGENT: &str = "user_agent.original";

/// The id of a request, as in the log and in its answer.
pub(super) const REQUEST_ID: &str = "gemini_gateway.request_id";
/// The kind of a call, as in metrics.
pub(super) const KIND: &str = "gemini_gateway.kind";
/// The service tier that a call asks for.
pub(super) const TIER: &str = "gemini_gateway.service_tier";
/// The limit that a call waited for the longest.
pub(super) const HELD_BY: &str = "gemini_gateway.held_by";
/// How an attempt ended, as in metrics.
pub(super) const OUTCOME: &str = "gemini_gateway.outcome";
/// What an attempt cost, in US dollars.
pub(super) const COST: &str = "gemini_gateway.cost_usd";
/// The index of an item in its batch or its job.
pub(super) const ITEM_INDEX: &str = "gemini_gateway.item.index";
/// The id of a job.
pub(super) const JOB_ID: &str = "gemini_gateway.job.id";
/// The kind of a job.
pub(super) const JOB_KIND: &str = "gemini_gateway.job.kind";
/// The state of a job when its results were last recorded.
pub(super) const JOB_STATE: &str = "gemini_gateway.job.state";
/// How many items a job has, and how many of them have succeeded and failed.
pub(super) const JOB_ITEMS: &str = "gemini_gateway.job.items";
pub(super) const JOB_SUCCEEDED: &str = "gemini_gateway.job.succeeded";
pub(super) const JOB_FAILED: &str = "gemini_gateway.job.failed";
