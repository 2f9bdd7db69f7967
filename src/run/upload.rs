//! What is uploaded: a line with the options of a job, then a line for each item.

mod form;

use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use axum::body::Body;
use bytes::Bytes;
use clap::Args;
use futures_util::stream;
use serde_json::{Map, Value, json};
use sha2::{Digest, Sha256};
use tokio::sync::mpsc;

use super::input::{Content, Input, InputError, InputFormat, Record};
use super::template::Template;
use crate::jobs::JobKind;
use form::ItemForm;

/// How much is read before it is sent, in bytes.
const CHUNK: usize = 256 << 10;

/// How many chunks wait to be sent.
const WAITING_CHUNKS: usize = 4;

/// The system prompt of structured output where `--system` gives none.
const STRUCTURED_SYSTEM: &str = "Answer with JSON that matches the schema.";

/// What is asked.
#[derive(Debug, Args)]
pub struct JobArguments {
    /// The prompts: lines of JSON, a table (CSV, TSV) or lines of text; - is standard input.
    input: PathBuf,
    /// The form of the input; default: by the extension of its name, or by its first byte.
    #[arg(long, value_enum, value_name = "FORMAT")]
    input_format: Option<InputFormat>,
    /// What the items are: chat, structured-output, cinematic-story-design, gemini or openai (lines of
    /// their batch files); default: as the first line looks.
    #[arg(long, value_parser = kind)]
    kind: Option<JobKind>,
    /// The model of items that name none.
    #[arg(long)]
    model: Option<String>,
    /// A file with a JSON Schema. The answers are JSON that matches it.
    #[arg(long, value_name = "FILE")]
    schema: Option<PathBuf>,
    /// The prompt, with columns or fields of the input in braces: 'Summarise: {text}'.
    #[arg(long)]
    prompt: Option<Template>,
    /// The system prompt of items that have none.
    #[arg(long)]
    system: Option<String>,
    /// The column or field with the name of an item, which its result repeats; default: custom_id.
    #[arg(long, value_name = "COLUMN")]
    id: Option<String>,
    /// Only the first items, to try it.
    #[arg(long, value_name = "ITEMS", value_parser = clap::value_parser!(u64).range(1..))]
    limit: Option<u64>,
    /// The name of the job in lists; default: the name of the input.
    #[arg(long)]
    name: Option<String>,
    /// How soon Gemini serves the items: standard, flex or priority.
    #[arg(long, value_name = "TIER")]
    service_tier: Option<String>,
    /// The semaphore that the items hold.
    #[arg(long, value_name = "ID")]
    semaphore: Option<String>,
}

/// A job before it is sent.
#[derive(Debug)]
pub struct Upload {
    input: Input,
    kind: JobKind,
    /// The first line, with its end.
    options: Bytes,
    form: ItemForm,
    limit: u64,
    /// Whether the input was another one when it was sent than when it was measured.
    has_changed: AtomicBool,
    /// Whether all of it was sent.
    was_sent: AtomicBool,
}

/// What an upload amounts to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Measure {
    pub items: u64,
    pub bytes: u64,
    /// The SHA-256 of the kind and all lines, in hexadecimal digits.
    pub digest: String,
}

impl Upload {
    /// Reads the options and the first record.
    ///
    /// # Errors
    /// [`InputError`] if the input cannot be read, or the options do not fit it.
    pub fn new(arguments: JobArguments, max_record: usize) -> Result<Self, InputError> {
        let input = Input::open(&arguments.input, arguments.input_format, max_record)?;
        let first = input.records()?.next().transpose()?;
        let first = first.ok_or_else(|| input.invalid(None, "it has no items"))?;
        let shape = arguments.prompt.is_none().then(|| shape(&input, &first)).flatten();
        let with_schema = arguments.schema.as_ref().map(|_| JobKind::StructuredOutput);
        let kind = arguments.kind.or(with_schema).or(shape).unwrap_or(JobKind::Chat);
        check_options(&arguments, kind).map_err(|message| input.invalid(None, message))?;
        let form = ItemForm::new(&input, kind, arguments.prompt.clone(), arguments.id.clone())?;
        let options = options(&arguments, kind, &form, &input)?;
        let limit = arguments.limit.unwrap_or(u64::MAX);
        let (has_changed, was_sent) = (AtomicBool::new(false), AtomicBool::new(false));
        Ok(Self { input, kind, options, form, limit, has_changed, was_sent })
    }

    /// The kind of its items.
    pub fn kind(&self) -> JobKind {
        self.kind
    }

    /// What it is made from.
    pub fn input(&self) -> &Input {
        &self.input
    }

    /// The first item's record and those after it, as far as they are uploaded.
    ///
    /// # Errors
    /// [`InputError`] if the input cannot be read.
    pub fn records(
        &self,
    ) -> Result<impl Iterator<Item = Result<Record, InputError>> + '_, InputError> {
        let limit = usize::try_from(self.limit).unwrap_or(usize::MAX);
        Ok(self.input.records()?.take(limit))
    }

    /// The line of the input on which an item begins.
    pub fn line_of(&self, item: u64) -> Option<u64> {
        let mut records = self.records().ok()?;
        let record = records.nth(usize::try_from(item).ok()?)?.ok()?;
        Some(self.input.line(record.position))
    }

    /// Reads and checks all of it.
    ///
    /// # Errors
    /// [`InputError`] for the first record that is not an item.
    pub fn measure(&self) -> Result<Measure, InputError> {
        let mut digest = Digested::new(self.kind);
        let (mut items, mut bytes) = (0, 0);
        self.each_chunk(|chunk, count| {
            digest.add(&chunk);
            items += count;
            bytes += chunk.len() as u64;
            true
        })?;
        Ok(Measure { items, bytes, digest: digest.end() })
    }

    /// The body of the request. `sent` is told how many bytes were taken. If the input has changed since
    /// it was measured, the body breaks off.
    pub fn body(
        self: &Arc<Self>,
        expected: String,
        mut sent: impl FnMut(u64) + Send + 'static,
    ) -> Body {
        let (sender, receiver) = mpsc::channel::<io::Result<Bytes>>(WAITING_CHUNKS);
        let upload = Arc::clone(self);
        tokio::task::spawn_blocking(move || {
            let mut digest = Digested::new(upload.kind);
            let mut is_read = true;
            let read = upload.each_chunk(|chunk, _| {
                digest.add(&chunk);
                sent(chunk.len() as u64);
                is_read = sender.blocking_send(Ok(chunk)).is_ok();
                is_read
            });
            let outcome = match read {
                // Nobody reads it any more.
                Ok(()) if !is_read => return,
                Ok(()) if digest.end() == expected => {
                    upload.was_sent.store(true, Ordering::Release);
                    return;
                }
                Ok(()) => io::Error::other("the input changed"),
                Err(error) => io::Error::other(error.to_string()),
            };
            upload.has_changed.store(true, Ordering::Release);
            let _ = sender.blocking_send(Err(outcome));
        });
        Body::from_stream(stream::unfold(receiver, async |mut receiver| {
            Some((receiver.recv().await?, receiver))
        }))
    }

    /// Whether all of a body was sent, as far as this side knows.
    pub fn was_sent(&self) -> bool {
        self.was_sent.load(Ordering::Acquire)
    }

    /// Whether a body broke off because the input has changed.
    pub fn has_changed(&self) -> bool {
        self.has_changed.load(Ordering::Acquire)
    }

    /// Passes the lines on, many at once, with how many items they are, until the function says no.
    fn each_chunk(&self, mut pass: impl FnMut(Bytes, u64) -> bool) -> Result<(), InputError> {
        let mut chunk = self.options.to_vec();
        let mut items = 0;
        for record in self.records()? {
            let record = record?;
            let line = self.form.line(&record);
            let line = line.map_err(|reason| {
                self.input.invalid(Some(self.input.line(record.position)), reason)
            })?;
            chunk.extend_from_slice(&line);
            chunk.push(b'\n');
            items += 1;
            if chunk.len() >= CHUNK {
                let full = std::mem::take(&mut chunk);
                if !pass(full.into(), std::mem::take(&mut items)) {
                    return Ok(());
                }
            }
        }
        pass(chunk.into(), items);
        Ok(())
    }
}

/// The digest of an upload.
struct Digested(Sha256);

impl Digested {
    fn new(kind: JobKind) -> Self {
        Self(Sha256::new().chain_update(kind_name(kind)).chain_update("\n"))
    }

    fn add(&mut self, chunk: &[u8]) {
        self.0.update(chunk);
    }

    fn end(self) -> String {
        hexadecimal(&self.0.finalize())
    }
}

/// Bytes in hexadecimal digits.
pub fn hexadecimal(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// The name of a kind, as the service knows it.
pub fn kind_name(kind: JobKind) -> String {
    let name = serde_json::to_value(kind).expect("a kind has a name");
    name.as_str().expect("it is a text").to_owned()
}

/// Reads the name of a kind.
fn kind(name: &str) -> Result<JobKind, String> {
    let kind = serde_json::from_value(json!(name));
    kind.map_err(|_| {
        "expected chat, structured-output, cinematic-story-design, gemini or openai".to_owned()
    })
}

/// What the items seem to be.
fn shape(input: &Input, first: &Record) -> Option<JobKind> {
    let Content::Line(line) = &first.content else { return None };
    if input.format() != InputFormat::Jsonl {
        return None;
    }
    let fields: Map<String, Value> = serde_json::from_str(line).ok()?;
    let has = |name: &str| fields.contains_key(name);
    if has("body") && has("custom_id") {
        Some(JobKind::OpenAi)
    } else if has("request") {
        Some(JobKind::Gemini)
    } else if has("json_schema") {
        Some(JobKind::StructuredOutput)
    } else {
        None
    }
}

/// Refuses options that would have no effect.
fn check_options(arguments: &JobArguments, kind: JobKind) -> Result<(), String> {
    let name = kind_name(kind);
    if matches!(kind, JobKind::Gemini | JobKind::OpenAi) {
        if arguments.prompt.is_some() {
            return Err(format!("--prompt makes no items of the kind {name}"));
        }
        if arguments.system.is_some() {
            return Err(format!("--system: items of the kind {name} have their own"));
        }
    }
    if arguments.schema.is_some() && kind != JobKind::StructuredOutput {
        return Err(format!("--schema is for structured-output, not for {name}"));
    }
    Ok(())
}

/// The first line.
fn options(
    arguments: &JobArguments,
    kind: JobKind,
    form: &ItemForm,
    input: &Input,
) -> Result<Bytes, InputError> {
    let mut shared = Map::new();
    let makes_structured = kind == JobKind::StructuredOutput && form.makes_prompts();
    let default = makes_structured.then(|| STRUCTURED_SYSTEM.to_owned());
    if let Some(system) = arguments.system.clone().or(default) {
        shared.insert("system_prompt".to_owned(), system.into());
    }
    if let Some(path) = &arguments.schema {
        shared.insert("json_schema".to_owned(), schema(path)?);
    }
    let file_name = arguments.input.file_name().filter(|name| *name != "-");
    let file_name = file_name.map(|name| name.to_string_lossy().into_owned());
    let mut job = Map::new();
    let texts = [
        ("job_name", arguments.name.clone().or(file_name)),
        ("model", arguments.model.clone()),
        ("service_tier", arguments.service_tier.clone()),
        ("external_semaphore_id", arguments.semaphore.clone()),
    ];
    for (name, text) in texts {
        if let Some(text) = text {
            job.insert(name.to_owned(), text.into());
        }
    }
    if !shared.is_empty() {
        job.insert("shared".to_owned(), shared.into());
    }
    let line = json!({"job": job}).to_string();
    if line.len() > input.max_record() {
        return Err(input.invalid(None, "the options are longer than MAX_BODY_BYTES"));
    }
    Ok(format!("{line}\n").into())
}

fn schema(path: &PathBuf) -> Result<Value, InputError> {
    let name = path.display().to_string();
    let text = std::fs::read_to_string(path);
    let text = text.map_err(|error| InputError::Unreadable { name: name.clone(), error })?;
    let text = text.strip_prefix('\u{feff}').unwrap_or(&text);
    serde_json::from_str(text).map_err(|error| InputError::Invalid {
        name,
        line: u64::try_from(error.line()).ok(),
        message: format!("it is not JSON: {error}"),
    })
}

#[cfg(test)]
mod tests;
