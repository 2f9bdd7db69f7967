//! From the caller's schema to nodes.

mod causes;

use std::cmp::Ordering;
use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use serde_json::{Map, Value, json};

use super::document::{Document, REFERENCES, escape};
use super::empty;
use super::metered::BYTES_PER_STEP;
use super::number::{self, Bound};
use super::order::Order;
use super::shape::{Additional, Annotations, Node, Shape, Types};
use super::work::{Stopped, Work};
use super::{NotCompiled, SchemaError};

/// Nodes and shapes to send. Gemini answers far smaller schemas with "too many states for serving".
const MAX_SIZE: usize = 10_000;

/// Steps to read and to merge nodes before giving up: references can double at every step. A
/// document may take [`STEPS_PER_VALUE`] for each of its values where that is more.
const MIN_STEPS: usize = 50_000;

/// Reading a value takes about two steps, and merging it in an `allOf` a few more.
const STEPS_PER_VALUE: usize = 8;

/// References and subschemas to go through before giving up on inlining.
const MAX_DEPTH: usize = 64;

/// Nodes of a described schema in which references are spelled out.
const MAX_DESCRIBED: usize = 200;

/// Assertions that neither of Gemini's dialects has.
const DESCRIBED: [&str; 19] = [
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
    "patternProperties",
    "propertyNames",
    "then",
    "unevaluatedItems",
    "unevaluatedProperties",
    "uniqueItems",
];

/// A schema read into nodes.
pub(super) struct Translation {
    pub(super) root: Node,
    /// What the references left in the nodes refer to, by JSON Pointer.
    pub(super) definitions: BTreeMap<String, Node>,
}

/// Reads the document with its references inlined, or kept where they recur or would blow up.
pub(super) fn translate(
    document: &Document<'_>,
    values: usize,
    work: &Work,
) -> Result<Translation, NotCompiled> {
    let limit = MIN_STEPS.max(values.saturating_mul(STEPS_PER_VALUE));
    let run = |inline| Parser::new(document, inline, Steps::new(limit, work)).run();
    let translation = match run(true) {
        Err(Stop::TooLarge(TooLarge::Steps)) => run(false),
        inlined => inlined,
    };
    translation.map_err(|stop| match stop {
        Stop::Refused(error) => error.into(),
        Stop::TooLarge(TooLarge::Stopped) => Stopped.into(),
        Stop::TooLarge(TooLarge::Steps) => {
            let message = format!(
                "holds more than {MAX_SIZE} schemas once unions are merged, or takes more than \
                 {limit} steps to merge"
            );
            SchemaError::new("", message).into()
        }
    })
}

/// The steps that a translation has taken.
pub(super) struct Steps<'a> {
    taken: usize,
    limit: usize,
    work: &'a Work,
}

/// Why a translation goes no further.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum TooLarge {
    /// It takes too many steps, or gives too large a schema.
    Steps,
    /// The work as a whole was stopped.
    Stopped,
}

impl<'a> Steps<'a> {
    pub(super) fn new(limit: usize, work: &'a Work) -> Self {
        Self { taken: 0, limit, work }
    }

    /// Counts steps that are about to be taken.
    pub(super) fn take(&mut self, steps: usize) -> Result<(), TooLarge> {
        self.taken = self.taken.saturating_add(steps);
        if self.taken > self.limit {
            return Err(TooLarge::Steps);
        }
        self.work.spend(steps).map_err(|Stopped| TooLarge::Stopped)
    }
}

enum Stop {
    TooLarge(TooLarge),
    Refused(SchemaError),
}

impl From<TooLarge> for Stop {
    fn from(reason: TooLarge) -> Self {
        Self::TooLarge(reason)
    }
}

impl From<SchemaError> for Stop {
    fn from(error: SchemaError) -> Self {
        Self::Refused(error)
    }
}

struct Parser<'a> {
    document: &'a Document<'a>,
    inline: bool,
    /// The references being followed, each with the number of properties and items around it.
    trail: Vec<(String, usize)>,
    descents: usize,
    depth: usize,
    steps: Steps<'a>,
    pending: Vec<String>,
    definitions: BTreeMap<String, Node>,
    /// Why schemas allow no value, by their JSON Pointers.
    causes: HashMap<String, SchemaError>,
}

impl<'a> Parser<'a> {
    fn new(document: &'a Document<'a>, inline: bool, steps: Steps<'a>) -> Self {
        Self {
            document,
            inline,
            trail: Vec::new(),
            descents: 0,
            depth: 0,
            steps,
            pending: Vec::new(),
            definitions: BTreeMap::new(),
            causes: HashMap::new(),
        }
    }

    fn run(mut self) -> Result<Translation, Stop> {
        let root = self.definition("")?;
        if root.is_never() {
            return Err(self.cause("").into());
        }
        while let Some(pointer) = self.pending.pop() {
            if !self.definitions.contains_key(&pointer) {
                let node = self.definition(&pointer)?;
                self.definitions.insert(pointer, node);
            }
        }
        let size = root.size() + self.definitions.values().map(Node::size).sum::<usize>();
        if size > MAX_SIZE {
            return Err(TooLarge::Steps.into());
        }
        let translation = Translation { root, definitions: self.definitions };
        if empty::is_endless(&translation) {
            let message = "allows no value: each would have to contain another one, without end; \
                           let a property of the cycle be optional, or null";
            return Err(SchemaError::new("", message).into());
        }
        Ok(translation)
    }

    fn definition(&mut self, pointer: &str) -> Result<Node, Stop> {
        self.trail = vec![(pointer.to_owned(), 0)];
        self.node(self.document.at(pointer), pointer)
    }

    fn node(&mut self, schema: &Value, pointer: &str) -> Result<Node, Stop> {
        self.steps.take(1)?;
        let map = match schema {
            Value::Bool(true) => return Ok(Node::any()),
            Value::Bool(false) => return Ok(Node::never()),
            Value::Object(map) => map,
            _ => return Err(SchemaError::new(pointer, "is not a schema").into()),
        };
        if self.inline && self.depth >= MAX_DEPTH {
            return Err(TooLarge::Steps.into());
        }
        self.depth += 1;
        let node = self.conjunction(map, pointer)?;
        self.depth -= 1;
        Ok(node)
    }

    fn conjunction(&mut self, map: &Map<String, Value>, pointer: &str) -> Result<Node, Stop> {
        let own = self.shape(map, pointer)?;
        let why = own.why_empty();
        let mut node = Node::of(own.settle(&mut self.steps)?);
        node.prune(&mut self.steps)?;
        if let Some(why) = why {
            self.note_cause(pointer, why);
        }
        let mut order = Order::of(map);
        order.add("properties", &node);
        node.annotations = annotations(map);
        for keyword in REFERENCES {
            if let Some(reference) = map.get(keyword).and_then(Value::as_str) {
                let place = format!("{pointer}/{keyword}");
                let target = self.follow(reference, &place)?;
                order.add(keyword, &target);
                self.require(
                    &mut node,
                    target,
                    (pointer, &place),
                    || json!({ keyword: reference }),
                )?;
            }
        }
        for (i, schema) in list(map, "allOf").iter().enumerate() {
            let place = format!("{pointer}/allOf/{i}");
            let part = self.node(schema, &place)?;
            order.add("allOf", &part);
            self.require(&mut node, part, (pointer, &place), || schema.clone())?;
        }
        // Gemini reads oneOf as anyOf (Gemini API, structured output: JSON Schema support), which
        // only widens.
        for keyword in ["anyOf", "oneOf"] {
            if let Some(Value::Array(schemas)) = map.get(keyword) {
                let place = format!("{pointer}/{keyword}");
                let union = self.union(schemas, &place)?;
                order.add(keyword, &union);
                self.require(&mut node, union, (pointer, &place), || json!({ keyword: schemas }))?;
            }
        }
        self.prune(&mut node, pointer)?;
        order.arrange(&mut node);
        let described = described(map);
        if !described.is_empty() {
            let described = self.spell_out(&Value::Object(described))?;
            node.annotations.described.push(described);
        }
        Ok(node)
    }

    /// Requires `part` of `node` too, and describes `schema`, which it comes from, where no node
    /// says all of both. `places` are those of the two.
    fn require(
        &mut self,
        node: &mut Node,
        part: Node,
        places: (&str, &str),
        schema: impl FnOnce() -> Value,
    ) -> Result<(), Stop> {
        let (had_value, part_has_value) = (!node.is_never(), !part.is_never());
        if !node.narrow(part, &mut self.steps)? {
            node.annotations.described.push(self.spell_out(&schema())?);
        }
        if had_value && node.is_never() {
            let (pointer, place) = places;
            let cause = if part_has_value {
                let message = "allows no value that the keywords beside it allow";
                SchemaError::new(place, message)
            } else {
                self.cause(place)
            };
            self.causes.insert(pointer.to_owned(), cause);
        }
        Ok(())
    }

    fn union(&mut self, schemas: &[Value], pointer: &str) -> Result<Node, Stop> {
        let nodes = schemas
            .iter()
            .enumerate()
            .map(|(i, schema)| self.node(schema, &format!("{pointer}/{i}")));
        let nodes: Vec<Node> = nodes.collect::<Result<_, _>>()?;
        if nodes.iter().all(Node::is_never) && !nodes.is_empty() {
            let cause = self.cause(&format!("{pointer}/0"));
            self.causes.insert(pointer.to_owned(), cause);
        }
        Ok(Node::union(nodes, &mut self.steps)?)
    }

    fn follow(&mut self, reference: &str, pointer: &str) -> Result<Node, Stop> {
        let target = self.document.resolve(reference, pointer)?;
        match self.trail.iter().rfind(|(known, _)| *known == target) {
            Some((_, descents)) if *descents == self.descents => {
                let message = "refers to itself without going into a property or an item";
                Err(SchemaError::new(pointer, message).into())
            }
            None if self.inline => {
                self.trail.push((target.clone(), self.descents));
                let node = self.node(self.document.at(&target), &target)?;
                self.trail.pop();
                if node.is_never() {
                    self.causes.insert(pointer.to_owned(), self.cause(&target));
                }
                Ok(node)
            }
            _ => {
                self.pending.push(target.clone());
                Ok(Node::of(Some(Shape { reference: Some(target), ..Shape::default() })))
            }
        }
    }

    fn shape(&mut self, map: &Map<String, Value>, pointer: &str) -> Result<Shape, Stop> {
        let text = |keyword| map.get(keyword).and_then(Value::as_str).map(str::to_owned);
        let mut shape = Shape {
            types: map.get("type").map_or(Types::ALL, types),
            values: values(map),
            minimum: bound(map, "minimum", "exclusiveMinimum", Ordering::Greater),
            maximum: bound(map, "maximum", "exclusiveMaximum", Ordering::Less),
            min_length: count(map, "minLength"),
            max_length: count(map, "maxLength"),
            pattern: text("pattern"),
            format: text("format"),
            min_items: count(map, "minItems"),
            max_items: count(map, "maxItems"),
            min_properties: count(map, "minProperties"),
            max_properties: count(map, "maxProperties"),
            ..Shape::default()
        };
        self.descents += 1;
        self.read_items(&mut shape, map, pointer)?;
        self.read_properties(&mut shape, map, pointer)?;
        self.descents -= 1;
        Ok(shape)
    }

    /// Tuples are `prefixItems` and `items` since draft 2020-12, `items` and `additionalItems`
    /// before.
    fn read_items(
        &mut self,
        shape: &mut Shape,
        map: &Map<String, Value>,
        pointer: &str,
    ) -> Result<(), Stop> {
        let is_tuple = map.get("items").is_some_and(Value::is_array);
        let (first, rest) =
            if is_tuple { ("items", "additionalItems") } else { ("prefixItems", "items") };
        for (i, schema) in list(map, first).iter().enumerate() {
            shape.prefix_items.push(self.node(schema, &format!("{pointer}/{first}/{i}"))?);
        }
        if let Some(schema) = map.get(rest) {
            shape.items = Some(Box::new(self.node(schema, &format!("{pointer}/{rest}"))?));
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
            let node = self.node(schema, &format!("{pointer}/properties/{}", escape(name)))?;
            shape.properties.insert(name.clone(), node);
        }
        let names = list(map, "required").iter().filter_map(Value::as_str);
        shape.required = names.map(str::to_owned).collect();
        shape.additional = match map.get("additionalProperties") {
            // What may be added then depends on patterns of names, and is described.
            _ if map.contains_key("patternProperties") => Additional::Welcome,
            Some(Value::Bool(true)) => Additional::Welcome,
            Some(schema) => {
                let node = self.node(schema, &format!("{pointer}/additionalProperties"))?;
                Additional::Fitting(Box::new(node))
            }
            None => match map.get("unevaluatedProperties") {
                None | Some(Value::Bool(false)) => Additional::Unsaid,
                Some(_) => Additional::Welcome,
            },
        };
        Ok(())
    }

    /// A schema for a description, where no reference can be looked up.
    fn spell_out(&mut self, schema: &Value) -> Result<Arc<str>, Stop> {
        let mut left = MAX_DESCRIBED;
        Ok(self.substitute(schema, &mut Vec::new(), &mut left)?.to_string().into())
    }

    fn substitute(
        &mut self,
        schema: &Value,
        trail: &mut Vec<String>,
        left: &mut usize,
    ) -> Result<Value, Stop> {
        *left = left.saturating_sub(1);
        self.steps.take(1 + schema.as_str().map_or(0, str::len) / BYTES_PER_STEP)?;
        Ok(match schema {
            Value::Object(map) => match self.lone_reference(map) {
                Some(target) if *left > 0 && !trail.contains(&target) => {
                    let found = self.document.at(&target);
                    trail.push(target);
                    let value = self.substitute(found, trail, left)?;
                    trail.pop();
                    value
                }
                _ => Value::Object(
                    map.iter()
                        .map(|(name, v)| Ok((name.clone(), self.substitute(v, trail, left)?)))
                        .collect::<Result<_, Stop>>()?,
                ),
            },
            Value::Array(values) => Value::Array(
                values
                    .iter()
                    .map(|v| self.substitute(v, trail, left))
                    .collect::<Result<_, Stop>>()?,
            ),
            scalar => scalar.clone(),
        })
    }

    fn lone_reference(&self, map: &Map<String, Value>) -> Option<String> {
        let reference = map.get("$ref")?.as_str()?;
        (map.len() == 1).then(|| self.document.resolve(reference, "").ok()).flatten()
    }
}

fn annotations(map: &Map<String, Value>) -> Annotations {
    let text = |keyword| map.get(keyword).and_then(Value::as_str).map(str::to_owned);
    Annotations {
        title: text("title"),
        description: text("description"),
        default: map.get("default").cloned(),
        example: map.get("example").cloned(),
        described: Vec::new(),
    }
}

fn described(map: &Map<String, Value>) -> Map<String, Value> {
    let by_name = map.contains_key("patternProperties");
    let is_described = |keyword: &str| {
        DESCRIBED.contains(&keyword) || (by_name && keyword == "additionalProperties")
    };
    let kept = map.iter().filter(|(keyword, _)| is_described(keyword));
    kept.map(|(keyword, value)| (keyword.clone(), value.clone())).collect()
}

fn list<'m>(map: &'m Map<String, Value>, keyword: &str) -> &'m [Value] {
    map.get(keyword).and_then(Value::as_array).map_or(&[], Vec::as_slice)
}

fn types(value: &Value) -> Types {
    let names = value.as_array().map_or(std::slice::from_ref(value), Vec::as_slice);
    let named = names.iter().filter_map(Value::as_str).map(Types::named);
    named.fold(Types::NONE, |all, one| all | one)
}

fn values(map: &Map<String, Value>) -> Option<Vec<Value>> {
    let listed = map.get("enum").and_then(Value::as_array);
    match (map.get("const"), listed) {
        (Some(only), Some(listed)) => {
            let form = number::canonical(only);
            let has_it = listed.iter().any(|value| number::canonical(value) == form);
            Some(if has_it { vec![only.clone()] } else { Vec::new() })
        }
        (Some(only), None) => Some(vec![only.clone()]),
        (None, listed) => listed.cloned(),
    }
}

/// In draft 4 `exclusive` is a boolean that bears on `inclusive`; later, a number of its own.
fn bound(
    map: &Map<String, Value>,
    inclusive: &str,
    exclusive: &str,
    narrower: Ordering,
) -> Option<Bound> {
    let end = |keyword: &str, exclusive| {
        let value = map.get(keyword)?.as_number()?.clone();
        Some(Bound { value, exclusive })
    };
    let is_exclusive = map.get(exclusive) == Some(&Value::Bool(true));
    Bound::narrow(end(inclusive, is_exclusive), end(exclusive, true), narrower)
}

/// A length or a number of things; JSON Schema lets it be written 2.0.
fn count(map: &Map<String, Value>, keyword: &str) -> Option<u64> {
    let integer = number::integer(map.get(keyword)?.as_number()?)?;
    u64::try_from(integer).ok()
}
