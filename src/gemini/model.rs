//! The name of a model.

use std::{fmt, str::FromStr, sync::Arc};

use serde::{Serialize, Serializer};

/// The most characters a part of a model's name may have.
const MAX_LENGTH: usize = 128;
const MODELS: &str = "models/";
const TUNED_MODELS: &str = "tunedModels/";

/// A model as it stands in a URL, without `models/`: `gemini-3.5-flash-lite`, or `tunedModels/mine`.
///
/// Callers choose it, so its form is checked before it comes near a path: nothing in it needs
/// escaping and it can lead nowhere else.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Model(Arc<str>);

impl Model {
    /// Reads a model's name; a `models/` before it is taken off.
    ///
    /// # Errors
    ///
    /// [`InvalidModel`] where it is no path segment of at most 128 of `A-Z a-z 0-9 . _ -`
    /// that begins with a letter or a digit, `tunedModels/` before it allowed.
    pub fn parse(name: &str) -> Result<Model, InvalidModel> {
        let name = name.strip_prefix(MODELS).unwrap_or(name);
        let segment = name.strip_prefix(TUNED_MODELS).unwrap_or(name);
        if is_segment(segment) { Ok(Model(name.into())) } else { Err(InvalidModel) }
    }

    /// The name without `models/`.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The name without `models/`, to be kept.
    pub fn shared(&self) -> &Arc<str> {
        &self.0
    }

    /// Whether it is a tuned model, which has quotas of its own.
    pub fn is_tuned(&self) -> bool {
        self.0.starts_with(TUNED_MODELS)
    }

    /// The name as a resource of the API: `models/gemini-3.5-flash-lite`, `tunedModels/mine`.
    pub(super) fn resource(&self) -> impl fmt::Display + use<'_> {
        let collection = if self.is_tuned() { "" } else { MODELS };
        fmt::from_fn(move |f| write!(f, "{collection}{}", self.0))
    }
}

fn is_segment(text: &str) -> bool {
    text.len() <= MAX_LENGTH
        && text.starts_with(|first: char| first.is_ascii_alphanumeric())
        && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"._-".contains(&byte))
}

impl fmt::Display for Model {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl FromStr for Model {
    type Err = InvalidModel;

    fn from_str(name: &str) -> Result<Model, InvalidModel> {
        Model::parse(name)
    }
}

impl Serialize for Model {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.0)
    }
}

/// What was given is no model's name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "a model is named like `gemini-3.5-flash-lite` or `tunedModels/mine`: at most 128 of the \
     characters A-Z a-z 0-9 . _ -, the first a letter or a digit"
)]
pub struct InvalidModel;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_stands_without_its_collection() {
        for (given, name, resource) in [
            ("gemini-3.5-flash-lite", "gemini-3.5-flash-lite", "models/gemini-3.5-flash-lite"),
            (
                "models/gemini-3.5-flash-lite",
                "gemini-3.5-flash-lite",
                "models/gemini-3.5-flash-lite",
            ),
            ("tunedModels/my_model.1", "tunedModels/my_model.1", "tunedModels/my_model.1"),
        ] {
            let model = Model::parse(given).unwrap();
            assert_eq!(model.as_str(), name);
            assert_eq!(model.resource().to_string(), resource);
        }
    }

    #[test]
    fn what_could_lead_elsewhere_is_refused() {
        let long = "a".repeat(MAX_LENGTH + 1);
        for name in [
            "",
            ".",
            "..",
            "-a",
            "_a",
            "a/b",
            "../a",
            "a?key=b",
            "a#b",
            "a:b",
            "a%2e",
            "a b",
            "ä",
            "models/",
            "models/../a",
            "tunedModels/",
            "tunedModels/..",
            "tunedModels/a/b",
            "/gemini",
            "gemini\n",
            &long,
        ] {
            assert_eq!(Model::parse(name), Err(InvalidModel), "{name:?}");
        }
        assert!(Model::parse(&long[1..]).is_ok());
    }
}
