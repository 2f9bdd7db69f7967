//! Cycles of references in `responseJsonSchema`.
//!
//! Gemini accepts them only through properties that are not required (Gemini API,
//! `GenerationConfig` reference). Its error message is less strict, and also allows nullable
//! properties and arrays that may be empty; the documented rule is the safe one. So a required
//! property that closes a cycle is sent as optional, and the description says that it is required.
//! The answer is checked against the caller's schema.

use std::collections::{BTreeMap, HashMap, HashSet};

use serde_json::{Map, Value};

use crate::schema::pointer::escape;

/// The most searches for remaining cycles before every required property with a reference becomes
/// optional.
const MAX_ROUNDS: usize = 16;

/// A required property: the JSON Pointer of the object, and the name.
type Required = (String, String);

/// A reference that every value of a definition includes.
struct Edge {
    target: usize,
    /// The innermost required property around the reference.
    required: Option<Required>,
}

/// Removes the properties that close a cycle from `required`.
pub(super) fn open_required_cycles(schema: &mut Value) {
    let names: Vec<String> =
        schema["$defs"].as_object().into_iter().flatten().map(|(name, _)| name.clone()).collect();
    if names.is_empty() {
        return;
    }
    let index: HashMap<&str, usize> =
        names.iter().enumerate().map(|(i, name)| (name.as_str(), i)).collect();
    let mut edges: Vec<Vec<Edge>> = Vec::new();
    for name in &names {
        let mut walk = Walk { index: &index, edges: Vec::new() };
        walk.schema(&schema["$defs"][name], &format!("/$defs/{}", escape(name)), None);
        edges.push(walk.edges);
    }
    let mut optional: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for (object, name) in closing(&edges) {
        optional.entry(object).or_default().push(name);
    }
    for (object, names) in optional {
        if let Some(Value::Object(object)) = schema.pointer_mut(&object) {
            make_optional(object, &names);
        }
    }
}

struct Walk<'i> {
    index: &'i HashMap<&'i str, usize>,
    edges: Vec<Edge>,
}

impl Walk<'_> {
    fn schema(&mut self, schema: &Value, pointer: &str, required: Option<&Required>) {
        let Value::Object(map) = schema else { return };
        let name = map.get("$ref").and_then(Value::as_str).and_then(|r| r.strip_prefix("#/$defs/"));
        if let Some(target) = name.and_then(|name| self.index.get(name)) {
            self.edges.push(Edge { target: *target, required: required.cloned() });
        }
        for name in map.get("required").and_then(Value::as_array).into_iter().flatten() {
            let Some(name) = name.as_str() else { continue };
            if let Some(property) = map.get("properties").and_then(|all| all.get(name)) {
                let place = format!("{pointer}/properties/{}", escape(name));
                let required = (pointer.to_owned(), name.to_owned());
                self.schema(property, &place, Some(&required));
            }
        }
        if let Some(items) = map.get("items") {
            self.schema(items, &format!("{pointer}/items"), required);
        }
        for keyword in ["anyOf", "prefixItems"] {
            let parts = map.get(keyword).and_then(Value::as_array).into_iter().flatten();
            for (i, part) in parts.enumerate() {
                self.schema(part, &format!("{pointer}/{keyword}/{i}"), required);
            }
        }
    }
}

/// The required properties to make optional, so that no cycle is left except through arrays alone.
fn closing(edges: &[Vec<Edge>]) -> Vec<Required> {
    let mut optional = HashSet::new();
    let mut order = Vec::new();
    for _ in 0..MAX_ROUNDS {
        let is_done = open_found(edges, &mut optional, &mut order);
        if is_done {
            return order;
        }
    }
    let all = edges.iter().flatten().filter_map(|edge| edge.required.clone());
    all.filter(|required| optional.insert(required.clone())).for_each(|r| order.push(r));
    order
}

/// Follows the references depth first, and makes a property optional for each reference that closes
/// a cycle. Returns false if one further up was made optional, so that other cycles may remain.
fn open_found(
    edges: &[Vec<Edge>],
    optional: &mut HashSet<Required>,
    order: &mut Vec<Required>,
) -> bool {
    let mut is_done = true;
    let (mut seen, mut open) = (vec![false; edges.len()], vec![false; edges.len()]);
    for start in 0..edges.len() {
        if std::mem::replace(&mut seen[start], true) {
            continue;
        }
        open[start] = true;
        // The definitions on the current path, each with the number of references followed from it.
        let mut way: Vec<(usize, usize)> = vec![(start, 0)];
        while let Some((here, next)) = way.last_mut() {
            let here = *here;
            let Some(edge) = edges[here].get(*next) else {
                open[here] = false;
                way.pop();
                continue;
            };
            *next += 1;
            if edge.required.as_ref().is_some_and(|required| optional.contains(required)) {
                continue;
            }
            if !std::mem::replace(&mut seen[edge.target], true) {
                open[edge.target] = true;
                way.push((edge.target, 0));
            } else if open[edge.target] {
                let closing = edge.required.clone().or_else(|| {
                    let from = way.iter().rposition(|(node, _)| *node == edge.target)?;
                    let steps = way[from..way.len() - 1].iter().rev();
                    let mut followed = steps.map(|(node, next)| &edges[*node][next - 1]);
                    followed.find_map(|step| {
                        step.required.clone().filter(|required| !optional.contains(required))
                    })
                });
                if let Some(required) = closing {
                    is_done &= edge.required.is_some();
                    if optional.insert(required.clone()) {
                        order.push(required);
                    }
                }
            }
        }
    }
    is_done
}

fn make_optional(object: &mut Map<String, Value>, names: &[String]) {
    if let Some(Value::Array(required)) = object.get_mut("required") {
        required.retain(|name| !names.iter().any(|optional| name == optional));
        if required.is_empty() {
            object.shift_remove("required");
        }
    }
    let line = format!("Required: {}", names.join(", "));
    let description = match object.get("description").and_then(Value::as_str) {
        Some(description) => format!("{description}\n{line}"),
        None => line,
    };
    object.insert("description".to_owned(), description.into());
}
