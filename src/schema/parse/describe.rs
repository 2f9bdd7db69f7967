//! Descriptions of restrictions that Gemini has no keywords for.

use std::io;
use std::sync::Arc;

use serde_json::{Map, Value};

use super::{Parser, Stop};
use crate::schema::metered::BYTES_PER_STEP;
use crate::schema::shape::{MUST_SATISFY, Node};

/// The most nodes of a described schema in which references are replaced by their targets.
const MAX_DESCRIBED: usize = 200;

/// The longest schema that is repeated in a description, in bytes.
const LONGEST_REPEATED: usize = 2_048;

/// The bytes that descriptions may repeat of any schema, however short.
const MIN_REPEATABLE: usize = 1_024;

/// Assertions that both of Gemini's dialects lack.
const DESCRIBED: [&str; 18] = [
    "contains",
    "contentEncoding",
    "contentMediaType",
    "contentSchema",
    "dependencies",
    "dependentRequired",
    "dependentSchemas",
    "else",
    "if",
    "maxContains",
    "minContains",
    "multipleOf",
    "not",
    "propertyNames",
    "then",
    "unevaluatedItems",
    "unevaluatedProperties",
    "uniqueItems",
];

/// How much of a document its descriptions may repeat, in bytes.
pub(super) fn repeatable(document: &Value) -> usize {
    struct Counter(usize);
    impl io::Write for Counter {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0 += bytes.len();
            Ok(bytes.len())
        }
        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }
    let mut counter = Counter(0);
    // Counting does not fail.
    let _ = serde_json::to_writer(&mut counter, document);
    MIN_REPEATABLE.max(counter.0 / 2)
}

impl Parser<'_> {
    /// Describes the keywords of a schema that a node cannot express.
    pub(super) fn describe_keywords(
        &mut self,
        node: &mut Node,
        map: &Map<String, Value>,
    ) -> Result<(), Stop> {
        let (names, is_described) = names_of_properties(map);
        node.annotations.described.extend(names);
        let is_described = |keyword: &str| {
            let by_name = matches!(keyword, "patternProperties" | "additionalProperties");
            DESCRIBED.contains(&keyword) || (is_described && by_name)
        };
        let kept = map.iter().filter(|(keyword, _)| is_described(keyword));
        let kept: Map<String, Value> = kept.map(|(k, v)| (k.clone(), v.clone())).collect();
        if !kept.is_empty() {
            let line = self.must_satisfy(&Value::Object(kept))?;
            node.annotations.describe(line);
        }
        Ok(())
    }

    /// The line of a description that repeats a schema, or names its keywords when it is too long.
    pub(super) fn must_satisfy(&mut self, schema: &Value) -> Result<Arc<str>, Stop> {
        let bytes = self.repeatable.min(LONGEST_REPEATED);
        let mut copy = Copy { trail: Vec::new(), bytes, nodes: MAX_DESCRIBED };
        let text = self.spelled_out(schema, &mut copy)?.map(|schema| schema.to_string());
        if let Some(text) = text.filter(|text| text.len() <= bytes) {
            self.repeatable -= text.len();
            return Ok(format!("{MUST_SATISFY}{text}").into());
        }
        let keywords: Vec<&str> =
            schema.as_object().into_iter().flatten().map(|(keyword, _)| keyword.as_str()).collect();
        let line = format!("Must also satisfy rules too long to repeat: {}", keywords.join(", "));
        Ok(line.into())
    }

    /// A schema for a description, with references replaced by their targets; none when it is too
    /// long.
    fn spelled_out(&mut self, schema: &Value, copy: &mut Copy) -> Result<Option<Value>, Stop> {
        let length = 1 + schema.as_str().map_or(0, str::len);
        self.take(1 + length / BYTES_PER_STEP)?;
        copy.nodes = copy.nodes.saturating_sub(1);
        let Some(bytes) = copy.bytes.checked_sub(length) else { return Ok(None) };
        copy.bytes = bytes;
        match schema {
            Value::Object(map) => match self.lone_reference(map) {
                Some(target) if copy.nodes > 0 && !copy.trail.contains(&target) => {
                    let found = self.document.at(&target);
                    copy.trail.push(target);
                    let value = self.spelled_out(found, copy)?;
                    copy.trail.pop();
                    Ok(value)
                }
                _ => {
                    let mut spelled = Map::new();
                    for (name, value) in map {
                        let Some(value) = self.spelled_out(value, copy)? else { return Ok(None) };
                        copy.bytes = copy.bytes.saturating_sub(name.len());
                        spelled.insert(name.clone(), value);
                    }
                    Ok(Some(spelled.into()))
                }
            },
            Value::Array(values) => {
                let mut spelled = Vec::new();
                for value in values {
                    let Some(value) = self.spelled_out(value, copy)? else { return Ok(None) };
                    spelled.push(value);
                }
                Ok(Some(spelled.into()))
            }
            scalar => Ok(Some(scalar.clone())),
        }
    }

    fn lone_reference(&self, map: &Map<String, Value>) -> Option<String> {
        let reference = map.get("$ref")?.as_str()?;
        (map.len() == 1).then(|| self.document.resolve(reference, "").ok()).flatten()
    }
}

/// A schema being copied.
struct Copy {
    /// The references that were followed to the current place.
    trail: Vec<String>,
    /// The bytes that may still be written.
    bytes: usize,
    /// The nodes in which references are still followed.
    nodes: usize,
}

/// The line that describes a single pattern of names, and whether patterns must be described with
/// their schemas, as several must to be distinguished.
fn names_of_properties(map: &Map<String, Value>) -> (Option<Arc<str>>, bool) {
    let Some(patterns) = map.get("patternProperties").and_then(Value::as_object) else {
        return (None, false);
    };
    let others = map.get("additionalProperties");
    let alone = others.is_none_or(|others| *others == Value::Bool(false));
    match patterns.iter().next() {
        Some((pattern, schema))
            if patterns.len() == 1 && alone && *schema != Value::Bool(false) =>
        {
            let is_listing =
                map.get("properties").and_then(Value::as_object).is_some_and(|all| !all.is_empty());
            let which = if is_listing { "other properties" } else { "properties" };
            let pattern = Value::from(pattern.as_str());
            (Some(format!("Names of {which} match the pattern {pattern}").into()), false)
        }
        first => (None, first.is_some()),
    }
}
