//! Reads the items of a job from a body of any size.

use std::collections::HashSet;

use axum::body::Body;
use bytes::Bytes;
use http::HeaderMap;
use http::header::CONTENT_TYPE;
use multer::parse_boundary;
use serde::Deserialize;

use super::form::file_of;
use super::item::{Reading, kind_of};
use super::lines::{Line, Lines};
use super::object::Object;
use super::options::{JobOptions, MAX_OPTIONS, unknown_kind};
use super::pieces::{decoded, received, unpacked};
use super::rules::JobRules;
use super::storing::Storing;
use crate::api::encoding::Coding;
use crate::api::error::{ApiError, FieldError};
use crate::api::form::is_form;
use crate::api::json;
use crate::api::single::named_semaphore;
use crate::gateway::Gateway;
use crate::gemini::ApiKey;
use crate::generation::offload::CallerId;
use crate::generation::{InvalidField, SchemaCache};
use crate::jobs::{JobSpec, Owner, SharedFields};

/// How many bad lines an answer lists.
const MAX_BAD_LINES: usize = 100;

/// How many semaphores are remembered as known.
const MAX_KNOWN: usize = 1000;

/// The types of bodies that consist of lines.
const LINES: [&str; 6] = [
    "application/x-ndjson",
    "application/ndjson",
    "application/jsonl",
    "application/x-jsonlines",
    "application/json-lines",
    "application/jsonlines",
];

/// Whose job is uploaded.
#[derive(Debug, Clone)]
pub(super) struct Uploader {
    pub owner: Owner,
    /// The SHA-256 of the key that pays.
    pub payer: CallerId,
    /// The key that pays, if it is not the server's.
    pub own_key: Option<ApiKey>,
    /// The SHA-256 of the idempotency key.
    pub idempotency_key: Option<[u8; 32]>,
}

/// The form of a body.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Form {
    Lines,
    File,
    /// JSON with a list of requests.
    Json,
}

impl Form {
    /// The form that the content type names.
    ///
    /// # Errors
    /// 415 for another one.
    pub(super) fn of(headers: &HeaderMap) -> Result<Self, ApiError> {
        if is_form(headers) {
            return Ok(Self::File);
        }
        let content_type = headers.get(CONTENT_TYPE).and_then(|value| value.to_str().ok());
        let essence = content_type.unwrap_or_default().split(';').next().unwrap_or_default();
        let essence = essence.trim().to_ascii_lowercase();
        if LINES.contains(&&*essence) {
            Ok(Self::Lines)
        } else if json::is_json(headers) {
            Ok(Self::Json)
        } else {
            Err(ApiError::not_items())
        }
    }
}

/// Reads lines, or a form with a file of them, and stores the items.
///
/// # Errors
/// 400 if the body is incomplete or cannot be decoded, 404 for an unknown semaphore, 408 if it pauses for
/// too long, 413 if it or a line is too large, 415 for an unsupported encoding, 422 with up to 100 bad
/// lines, 503 if there is no memory, and errors of the store. Nothing is kept then.
pub(super) async fn read(
    gateway: &Gateway,
    uploader: Uploader,
    form: Form,
    options: JobOptions,
    headers: &HeaderMap,
    body: Body,
) -> Result<Storing, ApiError> {
    let budget = &gateway.bodies;
    let coding = Coding::of(headers)?;
    let pieces = received(body, gateway.config.client_timeout);
    let pieces = match coding {
        Some(coding) => decoded(pieces, coding, budget),
        None => pieces,
    };
    let (options, pieces) = match form {
        Form::File => {
            let content_type = headers.get(CONTENT_TYPE).and_then(|value| value.to_str().ok());
            let boundary = parse_boundary(content_type.unwrap_or_default());
            let boundary = boundary.map_err(|_| ApiError::not_items())?;
            let (in_form, pieces) = file_of(pieces, boundary).await?;
            (in_form.or(options), unpacked(pieces, budget).await?)
        }
        Form::Lines | Form::Json => (options, pieces),
    };
    let most_of_line = gateway.config.max_body_bytes.min(budget.largest() / 4);
    let most = gateway.config.job_max_bytes;
    let mut lines = Lines::of(pieces, budget.share(), most_of_line, most);
    let mut first = lines.next().await?;
    let in_line = first.as_ref().map(options_in).transpose()?.flatten();
    let options = match in_line {
        Some(in_line) => {
            first = lines.next().await?;
            in_line.or(options)
        }
        None => options,
    };
    let Some(first) = first else { return Err(empty()) };
    let kind = options.kind().or_else(|| kind_of(&first.text));
    let kind = kind.ok_or_else(|| ApiError::invalid_in_query(unknown_kind()))?;
    let (spec, shared) = options.spec(kind, gateway).await?;
    let mut checked = Checked::new(gateway, uploader, spec, shared).await?;
    let mut next = Some(first);
    while let Some(Line { number, text }) = next {
        let added = checked.add(&text).await;
        if let Err(error) = added {
            checked.note(error.in_line(number))?;
            if checked.bad.len() == MAX_BAD_LINES {
                break;
            }
        }
        next = lines.next().await?;
    }
    checked.finish().await
}

/// Stores the items of a list.
///
/// # Errors
/// As for [`read`].
pub(super) async fn read_list(
    gateway: &Gateway,
    uploader: Uploader,
    options: JobOptions,
    requests: Vec<Bytes>,
) -> Result<Storing, ApiError> {
    match requests.first() {
        Some(first) => {
            let kind = options.kind().or_else(|| kind_of(first));
            read_batch(gateway, uploader, options.of_kind(kind), requests).await
        }
        None => Err(empty()),
    }
}

/// The same for a list that may be empty.
///
/// # Errors
/// As for [`read`].
pub(super) async fn read_batch(
    gateway: &Gateway,
    uploader: Uploader,
    options: JobOptions,
    requests: Vec<Bytes>,
) -> Result<Storing, ApiError> {
    let kind = options.kind().ok_or_else(|| ApiError::invalid_in_query(unknown_kind()))?;
    let (spec, shared) = options.spec(kind, gateway).await?;
    let mut checked = Checked::new(gateway, uploader, spec, shared).await?;
    for (index, request) in requests.iter().enumerate() {
        if let Err(error) = checked.add(request).await {
            checked.note(error.in_item(index))?;
            if checked.bad.len() == MAX_BAD_LINES {
                break;
            }
        }
    }
    checked.finish().await
}

/// The options of the job, if a line has them.
fn options_in(line: &Line) -> Result<Option<JobOptions>, ApiError> {
    #[derive(Deserialize)]
    #[serde(deny_unknown_fields)]
    struct WithOptions {
        job: JobOptions,
    }

    if Object::read(&line.text).is_none_or(|object| object.get("job").is_none()) {
        return Ok(None);
    }
    if line.text.len() > MAX_OPTIONS {
        let message = format!("The options of a job have at most {MAX_OPTIONS} bytes");
        let field = InvalidField::new("job", "too_long", message);
        return Err(ApiError::invalid(vec![field]).in_line(line.number));
    }
    let read = json::parse::<WithOptions>(&line.text);
    let read = read.map_err(|field| ApiError::invalid(vec![field]).in_line(line.number))?;
    Ok(Some(read.job))
}

fn empty() -> ApiError {
    let message = "A job has at least one item";
    ApiError::invalid(vec![InvalidField {
        path: Vec::new(),
        kind: "too_short",
        message: message.into(),
    }])
}

/// Checks items one after the other, and stores them as long as all are good.
struct Checked<'a> {
    gateway: &'a Gateway,
    rules: JobRules,
    schemas: SchemaCache,
    payer: CallerId,
    /// Semaphores that exist.
    known: HashSet<String>,
    /// The errors of each bad line.
    bad: Vec<Vec<FieldError>>,
    storing: Storing,
}

impl<'a> Checked<'a> {
    async fn new(
        gateway: &'a Gateway,
        uploader: Uploader,
        spec: JobSpec,
        shared: SharedFields,
    ) -> Result<Self, ApiError> {
        let rules = JobRules::of(&spec, &shared).map_err(ApiError::invalid)?;
        named_semaphore(gateway, rules.semaphore.as_deref()).await?;
        let known = rules.semaphore.iter().cloned().collect();
        let payer = uploader.payer;
        let storing = Storing::begin(gateway, uploader, spec, shared)?;
        let config = &gateway.config;
        let schemas = SchemaCache::new(config.schema_limits, config.check_formats);
        Ok(Self { gateway, rules, schemas, payer, known, bad: Vec::new(), storing })
    }

    /// Checks an item, and adds it if all before it were good.
    async fn add(&mut self, line: &Bytes) -> Result<(), ApiError> {
        let Self { gateway, rules, schemas, payer, known, bad, storing } = self;
        let item = Reading { gateway, rules, schemas, payer }.item(line).await?;
        item.check_texts(line, gateway).await?;
        if let Some(semaphore) = item.semaphore.filter(|semaphore| !known.contains(semaphore)) {
            named_semaphore(gateway, Some(&semaphore)).await?;
            if known.len() < MAX_KNOWN {
                known.insert(semaphore);
            }
        }
        if !bad.is_empty() {
            return Ok(());
        }
        let most = gateway.config.job_max_items;
        if storing.items() >= most {
            return Err(ApiError::too_many_items(most));
        }
        storing.add(line).await
    }

    /// Notes what is wrong with an item.
    ///
    /// # Errors
    /// The error, if it concerns more than the item.
    fn note(&mut self, error: ApiError) -> Result<(), ApiError> {
        self.bad.push(error.into_fields()?);
        Ok(())
    }

    async fn finish(self) -> Result<Storing, ApiError> {
        let Self { bad, storing, .. } = self;
        if !bad.is_empty() {
            storing.abandon().await;
            return Err(ApiError::of_fields(bad.into_iter().flatten().collect()));
        }
        Ok(storing)
    }
}
