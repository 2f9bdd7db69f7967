//! Rewrites a document with the keywords of draft 2020-12 only.

use std::collections::HashMap;

use serde_json::{Map, Value, json};

use super::definitions;
use super::expression;
use super::foreign;
use super::keyword::{CONTAINERS, Draft, Holds, Known, known};
use super::places::Places;
use super::scope::{REFERENCES, Scope, Scopes, Target};
use super::wrapper;
use crate::schema::document::SchemaLimits;
use crate::schema::pointer::{self, escape};
use crate::schema::work::Work;
use crate::schema::{NotCompiled, SchemaError, shorten};

/// How much larger the rewritten document may be than the bound on the caller's: a schema that
/// references reach in different scopes is written once for each.
const GROWTH: usize = 2;

pub(super) struct Rewriter<'a, 's, 'w> {
    scopes: &'s mut Scopes<'a>,
    work: &'w Work,
    /// Values and bytes that may still be written.
    nodes_left: usize,
    bytes_left: usize,
    /// The JSON Pointers of the schema that is being written: in the caller's document, and in the
    /// new one.
    source: String,
    place: String,
    /// The JSON Pointers of the targets of references in the new document.
    written: HashMap<Target, String>,
    /// The places of the references, whose values are filled in at the end.
    references: Vec<(String, Target)>,
    places: Places,
}

/// The resource and the scope that a schema is read in.
#[derive(Debug, Clone, Copy)]
struct Within {
    resource: usize,
    scope: Scope,
    draft: Draft,
}

/// A partly written schema.
#[derive(Default)]
struct Writing {
    /// Annotations and definitions.
    outer: Map<String, Value>,
    /// Restrictions, if they are kept apart because null is allowed besides them.
    inner: Map<String, Value>,
    is_wrapped: bool,
}

impl Writing {
    /// The JSON Pointer from the schema to its keywords.
    fn prefix(&self, keyword: &str) -> &'static str {
        if self.is_wrapped && !foreign::stays_outside(keyword) { "/anyOf/0" } else { "" }
    }

    fn restricting(&mut self) -> &mut Map<String, Value> {
        if self.is_wrapped { &mut self.inner } else { &mut self.outer }
    }

    fn has(&mut self, keyword: &str) -> bool {
        self.restricting().contains_key(keyword)
    }

    fn list(&mut self, keyword: &str) -> Option<&mut Vec<Value>> {
        self.restricting().get_mut(keyword).and_then(Value::as_array_mut)
    }

    fn put(&mut self, keyword: &str, value: Value) {
        let is_outer = !self.is_wrapped || foreign::stays_outside(keyword);
        let map = if is_outer { &mut self.outer } else { &mut self.inner };
        map.insert(keyword.to_owned(), value);
    }
}

impl<'a, 's, 'w> Rewriter<'a, 's, 'w> {
    pub(super) fn new(scopes: &'s mut Scopes<'a>, limits: &SchemaLimits, work: &'w Work) -> Self {
        Self {
            scopes,
            work,
            nodes_left: limits.nodes.saturating_mul(GROWTH),
            bytes_left: limits.bytes.saturating_mul(GROWTH),
            source: String::new(),
            place: String::new(),
            written: HashMap::new(),
            references: Vec::new(),
            places: Places::default(),
        }
    }

    /// Writes the document.
    pub(super) fn run(mut self) -> Result<(Value, Places), NotCompiled> {
        let scope = self.scopes.root();
        let mut document = self.write_from("", scope)?;
        let extra = std::mem::take(&mut self.scopes.extra);
        if !extra.is_empty() {
            let added = definitions::of(&mut document)?;
            let mut names = definitions::DefinitionNames::of(added);
            let mut written = Vec::new();
            for target in extra {
                let name = names.fresh(&target.pointer);
                self.place = format!("/$defs/{}", escape(&name));
                self.source.clone_from(&target.pointer);
                self.places.add(&self.place, &self.source);
                written.push((name, self.write_from(&target.pointer, target.scope)?));
            }
            added.extend(written);
        }
        for (place, target) in self.references {
            let found = self.written.get(&target).zip(document.pointer_mut(&place));
            let Some((to, reference)) = found else {
                return Err(self
                    .places
                    .locate(SchemaError::new(place, "refers to a schema that is not read"))
                    .into());
            };
            *reference = Value::String(format!("#{}", pointer::fragment(to)));
        }
        Ok((document, self.places))
    }

    fn write_from(&mut self, pointer: &str, scope: Scope) -> Result<Value, NotCompiled> {
        let resource = self.scopes.names.resource_of(pointer);
        let draft = self.scopes.names.resources[resource].draft;
        self.schema(self.scopes.names.value(pointer), Within { resource, scope, draft })
    }

    /// Runs with parts appended to the pointers.
    fn inside<T>(
        &mut self,
        source: &[&str],
        place: &[&str],
        run: impl FnOnce(&mut Self) -> T,
    ) -> T {
        let (source_length, place_length) = (self.source.len(), self.place.len());
        self.source.extend(source.iter().copied());
        self.place.extend(place.iter().copied());
        let result = run(self);
        self.source.truncate(source_length);
        self.place.truncate(place_length);
        result
    }

    fn schema(&mut self, schema: &'a Value, within: Within) -> Result<Value, NotCompiled> {
        let within = match self.scopes.names.resource_at(&self.source) {
            Some(resource) => {
                let draft = self.scopes.names.resources[resource].draft;
                Within { resource, scope: self.scopes.enter(within.scope, resource), draft }
            }
            None => within,
        };
        if self.scopes.is_target(&self.source, within.scope) {
            let target = Target { pointer: self.source.clone(), scope: within.scope };
            self.written.entry(target).or_insert_with(|| self.place.clone());
        }
        match schema {
            Value::Object(map) => self.object(map, within),
            Value::String(name) => match wrapper::meant_type(name) {
                Some(kind) => {
                    let message = format!("is not a schema: write {{\"type\": \"{kind}\"}}");
                    Err(SchemaError::new(self.source.clone(), message).into())
                }
                None => self.copy(schema),
            },
            other => self.copy(other),
        }
    }

    fn object(
        &mut self,
        map: &'a Map<String, Value>,
        within: Within,
    ) -> Result<Value, NotCompiled> {
        self.count(1, 0)?;
        let is_wrapped = foreign::needs_alternative_for_null(map, within.draft);
        let mut writing = Writing { is_wrapped, ..Writing::default() };
        for (keyword, value) in map {
            self.count(1, keyword.len())?;
            let Some(known) = known(map, keyword, within.draft) else { continue };
            let source = ["/", &escape(keyword)];
            let place = [writing.prefix(known.name), "/", known.name];
            let written = self.inside(&source, &place, |rewriter| {
                if keyword != known.name {
                    rewriter.places.add(&rewriter.place, &rewriter.source);
                }
                rewriter.keyword(known, value, within)
            })?;
            if let Some(value) = written {
                writing.put(known.name, value);
            }
        }
        self.add_dynamic_references(map, &mut writing, within)?;
        foreign::require_marked(map, writing.restricting());
        Ok(Value::Object(self.finish(map, writing)))
    }

    /// The value of a keyword; none when the keyword is dropped.
    fn keyword(
        &mut self,
        known: Known<'_>,
        value: &'a Value,
        within: Within,
    ) -> Result<Option<Value>, NotCompiled> {
        match (known.holds, value) {
            (Holds::Schema, _) => self.schema(value, within).map(Some),
            (Holds::List, Value::Array(list))
                if list.is_empty() && matches!(known.name, "prefixItems" | "allOf") =>
            {
                Ok(None)
            }
            (Holds::List, Value::Array(list)) => {
                let schemas = list.iter().enumerate().map(|(i, schema)| {
                    let path = ["/", &i.to_string()];
                    self.inside(&path, &path, |rewriter| rewriter.schema(schema, within))
                });
                Ok(Some(Value::Array(schemas.collect::<Result<_, _>>()?)))
            }
            (Holds::Named, Value::Object(named)) => {
                self.named(known.name, named, within).map(|named| Some(Value::Object(named)))
            }
            // PHP writes an empty object like this.
            (Holds::Named, Value::Array(list)) if list.is_empty() => Ok(Some(json!({}))),
            (Holds::Plain, _) => self.plain(known.name, value, within),
            _ => self.copy(value).map(Some),
        }
    }

    fn named(
        &mut self,
        keyword: &str,
        named: &'a Map<String, Value>,
        within: Within,
    ) -> Result<Map<String, Value>, NotCompiled> {
        let mut written = Map::with_capacity(named.len());
        for (name, value) in named {
            self.count(0, name.len())?;
            // Not a schema, and not a target of references: usually a comment.
            if CONTAINERS.contains(&keyword) && !(value.is_object() || value.is_boolean()) {
                continue;
            }
            let mut key = name.clone();
            if keyword == "patternProperties" {
                key = expression::rewritten(name).into_owned();
                // Different forms of one expression all apply.
                while written.contains_key(&key) {
                    key.push_str("(?:)");
                }
            }
            let source = ["/", &escape(name)];
            let place = ["/", &escape(&key)];
            let value = self.inside(&source, &place, |rewriter| {
                if source != place {
                    rewriter.places.add(&rewriter.place, &rewriter.source);
                }
                match value {
                    Value::Array(_) => rewriter.copy(value),
                    _ => rewriter.schema(value, within),
                }
            })?;
            written.insert(key, value);
        }
        Ok(written)
    }

    fn plain(
        &mut self,
        keyword: &str,
        value: &Value,
        within: Within,
    ) -> Result<Option<Value>, NotCompiled> {
        match (keyword, value) {
            ("$ref", Value::String(reference)) => {
                self.reference(keyword, reference, within).map(Some)
            }
            ("$dynamicRef" | "$recursiveRef", _) => Ok(None),
            ("pattern", Value::String(pattern)) => {
                let pattern = expression::rewritten(pattern).into_owned();
                self.count(1, pattern.len())?;
                Ok(Some(Value::String(pattern)))
            }
            ("propertyOrdering", value) if !foreign::is_list_of_names(value) => {
                let message = "is not a list of properties' names";
                Err(SchemaError::new(self.source.clone(), message).into())
            }
            ("type", Value::String(name)) if foreign::type_name(name).is_none() => {
                let kind = wrapper::meant_type(name);
                let advice = kind.map_or_else(String::new, |kind| format!(": write \"{kind}\""));
                let name = shorten(&value.to_string());
                let message = format!("{name} is not a type of JSON Schema{advice}");
                Err(SchemaError::new(self.source.clone(), message).into())
            }
            _ => match foreign::plain(keyword, value, self.source.len() == keyword.len() + 1) {
                foreign::Plain::Same => self.copy(value).map(Some),
                foreign::Plain::Other(value) => Ok(Some(value)),
                foreign::Plain::Nothing => Ok(None),
            },
        }
    }

    /// A reference, whose value is filled in at the end.
    fn reference(
        &mut self,
        keyword: &str,
        reference: &str,
        within: Within,
    ) -> Result<Value, NotCompiled> {
        self.work.spend(1 + reference.len())?;
        let target = self
            .scopes
            .target(keyword, reference, within.resource, within.scope)
            .map_err(|message| SchemaError::new(self.source.clone(), message))?;
        self.count(1, target.pointer.len())?;
        self.references.push((self.place.clone(), target));
        Ok(Value::Null)
    }

    /// Writes dynamic references as plain ones.
    fn add_dynamic_references(
        &mut self,
        map: &Map<String, Value>,
        writing: &mut Writing,
        within: Within,
    ) -> Result<(), NotCompiled> {
        for keyword in &REFERENCES[1..] {
            let Some(reference) = map.get(*keyword).and_then(Value::as_str) else { continue };
            if known(map, keyword, within.draft).is_none() {
                continue;
            }
            let is_first = !writing.has("$ref");
            let listed = writing.list("allOf").map_or(0, |list| list.len());
            let path = if is_first { "/$ref".to_owned() } else { format!("/allOf/{listed}/$ref") };
            let place = format!("{}{path}", writing.prefix("$ref"));
            let value = self.inside(&["/", keyword], &[&place], |rewriter| {
                rewriter.places.add(&rewriter.place, &rewriter.source);
                rewriter.reference(keyword, reference, within)
            })?;
            if is_first {
                writing.put("$ref", value);
            } else if let Some(list) = writing.list("allOf") {
                list.push(json!({ "$ref": value }));
            } else {
                writing.put("allOf", json!([{ "$ref": value }]));
            }
        }
        Ok(())
    }

    fn finish(&mut self, map: &Map<String, Value>, writing: Writing) -> Map<String, Value> {
        let Writing { mut outer, inner, is_wrapped } = writing;
        if is_wrapped {
            outer.insert("anyOf".to_owned(), json!([inner, { "type": "null" }]));
            let (source, place) = (&self.source, &self.place);
            self.places.add(&format!("{place}/anyOf"), source);
            self.places.add(&format!("{place}/anyOf/0"), source);
            self.places.add(&format!("{place}/anyOf/1"), &format!("{source}/nullable"));
        } else if foreign::is_nullable(map) {
            foreign::allow_null(&mut outer);
        }
        if let Some(examples) = foreign::examples(map, self.source.is_empty()) {
            let description = match outer.get("description").and_then(Value::as_str) {
                Some(description) => format!("{description}\n{examples}"),
                None => examples,
            };
            outer.insert("description".to_owned(), description.into());
        }
        outer
    }

    fn copy(&mut self, value: &Value) -> Result<Value, NotCompiled> {
        self.count_all(value)?;
        Ok(value.clone())
    }

    fn count_all(&mut self, value: &Value) -> Result<(), NotCompiled> {
        match value {
            Value::Array(values) => values.iter().try_for_each(|value| self.count_all(value))?,
            Value::Object(members) => {
                for (name, value) in members {
                    self.count(0, name.len())?;
                    self.count_all(value)?;
                }
            }
            _ => {}
        }
        self.count(1, value.as_str().map_or(0, str::len))
    }

    /// Counts values and bytes before they are written.
    fn count(&mut self, nodes: usize, bytes: usize) -> Result<(), NotCompiled> {
        self.work.spend(nodes)?;
        let left = self.nodes_left.checked_sub(nodes).zip(self.bytes_left.checked_sub(bytes));
        let Some((nodes_left, bytes_left)) = left else {
            let message = "becomes too large once every schema that its references lead to is read";
            return Err(SchemaError::new(self.source.clone(), message).into());
        };
        (self.nodes_left, self.bytes_left) = (nodes_left, bytes_left);
        Ok(())
    }
}
