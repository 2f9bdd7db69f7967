//! The body of a request for one generation: the fields that all kinds share, and those of its kind.

use std::borrow::Cow;

use serde::de::{DeserializeOwned, MapAccess};
use serde::{Deserialize, Deserializer, Serialize};
use serde_json::{Map, Value};
use utoipa::openapi::schema::Schema;
use utoipa::openapi::{Object, RefOr};
use utoipa::{PartialSchema, ToSchema};

use super::credentials::Credentials;
use super::service_tier::TierFields;
use super::split::{SharedFields, split};
use crate::generation::{Defaults, Generated, Generation, InvalidField, ModelOptions, Schemas};
use crate::jobs::JobKind;

/// The request body of one kind of generation.
#[derive(Debug)]
pub(super) struct GenerationRequest<K> {
    /// The fields that all kinds share.
    pub shared: CommonFields,
    /// The fields of this kind.
    pub own: K,
}

/// The fields that requests of one kind do not share with other kinds.
pub(super) trait GenerationKind: DeserializeOwned + ToSchema + Send + 'static {
    /// The kind of jobs whose items are of this kind.
    const JOB_KIND: JobKind;
    /// What is generated.
    type Generation: Generation;
    /// The body of the answer.
    type Response: From<Generated<<Self::Generation as Generation>::Value>> + Serialize;

    /// Adds the schema of the request, if it has one, to those that are compiled.
    fn add_schema(&self, _: &mut Schemas) {}

    /// Checks a request, whose schema has been compiled.
    ///
    /// # Errors
    /// Every field that cannot be used.
    fn generation(
        self,
        options: ModelOptions,
        schemas: &Schemas,
        defaults: &Defaults,
    ) -> Result<Self::Generation, Vec<InvalidField>>;
}

/// The fields that the requests of all kinds share.
#[derive(Debug, Default, ToSchema)]
pub(super) struct CommonFields {
    /// The model, such as `gemini-3.5-flash-lite` or `tunedModels/x`; otherwise the server's default.
    #[schema(pattern = "^(models/)?(tunedModels/)?[A-Za-z0-9][A-Za-z0-9._-]{0,127}$")]
    pub model: Option<String>,
    /// The caller's own key.
    pub credentials: Option<Credentials>,
    /// A registered semaphore to hold in addition to the global limit.
    pub external_semaphore_id: Option<String>,
    /// The name of cached content that precedes the prompt, such as `cachedContents/abc`. It belongs to
    /// the key that created it and to the model it was created for. Gemini accepts no system
    /// instruction with it, so `system_prompt` becomes the first part of the prompt.
    #[schema(pattern = "^cachedContents/[A-Za-z0-9_-]{1,128}$")]
    pub cached_content: Option<String>,
    /// Gemini's `generationConfig`, sent as given: `maxOutputTokens`, `thinkingConfig`, … For structured
    /// output and stories, the service sets the schema and the MIME type.
    #[schema(value_type = Option<Object>)]
    pub generation_config: Option<Map<String, Value>>,
    /// The service tier: `standard`, `flex` (half the price, served within minutes when there is
    /// capacity to spare) or `priority` (served first, at a higher price); otherwise Gemini's default.
    #[schema(pattern = "^(standard|flex|priority)$")]
    pub service_tier: Option<String>,
    /// With the service tier `flex`: after how many seconds a request that has not been served is sent
    /// in the standard tier instead.
    #[schema(exclusive_minimum = 0, maximum = 31_536_000)]
    pub flex_fallback_seconds: Option<f64>,
}

/// The credentials of a request, the semaphore that it holds, and its service tier.
#[derive(Debug, Default)]
pub(super) struct CallOptions {
    pub credentials: Option<Credentials>,
    pub external_semaphore_id: Option<String>,
    pub tier: TierFields,
}

impl CommonFields {
    /// Separates what the call needs from what the model needs.
    pub(super) fn into_options(self) -> (CallOptions, ModelOptions) {
        let Self { model, credentials, external_semaphore_id, cached_content, .. } = self;
        let Self { generation_config, service_tier, flex_fallback_seconds, .. } = self;
        let tier = TierFields { service_tier, flex_fallback_seconds };
        let call = CallOptions { credentials, external_semaphore_id, tier };
        (call, ModelOptions { model, cached_content, generation_config })
    }
}

impl SharedFields for CommonFields {
    const NAMES: &'static [&'static str] = &[
        "model",
        "credentials",
        "external_semaphore_id",
        "cached_content",
        "generation_config",
        "service_tier",
        "flex_fallback_seconds",
    ];

    fn read<'de, A: MapAccess<'de>>(&mut self, name: &str, object: &mut A) -> Result<(), A::Error> {
        match name {
            "model" => self.model = object.next_value()?,
            "credentials" => self.credentials = object.next_value()?,
            "external_semaphore_id" => self.external_semaphore_id = object.next_value()?,
            "cached_content" => self.cached_content = object.next_value()?,
            "generation_config" => self.generation_config = object.next_value()?,
            "service_tier" => self.service_tier = object.next_value()?,
            "flex_fallback_seconds" => self.flex_fallback_seconds = object.next_value()?,
            _ => unreachable!("it is one of NAMES"),
        }
        Ok(())
    }
}

impl<'de, K: Deserialize<'de>> Deserialize<'de> for GenerationRequest<K> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        split(deserializer).map(|(shared, own)| Self { shared, own })
    }
}

impl<K: PartialSchema> PartialSchema for GenerationRequest<K> {
    fn schema() -> RefOr<Schema> {
        let mut request = object(K::schema());
        request.properties.extend(object(CommonFields::schema()).properties);
        RefOr::T(Schema::Object(request))
    }
}

impl<K: ToSchema> ToSchema for GenerationRequest<K> {
    fn name() -> Cow<'static, str> {
        K::name()
    }

    fn schemas(schemas: &mut Vec<(String, RefOr<Schema>)>) {
        K::schemas(schemas);
        CommonFields::schemas(schemas);
    }
}

fn object(schema: RefOr<Schema>) -> Object {
    match schema {
        RefOr::T(Schema::Object(object)) => object,
        _ => unreachable!("a struct with named fields is an object"),
    }
}
