//! Every setting: its variable, default, unit and meaning. Read once, at the start.

mod admin_key;
mod browsers;
mod network;
mod quotas;
#[cfg(test)]
mod tests;

use std::borrow::Cow;
use std::cell::Cell;
use std::env::VarError;
use std::net::{IpAddr, Ipv4Addr};
use std::num::NonZeroUsize;
use std::str::FromStr;
use std::time::Duration;

use crate::connect::{Authorities, Proxy};
use crate::gemini::{ApiKey, Client, Model};
use crate::limits::{QuotaPlan, RedisSettings, SemaphoreId, Tier};
use crate::schema::Limits;

pub use admin_key::AdminKey;
pub use browsers::{CorsOrigins, FallbackScope};
pub use network::PROXY_VARIABLES;

/// One environment variable that the service reads.
#[derive(Debug, Clone, Copy)]
pub struct Setting {
    /// The variable's name.
    pub name: &'static str,
    /// What counts where it is unset or empty; empty where there is no default.
    pub default: &'static str,
    /// What its value is measured in or made of.
    pub unit: &'static str,
    /// What it does.
    pub meaning: &'static str,
}

const fn setting(
    name: &'static str,
    default: &'static str,
    unit: &'static str,
    meaning: &'static str,
) -> Setting {
    Setting { name, default, unit, meaning }
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
    MAX_QUEUED_REQUESTS,
    GEMINI_MAX_ATTEMPTS,
    REDIS_URL,
    REDIS_PREFIX,
    REDIS_REQUIRED,
    REDIS_LEASE_SECONDS,
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
    SHUTDOWN_GRACE_SECONDS,
    LOG_FORMAT,
    RUST_LOG,
];

const ADMIN_API_KEY: Setting = setting(
    "ADMIN_API_KEY",
    "",
    "secret",
    "Requests that send it as `Admin-API-Key` spend the server's Gemini key, manage semaphores and see limits. Unset: no request can.",
);
const GEMINI_API_KEY: Setting =
    setting("GEMINI_API_KEY", "", "secret", "The server's own Gemini key.");
const ENVIRONMENT_FALLBACK: Setting = setting(
    "ENVIRONMENT_FALLBACK",
    "true",
    "true or false",
    "Whether a request without any key spends the server's Gemini key.",
);
const ENVIRONMENT_FALLBACK_SCOPE: Setting = setting(
    "ENVIRONMENT_FALLBACK_SCOPE",
    "all",
    "all or generation",
    "What a request without any key may do. all: also list, read, upload and delete the files, caches and jobs of the server's key. generation: only generate, embed, count tokens and list models.",
);
const CORS_ORIGINS: Setting = setting(
    "CORS_ORIGINS",
    "",
    "origins, separated by commas, or *",
    "Web pages of these origins may read answers, and spend the server's key as any other client may: `https://app.example,http://localhost:5173`. `*`: pages of every origin may read answers, but need a key of their own. Unset: no page may.",
);
const ALLOWED_HOSTS: Setting = setting(
    "ALLOWED_HOSTS",
    "",
    "host names, separated by commas",
    "Names besides localhost under which requests without a key may spend the server's. Unset: every name, or with a loopback `HOST` no other name.",
);
const GEMINI_CONCURRENCY_LIMIT: Setting = setting(
    "GEMINI_CONCURRENCY_LIMIT",
    "15",
    "calls",
    "The most calls to Gemini that are in flight at once. Unset, with `GEMINI_TIER`: 2 (free), 15 (tier1) or 50 (tier2).",
);
const GEMINI_TIER: Setting = setting(
    "GEMINI_TIER",
    "none",
    "none, free, tier1 or tier2",
    "The quotas of each key for each model, unless `GEMINI_LIMITS` sets others. none: no limits.",
);
const GEMINI_LIMITS: Setting = setting(
    "GEMINI_LIMITS",
    "",
    "entries, separated by semicolons",
    "Quotas of keys for models: `gemini-3.8-flash:rpm=150,tpm=2000000,rpd=10000;*:rpm=1000`. See docs/limits.md.",
);
const GEMINI_KEY_LABELS: Setting = setting(
    "GEMINI_KEY_LABELS",
    "",
    "entries, separated by commas",
    "Labels for keys, by the first digits of their SHA-256: `team-a=1f3a9c02,team-a=77aa01bc`. Keys with the same label share their quotas.",
);
const MAX_QUEUED_REQUESTS: Setting = setting(
    "MAX_QUEUED_REQUESTS",
    "10000",
    "requests",
    "The most requests that wait for admission; a batch counts as one. Beyond it: 503.",
);
const GEMINI_MAX_ATTEMPTS: Setting = setting(
    "GEMINI_MAX_ATTEMPTS",
    "4",
    "attempts",
    "The most attempts at one call, including the first, when Gemini answers with transient errors.",
);
const REDIS_URL: Setting = setting(
    "REDIS_URL",
    "",
    "secret",
    "The Redis in which replicas share their limits: `redis://host:6379` or `rediss://user:password@host`. Unset: each replica has its own limits.",
);
const REDIS_PREFIX: Setting = setting(
    "REDIS_PREFIX",
    "gemini-concurrent-generation",
    "name",
    "The prefix of all keys in Redis. Replicas with the same prefix share their limits.",
);
const REDIS_REQUIRED: Setting = setting(
    "REDIS_REQUIRED",
    "true",
    "true or false",
    "Whether the start fails when Redis cannot be used. false: the replica warns, and keeps its own limits until it restarts.",
);
const REDIS_LEASE_SECONDS: Setting = setting(
    "REDIS_LEASE_SECONDS",
    "30",
    "seconds",
    "How long Redis keeps the permits of a replica that died, 1 to 3600. See docs/replicas.md.",
);
const HOST: Setting = setting("HOST", "0.0.0.0", "IP address", "The address to listen on.");
const PORT: Setting = setting("PORT", "5004", "port", "The port to listen on; 0 takes a free one.");
const GEMINI_BASE_URL: Setting = setting(
    "GEMINI_BASE_URL",
    "https://generativelanguage.googleapis.com",
    "URL",
    "The URL of Gemini. A path prefix is kept; a version at its end, such as `/v1beta` or `/v1beta/openai`, is dropped.",
);
const GEMINI_CA_FILE: Setting = setting(
    "GEMINI_CA_FILE",
    "",
    "path",
    "A PEM file with certificate authorities that calls to Gemini trust in addition to the system's: for networks whose proxy intercepts TLS.",
);
const GEMINI_CHAT_MODEL: Setting = setting(
    "GEMINI_CHAT_MODEL",
    "gemini-3.5-flash-lite",
    "model",
    "The model for chats that name none.",
);
const GEMINI_STRUCTURED_MODEL: Setting = setting(
    "GEMINI_STRUCTURED_MODEL",
    "gemini-3.8-flash",
    "model",
    "The model for structured output and stories that name none.",
);
const MAX_BATCH_SIZE: Setting =
    setting("MAX_BATCH_SIZE", "10000", "items", "The most items in one batch.");
const MAX_BODY_BYTES: Setting =
    setting("MAX_BODY_BYTES", "67108864", "bytes", "The largest request body.");
const MAX_SCHEMA_BYTES: Setting = setting(
    "MAX_SCHEMA_BYTES",
    "4194304",
    "bytes",
    "The largest JSON Schema; those of one batch together may be twice as large. Beyond it: 422.",
);
const MAX_SCHEMA_NODES: Setting = setting(
    "MAX_SCHEMA_NODES",
    "100000",
    "values",
    "The most JSON values in one JSON Schema. Each takes up to 8 KB of memory while it is compiled. Beyond it: 422.",
);
const SCHEMA_TIMEOUT_SECONDS: Setting = setting(
    "SCHEMA_TIMEOUT_SECONDS",
    "10",
    "seconds",
    "How long it may take to compile the schemas of one request, or to check an answer. Beyond it: 422, or `schema_violation`.",
);
const CHECK_FORMATS: Setting = setting(
    "CHECK_FORMATS",
    "true",
    "true or false",
    "Whether an answer is checked against the `format`s of its schema: date, date-time, time, email, uri, uuid, ipv4, ipv6, hostname.",
);
const BODY_MEMORY_BYTES: Setting = setting(
    "BODY_MEMORY_BYTES",
    "",
    "bytes",
    "The most memory that the bodies of all requests take together; one body may take seven eighths of it. Beyond it: 503. Unset: a quarter of the memory that the process may use.",
);
const MAX_CONNECTIONS: Setting = setting(
    "MAX_CONNECTIONS",
    "16384",
    "connections",
    "The most connections that clients hold at once, and the most requests over HTTP/2; fewer where the limit of open files (`ulimit -Hn`) is too low, or where a quarter of the memory has less than 64 KiB for each. Beyond it, the connections that have waited longest for their client are closed.",
);
const CLIENT_TIMEOUT_SECONDS: Setting = setting(
    "CLIENT_TIMEOUT_SECONDS",
    "60",
    "seconds",
    "How long a client may take to send its headers, then its body, or to go on reading, before it is cut off.",
);
const KEEP_ALIVE_SECONDS: Setting = setting(
    "KEEP_ALIVE_SECONDS",
    "75",
    "seconds",
    "How long an idle connection stays open between two requests: longer than the load balancer in front of the gateway keeps it.",
);
const UPSTREAM_TIMEOUT_SECONDS: Setting = setting(
    "UPSTREAM_TIMEOUT_SECONDS",
    "120",
    "seconds",
    "How long one attempt at Gemini may take, from connecting to the last byte; for a stream, to its first byte; for an upload, from when all of it was sent.",
);
const STREAM_IDLE_TIMEOUT_SECONDS: Setting = setting(
    "STREAM_IDLE_TIMEOUT_SECONDS",
    "60",
    "seconds",
    "How long Gemini may send nothing in the middle of a stream before the stream is given up.",
);
const REQUEST_TIMEOUT_SECONDS: Setting = setting(
    "REQUEST_TIMEOUT_SECONDS",
    "600",
    "seconds",
    "How long a request may take in all, including queueing and retries; in a batch, each item from its turn in the queue; a stream, until its first byte.",
);
const LIVE_IDLE_TIMEOUT_SECONDS: Setting = setting(
    "LIVE_IDLE_TIMEOUT_SECONDS",
    "300",
    "seconds",
    "How long neither side of a live session may say anything before the session is closed.",
);
const LIVE_TIMEOUT_SECONDS: Setting = setting(
    "LIVE_TIMEOUT_SECONDS",
    "3600",
    "seconds",
    "How long a live session may last; it holds a slot of `GEMINI_CONCURRENCY_LIMIT` all that time.",
);
const SHUTDOWN_GRACE_SECONDS: Setting = setting(
    "SHUTDOWN_GRACE_SECONDS",
    "30",
    "seconds",
    "How long work in flight may take to finish after SIGTERM.",
);
const LOG_FORMAT: Setting =
    setting("LOG_FORMAT", "text", "text or json", "The format of log lines.");
const RUST_LOG: Setting = setting(
    "RUST_LOG",
    "info",
    "filter",
    "What is logged, as tracing's EnvFilter reads it. Prompts and answers appear at trace only.",
);

/// A setting whose value cannot be used. Says what was expected; of what was found, nothing that
/// could be a secret.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{variable}: expected {expected}")]
pub struct InvalidSetting {
    /// The variable.
    pub variable: &'static str,
    /// What its value should have been, on one line.
    pub expected: Cow<'static, str>,
}

/// The format of log lines.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LogFormat {
    /// For people.
    Text,
    /// For collectors: one JSON object a line.
    Json,
}

/// The settings, read and checked.
#[derive(Debug, Clone)]
#[expect(missing_docs, reason = "each field is the setting of its name, described in SETTINGS")]
pub struct Config {
    pub admin_api_key: Option<AdminKey>,
    pub gemini_api_key: Option<ApiKey>,
    pub environment_fallback: bool,
    pub fallback_scope: FallbackScope,
    pub cors_origins: CorsOrigins,
    pub allowed_hosts: Vec<String>,
    pub concurrency_limit: usize,
    pub quota_plan: QuotaPlan,
    pub max_queued_requests: usize,
    pub max_attempts: usize,
    pub redis: Option<RedisSettings>,
    pub redis_required: bool,
    pub host: IpAddr,
    pub port: u16,
    pub base_url: String,
    pub authorities: Authorities,
    pub proxy: Option<Proxy>,
    pub chat_model: Model,
    pub structured_model: Model,
    pub max_batch_size: usize,
    pub max_body_bytes: usize,
    pub schema_limits: Limits,
    pub schema_timeout: Duration,
    pub check_formats: bool,
    pub body_memory_bytes: Option<usize>,
    pub max_connections: usize,
    pub client_timeout: Duration,
    pub keep_alive: Duration,
    pub upstream_timeout: Duration,
    pub stream_idle_timeout: Duration,
    pub request_timeout: Duration,
    pub live_idle_timeout: Duration,
    pub live_timeout: Duration,
    pub shutdown_grace: Duration,
    pub log_format: LogFormat,
    pub log_filter: String,
}

impl Config {
    /// Reads the process's environment.
    ///
    /// # Errors
    /// The first setting whose value cannot be used.
    pub fn from_env() -> Result<Self, InvalidSetting> {
        for setting in SETTINGS {
            is_text(setting.name)?;
        }
        PROXY_VARIABLES.iter().try_for_each(|variable| is_text(variable))?;
        Self::read(|name| std::env::var(name).ok())
    }

    /// Reads the settings from a look-up function.
    ///
    /// # Errors
    /// The first setting whose value cannot be used.
    pub fn read(lookup: impl Fn(&str) -> Option<String>) -> Result<Self, InvalidSetting> {
        let settings = Lookup { variable: &lookup, quoted: Cell::new(None) };
        let config = Self::read_all(&settings);
        // That a value cannot be used is mostly due to the quotes.
        match settings.quoted.get() {
            Some(setting) => Err(invalid(setting, UNQUOTED)),
            None => config,
        }
    }

    fn read_all(settings: &Lookup<'_>) -> Result<Self, InvalidSetting> {
        let quota_plan = quotas::read(settings)?;
        let base_url = settings.base_url()?;
        let mut config = Self {
            admin_api_key: settings.admin_key()?,
            gemini_api_key: None,
            environment_fallback: settings.parse(ENVIRONMENT_FALLBACK, "true or false")?,
            fallback_scope: settings.parse(ENVIRONMENT_FALLBACK_SCOPE, "all or generation")?,
            cors_origins: CorsOrigins::read(settings)?,
            allowed_hosts: browsers::allowed_hosts(settings)?,
            concurrency_limit: settings.concurrency_limit(quota_plan.tier)?,
            quota_plan,
            max_queued_requests: settings.parse(MAX_QUEUED_REQUESTS, "a whole number")?,
            max_attempts: settings.count(GEMINI_MAX_ATTEMPTS)?,
            redis: settings.redis()?,
            redis_required: settings.parse(REDIS_REQUIRED, "true or false")?,
            host: settings.parse(HOST, "an IP address, such as 127.0.0.1 or ::")?,
            port: settings.parse(PORT, "a port, 0 to 65535")?,
            authorities: network::authorities(settings)?,
            proxy: network::proxy(settings, &base_url)?,
            base_url,
            chat_model: settings.parse(GEMINI_CHAT_MODEL, MODEL)?,
            structured_model: settings.parse(GEMINI_STRUCTURED_MODEL, MODEL)?,
            max_batch_size: settings.count(MAX_BATCH_SIZE)?,
            max_body_bytes: settings.count(MAX_BODY_BYTES)?,
            schema_limits: Limits {
                bytes: settings.count(MAX_SCHEMA_BYTES)?,
                nodes: settings.count(MAX_SCHEMA_NODES)?,
            },
            schema_timeout: settings.seconds(SCHEMA_TIMEOUT_SECONDS)?,
            check_formats: settings.parse(CHECK_FORMATS, "true or false")?,
            body_memory_bytes: settings.optional_count(BODY_MEMORY_BYTES)?,
            max_connections: settings.count(MAX_CONNECTIONS)?,
            client_timeout: settings.seconds(CLIENT_TIMEOUT_SECONDS)?,
            keep_alive: settings.seconds(KEEP_ALIVE_SECONDS)?,
            upstream_timeout: settings.seconds(UPSTREAM_TIMEOUT_SECONDS)?,
            stream_idle_timeout: settings.seconds(STREAM_IDLE_TIMEOUT_SECONDS)?,
            request_timeout: settings.seconds(REQUEST_TIMEOUT_SECONDS)?,
            live_idle_timeout: settings.seconds(LIVE_IDLE_TIMEOUT_SECONDS)?,
            live_timeout: settings.seconds(LIVE_TIMEOUT_SECONDS)?,
            shutdown_grace: settings.seconds(SHUTDOWN_GRACE_SECONDS)?,
            log_format: settings.parse(LOG_FORMAT, "text or json")?,
            log_filter: settings.log_filter()?,
        };
        if let Some(key) = settings.optional(GEMINI_API_KEY) {
            // No key of Google's has one in it.
            if key.contains(['"', '\'']) {
                return Err(invalid(GEMINI_API_KEY, UNQUOTED));
            }
            let key = ApiKey::new(&key).map_err(|_| invalid(GEMINI_API_KEY, API_KEY))?;
            config.set_gemini_api_key(key);
        }
        Ok(config)
    }

    /// Makes this the server's own key, with the label `server` unless `GEMINI_KEY_LABELS` gives
    /// it another.
    pub fn set_gemini_api_key(&mut self, key: ApiKey) {
        self.quota_plan.add_default_label(key.sha256(), SERVER_LABEL);
        self.gemini_api_key = Some(key);
    }

    /// Whether the port can be reached only from this machine.
    pub fn is_loopback(&self) -> bool {
        self.host.is_loopback()
    }
}

impl Default for Config {
    /// What counts where no variable is set, on a free port of the loopback address.
    fn default() -> Self {
        let mut config = Self::read(|_| None).expect("the defaults are valid settings");
        config.host = Ipv4Addr::LOCALHOST.into();
        config.port = 0;
        config
    }
}

/// The label of the server's own key.
const SERVER_LABEL: &str = "server";
const API_KEY: &str = "an API key: visible ASCII characters";
const MODEL: &str = "a model's name, such as gemini-3.5-flash-lite";

fn invalid(setting: Setting, expected: impl Into<Cow<'static, str>>) -> InvalidSetting {
    InvalidSetting { variable: setting.name, expected: expected.into() }
}

fn is_text(variable: &'static str) -> Result<(), InvalidSetting> {
    match std::env::var(variable) {
        Err(VarError::NotUnicode(_)) => {
            Err(InvalidSetting { variable, expected: "text in UTF-8".into() })
        }
        _ => Ok(()),
    }
}

/// Docker's `--env-file` takes quotes for a part of the value, as most shells do not.
const UNQUOTED: &str =
    "a value without quotes around it (`docker run --env-file` takes them for a part of it)";

struct Lookup<'a> {
    variable: &'a dyn Fn(&str) -> Option<String>,
    /// A setting that was read and whose value stands in quotes.
    quoted: Cell<Option<Setting>>,
}

impl Lookup<'_> {
    /// The value, where it is neither unset nor blank.
    fn optional(&self, setting: Setting) -> Option<String> {
        let value = (self.variable)(setting.name)?;
        let value = value.trim();
        if is_quoted(value) {
            self.quoted.set(Some(setting));
        }
        (!value.is_empty()).then(|| value.to_owned())
    }

    fn value(&self, setting: Setting) -> String {
        self.optional(setting).unwrap_or_else(|| setting.default.to_owned())
    }

    fn parse<T: FromStr>(
        &self,
        setting: Setting,
        expected: &'static str,
    ) -> Result<T, InvalidSetting> {
        self.value(setting).parse().map_err(|_| invalid(setting, expected))
    }

    /// The entries of a list that commas separate, without the blank ones.
    fn list(&self, setting: Setting) -> Vec<String> {
        let entries = self.value(setting);
        let entries = entries.split(',').map(str::trim).filter(|entry| !entry.is_empty());
        entries.map(str::to_owned).collect()
    }

    fn count(&self, setting: Setting) -> Result<usize, InvalidSetting> {
        let count: NonZeroUsize = self.parse(setting, "a whole number, 1 or more")?;
        // A limit beyond that is none, and the script in Redis writes numbers with 14 digits.
        Ok(count.get().min(1_000_000_000_000))
    }

    fn optional_count(&self, setting: Setting) -> Result<Option<usize>, InvalidSetting> {
        self.optional(setting).map(|_| self.count(setting)).transpose()
    }

    fn concurrency_limit(&self, tier: Option<Tier>) -> Result<usize, InvalidSetting> {
        match tier {
            Some(tier) if self.optional(GEMINI_CONCURRENCY_LIMIT).is_none() => {
                Ok(tier.concurrency())
            }
            _ => self.count(GEMINI_CONCURRENCY_LIMIT),
        }
    }

    /// Seconds, with a fraction or without: more than none, at most a year.
    fn seconds(&self, setting: Setting) -> Result<Duration, InvalidSetting> {
        const EXPECTED: &str = "a number of seconds, more than 0 and at most 31536000";
        let seconds: f64 = self.parse(setting, EXPECTED)?;
        if seconds > 0.0 && seconds <= 31_536_000.0 {
            Ok(Duration::from_secs_f64(seconds))
        } else {
            Err(invalid(setting, EXPECTED))
        }
    }

    /// A key that no header can carry would lock everybody out without a word.
    fn admin_key(&self) -> Result<Option<AdminKey>, InvalidSetting> {
        let Some(key) = self.optional(ADMIN_API_KEY).map(AdminKey::new) else { return Ok(None) };
        match key.header() {
            Some(_) => Ok(Some(key)),
            None => Err(invalid(ADMIN_API_KEY, "a key on one line, without control characters")),
        }
    }

    fn redis(&self) -> Result<Option<RedisSettings>, InvalidSetting> {
        const PREFIX: &str = "1 to 128 of the characters A-Z a-z 0-9 . _ : -";
        const LEASE: &str = "a number of seconds, 1 to 3600";
        // Read where there is no Redis, too: a wrong value is to be known before there is.
        let prefix = SemaphoreId::parse(&self.value(REDIS_PREFIX))
            .map_err(|_| invalid(REDIS_PREFIX, PREFIX))?;
        let lease: f64 = self.parse(REDIS_LEASE_SECONDS, LEASE)?;
        if !(1.0..=3600.0).contains(&lease) {
            return Err(invalid(REDIS_LEASE_SECONDS, LEASE));
        }
        let Some(url) = self.optional(REDIS_URL) else { return Ok(None) };
        RedisSettings::check_url(&url).map_err(|_| {
            invalid(
                REDIS_URL,
                "redis://host:port or rediss://host:port, with user and password or without",
            )
        })?;
        Ok(Some(RedisSettings {
            url: url.into(),
            prefix: prefix.as_str().to_owned(),
            lease: Duration::from_secs_f64(lease),
        }))
    }

    fn base_url(&self) -> Result<String, InvalidSetting> {
        let url = self.value(GEMINI_BASE_URL);
        Client::check_base_url(&url)
            .map_err(|_| invalid(GEMINI_BASE_URL, "an http or https URL without a query"))?;
        Ok(without_version(&url).to_owned())
    }

    fn log_filter(&self) -> Result<String, InvalidSetting> {
        let filter = self.value(RUST_LOG);
        tracing_subscriber::EnvFilter::try_new(&filter)
            .map_err(|_| invalid(RUST_LOG, "a log filter, such as info or warn,hyper=off"))?;
        Ok(filter)
    }
}

/// Whether a value stands in quotes, or in one that was left alone.
fn is_quoted(value: &str) -> bool {
    let quotes = |quote| value.starts_with(quote) && value.ends_with(quote);
    quotes('"') || quotes('\'')
}

/// A base URL without the version that Google's documents write at its end (`/v1beta`), and without
/// what follows it for OpenAI's clients (`/v1beta/openai/`): calls bring both with them.
fn without_version(url: &str) -> &str {
    let whole = url.trim_end_matches('/');
    let base = whole.strip_suffix("/openai").or_else(|| whole.strip_suffix("/models"));
    let base = base.unwrap_or(whole).trim_end_matches('/');
    match base.rsplit_once('/') {
        Some((base, version)) if is_version(version) && !base.ends_with('/') => base,
        _ => whole,
    }
}

/// Whether a part of a path is a version of Google's: `v1`, `v1beta`, `v1alpha`, `v1beta2`.
fn is_version(part: &str) -> bool {
    let Some(version) = part.strip_prefix('v') else { return false };
    let stage = version.trim_start_matches(|digit: char| digit.is_ascii_digit());
    let name = stage.trim_end_matches(|digit: char| digit.is_ascii_digit());
    stage.len() < version.len() && matches!(name, "" | "alpha" | "beta")
}

impl FromStr for LogFormat {
    type Err = ();

    fn from_str(format: &str) -> Result<Self, ()> {
        match format {
            "text" => Ok(Self::Text),
            "json" => Ok(Self::Json),
            _ => Err(()),
        }
    }
}
