//! One schema being written: its keywords, and the restrictions left to its description.

use std::sync::Arc;

use serde_json::{Map, Value, json};

use super::Target;
use crate::schema::shape::{Annotations, MUST_SATISFY};

pub(super) struct SchemaBuilder {
    target: Target,
    keywords: Map<String, Value>,
    described: Map<String, Value>,
    annotations: Annotations,
}

impl SchemaBuilder {
    pub(super) fn new(target: Target) -> Self {
        let annotations = Annotations::default();
        Self { target, keywords: Map::new(), described: Map::new(), annotations }
    }

    /// Writes the keyword if the dialect has it; otherwise it goes into the description.
    pub(super) fn put(&mut self, keyword: &str, value: impl Into<Value>) {
        let map = if self.target.takes(keyword) { &mut self.keywords } else { &mut self.described };
        map.insert(keyword.to_owned(), value.into());
    }

    pub(super) fn put_some(&mut self, keyword: &str, value: Option<impl Into<Value>>) {
        if let Some(value) = value {
            self.put(keyword, value);
        }
    }

    pub(super) fn put_type(&mut self, name: &str) {
        match self.target {
            Target::ResponseSchema => self.put("type", name.to_ascii_uppercase()),
            Target::ResponseJsonSchema => self.put("type", name),
        }
    }

    pub(super) fn describe(&mut self, keyword: &str, value: impl Into<Value>) {
        self.described.insert(keyword.to_owned(), value.into());
    }

    /// Allows null as well; false when that takes a separate alternative, because an `enum` would
    /// rule null out.
    pub(super) fn allow_null(&mut self) -> bool {
        if self.target == Target::ResponseSchema {
            self.put("nullable", true);
            return true;
        }
        let has_enum = self.keywords.contains_key("enum");
        match self.keywords.get_mut("type") {
            Some(kind) if !has_enum => {
                *kind = json!([kind.take(), "null"]);
                true
            }
            _ => false,
        }
    }

    pub(super) fn annotated(self, annotations: Annotations) -> Self {
        Self { annotations: self.annotations.join(annotations), ..self }
    }

    /// The finished schema, with the annotations in `outer` before its own.
    pub(super) fn finish(mut self, outer: Annotations) -> Map<String, Value> {
        let Annotations { title, description, default, example, described } =
            outer.join(std::mem::take(&mut self.annotations));
        self.put_some("default", default.map(|value| *value));
        self.put_some("example", example.map(|value| *value));
        let description = self.description(description, described);
        let is_annotated = title.is_some() || description.is_some();
        // Beside a `$ref`, `responseJsonSchema` accepts only other `$` keywords.
        if is_annotated && self.keywords.contains_key("$ref") {
            let reference = Value::Object(std::mem::take(&mut self.keywords));
            self.put("anyOf", vec![reference]);
        }
        self.put_some("title", title);
        self.put_some("description", description);
        self.keywords
    }

    fn description(&mut self, own: Option<String>, must_hold: Vec<Arc<str>>) -> Option<String> {
        let mut lines: Vec<String> = own.into_iter().collect();
        for (keyword, label) in
            [("default", "Default"), ("example", "Example"), ("format", "Format")]
        {
            if let Some(value) = self.described.shift_remove(keyword) {
                lines.push(format!("{label}: {value}"));
            }
        }
        let described = std::mem::take(&mut self.described);
        lines.extend(must_hold.iter().map(|line| line.to_string()));
        if !described.is_empty() {
            lines.push(format!("{MUST_SATISFY}{}", Value::Object(described)));
        }
        (!lines.is_empty()).then(|| lines.join("\n"))
    }
}
