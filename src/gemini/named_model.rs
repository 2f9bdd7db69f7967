//! Finds the model that a body names.

use std::{borrow::Cow, fmt};

use serde::{
    Deserializer,
    de::{IgnoredAny, MapAccess, Visitor},
};
use serde_json::Value;
use serde_json::value::RawValue;

/// A body that names its model twice. JSON parsers disagree about which one counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`model` or `agent` appears more than once")]
pub struct RepeatedModel;

/// The value of `model`, or else of `agent`, in a JSON body or, where it has neither, in the object of
/// its field `within`; `None` if there is none, or the body is not JSON. The time is linear in the
/// length of the body. Parsing stops at a value of either field that is nested more than 128 levels
/// deep.
///
/// # Errors
/// [`RepeatedModel`] if one of the fields appears more than once.
pub fn named_model(
    body: &[u8],
    within: Option<&'static str>,
) -> Result<Option<String>, RepeatedModel> {
    let mut json = serde_json::Deserializer::from_slice(body);
    let visitor = Named { within, ..Named::default() };
    let Ok(Named { model, agent, inner, repeated, .. }) = json.deserialize_map(visitor) else {
        return Ok(None);
    };
    if repeated {
        return Err(RepeatedModel);
    }
    let text = |value: Option<Value>| match value {
        Some(Value::String(text)) => Some(text),
        _ => None,
    };
    match (text(model).or_else(|| text(agent)), inner) {
        (None, Some(inner)) => named_model(inner.get().as_bytes(), None),
        (named, _) => Ok(named),
    }
}

#[derive(Default)]
struct Named<'de> {
    within: Option<&'static str>,
    model: Option<Value>,
    agent: Option<Value>,
    /// The value of the field `within`.
    inner: Option<&'de RawValue>,
    repeated: bool,
}

impl<'de> Visitor<'de> for Named<'de> {
    type Value = Self;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object")
    }

    fn visit_map<A: MapAccess<'de>>(mut self, mut fields: A) -> Result<Self, A::Error> {
        while let Some(key) = fields.next_key::<Cow<'de, str>>()? {
            let name = match &*key {
                "model" => &mut self.model,
                "agent" => &mut self.agent,
                key if self.within == Some(key) => {
                    self.repeated |= self.inner.replace(fields.next_value()?).is_some();
                    continue;
                }
                _ => {
                    fields.next_value::<IgnoredAny>()?;
                    continue;
                }
            };
            self.repeated |= name.replace(fields.next_value()?).is_some();
        }
        Ok(self)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_body_names_its_model_or_its_agent() {
        let named = |body: &str| named_model(body.as_bytes(), None).unwrap();
        assert_eq!(named(r#"{"messages":[{"model":"no"}],"model":"a\u0062"}"#).unwrap(), "ab");
        assert_eq!(named(r#"{"agent":"deep-research","input":"x"}"#).unwrap(), "deep-research");
        assert_eq!(named(r#"{"agent":"b","mod\u0065l":"a"}"#).unwrap(), "a");
        assert_eq!(named(r#"{"model":null,"agent":"b"}"#).unwrap(), "b");
        for body in [r#"{"messages":[]}"#, r#"{"model":7}"#, r#"{"model":"a""#, "[]", ""] {
            assert_eq!(named(body), None, "{body}");
        }
    }

    #[test]
    fn a_model_named_twice_is_rejected() {
        for body in [r#"{"model":"a","model":"b"}"#, r#"{"model":null,"mod\u0065l":"b"}"#] {
            assert_eq!(named_model(body.as_bytes(), None), Err(RepeatedModel));
        }
    }

    #[test]
    fn a_deeply_nested_body_names_its_model() {
        let deep = "[".repeat(100_000) + &"]".repeat(100_000);
        let body = format!(r#"{{"input":{deep},"model":"a"}}"#);
        assert_eq!(named_model(body.as_bytes(), None), Ok(Some("a".to_owned())));
    }

    #[test]
    fn a_field_of_the_body_can_name_the_model() {
        let named = |body: &str| named_model(body.as_bytes(), Some("voice"));
        let voice = r#"{"x":{"model":"no"},"voice":{"sample":{"model":"no"},"model":"a"}}"#;
        assert_eq!(named(voice), Ok(Some("a".to_owned())));
        assert_eq!(named(r#"{"voice":{"model":"a"},"model":"b"}"#), Ok(Some("b".to_owned())));
        for body in [r#"{"voice":"a"}"#, r#"{"voice":{"voice":{"model":"a"}}}"#, "{}"] {
            assert_eq!(named(body), Ok(None), "{body}");
        }
        for body in [
            r#"{"voice":{"model":"a"},"voice":{"model":"b"}}"#,
            r#"{"voice":{"model":"a","model":"b"}}"#,
        ] {
            assert_eq!(named(body), Err(RepeatedModel), "{body}");
        }
        assert_eq!(named_model(voice.as_bytes(), None), Ok(None));
        let deep = "[".repeat(100_000) + &"]".repeat(100_000);
        let body = format!(r#"{{"voice":{{"audio":{deep},"model":"a"}}}}"#);
        assert_eq!(named(&body), Ok(Some("a".to_owned())));
    }
}
