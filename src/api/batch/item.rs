//! One item of a batch: a request, and the ids that its caller gave it.

use serde::de::MapAccess;
use serde::{Deserialize, Deserializer, Serialize};
use serde_json::json;
use utoipa::openapi::schema::{Schema, SchemaType};
use utoipa::openapi::{Array, ArrayBuilder, ObjectBuilder, RefOr, Type};
use utoipa::{PartialSchema, ToSchema};

use crate::api::split::{SharedFields, split};
use crate::generation::InvalidField;

/// The longest id, in characters.
const MAX_ID: usize = 256;

/// A request in a batch.
#[derive(Debug)]
pub(in crate::api) struct BatchItem<R> {
    pub request: R,
    pub ids: ItemIds,
}

/// The ids of an item. Several items may have the same: results are told apart by their index.
#[derive(Debug, Default, Serialize, ToSchema)]
pub(in crate::api) struct ItemIds {
    /// The `custom_id` of the item, if it has one.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>, nullable = false)]
    pub custom_id: Option<String>,
    /// The `id` of the item, if it has one.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>, nullable = false)]
    pub id: Option<String>,
}

impl ItemIds {
    /// The ids that are too short or too long.
    pub(in crate::api) fn errors(&self) -> impl Iterator<Item = InvalidField> {
        let fields = [("custom_id", &self.custom_id), ("id", &self.id)];
        fields.into_iter().filter_map(|(field, id)| {
            let is_valid = (1..=MAX_ID).contains(&id.as_ref()?.chars().count());
            let message = || format!("An id has 1 to {MAX_ID} characters");
            (!is_valid).then(|| InvalidField::new(field, "string_length", message()))
        })
    }
}

impl SharedFields for ItemIds {
    const NAMES: &'static [&'static str] = &["custom_id", "id"];

    fn read<'de, A: MapAccess<'de>>(&mut self, name: &str, object: &mut A) -> Result<(), A::Error> {
        let id = if name == "id" { &mut self.id } else { &mut self.custom_id };
        *id = object.next_value()?;
        Ok(())
    }
}

impl<'de, R: Deserialize<'de>> Deserialize<'de> for BatchItem<R> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        split(deserializer).map(|(ids, request)| Self { request, ids })
    }
}

/// The schema of the items: that of a request, with the ids, and without `stream`.
pub(super) fn schema<R: PartialSchema>() -> Array {
    let RefOr::T(Schema::Object(mut item)) = R::schema() else {
        unreachable!("a request is an object")
    };
    if item.properties.contains_key("stream") {
        item.properties.insert("stream".to_owned(), not_streamed().into());
    }
    for name in ["custom_id", "id"] {
        item.properties.insert(name.to_owned(), id_schema().into());
    }
    let description = "The requests, each as if it were sent alone. Its own `credentials`, \
                       `external_semaphore_id`, `service_tier` and `flex_fallback_seconds` override \
                       the batch's.";
    ArrayBuilder::new().items(RefOr::T(Schema::Object(item))).description(Some(description)).build()
}

fn id_schema() -> Schema {
    let types = SchemaType::Array(vec![Type::String, Type::Null]);
    let schema = ObjectBuilder::new().schema_type(types).min_length(Some(1));
    let description = "Returned with the result. Several items may have the same.";
    schema.max_length(Some(MAX_ID)).description(Some(description)).build().into()
}

fn not_streamed() -> Schema {
    let schema = ObjectBuilder::new()
        .schema_type(SchemaType::AnyValue)
        .description(Some("A batch is not streamed."))
        .enum_values(Some([json!(false), json!(null)]));
    schema.build().into()
}
