//! Counts the images that a call requests.

use memchr::memmem;
use serde::Deserialize;
use serde::de::IgnoredAny;

/// How many images Imagen makes of one prompt by default. Source: Gemini API, "Generate images using
/// Imagen": `numberOfImages`.
const DEFAULT_SAMPLES: u64 = 4;

/// The most images that a call to a model requests, from a body in Gemini's or OpenAI's format. 0 for
/// calls that generate no images; 1 for an image model whose body cannot be parsed.
pub fn requested_images(model: &str, body: &[u8]) -> u64 {
    let is_image_model = model.contains("image");
    // Most bodies name no modalities and need not be parsed.
    if !is_image_model && memmem::find(body, b"odalities").is_none() {
        return 0;
    }
    let Ok(request) = serde_json::from_slice::<ImageRequest>(body) else {
        return is_image_model.into();
    };
    if !is_image_model && !request.wants_images() {
        return 0;
    }
    let samples = request.parameters.sample_count.unwrap_or(DEFAULT_SAMPLES);
    match request.instances {
        Some(prompts) => (prompts.len() as u64).max(1).saturating_mul(samples.max(1)),
        None => request.n.unwrap_or(1).max(1),
    }
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct ImageRequest {
    /// Set for `predict`.
    instances: Option<Vec<IgnoredAny>>,
    parameters: Parameters,
    /// Set in OpenAI's format.
    n: Option<u64>,
    #[serde(alias = "generation_config", rename = "generationConfig")]
    generation_config: GenerationConfig,
    modalities: Vec<String>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Parameters {
    #[serde(alias = "sample_count", alias = "numberOfImages", rename = "sampleCount")]
    sample_count: Option<u64>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct GenerationConfig {
    #[serde(alias = "response_modalities", rename = "responseModalities")]
    response_modalities: Vec<String>,
}

impl ImageRequest {
    fn wants_images(&self) -> bool {
        let mut modalities =
            self.generation_config.response_modalities.iter().chain(&self.modalities);
        modalities.any(|modality| modality.eq_ignore_ascii_case("image"))
    }
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
            assert_eq!(requested_images(model, body.to_string().as_bytes()), images, "{body}");
        }
    }
}
