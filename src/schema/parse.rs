//! Reads a canonical schema into nodes.

mod causes;
mod conditions;
mod describe;
mod ground;
mod keywords;
mod shapes;

use std::collections::{BTreeMap, HashMap, HashSet};

use serde_json::{Map, Value, json};

use self::causes::Emptied;
use self::keywords::{annotations, list};
use super::document::{Document, REFERENCES};
use super::order::Order;
use super::shape::{Node, Shape};
use super::work::{Stopped, Work};
use super::{NotCompiled, SchemaError};

/// The most nodes and shapes to send, or four for each value of a document if that is more.
const MAX_SIZE: usize = 10_000;

/// The most steps to read and merge nodes, or [`STEPS_PER_VALUE`] for each value of a document if
/// that is more. References can double at every step.
const MIN_STEPS: usize = 50_000;

/// Reading a value takes about two steps, and merging it in an `allOf` a few more. The most that a
/// schema of the public collections takes is 52.
const STEPS_PER_VALUE: usize = 64;

/// The total weight of definitions that may be merged in place of references, plus a weight for
/// each value of the document: each merge sends the definition once more.
const MIN_MERGEABLE: usize = 500;
const MERGEABLE_PER_VALUE: usize = 4;

/// The deepest node in which a reference is followed to be merged with the keywords beside it.
const MAX_DEPTH: usize = 48;

/// A schema read into nodes.
pub(super) struct Translation {
    /// The root, whose JSON Pointer is empty, and the targets of the references in the nodes.
    pub(super) definitions: BTreeMap<String, Node>,
    /// Why schemas allow no value, by their JSON Pointers.
    pub(super) causes: HashMap<String, SchemaError>,
}

/// Reads the document. References are kept, except beside other restrictions: there they are merged
/// with these, as far as the steps suffice.
pub(super) fn translate(
    document: &Document<'_>,
    values: usize,
    work: &Work,
) -> Result<Translation, NotCompiled> {
    let limit = MIN_STEPS.max(values.saturating_mul(STEPS_PER_VALUE));
    let max_size = MAX_SIZE.max(values.saturating_mul(4));
    let run = |mergeable| Parser::new(document, mergeable, Steps::new(limit, work)).run(max_size);
    let translation = match run(MIN_MERGEABLE + MERGEABLE_PER_VALUE * values) {
        Err(Stop::TooLarge(TooLarge::Steps)) => run(0),
        merged => merged,
    };
    translation.map_err(|stop| match stop {
        Stop::Refused(error) => error.into(),
        Stop::TooLarge(TooLarge::Stopped) => Stopped.into(),
        Stop::TooLarge(TooLarge::Steps) => {
            let message = format!(
                "holds more than {max_size} schemas once unions are merged, or takes more than \
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

/// Why a translation stops.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum TooLarge {
    /// It takes too many steps, or the result is too large.
    Steps,
    /// The whole work was stopped.
    Stopped,
}

impl<'a> Steps<'a> {
    pub(super) fn new(limit: usize, work: &'a Work) -> Self {
        Self { taken: 0, limit, work }
    }

    /// Counts steps before they are taken.
    pub(super) fn take(&mut self, steps: usize) -> Result<(), TooLarge> {
        self.taken = self.taken.saturating_add(steps);
        if self.taken > self.limit {
            return Err(TooLarge::Steps);
        }
        self.work.spend(steps).map_err(|Stopped| TooLarge::Stopped)
    }
}

/// Why reading a document stops.
pub(super) enum Stop {
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

/// A document being read.
pub(super) struct Parser<'a> {
    document: &'a Document<'a>,
    /// The remaining weight of definitions that may be merged in place of references.
    mergeable: usize,
    steps: Steps<'a>,
    /// The number of nodes around the one that is read or merged.
    depth: usize,
    pub(super) definitions: BTreeMap<String, Node>,
    /// The targets of all references. Each is read as a definition, and referred to wherever it is.
    targets: HashSet<String>,
    /// Definitions that are referred to and not yet read.
    pending: Vec<String>,
    /// Definitions that are being read.
    open: Vec<String>,
    /// Definitions that replaced a reference in the current merge.
    merging: Vec<String>,
    /// Definitions known not to refer to themselves at the same place; false while this is
    /// determined.
    grounded: HashMap<String, bool>,
    /// The remaining bytes of schemas that descriptions may repeat.
    repeatable: usize,
    /// Why schemas allow no value, by their JSON Pointers.
    causes: HashMap<String, SchemaError>,
}

impl<'a> Parser<'a> {
    fn new(document: &'a Document<'a>, mergeable: usize, steps: Steps<'a>) -> Self {
        Self {
            document,
            mergeable,
            steps,
            depth: 0,
            definitions: BTreeMap::new(),
            targets: HashSet::new(),
            pending: Vec::new(),
            open: Vec::new(),
            merging: Vec::new(),
            grounded: HashMap::new(),
            repeatable: describe::repeatable(document.root),
            causes: HashMap::new(),
        }
    }

    fn run(mut self, max_size: usize) -> Result<Translation, Stop> {
        self.find_targets(self.document.root)?;
        self.ground("", "")?;
        let root = self.definition("")?;
        self.definitions.insert(String::new(), root);
        while let Some(pointer) = self.pending.pop() {
            if !self.definitions.contains_key(&pointer) {
                let node = self.definition(&pointer)?;
                self.definitions.insert(pointer, node);
            }
        }
        let size = self.definitions.values().map(Node::size).sum::<usize>();
        if size > max_size {
            return Err(TooLarge::Steps.into());
        }
        Ok(Translation { definitions: self.definitions, causes: self.causes })
    }

    /// Counts steps before they are taken.
    pub(super) fn take(&mut self, steps: usize) -> Result<(), Stop> {
        Ok(self.steps.take(steps)?)
    }

    /// Begins a merge inside the current one; the returned value ends it.
    pub(super) fn enter_merge(&mut self) -> usize {
        self.depth += 1;
        self.merging.len()
    }

    pub(super) fn leave_merge(&mut self, outer: usize) {
        self.depth -= 1;
        self.merging.truncate(outer);
    }

    /// The definition to merge in place of a reference. None when that would not end, or is too
    /// deep.
    pub(super) fn expand(&mut self, pointer: &str) -> Result<Option<Node>, Stop> {
        let is_under_way = |names: &[String]| names.iter().any(|name| name == pointer);
        if self.mergeable == 0 || self.depth >= MAX_DEPTH || is_under_way(&self.merging) {
            return Ok(None);
        }
        if !self.definitions.contains_key(pointer) {
            if is_under_way(&self.open) {
                return Ok(None);
            }
            let node = self.definition(pointer)?;
            self.definitions.insert(pointer.to_owned(), node);
        }
        let node = &self.definitions[pointer];
        let weight = node.weight();
        self.steps.take(weight)?;
        let Some(left) = self.mergeable.checked_sub(weight) else { return Ok(None) };
        self.mergeable = left;
        self.merging.push(pointer.to_owned());
        Ok(Some(node.clone()))
    }

    /// Collects the targets of references. It does no harm that this includes what only looks like
    /// a reference, as in an `enum`.
    fn find_targets(&mut self, value: &Value) -> Result<(), Stop> {
        self.take(1)?;
        match value {
            Value::Array(values) => values.iter().try_for_each(|value| self.find_targets(value)),
            Value::Object(map) => {
                for reference in REFERENCES.iter().filter_map(|keyword| map.get(*keyword)?.as_str())
                {
                    self.targets.extend(self.document.resolve(reference, "").ok());
                }
                map.values().try_for_each(|value| self.find_targets(value))
            }
            _ => Ok(()),
        }
    }

    fn definition(&mut self, pointer: &str) -> Result<Node, Stop> {
        self.open.push(pointer.to_owned());
        let merging = std::mem::take(&mut self.merging);
        let node = self.read(self.document.at(pointer), pointer)?;
        self.merging = merging;
        self.open.pop();
        Ok(node)
    }

    /// Reads a schema inside another. If it is also the target of a reference, it becomes a
    /// reference.
    fn node(&mut self, schema: &Value, pointer: &str) -> Result<Node, Stop> {
        if schema.is_object() && self.targets.contains(pointer) {
            self.pending.push(pointer.to_owned());
            return Ok(Node::reference(pointer.to_owned()));
        }
        self.read(schema, pointer)
    }

    fn read(&mut self, schema: &Value, pointer: &str) -> Result<Node, Stop> {
        self.take(1)?;
        let map = match schema {
            Value::Bool(true) => return Ok(Node::any()),
            Value::Bool(false) => return Ok(Node::never()),
            Value::Object(map) => map,
            _ => return Err(SchemaError::new(pointer, "is not a schema").into()),
        };
        self.depth += 1;
        let node = self.conjunction(map, pointer)?;
        self.depth -= 1;
        Ok(node)
    }

    // Split up, so that little is on the stack while an inner schema is read.
    fn conjunction(&mut self, map: &Map<String, Value>, pointer: &str) -> Result<Node, Stop> {
        let mut own = Box::default();
        self.shape(&mut own, map, pointer)?;
        let mut order = Order::of(map);
        let mut node = self.settled(own, map, pointer)?;
        order.add("properties", &node);
        self.read_references(&mut node, &mut order, map, pointer)?;
        self.read_parts(&mut node, &mut order, map, pointer)?;
        self.prune(&mut node, pointer)?;
        self.arrange(order, &mut node)?;
        self.mention_names(&mut node, map, pointer)?;
        self.describe_keywords(&mut node, map)?;
        Ok(node)
    }

    fn settled(
        &mut self,
        mut shape: Box<Shape>,
        map: &Map<String, Value>,
        pointer: &str,
    ) -> Result<Node, Stop> {
        if let Some(why) = shape.why_empty() {
            self.note_cause(pointer, why);
        }
        let allows_any = shape.settle(self)?;
        let mut node = Node::of(allows_any.then_some(*shape));
        node.prune(self)?;
        node.annotations = annotations(map);
        Ok(node)
    }

    fn read_references(
        &mut self,
        node: &mut Node,
        order: &mut Order<'_>,
        map: &Map<String, Value>,
        pointer: &str,
    ) -> Result<(), Stop> {
        for keyword in REFERENCES {
            if let Some(reference) = map.get(keyword).and_then(Value::as_str) {
                let place = format!("{pointer}/{keyword}");
                let target = self.follow(reference, &place)?;
                order.add(keyword, &target);
                let places = (pointer, &*place);
                self.require(node, target, true, places, || json!({ keyword: reference }))?;
            }
        }
        Ok(())
    }

    fn read_parts(
        &mut self,
        node: &mut Node,
        order: &mut Order<'_>,
        map: &Map<String, Value>,
        pointer: &str,
    ) -> Result<(), Stop> {
        for (i, schema) in list(map, "allOf").iter().enumerate() {
            let place = format!("{pointer}/allOf/{i}");
            let part = self.node(schema, &place)?;
            order.add("allOf", &part);
            self.require(node, part, true, (pointer, &place), || schema.clone())?;
        }
        // Gemini reads `oneOf` as `anyOf` (Gemini API, structured output: JSON Schema support),
        // which only widens.
        for keyword in ["anyOf", "oneOf"] {
            if let Some(Value::Array(schemas)) = map.get(keyword) {
                let place = format!("{pointer}/{keyword}");
                let (union, is_whole) = self.union(schemas, &place)?;
                order.add(keyword, &union);
                let places = (pointer, &*place);
                self.require(node, union, is_whole, places, || json!({ keyword: schemas }))?;
            }
        }
        Ok(())
    }

    /// Narrows `node` by `part`. Describes `schema`, the source of `part`, when no node can express
    /// both, or when `part` is not the whole of it. `places` are the pointers of `node` and `part`.
    fn require(
        &mut self,
        node: &mut Node,
        part: Node,
        is_whole: bool,
        places: (&str, &str),
        schema: impl FnOnce() -> Value,
    ) -> Result<(), Stop> {
        let emptied = Emptied::before(node, &part);
        if !(node.narrow(part, self)? && is_whole) {
            let line = self.must_satisfy(&schema())?;
            node.annotations.describe(line);
        }
        if node.is_never() {
            self.note_emptied(&emptied, places);
        }
        Ok(())
    }

    fn union(&mut self, schemas: &[Value], pointer: &str) -> Result<(Node, bool), Stop> {
        let nodes = schemas
            .iter()
            .enumerate()
            .map(|(i, schema)| self.node(schema, &format!("{pointer}/{i}")));
        let nodes: Vec<Node> = nodes.collect::<Result<_, _>>()?;
        if !nodes.is_empty() && nodes.iter().all(Node::is_never) {
            let cause = self.cause(&format!("{pointer}/0"));
            self.causes.insert(pointer.to_owned(), cause);
        }
        Node::union(nodes, self)
    }

    fn follow(&mut self, reference: &str, pointer: &str) -> Result<Node, Stop> {
        let target = self.document.resolve(reference, pointer)?;
        self.ground(&target, pointer)?;
        self.pending.push(target.clone());
        Ok(Node::reference(target))
    }
}
