//! What is sent keeps to Gemini's rules and leaves room for a valid answer.

use serde_json::{Map, Value, json};

use super::{
    assert_response_json_schema, assert_response_schema, compile, object_of, response_object_of,
    violations,
};
use crate::schema::Dialect;

/// What is sent as `responseJsonSchema`.
#[track_caller]
fn sent_json_schema(schema: Value) -> Value {
    match compile(schema).dialect() {
        Dialect::ResponseJsonSchema(sent) => sent,
        other => panic!("{other:?}"),
    }
}

#[track_caller]
fn sent_response_schema(schema: Value) -> Value {
    match compile(schema).dialect() {
        Dialect::ResponseSchema(sent) => sent,
        other => panic!("{other:?}"),
    }
}

fn expression(required: Value) -> Value {
    let operand = json!({ "anyOf": [{ "type": "number" }, { "$ref": "#/$defs/E" }] });
    json!({ "$ref": "#/$defs/E", "$defs": { "E": {
        "type": "object",
        "properties": { "op": { "type": "string" }, "left": operand, "right": operand },
        "required": required,
    } } })
}

#[test]
fn a_required_property_that_closes_a_cycle_is_sent_as_optional_and_described() {
    let sent = sent_json_schema(expression(json!(["op", "left", "right"])));
    assert_eq!(sent["$defs"]["E"]["required"], json!(["op"]));
    assert_eq!(sent["$defs"]["E"]["description"], "Required: left, right");
    let schema = compile(expression(json!(["op", "left", "right"])));
    assert!(!violations(&schema, &json!({ "op": "+", "left": 1 })).is_empty());
}

#[test]
fn a_cycle_through_an_optional_property_keeps_its_required_ones() {
    let sent = sent_json_schema(expression(json!(["op"])));
    assert_eq!(sent["$defs"]["E"]["required"], json!(["op"]));
    assert_eq!(sent["$defs"]["E"].get("description"), None);
}

#[test]
fn a_cycle_through_items_is_opened_at_the_property_around_them() {
    let sent = sent_json_schema(json!({ "$ref": "#/$defs/T", "$defs": {
        "T": { "type": "object", "description": "A tree.", "required": ["v", "children"],
            "properties": { "v": { "type": "string" }, "children": { "$ref": "#/$defs/L" } } },
        "L": { "type": "array", "items": { "$ref": "#/$defs/T" } },
    } }));
    assert_eq!(sent["$defs"]["T"]["required"], json!(["v"]));
    assert_eq!(sent["$defs"]["T"]["description"], "A tree.\nRequired: children");
}

#[test]
fn a_cycle_of_two_definitions_is_opened_once() {
    let to = |name: &str, other: &str| {
        let property = json!({ "anyOf": [{ "$ref": other }, { "type": "null" }] });
        json!({ "type": "object", "properties": { name: property }, "required": [name] })
    };
    let sent = sent_json_schema(json!({
        "type": "object",
        "properties": { "a": { "$ref": "#/$defs/A" }, "b": { "$ref": "#/$defs/B" } },
        "$defs": { "A": to("b", "#/$defs/B"), "B": to("a", "#/$defs/A") },
    }));
    let required = ["A", "B"].map(|name| sent["$defs"][name].get("required").is_some());
    assert_eq!(required.iter().filter(|is_kept| **is_kept).count(), 1, "{sent}");
}

#[test]
fn names_that_only_conditions_mention_are_listed_as_optional() {
    let string = json!({ "type": "STRING" });
    let kind = json!({ "type": "object", "properties": { "kind": { "enum": ["card", "iban"] } },
        "required": ["kind"] });
    let with = |keywords: Value| {
        let mut schema = kind.clone();
        for (keyword, value) in keywords.as_object().expect("keywords") {
            schema[keyword] = value.clone();
        }
        schema
    };
    let asks =
        |name: &str| json!({ "properties": { name: { "type": "string" } }, "required": [name] });
    let test = json!({ "properties": { "kind": { "const": "card" } } });
    for schema in [
        with(json!({ "if": test, "then": asks("number"), "else": asks("iban") })),
        with(json!({ "allOf": [
            { "if": test, "then": asks("number") }, { "if": test, "else": asks("iban") }] })),
        with(
            json!({ "dependentSchemas": { "kind": { "allOf": [asks("number"), asks("iban")] } } }),
        ),
        with(json!({ "$schema": "http://json-schema.org/draft-07/schema#",
            "dependencies": { "kind": { "allOf": [asks("number"), asks("iban")] } } })),
    ] {
        let sent = sent_response_schema(schema);
        assert_eq!(sent["properties"]["number"], string, "{sent}");
        assert_eq!(sent["properties"]["iban"], string, "{sent}");
        assert_eq!(sent["required"], json!(["kind"]), "{sent}");
    }
    let sent = sent_json_schema(with(json!({ "dependentRequired": { "kind": ["number"] } })));
    assert_eq!(sent["properties"]["number"], json!({}));
}

#[test]
fn an_object_that_needs_more_properties_than_it_lists_is_open() {
    let mut schema = object_of(json!({ "type": "string" }));
    schema["minProperties"] = 2.into();
    let sent = sent_json_schema(schema.clone());
    assert_eq!(sent["additionalProperties"], true);
    schema["minProperties"] = 1.into();
    assert_eq!(sent_response_schema(schema)["minProperties"], 1);
}

#[test]
fn a_bare_object_is_open() {
    assert_response_json_schema(
        object_of(json!({ "type": "object" })),
        json!({ "type": "object", "propertyOrdering": ["a"], "properties": {
            "a": { "type": "object", "additionalProperties": true } } }),
    );
}

#[test]
fn patterns_of_names_keep_their_schemas() {
    let point = json!({ "type": "object", "properties": { "x": { "type": "integer" } },
        "propertyOrdering": ["x"] });
    assert_response_json_schema(
        json!({ "type": "object", "patternProperties": { "^[a-z]+$": {
            "type": "object", "properties": { "x": { "type": "integer" } } } },
            "additionalProperties": false }),
        json!({ "type": "object", "additionalProperties": point,
            "description": "Names of properties match the pattern \"^[a-z]+$\"" }),
    );
    let sent = sent_json_schema(json!({ "type": "object",
        "patternProperties": { "^s": { "type": "string" }, "^b": { "type": "boolean" } },
        "additionalProperties": { "type": "integer" } }));
    assert_eq!(
        sent["additionalProperties"],
        json!({ "anyOf": [{ "type": "string" }, { "type": "boolean" }, { "type": "integer" }] })
    );
    // The schemas of patterns bear on no property that another schema lists.
    let sent =
        sent_json_schema(json!({ "type": "object", "properties": { "n": { "type": "integer" } },
        "allOf": [{ "patternProperties": { "^s": { "type": "string" } } }] }));
    assert_eq!(sent["properties"]["n"], json!({ "type": "integer" }));
}

#[test]
fn constants_become_one_enum_however_many_there_are() {
    let constants: Vec<Value> =
        (0..249).map(|i| json!({ "const": format!("c{i}"), "type": "string" })).collect();
    let names: Vec<String> = (0..249).map(|i| format!("c{i}")).collect();
    assert_response_schema(
        object_of(json!({ "anyOf": constants })),
        response_object_of(json!({ "type": "STRING", "enum": names })),
    );
    let titled: Vec<Value> =
        (0..65).map(|i| json!({ "const": format!("c{i}"), "title": format!("C {i}") })).collect();
    let sent = sent_response_schema(object_of(json!({ "oneOf": titled })));
    assert_eq!(sent["properties"]["a"]["enum"].as_array().map(Vec::len), Some(65));
    let description = sent["properties"]["a"]["description"].as_str().expect("a description");
    assert!(description.contains("\"c3\": C 3\n"), "{description}");
}

fn events(count: usize) -> Vec<Value> {
    let event = |i| {
        json!({ "type": "object", "required": ["kind", "x"],
            "properties": { "kind": { "const": format!("k{i}") }, "x": { "type": "string" } } })
    };
    (0..count).map(event).collect()
}

#[test]
fn a_union_of_too_many_objects_keeps_what_they_have_in_common() {
    let sent = sent_response_schema(object_of(json!({ "anyOf": events(65) })));
    let event = &sent["properties"]["a"];
    assert_eq!(event["properties"]["kind"]["enum"].as_array().map(Vec::len), Some(65), "{event}");
    assert_eq!(event["properties"]["x"], json!({ "type": "STRING" }));
    assert_eq!(event["required"], json!(["kind", "x"]));
    let mut several = events(65);
    several.push(json!({ "type": "string", "minLength": 1 }));
    let sent = sent_response_schema(object_of(json!({ "anyOf": several })));
    let kinds: Vec<&Value> = sent["properties"]["a"]["anyOf"]
        .as_array()
        .expect("alternatives")
        .iter()
        .map(|schema| &schema["type"])
        .collect();
    assert_eq!(kinds, ["STRING", "OBJECT"]);
}

#[test]
fn null_does_not_count_as_an_alternative_of_a_union() {
    let nullable = json!({ "anyOf": [{ "anyOf": events(64) }, { "type": "null" }] });
    let sent = sent_response_schema(object_of(nullable));
    assert_eq!(sent["properties"]["a"]["anyOf"].as_array().map(Vec::len), Some(64));
    assert_eq!(sent["properties"]["a"]["nullable"], true);
}

#[test]
fn unions_that_would_multiply_keep_what_they_have_in_common() {
    let names = |from: usize| -> Vec<Value> {
        (from..from + 10).map(|i| json!({ "required": [format!("p{i}")] })).collect()
    };
    let properties: Map<String, Value> =
        (0..20).map(|i| (format!("p{i}"), json!({ "type": "string" }))).collect();
    let sent = sent_response_schema(json!({ "type": "object", "properties": properties,
        "allOf": [{ "anyOf": names(0) }, { "anyOf": names(10) }] }));
    assert_eq!(sent["type"], "OBJECT");
    assert_eq!(sent["properties"].as_object().map(Map::len), Some(20));
    assert!(sent["description"].as_str().is_some_and(|text| text.contains("p13")), "{sent}");
}

fn classes() -> Value {
    let class = |next: Value| {
        json!({ "type": "object", "required": ["f0", "f1", "f2"],
            "properties": { "f0": next, "f1": next, "f2": next } })
    };
    let mut definitions: Map<String, Value> = (0..4)
        .map(|i| (format!("C{i}"), class(json!({ "$ref": format!("#/$defs/C{}", i + 1) }))))
        .collect();
    definitions
        .insert("C4".to_owned(), class(json!({ "type": "string", "description": "A leaf." })));
    json!({ "$ref": "#/$defs/C0", "$defs": definitions })
}

#[test]
fn references_are_kept_when_inlining_them_costs_much() {
    let schema = classes();
    let sent = sent_json_schema(schema.clone());
    assert_eq!(sent["properties"]["f1"], json!({ "$ref": "#/$defs/C1" }));
    assert!(sent.to_string().len() < 2 * schema.to_string().len(), "{sent}");
}

#[test]
fn a_deep_chain_of_definitions_is_sent_with_references() {
    let mut definitions = Map::new();
    for i in 0..80 {
        let next = json!({ "$ref": format!("#/$defs/D{}", i + 1) });
        definitions
            .insert(format!("D{i}"), json!({ "type": "object", "properties": { "next": next } }));
    }
    definitions.insert("D80".to_owned(), json!({ "type": "string" }));
    let sent = sent_json_schema(json!({ "$ref": "#/$defs/D0", "$defs": definitions }));
    assert!(sent["$defs"].as_object().is_some_and(|all| all.len() > 5));
}

#[test]
fn a_property_that_another_refers_to_is_sent_once() {
    let address: Map<String, Value> =
        (0..30).map(|i| (format!("line{i}"), json!({ "type": "string" }))).collect();
    let schema = json!({ "type": "object", "properties": {
        "home": { "type": "object", "properties": address },
        "work": { "$ref": "#/properties/home" },
        "other": { "$ref": "#/properties/home" },
    } });
    let sent = sent_json_schema(schema.clone());
    assert_eq!(sent["properties"]["home"], sent["properties"]["work"]);
    assert!(sent.to_string().len() < 2 * schema.to_string().len(), "{sent}");
}

#[test]
fn references_are_merged_with_what_is_beside_them() {
    let schema = json!({ "allOf": [
            { "$ref": "#/$defs/Base" },
            { "properties": { "more": { "allOf": [{ "$ref": "#/$defs/Base" }, { "required": ["id"] }] } } },
        ],
        "$defs": { "Base": { "type": "object", "properties": { "id": { "type": "string" } } } } });
    let base = json!({ "type": "OBJECT", "properties": { "id": { "type": "STRING" } },
        "required": ["id"], "propertyOrdering": ["id"] });
    assert_response_schema(
        schema,
        json!({ "type": "OBJECT", "properties": { "id": { "type": "STRING" }, "more": base },
            "propertyOrdering": ["id", "more"] }),
    );
}

#[test]
fn long_schemas_are_not_repeated_in_descriptions() {
    let forbidden: Vec<Value> = (0..500).map(|i| json!({ "const": format!("word{i}") })).collect();
    let schema = object_of(json!({ "type": "string", "not": { "anyOf": forbidden } }));
    let sent = sent_response_schema(schema);
    assert_eq!(
        sent["properties"]["a"]["description"],
        "Must also satisfy rules too long to repeat: not"
    );
}

#[test]
fn keywords_that_contradict_each_other_are_refused_with_their_position() {
    for (schema, place) in [
        (json!({ "type": "integer", "enum": ["60"] }), "/properties/a"),
        (json!({ "type": "string", "minLength": 3, "maxLength": 2 }), "/properties/a"),
        (json!({ "type": "integer", "minimum": 3, "exclusiveMaximum": 3 }), "/properties/a"),
        (
            json!({ "allOf": [{ "type": "string" }, { "type": "integer" }] }),
            "/properties/a/allOf/1",
        ),
    ] {
        let mut outer = object_of(schema);
        outer["required"] = json!(["a"]);
        super::assert_refused(outer, place, "allows no value");
    }
}

/// Alternatives too heavy to be multiplied out are sent as what they have in common.
#[test]
fn a_property_that_one_alternative_leaves_open_keeps_the_keywords_beside_the_union() {
    let list = |limit: Value| {
        let with_limit = |i: usize| json!({ "const": format!("kind {i}"), "description": "One." });
        let mut alternatives: Vec<Value> = (0..20)
            .map(|i| json!({ "properties": { "kind": with_limit(i), "list": { "maxItems": 1 } } }))
            .collect();
        alternatives.push(json!({ "properties": { "kind": { "const": "long" }, "list": &limit } }));
        if limit.is_null() {
            alternatives[20]["properties"].as_object_mut().expect("properties").remove("list");
        }
        let text = json!({ "type": "string", "description": "A text." });
        let beside: Map<String, Value> = ["a", "b", "c", "d", "e", "f", "kind"]
            .iter()
            .map(|name| ((*name).to_owned(), text.clone()))
            .chain([("list".to_owned(), json!({ "type": "array", "items": text }))])
            .collect();
        let schema = json!({ "type": "object", "properties": beside, "anyOf": alternatives });
        sent_response_schema(schema)["properties"]["list"].clone()
    };
    assert_eq!(list(json!({ "maxItems": 1 })).get("maxItems"), Some(&json!(1)));
    let open = list(Value::Null);
    assert_eq!((open["type"].as_str(), open.get("maxItems")), (Some("ARRAY"), None));
}

#[test]
fn null_beside_a_reference_that_cannot_be_followed_is_kept() {
    let narrowed = json!({ "allOf": [
        { "properties": { "a": { "$ref": "#" } } },
        { "properties": { "c": { "type": "string" } }, "additionalProperties": { "type": "null" } },
    ] });
    let sent = sent_json_schema(json!({
        "anyOf": [{ "$ref": "#/$defs/A" }, { "type": "null" }],
        "$defs": { "A": { "type": "object", "properties": { "b": narrowed } } },
    }));
    let alternatives = &sent["$defs"]["A"]["properties"]["b"]["properties"]["a"]["anyOf"];
    assert_eq!(*alternatives, json!([{ "$ref": "#/$defs/A" }, { "type": "null" }]));
}
