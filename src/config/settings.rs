//! The table of settings, in the order of the documentation.

/// One environment variable that the gateway reads.
#[derive(Debug, Clone, Copy)]
pub struct Setting {
    /// The variable's name.
    pub name: &'static str,
    /// The value if the variable is unset or empty; empty if there is no default.
    pub default: &'static str,
    /// The unit or the form of its value.
    pub unit: &'static str,
    /// What it does.
    pub meaning: &'static str,
}

pub(super) const fn setting(
    name: &'static str,
    default: &'static str,
    unit: &'static str,
    meaning: &'static str,
) -> Setting {
    Setting { name, default, unit, meaning }
}

impl Setting {
    /// Whether its value is a secret, or contains one.
    pub fn is_secret(&self) -> bool {
        self.unit.starts_with("secret")
    }
}

/// All settings, in the order of the documentation.
pub const SETTINGS: &[Setting] = &[
    ADMIN_API_KEY,
    GEMINI_API_KEY,
    ENVIRONMENT_FALLBACK,
    ENVIRONMENT_FALLBACK_SCOPE,
    CORS_ORIGINS,
    ALLOWED_HOSTS,
    GEMINI_CONCURRENCY_LIMIT,
    GEMINI_TIER,
    GEMINI_LIMITS,
    GEMINI_KEY_LABELS,
    GEMINI_PRICES_FILE,
    MAX_QUEUED_REQUESTS,
    GEMINI_MAX_ATTEMPTS,
    MAX_CONTINUATIONS,
    REDIS_URL,
    REDIS_PREFIX,
    REDIS_REQUIRED,
    REDIS_LEASE_SECONDS,
    DATA_DIR,
    JOBS_DATABASE_URL,
    JOBS_LEASE_SECONDS,
    JOB_RETENTION_HOURS,
    JOB_MAX_ITEMS,
    JOB_MAX_BYTES,
    HOST,
    PORT,
    GEMINI_BASE_URL,
    GEMINI_CA_FILE,
    GEMINI_CHAT_MODEL,
    GEMINI_STRUCTURED_MODEL,
    MAX_BATCH_SIZE,
    MAX_BODY_BYTES,
    MAX_SCHEMA_BYTES,
    MAX_SCHEMA_NODES,
    SCHEMA_TIMEOUT_SECONDS,
    CHECK_FORMATS,
    BODY_MEMORY_BYTES,
    MAX_CONNECTIONS,
    CLIENT_TIMEOUT_SECONDS,
    KEEP_ALIVE_SECONDS,
    UPSTREAM_TIMEOUT_SECONDS,
    STREAM_IDLE_TIMEOUT_SECONDS,
    REQUEST_TIMEOUT_SECONDS,
    LIVE_IDLE_TIMEOUT_SECONDS,
    LIVE_TIMEOUT_SECONDS,
    FLEX_TIMEOUT_SECONDS,
    BACKGROUND_POLL_SECONDS,
    BACKGROUND_TIMEOUT_SECONDS,
    JOB_WEBHOOK_SECRET,
    JOB_WEBHOOK_ALLOW,
    SHUTDOWN_DELAY_SECONDS,
    SHUTDOWN_GRACE_SECONDS,
    LOG_FORMAT,
    RUST_LOG,
    GATEWAY_URL,
];

pub(super) const ADMIN_API_KEY: Setting = setting(
    "ADMIN_API_KEY",
    "",
    "secret",
    "Requests that send it as `Admin-API-Key` spend the server's Gemini key, manage semaphores and see limits. Unset: no request can.",
);
pub(super) const GEMINI_API_KEY: Setting =
    setting("GEMINI_API_KEY", "", "secret", "The server's own Gemini key.");
pub(super) const ENVIRONMENT_FALLBACK: Setting = setting(
    "ENVIRONMENT_FALLBACK",
    "true",
    "true or false",
    "Whether a request without any key spends the server's Gemini key.",
);
pub(super) const ENVIRONMENT_FALLBACK_SCOPE: Setting = setting(
    "ENVIRONMENT_FALLBACK_SCOPE",
    "all",
    "all or generation",
    "What a request without any key may do. all: also list, read, upload and delete the files, caches and jobs of the server's key. generation: only generate, embed, count tokens and list models.",
);
pub(super) const CORS_ORIGINS: Setting = setting(
    "CORS_ORIGINS",
    "",
    "origins, separated by commas, or *",
    "Web pages of these origins may read answers and spend the server's key, like any other client: `https://app.example,http://localhost:5173`. `*`: pages of every origin may read answers, but need a key of their own. Unset: no page may.",
);
pub(super) const ALLOWED_HOSTS: Setting = setting(
    "ALLOWED_HOSTS",
    "",
    "host names, separated by commas",
    "The `Host` headers, besides localhost, with which a request without a key may spend the server's key. Unset: all, or only localhost if `HOST` is a loopback address.",
);
pub(super) const GEMINI_CONCURRENCY_LIMIT: Setting = setting(
    "GEMINI_CONCURRENCY_LIMIT",
    "15",
    "calls",
    "The most calls to Gemini that are in flight at once. Unset, with `GEMINI_TIER`: 2 (free), 15 (tier1), 50 (tier2) or 100 (tier3).",
);
pub(super) const GEMINI_TIER: Setting = setting(
    "GEMINI_TIER",
    "none",
    "none, free, tier1, tier2 or tier3",
    "The quotas of each key for each model, and what each key may spend, unless `GEMINI_LIMITS` sets others. none: no limits.",
);
pub(super) const GEMINI_LIMITS: Setting = setting(
    "GEMINI_LIMITS",
    "",
    "entries, separated by semicolons",
    "Quotas of keys for models, and what keys may spend in ten minutes: `gemini-3.8-flash:rpm=150,tpm=2000000,rpd=10000;*:rpm=1000,spend=10`. See docs/limits.md.",
);
pub(super) const GEMINI_KEY_LABELS: Setting = setting(
    "GEMINI_KEY_LABELS",
    "",
    "entries, separated by commas",
    "Labels for keys, by the first digits of their SHA-256: `team-a=1f3a9c02,team-a=77aa01bc`. Keys with the same label share their quotas.",
);
pub(super) const GEMINI_PRICES_FILE: Setting = setting(
    "GEMINI_PRICES_FILE",
    "",
    "path",
    "A file with prices of models, in TOML, for those that differ from the gateway's own. See docs/limits.md.",
);
pub(super) const MAX_QUEUED_REQUESTS: Setting = setting(
    "MAX_QUEUED_REQUESTS",
    "10000",
    "requests",
    "The most requests that wait for admission; a batch counts as one. Beyond it: 503. The last eighth is for accounts that Gemini has accepted.",
);
pub(super) const GEMINI_MAX_ATTEMPTS: Setting = setting(
    "GEMINI_MAX_ATTEMPTS",
    "4",
    "attempts",
    "The most attempts at one call, including the first, when Gemini answers with transient errors.",
);
pub(super) const MAX_CONTINUATIONS: Setting = setting(
    "MAX_CONTINUATIONS",
    "8",
    "calls",
    "The most calls that continue one answer of the gateway's own endpoints, where Gemini stops it before its end, at most 64. 0: none.",
);
pub(super) const REDIS_URL: Setting = setting(
    "REDIS_URL",
    "",
    "secret",
    "The Redis in which replicas share their limits: `redis://host:6379` or `rediss://user:password@host`. Unset: each replica has its own limits.",
);
pub(super) const REDIS_PREFIX: Setting = setting(
    "REDIS_PREFIX",
    "gemini-concurrent-generation",
    "name",
    "The prefix of all keys in Redis. Replicas with the same prefix share their limits.",
);
pub(super) const REDIS_REQUIRED: Setting = setting(
    "REDIS_REQUIRED",
    "true",
    "true or false",
    "Whether the start fails when Redis cannot be used. false: the replica warns, and keeps its own limits until it restarts.",
);
pub(super) const REDIS_LEASE_SECONDS: Setting = setting(
    "REDIS_LEASE_SECONDS",
    "30",
    "seconds",
    "How long Redis keeps the permits of a replica that died, 1 to 3600. See docs/replicas.md.",
);
pub(super) const DATA_DIR: Setting = setting(
    "DATA_DIR",
    "./data",
    "path",
    "The folder for jobs, with their prompts and answers. It is made when the first job comes. One process uses it; replicas share a `JOBS_DATABASE_URL`.",
);
pub(super) const JOBS_DATABASE_URL: Setting = setting(
    "JOBS_DATABASE_URL",
    "",
    "secret",
    "The PostgreSQL database in which replicas share their jobs: `postgres://user:password@host/database`, with `sslmode=require` for TLS. Unset: jobs are in `DATA_DIR`.",
);
pub(super) const JOBS_LEASE_SECONDS: Setting = setting(
    "JOBS_LEASE_SECONDS",
    "60",
    "seconds",
    "How long the items of a process that died wait until another one sends them, in `JOBS_DATABASE_URL`, 1 to 3600.",
);
pub(super) const JOB_RETENTION_HOURS: Setting = setting(
    "JOB_RETENTION_HOURS",
    "168",
    "hours",
    "How long a job is kept after its end; then it is deleted, with its prompts and answers. 0: until somebody deletes it.",
);
pub(super) const JOB_MAX_ITEMS: Setting =
    setting("JOB_MAX_ITEMS", "10000000", "items", "The most items in one job.");
pub(super) const JOB_MAX_BYTES: Setting = setting(
    "JOB_MAX_BYTES",
    "68719476736",
    "bytes",
    "The most bytes of all items of one job, unpacked.",
);
pub(super) const HOST: Setting =
    setting("HOST", "0.0.0.0", "IP address", "The address to listen on.");
pub(super) const PORT: Setting =
    setting("PORT", "5004", "port", "The port to listen on; 0 takes a free one.");
pub(super) const GEMINI_BASE_URL: Setting = setting(
    "GEMINI_BASE_URL",
    "https://generativelanguage.googleapis.com",
    "URL",
    "The URL of Gemini. A path prefix is kept; a version at its end, such as `/v1beta` or `/v1beta/openai`, is dropped.",
);
pub(super) const GEMINI_CA_FILE: Setting = setting(
    "GEMINI_CA_FILE",
    "",
    "path",
    "A PEM file with certificate authorities that calls to Gemini trust in addition to the system's: for networks whose proxy intercepts TLS.",
);
pub(super) const GEMINI_CHAT_MODEL: Setting = setting(
    "GEMINI_CHAT_MODEL",
    "gemini-3.5-flash-lite",
    "model",
    "The model for chats that name none.",
);
pub(super) const GEMINI_STRUCTURED_MODEL: Setting = setting(
    "GEMINI_STRUCTURED_MODEL",
    "gemini-3.8-flash",
    "model",
    "The model for structured output and stories that name none.",
);
pub(super) const MAX_BATCH_SIZE: Setting =
    setting("MAX_BATCH_SIZE", "10000", "items", "The most items in one batch.");
pub(super) const MAX_BODY_BYTES: Setting =
    setting("MAX_BODY_BYTES", "67108864", "bytes", "The largest request body.");
pub(super) const MAX_SCHEMA_BYTES: Setting = setting(
    "MAX_SCHEMA_BYTES",
    "4194304",
    "bytes",
    "The largest JSON Schema; those of one batch together may be twice as large. Beyond it: 422.",
);
pub(super) const MAX_SCHEMA_NODES: Setting = setting(
    "MAX_SCHEMA_NODES",
    "100000",
    "values",
    "The most JSON values in one JSON Schema. While it is compiled, each takes 1 to 3 KB of memory as a rule, and 5 KB as a reference with a long name. Beyond it: 422.",
);
pub(super) const SCHEMA_TIMEOUT_SECONDS: Setting = setting(
    "SCHEMA_TIMEOUT_SECONDS",
    "10",
    "seconds",
    "How long it may take to compile the schemas of one request, or to check an answer. Beyond it: 422, or `schema_violation`.",
);
pub(super) const CHECK_FORMATS: Setting = setting(
    "CHECK_FORMATS",
    "true",
    "true or false",
    "Whether an answer is checked against the `format`s of its schema: date, date-time, time, email, uri, uuid, ipv4, ipv6, hostname.",
);
pub(super) const BODY_MEMORY_BYTES: Setting = setting(
    "BODY_MEMORY_BYTES",
    "",
    "bytes",
    "The most memory that the bodies of all requests take together; one body may take seven eighths of it. Beyond it: 503. Unset: a quarter of the memory that the process may use.",
);
pub(super) const MAX_CONNECTIONS: Setting = setting(
    "MAX_CONNECTIONS",
    "16384",
    "connections",
    "The most connections that clients hold at once, and the most requests over HTTP/2; fewer if the limit of open files (`ulimit -Hn`) is too low, or if a quarter of the memory is less than 64 KiB for each. Beyond it, the connections that have waited longest for their client are closed.",
);
pub(super) const CLIENT_TIMEOUT_SECONDS: Setting = setting(
    "CLIENT_TIMEOUT_SECONDS",
    "60",
    "seconds",
    "How long a client may take to send its headers, then its body, or to go on reading, before it is cut off.",
);
pub(super) const KEEP_ALIVE_SECONDS: Setting = setting(
    "KEEP_ALIVE_SECONDS",
    "75",
    "seconds",
    "How long an idle connection stays open between two requests: longer than the load balancer in front of the gateway keeps it.",
);
pub(super) const UPSTREAM_TIMEOUT_SECONDS: Setting = setting(
    "UPSTREAM_TIMEOUT_SECONDS",
    "120",
    "seconds",
    "How long one attempt at Gemini may take, from connecting to the last byte; for a stream, to its first byte; for an upload, from when all of it was sent.",
);
pub(super) const STREAM_IDLE_TIMEOUT_SECONDS: Setting = setting(
    "STREAM_IDLE_TIMEOUT_SECONDS",
    "60",
    "seconds",
    "How long Gemini may send nothing in the middle of a stream before the stream is ended.",
);
pub(super) const REQUEST_TIMEOUT_SECONDS: Setting = setting(
    "REQUEST_TIMEOUT_SECONDS",
    "600",
    "seconds",
    "How long a request may take in all, including queueing and retries; in a batch, each item from when it reaches the head of the queue; a stream, until its first byte.",
);
pub(super) const LIVE_IDLE_TIMEOUT_SECONDS: Setting = setting(
    "LIVE_IDLE_TIMEOUT_SECONDS",
    "300",
    "seconds",
    "How long neither side of a live session may send a message before the session is closed.",
);
pub(super) const LIVE_TIMEOUT_SECONDS: Setting = setting(
    "LIVE_TIMEOUT_SECONDS",
    "3600",
    "seconds",
    "How long a live session may last. It holds a slot of `GEMINI_CONCURRENCY_LIMIT` until it ends.",
);
pub(super) const FLEX_TIMEOUT_SECONDS: Setting = setting(
    "FLEX_TIMEOUT_SECONDS",
    "900",
    "seconds",
    "How long one attempt at a flex call may take, and a flex request in all where `REQUEST_TIMEOUT_SECONDS` is less.",
);
pub(super) const BACKGROUND_POLL_SECONDS: Setting = setting(
    "BACKGROUND_POLL_SECONDS",
    "5",
    "seconds",
    "How long an interaction in the background that nobody reads is left alone before the gateway asks Gemini for its status. The wait doubles each time, up to a minute. 0: the gateway does not ask.",
);
pub(super) const BACKGROUND_TIMEOUT_SECONDS: Setting = setting(
    "BACKGROUND_TIMEOUT_SECONDS",
    "3600",
    "seconds",
    "How long an interaction in the background keeps its slot at most, if its end is not seen.",
);
pub(super) const JOB_WEBHOOK_SECRET: Setting = setting(
    "JOB_WEBHOOK_SECRET",
    "",
    "secrets, separated by commas or spaces",
    "What webhooks are signed with: `whsec_` and the base64 of 24 to 64 random bytes. Each of several secrets signs, so that receivers can change theirs. Unset: jobs cannot have webhooks. See docs/webhooks.md.",
);
pub(super) const JOB_WEBHOOK_ALLOW: Setting = setting(
    "JOB_WEBHOOK_ALLOW",
    "",
    "host names, IP addresses or networks, separated by commas",
    "Destinations of webhooks that may be private, and may be reached without TLS: `hooks.internal,10.0.0.0/8`. Unset: webhooks go to public addresses only, over HTTPS.",
);
pub(super) const SHUTDOWN_DELAY_SECONDS: Setting = setting(
    "SHUTDOWN_DELAY_SECONDS",
    "0",
    "seconds",
    "How long the gateway goes on accepting connections after SIGTERM, while `/readyz` says 503: as long as load balancers need to notice. See docs/deployment.md.",
);
pub(super) const SHUTDOWN_GRACE_SECONDS: Setting = setting(
    "SHUTDOWN_GRACE_SECONDS",
    "30",
    "seconds",
    "How long work in flight may take to finish after SIGTERM and `SHUTDOWN_DELAY_SECONDS`.",
);
pub(super) const LOG_FORMAT: Setting =
    setting("LOG_FORMAT", "text", "text or json", "The format of log lines.");
pub(super) const RUST_LOG: Setting = setting(
    "RUST_LOG",
    "info",
    "filter",
    "What is logged, as tracing's EnvFilter reads it. Prompts and answers appear at trace only.",
);
pub(super) const GATEWAY_URL: Setting = setting(
    "GATEWAY_URL",
    "",
    "URL",
    "The running gateway that the commands `run` and `jobs` use: `https://gateway.example`. Unset: `run` needs none, and `jobs` uses `PORT` on this machine.",
);
