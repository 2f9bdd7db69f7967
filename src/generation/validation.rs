//! What the requests of all kinds have in common, and how their fields are checked.

use serde::Serialize;
use serde_json::{Map, Value};

use crate::gemini::{GenerateContent, Model};
use crate::schema::SchemaError;

/// The models of requests that name none.
#[derive(Debug, Clone)]
pub struct Defaults {
    /// For chats.
    pub chat_model: Model,
    /// For structured output and stories.
    pub structured_model: Model,
}

/// How the model is to generate: fields that requests of all kinds have.
#[derive(Debug, Default)]
pub struct ModelOptions {
    /// The model; the default one if there is none.
    pub model: Option<String>,
    /// The name of the cached content that precedes the prompt, such as `cachedContents/abc`.
    pub cached_content: Option<String>,
    /// Gemini's `generationConfig`, sent as given.
    pub generation_config: Option<Map<String, Value>>,
}

impl ModelOptions {
    /// Checks all fields, and adds what is wrong to `errors`. Gives the model, if its name is valid.
    pub(super) fn check(
        &self,
        default_model: &Model,
        errors: &mut Vec<InvalidField>,
    ) -> Option<Model> {
        let model = self.model.as_deref().map_or_else(|| Ok(default_model.clone()), Model::parse);
        let model = model.map_err(|error| {
            errors.push(InvalidField::new("model", "model_name", error.to_string()));
        });
        errors.extend(several_candidates(self.generation_config.as_ref()));
        errors.extend(invalid_cache(self.cached_content.as_deref()));
        model.ok()
    }

    /// A call to Gemini with a prompt, a system instruction and the cached content.
    pub(super) fn content<'a>(&'a self, prompt: &'a str, system: &'a str) -> GenerateContent<'a> {
        GenerateContent::ask(prompt).instructed(system).cached(self.cached_content.as_deref())
    }
}

/// A field whose value cannot be used.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct InvalidField {
    /// The path to the field, from the top of the request.
    pub path: Vec<Segment>,
    /// The kind of error, in a word that does not change.
    pub kind: &'static str,
    /// What is wrong with the value.
    pub message: String,
}

/// One step of the path to a field.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(untagged)]
pub enum Segment {
    /// A key of an object.
    Key(String),
    /// An index into a list.
    Index(usize),
}

impl From<&str> for Segment {
    fn from(key: &str) -> Self {
        Self::Key(key.to_owned())
    }
}

impl From<usize> for Segment {
    fn from(index: usize) -> Self {
        Self::Index(index)
    }
}

impl InvalidField {
    /// An error in a field at the top of the request.
    pub fn new(field: &str, kind: &'static str, message: impl Into<String>) -> Self {
        Self { path: vec![field.into()], kind, message: message.into() }
    }

    /// A required text is blank.
    pub fn blank(field: &str) -> Self {
        Self::new(field, "string_blank", "Field must not be blank")
    }

    /// The blank ones among these required texts, given as field and text.
    pub(super) fn blanks(fields: &[(&str, &str)]) -> Vec<Self> {
        let blank = fields.iter().filter(|(_, text)| text.trim().is_empty());
        blank.map(|(field, _)| Self::blank(field)).collect()
    }

    pub(super) fn schema(field: &str, error: &SchemaError) -> Self {
        let steps = error.pointer.split('/').skip(1);
        let steps = steps.map(|step| step.replace("~1", "/").replace("~0", "~"));
        let path = [field.to_owned()].into_iter().chain(steps).map(Segment::Key).collect();
        let message = format!("Not a usable JSON Schema: #{}: {}", error.pointer, error.message);
        Self { path, kind: "json_schema", message }
    }
}

/// Refuses a `generation_config` that asks for several candidates: all are paid for, and only one is
/// returned. Gemini accepts the key in two spellings, and its number as a string.
fn several_candidates(config: Option<&Map<String, Value>>) -> Option<InvalidField> {
    let several = |count: &Value| match count {
        Value::String(text) => text.trim().parse().is_ok_and(|count: f64| count > 1.0),
        count => count.as_f64().is_some_and(|count| count > 1.0),
    };
    let config = config?;
    let names = ["candidateCount", "candidate_count"];
    let name = names.into_iter().find(|name| config.get(*name).is_some_and(several))?;
    let message = "Only one candidate is returned, so no more than 1 can be asked for".to_owned();
    let path = vec!["generation_config".into(), name.into()];
    Some(InvalidField { path, kind: "less_than_equal", message })
}

/// Refuses a name that cannot be the name of cached content.
fn invalid_cache(name: Option<&str>) -> Option<InvalidField> {
    const MESSAGE: &str = "The name of cached content is cachedContents/ and 1 to 128 of the \
                           characters A-Z a-z 0-9 _ -";
    let id = name?.strip_prefix("cachedContents/").unwrap_or_default();
    let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || b"_-".contains(&byte);
    let is_name = (1..=128).contains(&id.len()) && id.bytes().all(is_plain);
    (!is_name).then(|| InvalidField::new("cached_content", "cache_name", MESSAGE))
}
