//! Every setting: its variable, default, unit and meaning. Read at the start; a running process reads some
//! of them again.

mod admin_key;
mod browsers;
mod check;
mod environment;
mod file;
mod lookup;
mod network;
mod quotas;
mod reload;
mod settings;
#[cfg(test)]
mod tests;
mod traces;
mod webhooks;

use std::borrow::Cow;
use std::cell::Cell;
use std::net::{IpAddr, Ipv4Addr};
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use crate::connect::{Authorities, Proxy};
use crate::gemini::{ApiKey, Model, Secrets, ServiceTier};
use crate::jobs::StoreSettings;
use crate::jobs::webhook::WebhookSettings;
use crate::limits::{QuotaPlan, RedisSettings};
use crate::prices::Prices;
use crate::schema::SchemaLimits;
use crate::telemetry::LogFormat;
use crate::traces::TraceSettings;
use lookup::{Lookup, UNQUOTED, invalid};
use settings::*;

pub use admin_key::AdminKey;
pub use browsers::{CorsOrigins, FallbackScope};
pub use environment::{Environment, Origin, SettingError};
pub use file::InvalidFile;
pub use network::PROXY_VARIABLES;
pub use reload::{NewSettings, NotReloaded, RELOADED, RunningSettings};
pub use settings::{SETTINGS, Setting};
pub use traces::OTEL_VARIABLES;

/// An invalid setting. The error says what is expected; it quotes nothing that could be a secret.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{variable}: expected {expected}")]
pub struct InvalidSetting {
    /// The variable.
    pub variable: &'static str,
    /// The expected form of its value, on one line.
    pub expected: Cow<'static, str>,
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
    pub prices: Arc<Prices>,
    pub max_queued_requests: usize,
    pub max_attempts: usize,
    pub max_continuations: usize,
    pub redis: Option<RedisSettings>,
    pub redis_required: bool,
    pub job_store: StoreSettings,
    pub job_lease: Duration,
    pub job_retention: Option<Duration>,
    pub job_max_items: u64,
    pub job_max_bytes: u64,
    pub host: IpAddr,
    pub port: u16,
    pub base_url: String,
    pub authorities: Authorities,
    pub proxy: Option<Proxy>,
    pub chat_model: Model,
    pub structured_model: Model,
    pub max_batch_size: usize,
    pub max_body_bytes: usize,
    pub schema_limits: SchemaLimits,
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
    pub flex_timeout: Duration,
    pub background_poll: Option<Duration>,
    pub background_timeout: Duration,
    pub webhooks: WebhookSettings,
    pub shutdown_delay: Duration,
    pub shutdown_grace: Duration,
    pub log_format: LogFormat,
    pub log_filter: String,
    pub gateway_url: Option<String>,
    pub traces: Option<TraceSettings>,
}

impl Config {
    /// Reads the settings through a lookup function.
    ///
    /// # Errors
    /// The first setting with an invalid value.
    pub fn read(lookup: impl Fn(&str) -> Option<String>) -> Result<Self, InvalidSetting> {
        let settings = Lookup { variable: &lookup, quoted: Cell::new(None) };
        let config = Self::read_all(&settings);
        // If a value is quoted, its quotes are the likely cause of an error.
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
            prices: quotas::prices(settings)?,
            max_queued_requests: settings.parse(MAX_QUEUED_REQUESTS, "a whole number")?,
            max_attempts: settings.count(GEMINI_MAX_ATTEMPTS)?,
            max_continuations: settings.continuations()?,
            redis: settings.redis()?,
            redis_required: settings.parse(REDIS_REQUIRED, "true or false")?,
            job_store: settings.job_store()?,
            job_lease: settings.lease(JOBS_LEASE_SECONDS)?,
            job_retention: settings.hours_or_none(JOB_RETENTION_HOURS)?,
            job_max_items: settings.count(JOB_MAX_ITEMS)? as u64,
            job_max_bytes: settings.count(JOB_MAX_BYTES)? as u64,
            host: settings.parse(HOST, "an IP address, such as 127.0.0.1 or ::")?,
            port: settings.parse(PORT, "a port, 0 to 65535")?,
            authorities: network::authorities(settings)?,
            proxy: network::proxy(settings, &base_url)?,
            base_url,
            chat_model: settings.parse(GEMINI_CHAT_MODEL, MODEL)?,
            structured_model: settings.parse(GEMINI_STRUCTURED_MODEL, MODEL)?,
            max_batch_size: settings.count(MAX_BATCH_SIZE)?,
            max_body_bytes: settings.count(MAX_BODY_BYTES)?,
            schema_limits: SchemaLimits {
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
            flex_timeout: settings.seconds(FLEX_TIMEOUT_SECONDS)?,
            background_poll: settings.seconds_or_none(BACKGROUND_POLL_SECONDS)?,
            background_timeout: settings.seconds(BACKGROUND_TIMEOUT_SECONDS)?,
            webhooks: webhooks::read(settings)?,
            shutdown_delay: settings.seconds_or_none(SHUTDOWN_DELAY_SECONDS)?.unwrap_or_default(),
            shutdown_grace: settings.seconds(SHUTDOWN_GRACE_SECONDS)?,
            log_format: settings.parse(LOG_FORMAT, "text or json")?,
            log_filter: settings.log_filter()?,
            gateway_url: settings.gateway_url()?,
            traces: traces::read(settings)?,
        };
        if let Some(key) = settings.optional(GEMINI_API_KEY) {
            // Google's keys contain no quotes.
            if key.contains(['"', '\'']) {
                return Err(invalid(GEMINI_API_KEY, UNQUOTED));
            }
            let key = ApiKey::new(&key).map_err(|_| invalid(GEMINI_API_KEY, API_KEY))?;
            config.set_gemini_api_key(key);
        }
        Ok(config)
    }

    /// Sets the server's key. Its label is `server`, unless `GEMINI_KEY_LABELS` gives it another.
    pub fn set_gemini_api_key(&mut self, key: ApiKey) {
        self.quota_plan.add_default_label(key.sha256(), SERVER_LABEL);
        self.gemini_api_key = Some(key);
    }

    /// The keys of the server, which are overwritten wherever texts of callers or of Gemini are kept.
    pub fn secrets(&self) -> Secrets {
        let admin_key = self.admin_api_key.as_ref().and_then(AdminKey::secret);
        Secrets::new(self.gemini_api_key.iter().chain(&admin_key))
    }

    /// How long a request in this service tier may take.
    pub fn request_timeout_of(&self, tier: ServiceTier) -> Duration {
        match tier {
            ServiceTier::Flex => self.request_timeout.max(self.flex_timeout),
            ServiceTier::Standard | ServiceTier::Priority => self.request_timeout,
        }
    }

    /// Whether only this machine can reach the port.
    pub fn is_loopback(&self) -> bool {
        self.host.is_loopback()
    }
}

impl Default for Config {
    /// The default settings, on a free port of the loopback address.
    fn default() -> Self {
        let mut config = Self::read(|_| None).expect("the defaults are valid settings");
        config.host = Ipv4Addr::LOCALHOST.into();
        config.port = 0;
        config
    }
}

/// The label of the server's own key.
pub const SERVER_LABEL: &str = "server";
const API_KEY: &str = "an API key: visible ASCII characters";
const MODEL: &str = "a model's name, such as gemini-3.5-flash-lite";

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
