//! Reads single keywords of JSON Schema.

use std::cmp::Ordering;

use serde_json::{Map, Value};

use crate::schema::number::{self, Bound};
use crate::schema::shape::{Annotations, Types};

pub(super) fn annotations(map: &Map<String, Value>) -> Annotations {
    let text = |value: &Value| value.as_str().map(str::to_owned);
    let mut annotations = Annotations::default();
    for (keyword, value) in map {
        match keyword.as_str() {
            "title" => annotations.title = text(value),
            "description" => annotations.description = text(value),
            "default" => annotations.default = Some(Box::new(value.clone())),
            "example" => annotations.example = Some(Box::new(value.clone())),
            _ => {}
        }
    }
    annotations
}

pub(super) fn list<'m>(map: &'m Map<String, Value>, keyword: &str) -> &'m [Value] {
    map.get(keyword).and_then(Value::as_array).map_or(&[], Vec::as_slice)
}

pub(super) fn types(value: &Value) -> Types {
    let names = value.as_array().map_or(std::slice::from_ref(value), Vec::as_slice);
    let named = names.iter().filter_map(Value::as_str).map(Types::named);
    named.fold(Types::NONE, |all, one| all | one)
}

pub(super) fn values(map: &Map<String, Value>) -> Option<Vec<Value>> {
    let listed = map.get("enum").and_then(Value::as_array);
    match (map.get("const"), listed) {
        (Some(only), Some(listed)) => {
            let form = number::canonical(only);
            let has_it = listed.iter().any(|value| number::canonical(value) == form);
            Some(if has_it { vec![only.clone()] } else { Vec::new() })
        }
        (Some(only), None) => Some(vec![only.clone()]),
        (None, listed) => listed.cloned(),
    }
}

/// The narrower of an inclusive and an exclusive bound.
pub(super) fn minimum(map: &Map<String, Value>) -> Option<Bound> {
    bound(map, "minimum", "exclusiveMinimum", Ordering::Greater)
}

/// The narrower of an inclusive and an exclusive bound.
pub(super) fn maximum(map: &Map<String, Value>) -> Option<Bound> {
    bound(map, "maximum", "exclusiveMaximum", Ordering::Less)
}

fn bound(
    map: &Map<String, Value>,
    inclusive: &str,
    exclusive: &str,
    narrower: Ordering,
) -> Option<Bound> {
    let end = |keyword: &str, exclusive| {
        let value = map.get(keyword)?.as_number()?.clone();
        Some(Bound { value, exclusive })
    };
    Bound::narrow(end(inclusive, false), end(exclusive, true), narrower)
}

/// A length or a count, which JSON Schema allows to be written as 2.0.
pub(super) fn count(value: &Value) -> Option<u64> {
    let integer = number::integer(value.as_number()?)?;
    u64::try_from(integer).ok()
}
