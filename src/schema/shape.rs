//! The values that a schema allows, as a disjunction of shapes: the intermediate form between the
//! caller's schema and Gemini's dialects.
//!
//! A [`Shape`] is a set of restrictions, one for each keyword. A [`Node`] allows the values of any
//! of its shapes. An `allOf` and the keywords beside an `anyOf` are conjunctions. They are
//! multiplied out (`narrow`), as Gemini has no `allOf` and often refuses keywords beside `anyOf`. A
//! union with too many alternatives is reduced to what they have in common (`widen`).

mod narrow;
mod types;
mod widen;

use std::cmp::Ordering;
use std::collections::BTreeSet;
use std::ops::BitOr;
use std::sync::Arc;

use indexmap::IndexMap;
use serde_json::Value;

use super::metered::BYTES_PER_STEP;
use super::number::Bound;
use super::parse::{Parser, Stop};

pub(super) use types::Types;

/// Introduces a schema in a description.
pub(super) const MUST_SATISFY: &str = "Must also satisfy the JSON Schema: ";

/// The most alternatives of a union, without null. A longer one is reduced to what its alternatives
/// have in common: Gemini refuses long unions with "too many states for serving".
const MAX_SHAPES: usize = 64;

/// The longest annotations, in bytes, that are repeated for each alternative of an inner union.
/// Longer ones are kept with the first alternative only.
const LONGEST_REPEATED: usize = 100;

/// The keywords of a schema that restrict no value.
#[derive(Debug, Clone, Default, PartialEq)]
pub(super) struct Annotations {
    pub(super) title: Option<String>,
    pub(super) description: Option<String>,
    pub(super) default: Option<Box<Value>>,
    pub(super) example: Option<Box<Value>>,
    /// Restrictions that no shape can express, one per line.
    pub(super) described: Vec<Arc<str>>,
}

impl Annotations {
    /// Joins these annotations with those of a schema that is further out or referred to.
    pub(super) fn join(mut self, further: Self) -> Self {
        self.description = match (self.description, further.description) {
            (Some(near), Some(far)) if near != far => Some(near + "\n" + &far),
            (near, far) => near.or(far),
        };
        self.title = self.title.or(further.title);
        self.default = self.default.or(further.default);
        self.example = self.example.or(further.example);
        self.described.extend(further.described);
        self
    }

    /// Adds a line, unless the last line is the same.
    pub(super) fn describe(&mut self, line: Arc<str>) {
        if self.described.last() != Some(&line) {
            self.described.push(line);
        }
    }

    fn is_empty(&self) -> bool {
        *self == Self::default()
    }

    fn text_len(&self) -> usize {
        let own = [&self.title, &self.description].into_iter().flatten().map(String::len);
        own.chain(self.described.iter().map(|schema| schema.len())).sum()
    }

    /// Adds the annotations of a union to each of its alternatives, or only to the first if they
    /// are long.
    pub(super) fn spread(self, mut shapes: Vec<Shape>) -> Vec<Shape> {
        let count = if self.text_len() <= LONGEST_REPEATED { shapes.len() } else { 1 };
        for shape in shapes.iter_mut().take(count) {
            shape.annotations = self.clone().join(std::mem::take(&mut shape.annotations));
        }
        shapes
    }

    /// One line with values and their annotations.
    fn line_for(&self, values: &[Value]) -> Option<String> {
        let texts: Vec<&str> =
            [&self.title, &self.description].into_iter().flatten().map(String::as_str).collect();
        let values: Vec<String> = values.iter().map(Value::to_string).collect();
        (!texts.is_empty()).then(|| format!("{}: {}", values.join(", "), texts.join(". ")))
    }

    /// The steps for a copy.
    fn weight(&self) -> usize {
        let own = [&self.title, &self.description].into_iter().flatten().map(String::as_str);
        let described = self.described.iter().map(|schema| &**schema);
        let texts: usize = own.chain(described).map(|text| 1 + text.len() / BYTES_PER_STEP).sum();
        let values = [&self.default, &self.example].into_iter().flatten();
        texts + values.map(|value| weight(value)).sum::<usize>()
    }
}

/// Whether an object may have properties that are not listed.
#[derive(Debug, Clone, Default, PartialEq)]
pub(super) enum Additional {
    /// Unspecified: JSON Schema allows them, and Gemini adds none.
    #[default]
    Unspecified,
    /// The caller allows them explicitly.
    Allowed,
    /// Properties that match the node; none when it allows nothing.
    Fitting(Box<Node>),
    /// The caller allows properties that match the node, for patterns of names that the node does
    /// not express. The node does not apply to listed properties.
    Matching(Box<Node>),
}

/// A conjunction of restrictions, each of which applies to values of its own types.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Shape {
    pub(super) annotations: Annotations,
    pub(super) types: Types,
    pub(super) values: Option<Vec<Value>>,
    pub(super) minimum: Option<Bound>,
    pub(super) maximum: Option<Bound>,
    pub(super) min_length: Option<u64>,
    pub(super) max_length: Option<u64>,
    pub(super) pattern: Option<String>,
    pub(super) format: Option<String>,
    pub(super) prefix_items: Vec<Node>,
    pub(super) items: Option<Box<Node>>,
    pub(super) min_items: Option<u64>,
    pub(super) max_items: Option<u64>,
    pub(super) properties: IndexMap<String, Node>,
    pub(super) additional: Additional,
    pub(super) required: BTreeSet<String>,
    pub(super) min_properties: Option<u64>,
    pub(super) max_properties: Option<u64>,
    /// Properties that only conditions such as `then` or `dependentSchemas` mention, with their
    /// schemas there. An object that is sent as closed must list them.
    pub(super) mentioned: IndexMap<String, Node>,
    /// The JSON Pointer of a definition that applies, kept as a reference.
    pub(super) reference: Option<String>,
}

impl Default for Shape {
    fn default() -> Self {
        Self {
            annotations: Annotations::default(),
            types: Types::ALL,
            values: None,
            minimum: None,
            maximum: None,
            min_length: None,
            max_length: None,
            pattern: None,
            format: None,
            prefix_items: Vec::new(),
            items: None,
            min_items: None,
            max_items: None,
            properties: IndexMap::new(),
            additional: Additional::default(),
            required: BTreeSet::new(),
            min_properties: None,
            max_properties: None,
            mentioned: IndexMap::new(),
            reference: None,
        }
    }
}

/// A disjunction, which allows the values of any of its shapes.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Node {
    pub(super) annotations: Annotations,
    pub(super) shapes: Vec<Shape>,
}

impl Node {
    pub(super) fn any() -> Self {
        Self::of(Some(Shape::default()))
    }

    /// A node of one shape, or of none, which allows nothing.
    pub(super) fn of(shape: Option<Shape>) -> Self {
        Self { annotations: Annotations::default(), shapes: shape.into_iter().collect() }
    }

    pub(super) fn never() -> Self {
        Self { annotations: Annotations::default(), shapes: Vec::new() }
    }

    /// A node that refers to a definition.
    pub(super) fn reference(pointer: String) -> Self {
        Self::of(Some(Shape { reference: Some(pointer), ..Shape::default() }))
    }

    /// Whether everything is allowed, apart from the annotations.
    pub(super) fn allows_everything(&mut self) -> bool {
        match &mut self.shapes[..] {
            [shape] => shape.is_unrestricted(),
            _ => false,
        }
    }

    pub(super) fn is_never(&self) -> bool {
        self.shapes.is_empty()
    }

    /// The number of nodes and shapes, including this one.
    pub(super) fn size(&self) -> usize {
        self.total(&|_| 1)
    }

    /// The steps for a copy.
    pub(super) fn weight(&self) -> usize {
        self.annotations.weight() + self.total(&Shape::own_weight)
    }

    /// The sum of one for each node and `of` for each shape.
    fn total(&self, of: &dyn Fn(&Shape) -> usize) -> usize {
        1 + self.shapes.iter().map(|shape| shape.total(of)).sum::<usize>()
    }
}

impl Shape {
    /// Removes the values that other keywords rule out, and then the types that have no value left.
    /// False when the shape allows nothing.
    pub(super) fn settle(&mut self, parser: &mut Parser<'_>) -> Result<bool, Stop> {
        self.types = self.types.without(self.out_of_bounds());
        if let Some(mut values) = self.values.take() {
            parser.take(values.len())?;
            values.retain(|value| self.admits(value));
            let left = values.iter().map(Types::of).fold(Types::NONE, Types::bitor);
            self.types = self.types & left;
            (self.minimum, self.maximum) = (None, None);
            self.values = Some(values);
        }
        Ok(self.types != Types::NONE)
    }

    pub(super) fn admits(&self, value: &Value) -> bool {
        let within = |number| {
            let above = |end: &Bound| end.admits(number, Ordering::Less);
            let below = |end: &Bound| end.admits(number, Ordering::Greater);
            self.minimum.as_ref().is_none_or(above) && self.maximum.as_ref().is_none_or(below)
        };
        let is_sized = |text: &str| {
            let bounds = (self.min_length.unwrap_or(0), self.max_length.unwrap_or(u64::MAX));
            bounds == (0, u64::MAX) || {
                let length = text.chars().count() as u64;
                bounds.0 <= length && length <= bounds.1
            }
        };
        let in_types = self.types.intersects(Types::of(value));
        in_types && value.as_number().is_none_or(within) && value.as_str().is_none_or(is_sized)
    }

    fn total(&self, of: &dyn Fn(&Self) -> usize) -> usize {
        of(self) + self.nodes().map(|node| node.total(of)).sum::<usize>()
    }

    /// The nodes directly inside.
    pub(super) fn nodes(&self) -> impl Iterator<Item = &Node> {
        let nodes = self.prefix_items.iter().chain(self.items.as_deref());
        let nodes = nodes.chain(self.properties.values()).chain(self.mentioned.values());
        nodes.chain(self.additional.any_node())
    }

    /// A copy without the nodes inside.
    pub(super) fn without_nodes(&self) -> Self {
        Self {
            annotations: self.annotations.clone(),
            types: self.types,
            values: self.values.clone(),
            minimum: self.minimum.clone(),
            maximum: self.maximum.clone(),
            min_length: self.min_length,
            max_length: self.max_length,
            pattern: self.pattern.clone(),
            format: self.format.clone(),
            min_items: self.min_items,
            max_items: self.max_items,
            required: self.required.clone(),
            min_properties: self.min_properties,
            max_properties: self.max_properties,
            ..Self::default()
        }
    }

    /// The steps for a copy.
    fn weight(&self) -> usize {
        self.total(&Self::own_weight)
    }

    /// The steps for a copy without the nodes inside.
    fn own_weight(&self) -> usize {
        let values: usize = self.values.iter().flatten().map(weight).sum();
        1 + values + self.required.len() + self.annotations.weight()
    }

    /// Whether everything is allowed, apart from the annotations.
    fn is_unrestricted(&mut self) -> bool {
        let annotations = std::mem::take(&mut self.annotations);
        let is_unrestricted = *self == Self::default();
        self.annotations = annotations;
        is_unrestricted
    }

    pub(super) fn property(&self, name: &str) -> Option<&Node> {
        self.properties.get(name)
    }

    /// The schema for a property of this name, if any.
    pub(super) fn property_or_additional(&self, name: &str) -> Option<&Node> {
        self.property(name).or(self.additional.node())
    }
}

impl Additional {
    /// The schema that unlisted properties must match.
    fn node(&self) -> Option<&Node> {
        match self {
            Self::Fitting(node) => Some(node),
            Self::Unspecified | Self::Allowed | Self::Matching(_) => None,
        }
    }

    pub(super) fn any_node(&self) -> Option<&Node> {
        match self {
            Self::Fitting(node) | Self::Matching(node) => Some(node),
            Self::Unspecified | Self::Allowed => None,
        }
    }
}

/// The steps for a copy of a value.
fn weight(value: &Value) -> usize {
    1 + match value {
        Value::Array(values) => values.iter().map(weight).sum(),
        Value::Object(members) => members.values().map(weight).sum(),
        Value::String(text) => text.len() / BYTES_PER_STEP,
        _ => 0,
    }
}
