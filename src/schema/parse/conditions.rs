//! The names of properties that only conditions mention.
//!
//! Gemini adds no properties to those that a sent object lists. If `then`, `else` or a dependency
//! requires one that is not listed elsewhere, no answer would be valid, so it is listed too.

use indexmap::IndexMap;
use serde_json::{Map, Value};

use super::keywords::list;
use super::{Parser, Stop};
use crate::schema::pointer::escape;
use crate::schema::shape::{Node, Types};

impl Parser<'_> {
    /// Adds to the objects of `node` the properties that the conditions of a schema mention.
    pub(super) fn mention_names(
        &mut self,
        node: &mut Node,
        map: &Map<String, Value>,
        pointer: &str,
    ) -> Result<(), Stop> {
        const CONDITIONS: [&str; 5] =
            ["dependencies", "dependentRequired", "dependentSchemas", "if", "not"];
        if CONDITIONS.iter().any(|keyword| map.contains_key(*keyword)) {
            self.mention_conditions(node, map, pointer)?;
        }
        Ok(())
    }

    fn mention_conditions(
        &mut self,
        node: &mut Node,
        map: &Map<String, Value>,
        pointer: &str,
    ) -> Result<(), Stop> {
        let mut names = IndexMap::new();
        if map.contains_key("if") {
            for keyword in ["then", "else"] {
                if let Some(schema) = map.get(keyword) {
                    self.collect(schema, &format!("{pointer}/{keyword}"), &mut names)?;
                }
            }
        }
        for keyword in ["dependentSchemas", "dependentRequired", "dependencies"] {
            for (name, dependency) in
                map.get(keyword).and_then(Value::as_object).into_iter().flatten()
            {
                let place = format!("{pointer}/{keyword}/{}", escape(name));
                match dependency {
                    Value::Array(required) => {
                        any_of_each(required.iter().filter_map(Value::as_str), &mut names);
                    }
                    schema => self.collect(schema, &place, &mut names)?,
                }
            }
        }
        for schema in ["if", "not"].into_iter().filter_map(|keyword| map.get(keyword)) {
            self.collect_tested(schema, &mut names)?;
        }
        if names.is_empty() {
            return Ok(());
        }
        let outer = self.enter_merge();
        node.expand(self)?;
        self.leave_merge(outer);
        let weight: usize = names.values().flatten().map(Node::weight).sum();
        for shape in &mut node.shapes {
            if shape.reference.is_none() && shape.types.intersects(Types::OBJECT) {
                self.take(weight)?;
                for (name, nodes) in &names {
                    let node = match &nodes[..] {
                        [] => Node::any(),
                        nodes => Node::any_of(nodes.to_vec(), self)?,
                    };
                    shape.mention([(name.clone(), node)].into_iter().collect(), self)?;
                }
            }
        }
        Ok(())
    }

    /// Adds the properties that a schema lists or requires.
    fn collect(
        &mut self,
        schema: &Value,
        pointer: &str,
        names: &mut IndexMap<String, Vec<Node>>,
    ) -> Result<(), Stop> {
        let mut node = self.node(schema, pointer)?;
        let outer = self.enter_merge();
        node.expand(self)?;
        self.leave_merge(outer);
        for shape in node.shapes {
            let required = shape.required.iter().map(String::as_str);
            any_of_each(required.filter(|name| !shape.properties.contains_key(*name)), names);
            for (name, node) in shape.properties.into_iter().chain(shape.mentioned) {
                if !node.is_never() {
                    names.entry(name).or_default().push(node);
                }
            }
        }
        Ok(())
    }

    /// Adds the properties that a condition tests, which may have any value.
    fn collect_tested(
        &mut self,
        schema: &Value,
        names: &mut IndexMap<String, Vec<Node>>,
    ) -> Result<(), Stop> {
        self.take(1)?;
        let Value::Object(map) = schema else { return Ok(()) };
        let listed = map.get("properties").and_then(Value::as_object).into_iter().flatten();
        any_of_each(listed.map(|(name, _)| name.as_str()), names);
        for keyword in ["allOf", "anyOf", "oneOf"] {
            for part in list(map, keyword) {
                self.collect_tested(part, names)?;
            }
        }
        Ok(())
    }
}

fn any_of_each<'n>(found: impl Iterator<Item = &'n str>, names: &mut IndexMap<String, Vec<Node>>) {
    for name in found {
        names.entry(name.to_owned()).or_default();
    }
}
