//! Generating a value that matches a schema.
//!
//! Keywords of both dialects are read, Gemini's own and JSON Schema.

#[cfg(test)]
mod tests;

use fastrand::Rng;
use serde_json::{Map, Number, Value, json};

use super::pattern::matching_text;

/// The depth down to which optional properties are included.
const FULL_DEPTH: u32 = 6;

/// The greatest depth of a value.
const MAX_DEPTH: u32 = 64;

/// How much of a prompt a string repeats at most, in bytes.
const MAX_ECHO: usize = 200;

/// Generates a value that matches the schema. Equal seeds give equal values. Returns `None` where
/// every value would be nested without end.
///
/// Properties have the order of `propertyOrdering`, optional ones included. A string without
/// constraints names its property and the prompt, which makes answers distinguishable. Items of a
/// list are numbered from 1 so that they can refer to each other: the second item's `scene_number`
/// is 2, its `character_name` is `Character 2`, and so is the second of `other_characters`.
pub(super) fn fitting(schema: &Value, prompt: &str, seed: u64) -> Option<Value> {
    let echo = &prompt[..prompt.floor_char_boundary(MAX_ECHO)];
    // Each failed attempt leaves out optional properties and long lists one level earlier.
    let depths = (0..=FULL_DEPTH).rev().map(|full| (full, full + 8)).chain([(0, MAX_DEPTH)]);
    depths.into_iter().find_map(|(full_depth, max_depth)| {
        let rng = Rng::with_seed(seed);
        let mut builder = Builder { root: schema, echo, full_depth, max_depth, rng, place: None };
        builder.value(schema, "value", 0)
    })
}

struct Builder<'a> {
    root: &'a Value,
    echo: &'a str,
    full_depth: u32,
    max_depth: u32,
    rng: Rng,
    /// The number, from 1, of the current item of the innermost list.
    place: Option<u64>,
}

impl<'a> Builder<'a> {
    fn value(&mut self, schema: &'a Value, name: &str, depth: u32) -> Option<Value> {
        if depth > self.max_depth {
            return None;
        }
        if let Some(reference) = schema.get("$ref").and_then(Value::as_str) {
            return self.value(self.resolve(reference)?, name, depth + 1);
        }
        if let Some(values) = schema.get("enum").and_then(Value::as_array) {
            return self.rng.choice(values).cloned();
        }
        if schema["nullable"] == true && self.rng.u8(..4) == 0 {
            return Some(Value::Null);
        }
        if let Some(branches) = list(schema, "anyOf", "any_of").or(list(schema, "oneOf", "one_of"))
        {
            return self.one_of(branches, name, depth + 1);
        }
        match self.kind(schema)?.as_str() {
            "object" => self.object(schema, depth),
            "array" => self.array(schema, name, depth),
            "integer" => Some(self.integer(schema)),
            "number" => Some(self.number(schema)),
            "boolean" => Some(Value::Bool(self.rng.bool())),
            "null" => Some(Value::Null),
            _ => Some(Value::String(self.string(schema, name))),
        }
    }

    fn resolve(&self, reference: &str) -> Option<&'a Value> {
        self.root.pointer(reference.strip_prefix('#')?)
    }

    /// The type in lower case. One of several types is picked at random. Without a type the other
    /// keywords decide.
    fn kind(&mut self, schema: &Value) -> Option<String> {
        let kind = match schema.get("type") {
            Some(Value::Array(kinds)) => self.rng.choice(kinds)?.as_str()?,
            Some(kind) => kind.as_str()?,
            None if ["properties", "additionalProperties"]
                .iter()
                .any(|k| schema.get(k).is_some()) =>
            {
                "object"
            }
            None if ["items", "prefixItems"].iter().any(|k| schema.get(k).is_some()) => "array",
            None => "string",
        };
        Some(kind.to_ascii_lowercase())
    }

    /// A value of the first branch that has one, starting at a random branch.
    fn one_of(&mut self, branches: &'a [Value], name: &str, depth: u32) -> Option<Value> {
        let first = self.rng.usize(..branches.len().max(1));
        let (before, after) = branches.split_at_checked(first)?;
        after.iter().chain(before).find_map(|branch| self.value(branch, name, depth))
    }

    fn object(&mut self, schema: &'a Value, depth: u32) -> Option<Value> {
        let mut object = Map::new();
        let required: Vec<&str> = list(schema, "required", "required")
            .into_iter()
            .flatten()
            .filter_map(Value::as_str)
            .collect();
        for (name, property) in ordered_properties(schema) {
            let is_required = required.contains(&name);
            if !is_required && depth >= self.full_depth {
                continue;
            }
            match self.value(property, name, depth + 1) {
                Some(value) => _ = object.insert(name.to_owned(), value),
                None if is_required => return None,
                None => {}
            }
        }
        self.add_further_properties(schema, &mut object, depth)?;
        Some(Value::Object(object))
    }

    /// Fills up to `minProperties`, and shows one entry of a map.
    fn add_further_properties(
        &mut self,
        schema: &'a Value,
        object: &mut Map<String, Value>,
        depth: u32,
    ) -> Option<()> {
        let further = schema.get("additionalProperties").filter(|further| further.is_object());
        let is_map = further.is_some() && schema.get("properties").is_none();
        let least = integer(schema, "minProperties", "min_properties").unwrap_or(0);
        let wanted = least.max(u64::from(is_map && depth < self.full_depth));
        for number in 1.. {
            if object.len() as u64 >= wanted {
                break;
            }
            let name = format!("key{number}");
            let value = match further {
                Some(further) => self.value(further, &name, depth + 1)?,
                None => json!(number),
            };
            object.insert(name, value);
        }
        Some(())
    }

    fn array(&mut self, schema: &'a Value, name: &str, depth: u32) -> Option<Value> {
        let least = integer(schema, "minItems", "min_items").unwrap_or(0);
        let most = integer(schema, "maxItems", "max_items").unwrap_or(u64::MAX);
        let prefix = list(schema, "prefixItems", "prefix_items").unwrap_or(&[]);
        let usual = if depth >= self.full_depth { 0 } else { 2.max(prefix.len() as u64) };
        let length = usual.min(most).max(least);
        let mut items = Vec::new();
        let outer = self.place;
        for index in 0..length {
            self.place = Some(index + 1);
            let item = match prefix.get(index as usize).or_else(|| schema.get("items")) {
                Some(Value::Bool(false)) if index >= least => break,
                Some(item) => self.value(item, name, depth + 1),
                None if index >= least => break,
                None => Some(json!(index)),
            };
            match item {
                Some(item) => items.push(item),
                None if index < least => return None,
                None => break,
            }
        }
        self.place = outer;
        Some(Value::Array(items))
    }

    fn integer(&mut self, schema: &Value) -> Value {
        let lowest = bound(schema, "minimum").map(|bound| bound.ceil() as i64);
        let highest = bound(schema, "maximum").map(|bound| bound.floor() as i64);
        let (lowest, highest) = match (lowest, highest) {
            (Some(lowest), Some(highest)) => (lowest, highest.max(lowest)),
            (Some(lowest), None) => (lowest, lowest.saturating_add(100)),
            (None, Some(highest)) => (highest.saturating_sub(100), highest),
            (None, None) => match self.place {
                Some(place) => return json!(place),
                None => (0, 100),
            },
        };
        json!(self.rng.i64(lowest..=highest))
    }

    fn number(&mut self, schema: &Value) -> Value {
        let (lowest, highest) = match (bound(schema, "minimum"), bound(schema, "maximum")) {
            (Some(lowest), Some(highest)) => (lowest, highest.max(lowest)),
            (Some(lowest), None) => (lowest, lowest + 100.0),
            (None, Some(highest)) => (highest - 100.0, highest),
            (None, None) => (0.0, 100.0),
        };
        let number = (lowest + self.rng.f64() * (highest - lowest)).clamp(lowest, highest);
        Number::from_f64(number).map_or(json!(lowest), Value::Number)
    }

    /// The name of a numbered item: `Character 2` for the `character_name` of the second item, and
    /// for a property that refers to such items.
    fn numbered_name(&self, property: &str) -> Option<String> {
        let place = self.place?;
        let thing = property.strip_suffix("_name").or_else(|| {
            let word = property.rsplit('_').next()?;
            let word = word.strip_suffix('s').unwrap_or(word);
            mentions(self.root, &format!("{word}_name")).then_some(word)
        })?;
        let (first, rest) = thing.split_at_checked(1)?;
        Some(format!("{}{rest} {place}", first.to_ascii_uppercase()))
    }

    fn string(&mut self, schema: &Value, name: &str) -> String {
        if let Some(pattern) = schema.get("pattern").and_then(Value::as_str) {
            return matching_text(pattern);
        }
        if let Some(text) = schema.get("format").and_then(Value::as_str).and_then(formatted) {
            return text.to_owned();
        }
        let mut text = self
            .numbered_name(name)
            .unwrap_or_else(|| format!("Simulated {name} for: {}", self.echo));
        let length = text.chars().count() as u64;
        let least = integer(schema, "minLength", "min_length").unwrap_or(0);
        let most = integer(schema, "maxLength", "max_length").unwrap_or(u64::MAX);
        if length > most {
            text = text.chars().take(most as usize).collect();
        }
        text.extend((length..least).map(|_| '.'));
        text
    }
}

/// Whether an object of the schema has a property of this name.
fn mentions(schema: &Value, property: &str) -> bool {
    match schema {
        Value::Object(keywords) => keywords.iter().any(|(keyword, value)| {
            let declared = keyword == "properties" && value.get(property).is_some();
            declared || mentions(value, property)
        }),
        Value::Array(items) => items.iter().any(|item| mentions(item, property)),
        _ => false,
    }
}

/// The properties, those in `propertyOrdering` first.
fn ordered_properties(schema: &Value) -> Vec<(&str, &Value)> {
    let Some(properties) = schema.get("properties").and_then(Value::as_object) else {
        return Vec::new();
    };
    let ordering: Vec<&str> = list(schema, "propertyOrdering", "property_ordering")
        .into_iter()
        .flatten()
        .filter_map(Value::as_str)
        .collect();
    let mut ordered: Vec<_> = properties.iter().map(|(name, value)| (&**name, value)).collect();
    ordered.sort_by_key(|(name, _)| {
        ordering.iter().position(|place| place == name).unwrap_or(ordering.len())
    });
    ordered
}

/// A text in a format of JSON Schema.
fn formatted(format: &str) -> Option<&'static str> {
    match format {
        "date-time" => Some("2026-01-02T03:04:05Z"),
        "date" => Some("2026-01-02"),
        "time" => Some("03:04:05Z"),
        "duration" => Some("PT1H30M"),
        "email" => Some("someone@example.com"),
        "hostname" => Some("example.com"),
        "ipv4" => Some("192.0.2.1"),
        "ipv6" => Some("2001:db8::1"),
        "uri" => Some("https://example.com/"),
        "uuid" => Some("01234567-89ab-4cde-8f01-23456789abcd"),
        _ => None,
    }
}

fn list<'a>(schema: &'a Value, keyword: &str, snake_case: &str) -> Option<&'a [Value]> {
    schema.get(keyword).or_else(|| schema.get(snake_case))?.as_array().map(Vec::as_slice)
}

/// An integer. Google writes 64-bit integers as strings and accepts them so.
fn integer(schema: &Value, keyword: &str, snake_case: &str) -> Option<u64> {
    let value = schema.get(keyword).or_else(|| schema.get(snake_case))?;
    value.as_u64().or_else(|| value.as_str()?.parse().ok())
}

fn bound(schema: &Value, keyword: &str) -> Option<f64> {
    schema.get(keyword)?.as_f64()
}
