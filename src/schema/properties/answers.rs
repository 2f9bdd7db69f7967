//! Answers to a schema: valid by construction where possible, and then disturbed.

use serde_json::{Map, Value, json};

use super::schemas::NAMES;

/// The choices of one run.
pub(super) struct Entropy {
    drawn: Vec<u16>,
    next: usize,
}

impl Entropy {
    pub(super) fn new(drawn: Vec<u16>) -> Self {
        Self { drawn, next: 0 }
    }

    pub(super) fn below(&mut self, end: usize) -> usize {
        self.next += 1;
        let drawn = self.drawn[self.next % self.drawn.len()];
        (usize::from(drawn) + self.next / self.drawn.len()) % end
    }

    fn choose<'v, T>(&mut self, from: &'v [T]) -> &'v T {
        &from[self.below(from.len())]
    }
}

fn any_value(entropy: &mut Entropy) -> Value {
    entropy
        .choose(&[
            json!("x"),
            json!("yy"),
            json!(""),
            json!(1),
            json!(2),
            json!(3),
            json!(4),
            json!(2.5),
            json!(0.5),
            json!(true),
            json!(false),
            json!(null),
            json!([]),
            json!([1]),
            json!({}),
            json!({ "a": 1 }),
            json!({ "a": "x", "b": 2, "d": null }),
        ])
        .clone()
}

/// An answer to the schema, valid where that can be seen from its keywords one by one.
pub(super) fn sample(schema: &Value, root: &Value, entropy: &mut Entropy, fuel: usize) -> Value {
    let Value::Object(map) = schema else { return any_value(entropy) };
    if fuel == 0 {
        return any_value(entropy);
    }
    if let Some(reference) = map.get("$ref").and_then(Value::as_str) {
        let target = root.pointer(&reference[1..]).expect("the reference leads somewhere");
        return sample(target, root, entropy, fuel - 1);
    }
    for union in ["anyOf", "oneOf", "allOf"] {
        if let Some(Value::Array(schemas)) = map.get(union) {
            let chosen = match union {
                "allOf" => &schemas[..],
                _ => std::slice::from_ref(entropy.choose(schemas)),
            };
            let mut parts: Vec<Value> =
                chosen.iter().map(|schema| sample(schema, root, entropy, fuel - 1)).collect();
            if map.contains_key("properties") {
                parts.push(sample_object(map, root, entropy, fuel));
            }
            return overlay(parts);
        }
    }
    if let Some(values) = map.get("enum").and_then(Value::as_array) {
        return entropy.choose(values).clone();
    }
    if let Some(value) = map.get("const") {
        return value.clone();
    }
    let named = match map.get("type") {
        Some(Value::Array(names)) => entropy.choose(names).as_str(),
        name => name.and_then(Value::as_str),
    };
    match named {
        None if map.contains_key("properties") => sample_object(map, root, entropy, fuel),
        None if map.contains_key("prefixItems") => sample_array(map, root, entropy, fuel),
        Some("object") => sample_object(map, root, entropy, fuel),
        Some("array") => sample_array(map, root, entropy, fuel),
        Some("string") => (*entropy.choose(&["", "x", "yy", "xxy", "xxxx"])).into(),
        Some("integer") => (*entropy.choose(&[0, 1, 2, 3, 4, 5, 8])).into(),
        Some("number") => (*entropy.choose(&[0.0, 1.0, 1.5, 2.0, 2.5, 3.0, 4.0, 5.0])).into(),
        Some("boolean") => (entropy.below(2) == 0).into(),
        Some("null") => Value::Null,
        _ => any_value(entropy),
    }
}

fn sample_object(
    map: &Map<String, Value>,
    root: &Value,
    entropy: &mut Entropy,
    fuel: usize,
) -> Value {
    let required: Vec<&str> = map
        .get("required")
        .and_then(Value::as_array)
        .into_iter()
        .flatten()
        .filter_map(Value::as_str)
        .collect();
    let mut object = Map::new();
    for name in NAMES {
        let schema = map.get("properties").and_then(|all| all.get(name));
        if required.contains(&name) || (schema.is_some() && entropy.below(3) > 0) {
            let schema = schema.or(map.get("additionalProperties")).unwrap_or(&Value::Null);
            object.insert(name.to_owned(), sample(schema, root, entropy, fuel - 1));
        }
    }
    Value::Object(object)
}

fn sample_array(
    map: &Map<String, Value>,
    root: &Value,
    entropy: &mut Entropy,
    fuel: usize,
) -> Value {
    let first = map.get("prefixItems").and_then(Value::as_array).into_iter().flatten();
    let rest = map.get("items").filter(|items| items.is_object());
    let schemas: Vec<&Value> = first.chain(std::iter::repeat_n(rest, 2).flatten()).collect();
    let length = entropy.below(schemas.len() + 1);
    schemas[..length].iter().map(|schema| sample(schema, root, entropy, fuel - 1)).collect()
}

/// What several parts of an `allOf` ask for, in one object where they are objects.
fn overlay(parts: Vec<Value>) -> Value {
    parts
        .into_iter()
        .reduce(|all, part| match (all, part) {
            (Value::Object(mut all), Value::Object(part)) => {
                all.extend(part);
                Value::Object(all)
            }
            (_, part) => part,
        })
        .unwrap_or_default()
}

/// Changes one place, anywhere in the value.
pub(super) fn mutate(value: &mut Value, entropy: &mut Entropy) {
    let goes_in = entropy.below(3) > 0;
    match value {
        Value::Object(map) if goes_in && !map.is_empty() => {
            let name = entropy.choose(&map.keys().cloned().collect::<Vec<_>>()).clone();
            match entropy.below(4) {
                0 => drop(map.shift_remove(&name)),
                1 => drop(map.insert((*entropy.choose(&["a", "b", "d"])).to_owned(), json!(1))),
                _ => mutate(&mut map[&name], entropy),
            }
        }
        Value::Array(list) if goes_in && !list.is_empty() => {
            let index = entropy.below(list.len());
            match entropy.below(4) {
                0 => drop(list.remove(index)),
                1 => list.push(any_value(entropy)),
                _ => mutate(&mut list[index], entropy),
            }
        }
        other => *other = any_value(entropy),
    }
}
