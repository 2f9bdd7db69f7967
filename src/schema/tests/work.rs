//! How much work schemas and answers take, counted in steps.

use serde_json::{Map, Value, json};
use tokio_util::sync::CancellationToken;

use super::{LIMITS, assert_refused, compile, try_compile, violations};
use crate::schema::{Dialect, NotCompiled, Schema, SchemaLimits, Stopped, Work};

fn unlimited() -> Work {
    Work::until(CancellationToken::new())
}

fn steps_to_compile(schema: &Value) -> u64 {
    let work = unlimited();
    Schema::compile(schema, &LIMITS, &work).unwrap_or_else(|error| panic!("{schema}: {error}"));
    u64::MAX - work.left()
}

fn steps_to_check(schema: &Value, answer: &Value) -> u64 {
    let (schema, work) = (compile(schema.clone()), unlimited());
    schema.violations(answer, &work).expect("nothing stops it");
    u64::MAX - work.left()
}

/// `count` copies of a schema with their numbers in them.
fn numbered(count: usize, schema: impl Fn(usize) -> Value) -> Vec<Value> {
    (0..count).map(schema).collect()
}

#[test]
fn compiling_takes_steps_in_proportion_to_the_schema() {
    type Part = fn(usize) -> Value;
    let parts: [(&str, Part); 7] = [
        ("not", |i| json!({ "not": { "required": [format!("p{i}")] } })),
        (
            "if",
            |i| json!({ "if": { "required": [format!("p{i}")] }, "then": { "minProperties": i } }),
        ),
        ("required", |i| json!({ "required": [format!("p{i}")] })),
        ("properties", |i| json!({ "properties": { format!("p{i}"): { "type": "string" } } })),
        ("patterns", |i| json!({ "properties": { format!("p{i}"): { "pattern": "^a" } } })),
        ("types", |_| json!({ "type": "object", "description": "One more." })),
        ("conflicts", |i| json!({ "format": format!("f{i}") })),
    ];
    for (name, part) in parts {
        let schema = |count| json!({ "type": "object", "allOf": numbered(count, part) });
        let (few, many) = (steps_to_compile(&schema(500)), steps_to_compile(&schema(2_000)));
        assert!(many < 5 * few, "{name}: {few} steps for 500, {many} for 2,000");
    }
}

#[test]
fn a_long_all_of_keeps_all_its_restrictions() {
    let parts = numbered(
        3_000,
        |i| json!({ "properties": { format!("p{i}"): { "type": "string" } }, "required": [format!("p{i}")] }),
    );
    let schema = compile(json!({ "type": "object", "allOf": parts }));
    let Dialect::ResponseSchema(sent) = schema.dialect() else { panic!() };
    assert_eq!(sent["properties"].as_object().map(serde_json::Map::len), Some(3_000));
    assert_eq!(sent["required"].as_array().map(Vec::len), Some(3_000));
}

#[test]
fn a_description_is_not_repeated_for_each_of_many_alternatives() {
    let alternatives = numbered(60, |i| json!({ "type": "string", "minLength": i }));
    let long = "a".repeat(100_000);
    let described = json!({ "anyOf": alternatives, "description": long });
    let schema = compile(json!({ "anyOf": [described, { "type": "null" }, { "type": "object" }] }));
    let (_, sent) = schema.sent().expect("something is sent");
    assert!(sent.len() < 2 * long.len(), "{}", sent.len());
}

#[test]
fn checking_an_enum_takes_the_same_steps_for_any_length() {
    let answer = Value::Array(vec![json!({ "a": -1 }); 100]);
    let schema = |count| json!({ "type": "array", "items": { "enum": numbered(count, |i| json!({ "a": i })) } });
    assert_eq!(steps_to_check(&schema(100), &answer), steps_to_check(&schema(5_000), &answer));
}

#[test]
fn an_enum_compares_as_json_schema_does() {
    let schema = compile(json!({ "enum": [1, 2.5, "1", null, { "a": [1], "b": 2.0 }, [true]] }));
    for valid in [
        json!(1.0),
        json!(2.5),
        json!("1"),
        json!(null),
        json!({ "b": 2, "a": [1.0] }),
        json!([true]),
    ] {
        assert_eq!(violations(&schema, &valid), Vec::<String>::new(), "{valid}");
    }
    for invalid in [json!(2), json!("2.5"), json!({ "a": [1] }), json!([1]), json!([]), json!({})] {
        let messages = violations(&schema, &invalid);
        assert_eq!(messages.len(), 1, "{invalid}");
        assert!(
            messages[0].starts_with("at the root: value is not one of 1, 2.5, \"1\""),
            "{messages:?}"
        );
    }
}

#[test]
fn a_check_can_be_stopped_inside_the_validator() {
    let alternatives = numbered(1_000, |i| json!({ "const": { "a": i } }));
    let schema = compile(json!({ "items": { "anyOf": alternatives } }));
    let answer = Value::Array(vec![json!({ "a": -1 }); 1_000]);
    assert_eq!(schema.violations(&answer, &Work::brief()), Err(Stopped));
    let cancelled = CancellationToken::new();
    cancelled.cancel();
    assert_eq!(schema.violations(&answer, &Work::until(cancelled)), Err(Stopped));
}

/// That the answer is invalid is seen at its first item, and all violations take many more steps.
#[test]
fn violations_are_collected_within_the_steps_of_the_check() {
    let alternatives = numbered(500, |i| json!({ "const": { "a": i } }));
    let schema = compile(json!({ "items": { "anyOf": alternatives } }));
    let answer = Value::Array(vec![json!({ "a": -1 }); 100]);
    assert_eq!(schema.violations(&answer, &Work::brief()), Err(Stopped));
    assert_eq!(violations(&schema, &answer).len(), 20);
}

#[test]
fn most_expressions_of_a_large_schema_are_compiled_when_they_are_first_matched() {
    let pattern = |i: usize| format!("^([A-Z][a-z]*-){{1,9}}{i}$");
    let properties: serde_json::Map<String, Value> =
        (0..2_000).map(|i| (format!("p{i}"), json!({ "pattern": pattern(i) }))).collect();
    let schema = json!({ "properties": properties });
    let steps = steps_to_compile(&schema);
    assert!(steps < 200_000, "{steps}");
    let last = json!({ "p1999": "Ab-C-1999" });
    assert!(steps_to_check(&schema, &last) > 512, "compiling the expression is counted");
    let schema = compile(schema);
    assert_eq!(violations(&schema, &last), Vec::<String>::new());
    let expected = [format!("at /p1998: value does not match \"{}\"", pattern(1998))];
    assert_eq!(violations(&schema, &json!({ "p1998": "Ab-C-1999" })), expected);
    let brief = Work::brief();
    brief.spend(16_000).expect("a brief work has as many steps");
    assert_eq!(schema.violations(&json!({ "p1997": "A-1997" }), &brief), Err(Stopped));
}

#[test]
fn compiling_stops_when_the_work_is_stopped() {
    let patterns = numbered(200, |i| json!({ "pattern": format!("[a-z]{{{i}}}") }));
    let schema = json!({ "anyOf": patterns });
    let cancelled = CancellationToken::new();
    cancelled.cancel();
    for work in [Work::brief(), Work::until(cancelled)] {
        let stopped = Schema::compile(&schema, &LIMITS, &work).expect_err("it stops");
        assert_eq!(stopped, NotCompiled::Stopped(Stopped));
    }
}

#[test]
fn collecting_violations_of_a_wide_answer_is_bounded() {
    let alternatives = numbered(300, |i| json!({ "const": i }));
    let schema = compile(json!({ "items": { "anyOf": alternatives } }));
    let answer = Value::Array(vec![json!(-1); 20_000]);
    assert_eq!(
        violations(&schema, &answer),
        ["at the root: the value does not satisfy the schema"],
    );
}

#[test]
fn a_text_that_is_too_long_for_its_pattern_is_not_matched() {
    let too_long = ["at the root: a text is too long to be matched against its pattern"];
    for (pattern, length) in [("(?=.*b)a", 9_000), ("^([a-z]+-){2000}$", 20_000)] {
        let schema = compile(json!({ "type": "string", "pattern": pattern }));
        assert_eq!(violations(&schema, &"a".repeat(length).into()), too_long, "{pattern}");
        assert_ne!(violations(&schema, &"a".repeat(1_000).into()), too_long, "{pattern}");
        let names = compile(json!({ "patternProperties": { pattern: false } }));
        assert_eq!(violations(&names, &json!({ "a".repeat(length): 1 })), too_long, "{pattern}");
    }
    let simple = compile(json!({ "type": "string", "pattern": "^a" }));
    assert!(violations(&simple, &"a".repeat(500_000).into()).is_empty());
    assert_refused(json!({ "pattern": "((a|b){1000}){1000}" }), "/pattern", "((a|b){1000}){1000}");
}

#[test]
fn a_schema_beyond_a_bound_is_refused_with_the_name_of_the_setting() {
    let limits = SchemaLimits { bytes: 100, nodes: 10 };
    let refused = |text: &str| match Schema::read(text, &limits, &unlimited()) {
        Err(NotCompiled::Unusable(error)) => error.to_string(),
        other => panic!("{other:?}"),
    };
    let long = json!({ "description": "a".repeat(100) }).to_string();
    assert_eq!(refused(&long), "at the root: is larger than 100 bytes (MAX_SCHEMA_BYTES)");
    let many = json!({ "enum": vec![1; 20] }).to_string();
    let message = "at /enum/8: is past the first 10 values (MAX_SCHEMA_NODES)";
    assert_eq!(refused(&many), message);
}

#[test]
fn long_names_around_many_schemas_are_refused() {
    let inside: serde_json::Map<String, Value> =
        (0..1_000).map(|i| (format!("p{i}"), json!({}))).collect();
    let schema = json!({ "properties": { "a".repeat(100_000): { "properties": inside } } });
    let error = try_compile(&schema).expect_err("the schema is refused");
    assert!(error.message.contains("paths"), "{}", error.message);
}

#[test]
fn a_hundred_thousand_levels_are_refused() {
    for (open, close) in [("{\"not\":", "}"), ("[", "]"), ("{\"items\":[", "]}")] {
        let text = [open.repeat(100_000), "1".to_owned(), close.repeat(100_000)].concat();
        let refused = Schema::read(&text, &LIMITS, &unlimited());
        assert!(matches!(refused, Err(NotCompiled::Unusable(_))), "{open}");
    }
}

#[test]
fn the_memory_of_compiled_patterns_is_bounded() {
    const MESSAGE: &str = "take more than 33554432 bytes";
    let names = |count| {
        let named = (0..count).map(|i| (format!("^x{i}[ab]{{1,20000}}$"), json!({})));
        json!({ "type": "object", "patternProperties": named.collect::<Map<_, _>>() })
    };
    compile(names(2));
    assert_refused(names(300), "", MESSAGE);
    let alternatives = (0..10).map(|i| {
        let pattern = format!("(((a{{1,30}}){{1,30}}){{1,30}}|b{i}){{1,3}}");
        (format!("p{i}"), json!({ "pattern": pattern }))
    });
    let at_once = json!({ "properties": alternatives.collect::<Map<_, _>>() });
    assert_refused(at_once, "", MESSAGE);
    // These are compiled when they are matched.
    let deferred = (0..100).map(|i| {
        let pattern = format!("^x{i}(?:[^/]{{1,100}}/){{1,5}}$");
        (format!("p{i}"), json!({ "type": "string", "pattern": pattern }))
    });
    let properties = deferred.collect::<Map<_, _>>();
    let answer = (0..100).map(|i| (format!("p{i}"), json!(format!("x{i}a/"))));
    let answer = answer.collect::<Map<_, _>>();
    let schema = compile(json!({ "type": "object", "properties": properties }));
    let few = answer.iter().take(2).map(|(name, value)| (name.clone(), value.clone()));
    assert_eq!(violations(&schema, &few.collect::<Map<_, _>>().into()), [""; 0]);
    let violations = violations(&schema, &answer.into());
    assert_eq!(violations, ["at the root: the patterns that apply take too much memory"]);
}
