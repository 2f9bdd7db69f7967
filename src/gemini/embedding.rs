//! Counts the requests that a body with texts to embed stands for.

use std::{borrow::Cow, fmt};

use serde::{
    Deserialize, Deserializer,
    de::{IgnoredAny, MapAccess, SeqAccess, Visitor},
};

use super::Surface;

/// How many requests Gemini counts for a body with texts to embed: one for each item of `requests`
/// (`batchEmbedContents`) or of `input` (OpenAI's format), and one if there is no list. A list that
/// appears twice counts twice. `None` if the body is not a JSON object: Gemini also accepts other
/// formats, such as protocol buffers, whose texts cannot be counted here.
///
/// Source: users' reports that each text uses up quota; Google's documentation does not say.
pub fn embedding_requests(surface: Surface, body: &[u8]) -> Option<u64> {
    let list = match surface {
        Surface::Gemini | Surface::Interactions => "requests",
        Surface::OpenAi => "input",
    };
    let mut json = serde_json::Deserializer::from_slice(body);
    let texts = json.deserialize_map(Embeddings { list }).ok()?;
    json.end().ok()?;
    Some(texts.max(1))
}

/// Counts the items of the list with this name, at the top level of a body.
struct Embeddings {
    list: &'static str,
}

impl<'de> Visitor<'de> for Embeddings {
    type Value = u64;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut fields: A) -> Result<u64, A::Error> {
        let mut count = 0;
        while let Some(name) = fields.next_key::<Cow<'de, str>>()? {
            if name == self.list {
                count += fields.next_value::<Texts>()?.0;
            } else {
                fields.next_value::<IgnoredAny>()?;
            }
        }
        Ok(count)
    }
}

/// How many texts a value holds: one for each item of a list, and one for a list of tokens.
struct Texts(u64);

impl<'de> Deserialize<'de> for Texts {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(CountTexts)
    }
}

struct CountTexts;

impl<'de> Visitor<'de> for CountTexts {
    type Value = Texts;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("JSON")
    }

    fn visit_str<E>(self, _: &str) -> Result<Texts, E> {
        Ok(Texts(1))
    }

    fn visit_bool<E>(self, _: bool) -> Result<Texts, E> {
        Ok(Texts(1))
    }

    fn visit_unit<E>(self) -> Result<Texts, E> {
        Ok(Texts(1))
    }

    fn visit_u64<E>(self, _: u64) -> Result<Texts, E> {
        Ok(Texts(0))
    }

    fn visit_i64<E>(self, _: i64) -> Result<Texts, E> {
        Ok(Texts(0))
    }

    fn visit_f64<E>(self, _: f64) -> Result<Texts, E> {
        Ok(Texts(0))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Texts, A::Error> {
        let mut count = 0;
        while let Some(Texts(texts)) = items.next_element()? {
            count += texts;
        }
        Ok(Texts(count.max(1)))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut fields: A) -> Result<Texts, A::Error> {
        while fields.next_entry::<IgnoredAny, IgnoredAny>()?.is_some() {}
        Ok(Texts(1))
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    #[test]
    fn each_text_to_embed_is_a_request() {
        let gemini =
            |body: &Value| embedding_requests(Surface::Gemini, body.to_string().as_bytes());
        let request = json!({"content": {"parts": [{"text": "a"}]}, "requests": [1, 2]});
        assert_eq!(gemini(&json!({"requests": [request, request, request]})), Some(3));
        for body in [json!({"content": {}}), json!({"requests": []})] {
            assert_eq!(gemini(&body), Some(1), "{body}");
        }
        let twice = br#"{"requests":[{},{}],"requests":[{}]}"#;
        assert_eq!(embedding_requests(Surface::Gemini, twice), Some(3));

        let openai = |input: Value| {
            let body = json!({"model": "m", "input": input, "requests": ["x", "y"]});
            embedding_requests(Surface::OpenAi, body.to_string().as_bytes())
        };
        for (input, texts) in [
            (json!("a text"), 1),
            (json!(["a", "b", "c"]), 3),
            (json!([1, 2, 3]), 1),
            (json!([[1, 2], [3], [4, 5]]), 3),
            (json!([]), 1),
        ] {
            assert_eq!(openai(input), Some(texts));
        }
        for body in ["", "not JSON", "[]", "{requests:[{},{}]}", "{'requests':[{},{}]}", "{}{}"] {
            for surface in [Surface::Gemini, Surface::OpenAi] {
                assert_eq!(embedding_requests(surface, body.as_bytes()), None, "{body}");
            }
        }
    }
}
