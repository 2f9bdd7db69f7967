//! Requests for one generation, of any kind.

use std::mem;
use std::sync::Arc;

use axum::Json;
use tokio::time::Instant;

use super::auth::{check_model, check_text};
use super::error::ApiError;
use super::generation_request::{GenerationRequest, Kind};
use super::incoming::Incoming;
use super::semaphores::registered;
use crate::dispatch::Call;
use crate::gateway::Gateway;
use crate::generation::{self, Generation, GenerationError, Schemas};
use crate::limits::{Admission, Semaphore};

/// Generates, and answers with the result.
///
/// # Errors
/// Every error of [`admit`], and of the call to Gemini.
pub(super) async fn generate<K: Kind>(
    gateway: &Gateway,
    mut incoming: Incoming<GenerationRequest<K>>,
) -> Result<Json<K::Response>, ApiError> {
    let _share = mem::take(&mut incoming.share);
    let (generation, call, admission) = admit(gateway, incoming).await?;
    let generation = Arc::new(generation);
    let (dispatcher, offload) = (&gateway.dispatcher, &gateway.offload);
    // Boxed, because this future is the largest part of a request that waits.
    let generated =
        Box::pin(generation::generate(dispatcher, offload, &call, &generation, admission)).await;
    match generated {
        Ok(generated) => Ok(Json(generated.into())),
        Err(error) => Err(failed(&call, error)),
    }
}

/// Checks a request and waits until its first call is admitted.
///
/// # Errors
/// 401, 404 or 422 if the request is invalid; 4xx or 5xx if the call is refused.
pub(super) async fn admit<K: Kind>(
    gateway: &Gateway,
    incoming: Incoming<GenerationRequest<K>>,
) -> Result<(K::Generation, Call, Admission), ApiError> {
    let config = &gateway.config;
    let deadline = Instant::now() + config.request_timeout;
    let Incoming { caller, semaphore, body: GenerationRequest { shared, own }, .. } = incoming;
    let (options, model_options) = shared.into_options();
    let key = caller.payer(options.credentials.as_ref(), gateway)?;
    let mut schemas = Schemas::new(config.schema_limits, config.check_formats);
    own.add_schema(&mut schemas);
    let schemas = Box::pin(schemas.compiled(&gateway.offload, key.sha256(), deadline)).await;
    let schemas = schemas.map_err(|error| ApiError::not_compiled(error, "json_schema"))?;
    let generation = own.generation(model_options, &schemas, &gateway.defaults);
    let generation = generation.map_err(ApiError::invalid)?;
    check_model(generation.model(), gateway)?;
    check_text(|| generation.body(), gateway).await?;
    let semaphore = options.external_semaphore_id.or(semaphore);
    let semaphore = named_semaphore(gateway, semaphore.as_deref()).await?;
    let dispatcher = &gateway.dispatcher;
    let ticket = dispatcher.enqueue();
    let route = dispatcher.route(&ticket, key, generation.model().clone(), semaphore);
    let (kind, input) = (K::Generation::KIND, generation.input());
    let call = Call { kind, route, input, requests: 1, images: 0, deadline };
    let admission = dispatcher.admit(&call).await.map_err(|error| failed(&call, error))?;
    Ok((generation, call, admission))
}

/// The error of a call. It is logged here.
pub(super) fn failed(call: &Call, error: impl Into<GenerationError>) -> ApiError {
    let error = error.into();
    let cause = error.cause();
    let error = ApiError::from(error);
    let (model, code) = (call.route.model(), error.code());
    tracing::warn!(kind = call.kind, %model, code, cause, "the call failed");
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
