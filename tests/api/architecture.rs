//! `docs/architecture.md`: that modules use what it says, and nothing else.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;

use crate::manual::{rows, section};

/// The modules that each module uses.
type Uses = BTreeMap<String, BTreeSet<String>>;

/// As the page's table has it, but for `main`, which uses all.
fn documented() -> Uses {
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

/// As the files of a folder name them with `crate::`, tests apart.
fn used(folder: &Path, module: Option<&str>, uses: &mut Uses) {
    for entry in fs::read_dir(folder).expect("a folder") {
        let path = entry.expect("an entry").path();
        let stem = path.file_stem().expect("a name").to_str().expect("a text").to_owned();
        if matches!(&*stem, "tests" | "main" | "lib") {
            continue;
        }
        let module = module.unwrap_or(&stem).to_owned();
        if path.is_dir() {
            used(&path, Some(&module), uses);
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
    used(&Path::new(env!("CARGO_MANIFEST_DIR")).join("src"), None, &mut uses);
    assert_eq!(uses, documented());
}
