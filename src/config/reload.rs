//! New settings for a process that runs.

use super::environment::{Environment, SettingError};
use super::settings::{
    GEMINI_API_KEY, GEMINI_CONCURRENCY_LIMIT, GEMINI_KEY_LABELS, GEMINI_LIMITS, GEMINI_PRICES_FILE,
    GEMINI_TIER, MAX_QUEUED_REQUESTS, RUST_LOG, Setting,
};
use super::{Config, InvalidFile, OTEL_VARIABLES, PROXY_VARIABLES, SETTINGS};

/// The settings that a running gateway takes over. All others hold from the next start.
pub const RELOADED: [Setting; 7] = [
    GEMINI_CONCURRENCY_LIMIT,
    GEMINI_TIER,
    GEMINI_LIMITS,
    GEMINI_KEY_LABELS,
    GEMINI_PRICES_FILE,
    MAX_QUEUED_REQUESTS,
    RUST_LOG,
];

/// The settings of a process that runs.
#[derive(Debug)]
pub struct RunningSettings {
    /// As the process was started.
    start: Environment,
    /// As they were last taken over.
    current: Environment,
}

/// New settings that are valid.
#[derive(Debug)]
pub struct NewSettings {
    /// All new settings. Only those of [`RELOADED`] are to be taken over.
    pub config: Config,
    /// The names of those that are taken over and have another value than before.
    pub changed: Vec<&'static str>,
    /// The names of those that have another value than at the start, and hold from the next start.
    pub at_next_start: Vec<&'static str>,
    environment: Environment,
}

/// Why new settings are not taken over.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NotReloaded {
    /// `.env` cannot be read.
    #[error(transparent)]
    File(#[from] InvalidFile),
    /// Settings have invalid values.
    #[error("some settings are invalid")]
    Invalid(Vec<SettingError>),
}

impl RunningSettings {
    /// The settings of a process that was started with these.
    pub fn new(start: Environment) -> Self {
        Self { current: start.clone(), start }
    }

    /// Reads `.env` again.
    ///
    /// # Errors
    /// [`NotReloaded`] if the file or any setting is invalid, also one that would hold from the next start
    /// only.
    pub fn read(&self) -> Result<NewSettings, NotReloaded> {
        self.read_from(self.start.reread()?)
    }

    fn read_from(&self, environment: Environment) -> Result<NewSettings, NotReloaded> {
        let errors = environment.errors();
        if !errors.is_empty() {
            return Err(NotReloaded::Invalid(errors));
        }
        // The process keeps its key, which has a label unless `GEMINI_KEY_LABELS` gives it another.
        let config = Config::read(|name| match name == GEMINI_API_KEY.name {
            true => self.start.get(name),
            false => environment.get(name),
        });
        let config =
            config.map_err(|error| NotReloaded::Invalid(vec![self.start.located(error)]))?;
        let names = SETTINGS.iter().map(|setting| setting.name);
        let (reloaded, others): (Vec<_>, Vec<_>) = names
            .chain(PROXY_VARIABLES.iter().chain(OTEL_VARIABLES).copied())
            .partition(|name| is_reloaded(name));
        let differing = |names: Vec<&'static str>, before: &Environment| {
            let differs = |name: &&str| value(before, name) != value(&environment, name);
            names.into_iter().filter(differs).collect()
        };
        let changed = differing(reloaded, &self.current);
        let at_next_start = differing(others, &self.start);
        Ok(NewSettings { config, changed, at_next_start, environment })
    }

    /// Notes that new settings were taken over.
    pub fn taken_over(&mut self, new: &NewSettings) {
        self.current = new.environment.clone();
    }
}

fn is_reloaded(name: &str) -> bool {
    RELOADED.iter().any(|setting| setting.name == name)
}

/// A value as it is read: a blank one counts as unset.
fn value(environment: &Environment, name: &str) -> Option<String> {
    environment.get(name).map(|value| value.trim().to_owned()).filter(|value| !value.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    const START: &[(&str, &str)] = &[("GEMINI_TIER", "tier1"), ("PORT", "7"), ("HOST", "::1")];

    fn running() -> RunningSettings {
        RunningSettings::new(Environment::of(&[("LOG_FORMAT", "json")], START))
    }

    fn read(running: &RunningSettings, file: &[(&str, &str)]) -> Result<NewSettings, NotReloaded> {
        running.read_from(Environment::of(&[("LOG_FORMAT", "json")], file))
    }

    #[test]
    fn settings_are_taken_over_or_hold_from_the_next_start() {
        let mut running = running();
        let file = [("GEMINI_TIER", " "), ("PORT", "8"), ("RUST_LOG", "debug"), ("HOST", "::1 ")];
        let new = read(&running, &file).unwrap();
        assert_eq!(new.changed, ["GEMINI_TIER", "RUST_LOG"]);
        assert_eq!(new.at_next_start, ["PORT"]);
        assert_eq!(new.config.log_filter, "debug");
        assert_eq!(new.config.concurrency_limit, 15);
        running.taken_over(&new);
        let again = read(&running, &file).unwrap();
        assert!(again.changed.is_empty());
        assert_eq!(again.at_next_start, ["PORT"], "still");
        let back = read(&running, START).unwrap();
        assert_eq!(back.changed, ["GEMINI_TIER", "RUST_LOG"]);
        assert!(back.at_next_start.is_empty());
    }

    #[test]
    fn one_invalid_setting_keeps_everything() {
        for (name, value) in [("RUST_LOG", "loud=very"), ("PORT", "lots")] {
            let refused = read(&running(), &[("GEMINI_TIER", "free"), (name, value)]).unwrap_err();
            let NotReloaded::Invalid(errors) = refused else { panic!("{refused:?}") };
            assert_eq!(
                errors.iter().map(|error| error.invalid.variable).collect::<Vec<_>>(),
                [name]
            );
        }
    }
}
