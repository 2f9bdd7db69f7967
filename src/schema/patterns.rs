//! Regular expressions, compiled and matched in bounded time.
//!
//! A match takes time in proportion to the expression's compiled size times the length of the text
//! at worst, and no engine can be stopped in the middle. So the longest text that is matched
//! depends on the compiled size. Look-around and back-references need an engine that backtracks,
//! whose worst case is quadratic at least: its texts are shorter still.

use std::collections::HashMap;
use std::sync::Arc;

use jsonschema::{Draft, PatternOptions, ValidationOptions, Validator};
use serde_json::{Value, json};

use super::metered::{Metered, MeteredNode, NamePatterns};
use super::work::{Interrupt, Stopped, Work, interrupt};
use super::{offline, shorten};

/// A compiled size in bytes, the longest text in bytes that an expression of that size is matched
/// against, and the steps that compiling it counts as.
const SIZES: [(usize, usize, usize); 4] = [
    (8 << 10, 1 << 20, 1 << 9),
    (64 << 10, 128 << 10, 1 << 13),
    (512 << 10, 16 << 10, 1 << 16),
    (LARGEST, 4 << 10, 1 << 19),
];

/// In bytes: how large an expression is compiled, at most.
const LARGEST: usize = 4 << 20;

/// The same for one that needs backtracking.
const LARGEST_BACKTRACKED: usize = 64 << 10;

/// In bytes: the longest text for an engine that backtracks. An unanchored look-ahead over one of
/// that length takes a few hundredths of a second.
const LONGEST_BACKTRACKED: usize = 8 << 10;

/// In the engine's own steps, for one match. Its default is a million, which takes seconds.
const MAX_BACKTRACKING: usize = 20_000;

/// What a match by backtracking counts as, so that the check looks after each whether to stop.
const BACKTRACKED_STEPS: usize = 1 << 10;

/// A compiled expression.
#[derive(Debug)]
pub(super) struct Pattern {
    /// Of the schema that holds nothing else: the validator translates the expression from
    /// ECMAScript's syntax and picks the engine.
    validator: Validator<Metered>,
    longest_text: usize,
    backtracks: bool,
}

/// The expressions of a document by their source, each compiled once.
#[derive(Debug, Default)]
pub(super) struct Patterns {
    /// With the reason for one that cannot be compiled.
    compiled: HashMap<String, Result<Arc<Pattern>, String>>,
    /// Those of properties' names.
    pub(super) names: NamePatterns,
    names_backtrack: bool,
}

impl Pattern {
    fn compile(source: &str, work: &Work) -> Result<Result<Self, String>, Stopped> {
        let schema = json!({ "pattern": source });
        for (size, longest_text, steps) in SIZES {
            work.spend(steps + source.len())?;
            if let Ok(validator) = linear_time(offline(), size).build(&schema) {
                return Ok(Ok(Self { validator, longest_text, backtracks: false }));
            }
        }
        let validator = backtracking(offline()).build(&schema);
        let pattern = validator.map(|validator| Self {
            validator,
            longest_text: LONGEST_BACKTRACKED,
            backtracks: true,
        });
        Ok(pattern.map_err(|error| shorten(&error.to_string())))
    }

    /// Whether a text matches.
    pub(super) fn matches(&self, text: &str, node: MeteredNode<'_>) -> bool {
        if text.len() > self.longest_text {
            interrupt(Interrupt::TooLongForPattern);
        }
        node.spend(self.steps());
        self.validator.is_valid(node)
    }

    fn steps(&self) -> usize {
        if self.backtracks { BACKTRACKED_STEPS } else { 1 }
    }
}

impl Patterns {
    /// Compiles every expression in a schema. What only looks like one, as in an `enum`, is
    /// compiled as well: its failure is told to nobody.
    pub(super) fn of(schema: &Value, work: &Work) -> Result<Self, Stopped> {
        let mut patterns = Self::default();
        patterns.collect(schema, work)?;
        Ok(patterns)
    }

    fn collect(&mut self, value: &Value, work: &Work) -> Result<(), Stopped> {
        work.spend(1)?;
        let map = match value {
            Value::Array(values) => {
                return values.iter().try_for_each(|value| self.collect(value, work));
            }
            Value::Object(map) => map,
            _ => return Ok(()),
        };
        if let Some(Value::String(source)) = map.get("pattern") {
            self.add(source, work)?;
        }
        for source in map.get("patternProperties").and_then(Value::as_object).into_iter().flatten()
        {
            self.add_name(source.0, work)?;
        }
        map.values().try_for_each(|value| self.collect(value, work))
    }

    fn add(&mut self, source: &str, work: &Work) -> Result<(), Stopped> {
        if !self.compiled.contains_key(source) {
            let pattern = Pattern::compile(source, work)?.map(Arc::new);
            self.compiled.insert(source.to_owned(), pattern);
        }
        Ok(())
    }

    fn add_name(&mut self, source: &str, work: &Work) -> Result<(), Stopped> {
        self.add(source, work)?;
        if let Ok(pattern) = self.get(source) {
            self.names.longest = self.names.longest.min(pattern.longest_text);
            self.names.steps += pattern.steps();
            self.names_backtrack |= pattern.backtracks;
        }
        Ok(())
    }

    /// The compiled expression.
    ///
    /// # Errors
    /// Why there is none.
    pub(super) fn get(&self, source: &str) -> Result<Arc<Pattern>, String> {
        let known = self.compiled.get(source).cloned();
        known.unwrap_or_else(|| Err(format!("{source:?} is no regular expression")))
    }

    /// Whether any engine runs the expression in linear time, as one without look-around and
    /// back-references.
    pub(super) fn is_linear_time(&self, source: &str) -> bool {
        self.get(source).is_ok_and(|pattern| !pattern.backtracks)
    }

    /// The options with the engine for the names of properties.
    pub(super) fn engine_for_names<'i>(&self, options: Options<'i>, draft: Draft) -> Options<'i> {
        let options = options.with_draft(draft);
        if self.names_backtrack { backtracking(options) } else { linear_time(options, LARGEST) }
    }
}

/// How a validator of metered values is built.
pub(super) type Options<'i> = ValidationOptions<'i, Arc<dyn jsonschema::Retrieve>, Metered>;

fn linear_time(options: Options<'_>, size: usize) -> Options<'_> {
    options.with_pattern_options(PatternOptions::regex().size_limit(size))
}

fn backtracking(options: Options<'_>) -> Options<'_> {
    let engine = PatternOptions::fancy_regex()
        .backtrack_limit(MAX_BACKTRACKING)
        .size_limit(LARGEST_BACKTRACKED);
    options.with_pattern_options(engine)
}
