//! What checking an answer may cost in time and in stack.
//!
//! The validator follows a reference anew on each route that leads to it, so references that
//! double at every step take exponential time, and it is recursive, so a long chain of them
//! overflows the stack, which ends the process. Callers are not trusted with either.

use std::collections::HashMap;

use serde_json::{Map, Value};

use super::SchemaError;
use super::document::{APPLICATORS, Document, NAMED_APPLICATORS, REFERENCES};

/// Visits of one place that a schema may cost; a visit takes well under a microsecond.
const MAX_VISITS: u64 = 100_000;

/// Schemas one inside the other, references followed. In a debug build 600 of the greediest kind
/// (`oneOf`, collecting errors) fit in the 2 MiB of a worker's stack, and 1200 do not.
const MAX_LEVELS: usize = 300;

/// The same for one answer, which takes a recursive schema round several times.
const MAX_LEVELS_OF_ANSWER: usize = 500;

/// Keywords whose subschemas bear on different places of an instance, never on the same one.
const DISJOINT: [&str; 6] = [
    "additionalItems",
    "additionalProperties",
    "items",
    "prefixItems",
    "properties",
    "unevaluatedItems",
];

/// Keywords that only hold schemas for others to refer to.
const DEFINITIONS: [&str; 2] = ["$defs", "definitions"];

/// The cost of checking one place of an answer.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Cost {
    /// Visits along the routes without recursion.
    visits: u64,
    /// How many routes lead from one turn of a recursion to the next.
    recurring: u64,
    /// Schemas one inside the other, up to where the recursion starts again.
    levels: usize,
}

impl Cost {
    /// Adds up the routes through the document; refuses it when there are too many.
    pub(super) fn of(document: &Document<'_>) -> Result<Self, SchemaError> {
        let mut survey = Survey { document, targets: HashMap::new(), depth: 0 };
        let cost = survey.target("");
        if cost.levels > MAX_LEVELS {
            let message = format!("its references form a chain of more than {MAX_LEVELS} schemas");
            return Err(SchemaError::new("", message));
        }
        if cost.visits > MAX_VISITS {
            let message = "its references lead to the same definitions over and over";
            return Err(SchemaError::new("", message));
        }
        Ok(cost)
    }

    /// Whether the stack holds the check of `instance`.
    pub(super) fn fits_stack(self, instance: &Value) -> bool {
        let turns = if self.recurring > 0 { 1 + depth(instance) } else { 1 };
        turns.saturating_mul(self.levels) <= MAX_LEVELS_OF_ANSWER
    }

    /// Whether there is time to collect every violation in `instance`. Merely to find out whether
    /// there is one, the validator remembers what it saw in a recursion.
    pub(super) fn allows_collecting(self, instance: &Value) -> bool {
        let turns = u32::try_from(depth(instance)).unwrap_or(u32::MAX);
        let routes = self.recurring.max(1).saturating_pow(turns);
        routes.saturating_mul(self.visits) <= MAX_VISITS
    }

    fn plus(self, other: Self) -> Self {
        Self {
            visits: self.visits.saturating_add(other.visits),
            recurring: self.recurring.saturating_add(other.recurring),
            levels: self.levels.max(other.levels),
        }
    }

    fn max(self, other: Self) -> Self {
        Self {
            visits: self.visits.max(other.visits),
            recurring: self.recurring.max(other.recurring),
            levels: self.levels.max(other.levels),
        }
    }
}

struct Survey<'a> {
    document: &'a Document<'a>,
    /// None for those being surveyed, which a reference to them re-enters.
    targets: HashMap<String, Option<Cost>>,
    depth: usize,
}

impl Survey<'_> {
    fn target(&mut self, pointer: &str) -> Cost {
        match self.targets.get(pointer) {
            Some(Some(known)) => return *known,
            Some(None) => return Cost { visits: 1, recurring: 1, levels: 0 },
            None => {}
        }
        self.targets.insert(pointer.to_owned(), None);
        let cost = self.schema(self.document.at(pointer));
        self.targets.insert(pointer.to_owned(), Some(cost));
        cost
    }

    fn schema(&mut self, schema: &Value) -> Cost {
        let Value::Object(map) = schema else { return Cost::default() };
        if self.depth > MAX_LEVELS {
            return Cost { levels: self.depth, ..Cost::default() };
        }
        self.depth += 1;
        let inside = self.conjunction(map);
        self.depth -= 1;
        Cost { visits: inside.visits.saturating_add(1), levels: inside.levels + 1, ..inside }
    }

    fn conjunction(&mut self, map: &Map<String, Value>) -> Cost {
        let mut same_place = self.references(map);
        let mut other_place = Cost::default();
        for (keyword, value) in map {
            for cost in self.inside(keyword, value) {
                if DISJOINT.contains(&keyword.as_str()) {
                    other_place = other_place.max(cost);
                } else {
                    same_place = same_place.plus(cost);
                }
            }
        }
        same_place.plus(other_place)
    }

    fn references(&mut self, map: &Map<String, Value>) -> Cost {
        let references = REFERENCES.iter().filter_map(|keyword| map.get(*keyword)?.as_str());
        references
            .filter_map(|reference| self.document.resolve(reference, "").ok())
            .map(|target| self.target(&target))
            .fold(Cost::default(), Cost::plus)
    }

    fn inside(&mut self, keyword: &str, value: &Value) -> Vec<Cost> {
        if DEFINITIONS.contains(&keyword) {
            return Vec::new();
        }
        match value {
            Value::Object(named) if NAMED_APPLICATORS.contains(&keyword) => {
                named.values().map(|schema| self.schema(schema)).collect()
            }
            Value::Array(list) if APPLICATORS.contains(&keyword) => {
                list.iter().map(|schema| self.schema(schema)).collect()
            }
            schema if APPLICATORS.contains(&keyword) => vec![self.schema(schema)],
            _ => Vec::new(),
        }
    }
}

fn depth(value: &Value) -> usize {
    match value {
        Value::Object(map) => 1 + map.values().map(depth).max().unwrap_or_default(),
        Value::Array(list) => 1 + list.iter().map(depth).max().unwrap_or_default(),
        _ => 0,
    }
}
