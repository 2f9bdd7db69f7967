//! Objects: their properties, listed and additional.

use serde_json::{Map, Value};

use super::builder::SchemaBuilder;
use super::kind::Kind;
use super::{Target, Writer};
use crate::schema::shape::{Additional, Node, Shape};

impl Writer<'_> {
    pub(super) fn write_properties(
        &self,
        schema: &mut SchemaBuilder,
        shape: &Shape,
        kind: Kind,
    ) -> Option<()> {
        let is_closed = match &shape.additional {
            Additional::Unspecified => self.target == Target::ResponseSchema,
            Additional::Allowed | Additional::Matching(_) => false,
            Additional::Fitting(node) => node.is_never(),
        };
        let mut properties = Map::new();
        let (mut forbidden, mut impossible) = (Map::new(), Vec::new());
        let any = Node::any();
        let unlisted = shape.required.iter().filter(|name| shape.property(name).is_none());
        let unlisted =
            unlisted.map(|name| (name, shape.property_or_additional(name).unwrap_or(&any)));
        let listed = shape.properties.iter();
        // Gemini refuses a required name that is not a property.
        for (name, node) in listed.chain(unlisted) {
            if !node.is_never() {
                properties.insert(name.clone(), self.value(node)?);
            } else if shape.required.contains(name) {
                impossible.push(name.clone());
            } else if !is_closed {
                forbidden.insert(name.clone(), Value::Bool(false));
            }
        }
        if shape.additional == Additional::Unspecified && !properties.is_empty() {
            for (name, node) in &shape.mentioned {
                if !shape.properties.contains_key(name) && !properties.contains_key(name) {
                    properties.insert(name.clone(), self.value(node)?);
                }
            }
        }
        self.write_additional(schema, shape, kind, properties.len())?;
        put_properties(schema, properties, shape);
        if !forbidden.is_empty() {
            schema.describe("properties", forbidden);
        }
        if !impossible.is_empty() {
            schema.describe("required", impossible);
        }
        schema.put_some("minProperties", shape.min_properties);
        schema.put_some("maxProperties", shape.max_properties);
        Some(())
    }

    /// In `responseSchema` an object has only the listed properties, and at least one. In
    /// `responseJsonSchema` Gemini adds no others either, unless `additionalProperties` allows
    /// them. So it does for an object that lists no properties, or fewer than it must have.
    fn write_additional(
        &self,
        schema: &mut SchemaBuilder,
        shape: &Shape,
        kind: Kind,
        listed: usize,
    ) -> Option<()> {
        let wanted = shape.min_properties.unwrap_or(0).max(1);
        let additional = match &shape.additional {
            Additional::Unspecified if kind == Kind::Object && (listed as u64) < wanted => {
                Some(true.into())
            }
            Additional::Unspecified => None,
            Additional::Allowed => Some(true.into()),
            Additional::Fitting(node) if node.is_never() => Some(false.into()),
            Additional::Fitting(node) | Additional::Matching(node) => match self.node(node)? {
                anything if anything.is_empty() => Some(true.into()),
                node => Some(Value::Object(node)),
            },
        };
        match self.target {
            Target::ResponseSchema => {
                let is_closed = matches!(additional, None | Some(Value::Bool(false)));
                (is_closed && listed > 0).then_some(())
            }
            Target::ResponseJsonSchema => {
                schema.put_some("additionalProperties", additional);
                Some(())
            }
        }
    }
}

/// Writes the properties in the caller's order, which affects the quality of answers (Gemini API,
/// structured output: property ordering).
fn put_properties(schema: &mut SchemaBuilder, properties: Map<String, Value>, shape: &Shape) {
    if properties.is_empty() {
        return;
    }
    let order: Vec<String> = properties.keys().cloned().collect();
    let required: Vec<String> =
        order.iter().filter(|name| shape.required.contains(*name)).cloned().collect();
    schema.put("properties", properties);
    if !required.is_empty() {
        schema.put("required", required);
    }
    schema.put("propertyOrdering", order);
}
