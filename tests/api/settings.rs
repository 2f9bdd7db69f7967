//! The documentation lists the settings as the code reads them.

use gemini_concurrent_generation::limits::QuotaKind::*;
use std::cell::RefCell;
use std::collections::{BTreeSet, HashMap};
use std::iter;

use gemini_concurrent_generation::config::{
    Config, OTEL_VARIABLES, PROXY_VARIABLES, RELOADED, SETTINGS, Setting,
};
use gemini_concurrent_generation::limits::Quotas;

use crate::manual::{file, pages, rows, section, text};

/// A setting's row in the manual's table.
fn row(setting: &Setting) -> String {
    let Setting { name, default, unit, meaning } = setting;
    let default = if default.is_empty() { "none".to_owned() } else { format!("`{default}`") };
    format!("| `{name}` | {default} | {unit} | {meaning} |")
}

/// A setting's paragraph in `.env.example`.
fn paragraph(setting: &Setting) -> String {
    let Setting { name, default, unit, meaning } = setting;
    let kind = if default.is_empty() { "no default".into() } else { format!("default: {default}") };
    format!("# {meaning}\n# Unit: {unit}; {kind}\n{name}=")
}

#[test]
fn the_settings_page_lists_every_setting_in_order_and_no_other() {
    let expected: Vec<_> = SETTINGS.iter().map(row).collect();
    assert_eq!(rows(&text("docs/settings.md")), expected);
}

#[test]
fn the_limits_page_lists_each_tiers_numbers() {
    let expected = ["none", "free", "tier1", "tier2", "tier3"].map(|tier| {
        let config = Config::read(|name| (name == "GEMINI_TIER").then(|| tier.to_owned()));
        let config = config.expect("a tier");
        let quotas = Quotas::from(config.quota_plan.quotas(None, "gemini-3.8-flash"));
        let [rpm, tpm, rpd] =
            [quotas[RequestsPerMinute], quotas[InputTokensPerMinute], quotas[RequestsPerDay]]
                .map(|quota| quota.map_or("no limit".to_owned(), grouped));
        let spend = config.quota_plan.of_payer(None)[SpendPerTenMinutes];
        let spend = spend.map_or("no limit".to_owned(), |spend| {
            format!("{} $", grouped(spend.limit / 1_000_000_000))
        });
        let calls = config.concurrency_limit;
        format!("| `{tier}` | {rpm} | {tpm} | {rpd} | {spend} | {calls} |")
    });
    assert_eq!(rows(&section("docs/limits.md", "Quotas")), expected);
}

/// A number with thousands separators, as in the manual.
fn grouped(number: u64) -> String {
    let digits = number.to_string();
    let places = (1..=digits.len()).rev();
    let grouped = digits.chars().zip(places).map(|(digit, place)| {
        if place > 1 && place % 3 == 1 { format!("{digit},") } else { digit.to_string() }
    });
    grouped.collect()
}

#[test]
fn the_quota_examples_can_be_parsed() {
    let section = section("docs/limits.md", "Quotas");
    let lines = section.split("```text\n").nth(1).and_then(|text| text.split("```").next());
    let lines: HashMap<_, _> = dotenvy::from_read_iter(lines.expect("lines of .env").as_bytes())
        .collect::<Result<_, _>>()
        .expect("readable lines");
    Config::read(|name| lines.get(name).cloned()).expect("valid settings");
    for variable in ["GEMINI_LIMITS", "GEMINI_KEY_LABELS"] {
        assert!(lines.contains_key(variable), "{variable}");
        let setting = SETTINGS.iter().find(|setting| setting.name == variable);
        let in_meaning = setting.and_then(|setting| setting.meaning.split('`').nth(1));
        let in_meaning = in_meaning.expect("an example").to_owned();
        Config::read(|name| (name == variable).then(|| in_meaning.clone())).expect(variable);
    }
}

#[test]
fn the_example_file_lists_every_setting_in_order_and_no_other() {
    let example = text(".env.example");
    let paragraphs: Vec<_> = example.trim_end().split("\n\n").skip(1).collect();
    let expected: Vec<_> = SETTINGS.iter().map(paragraph).collect();
    assert_eq!(paragraphs, expected);
}

/// Parsed as the service parses `.env`. If the file set a default, a copy of it could not follow
/// the tier.
#[test]
fn the_example_file_sets_nothing() {
    let variables = dotenvy::from_path_iter(file(".env.example")).expect("the file is there");
    let variables: Vec<_> = variables.collect::<Result<_, _>>().expect("readable lines");
    let empty: Vec<_> =
        SETTINGS.iter().map(|setting| (setting.name.to_owned(), String::new())).collect();
    assert_eq!(variables, empty);
}

/// Fails for a setting that is listed and not read, or read and not listed.
#[test]
fn the_code_reads_every_listed_setting() {
    let asked = RefCell::new(BTreeSet::new());
    let config = Config::read(|name| {
        asked.borrow_mut().insert(name.to_owned());
        None
    });
    config.expect("valid defaults");
    let mut asked = asked.into_inner();
    let shared: Vec<_> = PROXY_VARIABLES.iter().chain(OTEL_VARIABLES).collect();
    asked.retain(|name| !shared.contains(&&&**name));
    let listed: BTreeSet<_> = SETTINGS.iter().map(|setting| setting.name.to_owned()).collect();
    assert_eq!(asked, listed);
}

#[test]
fn the_deployment_page_lists_the_settings_that_a_running_process_takes_over() {
    let section = section("docs/deployment.md", "Change settings without a restart");
    let rows = rows(&section);
    let listed: Vec<_> = rows.iter().filter_map(|row| row.split('`').nth(1)).collect();
    assert_eq!(listed, RELOADED.map(|setting| setting.name));
}

#[test]
fn the_settings_page_names_the_proxy_variables() {
    let section = section("docs/settings.md", "Proxies");
    for name in PROXY_VARIABLES.iter().filter(|name| name.starts_with(char::is_uppercase)) {
        assert!(section.contains(&format!("`{name}`")), "{name}");
    }
}

#[test]
fn the_traces_page_lists_the_variables_of_opentelemetry_and_no_other() {
    let section = section("docs/traces.md", "Variables");
    let mut listed: Vec<_> = rows(&section)
        .iter()
        .flat_map(|row| row.split('|').nth(1).expect("a cell").split('`').skip(1).step_by(2))
        .collect();
    let mut read = OTEL_VARIABLES.to_vec();
    listed.sort_unstable();
    read.sort_unstable();
    assert_eq!(listed, read);
}

/// Variables of the tests, which are not settings of the service.
const OF_TESTS: [&str; 13] = [
    "CARGO_PROFILE_BENCH_DEBUG",
    "CARGO_PROFILE_BENCH_STRIP",
    "FUZZ_SEED",
    "FUZZ_ROUNDS",
    "JSON_SCHEMA_TEST_SUITE",
    "MASKBENCH",
    "SCHEMASTORE",
    "GENERATED",
    "JOB",
    "NODE_PATH",
    "SERVICE_URL",
    "ADMIN_KEY",
    "SEMAPHORE",
];

#[test]
fn instructions_set_only_variables_that_the_code_knows() {
    for name in pages().into_iter().chain(["Dockerfile".to_owned()]) {
        let text = text(&name);
        let unknown: Vec<_> = assigned_names(&text)
            .filter(|variable| SETTINGS.iter().all(|setting| setting.name != *variable))
            .filter(|variable| !OF_TESTS.contains(variable) && !OTEL_VARIABLES.contains(variable))
            .collect();
        assert!(unknown.is_empty(), "{name} sets {unknown:?}");
    }
}

/// The names in assignments: `NAME` in `NAME=value`.
fn assigned_names(text: &str) -> impl Iterator<Item = &str> {
    let mut rest = text;
    let before = iter::from_fn(move || {
        let (before, after) = rest.split_once('=')?;
        rest = after;
        Some(before)
    });
    before.filter_map(|before| {
        let part_of_name = |letter: char| letter.is_ascii_uppercase() || letter == '_';
        let start = before.trim_end_matches(part_of_name).len();
        let ends_a_word = !before[..start].ends_with(|c: char| c.is_ascii_alphanumeric());
        Some(&before[start..]).filter(|name| ends_a_word && !name.is_empty())
    })
}
