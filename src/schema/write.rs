//! Writes nodes in Gemini's two dialects.

mod builder;
mod cycles;
mod kind;
mod objects;

use std::collections::{BTreeMap, HashSet};

use serde_json::{Map, Value, json};

use self::builder::SchemaBuilder;
use self::kind::Kind;
use super::number::{self, Bound};
use super::parse::Translation;
use super::patterns::Patterns;
use super::references::{References, Resolved};
use super::shape::{Annotations, MUST_SATISFY, Node, Shape, Types};
use super::{Dialect, SchemaError};

/// Every keyword of `responseSchema` (Gemini API, Schema reference). Any other is a 400.
const RESPONSE_SCHEMA: [&str; 22] = [
    "anyOf",
    "default",
    "description",
    "enum",
    "example",
    "format",
    "items",
    "maxItems",
    "maxLength",
    "maxProperties",
    "maximum",
    "minItems",
    "minLength",
    "minProperties",
    "minimum",
    "nullable",
    "pattern",
    "properties",
    "propertyOrdering",
    "required",
    "title",
    "type",
];

/// Every keyword of `responseJsonSchema` (Gemini API, `GenerationConfig` reference).
const RESPONSE_JSON_SCHEMA: [&str; 21] = [
    "$anchor",
    "$defs",
    "$id",
    "$ref",
    "additionalProperties",
    "anyOf",
    "description",
    "enum",
    "format",
    "items",
    "maxItems",
    "maximum",
    "minItems",
    "minimum",
    "oneOf",
    "prefixItems",
    "properties",
    "propertyOrdering",
    "required",
    "title",
    "type",
];

/// Writes the root as `responseSchema` if that can express it, otherwise as `responseJsonSchema`.
pub(super) fn write(
    translation: &Translation,
    patterns: &Patterns,
) -> Result<Dialect, SchemaError> {
    let references = References::of(translation);
    references.allow_a_value()?;
    if let Some(Resolved { root, .. }) = references.written_out() {
        let writer = Writer { target: Target::ResponseSchema, names: BTreeMap::new(), patterns };
        if let Some(schema) = writer.node(&root) {
            return Ok(Dialect::ResponseSchema(Value::Object(schema)));
        }
    }
    let Resolved { root, definitions } = references.kept();
    let names = definition_names(definitions.keys().copied());
    let writer = Writer { target: Target::ResponseJsonSchema, names, patterns };
    let mut schema = writer.node(&root).unwrap_or_default();
    if schema.is_empty() {
        return Ok(Dialect::Any);
    }
    let definitions: Map<String, Value> = definitions
        .iter()
        .filter_map(|(pointer, node)| Some((writer.names[*pointer].clone(), writer.value(node)?)))
        .collect();
    if !definitions.is_empty() {
        schema.insert("$defs".to_owned(), Value::Object(definitions));
    }
    let mut schema = Value::Object(schema);
    cycles::open_required_cycles(&mut schema);
    Ok(Dialect::ResponseJsonSchema(schema))
}

/// Names the definitions: each by the last token of its pointer, with a number if that is taken.
fn definition_names<'p>(pointers: impl Iterator<Item = &'p str>) -> BTreeMap<String, String> {
    let mut names = BTreeMap::new();
    let mut taken = HashSet::new();
    for pointer in pointers {
        let token = pointer.rsplit('/').next().unwrap_or_default();
        let mut stem: String = token.chars().filter(char::is_ascii_alphanumeric).collect();
        if stem.is_empty() {
            "root".clone_into(&mut stem);
        }
        let mut name = stem.clone();
        let mut number = 1;
        while !taken.insert(name.clone()) {
            number += 1;
            name = format!("{stem}{number}");
        }
        names.insert(pointer.to_owned(), name);
    }
    names
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Target {
    ResponseSchema,
    ResponseJsonSchema,
}

impl Target {
    fn takes(self, keyword: &str) -> bool {
        match self {
            Self::ResponseSchema => RESPONSE_SCHEMA.contains(&keyword),
            Self::ResponseJsonSchema => RESPONSE_JSON_SCHEMA.contains(&keyword),
        }
    }
}

/// Its methods return none for what `responseSchema` cannot express. The writer for
/// `responseJsonSchema` never returns none.
struct Writer<'a> {
    target: Target,
    /// The names of the definitions, by JSON Pointer.
    names: BTreeMap<String, String>,
    patterns: &'a Patterns,
}

impl Writer<'_> {
    fn value(&self, node: &Node) -> Option<Value> {
        self.node(node).map(Value::Object)
    }

    fn node(&self, node: &Node) -> Option<Map<String, Value>> {
        if node.is_never() {
            let described = vec![format!("{MUST_SATISFY}false").into()];
            let annotations = Annotations { described, ..node.annotations.clone() };
            return Some(SchemaBuilder::new(self.target).finish(annotations));
        }
        let alone = node.shapes.len() == 1;
        let mut annotations = node.annotations.clone();
        let mut variants = Vec::new();
        let mut nullable = false;
        for shape in &node.shapes {
            let mut own = shape.annotations.clone();
            let kinds = Kind::of(shape);
            if alone {
                annotations = annotations.join(std::mem::take(&mut own));
            } else if kinds.is_empty() {
                let description = own.description.take();
                annotations =
                    annotations.join(Annotations { description, ..Annotations::default() });
            }
            for kind in &kinds {
                variants.push((self.variant(shape, *kind)?, own.clone()));
                if *kind == Kind::String && lists_empty_beside_others(shape) {
                    variants.push((self.empty_string(shape)?, Annotations::default()));
                }
            }
            let is_split = !matches!(kinds[..], [Kind::Any | Kind::Reference]);
            nullable |= is_split && shape.types.intersects(Types::NULL);
        }
        Some(self.compose(variants, nullable)?.finish(annotations))
    }

    /// Combines alternatives into one schema, with null or without.
    fn compose(
        &self,
        variants: Vec<(SchemaBuilder, Annotations)>,
        nullable: bool,
    ) -> Option<SchemaBuilder> {
        let mut variants = variants;
        if let [(schema, annotations)] = &mut variants[..]
            && (!nullable || schema.allow_null())
        {
            let annotations = std::mem::take(annotations);
            let schema = std::mem::replace(schema, SchemaBuilder::new(self.target));
            return Some(schema.annotated(annotations));
        }
        let mut alternatives: Vec<Value> =
            variants.into_iter().map(|(schema, own)| Value::Object(schema.finish(own))).collect();
        let mut schema = SchemaBuilder::new(self.target);
        match self.target {
            Target::ResponseSchema if alternatives.is_empty() => return None,
            Target::ResponseSchema if nullable => schema.put("nullable", true),
            Target::ResponseSchema => {}
            Target::ResponseJsonSchema if alternatives.is_empty() => {
                schema.put("type", "null");
                return Some(schema);
            }
            Target::ResponseJsonSchema => {
                alternatives.extend(nullable.then(|| json!({ "type": "null" })));
            }
        }
        schema.put("anyOf", alternatives);
        Some(schema)
    }

    fn variant(&self, shape: &Shape, kind: Kind) -> Option<SchemaBuilder> {
        let mut schema = SchemaBuilder::new(self.target);
        if let Some(name) = kind.name() {
            schema.put_type(name);
        } else if self.target == Target::ResponseSchema {
            return None;
        }
        if let Some(pointer) = &shape.reference {
            schema.put("$ref", format!("#/$defs/{}", self.names[pointer]));
            return Some(schema);
        }
        if let Some(values) = &shape.values {
            self.write_values(&mut schema, kind, values)?;
        }
        if kind.types().intersects(Types::NUMBER) {
            write_bounds(&mut schema, shape, kind);
        }
        if kind.types().intersects(Types::STRING) {
            self.write_text(&mut schema, shape);
        }
        if kind.types().intersects(Types::ARRAY) {
            self.write_items(&mut schema, shape)?;
        }
        if kind.types().intersects(Types::OBJECT) {
            self.write_properties(&mut schema, shape, kind)?;
        }
        if let Some(format) = &shape.format {
            self.write_format(&mut schema, kind, format);
        }
        Some(schema)
    }

    /// `responseSchema` has enums of strings, and `responseJsonSchema` also of numbers. Neither
    /// accepts an empty string in an enum, so that is a separate alternative. Other values are
    /// described, with null if it is among them.
    fn write_values(&self, schema: &mut SchemaBuilder, kind: Kind, values: &[Value]) -> Option<()> {
        let of_kind = |value: &&Value| kind.types().intersects(Types::of(value));
        let mut own: Vec<Value> = values.iter().filter(of_kind).cloned().collect();
        match kind {
            Kind::Boolean if own.contains(&true.into()) && own.contains(&false.into()) => {}
            Kind::String => {
                own.retain(|value| *value != "");
                match own.is_empty() {
                    true => schema.put("maxLength", 0),
                    false => schema.put("enum", own),
                }
            }
            Kind::Integer | Kind::Number if self.target == Target::ResponseJsonSchema => {
                schema.put("enum", own);
            }
            Kind::Integer | Kind::Number => {
                let (first, last) = number::range(own.iter().filter_map(Value::as_number))?;
                schema.put("minimum", first.clone());
                schema.put("maximum", last.clone());
            }
            _ => {
                own.extend(values.contains(&Value::Null).then_some(Value::Null));
                schema.describe("enum", own);
            }
        }
        Some(())
    }

    /// The alternative of the empty string, with the other keywords of the shape.
    fn empty_string(&self, shape: &Shape) -> Option<SchemaBuilder> {
        let only =
            Shape { values: Some(vec!["".into()]), max_length: None, ..shape.without_nodes() };
        self.variant(&only, Kind::String)
    }

    fn write_items(&self, schema: &mut SchemaBuilder, shape: &Shape) -> Option<()> {
        let tuple_length = shape.prefix_items.len() as u64;
        let is_closed = shape.items.as_deref().is_some_and(Node::is_never);
        let max_items = if is_closed {
            Some(shape.max_items.map_or(tuple_length, |max| max.min(tuple_length)))
        } else {
            shape.max_items
        };
        if self.target == Target::ResponseSchema
            && (is_closed || tuple_length > 0 || shape.items.is_none())
        {
            return None;
        }
        if tuple_length > 0 {
            let prefix: Option<Vec<_>> = shape.prefix_items.iter().map(|n| self.value(n)).collect();
            schema.put("prefixItems", prefix?);
        }
        if let Some(items) = shape.items.as_deref().filter(|_| !is_closed) {
            schema.put("items", self.value(items)?);
        }
        schema.put_some("minItems", shape.min_items);
        schema.put_some("maxItems", max_items);
        Some(())
    }

    /// A pattern with look-around or back-references is described, as constrained decoding does not
    /// support it.
    fn write_text(&self, schema: &mut SchemaBuilder, shape: &Shape) {
        schema.put_some("minLength", shape.min_length);
        schema.put_some("maxLength", shape.max_length);
        match shape.pattern.as_deref() {
            Some(pattern) if self.patterns.is_linear_time(pattern) => {
                schema.put("pattern", pattern)
            }
            Some(pattern) => schema.describe("pattern", pattern),
            None => {}
        }
    }

    /// Formats that Gemini documents for the type are sent, and others are described: an unknown
    /// format can be a 400 (Gemini API, Schema reference and structured output guide).
    fn write_format(&self, schema: &mut SchemaBuilder, kind: Kind, format: &str) {
        let is_numeric = matches!(format, "int32" | "int64" | "float" | "double");
        match (self.target, kind, format) {
            (Target::ResponseSchema, Kind::String, "date-time")
            | (Target::ResponseSchema, Kind::Integer, "int32" | "int64")
            | (Target::ResponseSchema, Kind::Number, "float" | "double")
            | (Target::ResponseJsonSchema, Kind::String, "date-time" | "date" | "time") => {
                schema.put("format", format);
            }
            (_, Kind::Integer | Kind::Number, _) if is_numeric => schema.describe("format", format),
            (_, Kind::String, _) if !is_numeric => schema.describe("format", format),
            (_, Kind::Any, _) => schema.describe("format", format),
            _ => {}
        }
    }
}

/// Whether a shape lists the empty string and other strings.
fn lists_empty_beside_others(shape: &Shape) -> bool {
    let values = shape.values.as_deref().unwrap_or_default();
    let is_filled = |value: &Value| value.as_str().is_some_and(|text| !text.is_empty());
    values.iter().any(|value| *value == "") && values.iter().any(is_filled)
}

/// Gemini has no exclusive bounds. For integers the next integer is sent; otherwise the bound is
/// sent as inclusive and described.
fn write_bounds(schema: &mut SchemaBuilder, shape: &Shape, kind: Kind) {
    let ends = [
        ("minimum", "exclusiveMinimum", &shape.minimum, 1),
        ("maximum", "exclusiveMaximum", &shape.maximum, -1),
    ];
    for (inclusive, exclusive, bound, step) in ends {
        let Some(Bound { value, exclusive: is_exclusive }) = bound else { continue };
        let integer = bound.as_ref().and_then(|bound| bound.inclusive_integer(step));
        match integer.filter(|_| kind == Kind::Integer) {
            Some(integer) => schema.put(inclusive, integer),
            None => {
                schema.put(inclusive, value.clone());
                if *is_exclusive {
                    schema.describe(exclusive, value.clone());
                }
            }
        }
    }
}
