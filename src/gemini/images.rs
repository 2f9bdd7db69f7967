//! Counts the images that a call requests.

use memchr::memmem;
use serde::de::IgnoredAny;

use super::fields::{RepeatedField, fields, json, value};

/// How many images Imagen makes of one prompt by default. Source: Gemini API, "Generate images using
/// Imagen": `numberOfImages`.
const DEFAULT_SAMPLES: u64 = 4;

/// The most images that a call to a model requests, from a body in Gemini's or OpenAI's format. 0 for
/// calls that generate no images; 1 for an image model whose body cannot be parsed.
///
/// # Errors
/// [`RepeatedField`]: it is uncertain which one Gemini takes.
pub fn requested_images(model: &str, body: &[u8]) -> Result<u64, RepeatedField> {
    let is_image_model = model.contains("image");
    // Most bodies name no modalities and need not be parsed.
    if !is_image_model && memmem::find(body, b"odalities").is_none() {
        return Ok(0);
    }
    // `instances` and `parameters` are those of `predict`; `n` and `modalities` are OpenAI's.
    let [instances, parameters, count, config, modalities] = fields(
        body,
        [
            &["instances"],
            &["parameters"],
            &["n"],
            &["generationConfig", "generation_config"],
            &["modalities"],
        ],
    )?;
    let [samples] = fields(json(parameters), [&["sampleCount", "sample_count", "numberOfImages"]])?;
    let [of_config] = fields(json(config), [&["responseModalities", "response_modalities"]])?;
    let modalities = [of_config, modalities].map(value::<Vec<String>>);
    let mut modalities = modalities.iter().flatten().flatten();
    if !is_image_model && !modalities.any(|modality| modality.eq_ignore_ascii_case("image")) {
        return Ok(0);
    }
    let samples = value(samples).unwrap_or(DEFAULT_SAMPLES);
    Ok(match value::<Vec<IgnoredAny>>(instances) {
        Some(prompts) => (prompts.len() as u64).max(1).saturating_mul(samples.max(1)),
        None => value::<u64>(count).unwrap_or(1).max(1),
    })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn requested_images_are_counted() {
        for (model, body, images) in [
            ("gemini-3.5-flash-lite", json!({"contents": []}), 0),
            ("gemini-3.8-flash", json!({"generationConfig": {"responseModalities": ["TEXT"]}}), 0),
            ("m", json!({"generationConfig": {"responseModalities": ["TEXT", "IMAGE"]}}), 1),
            ("m", json!({"generation_config": {"response_modalities": ["image"]}}), 1),
            ("gemini-3.1-flash-image", json!({"contents": []}), 1),
            ("imagen-4.0-generate-001", json!({"instances": [{"prompt": "x"}]}), 4),
            ("imagen-4.0", json!({"instances": [{}, {}], "parameters": {"sampleCount": 3}}), 6),
            (
                "imagen-4.0",
                json!({"instances": [{}], "parameters": {"sampleCount": u64::MAX}}),
                u64::MAX,
            ),
            ("imagen-4.0", json!({"prompt": "x", "n": 2}), 2),
            ("imagen-4.0", json!({"prompt": "x"}), 1),
            ("imagen-4.0", json!({"instances": "none"}), 1),
        ] {
            let counted = requested_images(model, body.to_string().as_bytes());
            assert_eq!(counted, Ok(images), "{body}");
        }
        let twice = br#"{"instances":[{}],"parameters":{"sampleCount":1,"numberOfImages":4}}"#;
        assert_eq!(requested_images("image", twice), Err(RepeatedField("sampleCount")));
    }
}
