//! Where settings come from: the environment that the process was started with, and `.env`.

use std::collections::HashMap;
use std::ffi::{OsStr, OsString};
use std::fmt;
use std::sync::Arc;

use super::file::SettingsFile;
use super::{Config, InvalidFile, InvalidSetting, OTEL_VARIABLES, PROXY_VARIABLES, SETTINGS};

/// Variables that are no settings: rustls-native-certs reads them from the environment of the process.
const OF_LIBRARIES: [&str; 2] = ["SSL_CERT_FILE", "SSL_CERT_DIR"];

/// The variables that the process was started with, and those of `.env`. A variable of the process
/// precedes one of the file. Cheap to clone.
#[derive(Clone)]
pub struct Environment {
    process: Arc<HashMap<OsString, OsString>>,
    /// `None` if there is no file.
    file: Option<Arc<SettingsFile>>,
}

/// Where the value of a variable comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Origin {
    /// The environment of the process.
    Process,
    /// This line of `.env`, from 1.
    File(usize),
    /// Neither sets it, or to nothing: the default holds.
    Default,
}

/// An invalid setting and where its value comes from.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{invalid} ({origin})")]
pub struct SettingError {
    /// What is wrong.
    pub invalid: InvalidSetting,
    /// Where the value comes from.
    pub origin: Origin,
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Process => f.write_str("environment"),
            Self::File(line) => write!(f, ".env, line {line}"),
            Self::Default => f.write_str("default"),
        }
    }
}

impl fmt::Debug for Environment {
    /// Shows no values: some are secrets.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Environment")
            .field("has_file", &self.file.is_some())
            .finish_non_exhaustive()
    }
}

impl Environment {
    /// Reads both. Call it once, before any thread is started: it puts those variables of `.env` into the
    /// environment of the process that libraries read there.
    ///
    /// # Errors
    /// [`InvalidFile`] if there is a file that cannot be read.
    pub fn load() -> Result<Self, InvalidFile> {
        let process = std::env::vars_os().collect();
        let file = SettingsFile::read()?.map(Arc::new);
        let environment = Self { process: Arc::new(process), file };
        environment.pass_to_libraries();
        Ok(environment)
    }

    /// Reads `.env` again. What the process was started with cannot change.
    ///
    /// # Errors
    /// [`InvalidFile`] if the file cannot be read, or was there before and is missing now.
    pub fn reread(&self) -> Result<Self, InvalidFile> {
        let file = SettingsFile::read()?;
        if file.is_none() && self.file.is_some() {
            return Err(InvalidFile::missing());
        }
        Ok(Self { process: Arc::clone(&self.process), file: file.map(Arc::new) })
    }

    fn pass_to_libraries(&self) {
        for name in OF_LIBRARIES {
            if let Origin::File(_) = self.origin(name)
                && let Some(value) = self.get(name)
            {
                // Only dotenvy sets variables without `unsafe` code. Within quotes, these three characters
                // are escaped. A variable that the process has stays as it is.
                let value = value.replace('\\', "\\\\").replace('"', "\\\"").replace('$', "\\$");
                let set = dotenvy::from_read(format!("{name}=\"{value}\"\n").as_bytes());
                debug_assert!(set.is_ok(), "{name} is escaped");
            }
        }
    }

    /// The variables that the process was started with.
    pub fn of_process(&self) -> &HashMap<OsString, OsString> {
        &self.process
    }

    /// The value of a variable; `None` if it is unset, or is not text.
    pub fn get(&self, name: &str) -> Option<String> {
        match self.process.get(OsStr::new(name)) {
            Some(value) => value.to_str().map(str::to_owned),
            None => Some(self.file.as_ref()?.get(name)?.value.clone()),
        }
    }

    /// Where the value of a variable comes from. A blank one counts as unset.
    pub fn origin(&self, name: &str) -> Origin {
        let is_blank = |value: &str| value.trim().is_empty();
        if let Some(value) = self.process.get(OsStr::new(name)) {
            let is_set = !value.to_str().is_some_and(is_blank);
            return if is_set { Origin::Process } else { Origin::Default };
        }
        match self.file.as_ref().and_then(|file| file.get(name)) {
            Some(variable) if !is_blank(&variable.value) => Origin::File(variable.line),
            _ => Origin::Default,
        }
    }

    /// Reads and checks the settings.
    ///
    /// # Errors
    /// The first setting with an invalid value.
    pub fn config(&self) -> Result<Config, SettingError> {
        match self.not_text().next() {
            Some(invalid) => Err(self.located(invalid)),
            None => Config::read(|name| self.get(name)).map_err(|invalid| self.located(invalid)),
        }
    }

    /// An invalid setting with where its value comes from.
    pub(super) fn located(&self, invalid: InvalidSetting) -> SettingError {
        let origin = self.origin(invalid.variable);
        SettingError { invalid, origin }
    }

    /// The settings whose value is not text.
    pub(super) fn not_text(&self) -> impl Iterator<Item = InvalidSetting> {
        let names = SETTINGS.iter().map(|setting| setting.name);
        let names = names.chain(PROXY_VARIABLES.iter().chain(OTEL_VARIABLES).copied());
        let is_not_text = |name: &&str| {
            let value = self.process.get(OsStr::new(name));
            value.is_some_and(|value| value.to_str().is_none())
        };
        names
            .filter(is_not_text)
            .map(|variable| InvalidSetting { variable, expected: "text in UTF-8".into() })
    }

    /// What is probably a mistake in `.env`: variables that nothing reads, and settings that are set twice.
    pub fn warnings(&self) -> Vec<String> {
        let Some(file) = &self.file else { return Vec::new() };
        // Anything without the form of a setting's name may be a secret in the wrong place.
        let is_name = |name: &str| {
            name.bytes()
                .all(|byte| byte.is_ascii_uppercase() || byte.is_ascii_digit() || byte == b'_')
        };
        let unknown = file.names().filter(|name| is_name(name) && !is_read(name));
        let unknown = unknown.map(|name| format!(".env sets {name}, which is no setting"));
        let repeated = file.repeated.iter().filter(|(name, _)| is_read(name));
        let repeated = repeated.filter_map(|(name, line)| {
            let holds = file.get(name)?.line;
            Some(format!(".env sets {name} again in line {line}; line {holds} holds"))
        });
        unknown.chain(repeated).collect()
    }
}

/// Whether something reads a variable.
fn is_read(name: &str) -> bool {
    SETTINGS.iter().any(|setting| setting.name == name)
        || [PROXY_VARIABLES, OTEL_VARIABLES, &OF_LIBRARIES]
            .into_iter()
            .flatten()
            .any(|read| *read == name)
}

#[cfg(test)]
impl Environment {
    /// An environment with these variables of the process, and a file with these in its lines.
    pub(super) fn of(process: &[(&str, &str)], file: &[(&str, &str)]) -> Self {
        let process = process.iter().map(|(name, value)| (name.into(), value.into())).collect();
        let lines: String =
            file.iter().map(|(name, value)| format!("{name}='{value}'\n")).collect();
        let file = SettingsFile::parse(lines.into_bytes()).expect("a file");
        Self { process: Arc::new(process), file: Some(Arc::new(file)) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_variable_of_the_process_precedes_one_of_the_file() {
        let environment =
            Environment::of(&[("PORT", "1"), ("HOST", "")], &[("PORT", "2"), ("HOST", "::1")]);
        assert_eq!(environment.get("PORT").as_deref(), Some("1"));
        assert_eq!(environment.origin("PORT"), Origin::Process);
        assert_eq!(environment.get("HOST").as_deref(), Some(""), "set to nothing");
        assert_eq!(environment.origin("HOST"), Origin::Default);
        let environment = Environment::of(&[], &[("HOST", " "), ("PORT", "2")]);
        assert_eq!(environment.origin("PORT"), Origin::File(2));
        assert_eq!(environment.origin("HOST"), Origin::Default);
        assert_eq!(environment.config().unwrap().port, 2);
    }

    #[test]
    fn an_error_says_where_the_value_comes_from() {
        let error =
            |process, file| Environment::of(process, file).config().unwrap_err().to_string();
        let expected = "PORT: expected a port, 0 to 65535";
        assert_eq!(error(&[("PORT", "x")], &[]), format!("{expected} (environment)"));
        assert_eq!(
            error(&[], &[("HOST", "::1"), ("PORT", "x")]),
            format!("{expected} (.env, line 2)")
        );
    }

    #[test]
    fn unknown_and_repeated_variables_of_the_file_are_named_unless_libraries_read_them() {
        let names = [
            "PORT",
            "GEMINI_LIMIT",
            "HTTPS_PROXY",
            "OTEL_SDK_DISABLED",
            "SSL_CERT_FILE",
            "AIzaSecret",
            "PORT",
            "OTHER",
            "OTHER",
        ];
        let environment = Environment::of(&[("ANOTHER", "")], &names.map(|name| (name, "1")));
        let expected = [
            ".env sets GEMINI_LIMIT, which is no setting",
            ".env sets OTHER, which is no setting",
            ".env sets PORT again in line 7; line 1 holds",
        ];
        assert_eq!(environment.warnings(), expected);
        assert!(!format!("{environment:?}").contains("AIza"));
    }
}
