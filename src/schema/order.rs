//! The order of an object's properties, which matters to the quality of an answer (Gemini API,
//! structured output: property ordering).

use std::collections::HashMap;

use serde_json::{Map, Value};

use super::shape::Node;

/// The names of properties that the keywords of one schema give, in the order of the source.
pub(super) struct Order<'m> {
    map: &'m Map<String, Value>,
    /// With the place of the keyword that they come from.
    names: Vec<(usize, Vec<String>)>,
}

impl<'m> Order<'m> {
    pub(super) fn of(map: &'m Map<String, Value>) -> Self {
        Self { map, names: Vec::new() }
    }

    /// Notes what `keyword` says of properties.
    pub(super) fn add(&mut self, keyword: &str, node: &Node) {
        let names: Vec<String> =
            node.shapes.iter().flat_map(|shape| shape.properties.keys()).cloned().collect();
        if !names.is_empty() {
            let place = self.map.keys().position(|key| key == keyword).unwrap_or(usize::MAX);
            self.names.push((place, names));
        }
    }

    /// Brings the properties of a node into that order: those in `propertyOrdering` come first.
    pub(super) fn arrange(mut self, node: &mut Node) {
        let asked = self.map.get("propertyOrdering").and_then(Value::as_array);
        if self.names.len() < 2 && asked.is_none() {
            return;
        }
        self.names.sort_by_key(|(place, _)| *place);
        let asked = asked.into_iter().flatten().filter_map(Value::as_str);
        let noted = self.names.iter().flat_map(|(_, names)| names).map(String::as_str);
        let mut ranks: HashMap<&str, usize> = HashMap::new();
        for name in asked.chain(noted) {
            let next = ranks.len();
            ranks.entry(name).or_insert(next);
        }
        let rank = |name: &str| ranks.get(name).copied().unwrap_or(usize::MAX);
        for shape in &mut node.shapes {
            shape.properties.sort_by(|a, _, b, _| rank(a).cmp(&rank(b)));
        }
    }
}
