//! The sources keep to `docs/architecture.md` and to the conventions of this crate.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

use crate::manual::{file, rows, section};

/// For each module, the modules that it uses.
type Uses = BTreeMap<String, BTreeSet<String>>;

/// The uses in the page's table. `main` is left out, since it uses all modules.
fn allowed_uses() -> Uses {
    let modules = section("docs/architecture.md", "Modules");
    let names = |cell: &str| -> BTreeSet<String> {
        cell.split('`').skip(1).step_by(2).map(str::to_owned).collect()
    };
    let rows = rows(&modules).into_iter().map(|row| {
        let cells: Vec<_> = row.trim_matches('|').split('|').collect();
        let module = names(cells[0]).pop_first().expect("a module");
        (module, names(cells[2]))
    });
    rows.filter(|(module, _)| module != "main").collect()
}

/// Adds what the sources in a folder use through `crate::`, without their tests.
fn add_uses(folder: &Path, module: Option<&str>, uses: &mut Uses) {
    for entry in fs::read_dir(folder).expect("a folder") {
        let path = entry.expect("an entry").path();
        let stem = path.file_stem().expect("a name").to_str().expect("a text").to_owned();
        if matches!(&*stem, "tests" | "main" | "lib") {
            continue;
        }
        let module = module.unwrap_or(&stem).to_owned();
        if path.is_dir() {
            add_uses(&path, Some(&module), uses);
            continue;
        }
        let text = fs::read_to_string(&path).expect("a source");
        let text = text.split("#[cfg(test)]\nmod tests {").next().expect("a first part");
        let named = text.split("crate::").skip(1).map(|rest| {
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
    add_uses(&file("src"), None, &mut uses);
    assert_eq!(uses, allowed_uses());
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
