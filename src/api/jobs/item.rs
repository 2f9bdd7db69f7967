//! Reads the items of a job: what is sent for each.

mod gemini;
mod generation;
mod openai;
mod outcome;
mod relayed;

use std::fmt::Debug;

use bytes::Bytes;
use serde::de::DeserializeOwned;

use super::rules::JobRules;
use crate::api::auth::{check_model, check_text};
use crate::api::buffered::with_body;
use crate::api::chat::ChatFields;
use crate::api::cinematic::StoryFields;
use crate::api::error::ApiError;
use crate::api::json;
use crate::api::structured::StructuredFields;
use crate::dispatch::{CallKind, CallSize, TierChoice};
use crate::gateway::Gateway;
use crate::gemini::{Model, ServiceTier};
use crate::generation::offload::CallerId;
use crate::generation::{InvalidField, SchemaCache};
use crate::jobs::item::ItemSender;
use crate::jobs::{JobId, JobKind};

pub(super) use outcome::{Labels, Names, failed, failure_of};

/// What the reading of an item needs to know.
#[derive(Debug, Clone, Copy)]
pub(super) struct Reading<'a> {
    pub gateway: &'a Gateway,
    pub rules: &'a JobRules,
    pub schemas: &'a SchemaCache,
    /// The caller, by the key that pays.
    pub payer: &'a CallerId,
}

/// An item, ready to be sent.
#[derive(Debug)]
pub(super) struct Item {
    pub kind: CallKind,
    pub model: Model,
    /// The semaphore that it or its job names.
    pub semaphore: Option<String>,
    pub tier: TierChoice,
    pub size: CallSize,
    pub content: Box<dyn Content>,
}

/// What is sent for an item.
pub(super) trait Content: Debug + Send + Sync {
    /// The body of its call.
    fn body(&self) -> Bytes;

    /// Sends it, and writes its result.
    fn into_sender(
        self: Box<Self>,
        gateway: Gateway,
        job: JobId,
        index: u64,
    ) -> Box<dyn ItemSender>;
}

impl Item {
    /// The service tier that it asks for.
    pub(super) fn service_tier(&self) -> ServiceTier {
        self.tier.tier()
    }

    /// Refuses an item that contains the admin key. Its line, with its ids, is written to the disk.
    ///
    /// # Errors
    /// 401 if it does.
    pub(super) async fn check_texts(
        &self,
        line: &Bytes,
        gateway: &Gateway,
    ) -> Result<(), ApiError> {
        check_model(&self.model, gateway)?;
        check_text(|| line.clone(), gateway).await?;
        check_text(|| self.content.body(), gateway).await
    }
}

impl Reading<'_> {
    /// Reads an item from its line.
    ///
    /// # Errors
    /// 422 with every field that cannot be used; 504 if its schema was not compiled in time.
    pub(super) async fn item(&self, line: &Bytes) -> Result<Item, ApiError> {
        match self.rules.kind {
            JobKind::Chat => generation::read::<ChatFields>(self, line).await,
            JobKind::StructuredOutput => generation::read::<StructuredFields>(self, line).await,
            JobKind::CinematicStoryDesign => generation::read::<StoryFields>(self, line).await,
            JobKind::Gemini => gemini::read(self, line).await,
            JobKind::OpenAi => openai::read(self, line).await,
        }
    }
}

/// The ids in a line, for the result of an item that cannot be read any more.
pub(super) fn names(kind: JobKind, line: &[u8]) -> Names {
    match kind {
        JobKind::Chat | JobKind::StructuredOutput | JobKind::CinematicStoryDesign => {
            generation::names(line)
        }
        JobKind::Gemini => gemini::names(line),
        JobKind::OpenAi => openai::names(line),
    }
}

/// The kind of the items, if a line shows it: Gemini's and OpenAI's forms do.
pub(super) fn kind_of(line: &[u8]) -> Option<JobKind> {
    let object = super::object::Object::read(line)?;
    let has = |name| object.get(name).is_some();
    if has("url") && has("body") {
        Some(JobKind::OpenAi)
    } else if has("request") {
        Some(JobKind::Gemini)
    } else {
        None
    }
}

/// Parses a line, off the serving threads if it is long.
async fn parsed<T: DeserializeOwned + Send + 'static>(line: Bytes) -> Result<T, ApiError> {
    let parsed = with_body(line, |line| json::parse::<T>(line)).await?;
    parsed.map_err(|field| ApiError::invalid(vec![on_a_line(field)]))
}

/// The error for a line. A line has columns only.
fn on_a_line(field: InvalidField) -> InvalidField {
    let message =
        field.message.replace("line 1, column", "column").replace("line 1 column", "column");
    let message = match message.strip_prefix("The body ") {
        Some(rest) => format!("The line {rest}"),
        None => message,
    };
    InvalidField { message, ..field }
}

fn invalid(path: &[&str], kind: &'static str, message: impl Into<String>) -> ApiError {
    let path = path.iter().map(|step| (*step).into()).collect();
    ApiError::invalid(vec![InvalidField { path, kind, message: message.into() }])
}
