//! What applies to every item of a job.

use bytes::Bytes;

use super::object::Object;
use crate::api::service_tier::{RequestedTier, TierFields};
use crate::generation::InvalidField;
use crate::jobs::{JobKind, JobSpec, SharedFields};

/// The field that says when a flex call falls back. It is kept among the shared fields.
pub(super) const FALLBACK: &str = "flex_fallback_seconds";

/// Fields that belong to one item, or must not be stored.
pub(super) const UNSHARED: &[&str] = &["credentials", "custom_id", "id", "stream"];

/// What applies to every item of a job, read from what is stored of it.
#[derive(Debug, Clone)]
pub(super) struct JobRules {
    pub kind: JobKind,
    /// The model of items that name none.
    pub model: Option<String>,
    /// The semaphore of items that name none.
    pub semaphore: Option<String>,
    /// The service tier of items that name none.
    pub tier: RequestedTier,
    /// The fields that are added to each item that lacks them, each with its text as JSON.
    shared: Vec<(String, String)>,
}

impl JobRules {
    /// Reads what is stored of a job.
    ///
    /// # Errors
    /// Every option that cannot be used.
    pub(super) fn of(spec: &JobSpec, shared: &SharedFields) -> Result<Self, Vec<InvalidField>> {
        let flex_fallback_seconds = shared.get(FALLBACK).and_then(serde_json::Value::as_f64);
        let tier = TierFields { service_tier: spec.service_tier.clone(), flex_fallback_seconds };
        let shared = shared.iter().filter(|(name, _)| *name != FALLBACK);
        let shared = shared.map(|(name, value)| (name.clone(), value.to_string()));
        Ok(Self {
            kind: spec.kind,
            model: spec.model.clone(),
            semaphore: spec.external_semaphore_id.clone(),
            tier: tier.check()?,
            shared: shared.collect(),
        })
    }

    /// Adds the shared fields that an object lacks.
    pub(super) fn complete<'a>(&'a self, object: &mut Object<'a>) {
        self.shared.iter().for_each(|(name, value)| object.add(name, value));
    }

    /// An object, given as text, with the shared fields that it lacks. Anything else stays as it is.
    pub(super) fn completed(&self, text: &Bytes) -> Bytes {
        if self.shared.is_empty() {
            return text.clone();
        }
        let Some(mut object) = Object::read(text) else { return text.clone() };
        self.complete(&mut object);
        object.to_json().into()
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn rules(shared: Value) -> JobRules {
        rules_of(json!({"kind": "chat"}), shared)
    }

    fn rules_of(spec: Value, shared: Value) -> JobRules {
        let read = serde_json::from_value;
        JobRules::of(&read(spec).unwrap(), shared.as_object().unwrap()).unwrap()
    }

    fn completed(rules: &JobRules, object: &'static str) -> Bytes {
        rules.completed(&Bytes::from_static(object.as_bytes()))
    }

    #[test]
    fn an_object_gets_the_shared_fields_that_it_lacks() {
        let rules = rules(json!({"a\"b": [1, {"c": null}], "model": "m"}));
        for (object, expected) in [
            ("{}", r#"{"a\"b":[1,{"c":null}],"model":"m"}"#),
            (r#"{"x": 1.10} "#, r#"{"x":1.10,"a\"b":[1,{"c":null}],"model":"m"}"#),
            (r#"{"model": null}"#, r#"{"model":null,"a\"b":[1,{"c":null}]}"#),
            (r#"{"mod\u0065l": "n"}"#, r#"{"model":"n","a\"b":[1,{"c":null}]}"#),
            ("[1]", "[1]"),
            ("{", "{"),
        ] {
            assert_eq!(completed(&rules, object), expected);
        }
        let full = r#"{"model":"m","a\"b":1}"#;
        assert_eq!(completed(&rules, full), full);
    }

    #[test]
    fn the_seconds_until_a_call_falls_back_are_not_a_field_of_the_items() {
        let spec = json!({"kind": "chat", "service_tier": "flex"});
        let rules = rules_of(spec, json!({FALLBACK: 5}));
        assert_eq!(completed(&rules, "{}"), "{}");
    }
}
