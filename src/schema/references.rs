//! Decides which references are sent as references, and which are inlined.
//!
//! `responseSchema` has no references, so all of them are inlined, as long as the schema stays
//! small. In `responseJsonSchema` a definition that is used more than once is sent once.

use std::borrow::Cow;
use std::collections::{BTreeMap, HashMap, HashSet};

use super::parse::Translation;
use super::shape::{Additional, Node, Shape};
use super::{SchemaError, empty};

/// Definitions of at most this weight are inlined wherever they are used.
const LIGHT: usize = 4;

/// The deepest definition that is inlined, in levels. Gemini refuses deep schemas ("exceeds the
/// maximum allowed nesting depth"), and accepts them with references.
const MAX_LEVELS: usize = 8;

/// The most repetitions of a node that count towards the size.
const MAX_REPEATS: usize = 4;

/// How much a schema may grow when all references are inlined: in percent of its weight, plus a
/// constant.
const MAX_GROWTH: usize = 150;
const WEIGHT_TO_SPARE: usize = 40;

/// Nodes in which the references that are not sent are inlined.
pub(super) struct Resolved<'t> {
    pub(super) root: Cow<'t, Node>,
    pub(super) definitions: Done<'t>,
}

/// Definitions that are already resolved.
type Done<'t> = BTreeMap<&'t str, Cow<'t, Node>>;

/// The size of a definition, and its references.
#[derive(Debug, Clone, Default)]
struct Measure {
    /// Of the node itself.
    weight: usize,
    /// The definition of each reference, with repetitions.
    targets: Vec<String>,
    levels: usize,
    /// The levels down to each of the targets.
    target_levels: Vec<usize>,
}

/// A translation with the sizes of its definitions.
pub(super) struct References<'t> {
    translation: &'t Translation,
    measures: HashMap<&'t str, Measure>,
    /// The definitions reachable from the root, each after those it refers to, except in cycles.
    order: Vec<&'t str>,
    /// Definitions that refer to themselves, directly or through others: at least one for each
    /// cycle.
    recursive: HashSet<&'t str>,
    /// Definitions that allow a value; none when all are known to, or when this is unknown.
    possible: Option<HashSet<&'t str>>,
}

impl<'t> References<'t> {
    pub(super) fn of(translation: &'t Translation) -> Self {
        let mut references = Self {
            translation,
            measures: HashMap::new(),
            order: Vec::new(),
            recursive: HashSet::new(),
            possible: None,
        };
        references.survey();
        references.find_possible();
        references
    }

    /// Visits the definitions from the root, depth first, without recursion: there may be many.
    fn survey(&mut self) {
        let mut open: HashSet<&str> = HashSet::new();
        let mut stack: Vec<(&'t str, usize)> = Vec::new();
        self.open("", &mut stack, &mut open);
        while let Some((pointer, next)) = stack.last_mut() {
            let here = *pointer;
            let Some(target) = self.measures[here].targets.get(*next).cloned() else {
                open.remove(here);
                self.order.push(here);
                stack.pop();
                continue;
            };
            *next += 1;
            let Some((target, _)) = self.translation.definitions.get_key_value(&target) else {
                continue;
            };
            if open.contains(target.as_str()) {
                self.recursive.insert(target);
            } else if !self.measures.contains_key(target.as_str()) {
                self.open(target, &mut stack, &mut open);
            }
        }
    }

    fn open(
        &mut self,
        pointer: &'t str,
        stack: &mut Vec<(&'t str, usize)>,
        open: &mut HashSet<&'t str>,
    ) {
        let node = &self.translation.definitions[pointer];
        let mut measure = Measure { weight: node.weight(), ..Measure::default() };
        measure.add(node, 0);
        self.measures.insert(pointer, measure);
        open.insert(pointer);
        stack.push((pointer, 0));
    }

    fn find_possible(&mut self) {
        let possible = empty::possible(&self.translation.definitions, &self.order);
        self.possible = possible.filter(|possible| possible.len() < self.order.len());
    }

    /// Checks that some value can be valid.
    ///
    /// # Errors
    /// The reason why no value can be valid.
    pub(super) fn allow_a_value(&self) -> Result<(), SchemaError> {
        match &self.possible {
            Some(possible) if !possible.contains("") => Err(self.translation.no_value(possible)),
            _ => Ok(()),
        }
    }

    /// The root with all references inlined; none when it is recursive, or would become much larger
    /// or too deep.
    pub(super) fn written_out(&self) -> Option<Resolved<'t>> {
        if !self.recursive.is_empty() {
            return None;
        }
        let mut sizes: HashMap<&str, (usize, usize)> = HashMap::new();
        let mut own = 0_usize;
        for pointer in &self.order {
            let measure = &self.measures[pointer];
            let (mut weight, mut levels) = (measure.weight, measure.levels);
            for (target, depth) in measure.targets.iter().zip(&measure.target_levels) {
                let (inner, inner_levels) = sizes.get(target.as_str()).copied().unwrap_or_default();
                weight = weight.saturating_add(inner);
                levels = levels.max(depth + inner_levels);
            }
            own += measure.weight;
            sizes.insert(pointer, (weight, levels));
        }
        let (weight, levels) = sizes[""];
        let is_deep = levels > MAX_LEVELS && self.order.len() > 1;
        let is_light = weight <= own * MAX_GROWTH / 100 + WEIGHT_TO_SPARE;
        (is_light && !is_deep).then(|| self.resolved(&HashSet::new()))
    }

    /// The root and the definitions, with references to definitions that are used more than once.
    pub(super) fn kept(&self) -> Resolved<'t> {
        let mut uses: HashMap<&str, usize> = HashMap::new();
        for pointer in &self.order {
            for target in &self.measures[pointer].targets {
                *uses.entry(target).or_default() += 1;
            }
        }
        let mut kept: HashSet<&str> = self.recursive.clone();
        let mut levels: HashMap<&str, usize> = HashMap::new();
        for pointer in &self.order {
            let measure = &self.measures[pointer];
            let through = measure.targets.iter().zip(&measure.target_levels);
            let deepest = through
                .filter(|(target, _)| !kept.contains(target.as_str()))
                .map(|(target, depth)| depth + levels.get(target.as_str()).copied().unwrap_or(0))
                .fold(measure.levels, usize::max);
            levels.insert(pointer, deepest);
            let is_light = measure.weight <= LIGHT && measure.targets.is_empty();
            let is_used = uses.get(pointer).copied().unwrap_or(0);
            if (is_used > 1 && !is_light) || (is_used > 0 && deepest > MAX_LEVELS) {
                kept.insert(pointer);
            }
        }
        self.resolved(&kept)
    }

    fn resolved(&self, kept: &HashSet<&str>) -> Resolved<'t> {
        let mut done: Done<'t> = BTreeMap::new();
        for pointer in &self.order {
            let node = &self.translation.definitions[*pointer];
            let is_sent = |target: &String| kept.contains(target.as_str());
            let stays =
                self.possible.is_none() && self.measures[pointer].targets.iter().all(is_sent);
            let node = match stays {
                true => Cow::Borrowed(node),
                false => Cow::Owned(self.resolve(node, kept, &done)),
            };
            done.insert(pointer, node);
        }
        let root = if kept.contains("") {
            Cow::Owned(Node::reference(String::new()))
        } else {
            done.remove("").unwrap_or_else(|| Cow::Owned(Node::any()))
        };
        done.retain(|pointer, node| kept.contains(pointer) && !node.is_never());
        Resolved { root, definitions: done }
    }

    fn resolve(&self, node: &Node, kept: &HashSet<&str>, done: &Done<'_>) -> Node {
        let is_lone = node.shapes.len() == 1;
        let mut resolved = Node { annotations: node.annotations.clone(), shapes: Vec::new() };
        let has_value = |shape: &&Shape| {
            self.possible.as_ref().is_none_or(|possible| empty::shape_has_value(shape, possible))
        };
        for shape in node.shapes.iter().filter(has_value) {
            let Some(target) = &shape.reference else {
                resolved.shapes.push(self.resolve_inside(shape, kept, done));
                continue;
            };
            let Some(found) = done.get(target.as_str()).filter(|_| !kept.contains(target.as_str()))
            else {
                resolved.shapes.push(shape.clone());
                continue;
            };
            let annotations = shape.annotations.clone().join(found.annotations.clone());
            if is_lone {
                resolved.annotations = std::mem::take(&mut resolved.annotations).join(annotations);
                resolved.shapes.extend(found.shapes.iter().cloned());
            } else {
                resolved.shapes.extend(annotations.spread(found.shapes.clone()));
            }
        }
        resolved
    }

    fn resolve_inside(&self, shape: &Shape, kept: &HashSet<&str>, done: &Done<'_>) -> Shape {
        let node = |node: &Node| self.resolve(node, kept, done);
        let boxed = |inner: &Node| Box::new(node(inner));
        let all = |nodes: &indexmap::IndexMap<String, Node>| {
            nodes.iter().map(|(name, inner)| (name.clone(), node(inner))).collect()
        };
        Shape {
            prefix_items: shape.prefix_items.iter().map(node).collect(),
            items: shape.items.as_deref().map(boxed),
            properties: all(&shape.properties),
            mentioned: all(&shape.mentioned),
            additional: match &shape.additional {
                Additional::Fitting(inner) => Additional::Fitting(boxed(inner)),
                Additional::Matching(inner) => Additional::Matching(boxed(inner)),
                other => other.clone(),
            },
            ..shape.without_nodes()
        }
    }
}

impl Measure {
    fn add(&mut self, node: &Node, depth: usize) {
        self.levels = self.levels.max(depth + 1);
        for shape in &node.shapes {
            if let Some(target) = &shape.reference {
                self.targets.push(target.clone());
                self.target_levels.push(depth);
            }
            shape.nodes().for_each(|inner| self.add(inner, depth + 1));
            // A required name that is not listed is written with the schema of additional
            // properties.
            if let Some(inner) = shape.additional.any_node() {
                let unlisted = shape.required.iter().filter(|name| shape.property(name).is_none());
                for _ in unlisted.take(MAX_REPEATS) {
                    self.weight += inner.weight();
                    self.add(inner, depth + 1);
                }
            }
        }
    }
}
