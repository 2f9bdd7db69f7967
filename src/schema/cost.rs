//! Bounds the time and the stack that checking an answer takes.
//!
//! The validator follows a reference again on each path to it, so references that double at every
//! step take exponential time. It is recursive, so a long chain of references takes stack. Schemas
//! are hostile input, so both are bounded.
//!
//! At one place of an answer, the nested schemas that the validator is in form a chain, in which
//! `allOf`, `not`, `$ref` and similar keywords lead from each to the next. A keyword such as
//! `items` leads to an inner place, where another chain begins. So the stack is bounded by the
//! longest chain times the levels of the answer.

use std::collections::{HashMap, HashSet};
use std::ptr;

use serde_json::{Map, Value};

use super::SchemaError;
use super::document::{APPLICATORS, Document, NAMED_APPLICATORS, REFERENCES};

/// The most visits to schemas at one place. A visit takes well under a microsecond.
const MAX_VISITS: u64 = 100_000;

/// The most nested schemas, with references followed: compiling is recursive as well.
const MAX_LEVELS: usize = 300;

/// The visits that count as one step.
const VISITS_PER_STEP: u64 = 16;

/// Keywords whose subschemas apply to inner values, or to the names of properties.
const INWARD: [&str; 11] = [
    "additionalItems",
    "additionalProperties",
    "contains",
    "contentSchema",
    "items",
    "patternProperties",
    "prefixItems",
    "properties",
    "propertyNames",
    "unevaluatedItems",
    "unevaluatedProperties",
];

/// Keywords that only hold schemas for others to refer to.
const DEFINITIONS: [&str; 2] = ["$defs", "definitions"];

/// The cost of checking one place of an answer.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct CheckCost {
    visits: u64,
    /// The longest chain of schemas, each of which leads to the next at the same place.
    chain: usize,
}

impl CheckCost {
    /// Adds up the paths through the document; refuses it when there are too many.
    pub(super) fn of(document: &Document<'_>) -> Result<Self, SchemaError> {
        let mut nesting = Nesting { document, targets: HashMap::new(), depth: 0 };
        let levels = nesting.target(document.root);
        let (cost, chain) = Places::new(document).most();
        if levels.max(cost.chain) > MAX_LEVELS {
            let message = format!("its references form a chain of more than {MAX_LEVELS} schemas");
            return Err(SchemaError::new("", message));
        }
        if cost.visits > MAX_VISITS {
            let message = "its references lead to the same definitions over and over";
            return Err(SchemaError::new("", message));
        }
        Ok(Self { chain, ..cost })
    }

    /// The most nested schemas that the validator is in while it checks `instance`.
    pub(super) fn levels(self, instance: &Value) -> usize {
        (1 + depth(instance)).saturating_mul(self.chain)
    }

    /// The steps to count for one place in addition to its reads: schemas that only lead to others
    /// read nothing.
    pub(super) fn steps_of_place(self) -> usize {
        usize::try_from(self.visits / VISITS_PER_STEP).unwrap_or(usize::MAX)
    }
}

/// Adds up the costs at each place.
struct Places<'a> {
    document: &'a Document<'a>,
    /// The costs by address; none for schemas that are being added up.
    known: HashMap<*const Value, Option<CheckCost>>,
    /// Schemas for inner places.
    inward: Vec<&'a Value>,
    /// Schemas that a reference led back to while they were being added up.
    reentered: HashSet<*const Value>,
    most: CheckCost,
}

impl<'a> Places<'a> {
    fn new(document: &'a Document<'a>) -> Self {
        let inward = vec![document.root];
        let (known, reentered) = (HashMap::new(), HashSet::new());
        Self { document, known, inward, reentered, most: CheckCost::default() }
    }

    /// The highest cost at one place, and the longest chain, cycles included. The validator enters
    /// a schema once for each place. So a chain through cycles is at most as long as the number of
    /// schemas, and as the longest acyclic piece for each schema that is entered again.
    fn most(mut self) -> (CheckCost, usize) {
        while let Some(schema) = self.inward.pop() {
            self.add(schema, 0);
        }
        let pieces = self.most.chain.saturating_mul(1 + self.reentered.len());
        (self.most, pieces.min(1 + self.known.len()))
    }

    fn add(&mut self, schema: &'a Value, depth: usize) -> CheckCost {
        let Value::Object(map) = schema else { return CheckCost::default().around() };
        if depth > MAX_LEVELS {
            return CheckCost { visits: 1, chain: depth };
        }
        match self.known.get(&ptr::from_ref(schema)) {
            Some(Some(known)) => return *known,
            Some(None) => {
                self.reentered.insert(schema);
                return CheckCost::default();
            }
            None => {}
        }
        self.known.insert(schema, None);
        let mut cost = self.references(map, depth + 1);
        for (keyword, value) in map {
            for inside in inside(keyword, value) {
                if INWARD.contains(&keyword.as_str()) {
                    self.inward.push(inside);
                } else {
                    cost = cost.plus(self.add(inside, depth + 1));
                }
            }
        }
        let cost = cost.around();
        self.known.insert(schema, Some(cost));
        self.most = self.most.max(cost);
        cost
    }

    fn references(&mut self, map: &'a Map<String, Value>, depth: usize) -> CheckCost {
        let mut cost = CheckCost::default();
        for reference in REFERENCES.iter().filter_map(|keyword| map.get(*keyword)?.as_str()) {
            if let Ok(target) = self.document.resolve(reference, "") {
                cost = cost.plus(self.add(self.document.at(&target), depth));
            }
        }
        cost
    }
}

impl CheckCost {
    /// The cost of a schema around those with this cost.
    fn around(self) -> Self {
        Self { visits: self.visits.saturating_add(1), chain: self.chain + 1 }
    }

    fn plus(self, other: Self) -> Self {
        Self { visits: self.visits.saturating_add(other.visits), ..self.max(other) }
    }

    fn max(self, other: Self) -> Self {
        Self { visits: self.visits.max(other.visits), chain: self.chain.max(other.chain) }
    }
}

/// The nesting of schemas, up to where a recursion starts again.
struct Nesting<'a> {
    document: &'a Document<'a>,
    /// The levels by address; none for schemas that are being followed.
    targets: HashMap<*const Value, Option<usize>>,
    depth: usize,
}

impl Nesting<'_> {
    fn target(&mut self, schema: &Value) -> usize {
        if let Some(known) = self.targets.get(&ptr::from_ref(schema)) {
            return known.unwrap_or_default();
        }
        self.targets.insert(schema, None);
        let levels = self.schema(schema);
        self.targets.insert(schema, Some(levels));
        levels
    }

    fn schema(&mut self, schema: &Value) -> usize {
        let Value::Object(map) = schema else { return 0 };
        if self.depth > MAX_LEVELS {
            return self.depth;
        }
        self.depth += 1;
        let references = REFERENCES.iter().filter_map(|keyword| map.get(*keyword)?.as_str());
        let targets = references.filter_map(|reference| self.document.resolve(reference, "").ok());
        let mut levels = 0;
        for target in targets {
            levels = levels.max(self.target(self.document.at(&target)));
        }
        for schema in map.iter().flat_map(|(keyword, value)| inside(keyword, value)) {
            levels = levels.max(self.schema(schema));
        }
        self.depth -= 1;
        levels + 1
    }
}

/// The schemas directly inside a keyword's value, except definitions.
fn inside<'v>(keyword: &str, value: &'v Value) -> impl Iterator<Item = &'v Value> {
    let (mut named, mut listed): (Option<&Map<String, Value>>, &[Value]) = (None, &[]);
    match value {
        Value::Object(_) | Value::Array(_) | Value::Bool(_) if DEFINITIONS.contains(&keyword) => {}
        Value::Object(map) if NAMED_APPLICATORS.contains(&keyword) => named = Some(map),
        Value::Array(list) if APPLICATORS.contains(&keyword) => listed = list,
        Value::Object(_) | Value::Bool(_) if APPLICATORS.contains(&keyword) => {
            listed = std::slice::from_ref(value);
        }
        _ => {}
    }
    named.into_iter().flat_map(Map::values).chain(listed)
}

fn depth(value: &Value) -> usize {
    match value {
        Value::Object(map) => 1 + map.values().map(depth).max().unwrap_or_default(),
        Value::Array(list) => 1 + list.iter().map(depth).max().unwrap_or_default(),
        _ => 0,
    }
}
