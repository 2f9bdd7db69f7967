//! What a schema allows, as a disjunction of shapes: the form between the caller's schema and
//! Gemini's two dialects.
//!
//! A [`Shape`] says what must hold of a value, keyword by keyword; a [`Node`] allows the values of
//! any of its shapes. Both `allOf` and the keywords beside an `anyOf` are conjunctions, which
//! multiply out: Gemini has no `allOf`, and refuses keywords beside `anyOf` in places.

use std::cmp::Ordering;
use std::collections::{BTreeSet, HashSet};
use std::ops::{BitAnd, BitOr};
use std::sync::Arc;

use indexmap::IndexMap;
use indexmap::map::Entry;
use serde_json::Value;

use super::metered::BYTES_PER_STEP;
use super::number::{self, Bound};
use super::parse::{Steps, TooLarge};

/// Alternatives beyond this are described instead: Gemini answers long ones with "too many states
/// for serving".
const MAX_SHAPES: usize = 64;

/// A set of JSON's types. Numbers are in two parts, so that `integer` within `number` is plain
/// set arithmetic.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Types(u8);

impl Types {
    pub(super) const NONE: Self = Self(0);
    pub(super) const NULL: Self = Self(1);
    pub(super) const BOOLEAN: Self = Self(1 << 1);
    pub(super) const INTEGER: Self = Self(1 << 2);
    pub(super) const NUMBER: Self = Self(1 << 2 | 1 << 3);
    pub(super) const STRING: Self = Self(1 << 4);
    pub(super) const ARRAY: Self = Self(1 << 5);
    pub(super) const OBJECT: Self = Self(1 << 6);
    pub(super) const ALL: Self = Self((1 << 7) - 1);

    /// The type JSON Schema calls `name`; none for a name it does not know.
    pub(super) fn named(name: &str) -> Self {
        match name {
            "null" => Self::NULL,
            "boolean" => Self::BOOLEAN,
            "integer" => Self::INTEGER,
            "number" => Self::NUMBER,
            "string" => Self::STRING,
            "array" => Self::ARRAY,
            "object" => Self::OBJECT,
            _ => Self::NONE,
        }
    }

    /// The narrowest type of a value.
    pub(super) fn of(value: &Value) -> Self {
        match value {
            Value::Null => Self::NULL,
            Value::Bool(_) => Self::BOOLEAN,
            Value::Number(number) if number::integer(number).is_some() => Self::INTEGER,
            Value::Number(_) => Self(1 << 3),
            Value::String(_) => Self::STRING,
            Value::Array(_) => Self::ARRAY,
            Value::Object(_) => Self::OBJECT,
        }
    }

    pub(super) fn without(self, other: Self) -> Self {
        Self(self.0 & !other.0)
    }

    pub(super) fn intersects(self, other: Self) -> bool {
        self & other != Self::NONE
    }
}

impl BitAnd for Types {
    type Output = Self;
    fn bitand(self, other: Self) -> Self {
        Self(self.0 & other.0)
    }
}

impl BitOr for Types {
    type Output = Self;
    fn bitor(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }
}

/// What a schema says without restricting any value.
#[derive(Debug, Clone, Default, PartialEq)]
pub(super) struct Annotations {
    pub(super) title: Option<String>,
    pub(super) description: Option<String>,
    pub(super) default: Option<Value>,
    pub(super) example: Option<Value>,
    /// Schemas that must hold too, and that no shape can say, as JSON.
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

    /// The steps that a copy takes.
    fn weight(&self) -> usize {
        let own = [&self.title, &self.description].into_iter().flatten().map(String::as_str);
        let described = self.described.iter().map(|schema| &**schema);
        let texts: usize = own.chain(described).map(|text| 1 + text.len() / BYTES_PER_STEP).sum();
        let values = [&self.default, &self.example].into_iter().flatten();
        texts + values.map(weight).sum::<usize>()
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

    pub(super) fn is_never(&self) -> bool {
        self.shapes.is_empty()
    }

    /// A disjunction of nodes; what annotates each stays with its shapes.
    pub(super) fn union(nodes: Vec<Self>, steps: &mut Steps) -> Result<Self, TooLarge> {
        let mut union = Self::never();
        for Self { annotations, shapes } in nodes {
            steps.take(annotations.weight().saturating_mul(shapes.len()))?;
            union.shapes.extend(shapes.into_iter().map(|mut shape| {
                shape.annotations = annotations.clone().join(shape.annotations);
                shape
            }));
        }
        Ok(union)
    }

    /// How many nodes and shapes this holds, itself included.
    pub(super) fn size(&self) -> usize {
        self.total(&|_| 1)
    }

    /// The steps that a copy takes.
    fn weight(&self) -> usize {
        self.total(&Shape::own_weight)
    }

    /// One for each node, and what `of` says for each shape.
    fn total(&self, of: &dyn Fn(&Shape) -> usize) -> usize {
        1 + self.shapes.iter().map(|shape| shape.total(of)).sum::<usize>()
    }

    /// Narrows this to the values that `other` allows too. False where no node says that: then it
    /// is narrowed by some of what `other` says, and `other` must be described.
    pub(super) fn narrow(&mut self, other: Self, steps: &mut Steps) -> Result<bool, TooLarge> {
        if self.shapes.len() * other.shapes.len() > MAX_SHAPES {
            return Ok(false);
        }
        let own = std::mem::take(&mut self.annotations);
        self.annotations = own.join(other.annotations);
        let mut is_whole = true;
        let mut add = |a: Shape, b: Shape, steps: &mut Steps| {
            let (both, is_all_said) = a.and(b, steps)?;
            is_whole &= is_all_said;
            both.settle(steps)
        };
        let (own, others) = (std::mem::take(&mut self.shapes), other.shapes);
        match (<[Shape; 1]>::try_from(own), <[Shape; 1]>::try_from(others)) {
            // What nearly all schemas are, and then nothing is copied.
            (Ok([a]), Ok([b])) => self.shapes.extend(add(a, b, steps)?),
            (own, others) => {
                let own = own.map_or_else(|several| several, Vec::from);
                let others = others.map_or_else(|several| several, Vec::from);
                for a in &own {
                    for b in &others {
                        steps.take(a.total(&Shape::own_weight) + b.total(&Shape::own_weight))?;
                        self.shapes.extend(add(a.clone(), b.clone(), steps)?);
                    }
                }
            }
        }
        Ok(is_whole)
    }
}

impl Shape {
    /// Drops the values that the other keywords rule out, and the types that are then left without
    /// a value. None when the shape allows nothing.
    pub(super) fn settle(mut self, steps: &mut Steps) -> Result<Option<Self>, TooLarge> {
        self.types = self.types.without(self.out_of_bounds());
        if let Some(mut values) = self.values.take() {
            steps.take(values.len())?;
            values.retain(|value| self.admits(value));
            let left = values.iter().map(Types::of).fold(Types::NONE, Types::bitor);
            self.types = self.types & left;
            (self.minimum, self.maximum) = (None, None);
            self.values = Some(values);
        }
        Ok((self.types != Types::NONE).then_some(self))
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
        let nodes = self.prefix_items.iter().chain(self.items.as_deref());
        let nodes = nodes.chain(self.properties.values()).chain(self.additional.node());
        of(self) + nodes.map(|node| node.total(of)).sum::<usize>()
    }

    /// The steps that a copy takes without the nodes inside.
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

    /// The conjunction, and whether it says all of both: otherwise it says all of `self`.
    fn and(mut self, mut other: Self, steps: &mut Steps) -> Result<(Self, bool), TooLarge> {
        steps.take(1)?;
        let own = std::mem::take(&mut self.annotations);
        let annotations = own.join(std::mem::take(&mut other.annotations));
        if other.is_unrestricted() {
            return Ok((Self { annotations, ..self }, true));
        }
        if self.is_unrestricted() {
            return Ok((Self { annotations, ..other }, true));
        }
        self.annotations = annotations;
        if self.reference.is_some() || other.reference.is_some() {
            return Ok((self, false));
        }
        let max = |a: Option<u64>, b: Option<u64>| a.max(b);
        let min = |a: Option<u64>, b: Option<u64>| a.into_iter().chain(b).min();
        self.types = self.types & other.types;
        self.values = common_values(self.values, other.values.take(), steps)?;
        self.minimum = Bound::narrow(self.minimum, other.minimum.take(), Ordering::Greater);
        self.maximum = Bound::narrow(self.maximum, other.maximum.take(), Ordering::Less);
        self.min_length = max(self.min_length, other.min_length);
        self.max_length = min(self.max_length, other.max_length);
        self.min_items = max(self.min_items, other.min_items);
        self.max_items = min(self.max_items, other.max_items);
        self.min_properties = max(self.min_properties, other.min_properties);
        self.max_properties = min(self.max_properties, other.max_properties);
        steps.take(other.required.len())?;
        self.required.append(&mut other.required);
        let mut is_whole = set_or_same(&mut self.pattern, other.pattern.take());
        is_whole &= set_or_same(&mut self.format, other.format.take());
        is_whole &= self.narrow_items(&mut other, steps)?;
        is_whole &= self.narrow_properties(&mut other, steps)?;
        is_whole &= self.additional.narrow(other.additional, steps)?;
        Ok((self, is_whole))
    }

    fn narrow_items(&mut self, other: &mut Self, steps: &mut Steps) -> Result<bool, TooLarge> {
        let mut is_whole = true;
        let others = std::mem::take(&mut other.prefix_items);
        let count = others.len();
        for (i, node) in others.into_iter().enumerate() {
            if i >= self.prefix_items.len() {
                self.prefix_items.push(copy_or_any(self.items.as_deref(), steps)?);
            }
            is_whole &= self.prefix_items[i].narrow(node, steps)?;
        }
        let Some(items) = other.items.take() else { return Ok(is_whole) };
        for node in self.prefix_items.iter_mut().skip(count) {
            is_whole &= node.narrow(copy(&items, steps)?, steps)?;
        }
        match &mut self.items {
            Some(own) => is_whole &= own.narrow(*items, steps)?,
            own => *own = Some(items),
        }
        Ok(is_whole)
    }

    fn narrow_properties(&mut self, other: &mut Self, steps: &mut Steps) -> Result<bool, TooLarge> {
        let mut is_whole = true;
        if let Some(node) = other.additional.node() {
            let named = &other.properties;
            for (_, own) in
                self.properties.iter_mut().filter(|(name, _)| !named.contains_key(*name))
            {
                is_whole &= own.narrow(copy(node, steps)?, steps)?;
            }
        }
        for (name, node) in std::mem::take(&mut other.properties) {
            steps.take(1)?;
            let own = match self.properties.entry(name) {
                Entry::Occupied(own) => own.into_mut(),
                Entry::Vacant(own) => own.insert(copy_or_any(self.additional.node(), steps)?),
            };
            is_whole &= own.narrow(node, steps)?;
        }
        Ok(is_whole)
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
    fn node(&self) -> Option<&Node> {
        match self {
            Self::Fitting(node) => Some(node),
            Self::Unsaid | Self::Welcome => None,
        }
    }

    fn narrow(&mut self, other: Self, steps: &mut Steps) -> Result<bool, TooLarge> {
        match (&mut *self, other) {
            (Self::Fitting(own), Self::Fitting(other)) => return own.narrow(*other, steps),
            (Self::Fitting(_), _) | (Self::Welcome, Self::Unsaid) => {}
            (_, other) => *self = other,
        }
        Ok(true)
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

fn copy(node: &Node, steps: &mut Steps) -> Result<Node, TooLarge> {
    steps.take(node.weight())?;
    Ok(node.clone())
}

fn copy_or_any(node: Option<&Node>, steps: &mut Steps) -> Result<Node, TooLarge> {
    node.map_or_else(|| Ok(Node::any()), |node| copy(node, steps))
}

/// Takes over a value where there is none; false where there is another one.
fn set_or_same(own: &mut Option<String>, other: Option<String>) -> bool {
    match (&*own, other) {
        (Some(own), Some(other)) => *own == other,
        (None, other) => {
            *own = other;
            true
        }
        (Some(_), None) => true,
    }
}

/// The values in both lists, where both are given.
fn common_values(
    a: Option<Vec<Value>>,
    b: Option<Vec<Value>>,
    steps: &mut Steps,
) -> Result<Option<Vec<Value>>, TooLarge> {
    let (mut a, b) = match (a, b) {
        (Some(a), Some(b)) => (a, b),
        (a, b) => return Ok(a.or(b)),
    };
    steps.take(a.len() + b.len())?;
    let b: HashSet<String> = b.iter().map(number::canonical).collect();
    a.retain(|value| b.contains(&number::canonical(value)));
    Ok(Some(a))
}
