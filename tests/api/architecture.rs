//! `docs/architecture.md` and the table in `src/limits.rs`: modules use what they say, and nothing
//! else.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

use crate::manual::{rows, section};

/// The modules that each module uses.
type Uses = BTreeMap<String, BTreeSet<String>>;

/// The first and the last column of a table of modules.
fn documented(table: &str) -> Uses {
    let names = |cell: &str| -> BTreeSet<String> {
        cell.split('`').skip(1).step_by(2).map(str::to_owned).collect()
    };
    let rows = rows(table).into_iter().map(|row| {
        let cells: Vec<_> = row.trim_matches('|').split('|').collect();
        let module = names(cells[0]).pop_first().expect("a module");
        (module, names(cells[2]))
    });
    rows.collect()
}

fn source(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(path)
}

/// Collects the names that follow `prefix` in the files of a folder, by the folder's modules. Tests
/// are not read.
fn used(folder: &Path, prefix: &str, module: Option<&str>, uses: &mut Uses) {
    for entry in fs::read_dir(folder).expect("a folder") {
        let path = entry.expect("an entry").path();
        let stem = path.file_stem().expect("a name").to_str().expect("a text").to_owned();
        if stem.ends_with("tests") || matches!(&*stem, "main" | "lib") {
            continue;
        }
        let module = module.unwrap_or(&stem).to_owned();
        if path.is_dir() {
            used(&path, prefix, Some(&module), uses);
            continue;
        }
        let text = fs::read_to_string(&path).expect("a source");
        let text = text.split("#[cfg(test)]\nmod tests {").next().expect("a first part");
        let named = text.split(prefix).skip(1).map(|rest| {
            let end = rest.find(|c: char| !c.is_ascii_lowercase() && c != '_');
            rest[..end.unwrap_or(rest.len())].to_owned()
        });
        let others = named.filter(|name| !name.is_empty() && *name != module);
        uses.entry(module.clone()).or_default().extend(others);
    }
}

#[test]
fn modules_use_what_the_page_on_architecture_says() {
    let mut uses = Uses::new();
    used(&source("src"), "crate::", None, &mut uses);
    let mut documented = documented(&section("docs/architecture.md", "Modules"));
    // It uses all.
    documented.remove("main");
    assert_eq!(uses, documented);
}

/// The table in the module documentation of `limits`.
fn modules_of_limits() -> String {
    let text = fs::read_to_string(source("src/limits.rs")).expect("a source");
    let lines = text.lines().map_while(|line| line.strip_prefix("//!"));
    lines.map(str::trim).collect::<Vec<_>>().join("\n")
}

#[test]
fn modules_of_limits_use_what_their_table_says() {
    let folder = source("src/limits");
    let mut uses = Uses::new();
    used(&folder, "crate::limits::", None, &mut uses);
    // The files directly in the folder name their siblings with `super::`.
    for path in fs::read_dir(&folder).expect("a folder").map(|entry| entry.expect("one").path()) {
        if path.is_file() {
            let module = path.file_stem().expect("a name").to_str().expect("a text").to_owned();
            let text = fs::read_to_string(&path).expect("a source");
            let named = text.lines().filter_map(|line| line.strip_prefix("use super::"));
            let named = named.map(|rest| rest.split("::").next().expect("a name").to_owned());
            uses.entry(module).or_default().extend(named);
        }
    }
    assert_eq!(uses, documented(&modules_of_limits()));
}

#[test]
fn modules_of_limits_use_only_modules_above_them() {
    let table = modules_of_limits();
    let uses = documented(&table);
    let mut above = BTreeSet::new();
    for row in rows(&table) {
        let module = row.split('`').nth(1).expect("a module");
        assert!(uses[module].is_subset(&above), "{module} uses a module below it");
        above.insert(module.to_owned());
    }
}

#[test]
fn files_of_limits_use_each_other_in_one_direction() {
    for folder in ["model", "local", "redis", "accounts", "limiter"] {
        let mut uses = Uses::new();
        let files = fs::read_dir(source("src/limits").join(folder)).expect("a folder");
        for path in files.map(|entry| entry.expect("an entry").path()) {
            if path.extension().is_none_or(|extension| extension != "rs") {
                continue;
            }
            let file = path.file_stem().expect("a name").to_str().expect("a text").to_owned();
            let text = fs::read_to_string(&path).expect("a source");
            let named = text.lines().filter_map(|line| line.strip_prefix("use super::"));
            let named = named.filter_map(|rest| Some(rest.split_once("::")?.0.to_owned()));
            uses.insert(file, named.collect());
        }
        assert!(!uses.is_empty(), "{folder} has files");
        while !uses.is_empty() {
            let before = uses.len();
            let rest: BTreeSet<_> = uses.keys().cloned().collect();
            uses.retain(|_, used| !used.is_disjoint(&rest));
            assert!(uses.len() < before, "{folder}: a circle among {rest:?}");
        }
    }
}
