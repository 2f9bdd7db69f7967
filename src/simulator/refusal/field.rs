//! Violations that Google's JSON reader reports.

use serde_json::{Value, json};

/// A field or value that Google's JSON reader refuses.
pub(in crate::simulator) struct FieldViolation {
    /// The place; empty for the request itself.
    field: String,
    pub(super) description: String,
}

impl FieldViolation {
    /// An unknown field.
    pub fn unknown_name(name: &str, field: &str) -> Self {
        Self::at_name(name, field, "Cannot find field.")
    }

    /// A list where a single value is expected.
    pub fn list(name: &str, field: &str) -> Self {
        Self::at_name(name, field, "Proto field is not repeating, cannot start list.")
    }

    fn at_name(name: &str, field: &str, reason: &str) -> Self {
        let place = if field.is_empty() { String::new() } else { format!(" at '{field}'") };
        Self {
            field: field.to_owned(),
            description: format!(
                "Invalid JSON payload received. Unknown name \"{name}\"{place}: {reason}"
            ),
        }
    }

    /// A value of the wrong type.
    pub fn value(field: &str, type_name: &str, value: &Value) -> Self {
        Self {
            field: field.to_owned(),
            description: format!("Invalid value at '{field}' ({type_name}), {value}"),
        }
    }

    /// The violation in the details.
    pub(super) fn to_json(&self) -> Value {
        if self.field.is_empty() {
            json!({"description": self.description})
        } else {
            json!({"field": self.field, "description": self.description})
        }
    }
}
