//! Reads the keywords of one schema into a shape.

use serde_json::{Map, Value};

use super::keywords::{count, list, maximum, minimum, types, values};
use super::{Parser, Stop};
use crate::schema::pointer::escape;
use crate::schema::shape::{Additional, Node, Shape};

impl Parser<'_> {
    pub(super) fn shape(
        &mut self,
        shape: &mut Shape,
        map: &Map<String, Value>,
        pointer: &str,
    ) -> Result<(), Stop> {
        read_scalars(shape, map);
        self.read_items(shape, map, pointer)?;
        self.read_properties(shape, map, pointer)
    }

    fn read_items(
        &mut self,
        shape: &mut Shape,
        map: &Map<String, Value>,
        pointer: &str,
    ) -> Result<(), Stop> {
        for (i, schema) in list(map, "prefixItems").iter().enumerate() {
            shape.prefix_items.push(self.node(schema, &format!("{pointer}/prefixItems/{i}"))?);
        }
        if let Some(schema) = map.get("items") {
            shape.items = Some(Box::new(self.node(schema, &format!("{pointer}/items"))?));
        }
        Ok(())
    }

    fn read_properties(
        &mut self,
        shape: &mut Shape,
        map: &Map<String, Value>,
        pointer: &str,
    ) -> Result<(), Stop> {
        for (name, schema) in map.get("properties").and_then(Value::as_object).into_iter().flatten()
        {
            let node = self.node(schema, &[pointer, "/properties/", &escape(name)].concat())?;
            shape.properties.insert(name.clone(), node);
        }
        let names = list(map, "required").iter().filter_map(Value::as_str);
        shape.required = names.map(str::to_owned).collect();
        shape.additional = match map.get("additionalProperties") {
            Some(Value::Bool(true)) => Additional::Allowed,
            Some(schema) => {
                let node = self.node(schema, &format!("{pointer}/additionalProperties"))?;
                Additional::Fitting(Box::new(node))
            }
            None => match map.get("unevaluatedProperties") {
                None | Some(Value::Bool(false)) => Additional::Unspecified,
                Some(_) => Additional::Allowed,
            },
        };
        self.read_patterns(shape, map, pointer)
    }

    /// Reads the schemas of `patternProperties`. No dialect has patterns for names, so any name may
    /// have any of the schemas.
    fn read_patterns(
        &mut self,
        shape: &mut Shape,
        map: &Map<String, Value>,
        pointer: &str,
    ) -> Result<(), Stop> {
        let patterns = map.get("patternProperties").and_then(Value::as_object);
        let mut nodes = Vec::new();
        for (name, schema) in patterns.into_iter().flatten() {
            let place = format!("{pointer}/patternProperties/{}", escape(name));
            nodes.push(self.node(schema, &place)?);
        }
        nodes.retain(|node| !node.is_never());
        if nodes.is_empty() {
            return Ok(());
        }
        shape.additional = match std::mem::take(&mut shape.additional) {
            Additional::Allowed => Additional::Allowed,
            Additional::Fitting(node) => {
                nodes.push(*node);
                Additional::Fitting(Box::new(Node::any_of(nodes, self)?))
            }
            Additional::Unspecified | Additional::Matching(_) => {
                Additional::Matching(Box::new(Node::any_of(nodes, self)?))
            }
        };
        Ok(())
    }
}

/// Reads the keywords that contain no schemas.
fn read_scalars(shape: &mut Shape, map: &Map<String, Value>) {
    let text = |value: &Value| value.as_str().map(str::to_owned);
    for (keyword, value) in map {
        match keyword.as_str() {
            "type" => shape.types = types(value),
            "enum" | "const" => shape.values = values(map),
            "minimum" | "exclusiveMinimum" => shape.minimum = minimum(map),
            "maximum" | "exclusiveMaximum" => shape.maximum = maximum(map),
            "minLength" => shape.min_length = count(value),
            "maxLength" => shape.max_length = count(value),
            "pattern" => shape.pattern = text(value),
            "format" => shape.format = text(value),
            "minItems" => shape.min_items = count(value),
            "maxItems" => shape.max_items = count(value),
            "minProperties" => shape.min_properties = count(value),
            "maxProperties" => shape.max_properties = count(value),
            _ => {}
        }
    }
}
