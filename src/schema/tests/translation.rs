//! What is sent for each form of schema.

use serde_json::json;

use super::{
    assert_response_json_schema, assert_response_schema, compile, object_of, response_object_of,
};
use crate::schema::Dialect;

#[test]
fn an_object_keeps_its_bounds_annotations_and_order() {
    assert_response_schema(
        json!({
            "$schema": "https://json-schema.org/draft/2020-12/schema",
            "$id": "https://example.com/person",
            "$comment": "internal",
            "title": "Person",
            "description": "Someone.",
            "type": "object",
            "properties": {
                "surname": { "type": "string", "minLength": 1, "maxLength": 9, "pattern": "^[a-z]+$" },
                "age": { "type": "integer", "minimum": 0, "maximum": 150, "default": 30 },
                "born": { "type": "string", "format": "date-time", "examples": ["2000"] },
                "cats": { "type": "array", "items": { "type": "boolean" }, "maxItems": 3 },
            },
            "required": ["age", "surname"],
            "additionalProperties": false,
            "minProperties": 1,
            "readOnly": true,
        }),
        json!({
            "type": "OBJECT",
            "properties": {
                "surname": { "type": "STRING", "minLength": 1, "maxLength": 9, "pattern": "^[a-z]+$" },
                "age": { "type": "INTEGER", "minimum": 0, "maximum": 150, "default": 30 },
                "born": { "type": "STRING", "format": "date-time",
                    "description": "Example: \"2000\"" },
                "cats": { "type": "ARRAY", "items": { "type": "BOOLEAN" }, "maxItems": 3 },
            },
            "required": ["surname", "age"],
            "propertyOrdering": ["surname", "age", "born", "cats"],
            "minProperties": 1,
            "title": "Person",
            "description": "Someone.",
        }),
    );
}

#[test]
fn properties_are_ordered_as_the_caller_has_them() {
    let schema = json!({ "type": "object", "properties": {
        "z": { "type": "string" }, "a": { "type": "string" }, "m": { "type": "string" } } });
    let Dialect::ResponseSchema(sent) = compile(schema).dialect() else { panic!() };
    assert_eq!(sent["propertyOrdering"], json!(["z", "a", "m"]));
}

#[test]
fn references_are_inlined_with_the_keywords_beside_them() {
    for definitions in ["$defs", "definitions"] {
        assert_response_schema(
            json!({
                "type": "object",
                "properties": { "a": { "$ref": format!("#/{definitions}/A"), "description": "Near." } },
                definitions: { "A": { "type": "string", "title": "A", "description": "Far." } },
            }),
            response_object_of(
                json!({ "type": "STRING", "title": "A", "description": "Near.\nFar." }),
            ),
        );
    }
}

#[test]
fn references_are_resolved_by_pointer_anchor_and_own_id() {
    let root = |reference: &str| {
        json!({ "$id": "https://example.com/s", "type": "object", "properties": {
            "a/b %": { "$anchor": "here", "type": "boolean" }, "c": { "$ref": reference } } })
    };
    for reference in [
        "#/properties/a~1b%20%25",
        "#here",
        "https://example.com/s#here",
        "https://example.com/s#/properties/a~1b%20%25",
    ] {
        let Dialect::ResponseSchema(sent) = compile(root(reference)).dialect() else {
            panic!("{reference}")
        };
        assert_eq!(sent["properties"]["c"], json!({ "type": "BOOLEAN" }), "{reference}");
    }
}

#[test]
fn before_2019_a_reference_silences_its_siblings() {
    let schema = |draft: &str| {
        json!({ "$schema": draft, "type": "object",
            "properties": { "a": { "$ref": "#/definitions/A", "maxLength": 2 } },
            "definitions": { "A": { "type": "string" } } })
    };
    assert_response_schema(
        schema("http://json-schema.org/draft-07/schema#"),
        response_object_of(json!({ "type": "STRING" })),
    );
    assert_response_schema(
        schema("https://json-schema.org/draft/2019-09/schema"),
        response_object_of(json!({ "type": "STRING", "maxLength": 2 })),
    );
}

#[test]
fn recursion_is_sent_as_a_reference() {
    assert_response_json_schema(
        json!({
            "type": "object",
            "properties": { "tree": { "$ref": "#/definitions/Tree" } },
            "definitions": { "Tree": {
                "type": "object",
                "properties": {
                    "name": { "type": "string", "minLength": 1 },
                    "children": { "type": "array", "items": { "$ref": "#/definitions/Tree" } },
                },
            } },
        }),
        json!({
            "type": "object",
            "properties": { "tree": { "$ref": "#/$defs/Tree" } },
            "propertyOrdering": ["tree"],
            "$defs": { "Tree": {
                "type": "object",
                "properties": {
                    "name": { "type": "string",
                        "description": "Must also satisfy the JSON Schema: {\"minLength\":1}" },
                    "children": { "type": "array", "items": { "$ref": "#/$defs/Tree" } },
                },
                "propertyOrdering": ["name", "children"],
            } },
        }),
    );
}

#[test]
fn recursion_may_start_at_the_root_or_anywhere() {
    assert_response_json_schema(
        json!({ "type": "object", "properties": {
            "next": { "anyOf": [{ "$ref": "#" }, { "type": "null" }], "description": "Next." } } }),
        {
            let link = json!({
                "type": "object",
                "properties": { "next": {
                    "anyOf": [{ "$ref": "#/$defs/root" }, { "type": "null" }],
                    "description": "Next.",
                } },
                "propertyOrdering": ["next"],
            });
            json!({ "$ref": "#/$defs/root", "$defs": { "root": link } })
        },
    );
    let inside = json!({ "type": "object", "properties": {
        "a": { "type": "array", "items": { "$ref": "#/properties/a", "description": "Deeper." } } } });
    let Dialect::ResponseJsonSchema(sent) = compile(inside).dialect() else { panic!() };
    assert_eq!(
        sent["$defs"]["a"],
        json!({ "type": "array", "items": {
            "anyOf": [{ "$ref": "#/$defs/a" }], "description": "Deeper." } }),
    );
}

#[test]
fn constants_and_enums_are_sent_as_enums_or_bounds() {
    for (schema, expected) in [
        (json!({ "const": "x" }), json!({ "type": "STRING", "enum": ["x"] })),
        (json!({ "enum": ["x", "y"] }), json!({ "type": "STRING", "enum": ["x", "y"] })),
        (
            json!({ "type": ["string", "null"], "enum": ["x", null] }),
            json!({ "type": "STRING", "enum": ["x"], "nullable": true }),
        ),
        (json!({ "type": "string", "enum": ["x", 1] }), json!({ "type": "STRING", "enum": ["x"] })),
        (json!({ "const": 5 }), json!({ "type": "INTEGER", "minimum": 5, "maximum": 5 })),
        (json!({ "enum": [3, 1, 2] }), json!({ "type": "INTEGER", "minimum": 1, "maximum": 3 })),
        (json!({ "const": 1.5 }), json!({ "type": "NUMBER", "minimum": 1.5, "maximum": 1.5 })),
        (
            json!({ "const": true }),
            json!({ "type": "BOOLEAN",
                "description": "Must also satisfy the JSON Schema: {\"enum\":[true]}" }),
        ),
        (
            json!({ "enum": ["", "x"] }),
            json!({ "anyOf": [
                { "type": "STRING", "enum": ["x"] }, { "type": "STRING", "maxLength": 0 }] }),
        ),
    ] {
        assert_response_schema(object_of(schema), response_object_of(expected));
    }
    assert_response_json_schema(
        json!({ "enum": [1, 3] }),
        json!({ "type": "integer", "enum": [1, 3] }),
    );
}

#[test]
fn unions_with_null_are_sent_as_nullable() {
    let nullable = json!({ "type": "STRING", "nullable": true, "description": "d" });
    for schema in [
        json!({ "type": ["string", "null"], "description": "d" }),
        json!({ "anyOf": [{ "type": "string" }, { "type": "null" }], "description": "d" }),
        json!({ "oneOf": [{ "type": "null" }, { "type": "string" }], "description": "d" }),
        json!({ "anyOf": [{ "type": "string", "description": "d" }, { "const": null }] }),
    ] {
        let sent = compile(object_of(schema.clone()));
        let Dialect::ResponseSchema(sent) = sent.dialect() else { panic!("{schema}") };
        assert_eq!(sent["properties"]["a"]["type"], nullable["type"]);
        assert_eq!(sent["properties"]["a"], nullable, "{schema}");
    }
    assert_response_json_schema(
        json!({ "type": ["object", "null"] }),
        json!({ "type": ["object", "null"], "additionalProperties": true }),
    );
    assert_response_json_schema(
        json!({ "enum": [1.5, null] , "type": ["number", "null"] , "description": "d" })
            .as_object()
            .map(|map| json!({ "type": "object", "additionalProperties": map }))
            .unwrap(),
        json!({ "type": "object", "additionalProperties": {
            "anyOf": [{ "type": "number", "enum": [1.5] }, { "type": "null" }],
            "description": "d" } }),
    );
}

#[test]
fn several_types_and_unions_become_any_of() {
    assert_response_schema(
        json!({ "type": ["string", "integer", "null"], "maxLength": 3, "minimum": 0 }),
        json!({ "nullable": true, "anyOf": [
            { "type": "INTEGER", "minimum": 0 }, { "type": "STRING", "maxLength": 3 }] }),
    );
    for union in ["anyOf", "oneOf"] {
        assert_response_schema(
            json!({ union: [{ "type": "string", "title": "S" }, { "type": "boolean" }] }),
            json!({ "anyOf": [{ "type": "STRING", "title": "S" }, { "type": "BOOLEAN" }] }),
        );
    }
}

#[test]
fn keywords_beside_a_union_hold_in_each_alternative() {
    let string = json!({ "type": "STRING" });
    assert_response_schema(
        json!({
            "type": "object",
            "properties": { "a": { "type": "string" }, "b": { "type": "string" } },
            "anyOf": [{ "required": ["a"] }, { "required": ["b"] }],
        }),
        json!({ "anyOf": [
            { "type": "OBJECT", "properties": { "a": string, "b": string },
                "required": ["a"], "propertyOrdering": ["a", "b"] },
            { "type": "OBJECT", "properties": { "a": string, "b": string },
                "required": ["b"], "propertyOrdering": ["a", "b"] },
        ] }),
    );
}

#[test]
fn all_of_is_merged() {
    assert_response_schema(
        object_of(json!({ "allOf": [{ "type": "string", "minLength": 2, "title": "T" }] })),
        response_object_of(json!({ "type": "STRING", "minLength": 2, "title": "T" })),
    );
    assert_response_schema(
        json!({ "allOf": [
            { "type": "object", "properties": { "a": { "type": "number", "minimum": 1 } } },
            { "properties": { "a": { "type": "integer", "minimum": 0, "maximum": 9 },
                "b": { "type": "boolean" } }, "required": ["b"] },
        ] }),
        json!({ "type": "OBJECT", "properties": {
                "a": { "type": "INTEGER", "minimum": 1, "maximum": 9 }, "b": { "type": "BOOLEAN" } },
            "required": ["b"], "propertyOrdering": ["a", "b"] }),
    );
    assert_response_json_schema(
        json!({ "type": "object", "allOf": [
            { "additionalProperties": { "type": ["string", "null"] } },
            { "additionalProperties": { "type": ["string", "boolean"] } },
        ] }),
        json!({ "type": "object", "additionalProperties": { "type": "string" } }),
    );
    assert_response_json_schema(
        json!({ "type": "object", "allOf": [{ "additionalProperties": false }] }),
        json!({ "type": "object", "additionalProperties": false }),
    );
    assert_response_schema(
        json!({ "enum": [1, 3, 4.5, 9], "allOf": [{ "minimum": 2 }, { "exclusiveMaximum": 4.5 }] }),
        json!({ "type": "INTEGER", "minimum": 3, "maximum": 3 }),
    );
    // One of the two forbids what the other lists.
    assert_response_schema(
        json!({ "type": "object", "properties": { "a": { "type": "string" } },
            "additionalProperties": false,
            "allOf": [{ "properties": { "b": { "type": "string" } } }] }),
        response_object_of(json!({ "type": "STRING" })),
    );
}

#[test]
fn restrictions_that_cannot_be_merged_are_described() {
    assert_response_schema(
        json!({ "type": "string", "pattern": "a", "allOf": [{ "$ref": "#/$defs/B" }],
            "$defs": { "B": { "pattern": "b" } } }),
        json!({ "type": "STRING", "pattern": "a",
            "description": "Must also satisfy the JSON Schema: {\"pattern\":\"b\"}" }),
    );
}

#[test]
fn keywords_that_neither_dialect_has_are_described() {
    for keyword in [
        json!({ "not": { "const": "x" } }),
        json!({ "if": { "minLength": 3 }, "then": { "pattern": "a" }, "else": false }),
        json!({ "pattern": "(?=a)b" }),
    ] {
        let mut schema = keyword.clone();
        schema["type"] = "string".into();
        schema["description"] = "D.".into();
        let text = format!("D.\nMust also satisfy the JSON Schema: {keyword}");
        assert_response_schema(schema, json!({ "type": "STRING", "description": text }));
    }
    let described = |text: &str| format!("Must also satisfy the JSON Schema: {text}");
    assert_response_schema(
        json!({ "type": "array", "items": { "type": "string" }, "uniqueItems": true }),
        json!({ "type": "ARRAY", "items": { "type": "STRING" },
            "description": described(r#"{"uniqueItems":true}"#) }),
    );
    assert_response_json_schema(
        json!({ "type": "object", "patternProperties": { "^x": { "type": "string" } },
            "additionalProperties": false }),
        json!({ "type": "object", "additionalProperties": { "type": "string" },
            "description": "Names of properties match the pattern \"^x\"" }),
    );
}

#[test]
fn described_schemas_contain_the_targets_of_their_references() {
    assert_response_schema(
        json!({ "type": "string", "not": { "$ref": "#/$defs/No" },
            "$defs": { "No": { "const": "no" } } }),
        json!({ "type": "STRING", "description":
            "Must also satisfy the JSON Schema: {\"not\":{\"const\":\"no\"}}" }),
    );
}

#[test]
fn exclusive_bounds_become_inclusive_or_are_described() {
    assert_response_schema(
        json!({ "type": "integer", "exclusiveMinimum": 0, "exclusiveMaximum": 9.5 }),
        json!({ "type": "INTEGER", "minimum": 1, "maximum": 9 }),
    );
    assert_response_schema(
        json!({ "$schema": "http://json-schema.org/draft-04/schema#",
            "type": "integer", "minimum": 0, "exclusiveMinimum": true }),
        json!({ "type": "INTEGER", "minimum": 1 }),
    );
    assert_response_schema(
        json!({ "type": "number", "exclusiveMinimum": 0 }),
        json!({ "type": "NUMBER", "minimum": 0,
            "description": "Must also satisfy the JSON Schema: {\"exclusiveMinimum\":0}" }),
    );
}

#[test]
fn formats_that_gemini_does_not_know_are_described() {
    for (schema, expected) in [
        (
            json!({ "type": "string", "format": "email" }),
            json!({ "type": "STRING", "description": "Format: \"email\"" }),
        ),
        (
            json!({ "type": "integer", "format": "int64" }),
            json!({ "type": "INTEGER", "format": "int64" }),
        ),
        (json!({ "type": "integer", "format": "date-time" }), json!({ "type": "INTEGER" })),
    ] {
        assert_response_schema(schema, expected);
    }
}

#[test]
fn a_required_name_is_a_property() {
    assert_response_json_schema(
        json!({ "type": "object", "properties": { "a": { "type": "string" } },
            "required": ["b", "a"] }),
        json!({ "type": "object", "properties": { "a": { "type": "string" }, "b": {} },
            "required": ["a", "b"], "propertyOrdering": ["a", "b"] }),
    );
    assert_response_json_schema(
        json!({ "type": "object", "additionalProperties": { "type": "integer" },
            "required": ["b"] }),
        json!({ "type": "object", "additionalProperties": { "type": "integer" },
            "properties": { "b": { "type": "integer" } },
            "required": ["b"], "propertyOrdering": ["b"] }),
    );
}

#[test]
fn maps_tuples_and_open_objects_are_sent_as_response_json_schema() {
    for schema in [
        json!({ "type": "array" }),
        json!({ "type": "object", "additionalProperties": { "type": "string" } }),
        json!({ "type": "object", "additionalProperties": true }),
        json!({ "type": "array", "prefixItems": [{ "type": "string" }], "items": { "type": "null" } }),
        json!({ "type": "array", "items": {} }),
    ] {
        assert_response_json_schema(schema.clone(), schema);
    }
    assert_response_json_schema(
        json!({ "type": "array", "prefixItems": [{ "type": "string" }], "items": false }),
        json!({ "type": "array", "prefixItems": [{ "type": "string" }], "maxItems": 1 }),
    );
    assert_response_json_schema(
        json!({ "$schema": "http://json-schema.org/draft-07/schema#", "type": "array",
            "items": [{ "type": "string" }], "additionalItems": { "type": "null" } }),
        json!({ "type": "array", "prefixItems": [{ "type": "string" }], "items": { "type": "null" } }),
    );
    assert_response_json_schema(
        json!({ "type": "object", "properties": { "a": false, "b": true } }),
        json!({ "type": "object", "properties": { "b": {} }, "propertyOrdering": ["b"],
            "description": "Must also satisfy the JSON Schema: {\"properties\":{\"a\":false}}" }),
    );
}

#[test]
fn a_schema_without_restrictions_sends_none() {
    for schema in [
        json!(true),
        json!({}),
        json!({ "$schema":
        "https://json-schema.org/draft/2020-12/schema" }),
    ] {
        assert_eq!(compile(schema.clone()).dialect(), Dialect::Any, "{schema}");
    }
    assert_response_json_schema(json!({ "description": "d" }), json!({ "description": "d" }));
}

#[test]
fn a_property_may_have_the_name_of_a_keyword() {
    let string = json!({ "type": "STRING" });
    assert_response_schema(
        json!({ "type": "object", "properties": {
            "$ref": { "type": "string" }, "const": { "type": "string" } } }),
        json!({ "type": "OBJECT", "properties": { "$ref": string, "const": string },
            "propertyOrdering": ["$ref", "const"] }),
    );
}
