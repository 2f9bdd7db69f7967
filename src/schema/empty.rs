//! Finds schemas that allow no value.
//!
//! No answer can be valid for such a schema, so a call would be wasted. A schema is refused when
//! its keywords provably contradict each other.

use std::cmp::Ordering;
use std::collections::{BTreeMap, HashSet};

use super::SchemaError;
use super::number::{Bound, compare};
use super::parse::{Parser, Stop, Translation};
use super::pointer::escape;
use super::shape::{Additional, Node, Shape, Types};

/// The most rounds in which definitions are found to have a value, each based on the round before.
const MAX_ROUNDS: usize = 100;

/// Why a schema allows no value.
#[derive(Debug)]
pub(super) enum Why {
    /// The keywords of one schema contradict each other.
    Contradiction(&'static str),
    /// The schema at this relative path allows no value, and one is required.
    Inside(String),
}

impl SchemaError {
    /// The error for a schema that requires a value of the schema with this error.
    pub(super) fn of_required(self) -> Self {
        const REQUIRED: &str = "; yet one is required";
        let Self { pointer, message } = self;
        Self::new(pointer, format!("{}{REQUIRED}", message.trim_end_matches(REQUIRED)))
    }
}

impl Node {
    /// Removes the shapes that allow nothing because of the nodes inside them.
    pub(super) fn prune(&mut self, parser: &mut Parser<'_>) -> Result<(), Stop> {
        let inside = |shape: &Shape| shape.required.len() + shape.prefix_items.len();
        parser.take(self.shapes.iter().map(inside).sum())?;
        for mut shape in std::mem::take(&mut self.shapes) {
            let types = shape.types.without(shape.impossible_inside());
            if types == shape.types {
                self.shapes.push(shape);
            } else {
                shape.types = types;
                if shape.settle(parser)? {
                    self.shapes.push(shape);
                }
            }
        }
        Ok(())
    }
}

impl Shape {
    /// The types whose bounds allow no value, each with the reason.
    fn contradictions(&self) -> impl Iterator<Item = (Types, &'static str)> {
        let required = Some(self.required.len() as u64);
        let checks = [
            (is_empty_range(self), Types::NUMBER, "its minimum is above its maximum"),
            (has_no_integer(self), Types::INTEGER, "no integer is within its bounds"),
            (
                exceeds(self.min_length, self.max_length),
                Types::STRING,
                "its minLength is above its maxLength",
            ),
            (
                exceeds(self.min_items, self.max_items),
                Types::ARRAY,
                "its minItems is above its maxItems",
            ),
            (
                exceeds(self.min_properties, self.max_properties),
                Types::OBJECT,
                "its minProperties is above its maxProperties",
            ),
            (
                exceeds(required, self.max_properties),
                Types::OBJECT,
                "it requires more properties than its maxProperties",
            ),
        ];
        checks.into_iter().filter(|(is_so, ..)| *is_so).map(|(_, types, reason)| (types, reason))
    }

    /// The types for which the nodes inside allow no value, each with the reason.
    fn contradictions_inside(&self) -> impl Iterator<Item = (Types, Why)> {
        let item = self.impossible_item().map(|path| (Types::ARRAY, Why::Inside(path)));
        let property = self.impossible_property().map(|path| (Types::OBJECT, Why::Inside(path)));
        let names = self.has_too_few_names().then_some((
            Types::OBJECT,
            Why::Contradiction("it has fewer properties than its minProperties"),
        ));
        item.into_iter().chain(property).chain(names)
    }

    /// The types whose bounds allow no value.
    pub(super) fn out_of_bounds(&self) -> Types {
        self.contradictions().fold(Types::NONE, |all, (types, _)| all | types)
    }

    fn impossible_inside(&self) -> Types {
        self.contradictions_inside().fold(Types::NONE, |all, (types, _)| all | types)
    }

    fn ruled_out(&self) -> impl Iterator<Item = (Types, Why)> {
        let bounds =
            self.contradictions().map(|(types, reason)| (types, Why::Contradiction(reason)));
        bounds.chain(self.contradictions_inside())
    }

    /// Why the shape allows nothing; none when it allows a value.
    pub(super) fn why_empty(&self) -> Option<Why> {
        let mut left = self.types;
        let mut first = None;
        for (types, why) in self.ruled_out().filter(|(types, _)| self.types.intersects(*types)) {
            left = left.without(types);
            first = first.or(Some(why));
        }
        if left == Types::NONE {
            return first;
        }
        let values = self.values.as_ref()?;
        if values.iter().any(|value| left.intersects(Types::of(value)) && self.admits(value)) {
            return None;
        }
        let has_type = values.iter().any(|value| self.types.intersects(Types::of(value)));
        Some(Why::Contradiction(if has_type {
            "none of its values keeps to its other keywords"
        } else if values.is_empty() {
            "its enum has no value, or its const is not in it"
        } else {
            "none of its values has its type"
        }))
    }

    fn impossible_item(&self) -> Option<String> {
        let least = usize::try_from(self.min_items?).unwrap_or(usize::MAX);
        let first = self.prefix_items.iter().take(least).position(Node::is_never);
        let rest = || {
            let is_never = self.items.as_deref().is_some_and(Node::is_never);
            (is_never && least > self.prefix_items.len()).then(|| "/items".to_owned())
        };
        first.map(|index| format!("/prefixItems/{index}")).or_else(rest)
    }

    fn impossible_property(&self) -> Option<String> {
        let is_never =
            |name: &&String| self.property_or_additional(name).is_some_and(Node::is_never);
        let name = self.required.iter().find(is_never)?;
        Some(match self.property(name) {
            Some(_) => format!("/properties/{}", escape(name)),
            None => "/required".to_owned(),
        })
    }

    fn has_too_few_names(&self) -> bool {
        let is_closed = matches!(&self.additional, Additional::Fitting(node) if node.is_never());
        let possible = || self.properties.values().filter(|node| !node.is_never()).count() as u64;
        is_closed && self.min_properties.is_some_and(|least| least > possible())
    }
}

fn exceeds(least: Option<u64>, most: Option<u64>) -> bool {
    least.zip(most).is_some_and(|(least, most)| least > most)
}

fn is_empty_range(shape: &Shape) -> bool {
    let Some((low, high)) = shape.minimum.as_ref().zip(shape.maximum.as_ref()) else {
        return false;
    };
    match compare(&low.value, &high.value) {
        Ordering::Less => false,
        Ordering::Equal => low.exclusive || high.exclusive,
        Ordering::Greater => true,
    }
}

fn has_no_integer(shape: &Shape) -> bool {
    let end = |bound: &Option<Bound>, step| bound.as_ref()?.inclusive_integer(step);
    let ends = end(&shape.minimum, 1).zip(end(&shape.maximum, -1));
    ends.is_some_and(|(low, high)| compare(&low, &high) == Ordering::Greater)
}

/// The definitions in `order` that allow a value; none when that takes too many rounds. In `order`
/// a definition follows those that it refers to, except in cycles.
pub(super) fn possible<'t>(
    definitions: &BTreeMap<String, Node>,
    order: &[&'t str],
) -> Option<HashSet<&'t str>> {
    let mut possible: HashSet<&str> = HashSet::new();
    for _ in 0..MAX_ROUNDS {
        let before = possible.len();
        for pointer in order {
            if !possible.contains(pointer) && has_value(&definitions[*pointer], &possible) {
                possible.insert(pointer);
            }
        }
        if possible.len() == before {
            return Some(possible);
        }
    }
    None
}

impl Translation {
    /// The error for a schema that allows no value, given the definitions that do.
    pub(super) fn no_value(&self, possible: &HashSet<&str>) -> SchemaError {
        let mut passed = HashSet::new();
        let (mut pointer, mut is_required) = ("", false);
        while passed.insert(pointer) {
            if let Some(cause) = self.causes.get(pointer) {
                return if is_required { cause.clone().of_required() } else { cause.clone() };
            }
            let Some(obstacle) = obstacle(&self.definitions[pointer], possible) else {
                return SchemaError::new(pointer, "allows no value");
            };
            is_required |= obstacle.is_inside;
            pointer = obstacle.definition;
        }
        let message = "allows no value: each would have to contain another one, without end; \
                       let a property of the cycle be optional, or null";
        SchemaError::new("", message)
    }
}

/// A reference to a definition that allows no value.
struct Obstacle<'t> {
    definition: &'t str,
    /// Whether it is inside a property or an item.
    is_inside: bool,
}

fn obstacle<'t>(node: &'t Node, possible: &HashSet<&str>) -> Option<Obstacle<'t>> {
    let shape = node.shapes.first()?;
    if let Some(definition) = &shape.reference {
        return Some(Obstacle { definition, is_inside: false });
    }
    let properties = shape.required.iter().filter_map(|name| shape.property_or_additional(name));
    let nodes = properties.chain(&shape.prefix_items).chain(shape.items.as_deref());
    let inner =
        nodes.filter(|node| !has_value(node, possible)).find_map(|node| obstacle(node, possible));
    inner.map(|obstacle| Obstacle { is_inside: true, ..obstacle })
}

/// Whether a node allows a value, given the definitions that do.
fn has_value(node: &Node, possible: &HashSet<&str>) -> bool {
    node.shapes.iter().any(|shape| shape_has_value(shape, possible))
}

pub(super) fn shape_has_value(shape: &Shape, possible: &HashSet<&str>) -> bool {
    if let Some(pointer) = &shape.reference {
        return possible.contains(pointer.as_str());
    }
    if shape.values.is_some() || shape.types.without(Types::ARRAY | Types::OBJECT) != Types::NONE {
        return true;
    }
    let fits = |node: Option<&Node>| node.is_none_or(|node| has_value(node, possible));
    let has_array = || {
        let least = usize::try_from(shape.min_items.unwrap_or(0)).unwrap_or(usize::MAX);
        let first = shape.prefix_items.iter().take(least).all(|node| fits(Some(node)));
        first && (least <= shape.prefix_items.len() || fits(shape.items.as_deref()))
    };
    let has_object = || shape.required.iter().all(|name| fits(shape.property_or_additional(name)));
    (shape.types.intersects(Types::ARRAY) && has_array())
        || (shape.types.intersects(Types::OBJECT) && has_object())
}
