//! What the requests of all kinds have in common, and how they are checked.

use std::fmt;
use std::marker::PhantomData;

use secrecy::{ExposeSecret, SecretString};
use serde::de::value::MapAccessDeserializer;
use serde::de::{MapAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize};
use serde_json::{Map, Value};
use utoipa::ToSchema;

use super::schemas::Schemas;
use crate::gemini::Model;
use crate::schema::SchemaError;

/// The body in which a caller asks for one thing.
pub trait Request: for<'de> Deserialize<'de> + Send + 'static {
    /// Takes out what says who pays and whose turn it is.
    fn take_terms(&mut self) -> Terms;

    /// Adds the schema that it needs, if any, to those that are compiled.
    fn add_schema(&self, _: &mut Schemas) {}
}

/// A value that is written as an object. On its own, serde takes a list of all fields in their
/// order for one as well, which no caller of this interface means.
#[derive(Debug)]
pub struct Object<T>(pub T);

impl<'de, T: Deserialize<'de>> Deserialize<'de> for Object<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Fields<T>(PhantomData<T>);

        impl<'de, T: Deserialize<'de>> Visitor<'de> for Fields<T> {
            type Value = Object<T>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object")
            }

            fn visit_map<A: MapAccess<'de>>(self, fields: A) -> Result<Object<T>, A::Error> {
                T::deserialize(MapAccessDeserializer::new(fields)).map(Object)
            }
        }

        deserializer.deserialize_map(Fields(PhantomData))
    }
}

/// What a request says of who pays and whose turn it is.
#[derive(Debug, Default)]
pub struct Terms {
    /// The caller's own key, if the request brings one.
    pub credentials: Option<Credentials>,
    /// The semaphore to hold in addition to the global one.
    pub external_semaphore_id: Option<String>,
}

/// A caller's own keys.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Credentials {
    /// A Gemini API key or an OAuth access token, which pays for the request unless a valid
    /// `Admin-API-Key` does. Blank counts as absent.
    #[schema(value_type = Option<String>, format = Password, example = "YOUR_GEMINI_API_KEY")]
    gemini_api_key: Option<SecretString>,
}

impl Credentials {
    /// The Gemini key, where there is one.
    pub fn gemini_api_key(&self) -> Option<&str> {
        let key = self.gemini_api_key.as_ref()?.expose_secret().trim();
        (!key.is_empty()).then_some(key)
    }
}

/// A field whose value cannot be used.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct InvalidField {
    /// Where it is, from the request's top.
    pub path: Vec<Segment>,
    /// The kind of fault, in a word that does not change.
    pub kind: &'static str,
    /// What is wrong with it.
    pub message: String,
}

/// One step on the way to a field.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(untagged)]
pub enum Segment {
    /// Into an object.
    Key(String),
    /// Into a list.
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
    /// A fault of a field at the request's top.
    pub fn new(field: &str, kind: &'static str, message: impl Into<String>) -> Self {
        Self { path: vec![field.into()], kind, message: message.into() }
    }

    /// The fault of a required text without content.
    pub fn blank(field: &str) -> Self {
        Self::new(field, "string_blank", "Field must not be blank")
    }

    /// Faults of the required texts among these that have no content.
    pub(super) fn blanks(fields: &[(&str, &str)]) -> Vec<Self> {
        let blank = fields.iter().filter(|(_, text)| text.trim().is_empty());
        blank.map(|(field, _)| Self::blank(field)).collect()
    }

    /// The fault of a `generation_config` that asks for several candidates: all are paid for, and one
    /// comes back. In either of the spellings that Gemini takes; its numbers may be texts.
    pub(super) fn several_candidates(config: Option<&Map<String, Value>>) -> Option<Self> {
        let several = |count: &Value| match count {
            Value::String(text) => text.trim().parse().is_ok_and(|count: f64| count > 1.0),
            count => count.as_f64().is_some_and(|count| count > 1.0),
        };
        let names = ["candidateCount", "candidate_count"];
        let name = names
            .into_iter()
            .find(|name| config.is_some_and(|config| config.get(*name).is_some_and(several)))?;
        let message =
            "Only one candidate comes back, so no more than 1 can be asked for".to_owned();
        let path = vec!["generation_config".into(), name.into()];
        Some(Self { path, kind: "less_than_equal", message })
    }

    /// The fault of a name that cannot be one of cached content.
    pub(super) fn cache(name: Option<&str>) -> Option<Self> {
        const MESSAGE: &str = "The name of cached content is cachedContents/ and 1 to 128 of the \
                               characters A-Z a-z 0-9 _ -";
        let id = name?.strip_prefix("cachedContents/").unwrap_or_default();
        let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || b"_-".contains(&byte);
        let is_name = (1..=128).contains(&id.len()) && id.bytes().all(is_plain);
        (!is_name).then(|| Self::new("cached_content", "cache_name", MESSAGE))
    }

    pub(super) fn schema(field: &str, error: &SchemaError) -> Self {
        let steps = error.pointer.split('/').skip(1);
        let steps = steps.map(|step| step.replace("~1", "/").replace("~0", "~"));
        let path = [field.to_owned()].into_iter().chain(steps).map(Segment::Key).collect();
        let message = format!("Not a usable JSON Schema: #{}: {}", error.pointer, error.message);
        Self { path, kind: "json_schema", message }
    }
}

/// The models of requests that name none.
#[derive(Debug, Clone)]
pub struct Defaults {
    /// For chats.
    pub chat_model: Model,
    /// For structured output and stories.
    pub structured_model: Model,
}

/// What the requests of one body share while they are checked.
#[derive(Debug)]
pub struct Preparation<'a> {
    /// The models of requests that name none.
    pub defaults: &'a Defaults,
    /// The compiled schemas of the requests.
    pub schemas: &'a Schemas,
}

impl Preparation<'_> {
    /// The model that a request names, or the default one; a name that is none is a fault more.
    pub(super) fn model(
        named: Option<&str>,
        default: &Model,
        faults: &mut Vec<InvalidField>,
    ) -> Option<Model> {
        match named.map_or_else(|| Ok(default.clone()), Model::parse) {
            Ok(model) => Some(model),
            Err(error) => {
                faults.push(InvalidField::new("model", "model_name", error.to_string()));
                None
            }
        }
    }
}
