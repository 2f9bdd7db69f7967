//! The caller's document: how deep it is, and where its references lead.

use std::collections::HashMap;

use jsonschema::Draft;
use serde_json::{Map, Value};

use super::SchemaError;

/// Everything that walks a schema is recursive, here and in the validator; a worker thread's stack
/// is 2 MiB. No schema that Gemini serves comes near this.
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

/// Keywords that hold an object of schemas, by names of the caller's choosing.
pub(super) const NAMED_APPLICATORS: [&str; 6] =
    ["$defs", "definitions", "dependencies", "dependentSchemas", "patternProperties", "properties"];

/// The keywords that refer. Within one document without embedded resources, which
/// [`Document::open`] sees to, the dynamic ones lead where `$ref` would.
pub(super) const REFERENCES: [&str; 3] = ["$ref", "$dynamicRef", "$recursiveRef"];

/// A schema document whose references are known to lead somewhere inside it.
pub(super) struct Document<'a> {
    pub(super) root: &'a Value,
    pub(super) draft: Draft,
    anchors: HashMap<&'a str, String>,
}

/// How large a schema may be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Its JSON text, in bytes.
    pub bytes: usize,
    /// The JSON values in it: objects, arrays, strings and so on.
    pub nodes: usize,
}

impl Limits {
    /// Refuses a schema whose text is too long.
    ///
    /// # Errors
    /// The bound that it passes.
    pub fn check_bytes(&self, bytes: usize) -> Result<(), SchemaError> {
        if bytes <= self.bytes {
            return Ok(());
        }
        let message = format!("is larger than {} bytes (MAX_SCHEMA_BYTES)", self.bytes);
        Err(SchemaError::new("", message))
    }
}

/// Bytes of the JSON Pointers to all values of a schema, which are written out for many of them.
const MAX_POINTERS: usize = 64 << 20;

/// Refuses a document that could exhaust the stack or the memory of what walks it; counts its
/// values.
pub(super) fn check_size(schema: &Value, limits: &Limits) -> Result<usize, SchemaError> {
    let mut size = Size { limits, nodes: 0, pointers: 0 };
    size.add(schema, 0, 0).map_err(|(pointer, message)| SchemaError::new(pointer, message))?;
    Ok(size.nodes)
}

struct Size<'a> {
    limits: &'a Limits,
    nodes: usize,
    pointers: usize,
}

impl Size<'_> {
    /// Adds a value with all inside it. What is wrong comes with the pointer from `value` on.
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
            Value::Object(map) => {
                map.iter().try_for_each(|(name, value)| inside(&|| escape(name), name.len(), value))
            }
            Value::Array(list) => list
                .iter()
                .enumerate()
                .try_for_each(|(i, value)| inside(&|| i.to_string(), 8, value)),
            _ => Ok(()),
        }
    }
}

impl<'a> Document<'a> {
    /// Finds every anchor, and refuses any reference that leads out of the document or nowhere.
    pub(super) fn open(root: &'a Value, draft: Draft) -> Result<Self, SchemaError> {
        let mut document = Self { root, draft, anchors: HashMap::new() };
        let mut references = Vec::new();
        document.survey(root, "", &mut references)?;
        for (pointer, reference) in references {
            document.resolve(reference, &pointer)?;
        }
        Ok(document)
    }

    /// The schema at a JSON Pointer that [`resolve`](Self::resolve) gave.
    pub(super) fn at(&self, pointer: &str) -> &'a Value {
        self.root.pointer(pointer).unwrap_or(&Value::Null)
    }

    /// Before draft 2019-09, `$ref` silences the keywords beside it.
    pub(super) fn ref_silences_siblings(&self) -> bool {
        matches!(self.draft, Draft::Draft4 | Draft::Draft6 | Draft::Draft7)
    }

    /// The JSON Pointer of what `reference`, found at `pointer`, refers to.
    pub(super) fn resolve(&self, reference: &str, pointer: &str) -> Result<String, SchemaError> {
        let id = self.root.get("$id").or_else(|| self.root.get("id")).and_then(Value::as_str);
        let local = match id.map(|id| id.trim_end_matches('#')) {
            Some(id) => reference.strip_prefix(id).unwrap_or(reference),
            None => reference,
        };
        let fragment = match local.strip_prefix('#') {
            Some(fragment) => percent_decode(fragment),
            None if local.is_empty() => String::new(),
            None => {
                let message = format!("{reference:?} is outside this schema and is not fetched");
                return Err(SchemaError::new(pointer, message));
            }
        };
        let target = self.anchors.get(fragment.as_str()).cloned().unwrap_or(fragment);
        match self.root.pointer(&target) {
            Some(Value::Object(_) | Value::Bool(_)) => Ok(target),
            _ => Err(SchemaError::new(pointer, format!("{reference:?} refers to no schema"))),
        }
    }

    fn survey(
        &mut self,
        schema: &'a Value,
        pointer: &str,
        references: &mut Vec<(String, &'a str)>,
    ) -> Result<(), SchemaError> {
        let Value::Object(map) = schema else { return Ok(()) };
        if !pointer.is_empty() {
            self.refuse_embedded(map, pointer)?;
        }
        for keyword in ["$anchor", "$dynamicAnchor", "$id", "id"] {
            let Some(name) = map.get(keyword).and_then(Value::as_str) else { continue };
            let is_anchor = keyword.ends_with("nchor") || name.starts_with('#');
            if is_anchor {
                self.anchors.insert(name.trim_start_matches('#'), pointer.to_owned());
            }
        }
        for keyword in REFERENCES {
            if let Some(reference) = map.get(keyword).and_then(Value::as_str) {
                references.push((format!("{pointer}/{keyword}"), reference));
            }
        }
        subschemas(map).try_for_each(|(path, subschema)| {
            self.survey(subschema, &format!("{pointer}{path}"), references)
        })
    }

    /// A `$id` inside the document makes what it holds a document of its own, with references that
    /// start there. Refused rather than half understood.
    fn refuse_embedded(&self, map: &Map<String, Value>, pointer: &str) -> Result<(), SchemaError> {
        let keyword = if self.draft == Draft::Draft4 { "id" } else { "$id" };
        match map.get(keyword) {
            Some(Value::String(id)) if !id.starts_with('#') => Err(SchemaError::new(
                format!("{pointer}/{keyword}"),
                "embeds another schema document: move it to $defs and refer to it from there",
            )),
            _ => Ok(()),
        }
    }
}

/// The schemas directly inside one, each with its JSON Pointer from there.
fn subschemas(map: &Map<String, Value>) -> impl Iterator<Item = (String, &Value)> {
    map.iter().flat_map(|(keyword, value)| {
        let inside: Vec<(String, &Value)> = match value {
            Value::Object(named) if NAMED_APPLICATORS.contains(&keyword.as_str()) => {
                named.iter().map(|(name, v)| (format!("/{keyword}/{}", escape(name)), v)).collect()
            }
            Value::Array(list) if APPLICATORS.contains(&keyword.as_str()) => {
                list.iter().enumerate().map(|(i, v)| (format!("/{keyword}/{i}"), v)).collect()
            }
            Value::Object(_) if APPLICATORS.contains(&keyword.as_str()) => {
                vec![(format!("/{keyword}"), value)]
            }
            _ => Vec::new(),
        };
        inside
    })
}

/// A property's name as a token of a JSON Pointer (RFC 6901, section 3).
pub(super) fn escape(name: &str) -> String {
    name.replace('~', "~0").replace('/', "~1")
}

/// A `$ref` is a URI reference, so its fragment is percent-encoded (RFC 6901, section 6).
fn percent_decode(fragment: &str) -> String {
    let mut decoded = Vec::with_capacity(fragment.len());
    let mut rest = fragment.as_bytes();
    while let Some((&first, after)) = rest.split_first() {
        let hex = (first == b'%').then(|| after.get(..2)).flatten();
        let byte = hex
            .and_then(|hex| std::str::from_utf8(hex).ok())
            .and_then(|hex| u8::from_str_radix(hex, 16).ok());
        decoded.push(byte.unwrap_or(first));
        rest = if byte.is_some() { &after[2..] } else { after };
    }
    String::from_utf8_lossy(&decoded).into_owned()
}
