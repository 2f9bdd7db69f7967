//! Reads single fields of an object that a client wrote.

use std::borrow::Cow;
use std::fmt;

use serde::Deserializer;
use serde::de::{DeserializeOwned, IgnoredAny, MapAccess, Visitor};
use serde_json::value::RawValue;

/// A field that appears twice, under the same or another of its names. JSON parsers disagree about
/// which one counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` appears more than once")]
pub struct RepeatedField(pub &'static str);

/// The values of some fields of a JSON object, each given by all its names; `None` for those that it
/// does not have, and if it is not a JSON object. The time is linear in the length of the JSON,
/// however deeply it is nested.
///
/// # Errors
/// [`RepeatedField`] with the first name of a field that appears more than once.
pub(super) fn fields<'de, const N: usize>(
    json: &'de [u8],
    names: [&'static [&'static str]; N],
) -> Result<[Option<&'de RawValue>; N], RepeatedField> {
    let visitor = Fields { names, values: [None; N], repeated: None };
    let mut json = serde_json::Deserializer::from_slice(json);
    match json.deserialize_map(visitor) {
        Ok(Fields { repeated: Some(name), .. }) => Err(RepeatedField(name)),
        Ok(Fields { values, .. }) => Ok(values),
        Err(_) => Ok([None; N]),
    }
}

/// The JSON of a field's value; nothing where there is none.
pub(super) fn json(value: Option<&RawValue>) -> &[u8] {
    value.map_or(&[][..], |value| value.get().as_bytes())
}

/// A field's value, if there is one of this type.
pub(super) fn value<T: DeserializeOwned>(value: Option<&RawValue>) -> Option<T> {
    serde_json::from_slice(json(value)).ok()
}

struct Fields<'de, const N: usize> {
    names: [&'static [&'static str]; N],
    values: [Option<&'de RawValue>; N],
    repeated: Option<&'static str>,
}

impl<'de, const N: usize> Visitor<'de> for Fields<'de, N> {
    type Value = Self;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object")
    }

    fn visit_map<A: MapAccess<'de>>(mut self, mut fields: A) -> Result<Self, A::Error> {
        while let Some(name) = fields.next_key::<Cow<'de, str>>()? {
            let Some(index) = self.names.iter().position(|names| names.contains(&&*name)) else {
                fields.next_value::<IgnoredAny>()?;
                continue;
            };
            if self.values[index].replace(fields.next_value()?).is_some() {
                self.repeated = self.names[index].first().copied();
            }
        }
        Ok(self)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NAMES: [&[&str]; 2] = [&["fileName", "file_name"], &["x"]];

    #[test]
    fn fields_are_found_under_any_of_their_names() {
        let deep = "[".repeat(100_000) + &"]".repeat(100_000);
        for name in ["fileName", "file_name", "file\\u004eame"] {
            let body = format!(r#"{{"a":{{"x":1}},"{name}":"b","c":{deep}}}"#);
            let [file, other] = fields(body.as_bytes(), NAMES).unwrap();
            assert_eq!((value(file), other.is_some()), (Some("b".to_owned()), false));
        }
        for body in ["{}", "[]", "", r#"{"x":1"#, r#"[{"x":1}]"#] {
            assert!(fields(body.as_bytes(), NAMES).unwrap()[1].is_none(), "{body}");
        }
        assert_eq!(value::<u64>(fields(br#"{"x":"1"}"#, NAMES).unwrap()[1]), None);
    }

    #[test]
    fn a_repeated_field_is_rejected() {
        for (body, name) in [
            (r#"{"fileName":"a","fileName":"a"}"#, "fileName"),
            (r#"{"file_name":null,"x":1,"file\u004eame":"a"}"#, "fileName"),
            (r#"{"x":1,"x":2}"#, "x"),
        ] {
            assert_eq!(fields(body.as_bytes(), NAMES).unwrap_err(), RepeatedField(name), "{body}");
        }
        assert!(fields(br#"{"a":1,"a":2,"b":{"x":1,"x":2}}"#, NAMES).is_ok(), "others may repeat");
    }
}
