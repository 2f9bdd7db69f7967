//! Compiles public collections of schemas, and checks the results. This development check is run by
//! hand.
//!
//! ```sh
//! JSON_SCHEMA_TEST_SUITE=… MASKBENCH=… SCHEMASTORE=… GENERATED=… cargo test --release --test schemas
//! ```
//!
//! Each variable names a directory: a clone of JSON-Schema-Test-Suite, of MaskBench, of
//! SchemaStore, and the output of `tests/schemas/generate`. A collection is skipped when its
//! variable is not set. `OFFENDERS=FILE` writes a line for each finding: its kind, the collection,
//! the schema and details, separated by tabs. `ONLY=TEXT` reads only the schemas whose names
//! contain the text, and `EACH=10` every tenth schema.

mod collections;
mod counts;
mod sent;

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::thread::Builder;
use std::time::Duration;

use gemini_concurrent_generation::config::Config;
use gemini_concurrent_generation::schema::{Schema, SchemaLimits, Work};
use gemini_concurrent_generation::simulator::refused_schema;
use rustix::time::{ClockId, clock_gettime};
use serde_json::Value;
use tokio_util::sync::CancellationToken;

use collections::{Case, Collection};
use counts::{Counts, print_times};
use sent::Sent;

/// The allocator of the service.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// The stack of a thread that serves connections, in bytes.
const STACK: usize = 2 << 20;

fn main() {
    let collections = Collection::at_hand();
    if collections.is_empty() {
        println!("No collection is at hand: set {}.", Collection::VARIABLES.join(", "));
    }
    let mut times = Vec::new();
    for collection in collections {
        let thread = Builder::new().stack_size(STACK);
        let thread = thread.spawn(move || check(&collection)).expect("a thread");
        let counts = thread.join().expect("no schema is past counting");
        times.extend(counts.print());
    }
    println!("\n## All collections\n");
    print_times(&times, &(0..usize::MAX));
}

fn check(collection: &Collection) -> Counts {
    let limits = Config::default().schema_limits;
    let only = std::env::var("ONLY").unwrap_or_default();
    let mut counts = Counts::new(collection.name);
    for case in collection.sample().filter(|case| case.name.contains(&only)) {
        let judged = catch_unwind(AssertUnwindSafe(|| judge(&case, &limits, &mut counts)));
        if judged.is_err() {
            counts.against("panics", &case.name, "");
        }
    }
    counts
}

fn judge(case: &Case, limits: &SchemaLimits, counts: &mut Counts) {
    let text = case.schema.to_string();
    let work = Work::until(CancellationToken::new());
    let start = processor_time();
    let compiled = Schema::read(&text, limits, &work);
    counts.compiled(&case.name, text.len(), processor_time() - start);
    let schema = match compiled {
        Ok(schema) => schema,
        Err(error) => return counts.refused(&case.name, &error.to_string()),
    };
    check_instances(case, &schema, &work, counts);
    let Some((field, sent)) = schema.sent() else { return counts.sent_nothing() };
    counts.sent(&case.name, field, sent.len(), text.len());
    let sent = serde_json::from_str(sent).expect("what is sent is JSON");
    if let Some(refusal) = refused_schema(field, &sent) {
        counts.against("sent breaks a rule of Gemini's", &case.name, &refusal);
    }
    let listed = sent::names(&sent);
    if let Some(name) = sent::demanded(&case.schema).find(|name| !listed.allows(name)) {
        counts.against("name in a required that is not sent", &case.name, name);
    }
    check_sent(case, &schema, &work, &Sent::read(field, &sent), counts);
}

/// The processor time of this thread, which depends less on the load of the machine than elapsed
/// time does.
fn processor_time() -> Duration {
    let time = clock_gettime(ClockId::ThreadCPUTime);
    Duration::try_from(time).expect("a time since the start")
}

/// Compares the check of answers with the collection's instances.
fn check_instances(case: &Case, schema: &Schema, work: &Work, counts: &mut Counts) {
    for (instance, is_valid) in &case.instances {
        let violations = schema.violations(instance, work).expect("nothing stops it");
        counts.instance();
        match (is_valid, violations.first()) {
            (true, Some(violation)) => {
                counts.against(rejected_although_valid(case, instance), &case.name, violation);
            }
            (false, None) => {
                let kind = accepted_although_invalid(case, instance);
                counts.against(kind, &case.name, &instance.to_string());
            }
            _ => {}
        }
    }
}

fn rejected_although_valid(case: &Case, instance: &Value) -> &'static str {
    match by_any_validator(case, instance) {
        (false, _) => "valid instance rejected, as by any validator",
        (true, false) => "valid instance rejected, for its format alone",
        (true, true) => "valid instance rejected",
    }
}

fn accepted_although_invalid(case: &Case, instance: &Value) -> &'static str {
    match by_any_validator(case, instance) {
        (true, false) => "invalid instance accepted, for its format alone",
        (true, true) => "invalid instance accepted, as by any validator",
        (false, _) => "invalid instance accepted",
    }
}

/// Whether the unmodified validator accepts the instance: without formats, and with them. If it
/// cannot read the schema, the collection's verdict is used.
fn by_any_validator(case: &Case, instance: &Value) -> (bool, bool) {
    let admits = |formats| {
        let options = jsonschema::options().should_validate_formats(formats).offline();
        options.build(&case.schema).map(|validator| validator.is_valid(instance))
    };
    let expected = case.instances.iter().any(|(known, is_valid)| *is_valid && known == instance);
    (admits(false).unwrap_or(expected), admits(true).unwrap_or(expected))
}

/// Checks that the sent schema accepts valid instances.
fn check_sent(case: &Case, schema: &Schema, work: &Work, sent: &Sent, counts: &mut Counts) {
    let valid = |instance: &Value| schema.violations(instance, work).is_ok_and(|v| v.is_empty());
    let known =
        || case.instances.iter().filter(|(instance, is_valid)| *is_valid && valid(instance));
    let mut allowed = 0;
    for (instance, _) in known() {
        // Gemini does not write names that the sent schema does not list.
        let written = sent.listed(instance);
        if sent.admits(&written) && valid(&written) {
            allowed += 1;
        } else {
            counts.against(
                "valid instance outside of what is sent",
                &case.name,
                &sent.objection(&written),
            );
        }
    }
    if known().next().is_some() && allowed == 0 {
        counts.against("no valid instance within what is sent", &case.name, "");
    }
}
