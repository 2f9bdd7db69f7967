//! Properties of all translations: the sent schema keeps to its dialect, rules out no valid answer,
//! and accepts no invalid one when it claims to be exact.

mod answers;
mod schemas;

use std::cell::Cell;

use jsonschema::Validator;
use proptest::prelude::*;
use proptest::test_runner::{Config, TestCaseError, TestRunner};
use serde_json::{Map, Value, json};

use self::answers::{Entropy, mutate, sample};
use self::schemas::{documents, plain_documents};
use super::tests::{try_compile, violations};
use super::{Dialect, SchemaError};

/// The keywords of `responseSchema`, as the Gemini API's Schema reference lists them.
const RESPONSE_SCHEMA: &str = "type format title description nullable enum items minItems maxItems \
    properties required minProperties maxProperties minimum maximum minLength maxLength pattern \
    anyOf propertyOrdering example default";

/// The keywords of `responseJsonSchema`, as the `GenerationConfig` reference lists them.
const RESPONSE_JSON_SCHEMA: &str = "$id $defs $ref $anchor type format title description enum items \
    prefixItems minItems maxItems minimum maximum anyOf oneOf properties additionalProperties \
    required propertyOrdering";

#[test]
fn translations_keep_to_the_dialect_and_to_the_meaning() {
    let tally = check_all(documents(), 500);
    // Otherwise the generators no longer produce the cases that this test is about.
    assert!(tally.accepted.get() > 500, "{tally:?}");
    assert!(tally.response_schemas.get() > 30, "{tally:?}");
    assert!(tally.references.get() > 10, "{tally:?}");
}

#[test]
fn exact_translations_let_nothing_invalid_through() {
    let tally = check_all(plain_documents(), 500);
    assert!(tally.accepted.get() > 500, "{tally:?}");
    assert!(tally.rejected.get() > 500, "{tally:?}");
}

fn check_all(schemas: impl Strategy<Value = Value>, cases: u32) -> Tally {
    let tally = Tally::default();
    let config = Config { cases, failure_persistence: None, ..Config::default() };
    let cases = (schemas, prop::collection::vec(any::<u16>(), 64));
    TestRunner::new(config)
        .run(&cases, |(schema, entropy)| check(&schema, Entropy::new(entropy), &tally))
        .unwrap_or_else(|failure| panic!("{failure}"));
    tally
}

/// How often each direction of the comparison was tested.
#[derive(Debug, Default)]
struct Tally {
    accepted: Cell<usize>,
    rejected: Cell<usize>,
    response_schemas: Cell<usize>,
    references: Cell<usize>,
}

fn count(cell: &Cell<usize>) {
    cell.set(cell.get() + 1);
}

fn check(schema: &Value, mut entropy: Entropy, tally: &Tally) -> Result<(), TestCaseError> {
    let compiled = match try_compile(schema) {
        // The sent schema does not define formats.
        Ok(compiled) => compiled.without_formats(),
        Err(error) => return refused_rightly(&error),
    };
    let (open, closed) = match &compiled.dialect() {
        Dialect::Any => (validator(&json!(true)), validator(&json!(true))),
        Dialect::ResponseSchema(sent) => {
            count(&tally.response_schemas);
            keeps_to_response_schema(sent)?;
            (validator(&as_json_schema(sent, false)), validator(&as_json_schema(sent, true)))
        }
        Dialect::ResponseJsonSchema(sent) => {
            if sent.get("$defs").is_some() {
                count(&tally.references);
            }
            keeps_to_response_json_schema(sent, sent)?;
            has_no_required_cycle(sent)?;
            (validator(sent), validator(sent))
        }
    };
    if let Some((_, text)) = compiled.sent() {
        // The bound does not apply to small schemas: a description begins with a sentence.
        let bound = 8 * schema.to_string().len() + 1_000;
        prop_assert!(text.len() < bound, "{} bytes for {schema}: {text}", text.len());
    }
    let sent = format!("{:?}", compiled.dialect());
    let is_exact = !["Must also satisfy", "Required: "].iter().any(|label| sent.contains(label))
        && !schema.to_string().contains("oneOf");
    for _ in 0..8 {
        let mut answer = sample(schema, schema, &mut entropy, 6);
        if entropy.below(2) == 0 {
            mutate(&mut answer, &mut entropy);
        }
        if violations(&compiled, &answer).is_empty() {
            count(&tally.accepted);
            prop_assert!(open.is_valid(&answer), "made impossible: {answer} by {sent}");
        } else if is_exact {
            count(&tally.rejected);
            prop_assert!(!closed.is_valid(&answer), "let through: {answer} by {sent}");
        }
    }
    Ok(())
}

fn refused_rightly(error: &SchemaError) -> Result<(), TestCaseError> {
    let reasons = ["refers to itself", "allows no value", "over and over"];
    let is_known = reasons.iter().any(|reason| error.message.contains(reason));
    prop_assert!(is_known, "{error}");
    Err(TestCaseError::reject("not a usable schema"))
}

fn validator(schema: &Value) -> Validator {
    jsonschema::draft202012::new(schema).unwrap_or_else(|error| panic!("{schema}: {error}"))
}

fn keeps_to_response_schema(schema: &Value) -> Result<(), TestCaseError> {
    let map = schema.as_object().expect("a schema is an object");
    for keyword in map.keys() {
        prop_assert!(RESPONSE_SCHEMA.split(' ').any(|known| known == keyword), "{schema}");
    }
    let kind = map.get("type").map(|kind| kind.as_str().expect("one type"));
    prop_assert!(kind.is_some() != map.contains_key("anyOf"), "either a type or a union: {schema}");
    prop_assert_eq!(kind == Some("OBJECT"), map.contains_key("properties"), "{}", schema);
    prop_assert_eq!(kind == Some("ARRAY"), map.contains_key("items"), "{}", schema);
    let upper = ["STRING", "NUMBER", "INTEGER", "BOOLEAN", "ARRAY", "OBJECT"];
    prop_assert!(kind.is_none_or(|kind| upper.contains(&kind)), "{schema}");
    for value in map.get("enum").and_then(Value::as_array).into_iter().flatten() {
        prop_assert!(kind == Some("STRING") && value.as_str() > Some(""), "{schema}");
    }
    names_are_properties(map)?;
    children(map).try_for_each(keeps_to_response_schema)
}

fn keeps_to_response_json_schema(schema: &Value, root: &Value) -> Result<(), TestCaseError> {
    let Value::Object(map) = schema else {
        prop_assert!(schema.is_boolean(), "{schema}");
        return Ok(());
    };
    for keyword in map.keys() {
        prop_assert!(RESPONSE_JSON_SCHEMA.split(' ').any(|known| known == keyword), "{schema}");
    }
    if let Some(reference) = map.get("$ref").and_then(Value::as_str) {
        prop_assert!(map.keys().all(|keyword| keyword.starts_with('$')), "{schema}");
        prop_assert!(root.pointer(&reference[1..]).is_some(), "{reference} in {root}");
    }
    for value in map.get("enum").and_then(Value::as_array).into_iter().flatten() {
        prop_assert!(value.is_number() || value.as_str() > Some(""), "{schema}");
    }
    names_are_properties(map)?;
    children(map).try_for_each(|child| keeps_to_response_json_schema(child, root))
}

/// Searches for a path from each definition back to itself that every value must take.
fn has_no_required_cycle(sent: &Value) -> Result<(), TestCaseError> {
    let definitions = sent.get("$defs").and_then(Value::as_object);
    for (start, schema) in definitions.into_iter().flatten() {
        let (mut seen, mut left) = (Vec::new(), needed(schema, false));
        while let Some((name, through_property)) = left.pop() {
            prop_assert!(name != *start || !through_property, "a cycle of {start} in {sent}");
            if !seen.contains(&(name.clone(), through_property)) {
                let further = needed(&sent["$defs"][&name], through_property);
                seen.push((name, through_property));
                left.extend(further);
            }
        }
    }
    Ok(())
}

/// The definitions that every value of the schema includes, and whether through a required
/// property.
fn needed(schema: &Value, through_property: bool) -> Vec<(String, bool)> {
    if let Some(reference) = schema.get("$ref").and_then(Value::as_str) {
        return vec![(reference["#/$defs/".len()..].to_owned(), through_property)];
    }
    let required = schema.get("required").and_then(Value::as_array).into_iter().flatten();
    let properties = required.map(|name| &schema["properties"][name.as_str().expect("a name")]);
    let parts =
        ["anyOf", "prefixItems"].map(|keyword| schema.get(keyword).and_then(Value::as_array));
    let beside = parts.into_iter().flatten().flatten().chain(schema.get("items"));
    properties
        .flat_map(|schema| needed(schema, true))
        .chain(beside.flat_map(|schema| needed(schema, through_property)))
        .collect()
}

fn names_are_properties(map: &Map<String, Value>) -> Result<(), TestCaseError> {
    let empty = Map::new();
    let properties = map.get("properties").map_or(&empty, |all| all.as_object().expect("a map"));
    for name in map.get("required").and_then(Value::as_array).into_iter().flatten() {
        prop_assert!(properties.contains_key(name.as_str().expect("a name")), "{map:?}");
    }
    let names: Vec<Value> = properties.keys().map(|name| json!(name)).collect();
    let order = (!names.is_empty()).then_some(Value::Array(names));
    prop_assert_eq!(map.get("propertyOrdering"), order.as_ref());
    Ok(())
}

fn children(map: &Map<String, Value>) -> impl Iterator<Item = &Value> {
    let named = ["properties", "$defs"].map(|keyword| map.get(keyword));
    let listed = ["anyOf", "oneOf", "prefixItems"].map(|keyword| map.get(keyword));
    let single = ["items", "additionalProperties"].map(|keyword| map.get(keyword));
    let named = named.into_iter().flatten().flat_map(|all| all.as_object().into_iter().flatten());
    let listed = listed.into_iter().flatten().flat_map(|all| all.as_array().into_iter().flatten());
    named.map(|(_, schema)| schema).chain(listed).chain(single.into_iter().flatten())
}

/// The meaning of a `responseSchema` as JSON Schema. With `closed`, objects have no unlisted
/// properties, as Gemini adds none.
fn as_json_schema(schema: &Value, closed: bool) -> Value {
    let inner = |schema: &Value| as_json_schema(schema, closed);
    let mut map = schema.as_object().expect("a schema is an object").clone();
    let nullable = map.shift_remove("nullable") == Some(Value::Bool(true));
    if let Some(Value::String(kind)) = map.get_mut("type") {
        kind.make_ascii_lowercase();
    }
    if let Some(items) = map.get_mut("items") {
        *items = inner(items);
    }
    if let Some(Value::Array(alternatives)) = map.get_mut("anyOf") {
        *alternatives = alternatives.iter().map(inner).collect();
    }
    if let Some(Value::Object(properties)) = map.get_mut("properties") {
        properties.values_mut().for_each(|property| *property = inner(property));
        if closed {
            map.insert("additionalProperties".to_owned(), false.into());
        }
    }
    if nullable { json!({ "anyOf": [map, { "type": "null" }] }) } else { Value::Object(map) }
}
