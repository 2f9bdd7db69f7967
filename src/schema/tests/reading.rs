//! How references, names, drafts and expressions are read.

use serde_json::{Value, json};

use super::{
    assert_refused, assert_response_schema, compile, object_of, response_object_of, violations,
};

/// Holds the check to what is right, and what is sent to what plain JSON Schema gives.
#[track_caller]
fn assert_reads_as(schema: Value, plain: Value) {
    assert_eq!(compile(schema).dialect(), compile(plain).dialect());
}

#[track_caller]
fn assert_takes(schema: &Value, valid: Value, invalid: Value) {
    let compiled = compile(schema.clone());
    assert_eq!(violations(&compiled, &valid), Vec::<String>::new(), "{schema}");
    assert!(!violations(&compiled, &invalid).is_empty(), "{schema}");
}

#[test]
fn references_are_followed_as_they_are_written() {
    for name in ["Pick<User,\"a\">", "住所", "billing address", "50% off", "a%20b", "a^b|c", "x[]"]
    {
        for keyword in ["$defs", "definitions"] {
            let schema = json!({
                "type": "object",
                "properties": { "a": { "$ref": format!("#/{keyword}/{name}") } },
                keyword: { name: { "type": "string" } },
            });
            assert_takes(&schema, json!({ "a": "x" }), json!({ "a": 1 }));
            assert_response_schema(schema, response_object_of(json!({ "type": "STRING" })));
        }
    }
}

#[test]
fn percent_encoded_references_are_followed() {
    let schema = object_of(json!({ "$ref": "#/$defs/a%20%3Cb%3E~1c%25" }));
    let mut schema = schema;
    schema["$defs"] = json!({ "a <b>/c%": { "type": "string" } });
    assert_takes(&schema, json!({ "a": "x" }), json!({ "a": 1 }));
}

#[test]
fn names_within_a_schema_are_followed() {
    for (name, reference) in [
        ("Node", "Node"),
        ("Node<T>", "Node<T>"),
        ("https://example.com/node", "https://example.com/node"),
        (
            "urn:uuid:ee564b8a-7a87-4125-8c96-e9f123d6766f",
            "urn:uuid:ee564b8a-7a87-4125-8c96-e9f123d6766f",
        ),
        ("node.json", "./node.json#"),
    ] {
        let schema = json!({ "$ref": reference, "$defs": { "A": {
            "$id": name, "type": "object", "required": ["v"], "properties": {
                "v": { "type": "integer" }, "next": { "$ref": reference } } } } });
        assert_takes(&schema, json!({ "v": 1, "next": { "v": 2 } }), json!({ "v": 1, "next": {} }));
        let plain = json!({ "$ref": "#/$defs/A", "$defs": { "A": {
            "type": "object", "required": ["v"], "properties": {
                "v": { "type": "integer" }, "next": { "$ref": "#/$defs/A" } } } } });
        assert_reads_as(schema, plain);
    }
}

#[test]
fn a_document_may_refer_to_itself_by_name() {
    for reference in
        ["root.json#/$defs/s", "https://x.y/a/root.json#/$defs/s", "/a/root.json#/$defs/s"]
    {
        let schema = json!({ "$id": "https://x.y/a/root.json", "type": "object",
            "properties": { "a": { "$ref": reference } }, "$defs": { "s": { "type": "string" } } });
        assert_takes(&schema, json!({ "a": "z" }), json!({ "a": 1 }));
    }
}

#[test]
fn unused_names_change_nothing() {
    let schema = json!({
        "$schema": "http://json-schema.org/draft-04/schema#",
        "id": "http://jsonschema.net",
        "type": "object",
        "properties": { "a": { "id": "http://jsonschema.net/a", "$ref": "#/definitions/d" },
            "b": { "id": "/properties/b", "items": { "$ref": "#/definitions/d" }, "type": "array" } },
        "definitions": { "d": { "type": "boolean" } },
    });
    assert_takes(&schema, json!({ "a": true, "b": [false] }), json!({ "b": [1] }));
}

#[test]
fn a_fragment_is_resolved_in_the_named_schema_around_it() {
    let schema = json!({ "$id": "https://x.y/root", "type": "object", "$defs": { "s": { "type": "string" } },
        "properties": { "a": { "$id": "inner", "$ref": "#/$defs/s",
            "$defs": { "s": { "type": "integer" } } } } });
    assert_takes(&schema, json!({ "a": 1 }), json!({ "a": "x" }));
}

#[test]
fn dynamic_references_lead_to_the_outermost_anchor() {
    let tree = json!({ "$id": "tree", "$dynamicAnchor": "node", "type": "object", "properties": {
        "children": { "type": "array", "items": { "$dynamicRef": "#node" } } } });
    let strict = json!({ "$id": "strict", "$dynamicAnchor": "node", "$ref": "tree",
        "unevaluatedProperties": false, "$defs": { "tree": tree } });
    let misspelt = json!({ "children": [{ "daat": 1 }] });
    assert_takes(&strict, json!({ "children": [{}] }), misspelt.clone());
    assert!(violations(&compile(tree), &misspelt).is_empty());
}

#[test]
fn references_may_lead_into_unknown_keywords() {
    let schema = json!({ "type": "object", "properties": {
            "a": { "$ref": "#/components/schemas/A" } },
        "components": { "schemas": { "A": { "type": "array", "items": { "$ref": "#/components/schemas/B" } },
            "B": { "type": "string", "nullable": true } } } });
    assert_takes(&schema, json!({ "a": ["x", null] }), json!({ "a": [1] }));
}

#[test]
fn old_syntax_is_accepted_when_no_draft_is_declared() {
    let tuple = json!({ "type": "array", "items": [{ "type": "string" }, { "type": "integer" }],
        "additionalItems": false, "minItems": 2 });
    assert_takes(&tuple, json!(["a", 1]), json!(["a", 1, 2]));
    let exclusive = json!({ "type": "integer", "minimum": 1, "exclusiveMinimum": true,
        "maximum": 3, "exclusiveMaximum": false });
    assert_takes(&exclusive, json!(3), json!(1));
    let marked = json!({ "type": "object", "properties": {
        "a": { "type": "string", "required": true }, "b": { "type": "string", "required": false } } });
    assert_takes(&marked, json!({ "a": "x" }), json!({ "b": "x" }));
    let dependent = json!({ "type": "object", "properties": { "a": {}, "b": {} },
        "dependencies": { "a": ["b"] } });
    assert_takes(&dependent, json!({ "a": 1, "b": 1 }), json!({ "a": 1 }));
}

#[test]
fn keywords_of_other_drafts_than_the_declared_one_are_ignored() {
    let draft = |number: u8, keyword: &str, value: Value| {
        let uri = format!("http://json-schema.org/draft-0{number}/schema#");
        json!({ "$schema": uri, "type": "array", "items": { "type": "string" }, keyword: value })
    };
    assert_reads_as(draft(4, "const", json!(["a"])), draft(4, "title", json!(1)));
    assert_reads_as(draft(7, "prefixItems", json!([false])), draft(7, "title", json!(1)));
    assert!(violations(&compile(draft(4, "const", json!(["a"]))), &json!(["b"])).is_empty());
    assert!(
        violations(&compile(draft(7, "prefixItems", json!([false]))), &json!(["b"])).is_empty()
    );
    let beside = json!({ "$schema": "http://json-schema.org/draft-07/schema#", "type": "object",
        "properties": { "a": { "$ref": "#/definitions/s", "minLength": 5, "description": "d" } },
        "definitions": { "s": { "type": "string" } } });
    assert_response_schema(
        beside,
        response_object_of(json!({ "type": "STRING", "description": "d" })),
    );
}

#[test]
fn drafts_are_recognised_by_all_forms_of_their_uris() {
    for uri in [
        "http://json-schema.org/draft-07/schema",
        "https://json-schema.org/draft-07/schema#",
        "http://json-schema.org/schema#",
        "https://json-schema.org/draft-2019-09/schema",
        "http://json-schema.org/draft-6/schema#",
        "https://json-schema.org/draft/2020-12/schema#",
        "https://spec.openapis.org/oas/3.1/dialect/base",
    ] {
        let schema = json!({ "$schema": uri, "type": "string", "const": "a" });
        assert_takes(&schema, json!("a"), json!("b"));
    }
    assert_refused(json!({ "$schema": 1 }), "/$schema", "not the name");
}

#[test]
fn expressions_that_are_valid_without_the_unicode_flag_are_accepted() {
    for (pattern, valid, invalid) in [
        (r"^\d{4}\-\d{2}$", "2024-01", "202401"),
        (r"^[\w-.]+\@[\w\_]+$", "a-b.c@d_e", "@"),
        ("^{[a-z]+}$", "{abc}", "abc"),
        (r"^\<[^>]\>$", "<a>", "a"),
        (r"^\uD83D\uDE00$", "😀", "x"),
        (r"^[^\/\:\*\?\'\<\>\|]+$", "name", "a:b"),
    ] {
        let schema = json!({ "type": "string", "pattern": pattern });
        assert_takes(&schema, json!(valid), json!(invalid));
        let names = json!({ "type": "object", "patternProperties": { pattern: { "type": "string" } },
            "additionalProperties": false });
        assert_takes(&names, json!({ valid: "x" }), json!({ invalid: "x" }));
    }
}

#[test]
fn errors_name_the_place_in_the_callers_schema() {
    assert_refused(
        json!({ "type": "array", "items": [{}, { "type": "string", "pattern": "(" }] }),
        "/items/1/pattern",
        "(",
    );
    assert_refused(
        object_of(json!({ "nullable": true, "allOf": [{ "minLength": "long" }] })),
        "/properties/a/allOf/0/minLength",
        "long",
    );
    assert_refused(
        json!({ "name": "n", "schema": object_of(json!({ "$ref": "#/$defs/b" })) }),
        "/schema/properties/a/$ref",
        "refers to no schema",
    );
    assert_refused(
        object_of(json!({ "$ref": "#/x-types/t", "x-types": {} }))
            .as_object()
            .map(|map| {
                let mut map = map.clone();
                map.insert("x-types".to_owned(), json!({ "t": { "minLength": -1 } }));
                Value::Object(map)
            })
            .expect("an object"),
        "/x-types/t/minLength",
        "-1",
    );
}

#[test]
fn repeated_references_are_bounded() {
    // Each reference leads to an unknown keyword that holds all the others.
    let mut schema = json!({ "type": "string" });
    for level in 0..40 {
        schema =
            json!({ "x": schema, "anyOf": [{ "$ref": format!("#{}", "/x".repeat(level + 1)) }] });
    }
    let many = json!({ "type": "object", "properties": (0..2_000)
        .map(|i| (i.to_string(), json!({ "$ref": format!("#/x/{i}") })))
        .collect::<serde_json::Map<_, _>>(), "x": (0..2_000).map(|_| json!({})).collect::<Vec<_>>() });
    assert_refused(many, "/properties/1000", "more than 1000 schemas");
}
