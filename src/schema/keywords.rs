//! Keywords that are checked here, because the validator's own checks can take too long.

use std::collections::HashSet;
use std::sync::Arc;

use jsonschema::json::Node;
use jsonschema::paths::Location;
use jsonschema::{Keyword, ValidationError};
use serde_json::{Map, Value};

use super::formats;
use super::metered::{Check, Metered, MeteredNode};
use super::number;
use super::patterns::{Pattern, Patterns, ValidatorOptions};
use super::shorten;

/// Adds the keywords of this module to the options.
pub(super) fn register(
    options: ValidatorOptions<'_>,
    patterns: Arc<Patterns>,
) -> ValidatorOptions<'_> {
    let options = options.with_keyword("enum", enumeration);
    options.with_keyword("format", formats::format).with_keyword(
        "pattern",
        move |_: &Map<String, Value>, value: &Value, _| match value.as_str() {
            Some(source) => match patterns.get(source) {
                Ok(pattern) => Ok(Box::new(Matches { source: shorten(source), pattern }) as Check),
                Err(reason) => Err(ValidationError::custom(reason)),
            },
            None => Err(ValidationError::custom("a pattern is a string")),
        },
    )
}

/// The keyword `pattern`, with the bounds of [`Pattern`].
struct Matches {
    source: String,
    pattern: Arc<Pattern>,
}

impl<'i> Keyword<'i, Metered> for Matches {
    fn validate(&self, instance: MeteredNode<'i>) -> Result<(), ValidationError<'i>> {
        if self.is_valid(instance) {
            return Ok(());
        }
        instance.spend_copy();
        Err(ValidationError::custom(format!("value does not match \"{}\"", self.source)))
    }

    fn is_valid(&self, instance: MeteredNode<'i>) -> bool {
        instance.as_string().is_none_or(|text| self.pattern.matches(&text, instance))
    }
}

/// The keyword `enum`, with a look-up in a set: the validator compares one value after another.
struct OneOf {
    /// The values in canonical form.
    values: HashSet<Box<str>>,
    message: String,
}

fn enumeration<'a>(
    _: &'a Map<String, Value>,
    values: &'a Value,
    _: Location,
) -> Result<Check, ValidationError<'a>> {
    let Some(listed) = values.as_array() else {
        return Err(ValidationError::custom("an enum is a list"));
    };
    let message = format!("value is not one of {}", some_of(listed));
    let values = listed.iter().map(|value| number::canonical(value).into()).collect();
    Ok(Box::new(OneOf { values, message }))
}

/// The first values, as many as fit in a message.
fn some_of(values: &[Value]) -> String {
    const SHOWN: usize = 20;
    let shown: Vec<String> = values.iter().take(SHOWN).map(Value::to_string).collect();
    let rest = if values.len() > SHOWN { ", …" } else { "" };
    shorten(&format!("{}{rest}", shown.join(", ")))
}

impl<'i> Keyword<'i, Metered> for OneOf {
    fn validate(&self, instance: MeteredNode<'i>) -> Result<(), ValidationError<'i>> {
        if self.is_valid(instance) {
            return Ok(());
        }
        instance.spend_copy();
        Err(ValidationError::custom(self.message.clone()))
    }

    fn is_valid(&self, instance: MeteredNode<'i>) -> bool {
        instance.spend_copy();
        self.values.contains(&*number::canonical(&instance.to_value()))
    }
}
