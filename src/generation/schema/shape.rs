//! What a schema allows, as a disjunction of shapes: the form between the caller's schema and
//! Gemini's two dialects.
//!
//! A [`Shape`] says what must hold of a value, keyword by keyword; a [`Node`] allows the values of
//! any of its shapes. Both `allOf` and the keywords beside an `anyOf` are conjunctions, which
//! multiply out: Gemini has no `allOf`, and refuses keywords beside `anyOf` in places.

use std::cmp::Ordering;
use std::collections::BTreeSet;
use std::ops::{BitAnd, BitOr};

use serde_json::Value;

use super::number::{self, Bound};

/// Alternatives beyond this are described instead: Gemini answers long ones with "too many states
/// for serving".
const MAX_SHAPES: usize = 64;

/// Comparisons allowed to intersect two `enum`s.
const MAX_COMPARISONS: usize = 1_000_000;

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
    /// Schemas that must hold too, and that no shape can say.
    pub(super) described: Vec<Value>,
}

impl Annotations {
    /// Joins what is said nearer the reader, which comes first, with what is said further away.
    pub(super) fn join(self, further: Self) -> Self {
        let description = match (self.description, further.description) {
            (Some(near), Some(far)) if near != far => Some(format!("{near}\n{far}")),
            (near, far) => near.or(far),
        };
        Self {
            title: self.title.or(further.title),
            description,
            default: self.default.or(further.default),
            example: self.example.or(further.example),
            described: [self.described, further.described].concat(),
        }
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
    pub(super) properties: Vec<(String, Node)>,
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
            properties: Vec::new(),
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

impl From<Shape> for Node {
    fn from(shape: Shape) -> Self {
        let shapes = shape.settle().into_iter().collect();
        Self { annotations: Annotations::default(), shapes }
    }
}

impl Node {
    pub(super) fn any() -> Self {
        Self::from(Shape::default())
    }

    pub(super) fn never() -> Self {
        Self { annotations: Annotations::default(), shapes: Vec::new() }
    }

    pub(super) fn is_never(&self) -> bool {
        self.shapes.is_empty()
    }

    /// A disjunction of nodes; what annotates each stays with its shapes.
    pub(super) fn union(nodes: Vec<Self>) -> Self {
        let shapes = nodes.into_iter().flat_map(|node| {
            let Self { annotations, shapes } = node;
            shapes.into_iter().map(move |mut shape| {
                shape.annotations = annotations.clone().join(shape.annotations);
                shape
            })
        });
        Self { annotations: Annotations::default(), shapes: shapes.collect() }
    }

    /// How many nodes and shapes this holds, itself included.
    pub(super) fn size(&self) -> usize {
        1 + self.shapes.iter().map(Shape::size).sum::<usize>()
    }

    /// How many nodes and shapes a conjunction with `other` may hold.
    pub(super) fn product_size(&self, other: &Self) -> usize {
        self.size() * other.shapes.len() + other.size() * self.shapes.len()
    }

    /// The values that both allow; None when no node says that.
    pub(super) fn and(&self, other: &Self) -> Option<Self> {
        if self.shapes.len() * other.shapes.len() > MAX_SHAPES {
            return None;
        }
        let mut shapes = Vec::new();
        for a in &self.shapes {
            for b in &other.shapes {
                shapes.extend(a.and(b)?.settle());
            }
        }
        let annotations = self.annotations.clone().join(other.annotations.clone());
        Some(Self { annotations, shapes })
    }
}

impl Shape {
    /// Drops the values that the other keywords rule out, and the types that are then left without
    /// a value. None when the shape allows nothing.
    fn settle(mut self) -> Option<Self> {
        if let Some(mut values) = self.values.take() {
            values.retain(|value| self.admits(value));
            let left = values.iter().map(Types::of).fold(Types::NONE, Types::bitor);
            self.types = self.types & left;
            (self.minimum, self.maximum) = (None, None);
            self.values = Some(values);
        }
        (self.types != Types::NONE).then_some(self)
    }

    fn admits(&self, value: &Value) -> bool {
        let within = |number| {
            let above = |end: &Bound| end.admits(number, Ordering::Less);
            let below = |end: &Bound| end.admits(number, Ordering::Greater);
            self.minimum.as_ref().is_none_or(above) && self.maximum.as_ref().is_none_or(below)
        };
        let in_types = self.types.intersects(Types::of(value));
        in_types && value.as_number().is_none_or(within)
    }

    fn size(&self) -> usize {
        let additional = match &self.additional {
            Additional::Fitting(node) => node.size(),
            _ => 0,
        };
        let items = self.prefix_items.iter().chain(self.items.as_deref());
        let properties = self.properties.iter().map(|(_, node)| node);
        1 + additional + items.chain(properties).map(Node::size).sum::<usize>()
    }

    /// Whether everything is allowed, whatever the annotations say.
    fn is_unrestricted(&self) -> bool {
        let annotations = self.annotations.clone();
        *self == Self { annotations, ..Self::default() }
    }

    fn and(&self, other: &Self) -> Option<Self> {
        let annotations = self.annotations.clone().join(other.annotations.clone());
        if other.is_unrestricted() {
            return Some(Self { annotations, ..self.clone() });
        }
        if self.is_unrestricted() {
            return Some(Self { annotations, ..other.clone() });
        }
        if self.reference.is_some() || other.reference.is_some() {
            return None;
        }
        let max = |a: Option<u64>, b: Option<u64>| a.max(b);
        let min = |a: Option<u64>, b: Option<u64>| a.into_iter().chain(b).min();
        let ends = |a: &Option<Bound>, b: &Option<Bound>, narrower| {
            Bound::narrow(a.clone(), b.clone(), narrower)
        };
        Some(Self {
            annotations,
            types: self.types & other.types,
            values: common_values(self.values.as_deref(), other.values.as_deref())?,
            minimum: ends(&self.minimum, &other.minimum, Ordering::Greater),
            maximum: ends(&self.maximum, &other.maximum, Ordering::Less),
            min_length: max(self.min_length, other.min_length),
            max_length: min(self.max_length, other.max_length),
            pattern: one_of_both(&self.pattern, &other.pattern)?,
            format: one_of_both(&self.format, &other.format)?,
            prefix_items: self.prefix_items_and(other)?,
            items: both(self.items.as_deref(), other.items.as_deref())?.map(Box::new),
            min_items: max(self.min_items, other.min_items),
            max_items: min(self.max_items, other.max_items),
            properties: self.properties_and(other)?,
            additional: self.additional.and(&other.additional)?,
            required: &self.required | &other.required,
            min_properties: max(self.min_properties, other.min_properties),
            max_properties: min(self.max_properties, other.max_properties),
            reference: None,
        })
    }

    fn prefix_items_and(&self, other: &Self) -> Option<Vec<Node>> {
        let length = self.prefix_items.len().max(other.prefix_items.len());
        let at =
            |shape: &Self, index| shape.prefix_items.get(index).or(shape.items.as_deref()).cloned();
        (0..length)
            .map(|i| {
                let node = both(at(self, i).as_ref(), at(other, i).as_ref())?;
                Some(node.unwrap_or_else(Node::any))
            })
            .collect()
    }

    fn properties_and(&self, other: &Self) -> Option<Vec<(String, Node)>> {
        let only_other = other.properties.iter().filter(|(name, _)| self.property(name).is_none());
        self.properties
            .iter()
            .chain(only_other)
            .map(|(name, _)| {
                let node =
                    both(self.property_or_additional(name), other.property_or_additional(name))?;
                Some((name.clone(), node.unwrap_or_else(Node::any)))
            })
            .collect()
    }

    pub(super) fn property(&self, name: &str) -> Option<&Node> {
        self.properties.iter().find(|(known, _)| known == name).map(|(_, node)| node)
    }

    /// What a property of this name must fit, if anything.
    pub(super) fn property_or_additional(&self, name: &str) -> Option<&Node> {
        self.property(name).or(match &self.additional {
            Additional::Fitting(node) => Some(node),
            _ => None,
        })
    }
}

impl Additional {
    fn and(&self, other: &Self) -> Option<Self> {
        Some(match (self, other) {
            (Self::Fitting(a), Self::Fitting(b)) => Self::Fitting(Box::new(a.and(b)?)),
            (Self::Fitting(_), _) | (Self::Welcome, Self::Unsaid) => self.clone(),
            (_, other) => other.clone(),
        })
    }
}

/// The conjunction of two nodes that may be absent; the outer None when no node says it.
fn both(a: Option<&Node>, b: Option<&Node>) -> Option<Option<Node>> {
    match (a, b) {
        (Some(a), Some(b)) => a.and(b).map(Some),
        (a, b) => Some(a.or(b).cloned()),
    }
}

/// The one that is there; the outer None when both are and differ.
fn one_of_both(a: &Option<String>, b: &Option<String>) -> Option<Option<String>> {
    match (a, b) {
        (Some(a), Some(b)) if a != b => None,
        (a, b) => Some(a.as_ref().or(b.as_ref()).cloned()),
    }
}

/// The values in both lists; the outer None when that takes too long to find.
fn common_values(a: Option<&[Value]>, b: Option<&[Value]>) -> Option<Option<Vec<Value>>> {
    let (Some(a), Some(b)) = (a, b) else { return Some(a.or(b).map(<[Value]>::to_vec)) };
    if a.len() * b.len() > MAX_COMPARISONS {
        return None;
    }
    let in_b = |value: &&Value| b.iter().any(|other| number::same(value, other));
    Some(Some(a.iter().filter(in_b).cloned().collect()))
}
