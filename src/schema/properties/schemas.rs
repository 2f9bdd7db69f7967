//! Schemas of every form that callers send, and some that none should.

use proptest::prelude::*;
use proptest::sample::{select, subsequence};
use serde_json::{Map, Value, json};

pub(super) const NAMES: [&str; 3] = ["a", "b", "c"];

pub(super) fn documents() -> impl Strategy<Value = Value> {
    let roots = prop_oneof![30 => schemas(), 1 => crowds(), 1 => counted()];
    (roots, prop::collection::vec(schemas(), 3)).prop_map(|(root, definitions)| {
        let definitions: Map<String, Value> =
            ["A", "B", "C"].into_iter().map(str::to_owned).zip(definitions).collect();
        combine(root, json!({ "$defs": definitions }))
    })
}

/// Unions of more alternatives than are sent. Of objects only what some alternative lists is sent,
/// which rules out answers that rely on an unlisted name: so there are none here.
fn crowds() -> impl Strategy<Value = Value> {
    (1..4usize, any::<bool>()).prop_map(|(step, constants)| {
        let alternative = |i: usize| match constants && i % 3 == 0 {
            true => json!({ "const": i }),
            false => json!({ "type": ["string", "array"], "minLength": i / step, "minItems": i }),
        };
        json!({ "anyOf": (0..70).map(alternative).collect::<Vec<_>>() })
    })
}

/// Objects that must have more properties than they list.
fn counted() -> impl Strategy<Value = Value> {
    (objects(scalars().boxed()), 1..4usize)
        .prop_map(|(object, count)| combine(object, json!({ "minProperties": count })))
}

/// The keywords of both in one schema; those of the first where both have them.
fn combine(first: Value, second: Value) -> Value {
    let (Value::Object(mut all), Value::Object(more)) = (first, second) else {
        panic!("schemas of this test are objects")
    };
    for (keyword, value) in more {
        all.entry(keyword).or_insert(value);
    }
    Value::Object(all)
}

/// Those that are sent without loss, so that only an answer that is invalid by them is refused.
pub(super) fn plain_documents() -> impl Strategy<Value = Value> {
    let bounds = select(vec!["minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum"]);
    let strings = (0..3usize, 1..3usize, 0..3usize, 1..3usize).prop_map(|(a, b, c, d)| {
        let bounds = |min, more| json!({ "minLength": min, "maxLength": min + more });
        json!({ "type": "string", "allOf": [bounds(a, b), bounds(c, d)] })
    });
    let scalars = prop_oneof![
        strings,
        (bounds, 1..4).prop_map(|(bound, number)| json!({ "type": "integer", bound: number })),
        subsequence(vec!["x", "yy"], 1..3).prop_map(|values| json!({ "enum": values })),
        select(vec!["boolean", "number"]).prop_map(|name| json!({ "type": [name, "null"] })),
    ];
    scalars.prop_recursive(3, 16, 3, |inner| {
        prop_oneof![1 => objects(inner.clone()), 2 => merged(inner.clone()), 1 => arrays(inner)]
    })
}

fn schemas() -> impl Strategy<Value = Value> {
    scalars().prop_recursive(4, 24, 4, |inner| {
        let combined = (inner.clone(), inner.clone()).prop_map(|(a, b)| combine(a, b));
        prop_oneof![4 => objects(inner.clone()), 2 => arrays(inner.clone()),
            2 => merged(inner.clone()), 3 => unions(inner), 1 => combined]
    })
}

fn merged(inner: impl Strategy<Value = Value> + Clone + 'static) -> impl Strategy<Value = Value> {
    (objects(inner.clone()), objects(inner), any::<bool>()).prop_map(|(a, b, beside)| {
        if beside { combine(a, json!({ "allOf": [b] })) } else { json!({ "allOf": [a, b] }) }
    })
}

fn scalars() -> impl Strategy<Value = Value> {
    let values = || {
        select(vec![
            json!("x"),
            json!("yy"),
            json!(""),
            json!(1),
            json!(2),
            json!(4.0),
            json!(2.5),
            json!(true),
            json!(null),
            json!([1]),
            json!({ "a": 1 }),
        ])
    };
    let types =
        || select(vec!["string", "integer", "number", "boolean", "null", "object", "array"]);
    let bounds = ["minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "multipleOf"];
    let numbers = select(vec![json!(1), json!(2), json!(2.5), json!(4)]);
    prop_oneof![
        3 => types().prop_map(|name| json!({ "type": name })),
        1 => prop::collection::btree_set(types(), 2..4).prop_map(|names| json!({ "type": names })),
        2 => (0..3usize, 0..3usize)
            .prop_map(|(a, b)| json!({ "type": "string", "minLength": a, "maxLength": a + b })),
        1 => (0..3usize, 0..3usize, 0..4usize).prop_map(|(a, b, c)| json!({ "allOf": [
            { "type": "string", "minLength": a },
            { "minLength": b, "maxLength": c }] })),
        1 => select(vec!["^x", "y$", "(?=x)"])
            .prop_map(|pattern| json!({ "type": "string", "pattern": pattern })),
        1 => select(vec!["email", "date-time", "int32"])
            .prop_map(|format| json!({ "type": ["string", "integer"], "format": format })),
        1 => values().prop_map(|value| json!({ "const": value })),
        2 => prop::collection::vec(values(), 1..4).prop_map(|values| json!({ "enum": values })),
        3 => (select(vec!["integer", "number"]), select(bounds.to_vec()), numbers)
            .prop_map(|(name, bound, number)| json!({ "type": name, bound: number })),
        2 => select(vec!["#/$defs/A", "#/$defs/B", "#/$defs/C", "#"])
            .prop_map(|reference| json!({ "$ref": reference, "description": "Referred." })),
        1 => select(vec![json!({}), json!({ "minLength": 2 }), json!({ "not": { "type": "null" } })]),
    ]
}

fn objects(inner: impl Strategy<Value = Value> + Clone + 'static) -> impl Strategy<Value = Value> {
    let additional = prop_oneof![
        6 => Just(None),
        2 => Just(Some(json!(false))),
        1 => Just(Some(json!(true))),
        1 => inner.clone().prop_map(Some),
    ];
    let properties = prop::collection::btree_map(select(NAMES.to_vec()), inner, 1..4);
    let required = subsequence(NAMES.to_vec(), 0..3);
    (properties, required, additional, any::<bool>()).prop_map(
        |(properties, required, additional, typed)| {
            let mut schema = json!({ "properties": properties, "required": required });
            if let Some(additional) = additional {
                schema["additionalProperties"] = additional;
            }
            if typed { combine(json!({ "type": "object" }), schema) } else { schema }
        },
    )
}

fn arrays(inner: impl Strategy<Value = Value> + Clone + 'static) -> impl Strategy<Value = Value> {
    let prefix = prop::collection::vec(inner.clone(), 1..3);
    let items = prop_oneof![3 => inner, 1 => Just(json!(false))];
    prop_oneof![
        3 => (items.clone(), 0..2usize, 0..3usize).prop_map(|(items, min, more)| {
            json!({ "type": "array", "items": items, "minItems": min, "maxItems": min + more })
        }),
        1 => (prefix, items)
            .prop_map(|(prefix, items)| json!({ "prefixItems": prefix, "items": items })),
    ]
}

fn unions(inner: impl Strategy<Value = Value> + Clone + 'static) -> impl Strategy<Value = Value> {
    let several = prop::collection::vec(inner.clone(), 1..4);
    prop_oneof![
        1 => (select(vec!["anyOf", "oneOf", "allOf"]), several)
            .prop_map(|(union, schemas)| json!({ union: schemas })),
        1 => (select(vec!["anyOf", "oneOf"]), inner)
            .prop_map(|(union, schema)| json!({ union: [schema, { "type": "null" }] })),
    ]
}
