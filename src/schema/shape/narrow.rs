//! Conjunctions: the values that several nodes allow.

use std::cmp::Ordering;
use std::collections::HashSet;

use indexmap::IndexMap;
use indexmap::map::Entry;
use serde_json::Value;

use super::{Additional, MAX_SHAPES, Node, Shape};
use crate::schema::number::{self, Bound};
use crate::schema::parse::{Parser, Stop};

/// A conjunction is multiplied out as long as its weight is at most one and a half times that of
/// its parts, plus this much. Keywords beside a union are repeated in each alternative.
const WEIGHT_TO_SPARE: usize = 30;

impl Node {
    /// Narrows this node to the values that `other` also allows. Returns false when no node can
    /// express that: the result is then only partly narrowed, and `other` must be described.
    pub(in crate::schema) fn narrow(
        &mut self,
        mut other: Self,
        parser: &mut Parser<'_>,
    ) -> Result<bool, Stop> {
        let own = std::mem::take(&mut self.annotations);
        self.annotations = own.join(std::mem::take(&mut other.annotations));
        if other.allows_everything() {
            self.lift_annotations(&mut other);
            return Ok(true);
        }
        if self.allows_everything() {
            let mut own = std::mem::replace(self, other);
            std::mem::swap(&mut self.annotations, &mut own.annotations);
            self.lift_annotations(&mut own);
            return Ok(true);
        }
        if self.is_reference_of(&other) {
            self.lift_annotations(&mut other);
            return Ok(true);
        }
        let outer = parser.enter_merge();
        let is_whole = self.narrow_expanded(other, parser)?;
        parser.leave_merge(outer);
        Ok(is_whole)
    }

    fn narrow_expanded(&mut self, mut other: Self, parser: &mut Parser<'_>) -> Result<bool, Stop> {
        if !(other.expand(parser)? && self.expand(parser)?) {
            self.open();
            return Ok(false);
        }
        let mut is_whole = true;
        while self.is_too_much_with(&other) {
            is_whole = false;
            let (own, others) = (self.alternatives(), other.alternatives());
            if own.max(others) <= 1 {
                break;
            }
            let (wider, narrower) = match others >= own {
                true => (&mut other, &*self),
                false => (&mut *self, &other),
            };
            let left_open = wider.widen(parser)?;
            wider.leave_to(narrower, &left_open);
            if wider.alternatives() >= own.max(others) {
                break;
            }
        }
        // The usual case, in which nothing is copied.
        if let ([a], [b]) = (&mut self.shapes[..], &mut other.shapes[..]) {
            is_whole &= a.and(b, parser)?;
            if !a.settle(parser)? {
                self.shapes.clear();
            }
            return Ok(is_whole);
        }
        for a in std::mem::take(&mut self.shapes) {
            for b in &other.shapes {
                parser.take(a.weight() + b.weight())?;
                let mut both = Box::new(a.clone());
                is_whole &= both.and(&mut b.clone(), parser)?;
                if both.settle(parser)? {
                    self.shapes.push(*both);
                }
            }
        }
        Ok(is_whole)
    }

    /// Drops the properties in `left_open` that `other` lists: some alternatives allow there
    /// whatever `other` allows.
    fn leave_to(&mut self, other: &Self, left_open: &HashSet<String>) {
        let is_listed =
            |name: &str| other.shapes.iter().all(|shape| shape.properties.contains_key(name));
        for shape in &mut self.shapes {
            shape.properties.retain(|name, _| !(left_open.contains(name) && is_listed(name)));
        }
    }

    /// Allows additional properties, whose names are not known here.
    fn open(&mut self) {
        for shape in &mut self.shapes {
            if shape.additional == Additional::Unspecified && !shape.properties.is_empty() {
                shape.additional = Additional::Allowed;
            }
        }
    }

    fn is_too_much_with(&self, other: &Self) -> bool {
        let (own, others) = (self.alternatives(), other.alternatives());
        if own <= 1 && others <= 1 {
            return false;
        }
        let (weight, other_weight) = (self.weight(), other.weight());
        let product =
            weight.saturating_mul(others.max(1)) + other_weight.saturating_mul(own.max(1));
        own * others > MAX_SHAPES || product > (weight + other_weight) * 3 / 2 + WEIGHT_TO_SPARE
    }

    /// Takes over the annotations of `other`'s only shape.
    fn lift_annotations(&mut self, other: &mut Self) {
        if let [shape] = &mut other.shapes[..] {
            let own = std::mem::take(&mut self.annotations);
            self.annotations = own.join(std::mem::take(&mut shape.annotations));
        }
    }

    fn is_reference_of(&self, other: &Self) -> bool {
        let target = |node: &Self| match &node.shapes[..] {
            [Shape { reference: Some(target), .. }] => Some(target.clone()),
            _ => None,
        };
        target(self).is_some_and(|own| target(other) == Some(own))
    }
}

impl Shape {
    /// Narrows this shape to the values that `other` also allows. Returns false when the result
    /// leaves out a restriction of `other`. Consumes the contents of `other`.
    fn and(&mut self, other: &mut Self, parser: &mut Parser<'_>) -> Result<bool, Stop> {
        parser.take(1)?;
        let own = std::mem::take(&mut self.annotations);
        let annotations = own.join(std::mem::take(&mut other.annotations));
        let is_whole = if other.is_unrestricted() {
            Some(true)
        } else if self.is_unrestricted() {
            std::mem::swap(self, other);
            Some(true)
        } else {
            (self.reference.is_some() || other.reference.is_some()).then_some(false)
        };
        self.annotations = annotations;
        match is_whole {
            Some(is_whole) => Ok(is_whole),
            None => self.narrow_keywords(other, parser),
        }
    }

    fn narrow_keywords(&mut self, other: &mut Self, parser: &mut Parser<'_>) -> Result<bool, Stop> {
        let max = |a: Option<u64>, b: Option<u64>| a.max(b);
        let min = |a: Option<u64>, b: Option<u64>| a.into_iter().chain(b).min();
        self.types = self.types & other.types;
        self.values = common_values(self.values.take(), other.values.take(), parser)?;
        self.minimum = Bound::narrow(self.minimum.take(), other.minimum.take(), Ordering::Greater);
        self.maximum = Bound::narrow(self.maximum.take(), other.maximum.take(), Ordering::Less);
        self.min_length = max(self.min_length, other.min_length);
        self.max_length = min(self.max_length, other.max_length);
        self.min_items = max(self.min_items, other.min_items);
        self.max_items = min(self.max_items, other.max_items);
        self.min_properties = max(self.min_properties, other.min_properties);
        self.max_properties = min(self.max_properties, other.max_properties);
        // `BTreeSet::append` would visit all names of both.
        if self.required.len() < other.required.len() {
            std::mem::swap(&mut self.required, &mut other.required);
        }
        parser.take(other.required.len())?;
        self.required.extend(std::mem::take(&mut other.required));
        let mut is_whole = set_or_same(&mut self.pattern, other.pattern.take());
        is_whole &= set_or_same(&mut self.format, other.format.take());
        is_whole &= self.narrow_items(other, parser)?;
        is_whole &= self.narrow_properties(other, parser)?;
        is_whole &= self.additional.narrow(std::mem::take(&mut other.additional), parser)?;
        self.mention(std::mem::take(&mut other.mentioned), parser)?;
        Ok(is_whole)
    }

    fn narrow_items(&mut self, other: &mut Self, parser: &mut Parser<'_>) -> Result<bool, Stop> {
        let mut is_whole = true;
        let others = std::mem::take(&mut other.prefix_items);
        let count = others.len();
        for (i, node) in others.into_iter().enumerate() {
            if i >= self.prefix_items.len() {
                self.prefix_items.push(copy_or_any(self.items.as_deref(), parser)?);
            }
            is_whole &= self.prefix_items[i].narrow(node, parser)?;
        }
        let Some(items) = other.items.take() else { return Ok(is_whole) };
        for node in self.prefix_items.iter_mut().skip(count) {
            is_whole &= node.narrow(copy(&items, parser)?, parser)?;
        }
        match &mut self.items {
            Some(own) => is_whole &= own.narrow(*items, parser)?,
            own => *own = Some(items),
        }
        Ok(is_whole)
    }

    fn narrow_properties(
        &mut self,
        other: &mut Self,
        parser: &mut Parser<'_>,
    ) -> Result<bool, Stop> {
        let mut is_whole = true;
        if let Some(node) = other.additional.node() {
            let named = &other.properties;
            for (_, own) in
                self.properties.iter_mut().filter(|(name, _)| !named.contains_key(*name))
            {
                is_whole &= own.narrow(copy(node, parser)?, parser)?;
            }
        }
        for (name, node) in std::mem::take(&mut other.properties) {
            parser.take(1)?;
            let own = match self.properties.entry(name) {
                Entry::Occupied(own) => own.into_mut(),
                Entry::Vacant(own) => own.insert(copy_or_any(self.additional.node(), parser)?),
            };
            is_whole &= own.narrow(node, parser)?;
        }
        Ok(is_whole)
    }

    /// Adds names that only conditions mention, each with a disjunction of its schemas.
    pub(in crate::schema) fn mention(
        &mut self,
        names: IndexMap<String, Node>,
        parser: &mut Parser<'_>,
    ) -> Result<(), Stop> {
        for (name, node) in names {
            match self.mentioned.entry(name) {
                Entry::Vacant(own) => drop(own.insert(node)),
                Entry::Occupied(mut own) => {
                    let known = std::mem::replace(own.get_mut(), Node::never());
                    *own.get_mut() = Node::any_of(vec![known, node], parser)?;
                }
            }
        }
        Ok(())
    }
}

impl Additional {
    fn narrow(&mut self, other: Self, parser: &mut Parser<'_>) -> Result<bool, Stop> {
        match (&mut *self, other) {
            (Self::Fitting(own), Self::Fitting(other)) => return own.narrow(*other, parser),
            (Self::Matching(own), Self::Matching(other)) => {
                let own_node = std::mem::replace(&mut **own, Node::never());
                **own = Node::any_of(vec![own_node, *other], parser)?;
            }
            (Self::Fitting(_), _)
            | (Self::Allowed, Self::Unspecified | Self::Matching(_))
            | (Self::Matching(_), Self::Unspecified) => {}
            (_, other) => *self = other,
        }
        Ok(true)
    }
}

fn copy(node: &Node, parser: &mut Parser<'_>) -> Result<Node, Stop> {
    parser.take(node.weight())?;
    Ok(node.clone())
}

fn copy_or_any(node: Option<&Node>, parser: &mut Parser<'_>) -> Result<Node, Stop> {
    node.map_or_else(|| Ok(Node::any()), |node| copy(node, parser))
}

/// Sets a value that is not set; false when another value is set.
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

/// The values in both lists, if both are given.
fn common_values(
    a: Option<Vec<Value>>,
    b: Option<Vec<Value>>,
    parser: &mut Parser<'_>,
) -> Result<Option<Vec<Value>>, Stop> {
    let (mut a, b) = match (a, b) {
        (Some(a), Some(b)) => (a, b),
        (a, b) => return Ok(a.or(b)),
    };
    parser.take(a.len() + b.len())?;
    let b: HashSet<String> = b.iter().map(number::canonical).collect();
    a.retain(|value| b.contains(&number::canonical(value)));
    Ok(Some(a))
}
