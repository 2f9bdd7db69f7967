//! Schema documents: the bounds on their size, and their references.

use std::borrow::Cow;

use serde_json::Value;

use super::SchemaError;
use super::pointer::{escape, lookup, percent_decode};

/// The deepest nesting. Code that walks a schema is recursive, here and in the validator, and a
/// worker thread's stack is 2 MiB. No schema that Gemini accepts comes near this.
const MAX_DEPTH: usize = 100;

/// Keywords that hold a schema, or an array of schemas.
pub(super) const APPLICATORS: [&str; 16] = [
    "additionalItems",
    "additionalProperties",
    "allOf",
    "anyOf",
    "contains",
    "contentSchema",
    "else",
    "if",
    "items",
    "not",
    "oneOf",
    "prefixItems",
    "propertyNames",
    "then",
    "unevaluatedItems",
    "unevaluatedProperties",
];

/// Keywords that hold an object of schemas, by names that the caller chooses.
pub(super) const NAMED_APPLICATORS: [&str; 6] =
    ["$defs", "definitions", "dependencies", "dependentSchemas", "patternProperties", "properties"];

/// The keywords for references: the canonical form has one.
pub(super) const REFERENCES: [&str; 1] = ["$ref"];

/// A schema document in canonical form: every reference is a JSON Pointer to a schema in it.
pub(super) struct Document<'a> {
    pub(super) root: &'a Value,
}

/// How large a schema may be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SchemaLimits {
    /// Its JSON text, in bytes.
    pub bytes: usize,
    /// The JSON values in it: objects, arrays, strings and so on.
    pub nodes: usize,
}

impl SchemaLimits {
    /// Checks the length of a schema's text.
    ///
    /// # Errors
    /// The bound that the length exceeds.
    pub fn check_bytes(&self, bytes: usize) -> Result<(), SchemaError> {
        if bytes <= self.bytes {
            return Ok(());
        }
        let message = format!("is larger than {} bytes (MAX_SCHEMA_BYTES)", self.bytes);
        Err(SchemaError::new("", message))
    }
}

/// The most bytes of the JSON Pointers to all values of a schema: many of these pointers are built.
const MAX_POINTERS: usize = 64 << 20;

/// Counts the values of a document; refuses one that could exhaust the stack or the memory.
pub(super) fn check_size(schema: &Value, limits: &SchemaLimits) -> Result<usize, SchemaError> {
    let mut size = Size { limits, nodes: 0, pointers: 0 };
    size.add(schema, 0, 0).map_err(|(pointer, message)| SchemaError::new(pointer, message))?;
    Ok(size.nodes)
}

struct Size<'a> {
    limits: &'a SchemaLimits,
    nodes: usize,
    pointers: usize,
}

impl Size<'_> {
    /// Adds a value and all values inside it. An error has a pointer relative to `value`.
    fn add(&mut self, value: &Value, depth: usize, pointer: usize) -> Result<(), (String, String)> {
        self.nodes += 1;
        self.pointers = self.pointers.saturating_add(pointer);
        let refuse = |message: String| Err((String::new(), message));
        if depth > MAX_DEPTH {
            return refuse(format!("is nested deeper than {MAX_DEPTH} levels"));
        }
        if self.nodes > self.limits.nodes {
            let limit = self.limits.nodes;
            return refuse(format!("is past the first {limit} values (MAX_SCHEMA_NODES)"));
        }
        if self.pointers > MAX_POINTERS {
            return refuse(format!("the paths so far have more than {MAX_POINTERS} bytes"));
        }
        let mut inside = |name: &dyn Fn() -> String, length: usize, value: &Value| {
            self.add(value, depth + 1, pointer + 1 + length)
                .map_err(|(rest, message)| (format!("/{}{rest}", name()), message))
        };
        match value {
            Value::Object(map) => map.iter().try_for_each(|(name, value)| {
                inside(&|| escape(name).into_owned(), name.len(), value)
            }),
            Value::Array(list) => list
                .iter()
                .enumerate()
                .try_for_each(|(i, value)| inside(&|| i.to_string(), 8, value)),
            _ => Ok(()),
        }
    }
}

impl<'a> Document<'a> {
    /// The schema at a JSON Pointer that [`resolve`](Self::resolve) gave.
    pub(super) fn at(&self, pointer: &str) -> &'a Value {
        lookup(self.root, pointer).unwrap_or(&Value::Null)
    }

    /// The JSON Pointer of the target of `reference`, which is at `pointer`.
    pub(super) fn resolve(&self, reference: &str, pointer: &str) -> Result<String, SchemaError> {
        let target = reference.strip_prefix('#').map(percent_decode);
        target
            .filter(|target| lookup(self.root, target).is_some())
            .map(Cow::into_owned)
            .ok_or_else(|| SchemaError::new(pointer, "refers to no schema"))
    }
}
