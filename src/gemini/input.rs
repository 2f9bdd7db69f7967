//! What a body costs that somebody else wrote, of Gemini's shape or of OpenAI's.

use std::{borrow::Cow, fmt};

use serde::{
    Deserialize, Deserializer,
    de::{DeserializeSeed, Error, IgnoredAny, MapAccess, SeqAccess, Visitor},
};
use serde_json::value::RawValue;

use super::InputFeatures;

impl InputFeatures {
    /// The features of a whole body of JSON: of every text in it, tools and schemas included, since
    /// they count, and of its media. A body that is no JSON is as long as it is; Gemini refuses it.
    pub fn of_body(body: &[u8]) -> Self {
        let mut features = Self::default();
        let mut json = serde_json::Deserializer::from_slice(body);
        let measure = Measure { features: &mut features, counts_keys: false };
        if measure.deserialize(&mut json).is_err() {
            return Self { ascii_bytes: body.len() as u64, ..Self::default() };
        }
        features
    }
}

/// What a piece of media costs, in tokens, by its type and its size in bytes, if that is known.
///
/// Source: Gemini API documentation, "Understand and count tokens" and "Media resolution": an image
/// is 258 tokens or a multiple of it, 1,120 at the default resolution of Gemini 3; a page of a
/// document 258; a second of sound 32, of film 263. How long they are is guessed from usual bit
/// rates: 16 kB a second of sound, 250 kB a second of film, 50 kB a page. What is kept elsewhere
/// counts as little as it can, so that no call is refused for a guess: Gemini will say what it was.
fn media_tokens(mime_type: &str, bytes: Option<u64>) -> u64 {
    let of_each = |tokens, size| tokens * bytes.unwrap_or(1).div_ceil(size);
    match mime_type.split('/').next().unwrap_or_default() {
        "image" => 1120,
        "audio" => of_each(32, 16_000),
        "video" => of_each(263, 250_000),
        "text" => bytes.unwrap_or_default() / 4,
        _ => of_each(258, 50_000),
    }
}

/// The size of what a base64 text of this length stands for.
fn decoded(base64: usize) -> u64 {
    base64 as u64 / 4 * 3
}

/// Adds up the features of a JSON value.
struct Measure<'a> {
    features: &'a mut InputFeatures,
    /// Whether the names of fields count too, as they do in what describes tools and schemas.
    counts_keys: bool,
}

impl Measure<'_> {
    fn inner(&mut self, key: &str) -> Measure<'_> {
        let describes = matches!(
            key,
            "tools"
                | "responseSchema"
                | "response_schema"
                | "responseJsonSchema"
                | "response_json_schema"
                | "response_format"
                | "functionCall"
                | "functionResponse"
        );
        Measure { features: &mut *self.features, counts_keys: self.counts_keys || describes }
    }
}

impl<'de> DeserializeSeed<'de> for Measure<'_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Measure<'_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("JSON")
    }

    fn visit_str<E: Error>(self, text: &str) -> Result<(), E> {
        // OpenAI's shape has images in URLs: `data:image/png;base64,…`.
        let data = text.strip_prefix("data:").and_then(|url| url.split_once(";base64,"));
        *self.features = *self.features
            + match data {
                Some((mime_type, data)) => InputFeatures {
                    media_tokens: media_tokens(mime_type, Some(decoded(data.len()))),
                    ..InputFeatures::default()
                },
                None => InputFeatures::of(text),
            };
        Ok(())
    }

    fn visit_bool<E>(self, _: bool) -> Result<(), E> {
        Ok(())
    }

    fn visit_i64<E>(self, _: i64) -> Result<(), E> {
        Ok(())
    }

    fn visit_u64<E>(self, _: u64) -> Result<(), E> {
        Ok(())
    }

    fn visit_f64<E>(self, _: f64) -> Result<(), E> {
        Ok(())
    }

    fn visit_unit<E>(self) -> Result<(), E> {
        Ok(())
    }

    fn visit_seq<A: SeqAccess<'de>>(mut self, mut items: A) -> Result<(), A::Error> {
        while items.next_element_seed(self.inner(""))?.is_some() {}
        Ok(())
    }

    fn visit_map<A: MapAccess<'de>>(mut self, mut fields: A) -> Result<(), A::Error> {
        let (mut mime_type, mut size, mut is_media) = ("", None, false);
        while let Some(key) = fields.next_key::<Cow<'de, str>>()? {
            if self.counts_keys {
                *self.features = *self.features + InputFeatures::of(&key);
            }
            let inner = self.inner(&key);
            match &*key {
                "mimeType" | "mime_type" => {
                    mime_type = fields.next_value_seed(TextOr(inner))?.unwrap_or_default();
                }
                "data" => {
                    size = fields.next_value_seed(TextOr(inner))?.map(str::len);
                    is_media |= size.is_some();
                }
                "fileUri" | "file_uri" => {
                    fields.next_value::<IgnoredAny>()?;
                    is_media = true;
                }
                // What the model had thought comes back sealed.
                "thoughtSignature" | "thought_signature" => {
                    fields.next_value::<IgnoredAny>()?;
                }
                _ => fields.next_value_seed(inner)?,
            }
        }
        if is_media {
            self.features.media_tokens += media_tokens(mime_type, size.map(decoded));
        }
        Ok(())
    }
}

/// Takes a text as it is written, and adds up the features of anything else.
struct TextOr<'a>(Measure<'a>);

impl<'de> DeserializeSeed<'de> for TextOr<'_> {
    type Value = Option<&'de str>;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Self::Value, D::Error> {
        let value = <&RawValue>::deserialize(deserializer)?.get();
        if let Some(text) = value.strip_prefix('"') {
            return Ok(text.strip_suffix('"'));
        }
        let mut json = serde_json::Deserializer::from_str(value);
        self.0.deserialize(&mut json).map_err(D::Error::custom)?;
        Ok(None)
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn features(body: &Value) -> InputFeatures {
        InputFeatures::of_body(body.to_string().as_bytes())
    }

    fn media(tokens: u64) -> InputFeatures {
        InputFeatures { media_tokens: tokens, ..InputFeatures::default() }
    }

    #[test]
    fn every_text_counts_and_nothing_else() {
        let body = json!({
            "contents": [{"parts": [{"text": "abc"}, {"text": "日本"}], "role": "user"}, null, 7],
            "tools": [{"functionDeclarations": [{"name": "f", "data": {"x": ["yz", true, -1.5]}}]}],
            "thoughtSignature": "sealed",
        });
        let tools = "functionDeclarationsnamefdataxyz";
        assert_eq!(features(&body), InputFeatures::of(&format!("abc日本user{tools}")));
    }

    #[test]
    fn media_cost_by_their_type_and_size() {
        let data = "A".repeat(64_000);
        for (part, tokens) in [
            (json!({"inlineData": {"mimeType": "image/png", "data": data}}), 1120),
            (json!({"inline_data": {"data": data, "mime_type": "audio/wav"}}), 3 * 32),
            (json!({"inlineData": {"mimeType": "video/mp4", "data": data}}), 263),
            (json!({"inlineData": {"mimeType": "application/pdf", "data": data}}), 258),
            (json!({"inlineData": {"mimeType": "text/csv", "data": data}}), 12_000),
            (json!({"fileData": {"fileUri": "files/a", "mimeType": "video/mp4"}}), 263),
        ] {
            assert_eq!(features(&json!([part])), media(tokens), "{tokens}");
        }
        let url = format!("data:image/png;base64,{data}");
        assert_eq!(features(&json!([{"image_url": {"url": url}}])), media(1120));
    }

    #[test]
    fn what_is_no_json_is_as_long_as_it_is() {
        for body in [&b"not JSON"[..], b"{\"text\": \"\xff\"}", b""] {
            let features = InputFeatures::of_body(body);
            assert_eq!(features.ascii_bytes, body.len() as u64);
        }
    }
}
