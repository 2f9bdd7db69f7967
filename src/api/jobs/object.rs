//! A JSON object whose values are not read.

use std::borrow::Cow;
use std::fmt;

use serde::de::{MapAccess, Visitor};
use serde::{Deserialize, Deserializer};
use serde_json::value::RawValue;

/// The fields of an object in their order, each value as text. A field that occurs twice is kept twice.
#[derive(Debug)]
pub(super) struct Object<'a>(Vec<(Cow<'a, str>, &'a str)>);

impl<'a> Object<'a> {
    /// Reads an object; `None` if the text is none. Its nesting must have been checked.
    pub(super) fn read(json: &'a [u8]) -> Option<Self> {
        serde_json::from_slice(json).ok()
    }

    /// The value of a field, as text.
    pub(super) fn get(&self, name: &str) -> Option<&'a str> {
        self.0.iter().find(|(other, _)| other == name).map(|(_, value)| *value)
    }

    /// Whether a field is there and not null.
    pub(super) fn has(&self, name: &str) -> bool {
        self.get(name).is_some_and(|value| value != "null")
    }

    /// Removes a field.
    pub(super) fn remove(&mut self, name: &str) {
        self.0.retain(|(other, _)| other != name);
    }

    /// Adds a field, if it is not there.
    pub(super) fn add(&mut self, name: &'a str, value: &'a str) {
        if self.get(name).is_none() {
            self.0.push((Cow::Borrowed(name), value));
        }
    }

    /// The object as JSON.
    pub(super) fn to_json(&self) -> Vec<u8> {
        let size = self.0.iter().map(|(name, value)| name.len() + value.len() + 8).sum();
        let mut json = Vec::with_capacity(size);
        json.push(b'{');
        for (index, (name, value)) in self.0.iter().enumerate() {
            if index > 0 {
                json.push(b',');
            }
            serde_json::to_writer(&mut json, name).expect("a text is written to memory");
            json.push(b':');
            json.extend_from_slice(value.as_bytes());
        }
        json.push(b'}');
        json
    }
}

impl<'de: 'a, 'a> Deserialize<'de> for Object<'a> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Fields;

        impl<'de> Visitor<'de> for Fields {
            type Value = Vec<(Cow<'de, str>, &'de str)>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
                let mut fields = Vec::new();
                while let Some(name) = map.next_key::<String>()? {
                    let value: &RawValue = map.next_value()?;
                    fields.push((Cow::Owned(name), value.get()));
                }
                Ok(fields)
            }
        }

        deserializer.deserialize_map(Fields).map(Object)
    }
}

/// JSON without the white space between its tokens, so that it fits on one line.
pub(super) fn compact(json: &[u8]) -> Vec<u8> {
    let mut compact = Vec::with_capacity(json.len());
    let mut rest = json;
    while let Some((byte, after)) = rest.split_first() {
        match byte {
            b' ' | b'\t' | b'\r' | b'\n' => rest = after,
            b'"' => {
                let (string, after) = rest.split_at(string_length(rest));
                compact.extend_from_slice(string);
                rest = after;
            }
            byte => {
                compact.push(*byte);
                rest = after;
            }
        }
    }
    compact
}

/// The length of the string with which a text starts, with its quotes.
fn string_length(text: &[u8]) -> usize {
    let mut at = 1;
    while let Some(found) = text.get(at..).and_then(|rest| memchr::memchr2(b'"', b'\\', rest)) {
        at += found;
        if text[at] == b'"' {
            return at + 1;
        }
        at += 2;
    }
    text.len()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_are_added_and_removed_and_values_keep_their_text() {
        let mut object =
            Object::read(br#" {"a": 1.10, "b\n": {"x": [ ]}, "a": 2, "n": null} "#).unwrap();
        assert_eq!((object.get("a"), object.get("c")), (Some("1.10"), None));
        assert_eq!((object.has("a"), object.has("n"), object.has("c")), (true, false, false));
        object.add("a", "3");
        object.add("c", "4");
        assert_eq!(object.to_json(), br#"{"a":1.10,"b\n":{"x": [ ]},"a":2,"n":null,"c":4}"#);
        object.remove("a");
        assert_eq!(object.to_json(), br#"{"b\n":{"x": [ ]},"n":null,"c":4}"#);
        assert!(Object::read(b"[1]").is_none() && Object::read(b"{").is_none());
    }

    #[test]
    fn compact_json_has_the_same_values_on_one_line() {
        let json = b"{\n \"a b\": \"x \\\" y\\\\\",\r\n\t\"c\" : [ 1 , true ]\n}\n";
        assert_eq!(compact(json), br#"{"a b":"x \" y\\","c":[1,true]}"#);
        assert_eq!(compact(b"\"open"), b"\"open");
        assert_eq!(compact(b"\"open\\"), b"\"open\\");
    }
}
