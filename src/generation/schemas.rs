//! The schemas of one body. Each is compiled once, however many requests of the body share it.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use indexmap::IndexMap;
use serde_json::Value;
use tokio::time::Instant;

use super::InvalidField;
use super::offload::{CallerId, DeferredDrop, Offload, OffloadError};
use super::story::Story;
use crate::gemini::InputFeatures;
use crate::schema::{NotCompiled, Schema, SchemaError, SchemaLimits, Stopped, Work};

/// The bound on all schemas of a body together, as a multiple of the bound on one.
const TOGETHER: usize = 2;

/// The distinct schemas of the requests in one body.
#[derive(Debug)]
pub struct Schemas {
    /// The callers' schemas, by their text.
    json: IndexMap<String, Compilation>,
    /// The schemas of stories, by the voices that a narrator may have.
    stories: IndexMap<Vec<String>, Compilation>,
    limits: SchemaLimits,
    check_formats: bool,
    /// Shared by all compiled schemas of the body.
    is_heavy: Arc<AtomicBool>,
}

/// None until it is compiled.
type Compilation = Option<Result<Arc<CompiledSchema>, SchemaError>>;

/// A compiled schema, and whether checks against it are heavy.
#[derive(Debug)]
pub(super) struct CompiledSchema {
    schema: DeferredDrop<Schema>,
    /// The text of what Gemini is sent of it.
    input: InputFeatures,
    /// Whether a check against it, or another schema of the body, took too long for a serving
    /// thread.
    is_heavy: Arc<AtomicBool>,
}

impl CompiledSchema {
    fn new(schema: Schema, is_heavy: &Arc<AtomicBool>) -> Self {
        let sent = schema.sent();
        let input = sent.map_or_else(Default::default, |(_, text)| InputFeatures::of(text));
        let is_large = schema.is_large();
        let schema = DeferredDrop::new(schema, is_large);
        Self { schema, input, is_heavy: Arc::clone(is_heavy) }
    }

    /// As [`Schema::sent`].
    pub(super) fn sent(&self) -> Option<(&'static str, &str)> {
        self.schema.sent()
    }

    /// The text of the schema that is sent to Gemini.
    pub(super) fn input(&self) -> InputFeatures {
        self.input
    }

    /// As [`Schema::violations`]. Brief work is stopped at once if it was not enough before:
    /// otherwise the answers to a batch would keep the serving threads from other requests.
    ///
    /// # Errors
    /// [`Stopped`] when the work is stopped before the result is known.
    pub(super) fn violations(&self, instance: &Value, work: &Work) -> Result<Vec<String>, Stopped> {
        if !work.is_brief() {
            return self.schema.violations(instance, work);
        }
        if self.is_heavy.load(Ordering::Relaxed) {
            return Err(Stopped);
        }
        let violations = self.schema.violations(instance, work);
        if violations.is_err() {
            self.is_heavy.store(true, Ordering::Relaxed);
        }
        violations
    }
}

impl Schemas {
    /// No schemas yet. `limits` bounds each of them, and `check_formats` enables the check of
    /// formats.
    #[must_use]
    pub fn new(limits: SchemaLimits, check_formats: bool) -> Self {
        let (json, stories) = (IndexMap::new(), IndexMap::new());
        Self { json, stories, limits, check_formats, is_heavy: Arc::default() }
    }

    /// Adds the text of a JSON Schema.
    pub fn add_json(&mut self, text: &str) {
        if !self.json.contains_key(text) {
            self.json.insert(text.to_owned(), None);
        }
    }

    pub(super) fn add_story(&mut self, voices: Vec<String>) {
        self.stories.entry(voices).or_default();
    }

    /// Compiles all schemas: on this thread if that takes little work, otherwise off the serving
    /// threads.
    ///
    /// # Errors
    /// [`OffloadError`] where it takes too long.
    pub async fn compiled(
        mut self,
        offload: &Offload,
        caller: &CallerId,
        deadline: Instant,
    ) -> Result<Self, OffloadError> {
        if self.compile(&Work::brief()).is_ok() {
            return Ok(self);
        }
        let job = move |work: &Work| self.compile(work).map(|()| self);
        offload.run(caller, deadline, job).await?.map_err(|Stopped| OffloadError::DeadlineExceeded)
    }

    /// Compiles the schemas that are not yet compiled.
    fn compile(&mut self, work: &Work) -> Result<(), Stopped> {
        let Self { json, stories, limits, check_formats, is_heavy } = self;
        let most = limits.bytes.saturating_mul(TOGETHER);
        let mut bytes: usize = 0;
        let mut compile = |compilation: &mut Compilation,
                           length: usize,
                           compile: &dyn Fn() -> _| {
            bytes = bytes.saturating_add(length);
            if compilation.is_some() {
                return Ok(());
            }
            let compiled: Result<Schema, NotCompiled> = if length <= limits.bytes && bytes > most {
                let message = format!(
                    "with the other schemas of the request it is larger than {most} bytes, \
                     {TOGETHER} times MAX_SCHEMA_BYTES"
                );
                Err(NotCompiled::Unusable(SchemaError::new("", message)))
            } else {
                compile()
            };
            *compilation = Some(match compiled {
                Ok(schema) => {
                    let schema = if *check_formats { schema } else { schema.without_formats() };
                    Ok(Arc::new(CompiledSchema::new(schema, is_heavy)))
                }
                Err(NotCompiled::Unusable(error)) => Err(error),
                Err(NotCompiled::Stopped(stopped)) => return Err(stopped),
            });
            Ok(())
        };
        for (text, compilation) in json {
            compile(compilation, text.len(), &|| Schema::read(text, limits, work))?;
        }
        for (voices, compilation) in stories {
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
    /// The place and the reason, when the schema cannot be used.
    pub(super) fn json(
        &self,
        field: &str,
        text: &str,
    ) -> Result<Arc<CompiledSchema>, InvalidField> {
        found(field, self.json.get(text))
    }

    /// The compiled schema of a story whose narrator has one of the voices.
    ///
    /// # Errors
    /// The reason, when the list of voices cannot be used.
    pub(super) fn story(
        &self,
        field: &str,
        voices: &[String],
    ) -> Result<Arc<CompiledSchema>, InvalidField> {
        found(field, self.stories.get(voices))
    }
}

/// The most schemas in a [`SchemaCache`].
const MAX_CACHED: usize = 256;

/// Compiled schemas that many requests share, such as the items of a job. Older ones are dropped when
/// there are too many, or when their texts are longer than those of one body may be.
#[derive(Debug)]
pub struct SchemaCache {
    limits: SchemaLimits,
    check_formats: bool,
    cached: Mutex<Cached>,
}

#[derive(Debug, Default)]
struct Cached {
    json: IndexMap<String, Compilation>,
    stories: IndexMap<Vec<String>, Compilation>,
}

impl SchemaCache {
    /// An empty cache. `limits` bounds each schema, and `check_formats` enables the check of formats.
    #[must_use]
    pub fn new(limits: SchemaLimits, check_formats: bool) -> Self {
        Self { limits, check_formats, cached: Mutex::default() }
    }

    /// No schemas yet.
    #[must_use]
    pub fn schemas(&self) -> Schemas {
        Schemas::new(self.limits, self.check_formats)
    }

    /// Compiles those schemas that are not in the cache, as [`Schemas::compiled`] does.
    ///
    /// # Errors
    /// [`OffloadError`] where it takes too long.
    pub async fn compiled(
        &self,
        mut schemas: Schemas,
        offload: &Offload,
        caller: &CallerId,
        deadline: Instant,
    ) -> Result<Schemas, OffloadError> {
        if self.lock().complete(&mut schemas) {
            return Ok(schemas);
        }
        let schemas = schemas.compiled(offload, caller, deadline).await?;
        let most = self.limits.bytes.saturating_mul(TOGETHER);
        self.lock().keep(&schemas, most);
        Ok(schemas)
    }

    fn lock(&self) -> MutexGuard<'_, Cached> {
        self.cached.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Cached {
    /// Adds what is known. Returns whether that is all.
    fn complete(&self, schemas: &mut Schemas) -> bool {
        let (mut json, mut stories) = (schemas.json.iter_mut(), schemas.stories.iter_mut());
        let json = json.all(|(text, compilation)| {
            *compilation = self.json.get(text).cloned().flatten();
            compilation.is_some()
        });
        json && stories.all(|(voices, compilation)| {
            *compilation = self.stories.get(voices).cloned().flatten();
            compilation.is_some()
        })
    }

    fn keep(&mut self, schemas: &Schemas, most: usize) {
        let json = schemas.json.iter().map(|(text, compiled)| (text.clone(), compiled.clone()));
        self.json.extend(json);
        let stories = schemas.stories.iter();
        self.stories.extend(stories.map(|(voices, compiled)| (voices.clone(), compiled.clone())));
        let length = |voices: &Vec<String>| voices.iter().map(String::len).sum::<usize>();
        let mut bytes = self.json.keys().map(String::len).sum::<usize>()
            + self.stories.keys().map(length).sum::<usize>();
        while bytes > most || self.json.len() + self.stories.len() > MAX_CACHED {
            // The first one is one of the oldest.
            let dropped = self.json.swap_remove_index(0).map(|(text, _)| text.len());
            let dropped = dropped
                .or_else(|| self.stories.swap_remove_index(0).map(|(voices, _)| length(&voices)));
            let Some(dropped) = dropped else { return };
            bytes -= dropped;
        }
    }
}

fn found(
    field: &str,
    compilation: Option<&Compilation>,
) -> Result<Arc<CompiledSchema>, InvalidField> {
    let compiled = compilation.and_then(Option::as_ref).expect("the schema was compiled before");
    compiled.clone().map_err(|error| InvalidField::schema(field, &error))
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use serde_json::json;
    use tokio_util::sync::CancellationToken;

    use super::*;

    fn compiled(texts: &[&str], check_formats: bool) -> Vec<Arc<CompiledSchema>> {
        let mut schemas =
            Schemas::new(SchemaLimits { bytes: 1 << 20, nodes: 10_000 }, check_formats);
        texts.iter().for_each(|text| schemas.add_json(text));
        schemas.compile(&unlimited()).expect("nothing stops it");
        let schema = |text: &&str| schemas.json("json_schema", text).expect("a usable schema");
        texts.iter().map(schema).collect()
    }

    fn unlimited() -> Work {
        Work::until(CancellationToken::new())
    }

    #[test]
    fn brief_work_is_not_repeated_in_a_body_where_it_was_not_enough() {
        let schemas = compiled(&[r#"{"items": {"minimum": 1}}"#, "{}"], true);
        let [heavy, light] = &schemas[..] else { panic!() };
        let long = json!(vec![1; 100_000]);
        assert_eq!(light.violations(&json!(1), &Work::brief()), Ok(Vec::new()));
        assert_eq!(heavy.violations(&long, &Work::brief()), Err(Stopped));
        assert_eq!(light.violations(&json!(1), &Work::brief()), Err(Stopped));
        for (schema, answer) in [(heavy, &long), (light, &json!(1))] {
            assert_eq!(schema.violations(answer, &unlimited()), Ok(Vec::new()));
        }
    }

    #[tokio::test]
    async fn a_cached_schema_is_not_compiled_again_and_old_ones_are_dropped() {
        let cache = SchemaCache::new(SchemaLimits { bytes: 1000, nodes: 10_000 }, true);
        let offload = Offload::new(Duration::from_secs(60));
        let deadline = Instant::now() + Duration::from_secs(60);
        let compiled = async |text: &str| {
            let mut schemas = cache.schemas();
            schemas.add_json(text);
            let schemas = cache.compiled(schemas, &offload, &[0; 32], deadline).await.unwrap();
            schemas.json("json_schema", text).unwrap()
        };
        let first = compiled("{}").await;
        assert!(Arc::ptr_eq(&first, &compiled("{}").await));
        for n in 0..MAX_CACHED {
            compiled(&format!(r#"{{"minimum": {n}}}"#)).await;
        }
        let cached = cache.lock();
        assert!(cached.json.keys().map(String::len).sum::<usize>() <= 2000);
        assert!(!cached.json.contains_key("{}") && cached.json.len() > 1);
    }

    #[test]
    fn formats_are_checked_unless_the_setting_disables_it() {
        for check_formats in [true, false] {
            let schema = &compiled(&[r#"{"format": "date"}"#], check_formats)[0];
            let violations = schema.violations(&json!("tomorrow"), &Work::brief());
            assert_eq!(violations.map(|found| found.len()), Ok(usize::from(check_formats)));
        }
    }
}
