//! Adds definitions to a document.

use std::collections::HashSet;

use serde_json::{Map, Value, json};

use crate::schema::SchemaError;
use crate::schema::pointer;

/// The object that holds the document's definitions.
pub(super) fn of(document: &mut Value) -> Result<&mut Map<String, Value>, SchemaError> {
    let root = document.as_object_mut().expect("only an object has references");
    let definitions = root.entry("$defs").or_insert_with(|| json!({}));
    definitions
        .as_object_mut()
        .ok_or_else(|| SchemaError::new("/$defs", "is not an object of schemas"))
}

/// Unused names for definitions.
pub(super) struct DefinitionNames {
    taken: HashSet<String>,
}

impl DefinitionNames {
    pub(super) fn of(definitions: &Map<String, Value>) -> Self {
        Self { taken: definitions.keys().cloned().collect() }
    }

    /// The last token of a JSON Pointer, with a number if that is taken.
    pub(super) fn fresh(&mut self, pointer: &str) -> String {
        let last = pointer.rsplit('/').next().unwrap_or_default();
        let base = pointer::unescape(last);
        let numbered = (2..).map(|number| format!("{base}-{number}"));
        let name = std::iter::once(base.clone().into_owned())
            .chain(numbered)
            .find(|name| !name.is_empty() && !self.taken.contains(name))
            .expect("there are more numbers than names");
        self.taken.insert(name.clone());
        name
    }
}
