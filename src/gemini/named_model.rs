//! Finds the model that a body names.

use std::{borrow::Cow, fmt};

use serde::{
    Deserializer,
    de::{IgnoredAny, MapAccess, Visitor},
};
use serde_json::Value;

/// A body that names its model twice. JSON parsers disagree about which one counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`model` or `agent` appears more than once")]
pub struct RepeatedModel;

/// The value of `model`, or else of `agent`, in a JSON body; `None` if it has neither or is not JSON.
/// The time is linear in the length of the body. Parsing stops at a value of either field that is
/// nested more than 128 levels deep.
///
/// # Errors
/// [`RepeatedModel`] if either field appears more than once.
pub fn named_model(body: &[u8]) -> Result<Option<String>, RepeatedModel> {
    let mut json = serde_json::Deserializer::from_slice(body);
    let Ok(Named { model, agent, repeated }) = json.deserialize_map(Named::default()) else {
        return Ok(None);
    };
    if repeated {
        return Err(RepeatedModel);
    }
    let text = |value: Option<Value>| match value {
        Some(Value::String(text)) => Some(text),
        _ => None,
    };
    Ok(text(model).or_else(|| text(agent)))
}

#[derive(Default)]
struct Named {
    model: Option<Value>,
    agent: Option<Value>,
    repeated: bool,
}

impl<'de> Visitor<'de> for Named {
    type Value = Self;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object")
    }

    fn visit_map<A: MapAccess<'de>>(mut self, mut fields: A) -> Result<Self, A::Error> {
        while let Some(key) = fields.next_key::<Cow<'de, str>>()? {
            let name = match &*key {
                "model" => &mut self.model,
                "agent" => &mut self.agent,
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
        let named = |body: &str| named_model(body.as_bytes()).unwrap();
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
            assert_eq!(named_model(body.as_bytes()), Err(RepeatedModel));
        }
    }

    #[test]
    fn a_deeply_nested_body_names_its_model() {
        let deep = "[".repeat(100_000) + &"]".repeat(100_000);
        let body = format!(r#"{{"input":{deep},"model":"a"}}"#);
        assert_eq!(named_model(body.as_bytes()), Ok(Some("a".to_owned())));
    }
}
