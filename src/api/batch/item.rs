//! One item of a batch: a request, and the ids by which its caller knows its result.

use std::borrow::Cow;
use std::fmt;
use std::marker::PhantomData;

use serde::de::value::MapAccessDeserializer;
use serde::de::{DeserializeSeed, Error, IntoDeserializer, MapAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize};
use serde_json::json;
use utoipa::openapi::schema::{Schema, SchemaType};
use utoipa::openapi::{Array, ArrayBuilder, ObjectBuilder, RefOr, Type};
use utoipa::{PartialSchema, ToSchema};

use crate::generation::InvalidField;

/// The longest id, in characters.
const MAX_ID: usize = 256;

/// A request in a batch.
#[derive(Debug)]
pub(super) struct BatchItem<R> {
    pub request: R,
    pub ids: ItemIds,
}

/// How the caller names an item. Several items may have the same name: it is the place that tells
/// their results apart.
#[derive(Debug, Default, Serialize, ToSchema)]
pub(super) struct ItemIds {
    /// The `custom_id` of the item, where it has one.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>, nullable = false)]
    custom_id: Option<String>,
    /// The `id` of the item, where it has one.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>, nullable = false)]
    id: Option<String>,
}

impl ItemIds {
    /// The ids that cannot be taken.
    pub(super) fn faults(&self) -> impl Iterator<Item = InvalidField> {
        let fields = [("custom_id", &self.custom_id), ("id", &self.id)];
        fields.into_iter().filter_map(|(field, id)| {
            let is_taken = (1..=MAX_ID).contains(&id.as_ref()?.chars().count());
            let message = || format!("An id has 1 to {MAX_ID} characters");
            (!is_taken).then(|| InvalidField::new(field, "string_length", message()))
        })
    }
}

impl<'de, R: Deserialize<'de>> Deserialize<'de> for BatchItem<R> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_map(ItemVisitor(PhantomData))
    }
}

struct ItemVisitor<R>(PhantomData<R>);

impl<'de, R: Deserialize<'de>> Visitor<'de> for ItemVisitor<R> {
    type Value = BatchItem<R>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object")
    }

    fn visit_map<A: MapAccess<'de>>(self, fields: A) -> Result<BatchItem<R>, A::Error> {
        let mut ids = ItemIds::default();
        let rest = Rest { fields, ids: &mut ids };
        let request = R::deserialize(MapAccessDeserializer::new(rest))?;
        Ok(BatchItem { request, ids })
    }
}

/// The fields of an item without its ids. The values pass as they are: some are read to the letter.
struct Rest<'a, A> {
    fields: A,
    ids: &'a mut ItemIds,
}

impl<'de, A: MapAccess<'de>> MapAccess<'de> for Rest<'_, A> {
    type Error = A::Error;

    fn next_key_seed<K: DeserializeSeed<'de>>(
        &mut self,
        seed: K,
    ) -> Result<Option<K::Value>, A::Error> {
        while let Some(key) = self.fields.next_key::<Cow<'de, str>>()? {
            let (name, id) = match &*key {
                "custom_id" => ("custom_id", &mut self.ids.custom_id),
                "id" => ("id", &mut self.ids.id),
                _ => return seed.deserialize(key.into_deserializer()).map(Some),
            };
            if id.is_some() {
                return Err(A::Error::duplicate_field(name));
            }
            *id = self.fields.next_value()?;
        }
        Ok(None)
    }

    fn next_value_seed<V: DeserializeSeed<'de>>(&mut self, seed: V) -> Result<V::Value, A::Error> {
        self.fields.next_value_seed(seed)
    }
}

/// The schema of the items: the request's own, with the ids, and without what a batch does not do.
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
    let description = "What is asked, each as in a request of its own. Its own `credentials` and \
                       `external_semaphore_id` win over the batch's.";
    ArrayBuilder::new().items(RefOr::T(Schema::Object(item))).description(Some(description)).build()
}

fn id_schema() -> Schema {
    let types = SchemaType::Array(vec![Type::String, Type::Null]);
    let schema = ObjectBuilder::new().schema_type(types).min_length(Some(1));
    let description = "Comes back with the result. Several items may have the same.";
    schema.max_length(Some(MAX_ID)).description(Some(description)).build().into()
}

fn not_streamed() -> Schema {
    let schema = ObjectBuilder::new()
        .schema_type(SchemaType::AnyValue)
        .description(Some("A batch is not streamed."))
        .enum_values(Some([json!(false), json!(null)]));
    schema.build().into()
}
