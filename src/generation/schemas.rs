//! The schemas of one body, each compiled once however many of its requests share it.

use std::sync::Arc;

use indexmap::IndexMap;
use tokio::time::Instant;

use super::InvalidField;
use super::offload::{Caller, Offload, Unfinished};
use super::story::Story;
use crate::schema::{Limits, NotCompiled, Schema, SchemaError, Stopped, Work};

/// How much larger than one schema all schemas of a body may be together.
const TOGETHER: usize = 2;

/// The distinct schemas of the requests in one body.
#[derive(Debug, Default)]
pub struct Schemas {
    /// By their text.
    json: IndexMap<String, Compilation>,
    /// Of stories, by the voices that a narrator may have.
    stories: IndexMap<Vec<String>, Compilation>,
}

/// None until it was compiled.
type Compilation = Option<Result<Arc<Schema>, SchemaError>>;

impl Schemas {
    pub(super) fn add_json(&mut self, text: &str) {
        if !self.json.contains_key(text) {
            self.json.insert(text.to_owned(), None);
        }
    }

    pub(super) fn add_story(&mut self, voices: Vec<String>) {
        self.stories.entry(voices).or_default();
    }

    /// Compiles all of them: here where that takes little work, and else off the serving threads.
    ///
    /// # Errors
    /// [`Unfinished`] where it takes too long.
    pub async fn compiled(
        mut self,
        limits: Limits,
        offload: &Offload,
        caller: &Caller,
        deadline: Instant,
    ) -> Result<Self, Unfinished> {
        if self.compile(&limits, &Work::brief()).is_ok() {
            return Ok(self);
        }
        let job = move |work: &Work| self.compile(&limits, work).map(|()| self);
        offload.run(caller, deadline, job).await?.map_err(|Stopped| Unfinished::Deadline)
    }

    /// Compiles those that are not compiled yet.
    fn compile(&mut self, limits: &Limits, work: &Work) -> Result<(), Stopped> {
        let most = limits.bytes.saturating_mul(TOGETHER);
        let mut bytes: usize = 0;
        let mut compile =
            |compilation: &mut Compilation, length: usize, compile: &dyn Fn() -> _| {
                bytes = bytes.saturating_add(length);
                if compilation.is_some() {
                    return Ok(());
                }
                let compiled = if length <= limits.bytes && bytes > most {
                    let message = format!(
                        "with the other schemas of the request it is larger than {most} bytes, \
                     {TOGETHER} times MAX_SCHEMA_BYTES"
                    );
                    Err(NotCompiled::Unusable(SchemaError::new("", message)))
                } else {
                    compile()
                };
                *compilation = Some(match compiled {
                    Ok(schema) => Ok(Arc::new(schema)),
                    Err(NotCompiled::Unusable(error)) => Err(error),
                    Err(NotCompiled::Stopped(stopped)) => return Err(stopped),
                });
                Ok(())
            };
        for (text, compilation) in &mut self.json {
            compile(compilation, text.len(), &|| Schema::read(text, limits, work))?;
        }
        for (voices, compilation) in &mut self.stories {
            let length = voices.iter().map(String::len).sum();
            let schema = || {
                limits.check_bytes(length)?;
                work.spend(length)?;
                Schema::compile(&Story::json_schema(voices), limits, work)
            };
            compile(compilation, length, &schema)?;
        }
        Ok(())
    }

    /// The compiled schema for a text.
    ///
    /// # Errors
    /// The place in the schema that cannot be used.
    pub(super) fn json(&self, field: &str, text: &str) -> Result<Arc<Schema>, InvalidField> {
        found(field, self.json.get(text))
    }

    /// The compiled schema of a story whose narrator has one of the voices.
    ///
    /// # Errors
    /// What is wrong with the list of voices.
    pub(super) fn story(
        &self,
        field: &str,
        voices: &[String],
    ) -> Result<Arc<Schema>, InvalidField> {
        found(field, self.stories.get(voices))
    }
}

fn found(field: &str, compilation: Option<&Compilation>) -> Result<Arc<Schema>, InvalidField> {
    let compiled = compilation.and_then(Option::as_ref).expect("the schema was compiled before");
    compiled.clone().map_err(|error| InvalidField::schema(field, &error))
}
