//! What a schema allows, as a disjunction of shapes: the form between the caller's schema and
//! Gemini's two dialects.
//!
//! A [`Shape`] says what must hold of a value, keyword by keyword; a [`Node`] allows the values of
//! any of its shapes. Both `allOf` and the keywords beside an `anyOf` are conjunctions, which
//! multiply out (`narrow`): Gemini has no `allOf`, and refuses keywords beside `anyOf` in places.
//! A union of too many alternatives is sent as what they have in common (`widen`).

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

/// What introduces, in a description, a schema that no keyword could say.
pub(super) const MUST_SATISFY: &str = "Must also satisfy the JSON Schema: ";

/// Alternatives beyond this, null apart, are sent as what they have in common: Gemini answers long
/// unions with "too many states for serving".
const MAX_SHAPES: usize = 64;

/// In bytes: longer annotations of a union inside another stay with its first alternative alone.
const LONGEST_REPEATED: usize = 100;

/// What a schema says without restricting any value.
#[derive(Debug, Clone, Default, PartialEq)]
pub(super) struct Annotations {
    pub(super) title: Option<String>,
    pub(super) description: Option<String>,
    pub(super) default: Option<Box<Value>>,
    pub(super) example: Option<Box<Value>>,
    /// What must hold too and no shape can say, each in a line.
    pub(super) described: Vec<Arc<str>>,
}

impl Annotations {
    /// Joins what is said nearer the reader, which comes first, with what is said further away.
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

    /// Adds a line, unless it is said already.
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

    /// Puts what annotates a union to each of its alternatives, or to the first alone where it is
    /// long.
    pub(super) fn spread(self, mut shapes: Vec<Shape>) -> Vec<Shape> {
        let count = if self.text_len() <= LONGEST_REPEATED { shapes.len() } else { 1 };
        for shape in shapes.iter_mut().take(count) {
            shape.annotations = self.clone().join(std::mem::take(&mut shape.annotations));
        }
        shapes
    }

    /// One line that says of values what their annotations do.
    fn line_for(&self, values: &[Value]) -> Option<String> {
        let said: Vec<&str> =
            [&self.title, &self.description].into_iter().flatten().map(String::as_str).collect();
        let values: Vec<String> = values.iter().map(Value::to_string).collect();
        (!said.is_empty()).then(|| format!("{}: {}", values.join(", "), said.join(". ")))
    }

    /// The steps that a copy takes.
    fn weight(&self) -> usize {
        let own = [&self.title, &self.description].into_iter().flatten().map(String::as_str);
        let described = self.described.iter().map(|schema| &**schema);
        let texts: usize = own.chain(described).map(|text| 1 + text.len() / BYTES_PER_STEP).sum();
        let values = [&self.default, &self.example].into_iter().flatten();
        texts + values.map(|value| weight(value)).sum::<usize>()
    }
}

/// Whether an object may hold properties that are not listed.
#[derive(Debug, Clone, Default, PartialEq)]
pub(super) enum Additional {
    /// Not said: JSON Schema allows them, and Gemini never adds any.
    #[default]
    Unsaid,
    /// The caller asks for them.
    Welcome,
    /// Those that fit; none when the node allows nothing.
    Fitting(Box<Node>),
    /// Those that fit are asked for, by patterns of names that the node does not say. It does not
    /// bear on properties that are listed.
    Matching(Box<Node>),
}

/// A conjunction: everything that must hold of a value, each keyword bearing on its own types.
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
    /// Names that no keyword lists but a condition speaks of, as `then` or `dependentSchemas`, each
    /// with what it may be there. An object that is sent closed needs them.
    pub(super) mentioned: IndexMap<String, Node>,
    /// The JSON Pointer of a definition that must hold, left as a reference.
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

/// A disjunction: the values of any of its shapes are allowed.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Node {
    pub(super) annotations: Annotations,
    pub(super) shapes: Vec<Shape>,
}

impl Node {
    pub(super) fn any() -> Self {
        Self::of(Some(Shape::default()))
    }

    /// A node of one shape or, where that allows nothing, of none.
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

    /// Whether everything is allowed, whatever the annotations say.
    pub(super) fn says_nothing(&mut self) -> bool {
        match &mut self.shapes[..] {
            [shape] => shape.is_unrestricted(),
            _ => false,
        }
    }

    pub(super) fn is_never(&self) -> bool {
        self.shapes.is_empty()
    }

    /// How many nodes and shapes this holds, itself included.
    pub(super) fn size(&self) -> usize {
        self.total(&|_| 1)
    }

    /// The steps that a copy takes.
    pub(super) fn weight(&self) -> usize {
        self.annotations.weight() + self.total(&Shape::own_weight)
    }

    /// One for each node, and what `of` says for each shape.
    fn total(&self, of: &dyn Fn(&Shape) -> usize) -> usize {
        1 + self.shapes.iter().map(|shape| shape.total(of)).sum::<usize>()
    }
}

impl Shape {
    /// Drops the values that the other keywords rule out, and the types that are then left without
    /// a value. False when the shape allows nothing.
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

    /// A copy that has no nodes inside.
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

    /// The steps that a copy takes.
    fn weight(&self) -> usize {
        self.total(&Self::own_weight)
    }

    /// The same without the nodes inside.
    fn own_weight(&self) -> usize {
        let values: usize = self.values.iter().flatten().map(weight).sum();
        1 + values + self.required.len() + self.annotations.weight()
    }

    /// Whether everything is allowed, whatever the annotations say.
    fn is_unrestricted(&mut self) -> bool {
        let annotations = std::mem::take(&mut self.annotations);
        let is_unrestricted = *self == Self::default();
        self.annotations = annotations;
        is_unrestricted
    }

    pub(super) fn property(&self, name: &str) -> Option<&Node> {
        self.properties.get(name)
    }

    /// What a property of this name must fit, if anything.
    pub(super) fn property_or_additional(&self, name: &str) -> Option<&Node> {
        self.property(name).or(self.additional.node())
    }
}

impl Additional {
    /// What an unlisted property must fit.
    fn node(&self) -> Option<&Node> {
        match self {
            Self::Fitting(node) => Some(node),
            Self::Unsaid | Self::Welcome | Self::Matching(_) => None,
        }
    }

    pub(super) fn any_node(&self) -> Option<&Node> {
        match self {
            Self::Fitting(node) | Self::Matching(node) => Some(node),
            Self::Unsaid | Self::Welcome => None,
        }
    }
}

/// The steps that a copy of a value takes.
fn weight(value: &Value) -> usize {
    1 + match value {
        Value::Array(values) => values.iter().map(weight).sum(),
        Value::Object(members) => members.values().map(weight).sum(),
        Value::String(text) => text.len() / BYTES_PER_STEP,
        _ => 0,
    }
}
