//! Resolves the references of a document, including dynamic ones.
//!
//! A `$dynamicRef` leads to the outermost resource with its anchor on the path that the validator
//! took. These paths are followed here: a schema that is reached in several scopes is read once for
//! each. Afterwards every reference is a plain one.

use std::collections::{BTreeMap, HashMap};

use serde_json::{Map, Value};

use super::keyword::subschemas;
use super::names::{Names, RECURSIVE};
use crate::schema::work::Work;
use crate::schema::{NotCompiled, SchemaError, shorten};

/// The most schemas that are only reached by references: in unknown keywords, or again in another
/// scope.
const MAX_EXTRA: usize = 1_000;

/// The most anchors in all scopes together, as each scope has a copy.
const MAX_BOUND: usize = 100_000;

/// The keywords for references.
pub(super) const REFERENCES: [&str; 3] = ["$ref", "$dynamicRef", "$recursiveRef"];

/// The index of the set of dynamic anchors that are bound on a path through the document.
pub(super) type Scope = usize;

/// A schema, and the scope in which it is reached.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) struct Target {
    pub(super) pointer: String,
    pub(super) scope: Scope,
}

/// All paths through a document.
pub(super) struct Scopes<'a> {
    pub(super) names: Names<'a>,
    /// The bindings of each scope: JSON Pointers by anchor.
    bound: Vec<BTreeMap<&'a str, String>>,
    indexes: HashMap<BTreeMap<&'a str, String>, Scope>,
    anchors: usize,
    /// The scope of each resource at its own place.
    own: Vec<Scope>,
    /// The targets of references: the scopes in which each is reached, by JSON Pointer.
    targets: HashMap<String, Vec<Scope>>,
    /// The targets that are not read at their own place.
    pub(super) extra: Vec<Target>,
}

impl<'a> Scopes<'a> {
    /// Follows all references.
    ///
    /// # Errors
    /// A reference that does not lead to a schema of the document, or too many paths.
    pub(super) fn of(names: Names<'a>, work: &Work) -> Result<Self, NotCompiled> {
        let mut scopes = Self {
            names,
            bound: vec![BTreeMap::new()],
            indexes: HashMap::from([(BTreeMap::new(), 0)]),
            anchors: 0,
            own: Vec::new(),
            targets: HashMap::new(),
            extra: Vec::new(),
        };
        for resource in 0..scopes.names.resources.len() {
            let around = scopes.names.resources[resource].parent.map_or(0, |at| scopes.own[at]);
            let own = scopes.enter(around, resource);
            scopes.own.push(own);
            scopes.check_anchors("")?;
        }
        let root = Target { pointer: String::new(), scope: scopes.own[0] };
        scopes.follow_all(&root, work)?;
        let mut next = 0;
        while let Some(target) = scopes.extra.get(next).cloned() {
            scopes.follow_all(&target, work)?;
            next += 1;
        }
        Ok(scopes)
    }

    /// The scope of the document's root.
    pub(super) fn root(&self) -> Scope {
        self.own[0]
    }

    /// The scope inside a resource that is entered from `scope`. Anchors that are already bound
    /// stay bound.
    pub(super) fn enter(&mut self, scope: Scope, resource: usize) -> Scope {
        let dynamic = &self.names.resources[resource].dynamic;
        let is_bound = |name: &&str| self.bound[scope].contains_key(name);
        if dynamic.iter().all(|(name, _)| is_bound(name)) {
            return scope;
        }
        let mut bound = self.bound[scope].clone();
        for (name, pointer) in dynamic {
            bound.entry(name).or_insert_with(|| pointer.clone());
        }
        let next = self.bound.len();
        let index = *self.indexes.entry(bound.clone()).or_insert(next);
        if index == next {
            self.anchors += bound.len();
            self.bound.push(bound);
        }
        index
    }

    fn check_anchors(&self, pointer: &str) -> Result<(), SchemaError> {
        if self.anchors <= MAX_BOUND {
            return Ok(());
        }
        Err(SchemaError::new(pointer, "its dynamic anchors combine in too many ways"))
    }

    /// The target of a reference in `resource`, which was reached in `scope`.
    pub(super) fn target(
        &mut self,
        keyword: &str,
        reference: &str,
        resource: usize,
        scope: Scope,
    ) -> Result<Target, String> {
        let found = self.names.resolve(reference, resource)?;
        let name = match keyword {
            "$dynamicRef" => found.dynamic,
            "$recursiveRef" => Some(RECURSIVE).filter(|name| {
                let dynamic = &self.names.resources[found.resource].dynamic;
                dynamic.iter().any(|(known, _)| known == name)
            }),
            _ => None,
        };
        let entered = self.enter(scope, found.resource);
        let bound = name.and_then(|name| self.bound[entered].get(name).cloned());
        let pointer = bound.unwrap_or(found.pointer);
        let scope = self.enter(scope, self.names.resource_of(&pointer));
        Ok(Target { pointer, scope })
    }

    /// Follows the references in a schema.
    fn follow_all(&mut self, from: &Target, work: &Work) -> Result<(), NotCompiled> {
        let resource = self.names.resource_of(&from.pointer);
        let schema = self.names.value(&from.pointer);
        self.follow(schema, &mut from.pointer.clone(), resource, from.scope, work)
    }

    fn follow(
        &mut self,
        schema: &'a Value,
        pointer: &mut String,
        resource: usize,
        scope: Scope,
        work: &Work,
    ) -> Result<(), NotCompiled> {
        work.spend(1)?;
        let Value::Object(map) = schema else { return Ok(()) };
        let (resource, scope) = match self.names.resource_at(pointer) {
            Some(entered) => (entered, self.enter(scope, entered)),
            None => (resource, scope),
        };
        self.check_anchors(pointer)?;
        if map.keys().any(|keyword| keyword.starts_with('$')) {
            self.follow_own(map, pointer, resource, scope, work)?;
        }
        let draft = self.names.resources[resource].draft;
        subschemas(map, draft, |path, subschema| {
            let length = pointer.len();
            path.push_to(pointer);
            self.follow(subschema, pointer, resource, scope, work)?;
            pointer.truncate(length);
            Ok(())
        })
    }

    fn follow_own(
        &mut self,
        map: &Map<String, Value>,
        pointer: &str,
        resource: usize,
        scope: Scope,
        work: &Work,
    ) -> Result<(), NotCompiled> {
        let draft = self.names.resources[resource].draft;
        for keyword in REFERENCES {
            let Some(reference) = map.get(keyword).and_then(Value::as_str) else { continue };
            if super::keyword::known(map, keyword, draft).is_none() {
                continue;
            }
            work.spend(1 + reference.len())?;
            let target = self.target(keyword, reference, resource, scope).map_err(|message| {
                SchemaError::new(format!("{pointer}/{keyword}"), shorten(&message))
            })?;
            if self.is_target(&target.pointer, target.scope) {
                continue;
            }
            let scopes = self.targets.entry(target.pointer.clone()).or_default();
            scopes.push(target.scope);
            if !self.is_read_anyway(&target) {
                self.extra.push(target);
                if self.extra.len() > MAX_EXTRA {
                    let message = format!(
                        "its references lead to more than {MAX_EXTRA} schemas outside of $defs \
                         and other keywords of its draft"
                    );
                    return Err(SchemaError::new(pointer, message).into());
                }
            }
        }
        Ok(())
    }

    /// Whether a reference leads to the schema at a JSON Pointer in this scope.
    pub(super) fn is_target(&self, pointer: &str, scope: Scope) -> bool {
        self.targets.get(pointer).is_some_and(|scopes| scopes.contains(&scope))
    }

    /// Whether a target is read with the document, or with another extra schema.
    fn is_read_anyway(&self, target: &Target) -> bool {
        let resource = self.names.resource_of(&target.pointer);
        if self.own[resource] == target.scope && self.names.is_read("", &target.pointer) {
            return true;
        }
        self.extra.iter().any(|extra| {
            extra.scope == target.scope
                && target.pointer.starts_with(&extra.pointer)
                && self.names.resource_of(&extra.pointer) == resource
                && self.names.is_read(&extra.pointer, &target.pointer)
        })
    }
}
