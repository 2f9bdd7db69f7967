//! Measures the input of a request body that a client wrote, in Gemini's or OpenAI's format.

use std::{borrow::Cow, fmt};

use serde::{
    Deserializer,
    de::{DeserializeSeed, Error, MapAccess, SeqAccess, Visitor},
};

use super::{InputFeatures, ServiceTier, without_lone_surrogates};

impl InputFeatures {
    /// The features of a JSON body: of all its texts, including tools and schemas, since they count,
    /// and of its media. A body that is not JSON counts as text of its length: Gemini rejects it.
    /// Half a surrogate pair is repaired first, since Gemini accepts it.
    pub fn of_body(body: &[u8]) -> Self {
        Self::with_tier_of_body(body).0
    }

    /// The same, and the service tier that the body asks for.
    pub fn with_tier_of_body(body: &[u8]) -> (Self, ServiceTier) {
        let measured =
            Self::of_json(body).or_else(|| Self::of_json(&without_lone_surrogates(body)?));
        measured.unwrap_or_else(|| {
            (Self { ascii_bytes: body.len() as u64, ..Self::default() }, ServiceTier::default())
        })
    }

    fn of_json(json: &[u8]) -> Option<(Self, ServiceTier)> {
        let (mut features, mut tier) = (Self::default(), ServiceTier::default());
        let mut json = serde_json::Deserializer::from_slice(json);
        let measure =
            Measure { features: &mut features, tier: Some(&mut tier), counts_keys: false };
        measure.deserialize(&mut json).ok()?;
        Some((features, tier))
    }

    /// The features of a file of this type and size in bytes.
    pub fn of_file(mime_type: &str, bytes: usize) -> Self {
        let media_tokens = media_tokens(mime_type, Some(bytes as u64));
        Self { media_tokens, ..Self::default() }
    }
}

/// The tokens of a piece of media, by its type and, if known, its size in bytes.
///
/// Source: Gemini API documentation, "Understand and count tokens" and "Media resolution": an image
/// is 258 tokens or a multiple of it, 1,120 at the default resolution of Gemini 3; a page of a
/// document 258; a second of audio 32, of video 263. Durations are estimated from usual bit rates:
/// 16 kB a second of audio, 250 kB a second of video, 50 kB a page. Media stored elsewhere counts as the
/// smallest possible, so that no call is rejected because of an estimate; Gemini reports the true count.
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

/// Whether a field refers to content stored elsewhere: a cache, a file, an image at a URL, an earlier
/// conversation.
fn is_reference(key: &str) -> bool {
    matches!(
        key,
        "cachedContent"
            | "cached_content"
            | "file_id"
            | "image_url"
            | "previous_interaction_id"
            | "previousInteractionId"
    )
}

/// The size of the data that a base64 text of this length encodes.
fn decoded(base64: usize) -> u64 {
    base64 as u64 / 4 * 3
}

/// Adds up the features of a JSON value.
struct Measure<'a> {
    features: &'a mut InputFeatures,
    /// The service tier, which only the outermost object names.
    tier: Option<&'a mut ServiceTier>,
    /// Whether field names count as text, as they do in tools and schemas.
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
        let counts_keys = self.counts_keys || describes;
        Measure { features: &mut *self.features, tier: None, counts_keys }
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
        // OpenAI's format puts images into URLs: `data:image/png;base64,…`.
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
        let (mut mime_type, mut size, mut is_media) = (Cow::default(), None, false);
        let mut tier = self.tier.take();
        while let Some(key) = fields.next_key::<Cow<'de, str>>()? {
            if self.counts_keys {
                *self.features = *self.features + InputFeatures::of(&key);
            }
            let inner = self.inner(&key);
            match &*key {
                "mimeType" | "mime_type" => {
                    mime_type = fields.next_value_seed(TextOr(inner))?.unwrap_or_default();
                }
                // The second name is that of `predict`.
                "data" | "bytesBase64Encoded" => {
                    size = fields.next_value_seed(TextOr(inner))?.map(|data| data.len());
                    is_media |= size.is_some();
                }
                "fileUri" | "file_uri" | "gcsUri" => {
                    is_media |= fields.next_value_seed(TextOr(inner))?.is_some();
                    self.features.has_unseen = true;
                }
                // The model's earlier thoughts, encrypted.
                "thoughtSignature" | "thought_signature" => {
                    fields.next_value_seed(TextOr(inner))?;
                    self.features.has_unseen = true;
                }
                "serviceTier" | "service_tier" if tier.is_some() => {
                    let named = fields.next_value_seed(TextOr(inner))?;
                    if let (Some(tier), Some(named)) = (tier.as_deref_mut(), named) {
                        *tier = ServiceTier::of_body(&named);
                    }
                }
                _ if is_reference(&key) => {
                    self.features.has_unseen = true;
                    fields.next_value_seed(self.inner(&key))?;
                }
                _ => fields.next_value_seed(inner)?,
            }
        }
        if is_media {
            self.features.media_tokens += media_tokens(&mime_type, size.map(decoded));
        }
        Ok(())
    }
}

/// Returns a string, or adds up the features of any other value. It uses the same deserializer, so
/// that its recursion limit covers the whole body.
struct TextOr<'a>(Measure<'a>);

impl<'de> DeserializeSeed<'de> for TextOr<'_> {
    type Value = Option<Cow<'de, str>>;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Self::Value, D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for TextOr<'_> {
    type Value = Option<Cow<'de, str>>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("JSON")
    }

    fn visit_borrowed_str<E>(self, text: &'de str) -> Result<Self::Value, E> {
        Ok(Some(text.into()))
    }

    fn visit_str<E>(self, text: &str) -> Result<Self::Value, E> {
        Ok(Some(text.to_owned().into()))
    }

    fn visit_bool<E>(self, _: bool) -> Result<Self::Value, E> {
        Ok(None)
    }

    fn visit_i64<E>(self, _: i64) -> Result<Self::Value, E> {
        Ok(None)
    }

    fn visit_u64<E>(self, _: u64) -> Result<Self::Value, E> {
        Ok(None)
    }

    fn visit_f64<E>(self, _: f64) -> Result<Self::Value, E> {
        Ok(None)
    }

    fn visit_unit<E>(self) -> Result<Self::Value, E> {
        Ok(None)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, items: A) -> Result<Self::Value, A::Error> {
        self.0.visit_seq(items).map(|()| None)
    }

    fn visit_map<A: MapAccess<'de>>(self, fields: A) -> Result<Self::Value, A::Error> {
        self.0.visit_map(fields).map(|()| None)
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
    fn all_texts_count_and_nothing_else() {
        let body = json!({
            "contents": [{"parts": [{"text": "abc"}, {"text": "日本"}], "role": "user"}, null, 7],
            "tools": [{"functionDeclarations": [{"name": "f", "data": {"x": ["yz", true, -1.5]}}]}],
            "thoughtSignature": "sealed",
        });
        let tools = "functionDeclarationsnamefdataxyz";
        let seen = InputFeatures::of(&format!("abc日本user{tools}"));
        assert_eq!(features(&body), InputFeatures { has_unseen: true, ..seen });
    }

    #[test]
    fn the_service_tier_of_a_body_is_the_one_at_its_top() {
        for (body, tier) in [
            (json!({"contents": []}), ServiceTier::Standard),
            (json!({"serviceTier": "flex"}), ServiceTier::Flex),
            (json!({"service_tier": "FLEX", "contents": []}), ServiceTier::Flex),
            (json!({"service_tier": "priority"}), ServiceTier::Priority),
            (json!({"service_tier": "other"}), ServiceTier::Standard),
            (json!({"service_tier": 7}), ServiceTier::Standard),
            (json!({"contents": [{"service_tier": "flex"}]}), ServiceTier::Standard),
            (json!([{"service_tier": "flex"}]), ServiceTier::Standard),
        ] {
            let found = InputFeatures::with_tier_of_body(body.to_string().as_bytes()).1;
            assert_eq!(found, tier, "{body}");
        }
    }

    #[test]
    fn media_is_measured_by_type_and_size() {
        let data = "A".repeat(64_000);
        let seen = |features| InputFeatures { has_unseen: false, ..features };
        for (part, tokens) in [
            (json!({"inlineData": {"mimeType": "image/png", "data": data}}), 1120),
            (json!({"inline_data": {"data": data, "mime_type": "audio/wav"}}), 3 * 32),
            (json!({"inlineData": {"mimeType": "video/mp4", "data": data}}), 263),
            (json!({"inlineData": {"mimeType": "application/pdf", "data": data}}), 258),
            (json!({"inlineData": {"mimeType": "text/csv", "data": data}}), 12_000),
            (json!({"fileData": {"fileUri": "files/a", "mimeType": "video/mp4"}}), 263),
        ] {
            assert_eq!(seen(features(&json!([part]))), media(tokens), "{tokens}");
        }
        let url = format!("data:image/png;base64,{data}");
        assert_eq!(seen(features(&json!([{"image_url": {"url": url}}]))), media(1120));
    }

    #[test]
    fn content_stored_elsewhere_is_noticed() {
        for part in [
            json!({"cachedContent": "cachedContents/a"}),
            json!({"extra_body": {"google": {"cached_content": "cachedContents/a"}}}),
            json!({"contents": [{"parts": [{"fileData": {"fileUri": "files/a", "mimeType": "text/plain"}}]}]}),
            json!({"messages": [{"content": [{"image_url": {"url": "https://example.com/a.png"}}]}]}),
            json!({"parts": [{"thoughtSignature": "sealed"}]}),
            json!({"previous_interaction_id": "v1_a", "input": "Hello"}),
        ] {
            assert!(features(&part).has_unseen, "{part}");
        }
        assert!(
            !features(&json!({"contents": [{"parts": [{"text": "cachedContent"}]}]})).has_unseen
        );
    }

    #[test]
    fn base64_data_of_predict_is_media() {
        let image = json!({"bytesBase64Encoded": "A".repeat(160_000), "mimeType": "image/png"});
        assert_eq!(features(&json!({"instances": [{"image": image}]})), media(1120));
        let film = json!({"video": {"gcsUri": "gs://films/1", "mimeType": "video/mp4"}});
        assert_eq!(features(&film), InputFeatures { has_unseen: true, ..media(263) });
    }

    #[test]
    fn escapes_in_base64_do_not_count() {
        let data = r"AB\/\u002f".repeat(2000);
        let body = format!(r#"{{"mimeType":"text/\u0070lain","data":"{data}"}}"#);
        assert_eq!(InputFeatures::of_body(body.as_bytes()), media(1500));
    }

    #[test]
    fn a_body_nested_too_deeply_counts_by_its_length() {
        for field in ["data", "mimeType", "fileUri", "thoughtSignature", "tools", "x"] {
            let depth = 100_000;
            let open = format!("{{\"{field}\":");
            let body = format!("{}1{}", open.repeat(depth), "}".repeat(depth));
            let features = InputFeatures::of_body(body.as_bytes());
            assert_eq!(features.ascii_bytes, body.len() as u64, "{field}");
        }
    }

    #[test]
    fn a_body_that_is_not_json_counts_by_its_length() {
        for body in [&b"not JSON"[..], b"{\"text\": \"\xff\"}", b""] {
            let features = InputFeatures::of_body(body);
            assert_eq!(features.ascii_bytes, body.len() as u64);
        }
    }
}
