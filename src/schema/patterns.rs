//! Regular expressions, compiled and matched in bounded time.
//!
//! A match takes time in proportion to the expression's compiled size times the length of the text
//! at worst, and no engine can be stopped in the middle. So the longest text that is matched
//! depends on the compiled size. Look-around and back-references need an engine that backtracks,
//! whose worst case is quadratic at least: its texts are shorter still.

mod plain;

use std::collections::HashMap;
use std::sync::{Arc, OnceLock};

use jsonschema::{Draft, PatternOptions, ValidationOptions, Validator};
use serde_json::{Value, json};

use super::metered::{BYTES_PER_STEP, Metered, MeteredNode, NamePatterns};
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

/// In bytes: the compiled sizes, together, of the plain expressions that are compiled at once. The
/// others of a document are compiled when a text is first matched against them: a schema may have
/// thousands, and an answer meets few.
const COMPILED_AT_ONCE: usize = 64 << 10;

/// An expression.
#[derive(Debug)]
pub(super) struct Pattern {
    source: Box<str>,
    /// Compiled at the latest when it is first used.
    engine: OnceLock<Engine>,
}

/// A compiled expression.
#[derive(Debug)]
struct Engine {
    /// Of the schema that holds nothing else: the validator translates the expression from
    /// ECMAScript's syntax and picks the engine.
    validator: Validator<Metered>,
    longest_text: usize,
    backtracks: bool,
}

/// The expressions of a document by their source, each compiled at most once.
#[derive(Debug)]
pub(super) struct Patterns {
    /// With the reason for one that cannot be compiled.
    known: HashMap<String, Result<Arc<Pattern>, String>>,
    /// In bytes: the size of plain expressions that are still compiled at once.
    at_once: usize,
    /// Those of properties' names.
    pub(super) names: NamePatterns,
    names_backtrack: bool,
}

impl Engine {
    fn compile(source: &str, work: &Work) -> Result<Result<Self, String>, Stopped> {
        let schema = json!({ "pattern": source });
        for (size, longest_text, steps) in SIZES {
            work.spend(steps + source.len())?;
            if let Ok(validator) = linear_time(offline(), size).build(&schema) {
                return Ok(Ok(Self { validator, longest_text, backtracks: false }));
            }
        }
        let validator = backtracking(offline()).build(&schema);
        let engine = validator.map(|validator| Self {
            validator,
            longest_text: LONGEST_BACKTRACKED,
            backtracks: true,
        });
        Ok(engine.map_err(|error| shorten(&error.to_string())))
    }

    fn steps(&self) -> usize {
        if self.backtracks { BACKTRACKED_STEPS } else { 1 }
    }
}

impl Pattern {
    fn compiled(source: &str, work: &Work) -> Result<Result<Self, String>, Stopped> {
        let engine = Engine::compile(source, work)?;
        Ok(engine.map(|engine| Self { source: source.into(), engine: engine.into() }))
    }

    /// One that is compiled when it is first used. It must be plain, so that it can be.
    fn deferred(source: &str) -> Self {
        Self { source: source.into(), engine: OnceLock::new() }
    }

    fn engine(&self, node: MeteredNode<'_>) -> &Engine {
        if let Some(engine) = self.engine.get() {
            return engine;
        }
        match Engine::compile(&self.source, node.work()) {
            Ok(Ok(engine)) => self.engine.get_or_init(|| engine),
            Ok(Err(_)) => interrupt(Interrupt::TooLongForPattern),
            Err(stopped) => interrupt(stopped.into()),
        }
    }

    /// Whether a text matches.
    pub(super) fn matches(&self, text: &str, node: MeteredNode<'_>) -> bool {
        let engine = self.engine(node);
        if text.len() > engine.longest_text {
            interrupt(Interrupt::TooLongForPattern);
        }
        node.spend(engine.steps());
        engine.validator.is_valid(node)
    }

    /// Whether any engine runs the expression in linear time; a plain one needs no look-around.
    fn is_linear_time(&self) -> bool {
        self.engine.get().is_none_or(|engine| !engine.backtracks)
    }
}

impl Patterns {
    /// Reads every expression in a schema. What only looks like one, as in an `enum`, is read as
    /// well; nobody is told when it is invalid.
    pub(super) fn of(schema: &Value, work: &Work) -> Result<Self, Stopped> {
        let mut patterns = Self {
            known: HashMap::new(),
            at_once: COMPILED_AT_ONCE,
            names: NamePatterns::default(),
            names_backtrack: false,
        };
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
        for (keyword, value) in map {
            match (keyword.as_str(), value) {
                ("pattern", Value::String(source)) => self.add(source, work)?,
                ("patternProperties", Value::Object(named)) => {
                    named.keys().try_for_each(|source| self.add_name(source, work))?;
                }
                _ => {}
            }
            self.collect(value, work)?;
        }
        Ok(())
    }

    fn add(&mut self, source: &str, work: &Work) -> Result<(), Stopped> {
        if self.known.contains_key(source) {
            return Ok(());
        }
        work.spend(1 + source.len() / BYTES_PER_STEP)?;
        let size = plain::largest_size(source).filter(|size| *size <= LARGEST);
        let pattern = match size.map(|size| self.at_once.checked_sub(size)) {
            Some(None) => Ok(Pattern::deferred(source)),
            Some(Some(left)) => {
                self.at_once = left;
                Pattern::compiled(source, work)?
            }
            None => Pattern::compiled(source, work)?,
        };
        self.known.insert(source.to_owned(), pattern.map(Arc::new));
        Ok(())
    }

    /// Adds an expression for names, which is compiled at once: each name is matched against all.
    fn add_name(&mut self, source: &str, work: &Work) -> Result<(), Stopped> {
        let is_compiled = |known: &Result<Arc<Pattern>, String>| match known {
            Ok(pattern) => pattern.engine.get().is_some(),
            Err(_) => true,
        };
        if !self.known.get(source).is_some_and(is_compiled) {
            let pattern = Pattern::compiled(source, work)?.map(Arc::new);
            self.known.insert(source.to_owned(), pattern);
        }
        if let Some(engine) = self.get(source).ok().as_deref().and_then(|known| known.engine.get())
        {
            self.names.longest = self.names.longest.min(engine.longest_text);
            self.names.steps += engine.steps();
            self.names_backtrack |= engine.backtracks;
        }
        Ok(())
    }

    /// The expression.
    ///
    /// # Errors
    /// Why it cannot be compiled.
    pub(super) fn get(&self, source: &str) -> Result<Arc<Pattern>, String> {
        let known = self.known.get(source).cloned();
        known.unwrap_or_else(|| Err(format!("{source:?} is no regular expression")))
    }

    /// Whether any engine runs the expression in linear time, as one without look-around and
    /// back-references.
    pub(super) fn is_linear_time(&self, source: &str) -> bool {
        self.get(source).is_ok_and(|pattern| pattern.is_linear_time())
    }

    /// The options with the engine for the names of properties.
    pub(super) fn engine_for_names<'i>(&self, options: Options<'i>, draft: Draft) -> Options<'i> {
        let options = options.with_draft(draft);
        if self.names_backtrack { backtracking(options) } else { linear_time(options, LARGEST) }
    }
}

/// Whether the expression is valid, needs no backtracking, and has at most this size in bytes.
#[cfg(test)]
fn is_compiled_within(source: &str, size: usize) -> bool {
    linear_time(offline(), size).build(&json!({ "pattern": source })).is_ok()
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
