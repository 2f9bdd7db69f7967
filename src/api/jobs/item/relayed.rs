//! Items in Gemini's or OpenAI's form: their bodies are sent as they came.

use bytes::Bytes;
use futures_util::future::BoxFuture;
use http::Response;
use http_body_util::BodyExt;
use serde_json::value::RawValue;

use super::outcome::{
    Failure, GeminiResult, Labels, Names, OpenAiResult, failed, refused, succeeded,
};
use super::{Content, invalid};
use crate::api::error::ApiError;
use crate::api::jobs::object::{Object, compact};
use crate::api::jobs::rules::JobRules;
use crate::dispatch::{
    Admitted, Call, CallError, CallKind, CallSize, CountedAs, Forwarded, TierChoice,
};
use crate::gateway::Gateway;
use crate::gemini::{
    Forward, InputFeatures, Model, Surface, Usage, embedding_requests, requested_images,
};
use crate::jobs::JobId;
use crate::jobs::item::{ItemOutcome, ItemSender};

/// The longest answer that is kept, in bytes. Images are the longest: each has a few megabytes.
const MAX_ANSWER: usize = 64 << 20;

/// What is sent for an item.
#[derive(Debug)]
pub(super) struct Relayed {
    pub request: Forward,
    pub body: Bytes,
    pub names: Names,
    pub model: Model,
    pub names_model: bool,
}

/// The body of an item with what its job says, and its tier.
///
/// # Errors
/// 422 if the item has a key.
pub(super) fn body_of(
    rules: &JobRules,
    object: Object<'_>,
    tier_field: &str,
    within: &str,
) -> Result<(Bytes, TierChoice, InputFeatures), ApiError> {
    if object.has("credentials") {
        let message = "The items of a job have no credentials: send the key in a header";
        return Err(invalid(&[within, "credentials"], "extra_forbidden", message));
    }
    let tier = rules.tier.named().map(|tier| format!("\"{}\"", tier.name()));
    let mut object = object;
    rules.complete(&mut object);
    if let Some(tier) = &tier
        && !["service_tier", "serviceTier"].iter().any(|name| object.has(name))
    {
        object.remove(tier_field);
        object.add(tier_field, tier);
    }
    let body: Bytes = object.to_json().into();
    let (input, tier) = InputFeatures::with_tier_of_body(&body);
    Ok((body, TierChoice::of_body(tier), input))
}

/// What a call costs.
///
/// # Errors
/// 422 if the texts in it cannot be counted.
pub(super) fn size_of(
    kind: CallKind,
    surface: Surface,
    model: &Model,
    body: &Bytes,
    input: InputFeatures,
) -> Result<CallSize, ApiError> {
    let requests = match kind.counted_as() {
        CountedAs::OneRequest => 1,
        CountedAs::OneRequestPerText => embedding_requests(surface, body)
            .ok_or_else(|| invalid(&["body"], "object_type", "Input should be an object"))?,
    };
    let images = requested_images(model.as_str(), body)
        .map_err(|field| invalid(&["body", field.0], "duplicate", field.to_string()))?;
    Ok(CallSize { requests, images, ..input.into() })
}

impl Content for Relayed {
    fn body(&self) -> Bytes {
        self.body.clone()
    }

    fn into_sender(
        self: Box<Self>,
        gateway: Gateway,
        job: JobId,
        index: u64,
    ) -> Box<dyn ItemSender> {
        let Self { request, body, names, model, names_model } = *self;
        let labels = Labels { job, index, names, model, names_model };
        Box::new(Sender { gateway, request, body, labels })
    }
}

/// Sends one item.
#[derive(Debug)]
struct Sender {
    gateway: Gateway,
    request: Forward,
    body: Bytes,
    labels: Labels,
}

impl ItemSender for Sender {
    fn send(self: Box<Self>, _: Call, admitted: Admitted) -> BoxFuture<'static, ItemOutcome> {
        Box::pin(async move {
            let Self { gateway, request, body, labels } = *self;
            let idle = gateway.config.stream_idle_timeout;
            let answer = gateway.dispatcher.forward_admitted(&request, body, idle, admitted).await;
            let answer = match answer {
                Ok(answer) => collected(answer, &gateway).await,
                Err(error) => Err(error.into()),
            };
            match answer {
                Ok((answer, usage)) => result(labels, &answer, usage),
                Err(failure) => failed(labels, failure),
            }
        })
    }

    fn refused(self: Box<Self>, error: CallError) -> ItemOutcome {
        refused(self.labels, error)
    }
}

/// Reads an answer to its end.
async fn collected(
    answer: Response<Forwarded>,
    gateway: &Gateway,
) -> Result<(Vec<u8>, Usage), Failure> {
    let mut body = answer.into_body();
    let (mut whole, mut share) = (Vec::new(), gateway.answers.share());
    while let Some(frame) = body.frame().await {
        let frame = frame.map_err(CallError::from)?;
        let Some(piece) = frame.data_ref() else { continue };
        if piece.len() > MAX_ANSWER - whole.len() {
            return Err(ApiError::answer_too_large(MAX_ANSWER).into());
        }
        if let Err(over) = share.grow(piece.len()) {
            return Err(Failure::from(ApiError::from(over)).after(Usage::default()));
        }
        whole.extend_from_slice(piece);
    }
    let usage = body.settle(Ok(None)).unwrap_or_default();
    Ok((whole, usage))
}

/// The result of an item that has an answer, if that is JSON.
fn result(labels: Labels, answer: &[u8], usage: Usage) -> ItemOutcome {
    let answer = compact(answer);
    let Ok(answer) = serde_json::from_slice::<&RawValue>(&answer) else {
        return failed(labels, Failure::from(ApiError::answer_not_json()).after(usage));
    };
    let Labels { job, index, names, .. } = labels;
    match names {
        Names::OpenAi(custom_id) => {
            let result = OpenAiResult::answered(&job, index, custom_id, answer);
            succeeded(index, &result, usage)
        }
        Names::Gemini(key) => succeeded(index, &GeminiResult::answered(index, key, answer), usage),
        Names::Own(_) => unreachable!("it is not relayed"),
    }
}
