//! Regular expressions, compiled and matched in bounded time.
//!
//! In the worst case a match takes time proportional to the compiled size of the expression times
//! the length of the text, and no engine can be stopped during a match. So the longest text that is
//! matched depends on the compiled size. Look-around and back-references need an engine that
//! backtracks, with a worst case that is at least quadratic, so its texts are even shorter.

mod memory;
mod plain;

use std::collections::HashMap;
use std::sync::{Arc, OnceLock};

use jsonschema::{Draft, PatternOptions, ValidationOptions, Validator};
use serde_json::{Value, json};

use super::metered::{BYTES_PER_STEP, Metered, MeteredNode, NamePatterns};
use super::work::{Interrupt, Stopped, Work, interrupt};
use super::{offline, shorten};

pub(super) use memory::PatternMemory;

/// Compiled sizes in bytes. Each has the longest text, in bytes, that an expression of that size is
/// matched against, and the steps for compiling it.
const SIZES: [(usize, usize, usize); 4] = [
    (8 << 10, 1 << 20, 1 << 9),
    (64 << 10, 128 << 10, 1 << 13),
    (512 << 10, 16 << 10, 1 << 16),
    (LARGEST, 4 << 10, 1 << 19),
];

/// The largest compiled expression, in bytes.
const LARGEST: usize = 4 << 20;

/// The largest compiled expression that needs backtracking, in bytes.
const LARGEST_BACKTRACKED: usize = 64 << 10;

/// The longest text for an engine that backtracks, in bytes. An unanchored look-ahead over a text
/// of that length takes a few hundredths of a second.
const LONGEST_BACKTRACKED: usize = 8 << 10;

/// The most steps of the backtracking engine for one match. Its default is a million, which takes
/// seconds.
const MAX_BACKTRACKING: usize = 20_000;

/// The steps for a match by backtracking: enough to check after each whether to stop.
const BACKTRACKED_STEPS: usize = 1 << 10;

/// The total size, in bytes, of the plain expressions of a document that are compiled with it. The
/// others are compiled when they are first matched: a schema may have thousands, and an answer uses
/// few.
const COMPILED_AT_ONCE: usize = 64 << 10;

/// An expression.
#[derive(Debug)]
pub(super) struct Pattern {
    source: Box<str>,
    memory: Arc<PatternMemory>,
    /// Set when the expression is compiled, at the latest when it is first matched.
    engine: OnceLock<Engine>,
}

/// A compiled expression.
#[derive(Debug)]
struct Engine {
    /// The validator of a schema with only this expression: it translates the ECMAScript syntax and
    /// chooses the engine.
    validator: Validator<Metered>,
    longest_text: usize,
    backtracks: bool,
    /// The most that it takes in memory, in bytes.
    size: usize,
}

/// The expressions of a document.
#[derive(Debug)]
pub(super) struct Patterns {
    /// The expressions by source, or why one cannot be compiled.
    known: HashMap<String, Result<Arc<Pattern>, String>>,
    memory: Arc<PatternMemory>,
    /// What is left of [`COMPILED_AT_ONCE`], in bytes.
    at_once: usize,
    /// The bounds of the expressions for names of properties.
    pub(super) names: NamePatterns,
    names_backtrack: bool,
}

impl Engine {
    fn compile(
        source: &str,
        memory: &PatternMemory,
        work: &Work,
    ) -> Result<Result<Self, String>, Stopped> {
        Ok(Self::compile_apart(source, work)?.and_then(|engine| {
            memory.hold(engine.size)?;
            Ok(engine)
        }))
    }

    fn compile_apart(source: &str, work: &Work) -> Result<Result<Self, String>, Stopped> {
        let schema = json!({ "pattern": source });
        for (size, longest_text, steps) in SIZES {
            work.spend(steps + source.len())?;
            if let Ok(validator) = linear_time(offline(), size).build(&schema) {
                return Ok(Ok(Self { validator, longest_text, backtracks: false, size }));
            }
        }
        let validator = backtracking(offline()).build(&schema);
        let engine = validator.map(|validator| Self {
            validator,
            longest_text: LONGEST_BACKTRACKED,
            backtracks: true,
            size: LARGEST_BACKTRACKED,
        });
        Ok(engine.map_err(|error| shorten(&error.to_string())))
    }

    fn steps(&self) -> usize {
        if self.backtracks { BACKTRACKED_STEPS } else { 1 }
    }
}

impl Pattern {
    fn compiled(
        source: &str,
        memory: &Arc<PatternMemory>,
        work: &Work,
    ) -> Result<Result<Self, String>, Stopped> {
        let engine = Engine::compile(source, memory, work)?;
        Ok(engine.map(|engine| Self { engine: engine.into(), ..Self::deferred(source, memory) }))
    }

    /// An expression that is compiled when it is first matched. It must be plain, so that compiling
    /// cannot fail.
    fn deferred(source: &str, memory: &Arc<PatternMemory>) -> Self {
        Self { source: source.into(), memory: Arc::clone(memory), engine: OnceLock::new() }
    }

    fn engine(&self, node: MeteredNode<'_>) -> &Engine {
        if let Some(engine) = self.engine.get() {
            return engine;
        }
        match Engine::compile(&self.source, &self.memory, node.work()) {
            Ok(Ok(engine)) => self.engine.get_or_init(|| engine),
            Ok(Err(_)) => interrupt(Interrupt::PatternTooLarge),
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

    /// Whether every engine runs the expression in linear time, as it does a plain one.
    fn is_linear_time(&self) -> bool {
        self.engine.get().is_none_or(|engine| !engine.backtracks)
    }
}

impl Patterns {
    /// Reads all expressions in a schema, and also what only looks like one, as in an `enum`, where
    /// errors are ignored.
    pub(super) fn of(schema: &Value, work: &Work) -> Result<Self, Stopped> {
        let mut patterns = Self {
            known: HashMap::new(),
            memory: Arc::default(),
            at_once: COMPILED_AT_ONCE,
            names: NamePatterns::default(),
            names_backtrack: false,
        };
        patterns.collect(schema, work)?;
        Ok(patterns)
    }

    fn collect(&mut self, value: &Value, work: &Work) -> Result<(), Stopped> {
        work.spend(1)?;
        if self.memory.refusal().is_some() {
            return Ok(());
        }
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
                    for source in named.keys() {
                        if self.memory.refusal().is_none() {
                            self.add_name(source, work)?;
                        }
                    }
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
            Some(None) => Ok(Pattern::deferred(source, &self.memory)),
            Some(Some(left)) => {
                self.at_once = left;
                Pattern::compiled(source, &self.memory, work)?
            }
            None => Pattern::compiled(source, &self.memory, work)?,
        };
        self.known.insert(source.to_owned(), pattern.map(Arc::new));
        Ok(())
    }

    /// The memory of the compiled expressions.
    pub(super) fn memory(&self) -> &Arc<PatternMemory> {
        &self.memory
    }

    /// Adds an expression for names. It is compiled at once, as all names are matched against it, and once
    /// more by the validator.
    fn add_name(&mut self, source: &str, work: &Work) -> Result<(), Stopped> {
        let is_compiled = |known: &Result<Arc<Pattern>, String>| match known {
            Ok(pattern) => pattern.engine.get().is_some(),
            Err(_) => true,
        };
        if !self.known.get(source).is_some_and(is_compiled) {
            let pattern = Pattern::compiled(source, &self.memory, work)?;
            let again = |pattern: &Pattern| pattern.engine.get().map_or(0, |engine| engine.size);
            let pattern = pattern.and_then(|pattern| {
                self.memory.hold(again(&pattern))?;
                Ok(Arc::new(pattern))
            });
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

    /// The expression with this source.
    ///
    /// # Errors
    /// Why it cannot be compiled.
    pub(super) fn get(&self, source: &str) -> Result<Arc<Pattern>, String> {
        let known = self.known.get(source).cloned();
        known.unwrap_or_else(|| Err(format!("{source:?} is no regular expression")))
    }

    /// Whether every engine runs the expression in linear time, as it has no look-around and no
    /// back-references.
    pub(super) fn is_linear_time(&self, source: &str) -> bool {
        self.get(source).is_ok_and(|pattern| pattern.is_linear_time())
    }

    /// The options with the engine for the names of properties.
    pub(super) fn engine_for_names<'i>(
        &self,
        options: ValidatorOptions<'i>,
        draft: Draft,
    ) -> ValidatorOptions<'i> {
        let options = options.with_draft(draft);
        if self.names_backtrack { backtracking(options) } else { linear_time(options, LARGEST) }
    }
}

/// Whether the expression is valid, needs no backtracking, and has at most this size in bytes.
#[cfg(test)]
fn is_compiled_within(source: &str, size: usize) -> bool {
    linear_time(offline(), size).build(&json!({ "pattern": source })).is_ok()
}

/// The options for a validator of metered values.
pub(super) type ValidatorOptions<'i> =
    ValidationOptions<'i, Arc<dyn jsonschema::Retrieve>, Metered>;

fn linear_time(options: ValidatorOptions<'_>, size: usize) -> ValidatorOptions<'_> {
    options.with_pattern_options(PatternOptions::regex().size_limit(size))
}

fn backtracking(options: ValidatorOptions<'_>) -> ValidatorOptions<'_> {
    let engine = PatternOptions::fancy_regex()
        .backtrack_limit(MAX_BACKTRACKING)
        .size_limit(LARGEST_BACKTRACKED);
    options.with_pattern_options(engine)
}
