//! Checks all settings, and shows those that hold.

use std::borrow::Cow;
use std::collections::BTreeSet;
use std::fmt::Write;

use super::environment::{Environment, Origin, SettingError};
use super::settings::{GEMINI_CONCURRENCY_LIMIT, GEMINI_KEY_LABELS, GEMINI_LIMITS};
use super::{Config, OTEL_VARIABLES, PROXY_VARIABLES, SETTINGS, Setting};
use crate::gemini::redact;

/// What is shown in place of a secret.
const MASKED: &str = "***";

impl Environment {
    /// Every setting with an invalid value, in the order in which they are read.
    pub fn errors(&self) -> Vec<SettingError> {
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
            if error.variable == GEMINI_KEY_LABELS.name {
                // They refer to labels, which are not known.
                ignored.insert(GEMINI_LIMITS.name);
            }
            errors.push(error);
        }
        errors.into_iter().map(|error| self.located(error)).collect()
    }

    /// The settings that hold, as lines of `.env`, each with where it comes from. Secrets and invalid
    /// values are not shown.
    pub fn shown(&self) -> String {
        let errors = self.errors();
        let config = self.config();
        let mut text = String::new();
        for setting in SETTINGS {
            let name = setting.name;
            let origin = self.origin(name);
            // Writing to a string does not fail.
            let _ = match origin {
                _ if errors.iter().any(|error| error.invalid.variable == name) => {
                    writeln!(text, "{name}= # invalid")
                }
                Origin::Default => {
                    writeln!(text, "{name}={} # {origin}", default(setting, &config))
                }
                Origin::Process | Origin::File(_) => {
                    writeln!(text, "{name}={} # {origin}", self.masked(setting))
                }
            };
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
fn default(setting: &Setting, config: &Result<Config, SettingError>) -> Cow<'static, str> {
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
        let names: BTreeSet<_> = errors.iter().map(|error| error.invalid.variable).collect();
        let expected = ["GEMINI_TIER", "LOG_FORMAT", "PORT", "REDIS_URL", "RUST_LOG"];
        assert_eq!(names, expected.into());
        assert_eq!(errors.len(), names.len());
        assert!(Environment::of(&[], &[]).errors().is_empty());
    }

    #[test]
    fn limits_are_not_checked_against_labels_that_are_invalid() {
        let file = [("GEMINI_KEY_LABELS", "team-a=x"), ("GEMINI_LIMITS", "team-a@*:rpm=1")];
        let errors = Environment::of(&[], &file).errors();
        let errors: Vec<_> = errors.iter().map(|error| error.invalid.variable).collect();
        assert_eq!(errors, ["GEMINI_KEY_LABELS"]);
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
            "REDIS_URL=*** # .env, line 1",
            "GEMINI_TIER=tier2 # .env, line 2",
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
