//! The names of the schemas in a document, and the resolution of its references.

use std::collections::HashMap;

use jsonschema::uri;
use serde_json::{Map, Value};

use super::keyword::{Draft, Holds, known, subschemas};
use crate::schema::pointer;
use crate::schema::work::{Stopped, Work};

/// The base for relative names in a document without an absolute name.
const BASE: &str = "json-schema:///";

/// The name that stands for a `$recursiveAnchor`; no anchor has an empty name.
pub(super) const RECURSIVE: &str = "";

/// A schema with its own name. References inside it that are only a fragment start from it.
#[derive(Debug)]
pub(super) struct SchemaResource<'a> {
    pub(super) pointer: String,
    pub(super) draft: Draft,
    /// The resource around it.
    pub(super) parent: Option<usize>,
    /// Its dynamic anchors, with the JSON Pointers of their schemas.
    pub(super) dynamic: Vec<(&'a str, String)>,
    uri: String,
}

/// The names in a document.
#[derive(Debug)]
pub(super) struct Names<'a> {
    root: &'a Value,
    pub(super) resources: Vec<SchemaResource<'a>>,
    by_uri: HashMap<String, usize>,
    by_pointer: HashMap<String, usize>,
    /// The anchors of each resource.
    anchors: HashMap<(usize, &'a str), Anchor<'a>>,
}

#[derive(Debug)]
struct Anchor<'a> {
    pointer: String,
    /// Its name, if a `$dynamicRef` to it may lead elsewhere.
    dynamic: Option<&'a str>,
}

/// The target of a reference.
#[derive(Debug)]
pub(super) struct Found<'a> {
    pub(super) pointer: String,
    pub(super) resource: usize,
    /// The anchor by which it was found, if a `$dynamicRef` may lead elsewhere.
    pub(super) dynamic: Option<&'a str>,
}

impl<'a> Names<'a> {
    /// Reads all names of a document.
    pub(super) fn of(root: &'a Value, draft: Draft, work: &Work) -> Result<Self, Stopped> {
        let mut names = Self {
            root,
            resources: Vec::new(),
            by_uri: HashMap::new(),
            by_pointer: HashMap::new(),
            anchors: HashMap::new(),
        };
        names.add_resource(String::new(), BASE.to_owned(), draft, None);
        names.survey(root, &mut String::new(), 0, work)?;
        names.forget_single_dynamic_anchors();
        Ok(names)
    }

    fn survey(
        &mut self,
        schema: &'a Value,
        pointer: &mut String,
        resource: usize,
        work: &Work,
    ) -> Result<(), Stopped> {
        work.spend(1)?;
        let Value::Object(map) = schema else { return Ok(()) };
        let mut resource = resource;
        if map.keys().any(|keyword| keyword.starts_with('$') || keyword == "id") {
            resource = self.named(map, pointer, resource);
            self.add_anchors(map, pointer, resource);
        }
        let draft = self.resources[resource].draft;
        subschemas(map, draft, |path, subschema| {
            let length = pointer.len();
            path.push_to(pointer);
            self.survey(subschema, pointer, resource, work)?;
            pointer.truncate(length);
            Ok(())
        })
    }

    /// The resource that a schema begins, or else the one it is in.
    fn named(&mut self, map: &'a Map<String, Value>, pointer: &str, around: usize) -> usize {
        let declared = map.get("$schema").and_then(Value::as_str).and_then(Draft::named);
        let draft = declared.unwrap_or(self.resources[around].draft);
        let Some(id) = draft.identifier(map) else { return around };
        let name = id.split('#').next().unwrap_or_default();
        if name.is_empty() {
            return around;
        }
        let uri = absolute(&self.resources[around].uri, name);
        if pointer.is_empty() {
            self.by_uri.insert(uri.clone(), around);
            self.resources[around].uri = uri;
            return around;
        }
        self.add_resource(pointer.to_owned(), uri, draft, Some(around))
    }

    fn add_resource(
        &mut self,
        pointer: String,
        uri: String,
        draft: Draft,
        parent: Option<usize>,
    ) -> usize {
        let index = self.resources.len();
        self.by_uri.entry(uri.clone()).or_insert(index);
        self.by_pointer.insert(pointer.clone(), index);
        self.resources.push(SchemaResource { pointer, draft, parent, dynamic: Vec::new(), uri });
        index
    }

    fn add_anchors(&mut self, map: &'a Map<String, Value>, pointer: &str, resource: usize) {
        let draft = self.resources[resource].draft;
        let text = |keyword| map.get(keyword).and_then(Value::as_str);
        // Up to draft 7, an anchor is an identifier that is only a fragment.
        let fragment =
            draft.identifier(map).and_then(|id| id.split_once('#')).map(|(_, name)| name);
        let dynamic = text("$dynamicAnchor").filter(|_| draft >= Draft::Draft202012);
        for (name, is_dynamic) in [(fragment, false), (text("$anchor"), false), (dynamic, true)] {
            let Some(name) = name.filter(|name| !name.is_empty()) else { continue };
            let dynamic = is_dynamic.then_some(name);
            let anchor = Anchor { pointer: pointer.to_owned(), dynamic };
            self.anchors.entry((resource, name)).or_insert(anchor);
            if is_dynamic {
                self.resources[resource].dynamic.push((name, pointer.to_owned()));
            }
        }
        let is_recursive = draft == Draft::Draft201909
            && map.get("$recursiveAnchor") == Some(&Value::Bool(true))
            && self.resources[resource].pointer == pointer;
        if is_recursive {
            self.resources[resource].dynamic.push((RECURSIVE, pointer.to_owned()));
        }
    }

    /// Makes an anchor that only one resource has a plain one: it leads to the same place from
    /// everywhere.
    fn forget_single_dynamic_anchors(&mut self) {
        let mut uses: HashMap<&str, usize> = HashMap::new();
        for (name, _) in self.resources.iter().flat_map(|resource| &resource.dynamic) {
            *uses.entry(name).or_default() += 1;
        }
        for resource in &mut self.resources {
            resource.dynamic.retain(|(name, _)| uses[name] > 1);
        }
    }

    /// The resource that the value at a JSON Pointer is in.
    pub(super) fn resource_of(&self, pointer: &str) -> usize {
        if self.resources.len() == 1 {
            return 0;
        }
        let mut around = pointer;
        loop {
            match (self.by_pointer.get(around), around.rfind('/')) {
                (Some(resource), _) => return *resource,
                (None, Some(end)) => around = &around[..end],
                (None, None) => return 0,
            }
        }
    }

    /// The resource that begins at a JSON Pointer.
    pub(super) fn resource_at(&self, pointer: &str) -> Option<usize> {
        if self.resources.len() == 1 {
            return pointer.is_empty().then_some(0);
        }
        self.by_pointer.get(pointer).copied()
    }

    pub(super) fn value(&self, pointer: &str) -> &'a Value {
        pointer::lookup(self.root, pointer).unwrap_or(&Value::Null)
    }

    /// Whether reading the schema at `from` keyword by keyword also reads one at `pointer` inside
    /// it.
    pub(super) fn is_read(&self, from: &str, pointer: &str) -> bool {
        let Some(path) = pointer.strip_prefix(from) else { return false };
        if !path.is_empty() && !path.starts_with('/') {
            return false;
        }
        let mut value = self.value(from);
        let mut place = from.to_owned();
        let mut draft = self.resources[self.resource_of(from)].draft;
        let mut tokens = path.split('/').skip(1);
        while let Some(token) = tokens.next() {
            if let Some(resource) = self.resource_at(&place) {
                draft = self.resources[resource].draft;
            }
            let keyword = pointer::unescape(token);
            let Some(map) = value.as_object() else { return false };
            let Some(found) = known(map, &keyword, draft) else { return false };
            let Some(mut inside) = map.get(&*keyword) else { return false };
            place.extend(["/", token]);
            match (found.holds, inside) {
                (Holds::Schema, _) => {}
                (Holds::Named, Value::Object(_)) | (Holds::List, Value::Array(_)) => {
                    let Some(token) = tokens.next() else { return false };
                    let Some(next) = pointer::step(inside, &pointer::unescape(token)) else {
                        return false;
                    };
                    inside = next;
                    place.extend(["/", token]);
                }
                _ => return false,
            }
            value = inside;
        }
        true
    }

    /// The target of `reference`, which is in `resource`.
    ///
    /// # Errors
    /// Why it does not lead to a schema of the document.
    pub(super) fn resolve(&self, reference: &str, resource: usize) -> Result<Found<'a>, String> {
        let (name, fragment) = reference.split_once('#').unwrap_or((reference, ""));
        let resource = if name.is_empty() {
            resource
        } else {
            let uri = absolute(&self.resources[resource].uri, name);
            *self
                .by_uri
                .get(&uri)
                .ok_or_else(|| format!("{reference:?} is outside this schema and is not fetched"))?
        };
        // Many generators write pointers from the root of the document, whatever names are in
        // between.
        [resource, 0]
            .into_iter()
            .find_map(|resource| self.fragment(fragment, resource))
            .ok_or_else(|| format!("{reference:?} refers to no schema"))
    }

    /// The schema that a fragment names in a resource. Many generators do not encode fragments for
    /// URIs, so they are also tried literally.
    fn fragment(&self, fragment: &str, resource: usize) -> Option<Found<'a>> {
        let decoded = pointer::percent_decode(fragment);
        if let Some(anchor) = self.anchors.get(&(resource, &*decoded)) {
            return Some(Found {
                pointer: anchor.pointer.clone(),
                resource,
                dynamic: anchor.dynamic,
            });
        }
        let start = &self.resources[resource].pointer;
        let value = self.value(start);
        let path = pointer::normalized(value, &decoded)
            .or_else(|| pointer::normalized(value, fragment))
            .or_else(|| pointer::normalized(value, &format!("/{decoded}")))?;
        let pointer = format!("{start}{path}");
        Some(Found { resource: self.resource_of(&pointer), pointer, dynamic: None })
    }
}

/// The longest name that is resolved, in bytes: each of many short names could become as long.
const LONGEST_NAME: usize = 2048;

/// A name as an absolute URI. A name that is not a URI reference is kept.
fn absolute(base: &str, name: &str) -> String {
    let encoded = pointer::encode(name);
    if base.len() + encoded.len() > LONGEST_NAME {
        return encoded;
    }
    let resolved = uri::from_str(base)
        .and_then(|base| uri::resolve_against(&base.borrow(), &encoded))
        .map(|uri| uri.as_str().trim_end_matches('#').to_owned());
    resolved.unwrap_or(encoded)
}
