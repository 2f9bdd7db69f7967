//! Loops of references that no finite value satisfies.

use std::collections::{HashMap, HashSet};

use serde_json::Value;

/// A reference from one schema to another. The nodes are the whole schema and all that are referred to.
struct Edge {
    to: usize,
    /// The place of the reference, as Gemini writes it.
    place: String,
    is_required: bool,
}

/// The place of a reference that closes a loop of required properties only. Items of an array count
/// as required, as documented; according to the error message, Gemini accepts loops through arrays
/// that may be empty and through nullable properties.
pub(super) fn required_loop(root: &Value) -> Option<String> {
    let graph = Graph::of(root);
    let component = graph.components();
    graph.edges.iter().enumerate().find_map(|(from, edges)| {
        let closes = |edge: &&Edge| edge.is_required && component[from] == component[edge.to];
        edges.iter().find(closes).map(|edge| edge.place.clone())
    })
}

#[derive(Default)]
struct Graph {
    edges: Vec<Vec<Edge>>,
}

/// The schemas that are referred to, by JSON Pointer.
struct Known<'v> {
    root: &'v Value,
    indices: HashMap<String, usize>,
    pointers: Vec<String>,
}

impl Graph {
    fn of(root: &Value) -> Self {
        let mut known = Known { root, indices: HashMap::new(), pointers: Vec::new() };
        known.index("");
        let mut graph = Self::default();
        while let Some(pointer) = known.pointers.get(graph.edges.len()).cloned() {
            let mut edges = Vec::new();
            if let Some(schema) = root.pointer(&pointer) {
                let place = pointer.trim_start_matches('/').replace('/', ".");
                known.walk(schema, &place, false, &mut edges);
            }
            graph.edges.push(edges);
        }
        graph
    }

    /// The number of each schema's strongly connected component (Kosaraju's algorithm).
    fn components(&self) -> Vec<usize> {
        let forward: Vec<Vec<usize>> =
            self.edges.iter().map(|edges| edges.iter().map(|edge| edge.to).collect()).collect();
        let mut backward = vec![Vec::new(); forward.len()];
        for (from, targets) in forward.iter().enumerate() {
            targets.iter().for_each(|to| backward[*to].push(from));
        }
        let mut seen = HashSet::new();
        let mut finished = Vec::new();
        for start in 0..forward.len() {
            visit(start, &forward, &mut seen, &mut finished);
        }
        let mut component = vec![0; forward.len()];
        let mut seen = HashSet::new();
        for start in finished.into_iter().rev() {
            let mut members = Vec::new();
            visit(start, &backward, &mut seen, &mut members);
            members.into_iter().for_each(|member| component[member] = start);
        }
        component
    }
}

/// Adds the unvisited nodes that can be reached, in postorder.
fn visit(start: usize, edges: &[Vec<usize>], seen: &mut HashSet<usize>, found: &mut Vec<usize>) {
    if !seen.insert(start) {
        return;
    }
    let mut way = vec![(start, 0)];
    while let Some((here, next)) = way.last_mut() {
        match edges[*here].get(*next) {
            Some(target) => {
                *next += 1;
                if seen.insert(*target) {
                    way.push((*target, 0));
                }
            }
            None => {
                found.push(*here);
                way.pop();
            }
        }
    }
}

impl Known<'_> {
    fn index(&mut self, pointer: &str) -> usize {
        if let Some(index) = self.indices.get(pointer) {
            return *index;
        }
        self.pointers.push(pointer.to_owned());
        self.indices.insert(pointer.to_owned(), self.pointers.len() - 1);
        self.pointers.len() - 1
    }

    fn walk(&mut self, schema: &Value, place: &str, is_required: bool, edges: &mut Vec<Edge>) {
        if let Some(pointer) = schema["$ref"].as_str().and_then(|r| r.strip_prefix('#'))
            && self.root.pointer(pointer).is_some()
        {
            let to = self.index(pointer);
            edges.push(Edge { to, place: place.to_owned(), is_required });
        }
        for name in schema["required"].as_array().into_iter().flatten().filter_map(Value::as_str) {
            if let Some(property) = schema["properties"].get(name) {
                self.walk(property, &inside(place, &["properties", name]), true, edges);
            }
        }
        if let Some(items) = schema.get("items") {
            self.walk(items, &inside(place, &["items"]), is_required, edges);
        }
        for keyword in ["anyOf", "oneOf", "prefixItems"] {
            for (index, part) in schema[keyword].as_array().into_iter().flatten().enumerate() {
                let place = inside(place, &[keyword, &index.to_string()]);
                self.walk(part, &place, is_required, edges);
            }
        }
    }
}

fn inside(place: &str, steps: &[&str]) -> String {
    let outer = (!place.is_empty()).then_some(place);
    outer.into_iter().chain(steps.iter().copied()).collect::<Vec<_>>().join(".")
}
