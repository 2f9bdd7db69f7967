//! Keywords and wrappings of other languages than JSON Schema.

use serde_json::{Value, json};

use super::{
    assert_refused, assert_response_schema, compile, object_of, response_object_of, violations,
};

#[track_caller]
fn assert_takes(schema: &Value, valid: &[Value], invalid: Value) {
    let compiled = compile(schema.clone());
    for valid in valid {
        assert_eq!(violations(&compiled, valid), Vec::<String>::new(), "{schema} {valid}");
    }
    assert!(!violations(&compiled, &invalid).is_empty(), "{schema}");
}

#[test]
fn nullable_allows_null_beside_everything() {
    let definitions = json!({ "s": { "type": "string" } });
    for schema in [
        json!({ "type": "string", "nullable": true }),
        json!({ "type": "string", "enum": ["x"], "nullable": true }),
        json!({ "type": "string", "const": "x", "nullable": true }),
        json!({ "$ref": "#/$defs/s", "nullable": true }),
        json!({ "allOf": [{ "$ref": "#/$defs/s" }], "nullable": true }),
        json!({ "anyOf": [{ "type": "string" }, { "type": "boolean" }], "nullable": true }),
        json!({ "oneOf": [{ "type": "string" }, { "type": "boolean" }], "nullable": true }),
        json!({ "type": "string", "not": { "maxLength": 0 }, "nullable": true }),
        json!({ "type": ["string"], "nullable": true }),
    ] {
        for draft in [None, Some("http://json-schema.org/draft-07/schema#")] {
            let mut around = json!({ "type": "object", "required": ["a"], "properties": { "a": schema },
                "$defs": definitions });
            if let Some(draft) = draft {
                around["$schema"] = draft.into();
            }
            assert_takes(&around, &[json!({ "a": null }), json!({ "a": "x" })], json!({ "a": 1 }));
        }
        let items = json!({ "type": "array", "items": schema, "$defs": definitions });
        assert_takes(&items, &[json!([null, "x"])], json!([1]));
    }
    let never_null = json!({ "type": "string", "nullable": false });
    assert_takes(&never_null, &[json!("x")], json!(null));
}

#[test]
fn nullable_is_sent_as_such() {
    for schema in [
        json!({ "type": "string", "nullable": true, "description": "d" }),
        json!({ "$ref": "#/$defs/s", "nullable": true, "description": "d" }),
    ] {
        let mut schema = object_of(schema);
        schema["$defs"] = json!({ "s": { "type": "string" } });
        let sent = json!({ "type": "STRING", "nullable": true, "description": "d" });
        assert_response_schema(schema, response_object_of(sent));
    }
}

#[test]
fn types_are_recognised_in_any_letter_case() {
    let schema = json!({ "type": "OBJECT", "required": ["n"], "properties": {
        "n": { "type": "NUMBER" }, "s": { "type": "String" }, "l": { "type": "ARRAY",
        "items": { "type": ["INTEGER", "NULL"] }, "min_items": 1, "max_items": "2" },
        "x": { "type": "any" }, "u": { "any_of": [{ "type": "BOOLEAN" }] } } });
    let valid = json!({ "n": 1.5, "s": "", "l": [1, null], "x": {}, "u": true });
    assert_takes(&schema, &[valid], json!({ "n": 1, "l": [1, 2, 3] }));
    assert_takes(&schema, &[], json!({ "n": 1, "u": 1 }));
}

#[test]
fn the_callers_order_of_properties_is_kept() {
    let properties = json!({ "answer": { "type": "string" }, "other": { "type": "string" },
        "reasoning": { "type": "string" } });
    let sent = |names: &[&str]| {
        let properties: serde_json::Map<_, _> =
            names.iter().map(|name| ((*name).to_owned(), json!({ "type": "STRING" }))).collect();
        json!({ "type": "OBJECT", "properties": properties, "propertyOrdering": names })
    };
    for keyword in ["propertyOrdering", "property_ordering"] {
        let schema = json!({ "type": "object", "properties": properties,
            keyword: ["reasoning", "absent", "answer"] });
        assert_response_schema(schema, sent(&["reasoning", "answer", "other"]));
    }
    assert_refused(
        json!({ "type": "object", "propertyOrdering": [1] }),
        "/propertyOrdering",
        "not a list",
    );
}

#[test]
fn properties_keep_the_order_of_the_source_through_all_of() {
    let first = json!({ "type": "object", "properties": { "first": { "type": "string" } } });
    let second = json!({ "second": { "type": "string" } });
    let names = |schema: Value| match compile(schema).dialect() {
        crate::schema::Dialect::ResponseSchema(sent) => sent["propertyOrdering"].clone(),
        other => panic!("{other:?}"),
    };
    let definitions = json!({ "B": first });
    for part in ["allOf", "$ref"] {
        let value = match part {
            "allOf" => json!([{ "$ref": "#/$defs/B" }]),
            _ => json!("#/$defs/B"),
        };
        let before =
            json!({ part: value, "type": "object", "properties": second, "$defs": definitions });
        assert_eq!(names(before), json!(["first", "second"]), "{part}");
        let after =
            json!({ "type": "object", "properties": second, part: value, "$defs": definitions });
        assert_eq!(names(after), json!(["second", "first"]), "{part}");
    }
}

#[test]
fn examples_are_described() {
    let described = |schema: Value, description: &str| {
        let sent = json!({ "type": "STRING", "description": description });
        assert_response_schema(object_of(schema), response_object_of(sent));
    };
    described(
        json!({ "type": "string", "description": "ISO week", "examples": ["2024-W05"] }),
        "ISO week\nExample: \"2024-W05\"",
    );
    described(json!({ "type": "string", "example": "a" }), "Example: \"a\"");
    described(json!({ "type": "string", "examples": ["a", "b"] }), "Examples: \"a\", \"b\"");
}

#[test]
fn an_empty_object_may_be_written_as_an_empty_array() {
    let schema = json!({ "type": "object", "properties": [], "$defs": [] });
    assert_takes(&schema, &[json!({})], json!(1));
}

#[test]
fn schemas_are_unwrapped_from_other_apis_formats() {
    let schema = object_of(json!({ "type": "string" }));
    for wrapped in [
        json!({ "name": "person", "strict": true, "schema": schema }),
        json!({ "type": "json_schema", "json_schema": { "name": "person", "schema": schema } }),
        json!({ "type": "json_schema", "name": "person", "schema": schema }),
        json!({ "name": "tool", "description": "d", "inputSchema": schema }),
        json!({ "name": "tool", "input_schema": schema }),
        json!({ "name": "tool", "parameters": schema }),
        json!({ "type": "function", "function": { "name": "tool", "parameters": schema } }),
    ] {
        assert_response_schema(wrapped, response_object_of(json!({ "type": "STRING" })));
    }
}

#[test]
fn objects_that_are_not_schemas_are_refused() {
    for schema in [
        json!({ "name": "string", "age": "integer" }),
        json!({ "name": { "type": "string" } }),
        json!({ "schema": "string" }),
        json!({ "title": "string", "pages": "int" }),
        json!({ "title": "string", "description": "string" }),
    ] {
        assert_refused(schema, "", "no keyword of JSON Schema");
    }
    let error = super::try_compile(&json!({ "age": "int" })).expect_err("it is refused");
    assert!(error.message.contains(r#""properties": {"age": {"type": "integer"}}"#), "{error}");
    for any in [json!({}), json!(true)] {
        assert_eq!(compile(any).dialect(), crate::schema::Dialect::Any);
    }
    compile(json!({ "description": "anything" }));
}
