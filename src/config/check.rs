//! Checks all settings, and shows those that hold.

use std::borrow::Cow;
use std::collections::BTreeSet;
use std::fmt::Write;

use super::environment::{Environment, Origin};
use super::settings::GEMINI_CONCURRENCY_LIMIT;
use super::{Config, InvalidSetting, OTEL_VARIABLES, PROXY_VARIABLES, SETTINGS, Setting};
use crate::gemini::redact;

/// What is shown in place of a secret.
const MASKED: &str = "***";

impl Environment {
    /// Every setting with an invalid value, in the order in which they are read.
    pub fn errors(&self) -> Vec<InvalidSetting> {
        let mut errors: Vec<_> = self.not_text().collect();
        let mut ignored: BTreeSet<_> = errors.iter().map(|error| error.variable).collect();
        let read = |ignored: &BTreeSet<_>| {
            Config::read(|name| (!ignored.contains(name)).then(|| self.get(name)).flatten())
        };
        // Reading stops at an error. With the default in its place, the others are found.
        while let Err(error) = read(&ignored) {
            if !ignored.insert(error.variable) {
                break;
            }
            errors.push(error);
        }
        errors
    }

    /// The settings that hold, as lines of `.env`, each with where it comes from. Secrets and invalid
    /// values are not shown.
    pub fn shown(&self) -> String {
        let errors = self.errors();
        let config = self.config();
        let mut text = String::new();
        for setting in SETTINGS {
            let name = setting.name;
            let is_invalid = errors.iter().any(|error| error.variable == name);
            let (value, origin) = match self.origin(name) {
                _ if is_invalid => (Cow::from(""), "invalid"),
                Origin::Default => (default(setting, &config), "default"),
                Origin::Process => (self.masked(setting), "environment"),
                Origin::File => (self.masked(setting), ".env"),
            };
            // Writing to a string does not fail.
            let _ = writeln!(text, "{name}={value} # {origin}");
        }
        for name in PROXY_VARIABLES.iter().filter(|name| self.origin(name) != Origin::Default) {
            let _ = writeln!(text, "{name}={MASKED} # a proxy");
        }
        for name in OTEL_VARIABLES.iter().filter(|name| self.origin(name) != Origin::Default) {
            let _ = writeln!(text, "{name}={MASKED} # traces");
        }
        String::from_utf8_lossy(&redact(text.as_bytes())).into_owned()
    }

    /// A value that is set, on one line.
    fn masked(&self, setting: &Setting) -> Cow<'static, str> {
        if setting.is_secret() {
            return MASKED.into();
        }
        let value = self.get(setting.name).unwrap_or_default();
        value.trim().replace(char::is_control, " ").into()
    }
}

/// The value that holds if a setting is not set.
fn default(setting: &Setting, config: &Result<Config, InvalidSetting>) -> Cow<'static, str> {
    match config {
        // It depends on `GEMINI_TIER`.
        Ok(config) if setting.name == GEMINI_CONCURRENCY_LIMIT.name => {
            config.concurrency_limit.to_string().into()
        }
        _ => setting.default.into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_invalid_setting_is_reported_and_none_twice() {
        let environment = Environment::of(
            &[("PORT", "lots"), ("RUST_LOG", "loud=very"), ("LOG_FORMAT", "\"json\"")],
            &[("GEMINI_TIER", "gold"), ("REDIS_URL", "http://:secret@redis"), ("HOST", "::1")],
        );
        let errors = environment.errors();
        let names: BTreeSet<_> = errors.iter().map(|error| error.variable).collect();
        let expected = ["GEMINI_TIER", "LOG_FORMAT", "PORT", "REDIS_URL", "RUST_LOG"];
        assert_eq!(names, expected.into());
        assert_eq!(errors.len(), names.len());
        assert!(Environment::of(&[], &[]).errors().is_empty());
    }

    #[test]
    fn the_settings_that_hold_are_shown_without_secrets() {
        let google = format!("AIza{}", "x".repeat(35));
        let environment = Environment::of(
            &[("GEMINI_API_KEY", "the-secret"), ("HTTPS_PROXY", "http://u:secret@proxy:1")],
            &[
                ("REDIS_URL", "redis://:secret@redis"),
                ("GEMINI_TIER", "tier2"),
                ("PORT", "lots"),
                ("GEMINI_BASE_URL", &format!("https://gateway.example/{google}")),
            ],
        );
        let shown = environment.shown();
        for line in [
            "GEMINI_API_KEY=*** # environment",
            "REDIS_URL=*** # .env",
            "GEMINI_TIER=tier2 # .env",
            "ADMIN_API_KEY= # default",
            "PORT= # invalid",
            "HOST=0.0.0.0 # default",
            "HTTPS_PROXY=*** # a proxy",
        ] {
            assert!(shown.lines().any(|shown| shown == line), "{line}: {shown}");
        }
        assert!(!shown.contains("secret") && !shown.contains("AIza"), "{shown}");
        let environment = Environment::of(&[], &[("GEMINI_TIER", "tier2")]);
        assert!(environment.shown().contains("GEMINI_CONCURRENCY_LIMIT=50 # default"));
    }
}
