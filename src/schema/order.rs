//! The order of an object's properties, which matters to the quality of an answer (Gemini API,
//! structured output: property ordering).

use std::collections::HashMap;

use serde_json::{Map, Value};

use super::parse::{Parser, Stop};
use super::shape::{Node, Shape};

/// The most references that are followed to find the order of a definition's properties.
const MAX_REFERENCES: usize = 4;

/// The properties that the keywords of one schema list, in the order of the source.
pub(super) struct Order<'m> {
    map: &'m Map<String, Value>,
    /// By the position of the keyword that lists them.
    given: Vec<(usize, Vec<Given>)>,
}

enum Given {
    Name(String),
    /// All properties of a definition.
    Definition(String),
}

impl<'m> Order<'m> {
    pub(super) fn of(map: &'m Map<String, Value>) -> Self {
        Self { map, given: Vec::new() }
    }

    /// Notes the properties that `keyword` lists.
    pub(super) fn add(&mut self, keyword: &str, node: &Node) {
        let of_shape = |shape: &Shape| {
            let definition = shape.reference.clone().map(Given::Definition);
            let names: Vec<Given> =
                shape.properties.keys().cloned().map(Given::Name).chain(definition).collect();
            names
        };
        let given: Vec<Given> = node.shapes.iter().flat_map(of_shape).collect();
        if !given.is_empty() {
            let place = self.map.keys().position(|key| key == keyword).unwrap_or(usize::MAX);
            self.given.push((place, given));
        }
    }
}

impl Parser<'_> {
    /// Sorts the properties of a node in that order, those in `propertyOrdering` first.
    pub(super) fn arrange(&mut self, mut order: Order<'_>, node: &mut Node) -> Result<(), Stop> {
        let asked = order.map.get("propertyOrdering").and_then(Value::as_array);
        if order.given.len() < 2 && asked.is_none() {
            return Ok(());
        }
        order.given.sort_by_key(|(place, _)| *place);
        let mut names = Vec::new();
        for given in order.given.iter().flat_map(|(_, given)| given) {
            match given {
                Given::Name(name) => names.push(name.as_str()),
                Given::Definition(pointer) => self.add_names(pointer, MAX_REFERENCES, &mut names),
            }
        }
        let asked = asked.into_iter().flatten().filter_map(Value::as_str);
        let mut ranks: HashMap<&str, usize> = HashMap::new();
        for name in asked.chain(names.iter().copied()) {
            let next = ranks.len();
            ranks.entry(name).or_insert(next);
        }
        let rank = |name: &str| ranks.get(name).copied().unwrap_or(usize::MAX);
        for shape in &mut node.shapes {
            shape.properties.sort_by(|a, _, b, _| rank(a).cmp(&rank(b)));
        }
        let count = names.len() + ranks.len();
        self.take(count)
    }

    /// Adds the names of a definition's properties, if it has been read.
    fn add_names<'p>(&'p self, pointer: &str, references: usize, names: &mut Vec<&'p str>) {
        for shape in self.definitions.get(pointer).into_iter().flat_map(|node| &node.shapes) {
            names.extend(shape.properties.keys().map(String::as_str));
            if let Some(target) = shape.reference.as_ref().filter(|_| references > 0) {
                self.add_names(target, references - 1, names);
            }
        }
    }
}
