//! The keyword `format`, for the formats that are checked in answers.
//!
//! JSON Schema leaves it to each validator which formats it checks. Here the most common ones are
//! checked, in all drafts. Any other is an annotation for the model.

use std::collections::HashMap;
use std::sync::LazyLock;

use jsonschema::paths::Location;
use jsonschema::{Draft, Keyword, ValidationError, Validator};
use serde_json::{Map, Value, json};

use super::metered::{Check, Metered, MeteredNode};
use super::offline;

/// The formats that are checked, each with an example for the message about a violation.
const CHECKED: [(&str, &str); 9] = [
    ("date", "2026-01-31"),
    ("date-time", "2026-01-31T09:30:00Z"),
    ("time", "09:30:00Z"),
    ("email", "name@example.com"),
    ("uri", "https://example.com/path"),
    ("uuid", "123e4567-e89b-12d3-a456-426614174000"),
    ("ipv4", "192.0.2.1"),
    ("ipv6", "2001:db8::1"),
    ("hostname", "www.example.com"),
];

/// The validator and the example of each format.
static VALIDATORS: LazyLock<HashMap<&str, (Validator<Metered>, &str)>> = LazyLock::new(|| {
    let options = offline().with_draft(Draft::Draft202012).should_validate_formats(true);
    let compile = |(format, example)| {
        let validator = options.build(&json!({ "format": format }));
        (format, (validator.expect("a format that the validator knows"), example))
    };
    CHECKED.into_iter().map(compile).collect()
});

/// Reads the keyword.
pub(super) fn format<'a>(
    _: &'a Map<String, Value>,
    format: &'a Value,
    _: Location,
) -> Result<Check, ValidationError<'a>> {
    let checked = format.as_str().and_then(|format| VALIDATORS.get_key_value(format));
    Ok(Box::new(HasFormat(checked.map(|(format, (validator, example))| Format {
        name: format,
        validator,
        example,
    }))))
}

/// None when the format is not checked.
struct HasFormat(Option<Format>);

struct Format {
    name: &'static str,
    validator: &'static Validator<Metered>,
    example: &'static str,
}

impl<'i> Keyword<'i, Metered> for HasFormat {
    fn validate(&self, instance: MeteredNode<'i>) -> Result<(), ValidationError<'i>> {
        match &self.0 {
            Some(Format { name, example, .. }) if !self.is_valid(instance) => {
                instance.spend_copy();
                let message = format!("value does not have the format {name}, such as {example}");
                Err(ValidationError::custom(message))
            }
            _ => Ok(()),
        }
    }

    fn is_valid(&self, instance: MeteredNode<'i>) -> bool {
        let Some(format) = &self.0 else { return true };
        !instance.has_formats() || format.validator.is_valid(instance)
    }
}
