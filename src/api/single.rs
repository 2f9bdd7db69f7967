//! Requests for one generation, of any kind.

use std::mem;
use std::sync::Arc;

use axum::Json;
use tokio::time::Instant;

use super::auth::{check_model, check_text};
use super::error::ApiError;
use super::generation_request::{GenerationKind, GenerationRequest};
use super::incoming::Incoming;
use super::semaphores::registered;
use crate::dispatch::{Call, CallRequest};
use crate::gateway::Gateway;
use crate::generation::{self, Generation, GenerationError, Schemas};
use crate::limits::Semaphore;

/// Generates, and answers with the result.
///
/// # Errors
/// Every error of [`enqueue`], and of the call to Gemini.
pub(super) async fn generate<K: GenerationKind>(
    gateway: &Gateway,
    mut incoming: Incoming<GenerationRequest<K>>,
) -> Result<Json<K::Response>, ApiError> {
    let _share = mem::take(&mut incoming.share);
    let (generation, call) = enqueue(gateway, incoming).await?;
    let (dispatcher, offload) = (&gateway.dispatcher, &gateway.offload);
    let generated = generation::generate(dispatcher, offload, &call, generation).await;
    match generated {
        Ok(generated) => Ok(Json(generated.into())),
        Err(error) => Err(failed(&call, error)),
    }
}

/// Checks a request and puts its call into the queue.
///
/// # Errors
/// 401, 404 or 422 if the request is invalid; 503 if the shared limits are unavailable.
pub(super) async fn enqueue<K: GenerationKind>(
    gateway: &Gateway,
    incoming: Incoming<GenerationRequest<K>>,
) -> Result<(K::Generation, Call), ApiError> {
    let config = &gateway.config;
    let Incoming { caller, semaphore, body, observer, .. } = incoming;
    let GenerationRequest { shared, own } = body;
    let (options, model_options) = shared.into_options();
    let (came_at, tier) = (Instant::now(), options.tier.check());
    let requested_tier = tier.as_ref().copied().unwrap_or_default();
    let deadline = came_at + config.request_timeout_of(requested_tier.tier());
    let key = caller.payer(options.credentials.as_ref(), gateway)?;
    let mut schemas = Schemas::new(config.schema_limits, config.check_formats);
    own.add_schema(&mut schemas);
    let schemas = Box::pin(schemas.compiled(&gateway.offload, key.sha256(), deadline)).await;
    let schemas = schemas.map_err(|error| ApiError::not_compiled(error, "json_schema"))?;
    let generation = own.generation(model_options, &schemas, &gateway.defaults);
    let generation = match (generation, tier) {
        (Ok(generation), Ok(_)) => generation,
        (generation, tier) => {
            let errors = generation.err().into_iter().chain(tier.err()).flatten();
            return Err(ApiError::invalid(errors.collect()));
        }
    };
    check_model(generation.model(), gateway)?;
    check_text(|| generation.body(), gateway).await?;
    let semaphore = options.external_semaphore_id.or(semaphore);
    let semaphore = named_semaphore(gateway, semaphore.as_deref()).await?;
    let (kind, model) = (K::Generation::KIND, generation.model().clone());
    let size = generation.input().into();
    let tier = requested_tier.chosen_at(came_at);
    let call = CallRequest { kind, key, model, semaphore, size, tier, deadline, observer };
    let call = gateway.dispatcher.enqueue(call);
    Ok((generation, call))
}

/// The error of a call. It is logged here.
pub(super) fn failed(call: &Call, error: impl Into<GenerationError>) -> ApiError {
    let error = error.into();
    let cause = error.cause();
    let error = ApiError::from(error);
    let (model, code) = (call.model(), error.code());
    tracing::warn!(kind = call.kind().label(), %model, code, cause, "the call failed");
    error
}

/// The semaphore that a request names.
///
/// # Errors
/// 404 if it is not registered.
pub(super) async fn named_semaphore(
    gateway: &Gateway,
    id: Option<&str>,
) -> Result<Option<Arc<dyn Semaphore>>, ApiError> {
    match id {
        Some(id) => Ok(Some(registered(gateway, id).await?.1)),
        None => Ok(None),
    }
}
