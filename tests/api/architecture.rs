//! The sources keep to `docs/architecture.md`, to the table in `src/limits.rs` and to the conventions of
//! this crate.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

use crate::manual::{file, rows, section};

/// For each module, the modules that it uses.
type Uses = BTreeMap<String, BTreeSet<String>>;

/// The first and the last column of a table of modules.
fn allowed_uses(table: &str) -> Uses {
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

/// Collects the names that follow `prefix` in the files of a folder, by the folder's modules. Tests
/// are not read.
fn add_uses(folder: &Path, prefix: &str, module: Option<&str>, uses: &mut Uses) {
    for entry in fs::read_dir(folder).expect("a folder") {
        let path = entry.expect("an entry").path();
        let stem = path.file_stem().expect("a name").to_str().expect("a text").to_owned();
        if stem.ends_with("tests") || matches!(&*stem, "main" | "lib") {
            continue;
        }
        let module = module.unwrap_or(&stem).to_owned();
        if path.is_dir() {
            add_uses(&path, prefix, Some(&module), uses);
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
fn modules_use_only_what_the_architecture_page_allows() {
    let mut uses = Uses::new();
    add_uses(&file("src"), "crate::", None, &mut uses);
    let mut allowed = allowed_uses(&section("docs/architecture.md", "Modules"));
    // It uses all.
    allowed.remove("main");
    assert_eq!(uses, allowed);
}

#[test]
fn modules_use_each_other_in_one_direction() {
    let mut uses = allowed_uses(&section("docs/architecture.md", "Modules"));
    // It uses all.
    uses.remove("main");
    check_direction("src", uses);
}

/// Removes the modules that use no other, again and again. What cannot be removed is a circle.
fn check_direction(folder: &str, mut uses: Uses) {
    assert!(!uses.is_empty(), "{folder} has files");
    while !uses.is_empty() {
        let before = uses.len();
        let rest: BTreeSet<_> = uses.keys().cloned().collect();
        uses.retain(|_, used| !used.is_disjoint(&rest));
        assert!(uses.len() < before, "{folder}: a circle among {rest:?}");
    }
}

/// The table in the module documentation of `limits`.
fn modules_of_limits() -> String {
    let text = fs::read_to_string(file("src/limits.rs")).expect("a source");
    let lines = text.lines().map_while(|line| line.strip_prefix("//!"));
    lines.map(str::trim).collect::<Vec<_>>().join("\n")
}

#[test]
fn modules_of_limits_use_what_their_table_says() {
    let folder = file("src/limits");
    let mut uses = Uses::new();
    add_uses(&folder, "crate::limits::", None, &mut uses);
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
    assert_eq!(uses, allowed_uses(&modules_of_limits()));
}

#[test]
fn modules_of_limits_use_only_modules_above_them() {
    let table = modules_of_limits();
    let uses = allowed_uses(&table);
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
        let files = fs::read_dir(file("src/limits").join(folder)).expect("a folder");
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
        check_direction(folder, uses);
    }
}

/// Every source file below a folder.
fn sources(folder: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(folder).expect("a folder");
    let paths = entries.map(|entry| entry.expect("an entry").path());
    let files = paths.flat_map(|path| if path.is_dir() { sources(&path) } else { vec![path] });
    files.filter(|path| path.extension().is_some_and(|extension| extension == "rs")).collect()
}

/// The source files of the crate, its tests and its benchmarks for which a condition holds.
fn sources_with(condition: impl Fn(&Path) -> bool) -> Vec<PathBuf> {
    let all = ["src", "tests", "benches", "fuzz/src"].map(|folder| sources(&file(folder)));
    assert!(all.iter().all(|folder| !folder.is_empty()));
    all.concat().into_iter().filter(|path| condition(path)).collect()
}

#[test]
fn a_module_with_submodules_is_a_file_beside_its_folder() {
    let found = sources_with(|path| path.ends_with("mod.rs"));
    assert!(found.is_empty(), "rename x/mod.rs to x.rs: {found:?}");
}

/// `#[expect]` has a reason, and tells when its lint no longer applies.
#[test]
fn no_lint_is_silenced_with_allow() {
    let is_allow = |line: &str| ["#[allow(", "#![allow("].iter().any(|it| line.starts_with(it));
    let found = sources_with(|path| {
        fs::read_to_string(path).expect("a source").lines().any(|line| is_allow(line.trim_start()))
    });
    assert!(found.is_empty(), "use #[expect(…, reason = …)]: {found:?}");
}
