//! The manual (README.md, CONTRIBUTING.md and `docs`): links resolve, tables match the code, and
//! examples work and print what the manual shows.

use std::collections::BTreeSet;
use std::fs;
use std::mem::discriminant;
use std::path::{Path, PathBuf};

use gemini_concurrent_generation::api::Code;
use regex::Regex;
use reqwest::StatusCode;
use serde_json::Value;

use crate::process::{PROGRAM, Process, Start};
use crate::support::Service;

/// The command with which the manual starts the service.
const START: &str = "cargo run --release -- ";

pub fn file(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(name)
}

pub fn text(name: &str) -> String {
    fs::read_to_string(file(name)).unwrap_or_else(|error| panic!("{name}: {error}"))
}

/// The names of all pages, relative to the repository root.
pub fn pages() -> Vec<String> {
    let folder = fs::read_dir(file("docs")).expect("a folder");
    let docs = folder.map(|entry| entry.expect("a file").file_name().into_string().unwrap());
    let docs = docs.filter(|name| name.ends_with(".md")).map(|name| format!("docs/{name}"));
    ["README.md", "CONTRIBUTING.md"].map(str::to_owned).into_iter().chain(docs).collect()
}

/// The section of a page with this heading.
pub fn section(page: &str, heading: &str) -> String {
    let page = text(page);
    let (_, section) = page.split_once(&format!("\n## {heading}\n")).expect(heading);
    section.split("\n## ").next().expect("a first part").to_owned()
}

/// The rows of the first table in a text.
pub fn rows(text: &str) -> Vec<&str> {
    let table = text.lines().skip_while(|line| !line.starts_with('|'));
    table.take_while(|line| line.starts_with('|')).skip(2).collect()
}

/// A page without its code blocks.
fn prose(page: &str) -> String {
    let page = text(page);
    page.split("```").step_by(2).collect()
}

/// One code block of a page.
struct Block {
    language: String,
    code: String,
}

fn blocks(page: &str) -> Vec<Block> {
    let page = text(page);
    let blocks = page.split("```").skip(1).step_by(2);
    let blocks = blocks.map(|block| block.split_once('\n').expect("a line of its own"));
    blocks
        .map(|(language, code)| Block { language: language.to_owned(), code: code.to_owned() })
        .collect()
}

impl Block {
    /// Whether it contains commands, which are run.
    fn is_shell(&self) -> bool {
        self.language == "sh"
    }

    /// Whether it starts the service that the other blocks use.
    fn is_start(&self) -> bool {
        self.is_shell() && self.code.contains(START)
    }

    /// The JSON values in it, if it contains only JSON.
    fn values(&self) -> Option<Vec<Value>> {
        (self.language == "json").then(|| values(&self.code).expect(&self.code))
    }
}

/// Parses consecutive JSON values.
fn values(text: &str) -> Result<Vec<Value>, serde_json::Error> {
    serde_json::Deserializer::from_str(text).into_iter().collect()
}

/// Where an answer lacks fields of the example or has values of other types. Null means a value of
/// any type.
fn differences(at: &str, example: &Value, answer: &Value) -> Vec<String> {
    match (example, answer) {
        (Value::Object(example), Value::Object(answer)) => {
            let fields: BTreeSet<_> = example.keys().chain(answer.keys()).collect();
            let differences = fields.into_iter().flat_map(|name| {
                let at = format!("{at}.{name}");
                match (example.get(name), answer.get(name)) {
                    (Some(example), Some(answer)) => differences(&at, example, answer),
                    (Some(_), None) => vec![format!("{at} is not in the answer")],
                    (None, _) => vec![format!("{at} is not in the example")],
                }
            });
            differences.collect()
        }
        (Value::Array(example), Value::Array(answer)) => {
            let pairs = example.iter().zip(answer).enumerate();
            pairs.flat_map(|(index, (a, b))| differences(&format!("{at}[{index}]"), a, b)).collect()
        }
        (Value::Null, _) | (_, Value::Null) => Vec::new(),
        _ if discriminant(example) == discriminant(answer) => Vec::new(),
        _ => vec![format!("{at} is {answer}, not like {example}")],
    }
}

/// The anchors of a page's headings. Source: GitHub's documentation, "Section links".
fn anchors(page: &str) -> BTreeSet<String> {
    let prose = prose(page);
    let headings = prose.lines().filter(|line| line.starts_with('#'));
    let anchors = headings.map(|heading| {
        let words = heading.trim_start_matches('#').trim().to_lowercase().replace(' ', "-");
        words.chars().filter(|letter| letter.is_alphanumeric() || "-_".contains(*letter)).collect()
    });
    anchors.collect()
}

/// The code in backticks in a text.
fn quoted(text: &str) -> impl Iterator<Item = &str> {
    text.split('`').skip(1).step_by(2)
}

#[test]
fn links_between_pages_resolve() {
    let mut broken = Vec::new();
    for page in pages() {
        let prose = prose(&page);
        let targets = prose.split("](").skip(1).filter_map(|rest| rest.split(')').next());
        for target in targets.filter(|target| !target.starts_with("https://")) {
            let (path, anchor) = target.split_once('#').unwrap_or((target, ""));
            let folder = Path::new(&page).parent().expect("a folder");
            let linked = if path.is_empty() { PathBuf::from(&page) } else { folder.join(path) };
            let linked = linked.to_str().expect("a path in UTF-8");
            let found =
                file(linked).is_file() && (anchor.is_empty() || anchors(linked).contains(anchor));
            if !found {
                broken.push(format!("{page}: {target}"));
            }
        }
    }
    assert_eq!(broken, [""; 0]);
}

#[test]
fn the_readme_links_every_page() {
    let readme = text("README.md");
    let missing = pages().into_iter().filter(|page| !readme.contains(&format!("]({page})")));
    assert_eq!(missing.collect::<Vec<_>>(), ["README.md"]);
}

#[test]
fn every_page_of_docs_begins_with_its_purpose() {
    for page in pages().iter().filter(|page| page.starts_with("docs/")) {
        let text = text(page);
        let mut paragraphs = text.split("\n\n");
        assert!(paragraphs.next().is_some_and(|title| title.starts_with("# ")), "{page}");
        let first = paragraphs.next().unwrap_or_default();
        assert!(first.starts_with("After this page you "), "{page}: {first}");
    }
}

#[test]
fn both_pages_set_up_clients_in_the_same_way() {
    let readme = section("README.md", "Clients");
    assert!(!rows(&readme).is_empty());
    assert_eq!(rows(&readme), rows(&text("docs/native-and-openai.md")));
}

#[test]
fn the_errors_page_has_the_table_of_codes() {
    let page = text("docs/errors.md");
    let table: Vec<_> = Code::ALL
        .iter()
        .map(|code| {
            let status = code.status().as_u16();
            let retryable = if code.is_retryable() { "yes" } else { "no" };
            format!("| {status} | `{code}` | {} | {retryable} |", code.meaning())
        })
        .collect();
    assert_eq!(rows(&page), table);
}

#[tokio::test]
async fn the_operations_page_lists_every_metric_and_no_other() {
    let service = Service::start().await;
    // A metric is exported once it has counted something: a call, a refusal, a retry, a job.
    let chat = service.chat("[[simulate:status=503,fail_times=1]]").await;
    assert_eq!(chat.status, StatusCode::OK);
    service.gateway.metrics.not_admitted("chat", "queue_full");
    service.gateway.metrics.jobs([("queued", 1)]);
    service.gateway.metrics.job_item("succeeded");
    service.gateway.metrics.spans("exported", 1);
    let metrics = service.get("/metrics").send().await.unwrap().text().await.unwrap();
    let exported: BTreeSet<_> = metrics
        .lines()
        .filter_map(|line| line.strip_prefix("# TYPE ")?.split_once(' '))
        .map(|(name, _)| name.strip_prefix("gemini_gateway_").unwrap_or(name).to_owned())
        .collect();
    let table = section("docs/operations.md", "Metrics");
    let names = rows(&table).into_iter().filter_map(|row| row.split('|').nth(1));
    let listed: BTreeSet<_> = names.flat_map(quoted).map(str::to_owned).collect();
    assert_eq!(listed, exported);
}

#[tokio::test]
async fn the_simulator_page_lists_every_option_and_no_other() {
    let help = Start::with_arguments(&["simulate", "--help"]).output().await.stdout;
    let help = String::from_utf8(help).unwrap();
    let option = Regex::new("(?m)^ +(?:-[a-z], )?(--[a-z0-9-]+)").unwrap();
    let known: BTreeSet<_> =
        option.captures_iter(&help).map(|found| found.extract::<1>().1[0]).collect();
    let page = text("docs/simulator.md");
    let names = rows(&page).into_iter().filter_map(|row| row.split('|').nth(1));
    let listed: BTreeSet<_> = names.flat_map(quoted).chain(["--help"]).collect();
    assert_eq!(listed, known);
}

/// The service for a page's examples, if it has any, started as the page itself does, if it does.
async fn started(blocks: &[Block]) -> Option<Process> {
    blocks.iter().find(|block| block.is_shell())?;
    let start = match blocks.iter().find(|block| block.is_start()) {
        Some(block) => Start::shell(&block.code.replace(START, &format!("exec {PROGRAM} "))),
        None => Start::simulated(),
    };
    Some(start.set("ADMIN_API_KEY", "your-admin-key").run().await)
}

/// Runs a block unchanged, except for the address, and returns its output. `curl` fails if the
/// answer is an error.
async fn run(page: &str, block: &str, service: &Process) -> String {
    let address = service.address.to_string();
    let program = Path::new(PROGRAM).parent().expect("a folder").display();
    let script = format!(
        "PATH={program}:$PATH\n\
         curl() {{ command curl --fail --silent --show-error --max-time 60 \"$@\"; }}\n\
         printf '#!/bin/sh\\ntest -n \"$PERMIT_LEASE_ID\"\\n' > render.sh\n\
         chmod +x render.sh\n\
         {}",
        block.replace("localhost:5004", &address)
    );
    let port = service.address.port().to_string();
    let output = Start::shell(&script).unset("PORT").set("PORT", &port).output().await;
    let printed = String::from_utf8_lossy(&output.stdout).into_owned();
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{page}: {}\n{block}\n{printed}\n{errors}", output.status);
    assert_eq!(errors, "", "{page}:\n{block}");
    let meant_to_fail = block.contains("[[simulate:");
    assert!(meant_to_fail || !printed.contains("error_code"), "{page}:\n{block}\n{printed}");
    printed
}

/// Where the output of a block differs from the example that follows it on the page.
fn mismatches(page: &str, example: Option<&Block>, printed: &str) -> Vec<String> {
    let (Some(examples), Ok(answers)) = (example.and_then(Block::values), values(printed)) else {
        return Vec::new();
    };
    assert_eq!(examples.len(), answers.len(), "{page}: {printed}");
    let pairs = examples.iter().zip(&answers);
    pairs.flat_map(|(example, answer)| differences(page, example, answer)).collect()
}

#[tokio::test]
async fn every_shell_block_works_and_prints_what_the_manual_shows() {
    let mut unlike_examples = Vec::new();
    for page in pages() {
        let blocks = blocks(&page);
        let Some(service) = started(&blocks).await else { continue };
        let commands = blocks.iter().enumerate();
        for (index, block) in commands.filter(|(_, block)| block.is_shell() && !block.is_start()) {
            let printed = run(&page, &block.code, &service).await;
            unlike_examples.extend(mismatches(&page, blocks.get(index + 1), &printed));
        }
    }
    assert_eq!(unlike_examples, [""; 0]);
    for page in ["README.md", "docs/getting-started.md"] {
        let commands = blocks(page).into_iter().filter(Block::is_shell).count();
        assert!(commands > 3, "{page} has too few blocks");
    }
}
