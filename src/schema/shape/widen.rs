//! Disjunctions, and their reduction when they have too many alternatives to be sent.

use std::cmp::Ordering;
use std::collections::{BTreeSet, HashMap, HashSet};

use indexmap::IndexMap;
use serde_json::Value;

use super::{Additional, Annotations, LONGEST_REPEATED, MAX_SHAPES, Node, Shape, Types};
use crate::schema::number::{self, Bound};
use crate::schema::parse::{Parser, Stop};

/// The types by which alternatives are grouped.
const GROUPS: [Types; 6] =
    [Types::NULL, Types::BOOLEAN, Types::NUMBER, Types::STRING, Types::ARRAY, Types::OBJECT];

impl Node {
    /// A disjunction of nodes. Each keeps its annotations on its shapes.
    pub(in crate::schema) fn any_of(
        nodes: Vec<Self>,
        parser: &mut Parser<'_>,
    ) -> Result<Self, Stop> {
        Ok(Self::union(nodes, parser)?.0)
    }

    /// A disjunction of nodes, and whether it is exact. Each keeps its annotations on its shapes.
    pub(in crate::schema) fn union(
        nodes: Vec<Self>,
        parser: &mut Parser<'_>,
    ) -> Result<(Self, bool), Stop> {
        let mut union = Self::never();
        let is_null = |node: &Self| node.alternatives() == 0 && node.annotations.is_empty();
        let has_one_alternative = nodes.iter().filter(|node| !is_null(node)).count() == 1;
        for node in nodes {
            if has_one_alternative && node.alternatives() > 1 {
                union.annotations = node.annotations;
                union.shapes.extend(node.shapes);
            } else {
                union.add(node, parser)?;
            }
        }
        let is_whole = union.simplify(parser)?;
        Ok((union, is_whole))
    }

    fn add(&mut self, node: Self, parser: &mut Parser<'_>) -> Result<(), Stop> {
        let Self { annotations, shapes } = node;
        let repeated = if annotations.text_len() <= LONGEST_REPEATED { shapes.len() } else { 1 };
        parser.take(annotations.weight().saturating_mul(repeated))?;
        self.shapes.extend(annotations.spread(shapes));
        Ok(())
    }

    /// The number of shapes without that of null, which is expressed beside the others.
    pub(super) fn alternatives(&self) -> usize {
        self.shapes.iter().filter(|shape| shape.types != Types::NULL).count()
    }

    /// Reduces the number of shapes. Returns false if it still has too many, and is replaced by
    /// shapes that allow more.
    fn simplify(&mut self, parser: &mut Parser<'_>) -> Result<bool, Stop> {
        if self.shapes.len() < 2 {
            return Ok(true);
        }
        parser.take(self.shapes.len())?;
        self.merge_constants(false, parser)?;
        self.merge_equals(parser)?;
        if self.alternatives() > MAX_SHAPES {
            self.merge_constants(true, parser)?;
        }
        if self.alternatives() <= MAX_SHAPES {
            return Ok(true);
        }
        self.widen(parser)?;
        Ok(false)
    }

    /// Merges the shapes that only list values into one. With `annotated`, also those with
    /// annotations, which become lines of one description.
    fn merge_constants(&mut self, annotated: bool, parser: &mut Parser<'_>) -> Result<(), Stop> {
        let mut is_list = |shape: &mut Shape| {
            shape.values.is_some()
                && shape.types != Types::NULL
                && (annotated || shape.annotations.is_empty())
                && shape.only_lists_values()
        };
        let mut lists: Vec<bool> = self.shapes.iter_mut().map(&mut is_list).collect();
        if lists.iter().filter(|is_list| **is_list).count() < 2 {
            return Ok(());
        }
        let Some(first) = lists.iter().position(|is_list| *is_list) else { return Ok(()) };
        let mut merged = Shape { types: Types::NONE, values: Some(Vec::new()), ..Shape::default() };
        let mut known = HashSet::new();
        let mut lines = Vec::new();
        let mut kept = Vec::new();
        for (shape, is_list) in std::mem::take(&mut self.shapes).into_iter().zip(lists.drain(..)) {
            if !is_list {
                kept.push(shape);
                continue;
            }
            let values = shape.values.unwrap_or_default();
            parser.take(values.len())?;
            lines.extend(shape.annotations.line_for(&values));
            merged.types = merged.types | shape.types;
            for value in values {
                if known.insert(number::canonical(&value)) {
                    merged.values.get_or_insert_default().push(value);
                }
            }
        }
        if !lines.is_empty() {
            merged.annotations.description = Some(lines.join("\n"));
        }
        kept.insert(first.min(kept.len()), merged);
        self.shapes = kept;
        Ok(())
    }

    /// Removes duplicate shapes.
    fn merge_equals(&mut self, parser: &mut Parser<'_>) -> Result<(), Stop> {
        let mut kept: Vec<Shape> = Vec::new();
        for shape in std::mem::take(&mut self.shapes) {
            parser.take(kept.len().min(MAX_SHAPES))?;
            if !kept.iter().take(MAX_SHAPES).any(|known| *known == shape) {
                kept.push(shape);
            }
        }
        self.shapes = kept;
        Ok(())
    }

    /// Replaces the shapes by one for each type, with what all shapes of that type have in common.
    /// Returns the names of properties that some shapes list, and others leave open.
    pub(super) fn widen(&mut self, parser: &mut Parser<'_>) -> Result<HashSet<String>, Stop> {
        let mut left_open = HashSet::new();
        let outer = parser.enter_merge();
        let is_expanded = self.expand(parser)?;
        let shapes = std::mem::take(&mut self.shapes);
        if !is_expanded {
            self.shapes = vec![Shape::default()];
        } else {
            // Each keyword applies to one type, so one shape can hold those of all types.
            let mut common = Shape { types: Types::NONE, ..Shape::default() };
            for group in GROUPS {
                let mut members = Vec::new();
                for shape in shapes.iter().filter(|shape| shape.types.intersects(group)) {
                    parser.take(shape.weight())?;
                    let mut member = shape.clone();
                    member.types = member.types & group;
                    if member.settle(parser)? {
                        members.push(member);
                    }
                }
                if members.is_empty() {
                    continue;
                }
                let wide = Shape::widest(members, &mut left_open, parser)?;
                if wide.values.is_some() || wide.format.is_some() {
                    self.shapes.push(wide);
                } else {
                    common.take_type(wide, group);
                }
            }
            if common.types != Types::NONE {
                self.shapes.push(common);
            }
        }
        parser.leave_merge(outer);
        Ok(left_open)
    }

    /// Replaces references by their definitions; false when one cannot be followed here.
    pub(in crate::schema) fn expand(&mut self, parser: &mut Parser<'_>) -> Result<bool, Stop> {
        while self.shapes.iter().any(|shape| shape.reference.is_some()) {
            let mut shapes = Vec::with_capacity(self.shapes.len());
            let is_lone = self.shapes.len() == 1;
            let mut rest = std::mem::take(&mut self.shapes).into_iter();
            while let Some(shape) = rest.next() {
                let target = match &shape.reference {
                    Some(pointer) => parser.expand(pointer)?,
                    None => {
                        shapes.push(shape);
                        continue;
                    }
                };
                let Some(mut node) = target else {
                    shapes.push(shape);
                    shapes.extend(rest);
                    self.shapes = shapes;
                    return Ok(false);
                };
                node.annotations = shape.annotations.join(node.annotations);
                if is_lone {
                    let own = std::mem::take(&mut self.annotations);
                    self.annotations = own.join(std::mem::take(&mut node.annotations));
                }
                let mut flat = Self { annotations: Annotations::default(), shapes };
                flat.add(node, parser)?;
                shapes = flat.shapes;
            }
            self.shapes = shapes;
        }
        Ok(true)
    }
}

impl Shape {
    /// Whether the list of values is the only restriction.
    fn only_lists_values(&mut self) -> bool {
        let values = self.values.take();
        let types = std::mem::replace(&mut self.types, Types::ALL);
        let only = self.is_unrestricted();
        (self.values, self.types) = (values, types);
        only
    }

    /// Takes over the keywords of another shape for the values of one type.
    fn take_type(&mut self, other: Self, group: Types) {
        self.types = self.types | other.types;
        match group {
            Types::NUMBER => (self.minimum, self.maximum) = (other.minimum, other.maximum),
            Types::STRING => {
                (self.min_length, self.max_length) = (other.min_length, other.max_length);
                self.pattern = other.pattern;
            }
            Types::ARRAY => {
                (self.min_items, self.max_items) = (other.min_items, other.max_items);
                (self.prefix_items, self.items) = (other.prefix_items, other.items);
            }
            Types::OBJECT => {
                let bounds = (other.min_properties, other.max_properties);
                (self.min_properties, self.max_properties) = bounds;
                (self.properties, self.additional) = (other.properties, other.additional);
                (self.required, self.mentioned) = (other.required, other.mentioned);
            }
            _ => {}
        }
    }

    /// A shape that allows what any of `shapes` allows; these are all of one type.
    fn widest(
        shapes: Vec<Self>,
        left_open: &mut HashSet<String>,
        parser: &mut Parser<'_>,
    ) -> Result<Self, Stop> {
        let all = |of: fn(&Self) -> Option<u64>, wider: fn(u64, u64) -> u64| {
            let counts: Option<Vec<u64>> = shapes.iter().map(of).collect();
            counts.and_then(|counts| counts.into_iter().reduce(wider))
        };
        let same = |of: fn(&Self) -> &Option<String>| {
            let first = of(&shapes[0]);
            shapes.iter().all(|shape| of(shape) == first).then(|| first.clone()).flatten()
        };
        let mut wide = Self {
            types: shapes.iter().fold(Types::NONE, |types, shape| types | shape.types),
            min_length: all(|shape| shape.min_length, u64::min),
            max_length: all(|shape| shape.max_length, u64::max),
            min_items: all(|shape| shape.min_items, u64::min),
            max_items: all(|shape| shape.max_items, u64::max),
            min_properties: all(|shape| shape.min_properties, u64::min),
            max_properties: all(|shape| shape.max_properties, u64::max),
            pattern: same(|shape| &shape.pattern),
            format: same(|shape| &shape.format),
            minimum: widest_bound(shapes.iter().map(|shape| &shape.minimum), Ordering::Less),
            maximum: widest_bound(shapes.iter().map(|shape| &shape.maximum), Ordering::Greater),
            required: common_names(&shapes),
            values: all_values(&shapes),
            ..Self::default()
        };
        wide.widen_items(&shapes, parser)?;
        left_open.extend(names_left_open(&shapes));
        wide.widen_properties(shapes, parser)?;
        Ok(wide)
    }

    fn widen_items(&mut self, shapes: &[Self], parser: &mut Parser<'_>) -> Result<(), Stop> {
        let nodes: Option<Vec<Node>> = if shapes.iter().all(|shape| shape.prefix_items.is_empty()) {
            shapes.iter().map(|shape| shape.items.as_deref().cloned()).collect()
        } else {
            let length = shapes[0].prefix_items.len();
            if shapes.iter().any(|shape| shape.prefix_items.len() != length) {
                return Ok(());
            }
            for place in 0..length {
                let nodes = shapes.iter().map(|shape| shape.prefix_items[place].clone()).collect();
                self.prefix_items.push(Node::any_of(nodes, parser)?);
            }
            shapes.iter().map(|shape| shape.items.as_deref().cloned()).collect()
        };
        if let Some(nodes) = nodes {
            self.items = Some(Box::new(Node::any_of(nodes, parser)?));
        }
        Ok(())
    }

    /// Allows for each property what any shape that lists it allows, and what the additional
    /// properties of the others suggest.
    fn widen_properties(&mut self, shapes: Vec<Self>, parser: &mut Parser<'_>) -> Result<(), Stop> {
        let mut listed: IndexMap<String, Vec<Node>> = IndexMap::new();
        let mut mentioned: IndexMap<String, Vec<Node>> = IndexMap::new();
        let mut added = Vec::new();
        for shape in shapes {
            for (name, node) in shape.properties {
                listed.entry(name).or_default().push(node);
            }
            for (name, node) in shape.mentioned {
                mentioned.entry(name).or_default().push(node);
            }
            added.push(shape.additional);
        }
        let is_allowed = added.contains(&Additional::Allowed);
        for (name, nodes) in listed {
            let node = if is_allowed && nodes.len() < added.len() {
                Node::any()
            } else {
                let others = (nodes.len() < added.len())
                    .then(|| added.iter().filter_map(Additional::suggestion).cloned())
                    .into_iter()
                    .flatten();
                Node::any_of(nodes.into_iter().chain(others).collect(), parser)?
            };
            self.properties.insert(name, node);
        }
        for (name, nodes) in mentioned {
            self.mentioned.insert(name, Node::any_of(nodes, parser)?);
        }
        self.additional = Additional::widest(added, parser)?;
        Ok(())
    }
}

impl Additional {
    /// The schema of unlisted properties, if there is one that allows a value.
    fn suggestion(&self) -> Option<&Node> {
        match self {
            Self::Fitting(node) | Self::Matching(node) if !node.is_never() => Some(node),
            _ => None,
        }
    }

    fn widest(all: Vec<Self>, parser: &mut Parser<'_>) -> Result<Self, Stop> {
        if all.contains(&Self::Allowed) {
            return Ok(Self::Allowed);
        }
        let any_unspecified = all.contains(&Self::Unspecified);
        let nodes: Vec<Node> = all.iter().filter_map(Self::suggestion).cloned().collect();
        Ok(match (nodes.is_empty(), any_unspecified) {
            (true, true) => Self::Unspecified,
            (true, false) => Self::Fitting(Box::new(Node::never())),
            (false, _) => Self::Matching(Box::new(Node::any_of(nodes, parser)?)),
        })
    }
}

fn widest_bound<'b>(
    mut bounds: impl Iterator<Item = &'b Option<Bound>>,
    wider: Ordering,
) -> Option<Bound> {
    let first = bounds.next()?.clone()?;
    bounds.try_fold(first, |wide, bound| {
        let bound = bound.clone()?;
        let order = number::compare(&bound.value, &wide.value);
        let is_wider = order == wider || (order == Ordering::Equal && !bound.exclusive);
        Some(if is_wider { bound } else { wide })
    })
}

/// The names that some shapes list, and that others neither list nor restrict.
fn names_left_open(shapes: &[Shape]) -> HashSet<String> {
    let (open, closed): (Vec<&Shape>, Vec<&Shape>) =
        shapes.iter().partition(|shape| shape.additional == Additional::Unspecified);
    let mut listed: HashMap<&String, usize> = HashMap::new();
    for name in open.iter().flat_map(|shape| shape.properties.keys()) {
        *listed.entry(name).or_default() += 1;
    }
    if !open.is_empty() {
        for name in closed.iter().flat_map(|shape| shape.properties.keys()) {
            listed.entry(name).or_default();
        }
    }
    let left_open = listed.into_iter().filter(|(_, count)| *count < open.len());
    left_open.map(|(name, _)| name.clone()).collect()
}

fn common_names(shapes: &[Shape]) -> BTreeSet<String> {
    let mut common = shapes[0].required.clone();
    for shape in &shapes[1..] {
        common.retain(|name| shape.required.contains(name));
    }
    common
}

/// The values of all shapes; none when one of them lists no values.
fn all_values(shapes: &[Shape]) -> Option<Vec<Value>> {
    let mut known = HashSet::new();
    let mut all = Vec::new();
    for shape in shapes {
        let values = shape.values.as_ref()?;
        all.extend(values.iter().filter(|value| known.insert(number::canonical(value))).cloned());
    }
    Some(all)
}
