//! The parameters of a query.

use crate::api::auth::{decoded, is_key, name_of, parameters};
use crate::api::error::ApiError;
use crate::generation::InvalidField;

/// The parameters of a query, each once. Those that carry a key are left out.
#[derive(Debug)]
pub(super) struct Query(Vec<(String, String)>);

impl Query {
    /// Reads a query that may have parameters of these names.
    ///
    /// # Errors
    /// 422 for another parameter, and for one that occurs twice.
    pub(super) fn read(query: Option<&str>, known: &[&str]) -> Result<Self, ApiError> {
        let mut read: Vec<(String, String)> = Vec::new();
        for parameter in parameters(query.unwrap_or_default()).filter(|given| !is_key(given)) {
            let name = name_of(parameter);
            if !known.contains(&&*name) {
                let message = format!("There is no such parameter; there are {}", known.join(", "));
                return Err(invalid(&name, "extra_forbidden", message));
            }
            if read.iter().any(|(other, _)| *other == name) {
                return Err(invalid(&name, "duplicate", "The parameter occurs more than once"));
            }
            let value = parameter.split_once('=').map_or("", |(_, value)| value);
            read.push((name, decoded(value)));
        }
        Ok(Self(read))
    }

    /// The value of a parameter.
    pub(super) fn get(&self, name: &str) -> Option<&str> {
        self.0.iter().find(|(other, _)| other == name).map(|(_, value)| &**value)
    }

    /// The value of a parameter, taken out.
    pub(super) fn take(&mut self, name: &str) -> Option<String> {
        let at = self.0.iter().position(|(other, _)| other == name)?;
        Some(self.0.swap_remove(at).1)
    }

    /// A whole number, at most `most`.
    ///
    /// # Errors
    /// 422 for anything else.
    pub(super) fn number(&self, name: &str, most: u64) -> Result<Option<u64>, ApiError> {
        let Some(value) = self.get(name) else { return Ok(None) };
        let number = value.parse().ok().filter(|number| *number <= most);
        let message = || format!("Input should be a whole number from 0 to {most}");
        number.map(Some).ok_or_else(|| invalid(name, "int_type", message()))
    }

    /// One of some words; false for the first and true for the second. The first one is the default.
    ///
    /// # Errors
    /// 422 for another word.
    pub(super) fn is_second(&self, name: &str, words: [&str; 2]) -> Result<bool, ApiError> {
        match self.get(name) {
            None => Ok(false),
            Some(value) if value == words[0] => Ok(false),
            Some(value) if value == words[1] => Ok(true),
            Some(_) => {
                let message = format!("Input should be '{}' or '{}'", words[0], words[1]);
                Err(invalid(name, "literal_error", message))
            }
        }
    }
}

/// The error for a parameter.
pub(super) fn invalid(name: &str, kind: &'static str, message: impl Into<String>) -> ApiError {
    ApiError::invalid_in_query(InvalidField::new(name, kind, message))
}
