//! Where settings come from: the environment that the process was started with, and `.env`.

use std::collections::{BTreeMap, HashMap};
use std::ffi::{OsStr, OsString};
use std::fmt;
use std::sync::Arc;

use super::{Config, InvalidSetting, OTEL_VARIABLES, PROXY_VARIABLES, SETTINGS};

/// The file with settings, in the working directory. dotenvy's own search would go on in the directories
/// above.
const FILE: &str = ".env";

/// Variables of `.env` that are no settings and that libraries read.
const OF_LIBRARIES: [&str; 1] = ["SSL_CERT_"];

/// The variables that the process was started with, and those of `.env`. A variable of the process
/// precedes one of the file. Cheap to clone.
#[derive(Clone)]
pub struct Environment {
    process: Arc<HashMap<OsString, OsString>>,
    /// `None` if there is no file.
    file: Option<Arc<BTreeMap<String, String>>>,
}

/// Where the value of a variable comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Origin {
    /// The environment of the process.
    Process,
    /// `.env`.
    File,
    /// Neither sets it, or to nothing: the default holds.
    Default,
}

/// `.env` cannot be read. The error quotes no line, which may contain a key.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(".env: {0}")]
pub struct InvalidFile(String);

impl fmt::Debug for Environment {
    /// Shows no values: some are secrets.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Environment")
            .field("has_file", &self.file.is_some())
            .finish_non_exhaustive()
    }
}

impl Environment {
    /// Reads both. Call it once, at the start: it also puts the variables of `.env` into the environment
    /// of the process, for libraries that read theirs there.
    ///
    /// # Errors
    /// [`InvalidFile`] if there is a file that cannot be read.
    pub fn load() -> Result<Self, InvalidFile> {
        let process = std::env::vars_os().collect();
        let file = read_file()?.map(Arc::new);
        if file.is_some() {
            dotenvy::from_path(FILE).map_err(describe)?;
        }
        Ok(Self { process: Arc::new(process), file })
    }

    /// Reads `.env` again. What the process was started with cannot change.
    ///
    /// # Errors
    /// [`InvalidFile`] if the file cannot be read, or was there before and is missing now.
    pub fn reread(&self) -> Result<Self, InvalidFile> {
        let file = read_file()?;
        if file.is_none() && self.file.is_some() {
            return Err(InvalidFile("the file is missing".to_owned()));
        }
        Ok(Self { process: Arc::clone(&self.process), file: file.map(Arc::new) })
    }

    /// The value of a variable; `None` if it is unset, or is not text.
    pub fn get(&self, name: &str) -> Option<String> {
        match self.process.get(OsStr::new(name)) {
            Some(value) => value.to_str().map(str::to_owned),
            None => self.file.as_ref()?.get(name).cloned(),
        }
    }

    /// Where the value of a variable comes from. A blank one counts as unset.
    pub fn origin(&self, name: &str) -> Origin {
        let is_set = self.get(name).is_some_and(|value| !value.trim().is_empty());
        match self.process.contains_key(OsStr::new(name)) {
            _ if !is_set => Origin::Default,
            true => Origin::Process,
            false => Origin::File,
        }
    }

    /// Reads and checks the settings.
    ///
    /// # Errors
    /// The first setting with an invalid value.
    pub fn config(&self) -> Result<Config, InvalidSetting> {
        match self.not_text().next() {
            Some(invalid) => Err(invalid),
            None => Config::read(|name| self.get(name)),
        }
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

    /// The variables of `.env` that nothing reads. Only those with the form of a setting's name are
    /// shown: anything else may be a secret in the wrong place.
    pub fn unknown(&self) -> impl Iterator<Item = &str> {
        let is_unknown = |name: &&str| {
            let is_setting = SETTINGS.iter().any(|setting| setting.name == *name);
            !is_setting
                && !PROXY_VARIABLES.contains(name)
                && !OTEL_VARIABLES.contains(name)
                && !OF_LIBRARIES.iter().any(|prefix| name.starts_with(prefix))
                && name.bytes().all(|byte| byte.is_ascii_uppercase() || byte == b'_')
        };
        let names = self.file.iter().flat_map(|file| file.keys());
        names.map(String::as_str).filter(is_unknown)
    }
}

/// The variables of `.env`; `None` if there is no such file. Of several with the same name, the first
/// holds.
fn read_file() -> Result<Option<BTreeMap<String, String>>, InvalidFile> {
    let variables = match dotenvy::from_path_iter(FILE) {
        Err(error) if error.not_found() => return Ok(None),
        variables => variables.map_err(describe)?,
    };
    let mut file = BTreeMap::new();
    for (variable, number) in variables.zip(1..) {
        let (name, value) = variable.map_err(describe)?;
        // Setting such a variable panics, and the panic quotes the value.
        if name.contains('\0') || value.contains('\0') {
            return Err(InvalidFile(format!("variable {number} contains a NUL byte")));
        }
        file.entry(name).or_insert(value);
    }
    Ok(Some(file))
}

fn describe(error: dotenvy::Error) -> InvalidFile {
    InvalidFile(match error {
        dotenvy::Error::Io(error) => error.to_string(),
        _ => "expected lines of the form NAME=value".to_owned(),
    })
}

#[cfg(test)]
impl Environment {
    /// An environment with these variables of the process, and these of a file.
    pub(super) fn of(process: &[(&str, &str)], file: &[(&str, &str)]) -> Self {
        let process = process.iter().map(|(name, value)| (name.into(), value.into())).collect();
        let file = file.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned()));
        Self { process: Arc::new(process), file: Some(Arc::new(file.collect())) }
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
        let environment = Environment::of(&[], &[("PORT", "2")]);
        assert_eq!(environment.origin("PORT"), Origin::File);
        assert_eq!(environment.config().unwrap().port, 2);
    }

    #[test]
    fn unknown_variables_of_the_file_are_named_unless_libraries_read_them() {
        let file = ["PORT", "GEMINI_LIMIT", "HTTPS_PROXY", "OTEL_SDK_DISABLED", "AIzaSecret"];
        let environment = Environment::of(&[("OTHER", "")], &file.map(|name| (name, "1")));
        assert_eq!(environment.unknown().collect::<Vec<_>>(), ["GEMINI_LIMIT"]);
        assert!(!format!("{environment:?}").contains("AIza"));
    }
}
