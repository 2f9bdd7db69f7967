//! The collections of schemas, and how they are read.

use std::env;
use std::fs;
use std::path::{Path, PathBuf};

use serde_json::{Value, json};

/// A collection of schemas in a directory.
#[derive(Debug)]
pub struct Collection {
    pub name: &'static str,
    kind: Kind,
    directory: PathBuf,
}

/// The layout of a collection's files.
#[derive(Debug, Clone, Copy)]
enum Kind {
    /// Groups of a schema and instances, in a directory for each draft.
    TestSuite(Option<&'static str>),
    /// One file for each schema and its instances, in one directory.
    MaskBench,
    /// Schemas without instances, in directories.
    Bare,
    /// Schemas in one directory, instances in two others.
    SchemaStore,
}

/// A schema with instances, and whether each is valid.
pub struct Case {
    pub name: String,
    pub schema: Value,
    pub instances: Vec<(Value, bool)>,
}

/// Directories of JSON-Schema-Test-Suite, with the `$schema` that their schemas omit.
const DRAFTS: [(&str, Option<&str>); 5] = [
    ("draft4", Some("http://json-schema.org/draft-04/schema#")),
    ("draft6", Some("http://json-schema.org/draft-06/schema#")),
    ("draft7", Some("http://json-schema.org/draft-07/schema#")),
    ("draft2019-09", None),
    ("draft2020-12", None),
];

impl Collection {
    /// The variables that name the directories.
    pub const VARIABLES: [&str; 4] =
        ["JSON_SCHEMA_TEST_SUITE", "MASKBENCH", "SCHEMASTORE", "GENERATED"];

    /// The collections whose variables are set.
    pub fn at_hand() -> Vec<Self> {
        let directory = |variable| env::var_os(variable).map(PathBuf::from);
        let [suite, maskbench, schemastore, generated] = Self::VARIABLES.map(directory);
        let mut collections = Vec::new();
        let mut add = |name, kind, directory| collections.push(Self { name, kind, directory });
        for (draft, uri) in DRAFTS.into_iter().filter(|_| suite.is_some()) {
            let suite = suite.as_ref().expect("it is set");
            add(draft, Kind::TestSuite(uri), suite.join("tests").join(draft));
        }
        if let Some(maskbench) = maskbench {
            add("MaskBench", Kind::MaskBench, maskbench.join("maskbench/data"));
            add("MaskBench, without instances", Kind::Bare, maskbench.join("data"));
        }
        if let Some(schemastore) = schemastore {
            add("SchemaStore", Kind::SchemaStore, schemastore.join("src"));
        }
        if let Some(generated) = generated {
            add("generated", Kind::MaskBench, generated);
        }
        collections
    }

    /// Its schemas, or the sample of them that `EACH` selects.
    pub fn sample(&self) -> impl Iterator<Item = Case> {
        let each = env::var("EACH").ok().and_then(|each| each.parse().ok()).unwrap_or(1);
        self.cases().step_by(each)
    }

    /// Its schemas, each read when it is needed.
    fn cases(&self) -> Box<dyn Iterator<Item = Case> + '_> {
        match self.kind {
            Kind::TestSuite(uri) => {
                let read = move |path: PathBuf| groups(&path, self.name_of(&path), uri);
                Box::new(files(&self.directory).into_iter().flat_map(read))
            }
            Kind::MaskBench => {
                let read = |path: PathBuf| one(&path, self.name_of(&path));
                Box::new(files(&self.directory).into_iter().filter_map(read))
            }
            Kind::Bare => {
                let read = |path: PathBuf| {
                    let schema = json(&path)?;
                    Some(Case { name: self.name_of(&path), schema, instances: Vec::new() })
                };
                Box::new(files(&self.directory).into_iter().filter_map(read))
            }
            Kind::SchemaStore => {
                let read = |path: PathBuf| self.in_store(&path);
                Box::new(files(&self.directory.join("schemas/json")).into_iter().filter_map(read))
            }
        }
    }

    fn name_of(&self, path: &Path) -> String {
        let name = path.strip_prefix(&self.directory).unwrap_or(path);
        name.with_extension("").to_string_lossy().into_owned()
    }

    fn in_store(&self, path: &Path) -> Option<Case> {
        let schema = json(path)?;
        let name = path.file_stem()?.to_string_lossy().into_owned();
        let instances_in = |directory: &str, is_valid| {
            let files = files(&self.directory.join(directory).join(&name));
            files.into_iter().filter_map(move |path| Some((json(&path)?, is_valid)))
        };
        let instances = instances_in("test", true).chain(instances_in("negative_test", false));
        let instances = instances.collect();
        Some(Case { name, schema, instances })
    }
}

/// The groups of a file of JSON-Schema-Test-Suite.
fn groups(path: &Path, name: String, uri: Option<&str>) -> Vec<Case> {
    let groups = json(path).unwrap_or_default();
    let groups = groups.as_array().into_iter().flatten();
    let case = |group: &Value| {
        let mut schema = group["schema"].clone();
        if let (Value::Object(keywords), Some(uri)) = (&mut schema, uri)
            && !keywords.contains_key("$schema")
        {
            keywords.insert("$schema".into(), uri.into());
        }
        let description = group["description"].as_str().unwrap_or_default();
        Case { name: format!("{name}: {description}"), schema, instances: instances(group) }
    };
    groups.map(case).collect()
}

fn one(path: &Path, name: String) -> Option<Case> {
    let file = json(path)?;
    let schema = file.get("schema")?.clone();
    Some(Case { name, schema, instances: instances(&file) })
}

fn instances(group: &Value) -> Vec<(Value, bool)> {
    let tests = group["tests"].as_array().into_iter().flatten();
    tests.map(|test| (test["data"].clone(), test["valid"] == json!(true))).collect()
}

/// The JSON in a file; none when it is invalid or nested too deeply.
fn json(path: &Path) -> Option<Value> {
    let text = fs::read_to_string(path).ok()?;
    serde_json::from_str(text.trim_start_matches('\u{feff}')).ok()
}

/// The JSON files in a directory and its subdirectories, sorted by name.
fn files(directory: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(directory).into_iter().flatten().flatten();
    let mut paths: Vec<PathBuf> = entries.map(|entry| entry.path()).collect();
    paths.sort();
    let expand = |path: PathBuf| {
        if path.is_dir() {
            files(&path)
        } else if path.extension().is_some_and(|extension| extension == "json") {
            vec![path]
        } else {
            Vec::new()
        }
    };
    paths.into_iter().flat_map(expand).collect()
}
