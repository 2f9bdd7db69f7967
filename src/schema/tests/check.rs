//! The check of an answer.

use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;

use super::{assert_refused, compile, violations};
use crate::schema::{Schema, SchemaError, Stopped, Work};

/// `innermost` in arrays one inside the other.
fn nested(levels: usize, innermost: Value) -> Value {
    (0..levels).fold(innermost, |inner, _| json!([inner]))
}

#[test]
fn recursion_that_doubles_at_every_step_does_not_slow_the_check() {
    for union in ["allOf", "anyOf"] {
        let items = json!({ "type": "array", "items": { "$ref": "#" } });
        let schema = compile(json!({ "not": { "const": 1 }, union: [items, items] }));
        assert_eq!(
            violations(&schema, &nested(100, json!(1))),
            ["at the root: the value does not satisfy the schema"],
            "{union}",
        );
    }
}

/// Keywords that lead to another schema for the same value, nested as deeply as a schema may be.
const WRAPPERS: [fn(Value) -> Value; 7] = [
    |inner| json!({ "oneOf": [inner, false] }),
    |inner| json!({ "anyOf": [false, inner] }),
    |inner| json!({ "allOf": [true, inner] }),
    |inner| json!({ "not": { "not": inner } }),
    |inner| json!({ "if": inner, "else": false }),
    |inner| json!({ "if": true, "then": inner }),
    |inner| json!({ "dependentSchemas": {}, "contains": true, "minContains": 0, "anyOf": [inner] }),
];

/// On a thread with the stack of those that serve connections.
fn on_a_serving_thread(run: impl FnOnce() + Send + 'static) {
    let thread = std::thread::Builder::new().stack_size(2 << 20).spawn(run);
    thread.expect("a thread").join().expect("it does not panic");
}

/// Collects the violations of an answer whose innermost value is wrong, as far as little work goes: it
/// goes down to there first.
fn collects(schema: &Schema, levels: usize) {
    let violations = schema.violations(&nested(levels, json!("a")), &Work::brief());
    assert_ne!(violations, Ok(Vec::new()));
}

#[test]
fn an_answer_nested_as_deeply_as_json_may_be_is_checked_against_long_chains() {
    on_a_serving_thread(|| {
        for wrapper in WRAPPERS {
            let innermost = json!({ "type": ["array", "integer"], "items": { "$ref": "#" } });
            let schema = (0..30).fold(innermost, |inner, _| wrapper(inner));
            let schema = compile(schema);
            assert_eq!(violations(&schema, &nested(120, json!(1))), Vec::<String>::new());
            collects(&schema, 120);
        }
    });
}

#[test]
fn the_longest_chains_at_every_level_do_not_overflow_the_stack() {
    on_a_serving_thread(|| {
        for wrapper in WRAPPERS {
            // Four chains of about 70 schemas, each of which refers to the next.
            let chain = |last: Value| (0..30).fold(last, |inner, _| wrapper(inner));
            let last = json!({ "type": ["array", "integer"], "items": { "$ref": "#" } });
            let schema = compile(json!({
                "$ref": "#/$defs/a",
                "$defs": {
                    "a": chain(json!({ "$ref": "#/$defs/b" })),
                    "b": chain(json!({ "$ref": "#/$defs/c" })),
                    "c": chain(json!({ "$ref": "#/$defs/d" })),
                    "d": chain(last),
                },
            }));
            assert_eq!(violations(&schema, &nested(126, json!(1))), Vec::<String>::new());
            collects(&schema, 126);
        }
    });
}

#[test]
fn an_answer_deeper_than_any_stack_is_a_violation() {
    let inner = json!({ "items": { "$ref": "#" } });
    let schema = compile((0..45).fold(inner, |inner, _| json!({ "anyOf": [inner] })));
    assert_eq!(
        violations(&schema, &nested(900, json!(1))),
        ["at the root: the value is nested too deeply to be checked"],
    );
}

#[test]
fn work_on_a_larger_stack_is_counted_and_stopped() {
    let inner = json!({ "items": { "$ref": "#" } });
    let schema = compile((0..45).fold(inner, |inner, _| json!({ "anyOf": [inner] })));
    let answer = Value::Array(vec![nested(100, json!(1)); 50]);
    assert_eq!(schema.violations(&answer, &Work::brief()), Err(Stopped));
    let work = Work::until(CancellationToken::new());
    assert_eq!(schema.violations(&answer, &work), Ok(Vec::new()));
    assert!(u64::MAX - work.left() > 5_000);
}

#[test]
fn a_check_against_cyclic_references_ends() {
    for schema in [
        json!({ "not": { "$ref": "#" } }),
        json!({ "if": { "$ref": "#/$defs/a" }, "$defs": {
            "a": { "anyOf": [{ "$ref": "#/$defs/b" }] },
            "b": { "dependentSchemas": { "x": { "$ref": "#/$defs/a" } } },
        } }),
    ] {
        violations(&compile(schema), &nested(100, json!({ "x": 1 })));
    }
}

/// In the order in which the references are followed here, each chain is short up to where one is
/// entered again.
#[test]
fn a_chain_through_many_recursive_definitions_is_counted_whole() {
    let definition = |index: usize| {
        let inner = match index {
            0 => json!({ "$ref": "#/$defs/d1" }),
            _ => json!({ "$ref": format!("#/$defs/d{}", index - 1) }),
        };
        let chain = (0..40).fold(inner, |inner, _| json!({ "anyOf": [inner] }));
        match index {
            0 => json!({ "items": { "$ref": "#/$defs/d1" } }),
            _ => {
                json!({ "items": { "$ref": format!("#/$defs/d{}", index + 1) }, "anyOf": [chain] })
            }
        }
    };
    let mut definitions: serde_json::Map<String, Value> =
        (0..9).map(|index| (format!("d{index}"), definition(index))).collect();
    definitions.insert("d9".into(), json!(true));
    let schema = json!({ "items": { "$ref": "#/$defs/d0" }, "$defs": definitions });
    assert_refused(schema, "", "chain of more than 300");
}

#[test]
fn formats_are_checked_in_every_draft() {
    let formats = [
        ("date", "2026-02-28", "2026-02-30"),
        ("date-time", "2026-02-28T23:59:59.5+01:00", "2026-02-28 23:59"),
        ("time", "23:59:59Z", "25:00:00Z"),
        ("email", "ann@example.com", "ann at example.com"),
        ("uri", "https://example.com/?q=1#a", "example"),
        ("uuid", "123e4567-e89b-12d3-a456-426614174000", "123e4567"),
        ("ipv4", "192.0.2.1", "256.0.2.1"),
        ("ipv6", "2001:db8::1", "2001:db8::g"),
        ("hostname", "www.example.com", "-a.example"),
    ];
    for draft in ["draft-04/schema#", "draft-06/schema#", "draft-07/schema#"] {
        for (format, valid, invalid) in formats {
            let uri = format!("http://json-schema.org/{draft}");
            let schema = compile(json!({ "$schema": uri, "format": format }));
            assert_eq!(violations(&schema, &json!(valid)), Vec::<String>::new());
            assert_eq!(violations(&schema, &json!(1)), Vec::<String>::new());
            assert_eq!(violations(&schema, &json!(invalid)).len(), 1, "{format} in {draft}");
        }
    }
    let schema = compile(json!({ "properties": { "at": { "format": "time" } } }));
    assert_eq!(
        violations(&schema, &json!({ "at": "noon" })),
        ["at /at: value does not have the format time, such as 09:30:00Z"],
    );
}

#[test]
fn formats_that_are_not_checked_are_annotations() {
    for format in ["regex", "iri", "duration", "json-pointer", "phone", "uri-reference"] {
        let schema = compile(json!({ "type": "string", "format": format }));
        assert_eq!(violations(&schema, &json!("(~")), Vec::<String>::new(), "{format}");
    }
    let schema = compile(json!({ "format": "date" })).without_formats();
    assert_eq!(violations(&schema, &json!("tomorrow")), Vec::<String>::new());
}

#[test]
fn a_catastrophic_pattern_does_not_hang_the_check() {
    let text = json!(format!("{}!", "a".repeat(5_000)));
    for pattern in ["^(a+)+$", "^(?=a)(a+)+$"] {
        let schema = compile(json!({ "type": "string", "pattern": pattern }));
        assert!(!violations(&schema, &text).is_empty(), "{pattern}");
    }
}

#[test]
fn violations_name_the_position_and_the_fault() {
    let schema = compile(json!({ "type": "object", "required": ["b"], "properties": {
        "a": { "type": "array", "items": { "type": "integer" } } } }));
    assert_eq!(violations(&schema, &json!({ "a": [1], "b": null })), Vec::<String>::new());
    assert_eq!(
        violations(&schema, &json!({ "a": [1, "x"] })),
        ["at the root: \"b\" is a required property", "at /a/1: value is not of type \"integer\"",],
    );
    let many = json!({ "a": vec!["x"; 100], "b": 1 });
    assert_eq!(violations(&schema, &many).len(), 20);
}

#[test]
fn answers_are_checked_against_the_callers_schema_not_the_sent_one() {
    let schema = compile(json!({ "oneOf": [{ "type": "integer" }, { "type": "number" }] }));
    assert!(violations(&schema, &json!(1.5)).is_empty());
    assert_eq!(violations(&schema, &json!(1)).len(), 1);
}

#[test]
fn an_error_reads_as_a_sentence() {
    let error = SchemaError::new("/a", "is wrong");
    assert_eq!(error.to_string(), "at /a: is wrong");
    assert_eq!(SchemaError::new("", "is wrong").to_string(), "at the root: is wrong");
}

#[test]
fn a_schema_is_shared_between_threads() {
    fn shared<T: Send + Sync>() {}
    shared::<Schema>();
}
