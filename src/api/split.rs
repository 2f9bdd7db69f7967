//! Reads a JSON object as two values, each with fields of its own.
//!
//! serde's `flatten` cannot do this here: it buffers the values, so `RawValue` cannot be read and the
//! path to an error is lost, and it cannot be combined with `deny_unknown_fields`.

use std::fmt;
use std::marker::PhantomData;

use serde::de::value::MapAccessDeserializer;
use serde::de::{DeserializeSeed, Error, IntoDeserializer, MapAccess, Visitor};
use serde::{Deserialize, Deserializer};

/// Fields that different objects have in common.
pub(super) trait SharedFields: Default {
    /// The names of the fields.
    const NAMES: &'static [&'static str];

    /// Reads the value of the field with this name, one of [`Self::NAMES`].
    ///
    /// # Errors
    /// The value has the wrong type.
    fn read<'de, A: MapAccess<'de>>(&mut self, name: &str, object: &mut A) -> Result<(), A::Error>;
}

/// Reads an object: the fields of `S`, and all others as an `R`.
///
/// # Errors
/// A field of `S` or `R` is invalid, or the value is not an object.
pub(super) fn split<'de, S, R, D>(deserializer: D) -> Result<(S, R), D::Error>
where
    S: SharedFields,
    R: Deserialize<'de>,
    D: Deserializer<'de>,
{
    deserializer.deserialize_map(SplitVisitor(PhantomData))
}

struct SplitVisitor<S, R>(PhantomData<(S, R)>);

impl<'de, S: SharedFields, R: Deserialize<'de>> Visitor<'de> for SplitVisitor<S, R> {
    type Value = (S, R);

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object")
    }

    fn visit_map<A: MapAccess<'de>>(self, object: A) -> Result<(S, R), A::Error> {
        let mut shared = S::default();
        let rest = Rest { object, shared: &mut shared, read: Vec::new() };
        let rest = R::deserialize(MapAccessDeserializer::new(rest))?;
        Ok((shared, rest))
    }
}

/// An object without the shared fields. Values are passed on unread, because some are needed as raw
/// text.
struct Rest<'a, A, S> {
    object: A,
    shared: &'a mut S,
    /// The names of the shared fields that were read.
    read: Vec<&'static str>,
}

impl<'de, A: MapAccess<'de>, S: SharedFields> MapAccess<'de> for Rest<'_, A, S> {
    type Error = A::Error;

    fn next_key_seed<K: DeserializeSeed<'de>>(
        &mut self,
        mut seed: K,
    ) -> Result<Option<K::Value>, A::Error> {
        loop {
            let key = KeyVisitor { seed, names: S::NAMES };
            let name = match self.object.next_key_seed(key)? {
                None => return Ok(None),
                Some(Key::Other(key)) => return Ok(Some(key)),
                Some(Key::Shared(name, unused)) => {
                    seed = unused;
                    name
                }
            };
            if self.read.contains(&name) {
                return Err(A::Error::duplicate_field(name));
            }
            self.read.push(name);
            self.shared.read(name, &mut self.object)?;
        }
    }

    fn next_value_seed<V: DeserializeSeed<'de>>(&mut self, seed: V) -> Result<V::Value, A::Error> {
        self.object.next_value_seed(seed)
    }
}

/// A key of the object.
enum Key<'de, K: DeserializeSeed<'de>> {
    /// The name of a shared field. The seed was not used.
    Shared(&'static str, K),
    /// Any other key.
    Other(K::Value),
}

struct KeyVisitor<K> {
    seed: K,
    names: &'static [&'static str],
}

impl<'de, K: DeserializeSeed<'de>> DeserializeSeed<'de> for KeyVisitor<K> {
    type Value = Key<'de, K>;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Self::Value, D::Error> {
        deserializer.deserialize_str(self)
    }
}

impl<'de, K: DeserializeSeed<'de>> Visitor<'de> for KeyVisitor<K> {
    type Value = Key<'de, K>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a key")
    }

    fn visit_str<E: Error>(self, key: &str) -> Result<Self::Value, E> {
        match self.names.iter().find(|name| **name == key) {
            Some(name) => Ok(Key::Shared(name, self.seed)),
            None => self.seed.deserialize(key.into_deserializer()).map(Key::Other),
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::value::RawValue;

    use super::*;

    #[derive(Debug, Default, PartialEq, Eq)]
    struct Shared {
        a: Option<u8>,
        b: Option<String>,
    }

    impl SharedFields for Shared {
        const NAMES: &'static [&'static str] = &["a", "b"];

        fn read<'de, A: MapAccess<'de>>(
            &mut self,
            name: &str,
            object: &mut A,
        ) -> Result<(), A::Error> {
            match name {
                "a" => self.a = object.next_value()?,
                _ => self.b = object.next_value()?,
            }
            Ok(())
        }
    }

    #[derive(Debug, Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Own {
        raw: Box<RawValue>,
    }

    fn read(json: &str) -> Result<(Shared, Own), String> {
        let mut json = serde_json::Deserializer::from_str(json);
        split(&mut json).map_err(|error| error.to_string())
    }

    #[test]
    fn an_object_is_split_and_raw_values_keep_their_text() {
        let (shared, own) = read(r#"{"b": "x", "raw": {"n": 1.10}, "a": null}"#).unwrap();
        assert_eq!(shared, Shared { a: None, b: Some("x".to_owned()) });
        assert_eq!(own.raw.get(), r#"{"n": 1.10}"#);
    }

    #[test]
    fn unknown_repeated_and_mistyped_fields_and_other_values_are_errors() {
        for (json, error) in [
            (r#"{"raw": 1, "c": 2}"#, "unknown field `c`"),
            (r#"{"raw": 1, "raw": 2}"#, "duplicate field `raw`"),
            (r#"{"raw": 1, "a": null, "a": null}"#, "duplicate field `a`"),
            (r#"{"a": 1}"#, "missing field `raw`"),
            (r#"{"raw": 1, "b": 2}"#, "expected a string"),
            ("[1]", "expected an object"),
        ] {
            let found = read(json).unwrap_err();
            assert!(found.contains(error), "{json}: {found}");
        }
    }
}
