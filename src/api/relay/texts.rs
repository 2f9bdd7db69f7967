//! As how many requests Gemini counts a call.

use std::borrow::Cow;
use std::fmt;

use serde::Deserializer;
use serde::de::{DeserializeSeed, Error, IgnoredAny, MapAccess, SeqAccess, Visitor};

/// As how many requests Gemini counts a call of this kind with this body: each text to embed is
/// one. (Source: users of `batchEmbedContents` whose quota was used up by it.)
pub(super) fn counted_requests(kind: &str, body: &[u8]) -> u64 {
    let field = match kind {
        "embed_content" => "requests",
        "openai_embeddings" => "input",
        _ => return 1,
    };
    let mut json = serde_json::Deserializer::from_slice(body);
    // What cannot be read is refused by Gemini.
    json.deserialize_map(Body { field }).unwrap_or(1).max(1)
}

/// Counts the texts in a field of an object.
struct Body {
    field: &'static str,
}

impl<'de> Visitor<'de> for Body {
    type Value = u64;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut fields: A) -> Result<u64, A::Error> {
        let mut texts = 0;
        while let Some(key) = fields.next_key::<Cow<'de, str>>()? {
            if key == self.field {
                texts += fields.next_value_seed(Texts { in_list: false })?;
            } else {
                fields.next_value::<IgnoredAny>()?;
            }
        }
        Ok(texts)
    }
}

/// Counts the texts in a value. A list of numbers is one text, written in tokens.
struct Texts {
    in_list: bool,
}

impl<'de> DeserializeSeed<'de> for Texts {
    type Value = u64;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<u64, D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Texts {
    type Value = u64;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("JSON")
    }

    fn visit_str<E: Error>(self, _: &str) -> Result<u64, E> {
        Ok(1)
    }

    fn visit_u64<E: Error>(self, _: u64) -> Result<u64, E> {
        Ok(0)
    }

    fn visit_i64<E: Error>(self, _: i64) -> Result<u64, E> {
        Ok(0)
    }

    fn visit_f64<E: Error>(self, _: f64) -> Result<u64, E> {
        Ok(0)
    }

    fn visit_bool<E: Error>(self, _: bool) -> Result<u64, E> {
        Ok(0)
    }

    fn visit_unit<E: Error>(self) -> Result<u64, E> {
        Ok(0)
    }

    fn visit_map<A: MapAccess<'de>>(self, mut fields: A) -> Result<u64, A::Error> {
        while fields.next_entry::<IgnoredAny, IgnoredAny>()?.is_some() {}
        Ok(1)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<u64, A::Error> {
        let mut texts = 0;
        if self.in_list {
            while items.next_element::<IgnoredAny>()?.is_some() {}
            return Ok(1);
        }
        while let Some(more) = items.next_element_seed(Texts { in_list: true })? {
            texts += more;
        }
        Ok(texts)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_text_to_embed_counts_as_a_request() {
        for (kind, body, requests) in [
            ("embed_content", r#"{"requests":[{"content":{}},{"content":{}},{}]}"#, 3),
            ("embed_content", r#"{"requests":[{}],"x":[1],"requests":[{},{}]}"#, 3),
            ("embed_content", r#"{"content":{"parts":[{"text":"a"},{"text":"b"}]}}"#, 1),
            ("openai_embeddings", r#"{"model":"m","input":["a","b","c","d"]}"#, 4),
            ("openai_embeddings", r#"{"input":"a"}"#, 1),
            ("openai_embeddings", r#"{"input":[1,2,-3]}"#, 1),
            ("openai_embeddings", r#"{"input":[[1,2],[3]]}"#, 2),
            ("openai_embeddings", r#"{"input":[]}"#, 1),
            ("openai_embeddings", r#"{"input":["a","b""#, 1),
            ("generate_content", r#"{"requests":[{},{}]}"#, 1),
        ] {
            assert_eq!(counted_requests(kind, body.as_bytes()), requests, "{body}");
        }
    }
}
