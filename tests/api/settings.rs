//! The settings as the documentation lists them: the same as the code reads.

use std::cell::RefCell;
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::{fs, iter};

use gemini_concurrent_generation::config::{Config, SETTINGS, Setting};

fn file(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(name)
}

fn text(name: &str) -> String {
    fs::read_to_string(file(name)).unwrap_or_else(|error| panic!("{name}: {error}"))
}

/// The setting's row in the README's table.
fn row(setting: &Setting) -> String {
    let Setting { name, default, unit, meaning } = setting;
    let default = if default.is_empty() { "none".to_owned() } else { format!("`{default}`") };
    format!("| `{name}` | {default} | {unit} | {meaning} |")
}

/// The setting's paragraph in `.env.example`.
fn paragraph(setting: &Setting) -> String {
    let Setting { name, default, unit, meaning } = setting;
    let kind = if default.is_empty() { "no default".into() } else { format!("default: {default}") };
    format!("# {meaning}\n# Unit: {unit}; {kind}\n{name}={default}")
}

#[test]
fn the_readme_lists_every_setting_in_order_and_no_other() {
    let readme = text("README.md");
    let (_, section) =
        readme.split_once("\n## Settings\n").expect("there is a section of settings");
    let table = section.lines().skip_while(|line| !line.starts_with('|'));
    let rows: Vec<_> = table.take_while(|line| line.starts_with('|')).skip(2).collect();
    let expected: Vec<_> = SETTINGS.iter().map(row).collect();
    assert_eq!(rows, expected);
}

#[test]
fn the_example_lists_every_setting_in_order_and_no_other() {
    let example = text(".env.example");
    let paragraphs: Vec<_> = example.trim_end().split("\n\n").skip(1).collect();
    let expected: Vec<_> = SETTINGS.iter().map(paragraph).collect();
    assert_eq!(paragraphs, expected);
}

/// Read as the service reads `.env`, so that nothing in it needs quotes that it lacks.
#[test]
fn the_example_sets_the_defaults() {
    let variables = dotenvy::from_path_iter(file(".env.example")).expect("the file is there");
    let variables: Vec<_> = variables.collect::<Result<_, _>>().expect("every line is read");
    let defaults: Vec<_> = SETTINGS
        .iter()
        .map(|setting| (setting.name.to_owned(), setting.default.to_owned()))
        .collect();
    assert_eq!(variables, defaults);
}

/// A setting that is listed and not read, or read and not listed, would pass for documented.
#[test]
fn the_code_reads_what_is_listed() {
    let asked = RefCell::new(BTreeSet::new());
    let config = Config::read(|name| {
        asked.borrow_mut().insert(name.to_owned());
        None
    });
    config.expect("the defaults can be used");
    let listed: BTreeSet<_> = SETTINGS.iter().map(|setting| setting.name.to_owned()).collect();
    assert_eq!(asked.into_inner(), listed);
}

#[test]
fn instructions_set_only_variables_that_the_code_knows() {
    for name in ["README.md", "Dockerfile"] {
        let text = text(name);
        let unknown: Vec<_> = assigned(&text)
            .filter(|variable| SETTINGS.iter().all(|setting| setting.name != *variable))
            .collect();
        assert!(unknown.is_empty(), "{name} sets {unknown:?}");
    }
}

/// The names before an `=` that are written as variables are: `NAME` in `NAME=value`.
fn assigned(text: &str) -> impl Iterator<Item = &str> {
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
