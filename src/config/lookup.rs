//! Looks settings up and parses their values.

use std::borrow::Cow;
use std::cell::Cell;
use std::num::NonZeroUsize;
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use super::settings::{
    ADMIN_API_KEY, DATA_DIR, GATEWAY_URL, GEMINI_BASE_URL, GEMINI_CONCURRENCY_LIMIT,
    JOBS_DATABASE_URL, MAX_CONTINUATIONS, REDIS_LEASE_SECONDS, REDIS_PREFIX, REDIS_URL, RUST_LOG,
    Setting,
};
use super::{AdminKey, InvalidSetting};
use crate::gemini::Client;
use crate::jobs::StoreSettings;
use crate::limits::{RedisSettings, SemaphoreId, Tier};

pub(super) fn invalid(setting: Setting, expected: impl Into<Cow<'static, str>>) -> InvalidSetting {
    InvalidSetting { variable: setting.name, expected: expected.into() }
}

/// Unlike most shells, Docker's `--env-file` keeps quotes as a part of the value.
pub(super) const UNQUOTED: &str =
    "a value without quotes around it (`docker run --env-file` keeps them as a part of it)";

/// Looks settings up and parses their values.
pub(super) struct Lookup<'a> {
    pub(super) variable: &'a dyn Fn(&str) -> Option<String>,
    /// A setting that was read and has a quoted value.
    pub(super) quoted: Cell<Option<Setting>>,
}

impl Lookup<'_> {
    /// The trimmed value; `None` if it is unset or blank.
    pub(super) fn optional(&self, setting: Setting) -> Option<String> {
        let value = (self.variable)(setting.name)?;
        let value = value.trim();
        if is_quoted(value) {
            self.quoted.set(Some(setting));
        }
        (!value.is_empty()).then(|| value.to_owned())
    }

    pub(super) fn value(&self, setting: Setting) -> String {
        self.optional(setting).unwrap_or_else(|| setting.default.to_owned())
    }

    pub(super) fn parse<T: FromStr>(
        &self,
        setting: Setting,
        expected: &'static str,
    ) -> Result<T, InvalidSetting> {
        self.value(setting).parse().map_err(|_| invalid(setting, expected))
    }

    /// The entries of a comma-separated list, without blank ones.
    pub(super) fn list(&self, setting: Setting) -> Vec<String> {
        let entries = self.value(setting);
        let entries = entries.split(',').map(str::trim).filter(|entry| !entry.is_empty());
        entries.map(str::to_owned).collect()
    }

    pub(super) fn count(&self, setting: Setting) -> Result<usize, InvalidSetting> {
        let count: NonZeroUsize = self.parse(setting, "a whole number, 1 or more")?;
        // Higher limits have no effect, and the Redis script writes numbers with 14 digits.
        Ok(count.get().min(1_000_000_000_000))
    }

    /// Bounded, since a model that never ends its answer is asked as often.
    pub(super) fn continuations(&self) -> Result<usize, InvalidSetting> {
        const EXPECTED: &str = "a whole number, 0 to 64";
        let calls = self.parse(MAX_CONTINUATIONS, EXPECTED)?;
        if calls <= 64 { Ok(calls) } else { Err(invalid(MAX_CONTINUATIONS, EXPECTED)) }
    }

    pub(super) fn optional_count(&self, setting: Setting) -> Result<Option<usize>, InvalidSetting> {
        self.optional(setting).map(|_| self.count(setting)).transpose()
    }

    pub(super) fn concurrency_limit(&self, tier: Option<Tier>) -> Result<usize, InvalidSetting> {
        match tier {
            Some(tier) if self.optional(GEMINI_CONCURRENCY_LIMIT).is_none() => {
                Ok(tier.concurrency())
            }
            _ => self.count(GEMINI_CONCURRENCY_LIMIT),
        }
    }

    /// A number of seconds, also with a fraction: more than 0, at most a year.
    pub(super) fn seconds(&self, setting: Setting) -> Result<Duration, InvalidSetting> {
        const EXPECTED: &str = "a number of seconds, more than 0 and at most 31536000";
        let seconds: f64 = self.parse(setting, EXPECTED)?;
        if seconds > 0.0 && seconds <= 31_536_000.0 {
            Ok(Duration::from_secs_f64(seconds))
        } else {
            Err(invalid(setting, EXPECTED))
        }
    }

    /// A number of seconds as [`seconds`](Self::seconds); `None` for 0.
    pub(super) fn seconds_or_none(
        &self,
        setting: Setting,
    ) -> Result<Option<Duration>, InvalidSetting> {
        const EXPECTED: &str = "a number of seconds, at most 31536000; 0 for none";
        if self.parse(setting, EXPECTED) == Ok(0.0) {
            return Ok(None);
        }
        self.seconds(setting).map(Some).map_err(|_| invalid(setting, EXPECTED))
    }

    /// A number of hours, also with a fraction: at most ten years; `None` for 0.
    pub(super) fn hours_or_none(
        &self,
        setting: Setting,
    ) -> Result<Option<Duration>, InvalidSetting> {
        const EXPECTED: &str = "a number of hours, at most 87600; 0 for ever";
        let hours: f64 = self.parse(setting, EXPECTED)?;
        match hours {
            0.0 => Ok(None),
            _ if hours > 0.0 && hours <= 87_600.0 => {
                Ok(Some(Duration::from_secs_f64(hours * 3600.0)))
            }
            _ => Err(invalid(setting, EXPECTED)),
        }
    }

    pub(super) fn job_store(&self) -> Result<StoreSettings, InvalidSetting> {
        let folder = PathBuf::from(self.value(DATA_DIR));
        if folder.exists() && !folder.is_dir() {
            return Err(invalid(DATA_DIR, "the path of a folder, which need not exist"));
        }
        let database = self.optional(JOBS_DATABASE_URL);
        if database.as_deref().is_some_and(|url| StoreSettings::check_url(url).is_err()) {
            let expected = "postgres://user:password@host:port/database, with reserved characters of \
                            the password in percent-encoding";
            return Err(invalid(JOBS_DATABASE_URL, expected));
        }
        Ok(StoreSettings { folder, database: database.map(Into::into) })
    }

    /// Rejects a key that a header cannot carry: nobody could use it, and nothing would say why.
    pub(super) fn admin_key(&self) -> Result<Option<AdminKey>, InvalidSetting> {
        let Some(key) = self.optional(ADMIN_API_KEY).map(AdminKey::new) else { return Ok(None) };
        match key.header() {
            Some(_) => Ok(Some(key)),
            None => Err(invalid(ADMIN_API_KEY, "a key on one line, without control characters")),
        }
    }

    pub(super) fn lease(&self, setting: Setting) -> Result<Duration, InvalidSetting> {
        const EXPECTED: &str = "a number of seconds, 1 to 3600";
        let seconds: f64 = self.parse(setting, EXPECTED)?;
        match (1.0..=3600.0).contains(&seconds) {
            true => Ok(Duration::from_secs_f64(seconds)),
            false => Err(invalid(setting, EXPECTED)),
        }
    }

    pub(super) fn redis(&self) -> Result<Option<RedisSettings>, InvalidSetting> {
        const PREFIX: &str = "1 to 128 of the characters A-Z a-z 0-9 . _ : -";
        // Parsed without Redis too, so that an invalid value is reported before Redis is set up.
        let prefix = SemaphoreId::parse(&self.value(REDIS_PREFIX))
            .map_err(|_| invalid(REDIS_PREFIX, PREFIX))?;
        let lease = self.lease(REDIS_LEASE_SECONDS)?;
        let Some(url) = self.optional(REDIS_URL) else { return Ok(None) };
        RedisSettings::check_url(&url).map_err(|_| {
            invalid(
                REDIS_URL,
                "redis://host:port or rediss://host:port, with user and password or without",
            )
        })?;
        Ok(Some(RedisSettings { url: url.into(), prefix: prefix.as_str().to_owned(), lease }))
    }

    pub(super) fn base_url(&self) -> Result<String, InvalidSetting> {
        let url = self.value(GEMINI_BASE_URL);
        Client::check_base_url(&url)
            .map_err(|_| invalid(GEMINI_BASE_URL, "an http or https URL without a query"))?;
        Ok(without_version(&url).to_owned())
    }

    pub(super) fn gateway_url(&self) -> Result<Option<String>, InvalidSetting> {
        let Some(url) = self.optional(GATEWAY_URL) else { return Ok(None) };
        let checked = Client::check_base_url(&url);
        checked.map_err(|_| invalid(GATEWAY_URL, "an http or https URL without a query"))?;
        Ok(Some(url))
    }

    pub(super) fn log_filter(&self) -> Result<String, InvalidSetting> {
        let filter = self.value(RUST_LOG);
        tracing_subscriber::EnvFilter::try_new(&filter)
            .map_err(|_| invalid(RUST_LOG, "a log filter, such as info or warn,hyper=off"))?;
        Ok(filter)
    }
}

/// Whether a value is quoted, or is a single quote.
fn is_quoted(value: &str) -> bool {
    let quotes = |quote| value.starts_with(quote) && value.ends_with(quote);
    quotes('"') || quotes('\'')
}

/// A base URL without the version at its end that Google's documentation shows (`/v1beta`), and without
/// the suffix for OpenAI's clients (`/v1beta/openai/`): the paths of calls contain both.
fn without_version(url: &str) -> &str {
    let trimmed = url.trim_end_matches('/');
    let base = trimmed.strip_suffix("/openai").or_else(|| trimmed.strip_suffix("/models"));
    let base = base.unwrap_or(trimmed).trim_end_matches('/');
    match base.rsplit_once('/') {
        Some((base, version)) if is_version(version) && !base.ends_with('/') => base,
        _ => trimmed,
    }
}

/// Whether a path segment is an API version of Google's: `v1`, `v1beta`, `v1alpha`, `v1beta2`.
fn is_version(part: &str) -> bool {
    let Some(version) = part.strip_prefix('v') else { return false };
    let stage = version.trim_start_matches(|digit: char| digit.is_ascii_digit());
    let name = stage.trim_end_matches(|digit: char| digit.is_ascii_digit());
    stage.len() < version.len() && matches!(name, "" | "alpha" | "beta")
}
